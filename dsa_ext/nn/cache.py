"""The paged caches of one layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

import dsa_ext

from .config import DSAConfig

KV_BYTES, INDEX_BYTES = 656, 132  # of a token, where a cache is quantised


@dataclass
class LayerCache:
    """Keys of the attention and of the indexer, [pages, page_size, ...] each; made by `new`.

    kv: uint8, format "v32" of `pack_kv_cache`; or the keys as they are, [pages, page_size, 576].
    index: uint8, see `store_indexer_cache`; or the keys as they are, [pages, page_size, 128]. None for a layer that
        has no indexer of its own.
    """

    kv: Tensor
    index: Tensor | None

    @classmethod
    def new(
        cls,
        config: DSAConfig,
        *,
        pages: int,
        page_size: int = 64,
        indexer: bool = True,
        kv_dtype: torch.dtype = torch.uint8,
        index_dtype: torch.dtype = torch.uint8,
        device: torch.device | str | None = None,
    ) -> "LayerCache":
        """Caches of pages * page_size tokens, of zeros. The dtypes: uint8 for FP8, or a float dtype, the layer's, for
        keys that are kept as they are (an indexer's then go through plain torch: kernels take FP8 only)."""
        quantised = torch.uint8

        def cache(dtype: torch.dtype, fp8: int, plain: int) -> Tensor:
            shape = (pages, page_size, fp8) if dtype == quantised else (pages + 1, page_size, plain)
            # The page beyond the last takes what belongs nowhere.
            return torch.zeros(shape, dtype=dtype, device=device)[:pages]

        kv = cache(kv_dtype, KV_BYTES, config.key_dim)
        return cls(kv, cache(index_dtype, INDEX_BYTES, config.index_head_dim) if indexer else None)

    @property
    def page_size(self) -> int:
        return self.kv.shape[1]

    def store_keys(self, keys: Tensor, slots: Tensor) -> None:
        """keys [n, 576] into slots int32 [n]; those outside the cache are skipped."""
        if self.kv.dtype == torch.uint8:
            dsa_ext.store_kv_cache(keys, self.kv, slots)
        else:
            _store(keys, self.kv, slots)

    def keys(self, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """[n, 576], as the attention reads them. All slots are the cache's."""
        rows = self.kv.flatten(0, 1)[slots]
        if self.kv.dtype == torch.uint8:
            rows = dsa_ext.unpack_kv_cache(rows)
        return rows.to(dtype)

    def store_index_codes(self, codes: Tensor, scale: Tensor, slots: Tensor) -> None:
        dsa_ext.store_indexer_cache(codes, scale, self.index, slots)

    def store_index_keys(self, keys: Tensor, slots: Tensor) -> None:
        _store(keys, self.index, slots)

    def index_codes(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """e4m3 [n, 128] and scales float32 [n]. All slots are the cache's."""
        page_size, d = self.index.shape[1], self.index.shape[2] - 4
        codes, scales = self.index.flatten(1).split([page_size * d, page_size * 4], 1)
        page, place = slots // page_size, slots % page_size
        scale = scales.unflatten(1, (page_size, 4))[page, place].view(torch.float32).squeeze(-1)
        return codes.unflatten(1, (page_size, d))[page, place].view(torch.float8_e4m3fn), scale

    def index_keys(self, slots: Tensor) -> Tensor:
        return self.index.flatten(0, 1)[slots]


def _store(rows: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Without a look at the values of slots, which would wait for the device: see the page beyond the last."""
    pages, page_size, d = cache.shape
    count = pages * page_size
    whole = cache.as_strided((count + 1, d), (d, 1))
    # As numbers without a sign, negative slots are beyond the cache, too.
    whole.index_copy_(0, (slots.long() & 0xFFFFFFFF).clamp(max=count), rows.to(cache.dtype))
