"""pack_kv_cache, unpack_kv_cache and store_kv_cache on the CPU and on the GPU: every byte, in every layout."""

import pytest
import torch
from kv_cache_oracle import BYTES, E4M3, FORMATS, GROUP, HEAD_DIM, NOPE, packed_bytes, page_stride

import dsa_ext

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
PAGE_SIZES = (1, 2, 53, 61, 64, 69, 256)
VALUES = ("normal", "tiny", "huge", "wide", "bits")
BF16 = torch.bfloat16


def make_kv(n, format, values="normal", device="cpu"):
    d = HEAD_DIM[format]
    if values == "bits":  # any bfloat16, NaN and Inf among them
        return torch.randint(-(2**15), 2**15, (n, d), dtype=torch.int16).view(BF16).to(device)
    x = torch.randn(n, d)
    if values == "tiny":
        x = x * 2.0**-124  # subnormal in part
    elif values == "huge":
        x = (x * 1e38).clamp(-3e38, 3e38)
    elif values == "wide":  # each token has its own magnitude
        x = x * torch.exp2(torch.randint(-30, 30, (n, 1)).float())
    return x.to(BF16).to(device)


def whole_pages(packed):
    """All bytes of a cache that pack_kv_cache made, [pages, stride]."""
    return packed.as_strided((packed.shape[0], packed.stride(0)), (packed.stride(0), 1))


def cache_like(packed, lead=0, gap=0, token_gap=0):
    """A cache of packed's shape, `gap` bytes further between pages, `token_gap` between tokens, within a larger tensor
    of random bytes that begins `lead` bytes earlier: (the cache, that tensor)."""
    *outer, token = packed.shape
    strides = [token + token_gap, 1]
    if len(outer) == 2:
        base = page_stride("v32" if token == 656 else "v4", outer[1])
        strides.insert(0, base + gap + outer[1] * token_gap)
    whole = torch.randint(256, (lead + outer[0] * strides[0] + 8,)).byte().to(packed.device)
    return whole.as_strided(packed.shape, strides, lead), whole


def equal_values(a, b):
    """The same bits, except that any NaN equals any other."""
    same = (a.view(torch.int16) == b.view(torch.int16)) | (a.isnan() & b.isnan())
    return a.shape == b.shape and a.dtype == b.dtype == BF16 and bool(same.all())


def defined_values(rows, format, page_size=None):
    """unpack's definition in float64, for the bytes of v32 tokens or of whole v4 pages, on the CPU."""
    if format == "v32":
        codes, scale, rope = rows.split([512, 16, 128], -1)
        scale = scale.contiguous().view(torch.float32).double()
    else:
        tokens, exponents, _ = rows.split([page_size * 576, page_size * 8, rows.shape[1] - page_size * 584], 1)
        codes, rope = tokens.unflatten(1, (page_size, 576)).split([448, 128], -1)
        exponents = exponents.unflatten(1, (page_size, 8))[..., :7].double()
        scale = torch.where(exponents == 255, torch.nan, torch.exp2(exponents - 127))
    magnitude = torch.cat([E4M3, torch.tensor([torch.nan])])[(codes & 127).long()]
    value = torch.where(codes >= 128, -magnitude, magnitude).unflatten(-1, (-1, GROUP[format]))
    nope = (value * scale[..., None]).float().to(BF16).flatten(-2)
    return torch.cat([nope, rope.contiguous().view(BF16)], -1)


# --- the bytes


@pytest.mark.parametrize("format, scale_format", FORMATS)
@pytest.mark.parametrize("values", VALUES)
def test_every_byte(format, scale_format, values, device):
    kv = make_kv(70, format, values)
    packed = dsa_ext.pack_kv_cache(kv.to(device), format=format, page_size=32, scale_format=scale_format)
    assert torch.equal(whole_pages(packed).cpu(), packed_bytes(kv, format, 32, scale_format))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("format", ["v32", "v4"])
@pytest.mark.parametrize("n", [1, 61, 64, 138])
def test_pages(format, page_size, n, device):
    kv = make_kv(n, format)
    packed = dsa_ext.pack_kv_cache(kv.to(device), format=format, page_size=page_size)
    pages, stride = -(-n // page_size), page_stride(format, page_size)
    assert packed.shape == (pages, page_size, BYTES[format]) and packed.dtype == torch.uint8
    assert packed.stride() == (stride, BYTES[format], 1) and packed.device.type == device
    assert torch.equal(whole_pages(packed).cpu(), packed_bytes(kv, format, page_size, "ue8m0"))
    values = dsa_ext.unpack_kv_cache(packed, format=format)
    assert values.shape == (pages, page_size, HEAD_DIM[format]) and values.is_contiguous()
    assert equal_values(values.cpu(), dsa_ext.reference.unpack_kv_cache(packed.cpu(), format=format))
    assert bool((values.flatten(0, 1)[n:] == 0).all())


def test_without_pages(device):
    kv = make_kv(77, "v32", device=device)
    packed = dsa_ext.pack_kv_cache(kv)
    assert packed.shape == (77, 656) and packed.is_contiguous()
    paged = dsa_ext.pack_kv_cache(kv, page_size=7)
    assert torch.equal(packed, paged.flatten(0, 1))
    assert equal_values(dsa_ext.unpack_kv_cache(packed), dsa_ext.unpack_kv_cache(paged).flatten(0, 1))


@pytest.mark.parametrize("format, scale_format", FORMATS)
def test_every_bfloat16(format, scale_format, device):
    """Neighbours of similar magnitude share a group."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(BF16)
    padding = -len(numbers) % NOPE[format]
    nope = torch.cat([numbers, numbers[:padding]]).view(-1, NOPE[format])
    kv = torch.cat([nope, nope[:, :64]], 1)
    packed = dsa_ext.pack_kv_cache(kv.to(device), format=format, page_size=9, scale_format=scale_format)
    assert torch.equal(whole_pages(packed).cpu(), packed_bytes(kv, format, 9, scale_format))


# --- scales


def scales_of(kv, format, scale_format="ue8m0"):
    """[n, groups] float64, read back from a cache with one token a page."""
    packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=1, scale_format=scale_format).cpu().flatten(1)
    if format == "v32":
        return packed[:, 512:528].contiguous().view(torch.float32).double()
    return torch.exp2(packed[:, 576:583].double() - 127)


def with_amax(amax, format, dtype, device):
    """A token for each number: one element has this magnitude, in a group and with a sign that vary; the rest less."""
    kv = (amax[:, None] / 512 * torch.rand(len(amax), HEAD_DIM[format])).to(dtype)
    group = torch.arange(len(amax)) % (NOPE[format] // GROUP[format])
    kv[torch.arange(len(amax)), group * GROUP[format] + 37] = (amax * (1 - 2 * (torch.arange(len(amax)) % 2))).to(dtype)
    return kv.to(device), group


@pytest.mark.parametrize("format", ["v32", "v4"])
def test_power_of_two_scales_at_their_edges(format, device):
    """448 * 2^k is the most that scale 2^k takes; the next bfloat16, and the next float32, needs 2^(k+1)."""
    k = torch.arange(-13, 120)
    amax = 448 * torch.exp2(k.double())
    kv, group = with_amax(amax.float(), format, BF16, device)
    line = torch.arange(len(k))
    assert torch.equal(scales_of(kv, format)[line, group], torch.exp2(k.double()))
    assert scales_of(kv, format)[0, 1] == 2.0**-13
    above = (amax.float().to(BF16).view(torch.int16) + 1).view(BF16)
    kv, _ = with_amax(above.float(), format, BF16, device)
    assert torch.equal(scales_of(kv, format)[line, group], torch.exp2(k.double() + 1))
    if device == "cpu":
        kv, _ = with_amax(amax.float().nextafter(torch.tensor(torch.inf)), format, torch.float32, device)
        assert torch.equal(scales_of(kv, format)[line, group], torch.exp2(k.double() + 1))


@pytest.mark.parametrize("format, scale_format", FORMATS)
def test_scales_at_the_ends_of_the_range(format, scale_format, device):
    amax = torch.tensor([0.0, 2.0**-133, 1e-30, 0.04, torch.finfo(BF16).max])
    kv, group = with_amax(amax, format, BF16, device)
    got = scales_of(kv, format, scale_format)[torch.arange(len(amax)), group]
    least = 2.0**-13 if scale_format == "ue8m0" else torch.tensor(1e-4).double().item()
    greatest = 2.0**120 if scale_format == "ue8m0" else (amax[-1] / 448).double().item()
    assert got.tolist() == [least] * 4 + [greatest]
    packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=1, scale_format=scale_format)
    values = dsa_ext.unpack_kv_cache(packed, format=format)[:, 0].cpu()
    infinite = values.isinf()
    if scale_format == "ue8m0":  # 255 * 2^120 becomes 256 * 2^120
        assert bool(infinite[4, group[4] * GROUP[format] + 37])
        infinite[4, group[4] * GROUP[format] + 37] = False
    assert not bool(infinite.any() or values.isnan().any())


@pytest.mark.parametrize("format, scale_format", FORMATS)
@pytest.mark.parametrize("values", ["normal", "tiny", "huge", "wide"])
def test_round_trip(format, scale_format, values, device):
    kv = make_kv(100, format, values, device)
    packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=64, scale_format=scale_format)
    got = dsa_ext.unpack_kv_cache(packed, format=format).flatten(0, 1)[:100]
    nope = NOPE[format]
    assert torch.equal(got[:, nope:].view(torch.int16), kv[:, nope:].view(torch.int16))
    got, x = (t[:, :nope].double().cpu().unflatten(1, (-1, GROUP[format])) for t in (got, kv))
    scale = scales_of(kv, format, scale_format)[..., None]
    # Half of a unit in the last place of e4m3, whose smallest is 2^-9, and of bfloat16; and an ulp of the fp32 scale.
    assert bool(((got - x).abs() <= x.abs() * (2.0**-4 + 2.0**-8 + 2.0**-8) + scale * 2.0**-10).all())


# --- what is not finite


@pytest.mark.parametrize("format, scale_format", FORMATS)
def test_not_finite_stays_alone(format, scale_format, device):
    kv = make_kv(12, format)
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf]).to(BF16).repeat(4)
    places = (torch.arange(12) * 97) % NOPE[format]
    dirty = kv.clone()
    dirty[torch.arange(12), places] = bad
    dirty[:, -3:] = torch.tensor([torch.nan, torch.inf, -torch.inf]).to(BF16)
    kv[torch.arange(12), places] = 0  # as if it were not there
    kv[:, -3:] = dirty[:, -3:]

    def round_trip(x):
        packed = dsa_ext.pack_kv_cache(x.to(device), format=format, page_size=5, scale_format=scale_format)
        return dsa_ext.unpack_kv_cache(packed, format=format).flatten(0, 1)[:12].cpu()

    got, want = round_trip(dirty), round_trip(kv)
    assert bool(got[torch.arange(12), places].isnan().all())
    want[torch.arange(12), places] = torch.nan
    assert equal_values(got, want)
    assert torch.equal(got[:, NOPE[format] :].view(torch.int16), dirty[:, NOPE[format] :].view(torch.int16))


# --- unpack


@pytest.mark.parametrize("scale", ["random", "subnormal", "largest", "special"])
def test_unpack_any_float32_scale(scale, device):
    packed = torch.randint(256, (256, 656)).byte()
    packed[:, :512] = torch.arange(512) % 256
    bits = {
        "random": torch.randint(INT_MIN, INT_MAX, (256, 4)),
        "subnormal": torch.randint(1, 2**23, (256, 4)),
        "largest": torch.randint(0x76000000, 0x7F800000, (256, 4)),
        "special": torch.tensor([0x7F800000, 0x7FC00000, 0, INT_MIN]).expand(256, 4),
    }[scale]
    packed[:, 512:528] = bits.int().contiguous().view(torch.uint8)
    got = dsa_ext.unpack_kv_cache(packed.to(device)).cpu()
    assert equal_values(got, defined_values(packed, "v32"))


@pytest.mark.parametrize("page_size", [1, 53, 64, 256])
def test_unpack_any_byte_of_v4(page_size, device):
    stride = page_stride("v4", page_size)
    whole = torch.randint(256, (3, stride)).byte()
    cache = whole.to(device).as_strided((3, page_size, 584), (stride, 584, 1))
    got = dsa_ext.unpack_kv_cache(cache, format="v4").cpu()
    assert equal_values(got, defined_values(whole, "v4", page_size))


# --- strides


@pytest.mark.parametrize("format", ["v32", "v4"])
@pytest.mark.parametrize("lead, trail", [(0, 64), (8, 8), (1, 0), (3, 4)])
def test_strided_kv(format, lead, trail, device):
    kv = make_kv(40, format, device=device)
    wide = torch.full((80, lead + kv.shape[1] + trail), torch.nan, dtype=BF16, device=device)
    view = wide[::2, lead : lead + kv.shape[1]]
    view.copy_(kv)
    want = dsa_ext.pack_kv_cache(kv, format=format, page_size=16)
    assert torch.equal(dsa_ext.pack_kv_cache(view, format=format, page_size=16), want)
    one = dsa_ext.pack_kv_cache(kv[:1].expand(40, -1), format=format, page_size=16)
    assert torch.equal(one, dsa_ext.pack_kv_cache(kv[:1].repeat(40, 1), format=format, page_size=16))
    cache = torch.zeros_like(want)
    dsa_ext.store_kv_cache(view, cache, torch.arange(40, dtype=torch.int32, device=device), format=format)
    assert torch.equal(cache, want)


LAYOUTS = [(0, 0), (16, 32), (0, 8), (1, 0), (3, 5)]  # the last three without 16-byte alignment


@pytest.mark.parametrize("format, page_size", [("v32", None), ("v32", 1), ("v32", 13), ("v4", 1), ("v4", 13)])
@pytest.mark.parametrize("lead, gap", LAYOUTS)
def test_strided_caches(format, page_size, lead, gap, device):
    kv = make_kv(52, format, device=device)
    packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=page_size)
    for token_gap in (0, 16, 3) if format == "v32" else (0,):
        cache, whole = cache_like(packed, lead, gap, token_gap)
        want = whole.clone()
        want.as_strided(cache.shape, cache.stride(), lead).copy_(packed)
        dsa_ext.store_kv_cache(kv, cache, torch.arange(52, dtype=torch.int32, device=device), format=format)
        assert torch.equal(whole, want)  # and nothing in between
        got = dsa_ext.unpack_kv_cache(cache, format=format)
        assert equal_values(got, dsa_ext.unpack_kv_cache(packed, format=format))


def test_pages_without_padding(device):
    """A copy of a v4 cache that has lost its gaps, as clone() makes it, is the same cache."""
    packed = dsa_ext.pack_kv_cache(make_kv(100, "v4", device=device), format="v4", page_size=53)
    dense = packed.contiguous()
    assert dense.stride(0) == 53 * 584 != packed.stride(0)
    assert equal_values(dsa_ext.unpack_kv_cache(dense, format="v4"), dsa_ext.unpack_kv_cache(packed, format="v4"))


@pytest.mark.parametrize("format, page_size", [("v32", 100), ("v4", 10)])
def test_pages_beyond_2_gib(format, page_size, device):
    """Two pages far apart; on the CPU the memory between them is never touched."""
    far = 2**31 + 576 * 16
    n = 2 * page_size
    whole = torch.empty(far + page_stride(format, page_size), dtype=torch.uint8, device=device)
    cache = whole.as_strided((2, page_size, BYTES[format]), (far, BYTES[format], 1))
    kv = make_kv(n, format, device=device)
    dsa_ext.store_kv_cache(kv, cache, torch.arange(n, dtype=torch.int32, device=device), format=format)
    want = dsa_ext.pack_kv_cache(kv, format=format, page_size=page_size)
    assert torch.equal(cache, want)
    assert equal_values(dsa_ext.unpack_kv_cache(cache, format=format), dsa_ext.unpack_kv_cache(want, format=format))
