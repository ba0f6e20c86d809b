"""The KV cache's functions: slots, empty inputs, dtypes, torch.library, and every call that is refused."""

import pytest
import torch
from kv_cache_oracle import BYTES, FORMATS, HEAD_DIM, page_stride, place_token, token_bytes
from test_kv_cache import BF16, INT_MAX, INT_MIN, PAGE_SIZES, equal_values, make_kv, whole_pages
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext

F16, F32, F64, I32, U8 = (
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.uint8,
)
OPS = torch.ops.dsa_ext
e = torch.empty


def new_cache(format, pages, page_size, device="cpu", fill=0xAB):
    whole = torch.full((pages, page_stride(format, page_size)), fill, dtype=U8, device=device)
    return whole.as_strided((pages, page_size, BYTES[format]), (whole.stride(0), BYTES[format], 1))


# --- slots


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("format, scale_format", FORMATS)
def test_slots_in_any_order_and_out_of_range(format, scale_format, page_size, device):
    """Tokens go where their slots are, the others nowhere, and no other byte changes."""
    pages = 100 // page_size + 2
    total, stride = pages * page_size, page_stride(format, page_size)
    kv = make_kv(90, format)
    slots = torch.randperm(total)[:90].int()
    slots[3::5] = torch.tensor([-1, INT_MIN, total, INT_MAX, -total, total + 1]).int().repeat(3)
    slots[0], slots[1] = total - 1, 0
    slots[2:][(slots[2:] == 0) | (slots[2:] == total - 1)] = -7

    want, fields = torch.full((pages * stride,), 0xAB, dtype=U8), token_bytes(kv, format, scale_format)
    for i, slot in enumerate(slots.tolist()):
        if 0 <= slot < total:
            place_token(want, slot // page_size * stride, page_size, slot % page_size, fields, i)
    cache = new_cache(format, pages, page_size, device)
    result = dsa_ext.store_kv_cache(kv.to(device), cache, slots.to(device), format=format, scale_format=scale_format)
    assert result is None
    assert torch.equal(whole_pages(cache).flatten().cpu(), want)


def test_slots_of_a_cache_without_pages(device):
    kv = make_kv(5, "v32", device=device)
    cache = torch.full((9, 656), 0xAB, dtype=U8, device=device)
    slots = torch.tensor([8, 9, 0, -1, 3], dtype=I32, device=device)
    dsa_ext.store_kv_cache(kv, cache, slots)
    packed = dsa_ext.pack_kv_cache(kv)
    assert torch.equal(cache[[8, 0, 3]], packed[[0, 2, 4]])
    assert bool((cache[[1, 2, 4, 5, 6, 7]] == 0xAB).all())


@pytest.mark.parametrize("format", ["v32", "v4"])
def test_strided_slots(format, device):
    kv = make_kv(20, format, device=device)
    cache = new_cache(format, 3, 7, device, fill=0)
    slots = torch.arange(20, dtype=I32, device=device).repeat_interleave(2)[::2]
    assert not slots.is_contiguous()
    dsa_ext.store_kv_cache(kv, cache, slots, format=format)
    assert torch.equal(cache, dsa_ext.pack_kv_cache(kv, format=format, page_size=7))


def test_one_slot_for_all(device):
    """One of the tokens must come out where all are the same, whatever the order of the writes."""
    kv = make_kv(1, "v4", device=device).expand(200, -1)
    cache = new_cache("v4", 2, 5, device, fill=0)
    dsa_ext.store_kv_cache(kv, cache, torch.full((200,), 6, dtype=I32, device=device), format="v4")
    values = dsa_ext.unpack_kv_cache(cache, format="v4").flatten(0, 1)
    alone = dsa_ext.pack_kv_cache(kv[:1], format="v4", page_size=1)
    assert equal_values(values[6:7], dsa_ext.unpack_kv_cache(alone, format="v4")[0])


# --- empty inputs


@pytest.mark.parametrize("format", ["v32", "v4"])
def test_empty(format, device):
    kv = make_kv(0, format, device=device)
    packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=5)
    assert packed.shape == (0, 5, BYTES[format]) and packed.stride(0) == page_stride(format, 5)
    assert dsa_ext.unpack_kv_cache(packed, format=format).shape == (0, 5, HEAD_DIM[format])
    cache = new_cache(format, 2, 5, device)
    slots = torch.empty(0, dtype=I32, device=device)
    dsa_ext.store_kv_cache(kv, cache, slots, format=format)
    assert bool((cache == 0xAB).all())
    zeros = torch.zeros(3, dtype=I32, device=device)
    for shape in ((0, 5, BYTES[format]), (5, 0, BYTES[format])):
        nothing = torch.empty(shape, dtype=U8, device=device)
        dsa_ext.store_kv_cache(make_kv(3, format, device=device), nothing, zeros, format=format)
        assert dsa_ext.unpack_kv_cache(nothing, format=format).shape == (*shape[:2], HEAD_DIM[format])
    if format == "v32":
        assert dsa_ext.pack_kv_cache(kv).shape == (0, 656)
        assert dsa_ext.unpack_kv_cache(dsa_ext.pack_kv_cache(kv)).shape == (0, 576)


# --- what only the CPU takes


@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16])
@pytest.mark.parametrize("format", ["v32", "v4"])
def test_cpu_dtypes(dtype, format):
    kv = (torch.randn(20, HEAD_DIM[format], dtype=F64) * 3).to(dtype)
    packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=6)
    fields = token_bytes(kv.float(), format, "ue8m0")
    cache = torch.zeros_like(packed)
    dsa_ext.store_kv_cache(kv, cache, torch.arange(20, dtype=I32), format=format)
    want, stride = torch.zeros(whole_pages(packed).numel(), dtype=U8), packed.stride(0)
    for i in range(20):
        place_token(want, i // 6 * stride, 6, i % 6, fields, i)
    assert torch.equal(whole_pages(packed).flatten(), want)
    assert torch.equal(cache, packed)


# --- the GPU and the CPU


@pytest.mark.gpu
@pytest.mark.parametrize("format, scale_format", FORMATS)
@pytest.mark.parametrize("values", ["normal", "tiny", "huge", "wide", "bits"])
def test_same_bits_on_both_devices(format, scale_format, values):
    kv = make_kv(5000, format, values)
    options = {"format": format, "page_size": 64, "scale_format": scale_format}
    packed = dsa_ext.pack_kv_cache(kv, **options)
    on_gpu = dsa_ext.pack_kv_cache(kv.cuda(), **options)
    assert torch.equal(whole_pages(on_gpu).cpu(), whole_pages(packed))
    assert torch.equal(dsa_ext.reference.pack_kv_cache(kv.cuda(), **options), on_gpu)
    unpacked = dsa_ext.unpack_kv_cache(on_gpu, format=format)
    assert equal_values(unpacked.cpu(), dsa_ext.unpack_kv_cache(packed, format=format))
    assert equal_values(unpacked, dsa_ext.reference.unpack_kv_cache(on_gpu, format=format))


@pytest.mark.gpu
@pytest.mark.parametrize("format", ["v32", "v4"])
def test_graph_without_synchronisation(format):
    kv, slots = make_kv(30, format, device="cuda"), torch.arange(30, dtype=I32, device="cuda")
    cache = new_cache(format, 2, 20, "cuda", fill=0)

    def step():
        dsa_ext.store_kv_cache(kv, cache, slots, format=format)
        packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=20)
        return packed, dsa_ext.unpack_kv_cache(cache, format=format)

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed, values = step()
    kv.copy_(make_kv(30, format))
    slots.copy_(torch.randperm(40)[:30])
    cache.zero_()
    graph.replay()
    assert equal_values(
        values.flatten(0, 1)[slots.long()], dsa_ext.unpack_kv_cache(packed, format=format).flatten(0, 1)[:30]
    )


@pytest.mark.gpu
@pytest.mark.parametrize("format", ["v32", "v4"])
def test_more_than_2_gib(format, free_memory):
    n = 2**31 // BYTES[format] + 3000
    kv = torch.randn(n, HEAD_DIM[format], dtype=BF16, device="cuda")
    packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=64)
    values = dsa_ext.unpack_kv_cache(packed, format=format).flatten(0, 1)
    some = torch.cat([torch.arange(100), torch.arange(n - 3000, n)]).cuda()
    few = dsa_ext.pack_kv_cache(kv[some], format=format, page_size=1)
    assert equal_values(values[some], dsa_ext.unpack_kv_cache(few, format=format)[:, 0])
    packed.zero_()
    dsa_ext.store_kv_cache(kv[some], packed, some.int(), format=format)
    stored = dsa_ext.unpack_kv_cache(packed, format=format).flatten(0, 1)
    assert equal_values(stored[some], values[some])


# --- torch.library, torch.compile


@pytest.mark.parametrize("format, scale_format", FORMATS)
@pytest.mark.parametrize("page_size", [None, 1, 7])
def test_opcheck(format, scale_format, page_size, device):
    if page_size is None and format == "v4":
        pytest.skip("v4 exists in pages only")
    kv = make_kv(12, format, device=device)
    torch.library.opcheck(OPS.pack_kv_cache.default, (kv, format, page_size, scale_format))
    cache = dsa_ext.pack_kv_cache(kv, format=format, page_size=page_size)
    torch.library.opcheck(OPS.unpack_kv_cache.default, (cache, format))
    slots = torch.arange(11, -1, -1, dtype=I32, device=device)
    torch.library.opcheck(OPS.store_kv_cache.default, (kv, cache, slots, format, scale_format))


BACKENDS = [("eager", "cpu"), ("aot_eager", "cpu"), pytest.param("inductor", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("format", ["v32", "v4"])
def test_compile(backend, device, dynamic, format):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def f(kv, cache, slots):
        dsa_ext.store_kv_cache(kv * 2, cache, slots, format=format)
        packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=7)
        return dsa_ext.unpack_kv_cache(cache, format=format) * 2, dsa_ext.unpack_kv_cache(packed, format=format)

    for n in (5, 9):
        kv, cache = make_kv(n, format, device=device), new_cache(format, 2, 7, device, fill=0)
        slots = torch.arange(n, dtype=I32, device=device)
        stored, packed = f(kv, cache, slots)
        want = dsa_ext.pack_kv_cache(kv * 2, format=format, page_size=7)
        assert torch.equal(cache[: len(want)], want)
        assert equal_values(stored, dsa_ext.unpack_kv_cache(cache, format=format) * 2)
        want = dsa_ext.pack_kv_cache(kv, format=format, page_size=7)
        assert equal_values(packed, dsa_ext.unpack_kv_cache(want, format=format))


@pytest.mark.parametrize("where", ["cuda", "meta"])
@pytest.mark.parametrize("format", ["v32", "v4"])
def test_fake_and_meta_tensors(where, format):
    with FakeTensorMode():
        kv = e(20, HEAD_DIM[format], dtype=BF16, device=where)
        packed = dsa_ext.pack_kv_cache(kv, format=format, page_size=7)
        assert packed.shape == (3, 7, BYTES[format]) and packed.stride(0) == page_stride(format, 7)
        values = dsa_ext.unpack_kv_cache(packed, format=format)
        assert values.shape == (3, 7, HEAD_DIM[format]) and values.dtype == BF16
        assert packed.device.type == values.device.type == where
        dsa_ext.store_kv_cache(kv, packed, e(20, dtype=I32, device=where), format=format)
