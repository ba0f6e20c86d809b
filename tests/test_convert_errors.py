"""What dsa-convert refuses: one sentence on stderr, an exit status, and no file."""

import errno
import fcntl
import os
import re
import shutil

import checkpoints
import pytest
from checkpoints import INDEX, V32, Spec
from test_convert import arguments, check_shards, files, outputs

from dsa_ext.convert import main

STYLE = V32._replace(layers=1, dense_layers=0, experts=4)
SPECS = checkpoints.specs(STYLE)
Q_B, SHARED = "model.layers.0.self_attn.q_b_proj", "model.layers.0.mlp.shared_experts"
FIRST, LAST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid") / "hf"
    assert checkpoints.generate(folder, STYLE, 2) == SPECS
    return folder


@pytest.fixture
def hf(valid, tmp_path):
    """A checkpoint of two files that a test may spoil."""
    return shutil.copytree(valid, tmp_path / "hf")


@pytest.fixture
def refused(tmp_path, capsys):
    """Check that a checkpoint is refused, dry or not."""

    def check(message, folder, experts=4, ranks=2, status=1, target=None, dry=True):
        target = tmp_path / "out" if target is None else target
        before = files(target) if target.is_dir() else None
        capsys.readouterr()
        for more in ([], ["--dry-run"]) if dry else ([],):
            assert main(arguments(folder, target, experts, ranks, *more)) == status
            assert capsys.readouterr().err == f"dsa-convert: error: {message}\n"
            assert (files(target) if target.is_dir() else None) == before

    return check


def write(tmp_path, changes, drop=(), settings=None, style=STYLE):
    """A checkpoint of one file with some tensors changed, added or dropped."""
    found = {name: spec for name, spec in checkpoints.specs(style).items() if name not in drop} | changes
    return checkpoints.write(tmp_path / "hf", [found], checkpoints.config(style) | (settings or {}))


ONE = "model-00001-of-00001.safetensors"


# --- The command line


def test_numbers(hf, refused):
    refused("--n-experts 4 is not divisible by --model-parallel 3", hf, 4, 3, status=2)
    refused("--model-parallel is 0, expected at least 1", hf, 4, 0, status=2)
    refused("--n-experts is -4, expected at least 0", hf, -4, 2, status=2)


def test_paths(hf, refused, tmp_path):
    (tmp_path / "link").symlink_to(hf)
    for target in (hf, tmp_path / "link", hf / ".." / "hf"):
        refused(f"--save-path is --hf-ckpt-path, {hf}, expected another folder", hf, status=2, target=target)
    refused(f"--save-path {hf / 'config.json'} is not a folder", hf, status=2, target=hf / "config.json")
    refused(f"{tmp_path / 'none'} is not a folder", tmp_path / "none")


def test_missing_argument(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--hf-ckpt-path", "a"])
    assert stop.value.code == 2
    assert "required: --save-path, --n-experts, --model-parallel" in capsys.readouterr().err


# --- The folder


def test_config(hf, refused):
    path = hf / "config.json"
    for content, message in (
        ("[", f"{path} is not valid JSON (Expecting value: line 1 column 2 (char 1))"),
        ("[]", f"{path} holds no JSON object"),
        ("{}", f"{path} has num_hidden_layers None, expected a number of layers"),
        ('{"num_hidden_layers": 0}', f"{path} has num_hidden_layers 0, expected a number of layers"),
        (
            '{"num_hidden_layers": 1, "n_routed_experts": "4"}',
            f"{path} has n_routed_experts '4', expected a number of experts",
        ),
        (
            '{"num_hidden_layers": 1, "quantization_config": {"weight_block_size": [128]}}',
            f"{path} has weight_block_size [128], expected two sizes",
        ),
    ):
        path.write_text(content)
        refused(message, hf)
    path.unlink()
    refused(f"{path} is missing: its num_hidden_layers tells which layers belong to the model", hf)


def test_index(hf, refused):
    path = hf / INDEX
    path.write_text('{"metadata": {}}')
    refused(f"{path} has no weight_map", hf)
    path.unlink()
    refused(f"{path} is missing, and 2 *.safetensors files need one", hf)


def test_files_and_tensors_that_the_index_has(hf, refused):
    (hf / LAST).rename(hf / "elsewhere")
    name = "model.norm.weight"
    checkpoints.write_json(hf / INDEX, {"weight_map": {name: LAST}})
    refused(f"{hf} lacks the file {LAST}, where {INDEX} has {name}", hf)
    checkpoints.write_json(hf / INDEX, {"weight_map": {name: FIRST}})
    refused(f"{hf / FIRST} lacks the tensor {name}, which {INDEX} has there", hf)
    for path in hf.glob("*.safetensors"):
        path.unlink()
    refused(f"{hf} holds no *.safetensors file", hf)


def test_a_missing_file_of_skipped_layers_alone(tmp_path):
    """The MTP layer need not have been downloaded."""
    mtp = {n: s for n, s in SPECS.items() if "layers.1." in n}
    rest = {n: s for n, s in SPECS.items() if n not in mtp}
    folder = checkpoints.write(tmp_path / "hf", [rest, mtp], checkpoints.config(STYLE))
    (folder / LAST).unlink()
    assert main(arguments(folder, tmp_path / "out", 4)) == 0
    check_shards(tmp_path / "out", SPECS, 2, 4, 1)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda raw: raw[:-1], "is truncated: {less} bytes, and its header describes {size}"),
        (lambda raw: raw + b"x", "is corrupt: {more} bytes, and its header describes {size}"),
        (lambda raw: raw[:100], "is truncated: 100 bytes, and its header alone takes {head}"),
        (lambda raw: raw[:7], "is not a safetensors file: it has no header of a possible length"),
        (lambda raw: b"version https://git-lfs", "is not a safetensors file: it has no header of a possible length"),
        (
            lambda raw: raw.replace(b'"F32"', b'"F33"', 1),
            "has a corrupt header ({f32} has the unsupported dtype F33)",
        ),
        (lambda raw: raw[:8] + b"x" + raw[9:], "has a corrupt header (Expecting value: line 1 column 1 (char 0))"),
        (lambda raw: raw.replace(b'"dtype"', b'"dtyqe"', 1), "has a corrupt header ('dtype')"),
    ],
)
def test_corrupt_file(hf, refused, spoil, message):
    raw = (hf / FIRST).read_bytes()
    head = 8 + int.from_bytes(raw[:8], "little")
    f32 = re.search(rb'"([\w.]+)":{"dtype":"F32"', raw[:head])[1].decode()
    (hf / FIRST).write_bytes(spoil(raw))
    sizes = {"less": len(raw) - 1, "more": len(raw) + 1, "size": len(raw), "head": head, "f32": f32}
    refused(f"{hf / FIRST} {message.format(**sizes)}", hf)


@pytest.mark.parametrize("shape, end, what", [([1, 2], 4, "4 bytes for F32 of shape [1, 2]"), ([1], 4, None)])
def test_corrupt_offsets(hf, refused, shape, end, what):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    text = repr({"a": entry, "b": entry}).replace("'", '"').encode()
    (hf / FIRST).write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    message = f" (a has {what})" if what else ": the bytes of b leave a gap or overlap"
    refused(f"{hf / FIRST} has a corrupt header{message}", hf)


# --- The tensors


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.wq_b.weight",  # of the indexer alone
        "model.layers.0.self_attn.q_b_proj.weight_packed",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.x.w1.weight",
        "model.layers.00.mlp.gate.weight",
        "visual.norm.weight",
        "weight",
    ],
)
def test_unknown_tensor(tmp_path, refused, name):
    folder = write(tmp_path, {name: Spec("F32", (8,))})
    refused(f"unknown tensor {name} in {folder / ONE}", folder)


def test_sizes_that_do_not_divide(tmp_path, refused):
    folder = write(tmp_path, {"lm_head.weight": Spec("BF16", (63, 128))})
    message = "has shape [63, 128], and dim 0 is not divisible by --model-parallel 2"
    refused(f"lm_head.weight in {ONE} {message}", folder)
    assert main(arguments(folder, tmp_path / "one", 4, 1)) == 0
    shutil.rmtree(folder)
    name = "model.layers.0.self_attn.o_proj.bias"
    folder = write(tmp_path, {name: Spec("BF16", (128,))})
    refused(f"{name} in {ONE} has shape [128], and dim 1 is sliced over the ranks", folder)


@pytest.mark.parametrize("rows, blocks, told", [(384, 3, True), (192, 2, True), (384, 3, False)])
def test_scales_that_do_not_divide(tmp_path, refused, rows, blocks, told):
    """Three blocks; two, the second of them half, which no two ranks can have; and blocks that config.json keeps."""
    name = f"{SHARED}.up_proj"
    changes = {
        f"{name}.weight": Spec("F8_E4M3", (rows, 128)),
        f"{name}.weight_scale_inv": Spec("F32", (blocks, 1)),
    }
    folder = write(tmp_path, changes, settings=None if told else {"quantization_config": {}})
    message = f"has shape [{blocks}, 1], and its dim 0 does not divide by --model-parallel 2 along with the {rows} of"
    refused(f"{name}.weight_scale_inv in {ONE} {message} its weight", folder)
    assert main(arguments(folder, tmp_path / "one", 4, 1)) == 0


def test_scales_that_do_not_fit(tmp_path, refused):
    name = f"{Q_B}.weight_scale_inv"
    folder = write(tmp_path, {name: Spec("F32", (12, 1))})
    message = "has shape [12, 1], and its weight of shape [3072, 128] has [24, 1] blocks of 128 x 128"
    refused(f"{name} in {ONE} {message}", folder)
    shutil.rmtree(folder)
    folder = write(tmp_path, {}, drop=[name])
    refused(f"{Q_B}.weight in {ONE} is F8_E4M3, and its weight_scale_inv is missing", folder)
    shutil.rmtree(folder)
    folder = write(tmp_path, {}, drop=[f"{Q_B}.weight"])
    refused(f"{name} in {ONE} is the scale of a weight that is missing", folder)
    shutil.rmtree(folder)
    folder = write(tmp_path, {name: Spec("F32", ())}, settings={"quantization_config": None})
    refused(f"{name} in {ONE} has shape [], and its weight, sliced along dim 0, [3072, 128]", folder)


def test_experts(hf, tmp_path, refused):
    refused("--n-experts is 8, and config.json has n_routed_experts 4", hf, 8)
    shutil.rmtree(hf)
    settings = {"n_routed_experts": None}
    folder = write(tmp_path, {}, settings=settings)
    module = "model.layers.0.mlp.experts.*.down_proj.weight"
    refused(f"--n-experts is 2, and the checkpoint has {module} of expert 3", folder, 2)
    refused(f"--n-experts is 0, and the checkpoint has {module} of expert 3", folder, 0)
    refused(f"--n-experts is 8, and the checkpoint lacks {module} of expert 4", folder, 8)
    shutil.rmtree(folder)
    folder = write(tmp_path, {}, drop=[n for n in SPECS if "layers.0.mlp.experts.2.down_proj" in n])
    refused(f"--n-experts is 4, and the checkpoint lacks {module} of expert 2", folder)
    shutil.rmtree(folder)
    folder = write(tmp_path, {}, drop=[n for n in SPECS if ".experts." in n], settings=settings)
    refused("--n-experts is 4, and the checkpoint has no routed experts", folder)


@pytest.mark.parametrize(
    "other, message",
    [
        (Spec("BF16", (64, 128)), "lm_head.weight in {a} and lm_head.weight in {b} hold different values"),
        (Spec("BF16", (32, 128)), "lm_head.weight in {a} has shape [64, 128], and lm_head.weight in {b} has [32, 128]"),
        (Spec("F32", (64, 128)), "lm_head.weight in {a} has dtype BF16, and lm_head.weight in {b} has F32"),
    ],
)
def test_tensor_twice(tmp_path, refused, other, message):
    folder = checkpoints.write(tmp_path / "hf", [SPECS, {"lm_head.weight": other}], checkpoints.config(STYLE))
    raw = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))  # one bit, the last
    refused(message.format(a=FIRST, b=LAST), folder)


def test_tensor_twice_under_two_names(tmp_path, refused):
    folder = write(tmp_path, {"norm.weight": Spec("BF16", (128,))})
    raw = (folder / ONE).read_bytes()
    order = sorted(("norm.weight", "model.norm.weight"), key=lambda n: raw.index(f'"{n}"'.encode()))
    order.sort(key=lambda n: int(re.search(rf'"{n}":.*?"data_offsets":\[(\d+)', raw.decode("latin1"))[1]))
    refused(f"{order[0]} in {ONE} and {order[1]} in {ONE} hold different values", folder)


# --- The disk


def test_disk_without_room(hf, refused, tmp_path, monkeypatch):
    assert main(arguments(hf, tmp_path / "ok", 4)) == 0
    needed = sum(path.stat().st_size for path in (tmp_path / "ok").iterdir())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    out = tmp_path / "out"
    refused(f"the disk is too full: {needed} bytes are needed at {out}, and {needed - 1} are free", hf)
    assert not out.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert main(arguments(hf, out, 4)) == 0


@pytest.mark.parametrize("call, at", [("pwrite", 50), ("truncate", 3), ("fsync", 2)])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_disk_that_fills_up(hf, tmp_path, monkeypatch, capsys, call, at, number):
    """What was there before stays, what this run wrote goes."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "model0-mp2.safetensors").write_bytes(b"old")
    real, left = getattr(os, call), [at]

    def failing(*call_arguments):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(number, os.strerror(number))
        return real(*call_arguments)

    monkeypatch.setattr(os, call, failing)
    assert main(arguments(hf, out, 4)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    full = "the disk is full: " if number != errno.EIO else ""
    assert re.fullmatch(rf"dsa-convert: error: {full}{out}/\S+ could not be written \({os.strerror(number)}\)", line)
    assert files(out) == ["model0-mp2.safetensors"] and (out / "model0-mp2.safetensors").read_bytes() == b"old"
    monkeypatch.undo()
    assert main(arguments(hf, out, 4)) == 0
    check_shards(out, SPECS, 2, 4, 1)


def test_input_that_fails(hf, tmp_path, monkeypatch, capsys):
    real = os.preadv
    for at_end, message in ((False, "cannot be read: Input/output error"), (True, "became shorter while it was read")):

        def failing(fd, views, offset, at_end=at_end):
            if offset < 100_000:
                return real(fd, views, offset)
            if at_end:
                return 0
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", failing)
        assert main(arguments(hf, tmp_path / "out", 4)) == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"dsa-convert: error: {hf / FIRST} {message}"
        assert files(tmp_path / "out") == []


def test_output_in_use(hf, tmp_path, refused):
    out = tmp_path / "out"
    out.mkdir()
    lock = os.open(out, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused(f"another dsa-convert is writing to {out}", hf, dry=False)
    os.close(lock)
    (out / "model1-mp2.safetensors").mkdir()
    assert main(arguments(hf, out, 4)) == 1
    assert files(out) == ["model1-mp2.safetensors"]


def test_leftovers_make_room(hf, tmp_path, monkeypatch):
    """What a killed run left is removed by a run, and is no loss of room; a dry run leaves it."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".model0-mp16.safetensors.dsa-convert.partial").write_bytes(b"x" * (64 << 20))
    assert main(arguments(hf, out, 4, 2, "--dry-run")) == 0
    assert len(files(out)) == 1
    usage, asked = shutil.disk_usage(out), []

    def free(_):
        asked.append(files(out))
        return usage._replace(free=0 if asked[-1] else 64 << 20)

    monkeypatch.setattr(shutil, "disk_usage", free)
    assert main(arguments(hf, out, 4)) == 0
    assert len(asked) == 2 and files(out) == outputs(2)
