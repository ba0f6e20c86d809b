"""The benchmarks, as far as they go without a GPU: what is computed from times, stored, rendered, called stale."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import check_stale  # noqa: E402
import frame  # noqa: E402
import peers  # noqa: E402
import prefill  # noqa: E402
import record  # noqa: E402
import render_readme  # noqa: E402
import timing  # noqa: E402
from cases import SparseMlaFwdCase, make_inputs  # noqa: E402

import dsa_ext  # noqa: E402

HASHES = {
    "sparse_mla_fwd": "0123456789ab",
    "sparse_mla_decode": "cdef01234567",
    "indexer_logits": "89abcdef0123",
    "topk_indices": "456789abcdef",
}
MATMUL = 700.0
CEILINGS = {"matmul_tflops": MATMUL, "copy_tb_s": 4.2}


def stored(bench: frame.Benchmark, **run) -> dict:
    """A result as it is stored, in which every row reaches half the matmul rate and the peer 0.4 of it."""
    rows = []
    for case in bench.cases():
        row = {"row": bench.row_id(case), "op": bench.op, "path": "sm90", **bench.describe(case)}
        row |= {"error": None, "ms": case.flops / 350e9, "peer_ms": case.flops / 280e9}
        rows.append(row | bench.rates(row, CEILINGS))
    facts = record.of_run(on_gpu=False) | {"gpu": "NVIDIA H200", "driver": "1.2", "commit": "c0ffee"}
    facts |= {"source_hash": HASHES} | run
    versions = {"FlashMLA": {"version": "of vllm==0.21.0", "sha256": "00"}}
    return {"benchmark": bench.name, "run": facts, **CEILINGS, "peers": versions, "rows": rows}


def stored_prefill(**run) -> dict:
    return stored(prefill.Prefill(), **run)


def test_rows_of_prefill():
    ids = [prefill.Prefill().row_id(case) for case in prefill.Prefill().cases()]
    assert len(set(ids)) == 36
    assert "h128-topk2048-d576-kv8192" in ids and "h16-topk512-d512-kv131072" in ids


def test_rates():
    case = SparseMlaFwdCase(s_q=4096, h_q=128, topk=2048, d_qk=576, s_kv=8192)
    row = prefill.Prefill().describe(case) | {"ms": 4.0, "peer_ms": 5.0}
    assert row["flop"] == 2 * 4096 * 128 * 2048 * (576 + 512)
    rates = prefill.Prefill().rates(row, CEILINGS)
    assert rates["tflops"] == pytest.approx(2 * 4096 * 128 * 2048 * 1088 / 4e-3 / 1e12)
    assert rates["matmul_share"] == pytest.approx(rates["tflops"] / MATMUL)
    assert rates["ratio"] == 1.25
    assert rates["gather_tb_s"] == pytest.approx(2 * 4096 * 2048 * 576 * 2 / 4e-3 / 1e12)  # two tiles of 64 heads


@pytest.mark.parametrize("h_q, tiles", [(8, 1), (64, 1), (65, 2)])
def test_gather_bytes(h_q, tiles):
    case = SparseMlaFwdCase(batch=3, s_q=2, h_q=h_q, topk=10, d_qk=512)
    assert prefill.gather_bytes(case) == tiles * 3 * 2 * 10 * 512 * 2


@pytest.mark.parametrize(
    "filters, expected",
    [([], True), (["h128"], True), (["h12"], False), (["h128,kv32768"], False), (["h16", "kv8192,d576"], True)],
)
def test_selection(filters, expected):
    assert frame.selected("h128-topk2048-d576-kv8192", filters) is expected


def test_table():
    text = render_readme.prefill_table(json.loads(json.dumps(stored_prefill())), HASHES)
    lines = text.splitlines()
    first = next(line for line in lines if line.startswith("| 128 | 2048 | 576 |"))
    assert first == "| 128 | 2048 | 576 | 6.68 / 6.68 / 6.68 | 350 / 350 / 350 | 50% / 50% / 50% | 1.25 / 1.25 / 1.25 |"
    assert sum(bool(re.match(r"\| \d", line)) for line in lines) == 12
    assert all(line.count("|") == 8 for line in lines if line.startswith("|"))
    assert "8K / 32K / 128K" in text and "`c0ffee`" in text and "700 TFLOPS" in text and "vllm==0.21.0" in text
    assert "Stale" not in text


def test_table_of_what_is_missing_or_wrong():
    result = stored_prefill()
    result["rows"][0]["error"] = "AssertionError: out is wrong"
    for row in result["rows"][1:]:
        row |= {"peer_ms": None, "ratio": None}
    del result["rows"][2]
    result["peers"] = {}
    text = render_readme.prefill_table(result, HASHES)
    assert "| 128 | 2048 | 576 | failed / 6.68 / – | failed / 350 / – | failed / 50% / – | failed / – / – |" in text
    assert "Timed beside it" not in text


def test_no_numbers_without_a_gpu():
    nothing = render_readme.NOT_MEASURED.format("prefill")
    assert render_readme.prefill_table(None, HASHES) == nothing
    assert render_readme.prefill_table(stored_prefill(gpu=None), HASHES) == nothing


def test_readme_is_rendered_between_its_markers(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text((ROOT / "README.md").read_text())
    before, after = re.split(r"<!-- prefill table -->.*<!-- /prefill table -->", readme.read_text(), flags=re.S)
    after = after.partition("<!-- decode table -->")[0]
    nothing = render_readme.NOT_MEASURED.format("prefill")

    render_readme.render(readme, results, HASHES)
    assert nothing in readme.read_text()
    record.write(results / "prefill.json", stored_prefill())
    render_readme.render(readme, results, HASHES)
    render_readme.render(readme, results, HASHES)
    text = readme.read_text()
    assert text.startswith(before) and after in text and text.count("| 64 | 512 | 512 |") == 1
    assert nothing not in text and "Stale" not in text
    render_readme.render(readme, results, HASHES | {"sparse_mla_fwd": "other"})
    assert "**Stale**: the kernels' sources have changed since 36 of these 36 rows" in readme.read_text()


def test_markers_of_the_readme():
    assert render_readme.insert("no table", "decode", "x") == "no table"
    text = "a\n<!-- decode table -->\nold\n<!-- /decode table -->\nb"
    assert render_readme.insert(text, "decode", "x") == text.replace("old", "x")
    assert render_readme.insert(text, "decode", "") == text.replace("old\n", "")
    for bad in ("<!-- decode table -->", "<!-- /decode table -->", text + text):
        with pytest.raises(SystemExit, match="needs <!-- decode table --> and <!-- /decode table -->, once"):
            render_readme.insert(bad, "decode", "x")


def test_stale_rows(tmp_path):
    path = tmp_path / "prefill.json"
    assert check_stale.report([], HASHES) == ["nothing is stored under benchmarks/results"]
    record.write(path, stored_prefill())
    assert check_stale.report([path], HASHES) == ["prefill.json: 0 of 36 rows are stale (measured at commit c0ffee)"]
    lines = check_stale.report([path], {"sparse_mla_fwd": "ba9876543210"})
    assert lines[0].startswith("prefill.json: 36 of 36 rows are stale") and len(lines) == 37
    assert lines[1] == "  h128-topk2048-d576-kv8192: sources of sparse_mla_fwd were 0123456789ab, are ba9876543210"


def test_hash_of_the_build_and_of_the_checkout_cover_the_same_ops():
    assert set(check_stale.current_hashes()) == set(dsa_ext.build_info()["source_hash"])


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=100
    )


def test_check_stale_never_fails():
    assert run("benchmarks/check_stale.py").returncode == 0


@pytest.mark.parametrize("name", ["prefill", "decode", "indexer"])
def test_benchmark_without_a_gpu(name, tmp_path):
    results = ROOT / "benchmarks/results"
    before = {p: p.stat().st_mtime_ns for p in results.glob("*")}
    path = tmp_path / "result.json"
    done = run(f"benchmarks/{name}.py", "--json", str(path), CUDA_VISIBLE_DEVICES="", DSA_EXT_COMMIT="c0ffee")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times the CPU reference on a small shape" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in results.glob("*")} == before

    result = record.read(path)
    assert result["benchmark"] == name and result["run"]["gpu"] is None and result["run"]["commit"] == "c0ffee"
    assert result["run"]["source_hash"] == dsa_ext.build_info()["source_hash"]
    (row,) = result["rows"]
    assert row["path"] == "reference" and row["ms"] > 0 and row["error"] is None


def test_commit(monkeypatch):
    monkeypatch.setenv("DSA_EXT_COMMIT", "c0ffee")
    assert record.commit() == "c0ffee"
    monkeypatch.delenv("DSA_EXT_COMMIT")
    assert re.fullmatch(r"unknown|[0-9a-f]{12}(\+changes)?", record.commit())


def test_missing_peer(monkeypatch, tmp_path):
    monkeypatch.setenv("DSA_EXT_PEERS", str(tmp_path))
    peer, why = peers.flash_mla()
    assert peer is None and why.startswith("no peer: _flashmla_C.abi3.so is not in ")
    (tmp_path / peers.FILE).write_bytes(b"not a library")
    peer, why = peers.flash_mla()
    assert peer is None and "does not load with torch" in why


def test_peer_from_a_wheel(monkeypatch, tmp_path):
    monkeypatch.setenv("DSA_EXT_PEERS", str(tmp_path / "site"))
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(peers.MEMBER, b"a library")
    with pytest.raises(SystemExit, match="has sha256 .*: not kept"):
        peers.fetch(wheel)
    assert not (tmp_path / "site" / peers.FILE).exists()
    expected = peers.sha256(Path(zipfile.ZipFile(wheel).extract(peers.MEMBER, tmp_path)))
    monkeypatch.setattr(peers, "SHA256", expected)
    assert peers.fetch(wheel).read_bytes() == b"a library"
    assert list((tmp_path / "site").iterdir()) == [tmp_path / "site" / peers.FILE]


class NoPeer(peers.FlashMla):
    """Computes by the reference what the peer is asked for."""

    def __init__(self):
        self._sparse_prefill = lambda q, kv, idx, scale, d_v, sink, length, out: dsa_ext.sparse_mla_fwd(
            q, kv, idx, scale, d_v=d_v
        )
        plan = torch.zeros(3), torch.zeros(4)

        def decode(q, cache, idx, length, sink, metadata, splits, extra, extra_idx, extra_length, d_v, scale, out):
            assert (metadata is splits is None) or (metadata is plan[0] and splits is plan[1])
            return *dsa_ext.sparse_mla_decode(q, cache.squeeze(2), idx, scale), *plan

        self._sparse_decode = decode


def test_peer_is_given_padded_heads():
    inputs = make_inputs(SparseMlaFwdCase(s_q=2, h_q=16, topk=128))
    out = NoPeer().prefill(inputs.q, inputs.kv, inputs.idx, inputs.scale)()[0]
    assert out.shape == (2, 64, 512)
    assert torch.allclose(out[:, :16].float(), inputs.call(dsa_ext.sparse_mla_fwd)[0].float(), atol=1e-2)
    assert [peers.FlashMla.heads(h) for h in (1, 64, 65, 128)] == [64, 64, 128, 128]


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    prefill.Prefill().plot(stored_prefill(), tmp_path / "prefill.png")
    assert (tmp_path / "prefill.png").read_bytes().startswith(b"\x89PNG")


def test_example_of_the_readme():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    code = "".join(block for block in blocks if "from_pretrained" not in block)
    names: dict = {}
    exec(code.replace('"cuda" if torch.cuda.is_available() else ', ""), names)  # where no kernel may run
    assert names["max_logits"].shape == (4, 128)
    assert names["logits"].shape == (4, 8192) and names["idx"].shape == (4, 2048) and bool((names["idx"] >= 0).all())
    assert names["out"].shape == (4, 1, 128, 512) and names["lse"].shape == (4, 1, 128)  # of the last call
    assert names["y"].shape == (1, 7168) and bool(names["y"].isfinite().all())


@pytest.fixture
def on_cpu(monkeypatch):
    """The path that a GPU takes, with the reference for the kernel and a clock that says 2 ms for every call."""
    two_ms = timing.Timing(2.0, (1.9, 2.1), 5)

    def in_turns(calls, seconds):
        for call in calls.values():
            call()
        return dict.fromkeys(calls, two_ms)

    monkeypatch.setattr(timing, "in_turns", in_turns)
    monkeypatch.setattr(timing, "graph", lambda calls: lambda: [call() for call in calls])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(frame.Benchmark, "device", "cpu")


def test_row(on_cpu):
    bench = prefill.Prefill()
    row = frame._row(bench, bench.cpu_case, NoPeer(), CEILINGS, seconds=1)
    assert row["error"] is None and "peer_error" not in row
    assert row["ms"] == row["peer_ms"] == 2.0 and row["ratio"] == 1 and row["peer_heads"] == 64
    text = frame.line(bench, row)
    assert "ratio 1.000" in text and "TB/s gathered" in text
    json.dumps(row)


def test_wrong_result_is_not_timed(on_cpu, monkeypatch):
    right = dsa_ext.sparse_mla_fwd

    def wrong(*arguments, **options):
        out, max_logits, lse = right(*arguments, **options)
        return out * 1.1, max_logits, lse

    monkeypatch.setattr(dsa_ext, "sparse_mla_fwd", wrong)
    bench = prefill.Prefill()
    row = frame._row(bench, bench.cpu_case, None, CEILINGS, seconds=1)
    assert row["error"].startswith("AssertionError: out is wrong") and "ms" not in row
    assert "FAILED" in frame.line(bench, row)


def test_peer_that_is_called_wrongly_is_not_timed(on_cpu):
    peer, bench = NoPeer(), prefill.Prefill()
    right = peer._sparse_prefill
    peer._sparse_prefill = lambda q, *rest: right(q.flip(1), *rest)
    row = frame._row(bench, bench.cpu_case, peer, CEILINGS, seconds=1)
    assert row["error"] is None and row["ms"] == 2.0
    assert row["peer_error"].startswith("its result differs from ours") and row["ratio"] is None
    assert "peer: its result differs" in frame.line(bench, row)


@pytest.mark.gpu
def test_times_on_the_gpu():
    times = timing.in_turns({"a": lambda: torch.zeros(1 << 20, device="cuda"), "b": lambda: None}, seconds=0.05)
    assert times["a"].ms > 0 and times["a"].rounds == times["b"].rounds >= timing.MIN_ROUNDS
    x = torch.zeros(4, device="cuda")
    replay = timing.graph([lambda: x.add_(1), lambda: x.add_(2)])
    x.zero_()
    replay()
    assert x.tolist() == [3.0] * 4


@pytest.mark.gpu
def test_row_on_the_gpu():
    bench = prefill.Prefill()
    row = frame._row(bench, bench.cases()[0], peers.flash_mla()[0], CEILINGS, seconds=0.05)
    assert row["error"] is None and row["ms"] > 0 and row["path"].startswith("sm")
