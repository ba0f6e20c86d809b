"""A DSA attention layer as dense attention, in float64: keys and values of every head written out, the softmax over all
tokens with -inf off the chosen set. From the definitions, sharing nothing with the package."""

import math

import torch
from indexer_oracle import roped
from torch import Tensor


def angles(config, s: int) -> tuple[Tensor, Tensor]:
    """cos, sin [s, 32] of positions 0 ... s - 1."""
    rope = config.rope
    dims, turns = 64, []
    for i in range(dims // 2):
        plain = rope.theta ** (-2 * i / dims)
        if rope.factor > 1:

            def where(rotations):
                wavelengths = rope.original_context / (2 * math.pi * rotations)
                return dims / 2 * math.log(wavelengths) / math.log(rope.theta)

            low, high = math.floor(where(rope.beta_fast)), math.ceil(where(rope.beta_slow))
            keep = 1 - min(max((i - low) / (high - low), 0), 1)
            plain = keep * plain + (1 - keep) * plain / rope.factor
        turns.append(plain)
    angle = torch.arange(s).double()[:, None] * torch.tensor(turns, dtype=torch.float64)
    return angle.cos(), angle.sin()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + eps).sqrt() * weight


def index_scores(config, weights: dict[str, Tensor], x: Tensor, rope: str | None = None) -> Tensor:
    """[s, s], -inf for the tokens behind."""
    w = {name: t.double() for name, t in weights.items()}
    s, h, d = len(x), config.index_n_heads, config.index_head_dim
    cos, sin = angles(config, s)
    qr = rms_norm(x @ w["wq_a.weight"].T, w["q_norm.weight"], config.rms_norm_eps)
    q = (qr @ w["indexer.wq_b.weight"].T).view(s, h, d)
    k = x @ w["indexer.wk.weight"].T
    k = (k - k.mean(-1, keepdim=True)) / (k.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    k = k * w["indexer.k_norm.weight"] + w["indexer.k_norm.bias"]
    q, k = (roped(t, cos, sin, rope or config.index_rope) for t in (q, k))
    head_weights = x @ w["indexer.weights_proj.weight"].T / math.sqrt(h) / math.sqrt(d)
    scores = (torch.einsum("shd,td->sth", q, k).clamp(min=0) * head_weights[:, None]).sum(-1)
    return scores.masked_fill(torch.ones(s, s).triu(1).bool(), -math.inf)


def chosen(config, scores: Tensor) -> Tensor:
    """[s, s] of bool: the index_topk best of each row; of equal ones the first."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[:, : config.index_topk]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, True) & (scores > -math.inf)


def attention(config, weights: dict[str, Tensor], x: Tensor, mask: Tensor, rope: str = "interleaved") -> Tensor:
    """[s, dim] of the layer, where token i sees the tokens t with mask[i, t]."""
    w = {name: t.double() for name, t in weights.items()}
    s, h, nope = len(x), config.n_heads, config.qk_nope_head_dim
    cos, sin = angles(config, s)
    qr = rms_norm(x @ w["wq_a.weight"].T, w["q_norm.weight"], config.rms_norm_eps)
    q = (qr @ w["wq_b.weight"].T).view(s, h, nope + 64)
    latent, k_pe = (x @ w["wkv_a.weight"].T).split([512, 64], -1)
    latent = rms_norm(latent, w["kv_norm.weight"], config.rms_norm_eps)
    expanded = (latent @ w["wkv_b.weight"].T).view(s, h, nope + config.v_head_dim)
    q = torch.cat([q[..., :nope], roped(q[..., nope:], cos, sin, rope)], -1)
    k_pe = roped(k_pe, cos, sin, rope)[:, None].expand(-1, h, -1)
    k, v = torch.cat([expanded[..., :nope], k_pe], -1), expanded[..., nope:]
    scale = 1 / math.sqrt(nope + 64)
    if config.rope.factor > 1 and config.rope.mscale_all_dim:
        scale *= (0.1 * config.rope.mscale_all_dim * math.log(config.rope.factor) + 1) ** 2
    logits = torch.einsum("shd,thd->hst", q, k) * scale
    weights_of_keys = logits.masked_fill(~mask, -math.inf).softmax(-1)
    out = torch.einsum("hst,thv->shv", weights_of_keys, v).flatten(1)
    return out @ w["wo.weight"].T
