"""Which architectures this build is for."""

import ctypes
import os
import re
import sys

# Selectable names and the folder whose units each compiles. 100f is 100a's family form: it also runs on compute
# capability 10.3, so a build holds one of the two.
FOLDERS = {"90a": "sm90", "100a": "sm100", "100f": "sm100"}
DEFAULT = ("90a", "100a")


def selected() -> list[str]:
    """Names from FOLDERS, sorted; empty for a CPU-only build."""
    if text := os.environ.get("DSA_EXT_ARCHS", "").strip():
        names = _names(text)
        if names == {"none"}:
            return []
        return _checked(names, f"DSA_EXT_ARCHS={text!r}")
    if text := os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip():
        # Often set machine-wide and for other packages: what no kernel here is for is passed over.
        return _checked(_names(text) & set(FOLDERS), f"TORCH_CUDA_ARCH_LIST={text!r}")
    return _of_visible_gpus() or sorted(DEFAULT)


def _names(text: str) -> set[str]:
    names = {re.sub(r"\+ptx$|\.", "", word) for word in re.split(r"[;,\s]+", text.lower()) if word}
    # Plain 9.0 and 10.0 lack the tensor-core instructions that every kernel here is made of.
    return {{"90": "90a", "100": "100a"}.get(name, name) for name in names}


def _checked(names: set[str], origin: str) -> list[str]:
    if not names or names - set(FOLDERS) or {"100a", "100f"} <= names:
        sys.exit(
            f"dsa_ext: {origin}: expected names among {', '.join(FOLDERS)} joined by ';' (of 100a and 100f one at "
            "most), or DSA_EXT_ARCHS=none for a CPU-only install."
        )
    return sorted(names)


def _of_visible_gpus() -> list[str]:
    """Asks the driver itself: the torch of the build may be a CPU one, and nvidia-smi ignores CUDA_VISIBLE_DEVICES."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = set()
    for device in range(count.value):
        major, minor = ctypes.c_int(0), ctypes.c_int(0)
        compute_capability_major, compute_capability_minor = 75, 76  # CU_DEVICE_ATTRIBUTE_*
        driver.cuDeviceGetAttribute(ctypes.byref(major), compute_capability_major, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), compute_capability_minor, device)
        found.add((major.value, minor.value))
    if any(major == 10 and minor > 0 for major, minor in found):
        blackwell = {"100f"}
    else:
        blackwell = {"100a"} if (10, 0) in found else set()
    return sorted(blackwell | ({"90a"} if (9, 0) in found else set()))
