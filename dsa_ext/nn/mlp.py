"""The gated MLP: every token's, or one that all tokens share beside the routed experts."""

from torch import Tensor, nn
from torch.nn import functional as F

from .linear import Linear
from .parallel import share


class MLP(nn.Module):
    """w2(silu(w1(x)) * w3(x)), of which a rank holds a part of the inner dimension.

    Args:
        dim, inner: sizes; inner of all ranks.
        group: a torch.distributed process group, or None. The ranks' results add up to the MLP's.
    """

    def __init__(self, dim: int, inner: int, *, group=None, device=None, dtype=None):
        super().__init__()
        held = len(share("the inner dimension of the MLP", inner, group))
        self.w1 = Linear(dim, held, device=device, dtype=dtype)
        self.w2 = Linear(held, dim, device=device, dtype=dtype)
        self.w3 = Linear(dim, held, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, dim] -> [tokens, dim], the rank's summand."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))
