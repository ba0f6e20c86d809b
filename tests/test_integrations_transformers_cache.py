"""transformers' DSA models on this package's functions: their caches, and what enable and disable do to them."""

import copy
import importlib
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.17", reason="needs transformers >= 5.17")

import hf_cases  # noqa: E402
from hf_cases import (  # noqa: E402
    CACHE,
    TOLERANCE,
    cache_of,
    clear,
    deepseek_v32,
    each_model,
    error,
    glm_moe_dsa,
    of_glm,
    of_v32,
    prompts,
)

from dsa_ext.integrations.transformers import disable, enable  # noqa: E402

model, models = hf_cases.model, hf_cases.models


# --- the cache


@pytest.mark.parametrize("fp8_indexer, fp8_cache", [(False, False), (True, False), (False, True)])
@of_glm
def test_the_cache_holds_latents(model, fp8_indexer, fp8_cache, monkeypatch):
    """And no mask of [tokens, tokens] is made."""
    batch = prompts([130, 130])
    for module in ("deepseek_v32.modeling_deepseek_v32", "glm_moe_dsa.modeling_glm_moe_dsa"):
        monkeypatch.delattr(f"transformers.models.{module}.create_causal_mask")
    enable(model, fp8_indexer=fp8_indexer, fp8_cache=fp8_cache)
    cache = cache_of(model(**batch))
    latents = cache.layers[0].latents
    pages = 2 * (3 + 1)  # each sequence's 130 tokens, and room to grow
    of_keys, of_indexer = 656 if fp8_cache else 576 * 4, 132 if fp8_indexer else 128 * 4
    for layer, kind in zip(latents.layers, model.config.indexer_types, strict=True):
        assert layer.kv.nbytes == pages * 64 * of_keys
        assert (layer.index is None) == (kind == "shared")
        assert kind == "shared" or layer.index.nbytes == pages * 64 * of_indexer


@of_v32
def test_operations_on_the_cache(model):
    """Sequences are chosen, repeated, cropped, in a cache that has grown; then go on as if computed so."""
    batch = prompts([90, 61])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    enable(model, fp8_indexer=False)
    cache = transformers.DynamicCache()
    for start, end in ((0, 40), (40, 88), (88, 90)):
        model(ids[:, start:end], attention_mask=mask[:, :end], **{CACHE: cache})
    cache.crop(-5)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 1, 0]))
    cache.reorder_cache(torch.tensor([0, 2, 2]))
    ids, mask = ids[[1, 0, 0]], mask[[1, 0, 0]]
    got = model(ids[:, 85:], attention_mask=mask, **{CACHE: cache}).logits
    want = model(ids, attention_mask=mask, use_cache=False).logits[:, 85:]
    assert error(got, want) < TOLERANCE
    cache.crop(-90)  # nothing is left: a batch of another size may begin
    assert cache.get_seq_length() == 0
    ids = ids[[0, 1, 2, 0]]
    first = model(ids, **{CACHE: cache}).logits
    cache.reset()
    assert torch.equal(model(ids, **{CACHE: cache}).logits, first) and cache.get_seq_length() == 90


@of_v32
def test_caches_that_do_not_fit(model):
    batch = prompts([6, 9])
    theirs = transformers.DynamicCache(config=model.config)
    model(**batch, **{CACHE: theirs})
    enable(model, fp8_indexer=False)
    ours = cache_of(model(**batch))
    again = {"input_ids": batch["input_ids"][:, :1]}
    for cache, message in (
        (theirs, "the cache has 9 tokens from before"),
        (transformers.StaticCache(config=model.config, max_cache_len=20), "the cache is a StaticCache, expected"),
        (transformers.DynamicCache(config=model.config, offloading=True), "the cache is an offloading one"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**again, **{CACHE: cache})
    with pytest.raises(ValueError, match="the cache is of 2 sequences, expected 1"):
        model(again["input_ids"][:1], **{CACHE: ours})
    mask = torch.cat([batch["attention_mask"].flip(1), torch.ones(2, 1)], 1)
    with pytest.raises(ValueError, match="attention_mask differs for tokens in the cache"):
        model(**again, attention_mask=mask, **{CACHE: ours})
    assert ours.get_seq_length() == 9
    with pytest.raises(ValueError, match="crop: tokens_to_remove is 1"):
        ours.crop(1)
    disable(model)
    with pytest.raises(TypeError, match="was filled while dsa_ext's attention was enabled"):
        model(**again, **{CACHE: ours})
    enable(model)
    with pytest.raises(ValueError, match="the cache is another model's"):
        model(**again, **{CACHE: ours})


# --- enable, disable


def everything_of(model):
    """What a model consists of: modules' attributes, hooks included."""

    def copied(value):
        return {key: copied(v) for key, v in value.items()} if isinstance(value, dict) else value

    return {name: copied(module.__dict__) for name, module in model.named_modules()}


@each_model
def test_disable_restores_the_model(model):
    batch, options = prompts([30, 40]), {"max_new_tokens": 3, "do_sample": False}
    before, logits = everything_of(model), model(**batch).logits
    state, tokens = model.state_dict(keep_vars=True), model.generate(**batch, **options)
    enable(model)
    assert everything_of(model) != before
    enabled = model.state_dict(keep_vars=True)
    assert list(enabled) == list(state) and all(enabled[key] is state[key] for key in state)
    assert not torch.equal(model(**batch).logits, logits)
    model.generate(**batch, **options)
    disable(model)
    assert everything_of(model) == before
    assert torch.equal(model(**batch).logits, logits) and torch.equal(model.generate(**batch, **options), tokens)


@of_v32
def test_a_forward_of_the_models_own_comes_back(model):
    """As other packages set them: they are called, where the model is, and kept, where a layer is."""
    calls = []
    layer, ids = model.model.layers[1].self_attn, prompts([5])["input_ids"]
    plain = model.model.forward
    inner = lambda *args, **kwargs: calls.append("model") or plain(*args, **kwargs)  # noqa: E731
    outer = lambda *args, **kwargs: calls.append("layer")  # noqa: E731
    model.model.forward, layer.forward = inner, outer
    try:
        enable(model, fp8_indexer=False)
        model.model(ids, use_cache=False)
        assert calls == ["model"]
        ours, layer.forward = layer.forward, outer
        with pytest.raises(RuntimeError, match="the forward of a DeepseekV32Attention was replaced after enable"):
            disable(model)
        layer.forward = ours
        disable(model)
        assert model.model.forward is inner and layer.forward is outer
    finally:
        del model.model.forward, layer.forward


@of_glm
def test_a_copy_is_enabled_by_itself(model):
    batch, want = clear(lambda: prompts([30]), lambda batch: model(**batch).logits)
    enable(model, fp8_indexer=False)
    copied = copy.deepcopy(model)
    assert error(copied(**batch).logits, want) < TOLERANCE
    disable(copied)
    assert torch.equal(copied(**batch).logits, want)
    copied.lm_head.weight.zero_(), copied.model.layers[0].self_attn.o_proj.weight.zero_()
    assert error(model(**batch).logits, want) < TOLERANCE and "_dsa_ext" in model.model.__dict__


def wrap(model, part):
    layer = model.model.layers[2].self_attn
    setattr(layer, part, torch.nn.Sequential(getattr(layer, part)))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: enable(m), "enable: model is enabled already"),
        (lambda m: setattr(m.config, "kv_lora_rank", 256), "enable: DSAConfig: kv_lora_rank is 256, expected 512"),
        (lambda m: m.config.rope_parameters.update(rope_type="linear"), "enable: RopeConfig: rope_parameters has rope"),
        (lambda m: wrap(m, "kv_b_proj"), "enable: kv_b_proj is a Sequential"),
        (
            lambda m: m.model.layers[1].self_attn.kv_b_proj.to(torch.float8_e4m3fn),
            "kv_b_proj has a weight of torch",
        ),
        (lambda m: setattr(m.config, "num_attention_heads", 8), r"kv_b_proj has shape \(1024, 512\), expected \(2048"),
        (lambda m: m.lm_head.to("meta") and m.model.norm.to("meta"), "enable: model lies on cpu, meta, expected one"),
    ],
)
def test_models_that_do_not_fit(change, message):
    model = deepseek_v32()
    change(model)
    with pytest.raises(ValueError, match=message):
        enable(model)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in [name for name in sys.modules if name.startswith("dsa_ext.integrations.transformers")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"^dsa_ext.integrations.transformers needs transformers >= 5.17: "):
        importlib.import_module("dsa_ext.integrations.transformers")


def test_no_such_model():
    for model, found in ((torch.nn.Linear(2, 2), "Linear with 0"), ("a name", "str with 0")):
        with pytest.raises(TypeError, match=f"enable: model is a {found} DSA models, expected DeepseekV32ForCausalLM"):
            enable(model)
    with pytest.raises(TypeError, match="disable: model is a Linear with 0"):
        disable(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="disable: model is not enabled"):
        disable(glm_moe_dsa())


@of_v32
def test_calls_that_do_not_fit(model):
    batch = prompts([6, 9])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    enable(model)
    with (
        torch.enable_grad(),
        pytest.raises(NotImplementedError, match="no backward: call the model"),
    ):
        model(**batch)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 1, 9, 9\), expected None or a tensor"):
        model(ids, attention_mask=torch.ones(2, 1, 9, 9))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 8\), expected None or .* \(2, 9\)"):
        model(ids, attention_mask=mask[:, 1:])
    with pytest.raises(TypeError, match="attention_mask is of type dict, expected None or a tensor"):
        model(ids, attention_mask={"indexed_attention": mask})
