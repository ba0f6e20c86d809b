"""PEP 517 and 660 backend: setuptools, with the torch of the environment that the package is installed into.

pip's build isolation hides that torch, yet runs the target environment's own interpreter, so its site-packages are
found through sysconfig. Where they hold no usable torch (uv's isolation, `python -m build`), torch becomes a build
requirement; the binary needs only LibTorch's stable ABI, so another torch at run time is fine. nvcc's own wheels
become one where the machine has no CUDA toolkit.
"""

import os
import re
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403

from build_tools import archs, find_toolkit
from build_tools.flags import TORCH_FLOOR


def _usable_torch(path: list[str] | None) -> bool:
    spec = PathFinder.find_spec("torch", path)
    if not spec or not spec.origin:
        return False
    version_file = Path(spec.origin).parent / "version.py"
    match = re.search(r"__version__ = '(\d+)\.(\d+)", version_file.read_text()) if version_file.exists() else None
    return bool(match) and (int(match[1]), int(match[2])) >= TORCH_FLOOR


def _use_outer_torch() -> bool:
    if _usable_torch(None):
        return True
    for directory in (
        os.environ.get("DSA_EXT_TORCH_SITE"),
        sysconfig.get_path("platlib"),
        sysconfig.get_path("purelib"),
    ):
        if directory and _usable_torch([directory]):
            sys.path.append(directory)  # last: the build environment's setuptools and ninja go first
            return True
    return False


_have_torch = _use_outer_torch()


def _requirements() -> list[str]:
    torch = [] if _have_torch else [f"torch>={TORCH_FLOOR[0]}.{TORCH_FLOOR[1]}"]
    return torch + (find_toolkit.WHEELS if archs.selected() and find_toolkit.find() is None else [])


# setuptools' own versions of these run setup.py, which needs torch before it could be asked for.
def get_requires_for_build_wheel(config_settings=None):
    return _requirements()


def get_requires_for_build_editable(config_settings=None):
    return _requirements()


def get_requires_for_build_sdist(config_settings=None):
    return [] if _have_torch else [f"torch>={TORCH_FLOOR[0]}.{TORCH_FLOOR[1]}"]
