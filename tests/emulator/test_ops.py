"""The kernels' results against a GPU's bits: the calls of golden/ops.py."""

import numpy as np
import pytest

from .golden import OPS, load, ops


@pytest.mark.parametrize("name", ops.CASES)
def test_bits_of_the_gpu(name, device, request):
    if device == "cpu" and request.config.emulator is None:
        pytest.skip("the reference's sums are not the kernels': pytest --emulate=sm_90a")
    for key, got in ops.call(name, str(device)).items():
        want = load(OPS)[f"{name}.{key}"]
        assert got.dtype == want.dtype and got.shape == want.shape
        if not np.array_equal(got, want):
            places = np.argwhere(got != want)
            first = tuple(places[0])
            pytest.fail(f"{key}: {len(places)} of {got.size} differ; at {first} {got[first]:#x} for {want[first]:#x}")
