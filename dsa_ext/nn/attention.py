"""Multi-head latent attention over the keys that the indexer chooses."""

import torch
from torch import Tensor, nn

import dsa_ext

from .cache import LayerCache
from .config import DSAConfig
from .indexer import LightningIndexer
from .linear import Linear, RMSNorm
from .rope import rotate
from .step import Decode, Prefill


class SparseMLAttention(nn.Module):
    """The attention layer of DeepSeek-V3.2 and GLM-5, in its absorbed form: all heads share one key of 576 elements,
    the latent (512, also the value) and a part with RoPE (64), and wkv_b's two halves go into queries and outputs.

    The keys are always read from the cache, as it holds them: in how many chunks a prompt is computed, or that a token
    is decoded, makes no difference.

    Parameters have the names of converted checkpoints (`dsa-convert`): wq_a, q_norm, wq_b, wkv_a, kv_norm, wkv_b, wo,
    indexer.*.

    Args:
        config: sizes; n_heads of all ranks.
        indexer: False for a layer that reuses the indices of a layer before.
        group: a torch.distributed process group, over whose ranks the heads are divided: wq_b, wkv_b and wo are the
            rank's share. forward is then collective, and its result the same on every rank. None: all heads are here.
    """

    def __init__(self, config: DSAConfig, *, indexer: bool = True, group=None, device=None, dtype=None):
        super().__init__()
        ranks = 1 if group is None else torch.distributed.get_world_size(group)
        if config.n_heads % ranks:
            raise ValueError(
                f"SparseMLAttention: group has {ranks} ranks, expected a divisor of {config.n_heads} heads"
            )
        self.config, self.group = config, group
        self.heads = heads = config.n_heads // ranks
        nope, rope, latent = config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank
        options = {"device": device, "dtype": dtype}
        self.wq_a = Linear(config.dim, config.q_lora_rank, **options)
        self.q_norm = RMSNorm(config.q_lora_rank, config.rms_norm_eps, **options)
        self.wq_b = Linear(config.q_lora_rank, heads * (nope + rope), **options)
        self.wkv_a = Linear(config.dim, latent + rope, **options)
        self.kv_norm = RMSNorm(latent, config.rms_norm_eps, **options)
        self.wkv_b = Linear(latent, heads * (nope + config.v_head_dim), **options)
        self.wo = Linear(heads * config.v_head_dim, config.dim, **options)
        self.indexer = LightningIndexer(config, **options) if indexer else None

    def forward(
        self, x: Tensor, step: Prefill | Decode, cache: LayerCache, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stores the keys of the step's tokens, then attends.

        Args:
            x: [tokens, dim]; for Decode request by request, next_n tokens each.
            indices: what a layer before returned, for a layer without indexer.

        Returns:
            out: [tokens, dim].
            indices: of the keys that were attended to, for layers behind that reuse them.
        """
        if (indices is None) == (self.indexer is None):
            expected = "None: the layer has an indexer" if self.indexer else "those of a layer before"
            given = "None" if indices is None else "given"
            raise ValueError(f"SparseMLAttention: indices is {given}, expected {expected}")
        if x.dim() != 2 or x.shape[0] != step.tokens:
            raise ValueError(
                f"SparseMLAttention: x has shape {tuple(x.shape)}, expected (tokens, {self.config.dim}) with tokens = "
                f"{step.tokens}"
            )
        qr = self.q_norm(self.wq_a(x))
        if self.indexer is not None:
            indices = self.indexer(x, qr, step, cache)
        cache.store_keys(self._keys(x, step), step.slots)
        latent = self._attend(self._queries(qr, step), step, cache, indices)  # [tokens, heads, 512]
        values = torch.bmm(latent.transpose(0, 1), self._value_weights().transpose(1, 2))  # [heads, tokens, v_head_dim]
        out = self.wo(values.transpose(0, 1).flatten(1))
        if self.group is not None:
            torch.distributed.all_reduce(out, group=self.group)
        return out, indices

    def _keys(self, x: Tensor, step: Prefill | Decode) -> Tensor:
        """[tokens, 576]"""
        latent, pe = self.wkv_a(x).split([self.config.kv_lora_rank, self.config.qk_rope_head_dim], -1)
        return torch.cat([self.kv_norm(latent), rotate(pe, step.cos, step.sin, interleaved=True)], -1)

    def _queries(self, qr: Tensor, step: Prefill | Decode) -> Tensor:
        """[tokens, heads, 576]"""
        q = self.wq_b(qr).unflatten(-1, (self.heads, -1))
        nope, pe = q.split([self.config.qk_nope_head_dim, self.config.qk_rope_head_dim], -1)
        pe = rotate(pe, step.cos[:, None], step.sin[:, None], interleaved=True)
        return torch.cat([torch.bmm(nope.transpose(0, 1), self._key_weights()).transpose(0, 1), pe], -1)

    def _key_weights(self) -> Tensor:
        """[heads, nope, 512], a view of wkv_b, as is the next: nothing has to be absorbed in advance."""
        return self.wkv_b.weight.unflatten(0, (self.heads, -1))[:, : self.config.qk_nope_head_dim]

    def _value_weights(self) -> Tensor:
        """[heads, v_head_dim, 512]"""
        return self.wkv_b.weight.unflatten(0, (self.heads, -1))[:, self.config.qk_nope_head_dim :]

    def _attend(self, q: Tensor, step: Prefill | Decode, cache: LayerCache, indices: Tensor) -> Tensor:
        scale = self.config.softmax_scale
        if isinstance(step, Prefill):
            return dsa_ext.sparse_mla_fwd(q, cache.keys(step.context_slots, q.dtype), indices, scale)[0]
        topk_length, plan = step.plan(self.heads, indices.shape[-1])
        q = q.unflatten(0, (step.batch, step.next_n))
        return dsa_ext.sparse_mla_decode(q, cache.kv, indices, scale, topk_length=topk_length, plan=plan)[0].flatten(
            0, 1
        )
