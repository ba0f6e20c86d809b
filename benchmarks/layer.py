"""One attention layer of DeepSeek-V3.2, dsa_ext.nn.SparseMLAttention, whole: prefill of 4K to 128K tokens, in chunks of
4096, and decoding of 1 to 128 requests with 128K tokens each. Its time by part, beside the same layer with the peers'
kernels, and with dense attention (torch's) in place of the indexer and the sparse attention."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import indexer
import peers
import timing
import torch
from frame import CHECKED_QUERIES, Benchmark, Row, main
from inputs import DecodeInputs, SparseMlaFwdInputs, cosine_difference, random_cache, verify, verify_decode
from layer_kernels import DenseDecode, DensePrefill, Peers, Stages, dense_stages, on, ours, parts

import dsa_ext
from dsa_ext import nn
from dsa_ext._build_info import decode_path
from dsa_ext._build_info import path as implementation

CHUNK, PAGE_SIZE = 4096, 64
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)  # of a prefill
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXT = 131072  # in decoding
GRAPH_CALLS = 4
GRAPH_MS = 2.0  # what takes longer needs no graph to hide its launches
# Of a whole layer's result. Keys at the edge of the choice may differ, whose logits differ in the last bits; dense
# attention's new keys are not rounded to FP8. A call that is misunderstood is far from either.
COSINE = 0.02
FORMS = {
    "prefill": ("indexer_topk", "sparse_mla_fwd"),
    "decode": ("paged_indexer_topk", "sparse_mla_decode"),
}
OPS = ("indexer_quant", "indexer_logits", "topk_indices", "kv_cache")  # and the attention
TINY = nn.DSAConfig(
    dim=64, n_heads=4, q_lora_rank=32, qk_nope_head_dim=16, v_head_dim=16, index_n_heads=8, index_topk=64
)


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """A prompt of `context` tokens, computed in chunks; or a new token of each of `batch` requests that have `context`
    tokens with it."""

    form: str
    context: int
    batch: int = 1
    chunk: int = CHUNK
    config: nn.DSAConfig = nn.DSAConfig.deepseek_v32()


@lru_cache(maxsize=1)
def make_layer(config: nn.DSAConfig, device: str) -> nn.SparseMLAttention:
    torch.manual_seed(0)
    return nn.SparseMLAttention(config, device=device, dtype=torch.bfloat16).requires_grad_(False)


class Prompt:
    """The layer's calls on the chunks of a prompt, its pages in random order."""

    def __init__(self, case: LayerCase, device: str):
        self.case, self.layer = case, make_layer(case.config, device)
        pages = -(-case.context // PAGE_SIZE)
        g = torch.Generator(device).manual_seed(0)
        table = torch.randperm(pages, generator=g, device=device).int()
        self.cache = nn.LayerCache.new(case.config, pages=pages, page_size=PAGE_SIZE, device=device)
        rope = nn.Rope(case.config.rope, device=device)
        starts = range(0, case.context, case.chunk)
        lengths = [min(case.chunk, case.context - start) for start in starts]
        options = {"page_size": PAGE_SIZE, "rope": rope}
        self.steps = [nn.Prefill(table, start=s, length=n, **options) for s, n in zip(starts, lengths, strict=True)]
        normal = {"generator": g, "device": device, "dtype": torch.bfloat16}
        self.x = [torch.randn(n, case.config.dim, **normal) for n in lengths]

    def chunks(self) -> list[timing.Call]:
        """Of which the last is what is timed by part."""
        steps = zip(self.x, self.steps, strict=True)
        return [lambda x=x, step=step: self.layer(x, step, self.cache)[0] for x, step in steps]

    def dense(self) -> tuple[DensePrefill, Callable[..., torch.Tensor], list[timing.Call]]:
        """And the call of the last chunk, to which an attention may be given, and all chunks'."""
        dense = DensePrefill(self.layer, self.case.context)
        chunks = [partial(dense, x, step) for x, step in zip(self.x, self.steps, strict=True)]
        return dense, chunks[-1], chunks


class Batch:
    """The layer's call on a decode step, over caches that are full, their pages in random order."""

    def __init__(self, case: LayerCase, device: str):
        self.case, self.layer = case, make_layer(case.config, device)
        width = case.context // PAGE_SIZE
        pages = case.batch * width
        g = torch.Generator(device).manual_seed(0)
        table = torch.randperm(pages, generator=g, device=device).int().view(case.batch, width)
        keys = random_cache("v32", min(pages, 2048), PAGE_SIZE, device)
        index_keys = torch.cat(
            [
                indexer.codes(len(keys), PAGE_SIZE * indexer.D, device=device, g=g).view(torch.uint8),
                (torch.rand(len(keys), PAGE_SIZE, generator=g, device=device) + 0.5).view(torch.uint8),
            ],
            1,
        ).view(len(keys), PAGE_SIZE, -1)
        self.cache = nn.LayerCache(_filled(keys, pages), _filled(index_keys, pages))
        lens = torch.full((case.batch,), case.context, dtype=torch.int32, device=device)
        rope = nn.Rope(case.config.rope, device=device)
        sizes = {"next_n": 1, "max_context_len": case.context, "page_size": PAGE_SIZE}
        self.step = nn.Decode(table, lens, **sizes, rope=rope)
        self.x = torch.randn(case.batch, case.config.dim, generator=g, device=device, dtype=torch.bfloat16)

    def call(self) -> torch.Tensor:
        return self.layer(self.x, self.step, self.cache)[0]

    def dense(self) -> tuple[DenseDecode, Callable[..., torch.Tensor]]:
        """Over the same keys."""
        slots = self.step.context_slots
        latents = self.x.new_empty(*slots.shape, self.case.config.key_dim)
        for request, some in zip(latents, slots, strict=True):
            request.copy_(self.cache.keys(some, latents.dtype))
        dense = DenseDecode(self.layer, latents)
        return dense, partial(dense, self.x, self.step)


def _filled(pages: torch.Tensor, count: int) -> torch.Tensor:
    """So many pages, the given ones over and over."""
    out = pages.new_empty(count, *pages.shape[1:])
    for some in out.split(len(pages)):
        some.copy_(pages[: len(some)])
    return out


def verify_layer(stages: Stages, topk: int) -> None:
    """Both of the layer's calls, for some of the queries: the choice is that of its two steps, and attention over it is
    right. AssertionError if not."""
    (q, *_), chosen = stages.index.arguments, stages.index.result
    if q.dim() == 3:
        rows = torch.randperm(len(q), device=q.device)[:CHECKED_QUERIES]
        q, k, k_scale, weights, k_start, k_end, _ = stages.index.arguments
        logits = dsa_ext.indexer_logits(q[rows], k, k_scale, weights[rows], k_start[rows], k_end[rows])
        want = dsa_ext.topk_indices(logits, topk)
    else:
        rows = torch.randperm(len(q), device=q.device)[:CHECKED_QUERIES]
        q, k_cache, weights, lengths, table, _ = stages.index.arguments
        some = (q[rows], k_cache, weights.view(q.shape[:3])[rows], lengths[rows], table[rows])
        logits = dsa_ext.paged_indexer_logits(*some, **stages.index.options)
        want = dsa_ext.topk_indices(logits[:, 0], topk, block_table=table[rows], page_size=PAGE_SIZE)[:, None]
    if not torch.equal(chosen[rows], want):
        raise AssertionError(f"{stages.names[0]} differs from its parts")
    arguments, result = stages.attend.arguments, stages.attend.result
    if q.dim() == 3:
        verify(result, SparseMlaFwdInputs(*arguments, 512, None, None), rows)
    else:
        verify_decode(result, DecodeInputs(*arguments, stages.attend.options["topk_length"]), rows)


def check_same(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """RuntimeError unless two layers' results agree."""
    difference = cosine_difference(theirs.double(), ours.double()).max().item()
    if not difference <= COSINE:
        raise RuntimeError(f"its result differs from ours, 1 - cosine = {difference:.1e}: not timed")


class Layer(Benchmark):
    """Times one attention layer of DeepSeek-V3.2."""

    name = "layer"
    op = "sparse_mla_fwd"
    seconds = 0.2
    cpu_case = LayerCase(form="prefill", context=192, chunk=128, config=TINY)

    def cases(self) -> list[LayerCase]:
        prompts = [LayerCase(form="prefill", context=n) for n in LENGTHS]
        return prompts + [LayerCase(form="decode", context=CONTEXT, batch=b) for b in BATCHES]

    def row_id(self, case: LayerCase) -> str:
        return f"{case.form}-b{case.batch}-context{case.context}"

    def is_quick(self, case: LayerCase) -> bool:
        return (case.form, case.context, case.batch) in (("prefill", 16384, 1), ("decode", CONTEXT, 1))

    def path(self, case: LayerCase, major: int) -> str | None:
        config = case.config
        if case.form == "prefill":
            return implementation(major, config.n_heads, config.key_dim, config.index_topk)
        return decode_path(major, config.n_heads, "v32")

    def describe(self, case: LayerCase) -> Row:
        names = ("dim", "n_heads", "index_n_heads", "index_topk")
        sizes = {name: getattr(case, name) for name in ("form", "context", "batch", "chunk")}
        sizes |= {name: getattr(case.config, name) for name in names}
        return sizes | {"ops": [*OPS, FORMS[case.form][1]]}

    def rates(self, row: Row, ceilings: Row) -> Row:
        rates = {"ratio": _over(row.get("peer_ms"), row["ms"]), "dense_ratio": _over(row.get("dense_ms"), row["ms"])}
        for name in ("peer", "dense"):
            rates[f"total_{name}_ratio"] = _over(row.get(f"total_{name}_ms"), row.get("total_ms"))
        return rates

    def rates_text(self, row: Row) -> str:
        if "parts_ms" not in row:
            return ""
        text = " = " + " + ".join(f"{ms * 1e3:.1f} {name}" for name, ms in row["parts_ms"].items()) + " us"
        if row.get("total_ms"):
            text += f", all chunks {row['total_ms']:.1f} ms"
        if row["dense_ratio"]:
            return f"{text}   dense {row['dense_ms']:.3f} ms, {row['dense_ratio']:.2f} x"
        return text + (f"   dense: {row['dense_error']}" if row.get("dense_error") else "")

    def find_peer(self) -> tuple[Peers | None, str]:
        found = [peers.deep_gemm(), peers.sglang_topk(), peers.flash_mla()]
        notes = "; ".join(note for _, note in found)
        return (Peers(*(peer for peer, _ in found)) if all(peer for peer, _ in found) else None), notes

    def cpu_call(self, case: LayerCase) -> timing.Call:
        return Prompt(case, "cpu").chunks()[-1]

    def measure(self, case: LayerCase, peer: Peers | None, seconds: float) -> Row:
        if self.device == "cuda":
            torch.cuda.empty_cache()
        # torch's plain attention would compute in float32 otherwise.
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        return (self._prefill if case.form == "prefill" else self._decode)(case, peer, seconds)

    def _prefill(self, case: LayerCase, peer: Peers | None, seconds: float) -> Row:
        prompt, names, row = Prompt(case, self.device), FORMS["prefill"], {}
        chunks = prompt.chunks()
        last = chunks[-1]
        last()  # once before what is timed: memory is allocated
        row["total_ms"] = timing.once(chunks)
        stages = Stages(last, names, ours(names))
        verify_layer(stages, case.config.index_topk)
        want, calls = last(), _named("", stages.calls())
        if peer:
            try:
                kernels = peer.kernels(prompt.steps[-1])
                whole = [partial(on, call, names, kernels.index, kernels.attend) for call in chunks]
                check_same(whole[-1]()[::64], want[::64])
                row["total_peer_ms"] = timing.once(whole)
                calls |= _named("peer", Stages(last, names, kernels).calls())
            except RuntimeError as error:
                row["peer_error"] = str(error)
        try:
            dense, call, all_chunks = prompt.dense()
            call()
            row["total_dense_ms"] = timing.once(all_chunks)
            if case.context == case.chunk:  # the first queries see no more tokens than they may choose
                some = slice(0, case.config.index_topk, 64)
                check_same(call()[some], want[some])
            calls |= _named("dense", dense_stages(lambda attend: call(attend=attend), dense))
        except RuntimeError as error:
            row["dense_error"] = str(error)
        return row | _times(timing.in_turns(calls, seconds), {})

    def _decode(self, case: LayerCase, peer: Peers | None, seconds: float) -> Row:
        batch, names, row = Batch(case, self.device), FORMS["decode"], {}
        stages = Stages(batch.call, names, ours(names))
        verify_layer(stages, case.config.index_topk)
        want, calls = batch.call(), _named("", stages.calls())
        if peer:
            try:
                theirs = Stages(batch.call, names, peer.kernels(batch.step)).calls()
                check_same(theirs["attention"](), want)
                calls |= _named("peer", theirs)
            except RuntimeError as error:
                row["peer_error"] = str(error)
        replays = {name: timing.graph([call] * GRAPH_CALLS) for name, call in calls.items()}
        counts = {"": GRAPH_CALLS, "peer": GRAPH_CALLS}
        try:
            dense, call = batch.dense()
            row["dense_backend"], seconds_a_call = dense.choose(self._queries(batch))
            if case.context <= case.config.index_topk:
                check_same(call(), want)
            stages = _named("dense", dense_stages(lambda attend: call(attend=attend), dense))
            if seconds_a_call * 1e3 <= GRAPH_MS:
                stages = {name: timing.graph([stage] * GRAPH_CALLS) for name, stage in stages.items()}
                counts["dense"] = GRAPH_CALLS
            replays |= stages
        except RuntimeError as error:
            row["dense_error"] = str(error)
        return row | _times(timing.in_turns(replays, seconds), counts)

    @staticmethod
    def _queries(batch: Batch) -> torch.Tensor:
        layer = batch.layer
        return layer._queries(layer.q_norm(layer.wq_a(batch.x)), batch.step)


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _named(side: str, calls: dict[str, timing.Call]) -> dict[Any, timing.Call]:
    return {(side, part): call for part, call in calls.items()}


def _times(times: dict[Any, timing.Timing], counts: dict[str, int]) -> Row:
    """Of each side, whose calls are so many of the layer, or one: its last stage is the whole layer."""
    row: Row = {}
    for side in dict.fromkeys(side for side, _ in times):
        calls = counts.get(side, 1)
        stages = {part: t for (s, part), t in times.items() if s == side}
        key, whole = f"{side}_" if side else "", list(stages.values())[-1]
        row[f"{key}ms"] = whole.ms / calls
        row[f"{key}quartiles_ms"] = [t / calls for t in whole.quartiles]
        row[f"{key}parts_ms"] = parts({part: t.ms / calls for part, t in stages.items()})
        row.setdefault("rounds", whole.rounds)
    return row


if __name__ == "__main__":
    sys.exit(main(Layer()))
