"""Layers: layouts, seeds, copies, weights that change, arrays of every kind, dropout and the option checks."""

import copy
import pickle

import numpy as np
import pytest
import reference
from cases import BACKWARD, FORWARD, KINDS, Case, all_close, close, parts, public, same

import rnn_core as rc


def swap(a):
    """(T, B, .) <-> (B, T, .)"""
    return np.ascontiguousarray(np.swapaxes(a, 0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_first(kind):
    for seed in range(12):
        case = Case.random(kind, 40 + seed)
        x, state, dy, dstate = case.arrays()
        plain, first = case.layer(), case.layer(batch_first=True)
        y, final, tape = plain.forward(x, public(state), case.lengths)
        dx, dinitial = plain.backward(tape, dy, public(dstate))
        got, got_final, tape = first.forward(swap(x), public(state), case.lengths)
        same(got, swap(y), case)
        same(parts(got_final), parts(final), case)
        same(first(swap(x), public(state), case.lengths)[0], swap(y), case)
        got_dx, got_dinitial = first.backward(tape, swap(dy), public(dstate))
        same(got_dx, swap(dx), case)
        same(parts(got_dinitial), parts(dinitial), case)
        for key, g in first.grads.items():
            same(g, plain.grads[key], key, case)


def test_batch_first_counts_when_it_is_set():
    layer = rc.GRU(3, 8, seed=0)
    x, dy = (np.random.default_rng(i).standard_normal((5, 2, n)).astype(np.float32) for i, n in enumerate((3, 8)))
    y, h, tape = layer.forward(x)
    dx, dh = layer.backward(tape, dy)
    _, _, before = layer.forward(x)
    layer.batch_first = True
    got, got_h, tape = layer.forward(swap(x))
    same((got, got_h), (swap(y), h))
    got_dx, got_dh = layer.backward(tape, swap(dy))
    same((got_dx, got_dh), (swap(dx), dh))
    same(layer.backward(before, dy), (dx, dh))  # as its forward was


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(kind, batch_first):
    for seed in range(6):
        case = Case.random(kind, 60 + seed, B=1, lengths=None)
        x, state, dy, dstate = case.arrays()
        layer = case.layer(batch_first=batch_first)
        batched = case.layer()
        y, final, tape = batched.forward(x, public(state))
        dx, dinitial = batched.backward(tape, dy, public(dstate))

        def alone(s):
            return None if s is None else public(tuple(a[:, 0] for a in parts(s)))

        got, got_final = layer(x[:, 0], alone(public(state)))
        same(got, y[:, 0], case)
        same(parts(got_final), parts(alone(final)), case)
        got, got_final, tape = layer.forward(x[:, 0], alone(public(state)))
        same(got, y[:, 0], case)
        got_dx, got_dinitial = layer.backward(tape, dy[:, 0], alone(public(dstate)))
        same(got_dx, dx[:, 0], case)
        same(parts(got_dinitial), parts(alone(dinitial)), case)


def test_keys_and_shapes_are_those_of_torch():
    layer = rc.LSTM(3, 5, 2, bidirectional=True, proj_size=2)
    shapes = {}
    for end, I in (("_l0", 3), ("_l0_reverse", 3), ("_l1", 4), ("_l1_reverse", 4)):
        shapes |= {"weight_ih" + end: (20, I), "weight_hh" + end: (20, 2), "weight_hr" + end: (2, 5)}
        shapes |= {"bias_ih" + end: (20,), "bias_hh" + end: (20,)}
    assert {key: p.shape for key, p in layer.params.items()} == shapes
    assert {key: g.shape for key, g in layer.grads.items()} == shapes
    assert layer.num_parameters() == sum(int(np.prod(s)) for s in shapes.values())
    assert set(rc.GRU(3, 5, bias=False).params) == {"weight_ih_l0", "weight_hh_l0"}


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_seeds_and_initial_weights(name):
    make = getattr(rc, name)
    one, same_seed, other = make(9, 30, 2, seed=3), make(9, 30, 2, seed=3), make(9, 30, 2, seed=4)
    unseeded = [make(9, 30), make(9, 30)]
    for key, p in one.params.items():
        same(p, same_seed.params[key], key)
        assert (p != other.params[key]).any(), key
        assert np.abs(p).max() <= 30**-0.5
        if p.size > 200:
            assert abs(p.mean()) < 0.02 and abs(p.std() * 30**0.5 - 3**-0.5) < 0.05, key
    assert (unseeded[0].params["weight_hh_l0"] != unseeded[1].params["weight_hh_l0"]).any()


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_equal_and_independent(kind, copied):
    case = Case.random(kind, 70, bidirectional=True, lengths=None)
    layer = case.layer()
    x, state, dy, _ = case.arrays()
    want, _ = layer(x, public(state))
    twin = copied(layer)
    same(twin(x, public(state))[0], want, case)
    twin.load_state_dict({key: p + 1 for key, p in twin.params.items()})
    same(layer(x, public(state))[0], want, case)
    _, _, tape = twin.forward(x, public(state))
    twin.backward(tape, dy)
    assert not any(g.any() for g in layer.grads.values())


@pytest.mark.parametrize("kind", KINDS)
def test_cells_copy_too(kind):
    name, options = KINDS[kind]
    cell = getattr(rc, name + "Cell")(3, 5, seed=1, **options)
    x = np.ones((2, 3), np.float32)
    want = parts(cell(x))
    for twin in (copy.deepcopy(cell), pickled(cell)):
        same(parts(twin(x)), want)
        twin.assign("weight_ih", twin.params["weight_ih"] + 1)
        same(parts(cell(x)), want)


def test_state_dict_is_a_copy_and_loads_into_the_other_dtype():
    layer = rc.LSTM(3, 4, seed=1)
    state = layer.state_dict()
    kept = layer.params["weight_ih_l0"].copy()
    state["weight_ih_l0"][:] = 0
    same(layer.params["weight_ih_l0"], kept)
    wide = rc.LSTM(3, 4, dtype="float64")
    wide.load_state_dict(layer.state_dict())
    assert np.array_equal(wide.params["weight_ih_l0"], kept)


def test_params_are_read_only():
    layer = rc.GRU(3, 4)
    for p in layer.params.values():
        with pytest.raises(ValueError):
            p[...] = 0
        with pytest.raises(ValueError):
            p.flags.writeable = True


def check_fresh(layer, case):
    """Inference, training and gradients follow the params as they are now."""
    x, state, dy, dstate = case.arrays()
    want, _, reference_tape = reference.forward(case.cell(), layer.params, x, state, case.lengths)
    _, _, want_grads = reference.backward(reference_tape, dy, dstate)
    close(layer(x, public(state), case.lengths)[0], want, FORWARD["float32"], case)
    layer.zero_grad()
    y, _, tape = layer.forward(x, public(state), case.lengths)
    close(y, want, FORWARD["float32"], case)
    layer.backward(tape, dy, public(dstate))
    all_close(layer.grads, want_grads, BACKWARD["float32"], case)


def load(layer, rng):
    layer.load_state_dict({k: rng.uniform(-0.4, 0.4, p.shape).astype(np.float32) for k, p in layer.params.items()})


def assign(layer, rng):
    for key, p in layer.params.items():
        layer.assign(key, rng.uniform(-0.4, 0.4, p.shape).astype(np.float32))


def optimise(layer, rng):
    for g in layer.grads.values():
        g[...] = rng.standard_normal(g.shape)
    rc.optim.Adam(layer.params, lr=0.05).step(layer.grads)


@pytest.mark.parametrize("write", [load, assign, optimise])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_never_stale(kind, write):
    case = Case.random(kind, 80, T=4, B=3)
    layer = case.layer()
    rng = case.rng(5)
    for _ in range(3):
        check_fresh(layer, case)
        before = layer.state_dict()
        write(layer, rng)
        assert all((p != before[key]).any() for key, p in layer.params.items()), case


@pytest.mark.parametrize("write", [load, assign])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_of_cells_are_never_stale(kind, write):
    name, options = KINDS[kind]
    cell = getattr(rc, name + "Cell")(6, 20, seed=1, **options)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 6)).astype(np.float32)
    zero = tuple(np.zeros((2, 20), np.float32) for _ in range(1 + (kind == "lstm")))
    for _ in range(3):
        write(cell, rng)
        want, _ = reference.cell_forward(getattr(reference, name)(**options), cell.params, x, zero)
        all_close(parts(cell(x)), want, FORWARD["float32"])
        all_close(parts(cell.step(x, public(zero))), want, FORWARD["float32"])


ODD_ARRAYS = {
    "read-only": lambda a: readonly(a.copy()),
    "transposed": lambda a: np.asfortranarray(a),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[::-1].copy()[::-1],
    "unaligned": lambda a: unaligned(a),
    "list": lambda a: a.tolist(),
}


def readonly(a):
    a.flags.writeable = False
    return a


def unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    out = raw[1:].view(a.dtype).reshape(a.shape) if a.size else a.copy()
    out[...] = a
    return out


@pytest.mark.parametrize("how", ODD_ARRAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_kind(kind, how):
    case = Case.random(kind, 90, T=4, B=3, lengths=(4, 0, 2), with_state=True)
    odd = ODD_ARRAYS[how]
    x, state, dy, dstate = case.arrays()
    found = []
    for change in (lambda a: a, odd):
        layer = case.layer()
        y, final, tape = layer.forward(change(x), public(tuple(map(change, state))), case.lengths)
        dx, dinitial = layer.backward(tape, change(dy), public(tuple(map(change, dstate))))
        inferred = layer(change(x), public(tuple(map(change, state))), case.lengths)
        found.append((y, *parts(final), dx, *parts(dinitial), inferred[0], *parts(inferred[1]), *layer.grads.values()))
    same(found[1], found[0], how, case)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_of_every_kind(kind):
    case = Case.random(kind, 91, T=5, B=3)
    layer = case.layer()
    x, state, _, _ = case.arrays()
    want = layer(x, public(state), [5, 0, 2])[0]
    for lengths in (
        (5, 0, 2),
        np.array([5, 0, 2], np.int32),
        np.array([5, 0, 2], np.uint8),
        np.array([5, 9, 0, 9, 2])[::2],
    ):
        same(layer(x, public(state), lengths)[0], want, lengths, case)
    assert not layer(x, public(state), [0, 0, 0])[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_results_belong_to_the_caller(kind):
    """A later call, or writing into one result, changes no other result, the arguments or the layer."""
    case = Case.random(kind, 92, T=4, B=2, with_state=True)
    layer = case.layer()
    x, state, _, _ = case.arrays()
    kept = (x.copy(), *(s.copy() for s in state))
    y, final = layer(x, public(state), case.lengths)
    want = (y.copy(), *(s.copy() for s in parts(final)))
    layer(x + 1, public(state), case.lengths)
    layer.forward(x + 1, public(state), case.lengths)
    same((y, *parts(final)), want, case)
    for array in (y, *parts(final)):
        array[...] = 7
    same((x, *state), kept, case)
    again, final = layer(x, public(state), case.lengths)
    same((again, *parts(final)), want, case)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_state_is_zero(kind):
    case = Case.random(kind, 93, with_state=True)
    layer = case.layer()
    x, state, _, _ = case.arrays()
    zero = public(tuple(np.zeros_like(s) for s in state))
    y, final = layer(x, None, case.lengths)
    want, want_final = layer(x, zero, case.lengths)
    same((y, *parts(final)), (want, *parts(want_final)), case)


# ---- Dropout between the layers ------------------------------------------------------------------------------------


def dropped(kind, seed=100, p=0.4, **fixed):
    case = Case.random(kind, seed, **({"num_layers": 3, "T": 9, "B": 4} | fixed))
    return case, case.layer(dropout=p, seed=5)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_masks_on_the_tape_reproduce_the_run(kind):
    for seed in range(100, 106):
        case, layer = dropped(kind, seed)
        x, state, dy, dstate = case.arrays()
        y, final, tape = layer.forward(x, public(state), case.lengths)
        masks = tape.masks
        assert len(masks) == 2 and all(m.shape == (9, 4, case.directions * case.outputs) for m in masks)
        want, want_final, reference_tape = reference.forward(case.cell(), layer.params, x, state, case.lengths, masks)
        want_dx, want_dinitial, want_grads = reference.backward(reference_tape, dy, dstate)
        close(y, want, FORWARD["float32"], case)
        all_close(parts(final), want_final, FORWARD["float32"], case)
        dx, dinitial = layer.backward(tape, dy, public(dstate))
        close(dx, want_dx, BACKWARD["float32"], case)
        all_close(parts(dinitial), want_dinitial, BACKWARD["float32"], case)
        all_close(layer.grads, want_grads, BACKWARD["float32"], case)


def test_dropout_keeps_its_share_and_scales_by_it():
    case, layer = dropped("lstm", hidden_size=40, proj_size=0, T=20, B=9, lengths=None)
    x, *_ = case.arrays()
    masks = [m for _ in range(5) for m in layer.forward(x)[2].masks]
    factors = np.concatenate([m.ravel() for m in masks])
    assert set(np.unique(factors)) == {0.0, np.float32(1 / 0.6)}
    assert abs((factors == 0).mean() - 0.4) < 0.01
    assert (masks[0] != masks[1]).any() and (masks[0] != masks[2]).any()


def test_dropout_is_off_in_inference_and_at_zero():
    case, layer = dropped("gru")
    x, state, _, _ = case.arrays()
    plain = case.layer()
    same(layer(x, public(state), case.lengths)[0], plain(x, public(state), case.lengths)[0], case)
    case, none = dropped("gru", p=0.0)
    same(none.forward(x, public(state), case.lengths)[0], plain(x, public(state), case.lengths)[0], case)


def test_dropout_follows_the_seed_and_the_call(threads):
    case, layer = dropped("lstm", lengths=None)
    x, *_ = case.arrays()
    threads(1)
    first, second = layer.forward(x)[0], layer.forward(x)[0]
    assert (first != second).any()
    _, again = dropped("lstm", lengths=None)
    threads(2)
    same(again.forward(x)[0], first, case)
    same(again.forward(x)[0], second, case)


def test_dropout_does_not_depend_on_the_batch_or_the_length():
    case, layer = dropped("gru", lengths=None, with_state=False)
    x, *_ = case.arrays()
    _, part = dropped("gru", lengths=None, with_state=False)
    for whole, some in zip(layer.forward(x)[2].masks, part.forward(x[:5, :2])[2].masks):
        same(some, whole[:5, :2], case)


def test_all_or_nothing_dropout():
    case, layer = dropped("rnn_tanh", p=1.0, lengths=None, bias=False)
    x, *_ = case.arrays()
    y, _, tape = layer.forward(x)
    assert not y.any() and not any(m.any() for m in tape.masks)


def test_a_mask_belongs_to_its_sequence_and_step(threads):
    """Not to the batch around it, the length or the threads: counter-based."""
    case, layer = dropped("gru", lengths=None, T=9, B=6)
    x, *_ = case.arrays()
    want = layer.forward(x)[2].masks
    for T, B, n in ((9, 2, 1), (4, 6, 2), (3, 5, 3)):
        threads(n)
        _, again = dropped("gru", lengths=None, T=9, B=6)
        for mask, whole in zip(again.forward(x[:T, :B])[2].masks, want):
            same(mask, np.ascontiguousarray(whole[:T, :B]), T, B)
