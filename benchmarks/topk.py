"""topk_indices on rows of random scores: from one long row to thousands; SGLang's fast_topk and torch.topk in the same
run.

A CUDA graph of several calls on the same logits: those that are smaller than the L2 cache are read from it, as they are
behind the kernel that has computed them.
"""

import math
import statistics
import sys
from dataclasses import dataclass
from functools import partial

import peers
import timing
import torch
from frame import CHECKED_QUERIES, Benchmark, Row, main

import dsa_ext

CALLS = 10  # of a graph
MAX_GRAPH_BYTES = 2e9  # that its calls read; at least one call
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TopkCase:
    rows: int
    columns: int
    k: int = 2048
    dtype: str = "fp32"

    @property
    def bytes(self) -> int:
        return self.rows * self.columns * DTYPES[self.dtype].itemsize

    @property
    def calls(self) -> int:
        return max(1, min(CALLS, math.floor(MAX_GRAPH_BYTES / self.bytes)))

    def logits(self, device: str) -> torch.Tensor:
        g = torch.Generator(device).manual_seed(0)
        return torch.randn(self.rows, self.columns, generator=g, device=device).to(DTYPES[self.dtype])


SIZES = ((1, 131072), (16, 65536), (64, 32768), (256, 32768), (4096, 32768), (2048, 131072))


def check_ours(result: torch.Tensor, logits: torch.Tensor, k: int, some: torch.Tensor) -> None:
    want = dsa_ext.reference.topk_indices(logits[some], k)
    assert torch.equal(result[some], want), "the result differs from the reference's"


def check_peer_rows(theirs: torch.Tensor, ours: torch.Tensor, logits: torch.Tensor) -> None:
    """RuntimeError unless both name the same scores in each row; which of equal ones is left to the peer."""
    scores = [logits.gather(1, t.long().clamp(min=0)).sort(dim=1).values for t in (theirs, ours)]
    if not torch.equal(*scores):
        raise RuntimeError("its result differs from ours: not timed")


class Topk(Benchmark):
    """Times topk_indices on rows of normally distributed scores."""

    name = "topk"
    op = "topk_indices"
    seconds = 0.5
    cpu_case = TopkCase(rows=4, columns=4096, k=512)

    def cases(self) -> list[TopkCase]:
        cases = [TopkCase(rows, columns) for rows, columns in SIZES]
        cases += [TopkCase(rows, columns, k) for k in (512, 64) for rows, columns in ((1, 131072), (4096, 32768))]
        return cases + [TopkCase(rows, columns, dtype="bf16") for rows, columns in ((1, 131072), (4096, 32768))]

    def row_id(self, case: TopkCase) -> str:
        return f"{case.dtype}-rows{case.rows}-n{case.columns}-k{case.k}"

    def is_quick(self, case: TopkCase) -> bool:
        return case.dtype == "fp32" and case.k == 2048 and (case.rows, case.columns) != (2048, 131072)

    def path(self, case: TopkCase, major: int) -> str | None:
        """One kernel for every architecture that is built."""
        archs = dsa_ext.build_info()["archs"]
        return f"sm{major}0" if any(int(arch[:-2]) == major for arch in archs) else None

    def describe(self, case: TopkCase) -> Row:
        sizes = {"rows": case.rows, "columns": case.columns, "k": case.k, "dtype": case.dtype}
        return sizes | {"bytes": case.bytes, "calls_a_graph": case.calls}

    def rates(self, row: Row, ceilings: Row) -> Row:
        copy, tb_s = ceilings["copy_tb_s"], row["bytes"] / row["ms"] / 1e9
        ratios = {key: row[f"{name}_ms"] / row["ms"] if row.get(f"{name}_ms") else None for key, name in _RATIOS}
        return {"tb_s": tb_s, "copy_share": tb_s / copy if copy else None, **ratios}

    def rates_text(self, row: Row) -> str:
        share = f" {row['copy_share']:6.1%} of a copy" if row["copy_share"] else ""
        torch_text = f"   {row['torch_ratio']:.1f}x torch" if row["torch_ratio"] else ""
        return f" {row['tb_s']:5.2f} TB/s{share}{torch_text}"

    def find_peer(self) -> tuple[peers.SglangTopk | None, str]:
        return peers.sglang_topk()

    def summary(self, rows: list[Row]) -> str | None:
        ratios = [row["ratio"] for row in rows if row.get("ratio")]
        if not ratios:
            return None
        return f"ratio: geometric mean {statistics.geometric_mean(ratios):.2f}, least {min(ratios):.2f}"

    def cpu_call(self, case: TopkCase) -> timing.Call:
        return partial(dsa_ext.topk_indices, case.logits("cpu"), case.k)

    def measure(self, case: TopkCase, peer: peers.SglangTopk | None, seconds: float) -> Row:
        logits, row = case.logits(self.device), {}
        some = torch.randperm(case.rows, device=self.device)[:CHECKED_QUERIES]
        ours = partial(dsa_ext.topk_indices, logits, case.k)
        result = ours()
        check_ours(result, logits, case.k, some)

        calls = {"ours": ours, "torch": partial(torch.topk, logits, case.k, sorted=False)}
        if peer and case.k == peer.k and logits.dtype == torch.float32:
            theirs = peer.topk(logits)
            try:
                check_peer_rows(theirs()[some], result[some], logits[some])
                calls["peer"] = theirs
            except RuntimeError as error:
                row["peer_error"] = str(error)
        times = timing.in_turns({name: timing.graph([call] * case.calls) for name, call in calls.items()}, seconds)
        for name, key in (("ours", ""), ("peer", "peer_"), ("torch", "torch_")):
            if name in times:
                row[f"{key}ms"] = times[name].ms / case.calls
                row[f"{key}quartiles_ms"] = [t / case.calls for t in times[name].quartiles]
        return row | {"rounds": times["ours"].rounds}


_RATIOS = (("ratio", "peer"), ("torch_ratio", "torch"))


if __name__ == "__main__":
    sys.exit(main(Topk()))
