"""Ragged batches cost what they hold: lengths from 0 to T against the full batch, in one process and in turn, so that
the clock of the machine is the same for both."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from benchmarks.limits import plural
from benchmarks.peers import data, rows
from benchmarks.peers.engines.rnn_core_engine import Engine
from benchmarks.peers.score import Bar

from . import alternate, fresh

FULL, SHORTER = "LSTM 64 32 256 train", "LSTM 64 32 256 ragged from 0"
BOUND = 0.58
SECONDS = 4.0


def _call(engine: Engine, name: str) -> Callable[[], object]:
    """A training step of the table's row, each time on its next input."""
    row = next(row for row in rows.table(True) if row.name == name)
    variants = engine.prepare(row, *data.split(data.make(row)))
    call, turns = variants.popitem()[1].call, itertools.cycle(range(data.INPUTS))
    return lambda: call(next(turns))


def in_fresh_process(threads: int) -> float:
    """Best time of the ragged batch over that of the full one."""
    engine = Engine(threads)
    best = alternate({name: _call(engine, name) for name in (FULL, SHORTER)}, SECONDS)
    return best[SHORTER] / best[FULL]


def check():
    for threads in (1, 2):
        text = f"{plural(threads)}, ragged: lengths from 0 to T, share of the full batch's time"
        yield Bar(text, fresh("ragged", threads), BOUND, at_most=True)
