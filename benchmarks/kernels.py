"""The kernels alone, one call at a time on one core: `python -m benchmarks.kernels [REGEX]`.

Prints microseconds, GFLOP/s and share of the limit (FMA peak, or reading the weights from their cache);
test_kernels.py runs the same cases.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from . import limits

ROOT = Path(__file__).parents[1]
KINDS = ("step", "step_back", "gemm", "outer", "activate", "pack")
CELLS = {"RNN": 0, "LSTM": 2, "GRU": 3}  # enum rc_cell
FUNCTIONS = ("exp", "sigmoid", "tanh")


@dataclass(frozen=True)
class Case:
    """selector: cell of a step or step_back, gates of a gemm or pack, function of an activate."""

    kind: str
    selector: int
    rows: int
    k: int
    units: int
    flops: float  # of one call; 0 where counting them makes no sense
    weights: int = 0  # bytes that every call reads again

    @property
    def name(self) -> str:
        if self.kind == "activate":
            return f"{FUNCTIONS[self.selector]} {self.units}"
        if self.kind == "outer":
            return f"outer {self.units}x{self.k} += {self.rows} rows"
        if self.kind == "gemm":
            return f"gemm {self.rows}x{self.k} by {self.selector} gates of {self.units}"
        if self.kind == "pack":
            return f"pack {self.selector} gates of {self.units} by {self.k}"
        cell = next(cell for cell, number in CELLS.items() if number == self.selector)
        return f"{self.kind} {cell} B {self.rows} H {self.units}"


def _cases():
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}
    for cell, number in CELLS.items():
        for B, H in [
            (1, 32),
            (1, 64),
            (1, 128),
            (1, 256),
            (1, 512),
            (8, 256),
            (16, 64),
            (32, 128),
            (32, 256),
            (64, 512),
        ]:
            yield Case("step", number, B, H, H, 2.0 * B * gates[cell] * H * H, 4 * gates[cell] * H * H)
        yield Case("step_back", number, 32, 256, 256, 0)
    for rows, k, units in [(100, 64, 64), (100, 256, 256), (320, 256, 256), (640, 512, 512), (100, 100, 100)]:
        for count in (1, 3, 4):
            yield Case("gemm", count, rows, k, units, 2.0 * rows * k * units * count)
    for rows, k, units in [(1024, 64, 256), (2048, 128, 512), (2048, 256, 1024), (6400, 512, 2048), (700, 200, 800)]:
        yield Case("outer", 0, rows, k, units, 2.0 * rows * k * units)
    for number in range(len(FUNCTIONS)):
        yield Case("activate", number, 1, 1, 4096, 0)
    yield Case("pack", 4, 1, 256, 256, 0)


CASES = {case.name: case for case in _cases()}


def library(isa: str | None = None) -> ctypes.CDLL:
    """The kernels of one instruction set with kernels.c, built with setup.py's own flags when out of date."""
    isa = isa or limits.default_isa()
    sys.path.insert(0, str(ROOT))
    from setup import c_flags

    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    kernels, driver = ROOT / "src" / f"kernels_{isa}.c", Path(__file__).with_suffix(".c")
    made = folder / f"kernels_{isa}.so"
    newest = max(path.stat().st_mtime for path in [driver, kernels, *ROOT.glob("src/*.h")])
    if not made.exists() or made.stat().st_mtime < newest:
        source = kernels.relative_to(ROOT)
        flags = [
            *c_flags(str(source)),
            "-fvisibility=default",
            "-fPIC",
            "-shared",
            f"-DKERNELS=rc_kernels_{isa}",
            "-Isrc",
        ]
        command = [*limits.compiler(), *flags, str(source), str(driver), "-o", str(made), "-lm"]
        subprocess.run(command, cwd=ROOT, check=True)
    found = ctypes.CDLL(str(made))
    ctypes.c_ssize_t.in_dll(found, "rc_l1_bytes").value = limits.cache_sizes()[0]
    found.bench_make.restype = ctypes.c_void_p
    found.bench_make.argtypes = [ctypes.c_int, ctypes.c_int, *[ctypes.c_ssize_t] * 3]
    found.bench_run.argtypes = [ctypes.c_void_p, ctypes.c_int]
    found.bench_free.argtypes = [ctypes.c_void_p]
    return found


class Job:
    """One case with its data; run(repeats) calls the kernel."""

    def __init__(self, case: Case, built: ctypes.CDLL):
        self._library = built
        self._job = built.bench_make(KINDS.index(case.kind), case.selector, case.rows, case.k, case.units)
        if not self._job:
            raise MemoryError(case.name)

    def run(self, repeats: int = 1) -> None:
        self._library.bench_run(self._job, repeats)

    def seconds(self, budget: float = 0.2) -> float:
        """Of one call, the best of as many runs as the budget allows."""
        begin = time.perf_counter()
        self.run(3)
        repeats = max(1, int(2e-4 / max((time.perf_counter() - begin) / 3, 1e-9)))  # runs of some 200 us
        best, end = float("inf"), time.perf_counter() + budget
        while time.perf_counter() < end:
            begin = time.perf_counter()
            self.run(repeats)
            best = min(best, (time.perf_counter() - begin) / repeats)
        return best

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_) -> None:
        self._library.bench_free(self._job)


def main() -> None:
    built = library()
    found = limits.measure(1)
    print(f"{found.isa}, FMA peak {found.peak / 1e9:.1f} GFLOP/s")
    for name, case in CASES.items():
        if re.search(sys.argv[1] if len(sys.argv) > 1 else "", name):
            with Job(case, built) as job:
                seconds = job.seconds()
            limit = max(case.flops / found.peak, case.weights / found.bandwidth(case.weights))
            rate = f"{case.flops / seconds / 1e9:8.1f} GFLOP/s {100 * limit / seconds:6.1f} %"
            print(f"{name:<36} {seconds * 1e6:10.2f} us {rate if case.flops else ''}")


if __name__ == "__main__":
    main()
