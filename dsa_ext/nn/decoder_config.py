"""The sizes of a whole decoder, read from Hugging Face's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .config import DSAConfig

MLP_TYPES = ("dense", "sparse")  # one MLP for all tokens, or a mixture of experts
INDEXER_TYPES = ("full", "shared")  # an indexer of its own, or the indices of the last layer that has one
# What DeepSeek-V3.2 and GLM-5 have, and is built in; a config.json may leave it out.
_BUILT_IN = {
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "tie_word_embeddings": False,
    "mlp_bias": False,
}


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A mixture of experts. n_group groups of neighbouring experts, of which a token's experts lie in the topk_group
    best; shared_experts are added for every token, as one MLP of shared_experts * intermediate_size."""

    experts: int
    shared_experts: int
    experts_per_token: int
    intermediate_size: int
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least = getattr(self, f.name), 0 if f.name == "shared_experts" else 1
            if f.type in (int, "int") and (type(value) is not int or value < least):
                raise ValueError(f"MoEConfig: {f.name} is {value!r}, expected an int >= {least}")
        if self.experts % self.n_group:
            raise ValueError(f"MoEConfig: n_group is {self.n_group}, expected a divisor of {self.experts} experts")
        if self.topk_group > self.n_group:
            raise ValueError(f"MoEConfig: topk_group is {self.topk_group}, expected at most n_group = {self.n_group}")
        in_group = self.experts // self.n_group
        if self.topk_group < self.n_group and in_group < 2:
            raise ValueError(f"MoEConfig: n_group is {self.n_group}, expected groups of 2 of {self.experts} experts")
        if self.experts_per_token > self.topk_group * in_group:
            raise ValueError(
                f"MoEConfig: experts_per_token is {self.experts_per_token}, expected at most the "
                f"{self.topk_group * in_group} of topk_group = {self.topk_group} groups"
            )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder; `mlp_types` and `indexer_types` have an entry a layer."""

    attention: DSAConfig
    vocab_size: int
    mlp_types: tuple[str, ...]
    indexer_types: tuple[str, ...]
    intermediate_size: int  # of a dense MLP
    moe: MoEConfig | None  # None: no layer is sparse

    def __post_init__(self) -> None:
        for name in ("vocab_size", "intermediate_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"DecoderConfig: {name} is {value!r}, expected an int >= 1")
        if not self.mlp_types or len(self.indexer_types) != self.layers:
            raise ValueError(
                f"DecoderConfig: indexer_types has {len(self.indexer_types)} entries and mlp_types {self.layers}, "
                "expected one a layer"
            )
        for name, known in (("mlp_types", MLP_TYPES), ("indexer_types", INDEXER_TYPES)):
            for kind in getattr(self, name):
                if kind not in known:
                    raise ValueError(f"DecoderConfig: {name} has {kind!r}, expected {' or '.join(map(repr, known))}")
        if self.indexer_types[0] == "shared":
            raise ValueError("DecoderConfig: indexer_types begins with 'shared', expected 'full': nothing is before it")
        if "sparse" in self.mlp_types and self.moe is None:
            raise ValueError("DecoderConfig: moe is None, expected a MoEConfig: mlp_types has 'sparse'")

    @property
    def layers(self) -> int:
        return len(self.mlp_types)

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> "DecoderConfig":
        """From the contents of a config.json of DeepSeek-V3.2 or GLM-5.

        Raises:
            ValueError: an entry is missing, or says something that this package has not.
        """
        attention = DSAConfig.from_hugging_face(config)
        for name, expected in _BUILT_IN.items():
            if config.get(name, expected) != expected:
                raise ValueError(f"DecoderConfig: {name} is {config[name]!r}, expected {expected!r}")
        layers = _entry(config, "num_hidden_layers")
        mlp_types = config.get("mlp_layer_types")
        if mlp_types is None:
            dense = min(_entry(config, "first_k_dense_replace"), layers)
            mlp_types = ["dense"] * dense + ["sparse"] * (layers - dense)
        return cls(
            attention=attention,
            vocab_size=_entry(config, "vocab_size"),
            mlp_types=_a_layer(mlp_types, "mlp_layer_types", layers),
            indexer_types=_a_layer(_indexer_types(config, layers), "indexer_types", layers),
            intermediate_size=_entry(config, "intermediate_size"),
            moe=_moe(config) if "sparse" in mlp_types else None,
        )


def _entry(config: Mapping[str, Any], name: str, least: int = 0) -> int:
    """An int that has to be there."""
    value = config.get(name)
    if value is None:
        raise ValueError(f"DecoderConfig: the configuration has no {name}")
    if type(value) is not int or value < least:
        raise ValueError(f"DecoderConfig: {name} is {value!r}, expected an int >= {least}")
    return value


def _a_layer(kinds: Any, name: str, layers: int) -> tuple[str, ...]:
    """Entries beyond the layers are the MTP layer's."""
    if not isinstance(kinds, (list, tuple)) or len(kinds) < layers:
        raise ValueError(f"DecoderConfig: {name} is {kinds!r}, expected an entry for each of {layers} layers")
    return tuple(kinds[:layers])


def _indexer_types(config: Mapping[str, Any], layers: int) -> Any:
    """As they are, as letters (index_topk_pattern: F, S), or by a period (index_topk_freq), of which the first "full"
    layers before it are index_skip_topk_offset."""
    if config.get("indexer_types") is not None:
        return config["indexer_types"]
    pattern = config.get("index_topk_pattern")
    if isinstance(pattern, str):
        letters = {"F": "full", "S": "shared"}
        return [letters.get(letter, letter) for letter in pattern]
    if pattern is not None:
        return pattern
    if config.get("index_topk_freq") is None:
        return ["full"] * layers
    period, first = max(_entry(config, "index_topk_freq"), 1), config.get("index_skip_topk_offset", 2)
    return ["full" if max(i - first + 1, 0) % period == 0 else "shared" for i in range(layers)]


def _moe(config: Mapping[str, Any]) -> MoEConfig:
    norm, scaling = config.get("norm_topk_prob"), config.get("routed_scaling_factor")
    for name, value, kind in (("norm_topk_prob", norm, bool), ("routed_scaling_factor", scaling, (int, float))):
        if value is None:
            raise ValueError(f"DecoderConfig: the configuration has no {name}")
        if not isinstance(value, kind):
            raise ValueError(f"DecoderConfig: {name} is {value!r}, expected {'a bool' if kind is bool else 'a number'}")
    return MoEConfig(
        experts=_entry(config, "n_routed_experts"),
        shared_experts=_entry(config, "n_shared_experts"),
        experts_per_token=_entry(config, "num_experts_per_tok"),
        intermediate_size=_entry(config, "moe_intermediate_size"),
        n_group=_entry(config, "n_group"),
        topk_group=_entry(config, "topk_group"),
        routed_scaling_factor=float(scaling),
        norm_topk_prob=norm,
    )
