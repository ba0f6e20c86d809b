"""sparse_mla_fwd on a GPU: streams, graphs, devices, and sizes beyond 16 and 32 bits."""

import math
from dataclasses import replace

import pytest
import torch
from cases import SparseMlaFwdCase as Case
from cases import SparseMlaFwdInputs, make_inputs
from oracle import same_bits, verify

import dsa_ext

pytestmark = pytest.mark.gpu

SOME_HEADS = [16, 64, 128]
TENSORS = ("q", "kv", "idx", "attn_sink", "topk_length")


def run(inputs, **options):
    return inputs.call(dsa_ext.sparse_mla_fwd, **options)


def full_case(h_q, d_qk=576):
    return Case(s_q=200, h_q=h_q, d_qk=d_qk, attn_sink="random", topk_length="random", invalid=0.1, poison=True)


def copy_into(destination, source):
    for name in TENSORS:
        getattr(destination, name).copy_(getattr(source, name))


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("h_q", SOME_HEADS)
def test_graph_replays_with_other_inputs(h_q, with_out):
    """A captured call reads its tensors at replay, whatever the host did in between."""
    static = make_inputs(full_case(h_q), "cuda", seed=0)
    buffers = tuple(torch.empty_like(r) for r in run(static)) if with_out else None  # also a first, uncaptured call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(static, out=buffers)
    for seed in (1, 2):
        other = make_inputs(full_case(h_q), "cuda", seed=seed)
        expected = run(other)
        copy_into(static, other)
        for r in results:
            r.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(results, expected)


@pytest.mark.parametrize("h_q", SOME_HEADS)
def test_runs_on_the_current_stream(h_q):
    """The inputs arrive late on a side stream; a kernel on any other stream would read the NaN that was there."""
    inputs = make_inputs(full_case(h_q), "cuda")
    expected = run(inputs)
    late = replace(inputs, q=torch.full_like(inputs.q, math.nan))
    buffers = tuple(torch.full_like(r, math.nan) for r in expected)
    copies = tuple(torch.empty_like(r) for r in expected)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.q.copy_(inputs.q)
        run(late, out=buffers)
        for copy, buffer in zip(copies, buffers, strict=True):
            copy.copy_(buffer)
    assert not stream.query(), "the call waited for the device"
    stream.synchronize()
    assert same_bits(copies, expected)


def test_does_not_wait_for_the_device():
    inputs = make_inputs(full_case(64), "cuda")
    run(inputs)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(400_000_000)
    run(inputs)
    done.record()
    assert not done.query()
    torch.cuda.synchronize()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_tensors_device():
    inputs = make_inputs(full_case(64), "cuda:1")
    with torch.cuda.device(0):
        results = run(inputs)
    assert all(r.device == torch.device("cuda:1") for r in results)
    verify(results, inputs)


@pytest.mark.parametrize("h_q", [8, 64])
def test_back_to_back_calls_of_different_sizes(h_q):
    """Launches that follow each other without a pause must not see each other's state."""
    cases = [
        Case(s_q=s, h_q=h_q, topk=k, d_qk=d, s_kv=600) for s, k, d in ((300, 64, 576), (7, 500, 512), (133, 1, 576))
    ]
    inputs = [make_inputs(c, "cuda", seed=i) for i, c in enumerate(cases)]
    alone = []
    for x in inputs:
        alone.append(run(x))
        torch.cuda.synchronize()
    for results in ([run(x) for x in inputs] for _ in range(10)):
        assert all(same_bits(r, a) for r, a in zip(results, alone, strict=True))
    for x, results in zip(inputs, alone, strict=True):
        verify(results, x)


def test_reads_nothing_outside_its_tensors():
    """kv and idx lie in the middle of buffers of NaN and of legal-looking indices."""
    case = Case(s_q=100, h_q=64, topk=130, invalid=0.3, topk_length="random")
    x = make_inputs(case, "cuda")
    expected = run(x)

    def amid(tensor, filler):
        whole = torch.full((tensor.shape[0] + 64, *tensor.shape[1:]), filler, dtype=tensor.dtype, device="cuda")
        whole[32:-32] = tensor
        return whole[32:-32]

    for filler in (0, 150):
        hidden = replace(x, q=amid(x.q, math.nan), kv=amid(x.kv, math.nan), idx=amid(x.idx, filler))
        assert same_bits(run(hidden), expected)


# --- sizes


def everywhere_finite(tensor):
    return all(bool(part.isfinite().all()) for part in tensor.split(max(1, 2**28 // tensor[0].numel())))


@pytest.mark.parametrize("h_q", [16, 64])
def test_many_queries(h_q, free_memory):
    """More queries than a grid's second dimension takes."""
    inputs = make_inputs(Case(s_q=70_000, s_kv=512, topk=65, h_q=h_q), "cuda")
    results = run(inputs, out=torch.full((70_000, h_q, 512), math.nan, dtype=torch.bfloat16, device="cuda"))
    assert everywhere_finite(results[0])
    sample = torch.cat([torch.arange(0, 70_000, 997), torch.arange(65_500, 65_600), torch.tensor([69_999])])
    verify(results, inputs, sample.cuda())


@pytest.mark.parametrize("h_q, s_q", [(128, 40_000), (64, 80_000), (16, 300_000)])
def test_q_and_out_beyond_2_to_31_elements(h_q, s_q, free_memory):
    case = Case(s_q=s_q, s_kv=1000, topk=70, h_q=h_q)
    q = torch.empty(s_q, h_q, case.d_qk, dtype=torch.bfloat16, device="cuda").normal_()
    kv = torch.randn(case.s_kv, case.d_qk, dtype=torch.bfloat16, device="cuda")
    idx = torch.randint(-5, case.s_kv + 5, (s_q, case.topk), dtype=torch.int32, device="cuda")
    inputs = SparseMlaFwdInputs(q, kv, idx, case.scale, 512, None, None)
    out = torch.full((s_q, h_q, 512), math.nan, dtype=torch.bfloat16, device="cuda")
    assert q.numel() > 2**31 and out.numel() > 2**31
    results = run(inputs, out=out)
    assert everywhere_finite(out)
    edge = 2**31 // (h_q * 512)  # the query whose output begins beyond 2^31, and so for q
    edge_q = 2**31 // (h_q * 576)
    around = [torch.arange(e - 3, e + 4) for e in (edge, edge_q)]
    sample = torch.cat([torch.arange(0, s_q, s_q // 50), *around, torch.tensor([s_q - 1])])
    verify(results, inputs, sample.cuda())


@pytest.mark.parametrize("h_q", SOME_HEADS)
@pytest.mark.parametrize("d_qk", [576, 512])
def test_kv_beyond_2_to_31_elements(h_q, d_qk, free_memory):
    s_kv, s_q, topk = 4_500_000, 300, 300
    kv = torch.empty(s_kv, d_qk, dtype=torch.bfloat16, device="cuda").normal_()
    assert kv.numel() > 2**31
    q = torch.randn(s_q, h_q, d_qk, dtype=torch.bfloat16, device="cuda")
    idx = torch.randint(0, s_kv, (s_q, topk), dtype=torch.int32, device="cuda")
    edge = 2**31 // d_qk
    idx[:, :7] = torch.arange(edge - 3, edge + 4)
    idx[:, 7] = s_kv - 1
    inputs = SparseMlaFwdInputs(q, kv, idx, 0.05, 512, None, None)
    verify(run(inputs), inputs)


def test_strides_beyond_2_to_31_elements(free_memory):
    """Few queries, far apart: the offset of a token, not the number of elements, passes 2^31."""
    x = make_inputs(Case(s_q=40, h_q=64), "cuda")
    step = 2**31 // 39 // 8 * 8 + 8
    storage = torch.full((39 * step + 64 * 576,), math.nan, dtype=torch.bfloat16, device="cuda")
    q = storage.as_strided((40, 64, 576), (step, 576, 1))
    q.copy_(x.q)
    assert 39 * q.stride(0) > 2**31
    expected = run(x)
    assert same_bits(run(replace(x, q=q)), expected)
    out = storage.as_strided((40, 64, 512), (step, 512, 1))
    out.fill_(math.nan)
    assert same_bits(run(x, out=out), expected)


@pytest.mark.parametrize("h_q", SOME_HEADS)
@pytest.mark.parametrize("s_kv", [8192, 131_072])
def test_sizes_of_the_model(h_q, s_kv, free_memory):
    """A chunk of DeepSeek-V3.2's prefill, as the benchmarks time it."""
    inputs = make_inputs(Case(s_q=4096, s_kv=s_kv, h_q=h_q, topk=2048, invalid=0.01), "cuda")
    results = run(inputs)
    verify(results, inputs, torch.arange(0, 4096, 61).cuda())
    assert same_bits(run(inputs), results)
