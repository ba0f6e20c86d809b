"""The forwards that an enabled model has in place of its own."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Model
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaModel

from ... import nn
from .cache import PAGE_SIZE, Latents, Settings, latents_of

MODELS = DeepseekV32Model, GlmMoeDsaModel
MOST_DECODED = 8  # new tokens of a request that are decoded, rather than taken for a chunk of its prompt
# Names of our layer's parts, and of theirs.
PARTS = {
    "wq_a": "q_a_proj",
    "q_norm": "q_a_layernorm",
    "wq_b": "q_b_proj",
    "wkv_a": "kv_a_proj_with_mqa",
    "kv_norm": "kv_a_layernorm",
    "wkv_b": "kv_b_proj",
    "wo": "o_proj",
}
INDEXER_PARTS = ("wq_b", "wk", "k_norm", "weights_proj")


def find_base(op: str, model: torch.nn.Module) -> torch.nn.Module:
    """The one model without a head that there is in `model`."""
    found = [m for m in model.modules() if isinstance(m, MODELS)] if isinstance(model, torch.nn.Module) else []
    if len(found) != 1:
        expected = " or ".join(m.__name__.removesuffix("Model") + "ForCausalLM" for m in MODELS)
        raise TypeError(f"{op}: model is a {type(model).__name__} with {len(found)} DSA models, expected {expected}")
    return found[0]


def why_unsupported(base: torch.nn.Module) -> str | None:
    try:
        config = nn.DSAConfig.from_hugging_face(base.config)
    except ValueError as error:
        return str(error)
    devices = {p.device for p in base.parameters()}
    if len(devices) > 1:
        return f"model lies on {', '.join(sorted(map(str, devices)))}, expected one device"
    rows = config.n_heads * (config.qk_nope_head_dim + config.v_head_dim)
    for layer in base.layers:
        # The only weight that is not used through its module's forward.
        part = layer.self_attn.kv_b_proj
        if type(part) is not torch.nn.Linear:
            return f"kv_b_proj is a {type(part).__name__}, expected a torch.nn.Linear"
        if part.weight.itemsize < 2:
            return f"kv_b_proj has a weight of {part.weight.dtype}, expected one that is not quantised"
        if part.weight.shape != (rows, config.kv_lora_rank):
            return f"kv_b_proj has shape {tuple(part.weight.shape)}, expected {(rows, config.kv_lora_rank)}, undivided"
    return None


class Step:
    """What layers get in place of a mask: the step's tokens, and the caches.

    rows: int64 [tokens], which of the [batch * tokens] are no padding. None: all of them.
    """

    def __init__(self, step: nn.Prefill | nn.Decode, rows: Tensor | None, latents: Latents):
        self.step, self.rows, self.latents = step, rows, latents


class Attention:
    """forward of a layer's self_attn."""

    def __init__(self, theirs: torch.nn.Module, settings: Settings, index: int, gives_indices: bool):
        self.index, self.gives_indices = index, gives_indices
        self.layer = nn.SparseMLAttention(settings.config, indexer=settings.indexers[index], device="meta")
        for name, their_name in PARTS.items():
            setattr(self.layer, name, getattr(theirs, their_name))
        if self.layer.indexer is not None:
            for name in INDEXER_PARTS:
                setattr(self.layer.indexer, name, getattr(theirs.indexer, name))

    def forward(
        self, hidden_states: Tensor, *, attention_mask: Step, prev_topk_indices: Tensor | None = None, **_: Any
    ) -> tuple[Tensor | None, ...]:
        step, rows = attention_mask.step, attention_mask.rows
        x = hidden_states.flatten(0, 1)
        cache = attention_mask.latents.layer(self.index, x)
        indices = prev_topk_indices if self.layer.indexer is None else None
        out, indices = self.layer(x if rows is None else x[rows], step, cache, indices)
        if rows is not None:
            out = torch.zeros_like(x).index_copy_(0, rows, out)
        out = out.view(hidden_states.shape)
        return (out, None, indices) if self.gives_indices else (out, None)


class Enabled:
    """An enabled model: its settings, what its forwards were, and its forward."""

    def __init__(self, base: torch.nn.Module, *, fp8_indexer: bool, fp8_cache: bool):
        attentions = [layer.self_attn for layer in base.layers]
        self.base = base
        config = nn.DSAConfig.from_hugging_face(base.config)
        self.settings = Settings(config, tuple(a.indexer is not None for a in attentions), fp8_indexer, fp8_cache)
        self.rope = nn.Rope(config.rope)
        self.original = base.forward
        # The class's: what others have put in front may take just any arguments.
        self.signature = inspect.signature(type(base).forward.__get__(base))
        self.cache_name = "cache" if "cache" in self.signature.parameters else "past_key_values"
        self.replaced: list[tuple[torch.nn.Module, Any, Any]] = []  # module, our forward, the one it had of its own
        gives_indices = isinstance(base, GlmMoeDsaModel)
        for index, theirs in enumerate(attentions):
            self._replace(theirs, Attention(theirs, self.settings, index, gives_indices).forward)
        self._replace(base, self.forward)

    def _replace(self, module: torch.nn.Module, forward: Any) -> None:
        self.replaced.append((module, forward, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward

    def restore(self) -> None:
        for module, ours, _ in self.replaced:
            if module.__dict__.get("forward") != ours:
                raise RuntimeError(f"disable: the forward of a {type(module).__name__} was replaced after enable")
        for module, _, before in self.replaced:
            del module.__dict__["forward"]
            if before is not None:
                module.__dict__["forward"] = before

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, with a Step in place of the mask."""
        bound = self.signature.bind(*args, **kwargs).arguments
        given = {**bound, **bound.pop("kwargs", {})}
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if (ids is None) == (embeds is None):
            return self.original(*args, **kwargs)  # which says what is wrong
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.base.parameters()):
            raise NotImplementedError(
                "dsa_ext's attention has no backward: call the model under torch.no_grad(), or disable it for training"
            )
        tokens = ids if embeds is None else embeds
        caches = [given.pop(name, None) for name in ("cache", "past_key_values")]
        cache = next((c for c in caches if c is not None), None)
        use_cache = given.get("use_cache")
        if cache is None and (self.base.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.base.config)
        given[self.cache_name] = cache
        step, given["position_ids"] = self._step(tokens, given.get("attention_mask"), given.get("position_ids"), cache)
        # By the kinds of layers, as transformers' own masks are.
        given["attention_mask"] = dict.fromkeys(["indexed_attention", *self.base.config.layer_types], step)
        return self.original(**given)

    def _rope_on(self, device: torch.device) -> nn.Rope:
        if self.rope.frequencies.device != device:
            self.rope.to(device)
        return self.rope

    def _step(self, tokens: Tensor, mask: Any, positions: Tensor | None, cache: Any) -> tuple[Step, Tensor]:
        """(step, position_ids)"""
        batch, count = tokens.shape[:2]
        latents = Latents(self.settings, kept=False) if cache is None else latents_of(cache, self.settings)
        new = _new_tokens(mask, batch, count, latents)
        rows = None if mask is None or new.all() else new.flatten().nonzero().squeeze(1).to(tokens.device)
        if positions is None:
            positions = torch.arange(latents.seen, latents.seen + count, device=tokens.device)[None]
        elif cache is None and mask is None:
            new = _packed(positions.expand(batch, -1).cpu())
        starts, lengths = latents.extend(new)
        of_tokens = positions.expand(batch, -1).flatten()
        options = {
            "page_size": PAGE_SIZE,
            "rope": self._rope_on(tokens.device),
            "positions": of_tokens if rows is None else of_tokens[rows],
        }
        table = latents.block_table(tokens.device)
        if latents.kept and 1 <= lengths[0] <= MOST_DECODED and len(set(lengths)) == 1:
            ends = [start + lengths[0] for start in starts]
            lens = torch.tensor(ends, dtype=torch.int32, device=tokens.device)
            step = nn.Decode(table, lens, next_n=lengths[0], max_context_len=max(ends), **options)
        else:
            step = nn.PrefillBatch(table, starts=starts, lengths=lengths, **options)
        return Step(step, rows, latents), positions


def _new_tokens(mask: Any, batch: int, count: int, latents: Latents) -> Tensor:
    """bool [batch, count] on the CPU: which of the new tokens are no padding."""
    if latents.seen and len(latents.columns) != batch:
        raise ValueError(f"the cache is of {len(latents.columns)} sequences, expected {batch}, as in the batch")
    if mask is None:
        return torch.ones(batch, count, dtype=torch.bool)
    expected = f"None or a tensor of shape {(batch, latents.seen + count)}: of all tokens, those in the cache included"
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask is of type {type(mask).__name__}, expected {expected}")
    if mask.shape != (batch, latents.seen + count):
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, expected {expected}")
    mask = mask.bool().cpu()
    if latents.seen and not torch.equal(mask[:, : latents.seen], latents.columns):
        raise ValueError("attention_mask differs for tokens in the cache from what it was when they were computed")
    return mask[:, latents.seen :]


def _packed(positions: Tensor) -> Tensor:
    """bool [sequences, longest]: the tokens of the sequences that rows consist of. Wherever position_ids does not go on
    by one, a sequence begins, and sees nothing of those before."""
    begins = torch.ones_like(positions, dtype=torch.bool)
    begins[:, 1:] = positions.diff(dim=1) != 1
    lengths = begins.flatten().nonzero().squeeze(1).diff(append=torch.tensor([begins.numel()]))
    return torch.arange(int(lengths.max())) < lengths[:, None]
