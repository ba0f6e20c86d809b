"""Inputs whose logits are the same numbers however they are summed, so that the choice has one right answer, with many
ties; and that answer."""

import topk_oracle
import torch
from logits_cases import (
    E4M3,
    PagedCase,
    PagedInputs,
    RaggedCase,
    RaggedInputs,
    expected,
    expected_paged,
    make_inputs,
    make_paged_inputs,
)
from torch import Tensor

ALL = 2**40  # bytes for everything


def _integers(t: Tensor) -> None:
    """In place; NaN stays."""
    values = torch.randint(-2, 3, t.shape).float()
    t.copy_(torch.where(t.float().isnan(), torch.nan, values).to(t.dtype))


def _powers(t: Tensor) -> None:
    """In place; NaN stays."""
    t.copy_(torch.where(t.isnan(), torch.nan, torch.exp2(torch.randint(-2, 2, t.shape).float())))


def make_ragged(case: RaggedCase) -> RaggedInputs:
    x = make_inputs(case)
    for t in (x.q, x.k, x.weights):
        _integers(t)
    _powers(x.k_scale)
    return x


def make_paged(case: PagedCase) -> PagedInputs:
    x = make_paged_inputs(case)
    for t in (x.q, x.keys, x.weights):
        _integers(t)
    _powers(x.scales)
    pages, size, width = x.k_cache.shape
    flat = x.k_cache.as_strided((pages, size * width), (x.k_cache.stride(0), 1))
    codes = size * case.d
    flat[:, :codes] = x.keys.view(torch.uint8).view(pages, codes)
    flat[:, codes:] = x.scales.view(torch.uint8).view(pages, size * 4)
    return x


def best_ragged(x: RaggedInputs, topk: int) -> Tensor:
    return topk_oracle.expected(expected(x)[0], topk)


def best_paged(x: PagedInputs, topk: int) -> Tensor:
    logits = expected_paged(x)[0]
    table = {"block_table": x.block_table, "page_size": x.k_cache.shape[1]}
    return topk_oracle.expected(logits.flatten(0, 1), topk, **table).view(*logits.shape[:2], topk)


def call_ragged(function, x: RaggedInputs, topk: int, **options) -> Tensor:
    return function(*vars(x).values(), topk, **options)


def call_paged(function, x: PagedInputs, topk: int, **options) -> Tensor:
    arguments = (x.q, x.k_cache, x.weights, x.context_lens, x.block_table, topk)
    return function(*arguments, **{"max_context_len": x.max_context_len} | options)


def garbage(*shape: int, device: str = "cpu") -> Tensor:
    return torch.full(shape, topk_oracle.GARBAGE, dtype=torch.int32, device=device)


__all__ = [
    "ALL",
    "E4M3",
    "PagedCase",
    "RaggedCase",
    "best_paged",
    "best_ragged",
    "call_paged",
    "call_ragged",
    "garbage",
    "make_paged",
    "make_ragged",
]
