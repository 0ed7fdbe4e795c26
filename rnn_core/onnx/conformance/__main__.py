"""python -m rnn_core.onnx.conformance BACKEND: see --help."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

from . import ATOL, MUTATIONS, RTOL, cases, caught, features, run_case


def find(name: str) -> Any:
    """The module, or the attribute of a module, of that dotted name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        if not module:
            raise
        return getattr(importlib.import_module(module), attribute)


def main(argv: list[str] | None = None) -> int:
    """Run the suite on a backend of ONNX's convention, and print each case's differences and how many pass. Exit code:
    0 when all do (with --mutations: when every fault is noticed), 1 when not, 2 for bad options."""
    parser = argparse.ArgumentParser(prog="python -m rnn_core.onnx.conformance", description=main.__doc__)
    parser.add_argument("backend", nargs="?", help="dotted name of a module or class with prepare(model, device)")
    parser.add_argument("--cases", type=int, default=600, help="how many cases (default 600)")
    parser.add_argument("--without", default="", help="features to leave out, such as layout,zero_length,P")
    parser.add_argument("--rtol", type=float, default=RTOL)
    parser.add_argument("--atol", type=float, default=ATOL)
    parser.add_argument("--mutations", action="store_true", help="prove instead that the suite notices each fault")
    options = parser.parse_args(argv)
    suite = cases(options.cases)
    if options.mutations:
        missed = [what for what, old, new in MUTATIONS if not caught(old, new, suite)]
        print(f"{len(MUTATIONS) - len(missed)} of {len(MUTATIONS)} faults noticed", *missed, sep="\n  missed: ")
        return bool(missed)
    if options.backend is None:
        parser.error("which backend?")
    left_out = set(filter(None, options.without.split(",")))
    suite = [one for one in suite if not features(one) & left_out]
    backend, failed = find(options.backend), 0
    for one in suite:
        try:
            faults = run_case(backend, one, options.rtol, options.atol)
        except Exception as error:  # whatever an engine raises is its answer to this case
            faults = [f"{type(error).__name__}: {error}"]
        failed += bool(faults)
        for fault in faults:
            print(f"{one}: {fault}")
    print(f"{options.backend}: {len(suite) - failed} of {len(suite)} cases pass")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
