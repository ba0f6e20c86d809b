"""paged_indexer_logits and its plan against the definition in float64, on the CPU and on the GPU."""

import math

import pytest
import torch
from logits_cases import INT_MAX, INT_MIN, PagedCase, expected_paged, make_paged_inputs, verify

import dsa_ext

SIZES = [(h, d) for h in (8, 16, 32, 64) for d in (32, 64, 128)]
CASES = [
    *(PagedCase(heads=h, d=d, next_n=2, batch=2) for h, d in SIZES),
    *(PagedCase(heads=h, next_n=n) for h, n in ((64, 1), (32, 1), (32, 2), (64, 3), (64, 4), (8, 1), (16, 20))),
    *(PagedCase(page_size=size, max_context_len=500) for size in (32, 64, 8, 16, 24, 40, 96, 128, 256)),
    *(PagedCase(lens="edge", batch=15, page_size=size) for size in (32, 64)),
    *(PagedCase(lens="per_token", next_n=n, heads=h) for n, h in ((1, 64), (3, 32), (5, 64))),
    PagedCase(batch=1, lens="full", max_context_len=6000, table="shuffled", poison=False),
    # A CTA finds its part by one warp, a lane looking at 2 or 4 requests; by all warps; by the plan.
    PagedCase(batch=40, max_context_len=700, heads=16, d=32),
    PagedCase(batch=128, max_context_len=300, heads=8, d=32),
    PagedCase(batch=129, max_context_len=300, heads=8, d=32),
    PagedCase(batch=530, max_context_len=200, heads=8, d=32),
    # more tokens than one unit at a time, and than share a key
    PagedCase(heads=64, next_n=9, batch=2),
    PagedCase(heads=64, next_n=31, batch=1, d=32),
    PagedCase(gap=64, next_n=2),
    *(
        PagedCase(layout="strided", next_n=3, heads=h, gap=16, lens=lens)
        for h, lens in ((64, "random"), (16, "per_token"))
    ),
    PagedCase(out_dtype=torch.bfloat16, next_n=2, layout="strided"),
    PagedCase(out_dtype=torch.bfloat16, max_context_len=257),
]


def poisoned_out(case: PagedCase, device: str) -> torch.Tensor:
    shape = (case.batch, case.next_n, case.max_context_len)
    if case.layout == "dense":
        return torch.full(shape, math.nan, dtype=case.out_dtype, device=device)
    whole = torch.full((*shape[:-1], shape[-1] + 5), math.nan, dtype=case.out_dtype, device=device)
    return whole[..., 3:-2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_definition(case, device):
    """Without a plan and with one: the same bits."""
    x = make_paged_inputs(case)
    on_device = x.on(device)
    want, mass = expected_paged(x)
    outs = []
    for plan in (None, on_device.plan(dsa_ext.plan_paged_indexer_logits)):
        out = poisoned_out(case, device)
        assert on_device.call(dsa_ext.paged_indexer_logits, plan=plan, out=out) is out
        verify(out.cpu(), want, mass)
        outs.append(out)
    assert torch.equal(*(out.nan_to_num() for out in outs))
    if case.layout == "strided":
        assert bool(outs[0]._base[..., :3].isnan().all()) and bool(outs[0]._base[..., -2:].isnan().all())


def test_allocates(device):
    x = make_paged_inputs(PagedCase())
    out = x.on(device).call(dsa_ext.paged_indexer_logits)
    assert out.dtype == torch.float32 and out.device == x.on(device).q.device and out.is_contiguous()
    verify(out.cpu(), *expected_paged(x))


def test_flat_weights(device):
    x = make_paged_inputs(PagedCase(next_n=3)).on(device)
    flat = (x.q, x.k_cache, x.weights.flatten(0, 1), x.context_lens, x.block_table)
    assert torch.equal(dsa_ext.paged_indexer_logits(*flat, max_context_len=300), x.call(dsa_ext.paged_indexer_logits))


def test_entries_past_the_length_are_not_read(device):
    """The table of a request ends where its context does: a view whose last row ends with the memory."""
    x = make_paged_inputs(PagedCase(batch=1, lens="full", max_context_len=300, table="shuffled")).on(device)
    table = x.block_table.clone()  # 5 pages, in an allocation of its own
    wide = table.as_strided((1, 5), (5, 1))
    arguments = (x.q, x.k_cache, x.weights, torch.full_like(x.context_lens, 257))
    out = dsa_ext.paged_indexer_logits(*arguments, wide, max_context_len=100_000)
    assert torch.equal(out[..., :257], x.call(dsa_ext.paged_indexer_logits)[..., :257])
    assert bool((out[..., 257:] == -torch.inf).all())


REPEATS = 100  # a kernel follows the plans of large batches only


@pytest.mark.parametrize("lens", [(INT_MAX,) * 4, (INT_MIN, 0, 1, 2), (5000, 0, 0, 0), (1, 1, 1, 4000)])
@pytest.mark.parametrize("per_token", [False, True])
def test_stale_plans(lens, per_token, device):
    """A plan for any other lengths gives the same bits; one for another batch is ignored."""
    case = PagedCase(batch=4 * REPEATS, next_n=2, max_context_len=300, heads=8, d=32)
    x = make_paged_inputs(case).on(device)
    want = x.call(dsa_ext.paged_indexer_logits)
    stale = torch.tensor(lens, dtype=torch.int32, device=device).repeat(REPEATS)
    if per_token:
        stale = torch.stack([stale, stale.flip(0)], 1)
    for other in (stale, stale.flip(0), stale[:-1]):
        plan = dsa_ext.plan_paged_indexer_logits(other, page_size=64, next_n=2)
        out = torch.full_like(want, math.nan)
        x.call(dsa_ext.paged_indexer_logits, plan=plan, out=out)
        assert torch.equal(out, want)


@pytest.mark.parametrize("heads, next_n", [(8, 1), (64, 2), (64, 3)])
def test_matches_definition_in_one_cta(heads, next_n, device):
    """A plan that gives everything to one CTA: its buffers come round many times."""
    if device == "cpu":
        pytest.skip("the CPU has no plans")
    case = PagedCase(batch=390, next_n=next_n, max_context_len=200, heads=heads, d=32, table="shuffled")
    x = make_paged_inputs(case)
    on_device = x.on(device)
    plan = on_device.plan(dsa_ext.plan_paged_indexer_logits)
    plan[2::2], plan[3::2] = 390, 0
    plan[2:10:2] = 0  # where parts 0 to 3 begin
    out = poisoned_out(case, device)
    on_device.call(dsa_ext.paged_indexer_logits, plan=plan, out=out)
    verify(out.cpu(), *expected_paged(x))


def test_plan_into_a_buffer(device):
    x = make_paged_inputs(PagedCase(batch=5, next_n=2)).on(device)
    plan = x.plan(dsa_ext.plan_paged_indexer_logits)
    out = torch.full_like(plan, -77)
    assert x.plan(dsa_ext.plan_paged_indexer_logits, out=out) is out
    assert torch.equal(out, plan) and plan.dtype == torch.int32


def test_a_plan_is_even(device):
    """Its cuts ascend, and every part has its share of the tiles and of the requests' beginnings, a tile each."""
    if device == "cpu":
        pytest.skip("the CPU has no plans")
    lens = torch.tensor([70_000, 0, 1, 300, 128, 129, -5], dtype=torch.int32, device=device)
    plan = dsa_ext.plan_paged_indexer_logits(lens, page_size=64, next_n=1).cpu()
    tiles = -(-lens.cpu().clamp(min=0) // 128)
    gaps = (tiles > 0).long()
    before = torch.cat([torch.zeros(1), (gaps + tiles).cumsum(0)]).long()
    assert plan[0] == 7 and len(plan) == 2 + 2 * (plan[1] + 1)
    blocks = plan[2::2].long()
    places = before[blocks] + torch.cat([gaps, torch.zeros(1)]).long()[blocks] + plan[3::2]
    assert places[0] == 1 and places[-1] == before[-1] and bool((places.diff() >= 0).all())
    assert places.diff().max() - places.diff().min() <= 3  # a cut at a request's beginning may stand before its gap


@pytest.mark.parametrize("shape", [(0, 1, 300), (3, 0, 300), (3, 1, 0)], ids=["no request", "no token", "no column"])
def test_empty(shape, device):
    batch, next_n, columns = shape
    x = make_paged_inputs(PagedCase(batch=3, next_n=1)).on(device)
    q = x.q[:batch].expand(batch, 1, 64, 128)[:, :next_n]
    weights = x.weights[:batch].expand(batch, 1, 64)[:, :next_n]
    arguments = (q, x.k_cache, weights, x.context_lens[:batch], x.block_table[:batch])
    out = dsa_ext.paged_indexer_logits(*arguments, max_context_len=columns)
    assert out.shape == shape


def test_cache_or_table_without_pages(device):
    x = make_paged_inputs(PagedCase(lens="full")).on(device)
    for cache, table in ((x.k_cache[:0], x.block_table), (x.k_cache, x.block_table[:, :0])):
        out = torch.full((3, 1, 300), math.nan, device=device)
        arguments = (x.q, cache, x.weights, x.context_lens, table)
        dsa_ext.paged_indexer_logits(*arguments, max_context_len=300, out=out)
        assert bool((out == -torch.inf).all())


def test_other_page_sizes_on_the_cpu():
    for page_size in (1, 53):
        x = make_paged_inputs(PagedCase(page_size=page_size, next_n=2, heads=3, d=20))
        verify(x.call(dsa_ext.paged_indexer_logits), *expected_paged(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cpu_dtypes(dtype):
    x = make_paged_inputs(PagedCase(next_n=2))
    arguments = (x.q.to(dtype), x.k_cache, x.weights, x.context_lens, x.block_table)
    out = torch.empty(3, 2, 300, dtype=torch.float64)
    dsa_ext.paged_indexer_logits(*arguments, max_context_len=300, out=out)
    assert torch.allclose(out, expected_paged(x)[0], rtol=1e-9, atol=1e-9)


# --- the model's sizes


@pytest.mark.gpu
@pytest.mark.parametrize(
    "batch, next_n, context", [(1, 1, 131_072), (4, 1, 100_001), (64, 1, 32_768), (64, 2, 32_768), (7, 16, 5000)]
)
@pytest.mark.parametrize("heads", [64, 32])
def test_large(batch, next_n, context, heads, free_memory):
    lens = "full" if context == 131_072 else "random"
    case = PagedCase(batch=batch, next_n=next_n, heads=heads, max_context_len=context, lens=lens, poison=False)
    x = make_paged_inputs(case).on("cuda")
    want, mass = expected_paged(x)
    for plan in (None, x.plan(dsa_ext.plan_paged_indexer_logits)):
        out = torch.full((batch, next_n, context), math.nan, device="cuda")
        x.call(dsa_ext.paged_indexer_logits, plan=plan, out=out)
        verify(out, want, mass)


@pytest.mark.gpu
def test_cache_of_more_than_2_gib(free_memory):
    """Pages beyond 2^31 bytes, apart by more than their own."""
    case = PagedCase(batch=2, max_context_len=3000, table="shuffled", gap=16)
    x = make_paged_inputs(case)
    pages, stride = 300_000, 64 * 132 + 16
    whole = torch.full((pages * stride,), 0x7F, dtype=torch.uint8, device="cuda")
    cache = whole.as_strided((pages, 64, 132), (stride, 132, 1))
    shift = pages - x.k_cache.shape[0]
    cache[shift:] = x.k_cache.cuda()
    table = x.block_table.cuda() + shift
    arguments = (x.q.cuda(), cache, x.weights.cuda(), x.context_lens.cuda(), table)
    out = dsa_ext.paged_indexer_logits(*arguments, max_context_len=3000)
    verify(out.cpu(), *expected_paged(x))


@pytest.mark.gpu
def test_graph_without_synchronisation():
    """Captured with its plan; replayed for other lengths."""
    case = PagedCase(batch=6, next_n=2, max_context_len=900, table="shuffled", poison=False)
    x = make_paged_inputs(case).on("cuda")
    out = torch.empty(6, 2, 900, device="cuda")

    def step():
        plan = x.plan(dsa_ext.plan_paged_indexer_logits)
        x.call(dsa_ext.paged_indexer_logits, plan=plan, out=out)

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    x.context_lens.copy_(torch.tensor([900, 1, 0, 128, 129, 700]))
    out.fill_(math.nan)
    graph.replay()
    verify(out, *expected_paged(x))
