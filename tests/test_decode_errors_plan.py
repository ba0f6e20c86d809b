"""plan_sparse_mla_decode's refusals; and fuzzed calls of both functions: a call is refused exactly if the contract says
so, in words that name the argument."""

import math
import re
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_errors import BF16, F16, F32, F64, I32, I64, e
from test_errors_fuzz import build, uses_cuda
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext
from dsa_ext import decode

U8 = torch.uint8
SIZES = ("batch", "s_q", "h_q", "topk", "extra_topk")


def plan(**changes):
    sizes = {"batch": 2, "s_q": 3, "h_q": 5, "topk": 7}
    return dsa_ext.plan_sparse_mla_decode(**(sizes | {"device": "cpu"} | changes))


def refused(error, message, **changes):
    with pytest.raises(error, match="^" + re.escape(f"plan_sparse_mla_decode: {message}") + "$") as caught:
        plan(**changes)
    assert type(caught.value) is error


def test_plan_of_the_cpu():
    for device in ("cpu", torch.device("cpu")):
        for length in (None, e(2, dtype=I32), e(2, 3, dtype=I32)):
            assert torch.equal(plan(topk_length=length, device=device), e(0, dtype=I32))
    out = e(0, dtype=I32)
    assert plan(out=out) is out
    assert plan(device="meta").is_meta


@pytest.mark.parametrize("name", SIZES)
def test_plan_sizes(name):
    refused(TypeError, f"{name} is of type float, expected an int", **{name: 2.0})
    refused(TypeError, f"{name} is of type bool, expected an int", **{name: True})
    refused(ValueError, f"{name} is -1, expected 0 <= {name} < 2^31", **{name: -1})
    refused(ValueError, f"{name} is {2**31}, expected 0 <= {name} < 2^31", **{name: 2**31})
    plan(**{name: 0})


@pytest.mark.parametrize("name", ["topk_length", "extra_topk_length"])
def test_plan_lengths(name):
    refused(TypeError, f"{name} is of type list, expected a tensor", **{name: [1, 2]})
    refused(TypeError, f"{name} is int64, expected int32", **{name: e(2, dtype=I64)})
    expected = "expected (b,) or (b, s_q) with b = 2, s_q = 3"
    for shape in ((3,), (2, 2), (2, 3, 1), ()):
        refused(ValueError, f"{name} has shape {shape}, {expected}", **{name: e(shape, dtype=I32)})
    refused(ValueError, f"{name} is on meta, expected cpu, as device says", **{name: e(2, dtype=I32, device="meta")})


def test_plan_options():
    refused(TypeError, "batch_invariant is of type int, expected a bool", batch_invariant=1)
    refused(TypeError, "device is of type NoneType, expected a torch.device, a str or an int", device=None)
    refused(ValueError, "device is 'gpu', expected the name of a device, such as 'cuda'", device="gpu")
    refused(NotImplementedError, "device is xpu, expected a CUDA or a CPU device", device="xpu")


def test_plan_out():
    refused(TypeError, "out is of type list, expected a tensor", out=[])
    refused(TypeError, "out is float32, expected int32", out=e(0))
    refused(ValueError, "out has shape (3,), expected (0,)", out=e(3, dtype=I32))
    refused(ValueError, "out has shape (0, 1), expected (0,)", out=e(0, 1, dtype=I32))
    refused(ValueError, "out is on meta, expected cpu, as device says", out=e(0, dtype=I32, device="meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_plan_without_a_gpu():
    refused(ValueError, "device is cuda, expected cpu: torch sees no usable NVIDIA GPU", device="cuda")


def test_plan_without_a_kernel(monkeypatch):
    reasons = "plan_sparse_mla_decode: no implementation takes this call on compute capability 8.x: none is built"

    def op(*arguments):
        raise RuntimeError(reasons)

    monkeypatch.setattr(decode, "_plan_sparse_mla_decode", op)
    with pytest.raises(NotImplementedError, match=re.escape(reasons)):
        plan()


@pytest.mark.gpu
def test_plan_out_on_the_gpu():
    good = plan(device="cuda")
    length = torch.zeros(len(good) + 2, dtype=I32, device="cuda")
    name = str(good.device)
    for out, message in (
        (good[1:], f"out has shape ({len(good) - 1},), expected ({len(good)},)"),
        (good.cpu(), f"out is on cpu, expected {name}, as device says"),
        (good.repeat_interleave(2)[::2], "out has strides (2,), expected a contiguous last dimension (stride 1)"),
    ):
        refused(ValueError, message, device="cuda", out=out)
    message = "out shares memory with topk_length, expected a buffer of its own"
    refused(ValueError, message, device="cuda", out=length[: len(good)], topk_length=length[:2])
    refused(
        ValueError, f"topk_length is on cpu, expected {name}, as device says", device="cuda", topk_length=e(2).int()
    )


# --- fuzz

DTYPES = [BF16, F32, F16, F64, I32, I64, U8, torch.bool]
TENSORS = ("q", "kv_cache", "idx", "topk_length", "attn_sink", "extra_kv_cache", "extra_idx", "extra_topk_length")
NEEDED = TENSORS[:3]


@st.composite
def calls(draw):
    """A legal call of random small sizes, of which up to two properties are replaced by random ones.

    Yields plain data: {name: (shape, dtype, device, last stride) or None or something that is no tensor}.
    """
    b, s_q, h_q, topk, extra_topk = (draw(st.integers(0, 3)) for _ in range(5))
    device = draw(st.sampled_from(["cpu", "meta", "cuda"]))
    format = draw(st.sampled_from(["v32", "v4", "bf16"]))
    d_qk = {"v32": 576, "v4": 512}.get(format, 576 if device == "cuda" else draw(st.sampled_from([512, 576, 600])))
    dtype = BF16 if device == "cuda" else draw(st.sampled_from(DTYPES[:4]))
    width, stored = {"v32": (656, U8), "v4": (584, U8)}.get(format, (d_qk, dtype))
    lengths = [(b,), (b, s_q)]
    call = {
        "q": ((b, s_q, h_q, d_qk), dtype),
        "kv_cache": ((draw(st.integers(0, 3)), draw(st.integers(0, 3)), width), stored),
        "idx": ((b, s_q, topk), I32),
        "topk_length": (draw(st.sampled_from(lengths)), I32),
        "attn_sink": ((h_q,), F32),
        "extra_kv_cache": ((draw(st.integers(0, 3)), draw(st.integers(0, 3)), width), stored),
        "extra_idx": ((b, s_q, extra_topk), I32),
        "extra_topk_length": (draw(st.sampled_from(lengths)), I32),
    }
    call = {name: (*spec, device, 1) for name, spec in call.items()}
    unused = [
        {"topk_length"},
        {"attn_sink"},
        {"extra_topk_length"},
        {"extra_kv_cache", "extra_idx", "extra_topk_length"},
    ]
    for names in unused:
        if draw(st.booleans()):
            call |= dict.fromkeys(names)
    call["scale"] = draw(st.floats(1e-6, 1e6))

    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from((*TENSORS, "scale")))
        if name == "scale":
            call[name] = draw(st.sampled_from([None, "1", 1, 0, -1, True, 10**400, float("nan")]))
        elif draw(st.integers(0, 4)) == 0 or not isinstance(call[name], tuple):
            call[name] = draw(st.sampled_from([None, 1.5, "x", [1, 2]]))
        else:
            shape, dtype, where, stride = call[name]
            what = draw(st.sampled_from(["shape", "one size", "dtype", "device", "stride"]))
            if what == "shape":
                shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 512, 576, 584, 656]), max_size=4)))
                shape = shape if math.prod(shape) <= 2**24 else shape[:2]  # some are allocated
            elif what == "one size" and shape:
                i = draw(st.integers(0, len(shape) - 1))
                shape = (*shape[:i], draw(st.integers(0, 4)), *shape[i + 1 :])
            elif what == "dtype":
                dtype = draw(st.sampled_from(DTYPES))
            elif what == "device":
                where = draw(st.sampled_from(["cpu", "meta", "cuda"]))
            elif what == "stride":
                stride = 2
            call[name] = (shape, dtype, where, stride)
    return call


def is_legal(call):
    """The contract, said again without the package's own words."""
    given = [call[name] for name in TENSORS if call[name] is not None]
    if not all(isinstance(spec, tuple) for spec in given) or any(call[name] is None for name in NEEDED):
        return False
    if len({spec[2] for spec in given}) != 1:
        return False
    q, cache, extra = call["q"], call["kv_cache"], call["extra_kv_cache"]
    if len(q[0]) != 4 or len(cache[0]) != 3:
        return False
    (b, s_q, h_q, d_qk), cuda = q[0], q[2] == "cuda"
    if q[1] not in ((BF16,) if cuda else DTYPES[:4]):
        return False
    if cache[1] == U8:
        if (cache[0][2], d_qk) not in ((656, 576), (584, 512)):
            return False
    elif cache[1] != q[1] or cache[0][2] != d_qk or d_qk < 512 or (cuda and d_qk != 576):
        return False
    if (extra is None) != (call["extra_idx"] is None) or (extra is None and call["extra_topk_length"] is not None):
        return False
    if extra is not None and (extra[1] != cache[1] or len(extra[0]) != 3 or extra[0][2] != cache[0][2]):
        return False
    sink = call["attn_sink"]
    if sink is not None and (sink[0] != (h_q,) or sink[1] not in ((F32, F64) if q[1] == F64 else (F32,))):
        return False
    for name, leads in product(("topk_length", "extra_topk_length"), [((b,), (b, s_q))]):
        if call[name] is not None and (call[name][0] not in leads or call[name][1] != I32):
            return False
    for name in ("idx", "extra_idx"):
        spec = call[name]
        if spec is not None and (len(spec[0]) != 3 or spec[0][:2] != (b, s_q) or spec[1] != I32):
            return False
    for name in ("q", "kv_cache", "idx", "extra_kv_cache", "extra_idx"):
        spec = call[name]
        if spec is not None and spec[3] != 1 and spec[0][-1] > 1:
            return False
    scale = call["scale"]
    return type(scale) in (int, float) and 2.0**-149 <= scale <= (2 - 2.0**-23) * 2.0**127


def check(call):
    ok = is_legal(call)
    arguments = {name: build(spec) if name in TENSORS else spec for name, spec in call.items()}
    try:
        results = dsa_ext.sparse_mla_decode(**arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        assert re.match(rf"sparse_mla_decode: ({'|'.join(call)}) (is|has) .*, expected ", str(error)), error
        assert not ok, error
    else:
        assert ok
        heads = arguments["q"].shape[:-1]
        assert [tuple(r.shape) for r in results] == [(*heads, 512), heads]
        assert results[0].dtype == arguments["q"].dtype and results[0].device == arguments["q"].device


@given(calls())
@settings(max_examples=800, deadline=None)
def test_fake_calls(call):
    """All devices, on every machine."""
    with FakeTensorMode():
        check(call)


@given(calls().filter(lambda call: not uses_cuda(call)))
@settings(max_examples=300, deadline=None)
def test_calls_on_the_cpu(call):
    check(call)


@pytest.mark.gpu
@given(calls().filter(uses_cuda))
@settings(max_examples=300, deadline=None)
def test_calls_on_the_gpu(call):
    check(call)
    torch.cuda.synchronize()
