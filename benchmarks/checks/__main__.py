"""python -m benchmarks.checks [NAME ...]: the checks by name, or all of them."""

from __future__ import annotations

import argparse
import importlib

NAMES = ("startup", "overhead", "threads", "memory", "odd_sizes")


def run(names=NAMES):
    """The lines of the named checks, printed as they come."""
    found = []
    for name in names:
        for bar in importlib.import_module(f"benchmarks.checks.{name}").check():
            print(bar, flush=True)
            found.append(bar)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"expected {', '.join(NAMES)}, got {', '.join(unknown)}")
    run(names or NAMES)


if __name__ == "__main__":
    main()
