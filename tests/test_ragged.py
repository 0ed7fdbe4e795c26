"""rc.Ragged: sequences one after the other give what the padded form with lengths gives, bit for bit."""

import numpy as np
import pytest
from cases import KINDS, Case, exact_bits, parts, public, same

import rnn_core as rc


def joined(padded, lengths):
    """(T, B, .) and lengths -> (tokens, .), one sequence after the other."""
    return np.concatenate([padded[:n, row] for row, n in enumerate(lengths)] or [padded[:0, 0]])


@exact_bits
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_as_padded(kind, batch_first):
    for seed in range(30):
        case = Case.random(kind, 700 + seed)
        lengths = case.lengths or (case.T,) * case.B
        x, state, dy, dstate = case.arrays()
        padded, layer = case.layer(), case.layer(batch_first=batch_first)
        y, final, tape = padded.forward(x, public(state), lengths)
        dx, dinitial = padded.backward(tape, dy, public(dstate))

        ragged = rc.Ragged(joined(x, lengths), lengths)
        got, got_final = layer(ragged, public(state))
        same(got.values, joined(y, lengths), "inference", case)
        assert np.array_equal(got.lengths, lengths), case
        same(parts(got_final), parts(final), "inference", case)
        got, got_final, tape = layer.forward(ragged, public(state))
        same((got.values, *parts(got_final)), (joined(y, lengths), *parts(final)), "forward", case)
        got, got_dinitial = layer.backward(tape, rc.Ragged(joined(dy, lengths), lengths), public(dstate))
        same((got.values, *parts(got_dinitial)), (joined(dx, lengths), *parts(dinitial)), "backward", case)
        for key, g in layer.grads.items():
            same(g, padded.grads[key], key, case)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)])
def test_no_tokens(lengths):
    layer = rc.GRU(3, 4)
    empty = rc.Ragged(np.zeros((0, 3), np.float32), np.array(lengths, np.int64))
    y, h, tape = layer.forward(empty)
    assert y.values.shape == (0, 4) and h.shape == (1, len(lengths), 4) and not h.any()
    dx, dh = layer.backward(tape, y)
    assert dx.values.shape == (0, 3) and dh.shape == h.shape


def test_bad_input():
    x = np.zeros((7, 3), np.float32)
    for lengths in ([3, 3], [3, 5], [-1, 8], [[3, 4]]):
        with pytest.raises(ValueError, match=r"expected.*got"):
            rc.Ragged(x, lengths)
    with pytest.raises(TypeError, match=r"lengths: expected integers, got"):
        rc.Ragged(x, [3.5, 3.5])
    layer, good = rc.GRU(3, 4), rc.Ragged(x, [3, 4])
    with pytest.raises(ValueError, match=r"lengths: expected None.*Ragged"):
        layer(good, lengths=[3, 4])
    for values in (np.zeros((7, 2), np.float32), np.zeros((7, 1, 3), np.float32)):
        with pytest.raises(ValueError, match=r"expected.*got"):
            layer(rc.Ragged(values, [3, 4]))
    with pytest.raises(TypeError, match=r"expected dtype float32, got float64"):
        layer(rc.Ragged(x.astype(float), [3, 4]))
    with pytest.raises(ValueError, match=r"expected.*\(1, 2, 4\).*got"):
        layer(good, np.zeros((1, 3, 4), np.float32))
    y, _, tape = layer.forward(good)
    with pytest.raises(ValueError, match=r"dy.*expected.*got"):
        layer.backward(tape, rc.Ragged(y.values[:6], [3, 3]))
    with pytest.raises(ValueError, match=r"dy.lengths: expected \[3 4\], got \[4 3\]"):
        layer.backward(tape, rc.Ragged(y.values, [4, 3]))
