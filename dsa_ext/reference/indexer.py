"""The lightning indexer in plain torch: logits, then the best of them, some rows at a time."""

import torch
from torch import Tensor

from .. import _checks_indexer, _checks_logits
from .logits import indexer_logits, paged_indexer_logits
from .topk import topk_indices


def indexer_topk(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    topk: int,
    *,
    workspace_limit: int = _checks_indexer.WORKSPACE_LIMIT,
    out: Tensor | None = None,
) -> Tensor:
    """As `dsa_ext.indexer_topk`, in plain torch: on every device, for what `reference.indexer_logits` takes."""
    op = "reference.indexer_topk"
    inputs = (q, k, k_scale, weights, k_start, k_end)
    _checks_logits.check_indexer_logits(op, *inputs, torch.float32, plain=True)
    _checks_indexer.check_topk_and_limit(op, topk, workspace_limit)
    if out is not None:
        names = ("q", "k", "k_scale", "weights", "k_start", "k_end")
        _checks_indexer.check_out(op, out, (q.shape[0], topk), q, dict(zip(names, inputs, strict=True)))
    result = q.new_empty((q.shape[0], topk), dtype=torch.int32) if out is None else out
    rows = max(1, workspace_limit // max(1, 4 * k.shape[0]))
    for i in range(0, q.shape[0], rows):
        part = slice(i, i + rows)
        logits = indexer_logits(q[part], k, k_scale, weights[part], k_start[part], k_end[part])
        result[part] = topk_indices(logits, topk)  # positions in the whole row: outside of its range it is -inf
    return result


def paged_indexer_topk(
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    topk: int,
    *,
    max_context_len: int | None = None,
    plan: Tensor | None = None,
    workspace_limit: int = _checks_indexer.WORKSPACE_LIMIT,
    out: Tensor | None = None,
) -> Tensor:
    """As `dsa_ext.paged_indexer_topk`, in plain torch: on every device, for what `reference.paged_indexer_logits`
    takes. A plan is checked for its kind and has no effect."""
    op = "reference.paged_indexer_topk"
    inputs = (q, k_cache, weights, context_lens, block_table)
    columns = _checks_indexer.check_paged_inputs(op, *inputs, max_context_len, plain=True)
    _checks_indexer.check_topk_and_limit(op, topk, workspace_limit)
    if plan is not None:
        _checks_logits.check_plan(op, plan, q, 0 if q.is_cpu else None)
    batch, next_n, page_size = *q.shape[:2], k_cache.shape[1]
    if out is not None:
        names = ("q", "k_cache", "weights", "context_lens", "block_table", "plan")
        tensors = dict(zip(names, (*inputs, plan), strict=True))
        _checks_indexer.check_out(op, out, (batch, next_n, topk), q, tensors)
    result = q.new_empty((batch, next_n, topk), dtype=torch.int32) if out is None else out
    result.fill_(-1)
    columns = min(columns, block_table.shape[1] * page_size)  # there are no others
    if columns == 0 or next_n == 0:
        return result
    weights = weights.reshape(q.shape[:3])
    requests = max(1, workspace_limit // (4 * next_n * columns))
    for i in range(0, batch, requests):
        part = slice(i, i + requests)
        arguments = (q[part], k_cache, weights[part], context_lens[part], block_table[part])
        logits = paged_indexer_logits(*arguments, max_context_len=columns).flatten(0, 1)
        indices = topk_indices(logits, topk, block_table=block_table[part], page_size=page_size)
        result[part] = indices.unflatten(0, (-1, next_n))
    return result
