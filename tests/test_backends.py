"""Every instruction set and both GEMM backends against the reference, each in a process of its own."""

import pytest
from cases import ISAS_HERE, run_python

WORKER = """
import test_recurrent_backward, test_recurrent_forward
from cases import KINDS, Case
for kind in KINDS:
    cases = [Case.random(kind, 400 + seed) for seed in range(25)]
    cases += [Case.random(kind, H, hidden_size=H, num_layers=1, T=3) for H in (64, 150)]
    for case in cases:
        test_recurrent_forward.check(case)
        test_recurrent_backward.check(case)
from rnn_core import _runtime
print(_runtime.isa())
"""


@pytest.mark.parametrize("isa", ISAS_HERE)
def test_instruction_sets(isa):
    assert run_python(WORKER, env={"RNN_CORE_ISA": isa}).strip() == isa


@pytest.mark.parametrize("backend", ["panel", "blas"])
def test_gemm(backend):
    run_python(WORKER, env={"RNN_CORE_GEMM": backend})
