"""quantize_indexer and store_indexer_cache: every byte, on the CPU and on the GPU."""

import pytest
import torch
from indexer_oracle import BF16, E4M3, F16, F32, F64, I32, OPCHECKS, U8, VALUES, bits, make, poison, quantised
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
OPS = torch.ops.dsa_ext
SCALE_FORMATS = ("ue8m0", "fp32")
HEAD_DIMS = (32, 64, 128)


def quantize(x, device, **options):
    poison(device)
    x = x.to(device)
    codes, scale = dsa_ext.quantize_indexer(x, **options)
    assert codes.shape == x.shape and codes.dtype == E4M3 and codes.is_contiguous()
    assert scale.shape == x.shape[:-1] and scale.dtype == F32 and scale.is_contiguous()
    assert codes.device == scale.device == x.device
    return codes, scale


def check(x, device, scale_format):
    codes, scale = quantize(x, device, scale_format=scale_format)
    want_codes, want_scale = quantised(x, scale_format)
    assert torch.equal(scale.cpu().double(), want_scale)
    assert torch.equal(bits(codes), want_codes)


# --- codes and scales


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("d", HEAD_DIMS)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("values", VALUES)
def test_every_byte(values, dtype, d, scale_format, device):
    check(make(37, d, values=values, dtype=dtype), device, scale_format)


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_every_number_of_16_bits(dtype, scale_format, device):
    """Neighbours of similar magnitude share a vector."""
    check(torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(-1, 64), device, scale_format)


def with_amax(amax, d=128):
    """A vector for each number: one element has this magnitude, with a place and sign that vary; the rest less."""
    x = amax[:, None] / 512 * torch.rand(len(amax), d)
    line = torch.arange(len(amax))
    x[line, line * 37 % d] = amax * (1 - 2 * (line % 2))
    return x


def test_power_of_two_scales_at_their_edges(device):
    """448 * 2^k is the most that scale 2^k takes; the next float32 needs 2^(k + 1)."""
    k = torch.arange(-22, 119)
    edge = (448 * torch.exp2(k.double())).float()
    one = torch.tensor(torch.inf)
    for amax, exponent in ((edge, k), (edge.nextafter(-one), k), (edge.nextafter(one), k + 1)):
        keep = amax >= 1e-4
        _, scale = quantize(with_amax(amax[keep]), device)
        assert torch.equal(scale.cpu().double(), torch.exp2(exponent[keep].double()))


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
def test_ends_of_the_range(scale_format, device):
    """The least scale is that of 1e-4; the greatest number saturates and does not become NaN."""
    largest = torch.finfo(F32).max
    x = with_amax(torch.tensor([0.0, 1e-45, 1e-30, 9e-5, 1e-4, largest]))
    codes, scale = quantize(x, device, scale_format=scale_format)
    least = 2.0**-22 if scale_format == "ue8m0" else (torch.tensor(1e-4) / 448).item()
    assert scale.tolist()[:5] == [least] * 5
    assert not bool(codes.float().isnan().any())
    check(x, device, scale_format)
    full = torch.full((3, 32), largest)
    full[1] = -largest
    check(full, device, scale_format)


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("d", HEAD_DIMS)
def test_not_finite_stays_alone(d, scale_format, device):
    x = make(48, d, dtype=F32)
    line = torch.arange(48)
    place = line * 97 % d
    clean, bad = x.clone(), torch.tensor([torch.nan, torch.inf, -torch.inf, -torch.nan]).repeat(12)
    clean[line, place] = 0  # as if it were not there
    x[line, place] = bad
    codes, scale = quantize(x, device, scale_format=scale_format)
    want_codes, want_scale = quantize(clean, device, scale_format=scale_format)
    assert bool(codes[line, place].float().isnan().all())
    codes, want_codes = bits(codes), bits(want_codes)
    codes[line, place] = want_codes[line, place] = 0
    assert torch.equal(codes, want_codes) and torch.equal(scale, want_scale)
    nothing = torch.full((2, d), torch.nan)
    codes, scale = quantize(nothing, device)
    assert bool(codes.float().isnan().all()) and scale.tolist() == [2.0**-22] * 2


# --- shapes and strides


@pytest.mark.parametrize("shape", [(128,), (1, 32), (5, 7, 64), (2, 3, 2, 32), (0, 64), (4, 0, 128), (129, 32)])
def test_shapes(shape, device):
    x = make(*shape)
    codes, scale = quantize(x, device)
    want_codes, want_scale = quantised(x, "ue8m0") if x.numel() else (torch.empty(shape, dtype=U8), scale.cpu())
    assert torch.equal(bits(codes).view(shape), want_codes) and torch.equal(scale.cpu().double(), want_scale.double())


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("lead, trail", [(0, 8), (8, 0), (1, 0), (3, 4)])  # the last two are not aligned
def test_strides(lead, trail, dtype, device):
    x = make(6, 5, 64, dtype=dtype)
    want = quantised(x, "ue8m0")
    wide = torch.full((6, 10, lead + 64 + trail), torch.nan, dtype=dtype, device=device)
    views = [wide[:, :5, lead : lead + 64], wide[:, ::2, lead : lead + 64]]
    views.append(torch.full((5, 6, 128), torch.nan, dtype=dtype, device=device)[..., lead : lead + 64].transpose(0, 1))
    views.append(torch.full((6, 5, 200), torch.nan, dtype=dtype, device=device)[..., lead : lead + 128 : 2])
    for view in views:
        view.copy_(x)
        codes, scale = dsa_ext.quantize_indexer(view)
        assert codes.is_contiguous()
        assert torch.equal(bits(codes), want[0]) and torch.equal(scale.cpu().double(), want[1])
    codes, scale = dsa_ext.quantize_indexer(x[:1].to(device).expand(9, -1, -1))
    assert torch.equal(bits(codes), want[0][:1].expand(9, -1, -1))
    assert torch.equal(scale.cpu().double(), want[1][:1].expand(9, -1))


def test_float64_is_taken_as_float32():
    x = torch.randn(20, 32, dtype=F64)
    codes, scale = dsa_ext.quantize_indexer(x)
    want_codes, want_scale = quantised(x.float(), "ue8m0")
    assert torch.equal(bits(codes), want_codes) and torch.equal(scale.double(), want_scale)


@pytest.mark.gpu
def test_more_than_2_gib(free_memory):
    x = torch.randn(2**24 + 100, 128, dtype=BF16, device="cuda")
    codes, scale = dsa_ext.quantize_indexer(x)
    few_codes, few_scale = dsa_ext.quantize_indexer(x[-150:].clone())
    assert torch.equal(bits(codes[-150:]), bits(few_codes)) and torch.equal(scale[-150:], few_scale)


# --- the cache


def new_cache(pages, page_size, d, device, lead=0, gap=0):
    """A cache of bytes 0xAB within a larger tensor of them: (the cache, that tensor)."""
    stride = page_size * (d + 4) + gap
    whole = torch.full((lead + pages * stride,), 0xAB, dtype=U8, device=device)
    return whole.as_strided((pages, page_size, d + 4), (stride, d + 4, 1), lead), whole


def stored(whole, lead, stride, page_size, codes, scale, slots, total):
    """The bytes that `whole` has after the call."""
    want, d = whole.cpu().clone(), codes.shape[1]
    codes, scale = bits(codes), bits(scale).view(-1, 4)
    for i, slot in enumerate(slots.tolist()):
        if 0 <= slot < total:
            page, place = divmod(slot, page_size)
            start = lead + page * stride
            want[start + place * d : start + (place + 1) * d] = codes[i]
            at = start + page_size * d + place * 4
            want[at : at + 4] = scale[i]
    return want


LAYOUTS = [(0, 0), (16, 48), (0, 4), (4, 0), (1, 0), (3, 5)]  # the last four lower the alignment


@pytest.mark.parametrize("lead, gap", LAYOUTS)
@pytest.mark.parametrize("page_size", [1, 7, 16, 64])
@pytest.mark.parametrize("d", HEAD_DIMS)
def test_store(d, page_size, lead, gap, device):
    """Keys go where their slots are, the others nowhere, and no other byte changes."""
    pages = 60 // page_size + 2
    total = pages * page_size
    codes = torch.randint(256, (50, d)).byte().view(E4M3)
    scale = torch.randint(INT_MIN, INT_MAX, (50,)).int().view(F32)
    slots = torch.randperm(total)[:50].int()
    slots[3::5] = torch.tensor([-1, INT_MIN, total, INT_MAX, -total]).int().repeat(2)
    slots[0], slots[1] = total - 1, 0
    slots[2:][(slots[2:] == 0) | (slots[2:] == total - 1)] = -7
    cache, whole = new_cache(pages, page_size, d, device, lead, gap)
    want = stored(whole, lead, cache.stride(0), page_size, codes, scale, slots, total)
    result = dsa_ext.store_indexer_cache(codes.to(device), scale.to(device), cache, slots.to(device))
    assert result is None and torch.equal(whole.cpu(), want)


@pytest.mark.parametrize("lead, trail", [(0, 16), (16, 0), (1, 2)])
def test_store_of_strided_keys(lead, trail, device):
    codes, scale = dsa_ext.quantize_indexer(make(20, 128))
    wide = torch.full((40, lead + 128 + trail), 255, dtype=U8, device=device)
    view = wide[::2, lead : lead + 128].view(E4M3)
    view.view(U8).copy_(codes.view(U8))
    slots, scales = torch.arange(20, dtype=I32).repeat_interleave(2), scale.repeat_interleave(3)
    cache, whole = new_cache(3, 8, 128, device)
    want = stored(whole, 0, cache.stride(0), 8, codes, scale, slots[::2], 24)
    dsa_ext.store_indexer_cache(view, scales.to(device)[::3], cache, slots.to(device)[::2])
    assert torch.equal(whole.cpu(), want)


def test_one_slot_for_equal_keys(device):
    codes, scale = dsa_ext.quantize_indexer(make(1, 64, dtype=F32))
    cache, whole = new_cache(2, 5, 64, device)
    slots = torch.full((100,), 6, dtype=I32)
    want = stored(whole, 0, cache.stride(0), 5, codes, scale, slots[:1], 10)
    dsa_ext.store_indexer_cache(codes.to(device).expand(100, -1), scale.to(device).expand(100), cache, slots.to(device))
    assert torch.equal(whole.cpu(), want)


def test_store_of_nothing(device):
    codes, scale = (t.to(device) for t in dsa_ext.quantize_indexer(make(3, 32)))
    slots = torch.zeros(3, dtype=I32, device=device)
    cache, whole = new_cache(2, 5, 32, device)
    dsa_ext.store_indexer_cache(codes[:0], scale[:0], cache, slots[:0])
    assert bool((whole == 0xAB).all())
    for shape in ((0, 5, 36), (5, 0, 36)):
        dsa_ext.store_indexer_cache(codes, scale, torch.empty(shape, dtype=U8, device=device), slots)


def test_pages_beyond_2_gib(device):
    """Two pages far apart; on the CPU the memory between them is never touched."""
    far, page_size = 2**31 + 16, 10
    whole = torch.empty(far + page_size * 132, dtype=U8, device=device)
    cache = whole.as_strided((2, page_size, 132), (far, 132, 1))
    codes, scale = (t.to(device) for t in dsa_ext.quantize_indexer(make(20, 128)))
    slots = torch.arange(20, dtype=I32, device=device)
    dsa_ext.store_indexer_cache(codes, scale, cache, slots)
    near, _ = new_cache(2, page_size, 128, device)
    dsa_ext.store_indexer_cache(codes, scale, near, slots)
    assert torch.equal(cache, near) and not bool((near == 0xAB).all())


# --- graphs, torch.library, torch.compile


@pytest.mark.gpu
def test_graph_without_synchronisation():
    x, slots = make(30, 128).cuda(), torch.arange(30, dtype=I32, device="cuda")
    cache, _ = new_cache(2, 20, 128, "cuda")

    def step():
        codes, scale = dsa_ext.quantize_indexer(x)
        dsa_ext.store_indexer_cache(codes, scale, cache, slots)

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    x.copy_(make(30, 128))
    slots.copy_(torch.randperm(40)[:30])
    cache.fill_(0xAB)
    graph.replay()
    want, whole = new_cache(2, 20, 128, "cuda")
    dsa_ext.store_indexer_cache(*dsa_ext.quantize_indexer(x), want, slots)
    assert torch.equal(cache, want)


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
def test_opcheck(scale_format, device):
    x = make(3, 4, 64).to(device)
    torch.library.opcheck(OPS.quantize_indexer.default, (x, scale_format), test_utils=OPCHECKS)
    codes, scale = dsa_ext.quantize_indexer(x[0])
    cache, _ = new_cache(2, 3, 64, device)
    slots = torch.arange(3, -1, -1, dtype=I32, device=device)
    torch.library.opcheck(OPS.store_indexer_cache.default, (codes, scale, cache, slots), test_utils=OPCHECKS)


BACKENDS = [("eager", "cpu"), ("aot_eager", "cpu"), pytest.param("inductor", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, device, dynamic):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def f(x, cache, slots):
        codes, scale = dsa_ext.quantize_indexer(x * 2)
        dsa_ext.store_indexer_cache(codes, scale, cache, slots)
        return scale * 2

    for n in (5, 9):
        x, slots = make(n, 64).to(device), torch.arange(n, dtype=I32, device=device)
        (cache, _), (want, _) = new_cache(2, 7, 64, device), new_cache(2, 7, 64, device)
        scale = f(x, cache, slots)
        codes, want_scale = dsa_ext.quantize_indexer(x * 2)
        dsa_ext.store_indexer_cache(codes, want_scale, want, slots)
        assert torch.equal(scale, want_scale * 2) and torch.equal(cache, want)


@pytest.mark.parametrize("where", ["cuda", "meta"])
def test_fake_and_meta_tensors(where):
    with FakeTensorMode():
        codes, scale = dsa_ext.quantize_indexer(torch.empty(6, 3, 64, dtype=BF16, device=where).transpose(0, 1))
        assert codes.shape == (3, 6, 64) and codes.is_contiguous() and codes.dtype == E4M3
        assert scale.shape == (3, 6) and scale.dtype == F32 and codes.device.type == scale.device.type == where
        codes, scale = dsa_ext.quantize_indexer(torch.empty(6, 64, dtype=BF16, device=where))
        cache = torch.empty(2, 5, 68, dtype=U8, device=where)
        dsa_ext.store_indexer_cache(codes, scale, cache, torch.empty(6, dtype=I32, device=where))
