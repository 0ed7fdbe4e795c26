"""What a call of cell.step(x, state, out=state) costs beside its arithmetic."""

from __future__ import annotations

import timeit

import numpy as np

import rnn_core as rc
from benchmarks.peers.score import Bar

NUMBER = 2000  # calls that are timed as one


def seconds_of_step(cell: str, hidden: int) -> float:
    """One step at batch 1, the best of many."""
    made = getattr(rc, cell)(hidden, hidden)
    x, h = np.zeros((1, hidden), np.float32), np.zeros((1, hidden), np.float32)
    state = (h, h.copy()) if cell == "LSTMCell" else h
    step = made.step
    return min(timeit.repeat(lambda: step(x, state, out=state), number=NUMBER, repeat=50)) / NUMBER


def check():
    """At H = 1 the arithmetic is one vector: what is left is the call."""
    rc.set_num_threads(1)
    for cell in ("LSTMCell", "GRUCell", "RNNCell"):
        yield Bar(f"overhead: {cell}.step at H = 1, us", seconds_of_step(cell, 1) * 1e6, 1.0, at_most=True)
