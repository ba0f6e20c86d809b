"""The mixture of experts: a gate that sends each token to a few experts, and the experts, divided over the ranks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .decoder_config import MoEConfig
from .linear import dequantised
from .mlp import MLP
from .parallel import share


class Gate(nn.Module):
    """Which experts a token goes to, and with which weights, by the sigmoid of a linear score::

        score = sigmoid(weight x)
        choice: the experts_per_token largest of score + bias, among those of the topk_group best of n_group groups;
                a group is as good as its two best experts together
        weights: score of the chosen, divided by their sum (norm_topk_prob), times routed_scaling_factor

    The bias, which balances the load, takes part in the choice alone. All of it in float32, whole on every rank.
    """

    def __init__(self, dim: int, config: MoEConfig, *, device=None):
        super().__init__()
        self.config = config
        options = {"device": device, "dtype": torch.float32}
        self.weight = nn.Parameter(torch.empty(config.experts, dim, **options).normal_(std=dim**-0.5))
        self.bias = nn.Parameter(torch.zeros(config.experts, **options))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [tokens, dim] -> experts int64, weights float32, both [tokens, experts_per_token]."""
        config = self.config
        scores = F.linear(x.float(), self.weight).sigmoid()
        choice = scores + self.bias
        if config.topk_group < config.n_group:
            groups = choice.unflatten(-1, (config.n_group, -1))
            best = groups.topk(2).values.sum(-1).topk(config.topk_group).indices
            left_out = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(-1, best, False)
            choice = groups.masked_fill(left_out[..., None], -torch.inf).flatten(-2)
        experts = choice.topk(config.experts_per_token).indices
        weights = scores.gather(-1, experts)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * config.routed_scaling_factor


class Experts(nn.Module):
    """The rank's experts. Their weights are stacked, for grouped matmuls; in a state dict each expert has its own,
    under its number in the model: `17.w1.weight`."""

    def __init__(self, dim: int, config: MoEConfig, *, group=None, device=None, dtype=None):
        super().__init__()
        self.numbers = share("n_routed_experts", config.experts, group)
        held, inner = len(self.numbers), config.intermediate_size
        self.w1 = self._weights(held, inner, dim, device, dtype)
        self.w2 = self._weights(held, dim, inner, device, dtype)
        self.w3 = self._weights(held, inner, dim, device, dtype)

    @staticmethod
    def _weights(experts: int, rows: int, columns: int, device, dtype) -> nn.Parameter:
        weights = torch.empty(experts, rows, columns, device=device, dtype=dtype)
        return nn.Parameter(weights.normal_(std=columns**-0.5))

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The rank's summand, [tokens, dim] in float32. No look at the values of experts, which would wait for the
        device: the rows of other ranks' experts come last, and no matmul takes them.

        Args:
            x: [tokens, dim].
            experts: int64 [tokens, k], numbers of the model's experts, distinct in a row.
            weights: float32 [tokens, k].
        """
        held, k = len(self.numbers), experts.shape[-1]
        local = experts.flatten() - self.numbers.start
        local = torch.where((local >= 0) & (local < held), local, held)
        by_expert, order = local.sort(stable=True)
        ends = torch.searchsorted(by_expert, torch.arange(held, device=x.device), right=True).int()
        rows = x[order // k]
        inner = F.silu(_grouped(rows, self.w1, ends)) * _grouped(rows, self.w3, ends)
        out = _grouped(inner, self.w2, ends)
        # Back in the order of the tokens, where a fixed order of the sum makes it the same on every run.
        out = out.float().masked_fill((by_expert == held)[:, None], 0)[order.argsort()]
        return (out.unflatten(0, (-1, k)) * weights[..., None]).sum(1)

    def _by_name(self) -> dict[str, Tensor]:
        """A view of each weight, by its name in a state dict."""
        stacks = {"w1": self.w1, "w2": self.w2, "w3": self.w3}
        return {f"{e}.{name}.weight": stack[i] for i, e in enumerate(self.numbers) for name, stack in stacks.items()}

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        for name, weight in self._by_name().items():
            destination[prefix + name] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        held = {prefix + name: weight for name, weight in self._by_name().items()}
        for name, weight in held.items():
            value = dequantised(state_dict, name.removesuffix("weight"), weight.dtype, errors)
            if value is None:
                missing.append(name)
            elif value.shape != weight.shape:
                errors.append(f"{name} has shape {tuple(value.shape)}, expected {tuple(weight.shape)}")
            else:
                weight.detach().copy_(value)
        unexpected += [name for name in state_dict if strict and name.startswith(prefix) and name not in held]


def _grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows ends[e - 1] ... ends[e] of x [n, in] times the transpose of weights[e], [experts, out, in]; what lies behind
    the last is undefined."""
    return F.grouped_mm(x, weights.mT, offs=ends)


class MoE(nn.Module):
    """Routed experts and, where the model has them, experts that every token goes to.

    A rank holds an equal share of the routed experts and a part of the shared ones; the ranks' results add up.
    """

    def __init__(self, dim: int, config: MoEConfig, *, group=None, device=None, dtype=None):
        super().__init__()
        self.gate = Gate(dim, config, device=device)
        self.experts = Experts(dim, config, group=group, device=device, dtype=dtype)
        inner = config.shared_experts * config.intermediate_size
        self.shared_experts = MLP(dim, inner, group=group, device=device, dtype=dtype) if inner else None

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, dim] -> [tokens, dim], the rank's summand, in float32."""
        out = self.experts(x, *self.gate(x))
        return out if self.shared_experts is None else out + self.shared_experts(x)
