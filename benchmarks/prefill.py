"""sparse_mla_fwd in prefill: a row for each head count, topk, width and number of keys, FlashMLA in the same run."""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import peers
import timing
import torch
from frame import CHECKED_QUERIES, Benchmark, Row, main
from inputs import SparseMlaFwdCase, cosine_difference, make_inputs, verify

import dsa_ext

S_Q = 4096
HEADS = (128, 64, 16)
TOPK = (2048, 512)
D_QK = (576, 512)
S_KV = (8192, 32768, 131072)
PEER_COSINE = 1e-4  # far above rounding, far below a call that is misunderstood


class Prefill(Benchmark):
    """Times sparse_mla_fwd on 4096 queries, each over a random subset of distinct keys."""

    name = "prefill"
    cpu_case = SparseMlaFwdCase(s_q=16, h_q=16, topk=128, d_qk=576, s_kv=1024)

    def cases(self) -> list[SparseMlaFwdCase]:
        return [
            SparseMlaFwdCase(s_q=S_Q, h_q=h, topk=topk, d_qk=d, s_kv=s_kv)
            for h, topk, d, s_kv in product(HEADS, TOPK, D_QK, S_KV)
        ]

    def row_id(self, case: SparseMlaFwdCase) -> str:
        return f"h{case.h_q}-topk{case.topk}-d{case.d_qk}-kv{case.s_kv}"

    def is_quick(self, case: SparseMlaFwdCase) -> bool:
        return case.topk == 2048 and case.d_qk == 576 and case.s_kv != 32768

    def measure(self, case: SparseMlaFwdCase, peer: peers.FlashMla | None, seconds: float) -> Row:
        inputs = make_inputs(case, self.device)
        calls = {"ours": lambda: inputs.call(dsa_ext.sparse_mla_fwd)}
        results = calls["ours"]()
        verify(results, inputs, torch.randperm(case.s_q, device=self.device)[:CHECKED_QUERIES])

        row: Row = {}
        if peer:
            call = peer.prefill(inputs.q, inputs.kv, inputs.idx, inputs.scale)
            row["peer_heads"] = peer.heads(case.h_q)
            try:
                theirs = call()[0][:, : case.h_q]
                difference = cosine_difference(theirs[::64].double(), results[0][::64].double()).max().item()
                if not difference <= PEER_COSINE:
                    raise RuntimeError(f"its result differs from ours, 1 - cosine = {difference:.1e}: not timed")
                calls["peer"] = call
                del theirs
            except RuntimeError as error:
                row["peer_error"] = str(error)
        del results

        times = timing.in_turns(calls, seconds)
        for name, key in (("ours", ""), ("peer", "peer_")):
            if name in times:
                row |= {f"{key}ms": times[name].ms, f"{key}quartiles_ms": times[name].quartiles}
        return row | {"rounds": times["ours"].rounds}

    def plot(self, result: dict[str, Any], path: Path) -> None:
        from plot import draw  # needs matplotlib

        draw(result, path)


if __name__ == "__main__":
    sys.exit(main(Prefill()))
