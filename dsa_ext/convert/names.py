"""Tensor names: from Hugging Face's to the converted ones, and how each tensor spreads over the ranks.

The table goes by the place of a module, not by its own name alone: the indexer's `wq_b` is replicated while attention's
`q_b_proj`, which becomes `wq_b` too, is sliced by heads. A name outside the table is unknown; nothing is guessed.
"""

import re
from dataclasses import dataclass

# place -> module -> (converted module, the dim that is sliced over the ranks or None for a copy on each)
_MLP = {"gate_proj": ("w1", 0), "up_proj": ("w3", 0), "down_proj": ("w2", 1)}
_MODULES = {
    "": {"embed_tokens": ("embed", 0), "norm": ("norm", None), "lm_head": ("head", 0)},
    "layers.#": {
        "input_layernorm": ("attn_norm", None),
        "post_attention_layernorm": ("ffn_norm", None),
    },
    "layers.#.self_attn": {
        "q_proj": ("wq", 0),
        "q_a_proj": ("wq_a", None),
        "q_a_layernorm": ("q_norm", None),
        "q_b_proj": ("wq_b", 0),
        "kv_a_proj_with_mqa": ("wkv_a", None),
        "kv_a_layernorm": ("kv_norm", None),
        "kv_b_proj": ("wkv_b", 0),
        "o_proj": ("wo", 1),
    },
    "layers.#.self_attn.indexer": {
        "wq_b": ("wq_b", None),
        "wk": ("wk", None),
        "k_norm": ("k_norm", None),
        "weights_proj": ("weights_proj", None),
    },
    "layers.#.mlp": {"gate": ("gate", None), **_MLP},
    "layers.#.mlp.shared_experts": _MLP,
    "layers.#.mlp.experts.#": {module: (new, None) for module, (new, _) in _MLP.items()},
}
_PARAMETERS = {"weight": "weight", "bias": "bias", "weight_scale_inv": "scale"}
_PLACES = {"self_attn": "attn", "mlp": "ffn"}
_NUMBER = re.compile(r"(?<=\.)(?:0|[1-9][0-9]*)(?=\.)")  # of a layer or an expert
_LAYER = re.compile(r"(?:model\.)?layers\.(0|[1-9][0-9]*)\.")
_EXPERT = re.compile(r"(\.mlp\.experts\.)([0-9]+)\.")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a tensor goes. `dim` is the sliced one; a routed expert (`expert` is its number) goes to its owner alone;
    with neither, every rank has the whole tensor."""

    name: str
    dim: int | None = None
    expert: int | None = None


def layer(name: str) -> int | None:
    """The number of the layer that a tensor of either naming belongs to, None outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def pattern(name: str) -> str:
    """The name with the numbers of its layer and its expert as `*`."""
    return _NUMBER.sub("*", name)


def without_expert(name: str) -> str:
    """The name with the number of its expert as `*`."""
    return _EXPERT.sub(r"\1*.", name)


def target(name: str) -> Target | None:
    """Where the tensor of this Hugging Face name goes, None for an unknown name."""
    stripped = name.removeprefix("model.")
    if stripped.count(".") == 0:
        return None
    *place, module, parameter = stripped.split(".")
    where = _NUMBER.sub("#", ".".join(place) + ".").removesuffix(".")
    known = _MODULES.get(where, {}).get(module)
    suffix = _PARAMETERS.get(parameter)
    if (module, parameter) == ("gate", "e_score_correction_bias"):
        suffix = "bias"
    if known is None or suffix is None:
        return None
    new, dim = known
    parts = [_PLACES.get(part, part) for part in place]
    expert = _EXPERT.search(stripped)
    return Target(".".join([*parts, new, suffix]), dim, int(expert[2]) if expert else None)
