"""How wgmma sums, against mmasim, a model that was derived from hardware independently (pip install mmasim)."""

import numpy as np
import pytest
import torch

from .golden import emulated, matrices

nv_ptx = pytest.importorskip("mmasim.nv_ptx", reason="mmasim is the oracle of matrix arithmetic: pip install mmasim")
TYPES = {matrices.BF16: torch.bfloat16, matrices.E4M3: torch.float8_e4m3fn}


@pytest.mark.parametrize("element", TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_wgmma_sums_as_mmasim(element, seed, emulator):
    _compare(emulator, element, *matrices.problems(element, seed))


def test_sums_that_are_subnormal(emulator):
    """Of products whose exponents are at most -134."""
    rng = np.random.RandomState(0)

    def numbers(shape: tuple[int, ...], least: int, most: int) -> np.ndarray:
        sign, exponent, fraction = (
            rng.randint(2, size=shape),
            rng.randint(least, most, shape),
            rng.randint(128, size=shape),
        )
        return (sign << 15 | exponent + 127 << 7 | fraction).astype(np.uint16)

    a, b = numbers((8, 64, 16), -72, -63), numbers((8, 8, 16), -78, -69)
    _compare(emulator, matrices.BF16, a, b, np.zeros((8, 64, 8), np.float32))


def _compare(emulator, element: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    sums = matrices.sum_matrices(emulated.run(emulator, matrices.arithmetic(element, a, b, c))["out"])
    product = nv_ptx.WGMMA("Hopper", f"m64n8k{matrices.DEPTH[element]}.f32.{element}.{element}")
    for problem, (left, right, old, got) in enumerate(zip(a, b, c, sums, strict=True)):
        want = product(_tensor(left, element), _tensor(right, element).T, torch.from_numpy(old)).numpy()
        same = got.view(np.uint32) == want.view(np.uint32)
        assert same.all(), f"problem {problem}: {got[~same][0]} for {want[~same][0]}, and {(~same).sum() - 1} more"


def _tensor(bits: np.ndarray, element: str) -> torch.Tensor:
    return torch.from_numpy(bits.view(f"i{bits.itemsize}" if element == matrices.BF16 else "u1")).view(TYPES[element])
