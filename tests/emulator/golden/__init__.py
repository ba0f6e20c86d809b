"""What a GPU computes, bit for bit, for the emulator to be held to: see __main__.py."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import arithmetic, matrices, memory, tma, warps
from .program import Program

INSTRUCTIONS, OPS = (Path(__file__).with_name(f"{name}.npz") for name in ("instructions", "ops"))


def programs() -> Iterator[Program]:
    for family in (arithmetic, memory, tma, warps, matrices):
        yield from family.programs()


@functools.cache
def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)
