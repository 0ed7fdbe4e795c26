"""exp, sigmoid and tanh of the kernels: within 2 ULP of float64, exact at the ends, the same bits on every CPU."""

import numpy as np
import pytest
from cases import exact_bits, run_python, same

from rnn_core import _runtime, _testing

FUNCTIONS = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}
TINY = 2.0**-126  # the smallest normal float32


def every_exponent(stride=1499):
    """Floats of all exponents and both signs, the stride coprime to 2: NaN and infinities too."""
    return np.arange(0, 2**32, stride, dtype=np.uint64).astype(np.uint32).view(np.float32)


def where_results_move():
    """Dense where none of the three is constant."""
    return np.linspace(-105, 105, 2_000_003).astype(np.float32)


def activate(name, x):
    return _testing.activate(name, x, x.dtype == np.float64)


@pytest.mark.parametrize("inputs", [every_exponent, where_results_move])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_ulp(name, inputs):
    x = inputs()
    x = x[np.isfinite(x)]
    y = activate(name, x).astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        want = FUNCTIONS[name](x.astype(np.float64))
    normal = (np.abs(want) >= TINY) & (want <= np.finfo(np.float32).max) & ((np.abs(x) >= TINY) | (want > 0.1))
    ulp = np.spacing(np.abs(want[normal]).astype(np.float32)).astype(np.float64)
    error = np.abs(y[normal] - want[normal]) / ulp
    worst = np.argmax(error)
    assert error[worst] <= 2, (name, error[worst], x[normal][worst])
    small = np.abs(want) < TINY
    assert (np.abs(y[small]) <= TINY).all(), name
    assert np.isinf(y[want > 3.4028236e38]).all(), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name):
    ends = {"exp": (0, 1, 1, np.inf), "sigmoid": (0, 0.5, 0.5, 1), "tanh": (-1, -0.0, 0.0, 1)}[name]
    x = np.array([-np.inf, -0.0, 0.0, np.inf], np.float32)
    same(activate(name, x), np.array(ends, np.float32), name)
    assert np.isnan(activate(name, np.array([np.nan, -np.nan], np.float32))).all()
    huge = np.array([-3e38, -1e30, 1e30, 3e38], np.float32)
    same(activate(name, huge), np.array([ends[0], ends[0], ends[3], ends[3]], np.float32), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_denormals_count_as_zeros(name):
    x = np.array([1e-40, -1e-40, 2.0**-149], np.float32)
    same(activate(name, x), activate(name, np.copysign(np.zeros(3, np.float32), x)), name)
    assert np.float32(1e-40) * np.float32(0.5) > 0, "the caller's control register was not restored"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tails_of_a_vector(name):
    x = np.linspace(-3, 3, 40, dtype=np.float32)
    want = activate(name, x)
    for n in range(41):
        same(activate(name, x[:n].copy()), want[:n], name, n)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_that_of_the_c_library(name):
    x = np.linspace(-30, 30, 100_001)
    want = FUNCTIONS[name](x)
    assert np.max(np.abs(activate(name, x) - want) / np.spacing(np.abs(want))) <= 4, name


WORKER = """
import sys
import numpy as np
from test_activations import FUNCTIONS, activate, every_exponent, where_results_move
x = np.concatenate([every_exponent(), where_results_move()])
np.savez(sys.argv[1], **{name: activate(name, x) for name in FUNCTIONS})
"""


@exact_bits
@pytest.mark.skipif(_runtime.isa() != "avx512", reason="needs a CPU with AVX-512")
def test_avx2_gives_the_bits_of_avx512(tmp_path):
    run_python(WORKER, tmp_path / "avx2.npz", env={"RNN_CORE_ISA": "avx2"})
    x = np.concatenate([every_exponent(), where_results_move()])
    number = ~np.isnan(x)
    with np.load(tmp_path / "avx2.npz") as narrow:
        for name in FUNCTIONS:
            same(narrow[name][number], activate(name, x)[number], name)
