"""The benchmark of a whole layer, as far as it goes without a GPU."""

import json
import re
from dataclasses import replace

import pytest
import torch
from test_benchmarks import CEILINGS, on_cpu  # noqa: F401

import dsa_ext

# Of the folder that test_benchmarks puts on the path.
import check_stale  # isort: skip
import frame  # isort: skip
import layer  # isort: skip
import layer_kernels  # isort: skip
import peers  # isort: skip
import record  # isort: skip
import render_readme  # isort: skip
import timing  # isort: skip

BENCH = layer.Layer()
PREFILL = BENCH.cpu_case
DECODE = layer.LayerCase(form="decode", context=192, batch=3, config=layer.TINY)
EVERYTHING = replace(layer.TINY, index_topk=256)  # more than the context
# Ours, also while the layer's calls go elsewhere.
FUNCTIONS = {f: getattr(dsa_ext, f) for f in ("sparse_mla_fwd", "sparse_mla_decode")}
HASHES = {op: str(i) for i, op in enumerate((*layer.OPS, "sparse_mla_fwd", "sparse_mla_decode"))}


class NoLogits(peers.DeepGemm):
    """Computes by the reference what the peer is asked for, and leaves what is out of range undefined."""

    version = "none"

    def __init__(self):
        pass

    def logits(self, *arguments):
        return lambda: dsa_ext.indexer_logits(*arguments).nan_to_num(neginf=1e9)

    def plan(self, context_lens, page_size):
        assert context_lens.dim() == 2 and page_size == layer.PAGE_SIZE
        return torch.zeros(3)

    def paged_logits(self, q, k_cache, weights, lens, table, columns, plan):
        assert weights.dim() == 2 and plan.shape == (3,)
        return lambda: dsa_ext.paged_indexer_logits(q, k_cache, weights, lens, table, max_context_len=columns)[:, 0]


class NoTopk(peers.SglangTopk):
    version = "none"

    def __init__(self):
        pass

    def choose(self, logits, out, lengths):
        out.copy_(dsa_ext.topk_indices(logits, out.shape[1], lengths=lengths).flip(1))  # in an order of its own

    def choose_slots(self, logits, out, lengths, slots, rows):
        assert rows.tolist() == list(range(len(logits) + 1)) and slots.dtype == torch.int32
        self.choose(logits, out, lengths)
        out.copy_(torch.where(out < 0, -1, slots.gather(1, out.clamp(min=0).long())))


class NoAttention(peers.FlashMla):
    version = "none"

    def __init__(self):
        self._sparse_prefill = lambda q, kv, idx, scale, *_: FUNCTIONS["sparse_mla_fwd"](q, kv, idx, scale)
        self.plans = []

        def decode(q, cache, idx, *options):
            self.plans.append(options[2:4])  # metadata and splits
            made = (torch.zeros(2), torch.zeros(2))
            return *FUNCTIONS["sparse_mla_decode"](q, cache.squeeze(2), idx, options[8]), *made

        self._sparse_decode = decode


def no_peers():
    return layer_kernels.Peers(NoLogits(), NoTopk(), NoAttention())


@pytest.fixture
def clock(on_cpu, monkeypatch):  # noqa: F811
    """Besides: all chunks take 7 ms, and dense attention 1 ms."""

    def once(calls):
        for call in calls:
            call()
        return 7.0

    monkeypatch.setattr(timing, "once", once)
    monkeypatch.setattr(layer_kernels, "_seconds", lambda call: (call(), 1e-3)[1])


def test_rows_have_ids_of_their_own():
    cases = BENCH.cases()
    assert len({BENCH.row_id(case) for case in cases}) == len(cases) == 14
    assert sum(map(BENCH.is_quick, cases)) == 2


# --- what is timed


def counted(monkeypatch):
    """How often the kernels are called: their names."""
    calls = []

    def counting(module, name, key):
        function = getattr(module, name)

        def call(*arguments, **options):
            calls.append(key)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    for name, key in (("_logits", "logits"), ("_paged_logits", "logits"), ("_topk", "topk")):
        counting(layer_kernels._registration_indexer, name, key)
    for name in ("sparse_mla_fwd", "sparse_mla_decode"):
        counting(dsa_ext, name, "attention")
    return calls


@pytest.mark.parametrize("form", ["prefill", "decode"])
def test_a_stage_is_the_layer_as_far_as_there(form, monkeypatch):
    done = counted(monkeypatch)
    names = layer.FORMS[form]
    call = layer.Prompt(PREFILL, "cpu").chunks()[0] if form == "prefill" else layer.Batch(DECODE, "cpu").call
    want = call()
    assert done == ["logits", "topk", "attention"]
    stages = layer_kernels.Stages(call, names, layer_kernels.ours(names)).calls()
    assert list(stages) == list(layer_kernels.PARTS)
    for i, stage in enumerate(stages.values()):
        done.clear()
        assert torch.equal(stage(), want)
        assert done == ["logits", "topk", "attention"][:i]
    done.clear()
    call()  # as before
    assert done == ["logits", "topk", "attention"]


def test_parts():
    stages = {"projections": 3.0, "logits": 4.0, "topk": 4.5, "attention": 7.0}
    parts = layer_kernels.parts(stages)
    assert parts == {"projections": 3.0, "logits": 1.0, "topk": 0.5, "attention": 2.5}
    assert sum(parts.values()) == stages["attention"]


def cosine(a, b):
    return float(layer.cosine_difference(a.double(), b.double()).max())


def test_dense_prefill_is_sparse_prefill_of_all_keys():
    prompt = layer.Prompt(replace(PREFILL, config=EVERYTHING), "cpu")
    _, last, chunks = prompt.dense()
    want = [call() for call in prompt.chunks()]
    got = [call() for call in chunks]
    assert len(want) == 2 and max(map(cosine, got, want)) < 2e-3
    assert torch.equal(last(), got[-1])  # again, over keys that are there
    other = layer.Prompt(PREFILL, "cpu").chunks()
    other[0]()
    assert cosine(other[1](), got[1]) > 0.01  # of fewer keys


def test_dense_decode_is_sparse_decode_of_all_keys():
    batch = layer.Batch(replace(DECODE, config=EVERYTHING), "cpu")
    _, call = batch.dense()
    assert cosine(call(), batch.call()) < 2e-3


def test_dense_decode_takes_the_fastest_that_takes_the_call(monkeypatch):
    times = iter([3.0, RuntimeError("not taken"), 1.0])

    def seconds(call):
        t = next(times)
        if isinstance(t, Exception):
            raise t
        return t

    monkeypatch.setattr(layer_kernels, "_seconds", seconds)
    dense, _ = layer.Batch(DECODE, "cpu").dense()
    assert dense.choose(torch.zeros(3, 4, 576)) == ("cudnn_attention", 1.0)
    assert dense.attend.args == (layer_kernels.SDPBackend.CUDNN_ATTENTION,)
    monkeypatch.setattr(layer_kernels, "BACKENDS", ())
    with pytest.raises(RuntimeError, match="no back end"):
        dense.choose(torch.zeros(3, 4, 576))


@pytest.mark.parametrize("seconds, ms", [(1e-3, 0.5), (1.0, 2.0)])
def test_what_takes_long_is_timed_without_a_graph(clock, monkeypatch, seconds, ms):
    monkeypatch.setattr(layer_kernels, "_seconds", lambda call: seconds)
    monkeypatch.setattr(layer_kernels, "BACKENDS", (layer_kernels.SDPBackend.MATH,))
    row = frame._row(BENCH, DECODE, None, CEILINGS, seconds=1)
    assert row["dense_ms"] == ms and row["ms"] == 0.5 and row["dense_backend"] == "math"


# --- rows


@pytest.mark.parametrize("case", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_row(case, clock):
    peer = no_peers()
    row = frame._row(BENCH, case, peer, CEILINGS, seconds=1)
    assert row["error"] is None and "peer_error" not in row and "dense_error" not in row, row
    ms = 2.0 if case.form == "prefill" else 0.5
    assert row["ms"] == row["peer_ms"] == row["dense_ms"] == ms and row["ratio"] == row["dense_ratio"] == 1
    assert row["parts_ms"] == row["peer_parts_ms"] == {"projections": ms, "logits": 0, "topk": 0, "attention": 0}
    assert row["dense_parts_ms"] == {"projections": ms, "attention": 0}
    assert (row.get("total_ms"), row["total_peer_ratio"]) == ((7.0, 1.0) if case.form == "prefill" else (None, None))
    if case.form == "decode":  # planned once, then as planned
        plans = peer.attention.plans
        assert plans[0] == (None, None) and len(plans) > 1 and all(p[0] is not None for p in plans[1:])
    assert "attention us" in frame.line(BENCH, row)
    json.dumps(row)


@pytest.mark.parametrize("case", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_a_wrong_choice_is_not_timed(case, clock, monkeypatch):
    name = layer.FORMS[case.form][0]
    right = getattr(dsa_ext, name)
    monkeypatch.setattr(dsa_ext, name, lambda *a, **o: right(*a, **o).roll(1, 0))
    row = frame._row(BENCH, case, None, CEILINGS, seconds=1)
    assert row["error"] == f"AssertionError: {name} differs from its parts" and "ms" not in row


@pytest.mark.parametrize("case", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_peers_that_are_called_wrongly_are_not_timed(case, clock):
    peer = no_peers()
    right = peer.topk.choose
    peer.topk.choose = lambda logits, out, lengths: right(-logits, out, lengths)
    row = frame._row(BENCH, case, peer, CEILINGS, seconds=1)
    assert row["error"] is None and row["peer_error"].startswith("its result differs from ours")
    assert row["ratio"] is None and row["dense_ratio"] == 1


def test_without_a_gpu(capsys):
    result = frame._on_cpu(BENCH, "no GPU")
    (row,) = result["rows"]
    assert row["path"] == "reference" and row["ms"] > 0 and row["row"] == "prefill-b1-context192"
    assert "prefill-b1-context192" in capsys.readouterr().out


# --- what is made of them


def stored():
    run = record.of_run(on_gpu=False) | {"gpu": "some GPU", "driver": "1", "commit": "c0ffee", "source_hash": HASHES}
    rows = []
    for case in BENCH.cases():
        ms = 4 + case.context / 16384 + case.batch / 20
        parts = {"projections": ms / 4, "logits": ms / 4, "topk": ms / 8, "attention": ms * 3 / 8}
        row = {"row": BENCH.row_id(case), "op": BENCH.op, "path": "a kernel", "error": None, **BENCH.describe(case)}
        row |= {"ms": ms, "peer_ms": 1.2 * ms, "dense_ms": 3 * ms, "parts_ms": parts}
        row |= {"peer_parts_ms": {part: 1.2 * t for part, t in parts.items()}}
        row |= {"dense_parts_ms": {"projections": ms / 5, "attention": 2.8 * ms}}
        if case.form == "prefill":
            row |= {"total_ms": 5 * ms, "total_peer_ms": 6 * ms, "total_dense_ms": 10 * ms}
        rows.append(row | BENCH.rates(row, CEILINGS))
    described = {layer_kernels.Peers.name: {"version": "some"}}
    return {"benchmark": "layer", "run": run, **CEILINGS, "peers": described, "rows": rows}


def test_tables():
    text = render_readme.layer_table(json.loads(json.dumps(stored())), HASHES)
    assert "| 128K | 12.05 | 3.01 / 3.01 / 1.51 / 4.52 | 1.20 | 3.00 | 60.2 | 1.20 | 2.00 |" in text
    assert "| 128 | 18400 | 4600 / 4600 / 2300 / 6900 | 1.20 | 3.00 |" in text
    assert "`c0ffee`" in text and "Stale" not in text
    assert len(re.findall(r"^\| \d", text, re.M)) == 14
    result = stored()
    result["rows"][0] = result["rows"][0] | {"error": "AssertionError: wrong"}
    result["rows"][1] |= {"dense_ratio": None, "dense_ms": None, "total_dense_ratio": None, "ratio": None}
    text = render_readme.layer_table(result, HASHES)
    assert "| 4K | failed | failed |" in text and "| – | – |" in text
    assert render_readme.layer_table(None, HASHES) == ""


def test_stale_if_any_of_its_ops_is():
    result = stored()
    assert check_stale.stale_rows(result, HASHES) == []
    assert len(check_stale.stale_rows(result, HASHES | {"topk_indices": "other"})) == 14
    assert len(check_stale.stale_rows(result, HASHES | {"sparse_mla_fwd": "other"})) == 6
    assert len(check_stale.stale_rows(result, HASHES | {"sparse_mla_decode": "other"})) == 8
    assert set(HASHES) == set(check_stale.current_hashes())


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    result = stored()
    result["rows"] = [result["rows"][0], result["rows"][5] | {"dense_parts_ms": None}, result["rows"][6]]
    result["rows"][0]["dense_parts_ms"] = {"projections": 1.0, "attention": 1e3}
    BENCH.plot(result, tmp_path / "layer.png")
    assert (tmp_path / "layer.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.gpu
@pytest.mark.parametrize("quick", [0, 1])
def test_row_on_the_gpu(quick):
    case = [case for case in BENCH.cases() if BENCH.is_quick(case)][quick]
    row = frame._row(BENCH, case, BENCH.find_peer()[0], CEILINGS, seconds=0.05)
    assert row["error"] is None and row["dense_ms"] > 0 and row["path"].startswith("sm")
    assert sum(row["parts_ms"].values()) == pytest.approx(row["ms"])
