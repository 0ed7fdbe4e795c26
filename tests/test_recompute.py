"""Recomputation: the same outputs and gradients, bit for bit, from a few states."""

import numpy as np
import pytest

import rnn_core as rc


def run(layer, x, state, lengths, dy, dstate, **options):
    layer.zero_grad()
    layer.calls = 0  # the same masks again
    y, final, tape = layer.forward(x, state, lengths, **options)
    dx, dstart = layer.backward(tape, dy, dstate)
    flat = lambda s: list(s) if isinstance(s, tuple) else [s]  # noqa: E731
    return [y, *flat(final), dx, *flat(dstart), *(g.copy() for g in layer.grads.values())], tape


CASES = [
    (rc.LSTM, {}, None),
    (rc.LSTM, {"num_layers": 2, "dropout": 0.3}, "ragged"),
    (rc.LSTM, {"proj_size": 5, "batch_first": True}, "ragged"),
    (rc.LSTM, {"batch_first": True}, "ragged"),
    (rc.LSTM, {"recurrent_dropout": 0.2}, None),
    (rc.GRU, {"batch_first": True}, None),
    (rc.GRU, {"reset_after": False}, "ragged"),
    (rc.RNN, {}, "ragged"),
]


@pytest.mark.parametrize("times", [1, 2])  # from 16 sequences on gradients are summed up in two groups
@pytest.mark.parametrize("H", [11, 70])  # the larger ones run again from the outputs, which are known by then
@pytest.mark.parametrize("kind, options, ragged", CASES)
def test_the_same_bits(kind, options, ragged, H, times):
    rng, T, B, I = np.random.default_rng(3), 300, 9 * times, 4
    layer = kind(I, H, seed=1, **options)
    real, out = layer.dtype, options.get("proj_size", H)
    shape = (B, T) if layer.batch_first else (T, B)
    x, dy = rng.standard_normal((*shape, I)).astype(real), rng.standard_normal((*shape, out)).astype(real)
    lengths = None if ragged is None else [0, 300, 1, 299, 28, 29, 57, 150, 300] * times
    parts = [rng.standard_normal((layer.num_layers, B, size)).astype(real) for size in (out, H)]
    state = tuple(parts) if kind is rc.LSTM else parts[0]
    want, _ = run(layer, x, state, lengths, dy, state)
    got, tape = run(layer, x, state, lengths, dy, state, recompute=True)
    assert len(tape.starts) > 3
    for w, g in zip(want, got, strict=True):
        assert np.array_equal(w, g)


def test_backward_only_reads_the_outputs():
    layer, rng = rc.LSTM(4, 70, seed=1), np.random.default_rng(3)
    x, dy = (rng.standard_normal((300, 3, n), dtype=np.float32) for n in (4, 70))
    y, _, tape = layer.forward(x, lengths=[300, 40, 0], recompute=True)
    for m, length in enumerate([300, 40, 0]):
        y[length:, m] = np.nan
    before = y.copy()
    dx, _ = layer.backward(tape, dy)
    assert np.array_equal(y, before, equal_nan=True) and np.isfinite(dx).all()


def test_one_dropout_mask_a_call():
    layer = rc.GRU(3, 4, 2, dropout=0.5, seed=0)
    x = np.ones((40, 2, 3), np.float32)
    first, second = (layer.forward(x, recompute=True)[0] for _ in range(2))
    assert not np.array_equal(first, second)


def test_no_steps_and_no_rows():
    layer = rc.LSTM(3, 4, seed=0)
    for shape in ((0, 2, 3), (5, 0, 3)):
        y, (h, c), tape = layer.forward(np.zeros(shape, np.float32), recompute=True)
        dx, _ = layer.backward(tape, np.zeros_like(y))
        assert dx.shape == shape and not h.any() and not c.any()


@pytest.mark.parametrize("options, error", [
    ({"recompute": True, "return_all_states": True}, "return_all_states"),
    ({"recompute": True, "bidirectional": True}, "one direction"),
])
def test_what_is_refused(options, error):
    layer = rc.LSTM(3, 4, bidirectional=options.pop("bidirectional", False))
    with pytest.raises(ValueError, match=error):
        layer.forward(np.zeros((5, 2, 3), np.float32), **options)


def test_a_ragged_is_refused():
    with pytest.raises(ValueError, match="padded"):
        rc.LSTM(3, 4).forward(rc.Ragged(np.zeros((5, 3), np.float32), [2, 3]), recompute=True)
