"""Layers, forward: outputs and states against the float64 reference, for every option and many shapes."""

import numpy as np
import pytest
import reference
from cases import FORWARD, KINDS, Case, all_close, close, parts, public, same

SEEDS = 120  # random cases a kind, in blocks
LARGE = [(64, 64), (128, 100), (17, 200), (33, 257)]  # (I, H)


def check(case):
    """Both dtypes, layer(x) and layer.forward(x), against one run of the reference."""
    for dtype in FORWARD:
        layer = case.layer(dtype)
        x, state, _, _ = case.arrays(dtype)
        if dtype == "float32":
            want_y, want_state, _ = reference.forward(case.cell(), layer.params, x, state, case.lengths)
        y, final = layer(x, public(state), case.lengths)
        assert y.dtype == np.dtype(dtype), case
        close(y, want_y, FORWARD[dtype], "y", dtype, case)
        all_close(parts(final), want_state, FORWARD[dtype], "state", dtype, case)
        trained_y, trained_state, _ = layer.forward(x, public(state), case.lengths)
        close(trained_y, want_y, FORWARD[dtype], "forward y", dtype, case)
        all_close(parts(trained_state), want_state, FORWARD[dtype], "forward state", dtype, case)


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_random_cases(kind, block):
    for seed in range(block, SEEDS, 4):
        check(Case.random(kind, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_every_hidden_size_to_forty(kind):
    for H in range(1, 41):
        check(Case.random(kind, 1000 + H, hidden_size=H, T=3, num_layers=1, proj_size=0))


@pytest.mark.parametrize("I, H", LARGE)
@pytest.mark.parametrize("kind", KINDS)
def test_large(kind, I, H):
    projection = 40 if kind == "lstm" and H == 200 else 0
    for B in (1, 7):
        check(Case.random(kind, H, input_size=I, hidden_size=H, num_layers=1, proj_size=projection, T=3, B=B))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_on_both_sides_of_every_tile(kind):
    for B in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 16, 17, 24, 33):
        check(Case.random(kind, 2000 + B, B=B, T=2, num_layers=1, lengths=None))


@pytest.mark.parametrize("kind", KINDS)
def test_past_the_end_is_zero_and_an_empty_sequence_keeps_its_state(kind):
    case = Case.random(kind, 5, T=6, B=4, lengths=(0, 3, 6, 0), with_state=True, bidirectional=True)
    layer = case.layer()
    x, state, _, _ = case.arrays()
    for y, final in (layer(x, public(state), case.lengths), layer.forward(x, public(state), case.lengths)[:2]):
        for row, n in enumerate(case.lengths):
            assert not y[n:, row].any() and (n == 0 or y[:n, row].any()), case
        for of, s in zip(parts(final), state):
            same(of[:, [0, 3]], s[:, [0, 3]], case)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_past_the_end_is_never_read(kind):
    case = Case.random(kind, 6, T=7, B=5, lengths=(7, 0, 3, 5, 1), bidirectional=True, num_layers=2)
    layer = case.layer()
    x, state, _, _ = case.arrays()
    y, final = layer(x, public(state), case.lengths)
    for row, n in enumerate(case.lengths):
        x[n:, row] = np.nan
    again, final_again = layer(x, public(state), case.lengths)
    same(again, y, case)
    same(parts(final_again), parts(final), case)


@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize("kind", KINDS)
def test_no_steps(kind, dtype):
    case = Case.random(kind, 7, T=0, B=3, with_state=True, lengths=None)
    layer = case.layer(dtype)
    x, state, dy, dstate = case.arrays(dtype)
    for given in (state, None):
        y, final = layer(x, public(given))
        assert y.shape == (0, 3, case.directions * case.outputs)
        same(parts(final), state if given else tuple(np.zeros_like(s) for s in state), case)
    y, final, tape = layer.forward(x, public(state))
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    assert dx.shape == x.shape
    same(parts(dinitial), dstate, case)
    assert not any(g.any() for g in layer.grads.values())


@pytest.mark.parametrize("kind", KINDS)
def test_large_inputs_saturate_and_stay_finite(kind):
    case = Case.random(kind, 8, T=4, B=3, lengths=None, num_layers=1, bidirectional=False)
    layer = case.layer()
    x, state, _, _ = case.arrays()
    x *= 1e4
    want, want_state, _ = reference.forward(case.cell(), layer.params, x, state)
    y, final = layer(x, public(state))
    close(y, want, FORWARD["float32"], case)
    all_close(parts(final), want_state, FORWARD["float32"], case)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_row(kind):
    case = Case.random(kind, 9, T=5, B=6, lengths=None, num_layers=2, bidirectional=False)
    layer = case.layer()
    x, state, _, _ = case.arrays()
    clean, _ = layer(x, public(state))
    x[2, 3, 0] = np.nan
    y, _ = layer(x, public(state))
    others = [0, 1, 2, 4, 5]
    same(y[:, others], clean[:, others], case)
    same(y[:2, 3], clean[:2, 3], case)
    assert np.isnan(y[2:, 3]).any(axis=-1).all(), case


@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize("kind", KINDS)
def test_no_sequences(kind, dtype):
    case = Case.random(kind, 10, T=5, B=0, lengths=None, bidirectional=True, num_layers=2)
    for lengths in (None, ()):
        layer = case.layer(dtype)
        x, state, dy, dstate = case.arrays(dtype)
        y, final = layer(x, public(state), lengths)
        assert y.shape == dy.shape and all(s.shape == d.shape for s, d in zip(parts(final), dstate))
        _, _, tape = layer.forward(x, public(state), lengths)
        dx, _ = layer.backward(tape, dy, public(dstate))
        assert dx.shape == x.shape and not any(g.any() for g in layer.grads.values())
