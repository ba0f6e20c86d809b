import pytest

from . import build, control
from .golden import emulated


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
def run(emulator):
    """Runs a program on the emulator. (What a GPU gives is in the golden files: golden/run.sh.)"""
    return lambda program: emulated.run(emulator, program)
