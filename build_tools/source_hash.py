"""A fingerprint of the sources that an op's binary is made of.

setup.py builds it into the extension (build_info()["source_hash"]); benchmarks store it beside what they measured,
and a check run from a checkout lists the rows whose sources have changed since. Standard library only.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# op -> folders of csrc/ that are its own
OPS = {
    "sparse_mla_fwd": ("sparse_mla_prefill",),
    "sparse_mla_decode": ("sparse_mla_decode",),
    "kv_cache": ("kv_cache",),
    "topk_indices": ("topk",),
    "indexer_quant": ("indexer_quant",),
    "indexer_logits": ("indexer_logits",),
}
BUILD = ("build_tools/flags.py", "build_tools/find_cutlass.py")  # flags, pinned headers
UNITS = {".cpp", ".cu"}  # what is compiled; headers count where a unit includes them, however indirectly
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)
UNMEASURED = "sm100"  # folders of kernels of which no row has been measured: that they change makes no row stale


def source_hash(op: str, root: Path = ROOT) -> str:
    """Twelve hex digits of the sha256 over the paths and contents of the op's files."""
    digest = hashlib.sha256()
    for path in files(op, root):
        name, content = path.as_posix().encode(), (root / path).read_bytes()
        digest.update(b"%d %s %d\n" % (len(name), name, len(content)))
        digest.update(content)
    return digest.hexdigest()[:12]


def source_hashes(root: Path = ROOT) -> dict[str, str]:
    return {op: source_hash(op, root) for op in OPS}


def files(op: str, root: Path = ROOT) -> list[Path]:
    """Relative to the root. bindings.cpp, which names the ops of all, is nobody's."""
    csrc = root / "csrc"
    new = {p for folder in OPS[op] for p in (csrc / folder).rglob("*") if p.suffix in UNITS}
    found = set()
    while new:
        found |= {p for p in new if UNMEASURED not in p.relative_to(csrc).parts}
        new = {header for path in new & found for header in _included(path, csrc)} - found
    return sorted([*map(Path, BUILD), *(Path("csrc") / p.relative_to(csrc) for p in found)])


def _included(path: Path, csrc: Path) -> Iterator[Path]:
    """Files of csrc/ that `path` itself includes: beside it, or named from csrc/. Others are CUTLASS's or generated."""
    for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
        places = (Path(os.path.normpath(folder / name)) for folder in (path.parent, csrc))
        yield from [p for p in places if p.is_file()][:1]


if __name__ == "__main__":
    for op, value in source_hashes().items():
        print(f"{value}  {op}")
