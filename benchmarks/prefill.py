"""sparse_mla_fwd in prefill: a row for each head count, topk, width and number of keys, FlashMLA in the same run."""

import sys
from itertools import product

import peers
import timing
import torch
from frame import CHECKED_QUERIES, Benchmark, Row, check_peer, main
from inputs import SparseMlaFwdCase, make_inputs, verify

import dsa_ext
from dsa_ext._build_info import path as implementation

S_Q = 4096
HEADS = (128, 64, 16)
TOPK = (2048, 512)
D_QK = (576, 512)
S_KV = (8192, 32768, 131072)


def gather_bytes(case: SparseMlaFwdCase) -> int:
    """Key rows as 64-head CTAs fetch them: once for every query and 64 heads, or fewer."""
    tiles = (case.batch or 1) * case.s_q * -(-case.h_q // 64)
    return tiles * case.topk * case.d_qk * 2


class Prefill(Benchmark):
    """Times sparse_mla_fwd on 4096 queries, each over a random subset of distinct keys."""

    name = "prefill"
    op = "sparse_mla_fwd"
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

    def path(self, case: SparseMlaFwdCase, major: int) -> str | None:
        return implementation(major, case.h_q, case.d_qk, case.topk)

    def describe(self, case: SparseMlaFwdCase) -> Row:
        sizes = {name: getattr(case, name) for name in ("batch", "s_q", "h_q", "topk", "d_qk", "d_v", "s_kv")}
        return sizes | {"flop": case.flops, "gather_bytes": gather_bytes(case)}

    def rates(self, row: Row, ceilings: Row) -> Row:
        return super().rates(row, ceilings) | {"gather_tb_s": row["gather_bytes"] / row["ms"] / 1e9}

    def memory_text(self, row: Row) -> str:
        return f"{row['gather_tb_s']:6.2f} TB/s gathered"

    def cpu_call(self, case: SparseMlaFwdCase) -> timing.Call:
        inputs = make_inputs(case)
        return lambda: inputs.call(dsa_ext.sparse_mla_fwd)

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
                check_peer(call()[0][::64, : case.h_q], results[0][::64])
                calls["peer"] = call
            except RuntimeError as error:
                row["peer_error"] = str(error)
        del results

        times = timing.in_turns(calls, seconds)
        for name, key in (("ours", ""), ("peer", "peer_")):
            if name in times:
                row |= {f"{key}ms": times[name].ms, f"{key}quartiles_ms": times[name].quartiles}
        return row | {"rounds": times["ours"].rounds}


if __name__ == "__main__":
    sys.exit(main(Prefill()))
