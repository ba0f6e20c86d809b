"""Inputs of every kind that sparse_mla_decode must take: one generator for the tests and the benchmarks.

Caches are written here byte by byte, apart from the package's own pack_kv_cache: what their bytes mean is said twice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import cases
import torch
from cases import SparseMlaFwdCase
from torch import Tensor

FORMATS = ("v32", "v4", "bf16")
D_QK = {"v32": 576, "v4": 512, "bf16": 576}
QUANTISED, GROUP = {"v32": 512, "v4": 448}, {"v32": 128, "v4": 64}  # dimensions, and those that share a scale
E4M3_MAX = 448.0


@dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """What the inputs of one call look like. A slot is to the cache what a row is to the kv of SparseMlaFwdCase, whose
    fields mean the same here.

    slots: at least so many in the cache; they are rounded up to whole pages.
    poison: NaN (and Inf) in every slot that no valid index names, whether in codes, scales or bf16 elements. Bytes that
        belong to no token, within a page, between pages, before and behind the cache, are NaN in any case.
    scales: of a quantised cache
        ue8m0   powers of two, the least that serve
        fp32    any numbers (v4, whose scales are powers of two: as ue8m0)
        range   at both ends of the range in which values are finite, also subnormal, negative and zero; q is such that
                every group has a say in the logits as far as bf16 reaches
    topk_length, extra_topk_length: as SparseMlaFwdCase's, or some_zero: every third request has 0, others all
    length_a: token ([b, s_q] lengths) or request ([b])
    extra_topk: indices into a second cache, without one for 0
    """

    batch: int = 3
    s_q: int = 1
    h_q: int = 16
    topk: int = 130
    format: str = "v32"
    page_size: int = 64
    slots: int = 300
    indices: str = "distinct"
    values: str = "normal"
    scales: str = "ue8m0"
    invalid: float = 0.0
    poison: bool = False
    attn_sink: str | None = None
    topk_length: str | None = None
    length_a: str = "token"
    extra_topk: int = 0
    extra_page_size: int = 48
    extra_slots: int = 200
    extra_topk_length: str | None = None

    @property
    def d_qk(self) -> int:
        return D_QK[self.format]

    @property
    def scale(self) -> float:
        return SparseMlaFwdCase(d_qk=self.d_qk).scale

    @property
    def flops(self) -> int:
        """Multiplications and additions of both products, as if every index were valid."""
        return 2 * self.batch * self.s_q * self.h_q * (self.topk + self.extra_topk) * (self.d_qk + 512)

    @property
    def id(self) -> str:
        """Short and unique: what differs from the defaults."""
        default = DecodeCase()
        changed = [(k, v) for k, v in vars(self).items() if v != getattr(default, k)]
        return "-".join(f"{k}_{v}" for k, v in changed) or "default"

    def on(self, device: str) -> "DecodeCase":
        """On the CPU, no more requests than the reference needs to show that it tells them apart."""
        return replace(self, batch=min(self.batch, 4)) if device == "cpu" else self


@dataclass(frozen=True)
class DecodeInputs:
    OPTIONAL: ClassVar[tuple[str, ...]] = (
        "topk_length",
        "attn_sink",
        "extra_kv_cache",
        "extra_idx",
        "extra_topk_length",
    )
    q: Tensor
    kv_cache: Tensor
    idx: Tensor
    scale: float
    topk_length: Tensor | None = None
    attn_sink: Tensor | None = None
    extra_kv_cache: Tensor | None = None
    extra_idx: Tensor | None = None
    extra_topk_length: Tensor | None = None
    # What the slots of the caches hold, [slots, d_qk]; None: whatever the bytes mean.
    rows: Tensor | None = None
    extra_rows: Tensor | None = None

    @property
    def optional(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in self.OPTIONAL}

    def call(self, function: Callable[..., Any], **options: Any) -> Any:
        """function(q, kv_cache, idx, scale, ...) with the optional arguments; `options` are added or go first."""
        return function(self.q, self.kv_cache, self.idx, self.scale, **(self.optional | options))

    def plan(self, function: Callable[..., Any], **options: Any) -> Any:
        """function(topk_length, batch=...) for this call."""
        batch, s_q, h_q, _ = self.q.shape
        sizes = {"batch": batch, "s_q": s_q, "h_q": h_q, "topk": self.idx.shape[2]}
        sizes["extra_topk"] = 0 if self.extra_idx is None else self.extra_idx.shape[2]
        lengths = {"topk_length": self.topk_length, "extra_topk_length": self.extra_topk_length}
        return function(**(lengths | sizes | {"device": self.q.device} | options))

    def requests(self, selection: Any) -> "DecodeInputs":
        """Some of the batch."""
        names = ("q", "idx", "topk_length", "extra_idx", "extra_topk_length")
        return replace(self, **{n: t[selection] for n in names if (t := getattr(self, n)) is not None})


def make_inputs(case: DecodeCase, device: str | torch.device = "cpu", seed: int = 0) -> DecodeInputs:
    main = _Part(case, device, seed)
    q = main.q
    if case.scales == "range" and case.format != "bf16":
        q = _reciprocal(q, case)
    extra = {}
    if case.extra_topk:
        second = replace(
            case,
            topk=case.extra_topk,
            page_size=case.extra_page_size,
            slots=case.extra_slots,
            topk_length=case.extra_topk_length,
        )
        part = _Part(second, device, seed + 1000)
        extra = {"extra_idx": part.idx, "extra_topk_length": part.length}
        extra["extra_kv_cache"], extra["extra_rows"] = part.cache(case, seed + 1)
    kv_cache, rows = main.cache(case, seed)
    return DecodeInputs(q, kv_cache, main.idx, case.scale, main.length, main.attn_sink, rows=rows, **extra)


class _Part:
    """Indices, lengths and what the slots of one cache shall hold: a prefill call of as many queries, on one row for
    each slot."""

    def __init__(self, case: DecodeCase, device: str | torch.device, seed: int):
        self.page_size = case.page_size
        self.pages = -(-case.slots // case.page_size)
        flat = SparseMlaFwdCase(
            s_q=case.batch * case.s_q,
            s_kv=self.pages * case.page_size,
            h_q=case.h_q,
            topk=case.topk,
            d_qk=case.d_qk,
            indices=case.indices,
            values=case.values,
            invalid=case.invalid,
            poison=case.poison,
            attn_sink=case.attn_sink,
            topk_length=None if case.topk_length == "some_zero" else case.topk_length,
        )
        inputs = cases.make_inputs(flat, device, seed)
        self.q = inputs.q.unflatten(0, (case.batch, case.s_q))
        self.idx = inputs.idx.unflatten(0, (case.batch, case.s_q))
        self.kv, self.attn_sink, self.length = inputs.kv, inputs.attn_sink, inputs.topk_length
        if case.topk_length == "some_zero":
            request = torch.arange(case.batch, device=device, dtype=torch.int32)
            self.length = torch.where(request % 3 == 0, 0, case.topk).int().repeat_interleave(case.s_q)
        if self.length is not None:
            self.length = self.length.view(case.batch, case.s_q)
            if case.length_a == "request":
                self.length = self.length.amin(1)

    def cache(self, case: DecodeCase, seed: int) -> tuple[Tensor, Tensor]:
        """The cache and what its slots hold."""
        g = torch.Generator(self.kv.device).manual_seed(seed)
        unnamed = ~self._named() if case.poison else torch.zeros(len(self.kv), dtype=torch.bool, device=self.kv.device)
        kv = self.kv.nan_to_num(0.0, 0.0, 0.0)
        odd = torch.arange(len(kv), device=kv.device)[unnamed] % 2
        filler = torch.where(odd == 1, math.nan, math.inf)[:, None]
        if case.format == "bf16":
            kv[unnamed] = filler.bfloat16()
            return _amid_nan(kv.view(self.pages, self.page_size, -1), math.nan), kv
        nope, rope = kv.split([QUANTISED[case.format], 64], 1)
        scale = _scales(nope, case, g)
        grouped = nope.float().unflatten(1, (-1, GROUP[case.format]))
        divisor = torch.full_like(scale, 1 / 64) if case.scales == "range" else scale
        codes = (grouped / divisor[..., None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        rows = torch.cat([(codes.float() * scale[..., None]).flatten(1).bfloat16(), rope], 1)

        codes, rope = codes.flatten(1).view(torch.uint8), rope.clone()
        codes[unnamed] = torch.where(odd == 1, 0x7F, 0xFF).to(torch.uint8)[:, None]
        scale[unnamed] = filler
        rope[unnamed] = filler.bfloat16()
        rows[unnamed] = math.nan
        pack = _pack_v32 if case.format == "v32" else _pack_v4
        return pack(codes, scale, rope, self.pages, self.page_size), rows

    def _named(self) -> Tensor:
        """Which slots valid indices name."""
        valid = (self.idx >= 0) & (self.idx < len(self.kv))
        if self.length is not None:
            length = self.length.view(len(self.idx), -1, 1)
            valid &= torch.arange(self.idx.shape[2], device=valid.device) < length
        named = torch.zeros(len(self.kv), dtype=torch.bool, device=valid.device)
        named[self.idx[valid].long()] = True
        return named


def _scales(nope: Tensor, case: DecodeCase, g: torch.Generator) -> Tensor:
    """[n, groups] float32."""
    amax = nope.float().unflatten(1, (-1, GROUP[case.format])).abs().amax(-1)
    least = (amax / E4M3_MAX).clamp(min=2.0**-100)
    if case.scales == "range":
        scale = torch.exp2(_exponents(case, nope.device).double()).float().expand_as(amax).clone()
        if case.format == "v32":
            scale *= 1 + torch.rand(scale.shape, generator=g, device=g.device)  # finite: an exponent is left for it
            scale[::3] *= -1
            scale[::7, 1] = 0
        return scale
    if case.scales == "fp32" and case.format == "v32":
        return least * (1 + torch.rand(least.shape, generator=g, device=g.device))
    return torch.exp2(least.log2().ceil())


def _exponents(case: DecodeCase, device: torch.device) -> Tensor:
    """Of the scales of each group in the cases "range". The largest leave room for a sum over all keys, whose weights
    may all be 1: a kernel divides by the sum of the weights when it is done."""
    high = 118 - math.ceil(math.log2(case.topk + case.extra_topk))
    few = [-149, high, 0, -126] if case.format == "v32" else [-127, high, 0, -126, -60, 60, -120]
    return torch.tensor(few, device=device)


def _reciprocal(q: Tensor, case: DecodeCase) -> Tensor:
    """q such that every group's share of q . k is what it would be for a scale of 1/64."""
    factor = torch.exp2((-6 - _exponents(case, q.device).double()).clamp(max=118)).repeat_interleave(GROUP[case.format])
    q = q.clone()
    q[..., : QUANTISED[case.format]] = (q[..., : QUANTISED[case.format]].double() * factor).bfloat16()
    return q


def _pack_v32(codes: Tensor, scale: Tensor, rope: Tensor, pages: int, page_size: int) -> Tensor:
    """512 codes, 4 float32 scales, 64 bf16 a token."""
    rows = torch.cat([codes, scale.contiguous().view(torch.uint8), rope.contiguous().view(torch.uint8)], 1)
    return _amid_nan(rows.view(pages, page_size, 656), 0xFF)


def _pack_v4(codes: Tensor, scale: Tensor, rope: Tensor, pages: int, page_size: int) -> Tensor:
    """A page: for every token 448 codes and 64 bf16; then for every token 7 e8m0 scales and a byte of padding; then
    padding to a multiple of 576 bytes. Exact powers of two, NaN and Inf only: their exponent bits are the e8m0 byte."""
    stride = v4_page_stride(page_size)
    whole = codes.new_full((pages + 2, stride), 0xFF)
    inner, at = whole[1:-1], page_size * 576
    tokens = torch.cat([codes, rope.contiguous().view(torch.uint8)], 1)
    inner[:, :at] = tokens.view(pages, at)
    exponents = torch.where(scale == 2.0**-127, 0, scale.view(torch.int32) >> 23 & 0xFF).to(torch.uint8)
    inner[:, at : at + page_size * 8].unflatten(1, (page_size, 8))[..., :7] = exponents.view(pages, page_size, 7)
    return inner.as_strided((pages, page_size, 584), (stride, 584, 1))


def v4_page_stride(page_size: int) -> int:
    return -(-page_size * 584 // 576) * 576


def _amid_nan(cache: Tensor, filler: float) -> Tensor:
    """The same between a page of NaN before and one behind."""
    whole = torch.full((len(cache) + 2, *cache.shape[1:]), filler, dtype=cache.dtype, device=cache.device)
    whole[1:-1] = cache
    return whole[1:-1]


def random_cache(format: str, pages: int, page_size: int, device: str | torch.device, seed: int = 0) -> Tensor:
    """Standard normal keys in every slot, made fast: for caches that fill much of a GPU."""
    g = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device, dtype=torch.bfloat16)

    def codes(n: int) -> Tensor:
        return normal(n, page_size, QUANTISED[format]).mul_(64).clamp_(-448, 448).to(torch.float8_e4m3fn)

    some = max(1, 2**17 // page_size)  # pages at a time
    if format == "bf16":
        cache = torch.empty(pages, page_size, 576, dtype=torch.bfloat16, device=device)
        for part in cache.split(some):
            part.copy_(normal(*part.shape))
    elif format == "v32":
        cache = torch.empty(pages, page_size, 656, dtype=torch.uint8, device=device)
        cache[..., 512:528].view(torch.float32).fill_(1 / 64)
        for part in cache.split(some):
            part[..., :512] = codes(len(part)).view(torch.uint8)
            part[..., 528:].view(torch.bfloat16).copy_(normal(*part.shape[:2], 64))
    else:
        stride = v4_page_stride(page_size)
        whole = torch.full((pages, stride), 127 - 6, dtype=torch.uint8, device=device)
        for part in whole.split(some):
            tokens = part[:, : page_size * 576].unflatten(1, (page_size, 576))
            tokens[..., :448] = codes(len(part)).view(torch.uint8)
            tokens[..., 448:].view(torch.bfloat16).copy_(normal(len(part), page_size, 64))
        cache = whole.as_strided((pages, page_size, 584), (stride, 584, 1))
    return cache
