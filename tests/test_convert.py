"""dsa-convert: every tensor arrives bit for bit, what does not fit is refused in one sentence, and a killed run leaves
nothing under a final name. The expected names and slices are a table of this file's own."""

import io
import itertools
import os
import re
import signal
import subprocess
import sys
import tracemalloc

import checkpoints
import pytest
import torch
from checkpoints import STYLES, V32, Spec
from processes import run_alone
from safetensors import safe_open

from dsa_ext.convert import main, names, progress, stream

EXPERTS = V32.experts
SMALL = V32._replace(layers=1, dense_layers=0, experts=4)  # for what does not need a whole model
ATTN, FFN = r"layers\.\d+\.self_attn\.", r"layers\.\d+\.mlp\."
# (a pattern of names without "model.", what becomes of a module's name, the sliced dim, None for whole, or "expert")
TABLE = [
    (r"embed_tokens\.", ("embed_tokens", "embed"), 0),
    (r"lm_head\.", ("lm_head", "head"), 0),
    (r"norm\.", ("norm", "norm"), None),
    (r"layers\.\d+\.input_layernorm\.", ("input_layernorm", "attn_norm"), None),
    (r"layers\.\d+\.post_attention_layernorm\.", ("post_attention_layernorm", "ffn_norm"), None),
    (ATTN + r"q_a_proj\.", ("q_a_proj", "wq_a"), None),
    (ATTN + r"q_a_layernorm\.", ("q_a_layernorm", "q_norm"), None),
    (ATTN + r"q_b_proj\.", ("q_b_proj", "wq_b"), 0),
    (ATTN + r"kv_a_proj_with_mqa\.", ("kv_a_proj_with_mqa", "wkv_a"), None),
    (ATTN + r"kv_a_layernorm\.", ("kv_a_layernorm", "kv_norm"), None),
    (ATTN + r"kv_b_proj\.", ("kv_b_proj", "wkv_b"), 0),
    (ATTN + r"o_proj\.", ("o_proj", "wo"), 1),
    (ATTN + r"indexer\.(wq_b|wk|k_norm|weights_proj)\.", ("", ""), None),
    (FFN + r"gate\.weight", ("", ""), None),
    (FFN + r"gate\.e_score_correction_bias", ("e_score_correction_bias", "bias"), None),
    (FFN + r"(shared_experts\.)?gate_proj\.", ("gate_proj", "w1"), 0),
    (FFN + r"(shared_experts\.)?up_proj\.", ("up_proj", "w3"), 0),
    (FFN + r"(shared_experts\.)?down_proj\.", ("down_proj", "w2"), 1),
    (FFN + r"experts\.\d+\.gate_proj\.", ("gate_proj", "w1"), "expert"),
    (FFN + r"experts\.\d+\.up_proj\.", ("up_proj", "w3"), "expert"),
    (FFN + r"experts\.\d+\.down_proj\.", ("down_proj", "w2"), "expert"),
]


def expected(name):
    """(converted name, how it is spread) of a tensor that is converted."""
    name = name.removeprefix("model.")
    ((_, (old, new), how),) = [row for row in TABLE if re.match(row[0], name)]
    name = name.replace(old, new).replace("self_attn", "attn").replace("mlp", "ffn")
    return name.replace("weight_scale_inv", "scale"), how


def arguments(source, target, experts=EXPERTS, ranks=2, *more):
    return [
        *("--hf-ckpt-path", str(source), "--save-path", str(target)),
        *("--n-experts", str(experts), "--model-parallel", str(ranks), *more),
    ]


def load(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def check_shards(target, found, ranks, experts=EXPERTS, layers=V32.layers):
    """The shards hold every tensor of `found` bit for bit, and nothing else."""
    shards = [load(target / f"model{i}-mp{ranks}.safetensors") for i in range(ranks)]
    for name, spec in found.items():
        if re.match(rf"model\.layers\.{layers}\.", name):
            continue
        new, how = expected(name)
        whole = checkpoints.tensor(name, spec)
        if how == "expert":
            owner = int(re.search(r"experts\.(\d+)", name)[1]) * ranks // experts
            assert [new in shard for shard in shards] == [i == owner for i in range(ranks)], name
            parts = [shards[owner].pop(new)]
        else:
            parts = [shard.pop(new) for shard in shards]
        assert all(part.dtype == whole.dtype for part in parts), name
        if how in (0, 1):
            sizes = {part.shape[how] for part in parts}
            assert sizes == {spec.shape[how] // ranks}, name
            joined = torch.cat([part.view(torch.uint8) for part in parts], how)
            parts = [joined.view(whole.dtype)]
        assert all(part.shape == whole.shape and torch.equal(bits(part), bits(whole)) for part in parts), name
    assert [list(shard) for shard in shards] == [[]] * ranks


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def outputs(ranks):
    return sorted([*checkpoints.TOKEN_FILES, *(f"model{i}-mp{ranks}.safetensors" for i in range(ranks))])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """style -> (folder, its tensors), generated once."""
    made = {}

    def get(style):
        if style not in made:
            folder = tmp_path_factory.mktemp("hf") / style
            made[style] = folder, checkpoints.generate(folder, STYLES[style])
        return made[style]

    return get


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("style", STYLES)
def test_bit_for_bit(source, tmp_path, style, ranks):
    folder, found = source(style)
    assert main(arguments(folder, tmp_path / "a" / "out", EXPERTS, ranks)) == 0
    assert files(tmp_path / "a" / "out") == outputs(ranks)
    check_shards(tmp_path / "a" / "out", found, ranks)
    for name, content in checkpoints.TOKEN_FILES.items():
        assert (tmp_path / "a" / "out" / name).read_bytes() == content


def test_shared_layers_and_indexers(source):
    """That the tests above see what they are for."""
    found = source("glm5")[1]
    assert {names.layer(n) for n in found if ".indexer." in n} == {0, 2, 3}
    assert expected("model.layers.0.self_attn.indexer.wq_b.weight") == ("layers.0.attn.indexer.wq_b.weight", None)
    assert expected("model.layers.0.self_attn.q_b_proj.weight_scale_inv") == ("layers.0.attn.wq_b.scale", 0)


@pytest.mark.parametrize("chunk", [1000, 3072])
def test_small_chunks_and_short_transfers(source, tmp_path, monkeypatch, chunk):
    """Tensors, rows and slices beyond the buffer; reads and writes that stop half way."""
    folder, found = source("v32")
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(stream, "CHUNK", chunk)
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: read(fd, [views[0][:2000]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: write(fd, view[:1777], at))
    assert main(arguments(folder, tmp_path / "out", EXPERTS, 4)) == 0
    check_shards(tmp_path / "out", found, 4)


def test_output_does_not_depend_on_the_input_files(source, tmp_path):
    folder, found = source("v32")
    checkpoints.write(tmp_path / "hf", [dict(reversed(found.items()))], checkpoints.config(V32))
    (tmp_path / "hf" / checkpoints.INDEX).unlink()  # one file needs none
    for origin, target in ((folder, "a"), (tmp_path / "hf", "b")):
        assert main(arguments(origin, tmp_path / target)) == 0
    for name in outputs(2):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_tensor_that_two_files_hold(tmp_path):
    found = checkpoints.specs(SMALL)
    head = {"lm_head.weight": found["lm_head.weight"]}
    checkpoints.write(tmp_path / "hf", [found, head], checkpoints.config(SMALL))
    assert main(arguments(tmp_path / "hf", tmp_path / "out", 4)) == 0
    check_shards(tmp_path / "out", found, 2, 4, 1)


def test_without_experts_and_layers(tmp_path, capsys):
    """Parts of a model are converted with a warning."""
    found = {n: s for n, s in checkpoints.specs(SMALL).items() if ".experts." not in n}
    settings = {"num_hidden_layers": 4}
    checkpoints.write(tmp_path / "hf", [{n: s for n, s in found.items() if "layers.1" not in n}], settings)
    assert main(arguments(tmp_path / "hf", tmp_path / "out", 0)) == 0
    assert "warning: 3 layers have no tensor, the first is 1\n" in capsys.readouterr().err
    check_shards(tmp_path / "out", found, 2, 1, 1)


def test_peak_memory(tmp_path):
    """Less than one tensor: of 3 x 24 MiB in one file, whole, sliced along dim 0 and along dim 1; one of them in a
    second file again, which is compared; and one of narrow rows, whose slices are many."""
    big = {
        "model.norm.weight": Spec("BF16", (12 << 20,)),
        "lm_head.weight": Spec("BF16", (4096, 3072)),
        "model.layers.0.mlp.down_proj.weight": Spec("BF16", (4096, 3072)),
        "model.layers.0.self_attn.o_proj.weight": Spec("BF16", (1 << 18, 2)),
    }
    again = {"lm_head.weight": big["lm_head.weight"]}
    checkpoints.write(tmp_path / "hf", [big, again], {"num_hidden_layers": 1})
    resident = resident_memory()["VmRSS"]
    tracemalloc.start()
    try:
        assert main(arguments(tmp_path / "hf", tmp_path / "out", 0)) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stream.CHUNK <= peak < 20 << 20
    assert resident_memory()["VmHWM"] - resident < 40 << 20


def resident_memory():
    """Bytes held now (VmRSS) and at most since the last call (VmHWM), mapped files included, unlike in tracemalloc."""
    with open("/proc/self/status") as status:
        sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in status if line.startswith("Vm")}
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    return sizes


# --- The plan


def test_dry_run_writes_nothing(source, tmp_path, capsys):
    folder, found = source("v32")
    before = files(folder)
    assert main(arguments(folder, tmp_path / "out", EXPERTS, 8, "--dry-run")) == 0
    assert files(tmp_path) == [] and files(folder) == before
    text, errors = capsys.readouterr()
    assert errors == ""
    lines = [re.sub(" +", " ", line).strip() for line in text.splitlines()]
    q_b = "model.layers.*.self_attn.q_b_proj.weight -> layers.*.attn.wq_b.weight"
    assert f"{q_b} F8_E4M3 [3072, 128] -> [384, 128] dim 0 x 3" in lines
    expert = "model.layers.*.mlp.experts.*.up_proj.weight_scale_inv -> layers.*.ffn.experts.*.w3.scale"
    assert f"{expert} F32 [1, 1] one rank x {2 * EXPERTS}" in lines
    assert f"{sum('layers.3.' in n for n in found)} of layers from 3 on are skipped" in lines
    assert "tokenizer.json copied 18 bytes" in lines

    assert main(arguments(folder, tmp_path / "out", EXPERTS, 8)) == 0
    for i in range(8):
        path = tmp_path / "out" / f"model{i}-mp8.safetensors"
        assert f"{path.name} {len(load(path))} tensors {path.stat().st_size} bytes" in lines


def test_progress_on_a_terminal_and_elsewhere():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream_type, check in (
        (Terminal, lambda text: text.count("\r") >= 1 and "[####" in text and text.endswith("\n")),
        (io.StringIO, lambda text: text.count("\n") == 10 and "\r" not in text and " 50% of 2.0 KiB, " in text),
    ):
        out = stream_type()
        bar = progress.Progress(2048, out)
        for _ in range(64):
            bar.advance(32)
        bar.finish()
        assert check(out.getvalue()), out.getvalue()


# --- A run that stops


def convert_and_die(call, number, at, given, errors):
    """The command, which sends itself a signal at the at-th call of a function of os."""
    real, calls = getattr(os, call), itertools.count(1)

    def dying(*arguments):
        if next(calls) == at:
            os.kill(os.getpid(), number)
        return real(*arguments)

    setattr(os, call, dying)
    with open(errors, "w") as sys.stderr:
        sys.exit(main(given))


def run_dying(call, number, at, source, target):
    """(exit status, what it wrote to stderr)"""
    errors = target.with_name("stderr")
    status = run_alone(convert_and_die, call, number, at, arguments(source, target), errors)
    return status, errors.read_text()


@pytest.mark.parametrize("call, at", [("pwrite", 200), ("fsync", 6), ("replace", 6)])
def test_killed_run(source, tmp_path, call, at):
    """In the middle of the data, before the first name, and before the last one (4 copied files, 2 shards)."""
    folder, found = source("v32")
    target = tmp_path / "out"
    assert run_dying(call, signal.SIGKILL, at, folder, target)[0] == -signal.SIGKILL
    final = [name for name in files(target) if not name.startswith(".")]
    assert final == ([n for n in outputs(2) if n != "model1-mp2.safetensors"] if call == "replace" else [])
    assert len(files(target)) == 6  # the others are there under their temporary names
    published = {name: (target / name).read_bytes() for name in final}
    assert main(arguments(folder, target)) == 0
    assert files(target) == outputs(2)
    check_shards(target, found, 2)
    assert all((target / name).read_bytes() == content for name, content in published.items())


def test_terminated_run(source, tmp_path):
    status, errors = run_dying("pwrite", signal.SIGTERM, 200, source("v32")[0], tmp_path / "out")
    assert (status, errors.splitlines()[-1]) == (130, "dsa-convert: error: interrupted")
    assert files(tmp_path / "out") == []


def test_names_come_after_the_bytes(source, tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    assert main(arguments(source("v32")[0], tmp_path / "out")) == 0
    assert calls == ["fsync"] * 6 + ["replace"] * 6 + ["fsync"]


def test_module_as_a_program(tmp_path):
    command = [sys.executable, "-m", "dsa_ext.convert"]
    done = subprocess.run([*command, *arguments(tmp_path, tmp_path)], capture_output=True, text=True)
    message = f"dsa-convert: error: --save-path is --hf-ckpt-path, {tmp_path}, expected another folder\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
