"""The peers that the benchmarks time beside ours: FlashMLA's sparse attention and DeepGEMM's indexer logits, from the
wheel that vLLM publishes, and SGLang's top-k, from its kernels' wheel.

They are looked for in $DSA_EXT_PEERS, else in .peers/site of the checkout; without one the benchmarks time ours alone.
`python benchmarks/peers.py` downloads the wheels and keeps two files and a folder. Nothing of them is committed.
"""

import argparse
import ctypes
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SITE = Path(__file__).resolve().parent.parent / ".peers/site"
WHEEL = "vllm==0.21.0"
WHEEL_TAGS = ("--platform=manylinux_2_24_x86_64", "--python-version=312", "--implementation=cp", "--abi=abi3")
MEMBER = "vllm/_flashmla_C.abi3.so"
FILE = "_flashmla_C.abi3.so"
DEEP_GEMM = "vllm/third_party/deep_gemm/"  # a package that compiles its kernels at the first call, with nvcc
SHA256 = "49ae93d1936ba1c1e632f33c6813695be4f32b6811a46b4687e5ec8005ef07cc"  # of FILE in WHEEL

SGLANG_WHEEL = "sglang-kernel==0.4.3"
SGLANG_WHEEL_TAGS = (
    "--platform=manylinux2014_x86_64",
    "--python-version=312",
    "--implementation=cp",
    "--abi=abi3",
)
SGLANG_MEMBER = "sgl_kernel/sm90/common_ops.abi3.so"
SGLANG_FILE = "sgl_kernel_sm90.abi3.so"
SGLANG_SHA256 = "1c3460236da4b7a39142fcd3f3867ca20ab74309b774e8bfa975b9abaaa0996a"  # of SGLANG_FILE in SGLANG_WHEEL


THIS_PYTHON = f"{sys.version_info.major}{sys.version_info.minor}"


class FlashMla:
    """The loaded library. On Hopper it takes multiples of 64 heads and of 128 indices."""

    name = "FlashMLA"
    decode_formats = ("v32", "v4")

    def __init__(self, path: Path):
        torch.ops.load_library(str(path))
        self._sparse_prefill = torch.ops._flashmla_C.sparse_prefill_fwd
        self._sparse_decode = torch.ops._flashmla_C.sparse_decode_fwd
        self.sha256 = sha256(path)
        self.version = f"of {WHEEL}" if self.sha256 == SHA256 else "of an unknown build"

    def describe(self) -> dict[str, str]:
        return {"version": self.version, "sha256": self.sha256}

    @staticmethod
    def heads(h_q: int) -> int:
        """How many heads it must be given to compute h_q of them."""
        return -(-h_q // 64) * 64

    def padded(self, q: Tensor) -> Tensor:
        """q [.., h_q, d_qk] with zero heads behind its own, made beforehand so that a call does not pay for it."""
        *lead, h_q, d_qk = q.shape
        if (heads := self.heads(h_q)) == h_q:
            return q
        padded = q.new_zeros(*lead, heads, d_qk)
        padded[..., :h_q, :] = q
        return padded

    def prefill(self, q: Tensor, kv: Tensor, idx: Tensor, scale: float) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
        """A call on q [s_q, h_q, d_qk], kv [s_kv, d_qk], idx [s_q, topk]."""
        padded, kv, idx = self.padded(q), kv[:, None], idx[:, None]  # one key head
        # The last arguments: d_v, attn_sink, topk_length, out.
        return lambda: self._sparse_prefill(padded, kv, idx, scale, 512, None, None, None)

    def decode(
        self, q: Tensor, kv_cache: Tensor, idx: Tensor, scale: float, plan: tuple[Tensor, Tensor] | None
    ) -> Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]:
        """A call on q [b, s_q, h_q, d_qk], which has been padded, kv_cache [pages, page_size, bytes],
        idx [b, s_q, topk]; it returns (out, lse, *plan). The plan, metadata and splits, fits calls of the same sizes;
        without one the call makes it first."""
        cache = kv_cache[:, :, None]  # one key head
        # Optional arguments between: topk_length and attn_sink; the plan; a second cache, its indices and lengths.
        options = (None, None, *(plan or (None, None)), None, None, None)
        return lambda: self._sparse_decode(q, cache, idx, *options, 512, scale, None)


class SglangTopk:
    """The loaded library. It takes k = 2048 and float32; the order of its result is arbitrary."""

    name = "SGLang"
    k = 2048

    def __init__(self, path: Path):
        ctypes.CDLL("libnuma.so.1", ctypes.RTLD_GLOBAL)  # which the library does not name
        torch.ops.load_library(str(path))
        self._fast_topk = torch.ops.sgl_kernel.fast_topk
        self.sha256 = sha256(path)
        self.version = f"of {SGLANG_WHEEL}" if self.sha256 == SGLANG_SHA256 else "of an unknown build"

    def describe(self) -> dict[str, str]:
        return {"version": self.version, "sha256": self.sha256}

    def topk(self, logits: Tensor) -> Callable[[], Tensor]:
        """A call on all columns of logits [rows, columns]; it returns int32 [rows, 2048]."""
        rows, columns = logits.shape
        out = torch.empty(rows, self.k, dtype=torch.int32, device=logits.device)
        lengths = torch.full((rows,), columns, dtype=torch.int32, device=logits.device)

        def call() -> Tensor:
            self.choose(logits, out, lengths)
            return out

        return call

    def choose(self, logits: Tensor, out: Tensor, lengths: Tensor) -> None:
        """Into out [rows, 2048], of the first lengths[row] columns."""
        self._fast_topk(logits, out, lengths, None)

    def choose_slots(self, logits: Tensor, out: Tensor, lengths: Tensor, slots: Tensor, rows: Tensor) -> None:
        """As choose, for slots [rows, columns] int32 of the columns; rows are 0, 1, 2, ..., their number."""
        torch.ops.sgl_kernel.fast_topk_transform_fused(logits, lengths, out, slots, rows, None)


class DeepGemm:
    """The loaded package."""

    name = "DeepGEMM"

    def __init__(self, module: Any):
        self._module = module
        self.version = f"{getattr(module, '__version__', 'of an unknown version')} of {WHEEL}"

    def describe(self) -> dict[str, str]:
        return {"version": self.version}

    def logits(
        self, q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor, k_start: Tensor, k_end: Tensor
    ) -> Callable[[], Tensor]:
        """A call on dsa_ext.indexer_logits' arguments. It leaves what is outside of the ranges as it was in memory: its
        kernel alone, without the one that would write -inf there."""
        keys = (k, k_scale)
        return lambda: self._module.fp8_mqa_logits(q, keys, weights, k_start, k_end, clean_logits=False)

    def plan(self, context_lens: Tensor, page_size: int) -> Tensor:
        """For context_lens [b, next_n]."""
        return self._module.get_paged_mqa_logits_metadata(context_lens, page_size, self._module.get_num_sms())

    def paged_logits(
        self,
        q: Tensor,
        k_cache: Tensor,
        weights: Tensor,
        context_lens: Tensor,
        block_table: Tensor,
        max_context_len: int,
        plan: Tensor,
    ) -> Callable[[], Tensor]:
        """A call on dsa_ext.paged_indexer_logits' arguments, with context_lens [b, next_n] and weights
        [b * next_n, h]."""
        cache = k_cache[:, :, None]  # one key head
        arguments = (q, cache, weights, context_lens, block_table, plan, max_context_len)
        return lambda: self._module.fp8_paged_mqa_logits(*arguments, clean_logits=False)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def folder() -> Path:
    return Path(os.environ.get("DSA_EXT_PEERS") or SITE)


def flash_mla() -> tuple[FlashMla | None, str]:
    """The peer, or None; and a line that says which, or why not."""
    return _load(FlashMla, FILE)


def sglang_topk() -> tuple[SglangTopk | None, str]:
    """As flash_mla."""
    return _load(SglangTopk, SGLANG_FILE)


def _load(kind: type, file: str) -> tuple:
    path = folder() / file
    if not path.is_file():
        return None, f"no peer: {file} is not in {_short(folder())}; `python benchmarks/peers.py` fetches it"
    try:
        peer = kind(path)
    except (OSError, RuntimeError, AttributeError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        return None, f"no peer: {file} does not load with torch {torch.__version__}: {reason}"
    return peer, f"{peer.name} {peer.version}"


def deep_gemm() -> tuple[DeepGemm | None, str]:
    """As flash_mla."""
    if not (folder() / "deep_gemm/__init__.py").is_file():
        return None, f"no peer: deep_gemm is not in {_short(folder())}; `python benchmarks/peers.py` fetches it"
    sys.path.append(str(folder()))
    try:
        peer = DeepGemm(importlib.import_module("deep_gemm"))
    except Exception as error:  # a package of its own, which looks for a compiler and a GPU
        reason = str(error).partition("\n")[0]
        return None, f"no peer: deep_gemm does not load with torch {torch.__version__}: {reason}"
    finally:
        sys.path.remove(str(folder()))
    return peer, f"{peer.name} {peer.version}"


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def fetch(wheel: Path | None = None, python: str = THIS_PYTHON) -> Path:
    """Puts FlashMLA's file, which it returns, and DeepGEMM's package into folder(): from the wheel, or a download. The
    package is for one version of Python, such as 312."""
    return _fetch(FILE, MEMBER, SHA256, WHEEL, WHEEL_TAGS, wheel, DEEP_GEMM, python)


def fetch_sglang(wheel: Path | None = None) -> Path:
    """As fetch, for SGLang's."""
    return _fetch(SGLANG_FILE, SGLANG_MEMBER, SGLANG_SHA256, SGLANG_WHEEL, SGLANG_WHEEL_TAGS, wheel)


def _fetch(
    file: str,
    member: str,
    expected: str,
    name: str,
    tags: tuple[str, ...],
    wheel: Path | None,
    package: str | None = None,
    python: str = "",
) -> Path:
    target = folder() / file
    kept = folder() / Path(package).name if package else None
    if target.is_file() and sha256(target) == expected and (kept is None or any(kept.glob(f"_C.*{python}-*"))):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        if wheel is None:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *tags]
            subprocess.run([*command, "--dest", scratch, name], check=True)
            (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(member, scratch))
            if package:
                archive.extractall(scratch, [n for n in archive.namelist() if _is_of_package(n, package, python)])
        if (got := sha256(extracted)) != expected:
            sys.exit(f"{member} of {wheel.name} has sha256 {got}, expected {expected}: not kept")
        extracted.replace(target)
        if kept and (found := Path(scratch) / package).is_dir():
            shutil.rmtree(kept, ignore_errors=True)
            found.replace(kept)
    return target


def _is_of_package(name: str, package: str, python: str) -> bool:
    """Of its extension modules one Python's alone, of a version such as 312: each has 10 MB."""
    if not name.startswith(package) or name.endswith("/"):
        return False
    file = name.rpartition("/")[2]
    return not file.startswith("_C.") or f"cpython-{python}-" in file or file.startswith("_C.abi3")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch the peers' files (downloads of 570 MB, 53 MB are kept).")
    for option, what in (("--wheel", WHEEL), ("--sglang-wheel", SGLANG_WHEEL)):
        parser.add_argument(option, type=Path, help=f"a wheel of {what} that is already here, instead of a download")
    parser.add_argument("--python", default=THIS_PYTHON, help="the version that will use them, such as 312")
    options = parser.parse_args()
    print(_short(fetch(options.wheel, options.python)))
    print(_short(fetch_sglang(options.sglang_wheel)))
