"""What the machine and the environment variables say: cores, threads, instruction set.

Read once, when rnn_core is imported; a bad value stops the import.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from math import ceil

ISAS = ("generic", "avx2", "avx512")
"""Instruction sets from the least to the most; each includes those before it."""

MAX_THREADS = 512


def choose_isa(best: str, environ: Mapping[str, str] = os.environ) -> str:
    """The instruction set to use on a machine whose best is `best`: that one, or what RNN_CORE_ISA lowers it to.

    Raises ValueError for an unknown name and RuntimeError for one that this machine lacks.
    """
    wanted = environ.get("RNN_CORE_ISA", "")
    if not wanted:
        return best
    if wanted not in ISAS:
        raise ValueError(f"RNN_CORE_ISA: expected one of {', '.join(ISAS)}, got {wanted!r}")
    if ISAS.index(wanted) > ISAS.index(best):
        raise RuntimeError(f"RNN_CORE_ISA={wanted}: this machine has no {wanted}, at most {best}")
    return wanted


def choose_threads(cores: int, environ: Mapping[str, str] = os.environ) -> int:
    """The number of threads to begin with: RNN_CORE_NUM_THREADS, else one a core. Raises ValueError for a bad value."""
    wanted = environ.get("RNN_CORE_NUM_THREADS", "")
    if not wanted:
        return min(cores, MAX_THREADS)
    try:
        threads = int(wanted)
    except ValueError:
        threads = 0
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"RNN_CORE_NUM_THREADS: expected an integer from 1 to {MAX_THREADS}, got {wanted!r}")
    return threads


def available_cores(root: str = "/") -> int:
    """Cores that this process may use: its CPU affinity, or less where a cgroup's quota gives less (rounded up)."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cgroup_quota(root)
    return max(1, cores if quota is None else min(cores, ceil(quota)))


def cgroup_quota(root: str = "/") -> float | None:
    """The smallest CPU quota, in cores, on this process's way up the cgroup tree (v1 or v2); None without one.

    `root` stands for the root of the file system.
    """
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: str) -> Iterator[str]:
    """The process's own CPU cgroup and its ancestors, as far as they can be seen.

    A container often sees its own cgroup mounted as the tree's root while /proc names the path outside of it: folders
    that do not exist are harmless, and the root itself is always among the ancestors.
    """
    for line in _read(root, "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mount = os.path.join(root, "sys/fs/cgroup")
        elif "cpu" in controllers.split(","):
            mount = os.path.join(root, "sys/fs/cgroup/cpu")
        else:
            continue
        steps = path.strip("/").split("/")
        for depth in range(len(steps), -1, -1):
            yield os.path.join(mount, *steps[:depth])


def _quota(folder: str) -> float | None:
    """The quota of one cgroup in cores: cpu.max "QUOTA PERIOD" (v2) or two files (v1); "max" and -1 mean no limit."""
    words = _read(folder, "cpu.max").split()
    if not words:
        words = [*_read(folder, "cpu.cfs_quota_us").split(), *_read(folder, "cpu.cfs_period_us").split()]
    try:
        quota, period = (float(word) for word in words)
    except ValueError:  # "max", or not two words
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
