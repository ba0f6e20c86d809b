"""The layers, with weights that are made by hand so that what they do can be followed.

A word becomes a vector by a hash of its letters: equal words have equal vectors, others nearly orthogonal ones. A
token's vector is the sum of those of its word and of the words before it, the rarer the word and the nearer, the more.
So the inner product of two tokens says how much of their wording is alike.

- Indexer: half of its heads score that inner product (in the dimensions without RoPE), half of them nearness (a
  constant in the dimensions with RoPE).
- Attention: every head scores the inner product, in a random projection of its own, from vague to sharp.
- Output: the average of what is attended to, added to the token's vector.

That is a caricature of what training finds. What follows from it, which tokens are picked and how close sparse
attention comes to dense, holds for these weights; the layers, caches and kernels are those of any model.
"""

import hashlib
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dsa_ext import nn

from .text import Text

DIM = 512  # the last of which is the same for every token
CONSTANT = 0.25
WINDOW, FADING = 8, 0.8  # words of a token's vector, and the weight of each against the one behind it
NEARNESS = 0.12  # its weight against the wording's, about
VAGUE, SHARP = 0.5, 1.5  # the heads' attention

CONFIG = nn.DSAConfig(
    dim=DIM,
    n_heads=16,
    q_lora_rank=DIM,
    qk_nope_head_dim=128,
    v_head_dim=128,
    index_n_heads=8,
    index_topk=64,
)


def embed(text: Text) -> Tensor:
    """float32 [tokens, DIM], of norm sqrt(DIM)."""
    total, count = len(text.words), text.frequencies
    vectors = {word: _vector(word) * math.log(total / n) / math.log(total) for word, n in count.items()}
    words = torch.stack([vectors[word] for word in text.words])
    mixed = sum(FADING**back * F.pad(words, (0, 0, back, 0))[: len(words)] for back in range(min(WINDOW, len(words))))
    content = F.normalize(mixed, dim=-1)
    return F.normalize(F.pad(content, (0, 1), value=CONSTANT), dim=-1) * math.sqrt(DIM)


def _vector(word: str) -> Tensor:
    """[DIM - 1], of norm 1: the same wherever the word stands, on every machine."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "little")
    return F.normalize(torch.randn(DIM - 1, generator=torch.Generator().manual_seed(seed)), dim=0)


def make_layer(seed: int, device: str, dtype: torch.dtype, config: nn.DSAConfig = CONFIG) -> nn.SparseMLAttention:
    layer = nn.SparseMLAttention(config, dtype=torch.float32).requires_grad_(False)
    g = torch.Generator().manual_seed(seed)
    nope, latent, heads = config.qk_nope_head_dim, config.kv_lora_rank, config.n_heads
    layer.wq_a.weight.copy_(torch.eye(DIM))
    layer.wkv_a.weight.zero_()
    layer.wkv_a.weight[:latent].copy_(torch.eye(latent, DIM))
    _nearness(layer.wkv_a.weight[latent:], interleaved=True)
    q = layer.wq_b.weight.zero_().view(heads, -1, DIM)
    kv = layer.wkv_b.weight.view(heads, -1, latent)
    out = layer.wo.weight.view(DIM, heads, config.v_head_dim)
    for head, sharpness in enumerate(torch.linspace(VAGUE, SHARP, heads).tolist()):
        rows = _projection(nope, g)
        q[head, :nope] = sharpness * rows
        _nearness(q[head, nope:], interleaved=True)
        kv[head, :nope] = rows
        rows = _projection(config.v_head_dim, g)
        kv[head, nope:] = rows
        out[:, head] = rows.T * DIM / config.v_head_dim / heads  # of all heads together: nearly the average
    _make_indexer(layer.indexer, config, g)
    return layer.to(device=device, dtype=dtype)


def _make_indexer(indexer: nn.LightningIndexer, config: nn.DSAConfig, g: torch.Generator) -> None:
    rope, heads = config.qk_rope_head_dim, config.index_n_heads
    rows = _projection(config.index_head_dim - rope, g)
    q = indexer.wq_b.weight.zero_().view(heads, -1, DIM)
    indexer.wk.weight[rope:] = rows
    _nearness(indexer.wk.weight[:rope], interleaved=False)
    for head in range(heads):
        if head % 2:
            _nearness(q[head, :rope], interleaved=False)
        else:
            q[head, rope:] = rows
    indexer.weights_proj.weight.zero_()[:, -1] = 1  # of the constant: the same for every token and head


def _nearness(weight: Tensor, *, interleaved: bool) -> None:
    """[64, DIM]: from the constant, the first of each of RoPE's pairs, with signs that take turns. The product of two
    such vectors is the sum of the cosines of the angles between their positions."""
    weight.zero_()
    first = weight[0::2] if interleaved else weight[: len(weight) // 2]
    first[0::2, -1], first[1::2, -1] = NEARNESS, -NEARNESS


def _projection(rows: int, g: torch.Generator) -> Tensor:
    """[rows, DIM], orthonormal, without the constant."""
    return F.pad(torch.linalg.qr(torch.randn(DIM - 1, rows, generator=g))[0].T, (0, 1))
