"""Inputs of every kind that the ops must take: one generator for the tests and the benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
_GENERATE_AT_ONCE = 2**26  # elements of the random matrix that distinct indices are drawn from


@dataclass(frozen=True, kw_only=True)
class SparseMlaFwdCase:
    """What the inputs of one call look like.

    indices: how a query's valid indices are chosen and where they stand
        distinct          a random subset of the rows, in random order
        ascending         the same in ascending order; descending: in descending order
        duplicates        drawn with replacement from five rows
        one_row           the same row topk times
        none              no valid index at all
        some_none         every third query has no valid index
        late              the first 128 entries (at most all but one) are invalid
        gap               entries [64, 192) are invalid
        last              only the last entry is valid
    values: distribution of q and kv
        normal            standard normal
        small             a tenth of that: nearly uniform weights
        large             logits of some hundreds, of both signs
        ramp              logits grow with the row's number, by about 330 for the steepest heads, not at all for others
        gentle_ramp       the same up to 40, so that the running maximum creeps
        spikes            a few rows' logits exceed the others' by 300, in every other head
        low               all logits near -330
    """

    s_q: int = 3
    s_kv: int = 300
    h_q: int = 16
    topk: int = 130
    d_qk: int = 576
    d_v: int = 512
    batch: int | None = None
    indices: str = "distinct"
    values: str = "normal"
    invalid: float = 0.0  # share of the entries that is replaced by out-of-range numbers
    poison: bool = False  # NaN and Inf in half of the rows, the first and last among them; no valid index names those
    attn_sink: str | None = None  # None, random, edge
    topk_length: str | None = None  # None, random, edge

    @property
    def scale(self) -> float:
        """DeepSeek-V3.2's without YaRN for 576 (128 + 64 dims before absorption), 1/sqrt(d) else."""
        return (192 if self.d_qk == 576 else self.d_qk) ** -0.5

    @property
    def flops(self) -> int:
        """Multiplications and additions of both products, as if every index were valid."""
        return 2 * (self.batch or 1) * self.s_q * self.h_q * self.topk * (self.d_qk + self.d_v)

    @property
    def id(self) -> str:
        """Short and unique: what differs from the defaults."""
        default = SparseMlaFwdCase()
        changed = [(k, v) for k, v in vars(self).items() if v != getattr(default, k)]
        return "-".join(f"{k}_{v}" for k, v in changed) or "default"

    def on(self, device: str) -> "SparseMlaFwdCase":
        """The case with as many queries as the device can take: enough on a GPU to give every SM several."""
        return replace(self, s_q=self.s_q * 67) if device == "cuda" else self


@dataclass(frozen=True)
class SparseMlaFwdInputs:
    q: Tensor
    kv: Tensor
    idx: Tensor
    scale: float
    d_v: int
    attn_sink: Tensor | None
    topk_length: Tensor | None

    def call(self, function: Callable[..., Any], **options: Any) -> Any:
        """function(q, kv, idx, scale, ...) with the optional arguments; `options` are added or go first."""
        given = {"d_v": self.d_v, "attn_sink": self.attn_sink, "topk_length": self.topk_length}
        return function(self.q, self.kv, self.idx, self.scale, **(given | options))

    def queries(self, selection: Any) -> "SparseMlaFwdInputs":
        """Some of the queries (dimension 0) of an unbatched call."""
        length = None if self.topk_length is None else self.topk_length[selection]
        return replace(self, q=self.q[selection], idx=self.idx[selection], topk_length=length)

    def to(self, dtype: torch.dtype) -> "SparseMlaFwdInputs":
        return replace(self, q=self.q.to(dtype), kv=self.kv.to(dtype))


def make_inputs(case: SparseMlaFwdCase, device: str | torch.device = "cpu", seed: int = 0) -> SparseMlaFwdInputs:
    g = torch.Generator(device).manual_seed(seed)
    batch = case.batch or 1
    q, kv = _values(case, batch, g)
    clean, bad = _rows(case, g)
    length = _topk_length(case, batch, g)
    idx = _indices(case, batch, clean, g)
    if case.poison:
        filler = torch.tensor([float("nan"), float("inf"), float("-inf")], device=device, dtype=kv.dtype)
        kv[:, bad] = filler[torch.arange(len(bad), device=device) % 3][:, None]
        if length is not None:  # what a query does not look at names poisoned rows
            beyond = torch.arange(case.topk, device=device) >= length[:, :, None]
            idx = torch.where(beyond, bad[torch.randint(len(bad), idx.shape, generator=g, device=device)].int(), idx)
    sink = _attn_sink(case, g)
    if case.batch is None:
        q, kv, idx, length = q[0], kv[0], idx[0], None if length is None else length[0]
    return SparseMlaFwdInputs(q, kv, idx, case.scale, case.d_v, sink, length)


def _values(case: SparseMlaFwdCase, batch: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=g.device, dtype=torch.bfloat16).clamp_(-10, 10)

    q, kv = normal(batch, case.s_q, case.h_q, case.d_qk), normal(batch, case.s_kv, case.d_qk)
    if case.values == "normal":
        return q, kv
    if case.values == "small":
        return q.div_(10), kv.div_(10)
    if case.values == "large":
        return q.mul_(64), kv
    # The rest moves along one direction u: logit = noise + scale * d_qk * (q's share of u) * (kv's share of u).
    unit = case.scale * case.d_qk  # 42 for d_qk 576
    u = torch.sign(normal(case.d_qk))
    head = torch.arange(case.h_q, device=g.device)
    row = torch.arange(case.s_kv, device=g.device)
    if case.values in ("ramp", "gentle_ramp"):
        top = 330.0 if case.values == "ramp" else 40.0
        q_share = (head % 4) / 3 if case.h_q > 1 else torch.ones_like(head)
        kv_share = top / unit * row / max(1, case.s_kv - 1)
    elif case.values == "spikes":
        q_share = (head + 1) % 2
        kv_share = 300.0 / unit * (torch.rand(case.s_kv, generator=g, device=g.device) < 0.01)
    elif case.values == "low":
        q_share, kv_share = torch.full_like(head, -1), torch.full_like(row, 330.0 / unit, dtype=torch.float32)
    else:
        raise ValueError(f"no such distribution: {case.values}")
    q = (q.float() / 4 + q_share[:, None] * u).bfloat16()
    kv = (kv.float() + kv_share[:, None] * u).bfloat16()
    return q, kv


def _rows(case: SparseMlaFwdCase, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers of the rows that valid indices may name, and of the rest."""
    if not case.poison:
        return torch.arange(case.s_kv, device=g.device), torch.empty(0, dtype=torch.int64, device=g.device)
    is_bad = torch.rand(case.s_kv, generator=g, device=g.device) < 0.5
    is_bad[0] = is_bad[-1] = True
    return torch.where(~is_bad)[0], torch.where(is_bad)[0]


def _distinct(n: int, rows: int, k: int, g: torch.Generator) -> Tensor:
    """[n, k] int32: in every line k of the numbers below `rows`, in random order."""
    step = max(1, _GENERATE_AT_ONCE // max(1, rows))
    parts = [
        torch.rand(min(step, n - i), rows, generator=g, device=g.device).topk(k).indices.int()
        for i in range(0, n, step)
    ]
    lines = torch.cat(parts) if parts else torch.empty(0, k, dtype=torch.int32, device=g.device)
    order = torch.randperm(k, generator=g, device=g.device)  # topk's own order is that of the random numbers
    return lines[:, order]


def _indices(case: SparseMlaFwdCase, batch: int, clean: Tensor, g: torch.Generator) -> Tensor:
    n, k = batch * case.s_q, min(case.topk, len(clean))
    if case.indices in ("duplicates", "one_row"):
        few = clean[
            torch.randperm(len(clean), generator=g, device=g.device)[: 5 if case.indices == "duplicates" else 1]
        ]
        idx = few[torch.randint(len(few), (n, case.topk), generator=g, device=g.device)].int()
    else:
        idx = torch.full((n, case.topk), -1, dtype=torch.int32, device=g.device)
        idx[:, :k] = clean.int()[_distinct(n, len(clean), k, g)]

    if case.indices in ("ascending", "descending"):
        idx[:, :k] = idx[:, :k].sort(dim=1, descending=case.indices == "descending").values
    elif case.indices == "none":
        idx = _out_of_range(idx.shape, case.s_kv, g)
    elif case.indices == "some_none":
        idx[::3] = _out_of_range(idx[::3].shape, case.s_kv, g)
    elif case.indices == "late":
        idx[:, : min(128, k - 1)] = -1
    elif case.indices == "gap":
        idx[:, 64:192] = INT_MAX
    elif case.indices == "last":
        idx[:, :-1] = -1
    elif case.indices not in ("distinct", "duplicates", "one_row"):
        raise ValueError(f"no such choice of indices: {case.indices}")
    if case.invalid:
        replaced = torch.rand(idx.shape, generator=g, device=g.device) < case.invalid
        idx = torch.where(replaced, _out_of_range(idx.shape, case.s_kv, g), idx)
    return idx.view(batch, case.s_q, case.topk)


def _out_of_range(shape: torch.Size, s_kv: int, g: torch.Generator) -> Tensor:
    numbers = torch.tensor([-1, INT_MIN, s_kv, INT_MAX, -2, s_kv + 1, -s_kv], dtype=torch.int32, device=g.device)
    return numbers[torch.randint(len(numbers), shape, generator=g, device=g.device)]


def _cycle(numbers: list[float], count: int, g: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.tensor([numbers[i % len(numbers)] for i in range(count)], dtype=dtype, device=g.device)


def _topk_length(case: SparseMlaFwdCase, batch: int, g: torch.Generator) -> Tensor | None:
    k, n = case.topk, batch * case.s_q
    if case.topk_length is None:
        return None
    if case.topk_length == "random":
        length = torch.randint(0, k + 1, (n,), generator=g, device=g.device, dtype=torch.int32)
    else:
        length = _cycle([0, 1, k - 1, k, k + 5, -3, INT_MIN, INT_MAX, 63, 64, 65, 128, 129], n, g, torch.int32)
    return length.view(batch, case.s_q)


def _attn_sink(case: SparseMlaFwdCase, g: torch.Generator) -> Tensor | None:
    if case.attn_sink is None:
        return None
    if case.attn_sink == "random":  # about as large as the lse, so that out changes
        return torch.randn(case.h_q, generator=g, device=g.device) * 3 + 5
    return _cycle([float("inf"), float("-inf"), 0.0, 5.0, -5.0, 100.0, -100.0, 3e38], case.h_q, g, torch.float32)
