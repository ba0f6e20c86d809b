"""Sparse attention over paged, quantised caches in plain torch, written to be read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks_decode
from .attention import _one_sequence
from .cache import unpack_kv_cache


def sparse_mla_decode(
    q: Tensor,
    kv_cache: Tensor,
    idx: Tensor,
    scale: float,
    *,
    topk_length: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_kv_cache: Tensor | None = None,
    extra_idx: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
    plan: Tensor | None = None,
    out: Tensor | Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `dsa_ext.sparse_mla_decode`, in plain torch: on every device, for every float dtype of q.

    Only the rows that valid indices name are read; those of a quantised cache become the bfloat16 numbers that
    `unpack_kv_cache` gives. The attention over them is that of `reference.sparse_mla_fwd`, in float64 if q is float64,
    else in float32. A plan is checked for its kind and has no effect.
    """
    op = "reference.sparse_mla_decode"
    extra = (extra_kv_cache, extra_idx, extra_topk_length)
    scale = _checks_decode.check_sparse_mla_decode(
        op, q, kv_cache, idx, scale, topk_length, attn_sink, *extra, plain=True
    )
    if plan is not None:
        _checks_decode.check_plan(op, plan, q, (0,) if q.is_cpu else None)
    if out is not None:
        inputs = {"q": q, "kv_cache": kv_cache, "idx": idx, "topk_length": topk_length, "attn_sink": attn_sink}
        inputs |= {"extra_kv_cache": extra_kv_cache, "extra_idx": extra_idx, "extra_topk_length": extra_topk_length}
        out = _checks_decode.check_sparse_mla_decode_out(op, out, q, inputs | {"plan": plan})

    keys, places = _named_rows(kv_cache, idx, topk_length)
    if extra_kv_cache is not None:
        extra_keys, extra_places = _named_rows(*extra)
        extra_places = torch.where(extra_places < 0, -1, extra_places + len(keys))
        keys, places = torch.cat([keys, extra_keys]), torch.cat([places, extra_places], -1)
    result, _, lse = _one_sequence(
        q.flatten(0, 1), keys, places.flatten(0, 1), None, scale, _checks_decode.D_V, attn_sink
    )
    results = result.unflatten(0, q.shape[:2]), lse.unflatten(0, q.shape[:2])

    if out is None:
        return results
    for buffer, values in zip(out, results, strict=True):
        buffer.copy_(values)
    return out


def _named_rows(kv_cache: Tensor, idx: Tensor, topk_length: Tensor | None) -> tuple[Tensor, Tensor]:
    """The keys that valid indices name, [n, d_qk], each once; and idx with its entries replaced by their places among
    these, -1 for those that do not count."""
    pages, page_size, _ = kv_cache.shape
    counts = (idx >= 0) & (idx < pages * page_size)
    if topk_length is not None:
        length = topk_length[:, None, None] if topk_length.dim() == 1 else topk_length[:, :, None]
        counts &= torch.arange(idx.shape[-1], device=idx.device) < length
    slots, place = torch.unique(idx[counts], return_inverse=True)
    places = torch.full_like(idx, -1)
    places[counts] = place.int()
    page_size = max(1, page_size)  # where there is no slot
    return _rows(kv_cache, slots // page_size, slots % page_size), places


def _rows(kv_cache: Tensor, page: Tensor, offset: Tensor) -> Tensor:
    """Tokens of a cache, dequantised: [n, d_qk]."""
    form = _checks_decode.cache_format(kv_cache)
    if form is None:
        return kv_cache[page, offset]
    if form.scales_in_line:
        return unpack_kv_cache(kv_cache[page, offset], format=form.name)
    # P times 576 bytes of values, then P times 8 of scales, are a page of P tokens. Made into pages of one.
    page_size, flat = kv_cache.shape[1], kv_cache.flatten(1)
    values = torch.arange(576, device=page.device) + 576 * offset[:, None]
    scales = torch.arange(8, device=page.device) + 8 * offset[:, None] + 576 * page_size
    pages = flat[page[:, None], torch.cat([values, scales], 1)][:, None]  # [n, 1, 584]
    return unpack_kv_cache(pages, format=form.name)[:, 0]
