"""No cliffs: a hidden size against the next multiple of 16, a batch against one sequence more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

import rnn_core as rc
from benchmarks.limits import plural
from benchmarks.peers.rows import GATES
from benchmarks.peers.score import Bar

from . import alternate

BOUND = 1.05
HIDDEN = (100, 200, 650, 1500)
BATCHES = (3, 5, 17)
WORK = 4e8  # operations of a call: some milliseconds


def _call(cell: str, B: int, I: int, H: int, T: int, train: bool):
    layer = getattr(rc, cell)(I, H, seed=0)
    x = np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)
    if not train:
        return lambda: layer(x)
    dy = np.ones((T, B, H), np.float32)

    def step():
        y, _, tape = layer.forward(x)
        layer.backward(tape, dy)

    return step


def _chain(cell: str, H: int):
    """Ten single steps at batch 1."""
    made = getattr(rc, cell + "Cell")(H, H, seed=0)
    x, h = (np.random.default_rng(0).standard_normal((1, H), dtype=np.float32) for _ in range(2))
    state = (h, h.copy()) if cell == "LSTM" else h

    def steps():
        for _ in range(10):
            made.step(x, state, out=state)

    return steps


def _chains(cell: str, odd: int, even: int) -> dict:
    return {"odd": _chain(cell, odd), "even": _chain(cell, even)}


def _pair(cell: str, odd: tuple, even: tuple, train: bool) -> float:
    """Time at `odd` over time at `even`, both (B, I, H)."""
    B, I, H = odd
    T = max(4, int(WORK / (2 * B * GATES[cell] * H * (I + H) * (3 if train else 1))))
    return _ratio(lambda: {"odd": _call(cell, *odd, T, train), "even": _call(cell, *even, T, train)})


def _ratio(make: Callable[[], dict]) -> float:
    """Best time of `odd` over that of `even`; while it is above the bound measured again with calls made anew, since
    the place of their weights in memory alone makes up to a fifth. Those before are kept, or the new ones would get
    their memory."""
    best = {"odd": float("inf"), "even": float("inf")}
    made = []
    for attempt in range(4):
        made.append(make())
        found = alternate(made[-1], 0.15 * (1 + attempt))
        best = {name: min(best[name], found[name]) for name in best}
        if best["odd"] <= BOUND * best["even"]:
            break
    return best["odd"] / best["even"]


def _pairs() -> Iterator[tuple[str, tuple, tuple]]:
    for H in HIDDEN:
        for B, I in [(1, H), (3, 75), (5, H), (17, 333)]:
            yield f"H = {H}, I = {I}, B = {B}", (B, I, H), (B, I, -(-H // 16) * 16)
    for H in (128, 200, 650):
        for B in BATCHES:
            yield f"B = {B}, H = {H}", (B, H, H), (B + 1, H, H)


def _line(what: str, found: dict[str, float]) -> Bar:
    """The worst of all pairs, and the names of the others above the bound."""
    name = max(found, key=found.__getitem__)
    over = [n for n, value in found.items() if value > BOUND and n != name]
    rest = "; also " + "; ".join(over) if over else ""
    return Bar(f"odd sizes: {what}, worst time against its neighbour", found[name], BOUND, True, f"at {name}{rest}")


def check(threads: tuple[int, ...] = (1, 2)):
    for count in threads:
        rc.set_num_threads(count)
        for train in (False, True):
            for cell in GATES:
                found = {name: _pair(cell, odd, even, train) for name, odd, even in _pairs()}
                what = "training" if train else "inference"
                yield _line(f"{cell} {what}, {plural(count)}", found)
    rc.set_num_threads(1)
    for cell in GATES:
        found = {f"H = {H}": _ratio(partial(_chains, cell, H, -(-H // 16) * 16)) for H in HIDDEN}
        yield _line(f"{cell}Cell.step", found)
