"""Builds what runs kernels without a GPU, under build/emulator:

    python -m tests.emulator.build [90a] [100a]

    host/libemulator.so   the emulator alone, for its own tests (needs a C++ compiler and CUDA's headers)
    <arch>/_C_emu.so      the emulator, the project's .cu units as PTX, and the op.cpp files for CPU tensors

The units and the op.cpp files are the sources that ship, with the flags that ship; ptxas is not run. Only what a change
touches is compiled again. MAX_JOBS limits how many compilers run at once; DSA_EMULATOR_OPS=sparse_mla_prefill,... takes
those folders of csrc/ only, while another is being written.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from build_tools import CSRC, ROOT, archs, find_cutlass, find_toolkit, flags, kernels

HERE = Path(__file__).resolve().parent
OUT = ROOT / "build/emulator"
HOST_LIBRARY = OUT / "host/libemulator.so"
TORCH_ONLY = {"torch_allocator.cpp"}
# Compiled once for all units: the standard headers behind it take most of a unit's time.
PRECOMPILED = OUT / "host/machine.h.gch"
EMULATOR = ["-O3", "-march=native", "-std=c++20", "-fPIC", "-fwrapv", "-fno-strict-aliasing", "-fvisibility=hidden"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
GIB_PER_JOB = 2
PTX_FLAGS = [flag for flag in flags.KERNEL if flag != "-Xptxas=-v"] + ["--no-compress"]


def library(arch: str) -> Path:
    return OUT / arch / "_C_emu.so"


def ops() -> list[Path]:
    """Folders of csrc/ that are complete ops."""
    wanted = os.environ.get("DSA_EMULATOR_OPS", "").split(",")
    return sorted(p.parent for p in CSRC.glob("*/op.cpp") if wanted == [""] or p.parent.name in wanted)


def units(arch: str) -> dict[Path, Path]:
    """object -> .cu source, of every complete op."""
    found = {}
    for target, (source, _) in kernels.units([arch]).items():
        if CSRC / source.relative_to(CSRC).parts[0] in ops():
            found[OUT / arch / target.relative_to(kernels.OUT)] = source
    return found


def build(selected: list[str]) -> None:
    """Brings the emulator, and the extension for each architecture, up to date."""
    toolkit = find_toolkit.find() or sys.exit(f"emulator: no CUDA toolkit was found. {find_toolkit.REMEDY}")
    wanted = {arch: units(arch) for arch in selected}
    OUT.mkdir(parents=True, exist_ok=True)
    path, text = OUT / "build.ninja", _ninja_file(wanted, toolkit)
    with (OUT / "lock").open("w") as lock:  # of several pytest processes one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        # pip's ninja may be outside PATH.
        ninja = shutil.which("ninja") or str(Path(sys.executable).with_name("ninja"))
        if subprocess.call([ninja, "-C", str(OUT), "-j", _jobs()], stdout=sys.stderr) != 0:
            sys.exit("emulator: the build failed; the compiler's messages are above.")


def _jobs() -> str:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return os.environ.get("MAX_JOBS") or str(max(1, min(len(os.sched_getaffinity(0)), gib // GIB_PER_JOB)))


def _torch() -> Path:
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def _ninja_file(wanted: dict[str, dict[Path, Path]], toolkit: find_toolkit.Toolkit) -> str:
    torch = _torch()
    torch_includes = [f"-isystem{torch / 'include'}", f"-isystem{torch / 'include/torch/csrc/api/include'}"]
    emulator = ["c++", *EMULATOR, f"-I{HERE / 'src'}", f"-isystem{toolkit.include}"]
    header = [*emulator, "-w", "-x", "c++-header"]
    unit = [emulator[0], f"-I{PRECOMPILED.parent}", "-include", PRECOMPILED.stem, *emulator[1:], *WARNINGS]
    lines = [
        _rule("header", [*header, "-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]),
        f"build {_escaped(PRECOMPILED)}: header {_escaped(HERE / 'src' / PRECOMPILED.stem)}",
        _rule("emulator", [*unit, *torch_includes, "-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]),
        _rule("link", ["c++", "-shared", "-Wl,--exclude-libs,ALL", "$in", "-o", "$out", "$libraries"]),
    ]
    objects = []
    for source in sorted((HERE / "src").glob("*.cpp")):
        target = OUT / "host" / source.with_suffix(".o").name
        objects.append(target)
        lines.append(f"build {_escaped(target)}: emulator {_escaped(source)} | {_escaped(PRECOMPILED)}")
    alone = [o for o in objects if f"{o.stem}.cpp" not in TORCH_ONLY]
    lines.append(f"build {_escaped(HOST_LIBRARY)}: link {_joined(alone)}")
    if any(wanted.values()):
        cutlass = find_cutlass.find()
        include = [f"-I{CSRC}", f"-isystem={cutlass.include}"]
        nvcc = [toolkit.nvcc, *PTX_FLAGS, *include, "$gencode", "-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]
        lines.append(_rule("nvcc", nvcc))
        # The folder shim/ stands in front of csrc/ and of torch's headers: it makes the CPU the ops' device.
        host = ["c++", *flags.HOST, "-fPIC", f"-DTORCH_TARGET_VERSION={flags.TORCH_TARGET_VERSION}", "$defines"]
        host += [f"-I{HERE / 'shim'}", f"-I{CSRC}", f"-isystem{toolkit.include}", *torch_includes]
        lines.append(_rule("op", [*host, "-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]))
    for arch, sources in wanted.items():
        if not sources:
            continue
        linked = list(objects)
        for target, source in sources.items():
            linked.append(target)
            gencode = f"-gencode=arch=compute_{arch},code=compute_{arch}"
            lines += [f"build {_escaped(target)}: nvcc {_escaped(source)}", f"  gencode = {gencode}"]
        for op in ops():
            target = OUT / arch / op.name / "op.o"
            linked.append(target)
            define = f"-DDSA_{archs.FOLDERS[arch].upper()}"
            lines += [f"build {_escaped(target)}: op {_escaped(op / 'op.cpp')}", f"  defines = {define}"]
        libraries = f"-L{torch / 'lib'} -ltorch_cpu -lc10"
        lines += [f"build {_escaped(library(arch))}: link {_joined(linked)}", f"  libraries = {libraries}"]
    return "\n".join(lines) + "\n"


def _rule(name: str, command: list[str | Path]) -> str:
    lines = [f"rule {name}", f"  command = {' '.join(map(_escaped, command))}", f"  description = {name} $in"]
    if "$out.d" in command:
        lines += ["  depfile = $out.d", "  deps = gcc"]
    if name == "link":
        lines[-1] = "  description = link $out"
    return "\n".join(lines)


def _joined(paths: list[Path]) -> str:
    return " ".join(map(_escaped, paths))


def _escaped(word: str | Path) -> str:
    word = str(word)
    return word if word.startswith("$") else word.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


if __name__ == "__main__":
    build(sys.argv[1:] or ["90a", "100a"])
