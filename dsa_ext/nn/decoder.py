"""The whole decoder of DeepSeek-V3.2 and GLM-5, under the names of converted checkpoints."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import SparseMLAttention
from .cache import LayerCache
from .decoder_config import DecoderConfig
from .linear import Linear, RMSNorm
from .mlp import MLP
from .moe import MoE
from .parallel import gather_columns, share, sum_over_ranks
from .step import Decode, Prefill


class Embedding(nn.Module):
    """A row a token of the vocabulary, of which a rank holds an equal part."""

    def __init__(self, tokens: int, dim: int, *, group=None, device=None, dtype=None):
        super().__init__()
        self.group, self.tokens = group, share("vocab_size", tokens, group)
        self.weight = nn.Parameter(torch.empty(len(self.tokens), dim, device=device, dtype=dtype).normal_())

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [n], all in the vocabulary -> [n, dim]."""
        if self.group is None:
            return F.embedding(tokens, self.weight)
        row = tokens - self.tokens.start
        here = (row >= 0) & (row < len(self.tokens))
        rows = F.embedding(torch.where(here, row, 0), self.weight)
        return sum_over_ranks(rows.masked_fill(~here[:, None], 0), self.group)


class DecoderLayer(nn.Module):
    """x + attn(attn_norm(x)), and to that ffn(ffn_norm(.)): a dense MLP or a mixture of experts."""

    def __init__(self, config: DecoderConfig, layer: int, *, group=None, device=None, dtype=None):
        super().__init__()
        self.group = group
        attention, options = config.attention, {"device": device, "dtype": dtype}
        self.attn_norm = RMSNorm(attention.dim, attention.rms_norm_eps, **options)
        indexer = config.indexer_types[layer] == "full"
        self.attn = SparseMLAttention(attention, indexer=indexer, group=group, **options)
        self.ffn_norm = RMSNorm(attention.dim, attention.rms_norm_eps, **options)
        if config.mlp_types[layer] == "sparse":
            self.ffn = MoE(attention.dim, config.moe, group=group, **options)
        else:
            self.ffn = MLP(attention.dim, config.intermediate_size, group=group, **options)

    def forward(
        self, x: Tensor, step: Prefill | Decode, cache: LayerCache, indices: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x [tokens, dim]; indices of the last layer with an indexer, None before the first -> x, indices."""
        given = None if self.attn.indexer is not None else indices
        out, indices = self.attn(self.attn_norm(x), step, cache, given)
        x = x + out
        # The ranks' summands are added in float32, and rounded once.
        out = sum_over_ranks(self.ffn(self.ffn_norm(x)).float(), self.group)
        return x + out.to(x.dtype), indices


class Decoder(nn.Module):
    """Embedding, layers, norm and head.

    Parameters have the names that `dsa-convert` writes, and with a group the sizes of its shards. forward and logits
    are then collective, and their results the same on every rank.

    Args:
        config: sizes, of all ranks.
        group: a torch.distributed process group, or None: heads, inner dimensions of MLPs, routed experts and the
            vocabulary are divided over its ranks.
        dtype: float32, bfloat16 or float16; gates and the indexers' head weights are float32 all the same.

    Raises:
        ValueError: something does not divide by the ranks.
    """

    def __init__(self, config: DecoderConfig, *, group=None, device=None, dtype=None):
        super().__init__()
        self.config, self.group = config, group
        attention, options = config.attention, {"device": device, "dtype": dtype}
        self.embed = Embedding(config.vocab_size, attention.dim, group=group, **options)
        self.layers = nn.ModuleList(DecoderLayer(config, i, group=group, **options) for i in range(config.layers))
        self.norm = RMSNorm(attention.dim, attention.rms_norm_eps, **options)
        self.head = Linear(attention.dim, len(share("vocab_size", config.vocab_size, group)), **options)

    def new_caches(self, **sizes) -> list[LayerCache]:
        """A cache a layer, on the model's device; sizes as `LayerCache.new` takes them."""
        config, device = self.config, self.norm.weight.device
        full = [kind == "full" for kind in config.indexer_types]
        return [LayerCache.new(config.attention, indexer=indexer, device=device, **sizes) for indexer in full]

    def forward(self, tokens: Tensor, step: Prefill | Decode, caches: Sequence[LayerCache]) -> Tensor:
        """Stores the keys of the step's tokens and computes what `logits` takes.

        Args:
            tokens: int64 [n], those of step; all in the vocabulary.
            caches: one a layer.

        Returns:
            [n, dim], normalised.
        """
        x, indices = self.embed(tokens), None
        for layer, cache in zip(self.layers, caches, strict=True):
            x, indices = layer(x, step, cache, indices)
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """Rows of forward's result, [n, dim] -> float32 [n, vocab_size]."""
        return gather_columns(self.head(x).float(), self.group)
