"""Fuzzed argument validation: a call is refused exactly if the contract says so, in words that name the argument."""

import math
import re
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext
from dsa_ext._checks import overlap

BF16, F16, F32, F64, I32, I64 = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
)


DTYPES = [BF16, F32, F16, F64, I32, I64, torch.uint8, torch.bool]
ARGUMENTS = ("q", "kv", "idx", "attn_sink", "topk_length")


@st.composite
def calls(draw):
    """A legal call of random small sizes, of which up to two properties are replaced by random ones.

    Yields plain data: {name: (shape, dtype, device, last stride) or None or something that is no tensor}.
    """
    sizes = {k: draw(st.integers(0, 3)) for k in ("b", "s_q", "h_q", "s_kv", "topk")}
    device = draw(st.sampled_from(["cpu", "meta", "cuda"]))
    d_qk = draw(st.sampled_from([512, 576] if device == "cuda" else [1, 2, 5, 512]))
    dtype = BF16 if device == "cuda" else draw(st.sampled_from(DTYPES[:4]))
    batched, head_dim = draw(st.booleans()), draw(st.booleans())
    lead, one = ((sizes["b"],), ()) if batched else ((), (1,) if head_dim else ())
    shapes = {
        "q": (*lead, sizes["s_q"], sizes["h_q"], d_qk),
        "kv": (*lead, sizes["s_kv"], *one, d_qk),
        "idx": (*lead, sizes["s_q"], *one, sizes["topk"]),
        "attn_sink": (sizes["h_q"],),
        "topk_length": (*lead, sizes["s_q"]),
    }
    dtypes = {"q": dtype, "kv": dtype, "idx": I32, "attn_sink": F32, "topk_length": I32}
    call = {name: (shapes[name], dtypes[name], device, 1) for name in ARGUMENTS}
    for name in ("attn_sink", "topk_length"):
        if draw(st.booleans()):
            call[name] = None
    call["scale"] = draw(st.floats(1e-6, 1e6))
    call["d_v"] = 512 if device == "cuda" else draw(st.integers(1, d_qk))

    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from((*ARGUMENTS, "scale", "d_v")))
        if name == "scale":
            call[name] = draw(st.one_of(st.floats(), st.sampled_from([None, "1", 1, 0, -1, True, 10**400])))
        elif name == "d_v":
            call[name] = draw(st.one_of(st.integers(-(2**70), 2**70), st.sampled_from([None, 1.0, True])))
        elif draw(st.integers(0, 4)) == 0 or not isinstance(call[name], tuple):
            call[name] = draw(st.sampled_from([None, 1.5, "x", [1, 2]]))
        else:
            shape, dtype, where, stride = call[name]
            what = draw(st.sampled_from(["shape", "one size", "dtype", "device", "stride"]))
            if what == "shape":
                shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 512, 576]), max_size=5)))
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


def build(spec):
    if not isinstance(spec, tuple):
        return spec
    shape, dtype, device, stride = spec
    strides, step = [], stride
    for size in reversed(shape):
        strides.insert(0, step)
        step *= max(1, size)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def is_legal(call):
    """The contract, said again without the package's own words."""
    q, kv, idx, sink, length = (call[name] for name in ARGUMENTS)
    if not all(isinstance(t, tuple) for t in (q, kv, idx)):
        return False
    if not all(t is None or isinstance(t, tuple) for t in (sink, length)):
        return False
    if len({t[2] for t in (q, kv, idx, sink, length) if t}) != 1:
        return False
    (shape, dtype, device, _), d_v, scale = q, call["d_v"], call["scale"]
    if len(shape) not in (3, 4) or dtype not in ([BF16] if device == "cuda" else DTYPES[:4]):
        return False
    *lead, h_q, d_qk = shape
    forms = (
        [(kv[0], idx[0])]
        if len(lead) == 2
        else [(k, i) for k, i in product((kv[0], without_one(kv[0])), (idx[0], without_one(idx[0])))]
    )
    fits = any(
        len(k) == len(lead) + 1 and k[:-2] == tuple(lead[:-1]) and k[-1] == d_qk and i[:-1] == tuple(lead)
        for k, i in forms
    )
    return (
        fits
        and (kv[1], idx[1]) == (dtype, I32)
        and all(t[3] == 1 or t[0][-1] <= 1 for t in (q, kv, idx))
        and (sink is None or (sink[0] == (h_q,) and sink[1] in ((F32, F64) if dtype == F64 else (F32,))))
        and (length is None or (length[0] == tuple(lead) and length[1] == I32))
        and type(d_v) is int
        and ((d_qk in (512, 576) and d_v == 512) if device == "cuda" else 1 <= d_v <= d_qk)
        and type(scale) in (int, float)
        and 1e-45 < scale < 3.5e38
    )


def without_one(shape):
    """(n, 1, m) as (n, m)."""
    return (shape[0], shape[2]) if len(shape) == 3 and shape[1] == 1 else shape


def check(call):
    arguments = {name: build(spec) for name, spec in call.items()}
    ok = is_legal(call)
    try:
        results = dsa_ext.sparse_mla_fwd(**arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        assert re.match(rf"sparse_mla_fwd: ({'|'.join(call)}) (is|has) .*, expected ", str(error)), error
        assert not ok, error
    else:
        assert ok
        heads = arguments["q"].shape[:-1]
        assert [tuple(r.shape) for r in results] == [(*heads, call["d_v"]), heads, heads]
        assert results[0].dtype == arguments["q"].dtype and results[0].device == arguments["q"].device


def uses_cuda(call):
    return any(isinstance(spec, tuple) and spec[2] == "cuda" for spec in call.values())


@given(calls())
@settings(max_examples=1500, deadline=None)
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


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_overlap_is_never_missed(data):
    """Against the sets of addresses themselves; sharing may be claimed where there is none, but not for ranges apart or
    for two slices of one matrix's columns."""
    storage = torch.arange(200)

    def view():
        shape = data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=3))
        stride = data.draw(st.lists(st.integers(0, 12), min_size=len(shape), max_size=len(shape)))
        return storage.as_strided(shape, stride, data.draw(st.integers(0, 60)))

    a, b = view(), view()
    shares = bool(set(a.flatten().tolist()) & set(b.flatten().tolist()))
    claimed = overlap(a, b)
    assert claimed or not shares
    if int(a.max()) < int(b.min()) or int(b.max()) < int(a.min()):
        assert not claimed


@given(st.integers(1, 5), st.integers(0, 8), st.integers(1, 8), st.integers(0, 8), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_overlap_of_columns_is_exact(rows, start_a, width_a, start_b, width_b):
    matrix = torch.arange(rows * 16).view(rows, 16)
    a, b = matrix[:, start_a : start_a + width_a], matrix[:, start_b : start_b + width_b]
    shares = bool(set(a.flatten().tolist()) & set(b.flatten().tolist()))
    assert overlap(a, b) == shares
