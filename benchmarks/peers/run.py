"""Runs the rows: the same data to every engine, outputs compared, then timed in turn, A B C A B C."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass

from . import compare, data
from .client import Client, EngineFailed, can_lower
from .rows import Row


@dataclass(frozen=True)
class Effort:
    """rounds: how often each engine gets its turn; up to `most`, until each one's best has been seen twice.

    seconds: the length of a turn.
    cpu_time: count CPU time instead, which others on a busy machine disturb less; for one thread only.
    """

    rounds: int
    most: int
    seconds: float
    cpu_time: bool = False


FULL = Effort(rounds=6, most=18, seconds=0.12)
QUICK = Effort(rounds=3, most=3, seconds=0.05)
AGREE = 1.02  # two rounds within so much have seen the same


def _is_settled(entry: dict) -> bool:
    """Whether an engine's best is no single moment's luck, nor all its turns a neighbour's."""
    best = sorted(entry["best"])
    return len(best) > 1 and best[1] <= AGREE * best[0]


class Team:
    """The engines at one thread count; an engine that cannot be started, or dies, is left out and named."""

    def __init__(self, names, threads: int, isa: str | None, stderr=None):
        self.threads = threads
        self.absent: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._clients: dict[str, Client] = {}
        self._stderr = stderr
        self._isa = isa
        for name in names:
            self._start(name)

    def _start(self, name: str) -> None:
        if not can_lower(name, self._isa):
            self.absent[name] = f"cannot be kept to {self._isa}"
            return
        client = Client(name, self.threads, self._isa, self._stderr)
        try:
            answer = client.ask("hello")
        except EngineFailed as error:
            answer = {"unsupported": str(error)}
        if "unsupported" in answer:
            client.close()
            self.absent[name] = answer["unsupported"]
        else:
            self._clients[name] = client
            self.versions[name] = answer["version"]

    def row(self, row: Row, effort: Effort, folder: str) -> dict:
        """Measure one row: the engines' figures by family, errors, and what kept an engine out."""
        arrays = data.make(row)
        path = os.path.join(folder, "row.npz")
        data.save(path, arrays)
        result = {"row": row.as_dict(), "name": row.name, "threads": self.threads, "engines": {}, "out": {}}
        if "lengths" in arrays:
            result["tokens"] = float(arrays["lengths"].sum(axis=1).mean())
        entries, outputs = self._prepare(row, path, folder, result["out"])
        result["errors"] = self._compare(row, arrays, outputs, entries, result["out"])
        self._keep_fastest(entries, effort, result["out"])
        for n in range(effort.most):
            for entry in entries:
                self._turn(entry, effort, result["out"])
            here = [entry for entry in entries if entry["engine"] not in result["out"]]
            if n + 1 >= effort.rounds and all(map(_is_settled, here)):
                break
        for entry in entries:
            if entry["best"] and entry["engine"] not in result["out"]:
                figures = {"best": min(entry["best"]), "median": statistics.median(entry["median"])}
                figures |= {"variant": entry["variant"], "calls": entry["calls"]}
                result["engines"].setdefault(entry["engine"], {})[entry["family"]] = figures
        for name in list(self._clients):
            self._ask(name, {}, "drop")
        return result

    def _ask(self, name: str, reasons: dict, do: str, /, **request) -> dict | None:
        """The answer, or None with the reason in `reasons`; an engine that died is started again."""
        try:
            answer = self._clients[name].ask(do, **request)
        except EngineFailed as error:
            reasons[name] = str(error)
            self._clients.pop(name).close()
            self._start(name)
            return None
        if "unsupported" in answer:
            reasons[name] = answer["unsupported"]
            return None
        return answer

    def _prepare(self, row, path, folder, out):
        """An entry for each engine's variant, and its outputs."""
        entries, outputs = [], []
        for name in list(self._clients):
            where = os.path.join(folder, f"out.{name}")
            answer = self._ask(name, out, "prepare", row=row.as_dict(), data=path, out=where)
            for variant, file in (answer or {"outputs": {}})["outputs"].items():
                entry = {"engine": name, "variant": variant, "family": answer["families"][variant]}
                entries.append(entry | {"best": [], "median": [], "calls": 0})
                outputs.append(data.load(file))
                os.unlink(file)
        return entries, outputs

    def _compare(self, row, arrays, outputs, entries, out) -> dict[str, float]:
        """The largest difference of each variant from rnn_core and from float64; the wrong ones leave the row."""
        errors = {}
        want, sequences = compare.exact(row, arrays)
        first = outputs[0] if entries and entries[0]["engine"] == "rnn_core" else None
        for entry, got in zip(list(entries), outputs):
            error = max(
                compare.difference(compare.cut(got, sequences), want), compare.difference(got, first) if first else 0.0
            )
            errors[f"{entry['engine']} {entry['variant']}"] = error
            if not error <= compare.tolerance(row):
                entries.remove(entry)
                out[f"{entry['engine']} {entry['variant']}"] = f"differs by {error:.2g} of the largest value"
        return errors

    def _keep_fastest(self, entries, effort, out) -> None:
        """Of each engine's variants of one family only the fastest goes on."""
        groups: dict[tuple, list] = {}
        for entry in entries:
            groups.setdefault((entry["engine"], entry["family"]), []).append(entry)
        for group in groups.values():
            if len(group) > 1:
                for entry in group:
                    self._turn(entry, effort, out)
                best = min(group, key=lambda entry: min(entry["best"], default=float("inf")))
                for entry in group:
                    if entry is not best:
                        entries.remove(entry)

    def _turn(self, entry, effort, out) -> None:
        if entry["engine"] in out:
            return
        request = {"variant": entry["variant"], "seconds": effort.seconds, "cpu_time": effort.cpu_time}
        answer = self._ask(entry["engine"], out, "time", **request)
        if answer:
            entry["best"].append(answer["best"])
            entry["median"].append(answer["median"])
            entry["calls"] += answer["calls"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self._clients.values():
            client.close()


def run(rows: list[Row], names, threads: int, isa: str | None, effort: Effort, show=print, stderr=None):
    """The results of all rows at one thread count; show(result) after each."""
    results = []
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast) as folder, Team(names, threads, isa, stderr) as team:
        for name, reason in team.absent.items():
            print(f"{name} left out: {reason}", file=sys.stderr)
        for row in rows:
            begin = time.monotonic()
            result = team.row(row, effort, folder)
            result["spent"] = time.monotonic() - begin
            results.append(result)
            show(result)
        return results, team.versions, team.absent
