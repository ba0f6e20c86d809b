"""The package's functions in plain torch, for any float dtype and device: what the tests compare the kernels with."""

from .attention import sparse_mla_fwd
from .cache import pack_kv_cache, store_kv_cache, unpack_kv_cache
from .decode import sparse_mla_decode
from .logits import indexer_logits, paged_indexer_logits

__all__ = [
    "indexer_logits",
    "pack_kv_cache",
    "paged_indexer_logits",
    "sparse_mla_decode",
    "sparse_mla_fwd",
    "store_kv_cache",
    "unpack_kv_cache",
]
