"""python -m benchmarks.checks [NAME ...]: the checks by name, or all of them."""

from __future__ import annotations

import argparse
import importlib
import traceback

NAMES = ("startup", "overhead", "threads", "memory", "ragged", "odd_sizes")


def run(names=NAMES) -> list[str]:
    """The lines of the named checks, printed as they come; one that raises is a failed line."""
    found: list[str] = []
    for name in names:
        try:
            for bar in importlib.import_module(f"benchmarks.checks.{name}").check():
                found.append(str(bar))
                print(bar, flush=True)
        except Exception as error:
            traceback.print_exc()
            found.append(f"FAIL  {name}: {type(error).__name__}: {error}".splitlines()[0])
            print(found[-1], flush=True)
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
