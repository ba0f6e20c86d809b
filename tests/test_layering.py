"""Dependencies point one way, files stay short, and no source names a place on somebody's machine.

Each rule is a function from a checkout to the list of what breaks it, so that it can be shown a checkout that does.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400
SEE_TORCH = re.compile(r"bindings\.cpp|[^/]+/op\.cpp|common/torch_checks\.h")
GENERATED = {"build_config.h"}
SHARED = {"common", "arch", "attention"}  # the other folders of csrc/ are ops
# Which shared folders may include which.
BELOW = {"common": {"common"}, "arch": {"arch", "common"}, "attention": {"attention", "arch", "common"}}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def sources(root: Path) -> Iterator[Path]:
    csrc = root / "csrc"
    yield from sorted(p for p in csrc.rglob("*") if p.suffix in {".cpp", ".cu", ".cuh", ".h"})


def name(root: Path, path: Path) -> str:
    return path.relative_to(root / "csrc").as_posix()


def includes(root: Path, path: Path) -> tuple[list[Path], list[str]]:
    """Files of the checkout that `path` includes, and the other names."""
    own, other = [], []
    for quote, text in INCLUDE.findall(path.read_text()):
        found = [p for p in (path.parent / text, root / "csrc" / text) if p.is_file()]
        if found:
            own.append(found[0].resolve())
        elif quote == '"' and text not in GENERATED:
            raise AssertionError(f"{name(root, path)} includes {text}, which does not exist")
        else:
            other.append(text)
    return own, other


def all_includes(root: Path, path: Path, seen: set[Path]) -> Iterator[tuple[Path, str]]:
    """(file, outside name) for everything that `path` pulls in."""
    seen.add(path)
    own, other = includes(root, path)
    yield from ((path, text) for text in other)
    for p in own:
        if p not in seen:
            yield from all_includes(root, p, seen)


def torch_seen_elsewhere(root: Path) -> list[str]:
    return [
        f"{name(root, p)} includes {text}"
        for p in sources(root)
        for text in [*includes(root, p)[1], *(name(root, o) for o in includes(root, p)[0])]
        if re.match(r"torch/|ATen/|c10/|Python\.h|common/torch_checks\.h", text)
        and not SEE_TORCH.fullmatch(name(root, p))
    ]


def host_code_with_cute(root: Path) -> list[str]:
    return [
        f"{name(root, host)} reaches {text} through {name(root, p)}"
        for host in sources(root)
        if host.suffix == ".cpp" or host.name == "op.h"
        for p, text in all_includes(root, host, set())
        if re.match(r"cute/|cutlass/", text)
    ]


def architectures_mixed(root: Path) -> list[str]:
    return [
        f"{name(root, p)} includes {name(root, o)}"
        for p in sources(root)
        for o in includes(root, p)[0]
        for one, another in (("sm90", "sm100"), ("sm100", "sm90"))
        if one in Path(name(root, p)).parts and another in Path(name(root, o)).parts
    ]


def upward_includes(root: Path) -> list[str]:
    """An op may use the shared folders, itself, and another op's op.h; a shared folder what lies below it."""
    broken = []
    for p in sources(root):
        folder = Path(name(root, p)).parts[0]
        if folder == "bindings.cpp":
            continue
        for o in includes(root, p)[0]:
            target = name(root, o)
            there = Path(target).parts[0]
            allowed = BELOW.get(folder, SHARED | {folder})
            if there not in allowed and (folder in SHARED or target != f"{there}/op.h"):
                broken.append(f"{name(root, p)} includes {target}")
    return broken


def reference_beyond_torch(root: Path) -> list[str]:
    """The reference must not lean on what it is the oracle of."""
    broken = []
    for path in sorted((root / "dsa_ext/reference").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level >= 2:
                broken += [f"{path.name} imports {a.name}" for a in node.names if not a.name.startswith("_checks")]
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or "."]
                broken += [f"{path.name} imports {m}" for m in modules if m.startswith("dsa_ext")]
            elif isinstance(node, ast.Attribute) and node.attr == "ops":
                broken.append(f"{path.name} uses torch.ops")
    return broken


def tracked(root: Path) -> list[Path]:
    """Files that are, or could be, committed; all of them in an export without git."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (root / ".git").exists() and (git := subprocess.run(command, capture_output=True)).returncode == 0:
        paths = [root / p for p in git.stdout.decode().split("\0") if p]
    else:
        folders = ("csrc", "dsa_ext", "tests", "benchmarks", "build_tools", "tools", "docs", ".ci")
        paths = [p for f in folders for p in (root / f).rglob("*")] + list(root.glob("*.*"))
    return sorted(p for p in paths if p.is_file() and p.suffix not in {".png", ".so", ".pyc"})


def long_files(root: Path) -> list[str]:
    code = {".cpp", ".cu", ".cuh", ".h", ".py"}
    lines = {p: p.read_text().count("\n") for p in tracked(root) if p.suffix in code}
    return [f"{p.relative_to(root)} has {n} lines" for p, n in lines.items() if n >= MAX_LINES]


def machine_paths(root: Path) -> list[str]:
    pattern = re.compile(r"(?<![\w.$}/-])/(work|tmp|root|home|Users)/\w")
    return [
        f"{p.relative_to(root)}:{i}: {line.strip()}"
        for p in tracked(root)
        for i, line in enumerate(p.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


RULES = [
    torch_seen_elsewhere,
    host_code_with_cute,
    architectures_mixed,
    upward_includes,
    reference_beyond_torch,
    long_files,
    machine_paths,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda f: f.__name__)
def test_rule(rule):
    assert rule(ROOT) == []


def test_there_is_something_to_check():
    assert {"bindings.cpp", "sparse_mla_prefill/op.cpp", "sparse_mla_prefill/op.h"} <= {
        name(ROOT, p) for p in sources(ROOT)
    }
    assert {ROOT / "setup.py", ROOT / "dsa_ext/reference/attention.py", ROOT / "csrc/bindings.cpp"} <= set(
        tracked(ROOT)
    )


BROKEN = {
    torch_seen_elsewhere: {"csrc/a/sm90/kernel.cuh": "#include <torch/all.h>\n"},
    host_code_with_cute: {
        "csrc/a/op.cpp": '#include "helper.h"\n',
        "csrc/a/helper.h": "#include <cute/tensor.hpp>\n",
    },
    architectures_mixed: {
        "csrc/a/sm90/x.cuh": '#include "arch/sm100/y.cuh"\n',
        "csrc/arch/sm100/y.cuh": "\n",
    },
    upward_includes: {"csrc/a/x.h": '#include "b/config.h"\n', "csrc/b/config.h": "\n"},
    reference_beyond_torch: {"dsa_ext/reference/x.py": "from .. import _C\n"},
    long_files: {"csrc/a/x.cuh": "\n" * MAX_LINES},
    machine_paths: {"tools/x.py": 'PATH = "' + "/".join(["", "home", "me", "x"]) + '"\n'},
}


@pytest.mark.parametrize("rule", RULES, ids=lambda f: f.__name__)
def test_rule_can_be_broken(rule, tmp_path):
    for path, text in BROKEN[rule].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert len(rule(tmp_path)) == 1
    assert all(other(tmp_path) == [] for other in RULES if other is not rule)


def test_shared_folders_know_no_op(tmp_path):
    for path, text in {
        "csrc/attention/x.cuh": '#include "a/op.h"\n',
        "csrc/common/y.h": '#include "attention/x.cuh"\n',
        "csrc/a/op.h": "\n",
        "csrc/b/op.h": '#include "a/op.h"\n',
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert upward_includes(tmp_path) == [
        "attention/x.cuh includes a/op.h",
        "common/y.h includes attention/x.cuh",
    ]
