"""Small random models of transformers with the head sizes of the real ones, and batches of padded prompts."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import DeepseekV32Config, DeepseekV32ForCausalLM, GlmMoeDsaConfig, GlmMoeDsaForCausalLM

from dsa_ext.integrations.transformers import disable

VOCABULARY = 96
TOLERANCE = 1e-4  # of logits in float32
# Of the argument that takes a cache.
CACHE = {"cache", "past_key_values"} & set(inspect.signature(DeepseekV32ForCausalLM.forward).parameters)
CACHE = CACHE.pop()
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 64,
    "index_n_heads": 16,
    "index_topk": 24,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}


def deepseek_v32(**changes):
    """Three layers; heads of 128 + 64 and 128."""
    changes = {"rope_parameters": dict(YARN), **changes}  # a configuration would keep and change the one it is given
    config = {**SMALL, "num_hidden_layers": 3, "max_position_embeddings": 163840, **changes}
    return _model(DeepseekV32ForCausalLM, DeepseekV32Config(**config))


def glm_moe_dsa(**changes):
    """Four layers, of which the second and the fourth are shared; heads of 192 + 64 and 256."""
    rope = {"rope_type": "default", "rope_theta": 1e6}
    kinds = ["full", "shared", "full", "shared"]
    config = {**SMALL, "num_hidden_layers": 4, "indexer_types": kinds, "rope_parameters": rope, **changes}
    return _model(GlmMoeDsaForCausalLM, GlmMoeDsaConfig(**config))


def _model(kind, config):
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones and zeros would not show which norm is whose
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    return model


MODELS = {"v32": deepseek_v32, "glm": glm_moe_dsa}


def cast(model, dtype: torch.dtype):
    """The model with parameters of dtype, as from_pretrained(dtype=dtype) gives it: RoPE's frequencies stay float32.
    model.bfloat16() rounds them, too, by up to 0.4 %: transformers then computes other angles, and chooses other keys,
    the further behind the more; and a float32 copy of that model repeats it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def prompts(lengths, side: str = "left") -> dict[str, torch.Tensor]:
    """input_ids and attention_mask of prompts of these lengths, padded on one side with tokens like any other."""
    place, lengths = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    mask = place >= max(lengths) - lengths if side == "left" else place < lengths
    return {"input_ids": torch.randint(1, VOCABULARY, mask.shape), "attention_mask": mask.long()}


def clear(draw: Callable[[], dict], run: Callable[[dict], Any], closest: float = 3e-6) -> tuple[dict, Any]:
    """(batch, run(batch)) of a batch that `draw` gives, in which no indexer of transformers has two keys to choose
    between whose scores differ by rounding only: by less than `closest`. Of such, either may be chosen."""
    gaps: list[float] = []
    topk = torch.Tensor.topk

    def recorded(scores, k, *args, **kwargs):
        if scores.dim() == 3 and scores.shape[-1] > k:
            last, next_one = topk(scores, k + 1).values[..., -2:].unbind(-1)
            gaps.extend((last - next_one)[next_one > -1e30].tolist())  # the others are masked
        return topk(scores, k, *args, **kwargs)

    for _ in range(20):
        gaps.clear()
        batch = draw()
        with mock.patch.object(torch.Tensor, "topk", recorded):
            result = run(batch)
        assert gaps, "no indexer of transformers has run"
        if min(gaps) > closest:
            return batch, result
    raise AssertionError(f"every batch has a choice closer than {closest}")


@contextmanager
def quantised_indexer(model) -> Iterator[None]:
    """In here, transformers' indexer multiplies what DeepSeek's multiplies: queries and keys that are rotated by a
    Hadamard matrix and quantised to FP8, with a power of two as the scale of each, and then are numbers again. What
    comes before and behind is transformers', in the model's dtype."""
    matmul, kind = torch.matmul, type(model.model.layers[0].self_attn.indexer)
    forward, order = kind.forward, _pairs if isinstance(model, GlmMoeDsaForCausalLM) else lambda x: x

    def of_indexer(*args, **kwargs):
        products = []

        def product(a, b):
            products.append((a.shape, b.shape))
            # The first is that of queries [b, s, heads, 128] and keys [b, 1, 128, t], the second the sum over heads.
            return matmul(_as_fp8(order(a)), _as_fp8(order(b.mT)).mT) if len(products) == 1 else matmul(a, b)

        with mock.patch.object(torch, "matmul", product):
            indices = forward(*args, **kwargs)
        (q, k), _ = products
        assert len(q) == 4 and q[-1] == k[-2] == 128 and k[1] == 1, f"transformers' indexer multiplies {products}"
        return indices

    with mock.patch.object(kind, "forward", of_indexer):
        yield


def _pairs(x: torch.Tensor) -> torch.Tensor:
    """GLM's first 64 dimensions as RoPE has got them, pair by pair: transformers returns the firsts of all pairs, then
    the seconds. To products that is the same, not to a rotation."""
    first, second = x[..., :32], x[..., 32:64]
    return torch.cat([torch.stack([first, second], -1).flatten(-2), x[..., 64:]], -1)


def _as_fp8(x: torch.Tensor) -> torch.Tensor:
    hadamard = torch.ones(1, 1, device=x.device)
    while len(hadamard) < 128:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=x.device), hadamard)
    x = x.float() @ hadamard * 128**-0.5
    scale = torch.exp2(torch.ceil(torch.log2(x.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448)))
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.fixture(scope="module")
def models():
    """One of each kind, never changed, and disabled between tests."""
    torch.manual_seed(0)
    return {name: make() for name, make in MODELS.items()}


@pytest.fixture
def model(request, models):
    yield models[request.param]
    if "_dsa_ext" in models[request.param].model.__dict__:
        disable(models[request.param])


each_model = pytest.mark.parametrize("model", list(MODELS), indirect=True)
of_v32 = pytest.mark.parametrize("model", ["v32"], indirect=True)
of_glm = pytest.mark.parametrize("model", ["glm"], indirect=True)


def cache_of(output):
    return output.cache if "cache" in output else output.past_key_values


def error(got, want, mask=None) -> float:
    """The largest, where mask is 1."""
    difference = (got - want).abs().amax(-1)
    return float((difference if mask is None else difference[mask.bool()]).max())


def logits_of(model):
    return lambda batch: model(**batch, use_cache=False).logits
