"""One engine in a process of its own: reads one JSON request a line from stdin, answers one a line.

`python -m benchmarks.peers.worker ENGINE THREADS CPU,CPU` - started by client.py, never by hand.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import statistics
import sys
import time
import traceback

from .data import load, save, split
from .engine import Engine, Unsupported, Variant
from .rows import Row


def time_calls(call, inputs: int, seconds: float, clock=time.perf_counter_ns) -> list[int]:
    """Nanoseconds of each call, the inputs in turn, for `seconds` after a short warm-up; at least one call."""
    k, times = 0, []
    end = clock() + int(0.1e9 * seconds)
    while True:
        call(k)
        k = (k + 1) % inputs
        if clock() >= end:
            break
    end = clock() + int(1e9 * seconds)
    while True:
        begin = clock()
        call(k)
        done = clock()
        times.append(done - begin)
        k = (k + 1) % inputs
        if done >= end:
            return times


class Worker:
    """Answers the requests; holds the variants of the row at hand."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.variants: dict[str, Variant] = {}
        self.inputs = 1

    def hello(self) -> dict:
        return {"version": self.engine.version()}

    def prepare(self, row: dict, data: str, out: str) -> dict:
        """Build the row's variants, run each once, and save what it returns for every input under out."""
        self.drop()
        weights, inputs = split(load(data))
        asked = Row(**row)
        # A chain of single steps takes all inputs in one call.
        self.inputs = 1 if asked.kind == "step" else len(next(iter(inputs.values())))
        self.variants = self.engine.prepare(asked, weights, inputs)
        paths = {}
        with self.engine.context():
            for number, (name, variant) in enumerate(self.variants.items()):
                results = {}
                for k in range(self.inputs):
                    results |= {f"{k}.{key}": a for key, a in variant.read(variant.call(k)).items()}
                paths[name] = f"{out}.{number}.npz"
                save(paths[name], results)
        return {"outputs": paths, "families": {name: v.family for name, v in self.variants.items()}}

    def time(self, variant: str, seconds: float, cpu_time: bool) -> dict:
        """Best and median seconds of a unit; of the process's CPU time where asked."""
        found = self.variants[variant]
        clock = time.process_time_ns if cpu_time else time.perf_counter_ns
        gc.collect()
        gc.disable()
        try:
            with self.engine.context():
                times = time_calls(found.call, self.inputs, seconds, clock)
        finally:
            gc.enable()
        scale = 1e-9 / found.units
        return {"best": min(times) * scale, "median": statistics.median(times) * scale, "calls": len(times)}

    def drop(self) -> dict:
        self.variants = {}
        gc.collect()
        return {}


def _die_with_parent() -> None:
    """A worker that is stopped would outlive a parent that was killed."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not mix with the answers
    name, threads, cpus = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})  # before the engine looks at it
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if worker is None:
                worker = Worker(importlib.import_module(f"benchmarks.peers.engines.{name}").Engine(threads))
            answer = getattr(worker, request.pop("do"))(**request)
        except (Unsupported, ImportError) as error:
            answer = {"unsupported": str(error)}
        except Exception as error:  # reported to the parent, which decides
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
