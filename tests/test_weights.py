"""safetensors files of others: keys, prefixes, dtypes, memory mapping, and files that must be refused."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

import rnn_core as rc
from rnn_core import weights


@pytest.fixture
def lstm():
    return rc.LSTM(3, 4, 2, bidirectional=True, seed=1)


def written(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("prefix", ["", "rnn.", "model.encoder.rnn."])
def test_keys_bare_and_prefixed(lstm, prefix, tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {prefix + key: value for key, value in lstm.state_dict().items()}
    save_file({**tensors, "head.weight": np.zeros((2, 2), np.float32)}, path)
    for given in (None, prefix, prefix.rstrip(".")):
        twin = rc.LSTM(3, 4, 2, bidirectional=True)
        result = weights.load(twin, path, prefix=given, strict=bool(prefix))
        assert result.unexpected_keys == ([] if prefix else ["head.weight"])
        for key, value in lstm.params.items():
            np.testing.assert_array_equal(twin.params[key], value)


def test_models_load_too(tmp_path):
    model = rc.Sequential(rc.Linear(3, 4, seed=1), rc.Linear(4, 2, seed=2))
    save_file({f"net.{key}": value for key, value in model.state_dict().items()}, tmp_path / "m.safetensors")
    twin = rc.Sequential(rc.Linear(3, 4), rc.Linear(4, 2))
    weights.load(twin, tmp_path / "m.safetensors")
    x = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(twin(x), model(x))


def test_prefix_that_is_not_clear(lstm, tmp_path):
    state = lstm.state_dict()
    save_file({f"{name}.{key}": value for name in "ab" for key, value in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"expected one of \['a\.', 'b\.'\]"):
        weights.load(lstm, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="missing"):
        weights.load(lstm, tmp_path / "w.safetensors", prefix="c")


def test_arrays_are_mapped(lstm, tmp_path):
    save_file(lstm.state_dict(), tmp_path / "w.safetensors")
    array = weights.read(tmp_path / "w.safetensors")["weight_hh_l0"]
    assert not array.flags.writeable
    while not isinstance(array, np.memmap):
        array = array.base.obj if isinstance(array.base, memoryview) else array.base
    assert array.filename.name == "w.safetensors"


def test_other_dtypes(tmp_path):
    values = np.array([1.5, -2.25, 1e-3], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    data = halves.tobytes() + values.astype(np.float16).tobytes() + np.array([7], np.int64).tobytes()
    header = {"b": entry("BF16", (3,), (0, 6)), "h": entry("F16", (3,), (6, 12)), "n": entry("I64", (), (12, 20))}
    found = weights.read(written(tmp_path / "w", {**header, "__metadata__": {"format": "pt"}}, data))
    np.testing.assert_array_equal(found["b"], (halves.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_array_equal(found["h"], values.astype(np.float16))
    assert found["n"] == 7 and found.keys() == {"b", "h", "n"}


def test_no_tensors(tmp_path):
    assert weights.read(written(tmp_path / "w", {})) == {}
    assert weights.read(written(tmp_path / "w", {"a": entry(shape=(0, 3), offsets=(0, 0))}))["a"].shape == (0, 3)


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"not json", b"", "whole safetensors"),
        (b"[1]", b"", "not an object"),
        (b'{"a": 1}', b"", "dtype, shape"),
        ({"a": entry("F4")}, b"\0" * 8, "dtype, shape"),
        ({"a": entry(shape=(-2,))}, b"\0" * 8, "does not fit"),
        ({"a": entry(shape=(3,))}, b"\0" * 8, "does not fit"),
        ({"a": entry(shape=(2.0,))}, b"\0" * 8, "does not fit"),
        ({"a": entry(shape=(2**62, 2**62), offsets=(0, 8))}, b"\0" * 8, "does not fit"),
        ({"a": entry(offsets=(8, 0))}, b"\0" * 8, "does not fit"),
        ({"a": entry(offsets=(4, 12))}, b"\0" * 12, "gap or overlap"),
        ({"a": entry(), "b": entry()}, b"\0" * 8, "gap or overlap"),
        ({"a": entry()}, b"\0" * 4, "the file has 4"),
        ({"a": entry()}, b"\0" * 12, "the file has 12"),
        (b'{"a": {"dtype": "F32"}, "a": {}}', b"", "twice"),
        (b"[" * 100_000, b"", "whole safetensors"),
    ],
)
def test_damaged_headers(tmp_path, header, data, words):
    with pytest.raises(ValueError, match=words):
        weights.read(written(tmp_path / "w", header, data))


def test_truncated_and_foreign_files(lstm, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(lstm.state_dict(), path)
    whole = path.read_bytes()
    for end in (0, 5, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="safetensors"):
            weights.read(path)
    path.write_bytes((2**63).to_bytes(8, "little") + whole)
    with pytest.raises(ValueError, match="header of"):
        weights.read(path)
    for content in (pickle.dumps({"a": 1}), b"PK\x03\x04 and more"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="pickle"):
            weights.read(path)
    with pytest.raises(FileNotFoundError):
        weights.read(tmp_path / "nowhere")
