"""layer_norm: its parameters, what it promises beyond the other variants, and who refuses it.

Values and gradients are held against the float64 reference in test_variants.py.
"""

import numpy as np
import pytest
from cases import BACKWARD, KINDS, Case, all_close, close, differences, exact_bits, parts, public, same
from test_bits import CHECKS, check_cells, run, sized
from test_variants import loss_of, make, small

import rnn_core as rc
from rnn_core import checkpoint, optim

NORM = {"layer_norm": True}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


# ---- parameters


@pytest.mark.parametrize("kind", GATES)
def test_each_direction_has_a_gain_and_a_shift_of_each_normalisation(kind):
    H, rows = 4, GATES[kind] * 4
    layer = getattr(rc, kind)(3, H, 2, bidirectional=True, bias=False, seed=1, layer_norm=True)
    plain = getattr(rc, kind)(3, H, 2, bidirectional=True, bias=False, seed=1)
    sizes = {"ih": rows, "hh": rows} | ({"c": H} if kind == "LSTM" else {})
    for end in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        for which, size in sizes.items():
            same(layer.params[f"weight_ln_{which}{end}"], np.ones(size, np.float32))
            same(layer.params[f"bias_ln_{which}{end}"], np.zeros(size, np.float32))
    assert len(layer.params) == len(plain.params) + 4 * 2 * len(sizes)
    for key, value in plain.params.items():  # the same seed gives the same weights
        same(layer.params[key], value, key)


def test_a_state_dict_is_not_a_plain_layers():
    normed, plain = rc.GRU(3, 4, layer_norm=True), rc.GRU(3, 4)
    with pytest.raises(ValueError, match="weight_ln_ih_l0"):
        normed.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="weight_ln_ih_l0"):
        plain.load_state_dict(normed.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_on_alike(kind, tmp_path):
    case = Case.random(kind, 300, T=5, B=3, lengths=None)
    x, state, dy, dstate = case.arrays()
    layer, twin = make(case, "float32", NORM), case.layer(layer_norm=True)
    before = {key: np.array(p) for key, p in layer.params.items()}
    optimisers = [optim.Adam(one.params, lr=0.01) for one in (layer, twin)]

    def train(one, optimiser):
        one.zero_grad()
        _, _, tape = one.forward(x, public(state))
        one.backward(tape, dy, public(dstate))
        optimiser.step(one.grads)

    train(layer, optimisers[0])
    checkpoint.save(tmp_path / "run.safetensors", layer, optimisers[0])
    checkpoint.load(tmp_path / "run.safetensors").restore(twin, optimisers[1])
    for one, optimiser in zip((layer, twin), optimisers):
        train(one, optimiser)
    for key, value in layer.params.items():
        same(twin.params[key], value, key)
        assert case.hidden_size < 3 or (value != before[key]).any(), key


# ---- what it computes


def normalised(a, gain, shift):
    return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5) * gain + shift


def test_one_step_spelt_out():
    """A step from zero states by hand, so that not everything hangs on one reference."""
    layer = rc.LSTM(3, 5, layer_norm=True, dtype="float64", seed=0)
    x, p = np.random.default_rng(0).standard_normal((1, 2, 3)), dict(layer.params)
    product = (x[0] @ p["weight_ih_l0"].T + p["bias_ih_l0"]).reshape(2, 4, 5)
    i, f, g, o = np.moveaxis(normalised(product, 1, 0) + normalised(p["bias_hh_l0"].reshape(4, 5), 1, 0), 1, 0)
    c = np.tanh(g) / (1 + np.exp(-i))
    y, (_, got) = layer(x)
    close(got[0], c, 1e-12)
    close(y[0], np.tanh(normalised(c, 1, 0)) / (1 + np.exp(-o)), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_of_the_weights_do_not_matter(kind):
    """Of W and b together, and of R and b' together (Ba et al. 2016, section 5); up to epsilon."""
    case = Case.random(kind, 310, hidden_size=20, bias=True, proj_size=0, T=6)
    layer, scaled = (make(case, "float64", NORM) for _ in range(2))
    for key, value in layer.params.items():
        if "_ln_" not in key:
            scaled.assign(key, np.asarray(value) * (100.0 if "_ih" in key else 10.0))
    x, state, _, _ = case.arrays("float64")
    close(scaled(x, public(state), case.lengths)[0], layer(x, public(state), case.lengths)[0], 2e-2, case)


@pytest.mark.parametrize("proj", [0, 2])
def test_gradients_without_biases_and_past_one_chunk(proj):
    """More tokens than a chunk of the backward pass has, and no bias under the normalisations."""
    case = small("lstm", 2, bias=False, T=70, B=5, lengths=None, num_layers=1, bidirectional=True, proj_size=proj)
    layer = make(case, "float64", NORM)
    x, state, dy, dstate = case.arrays("float64")
    _, _, tape = layer.forward(x, public(state))
    layer.backward(tape, dy, public(dstate))
    params = {key: np.array(p) for key, p in layer.params.items()}
    for key in [key for key in params if "_ln_" in key]:
        wanted = differences(lambda: loss_of(case, layer, {}, x, state, dy, dstate, params), params[key][:2], 1e-6)
        close(layer.grads[key][:2], wanted, 1e-6, key)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_giving_the_input(kind):
    """Ragged, batch first, not contiguous, unbatched: the bits of the padded batch; and nothing at all."""
    case = Case.random(kind, 320, T=7, B=4, lengths=(3, 7, 0, 5), with_state=True, num_layers=2, proj_size=0)
    x, state, dy, dstate = case.arrays()
    layer, first = make(case, "float32", NORM), make(case, "float32", NORM | {"batch_first": True})
    lengths, every = case.lengths, np.arange(case.T)[:, None] < np.array(case.lengths)
    y, final, tape = layer.forward(x, public(state), lengths)
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    want = (y, *parts(final), dx, *parts(dinitial))

    def rows(padded):
        return np.concatenate([padded[:n, m] for m, n in enumerate(lengths)])

    y, final, tape = layer.forward(rc.Ragged(rows(x), lengths), public(state))
    dx, dinitial = layer.backward(tape, rc.Ragged(rows(dy), lengths), public(dstate))
    same((y.values, *parts(final), dx.values, *parts(dinitial)),
         (rows(want[0]), *want[1 : 1 + len(state)], rows(want[1 + len(state)]), *want[2 + len(state) :]), case)
    spread = np.repeat(x, 2, axis=2)[:, :, ::2]
    assert not spread.flags.c_contiguous
    same(layer(spread, public(state), lengths)[0], want[0], case)
    y, _ = first(np.ascontiguousarray(x.swapaxes(0, 1)), public(state), lengths)
    same(y.swapaxes(0, 1), want[0], case)
    y, _ = layer(x[:5, 3], public(tuple(s[:, 3] for s in state)))
    same(y, want[0][:5, 3], case)
    assert not want[0][~every].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3)])
def test_no_steps_and_no_rows(kind, shape):
    name, options = KINDS[kind]
    layer = getattr(rc, name)(3, 4, 2, layer_norm=True, bidirectional=True, **options)
    y, final, tape = layer.forward(np.zeros(shape, np.float32))
    dx, _ = layer.backward(tape, np.zeros_like(y))
    assert dx.shape == shape and not any(part.any() for part in parts(final))
    assert not any(grad.any() for grad in layer.grads.values())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_add_up_and_dx_may_be_left_out(kind):
    case = Case.random(kind, 330, T=6)
    layer = make(case, "float64", NORM)
    x, state, dy, dstate = case.arrays("float64")
    _, _, tape = layer.forward(x, public(state), case.lengths)
    layer.backward(tape, dy, public(dstate))
    once = {key: 2 * grad for key, grad in layer.grads.items()}
    assert layer.backward(tape, dy, public(dstate), need_dx=False)[0] is None
    all_close(dict(layer.grads), once, BACKWARD["float64"], case)


# ---- the same bits


@exact_bits
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_the_batch_or_the_cut(kind, threads):
    for seed in range(30):
        case = sized(kind, seed)
        layer = make(case, "float32", NORM)
        x, state, _, _ = case.arrays()
        threads(1 + seed % 3)
        want = run(layer, x, state, case.lengths)
        for check in CHECKS:
            if check is not check_cells:
                check(case, layer, x, state, want)


# ---- who has none


def test_cells_and_the_general_path_have_none():
    with pytest.raises(TypeError, match="layer_norm"):
        rc.LSTMCell(3, 4, layer_norm=True)
    with pytest.raises(ValueError, match="layer_norm: expected False"):
        rc.general.GeneralGRU(3, 4, layer_norm=True)


def test_onnx_refuses_it(tmp_path):
    pytest.importorskip("onnx")
    from rnn_core import onnx

    with pytest.raises(ValueError, match="layer_norm=True"):
        onnx.save(rc.GRU(3, 4, layer_norm=True), tmp_path / "m.onnx")


def test_torch_refuses_it():
    pytest.importorskip("torch")
    from rnn_core import torch

    with pytest.raises(ValueError, match="layer_norm"):
        torch.to_torch(rc.GRU(3, 4, layer_norm=True))
