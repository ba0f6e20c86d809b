"""Inputs of every kind that the indexer's logits must take, and their oracle: the definition in float64, written apart
from the package's own reference."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
COSINE_LIKE = 5e-6  # 1 - 2 sum(x y) / sum(x^2 + y^2)
# Of an element, relative to the sum of the magnitudes that it is made of: products are added with some 14 bits.
ELEMENT = 2.0**-11
BF16 = 2.0**-8
HEADS_ELEMENTS = 2**20  # of the oracle's logits of several heads


@dataclass(frozen=True, kw_only=True)
class RaggedCase:
    """ranges
        causal   k_end = s_k - s_q + i + 1
        all      every query sees every key
        random   any start and end, also negative, beyond the end, empty and the wrong way round
        rows     as two documents in a row, split over ranks: [0, i) or [s_k / 2, s_k / 2 + i)
        none     nobody sees anything
        one      the last query sees one key
        inner    two of every six queries see all keys: not the first nor the last one of a kernel's block
    layout: dense, or strided: every input and the output within larger tensors, k at an odd row
    poison: NaN in the codes and scales of keys that no query sees, and in all memory around the inputs
    """

    s_q: int = 5
    s_k: int = 300
    heads: int = 64
    d: int = 128
    ranges: str = "random"
    layout: str = "dense"
    poison: bool = False
    out_dtype: torch.dtype = torch.float32

    @property
    def id(self) -> str:
        default = RaggedCase()
        changed = [(k, v) for k, v in vars(self).items() if v != getattr(default, k)]
        return "-".join(f"{k}_{str(v).removeprefix('torch.')}" for k, v in changed) or "default"


@dataclass(frozen=True)
class RaggedInputs:
    q: Tensor
    k: Tensor
    k_scale: Tensor
    weights: Tensor
    k_start: Tensor
    k_end: Tensor

    def on(self, device: str) -> "RaggedInputs":
        """There, with the same strides."""
        return RaggedInputs(*(moved(t, device) for t in vars(self).values()))

    def call(self, function, **options) -> Tensor:
        return function(*vars(self).values(), **options)


def moved(t: Tensor, device: str) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device).copy_(t)


def codes(*shape: int, scale: float = 40.0) -> Tensor:
    return (torch.randn(shape) * scale).clamp(-448, 448).to(E4M3)


def within(t: Tensor, lead: int, gap: int, poison: float | int) -> Tensor:
    """t in a larger tensor full of poison: `lead` elements ahead, rows `gap` elements further apart."""
    *outer, row = t.shape
    strides, step = [1], row + gap
    for size in reversed(outer):
        strides.insert(0, step)
        step *= size
    raw = {1: torch.uint8, 4: torch.int32}[t.element_size()] if t.dtype == E4M3 else t.dtype
    whole = torch.full((lead + step,), poison, dtype=raw)
    view = whole.as_strided(t.shape, strides, lead)
    view.copy_(t.view(raw))
    return view.view(t.dtype) if raw != t.dtype else view


def make_ranges(case: RaggedCase) -> tuple[Tensor, Tensor]:
    s_q, s_k, i = case.s_q, case.s_k, torch.arange(case.s_q)
    if case.ranges == "causal":
        start, end = torch.zeros(s_q), s_k - s_q + i + 1
    elif case.ranges == "all":
        start, end = torch.full((s_q,), INT_MIN), torch.full((s_q,), INT_MAX)
    elif case.ranges == "random":
        start, end = torch.randint(-20, s_k + 20, (s_q,)), torch.randint(-20, s_k + 20, (s_q,))
        start, end = torch.where(i % 3 > 0, torch.minimum(start, end), start), torch.maximum(start, end)
        odd = [(INT_MIN, INT_MAX), (INT_MAX, INT_MIN), (0, 0), (s_k, INT_MAX), (s_k - 1, s_k), (5, 4), (-7, 1)]
        for n, (a, b) in enumerate(odd):
            if s_q > 4 * n:
                start[4 * n], end[4 * n] = a, b
    elif case.ranges == "rows":
        start = torch.where(i % 2 == 0, 0, s_k // 2)
        end = start + 1 + i
    elif case.ranges == "inner":
        start, end = torch.zeros(s_q), torch.where((i % 6 == 2) | (i % 6 == 3), s_k, 0)
    elif case.ranges == "none":
        start, end = torch.full((s_q,), 3), torch.full((s_q,), 2)
    else:
        start = torch.full((s_q,), s_k // 2)
        end = start + (i == s_q - 1)
    return start.int(), end.int()


def make_inputs(case: RaggedCase) -> RaggedInputs:
    q, k = codes(case.s_q, case.heads, case.d), codes(case.s_k, case.d)
    k_scale = torch.rand(case.s_k) * torch.exp2(torch.randint(-6, 6, (case.s_k,)))
    weights = torch.randn(case.s_q, case.heads) / 64
    k_start, k_end = make_ranges(case)
    if case.poison:
        columns = torch.arange(case.s_k)
        unseen = ~((columns >= k_start[:, None]) & (columns < k_end[:, None])).any(0)
        k.view(torch.uint8)[unseen] = 0x7F
        k_scale[unseen] = math.nan
    if case.layout == "strided":
        q = within(q.transpose(0, 1).contiguous(), 16, 16, 0x7F).transpose(0, 1)
        k = within(k, 3 * (case.d + 32), 32, 0x7F)
        k_scale = within(k_scale[:, None], 1, 2, math.nan)[:, 0]
        weights = within(weights.T.contiguous(), 3, 1, math.nan).T
        k_start, k_end = within(k_start[:, None], 1, 1, INT_MIN)[:, 0], within(k_end[:, None], 0, 2, INT_MAX)[:, 0]
    return RaggedInputs(q, k, k_scale, weights, k_start, k_end)


def expected(x: RaggedInputs) -> tuple[Tensor, Tensor]:
    """Logits in float64, and the sums of the magnitudes that they are made of."""
    scale, columns = x.k_scale.double(), torch.arange(len(x.k), device=x.k.device)
    start, end = x.k_start.long()[:, None], x.k_end.long()[:, None]
    return masked_logits(x.q, x.k, scale, x.weights, (columns >= start) & (columns < end))


def masked_logits(q: Tensor, k: Tensor, scale: Tensor, weights: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """q [n, h, d], k [m, d], scale [m], weights [n, h], seen [n, m]."""
    total, mass = torch.zeros(seen.shape).double().to(q.device), torch.zeros(seen.shape).double().to(q.device)
    k, weights = k.double().T, weights.double()[:, :, None]
    heads = max(1, HEADS_ELEMENTS // max(1, seen.numel()))  # at a time
    for some, weight in zip(q.double().split(heads, 1), weights.split(heads, 1), strict=True):
        total += (torch.relu(some @ k) * weight).sum(1)
        mass += (some.abs() @ k.abs() * weight.abs()).sum(1)
    total = torch.where(seen, total * scale, -torch.inf)
    return total, torch.where(seen, mass * scale.abs(), 0)


def verify(got: Tensor, want: Tensor, mass: Tensor) -> None:
    """got as the op returned it, of any dtype; want and mass in float64, of the same shape."""
    bf16, got = got.dtype == torch.bfloat16, got.double()
    assert got.shape == want.shape
    hidden = want == -torch.inf
    assert bool((got[hidden] == -torch.inf).all()), "masked elements are not -inf"
    nan = want.isnan()
    assert bool(got[nan].isnan().all()), "NaN keys do not give NaN"
    rest = ~hidden & ~nan
    x, y, allowed = got[rest], want[rest], ELEMENT * mass[rest]
    if bf16:
        allowed = allowed + BF16 * y.abs()
    wrong = ~((x - y).abs() <= allowed)
    assert not bool(wrong.any()), f"{int(wrong.sum())} of {len(x)} elements are wrong: {x[wrong][:4]}, {y[wrong][:4]}"
    if len(x) > 0 and not bf16:
        difference = 1 - 2 * float(x @ y) / max(float(x @ x + y @ y), 1e-300)
        assert difference <= COSINE_LIKE or bool((x == y).all()), f"difference {difference:.1e}"


# --- paged


@dataclass(frozen=True, kw_only=True)
class PagedCase:
    """lens: full (max_context_len), random, edge (0, 1, negative, INT_MAX, around a tile's end), per_token
    table: shuffled, or with bad entries: < 0 and beyond the cache, also past the lengths
    gap: bytes between pages
    """

    batch: int = 3
    next_n: int = 1
    heads: int = 64
    d: int = 128
    page_size: int = 64
    max_context_len: int = 300
    lens: str = "random"
    table: str = "bad"
    poison: bool = True
    gap: int = 0
    layout: str = "dense"
    out_dtype: torch.dtype = torch.float32

    @property
    def id(self) -> str:
        default = PagedCase()
        changed = [(k, v) for k, v in vars(self).items() if v != getattr(default, k)]
        return "-".join(f"{k}_{str(v).removeprefix('torch.')}" for k, v in changed) or "default"


@dataclass(frozen=True)
class PagedInputs:
    q: Tensor
    k_cache: Tensor
    weights: Tensor
    context_lens: Tensor
    block_table: Tensor
    max_context_len: int
    keys: Tensor  # what the slots of the cache hold, [pages * page_size, d]
    scales: Tensor

    def on(self, device: str) -> "PagedInputs":
        tensors = {n: moved(t, device) for n, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **tensors)

    def call(self, function, **options) -> Tensor:
        arguments = (self.q, self.k_cache, self.weights, self.context_lens, self.block_table)
        return function(*arguments, max_context_len=self.max_context_len, **options)

    def plan(self, function, **options) -> Tensor:
        return function(self.context_lens, page_size=self.k_cache.shape[1], next_n=self.q.shape[1], **options)

    def lengths(self) -> Tensor:
        """[b, next_n] int64, clamped."""
        lens, next_n = self.context_lens.long(), self.q.shape[1]
        if lens.dim() == 1:
            lens = torch.stack([lens - (next_n - 1 - j) for j in range(next_n)], 1)
        return lens.clamp(0, min(self.max_context_len, self.block_table.shape[1] * self.k_cache.shape[1]))


def make_lens(case: PagedCase) -> Tensor:
    b, most = case.batch, case.max_context_len
    if case.lens == "full":
        return torch.full((b,), most).int()
    if case.lens == "random":
        return torch.randint(1, most + 1, (b,)).int()
    if case.lens == "per_token":
        return torch.randint(-2, most + 40, (b, case.next_n)).int()
    values = [0, 127, 128, 129, 1, INT_MIN, INT_MAX, most, most + 1, 64, 65, 255, 256, 257, -1]
    return torch.tensor([values[i % len(values)] for i in range(b)]).int()


def make_paged_inputs(case: PagedCase) -> PagedInputs:
    size, d = case.page_size, case.d
    width = math.ceil(case.max_context_len / size)
    pages = case.batch * width + 3
    keys, scales = codes(pages * size, d), torch.rand(pages * size) + 0.5
    table = torch.randperm(pages)[: case.batch * width].view(case.batch, width).int()
    lens = make_lens(case)
    if case.table == "bad":
        bad = torch.tensor([-1, INT_MIN, pages, INT_MAX])[torch.randint(4, table.shape)].int()
        table = torch.where(torch.rand(table.shape) < 0.15, bad, table)
    q = codes(case.batch, case.next_n, case.heads, d)
    weights = torch.randn(case.batch, case.next_n, case.heads) / 64
    x = PagedInputs(q, torch.empty(0, size, d + 4), weights, lens, table, case.max_context_len, keys, scales)
    if case.poison:
        unseen = ~_seen(x, pages)
        x.keys.view(torch.uint8)[unseen] = 0x7F
        x.scales[unseen] = math.nan
    stride = size * (d + 4) + case.gap
    cache = torch.full((pages, stride), 0x7F, dtype=torch.uint8)
    cache[:, : size * d] = keys.view(torch.uint8).view(pages, size * d)
    cache[:, size * d : size * (d + 4)] = scales.view(torch.uint8).view(pages, size * 4)
    cache = cache.as_strided((pages, size, d + 4), (stride, d + 4, 1))
    if case.layout == "strided":
        q = within(q.transpose(1, 2).contiguous(), 16, 16, 0x7F).transpose(1, 2)
        weights = within(weights.transpose(0, 2).contiguous(), 1, 1, math.nan).transpose(0, 2)
        lens = within(lens[..., None], 1, 2, INT_MAX)[..., 0]
        table = within(table.T.contiguous(), 1, 1, INT_MIN).T
    return replace(x, q=q, k_cache=cache, weights=weights, context_lens=lens, block_table=table)


def _seen(x: PagedInputs, pages: int) -> Tensor:
    """Which slots some query sees."""
    size, seen = x.k_cache.shape[1], torch.zeros(len(x.keys), dtype=torch.bool)
    t = torch.arange(x.max_context_len)
    page = x.block_table.long()[:, t // size]
    counts = (t < x.lengths().amax(1)[:, None]) & (page >= 0) & (page < pages)
    seen[(page * size + t % size)[counts]] = True
    return seen


def expected_paged(x: PagedInputs) -> tuple[Tensor, Tensor]:
    batch, next_n, heads, _ = x.q.shape
    size, pages = x.k_cache.shape[1], x.k_cache.shape[0]
    want = torch.full((batch, next_n, x.max_context_len), -torch.inf, dtype=torch.float64, device=x.q.device)
    mass, lengths, weights = torch.zeros_like(want), x.lengths(), x.weights.reshape(batch, next_n, heads)
    for b in range(batch):
        t = torch.arange(int(lengths[b].max()), device=x.q.device)
        page = x.block_table[b].long()[t // size]
        exists = (page >= 0) & (page < pages)
        slot = torch.where(exists, page * size + t % size, 0)
        seen = exists & (t < lengths[b][:, None])
        results = masked_logits(x.q[b], x.keys[slot], x.scales[slot].double(), weights[b], seen)
        want[b, :, : len(t)], mass[b, :, : len(t)] = results
    return want, mass
