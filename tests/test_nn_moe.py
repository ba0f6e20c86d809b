"""Gate, experts and the shared MLP against their definitions, an expert and a token at a time in float64."""

import pytest
import torch
from torch import Tensor

from dsa_ext import nn as dsa
from dsa_ext.nn import moe
from dsa_ext.nn.moe import Experts, Gate

DIM = 32
PLAIN = dsa.MoEConfig(experts=8, shared_experts=2, experts_per_token=3, intermediate_size=16)
GROUPS = dsa.MoEConfig(
    experts=12,
    shared_experts=0,
    experts_per_token=4,
    intermediate_size=16,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
)
CONFIGS = {"plain": PLAIN, "groups": GROUPS, "unnormalised": dsa.MoEConfig(**{**vars(GROUPS), "norm_topk_prob": False})}


def make(config, **options) -> dsa.MoE:
    layer = dsa.MoE(DIM, config, **options)
    layer.gate.bias.normal_(std=0.3)
    return layer


def chosen(config, scores: Tensor, bias: Tensor) -> list[int]:
    """Of one token, in no order."""
    choice = (scores + bias).tolist()
    size = config.experts // config.n_group
    groups = [list(range(g * size, (g + 1) * size)) for g in range(config.n_group)]
    groups.sort(key=lambda members: -sum(sorted(choice[e] for e in members)[-2:]))
    allowed = [e for members in groups[: config.topk_group] for e in members]
    return sorted(allowed, key=lambda e: -choice[e])[: config.experts_per_token]


def mlp(x, w1, w2, w3):
    a = w1 @ x
    return w2 @ (a / (1 + (-a).exp()) * (w3 @ x))


def oracle(config, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    w = {name: t.double() for name, t in weights.items()}
    out = []
    for token in x.double():
        scores = 1 / (1 + (-(w["gate.weight"] @ token)).exp())
        experts = chosen(config, scores, w["gate.bias"])
        total = sum(scores[e] for e in experts) if config.norm_topk_prob else 1.0
        row = torch.zeros_like(token)
        for e in experts:
            parts = [w[f"experts.{e}.w{i}.weight"] for i in (1, 2, 3)]
            row += scores[e] / total * config.routed_scaling_factor * mlp(token, *parts)
        if config.shared_experts:
            row += mlp(token, *(w[f"shared_experts.w{i}.weight"] for i in (1, 2, 3)))
        out.append(row)
    return torch.stack(out)


@pytest.mark.parametrize("name", CONFIGS)
def test_matches_definition(name):
    config = CONFIGS[name]
    layer, x = make(config), torch.randn(50, DIM)
    want = oracle(config, layer.state_dict(), x)
    assert torch.allclose(layer(x).double(), want, rtol=0, atol=1e-5 * want.abs().max())


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tokens", [1, 50])
def test_matches_definition_on_gpu(name, tokens):
    config = CONFIGS[name]
    layer = make(config, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(tokens, DIM, device="cuda", dtype=torch.bfloat16)
    weights = {name: weight.cpu() for name, weight in layer.state_dict().items()}
    want = oracle(config, weights, x.cpu())
    assert torch.allclose(layer(x).cpu().double(), want, rtol=0, atol=0.02 * want.abs().max())


@pytest.mark.parametrize("tokens", [1, 40])
def test_ranks_add_up(monkeypatch, tokens):
    """Each rank's experts alone, and a rank that no token goes to. Behind the rows that they take, matmuls leave
    whatever memory held: NaN here."""
    whole, x = make(PLAIN), torch.randn(tokens, DIM)
    experts, weights = whole.gate(x)
    state = whole.experts.state_dict()
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 4)

    def with_nan(x, weights, ends, grouped=moe._grouped):
        out = grouped(x, weights, ends)
        out[ends[-1] :] = torch.nan
        return out

    monkeypatch.setattr(moe, "_grouped", with_nan)
    total = 0
    for rank in range(4):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group, rank=rank: rank)
        part = Experts(DIM, PLAIN, group=object())
        numbers = {int(name.split(".")[0]) for name in part.state_dict()}
        assert numbers == {2 * rank, 2 * rank + 1}
        part.load_state_dict({name: t for name, t in state.items() if int(name.split(".")[0]) in numbers})
        total = total + part(x, experts, weights)
    assert torch.allclose(total, whole.experts(x, experts, weights), rtol=1e-5, atol=1e-5)
    idle = torch.full_like(experts, 0)  # experts of rank 0, and `part` is rank 3
    assert torch.equal(part(x, idle, weights), torch.zeros(tokens, DIM))


def test_equal_results():
    layer, x = make(GROUPS), torch.randn(30, DIM)
    assert torch.equal(layer(x), layer(x))
    # A token's result does not depend on the tokens beside it, but for how matmuls of other sizes round.
    assert torch.allclose(layer(x)[7], layer(x[7:8])[0], rtol=1e-5, atol=1e-5)


def test_gate_is_float32():
    x = torch.randn(20, DIM).bfloat16()
    gate = Gate(DIM, PLAIN)
    experts, weights = gate(x)
    assert gate.weight.dtype == weights.dtype == torch.float32
    same, exact = gate(x.float())
    assert torch.equal(experts, same) and torch.equal(weights, exact)
    assert make(PLAIN, dtype=torch.bfloat16)(x).dtype == torch.float32


def test_state_dict_is_the_weights():
    experts = Experts(DIM, PLAIN)
    state = experts.state_dict()
    assert list(state)[:3] == ["0.w1.weight", "0.w2.weight", "0.w3.weight"] and len(state) == 24
    for name in state:
        state[name] = torch.randn_like(state[name])
    experts.load_state_dict(state)
    assert torch.equal(experts.w2[5], state["5.w2.weight"]) and torch.equal(experts.w1[7], state["7.w1.weight"])
    experts.state_dict()["7.w3.weight"].fill_(3)
    assert (experts.w3[7] == 3).all() and (experts.w3[6] != 3).all()


def test_state_dict_of_fp8():
    experts = Experts(DIM, PLAIN)
    state = experts.state_dict()
    codes = torch.randn(16, DIM).to(torch.float8_e4m3fn)
    state["3.w1.weight"], state["3.w1.scale"] = codes, torch.tensor([[0.5]])
    experts.load_state_dict(state)
    assert torch.equal(experts.w1[3], codes.float() / 2)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("3.w1.weight"), 'Missing key.*"3.w1.weight"'),
        (lambda s: s.update({"8.w1.weight": s["0.w1.weight"]}), 'Unexpected key.*"8.w1.weight"'),
        (
            lambda s: s.update({"3.w2.weight": s["3.w1.weight"]}),
            r"3.w2.weight has shape \(16, 32\), expected \(32, 16\)",
        ),
        (lambda s: s.update({"3.w1.weight": s["3.w1.weight"].to(torch.float8_e4m3fn)}), "3.w1.weight has no scale"),
    ],
)
def test_state_dicts_that_do_not_fit(change, message):
    experts = Experts(DIM, PLAIN)
    state = experts.state_dict()
    change(state)
    with pytest.raises(RuntimeError, match=message):
        experts.load_state_dict(state)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"experts": 0}, "experts is 0, expected an int >= 1"),
        ({"shared_experts": -1}, "shared_experts is -1, expected an int >= 0"),
        ({"n_group": 5}, "n_group is 5, expected a divisor of 12 experts"),
        ({"topk_group": 5}, "topk_group is 5, expected at most n_group = 4"),
        ({"n_group": 12}, "n_group is 12, expected groups of 2 of 12 experts"),
        ({"experts_per_token": 7}, "experts_per_token is 7, expected at most the 6 of topk_group = 2 groups"),
    ],
)
def test_configurations_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=f"^MoEConfig: {message}$"):
        dsa.MoEConfig(**{**vars(GROUPS), **change})


def test_parts_that_do_not_divide(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
    with pytest.raises(ValueError, match="^group has 3 ranks, expected a divisor of n_routed_experts, 8$"):
        Experts(DIM, PLAIN, group=object())
    with pytest.raises(
        ValueError, match="^group has 3 ranks, expected a divisor of the inner dimension of the MLP, 64$"
    ):
        dsa.MLP(DIM, 64, group=object())
