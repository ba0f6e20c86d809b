"""The lightning indexer as one call: from queries and keys to the keys that attention looks at, in bounded memory."""

import re
from typing import NoReturn

import torch
from torch import Tensor

from . import _checks, _checks_indexer, _checks_logits, _registration, _registration_indexer  # noqa: F401
from ._checks_indexer import WORKSPACE_LIMIT
from .logits import _plan_size

_OP = "indexer_topk"
_PAGED = "paged_indexer_topk"
_indexer_topk = torch.ops.dsa_ext.indexer_topk.default
_indexer_topk_out = torch.ops.dsa_ext.indexer_topk_out.default
_paged_indexer_topk = torch.ops.dsa_ext.paged_indexer_topk.default
_paged_indexer_topk_out = torch.ops.dsa_ext.paged_indexer_topk_out.default


def indexer_topk(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    topk: int,
    *,
    workspace_limit: int = WORKSPACE_LIMIT,
    out: Tensor | None = None,
) -> Tensor:
    """The keys that the lightning indexer chooses for each query: `indexer_logits`, then `topk_indices`, in memory that
    does not grow with s_q times s_k.

    Of query s, the candidates are the keys t with k_start[s] <= t < k_end[s]. Chosen are the first topk in the order by
    (logit in float32 descending, t ascending), without those whose logit is -inf or NaN.

    Args:
        q, k, k_scale, weights, k_start, k_end: as `indexer_logits` takes them.
        topk: 1 to 4096.
        workspace_limit: bytes that the logits may take at a time, 512 MiB by default. Rows are computed in chunks of as
            many as fit, in one buffer; a row takes 4 * s_k bytes, s_k rounded up to a multiple of 32. At least one row
            is computed at a time, also where it exceeds the limit.
        out: a buffer for the result, with a contiguous last dimension; shares no memory with an input.

    Returns:
        int32 [s_q, topk]: rows of k (absolute, whatever k_start is), ascending, -1 behind them: what `sparse_mla_fwd`
        takes.

    On CUDA it runs on the current stream, does not synchronise and can be captured in a CUDA graph, takes the sizes
    that indexer_logits takes, and gives the same bits whatever workspace_limit is. On the CPU it takes what the
    reference implementations take, and logits may differ in their last bits with the number of rows in a chunk, as sums
    of torch's matrix product do.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device or value does not fit. Values in k_start and k_end are never an error.
        NotImplementedError: an input requires grad while grad mode is on (there is no backward), or no kernel of this
            build runs on the device.
    """
    inputs = (q, k, k_scale, weights, k_start, k_end)
    _checks_logits.check_indexer_logits(_OP, *inputs, torch.float32, plain=False)
    _checks_indexer.check_topk_and_limit(_OP, topk, workspace_limit)
    if torch.is_grad_enabled():
        _checks.check_no_grad(_OP, q=q, k=k, k_scale=k_scale, weights=weights)
    try:
        if out is None:
            return _indexer_topk(*inputs, topk, workspace_limit)
        names = ("q", "k", "k_scale", "weights", "k_start", "k_end")
        _checks_indexer.check_out(_OP, out, (q.shape[0], topk), q, dict(zip(names, inputs, strict=True)))
        _indexer_topk_out(*inputs, topk, workspace_limit, out)
        return out
    except RuntimeError as error:
        _raise(_OP, error, q)


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
    workspace_limit: int = WORKSPACE_LIMIT,
    out: Tensor | None = None,
) -> Tensor:
    """The slots that the lightning indexer chooses for decoding: `paged_indexer_logits`, then `topk_indices`, in memory
    that does not grow with the batch.

    Of token j of request b, the candidates are the positions t < length, with length = context_lens[b, j] or, for
    lengths [b], context_lens[b] - next_n + j + 1. Chosen are the first topk in the order by (logit in float32
    descending, t ascending), without those whose logit is -inf or NaN or whose page is none of the cache; each becomes
    the slot block_table[b, t // page_size] * page_size + t % page_size.

    Args:
        q, k_cache, weights, context_lens, block_table: as `paged_indexer_logits` takes them.
        topk: 1 to 4096.
        max_context_len: positions from here on are no candidates. Rows of logits have so many columns, so that a bound
            that is close to the greatest length saves time and memory. None: what the block table has room for.
        plan: from `plan_paged_indexer_logits` for the same lengths. It is used where the whole batch is one chunk;
            results are the same bits in any case.
        workspace_limit: bytes that the logits may take at a time, 512 MiB by default. Requests are computed in chunks
            of as many as fit, in one buffer; one takes next_n * 4 * max_context_len bytes, max_context_len rounded up
            to a multiple of 32 and not beyond what the block table has room for. At least one request is computed at a
            time, also where it exceeds the limit.
        out: a buffer for the result, with a contiguous last dimension; shares no memory with an input.

    Returns:
        int32 [b, next_n, topk]: slots of the cache in ascending order of their positions, -1 behind them: what
        `sparse_mla_decode` takes.

    On CUDA it runs on the current stream, does not synchronise and can be captured in a CUDA graph, takes the sizes
    that paged_indexer_logits takes, and gives the same bits whatever workspace_limit is. On the CPU it takes what the
    reference implementations take.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device or value does not fit. Values in context_lens and block_table are never an
            error.
        NotImplementedError: an input requires grad while grad mode is on (there is no backward), no kernel takes this
            page_size, or none of this build runs on the device.
    """
    inputs = (q, k_cache, weights, context_lens, block_table)
    columns = _checks_indexer.check_paged_inputs(_PAGED, *inputs, max_context_len, plain=False)
    _checks_indexer.check_topk_and_limit(_PAGED, topk, workspace_limit)
    if torch.is_grad_enabled():
        _checks.check_no_grad(_PAGED, q=q, weights=weights)
    try:
        if plan is not None:
            _checks_logits.check_plan(_PAGED, plan, q, _plan_size(q.device))
        arguments = (*inputs, topk, columns, plan, workspace_limit)
        if out is None:
            return _paged_indexer_topk(*arguments)
        names = ("q", "k_cache", "weights", "context_lens", "block_table", "plan")
        tensors = dict(zip(names, (*inputs, plan), strict=True))
        _checks_indexer.check_out(_PAGED, out, (*q.shape[:2], topk), q, tensors)
        _paged_indexer_topk_out(*arguments, out)
        return out
    except RuntimeError as error:
        _raise(_PAGED, error, q)


def _raise(op: str, error: RuntimeError, q: Tensor) -> NoReturn:
    """An error of one of the ops that `op` consists of, as its own."""
    text = re.sub(r"^(paged_indexer_logits|indexer_logits|topk_indices): ", f"{op}: ", str(error))
    reason = _registration.why_no_kernel(op, RuntimeError(text), q.device)
    if reason is not None:
        raise NotImplementedError(reason) from error
    if text != str(error):
        raise RuntimeError(text) from error
    raise error
