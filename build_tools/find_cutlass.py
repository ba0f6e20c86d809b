"""Where CUTLASS's headers are: found or fetched, never part of this repository."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from . import ROOT

OLDEST = (4, 2)
PACKAGE, PINNED = "nvidia-cutlass", "4.2.0.0"
SHA256 = "f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6"
THIRD_PARTY = ROOT / "third_party"
UNPACKED = THIRD_PARTY / f"{PACKAGE}-{PINNED}"
REMEDY = (
    f"Connect to a package index, or put a CUTLASS checkout (>= {OLDEST[0]}.{OLDEST[1]}) at third_party/cutlass, or "
    "set DSA_EXT_CUTLASS to one, or set DSA_EXT_ARCHS=none for a CPU-only install."
)


@dataclass(frozen=True)
class Cutlass:
    include: Path
    version: str


def find() -> Cutlass:
    """$DSA_EXT_CUTLASS, third_party/cutlass, an installed nvidia-cutlass, else the headers of the pinned wheel."""
    if named := os.environ.get("DSA_EXT_CUTLASS"):
        found = _read(Path(named))
        if found is None:
            sys.exit(f"dsa_ext: DSA_EXT_CUTLASS={named} holds no CUTLASS >= {OLDEST[0]}.{OLDEST[1]}. {REMEDY}")
        return found
    installed = importlib.util.find_spec("cutlass_library")
    homes = [THIRD_PARTY / "cutlass", UNPACKED]
    if installed and installed.origin:
        homes.append(Path(installed.origin).parent / "source")
    for home in homes:
        if found := _read(home):
            return found
    _fetch()
    return _read(UNPACKED) or sys.exit(f"dsa_ext: {UNPACKED} is incomplete; remove it and build again.")


def _read(home: Path) -> Cutlass | None:
    header = home / "include/cutlass/version.h"
    if not header.exists():
        return None
    numbers = dict(re.findall(r"#define CUTLASS_(MAJOR|MINOR|PATCH)\s+(\d+)", header.read_text()))
    version = tuple(int(numbers.get(part, 0)) for part in ("MAJOR", "MINOR", "PATCH"))
    if version[:2] < OLDEST:
        print(f"dsa_ext: passing over CUTLASS {'.'.join(map(str, version))} at {home}", file=sys.stderr)
        return None
    return Cutlass(home / "include", ".".join(map(str, version)))


def _fetch() -> None:
    """Unpacks the wheel's headers and license into third_party/, under a name that only a complete copy gets."""
    wheel = THIRD_PARTY / f"{PACKAGE.replace('-', '_')}-{PINNED}-py3-none-any.whl"
    if not wheel.exists():
        # Without its dependencies: 280 MB that headers do not need.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        result = subprocess.run(
            [*command, "--dest", str(THIRD_PARTY), f"{PACKAGE}=={PINNED}"], capture_output=True, text=True
        )
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            sys.exit(f"dsa_ext: CUTLASS is out of reach ({lines[-1]}). {REMEDY}")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"dsa_ext: {wheel} is not the pinned wheel of {PACKAGE} {PINNED}; remove it and build again.")
    prefix = "cutlass_library/source/"
    partial = THIRD_PARTY / f"{UNPACKED.name}.partial{os.getpid()}"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix + "include/") or name.endswith("LICENSE.txt"):
                target = partial / (name[len(prefix) :] if name.startswith(prefix) else Path(name).name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    shutil.rmtree(UNPACKED, ignore_errors=True)
    partial.rename(UNPACKED)
    wheel.unlink()
