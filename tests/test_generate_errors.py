"""What generate refuses, in one sentence that names what is wrong: configurations, files, prompts."""

import io
import json

import pytest
import torch
from safetensors.torch import save_file
from test_nn_config import GLM5, V32

from dsa_ext import nn as dsa
from dsa_ext.generate import Generator, ranks
from dsa_ext.generate.cli import main

MODEL = {
    **V32,
    "vocab_size": 32,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "q_lora_rank": 32,
    "index_n_heads": 8,
    "index_topk": 8,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "torch_dtype": "float32",
}
SHARD = "model0-mp1.safetensors"


def decoder(**changes):
    return dsa.Decoder(dsa.DecoderConfig.from_hugging_face({**MODEL, **changes}), dtype=torch.float32)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {name: torch.randn_like(t) * 0.1 for name, t in decoder().state_dict().items()}


@pytest.fixture
def run(state, tmp_path, capsys):
    """run(prompts, *more) -> (status, stdout, stderr), after the test has changed what it wants in tmp_path."""
    save_file(state, tmp_path / SHARD)
    (tmp_path / "config.json").write_text(json.dumps(MODEL))

    def run(prompts="1 2 3\n4\n", *more):
        (tmp_path / "prompts").write_text(prompts)
        paths = ["--ckpt-path", str(tmp_path), "--config", f"{tmp_path}/config.json"]
        source = [] if "--interactive" in more else ["--input-file", f"{tmp_path}/prompts"]
        status = main([*paths, *source, "--max-new-tokens", "4", *more])
        return (status, *capsys.readouterr())

    return run


def refused(outcome):
    """The sentence on stderr."""
    status, out, notes = outcome
    assert status == 1 and out == "" and "Traceback" not in notes
    return notes.splitlines()[-1].removeprefix("dsa_ext.generate: error: ")


def test_runs(run):
    status, out, _ = run()
    assert status == 0 and [len(json.loads(line)["tokens"]) for line in out.splitlines()] == [4, 4]


FIELDS = [
    *("num_hidden_layers", "first_k_dense_replace", "vocab_size", "intermediate_size", "moe_intermediate_size"),
    *("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group", "norm_topk_prob"),
    *("routed_scaling_factor", "hidden_size", "q_lora_rank", "index_topk"),
]


@pytest.mark.parametrize("field", FIELDS)
def test_configuration_lacks_a_field(run, tmp_path, field):
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in MODEL.items() if k != field}))
    kind = "DSAConfig" if field in ("hidden_size", "q_lora_rank", "index_topk") else "DecoderConfig"
    assert refused(run()) == f"{kind}: the configuration has no {field}"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scoring_func": "softmax"}, "DecoderConfig: scoring_func is 'softmax', expected 'sigmoid'"),
        ({"tie_word_embeddings": True}, "DecoderConfig: tie_word_embeddings is True, expected False"),
        ({"num_hidden_layers": "2"}, "DecoderConfig: num_hidden_layers is '2', expected an int >= 0"),
        ({"norm_topk_prob": 1}, "DecoderConfig: norm_topk_prob is 1, expected a bool"),
        (
            {"mlp_layer_types": ["dense"]},
            "DecoderConfig: mlp_layer_types is ['dense'], expected an entry for each of 2 layers",
        ),
        (
            {"mlp_layer_types": ["dense", "moe"]},
            "DecoderConfig: mlp_types has 'moe', expected 'dense' or 'sparse'",
        ),
        (
            {"indexer_types": ["shared", "full"]},
            "DecoderConfig: indexer_types begins with 'shared', expected 'full': nothing is before it",
        ),
        ({"torch_dtype": "int8"}, "the configuration has dtype 'int8', expected 'bfloat16' or 'float16' or 'float32'"),
        ({"eos_token_id": ["</s>"]}, "the configuration has eos_token_id ['</s>'], expected token numbers"),
        (
            {"num_experts_per_tok": 3},
            "MoEConfig: experts_per_token is 3, expected at most the 2 of topk_group = 1 groups",
        ),
    ],
)
def test_configurations_that_do_not_fit(run, tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, **changes}))
    assert refused(run()) == message


@pytest.mark.parametrize(
    "text, message", [("{", "is not valid JSON"), ("[]", "holds no JSON object"), (None, "cannot be read")]
)
def test_no_configuration(run, tmp_path, text, message):
    (tmp_path / "config.json").unlink() if text is None else (tmp_path / "config.json").write_text(text)
    assert f"{tmp_path}/config.json {message}" in refused(run())


def test_layers_of_configurations():
    def read(config, **changes):
        return dsa.DecoderConfig.from_hugging_face({**MODEL, **config, **changes})

    four = {"num_hidden_layers": 4}
    assert read({}, **four).mlp_types == ("dense", "sparse", "sparse", "sparse")
    assert read({}, **four, first_k_dense_replace=9).mlp_types == ("dense",) * 4
    assert read({}, **four, first_k_dense_replace=9).moe is None
    assert read({}, mlp_layer_types=["sparse", "dense", "sparse"]).mlp_types == ("sparse", "dense")
    assert read({}, **four).indexer_types == ("full",) * 4
    assert read({}, **four, index_topk_pattern="FSSF").indexer_types == ("full", "shared", "shared", "full")
    shared = read({}, num_hidden_layers=8, index_topk_freq=3, index_skip_topk_offset=2).indexer_types
    assert "".join(kind[0] for kind in shared) == "ffssfssf"
    glm = {name: value for name, value in GLM5.items() if name not in ("vocab_size", "hidden_size")}
    assert read(glm).attention.index_rope == "interleaved"


def test_no_shard_for_these_ranks(run, tmp_path, state):
    (tmp_path / SHARD).rename(tmp_path / "model0-mp2.safetensors")
    assert refused(run()) == f"{tmp_path} was converted with --model-parallel 2, and the number of ranks is 1"
    (tmp_path / "model0-mp2.safetensors").unlink()
    assert refused(run()) == f"{tmp_path} holds no model*-mp*.safetensors, as dsa-convert writes them"
    assert refused(run("1\n", "--ckpt-path", f"{tmp_path}/none")) == f"{tmp_path}/none is not a folder"


def test_shard_of_a_rank_is_missing(run, tmp_path, monkeypatch):
    """Every rank says so, also those whose shard is there."""
    (tmp_path / SHARD).rename(tmp_path / "model0-mp2.safetensors")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    config = dsa.DecoderConfig.from_hugging_face(MODEL)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group, rank=rank: rank)
        with pytest.raises(dsa.LoadError, match="lacks model1-mp2.safetensors, the shard of rank 1$"):
            dsa.load_decoder(tmp_path, config, group=object())


GATE, EXPERT = "layers.1.ffn.gate.bias", "layers.1.ffn.experts.2.w1.weight"


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"layers.2.attn.wo.weight": torch.ones(1)},
            "has the tensor layers.2.attn.wo.weight, which the configuration's",
        ),
        ({GATE: None}, f"lacks the tensor {GATE} of the configuration's model"),
        ({GATE: None, EXPERT: None}, f"lacks the tensor {EXPERT} and 1 more tensors of"),
        ({EXPERT: torch.ones(8, 32)}, f"has {EXPERT} of shape (8, 32), expected (16, 32) by the configuration"),
        ({"embed.scale": torch.ones(1, 1), "embed.weight": None}, "lacks the tensor embed.weight"),
        ({"layers.0.ffn.w9.scale": torch.ones(1, 1)}, "has the tensor layers.0.ffn.w9.scale without the weight"),
        (
            {EXPERT: torch.ones(16, 32).to(torch.float8_e4m3fn)},
            f"has {EXPERT} in torch.float8_e4m3fn with no scale: an",
        ),
        ({EXPERT.replace("weight", "scale"): torch.ones(1, 1)}, f"has {EXPERT} in torch.float32 with a scale: an fp8"),
        (
            {
                EXPERT: torch.ones(16, 32).to(torch.float8_e4m3fn),
                EXPERT.replace("weight", "scale"): torch.ones(1, 2),
            },
            f", {EXPERT}: scale has shape (1, 2), expected (1, 1)",
        ),
    ],
)
def test_shards_that_do_not_fit(run, tmp_path, state, changes, message):
    held = {name: t for name, t in {**state, **changes}.items() if t is not None}
    save_file(held, tmp_path / SHARD)
    assert SHARD + (message if message.startswith(",") else f" {message}") in refused(run())


def test_damaged_shard(run, tmp_path):
    path = tmp_path / SHARD
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} cannot be read: " in refused(run())


def test_fp8_weights_are_dequantised(tmp_path, state):
    """Times the scale of their block, rounded to the decoder's dtype once; the rest as it is."""
    held = dict(state)
    name = "layers.1.attn.wkv_b.weight"
    codes, scale = state[name].mul(100).to(torch.float8_e4m3fn), torch.rand(4, 4) + 0.5
    held[name], held[name.replace("weight", "scale")] = codes, scale
    held[EXPERT] = state[EXPERT].to(torch.float8_e4m3fn)
    held[EXPERT.replace("weight", "scale")] = torch.tensor([[2.0]]).to(torch.float8_e8m0fnu)
    save_file(held, tmp_path / SHARD)
    config = dsa.DecoderConfig.from_hugging_face(MODEL)
    loaded = dsa.load_decoder(tmp_path, config, dtype=torch.bfloat16).state_dict()
    rows = torch.arange(512) // 128
    assert torch.equal(loaded[name], (codes.float() * scale[rows[:, None], rows]).bfloat16())
    assert torch.equal(loaded[EXPERT], (held[EXPERT].float() * 2).bfloat16())
    assert torch.equal(loaded["head.weight"], state["head.weight"].bfloat16())
    assert torch.equal(loaded[GATE], state[GATE])


@pytest.mark.parametrize(
    "prompts, more, message",
    [
        (
            "1 2\n3 x\n",
            (),
            "prompt '3 x': without a tokenizer, expected token numbers between spaces, as in '0 4212 17'",
        ),
        ("1 2\n3 32\n", (), "generate: prompts[1] has token 32, expected 0 ... 31"),
        ("-1\n", (), "generate: prompts[0] has token -1, expected 0 ... 31"),
        (",\n", (), "generate: prompts[0] is empty, expected at least one token"),
        (
            "1\n1 2 3 4 5\n",
            ("--max-context", "8", "--batch-size", "1"),
            "generate: prompts[1] has 5 tokens and max_new_tokens is 4, expected at most max_context = 8 together",
        ),
        ("1\n", ("--temperature", "-1"), "generate: temperature is -1.0, expected a finite number >= 0"),
        ("1\n", ("--temperature", "nan"), "generate: temperature is nan, expected a finite number >= 0"),
        ("1\n", ("--max-new-tokens", "-1"), "generate: max_new_tokens is -1, expected an int >= 0"),
        ("1\n", ("--batch-size", "0"), "--batch-size is 0, expected at least 1"),
        ("1\n", ("--max-context", "0"), "Generator: max_context is 0, expected an int >= 1"),
    ],
)
def test_prompts_that_do_not_fit(run, prompts, more, message):
    assert refused(run(prompts, *more)) == message


def test_prompt_files_that_do_not_fit(run, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is no text in UTF-8" in refused(run("", "--input-file", f"{tmp_path}/binary"))
    assert "No such file" in refused(run("", "--input-file", f"{tmp_path}/none"))
    assert run("\n \n")[:2] == (0, "")


def test_broken_tokenizer(run, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert f"the tokenizer in {tmp_path} cannot be read: " in refused(run())


def test_without_transformers(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (tmp_path / "tokenizer.json").write_text("{}")
    status, _, notes = run()
    assert status == 0 and "transformers is not installed: prompts are token numbers between spaces" in notes


def test_conversation_goes_on_after_an_error(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1 2\nwhat\n99\n1 2\n"))
    status, out, notes = run("", "--interactive")
    assert status == 0 and len(out.splitlines()) == 2 and len(set(out.splitlines())) == 1
    assert "prompt 'what': without a tokenizer" in notes and "prompts[0] has token 99" in notes


def test_an_error_on_one_rank_is_raised_on_all(monkeypatch):
    def gather(problems, problem, group):
        assert problem is None
        problems[:] = [None, "model1-mp2.safetensors is gone"]

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    with pytest.raises(ValueError, match="^model1-mp2.safetensors is gone$"):
        ranks.on_all(lambda: 1, object())


def test_lengths_up_to_the_limit(state):
    """A prompt and its answer may fill the cache to the last place, and an answer may be empty."""
    model = decoder()
    model.load_state_dict(state)
    generator = Generator(model, max_context=16, page_size=8)
    alone = generator.generate([[1] * 12], max_new_tokens=4)[0]
    assert len(alone) == 4
    assert generator.generate([[1] * 12], max_new_tokens=0) == [[]]
    assert generator.generate([], max_new_tokens=4) == []
    with pytest.raises(ValueError, match="^Generator: cache is 'int4', expected 'fp8' or 'plain'$"):
        Generator(model, max_context=16, cache="int4")


def test_draws_repeat(state):
    model = decoder()
    model.load_state_dict(state)
    generator = Generator(model, max_context=64)
    draws = [generator.generate([[1, 2]], max_new_tokens=20, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
