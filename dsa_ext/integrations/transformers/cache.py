"""What an enabled model keeps of the tokens that it has seen, and how a cache of transformers holds it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from ... import nn

PAGE_SIZE = 64


@dataclass(frozen=True)
class Settings:
    """Of an enabled model. indexers: of each layer, whether it has an indexer of its own."""

    config: nn.DSAConfig
    indexers: tuple[bool, ...]
    fp8_indexer: bool
    fp8_cache: bool


class Latents:
    """The paged caches of all layers for a batch of requests, each on a run of pages of its own.

    Args:
        kept: False for a forward without a cache: caches have no room to grow and are given up after their layer.
    """

    def __init__(self, settings: Settings, *, kept: bool):
        self.settings, self.kept = settings, kept
        self.clear()

    def clear(self) -> None:
        self.layers: list[nn.LayerCache | None] = [None] * len(self.settings.indexers)
        # bool [batch, tokens] on the CPU: which of the tokens seen were no padding. Only those are in the caches.
        self.columns = torch.zeros(0, 0, dtype=torch.bool)
        self.lengths: list[int] = []  # how many of each request that are
        self.pages_each = 0

    @property
    def seen(self) -> int:
        """Tokens of each request, padding included."""
        return self.columns.shape[1]

    def extend(self, new: Tensor) -> tuple[list[int], list[int]]:
        """Makes room for the tokens of bool [batch, new tokens], on the CPU, that are no padding. Returns of each
        request how many tokens it had, and how many are new."""
        starts = self.lengths if self.seen else [0] * len(new)
        added = new.sum(1).tolist()
        self.columns = torch.cat([self.columns, new], 1) if self.seen else new
        self.lengths = [start + count for start, count in zip(starts, added, strict=True)]
        pages = -(-max(self.lengths) // PAGE_SIZE)
        if pages > self.pages_each:
            # An eighth more than it takes, so that the copying adds up to a small multiple of the final size.
            self._rearrange(torch.arange(len(new)), pages + (pages // 8 + 1 if self.kept else 0))
        return starts, added

    def select(self, requests: Tensor) -> None:
        """Request i becomes a copy of what request requests[i] was."""
        requests = requests.cpu()
        if self.seen:
            self._keep(self.columns[requests])
            self._rearrange(requests, self.pages_each)

    def crop(self, tokens: int) -> None:
        """Forgets the last tokens of every request."""
        if tokens >= self.seen:
            self.clear()
        else:
            self._keep(self.columns[:, : self.seen - tokens])

    def _keep(self, columns: Tensor) -> None:
        self.columns, self.lengths = columns, columns.sum(1).tolist()

    def block_table(self, device: torch.device) -> Tensor:
        """int32 [batch, pages]"""
        batch = len(self.columns)
        return torch.arange(batch * self.pages_each, dtype=torch.int32, device=device).view(batch, -1)

    def layer(self, index: int, x: Tensor) -> nn.LayerCache:
        """The caches of a layer, whose input is x."""
        found = self.layers[index]
        if found is None:
            found = self._new(index, len(self.columns), self.pages_each, x.dtype, x.dtype, x.device)
            if self.kept:
                self.layers[index] = found
        return found

    def _new(self, index: int, batch: int, pages_each: int, kv_dtype, index_dtype, device) -> nn.LayerCache:
        return nn.LayerCache.new(
            self.settings.config,
            pages=batch * pages_each,
            page_size=PAGE_SIZE,
            indexer=self.settings.indexers[index],
            kv_dtype=torch.uint8 if self.settings.fp8_cache else kv_dtype,
            index_dtype=torch.uint8 if self.settings.fp8_indexer else index_dtype,
            device=device,
        )

    def _rearrange(self, requests: Tensor, pages_each: int) -> None:
        old_pages, self.pages_each = self.pages_each, pages_each
        kept = min(old_pages, pages_each)
        for index, old in enumerate(self.layers):
            if old is None:
                continue
            index_dtype = None if old.index is None else old.index.dtype
            new = self._new(index, len(requests), pages_each, old.kv.dtype, index_dtype, old.kv.device)
            for source, target in ((old.kv, new.kv), (old.index, new.index)):
                if source is not None:
                    source = source.unflatten(0, (-1, old_pages))[:, :kept]
                    target = target.unflatten(0, (-1, pages_each))[:, :kept]
                    target.copy_(source[requests.to(source.device)])
            self.layers[index] = new


class LatentLayer(CacheLayerMixin):
    """A layer of transformers' cache. What concerns all layers is done once, when it is asked of the first."""

    is_croppable = True
    is_sliding = False
    supports_early_init = False
    keys = values = None

    def __init__(self, latents: Latents, index: int):
        self.latents, self.index = latents, index

    @property
    def is_initialized(self) -> bool:
        return self.latents.seen > 0

    def lazy_initialization(self, key_states, value_states) -> None:
        raise TypeError("the cache was filled while dsa_ext's attention was enabled: only with that it can go on")

    def update(self, key_states, value_states, *args, **kwargs):
        self.lazy_initialization(key_states, value_states)

    def get_seq_length(self) -> int:
        return self.latents.seen

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.latents.seen + query_length, 0

    def offload(self) -> None:
        raise NotImplementedError("the cache of a model with dsa_ext's attention cannot be offloaded")

    prefetch = offload

    def reset(self) -> None:
        if self.index == 0:
            self.latents.clear()

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(f"crop: tokens_to_remove is {tokens_to_remove}, expected minus the number of tokens")
        if self.index == 0:
            self.latents.crop(-tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.latents.columns)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.index == 0:
            self.latents.select(indices)


def latents_of(cache: Cache, settings: Settings) -> Latents:
    """What a cache holds, or from now on will."""
    first = cache.layers[0] if cache.layers else None
    if isinstance(first, LatentLayer):
        if first.latents.settings != settings:
            raise ValueError("the cache is another model's, or from before its attention was enabled anew")
        return first.latents
    if type(cache) is not DynamicCache or cache.offloading:
        kind = "an offloading one" if type(cache) is DynamicCache else f"a {type(cache).__name__}"
        raise ValueError(f"the cache is {kind}, expected a DynamicCache without offloading")
    if cache.get_seq_length():
        raise ValueError(
            f"the cache has {cache.get_seq_length()} tokens from before dsa_ext's attention was enabled, expected none"
        )
    latents = Latents(settings, kept=True)
    cache.layers = [LatentLayer(latents, index) for index in range(len(settings.indexers))]
    return latents
