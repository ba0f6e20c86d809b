"""What is computed: the stack over the whole text, then its layers' last chunk with other topk, and densely."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dsa_ext import nn

from . import model
from .text import Text

PAGE_SIZE = 64
CHUNK = 1024  # of the prefill
LAST = 128  # tokens at the end of the text, which the comparison is over


@dataclass
class Agreement:
    """Sparse attention of the last tokens with this topk, against dense attention."""

    topk: int
    needle: int  # words of the planted sentence that are picked for the last token
    mass: float  # of dense attention's weights, on the keys that are picked: the mean over tokens and heads
    error: float  # of the layer's output, relative: the norm of the difference over dense attention's norm
    ms: float  # of the layer


@dataclass
class Result:
    text: Text
    device: str
    picks: list[Tensor]  # of each layer: [LAST, topk] positions, -1 at the end
    weights: Tensor  # [tokens], dense attention's for the last token in the first layer: the mean over the heads
    agreements: list[Agreement]  # of the first layer
    dense_ms: float
    random_needle: int  # words of the planted sentence that a first layer with random weights picks

    @property
    def topk(self) -> int:
        return self.picks[0].shape[1]

    @property
    def last(self) -> int:
        """Tokens at the end that picks and agreements are of."""
        return self.picks[0].shape[0]

    def needle_picks(self, picks: Tensor) -> list[int]:
        """Positions of the planted sentence among the last token's picks."""
        return sorted(set(picks[-1].tolist()) & set(self.text.needle))


class Sequence:
    """The text's vectors, and what all layers share."""

    def __init__(self, text: Text, device: str, dtype: torch.dtype):
        self.x = model.embed(text).to(device, dtype)
        self.tokens, self.device = len(text.words), device
        pages = -(-self.tokens // PAGE_SIZE)
        self.table = torch.arange(pages, dtype=torch.int32, device=device)
        self.rope = nn.Rope(model.CONFIG.rope, device=device)

    def step(self, start: int, end: int) -> nn.Prefill:
        return nn.Prefill(self.table, start=start, length=end - start, page_size=PAGE_SIZE, rope=self.rope)

    def cache(self) -> nn.LayerCache:
        return nn.LayerCache.new(model.CONFIG, pages=len(self.table), page_size=PAGE_SIZE, device=self.device)

    def prefill(self, layer: nn.SparseMLAttention, x: Tensor, cache: nn.LayerCache) -> tuple[Tensor, Tensor]:
        """The layer's output for all tokens; and the indices of the last ones."""
        results = [layer(x[chunk], step, cache) for chunk, step in self._chunks()]
        return torch.cat([out for out, _ in results]), results[-1][1]

    def picks(self, layer: nn.SparseMLAttention, x: Tensor) -> Tensor:
        """The indices of the last ones alone."""
        cache = self.cache()
        return [layer.indexer(x[c], layer.q_norm(layer.wq_a(x[c])), step, cache) for c, step in self._chunks()][-1]

    def _chunks(self) -> list[tuple[slice, nn.Prefill]]:
        bounds = [*range(0, self.tokens - LAST, CHUNK), self.tokens - LAST, self.tokens]
        return [(slice(a, b), self.step(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]


def run(text: Text, device: str, layers: int = 2) -> Result:
    """On the CPU in float32, on a GPU in bfloat16; the caches are FP8 in both."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    sequence = Sequence(text, device, dtype)
    x, picks = sequence.x, []
    for number in range(layers):
        layer, cache = model.make_layer(number, device, dtype), sequence.cache()
        inputs = F.rms_norm(x, x.shape[-1:])
        out, indices = sequence.prefill(layer, inputs, cache)
        picks.append(indices.cpu())
        if number == 0:
            first = layer, inputs[-LAST:], cache
        x = x + out
    agreements, dense_ms, weights = _compare(text, sequence, *first)
    torch.manual_seed(0)
    blind = nn.SparseMLAttention(model.CONFIG, device=device, dtype=dtype).requires_grad_(False)
    random_needle = len(set(sequence.picks(blind, sequence.x)[-1].tolist()) & set(text.needle))
    return Result(text, device, picks, weights, agreements, dense_ms, random_needle)


def _compare(
    text: Text, sequence: Sequence, layer: nn.SparseMLAttention, x: Tensor, cache: nn.LayerCache
) -> tuple[list[Agreement], float, Tensor]:
    step = sequence.step(sequence.tokens - LAST, sequence.tokens)
    keys = cache.keys(step.context_slots, x.dtype)
    seen = torch.arange(len(keys), device=x.device) < step.k_end[:, None]  # [LAST, tokens]
    want, dense_ms = _timed(lambda: _dense(layer, x, step, keys, seen))
    q = layer._queries(layer.q_norm(layer.wq_a(x)), step)
    logits = torch.einsum("thc,kc->htk", q.float(), keys.float()) * layer.config.softmax_scale
    weights = logits.masked_fill(~seen, -math.inf).softmax(-1).mean(0)  # [LAST, tokens]
    agreements = []
    for topk in _sweep(sequence.tokens):
        layer.config = layer.indexer.config = replace(model.CONFIG, index_topk=topk)
        (got, indices), ms = _timed(lambda: layer(x, step, cache))
        difference = (got.float() - want.float()).norm() / want.float().norm()
        mass = weights.gather(1, indices.clamp(min=0).long()).masked_fill(indices < 0, 0).sum(-1).mean()
        needle = len(set(indices[-1].tolist()) & set(text.needle))
        agreements.append(Agreement(topk, needle, float(mass), float(difference), ms))
    layer.config = layer.indexer.config = model.CONFIG
    return agreements, dense_ms, weights[-1].cpu()


def _sweep(tokens: int) -> list[int]:
    """Powers of two and, at the end, what takes every token."""
    powers = [16 * 2**i for i in range(16)]
    return [*(k for k in powers if k < tokens), tokens]


def _dense(layer: nn.SparseMLAttention, x: Tensor, step: nn.Prefill, keys: Tensor, seen: Tensor) -> Tensor:
    """The layer with torch's attention over all keys, absorbed as the sparse one. [LAST, DIM]"""
    q = layer._queries(layer.q_norm(layer.wq_a(x)), step).transpose(0, 1)[None]
    k = keys[None, None].expand(-1, q.shape[1], -1, -1)
    v = k[..., : layer.config.kv_lora_rank]
    latent = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=layer.config.softmax_scale)[0]
    return layer.wo(torch.einsum("htc,hvc->thv", latent, layer._value_weights()).flatten(1))


def _timed(call: Callable) -> tuple:
    """The result, and the milliseconds of the fastest of three calls; of one, where it takes a second."""
    times = []
    while len(times) < 3 and sum(times) < 1e3:
        _wait()
        start = time.perf_counter()
        result = call()
        _wait()
        times.append((time.perf_counter() - start) * 1e3)
    return result, min(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
