"""One decode step's sparse attention, whole: the indexer's logits over a paged cache, top-k, attention over what it
chose; in a CUDA graph of several layers. Beside it DeepGEMM, SGLang's top-k and FlashMLA one after the other."""

import sys
from dataclasses import dataclass
from typing import Any

import indexer
import peers
import timing
import torch
from frame import CHECKED_QUERIES, Benchmark, Row, main
from inputs import DecodeInputs, PagedInputs, random_cache, verify_decode

import dsa_ext
from dsa_ext._build_info import decode_path

PAGE_SIZE, TOPK, D_QK, SCALE = indexer.PAGE_SIZE, 2048, 576, 192**-0.5
SIZES = ((1, 131072), (4, 131072), (64, 32768))  # batch, context


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """Of `batch` requests, a token each, over contexts of `keys`."""

    batch: int
    keys: int
    h_q: int = 128
    topk: int = TOPK

    @property
    def flops(self) -> int:
        of_indexer = 2 * self.keys * 64 * indexer.D
        return self.batch * (of_indexer + 2 * self.h_q * min(self.topk, self.keys) * (D_QK + 512))

    @property
    def bytes(self) -> int:
        return self.batch * (self.keys * indexer.KEY_BYTES + self.topk * 656)


class Layers:
    """The calls of a graph: every layer has an indexer cache and a block table of its own; the latent cache, of which a
    step reads little, is one."""

    def __init__(self, case: StepCase, device: str):
        self.case = case
        self.index = indexer.layers(indexer.LogitsCase(batch=case.batch, tokens=1, keys=case.keys), device)
        self.kv_cache = random_cache("v32", len(self.index[0].k_cache), PAGE_SIZE, device)
        self.q = torch.randn(case.batch, 1, case.h_q, D_QK, device=device, dtype=torch.bfloat16)
        self.index_plan = self.index[0].plan(dsa_ext.plan_paged_indexer_logits)
        sizes = {"batch": case.batch, "s_q": 1, "h_q": case.h_q, "topk": case.topk}
        self.plan = dsa_ext.plan_sparse_mla_decode(**sizes, device=device)

    def choose(self, x: PagedInputs) -> torch.Tensor:
        arguments = (x.q, x.k_cache, x.weights, x.context_lens, x.block_table, self.case.topk)
        return dsa_ext.paged_indexer_topk(*arguments, max_context_len=x.max_context_len, plan=self.index_plan)

    def attend(self, idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return dsa_ext.sparse_mla_decode(self.q, self.kv_cache, idx, SCALE, plan=self.plan)

    def calls(self) -> list[timing.Call]:
        return [lambda x=x: self.attend(self.choose(x)) for x in self.index]


class Peers:
    """The three, as one. Their top-k's positions are taken for slots, which saves them a mapping that ours makes."""

    name = "the peers' kernels"

    def __init__(self, logits: peers.DeepGemm, topk: peers.SglangTopk, attention: peers.FlashMla):
        self.logits, self.topk, self.attention = logits, topk, attention

    def describe(self) -> dict[str, str]:
        return {"version": "; ".join(f"{p.name} {p.version}" for p in (self.logits, self.topk, self.attention))}

    def calls(self, layers: Layers) -> list[timing.Call]:
        first, batch = layers.index[0], layers.case.batch
        index_plan = self.logits.plan(first.lengths().int(), PAGE_SIZE)
        some = torch.arange(batch * TOPK, device=layers.q.device, dtype=torch.int32).view(batch, 1, TOPK)
        _, _, *plan = self.attention.decode(layers.q, layers.kv_cache, some, SCALE, None)()
        return [self._call(layers, x, index_plan, tuple(plan)) for x in layers.index]

    def _call(self, layers: Layers, x: PagedInputs, index_plan: torch.Tensor, plan: tuple[Any, ...]) -> timing.Call:
        lens, weights = x.lengths().int(), x.weights.flatten(0, 1)
        arguments = (x.q, x.k_cache, weights, lens, x.block_table, x.max_context_len, index_plan)
        logits, chosen = self.logits.paged_logits(*arguments), lens.new_empty(len(lens), TOPK)
        attend = self.attention.decode(layers.q, layers.kv_cache, chosen[:, None], SCALE, plan)

        def call() -> None:
            self.topk.choose(logits(), chosen, lens.flatten())
            attend()

        return call


class Step(Benchmark):
    """Times paged_indexer_topk and sparse_mla_decode, one after the other."""

    name = "step"
    op = "sparse_mla_decode"
    seconds = 0.5
    cpu_case = StepCase(batch=2, keys=256, h_q=16, topk=64)

    def cases(self) -> list[StepCase]:
        return [StepCase(batch=batch, keys=keys) for batch, keys in SIZES]

    def row_id(self, case: StepCase) -> str:
        return f"h{case.h_q}-b{case.batch}-context{case.keys}-topk{case.topk}"

    def is_quick(self, case: StepCase) -> bool:
        return case.batch == 1

    def path(self, case: StepCase, major: int) -> str | None:
        return decode_path(major, case.h_q, "v32")

    def describe(self, case: StepCase) -> Row:
        ops = ("indexer_logits", "topk_indices", "sparse_mla_decode")
        return vars(case) | {"ops": list(ops), "flop": case.flops, "bytes": case.bytes}

    def rates(self, row: Row, ceilings: Row) -> Row:
        return super().rates(row, ceilings) | {"tb_s": row["bytes"] / row["ms"] / 1e9}

    def memory_text(self, row: Row) -> str:
        return f"{row['tb_s']:5.2f} TB/s"

    def find_peer(self) -> tuple[Peers | None, str]:
        found = [peers.deep_gemm(), peers.sglang_topk(), peers.flash_mla()]
        notes = "; ".join(note for _, note in found)
        return (Peers(*(peer for peer, _ in found)) if all(peer for peer, _ in found) else None), notes

    def cpu_call(self, case: StepCase) -> timing.Call:
        return Layers(case, "cpu").calls()[0]

    def measure(self, case: StepCase, peer: Peers | None, seconds: float) -> Row:
        layers = Layers(case, self.device)
        x, row = layers.index[0], {"calls_a_graph": len(layers.index)}
        idx = layers.choose(x)
        logits = x.call(dsa_ext.paged_indexer_logits)
        tables = {"block_table": x.block_table, "page_size": PAGE_SIZE}
        if not torch.equal(idx[:, 0], dsa_ext.topk_indices(logits[:, 0], case.topk, **tables)):
            raise AssertionError("paged_indexer_topk differs from its parts")
        queries = torch.randperm(case.batch, device=self.device)[:CHECKED_QUERIES]
        verify_decode(layers.attend(idx), DecodeInputs(layers.q, layers.kv_cache, idx, SCALE), queries)
        del logits

        replays = {"ours": timing.graph(layers.calls())}
        if peer:
            try:
                replays["peer"] = timing.graph(peer.calls(layers))
            except RuntimeError as error:
                row["peer_error"] = str(error)
        times = timing.in_turns(replays, seconds)
        for name, key in (("ours", ""), ("peer", "peer_")):
            if name in times:
                row[f"{key}ms"] = times[name].ms / len(layers.index)
                row[f"{key}quartiles_ms"] = [t / len(layers.index) for t in times[name].quartiles]
        return row | {"rounds": times["ours"].rounds}


if __name__ == "__main__":
    sys.exit(main(Step()))
