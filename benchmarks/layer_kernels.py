"""What benchmarks/layer.py times beside dsa_ext's kernels within one layer: the peers' in their place, and dense
attention; and how a layer's time is divided."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import peers
import timing
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

import dsa_ext
from dsa_ext import _registration_indexer, nn

PARTS = ("projections", "logits", "topk", "attention")
Function = Callable[..., Any]


@dataclass(frozen=True)
class Kernels:
    """What the two calls of a layer go to: the indexer's, also without its top-k, and the attention's."""

    index: Function
    logits: Function  # its result is not looked at
    attend: Function


@contextmanager
def replaced(module: Any, **functions: Function) -> Iterator[None]:
    """The module's functions of those names are others for a while."""
    before = {name: getattr(module, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def on(call: timing.Call, names: tuple[str, str], index: Function, attend: Function) -> Any:
    """A layer's call, whose calls of the functions of dsa_ext with these names go there."""
    with replaced(dsa_ext, **dict(zip(names, (index, attend), strict=True))):
        return call()


@dataclass
class Recorded:
    """The arguments and the result of a call."""

    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None
    result: Any = None

    def of(self, function: Function) -> Function:
        """The function, whose last call this becomes."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.arguments, self.options = arguments, options
            self.result = function(*arguments, **options)
            return self.result

        return call

    def again(self, *_: Any, **__: Any) -> Any:
        return self.result


class Stages:
    """A layer's call, as far as each of PARTS. What lies behind is left out: instead, its result from a call before is
    taken. So a part's time is that of its stage less that of the stage before, in the place where it runs in the layer,
    and the parts' times add up to the layer's."""

    def __init__(self, call: timing.Call, names: tuple[str, str], kernels: Kernels):
        self.call, self.names, self.kernels = call, names, kernels
        self.index, self.attend = Recorded(), Recorded()
        on(call, names, self.index.of(kernels.index), self.attend.of(kernels.attend))

    def calls(self) -> dict[str, timing.Call]:
        k = self.kernels

        def no_topk(*arguments: Any, **options: Any) -> Tensor:
            k.logits(*arguments, **options)
            return self.index.result

        functions = {
            "projections": (self.index.again, self.attend.again),
            "logits": (no_topk, self.attend.again),
            "topk": (k.index, self.attend.again),
            "attention": (k.index, k.attend),
        }
        return {name: partial(on, self.call, self.names, *pair) for name, pair in functions.items()}


def parts(stages: dict[str, float]) -> dict[str, float]:
    """Of the stages' times, in order: what each part adds."""
    times = list(stages.values())
    return {name: t - before for name, t, before in zip(stages, times, [0.0, *times], strict=False)}


def ours(names: tuple[str, str]) -> Kernels:
    index, attend = (getattr(dsa_ext, name) for name in names)

    def logits(*arguments: Any, **options: Any) -> None:
        with replaced(_registration_indexer, _topk=lambda *_: None):
            index(*arguments, **options)

    return Kernels(index, logits, attend)


class Peers:
    """DeepGEMM's logits, SGLang's top-k and FlashMLA's attention, in the place of ours. What a model makes once a step
    for all layers is made in advance."""

    name = "the peers' kernels in our layer"

    def __init__(self, logits: peers.DeepGemm, topk: peers.SglangTopk, attention: peers.FlashMla):
        self.logits, self.topk, self.attention = logits, topk, attention

    def describe(self) -> dict[str, str]:
        return {"version": "; ".join(f"{p.name} {p.version}" for p in (self.logits, self.topk, self.attention))}

    def kernels(self, step: nn.Prefill | nn.Decode) -> Kernels:
        return self._prefill() if isinstance(step, nn.Prefill) else self._decode(step)

    def _prefill(self) -> Kernels:
        def logits(q, k, k_scale, weights, k_start, k_end, topk) -> Tensor:
            return self.logits.logits(q, k, k_scale, weights, k_start, k_end)()

        def index(*arguments) -> Tensor:
            scores, (k_end, topk) = logits(*arguments), arguments[-2:]
            chosen = k_end.new_empty(len(scores), topk)
            self.topk.choose(scores, chosen, k_end)  # every range begins with 0
            return chosen

        def attend(q, kv, idx, scale) -> tuple[Tensor]:
            return (self.attention.prefill(q, kv, idx, scale)()[0][:, : q.shape[1]],)

        return Kernels(index, logits, attend)

    def _decode(self, step: nn.Decode) -> Kernels:
        page_size, slots = step.page_size, step.context_slots.int()
        index_plan, plan = self.logits.plan(step.lengths, page_size), []
        rows = torch.arange(step.batch + 1, dtype=torch.int32, device=slots.device)

        def logits(q, k_cache, weights, lengths, block_table, topk, max_context_len, **of_ours) -> Tensor:
            weights = weights.flatten(0, 1)
            arguments = (q, k_cache, weights, lengths, block_table, max_context_len, index_plan)
            return self.logits.paged_logits(*arguments)()

        def index(*arguments, **options) -> Tensor:
            scores, lengths, topk = logits(*arguments, **options), arguments[3].flatten(), arguments[5]
            chosen = lengths.new_empty(len(lengths), topk)
            self.topk.choose_slots(scores, chosen, lengths, slots, rows)
            return chosen[:, None]

        def attend(q, kv_cache, idx, scale, **of_ours) -> tuple[Tensor]:
            padded = self.attention.padded(q)
            out, _, *made = self.attention.decode(padded, kv_cache, idx, scale, tuple(plan) or None)()
            plan[:] = plan or made
            return (out[:, :, : q.shape[2]],)

        return Kernels(index, logits, attend)


class DensePrefill:
    """The layer with dense attention, over keys and values of every head that are kept as such for all tokens."""

    def __init__(self, layer: nn.SparseMLAttention, tokens: int):
        config, weight = layer.config, layer.wkv_b.weight
        width = config.qk_nope_head_dim + config.qk_rope_head_dim
        self.layer = layer
        self.k = weight.new_zeros(tokens, layer.heads, width)
        # As wide as the keys: torch's FlashAttention takes no other values.
        self.v = weight.new_zeros(tokens, layer.heads, max(width, config.v_head_dim))

    def attend(self, q: Tensor, start: int, end: int) -> Tensor:
        q, k, v = (t.transpose(0, 1)[None] for t in (q, self.k[:end], self.v[:end]))
        bias, scale = causal_lower_right(end - start, end), self.layer.config.softmax_scale
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)[0].transpose(0, 1)
        return out[..., : self.layer.config.v_head_dim]

    def __call__(self, x: Tensor, step: nn.Prefill, attend: Function | None = None) -> Tensor:
        """attend: in place of the attention."""
        layer, config = self.layer, self.layer.config
        nope, pe = config.qk_nope_head_dim, config.qk_rope_head_dim
        end = len(step.context_slots)
        start = end - step.tokens
        latent, k_pe = layer._keys(x, step).split([config.kv_lora_rank, pe], -1)
        expanded = layer.wkv_b(latent).unflatten(-1, (layer.heads, -1))
        new = slice(start, end)
        self.k[new, :, :nope], self.k[new, :, nope:] = expanded[..., :nope], k_pe[:, None]
        self.v[new, :, : config.v_head_dim] = expanded[..., nope:]
        q = layer.wq_b(layer.q_norm(layer.wq_a(x))).unflatten(-1, (layer.heads, -1))
        rope = (step.cos[:, None], step.sin[:, None])
        q = torch.cat([q[..., :nope], nn.rotate(q[..., nope:], *rope, interleaved=True)], -1)
        return layer.wo((attend or self.attend)(q, start, end).flatten(1))


class DenseDecode:
    """The layer with dense attention, over the latents in bf16, one contiguous piece a request: absorbed, as ours."""

    def __init__(self, layer: nn.SparseMLAttention, latents: Tensor):
        self.layer, self.latents = layer, latents  # [b, context, 576]
        self.attend = partial(self._attend, SDPBackend.MATH)

    def choose(self, q: Tensor) -> tuple[str, float]:
        """Takes the fastest of torch's back ends on queries [b, heads, 576]: which, and seconds a call. RuntimeError
        where none takes them."""
        times = {}
        for backend in BACKENDS:
            try:
                times[backend] = _seconds(partial(self._attend, backend, q))
            except RuntimeError:  # not taken, or more memory than there is
                if q.is_cuda:
                    torch.cuda.empty_cache()
        if not times:
            raise RuntimeError("no back end of torch's attention takes the call")
        best = min(times, key=times.get)
        self.attend = partial(self._attend, best)
        return best.name.lower(), times[best]

    def _attend(self, backend: SDPBackend, q: Tensor) -> Tensor:
        """A request's heads as queries of one head, without a mask: all see all keys."""
        k, v = self.latents[:, None], self.latents[:, None, :, : self.layer.config.kv_lora_rank]
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q[:, None], k, v, scale=self.layer.config.softmax_scale)[:, 0]

    def __call__(self, x: Tensor, step: nn.Decode, attend: Function | None = None) -> Tensor:
        """attend: in place of the attention. Of the requests, all as long as latents."""
        layer = self.layer
        self.latents[:, -1] = layer._keys(x, step)
        latent = (attend or self.attend)(layer._queries(layer.q_norm(layer.wq_a(x)), step))
        return layer.wo(torch.einsum("thc,hvc->thv", latent, layer._value_weights()).flatten(1))


BACKENDS = (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)


def dense_stages(call: Callable[..., Tensor], dense: DensePrefill | DenseDecode) -> dict[str, timing.Call]:
    """As Stages.calls, of the two parts that there are: call(attend) is the layer with that for its attention."""
    recorded = Recorded()
    call(recorded.of(dense.attend))
    return {"projections": partial(call, recorded.again), "attention": partial(call, dense.attend)}


def _seconds(call: timing.Call) -> float:
    best = math.inf
    for _ in range(2):  # the first may compile, and allocate
        _wait()
        start = time.perf_counter()
        call()
        _wait()
        best = min(best, time.perf_counter() - start)
    return best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
