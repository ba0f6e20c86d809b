"""What all layers share of one step: which tokens are computed, where their keys go, and what they may look at."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

import dsa_ext

from .rope import Rope


def _slots(pages: Tensor, positions: Tensor, page_size: int) -> Tensor:
    """int32: page * page_size + place, for pages that hold those positions."""
    return (pages * page_size + positions % page_size).int()


class Prefill:
    """The tokens [start, start + length) of one request, of which the tokens before are in the caches.

    Args:
        block_table: int32 [pages], the request's pages, at least for start + length tokens.
        start, length: ints, length >= 1.
        page_size: of the caches.
        rope: of the model.
    """

    def __init__(self, block_table: Tensor, *, start: int, length: int, page_size: int, rope: Rope):
        if start < 0 or length < 1:
            raise ValueError(f"Prefill: start is {start} and length {length}, expected start >= 0 and length >= 1")
        end = start + length
        if block_table.dim() != 1 or block_table.shape[0] * page_size < end:
            raise ValueError(
                f"Prefill: block_table has shape {tuple(block_table.shape)}, expected (pages,) with room for {end} "
                f"tokens, {page_size} a page"
            )
        positions = torch.arange(end, device=block_table.device)
        self.tokens = length
        self.page_size = page_size
        self.context_slots = _slots(block_table[positions // page_size], positions, page_size)  # int32 [end]
        self.slots = self.context_slots[start:]
        self.cos, self.sin = rope(positions[start:])
        self.k_end = (positions[start:] + 1).int()  # a token looks at itself and at what is before it
        self.k_start = torch.zeros_like(self.k_end)


class PrefillBatch(Prefill):
    """A Prefill of several requests: the tokens of the first, then those of the second, and so on.

    Indices are rows of the requests' contexts, one behind the other.

    Args:
        block_table: int32 [b, pages].
        starts, lengths: ints of each request; the lengths may be 0.
        page_size, rope: as for Prefill.
        positions: integers [sum of lengths], what RoPE takes for the tokens' positions; by default those in the caches.
    """

    def __init__(
        self,
        block_table: Tensor,
        *,
        starts: Sequence[int],
        lengths: Sequence[int],
        page_size: int,
        rope: Rope,
        positions: Tensor | None = None,
    ):
        if len(starts) != len(lengths) or min(starts, default=0) < 0 or min(lengths, default=0) < 0:
            raise ValueError(
                f"PrefillBatch: starts is {list(starts)} and lengths {list(lengths)}, expected as many of either, all "
                f">= 0"
            )
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        room = block_table.shape[-1] * page_size
        if block_table.dim() != 2 or block_table.shape[0] != len(ends) or room < max(ends, default=0):
            raise ValueError(
                f"PrefillBatch: block_table has shape {tuple(block_table.shape)}, expected (b, pages) with b = "
                f"{len(ends)} and room for {max(ends, default=0)} tokens, {page_size} a page"
            )
        device = block_table.device

        def spread(counts: Sequence[int], first: Sequence[int]) -> tuple[Tensor, Tensor]:
            """(request, position) of counts[i] tokens of each request i, from first[i] on; without a sync."""
            total = torch.tensor(counts, dtype=torch.int64, device=device)
            request = torch.arange(len(counts), device=device)
            request = torch.repeat_interleave(request, total, output_size=sum(counts))
            back = torch.tensor(first, dtype=torch.int64, device=device) - (total.cumsum(0) - total)
            return request, torch.arange(sum(counts), device=device) + back[request]

        request, position = spread(ends, [0] * len(ends))
        self.tokens = sum(lengths)
        self.page_size = page_size
        self.context_slots = _slots(block_table[request, position // page_size], position, page_size)
        request, position = spread(lengths, starts)
        before = [sum(ends[:i]) for i in range(len(ends))]
        first_row = torch.tensor(before, dtype=torch.int64, device=device)[request]
        self.slots = self.context_slots[first_row + position]
        self.cos, self.sin = rope(position if positions is None else positions)
        self.k_start, self.k_end = first_row.int(), (first_row + position + 1).int()


class Decode:
    """The last next_n tokens of each of b requests, whose tokens before are in the caches. Everything is computed on
    the device, so that a CUDA graph can be replayed with other lengths and pages.

    Args:
        block_table: int32 [b, pages].
        context_lens: int32 [b], tokens of each request with the new ones. 0, or less than next_n: the tokens at
            positions below 0 are padding, whose keys are stored nowhere.
        next_n: new tokens of a request.
        max_context_len: no context_lens exceeds it; the indexer's logits have so many columns.
        page_size, rope: as for Prefill.
        positions: integers [b * next_n], what RoPE takes for the tokens' positions; by default those in the caches.
    """

    def __init__(
        self,
        block_table: Tensor,
        context_lens: Tensor,
        *,
        next_n: int,
        max_context_len: int,
        page_size: int,
        rope: Rope,
        positions: Tensor | None = None,
    ):
        if block_table.dim() != 2 or block_table.shape[1] * page_size < max_context_len:
            raise ValueError(
                f"Decode: block_table has shape {tuple(block_table.shape)}, expected (b, pages) with room for "
                f"max_context_len = {max_context_len} tokens, {page_size} a page"
            )
        if context_lens.shape != block_table.shape[:1]:
            raise ValueError(
                f"Decode: context_lens has shape {tuple(context_lens.shape)}, expected (b,) with b = "
                f"{block_table.shape[0]}"
            )
        back = torch.arange(1 - next_n, 1, device=block_table.device)
        lengths = context_lens[:, None] + back  # [b, next_n], of what each token sees
        places = (lengths - 1).clamp(min=0)
        pages = block_table.gather(1, places // page_size)
        self.batch, self.next_n, self.tokens = block_table.shape[0], next_n, block_table.shape[0] * next_n
        self.page_size, self.max_context_len = page_size, max_context_len
        self.block_table, self.context_lens = block_table, context_lens
        self.slots = _slots(pages, places, page_size).masked_fill(lengths <= 0, -1).flatten()
        self.lengths = lengths.clamp(min=0).int()
        self.cos, self.sin = rope(places.flatten() if positions is None else positions)
        self._plans: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @cached_property
    def context_slots(self) -> Tensor:
        """int64 [b, max_context_len]; beyond a request's length they are those of any page."""
        positions = torch.arange(self.max_context_len, device=self.block_table.device)
        pages = self.block_table[:, positions // self.page_size].clamp(min=0)
        return _slots(pages, positions, self.page_size).long()

    @cached_property
    def index_plan(self) -> Tensor:
        """For paged_indexer_topk, made once for all layers."""
        return dsa_ext.plan_paged_indexer_logits(self.lengths, page_size=self.page_size, next_n=self.next_n)

    def plan(self, heads: int, topk: int) -> tuple[Tensor, Tensor]:
        """(topk_length [b, next_n], plan) for sparse_mla_decode, made once for all layers."""
        if (heads, topk) not in self._plans:
            topk_length = self.lengths.clamp(max=topk)
            sizes = {"batch": self.batch, "s_q": self.next_n, "h_q": heads, "topk": topk}
            plan = dsa_ext.plan_sparse_mla_decode(topk_length, **sizes, device=topk_length.device)
            self._plans[heads, topk] = topk_length, plan
        return self._plans[heads, topk]
