"""Threads, and a report of what rnn_core runs on."""

from __future__ import annotations

import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rnn_core import __version__, _runtime, checks
from rnn_core.environment import MAX_THREADS


def set_num_threads(n: int) -> None:
    """Let one call use at most `n` threads, from 1 to 512; holds for calls that start later, in every Python thread.

    The number of threads never changes the bits of a float32 result. Raises TypeError or ValueError for another `n`.
    """
    n = checks.count("n", n)
    if n > MAX_THREADS:
        raise ValueError(f"n: expected at most {MAX_THREADS} threads, got {n}")
    _runtime.set_num_threads(n)


def get_num_threads() -> int:
    """The largest number of threads that one call uses.

    At first RNN_CORE_NUM_THREADS, else the cores that this process may use (CPU affinity, cgroup quota).
    """
    return _runtime.get_num_threads()


def show_config(mode: str = "stdout") -> dict[str, dict[str, Any]] | None:
    """Print, or return with mode="dicts", the instruction set, threads, BLAS and versions in use.

    Loads SciPy to ask it for its BLAS.
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f'mode: expected "stdout" or "dicts", got {mode!r}')
    report = {"cpu": _cpu(), "threads": _threads(), "blas": _blas(), "versions": _versions()}
    if mode == "dicts":
        return report
    for section, entries in report.items():
        print(f"{section}:")
        for name, value in entries.items():
            print(f"  {name}: {value}")
    return None


def _cpu() -> dict[str, Any]:
    l1, l2, l3 = _runtime.caches()
    return {
        "machine": platform.machine(),
        "instruction set": _runtime.isa(),
        "L1 data cache": _kibibytes(l1),
        "L2 cache": _kibibytes(l2),
        "L3 cache": _kibibytes(l3),
    }


def _kibibytes(size: int) -> str:
    return f"{size >> 10} KiB"


def _threads() -> dict[str, Any]:
    return {"threads": _runtime.get_num_threads(), "cores available": _runtime.cores()}


def _blas() -> dict[str, Any]:
    """Name and version of SciPy's BLAS, and the libraries that threadpoolctl sees loaded, if it is installed."""
    try:
        dependencies = import_module("scipy").show_config(mode="dicts")["Build Dependencies"]
    except (ImportError, KeyError, TypeError):
        return {"name": "unknown"}
    blas = dependencies.get("blas", {})
    found = {"name": blas.get("name", "unknown"), "version": blas.get("version", "unknown")}
    try:
        libraries = import_module("threadpoolctl").threadpool_info()
    except ImportError:
        return found
    for library in libraries:
        if library["user_api"] == "blas":
            found[library["prefix"]] = f"{library['version']}, {library['num_threads']} threads"
    return found


def _versions() -> dict[str, str]:
    versions = {"rnn_core": __version__, "python": sys.version.split()[0]}
    for package in ("numpy", "scipy", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
