"""The bytes of an FP8 cache, worked out a second time: in float64, from the layouts' descriptions, sharing nothing with
the package."""

import math

import torch
from torch import Tensor

HEAD_DIM = {"v32": 576, "v4": 512}
NOPE = {"v32": 512, "v4": 448}
GROUP = {"v32": 128, "v4": 64}
BYTES = {"v32": 656, "v4": 584}
FORMATS = [("v32", "ue8m0"), ("v32", "fp32"), ("v4", "ue8m0")]


def _e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    return mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)


E4M3 = torch.tensor([_e4m3(code) for code in range(127)], dtype=torch.float64)  # ascending; code 127 is NaN


def nearest_codes(y: Tensor) -> Tensor:
    """Of float64: to the nearest, ties to the even code, saturating; NaN for what is not finite."""
    magnitude = y.abs().nan_to_num(0, 0, 0).clamp(max=448)
    above = torch.searchsorted(E4M3, magnitude).clamp(max=126)
    below = (above - 1).clamp(min=0)
    up, down = E4M3[above] - magnitude, magnitude - E4M3[below]
    code = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    code = torch.where(magnitude == E4M3[above], above, code)
    sign = torch.signbit(y) * 128
    return torch.where(y.isfinite(), code + sign, 127).to(torch.uint8)


def scales(x: Tensor, scale_format: str) -> Tensor:
    """[n, groups, group] float64 -> [n, groups] float64, of float32's values."""
    amax = torch.where(x.isfinite(), x.abs(), 0).amax(-1)
    plain = (amax / 448).float().double().clamp(min=torch.tensor(1e-4, dtype=torch.float32).item())
    if scale_format == "fp32":
        return plain
    mantissa, exponent = torch.frexp(plain)  # in [0.5, 1)
    return torch.ldexp(torch.ones_like(plain), exponent - (mantissa == 0.5).int())


def token_bytes(kv: Tensor, format: str, scale_format: str) -> dict[str, Tensor]:
    """The fields of n tokens (bfloat16 or float32, on the CPU) as bytes, [n, bytes] each."""
    x = kv[:, : NOPE[format]].double().unflatten(1, (-1, GROUP[format]))
    scale = scales(x, scale_format)
    codes = nearest_codes((x / scale[..., None]).float().double()).flatten(1)
    rope = kv[:, NOPE[format] :].bfloat16().contiguous().view(torch.uint8)
    if format == "v32":
        return {"codes": codes, "scales": scale.float().view(torch.uint8), "rope": rope}
    exponents = torch.tensor([[int(math.log2(s)) + 127 for s in token] + [0] for token in scale.tolist()])
    return {"codes": codes, "scales": exponents.to(torch.uint8).reshape(-1, 8), "rope": rope}


def place_token(memory: Tensor, page_start: int, page_size: int, place: int, fields: dict[str, Tensor], i: int) -> None:
    """Writes token i of `fields` into `memory`, the bytes of a whole cache."""
    if fields["codes"].shape[1] == 512:
        row = page_start + place * 656
        starts = {"codes": row, "scales": row + 512, "rope": row + 528}
    else:
        row = page_start + place * 576
        starts = {"codes": row, "rope": row + 448, "scales": page_start + page_size * 576 + place * 8}
    for name, start in starts.items():
        memory[start : start + fields[name].shape[1]] = fields[name][i]


def page_stride(format: str, page_size: int) -> int:
    return page_size * 656 if format == "v32" else math.ceil(page_size * 584 / 576) * 576


def packed_bytes(kv: Tensor, format: str, page_size: int, scale_format: str) -> Tensor:
    """[pages, page stride]: every byte of what pack_kv_cache returns, the gaps between pages included."""
    stride, fields = page_stride(format, page_size), token_bytes(kv, format, scale_format)
    pages = math.ceil(len(kv) / page_size)
    memory = torch.zeros(pages * stride, dtype=torch.uint8)
    for i in range(len(kv)):
        place_token(memory, i // page_size * stride, page_size, i % page_size, fields, i)
    return memory.view(pages, stride)
