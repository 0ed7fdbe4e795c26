"""What every training command needs around its loop: file names, a CSV log, progress, and a calm Ctrl-C."""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ENDING = ".safetensors"
LINE_SECONDS = 10.0  # between plain progress lines
BAR_SECONDS = 0.2  # between updates of the bar


@dataclass(frozen=True)
class RunFiles:
    """The files of a run called NAME, which may be given with the ending of one of its checkpoints."""

    name: str

    @classmethod
    def of(cls, name: str) -> RunFiles:
        for ending in (".last" + ENDING, ENDING):
            name = name.removesuffix(ending)
        if not os.path.basename(name):
            raise ValueError(f"out: expected the name of a file, got {name!r}")
        return cls(name)

    @property
    def best(self) -> Path:
        return Path(self.name + ENDING)

    @property
    def last(self) -> Path:
        return Path(self.name + ".last" + ENDING)

    def beside(self, ending: str) -> Path:
        return Path(self.name + ending)


def model_file(name: str) -> Path:
    """The checkpoint that a user means by `name`, whose ending may be left out."""
    if os.path.isfile(name) or name.endswith(ENDING):
        return Path(name)
    return Path(name + ENDING)


# ---- Ctrl-C -------------------------------------------------------------------------------------------------


class Interrupts:
    """True once SIGINT or SIGTERM has come; a second SIGINT raises KeyboardInterrupt as usual."""

    def __init__(self) -> None:
        self.came = 0

    def __bool__(self) -> bool:
        return self.came > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came += 1
        if self.came > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """While it is open, signals that end a program are noted, so that a loop can stop between two steps."""
    noted = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals elsewhere
        yield noted
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, noted._note) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


# ---- the log ------------------------------------------------------------------------------------------------


class Log:
    """Rows of numbers in a CSV file, readable at any moment; an unknown value is an empty field."""

    def __init__(self, path: Path, columns: Sequence[str], *, upto: int | None = None) -> None:
        """Start the file anew, or (`upto`) go on after its rows whose first column is at most `upto`."""
        self.path = path
        self.columns = tuple(columns)
        known = [] if upto is None else read_log(path)
        if known and tuple(known[0]) != self.columns:
            raise ValueError(f"{path}: expected the log of a training run, got the columns {', '.join(known[0])}")
        self.rows = [row for row in known if row[self.columns[0]] <= (upto or 0)]
        with open(path, "w", newline="") as file:
            csv.writer(file).writerow(self.columns)
        self._append(self.rows)

    def add(self, **row: float | None) -> None:
        values = [row.get(name) for name in self.columns]
        found = {name: math.nan if value is None else value for name, value in zip(self.columns, values)}
        self.rows.append(found)
        self._append([found])

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with open(self.path, "a", newline="") as file:
            csv.writer(file).writerows([[_field(row[name]) for name in self.columns] for row in rows])


def _field(value: float) -> str:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) and not value.is_integer() else f"{value:.0f}"


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a Log, NaN for empty fields; none where there is no file, and no row that a crash cut short."""
    if not path.exists():
        return []
    try:
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        return [{name: float(text or "nan") for name, text in row.items()} for row in rows]
    except (ValueError, TypeError, csv.Error) as fault:
        raise ValueError(f"{path}: expected the log of a training run ({fault})") from None


# ---- progress -----------------------------------------------------------------------------------------------


class Progress:
    """A live bar on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, total: float, start: float = 0.0) -> None:
        self.total = total
        self._bar: Any = None
        self._next = time.monotonic() + (0.0 if self._terminal() else LINE_SECONDS)
        self._began, self._start = time.monotonic(), start
        self._said = -math.inf
        if self._terminal():
            from tqdm import tqdm

            form = "{percentage:3.0f}% |{bar}| {desc} [{elapsed}<{remaining}]"
            self._bar = tqdm(total=total, initial=start, bar_format=form, dynamic_ncols=True, leave=False)

    @staticmethod
    def _terminal() -> bool:
        return sys.stderr.isatty() and sys.stdout.isatty()

    def due(self) -> bool:
        """Whether it is time for `show`; asked at every step, so it is cheap."""
        return time.monotonic() >= self._next

    def show(self, done: float, figures: str) -> None:
        """`figures` with how much is done and how much time is left."""
        now = time.monotonic()
        if self._bar is not None:
            self._next = now + BAR_SECONDS
            self._bar.n = min(done, self.total)
            self._bar.set_description_str(figures, refresh=True)
            return
        self._next = now + LINE_SECONDS
        left = (now - self._began) * (self.total - done) / max(done - self._start, 1e-9)
        self.say(f"{100 * done / self.total:5.1f} %  {figures}  {_clock(left)} left")

    def say(self, line: str, unless_after: float = 0.0) -> None:
        """A line of its own, above the bar; left out within `unless_after` seconds of the last one."""
        now = time.monotonic()
        if now - self._said < unless_after:
            return
        self._said = now
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    whole = int(min(max(seconds, 0.0), 359999.0))
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:02d}:{whole % 60:02d}"
