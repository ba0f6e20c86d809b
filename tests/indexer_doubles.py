"""Stand-ins for the indexer's functions that this build does not have, from their documentation, in plain torch."""

import math

import pytest
import torch

import dsa_ext


def indexer_logits(q, k, k_scale, weights, k_start, k_end, *, out_dtype=torch.float32):
    """sum_h weights[s, h] * relu(q[s, h] . k[t]) * k_scale[t], -inf outside [k_start, k_end)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = torch.einsum("shd,td->sht", q.to(wide), k.to(wide)).relu()
    logits = torch.einsum("sht,sh->st", scores, weights.to(wide))
    if k_scale is not None:
        logits = logits * k_scale.to(wide)
    t = torch.arange(len(k), device=q.device)
    outside = (t < k_start[:, None]) | (t >= k_end[:, None])
    return logits.masked_fill(outside, -math.inf).to(out_dtype)


def paged_indexer_logits(q, k_cache, weights, context_lens, block_table, *, max_context_len):
    b, next_n, _, d = q.shape
    if context_lens.dim() == 1:
        context_lens = context_lens[:, None] + torch.arange(1 - next_n, 1, device=q.device)
    page_size = k_cache.shape[1]
    t = torch.arange(max_context_len, device=q.device)
    flat, rows = k_cache.flatten(1), []
    for i in range(b):
        page, place = block_table[i, t // page_size].clamp(min=0), t % page_size
        codes = flat[:, : page_size * d].unflatten(1, (page_size, d))[page, place].view(torch.float8_e4m3fn)
        scale = flat[:, page_size * d :].unflatten(1, (page_size, 4))[page, place].view(torch.float32)[:, 0]
        ends = context_lens[i]
        rows.append(indexer_logits(q[i], codes, scale, weights[i], torch.zeros_like(ends), ends))
    return torch.stack(rows)


def topk_indices(logits, k, *, lengths=None, block_table=None, page_size=None):
    rows, columns = logits.shape
    t = torch.arange(columns, device=logits.device)
    allowed = logits > -math.inf
    if lengths is not None:
        allowed &= t < lengths[:, None]
    order = logits.masked_fill(~allowed, -math.inf).sort(dim=-1, descending=True, stable=True).indices
    order = torch.where(allowed.gather(1, order), order, columns)[:, :k].sort(-1).values
    order = torch.nn.functional.pad(order, (0, max(0, k - columns)), value=columns)
    valid, order = order < columns, order.clamp(max=columns - 1)
    if block_table is not None:
        request = torch.arange(rows, device=logits.device)[:, None] // (rows // len(block_table))
        order = block_table[request, order // page_size] * page_size + order % page_size
    return torch.where(valid, order, -1).int()


def missing():
    """Name and stand-in of each function that there is not."""
    doubles = (indexer_logits, paged_indexer_logits, topk_indices)
    return [(double.__name__, double) for double in doubles if not hasattr(dsa_ext, double.__name__)]


@pytest.fixture(autouse=True)
def indexer_functions(monkeypatch):
    for name, double in missing():
        monkeypatch.setattr(dsa_ext, name, double, raising=False)
