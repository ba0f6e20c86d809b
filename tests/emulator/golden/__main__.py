"""Writes what a GPU computes:

    python -m tests.emulator.golden --write FOLDER [--instructions]

    instructions.npz   the outputs of the programs of the files beside this one
    ops.npz            the outputs of the calls in ops.py; needs a build of dsa_ext (without it: --instructions)
    functions.xz       ex2 and lg2 of many numbers, from which the emulator's tables are made; not in the repository

Each in a process that a failure ends: what fails is named, the rest is written, and the exit status is 1.
On an H100 or H200, with its driver, NumPy and, for the ops, torch.
"""

import argparse
import lzma
import sys
import time
from pathlib import Path

import numpy as np

from . import arithmetic, programs
from .worker import Arrays, Worker


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.golden")
    parser.add_argument("--write", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--instructions", action="store_true", help="no ops: dsa_ext need not be built")
    arguments = parser.parse_args()
    arguments.write.mkdir(parents=True, exist_ok=True)
    writer = Writer(Worker())
    writer.write_instructions(arguments.write / "instructions.npz")
    if not arguments.instructions:
        writer.write_ops(arguments.write / "ops.npz")
    writer.write_functions(arguments.write / "functions.xz")
    if writer.failed:
        sys.exit(f"failed: {', '.join(writer.failed)}")


class Writer:
    """Writes what succeeds and remembers the names of what fails."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.failed: list[str] = []

    def results(self, name: str, module: str, function: str, *arguments: object) -> Arrays:
        begin = time.monotonic()
        try:
            arrays = self.worker.call(module, function, *arguments)
        except RuntimeError as error:
            print(f"{name}: FAILED: {error}", flush=True)
            self.failed.append(name)
            return {}
        print(f"{name}: {time.monotonic() - begin:.2f} s", flush=True)
        return {f"{name}.{key}": array for key, array in arrays.items()}

    def write_instructions(self, path: Path) -> None:
        arrays = self.results("device", "gpu", "device")
        for program in programs():
            results = self.results(program.name, "gpu", "run", program)
            arrays |= {name: narrowed(array) for name, array in results.items()}
        save(path, arrays)

    def write_ops(self, path: Path) -> None:
        from . import ops

        arrays = self.results("device", "gpu", "device") | self.results("source_hash", "ops", "sources")
        for name in ops.CASES:
            arrays |= self.results(name, "ops", "call", name, "cuda")
        save(path, arrays)

    def write_functions(self, path: Path) -> None:
        """Results less the numbers nearest to the exact values, in units of the last place: of ex2 for -k 2^-23 with
        all k < 2^23, as int8; of lg2 for (1 + k 2^-23) 2^e with every 16th k or so and e = -1, 0, 20, as int16."""
        k, j = np.arange(2**23), np.arange(2**19)
        some = 16 * j + 7 * j % 16
        arguments = [
            ("ex2", -k * 2.0**-23, np.int8),
            *(("lg2", (1 + some * 2.0**-23) * 2.0**e, np.int16) for e in (-1, 0, 20)),
        ]
        with lzma.open(path, "wb", preset=3) as file:
            for name, x, kind in arguments:
                program = arithmetic.function(f"{name}.approx.ftz.f32", x.astype(np.float32))
                results = self.results(name, "gpu", "run", program)
                if not results:
                    continue
                exact = (np.exp2(x) if name == "ex2" else np.log2(x)).astype(np.float32)
                difference = results[f"{name}.out"].view(np.int32).astype(np.int64) - exact.view(np.int32)
                file.write(np.clip(difference, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind).tobytes())
                most, share = np.abs(difference).max(), (difference != 0).mean()
                print(f"{name}: {most} units at most, {share:.3f} differ", flush=True)
        print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


def save(path: Path, arrays: Arrays) -> None:
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size} bytes", flush=True)


def narrowed(array: np.ndarray) -> np.ndarray:
    """64-bit results in 32 bits where they all fit."""
    return array.astype(np.uint32) if array.dtype == np.uint64 and (array < 2**32).all() else array


main()
