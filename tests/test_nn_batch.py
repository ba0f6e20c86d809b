"""nn.PrefillBatch, and positions that are given: as the requests by themselves."""

import pytest
import torch
from test_nn_layer import CONFIGS, F64, Paged, make_layer

import dsa_ext
import dsa_ext.nn as dsa

NAMES = list(CONFIGS)


def batch_step(paged, starts, lengths, **options):
    return dsa.PrefillBatch(
        paged.block_table, starts=starts, lengths=lengths, page_size=paged.page_size, rope=paged.rope, **options
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantised", [False, True])
def test_a_batch_is_its_requests(name, quantised):
    """Of other lengths and other contexts; one has no new tokens."""
    config = CONFIGS[name]
    layer = make_layer(config)
    layer = layer.to(torch.bfloat16) if quantised else layer
    x = torch.randn(4, 70, 48, dtype=torch.bfloat16 if quantised else F64)
    starts, lengths = [9, 0, 30, 17], [40, 23, 0, 2]
    alone, together = (Paged(config, requests=4, quantised=quantised) for _ in range(2))
    want = []
    for request, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for paged in (alone, together) if start else ():
            layer(x[request, :start], paged.prefill(request, 0, start), paged.cache)
        if length:
            step = alone.prefill(request, start, length)
            out, indices = layer(x[request, start : start + length], step, alone.cache)
            first = sum(starts[:request]) + sum(lengths[:request])
            want.append((out, torch.where(indices < 0, -1, indices + first)))
    step = batch_step(together, starts, lengths)
    new = [x[r, start : start + n] for r, (start, n) in enumerate(zip(starts, lengths, strict=True))]
    out, indices = layer(torch.cat(new), step, together.cache)
    assert step.tokens == 65 and torch.equal(indices, torch.cat([i for _, i in want]))
    tolerance = {"rtol": 2**-7, "atol": 2**-7} if quantised else {"rtol": 1e-9, "atol": 1e-9}
    assert torch.allclose(out, torch.cat([o for o, _ in want]), **tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_positions_that_are_given(name):
    """RoPE sees differences only: all positions shifted give the same, spread ones do not."""
    layer, x = make_layer(CONFIGS[name]), torch.randn(2, 40, 48, dtype=F64)

    def run(change):
        paged = Paged(CONFIGS[name], requests=2)
        positions = change(torch.arange(38).repeat(2))
        first, _ = layer(x[:, :38].flatten(0, 1), batch_step(paged, [0, 0], [38, 38], positions=positions), paged.cache)
        options = {"next_n": 2, "max_context_len": 40, "page_size": paged.page_size, "rope": paged.rope}
        lengths = torch.tensor([40, 40], dtype=torch.int32)
        step = dsa.Decode(paged.block_table, lengths, positions=change(torch.tensor([38, 39] * 2)), **options)
        return torch.cat([first, layer(x[:, 38:].flatten(0, 1), step, paged.cache)[0]])

    plain = run(lambda positions: positions)
    assert torch.allclose(run(lambda positions: positions + 100), plain, rtol=1e-4, atol=1e-4)
    spread = run(lambda positions: positions * 3)
    assert not torch.allclose(spread[:76], plain[:76], atol=1e-2)
    assert not torch.allclose(spread[76:], plain[76:], atol=1e-2)


@pytest.mark.parametrize(
    "starts, lengths, message",
    [
        ([0], [3, 3], r"starts is \[0\] and lengths \[3, 3\], expected as many of either"),
        ([0, -1], [3, 3], r"starts is \[0, -1\] and lengths \[3, 3\], expected as many of either, all >= 0"),
        ([0, 2], [3, -1], r"starts is \[0, 2\] and lengths \[3, -1\]"),
        (
            [0, 9],
            [3, 72],
            r"block_table has shape \(2, 10\), expected \(b, pages\) with b = 2 and room for 81 tokens",
        ),
        ([0], [3], r"block_table has shape \(2, 10\), expected \(b, pages\) with b = 1"),
    ],
)
def test_batches_that_do_not_fit(starts, lengths, message):
    with pytest.raises(ValueError, match=f"^PrefillBatch: {message}"):
        batch_step(Paged(CONFIGS["v32"], requests=2), starts, lengths)


def test_layers_of_a_step_share_the_indexers_plan(monkeypatch):
    paged, layers = Paged(CONFIGS["v32"], requests=2, quantised=True), [make_layer(CONFIGS["v32"]) for _ in range(2)]
    x = torch.randn(2, 48, dtype=torch.bfloat16)
    made, used, make, choose = [], [], dsa_ext.plan_paged_indexer_logits, dsa_ext.paged_indexer_topk

    def plan(lengths, **sizes):
        made.append((lengths, sizes))
        return make(lengths, **sizes)

    def topk(*args, **options):
        used.append((args[3], options["plan"]))
        return choose(*args, **options)

    monkeypatch.setattr(dsa_ext, "plan_paged_indexer_logits", plan)
    monkeypatch.setattr(dsa_ext, "paged_indexer_topk", topk)
    sizes = {"page_size": paged.page_size, "next_n": 1}
    lengths = torch.tensor([1, 1], dtype=torch.int32)
    step = dsa.Decode(paged.block_table, lengths, max_context_len=40, rope=paged.rope, **sizes)
    for layer in layers:
        layer.to(torch.bfloat16)(x, step, paged.cache)
    assert len(made) == 1 and made[0][1] == sizes
    assert len(used) == 2 and all(given is made[0][0] and p is step.index_plan for given, p in used)
