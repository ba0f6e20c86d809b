"""Sparse attention in plain torch, written to be read."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks

# Elements of gathered keys that are held at a time: 128 MiB of float32.
_GATHER_BUDGET = 2**25


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
    """As `dsa_ext.sparse_mla_fwd`, in plain torch: on every device, for every float dtype, any d_qk >= d_v >= 1.

    Computes in float64 if q is float64, else in float32; max_logits and lse have that dtype. Holds a bounded number of
    gathered keys at a time. Differentiable by torch's autograd (without `out`).
    """
    op = "reference.sparse_mla_fwd"
    scale = _checks.check_sparse_mla_fwd(op, q, kv, idx, scale, d_v, attn_sink, topk_length, plain=True)
    if out is not None:
        inputs = {"q": q, "kv": kv, "idx": idx, "attn_sink": attn_sink, "topk_length": topk_length}
        out = _checks.check_sparse_mla_fwd_out(op, out, q, d_v, inputs)

    if q.dim() == 4:
        lengths = topk_length if topk_length is not None else [None] * len(q)
        sequences = [_one_sequence(*s, scale, d_v, attn_sink) for s in zip(q, kv, idx, lengths, strict=True)]
        empty = q.new_empty(q.shape[:-1], dtype=_checks.stats_dtype(q))  # for b = 0
        results = [torch.stack(r) for r in zip(*sequences, strict=True)] or [q[..., :d_v].clone(), empty, empty.clone()]
    else:
        kv, idx = kv.flatten(0, -2), idx.flatten(1)  # drops a head dimension of size 1
        results = _one_sequence(q, kv, idx, topk_length, scale, d_v, attn_sink)

    if out is None:
        return tuple(results)
    for buffer, result in zip(out, results, strict=True):
        buffer.copy_(result)
    return out


def _one_sequence(
    q: Tensor,  # [s_q, h_q, d_qk]
    kv: Tensor,  # [s_kv, d_qk]
    idx: Tensor,  # [s_q, topk]
    topk_length: Tensor | None,  # [s_q]
    scale: float,
    d_v: int,
    attn_sink: Tensor | None,  # [h_q]
) -> tuple[Tensor, Tensor, Tensor]:
    if idx.shape[1] == 0:  # as one index that is invalid
        idx = idx.new_full((len(idx), 1), -1)
    valid = (idx >= 0) & (idx < len(kv))
    if topk_length is not None:
        valid &= torch.arange(idx.shape[1], device=idx.device) < topk_length[:, None]
    if len(kv) == 0:  # a row for the invalid indices to point to
        kv = kv.new_zeros(1, kv.shape[1])

    chunk = max(1, _GATHER_BUDGET // (idx.shape[1] * kv.shape[1]))
    chunks = [
        _some_queries(*some, kv, scale, d_v, attn_sink)
        for some in zip(q.split(chunk), idx.split(chunk), valid.split(chunk), strict=True)
    ]
    out, max_logits, lse = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return out, max_logits, lse


def _some_queries(
    q: Tensor,  # [n, h_q, d_qk]
    idx: Tensor,  # [n, topk]
    valid: Tensor,  # [n, topk]
    kv: Tensor,  # [s_kv, d_qk]
    scale: float,
    d_v: int,
    attn_sink: Tensor | None,  # [h_q]
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _checks.stats_dtype(q)
    keys = kv[idx.masked_fill(~valid, 0)].to(dtype)  # [n, topk, d_qk]
    keys = keys.masked_fill(~valid[:, :, None], 0)  # row 0 may hold NaN, and 0 * NaN is not 0
    values = keys[:, :, :d_v]

    logits = scale * (q.to(dtype) @ keys.mT)  # [n, h_q, topk]
    logits = logits.masked_fill(~valid[:, None, :], -math.inf)
    max_logits = logits.amax(-1)  # [n, h_q]

    some_valid = valid.any(-1)[:, None]  # [n, 1]
    shift = max_logits.where(some_valid, 0)
    weights = torch.exp(logits - shift[:, :, None])
    total = weights.sum(-1)
    lse = (shift + total.log()).where(some_valid, math.inf)

    out = (weights @ values) / total[:, :, None]
    if attn_sink is not None:
        out = out * torch.sigmoid(lse - attn_sink.to(dtype))[:, :, None]  # 1 / (1 + exp(sink - lse))
    out = out.where(some_valid[:, :, None], 0)
    return out.to(q.dtype), max_logits, lse
