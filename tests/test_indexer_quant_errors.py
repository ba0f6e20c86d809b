"""Every call of quantize_indexer, prepare_indexer and store_indexer_cache that does not fit is refused, in words that
name the argument."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext
from dsa_ext import indexer_quant

BF16, F32, F64, I32, I64, U8 = (
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.uint8,
)
E4M3 = torch.float8_e4m3fn
e = torch.empty


def legal(function, device="cpu", **changes):
    """Arguments of a call that is accepted, with some of them changed."""
    arguments = {
        "quantize_indexer": {"x": torch.ones(4, 64, dtype=BF16, device=device)},
        "prepare_indexer": {
            "q": torch.ones(4, 3, 128, dtype=BF16, device=device),
            "k": torch.ones(4, 128, dtype=BF16, device=device),
            "weights": torch.ones(4, 3, device=device),
            "cos": torch.ones(4, 32, device=device),
            "sin": torch.ones(4, 32, device=device),
        },
        "store_indexer_cache": {
            "k": torch.zeros(4, 64, dtype=U8, device=device).view(E4M3),
            "k_scale": torch.ones(4, device=device),
            "k_cache": torch.zeros(3, 5, 68, dtype=U8, device=device),
            "slots": torch.arange(4, dtype=I32, device=device),
        },
    }[function]
    return arguments | changes


def refused(function, error, message, **changes):
    for where, prefix in ((dsa_ext, ""), (dsa_ext.reference, "reference.")):
        with pytest.raises(error, match="^" + re.escape(f"{prefix}{function}: {message}") + "$") as caught:
            getattr(where, function)(**legal(function, **changes))
        assert type(caught.value) is error


FUNCTIONS = ["quantize_indexer", "prepare_indexer", "store_indexer_cache"]
TENSORS = [(function, name) for function in FUNCTIONS for name in legal(function)]
PREPARE, STORE = "prepare_indexer", "store_indexer_cache"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_legal_call_is_legal(function):
    getattr(dsa_ext, function)(**legal(function))
    getattr(dsa_ext.reference, function)(**legal(function))


@pytest.mark.parametrize("function, name", TENSORS)
def test_not_a_tensor(function, name):
    refused(function, TypeError, f"{name} is of type list, expected a tensor", **{name: [1]})
    message = f"{name} has layout torch.sparse_coo, expected torch.strided"
    refused(function, TypeError, message, **{name: torch.zeros(4, 4).to_sparse()})


@pytest.mark.parametrize("function", ["quantize_indexer", PREPARE])
def test_scale_format(function):
    expected = "expected 'ue8m0' or 'fp32'"
    refused(function, ValueError, f"scale_format is 'fp8', {expected}", scale_format="fp8")
    refused(function, TypeError, f"scale_format is of type NoneType, {expected}", scale_format=None)


def test_rope_and_hadamard():
    refused(PREPARE, ValueError, "rope is 'neox', expected 'half' or 'interleaved'", rope="neox")
    refused(PREPARE, TypeError, "rope is of type bool, expected 'half' or 'interleaved'", rope=True)
    refused(PREPARE, TypeError, "hadamard is of type int, expected a bool", hadamard=1)


@pytest.mark.parametrize(
    "function, name, shapes, expected",
    [
        ("quantize_indexer", "x", [()], "(..., d)"),
        ("quantize_indexer", "x", [(4, 96), (4, 0), (64, 1)], "(..., d) with d = 32 or 64 or 128"),
        (PREPARE, "q", [(4, 3, 64), (4, 128), (1, 4, 3, 128), ()], "(s, h, 128)"),
        (PREPARE, "k", [(3, 128), (4, 1, 128), (4, 64)], "(s, 128) with s = 4"),
        (PREPARE, "weights", [(4, 4), (3, 3), (4, 3, 1)], "(s, h) with s = 4, h = 3"),
        *(
            (
                PREPARE,
                name,
                [(4, 64), (3, 32), (32,)],
                "(s, 32) with s = 4: an angle for each pair of the first 64 dimensions",
            )
            for name in ("cos", "sin")
        ),
        (STORE, "k_scale", [(3,), (4, 1), ()], "(n,) with n = 4"),
        (STORE, "slots", [(3,), (4, 1), ()], "(n,) with n = 4"),
        (STORE, "k_cache", [(3, 5, 132), (5, 68), (3, 5, 1, 68)], "(pages, page_size, d + 4) with d = 64"),
        (STORE, "k", [(64,), (4, 1, 64)], "(n, d)"),
        (STORE, "k", [(4, 68)], "(n, d) with d = 32 or 64 or 128"),
    ],
)
def test_shapes(function, name, shapes, expected):
    for shape in shapes:
        message = f"{name} has shape {shape}, expected {expected}"
        refused(function, ValueError, message, **{name: e(shape, dtype=legal(function)[name].dtype)})


FLOATS = "expected bfloat16 or float32 or float16 or float64"


@pytest.mark.parametrize(
    "function, name, dtype, expected",
    [
        ("quantize_indexer", "x", I32, FLOATS),
        ("quantize_indexer", "x", E4M3, FLOATS),
        (PREPARE, "q", I32, FLOATS),
        (PREPARE, "k", F32, "expected bfloat16 as q"),
        (PREPARE, "weights", I32, FLOATS),
        (PREPARE, "cos", BF16, "expected float32"),
        (PREPARE, "sin", F64, "expected float32"),
        (STORE, "k", U8, "expected float8_e4m3fn"),
        (STORE, "k", BF16, "expected float8_e4m3fn"),
        (STORE, "k_scale", BF16, "expected float32"),
        (STORE, "k_cache", torch.int8, "expected uint8"),
        (STORE, "slots", I64, "expected int32"),
    ],
)
def test_dtypes(function, name, dtype, expected):
    argument = legal(function)[name].float().to(dtype)
    message = f"{name} is {str(dtype).removeprefix('torch.')}, {expected}"
    refused(function, TypeError, message, **{name: argument})


@pytest.mark.parametrize("name", ["q", "k", "weights", "cos", "sin"])
def test_prepare_takes_contiguous_last_dimensions(name):
    t = legal(PREPARE)[name].repeat_interleave(2, -1)[..., ::2]
    message = f"{name} has strides {tuple(t.stride())}, expected a contiguous last dimension (stride 1)"
    refused(PREPARE, ValueError, message, **{name: t})


def test_strides_of_the_cache():
    k = e(4, 128, dtype=U8).view(E4M3)[:, ::2]
    refused(STORE, ValueError, "k has strides (128, 2), expected a contiguous last dimension (stride 1)", k=k)
    spread = e(3, 5, 136, dtype=U8)[..., ::2]
    message = "k_cache has strides (680, 136, 2), expected a contiguous last dimension (stride 1)"
    refused(STORE, ValueError, message, k_cache=spread)
    apart = e(3, 5, 72, dtype=U8)[..., :68]
    message = "k_cache has strides (360, 72, 1), expected (any, 68, 1): its pages have no gaps"
    refused(STORE, ValueError, message, k_cache=apart)
    # Pages of one token have no tokens to be apart.
    dsa_ext.store_indexer_cache(**legal(STORE, k_cache=e(5, 3, 68, dtype=U8)[:, :1]))


def test_cache_that_shares_memory():
    cache = torch.zeros(5, 68, dtype=U8).expand(3, 5, 68)
    message = f"k_cache has strides {cache.stride()}, expected a place of its own for every element"
    refused(STORE, ValueError, message, k_cache=cache)
    memory = torch.zeros(3 * 5 * 68, dtype=U8)
    pages, message = memory.view(3, 5, 68), "k_cache shares memory with {}, expected a buffer of its own"
    refused(STORE, ValueError, message.format("k"), k_cache=pages, k=memory[:256].view(E4M3).view(4, 64))
    refused(STORE, ValueError, message.format("k_scale"), k_cache=pages, k_scale=memory[:16].view(F32))
    refused(STORE, ValueError, message.format("slots"), k_cache=pages, slots=memory[-16:].view(I32))


@pytest.mark.parametrize("function, name", [t for t in TENSORS if t[1] not in ("x", "q") and t != (STORE, "k")])
def test_mixed_devices(function, name):
    where = "k" if function == STORE else "q"
    message = f"{name} is on meta, expected cpu, where {where} is"
    refused(function, ValueError, message, **{name: legal(function)[name].to("meta")})


def test_options_are_keyword_only():
    for function, option in (("quantize_indexer", "fp32"), (PREPARE, "half")):
        with pytest.raises(TypeError, match="positional"):
            getattr(dsa_ext, function)(*legal(function).values(), option)


@pytest.mark.parametrize(
    "function, name", [t for t in TENSORS if t[1] not in ("k_cache", "slots") and t != (STORE, "k")]
)
def test_no_backward(function, name):
    call = legal(function)
    call[name] = call[name].requires_grad_()
    getattr(dsa_ext, function)(**call)  # in no_grad, as all tests are
    message = rf"^{function}: {name} requires grad, expected .*detach"
    with torch.enable_grad(), pytest.raises(NotImplementedError, match=message):
        getattr(dsa_ext, function)(**call)


@pytest.mark.parametrize(
    "function, name, dtype, expected",
    [
        ("quantize_indexer", "x", F64, "bfloat16 or float16 or float32"),
        (PREPARE, "q", F32, "bfloat16"),
        (PREPARE, "weights", torch.float16, "float32 or bfloat16"),
    ],
)
def test_dtypes_on_cuda(function, name, dtype, expected):
    with FakeTensorMode():
        call = legal(function, device="cuda")
        getattr(dsa_ext, function)(**call)
        message = f"{function}: {name} is {str(dtype)[6:]}, expected {expected} on a CUDA device"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            getattr(dsa_ext, function)(**call | {name: e(call[name].shape, dtype=dtype, device="cuda")})


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch with CUDA cannot make a fake tensor on xpu")
@pytest.mark.parametrize("function, name", [("quantize_indexer", "x"), (PREPARE, "q"), (STORE, "k")])
def test_another_device(function, name):
    message = rf"^{function}: {name} is on xpu(:0)?, expected a CUDA or a CPU device$"
    with FakeTensorMode(), pytest.raises(NotImplementedError, match=message):
        getattr(dsa_ext, function)(**legal(function, device="xpu"))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_kernel_for_the_call(function, monkeypatch):
    """The op's own reason, as the exception that says so; any other error of an op stays what it is."""
    reason = f"{function}: no implementation takes this call on this device: none is built for its architecture"

    def fails_with(error):
        def op(*arguments):
            raise error

        monkeypatch.setattr(indexer_quant, f"_{function}", op)

    fails_with(RuntimeError(reason))
    with pytest.raises(NotImplementedError, match=f"^{re.escape(reason)}$"):
        getattr(dsa_ext, function)(**legal(function))
    other = torch.OutOfMemoryError("no memory left")
    fails_with(other)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        getattr(dsa_ext, function)(**legal(function))
    assert caught.value is other


@pytest.mark.gpu
@pytest.mark.parametrize(
    "function, changes",
    [
        ("quantize_indexer", {"x": e(4, 64, dtype=F64)}),
        ("quantize_indexer", {"x": e(4, 96)}),
        ("quantize_indexer", {"scale_format": "fp8"}),
        (PREPARE, {"q": e(4, 3, 64, dtype=BF16)}),
        (PREPARE, {"q": e(4, 3, 128)}),
        (PREPARE, {"k": e(3, 128, dtype=BF16)}),
        (PREPARE, {"weights": e(4, 2)}),
        (PREPARE, {"weights": e(4, 3, dtype=I32)}),
        (PREPARE, {"cos": e(4, 64)}),
        (PREPARE, {"sin": e(3, 32)}),
        (PREPARE, {"rope": "neox"}),
        (STORE, {"k": e(4, 64, dtype=U8)}),
        (STORE, {"k": e(4, 32, dtype=U8).view(E4M3)}),
        (STORE, {"k_scale": e(3)}),
        (STORE, {"k_cache": e(1, 5, 68, dtype=U8).expand(3, -1, -1)}),
        (STORE, {"k_cache": e(3, 5, 72, dtype=U8)[..., :68]}),
        (STORE, {"slots": e(4, dtype=I64)}),
        (STORE, {"slots": e(3, dtype=I32)}),
    ],
)
def test_the_op_itself_is_safe(function, changes):
    """torch.ops.dsa_ext skips the Python checks; what the kernels' memory safety needs is checked again below."""
    options = {"quantize_indexer": {"scale_format": "ue8m0"}, STORE: {}}
    options[PREPARE] = {"rope": "half", "hadamard": True, "scale_format": "ue8m0"}
    call, op = legal(function, "cuda") | options[function], getattr(torch.ops.dsa_ext, function)
    op(*call.values())
    (name, value), *_ = changes.items()
    if isinstance(value, torch.Tensor):
        moved = value.untyped_storage().cuda()
        value = torch.empty(0, dtype=value.dtype, device="cuda").set_(
            moved, value.storage_offset(), value.shape, value.stride()
        )
    # A key of another width finds fault with the cache.
    named = "k_cache" if (function, name) == (STORE, "k") and value.dtype == E4M3 else name
    with pytest.raises(RuntimeError, match=f"{function}: {named} "):
        op(*(call | {name: value}).values())
    for other in list(legal(function)) if function != "quantize_indexer" else ():  # that would be the CPU's
        with pytest.raises((RuntimeError, ValueError), match="device"):
            op(*(call | {other: call[other].cpu()}).values())
