"""sparse_mla_decode on a GPU: streams, graphs, devices, plans, and sizes beyond 16 and 32 bits."""

import math
from dataclasses import replace

import pytest
import torch
from decode_cases import FORMATS, DecodeInputs, make_inputs, random_cache
from decode_cases import DecodeCase as Case
from decode_oracle import verify
from oracle import same_bits
from test_sparse_mla_decode import CASES, EXTRA, by_id, crowd, make_plan, nans, run

import dsa_ext

pytestmark = pytest.mark.gpu

SOME_HEADS = [16, 64, 128]


def full_case(h_q, **options):
    """Without poison: the lengths of one such case then fit the indices of another."""
    common = {"batch": 40, "s_q": 2, "topk": 700, "slots": 1500, "invalid": 0.1, "topk_length": "random"}
    return Case(h_q=h_q, attn_sink="random", **(common | EXTRA | options))


def copy_into(destination, source, names=("q", "kv_cache", "idx", *DecodeInputs.OPTIONAL)):
    for name in names:
        getattr(destination, name).copy_(getattr(source, name))


@pytest.mark.parametrize("case", [c for c in CASES if c.batch <= 13], ids=by_id)
def test_many_requests_match_reference(case):
    """The cases of test_matches_reference without teams."""
    inputs = make_inputs(crowd(case, "cuda"), "cuda")
    verify(run(inputs), inputs, bf16_weights=case.scales == "range" or None)


# --- CUDA graphs


@pytest.mark.parametrize("way", ["plan", "batch-invariant plan", "no plan"])
@pytest.mark.parametrize("h_q", SOME_HEADS)
def test_graph_with_the_plan_inside(h_q, way):
    """A captured step reads all its tensors at replay: lengths, too, may have changed, and the plan follows them."""

    def step(inputs, out=None):
        if way == "no plan":
            return run(inputs, out=out)
        plan = make_plan(inputs, batch_invariant=way.startswith("batch"))
        return run(inputs, plan=plan, out=out)

    static = make_inputs(full_case(h_q), "cuda")
    buffers = nans(step(static))  # a first call that is not captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(static, out=buffers)
        others = step(static)  # a second layer, with buffers of the graph's own
    for seed, lengths in ((1, "random"), (2, "some_zero"), (3, "edge"), (4, "random")):
        other = make_inputs(full_case(h_q, topk_length=lengths), "cuda", seed=seed)
        expected = step(other)
        verify(expected, other)
        copy_into(static, other)
        for r in (*buffers, *others):
            r.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(buffers, expected) and same_bits(others, expected)


@pytest.mark.parametrize("h_q", SOME_HEADS)
def test_graph_with_the_plan_outside(h_q):
    """The plan is one more tensor that a graph reads: made anew into its buffer between replays."""
    static = make_inputs(full_case(h_q), "cuda")
    plan = make_plan(static)
    results = run(static, plan=plan)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(static, plan=plan)
    same_lengths = ("q", "kv_cache", "idx", "attn_sink", "extra_kv_cache", "extra_idx")
    for seed in (1, 2):
        other = make_inputs(full_case(h_q), "cuda", seed=seed)
        copy_into(static, other, same_lengths)
        graph.replay()
        assert same_bits(results, run(static, plan=plan))
    copy_into(static, other)
    make_plan(static, out=plan)
    graph.replay()
    assert same_bits(results, run(other, plan=make_plan(other)))
    verify(results, other)


# --- streams and devices


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("h_q", SOME_HEADS)
def test_runs_on_the_current_stream(h_q, planned):
    """The inputs arrive late on a side stream; a kernel on any other would see NaN queries, and lengths of 0."""
    inputs = make_inputs(full_case(h_q), "cuda")
    expected = run(inputs, plan=make_plan(inputs) if planned else None)
    late = replace(
        inputs,
        q=torch.full_like(inputs.q, math.nan),
        topk_length=torch.zeros_like(inputs.topk_length),
        extra_topk_length=torch.zeros_like(inputs.extra_topk_length),
    )
    plan = torch.zeros_like(make_plan(inputs)) if planned else None
    buffers, copies = nans(expected), nans(expected)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        copy_into(late, inputs, ("q", "topk_length", "extra_topk_length"))
        if planned:
            make_plan(late, out=plan)
        run(late, plan=plan, out=buffers)
        for copy, buffer in zip(copies, buffers, strict=True):
            copy.copy_(buffer)
    assert not stream.query(), "the call waited for the device"
    stream.synchronize()
    assert same_bits(copies, expected)


def test_does_not_wait_for_the_device():
    inputs = make_inputs(full_case(64), "cuda")
    run(inputs, plan=make_plan(inputs))
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(400_000_000)
    run(inputs, plan=make_plan(inputs))
    run(inputs)
    done.record()
    assert not done.query()
    torch.cuda.synchronize()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_tensors_device():
    inputs = make_inputs(full_case(64), "cuda:1")
    with torch.cuda.device(0):
        results = [run(inputs), run(inputs, plan=make_plan(inputs))]
    for r in results:
        assert all(t.device == torch.device("cuda:1") for t in r)
        verify(r, inputs)


@pytest.mark.parametrize("h_q", [8, 64])
def test_back_to_back_calls_of_different_sizes(h_q):
    """Launches that follow each other without a pause must not see each other's state."""
    sizes = ((1, 2000, "v32"), (90, 500, "v4"), (5, 1, "v32"), (1, 64, "bf16"), (33, 3000, "v32"))
    inputs = [
        make_inputs(Case(batch=b, topk=k, h_q=h_q, format=f, slots=3500), "cuda", seed=i)
        for i, (b, k, f) in enumerate(sizes)
    ]
    alone = []
    for x in inputs:
        alone.append(run(x))
        torch.cuda.synchronize()
    for results in ([run(x) for x in inputs] for _ in range(10)):
        assert all(same_bits(r, a) for r, a in zip(results, alone, strict=True))
    for x, results in zip(inputs, alone, strict=True):
        verify(results, x)


def test_reads_nothing_outside_its_tensors():
    """q lies amid NaN, indices and lengths amid legal-looking ones; the caches lie amid NaN in every test."""
    inputs = make_inputs(full_case(64), "cuda")
    expected = run(inputs)

    def amid(tensor, filler):
        whole = torch.full((tensor.shape[0] + 64, *tensor.shape[1:]), filler, dtype=tensor.dtype, device="cuda")
        whole[32:-32] = tensor
        return whole[32:-32]

    integers = ("idx", "topk_length", "extra_idx", "extra_topk_length")
    for filler in (0, 150):
        hidden = {name: amid(getattr(inputs, name), filler) for name in integers}
        assert same_bits(run(replace(inputs, q=amid(inputs.q, math.nan), **hidden)), expected)


# --- plans


def test_plan_of_other_sizes_is_refused():
    inputs = make_inputs(full_case(64), "cuda")
    for other in ({"batch": 4000}, {"topk": 60_000, "batch_invariant": True}):
        plan = dsa_ext.plan_sparse_mla_decode(
            **({"batch": 40, "s_q": 2, "h_q": 64, "topk": 700, "extra_topk": 100} | other), device="cuda"
        )
        if len(plan) not in {len(make_plan(inputs)), len(make_plan(inputs, batch_invariant=True))}:
            with pytest.raises(ValueError, match="^sparse_mla_decode: plan has shape .* sizes of this call$"):
                run(inputs, plan=plan)
    for plan in (make_plan(inputs)[:-1], torch.cat([make_plan(inputs)] * 2)):
        with pytest.raises(ValueError, match="^sparse_mla_decode: plan has shape"):
            run(inputs, plan=plan)
        with pytest.raises(RuntimeError, match="sparse_mla_decode: plan"):
            args = (inputs.q, inputs.kv_cache, inputs.idx, inputs.scale, *inputs.optional.values())
            torch.ops.dsa_ext.sparse_mla_decode(*args, plan)


@pytest.mark.parametrize("h_q", SOME_HEADS)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_plan_of_other_lengths_or_sizes_costs_time_alone(h_q, batch_invariant):
    """What is refused shows in a plan's number of elements; any other plan gives right results."""
    long, short, edge = (
        make_inputs(full_case(h_q, topk_length=t, extra_topk_length=t), "cuda") for t in (None, "some_zero", "edge")
    )
    option = {"batch_invariant": batch_invariant}
    for x, other in ((long, short), (short, long), (edge, short), (edge, long)):
        verify(run(x, plan=make_plan(other, **option)), x)
    size = len(make_plan(edge, **option))
    for sizes in ({"batch": 39, "topk_length": None, "extra_topk_length": None}, {"topk": 5000}, {"extra_topk": 0}):
        plan = make_plan(edge, **option, **sizes)
        if len(plan) == size:
            verify(run(edge, plan=plan), edge)


# --- sizes


def everywhere_finite(tensor):
    return all(bool(part.isfinite().all()) for part in tensor.split(max(1, 2**28 // tensor[0].numel())))


def around(*numbers):
    return torch.cat([torch.arange(n - 3, n + 4) for n in numbers])


@pytest.mark.parametrize("h_q", SOME_HEADS)
@pytest.mark.parametrize("format", FORMATS)
def test_cache_beyond_2_to_32_bytes(h_q, format, free_memory):
    width = {"v32": 656, "v4": 584, "bf16": 1152}[format]
    page_size = 64
    pages = 2**32 // width // page_size + 500
    cache = random_cache(format, pages, page_size, "cuda")
    slots, case = pages * page_size, Case(h_q=h_q, format=format)
    q = torch.randn(50, 1, h_q, case.d_qk, dtype=torch.bfloat16, device="cuda")
    idx = torch.randint(0, slots, (50, 1, 300), dtype=torch.int32, device="cuda")
    edges = around(2**31 // width, 2**32 // width, slots - 4)
    idx[:, 0, : len(edges)] = edges.cuda()
    inputs = DecodeInputs(q, cache, idx, case.scale)
    verify(run(inputs), inputs)


@pytest.mark.parametrize("format", FORMATS)
def test_pages_beyond_2_to_32_bytes_apart(format, free_memory):
    """Few pages, far apart, as in a model that keeps the layers of a page together."""
    x = make_inputs(Case(h_q=64, format=format, page_size=64, slots=3 * 64), "cuda")
    step = 2**31 // 576 * 576 + 576  # elements; of bytes in the quantised formats
    pages, size = x.kv_cache.shape[0], x.kv_cache.stride(0)
    whole = torch.empty((pages - 1) * step + size, dtype=x.kv_cache.dtype, device="cuda")
    apart = whole.as_strided(x.kv_cache.shape, (step, *x.kv_cache.stride()[1:]))
    apart.copy_(x.kv_cache)
    assert same_bits(run(replace(x, kv_cache=apart)), run(x))


@pytest.mark.parametrize("h_q", SOME_HEADS)
@pytest.mark.parametrize("s_q", [1, 2])
def test_large_batches(h_q, s_q, free_memory):
    """Batches of a server, each request with 2048 keys of a large cache, as the benchmarks time them."""
    cache = random_cache("v32", 2**14, 64, "cuda")
    q = torch.randn(321, s_q, h_q, 576, dtype=torch.bfloat16, device="cuda")
    idx = torch.randint(-1000, 2**20 + 1000, (321, s_q, 2048), dtype=torch.int32, device="cuda")
    length = torch.randint(0, 2049, (321, s_q), dtype=torch.int32, device="cuda")
    inputs = DecodeInputs(q, cache, idx, 0.07)
    for lengths in (None, length):
        x = replace(inputs, topk_length=lengths)
        results = run(x, plan=make_plan(x))
        assert everywhere_finite(results[0])
        verify(results, x, torch.arange(0, 321 * s_q, 11, device="cuda"))


@pytest.mark.parametrize("h_q", [16, 64])
def test_many_requests(h_q, free_memory):
    """More than a grid's second dimension takes."""
    batch = 70_000
    case = Case(batch=batch, topk=65, h_q=h_q)
    cache = random_cache("v32", 8, 64, "cuda")
    q = torch.randn(batch, 1, h_q, 576, dtype=torch.bfloat16, device="cuda")
    idx = torch.randint(0, 512, (batch, 1, 65), dtype=torch.int32, device="cuda")
    inputs = DecodeInputs(q, cache, idx, case.scale)
    out = torch.full((batch, 1, h_q, 512), math.nan, dtype=torch.bfloat16, device="cuda")
    results = run(inputs, out=out)
    assert everywhere_finite(out)
    sample = torch.cat([torch.arange(0, batch, 997), torch.arange(65_500, 65_600), torch.tensor([batch - 1])])
    verify(results, inputs, sample.cuda())


def test_q_and_out_beyond_2_to_31_elements(free_memory):
    batch, h_q = 17_000, 128
    cache = random_cache("v32", 8, 64, "cuda")
    q = torch.empty(batch, 2, h_q, 576, dtype=torch.bfloat16, device="cuda").normal_()
    idx = torch.randint(0, 512, (batch, 2, 70), dtype=torch.int32, device="cuda")
    inputs = DecodeInputs(q, cache, idx, 0.07)
    out = torch.full((batch, 2, h_q, 512), math.nan, dtype=torch.bfloat16, device="cuda")
    assert q.numel() > 2**31 and out.numel() > 2**31
    results = run(inputs, out=out)
    assert everywhere_finite(out)
    edges = around(2**31 // (h_q * 512), 2**31 // (h_q * 576), 2 * batch - 4)
    verify(results, inputs, torch.cat([torch.arange(0, 2 * batch, 997), edges]).cuda())


# --- the op itself


def test_the_op_itself_is_safe():
    """torch.ops.dsa_ext skips the Python checks; what the kernels' memory safety needs is checked again below."""
    x = make_inputs(Case(h_q=16, extra_topk=20), "cuda")
    op, op_out = torch.ops.dsa_ext.sparse_mla_decode, torch.ops.dsa_ext.sparse_mla_decode_out

    def arguments(**changes):
        named = {"q": x.q, "kv_cache": x.kv_cache, "idx": x.idx, "scale": x.scale, **x.optional, "plan": None}
        return tuple((named | changes).values())

    length = torch.ones(3, dtype=torch.int32, device="cuda")
    good = op(*arguments())
    for name, bads in {
        "q": (x.q.cpu(), x.q.float(), x.q[0], x.q[..., :512]),
        "kv_cache": (x.kv_cache.cpu(), x.kv_cache[0], x.kv_cache[..., :600], x.kv_cache.view(torch.int8)),
        "idx": (x.idx.cpu(), x.idx.long(), x.idx[:2], x.idx[0]),
        "scale": (math.nan, 0.0),
        "topk_length": (length.cpu(), length.long(), length[:2], length.view(3, 1, 1)),
        "attn_sink": (torch.zeros(15, device="cuda"), torch.zeros(16), torch.zeros(16, device="cuda").half()),
        "extra_kv_cache": (None, x.extra_kv_cache.cpu(), x.extra_kv_cache[0], x.extra_kv_cache[..., :584]),
        "extra_idx": (None, x.extra_idx.cpu(), x.extra_idx.long(), x.extra_idx[:2]),
        "extra_topk_length": (length.cpu(), length.long(), length[:2]),
        "plan": (length.cpu(), length.long(), length[:0], length.view(1, 3)),
    }.items():
        for bad in bads:
            with pytest.raises(RuntimeError, match="sparse_mla_decode: "):
                op(*arguments(**{name: bad}))
    for i, name in enumerate(("out", "lse")):
        for bad in (good[i].cpu(), good[i].half(), good[i][:2], good[i][:1].expand_as(good[i])):
            out = [*good[:i], bad, *good[i + 1 :]]
            with pytest.raises(RuntimeError, match=f"sparse_mla_decode: {name}"):
                op_out(*arguments(), *out)
    size = len(make_plan(x))
    for bad in (length.new_empty(size - 1), torch.empty(size, device="cuda")):
        with pytest.raises(RuntimeError, match="plan_sparse_mla_decode: "):
            torch.ops.dsa_ext.plan_sparse_mla_decode_out(None, 3, 1, 16, 130, 20, None, False, bad)
    with pytest.raises(RuntimeError, match="plan_sparse_mla_decode: topk_length"):
        plan = length.new_empty(size)
        torch.ops.dsa_ext.plan_sparse_mla_decode_out(length[:2], 3, 1, 16, 130, 20, None, False, plan)
