"""Runs programs on the emulator."""

import numpy as np

from ..control import Emulator
from .gpu import encode
from .program import Program


def run(emulator: Emulator, program: Program) -> dict[str, np.ndarray]:
    arrays = {name: _aligned_copy(array) for name, array in program.arrays.items()}
    encoder = emulator.library.emu_encode_tensor_map
    maps = [encode(encoder, m, arrays[m.array].ctypes.data) for m in program.maps]
    size = {"threads": program.threads, "grid": program.grid, "cluster": program.cluster, "shared": program.shared}
    emulator.run_ptx(program.ptx, *maps, *arrays.values(), **size)
    return {name: arrays[name] for name in program.outputs}


def _aligned_copy(array: np.ndarray, alignment: int = 256) -> np.ndarray:
    memory = np.empty(array.nbytes + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
