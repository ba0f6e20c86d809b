"""The ways of calling sparse_mla_decode: buffers, strides, torch.library, torch.compile, fake tensors, plans."""

import math
from dataclasses import replace

import pytest
import torch
from decode_cases import FORMATS, make_inputs
from decode_cases import DecodeCase as Case
from decode_oracle import verify
from oracle import same
from test_sparse_mla_decode import FEW, by_id, make_plan, nans, run
from test_sparse_mla_fwd import BACKENDS, inside, permuted
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext

OPS = torch.ops.dsa_ext


# --- out=


@pytest.mark.parametrize("case", FEW, ids=by_id)
def test_out_is_written_everywhere(case, device):
    inputs = make_inputs(case, device)
    expected = run(inputs)
    buffers = nans(expected)
    results = run(inputs, out=buffers)
    assert all(r is b for r, b in zip(results, buffers, strict=True))
    assert same(results, expected)


def test_out_alone(device):
    inputs = make_inputs(FEW[0], device)
    expected = run(inputs)
    buffer = torch.full_like(expected[0], math.nan)
    results = run(inputs, out=buffer)
    assert results[0] is buffer
    assert same(results, expected)


def test_plan_into_a_buffer(device):
    inputs = make_inputs(FEW[0], device)
    plan = make_plan(inputs)
    buffer = torch.full_like(plan, -1)
    assert make_plan(inputs, out=buffer) is buffer
    assert torch.equal(buffer, plan)
    assert plan.dtype == torch.int32 and plan.dim() == 1 and plan.device == inputs.q.device
    assert (len(plan) == 0) == (device == "cpu")


# --- strides


@pytest.mark.parametrize("lead, trail", [(0, 64), (64, 0), (8, 8), (1, 0), (0, 1), (3, 4)])
@pytest.mark.parametrize("which", ["q", "idx", "out", "all"])
def test_slices_of_larger_tensors(which, lead, trail, device):
    """Rows that are 16-byte aligned, and rows that are not."""
    inputs = make_inputs(FEW[0], device)
    expected = run(inputs)
    names = ["q", "idx", "extra_idx"] if which == "all" else [] if which == "out" else [which]
    strided = replace(inputs, **{name: inside(getattr(inputs, name), lead, trail)[0] for name in names})
    if which not in ("out", "all"):
        assert same(run(strided), expected)
        return
    pairs = [inside(r, lead, trail) for r in nans(expected)]
    results = run(strided, out=tuple(view for view, _ in pairs))
    assert same(results, expected)
    for view, whole in pairs:  # and nothing around them
        view.fill_(-7)
        assert bool((whole == -7).all())


def test_transposed(device):
    inputs = make_inputs(replace(FEW[0], h_q=8), device)
    expected = run(inputs)
    names = ("q", "idx", "topk_length", "extra_idx", "extra_topk_length")
    strided = replace(inputs, **{name: permuted(getattr(inputs, name)) for name in names})
    assert not any(getattr(strided, name).is_contiguous() for name in names)
    buffers = tuple(permuted(b) for b in nans(expected))
    assert same(run(strided), expected)
    assert same(run(strided, out=buffers), expected)
    plan = make_plan(strided)
    assert torch.equal(plan, make_plan(inputs))
    assert same(run(strided, plan=plan), run(inputs, plan=plan))


def test_rows_apart(device):
    """Every second element of the first dimension of larger tensors."""
    inputs = make_inputs(FEW[0], device)
    expected = run(inputs)
    names = ("q", "kv_cache", "idx", "attn_sink", "topk_length", "extra_kv_cache", "extra_idx", "extra_topk_length")
    strided = {name: getattr(inputs, name).repeat_interleave(2, 0)[::2] for name in names}
    assert not any(t.is_contiguous() for t in strided.values())
    assert same(run(replace(inputs, **strided)), expected)
    one_dimensional = {name: getattr(inputs, name)[:, 0] for name in ("topk_length", "extra_topk_length")}
    dense = {name: t.contiguous() for name, t in one_dimensional.items()}
    assert same(run(replace(inputs, **one_dimensional)), run(replace(inputs, **dense)))


@pytest.mark.parametrize("format", FORMATS)
def test_pages_apart(format, device):
    """Pages with other bytes between them, as where the layers of a model share an allocation."""
    inputs = make_inputs(Case(format=format, h_q=64, page_size=53), device)
    cache = inputs.kv_cache
    gap = 576 if format == "v4" else 0
    whole = cache.new_full((len(cache), 3, cache.stride(0) + gap), 127 if format == "bf16" else 0xFF)
    apart = whole.as_strided(cache.shape, (whole.stride(0), *cache.stride()[1:]), whole.stride(1))
    apart.copy_(cache)
    assert same(run(replace(inputs, kv_cache=apart)), run(inputs))


def test_v4_pages_without_padding(device):
    """584 bytes a token and no more: with an odd page size, every other page begins 8 bytes off a multiple of 16."""
    inputs = make_inputs(Case(format="v4", h_q=64, page_size=53), device)
    assert inputs.kv_cache.stride(0) > 53 * 584
    dense = inputs.kv_cache.contiguous()
    assert dense.stride(0) == 53 * 584
    assert same(run(replace(inputs, kv_cache=dense)), run(inputs))


@pytest.mark.parametrize("format", ["v32", "bf16"])
def test_tokens_apart(format, device):
    inputs = make_inputs(Case(format=format, h_q=64), device)
    apart = inside(inputs.kv_cache, 16, 32)[0] if format == "bf16" else inputs.kv_cache.new_full((5, 64, 704), 0xFF)
    if format == "v32":
        apart = apart[..., 16:672]
        apart.copy_(inputs.kv_cache)
    assert same(run(replace(inputs, kv_cache=apart)), run(inputs))


def test_expanded(device):
    """Stride 0: one query for all requests, one set of indices, one length."""
    inputs = make_inputs(replace(FEW[0], poison=False), device)
    names = ("q", "idx", "topk_length", "extra_idx", "extra_topk_length", "attn_sink")
    expanded = {name: getattr(inputs, name)[:1].expand_as(getattr(inputs, name)) for name in names}
    dense = replace(inputs, **{name: t.contiguous() for name, t in expanded.items()})
    results = run(replace(inputs, **expanded))
    assert same(results, run(dense))
    verify(results, dense)


# --- torch.library, torch.compile


@pytest.mark.parametrize("case", FEW, ids=by_id)
def test_opcheck(case, device):
    x = make_inputs(case, device)
    plan = make_plan(x)
    args = (x.q, x.kv_cache, x.idx, x.scale, *x.optional.values())
    torch.library.opcheck(OPS.sparse_mla_decode.default, (*args, plan))
    torch.library.opcheck(OPS.sparse_mla_decode_out.default, (*args, None, *nans(run(x))))
    extra_topk = 0 if x.extra_idx is None else x.extra_idx.shape[2]
    sizes = (x.topk_length, *x.q.shape[:3], x.idx.shape[2], extra_topk, x.extra_topk_length, True)
    torch.library.opcheck(OPS.plan_sparse_mla_decode.default, (*sizes, x.q.device))
    buffer = torch.empty_like(make_plan(x, batch_invariant=True))
    torch.library.opcheck(OPS.plan_sparse_mla_decode_out.default, (*sizes, buffer))


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, device, dynamic):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def f(q, kv_cache, idx, sink, length):
        batch, s_q, h_q, _ = q.shape
        sizes = {"batch": batch, "s_q": s_q, "h_q": h_q, "topk": idx.shape[2]}
        plan = dsa_ext.plan_sparse_mla_decode(length, **sizes, device=q.device)
        options = {"topk_length": length, "attn_sink": sink, "plan": plan}
        out, lse = dsa_ext.sparse_mla_decode(q * 2, kv_cache, idx, 0.1, **options)
        return out + 1, lse

    for batch in (3, 5):
        x = make_inputs(replace(FEW[0], batch=batch, extra_topk=0), device)
        doubled = replace(x, q=x.q * 2, scale=0.1)
        out, lse = run(doubled, plan=make_plan(doubled))
        assert same(f(x.q, x.kv_cache, x.idx, x.attn_sink, x.topk_length), (out + 1, lse))


@pytest.mark.parametrize("backend, device", BACKENDS)
def test_compile_with_buffers(backend, device):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend)
    def f(q, kv_cache, idx, plan, out, lse):
        dsa_ext.plan_sparse_mla_decode(batch=3, s_q=1, h_q=64, topk=65, device=q.device, out=plan)
        dsa_ext.sparse_mla_decode(q, kv_cache, idx, 0.1, plan=plan, out=(out, lse))
        return out * 2

    x = replace(make_inputs(FEW[1], device), scale=0.1)
    plan = make_plan(x)
    expected = run(x, plan=plan)
    buffers = nans(expected)
    doubled = f(x.q, x.kv_cache, x.idx, plan.clone(), *buffers)
    assert same(buffers, expected)
    assert torch.equal(doubled, expected[0] * 2)


@pytest.mark.parametrize("format", FORMATS)
def test_fake_cuda_tensors_need_no_gpu(format):
    width, dtype = {"v32": (656, torch.uint8), "v4": (584, torch.uint8), "bf16": (576, torch.bfloat16)}[format]
    with FakeTensorMode():
        q = torch.empty(2, 3, 128, Case(format=format).d_qk, dtype=torch.bfloat16, device="cuda")
        cache = torch.empty(9, 64, width, dtype=dtype, device="cuda")
        idx = torch.empty(2, 3, 64, dtype=torch.int32, device="cuda")
        out = torch.empty(2, 3, 128, 512, dtype=torch.bfloat16, device="cuda")
        for options in ({}, {"out": out}, {"extra_kv_cache": cache, "extra_idx": idx}):
            results = dsa_ext.sparse_mla_decode(q, cache, idx, 0.1, **options)
            assert [tuple(r.shape) for r in results] == [(2, 3, 128, 512), (2, 3, 128)]
            assert [r.dtype for r in results] == [torch.bfloat16, torch.float32]
            assert all(r.device.type == "cuda" for r in results)


@pytest.mark.gpu
def test_fake_plans():
    """A plan's size is known without making one."""
    real = dsa_ext.plan_sparse_mla_decode(batch=7, s_q=2, h_q=64, topk=2048, device="cuda")
    with FakeTensorMode():
        plan = dsa_ext.plan_sparse_mla_decode(batch=7, s_q=2, h_q=64, topk=2048, device="cuda")
        assert plan.shape == real.shape and plan.device == real.device and plan.dtype == torch.int32


def test_meta_tensors():
    x = make_inputs(FEW[1])
    on_meta = [t.to("meta") for t in (x.q, x.kv_cache, x.idx)]
    plan = make_plan(replace(x, q=on_meta[0]))
    results = dsa_ext.sparse_mla_decode(*on_meta, 0.1, plan=plan)
    assert [tuple(r.shape) for r in results] == [(3, 1, 64, 512), (3, 1, 64)]
    assert plan.is_meta
