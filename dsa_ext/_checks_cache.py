"""What _checks.py is to attention, for the functions of the KV cache."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks

SCALE_FORMATS = ("ue8m0", "fp32")
MAX_INT = 2**31 - 1


class KvFormat(NamedTuple):
    """Sizes that a caller sees. The byte map itself is csrc/common/kv_format.h's, and the reference's own."""

    name: str
    head_dim: int  # of a token before packing
    token_bytes: int  # the last dimension of a packed cache
    scales_in_line: bool  # or at the end of each page, so that a token alone is no row of bytes
    page_multiple: int  # of bytes, from page to page

    def page_stride(self, page_size: int) -> int:
        """Bytes from page to page, as pack_kv_cache lays them out."""
        return -(-page_size * self.token_bytes // self.page_multiple) * self.page_multiple


KV_FORMATS = {
    "v32": KvFormat("v32", head_dim=576, token_bytes=656, scales_in_line=True, page_multiple=1),
    "v4": KvFormat("v4", head_dim=512, token_bytes=584, scales_in_line=False, page_multiple=576),
}


def _choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    if isinstance(value, str) and value in choices:
        return
    expected = " or ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} is of type {type(value).__name__}, expected {expected}")
    raise ValueError(f"{op}: {name} is {value!r}, expected {expected}")


def check_kv_format(op: str, format: str, scale_format: str = "ue8m0") -> KvFormat:
    _choice(op, "format", format, tuple(KV_FORMATS))
    _choice(op, "scale_format", scale_format, SCALE_FORMATS)
    if scale_format == "fp32" and format == "v4":
        raise ValueError(f"{op}: scale_format is 'fp32', expected 'ue8m0' for format 'v4', whose scales are e8m0")
    return KV_FORMATS[format]


def _check_device(op: str, name: str, tensor: Tensor, plain: bool) -> None:
    if not (tensor.is_cuda or tensor.is_cpu or tensor.is_meta or plain):
        raise NotImplementedError(f"{op}: {name} is on {tensor.device}, expected a CUDA or a CPU device")


def _check_where_kv_is(op: str, name: str, tensor: Tensor, kv: Tensor) -> None:
    if tensor.device != kv.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, expected {kv.device}, where kv is")


def _check_kv(op: str, kv: Tensor, form: KvFormat, plain: bool) -> None:
    _checks.check_tensor(op, "kv", kv)
    _check_device(op, "kv", kv, plain)
    if kv.is_cuda and not plain:
        _checks.check_dtype(op, "kv", kv, torch.bfloat16, why=" on a CUDA device")
    else:
        _checks.check_dtype(op, "kv", kv, *_checks.CPU_DTYPES)
    if kv.dim() != 2 or kv.shape[1] != form.head_dim:
        _checks._bad_shape(op, "kv", kv, f"(n, {form.head_dim}) for format {form.name!r}")
    _checks.check_last_dim_contiguous(op, "kv", kv)


def check_kv_cache(op: str, name: str, cache: Tensor, form: KvFormat) -> None:
    """Shape, dtype and strides of a packed cache."""
    _checks.check_dtype(op, name, cache, torch.uint8)
    size = form.token_bytes
    if not (cache.dim() == 3 or (cache.dim() == 2 and form.scales_in_line)) or cache.shape[-1] != size:
        paged, rows = f"(pages, page_size, {size})", f"(n, {size}) or " if form.scales_in_line else ""
        _checks._bad_shape(op, name, cache, f"{rows}{paged} for format {form.name!r}")
    _checks.check_last_dim_contiguous(op, name, cache)
    if not form.scales_in_line and cache.shape[1] > 1 and cache.stride(1) != size:
        raise ValueError(
            f"{op}: {name} has strides {tuple(cache.stride())}, expected (any, {size}, 1) for format {form.name!r}, "
            "whose pages have no gaps"
        )


def check_pack_kv_cache(
    op: str, kv: Tensor, format: str, page_size: int | None, scale_format: str, *, plain: bool
) -> KvFormat:
    """`plain`: what plain torch takes, instead of what kernels do."""
    form = check_kv_format(op, format, scale_format)
    _check_kv(op, kv, form, plain)
    if page_size is not None:
        _checks.check_int(op, "page_size", page_size)
        if not 1 <= page_size <= MAX_INT:
            raise ValueError(f"{op}: page_size is {page_size}, expected 1 <= page_size < 2^31")
    elif not form.scales_in_line:
        raise ValueError(
            f"{op}: page_size is None, expected an int for format {form.name!r}, which exists in pages only"
        )
    return form


def check_unpack_kv_cache(op: str, packed: Tensor, format: str, *, plain: bool) -> KvFormat:
    form = check_kv_format(op, format)
    _checks.check_tensor(op, "packed", packed)
    _check_device(op, "packed", packed, plain)
    check_kv_cache(op, "packed", packed, form)
    return form


def check_store_kv_cache(
    op: str, kv: Tensor, kv_cache: Tensor, slots: Tensor, format: str, scale_format: str, *, plain: bool
) -> KvFormat:
    form = check_kv_format(op, format, scale_format)
    _check_kv(op, kv, form, plain)
    _checks.check_tensor(op, "kv_cache", kv_cache)
    _checks.check_tensor(op, "slots", slots)
    _check_where_kv_is(op, "kv_cache", kv_cache, kv)
    _check_where_kv_is(op, "slots", slots, kv)
    check_kv_cache(op, "kv_cache", kv_cache, form)
    _checks.check_dtype(op, "slots", slots, torch.int32)
    if slots.dim() != 1 or slots.shape[0] != kv.shape[0]:
        _checks._bad_shape(op, "slots", slots, f"(n,) with n = {kv.shape[0]}")
    if not torch.compiler.is_compiling():  # storages are not traced
        _checks.check_writable(op, "kv_cache", kv_cache)
        _checks.check_no_overlap(op, {"kv_cache": kv_cache}, {"kv": kv, "slots": slots})
    return form
