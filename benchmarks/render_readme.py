"""Writes the tables of README.md, each between its two markers, from benchmarks/results/*.json."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_stale import ROOT, current_hashes, stale_rows

NOT_MEASURED = "Not measured yet: `python benchmarks/{}.py` on an H100 or H200 writes the numbers."
Row = dict[str, Any]
Text = Callable[[Row], str | None]


def prefill_table(result: dict[str, Any] | None, current: dict[str, str]) -> str:
    """Markdown. A line for each (h_q, topk, d_qk), whose cells hold one value for each number of keys."""
    if not _measured(result, "sparse_mla_fwd"):
        return NOT_MEASURED.format("prefill")
    sizes = sorted({row["s_kv"] for row in result["rows"]})
    columns: dict[str, Text] = {
        "ms": lambda row: f"{row['ms']:.2f}",
        "TFLOPS": lambda row: f"{row['tflops']:.0f}",
        "of matmul": lambda row: _percent(row["matmul_share"]),
        "× FlashMLA": lambda row: row["ratio"] and f"{row['ratio']:.2f}",
    }
    about = f"{result['rows'][0]['s_q']} queries; cells: s_kv = {' / '.join(map(_kilo, sizes))}."
    lines = _lines(result["rows"], ("h_q", "topk", "d_qk"), "s_kv", columns)
    return "\n".join([*_stale_mark(result, current), *lines, "", f"{about} {_caption(result)}"])


def decode_table(result: dict[str, Any] | None, current: dict[str, str]) -> str:
    """Markdown. A line for each (cache, h_q, topk, batch), whose cells hold one value for each s_q."""
    if not _measured(result, "sparse_mla_decode"):
        return NOT_MEASURED.format("decode")
    columns: dict[str, Text] = {
        "µs": lambda row: f"{row['ms'] * 1e3:.1f}",
        "TFLOPS": lambda row: f"{row['tflops']:.0f}",
        "TB/s": lambda row: f"{row['tb_s']:.2f}",
        "of matmul": lambda row: _percent(row["matmul_share"]),
        "of copy": lambda row: _percent(row["copy_share"]),
        "× FlashMLA": lambda row: row["ratio"] and f"{row['ratio']:.2f}",
        "µs, batch-invariant": lambda row: row.get("invariant_ms") and f"{row['invariant_ms'] * 1e3:.1f}",
    }
    lines = _lines(result["rows"], ("format", "h_q", "topk", "batch"), "s_q", columns)
    caption = f"Cells: s_q = 1 / 2. {_caption(result)} {_copy(result)}"
    return "\n".join([*_stale_mark(result, current), *lines, "", caption])


def indexer_table(result: dict[str, Any] | None, current: dict[str, str]) -> str:
    """Markdown, with its heading; empty without a result. Ragged logits: a line for each number of heads, whose cells
    hold one value for each number of keys. Paged: a line for each (batch, context), with a value for each next_n."""
    if not _measured(result, "indexer_logits"):
        return ""
    ragged, paged = ([row for row in result["rows"] if row["form"] == form] for form in ("ragged", "paged"))
    parts = [INDEXER_HEADING, *_stale_mark(result, current)]
    if ragged:
        columns: dict[str, Text] = {
            "ms": lambda row: f"{row['ms']:.3f}",
            "TFLOPS": lambda row: f"{row['tflops']:.0f}",
            "of matmul": lambda row: _percent(row["matmul_share"]),
            "× DeepGEMM": lambda row: row["ratio"] and f"{row['ratio']:.2f}",
        }
        sizes = sorted({row["keys"] for row in ragged})
        about = f"{ragged[0]['tokens']} queries, the last of s_k keys; cells: s_k = {' / '.join(map(_kilo, sizes))}."
        parts += [*_lines(ragged, ("heads",), "keys", columns), "", about, ""]
    if paged:
        columns = {
            "µs": lambda row: f"{row['ms'] * 1e3:.1f}",
            "TB/s": lambda row: f"{row['tb_s']:.2f}",
            "of copy": lambda row: _percent(row["copy_share"]),
            "TFLOPS": lambda row: f"{row['tflops']:.0f}",
            "× DeepGEMM": lambda row: row["ratio"] and f"{row['ratio']:.2f}",
        }
        tokens = " / ".join(str(n) for n in sorted({row["tokens"] for row in paged}))
        lines = _lines(paged, ("heads", "batch", "keys"), "tokens", columns)
        parts += [*lines, "", f"Paged, TB/s of keys; cells: next_n = {tokens}.", ""]
    return "\n".join([*parts, f"{_caption(result, matmul='fp8')} {_copy(result)}"])


def topk_table(result: dict[str, Any] | None, current: dict[str, str]) -> str:
    """Markdown, with its heading; empty without a result. A line for each (dtype, k, rows, columns)."""
    if not _measured(result, "topk_indices"):
        return ""
    columns: dict[str, Text] = {
        "µs": lambda row: f"{row['ms'] * 1e3:.1f}",
        "TB/s": lambda row: f"{row['tb_s']:.2f}",
        "of copy": lambda row: _percent(row["copy_share"]),
        "× SGLang": lambda row: row["ratio"] and f"{row['ratio']:.2f}",
        "× torch": lambda row: row["torch_ratio"] and f"{row['torch_ratio']:.1f}",
    }
    lines = _lines(result["rows"], ("dtype", "k", "rows", "columns"), None, columns)
    caption = f"{_caption(result, matmul=None)} {_copy(result)}"
    return "\n".join([TOPK_HEADING, *_stale_mark(result, current), *lines, "", caption])


def step_table(result: dict[str, Any] | None, current: dict[str, str]) -> str:
    """Markdown, with its heading; empty without a result. A line for each (h_q, batch, context)."""
    if not _measured(result, "sparse_mla_decode"):
        return ""
    columns: dict[str, Text] = {
        "µs": lambda row: f"{row['ms'] * 1e3:.1f}",
        "peers' µs": lambda row: row.get("peer_ms") and f"{row['peer_ms'] * 1e3:.1f}",
        "× peers": lambda row: row["ratio"] and f"{row['ratio']:.2f}",
    }
    lines = _lines(result["rows"], ("h_q", "batch", "keys"), None, columns)
    return "\n".join([STEP_HEADING, *_stale_mark(result, current), *lines, "", _caption(result, matmul=None)])


def layer_table(result: dict[str, Any] | None, current: dict[str, str]) -> str:
    """Markdown, with its heading; empty without a result. A line for each length of a prefill, and for each batch."""
    if not _measured(result, "sparse_mla_fwd"):
        return ""

    def by_part(row: Row, factor: float, digits: int) -> str:
        return " / ".join(f"{ms * factor:.{digits}f}" for ms in row["parts_ms"].values())

    def ratio(name: str) -> Text:
        return lambda row: row[name] and f"{row[name]:.2f}"

    prefill: dict[str, Text] = {
        "ms, last chunk": lambda row: f"{row['ms']:.2f}",
        "by part": lambda row: by_part(row, 1, 2),
        "× peers": ratio("ratio"),
        "× dense": ratio("dense_ratio"),
        "ms, all chunks": lambda row: f"{row['total_ms']:.1f}",
        "× peers, all": ratio("total_peer_ratio"),
        "× dense, all": ratio("total_dense_ratio"),
    }
    decode: dict[str, Text] = {
        "µs": lambda row: f"{row['ms'] * 1e3:.0f}",
        "by part": lambda row: by_part(row, 1e3, 0),
        "× peers": ratio("ratio"),
        "× dense": ratio("dense_ratio"),
    }
    prompts, batches = ([row for row in result["rows"] if row["form"] == form] for form in ("prefill", "decode"))
    prompts = [row | {"tokens": _kilo(row["context"])} for row in prompts]
    parts = [LAYER_HEADING, *_stale_mark(result, current), *_lines(prompts, ("tokens",), None, prefill), ""]
    parts += [*_lines(batches, ("batch",), None, decode), ""]
    if batches and prompts:
        parts += [LAYER_NOTE.format(chunk=prompts[0]["chunk"], context=_kilo(batches[0]["context"]))]
    return "\n".join([*parts, _caption(result, matmul=None)])


def hf_table(result: dict[str, Any] | None, current: dict[str, str]) -> str:
    """Markdown. A line for each (model, length), whose cells hold a value for each kind of attention."""
    if not _measured(result, "sparse_mla_decode"):
        return NOT_MEASURED.format("hf")

    def each(key: str, unit: float, digits: int) -> Text:
        return lambda row: " / ".join(
            f"{row[way][key] / unit:.{digits}f}" if way in row else "–" for way in ("ours", "sdpa", "eager")
        )

    columns: dict[str, Text] = {
        "ms a token": each("ms", 1, 1),
        "ms, prompt": each("prefill_ms", 1, 0),
        "GiB, cache": each("cache_bytes", 2**30, 2),
        "GiB, all": each("peak_bytes", 2**30, 1),
    }
    rows = [row | {"model": row["kind"], "tokens": _kilo(row["context"])} for row in result["rows"]]
    lines = _lines(rows, ("model", "tokens"), None, columns)
    return "\n".join([HF_HEADING, *_stale_mark(result, current), *lines, "", _caption(result, matmul=None)])


HF_HEADING = (
    "Hugging Face's models, two layers of them, one sequence ([plot](benchmarks/results/hf.png)): ours, by\n"
    "`integrations.transformers.enable`, / sdpa / eager. “–”: out of memory. A token of ours takes as long as\n"
    "Python's launches do.\n"
)
LAYER_HEADING = (
    "An attention layer of DeepSeek-V3.2, `dsa_ext.nn.SparseMLAttention`, whole\n"
    "([plot](benchmarks/results/layer.png)): prefill, then decoding:\n"
)
LAYER_NOTE = (
    "Prefill in chunks of {chunk} tokens; decoding with {context} tokens a request. Parts: projections and caches /\n"
    "the indexer's logits / top-k / attention. Peers: their kernels in our layer. Dense: torch's attention over all\n"
    "keys.\n"
)
STEP_HEADING = "A decode step's `paged_indexer_topk` and `sparse_mla_decode` together, topk 2048:\n"
INDEXER_HEADING = (
    "The indexer's logits, `indexer_logits` on a chunk of a prompt and `paged_indexer_logits` in decoding\n"
    "([plot](benchmarks/results/indexer.png)):\n"
)
TOPK_HEADING = "The choice of the k best, `topk_indices` ([plot](benchmarks/results/topk.png)):\n"
# What is to be said of a peer.
PEER_NOTES = {
    "FlashMLA": "it takes multiples of 64 heads, so at h_q 16 it gets q padded beforehand",
    "DeepGEMM": "without the kernel that writes −inf outside of the ranges, which ours writes",
    "the peers' kernels": "one after the other; the positions of the second are taken for slots",
    "the peers' kernels in our layer": "all but their kernels is ours",
    "transformers": "its own attention, in the same models",
    "SGLang": "its fast_topk takes float32 and k 2048 only, and its order is arbitrary",
}
TABLES = {
    "prefill": prefill_table,
    "decode": decode_table,
    "indexer": indexer_table,
    "topk": topk_table,
    "step": step_table,
    "layer": layer_table,
    "hf": hf_table,
}


def _measured(result: dict[str, Any] | None, op: str) -> bool:
    """Whether it is a result of the op, from a GPU."""
    return result is not None and result["run"]["gpu"] is not None and all(row["op"] == op for row in result["rows"])


def _percent(share: float | None) -> str | None:
    return share and f"{share:.0%}"


def _kilo(n: int) -> str:
    return f"{n // 1024}K"


def _lines(rows: list[Row], keys: tuple[str, ...], within: str | None, columns: dict[str, Text]) -> list[str]:
    """The table, with a line for each combination of `keys`; its cells have a value for each row of these, which differ
    in `within`: for every one that the table has, where some line has more than one. Without `within` each combination
    has one row."""
    by_line: dict[tuple, dict[Any, Row]] = {}
    for row in rows:
        by_line.setdefault(tuple(row[key] for key in keys), {})[within and row[within]] = row
    everywhere = sorted({row[within] for row in rows}) if within else []

    def cell(found: dict[Any, Row], text: Text) -> str:
        sizes = everywhere if len(found) > 1 else found
        return " / ".join(
            "–" if size not in found else "failed" if found[size]["error"] else text(found[size]) or "–"
            for size in sizes
        )

    names = {"format": "cache", "batch": "b", "keys": "context"}
    heads = [*(names.get(key, key) for key in keys), *columns]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for line, found in by_line.items():
        cells = [*map(str, line), *(cell(found, text) for text in columns.values())]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _stale_mark(result: dict[str, Any], current: dict[str, str]) -> list[str]:
    stale = stale_rows(result, current)
    if not stale:
        return []
    count = f"{len(stale)} of these {len(result['rows'])} rows"
    return [f"**Stale**: the kernels' sources have changed since {count} were measured.\n"]


def _caption(result: dict[str, Any], matmul: str | None = "bf16") -> str:
    """matmul: which one rates are compared with, if any."""
    run = result["run"]
    text = f"{run['gpu']}, driver {run['driver']}, torch {run['torch']}, CUDA {run['cuda']}, {run['date'][:10]}. "
    if matmul:
        article = "An" if matmul == "fp8" else "A"
        text += f"{article} {matmul} 8192³ matmul in the same run: {result['matmul_tflops']:.0f} TFLOPS. "
    text += f"Commit `{run['commit']}`, `{run['command']}`."
    for name, about in result["peers"].items():
        text += f" Timed beside it: {name} {about['version']}; {PEER_NOTES[name]}."
    return text


def _copy(result: dict[str, Any]) -> str:
    return f"A device copy in the same run: {result['copy_tb_s']:.2f} TB/s."


def insert(readme: str, name: str, text: str) -> str:
    """README with the text between the markers of that table. Without either marker it has no such table."""
    begin, end = f"<!-- {name} table -->", f"<!-- /{name} table -->"
    if begin not in readme and end not in readme:
        return readme
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    if len(pattern.findall(readme)) != 1 or readme.count(begin) != 1 or readme.count(end) != 1:
        sys.exit(f"README.md needs {begin} and {end}, once")
    return pattern.sub(lambda _: "\n".join([begin, *([text] if text else []), end]), readme)


def render(readme: Path, results: Path, current: dict[str, str]) -> None:
    text = readme.read_text()
    for name, table in TABLES.items():
        stored = results / f"{name}.json"
        result = json.loads(stored.read_text()) if stored.is_file() else None
        text = insert(text, name, table(result, current))
    readme.write_text(text)


if __name__ == "__main__":
    render(ROOT / "README.md", ROOT / "benchmarks/results", current_hashes())
