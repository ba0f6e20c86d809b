"""Every call of sparse_mla_decode and its plan that does not fit is refused, in words that name the argument."""

import math
import re

import numpy as np
import pytest
import torch
from test_errors import BF16, F16, F32, F64, I32, I64, e
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext
from dsa_ext import decode

U8 = torch.uint8
WIDTH = {"v32": 656, "v4": 584}
D_QK = {"v32": 576, "v4": 512, "bf16": 576}


def legal(format="v32", device="cpu", extra=False, **changes):
    """A call that is accepted, with some of its arguments changed."""
    cache = torch.ones(3, 4, WIDTH.get(format, 576), dtype=BF16 if format == "bf16" else U8, device=device)
    arguments = {
        "q": torch.ones(2, 3, 5, D_QK[format], dtype=BF16, device=device),
        "kv_cache": cache,
        "idx": torch.zeros(2, 3, 7, dtype=I32, device=device),
        "scale": 0.1,
    }
    if extra:
        arguments |= {"extra_kv_cache": cache[:1, :2], "extra_idx": torch.zeros(2, 3, 6, dtype=I32, device=device)}
    return arguments | changes


def refused(error, message, **arguments):
    for function, name in ((dsa_ext.sparse_mla_decode, ""), (dsa_ext.reference.sparse_mla_decode, "reference.")):
        with pytest.raises(error, match="^" + re.escape(f"{name}sparse_mla_decode: {message}") + "$") as caught:
            function(**arguments)
        assert type(caught.value) is error


def test_the_legal_call_is_legal():
    for format in D_QK:
        for extra in (False, True):
            call = legal(format, extra=extra)
            if format == "v4" and extra:
                call["extra_kv_cache"] = call["extra_kv_cache"].contiguous()
            dsa_ext.sparse_mla_decode(**call)
            dsa_ext.reference.sparse_mla_decode(**call)


OPTIONAL = ("topk_length", "attn_sink", "extra_kv_cache", "extra_idx", "extra_topk_length", "plan")


@pytest.mark.parametrize("name", ["q", "kv_cache", "idx", *OPTIONAL])
def test_not_a_tensor(name):
    def call(value):
        return legal(extra=True, **{name: value})

    refused(TypeError, f"{name} is of type list, expected a tensor", **call([1.0]))
    refused(TypeError, f"{name} is of type ndarray, expected a tensor", **call(np.zeros(4)))
    sparse = torch.zeros(4, 4).to_sparse()
    refused(TypeError, f"{name} has layout torch.sparse_coo, expected torch.strided", **call(sparse))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"q": e(2, 3, 5, 576, dtype=I32)}, "q is int32, expected bfloat16 or float32 or float16 or float64"),
        ({"kv_cache": e(3, 4, 576)}, "kv_cache is float32, expected uint8 or bfloat16"),
        ({"q": e(2, 3, 5, 576), "kv_cache": e(3, 4, 576, dtype=F16)}, "kv_cache is float16, expected uint8 or float32"),
        (
            {"kv_cache": e(3, 4, 656, dtype=U8).view(torch.float8_e4m3fn)},
            "kv_cache is float8_e4m3fn, expected uint8 or bfloat16",
        ),
        ({"idx": e(2, 3, 7, dtype=I64)}, "idx is int64, expected int32"),
        ({"attn_sink": e(5, dtype=BF16)}, "attn_sink is bfloat16, expected float32"),
        ({"attn_sink": e(5, dtype=F64)}, "attn_sink is float64, expected float32"),
        ({"topk_length": e(2, dtype=I64)}, "topk_length is int64, expected int32"),
        ({"extra_kv_cache": e(1, 2, 576, dtype=BF16)}, "extra_kv_cache is bfloat16, expected uint8 as kv_cache"),
        ({"extra_idx": e(2, 3, 6, dtype=I64)}, "extra_idx is int64, expected int32"),
        ({"extra_topk_length": e(2, dtype=F32)}, "extra_topk_length is float32, expected int32"),
        ({"plan": e(0)}, "plan is float32, expected int32"),
    ],
)
def test_dtype(changes, message):
    refused(TypeError, message, **legal(extra=True, **changes))


LENGTH = "(b,) or (b, s_q) with b = 2, s_q = 3"
CACHE = "(pages, page_size, 656) or (pages, page_size, 584) for uint8"
EXTRA = "(pages, page_size, 656), the format of kv_cache"
PLAN = "(0,), as plan_sparse_mla_decode makes it for the sizes of this call"


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("q", (3, 5, 576), "(b, s_q, h_q, d_qk)"),
        ("q", (), "(b, s_q, h_q, d_qk)"),
        ("kv_cache", (12, 656), CACHE),
        ("kv_cache", (3, 4, 1, 656), CACHE),
        ("kv_cache", (3, 4, 576), CACHE),
        ("kv_cache", (), CACHE),
        ("idx", (2, 7), "(b, s_q, topk) with b = 2, s_q = 3"),
        ("idx", (3, 3, 7), "(b, s_q, topk) with b = 2, s_q = 3"),
        ("idx", (2, 1, 7), "(b, s_q, topk) with b = 2, s_q = 3"),
        ("attn_sink", (4,), "(h_q,) with h_q = 5"),
        ("attn_sink", (5, 1), "(h_q,) with h_q = 5"),
        ("topk_length", (3,), LENGTH),
        ("topk_length", (2, 1), LENGTH),
        ("topk_length", (2, 3, 1), LENGTH),
        ("topk_length", (), LENGTH),
        ("extra_kv_cache", (1, 2, 584), EXTRA),
        ("extra_kv_cache", (2, 656), EXTRA),
        ("extra_idx", (2, 6), "(b, s_q, extra_topk) with b = 2, s_q = 3"),
        ("extra_idx", (2, 2, 6), "(b, s_q, extra_topk) with b = 2, s_q = 3"),
        ("extra_topk_length", (6,), LENGTH),
        ("plan", (1,), PLAN),
        ("plan", (0, 1), PLAN),
        ("plan", (), PLAN),
    ],
)
def test_shape(name, shape, expected):
    dtype = {"q": BF16, "attn_sink": F32, "kv_cache": U8, "extra_kv_cache": U8}.get(name, I32)
    refused(
        ValueError,
        f"{name} has shape {shape}, expected {expected}",
        **legal(extra=True, **{name: e(shape, dtype=dtype)}),
    )


def test_width_of_queries_and_caches():
    q512, q700 = e(2, 3, 5, 512, dtype=BF16), e(2, 3, 5, 700, dtype=BF16)
    refused(ValueError, "q has d_qk = 512, expected 576 with 656 bytes a token in kv_cache", **legal("v32", q=q512))
    refused(ValueError, "q has d_qk = 700, expected 512 with 584 bytes a token in kv_cache", **legal("v4", q=q700))
    message = "kv_cache has shape (3, 4, 576), expected (pages, page_size, d_qk) with d_qk = 700"
    refused(ValueError, message, **legal("bf16", q=q700))
    message = "q has d_qk = 511, expected at least 512, the columns of a value"
    refused(ValueError, message, **legal("bf16", q=e(2, 3, 5, 511, dtype=BF16), kv_cache=e(3, 4, 511, dtype=BF16)))


def test_extra_arguments_go_together():
    call = legal(extra=True)
    refused(ValueError, "extra_idx is None, expected a tensor beside extra_kv_cache", **(call | {"extra_idx": None}))
    message = "extra_idx is of type Tensor, expected None without extra_kv_cache"
    refused(ValueError, message, **(call | {"extra_kv_cache": None}))
    message = "extra_topk_length is of type Tensor, expected None without extra_kv_cache"
    refused(ValueError, message, **legal(extra_topk_length=e(2, dtype=I32)))


@pytest.mark.parametrize("name", ["q", "kv_cache", "idx", "extra_kv_cache", "extra_idx"])
def test_last_dimension_not_contiguous(name):
    call = legal(extra=True)
    call[name] = call[name].repeat_interleave(2, -1)[..., ::2]
    message = f"{name} has strides {call[name].stride()}, expected a contiguous last dimension (stride 1)"
    refused(ValueError, message, **call)


@pytest.mark.parametrize("name", ["kv_cache", "extra_kv_cache"])
def test_v4_pages_with_gaps(name):
    call = legal("v4", extra=True)
    call["extra_kv_cache"] = call["extra_kv_cache"].contiguous()
    call[name] = torch.zeros(3, 4, 600, dtype=U8)[..., :584]
    message = f"{name} has strides (2400, 600, 1), expected (any, 584, 1) for format 'v4', whose pages have no gaps"
    refused(ValueError, message, **call)


@pytest.mark.parametrize("name", ["kv_cache", "idx", "attn_sink", *OPTIONAL])
def test_mixed_devices(name):
    given = {"attn_sink": e(5), "topk_length": e(2, dtype=I32), "extra_topk_length": e(2, dtype=I32)}
    given |= {"plan": e(0, dtype=I32)}
    call = legal(extra=True)
    call[name] = (call | given)[name].to("meta")
    refused(ValueError, f"{name} is on meta, expected cpu, where q is", **call)


@pytest.mark.parametrize("scale, came", [(0.0, "0.0"), (math.inf, "inf"), (math.nan, "nan"), (1e39, "1e+39")])
def test_scale_value(scale, came):
    refused(ValueError, f"scale is {came}, expected a finite float > 0 (in float32)", **legal(scale=scale))


def test_scale_type():
    refused(TypeError, "scale is of type NoneType, expected a float", **legal(scale=None))


def test_optional_arguments_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        dsa_ext.sparse_mla_decode(*legal().values(), None)
    with pytest.raises(TypeError, match="positional"):
        dsa_ext.plan_sparse_mla_decode(None, 2, 3, 5, 7)


# --- out=


def buffers():
    return [e(2, 3, 5, 512, dtype=BF16), e(2, 3, 5)]


def test_out_container():
    refused(TypeError, "out is of type dict, expected a tensor or a tuple (out, lse)", **legal(out={}))
    refused(ValueError, "out is a tuple of 3, expected (out, lse)", **legal(out=(*buffers(), e(1))))
    refused(TypeError, "lse is of type NoneType, expected a tensor", **legal(out=[buffers()[0], None]))


@pytest.mark.parametrize("i", range(2))
def test_out_dtype_device_shape(i):
    name, right, good = ("out", "lse")[i], ("bfloat16", "float32")[i], buffers()[i]
    for replacement, error, message in (
        (good.to(F16), TypeError, f"{name} is float16, expected {right}"),
        (good.to("meta"), ValueError, f"{name} is on meta, expected cpu, where q is"),
        (good[:1], ValueError, f"{name} has shape {(1, *good.shape[1:])}, expected {tuple(good.shape)}"),
        (good[0], ValueError, f"{name} has shape {tuple(good[0].shape)}, expected {tuple(good.shape)}"),
    ):
        out = buffers()
        out[i] = replacement
        refused(error, message, **legal(out=out))


def test_out_alone_is_checked():
    message = "out has shape (2, 3, 5, 511), expected (2, 3, 5, 512)"
    refused(ValueError, message, **legal(out=e(2, 3, 5, 511, dtype=BF16)))


def test_out_strides():
    message = "out has strides (15360, 5120, 1024, 2), expected a contiguous last dimension (stride 1)"
    refused(ValueError, message, **legal(out=e(2, 3, 5, 1024, dtype=BF16)[..., ::2]))
    message = "lse has strides (0, 5, 1), expected a place of its own for every element"
    refused(ValueError, message, **legal(out=(buffers()[0], e(1, 3, 5).expand(2, 3, 5))))


def test_out_that_is_an_input():
    call = legal()
    message = "out shares memory with q, expected a buffer of its own"
    refused(ValueError, message, **call, out=call["q"][..., 64:])
    cache = torch.zeros(60, 64, 656, dtype=U8)
    out = cache.view(-1)[: 2 * 3 * 5 * 512 * 2].view(BF16).view(2, 3, 5, 512)
    message = "out shares memory with kv_cache, expected a buffer of its own"
    refused(ValueError, message, **legal(kv_cache=cache), out=out)
    message = "out shares memory with extra_kv_cache, expected a buffer of its own"
    refused(ValueError, message, **legal(extra=True, extra_kv_cache=cache), out=out)
    sink = torch.zeros(30)
    message = "lse shares memory with attn_sink, expected a buffer of its own"
    refused(ValueError, message, **legal(attn_sink=sink[3:8]), out=(buffers()[0], sink.view(2, 3, 5)))


# --- devices, grad mode, builds


@pytest.mark.parametrize("name", ["q", "kv_cache", "attn_sink", "extra_kv_cache"])
def test_no_backward(name):
    call = legal("bf16", extra=True, attn_sink=torch.zeros(5))
    call[name] = call[name].clone().requires_grad_()
    dsa_ext.sparse_mla_decode(**call)  # in no_grad, as all tests are
    with torch.enable_grad():
        with pytest.raises(NotImplementedError, match=rf"^sparse_mla_decode: {name} requires grad, .*detach"):
            dsa_ext.sparse_mla_decode(**call)


@pytest.mark.parametrize(
    "format, changes, error, message",
    [
        ("v32", {"q": (2, 3, 5, 576, F32)}, TypeError, "q is float32, expected bfloat16 on a CUDA device"),
        (
            "bf16",
            {"q": (2, 3, 5, 512, BF16), "kv_cache": (3, 4, 512, BF16)},
            ValueError,
            "q has d_qk = 512, expected 576 with a bfloat16 kv_cache on a CUDA device",
        ),
        ("v32", {"kv_cache": (3, 4, 600, U8)}, ValueError, f"kv_cache has shape (3, 4, 600), expected {CACHE}"),
    ],
)
def test_cuda_takes_less(format, changes, error, message):
    with FakeTensorMode():
        changed = {name: e(value[:-1], dtype=value[-1], device="cuda") for name, value in changes.items()}
        with pytest.raises(error, match="^" + re.escape(f"sparse_mla_decode: {message}") + "$"):
            dsa_ext.sparse_mla_decode(**legal(format, "cuda", **changed))


@pytest.mark.parametrize("with_out", [False, True])
def test_no_kernel_for_the_call(with_out, monkeypatch):
    """The op's own reasons, as the exception that says so; any other error of an op stays what it is."""
    reasons = "sparse_mla_decode: no implementation takes this call on compute capability 8.x: none is built"
    call = legal(out=buffers() if with_out else None)

    def fails_with(error):
        def op(*arguments):
            raise error

        monkeypatch.setattr(decode, "_sparse_mla_decode_out" if with_out else "_sparse_mla_decode", op)

    fails_with(RuntimeError(reasons))
    with pytest.raises(NotImplementedError, match=re.escape(reasons)):
        dsa_ext.sparse_mla_decode(**call)
    other = torch.OutOfMemoryError("no memory left")
    fails_with(other)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        dsa_ext.sparse_mla_decode(**call)
    assert caught.value is other
