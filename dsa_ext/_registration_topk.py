"""CPU and fake implementations of topk_indices; see _registration.py."""

import torch
from torch import Tensor

from . import reference

_OPTIONS = ("lengths", "row_starts", "block_table", "page_size", "offsets")


@torch.library.impl("dsa_ext::topk_indices", "cpu")
def _topk_indices_cpu(logits: Tensor, k: int, *positional: Tensor | int | None, **named: Tensor | int | None) -> Tensor:
    return reference.topk_indices(logits, k, **dict(zip(_OPTIONS, positional, strict=False)) | named)


@torch.library.impl("dsa_ext::topk_indices_out", "cpu")
def _topk_indices_out_cpu(logits: Tensor, k: int, *options_and_out: Tensor | int | None) -> None:
    *options, out = options_and_out
    reference.topk_indices(logits, k, **dict(zip(_OPTIONS, options, strict=True)), out=out)


@torch.library.register_fake("dsa_ext::topk_indices")
def _topk_indices_fake(logits, k, *others, **options):
    return logits.new_empty((logits.shape[0], k), dtype=torch.int32)


@torch.library.register_fake("dsa_ext::topk_indices_out")
def _topk_indices_out_fake(*arguments):
    return None
