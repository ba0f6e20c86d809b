"""The indexer's quantisation worked out a second time, in float64 and from the definitions, sharing nothing with the
package; and inputs."""

import torch
from kv_cache_oracle import nearest_codes
from torch import Tensor

BF16, F16, F32, F64, I32, U8, E4M3 = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.uint8,
    torch.float8_e4m3fn,
)
VALUES = ("normal", "tiny", "huge", "wide", "zero", "bits")
# test_schema compares results by arithmetic that torch has not for e4m3.
OPCHECKS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
LEAST_AMAX = torch.tensor(1e-4, dtype=F32).item()


def make(*shape: int, values: str = "normal", dtype: torch.dtype = BF16) -> Tensor:
    """Vectors, the last dimension of `shape`."""
    if values == "bits":  # any number of the dtype, NaN and Inf among them
        bits = torch.int32 if dtype == F32 else torch.int16
        info = torch.iinfo(bits)
        return torch.randint(info.min, info.max, shape, dtype=bits).view(dtype)
    x = torch.randn(shape)
    limit = torch.finfo(dtype).max
    if values == "tiny":
        x = x * 2.0**-130 if dtype != F16 else x * 2.0**-20  # subnormal
    elif values == "huge":
        x = (x * (limit / 4)).clamp(-limit, limit)
    elif values == "wide":  # each vector has its own magnitude
        reach = 12 if dtype == F16 else 30
        x = x * torch.exp2(torch.randint(-reach, reach, (*shape[:-1], 1)).float())
    elif values == "zero":
        x = torch.where(torch.rand(shape) < 0.5, 0.0, -0.0)
    return x.to(dtype)


def scales(amax: Tensor, scale_format: str) -> Tensor:
    """[...] float64 -> [...] float64, of float32's values."""
    amax = amax.clamp(min=LEAST_AMAX)
    if scale_format == "fp32":
        return (amax / 448).float().double()
    mantissa, exponent = torch.frexp(amax / 448)  # in [0.5, 1)
    return torch.ldexp(torch.ones_like(amax), exponent - (mantissa == 0.5).int())


def finite_amax(x: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x.abs(), 0).amax(-1)


def quantised(x: Tensor, scale_format: str) -> tuple[Tensor, Tensor]:
    """Codes as uint8 and scales as float64, of numbers that float32 holds."""
    x = x.double()
    scale = scales(finite_amax(x), scale_format)
    return nearest_codes((x / scale[..., None]).float().double()), scale


def sylvester(d: int) -> Tensor:
    """H[i, j] = (-1)^(number of ones in i & j), float64."""
    ones = [[bin(i & j).count("1") % 2 for j in range(d)] for i in range(d)]
    return 1.0 - 2.0 * torch.tensor(ones, dtype=F64)


def roped(x: Tensor, cos: Tensor, sin: Tensor, rope: str) -> Tensor:
    """float64 [s, ..., 128], by complex numbers."""
    first, second = (range(32), range(32, 64)) if rope == "half" else (range(0, 64, 2), range(1, 64, 2))
    first, second = list(first), list(second)
    angle = torch.complex(cos.double(), sin.double())
    if x.dim() == 3:
        angle = angle[:, None]
    turned = torch.complex(x[..., first], x[..., second]) * angle
    x = x.clone()
    x[..., first], x[..., second] = turned.real, turned.imag
    return x


def prepared(x: Tensor, cos: Tensor, sin: Tensor, rope: str, hadamard: bool) -> Tensor:
    """What is quantised, in float64."""
    x = roped(x.double(), cos, sin, rope)
    return x @ sylvester(128) / 128**0.5 if hadamard else x


def angles(s: int) -> tuple[Tensor, Tensor]:
    """cos, sin [s, 32] of positions all over a long context."""
    positions = torch.randint(2**17, (s, 1)).double()
    angle = positions * 10000.0 ** (-torch.arange(32).double() / 32)
    return angle.cos().float(), angle.sin().float()


def bits(x: Tensor) -> Tensor:
    """On the CPU, for comparisons to the last bit."""
    return x.cpu().contiguous().view(U8)


def poison(device: str) -> None:
    """Leaves NaN in the memory that the next results on a GPU are likely to come from."""
    if device == "cuda":
        held = [torch.full((1 << n,), 255, dtype=U8, device=device) for n in range(9, 21) for _ in range(3)]
        del held
