"""What the mutation score runs: for every kernel small calls that reach each of its stages, and their oracles.

The device that is emulated has few multiprocessors where that lets a CTA take several pieces of work."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import decode_cases
import decode_oracle
import logits_cases
import oracle
import test_topk
import torch
from cases import SparseMlaFwdCase, make_inputs
from decode_cases import DecodeCase
from logits_cases import PagedCase, RaggedCase
from topk_oracle import expected, make_logits
from torch import Tensor

import dsa_ext

FEW = 2  # multiprocessors
PARTS = {16: (6, 7), 8: (9, 11, 13)}  # queries, by heads: what is left for a last warpgroup on Blackwell
HOSTILE = {"invalid": 0.1, "poison": True, "attn_sink": "random", "topk_length": "random"}
EXTRA = {"extra_topk": 70, "extra_topk_length": "random", "extra_page_size": 3}


@dataclass(frozen=True)
class Call:
    """run() gives tensors, which verify() takes, or raises AssertionError."""

    run: Callable[[], Sequence[Tensor]]
    verify: Callable[[Sequence[Tensor]], None]


@dataclass(frozen=True)
class MutationCase:
    """kernel: what its name has in it (Site.short_kernel). multiprocessors: of the device, 0 for the real one's."""

    op: str
    kernel: str
    make: Callable[[], Call]
    multiprocessors: int = FEW

    def prepare(self) -> Call:
        torch.manual_seed(0)
        return self.make()


def all_cases(arch: str = "sm_90a") -> list[MutationCase]:
    if arch == "sm_100a":
        attention = (*_prefill_on_blackwell(), *_decode_on_blackwell())
        return [*attention, *_combine(), *_ragged_on_blackwell(), *_paged_on_blackwell(), *_topk()]
    return [*_prefill(), *_decode(), *_combine(), *_ragged_logits(), *_paged_logits(), *_topk()]


def _prefill() -> Iterator[MutationCase]:
    for d_qk in (576, 512):
        for h_q in (64, 16, 8):
            name = f"prefill_heads64<Config<{d_qk}," if h_q == 64 else f"prefill_few_heads<Config<{d_qk},{h_q},"
            # More blocks of keys than there are stages; and few, where queries follow each other quickly.
            for more in ({"topk": 270, "s_q": 5}, {"topk": 65, "s_q": 7 if h_q == 64 else 13}):
                case = SparseMlaFwdCase(h_q=h_q, d_qk=d_qk, s_kv=600, **more, **HOSTILE)
                yield MutationCase("sparse_mla_fwd", name, partial(_prefill_call, case))


def _prefill_on_blackwell() -> Iterator[MutationCase]:
    for d_qk in (576, 512):
        for kernel, h_q in (("heads64", 64), ("pair", 128)):
            for more in ({"topk": 270, "s_q": 5, "values": "ramp", "indices": "ascending"}, {"topk": 65, "s_q": 7}):
                case = SparseMlaFwdCase(h_q=h_q, d_qk=d_qk, s_kv=600, **more, **HOSTILE)
                name = f"prefill_{kernel}<Config<{d_qk}>>"
                yield MutationCase("sparse_mla_fwd", name, partial(_prefill_call, case))


def _prefill_call(case: SparseMlaFwdCase) -> Call:
    inputs = make_inputs(case)
    return Call(partial(inputs.call, dsa_ext.sparse_mla_fwd), lambda results: oracle.verify(results, inputs))


def _decode() -> Iterator[MutationCase]:
    for format, cpp in (("v32", "KvV32"), ("v4", "KvV4"), ("bf16", "KvBf16")):
        for h_q in (64, 16, 8):
            name = f"decode_heads64<{cpp}>" if h_q == 64 else f"decode_few_heads<{cpp},{h_q},(Has)0>"
            for more in ({"topk": 270, "batch": 3, **EXTRA}, {"topk": 65, "batch": 7 if h_q == 64 else 13}):
                case = DecodeCase(h_q=h_q, format=format, slots=600, page_size=53, **more, **HOSTILE)
                yield MutationCase("sparse_mla_decode", name, partial(_decode_call, case))
        # All multiprocessors for one query: a team of every size, or two, and blocks of keys for it. (Two of less than
        # sixteen CTAs come where there are too few blocks for one larger team.)
        one, two = {2: 8, 3: 7, 4: 16, 6: 13, 8: 17, 16: 33}, {2: 2, 3: 3, 4: 5, 6: 7, 8: 15, 16: 65}
        for teams, blocks in ((1, one), (2, two)):
            for ctas in blocks:
                sizes = {"h_q": 64 if ctas < 8 else 40, "batch": 1, "topk": 64 * blocks[ctas], "slots": 4500}
                # Later keys have the larger scores, so that outputs are rescaled up to the last block. (Where that is
                # full: the CTA with the last keys alone has a say.)
                rising = {"values": "ramp", "indices": "ascending", "topk_length": None}
                call = partial(_decode_call, DecodeCase(format=format, **sizes, **(HOSTILE | rising)))
                yield MutationCase("sparse_mla_decode", f"decode_heads64_team<{cpp},{teams}>", call, ctas * teams)
            # Two CTAs whose keys' lengths are not known before; the second one has those of the other cache.
            sizes = {"topk": 64, "extra_topk": 64} if teams == 2 else {"topk": 300}
            case = DecodeCase(h_q=64, format=format, batch=1, slots=600, **(HOSTILE | EXTRA | sizes))
            call = partial(_decode_call, case)
            yield MutationCase("sparse_mla_decode", f"decode_heads64_team<{cpp},{teams}>", call, 2 * teams)
        # Few heads, a query a CTA, and teams of every size, with a key for each member; and with more than the buffers
        # hold.
        for h_q in (16, 8):
            for ctas in (1, 2, 3, 4, 6, 8):
                most = 900 if ctas == 1 else 400 * ctas
                for more in ({"topk": 128 * ctas + 1}, *[{"topk": most, **EXTRA}] * (ctas <= 3)):
                    case = DecodeCase(h_q=h_q, format=format, batch=2, slots=1300, page_size=53, **more, **HOSTILE)
                    call = partial(_decode_call, case)
                    name = f"decode_few_heads<{cpp},{h_q},(Has){1 if ctas == 1 else 2}>"
                    yield MutationCase("sparse_mla_decode", name, call, 2 * ctas)


def _decode_on_blackwell() -> Iterator[MutationCase]:
    for format, cpp in (("v32", "KvV32"), ("v4", "KvV4"), ("bf16", "KvBf16")):
        for ctas, h_q in ((1, 64), (2, 128)):
            # More blocks of keys than there are buffers, of both caches; and few, where queries follow each other.
            for more in (
                {"topk": 270, "batch": 3, "scales": "fp32", "values": "ramp", "indices": "ascending", **EXTRA},
                {"topk": 65, "batch": 7},
                {"topk": 270, "batch": 1, "topk_length": None},  # cut: two workers share it
            ):
                case = DecodeCase(h_q=h_q, format=format, slots=600, page_size=53, **(HOSTILE | more))
                name = f"sparse_mla_decode<Config<{cpp},{ctas}>>"
                yield MutationCase("sparse_mla_decode", name, partial(_decode_call, case), ctas * FEW)


def _combine() -> Iterator[MutationCase]:
    case = DecodeCase(h_q=8, topk=1100, slots=1200, batch=3, topk_length="random")  # so that queries are cut
    for kernel, options in (
        ("combine_cut_queries", {}),
        ("combine_chunks", {"batch_invariant": True}),
        ("plan_sparse_mla_decode", {}),
    ):
        yield MutationCase("sparse_mla_decode", kernel, partial(_decode_call, case, **options))


def _decode_call(case: DecodeCase, **options: Any) -> Call:
    inputs = decode_cases.make_inputs(case)

    def run():
        plan = inputs.plan(dsa_ext.plan_sparse_mla_decode, **options)
        return inputs.call(dsa_ext.sparse_mla_decode, plan=plan)

    return Call(run, lambda results: decode_oracle.verify(results, inputs))


def _ragged_logits(config: str = "Config<{},{},128>") -> Iterator[MutationCase]:
    for d in (128, 64, 32):
        for heads in (64, 32, 16, 8):
            more = 64 // heads
            for sizes in (
                {"s_q": 5, "s_k": 2500, "ranges": "causal"},  # more tiles of keys than there are stages
                {"s_q": 40 * more, "s_k": 300, "ranges": "random", "poison": True},  # several blocks of queries
                {"s_q": 780 * more, "s_k": 8, "ranges": "one"},  # so many that all warps add them up
            ):
                case = RaggedCase(heads=heads, d=d, **sizes)
                name = f"logits<{config.format(heads, d)},KernelParams<IndexerKeys"
                yield MutationCase("indexer_logits", name, partial(_ragged_call, case))


def _ragged_on_blackwell() -> Iterator[MutationCase]:
    yield from _ragged_logits("Config<{},{}>")
    for d in (128, 64, 32):
        for heads in (64, 32, 16, 8):
            # Few columns, so that warpgroups take tiles by turns; and all numbers of columns that one of them may have.
            for sizes in ({"s_q": 1, "s_k": 2500}, *({"s_q": s_q, "s_k": 300} for s_q in PARTS.get(heads, ()))):
                case = RaggedCase(heads=heads, d=d, **sizes)
                name = f"logits<Config<{heads},{d}>,KernelParams<IndexerKeys"
                yield MutationCase("indexer_logits", name, partial(_ragged_call, case))


def _ragged_call(case: RaggedCase) -> Call:
    inputs = logits_cases.make_inputs(case)
    want = logits_cases.expected(inputs)
    return Call(lambda: [inputs.call(dsa_ext.indexer_logits)], lambda results: logits_cases.verify(results[0], *want))


def _paged_logits() -> Iterator[MutationCase]:
    for d in (128, 64, 32):
        for heads in (64, 32, 16, 8):
            for width in (64, 128) if heads >= 32 and d == 128 else (128,):
                tokens = 1 if width == 64 else 128 // heads + 1
                case = PagedCase(batch=3, next_n=tokens, heads=heads, d=d, max_context_len=2500)
                # So many requests that all warps add them up, and a CTA meets several.
                many = PagedCase(batch=130, next_n=tokens, heads=heads, d=d, max_context_len=64)
                name = f"logits<Config<{heads},{d},{width}>,KernelParams<PagedIndexerKeys"
                for planned in (False, True):
                    yield MutationCase("paged_indexer_logits", name, partial(_paged_call, case, planned))
                yield MutationCase("paged_indexer_logits", name, partial(_paged_call, many, False))
                if width == 128:
                    one_slab = PagedCase(batch=3, next_n=128 // heads, heads=heads, d=d, max_context_len=2500)
                    yield MutationCase("paged_indexer_logits", name, partial(_paged_call, one_slab, False))
    yield _paged_plan()


def _paged_on_blackwell() -> Iterator[MutationCase]:
    for d in (128, 64, 32):
        for heads in (64, 32, 16, 8):
            case = PagedCase(batch=3, next_n=128 // heads + 1, heads=heads, d=d, max_context_len=2500)
            many = PagedCase(batch=130, next_n=128 // heads + 1, heads=heads, d=d, max_context_len=64)
            name = f"logits<Config<{heads},{d}>,KernelParams<PagedIndexerKeys"
            for planned in (False, True):
                yield MutationCase("paged_indexer_logits", name, partial(_paged_call, case, planned))
            for next_n in (1, *PARTS.get(heads, ())):
                few = PagedCase(batch=1, next_n=next_n, heads=heads, d=d, max_context_len=2500)
                yield MutationCase("paged_indexer_logits", name, partial(_paged_call, few, False))
            yield MutationCase("paged_indexer_logits", name, partial(_paged_call, many, False))
    yield _paged_plan()


def _paged_plan() -> MutationCase:
    return MutationCase("paged_indexer_logits", "plan_paged_indexer_logits", partial(_paged_call, PagedCase(), True))


def _paged_call(case: PagedCase, planned: bool) -> Call:
    inputs = logits_cases.make_paged_inputs(case)
    want = logits_cases.expected_paged(inputs)

    def run():
        plan = inputs.plan(dsa_ext.plan_paged_indexer_logits) if planned else None
        return [inputs.call(dsa_ext.paged_indexer_logits, plan=plan)]

    return Call(run, lambda results: logits_cases.verify(results[0], *want))


def _topk() -> Iterator[MutationCase]:
    for dtype, cpp in ((torch.float32, "Fp32"), (torch.bfloat16, "Bf16")):
        # A CTA a row; clusters, which want a device with many multiprocessors. Rows that are not sampled, whose list
        # fills up again and again, that are good to the sample, that mislead it.
        alone, clusters = f"topk_kernel<{cpp},false>", f"topk_kernel<{cpp},true>"
        for kernel, multiprocessors, rows, columns in ((alone, FEW, 2, 20012), (clusters, 0, 1, 66012)):
            # More positions than the bitmap of those chosen covers at once.
            many = partial(_topk_call, "normal", 1, 140012, dtype, 2048)
            yield MutationCase("topk_indices", kernel, many, multiprocessors)
            for values in ("equal", "ascending", "normal", "misleading"):
                make = partial(_topk_call, values, rows, columns, dtype, 1000 if values == "misleading" else 2048)
                yield MutationCase("topk_indices", kernel, make, multiprocessors)
        yield MutationCase("topk_indices", alone, partial(_topk_call, "special", 2, 3001, dtype, 500))
        # A cluster of 8, whose lists are full while more of the row is on its way.
        full = partial(_topk_call, "equal", 1, 140012, dtype, 2048)
        yield MutationCase("topk_indices", clusters, full, multiprocessors=16)


def _topk_call(values: str, rows: int, columns: int, dtype: torch.dtype, k: int) -> Call:
    if values == "misleading":
        logits = torch.stack([test_topk.misleading(columns, 0) for _ in range(rows)])
        low = logits[-1] < 0
        logits[-1][low] = logits[-1][low].sort().values  # who tries again finds no room again
        logits = logits.to(dtype)
    else:
        logits = make_logits(values, rows, columns, dtype)
    want = expected(logits, k)

    def verify(results):
        assert torch.equal(results[0], want), "wrong indices"

    return Call(lambda: [dsa_ext.topk_indices(logits, k)], verify)
