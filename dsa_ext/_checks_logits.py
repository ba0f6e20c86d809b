"""Argument validation of the indexer's logits and their plan, in the words and by the rules of _checks.py."""

import torch
from torch import Tensor

from . import _checks
from ._checks import (
    _bad_shape,
    _name,
    check_dtype,
    check_int,
    check_last_dim_contiguous,
    check_same_device,
    check_tensor,
)

E4M3 = torch.float8_e4m3fn
HEADS, DIMS = (8, 16, 32, 64), (32, 64, 128)  # that kernels take
SCALE_BYTES = 4  # of a key in a cache
PAGE_MULTIPLE = 8  # that kernels take
MAX_COLUMNS = 2**31 - 1 - 4096
OUT_DTYPES = (torch.float32, torch.bfloat16)


def out_dtypes(q: Tensor, plain: bool) -> tuple[torch.dtype, ...]:
    return OUT_DTYPES if q.is_cuda and not plain else (*OUT_DTYPES, torch.float64)


def _check_q(op: str, q: Tensor, shape: str, plain: bool) -> bool:
    """Returns whether a kernel takes the call."""
    check_tensor(op, "q", q)
    if not (q.is_cuda or q.is_cpu or q.is_meta or plain):
        raise NotImplementedError(f"{op}: q is on {q.device}, expected a CUDA or a CPU device")
    kernel = q.is_cuda and not plain
    if kernel:
        check_dtype(op, "q", q, E4M3, why=" on a CUDA device")
    else:
        check_dtype(op, "q", q, E4M3, *_checks.CPU_DTYPES)
    if q.dim() != shape.count(",") + 1:
        _bad_shape(op, "q", q, shape)
    heads, d = q.shape[-2:]
    if kernel and heads not in HEADS:
        raise ValueError(f"{op}: q has h = {heads}, expected {_any_of(HEADS)} on a CUDA device")
    if kernel and d not in DIMS:
        raise ValueError(f"{op}: q has d = {d}, expected {_any_of(DIMS)} on a CUDA device")
    check_last_dim_contiguous(op, "q", q)
    return kernel


def _any_of(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"


def _check_weights(op: str, weights: Tensor, q: Tensor, kernel: bool) -> None:
    check_tensor(op, "weights", weights)
    if not kernel and q.dtype == torch.float64:
        check_dtype(op, "weights", weights, torch.float32, torch.float64)
    else:
        check_dtype(op, "weights", weights, torch.float32)
    check_same_device(op, "weights", weights, q)


def _check_integers(op: str, name: str, tensor: Tensor, q: Tensor) -> None:
    check_tensor(op, name, tensor)
    check_dtype(op, name, tensor, torch.int32)
    check_same_device(op, name, tensor, q)


def check_indexer_logits(
    op: str,
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    out_dtype: torch.dtype,
    *,
    plain: bool,
) -> None:
    """`plain`: what plain torch takes, instead of what kernels do."""
    kernel = _check_q(op, q, "(s_q, h, d)", plain)
    s_q, heads, d = q.shape
    check_tensor(op, "k", k)
    check_dtype(op, "k", k, q.dtype, why=" as q")
    check_same_device(op, "k", k, q)
    if k.dim() != 2 or k.shape[1] != d:
        _bad_shape(op, "k", k, f"(s_k, d) with d = {d}")
    if k.shape[0] > MAX_COLUMNS:
        raise ValueError(f"{op}: k has {k.shape[0]} rows, expected fewer than 2^31 - 4096")
    check_last_dim_contiguous(op, "k", k)
    if k_scale is not None:
        check_tensor(op, "k_scale", k_scale)
        check_dtype(op, "k_scale", k_scale, torch.float32, *((torch.float64,) if q.dtype == torch.float64 else ()))
        check_same_device(op, "k_scale", k_scale, q)
        if tuple(k_scale.shape) != (k.shape[0],):
            _bad_shape(op, "k_scale", k_scale, f"(s_k,) with s_k = {k.shape[0]}")
    elif q.dtype == E4M3:
        raise TypeError(f"{op}: k_scale is None, expected a tensor beside keys of float8_e4m3fn")
    _check_weights(op, weights, q, kernel)
    if tuple(weights.shape) != (s_q, heads):
        _bad_shape(op, "weights", weights, f"(s_q, h) = ({s_q}, {heads})")
    for name, tensor in (("k_start", k_start), ("k_end", k_end)):
        _check_integers(op, name, tensor, q)
        if tuple(tensor.shape) != (s_q,):
            _bad_shape(op, name, tensor, f"(s_q,) with s_q = {s_q}")
    expected = out_dtypes(q, plain)
    if out_dtype not in expected:
        given = _name(out_dtype) if isinstance(out_dtype, torch.dtype) else f"of type {type(out_dtype).__name__}"
        raise TypeError(f"{op}: out_dtype is {given}, expected {' or '.join(map(_name, expected))}")


def check_paged_indexer_logits(
    op: str,
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int,
    *,
    plain: bool,
) -> None:
    """All but the plan and out."""
    kernel = _check_q(op, q, "(b, next_n, h, d)", plain)
    batch, next_n, heads, d = q.shape
    check_tensor(op, "k_cache", k_cache)
    check_dtype(op, "k_cache", k_cache, torch.uint8)
    check_same_device(op, "k_cache", k_cache, q)
    width = d + SCALE_BYTES
    if k_cache.dim() != 3 or k_cache.shape[2] != width:
        _bad_shape(op, "k_cache", k_cache, f"(pages, page_size, {width}) for d = {d}")
    if (k_cache.shape[1] > 1 and k_cache.stride(1) != width) or k_cache.stride(2) != 1:
        raise ValueError(
            f"{op}: k_cache has strides {tuple(k_cache.stride())}, expected (any, {width}, 1): its pages have no gaps"
        )
    if kernel and k_cache.shape[1] % PAGE_MULTIPLE != 0:
        size = k_cache.shape[1]
        raise NotImplementedError(
            f"{op}: k_cache has page_size {size}, expected a multiple of {PAGE_MULTIPLE} on a CUDA device (fastest: "
            "of 64, or 32)"
        )
    _check_weights(op, weights, q, kernel)
    if tuple(weights.shape) not in ((batch, next_n, heads), (batch * next_n, heads)):
        expected = f"(b, next_n, h) = ({batch}, {next_n}, {heads}) or (b * next_n, h)"
        _bad_shape(op, "weights", weights, expected)
    check_context_lens(op, context_lens, batch, next_n)
    check_same_device(op, "context_lens", context_lens, q)
    _check_integers(op, "block_table", block_table, q)
    if block_table.dim() != 2 or block_table.shape[0] != batch:
        _bad_shape(op, "block_table", block_table, f"(b, pages of a request) with b = {batch}")
    check_int(op, "max_context_len", max_context_len)
    if not 0 <= max_context_len <= MAX_COLUMNS:
        raise ValueError(f"{op}: max_context_len is {max_context_len}, expected 0 <= max_context_len < 2^31 - 4096")


def check_context_lens(op: str, context_lens: Tensor, batch: int, next_n: int) -> None:
    check_tensor(op, "context_lens", context_lens)
    check_dtype(op, "context_lens", context_lens, torch.int32)
    if tuple(context_lens.shape) not in ((batch,), (batch, next_n)):
        _bad_shape(op, "context_lens", context_lens, f"(b,) or (b, next_n) with b = {batch}, next_n = {next_n}")


def check_out(
    op: str, out: Tensor, shape: tuple[int, ...], q: Tensor, inputs: dict[str, Tensor | None], *, plain: bool
) -> None:
    check_tensor(op, "out", out)
    check_dtype(op, "out", out, *out_dtypes(q, plain))
    check_same_device(op, "out", out, q)
    if tuple(out.shape) != tuple(shape):
        _bad_shape(op, "out", out, str(tuple(shape)))
    check_last_dim_contiguous(op, "out", out)
    if not torch.compiler.is_compiling():  # storages are not traced
        _checks.check_writable(op, "out", out)
        _checks.check_no_overlap(op, {"out": out}, inputs)


def check_plan(op: str, plan: Tensor, q: Tensor, size: int | None) -> None:
    """`size`: elements of a plan, if that is known."""
    check_tensor(op, "plan", plan)
    check_dtype(op, "plan", plan, torch.int32)
    check_same_device(op, "plan", plan, q)
    if plan.dim() != 1 or (size is not None and plan.shape[0] != size):
        expected = "(n,)" if size is None else f"({size},)"
        _bad_shape(op, "plan", plan, f"{expected}, as plan_paged_indexer_logits makes it")
    check_last_dim_contiguous(op, "plan", plan)


def check_plan_paged_indexer_logits(op: str, context_lens: Tensor, page_size: int, next_n: int) -> None:
    for name, value in (("page_size", page_size), ("next_n", next_n)):
        check_int(op, name, value)
        if not 1 <= value < 2**31:
            raise ValueError(f"{op}: {name} is {value}, expected 1 <= {name} < 2^31")
    check_tensor(op, "context_lens", context_lens)
    if not (context_lens.is_cuda or context_lens.is_cpu or context_lens.is_meta):
        where = context_lens.device
        raise NotImplementedError(f"{op}: context_lens is on {where}, expected a CUDA or a CPU device")
    if context_lens.dim() not in (1, 2):
        _bad_shape(op, "context_lens", context_lens, "(b,) or (b, next_n)")
    check_context_lens(op, context_lens, context_lens.shape[0], next_n)


def check_plan_out(op: str, out: Tensor, size: int | None, context_lens: Tensor) -> None:
    check_tensor(op, "out", out)
    check_dtype(op, "out", out, torch.int32)
    if out.device != context_lens.device:
        raise ValueError(f"{op}: out is on {out.device}, expected {context_lens.device}, where context_lens is")
    if out.dim() != 1 or (size is not None and out.shape[0] != size):
        _bad_shape(op, "out", out, "(n,)" if size is None else f"({size},)")
    check_last_dim_contiguous(op, "out", out)
    if not torch.compiler.is_compiling():
        _checks.check_no_overlap(op, {"out": out}, {"context_lens": context_lens})
