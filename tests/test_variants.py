"""weight_drop and the other variants of the recurrent layers, against plain NumPy and its central differences."""

import copy
import pickle

import numpy as np
import pytest
import reference_variants as reference
from cases import BACKWARD, FORWARD, KINDS, Case, all_close, close, differences, parts, public, same

import rnn_core as rc

MASKED = [{"weight_drop": 0.4}, {"recurrent_dropout": 0.4}, {"zoneout": 0.3}]
TOGETHER = {"weight_drop": 0.2, "recurrent_dropout": 0.3, "zoneout": 0.2}
NORMED = [{"layer_norm": True}, {"layer_norm": True} | TOGETHER]
OPTIONS = [*MASKED, TOGETHER, *NORMED]
SEED = 5


def small(kind, seed, **fixed):
    """A case whose every gradient can be had by differences."""
    sizes = {"input_size": 2, "hidden_size": 3, "T": 4, "B": 3, "lengths": (4, 0, 3), "with_state": True}
    return Case.random(kind, seed, **(sizes | {"num_layers": 2, "bidirectional": True} | fixed))


def random_case(kind, seed, options):
    """With layer_norm not of a handful of units: float32's rounding of two that lie close decides their deviation."""
    case = Case.random(kind, seed)
    if options.get("layer_norm") and case.hidden_size < 6:
        case = Case.random(kind, seed, hidden_size=case.hidden_size + 6)
    return case


def make(case, dtype, options):
    """The layer, its normalisations' parameters off their starting values."""
    layer = case.layer(dtype, seed=SEED, **options)
    for key in layer.params:
        if "_ln_" in key:
            values = np.asarray(layer.params[key])
            layer.assign(key, (values + (1.0 if key.startswith("weight") else 0.0)).astype(dtype))
    return layer


def loss_of(case, layer, masks, x, state, dy, dstate, params=None, between=None):
    """sum(y dy) + sum(final dfinal) of the reference."""
    params = params or {key: np.asarray(p, np.float64) for key, p in layer.params.items()}
    lengths = case.lengths or (case.T,) * case.B
    y, final = reference.forward(case.kind, params, x, state, lengths, masks, between)
    return np.sum(y * dy) + sum(np.sum(f * d) for f, d in zip(final, dstate))


def states_of(case, dtype="float64"):
    shape = (case.num_layers * case.directions, case.B)
    sizes = (case.outputs, case.hidden_size) if case.kind == "lstm" else (case.outputs,)
    return tuple(np.zeros((*shape, n), dtype) for n in sizes)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_the_reference(kind, dtype, options):
    for seed in range(6):
        case = random_case(kind, 200 + seed, options)
        layer = make(case, dtype, options)
        x, state, _, _ = case.arrays(dtype)
        y, final, tape = layer.forward(x, public(state), case.lengths)
        params = {key: np.asarray(p, np.float64) for key, p in layer.params.items()}
        lengths = case.lengths or (case.T,) * case.B
        want, want_final = reference.forward(
            kind, params, x.astype(np.float64), states_of(case) if state is None else state, lengths, tape.variant_masks
        )
        close(y, want, 4 * FORWARD[dtype], case, options)
        all_close(parts(final), want_final, 4 * FORWARD[dtype], case, options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind, proj", [*((kind, 0) for kind in KINDS), ("lstm", 2)])
def test_gradients_are_central_differences(kind, proj, options):
    fixed = {"T": 3, "lengths": (3, 0, 2)} if options.get("layer_norm") else {}
    case = small(kind, 1, proj_size=proj, bias=True, num_layers=1 if options in NORMED[:1] else 2, **fixed)
    layer = make(case, "float64", options | {"dropout": 0.5})
    x, state, dy, dstate = case.arrays("float64")
    _, _, tape = layer.forward(x, public(state), case.lengths)
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    params = {key: np.array(p) for key, p in layer.params.items()}

    def loss():
        return loss_of(case, layer, tape.variant_masks, x, state, dy, dstate, params, tape.masks)

    close(dx, differences(loss, x, 1e-6), 1e-6, "dx", case)
    for n, (got, of) in enumerate(zip(parts(dinitial), state)):
        close(got, differences(loss, of, 1e-6), 1e-6, "dstate", n, case)
    for key, p in params.items():
        close(layer.grads[key], differences(loss, p, 1e-6), 1e-6, key, case)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_gradients_are_those_of_float64(kind, options):
    for seed in range(4):
        case = random_case(kind, 220 + seed, options)
        found = {}
        for dtype in ("float32", "float64"):
            layer = make(case, dtype, options)
            x, state, dy, dstate = case.arrays(dtype)
            _, _, tape = layer.forward(x, public(state), case.lengths)
            dx, dinitial = layer.backward(tape, dy, public(dstate))
            found[dtype] = {"dx": dx, **{f"d{n}": d for n, d in enumerate(parts(dinitial))}, **layer.grads}
        all_close(found["float32"], found["float64"], 4 * BACKWARD["float32"], case, options)


def run(layer, case, x, state, dy, dstate):
    """Everything that a step of training computes."""
    layer.calls = 0
    layer.zero_grad()
    y, final, tape = layer.forward(x, public(state), case.lengths)
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    inference, after = layer(x, public(state), case.lengths)
    return y, *parts(final), dx, *parts(dinitial), inference, *parts(after), *(g.copy() for g in layer.grads.values())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_the_threads(kind, options, threads):
    for seed, (B, H) in enumerate([(1, 70), (5, 33), (40, 48)]):
        case = Case.random(kind, 240 + seed, B=B, hidden_size=H, T=17, proj_size=0, num_layers=2, lengths=None)
        arrays = case.arrays()
        layer = make(case, "float32", options)
        threads(1)
        want = run(layer, case, *arrays)
        for n in (2, 3):
            threads(n)
            same(run(layer, case, *arrays), want, n, case)


@pytest.mark.parametrize("options", MASKED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_follow_seed_and_call(kind, options):
    case = small(kind, 3)
    x = case.arrays()[0]
    one, twin = case.layer(seed=SEED, **options), case.layer(seed=SEED, **options)
    first, second = (one.forward(x, None, case.lengths)[2].variant_masks for _ in range(2))
    again = twin.forward(x, None, case.lengths)[2].variant_masks
    other = case.layer(seed=SEED + 1, **options).forward(x, None, case.lengths)[2].variant_masks
    assert first.keys() == again.keys() and first
    for name, arrays in first.items():
        assert len(arrays) == 4  # two layers, two directions
        for n, mask in enumerate(arrays):
            same(mask, again[name][n], name, n)
        together = [np.concatenate([m.ravel() for m in masks[name]]) for masks in (first, second, other)]
        assert (together[0] != together[1]).any() and (together[0] != together[2]).any(), name
        assert any((arrays[0].shape != m.shape or (arrays[0] != m).any()) for m in arrays[1:]), name


def test_options_are_checked():
    for option in MASKED:
        for name in option:
            for bad in (-0.1, 1.5, float("nan")):
                with pytest.raises(ValueError, match=f"{name}: expected"):
                    rc.LSTM(2, 3, **{name: bad})
            with pytest.raises(TypeError, match=f"{name}: expected"):
                rc.LSTM(2, 3, **{name: "much"})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_copies_keep_the_options(options):
    case = small("lstm", 4)
    layer = make(case, "float32", options)
    x = case.arrays()[0]
    layer.forward(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer) and all(name in repr(layer) for name in options)
        same(twin.forward(x)[0], copy.deepcopy(layer).forward(x)[0])
        same(twin(x)[0], layer(x)[0])


# ---- weight_drop


def test_weight_drop_keeps_its_share_of_the_weights():
    layer = rc.GRU(4, 100, weight_drop=0.25, bidirectional=True, seed=1)
    masks = layer.forward(np.zeros((2, 2, 4), np.float32))[2].variant_masks["weight_drop"]
    for mask in masks:
        assert mask.shape == (300, 100)
        assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.75)}
        assert abs(np.mean(mask == 0) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / mask.size)
        assert np.ptp(np.mean(mask == 0, axis=0)) < 0.3 and np.ptp(np.mean(mask == 0, axis=1)) < 0.5


@pytest.mark.parametrize("option", ["weight_drop", "recurrent_dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_dropped_layers_infer_as_plain_ones(kind, option):
    case = Case.random(kind, 260)
    x, state, _, _ = case.arrays()
    plain, dropped = case.layer(), case.layer(**{option: 0.5})
    same(dropped(x, public(state), case.lengths)[0], plain(x, public(state), case.lengths)[0], case)
    none = case.layer(**{option: 0.0})
    y, _, tape = none.forward(x, public(state), case.lengths)
    same(y, plain(x, public(state), case.lengths)[0], case)
    assert tape.variant_masks == {}


def test_weight_drop_of_everything_leaves_no_recurrence():
    layer = rc.RNN(2, 3, weight_drop=1.0, seed=0)
    x = np.random.default_rng(0).standard_normal((3, 1, 2)).astype(np.float32)
    y, _, tape = layer.forward(x)
    for t in range(3):
        same(y[t], layer(x[t : t + 1])[0][0])
    layer.backward(tape, np.ones_like(y))
    assert not layer.grads["weight_hh_l0"].any() and layer.grads["weight_ih_l0"].any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_gives_the_same_bits(kind, options):
    case = Case.random(kind, 280, T=90, B=9, bidirectional=False, num_layers=2, with_state=True)
    x, state, dy, dstate = case.arrays()
    found = []
    for recompute in (False, True):
        layer = make(case, "float32", options)
        y, final, tape = layer.forward(x, public(state), case.lengths, recompute=recompute)
        dx, dinitial = layer.backward(tape, dy, public(dstate))
        found.append((y, *parts(final), dx, *parts(dinitial), *layer.grads.values()))
    same(found[1], found[0], case)


def test_the_general_path_refuses_variants():
    for options in OPTIONS:
        with pytest.raises(ValueError, match="general path"):
            rc.general.GeneralLSTM(2, 3, **options)


# ---- recurrent_dropout and zoneout


def test_recurrent_dropout_has_one_mask_a_sequence_and_unit():
    layer = rc.LSTM(4, 200, recurrent_dropout=0.25, seed=1)
    (mask,) = layer.forward(np.zeros((2, 50, 4), np.float32))[2].variant_masks["recurrent_dropout"]
    assert mask.shape == (50, 200) and set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(np.mean(mask == 0) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / mask.size)
    assert (mask[0] != mask[1]).any()


def test_zoneout_keeps_its_share():
    layer = rc.LSTM(4, 100, zoneout=0.25, seed=1)
    masks = layer.forward(np.zeros((20, 10, 4), np.float32))[2].variant_masks
    (h,), (c,) = masks["zoneout_h"], masks["zoneout_c"]
    assert h.shape == c.shape == (20, 10, 100) and (h != c).any() and (h[0] != h[1]).any()
    for mask in (h, c):
        assert set(np.unique(mask)) == {0, 1}
        assert abs(np.mean(mask == 0) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / mask.size)


@pytest.mark.parametrize("kind", KINDS)
def test_zoneout_infers_by_its_expectation(kind):
    for seed in range(4):
        case = Case.random(kind, 290 + seed)
        layer = case.layer("float64", zoneout=0.3)
        x, state, _, _ = case.arrays("float64")
        params = {key: np.asarray(p) for key, p in layer.params.items()}
        lengths = case.lengths or (case.T,) * case.B
        y, final = layer(x, public(state), case.lengths)
        before = states_of(case) if state is None else state
        want, want_final = reference.forward(kind, params, x, before, lengths, {}, zoneout=0.3)
        close(y, want, 1e-12, case)
        all_close(parts(final), want_final, 1e-12, case)
        plain = case.layer("float64", zoneout=0.3)
        same(plain(x)[0], plain(x, None, (case.T,) * case.B)[0], case)


def test_zoneout_of_everything_keeps_the_state():
    layer = rc.GRU(2, 3, zoneout=1.0, seed=0)
    x, h0 = np.ones((4, 2, 2), np.float32), np.full((1, 2, 3), 0.5, np.float32)
    for y, final in (layer(x, h0), layer.forward(x, h0)[:2]):
        same(final, h0)
        assert (y == 0.5).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_state_has_its_gradient(kind, options):
    case = small(kind, 6, num_layers=1, bidirectional=True, lengths=None, proj_size=0)
    layer = make(case, "float64", options)
    x, state, dy, _ = case.arrays("float64")
    _, _, tape = layer.forward(x, public(state), return_all_states=True)
    (hs, *_) = parts(layer.forward(x, public(state), return_all_states=True)[1])
    H = case.hidden_size
    dstate = (np.stack([dy[..., :H], dy[..., H:]], 1), *(np.zeros_like(hs) for _ in state[1:]))
    got, _ = layer.backward(tape, None, public(dstate))
    layer.calls = 0
    _, _, tape = layer.forward(x, public(state))
    close(got, layer.backward(tape, dy)[0], 1e-12, case)
