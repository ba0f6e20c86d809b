"""The benchmark of a decode step, as far as it goes without a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

import dsa_ext

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import record  # isort: skip
import render_readme  # isort: skip
import step  # isort: skip
from check_stale import stale_rows  # isort: skip

BENCH = step.Step()
HASHES = {"indexer_logits": "1", "topk_indices": "2", "sparse_mla_decode": "3"}


def test_rows_have_ids_of_their_own():
    ids = [BENCH.row_id(case) for case in BENCH.cases()]
    assert len(set(ids)) == len(ids)


def test_cpu_call_is_what_its_parts_are(monkeypatch):
    monkeypatch.setattr(step.indexer, "TOUCHED", 0)
    layers = step.Layers(BENCH.cpu_case, "cpu")
    x = layers.index[0]
    idx = layers.choose(x)
    logits = x.call(dsa_ext.paged_indexer_logits)[:, 0]
    tables = {"block_table": x.block_table, "page_size": step.PAGE_SIZE}
    assert torch.equal(idx[:, 0], dsa_ext.topk_indices(logits, BENCH.cpu_case.topk, **tables))
    out, lse = layers.calls()[0]()
    want = dsa_ext.sparse_mla_decode(layers.q, layers.kv_cache, idx, step.SCALE)
    assert torch.equal(out, want[0]) and torch.equal(lse, want[1])


def stored(ratio: float | None = 1.5) -> dict:
    run = record.of_run(on_gpu=False) | {"gpu": "some GPU", "driver": "1", "source_hash": HASHES}
    rows = []
    for case in BENCH.cases():
        row = {"row": BENCH.row_id(case), "op": BENCH.op, "path": "a kernel", "error": None, **BENCH.describe(case)}
        rows.append(row | {"ms": 0.04, "peer_ms": 0.06, "ratio": ratio})
    described = {step.Peers.name: {"version": "some"}}
    return {"benchmark": "step", "run": run, "matmul_tflops": 700.0, "copy_tb_s": 3.0, "peers": described, "rows": rows}


def test_table():
    text = render_readme.step_table(json.loads(json.dumps(stored())), HASHES)
    assert text.count("| 128 |") == len(BENCH.cases()) and "40.0" in text and "1.50" in text and "Stale" not in text
    assert render_readme.step_table(None, HASHES) == ""


@pytest.mark.parametrize("op", HASHES)
def test_stale_if_any_of_its_ops_is(op):
    result = stored()
    assert stale_rows(result, HASHES) == []
    assert len(stale_rows(result, HASHES | {op: "other"})) == len(BENCH.cases())
