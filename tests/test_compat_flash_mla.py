"""dsa_ext.compat.flash_mla: FlashMLA's names, signatures and conventions, and engines' calls of them as shapes."""

import inspect
import re

import cases
import decode_cases
import oracle
import pytest
import torch
from decode_cases import DecodeCase

import dsa_ext
from dsa_ext.compat import flash_mla

I32, U8, E4M3 = torch.int32, torch.uint8, torch.float8_e4m3fn

SIGNATURES = {
    "flash_mla_sparse_fwd": "q kv indices sm_scale d_v=512 attn_sink=None topk_length=None indexer_topk=0",
    "flash_mla_with_kvcache": "q k_cache block_table cache_seqlens head_dim_v tile_scheduler_metadata num_splits=None "
    "softmax_scale=None causal=False is_fp8_kvcache=False indices=None attn_sink=None extra_k_cache=None "
    "extra_indices_in_kvcache=None topk_length=None extra_topk_length=None",
}


@pytest.mark.parametrize("name", list(SIGNATURES))
def test_signatures(name):
    parameters = inspect.signature(getattr(flash_mla, name)).parameters.values()
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    assert " ".join(shown) == SIGNATURES[name]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- prefill


@pytest.mark.parametrize("options", [{}, {"attn_sink": "random"}, {"topk_length": "random", "invalid": 0.2}])
@pytest.mark.parametrize("d_qk", [576, 512])
def test_sparse_fwd(d_qk, options, device):
    """One key head in kv and indices; against the float64 oracle, too."""
    x = cases.make_inputs(cases.SparseMlaFwdCase(s_q=5, h_q=16, topk=40, s_kv=90, d_qk=d_qk, **options), device)
    kv, indices = x.kv.view(90, 1, d_qk), x.idx.view(5, 1, 40)
    results = flash_mla.flash_mla_sparse_fwd(x.q, kv, indices, x.scale, 512, x.attn_sink, x.topk_length)
    oracle.verify(results, x)
    options = {"attn_sink": x.attn_sink, "topk_length": x.topk_length}
    again = flash_mla.flash_mla_sparse_fwd(q=x.q, kv=kv, indices=indices, sm_scale=x.scale, d_v=512, **options)
    assert same(results, again) and same(results, x.call(dsa_ext.sparse_mla_fwd))


def test_sparse_fwd_without_a_valid_index(device):
    q, kv = torch.randn(2, 8, 576).bfloat16().to(device), torch.randn(30, 1, 576).bfloat16().to(device)
    indices = torch.tensor([[[-1, 30]], [[3, -1]]], dtype=I32, device=device)
    out, max_logits, lse = flash_mla.flash_mla_sparse_fwd(q, kv, indices, 0.1)
    assert bool((out[0] == 0).all() and (max_logits[0] == -torch.inf).all() and (lse[0] == torch.inf).all())
    assert torch.allclose(lse[1], max_logits[1])  # of one key: natural logarithm of exp(its logit)
    assert torch.allclose(max_logits[1].cpu(), (q[1].cpu().float() @ kv[3, 0].cpu().float()) * 0.1, atol=1e-3)


def test_no_second_lse():
    with pytest.raises(NotImplementedError, match="^flash_mla_sparse_fwd: indexer_topk is 512, expected 0"):
        flash_mla.flash_mla_sparse_fwd(None, None, None, 1.0, indexer_topk=512)


# --- decoding


def decode_inputs(device="cpu", format="v32", **options):
    case = DecodeCase(batch=3, h_q=16, topk=70, format=format, length_a="request", slots=150, **options)
    return decode_cases.make_inputs(case, device)


def call(x, metadata=None, cache_dtype=U8, **changes):
    """As SGLang's and vLLM's sparse backends call it: block_table and cache_seqlens are not needed."""
    quantised = x.kv_cache.dtype == U8

    def four(cache):
        return None if cache is None else (cache.view(cache_dtype) if quantised else cache).unsqueeze(2)

    arguments = {
        "q": x.q,
        "k_cache": four(x.kv_cache),
        "block_table": None,
        "cache_seqlens": None,
        "head_dim_v": 512,
        "tile_scheduler_metadata": metadata or flash_mla.get_mla_metadata()[0],
        "num_splits": None,
        "softmax_scale": x.scale,
        "is_fp8_kvcache": quantised,
        "indices": x.idx,
        "attn_sink": x.attn_sink,
        "extra_k_cache": four(x.extra_kv_cache),
        "extra_indices_in_kvcache": x.extra_idx,
        "topk_length": x.topk_length,
        "extra_topk_length": x.extra_topk_length,
    }
    return flash_mla.flash_mla_with_kvcache(**arguments | changes)


OPTIONS = [
    {},
    {"s_q": 2, "topk_length": "random", "attn_sink": "random"},
    {"extra_topk": 40, "topk_length": "random", "extra_topk_length": "random", "invalid": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("format", ["v32", "v4", "bf16"])
def test_with_kvcache(format, options, device):
    x = decode_inputs(device, format, **options)
    out, lse = call(x)
    plan = x.plan(dsa_ext.plan_sparse_mla_decode)
    want, want_lse = x.call(dsa_ext.sparse_mla_decode, plan=plan)
    b, s_q = x.q.shape[:2]
    assert out.shape == (b, s_q, 16, 512) and lse.shape == (b, 16, s_q)
    assert torch.equal(out, want) and torch.equal(lse.transpose(1, 2), want_lse)


@pytest.mark.parametrize("dtype", [E4M3, torch.int8])
@pytest.mark.parametrize("format", ["v32", "v4"])
def test_dtypes_of_one_byte(format, dtype, device):
    x = decode_inputs(device, format)
    assert same(call(x, cache_dtype=dtype), call(x))


def test_positional_arguments_and_the_default_scale(device):
    """The order of arguments that FlashMLA's own examples rely on."""
    x = decode_inputs(device)
    metadata, splits = flash_mla.get_mla_metadata(x.topk_length, 16, 1, 16, is_fp8_kvcache=True, topk=70)
    assert splits is None
    cache = x.kv_cache.unsqueeze(2).view(E4M3)
    results = flash_mla.flash_mla_with_kvcache(x.q, cache, None, None, 512, metadata, splits, None, False, True, x.idx)
    assert same(results, call(x, softmax_scale=576**-0.5))


def test_metadata_serves_all_layers_of_a_step(device):
    metadata, _ = flash_mla.get_mla_metadata()
    x = decode_inputs(device, topk_length="random")
    first = call(x, metadata)
    plan = metadata.plan
    assert same(call(x, metadata), first) and metadata.plan is plan
    for changes, name in (
        ({"s_q": 2}, "s_q = 1, and this call has 2"),
        ({"extra_topk": 30}, "extra_topk = 0, and this call has 30"),
    ):
        message = f"flash_mla_with_kvcache: tile_scheduler_metadata was first used with {name}: expected the same sizes"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call(decode_inputs(device, **changes), metadata)


# --- calls that are refused


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"indices": None}, NotImplementedError, "indices is None, expected a tensor: dense attention is not here"),
        ({"causal": True}, ValueError, "causal is True, expected False"),
        ({"head_dim_v": 256}, ValueError, "head_dim_v is 256, expected 512"),
        ({"num_splits": 4}, ValueError, "num_splits is 4, expected None"),
        ({"tile_scheduler_metadata": None}, TypeError, "tile_scheduler_metadata is of type NoneType, expected"),
        (
            {"k_cache": torch.zeros(3, 64, 656, dtype=U8)},
            ValueError,
            "k_cache has shape (3, 64, 656), expected (pages, page_size, 1, bytes)",
        ),
        (
            {"k_cache": torch.zeros(3, 64, 2, 656, dtype=U8)},
            ValueError,
            "k_cache has shape (3, 64, 2, 656), expected (pages, page_size, 1, bytes)",
        ),
        ({"is_fp8_kvcache": False}, ValueError, "is_fp8_kvcache is False, and k_cache is uint8"),
        (
            {"k_cache": torch.zeros(3, 64, 1, 576).bfloat16()},
            ValueError,
            "is_fp8_kvcache is True, and k_cache is bfloat16",
        ),
    ],
)
def test_refused(changes, error, message):
    with pytest.raises(error, match=f"^flash_mla_with_kvcache: {re.escape(message)}"):
        call(decode_inputs(), **changes)


def test_other_errors_are_those_of_the_function_below():
    x = decode_inputs()
    with pytest.raises(TypeError, match="^sparse_mla_decode: idx is int64, expected int32"):
        call(x, indices=x.idx.long())
    with pytest.raises(ValueError, match="^sparse_mla_decode: q has shape"):
        call(x, q=x.q[:, 0])
