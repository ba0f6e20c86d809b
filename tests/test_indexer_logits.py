"""indexer_logits against the definition in float64, on the CPU and on the GPU."""

import math
from dataclasses import replace

import pytest
import torch
from logits_cases import E4M3, RaggedCase, codes, expected, make_inputs, verify

import dsa_ext

SIZES = [(h, d) for h in (8, 16, 32, 64) for d in (32, 64, 128)]
CASES = [
    *(RaggedCase(heads=h, d=d, s_q=21, poison=True) for h, d in SIZES),
    *(RaggedCase(heads=h, s_q=9, s_k=257, ranges="causal") for h in (8, 64)),
    *(RaggedCase(s_q=3, s_k=s_k, ranges="all") for s_k in (1, 7, 64, 65, 127, 128, 129, 1000)),
    *(RaggedCase(s_q=s_q, ranges="all") for s_q in (1, 2, 4, 33)),
    *(RaggedCase(heads=h, s_q=40, s_k=500, ranges="rows", poison=True) for h in (16, 64)),
    RaggedCase(heads=32, s_q=70, s_k=200, ranges="one", poison=True),
    RaggedCase(s_q=6, s_k=5000, ranges="none", poison=True),
    *(RaggedCase(heads=h, s_q=70, ranges="inner") for h in (8, 64)),
    RaggedCase(s_q=30, s_k=9000, heads=16, d=32, ranges="random", poison=True),
    *(RaggedCase(heads=h, d=d, s_q=11, layout="strided", poison=True) for h, d in ((64, 128), (8, 64), (16, 32))),
    *(
        RaggedCase(heads=h, s_q=11, out_dtype=torch.bfloat16, layout=layout)
        for h in (8, 64)
        for layout in ("dense", "strided")
    ),
]


def poisoned_out(case: RaggedCase, device: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Full of NaN; in a larger tensor, at an odd place, where the case is strided."""
    if case.layout == "dense":
        return torch.full(shape, math.nan, dtype=case.out_dtype, device=device)
    whole = torch.full((*shape[:-1], shape[-1] + 5), math.nan, dtype=case.out_dtype, device=device)
    return whole[..., 3:-2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_definition(case, device):
    x = make_inputs(case)
    out = poisoned_out(case, device, (case.s_q, case.s_k))
    on_device = x.on(device)
    assert on_device.call(dsa_ext.indexer_logits, out=out) is out
    verify(out.cpu(), *expected(x))
    if case.layout == "strided":
        assert bool(out._base[:, :3].isnan().all()) and bool(out._base[:, -2:].isnan().all())


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_allocates(out_dtype, device):
    case = RaggedCase(out_dtype=out_dtype)
    x = make_inputs(case)
    out = x.on(device).call(dsa_ext.indexer_logits, out_dtype=out_dtype)
    assert out.dtype == out_dtype and out.device == x.on(device).q.device and out.is_contiguous()
    verify(out.cpu(), *expected(x))


@pytest.mark.parametrize("heads", [8, 64])
def test_nan_in_what_is_seen(heads, device):
    """A NaN in a key, or its scale, makes that key's logits NaN, a NaN in a query or weight its row's; nothing else."""
    x = make_inputs(RaggedCase(heads=heads, s_q=6, s_k=140, ranges="all"))
    x.k.view(torch.uint8)[3, 100] = 0xFF
    x.k_scale[70] = math.nan
    x.q.view(torch.uint8)[2, heads - 1, 17] = 0x7F
    x.weights[4, 1] = math.nan
    want, mass = expected(x)
    assert bool(want[2].isnan().all()) and bool(want[:, 3].isnan().all()) and int(want.isnan().sum()) == 280 + 8
    verify(x.on(device).call(dsa_ext.indexer_logits).cpu(), want, mass)


def test_heads_and_keys_are_told_apart(device):
    """Exact numbers: key t is t's bits, head h looks at one of them, and its weight is a power of two."""
    bits = 9
    k = torch.zeros(1 << bits, 128)
    for b in range(bits):
        k[:, b * 13] = (torch.arange(1 << bits) >> b & 1) * 2 - 1
    q, weights = torch.zeros(7, 16, 128), torch.zeros(7, 16)
    for b in range(bits):
        q[:, b + 3, b * 13], weights[:, b + 3] = 1, 2.0**b
    weights *= torch.arange(1, 8)[:, None]
    start, end = torch.zeros(7, dtype=torch.int32), torch.full((7,), 1 << bits, dtype=torch.int32)
    scale = torch.full((1 << bits,), 0.5)
    arguments = (q.to(E4M3), k.to(E4M3), scale, weights, start, end)
    out = dsa_ext.indexer_logits(*(t.to(device) for t in arguments)).cpu()
    assert torch.equal(out, 0.5 * torch.arange(1, 8)[:, None] * torch.arange(1 << bits))


def test_negative_products_count_nothing(device):
    """relu, also of the least number, and of -0: x + |x| must not leave anything."""
    q, k = torch.zeros(2, 8, 32), torch.zeros(64, 32)
    q[:, :, 0], k[:, 0] = 448, torch.where(torch.arange(64) % 2 == 0, -448.0, 2.0**-9)
    weights = torch.ones(2, 8)
    weights[1] = -1
    start, end = torch.zeros(2, dtype=torch.int32), torch.full((2,), 64, dtype=torch.int32)
    arguments = (q.to(E4M3), k.to(E4M3), torch.ones(64), weights, start, end)
    out = dsa_ext.indexer_logits(*(t.to(device) for t in arguments)).cpu()
    want = torch.where(torch.arange(64) % 2 == 0, 0.0, 8 * 448 * 2.0**-9)
    assert torch.equal(out, torch.stack([want, -want]))


@pytest.mark.parametrize("heads", [8, 32, 64])
def test_one_product(heads, device):
    """One head counts, and its products are exact: what is left where relu cuts off, and what is off where it does not,
    are parts of 2^-15."""
    s_q, s_k, d = 11, 130, 128
    q, k, weights = codes(s_q, heads, d), codes(s_k, d), torch.zeros(s_q, heads)
    head, dim = torch.randint(heads, (s_q,)), torch.randint(d, (s_q,))
    i = torch.arange(s_q)
    code = (torch.rand(s_q) * 432 + 16) * (1 - 2 * torch.randint(2, (s_q,)))
    q[i, head] = torch.zeros(d).to(E4M3)
    q[i, head, dim] = code.to(E4M3)
    weights[i, head] = (torch.rand(s_q) + 1) * torch.exp2(torch.arange(s_q) * 21.0 - 105) * (1 - i % 2 * 2)
    start, end = torch.zeros(s_q, dtype=torch.int32), torch.full((s_q,), s_k, dtype=torch.int32)
    out = dsa_ext.indexer_logits(*(t.to(device) for t in (q, k, torch.ones(s_k), weights, start, end))).cpu().double()
    x = q[i, head, dim].double()[:, None] * k[:, dim].T.double()
    weight = weights[i, head].double()[:, None]
    assert bool(((out - x.relu() * weight).abs() <= 2.0**-15 * (x * weight).abs()).all())


@pytest.mark.parametrize("heads", [32, 64])
def test_weights_of_all_magnitudes(heads, device):
    """Within a query, and from one query to another: from subnormal ones to ones whose logits are some 2^75."""
    case = RaggedCase(heads=heads, s_q=17, s_k=200, ranges="all")
    x = make_inputs(case)
    x.weights[:6] *= torch.exp2(torch.randint(-12, 12, x.weights[:6].shape).float())
    x.weights[6:] *= torch.exp2(torch.arange(11) * 20.0 - 125)[:, None]
    x.weights[9] = 0
    q = x.q.float()
    q[10:] = torch.where(q[10:].abs() < 100, 0, q[10:].sign() * 2.0**-9)  # a few small codes
    q = q.to(E4M3)
    x = replace(x, q=q, k_scale=torch.ones(case.s_k))
    want, mass = expected(x)
    assert bool(want.float().isfinite().all())
    verify(x.on(device).call(dsa_ext.indexer_logits).cpu(), want, mass + 2.0**-130)


@pytest.mark.parametrize("heads", [8, 64])
def test_weights_that_are_not_finite(heads, device):
    """Their query's logits are not finite either, and no other's."""
    x = make_inputs(RaggedCase(heads=heads, s_q=6, s_k=140, ranges="all"))
    x.weights[2, 3], x.weights[4, 1] = math.inf, -math.inf
    out = x.on(device).call(dsa_ext.indexer_logits).cpu()
    for i, row in enumerate(out):
        assert not bool(row.isfinite().any()) if i in (2, 4) else bool(row.isfinite().all())


@pytest.mark.parametrize("s_q, s_k", [(0, 5), (5, 0), (0, 0)])
def test_empty(s_q, s_k, device):
    x = make_inputs(RaggedCase(s_q=s_q, s_k=s_k, ranges="none")).on(device)
    assert x.call(dsa_ext.indexer_logits).shape == (s_q, s_k)


def test_slices_of_keys(device, pytestconfig):
    """Rows of a larger tensor, at any offset: the logits are columns of the whole, to the bit from the kernels. On the
    CPU, torch may sum products in an order that depends on the shape."""
    bits = device != "cpu" or pytestconfig.emulator is not None
    x = make_inputs(RaggedCase(s_q=4, s_k=500, ranges="all")).on(device)
    whole = x.call(dsa_ext.indexer_logits)
    for first, last in ((1, 400), (130, 500), (77, 79)):
        part = dsa_ext.indexer_logits(x.q, x.k[first:last], x.k_scale[first:last], x.weights, x.k_start, x.k_end)
        torch.testing.assert_close(part, whole[:, first:last], rtol=0 if bits else 1e-5, atol=0 if bits else 1e-5)


def test_same_bits_every_time_and_however_work_is_cut(device):
    """An element's bits depend on its query and key alone."""
    x = make_inputs(RaggedCase(s_q=19, s_k=700, heads=16, d=64, ranges="causal")).on(device)
    first = x.call(dsa_ext.indexer_logits)
    assert torch.equal(x.call(dsa_ext.indexer_logits), first)
    for i in (0, 7, 18):
        row = slice(i, i + 1)
        alone = dsa_ext.indexer_logits(x.q[row], x.k, x.k_scale, x.weights[row], x.k_start[row], x.k_end[row])
        if device == "cpu":  # sums of the CPU's library differ with the shape
            assert torch.allclose(alone, first[row], rtol=1e-4, atol=1e-2)
        else:
            assert torch.equal(alone, first[row])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cpu_dtypes(dtype):
    x = make_inputs(RaggedCase(heads=5, d=40))
    out = dsa_ext.indexer_logits(
        x.q.to(dtype), x.k.to(dtype), None, x.weights, x.k_start, x.k_end, out_dtype=torch.float64
    )
    want, mass = expected(x)
    seen = want != -torch.inf
    assert bool((out[~seen] == -torch.inf).all())
    assert torch.allclose(out[seen] * x.k_scale.double().expand_as(out)[seen], want[seen], rtol=1e-9, atol=1e-9)


# --- the model's sizes


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [32, 64])
@pytest.mark.parametrize("s_q, s_k, ranges", [(4096, 4096, "causal"), (512, 20000, "causal"), (1000, 3000, "random")])
def test_large(heads, s_q, s_k, ranges, free_memory):
    x = make_inputs(RaggedCase(s_q=s_q, s_k=s_k, heads=heads, ranges=ranges, poison=True)).on("cuda")
    out = torch.full((s_q, s_k), math.nan, device="cuda")
    x.call(dsa_ext.indexer_logits, out=out)
    verify(out, *expected(x))
    assert torch.equal(out, x.call(dsa_ext.indexer_logits))


@pytest.mark.gpu
def test_70000_queries(free_memory):
    x = make_inputs(RaggedCase(s_q=70_000, s_k=300, heads=16, d=64)).on("cuda")
    out = torch.full((70_000, 300), math.nan, device="cuda")
    x.call(dsa_ext.indexer_logits, out=out)
    verify(out, *expected(x))


@pytest.mark.gpu
@pytest.mark.parametrize("ranges", ["causal", "none", "one"])
def test_more_than_2_31_elements(ranges, free_memory):
    s_q, s_k = 20_000, 131_072
    x = make_inputs(RaggedCase(s_q=s_q, s_k=s_k, heads=8, d=32, ranges=ranges)).on("cuda")
    out = torch.full((s_q, s_k), math.nan, device="cuda", dtype=torch.bfloat16)
    x.call(dsa_ext.indexer_logits, out=out)
    for rows in (slice(0, 40), slice(16_380, 16_400), slice(s_q - 40, s_q)):
        part = type(x)(x.q[rows], x.k, x.k_scale, x.weights[rows], x.k_start[rows], x.k_end[rows])
        verify(out[rows], *expected(part))
    assert not bool(out.isnan().any())


@pytest.mark.gpu
def test_graph_without_synchronisation():
    x = make_inputs(RaggedCase(s_q=40, s_k=900)).on("cuda")
    out = torch.empty(40, 900, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        x.call(dsa_ext.indexer_logits, out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.call(dsa_ext.indexer_logits, out=out)
    other = make_inputs(RaggedCase(s_q=40, s_k=900, ranges="causal"))
    for name, t in vars(other).items():
        getattr(x, name).copy_(t)
    out.fill_(math.nan)
    graph.replay()
    verify(out.cpu(), *expected(other))
