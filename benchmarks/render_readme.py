"""Writes the prefill table of README.md, between its two markers, from benchmarks/results/prefill.json."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_stale import ROOT, current_hashes, stale_rows

BEGIN, END = "<!-- prefill table -->", "<!-- /prefill table -->"
NOT_MEASURED = "Not measured yet: `python benchmarks/prefill.py` on an H100 or H200 writes the numbers."
Row = dict[str, Any]


def table(result: dict[str, Any] | None, current: dict[str, str]) -> str:
    """Markdown. A line for each (h_q, topk, d_qk), whose cells hold one value for each number of keys."""
    if result is None or result["run"]["gpu"] is None:
        return NOT_MEASURED
    rows = result["rows"]
    sizes = sorted({row["s_kv"] for row in rows})
    lines = list(dict.fromkeys((row["h_q"], row["topk"], row["d_qk"]) for row in rows))
    by_case = {(row["h_q"], row["topk"], row["d_qk"], row["s_kv"]): row for row in rows}

    def cells(line: tuple[int, int, int], text: Callable[[Row], str | None]) -> str:
        found = [by_case.get((*line, s_kv)) for s_kv in sizes]
        return " / ".join("–" if row is None else "failed" if row["error"] else text(row) or "–" for row in found)

    heads = ["h_q", "topk", "d_qk", "ms", "TFLOPS", "of matmul", "× FlashMLA"]
    out = [_stale_mark(result, current), "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for line in lines:
        columns = [
            *map(str, line),
            cells(line, lambda row: f"{row['ms']:.2f}"),
            cells(line, lambda row: f"{row['tflops']:.0f}"),
            cells(line, lambda row: row["matmul_share"] and f"{row['matmul_share']:.0%}"),
            cells(line, lambda row: row["ratio"] and f"{row['ratio']:.2f}"),
        ]
        out.append("| " + " | ".join(columns) + " |")
    return "\n".join(text for text in [*out, "", _caption(result, sizes)] if text is not None)


def _stale_mark(result: dict[str, Any], current: dict[str, str]) -> str | None:
    stale = stale_rows(result, current)
    if not stale:
        return None
    count = f"{len(stale)} of these {len(result['rows'])} rows"
    return f"**Stale**: the kernels' sources have changed since {count} were measured.\n"


def _caption(result: dict[str, Any], sizes: list[int]) -> str:
    run = result["run"]
    s_kv = " / ".join(f"{n // 1024}K" for n in sizes)
    peers = ", ".join(f"{name} {about['version']}" for name, about in result["peers"].items())
    text = (
        f"{result['rows'][0]['s_q']} queries; cells: s_kv = {s_kv}. {run['gpu']}, driver {run['driver']}, torch "
        f"{run['torch']}, CUDA {run['cuda']}, {run['date'][:10]}. A bf16 8192³ matmul in the same run: "
        f"{result['matmul_tflops']:.0f} TFLOPS. Commit `{run['commit']}`, `{run['command']}`."
    )
    if peers:
        text += f" Timed beside it: {peers}; it takes multiples of 64 heads, so at h_q 16 it gets q padded beforehand."
    return text


def insert(readme: str, text: str) -> str:
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.S)
    if len(pattern.findall(readme)) != 1:
        sys.exit(f"README.md needs {BEGIN} and {END}, once")
    return pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme)


def render(readme: Path, stored: Path, current: dict[str, str]) -> None:
    result = json.loads(stored.read_text()) if stored.is_file() else None
    readme.write_text(insert(readme.read_text(), table(result, current)))


if __name__ == "__main__":
    render(ROOT / "README.md", ROOT / "benchmarks/results/prefill.json", current_hashes())
