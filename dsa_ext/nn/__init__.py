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

and the whole decoder around it, from the files of `dsa-convert` (`dsa_ext.generate` makes text with it):

    config = nn.DecoderConfig.from_hugging_face(nn.read_config("config.json"))
    decoder = nn.load_decoder("V3.2-mp1/", config, device="cuda", dtype=torch.bfloat16)
    caches = decoder.new_caches(pages=1024, page_size=64)
    logits = decoder.logits(decoder(tokens, step, caches)[-1:])

For inference: the kernels have no backward, so layers are called under torch.no_grad().
"""

from .attention import SparseMLAttention
from .cache import LayerCache
from .config import DSAConfig, RopeConfig
from .decoder import Decoder
from .decoder_config import DecoderConfig, MoEConfig
from .indexer import LightningIndexer
from .linear import Linear, RMSNorm
from .load import LoadError, load_decoder, read_config
from .mlp import MLP
from .moe import MoE
from .rope import Rope, rotate
from .step import Decode, Prefill, PrefillBatch

__all__ = [
    "MLP",
    "DSAConfig",
    "Decode",
    "Decoder",
    "DecoderConfig",
    "LayerCache",
    "LightningIndexer",
    "Linear",
    "LoadError",
    "MoE",
    "MoEConfig",
    "Prefill",
    "PrefillBatch",
    "RMSNorm",
    "Rope",
    "RopeConfig",
    "SparseMLAttention",
    "load_decoder",
    "read_config",
    "rotate",
]
