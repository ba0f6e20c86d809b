"""Every call of the KV cache's functions that does not fit is refused, in words that name the argument."""

import re

import pytest
import torch
from kv_cache_oracle import BYTES, HEAD_DIM
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext
from dsa_ext import _registration, cache

BF16, F32, I32, I64, U8 = torch.bfloat16, torch.float32, torch.int32, torch.int64, torch.uint8
e = torch.empty


def legal(function, format="v32", device="cpu", **changes):
    """Arguments of a call that is accepted, with some of them changed."""
    kv = torch.ones(4, HEAD_DIM[format], dtype=BF16, device=device)
    pages = torch.zeros(3, 5, BYTES[format], dtype=U8, device=device)
    arguments = {
        "pack_kv_cache": {"kv": kv, "page_size": 5},
        "unpack_kv_cache": {"packed": pages},
        "store_kv_cache": {"kv": kv, "kv_cache": pages, "slots": torch.zeros(4, dtype=I32, device=device)},
    }[function]
    return arguments | {"format": format} | changes


def refused(function, error, message, format="v32", **changes):
    arguments = legal(function, format, **changes)
    for where, prefix in ((dsa_ext, ""), (dsa_ext.reference, "reference.")):
        with pytest.raises(error, match="^" + re.escape(f"{prefix}{function}: {message}") + "$") as caught:
            getattr(where, function)(**arguments)
        assert type(caught.value) is error


FUNCTIONS = ["pack_kv_cache", "unpack_kv_cache", "store_kv_cache"]
CACHES = [("unpack_kv_cache", "packed"), ("store_kv_cache", "kv_cache")]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_legal_call_is_legal(function):
    for format in ("v32", "v4"):
        getattr(dsa_ext, function)(**legal(function, format))
        getattr(dsa_ext.reference, function)(**legal(function, format))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_format(function):
    arguments = legal(function)
    for format, error, message in (
        ("v5", ValueError, "format is 'v5', expected 'v32' or 'v4'"),
        (4, TypeError, "format is of type int, expected 'v32' or 'v4'"),
    ):
        with pytest.raises(error, match=f"^{function}: {re.escape(message)}$"):
            getattr(dsa_ext, function)(**arguments | {"format": format})


@pytest.mark.parametrize("function", ["pack_kv_cache", "store_kv_cache"])
def test_scale_format(function):
    expected = "expected 'ue8m0' or 'fp32'"
    refused(function, ValueError, f"scale_format is 'fp8', {expected}", scale_format="fp8")
    refused(function, TypeError, f"scale_format is of type NoneType, {expected}", scale_format=None)
    message = "scale_format is 'fp32', expected 'ue8m0' for format 'v4', whose scales are e8m0"
    refused(function, ValueError, message, "v4", scale_format="fp32")


def test_page_size():
    for size in (0, -1, 2**31):
        message = f"page_size is {size}, expected 1 <= page_size < 2^31"
        refused("pack_kv_cache", ValueError, message, page_size=size)
    for size, kind in ((2.0, "float"), (True, "bool"), ("2", "str")):
        refused("pack_kv_cache", TypeError, f"page_size is of type {kind}, expected an int", page_size=size)
    message = "page_size is None, expected an int for format 'v4', which exists in pages only"
    refused("pack_kv_cache", ValueError, message, "v4", page_size=None)


@pytest.mark.parametrize(
    "function, name",
    [("pack_kv_cache", "kv"), ("store_kv_cache", "kv"), *CACHES, ("store_kv_cache", "slots")],
)
def test_not_a_tensor(function, name):
    refused(function, TypeError, f"{name} is of type list, expected a tensor", **{name: [1]})
    message = f"{name} has layout torch.sparse_coo, expected torch.strided"
    refused(function, TypeError, message, **{name: torch.zeros(4, 4).to_sparse()})


@pytest.mark.parametrize("function", ["pack_kv_cache", "store_kv_cache"])
@pytest.mark.parametrize("format", ["v32", "v4"])
def test_kv(function, format):
    d = HEAD_DIM[format]
    expected = f"expected (n, {d}) for format {format!r}"
    for shape in ((d,), (4, 1, d), (4, d - 1), (4, 576 + 512 - d), ()):
        refused(function, ValueError, f"kv has shape {shape}, {expected}", format, kv=e(shape, dtype=BF16))
    message = "kv is int32, expected bfloat16 or float32 or float16 or float64"
    refused(function, TypeError, message, format, kv=e(4, d, dtype=I32))
    message = f"kv has strides ({2 * d}, 2), expected a contiguous last dimension (stride 1)"
    refused(function, ValueError, message, format, kv=e(4, 2 * d, dtype=BF16)[:, ::2])


@pytest.mark.parametrize("function, name", CACHES)
def test_cache(function, name):
    for dtype in (torch.int8, torch.float8_e4m3fn, BF16):
        message = f"{name} is {str(dtype)[6:]}, expected uint8"
        refused(function, TypeError, message, **{name: e(3, 5, 656).to(dtype)})
    expected = "expected (n, 656) or (pages, page_size, 656) for format 'v32'"
    for shape in ((656,), (3, 5, 584), (3, 5, 1, 656), ()):
        refused(function, ValueError, f"{name} has shape {shape}, {expected}", **{name: e(shape, dtype=U8)})
    expected = "expected (pages, page_size, 584) for format 'v4'"
    for shape in ((5, 584), (3, 5, 656), (3, 5, 1, 584)):
        refused(function, ValueError, f"{name} has shape {shape}, {expected}", "v4", **{name: e(shape, dtype=U8)})
    spread = e(3, 5, 2 * 656, dtype=U8)[..., ::2]
    message = f"{name} has strides {spread.stride()}, expected a contiguous last dimension (stride 1)"
    refused(function, ValueError, message, **{name: spread})
    apart = e(3, 5, 600, dtype=U8)[..., :584]
    message = f"{name} has strides (3000, 600, 1), expected (any, 584, 1) for format 'v4', whose pages have no gaps"
    refused(function, ValueError, message, "v4", **{name: apart})


def test_slots():
    refused("store_kv_cache", TypeError, "slots is int64, expected int32", slots=e(4, dtype=I64))
    for shape in ((5,), (4, 1), ()):
        message = f"slots has shape {shape}, expected (n,) with n = 4"
        refused("store_kv_cache", ValueError, message, slots=e(shape, dtype=I32))


@pytest.mark.parametrize("name", ["kv_cache", "slots"])
def test_mixed_devices(name):
    elsewhere = legal("store_kv_cache")[name].to("meta")
    message = f"{name} is on meta, expected cpu, where kv is"
    refused("store_kv_cache", ValueError, message, **{name: elsewhere})


def test_cache_that_shares_memory():
    cache = torch.zeros(5, 656, dtype=U8).expand(3, 5, 656)
    message = f"kv_cache has strides {cache.stride()}, expected a place of its own for every element"
    refused("store_kv_cache", ValueError, message, kv_cache=cache)
    memory = torch.zeros(3 * 5 * 656, dtype=U8)
    pages, message = memory.view(3, 5, 656), "kv_cache shares memory with {}, expected a buffer of its own"
    kv = memory[: 4 * 1152].view(BF16).view(4, 576)
    refused("store_kv_cache", ValueError, message.format("kv"), kv_cache=pages, kv=kv)
    refused("store_kv_cache", ValueError, message.format("slots"), kv_cache=pages, slots=memory[-16:].view(I32))


def test_optional_arguments_are_keyword_only():
    for function in FUNCTIONS:
        arguments = list(legal(function).values())
        with pytest.raises(TypeError, match="positional"):
            getattr(dsa_ext, function)(*arguments)


@pytest.mark.parametrize("function", ["pack_kv_cache", "store_kv_cache"])
def test_no_backward(function):
    call = legal(function)
    call["kv"] = call["kv"].requires_grad_()
    getattr(dsa_ext, function)(**call)  # in no_grad, as all tests are
    message = rf"^{function}: kv requires grad, expected .*detach"
    with torch.enable_grad(), pytest.raises(NotImplementedError, match=message):
        getattr(dsa_ext, function)(**call)


@pytest.mark.parametrize("function", ["pack_kv_cache", "store_kv_cache"])
def test_cuda_takes_bfloat16(function):
    with FakeTensorMode():
        call = legal(function, device="cuda")
        getattr(dsa_ext, function)(**call)
        kv = e(4, 576, dtype=F32, device="cuda")
        with pytest.raises(TypeError, match=f"^{function}: kv is float32, expected bfloat16 on a CUDA device$"):
            getattr(dsa_ext, function)(**call | {"kv": kv})


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch with CUDA cannot make a fake tensor on xpu")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_device(function):
    name = "packed" if function == "unpack_kv_cache" else "kv"
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

        monkeypatch.setattr(cache, f"_{function}", op)

    fails_with(RuntimeError(reason))
    with pytest.raises(NotImplementedError, match=f"^{re.escape(reason)}$"):
        getattr(dsa_ext, function)(**legal(function))
    other = torch.OutOfMemoryError("no memory left")
    fails_with(other)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        getattr(dsa_ext, function)(**legal(function))
    assert caught.value is other


def test_cuda_tensors_with_a_build_for_the_cpu(monkeypatch):
    monkeypatch.setattr(_registration._C, "build_info", lambda: {"archs": []})
    error = NotImplementedError("Could not run 'dsa_ext::unpack_kv_cache'")
    reason = _registration.why_no_kernel("unpack_kv_cache", error, torch.device("cuda:0"), "packed")
    assert reason.startswith("unpack_kv_cache: packed is on cuda:0, expected the CPU: this build has no CUDA kernels")


@pytest.mark.gpu
def test_the_op_itself_is_safe():
    """torch.ops.dsa_ext skips the Python checks; what the kernels' memory safety needs is checked again below."""
    pack, unpack, store = (getattr(torch.ops.dsa_ext, name) for name in FUNCTIONS)
    kv, pages, slots = (legal("store_kv_cache", device="cuda")[name] for name in ("kv", "kv_cache", "slots"))
    store(kv, pages, slots, "v32", "fp32")
    spread = e(3, 5, 1312, dtype=U8, device="cuda")[..., ::2]
    gaps = e(3, 5, 600, dtype=U8, device="cuda")[..., :584]
    for op, arguments, name in (
        (pack, (kv.float(), "v32", 5, "ue8m0"), "kv"),
        (pack, (kv[:, :512], "v32", 5, "ue8m0"), "kv"),
        (pack, (kv, "v5", 5, "ue8m0"), "format"),
        (pack, (kv, "v32", 5, "fp8"), "scale_format"),
        (pack, (kv, "v32", 0, "ue8m0"), "page_size"),
        (pack, (kv[:, :512], "v4", None, "ue8m0"), "page_size"),
        (pack, (kv[:, :512], "v4", 5, "fp32"), "scale_format"),
        (unpack, (pages.char(), "v32"), "packed"),
        (unpack, (pages, "v4"), "packed"),
        (unpack, (spread, "v32"), "packed"),
        (unpack, (gaps, "v4"), "packed"),
        (store, (kv.cpu(), pages, slots, "v32", "ue8m0"), "kv"),
        (store, (kv, pages.cpu(), slots, "v32", "ue8m0"), "kv_cache"),
        (store, (kv, pages[:1].expand(3, -1, -1), slots, "v32", "ue8m0"), "kv_cache"),
        (store, (kv, pages, slots.cpu(), "v32", "ue8m0"), "slots"),
        (store, (kv, pages, slots.long(), "v32", "ue8m0"), "slots"),
        (store, (kv, pages, slots[:3], "v32", "ue8m0"), "slots"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=f"kv_cache: {name} "):
            op(*arguments)
