"""What the CPU can run, and what it is told to (src/cpu.c, src/dispatch.c)."""

import os
import platform
import subprocess
import sys

import pytest

from rnn_core import _runtime
from rnn_core.environment import ISAS


def cpu_flags():
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.split() for line in file if line.startswith("flags")]
    except OSError:
        lines = []
    return set(lines[0]) if lines else set()


def imported_isa(wanted):
    """Output and errors of a fresh process that prints the instruction set it has chosen."""
    code = "import rnn_core; print(rnn_core._runtime.isa())"
    environ = {**os.environ, "RNN_CORE_ISA": wanted}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    return done.stdout.strip(), done.stderr


def best_isa():
    return imported_isa("")[0]


@pytest.mark.skipif(not cpu_flags() or platform.machine() != "x86_64", reason="needs Linux on x86-64")
def test_the_best_is_what_linux_says_that_it_can_run():
    flags = cpu_flags()
    best = "generic"
    if {"avx2", "fma"} <= flags:
        best = "avx2"
        if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
            best = "avx512"
    assert best_isa() == best


@pytest.mark.parametrize("wanted", ISAS)
def test_the_environment_may_lower_it(wanted):
    found, errors = imported_isa(wanted)
    best = best_isa()
    if ISAS.index(wanted) <= ISAS.index(best):
        assert found == wanted
    else:
        assert not found and f"this machine has no {wanted}, at most {best}" in errors


@pytest.mark.parametrize("wanted", ["AVX2", "sse", " avx2", "avx2,avx512", "0"])
def test_an_unknown_name_stops_the_import(wanted):
    found, errors = imported_isa(wanted)
    assert not found
    assert f"ValueError: RNN_CORE_ISA: expected one of generic, avx2, avx512, got {wanted!r}" in errors


def test_caches_are_plausible():
    l1, l2, l3 = _runtime.caches()
    assert 4 << 10 <= l1 <= l2 <= l3 <= 4 << 30
    assert l1 <= 1 << 20
