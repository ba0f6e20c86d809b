"""nvcc, and then: no kernel may use local memory that its unit does not declare.

    python nvcc_checked.py strict|tolerant SOURCE OBJECT COMMAND...

Runs COMMAND, which must pass -Xptxas=-v, and reads ptxas's report. A kernel with a stack frame or a register spill
fails the build, unless SOURCE says how many bytes a thread may use, and why, on a line of its own:

    // spills: 16 bytes, the epilogue's row pointers, outside the main loop

So does a kernel whose wgmma instructions ptxas had to serialise: right results at a fraction of the speed.
"tolerant" (a build with DSA_EXT_ALLOW_SPILLS=1) turns both into warnings, for compilers other than the one that the
kernels are tuned with.
The report of registers and shared memory is kept as OBJECT.ptxas.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

FUNCTION = re.compile(r"ptxas info\s*: (?:Compiling entry function '(\S+)' for '(\w+)'|Function properties for (\S+))")
LOCAL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
DECLARATION = re.compile(r"^\s*// spills: (\d+)\b", re.MULTILINE)
SERIALIZED = re.compile(r"wgmma.*serialized.*", re.IGNORECASE)
REPORT = re.compile(r"^ptxas info|^\s+\d+ bytes stack frame")


def declared_bytes(source: Path) -> int:
    return max((int(n) for n in DECLARATION.findall(source.read_text(errors="replace"))), default=0)


def faults(output: str, allowed: int) -> list[str]:
    found, function, arch = [], "?", "?"
    for line in output.splitlines():
        if match := FUNCTION.search(line):
            function, arch = match[1] or match[3], match[2] or arch
        elif match := LOCAL.search(line):
            frame, stores, loads = map(int, match.groups())
            if max(frame, stores, loads) > allowed:
                found.append(
                    f"kernel {_demangled(function)} for {arch} uses {frame} bytes of local memory a thread (spill "
                    f"stores {stores} bytes, spill loads {loads} bytes); its unit declares {allowed}"
                )
        elif match := SERIALIZED.search(line):
            found.append(match[0])
    return found


def _demangled(name: str) -> str:
    if not shutil.which("c++filt"):
        return name
    return subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip() or name


def main(tolerant: bool, source: Path, output: Path, command: list[str]) -> int:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = result.stdout.splitlines(keepends=True)
    sys.stdout.writelines(line for line in lines if not REPORT.match(line))
    if result.returncode != 0:
        return result.returncode
    output.with_suffix(output.suffix + ".ptxas").write_text("".join(line for line in lines if REPORT.match(line)))
    found = faults(result.stdout, declared_bytes(source))
    for fault in found:
        print(f"dsa_ext: {'warning' if tolerant else 'error'}: {source}: {fault}")
    if not found or tolerant:
        return 0
    print(
        "dsa_ext: registers or code must shrink, or the unit must declare it: see build_tools/nvcc_checked.py "
        "(DSA_EXT_ALLOW_SPILLS=1 builds nevertheless)"
    )
    output.unlink(missing_ok=True)  # or the next build would take it for finished
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] == "tolerant", Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
