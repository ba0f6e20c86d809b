"""CPU and fake implementations of the ops. bindings.cpp has their schemas, each op.cpp its CUDA implementation."""

import torch
from torch import Tensor

from . import _C, _checks, reference


@torch.library.impl("dsa_ext::sparse_mla_fwd", "cpu")
def _sparse_mla_fwd_cpu(
    q: Tensor,
    kv: Tensor,
    idx: Tensor,
    scale: float,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.sparse_mla_fwd(q, kv, idx, scale, d_v=d_v, attn_sink=attn_sink, topk_length=topk_length)


@torch.library.impl("dsa_ext::sparse_mla_fwd_out", "cpu")
def _sparse_mla_fwd_out_cpu(
    q: Tensor,
    kv: Tensor,
    idx: Tensor,
    scale: float,
    d_v: int,
    attn_sink: Tensor | None,
    topk_length: Tensor | None,
    out: Tensor,
    max_logits: Tensor,
    lse: Tensor,
) -> None:
    results = reference.sparse_mla_fwd(q, kv, idx, scale, d_v=d_v, attn_sink=attn_sink, topk_length=topk_length)
    for buffer, result in zip((out, max_logits, lse), results, strict=True):
        buffer.copy_(result)


@torch.library.register_fake("dsa_ext::sparse_mla_fwd")
def _sparse_mla_fwd_fake(q, kv, idx, scale, d_v=512, attn_sink=None, topk_length=None):
    heads, dtype = q.shape[:-1], _checks.stats_dtype(q)
    return q.new_empty((*heads, d_v)), q.new_empty(heads, dtype=dtype), q.new_empty(heads, dtype=dtype)


@torch.library.register_fake("dsa_ext::sparse_mla_fwd_out")
def _sparse_mla_fwd_out_fake(q, kv, idx, scale, d_v, attn_sink, topk_length, out, max_logits, lse):
    return None


def why_no_kernel(op: str, error: RuntimeError, device: torch.device, name: str = "q") -> str | None:
    """What to tell the caller if an op's error says that no kernel takes the call; None for any other error. `name`:
    of the argument that is on `device`."""
    if device.type == "cuda" and not _C.build_info()["archs"]:
        return (
            f"{op}: {name} is on {device}, expected the CPU: this build has no CUDA kernels; install again on this "
            "machine, with DSA_EXT_ARCHS unset or naming its architecture"
        )
    return str(error) if str(error).startswith(f"{op}: no implementation takes this call") else None
