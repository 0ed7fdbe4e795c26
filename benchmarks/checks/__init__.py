"""What the table of peers does not show: odd sizes, memory, threads, start-up, the overhead of a call, what a ragged
batch costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fresh(module: str, *arguments) -> dict:
    """Run benchmarks.checks.MODULE's `in_fresh_process(*arguments)` in a process of its own; its JSON answer."""
    code = (
        "import json, sys; from importlib import import_module; "
        "print(json.dumps(import_module(sys.argv[1]).in_fresh_process(*json.loads(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, f"benchmarks.checks.{module}", json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def alternate(calls: dict, seconds: float) -> dict:
    """Best seconds of each of the named calls, taken in turn A B A B for `seconds` and at least 3 rounds."""
    best = dict.fromkeys(calls, float("inf"))
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < end:
        for name, call in calls.items():
            call()  # warm: the other one has just filled the caches
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begin)
        rounds += 1
    return best
