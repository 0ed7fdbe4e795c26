"""Layers, backward: every gradient against the reference and against central differences; tapes and grads."""

import numpy as np
import pytest
import reference
from cases import BACKWARD, KINDS, Case, all_close, close, differences, parts, public, same

SEEDS = 80
LARGE = [(64, 64), (17, 200), (33, 257)]


def gradients(layer, case, dtype):
    """One forward and backward: dx, dstate (a tuple), grads (copies)."""
    x, state, dy, dstate = case.arrays(dtype)
    layer.zero_grad()
    _, _, tape = layer.forward(x, public(state), case.lengths)
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    return dx, parts(dinitial), {key: g.copy() for key, g in layer.grads.items()}


def check(case):
    """Both dtypes against one run of the reference."""
    for dtype, tolerance in BACKWARD.items():
        layer = case.layer(dtype)
        if dtype == "float32":
            x, state, dy, dstate = case.arrays()
            *_, tape = reference.forward(case.cell(), layer.params, x, state, case.lengths)
            want_dx, want_dstate, want_grads = reference.backward(tape, dy, dstate)
        dx, dinitial, grads = gradients(layer, case, dtype)
        assert dx.dtype == np.dtype(dtype), case
        close(dx, want_dx, tolerance, "dx", dtype, case)
        all_close(dinitial, want_dstate, tolerance, "dstate", dtype, case)
        all_close(grads, want_grads, tolerance, "grads", dtype, case)


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_random_cases(kind, block):
    for seed in range(block, SEEDS, 4):
        check(Case.random(kind, 100 + seed))


@pytest.mark.parametrize("kind", KINDS)
def test_every_hidden_size_to_forty(kind):
    for H in range(1, 41):
        check(Case.random(kind, 3000 + H, hidden_size=H, T=2, num_layers=1, proj_size=0))


@pytest.mark.parametrize("I, H", LARGE)
@pytest.mark.parametrize("kind", KINDS)
def test_large(kind, I, H):
    projection = 40 if kind == "lstm" and H == 200 else 0
    for B in (1, 6):
        check(Case.random(kind, H, input_size=I, hidden_size=H, num_layers=1, proj_size=projection, T=3, B=B))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_large_weights(kind):
    """The kernels pack more of x at once for them: more columns than one such block has, and more tokens."""
    H = 513 if kind.startswith("rnn") else 260
    check(Case.random(kind, H, input_size=530, hidden_size=H, num_layers=1, proj_size=0, T=2, B=300))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind, proj", [*((kind, 0) for kind in KINDS), ("lstm", 7)])
def test_several_chunks(kind, proj, bidirectional):
    """More tokens than the weight gradients are summed over at once, all rows of a length and ragged."""
    sizes = {"input_size": 6, "hidden_size": 20, "proj_size": proj, "bidirectional": bidirectional, "T": 45, "B": 18}
    for lengths in (None, tuple(int(n) for n in np.random.default_rng(18).integers(0, 46, 18))):
        check(Case.random(kind, 18, **sizes, num_layers=2, lengths=lengths))


@pytest.mark.parametrize("kind, proj", [*((kind, 0) for kind in KINDS), ("lstm", 2)])
def test_central_differences(kind, proj):
    case = Case.random(
        kind,
        4,
        input_size=3,
        hidden_size=5,
        num_layers=2,
        bidirectional=True,
        bias=True,
        proj_size=proj,
        T=4,
        B=3,
        lengths=(4, 0, 2),
        with_state=True,
    )
    layer = case.layer("float64")
    x, state, dy, dstate = case.arrays("float64")
    params = layer.state_dict()

    def loss():
        y, final = layer(x, public(state), case.lengths)
        return np.sum(y * dy) + sum(np.sum(s * d) for s, d in zip(parts(final), dstate))

    def loss_of_params():
        layer.load_state_dict(params)
        return loss()

    dx, dinitial, grads = gradients(layer, case, "float64")
    close(dx, differences(loss, x), 1e-6, "dx", case)
    for n in range(len(state)):
        close(dinitial[n], differences(loss, state[n]), 1e-6, "dstate", n, case)
    for key, array in params.items():
        close(grads[key], differences(loss_of_params, array), 1e-6, key, case)


@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences_keep_their_gradients(kind):
    case = Case.random(
        kind,
        11,
        input_size=7,
        hidden_size=20,
        num_layers=1,
        proj_size=0,
        T=1000,
        B=2,
        lengths=None,
        bidirectional=False,
    )
    layer = case.layer()
    x, state, dy, dstate = case.arrays()
    *_, tape = reference.forward(case.cell(), layer.params, x, state)
    want_dx, _, want = reference.backward(tape, dy, dstate)
    dx, _, grads = gradients(layer, case, "float32")
    close(dx, want_dx, 1e-5, "dx", case)
    all_close(grads, want, 1e-5, case)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_past_the_end_are_zero_and_what_comes_there_is_not_read(kind):
    case = Case.random(kind, 12, T=6, B=4, lengths=(2, 0, 6, 4), bidirectional=True, num_layers=2, with_state=True)
    layer = case.layer()
    x, state, dy, dstate = case.arrays()
    want = gradients(layer, case, "float32")
    for row, n in enumerate(case.lengths):
        x[n:, row] = np.nan
        dy[n:, row] = np.nan
    layer.zero_grad()
    _, _, tape = layer.forward(x, public(state), case.lengths)
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    for row, n in enumerate(case.lengths):
        assert not dx[n:, row].any(), case
    same(dx, want[0], case)
    same(parts(dinitial), want[1], case)
    for key, g in layer.grads.items():
        same(g, want[2][key], key, case)


@pytest.mark.parametrize("dtype", BACKWARD)
def test_backward_adds_and_zero_grad_clears_in_place(dtype):
    case = Case.random("lstm", 13, T=5, B=3)
    layer = case.layer(dtype)
    arrays = dict(layer.grads)
    _, _, once = gradients(layer, case, dtype)
    x, state, dy, dstate = case.arrays(dtype)
    _, _, tape = layer.forward(x, public(state), case.lengths)
    layer.backward(tape, dy, public(dstate))
    for key, g in layer.grads.items():
        close(g, 2.0 * once[key].astype(np.float64), BACKWARD[dtype], key, case)
        assert g is arrays[key], key
    layer.zero_grad()
    for key, g in layer.grads.items():
        assert g is arrays[key] and not g.any(), key


@pytest.mark.parametrize("kind", KINDS)
def test_two_tapes_do_not_disturb_each_other(kind):
    case = Case.random(kind, 14, T=5, B=3)
    layer = case.layer()
    want_dx, want_dstate, want = gradients(layer, case, "float32")
    x, state, dy, dstate = case.arrays()
    layer.zero_grad()
    _, _, first = layer.forward(x, public(state), case.lengths)
    _, _, second = layer.forward(x + 1, None, None)
    layer(x - 1)
    dx, dinitial = layer.backward(first, dy, public(dstate))
    same(dx, want_dx, case)
    same(parts(dinitial), want_dstate, case)
    for key, g in layer.grads.items():
        same(g, want[key], key, case)
    layer.backward(second, dy)


@pytest.mark.parametrize("kind", KINDS)
def test_without_dx_the_rest_is_the_same(kind):
    case = Case.random(kind, 15, T=5, B=3, num_layers=2)
    layer = case.layer()
    _, want_dstate, want = gradients(layer, case, "float32")
    x, state, dy, dstate = case.arrays()
    layer.zero_grad()
    _, _, tape = layer.forward(x, public(state), case.lengths)
    dx, dinitial = layer.backward(tape, dy, public(dstate), need_dx=False)
    assert dx is None
    same(parts(dinitial), want_dstate, case)
    for key, g in layer.grads.items():
        same(g, want[key], key, case)


@pytest.mark.parametrize("kind", KINDS)
def test_no_dstate_is_a_zero_dstate(kind):
    case = Case.random(kind, 16, T=5, B=3)
    layer = case.layer()
    x, state, dy, dstate = case.arrays()
    found = []
    for given in (None, public(tuple(np.zeros_like(s) for s in dstate))):
        layer.zero_grad()
        _, _, tape = layer.forward(x, public(state), case.lengths)
        dx, dinitial = layer.backward(tape, dy, given)
        found.append((dx, *parts(dinitial), *(g.copy() for g in layer.grads.values())))
    same(found[0], found[1], case)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_carried_over_chunks_are_those_of_the_whole(kind):
    case = Case.random(kind, 17, T=12, B=4, bidirectional=False, lengths=None, with_state=True)
    layer = case.layer("float64")
    x, state, dy, dstate = case.arrays("float64")
    want_dx, want_dstate, want = gradients(layer, case, "float64")
    layer.zero_grad()
    _, middle, first = layer.forward(x[:5], public(state))
    _, _, second = layer.forward(x[5:], middle)
    dx2, dmiddle = layer.backward(second, dy[5:], public(dstate))
    dx1, dinitial = layer.backward(first, dy[:5], dmiddle)
    close(np.concatenate([dx1, dx2]), want_dx, 1e-12, case)
    all_close(parts(dinitial), want_dstate, 1e-12, case)
    all_close(layer.grads, want, 1e-12, case)
