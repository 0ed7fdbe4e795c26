"""Peak memory: inference over a long sequence, a training step against torch, recomputation.

Each figure is the high-water mark of a fresh process (VmHWM), less what it held before.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np

from benchmarks.peers import data, rows
from benchmarks.peers.score import Bar

from . import fresh

MB = 1e6
LONG = {"T": 100_000, "B": 1, "H": 256}
RECOMPUTE = {"T": 10_000, "B": 8, "H": 256}
TURNS = 3  # processes with and without it, one after the other: the best of each, since single ones differ by a tenth


def _status(field: str) -> int:
    """Bytes: VmRSS, what is resident now; VmHWM, the most since the last reset."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024


def _peak_of(call) -> tuple[int, object]:
    """Bytes that the process grew by at most during the call, and what it returned."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _status("VmRSS")
    result = call()
    return _status("VmHWM") - before, result


def _layer(T: int, B: int, H: int):
    import rnn_core as rc

    rc.set_num_threads(1)
    return rc.LSTM(H, H, seed=0), np.random.default_rng(0).standard_normal((T, B, H), dtype=np.float32)


def inference(T: int, B: int, H: int) -> dict:
    layer, x = _layer(T, B, H)
    peak, (y, state) = _peak_of(lambda: layer(x))
    return {"scratch": peak - y.nbytes}


def training(engine: str, row: dict) -> dict:
    """All that a training step holds at its peak beside x and dy: weights, outputs, tape, gradients, scratch."""
    from importlib import import_module

    made = import_module(f"benchmarks.peers.engines.{engine}_engine").Engine(1)

    def variant(T: int, B: int):
        asked = rows.Row(**{**row, "T": T, "B": B})
        weights, inputs = data.split(data.make(asked))
        return lambda: next(iter(made.prepare(asked, weights, {k: a[:1] for k, a in inputs.items()}).values()))

    variant(1, 1)().call(0)  # what the first step loads is not memory of the step
    prepare = variant(row["T"], row["B"])

    def steps():
        prepared = prepare()
        for _ in range(3):
            prepared.call(0)
        return prepared

    return {"peak": _peak_of(steps)[0]}


def recompute(again: bool, T: int, B: int, H: int) -> dict:
    """Peak beyond x, y, dy and dx, seconds, and a checksum of the gradients' bits."""
    layer, x = _layer(T, B, H)
    dy = np.ones((T, B, H), np.float32)

    def step():
        layer.zero_grad()
        begin = time.perf_counter()
        y, _, tape = layer.forward(x, recompute=again)
        dx, _ = layer.backward(tape, dy)
        return y, dx, time.perf_counter() - begin

    peak, (y, dx, seconds) = _peak_of(step)
    sums = [int(g.view(np.uint32).astype(np.uint64).sum()) for g in [*layer.grads.values(), dx]]
    return {"peak": peak - y.nbytes - dx.nbytes, "seconds": min(seconds, step()[2]), "sums": sums}


def in_fresh_process(kind: str, *arguments) -> dict:
    return {"inference": inference, "training": training, "recompute": recompute}[kind](*arguments)


def _recompute_lines():
    runs = [[fresh("memory", "recompute", flag, *RECOMPUTE.values()) for flag in (False, True)] for _ in range(TURNS)]
    kept, again = runs[0]
    best, best_again = (min(run[flag]["seconds"] for run in runs) for flag in (False, True))
    sizes = "T = {T:,}, B = {B}, H = {H}".format(**RECOMPUTE)
    yield Bar(
        f"memory: recomputation at {sizes}, times less",
        kept["peak"] / max(again["peak"], 1),
        20,
        detail=f"{kept['peak'] / MB:.0f} MB to {again['peak'] / MB:.0f} MB",
    )
    yield Bar("memory: recomputation, times the time", best_again / best, 1.4, at_most=True)
    yield Bar("memory: recomputation, the same gradients bit for bit", float(kept["sums"] == again["sums"]), 1.0)


def check():
    scratch = fresh("memory", "inference", *LONG.values())["scratch"]
    sizes = "LSTM, T = {T:,}, B = {B}, H = {H}".format(**LONG)
    yield Bar(f"memory: {sizes}, MB beyond input and output", scratch / MB, 16, at_most=True)
    for row in rows.table(True):
        if row.kind == "train" and row.name.startswith(("LSTM 64 32 256", "LSTM 100 64", "GRU 100", "RNN 64 32 256")):
            ours, torch = (fresh("memory", "training", name, row.as_dict())["peak"] for name in ("rnn_core", "torch"))
            yield Bar(
                f"memory: {row.name}, peak of a step as a share of torch's",
                ours / torch,
                1.0,
                at_most=True,
                detail=f"{ours / MB:.1f} MB to {torch / MB:.1f} MB",
            )
    yield from _recompute_lines()
