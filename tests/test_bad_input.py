"""Bad input to layers and cells: an error that says what was expected and what came, and nothing has changed."""

import numpy as np
import pytest

import rnn_core as rc

NAN = float("nan")
WRONG = (TypeError, ValueError)  # where both describe the mistake


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def bits(module, x):
    """What must not change: params, grads, and the result for x."""
    results = module(x)
    results = results if isinstance(results, tuple) else (results,)
    flat = [a for r in results for a in (r if isinstance(r, tuple) else (r,))]
    return [a.tobytes() for a in (*module.params.values(), *module.grads.values(), *flat)]


def refused(error, words, call, *args, **named):
    """call(...) raises `error`, whose text holds all of `words`."""
    with pytest.raises(error) as found:
        call(*args, **named)
    for word in words:
        assert word in str(found.value), (word, str(found.value))


# ---- Construction --------------------------------------------------------------------------------------------------

BAD_SIZES = [  # value, error, words
    (0, ValueError, ("got 0",)),
    (-3, ValueError, ("got -3",)),
    (2.0, TypeError, ("float", "2.0")),
    (NAN, TypeError, ("float", "nan")),
    ("4", TypeError, ("str",)),
    (None, TypeError, ("NoneType",)),
    (True, TypeError, ("bool",)),
    (2**40, ValueError, (str(2**40),)),
    (np.array([3, 4]), TypeError, ("ndarray",)),
]


@pytest.mark.parametrize("value, error, words", BAD_SIZES, ids=lambda v: repr(v)[:20])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_sizes(name, value, error, words):
    make = getattr(rc, name)
    refused(error, ("input_size", "expected", "got", *words), make, value, 4)
    refused(error, ("hidden_size", "expected", "got", *words), make, 4, value)
    if not name.endswith("Cell"):
        refused(error, ("num_layers", "expected", "got", *words), make, 4, 4, value)


BAD_OPTIONS = [
    (lambda: rc.LSTM(3, 4, proj_size=-1), ValueError, ("proj_size", "expected", "got", "-1")),
    (lambda: rc.LSTM(3, 4, proj_size=4), ValueError, ("proj_size", "expected", "got", "4")),
    (lambda: rc.LSTM(3, 4, proj_size=1.5), TypeError, ("proj_size", "expected", "got", "1.5")),
    (lambda: rc.LSTM(3, 4, dropout=1.5), ValueError, ("dropout", "expected", "got", "1.5")),
    (lambda: rc.LSTM(3, 4, dropout=-0.1), ValueError, ("dropout", "expected", "got", "-0.1")),
    (lambda: rc.LSTM(3, 4, dropout=NAN), ValueError, ("dropout", "expected", "got", "nan")),
    (lambda: rc.LSTM(3, 4, dropout="half"), TypeError, ("dropout", "expected", "got", "half")),
    (lambda: rc.RNN(3, 4, nonlinearity="gelu"), ValueError, ("nonlinearity", "tanh", "relu", "gelu")),
    (lambda: rc.RNNCell(3, 4, nonlinearity="gelu"), ValueError, ("nonlinearity", "tanh", "relu", "gelu")),
    (lambda: rc.LSTM(3, 4, dtype="float16"), TypeError, ("dtype", "expected", "float32", "float64", "float16")),
    (lambda: rc.LSTM(3, 4, dtype="int64"), TypeError, ("dtype", "expected", "got", "int64")),
    (lambda: rc.LSTM(3, 4, dtype="no such"), TypeError, ("dtype", "expected", "got", "no such")),
    (lambda: rc.GRUCell(3, 4, dtype="float16"), TypeError, ("dtype", "expected", "float16")),
    (lambda: rc.LSTM(3, 4, colour="red"), TypeError, ("colour",)),
    (lambda: rc.GRU(3, 4, proj_size=2), ValueError, ("proj_size", "expected", "got 2")),
    (lambda: rc.LSTM(3, 4, reset_after=True), TypeError, ("reset_after",)),
]


@pytest.mark.parametrize("at", range(len(BAD_OPTIONS)))
def test_options(at):
    call, error, words = BAD_OPTIONS[at]
    refused(error, words, call)


# ---- Calls of a layer ----------------------------------------------------------------------------------------------

GOOD = zeros(5, 2, 3)  # (T, B, I) for a layer of 3 inputs, 4 hidden units, 2 layers, one direction
H = zeros(2, 2, 4)

BAD_X = [
    (zeros(3), ValueError, ("x", "expected", "got", "(3,)")),
    (zeros(1, 5, 2, 3), ValueError, ("x", "expected", "got", "(1, 5, 2, 3)")),
    (zeros(5, 2, 4), ValueError, ("x", "expected", "3", "got", "(5, 2, 4)")),
    (zeros(5, 4), ValueError, ("x", "expected", "3", "got", "(5, 4)")),
    (np.float32(1), ValueError, ("x", "expected", "got", "()")),
    (zeros(5, 2, 3, dtype=np.float64), TypeError, ("x", "expected", "float32", "got", "float64")),
    (zeros(5, 2, 3, dtype=np.int32), TypeError, ("x", "expected", "float32", "got", "int32")),
    (zeros(5, 2, 3, dtype=np.complex64), TypeError, ("x", "expected", "float32", "got", "complex64")),
    (zeros(5, 2, 3, dtype=">f4"), TypeError, ("x", "expected", "float32", "got")),
    (zeros(5, 2, 3, dtype=object), TypeError, ("x", "expected", "float32", "got", "object")),
    (None, TypeError, ("x", "expected", "got", "NoneType")),
    ("text", TypeError, ("x", "expected", "got", "str")),
    ([[[1.0], [2.0, 3.0]]], TypeError, ("x", "expected", "got", "list")),
]

BAD_LENGTHS = [
    ([5], ValueError, ("lengths", "expected", "got", "(1,)")),
    ([5, 5, 5], ValueError, ("lengths", "expected", "got", "(3,)")),
    ([[5, 5]], ValueError, ("lengths", "expected", "got", "(1, 2)")),
    (5, ValueError, ("lengths", "expected", "got", "()")),
    ([5, -1], ValueError, ("lengths", "expected", "5", "got", "-1")),
    ([6, 5], ValueError, ("lengths", "expected", "5", "got", "6")),
    ([2**62, 0], ValueError, ("lengths", "expected", "got", str(2**62))),
    (np.array([2**63, 0], np.uint64), ValueError, ("lengths", "expected", "got", str(2**63))),
    ([2.5, 1], TypeError, ("lengths", "expected", "integers", "got", "float64")),
    ([NAN, 1], TypeError, ("lengths", "expected", "integers", "got", "float64")),
    (np.array([5.0, 5.0]), TypeError, ("lengths", "expected", "integers", "got", "float64")),
    (["5", "5"], TypeError, ("lengths", "expected", "integers", "got")),
    ([True, False], TypeError, ("lengths", "expected", "integers", "got", "bool")),
    ([[5], [5, 5]], TypeError, ("lengths", "expected", "got", "list")),
]

BAD_LSTM_STATES = [
    (H, TypeError, ("state", "expected", "(h, c)", "got", "ndarray")),
    ((H,), WRONG, ("state", "expected", "(h, c)", "got")),
    ((H, H, H), WRONG, ("state", "expected", "(h, c)", "got")),
    ((zeros(1, 2, 4), H), ValueError, ("h", "expected", "(2, 2, 4)", "got", "(1, 2, 4)")),
    ((H, zeros(2, 3, 4)), ValueError, ("c", "expected", "(2, 2, 4)", "got", "(2, 3, 4)")),
    ((zeros(2, 4), zeros(2, 4)), ValueError, ("h", "expected", "(2, 2, 4)", "got", "(2, 4)")),
    ((H.astype(np.float64), H), TypeError, ("h", "expected", "float32", "got", "float64")),
    ({"h": H, "c": H}, TypeError, ("state", "expected", "(h, c)", "got", "dict")),
    ("hc", TypeError, ("state", "expected", "(h, c)", "got", "str")),
]

BAD_GRU_STATES = [
    ((H, H), ValueError, ("state", "expected", "(2, 2, 4)", "got", "(2, 2, 2, 4)")),
    (zeros(1, 2, 4), ValueError, ("expected", "(2, 2, 4)", "got", "(1, 2, 4)")),
    (zeros(2, 2, 5), ValueError, ("expected", "(2, 2, 4)", "got", "(2, 2, 5)")),
    (H.astype(np.float64), TypeError, ("expected", "float32", "got", "float64")),
    ("h", TypeError, ("expected", "got", "str")),
]


@pytest.fixture(params=["LSTM", "GRU", "RNN"])
def layer(request):
    """A layer with gradients in it; after the test its params, grads and results have the bits they had."""
    made = getattr(rc, request.param)(3, 4, 2, seed=1)
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    y, _, tape = made.forward(x)
    made.backward(tape, y)
    before = bits(made, x)
    yield made
    assert bits(made, x) == before


def bad_calls(layer, error, words, **arguments):
    """Inference and training refuse alike."""
    arguments = {"x": GOOD} | arguments
    for call in (layer, layer.forward):
        refused(error, words, call, **arguments)


def test_x(layer):
    for x, error, words in BAD_X:
        bad_calls(layer, error, words, x=x)


def test_lengths(layer):
    for lengths, error, words in BAD_LENGTHS:
        bad_calls(layer, error, words, lengths=lengths)
    bad_calls(layer, ValueError, ("lengths", "expected", "got"), x=zeros(5, 3), lengths=[4, 4])


def test_state(layer):
    for state, error, words in BAD_LSTM_STATES if isinstance(layer, rc.LSTM) else BAD_GRU_STATES:
        bad_calls(layer, error, words, state=state)


def test_unknown_arguments(layer):
    bad_calls(layer, TypeError, ("colour",), colour=1)


def test_a_layer_of_float64_refuses_float32():
    wide = rc.LSTM(3, 4, dtype="float64")
    refused(TypeError, ("x", "expected", "float64", "got", "float32"), wide, GOOD)


BAD_DY = [
    (zeros(5, 2, 5), ValueError, ("dy", "expected", "(5, 2, 4)", "got", "(5, 2, 5)")),
    (zeros(4, 2, 4), ValueError, ("dy", "expected", "(5, 2, 4)", "got", "(4, 2, 4)")),
    (zeros(5, 4), ValueError, ("dy", "expected", "(5, 2, 4)", "got", "(5, 4)")),
    (zeros(5, 2, 4, dtype=np.float64), TypeError, ("dy", "expected", "float32", "got", "float64")),
    ("dy", TypeError, ("dy", "expected", "got", "str")),
]


def test_dy_and_dstate(layer):
    _, _, tape = layer.forward(GOOD)
    for dy, error, words in BAD_DY:
        refused(error, words, layer.backward, tape, dy)
    dy, wrong = zeros(5, 2, 4), zeros(1, 2, 4)
    dstate = (H, wrong) if isinstance(layer, rc.LSTM) else wrong
    refused(ValueError, ("expected", "(2, 2, 4)", "got", "(1, 2, 4)"), layer.backward, tape, dy, dstate)
    refused(TypeError, ("expected", "got"), layer.backward, tape, dy, "dstate")


def test_the_tape_of_another_layer(layer):
    dy = zeros(5, 2, 4)
    other = type(layer)(3, 4, 2, seed=2)
    _, _, tape = other.forward(GOOD)
    refused(ValueError, ("tape", "expected", "got"), layer.backward, tape, dy)
    for wrong in (None, 3, "tape", GOOD):
        refused(WRONG, ("tape", "expected", "got"), layer.backward, wrong, dy)


def test_a_tape_whose_weights_have_been_written(layer):
    """Its gradients would be neither those of the old weights nor of the new ones."""
    _, _, tape = layer.forward(GOOD)
    layer.load_state_dict(layer.state_dict())
    refused(ValueError, ("tape", "expected", "got weights", "written"), layer.backward, tape, zeros(5, 2, 4))


# ---- Weights -------------------------------------------------------------------------------------------------------


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


def test_load_state_dict(layer):
    state = {key: p + 1 for key, p in layer.params.items()}  # new values: a half-done load would show
    first, last = list(state)[0], list(state)[-1]
    wrong_shape = zeros(2, 2)
    cases = [
        (state | {"weight_xx_l0": GOOD}, ValueError, ("weight_xx_l0",)),
        (without(state, last), ValueError, (last,)),
        ({}, ValueError, (first,)),
        (state | {last: wrong_shape}, ValueError, (last, "expected", "got", "(2, 2)")),
        (state | {last: state[last].astype(np.int32)}, TypeError, (last, "expected", "float32", "got", "int32")),
        (state | {last: None}, ValueError, (last, "expected", "got", "()")),
        (None, TypeError, ("expected", "got", "NoneType")),
        (3, TypeError, ("expected", "got", "int")),
    ]
    for mapping, error, words in cases:
        refused(error, words, layer.load_state_dict, mapping)
    for mapping, error, words in cases[3:]:
        refused(error, words, layer.load_state_dict, mapping, strict=False)


def test_not_strict_loads_what_it_has():
    layer = rc.GRU(3, 4, seed=1)
    new = zeros(12, 3)
    kept = layer.params["weight_hh_l0"].copy()
    layer.load_state_dict({"weight_ih_l0": new, "unknown": new}, strict=False)
    assert not layer.params["weight_ih_l0"].any() and np.array_equal(layer.params["weight_hh_l0"], kept)


def test_assign(layer):
    name = "weight_ih_l0"
    good = layer.params[name] + 1
    refused(ValueError, (name, "expected", "got", "(2, 2)"), layer.assign, name, zeros(2, 2))
    refused(TypeError, (name, "expected", "float32", "got", "int64"), layer.assign, name, good.astype(int))
    refused(ValueError, (name, "expected", "got", "()"), layer.assign, name, "text")
    refused(ValueError, ("weight_xx", "expected", "got"), layer.assign, "weight_xx", good)


# ---- Cells ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["LSTMCell", "GRUCell", "RNNCell"])
def cell(request):
    """As `layer`."""
    made = getattr(rc, request.param)(3, 4, seed=1)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    after, tape = made.forward(x)
    made.backward(tape, after)
    before = bits(made, x)
    yield made
    assert bits(made, x) == before


def pair(cell, h, c=None):
    """The state's form for this cell."""
    return (h, h if c is None else c) if isinstance(cell, rc.LSTMCell) else h


def test_cell_x_and_state(cell):
    good, x = pair(cell, zeros(2, 4)), zeros(2, 3)
    bad = [
        (zeros(2, 4), good, ValueError, ("x", "expected", "got", "(2, 4)")),
        (zeros(1, 2, 3), good, ValueError, ("x", "expected", "got", "(1, 2, 3)")),
        (zeros(2, 3, dtype=np.float64), good, TypeError, ("x", "expected", "float32", "got", "float64")),
        (zeros(2, 3, dtype=np.int64), good, TypeError, ("x", "expected", "float32", "got", "int64")),
        (None, good, TypeError, ("x", "expected", "got", "NoneType")),
        (x, pair(cell, zeros(3, 4)), ValueError, ("expected", "(2, 4)", "got", "(3, 4)")),
        (x, pair(cell, zeros(2, 5)), ValueError, ("expected", "(2, 4)", "got", "(2, 5)")),
        (x, pair(cell, zeros(4)), ValueError, ("expected", "(2, 4)", "got", "(4,)")),
        (x, pair(cell, zeros(2, 4, dtype=np.float64)), TypeError, ("expected", "float32", "got", "float64")),
        (x, "state", TypeError, ("expected", "got", "str")),
        (x, zeros(2, 4) if isinstance(cell, rc.LSTMCell) else (zeros(2, 4),) * 2, WRONG, ("state", "expected", "got")),
    ]
    for x, state, error, words in bad:
        for call in (cell, cell.step, cell.forward):
            refused(error, words, call, x, state)


def test_cell_out(cell):
    x, good = zeros(2, 3), pair(cell, zeros(2, 4))
    frozen = zeros(2, 4)
    frozen.flags.writeable = False
    for h, error, words in [
        (zeros(3, 4), ValueError, ("out", "expected", "(2, 4)", "got", "(3, 4)")),
        (zeros(2, 4, dtype=np.float64), TypeError, ("out", "expected", "float32", "got", "float64")),
        (frozen, WRONG, ("out", "expected", "got", "read-only")),
        ([[0.0] * 4] * 2, TypeError, ("out", "expected", "got", "list")),
        ("out", TypeError, ("out", "expected", "got", "str")),
    ]:
        refused(error, words, cell.step, x, good, out=pair(cell, h))


def test_cell_backward(cell):
    _, tape = cell.forward(zeros(2, 3))
    wrong = pair(cell, zeros(2, 4), zeros(2, 5)) if isinstance(cell, rc.LSTMCell) else zeros(2, 5)
    refused(ValueError, ("expected", "(2, 4)", "got", "(2, 5)"), cell.backward, tape, wrong)
    refused(WRONG, ("tape", "expected", "got"), cell.backward, None, pair(cell, zeros(2, 4)))
    refused(TypeError, ("expected", "got", "str"), cell.backward, tape, "dstate")
    cell.load_state_dict(cell.state_dict())
    refused(ValueError, ("tape", "expected", "got weights"), cell.backward, tape, pair(cell, zeros(2, 4)))


def test_call_with_an_array_subclass_and_masked_arrays_does_not_crash(layer):
    want = layer(GOOD)[0]
    assert np.array_equal(layer(GOOD.view(np.recarray))[0], want)
