"""What this installation can do."""

from typing import Any

import torch

from . import _C, _registration  # noqa: F401

# Heads for which implementations differ, at d_qk 576 and topk 2048.
HEADS = (8, 16, 32, 64, 128)


def build_info() -> dict[str, Any]:
    """How the package was built and which implementation each op takes.

    Returns a dict with
        version: of the package
        archs: the CUDA architectures that it has kernels for, such as ["100a", "90a"]; empty: a CPU-only build
        cuda, cutlass: versions that it was built with; None in a CPU-only build
        source_hash: {op: fingerprint of the sources that its kernels were built from}
        paths: {op: {"cpu": "reference", "sm_90": {heads: name of the implementation or None, ...}, ...}}, with one
            entry for each architecture built
    """
    info = _C.build_info()
    info["paths"] = {
        "sparse_mla_fwd": {"cpu": "reference"}
        | {f"sm_{arch[:-1]}": {h: path(int(arch[:-2]), h) for h in HEADS} for arch in info["archs"]}
    }
    return info


def path(compute_major: int, h_q: int, d_qk: int = 576, topk: int = 2048) -> str | None:
    """The implementation of sparse_mla_fwd for such a call on compute capability `compute_major`.x; None without."""
    try:
        return torch.ops.dsa_ext.sparse_mla_fwd_path(compute_major, h_q, d_qk, topk)
    except RuntimeError:
        return None
