"""The decode benchmark, as far as it goes without a GPU."""

import json
import re

import pytest
import test_benchmarks
import torch
from test_benchmarks import CEILINGS, HASHES, NoPeer, on_cpu, stored  # noqa: F401

import dsa_ext

# Of the folder that test_benchmarks puts on the path.
import decode  # isort: skip
import frame  # isort: skip
import peers  # isort: skip
import record  # isort: skip
import render_readme  # isort: skip

BENCH = decode.Decode()


def test_rows():
    cases = BENCH.cases()
    ids = [BENCH.row_id(case) for case in cases]
    assert len(set(ids)) == len(ids) == 9 * 2 * 3 + 1 + 8
    assert {"v32-h128-b1-sq1-topk2048", "v32-h16-b256-sq2-topk2048", "v32-h128-b8-sq1-topk16384"} <= set(ids)
    assert {"v4-h128-b64-sq1-topk2048", "bf16-h16-b1-sq1-topk2048"} <= set(ids)
    for case in cases:  # each query's piece of a permutation
        assert case.slots % case.topk == 0 and case.slots % case.page_size == 0
    assert sum(map(BENCH.is_quick, cases)) == 6


def test_rates():
    case = next(c for c in BENCH.cases() if BENCH.row_id(c) == "v32-h128-b64-sq2-topk2048")
    row = BENCH.describe(case) | {"ms": 0.4, "peer_ms": 0.5}
    rates = BENCH.rates(row, CEILINGS)
    assert rates["tflops"] == pytest.approx(2 * 64 * 2 * 128 * 2048 * 1088 / 0.4e-3 / 1e12)
    assert rates["tb_s"] == pytest.approx(64 * 2 * 2048 * 656 / 0.4e-3 / 1e12)
    assert rates["copy_share"] == pytest.approx(rates["tb_s"] / 4.2) and rates["ratio"] == 1.25


def test_layers_rotate_over_the_pool():
    """No slot is named twice before all have been; every graph touches many times what stays in a cache."""
    case = BENCH.cpu_case
    steps = decode.layers(case, "cpu")
    assert len(steps) * decode.key_bytes(case) >= decode.TOUCHED
    named = torch.cat([x.idx.flatten() for x in steps])
    passes = named[: len(named) // case.slots * case.slots].view(-1, case.slots)
    assert torch.equal(passes.sort(dim=1).values, torch.arange(case.slots).int().expand_as(passes))
    assert torch.equal(steps[0].idx, decode.layers(case, "cpu")[0].idx)
    assert all(x.kv_cache is steps[0].kv_cache for x in steps)


def test_row(on_cpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(decode, "TOUCHED", 3 * decode.key_bytes(BENCH.cpu_case))
    row = frame._row(BENCH, BENCH.cpu_case, NoPeer(), CEILINGS, seconds=1)
    assert row["error"] is None and "peer_error" not in row
    assert row["calls_a_graph"] == 3 and row["peer_heads"] == 64
    assert row["ms"] == row["peer_ms"] == 2.0 / 3 and row["ratio"] == 1
    text = frame.line(BENCH, row)
    assert "666.67 us" in text and "ratio 1.000" in text and "of a copy" in text
    json.dumps(row)


@pytest.mark.parametrize("format", ["v4", "bf16"])
def test_row_of_another_cache(format, on_cpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(decode, "TOUCHED", 0)
    case = decode.DecodeCase(batch=2, h_q=16, topk=128, format=format, slots=1024)
    row = frame._row(BENCH, case, NoPeer(), CEILINGS, seconds=1)
    assert row["error"] is None and ("peer_ms" in row) == (format == "v4")


def test_wrong_result_is_not_timed(on_cpu, monkeypatch):  # noqa: F811
    right = dsa_ext.sparse_mla_decode

    def wrong(*arguments, **options):
        out, lse = right(*arguments, **options)
        return out * 1.1, lse

    monkeypatch.setattr(dsa_ext, "sparse_mla_decode", wrong)
    row = frame._row(BENCH, BENCH.cpu_case, None, CEILINGS, seconds=1)
    assert row["error"].startswith("AssertionError: out is wrong") and "ms" not in row


def test_peer_that_is_called_wrongly_is_not_timed(on_cpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(decode, "TOUCHED", 0)
    peer = NoPeer()
    right = peer._sparse_decode
    peer._sparse_decode = lambda q, *rest: right(q.flip(2), *rest)
    row = frame._row(BENCH, BENCH.cpu_case, peer, CEILINGS, seconds=1)
    assert row["error"] is None and row["ratio"] is None
    assert row["peer_error"].startswith("its result differs from ours")


def test_table():
    result = stored(BENCH)
    text = render_readme.decode_table(json.loads(json.dumps(result)), HASHES)
    lines = text.splitlines()
    assert sum(bool(re.match(r"\| (v32|v4|bf16) \|", line)) for line in lines) == 9 * 3 + 1 + 8
    assert all(line.count("|") == 12 for line in lines if line.startswith("|"))
    first = next(line for line in lines if line.startswith("| v32 | 128 | 2048 | 1 |"))
    assert first == (
        "| v32 | 128 | 2048 | 1 | 1.6 / 3.3 | 350 / 350 | 0.82 / 0.82 | 50% / 50% | 20% / 20% | 1.25 / 1.25 | – / – |"
    )
    assert any(line.startswith("| v32 | 128 | 16384 | 8 | 104.3 | 350 |") for line in lines)
    assert "s_q = 1 / 2" in text and "700 TFLOPS" in text and "4.20 TB/s" in text and "Stale" not in text
    assert "**Stale**" in render_readme.decode_table(result, HASHES | {"sparse_mla_decode": "other"})


def test_table_of_another_ops_rows():
    result = stored(BENCH)
    for row in result["rows"]:
        row["op"] = "sparse_mla_fwd"
    assert render_readme.decode_table(result, HASHES) == render_readme.NOT_MEASURED.format("decode")


def test_both_tables_of_the_readme(tmp_path):
    readme = tmp_path / "README.md"
    markers = [f"<!-- {m}{name} table -->" for name in ("prefill", "decode") for m in ("", "/")]
    readme.write_text("\n".join(["before", *markers, "after"]))
    record.write(tmp_path / "prefill.json", test_benchmarks.stored_prefill())
    record.write(tmp_path / "decode.json", stored(BENCH))
    for _ in range(2):
        render_readme.render(readme, tmp_path, HASHES)
    text = readme.read_text()
    assert text.startswith("before") and text.endswith("after")
    assert text.count("| v32 | 64 | 2048 | 256 |") == 1 and text.count("| 64 | 512 | 512 |") == 1


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    result = stored(BENCH)
    for i, image in enumerate((tmp_path / "all.png", tmp_path / "alone.png")):
        if i:
            result["rows"] = [row | {"ratio": None} for row in result["rows"] if row["s_q"] == 1]
        BENCH.plot(result, image)
        assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.gpu
@pytest.mark.parametrize("row", ["v32-h128-b1-sq1-topk2048", "v32-h16-b64-sq2-topk2048", "bf16-h16-b1-sq1-topk2048"])
def test_row_on_the_gpu(row, monkeypatch, free_memory):
    case = next(c for c in BENCH.cases() if BENCH.row_id(c) == row)
    row = frame._row(BENCH, case, peers.flash_mla()[0], CEILINGS, seconds=0.05)
    decode.pool.cache_clear()
    assert row["error"] is None and row["ms"] > 0 and row["path"].startswith("sm") and "peer_error" not in row
