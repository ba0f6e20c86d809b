"""DeepSeek Sparse Attention for PyTorch: CUDA kernels for Hopper and Blackwell, and the same functions on the CPU."""

import importlib.util

import torch  # maps the libraries that _C names without a path  # noqa: F401

try:
    from . import _C
except ImportError as error:
    if importlib.util.find_spec("dsa_ext._C") is None:
        _reason = (
            "dsa_ext._C is not built: run `pip install -e .` in the checkout, or leave its folder if you installed it"
        )
    else:
        _reason = f"dsa_ext._C does not load with torch {torch.__version__} (torch >= 2.11 is needed): {error}"
    raise ImportError(f"dsa_ext: {_reason}") from None

from . import compat, nn, reference
from ._build_info import build_info
from .attention import sparse_mla_fwd
from .cache import pack_kv_cache, store_kv_cache, unpack_kv_cache
from .decode import plan_sparse_mla_decode, sparse_mla_decode
from .indexer import indexer_topk, paged_indexer_topk
from .indexer_quant import prepare_indexer, quantize_indexer, store_indexer_cache
from .logits import indexer_logits, paged_indexer_logits, plan_paged_indexer_logits
from .topk import topk_indices

__all__ = [
    "build_info",
    "compat",
    "indexer_logits",
    "indexer_topk",
    "nn",
    "pack_kv_cache",
    "paged_indexer_logits",
    "paged_indexer_topk",
    "plan_paged_indexer_logits",
    "plan_sparse_mla_decode",
    "prepare_indexer",
    "quantize_indexer",
    "reference",
    "sparse_mla_decode",
    "sparse_mla_fwd",
    "store_indexer_cache",
    "store_kv_cache",
    "topk_indices",
    "unpack_kv_cache",
]
__version__: str = _C.build_info()["version"]
