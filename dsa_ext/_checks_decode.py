"""Argument validation of sparse_mla_decode and its plan, in the words and by the rules of _checks.py."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from . import _checks
from ._checks import (
    _bad_shape,
    check_device_of_q,
    check_dtype,
    check_int,
    check_last_dim_contiguous,
    check_same_device,
    check_tensor,
    check_writable,
    stats_dtype,
)
from ._checks_cache import KV_FORMATS, KvFormat, check_kv_cache

D_V = 512
BF16_D_QK = 576  # that kernels take with a bf16 cache


def cache_format(kv_cache: Tensor) -> KvFormat | None:
    """By the width of a token; None for a cache that is not quantised."""
    if kv_cache.dtype != torch.uint8:
        return None
    return next((form for form in KV_FORMATS.values() if form.token_bytes == kv_cache.shape[-1]), None)


def check_sparse_mla_decode(
    op: str,
    q: Tensor,
    kv_cache: Tensor,
    idx: Tensor,
    scale: float,
    topk_length: Tensor | None,
    attn_sink: Tensor | None,
    extra_kv_cache: Tensor | None,
    extra_idx: Tensor | None,
    extra_topk_length: Tensor | None,
    *,
    plain: bool,
) -> float:
    """Checks the inputs but the plan and returns scale as a float. `plain`: what plain torch takes, instead of what
    kernels do."""
    check_tensor(op, "q", q)
    check_tensor(op, "kv_cache", kv_cache)
    check_tensor(op, "idx", idx)
    kernel = check_device_of_q(op, q, plain)
    if q.dim() != 4:
        _bad_shape(op, "q", q, "(b, s_q, h_q, d_qk)")
    check_last_dim_contiguous(op, "q", q)
    _check_cache(op, kv_cache, q, kernel)
    _check_indices(op, "idx", idx, "topk", q)

    if attn_sink is not None:
        check_tensor(op, "attn_sink", attn_sink)
        check_dtype(op, "attn_sink", attn_sink, torch.float32, *((torch.float64,) if q.dtype == torch.float64 else ()))
        check_same_device(op, "attn_sink", attn_sink, q)
        if attn_sink.dim() != 1 or attn_sink.shape[0] != q.shape[2]:
            _bad_shape(op, "attn_sink", attn_sink, f"(h_q,) with h_q = {q.shape[2]}")
    if topk_length is not None:
        check_tensor(op, "topk_length", topk_length)
        check_same_device(op, "topk_length", topk_length, q)
        check_length(op, "topk_length", topk_length, q.shape[0], q.shape[1])
    _check_extra(op, kv_cache, extra_kv_cache, extra_idx, extra_topk_length, q)
    return _checks.check_scale(op, scale)


def _check_cache(op: str, kv_cache: Tensor, q: Tensor, kernel: bool) -> None:
    check_dtype(op, "kv_cache", kv_cache, torch.uint8, q.dtype)
    check_same_device(op, "kv_cache", kv_cache, q)
    d_qk = q.shape[3]
    if kv_cache.dtype == torch.uint8:
        form = cache_format(kv_cache) if kv_cache.dim() == 3 else None
        if form is None:
            expected = " or ".join(f"(pages, page_size, {form.token_bytes})" for form in KV_FORMATS.values())
            _bad_shape(op, "kv_cache", kv_cache, f"{expected} for uint8")
        if d_qk != form.head_dim:
            width = f"{form.token_bytes} bytes a token in kv_cache"
            raise ValueError(f"{op}: q has d_qk = {d_qk}, expected {form.head_dim} with {width}")
        check_kv_cache(op, "kv_cache", kv_cache, form)
        return
    if kernel and d_qk != BF16_D_QK:
        raise ValueError(f"{op}: q has d_qk = {d_qk}, expected {BF16_D_QK} with a bfloat16 kv_cache on a CUDA device")
    if d_qk < D_V:
        raise ValueError(f"{op}: q has d_qk = {d_qk}, expected at least {D_V}, the columns of a value")
    if kv_cache.dim() != 3 or kv_cache.shape[2] != d_qk:
        _bad_shape(op, "kv_cache", kv_cache, f"(pages, page_size, d_qk) with d_qk = {d_qk}")
    check_last_dim_contiguous(op, "kv_cache", kv_cache)


def _check_indices(op: str, name: str, idx: Tensor, size: str, q: Tensor) -> None:
    check_dtype(op, name, idx, torch.int32)
    check_same_device(op, name, idx, q)
    batch, s_q = q.shape[:2]
    if idx.dim() != 3 or idx.shape[0] != batch or idx.shape[1] != s_q:
        _bad_shape(op, name, idx, f"(b, s_q, {size}) with b = {batch}, s_q = {s_q}")
    check_last_dim_contiguous(op, name, idx)


def check_length(op: str, name: str, length: Tensor, batch: int, s_q: int) -> None:
    check_dtype(op, name, length, torch.int32)
    shape = length.shape
    if not (len(shape) in (1, 2) and shape[0] == batch and (len(shape) == 1 or shape[1] == s_q)):
        _bad_shape(op, name, length, f"(b,) or (b, s_q) with b = {batch}, s_q = {s_q}")


def _check_extra(
    op: str,
    kv_cache: Tensor,
    extra_kv_cache: Tensor | None,
    extra_idx: Tensor | None,
    extra_topk_length: Tensor | None,
    q: Tensor,
) -> None:
    if extra_kv_cache is None:
        for name, value in (("extra_idx", extra_idx), ("extra_topk_length", extra_topk_length)):
            if value is not None:
                kind = type(value).__name__
                raise ValueError(f"{op}: {name} is of type {kind}, expected None without extra_kv_cache")
        return
    check_tensor(op, "extra_kv_cache", extra_kv_cache)
    if extra_idx is None:
        raise ValueError(f"{op}: extra_idx is None, expected a tensor beside extra_kv_cache")
    check_tensor(op, "extra_idx", extra_idx)
    check_dtype(op, "extra_kv_cache", extra_kv_cache, kv_cache.dtype, why=" as kv_cache")
    check_same_device(op, "extra_kv_cache", extra_kv_cache, q)
    width = kv_cache.shape[2]
    if extra_kv_cache.dim() != 3 or extra_kv_cache.shape[2] != width:
        _bad_shape(op, "extra_kv_cache", extra_kv_cache, f"(pages, page_size, {width}), the format of kv_cache")
    if (form := cache_format(kv_cache)) is not None:
        check_kv_cache(op, "extra_kv_cache", extra_kv_cache, form)
    check_last_dim_contiguous(op, "extra_kv_cache", extra_kv_cache)
    _check_indices(op, "extra_idx", extra_idx, "extra_topk", q)
    if extra_topk_length is not None:
        check_tensor(op, "extra_topk_length", extra_topk_length)
        check_same_device(op, "extra_topk_length", extra_topk_length, q)
        check_length(op, "extra_topk_length", extra_topk_length, q.shape[0], q.shape[1])


def check_plan(op: str, plan: Tensor, q: Tensor, sizes: Collection[int] | None) -> None:
    """`sizes`: how many elements the plan of this call may have, if that is known."""
    check_tensor(op, "plan", plan)
    check_dtype(op, "plan", plan, torch.int32)
    check_same_device(op, "plan", plan, q)
    if plan.dim() != 1 or (sizes is not None and plan.shape[0] not in sizes):
        expected = "(n,)" if sizes is None else " or ".join(f"({n},)" for n in dict.fromkeys(sizes))
        _bad_shape(op, "plan", plan, f"{expected}, as plan_sparse_mla_decode makes it for the sizes of this call")
    check_last_dim_contiguous(op, "plan", plan)


def check_sparse_mla_decode_out(
    op: str, out: Tensor | Sequence[Tensor], q: Tensor, inputs: dict[str, Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Checks the buffers that a caller gave; allocates lse if it left that out. `q` has been checked."""
    heads = q.shape[:-1]
    if isinstance(out, Tensor):
        out = (out, q.new_empty(heads, dtype=stats_dtype(q)))
    elif not isinstance(out, (tuple, list)):
        raise TypeError(f"{op}: out is of type {type(out).__name__}, expected a tensor or a tuple (out, lse)")
    elif len(out) != 2:
        raise ValueError(f"{op}: out is a {type(out).__name__} of {len(out)}, expected (out, lse)")
    named = dict(zip(("out", "lse"), out, strict=True))
    for name, buffer in named.items():
        check_tensor(op, name, buffer)
        check_dtype(op, name, buffer, q.dtype if name == "out" else stats_dtype(q))
        check_same_device(op, name, buffer, q)
        expected = (*heads, D_V) if name == "out" else tuple(heads)
        if tuple(buffer.shape) != expected:
            _bad_shape(op, name, buffer, str(expected))
    check_last_dim_contiguous(op, "out", out[0])
    if not torch.compiler.is_compiling():  # storages are not traced
        for name, buffer in named.items():
            check_writable(op, name, buffer)
        _checks.check_no_overlap(op, named, inputs)
    return tuple(out)


def check_plan_sparse_mla_decode(
    op: str,
    topk_length: Tensor | None,
    sizes: dict[str, int],
    extra_topk_length: Tensor | None,
    batch_invariant: bool,
    device: torch.device | str | int,
) -> torch.device:
    """Checks the inputs and returns the device, with its index. `sizes`: batch, s_q, h_q, topk, extra_topk."""
    for name, value in sizes.items():
        check_int(op, name, value)
        if not 0 <= value < 2**31:
            raise ValueError(f"{op}: {name} is {value}, expected 0 <= {name} < 2^31")
    if not isinstance(batch_invariant, bool):
        raise TypeError(f"{op}: batch_invariant is of type {type(batch_invariant).__name__}, expected a bool")
    if isinstance(device, bool) or not isinstance(device, (torch.device, str, int)):
        raise TypeError(f"{op}: device is of type {type(device).__name__}, expected a torch.device, a str or an int")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{op}: device is {device!r}, expected the name of a device, such as 'cuda'") from None
    if device.type not in ("cuda", "cpu", "meta"):
        raise NotImplementedError(f"{op}: device is {device}, expected a CUDA or a CPU device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{op}: device is {device}, expected cpu: torch sees no usable NVIDIA GPU")
    device = torch.empty(0, device=device).device  # with its index
    for name, length in (("topk_length", topk_length), ("extra_topk_length", extra_topk_length)):
        if length is not None:
            check_tensor(op, name, length)
            check_length(op, name, length, sizes["batch"], sizes["s_q"])
            if length.device != device:
                raise ValueError(f"{op}: {name} is on {length.device}, expected {device}, as device says")
    return device


def check_plan_sparse_mla_decode_out(
    op: str, out: Tensor, size: int | None, device: torch.device, inputs: dict[str, Tensor | None]
) -> None:
    """`size`: None where it cannot be told, and the op checks it."""
    check_tensor(op, "out", out)
    check_dtype(op, "out", out, torch.int32)
    if out.device != device:
        raise ValueError(f"{op}: out is on {out.device}, expected {device}, as device says")
    if out.dim() != 1 or (size is not None and out.shape[0] != size):
        _bad_shape(op, "out", out, "(n,)" if size is None else f"({size},)")
    check_last_dim_contiguous(op, "out", out)
    if not torch.compiler.is_compiling():
        _checks.check_no_overlap(op, {"out": out}, inputs)
