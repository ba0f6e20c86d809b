"""What this installation can do."""

from typing import Any

import torch

from . import _C, _registration  # noqa: F401

# Heads for which implementations differ, at d_qk 576 and topk 2048.
HEADS = (8, 16, 32, 64, 128)
CACHE_FORMATS = ("v32", "v4", "bf16")
INDEXER_HEADS = (8, 16, 32, 64)


def build_info() -> dict[str, Any]:
    """How the package was built and which implementation each op takes.

    Returns a dict with
        version: of the package
        archs: the CUDA architectures that it has kernels for, such as ["100a", "90a"]; empty: a CPU-only build
        cuda, cutlass: versions that it was built with; None in a CPU-only build
        source_hash: {op: fingerprint of the sources that its kernels were built from}
        paths: {op: {"cpu": "reference", "sm_90": {heads: name of the implementation or None, ...}, ...}}, with one
            entry for each architecture built; for sparse_mla_decode {format of the cache: {heads: ...}, ...}; for the
            indexer's logits at d 128, and pages of 64 keys
    """
    info = _C.build_info()
    archs = [(f"sm_{arch[:-1]}", int(arch[:-2])) for arch in info["archs"]]
    info["paths"] = {
        "sparse_mla_fwd": {"cpu": "reference"} | {arch: {h: path(major, h) for h in HEADS} for arch, major in archs},
        "sparse_mla_decode": {"cpu": "reference"}
        | {arch: {f: {h: decode_path(major, h, f) for h in HEADS} for f in CACHE_FORMATS} for arch, major in archs},
        "indexer_logits": {"cpu": "reference"}
        | {arch: {h: logits_path(major, h) for h in INDEXER_HEADS} for arch, major in archs},
        "paged_indexer_logits": {"cpu": "reference"}
        | {arch: {h: logits_path(major, h, page_size=64) for h in INDEXER_HEADS} for arch, major in archs},
    }
    return info


def path(compute_major: int, h_q: int, d_qk: int = 576, topk: int = 2048) -> str | None:
    """The implementation of sparse_mla_fwd for such a call on compute capability `compute_major`.x; None without."""
    try:
        return torch.ops.dsa_ext.sparse_mla_fwd_path(compute_major, h_q, d_qk, topk)
    except RuntimeError:
        return None


def decode_path(compute_major: int, h_q: int, format: str = "v32") -> str | None:
    """As path, for sparse_mla_decode on a cache of that format: one of CACHE_FORMATS."""
    try:
        return torch.ops.dsa_ext.sparse_mla_decode_path(compute_major, h_q, format)
    except RuntimeError:
        return None


def logits_path(compute_major: int, heads: int, dim: int = 128, page_size: int = 0) -> str | None:
    """As path, for indexer_logits or, with a page_size, paged_indexer_logits."""
    try:
        return torch.ops.dsa_ext.indexer_logits_path(compute_major, heads, dim, page_size)
    except RuntimeError:
        return None
