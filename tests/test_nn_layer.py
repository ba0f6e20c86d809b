"""dsa_ext.nn's attention layer on the CPU, against dense attention under the mask "-inf off the chosen set"."""

import dataclasses

import layer_oracle
import pytest
import torch
from torch import nn

import dsa_ext
import dsa_ext.nn as dsa

F64, I32, U8 = torch.float64, torch.int32, torch.uint8
SIZES = {"dim": 48, "n_heads": 4, "q_lora_rank": 40, "index_n_heads": 8, "index_topk": 12}
CONFIGS = {
    "v32": dsa.DSAConfig(
        **SIZES, qk_nope_head_dim=16, v_head_dim=24, rope=dsa.RopeConfig(factor=40.0, original_context=4096)
    ),
    "glm5": dsa.DSAConfig(
        **SIZES,
        qk_nope_head_dim=24,
        v_head_dim=16,
        index_rope="interleaved",
        rms_norm_eps=1e-5,
        rope=dsa.RopeConfig(theta=1e6),
    ),
}
NAMES = list(CONFIGS)


def make_layer(config, **options):
    """float64, with weights that make every part of it matter."""
    layer = dsa.SparseMLAttention(config, dtype=F64, **options)
    for name, p in layer.named_parameters():
        if p.dim() == 2:
            nn.init.normal_(p, std=p.shape[1] ** -0.5)
        else:
            nn.init.normal_(p, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    nn.init.normal_(layer.wq_b.weight, std=2 * layer.wq_b.weight.shape[1] ** -0.5)  # no flat softmax
    return layer


def weights_of(layer):
    return dict(layer.state_dict())


class Paged:
    """One layer's caches, with requests on scattered pages."""

    def __init__(self, config, requests=1, tokens=80, page_size=8, quantised=False, indexer=True):
        self.config, self.page_size = config, page_size
        each = -(-tokens // page_size)
        pages = requests * each + 3
        dtype = U8 if quantised else F64
        self.rope = dsa.Rope(config.rope)
        self.block_table = torch.randperm(pages)[: requests * each].view(requests, each).int()
        options = {"pages": pages, "page_size": page_size, "indexer": indexer}
        self.cache = dsa.LayerCache.new(config, kv_dtype=dtype, index_dtype=dtype, **options)
        for whole in (self.cache.kv, self.cache.index):  # what no token has written must not matter
            if whole is not None:
                whole.fill_(255 if quantised else torch.nan)

    def prefill(self, request, start, length):
        table = self.block_table[request]
        return dsa.Prefill(table, start=start, length=length, page_size=self.page_size, rope=self.rope)

    def decode(self, context_lens, next_n=1):
        lengths = torch.tensor(context_lens, dtype=I32)
        most = self.block_table.shape[1] * self.page_size
        options = {"next_n": next_n, "max_context_len": most, "page_size": self.page_size, "rope": self.rope}
        return dsa.Decode(self.block_table, lengths, **options)

    def positions(self, slots):
        """The one request's positions in these slots."""
        back = torch.full((self.cache.kv.shape[0],), -1)
        back[self.block_table[0].long()] = torch.arange(self.block_table.shape[1])
        result = back[slots // self.page_size] * self.page_size + slots % self.page_size
        return torch.where(slots < 0, -1, result).sort(-1).values


def as_mask(indices, s):
    """[rows, k] of positions -> [rows, s] of bool."""
    mask = torch.zeros(len(indices), s + 1, dtype=torch.bool)
    return mask.scatter(1, torch.where(indices < 0, s, indices).long(), True)[:, :s]


def in_chunks(layer, paged, x, chunks, indices=None):
    """(out, mask of the chosen) of all tokens of request 0, chunk by chunk."""
    outs, masks, start = [], [], 0
    for length in chunks:
        step = paged.prefill(0, start, length)
        out, found = layer(x[start : start + length], step, paged.cache)
        outs.append(out)
        masks.append(as_mask(found, len(x)))
        start += length
    assert start == len(x)
    return torch.cat(outs), torch.cat(masks)


# --- against dense attention


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("topk", [1, 12, 60, 100])
def test_prefill_against_dense_attention(name, topk):
    config = dataclasses.replace(CONFIGS[name], index_topk=topk)
    layer, paged, x = make_layer(config), Paged(config), torch.randn(70, 48, dtype=F64)
    out, mask = in_chunks(layer, paged, x, [70])
    want = layer_oracle.chosen(config, layer_oracle.index_scores(config, weights_of(layer), x))
    assert torch.equal(mask, want) and torch.equal(mask.sum(1), torch.arange(1, 71).clamp(max=topk))
    assert torch.allclose(out, layer_oracle.attention(config, weights_of(layer), x, want), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_forms_of_rope_matter(name):
    """The oracle with either of the two swapped finds other tokens, other values."""
    config = CONFIGS[name]
    layer, paged, x = make_layer(config), Paged(config), torch.randn(70, 48, dtype=F64)
    out, mask = in_chunks(layer, paged, x, [70])
    weights = weights_of(layer)
    swapped = "interleaved" if config.index_rope == "half" else "half"
    other = layer_oracle.chosen(config, layer_oracle.index_scores(config, weights, x, rope=swapped))
    assert (other != mask).sum() > 20
    other = layer_oracle.attention(config, weights, x, mask, rope="half")
    assert (other - out).abs().max() > 0.01 * out.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_decode_against_dense_attention(name):
    config = CONFIGS[name]
    layer, paged, x = make_layer(config), Paged(config), torch.randn(60, 48, dtype=F64)
    in_chunks(layer, paged, x[:40], [40])
    outs, masks = [], []
    for n in range(40, 60):
        out, slots = layer(x[n : n + 1], paged.decode([n + 1]), paged.cache)
        outs.append(out)
        masks.append(as_mask(paged.positions(slots[0]), 60))
    want = layer_oracle.chosen(config, layer_oracle.index_scores(config, weights_of(layer), x))
    assert torch.equal(torch.cat(masks), want[40:])
    dense = layer_oracle.attention(config, weights_of(layer), x, want)
    assert torch.allclose(torch.cat(outs), dense[40:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_fp8_caches_against_dense_attention(name):
    """The quantised indexer finds most of what float64 finds; over what it finds, values are FP8's."""
    config = CONFIGS[name]
    layer, paged, x = make_layer(config), Paged(config, quantised=True), torch.randn(70, 48, dtype=F64)
    out, mask = in_chunks(layer, paged, x, [70])
    best = layer_oracle.chosen(config, layer_oracle.index_scores(config, weights_of(layer), x))
    assert torch.equal(mask.sum(1), best.sum(1))
    assert (mask & best).sum() > 0.9 * best.sum()
    assert torch.equal(mask[:12], torch.ones(12, 70).tril().bool())  # contexts shorter than topk take every token
    dense = layer_oracle.attention(config, weights_of(layer), x, mask)
    error = (out - dense).square().mean().sqrt() / dense.square().mean().sqrt()
    assert 1e-4 < error < 0.05


# --- however the tokens come


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_decoding_make_no_difference(name, quantised):
    config = CONFIGS[name]
    layer, x = make_layer(config), torch.randn(64, 48, dtype=F64)
    out, mask = in_chunks(layer, Paged(config, quantised=quantised), x, [64])
    for chunks in ([30, 1, 33], [8] * 8):
        again, mask_again = in_chunks(layer, Paged(config, quantised=quantised, page_size=5), x, chunks)
        assert torch.equal(mask_again, mask) and torch.allclose(again, out, rtol=1e-9, atol=1e-12)
    for next_n in (1, 2, 3):
        paged, n = Paged(config, quantised=quantised), 64 - 6 * next_n
        in_chunks(layer, paged, x[:n], [n])
        for start in range(n, 64, next_n):
            step = paged.decode([start + next_n], next_n)
            again, slots = layer(x[start : start + next_n], step, paged.cache)
            assert torch.equal(as_mask(paged.positions(slots[0]), 64), mask[start : start + next_n])
            assert torch.allclose(again, out[start : start + next_n], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("quantised", [False, True])
def test_requests_do_not_meet(quantised):
    """Three requests of different lengths, decoded together and alone; then with one that is padding."""
    config = CONFIGS["v32"]
    layer, lengths, next_n = make_layer(config), [5, 33, 62], 2
    xs = [torch.randn(n + next_n, 48, dtype=F64) for n in lengths]
    paged = Paged(config, requests=3, quantised=quantised)
    for i, (x, n) in enumerate(zip(xs, lengths, strict=True)):
        layer(x[:n], paged.prefill(i, 0, n), paged.cache)
    new = torch.cat([x[-next_n:] for x in xs])
    together, slots = layer(new, paged.decode([n + next_n for n in lengths], next_n), paged.cache)
    for i, x in enumerate(xs):
        alone, _ = in_chunks(layer, Paged(config, quantised=quantised), x, [len(x)])
        assert torch.allclose(together[i * next_n : (i + 1) * next_n], alone[-next_n:], rtol=1e-9, atol=1e-12)
        own = set(paged.block_table[i].tolist())
        assert {int(s) // 8 for s in slots[i].flatten() if s >= 0} <= own

    before = paged.cache.kv.clone(), paged.cache.index.clone()
    paged.block_table[1] = -1
    padded, slots = layer(new, paged.decode([7, 0, 64], next_n), paged.cache)
    assert torch.allclose(padded[[0, 1, 4, 5]], together[[0, 1, 4, 5]], rtol=1e-9, atol=1e-12)
    assert bool((padded[2:4] == 0).all() and (slots[1] == -1).all())
    if quantised:  # the same keys again, and nothing for the padding
        assert torch.equal(paged.cache.kv, before[0]) and torch.equal(paged.cache.index, before[1])


def test_a_context_shorter_than_the_new_tokens():
    config = CONFIGS["glm5"]
    layer, paged, x = make_layer(config), Paged(config), torch.randn(3, 48, dtype=F64)
    out, slots = layer(x, paged.decode([2], 3), paged.cache)
    alone, _ = in_chunks(layer, Paged(config), x[1:], [2])
    assert torch.allclose(out[1:], alone, rtol=1e-9, atol=1e-12)
    assert bool((out[0] == 0).all()) and (slots >= 0).sum(-1).tolist() == [[0, 1, 2]]


# --- layers that share indices


def test_shared_indices():
    """A layer without indexer attends to what the layer before has chosen, in both kinds of step."""
    config = CONFIGS["glm5"]
    first, second = make_layer(config), make_layer(config, indexer=False)
    a, x = Paged(config), torch.randn(50, 48, dtype=F64)
    b = Paged(config, indexer=False)
    b.block_table = a.block_table
    assert b.cache.index is None and not any(name.startswith("indexer") for name in weights_of(second))
    step = a.prefill(0, 0, 49)
    hidden, indices = first(x[:49], step, a.cache)
    out, same = second(hidden, step, b.cache, indices)
    assert same is indices
    step = a.decode([50])
    last, slots = first(x[49:], step, a.cache)
    out_last, _ = second(last, step, b.cache, slots)

    mask = layer_oracle.chosen(config, layer_oracle.index_scores(config, weights_of(first), x))
    dense = layer_oracle.attention(config, weights_of(first), x, mask)
    dense = layer_oracle.attention(config, weights_of(second), dense, mask)
    assert torch.allclose(torch.cat([out, out_last]), dense, rtol=1e-4, atol=1e-5)
    unmasked = layer_oracle.attention(config, weights_of(second), hidden, torch.ones(49, 49).tril().bool())
    assert (unmasked - out).abs().max() > 0.01


def test_indices_are_given_or_found():
    config = CONFIGS["glm5"]
    paged, x = Paged(config), torch.randn(3, 48, dtype=F64)
    step = paged.prefill(0, 0, 3)
    with pytest.raises(ValueError, match="indices is given, expected None: the layer has an indexer"):
        make_layer(config)(x, step, paged.cache, torch.zeros(3, 12, dtype=I32))
    with pytest.raises(ValueError, match="indices is None, expected those of a layer before"):
        make_layer(config, indexer=False)(x, step, paged.cache)
    with pytest.raises(ValueError, match=r"x has shape \(2, 48\), expected \(tokens, 48\) with tokens = 3"):
        make_layer(config)(x[:2], step, paged.cache)


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_bf16_on_a_gpu(name):
    """Kernels against float64 on the CPU over the tokens that the GPU chose: prefill in chunks, then decoding."""
    config = dataclasses.replace(CONFIGS[name], index_topk=64)
    exact = make_layer(config)
    layer = dsa.SparseMLAttention(config, dtype=torch.bfloat16, device="cuda")
    layer.load_state_dict(exact.state_dict())
    exact.load_state_dict(layer.state_dict())  # of the rounded weights
    x = torch.randn(300, 48).bfloat16()
    rope, table = dsa.Rope(config.rope, "cuda"), torch.randperm(8).int().cuda()[None]
    cache = dsa.LayerCache.new(config, pages=8, page_size=64, device="cuda")
    outs, masks, place = [], [], {int(p): i for i, p in enumerate(table[0])}
    for start, end in ((0, 200), (200, 290)):
        step = dsa.Prefill(table[0], start=start, length=end - start, page_size=64, rope=rope)
        out, indices = layer(x[start:end].cuda(), step, cache)
        outs.append(out)
        masks.append(as_mask(indices.cpu(), 300))
    for n in range(290, 300, 2):
        lengths = torch.tensor([n + 2], dtype=I32, device="cuda")
        step = dsa.Decode(table, lengths, next_n=2, max_context_len=512, page_size=64, rope=rope)
        out, slots = layer(x[n : n + 2].cuda(), step, cache)
        outs.append(out)
        slots = [[place[s // 64] * 64 + s % 64 if s >= 0 else -1 for s in row] for row in slots[0].tolist()]
        masks.append(as_mask(torch.tensor(slots), 300))
    out, mask = torch.cat(outs).cpu().double(), torch.cat(masks)
    best = layer_oracle.chosen(config, layer_oracle.index_scores(config, weights_of(exact), x.double()))
    assert torch.equal(mask.sum(1), best.sum(1)) and (mask & best).sum() > 0.9 * best.sum()
    dense = layer_oracle.attention(config, weights_of(exact), x.double(), mask)
    assert (out - dense).square().mean().sqrt() < 0.06 * dense.square().mean().sqrt()


@pytest.mark.gpu
def test_decode_in_a_graph():
    """One capture serves other lengths, pages and tokens."""
    config = dataclasses.replace(CONFIGS["v32"], index_topk=64)
    layer = make_layer(config).to("cuda", torch.bfloat16)
    rope, cache = dsa.Rope(config.rope, "cuda"), dsa.LayerCache.new(config, pages=20, page_size=64, device="cuda")
    table = torch.arange(16, dtype=I32, device="cuda").view(2, 8)
    lengths, x = torch.tensor([150, 70], dtype=I32, device="cuda"), torch.randn(2, 48, device="cuda").bfloat16()
    for i, n in enumerate((400, 300)):
        step = dsa.Prefill(table[i], start=0, length=n, page_size=64, rope=rope)
        layer(torch.randn(n, 48, device="cuda").bfloat16(), step, cache)

    def decode():
        step = dsa.Decode(table, lengths, next_n=1, max_context_len=512, page_size=64, rope=rope)
        return layer(x, step, cache)

    def captured():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = decode()
        return graph, results

    decode()
    graph, (out, slots) = captured()
    lengths.copy_(torch.tensor([401, 0]))
    x.normal_()
    graph.replay()
    anew, (want, want_slots) = captured()  # of the lengths as they are now
    anew.replay()
    assert torch.equal(slots, want_slots) and torch.equal(out, want)
    assert bool((out[1] == 0).all() and (slots[1] == -1).all() and (slots[0] >= 0).all())
    assert (decode()[0] - out).float().norm() < 0.1 * out.float().norm()


def test_the_package_has_it():
    assert dsa_ext.nn is dsa
