"""The lightning indexer: which keys each token attends to."""

import torch
from torch import Tensor, nn

import dsa_ext

from .cache import LayerCache
from .config import DSAConfig
from .linear import LayerNorm, Linear, wide_dtype
from .rope import rotate
from .step import Decode, Prefill


class LightningIndexer(nn.Module):
    """For each token s and each token t before it and itself::

        q = wq_b(qr), k = k_norm(wk(x)), both with RoPE;  w = weights_proj(x) * (h * d)^-0.5
        logit[s, t] = sum_h w[s, h] * relu(q[s, h] . k[t])

    and the index_topk largest of them; all, where there are no more. With a quantised cache, q and k are rotated by a
    Hadamard matrix and quantised to FP8 (`prepare_indexer`). Weights are whole on every rank of a tensor-parallel
    group, so that all find the same indices.
    """

    def __init__(self, config: DSAConfig, *, device=None, dtype=None):
        super().__init__()
        self.config = config
        heads, d = config.index_n_heads, config.index_head_dim
        options = {"device": device, "dtype": dtype}
        self.wq_b = Linear(config.q_lora_rank, heads * d, **options)
        self.wk = Linear(config.dim, d, **options)
        self.k_norm = LayerNorm(d, eps=1e-6, device=device, dtype=dtype)
        # The sum over heads is as good as its weights: float32, or better.
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.weights_proj = Linear(config.dim, heads, device=device, dtype=wide)

    def forward(self, x: Tensor, qr: Tensor, step: Prefill | Decode, cache: LayerCache) -> Tensor:
        """Stores the keys of the step's tokens and chooses.

        Args:
            x: [tokens, dim], the layer's input.
            qr: [tokens, q_lora_rank], the compressed query that the attention's queries come from, too.

        Returns:
            int32, ascending, -1 at the end: for Prefill [tokens, topk] positions, for Decode [b, next_n, topk] slots.
        """
        config = self.config
        heads, d = config.index_n_heads, config.index_head_dim
        q = self.wq_b(qr).unflatten(-1, (heads, d))
        k = self.k_norm(self.wk(x))
        weights = self.weights_proj(x.to(self.weights_proj.weight.dtype))
        if cache.index.dtype == torch.uint8:
            q, k, k_scale, weights = dsa_ext.prepare_indexer(
                q, k, weights.float(), step.cos, step.sin, rope=config.index_rope
            )
            cache.store_index_codes(k, k_scale, step.slots)
        else:
            interleaved = config.index_rope == "interleaved"
            q = rotate(q, step.cos[:, None], step.sin[:, None], interleaved=interleaved)
            cache.store_index_keys(rotate(k, step.cos, step.sin, interleaved=interleaved), step.slots)
            weights = (weights.to(wide_dtype(weights)) * (heads * d) ** -0.5).float()  # rounded once, as transformers
        return (self._of_chunk if isinstance(step, Prefill) else self._of_batch)(q, weights, step, cache)

    def _of_chunk(self, q: Tensor, weights: Tensor, step: Prefill, cache: LayerCache) -> Tensor:
        if cache.index.dtype == torch.uint8:
            k, k_scale = cache.index_codes(step.context_slots)
            return dsa_ext.indexer_topk(q, k, k_scale, weights, step.k_start, step.k_end, self.config.index_topk)
        return self._plain(q, cache.index_keys(step.context_slots), weights, step.k_start, step.k_end)

    def _plain(self, q: Tensor, k: Tensor, weights: Tensor, k_start: Tensor, k_end: Tensor) -> Tensor:
        """On keys as they are, which no kernel takes: in plain torch, on a GPU, too."""
        return dsa_ext.reference.indexer_topk(q, k, None, weights, k_start, k_end, self.config.index_topk)

    def _of_batch(self, q: Tensor, weights: Tensor, step: Decode, cache: LayerCache) -> Tensor:
        q, weights = (t.unflatten(0, (step.batch, step.next_n)) for t in (q, weights))
        topk = self.config.index_topk
        if cache.index.dtype == torch.uint8:
            options = {"max_context_len": step.max_context_len, "plan": step.index_plan}
            return dsa_ext.paged_indexer_topk(q, cache.index, weights, step.lengths, step.block_table, topk, **options)
        k_start = torch.zeros_like(step.lengths)
        requests = zip(q, weights, step.context_slots, k_start, step.lengths, strict=True)
        return torch.stack([self._of_request(*request, cache) for request in requests])

    def _of_request(
        self, q: Tensor, weights: Tensor, slots: Tensor, k_start: Tensor, k_end: Tensor, cache: LayerCache
    ) -> Tensor:
        """int32 [next_n, topk] slots, for keys that are kept as they are."""
        positions = self._plain(q, cache.index_keys(slots), weights, k_start, k_end)
        return torch.where(positions < 0, -1, slots[positions.clamp(min=0)]).int()
