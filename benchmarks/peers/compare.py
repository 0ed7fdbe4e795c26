"""The outputs of every engine, element by element, before anything is timed."""

from __future__ import annotations

import numpy as np

from tests import reference

from .data import split
from .engine import Arrays
from .rows import Row

TOLERANCE = {"forward": 2e-4, "backward": 2e-3}  # of the largest value of each array, since peers approximate tanh


def difference(got: Arrays, want: Arrays) -> float:
    """The largest |got - want| of all arrays that both have, each relative to the largest |want| of its array."""
    worst = 0.0
    for key in want.keys() & got.keys():
        if got[key].shape != want[key].shape:
            raise ValueError(f"{key}: expected shape {want[key].shape}, got {got[key].shape}")
        error = np.max(np.abs(got[key].astype(np.float64) - want[key]), initial=0.0)
        worst = max(worst, float(error / max(np.max(np.abs(want[key])), 1e-30)) if np.isfinite(error) else np.inf)
    return worst


def tolerance(row: Row) -> float:
    return TOLERANCE["backward" if row.trains else "forward"]


def exact(row: Row, arrays: Arrays) -> tuple[Arrays, list[int]]:
    """The plain float64 reference on input 0, for the first and the last sequence of the batch (they are independent).

    Returns its arrays as the engines save them, batch axis cut down, and which sequences these are; nothing for
    a charlm row.
    """
    weights, inputs = split(arrays)
    if row.kind == "charlm":
        return {}, []
    rows = sorted({0, row.B - 1})
    chain = row.kind == "step"
    x = inputs["x"][:, 0] if chain else inputs["x"][0]
    state = tuple(inputs[key][0][:, rows] for key in ("h0", "c0") if key in inputs)
    lengths = inputs["lengths"][0][rows] if "lengths" in inputs else None
    cell = getattr(reference, row.cell)()
    y, final, tape = reference.forward(cell, weights, x[:, rows], state, lengths)
    if row.trains:
        return {"0.dx": reference.backward(tape, inputs["dy"][0][:, rows])[0]}, rows
    found = {f"0.{name}": s for name, s in zip(("h", "c"), final)}
    return found | ({} if chain else {"0.y": y}), rows


def cut(outputs: Arrays, sequences: list[int]) -> Arrays:
    """Only these sequences of y, dx, h and c, whose batch axis is 1."""
    return {key: a[:, sequences] for key, a in outputs.items() if key.split(".")[1] in ("y", "dx", "h", "c")}
