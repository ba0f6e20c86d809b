"""What _checks.py is to attention, for the functions that quantise the indexer's queries and keys."""

import torch
from torch import Tensor

from . import _checks, _checks_cache

HEAD_DIMS = (32, 64, 128)
PREPARED_HEAD_DIM, ROPE_DIMS = 128, 64  # of prepare_indexer
ROPE_FORMS = ("half", "interleaved")
SCALE_BYTES = 4  # of a token in the cache, besides its codes
E4M3 = torch.float8_e4m3fn


def _check_where(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, expected {other.device}, where {other_name} is")


def _check_head_dim(op: str, name: str, tensor: Tensor, leading: str) -> None:
    if tensor.shape[-1] not in HEAD_DIMS:
        _checks._bad_shape(op, name, tensor, f"({leading}, d) with d = {' or '.join(map(str, HEAD_DIMS))}")


def check_quantize_indexer(op: str, x: Tensor, scale_format: str, *, plain: bool) -> None:
    """`plain`: what plain torch takes, instead of what kernels do."""
    _checks_cache._choice(op, "scale_format", scale_format, _checks_cache.SCALE_FORMATS)
    _checks.check_tensor(op, "x", x)
    _checks_cache._check_device(op, "x", x, plain)
    if x.is_cuda and not plain:
        kernel = torch.bfloat16, torch.float16, torch.float32
        _checks.check_dtype(op, "x", x, *kernel, why=" on a CUDA device")
    else:
        _checks.check_dtype(op, "x", x, *_checks.CPU_DTYPES)
    if x.dim() == 0:
        _checks._bad_shape(op, "x", x, "(..., d)")
    _check_head_dim(op, "x", x, "...")


def check_prepare_indexer(
    op: str,
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    cos: Tensor,
    sin: Tensor,
    rope: str,
    hadamard: bool,
    scale_format: str,
    *,
    plain: bool,
) -> None:
    _checks_cache._choice(op, "rope", rope, ROPE_FORMS)
    if not isinstance(hadamard, bool):
        raise TypeError(f"{op}: hadamard is of type {type(hadamard).__name__}, expected a bool")
    _checks_cache._choice(op, "scale_format", scale_format, _checks_cache.SCALE_FORMATS)
    others = {"k": k, "weights": weights, "cos": cos, "sin": sin}
    for name, tensor in {"q": q, **others}.items():
        _checks.check_tensor(op, name, tensor)
    kernel = _checks.check_device_of_q(op, q, plain)
    _checks.check_dtype(op, "k", k, q.dtype, why=" as q")
    if kernel:
        _checks.check_dtype(op, "weights", weights, torch.float32, torch.bfloat16, why=" on a CUDA device")
    else:
        _checks.check_dtype(op, "weights", weights, *_checks.CPU_DTYPES)
    for name in ("cos", "sin"):
        _checks.check_dtype(op, name, others[name], torch.float32)
    for name, tensor in others.items():
        _checks.check_same_device(op, name, tensor, q)

    if q.dim() != 3 or q.shape[2] != PREPARED_HEAD_DIM:
        _checks._bad_shape(op, "q", q, f"(s, h, {PREPARED_HEAD_DIM})")
    s, heads, d = q.shape
    pairs = ROPE_DIMS // 2
    if k.shape != (s, d):
        _checks._bad_shape(op, "k", k, f"(s, {d}) with s = {s}")
    if weights.shape != (s, heads):
        _checks._bad_shape(op, "weights", weights, f"(s, h) with s = {s}, h = {heads}")
    for name, tensor in (("cos", cos), ("sin", sin)):
        if tensor.shape != (s, pairs):
            each = f"an angle for each pair of the first {ROPE_DIMS} dimensions"
            _checks._bad_shape(op, name, tensor, f"(s, {pairs}) with s = {s}: {each}")
    for name, tensor in {"q": q, **others}.items():
        _checks.check_last_dim_contiguous(op, name, tensor)


def check_store_indexer_cache(
    op: str, k: Tensor, k_scale: Tensor, k_cache: Tensor, slots: Tensor, *, plain: bool
) -> None:
    tensors = {"k": k, "k_scale": k_scale, "k_cache": k_cache, "slots": slots}
    dtypes = {"k": E4M3, "k_scale": torch.float32, "k_cache": torch.uint8, "slots": torch.int32}
    for name, tensor in tensors.items():
        _checks.check_tensor(op, name, tensor)
    _checks_cache._check_device(op, "k", k, plain)
    for name, tensor in tensors.items():
        _checks.check_dtype(op, name, tensor, dtypes[name])
        _check_where(op, name, tensor, "k", k)
    if k.dim() != 2:
        _checks._bad_shape(op, "k", k, "(n, d)")
    _check_head_dim(op, "k", k, "n")
    n, d = k.shape
    for name in ("k_scale", "slots"):
        if tensors[name].shape != (n,):
            _checks._bad_shape(op, name, tensors[name], f"(n,) with n = {n}")
    size = d + SCALE_BYTES
    if k_cache.dim() != 3 or k_cache.shape[2] != size:
        _checks._bad_shape(op, "k_cache", k_cache, f"(pages, page_size, d + {SCALE_BYTES}) with d = {d}")
    _checks.check_last_dim_contiguous(op, "k", k)
    _checks.check_last_dim_contiguous(op, "k_cache", k_cache)
    if k_cache.shape[1] > 1 and k_cache.stride(1) != size:
        raise ValueError(
            f"{op}: k_cache has strides {tuple(k_cache.stride())}, expected (any, {size}, 1): its pages have no gaps"
        )
    if not torch.compiler.is_compiling():  # storages are not traced
        _checks.check_writable(op, "k_cache", k_cache)
        _checks.check_no_overlap(op, {"k_cache": k_cache}, {"k": k, "k_scale": k_scale, "slots": slots})
