"""FlashMLA's sparse attention, under its names, signatures and return conventions::

    from dsa_ext.compat import flash_mla                 # for: import flash_mla
    from dsa_ext.compat.flash_mla import flash_mla_sparse_fwd, flash_mla_with_kvcache, get_mla_metadata

Any number of query heads, indices and tokens a page is taken. Dense attention is not here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import dsa_ext

__all__ = ["FlashMLASchedMeta", "flash_mla_sparse_fwd", "flash_mla_with_kvcache", "get_mla_metadata"]


@dataclass
class FlashMLASchedMeta:
    """How the work of flash_mla_with_kvcache is divided: made in the first call that it is given to, for calls of the
    same sizes and the same values in topk_length and extra_topk_length, such as a step's other layers."""

    sizes: dict[str, int] | None = None
    plan: Tensor | None = None


def get_mla_metadata(*args: object, **kwargs: object) -> tuple[FlashMLASchedMeta, None]:
    """An empty FlashMLASchedMeta. Takes any arguments, those of older versions, and looks at none."""
    return FlashMLASchedMeta(), None


def flash_mla_sparse_fwd(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
    indexer_topk: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`dsa_ext.sparse_mla_fwd` of q [s_q, h_q, d_qk], kv [s_kv, 1, d_qk] and indices [s_q, 1, topk].

    Returns:
        (out [s_q, h_q, d_v], max_logits [s_q, h_q], lse [s_q, h_q]).

    Raises:
        NotImplementedError: indexer_topk is not 0.
        Others as sparse_mla_fwd, in its words.
    """
    if indexer_topk != 0:
        raise NotImplementedError(
            f"flash_mla_sparse_fwd: indexer_topk is {indexer_topk}, expected 0: there is no second lse here"
        )
    return dsa_ext.sparse_mla_fwd(q, kv, indices, sm_scale, d_v=d_v, attn_sink=attn_sink, topk_length=topk_length)


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`dsa_ext.sparse_mla_decode` of q [b, s_q, h_q, d], k_cache [pages, page_size, 1, bytes] and indices
    [b, s_q, topk].

    A quantised cache (is_fp8_kvcache) has any dtype of one byte, another q's. block_table and cache_seqlens are not
    looked at: indices name slots. softmax_scale is d^-0.5 by default.

    Returns:
        (out [b, s_q, h_q, 512], lse [b, h_q, s_q]): mind the order of lse's dimensions.

    Raises:
        NotImplementedError: indices is None: dense attention.
        ValueError: an argument does not fit, or not to tile_scheduler_metadata.
        Others as sparse_mla_decode, in its words.
    """
    op = "flash_mla_with_kvcache"
    if indices is None:
        raise NotImplementedError(f"{op}: indices is None, expected a tensor: dense attention is not here")
    if not isinstance(tile_scheduler_metadata, FlashMLASchedMeta):
        raise TypeError(
            f"{op}: tile_scheduler_metadata is of type {type(tile_scheduler_metadata).__name__}, expected the "
            "FlashMLASchedMeta that get_mla_metadata() returns"
        )
    for name, value, expected in (
        ("num_splits", num_splits, None),
        ("causal", causal, False),
        ("head_dim_v", head_dim_v, 512),
    ):
        if value != expected:
            raise ValueError(f"{op}: {name} is {value}, expected {expected}")
    caches = [_cache(op, "k_cache", k_cache, is_fp8_kvcache), None]
    if extra_k_cache is not None:
        caches[1] = _cache(op, "extra_k_cache", extra_k_cache, is_fp8_kvcache)
    extra = {
        "extra_kv_cache": caches[1],
        "extra_idx": extra_indices_in_kvcache,
        "extra_topk_length": extra_topk_length,
    }
    plan = _plan(op, tile_scheduler_metadata, q, indices, topk_length, extra_indices_in_kvcache, extra_topk_length)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    out, lse = dsa_ext.sparse_mla_decode(
        q, caches[0], indices, scale, topk_length=topk_length, attn_sink=attn_sink, plan=plan, **extra
    )
    return out, lse.transpose(1, 2)


def _cache(op: str, name: str, cache: Tensor, quantised: bool) -> Tensor:
    """[pages, page_size, 1, bytes] as sparse_mla_decode takes it."""
    if cache.dim() != 4 or cache.shape[2] != 1:
        raise ValueError(f"{op}: {name} has shape {tuple(cache.shape)}, expected (pages, page_size, 1, bytes)")
    if quantised != (cache.element_size() == 1):
        dtype = str(cache.dtype).removeprefix("torch.")
        raise ValueError(
            f"{op}: is_fp8_kvcache is {quantised}, and {name} is {dtype}: expected a quantised cache iff so"
        )
    cache = cache.squeeze(2)
    return cache.view(torch.uint8) if quantised else cache


def _plan(
    op: str,
    metadata: FlashMLASchedMeta,
    q: Tensor,
    indices: Tensor,
    topk_length: Tensor | None,
    extra_indices: Tensor | None,
    extra_topk_length: Tensor | None,
) -> Tensor | None:
    if q.dim() != 4 or indices.dim() != 3:
        return None  # sparse_mla_decode says what is wrong
    batch, s_q, h_q = q.shape[:3]
    extra_topk = 0 if extra_indices is None else extra_indices.shape[-1]
    sizes = {"batch": batch, "s_q": s_q, "h_q": h_q, "topk": indices.shape[-1], "extra_topk": extra_topk}
    if metadata.plan is None:
        lengths = {"extra_topk_length": extra_topk_length, "device": q.device}
        metadata.plan = dsa_ext.plan_sparse_mla_decode(topk_length, **sizes, **lengths)
        metadata.sizes = sizes
    for name, size in sizes.items():
        if metadata.sizes[name] != size:
            raise ValueError(
                f"{op}: tile_scheduler_metadata was first used with {name} = {metadata.sizes[name]}, and this call has "
                f"{size}: expected the same sizes; get_mla_metadata() gives a new one"
            )
    return metadata.plan
