"""Argument validation. Every message names the function, the argument, what came and what was expected.

Shapes, dtypes, strides and devices are host-side facts: nothing here reads a tensor's values or waits for a device.
Messages are formatted only on failure.
"""

import math
import numbers
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

CPU_DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
MIN_SCALE, MAX_SCALE = 2.0**-149, (2 - 2.0**-23) * 2.0**127  # the positive range of float32


def stats_dtype(q: Tensor) -> torch.dtype:
    """The dtype of max_logits and lse, which is also the one that the reference computes in."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bad_shape(op: str, name: str, tensor: Tensor, expected: str) -> NoReturn:
    raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {expected}")


def check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is of type {type(value).__name__}, expected a tensor")
    if value.layout is not torch.strided:
        raise TypeError(f"{op}: {name} has layout {value.layout}, expected {torch.strided}")


def check_dtype(op: str, name: str, tensor: Tensor, *expected: torch.dtype, why: str = "") -> None:
    if tensor.dtype not in expected:
        raise TypeError(f"{op}: {name} is {_name(tensor.dtype)}, expected {' or '.join(map(_name, expected))}{why}")


def check_same_device(op: str, name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, expected {q.device}, where q is")


def check_last_dim_contiguous(op: str, name: str, tensor: Tensor) -> None:
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{op}: {name} has strides {tuple(tensor.stride())}, expected a contiguous last dimension (stride 1)"
        )


def check_no_grad(op: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise NotImplementedError(
                f"{op}: {name} requires grad, expected an input without: the function has no backward; call it under "
                f"torch.no_grad() or pass {name}.detach()"
            )


def check_int(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} is of type {type(value).__name__}, expected an int")


def check_scale(op: str, scale: object) -> float:
    if not isinstance(scale, (float, torch.SymFloat)):
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
            raise TypeError(f"{op}: scale is of type {type(scale).__name__}, expected a float")
        try:
            scale = float(scale)
        except OverflowError:
            scale = math.inf
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise ValueError(f"{op}: scale is {scale}, expected a finite float > 0 (in float32)")
    return scale


def _address_range(tensor: Tensor) -> tuple[int, int]:
    """First byte and one past the last, from the start of the storage."""
    start = tensor.storage_offset()
    last = start + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start * tensor.element_size(), (last + 1) * tensor.element_size()


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors can share a byte.

    True where their ranges meet in one storage, except for interleaved slices, such as x[:, :64] and x[:, 64:]. Those
    are told apart by where their rows lie within the greatest common divisor of all row strides.
    """
    if a.numel() == 0 or b.numel() == 0 or a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    (a_start, a_end), (b_start, b_end) = _address_range(a), _address_range(b)
    if a_end <= b_start or b_end <= a_start:
        return False

    def steps_and_row(t: Tensor) -> tuple[list[int], int]:
        dims = [(size, stride) for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]
        row = dims.pop()[0] if dims and dims[-1][1] == 1 else 1
        return [stride * t.element_size() for _, stride in dims], row * t.element_size()

    a_steps, a_row = steps_and_row(a)
    b_steps, b_row = steps_and_row(b)
    period = math.gcd(*a_steps, *b_steps)
    if period == 0:
        return True
    shift = (b_start - a_start) % period
    return not (a_row <= shift and shift + b_row <= period)


def check_no_overlap(op: str, outputs: dict[str, Tensor], inputs: dict[str, Tensor | None]) -> None:
    """No output shares memory with an input or with an output before it."""
    others = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    storages = {t.untyped_storage()._cdata for t in (*others.values(), *outputs.values())}
    if len(storages) == len(others) + len(outputs):
        return
    for name, tensor in outputs.items():
        for other, against in others.items():
            if overlap(tensor, against):
                raise ValueError(f"{op}: {name} shares memory with {other}, expected a buffer of its own")
        others[name] = tensor


def check_writable(op: str, name: str, tensor: Tensor) -> None:
    """No two elements at one address. Sufficient, and exact for every slice, transpose and expansion of a dense one."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return
    last = 0  # offset of the last element of the dimensions before
    for stride, size in sorted((st, si) for st, si in zip(tensor.stride(), tensor.shape, strict=True) if si > 1):
        if stride <= last:
            raise ValueError(
                f"{op}: {name} has strides {tuple(tensor.stride())}, expected a place of its own for every element"
            )
        last += stride * (size - 1)


def check_device_of_q(op: str, q: Tensor, plain: bool) -> bool:
    """Checks q's device, and its dtype for what will run there; returns whether that is a kernel."""
    kernel = q.is_cuda and not plain
    if not (q.is_cuda or q.is_cpu or q.is_meta or plain):
        raise NotImplementedError(f"{op}: q is on {q.device}, expected a CUDA or a CPU device")
    if kernel:
        check_dtype(op, "q", q, torch.bfloat16, why=" on a CUDA device")
    else:
        check_dtype(op, "q", q, *CPU_DTYPES)
    return kernel


def check_sparse_mla_fwd(
    op: str,
    q: Tensor,
    kv: Tensor,
    idx: Tensor,
    scale: float,
    d_v: int,
    attn_sink: Tensor | None,
    topk_length: Tensor | None,
    *,
    plain: bool,
) -> float:
    """Checks the inputs and returns scale as a float. `plain`: what plain torch takes, instead of what kernels do."""
    check_tensor(op, "q", q)
    check_tensor(op, "kv", kv)
    check_tensor(op, "idx", idx)

    kernel = check_device_of_q(op, q, plain)
    check_dtype(op, "kv", kv, q.dtype, why=" as q")
    check_dtype(op, "idx", idx, torch.int32)
    check_same_device(op, "kv", kv, q)
    check_same_device(op, "idx", idx, q)

    ndim = q.dim()
    if ndim == 3:
        s_q, h_q, d_qk = q.shape
        if not (kv.dim() == 2 or (kv.dim() == 3 and kv.shape[1] == 1)) or kv.shape[-1] != d_qk:
            _bad_shape(op, "kv", kv, f"(s_kv, d_qk) or (s_kv, 1, d_qk) with d_qk = {d_qk}")
        if not (idx.dim() == 2 or (idx.dim() == 3 and idx.shape[1] == 1)) or idx.shape[0] != s_q:
            _bad_shape(op, "idx", idx, f"(s_q, topk) or (s_q, 1, topk) with s_q = {s_q}")
    elif ndim == 4:
        batch, s_q, h_q, d_qk = q.shape
        if kv.dim() != 3 or kv.shape[0] != batch or kv.shape[2] != d_qk:
            _bad_shape(op, "kv", kv, f"(b, s_kv, d_qk) with b = {batch}, d_qk = {d_qk}")
        if idx.dim() != 3 or idx.shape[0] != batch or idx.shape[1] != s_q:
            _bad_shape(op, "idx", idx, f"(b, s_q, topk) with b = {batch}, s_q = {s_q}")
    else:
        _bad_shape(op, "q", q, "(s_q, h_q, d_qk) or (b, s_q, h_q, d_qk)")

    check_int(op, "d_v", d_v)
    if kernel:
        if d_qk != 576 and d_qk != 512:
            raise ValueError(f"{op}: q has d_qk = {d_qk}, expected 576 or 512 on a CUDA device")
        if d_v != 512:
            raise ValueError(f"{op}: d_v is {d_v}, expected 512 on a CUDA device")
    elif not 1 <= d_v <= d_qk:
        raise ValueError(f"{op}: d_v is {d_v}, expected 1 <= d_v <= d_qk = {d_qk}")
    check_last_dim_contiguous(op, "q", q)
    check_last_dim_contiguous(op, "kv", kv)
    check_last_dim_contiguous(op, "idx", idx)

    if attn_sink is not None:
        check_tensor(op, "attn_sink", attn_sink)
        if q.dtype == torch.float64:
            check_dtype(op, "attn_sink", attn_sink, torch.float32, torch.float64)
        else:
            check_dtype(op, "attn_sink", attn_sink, torch.float32)
        check_same_device(op, "attn_sink", attn_sink, q)
        if attn_sink.dim() != 1 or attn_sink.shape[0] != h_q:
            _bad_shape(op, "attn_sink", attn_sink, f"(h_q,) with h_q = {h_q}")
    if topk_length is not None:
        check_tensor(op, "topk_length", topk_length)
        check_dtype(op, "topk_length", topk_length, torch.int32)
        check_same_device(op, "topk_length", topk_length, q)
        if topk_length.shape != q.shape[:-2]:
            expected = f"(s_q,) with s_q = {s_q}" if ndim == 3 else f"(b, s_q) with b = {batch}, s_q = {s_q}"
            _bad_shape(op, "topk_length", topk_length, expected)
    return check_scale(op, scale)


def check_sparse_mla_fwd_out(
    op: str, out: Tensor | Sequence[Tensor], q: Tensor, d_v: int, inputs: dict[str, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the buffers that a caller gave; allocates those that it left out. `q` has been checked."""
    heads = q.shape[:-1]
    if isinstance(out, Tensor):
        out = (out, q.new_empty(heads, dtype=stats_dtype(q)), q.new_empty(heads, dtype=stats_dtype(q)))
    elif not isinstance(out, (tuple, list)):
        raise TypeError(
            f"{op}: out is of type {type(out).__name__}, expected a tensor or a tuple (out, max_logits, lse)"
        )
    elif len(out) != 3:
        raise ValueError(f"{op}: out is a {type(out).__name__} of {len(out)}, expected (out, max_logits, lse)")
    names = ("out", "max_logits", "lse")
    for name, buffer in zip(names, out, strict=True):
        check_tensor(op, name, buffer)
        check_dtype(op, name, buffer, q.dtype if name == "out" else stats_dtype(q))
        check_same_device(op, name, buffer, q)
        expected = (*heads, d_v) if name == "out" else tuple(heads)
        if tuple(buffer.shape) != expected:
            _bad_shape(op, name, buffer, str(expected))
    check_last_dim_contiguous(op, "out", out[0])
    if not torch.compiler.is_compiling():  # storages are not traced
        for name, buffer in zip(names, out, strict=True):
            check_writable(op, name, buffer)
        check_no_overlap(op, dict(zip(names, out, strict=True)), inputs)
    return tuple(out)
