"""The logits of the lightning indexer: how much each query wants to see of each key."""

import torch
from torch import Tensor

from . import _checks, _checks_logits, _registration, _registration_logits

_OP = "indexer_logits"
_PAGED = "paged_indexer_logits"
_PLAN = "plan_paged_indexer_logits"
_indexer_logits = torch.ops.dsa_ext.indexer_logits.default
_indexer_logits_out = torch.ops.dsa_ext.indexer_logits_out.default
_paged_indexer_logits = torch.ops.dsa_ext.paged_indexer_logits.default
_paged_indexer_logits_out = torch.ops.dsa_ext.paged_indexer_logits_out.default
_plan_paged_indexer_logits = torch.ops.dsa_ext.plan_paged_indexer_logits.default
_plan_paged_indexer_logits_out = torch.ops.dsa_ext.plan_paged_indexer_logits_out.default


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
    """The lightning indexer's logits of every query over the keys in its range.

    For query s and key t::

        logit[s, t] = k_scale[t] * sum_h relu(q[s, h] . k[t]) * weights[s, h]     k_start[s] <= t < k_end[s]
                      -inf                                                        else

    accumulated in float32; but a GPU's tensor cores add up FP8 products with some 14 bits. relu(x) is (x + |x|) / 2,
    and for 32 or 64 heads of d 128 Hopper's kernels take the half without |x| from one such sum over all heads: where
    no head is positive, what is left is small next to the magnitudes that cancel, and not exactly 0. The scale of q,
    and any other factor, belongs into weights.

    Args:
        q: queries, [s_q, h, d] float8_e4m3fn.
        k: keys, [s_k, d] float8_e4m3fn; any slice of a larger tensor.
        k_scale: [s_k] float32.
        weights: [s_q, h] float32.
        k_start, k_end: [s_q] int32, any values: they are clamped to [0, s_k], and an end before its start means an
            empty range. What is outside all ranges may hold anything, NaN too.
        out: a buffer for the result, in float32 or bfloat16, whatever out_dtype says. It may be strided, with a
            contiguous last dimension, and shares no memory with an input.
        out_dtype: float32 or bfloat16 (rounded to the nearest).

    Returns:
        [s_q, s_k], every element written.

    On CUDA (Hopper; runs on the current stream, does not synchronise, can be captured in a CUDA graph) h is 8, 16, 32
    or 64 and d is 32, 64 or 128; results are the same bits on every launch. On the CPU it is the reference
    implementation: any h and d, q and k also of one float dtype, then with or without k_scale (None); out and out_dtype
    also float64. The last dimension of q and k is contiguous, all other strides are free; q and k whose rows are not
    aligned to 16 bytes are copied first.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride or device does not fit. Values in k_start and k_end are never an error.
        NotImplementedError: an input requires grad while grad mode is on (there is no backward), or no kernel of this
            build runs on the device.
    """
    _checks_logits.check_indexer_logits(_OP, q, k, k_scale, weights, k_start, k_end, out_dtype, plain=False)
    if torch.is_grad_enabled():
        _checks.check_no_grad(_OP, q=q, k=k, k_scale=k_scale, weights=weights)
    try:
        if out is None:
            name = str(out_dtype).removeprefix("torch.")
            return _indexer_logits(q, k, k_scale, weights, k_start, k_end, name)
        inputs = {"q": q, "k": k, "k_scale": k_scale, "weights": weights, "k_start": k_start, "k_end": k_end}
        _checks_logits.check_out(_OP, out, (q.shape[0], k.shape[0]), q, inputs, plain=False)
        _indexer_logits_out(q, k, k_scale, weights, k_start, k_end, out)
        return out
    except RuntimeError as error:
        _raise_if_no_kernel(_OP, error, q.device)
        raise


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
    """The lightning indexer's logits for decoding: of a request's new tokens over its context in a paged cache.

    For request b, token j and position t, whose key and scale are in page block_table[b, t // page_size] of the cache,
    at place t % page_size::

        logit[b, j, t] = scale * sum_h relu(q[b, j, h] . key) * weights[b, j, h]     t < length
                         -inf                                                        else

    with length = context_lens[b, j] or, for lengths [b], context_lens[b] - next_n + j + 1: the last token sees all of
    the context, the one before all but one key, and so on. Sums are those of `indexer_logits`; what is said there of
    keys without a positive head holds where a request's tokens have more than 64 heads together.

    Args:
        q: [b, next_n, h, d] float8_e4m3fn, any next_n.
        k_cache: uint8 [pages, page_size, d + 4]. A page of P keys is P times d codes (e4m3), then P times a float32
            scale, so that its [P, d + 4] view is nominal. Pages may be apart by any number of bytes.
        weights: [b, next_n, h] or [b * next_n, h] float32.
        context_lens: int32 [b] or [b, next_n], any values: lengths are clamped to what max_context_len and the block
            table have room for.
        block_table: int32 [b, pages of a request]: where a request's pages are. Entries past its length are not read;
            an entry that is no page of the cache makes its positions -inf.
        max_context_len: columns of the result.
        plan: from `plan_paged_indexer_logits`: how the work is divided. None: every CTA finds its part itself. Results
            are the same bits in any case.
        out: a buffer for the result, float32 or bfloat16. It may be strided, with a contiguous last dimension, and
            shares no memory with an input.

    Returns:
        [b, next_n, max_context_len] float32 (or out), every element written.

    On CUDA (Hopper; runs on the current stream, does not synchronise, can be captured in a CUDA graph) h is 8, 16, 32
    or 64, d is 32, 64 or 128, page_size a multiple of 8 (full speed from 32 on, if a multiple of 32), and pages are
    aligned to 16 bytes. A key is read once for up to 896 / h tokens of its request. On the CPU it is the reference
    implementation: any sizes, q of any float dtype, out also float64, and a plan has no effect.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device or value does not fit. Values in context_lens and block_table are never an
            error.
        NotImplementedError: an input requires grad while grad mode is on (there is no backward), no kernel takes this
            page_size, or none of this build runs on the device.
    """
    _checks_logits.check_paged_indexer_logits(
        _PAGED, q, k_cache, weights, context_lens, block_table, max_context_len, plain=False
    )
    if torch.is_grad_enabled():
        _checks.check_no_grad(_PAGED, q=q, weights=weights)
    arguments = (q, k_cache, weights, context_lens, block_table, max_context_len, plan)
    try:
        if plan is not None:
            _checks_logits.check_plan(_PAGED, plan, q, _plan_size(q.device))
        if out is None:
            return _paged_indexer_logits(*arguments)
        inputs = {"q": q, "k_cache": k_cache, "weights": weights, "context_lens": context_lens}
        inputs |= {"block_table": block_table, "plan": plan}
        _checks_logits.check_out(_PAGED, out, (*q.shape[:2], max_context_len), q, inputs, plain=False)
        _paged_indexer_logits_out(*arguments, out)
        return out
    except RuntimeError as error:
        _raise_if_no_kernel(_PAGED, error, q.device)
        raise


def plan_paged_indexer_logits(
    context_lens: Tensor, *, page_size: int, next_n: int, out: Tensor | None = None
) -> Tensor:
    """How `paged_indexer_logits` divides the keys of a batch over the device: made once, used by all layers of a step.

    A plan is computed on the device from the lengths that context_lens holds at that moment, without waiting for it. It
    divides the work evenly for every call with the same batch and lengths. Where these change from step to step, make
    the plan anew, into the same buffer if one likes (out): a CUDA graph that has captured this call does so in every
    replay. A plan for other lengths costs time, not correctness; one for another batch is ignored.

    Args:
        context_lens: int32 [b] or [b, next_n], as paged_indexer_logits is given.
        page_size, next_n: of the calls.
        out: a buffer for the plan, of the size that a call without it returns.

    Returns:
        int32 [n], opaque; n depends on the device. On the CPU, which needs no plan, n is 0.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or value does not fit.
        NotImplementedError: no kernel of this build runs on the device.
    """
    _checks_logits.check_plan_paged_indexer_logits(_PLAN, context_lens, page_size, next_n)
    try:
        if out is None:
            return _plan_paged_indexer_logits(context_lens, page_size, next_n)
        _checks_logits.check_plan_out(_PLAN, out, _plan_size(context_lens.device), context_lens)
        _plan_paged_indexer_logits_out(context_lens, page_size, next_n, out)
        return out
    except RuntimeError as error:
        _raise_if_no_kernel(_PLAN, error, context_lens.device, "context_lens")
        raise


def _plan_size(device: torch.device) -> int | None:
    """Elements of a plan; None where Python cannot tell, and the op checks it."""
    if torch.compiler.is_compiling() or (device.type == "cuda" and not torch.cuda.is_available()):
        return None
    return _registration_logits.plan_size(device)


def _raise_if_no_kernel(op: str, error: RuntimeError, device: torch.device, name: str = "q") -> None:
    reason = _registration.why_no_kernel(op, error, device, name)
    if reason is not None:
        raise NotImplementedError(reason) from error
