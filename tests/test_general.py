"""The general path: gradients against central differences, outputs against ONNX's equations, and its promises."""

import copy
import pickle

import numpy as np
import pytest
from cases import difference, differences, parameter_differences, parts, public

import rnn_core as rc
from rnn_core.general import Activation, GeneralGRU, GeneralLSTM, GeneralRNN, activation
from rnn_core.onnx.conformance.reference import ACTIVATIONS, run_node

LENGTHS = [5, 0, 3]
KINDS = {
    "rnn": lambda **options: GeneralRNN(3, 4, **options),
    "gru": lambda **options: GeneralGRU(3, 4, **options),
    "gru_before": lambda **options: GeneralGRU(3, 4, reset_after=False, **options),
    "lstm": lambda **options: GeneralLSTM(3, 4, **options),
    "lstm_peepholes": lambda **options: GeneralLSTM(3, 4, peepholes=True, **options),
    "lstm_coupled": lambda **options: GeneralLSTM(3, 4, peepholes=True, coupled=True, **options),
}


def check_gradients(layer, rng, lengths=LENGTHS, atol=1e-7):
    """x, the initial state and every parameter, through the outputs and the final state."""
    x = rng.standard_normal((5, 3, 3))
    y, final = layer(x, lengths=lengths)
    start = tuple(rng.standard_normal(part.shape) for part in parts(final))
    dy, dfinal = rng.standard_normal(y.shape), tuple(rng.standard_normal(part.shape) for part in parts(final))

    def loss():
        y, final = layer(x, public(start), lengths)
        return (y * dy).sum() + sum((a * b).sum() for a, b in zip(parts(final), dfinal))

    y, final, tape = layer.forward(x, public(start), lengths)
    dx, dstart = layer.backward(tape, dy, public(dfinal))
    np.testing.assert_allclose(dx, differences(loss, x), atol=atol)
    for got, part in zip(parts(dstart), start):
        np.testing.assert_allclose(got, differences(loss, part), atol=atol)
    for key, grad in layer.grads.items():
        np.testing.assert_allclose(grad, parameter_differences(loss, layer, key), atol=atol, err_msg=key)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, bidirectional):
    layer = KINDS[kind](num_layers=2, bidirectional=bidirectional, dtype="float64", seed=3)
    check_gradients(layer, np.random.default_rng(1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_clip(kind):
    layer = KINDS[kind](clip=0.4, reverse=True, bias=False, dtype="float64", seed=4)
    check_gradients(layer, np.random.default_rng(2), lengths=None)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_of_every_activation(name):
    layer = GeneralLSTM(3, 4, activations=["Sigmoid", name, name], dtype="float64", seed=5)
    check_gradients(layer, np.random.default_rng(3), atol=1e-6)


def identity_layer(name, dtype="float32"):
    """One unit with weight 1 shows the activation itself."""
    layer = GeneralRNN(1, 1, bias=False, activations=[name], dtype=dtype)
    layer.load_state_dict({"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.zeros((1, 1))})
    return layer


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activation_values(name, dtype):
    x = np.linspace(-6, 6, 49).astype(dtype).reshape(1, 49, 1)
    given = {"X": x, "W": np.ones((1, 1, 1)), "R": np.zeros((1, 1, 1))}
    expected = run_node("RNN", {"activations": [name]}, given)["Y"][0, 0]
    found = identity_layer(name, dtype)(x)[0][0]
    np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype == "float32" else 1e-14, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("Tanh", [-1, -1, 1, 1]),
        ("Sigmoid", [0, 0, 1, 1]),
        ("Softplus", [0, 0, 1e4, np.inf]),
        ("Elu", [-1, -1, 1e4, np.inf]),
    ],
)
def test_activations_at_the_ends(name, limits):
    """Nothing overflows, infinities have their limits, NaN stays NaN."""
    ends = np.array([-1e4, -100, 1e4, 3e38, np.nan], np.float32).reshape(1, 5, 1)
    found = identity_layer(name)(ends)[0].ravel()
    np.testing.assert_allclose(found[:3], np.float32(limits[:3]), err_msg=name, atol=1e-38)
    assert np.isnan(found[4]) and not np.isnan(found[3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_alone_in_chunks_and_with_a_tape(kind, dtype):
    layer = KINDS[kind](dtype=dtype, seed=1)
    x = np.random.default_rng(0).standard_normal((7, 3, 3)).astype(dtype)
    y, final = layer(x)
    for b in range(3):
        np.testing.assert_array_equal(layer(x[:, b : b + 1])[0][:, 0], y[:, b])
    first, state = layer(x[:4])
    second, state = layer(x[4:], state)
    np.testing.assert_array_equal(np.concatenate([first, second]), y)
    kept, kept_final, _ = layer.forward(x)
    np.testing.assert_array_equal(kept, y)
    for a, b, c in zip(parts(final), parts(kept_final), parts(state)):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_the_sequences_alone(kind, bidirectional):
    layer = KINDS[kind](bidirectional=bidirectional, num_layers=2, seed=1)
    x = np.random.default_rng(0).standard_normal((5, 3, 3)).astype(np.float32)
    y, final = layer(x, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        alone, state = layer(x[:length, b])
        np.testing.assert_array_equal(y[:length, b], alone)
        assert not y[length:, b].any()
        for part, own in zip(parts(final), parts(state)):
            np.testing.assert_array_equal(part[:, b], own)


def test_reverse_is_the_second_direction():
    both = GeneralLSTM(3, 4, bidirectional=True, peepholes=True, seed=1)
    one = GeneralLSTM(3, 4, reverse=True, peepholes=True)
    one.load_state_dict({key[:-8]: value for key, value in both.params.items() if key.endswith("_reverse")})
    x = np.random.default_rng(0).standard_normal((5, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(one(x, lengths=LENGTHS)[0], both(x, lengths=LENGTHS)[0][..., 4:])


def test_batch_first_and_unbatched():
    plain, first = GeneralGRU(3, 4, seed=1), GeneralGRU(3, 4, seed=1, batch_first=True)
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    y, h = plain(x)
    y_first, h_first, tape = first.forward(np.ascontiguousarray(x.swapaxes(0, 1)))
    np.testing.assert_array_equal(y_first.swapaxes(0, 1), y)
    np.testing.assert_array_equal(h_first, h)
    assert first.backward(tape, y_first)[0].shape == (2, 5, 3)
    alone, h_alone, tape = plain.forward(x[:, 0], h[:, 0])
    assert alone.shape == (5, 4) and h_alone.shape == (1, 4)
    dx, dh = plain.backward(tape, alone, h_alone)
    assert dx.shape == (5, 3) and dh.shape == (1, 4)


def test_two_tapes_and_copies():
    layer = GeneralLSTM(3, 4, peepholes=True, seed=1)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((5, 2, 3)).astype(np.float32) for _ in range(2))
    y, _, tape = layer.forward(a)
    layer.forward(b)
    dx, _ = layer.backward(tape, y)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        again, _, its = twin.forward(a)
        np.testing.assert_array_equal(again, y)
        np.testing.assert_array_equal(twin.backward(its, y)[0], dx)
    assert layer.backward(tape, y, need_dx=False)[0] is None


def test_ragged_is_the_padded_batch():
    layer = GeneralLSTM(3, 4, 2, bidirectional=True, peepholes=True, dropout=0.5, seed=1)
    values = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    x = np.zeros((5, 3, 3), np.float32)
    x[:5, 0], x[:3, 2] = values[:5], values[5:]
    y, final = layer(rc.Ragged(values, LENGTHS))
    padded, padded_final = layer(x, lengths=LENGTHS)
    np.testing.assert_array_equal(y.values, np.concatenate([padded[:5, 0], padded[:3, 2]]))
    np.testing.assert_array_equal(final[1], padded_final[1])
    y, _, tape = layer.forward(rc.Ragged(values, LENGTHS))
    assert layer.backward(tape, y)[0].values.shape == (8, 3)


def test_dropout_between_layers():
    layer = GeneralGRU(3, 4, 2, dropout=0.5, dtype="float64", seed=1)
    plain = GeneralGRU(3, 4, 2, dtype="float64", seed=1)
    x = np.random.default_rng(0).standard_normal((5, 3, 3))
    np.testing.assert_array_equal(layer(x)[0], plain(x)[0])
    y, _, tape = layer.forward(x)
    assert (y != plain(x)[0]).any()
    dx, _ = layer.backward(tape, y)
    again = copy.deepcopy(layer)

    def loss():
        again.calls = layer.calls - 1  # the same masks
        return (again.forward(x)[0] * y).sum()

    for at in [(0, 0, 0), (2, 1, 2)]:
        np.testing.assert_allclose(difference(loss, x, at, 1e-6), dx[at], rtol=1e-5)


def test_dy_and_dstate_may_be_absent():
    layer = GeneralLSTM(3, 4, seed=1)
    _, (_, c), tape = layer.forward(np.ones((2, 1, 3), np.float32))
    assert layer.backward(tape, None, (None, c))[0].any()
    assert not layer.backward(tape, None)[0].any()


def test_empty_batch_and_no_steps():
    layer = GeneralGRU(3, 4)
    assert layer(np.zeros((5, 0, 3), np.float32))[0].shape == (5, 0, 4)
    y, h, tape = layer.forward(np.zeros((0, 2, 3), np.float32), np.ones((1, 2, 4), np.float32))
    assert y.shape == (0, 2, 4) and (h == 1).all()
    assert layer.backward(tape, y, h)[1].all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GeneralRNN(0, 4), "input_size"),
        (lambda: GeneralRNN(3, 4, clip=0.0), "clip"),
        (lambda: GeneralRNN(3, 4, bidirectional=True, reverse=True), "reverse"),
        (lambda: GeneralRNN(3, 4, activations=["Tanh", "Tanh"]), "expected 1 for each"),
        (lambda: GeneralGRU(3, 4, activations=["Swish", "Tanh"]), "Swish"),
        (lambda: activation(("Tanh", 1.0)), "has no alpha"),
        (lambda: activation(("LeakyRelu", 1.0, 1.0)), "has no beta"),
        (lambda: GeneralRNN(3, 4)(np.zeros((5, 2, 7), np.float32)), "expected shape"),
        (lambda: GeneralLSTM(3, 4, proj_size=2), "proj_size"),
        (lambda: GeneralRNN(3, 4).backward(None, None), "forward made"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_activation_defaults():
    assert activation("hardsigmoid") == Activation("HardSigmoid", 0.2, 0.5)
    assert activation(("Elu", 2)) == Activation("Elu", 2.0, None)
    assert activation("tanh") == Activation("Tanh", None, None)
