"""The choice of the k best in plain torch, written to be read."""

import math

import torch
from torch import Tensor

from .. import _checks_topk

# Scores that are sorted at a time: 16 bytes each, and as much again while it goes on.
_SORT_BUDGET = 2**25


def topk_indices(
    logits: Tensor,
    k: int,
    *,
    lengths: Tensor | None = None,
    row_starts: Tensor | None = None,
    block_table: Tensor | None = None,
    page_size: int | None = None,
    offsets: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `dsa_ext.topk_indices`, in plain torch: on every device, for every float dtype."""
    op = "reference.topk_indices"
    options = (lengths, row_starts, block_table, page_size, offsets)
    _checks_topk.check_topk_indices(op, logits, k, *options, plain=True)
    if out is not None:
        inputs = {"logits": logits, "lengths": lengths, "row_starts": row_starts}
        inputs |= {"block_table": block_table, "offsets": offsets}
        _checks_topk.check_topk_indices_out(op, out, logits, k, inputs)

    start, length = _extent(logits, lengths, row_starts, block_table, page_size)
    chunk = max(1, _SORT_BUDGET // max(1, logits.shape[1]))
    chunks = zip(logits.split(chunk), start.split(chunk), length.split(chunk), strict=True)
    positions = [_best(*rows, k) for rows in chunks]
    result = torch.cat(positions) if positions else logits.new_empty((0, k), dtype=torch.int64)
    result = _mapped(result, block_table, page_size, offsets).to(torch.int32)
    return result if out is None else out.copy_(result)


def _extent(
    logits: Tensor, lengths: Tensor | None, row_starts: Tensor | None, block_table: Tensor | None, page_size: int | None
) -> tuple[Tensor, Tensor]:
    """First column and number of the candidates of each row."""
    rows, columns = logits.shape
    start = torch.zeros(rows, dtype=torch.int64, device=logits.device)
    if row_starts is not None:
        start = row_starts.long().clamp(0, columns)
    length = columns - start
    if lengths is not None:
        length = torch.minimum(length, lengths.long().clamp(min=0))
    if block_table is not None:
        length = length.clamp(max=block_table.shape[1] * page_size)
    return start, length


def _best(logits: Tensor, start: Tensor, length: Tensor, k: int) -> Tensor:
    """Positions of the k best candidates of each row, ascending, -1 behind them."""
    rows, columns = logits.shape
    position = torch.arange(columns, device=logits.device) - start[:, None]
    candidate = (position >= 0) & (position < length[:, None]) & ~logits.isnan()
    score = logits.masked_fill(~candidate, -math.inf) + 0.0  # -0 + 0 is +0
    score, order = score.sort(dim=1, descending=True, stable=True)  # of equal scores the lowest position comes first
    score, order = score[:, :k], order[:, :k]

    last = torch.iinfo(torch.int64).max
    chosen = (order - start[:, None]).masked_fill(score == -math.inf, last).sort(dim=1).values
    chosen = chosen.masked_fill(chosen == last, -1)
    return torch.nn.functional.pad(chosen, (0, k - chosen.shape[1]), value=-1)


def _mapped(positions: Tensor, block_table: Tensor | None, page_size: int | None, offsets: Tensor | None) -> Tensor:
    if offsets is not None:
        image = positions + offsets[:, None].long()
    elif block_table is not None and block_table.numel() > 0:
        request = torch.arange(len(positions), device=positions.device) // max(1, len(positions) // len(block_table))
        place = positions.clamp(min=0)
        page = block_table[request[:, None], place // page_size].long()
        image = page * page_size + place % page_size
        image = image.masked_fill((page < 0) | (image > torch.iinfo(torch.int32).max), -1)
    else:
        image = positions
    return image.where(positions >= 0, -1)
