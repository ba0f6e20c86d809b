"""What is stored beside measurements: where, when, and of which sources they were made."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from inputs import ROOT

import dsa_ext

RESULTS = ROOT / "benchmarks/results"


def _output_of(*command: str) -> str | None:
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def commit() -> str:
    """$DSA_EXT_COMMIT, for copies of the checkout without git; else git's, with a mark if tracked files differ."""
    if given := os.environ.get("DSA_EXT_COMMIT"):
        return given
    head = _output_of("git", "rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+changes" if _output_of("git", "status", "--porcelain", "--untracked-files=no") else "")


def _gpu() -> dict[str, Any]:
    """Name, driver and power limit (the first GPU's: those of one machine are alike)."""
    reply = _output_of("nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader") or ""
    values = reply.partition("\n")[0].split(", ")
    driver, power = values if len(values) == 2 else (None, None)
    return {"gpu": torch.cuda.get_device_name(), "driver": driver, "power_limit": power}


def of_run(on_gpu: bool) -> dict[str, Any]:
    info = dsa_ext.build_info()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "source_hash": info["source_hash"],
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        **(_gpu() if on_gpu else {"gpu": None, "driver": None, "power_limit": None}),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "dsa_ext": info["version"],
        "archs": info["archs"],
        "built_with_cuda": info["cuda"],
        "cutlass": info["cutlass"],
    }


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
