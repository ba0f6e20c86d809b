"""What topk_indices must return, worked out a second time: row by row, by a sort of pairs, sharing nothing with the
package; and rows of scores that are hard for some algorithm."""

import math

import numpy as np
import torch
from torch import Tensor

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
GARBAGE = 123456789  # what outputs hold before


def choose(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k best of a row (float64), ascending: the definition."""
    position = np.flatnonzero(scores > -math.inf)  # not NaN either
    order = np.lexsort((position, -scores[position]))  # the last key goes first
    return np.sort(position[order[:k]])


def expected(
    logits: Tensor,
    k: int,
    lengths: Tensor | None = None,
    row_starts: Tensor | None = None,
    block_table: Tensor | None = None,
    page_size: int | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    rows, columns = logits.shape
    result = np.full((rows, k), -1, dtype=np.int64)
    for r in range(rows):
        start = 0 if row_starts is None else min(max(int(row_starts[r]), 0), columns)
        length = columns - start if lengths is None else min(max(int(lengths[r]), 0), columns - start)
        if block_table is not None:
            length = min(length, block_table.shape[1] * page_size)
        chosen = choose(logits[r, start : start + length].double().cpu().numpy(), k)
        if offsets is not None:
            chosen = chosen + int(offsets[r])
        elif block_table is not None:
            table = block_table[r // (rows // len(block_table))].cpu().numpy().astype(np.int64)
            page = table[chosen // page_size] if len(chosen) else chosen
            slot = page * page_size + chosen % page_size
            chosen = np.where((page < 0) | (slot > INT_MAX), -1, slot)
        result[r, : len(chosen)] = chosen
    return torch.from_numpy(result).int()


# --- rows


def _normal(n: int) -> Tensor:
    return torch.randn(n)


def _special(n: int) -> Tensor:
    x = torch.randn(n)
    kind = torch.randint(0, 12, (n,))
    for i, value in enumerate((math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0)):
        x[kind == i] = value
    return x


def _close(n: int) -> Tensor:
    """The top 22 bits are the same."""
    return (0x3F9D4C00 + torch.randint(0, 2**10, (n,))).int().view(torch.float32)


def _subnormal(n: int) -> Tensor:
    return torch.randint(-(2**20), 2**20, (n,)).double().mul(2.0**-149).float()


def _ties_at_the_threshold(n: int) -> Tensor:
    """A few above, most of them equal, some below."""
    x = torch.full((n,), 1.25)
    x[torch.randperm(n)[: n // 50]] = 2.0 + torch.rand(n // 50)
    x[torch.randperm(n)[: n // 5]] = -1.0
    return x


def _best_in_one_place(n: int) -> Tensor:
    """All the best stand together, between the places that a sample takes."""
    x = torch.randn(n)
    x[n // 3 : n // 3 + n // 7] += 20
    return x


def _mostly_nothing(n: int) -> Tensor:
    return torch.where(torch.rand(n) < 0.99, -math.inf, torch.randn(n))


VALUES = {
    "normal": _normal,
    "offset": lambda n: torch.randn(n) + 30,  # few exponents
    "equal": lambda n: torch.full((n,), -3.5),
    "close": _close,
    "ties": _ties_at_the_threshold,
    "few": lambda n: torch.randint(-3, 3, (n,)).float(),
    "zeros": lambda n: torch.where(torch.rand(n) < 0.5, 0.0, -0.0),
    "relu": lambda n: torch.randn(n).relu() * torch.where(torch.rand(n) < 0.5, 1.0, -1.0),  # zeros of both signs
    "heavy_tail": lambda n: torch.randn(n).mul(6).exp(),
    "negative": lambda n: -torch.rand(n) - 1,
    "huge": lambda n: torch.randn(n).mul(1e37),  # fp16 has nothing beyond 65504
    "largest": lambda n: torch.randn(n).sign() * torch.finfo(torch.float32).max,
    "subnormal": _subnormal,
    "special": _special,
    "ascending": lambda n: torch.arange(n).float(),
    "descending": lambda n: -torch.arange(n).float(),
    "together": _best_in_one_place,
    "mostly_nothing": _mostly_nothing,
    "nothing": lambda n: torch.where(torch.rand(n) < 0.5, -math.inf, math.nan),
    "bits": lambda n: torch.randint(INT_MIN, INT_MAX, (n,)).int().view(torch.float32),
}


def poisoned(rows: int, columns: int, dtype: torch.dtype, device: str, lead: int = 3, trail: int = 5) -> Tensor:
    """Room for logits, between columns of +inf and NaN: what is not a candidate would be chosen."""
    whole = torch.full((rows, lead + columns + trail), math.inf, dtype=dtype, device=device)
    whole[:, ::2] = math.nan
    return whole[:, lead : lead + columns]


def make_logits(
    values: str, rows: int, columns: int, dtype: torch.dtype = torch.float32, device: str = "cpu", **room: int
) -> Tensor:
    logits = poisoned(rows, columns, dtype, device, **room)
    for r in range(rows):
        logits[r] = VALUES[values](columns).to(dtype)
    return logits
