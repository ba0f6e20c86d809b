"""What a rank of a tensor- and expert-parallel group holds, and sums and collections over the group.

A group of None is one rank, which holds everything.
"""

import torch
from torch import Tensor


def ranks(group) -> int:
    return 1 if group is None else torch.distributed.get_world_size(group)


def share(what: str, count: int, group) -> range:
    """The rank's part of `count` things: equal parts, in the order of the ranks.

    Raises:
        ValueError: they do not divide.
    """
    parts = ranks(group)
    if count % parts:
        raise ValueError(f"group has {parts} ranks, expected a divisor of {what}, {count}")
    rank = 0 if group is None else torch.distributed.get_rank(group)
    return range(rank * count // parts, (rank + 1) * count // parts)


def sum_over_ranks(x: Tensor, group) -> Tensor:
    """The sum of all ranks' x, the same bits on each; x itself is overwritten."""
    if group is not None:
        torch.distributed.all_reduce(x, group=group)
    return x


def gather_columns(x: Tensor, group) -> Tensor:
    """[n, columns of the rank] -> [n, columns of all]."""
    if group is None:
        return x
    parts = [torch.empty_like(x) for _ in range(ranks(group))]
    torch.distributed.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, -1)
