"""What feeds the lightning indexer: FP8 queries and keys, and the paged cache of keys."""

import torch
from torch import Tensor

from . import _checks, _checks_indexer_quant, _registration, _registration_indexer_quant  # noqa: F401

_quantize_indexer = torch.ops.dsa_ext.quantize_indexer.default
_prepare_indexer = torch.ops.dsa_ext.prepare_indexer.default
_store_indexer_cache = torch.ops.dsa_ext.store_indexer_cache.default


def quantize_indexer(x: Tensor, *, scale_format: str = "ue8m0") -> tuple[Tensor, Tensor]:
    """FP8 (e4m3) codes and a scale for each vector, the last dimension of x::

        amax  = max(max |x|, 1e-4)
        scale = 2^ceil(log2(amax / 448))     scale_format "ue8m0"
                amax / 448                   scale_format "fp32"
        code  = e4m3(x / scale)              to the nearest, ties to even, |code| <= 448

    in float32, each division rounded to the nearest. "ue8m0" is worked out from the bits of amax: its exponent less 8,
    plus one if its mantissa exceeds 1.75 (448 = 1.75 * 2^8); the division by such a scale is exact. Results are the
    same bits on every device.

    An element that is NaN or infinite becomes the code for NaN. It takes no part in amax: the other elements of its
    vector are what they would be without it.

    Args:
        x: [..., d] with d = 32, 64 or 128.
        scale_format: "ue8m0", DeepSeek-V3.2's, or "fp32", the more precise.

    Returns:
        codes: float8_e4m3fn, of x's shape, contiguous.
        scale: float32 [...]. The vector is about code * scale.

    On CUDA (runs on the current stream, does not synchronise, can be captured in a CUDA graph) x is bfloat16, float16
    or float32. On the CPU it is the reference implementation: any float dtype, taken as float32. Strides are free;
    vectors that are not evenly spaced, or not 16-byte aligned, are copied first.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or value does not fit.
        NotImplementedError: x requires grad while grad mode is on (there is no backward), or no kernel of this build
            runs on the device.
    """
    op = "quantize_indexer"
    _checks_indexer_quant.check_quantize_indexer(op, x, scale_format, plain=False)
    if torch.is_grad_enabled():
        _checks.check_no_grad(op, x=x)
    try:
        return _quantize_indexer(x, scale_format)
    except RuntimeError as error:
        _raise_if_no_kernel(op, "x", x.device, error)
        raise


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
    """From the indexer's projections to the operands of its logits, in one pass: RoPE, rotation, quantisation, and the
    queries' scales into the weights. For each vector x of q and of k, with its token's cos and sin::

        x[pair]        = (a * cos - b * sin, b * cos + a * sin)     for the 32 pairs (a, b) of x[:64]; x[64:] stays
        x              = x @ H * 128^-0.5                           if hadamard; H[i, j] = (-1)^popcount(i & j)
        codes, scale   = quantize_indexer(x)                        not rounded before
        weights_folded = weights * (h * 128)^-0.5 * scale of q

    All of it in float32, each operation rounded by itself, the factor (h * 128)^-0.5 once; H is applied as butterflies,
    nearest neighbours first. Results are the same bits on every device. What is NaN or infinite becomes the code for
    NaN; with hadamard that is the whole vector, whose scale is then the least there is.

    Args:
        q: [s, h, 128], the indexer's queries.
        k: [s, 128], q's dtype: the keys, after their LayerNorm.
        weights: [s, h], what the weights' projection gives, unscaled.
        cos, sin: float32 [s, 32], of the angle of each pair, at each token's position.
        rope: which dimensions are pairs: "half" (i, i + 32), DeepSeek-V3.2's, or "interleaved" (2i, 2i + 1), GLM-5's.
        hadamard: rotate queries and keys. Their products stay what they are but for quantisation, if both are rotated.
        scale_format: as in quantize_indexer.

    Returns:
        q_fp8: float8_e4m3fn [s, h, 128].
        k_fp8: float8_e4m3fn [s, 128].
        k_scale: float32 [s].
        weights_folded: float32 [s, h].

    On CUDA (runs on the current stream, does not synchronise, can be captured in a CUDA graph) q and k are bfloat16 and
    weights bfloat16 or float32. On the CPU it is the reference implementation: any float dtype, taken as float32. Last
    dimensions are contiguous, other strides are free; q, k, cos and sin with rows that are not 16-byte aligned are
    copied first.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device or value does not fit.
        NotImplementedError: an input requires grad while grad mode is on (there is no backward), or no kernel of this
            build runs on the device.
    """
    op = "prepare_indexer"
    options = rope, hadamard, scale_format
    _checks_indexer_quant.check_prepare_indexer(op, q, k, weights, cos, sin, *options, plain=False)
    if torch.is_grad_enabled():
        _checks.check_no_grad(op, q=q, k=k, weights=weights, cos=cos, sin=sin)
    try:
        return _prepare_indexer(q, k, weights, cos, sin, *options)
    except RuntimeError as error:
        _raise_if_no_kernel(op, "q", q.device, error)
        raise


def store_indexer_cache(k: Tensor, k_scale: Tensor, k_cache: Tensor, slots: Tensor) -> None:
    """Writes keys into the indexer's paged cache, key i with its scale into slot slots[i].

    A page of P tokens is P times d codes, then P times a float32 scale. It has P * (d + 4) bytes, but its [P, d + 4]
    view is nominal: only a whole page has a meaning.

    Args:
        k: float8_e4m3fn [n, d] with d = 32, 64 or 128.
        k_scale: float32 [n].
        k_cache: uint8 [pages, page_size, d + 4]. Modified in place: the bytes of the slots that are named, nothing
            else. Pages may be apart by any number of bytes. Shares no memory with the other arguments.
        slots: int32 [n]; slot = page * page_size + place in the page. A key whose slot is < 0 or beyond the cache is
            skipped. Two keys must not have one slot: which of them, or what mixture of both, it then holds differs from
            call to call.

    On CUDA it runs on the current stream, does not synchronise and can be captured in a CUDA graph; on the CPU it is
    the reference implementation. k's last dimension is contiguous, other strides of k, k_scale and slots are free.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride or device does not fit. Values in slots are never an error.
        NotImplementedError: k or k_scale requires grad while grad mode is on (there is no backward), or no kernel of
            this build runs on the device.
    """
    op = "store_indexer_cache"
    _checks_indexer_quant.check_store_indexer_cache(op, k, k_scale, k_cache, slots, plain=False)
    if torch.is_grad_enabled():
        _checks.check_no_grad(op, k=k, k_scale=k_scale)
    try:
        _store_indexer_cache(k, k_scale, k_cache, slots)
    except RuntimeError as error:
        _raise_if_no_kernel(op, "k", k.device, error)
        raise


def _raise_if_no_kernel(op: str, name: str, device: torch.device, error: RuntimeError) -> None:
    reason = _registration.why_no_kernel(op, error, device, name)
    if reason is not None:
        raise NotImplementedError(reason) from error
