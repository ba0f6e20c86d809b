"""The sizes of a DSA attention layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

# What the kernels and the formats of the caches are made for.
_FIXED = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128}
INDEX_ROPE_FORMS = ("half", "interleaved")
# Hugging Face's models that this package has the attention of, and the form of their indexer's RoPE.
HUGGING_FACE_MODELS = {"deepseek_v32": "half", "glm_moe_dsa": "interleaved"}


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Frequencies of the rotary position embedding: theta^(-2i / 64), i < 32, stretched by YaRN where factor > 1.

    YaRN leaves the dimensions alone that turn more than beta_fast times within original_context, divides the
    frequencies of those that turn less than beta_slow times by factor, and goes over linearly in between. It also
    multiplies the logits by a factor that grows with the context: mscale_all_dim's share of it is in
    DSAConfig.softmax_scale, the rest (mscale's over mscale_all_dim's; none where they are equal) in cos and sin.
    """

    theta: float = 10000.0
    factor: float = 1.0
    original_context: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def __post_init__(self) -> None:
        if not self.theta > 1:
            raise ValueError(f"RopeConfig: theta is {self.theta}, expected a number > 1")
        if not self.factor >= 1:
            raise ValueError(f"RopeConfig: factor is {self.factor}, expected a number >= 1")

    def attention_factor(self, mscale: float) -> float:
        """0.1 * mscale * ln(factor) + 1: YaRN's correction of what a longer context does to the softmax."""
        return 0.1 * mscale * math.log(self.factor) + 1.0

    @property
    def table_factor(self) -> float:
        """What cos and sin are multiplied by."""
        return self.attention_factor(self.mscale) / self.attention_factor(self.mscale_all_dim)

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any] | Any) -> "RopeConfig":
        """As DSAConfig.from_hugging_face, for the entries rope_parameters (or rope_scaling, of older files), rope_theta
        and max_position_embeddings."""
        config = _as_dict(config)
        rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        kind = rope.get("rope_type") or rope.get("type") or "default"
        theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
        unsupported = {
            "rope_type": (kind, ("default", "yarn")),
            "partial_rotary_factor": (rope.get("partial_rotary_factor") or 1.0, (1.0,)),
            "truncate": (rope.get("truncate", True), (True,)),
            "attention_factor": (rope.get("attention_factor"), (None,)),
        }
        for name, (value, supported) in unsupported.items():
            if value not in supported:
                raise ValueError(
                    f"RopeConfig: rope_parameters has {name} {value!r}, expected {' or '.join(map(repr, supported))}"
                )
        if kind == "default":
            return cls(theta=theta)
        longest = config.get("max_position_embeddings")
        original = rope.get("original_max_position_embeddings") or longest
        factor = rope.get("factor") or (longest / original if longest else None)
        if not original or not factor:
            missing = "factor" if original else "original_max_position_embeddings"
            raise ValueError(f"RopeConfig: rope_parameters has no {missing}, which YaRN needs")
        all_dim = rope.get("mscale_all_dim") or 0.0
        # Without mscale or mscale_all_dim, cos and sin get YaRN's whole factor, whatever of it the softmax has, too.
        if all_dim and not rope.get("mscale"):
            raise ValueError(f"RopeConfig: rope_parameters has mscale_all_dim {all_dim}, expected mscale with it")
        return cls(
            theta=theta,
            factor=float(factor),
            original_context=int(original),
            beta_fast=float(rope.get("beta_fast") or 32.0),
            beta_slow=float(rope.get("beta_slow") or 1.0),
            mscale=float(rope["mscale"]) if all_dim else 1.0,
            mscale_all_dim=float(all_dim),
        )


@dataclass(frozen=True, kw_only=True)
class DSAConfig:
    """One layer's attention. Names are Hugging Face's, but for dim (hidden_size) and n_heads (num_attention_heads)."""

    dim: int
    n_heads: int
    q_lora_rank: int
    qk_nope_head_dim: int
    v_head_dim: int
    index_n_heads: int
    index_topk: int
    index_rope: str = "half"  # pairs of the indexer's RoPE: (i, i + 32), or "interleaved" (2i, 2i + 1) as MLA's always
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    kv_lora_rank: int = 512
    qk_rope_head_dim: int = 64
    index_head_dim: int = 128

    def __post_init__(self) -> None:
        for name, value in _FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"DSAConfig: {name} is {getattr(self, name)}, expected {value}: the kernels' size")
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type in (int, "int") and value < 1:
                raise ValueError(f"DSAConfig: {f.name} is {value}, expected an int >= 1")
        if self.index_rope not in INDEX_ROPE_FORMS:
            expected = " or ".join(map(repr, INDEX_ROPE_FORMS))
            raise ValueError(f"DSAConfig: index_rope is {self.index_rope!r}, expected {expected}")

    @property
    def key_dim(self) -> int:
        """Of the one key that all heads share: the latent and the part with RoPE."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Fixed for a model, whatever the current length."""
        scale = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        return scale * self.rope.attention_factor(self.rope.mscale_all_dim) ** 2

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any] | Any) -> "DSAConfig":
        """From Hugging Face's configuration of a model: the contents of its config.json, or the object that
        transformers makes of it (anything with `to_dict`).

        Raises:
            ValueError: for another model than deepseek_v32 and glm_moe_dsa, an entry that is missing, sizes that the
                kernels do not take, or a RoPE other than the plain one and YaRN's.
        """
        config = _as_dict(config)
        model = config.get("model_type")
        if model not in HUGGING_FACE_MODELS:
            expected = " or ".join(map(repr, HUGGING_FACE_MODELS))
            raise ValueError(f"DSAConfig: model_type is {model!r}, expected {expected}")
        names = {f.name: f.name for f in fields(cls) if f.name not in ("index_rope", "rope")}
        names |= {"dim": "hidden_size", "n_heads": "num_attention_heads"}
        missing = [theirs for theirs in names.values() if config.get(theirs) is None]
        if missing:
            raise ValueError(f"DSAConfig: the configuration has no {', '.join(missing)}")
        if config.get("attention_bias"):
            raise ValueError("DSAConfig: attention_bias is True, expected False: the projections have no bias")
        sizes = {ours: config[theirs] for ours, theirs in names.items()}
        return cls(**sizes, index_rope=HUGGING_FACE_MODELS[model], rope=RopeConfig.from_hugging_face(config))

    @classmethod
    def deepseek_v32(cls) -> "DSAConfig":
        return cls(
            dim=7168,
            n_heads=128,
            q_lora_rank=1536,
            qk_nope_head_dim=128,
            v_head_dim=128,
            index_n_heads=64,
            index_topk=2048,
            index_rope="half",
            rope=RopeConfig(theta=10000.0, factor=40.0, original_context=4096),
        )

    @classmethod
    def glm_5(cls) -> "DSAConfig":
        return cls(
            dim=6144,
            n_heads=64,
            q_lora_rank=2048,
            qk_nope_head_dim=192,
            v_head_dim=256,
            index_n_heads=32,
            index_topk=2048,
            index_rope="interleaved",
            rms_norm_eps=1e-5,
            rope=RopeConfig(theta=1e6),
        )


def _as_dict(config: Mapping[str, Any] | Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else config.to_dict()
