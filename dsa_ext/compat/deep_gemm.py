"""DeepGEMM's logits of the lightning indexer, under its names, signatures and return conventions::

    from dsa_ext.compat import deep_gemm                 # for: import deep_gemm
    from dsa_ext.compat.deep_gemm import fp8_mqa_logits, fp8_paged_mqa_logits, get_paged_mqa_logits_metadata

Operands are FP8; FP4 is not here. Columns that a query does not see are always -inf, whatever clean_logits is. Results
are contiguous: their rows are not padded. Any next_n, and also 8 or 16 heads, are taken.
"""

import math

import torch
from torch import Tensor

import dsa_ext

from .. import _checks, _checks_logits
from .._checks_indexer import WORKSPACE_LIMIT

__all__ = [
    "fp8_fp4_mqa_logits",
    "fp8_fp4_paged_mqa_logits",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "get_num_sms",
    "get_paged_mqa_logits_metadata",
]

_FP4_DTYPES = (torch.int8, torch.uint8, torch.float4_e2m1fn_x2)  # that two FP4 numbers in a byte may have


def get_num_sms() -> int:
    """Multiprocessors of the current CUDA device; 1 where there is none."""
    if not torch.cuda.is_available():
        return 1
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def fp8_mqa_logits(
    q: Tensor,
    kv: tuple[Tensor, Tensor],
    weights: Tensor,
    cu_seq_len_k_start: Tensor,
    cu_seq_len_k_end: Tensor,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
) -> Tensor:
    """`dsa_ext.indexer_logits` of q [s_q, h, d] and kv, the keys [s_k, d] and their scales [s_k].

    Returns:
        [s_q, s_k] float32, -inf outside of a query's range, also where clean_logits is False. With max_seqlen_k > 0
        compressed, [s_q, max_seqlen_k]: column j of query s is key max(cu_seq_len_k_start[s], 0) + j. Ranges that are
        longer are cut off. The whole rows are computed, then, some at a time.

    Raises:
        NotImplementedError: q or the keys are FP4.
        TypeError, ValueError: kv is no pair, or max_seqlen_k no int >= 0.
        Others as indexer_logits, in its words.
    """
    arguments = (weights, cu_seq_len_k_start, cu_seq_len_k_end, max_seqlen_k, torch.float32)
    return _mqa_logits("fp8_mqa_logits", q, kv, *arguments)


def fp8_fp4_mqa_logits(
    q: tuple[Tensor, Tensor | None],
    kv: tuple[Tensor, Tensor],
    weights: Tensor,
    cu_seq_len_k_start: Tensor,
    cu_seq_len_k_end: Tensor,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
    logits_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`fp8_mqa_logits` of q = (q, None), into float32 or bfloat16.

    Raises:
        NotImplementedError: q has scales of its own: FP4.
        Others as fp8_mqa_logits.
    """
    op = "fp8_fp4_mqa_logits"
    arguments = (weights, cu_seq_len_k_start, cu_seq_len_k_end, max_seqlen_k, logits_dtype)
    return _mqa_logits(op, _without_scale(op, q), kv, *arguments)


def get_paged_mqa_logits_metadata(
    context_lens: Tensor, block_kv: int, num_sms: int, indices: Tensor | None = None
) -> Tensor:
    """In place of DeepGEMM's schedule: here a call finds its own, so this holds nothing.

    Returns:
        [num_sms + 1, 2] int32, zeros, where context_lens is.

    Raises:
        NotImplementedError: indices is not None.
        TypeError, ValueError: an argument has the wrong type, or block_kv or num_sms is less than 1.
    """
    op = "get_paged_mqa_logits_metadata"
    _check_no_indices(op, indices)
    for name, value in (("block_kv", block_kv), ("num_sms", num_sms)):
        _checks.check_int(op, name, value)
        if value < 1:
            raise ValueError(f"{op}: {name} is {value}, expected 1 <= {name}")
    _checks.check_tensor(op, "context_lens", context_lens)
    return context_lens.new_zeros((num_sms + 1, 2), dtype=torch.int32)


def fp8_paged_mqa_logits(
    q: Tensor,
    kv_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule_meta: Tensor,
    max_context_len: int,
    clean_logits: bool = False,
    indices: Tensor | None = None,
) -> Tensor:
    """`dsa_ext.paged_indexer_logits` of q [b, next_n, h, d], kv_cache [pages, page_size, 1, d + 4] uint8, weights
    [b * next_n, h] and context_lens [b] or [b, next_n].

    schedule_meta is what `get_paged_mqa_logits_metadata` returned, or a copy; what it holds is not looked at.

    Returns:
        [b * next_n, max_context_len] float32, -inf from a token's length on, also where clean_logits is False.

    Raises:
        NotImplementedError: indices is not None, or q is FP4.
        TypeError, ValueError: kv_cache or schedule_meta does not fit.
        Others as paged_indexer_logits, in its words.
    """
    arguments = (kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len, torch.float32, indices)
    return _paged_mqa_logits("fp8_paged_mqa_logits", q, *arguments)


def fp8_fp4_paged_mqa_logits(
    q: tuple[Tensor, Tensor | None],
    kv_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule_meta: Tensor,
    max_context_len: int,
    clean_logits: bool = False,
    logits_dtype: torch.dtype = torch.float32,
    indices: Tensor | None = None,
) -> Tensor:
    """`fp8_paged_mqa_logits` of q = (q, None), into float32 or bfloat16.

    Raises:
        NotImplementedError: q has scales of its own: FP4.
        Others as fp8_paged_mqa_logits.
    """
    op = "fp8_fp4_paged_mqa_logits"
    arguments = (kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len, logits_dtype, indices)
    return _paged_mqa_logits(op, _without_scale(op, q), *arguments)


def _mqa_logits(
    op: str,
    q: Tensor,
    kv: tuple[Tensor, Tensor],
    weights: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    max_seqlen_k: int,
    dtype: torch.dtype,
) -> Tensor:
    k, k_scale = _pair(op, "kv", kv, "(keys, scales)")
    _checks.check_int(op, "max_seqlen_k", max_seqlen_k)
    if max_seqlen_k < 0:
        raise ValueError(f"{op}: max_seqlen_k is {max_seqlen_k}, expected 0 <= max_seqlen_k")
    _check_not_fp4(op, "q", q)
    _check_not_fp4(op, "kv[0]", k)
    _check_logits_dtype(op, dtype)
    if max_seqlen_k == 0:
        return dsa_ext.indexer_logits(q, k, k_scale, weights, k_start, k_end, out_dtype=dtype)
    inputs = (q, k, k_scale, weights, k_start, k_end)
    _checks_logits.check_indexer_logits("indexer_logits", *inputs, dtype, plain=False)
    return _compressed(*inputs, max_seqlen_k, dtype)


def _compressed(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    """[s_q, columns], of rows that begin with their first key, by way of as many whole rows at a time as fit into the
    memory that indexer_topk takes for its logits."""
    s_q, s_k = q.shape[0], k.shape[0]
    out = torch.full((s_q, columns), -math.inf, dtype=dtype, device=q.device)
    if s_k == 0:
        return out
    rows = max(1, WORKSPACE_LIMIT // (s_k * dtype.itemsize))
    for begin in range(0, s_q, rows):
        some = slice(begin, begin + rows)
        logits = dsa_ext.indexer_logits(q[some], k, k_scale, weights[some], k_start[some], k_end[some], out_dtype=dtype)
        keys = k_start[some, None].clamp(0, s_k).long() + torch.arange(columns, device=q.device)
        out[some] = logits.gather(1, keys.clamp(max=s_k - 1)).masked_fill(keys >= s_k, -math.inf)
    return out


def _paged_mqa_logits(
    op: str,
    q: Tensor,
    kv_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule_meta: Tensor,
    max_context_len: int,
    dtype: torch.dtype,
    indices: Tensor | None,
) -> Tensor:
    _check_no_indices(op, indices)
    _check_not_fp4(op, "q", q)
    _check_logits_dtype(op, dtype)
    _checks.check_tensor(op, "kv_cache", kv_cache)
    if kv_cache.dim() != 4 or kv_cache.shape[2] != 1:
        raise ValueError(f"{op}: kv_cache has shape {tuple(kv_cache.shape)}, expected (pages, page_size, 1, d + 4)")
    _check_metadata(op, schedule_meta)
    out = None
    # Where these do not fit, paged_indexer_logits says what is wrong.
    if dtype != torch.float32 and isinstance(q, Tensor) and q.dim() == 4 and type(max_context_len) is int:
        out = q.new_empty((*q.shape[:2], max(max_context_len, 0)), dtype=dtype)
    options = {"max_context_len": max_context_len, "out": out}
    logits = dsa_ext.paged_indexer_logits(q, kv_cache.squeeze(2), weights, context_lens, block_table, **options)
    return logits.flatten(0, 1)


def _check_metadata(op: str, metadata: Tensor) -> None:
    _checks.check_tensor(op, "schedule_meta", metadata)
    _checks.check_dtype(op, "schedule_meta", metadata, torch.int32)
    if metadata.dim() != 2 or metadata.shape[1] != 2:
        raise ValueError(
            f"{op}: schedule_meta has shape {tuple(metadata.shape)}, expected (num_sms + 1, 2), as "
            "get_paged_mqa_logits_metadata makes it"
        )


def _pair(op: str, name: str, value: object, expected: str) -> tuple:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{op}: {name} is of type {type(value).__name__}, expected the tuple {expected}")
    if len(value) != 2:
        raise ValueError(f"{op}: {name} has {len(value)} elements, expected the tuple {expected}")
    return tuple(value)


def _without_scale(op: str, q: tuple[Tensor, Tensor | None]) -> Tensor:
    values, scale = _pair(op, "q", q, "(q, None)")
    if scale is not None:
        raise NotImplementedError(f"{op}: q[1] is not None, expected None: FP4, and scales beside q, are not here")
    return values


def _check_not_fp4(op: str, name: str, operand: object) -> None:
    if isinstance(operand, Tensor) and operand.dtype in _FP4_DTYPES:
        dtype = str(operand.dtype).removeprefix("torch.")
        raise NotImplementedError(f"{op}: {name} is {dtype}, expected float8_e4m3fn: FP4 is not here")


def _check_logits_dtype(op: str, dtype: object) -> None:
    if dtype not in (torch.float32, torch.bfloat16):
        given = str(dtype).removeprefix("torch.")
        raise TypeError(f"{op}: logits_dtype is {given}, expected float32 or bfloat16")


def _check_no_indices(op: str, indices: Tensor | None) -> None:
    if indices is not None:
        raise NotImplementedError(f"{op}: indices is given, expected None: tokens that share a context are next_n here")
