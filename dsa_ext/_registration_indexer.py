"""The ops behind indexer_topk and paged_indexer_topk: logits and top-k in turn, a chunk of rows at a time, through one
buffer. On every device, as they only call other ops; in Python, as there is nothing else to do on the host."""

from collections.abc import Iterator

import torch
from torch import Tensor

_logits = torch.ops.dsa_ext.indexer_logits_out.default
_paged_logits = torch.ops.dsa_ext.paged_indexer_logits_out.default
_topk = torch.ops.dsa_ext.topk_indices_out.default

ALIGNMENT = 32  # of the buffer's rows, in elements: each begins a line of the cache

_RAGGED = (
    "Tensor q, Tensor k, Tensor? k_scale, Tensor weights, Tensor k_start, Tensor k_end, SymInt topk, "
    "SymInt workspace_limit"
)
_PAGED = (
    "Tensor q, Tensor k_cache, Tensor weights, Tensor context_lens, Tensor block_table, SymInt topk, "
    "SymInt max_context_len, Tensor? plan, SymInt workspace_limit"
)
torch.library.define("dsa_ext::indexer_topk", f"({_RAGGED}) -> Tensor")
torch.library.define("dsa_ext::indexer_topk_out", f"({_RAGGED}, Tensor(a!) out) -> ()")
torch.library.define("dsa_ext::paged_indexer_topk", f"({_PAGED}) -> Tensor")
torch.library.define("dsa_ext::paged_indexer_topk_out", f"({_PAGED}, Tensor(a!) out) -> ()")


def _buffer(q: Tensor, items: int, rows: int, columns: int, limit: int) -> Tensor:
    """float32 [n * rows, columns], for the logits of n of `items` items of so many rows: as many as the limit allows,
    at least one, and as few as make the same number of chunks."""
    stride = -(-columns // ALIGNMENT) * ALIGNMENT
    most = max(1, limit // (rows * stride * 4))
    chunks = -(-items // most)
    count = -(-items // chunks)
    return q.new_empty((count * rows, stride), dtype=torch.float32)[:, :columns]


def _chunks(items: int, count: int) -> Iterator[slice]:
    return (slice(i, min(i + count, items)) for i in range(0, items, count))


@torch.library.impl("dsa_ext::indexer_topk_out", "CompositeExplicitAutograd")
def _indexer_topk_out(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    topk: int,
    workspace_limit: int,
    out: Tensor,
) -> None:
    s_q, s_k = q.shape[0], k.shape[0]
    if s_q == 0 or s_k == 0:
        out.fill_(-1)
        return
    # Only what a query sees is read back. Clamped first: the difference of two int32 need not be one.
    start = k_start.clamp(0, s_k)
    length = k_end.clamp(0, s_k) - start
    logits = _buffer(q, s_q, 1, s_k, workspace_limit)
    for part in _chunks(s_q, logits.shape[0]):
        rows = logits[: part.stop - part.start]
        _logits(q[part], k, k_scale, weights[part], k_start[part], k_end[part], rows)
        _topk(rows, topk, length[part], start[part], None, None, start[part], out[part])


@torch.library.impl("dsa_ext::paged_indexer_topk_out", "CompositeExplicitAutograd")
def _paged_indexer_topk_out(
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    topk: int,
    max_context_len: int,
    plan: Tensor | None,
    workspace_limit: int,
    out: Tensor,
) -> None:
    batch, next_n = q.shape[:2]
    pages, page_size = k_cache.shape[:2]
    columns = min(max_context_len, block_table.shape[1] * page_size)
    if 0 in (batch, next_n, pages, columns):
        out.fill_(-1)
        return
    length = _lengths(context_lens, next_n)
    weights = weights.reshape(q.shape[:3])
    logits = _buffer(q, batch, next_n, columns, workspace_limit)
    dense = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    indices = dense.view(batch * next_n, topk)
    count = logits.shape[0] // next_n
    for part in _chunks(batch, count):
        rows = slice(part.start * next_n, part.stop * next_n)
        chunk, table = logits[: rows.stop - rows.start], block_table[part]
        _paged_logits(
            q[part],
            k_cache,
            weights[part],
            context_lens[part],
            table,
            columns,
            plan if count == batch else None,  # it divides the work of the whole batch
            chunk.view(-1, next_n, columns),
        )
        _topk(chunk, topk, length[rows], None, table, page_size, None, indices[rows])
    if dense is not out:
        out.copy_(dense)


def _lengths(context_lens: Tensor, next_n: int) -> Tensor:
    """int32 [b * next_n], not more than 0 where a token sees nothing. Of one token a request, without a kernel."""
    if context_lens.dim() == 1 and next_n > 1:
        # Clamped first: what is below the least int32 would come out as large.
        back = torch.arange(1 - next_n, 1, dtype=torch.int32, device=context_lens.device)
        context_lens = context_lens.clamp(min=0)[:, None] + back
    return context_lens.reshape(-1)


@torch.library.impl("dsa_ext::indexer_topk", "CompositeExplicitAutograd")
def _indexer_topk(q, k, k_scale, weights, k_start, k_end, topk, workspace_limit) -> Tensor:
    out = q.new_empty((q.shape[0], topk), dtype=torch.int32)
    torch.ops.dsa_ext.indexer_topk_out(q, k, k_scale, weights, k_start, k_end, topk, workspace_limit, out)
    return out


@torch.library.impl("dsa_ext::paged_indexer_topk", "CompositeExplicitAutograd")
def _paged_indexer_topk(q, k_cache, weights, context_lens, block_table, topk, *options) -> Tensor:
    out = q.new_empty((*q.shape[:2], topk), dtype=torch.int32)
    arguments = (q, k_cache, weights, context_lens, block_table, topk, *options)
    torch.ops.dsa_ext.paged_indexer_topk_out(*arguments, out)
    return out


@torch.library.register_fake("dsa_ext::indexer_topk")
def _indexer_topk_fake(q, k, k_scale, weights, k_start, k_end, topk, workspace_limit):
    return q.new_empty((q.shape[0], topk), dtype=torch.int32)


@torch.library.register_fake("dsa_ext::indexer_topk_out")
def _indexer_topk_out_fake(*arguments):
    return None


@torch.library.register_fake("dsa_ext::paged_indexer_topk")
def _paged_indexer_topk_fake(q, k_cache, weights, context_lens, block_table, topk, *options):
    return q.new_empty((*q.shape[:2], topk), dtype=torch.int32)


@torch.library.register_fake("dsa_ext::paged_indexer_topk_out")
def _paged_indexer_topk_out_fake(*arguments):
    return None
