"""The table: on the terminal as it grows, as Markdown, as JSON and as a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.limits import Limits, plural

from .client import ENGINES
from .score import Bar, Score, bars, score

_MARK = "<!-- run -->"
_SHORT = {
    "rnn_core": "rnn_core",
    "torch": "torch",
    "onnxruntime": "ORT",
    "openvino": "OpenVINO",
    "jax": "JAX",
    "tensorflow": "TF",
}


def _us(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e6:.2f}" if seconds < 1e-4 else f"{seconds * 1e6:,.0f}"


def line(one: Score) -> str:
    """One row for the terminal."""
    peers = "  ".join(
        f"{_SHORT[name]} {_us(one.best[name])}" for name in ENGINES if name in one.best and name != "rnn_core"
    )
    ratio = f"{one.ratio:5.2f}x" if one.ratio else "      "
    return (
        f"{one.row.name:<36} {one.threads} thr {_us(one.ours):>10} us {one.rate / 1e9:7.1f} GFLOP/s "
        f"{ratio} {100 * one.share:5.1f} % of limit | {peers}"
    )


def markdown(data: dict) -> str:
    """Limits, rows and verdicts of a saved run."""
    scores, limits = scores_of(data)
    names = [name for name in ENGINES if any(name in s.best for s in scores)]
    times = [f"{_SHORT[name]} us" for name in names]
    head = ["row", "threads", *times, "GFLOP/s", "ratio to best peer", "share of limit"]
    lines = [_limits_text(data, limits), "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for s in scores:
        times = [_us(s.best.get(name)) for name in names]
        ratio = f"{s.ratio:.2f}" if s.ratio else ""
        cells = [s.row.name, str(s.threads), *times, f"{s.rate / 1e9:.1f}", ratio, f"{s.share:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "```", *[str(bar) for bar in verdicts(data)], *data.get("checks", []), "```", ""]
    return "\n".join(lines)


def _limits_text(data: dict, limits: dict[int, Limits]) -> str:
    parts = [
        f"{data['machine']}, {data['date']}{', CPU time' * data['cpu_time']}; "
        + ", ".join(f"{n} {v}" for n, v in data["versions"].items())
        + "."
    ]
    for threads, found in limits.items():
        rates = ", ".join(f"{level.name} {level.bandwidth / 1e9:.0f}" for level in found.levels)
        parts.append(
            f"{plural(threads)}, {found.isa}: FMA peak {found.peak / 1e9:.1f} GFLOP/s; read bandwidth in GB/s: {rates}."
        )
    return "  \n".join(parts)


def scores_of(data: dict) -> tuple[list[Score], dict[int, Limits]]:
    """What a saved run measured, scored again."""
    limits = {int(threads): Limits.from_dict(held) for threads, held in data["limits"].items()}
    scores = [score(result, limits[result["threads"]]) for result in data["results"]]
    return [s for s in scores if s], limits


def verdicts(data: dict) -> list[Bar]:
    scores, _ = scores_of(data)
    return bars(scores)


def save(data: dict, out: str) -> list[str]:
    """Write out.json, out.md and, where matplotlib is installed, out.png; the paths written."""
    base = Path(out).with_suffix("")
    base.parent.mkdir(parents=True, exist_ok=True)
    written = [base.with_suffix(".json"), base.with_suffix(".md")]
    written[0].write_text(json.dumps(data, indent=1) + "\n")
    written[1].write_text(markdown(data))
    try:
        import matplotlib
    except ImportError:
        return [str(path) for path in written]
    matplotlib.use("Agg")
    written.append(base.with_suffix(".png"))
    _picture(scores_of(data)[0], written[2])
    return [str(path) for path in written]


def into(data: dict, document: Path, picture: Path) -> None:
    """Put the picture and the table of a run between the two `<!-- run -->` marks of a Markdown document."""
    parts = document.read_text().split(_MARK)
    if len(parts) != 3:
        raise ValueError(f"{document}: expected two lines {_MARK!r}, got {len(parts) - 1}")
    link = os.path.relpath(picture, document.parent)
    shown = f"![ratio to the fastest peer, and share of the limit, row by row]({link})\n\n" if picture.exists() else ""
    document.write_text(f"{parts[0]}{_MARK}\n{shown}{markdown(data)}{_MARK}{parts[2]}")


def _picture(scores: list[Score], path: Path) -> None:
    """Ratio to the fastest peer and share of the limit, a bar for each row and thread count. The ratio's bars begin at
    1, on a logarithmic scale: to the right is faster."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    names = list(dict.fromkeys(s.row.name for s in scores))
    threads = sorted({s.threads for s in scores})
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(11, 1.5 + 0.26 * len(names)))
    for n, count in enumerate(threads):
        here = {s.row.name: s for s in scores if s.threads == count}
        rows = [k + 0.4 * (n - (len(threads) - 1) / 2) for k, name in enumerate(names) if name in here]
        shown = [here[name] for name in names if name in here]
        axes[0].barh(rows, [(s.ratio or 1) - 1 for s in shown], 0.38, left=1, label=plural(count))
        axes[1].barh(rows, [s.share for s in shown], 0.38, label=plural(count))
    ratios = [s.ratio for s in scores if s.ratio]
    axes[0].set(yticks=range(len(names)), ylim=(-0.7, len(names) - 0.3))
    axes[0].set(xlabel="times as fast as the fastest peer", xscale="log")
    axes[0].set(xlim=(min([0.9, *ratios]), max([1.5, *ratios]) * 1.1), axisbelow=True)
    axes[0].xaxis.set_major_locator(FixedLocator([0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50]))
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].grid(axis="x", linewidth=0.3)
    axes[0].set_yticklabels(names, fontsize=8)
    axes[0].axvline(1, color="black", linewidth=0.8)
    axes[0].invert_yaxis()
    if threads:
        axes[0].legend(loc="lower right")
    axes[1].set(xlabel="share of the limit", xlim=(0, 1.05))
    axes[1].axvline(1, color="black", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
