"""The lightning indexer's logits: of a prefill chunk of 4096 queries over 4K to 128K keys, and of decoding over a paged
cache, in a CUDA graph of several layers; DeepGEMM in the same run."""

import math
import sys
from dataclasses import dataclass
from functools import partial
from itertools import product

import peers
import timing
import torch
from frame import CHECKED_QUERIES, PEER_COSINE, Benchmark, Row, main
from inputs import PagedInputs, RaggedInputs, masked_logits, verify_logits

import dsa_ext
from dsa_ext._build_info import logits_path

S_Q, D, PAGE_SIZE = 4096, 128, 64
S_K = (4096, 16384, 65536, 131072)
PAGED = ((1, 131072, 1), (4, 131072, 1), (64, 32768, 1), (64, 32768, 2))  # batch, context, next_n
KEY_BYTES = D + 4
TOUCHED = 150e6  # bytes of keys that a graph reads at least before it comes back to the same
E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True, kw_only=True)
class LogitsCase:
    """Ragged: `tokens` queries, the last ones of `keys` keys, each seeing those up to its own. Paged: `batch` requests
    of `tokens` new tokens over a context of `keys`."""

    batch: int | None = None
    tokens: int
    keys: int
    heads: int = 64

    @property
    def flops(self) -> int:
        seen = self.tokens * self.keys - self.tokens * (self.tokens - 1) // 2
        return 2 * (self.batch or 1) * seen * self.heads * D

    @property
    def key_bytes(self) -> int:
        return (self.batch or 1) * self.keys * KEY_BYTES


def codes(*shape: int, device: str, g: torch.Generator) -> torch.Tensor:
    """(In pieces: the numbers take four times the memory.)"""
    out = torch.empty(shape, dtype=E4M3, device=device)
    flat = out.view(-1)
    for piece in flat.split(2**26):
        piece.copy_(torch.randn(piece.shape, generator=g, device=device))
    return out


def ragged_inputs(case: LogitsCase, device: str) -> RaggedInputs:
    g = torch.Generator(device).manual_seed(0)
    q, k = codes(case.tokens, case.heads, D, device=device, g=g), codes(case.keys, D, device=device, g=g)
    scale = torch.rand(case.keys, generator=g, device=device) + 0.5
    weights = torch.randn(case.tokens, case.heads, generator=g, device=device)
    end = torch.arange(case.keys - case.tokens + 1, case.keys + 1, dtype=torch.int32, device=device)
    return RaggedInputs(q, k, scale, weights, torch.zeros_like(end), end)


def layers(case: LogitsCase, device: str) -> list[PagedInputs]:
    """The calls of a graph, each with a cache of its own, in shuffled pages."""
    g = torch.Generator(device).manual_seed(0)
    count, width = max(2, math.ceil(TOUCHED / case.key_bytes)), case.keys // PAGE_SIZE
    pages = case.batch * width
    q = codes(case.batch, case.tokens, case.heads, D, device=device, g=g)
    weights = torch.randn(case.batch, case.tokens, case.heads, generator=g, device=device)
    lens = torch.full((case.batch,), case.keys, dtype=torch.int32, device=device)
    result = []
    for _ in range(count):
        keys = codes(pages * PAGE_SIZE, D, device=device, g=g)
        scale = torch.rand(pages * PAGE_SIZE, generator=g, device=device) + 0.5
        data = [keys.view(torch.uint8).view(pages, -1), scale.view(torch.uint8).view(pages, -1)]
        cache = torch.cat(data, 1).view(pages, PAGE_SIZE, KEY_BYTES)
        table = torch.randperm(pages, generator=g, device=device).int().view(case.batch, width)
        result.append(PagedInputs(q, cache, weights, lens, table, case.keys, keys, scale))
    return result


def verify_ragged(out: torch.Tensor, x: RaggedInputs) -> None:
    """Some rows."""
    rows = torch.randperm(len(x.q), device=x.q.device)[:CHECKED_QUERIES]
    columns = torch.arange(len(x.k), device=x.q.device)
    seen = columns < x.k_end[rows, None]
    verify_logits(out[rows], *masked_logits(x.q[rows], x.k, x.k_scale.double(), x.weights[rows], seen))


def verify_paged(out: torch.Tensor, x: PagedInputs) -> None:
    """Some requests."""
    t = torch.arange(x.max_context_len, device=x.q.device)
    for b in torch.randperm(len(x.q))[:CHECKED_QUERIES].tolist():
        slots = x.block_table[b].long()[t // PAGE_SIZE] * PAGE_SIZE + t % PAGE_SIZE
        seen = t < x.lengths()[b][:, None]
        verify_logits(out[b], *masked_logits(x.q[b], x.keys[slots], x.scales[slots].double(), x.weights[b], seen))


def check_peer(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """RuntimeError unless both agree where ours has logits: the peer leaves the rest as it was."""
    for i in torch.randperm(len(ours))[:CHECKED_QUERIES].tolist():
        seen = ours[i] != -torch.inf
        a, b = theirs[i, : ours.shape[1]][seen].double(), ours[i][seen].double()
        difference = 1 - float(a @ b / (a.norm() * b.norm()))
        if not difference <= PEER_COSINE:
            raise RuntimeError(f"its result differs from ours, 1 - cosine = {difference:.1e}: not timed")


class Indexer(Benchmark):
    """Times indexer_logits and paged_indexer_logits."""

    name = "indexer"
    op = "indexer_logits"
    seconds = 0.5
    cpu_case = LogitsCase(tokens=16, keys=256, heads=32)
    matmul = "fp8"

    def cases(self) -> list[LogitsCase]:
        ragged = [LogitsCase(tokens=S_Q, keys=keys, heads=heads) for heads, keys in product((64, 32), S_K)]
        return ragged + [LogitsCase(batch=b, keys=keys, tokens=n) for b, keys, n in PAGED]

    def row_id(self, case: LogitsCase) -> str:
        if case.batch is None:
            return f"ragged-h{case.heads}-sq{case.tokens}-sk{case.keys}"
        return f"paged-h{case.heads}-b{case.batch}-n{case.tokens}-sk{case.keys}"

    def is_quick(self, case: LogitsCase) -> bool:
        return case.heads == 64 and case.keys in (4096, 16384, 131072) and case.batch != 4

    def path(self, case: LogitsCase, major: int) -> str | None:
        return logits_path(major, case.heads, D, 0 if case.batch is None else PAGE_SIZE)

    def describe(self, case: LogitsCase) -> Row:
        out_bytes = 4 * (case.batch or 1) * case.tokens * case.keys
        sizes = {"form": "ragged" if case.batch is None else "paged", "d": D, **vars(case)}
        return sizes | {"flop": case.flops, "key_bytes": case.key_bytes, "out_bytes": out_bytes}

    def rates(self, row: Row, ceilings: Row) -> Row:
        """Of a paged row the bytes of keys, each read once; of a ragged one the bytes of the result."""
        copy = ceilings["copy_tb_s"]
        tb_s = row["key_bytes" if row["form"] == "paged" else "out_bytes"] / row["ms"] / 1e9
        return super().rates(row, ceilings) | {"tb_s": tb_s, "copy_share": tb_s / copy if copy else None}

    def memory_text(self, row: Row) -> str:
        what = "of keys" if row["form"] == "paged" else "written"
        return f"{row['tb_s']:5.2f} TB/s {what} {row['copy_share']:6.1%} of a copy"

    def find_peer(self) -> tuple[peers.DeepGemm | None, str]:
        return peers.deep_gemm()

    def cpu_call(self, case: LogitsCase) -> timing.Call:
        inputs = ragged_inputs(case, "cpu")
        return lambda: inputs.call(dsa_ext.indexer_logits)

    def measure(self, case: LogitsCase, peer: peers.DeepGemm | None, seconds: float) -> Row:
        return (self._ragged if case.batch is None else self._paged)(case, peer, seconds)

    def _ragged(self, case: LogitsCase, peer: peers.DeepGemm | None, seconds: float) -> Row:
        x = ragged_inputs(case, self.device)
        calls, row = {"ours": partial(x.call, dsa_ext.indexer_logits)}, {}
        out = calls["ours"]()
        verify_ragged(out, x)
        if peer:
            try:
                call = peer.logits(*vars(x).values())
                check_peer(call(), out)
                calls["peer"] = call
            except RuntimeError as error:
                row["peer_error"] = str(error)
        del out
        return row | _times(timing.in_turns(calls, seconds), 1)

    def _paged(self, case: LogitsCase, peer: peers.DeepGemm | None, seconds: float) -> Row:
        steps = layers(case, self.device)
        first, row = steps[0], {"calls_a_graph": len(steps)}
        plan = first.plan(dsa_ext.plan_paged_indexer_logits)
        out = first.call(dsa_ext.paged_indexer_logits, plan=plan)
        verify_paged(out, first)
        replays = {"ours": timing.graph([partial(x.call, dsa_ext.paged_indexer_logits, plan=plan) for x in steps])}
        if peer:
            try:
                lens = first.lengths().int()
                their_plan = peer.plan(lens, PAGE_SIZE)

                def call(x: PagedInputs) -> timing.Call:
                    weights = x.weights.flatten(0, 1)
                    return peer.paged_logits(
                        x.q, x.k_cache, weights, lens, x.block_table, x.max_context_len, their_plan
                    )

                check_peer(call(first)(), out.flatten(0, 1))
                replays["peer"] = timing.graph([call(x) for x in steps])
            except RuntimeError as error:
                row["peer_error"] = str(error)
        return row | _times(timing.in_turns(replays, seconds), len(steps))


def _times(times: dict[str, timing.Timing], calls: int) -> Row:
    row: Row = {"rounds": times["ours"].rounds}
    for name, key in (("ours", ""), ("peer", "peer_")):
        if name in times:
            row[f"{key}ms"] = times[name].ms / calls
            row[f"{key}quartiles_ms"] = [t / calls for t in times[name].quartiles]
    return row


if __name__ == "__main__":
    sys.exit(main(Indexer()))
