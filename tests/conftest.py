import os
import random
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))  # cases and oracle, also under other import modes
sys.path.insert(1, os.path.dirname(os.path.dirname(__file__)))  # tests.emulator, build_tools

import dsa_ext  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="tests that need a GPU fail instead of being skipped")
    parser.addoption(
        "--emulate",
        metavar="ARCH",
        help="run the kernels for sm_90a or sm_100a on the CPU (docs/emulator.md); only tests that take a device",
    )


def pytest_configure(config):
    # Processes of pytest-xdist share the cores: with as many threads each as there are, they wait for each other.
    if worker := getattr(config, "workerinput", None):
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // worker["workercount"]))
    config.emulator = None
    if arch := config.getoption("--emulate"):
        from tests.emulator import session

        try:
            config.emulator = session.start(arch)
        except ValueError as error:
            raise pytest.UsageError(f"--emulate={arch}: {error}") from None


def _why_no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "needs a GPU: torch.cuda.is_available() is False"
    major, minor = torch.cuda.get_device_capability()
    paths = dsa_ext.build_info()["paths"]["sparse_mla_fwd"]
    if not any(paths.get(f"sm_{major}0", {}).values()):
        built = ", ".join(dsa_ext.build_info()["archs"]) or "no CUDA architecture"
        return f"needs kernels for compute capability {major}.{minor}: this build has {built}"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and (reason := _why_no_gpu()):
        (pytest.fail if item.config.getoption("--require-gpu") else pytest.skip)(reason)


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forward_only():
    with torch.no_grad():
        yield


def pytest_generate_tests(metafunc):
    given = {name for mark in metafunc.definition.iter_markers("parametrize") for name in _names(mark.args[0])}
    if "device" not in metafunc.fixturenames or "device" in given:
        return
    if metafunc.config.emulator is None:
        metafunc.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
    else:
        from tests.emulator.control import RUNS

        metafunc.parametrize("device", RUNS, indirect=True, ids=lambda run: run.name)


def _names(argument: str | list[str]) -> list[str]:
    return argument.replace(",", " ").split() if isinstance(argument, str) else list(argument)


def pytest_collection_modifyitems(config, items):
    emulating = config.emulator is not None
    config.hook.pytest_deselected(items=[item for item in items if _is_emulated(item) != emulating])
    items[:] = [item for item in items if _is_emulated(item) == emulating]


def _is_emulated(item) -> bool:
    """Its device is one of the emulator's runs."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return not isinstance(parameters.get("device", ""), str)


@pytest.fixture
def multiprocessors(request):
    """multiprocessors(): how many the device has. multiprocessors(n): an emulated one has n until the test's end."""
    emulator = request.config.emulator

    def get_or_set(count: int | None = None) -> int | None:
        if count is None:
            return torch.cuda.get_device_properties("cuda").multi_processor_count
        if emulator is not None:
            emulator.set_multiprocessors(count)

    yield get_or_set
    if emulator is not None:
        emulator.set_multiprocessors(0)


@pytest.fixture
def device(request) -> str:
    """Where the ops run: "cpu", "cuda", or an emulated device, whose tensors are the CPU's."""
    if request.config.emulator is None:
        return request.param
    from tests.emulator.session import EmulatedDevice

    request.config.emulator.configure(request.param)
    return EmulatedDevice()


@pytest.fixture
def free_memory():
    """Before and after tests whose tensors fill much of the GPU."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()
