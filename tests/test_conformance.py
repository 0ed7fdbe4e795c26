"""The conformance suite: our backend passes it, and each seeded fault fails it."""

import sys

import numpy as np
import pytest

from rnn_core.onnx import backend, conformance
from rnn_core.onnx.conformance.__main__ import main

SUITE = conformance.cases(600)


def test_every_case():
    failed = {str(case): faults for case in SUITE if (faults := conformance.run_case(backend, case))}
    assert not failed


def test_cases_cover_what_they_say():
    """Every feature, alone and often enough to matter, and every activation."""
    features = [conformance.features(case) for case in SUITE]
    for name in ("clip", "activations", "layout", "input_forget", "zero_length", "reverse", "bidirectional", "P"):
        assert sum(name in found for found in features) >= 20, name
    names = {name for case in SUITE for name in case.attributes.get("activations", [])}
    assert len(names) == 11


def test_cases_are_the_same_for_ever():
    case = conformance.case(7)
    np.testing.assert_array_equal(case.inputs["X"], conformance.case(7).inputs["X"])
    assert (case.op, case.inputs["X"].shape) == ("GRU", (2, 4, 4))


@pytest.mark.parametrize(("what", "old", "new"), conformance.MUTATIONS, ids=[m[0] for m in conformance.MUTATIONS])
def test_seeded_fault_is_noticed(what, old, new):
    assert conformance.caught(old, new, SUITE)


def test_mutations_are_edits_of_the_reference():
    assert len(conformance.MUTATIONS) >= 20
    with pytest.raises(ValueError, match="expected one"):
        conformance.mutant("no such text", "")


class Broken:
    """An engine that forgets the initial state and cannot do peepholes."""

    @staticmethod
    def prepare(model, device):
        if len(model.graph.node[0].input) > 7:
            raise RuntimeError("no peepholes")
        for role in (5, 6):
            if len(model.graph.node[0].input) > role:
                model.graph.node[0].input[role] = ""
        del model.graph.input[1:]
        return backend.prepare(model, device)


def test_command_line(capsys):
    assert main(["rnn_core.onnx.backend", "--cases", "30"]) == 0
    assert "30 of 30 cases pass" in capsys.readouterr().out
    sys.modules["broken_engine"] = type(sys)("broken_engine")
    sys.modules["broken_engine"].Broken = Broken
    assert main(["broken_engine.Broken", "--cases", "30", "--without", "layout"]) == 1
    out = capsys.readouterr().out
    assert "no peepholes" in out and "cases pass" in out
    assert main(["--mutations", "--cases", "300"]) in (0, 1)
