"""The parts of dsa_ext.nn: RoPE tables, rotation, configurations, weights under the converted names, caches."""

import dataclasses
import math

import layer_oracle
import pytest
import torch
from indexer_oracle import roped
from test_nn_layer import CONFIGS, make_layer

import dsa_ext.nn as dsa
from dsa_ext.convert import names

BF16, F32, F64, I32, U8, E4M3 = (
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.uint8,
    torch.float8_e4m3fn,
)
V32, GLM5 = dsa.DSAConfig.deepseek_v32(), dsa.DSAConfig.glm_5()


# --- RoPE


def test_yarn_of_v32():
    """Pairs 0 ... 10 turn as in the original context, those from 23 on 40 times slower, in between by thirteenths."""
    plain = 10000.0 ** (-torch.arange(32, dtype=F64) / 32)
    got = dsa.Rope(V32.rope).frequencies
    assert torch.allclose(got[:11], plain[:11], rtol=1e-14) and torch.allclose(got[23:], plain[23:] / 40, rtol=1e-14)
    assert math.isclose(got[16], plain[16] * (7 / 13 + 6 / 13 / 40), rel_tol=1e-14)
    assert torch.equal(dsa.Rope(GLM5.rope).frequencies, 1e6 ** -(torch.arange(0, 64, 2, dtype=F64) / 64))


@pytest.mark.parametrize("config", [V32, GLM5, CONFIGS["v32"]], ids=["v32", "glm5", "small"])
def test_tables(config, device):
    cos, sin = dsa.Rope(config.rope, device)(torch.arange(300, device=device))
    want_cos, want_sin = layer_oracle.angles(config, 300)
    assert cos.dtype == sin.dtype == F32 and cos.shape == (300, 32)
    assert torch.allclose(cos.cpu().double(), want_cos, rtol=0, atol=1e-7)
    assert torch.allclose(sin.cpu().double(), want_sin, rtol=0, atol=1e-7)


def test_tables_far_out():
    """float32 angles would be off by hundredths of a radian there."""
    position, rope = 160_000, dsa.Rope(V32.rope)
    cos, _ = rope(torch.tensor([[position, 3]]))
    assert cos.shape == (1, 2, 32)
    want = [math.cos(position * f) for f in rope.frequencies.tolist()]
    assert torch.allclose(cos[0, 0].double(), torch.tensor(want, dtype=F64), rtol=0, atol=1e-7)


def test_tables_stay_exact_in_a_model_of_another_dtype():
    model = torch.nn.ModuleDict({"rope": dsa.Rope(V32.rope), "linear": torch.nn.Linear(2, 2)}).to(BF16)
    assert model["linear"].weight.dtype == BF16 and model["rope"].frequencies.dtype == F64
    assert torch.equal(model["rope"].frequencies, dsa.Rope(V32.rope).frequencies)
    assert "rope.frequencies" not in model.state_dict()


def test_factor_of_the_tables():
    rope = dsa.RopeConfig(factor=40.0, mscale=2.0, mscale_all_dim=1.0)
    factor = (0.2 * math.log(40) + 1) / (0.1 * math.log(40) + 1)
    cos, _ = dsa.Rope(rope)(torch.zeros(1, dtype=torch.int64))
    assert torch.allclose(cos, torch.full((1, 32), factor))
    assert V32.rope.table_factor == GLM5.rope.table_factor == 1.0


@pytest.mark.parametrize("form", ["half", "interleaved"])
@pytest.mark.parametrize("shape", [(5, 128), (5, 3, 64), (5, 2, 576)])
def test_rotate(form, shape):
    x = torch.randn(shape, dtype=F64)
    cos, sin = layer_oracle.angles(V32, 5)
    want = roped(x, cos, sin, form)
    if x.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    assert torch.allclose(dsa.rotate(x, cos, sin, interleaved=form == "interleaved"), want, rtol=1e-12)
    got = dsa.rotate(x.to(BF16), cos.float(), sin.float(), interleaved=form == "interleaved")
    assert got.dtype == BF16 and torch.allclose(got.double(), want, rtol=2.0**-7, atol=2.0**-6)
    assert torch.equal(got[..., 64:], x.to(BF16)[..., 64:])


@pytest.mark.parametrize("form", ["half", "interleaved"])
def test_rotate_of_views(form):
    """Of any strides, from any offset, of no tokens."""
    cos, sin = (t.float() for t in layer_oracle.angles(V32, 5))
    odd, across = torch.randn(5 * 67 + 1)[1:].view(5, 67), torch.randn(66, 5).T
    for x in (odd, across, across.to(BF16), odd[:1].expand(5, -1), odd[:0]):
        before, n = x.clone(), len(x)
        got = dsa.rotate(x, cos[:n], sin[:n], interleaved=form == "interleaved")
        want = roped(x.double(), cos[:n].double(), sin[:n].double(), form)
        assert got.shape == x.shape and torch.allclose(
            got.double(), want, rtol=0, atol=2e-2 if x.dtype == BF16 else 1e-6
        )
        assert torch.equal(x, before)


# --- configurations


def test_scales():
    assert math.isclose(V32.softmax_scale, 192**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert GLM5.softmax_scale == 256**-0.5


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kv_lora_rank": 256}, "kv_lora_rank is 256, expected 512"),
        ({"qk_rope_head_dim": 32}, "qk_rope_head_dim is 32, expected 64"),
        ({"index_head_dim": 64}, "index_head_dim is 64, expected 128"),
        ({"n_heads": 0}, "n_heads is 0, expected an int >= 1"),
        ({"index_rope": "neox"}, "index_rope is 'neox', expected 'half' or 'interleaved'"),
    ],
)
def test_configurations_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=f"^DSAConfig: {message}"):
        dataclasses.replace(V32, **changes)


@pytest.mark.parametrize("changes", [{"theta": 1.0}, {"factor": 0.5}, {"factor": math.nan}])
def test_rope_that_does_not_fit(changes):
    with pytest.raises(ValueError, match=f"^RopeConfig: {next(iter(changes))} is "):
        dsa.RopeConfig(**changes)


# --- weights


def test_names_are_the_converted_ones():
    """Every parameter is what dsa-convert makes of a Hugging Face tensor, and none is missing."""
    modules = "q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj".split()
    tensors = [f"{module}.weight" for module in modules]
    tensors += [f"indexer.{module}.weight" for module in ("wq_b", "wk", "k_norm", "weights_proj")]
    tensors.append("indexer.k_norm.bias")
    converted = {names.target(f"model.layers.3.self_attn.{t}").name for t in tensors}
    layer = make_layer(CONFIGS["v32"])
    assert {f"layers.3.attn.{name}" for name in layer.state_dict()} == converted


def test_full_size_shapes():
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in dsa.SparseMLAttention(V32, dtype=BF16).named_parameters()}
        glm = {n: tuple(p.shape) for n, p in dsa.SparseMLAttention(GLM5, indexer=False).named_parameters()}
    assert shapes["wq_b.weight"] == (128 * 192, 1536) and shapes["wkv_a.weight"] == (576, 7168)
    assert shapes["wkv_b.weight"] == (128 * 256, 512) and shapes["wo.weight"] == (7168, 128 * 128)
    assert shapes["indexer.wq_b.weight"] == (64 * 128, 1536) and shapes["indexer.weights_proj.weight"] == (64, 7168)
    assert glm["wkv_b.weight"] == (64 * 448, 512) and glm["wo.weight"] == (6144, 64 * 256) and len(glm) == 7


def test_fp8_weights_with_block_scales():
    """Loading multiplies, block by block, also where the last blocks are not whole."""
    layer = dsa.Linear(200, 300, dtype=F32)
    weight = torch.randn(300, 200).to(E4M3)
    scale = torch.rand(3, 2) + 0.5
    want = weight.double()
    for i in range(3):
        for j in range(2):
            want[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)] *= scale[i, j].double()
    outer = torch.nn.ModuleDict({"wo": layer})
    outer.load_state_dict({"wo.weight": weight, "wo.scale": scale})
    assert torch.equal(layer.weight, want.float())
    assert list(outer.state_dict()) == ["wo.weight"]
    layer = dsa.Linear(200, 300, dtype=BF16, device="meta")
    layer.load_state_dict({"weight": weight, "scale": scale}, assign=True)
    assert layer.weight.dtype == BF16 and torch.equal(layer.weight, want.float().to(BF16))


def test_weights_without_their_scale():
    layer = dsa.Linear(128, 128, dtype=F32)
    for state, message in (
        ({"weight": torch.randn(128, 128).to(E4M3)}, "weight has no scale: an fp8 weight has one"),
        ({"weight": torch.randn(128, 128), "scale": torch.ones(1, 1)}, "weight has a scale, and is torch.float32"),
        (
            {"weight": torch.randn(128, 128).to(E4M3), "scale": torch.ones(2, 1)},
            r"scale has shape \(2, 1\), expected \(1, 1\): one for each 128 x 128",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(state)


# --- caches and steps


def test_sizes_of_caches():
    cache = dsa.LayerCache.new(V32, pages=3, page_size=64)
    assert cache.kv.shape == (3, 64, 656) and cache.index.shape == (3, 64, 132)
    assert cache.kv.dtype == cache.index.dtype == U8 and cache.page_size == 64
    cache = dsa.LayerCache.new(V32, pages=3, page_size=5, indexer=False, kv_dtype=BF16)
    assert cache.kv.shape == (3, 5, 576) and cache.kv.dtype == BF16 and cache.index is None


@pytest.mark.parametrize("kv_dtype", [U8, F32])
def test_keys_come_back(kv_dtype):
    cache = dsa.LayerCache.new(V32, pages=4, page_size=5, kv_dtype=kv_dtype, index_dtype=kv_dtype)
    keys, index_keys = torch.randn(6, 576), torch.randn(6, 128)
    slots = torch.tensor([19, 0, -1, 7, 20, 8], dtype=I32)
    cache.store_keys(keys, slots)
    inside = [0, 1, 3, 5]
    got = cache.keys(slots[inside], F32)
    assert torch.allclose(got, keys[inside], atol=0.2 if kv_dtype == U8 else 0, rtol=0) and got.dtype == F32
    if kv_dtype == U8:
        codes, scale = (index_keys * 8).to(E4M3), torch.rand(6)
        cache.store_index_codes(codes, scale, slots)
        got_codes, got_scale = cache.index_codes(slots[inside])
        assert torch.equal(got_codes.view(U8), codes.view(U8)[inside]) and torch.equal(got_scale, scale[inside])
    else:
        cache.store_index_keys(index_keys, slots)
        assert torch.equal(cache.index_keys(slots[inside]), index_keys[inside])
        assert int((cache.kv != 0).any(-1).sum()) == int((cache.index != 0).any(-1).sum()) == 4


def test_steps_that_do_not_fit():
    rope, table = dsa.Rope(V32.rope), torch.zeros(2, 3, dtype=I32)
    for start, length in ((-1, 4), (0, 0)):
        with pytest.raises(ValueError, match=f"^Prefill: start is {start} and length {length}, expected"):
            dsa.Prefill(table[0], start=start, length=length, page_size=4, rope=rope)
    with pytest.raises(ValueError, match=r"^Prefill: block_table has shape \(3,\), expected .* room for 13 tokens"):
        dsa.Prefill(table[0], start=10, length=3, page_size=4, rope=rope)
    options = {"next_n": 1, "page_size": 4, "rope": rope}
    with pytest.raises(ValueError, match=r"^Decode: block_table has shape \(2, 3\), expected .* max_context_len = 13"):
        dsa.Decode(table, torch.ones(2, dtype=I32), max_context_len=13, **options)
    with pytest.raises(ValueError, match=r"^Decode: context_lens has shape \(3,\), expected \(b,\) with b = 2"):
        dsa.Decode(table, torch.ones(3, dtype=I32), max_context_len=12, **options)
