"""Sparse attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _registration

_OP = "sparse_mla_fwd"
_sparse_mla_fwd = torch.ops.dsa_ext.sparse_mla_fwd.default
_sparse_mla_fwd_out = torch.ops.dsa_ext.sparse_mla_fwd_out.default


def sparse_mla_fwd(
    q: Tensor,
    kv: Tensor,
    idx: Tensor,
    scale: float,
    *,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
    out: Tensor | Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of every query over the keys that its indices name: the sparse MLA of DeepSeek-V3.2, for prefill.

    For query s and head h, over the valid entries t of idx[s], with k_t = kv[t] and v_t = kv[t, :d_v] (the absorbed, or
    MQA, form of multi-head latent attention: one key a token, shared by all heads)::

        logit[t]   = scale * q[s, h] . k_t
        max_logits = max_t logit[t]
        lse        = ln sum_t exp(logit[t])
        out        = sum_t exp(logit[t] - lse) * v_t

    as in "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models" (section on DeepSeek Sparse Attention:
    core attention over the tokens that the lightning indexer selects).

    Args:
        q: queries, [s_q, h_q, d_qk] or, batched, [b, s_q, h_q, d_qk]. Any h_q.
        kv: keys, whose first d_v columns are the values: [s_kv, d_qk] or [s_kv, 1, d_qk]; batched [b, s_kv, d_qk].
            q's dtype.
        idx: int32 rows of kv, [s_q, topk] or [s_q, 1, topk]; batched [b, s_q, topk], relative to the query's own
            sequence. Any topk. An index < 0 or >= s_kv is skipped and its row never read, so rows that nobody names may
            hold anything. An index that occurs twice counts twice.
        scale: factor of the logits, a finite float > 0 (also in float32). 1 / sqrt(192) times YaRN's factor in
            DeepSeek-V3.2.
        d_v: columns of a value.
        attn_sink: [h_q] float32, natural-logarithm units: a logit that takes part in the softmax but has no value, so
            out is multiplied by 1 / (1 + exp(attn_sink - lse)). max_logits and lse are as without it. -inf changes
            nothing, +inf makes out 0.
        topk_length: [s_q], batched [b, s_q], int32: a query looks at the first topk_length entries of its indices.
            Values are clamped to [0, topk].
        out: a buffer for the first result, or a tuple of buffers for all three. They may be strided (out with a
            contiguous last dimension) and share no memory with each other or with an input.

    Returns:
        out: [.., h_q, d_v] in q's dtype.
        max_logits: [.., h_q] float32 (float64 for float64 inputs).
        lse: as max_logits; natural logarithm.

        A query without a valid index has out = 0, max_logits = -inf, lse = +inf.

    On CUDA (Hopper; runs on the current stream, does not synchronise, can be captured in a CUDA graph) q and kv are
    bfloat16, d_qk is 576 or 512 and d_v 512. Results are the same bits on every launch, and a query's do not depend on
    the other queries. On the CPU it is the reference implementation: any float dtype, any d_qk >= d_v >= 1. The last
    dimension of q, kv and idx is contiguous; their other strides are free.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device or value does not fit.
        NotImplementedError: an input requires grad while grad mode is on (there is no backward), or no kernel of this
            build runs on the device.
    """
    scale = _checks.check_sparse_mla_fwd(_OP, q, kv, idx, scale, d_v, attn_sink, topk_length, plain=False)
    if torch.is_grad_enabled():
        _checks.check_no_grad(_OP, q=q, kv=kv, attn_sink=attn_sink)
    try:
        if out is None:
            return _sparse_mla_fwd(q, kv, idx, scale, d_v, attn_sink, topk_length)
        inputs = {"q": q, "kv": kv, "idx": idx, "attn_sink": attn_sink, "topk_length": topk_length}
        out = _checks.check_sparse_mla_fwd_out(_OP, out, q, d_v, inputs)
        _sparse_mla_fwd_out(q, kv, idx, scale, d_v, attn_sink, topk_length, *out)
        return out
    except RuntimeError as error:
        reason = _registration.why_no_kernel(_OP, error, q.device)
        if reason is None:
            raise
        raise NotImplementedError(reason) from error
