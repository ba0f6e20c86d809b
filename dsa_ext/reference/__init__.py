"""The package's functions in plain torch, for any float dtype and device: what the tests compare the kernels with."""

from .attention import sparse_mla_fwd
from .cache import pack_kv_cache, store_kv_cache, unpack_kv_cache
from .decode import sparse_mla_decode
from .indexer import indexer_topk, paged_indexer_topk
from .indexer_quant import prepare_indexer, quantize_indexer, store_indexer_cache
from .logits import indexer_logits, paged_indexer_logits
from .topk import topk_indices

__all__ = [
    "indexer_logits",
    "indexer_topk",
    "pack_kv_cache",
    "paged_indexer_logits",
    "paged_indexer_topk",
    "prepare_indexer",
    "quantize_indexer",
    "sparse_mla_decode",
    "sparse_mla_fwd",
    "store_indexer_cache",
    "store_kv_cache",
    "topk_indices",
    "unpack_kv_cache",
]
