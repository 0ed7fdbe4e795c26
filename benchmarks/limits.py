"""FMA peak and read bandwidths of this machine, measured now, and the least time a run can take on it.

`python -m benchmarks.limits` prints the table. The probe is a small C file, compiled at first use.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ISAS = ("generic", "avx2", "avx512")
_SOURCE = Path(__file__).with_name("probe.c")


@dataclass
class Level:
    """One level of the memory hierarchy as `threads` cores see it together.

    bytes: what it holds; private levels count once a thread. bandwidth: bytes read a second by all threads.
    """

    name: str
    bytes: int
    bandwidth: float


@dataclass
class Limits:
    """What `threads` cores can do: peak in floating-point operations a second, levels from L1 to memory."""

    isa: str
    threads: int
    peak: float
    levels: list[Level]

    def bandwidth(self, size: int) -> float:
        """Bytes a second from the smallest level that holds `size` bytes."""
        return next((level.bandwidth for level in self.levels if size <= level.bytes), self.levels[-1].bandwidth)

    def at_best(self, other: Limits) -> Limits:
        """The higher of two measurements of the same thing, figure by figure."""
        levels = [Level(a.name, a.bytes, max(a.bandwidth, b.bandwidth)) for a, b in zip(self.levels, other.levels)]
        return Limits(self.isa, self.threads, max(self.peak, other.peak), levels)

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, held: dict) -> Limits:
        return cls(**{**held, "levels": [Level(**level) for level in held["levels"]]})


def default_isa() -> str:
    """The instruction set that RNN_CORE_ISA asks for, else the best that this CPU has."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = "avx512" if "avx512f" in flags else "avx2" if " avx2" in flags and " fma" in flags else "generic"
    asked = os.environ.get("RNN_CORE_ISA", found)
    if asked not in ISAS or ISAS.index(asked) > ISAS.index(found):
        raise ValueError(f"RNN_CORE_ISA: expected one of {ISAS[: ISAS.index(found) + 1]}, got {asked!r}")
    return asked


def compiler() -> list[str]:
    """The C compiler's command."""
    found = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(found[0]) is None:
        raise RuntimeError(f"expected a C compiler, and {found[0]!r} was not found (set CC)")
    return found


def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "probe.so")
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-shared", "-fPIC"]
        subprocess.run([*compiler(), *flags, str(_SOURCE), "-o", out], check=True)
        library = ctypes.CDLL(out)  # stays loaded after the file is gone
    library.probe_fma.restype = library.probe_read.restype = ctypes.c_double
    library.probe_fma.argtypes = [ctypes.c_int, ctypes.c_double]
    library.probe_read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_double]
    return library


def cache_sizes() -> list[int]:
    """Bytes of the data caches of one core, L1 first, as Linux tells them."""
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() != "Instruction":
            size = (index / "size").read_text().strip()
            sizes[int((index / "level").read_text())] = int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20}[size[-1]]
    return [sizes[level] for level in sorted(sizes)] or [32 << 10, 1 << 20, 16 << 20]


def plural(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def _together(threads: int, work) -> float:
    """Sum of work(rank) over `threads` threads that start at once, each on a CPU of its own."""
    cpus = pick_cpus(threads)
    results = [0.0] * threads
    gate = threading.Barrier(threads)

    def body(rank: int) -> None:
        os.sched_setaffinity(0, {cpus[rank]})  # of this thread alone
        gate.wait()
        results[rank] = work(rank)

    team = [threading.Thread(target=body, args=(rank,)) for rank in range(threads)]
    for member in team:
        member.start()
    for member in team:
        member.join()
    return sum(results)


def pick_cpus(threads: int) -> list[int]:
    """The CPUs that a run on `threads` threads is kept to: the last ones, since the first serves interrupts."""
    cpus = sorted(os.sched_getaffinity(0))
    if threads > len(cpus):
        raise ValueError(f"threads: expected at most {len(cpus)} on this machine, got {threads}")
    return cpus[len(cpus) - threads :]


def _aligned(size: int) -> np.ndarray:
    block = np.ones(size // 4 + 1024, np.float32)
    start = -block.ctypes.data % 4096 // 4
    return block[start : start + size // 4]


def _read_rate(threads: int, size: int, read) -> float:
    """Bytes a second of all threads, each reading `size` bytes of its own."""
    blocks = [_aligned(size) for _ in range(threads)]
    return _together(threads, lambda rank: read(blocks[rank].ctypes.data, size))


def measure(threads: int = 1, isa: str | None = None, seconds: float = 0.25) -> Limits:
    """Run the probe on `threads` cores at once; `seconds` for each of the five figures."""
    isa = isa or default_isa()
    probe, code = _library(), ISAS.index(isa)
    peak = _together(threads, lambda rank: probe.probe_fma(code, seconds))
    levels = []
    caches = cache_sizes()
    for depth, size in enumerate([*caches, 0]):
        private = depth < 2
        # Half a cache: the other half is what any real run keeps there. Memory: far beyond the last cache.
        span = size // 2 if private else min(size // 2, 8 << 20) // threads if size else 4 * caches[-1]
        rate = _read_rate(threads, span, lambda p, n: probe.probe_read(code, p, n, seconds))
        name = f"L{depth + 1}" if size else "memory"
        levels.append(Level(name, size * (threads if private else 1) if size else 1 << 62, rate))
    return Limits(isa, threads, peak, levels)


def places(count: int = 16, seconds: float = 0.05) -> list[float]:
    """Bytes a second that a core reads, again and again, of 13/16 of its L2, in each of `count` places of memory. On a
    virtual machine they differ: what is one large page to it may lie scattered in the host, and fill L2 unevenly."""
    probe, code, size = _library(), ISAS.index(default_isa()), cache_sizes()[1]
    memory = _aligned(count * size)
    rates = (probe.probe_read(code, memory.ctypes.data + i * size, size * 13 // 16, seconds) for i in range(count))
    return sorted(rates)


def main() -> None:
    for threads in range(1, len(os.sched_getaffinity(0)) + 1):
        found = measure(threads)
        print(f"{found.isa}, {plural(threads)}: FMA peak {found.peak / 1e9:.1f} GFLOP/s")
        for level in found.levels:
            held = f"{level.bytes / 1024:.0f} KiB" if level.bytes < 1 << 62 else ""
            print(f"  {level.name:<7}{held:>12}  {level.bandwidth / 1e9:7.1f} GB/s")
    rates = [f"{rate / 1e9:.0f}" for rate in places()]
    print(f"most of L2, read in {len(rates)} places: {' '.join(rates)} GB/s")


if __name__ == "__main__":
    main()
