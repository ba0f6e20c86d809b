"""python -m dsa_ext.demo: what it shows is so."""

import sys

import pytest
import torch

import dsa_ext.demo.__main__ as demo
from dsa_ext import nn
from dsa_ext.demo import measure, model, report
from dsa_ext.demo.text import NEEDLE, QUESTION, make_text

TOKENS = 320


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def result(request):
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(measure, "LAST", 48)
        patch.setattr(measure, "CHUNK", 128)
        yield measure.run(make_text(TOKENS), request.param)


def test_text():
    text = make_text(TOKENS)
    assert len(text.words) == TOKENS and text.words[-6:] == QUESTION.split()
    assert [text.words[i] for i in text.needle] == NEEDLE.split() and text.words[text.answer] == "marzipan"
    assert text.words.count("zanzibar") == 2 and text.words.count("marzipan") == 1
    for tokens, expected in ((20, "at least 32"), (10**9, "at most")):
        with pytest.raises(ValueError, match=f"tokens is {tokens}, expected {expected}"):
            make_text(tokens)


def test_text_without_pydoc(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    text = make_text(4096)
    assert text.source == "the sources of argparse and typing" and "class" in text.words


def test_embedding_says_how_much_of_the_wording_is_alike():
    text = make_text(TOKENS)
    x = model.embed(text)
    alike = x @ x[-1] / model.DIM  # cosines
    said, asked = text.needle.start + len(QUESTION.split()) - 1, TOKENS - 1  # the same six words before both
    assert torch.allclose(x.norm(dim=-1), torch.tensor(model.DIM**0.5)) and alike[asked] == pytest.approx(1)
    others = [i for i in range(TOKENS - 8) if i not in range(said - 4, said + 8)]
    assert alike[said] > 0.7 and alike[others].max() < alike[said] - 0.2
    assert torch.equal(x[:100], model.embed(text)[:100])


def test_near_tokens_score_higher_than_far_ones():
    """The heads for nearness: of equal tokens the nearest."""
    tokens, config = 100, model.CONFIG
    x = torch.zeros(tokens, model.DIM)
    x[:, -1] = model.DIM**0.5
    layer = model.make_layer(0, "cpu", torch.float64).double()
    cache = nn.LayerCache.new(config, pages=2, kv_dtype=torch.float64, index_dtype=torch.float64)
    step = nn.Prefill(torch.arange(2).int(), start=0, length=tokens, page_size=64, rope=nn.Rope(config.rope))
    layer.config = layer.indexer.config = measure.replace(config, index_topk=5)
    indices = layer(x.double(), step, cache)[1]
    assert indices[-1].tolist() == list(range(95, 100))


def test_the_planted_sentence_is_picked(result):
    for picks in result.picks:
        assert picks.shape == (48, 64) and len(result.needle_picks(picks)) >= 6
        assert result.text.answer in result.needle_picks(picks)
    assert result.random_needle <= 5  # of 8; by chance 1.6


def test_agreement_grows_to_exactness(result):
    agreements = result.agreements
    assert [a.topk for a in agreements] == [16, 32, 64, 128, 256, TOKENS]
    errors, masses = [a.error for a in agreements], [a.mass for a in agreements]
    assert errors == sorted(errors, reverse=True) and masses == sorted(masses)
    assert errors[0] > 0.1 and masses[0] < 0.9 and masses[-1] == pytest.approx(1, abs=1e-4)
    assert errors[-1] < (2e-2 if result.device == "cuda" else 1e-5)
    assert agreements[-1].needle == 8 and all(a.ms > 0 for a in agreements) and result.dense_ms > 0


def test_table(result):
    text = report.table(result)
    assert f"{TOKENS} words of Python's documentation" in text and "made by hand, not trained" in text
    assert "the last 48 words" in text and "[marzipan]" in text and "the answer among them" in text
    (last,) = [line.split() for line in text.splitlines() if line.split()[:1] == [str(TOKENS)]][1:]
    assert last[1:4] == ["100.0%", "8", "100.0%"]


def test_picture(result, tmp_path):
    pytest.importorskip("matplotlib")
    report.draw(result, tmp_path / "demo.png", "CPU")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(result, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(measure, "run", lambda text, device: result)
    monkeypatch.setattr(sys, "argv", ["demo", "--png", str(tmp_path / "demo.png")])
    demo.main()
    printed = capsys.readouterr().out
    assert printed.endswith("no picture: it needs matplotlib (pip install 'dsa_ext[bench]')\n")
    assert printed.startswith(report.table(result)) and not list(tmp_path.iterdir())
