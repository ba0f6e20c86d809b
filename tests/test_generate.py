"""From a Hugging Face checkpoint through dsa-convert to tokens: those of Hugging Face's own model."""

import io
import json

import pytest
import torch
from tiny_models import FAMILIES, NEW, Tiny, arguments, make, run_each

from dsa_ext import nn as dsa
from dsa_ext.generate import Generator, choose
from dsa_ext.generate.cli import main

pytest.importorskip("transformers", minversion="5.17")


@pytest.fixture(scope="module")
def tinies(tmp_path_factory) -> dict[str, Tiny]:
    with torch.no_grad():
        return {family: make(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def decoder_of(tiny, device="cpu"):
    config = dsa.DecoderConfig.from_hugging_face(dsa.read_config(tiny.config))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return dsa.load_decoder(tiny.converted(1), config, device=device, dtype=dtype)


def logits_of(decoder, tokens, prompt, cache):
    """As Tiny.logits: the prompt in chunks, the rest decoded two at a time, on pages in a mixed order."""
    generator = Generator(decoder, max_context=100, cache=cache, page_size=8)
    pages = torch.tensor([5, 2, 7, 0, 1, 6, 3], dtype=torch.int32, device=generator.device)
    caches = decoder.new_caches(pages=8, page_size=8, **generator.dtypes)
    tokens, rope, parts = tokens.to(generator.device), generator.rope, []
    for start in range(0, prompt, 16):
        length = min(16, prompt - start)
        step = dsa.Prefill(pages, start=start, length=length, page_size=8, rope=rope)
        parts.append(decoder(tokens[start : start + length], step, caches))
    for end in range(prompt + 2, len(tokens) + 1, 2):
        lens = torch.tensor([end], dtype=torch.int32, device=generator.device)
        step = dsa.Decode(pages[None], lens, next_n=2, max_context_len=56, page_size=8, rope=rope)
        parts.append(decoder(tokens[end - 2 : end], step, caches))
    return decoder.logits(torch.cat(parts)).cpu()


def compared(tiny, decoder, cache):
    """(got, wanted) logits of the prompts and answers, a row a token."""
    got, wanted = [], []
    for prompt, answer, logits in zip(tiny.prompts, tiny.answers, tiny.logits, strict=True):
        tokens = torch.tensor(prompt + answer[:6])
        got.append(logits_of(decoder, tokens, len(prompt), cache))
        wanted.append(logits[: len(tokens)])
    return torch.cat(got), torch.cat(wanted)


def margins(logits):
    best = logits.topk(2).values
    return best[:, 0] - best[:, 1]


def fp8_error(tiny, decoder, cache="fp8"):
    """What the formats do to logits, of which the standard deviation is 0.4. Most of the largest comes from a key that
    takes another's place among the chosen."""
    got, wanted = compared(tiny, decoder, cache)
    errors = (got - wanted).abs().amax(-1)
    assert errors.median() < 0.015 and errors.max() < 0.15
    clear = margins(wanted) > 2 * errors.max()
    assert clear.float().mean() > 0.2 and torch.equal(got.argmax(-1)[clear], wanted.argmax(-1)[clear])
    return errors.max().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(tinies, family):
    got, wanted = compared(tinies[family], decoder_of(tinies[family]), "plain")
    assert wanted.std() > 0.3
    assert torch.allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["fp8", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_on_gpu(tinies, family, cache):
    fp8_error(tinies[family], decoder_of(tinies[family], "cuda"), cache)


def answers(out):
    return [json.loads(line)["tokens"] for line in out.splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers(tinies, family, capsys):
    tiny = tinies[family]
    assert main(arguments(tiny, 1, "--cache", "plain", "--batch-size", "2")) == 0
    out, notes = capsys.readouterr()
    assert answers(out) == tiny.answers
    first = json.loads(out.splitlines()[0])
    assert first["prompt"] == " ".join(map(str, tiny.prompts[0]))
    assert first["completion"] == " ".join(map(str, tiny.answers[0]))
    assert "no tokenizer: prompts are token numbers" in notes


@pytest.mark.parametrize("chunk", [5, 30])
def test_chunks(tinies, chunk):
    tiny = tinies["glm5"]
    generator = Generator(decoder_of(tiny), max_context=100, cache="plain", page_size=8, chunk=chunk)
    assert generator.generate(tiny.prompts, max_new_tokens=NEW) == tiny.answers


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_with_fp8_caches(tinies, family, capsys):
    """The same tokens up to the first that another is as good as, within the measured error."""
    tiny = tinies[family]
    error = fp8_error(tiny, decoder_of(tiny))
    assert main(arguments(tiny, 1)) == 0
    compared_tokens = 0
    for prompt, wanted, logits, got in zip(
        tiny.prompts, tiny.answers, tiny.logits, answers(capsys.readouterr().out), strict=True
    ):
        close = (margins(logits[len(prompt) - 1 :]) <= 2 * error).tolist()
        clear = close.index(True) if True in close else NEW
        assert got[:clear] == wanted[:clear] and len(got) == NEW
        compared_tokens += clear
    assert compared_tokens >= 1


@pytest.mark.parametrize("ranks", [2, 4])
def test_answers_of_several_ranks(tinies, ranks, tmp_path):
    run_each(ranks, list(tinies.values()), tmp_path)
    outcomes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    for rank, (runs, drawn) in enumerate(outcomes):
        assert drawn == outcomes[0][1]
        for tiny, (status, out) in zip(tinies.values(), runs, strict=True):
            assert status == 0
            assert answers(out) == (tiny.answers if rank == 0 else [])
    assert len(set(map(tuple, outcomes[0][1]))) == len(drawn) and all(len(tokens) == NEW for tokens in drawn)


def test_ends_at_a_stop_token(tinies):
    tiny = tinies["v32"]
    generator = Generator(decoder_of(tiny), max_context=100, cache="plain")
    stop = tiny.answers[0][3]
    want = [answer[: answer.index(stop)] if stop in answer else answer for answer in tiny.answers]
    assert len(want[0]) == 3 and len(want[1]) == NEW  # the others go on
    assert generator.generate(tiny.prompts, max_new_tokens=NEW, stop={stop}) == want


def test_configuration_names_the_stop_token(tinies, tmp_path, capsys):
    tiny = tinies["v32"]
    for stop, kept in ((tiny.answers[0][2], 2), ([tiny.answers[0][1], 95], 1)):
        config = dsa.read_config(tiny.config) | {"eos_token_id": stop}
        (tmp_path / "config.json").write_text(json.dumps(config))
        given = arguments(tiny, 1, "--cache", "plain")
        given[given.index("--config") + 1] = str(tmp_path / "config.json")
        assert main(given) == 0
        assert answers(capsys.readouterr().out)[0] == tiny.answers[0][:kept]


def test_choose():
    logits = torch.tensor([[0.0, 1.0, 3.0, 3.0], [5.0, 1.0, 2.0, -torch.inf]])
    assert choose(logits, 0.0).tolist() == [2, 0]
    randomness = torch.Generator().manual_seed(1)
    drawn = torch.stack([choose(logits, 2.0, randomness) for _ in range(4000)])
    for i, p in enumerate((logits / 2).softmax(-1)):
        shares = drawn[:, i].bincount(minlength=4) / 4000
        assert torch.allclose(shares, p, rtol=0, atol=0.03) and (p > 0).equal(shares > 0)


WORDS = {f"w{i}": i for i in range(96)}
TEMPLATE = "{% for m in messages %}{{ 'w90' if m['role'] == 'user' else 'w91' }} {{ m['content'] }} {% endfor %}w92"


@pytest.fixture
def with_tokenizer(tinies, tmp_path):
    """A converted checkpoint with a tokenizer of words, as dsa-convert copies one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "converted"
    folder.mkdir()
    shard = "model0-mp1.safetensors"
    (folder / shard).symlink_to(tinies["v32"].converted(1) / shard)
    words = Tokenizer(models.WordLevel(WORDS, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def texts(tokens):
    return " ".join(f"w{token}" for token in tokens)


def expected(tiny, prompt):
    generator = Generator(decoder_of(tiny), max_context=200, cache="plain")
    return generator.generate([prompt], max_new_tokens=NEW)[0]


def test_text(tinies, with_tokenizer, tmp_path, capsys):
    tiny = tinies["v32"]
    (tmp_path / "prompts").write_text("\n".join(map(texts, tiny.prompts)) + "\n\n")
    paths = [
        "--ckpt-path",
        str(with_tokenizer),
        "--config",
        str(tiny.config),
        "--input-file",
        str(tmp_path / "prompts"),
    ]
    assert main([*paths, "--max-new-tokens", str(NEW), "--cache", "plain"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["completion"] for line in lines] == [texts(answer) for answer in tiny.answers]
    assert [line["prompt"] for line in lines] == [texts(prompt) for prompt in tiny.prompts]


def test_conversation(tinies, with_tokenizer, monkeypatch, capsys):
    """With a chat template, a line continues the conversation; /clear begins a new one, as does nothing else."""
    tiny = tinies["v32"]
    path = with_tokenizer / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    lines = ["w1 w2", "", "w3", "w5 " * 200, "w4", "/clear", "w1 w2", "/exit", "w7"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    given = ["--ckpt-path", str(with_tokenizer), "--config", str(tiny.config), "--interactive", "--max-context", "150"]
    assert main([*given, "--max-new-tokens", str(NEW), "--cache", "plain"]) == 0
    out, notes = capsys.readouterr()
    first = expected(tiny, [90, 1, 2, 92])
    conversation = [90, 1, 2, 91, *first, 90, 3, 92]
    second = expected(tiny, conversation)
    third = expected(tiny, [*conversation[:-1], 91, *second, 90, 4, 92])
    assert out.splitlines() == [texts(tokens) for tokens in (first, second, third, first)]
    assert "max_new_tokens is 8, expected at most max_context = 150" in notes  # and goes on


def test_lines_are_apart_without_chat_template(tinies, with_tokenizer, monkeypatch, capsys):
    tiny = tinies["v32"]
    monkeypatch.setattr("sys.stdin", io.StringIO("w1 w2\nw1 w2\n"))
    given = ["--ckpt-path", str(with_tokenizer), "--config", str(tiny.config), "--interactive"]
    assert main([*given, "--max-new-tokens", str(NEW), "--cache", "plain"]) == 0
    assert capsys.readouterr().out.splitlines() == [texts(expected(tiny, [1, 2]))] * 2
