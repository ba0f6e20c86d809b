"""sparse_mla_decode over FP8 and bf16 caches: one or two queries a request, batches of 1 to 256, in a CUDA graph of
several layers; FlashMLA in the same run."""

import math
import sys
from functools import lru_cache, partial
from itertools import product

import peers
import timing
import torch
from frame import CHECKED_QUERIES, Benchmark, Row, check_peer, main
from inputs import DecodeCase, DecodeInputs, random_cache, verify_decode

import dsa_ext
from dsa_ext._build_info import decode_path

HEADS = (128, 64, 16)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SLOTS = 2**20  # of the pool that all layers' caches are parts of
PAGE_SIZE = 64
TOUCHED = 200e6  # bytes of keys that a graph reads at least before it comes back to the same: several times the L2
TOKEN_BYTES = {"v32": 656, "v4": 584, "bf16": 1152}


@lru_cache(maxsize=1)
def pool(format: str, slots: int, device: str) -> torch.Tensor:
    """A cache full of keys, made once for all rows of the format."""
    return random_cache(format, slots // PAGE_SIZE, PAGE_SIZE, device)


def layers(case: DecodeCase, device: str, seed: int = 0) -> list[DecodeInputs]:
    """The calls of a graph. Their indices are successive pieces of random permutations of the pool, so that no two
    queries share a slot before all slots have been named, and every query has a random subset in random order."""
    count = max(2, math.ceil(TOUCHED / key_bytes(case)))
    g = torch.Generator(device).manual_seed(seed)
    needed = count * case.batch * case.s_q * case.topk
    slots = [torch.randperm(case.slots, generator=g, device=device) for _ in range(-(-needed // case.slots))]
    idx = torch.cat(slots)[:needed].int().view(count, case.batch, case.s_q, case.topk)
    shape = (case.batch, case.s_q, case.h_q, case.d_qk)
    q = torch.randn(shape, generator=g, device=device, dtype=torch.bfloat16)
    return [DecodeInputs(q, pool(case.format, case.slots, device), i, case.scale) for i in idx]


def key_bytes(case: DecodeCase) -> int:
    """What a call must read of the cache."""
    return case.batch * case.s_q * case.topk * TOKEN_BYTES[case.format]


class Decode(Benchmark):
    """Times sparse_mla_decode on a batch of requests, each query over its own random subset of distinct slots."""

    name = "decode"
    op = "sparse_mla_decode"
    seconds = 0.5
    cpu_case = DecodeCase(batch=2, h_q=16, topk=128, page_size=PAGE_SIZE, slots=1024)

    def cases(self) -> list[DecodeCase]:
        sizes = [(h, b, s_q, 2048, "v32") for h, s_q, b in product(HEADS, (1, 2), BATCHES)]
        sizes.append((128, 8, 1, 16384, "v32"))
        sizes += [(h, b, 1, 2048, f) for f, h, b in product(("v4", "bf16"), (128, 16), (1, 64))]
        return [
            DecodeCase(batch=b, s_q=s_q, h_q=h, topk=topk, format=f, page_size=PAGE_SIZE, slots=SLOTS)
            for h, b, s_q, topk, f in sizes
        ]

    def row_id(self, case: DecodeCase) -> str:
        return f"{case.format}-h{case.h_q}-b{case.batch}-sq{case.s_q}-topk{case.topk}"

    def is_quick(self, case: DecodeCase) -> bool:
        return case.format == "v32" and case.s_q == 1 and case.batch in (1, 64) and case.topk == 2048

    def path(self, case: DecodeCase, major: int) -> str | None:
        return decode_path(major, case.h_q, case.format)

    def describe(self, case: DecodeCase) -> Row:
        names = ("format", "batch", "s_q", "h_q", "topk", "d_qk", "page_size", "slots")
        sizes = {name: getattr(case, name) for name in names}
        return sizes | {"flop": case.flops, "key_bytes": key_bytes(case)}

    def rates(self, row: Row, ceilings: Row) -> Row:
        copy, tb_s = ceilings["copy_tb_s"], row["key_bytes"] / row["ms"] / 1e9
        return super().rates(row, ceilings) | {"tb_s": tb_s, "copy_share": tb_s / copy if copy else None}

    def memory_text(self, row: Row) -> str:
        return f"{row['tb_s']:5.2f} TB/s {row['copy_share']:6.1%} of a copy"

    def cpu_call(self, case: DecodeCase) -> timing.Call:
        inputs = layers(case, "cpu")[0]
        return lambda: inputs.call(dsa_ext.sparse_mla_decode)

    def measure(self, case: DecodeCase, peer: peers.FlashMla | None, seconds: float) -> Row:
        steps = layers(case, self.device)
        first, row = steps[0], {"calls_a_graph": len(steps)}
        plan = first.plan(dsa_ext.plan_sparse_mla_decode)
        results = first.call(dsa_ext.sparse_mla_decode, plan=plan)
        queries = torch.randperm(case.batch * case.s_q, device=self.device)[:CHECKED_QUERIES]
        verify_decode(results, first, queries)

        invariant = first.plan(dsa_ext.plan_sparse_mla_decode, batch_invariant=True)
        replays = {
            name: timing.graph([partial(x.call, dsa_ext.sparse_mla_decode, plan=p) for x in steps])
            for name, p in (("ours", plan), ("invariant", invariant))
        }
        if peer and case.format in peer.decode_formats:
            row["peer_heads"] = peer.heads(case.h_q)
            try:
                q = peer.padded(first.q)
                call = partial(peer.decode, q, first.kv_cache, scale=first.scale)
                theirs, _, *peer_plan = call(idx=first.idx, plan=None)()
                check_peer(theirs[:, :, : case.h_q].flatten(0, 1)[queries], results[0].flatten(0, 1)[queries])
                replays["peer"] = timing.graph([call(idx=x.idx, plan=tuple(peer_plan)) for x in steps])
            except RuntimeError as error:
                row["peer_error"] = str(error)
        times = timing.in_turns(replays, seconds)
        for name, key in (("ours", ""), ("invariant", "invariant_"), ("peer", "peer_")):
            if name in times:
                row[f"{key}ms"] = times[name].ms / len(steps)
                row[f"{key}quartiles_ms"] = [t / len(steps) for t in times[name].quartiles]
        return row | {"rounds": times["ours"].rounds}


if __name__ == "__main__":
    sys.exit(main(Decode()))
