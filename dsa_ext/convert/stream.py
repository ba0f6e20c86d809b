"""Bytes from file to file through one buffer, whatever the size of a tensor."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import ConvertError

CHUNK = 8 << 20  # bytes; a slice along rows needs as much again, for the pieces that it gathers
_MAX_ROWS = 4096  # gathered at once: a slice object costs more than a short row

Write = Callable[[int, int, "bytes | memoryview"], None]  # (rank, offset in its file, bytes)


class Reader:
    """Reads of one file into a buffer that the next read overwrites."""

    def __init__(self, path: Path, buffer: bytearray):
        self.path, self._view = path, memoryview(buffer)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, nbytes: int) -> memoryview:
        """`nbytes` (at most the buffer's size) from `offset` on. Valid until the next call."""
        done = 0
        while done < nbytes:
            try:
                got = os.preadv(self._fd, [self._view[done:nbytes]], offset + done)
            except OSError as error:
                raise ConvertError(f"{self.path} cannot be read: {error.strerror}") from error
            if got == 0:
                raise ConvertError(f"{self.path} became shorter while it was read")
            done += got
        return self._view[:nbytes]


def copy(reader: Reader, offset: int, nbytes: int, targets: Sequence[tuple[int, int]], write: Write) -> None:
    """Copy a range of the input to every (rank, offset) of `targets`."""
    for start in range(0, nbytes, CHUNK):
        piece = reader.read(offset + start, min(CHUNK, nbytes - start))
        for rank, to in targets:
            write(rank, to + start, piece)


def scatter(reader: Reader, offset: int, rows: int, row: int, targets: Sequence[tuple[int, int]], write: Write) -> None:
    """Cut each of `rows` rows of `row` bytes into as many equal parts as there are targets, and gather part k at the
    k-th (rank, offset). A slice along dim 0 is the case of one row."""
    part = row // len(targets)
    if row > CHUNK or rows == 1:
        for r in range(rows):
            for k, (rank, to) in enumerate(targets):
                copy(reader, offset + r * row + k * part, part, [(rank, to + r * part)], write)
        return
    at_once = max(1, min(CHUNK // max(row, 1), _MAX_ROWS))
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        piece = reader.read(offset + first * row, count * row)
        for k, (rank, to) in enumerate(targets):
            gathered = b"".join([piece[r * row + k * part : r * row + (k + 1) * part] for r in range(count)])
            write(rank, to + first * part, gathered)


def same_bytes(first: tuple[Path, int], second: tuple[Path, int], nbytes: int) -> bool:
    """Whether two (file, offset) hold the same `nbytes`."""
    step = CHUNK // 2
    with Reader(first[0], bytearray(step)) as a, Reader(second[0], bytearray(step)) as b:
        return all(
            a.read(first[1] + start, size) == b.read(second[1] + start, size)
            for start in range(0, nbytes, step)
            for size in (min(step, nbytes - start),)
        )
