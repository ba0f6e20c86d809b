"""indexer_topk and paged_indexer_topk against the definition, whatever the memory they may use."""

import math

import pytest
import torch
from indexer_topk_cases import (
    ALL,
    PagedCase,
    RaggedCase,
    best_paged,
    best_ragged,
    call_paged,
    call_ragged,
    garbage,
    make_paged,
    make_ragged,
)
from logits_cases import make_inputs, make_paged_inputs

import dsa_ext
from dsa_ext import _registration_indexer as ops

RAGGED = [
    *(RaggedCase(heads=h, d=d, s_q=29, poison=True) for h, d in ((8, 32), (64, 128), (16, 64))),
    RaggedCase(heads=32, s_q=9, s_k=257, ranges="causal"),
    RaggedCase(heads=16, d=64, s_q=40, s_k=500, ranges="rows", poison=True),
    RaggedCase(heads=8, d=32, s_q=4, s_k=1, ranges="all"),
    RaggedCase(heads=8, d=32, s_q=6, s_k=900, ranges="none", poison=True),
    RaggedCase(heads=8, d=64, s_q=11, layout="strided", poison=True),
]
PAGED = [
    PagedCase(),
    PagedCase(heads=32, next_n=2, batch=5),
    PagedCase(heads=8, d=32, next_n=3, batch=7, lens="per_token", max_context_len=500, page_size=32),
    PagedCase(heads=8, d=32, lens="edge", batch=15),
    PagedCase(heads=16, d=64, next_n=4, lens="edge", batch=15),
    PagedCase(heads=16, d=64, next_n=3, layout="strided", gap=16),
    PagedCase(heads=8, layout="strided", next_n=2, gap=16, lens="per_token"),
]
ROWS = [0, 1, 3, 7, None]  # in a chunk; 0: the limit is less than one takes


def limit(items: int | None, columns: int, rows: int = 1) -> int:
    """Bytes for so many items of `rows` rows, and almost one more."""
    if items is None:
        return ALL
    each = rows * math.ceil(columns / 32) * 32 * 4
    return items * each + each - 1 if items else 1


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("topk", [1, 50, 700])
@pytest.mark.parametrize("case", RAGGED, ids=lambda case: case.id)
def test_ragged(case, topk, rows, device):
    x = make_ragged(case)
    want, on_device = best_ragged(x, topk), x.on(device)
    out = garbage(case.s_q, topk, device=device)
    options = {"workspace_limit": limit(rows, case.s_k)}
    assert call_ragged(dsa_ext.indexer_topk, on_device, topk, **options, out=out) is out
    assert torch.equal(out.cpu(), want)
    assert torch.equal(call_ragged(dsa_ext.indexer_topk, on_device, topk, **options).cpu(), want)
    assert torch.equal(call_ragged(dsa_ext.reference.indexer_topk, on_device, topk, **options).cpu(), want)


@pytest.mark.parametrize("requests", ROWS)
@pytest.mark.parametrize("topk", [1, 50, 700])
@pytest.mark.parametrize("case", PAGED, ids=lambda case: case.id)
def test_paged(case, topk, requests, device):
    x = make_paged(case)
    want, on_device = best_paged(x, topk), x.on(device)
    options = {"workspace_limit": limit(requests, case.max_context_len, case.next_n)}
    for plan in (None, on_device.plan(dsa_ext.plan_paged_indexer_logits)):
        out = garbage(case.batch, case.next_n, topk, device=device)
        assert call_paged(dsa_ext.paged_indexer_topk, on_device, topk, **options, plan=plan, out=out) is out
        assert torch.equal(out.cpu(), want)
    assert torch.equal(call_paged(dsa_ext.paged_indexer_topk, on_device, topk, **options).cpu(), want)
    assert torch.equal(call_paged(dsa_ext.reference.paged_indexer_topk, on_device, topk, **options).cpu(), want)


@pytest.mark.parametrize("rows", ROWS)
def test_bits_of_logits_and_topk(rows, device):
    """With logits that are rounded."""
    if device == "cpu":
        pytest.skip("sums of the CPU's library differ with the shape")
    x = make_inputs(RaggedCase(s_q=20, s_k=600, heads=64)).on(device)
    logits = x.call(dsa_ext.indexer_logits)
    options = {"workspace_limit": limit(rows, 600)}
    assert torch.equal(
        call_ragged(dsa_ext.indexer_topk, x, 100, **options).cpu(), dsa_ext.topk_indices(logits, 100).cpu()
    )
    x = make_paged_inputs(PagedCase(batch=9, next_n=2, max_context_len=600)).on(device)
    logits = x.call(dsa_ext.paged_indexer_logits).flatten(0, 1)
    want = dsa_ext.topk_indices(logits, 100, block_table=x.block_table, page_size=64).cpu()
    options = {"workspace_limit": limit(rows, 600, 2)}
    assert torch.equal(call_paged(dsa_ext.paged_indexer_topk, x, 100, **options).cpu().flatten(0, 1), want)


# --- chunks


def recorded(monkeypatch, name):
    """The arguments of every call of an op."""
    calls, op = [], getattr(ops, name)

    def record(*arguments):
        calls.append(arguments)
        op(*arguments)

    monkeypatch.setattr(ops, name, record)
    return calls


@pytest.mark.parametrize("rows, chunks", [(0, [1] * 10), (1, [1] * 10), (4, [4, 4, 2]), (9, [5, 5]), (10, [10])])
def test_chunks_of_rows(rows, chunks, monkeypatch):
    """As few as the limit allows, and even; all in one buffer."""
    calls = recorded(monkeypatch, "_logits")
    x = make_ragged(RaggedCase(s_q=10, s_k=70, heads=8, d=32))
    call_ragged(dsa_ext.indexer_topk, x, 5, workspace_limit=limit(rows, 70))
    logits = [arguments[-1] for arguments in calls]
    assert [len(t) for t in logits] == chunks and len({t.data_ptr() for t in logits}) == 1
    assert rows == 0 or logits[0].untyped_storage().nbytes() <= limit(rows, 70)


@pytest.mark.parametrize("requests, chunks", [(0, [1] * 7), (1, [1] * 7), (3, [3, 3, 1]), (6, [4, 3]), (7, [7])])
def test_chunks_of_requests(requests, chunks, monkeypatch):
    """With the plan where it is the whole batch's."""
    calls = recorded(monkeypatch, "_paged_logits")
    x = make_paged(PagedCase(batch=7, next_n=3, heads=8, d=32))
    plan = x.plan(dsa_ext.plan_paged_indexer_logits)
    call_paged(dsa_ext.paged_indexer_topk, x, 5, workspace_limit=limit(requests, 300, 3), plan=plan)
    logits = [arguments[-1] for arguments in calls]
    assert [len(t) for t in logits] == chunks and len({t.data_ptr() for t in logits}) == 1
    assert requests == 0 or logits[0].untyped_storage().nbytes() <= limit(requests, 300, 3)
    assert [arguments[-2] is not None for arguments in calls] == [len(chunks) == 1] * len(chunks)


@pytest.mark.parametrize("next_n", [1, 4])
def test_only_ranges_are_read_back(next_n, monkeypatch):
    """Logits of what a query does not see cannot be chosen, whatever they are."""

    def fill_with_garbage(name):
        op = getattr(ops, name)

        def with_garbage(*arguments):
            op(*arguments)
            arguments[-1][arguments[-1] == -math.inf] = math.inf

        monkeypatch.setattr(ops, name, with_garbage)

    x = make_ragged(RaggedCase(s_q=29, heads=8, d=32))
    fill_with_garbage("_logits")
    assert torch.equal(call_ragged(dsa_ext.indexer_topk, x, 50, workspace_limit=limit(4, 300)), best_ragged(x, 50))
    fill_with_garbage("_paged_logits")
    for lens in ("edge", "per_token"):
        x = make_paged(PagedCase(batch=15, next_n=next_n, lens=lens, table="shuffled", heads=8, d=32))
        got = call_paged(dsa_ext.paged_indexer_topk, x, 50, workspace_limit=limit(4, 300, next_n))
        assert torch.equal(got, best_paged(x, 50))


# --- outputs and sizes


def test_strided_outputs(device):
    x = make_ragged(RaggedCase(s_q=9, heads=8, d=32))
    whole = garbage(9, 25, device=device)
    call_ragged(dsa_ext.indexer_topk, x.on(device), 20, workspace_limit=limit(2, 300), out=whole[:, 2:22])
    assert torch.equal(whole[:, 2:22].cpu(), best_ragged(x, 20))
    assert torch.equal(whole[:, :2].cpu(), garbage(9, 2)) and torch.equal(whole[:, 22:].cpu(), garbage(9, 3))
    x = make_paged(PagedCase(batch=4, next_n=3, heads=8, d=32))
    for whole in (garbage(4, 3, 25, device=device), garbage(3, 4, 25, device=device).transpose(0, 1)):
        out = whole[..., 2:22]
        assert call_paged(dsa_ext.paged_indexer_topk, x.on(device), 20, out=out) is out
        assert torch.equal(out.cpu(), best_paged(x, 20))
        assert torch.equal(whole[..., 22:].cpu(), garbage(4, 3, 3))


def test_max_context_len(device):
    """None, and more than the table has room for, are all of it; a smaller one bounds every context."""
    x = make_paged(PagedCase(next_n=2, lens="full", heads=8, d=32, max_context_len=320, table="shuffled"))
    want, on_device = best_paged(x, 400), x.on(device)
    assert int((want >= 0).sum()) == 3 * (319 + 320)
    for most in (None, 320, 2**31 - 4097):
        got = call_paged(dsa_ext.paged_indexer_topk, on_device, 400, max_context_len=most)
        assert torch.equal(got.cpu(), want)
    got = call_paged(dsa_ext.paged_indexer_topk, on_device, 400, max_context_len=100)
    assert int((got >= 0).sum()) == 3 * 2 * 100 and torch.equal(got[..., :100].cpu(), want[..., :100])


def test_flat_weights(device):
    x = make_paged(PagedCase(next_n=3, heads=8, d=32))
    on_device = x.on(device)
    flat = (on_device.q, on_device.k_cache, on_device.weights.flatten(0, 1), on_device.context_lens)
    got = dsa_ext.paged_indexer_topk(*flat, on_device.block_table, 9, workspace_limit=limit(2, 320, 3))
    assert torch.equal(got.cpu(), best_paged(x, 9))


@pytest.mark.parametrize("where", [dsa_ext, dsa_ext.reference], ids=["op", "reference"])
def test_empty(where, device):
    for s_q, s_k in ((0, 5), (5, 0), (0, 0)):
        x = make_ragged(RaggedCase(s_q=s_q, s_k=s_k, heads=8, d=32, ranges="none")).on(device)
        out = call_ragged(where.indexer_topk, x, 3, out=garbage(s_q, 3, device=device))
        assert out.shape == (s_q, 3) and bool((out == -1).all())
    x = make_paged(PagedCase(next_n=2, heads=8, d=32, lens="full")).on(device)
    for changes in (
        {"q": x.q[:0], "weights": x.weights[:0], "context_lens": x.context_lens[:0], "block_table": x.block_table[:0]},
        {"q": x.q[:, :0], "weights": x.weights[:, :0]},
        {"k_cache": x.k_cache[:0]},
        {"k_cache": x.k_cache[:, :0]},
        {"block_table": x.block_table[:, :0]},
        {"max_context_len": 0},
    ):
        tensors = {n: getattr(x, n) for n in ("q", "k_cache", "weights", "context_lens", "block_table")}
        arguments = tensors | {"max_context_len": None} | changes
        shape = (*arguments["q"].shape[:2], 3)
        out = where.paged_indexer_topk(**arguments, topk=3, out=garbage(*shape, device=device))
        assert out.shape == shape and bool((out == -1).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cpu_dtypes(dtype):
    x = make_ragged(RaggedCase(heads=5, d=40, s_q=9))
    x.k_scale.fill_(1)
    got = dsa_ext.indexer_topk(x.q.to(dtype), x.k.to(dtype), None, x.weights, x.k_start, x.k_end, 30)
    assert torch.equal(got, best_ragged(x, 30))
    x = make_paged(PagedCase(page_size=53, heads=5, d=20))
    arguments = (x.q.to(dtype), x.k_cache, x.weights, x.context_lens, x.block_table)
    assert torch.equal(dsa_ext.paged_indexer_topk(*arguments, 30, max_context_len=300), best_paged(x, 30))


# --- the model's sizes


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [32, 64])
@pytest.mark.parametrize("rows", [100, 1000, None])
def test_large_ragged(heads, rows, free_memory):
    s_q, s_k = 2048, 16_383
    x = make_inputs(RaggedCase(s_q=s_q, s_k=s_k, heads=heads, ranges="causal")).on("cuda")
    got = call_ragged(dsa_ext.indexer_topk, x, 2048, workspace_limit=limit(rows, s_k))
    assert torch.equal(got, dsa_ext.topk_indices(x.call(dsa_ext.indexer_logits), 2048))


@pytest.mark.gpu
@pytest.mark.parametrize("requests", [1, 20, None])
def test_large_paged(requests, free_memory):
    x = make_paged_inputs(PagedCase(batch=64, next_n=2, max_context_len=20_000, poison=False)).on("cuda")
    plan = x.plan(dsa_ext.plan_paged_indexer_logits)
    options = {"workspace_limit": limit(requests, 20_000, 2), "plan": plan}
    got = call_paged(dsa_ext.paged_indexer_topk, x, 2048, **options)
    logits = x.call(dsa_ext.paged_indexer_logits).flatten(0, 1)
    want = dsa_ext.topk_indices(logits, 2048, block_table=x.block_table, page_size=64)
    assert torch.equal(got.flatten(0, 1), want)


@pytest.mark.gpu
def test_more_than_2_31_logits_in_bounded_memory(free_memory):
    s_q, s_k, topk, bytes_allowed = 40_000, 131_072, 64, 2**28
    x = make_inputs(RaggedCase(s_q=s_q, s_k=s_k, heads=8, d=32, ranges="causal")).on("cuda")
    out = garbage(s_q, topk, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call_ragged(dsa_ext.indexer_topk, x, topk, workspace_limit=bytes_allowed, out=out)
    assert torch.cuda.max_memory_allocated() - before <= bytes_allowed + 2**22
    for rows in (slice(0, 20), slice(16_370, 16_400), slice(s_q - 20, s_q)):
        part = type(x)(x.q[rows], x.k, x.k_scale, x.weights[rows], x.k_start[rows], x.k_end[rows])
        assert torch.equal(out[rows], dsa_ext.topk_indices(part.call(dsa_ext.indexer_logits), topk))


@pytest.mark.gpu
def test_paged_in_bounded_memory(free_memory):
    x = make_paged_inputs(PagedCase(batch=64, next_n=2, max_context_len=30_000, heads=8, d=32)).on("cuda")
    torch.cuda.reset_peak_memory_stats()
    before, bytes_allowed = torch.cuda.memory_allocated(), 2**22
    call_paged(dsa_ext.paged_indexer_topk, x, 64, workspace_limit=bytes_allowed)
    assert torch.cuda.max_memory_allocated() - before <= bytes_allowed + 2**21


@pytest.mark.gpu
@pytest.mark.parametrize("chunked", [False, True])
def test_graph_without_synchronisation(chunked):
    """Replayed for other ranges, lengths and pages."""
    x = make_ragged(RaggedCase(s_q=40, s_k=900)).on("cuda")
    p = make_paged(PagedCase(batch=6, next_n=2, max_context_len=900, table="shuffled", poison=False)).on("cuda")
    outs = garbage(40, 100, device="cuda"), garbage(6, 2, 100, device="cuda")
    limits = (limit(7, 900), limit(2, 900, 2)) if chunked else (ALL, ALL)

    def step():
        call_ragged(dsa_ext.indexer_topk, x, 100, workspace_limit=limits[0], out=outs[0])
        plan = p.plan(dsa_ext.plan_paged_indexer_logits)
        call_paged(dsa_ext.paged_indexer_topk, p, 100, workspace_limit=limits[1], plan=plan, out=outs[1])

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    other = make_ragged(RaggedCase(s_q=40, s_k=900, ranges="causal"))
    for name, t in vars(other).items():
        getattr(x, name).copy_(t)
    p.context_lens.copy_(torch.tensor([900, 1, 0, 128, 129, 700]))
    p.block_table.copy_(p.block_table.flip(0).clone())
    for out in outs:
        out.fill_(-77)
    graph.replay()
    assert torch.equal(outs[0].cpu(), best_ragged(other, 100))
    assert torch.equal(outs[1].cpu(), best_paged(p, 100).cpu())
