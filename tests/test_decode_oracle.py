"""The criteria that sparse_mla_decode's results are held to: each must be able to fail. And what its cases promise."""

import math

import pytest
import torch
from decode_cases import FORMATS, make_inputs, random_cache
from decode_cases import DecodeCase as Case
from decode_oracle import verify

from dsa_ext import reference

TRICKY = {"batch": 4, "s_q": 2, "attn_sink": "edge", "topk_length": "random", "extra_topk": 30, "poison": True}


def right_answer(**options):
    x = make_inputs(Case(**options))
    return x, [r.clone() for r in x.call(reference.sparse_mla_decode)]


def test_accepts():
    for options in ({}, {"indices": "some_none"}, {"format": "v4"}, {"format": "bf16"}, TRICKY):
        x, results = right_answer(**options)
        verify(results, x)


@pytest.mark.parametrize(
    "place, change",
    [
        ((0, 1, 0, 3, 40), lambda value: value + 0.02 * abs(value) + 2e-3),
        ((0, 2, 0, 15, 511), lambda value: math.nan),
        ((1, 2, 0, 7), lambda value: value * (1 + 2e-4)),
        ((1, 0, 0, 0), lambda value: math.nan),
        ((1, 0, 0, 0), lambda value: math.inf),
    ],
)
def test_rejects_single_elements(place, change):
    x, results = right_answer()
    results[place[0]][place[1:]] = change(results[place[0]][place[1:]].item())
    with pytest.raises(AssertionError):
        verify(results, x)


@pytest.mark.parametrize("which, value", [(1, -math.inf), (1, 0.0), (0, 2e-3), (0, math.nan)])
def test_rejects_anything_but_nothing(which, value):
    x, results = right_answer(indices="none")
    results[which][(0,) * results[which].dim()] = value
    with pytest.raises(AssertionError):
        verify(results, x)


def test_sampled_queries():
    x, results = right_answer(batch=3, s_q=2)
    results[0][1, 1] = 0  # query 3
    verify(results, x, torch.tensor([2, 5]))
    with pytest.raises(AssertionError):
        verify(results, x, torch.tensor([2, 3]))


@pytest.mark.parametrize("format", FORMATS)
def test_without_the_rows_the_bytes_are_read(format):
    """As for caches that fill a GPU: the oracle then looks up what the package makes of the bytes."""
    cache = random_cache(format, 5, 53, "cpu")
    q = torch.randn(3, 1, 16, Case(format=format).d_qk).bfloat16()
    idx = torch.randint(-9, 5 * 53 + 9, (3, 1, 70), dtype=torch.int32)
    x = type(make_inputs(Case()))(q, cache, idx, 0.07)
    results = x.call(reference.sparse_mla_decode)
    verify(results, x)
    with pytest.raises(AssertionError):
        verify([results[0], results[1] + 1e-2], x)


@pytest.mark.parametrize("format", FORMATS)
def test_cases_are_what_they_say(format):
    x = make_inputs(Case(format=format, batch=20, s_q=2, topk_length="random", poison=True, page_size=53))
    length = x.topk_length[:, :, None]
    assert length.shape == (20, 2, 1)
    looked_at = torch.arange(130) < length
    assert x.rows[x.idx[looked_at].long()].isfinite().all()
    assert not x.rows[x.idx[~looked_at].long()].isfinite().any(), "beyond its length, a query names poison"
    per_request = make_inputs(Case(format=format, topk_length="random", length_a="request", s_q=2))
    assert per_request.topk_length.shape == (3,)
    zero = make_inputs(Case(format=format, batch=7, topk_length="some_zero"))
    assert zero.topk_length[:, 0].tolist() == [0, 130, 130, 0, 130, 130, 0]


def test_wide_scales_are_wide():
    v32 = make_inputs(Case(scales="range")).kv_cache[..., 512:528].contiguous().view(torch.float32)
    magnitude = v32.abs()
    assert magnitude.max() > 2.0**108 and 0 < magnitude[magnitude > 0].min() < 2.0**-148
    assert (v32 < 0).any() and (v32 == 0).any()
    rows = make_inputs(Case(scales="range")).rows
    assert rows.isfinite().all() and rows.abs().max() > 1e35
    single = make_inputs(Case(scales="range", topk=1)).rows  # the last binade but one of float32
    assert single.isfinite().all() and single.abs().max() > 2.0**126
