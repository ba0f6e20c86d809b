"""Compiles the .cu units: one ninja run of our own, because torch's BuildExtension needs a CUDA build of torch for
them, gives every unit the same architectures, and follows no headers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import CSRC, ROOT, archs, flags
from .find_cutlass import Cutlass
from .find_toolkit import Toolkit

OUT = ROOT / "build/kernels"
GIB_PER_JOB = 3  # a unit of FlashMLA's size takes 2


def units(selected: list[str]) -> dict[Path, tuple[Path, list[str]]]:
    """object -> source and its architectures: under sm90/ or sm100/ that one alone, elsewhere all, in one object."""
    found = {}
    for source in sorted(CSRC.rglob("*.cu")):
        relative = source.relative_to(CSRC)
        own = set(archs.FOLDERS.values()) & set(relative.parts)
        names = [arch for arch in selected if not own or archs.FOLDERS[arch] in own]
        if names:
            found[OUT / (names[0] if own else "any") / relative.with_suffix(".o")] = source, names
    return found


def compile_all(selected: list[str], toolkit: Toolkit, cutlass: Cutlass) -> list[str]:
    """Brings every object up to date and returns them."""
    objects = units(selected)
    if not objects:
        return []
    OUT.mkdir(parents=True, exist_ok=True)
    _write_if_changed(OUT / "build.ninja", _ninja_file(objects, toolkit, cutlass))
    status = subprocess.call(["ninja", "-C", str(OUT), "-j", _jobs()], stdout=sys.stderr)
    if status != 0:
        sys.exit("dsa_ext: compiling the kernels failed; the compiler's messages are above.")
    return [str(o) for o in objects]


def _ninja_file(objects: dict[Path, tuple[Path, list[str]]], toolkit: Toolkit, cutlass: Cutlass) -> str:
    cache = [tool for tool in ("ccache", "sccache") if shutil.which(tool)][:1]
    nvcc = [*cache, str(toolkit.nvcc), *flags.KERNEL, f"-I{CSRC}", f"-isystem={cutlass.include}"]
    # In the command, so that a change of mode compiles again: a tolerated object must not pass for a checked one.
    mode = "tolerant" if os.environ.get("DSA_EXT_ALLOW_SPILLS") == "1" else "strict"
    checked = [sys.executable, str(ROOT / "build_tools/nvcc_checked.py"), mode, "$in", "$out"]
    lines = [
        "rule nvcc",
        f"  command = {' '.join(_escaped(w) for w in [*checked, *nvcc])} $gencode -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = nvcc $gencode $in",
    ]
    for target, (source, names) in objects.items():
        gencode = " ".join(flags.gencode(arch) for arch in names)
        lines += [f"build {_escaped(target)}: nvcc {_escaped(source)}", f"  gencode = {gencode}"]
    return "\n".join(lines) + "\n"


def _escaped(word: str | Path) -> str:
    word = str(word)
    return word if word in ("$in", "$out") else word.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _jobs() -> str:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return os.environ.get("MAX_JOBS") or str(max(1, min(len(os.sched_getaffinity(0)), gib // GIB_PER_JOB)))


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
