"""A fingerprint of the sources that an op's binary is made of.

setup.py builds it into the extension (build_info()["source_hash"]); benchmarks store it beside what they measured,
and a check run from a checkout lists the rows whose sources have changed since. Standard library only.
"""

import hashlib
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
SHARED = ("csrc/common", "csrc/arch", "csrc/attention", "csrc/bindings.cpp")
BUILD = ("build_tools/flags.py", "build_tools/find_cutlass.py")  # flags, pinned headers
SUFFIXES = {".cpp", ".cu", ".cuh", ".h"}
UNMEASURED = "sm100"  # folders of kernels of which no row has been measured: that they change makes no row stale


def source_hash(op: str, root: Path = ROOT) -> str:
    """Twelve hex digits of the sha256 over the paths and contents of the op's files."""
    digest = hashlib.sha256()
    for path in _files(op, root):
        name, content = path.relative_to(root).as_posix().encode(), path.read_bytes()
        digest.update(b"%d %s %d\n" % (len(name), name, len(content)))
        digest.update(content)
    return digest.hexdigest()[:12]


def source_hashes(root: Path = ROOT) -> dict[str, str]:
    return {op: source_hash(op, root) for op in OPS}


def _files(op: str, root: Path) -> list[Path]:
    files = [root / name for name in BUILD]
    for name in (*SHARED, *(f"csrc/{folder}" for folder in OPS[op])):
        path = root / name
        files += [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in SUFFIXES]
    return sorted(p for p in files if UNMEASURED not in p.relative_to(root).parts)


if __name__ == "__main__":
    for op, value in source_hashes().items():
        print(f"{value}  {op}")
