"""What counts as the right result of sparse_mla_decode: comparison with the float64 reference on the dequantised cache.

The criteria are those of oracle.py, the allowance for weights in bf16 among them, with tolerances of their own."""

from collections.abc import Sequence

import torch
from cases import SparseMlaFwdInputs
from decode_cases import DecodeInputs
from oracle import WEIGHT_ROUNDING, check_out, check_stat, weight_spread
from torch import Tensor

from dsa_ext import reference

OUT = (1e-3, 2.01 / 128, 5e-6)  # absolute, relative, 1 - cosine
LSE_REL = 8.01 / 65536
_KEYS_AT_ONCE = 2**17


def verify(
    results: Sequence[Tensor],
    inputs: DecodeInputs,
    queries: Tensor | None = None,
    bf16_weights: bool | None = None,
) -> None:
    """Raises AssertionError unless the results are right for all queries, or for those with the given numbers (which
    count through the batch). bf16_weights: the implementation rounds its weights (see oracle.weight_spread); by default
    that is what runs on a GPU does."""
    out, lse = results
    batch, s_q, h_q, _ = inputs.q.shape
    assert out.shape == (batch, s_q, h_q, 512) and lse.shape == (batch, s_q, h_q)
    if bf16_weights is None:
        bf16_weights = out.is_cuda
    if queries is None:
        queries = torch.arange(batch * s_q, device=out.device)
    keys = inputs.idx.shape[2] + (0 if inputs.extra_idx is None else inputs.extra_idx.shape[2])
    for some in queries.split(max(1, _KEYS_AT_ONCE // max(1, keys))):
        flat = flatten(inputs, some)
        want_out, _, want_lse = flat.call(reference.sparse_mla_fwd)
        magnitude = SparseMlaFwdInputs(flat.q.abs(), flat.kv.abs(), flat.idx, flat.scale, 512, None, None)
        magnitude = magnitude.call(reference.sparse_mla_fwd)[1]
        check_stat("lse", lse.flatten(0, 1)[some], want_lse, magnitude, LSE_REL)
        rounding = WEIGHT_ROUNDING * weight_spread(flat) if bf16_weights else 0.0
        check_out(out.flatten(0, 1)[some], want_out, rounding, OUT)


def flatten(inputs: DecodeInputs, queries: Tensor) -> SparseMlaFwdInputs:
    """The attention of some queries as the plainest call of sparse_mla_fwd: in float64, the keys of both caches that
    valid indices name as kv, and -1 for every entry that does not count."""
    keys, places = _keys(inputs.kv_cache, inputs.rows, inputs.idx, inputs.topk_length, queries)
    if inputs.extra_idx is not None:
        extra = (inputs.extra_kv_cache, inputs.extra_rows, inputs.extra_idx, inputs.extra_topk_length)
        more, more_places = _keys(*extra, queries)
        places = torch.cat([places, torch.where(more_places < 0, -1, more_places + len(keys))], 1)
        keys = torch.cat([keys, more])
    q = inputs.q.flatten(0, 1)[queries].double()
    return SparseMlaFwdInputs(q, keys.double(), places.int(), inputs.scale, 512, inputs.attn_sink, None)


def _keys(
    cache: Tensor, rows: Tensor | None, idx: Tensor, length: Tensor | None, queries: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows that the queries' valid indices name, each once; and for every index its place among them, or -1."""
    batch, s_q, topk = idx.shape
    pages, page_size, _ = cache.shape
    idx = idx.flatten(0, 1)[queries].long()
    counts = (idx >= 0) & (idx < pages * page_size)
    if length is not None:
        limit = length.view(batch, -1).expand(batch, s_q).flatten()[queries]
        counts &= torch.arange(topk, device=idx.device) < limit[:, None]
    slots, place = torch.unique(idx[counts], return_inverse=True)
    places = torch.full_like(idx, -1)
    places[counts] = place
    return (_unpack(cache, slots) if rows is None else rows[slots]), places


def _unpack(cache: Tensor, slots: Tensor) -> Tensor:
    """Slots of a cache that came without its rows."""
    page_size = max(1, cache.shape[1])
    page, offset = slots // page_size, slots % page_size
    if cache.dtype != torch.uint8:
        return cache[page, offset]
    if cache.shape[2] == 656:
        return reference.unpack_kv_cache(cache[page, offset], format="v32")
    pages, which = torch.unique(page, return_inverse=True)  # whole pages: a token's bytes are not together
    some = cache.flatten(1)[pages].view(len(pages), page_size, 584)
    return reference.unpack_kv_cache(some, format="v4")[which, offset]
