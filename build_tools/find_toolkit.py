"""Where the CUDA toolkit is. Imported by the PEP 517 backend too: standard library only."""

import os
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# The first toolkit that knows sm_100a. Measured and tested with 13.0; 12.8 and 12.9 stay allowed because what they
# build also runs under a driver of the 12 series.
OLDEST = (12, 8)

# nvcc as wheels, for machines without a toolkit.
WHEELS = [
    f"{name}==13.0.*"
    for name in ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
]
REMEDY = (
    f"Set CUDA_HOME to a CUDA toolkit >= {OLDEST[0]}.{OLDEST[1]}, or run `pip install "
    + " ".join(f"'{wheel}'" for wheel in WHEELS)
    + "`, or set DSA_EXT_ARCHS=none for a CPU-only install."
)


@dataclass(frozen=True)
class Toolkit:
    home: Path
    version: tuple[int, int]

    @property
    def nvcc(self) -> Path:
        return self.home / "bin/nvcc"

    @property
    def include(self) -> Path:
        return self.home / "include"

    @property
    def library_dir(self) -> Path:
        """The wheels say lib, installers lib64."""
        return next((d for d in (self.home / "lib64", self.home / "lib") if (d / "libcudart_static.a").exists()), None)


def find() -> Toolkit | None:
    """The first that is complete and new enough; None where there is none.

    CUDA_HOME and CUDA_PATH are orders: what they name is taken, or the build ends. Then come the nvcc of PATH,
    /usr/local/cuda and nvcc's wheels; of these, one that is too old is passed over, for the wheels can replace it.
    DSA_EXT_CUDA_WHEELS=1 asks for the wheels alone (the same compiler whatever the machine holds).
    """
    wheels_only = os.environ.get("DSA_EXT_CUDA_WHEELS") == "1"
    for variable in () if wheels_only else ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            toolkit = _read(Path(home))
            if toolkit is None:
                sys.exit(f"dsa_ext: {variable}={home} holds no complete CUDA toolkit. {REMEDY}")
            if toolkit.version < OLDEST:
                found = ".".join(map(str, toolkit.version))
                sys.exit(f"dsa_ext: the CUDA toolkit {found} that {variable}={home} names is too old. {REMEDY}")
            return toolkit
    homes = [Path(d) / "nvidia/cu13" for d in (*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib"))]
    if not wheels_only:
        nvcc = shutil.which("nvcc")
        homes[:0] = [Path(nvcc).resolve().parents[1]] if nvcc else []
        homes.insert(1 if nvcc else 0, Path("/usr/local/cuda"))
    for home in homes:
        toolkit = _read(home)
        if toolkit and toolkit.version >= OLDEST:
            return toolkit
    return None


def _read(home: Path) -> Toolkit | None:
    """None unless all parts are there: /usr/local/bin/nvcc may be a wrapper, and CUDA builds of torch install headers
    and runtime, but no compiler, as nvidia/cu13."""
    header = home / "include/cuda_runtime_api.h"
    if not header.exists() or not (home / "bin/nvcc").exists() or not (home / "nvvm/bin/cicc").exists():
        return None
    match = re.search(r"#define\s+CUDART_VERSION\s+(\d+)", header.read_text(errors="replace"))
    number = int(match[1]) if match else 0
    toolkit = Toolkit(home, (number // 1000, number % 1000 // 10))
    return toolkit if toolkit.library_dir else None
