"""CPU and fake implementations of the indexer's logits; see _registration.py."""

from functools import lru_cache

import torch
from torch import Tensor

from . import reference


@torch.library.impl("dsa_ext::indexer_logits", "cpu")
def _indexer_logits_cpu(
    q: Tensor, k: Tensor, k_scale: Tensor | None, weights: Tensor, k_start: Tensor, k_end: Tensor, out_dtype: str
) -> Tensor:
    return reference.indexer_logits(q, k, k_scale, weights, k_start, k_end, out_dtype=getattr(torch, out_dtype))


@torch.library.impl("dsa_ext::indexer_logits_out", "cpu")
def _indexer_logits_out_cpu(
    q: Tensor, k: Tensor, k_scale: Tensor | None, weights: Tensor, k_start: Tensor, k_end: Tensor, out: Tensor
) -> None:
    reference.indexer_logits(q, k, k_scale, weights, k_start, k_end, out=out)


@torch.library.register_fake("dsa_ext::indexer_logits")
def _indexer_logits_fake(q, k, k_scale, weights, k_start, k_end, out_dtype):
    return q.new_empty((q.shape[0], k.shape[0]), dtype=getattr(torch, out_dtype))


@torch.library.register_fake("dsa_ext::indexer_logits_out")
def _indexer_logits_out_fake(q, k, k_scale, weights, k_start, k_end, out):
    return None


@torch.library.impl("dsa_ext::paged_indexer_logits", "cpu")
def _paged_indexer_logits_cpu(
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int,
    plan: Tensor | None,
) -> Tensor:
    return reference.paged_indexer_logits(
        q, k_cache, weights, context_lens, block_table, max_context_len=max_context_len, plan=plan
    )


@torch.library.impl("dsa_ext::paged_indexer_logits_out", "cpu")
def _paged_indexer_logits_out_cpu(
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int,
    plan: Tensor | None,
    out: Tensor,
) -> None:
    reference.paged_indexer_logits(
        q, k_cache, weights, context_lens, block_table, max_context_len=max_context_len, plan=plan, out=out
    )


@torch.library.register_fake("dsa_ext::paged_indexer_logits")
def _paged_indexer_logits_fake(q, k_cache, weights, context_lens, block_table, max_context_len, plan):
    return q.new_empty((*q.shape[:2], max_context_len), dtype=torch.float32)


@torch.library.register_fake("dsa_ext::paged_indexer_logits_out")
def _paged_indexer_logits_out_fake(*arguments):
    return None


# --- plans. The CPU's has no elements.

# The allocating form, in Python because it only asks for the size and allocates.
torch.library.define(
    "dsa_ext::plan_paged_indexer_logits", "(Tensor context_lens, SymInt page_size, SymInt next_n) -> Tensor"
)


@torch.library.impl("dsa_ext::plan_paged_indexer_logits", "CompositeExplicitAutograd")
def _plan_paged_indexer_logits(context_lens, page_size, next_n) -> Tensor:
    out = context_lens.new_empty(plan_size(context_lens.device))
    torch.ops.dsa_ext.plan_paged_indexer_logits_out(context_lens, page_size, next_n, out)
    return out


@torch.library.register_fake("dsa_ext::plan_paged_indexer_logits")
def _plan_paged_indexer_logits_fake(context_lens, page_size, next_n):
    return context_lens.new_empty(plan_size(context_lens.device))


@torch.library.impl("dsa_ext::plan_paged_indexer_logits_out", "cpu")
def _plan_paged_indexer_logits_out_cpu(context_lens, page_size, next_n, out) -> None:
    return None


@torch.library.register_fake("dsa_ext::plan_paged_indexer_logits_out")
def _plan_paged_indexer_logits_out_fake(context_lens, page_size, next_n, out):
    return None


def plan_size(device: torch.device) -> int:
    """Elements of a plan."""
    return _plan_size(device)


@lru_cache(maxsize=64)
def _plan_size(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return torch.ops.dsa_ext.plan_paged_indexer_logits_size(multiprocessors)
