"""The choice of the tokens that sparse attention looks at."""

import torch
from torch import Tensor

from . import _checks, _checks_topk, _registration, _registration_topk  # noqa: F401

_OP = "topk_indices"
_topk_indices = torch.ops.dsa_ext.topk_indices.default
_topk_indices_out = torch.ops.dsa_ext.topk_indices_out.default


def topk_indices(
    logits: Tensor,
    k: int,
    *,
    lengths: Tensor | None = None,
    row_starts: Tensor | None = None,
    block_table: Tensor | None = None,
    page_size: int | None = None,
    offsets: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The positions of the k greatest scores of each row, in ascending order of position.

    Of row r, the candidates are logits[r, start + p] for the positions p = 0 .. length - 1, with::

        start  = row_starts[r], within [0, columns]
        length = lengths[r], within [0, columns - start]

    Chosen are the first k in the order by (score descending, position ascending), a total order, so that the result is
    unique and the same bits on every launch. -0 equals +0. -inf and NaN are never chosen: with fewer than k candidates
    that are neither, all of these are chosen, and the rest of the row is -1.

    Args:
        logits: float32 or bfloat16 [rows, columns]. Rows may be apart by any number of elements; what lies outside of
            the candidates is not read.
        k: 1 to 4096.
        lengths: int32 [rows]. None: to the end of the row.
        row_starts: int32 [rows]. None: zeros.
        block_table: int32 [b, pages], with page_size: position p of row r becomes the slot
            block_table[r // (rows / b), p // page_size] * page_size + p % page_size
            of a paged cache. Positions that the table has no page for are no candidates. A page < 0, or whose slot
            does not fit int32, gives -1.
        page_size: tokens of a page.
        offsets: int32 [rows]; position p of row r becomes p + offsets[r]. Not together with block_table.
        out: a buffer for the result, with a contiguous last dimension; shares no memory with an input.

    Returns:
        int32 [rows, k].

    On CUDA it runs on the current stream, does not synchronise and can be captured in a CUDA graph. On the CPU it is
    the reference implementation: any float dtype.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device or value does not fit. Values in the int32 tensors are never an error.
        NotImplementedError: no kernel of this build runs on the device.
    """
    options = (lengths, row_starts, block_table, page_size, offsets)
    _checks_topk.check_topk_indices(_OP, logits, k, *options, plain=False)
    try:
        if out is None:
            return _topk_indices(logits, k, *options)
        inputs = {"logits": logits, "lengths": lengths, "row_starts": row_starts}
        inputs |= {"block_table": block_table, "offsets": offsets}
        _checks_topk.check_topk_indices_out(_OP, out, logits, k, inputs)
        _topk_indices_out(logits, k, *options, out)
        return out
    except RuntimeError as error:
        reason = _registration.why_no_kernel(_OP, error, logits.device, "logits")
        if reason is None:
            raise
        raise NotImplementedError(reason) from error
