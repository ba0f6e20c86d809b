"""CPU and fake implementations of the ops that quantise for the indexer; see _registration.py."""

import torch
from torch import Tensor

from . import reference
from ._checks_indexer_quant import E4M3


@torch.library.impl("dsa_ext::quantize_indexer", "cpu")
def _quantize_indexer_cpu(x: Tensor, scale_format: str) -> tuple[Tensor, Tensor]:
    return reference.quantize_indexer(x, scale_format=scale_format)


@torch.library.impl("dsa_ext::prepare_indexer", "cpu")
def _prepare_indexer_cpu(
    q: Tensor, k: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, rope: str, hadamard: bool, scale_format: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = {"rope": rope, "hadamard": hadamard, "scale_format": scale_format}
    return reference.prepare_indexer(q, k, weights, cos, sin, **options)


@torch.library.impl("dsa_ext::store_indexer_cache", "cpu")
def _store_indexer_cache_cpu(k: Tensor, k_scale: Tensor, k_cache: Tensor, slots: Tensor) -> None:
    reference.store_indexer_cache(k, k_scale, k_cache, slots)


@torch.library.register_fake("dsa_ext::quantize_indexer")
def _quantize_indexer_fake(x, scale_format):
    return x.new_empty(x.shape, dtype=E4M3), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.register_fake("dsa_ext::prepare_indexer")
def _prepare_indexer_fake(q, k, weights, cos, sin, rope, hadamard, scale_format):
    s, heads = q.shape[:2]
    return (
        q.new_empty(q.shape, dtype=E4M3),
        k.new_empty(k.shape, dtype=E4M3),
        k.new_empty((s,), dtype=torch.float32),
        q.new_empty((s, heads), dtype=torch.float32),
    )


@torch.library.register_fake("dsa_ext::store_indexer_cache")
def _store_indexer_cache_fake(k, k_scale, k_cache, slots):
    return None
