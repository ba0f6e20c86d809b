"""The FP8 KV caches in plain torch, written to be read."""

import math

import torch
from torch import Tensor

from .. import _checks_cache

_E4M3_MAX = 448.0
_MIN_SCALE = 1e-4
_MANTISSA = 2**23 - 1  # the bits of a float32's mantissa

# Dimensions that are quantised and dimensions that share a scale; the other 64 of a token are the RoPE part.
_NOPE = {"v32": 512, "v4": 448}
_GROUP = {"v32": 128, "v4": 64}


def pack_kv_cache(
    kv: Tensor, *, format: str = "v32", page_size: int | None = None, scale_format: str = "ue8m0"
) -> Tensor:
    """As `dsa_ext.pack_kv_cache`, in plain torch: on every device, for every float dtype."""
    form = _checks_cache.check_pack_kv_cache("reference.pack_kv_cache", kv, format, page_size, scale_format, plain=True)
    n = len(kv)
    if page_size is None:
        packed = kv.new_zeros((n, form.token_bytes), dtype=torch.uint8)
    else:
        pages, stride = -(-n // page_size), form.page_stride(page_size)
        whole = kv.new_zeros((pages, stride), dtype=torch.uint8)
        packed = whole.as_strided((pages, page_size, form.token_bytes), (stride, form.token_bytes, 1))
    _write(kv, packed, torch.arange(n, device=kv.device), format, scale_format)
    return packed


def unpack_kv_cache(packed: Tensor, *, format: str = "v32") -> Tensor:
    """As `dsa_ext.unpack_kv_cache`, in plain torch: on every device."""
    _checks_cache.check_unpack_kv_cache("reference.unpack_kv_cache", packed, format, plain=True)
    codes, scale, rope = _fields(packed, format)
    nope = codes.float().unflatten(-1, (-1, _GROUP[format])) * scale[..., None]
    return torch.cat([nope.flatten(-2).bfloat16(), rope], -1)


def store_kv_cache(
    kv: Tensor, kv_cache: Tensor, slots: Tensor, *, format: str = "v32", scale_format: str = "ue8m0"
) -> None:
    """As `dsa_ext.store_kv_cache`, in plain torch: on every device, for every float dtype of kv."""
    op = "reference.store_kv_cache"
    _checks_cache.check_store_kv_cache(op, kv, kv_cache, slots, format, scale_format, plain=True)
    valid = (slots >= 0) & (slots < math.prod(kv_cache.shape[:-1]))
    _write(kv[valid], kv_cache, slots[valid].long(), format, scale_format)


def _quantise(x: Tensor, format: str, scale_format: str) -> tuple[Tensor, Tensor]:
    """[n, dims] -> codes [n, dims] e4m3, scale [n, groups] float32. What is not finite becomes NaN and takes no part in
    the scale, so that its neighbours are what they would be without it."""
    x = x.float().unflatten(1, (-1, _GROUP[format]))
    finite = x.isfinite()
    amax = x.abs().where(finite, 0).amax(-1, keepdim=True)
    scale = (amax / torch.full_like(amax, _E4M3_MAX)).clamp(min=_MIN_SCALE)  # (CUDA multiplies by 1 / a number)
    if scale_format == "ue8m0":  # up to a power of two: any bit of the mantissa carries into the exponent
        scale = ((scale.view(torch.int32) + _MANTISSA) & ~_MANTISSA).view(torch.float32)
    codes = (x / scale).clamp(-_E4M3_MAX, _E4M3_MAX).where(finite, math.nan).to(torch.float8_e4m3fn)
    return codes.flatten(1), scale.squeeze(-1)


def _encode(kv: Tensor, format: str, scale_format: str) -> list[Tensor]:
    """The bytes of n tokens, as rows for each of the _regions of a cache."""
    nope, rope = kv.split([_NOPE[format], kv.shape[1] - _NOPE[format]], 1)
    codes, scale = _quantise(nope, format, scale_format)
    codes, rope = codes.view(torch.uint8), rope.bfloat16().contiguous().view(torch.uint8)
    if format == "v32":
        return [torch.cat([codes, scale.view(torch.uint8), rope], 1)]
    exponents = (scale.view(torch.int32) >> 23).to(torch.uint8)
    return [torch.cat([codes, rope], 1), torch.cat([exponents, torch.zeros_like(exponents[:, :1])], 1)]


def _regions(cache: Tensor, format: str) -> list[Tensor]:
    """Views of a cache, [pages, page_size, bytes] each: v32's tokens, or v4's values and its scales behind them."""
    if cache.dim() == 2:
        cache = cache[None]
    if format == "v32":
        return [cache]
    pages, page_size, token_bytes = cache.shape
    flat = cache.view(pages, page_size * token_bytes)
    values, scales = flat.split([page_size * 576, page_size * 8], 1)
    return [values.view(pages, page_size, 576), scales.view(pages, page_size, 8)]


def _fields(cache: Tensor, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes in e4m3, scales in float32, RoPE part in bfloat16, with the cache's leading dimensions."""
    regions = _regions(cache, format)
    if format == "v32":
        codes, scale, rope = regions[0].split([512, 16, 128], -1)
        scale = scale.contiguous().view(torch.float32)
    else:
        codes, rope = regions[0].split([448, 128], -1)
        scale = regions[1][..., :7].view(torch.float8_e8m0fnu).float()
    fields = codes.view(torch.float8_e4m3fn), scale, rope.contiguous().view(torch.bfloat16)
    return tuple(f[0] for f in fields) if cache.dim() == 2 else fields


def _write(kv: Tensor, cache: Tensor, slots: Tensor, format: str, scale_format: str) -> None:
    for region, rows in zip(_regions(cache, format), _encode(kv, format, scale_format), strict=True):
        page_size = max(1, region.shape[1])
        region[slots // page_size, slots % page_size] = rows
