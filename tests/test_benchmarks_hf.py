"""The benchmark of transformers' models, as far as it goes without a GPU."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs transformers >= 5.17")
sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import hf  # isort: skip
import record  # isort: skip
from check_stale import stale_rows  # isort: skip

TINY = hf.Hf.cpu_case


class OnCpu(hf.Hf):
    device = "cpu"


@pytest.fixture
def memory(monkeypatch):
    """A GPU's bookkeeping, as far as it is asked for."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5000)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)


def test_rows():
    bench = hf.Hf()
    ids = [bench.row_id(case) for case in bench.cases()]
    assert len(set(ids)) == len(ids) and "v32-context65536-topk2048" in ids and "glm5-context1024-topk2048" in ids
    assert {bench.path(case, 9) is None for case in bench.cases()} == {bench.path(bench.cases()[0], 9) is None}


@pytest.mark.parametrize("kind", hf.KINDS)
def test_measure(kind, memory, monkeypatch):
    """Each way, of which eager does not fit from the second context on."""
    monkeypatch.setattr(hf, "CHUNK", 40)
    monkeypatch.setattr(hf, "DECODED", 6)
    bench, case = OnCpu(), dataclasses.replace(TINY, kind=kind)
    row = bench.measure(case, hf.Transformers("5"), 0)
    assert all(row[way]["ms"] > 0 and row[way]["peak_bytes"] == 4000 for way in hf.WAYS)
    assert row["ms"] == row["ours"]["ms"] and row["peer_ms"] == row["sdpa"]["ms"]

    run = hf.run

    def tight(model, case, way):
        if way == "eager":
            raise torch.OutOfMemoryError("in earnest")
        return run(model, case, way)

    monkeypatch.setattr(hf, "run", tight)
    row = bench.measure(dataclasses.replace(case, context=50), hf.Transformers("5"), 0)
    assert row["eager_error"] == "out of memory" and "eager" not in row and "sdpa" in row
    row = bench.measure(dataclasses.replace(case, context=60), hf.Transformers("5"), 0)
    assert row["eager_error"] == "a shorter context did not fit"
    row |= bench.rates(row, {})
    text = bench.rates_text(row)
    assert row["ratio"] == row["peer_ms"] / row["ms"] and "eager: a shorter" in text and "peak 0.00 GiB" in text


def test_logits_that_differ():
    logits = torch.randn(100)
    hf.check_logits(logits, logits * 1.01, "sdpa", hf.COSINE_ALL)
    with pytest.raises(AssertionError, match="logits differ from those of sdpa"):
        hf.check_logits(logits, torch.randn(100), "sdpa", hf.COSINE_CHOSEN["v32"])
    near = logits + 0.3 * torch.randn(100)
    hf.check_logits(logits, near, "sdpa", hf.COSINE_CHOSEN["v32"])
    with pytest.raises(AssertionError, match="1 - cosine"):
        hf.check_logits(logits, near, "sdpa", hf.COSINE_ALL)


def stored() -> dict:
    bench, times = hf.Hf(), {"ms": 2.0, "prefill_ms": 30.0, "peak_bytes": 2**31, "cache_bytes": 2**28}
    rows = []
    for case in bench.cases():
        ways = {"ours": times} | ({} if case.context > 4096 else {"sdpa": times, "eager": times})
        row = {"row": bench.row_id(case), "op": bench.op, "path": "sm90", **bench.describe(case), "error": None}
        rows.append(json.loads(json.dumps(row | ways | {"ms": 2.0})))
    run = record.of_run(on_gpu=False) | {"source_hash": {"indexer_logits": "1"}}
    return {"benchmark": "hf", "run": run, "matmul_tflops": None, "copy_tb_s": None, "peers": {}, "rows": rows}


def test_stale_rows_and_plot(tmp_path):
    result = stored()
    assert stale_rows(result, {"indexer_logits": "1"}) == []
    assert len(stale_rows(result, {"indexer_logits": "2"})) == len(result["rows"])
    pytest.importorskip("matplotlib")
    hf.Hf().plot(result, tmp_path / "hf.png")
    assert (tmp_path / "hf.png").stat().st_size > 10000


def test_one_token_on_the_cpu():
    call = hf.Hf().cpu_call(TINY)
    first, second = call(), call()
    assert first.shape == (hf.SHARED["vocab_size"],) and not torch.equal(first, second)


@pytest.mark.parametrize("kind", hf.KINDS)
def test_bfloat16_leaves_the_frequencies(kind):
    model = hf.cast(hf.make_model(dataclasses.replace(TINY, kind=kind), "cpu"), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
