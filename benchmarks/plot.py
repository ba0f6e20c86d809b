"""Draws the stored results, benchmarks/results/*.json, into PNGs beside them; or JSON and PNG as given. Needs
matplotlib."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS, PEER, LINE = "#1f6fb4", "#b8b8b8", "#444444"
PARTS = {  # of a layer: label and colour
    "projections": ("projections, caches", "#cfd8dc"),
    "logits": ("indexer's logits", "#f2b134"),
    "topk": ("top-k", "#d1495b"),
    "attention": ("attention", OURS),
}
Row = dict[str, Any]


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each head count, with the ceilings as lines; of topk one panel, of the indexer one a form."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if result["benchmark"] == "topk":
        return _draw_topk(pyplot, result, path)
    if result["benchmark"] == "indexer":
        return _draw_indexer(pyplot, result, path)
    if result["benchmark"] == "step":
        return _draw_step(pyplot, result, path)
    if result["benchmark"] == "layer":
        return _draw_layer(pyplot, result, path)
    if result["benchmark"] == "hf":
        return _draw_hf(pyplot, result, path)
    panel = _decode_panel if result["benchmark"] == "decode" else _prefill_panel
    rows = [row for row in result["rows"] if not row["error"]]
    heads = sorted({row["h_q"] for row in rows}, reverse=True)
    figure, axes = pyplot.subplots(len(heads), 1, figsize=(10, 2.9 * len(heads)), squeeze=False, layout="constrained")
    for axis, h_q in zip(axes[:, 0], heads, strict=True):
        panel(axis, [row for row in rows if row["h_q"] == h_q], result)
        if result["matmul_tflops"]:
            axis.axhline(result["matmul_tflops"], color=LINE, linewidth=1, linestyle="--", label="bf16 matmul 8192³")
        axis.set_ylabel("TFLOPS")
        axis.set_title(f"{h_q} heads", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    shown = {}  # what any panel shows
    for axis in axes[:, 0]:
        handles, labels = axis.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 1.25), "ncols": 6}
    axes[0, 0].legend(shown.values(), shown, **place, frameon=False, fontsize=8)
    run, op = result["run"], rows[0]["op"]
    what = f"topk {rows[0]['topk']}, FP8 cache" if result["benchmark"] == "decode" else f"{rows[0]['s_q']} queries"
    figure.suptitle(f"{op}, {what}, {run['gpu'] or 'CPU'}, commit {run['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_topk(pyplot: Any, result: dict[str, Any], path: Path) -> None:
    """Bars: how fast each row's logits go through."""
    rows = [row for row in result["rows"] if not row["error"]]
    figure, axis = pyplot.subplots(figsize=(10, 3.4), layout="constrained")
    series = [("dsa_ext", "ms", OURS), (" ".join(result["peers"]), "peer_ms", PEER), ("torch.topk", "torch_ms", LINE)]
    for i, (label, key, color) in enumerate(series):
        timed = [(x + 0.27 * (i - 1), row) for x, row in enumerate(rows) if row.get(key)]
        rates = [row["bytes"] / row[key] / 1e9 for _, row in timed]
        if timed:
            axis.bar([x for x, _ in timed], rates, 0.27, color=color, label=label)
    if result["copy_tb_s"]:
        axis.axhline(result["copy_tb_s"], color=LINE, linewidth=1, linestyle="--", label="device copy")
    axis.set_xticks(range(len(rows)), [row["row"].replace("-", "\n") for row in rows], fontsize=8)
    axis.set_ylabel("TB/s")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    run = result["run"]
    figure.suptitle(f"topk_indices, {run['gpu'] or 'CPU'}, commit {run['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_indexer(pyplot: Any, result: dict[str, Any], path: Path) -> None:
    """A panel of the ragged rows' TFLOPS, and one of the rate at which the paged rows read keys."""
    rows = [row for row in result["rows"] if not row["error"]]
    panels = [  # form, the rate that is drawn, its unit, the ceiling, its name
        ("ragged", "tflops", "TFLOPS", result["matmul_tflops"], "fp8 matmul 8192³"),
        ("paged", "tb_s", "TB/s of keys", result["copy_tb_s"], "device copy"),
    ]
    panels = [panel for panel in panels if any(row["form"] == panel[0] for row in rows)]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(10, 3.2 * len(panels)), squeeze=False, layout="constrained")
    for axis, (form, rate, unit, ceiling, name) in zip(axes[:, 0], panels, strict=True):
        _pairs(axis, [row for row in rows if row["form"] == form], rate, result, _indexer_label)
        if ceiling:
            axis.axhline(ceiling, color=LINE, linewidth=1, linestyle="--", label=name)
        axis.set_ylabel(unit)
        axis.set_title(form, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper right", bbox_to_anchor=(1, 1.16), ncols=3, frameon=False, fontsize=8)
    run = result["run"]
    figure.suptitle(f"Indexer logits, d {rows[0]['d']}, {run['gpu'] or 'CPU'}, commit {run['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _indexer_label(row: Row) -> str:
    """Of a ragged row or a paged one."""
    what = f"{row['tokens']} queries" if row["batch"] is None else f"b {row['batch']}, next_n {row['tokens']}"
    return f"{row['heads']} heads\n{what}\n{_keys(row['keys'])}"


def _prefill_panel(axis: Any, rows: list[Row], result: dict[str, Any]) -> None:
    """A pair of bars for each row."""
    _pairs(axis, rows, "tflops", result, _label)


def _pairs(axis: Any, rows: list[Row], rate: str, result: dict[str, Any], label: Callable[[Row], str]) -> None:
    """Bars of ours and of the peer, by the row's value of that name."""
    at = range(len(rows))
    axis.bar([x - 0.2 for x in at], [row[rate] for row in rows], 0.4, color=OURS, label="dsa_ext")
    paired = [(x, row) for x, row in zip(at, rows, strict=True) if row["ratio"]]
    if paired:
        theirs = [row[rate] / row["ratio"] for _, row in paired]
        axis.bar([x + 0.2 for x, _ in paired], theirs, 0.4, color=PEER, label=" ".join(result["peers"]))
    for x, row in paired:
        axis.annotate(f"{row['ratio']:.2f}×", (x, row[rate]), ha="center", va="bottom", fontsize=8)
    axis.set_xticks(list(at), [label(row) for row in rows], fontsize=8)


def _label(row: Row) -> str:
    return f"topk {row['topk']}\nd {row['d_qk']}\n{_keys(row['s_kv'])}"


def _keys(n: int) -> str:
    return f"{n // 1024}K keys" if n >= 1024 else f"{n} keys"


def _decode_panel(axis: Any, rows: list[Row], result: dict[str, Any]) -> None:
    """Lines over the batch, for one and for two queries a request, of the rows that differ in nothing else."""
    rows = [row for row in rows if (row["format"], row["topk"]) == (rows[0]["format"], rows[0]["topk"])]
    for s_q, style in ((1, "o-"), (2, "s--")):
        line = sorted((row for row in rows if row["s_q"] == s_q), key=lambda row: row["batch"])
        paired = [row for row in line if row["ratio"]]
        if paired:
            theirs = [row["tflops"] / row["ratio"] for row in paired]
            label = f"{' '.join(result['peers'])}, s_q {s_q}"
            axis.plot([row["batch"] for row in paired], theirs, style, color=PEER, label=label)
        if line:
            ours = [row["tflops"] for row in line]
            axis.plot([row["batch"] for row in line], ours, style, color=OURS, label=f"dsa_ext, s_q {s_q}")
        for row in paired if s_q == 1 else []:
            at = (row["batch"], row["tflops"])
            axis.annotate(
                f"{row['ratio']:.2f}×", at, xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
            )
    if result["copy_tb_s"]:  # as if the keys' bytes came at that rate and nothing else took time
        bound = result["copy_tb_s"] * rows[0]["flop"] / rows[0]["key_bytes"]
        if bound < 2 * (result["matmul_tflops"] or bound):
            axis.axhline(bound, color=LINE, linewidth=1, linestyle=":", label="keys at the rate of a device copy")
    batches = sorted({row["batch"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(b) for b in batches], fontsize=8)
    axis.set_xlabel("requests", fontsize=8)


def _draw_step(pyplot: Any, result: dict[str, Any], path: Path) -> None:
    rows = [row for row in result["rows"] if not row["error"]]
    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    places = range(len(rows))
    for offset, key, label in ((-0.2, "ms", "dsa_ext"), (0.2, "peer_ms", "peers")):
        axes.bar([p + offset for p in places], [(row.get(key) or 0) * 1e3 for row in rows], 0.4, label=label)
    axes.set_xticks(list(places), [f"b {row['batch']}, {row['keys'] // 1024}K" for row in rows])
    axes.set_ylabel("µs a step")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_layer(pyplot: Any, result: dict[str, Any], path: Path) -> None:
    """A panel for each length of a prefill and for each batch of decoding, with the times by part as stacked bars: of
    ours, with the peers' kernels, and with dense attention."""
    rows = [row for row in result["rows"] if not row["error"]]
    forms = {
        "prefill": ("the last {chunk} tokens of a prompt", 1, "ms", lambda row: f"{row['context'] // 1024}K tokens"),
        "decode": ("a token of each of b requests of {context} tokens", 1e3, "µs", lambda row: f"b {row['batch']}"),
    }
    figure = pyplot.figure(figsize=(13, 7), layout="constrained")
    for part, (form, (title, factor, unit, label)) in zip(figure.subfigures(2, 1), forms.items(), strict=True):
        some = [row for row in rows if row["form"] == form]
        if not some:
            continue
        part.suptitle(f"{form}: {title.format(**some[0])}", x=0.01, ha="left", fontsize=10)
        for i, (axis, row) in enumerate(zip(part.subplots(1, len(some), squeeze=False)[0], some, strict=True)):
            _stacks(axis, row, factor)
            axis.set_title(label(row), fontsize=9)
            if i == 0:
                axis.set_ylabel(unit)
    shown = [pyplot.Rectangle((0, 0), 1, 1, color=color) for _, color in PARTS.values()]
    run, place = result["run"], {"loc": "outside upper right", "ncols": len(PARTS)}
    figure.legend(shown, [label for label, _ in PARTS.values()], **place, frameon=False, fontsize=9)
    title = f"An attention layer of DeepSeek-V3.2, {run['gpu'] or 'CPU'}, commit {run['commit']}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_hf(pyplot: Any, result: dict[str, Any], path: Path) -> None:
    """A row of panels for each model: time a token, time of the prompt, memory beyond the weights."""
    panels = [("ms", 1.0, "ms a token"), ("prefill_ms", 1e-3, "s for the prompt"), ("peak_bytes", 2.0**-30, "peak GiB")]
    rows = [row for row in result["rows"] if not row["error"]]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure, axes = pyplot.subplots(len(kinds), 3, figsize=(11, 2.9 * len(kinds)), squeeze=False, layout="constrained")
    for line, kind in zip(axes, kinds, strict=True):
        for axis, (key, factor, label) in zip(line, panels, strict=True):
            for way, color in (("ours", OURS), ("sdpa", PEER), ("eager", LINE)):
                timed = [row for row in rows if row["kind"] == kind and way in row]
                values = [row[way][key] * factor for row in timed]
                axis.plot([row["context"] for row in timed], values, marker="o", color=color, label=way)
            axis.set(xscale="log", yscale="log", xlabel=f"{kind}: tokens", ylabel=label)
    axes[0, 0].legend(frameon=False, fontsize=8)
    run = result["run"]
    figure.suptitle(f"transformers, {rows[0]['layers']} layers, {run['gpu'] or 'CPU'}, commit {run['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _stacks(axis: Any, row: Row, factor: float) -> None:
    """Dense attention's bar is cut where it is so high that the others' parts could not be told apart."""
    sides = {"dsa_ext": "", "peers": "peer_", "dense": "dense_"}
    parts = {label: row.get(f"{key}parts_ms") or {} for label, key in sides.items()}
    total = {label: sum(times.values()) * factor for label, times in parts.items()}
    top = 1.1 * min(max(total.values()), 2.5 * max(total["dsa_ext"], total["peers"]))
    for x, times in enumerate(parts.values()):
        bottom = 0.0
        for name, ms in times.items():
            axis.bar(x, ms * factor, 0.75, bottom, color=PARTS[name][1])
            bottom += ms * factor
        text = f"{bottom:.{0 if bottom >= 100 else 1}f}" if times else "–"
        if bottom > top:
            axis.annotate(f"{text} → ", (x, top), ha="center", va="top", fontsize=8, rotation=90, color="white")
        else:
            axis.annotate(text, (x, bottom), ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(sides)), list(sides), fontsize=8, rotation=30)
    axis.set(xlim=(-0.6, len(sides) - 0.4), ylim=(0, top))
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    if sys.argv[1:]:
        stored = [tuple(map(Path, sys.argv[1:3]))]
    else:
        folder = Path(__file__).resolve().parent / "results"
        stored = [(path, path.with_suffix(".png")) for path in sorted(folder.glob("*.json"))]
    for source, image in stored:
        draw(json.loads(source.read_text()), image)
