"""The sizes of a DSA attention layer."""

import math
from dataclasses import dataclass, field, fields

# What the kernels and the formats of the caches are made for.
_FIXED = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128}
INDEX_ROPE_FORMS = ("half", "interleaved")


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
