"""Every call that does not fit is refused before anything runs, in words that name the argument."""

import math
import re

import numpy as np
import pytest
import torch

import dsa_ext

BF16, F16, F32, F64, I32, I64 = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
)


def legal(batch=None, device="cpu", **changes):
    """A call that is accepted, with some of its arguments changed."""
    lead = () if batch is None else (batch,)
    arguments = {
        "q": torch.ones(*lead, 4, 2, 576, dtype=BF16, device=device),
        "kv": torch.ones(*lead, 9, 576, dtype=BF16, device=device),
        "idx": torch.zeros(*lead, 4, 3, dtype=I32, device=device),
        "scale": 0.1,
    }
    return arguments | changes


def refused(error, message, **arguments):
    for function, name in ((dsa_ext.sparse_mla_fwd, ""), (dsa_ext.reference.sparse_mla_fwd, "reference.")):
        with pytest.raises(error, match="^" + re.escape(f"{name}sparse_mla_fwd: {message}") + "$") as caught:
            function(**arguments)
        assert type(caught.value) is error


def test_the_legal_call_is_legal():
    for batch in (None, 2):
        dsa_ext.sparse_mla_fwd(**legal(batch))
        dsa_ext.reference.sparse_mla_fwd(**legal(batch))


e = torch.empty


@pytest.mark.parametrize("name", ["q", "kv", "idx", "attn_sink", "topk_length"])
def test_not_a_tensor(name):
    refused(TypeError, f"{name} is of type list, expected a tensor", **legal(**{name: [1.0]}))
    refused(TypeError, f"{name} is of type ndarray, expected a tensor", **legal(**{name: np.zeros(4)}))
    sparse = torch.zeros(4, 4).to_sparse()
    refused(TypeError, f"{name} has layout torch.sparse_coo, expected torch.strided", **legal(**{name: sparse}))


def test_missing_tensor():
    refused(TypeError, "kv is of type NoneType, expected a tensor", **legal(kv=None))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"q": e(4, 2, 576, dtype=I32)}, "q is int32, expected bfloat16 or float32 or float16 or float64"),
        (
            {"q": e(4, 2, 576).to(torch.float8_e4m3fn)},
            "q is float8_e4m3fn, expected bfloat16 or float32 or float16 or float64",
        ),
        ({"kv": e(9, 576, dtype=F32)}, "kv is float32, expected bfloat16 as q"),
        ({"q": e(4, 2, 576, dtype=F32)}, "kv is bfloat16, expected float32 as q"),
        ({"idx": e(4, 3, dtype=I64)}, "idx is int64, expected int32"),
        ({"attn_sink": e(2, dtype=BF16)}, "attn_sink is bfloat16, expected float32"),
        ({"attn_sink": e(2, dtype=F64)}, "attn_sink is float64, expected float32"),
        ({"topk_length": e(4, dtype=I64)}, "topk_length is int64, expected int32"),
    ],
)
def test_dtype(changes, message):
    refused(TypeError, message, **legal(**changes))


def test_sink_of_float64_inputs():
    call = legal(q=e(4, 2, 576, dtype=F64), kv=e(9, 576, dtype=F64))
    for dtype in (F32, F64):
        dsa_ext.sparse_mla_fwd(**call, attn_sink=torch.zeros(2, dtype=dtype))
    refused(TypeError, "attn_sink is float16, expected float32 or float64", **call, attn_sink=e(2, dtype=F16))


Q3, Q4 = "(s_q, h_q, d_qk)", "(b, s_q, h_q, d_qk)"
KV3, IDX3 = "(s_kv, d_qk) or (s_kv, 1, d_qk) with d_qk = 576", "(s_q, topk) or (s_q, 1, topk) with s_q = 4"
KV4, IDX4 = "(b, s_kv, d_qk) with b = 2, d_qk = 576", "(b, s_q, topk) with b = 2, s_q = 4"


@pytest.mark.parametrize(
    "batch, name, shape, expected",
    [
        (None, "q", (576,), f"{Q3} or {Q4}"),
        (None, "q", (4, 576), f"{Q3} or {Q4}"),
        (None, "q", (1, 1, 4, 2, 576), f"{Q3} or {Q4}"),
        (None, "kv", (), KV3),
        (None, "kv", (576,), KV3),
        (None, "kv", (9, 2, 576), KV3),
        (None, "kv", (1, 9, 1, 576), KV3),
        (None, "kv", (9, 512), KV3),
        (None, "idx", (), IDX3),
        (None, "idx", (4,), IDX3),
        (None, "idx", (5, 3), IDX3),
        (None, "idx", (4, 2, 3), IDX3),
        (None, "idx", (4, 1, 3, 1), IDX3),
        (2, "kv", (9, 576), KV4),
        (2, "kv", (3, 9, 576), KV4),
        (2, "kv", (2, 9, 1, 576), KV4),
        (2, "kv", (2, 9, 512), KV4),
        (2, "idx", (4, 3), IDX4),
        (2, "idx", (3, 4, 3), IDX4),
        (2, "idx", (2, 5, 3), IDX4),
        (2, "idx", (2, 4, 1, 3), IDX4),
        (None, "attn_sink", (3,), "(h_q,) with h_q = 2"),
        (None, "attn_sink", (), "(h_q,) with h_q = 2"),
        (2, "attn_sink", (2, 2), "(h_q,) with h_q = 2"),
        (None, "topk_length", (5,), "(s_q,) with s_q = 4"),
        (None, "topk_length", (), "(s_q,) with s_q = 4"),
        (None, "topk_length", (4, 1), "(s_q,) with s_q = 4"),
        (2, "topk_length", (4,), "(b, s_q) with b = 2, s_q = 4"),
        (2, "topk_length", (2, 5), "(b, s_q) with b = 2, s_q = 4"),
    ],
)
def test_shape(batch, name, shape, expected):
    dtype = {"q": BF16, "kv": BF16, "attn_sink": F32}.get(name, I32)
    message = f"{name} has shape {shape}, expected {expected}"
    refused(ValueError, message, **legal(batch, **{name: e(shape, dtype=dtype)}))


def test_the_message_of_the_contract():
    call = legal(q=e(4096, 1, 512, dtype=BF16), kv=e(9, 512, dtype=BF16), idx=e(4096, 1, 2048, 1, dtype=I32))
    message = "idx has shape (4096, 1, 2048, 1), expected (s_q, topk) or (s_q, 1, topk) with s_q = 4096"
    refused(ValueError, message, **call)


@pytest.mark.parametrize("name", ["q", "kv", "idx"])
def test_last_dimension_not_contiguous(name):
    call = legal()
    call[name] = call[name].repeat_interleave(2, -1)[..., ::2]
    message = f"{name} has strides {call[name].stride()}, expected a contiguous last dimension (stride 1)"
    refused(ValueError, message, **call)
    call[name] = call[name][..., :1].expand(legal()[name].shape)
    assert call[name].stride(-1) == 0
    message = f"{name} has strides {call[name].stride()}, expected a contiguous last dimension (stride 1)"
    refused(ValueError, message, **call)


def test_last_dimension_of_one_element_may_have_any_stride():
    call = legal(idx=torch.zeros(4, 5, dtype=I32)[:, ::5])
    assert call["idx"].stride() == (5, 5)
    dsa_ext.sparse_mla_fwd(**call)


@pytest.mark.parametrize("name", ["kv", "idx", "attn_sink", "topk_length"])
def test_mixed_devices(name):
    given = {"kv": e(9, 576, dtype=BF16), "idx": e(4, 3, dtype=I32), "attn_sink": e(2), "topk_length": e(4, dtype=I32)}
    refused(ValueError, f"{name} is on meta, expected cpu, where q is", **legal(**{name: given[name].to("meta")}))


@pytest.mark.parametrize(
    "scale, came",
    [(0.0, "0.0"), (-1.0, "-1.0"), (0, "0.0"), (math.inf, "inf"), (math.nan, "nan"), (1e-60, "1e-60"), (1e39, "1e+39")],
)
def test_scale_value(scale, came):
    refused(ValueError, f"scale is {came}, expected a finite float > 0 (in float32)", **legal(scale=scale))


def test_scale_beyond_any_float():
    refused(ValueError, "scale is inf, expected a finite float > 0 (in float32)", **legal(scale=10**400))


@pytest.mark.parametrize(
    "scale, kind", [("1", "str"), (None, "NoneType"), (1j, "complex"), (True, "bool"), (e(()), "Tensor")]
)
def test_scale_type(scale, kind):
    refused(TypeError, f"scale is of type {kind}, expected a float", **legal(scale=scale))


def test_scale_of_other_number_types():
    for scale in (2, 2.0, np.float32(2), np.float64(2), np.int64(2)):
        max_logits = dsa_ext.sparse_mla_fwd(**legal(scale=scale))[1]
        assert bool((max_logits == 2 * 576).all())


@pytest.mark.parametrize("d_v", [0, -1, 577])
def test_d_v_value(d_v):
    refused(ValueError, f"d_v is {d_v}, expected 1 <= d_v <= d_qk = 576", **legal(d_v=d_v))


def test_d_v_default_needs_512_columns():
    call = legal(q=e(4, 2, 128, dtype=BF16), kv=e(9, 128, dtype=BF16))
    refused(ValueError, "d_v is 512, expected 1 <= d_v <= d_qk = 128", **call)


@pytest.mark.parametrize("d_v, kind", [(512.0, "float"), (True, "bool"), (None, "NoneType")])
def test_d_v_type(d_v, kind):
    refused(TypeError, f"d_v is of type {kind}, expected an int", **legal(d_v=d_v))


def test_optional_arguments_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        dsa_ext.sparse_mla_fwd(*legal().values(), 512)


# --- out=


def buffers(batch=None):
    lead = (4, 2) if batch is None else (batch, 4, 2)
    return [e(*lead, 512, dtype=BF16), e(lead), e(lead)]


NAMES = ("out", "max_logits", "lse")


def test_out_container():
    refused(TypeError, "out is of type dict, expected a tensor or a tuple (out, max_logits, lse)", **legal(out={}))
    refused(ValueError, "out is a tuple of 2, expected (out, max_logits, lse)", **legal(out=tuple(buffers()[:2])))
    refused(TypeError, "lse is of type NoneType, expected a tensor", **legal(out=[*buffers()[:2], None]))


@pytest.mark.parametrize("i", range(3))
def test_out_dtype_device_shape(i):
    name, right = NAMES[i], "bfloat16" if i == 0 else "float32"
    for replacement, error, message in (
        (buffers()[i].to(F16), TypeError, f"{name} is float16, expected {right}"),
        (buffers()[i].to("meta"), ValueError, f"{name} is on meta, expected cpu, where q is"),
        (
            buffers()[i][:3],
            ValueError,
            f"{name} has shape {(3, *buffers()[i].shape[1:])}, expected {tuple(buffers()[i].shape)}",
        ),
        (
            buffers(1)[i],
            ValueError,
            f"{name} has shape {tuple(buffers(1)[i].shape)}, expected {tuple(buffers()[i].shape)}",
        ),
    ):
        out = buffers()
        out[i] = replacement
        refused(error, message, **legal(out=out))


def test_out_alone_is_checked():
    message = "out has shape (4, 2, 511), expected (4, 2, 512)"
    refused(ValueError, message, **legal(out=e(4, 2, 511, dtype=BF16)))


def test_out_of_the_dtype_of_float64_inputs():
    call = legal(q=e(4, 2, 576, dtype=F64), kv=e(9, 576, dtype=F64))
    out = [e(4, 2, 512, dtype=F64), e(4, 2, dtype=F64), e(4, 2)]
    refused(TypeError, "lse is float32, expected float64", **call, out=out)


def test_out_last_dimension():
    out = buffers()
    out[0] = e(4, 2, 1024, dtype=BF16)[..., ::2]
    message = "out has strides (2048, 1024, 2), expected a contiguous last dimension (stride 1)"
    refused(ValueError, message, **legal(out=out))


def test_out_whose_elements_share_memory():
    out = buffers()
    out[0] = e(1, 2, 512, dtype=BF16).expand(4, 2, 512)
    message = "out has strides (0, 512, 1), expected a place of its own for every element"
    refused(ValueError, message, **legal(out=out))
    out = buffers()
    out[2] = e(5).as_strided((4, 2), (1, 1))
    message = "lse has strides (1, 1), expected a place of its own for every element"
    refused(ValueError, message, **legal(out=out))


def test_out_that_is_an_input():
    call = legal()
    refused(ValueError, "out shares memory with q, expected a buffer of its own", **call, out=call["q"][..., 64:])
    call = legal(batch=2, q=e(2, 4, 2, 512, dtype=BF16), kv=e(2, 9, 512, dtype=BF16))
    out = call["kv"].flatten()[512 : 512 + 16 * 512].view(2, 4, 2, 512)
    refused(ValueError, "out shares memory with kv, expected a buffer of its own", **call, out=out)
    sink = torch.zeros(8)
    out = [buffers()[0], sink.view(4, 2), e(4, 2)]
    message = "max_logits shares memory with attn_sink, expected a buffer of its own"
    refused(ValueError, message, **legal(attn_sink=sink[3:5], out=out))


def test_outs_that_share_memory():
    out = buffers()
    out[2] = out[1]
    refused(ValueError, "lse shares memory with max_logits, expected a buffer of its own", **legal(out=out))


def test_interleaved_buffers_are_accepted():
    """Slices of one tensor that alternate in memory without sharing any of it."""
    whole = torch.zeros(4, 2, 576 + 512, dtype=BF16)
    call = legal(q=whole[..., :576])
    dsa_ext.sparse_mla_fwd(**call, out=whole[..., 576:])
    with pytest.raises(ValueError, match="out shares memory with q"):
        dsa_ext.sparse_mla_fwd(**call, out=whole[..., 575:-1])
    statistics = e(4, 2, 2)
    dsa_ext.sparse_mla_fwd(**legal(), out=(buffers()[0], statistics[..., 0], statistics[..., 1]))
