import os
import random
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))  # cases and oracle, also under other import modes

import dsa_ext  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="tests that need a GPU fail instead of being skipped")


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


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


@pytest.fixture
def free_memory():
    """Before and after tests whose tensors fill much of the GPU."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()
