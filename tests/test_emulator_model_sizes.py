"""The model's sizes on the emulator: 2048 keys a query, or one less, for 128 heads. One query on two of the runs stands
for the cases of test_sparse_mla_fwd.py and test_sparse_mla_decode.py that would take minutes there.

Runs where the emulator does: pytest --emulate=sm_100a.
"""

import decode_cases
import decode_oracle
import oracle
import pytest
from cases import SparseMlaFwdCase, make_inputs
from decode_cases import DecodeCase

import dsa_ext
from tests.emulator.control import RUNS

FAIR, LATE = RUNS[0], RUNS[2]
HOSTILE = {"h_q": 128, "invalid": 0.1, "poison": True, "attn_sink": "random"}
PREFILL = [(576, 2048, FAIR), (576, 2047, LATE), (512, 2047, FAIR), (512, 2048, LATE)]
DECODE = [("v32", 2048, FAIR), ("v32", 2047, LATE), ("v4", 2047, FAIR), ("bf16", 2048, LATE)]


def by_name(value):
    return getattr(value, "name", None)


@pytest.mark.parametrize("d_qk, topk, device", PREFILL, indirect=["device"], ids=by_name)
def test_prefill(d_qk, topk, device):
    inputs = make_inputs(SparseMlaFwdCase(s_q=1, s_kv=2500, d_qk=d_qk, topk=topk, **HOSTILE))
    oracle.verify(inputs.call(dsa_ext.sparse_mla_fwd), inputs)


@pytest.mark.parametrize("format, topk, device", DECODE, indirect=["device"], ids=by_name)
def test_decode(format, topk, device, multiprocessors):
    multiprocessors(2)  # a pair of CTAs has all keys
    inputs = decode_cases.make_inputs(DecodeCase(batch=1, slots=2500, format=format, topk=topk, **HOSTILE))
    plan = inputs.plan(dsa_ext.plan_sparse_mla_decode)
    decode_oracle.verify(inputs.call(dsa_ext.sparse_mla_decode, plan=plan), inputs)
