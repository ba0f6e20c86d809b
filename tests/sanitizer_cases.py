"""A few tiny calls of every implementation, small enough for compute-sanitizer's slowest tool. Not a pytest file:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/sanitizer_cases.py

and so on with racecheck, synccheck, initcheck. Without torch's caching every tensor is an allocation of its own, so
that a read past its end is seen. The reference runs on the CPU, out of the tools' sight. Exit status 1 if a
result is wrong. Arguments are parts of names: only the cases whose names have all of them are run.
"""

import math
import sys
from dataclasses import dataclass, replace

import decode_cases
import decode_oracle
import indexer_oracle
import logits_cases
import torch
from cases import SparseMlaFwdCase as Case
from cases import SparseMlaFwdInputs, make_inputs
from decode_cases import FORMATS, DecodeCase, DecodeInputs
from logits_cases import PagedCase, RaggedCase
from oracle import verify
from topk_oracle import expected, make_logits

import dsa_ext
from dsa_ext._build_info import decode_path, logits_path, path

TRICKY = {"invalid": 0.2, "poison": True, "attn_sink": "edge", "topk_length": "edge", "s_kv": 400}
DECODE_TRICKY = {"invalid": 0.2, "poison": True, "attn_sink": "edge", "topk_length": "random"}
CASES = [
    case
    for h_q in (128, 64, 32, 16, 8)
    for d_qk in (576, 512)
    for case in (
        Case(h_q=h_q, d_qk=d_qk, topk=65, s_q=2),
        Case(h_q=h_q, d_qk=d_qk, topk=130, s_q=5, **TRICKY),
    )
] + [
    Case(h_q=24, topk=1, s_q=2),
    Case(h_q=1, topk=65, s_q=2),
    Case(h_q=100, topk=65, s_q=2),
    Case(h_q=64, indices="some_none", poison=True, s_q=4),
    Case(h_q=16, indices="some_none", poison=True, s_q=4),
    Case(h_q=64, values="ramp", indices="ascending", topk=260),
    Case(h_q=16, values="ramp", indices="ascending", topk=260),
    Case(h_q=64, batch=2, s_q=2, topk_length="random"),
    Case(h_q=16, batch=2, s_q=2, topk_length="random"),
    # more queries than there are SMs: CTAs take several
    Case(h_q=64, s_q=200, topk=10, s_kv=64),
    Case(h_q=16, s_q=300, topk=10, s_kv=64),
]


EXTRA = {"extra_topk": 70, "extra_topk_length": "random", "extra_page_size": 3}
DECODE_CASES = [
    case
    for h_q in (128, 64, 32, 16, 8)
    for format in FORMATS
    for case in (
        DecodeCase(h_q=h_q, format=format, topk=65, batch=2),
        DecodeCase(h_q=h_q, format=format, topk=130, batch=2, s_q=2, page_size=53, slots=400, **DECODE_TRICKY),
    )
] + [
    DecodeCase(h_q=24, topk=1, batch=2, page_size=1),
    # with 132 SMs teams of 2, 4 and 8, and two of 16
    DecodeCase(h_q=64, topk=300, slots=400, batch=40, **DECODE_TRICKY),
    DecodeCase(h_q=64, format="v4", topk=600, slots=700, batch=20),
    DecodeCase(h_q=128, format="bf16", topk=1100, slots=1200, batch=7, **DECODE_TRICKY),
    DecodeCase(h_q=9, topk=2000, slots=2100, batch=3, **DECODE_TRICKY),
    # too many requests for teams: parts of requests
    DecodeCase(h_q=128, topk=300, slots=400, batch=40, **DECODE_TRICKY),
    # up to 16 heads: teams, and a request a CTA
    DecodeCase(h_q=8, format="bf16", topk=600, slots=700, batch=40, **DECODE_TRICKY),
    DecodeCase(h_q=16, format="v4", topk=600, slots=700, batch=40, **DECODE_TRICKY),
    DecodeCase(h_q=16, topk=300, slots=400, batch=70, **DECODE_TRICKY),
    DecodeCase(h_q=8, format="v4", topk=300, slots=400, batch=70, **DECODE_TRICKY),
    DecodeCase(h_q=100, topk=65, batch=1),
    DecodeCase(h_q=64, topk=700, slots=800, batch=1, **EXTRA),
    DecodeCase(h_q=16, topk=700, slots=800, batch=1, **EXTRA),
    DecodeCase(h_q=64, format="v4", batch=5, topk_length="some_zero", length_a="request", **EXTRA),
    DecodeCase(h_q=16, scales="range", poison=True, batch=2),
    # more requests than there are SMs
    DecodeCase(h_q=64, batch=200, topk=10, slots=64),
    DecodeCase(h_q=16, batch=300, topk=10, slots=64),
]


@dataclass(frozen=True)
class QuantCase:
    """Of quantize_indexer, prepare_indexer and store_indexer_cache."""

    tokens: int
    heads: int
    d: int
    page_size: int
    lead: int = 0  # bytes before the cache
    rope: str = "half"
    scale_format: str = "ue8m0"

    @property
    def id(self) -> str:
        sizes = f"{self.tokens} x {self.heads}, d {self.d}, page_size {self.page_size}, lead {self.lead}"
        return f"{sizes}, {self.rope}, {self.scale_format}"


QUANT_CASES = [
    QuantCase(tokens=1, heads=1, d=128, page_size=64),
    QuantCase(tokens=5, heads=3, d=32, page_size=1),
    QuantCase(tokens=37, heads=8, d=64, page_size=7, rope="interleaved", scale_format="fp32"),
    QuantCase(tokens=19, heads=64, d=128, page_size=3, lead=1, rope="interleaved"),
]


def on_gpu(x: SparseMlaFwdInputs | DecodeInputs) -> SparseMlaFwdInputs | DecodeInputs:
    """The inputs on the GPU, each in an allocation of its own with the strides that it has."""
    tensors = {}
    for name, t in vars(x).items():
        if isinstance(t, torch.Tensor):
            tensors[name] = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda").copy_(t)
    return replace(x, **tensors)


def nans(*buffers: tuple[tuple[int, ...], torch.dtype]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.full(shape, math.nan, dtype=dtype).cuda() for shape, dtype in buffers)


def fwd(case: Case) -> None:
    cpu = make_inputs(case)
    shape = cpu.q.shape[:-1]
    out = nans(((*shape, case.d_v), torch.bfloat16), (shape, torch.float32), (shape, torch.float32))
    on_gpu(cpu).call(dsa_ext.sparse_mla_fwd, out=out)
    verify([r.cpu() for r in out], cpu, bf16_weights=True)


def decode(case: DecodeCase) -> None:
    """Planned inside the call, by a plan, and by a batch-invariant one."""
    cpu = decode_cases.make_inputs(case)
    gpu = on_gpu(cpu)
    shape = cpu.q.shape[:-1]
    plans = [gpu.plan(dsa_ext.plan_sparse_mla_decode, batch_invariant=invariant) for invariant in (False, True)]
    for plan in (None, *plans):
        out = nans(((*shape, 512), torch.bfloat16), (shape, torch.float32))
        gpu.call(dsa_ext.sparse_mla_decode, plan=plan, out=out)
        decode_oracle.verify([r.cpu() for r in out], cpu, bf16_weights=True)


@dataclass(frozen=True)
class TopkCase:
    values: str
    rows: int
    columns: int
    k: int
    dtype: torch.dtype = torch.float32

    @property
    def id(self) -> str:
        return f"topk_indices {self.values} rows{self.rows} n{self.columns} k{self.k} {self.dtype}"


TOPK_CASES = [
    case
    for dtype in (torch.float32, torch.bfloat16)
    for case in (
        TopkCase("special", 3, 1000, 64, dtype),
        TopkCase("normal", 1, 66011, 2048, dtype),  # a cluster
        TopkCase("equal", 1, 66011, 2048, dtype),  # whose list is full again and again
        TopkCase("normal", 150, 9000, 512, dtype),  # a CTA a row
        TopkCase("equal", 150, 9000, 512, dtype),
    )
]


def topk(case: TopkCase) -> None:
    logits = make_logits(case.values, case.rows, case.columns, case.dtype, lead=0, trail=0)
    out = torch.full((case.rows, case.k), -7, dtype=torch.int32).cuda()
    dsa_ext.topk_indices(logits.cuda(), case.k, out=out)
    assert torch.equal(out.cpu(), expected(logits, case.k)), "wrong indices"


RAGGED_CASES = [
    RaggedCase(poison=True),
    RaggedCase(s_q=9, s_k=300, heads=64, layout="strided", poison=True, out_dtype=torch.bfloat16),
    RaggedCase(s_q=33, s_k=200, heads=32, ranges="causal"),
    RaggedCase(s_q=3, s_k=1, heads=64, ranges="all"),
    RaggedCase(s_q=5, s_k=5000, heads=16, ranges="one"),  # mostly -inf, in several pieces
    RaggedCase(s_q=17, s_k=130, heads=8, d=64, poison=True),
    RaggedCase(s_q=9, s_k=130, heads=32, d=32, ranges="rows", poison=True),
    RaggedCase(s_q=300, s_k=700, heads=64, ranges="causal"),  # CTAs begin within a block, and take several
]
PAGED_CASES = [
    PagedCase(),
    PagedCase(lens="edge", batch=15),
    PagedCase(next_n=2, heads=32, lens="per_token", layout="strided", out_dtype=torch.bfloat16),
    PagedCase(next_n=3, heads=64, page_size=8, gap=64),
    PagedCase(next_n=20, heads=64, batch=2, max_context_len=200),  # more than the slabs hold
    PagedCase(heads=16, d=64, page_size=48),
    PagedCase(heads=8, d=32, page_size=256, max_context_len=700),
    PagedCase(batch=400, heads=8, d=32, max_context_len=70),  # enough for a plan to be read
]


def ragged_logits(case: RaggedCase) -> None:
    cpu = logits_cases.make_inputs(case)
    out = torch.full((case.s_q, case.s_k), math.nan, dtype=case.out_dtype).cuda()
    cpu.on("cuda").call(dsa_ext.indexer_logits, out=out)
    logits_cases.verify(out.cpu(), *logits_cases.expected(cpu))


def paged_logits(case: PagedCase) -> None:
    """Without a plan, and by one."""
    cpu = logits_cases.make_paged_inputs(case)
    gpu = cpu.on("cuda")
    for plan in (None, gpu.plan(dsa_ext.plan_paged_indexer_logits)):
        out = torch.full((case.batch, case.next_n, case.max_context_len), math.nan, dtype=case.out_dtype).cuda()
        gpu.call(dsa_ext.paged_indexer_logits, plan=plan, out=out)
        logits_cases.verify(out.cpu(), *logits_cases.expected_paged(cpu))


def quant(case: QuantCase) -> None:
    """To the last bit."""
    x = indexer_oracle.make(case.tokens, case.d, values="wide", dtype=torch.float32)
    q, k = indexer_oracle.make(case.tokens, case.heads, 128), indexer_oracle.make(case.tokens, 128)
    prepared = (q, k, torch.randn(case.tokens, case.heads), *indexer_oracle.angles(case.tokens))
    slots = torch.randperm(2 * case.tokens)[: case.tokens].int() - 3
    pages, bytes = case.tokens // case.page_size + 1, case.d + 4
    cache = torch.zeros(case.lead + pages * case.page_size * bytes, dtype=torch.uint8)
    on_each = []
    for device in ("cpu", "cuda"):
        codes, scale = dsa_ext.quantize_indexer(x.to(device), scale_format=case.scale_format)
        options = {"rope": case.rope, "scale_format": case.scale_format}
        results = dsa_ext.prepare_indexer(*(t.to(device) for t in prepared), **options)
        whole = cache.to(device, copy=True)
        view = whole[case.lead :].view(pages, case.page_size, bytes)
        dsa_ext.store_indexer_cache(codes, scale, view, slots.to(device))
        on_each.append([indexer_oracle.bits(t) for t in (codes, scale, *results, whole)])
    assert all(map(torch.equal, *on_each)), "differs from the reference"


@torch.no_grad()
def main() -> int:
    if not torch.cuda.is_available():
        sys.exit("sanitizer_cases: needs a GPU: torch.cuda.is_available() is False")
    major = torch.cuda.get_device_capability()[0]
    calls = [(fwd, case, path(major, case.h_q, case.d_qk, case.topk)) for case in CASES]
    calls += [(decode, case, decode_path(major, case.h_q, case.format)) for case in DECODE_CASES]
    calls += [(ragged_logits, case, logits_path(major, case.heads, case.d)) for case in RAGGED_CASES]
    calls += [(paged_logits, case, logits_path(major, case.heads, case.d, case.page_size)) for case in PAGED_CASES]
    calls += [(topk, case, "any") for case in TOPK_CASES]
    calls += [(quant, case, "indexer_quant") for case in QUANT_CASES]
    failures = 0
    for function, case, path_name in calls:
        name = f"{function.__name__}, {path_name}: {case.id}"
        if not all(part in name for part in sys.argv[1:]):
            continue
        print(f"{name}: ", end="", flush=True)  # before it runs: it may not end
        try:
            function(case)
            verdict = "ok"
        except AssertionError as error:
            verdict = f"WRONG: {error}"
            failures += 1
        print(verdict, flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
