"""prepare_indexer on the CPU and on the GPU: against float64, to the last bit where float32 is exact, and to the last
bit of the reference everywhere."""

import itertools

import pytest
import torch
from indexer_oracle import (
    BF16,
    E4M3,
    F16,
    F32,
    F64,
    OPCHECKS,
    angles,
    bits,
    finite_amax,
    make,
    poison,
    prepared,
    quantised,
    scales,
    sylvester,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext

OPTIONS = list(itertools.product(("half", "interleaved"), (True, False), ("ue8m0", "fp32")))
NAMES = ("rope", "hadamard", "scale_format")
OP = torch.ops.dsa_ext.prepare_indexer.default


def inputs(s, h, values="normal", weights_dtype=F32):
    """q, k, weights, cos, sin on the CPU."""
    return make(s, h, 128, values=values), make(s, 128, values=values), torch.randn(s, h).to(weights_dtype), *angles(s)


def prepare(tensors, device, *options, function=dsa_ext.prepare_indexer):
    poison(device)
    results = function(*(t.to(device) for t in tensors), **dict(zip(NAMES, options, strict=False)))
    q, k = tensors[:2]
    assert [r.shape for r in results] == [q.shape, k.shape, k.shape[:1], q.shape[:2]]
    assert [r.dtype for r in results] == [E4M3, E4M3, F32, F32]
    assert all(r.is_contiguous() for r in results)
    return results


def same_bits(a, b):
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


def check_vectors(codes, scale, exact, scale_format):
    """Codes times scale are the vectors to within half a step, for a scale that belongs to them. `exact`, float64, is
    what float32 arithmetic comes close to: `error` of the largest element."""
    codes, scale, error = codes.cpu().double(), scale.cpu().double(), 2e-6
    amax = finite_amax(exact)
    assert bool((scale >= scales(amax * (1 - error), scale_format)).all())
    assert bool((scale <= scales(amax * (1 + error), scale_format)).all())
    step = torch.maximum(exact.abs() * 2.0**-4, scale[..., None] * 2.0**-10)
    assert bool(((codes * scale[..., None] - exact).abs() <= step + error * (amax + 1e-4)[..., None]).all())


@pytest.mark.parametrize(NAMES, OPTIONS)
@pytest.mark.parametrize("s, h", [(1, 64), (37, 8), (5, 3), (2, 1)])
def test_against_float64(s, h, rope, hadamard, scale_format, device):
    tensors = q, k, weights, cos, sin = inputs(s, h, "wide")
    q_codes, k_codes, k_scale, folded = prepare(tensors, device, rope, hadamard, scale_format)
    q_exact, k_exact = (prepared(x, cos, sin, rope, hadamard) for x in (q, k))
    check_vectors(k_codes, k_scale, k_exact, scale_format)
    factor = weights.double() * (h * 128) ** -0.5
    q_scale = folded.cpu().double() / factor
    if scale_format == "ue8m0":  # so near to a power of two that it is meant
        assert bool((q_scale.log2() - q_scale.log2().round()).abs().max() < 1e-6)
        q_scale = torch.exp2(q_scale.log2().round())
    else:
        assert torch.allclose(q_scale, scales(finite_amax(q_exact), "fp32"), rtol=3e-6, atol=0)
        q_scale = scales(finite_amax(q_exact), "fp32")
    check_vectors(q_codes, q_scale, q_exact, scale_format)


@pytest.mark.parametrize(NAMES, OPTIONS)
def test_every_byte_where_float32_is_exact(rope, hadamard, scale_format, device):
    """Small integers and angles of multiples of 90 degrees: only the rotation's 128^-0.5 rounds, once, by itself."""
    s, h = 23, 5
    q, k = torch.randint(-64, 65, (s, h, 128)).to(BF16), torch.randint(-64, 65, (s, 128)).to(BF16)
    turns = torch.randint(4, (s, 32))
    cos, sin = torch.tensor([1.0, 0, -1, 0])[turns], torch.tensor([0, 1.0, 0, -1])[turns]
    weights = torch.randn(s, h)
    results = prepare((q, k, weights, cos, sin), device, rope, hadamard, scale_format)

    def want(x):
        x = prepared(x, cos, sin, rope, False)
        if hadamard:
            x = (x @ sylvester(128) * torch.tensor(128**-0.5, dtype=F32).double()).float()
        return quantised(x.float() + 0.0, scale_format)  # no -0, of which the sums have none either

    (q_codes, q_scale), (k_codes, k_scale) = want(q), want(k)
    no_sign = [torch.where(c.float() == 0, c.float().abs(), c.float()).to(E4M3) for c in results[:2]]
    assert torch.equal(bits(no_sign[0]), q_codes) and torch.equal(bits(no_sign[1]), k_codes)
    assert torch.equal(results[2].cpu().double(), k_scale)
    factor = torch.tensor((h * 128) ** -0.5, dtype=F32)
    assert torch.equal(results[3].cpu(), weights * factor * q_scale.float())


@pytest.mark.parametrize(NAMES, OPTIONS)
@pytest.mark.parametrize("values", ["normal", "tiny", "huge", "wide", "zero", "bits"])
def test_bits_of_the_reference(values, rope, hadamard, scale_format, device):
    tensors = inputs(19, 7, values)
    options = rope, hadamard, scale_format
    want = prepare(tensors, "cpu", *options, function=dsa_ext.reference.prepare_indexer)
    assert same_bits(prepare(tensors, device, *options), want)


@pytest.mark.gpu
@pytest.mark.parametrize(NAMES, OPTIONS)
def test_bits_of_the_reference_on_many(rope, hadamard, scale_format):
    tensors, options = inputs(3000, 64, "wide"), (rope, hadamard, scale_format)
    results = prepare(tensors, "cuda", *options)
    assert same_bits(results, prepare(tensors, "cpu", *options))
    assert same_bits(results, prepare(tensors, "cuda", *options, function=dsa_ext.reference.prepare_indexer))


@pytest.mark.parametrize("rope", ["half", "interleaved"])
def test_which_dimensions_are_rotated(rope, device):
    """One angle for one pair: 90 degrees move it to where it is known to go, and nothing else."""
    for pair in (0, 1, 7, 8, 31):
        first, second = (pair, pair + 32) if rope == "half" else (2 * pair, 2 * pair + 1)
        x = torch.arange(1, 129).to(BF16)
        cos, sin = torch.ones(1, 32), torch.zeros(1, 32)
        cos[0, pair], sin[0, pair] = 0, 1
        want = x.double()
        want[first], want[second] = -x[second].double(), x[first].double()
        tensors = x.view(1, 1, 128), x.view(1, 128), torch.ones(1, 1), cos, sin
        q_codes, k_codes, _, _ = prepare(tensors, device, rope, False)
        codes = quantised(want, "ue8m0")[0]
        assert torch.equal(bits(q_codes).view(128), codes) and torch.equal(bits(k_codes).view(128), codes)


def test_rotation_keeps_products(device):
    """Queries and keys that are both rotated have the products that they had, but for quantisation."""
    tensors = inputs(40, 4)
    products = []
    for hadamard in (True, False):
        q, k, k_scale, folded = (t.cpu().double() for t in prepare(tensors, device, "half", hadamard))
        q_scale = folded / tensors[2].double() * (4 * 128) ** 0.5
        products.append(torch.einsum("shd,td->sht", q * q_scale[..., None], k * k_scale[:, None]))
    error = (products[0] - products[1]).abs().max()
    assert 0 < error < 0.2 * products[1].std() + 2


@pytest.mark.parametrize("weights_dtype", [F32, BF16])
@pytest.mark.parametrize("h", [1, 32, 64])
def test_weights(h, weights_dtype, device):
    tensors = inputs(6, h, "wide", weights_dtype)
    folded = prepare(tensors, device)[3]
    q_scale = dsa_ext.quantize_indexer(prepared(tensors[0], *tensors[3:], "half", True).float())[1]
    want = tensors[2].float() * torch.tensor((h * 128) ** -0.5, dtype=F32) * q_scale
    assert torch.equal(folded.cpu(), want)  # q_scale is the same unless an amax lies at an edge to 1e-6
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0, -0.0, 1e30]).to(weights_dtype)
    weights = special[:, None].repeat(1, h)
    folded = prepare((*tensors[:2], weights, *tensors[3:]), device)[3].cpu()
    want = weights.float() * torch.tensor((h * 128) ** -0.5, dtype=F32) * q_scale
    assert torch.equal(folded.nan_to_num(7), want.nan_to_num(7))


@pytest.mark.parametrize("rope", ["half", "interleaved"])
@pytest.mark.parametrize("place", [0, 63, 64, 127])
def test_not_finite(place, rope, device):
    """Spoils its own vector, or with RoPE alone its pair, and no other."""
    clean = inputs(3, 5)
    want = prepare(clean, device, rope)
    dirty = [t.clone() for t in clean]
    dirty[0][1, 2, place] = torch.inf
    dirty[1][2, place] = torch.nan
    got = [t.cpu() for t in prepare(dirty, device, rope)]
    want = [t.cpu() for t in want]
    assert bool(got[0][1, 2].float().isnan().all()) and bool(got[1][2].float().isnan().all())
    assert got[2][2] == 2.0**-22 and bool(got[3].isfinite().all())
    for g, w in zip(got[:2], want[:2], strict=True):
        keep = ~g.float().isnan()
        assert torch.equal(bits(g)[keep], bits(w)[keep]) and int((~keep).sum()) == 128
    got = [t.cpu() for t in prepare(dirty, device, rope, False)]
    assert int(got[0].float().isnan().sum()) == int(got[1].float().isnan().sum()) == (2 if place < 64 else 1)


@pytest.mark.parametrize("rope", ["half", "interleaved"])
@pytest.mark.parametrize("lead, trail", [(0, 8), (8, 0), (4, 4), (1, 0), (3, 4)])  # the last three are not aligned
def test_strides(lead, trail, rope, device):
    tensors = inputs(11, 6)
    want = prepare(tensors, device, rope)

    def inside(t, rows=2):
        wide = t.new_full((*(n * rows for n in t.shape[:-1]), lead + t.shape[-1] + trail), torch.nan).to(device)
        view = wide[tuple(slice(None, None, rows) for _ in t.shape[:-1])][..., lead : lead + t.shape[-1]]
        return view.copy_(t)

    for rows in (1, 2):
        assert same_bits(dsa_ext.prepare_indexer(*(inside(t, rows) for t in tensors), rope=rope), want)
    # [heads, tokens, 128] seen as [tokens, heads, 128]
    q = tensors[0].transpose(0, 1).contiguous().to(device).transpose(0, 1)
    rest = [t.to(device) for t in tensors[1:]]
    assert same_bits(dsa_ext.prepare_indexer(q, *rest, rope=rope), want)
    # one token for all
    expanded = [t[:1].to(device).expand(11, *t.shape[1:]) for t in tensors]
    copied = [t.contiguous() for t in expanded]
    assert same_bits(dsa_ext.prepare_indexer(*expanded), dsa_ext.prepare_indexer(*copied))


@pytest.mark.parametrize("s, h", [(0, 4), (3, 0), (0, 0)])
def test_empty(s, h, device):
    tensors = make(s, h, 128), make(s, 128), torch.randn(s, h), *angles(s)
    results = prepare(tensors, device)
    if s:
        assert same_bits(
            results[1:3], prepare((make(s, 2, 128), tensors[1], torch.ones(s, 2), *tensors[3:]), device)[1:3]
        )


@pytest.mark.parametrize("s", [1, 2, 50])
def test_tokens_do_not_meet(s, device):
    """A token's results are those that it has alone."""
    tensors = inputs(s, 9)
    together = [t.cpu() for t in prepare(tensors, device)]
    for i in {0, s // 2, s - 1}:
        assert same_bits(prepare([t[i : i + 1] for t in tensors], device), [t[i : i + 1] for t in together])


@pytest.mark.parametrize("dtype", [F64, F32, F16])
def test_cpu_dtypes(dtype):
    tensors = [t.to(dtype) for t in inputs(6, 4)[:3]] + list(angles(6))
    wide = [t.float() for t in tensors]
    assert same_bits(dsa_ext.prepare_indexer(*tensors), dsa_ext.prepare_indexer(*wide))


@pytest.mark.gpu
def test_more_than_2_gib(free_memory):
    s, h = 2**18 + 5, 64
    q, k, weights = torch.randn(s, h, 128, dtype=BF16, device="cuda"), make(s, 128).cuda(), torch.randn(s, h).cuda()
    cos, sin = (t.cuda() for t in angles(s))
    results = dsa_ext.prepare_indexer(q, k, weights, cos, sin)
    few = dsa_ext.prepare_indexer(*(t[-9:].clone() for t in (q, k, weights, cos, sin)))
    assert same_bits([r[-9:] for r in results], few)


@pytest.mark.gpu
@pytest.mark.parametrize("rope", ["half", "interleaved"])
def test_graph_without_synchronisation(rope):
    tensors = [t.cuda() for t in inputs(9, 8)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        dsa_ext.prepare_indexer(*tensors, rope=rope)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = dsa_ext.prepare_indexer(*tensors, rope=rope)
    for t, new in zip(tensors, inputs(9, 8), strict=True):
        t.copy_(new)
    graph.replay()
    assert same_bits(results, dsa_ext.prepare_indexer(*tensors, rope=rope))


@pytest.mark.parametrize("rope", ["half", "interleaved"])
def test_opcheck(rope, device):
    tensors = [t.to(device) for t in inputs(3, 4)]
    torch.library.opcheck(OP, (*tensors, rope, True, "ue8m0"), test_utils=OPCHECKS)


BACKENDS = [("eager", "cpu"), ("aot_eager", "cpu"), pytest.param("inductor", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, device, dynamic):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def f(q, *rest):
        return dsa_ext.prepare_indexer(q * 2, *rest, rope="interleaved")

    for s in (5, 9):
        q, *rest = (t.to(device) for t in inputs(s, 4))
        assert same_bits(f(q, *rest), dsa_ext.prepare_indexer(q * 2, *rest, rope="interleaved"))


@pytest.mark.parametrize("where", ["cuda", "meta"])
def test_fake_and_meta_tensors(where):
    with FakeTensorMode():
        shapes = ((5, 4, 128), BF16), ((5, 128), BF16), ((5, 4), F32), ((5, 32), F32), ((5, 32), F32)
        results = dsa_ext.prepare_indexer(*(torch.empty(*shape, dtype=t, device=where) for shape, t in shapes))
        assert [r.shape for r in results] == [(5, 4, 128), (5, 128), (5,), (5, 4)]
        assert [r.dtype for r in results] == [E4M3, E4M3, F32, F32]
        assert {r.device.type for r in results} == {where}
