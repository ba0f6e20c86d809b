"""Draws benchmarks/results/prefill.json into a PNG beside it, or JSON and PNG as given. Needs matplotlib."""

import json
import sys
from pathlib import Path
from typing import Any

OURS, PEER, LINE = "#1f6fb4", "#b8b8b8", "#444444"


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each head count, a pair of bars for each row, the matmul rate as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in result["rows"] if not row["error"]]
    heads = sorted({row["h_q"] for row in rows}, reverse=True)
    figure, axes = pyplot.subplots(len(heads), 1, figsize=(10, 2.9 * len(heads)), squeeze=False, layout="constrained")
    for axis, h_q in zip(axes[:, 0], heads, strict=True):
        panel = [row for row in rows if row["h_q"] == h_q]
        at = range(len(panel))
        axis.bar([x - 0.2 for x in at], [row["tflops"] for row in panel], 0.4, color=OURS, label="dsa_ext")
        paired = [(x, row) for x, row in zip(at, panel, strict=True) if row["ratio"]]
        if paired:
            theirs = [row["tflops"] / row["ratio"] for _, row in paired]
            axis.bar([x + 0.2 for x, _ in paired], theirs, 0.4, color=PEER, label=" ".join(result["peers"]))
        for x, row in paired:
            axis.annotate(f"{row['ratio']:.2f}×", (x, row["tflops"]), ha="center", va="bottom", fontsize=8)
        if result["matmul_tflops"]:
            axis.axhline(result["matmul_tflops"], color=LINE, linewidth=1, linestyle="--", label="bf16 matmul 8192³")
        axis.set_xticks(list(at), [_label(row) for row in panel], fontsize=8)
        axis.set_ylabel("TFLOPS")
        axis.set_title(f"{h_q} heads", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=3, frameon=False, fontsize=8)
    run = result["run"]
    figure.suptitle(f"sparse_mla_fwd, {rows[0]['s_q']} queries, {run['gpu'] or 'CPU'}, commit {run['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _label(row: dict[str, Any]) -> str:
    keys = f"{row['s_kv'] // 1024}K" if row["s_kv"] >= 1024 else str(row["s_kv"])
    return f"topk {row['topk']}\nd {row['d_qk']}\n{keys} keys"


if __name__ == "__main__":
    default = Path(__file__).resolve().parent / "results"
    stored, image = map(Path, sys.argv[1:] or (default / "prefill.json", default / "prefill.png"))
    draw(json.loads(stored.read_text()), image)
