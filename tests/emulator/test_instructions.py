"""Every instruction family against a GPU's bits: the programs of golden/, on every schedule."""

import numpy as np
import pytest

from .golden import INSTRUCTIONS, load, programs
from .golden.program import Program

PROGRAMS = {program.name: program for program in programs()}


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "loose"])
def test_bits_of_the_gpu(name, run):
    program = PROGRAMS[name]
    for output, got in run(program).items():
        want = load(INSTRUCTIONS)[f"{name}.{output}"].astype(got.dtype)
        same = same_bits(got, want) | _both_nan(program, output, got, want)
        assert same.all(), "\n".join(_differences(program, output, got, want, same))


def same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kind = f"u{a.itemsize}"
    return a.view(kind) == b.view(kind)


def _both_nan(program: Program, output: str, got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Which NaN the arithmetic instructions give is not emulated, except where they round to a narrower format."""
    if got.dtype == np.float32:
        return np.isnan(got) & np.isnan(want)
    rows = [output == "out" and text.split()[0].endswith("f32") and "D4" in text for text in program.rows]
    if not any(rows):
        return np.zeros(got.shape, bool)
    nan = [np.isnan(x.astype(np.uint32).view(np.float32)) for x in (got, want)]
    return np.array(rows)[:, None] & nan[0] & nan[1]


def _differences(program: Program, output: str, got: np.ndarray, want: np.ndarray, same: np.ndarray) -> list[str]:
    lines = [f"{(~same).sum()} of {same.size} differ"]
    for place in map(tuple, np.argwhere(~same)[:8]):
        what = program.rows[place[0]] if len(program.rows) == len(got) else "; ".join(program.rows)
        inputs = [f"{k} {a[place[-1]]:#x}" for k, a in program.arrays.items() if k in "abc" and a.dtype == np.uint64]
        lines.append(f"{output}{list(map(int, place))}: {got[place]} for {want[place]} ({what}) {' '.join(inputs)}")
    return lines


# Units in the last place by which the emulator, which is nearer to the exact value, may differ from the GPU.
LOOSE = {"rcp": 1, "sqrt": 2, "rsqrt": 2, "div": 2}
TANH = 2.0**-10  # relative


def test_approximations_in_their_bounds(run):
    program = PROGRAMS["loose"]
    got, want = (x.astype(np.uint32).view(np.float32) for x in (run(program)["out"], load(INSTRUCTIONS)["loose.out"]))
    for text, x, y in zip(program.rows, got, want, strict=True):
        name = text.split(".")[0]
        assert (np.isnan(x) == np.isnan(y)).all() and (np.signbit(x) == np.signbit(y))[~np.isnan(x)].all(), text
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        if name == "tanh":
            assert (np.abs(x - y) <= TANH * np.abs(y)).all(), text
        else:
            assert np.abs(x.view(np.int32).astype(int) - y.view(np.int32)).max() <= LOOSE[name], text
