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
from inputs import cosine_difference

import dsa_ext

CHECKED_QUERIES = 8
PEER_COSINE = 1e-4  # far above rounding, far below a call that is misunderstood
Row = dict[str, Any]
Case = Any  # of the benchmark's own kind


class Benchmark(ABC):
    """One benchmark: its cases, and how a case becomes a row."""

    name: ClassVar[str]
    op: ClassVar[str]
    device: ClassVar[str] = "cuda"
    seconds: ClassVar[float] = 1.0  # for measuring a row, unless --seconds says otherwise
    cpu_case: ClassVar[Case]
    matmul: ClassVar[str] = "bf16"  # the matrix product that rates are compared with: bf16 or fp8

    @abstractmethod
    def cases(self) -> list[Case]: ...

    @abstractmethod
    def row_id(self, case: Case) -> str:
        """Words joined by '-', which --rows selects by."""

    @abstractmethod
    def is_quick(self, case: Case) -> bool: ...

    @abstractmethod
    def path(self, case: Case, major: int) -> str | None:
        """The implementation that takes the case on compute capability `major`.x."""

    @abstractmethod
    def describe(self, case: Case) -> Row:
        """Its sizes, and flop."""

    @abstractmethod
    def cpu_call(self, case: Case) -> timing.Call:
        """The case as a call on the CPU."""

    @abstractmethod
    def measure(self, case: Case, peer: Any, seconds: float) -> Row:
        """Checks and times one case on the GPU. AssertionError if a result is wrong. The row holds ms and, with a
        peer, peer_ms."""

    def rates(self, row: Row, ceilings: Row) -> Row:
        """What follows from the times."""
        ms, peer_ms, matmul = row["ms"], row.get("peer_ms"), ceilings["matmul_tflops"]
        tflops = row["flop"] / ms / 1e9
        return {
            "tflops": tflops,
            "matmul_share": tflops / matmul if matmul else None,
            "ratio": peer_ms / ms if peer_ms else None,
        }

    def memory_text(self, row: Row) -> str:
        """For the printed line: rates of memory traffic."""
        raise NotImplementedError

    def rates_text(self, row: Row) -> str:
        """For the printed line: what rates() has found; nothing without ceilings."""
        if not row["matmul_share"]:
            return ""
        return f" {row['tflops']:7.1f} TFLOPS {row['matmul_share']:6.1%} of matmul {self.memory_text(row)}"

    def find_peer(self) -> tuple[Any, str]:
        """The peer, or None; and a line that says which, or why not."""
        return peers.flash_mla()

    def summary(self, rows: list[Row]) -> str | None:
        """A line below the rows."""
        return None

    def plot(self, result: dict[str, Any], path: Path) -> None:
        import plot  # needs matplotlib

        plot.draw(result, path)


def why_no_gpu(benchmark: Benchmark) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no usable NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability()
    if benchmark.path(benchmark.cases()[0], major) is None:
        built = ", ".join(dsa_ext.build_info()["archs"]) or "no CUDA architecture"
        return f"this build has kernels for {built}, and the GPU has compute capability {major}.{minor}"
    return None


def check_peer(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """RuntimeError unless two results [queries, heads, d_v] agree: else the call is misunderstood, and not timed."""
    difference = cosine_difference(theirs.double(), ours.double()).max().item()
    if not difference <= PEER_COSINE:
        raise RuntimeError(f"its result differs from ours, 1 - cosine = {difference:.1e}: not timed")


def selected(row_id: str, filters: list[str]) -> bool:
    """Whether the row has all the words of one of the filters; every row, without any filter."""
    words = set(row_id.split("-"))
    return not filters or any(set(f.replace(",", "-").split("-")) <= words for f in filters)


def line(benchmark: Benchmark, row: Row) -> str:
    if row["error"]:
        return f"{row['row']:<32} FAILED: {row['error']}"
    text = f"{row['row']:<32} {_time(row['ms'])}{benchmark.rates_text(row)}"
    if row.get("peer_ms"):
        text += f"   peer {_time(row['peer_ms'])}   ratio {row['ratio']:.3f}"
    elif row.get("peer_error"):
        text += f"   peer: {row['peer_error']}"
    return text


def _time(ms: float) -> str:
    return f"{ms:8.3f} ms" if ms >= 1 else f"{ms * 1e3:8.2f} us"


def _options(benchmark: Benchmark) -> argparse.Namespace:
    default = f"benchmarks/results/{benchmark.name}.json"
    parser = argparse.ArgumentParser(description=type(benchmark).__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rows only")
    parser.add_argument("--rows", nargs="+", default=[], metavar="WORDS", help="rows with these words: h128,kv8192 h16")
    parser.add_argument("--json", type=Path, help=f"where to store the result (all rows on a GPU: {default})")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the result")
    seconds = benchmark.seconds
    parser.add_argument("--seconds", type=float, default=seconds, help=f"for measuring a row (default {seconds})")
    return parser.parse_args()


def main(benchmark: Benchmark) -> int:
    options = _options(benchmark)
    if reason := why_no_gpu(benchmark):
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
    case, ceilings = benchmark.cpu_case, {"matmul_tflops": None, "copy_tb_s": None}
    row = {"row": benchmark.row_id(case), "op": benchmark.op, "path": "reference"}
    row |= benchmark.describe(case) | {"error": None, "ms": timing.on_cpu(benchmark.cpu_call(case)).ms}
    row |= benchmark.rates(row, ceilings)
    print(line(benchmark, row))
    run = record.of_run(on_gpu=False)
    return {"benchmark": benchmark.name, "run": run, **ceilings, "peers": {}, "rows": [row]}


def _on_gpu(benchmark: Benchmark, options: argparse.Namespace) -> dict[str, Any]:
    cases = [c for c in benchmark.cases() if selected(benchmark.row_id(c), options.rows)]
    cases = [c for c in cases if benchmark.is_quick(c)] if options.quick else cases
    if not cases:
        sys.exit(f"no row has the words {' '.join(options.rows)}; rows: {benchmark.row_id(benchmark.cases()[0])}, ...")
    run = record.of_run(on_gpu=True)
    print(f"{run['gpu']}, driver {run['driver']}, torch {run['torch']}, CUDA {run['cuda']}, commit {run['commit']}")
    if run["source_hash"][benchmark.op] != current_hashes()[benchmark.op]:
        print("note: the build that is measured was made from other sources than this checkout's")
    peer, peer_note = benchmark.find_peer()
    print(f"beside it: {peer_note}")

    with torch.no_grad():
        ceilings = {"matmul_tflops": timing.matmul_tflops(kind=benchmark.matmul), "copy_tb_s": timing.copy_tb_s()}
        torch.cuda.empty_cache()
        text = "{} matmul 8192^3: {matmul_tflops:.0f} TFLOPS; device copy: {copy_tb_s:.2f} TB/s"
        print(text.format(benchmark.matmul, **ceilings))
        rows = []
        for case in cases:
            rows.append(_row(benchmark, case, peer, ceilings, options.seconds))
            print(line(benchmark, rows[-1]), flush=True)
        if summary := benchmark.summary(rows):
            print(summary)
    described = {peer.name: peer.describe()} if peer else {}
    return {"benchmark": benchmark.name, "run": run, **ceilings, "peers": described, "rows": rows}


def _row(benchmark: Benchmark, case: Case, peer: Any, ceilings: Row, seconds: float) -> Row:
    path = benchmark.path(case, torch.cuda.get_device_capability()[0])
    row = {"row": benchmark.row_id(case), "op": benchmark.op, "path": path, **benchmark.describe(case), "error": None}
    try:
        row |= benchmark.measure(case, peer, seconds)
        row |= benchmark.rates(row, ceilings)
    except (AssertionError, RuntimeError) as error:  # a wrong result; CUDA's errors
        row["error"] = f"{type(error).__name__}: {error}"
    return row
