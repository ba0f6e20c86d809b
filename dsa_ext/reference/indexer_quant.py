"""The lightning indexer's FP8 queries and keys in plain torch, written to be read.

Every operation is a float32 operation of its own, in the order that the kernels keep to: results are the same bits on
every device.
"""

import math

import torch
from torch import Tensor

from .. import _checks_indexer_quant as _checks

_E4M3_MAX = 448.0
_MIN_AMAX = 1e-4
# Of float32: bits of the mantissa, the bits below that of 1.75, and the exponent's place.
_MANTISSA, _BELOW_1_75, _EXPONENT = 2**23 - 1, 2**21 - 1, 23


def quantize_indexer(x: Tensor, *, scale_format: str = "ue8m0") -> tuple[Tensor, Tensor]:
    """As `dsa_ext.quantize_indexer`, in plain torch: on every device, for every float dtype."""
    _checks.check_quantize_indexer("reference.quantize_indexer", x, scale_format, plain=True)
    return _quantise(x.float(), scale_format)


def prepare_indexer(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    rope: str = "half",
    hadamard: bool = True,
    scale_format: str = "ue8m0",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `dsa_ext.prepare_indexer`, in plain torch: on every device, for every float dtype of q, k and weights."""
    _checks.check_prepare_indexer(
        "reference.prepare_indexer", q, k, weights, cos, sin, rope, hadamard, scale_format, plain=True
    )
    q, k = _rope(q.float(), cos[:, None], sin[:, None], rope), _rope(k.float(), cos, sin, rope)
    if hadamard:
        q, k = _hadamard(q), _hadamard(k)
    (q_codes, q_scale), (k_codes, k_scale) = _quantise(q, scale_format), _quantise(k, scale_format)
    heads, d = q.shape[1:]
    factor = torch.full_like(q_scale, 1 / math.sqrt(heads * d) if heads else 0.0)  # float32, rounded once
    return q_codes, k_codes, k_scale, weights.float() * factor * q_scale


def store_indexer_cache(k: Tensor, k_scale: Tensor, k_cache: Tensor, slots: Tensor) -> None:
    """As `dsa_ext.store_indexer_cache`, in plain torch: on every device."""
    _checks.check_store_indexer_cache("reference.store_indexer_cache", k, k_scale, k_cache, slots, plain=True)
    pages, page_size, token_bytes = k_cache.shape
    if pages * page_size == 0:
        return
    valid = (slots >= 0) & (slots < pages * page_size)
    slots = slots[valid].long()
    page, place = slots // page_size, slots % page_size
    codes, scales = k_cache.flatten(1).split([page_size * (token_bytes - 4), page_size * 4], 1)
    codes.unflatten(1, (page_size, -1))[page, place] = k.contiguous().view(torch.uint8)[valid]
    scales.unflatten(1, (page_size, 4))[page, place] = (
        k_scale.contiguous().view(torch.uint8).unflatten(0, (-1, 4))[valid]
    )


def _quantise(x: Tensor, scale_format: str) -> tuple[Tensor, Tensor]:
    """[..., d] float32 -> codes in e4m3, scale [...]. What is not finite becomes NaN and takes no part in the scale, so
    that its neighbours are what they would be without it."""
    finite = x.isfinite()
    amax = x.abs().where(finite, 0).amax(-1, keepdim=True).clamp(min=_MIN_AMAX)
    if scale_format == "ue8m0":
        # Up to a power of two: the exponent of amax, less that of 448 = 1.75 * 2^8, and one more where amax's mantissa
        # is above 1.75, which the sum carries into the exponent.
        bits = (amax.view(torch.int32) + _BELOW_1_75) & ~_MANTISSA
        scale = (bits - (8 << _EXPONENT)).view(torch.float32)
    else:
        scale = amax / torch.full_like(amax, _E4M3_MAX)  # (by a number, CUDA multiplies by its reciprocal)
    codes = (x / scale).clamp(-_E4M3_MAX, _E4M3_MAX).where(finite, math.nan).to(torch.float8_e4m3fn)
    return codes.contiguous(), scale.squeeze(-1).contiguous()


def _rope(x: Tensor, cos: Tensor, sin: Tensor, form: str) -> Tensor:
    """Rotates the first 64 dimensions of x, [..., 128] float32, in pairs."""
    rotated, rest = x.split([2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
    if form == "half":
        a, b = rotated.chunk(2, -1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    else:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return torch.cat([rotated, rest], -1)


def _hadamard(x: Tensor) -> Tensor:
    """x times Sylvester's matrix, H[i, j] = (-1)^(number of ones in i & j), and d^-0.5. float32 [..., d]."""
    d = x.shape[-1]
    distance = 1
    while distance < d:
        a, b = x.unflatten(-1, (-1, 2, distance)).unbind(-2)
        x = torch.stack([a + b, a - b], -2).flatten(-3)
        distance *= 2
    return x * torch.full_like(x, d**-0.5)
