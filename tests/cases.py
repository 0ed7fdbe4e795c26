"""Seeded random cases for the recurrent tests, and the comparisons; a failing comparison prints its case."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import reference

import rnn_core as rc
from rnn_core import _runtime
from rnn_core.environment import ISAS

# name -> (class, its options); every random test runs over all of them
KINDS = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"reset_after": True}),
    "gru_v1": ("GRU", {"reset_after": False}),
}
ISAS_HERE = ISAS[: ISAS.index(_runtime.isa()) + 1]  # those that this process could be lowered to
FORWARD = {"float32": 5e-6, "float64": 1e-12}  # of the largest value of each array
BACKWARD = {"float32": 2e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Case:
    """One layer and one batch; everything random in it follows from the seed."""

    kind: str
    seed: int
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    bias: bool
    proj_size: int
    T: int
    B: int
    lengths: tuple | None
    with_state: bool

    @classmethod
    def random(cls, kind, seed, **fixed):
        """Sizes as issue-sized users have them: H and I 1-40, T 0-20, B 1-9, up to 3 layers; `fixed` overrides."""
        rng = np.random.default_rng([seed, sorted(KINDS).index(kind)])
        H = fixed.get("hidden_size", int(rng.integers(1, 41)))
        T = fixed.get("T", int(rng.integers(0, 21)))
        B = fixed.get("B", int(rng.integers(1, 10)))
        projected = kind == "lstm" and H > 1 and rng.random() < 0.4
        drawn = {
            "input_size": int(rng.integers(1, 41)),
            "hidden_size": H,
            "num_layers": int(rng.choice([1, 1, 2, 3])),
            "bidirectional": bool(rng.random() < 0.4),
            "bias": bool(rng.random() < 0.8),
            "proj_size": int(rng.integers(1, H)) if projected else 0,
            "T": T,
            "B": B,
            "lengths": tuple(int(n) for n in rng.integers(0, T + 1, B)) if rng.random() < 0.5 else None,
            "with_state": bool(rng.random() < 0.6),
        }
        return cls(kind, seed, **(drawn | fixed))

    @property
    def outputs(self):
        """P: the size of h."""
        return self.proj_size or self.hidden_size

    @property
    def directions(self):
        return 2 if self.bidirectional else 1

    def rng(self, stream):
        return np.random.default_rng([self.seed, stream])

    def layer(self, dtype="float32", **more):
        """The layer; its weights have the same values in both dtypes."""
        name, options = KINDS[self.kind]
        options = options | {"proj_size": self.proj_size} if self.proj_size else options
        layer = getattr(rc, name)(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            bidirectional=self.bidirectional,
            dtype=dtype,
            **(options | more),
        )
        rng = self.rng(1)
        scale = 1.5 / np.sqrt(self.hidden_size)
        layer.load_state_dict(
            {
                key: rng.uniform(-scale, scale, p.shape).astype(np.float32).astype(dtype)
                for key, p in layer.params.items()
            }
        )
        return layer

    def cell(self):
        """The reference's cell."""
        name, options = KINDS[self.kind]
        return getattr(reference, name)(**options)

    def _state(self, rng, dtype):
        shape = (self.num_layers * self.directions, self.B)
        sizes = (self.outputs, self.hidden_size) if self.kind == "lstm" else (self.outputs,)
        return tuple(rng.uniform(-1, 1, (*shape, n)).astype(np.float32).astype(dtype) for n in sizes)

    def arrays(self, dtype="float32"):
        """x (T, B, I), state or None, dy (T, B, D*P), dstate: the states as tuples."""
        rng = self.rng(2)
        x = rng.standard_normal((self.T, self.B, self.input_size)).astype(np.float32).astype(dtype)
        state = self._state(rng, dtype)
        dy = rng.standard_normal((self.T, self.B, self.directions * self.outputs)).astype(np.float32).astype(dtype)
        return x, state if self.with_state else None, dy, self._state(rng, dtype)


def public(state):
    """A tuple as the API has it: h alone, or (h, c)."""
    return state[0] if state is not None and len(state) == 1 else state


def parts(state):
    """The API's state as a tuple."""
    return state if isinstance(state, tuple) else (state,)


def close(got, want, tolerance, *where, least=0.0):
    """|got - want| <= tolerance * the largest |want| (at least `least`), shapes equal, nothing NaN."""
    assert got.shape == want.shape, (got.shape, want.shape, *where)
    if not want.size:
        return
    error = np.max(np.abs(got.astype(np.float64) - want))
    largest = max(np.max(np.abs(want)), least)
    assert error <= tolerance * largest, (f"error {error:.3g} of {largest:.3g}", *where)


def all_close(got, want, tolerance, *where):
    """`close` for each array of two equally long tuples or of two dicts.

    A sum whose terms cancel keeps the error of its terms: no array is held to less than a tenth of the largest value
    of all.
    """
    if isinstance(want, dict):
        assert set(got) == set(want), (set(got) ^ set(want), *where)
        got, want, names = [got[k] for k in want], list(want.values()), list(want)
    else:
        names = range(len(want))
    assert len(got) == len(want), where
    least = 0.1 * max((np.max(np.abs(w), initial=0.0) for w in want), default=0.0)
    for name, g, w in zip(names, got, want):
        close(g, w, tolerance, name, *where, least=least)


def same(got, want, *where):
    """The same bits in both arrays, or in each array of both tuples."""
    if isinstance(want, tuple):
        assert len(got) == len(want), where
        for n, (g, w) in enumerate(zip(got, want)):
            same(g, w, n, *where)
        return
    assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, got.shape, want.dtype, want.shape, *where)
    words = f"u{want.dtype.itemsize}"
    differ = np.ascontiguousarray(got).view(words) != np.ascontiguousarray(want).view(words)
    assert not differ.any(), (f"{differ.sum()} of {differ.size} differ, first at {np.argwhere(differ)[0]}", *where)


def difference(loss, array, at, eps=1e-5):
    """The central difference of loss() in one element of `array`, which is changed in place and put back."""
    kept, sides = array[at], []
    for step in (eps, -eps):
        array[at] = kept + step
        sides.append(loss())
    array[at] = kept
    return (sides[0] - sides[1]) / (2 * eps)


def differences(loss, array, eps=1e-5):
    """`difference` in every element, in the shape of `array`."""
    out = np.zeros_like(array)
    for at in np.ndindex(array.shape):
        out[at] = difference(loss, array, at, eps)
    return out


def parameter_differences(loss, module, key, at=None, eps=1e-5):
    """The same of a parameter, which only `assign` may write: in every element, or at one."""
    value = module.params[key].copy()

    def moved():
        module.assign(key, value)
        return loss()

    found = differences(moved, value, eps) if at is None else difference(moved, value, at, eps)
    module.assign(key, value)
    return found


def cell_of(layer, case, dtype="float32"):
    """A cell with the weights of a layer of one layer and direction and no projection."""
    name, options = KINDS[case.kind]
    cell = getattr(rc, name + "Cell")(case.input_size, case.hidden_size, bias=case.bias, dtype=dtype, **options)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    return cell


def run_python(code, *args, env=None, timeout=120):
    """A Python process of its own with tests/ on its path; returns what it printed, fails with what it said."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=python_env(env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, (result.returncode, result.stdout[-2000:], result.stderr[-4000:])
    return result.stdout


def python_env(extra):
    """This environment, with tests/ and the rnn_core under test on the path."""
    here = [str(Path(__file__).parent), str(Path(rc.__file__).parent.parent)]
    return os.environ | {"PYTHONPATH": os.pathsep.join([*here, os.environ.get("PYTHONPATH", "")])} | extra


exact_bits = pytest.mark.skipif(
    _runtime.isa() == "generic" or os.environ.get("RNN_CORE_GEMM") == "blas",
    reason="the promise about bits is that of the panel kernels with hardware FMA",
)
