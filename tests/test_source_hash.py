"""The hash that marks stored measurements as stale: of the files that an op is compiled from, and no others."""

import shutil
import subprocess
from pathlib import Path

import pytest

from build_tools.source_hash import OPS, ROOT, UNITS, files, source_hashes

UNCHANGED = source_hashes()
ATTENTION = {"sparse_mla_fwd", "sparse_mla_decode"}


@pytest.mark.parametrize("op", OPS)
def test_files_are_those_that_the_compiler_reads(op):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    units = [p for folder in OPS[op] for p in (ROOT / "csrc" / folder).rglob("*") if p.suffix in UNITS]
    units = [str(p.relative_to(ROOT)) for p in units if "sm100" not in p.parts]
    assert units
    # What is not in csrc/ is passed over, as if something had yet to write it.
    command = [compiler, "-MM", "-MG", "-nostdinc", "-nostdinc++", "-std=c++20", "-Icsrc", "-x", "c++", *units]
    rules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    read = {(ROOT / word).resolve() for word in rules.replace("\\\n", " ").split() if word.startswith("csrc/")}
    own = {p for p in files(op) if p.parts[0] == "csrc"}
    assert {ROOT / p for p in own} == read
    assert {"build_tools/flags.py", "build_tools/find_cutlass.py"} == {str(p) for p in set(files(op)) - own}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "csrc", root / "csrc")
    (root / "build_tools").mkdir()
    for name in ("flags.py", "find_cutlass.py"):
        shutil.copy(ROOT / "build_tools" / name, root / "build_tools")
    return root


@pytest.mark.parametrize(
    "file, ops",
    [
        ("csrc/topk/config.h", {"topk_indices"}),
        ("csrc/sparse_mla_prefill/sm90/instances/heads64.cu", {"sparse_mla_fwd"}),
        ("csrc/attention/softmax_math.cuh", ATTENTION),
        ("csrc/arch/sm90/mma.cuh", ATTENTION | {"indexer_logits"}),
        ("csrc/common/torch_checks.h", set(OPS)),
        ("build_tools/flags.py", set(OPS)),
        ("csrc/indexer_logits/sm100/mma.cuh", set()),
        ("csrc/topk/included_by_nothing.cuh", set()),
        ("csrc/bindings.cpp", set()),
    ],
)
def test_a_change_makes_the_ops_that_include_it_stale(file, ops, checkout):
    path = checkout / file
    text = path.read_text() if path.exists() else None
    path.write_text((text or "") + "// changed\n")
    after = source_hashes(checkout)
    path.unlink() if text is None else path.write_text(text)
    assert {op for op in OPS if after[op] != UNCHANGED[op]} == ops
