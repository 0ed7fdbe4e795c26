"""python -m benchmarks.peers: rnn_core and its peers side by side, one process an engine."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import limits
from benchmarks.checks import __main__ as checks

from . import client, report, rows, run, score

DEFAULT_OUT = "build/bench/peers"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a subset of the rows, in at most 2 minutes")
    parser.add_argument("--train", action="store_true", help="the training rows in place of the inference rows")
    parser.add_argument("--all", action="store_true", help="inference and training rows")
    parser.add_argument("--rows", metavar="REGEX", help="only the rows whose name matches, e.g. '^GRU.* 256'")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default: 1 2)")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time: on a busy machine, with --threads 1")
    parser.add_argument("--isa", choices=["avx2"], help="keep rnn_core and those peers that can be to AVX2")
    parser.add_argument("--engines", nargs="+", choices=client.ENGINES, default=list(client.ENGINES))
    parser.add_argument("--out", metavar="FILE", default=DEFAULT_OUT, help="FILE.json, .md, .png")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument("--verbose", action="store_true", help="let the engines write to the terminal")
    parser.add_argument("--checks", action="store_true", help="the checks of benchmarks.checks after the rows as well")
    parser.add_argument("--into", metavar="FILE.md", help="put the table between the marks of FILE.md")
    parser.add_argument("--render", metavar="JSON", help="print a saved run and write its table and picture again")
    args = parser.parse_args()
    if args.cpu_time and args.threads != [1]:
        parser.error("--cpu-time: expected --threads 1, since CPU time adds up over threads")
    return args


def _chosen(args) -> list[rows.Row]:
    found = rows.table(False) if args.all or not args.train else []
    found += rows.table(True) if args.all or args.train else []
    if args.quick:
        found = [row for row in found if row.quick]
    return [row for row in found if re.search(args.rows or "", row.name)]


def _machine() -> str:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    return f"{model.group(1) if model else platform.processor()}, {len(os.sched_getaffinity(0))} CPUs"


def _measure(args, chosen) -> dict:
    """Limits before and after the rows (the best of both counts), and all results."""
    isa = args.isa or limits.default_isa()
    data = {
        "machine": _machine(),
        "date": datetime.date.today().isoformat(),
        "isa": isa,
        "quick": args.quick,
        "cpu_time": args.cpu_time,
        "versions": {},
        "absent": {},
        "limits": {},
        "results": [],
    }
    effort = dataclasses.replace(run.QUICK if args.quick else run.FULL, cpu_time=args.cpu_time)
    for threads in args.threads:
        found = limits.measure(threads, isa)

        def show(result, found=found):
            one = score.score(result, found)
            print(report.line(one) if one else f"{result['name']}: rnn_core out; {result['engines']}", flush=True)
            for name, reason in result["out"].items():
                if "takes no part" not in reason:
                    print(f"    {name}: {reason}", flush=True)

        stderr = None if args.verbose else subprocess.DEVNULL
        results, versions, absent = run.run(chosen, args.engines, threads, args.isa, effort, show, stderr)
        data["limits"][str(threads)] = found.at_best(limits.measure(threads, isa)).as_dict()
        data["results"] += results
        data["versions"] |= versions
        data["absent"] |= absent
    return data


def main() -> int:
    args = _arguments()
    if args.render:
        import json

        data = json.loads(Path(args.render).read_text())
        print(report.markdown(data))
    else:
        chosen = _chosen(args)
        if args.list or not chosen:
            print("\n".join(row.name for row in chosen) or "no row matches")
            return 0 if chosen else 2
        data = _measure(args, chosen)
        print()
        for bar in report.verdicts(data):
            print(bar)
        if args.checks:
            data["checks"] = checks.run()
    out = str(Path(args.render).with_suffix("")) if args.render and args.out == DEFAULT_OUT else args.out
    print("written: " + ", ".join(report.save(data, out)))
    if args.into:
        report.into(data, Path(args.into), Path(out).with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
