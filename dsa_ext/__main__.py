"""`python -m dsa_ext`: what is installed, what it runs on, and a self-check. Exit status 1 if a check fails."""

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

import dsa_ext
from dsa_ext._build_info import CACHE_FORMATS, HEADS, INDEXER_HEADS, decode_path, logits_path, path

_paged_path = partial(logits_path, page_size=64)

Tolerance = tuple[float, float]  # absolute and relative


def _report(title: str, lines: list[str]) -> None:
    print(title)
    for line in lines:
        print(f"  {line}")


def _versions(info: dict) -> list[str]:
    built = (
        f"for {', '.join(info['archs'])} with CUDA {info['cuda']}, CUTLASS {info['cutlass']}"
        if info["archs"]
        else "for the CPU only (DSA_EXT_ARCHS=none)"
    )
    return [
        f"dsa_ext {info['version']}, built {built}",
        f"torch {torch.__version__}, its CUDA: {torch.version.cuda or 'none'}",
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"sources of {op}: {value}" for op, value in info["source_hash"].items()),
    ]


def _gpus() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def _devices() -> list[str]:
    if not _gpus():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no usable NVIDIA GPU"
        return ["cpu", f"no CUDA device: {why}"]
    lines = ["cpu"]
    for i in _gpus():
        p = torch.cuda.get_device_properties(i)
        memory = p.total_memory / 2**30
        lines.append(f"cuda:{i}: {p.name}, compute capability {p.major}.{p.minor}, {memory:.0f} GiB")
    return lines


def _implementations(info: dict) -> list[str]:
    devices = [(f"cuda:{i}", *torch.cuda.get_device_capability(i)) for i in _gpus()]
    if not devices:
        devices = [(f"sm_{arch[:-1]} (not here)", int(arch[:-2]), int(arch[-2])) for arch in info["archs"]]
    calls: list[tuple[str, Callable, str, tuple[int, ...]]] = [("sparse_mla_fwd", path, "h_q", HEADS)]
    for form in CACHE_FORMATS:
        calls.append((f"sparse_mla_decode, {form} cache,", partial(decode_path, format=form), "h_q", HEADS))
    calls.append(("indexer_logits", logits_path, "heads", INDEXER_HEADS))
    calls.append(("paged_indexer_logits", _paged_path, "heads", INDEXER_HEADS))
    lines = [f"{op} on cpu: reference (plain torch)" for op in CHECKS]
    for device, major, minor in devices:
        none = f"none for compute capability {major}.{minor}"
        for what, implementation, size, sizes in calls:
            paths = [(n, implementation(major, n) or none) for n in sizes]
            for name, group in groupby(paths, key=lambda pair: pair[1]):
                lines.append(f"{what} on {device}: {name} ({size} {', '.join(str(n) for n, _ in group)})")
        for op in ("topk_indices", "prepare_indexer"):
            lines.append(f"{op} on {device}: {'one for all sizes' if _is_built(major) else none}")
    return lines


def _is_built(major: int, _: int = 0) -> str | None:
    """For kernels that are compiled for every architecture: the one of that compute capability, if any."""
    return next((arch for arch in dsa_ext.build_info()["archs"] if int(arch[:-2]) == major), None)


def _check_fwd(device: str, h_q: int, g: torch.Generator) -> tuple[Callable, Callable]:
    s_q, s_kv, topk = 3, 200, 130
    q = (torch.randn(s_q, h_q, 576, generator=g) / 10).bfloat16()
    kv = (torch.randn(s_kv, 576, generator=g) / 10).bfloat16()
    idx = torch.randint(-20, s_kv + 20, (s_q, topk), generator=g, dtype=torch.int32)
    options = {"attn_sink": torch.randn(h_q, generator=g), "topk_length": torch.tensor([topk, 70, 0]).int()}
    return (
        lambda: dsa_ext.reference.sparse_mla_fwd(q.double(), kv.double(), idx, 192**-0.5, **options),
        lambda: dsa_ext.sparse_mla_fwd(*_to(device, q, kv, idx), 192**-0.5, **_options_to(device, options)),
    )


def _check_decode(device: str, h_q: int, g: torch.Generator) -> tuple[Callable, Callable]:
    batch, slots, topk = 3, 200, 130
    q = (torch.randn(batch, 1, h_q, 576, generator=g) / 10).bfloat16()
    kv = (torch.randn(slots, 576, generator=g) / 10).bfloat16()
    cache = dsa_ext.reference.pack_kv_cache(kv, page_size=64)
    idx = torch.randint(-20, cache.shape[0] * 64 + 20, (batch, 1, topk), generator=g, dtype=torch.int32)
    options = {"attn_sink": torch.randn(h_q, generator=g), "topk_length": torch.tensor([topk, 70, 0]).int()}
    return (
        lambda: dsa_ext.reference.sparse_mla_decode(q.double(), cache, idx, 192**-0.5, **options),
        lambda: dsa_ext.sparse_mla_decode(*_to(device, q, cache, idx), 192**-0.5, **_options_to(device, options)),
    )


def _check_logits(device: str, heads: int, g: torch.Generator) -> tuple[Callable, Callable]:
    s_q, s_k = 5, 300
    q, k = _small_codes(s_q, heads, 128, g=g), _small_codes(s_k, 128, g=g)
    scale, weights = torch.rand(s_k, generator=g) + 0.5, torch.randn(s_q, heads, generator=g) / heads
    ranges = torch.tensor([0, -5, 130, 299, 7]).int(), torch.tensor([300, 129, 1000, 300, 7]).int()
    return (
        lambda: [dsa_ext.reference.indexer_logits(q, k, scale, weights, *ranges, out_dtype=torch.float64)],
        lambda: [dsa_ext.indexer_logits(*_to(device, q, k, scale, weights, *ranges))],
    )


def _check_paged_logits(device: str, heads: int, g: torch.Generator) -> tuple[Callable, Callable]:
    """On a cache that store_indexer_cache fills."""
    batch, next_n, pages, page_size, most = 3, 2, 8, 64, 150
    q, k = _small_codes(batch, next_n, heads, 128, g=g), _small_codes(pages * page_size, 128, g=g)
    scale, weights = torch.rand(len(k), generator=g) + 0.5, torch.randn(batch, next_n, heads, generator=g) / heads
    slots = torch.randperm(len(k), generator=g).int()
    lens, table = torch.tensor([most, 1, 65]).int(), torch.tensor([[5, 0, 7], [2, -1, 9], [-1, 3, 3]]).int()

    def call(device: str, functions: object, **out: Tensor) -> list[Tensor]:
        inputs = _to(device, q, weights, lens, table)
        cache = torch.zeros(pages, page_size, 132, dtype=torch.uint8, device=device)
        functions.store_indexer_cache(*_to(device, k, scale), cache, slots.to(device))
        return [functions.paged_indexer_logits(inputs[0], cache, *inputs[1:], max_context_len=most, **out)]

    wide = torch.empty(batch, next_n, most, dtype=torch.float64)
    return lambda: call("cpu", dsa_ext.reference, out=wide), lambda: call(device, dsa_ext)


def _check_topk(device: str, k: int, g: torch.Generator) -> tuple[Callable, Callable]:
    """Scores of which many are equal."""
    logits = (torch.randn(4, 10000, generator=g) * 50).round()
    lengths = torch.tensor([10000, 7000, 10, 0]).int()
    return (
        lambda: [dsa_ext.reference.topk_indices(logits.double(), k, lengths=lengths)],
        lambda: [dsa_ext.topk_indices(logits.to(device), k, lengths=lengths.to(device))],
    )


def _check_prepare(device: str, heads: int, g: torch.Generator) -> tuple[Callable, Callable]:
    """The reference's own arithmetic is float32: results are the same bits everywhere."""
    tokens = 5
    q, k = (torch.randn(tokens, n, 128, generator=g).bfloat16() for n in (heads, 1))
    angles = torch.randn(tokens, 32, generator=g)
    inputs = q, k[:, 0], torch.randn(tokens, heads, generator=g), angles.cos(), angles.sin()
    return (
        lambda: dsa_ext.reference.prepare_indexer(*inputs),
        lambda: dsa_ext.prepare_indexer(*_to(device, *inputs)),
    )


def _small_codes(*shape: int, g: torch.Generator) -> Tensor:
    """Integers so small that every implementation has their products exactly."""
    return torch.randint(-2, 3, shape, generator=g).to(torch.float8_e4m3fn)


def _to(device: str, *tensors: Tensor) -> list[Tensor]:
    return [t.to(device) for t in tensors]


def _options_to(device: str, options: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to(device) for name, t in options.items()}


@dataclass(frozen=True)
class Check:
    """make(device, size, generator): what gives the expected results, and what the op's."""

    make: Callable[[str, int, torch.Generator], tuple[Callable, Callable]]
    path: Callable[[int, int], str | None]  # of compute capability and size; None: no kernel
    size: str
    sizes: tuple[int, ...]
    tolerances: tuple[Tolerance | Callable[[str, int], Tolerance], ...]  # of each result; or by device and size


STATISTICS = (1e-4, 2.01 / 65536)  # of max_logits and lse
EXACT = (0.0, 0.0)


def _logits(device: str, heads: int) -> Tolerance:
    """Of small whole numbers. With 32 heads and more, Hopper's tensor cores add up products of different sizes, with
    some 14 bits."""
    return (2.0**-9, 0.0) if device != "cpu" and heads >= 32 else (1e-4, 0.0)


CHECKS = {
    "sparse_mla_fwd": Check(_check_fwd, path, "h_q", (16, 64), ((8e-4, 3.01 / 128), STATISTICS, STATISTICS)),
    "sparse_mla_decode": Check(_check_decode, decode_path, "h_q", (16, 64), ((1e-3, 2.01 / 128), STATISTICS)),
    "indexer_logits": Check(_check_logits, logits_path, "heads", (8, 64), (_logits,)),
    "paged_indexer_logits": Check(_check_paged_logits, _paged_path, "heads", (8, 64), (_logits,)),
    "topk_indices": Check(_check_topk, _is_built, "k", (64, 2048), (EXACT,)),
    "prepare_indexer": Check(_check_prepare, _is_built, "heads", (8, 64), (EXACT,) * 4),
}


def _self_check(check: Check, device: str, size: int) -> tuple[bool, str]:
    """A small call against the float64 reference: some indices invalid, a sink, lengths. Attention's inputs are of a
    tenth, so that no weight dominates: its rounding to bf16 alone could exceed the tolerance."""
    start = time.perf_counter()
    expected, call = check.make(device, size, torch.Generator().manual_seed(0))
    expected = [r.double() for r in expected()]
    try:
        got = [r.cpu().double() for r in call()]
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    errors = [torch.where(a == b, 0, (a - b).abs()) for a, b in zip(got, expected, strict=True)]
    tolerances = [t(device, size) if callable(t) else t for t in check.tolerances]
    ok = all(
        bool(((error <= absolute) | (error <= relative * b.abs())).all())
        for error, b, (absolute, relative) in zip(errors, expected, tolerances, strict=True)
    )
    took = f"in {time.perf_counter() - start:.2f} s"
    if all(tolerance == EXACT for tolerance in tolerances):
        return ok, f"{'exact' if ok else 'not exact'} {took}"
    return ok, f"largest error of {'out' if len(errors) > 1 else 'the result'} {errors[0].max().item():.1e} {took}"


def main() -> int:
    info = dsa_ext.build_info()
    _report("versions", _versions(info))
    _report("devices", _devices())
    _report("implementations", _implementations(info))

    lines, failed = [], False
    for op, check in CHECKS.items():
        for device in ["cpu", *(f"cuda:{i}" for i in _gpus())]:
            major = 0 if device == "cpu" else torch.cuda.get_device_capability(device)[0]
            if device != "cpu" and check.path(major, check.sizes[-1]) is None:
                lines.append(f"{op} on {device}: skipped, this build has no kernel for it")
                continue
            for size in check.sizes:
                ok, text = _self_check(check, device, size)
                failed |= not ok
                lines.append(f"{op} on {device}, {check.size} {size}: {'ok' if ok else 'FAILED'}, {text}")
    _report("self-check against the float64 reference", lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
