"""Sparse attention over paged caches, for decoding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _checks_decode, _registration, _registration_decode

_OP = "sparse_mla_decode"
_PLAN = "plan_sparse_mla_decode"
_sparse_mla_decode = torch.ops.dsa_ext.sparse_mla_decode.default
_sparse_mla_decode_out = torch.ops.dsa_ext.sparse_mla_decode_out.default
_plan_sparse_mla_decode = torch.ops.dsa_ext.plan_sparse_mla_decode.default
_plan_sparse_mla_decode_out = torch.ops.dsa_ext.plan_sparse_mla_decode_out.default


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
    """Attention of every query over the slots of a paged cache that its indices name: sparse MLA, for decoding.

    For request b, query s and head h, over the valid entries t of idx[b, s], with k_t the key in slot t of the cache
    and v_t its first 512 elements::

        logit[t] = scale * q[b, s, h] . k_t
        lse      = ln sum_t exp(logit[t])
        out      = sum_t exp(logit[t] - lse) * v_t

    the computation of `sparse_mla_fwd`, with the keys that `unpack_kv_cache` gives: of a quantised element,
    bfloat16(float32(code) * scale), whatever the scale.

    Args:
        q: queries, [b, s_q, h_q, d_qk]. Any h_q; s_q > 1 for several tokens of a request (multi-token prediction).
        kv_cache: of any number of pages and any page size, one of
            uint8 [pages, page_size, 656], format "v32" of `pack_kv_cache`, d_qk 576;
            uint8 [pages, page_size, 584], format "v4", d_qk 512: all 512 elements are the value;
            [pages, page_size, d_qk] of q's dtype, not quantised, d_qk 576.
            Pages may be apart by any stride.
        idx: int32 [b, s_q, topk], slots: page * page_size + place in the page. All requests share the cache. Any topk.
            An index < 0 or >= pages * page_size is skipped and never read, and slots that nobody names may hold
            anything. An index that occurs twice counts twice.
        scale: factor of the logits, a finite float > 0 (also in float32).
        topk_length: int32 [b] or [b, s_q]: a query looks at the first topk_length entries of its indices. Values are
            clamped to [0, topk].
        attn_sink: [h_q] float32, as for `sparse_mla_fwd`: out is multiplied by 1 / (1 + exp(attn_sink - lse)), lse
            stays. -inf changes nothing, +inf makes out 0.
        extra_kv_cache, extra_idx, extra_topk_length: a second cache in the same softmax, with indices
            [b, s_q, extra_topk] and, optionally, lengths of its own. It has the format of kv_cache, and a number of
            pages and a page size of its own. extra_kv_cache and extra_idx go together.
        plan: from `plan_sparse_mla_decode`, for the sizes and lengths of this call: how its work is divided. None: as
            if every query had topk keys. Results are right in any case; lengths that differ want a plan.
        out: a buffer for the first result, or a tuple of buffers for both. They may be strided (out with a contiguous
            last dimension) and share no memory with each other or with an input.

    Returns:
        out: [b, s_q, h_q, 512] in q's dtype.
        lse: [b, s_q, h_q] float32 (float64 for float64 q); natural logarithm.

        A query without a valid index has out = 0, lse = +inf.

    On CUDA (Hopper; runs on the current stream, does not synchronise, can be captured in a CUDA graph) q is bfloat16,
    and so is a cache that is not quantised. The keys of a request are split over several parts of the device by the
    plan: results are the same bits on every launch with the same plan, and with a batch-invariant plan a request's do
    not depend on who shares its batch. A NaN code (0x7f, 0xff) in a slot that an index names gives NaN or 480 times its
    scale: the fast conversion knows no NaN. NaN scales and bf16 elements give NaN. On the CPU it is the reference
    implementation: any float dtype, any d_qk >= 512 for a cache that is not quantised, and a plan has no effect. The
    last dimension of q, kv_cache and idx is contiguous; their other strides are free, except that the bytes of a page
    of format "v4" are contiguous.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device or value does not fit; plan has another size than this call's.
        NotImplementedError: an input requires grad while grad mode is on (there is no backward), or no kernel of this
            build runs on the device.
    """
    extra = (extra_kv_cache, extra_idx, extra_topk_length)
    scale = _checks_decode.check_sparse_mla_decode(
        _OP, q, kv_cache, idx, scale, topk_length, attn_sink, *extra, plain=False
    )
    if torch.is_grad_enabled():
        _checks.check_no_grad(_OP, q=q, kv_cache=kv_cache, attn_sink=attn_sink, extra_kv_cache=extra_kv_cache)
    try:
        if plan is not None:
            _checks_decode.check_plan(_OP, plan, q, _plan_sizes(q, idx, extra_idx))
        if out is None:
            return _sparse_mla_decode(q, kv_cache, idx, scale, topk_length, attn_sink, *extra, plan)
        inputs = {"q": q, "kv_cache": kv_cache, "idx": idx, "topk_length": topk_length, "attn_sink": attn_sink}
        inputs |= {"extra_kv_cache": extra_kv_cache, "extra_idx": extra_idx, "extra_topk_length": extra_topk_length}
        out = _checks_decode.check_sparse_mla_decode_out(_OP, out, q, inputs | {"plan": plan})
        _sparse_mla_decode_out(q, kv_cache, idx, scale, topk_length, attn_sink, *extra, plan, *out)
        return out
    except RuntimeError as error:
        reason = _registration.why_no_kernel(_OP, error, q.device)
        if reason is None:
            raise
        raise NotImplementedError(reason) from error


def _plan_sizes(q: Tensor, idx: Tensor, extra_idx: Tensor | None) -> list[int] | None:
    """Elements that a plan for the call may have: without or with batch invariance. None where Python cannot tell: the
    op checks again."""
    if torch.compiler.is_compiling() or (q.is_cuda and not torch.cuda.is_available()):
        return None
    extra_topk = 0 if extra_idx is None else extra_idx.shape[2]
    sizes = (*q.shape[:3], idx.shape[2], extra_topk)
    return [_registration_decode.plan_size(q.device, *sizes, batch_invariant) for batch_invariant in (False, True)]


def plan_sparse_mla_decode(
    topk_length: Tensor | None = None,
    *,
    batch: int,
    s_q: int,
    h_q: int,
    topk: int,
    extra_topk: int = 0,
    extra_topk_length: Tensor | None = None,
    batch_invariant: bool = False,
    device: torch.device | str | int,
    out: Tensor | None = None,
) -> Tensor:
    """How `sparse_mla_decode` divides the keys of a batch over the device: made once, used by all layers of a step.

    A plan is computed on the device from the lengths that the tensors hold at that moment, without waiting for it. It
    fits every call of the same batch, s_q, h_q, topk and extra_topk, whatever its cache, indices, queries or sink, and
    divides the work evenly as long as lengths are what they were. Where these change from step to step, make the plan
    anew, into the same buffer if one likes (out): a CUDA graph that has captured this call along with those that use
    the plan does so in every replay, from the lengths that are there then. A plan for other lengths costs time, not
    correctness. One that was made for other sizes is refused if its own size shows it, else it is ignored.

    Args:
        topk_length, extra_topk_length: int32 [b] or [b, s_q], as sparse_mla_decode is given; None without.
        batch, s_q, h_q, topk, extra_topk: sizes of the calls: q is [batch, s_q, h_q, ..], idx [batch, s_q, topk],
            extra_idx [batch, s_q, extra_topk].
        batch_invariant: split each request by its own length alone, so that the bits of its result do not depend on who
            shares its batch: in chunks of 1024 keys. Without, requests are split so that the device is evenly busy,
            which is faster (README has the times of both).
        device: where the calls run.
        out: a buffer for the plan, of the size that a call without it returns.

    Returns:
        int32 [n], opaque; n depends on the sizes, batch_invariant and the device. On the CPU, which needs no plan, n is
        0.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or value does not fit.
        NotImplementedError: no kernel of this build runs on the device.
    """
    sizes = {"batch": batch, "s_q": s_q, "h_q": h_q, "topk": topk, "extra_topk": extra_topk}
    device = _checks_decode.check_plan_sparse_mla_decode(
        _PLAN, topk_length, sizes, extra_topk_length, batch_invariant, device
    )
    arguments = (topk_length, *sizes.values(), extra_topk_length, batch_invariant)
    try:
        if out is None:
            return _plan_sparse_mla_decode(*arguments, device)
        size = None
        if not torch.compiler.is_compiling():
            size = _registration_decode.plan_size(device, *sizes.values(), batch_invariant)
        lengths = {"topk_length": topk_length, "extra_topk_length": extra_topk_length}
        _checks_decode.check_plan_sparse_mla_decode_out(_PLAN, out, size, device, lengths)
        _plan_sparse_mla_decode_out(*arguments, out)
        return out
    except RuntimeError as error:
        reason = _registration.why_no_kernel(_PLAN, error, device, "device")
        if reason is None:
            raise
        raise NotImplementedError(reason) from error
