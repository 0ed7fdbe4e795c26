"""A conformance suite for ONNX's recurrent operators that any engine can run:

    python -m rnn_core.onnx.conformance your.backend --cases 600 --without layout

`your.backend` is a module or class of ONNX's backend convention (prepare(model, device).run(inputs)). cases.py draws
the nodes, reference.py computes them in float64, mutations.py proves that the suite notices faults.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cases import Case, case, cases
from .mutations import MUTATIONS, mutant
from .reference import run_node

__all__ = ["Case", "MUTATIONS", "case", "cases", "caught", "compare", "features", "mutant", "run_case", "run_node"]

RTOL, ATOL = 1e-4, 1e-5


def features(one: Case) -> set[str]:
    """What the case asks for beyond a plain node, by the names that --without takes."""
    lengths = one.inputs.get("sequence_lens")
    found: set[str] = {name for name in ("clip", "activations", "layout", "input_forget") if name in one.attributes}
    found.update(name for name in ("sequence_lens", "initial_h", "initial_c", "P") if name in one.inputs)
    if lengths is not None and (lengths == 0).any():
        found.add("zero_length")
    found.update({one.attributes.get("direction", "forward"), one.op})
    return found


def compare(
    expected: dict[str, np.ndarray], got: dict[str, np.ndarray], rtol: float = RTOL, atol: float = ATOL
) -> list[str]:
    """What differs, in words; empty when all outputs agree in shape and value."""
    faults = []
    for name, value in expected.items():
        found = np.asarray(got[name])
        if found.shape != value.shape:
            faults.append(f"{name}: expected shape {value.shape}, got {found.shape}")
        elif not np.allclose(found, value, rtol, atol):
            worst = float(np.abs(found - value).max())
            faults.append(f"{name}: differs by up to {worst:.2e}")
    return faults


def run_case(backend: Any, one: Case, rtol: float = RTOL, atol: float = ATOL) -> list[str]:
    """Run a case on a backend; returns what differs from the reference."""
    outputs = backend.prepare(one.model(), "CPU").run(list(one.fed().values()))
    return compare(one.expected(), dict(zip(one.outputs, outputs)), rtol, atol)


def caught(old: str, new: str, suite: list[Case]) -> bool:
    """Whether an engine with this fault (one of MUTATIONS) fails the suite."""
    engine = mutant(old, new)
    return any(_fails(engine, one) for one in suite)


def _fails(engine: Any, one: Case) -> bool:
    try:
        with np.errstate(all="ignore"):
            found = one.expected(engine)
    except (ValueError, TypeError):  # a mutant that cannot run the case fails it
        return True
    return bool(compare(one.expected(), found))
