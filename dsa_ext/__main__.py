"""`python -m dsa_ext`: what is installed, what it runs on, and a self-check. Exit status 1 if a check fails."""

import platform
import sys
import time
from itertools import groupby

import torch

import dsa_ext
from dsa_ext._build_info import HEADS, path


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


def _runs_on(device: int) -> bool:
    return path(torch.cuda.get_device_capability(device)[0], 128) is not None


def _implementations(info: dict) -> list[str]:
    devices = [(f"cuda:{i}", *torch.cuda.get_device_capability(i)) for i in _gpus()]
    if not devices:
        devices = [(f"sm_{arch[:-1]} (not here)", int(arch[:-2]), int(arch[-2])) for arch in info["archs"]]
    lines = ["sparse_mla_fwd on cpu: reference (plain torch)"]
    for device, major, minor in devices:
        paths = [(h, path(major, h) or f"none for compute capability {major}.{minor}") for h in HEADS]
        for name, group in groupby(paths, key=lambda pair: pair[1]):
            heads = ", ".join(str(h) for h, _ in group)
            lines.append(f"sparse_mla_fwd on {device}: {name} (h_q {heads})")
    return lines


def _self_check(device: str, h_q: int) -> tuple[bool, str]:
    """A small call against the float64 reference: some indices invalid, a sink, lengths. Inputs of a tenth, so that no
    weight dominates: its rounding to bf16 alone could exceed the tolerance."""
    start = time.perf_counter()
    s_q, s_kv, topk = 3, 200, 130
    g = torch.Generator().manual_seed(0)
    q = (torch.randn(s_q, h_q, 576, generator=g) / 10).bfloat16()
    kv = (torch.randn(s_kv, 576, generator=g) / 10).bfloat16()
    idx = torch.randint(-20, s_kv + 20, (s_q, topk), generator=g, dtype=torch.int32)
    sink = torch.randn(h_q, generator=g)
    length = torch.tensor([topk, 70, 0], dtype=torch.int32)
    scale = 192**-0.5

    expected = dsa_ext.reference.sparse_mla_fwd(q.double(), kv.double(), idx, scale, attn_sink=sink, topk_length=length)
    try:
        results = dsa_ext.sparse_mla_fwd(
            q.to(device),
            kv.to(device),
            idx.to(device),
            scale,
            attn_sink=sink.to(device),
            topk_length=length.to(device),
        )
        got = [r.cpu().double() for r in results]
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    tolerances = ((8e-4, 3.01 / 128), (1e-4, 2.01 / 65536), (1e-4, 2.01 / 65536))  # absolute, relative
    ok = all(
        bool(((a == b) | ((a - b).abs() <= absolute) | ((a - b).abs() <= relative * b.abs())).all())
        for a, b, (absolute, relative) in zip(got, expected, tolerances, strict=True)
    )
    error = (got[0] - expected[0]).abs().max().item()
    return ok, f"largest error of out {error:.1e} in {time.perf_counter() - start:.2f} s"


def main() -> int:
    info = dsa_ext.build_info()
    _report("versions", _versions(info))
    _report("devices", _devices())
    _report("implementations", _implementations(info))

    lines, failed = [], False
    for device in ["cpu", *(f"cuda:{i}" for i in _gpus())]:
        if device != "cpu" and not _runs_on(int(device[5:])):
            lines.append(f"sparse_mla_fwd on {device}: skipped, this build has no kernel for it")
            continue
        for h_q in (16, 64):
            ok, text = _self_check(device, h_q)
            failed |= not ok
            lines.append(f"sparse_mla_fwd on {device}, h_q {h_q}: {'ok' if ok else 'FAILED'}, {text}")
    _report("self-check against the float64 reference", lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
