"""ONNX in and out: the official tests, round trips bit for bit, and files that must be refused."""

import os
import pickle
import unittest
import warnings
import zipfile

import numpy as np
import onnx
import onnx.backend.test
import pytest
from cases import parts
from onnx import TensorProto, helper, numpy_helper

import rnn_core.onnx
from rnn_core import general, recurrent
from rnn_core.onnx import backend, conformance, load, save

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # onnx computes its own expected values with warnings
    official = onnx.backend.test.BackendTest(rnn_core.onnx.backend, __name__)
    official.include(r"^test_(simple_rnn|rnn|gru|lstm)_")
    # Only what applies: the other thousands would be listed as skipped.
    OFFICIAL = {
        name: item
        for case in official.test_cases.values()
        for name, item in vars(case).items()
        if name.startswith(("test_simple_rnn", "test_rnn", "test_gru", "test_lstm")) and name.endswith("_cpu")
    }


def test_there_are_eighteen_official_tests():
    assert len(OFFICIAL) == 18
    assert sum("batchwise" in name for name in OFFICIAL) == 3


@pytest.mark.parametrize("name", OFFICIAL)
def test_official(name):
    OFFICIAL[name](None)


def test_other_official_tests_are_none_of_ours():
    """Whoever runs all of ONNX's tests sees those of other operators passed over, as its convention has it."""
    relu = model_of(helper.make_node("Relu", ["X"], ["Y"]), weights=[])
    with pytest.raises(unittest.SkipTest, match="other operators: Relu"):
        backend.prepare(relu)
    assert not backend.is_compatible(relu)


# ---- round trips -------------------------------------------------------------------------------------------

LAYERS = {
    "lstm": lambda **o: recurrent.LSTM(3, 4, **o),
    "gru": lambda **o: recurrent.GRU(3, 4, **o),
    "gru_before": lambda **o: recurrent.GRU(3, 4, reset_after=False, **o),
    "rnn": lambda **o: recurrent.RNN(3, 4, **o),
    "relu": lambda **o: recurrent.RNN(3, 4, nonlinearity="relu", **o),
    "general_lstm": lambda **o: general.GeneralLSTM(
        3,
        4,
        peepholes=True,
        coupled=True,
        clip=0.5,
        activations=[("HardSigmoid", 0.25, 0.5), ("ScaledTanh", 0.5, 0.25), "Elu"],
        **o,
    ),
    "general_gru": lambda **o: general.GeneralGRU(
        3, 4, reset_after=False, activations=["HardSigmoid", "Softsign"], **o
    ),
    "general_rnn": lambda **o: general.GeneralRNN(3, 4, clip=2.0, **o),
}
OPTIONS = [
    {},
    {"bias": False, "bidirectional": True},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 2, "dtype": "float64"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_round_trip(kind, options, tmp_path):
    """The same layer comes back: its type, every bit of its weights, its outputs; and the backend runs the file."""
    layer = LAYERS[kind](seed=1, **options)
    save(layer, tmp_path / "m.onnx", lengths=True, state=True)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    again = load(tmp_path / "m.onnx")
    assert type(again) is type(layer)
    assert again.params.keys() == layer.params.keys()
    for key, value in layer.params.items():
        np.testing.assert_array_equal(again.params[key], value)
    first = options.get("batch_first", False)
    rng = np.random.default_rng(0)
    dtype = options.get("dtype", "float32")
    x = rng.standard_normal((2, 5, 3) if first else (5, 2, 3)).astype(dtype)
    y, final = layer(x)
    start = tuple(rng.standard_normal(part.shape).astype(dtype) for part in parts(final))
    y, final = layer(x, start if len(start) == 2 else start[0], [5, 3])
    np.testing.assert_array_equal(again(x, start if len(start) == 2 else start[0], [5, 3])[0], y)
    turn = (lambda a: np.swapaxes(a, 0, 1)) if first else (lambda a: a)
    given = [x, np.array([5, 3], np.int32), *map(turn, start)]
    Y, *states = backend.run_model(onnx.load(tmp_path / "m.onnx"), given)
    D = 2 if options.get("bidirectional") else 1
    expected = y.reshape(*y.shape[:2], D, -1)
    np.testing.assert_array_equal(Y, expected if first else expected.transpose(0, 2, 1, 3))
    for got, part in zip(states, parts(final)):
        np.testing.assert_array_equal(turn(got), part)


def test_fused_where_nothing_more_is_asked():
    seen = set()
    for case in conformance.cases(200)[::2]:  # those that hold their weights
        layer = load(case.model().SerializeToString())
        extra = {"clip", "activations", "input_forget", "P", "reverse"} & conformance.features(case)
        assert isinstance(layer, general.General) == bool(extra - {"activations"}) or "activations" in extra, case
        seen.add(type(layer).__name__)
    assert len(seen) == 6


def test_reverse_layer():
    case = next(c for c in conformance.cases() if c.attributes.get("direction") == "reverse" and c.number % 2 == 0)
    layer = load(case.model().SerializeToString())
    assert layer.reverse and isinstance(layer, general.General)


def test_variants_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="proj_size"):
        save(recurrent.LSTM(3, 4, proj_size=2), tmp_path / "m.onnx")
    with pytest.raises(TypeError, match="expected an RNN, GRU or LSTM"):
        save(object(), tmp_path / "m.onnx")


# ---- the backend's convention ------------------------------------------------------------------------------


def test_backend_convention():
    case = conformance.case(0)
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA:0")
    assert backend.is_compatible(case.model())
    by_name = backend.prepare(case.model()).run(case.fed())
    np.testing.assert_array_equal(by_name[0], backend.run_model(case.model(), list(case.fed().values()))[0])
    assert by_name._fields == tuple(case.outputs)
    node = case.model().graph.node[0]
    np.testing.assert_array_equal(backend.run_node(node, list(case.inputs.values()))[0], by_name[0])
    with pytest.raises(ValueError, match="CUDA"):
        backend.prepare(case.model(), "CUDA")
    with pytest.raises(ValueError, match="got 0"):
        backend.run_model(conformance.case(6).model(), [])


# ---- refused -----------------------------------------------------------------------------------------------


def model_of(*nodes, weights=None, inputs=("X",), outputs=("Y",), opset=14):
    shaped = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*inputs, *outputs)]
    graph = helper.make_graph(
        list(nodes), "g", shaped[: len(inputs)], shaped[len(inputs) :], plain_weights() if weights is None else weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def plain_weights(**replaced):
    arrays = {"W": np.ones((1, 16, 3), np.float32), "R": np.ones((1, 16, 4), np.float32), **replaced}
    return [numpy_helper.from_array(value, name) for name, value in arrays.items()]


def lstm(*inputs, **attributes):
    return helper.make_node("LSTM", ["X", "W", "R", *inputs], ["Y"], **attributes)


BAD_MODELS = {
    "other operators": (lambda: model_of(lstm(), helper.make_node("Relu", ["Y"], ["Z"])), "other operators: Relu"),
    "other domains": (lambda: model_of(helper.make_node("LSTM", ["X", "W", "R"], ["Y"], domain="odd")), "odd.LSTM"),
    "old opset": (lambda: model_of(lstm(), opset=6), "opset"),
    "W does not fit": (
        lambda: model_of(lstm(), weights=plain_weights(W=np.ones((1, 12, 3), np.float32))),
        "expected W",
    ),
    "R does not fit": (
        lambda: model_of(lstm(), weights=plain_weights(R=np.ones((2, 16, 4), np.float32))),
        "expected R|W of",
    ),
    "flat W": (lambda: model_of(lstm(), weights=plain_weights(W=np.ones(3, np.float32))), "three dimensions"),
    "mixed dtypes": (lambda: model_of(lstm(), weights=plain_weights(R=np.ones((1, 16, 4)))), "floating dtype of W"),
    "half": (lambda: model_of(lstm(), weights=plain_weights(W=np.ones((1, 16, 3), np.float16))), "ONNX type 10"),
    "hidden_size": (lambda: model_of(lstm(hidden_size=5)), "hidden_size is 5"),
    "direction": (lambda: model_of(lstm(direction="up")), "direction"),
    "layout": (lambda: model_of(lstm(layout=2)), "layout"),
    "clip": (lambda: model_of(lstm(clip=-1.0)), "clip"),
    "activations": (lambda: model_of(lstm(activations=["Tanh"])), "expected 3 activations"),
    "activation": (lambda: model_of(lstm(activations=["Tanh", "Swish", "Tanh"])), "Swish"),
    "unknown attribute": (lambda: model_of(lstm(output_sequence=1)), "output_sequence"),
    "no weights": (lambda: model_of(lstm(), weights=[], inputs=("X", "W", "R")), "as a constant"),
    "missing weights": (lambda: model_of(helper.make_node("LSTM", ["X", "W"], ["Y"])), "no .'R'"),
    "unmade input": (lambda: model_of(lstm("nothing")), "nothing makes"),
    "held lengths": (
        lambda: model_of(lstm("", "L"), weights=[*plain_weights(), numpy_helper.from_array(np.int32([3]), "L")]),
        "sequence_lens is a constant",
    ),
    "held state": (
        lambda: model_of(
            lstm("", "", "h"), weights=[*plain_weights(), numpy_helper.from_array(np.ones((1, 2, 4), np.float32), "h")]
        ),
        "initial state",
    ),
    "crossed states": (
        lambda: model_of(
            helper.make_node("Split", ["S"], ["b", "a"], axis=0, num_outputs=2),
            helper.make_node("LSTM", ["X", "W", "R", "", "", "a"], ["Y"]),
            helper.make_node("Squeeze", ["Y", "one"], ["Z"]),
            helper.make_node("LSTM", ["Z", "W4", "R", "", "", "b"], ["Q"]),
            weights=[
                *plain_weights(W4=np.ones((1, 16, 4), np.float32)),
                numpy_helper.from_array(np.array([1]), "one"),
            ],
            inputs=("X", "S"),
            opset=18,
        ),
        "initial state",
    ),
    "no stack": (lambda: model_of(lstm(), helper.make_node("LSTM", ["Y", "W", "R"], ["Z"])), "directions side by side"),
    "no recurrent node": (lambda: model_of(helper.make_node("Identity", ["X"], ["Y"])), "other operators: Identity"),
}


@pytest.mark.parametrize("what", BAD_MODELS)
def test_models_that_do_not_fit(what):
    make, words = BAD_MODELS[what]
    with pytest.raises(ValueError, match=words):
        load(make().SerializeToString())


def tensor(**fields):
    one = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[1, 16, 3])
    for name, value in fields.items():
        if isinstance(value, list):
            del getattr(one, name)[:]
            getattr(one, name).extend(value)
        else:
            setattr(one, name, value)
    return [one, *plain_weights()[1:]]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"raw_data": b"\0" * 100}, "expected 192 bytes"),
        ({"float_data": [1.0] * 7}, "expected 48 values"),
        ({"dims": [2**62, 2**62, 4], "raw_data": b""}, "expected .* bytes"),
        ({"dims": [2**31, 2**33], "float_data": []}, "expected .* values"),
        ({"dims": [-1, 16, 3], "raw_data": b""}, "at least 0"),
        ({"data_type": TensorProto.STRING}, "ONNX type 8"),
        ({"data_type": 77}, "ONNX type 77"),
    ],
)
def test_tensors_that_do_not_fit(fields, words):
    with pytest.raises(ValueError, match=words):
        load(model_of(lstm(), weights=tensor(**fields)).SerializeToString())


def test_truncated_and_foreign_files(tmp_path):
    whole = model_of(lstm()).SerializeToString()
    for end in range(1, len(whole), 37):
        with pytest.raises(ValueError):
            load(whole[:end])
    with pytest.raises(ValueError, match="no nodes"):
        load(b"")
    for content in (pickle.dumps({"weight": 1}), pickle.dumps([os.system], 2)):
        with pytest.raises(ValueError, match="a pickle"):
            load(content)
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(ValueError, match="zip"):
        load(tmp_path / "model.pt")
    rng = np.random.default_rng(0)
    for _ in range(300):  # flipped bytes: an error or a layer, never anything else
        damaged = bytearray(whole)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(0, 256)
        try:
            load(bytes(damaged))
        except ValueError:
            pass
    with pytest.raises(TypeError, match="expected a path"):
        load(3)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.onnx")


def external(tmp_path, location, content=b"\0" * 192, **entries):
    one = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[1, 16, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        one.external_data.add(key=key, value=str(value))
    (tmp_path / "inside").mkdir(exist_ok=True)
    path = tmp_path / "inside" / "model.onnx"
    path.write_bytes(model_of(lstm(), weights=[one, *plain_weights()[1:]]).SerializeToString())
    (tmp_path / "inside" / "data.bin").write_bytes(content)
    (tmp_path / "outside.bin").write_bytes(content)
    return path


def test_external_data(tmp_path):
    values = np.arange(48, dtype=np.float32)
    path = external(tmp_path, "data.bin", b"\0" * 64 + values.tobytes(), offset=64, length=192)
    np.testing.assert_array_equal(load(path).params["weight_ih_l0"][:4].ravel(), values[:12])
    with pytest.raises(ValueError, match="loaded from a path"):
        load(path.read_bytes())


@pytest.mark.parametrize(
    "location", ["../outside.bin", "a/../../outside.bin", "..\\outside.bin", "", "/etc/passwd", "C:x"]
)
def test_external_data_elsewhere(tmp_path, location):
    with pytest.raises(ValueError, match="inside the model's folder"):
        load(external(tmp_path, location))


def test_external_data_through_links(tmp_path):
    path = external(tmp_path, "link.bin")
    (path.parent / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ValueError, match="link"):
        load(path)
    path = external(tmp_path, "folder/outside.bin")
    (path.parent / "folder").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="link"):
        load(path)
    path = external(tmp_path, "hard.bin")
    os.link(tmp_path / "outside.bin", path.parent / "hard.bin")
    with pytest.raises(ValueError, match="of its own"):
        load(path)
    path = external(tmp_path, "pipe")
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(ValueError, match="regular file"):
        load(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": 100}, "expected 192 bytes at 100"),
        ({"offset": -4}, "offset -4"),
        ({"length": 2**60}, "expected 192 bytes of external"),
        ({"offset": 2**63}, "expected 192 bytes at"),
        ({"offset": "ten"}, "whole numbers"),
    ],
)
def test_external_data_out_of_bounds(tmp_path, entries, words):
    with pytest.raises(ValueError, match=words):
        load(external(tmp_path, "data.bin", **entries))


def test_external_data_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="not there"):
        load(external(tmp_path, "gone.bin"))
