"""Reads the machine code of the last build's kernels; no GPU needed.

    python tools/check_sass.py

Every kernel of a unit under sm90/ or sm100/ must use that architecture's matrix instructions: compiled for the plain
architecture, a guarded kernel is an empty body and nobody notices. Kernels that gather token rows on Blackwell must do
so by tensor map. No kernel may touch local memory, unless its unit declares it (build_tools/nvcc_checked.py).
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_tools import CSRC, kernels, nvcc_checked  # noqa: E402

MATRIX = {"sm90": "[HQI]GMMA", "sm100": "UTC[A-Z]*MMA"}
# What else a folder's kernels must have, with its modifiers.
BF16_PRODUCT = {"no bf16 product": r"UTCHMMA\b.*"}
REQUIRED = {
    "sparse_mla_prefill/sm100": BF16_PRODUCT | {"no gather": r"UTMALDG\..*GATHER4.*"},
    "sparse_mla_decode/sm100": BF16_PRODUCT,
}
LOCAL = ("LDL", "STL")
TMA = re.compile(r"UTMALDG|UTMASTG|UTMAREDG|UBLKCP")


def cuobjdump() -> str:
    wheel = Path(sysconfig.get_path("platlib")) / "nvidia/cu13/bin/cuobjdump"
    tool = str(wheel) if wheel.exists() else shutil.which("cuobjdump")
    return tool or sys.exit("check_sass: no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def built_units() -> list[tuple[Path, Path]]:
    """(object, source) of the last build."""
    plan = kernels.OUT / "build.ninja"
    if not plan.exists():
        sys.exit("check_sass: nothing is built here: pip install -e . first")
    pairs = re.findall(r"^build (\S+): nvcc (\S+)$", plan.read_text(), re.MULTILINE)
    return [(Path(target), Path(source)) for target, source in pairs]


def instructions(tool: str, target: Path) -> dict[str, Counter]:
    """How often each kernel uses each instruction, modifiers included."""
    if not target.exists():
        sys.exit(f"check_sass: {target} is not built: the last build failed")
    dump = subprocess.run([tool, "--dump-sass", str(target)], capture_output=True, text=True)
    if "does not contain device code" in dump.stderr + dump.stdout:
        return {}
    dump.check_returncode()
    found, current = defaultdict(Counter), Counter()
    for line in dump.stdout.splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            current = found[match[1]]
        elif match := re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line):
            current[match[1]] += 1
    return found


def _listed(counts: dict[str, int]) -> str:
    return " ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "-"


def main() -> int:
    tool, bad, seen = cuobjdump(), 0, 0
    for target, source in built_units():
        folders = set(source.relative_to(CSRC).parts)
        matrix = next((pattern for folder, pattern in MATRIX.items() if folder in folders), None)
        place = source.relative_to(CSRC).as_posix()
        required = next((found for folder, found in REQUIRED.items() if place.startswith(folder + "/")), {})
        declared = nvcc_checked.declared_bytes(source)
        for kernel, counts in instructions(tool, target).items():
            plain = Counter()
            for name, n in counts.items():
                plain[name.split(".")[0]] += n
            products = {name: n for name, n in plain.items() if matrix and re.fullmatch(matrix, name)}
            local = sum(plain[name] for name in LOCAL)
            tma = sum(n for name, n in plain.items() if TMA.fullmatch(name))
            faults = [
                fault for fault, pattern in required.items() if not any(re.fullmatch(pattern, name) for name in counts)
            ]
            if matrix and not products:
                faults.append("no matrix instruction")
            if local and not declared:
                faults.append("local memory")
            bad, seen = bad + bool(faults), seen + 1
            print(
                f"{'BAD' if faults else 'ok ':3} {target.relative_to(kernels.OUT)}  matrix {_listed(products)}  "
                f"tma {tma}  local {local}  instructions {counts.total()}  {kernel[:70]}"
                + (f"  <- {', '.join(faults)}" if faults else "")
            )
    print(f"check_sass: {seen} kernels, {bad} bad")
    return 1 if bad or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
