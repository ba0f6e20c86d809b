"""sparse_mla_fwd on the CPU and on the GPU: right results for every kind of input, layout and way of calling."""

import math
from dataclasses import replace

import pytest
import torch
from cases import SparseMlaFwdCase as Case
from cases import make_inputs
from oracle import same, same_bits, verify

import dsa_ext

TOPKS = (1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 2047, 2048, 4096)
HEADS = (1, 7, 8, 9, 16, 17, 24, 32, 33, 64, 65, 96, 128, 130)
# One of each group of heads that an implementation may treat its own way.
SOME_HEADS = (8, 32, 64, 128)

CASES = [
    *(Case(topk=k, s_kv=max(300, k + 50), h_q=h) for k in TOPKS for h in (16, 64)),
    *(Case(h_q=h, d_qk=d) for h in HEADS for d in (576, 512)),
    Case(topk=2048, s_kv=4000, h_q=128),
    Case(topk=400),  # more than there are rows
    Case(s_kv=1, topk=1),
    Case(s_kv=1, topk=70, indices="one_row"),
    Case(s_q=1),
    *(Case(values=v, topk=k, h_q=h) for v in ("small", "large", "low", "spikes") for k in (65, 300) for h in (16, 64)),
    *(
        Case(values=v, indices=i, topk=512, s_kv=600, h_q=h, d_qk=d)
        for v in ("ramp", "gentle_ramp")
        for i in ("ascending", "descending", "distinct")
        for h, d in ((16, 576), (64, 512), (128, 576))
    ),
    *(Case(indices=i, poison=True, h_q=h) for i in ("none", "some_none", "duplicates", "one_row") for h in SOME_HEADS),
    *(
        Case(indices=i, poison=True, h_q=h, topk=k, s_kv=700, values="ramp")
        for i in ("late", "gap", "last")
        for h in (16, 64)
        for k in (65, 300)
    ),
    *(Case(invalid=0.3, poison=True, h_q=h, d_qk=d, topk=200) for h in SOME_HEADS for d in (576, 512)),
    Case(invalid=0.99, poison=True, topk=300, s_kv=700),
    *(Case(topk_length="edge", poison=True, s_q=13, h_q=h, topk=k, s_kv=700) for h in (8, 64) for k in (1, 130, 256)),
    *(Case(attn_sink="random", h_q=h, topk=k) for h in SOME_HEADS for k in (1, 130)),
    *(Case(attn_sink="edge", indices=i, h_q=h) for i in ("distinct", "some_none") for h in (9, 16, 128)),
    Case(attn_sink="edge", values="large", h_q=64),
    Case(attn_sink="random", topk_length="random", invalid=0.2, poison=True, s_q=8, h_q=128, d_qk=512),
    *(Case(batch=3, h_q=h) for h in (16, 64)),
    Case(batch=2, attn_sink="random", topk_length="random", invalid=0.2, poison=True, s_q=5, h_q=32),
    Case(batch=2, s_q=1, s_kv=65, topk=64, h_q=128, d_qk=512),
    *(Case(batch=3, s_kv=1, topk=2, indices="one_row", h_q=h) for h in (16, 128)),  # a sequence is one row
]
# A few that together have everything, for the tests of how the function is called.
FEW = [
    Case(h_q=16, attn_sink="random", topk_length="random", invalid=0.2, poison=True, s_q=5),
    Case(h_q=64, d_qk=512, topk=65),
    Case(h_q=128, topk=300, attn_sink="edge", indices="some_none"),
]


def by_id(case):
    return case.id


def run(inputs, **options):
    return inputs.call(dsa_ext.sparse_mla_fwd, **options)


def nans(results):
    return tuple(torch.full_like(r, math.nan) for r in results)


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_matches_reference(case, device):
    inputs = make_inputs(case.on(device), device)
    results = run(inputs)
    shape = inputs.q.shape[:-1]
    assert [tuple(r.shape) for r in results] == [(*shape, case.d_v), shape, shape]
    assert [r.dtype for r in results] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(r.device == inputs.q.device for r in results)
    verify(results, inputs)


def test_cases_have_distinct_names():
    assert len({c.id for c in CASES}) == len(CASES)


# --- out=


@pytest.mark.parametrize("case", FEW, ids=by_id)
def test_out_is_written_everywhere(case, device):
    inputs = make_inputs(case.on(device), device)
    expected = run(inputs)
    buffers = nans(expected)
    results = run(inputs, out=buffers)
    assert all(r is b for r, b in zip(results, buffers, strict=True))
    assert same(results, expected)


def test_out_alone(device):
    inputs = make_inputs(FEW[0].on(device), device)
    expected = run(inputs)
    buffer = torch.full_like(expected[0], math.nan)
    results = run(inputs, out=buffer)
    assert results[0] is buffer
    assert same(results, expected)


# --- strides


def inside(tensor, lead, trail):
    """A view with the same content in a larger tensor, whose rows are `lead + trail` longer, and that tensor."""
    size = tensor.shape[-1]
    whole = torch.full((*tensor.shape[:-1], lead + size + trail), -7, dtype=tensor.dtype, device=tensor.device)
    whole[..., lead : lead + size] = tensor
    return whole[..., lead : lead + size], whole


@pytest.mark.parametrize("lead, trail", [(0, 64), (64, 0), (8, 8), (1, 0), (0, 1), (3, 4)])
@pytest.mark.parametrize("which", ["q", "kv", "idx", "out", "all"])
@pytest.mark.parametrize("batch", [None, 2])
def test_slices_of_larger_tensors(which, lead, trail, batch, device):
    """Rows that are 16-byte aligned, and rows that are not."""
    inputs = make_inputs(replace(FEW[0], batch=batch).on(device), device)
    expected = run(inputs)
    names = ["q", "kv", "idx"] if which == "all" else [] if which == "out" else [which]
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


def permuted(tensor):
    """The same content with the first two dimensions' strides swapped."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("batch", [None, 2])
def test_transposed(batch, device):
    inputs = make_inputs(replace(FEW[0], batch=batch, h_q=8).on(device), device)
    expected = run(inputs)
    strided = replace(inputs, q=permuted(inputs.q))
    if batch:
        length = permuted(inputs.topk_length)
        strided = replace(strided, kv=permuted(inputs.kv), idx=permuted(inputs.idx), topk_length=length)
    assert not strided.q.is_contiguous()
    buffers = tuple(permuted(b) for b in nans(expected))
    assert same(run(strided), expected)
    assert same(run(strided, out=buffers), expected)


def test_rows_apart(device):
    """Every second row of larger tensors, and 1-d inputs with a stride."""
    inputs = make_inputs(FEW[0].on(device), device)
    expected = run(inputs)
    strided = {
        name: getattr(inputs, name).repeat_interleave(2, 0)[::2]
        for name in ("q", "kv", "idx", "attn_sink", "topk_length")
    }
    assert all(t.shape[0] == 1 or not t.is_contiguous() for t in strided.values())
    assert same(run(replace(inputs, **strided)), expected)


def test_expanded(device):
    """Stride 0: one query for all positions, one set of indices for all queries, one sequence for the whole batch."""
    inputs = make_inputs(replace(FEW[0], batch=2, topk_length=None).on(device), device)
    n = inputs.q.shape[1]
    expanded = replace(
        inputs,
        q=inputs.q[:, :1].expand(-1, n, -1, -1),
        kv=inputs.kv[:1].expand(2, -1, -1),
        idx=inputs.idx[:, :1].expand(-1, n, -1),
        attn_sink=inputs.attn_sink[:1].expand(len(inputs.attn_sink)),
    )
    dense = replace(
        expanded,
        q=expanded.q.contiguous(),
        kv=expanded.kv.contiguous(),
        idx=expanded.idx.contiguous(),
        attn_sink=expanded.attn_sink.contiguous(),
    )
    results = run(expanded)
    assert same(results, run(dense))
    verify(results, dense)


def test_dimension_of_one_head(device):
    inputs = make_inputs(FEW[1].on(device), device)
    expected = run(inputs)
    assert same(run(replace(inputs, kv=inputs.kv[:, None])), expected)
    assert same(run(replace(inputs, idx=inputs.idx[:, None])), expected)
    both = replace(inputs, kv=inputs.kv[:, None], idx=inputs.idx[:, None])
    assert same(run(both, out=nans(expected)), expected)


# --- the same bits


@pytest.mark.parametrize("h_q", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("values", ["normal", "gentle_ramp"])
def test_same_every_time_and_in_any_company(h_q, values, device):
    case = Case(
        h_q=h_q, values=values, indices="ascending", invalid=0.1, topk=300, s_kv=700, s_q=6, topk_length="random"
    )
    inputs = make_inputs(case.on(device), device)
    expected = run(inputs)
    for _ in range(5):
        assert same_bits(run(inputs), expected)
    n = len(inputs.q)
    for some in (torch.arange(1, n, 2), torch.arange(n - 1, -1, -1), torch.tensor([n // 2])):
        assert same(run(inputs.queries(some.to(device))), [r[some.to(device)] for r in expected])


def test_batch_equals_its_sequences(device):
    case = Case(batch=3, h_q=64, topk_length="random", attn_sink="random", invalid=0.1, poison=True)
    inputs = make_inputs(case.on(device), device)
    results = run(inputs)
    for b in range(3):
        alone = replace(inputs, q=inputs.q[b], kv=inputs.kv[b], idx=inputs.idx[b], topk_length=inputs.topk_length[b])
        assert same(run(alone), [r[b] for r in results])


# --- empty inputs


@pytest.mark.parametrize("size", ["s_q", "h_q", "batch"])
def test_empty_in_empty_out(size, device):
    sizes = {"s_q": 2, "h_q": 4, "batch": 2} | {size: 0}
    q = torch.ones(sizes["batch"], sizes["s_q"], sizes["h_q"], 576, dtype=torch.bfloat16, device=device)
    kv = torch.ones(sizes["batch"], 5, 576, dtype=torch.bfloat16, device=device)
    idx = torch.zeros(sizes["batch"], sizes["s_q"], 3, dtype=torch.int32, device=device)
    results = dsa_ext.sparse_mla_fwd(q, kv, idx, 1.0)
    assert [tuple(r.shape) for r in results] == [(*q.shape[:-1], 512), q.shape[:-1], q.shape[:-1]]
    assert same(dsa_ext.sparse_mla_fwd(q, kv, idx, 1.0, out=nans(results)), results)
    if size != "batch":
        results = dsa_ext.sparse_mla_fwd(q[0], kv[0], idx[0], 1.0)
        assert [tuple(r.shape) for r in results] == [(*q.shape[1:-1], 512), q.shape[1:-1], q.shape[1:-1]]


@pytest.mark.parametrize("s_kv, topk", [(0, 3), (5, 0), (0, 0)])
def test_no_keys(s_kv, topk, device):
    q = torch.ones(3, 16, 576, dtype=torch.bfloat16, device=device)
    kv = torch.ones(s_kv, 576, dtype=torch.bfloat16, device=device)
    idx = torch.zeros(3, topk, dtype=torch.int32, device=device)
    for results in (
        dsa_ext.sparse_mla_fwd(q, kv, idx, 1.0),
        dsa_ext.sparse_mla_fwd(q, kv, idx, 1.0, out=nans(dsa_ext.sparse_mla_fwd(q, kv, idx, 1.0))),
    ):
        assert bool((results[0] == 0).all() and (results[1] == -math.inf).all() and (results[2] == math.inf).all())


# --- what only the CPU takes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d_qk, d_v", [(576, 512), (40, 24), (7, 7)])
def test_cpu_dtypes_and_sizes(dtype, d_qk, d_v):
    inputs = make_inputs(Case(d_qk=d_qk, d_v=d_v, attn_sink="random")).to(dtype)
    results = run(inputs)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    assert [r.dtype for r in results] == [dtype, statistics, statistics]
    assert results[0].shape == (3, 16, d_v)
    verify(results, inputs)
    assert same(run(inputs, out=nans(results)), results)


@pytest.mark.parametrize("scale", [1, 0.5, 2.0**-140, 3e38])
def test_any_positive_scale(scale):
    inputs = replace(make_inputs(Case(values="small")), scale=scale)
    max_logits = run(inputs)[1]
    want = inputs.to(torch.float64).call(dsa_ext.reference.sparse_mla_fwd)[1].float()
    torch.testing.assert_close(max_logits, want, rtol=1e-4, atol=0.0)


# --- torch.library, torch.compile


OPS = torch.ops.dsa_ext


@pytest.mark.parametrize("case", [*FEW, Case(batch=2, h_q=8)], ids=by_id)
def test_opcheck(case, device):
    x = make_inputs(case, device)
    args = (x.q, x.kv, x.idx, x.scale, x.d_v, x.attn_sink, x.topk_length)
    torch.library.opcheck(OPS.sparse_mla_fwd.default, args)
    torch.library.opcheck(OPS.sparse_mla_fwd_out.default, (*args, *nans(run(x))))


BACKENDS = [
    ("eager", "cpu"),
    ("aot_eager", "cpu"),
    pytest.param("inductor", "cuda", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, device, dynamic):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def f(q, kv, idx, sink, length):
        out, max_logits, lse = dsa_ext.sparse_mla_fwd(q * 2, kv, idx, 0.1, attn_sink=sink, topk_length=length)
        return out + 1, max_logits, lse

    for s_q in (3, 5):
        x = make_inputs(replace(FEW[0], s_q=s_q), device)
        out, max_logits, lse = run(replace(x, q=x.q * 2, scale=0.1))
        assert same(f(x.q, x.kv, x.idx, x.attn_sink, x.topk_length), (out + 1, max_logits, lse))


@pytest.mark.parametrize("backend, device", BACKENDS)
def test_compile_with_out(backend, device):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend)
    def f(q, kv, idx, out, max_logits, lse):
        dsa_ext.sparse_mla_fwd(q, kv, idx, 0.1, out=(out, max_logits, lse))
        return out * 2

    x = replace(make_inputs(FEW[1], device), scale=0.1)
    expected = run(x)
    buffers = nans(expected)
    doubled = f(x.q, x.kv, x.idx, *buffers)
    assert same(buffers, expected)
    assert torch.equal(doubled, expected[0] * 2)


def test_fake_cuda_tensors_need_no_gpu():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q = torch.empty(2, 10, 128, 576, dtype=torch.bfloat16, device="cuda")
        kv = torch.empty(2, 99, 576, dtype=torch.bfloat16, device="cuda")
        idx = torch.empty(2, 10, 64, dtype=torch.int32, device="cuda")
        out = torch.empty(2, 10, 128, 512, dtype=torch.bfloat16, device="cuda")
        for results in (dsa_ext.sparse_mla_fwd(q, kv, idx, 0.1), dsa_ext.sparse_mla_fwd(q, kv, idx, 0.1, out=out)):
            assert [tuple(r.shape) for r in results] == [(2, 10, 128, 512), (2, 10, 128), (2, 10, 128)]
            assert [r.dtype for r in results] == [torch.bfloat16, torch.float32, torch.float32]
            assert all(r.device.type == "cuda" for r in results)


def test_meta_tensors():
    x = make_inputs(FEW[1])
    results = dsa_ext.sparse_mla_fwd(x.q.to("meta"), x.kv.to("meta"), x.idx.to("meta"), 0.1)
    assert [tuple(r.shape) for r in results] == [(3, 64, 512), (3, 64), (3, 64)]
