"""The reference itself: its gradients against central differences, and facts that need no other program."""

import numpy as np
import pytest
import reference
from cases import KINDS, close, differences


def network(kind, *, layers=2, directions=2, bias=True, proj=0, I=3, H=3, seed=0):
    """The reference's cell and random params under PyTorch's keys."""
    rng = np.random.default_rng(seed)
    name, options = KINDS[kind]
    cell = getattr(reference, name)(**options)
    rows, P, params = cell.gates * H, proj or H, {}
    for layer in range(layers):
        for direction in range(directions):
            end = reference.suffix(layer, direction)
            params["weight_ih" + end] = rng.uniform(-1, 1, (rows, I if layer == 0 else directions * P))
            params["weight_hh" + end] = rng.uniform(-1, 1, (rows, P))
            if bias:
                params["bias_ih" + end] = rng.uniform(-1, 1, rows)
                params["bias_hh" + end] = rng.uniform(-1, 1, rows)
            if proj:
                params["weight_hr" + end] = rng.uniform(-1, 1, (P, H))
    return cell, params


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"layers": 1, "directions": 1}], ids=str)
@pytest.mark.parametrize("kind, proj", [*((kind, 0) for kind in KINDS), ("lstm", 2)])
def test_gradients_are_those_of_central_differences(kind, proj, options):
    cell, params = network(kind, proj=proj, **options)
    rng = np.random.default_rng(1)
    lengths = [3, 0, 2]
    x = rng.standard_normal((3, 3, 3))
    k = options.get("layers", 2) * options.get("directions", 2)
    state = tuple(rng.standard_normal((k, 3, n)) for n in (proj or 3, 3)[: cell.states])
    y, final, _ = reference.forward(cell, params, x, state, lengths)
    masks = [rng.integers(0, 2, y.shape) * 2.0] if options.get("layers", 2) == 2 else None
    dy, dfinal = rng.standard_normal(y.shape), tuple(rng.standard_normal(s.shape) for s in final)

    def loss():
        y, final, _ = reference.forward(cell, params, x, state, lengths, masks)
        return np.sum(y * dy) + sum(np.sum(s * d) for s, d in zip(final, dfinal))

    *_, tape = reference.forward(cell, params, x, state, lengths, masks)
    dx, dstate, grads = reference.backward(tape, dy, dfinal)
    close(dx, differences(loss, x), 1e-8, "dx")
    for n, (got, of) in enumerate(zip(dstate, state)):
        close(got, differences(loss, of), 1e-8, "dstate", n)
    assert set(grads) == set(params)
    for key in params:
        close(grads[key], differences(loss, params[key]), 1e-8, key)


@pytest.mark.parametrize("kind", KINDS)
def test_cell_is_one_step_of_a_layer(kind):
    cell, params = network(kind, layers=1, directions=1)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 3))
    state = tuple(rng.standard_normal((2, 3)) for _ in range(cell.states))
    dfinal = tuple(rng.standard_normal((2, 3)) for _ in range(cell.states))
    bare = {key.removesuffix("_l0"): value for key, value in params.items()}
    after, tape = reference.cell_forward(cell, bare, x, state)
    dx, dstate, grads = reference.cell_backward(tape, dfinal)

    y, final, layer_tape = reference.forward(cell, params, x[None], tuple(s[None] for s in state))
    layer_dx, layer_dstate, layer_grads = reference.backward(layer_tape, 0 * y, tuple(s[None] for s in dfinal))
    close(dx, layer_dx[0], 1e-15)
    for n in range(cell.states):
        close(after[n], final[n][0], 1e-15)
        close(dstate[n], layer_dstate[n][0], 1e-15)
    for key, value in grads.items():
        close(value, layer_grads[key + "_l0"], 1e-14, key)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ragged_row_is_that_sequence_alone(kind):
    cell, params = network(kind)
    x = np.random.default_rng(3).standard_normal((6, 4, 3))
    lengths = [2, 6, 0, 5]
    y, final, _ = reference.forward(cell, params, x, None, lengths)
    for row, n in enumerate(lengths):
        alone, state, _ = reference.forward(cell, params, x[:n, row : row + 1])
        assert np.array_equal(y[:n, row], alone[:, 0]) and not y[n:, row].any()
        for f, s in zip(final, state):
            assert np.array_equal(f[:, row], s[:, 0])


def test_all_states_hold_every_step():
    cell, params = network("lstm", layers=1)
    x = np.random.default_rng(4).standard_normal((5, 2, 3))
    y, final, tape = reference.forward(cell, params, x)
    h, c = tape.all_states
    assert np.array_equal(np.concatenate([h[0], h[1]], axis=-1), y)
    assert np.array_equal(c[0, -1], final[1][0]) and np.array_equal(c[1, 0], final[1][1])


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        assert np.array_equal(reference.sigmoid(np.array([-1e4, 0.0, 1e4])), [0.0, 0.5, 1.0])
