"""CPU and fake implementations of the KV cache's ops; see _registration.py."""

import torch
from torch import Tensor

from . import reference
from ._checks_cache import KV_FORMATS


@torch.library.impl("dsa_ext::pack_kv_cache", "cpu")
def _pack_kv_cache_cpu(kv: Tensor, format: str, page_size: int | None, scale_format: str) -> Tensor:
    return reference.pack_kv_cache(kv, format=format, page_size=page_size, scale_format=scale_format)


@torch.library.impl("dsa_ext::unpack_kv_cache", "cpu")
def _unpack_kv_cache_cpu(packed: Tensor, format: str) -> Tensor:
    return reference.unpack_kv_cache(packed, format=format)


@torch.library.impl("dsa_ext::store_kv_cache", "cpu")
def _store_kv_cache_cpu(kv: Tensor, kv_cache: Tensor, slots: Tensor, format: str, scale_format: str) -> None:
    reference.store_kv_cache(kv, kv_cache, slots, format=format, scale_format=scale_format)


@torch.library.register_fake("dsa_ext::pack_kv_cache")
def _pack_kv_cache_fake(kv, format, page_size, scale_format):
    form = KV_FORMATS[format]
    if page_size is None:
        return kv.new_empty((kv.shape[0], form.token_bytes), dtype=torch.uint8)
    shape = ((kv.shape[0] + page_size - 1) // page_size, page_size, form.token_bytes)
    return kv.new_empty_strided(shape, (form.page_stride(page_size), form.token_bytes, 1), dtype=torch.uint8)


@torch.library.register_fake("dsa_ext::unpack_kv_cache")
def _unpack_kv_cache_fake(packed, format):
    return packed.new_empty((*packed.shape[:-1], KV_FORMATS[format].head_dim), dtype=torch.bfloat16)


@torch.library.register_fake("dsa_ext::store_kv_cache")
def _store_kv_cache_fake(kv, kv_cache, slots, format, scale_format):
    return None
