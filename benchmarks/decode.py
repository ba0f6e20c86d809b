"""Decoding steps through sparse_mla_fwd on a bf16 cache: one or two queries a sequence of a batch, in a CUDA graph."""

import sys
from functools import partial
from itertools import product

import peers
import timing
import torch
from frame import CHECKED_QUERIES, Benchmark, Row, main
from inputs import SparseMlaFwdCase, SparseMlaFwdInputs, make_inputs, verify

import dsa_ext

S_KV = 32768
# At least so many in a graph: 2048 keys of each are three times the L2 cache, so that no call finds its keys there.
SEQUENCES = 64


def flat(inputs: SparseMlaFwdInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """The same work without a batch, which the peer takes: all caches as one, indices moved along."""
    batch, s_kv, _ = inputs.kv.shape
    first = torch.arange(batch, device=inputs.idx.device, dtype=torch.int32)[:, None, None] * s_kv
    return inputs.q.flatten(0, 1), inputs.kv.flatten(0, 1), (inputs.idx + first).flatten(0, 1), inputs.scale


class Decode(Benchmark):
    """Times decode-like calls of sparse_mla_fwd: s_q 1 or 2, a batch of sequences, topk 2048, bf16 cache."""

    name = "decode"
    note = (
        "There is no decode kernel yet (neither the FP8 cache nor a split over the keys): these are calls of the "
        "prefill op\non a bf16 cache, one CTA a query and 64 heads, so that small batches leave most of the GPU idle."
    )
    cpu_case = SparseMlaFwdCase(batch=2, s_q=1, h_q=16, topk=128, d_qk=576, s_kv=1024)

    def cases(self) -> list[SparseMlaFwdCase]:
        steps = [(b, 1) for b in (1, 4, 16, 64, 128)] + [(128, 2)]
        return [
            SparseMlaFwdCase(batch=b, s_q=s_q, h_q=h, topk=2048, d_qk=576, s_kv=S_KV)
            for h, (b, s_q) in product((128, 16), steps)
        ]

    def row_id(self, case: SparseMlaFwdCase) -> str:
        return f"h{case.h_q}-b{case.batch}-sq{case.s_q}"

    def is_quick(self, case: SparseMlaFwdCase) -> bool:
        return case.s_q == 1 and case.batch in (1, 64)

    def measure(self, case: SparseMlaFwdCase, peer: peers.FlashMla | None, seconds: float) -> Row:
        steps = [make_inputs(case, self.device, seed) for seed in range(-(-SEQUENCES // case.batch))]
        results = steps[0].call(dsa_ext.sparse_mla_fwd)
        queries = torch.randperm(case.batch * case.s_q, device=self.device)[:CHECKED_QUERIES]
        verify(results, steps[0], queries)

        row: Row = {"calls_a_graph": len(steps)}
        replays = {"ours": timing.graph([partial(inputs.call, dsa_ext.sparse_mla_fwd) for inputs in steps])}
        if peer:
            row["peer_heads"] = peer.heads(case.h_q)
            try:
                replays["peer"] = timing.graph([peer.prefill(*flat(inputs)) for inputs in steps])
            except RuntimeError as error:
                row["peer_error"] = str(error)
        times = timing.in_turns(replays, seconds)
        for name, key in (("ours", ""), ("peer", "peer_")):
            if name in times:
                row[f"{key}ms"] = times[name].ms / len(steps)
        return row | {"rounds": times["ours"].rounds}


if __name__ == "__main__":
    sys.exit(main(Decode()))
