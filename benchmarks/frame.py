"""What the benchmarks share: options, the loop over the rows, what is printed and stored."""

import argparse
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import peers
import record
import timing
import torch
from check_stale import current_hashes
from inputs import SparseMlaFwdCase, make_inputs

import dsa_ext
from dsa_ext._build_info import path as implementation

CHECKED_QUERIES = 8
Row = dict[str, Any]


class Benchmark(ABC):
    """One benchmark: its cases, and how a case becomes a row."""

    name: ClassVar[str]
    op: ClassVar[str] = "sparse_mla_fwd"
    note: ClassVar[str] = ""  # printed first
    device: ClassVar[str] = "cuda"
    cpu_case: ClassVar[SparseMlaFwdCase]

    @abstractmethod
    def cases(self) -> list[SparseMlaFwdCase]: ...

    @abstractmethod
    def row_id(self, case: SparseMlaFwdCase) -> str:
        """Words joined by '-', which --rows selects by."""

    @abstractmethod
    def is_quick(self, case: SparseMlaFwdCase) -> bool: ...

    @abstractmethod
    def measure(self, case: SparseMlaFwdCase, peer: peers.FlashMla | None, seconds: float) -> Row:
        """Checks and times one case on the GPU. AssertionError if a result is wrong. The row holds ms and, with a
        peer, peer_ms."""

    def plot(self, result: dict[str, Any], path: Path) -> None:
        sys.exit(f"{self.name}.py draws no plot")


def why_no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no usable NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability()
    if implementation(major, 128) is None:
        built = ", ".join(dsa_ext.build_info()["archs"]) or "no CUDA architecture"
        return f"this build has kernels for {built}, and the GPU has compute capability {major}.{minor}"
    return None


def gather_bytes(case: SparseMlaFwdCase) -> int:
    """Key rows as 64-head CTAs fetch them: once for every query and 64 heads, or fewer."""
    tiles = (case.batch or 1) * case.s_q * -(-case.h_q // 64)
    return tiles * case.topk * case.d_qk * 2


def describe(case: SparseMlaFwdCase) -> Row:
    sizes = {name: getattr(case, name) for name in ("batch", "s_q", "h_q", "topk", "d_qk", "d_v", "s_kv")}
    return sizes | {"flop": case.flops, "gather_bytes": gather_bytes(case)}


def rates(row: Row, matmul: float | None) -> Row:
    """What follows from the times."""
    ms, peer_ms = row["ms"], row.get("peer_ms")
    tflops = row["flop"] / ms / 1e9
    return {
        "tflops": tflops,
        "matmul_share": tflops / matmul if matmul else None,
        "gather_tb_s": row["gather_bytes"] / ms / 1e9,
        "ratio": peer_ms / ms if peer_ms else None,
    }


def selected(row_id: str, filters: list[str]) -> bool:
    """Whether the row has all the words of one of the filters; every row, without any filter."""
    words = set(row_id.split("-"))
    return not filters or any(set(f.replace(",", "-").split("-")) <= words for f in filters)


def line(row: Row) -> str:
    if row["error"]:
        return f"{row['row']:<32} FAILED: {row['error']}"
    text = f"{row['row']:<32} {row['ms']:9.4f} ms"
    if row["matmul_share"]:
        share, gather = f"{row['matmul_share']:6.1%} of matmul", f"{row['gather_tb_s']:6.2f} TB/s gathered"
        text += f" {row['tflops']:7.1f} TFLOPS {share} {gather}"
    if row.get("peer_ms"):
        text += f"   peer {row['peer_ms']:9.4f} ms   ratio {row['ratio']:.3f}"
    elif row.get("peer_error"):
        text += f"   peer: {row['peer_error']}"
    return text


def _options(benchmark: Benchmark) -> argparse.Namespace:
    default = f"benchmarks/results/{benchmark.name}.json"
    parser = argparse.ArgumentParser(description=type(benchmark).__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rows only")
    parser.add_argument("--rows", nargs="+", default=[], metavar="WORDS", help="rows with these words: h128,kv8192 h16")
    parser.add_argument("--json", type=Path, help=f"where to store the result (all rows on a GPU: {default})")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the result")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for measuring a row (default 1)")
    return parser.parse_args()


def main(benchmark: Benchmark) -> int:
    options = _options(benchmark)
    if benchmark.note:
        print(benchmark.note)
    if reason := why_no_gpu():
        result = _on_cpu(benchmark, reason)
    else:
        result = _on_gpu(benchmark, options)
        if options.json is None and not options.quick and not options.rows:
            options.json = record.RESULTS / f"{benchmark.name}.json"

    if options.json:
        record.write(options.json, result)
        print(f"written: {options.json}")
    if options.plot:
        benchmark.plot(result, options.plot)
        print(f"written: {options.plot}")
    failed = sum(row["error"] is not None for row in result["rows"])
    if failed:
        print(f"{failed} of {len(result['rows'])} rows FAILED")
    return int(failed > 0)


def _on_cpu(benchmark: Benchmark, reason: str) -> dict[str, Any]:
    print(f"{reason}: this times the CPU reference on a small shape, which says nothing about the kernels")
    case = benchmark.cpu_case
    inputs = make_inputs(case)
    row = {"row": benchmark.row_id(case), "op": benchmark.op, "path": "reference", **describe(case), "error": None}
    row["ms"] = timing.on_cpu(lambda: inputs.call(dsa_ext.sparse_mla_fwd)).ms
    row |= rates(row, None)
    print(line(row))
    run = record.of_run(on_gpu=False)
    return {"benchmark": benchmark.name, "run": run, "matmul_tflops": None, "peers": {}, "rows": [row]}


def _on_gpu(benchmark: Benchmark, options: argparse.Namespace) -> dict[str, Any]:
    cases = [c for c in benchmark.cases() if selected(benchmark.row_id(c), options.rows)]
    cases = [c for c in cases if benchmark.is_quick(c)] if options.quick else cases
    if not cases:
        sys.exit(f"no row has the words {' '.join(options.rows)}; rows: {benchmark.row_id(benchmark.cases()[0])}, ...")
    run = record.of_run(on_gpu=True)
    print(f"{run['gpu']}, driver {run['driver']}, torch {run['torch']}, CUDA {run['cuda']}, commit {run['commit']}")
    if run["source_hash"][benchmark.op] != current_hashes()[benchmark.op]:
        print("note: the build that is measured was made from other sources than this checkout's")
    peer, peer_note = peers.flash_mla()
    print(f"beside it: {peer_note}")

    with torch.no_grad():
        matmul = timing.matmul_tflops()
        print(f"bf16 matmul 8192^3: {matmul:.0f} TFLOPS")
        rows = []
        for case in cases:
            rows.append(_row(benchmark, case, peer, matmul, options.seconds))
            print(line(rows[-1]), flush=True)
    described = {peer.name: peer.describe()} if peer else {}
    return {"benchmark": benchmark.name, "run": run, "matmul_tflops": matmul, "peers": described, "rows": rows}


def _row(
    benchmark: Benchmark, case: SparseMlaFwdCase, peer: peers.FlashMla | None, matmul: float, seconds: float
) -> Row:
    major = torch.cuda.get_device_capability()[0]
    path = implementation(major, case.h_q, case.d_qk, case.topk)
    row = {"row": benchmark.row_id(case), "op": benchmark.op, "path": path, **describe(case), "error": None}
    try:
        row |= benchmark.measure(case, peer, seconds)
        row |= rates(row, matmul)
    except (AssertionError, RuntimeError) as error:  # a wrong result; CUDA's errors
        row["error"] = f"{type(error).__name__}: {error}"
    return row
