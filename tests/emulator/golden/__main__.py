"""Writes what a GPU computes:

    python -m tests.emulator.golden --write FOLDER [--instructions]

    instructions.npz   the outputs of the programs of the files beside this one
    ops.npz            the outputs of the calls in ops.py; needs a build of dsa_ext (without it: --instructions)
    functions.xz       ex2 and lg2 of many numbers, from which the emulator's tables are made; not in the repository

On an H100 or H200, with its driver, NumPy and, for the ops, torch.
"""

import argparse
import lzma
import sys
import time
from pathlib import Path

import numpy as np

from . import arithmetic, programs
from .gpu import Gpu


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.golden")
    parser.add_argument("--write", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--instructions", action="store_true", help="no ops: dsa_ext need not be built")
    arguments = parser.parse_args()
    arguments.write.mkdir(parents=True, exist_ok=True)
    gpu = Gpu()
    print(f"on one {gpu.name}", flush=True)
    failed = write_instructions(gpu, arguments.write / "instructions.npz")
    write_functions(gpu, arguments.write / "functions.xz")
    if not arguments.instructions:
        write_ops(arguments.write / "ops.npz")
    sys.exit(failed)


def write_instructions(gpu: Gpu, path: Path) -> bool:
    results, failed = {"device": np.array(gpu.name)}, False
    for program in programs():
        try:
            outputs = gpu.run(program)
        except RuntimeError as error:
            print(error, flush=True)
            failed = True
            gpu.recover()
            continue
        results |= {f"{program.name}.{name}": narrowed(array) for name, array in outputs.items()}
    np.savez_compressed(path, **results)
    print(f"{path}: {len(results)} arrays, {path.stat().st_size} bytes", flush=True)
    return failed


def narrowed(array: np.ndarray) -> np.ndarray:
    """64-bit results in 32 bits where they all fit."""
    return array.astype(np.uint32) if array.dtype == np.uint64 and (array < 2**32).all() else array


def write_functions(gpu: Gpu, path: Path) -> None:
    """Results less the numbers nearest to the exact values, in units of the last place: of ex2 for -k 2^-23 with all k
    < 2^23, as int8; of lg2 for (1 + k 2^-23) 2^e with every 16th k or so and e = -1, 0 and 20, as int16."""
    k, j = np.arange(2**23), np.arange(2**19)
    some = 16 * j + 7 * j % 16
    arguments = [
        ("ex2", -k * 2.0**-23, np.int8),
        *(("lg2", (1 + some * 2.0**-23) * 2.0**e, np.int16) for e in (-1, 0, 20)),
    ]
    with lzma.open(path, "wb", preset=3) as file:
        for name, x, kind in arguments:
            results = gpu.run(arithmetic.function(f"{name}.approx.ftz.f32", x.astype(np.float32)))["out"]
            exact = (np.exp2(x) if name == "ex2" else np.log2(x)).astype(np.float32)
            difference = results.view(np.int32).astype(np.int64) - exact.view(np.int32)
            file.write(np.clip(difference, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind).tobytes())
            print(
                f"{name}: {np.abs(difference).max()} units at most, {(difference != 0).mean():.3f} differ", flush=True
            )
    print(f"{path}: {path.stat().st_size} bytes", flush=True)


def write_ops(path: Path) -> None:
    from . import ops

    results = {}
    for name, call in ops.CASES.items():
        begin = time.monotonic()
        results |= {f"{name}.{key}": ops.bits(value) for key, value in call("cuda").items()}
        print(f"{name}: {time.monotonic() - begin:.2f} s", flush=True)
    np.savez_compressed(path, **results)
    print(f"{path}: {path.stat().st_size} bytes", flush=True)


main()
