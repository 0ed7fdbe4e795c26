"""Losses and their gradients against plain NumPy in float64 and against differences (rnn_core/losses.py)."""

import numpy as np
import pytest
from cases import difference, differences
from hypothesis import given, settings
from hypothesis import strategies as st

import rnn_core as rc
from rnn_core import _dense
from rnn_core.losses import binary_cross_entropy, cross_entropy, mse

TOLERANCE = {np.float32: 4e-7, np.float64: 4e-15}


def log_softmax(x):
    x = np.asarray(x, np.float64)
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def plain_cross_entropy(x, targets, counts, smoothing=0.0):
    """(loss, gradient) in float64; counts is a boolean array of the targets' shape."""
    classes, log_p = x.shape[-1], log_softmax(x)
    q = np.full(x.shape, smoothing / classes)
    np.put_along_axis(q, np.where(counts, targets, 0)[..., None], 1 - smoothing + smoothing / classes, -1)
    n = max(np.count_nonzero(counts), 1)
    loss = -(q * log_p).sum(-1)[counts].sum() / n
    return loss, (np.exp(log_p) - q) * counts[..., None] / n


def plain_bce(x, target):
    x, target = np.asarray(x, np.float64), np.asarray(target, np.float64)
    return np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x))), 1 / (1 + np.exp(-x)) - target


def plain_mse(x, target):
    d = np.asarray(x, np.float64) - np.asarray(target, np.float64)
    return d * d, 2 * d


PAIRS = {binary_cross_entropy: plain_bce, mse: plain_mse}


def close(got, want, tolerance, counted):
    """Errors against the mean of `counted` terms, whose gradients are differences of numbers up to 1."""
    (loss, dx), (want_loss, want_dx) = got, want
    assert abs(loss - want_loss) <= tolerance * max(1.0, abs(want_loss)), (loss, want_loss)
    scale = max(1.0, np.abs(want_dx).max(initial=0) * counted) / max(counted, 1)
    assert np.abs(dx - want_dx).max(initial=0) <= 2 * tolerance * scale


# ---- softmax cross-entropy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_the_plain_one(dtype, classes, smoothing):
    rng = np.random.default_rng(classes)
    for rows in (1, 5, 64, 131):
        x = (rng.standard_normal((rows, classes)) * 4).astype(dtype)
        targets = rng.integers(0, classes, rows)
        targets[rng.random(rows) < 0.2] = -100
        got = cross_entropy(x, targets, label_smoothing=smoothing)
        assert isinstance(got[0], float) and got[1].dtype == dtype
        close(got, plain_cross_entropy(x, targets, targets >= 0, smoothing), TOLERANCE[dtype], (targets >= 0).sum())
        assert not got[1][targets < 0].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_lengths_and_ignored_targets(seed, batch_first):
    rng = np.random.default_rng(seed)
    steps, batch, classes = (int(n) for n in rng.integers((0, 0, 1), (6, 6, 20)))
    lengths = rng.integers(0, steps + 1, batch)
    x = rng.standard_normal((steps, batch, classes))
    targets = rng.integers(0, classes, (steps, batch))
    targets[rng.random(targets.shape) < 0.2] = 7777
    counts = (np.arange(steps)[:, None] < lengths) & (targets != 7777)
    targets[np.arange(steps)[:, None] >= lengths] = -5  # never looked at
    want = plain_cross_entropy(x, targets, counts)
    if batch_first:
        loss, dx = cross_entropy(x.swapaxes(0, 1), targets.T, lengths, ignore_index=7777, batch_first=True)
        close((loss, dx.swapaxes(0, 1)), want, 4e-15, counts.sum())
    else:
        close(cross_entropy(x, targets, lengths, ignore_index=7777), want, 4e-15, counts.sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_gradient_is_the_difference(smoothing):
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((4, 3, 19)), rng.integers(0, 19, (4, 3))
    lengths = [4, 0, 2]
    _, dx = cross_entropy(x, targets, lengths, label_smoothing=smoothing)

    def loss():
        return cross_entropy(x, targets, lengths, label_smoothing=smoothing)[0]

    for at in [tuple(rng.integers(0, x.shape)) for _ in range(60)]:
        assert abs(difference(loss, x, at, 1e-6) - dx[at]) < 1e-8


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy, mse])
def test_nothing_that_counts_gives_zero(loss):
    targets = np.zeros((3, 2), int) if loss is cross_entropy else np.zeros((3, 2, 5), np.float32)
    value, dx = loss(np.full((3, 2, 5), np.nan, np.float32), targets, [0, 0])
    assert value == 0.0 and not dx.any()
    value, dx = loss(np.zeros((0, 5), np.float32), targets[:0, 0])
    assert value == 0.0 and dx.shape == (0, 5)


def test_ignored_only():
    value, dx = cross_entropy(np.ones((3, 5), np.float32), [-100, -100, -100])
    assert value == 0.0 and not dx.any()


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy, mse])
def test_out_may_be_the_input_and_the_gradient_may_be_skipped(loss):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((70, 37)).astype(np.float32)
    targets = rng.integers(0, 37, 70) if loss is cross_entropy else rng.random((70, 37)).astype(np.float32)
    value, dx = loss(x, targets)
    assert loss(x, targets, need_dlogits=False) == (value, None)
    other = np.empty_like(x)
    again, same = loss(x, targets, out=other)
    assert same is other and again == value and np.array_equal(other, dx)
    again, same = loss(x, targets, out=x)
    assert same is x and again == value and np.array_equal(x, dx)


def test_large_logits_do_not_overflow():
    loss, dx = cross_entropy(np.array([[3e38, -3e38, 0.0]], np.float32), [0])
    assert loss == 0.0 and np.array_equal(dx, [[0, 0, 0]])
    loss, dx = cross_entropy(np.array([[1e4, -np.inf]], np.float32), [0])
    assert loss == 0.0 and np.isfinite(dx).all()


def test_nan_and_inf_are_passed_on():
    for bad in (np.nan, np.inf):
        for place in (0, 17):
            x = np.zeros((2, 20), np.float32)
            x[1, place] = bad
            loss, dx = cross_entropy(x, [3, 3])
            assert np.isnan(loss) and np.isnan(dx[1]).all() and np.isfinite(dx[0]).all()
            loss, dx = binary_cross_entropy(x, np.zeros_like(x))
            assert not np.isfinite(loss)


def test_cross_entropy_says_what_it_expected():
    x = np.zeros((3, 2, 5), np.float32)
    cases = [
        ((x, np.full((3, 2), 5)), ValueError, r"targets\[0\]\[0\]: expected 0 to 4 or -100, got 5"),
        ((x, np.full((3, 2), -1)), ValueError, r"expected 0 to 4 or -100, got -1"),
        ((x, np.zeros((2, 3), int)), ValueError, r"targets: expected shape \(3, 2\), got \(2, 3\)"),
        ((x, np.zeros((3, 2))), TypeError, "targets: expected integers, got dtype float64"),
        ((x.astype(int), np.zeros((3, 2), int)), TypeError, "logits: expected dtype float64, got int64"),
        ((x, np.zeros((3, 2), int), [4, 1]), ValueError, "lengths: expected 0 to 3, got 4"),
        ((x, np.zeros((3, 2), int), [1]), ValueError, r"lengths: expected shape \(2,\), got \(1,\)"),
        ((x[0], np.zeros(2, int), [1]), ValueError, "logits: expected 3 dimensions with lengths"),
        ((x[..., :0], np.zeros((3, 2), int)), ValueError, "at least one class"),
        ((np.float32(1), 0), ValueError, r"expected shape \(\.\.\., V\)"),
        ((x, np.zeros((3, 2), int), None, -100, 1.5), ValueError, "label_smoothing: expected 0 to 1, got 1.5"),
    ]
    for args, kind, words in cases:
        with pytest.raises(kind, match=words):
            cross_entropy(*args)
    for out in (np.zeros((3, 2, 5)), np.zeros((2, 3, 5), np.float32), [1.0]):
        with pytest.raises(ValueError, match="out: expected a float32 array"):
            cross_entropy(x, np.zeros((3, 2), int), out=out)
    memory = np.zeros(40, np.float32)
    with pytest.raises(ValueError, match="does not overlap"):
        cross_entropy(memory[:30].reshape(3, 2, 5), np.zeros((3, 2), int), out=memory[5:35].reshape(3, 2, 5))
    with pytest.raises(ValueError, match="writable C-contiguous"):
        cross_entropy(x, np.zeros((3, 2), int), out=np.zeros((3, 2, 10), np.float32)[..., ::2])


def test_read_only_and_strided_inputs():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((8, 12)).astype(np.float32)
    targets = rng.integers(0, 6, 8)
    want = cross_entropy(x[:, ::2].copy(), targets)
    x.flags.writeable = targets.flags.writeable = False
    got = cross_entropy(x[:, ::2], targets)
    assert got[0] == want[0] and np.array_equal(got[1], want[1])


# ---- losses element by element ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", PAIRS)
def test_pair_losses_are_the_plain_ones(dtype, loss):
    rng = np.random.default_rng(3)
    for shape in ((), (1,), (15,), (17,), (1024,), (1025,), (7, 300), (5, 4, 100)):
        x, target = (rng.standard_normal(shape) * 5).astype(dtype), rng.random(shape).astype(dtype)
        values, slopes = PAIRS[loss](x, target)
        close(loss(x, target), (values.mean(), slopes / values.size), TOLERANCE[dtype], values.size)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(list(PAIRS)))
def test_pair_losses_with_lengths(seed, batch_first, loss):
    rng = np.random.default_rng(seed)
    steps, batch = (int(n) for n in rng.integers(0, 6, 2))
    shape = (steps, batch, *rng.integers(1, 9, int(rng.integers(0, 2))))
    lengths = rng.integers(0, steps + 1, batch)
    x, target = rng.standard_normal(shape), rng.random(shape)
    counts = np.zeros(shape, bool)
    for row, n in enumerate(lengths):
        counts[:n, row] = True
    values, slopes = PAIRS[loss](x, target)
    n = max(np.count_nonzero(counts), 1)
    want = values[counts].sum() / n, np.where(counts, slopes, 0) / n
    x[~counts] = np.nan
    if batch_first:
        got, dx = loss(x.swapaxes(0, 1), target.swapaxes(0, 1), lengths, batch_first=True)
        close((got, dx.swapaxes(0, 1)), want, 4e-15, n)
    else:
        close(loss(x, target, lengths), want, 4e-15, n)


@pytest.mark.parametrize("loss", PAIRS)
def test_pair_gradients_are_differences(loss):
    rng = np.random.default_rng(4)
    x, target = rng.standard_normal(40), rng.random(40)
    _, dx = loss(x, target)
    slopes = differences(lambda: loss(x, target)[0], x, 1e-6)
    assert (abs(slopes - dx) < 1e-8).all()


def test_small_losses_keep_their_precision():
    x = np.array([-30, -20, -10, 10, 20, 30], np.float32)
    for value in x:
        loss, dx = binary_cross_entropy(np.array([value]), np.array([value > 0], np.float32))
        want, slope = plain_bce(value, value > 0)
        assert abs(loss - want) < 1e-6 * want
        assert value > 0 or abs(dx[0] - slope) < 1e-6 * slope


def test_pair_losses_say_what_they_expected():
    x = np.zeros((3, 2), np.float32)
    for loss, name in ((binary_cross_entropy, "logits"), (mse, "predictions")):
        with pytest.raises(ValueError, match=r"targets: expected shape \(3, 2\), got \(2, 3\)"):
            loss(x, x.T.copy())
        with pytest.raises(TypeError, match="targets: expected dtype float32, got float64"):
            loss(x, x.astype(float))
        with pytest.raises(ValueError, match=f"{name}: expected at least 2 dimensions"):
            loss(x[0], x[0], [1])
    assert rc.losses.mse([1.0, 2.0], [0.0, 0.0])[0] == 2.5


# ---- the logarithm ------------------------------------------------------------------------------------------------


def test_log_within_a_unit_in_the_last_place():
    rng = np.random.default_rng(5)
    x = np.concatenate([np.exp(rng.uniform(-87, 88, 100000)), rng.uniform(0.5, 2, 100000)]).astype(np.float32)
    y = np.empty_like(x)
    _dense.log(x, y)
    want = np.log(x.astype(np.float64))
    assert (np.abs(y - want) / np.spacing(np.abs(want.astype(np.float32)))).max() <= 1.0


def test_log_of_special_values():
    x = np.array([0.0, -0.0, -1, np.inf, -np.inf, np.nan, 1], np.float32)
    y = np.empty_like(x)
    _dense.log(x, y)
    assert np.array_equal(y, [-np.inf, -np.inf, np.nan, np.inf, np.nan, np.nan, 0], equal_nan=True)
