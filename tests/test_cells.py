"""Cells: one step forward and backward against the reference, and the step that allocates nothing."""

import sys

import numpy as np
import pytest
import reference
from cases import BACKWARD, FORWARD, KINDS, Case, all_close, cell_of, close, exact_bits, parts, public, same

import rnn_core as rc


def step_case(kind, seed, **fixed):
    """A case of one layer, one direction, no projection, one step: what a cell does."""
    return Case.random(
        kind, seed, **({"num_layers": 1, "bidirectional": False, "proj_size": 0, "T": 1, "lengths": None} | fixed)
    )


def cell_and_arrays(case, dtype="float32"):
    """The cell, x (B, I), state and dstate as tuples of (B, H)."""
    cell = cell_of(case.layer(dtype), case, dtype)
    x, state, _, dstate = case.arrays(dtype)
    state = tuple(s[0] for s in state) if state else tuple(np.zeros_like(s[0]) for s in dstate)
    return cell, x[0], state, tuple(s[0] for s in dstate)


@pytest.mark.parametrize("kind", KINDS)
def test_random_cases(kind):
    for seed in range(80):
        case = step_case(kind, seed)
        for dtype in FORWARD:
            cell, x, state, dstate = cell_and_arrays(case, dtype)
            if dtype == "float32":
                want, tape = reference.cell_forward(case.cell(), cell.params, x, state)
                want_dx, want_dstate, want_grads = reference.cell_backward(tape, dstate)
            all_close(parts(cell(x, public(state))), want, FORWARD[dtype], "cell(x)", dtype, case)
            all_close(parts(cell.step(x, public(state))), want, FORWARD[dtype], "step", dtype, case)
            after, tape = cell.forward(x, public(state))
            all_close(parts(after), want, FORWARD[dtype], "forward", dtype, case)
            dx, dinitial = cell.backward(tape, public(dstate))
            close(dx, want_dx, BACKWARD[dtype], "dx", dtype, case)
            all_close(parts(dinitial), want_dstate, BACKWARD[dtype], "dstate", dtype, case)
            all_close(cell.grads, want_grads, BACKWARD[dtype], "grads", dtype, case)


@pytest.mark.parametrize("H", [64, 200, 257])
@pytest.mark.parametrize("kind", KINDS)
def test_large(kind, H):
    for B in (1, 5):
        case = step_case(kind, H, hidden_size=H, input_size=H // 2, B=B)
        cell, x, state, _ = cell_and_arrays(case)
        want, _ = reference.cell_forward(case.cell(), cell.params, x, state)
        all_close(parts(cell(x, public(state))), want, FORWARD["float32"], case)
        all_close(parts(cell.step(x, public(state))), want, FORWARD["float32"], case)


@pytest.mark.parametrize("kind", KINDS)
def test_no_state_is_a_zero_state(kind):
    case = step_case(kind, 1)
    cell, x, state, _ = cell_and_arrays(case)
    zero = public(tuple(np.zeros_like(s) for s in state))
    same(parts(cell(x)), parts(cell(x, zero)), case)
    same(parts(cell.forward(x)[0]), parts(cell(x, zero)), case)


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(kind):
    case = step_case(kind, 2, B=1)
    cell, x, state, dstate = cell_and_arrays(case)
    alone = tuple(s[0] for s in state)
    after = parts(cell(x[0], public(alone)))
    assert all(s.shape == (case.hidden_size,) for s in after), case
    same(after, tuple(s[0] for s in parts(cell(x, public(state)))), case)
    same(parts(cell.step(x[0], public(alone))), after, case)
    result, tape = cell.forward(x[0], public(alone))
    same(parts(result), after, case)
    dx, dinitial = cell.backward(tape, public(tuple(s[0] for s in dstate)))
    assert dx.shape == (case.input_size,) and all(s.shape == (case.hidden_size,) for s in parts(dinitial))


@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize("kind", KINDS)
def test_out_over_its_own_state_gives_the_same_bits(kind, dtype):
    for seed in range(20):
        case = step_case(kind, seed, with_state=True)
        cell, x, state, _ = cell_and_arrays(case, dtype)
        want = public(state)
        held = public(tuple(s.copy() for s in state))
        other = public(tuple(np.full_like(s, np.nan) for s in state))
        for _ in range(3):
            before = want
            want = cell.step(x, before)
            assert cell.step(x, before, out=other) is other, case
            same(parts(other), parts(want), case)
            assert cell.step(x, held, out=held) is held, case
            same(parts(held), parts(want), case)


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_any_layout(kind):
    case = step_case(kind, 7, with_state=True)
    cell, x, state, _ = cell_and_arrays(case)
    want = parts(cell(x, public(state)))
    spread = tuple(np.zeros((case.B, 2 * case.hidden_size), np.float32)[:, ::2] for _ in state)
    assert cell.step(x, public(state), out=public(spread)) is not None
    same(spread, want, case)
    same(parts(cell.step(x.tolist(), public(tuple(map(np.asfortranarray, state))))), want, case)


@pytest.mark.parametrize("kind", KINDS)
def test_step_with_out_keeps_no_memory(kind):
    case = step_case(kind, 3, B=1, with_state=True)
    cell, x, state, _ = cell_and_arrays(case)
    state = public(state)
    for _ in range(50):
        state = cell.step(x, state, out=state)
    before = sys.getallocatedblocks()
    for _ in range(1000):
        state = cell.step(x, state, out=state)
    assert sys.getallocatedblocks() - before < 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_arguments_are_left_as_they_were(kind):
    case = step_case(kind, 4, with_state=True)
    cell, x, state, _ = cell_and_arrays(case)
    kept = (x.copy(), *(s.copy() for s in state))
    for array in (x, *state):
        array.flags.writeable = False
    cell(x, public(state))
    cell.step(x, public(state))
    cell.forward(x, public(state))
    same((x, *state), kept, case)


@exact_bits
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_taking_a_step_gives_the_same_bits(kind):
    for seed in range(100):
        case = step_case(kind, 500 + seed)
        cell, x, state, _ = cell_and_arrays(case)
        want = parts(cell(x, public(state)))
        same(parts(cell.step(x, public(state))), want, "step", case)
        same(parts(cell.forward(x, public(state))[0]), want, "forward", case)
        row = case.rng(3).integers(case.B)
        alone = parts(cell.step(x[row], public(tuple(s[row] for s in state))))
        same(alone, tuple(s[row] for s in want), "row", row, case)


def test_keys_and_shapes_are_those_of_torch():
    for cell, G in ((rc.LSTMCell(3, 5), 4), (rc.GRUCell(3, 5), 3), (rc.RNNCell(3, 5), 1)):
        assert {key: p.shape for key, p in cell.params.items()} == {
            "weight_ih": (G * 5, 3),
            "weight_hh": (G * 5, 5),
            "bias_ih": (G * 5,),
            "bias_hh": (G * 5,),
        }
        assert all(np.abs(p).max() <= 5**-0.5 for p in cell.params.values())
    assert set(rc.GRUCell(3, 5, bias=False).params) == {"weight_ih", "weight_hh"}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_through_time_train(kind):
    """BPTT by hand over a cell is the layer's BPTT."""
    case = step_case(kind, 6, T=7, B=3, with_state=True)
    layer = case.layer("float64")
    cell = cell_of(layer, case, "float64")
    x, state, dy, dstate = case.arrays("float64")
    _, _, tape = layer.forward(x, public(state))
    want_dx, want_dstate = layer.backward(tape, dy, public(dstate))
    tapes, now = [], public(tuple(s[0] for s in state))
    for t in range(case.T):
        now, tape = cell.forward(x[t], now)
        tapes.append(tape)
    d = tuple(s[0] for s in dstate)
    for t in reversed(range(case.T)):
        dx, back = cell.backward(tapes[t], public((d[0] + dy[t], *d[1:])))
        d = parts(back)
        close(dx, want_dx[t], 1e-12, t, case)
    all_close(d, tuple(s[0] for s in parts(want_dstate)), 1e-12, case)
    all_close(cell.grads, {key.removesuffix("_l0"): g for key, g in layer.grads.items()}, 1e-12, case)


def test_a_step_into_one_array_twice_is_refused():
    cell, state = rc.LSTMCell(3, 4, seed=0), tuple(np.zeros((2, 4), np.float32) for _ in range(2))
    with pytest.raises(ValueError, match="overlap"):
        cell.step(np.ones((2, 3), np.float32), state, out=(state[0], state[0]))
    assert not state[0].any() and not state[1].any()
