"""Installation: import, build_info(), the environment report."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dsa_ext
from dsa_ext import __main__ as report

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(dsa_ext.__file__).parent


def python(*arguments, cwd, **environment):
    """Runs this interpreter away from the checkout, whose folder would hide the installed package."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=200
    )


def test_report(tmp_path):
    run = python("-m", "dsa_ext", cwd=tmp_path, PYTHONPATH=str(PACKAGE.parent))
    assert run.returncode == 0, run.stdout + run.stderr
    assert dsa_ext.__version__ in run.stdout and torch.__version__ in run.stdout
    for op, check in report.CHECKS.items():
        assert f"{op} on cpu: reference" in run.stdout
        assert all(f"{op} on cpu, {check.size} {size}: ok" in run.stdout for size in check.sizes)
    assert torch.cuda.is_available() or "no CUDA device: " in run.stdout
    assert "FAILED" not in run.stdout and run.stderr == ""


@pytest.mark.gpu
def test_report_of_the_gpu(capsys):
    assert report.main() == 0
    text = capsys.readouterr().out
    assert torch.cuda.get_device_name(0) in text
    for op, check in report.CHECKS.items():
        assert f"{op} on cuda:0, {check.size} {check.sizes[-1]}: ok" in text


def slightly_wrong(*arguments, **options):
    out, max_logits, lse = dsa_ext.reference.sparse_mla_fwd(*arguments, **options)
    return out, max_logits, lse + 0.01


def raises(*arguments, **options):
    raise RuntimeError("no such device")


def slightly_wrong_decode(*arguments, **options):
    out, lse = dsa_ext.reference.sparse_mla_decode(*arguments, **options)
    return out, lse + 0.01


def slightly_wrong_logits(*arguments, **options):
    return dsa_ext.reference.indexer_logits(*arguments, **options) * 1.001


def one_more(*arguments, **options):
    """Reads a key more than a request has."""
    q, cache, weights, lens, table = arguments
    return dsa_ext.reference.paged_indexer_logits(q, cache, weights, lens + 1, table, **options)


def last_of_equals(logits, k, *, lengths):
    """Of equal scores the last ones."""
    n = logits.shape[1]
    positions = dsa_ext.reference.topk_indices(logits.flip(1), k, row_starts=n - lengths)
    return torch.where(positions < 0, -1, lengths[:, None] - 1 - positions).sort(dim=1).values.int()


def not_rotated(*arguments, **options):
    return dsa_ext.reference.prepare_indexer(*arguments, **options, hadamard=False)


@pytest.mark.parametrize(
    "op, function",
    [
        ("indexer_logits", slightly_wrong_logits),
        ("paged_indexer_logits", one_more),
        ("store_indexer_cache", lambda *_: None),
        ("topk_indices", last_of_equals),
        ("topk_indices", raises),
        ("prepare_indexer", not_rotated),
        ("sparse_mla_fwd", slightly_wrong),
        ("sparse_mla_fwd", raises),
        ("sparse_mla_decode", slightly_wrong_decode),
        ("sparse_mla_decode", raises),
    ],
)
def test_report_fails_with_a_wrong_result(op, function, monkeypatch, capsys):
    monkeypatch.setattr(dsa_ext, op, function)
    assert report.main() == 1
    assert "FAILED" in capsys.readouterr().out


def test_build_info():
    info = dsa_ext.build_info()
    assert set(info) == {"version", "archs", "cuda", "cutlass", "source_hash", "paths"}
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert info["version"] == dsa_ext.__version__ == declared
    assert set(info["archs"]) <= {"90a", "100a", "100f"}
    assert (info["cuda"] is None) == (info["cutlass"] is None) == (not info["archs"])
    hashed = {"indexer_logits", "indexer_quant", "kv_cache", "sparse_mla_decode", "sparse_mla_fwd", "topk_indices"}
    assert set(info["source_hash"]) == hashed
    ops = {"indexer_logits", "paged_indexer_logits", "sparse_mla_decode", "sparse_mla_fwd"}
    assert set(info["paths"]) == ops
    assert all(re.fullmatch(r"[0-9a-f]{12}", h) for h in info["source_hash"].values())
    paths = info["paths"]["sparse_mla_fwd"]
    assert paths["cpu"] == "reference"
    assert set(paths) == {"cpu"} | {f"sm_{a[:-1]}" for a in info["archs"]}
    if "90a" in info["archs"]:
        assert set(paths["sm_90"]) == {8, 16, 32, 64, 128}
        assert all(isinstance(name, str) and name.startswith("sm90") for name in paths["sm_90"].values())
    decode = info["paths"]["sparse_mla_decode"]
    assert decode["cpu"] == "reference" and set(decode) == set(paths)
    for arch in set(decode) - {"cpu"}:
        assert set(decode[arch]) == {"v32", "v4", "bf16"}
        assert all(set(names) == {8, 16, 32, 64, 128} for names in decode[arch].values())
    info["paths"].clear()  # a copy of its own
    assert dsa_ext.build_info()["paths"]


def test_public_names():
    assert dsa_ext.__all__ == sorted(dsa_ext.__all__)
    assert all(getattr(dsa_ext, name).__doc__ for name in dsa_ext.__all__)
    assert (PACKAGE / "py.typed").exists()


def test_import_without_a_gpu_touches_none(tmp_path):
    code = (
        "import dsa_ext, torch; dsa_ext.build_info(); assert not torch.cuda.is_initialized(); "
        "q = torch.ones(1, 1, 512); print(dsa_ext.sparse_mla_fwd(q, q[0], torch.zeros(1, 1).int(), 1.0)[1].item())"
    )
    run = python("-c", code, cwd=tmp_path, PYTHONPATH=str(PACKAGE.parent), CUDA_VISIBLE_DEVICES="")
    assert run.stdout == "512.0\n", run.stderr


@pytest.mark.parametrize(
    "binary, message",
    [
        (None, r"dsa_ext: dsa_ext\._C is not built: run `pip install -e \.` in the checkout, .*"),
        ("not a library", rf"dsa_ext: dsa_ext\._C does not load with torch {re.escape(torch.__version__)} .*"),
    ],
)
def test_import_without_a_working_binary(binary, message, tmp_path):
    copy = tmp_path / "dsa_ext"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if binary is not None:
        (copy / "_C.abi3.so").write_text(binary)
    # An editable install's import hook would find the checkout's binary for the copy.
    code = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]; import dsa_ext"
    run = python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert run.returncode == 1
    assert re.fullmatch(f"ImportError: {message}", run.stderr.splitlines()[-1]), run.stderr
    assert run.stderr.count("Traceback") == 1
