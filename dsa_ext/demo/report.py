"""What is printed, and drawn."""

from pathlib import Path
from typing import Any

from .measure import Result

AROUND = 10  # words shown before and after the planted sentence
OURS, OTHER, NEEDLE = "#1f6fb4", "#b8b8b8", "#d1495b"


def table(result: Result) -> str:
    text, total, topk = result.text, len(result.text.words), result.topk
    sentence = " ".join(text.words[i] for i in text.needle)
    lines = [
        f"{total} words of {text.source}",
        f'planted at {text.needle.start}: "{sentence}"; the text ends: "{" ".join(text.words[-6:])}"',
        "The weights are made by hand, not trained: the indexer scores equal wording and nearness "
        "(help(dsa_ext.demo.model)).",
        "",
        f"Picked for the last word, {topk} of {total} (by chance: {len(text.needle) * topk / total:.1f} of the planted "
        f"{len(text.needle)} words):",
    ]
    for number, picks in enumerate(result.picks, 1):
        found = result.needle_picks(picks)
        answer = "the answer among them" if text.answer in found else "the answer not among them"
        lines.append(f"  layer {number}: {len(found)} of the planted {len(text.needle)} words, {answer}")
    lines.append(f"  random weights: {result.random_needle}")
    lines += ["  layer 1, picked words in brackets:", f"    ... {_marked(result)} ...", ""]
    lines += [f"Sparse against dense attention, layer 1, the last {result.last} words:"]
    heads = ("topk", "of the text", "planted words", "weights covered", "error", "ms")
    rows = [
        (str(a.topk), f"{a.topk / total:.1%}", str(a.needle), f"{a.mass:.1%}", f"{a.error:.1e}", f"{a.ms:.1f}")
        for a in result.agreements
    ]
    rows.append(("dense", "100.0%", str(len(text.needle)), "100.0%", "", f"{result.dense_ms:.1f}"))
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        lines.append("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    lines.append(
        "weights covered: share of dense attention's weights on the picked tokens; error: of the layer's output, the "
        "norm of the\ndifference over dense attention's. Where topk takes every token, what is left is rounding."
    )
    return "\n".join(lines)


def _surroundings(result: Result) -> range:
    needle = result.text.needle
    return range(needle.start - AROUND, needle.stop + AROUND)


def _marked(result: Result) -> str:
    picked = set(result.picks[0][-1].tolist())
    words = result.text.words
    return " ".join(f"[{words[i]}]" if i in picked else words[i] for i in _surroundings(result))


def draw(result: Result, path: Path, where: str) -> None:
    """Needs matplotlib (ImportError)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplot_mosaic(
        [["words", "words"], ["picks", "weights"], ["error", "time"]],
        figsize=(12, 8.4),
        height_ratios=[0.2, 1.3, 1],
        layout="constrained",
    )
    _words(axes["words"], result)
    _picks(axes["picks"], result)
    _weights(axes["weights"], result)
    _error(axes["error"], result)
    _time(axes["time"], result, where)
    for name in ("picks", "weights", "error", "time"):
        axes[name].spines[["top", "right"]].set_visible(False)
        axes[name].tick_params(which="both", labelsize=8)
    figure.suptitle(
        f"DeepSeek Sparse Attention over {len(result.text.words)} words of {result.text.source}\n"
        "(weights made by hand, not trained: the indexer scores equal wording and nearness)",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _words(axis: Any, result: Result) -> None:
    """Those around the planted sentence, in a row each with as many as fit."""
    axis.axis("off")
    title = "The planted sentence (bold) and what is around it; blue: what the indexer picks for the last word"
    axis.set_title(title, loc="left", fontsize=10)
    picked, needle = set(result.picks[0][-1].tolist()), result.text.needle
    lines: list[list[int]] = [[]]
    for i in _surroundings(result):
        if sum(len(result.text.words[j]) + 2 for j in lines[-1]) > 135:
            lines.append([])
        lines[-1].append(i)
    for number, line in enumerate(lines):
        x = 0.0
        for i in line:
            word = result.text.words[i]
            axis.text(
                x,
                1 - (number + 0.6) / len(lines),
                word,
                transform=axis.transAxes,
                family="monospace",
                fontsize=9.5,
                color="white" if i in picked else NEEDLE if i in needle else "black",
                weight="bold" if i in needle else "normal",
                bbox={"facecolor": OURS if i in picked else "none", "edgecolor": "none", "pad": 2},
            )
            x += (len(word) + 1.5) * 0.0069


def _needle_band(axis: Any, result: Result) -> None:
    needle = result.text.needle
    axis.axvspan(needle.start - 12, needle.stop + 12, color=NEEDLE, alpha=0.25, linewidth=0)
    top = (needle.start, 1.0)
    axis.annotate(
        "planted sentence",
        top,
        xycoords=("data", "axes fraction"),
        xytext=(6, -10),
        textcoords="offset points",
        color=NEEDLE,
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85},
    )


def _picks(axis: Any, result: Result) -> None:
    picks, total = result.picks[0], len(result.text.words)
    rows = [total - result.last + i for i, row in enumerate(picks.tolist()) for t in row if t >= 0]
    axis.scatter([t for row in picks.tolist() for t in row if t >= 0], rows, s=1.2, color=OURS, linewidths=0)
    _needle_band(axis, result)
    axis.set(xlim=(0, total), ylim=(total, total - result.last))
    axis.set_xlabel("token that is picked", fontsize=9)
    axis.set_ylabel("token that picks", fontsize=9)
    axis.set_title(
        f"The indexer's choice, {result.topk} of {total}: the last {result.last} words", loc="left", fontsize=10
    )


def _weights(axis: Any, result: Result) -> None:
    """Of the last token."""
    picked = set(result.picks[0][-1].tolist())
    weights = result.weights.tolist()
    _needle_band(axis, result)
    for label, color, mine in (("not picked", OTHER, False), ("picked", OURS, True)):
        at = [i for i in range(len(weights)) if (i in picked) == mine]
        axis.scatter(at, [weights[i] for i in at], s=14 if mine else 4, color=color, linewidths=0, label=label)
    axis.set_yscale("log")
    axis.set(xlim=(0, len(weights) * 1.01), ylim=(max(min(weights), 1e-7), 2))
    axis.set_xlabel("token", fontsize=9)
    axis.set_title("Dense attention's weights for the last word, mean over heads", loc="left", fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="upper left", markerscale=1.5)


def _error(axis: Any, result: Result) -> None:
    topk = [a.topk for a in result.agreements]
    axis.plot(topk, [a.error for a in result.agreements], "o-", color=OURS, label="error of the output")
    not_covered = [(a.topk, 1 - a.mass) for a in result.agreements[:-1]]
    axis.plot(*zip(*not_covered, strict=True), "s--", color=OTHER, label="weights not covered")
    last = result.agreements[-1]
    note = f"every token: {last.error:.0e}"
    axis.annotate(note, (last.topk, last.error), (-48, 4), textcoords="offset points", ha="right", fontsize=8)
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xticks(topk, [str(k) for k in topk])
    axis.set_xlabel("topk", fontsize=9)
    axis.set_title("Sparse against dense attention", loc="left", fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="lower left")


def _time(axis: Any, result: Result, where: str) -> None:
    topk = [a.topk for a in result.agreements]
    axis.plot(topk, [a.ms for a in result.agreements], "o-", color=OURS, label="sparse, with the indexer")
    axis.axhline(result.dense_ms, color=OTHER, linestyle="--", label="dense")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(topk, [str(k) for k in topk])
    axis.set_xlabel("topk", fontsize=9)
    axis.set_ylabel("ms", fontsize=9)
    axis.set_title(f"Time of the layer on {result.last} tokens, {where}", loc="left", fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
