"""CPU and fake implementations of sparse_mla_decode's ops; see _registration.py."""

from functools import lru_cache

import torch
from torch import Tensor

from . import _checks, reference
from ._checks_decode import D_V

_OPTIONS = ("topk_length", "attn_sink", "extra_kv_cache", "extra_idx", "extra_topk_length", "plan")


@torch.library.impl("dsa_ext::sparse_mla_decode", "cpu")
def _sparse_mla_decode_cpu(
    q: Tensor, kv_cache: Tensor, idx: Tensor, scale: float, *positional: Tensor | None, **named: Tensor | None
) -> tuple[Tensor, Tensor]:
    options = dict(zip(_OPTIONS, positional, strict=False)) | named
    return reference.sparse_mla_decode(q, kv_cache, idx, scale, **options)


@torch.library.impl("dsa_ext::sparse_mla_decode_out", "cpu")
def _sparse_mla_decode_out_cpu(
    q: Tensor, kv_cache: Tensor, idx: Tensor, scale: float, *options_and_outputs: Tensor | None
) -> None:
    *options, out, lse = options_and_outputs
    options = dict(zip(_OPTIONS, options, strict=True))
    reference.sparse_mla_decode(q, kv_cache, idx, scale, **options, out=(out, lse))


@torch.library.register_fake("dsa_ext::sparse_mla_decode")
def _sparse_mla_decode_fake(q, *others, **options):
    heads = q.shape[:-1]
    return q.new_empty((*heads, D_V)), q.new_empty(heads, dtype=_checks.stats_dtype(q))


@torch.library.register_fake("dsa_ext::sparse_mla_decode_out")
def _sparse_mla_decode_out_fake(*arguments):
    return None


# --- plans. The CPU's has no elements.

# The allocating form. It has no tensor argument that it could not go without, so that torch would find no device to
# dispatch it by: one implementation for all of them, in Python because it only asks for the size and allocates.
torch.library.define(
    "dsa_ext::plan_sparse_mla_decode",
    "(Tensor? topk_length, SymInt batch, SymInt s_q, SymInt h_q, SymInt topk, SymInt extra_topk, "
    "Tensor? extra_topk_length, bool batch_invariant, Device device) -> Tensor",
)


@torch.library.impl("dsa_ext::plan_sparse_mla_decode", "CompositeExplicitAutograd")
def _plan_sparse_mla_decode(
    topk_length, batch, s_q, h_q, topk, extra_topk, extra_topk_length, batch_invariant, device
) -> Tensor:
    size = plan_size(device, batch, s_q, h_q, topk, extra_topk, batch_invariant)
    out = torch.empty(size, dtype=torch.int32, device=device)
    torch.ops.dsa_ext.plan_sparse_mla_decode_out(
        topk_length, batch, s_q, h_q, topk, extra_topk, extra_topk_length, batch_invariant, out
    )
    return out


@torch.library.register_fake("dsa_ext::plan_sparse_mla_decode")
def _plan_sparse_mla_decode_fake(
    topk_length, batch, s_q, h_q, topk, extra_topk, extra_topk_length, batch_invariant, device
):
    size = plan_size(device, batch, s_q, h_q, topk, extra_topk, batch_invariant)
    return torch.empty(size, dtype=torch.int32, device=device)


@torch.library.impl("dsa_ext::plan_sparse_mla_decode_out", "cpu")
def _plan_sparse_mla_decode_out_cpu(*arguments) -> None:
    return None


@torch.library.register_fake("dsa_ext::plan_sparse_mla_decode_out")
def _plan_sparse_mla_decode_out_fake(*arguments):
    return None


def plan_size(
    device: torch.device, batch: int, s_q: int, h_q: int, topk: int, extra_topk: int, batch_invariant: bool
) -> int:
    """Elements of a plan. Sizes that are symbolic become numbers."""
    return _plan_size(device, *map(int, (batch, s_q, h_q, topk, extra_topk)), batch_invariant)


@lru_cache(maxsize=4096)
def _plan_size(device: torch.device, *arguments: int) -> int:
    if device.type != "cuda":
        return 0
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return torch.ops.dsa_ext.plan_sparse_mla_decode_size(multiprocessors, *arguments)
