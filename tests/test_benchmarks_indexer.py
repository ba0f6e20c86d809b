"""The indexer benchmark, as far as it goes without a GPU."""

import json
import re
import sys
import zipfile

import pytest
import test_benchmarks  # puts benchmarks/ on the path  # noqa: F401
import torch
from test_benchmarks import CEILINGS, HASHES, on_cpu, stored  # noqa: F401

import dsa_ext

import frame  # isort: skip
import indexer  # isort: skip
import peers  # isort: skip
import record  # isort: skip
import render_readme  # isort: skip

BENCH = indexer.Indexer()
SMALL_PAGED = indexer.LogitsCase(batch=3, tokens=2, keys=256, heads=8)


def test_rows():
    cases = BENCH.cases()
    ids = [BENCH.row_id(case) for case in cases]
    assert len(set(ids)) == len(ids) == 8 + 4
    assert {"ragged-h64-sq4096-sk16384", "ragged-h32-sq4096-sk131072", "paged-h64-b64-n2-sk32768"} <= set(ids)
    assert 0 < sum(map(BENCH.is_quick, cases)) < len(cases)


def test_rates():
    case = next(c for c in BENCH.cases() if BENCH.row_id(c) == "ragged-h64-sq4096-sk4096")
    row = BENCH.describe(case) | {"ms": 0.2, "peer_ms": 0.3}
    seen = sum(range(1, 4097))
    rates = BENCH.rates(row, CEILINGS)
    assert rates["tflops"] == pytest.approx(2 * seen * 64 * 128 / 0.2e-3 / 1e12) and rates["ratio"] == pytest.approx(
        1.5
    )
    assert rates["tb_s"] == pytest.approx(4096 * 4096 * 4 / 0.2e-3 / 1e12)
    case = next(c for c in BENCH.cases() if BENCH.row_id(c) == "paged-h64-b64-n2-sk32768")
    rates = BENCH.rates(BENCH.describe(case) | {"ms": 0.1}, CEILINGS)
    assert rates["tb_s"] == pytest.approx(64 * 32768 * 132 / 0.1e-3 / 1e12)
    assert rates["copy_share"] == pytest.approx(rates["tb_s"] / 4.2) and rates["ratio"] is None


class NoPeer(peers.DeepGemm):
    """Computes by the reference what the peer is asked for."""

    def __init__(self):
        self._module = self

    def get_num_sms(self):
        return 132

    def get_paged_mqa_logits_metadata(self, lens, page_size, sms):
        assert lens.shape == (3, 2) and (page_size, sms) == (64, 132)
        return "plan"

    def fp8_mqa_logits(self, q, keys, weights, start, end, clean_logits):
        return dsa_ext.indexer_logits(q, *keys, weights, start, end)

    def fp8_paged_mqa_logits(self, q, cache, weights, lens, table, plan, length, clean_logits):
        assert plan == "plan" and weights.shape == (6, 8) and cache.shape[2:] == (1, 132)
        return dsa_ext.paged_indexer_logits(q, cache[:, :, 0], weights, lens, table, max_context_len=length).flatten(
            0, 1
        )


@pytest.mark.parametrize("case", [BENCH.cpu_case, SMALL_PAGED], ids=["ragged", "paged"])
def test_row(case, on_cpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(indexer, "TOUCHED", 3 * case.key_bytes)
    row = frame._row(BENCH, case, NoPeer(), CEILINGS, seconds=1)
    assert row["error"] is None and "peer_error" not in row
    assert row["ms"] == row["peer_ms"] == 2.0 / row.get("calls_a_graph", 1) and row["ratio"] == 1
    text = frame.line(BENCH, row)
    assert "ratio 1.000" in text and "of a copy" in text
    json.dumps(row)


@pytest.mark.parametrize("case", [BENCH.cpu_case, SMALL_PAGED], ids=["ragged", "paged"])
def test_what_is_wrong_is_not_timed(case, on_cpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(indexer, "TOUCHED", 0)
    peer = NoPeer()
    wrong = lambda right: lambda *a, **k: right(*a, **k).flip(0)  # noqa: E731
    peer.fp8_mqa_logits, peer.fp8_paged_mqa_logits = wrong(peer.fp8_mqa_logits), wrong(peer.fp8_paged_mqa_logits)
    row = frame._row(BENCH, case, peer, CEILINGS, seconds=1)
    assert row["error"] is None and row["peer_error"].startswith("its result differs from ours")
    for name in ("indexer_logits", "paged_indexer_logits"):
        monkeypatch.setattr(dsa_ext, name, wrong(getattr(dsa_ext, name)))
    row = frame._row(BENCH, case, None, CEILINGS, seconds=1)
    assert row["error"].startswith("AssertionError") and "ms" not in row


def test_caches_differ():
    steps = indexer.layers(SMALL_PAGED, "cpu")
    assert len(steps) * SMALL_PAGED.key_bytes >= indexer.TOUCHED
    assert not torch.equal(steps[0].k_cache, steps[1].k_cache)
    assert len({x.k_cache.data_ptr() for x in steps}) == len(steps)


def test_peer_from_a_wheel(monkeypatch, tmp_path):
    monkeypatch.setenv("DSA_EXT_PEERS", str(tmp_path / "site"))
    peer, why = peers.deep_gemm()
    assert peer is None and why.startswith("no peer: deep_gemm is not in ")
    wheel, own = tmp_path / "some.whl", f"_C.cpython-{''.join(map(str, sys.version_info[:2]))}-x86.so"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(peers.MEMBER, b"a library")
        for name in (own, "_C.cpython-399-x86.so", "include/x.cuh"):
            archive.writestr(peers.DEEP_GEMM + name, b"")
        archive.writestr(peers.DEEP_GEMM + "__init__.py", b"raise OSError('no compiler')")
    monkeypatch.setattr(peers, "SHA256", peers.sha256(_file(tmp_path, b"a library")))
    peers.fetch(wheel)
    package = tmp_path / "site/deep_gemm"
    found = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    assert found == {own, "include/x.cuh", "__init__.py"}
    peer, why = peers.deep_gemm()
    assert peer is None and why.endswith("no compiler")


def result(**run):
    return stored(BENCH, **run) | {"peers": {"DeepGEMM": {"version": "1.0"}}}


def test_table():
    text = render_readme.indexer_table(json.loads(json.dumps(result())), HASHES)
    lines = text.splitlines()
    ragged = [line for line in lines if re.match(r"\| (64|32) \| [\d.]+ / ", line)]
    assert len(ragged) == 2
    assert ragged[0].startswith("| 64 | 0.393 / 2.749 / 12.173 / 24.739 | 350 / 350 / 350 / 350 | 50% / ")
    assert ragged[0].endswith(" | 1.25 / 1.25 / 1.25 / 1.25 |")
    assert "4096 queries" in text and "s_k = 4K / 16K / 64K / 128K" in text
    paged = [line for line in lines if re.match(r"\| 64 \| \d+ \| \d+ \|", line)]
    assert [line.count("|") for line in paged] == [9] * 3
    assert paged[0].startswith("| 64 | 1 | 131072 | 6.1 | 2.82 | 67% | 350 | 1.25 |")
    assert paged[2].startswith("| 64 | 64 | 32768 | 98.2 / 196.3 | 2.82 / 1.41 | 67% / 34% | 350 / 350 | 1.25 / 1.25 |")
    assert "next_n = 1 / 2" in text and "An fp8 8192³ matmul" in text and "4.20 TB/s" in text
    assert text.count("DeepGEMM 1.0; without") == 1 and "FlashMLA" not in text and "Stale" not in text
    assert "**Stale**" in render_readme.indexer_table(result(), HASHES | {"indexer_logits": "other"})


@pytest.mark.parametrize("form", ["ragged", "paged"])
def test_table_of_one_form(form):
    some = result()
    some["rows"] = [row for row in some["rows"] if row["form"] == form]
    some["rows"][0] |= {"error": "AssertionError: 3 elements are wrong"}
    text = render_readme.indexer_table(some, HASHES)
    assert ("| 64 | failed / 2.749 / " in text) == (form == "ragged")
    assert ("| 64 | 1 | 131072 | failed | failed |" in text) == (form == "paged")
    assert ("TB/s of keys" in text) == (form == "paged")


def test_no_table_without_a_result(tmp_path):
    assert render_readme.indexer_table(None, HASHES) == render_readme.indexer_table(result(gpu=None), HASHES) == ""
    readme, empty = tmp_path / "README.md", "a\n<!-- indexer table -->\n<!-- /indexer table -->\nb"
    readme.write_text(empty)
    render_readme.render(readme, tmp_path, HASHES)
    assert readme.read_text() == empty
    record.write(tmp_path / "indexer.json", result())
    for _ in range(2):
        render_readme.render(readme, tmp_path, HASHES)
    assert readme.read_text().count(render_readme.INDEXER_HEADING) == 1
    (tmp_path / "indexer.json").unlink()
    render_readme.render(readme, tmp_path, HASHES)
    assert readme.read_text() == empty


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = result()
    for i, image in enumerate((tmp_path / "all.png", tmp_path / "alone.png")):
        if i:
            drawn["rows"] = [row | {"ratio": None} for row in drawn["rows"] if row["form"] == "paged"]
        BENCH.plot(drawn, image)
        assert image.read_bytes().startswith(b"\x89PNG")


def _file(folder, content):
    (folder / "content").write_bytes(content)
    return folder / "content"


@pytest.mark.gpu
@pytest.mark.parametrize("row", ["ragged-h64-sq4096-sk4096", "paged-h64-b1-n1-sk131072"])
def test_row_on_the_gpu(row, free_memory):
    case = next(c for c in BENCH.cases() if BENCH.row_id(c) == row)
    row = frame._row(BENCH, case, peers.deep_gemm()[0], CEILINGS, seconds=0.05)
    assert row["error"] is None and row["ms"] > 0 and row["path"].startswith("sm") and "peer_error" not in row
