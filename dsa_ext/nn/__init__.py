"""The attention layer of DeepSeek-V3.2 and GLM-5 on this package's functions: on the CPU through the reference, on a
GPU through the kernels.

    config = nn.DSAConfig.deepseek_v32()
    layer = nn.SparseMLAttention(config, device="cuda", dtype=torch.bfloat16)
    cache = nn.LayerCache.new(config, pages=1024, page_size=64, device="cuda")      # of each layer
    rope = nn.Rope(config.rope)

    step = nn.Prefill(block_table[0], start=0, length=4096, page_size=64, rope=rope)  # shared by all layers
    out, indices = layer(x, step, cache)                                            # x [4096, dim]
    step = nn.PrefillBatch(block_table, starts=[0, 64], lengths=[100, 7], page_size=64, rope=rope)  # several requests
    step = nn.Decode(block_table, context_lens, next_n=1, max_context_len=65536, page_size=64, rope=rope)
    out, indices = layer(x, step, cache)                                            # x [b, dim]

For inference: the kernels have no backward, so layers are called under torch.no_grad().
"""

from .attention import SparseMLAttention
from .cache import LayerCache
from .config import DSAConfig, RopeConfig
from .indexer import LightningIndexer
from .linear import Linear, RMSNorm
from .rope import Rope, rotate
from .step import Decode, Prefill, PrefillBatch

__all__ = [
    "DSAConfig",
    "Decode",
    "LayerCache",
    "LightningIndexer",
    "Linear",
    "Prefill",
    "PrefillBatch",
    "RMSNorm",
    "Rope",
    "RopeConfig",
    "SparseMLAttention",
    "rotate",
]
