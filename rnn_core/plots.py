"""Pictures of training, as PNG files. The only place that knows matplotlib, which the extra `[plot]` installs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLUE, ORANGE, GREY = "#2a6fbb", "#d9622b", "#8a8a8a"


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def loss_curves(path: str | os.PathLike[str], rows: Sequence[Mapping[str, float]], title: str = "") -> None:
    """Draw training and validation loss over the characters read, from the rows of a training log."""
    figure, axes = _figure(title)
    _losses(axes, rows, np.array([row["characters"] for row in rows]) / 1e6)
    axes.set_xlabel("characters read (millions)")
    axes.set_ylabel("loss (nats a character)")
    bits = axes.secondary_yaxis("right", functions=(lambda nats: nats / math.log(2), lambda b: b * math.log(2)))
    bits.set_ylabel("bits a character")
    _finish(figure, axes, path)


def token_losses(path: str | os.PathLike[str], rows: Sequence[Mapping[str, float]], title: str = "") -> None:
    """The same for sequence-to-sequence training, over optimiser steps."""
    figure, axes = _figure(title)
    _losses(axes, rows, np.array([row["step"] for row in rows]))
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("loss (nats a token)")
    _finish(figure, axes, path)


def _losses(axes: Any, rows: Sequence[Mapping[str, float]], seen: NDArray[Any]) -> None:
    training = np.array([row["training_loss"] for row in rows])
    validation = np.array([row["validation_loss"] for row in rows])
    known = ~np.isnan(training)
    axes.plot(seen[known], training[known], color=BLUE, alpha=0.35, linewidth=0.8)
    axes.plot(seen[known], _smooth(training[known]), color=BLUE, label="training")
    known = ~np.isnan(validation)
    if known.any():
        best = float(np.nanmin(validation))
        label = f"validation (best {best:.4f})"
        axes.plot(seen[known], validation[known], color=ORANGE, marker="o", markersize=3.5, label=label)
        axes.axhline(best, color=ORANGE, linewidth=0.7, linestyle=":")


def attention(
    path: str | os.PathLike[str], weights: NDArray[Any], source: Sequence[str], target: Sequence[str]
) -> None:
    """Draw attention (target tokens, source tokens): which source token each target token looked at."""
    figure, axes = _figure("")
    axes.grid(False)
    axes.imshow(np.asarray(weights), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(source)), source, rotation=0 if max(map(len, source), default=0) < 4 else 60)
    axes.set_yticks(range(len(target)), target)
    axes.xaxis.tick_top()
    axes.set_xlabel("source")
    axes.set_ylabel("target")
    _finish(figure, axes, path)


def gradient_flow(path: str | os.PathLike[str], flows: Mapping[str, NDArray[Any]], title: str = "") -> None:
    """Draw the norms of dL/dh (L, T) over the steps back in time, one line a layer.

    flows: by what they show ("start", "end"); all but the last are dashed.
    """
    figure, axes = _figure(title)
    colours = [BLUE, ORANGE, "#3a9a5b", "#8e5bb5", "#b8a02e", "#4ab0b8"]
    for number, (name, norms) in enumerate(flows.items()):
        style = {"linewidth": 1.6} if number == len(flows) - 1 else {"linewidth": 1.1, "linestyle": "--", "alpha": 0.7}
        for layer, row in enumerate(np.asarray(norms)):
            shown = np.where(row > 0, row, np.nan)  # a dead gradient has no place on a logarithmic scale
            axes.plot(shown, color=colours[layer % len(colours)], label=f"layer {layer + 1}, {name}", **style)
    axes.set_yscale("log")
    axes.set_xlabel("steps back in time")
    axes.set_ylabel("norm of dL/dh, loss of the last step")
    _finish(figure, axes, path)


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure: Any, axes: Any, path: str | os.PathLike[str]) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    figure.savefig(path, format="png")


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean over about a fiftieth of the curve."""
    window = max(1, len(values) // 50)
    total = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window)
    return (total[ends] - total[begins]) / (ends - begins)
