"""The logits of the lightning indexer in plain torch, written to be read."""

import torch
from torch import Tensor

from .. import _checks_logits

_CHUNK = 2**24  # products that are held at a time


def indexer_logits(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """As `dsa_ext.indexer_logits`, in plain torch: on every device, for any sizes, and for q and k of any float dtype,
    with or without k_scale. Computed in float64 if q is float64 or the result is to be, which it may here, else in
    float32."""
    op = "reference.indexer_logits"
    _checks_logits.check_indexer_logits(op, q, k, k_scale, weights, k_start, k_end, out_dtype, plain=True)
    if out is not None:
        inputs = {"q": q, "k": k, "k_scale": k_scale, "weights": weights, "k_start": k_start, "k_end": k_end}
        _checks_logits.check_out(op, out, (q.shape[0], k.shape[0]), q, inputs, plain=True)
    dtype = _compute_dtype(q, out_dtype if out is None else out.dtype)
    keys = k.to(dtype)
    scale = None if k_scale is None else k_scale.to(dtype)
    result = q.new_empty((q.shape[0], k.shape[0]), dtype=out_dtype) if out is None else out
    columns = torch.arange(k.shape[0], device=q.device)
    rows = max(1, _CHUNK // max(1, q.shape[1] * k.shape[0]))
    for i in range(0, q.shape[0], rows):
        part = slice(i, i + rows)
        logits = _logits(q[part].to(dtype), keys, scale, weights[part].to(dtype))
        seen = (columns >= k_start[part, None]) & (columns < k_end[part, None])
        result[part] = torch.where(seen, logits, -torch.inf)
    return result


def paged_indexer_logits(
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    *,
    max_context_len: int,
    plan: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `dsa_ext.paged_indexer_logits`, in plain torch: on every device, for any sizes, for q of any float dtype, and
    with float64 as a dtype of out. Only what the kernels read is read. A plan is checked for its kind and has no
    effect."""
    op = "reference.paged_indexer_logits"
    _checks_logits.check_paged_indexer_logits(
        op, q, k_cache, weights, context_lens, block_table, max_context_len, plain=True
    )
    if plan is not None:
        _checks_logits.check_plan(op, plan, q, 0 if q.is_cpu else None)
    batch, next_n, heads, d = q.shape
    shape = (batch, next_n, max_context_len)
    if out is not None:
        inputs = {"q": q, "k_cache": k_cache, "weights": weights, "context_lens": context_lens}
        inputs |= {"block_table": block_table, "plan": plan}
        _checks_logits.check_out(op, out, shape, q, inputs, plain=True)
    result = q.new_empty(shape, dtype=torch.float32) if out is None else out
    result.fill_(-torch.inf)
    dtype = _compute_dtype(q, result.dtype)
    weights = weights.reshape(batch, next_n, heads).to(dtype)
    lens = context_lens.long()
    if lens.dim() == 1:
        lens = lens[:, None] - next_n + 1 + torch.arange(next_n, device=q.device)
    page_size = k_cache.shape[1]
    lens = lens.clamp(0, min(max_context_len, block_table.shape[1] * page_size))
    for b in range(batch if next_n > 0 and page_size > 0 else 0):
        length = int(lens[b].max())
        pages = block_table[b, : -(-length // page_size)].long()
        exists = (pages >= 0) & (pages < k_cache.shape[0])
        codes, scale = _keys(k_cache, pages[exists], d)
        logits = _logits(q[b].to(dtype), codes.to(dtype), scale.to(dtype), weights[b])
        columns = (exists.nonzero() * page_size + torch.arange(page_size, device=q.device)).flatten()
        whole = logits.new_full((next_n, len(pages) * page_size), -torch.inf)
        whole[:, columns] = torch.where(columns < lens[b][:, None], logits, -torch.inf)
        result[b, :, :length] = whole[:, :length].to(result.dtype)
    return result


def _compute_dtype(q: Tensor, out_dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in (q.dtype, out_dtype) else torch.float32


def _logits(q: Tensor, k: Tensor, scale: Tensor | None, weights: Tensor) -> Tensor:
    """q [n, h, d], k [m, d], scale [m], weights [n, h] -> [n, m]."""
    logits = torch.einsum("nhm,nh->nm", (q @ k.T).relu(), weights)
    return logits if scale is None else logits * scale


def _keys(k_cache: Tensor, pages: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Codes [n, d] e4m3 and scales [n] of all keys of these pages: a page is page_size times d codes, then page_size
    float32 scales."""
    page_size = k_cache.shape[1]
    data = k_cache[pages].reshape(len(pages), page_size * (d + 4))
    codes, scales = data[:, : page_size * d].contiguous(), data[:, page_size * d :].contiguous()
    return codes.view(torch.float8_e4m3fn).reshape(-1, d), scales.view(torch.float32).flatten()
