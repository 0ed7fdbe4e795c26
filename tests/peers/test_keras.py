"""Keras: weights out of its files, and its layers on the engine, on the torch backend and (again) on the numpy one."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import keras
from keras import layers

import rnn_core.keras
import rnn_core.torch
from rnn_core import general, recurrent

pytestmark = pytest.mark.peers
BACKEND = keras.backend.backend()


def test_the_same_on_the_numpy_backend():
    if BACKEND == "numpy":
        pytest.skip("this is that run")
    if importlib.util.find_spec("jax") is None:
        pytest.skip("Keras' numpy backend imports jax, which is not installed")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


@pytest.fixture
def engine():
    yield rnn_core.keras.enable
    rnn_core.keras.disable()


def numpy_of(found):
    return [keras.ops.convert_to_numpy(part) for part in (found if isinstance(found, (list, tuple)) else [found])]


def randomised(layer, shape=(None, 7, 5)):
    """Built, with weights that tell the gates apart: Keras starts biases at zero."""
    layer.build(shape)
    rng = np.random.default_rng(0)
    layer.set_weights([(rng.standard_normal(w.shape) * 0.4).astype(w.dtype) for w in layer.get_weights()])
    return layer


X = np.random.default_rng(1).standard_normal((3, 7, 5)).astype(np.float32)

# ---- files -----------------------------------------------------------------------------------------------------

SPECS = {
    "lstm": (lambda: layers.LSTM(4, return_sequences=True), recurrent.LSTM),
    "lstm_no_bias": (lambda: layers.LSTM(4, return_sequences=True, use_bias=False), recurrent.LSTM),
    "gru": (lambda: layers.GRU(4, return_sequences=True), recurrent.GRU),
    "gru_v1": (lambda: layers.GRU(4, return_sequences=True, reset_after=False), recurrent.GRU),
    "rnn": (lambda: layers.SimpleRNN(4, return_sequences=True), recurrent.RNN),
    "both": (lambda: layers.Bidirectional(layers.LSTM(4, return_sequences=True)), recurrent.LSTM),
    "both_gru": (lambda: layers.Bidirectional(layers.GRU(4, return_sequences=True)), recurrent.GRU),
    "cell": (lambda: layers.RNN(layers.GRUCell(4), return_sequences=True), recurrent.GRU),
    "hard": (lambda: layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid"), general.GeneralLSTM),
    "elu": (lambda: layers.GRU(4, return_sequences=True, activation="elu"), general.GeneralGRU),
    "relu": (lambda: layers.SimpleRNN(4, return_sequences=True, activation="relu"), recurrent.RNN),
    "back": (lambda: layers.LSTM(4, return_sequences=True, go_backwards=True), general.GeneralLSTM),
}


def kernels(layer):
    """Every array of the layer as Keras orders its own weights."""
    found = []
    for end in ("_l0", "_l0_reverse")[: 1 + layer.bidirectional]:
        turn = (
            (lambda a: np.concatenate([np.split(a, 3)[k] for k in (1, 0, 2)])) if layer._gates == 3 else (lambda a: a)
        )
        found += [turn(layer.params[f"weight_{which}{end}"]).T for which in ("ih", "hh")]
        if layer.bias:
            ih, hh = (turn(layer.params[f"bias_{which}{end}"]) for which in ("ih", "hh"))
            found.append(np.stack([ih, hh]) if hh.any() else ih)
    return found


@pytest.mark.parametrize("kind", SPECS)
def test_keras_files(kind, tmp_path):
    """Every weight bit for bit, outputs within 1e-5."""
    make, expected = SPECS[kind]
    model = keras.Sequential([keras.Input((7, 5)), make()])
    layer = randomised(model.layers[0])
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    found = rnn_core.keras.load(tmp_path / "m.keras")
    assert list(found) == [layer.name]
    mine = found[layer.name]
    assert type(mine) is expected
    for a, b in zip(kernels(mine), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    y = mine(X)[0]
    np.testing.assert_allclose(y[:, ::-1] if kind == "back" else y, numpy_of(layer(X))[0], atol=1e-5)
    plain = rnn_core.keras.load(tmp_path / "m.weights.h5")[layer.name]
    for a, b in zip(kernels(plain), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_layers_and_nested_models(tmp_path):
    inner = keras.Sequential([keras.Input((7, 5)), layers.GRU(4, return_sequences=True, name="deep")], name="inner")
    model = keras.Sequential([keras.Input((7, 5)), inner, layers.LSTM(3, name="top"), layers.Dense(2)])
    model.save(tmp_path / "m.keras")
    found = rnn_core.keras.load(tmp_path / "m.keras")
    assert {name: type(layer).__name__ for name, layer in found.items()} == {"deep": "GRU", "top": "LSTM"}


def test_what_cannot_be_a_layer(tmp_path):
    for layer, words in (
        (layers.Bidirectional(layers.LSTM(4), merge_mode="sum"), "merge_mode"),
        (layers.LSTM(4, activation="gelu"), "gelu"),
    ):
        keras.Sequential([keras.Input((7, 5)), layer]).save(tmp_path / "m.keras")
        with pytest.raises(ValueError, match=words):
            rnn_core.keras.load(tmp_path / "m.keras")


# ---- hostile files ---------------------------------------------------------------------------------------------


def weights_file(path, **change):
    """One LSTM's weights; `change` replaces how an array is written."""
    shapes = {"0": (5, 16), "1": (4, 16), "2": (16,)}
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/lstm/cell/vars")
        for name, shape in shapes.items():
            if change.get("name") == name:
                change["write"](group, name)
            else:
                group[name] = np.zeros(shape, np.float32)
    return path


HOSTILE = {
    "soft link": (lambda g, n: g.__setitem__(n, h5py.SoftLink("/layers/lstm/cell/vars/0")), "a link"),
    "external link": (lambda g, n: g.__setitem__(n, h5py.ExternalLink("other.h5", "/x")), "a link"),
    "external storage": (
        lambda g, n: g.create_dataset(n, (4, 16), "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]),
        "stored in the file itself",
    ),
    "a shape without bytes": (
        lambda g, n: g.create_dataset(n, (2**20, 2**22), "f4", chunks=(1, 2**10)),
        "in one piece",
    ),
    "compressed": (lambda g, n: g.create_dataset(n, (4, 16), "f4", compression="gzip"), "in one piece"),
    "text": (lambda g, n: g.__setitem__(n, "words"), "float32 or float64"),
    "integers": (lambda g, n: g.__setitem__(n, np.zeros((4, 16), np.int32)), "float32 or float64"),
    "empty": (lambda g, n: g.__setitem__(n, h5py.Empty("f4")), "in one piece"),
    "group": (lambda g, n: g.create_group(n), "stored in the file itself"),
    "wrong gates": (lambda g, n: g.__setitem__(n, np.zeros((4, 20), np.float32)), "recurrent kernel"),
    "other units": (lambda g, n: g.__setitem__(n, np.zeros((8, 32), np.float32)), "expected"),
    "double": (lambda g, n: g.__setitem__(n, np.zeros((4, 16))), "expected"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_weights(what, tmp_path):
    write, words = HOSTILE[what]
    assert len(rnn_core.keras.load(weights_file(tmp_path / "good.h5"))) == 1
    with pytest.raises(ValueError, match=words):
        rnn_core.keras.load(weights_file(tmp_path / "m.h5", name="1", write=write))


def test_groups_in_a_circle(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = file.create_group("a/b")
        group["again"] = file["a"]
    with pytest.raises(ValueError, match="levels"):
        rnn_core.keras.load(tmp_path / "m.h5")


def test_truncated_and_foreign_files(tmp_path):
    whole = weights_file(tmp_path / "good.h5").read_bytes()
    for content in (whole[:100], whole[: len(whole) // 2], b"", b"no", pickle.dumps({"a": 1})):
        (tmp_path / "m.h5").write_bytes(content)
        with pytest.raises(ValueError, match="expected"):
            rnn_core.keras.load(tmp_path / "m.h5")
    members = {
        "no config": {"model.weights.h5": whole},
        "no weights": {"config.json": b"{}"},
        "bad config": {"config.json": b"{", "model.weights.h5": whole},
        "a bomb": {"config.json": b"{}", "model.weights.h5": whole + bytes(1 << 24)},
        "deep": {"config.json": b"[" * 200 + b"]" * 200, "model.weights.h5": whole},
    }
    for what, content in members.items():
        with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        with pytest.raises(ValueError, match="expected"):
            rnn_core.keras.load(tmp_path / "m.keras")
            pytest.fail(what)


def test_config_that_lies(tmp_path):
    """The weights decide what fits: a config of other sizes or kinds is an error, not a crash."""
    weights_file(tmp_path / "w.h5")
    config = {"class_name": "GRU", "config": {"name": "lstm", "reset_after": 3, "activation": ["tanh"]}}
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.write(tmp_path / "w.h5", "model.weights.h5")
        archive.writestr("config.json", json.dumps({"config": {"layers": [config]}}))
    with pytest.raises(ValueError, match="activations"):
        rnn_core.keras.load(tmp_path / "m.keras")


# ---- the hook --------------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"return_sequences": True, "return_state": True},
    {"go_backwards": True, "return_sequences": True},
    {"activation": "relu"},
    {"use_bias": False, "dropout": 0.3},
]
MASK = np.arange(7) < np.array([7, 2, 5])[:, None]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_layers_on_the_engine(name, options, engine):
    layer = randomised(getattr(layers, name)(6, **options))
    for mask in (None, MASK, MASK[:, ::-1], MASK & False):
        theirs = numpy_of(layer(X, mask=mask))
        engine()
        for a, b in zip(theirs, numpy_of(layer(X, mask=mask)), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-5)
        rnn_core.keras.disable()


@pytest.mark.parametrize("reset_after", [False, True])
def test_gru_forms_bidirectional_and_states(reset_after, engine):
    layer = randomised(layers.Bidirectional(layers.GRU(6, reset_after=reset_after, return_sequences=True)))
    single = randomised(layers.GRU(6, reset_after=reset_after))
    h = np.ones((3, 6), np.float32)
    theirs = [*numpy_of(layer(X)), *numpy_of(single(X, initial_state=h))]
    engine()
    for a, b in zip(theirs, [*numpy_of(layer(X)), *numpy_of(single(X, initial_state=h))]):
        np.testing.assert_allclose(b, a, atol=1e-5)


def test_the_engine_runs_and_follows_the_weights(engine, monkeypatch):
    """The hook is what answers, and weights set later are seen."""
    owner, name = (rnn_core.torch, "recur") if BACKEND == "torch" else (recurrent.LSTM, "__call__")
    original, calls = getattr(owner, name), []
    monkeypatch.setattr(owner, name, lambda *arguments: calls.append(1) or original(*arguments))
    layer = randomised(layers.LSTM(6))
    engine()
    before = numpy_of(layer(X))[0]
    layer.set_weights([w * 2 for w in layer.get_weights()])
    after = numpy_of(layer(X))[0]
    rnn_core.keras.disable()
    assert len(calls) == 2
    np.testing.assert_allclose(after, numpy_of(layer(X))[0], atol=1e-5)
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.skipif(BACKEND != "torch", reason="Keras trains on the torch backend, not on the numpy one")
def test_training_on_the_engine(engine):
    curves = []
    x = np.random.default_rng(0).standard_normal((64, 7, 5)).astype(np.float32)
    for accelerated in (False, True):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [keras.Input((7, 5)), layers.GRU(8, return_sequences=True), layers.LSTM(8), layers.Dense(1)]
        )
        model.compile(keras.optimizers.Adam(1e-2), "mse")
        if accelerated:
            engine()
        curves.append(model.fit(x, x.sum((1, 2)), epochs=4, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*curves, rtol=1e-4)
    assert curves[0][-1] < curves[0][0]


def test_enable_twice_and_disable():
    from keras.src import backend

    before = backend.lstm, layers.LSTM.inner_loop
    rnn_core.keras.enable()
    rnn_core.keras.enable()
    assert backend.lstm is not before[0]
    rnn_core.keras.disable()
    assert (backend.lstm, layers.LSTM.inner_loop) == before
