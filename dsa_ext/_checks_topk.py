"""What _checks.py is to attention, for topk_indices."""

import torch
from torch import Tensor

from . import _checks

MAX_K = 4096
MAX_INT = 2**31 - 1


def _check_where_logits_are(op: str, name: str, tensor: Tensor, logits: Tensor) -> None:
    if tensor.device != logits.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, expected {logits.device}, where logits is")


def _check_per_row(op: str, name: str, tensor: Tensor | None, logits: Tensor) -> None:
    if tensor is None:
        return
    _checks.check_tensor(op, name, tensor)
    _check_where_logits_are(op, name, tensor, logits)
    _checks.check_dtype(op, name, tensor, torch.int32)
    if tensor.dim() != 1 or tensor.shape[0] != logits.shape[0]:
        _checks._bad_shape(op, name, tensor, f"(rows,) = ({logits.shape[0]},)")


def _check_block_table(op: str, table: Tensor, page_size: int, logits: Tensor) -> None:
    _checks.check_tensor(op, "block_table", table)
    _check_where_logits_are(op, "block_table", table, logits)
    _checks.check_dtype(op, "block_table", table, torch.int32)
    rows = logits.shape[0]
    if table.dim() != 2 or (rows % table.shape[0] if table.shape[0] > 0 else rows):
        _checks._bad_shape(op, "block_table", table, f"(b, pages) with b a divisor of rows = {rows}")
    _checks.check_int(op, "page_size", page_size)
    if not 1 <= page_size <= MAX_INT:
        raise ValueError(f"{op}: page_size is {page_size}, expected 1 <= page_size < 2^31")


def check_topk_indices(
    op: str,
    logits: Tensor,
    k: int,
    lengths: Tensor | None,
    row_starts: Tensor | None,
    block_table: Tensor | None,
    page_size: int | None,
    offsets: Tensor | None,
    *,
    plain: bool,
) -> None:
    """`plain`: what plain torch takes, instead of what kernels do."""
    _checks.check_tensor(op, "logits", logits)
    if not (logits.is_cuda or logits.is_cpu or logits.is_meta or plain):
        raise NotImplementedError(f"{op}: logits is on {logits.device}, expected a CUDA or a CPU device")
    if logits.is_cuda and not plain:
        _checks.check_dtype(op, "logits", logits, torch.float32, torch.bfloat16, why=" on a CUDA device")
    else:
        _checks.check_dtype(op, "logits", logits, *_checks.CPU_DTYPES)
    if logits.dim() != 2:
        _checks._bad_shape(op, "logits", logits, "(rows, columns)")
    for size, what in zip(logits.shape, ("rows", "columns"), strict=True):
        if size > MAX_INT:
            raise ValueError(f"{op}: logits has {size} {what}, expected less than 2^31")
    _checks.check_last_dim_contiguous(op, "logits", logits)
    _checks.check_int(op, "k", k)
    if not 1 <= k <= MAX_K:
        raise ValueError(f"{op}: k is {k}, expected 1 <= k <= {MAX_K}")

    _check_per_row(op, "lengths", lengths, logits)
    _check_per_row(op, "row_starts", row_starts, logits)
    _check_per_row(op, "offsets", offsets, logits)
    if block_table is None and page_size is not None:
        raise ValueError(f"{op}: page_size is {page_size} without block_table, expected both or neither")
    if block_table is not None and page_size is None:
        raise ValueError(f"{op}: page_size is None, expected an int with block_table")
    if block_table is not None:
        if offsets is not None:
            raise ValueError(f"{op}: offsets and block_table are given, expected one of them: a position has one image")
        _check_block_table(op, block_table, page_size, logits)


def check_topk_indices_out(op: str, out: Tensor, logits: Tensor, k: int, inputs: dict[str, Tensor | None]) -> None:
    _checks.check_tensor(op, "out", out)
    _check_where_logits_are(op, "out", out, logits)
    _checks.check_dtype(op, "out", out, torch.int32)
    if tuple(out.shape) != (logits.shape[0], k):
        _checks._bad_shape(op, "out", out, f"(rows, k) = {(logits.shape[0], k)}")
    _checks.check_last_dim_contiguous(op, "out", out)
    if not torch.compiler.is_compiling():  # storages are not traced
        _checks.check_writable(op, "out", out)
        _checks.check_no_overlap(op, {"out": out}, inputs)
