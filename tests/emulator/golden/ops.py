"""Calls of the ops, small, with inputs that are the same numbers on every machine."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import dsa_ext

Results = dict[str, Tensor]


class Inputs:
    """Numbers from a generator whose sequence NumPy keeps, made by exact arithmetic."""

    def __init__(self, seed: int, device: str):
        self.random = np.random.RandomState(seed)
        self.device = device

    def tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).clone().to(self.device)  # in memory of torch's allocator, not NumPy's

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, size: float = 1.0) -> Tensor:
        """Nearly so: sums of twelve whole numbers. `size` is a power of two."""
        total = sum(self.random.randint(-256, 256, shape) for _ in range(12))
        return self.tensor((total * (size / 512)).astype(np.float32)).to(dtype)

    def whole(self, least: int, most: int, *shape: int) -> Tensor:
        return self.tensor(self.random.randint(least, most + 1, shape).astype(np.int32))

    def indices(self, rows: int, topk: int, least: int, most: int) -> Tensor:
        """Some invalid ones among them."""
        idx = np.stack([self.random.permutation(most - least + 1)[:topk] + least for _ in range(rows)])
        idx[:, ::11] = -1
        idx[:, 5::13] = most + 1
        return self.tensor(idx.astype(np.int32))


def _fwd(heads: int, s_q: int, topk: int, d_qk: int, seed: int, options: bool) -> Callable[[str], Results]:
    def call(device: str) -> Results:
        of = Inputs(seed, device)
        q, kv = of.normal(s_q, heads, d_qk), of.normal(220, d_qk)
        idx = of.indices(s_q, topk, 0, 219)
        sink = of.normal(heads, dtype=torch.float32) if options else None
        length = of.whole(topk // 2, topk, s_q) if options else None
        results = dsa_ext.sparse_mla_fwd(q, kv, idx, d_qk**-0.5, attn_sink=sink, topk_length=length)
        return dict(zip(("out", "max_logits", "lse"), results, strict=True))

    return call


def _decode(
    heads: int, batch: int, topk: int, kind: str, seed: int, options: bool = False, invariant: bool = False
) -> Callable[[str], Results]:
    def call(device: str) -> Results:
        of = Inputs(seed, device)
        d_qk = 512 if kind == "v4" else 576
        q, kv = of.normal(batch, 1, heads, d_qk), of.normal(8 * 64, d_qk)
        cache = kv.view(8, 64, d_qk) if kind == "bf16" else dsa_ext.pack_kv_cache(kv, format=kind, page_size=64)
        idx = of.indices(batch, topk, 0, 511).view(batch, 1, topk)
        sink = of.normal(heads, dtype=torch.float32) if options else None
        length = of.whole(topk // 2, topk, batch) if options else None
        sizes = {"batch": batch, "s_q": 1, "h_q": heads, "topk": topk, "device": q.device}
        plan = dsa_ext.plan_sparse_mla_decode(length, **sizes, batch_invariant=True) if invariant else None
        results = dsa_ext.sparse_mla_decode(q, cache, idx, d_qk**-0.5, attn_sink=sink, topk_length=length, plan=plan)
        return dict(zip(("out", "lse"), results, strict=True))

    return call


def _logits(s_q: int, s_k: int, heads: int, d: int, seed: int, out_dtype: torch.dtype) -> Callable[[str], Results]:
    def call(device: str) -> Results:
        of = Inputs(seed, device)
        q = of.normal(s_q, heads, d, dtype=torch.float8_e4m3fn)
        k, scale = dsa_ext.quantize_indexer(of.normal(s_k, d), scale_format="fp32")
        weights = of.normal(s_q, heads, dtype=torch.float32, size=0.25)
        start, end = of.whole(0, 20, s_q), of.whole(s_k - 40, s_k, s_q)
        return {"logits": dsa_ext.indexer_logits(q, k, scale, weights, start, end, out_dtype=out_dtype)}

    return call


def _paged_logits(batch: int, next_n: int, heads: int, d: int, seed: int) -> Callable[[str], Results]:
    def call(device: str) -> Results:
        of = Inputs(seed, device)
        page_size, pages = 64, 3 * batch
        q = of.normal(batch, next_n, heads, d, dtype=torch.float8_e4m3fn)
        k, scale = dsa_ext.quantize_indexer(of.normal(pages * page_size, d))
        cache = torch.zeros(pages, page_size, d + 4, dtype=torch.uint8, device=device)
        dsa_ext.store_indexer_cache(k, scale, cache, torch.arange(len(k), dtype=torch.int32, device=device))
        weights = of.normal(batch, next_n, heads, dtype=torch.float32, size=0.25)
        lengths = of.whole(next_n, 3 * page_size, batch)
        table = of.tensor(of.random.permutation(pages).astype(np.int32).reshape(batch, 3))
        logits = dsa_ext.paged_indexer_logits(q, cache, weights, lengths, table, max_context_len=3 * page_size)
        return {"logits": logits}

    return call


def _topk(rows: int, columns: int, k: int, seed: int, ties: bool) -> Callable[[str], Results]:
    def call(device: str) -> Results:
        of = Inputs(seed, device)
        logits = of.whole(-9, 9, rows, columns).float() if ties else of.normal(rows, columns, dtype=torch.float32)
        lengths = of.whole(k // 2, columns, rows)
        return {"idx": dsa_ext.topk_indices(logits, k, lengths=lengths)}

    return call


def _prepare(rope: str, hadamard: bool, scale_format: str, seed: int) -> Callable[[str], Results]:
    def call(device: str) -> Results:
        of = Inputs(seed, device)
        angles = [of.normal(9, 32, dtype=torch.float32, size=0.25) for _ in range(2)]
        vectors = of.normal(9, 3, 128), of.normal(9, 128), of.normal(9, 3, dtype=torch.float32)
        options = {"rope": rope, "hadamard": hadamard, "scale_format": scale_format}
        results = dsa_ext.prepare_indexer(*vectors, *angles, **options)
        return dict(zip(("q", "k", "k_scale", "weights"), results, strict=True))

    return call


def _store_indexer(device: str) -> Results:
    of = Inputs(40, device)
    k, scale = dsa_ext.quantize_indexer(of.normal(24, 128, size=16.0), scale_format="fp32")
    cache = torch.zeros(3, 16, 132, dtype=torch.uint8, device=device)
    slots = of.tensor(of.random.permutation(60)[:24].astype(np.int32) - 4)
    dsa_ext.store_indexer_cache(k, scale, cache, slots)
    return {"k": k, "scale": scale, "cache": cache}


def _pack(kind: str, scale_format: str, seed: int) -> Callable[[str], Results]:
    def call(device: str) -> Results:
        of = Inputs(seed, device)
        kv = of.normal(20, 512 if kind == "v4" else 576, size=8.0)
        kv[3, 5:9], kv[4] = 30000.0, 0.0
        packed = dsa_ext.pack_kv_cache(kv, format=kind, page_size=16, scale_format=scale_format)
        cache = dsa_ext.pack_kv_cache(kv * 0, format=kind, page_size=16, scale_format=scale_format)
        slots = of.tensor(of.random.permutation(36)[:20].astype(np.int32) - 2)
        dsa_ext.store_kv_cache(kv, cache, slots, format=kind, scale_format=scale_format)
        tokens = dsa_ext.unpack_kv_cache(packed, format=kind).view(-1, kv.shape[1])
        # Of the second page only four slots hold tokens.
        return {"packed": packed[:1], "stored": cache[:1], "unpacked": tokens[:20]}

    return call


CASES: dict[str, Callable[[str], Results]] = {
    "fwd_h128": _fwd(128, 1, 192, 576, 10, options=True),
    "fwd_h64": _fwd(64, 2, 150, 512, 11, options=True),
    "fwd_h64_plain": _fwd(64, 1, 64, 576, 12, options=False),
    "fwd_h16": _fwd(16, 3, 130, 576, 13, options=True),
    "decode_v32_h64": _decode(64, 1, 256, "v32", 20),
    "decode_v4_h64": _decode(64, 1, 200, "v4", 21, options=True),
    "decode_bf16_h64": _decode(64, 1, 128, "bf16", 22),
    "decode_v32_h64_alone": _decode(64, 1, 400, "v32", 26, invariant=True),
    "decode_v32_h16": _decode(16, 3, 400, "v32", 23, options=True, invariant=True),
    "decode_v32_h16_teams": _decode(16, 3, 400, "v32", 23, options=True),
    "decode_v4_h16": _decode(16, 2, 130, "v4", 24),
    "decode_bf16_h16": _decode(16, 2, 130, "bf16", 25),
    "logits_h64": _logits(33, 200, 64, 128, 30, torch.float32),
    "logits_h8_bf16": _logits(20, 150, 8, 64, 31, torch.bfloat16),
    "paged_logits_h64": _paged_logits(3, 2, 64, 128, 32),
    "paged_logits_h32": _paged_logits(2, 1, 32, 64, 33),
    "topk": _topk(4, 1500, 64, 34, ties=False),
    "topk_ties": _topk(3, 700, 130, 35, ties=True),
    "prepare_half": _prepare("half", True, "ue8m0", 36),
    "prepare_interleaved": _prepare("interleaved", False, "fp32", 37),
    "store_indexer": _store_indexer,
    "pack_v32": _pack("v32", "ue8m0", 41),
    "pack_v32_fp32": _pack("v32", "fp32", 42),
    "pack_v4": _pack("v4", "ue8m0", 43),
}


def bits(x: Tensor) -> np.ndarray:
    """As whole numbers of the element's size."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return x.cpu().contiguous().view(kinds[x.element_size()]).numpy()


def call(name: str, device: str) -> dict[str, np.ndarray]:
    return {key: bits(value) for key, value in CASES[name](device).items()}


def sources() -> dict[str, np.ndarray]:
    """What the kernels were built from."""
    return {op: np.array(source_hash) for op, source_hash in dsa_ext.build_info()["source_hash"].items()}
