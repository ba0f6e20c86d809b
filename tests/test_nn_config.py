"""Hugging Face's configurations, read as config.json has them."""

import pytest

from dsa_ext import nn as dsa

YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
V32 = {
    "model_type": "deepseek_v32",
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
    "rms_norm_eps": 1e-06,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "index_head_dim": 128,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", **YARN},
    "attention_bias": False,
    "vocab_size": 129280,
}
GLM5 = {
    "model_type": "glm_moe_dsa",
    "hidden_size": 6144,
    "num_attention_heads": 64,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "index_n_heads": 32,
    "index_topk": 2048,
    "rms_norm_eps": 1e-05,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "index_head_dim": 128,
    "max_position_embeddings": 202752,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
}


def test_published_configurations():
    assert dsa.DSAConfig.from_hugging_face(V32) == dsa.DSAConfig.deepseek_v32()
    assert dsa.DSAConfig.from_hugging_face(GLM5) == dsa.DSAConfig.glm_5()


def test_an_object_is_as_good_as_a_dict():
    class Config:
        def to_dict(self):
            return GLM5

    assert dsa.DSAConfig.from_hugging_face(Config()) == dsa.DSAConfig.glm_5()


def rope(parameters: dict, **entries) -> dsa.RopeConfig:
    return dsa.RopeConfig.from_hugging_face({**V32, "rope_scaling": None, "rope_parameters": parameters, **entries})


def test_rope_as_transformers_writes_it():
    assert rope({"rope_type": "yarn", "rope_theta": 10000.0, **YARN}) == dsa.DSAConfig.deepseek_v32().rope
    assert rope({"rope_type": "default", "rope_theta": 5e5, "factor": 7}) == dsa.RopeConfig(theta=5e5)
    assert rope({}, rope_theta=2e4) == dsa.RopeConfig(theta=2e4)


def test_yarn_without_some_entries():
    got = rope({"rope_type": "yarn", "original_max_position_embeddings": 4096})
    assert got == dsa.RopeConfig(factor=40.0, original_context=4096, mscale_all_dim=0.0)
    # The whole factor is in cos and sin then, and none of it in the softmax.
    assert got.table_factor == got.attention_factor(1.0) > 1.3 and got.attention_factor(got.mscale_all_dim) == 1
    assert rope({"rope_type": "yarn", **YARN, "mscale_all_dim": 0}).table_factor == got.table_factor


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "deepseek_v3"}, "DSAConfig: model_type is 'deepseek_v3', expected 'deepseek_v32' or 'glm_moe"),
        ({"v_head_dim": None, "hidden_size": None}, "DSAConfig: the configuration has no hidden_size, v_head_dim"),
        ({"kv_lora_rank": 256}, "DSAConfig: kv_lora_rank is 256, expected 512"),
        ({"attention_bias": True}, "DSAConfig: attention_bias is True"),
        (
            {"rope_scaling": {"type": "linear"}},
            "RopeConfig: rope_parameters has rope_type 'linear', expected",
        ),
        ({"rope_scaling": {**YARN, "type": "yarn", "truncate": False}}, "RopeConfig: rope_parameters has truncate Fal"),
        ({"rope_scaling": {**YARN, "attention_factor": 2.0}}, "RopeConfig: rope_parameters has attention_factor 2.0"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "RopeConfig: rope_parameters has partial_rotary_factor 0.5"),
        ({"rope_scaling": {**YARN, "type": "yarn", "mscale": 0}}, "RopeConfig: rope_parameters has mscale_all_dim 1.0"),
        (
            {"rope_scaling": {"type": "yarn"}, "max_position_embeddings": None},
            "RopeConfig: rope_parameters has no original_max_position_embeddings",
        ),
    ],
)
def test_configurations_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        dsa.DSAConfig.from_hugging_face({**V32, **changes})
