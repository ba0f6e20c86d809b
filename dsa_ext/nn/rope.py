"""Rotary position embedding, with YaRN's frequencies."""

import math

import torch
from torch import Tensor, nn

from .config import RopeConfig

DIMS = 64  # that are rotated


def frequencies(config: RopeConfig) -> Tensor:
    """float64 [32]: radians from token to token, of each pair of dimensions."""
    exponents = torch.arange(0, DIMS, 2, dtype=torch.float64) / DIMS
    plain = config.theta**-exponents
    if config.factor == 1:
        return plain

    def pair_that_turns(times: float) -> float:
        """The pair, as a fraction, that turns so many times within the original context."""
        return DIMS * math.log(config.original_context / (times * 2 * math.pi)) / (2 * math.log(config.theta))

    first = max(math.floor(pair_that_turns(config.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(config.beta_slow)), DIMS - 1)
    stretched = ((torch.arange(DIMS // 2, dtype=torch.float64) - first) / max(last - first, 0.001)).clamp(0, 1)
    return plain * (1 - stretched) + plain / config.factor * stretched


class Rope(nn.Module):
    """cos and sin for any position; angles are computed in float64, so that they are right at any context length."""

    frequencies: Tensor

    def __init__(self, config: RopeConfig, device: torch.device | str | None = None):
        super().__init__()
        self.factor = config.table_factor
        self.register_buffer("frequencies", frequencies(config).to(device), persistent=False)

    def _apply(self, fn, recurse=True):
        """Moves to other devices, and stays float64 where a model becomes another dtype."""
        exact = self.frequencies
        super()._apply(fn, recurse)
        self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [...], integers -> cos, sin: float32 [..., 32]."""
        angle = positions[..., None].double() * self.frequencies
        return (angle.cos() * self.factor).float(), (angle.sin() * self.factor).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotates the first 64 dimensions of x [..., d] in pairs: interleaved (2i, 2i + 1), else half-split (i, i + 32).

    cos and sin [..., 32] broadcast. Computed in float32, or float64 for float64 x; the result has x's dtype.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    first = x[..., :DIMS]
    pairs = first.unflatten(-1, (-1, 2)) if interleaved else first.unflatten(-1, (2, -1)).transpose(-1, -2)
    # As complex numbers: how many operations a decoding step is decides about its time.
    pairs = torch.view_as_complex(pairs.to(dtype, copy=True, memory_format=torch.contiguous_format))
    pairs = torch.view_as_real(pairs * torch.complex(cos, sin))
    rotated = (pairs if interleaved else pairs.transpose(-1, -2)).flatten(-2).to(x.dtype)
    return rotated if x.shape[-1] == DIMS else torch.cat([rotated, x[..., DIMS:]], -1)
