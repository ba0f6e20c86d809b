"""The safetensors format, read and laid out: 8 bytes of header length (little-endian), JSON, the tensors' bytes.

The converter moves bytes without looking into them, so the headers are all it needs to understand; it writes at the
offsets that `lay_out` plans, where safetensors' own writer wants every tensor of a file at once.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import ConvertError

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_MAX_HEADER = 100_000_000  # bytes, the format's own limit


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file. `offset` counts from the start of the file, `nbytes` is its size, both in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> list[Stored]:
    """The tensors of a file in the order of their bytes.

    Raises:
        ConvertError: the file is not a whole safetensors file.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _MAX_HEADER:
            raise ConvertError(f"{path} is not a safetensors file: it has no header of a possible length")
        if 8 + length > size:
            raise ConvertError(f"{path} is truncated: {size} bytes, and its header alone takes {8 + length}")
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        found = [_parse(name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConvertError(f"{path} has a corrupt header ({error or type(error).__name__})") from error
    found.sort(key=lambda t: (t.offset, t.nbytes))
    end = 8 + length
    for tensor in found:
        if tensor.offset != end:
            raise ConvertError(f"{path} has a corrupt header: the bytes of {tensor.name} leave a gap or overlap")
        end += tensor.nbytes
    if size < end:
        raise ConvertError(f"{path} is truncated: {size} bytes, and its header describes {end}")
    if size > end:
        raise ConvertError(f"{path} is corrupt: {size} bytes, and its header describes {end}")
    return found


def _parse(name: str, entry: dict, data: int) -> Stored:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"{name} has the unsupported dtype {dtype}")
    if any(type(n) is not int or n < 0 for n in (*shape, start, end)):
        raise ValueError(f"{name} has a size or an offset that is no natural number")
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name} has {end - start} bytes for {dtype} of shape {list(shape)}")
    return Stored(name, dtype, shape, data + start, end - start)


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, dict[str, int], int]:
    """Plan a file of (name, dtype, shape).

    Wide dtypes come first, then by name: every tensor is aligned to its items, and the file depends on nothing else.

    Returns:
        The bytes up to the first tensor's, the offset of each tensor from the start of the file, the file's size.
    """
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name, dtype, shape in sorted(tensors, key=lambda t: (-ITEM_BYTES[t[1]], t[0])):
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
        offsets[name] = start
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise ConvertError(f"a shard would need a header of {len(text)} bytes, and the format allows {_MAX_HEADER}")
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + offset for name, offset in offsets.items()}, len(head) + end
