"""What an engine of the comparison gives: see engines/ for one file each, and worker.py for who calls it.

An engine's module has one class `Engine`, whose constructor takes the number of threads and raises ImportError
where the library is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .rows import Row

Arrays = dict[str, np.ndarray]


class Unsupported(Exception):
    """This engine has no such row."""


@dataclass
class Variant:
    """One way of running a row.

    call(k) runs input k, everything included that a user pays for, and returns when the results can be read;
    read(result) turns what it returned into canonical arrays (see data.py), outside the clock.
    units: how many units of the row one call runs. family: variants of one family compete, the fastest is kept.
    """

    call: Callable[[int], object]
    read: Callable[[object], Arrays]
    units: int = 1
    family: str = ""


class Engine:
    """The base: keeps the thread count, and builds the variants of a row by its kind."""

    name = ""

    def __init__(self, threads: int):
        self.threads = threads

    def version(self) -> str:
        raise NotImplementedError

    def context(self) -> contextlib.AbstractContextManager:
        """Held while the calls of a row are timed."""
        return contextlib.nullcontext()

    def prepare(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        """The variants by name; Unsupported where this engine takes no part in the row."""
        build = getattr(self, row.kind, None)
        if build is None:
            raise Unsupported(f"{self.name} takes no part in {row.kind} rows")
        return build(row, weights, inputs)
