"""What counts as the right result: comparison with the float64 reference."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from cases import SparseMlaFwdInputs
from torch import Tensor

from dsa_ext import reference

OUT_ABS, OUT_REL, OUT_COSINE = 8e-4, 3.01 / 128, 7e-6
STAT_ABS, STAT_REL = 1e-6, 2.01 / 65536
OUT = (OUT_ABS, OUT_REL, OUT_COSINE)
# Tensor cores multiply weights in bf16, which rounds each by up to 2^-8 of it, uniformly: a deviation of 2^-8 / sqrt(3)
# at most, 0.74 of that on average. Where a few weights dominate, this alone exceeds OUT_ABS, whatever the
# implementation: with standard normal inputs, d_qk 576, 8e-4 is one deviation for a query of 65 keys and five for 2048
# keys. Five of the largest are allowed.
WEIGHT_ROUNDING = 5 * 2.0**-8 / 3**0.5
# Of scale * sum |q_i k_i|, the sum that a logit is rounded in.
LOGIT_ROUNDING = 2.0**-20


def flatten(inputs: SparseMlaFwdInputs, queries: Tensor | None = None) -> SparseMlaFwdInputs:
    """The same attention, or that of some queries, as the plainest call: unbatched, float64, no topk_length, kv cut to
    the rows that valid indices name, and -1 for every entry that does not count."""
    heads, d_qk = inputs.q.shape[-2:]
    batch = inputs.q.shape[0] if inputs.q.dim() == 4 else 1
    topk = inputs.idx.shape[-1]
    s_kv = inputs.kv.shape[1] if inputs.q.dim() == 4 else inputs.kv.shape[0]
    s_q = inputs.q.shape[-3]

    number = torch.arange(batch * s_q, device=inputs.q.device) if queries is None else queries
    sequence, token = number // s_q, number % s_q
    q = inputs.q.reshape(batch, s_q, heads, d_qk)[sequence, token]
    idx = inputs.idx.reshape(batch, s_q, topk)[sequence, token].long()
    counts = (idx >= 0) & (idx < s_kv)
    if inputs.topk_length is not None:
        length = inputs.topk_length.reshape(batch, s_q)[sequence, token]
        counts &= torch.arange(topk, device=idx.device) < length[:, None]
    rows, place = torch.unique((idx + sequence[:, None] * s_kv)[counts], return_inverse=True)
    compact = torch.full_like(idx, -1)
    compact[counts] = place
    kv = inputs.kv.reshape(batch, s_kv, d_qk)[rows // max(1, s_kv), rows % max(1, s_kv)]
    return replace(inputs, q=q.double(), kv=kv.double(), idx=compact.int(), topk_length=None)


def verify(
    results: Sequence[Tensor],
    inputs: SparseMlaFwdInputs,
    queries: Tensor | None = None,
    bf16_weights: bool | None = None,
) -> None:
    """Raises AssertionError unless the results are right for all queries, or for those with the given numbers (which
    count through the batch). bf16_weights: the implementation rounds its weights (see weight_rounding); by default
    that is what runs on a GPU does."""
    if bf16_weights is None:
        bf16_weights = results[0].is_cuda
    flat = flatten(inputs, queries)
    out, max_logits, lse = (r.flatten(0, 1) if inputs.q.dim() == 4 else r for r in results)
    if queries is not None:
        out, max_logits, lse = out[queries], max_logits[queries], lse[queries]
    want_out, want_max, want_lse = flat.call(reference.sparse_mla_fwd)
    magnitude = replace(flat, q=flat.q.abs(), kv=flat.kv.abs()).call(reference.sparse_mla_fwd)[1]

    assert out.shape == want_out.shape and max_logits.shape == want_max.shape and lse.shape == want_lse.shape
    check_stat("max_logits", max_logits, want_max, magnitude)
    check_stat("lse", lse, want_lse, magnitude)
    check_out(out, want_out, WEIGHT_ROUNDING * weight_spread(flat) if bf16_weights else 0.0)


def check_out(
    got: Tensor,
    want: Tensor,
    rounding: Tensor | float = 0.0,
    tolerance: tuple[float, float, float] = OUT,
) -> None:
    """[queries, heads, d_v]. Every element within the tolerances (absolute, relative) or `rounding`, whichever is
    larger, and every query's heads together by their cosine."""
    absolute, relative, cosine = tolerance
    got = got.double()
    error = (got - want).abs()
    _require("out", (error <= absolute) | (error <= relative * want.abs()) | (error <= rounding), got, want)
    difference = cosine_difference(got, want)
    _require("out, 1 - cosine a query,", difference <= cosine, difference, torch.zeros_like(difference))


def weight_spread(flat: SparseMlaFwdInputs) -> Tensor:
    """sqrt(sum_t (p_t v_t)^2) of every output element, p being the softmax weights: [queries, heads, d_v]. Rounding
    every weight by a relative error of deviation e changes the output by a sum of deviation e times this."""
    if len(flat.kv) == 0:
        return flat.q.new_zeros(*flat.q.shape[:2], flat.d_v)
    keys = flat.kv[flat.idx.clamp(min=0).long()]
    keys = keys.where((flat.idx >= 0)[:, :, None], 0.0)
    logits = flat.scale * flat.q @ keys.mT
    logits = logits.where((flat.idx >= 0)[:, None, :], float("-inf"))
    total = logits.logsumexp(-1)
    if flat.attn_sink is not None:
        total = torch.logaddexp(total, flat.attn_sink.double())
    weights = (logits - total[:, :, None]).exp().nan_to_num(0.0)
    # A key that is named m times has m weights, which round alike: (m p v)^2 is m times the sum of m squares.
    ordered = flat.idx.sort(dim=1).values
    times = torch.searchsorted(ordered, flat.idx, right=True) - torch.searchsorted(ordered, flat.idx)
    return (weights.square() * times[:, None, :] @ keys[:, :, : flat.d_v].square()).sqrt()


def cosine_difference(x: Tensor, y: Tensor) -> Tensor:
    """1 - 2 sum xy / sum (x^2 + y^2) over all but the first dimension; 0 where both are zero."""
    x, y = x.flatten(1), y.flatten(1)
    norm = (x * x + y * y).sum(1)
    return torch.where(norm == 0, 0.0, 1 - 2 * (x * y).sum(1) / norm)


def check_stat(name: str, got: Tensor, want: Tensor, magnitude: Tensor, relative: float = STAT_REL) -> None:
    """max_logits or lse; `magnitude` is scale * max_t sum_i |q_i k_ti|, -inf for a query without valid keys."""
    got = got.double()
    error = (got - want).abs()
    close = (error <= (LOGIT_ROUNDING * magnitude).clamp(min=STAT_ABS)) | (error <= relative * want.abs())
    _require(name, torch.where(want.isfinite(), close, got == want), got, want)


def _require(name: str, ok: Tensor, got: Tensor, want: Tensor) -> None:
    if not bool(ok.all()):
        wrong = (~ok).nonzero()
        first = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{name} is wrong in {len(wrong)} of {ok.numel()} places, first at {first}: {got[first].item()}, "
            f"expected {want[first].item()}"
        )


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Equality that takes NaN for NaN and tells -0 from 0."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return all(
        x.dtype == y.dtype and torch.equal(x.view(integer[x.element_size()]), y.view(integer[y.element_size()]))
        for x, y in zip(a, b, strict=True)
    )


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """What a GPU must give for one query called in two ways: the same bits. The CPU's matrix products may round
    differently with the layout and the number of queries: there, equal up to a unit in the last place or so."""
    if a[0].is_cuda:
        return same_bits(a, b)
    return all(
        x.dtype == y.dtype
        and torch.allclose(x, y, rtol=2 * torch.finfo(x.dtype).eps, atol=1e-6 if i else 1e-4, equal_nan=True)
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    )
