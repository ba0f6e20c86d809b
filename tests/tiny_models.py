"""Hugging Face's models of DeepSeek-V3.2 and GLM-5 with the real head sizes, few layers and random weights; as
checkpoints, converted ones included, with what they answer. And what a process of several runs on them.

transformers is imported where it is used: the processes do without.
"""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import NamedTuple

import torch
from processes import run_ranks
from torch import Tensor

from dsa_ext import nn as dsa
from dsa_ext.convert import main as convert
from dsa_ext.generate import Generator
from dsa_ext.generate.cli import main as generate

NEW = 8  # tokens of an answer
LENGTHS = (37, 30, 9)  # of the prompts: more and fewer than index_topk
RANKS = (1, 2, 4)
FAMILIES = ("v32", "glm5")
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    # With few heads, all of a key's dot products are often negative: scores of 0, and no order among them.
    "index_n_heads": 32,
    "index_topk": 24,
    "max_position_embeddings": 2560,
    "initializer_range": 0.05,
    "eos_token_id": None,
    "bos_token_id": None,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


class Tiny(NamedTuple):
    """prompts, and what Hugging Face's model in float32 makes of each: the answer [NEW], and the logits behind every
    token of prompt and answer but the last."""

    folder: Path
    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[Tensor]  # [length + NEW - 1, vocab]

    @property
    def config(self) -> Path:
        return self.folder / "hf" / "config.json"

    def converted(self, ranks: int) -> Path:
        return self.folder / f"mp{ranks}"


def hugging_face_model(family: str):
    import transformers

    torch.manual_seed(7)
    if family == "v32":
        more = {"num_hidden_layers": 2, "n_group": 4, "topk_group": 2, "rope_parameters": YARN}
        model = transformers.DeepseekV32ForCausalLM(transformers.DeepseekV32Config(**SIZES, **more))
    else:
        # Hugging Face's norms of the compressed query and key have an eps of 1e-6 whatever rms_norm_eps says.
        more = {"num_hidden_layers": 3, "indexer_types": ["full", "shared", "full"], "rms_norm_eps": 1e-6}
        model = transformers.GlmMoeDsaForCausalLM(transformers.GlmMoeDsaConfig(**SIZES, **more))
    model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    # Large against what the layers add, so that FP8's errors there are small against the margins of the logits.
    model.model.embed_tokens.weight.normal_(std=4.0)
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:
            buffer.normal_(std=0.3)
    return model.eval()


def make(family: str, folder: Path) -> Tiny:
    model = hugging_face_model(family)
    model.save_pretrained(folder / "hf")
    tiny = Tiny(folder, [torch.randint(96, (n,)).tolist() for n in LENGTHS], [], [])
    for ranks in RANKS:
        paths = ["--hf-ckpt-path", str(folder / "hf"), "--save-path", str(tiny.converted(ranks))]
        assert convert([*paths, "--n-experts", "8", "--model-parallel", str(ranks)]) == 0
    for prompt in tiny.prompts:
        ids = torch.tensor([prompt])
        ids = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
        tiny.answers.append(ids[0, len(prompt) :].tolist())
        tiny.logits.append(model(ids[:, :-1]).logits[0])
    return tiny


def arguments(tiny: Tiny, ranks: int, *more: str) -> list[str]:
    path = tiny.folder / "prompts.txt"
    path.write_text("\n".join(" ".join(map(str, prompt)) for prompt in tiny.prompts))
    places = ["--ckpt-path", str(tiny.converted(ranks)), "--config", str(tiny.config), "--input-file", str(path)]
    return [*places, "--max-new-tokens", str(NEW), *more]


def run_each(ranks: int, tinies: list[Tiny], results: Path) -> None:
    """`run_rank` on each of several processes."""
    with contextlib.ExitStack() as free:
        sockets = [free.enter_context(socket.socket()) for _ in [*tinies, None]]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    run_ranks(run_rank, ranks, ranks, ports, tinies, results)


def run_rank(rank: int, ranks: int, ports: list[int], tinies: list[Tiny], results: Path) -> None:
    """Writes the command's exit status and output for each model to {rank}.json, and tokens that were drawn."""
    torch.set_num_threads(1)
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in torchrun.items()}
    found = []
    # A port a group: a rank that is early would find the last group's store.
    for port, tiny in zip(ports, tinies, strict=False):
        os.environ["MASTER_PORT"] = str(port)
        out = results / f"{rank}.out"
        with open(out, "w") as file, contextlib.redirect_stdout(file):
            status = generate(arguments(tiny, ranks, "--cache", "plain"))
        found.append([status, out.read_text()])
    os.environ["MASTER_PORT"] = str(ports[-1])
    torch.distributed.init_process_group("gloo")
    config = dsa.DecoderConfig.from_hugging_face(dsa.read_config(tinies[0].config))
    group = torch.distributed.group.WORLD
    decoder = dsa.load_decoder(tinies[0].converted(ranks), config, group=group, dtype=torch.float32)
    drawn = Generator(decoder, max_context=100).generate(tinies[0].prompts, max_new_tokens=NEW, temperature=2.0)
    torch.distributed.destroy_process_group()
    (results / f"{rank}.json").write_text(json.dumps([found, drawn]))
