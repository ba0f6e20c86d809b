"""sparse_mla_decode on the CPU and on the GPU: right results for every kind of input, cache and batch."""

import math
from dataclasses import replace

import pytest
import torch
from cases import INT_MAX, INT_MIN
from decode_cases import FORMATS, make_inputs, random_cache
from decode_cases import DecodeCase as Case
from decode_oracle import verify
from oracle import same, same_bits

import dsa_ext

HEADS = (1, 7, 8, 9, 16, 17, 24, 32, 33, 64, 65, 96, 128, 130)
TOPKS = (1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 2047, 2048, 4096)
PAGE_SIZES = (1, 2, 53, 61, 64, 69, 256)
# One of each group of heads that an implementation may treat its own way.
SOME_HEADS = (8, 16, 32, 64, 128)
TRICKY = {"invalid": 0.2, "poison": True, "attn_sink": "random", "topk_length": "random"}
EXTRA = {"extra_topk": 100, "extra_topk_length": "random"}

CASES = [
    *(Case(h_q=h) for h in HEADS),
    *(Case(h_q=h, format=f, poison=True) for h in SOME_HEADS for f in FORMATS),
    *(Case(topk=k, slots=max(300, k + 50), h_q=h) for k in TOPKS for h in (16, 64)),
    *(Case(topk=k, slots=5000, h_q=128, format=f, s_q=2) for k in (65, 2048) for f in FORMATS),
    *(Case(batch=b, h_q=h, format=f, **TRICKY) for b in (1, 3, 74, 321) for h in (16, 64, 128) for f in FORMATS),
    *(Case(batch=b, h_q=h, topk=600, slots=900, topk_length="some_zero") for b in (1, 74) for h in (16, 64, 128)),
    *(Case(s_q=s, h_q=h, format=f, **TRICKY) for s in (2, 3) for h in (16, 64, 128) for f in FORMATS),
    *(Case(page_size=p, format=f, poison=True, h_q=h) for p in PAGE_SIZES for f in FORMATS for h in (16, 64)),
    Case(slots=1, page_size=1, topk=1),
    Case(slots=1, page_size=1, topk=70, indices="one_row"),
    Case(topk=400),  # more than there are slots
    *(Case(values=v, topk=k, h_q=h) for v in ("small", "large", "low", "spikes") for k in (65, 300) for h in (16, 64)),
    *(
        Case(values=v, indices=i, topk=512, slots=600, h_q=h, format=f)
        for v in ("ramp", "gentle_ramp")
        for i in ("ascending", "descending")
        for h, f in ((16, "v32"), (64, "v4"), (128, "v32"))
    ),
    *(Case(scales=s, format=f, h_q=h, poison=True) for s in ("fp32", "range") for f in FORMATS[:2] for h in SOME_HEADS),
    *(Case(scales="range", format=f, topk=k, h_q=h) for f in FORMATS[:2] for k in (1, 300) for h in (16, 64)),
    *(
        Case(indices=i, poison=True, h_q=h, format=f)
        for i in ("none", "some_none", "duplicates", "one_row")
        for h, f in ((16, "v32"), (64, "v4"), (64, "bf16"), (128, "v32"))
    ),
    *(
        Case(indices=i, poison=True, h_q=h, topk=k, slots=700, values="ramp")
        for i in ("late", "gap", "last")
        for h in (16, 64)
        for k in (65, 300)
    ),
    Case(invalid=0.99, poison=True, topk=300, slots=700),
    *(
        Case(topk_length=t, length_a=a, s_q=s, batch=13, h_q=h, topk=k, slots=700, poison=True)
        for t in ("edge", "some_zero")
        for a, s in (("token", 1), ("token", 3), ("request", 1), ("request", 2))
        for h, k in ((16, 130), (64, 300))
    ),
    *(Case(attn_sink="edge", indices=i, h_q=h) for i in ("distinct", "some_none") for h in (9, 16, 128)),
    *(Case(extra_topk=k, h_q=h, format=f) for k in (1, 64, 100, 700) for h in (16, 64) for f in FORMATS),
    *(Case(**EXTRA, **TRICKY, batch=b, h_q=h, format=f) for b in (3, 74) for h in (8, 128) for f in FORMATS),
    Case(extra_topk=65, extra_page_size=1, extra_slots=1, extra_topk_length="edge", batch=13, length_a="request"),
    Case(extra_topk=200, indices="some_none", poison=True, topk_length="some_zero", s_q=2),
]
CASES = list(dict.fromkeys(CASES))  # the lists overlap
# A few that together have everything, for the tests of how the function is called.
FEW = [
    Case(h_q=16, s_q=2, **TRICKY, **EXTRA),
    Case(h_q=64, format="v4", topk=65, page_size=53),
    Case(h_q=128, format="bf16", topk=300, attn_sink="edge", topk_length="some_zero", length_a="request"),
]


def by_id(case):
    return case.id


def run(inputs, **options):
    return inputs.call(dsa_ext.sparse_mla_decode, **options)


def make_plan(inputs, **options):
    return inputs.plan(dsa_ext.plan_sparse_mla_decode, **options)


def crowd(case, device):
    """The case with so many requests that a GPU has no multiprocessors to spare for teams (csrc/.../sm90/team.cuh)."""
    if device != "cuda":
        return case
    multiprocessors = torch.cuda.get_device_properties("cuda").multi_processor_count
    return replace(case, batch=multiprocessors // (least_team(case.h_q) * case.s_q * -(-case.h_q // 64)) + 1)


def least_team(h_q):
    """Of the CTAs that may share a query's keys: for few heads the two halves of one do."""
    return 1 if h_q <= 16 else 2


@pytest.fixture(autouse=True)
def few_multiprocessors(request, multiprocessors):
    """As crowd(), on an emulated device: too few for teams of three requests or more. They share CTAs, and are cut."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    h_q = parameters["case"].h_q if "case" in parameters else parameters.get("h_q", 64)
    multiprocessors(3 * least_team(h_q) - 1)


def nans(results):
    return tuple(torch.full_like(r, math.nan) for r in results)


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_matches_reference(case, device):
    inputs = make_inputs(case.on(device), device)
    results = run(inputs)
    assert [r.dtype for r in results] == [torch.bfloat16, torch.float32]
    assert all(r.device == inputs.q.device for r in results)
    # In the widest ranges no sum of float32 comes near the absolute tolerance, on any device.
    verify(results, inputs, bf16_weights=case.scales == "range" or None)


# (Two teams share the value columns of a query.)
@pytest.mark.parametrize(
    "ctas, teams, h_q, format",
    [
        (2, 1, 64, "v32"),
        (3, 1, 128, "bf16"),
        (4, 1, 16, "bf16"),
        (4, 2, 100, "v32"),
        (6, 1, 64, "bf16"),
        (8, 1, 64, "v4"),
        (16, 1, 100, "v32"),
        (16, 2, 9, "v4"),
    ],
)
def test_few_queries_for_each_multiprocessor(ctas, teams, h_q, format, device, multiprocessors):
    """As many CTAs as there are for each head block of a query may share its keys, where all can work at once."""
    head_blocks, queries = -(-h_q // 64), 1
    if device == "cuda":
        # Clusters leave some multiprocessors unused: an H200 has 132, and room for 17 of six.
        queries = multiprocessors() // (head_blocks * ctas * teams) * 3 // 4
    else:
        multiprocessors(head_blocks * ctas * teams)
    # Keys for all CTAs but the last ones; then hardly any, and lengths of all kinds; then columns of all magnitudes.
    options = {"batch": max(queries, 1), "h_q": h_q, "format": format, "slots": 3000}
    for case in (
        Case(**options, topk=128 * ctas + 70, attn_sink="edge"),
        Case(**options, topk=128 * ctas, **TRICKY, **EXTRA),
        Case(**options, topk=128 * ctas, topk_length="edge", indices="some_none", poison=True),
        Case(**options, topk=128 * ctas, scales="ue8m0" if format == "bf16" else "range"),
    ):
        inputs = make_inputs(case, device)
        expected = run(inputs)
        verify(expected, inputs, bf16_weights=case.scales == "range" or None)
        assert same_bits(run(inputs), expected)


@pytest.mark.parametrize(
    "ctas, h_q, format",
    [
        *[(1, 16, "v32"), (1, 8, "v4"), (1, 9, "bf16"), (2, 16, "v4"), (2, 5, "v32"), (3, 16, "bf16"), (3, 8, "v32")],
        *[(4, 16, "v32"), (6, 16, "v4"), (6, 8, "v32"), (8, 16, "v32"), (8, 8, "bf16")],
    ],
)
def test_few_queries_for_each_consumer(ctas, h_q, format, device, multiprocessors):
    """As above, for the halves of so many CTAs (csrc/.../sm90/few_heads_team.cuh)."""
    queries = 2 if ctas <= 4 else 1
    if device == "cuda":
        queries = multiprocessors() // ctas * 3 // 4
    else:
        multiprocessors(queries * ctas)
    # (With 128 keys for a CTA or less, teams of the other kernel would take them.)
    options = {"batch": queries, "h_q": h_q, "format": format, "slots": 6000}
    for case in (
        Case(**options, topk=128 * ctas + 70, attn_sink="edge"),
        Case(**options, topk=128 * ctas, **TRICKY, **EXTRA),
        Case(**options, topk=128 * ctas, topk_length="some_zero", **EXTRA, extra_page_size=1),
        Case(**options, topk=128 * ctas + 1, topk_length="edge", indices="some_none", poison=True, attn_sink="random"),
        Case(**options, topk=320 * ctas, values="ramp", indices="ascending"),
        Case(**options, topk=128 * ctas + 1, scales="ue8m0" if format == "bf16" else "range"),
    ):
        inputs = make_inputs(case, device)
        expected = run(inputs)
        verify(expected, inputs, bf16_weights=case.scales == "range" or None)
        assert same_bits(run(inputs), expected)


def test_cases_have_distinct_names():
    assert len({c.id for c in CASES}) == len(CASES)


@pytest.mark.parametrize("format", FORMATS[:2])
@pytest.mark.parametrize("scales", ["ue8m0", "fp32", "range"])
@pytest.mark.parametrize("page_size", [1, 53])
def test_generated_caches_mean_what_the_package_says(format, scales, page_size):
    """The tests' byte map against the package's."""
    x = make_inputs(Case(format=format, scales=scales, page_size=page_size))
    assert torch.equal(dsa_ext.unpack_kv_cache(x.kv_cache, format=format).flatten(0, 1), x.rows)
    poisoned = make_inputs(Case(format=format, scales=scales, page_size=page_size, poison=True, topk=40))
    unpacked = dsa_ext.unpack_kv_cache(poisoned.kv_cache, format=format).flatten(0, 1)
    named = poisoned.idx.unique().long()
    assert torch.equal(unpacked[named], poisoned.rows[named]) and len(named) < len(unpacked)
    unpacked[named] = math.nan
    assert not unpacked.isfinite().any()


@pytest.mark.parametrize("format", FORMATS)
def test_cache_that_the_package_packed(format, device):
    case = Case(format=format, h_q=64)
    inputs = make_inputs(case, device)
    kv = torch.randn(300, case.d_qk, device=device, dtype=torch.bfloat16)
    pages = kv.view(5, 60, -1) if format == "bf16" else dsa_ext.pack_kv_cache(kv, format=format, page_size=60)
    rows = kv if format == "bf16" else dsa_ext.unpack_kv_cache(pages, format=format).flatten(0, 1)
    inputs = replace(inputs, kv_cache=pages, rows=rows)
    verify(run(inputs), inputs)


# --- empty inputs


@pytest.mark.parametrize("size", ["batch", "s_q", "h_q"])
@pytest.mark.parametrize("format", FORMATS)
def test_empty_in_empty_out(size, format, device):
    sizes = {"batch": 2, "s_q": 2, "h_q": 4} | {size: 0}
    cache = random_cache(format, 2, 5, device)
    q = torch.ones(*sizes.values(), Case(format=format).d_qk, dtype=torch.bfloat16, device=device)
    idx = torch.zeros(sizes["batch"], sizes["s_q"], 3, dtype=torch.int32, device=device)
    plan = dsa_ext.plan_sparse_mla_decode(**sizes, topk=3, device=device)
    for options in ({}, {"plan": plan}, {"extra_kv_cache": cache[:1], "extra_idx": idx}):
        results = dsa_ext.sparse_mla_decode(q, cache, idx, 1.0, **options)
        assert [tuple(r.shape) for r in results] == [(*q.shape[:-1], 512), q.shape[:-1]]
        assert same(dsa_ext.sparse_mla_decode(q, cache, idx, 1.0, **options, out=nans(results)), results)


@pytest.mark.parametrize("pages, page_size, topk", [(0, 4, 3), (4, 0, 3), (2, 4, 0), (0, 0, 0)])
@pytest.mark.parametrize("format", FORMATS)
def test_no_keys(pages, page_size, topk, format, device):
    q = torch.ones(3, 2, 16, Case(format=format).d_qk, dtype=torch.bfloat16, device=device)
    cache = random_cache(format, 2, 4, device)[:pages, :page_size]
    idx = torch.zeros(3, 2, topk, dtype=torch.int32, device=device)
    nothing = dsa_ext.sparse_mla_decode(q, cache, idx, 1.0)
    plan = dsa_ext.plan_sparse_mla_decode(batch=3, s_q=2, h_q=16, topk=topk, device=device)
    sink = torch.full((16,), math.inf, device=device)
    for results in (
        nothing,
        dsa_ext.sparse_mla_decode(q, cache, idx, 1.0, out=nans(nothing)),
        dsa_ext.sparse_mla_decode(q, cache, idx, 1.0, plan=plan, attn_sink=sink),
        dsa_ext.sparse_mla_decode(q, cache, idx, 1.0, extra_kv_cache=cache, extra_idx=idx),
    ):
        assert bool((results[0] == 0).all() and (results[1] == math.inf).all())


@pytest.mark.parametrize("which", ["kv_cache", "extra_kv_cache"])
@pytest.mark.parametrize("nothing", ["pages", "topk"])
def test_one_of_two_caches_is_empty(which, nothing, device):
    case = Case(h_q=16, extra_topk=70)
    inputs = make_inputs(case, device)
    cache, idx, rows = (
        ("kv_cache", "idx", "rows") if which == "kv_cache" else ("extra_kv_cache", "extra_idx", "extra_rows")
    )
    changed = {cache: getattr(inputs, cache)[:0], rows: getattr(inputs, rows)[:0]}
    if nothing == "topk":
        changed = {idx: getattr(inputs, idx)[..., :0]}
    inputs = replace(inputs, **changed)
    verify(run(inputs), inputs)


def test_hostile_numbers(device):
    """Every number that is no slot, and a length for each."""
    pages, page_size = 3, 7
    slots = pages * page_size
    numbers = [-1, INT_MIN, INT_MIN + 1, slots, slots + 1, INT_MAX, -slots, 2**30, -(2**30), 65536 * 7]
    inputs = make_inputs(Case(batch=8, h_q=64, topk=len(numbers) + 2, slots=slots, page_size=page_size), device)
    inputs.idx[:, :, 1:-1] = torch.tensor(numbers, device=device)
    inputs.idx[:, :, 0], inputs.idx[:, :, -1] = 0, slots - 1
    lengths = [INT_MIN, -1, 0, 1, len(numbers) + 1, len(numbers) + 2, len(numbers) + 3, INT_MAX]
    inputs = replace(inputs, topk_length=torch.tensor(lengths, dtype=torch.int32, device=device))
    results = run(inputs)
    verify(results, inputs)
    assert results[1][:3].isposinf().all() and results[1][3:].isfinite().all()


# --- the same bits


@pytest.mark.parametrize("h_q", SOME_HEADS)
@pytest.mark.parametrize("format", FORMATS)
def test_same_every_time(h_q, format, device):
    case = Case(h_q=h_q, format=format, batch=9, s_q=2, topk=1000, slots=1500, **EXTRA, **TRICKY)
    inputs = make_inputs(crowd(case, device) if device == "cuda" else replace(case, batch=3, topk=100), device)
    plans = (None, make_plan(inputs), make_plan(inputs, batch_invariant=True))
    for plan in plans:
        expected = run(inputs, plan=plan)
        verify(expected, inputs)
        for _ in range(3):
            assert same_bits(run(inputs, plan=plan), expected)


@pytest.mark.parametrize("h_q", SOME_HEADS)
@pytest.mark.parametrize("format", FORMATS)
def test_batch_invariant_plan(h_q, format, device):
    """The same bits for a request alone, in a batch of 3 and in one of 74."""
    case = Case(h_q=h_q, format=format, batch=74, s_q=2, topk=2048, slots=3000, **EXTRA, **TRICKY)
    if device != "cuda":
        case = replace(case, batch=5, topk=200)
    inputs = make_inputs(case, device)
    expected = run(inputs, plan=make_plan(inputs, batch_invariant=True))
    verify(expected, inputs)
    for some in ([0], [case.batch - 1], [2, 0, 3], list(range(case.batch - 1, -1, -1))):
        few = inputs.requests(some)
        results = run(few, plan=make_plan(few, batch_invariant=True))
        assert same(results, [r[some] for r in expected])


@pytest.mark.parametrize("h_q", [16, 64, 128])
def test_chunks_of_a_batch_invariant_plan(h_q, device):
    """Small, for the emulator: a query without keys, and one of more than a chunk's 1024."""
    inputs = make_inputs(Case(h_q=h_q, batch=2, topk=1100, slots=1200, topk_length="some_zero"), device)
    verify(run(inputs, plan=make_plan(inputs, batch_invariant=True)), inputs)


@pytest.mark.parametrize("case", FEW, ids=by_id)
def test_plan_of_the_layers_of_a_step(case, device):
    """One plan for calls that differ in everything but sizes and lengths."""
    case = crowd(case, device)
    first = make_inputs(case, device)
    plan = make_plan(first)
    lengths = {"topk_length": first.topk_length, "extra_topk_length": first.extra_topk_length}
    for seed in range(3):
        inputs = replace(make_inputs(replace(case, poison=False), device, seed), **lengths)
        verify(run(inputs, plan=plan), inputs)


@pytest.mark.parametrize("h_q", SOME_HEADS)
def test_plan_for_other_lengths(h_q, device):
    """With lengths, the plan of a call without, whose queries are not cut, and the other way round."""
    case = crowd(Case(h_q=h_q, batch=5, topk=500, slots=700, poison=True), device)
    whole = make_inputs(replace(case, batch=2 * case.batch), device)
    lengths = torch.linspace(0, case.topk, whole.q.shape[0], device=device).int()
    plans = [make_plan(whole), make_plan(replace(whole, topk_length=lengths))]
    for inputs in (whole, replace(whole, topk_length=lengths.flip(0))):
        for plan in plans:
            verify(run(inputs, plan=plan), inputs)


def test_lengths_of_requests_are_those_of_their_tokens(device):
    case = crowd(Case(batch=5, s_q=3, h_q=64, topk_length="random", length_a="request", extra_topk=90), device)
    inputs = make_inputs(replace(case, extra_topk_length="random"), device)
    expand = lambda length: length[:, None].expand(-1, 3)  # noqa: E731
    each = replace(inputs, topk_length=expand(inputs.topk_length), extra_topk_length=expand(inputs.extra_topk_length))
    assert same_bits(run(inputs), run(each))
    plans = [make_plan(x, batch_invariant=True) for x in (inputs, each)]
    assert same_bits(run(inputs, plan=plans[0]), run(each, plan=plans[1]))


# --- what only the CPU takes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("format", FORMATS)
def test_cpu_dtypes(dtype, format):
    inputs = make_inputs(Case(format=format, attn_sink="random"))
    inputs = replace(inputs, q=inputs.q.to(dtype))
    if format == "bf16":
        inputs = replace(inputs, kv_cache=inputs.kv_cache.to(dtype))
    results = run(inputs)
    assert [r.dtype for r in results] == [dtype, torch.float64 if dtype == torch.float64 else torch.float32]
    verify(results, inputs)
    assert same(run(inputs, out=nans(results)), results)


@pytest.mark.parametrize("d_qk", [512, 513, 700])
def test_cpu_widths(d_qk):
    inputs = make_inputs(Case(format="bf16"))
    q, kv = torch.randn(3, 1, 16, d_qk), torch.randn(5, 64, d_qk)
    inputs = replace(inputs, q=q, kv_cache=kv, rows=None)
    verify(run(inputs), inputs)


def test_reference_ignores_a_plan():
    inputs = make_inputs(FEW[0])
    expected = inputs.call(dsa_ext.reference.sparse_mla_decode)
    assert same_bits(inputs.call(dsa_ext.reference.sparse_mla_decode, plan=make_plan(inputs)), expected)
    out = nans(expected)
    results = inputs.call(dsa_ext.reference.sparse_mla_decode, out=out)
    assert all(r is b for r, b in zip(results, out, strict=True)) and same_bits(out, expected)
