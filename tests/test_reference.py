"""The reference, and the criteria that results are held to, against independent computations."""

import math
from dataclasses import replace

import oracle
import pytest
import torch
from cases import INT_MAX, INT_MIN, SparseMlaFwdCase, make_inputs

from dsa_ext import reference

DENSE_CASES = [
    SparseMlaFwdCase(),
    SparseMlaFwdCase(topk=1),
    SparseMlaFwdCase(d_qk=512, h_q=3),
    SparseMlaFwdCase(d_qk=24, d_v=7, h_q=2),
    SparseMlaFwdCase(topk=400),
    SparseMlaFwdCase(batch=2),
    SparseMlaFwdCase(invalid=0.4, poison=True),
    SparseMlaFwdCase(indices="some_none", attn_sink="edge", s_q=4),
    SparseMlaFwdCase(s_q=14, topk_length="edge", attn_sink="random", poison=True),
    SparseMlaFwdCase(batch=2, s_q=5, topk_length="random", attn_sink="random", invalid=0.2),
    SparseMlaFwdCase(values="large"),
    SparseMlaFwdCase(values="ramp", indices="ascending"),
    SparseMlaFwdCase(values="low"),
]


def dense(q, kv, idx, scale, d_v, attn_sink, topk_length):
    """Attention over all rows under the mask "-inf off the chosen set": right for distinct indices. Unbatched."""
    chosen = torch.zeros(len(q), len(kv), dtype=torch.bool)
    for s in range(len(q)):
        length = idx.shape[1] if topk_length is None else int(topk_length[s])
        for i in range(idx.shape[1]):
            t = int(idx[s, i])
            if i < length and 0 <= t < len(kv):
                assert not chosen[s, t], "the mask needs distinct indices"
                chosen[s, t] = True
    kv = torch.where(chosen.any(0)[:, None], kv, 0.0)  # nobody looks at the others; they may hold NaN
    logits = torch.einsum("shd,td->sht", q, kv) * scale + torch.where(chosen, 0.0, -math.inf)[:, None]
    lse = torch.logsumexp(logits, -1)
    if attn_sink is None:
        weights = torch.softmax(logits, -1)
    else:  # a further column, whose value is zero
        column = attn_sink.double()[None, :, None].expand(len(q), -1, 1)
        weights = torch.softmax(torch.cat([logits, column], -1), -1)[..., :-1]
        weights[:, attn_sink == math.inf] = 0
    nothing = ~chosen.any(-1)
    out = torch.einsum("sht,td->shd", weights, kv[:, :d_v])
    out[nothing] = 0
    lse[nothing] = math.inf
    return out, logits.amax(-1), lse


@pytest.mark.parametrize("case", DENSE_CASES, ids=lambda c: c.id)
def test_equals_masked_dense_attention(case):
    x = make_inputs(case).to(torch.float64)
    results = x.call(reference.sparse_mla_fwd)
    if case.batch is None:
        expected = x.call(dense)
    else:
        parts = [
            dense(
                x.q[b],
                x.kv[b],
                x.idx[b],
                x.scale,
                x.d_v,
                x.attn_sink,
                None if x.topk_length is None else x.topk_length[b],
            )
            for b in range(case.batch)
        ]
        expected = [torch.stack(p) for p in zip(*parts, strict=True)]
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
        assert got.dtype == torch.float64


LN3 = math.log(3.0)
TWO_ROWS = ((0.0, 5.0), (LN3, -1.0))


def tiny(idx, q=((1.0, 0.0),), kv=TWO_ROWS, scale=1.0, d_v=2, **options):
    """One query of one head and two dimensions over two rows, whose logits are 0 and ln 3."""
    q = torch.tensor([q], dtype=torch.float64)
    results = reference.sparse_mla_fwd(
        q, torch.tensor(kv, dtype=torch.float64), torch.tensor([idx], dtype=torch.int32), scale, d_v=d_v, **options
    )
    out, max_logits, lse = (r[0, 0].tolist() for r in results)
    return out, max_logits, lse


def test_by_hand():
    # weights 1/4 and 3/4
    out, max_logits, lse = tiny([0, 1])
    assert out == pytest.approx([0.75 * LN3, 0.25 * 5 - 0.75])
    assert max_logits == pytest.approx(LN3) and lse == pytest.approx(math.log(4.0))


def test_by_hand_order_and_invalid_entries_do_not_matter():
    for idx in ([1, 0], [1, -1, 0], [2, 1, INT_MAX, 0, INT_MIN]):
        assert tiny(idx)[0] == pytest.approx([0.75 * LN3, 0.5])


def test_by_hand_every_occurrence_counts():
    out, max_logits, lse = tiny([0, 1, 0, 0])  # weights 3/6 and 3/6
    assert out == pytest.approx([LN3 / 2, 2.0])
    assert max_logits == pytest.approx(LN3) and lse == pytest.approx(math.log(6.0))


def test_by_hand_scale_and_d_v():
    out, max_logits, lse = tiny([0, 1], scale=2.0, d_v=1)  # exp(2 ln 3) = 9
    assert out == pytest.approx([0.9 * LN3])
    assert max_logits == pytest.approx(2 * LN3) and lse == pytest.approx(math.log(10.0))


@pytest.mark.parametrize(
    "sink, factor", [(math.log(4.0), 0.5), (math.log(12.0), 0.25), (-math.inf, 1.0), (math.inf, 0.0)]
)
def test_by_hand_sink(sink, factor):
    out, max_logits, lse = tiny([0, 1], attn_sink=torch.tensor([sink], dtype=torch.float64))
    assert out == pytest.approx([0.75 * LN3 * factor, 0.5 * factor])
    assert max_logits == pytest.approx(LN3) and lse == pytest.approx(math.log(4.0))


@pytest.mark.parametrize("length, idx_seen", [(1, [0]), (2, [0, 1]), (3, [0, 1]), (INT_MAX, [0, 1])])
def test_by_hand_length(length, idx_seen):
    assert tiny([0, 1], topk_length=torch.tensor([length], dtype=torch.int32)) == tiny(idx_seen)


@pytest.mark.parametrize("sink", [None, -math.inf, 0.0, math.inf])
@pytest.mark.parametrize(
    "idx, length",
    [([-1], None), ([2, INT_MAX, INT_MIN], None), ([0, 1], 0), ([0, 1], -1), ([0, 1], INT_MIN), ([], None)],
)
def test_no_valid_key(idx, length, sink):
    length = None if length is None else torch.tensor([length], dtype=torch.int32)
    sink = None if sink is None else torch.tensor([sink])
    nan_row = ((math.nan, math.inf), (-math.inf, math.nan))
    assert tiny(idx, kv=nan_row, topk_length=length, attn_sink=sink) == ([0.0, 0.0], -math.inf, math.inf)


def test_no_rows():
    results = reference.sparse_mla_fwd(torch.ones(1, 1, 2), torch.ones(0, 2), torch.zeros(1, 3).int(), 1.0, d_v=2)
    assert [r.flatten().tolist() for r in results] == [[0.0, 0.0], [-math.inf], [math.inf]]


def test_chunks_do_not_change_the_result(monkeypatch):
    x = make_inputs(SparseMlaFwdCase(s_q=7, invalid=0.2, topk_length="random")).to(torch.float64)
    whole = x.call(reference.sparse_mla_fwd)
    monkeypatch.setattr(reference.attention, "_GATHER_BUDGET", 3 * 130 * 576)
    for a, b in zip(whole, x.call(reference.sparse_mla_fwd), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrower_dtypes_compute_in_float32(dtype):
    x = make_inputs(SparseMlaFwdCase()).to(dtype)
    out, max_logits, lse = x.call(reference.sparse_mla_fwd)
    assert (out.dtype, max_logits.dtype, lse.dtype) == (dtype, torch.float32, torch.float32)
    want_out, want_max, want_lse = x.to(torch.float64).call(reference.sparse_mla_fwd)
    torch.testing.assert_close(max_logits.double(), want_max, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(out.double(), want_out, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_gradient_exists():
    x = make_inputs(SparseMlaFwdCase(d_qk=8, d_v=4, h_q=2, s_q=2, topk=6, s_kv=10)).to(torch.float64)
    with torch.enable_grad():
        q, kv = x.q.requires_grad_(), x.kv.requires_grad_()
        f = lambda q, kv: reference.sparse_mla_fwd(q, kv, x.idx, 0.3, d_v=4)  # noqa: E731
        assert torch.autograd.gradcheck(f, (q, kv))


# --- the criteria themselves: each must be able to fail


def right_answer(**options):
    x = make_inputs(SparseMlaFwdCase(s_q=4, **options))
    return x, [r.clone() for r in x.call(reference.sparse_mla_fwd)]


def wrong(place, value, **options):
    x, results = right_answer(**options)
    results[place[0]][place[1:]] = value
    with pytest.raises(AssertionError):
        oracle.verify(results, x)


def test_oracle_accepts():
    for options in ({}, {"indices": "some_none"}, {"attn_sink": "edge"}, {"batch": 2, "topk_length": "random"}):
        x, results = right_answer(**options)
        oracle.verify(results, x)


def test_oracle_rejects_single_elements():
    x, (out, max_logits, lse) = right_answer()
    largest = tuple((out[0] == out[0].max()).nonzero()[0].tolist())
    wrong((0, 0, *largest), out[(0, *largest)] * 1.04)
    wrong((0, 3, 15, 511), math.nan)
    wrong((0, 3, 15, 511), math.inf)
    wrong((1, 2, 7), max_logits[2, 7] * (1 + 1e-4))
    wrong((2, 2, 7), lse[2, 7] * (1 + 1e-4))
    wrong((2, 0, 0), math.nan)
    wrong((2, 0, 0), math.inf)
    wrong((1, 0, 0), -math.inf)


def test_oracle_rejects_wrong_infinities():
    for place, value in (((2, 0, 0), -math.inf), ((2, 0, 0), 0.0), ((2, 0, 0), math.nan), ((1, 0, 0), math.inf)):
        wrong(place, value, indices="none")
    wrong((1, 0, 0), -3e38, indices="none")
    wrong((0, 0, 0, 0), 1e-3, indices="none")
    wrong((0, 0, 0, 0), math.nan, indices="none")


def test_oracle_rejects_a_direction_slightly_off():
    """Noise below the elementwise tolerance that the cosine notices."""
    x, results = right_answer(values="small")
    results[0] = (results[0].float() + 5e-4 * torch.sign(torch.randn(results[0].shape))).bfloat16()
    with pytest.raises(AssertionError, match="cosine"):
        oracle.verify(results, x)


def test_oracle_cosine():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [math.nan, 0.0]])
    y = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0], [math.nan, 0.0]])
    got = oracle.cosine_difference(x, y)
    assert got[:3].tolist() == [0.0, 0.0, 1.0] and math.isnan(got[3])


def test_oracle_sampled_queries():
    x, results = right_answer(batch=2)
    oracle.verify(results, x, torch.tensor([1, 6]))
    results[0][1, 2] = 0  # query 6
    oracle.verify(results, x, torch.tensor([1, 5]))
    with pytest.raises(AssertionError):
        oracle.verify(results, x, torch.tensor([1, 6]))


def test_cases_are_what_they_say():
    def logits(**options):
        case = SparseMlaFwdCase(**options)
        x = make_inputs(case).to(torch.float64)
        counts = (x.idx >= 0) & (x.idx < case.s_kv)
        return (torch.einsum("shd,std->sht", x.q, x.kv[x.idx.clamp(0, case.s_kv - 1).long()]) * x.scale), counts

    ramp, _ = logits(values="ramp", indices="ascending", topk=256)
    blocks = ramp.view(3, 16, 4, 64).amax(-1)
    assert (blocks.diff(dim=-1)[:, 3::4] > 40).all(), "the steepest heads gain in every block"
    assert blocks.diff(dim=-1)[:, 0::4].abs().max() < 10, "others do not"
    assert logits(values="large")[0].amax() > 200
    assert logits(values="low")[0].amax() < -200
    spikes = logits(values="spikes", topk=300)[0].amax(-1)
    assert (spikes[:, 0::2] > 200).all() and (spikes[:, 1::2] < 20).all()
    assert not logits(indices="none")[1].any()
    assert logits(indices="some_none")[1].any(-1).tolist() == [False, True, True]
    late = logits(indices="late", topk=200)[1]
    assert not late[:, :128].any() and late[:, 128:].all()
    assert 0.2 < 1 - logits(invalid=0.3)[1].double().mean() < 0.4

    x = make_inputs(SparseMlaFwdCase(poison=True, topk_length="random", s_q=20))
    flat = oracle.flatten(x)
    assert not x.kv.isfinite().all() and not x.kv[0].isfinite().any() and not x.kv[-1].isfinite().any()
    assert flat.kv.isfinite().all() and flat.kv.numel(), "no valid index names a poisoned row"
    beyond = torch.arange(130) >= x.topk_length[:, None]
    assert not x.kv[x.idx[beyond].long()].isfinite().any(), "entries beyond topk_length do"
    assert replace(x, topk_length=None).call(reference.sparse_mla_fwd)[0].isnan().any()
