"""The top-k benchmark, as far as it goes without a GPU."""

import json

import pytest
from test_benchmarks import CEILINGS, HASHES, on_cpu, run  # noqa: F401

import dsa_ext

# Of the folder that test_benchmarks puts on the path.
import frame  # isort: skip
import peers  # isort: skip
import record  # isort: skip
import render_readme  # isort: skip
import topk  # isort: skip

BENCH = topk.Topk()


class NoPeer(peers.SglangTopk):
    """Computes by torch what the peer is asked for, in an order of its own."""

    k = 512

    def __init__(self):
        pass

    def topk(self, logits):
        return lambda: logits.topk(self.k).indices.int()


def test_rows():
    cases = BENCH.cases()
    ids = [BENCH.row_id(case) for case in cases]
    assert len(set(ids)) == len(ids) == 12
    assert {"fp32-rows1-n131072-k2048", "fp32-rows4096-n32768-k64", "bf16-rows4096-n32768-k2048"} <= set(ids)
    assert sum(map(BENCH.is_quick, cases)) == 5
    assert [case.calls for case in cases[:6]] == [10, 10, 10, 10, 3, 1]


def test_rates():
    row = BENCH.describe(topk.TopkCase(4096, 32768)) | {"ms": 0.2, "peer_ms": 0.5, "torch_ms": 1.6}
    rates = BENCH.rates(row, CEILINGS)
    assert rates["tb_s"] == pytest.approx(4096 * 32768 * 4 / 0.2e-3 / 1e12)
    assert rates["copy_share"] == pytest.approx(rates["tb_s"] / 4.2)
    assert rates["ratio"] == 2.5 and rates["torch_ratio"] == 8
    assert BENCH.rates(BENCH.describe(topk.TopkCase(1, 64)) | {"ms": 1.0}, CEILINGS)["ratio"] is None
    assert BENCH.summary([rates, {"ratio": None}, {"ratio": 10.0}]) == "ratio: geometric mean 5.00, least 2.50"
    assert BENCH.summary([{"error": "no"}]) is None


def test_row(on_cpu):  # noqa: F811
    row = frame._row(BENCH, BENCH.cpu_case, NoPeer(), CEILINGS, seconds=1)
    assert row["error"] is None and "peer_error" not in row
    assert row["ms"] == row["peer_ms"] == row["torch_ms"] == 0.2 and row["ratio"] == row["torch_ratio"] == 1
    text = frame.line(BENCH, row)
    assert "200.00 us" in text and "ratio 1.000" in text and "of a copy" in text and "1.0x torch" in text
    json.dumps(row)


def test_no_peer_for_another_k(on_cpu):  # noqa: F811
    row = frame._row(BENCH, topk.TopkCase(2, 1000, k=64), NoPeer(), CEILINGS, seconds=1)
    assert row["error"] is None and "peer_ms" not in row and row["torch_ms"] == 0.2


def test_wrong_result_is_not_timed(on_cpu, monkeypatch):  # noqa: F811
    right = dsa_ext.topk_indices
    monkeypatch.setattr(dsa_ext, "topk_indices", lambda logits, k: right(logits, k).flip(1))
    row = frame._row(BENCH, BENCH.cpu_case, None, CEILINGS, seconds=1)
    assert row["error"].startswith("AssertionError: the result differs from the reference's") and "ms" not in row


def test_peer_that_is_called_wrongly_is_not_timed(on_cpu):  # noqa: F811
    peer = NoPeer()
    peer.topk = lambda logits: lambda: (-logits).topk(512).indices.int()
    row = frame._row(BENCH, BENCH.cpu_case, peer, CEILINGS, seconds=1)
    assert row["error"] is None and row["ratio"] is None
    assert row["peer_error"].startswith("its result differs from ours")


def test_missing_peer(monkeypatch, tmp_path):
    monkeypatch.setenv("DSA_EXT_PEERS", str(tmp_path))
    peer, why = BENCH.find_peer()
    assert peer is None and why.startswith("no peer: sgl_kernel_sm90.abi3.so is not in ")


def test_without_a_gpu(tmp_path):
    path = tmp_path / "result.json"
    done = run("benchmarks/topk.py", "--json", str(path), CUDA_VISIBLE_DEVICES="", DSA_EXT_COMMIT="c0ffee")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = record.read(path)["rows"]
    assert row["path"] == "reference" and row["ms"] > 0 and row["error"] is None


def stored():
    """Every row in 0.1 ms, the peer in 0.3, torch in 0.5."""
    rows = []
    for case in BENCH.cases():
        row = {"row": BENCH.row_id(case), "op": BENCH.op, **BENCH.describe(case), "error": None, "ms": 0.1}
        row |= {"torch_ms": 0.5} | ({"peer_ms": 0.3} if case.k == 2048 and case.dtype == "fp32" else {})
        rows.append(row | BENCH.rates(row, CEILINGS))
    facts = record.of_run(on_gpu=False) | {"gpu": "NVIDIA H200", "driver": "1.2", "source_hash": HASHES}
    return {"benchmark": "topk", "run": facts, **CEILINGS, "peers": {"SGLang": {"version": "x"}}, "rows": rows}


def test_table():
    text = render_readme.topk_table(json.loads(json.dumps(stored())), HASHES)
    lines = [line for line in text.splitlines() if line.startswith(("| fp32", "| bf16"))]
    assert len(lines) == 12 and all(line.count("|") == 10 for line in lines)
    assert lines[4] == "| fp32 | 2048 | 4096 | 32768 | 100.0 | 5.37 | 128% | 3.00 | 5.0 |"
    assert lines[-1] == "| bf16 | 2048 | 4096 | 32768 | 100.0 | 2.68 | 64% | – | 5.0 |"
    assert text.startswith(render_readme.TOPK_HEADING) and "4.20 TB/s" in text and "SGLang x; its fast_topk" in text
    assert "matmul" not in text and "Stale" not in text
    assert "**Stale**" in render_readme.topk_table(stored(), HASHES | {"topk_indices": "other"})


def test_no_table_without_a_result():
    result = stored()
    result["run"]["gpu"] = None
    assert render_readme.topk_table(None, HASHES) == render_readme.topk_table(result, HASHES) == ""


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    BENCH.plot(stored(), tmp_path / "topk.png")
    assert (tmp_path / "topk.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.gpu
def test_row_on_the_gpu():
    peer, _ = BENCH.find_peer()
    row = frame._row(BENCH, BENCH.cases()[0], peer, CEILINGS, seconds=0.05)
    assert row["error"] is None and row["ms"] > 0 and "peer_error" not in row
