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
    a, b, c = matrices.problems(element, seed)
    sums = matrices.sum_matrices(emulated.run(emulator, matrices.arithmetic(element, a, b, c))["out"])
    product = nv_ptx.WGMMA("Hopper", f"m64n8k{matrices.DEPTH[element]}.f32.{element}.{element}")
    for problem, (left, right, old, got) in enumerate(zip(a, b, c, sums, strict=True)):
        want = product(_tensor(left, element), _tensor(right, element).T, torch.from_numpy(old)).numpy()
        same = got.view(np.uint32) == want.view(np.uint32)
        assert same.all(), f"problem {problem}: {got[~same][0]} for {want[~same][0]}, and {(~same).sum() - 1} more"


def _tensor(bits: np.ndarray, element: str) -> torch.Tensor:
    return torch.from_numpy(bits.view(f"i{bits.itemsize}" if element == matrices.BF16 else "u1")).view(TYPES[element])
