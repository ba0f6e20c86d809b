"""`python -m dsa_ext`: what is installed, what it runs on, and a self-check. Exit status 1 if a check fails."""

import platform
import sys
import time
from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor

import dsa_ext
from dsa_ext._build_info import CACHE_FORMATS, HEADS, decode_path, path


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
    calls: list[tuple[str, Callable]] = [("sparse_mla_fwd", path)]
    for form in CACHE_FORMATS:
        calls.append((f"sparse_mla_decode, {form} cache,", lambda major, h_q, form=form: decode_path(major, h_q, form)))
    lines = ["sparse_mla_fwd on cpu: reference (plain torch)", "sparse_mla_decode on cpu: reference (plain torch)"]
    for device, major, minor in devices:
        for what, implementation in calls:
            paths = [(h, implementation(major, h) or f"none for compute capability {major}.{minor}") for h in HEADS]
            for name, group in groupby(paths, key=lambda pair: pair[1]):
                heads = ", ".join(str(h) for h, _ in group)
                lines.append(f"{what} on {device}: {name} (h_q {heads})")
    return lines


STATISTICS = (1e-4, 2.01 / 65536)  # tolerances, absolute and relative, of max_logits and lse
TOLERANCES = {
    "sparse_mla_fwd": ((8e-4, 3.01 / 128), STATISTICS, STATISTICS),
    "sparse_mla_decode": ((1e-3, 2.01 / 128), STATISTICS),
}


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


def _to(device: str, *tensors: Tensor) -> list[Tensor]:
    return [t.to(device) for t in tensors]


def _options_to(device: str, options: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to(device) for name, t in options.items()}


CHECKS = {"sparse_mla_fwd": (_check_fwd, path), "sparse_mla_decode": (_check_decode, decode_path)}


def _self_check(op: str, device: str, h_q: int) -> tuple[bool, str]:
    """A small call against the float64 reference: some indices invalid, a sink, lengths. Inputs of a tenth, so that no
    weight dominates: its rounding to bf16 alone could exceed the tolerance."""
    start = time.perf_counter()
    expected, call = CHECKS[op][0](device, h_q, torch.Generator().manual_seed(0))
    expected = expected()
    try:
        got = [r.cpu().double() for r in call()]
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    ok = all(
        bool(((a == b) | ((a - b).abs() <= absolute) | ((a - b).abs() <= relative * b.abs())).all())
        for a, b, (absolute, relative) in zip(got, expected, TOLERANCES[op], strict=True)
    )
    error = (got[0] - expected[0]).abs().max().item()
    return ok, f"largest error of out {error:.1e} in {time.perf_counter() - start:.2f} s"


def main() -> int:
    info = dsa_ext.build_info()
    _report("versions", _versions(info))
    _report("devices", _devices())
    _report("implementations", _implementations(info))

    lines, failed = [], False
    for op, (_, implementation) in CHECKS.items():
        for device in ["cpu", *(f"cuda:{i}" for i in _gpus())]:
            if device != "cpu" and implementation(torch.cuda.get_device_capability(device)[0], 128) is None:
                lines.append(f"{op} on {device}: skipped, this build has no kernel for it")
                continue
            for h_q in (16, 64):
                ok, text = _self_check(op, device, h_q)
                failed |= not ok
                lines.append(f"{op} on {device}, h_q {h_q}: {'ok' if ok else 'FAILED'}, {text}")
    _report("self-check against the float64 reference", lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
