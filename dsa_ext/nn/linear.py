"""Projections and norms under the converted checkpoints' names."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 128  # rows and columns of a weight that share a scale


def dequantise_blocks(weight: Tensor, scale: Tensor, block: int = BLOCK) -> Tensor:
    """fp8 [out, in] times float32 [ceil(out / block), ceil(in / block)], a factor for each square: float32."""
    expected = tuple(-(-n // block) for n in weight.shape)
    if tuple(scale.shape) != expected:
        raise ValueError(
            f"scale has shape {tuple(scale.shape)}, expected {expected}: one for each {block} x {block} of a weight "
            f"of shape {tuple(weight.shape)}"
        )
    rows, columns = weight.shape
    factors = scale.float().repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return weight.float() * factors


def dequantised(state_dict: dict, prefix: str, dtype: torch.dtype, errors: list[str]) -> Tensor | None:
    """`weight` under this prefix: an fp8 one times its `scale`, which is taken out, in dtype; any other as it is."""
    scale = state_dict.pop(f"{prefix}scale", None)
    weight = state_dict.get(f"{prefix}weight")
    if weight is not None and (scale is not None) != (weight.dtype.itemsize == 1):
        has = "no scale" if scale is None else f"a scale, and is {weight.dtype}"
        errors.append(f"{prefix}weight has {has}: an fp8 weight has one, and no other has")
    elif scale is not None and weight is not None:
        try:
            return dequantise_blocks(weight, scale).to(dtype)
        except ValueError as error:
            errors.append(f"{prefix}{error}")
    return weight


class Linear(nn.Linear):
    """Without bias. A checkpoint may hold its weight in fp8, with a tensor `scale` beside it: loading multiplies them
    and rounds to the parameter's dtype once."""

    def __init__(self, in_features: int, out_features: int, *, device=None, dtype=None):
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        weight = dequantised(state_dict, prefix, self.weight.dtype, errors)
        if weight is not None:
            state_dict[f"{prefix}weight"] = weight
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 (float64 for float64 x), rounded to x's dtype once."""

    def __init__(self, dim: int, eps: float, *, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        wide = wide_dtype(x)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """In float32 (float64 for float64 x), rounded to x's dtype once."""

    def forward(self, x: Tensor) -> Tensor:
        wide = wide_dtype(x)
        result = F.layer_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)
        return result.to(x.dtype)


def wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
