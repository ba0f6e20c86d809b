import pytest

from . import build, control
from .golden import emulated, gpu


@pytest.fixture
def emulator(request, device):
    """The emulator that the session runs on; without one (plain pytest) the emulator alone, where it has been built."""
    if request.config.emulator is not None:
        return request.config.emulator
    if device != "cpu":
        pytest.skip("the emulator needs no GPU")
    if not build.HOST_LIBRARY.exists():
        pytest.skip("the emulator is not built: python -m tests.emulator.build, or pytest --emulate=sm_90a")
    alone = control.emulator_alone()
    alone.configure(control.RUNS[0])
    return alone


@pytest.fixture
def run(request, device):
    """Runs a program, on the emulator or, where the device is cuda, on the GPU."""
    if device == "cuda":
        return gpu.run
    emulator = request.getfixturevalue("emulator")
    return lambda program: emulated.run(emulator, program)
