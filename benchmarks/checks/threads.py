"""Threads: never more than were set, none awake after the last call, and Python threads side by side."""

from __future__ import annotations

import os
import threading
import time

import numpy as np

import rnn_core as rc
from benchmarks.peers.score import Bar


def _layer():
    layer = rc.LSTM(256, 256)
    x = np.random.default_rng(0).standard_normal((100, 8, 256), dtype=np.float32)
    layer(x)
    return lambda: layer(x)


def _run(call, seconds: float) -> tuple[int, float, float]:
    """Calls made, wall seconds and CPU seconds of the process, calling for `seconds`."""
    wall, cpu, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        call()
        calls += 1
    return calls, time.perf_counter() - wall, time.process_time() - cpu


def _busy_and_idle(threads: int):
    rc.set_num_threads(threads)
    call = _layer()
    _, wall, cpu = _run(call, 1.0)
    yield Bar(f"threads: {threads} set, CPU seconds a second", cpu / wall, threads * 1.02, at_most=True)
    time.sleep(0.1)
    begin = time.process_time()
    time.sleep(1.0)
    idle = time.process_time() - begin
    yield Bar(f"threads: {threads} set, CPU ms in the second after 100 ms of rest", idle * 1e3, 2.0, at_most=True)


def _side_by_side(count: int):
    """Throughput of `count` Python threads with a layer each and an engine of one thread, against one of them."""
    rc.set_num_threads(1)
    calls = [_layer() for _ in range(count)]
    alone, wall, _ = _run(calls[0], 1.0)
    alone = alone / wall
    done = [0.0] * count
    gate = threading.Barrier(count)

    def body(rank):
        gate.wait()
        made, wall, _ = _run(calls[rank], 2.0)
        done[rank] = made / wall

    team = [threading.Thread(target=body, args=(rank,)) for rank in range(count)]
    for member in team:
        member.start()
    for member in team:
        member.join()
    cores = min(count, len(os.sched_getaffinity(0)))
    yield Bar(f"threads: {count} Python threads against one, {cores} cores", sum(done) / alone, 0.9 * cores)


def check():
    for threads in (1, 2):
        yield from _busy_and_idle(threads)
    yield from _side_by_side(4)
