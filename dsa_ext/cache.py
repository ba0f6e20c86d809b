"""FP8 caches of the keys and values that sparse_mla_decode reads."""

import torch
from torch import Tensor

from . import _checks, _checks_cache, _registration, _registration_cache  # noqa: F401

_pack_kv_cache = torch.ops.dsa_ext.pack_kv_cache.default
_unpack_kv_cache = torch.ops.dsa_ext.unpack_kv_cache.default
_store_kv_cache = torch.ops.dsa_ext.store_kv_cache.default


def pack_kv_cache(
    kv: Tensor, *, format: str = "v32", page_size: int | None = None, scale_format: str = "ue8m0"
) -> Tensor:
    """A new cache that holds the tokens kv, token i in slot i.

    A token's leading dimensions are quantised to FP8 (e4m3) in groups that share a scale, its last 64, which carry the
    rotary position embedding, stay bfloat16. For a group x::

        amax  = max |x|
        scale = 2^ceil(log2(max(amax / 448, 1e-4)))     scale_format "ue8m0"
                max(amax / 448, 1e-4)                   scale_format "fp32"
        code  = e4m3(x / scale)                         to the nearest, ties to even, |code| <= 448

    computed in float32 and, for "ue8m0", from the exponent's bits, so that results are the same bits on every device.
    "ue8m0" rounds scales up to powers of two, which e8m0 holds in one byte; "fp32" is the more precise. Magnitudes from
    248 * 2^120 (3.3e38) on come back as infinite with "ue8m0": their codes round up to 256.

    An element that is NaN or infinite is stored as NaN in the quantised part, and as it is in the last 64. It takes no
    part in amax: all other elements, of its group too, are what they would be without it.

    Args:
        kv: [n, 576] for format "v32", [n, 512] for "v4".
        format: what the bytes of the cache mean.
            "v32", DeepSeek-V3.2's, 656 bytes a token: 512 codes, 4 float32 scales (one for 128 dimensions), 64
                bfloat16. Takes both scale formats.
            "v4", 584 bytes a token, scales at the page's end: a page of P tokens is P times 448 codes and 64 bfloat16,
                then P times 7 e8m0 scales (one for 64 dimensions) and a byte 0. A page thus has P * 584 bytes, but
                its [P, 584] view is nominal: only a whole page has a meaning. Takes "ue8m0" only.
        page_size: tokens of a page, at least 1. None: no pages; v32 only.
        scale_format: see above.

    Returns:
        uint8 [n, 656] without page_size; else [ceil(n / page_size), page_size, bytes], the slots behind token n - 1 all
        zeros. From page to page it is page_size * 656 bytes in v32, in v4 page_size * 584 rounded up to a multiple of
        576.

    On CUDA (runs on the current stream, does not synchronise, can be captured in a CUDA graph) kv is bfloat16. On the
    CPU it is the reference implementation: any float dtype. kv's last dimension is contiguous, the other stride free.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device or value does not fit.
        NotImplementedError: kv requires grad while grad mode is on (there is no backward), or no kernel of this build
            runs on the device.
    """
    op = "pack_kv_cache"
    _checks_cache.check_pack_kv_cache(op, kv, format, page_size, scale_format, plain=False)
    if torch.is_grad_enabled():
        _checks.check_no_grad(op, kv=kv)
    try:
        return _pack_kv_cache(kv, format, page_size, scale_format)
    except RuntimeError as error:
        _raise_if_no_kernel(op, "kv", kv.device, error)
        raise


def unpack_kv_cache(packed: Tensor, *, format: str = "v32") -> Tensor:
    """The tokens of a cache: what sparse_mla_decode takes its keys and values to be.

    A quantised element is bfloat16(float32(code) * scale), rounded to the nearest, ties to even, whatever the scale:
    a v32 cache may hold any float32, not only those that pack_kv_cache writes. An e8m0 byte b is the scale 2^(b - 127),
    and NaN for b = 255. The last 64 elements are the cache's bits.

    Args:
        packed: uint8 [n, 656] or [pages, page_size, 656] for format "v32", [pages, page_size, 584] for "v4"; see
            pack_kv_cache. Pages may be apart by any number of bytes, in v32 tokens too.
        format: "v32" or "v4".

    Returns:
        bfloat16, packed's shape with 576 (v32) or 512 (v4) as the last size. Slots that hold no token come out as
        whatever their bytes mean.

    On CUDA it runs on the current stream, does not synchronise and can be captured in a CUDA graph.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride or value does not fit.
        NotImplementedError: no kernel of this build runs on the device.
    """
    op = "unpack_kv_cache"
    _checks_cache.check_unpack_kv_cache(op, packed, format, plain=False)
    try:
        return _unpack_kv_cache(packed, format)
    except RuntimeError as error:
        _raise_if_no_kernel(op, "packed", packed.device, error)
        raise


def store_kv_cache(
    kv: Tensor, kv_cache: Tensor, slots: Tensor, *, format: str = "v32", scale_format: str = "ue8m0"
) -> None:
    """Writes the tokens kv into a cache, token i into slot slots[i], with the bits that pack_kv_cache gives them.

    Args:
        kv: [n, 576] for format "v32", [n, 512] for "v4".
        kv_cache: uint8 [pages, page_size, 656] or [slots, 656] for format "v32", [pages, page_size, 584] for "v4"; see
            pack_kv_cache. Modified in place: the bytes of the slots that are named, nothing else. Pages may be apart by
            any number of bytes, in v32 tokens too. Shares no memory with kv and slots.
        slots: int32 [n]; slot = page * page_size + place in the page. A token whose slot is < 0 or beyond the cache is
            skipped. Two tokens must not have one slot: which of them, or what mixture of both, it then holds differs
            from call to call.
        format: "v32" or "v4".
        scale_format: "ue8m0", or for v32 also "fp32"; see pack_kv_cache.

    On CUDA (runs on the current stream, does not synchronise, can be captured in a CUDA graph) kv is bfloat16. On the
    CPU it is the reference implementation: any float dtype. kv's last dimension is contiguous, the other stride free.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device or value does not fit. Values in slots are never an error.
        NotImplementedError: kv requires grad while grad mode is on (there is no backward), or no kernel of this build
            runs on the device.
    """
    op = "store_kv_cache"
    _checks_cache.check_store_kv_cache(op, kv, kv_cache, slots, format, scale_format, plain=False)
    if torch.is_grad_enabled():
        _checks.check_no_grad(op, kv=kv)
    try:
        _store_kv_cache(kv, kv_cache, slots, format, scale_format)
    except RuntimeError as error:
        _raise_if_no_kernel(op, "kv", kv.device, error)
        raise


def _raise_if_no_kernel(op: str, name: str, device: torch.device, error: RuntimeError) -> None:
    reason = _registration.why_no_kernel(op, error, device, name)
    if reason is not None:
        raise NotImplementedError(reason) from error
