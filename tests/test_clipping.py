"""Clipping by the global norm and by value (rnn_core/clipping.py)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_core import clip_grad_norm, clip_grad_value


def random_grads(seed, dtype, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = [(3, 5), (1,), (0, 2), (1024,), (1025,), (33, 70), ()]
    return {str(i): np.array(rng.standard_normal(s) * scale, dtype) for i, s in enumerate(shapes)}


def plain_norm(grads):
    return math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values()))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]), st.floats(0.1, 1000))
def test_norm_and_factor_are_the_plain_ones(seed, dtype, max_norm):
    grads = random_grads(seed, dtype)
    want, before = plain_norm(grads), {k: g.copy() for k, g in grads.items()}
    norm = clip_grad_norm(grads, max_norm)
    assert abs(norm - want) <= 1e-6 * want
    factor = min(1.0, max_norm / (want + 1e-6))
    for key, grad in grads.items():
        assert np.allclose(grad, before[key] * factor, rtol=1e-6, atol=0)
    assert factor == 1.0 or abs(plain_norm(grads) - max_norm) < 1e-5 * max_norm


def test_small_gradients_are_not_touched():
    grads = random_grads(0, np.float32)
    before = {k: g.copy() for k, g in grads.items()}
    for limit in (1e9, math.inf):
        clip_grad_norm(grads, limit)
        assert all(np.array_equal(grads[k], before[k]) for k in grads)


def test_both_precisions_together():
    grads = {"a": np.full(3, 3.0, np.float32), "b": np.full(1, 4.0)}
    assert abs(clip_grad_norm(grads, 1.0) - math.sqrt(43)) < 1e-6
    assert abs(plain_norm(grads) - 1) < 1e-5


def test_squares_beyond_single_precision():
    grads = {"a": np.full(2000, 1e30, np.float32)}
    norm = clip_grad_norm(grads, 1.0)
    assert abs(norm - 1e30 * math.sqrt(2000)) < 1e-6 * norm and abs(plain_norm(grads) - 1) < 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 1000, 2000])
def test_not_finite_is_reported_and_changes_nothing(bad, at):
    grads = {"a": np.ones(2001, np.float32), "b": np.ones(3, np.float32)}
    grads["a"][at] = bad
    before = {k: g.copy() for k, g in grads.items()}
    norm = clip_grad_norm(grads, 0.1)
    assert math.isnan(norm) if np.isnan(bad) else norm == math.inf
    assert all(np.array_equal(grads[k], before[k], equal_nan=True) for k in grads)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_value(dtype):
    grads = random_grads(1, dtype, 3.0)
    grads["0"][0, :3] = np.nan, np.inf, -np.inf
    want = {k: np.clip(g, dtype(-0.7), dtype(0.7)) for k, g in grads.items()}
    assert clip_grad_value(grads, 0.7) is None
    assert all(np.array_equal(grads[k], want[k], equal_nan=True) for k in grads)
    clip_grad_value(grads, math.inf)
    assert all(np.array_equal(grads[k], want[k], equal_nan=True) for k in grads)


def test_nothing_has_no_norm():
    assert clip_grad_norm({}, 1.0) == 0.0


@pytest.mark.parametrize("clip", [clip_grad_norm, clip_grad_value])
def test_bad_arguments(clip):
    good = {"a": np.ones(3)}
    read_only = np.ones(3)
    read_only.flags.writeable = False
    cases = [
        (good, 0.0, ValueError, "expected a number above 0, got 0.0"),
        (good, -1, ValueError, "expected a number above 0"),
        (good, math.nan, ValueError, "expected a finite number"),
        (good, "1", TypeError, "expected a number"),
        ([np.ones(3)], 1.0, TypeError, "grads: expected a dictionary of arrays, got list"),
        ({"a": [1.0]}, 1.0, TypeError, r"grads\['a'\]: expected an array, got list"),
        ({"a": np.ones(3, int)}, 1.0, TypeError, "expected float32 or float64"),
        ({"a": np.ones((3, 4)).T}, 1.0, ValueError, r"grads\['a'\]: expected a writable C-contiguous array"),
        ({"a": read_only}, 1.0, ValueError, r"grads\['a'\]: expected a writable"),
    ]
    for grads, limit, kind, words in cases:
        with pytest.raises(kind, match=words):
            clip(grads, limit)
    assert (good["a"] == 1).all()
