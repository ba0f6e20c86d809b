"""Generated Hugging Face checkpoints: the real names, head sizes and block scales, with few heads, experts and layers.

A tensor's bytes are random, every bit pattern included, and depend on its name alone; nothing is meant to be computed
with them. Files are written by safetensors itself.
"""

import json
import math
import random
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"
BLOCK = 128  # rows and columns of an fp8 weight that share a scale
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn}
TOKEN_FILES = {
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b'{"eos_token": "<eos>"}',
    "added_tokens.json": b"",
}


class Spec(NamedTuple):
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Style(NamedTuple):
    """A model. `nope`, `v`, `rope` and `kv_lora` are real; `layers` does not count the MTP layer, which follows."""

    model_type: str
    nope: int
    v: int
    fp8: bool
    shared_layers: tuple[int, ...] = ()  # without an indexer
    layers: int = 3
    dense_layers: int = 1
    heads: int = 16
    rope: int = 64
    kv_lora: int = 512
    q_lora: int = 128
    hidden: int = 128
    intermediate: int = 1024
    moe_intermediate: int = 128
    shared_experts: int = 8
    experts: int = 16
    index_heads: int = 8
    index_dim: int = 128
    vocab: int = 64


V32 = Style("deepseek_v32", nope=128, v=128, fp8=True)
GLM5 = Style("glm_moe_dsa", nope=192, v=256, fp8=False, shared_layers=(1,), index_heads=4)
STYLES = {"v32": V32, "v32-bf16": V32._replace(fp8=False), "glm5": GLM5, "glm5-fp8": GLM5._replace(fp8=True)}


def config(style: Style) -> dict:
    """config.json."""
    indexer = ["shared" if i in style.shared_layers else "full" for i in range(style.layers)]
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    return {
        "model_type": style.model_type,
        "num_hidden_layers": style.layers,
        "num_nextn_predict_layers": 1,
        "first_k_dense_replace": style.dense_layers,
        "n_routed_experts": style.experts,
        "n_shared_experts": style.shared_experts,
        **({"indexer_types": indexer} if style.shared_layers else {}),
        **({"quantization_config": quantization} if style.fp8 else {}),
    }


def specs(style: Style) -> dict[str, Spec]:
    """Every tensor by its name in the checkpoint, the MTP layer's included."""
    found: dict[str, Spec] = {}

    def plain(name: str, *shape: int, dtype: str = "BF16") -> None:
        found[name] = Spec(dtype, shape)

    def linear(name: str, rows: int, columns: int) -> None:
        found[f"{name}.weight"] = Spec("F8_E4M3" if style.fp8 else "BF16", (rows, columns))
        if style.fp8:
            found[f"{name}.weight_scale_inv"] = Spec("F32", (-(-rows // BLOCK), -(-columns // BLOCK)))

    def mlp(name: str, inner: int) -> None:
        linear(f"{name}.gate_proj", inner, style.hidden)
        linear(f"{name}.up_proj", inner, style.hidden)
        linear(f"{name}.down_proj", style.hidden, inner)

    def block(i: int) -> None:
        layer, attn = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        plain(f"{layer}.input_layernorm.weight", style.hidden)
        plain(f"{layer}.post_attention_layernorm.weight", style.hidden)
        linear(f"{attn}.q_a_proj", style.q_lora, style.hidden)
        plain(f"{attn}.q_a_layernorm.weight", style.q_lora)
        linear(f"{attn}.q_b_proj", style.heads * (style.nope + style.rope), style.q_lora)
        linear(f"{attn}.kv_a_proj_with_mqa", style.kv_lora + style.rope, style.hidden)
        plain(f"{attn}.kv_a_layernorm.weight", style.kv_lora)
        linear(f"{attn}.kv_b_proj", style.heads * (style.nope + style.v), style.kv_lora)
        linear(f"{attn}.o_proj", style.hidden, style.heads * style.v)
        if i not in style.shared_layers:
            linear(f"{attn}.indexer.wq_b", style.index_heads * style.index_dim, style.q_lora)
            linear(f"{attn}.indexer.wk", style.index_dim, style.hidden)
            plain(f"{attn}.indexer.k_norm.weight", style.index_dim)
            plain(f"{attn}.indexer.k_norm.bias", style.index_dim)
            plain(f"{attn}.indexer.weights_proj.weight", style.index_heads, style.hidden)
        if i < style.dense_layers:
            mlp(f"{layer}.mlp", style.intermediate)
            return
        plain(f"{layer}.mlp.gate.weight", style.experts, style.hidden)
        plain(f"{layer}.mlp.gate.e_score_correction_bias", style.experts, dtype="F32")
        mlp(f"{layer}.mlp.shared_experts", style.moe_intermediate * style.shared_experts)
        for e in range(style.experts):
            mlp(f"{layer}.mlp.experts.{e}", style.moe_intermediate)

    plain("model.embed_tokens.weight", style.vocab, style.hidden)
    for i in range(style.layers + 1):
        block(i)
    mtp = f"model.layers.{style.layers}"
    for name in ("enorm", "hnorm", "shared_head.norm"):
        plain(f"{mtp}.{name}.weight", style.hidden)
    plain(f"{mtp}.eh_proj.weight", style.hidden, 2 * style.hidden)
    plain(f"{mtp}.embed_tokens.weight", style.vocab, style.hidden)
    plain(f"{mtp}.shared_head.head.weight", style.vocab, style.hidden)
    plain("model.norm.weight", style.hidden)
    plain("lm_head.weight", style.vocab, style.hidden)
    return found


def tensor(name: str, spec: Spec) -> torch.Tensor:
    """The tensor of this name: random bytes."""
    raw = bytearray(random.Random(zlib.crc32(name.encode())).randbytes(spec.nbytes))
    return torch.frombuffer(raw, dtype=torch.uint8).view(DTYPES[spec.dtype]).view(spec.shape)


def write(folder: Path, files: list[dict[str, Spec]], settings: dict) -> Path:
    """A checkpoint of these files, with index, config.json and tokenizer."""
    folder.mkdir()
    index = {}
    for i, held in enumerate(files, 1):
        name = f"model-{i:05}-of-{len(files):05}.safetensors"
        save_file({n: tensor(n, spec) for n, spec in held.items()}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(held, name)
    total = sum(spec.nbytes for held in files for spec in held.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    write_json(folder / "config.json", settings)
    for name, content in TOKEN_FILES.items():
        (folder / name).write_bytes(content)
    return folder


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def generate(folder: Path, style: Style, files: int = 4) -> dict[str, Spec]:
    """Write a checkpoint of this style over several files, weights apart from their scales where a file ends.

    Returns its tensors."""
    found = specs(style)
    entries = list(found.items())
    step = -(-len(entries) // files)
    write(folder, [dict(entries[i : i + step]) for i in range(0, len(entries), step)], config(style))
    return found
