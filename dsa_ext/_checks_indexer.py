"""Argument validation of indexer_topk and paged_indexer_topk, beyond what _checks_logits.py checks of their inputs."""

import torch
from torch import Tensor

from . import _checks, _checks_logits
from ._checks_topk import MAX_K

WORKSPACE_LIMIT = 2**29  # bytes, if the caller names no other


def check_topk_and_limit(op: str, topk: int, workspace_limit: int) -> None:
    _checks.check_int(op, "topk", topk)
    if not 1 <= topk <= MAX_K:
        raise ValueError(f"{op}: topk is {topk}, expected 1 <= topk <= {MAX_K}")
    _checks.check_int(op, "workspace_limit", workspace_limit)
    if not 1 <= workspace_limit < 2**63:
        raise ValueError(f"{op}: workspace_limit is {workspace_limit}, expected 1 <= workspace_limit < 2^63 bytes")


def check_paged_inputs(
    op: str,
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int | None,
    *,
    plain: bool,
) -> int:
    """Returns max_context_len: where it is None, what the block table has room for."""
    inputs = (q, k_cache, weights, context_lens, block_table)
    given = 0 if max_context_len is None else max_context_len
    _checks_logits.check_paged_indexer_logits(op, *inputs, given, plain=plain)
    if max_context_len is not None:
        return max_context_len
    columns = block_table.shape[1] * k_cache.shape[1]
    if columns > _checks_logits.MAX_COLUMNS:
        raise ValueError(
            f"{op}: block_table has room for {columns} tokens, expected fewer than 2^31 - 4096, or max_context_len"
        )
    return columns


def check_out(op: str, out: Tensor, shape: tuple[int, ...], q: Tensor, inputs: dict[str, Tensor | None]) -> None:
    _checks.check_tensor(op, "out", out)
    _checks.check_dtype(op, "out", out, torch.int32)
    _checks.check_same_device(op, "out", out, q)
    if tuple(out.shape) != tuple(shape):
        _checks._bad_shape(op, "out", out, str(tuple(shape)))
    _checks.check_last_dim_contiguous(op, "out", out)
    if not torch.compiler.is_compiling():  # storages are not traced
        _checks.check_writable(op, "out", out)
        _checks.check_no_overlap(op, {"out": out}, inputs)
