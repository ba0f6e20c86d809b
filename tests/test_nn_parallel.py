"""The layer with its heads divided over several processes: the results of one, the same indices on each."""

import socket

import pytest
import torch
from processes import run_ranks
from test_nn_layer import CONFIGS, F64, Paged, make_layer

import dsa_ext.nn as dsa


def share(state, rank, ranks):
    """A rank's part of a layer's tensors, as dsa-convert slices them."""

    def part(t, dim):
        return t.chunk(ranks, dim)[rank]

    dims = {"wq_b.weight": 0, "wkv_b.weight": 0, "wo.weight": 1}
    return {name: part(t, dims[name]) if name in dims else t for name, t in state.items()}


def steps(layer, config, x, quantised):
    """(out, indices) of a prefill in two chunks and of a decoding step."""
    torch.manual_seed(5)  # the same pages everywhere
    paged, results = Paged(config, quantised=quantised), []
    for start, end in ((0, 20), (20, 38)):
        results += layer(x[start:end], paged.prefill(0, start, end - start), paged.cache)
    return results + list(layer(x[38:], paged.decode([40], 2), paged.cache))


def run_rank(rank, ranks, port, name, state, x, results):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    config = CONFIGS[name]
    with torch.no_grad():
        layer = dsa.SparseMLAttention(config, group=torch.distributed.group.WORLD, dtype=F64)
        layer.load_state_dict(share(state, rank, ranks))
        mine = [steps(layer, config, x, quantised) for quantised in (False, True)]
    torch.save(mine, results / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_heads_over_ranks(name, ranks, tmp_path):
    config = CONFIGS[name]
    layer, x = make_layer(config), torch.randn(40, 48, dtype=F64)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_ranks(run_rank, ranks, ranks, port, name, layer.state_dict(), x, tmp_path)
    for i, quantised in enumerate((False, True)):
        want = steps(layer, config, x, quantised)
        first = torch.load(tmp_path / "0.pt")[i]
        for rank in range(ranks):
            for got, same, expected in zip(torch.load(tmp_path / f"{rank}.pt")[i], first, want, strict=True):
                assert torch.equal(got, same)
                if got.dtype == F64:
                    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)
                else:
                    assert torch.equal(got, expected)


def test_heads_that_do_not_divide(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 3)
    with pytest.raises(ValueError, match="^SparseMLAttention: group has 3 ranks, expected a divisor of 4 heads$"):
        dsa.SparseMLAttention(CONFIGS["v32"], group=object())
