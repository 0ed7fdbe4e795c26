"""return_all_states: every step's h and c, and their gradients."""

import numpy as np
import pytest
from cases import difference, parameter_differences, parts, public

import rnn_core as rc

KINDS = [(rc.LSTM, {}), (rc.LSTM, {"proj_size": 3}), (rc.GRU, {}), (rc.GRU, {"reset_after": False}), (rc.RNN, {})]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind, options", KINDS)
def test_they_are_the_states_of_shorter_runs(kind, options, bidirectional):
    layer = kind(4, 5, 2, bidirectional=bidirectional, seed=2, **options)
    x = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(np.float32)
    y, final = layer(x)
    for result in (layer(x, return_all_states=True), layer.forward(x, return_all_states=True)[:2]):
        assert np.array_equal(result[0], y)
        for states, last in zip(parts(result[1]), parts(final)):
            assert states.shape == (6, *last.shape)
            for row in range(len(last)):
                reverse = bidirectional and row % 2 == 1
                assert np.array_equal(states[0 if reverse else -1, row], last[row])
    if not bidirectional:
        for t in range(1, 6):
            for states, last in zip(parts(result[1]), parts(layer(x[:t])[1])):
                assert np.array_equal(states[t - 1], last)


@pytest.mark.parametrize("kind, options", KINDS)
def test_past_the_end_is_zero(kind, options):
    layer = kind(4, 5, seed=2, **options)
    x, lengths = np.ones((6, 3, 4), np.float32), [2, 6, 0]
    _, final = layer(x, None, lengths)
    _, every = layer(x, None, lengths, return_all_states=True)
    for states, last in zip(parts(every), parts(final)):
        for row, n in enumerate(lengths):
            assert not states[n:, :, row].any()
            assert n == 0 or np.array_equal(states[n - 1, :, row], last[:, row])


@pytest.mark.parametrize("lengths", [None, [4, 2, 0]])
@pytest.mark.parametrize("kind, options", KINDS)
def test_gradients_by_central_differences(kind, options, lengths):
    rng = np.random.default_rng(1)
    layer = kind(3, 5, 2, bidirectional=True, dtype="float64", seed=4, **options)
    x = rng.standard_normal((4, 3, 3))
    weights = [rng.standard_normal(s.shape) for s in parts(layer(x, return_all_states=True)[1])]

    def loss():
        return sum(np.sum(w * s) for w, s in zip(weights, parts(layer(x, None, lengths, return_all_states=True)[1])))

    y, _, tape = layer.forward(x, None, lengths, return_all_states=True)
    dx, _ = layer.backward(tape, None, public(tuple(weights)))
    for index in [tuple(rng.integers(x.shape)) for _ in range(12)]:
        assert abs(difference(loss, x, index) - dx[index]) < 1e-6
    for name, grad in layer.grads.items():
        index = tuple(rng.integers(grad.shape))
        assert abs(parameter_differences(loss, layer, name, index) - grad[index]) < 1e-6, name


def test_unbatched_and_bad_gradients():
    layer = rc.LSTM(3, 4)
    x = np.ones((5, 3), np.float32)
    _, (h, c), tape = layer.forward(x, return_all_states=True)
    assert h.shape == c.shape == (5, 1, 4)
    assert np.array_equal(h[:, 0], layer(x)[0])
    with pytest.raises(ValueError, match=r"dstate h: expected shape \(5, 1, 4\), got \(1, 4\)"):
        layer.backward(tape, None, (h[0], c))
    with pytest.raises(TypeError, match="pair"):
        layer.backward(tape, None, h)
