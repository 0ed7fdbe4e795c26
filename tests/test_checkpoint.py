"""rnn_core.checkpoint: round trips, atomic writes, and the refusal of whatever is damaged or does not fit."""

from __future__ import annotations

import os

import numpy as np
import pytest

from rnn_core import checkpoint, optim
from rnn_core.checkpoint import CheckpointError
from rnn_core.layers import Linear


def trained(seed=0, inputs=3, outputs=2):
    """A small layer and an optimiser that has made two steps."""
    rng = np.random.default_rng(seed)
    model = Linear(inputs, outputs, seed=seed)
    optimiser = optim.Adam(model.params, lr=0.01)
    for _ in range(2):
        train_step(model, optimiser, rng)
    return model, optimiser, rng


def train_step(model, optimiser, rng):
    for grad in model.grads.values():
        grad[...] = rng.standard_normal(grad.shape)
    optimiser.step(model.grads)


def plain(tree):
    """Arrays as lists, so that == compares everything."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    return tree.tolist() if isinstance(tree, np.ndarray) else tree


def everything(model, optimiser, rng):
    return plain([model.state_dict(), optimiser.state_dict(), rng.bit_generator.state])


@pytest.fixture
def saved(tmp_path):
    model, optimiser, rng = trained()
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, model, optimiser, step=7, rng=rng, config={"name": "é", "sizes": [1, 2]})
    return path, model, optimiser, rng


def test_a_saved_run_comes_back_whole_and_goes_on_alike(saved):
    path, *originals = saved
    others = trained(seed=5)
    found = checkpoint.load(path)
    found.restore(*others)
    assert everything(*others) == everything(*originals)
    assert found.step == 7 and found.config == {"name": "é", "sizes": [1, 2]}
    train_step(*originals)
    train_step(*others)
    assert everything(*others) == everything(*originals)


def test_other_readers_of_safetensors_find_the_weights_under_their_own_keys(saved):
    from safetensors.numpy import load_file

    path, model, *_ = saved
    tensors = load_file(path)
    for key, value in model.params.items():
        np.testing.assert_array_equal(tensors[key], value)


def test_extra_arrays_and_generators_with_array_states(tmp_path):
    model, optimiser, _ = trained()
    rng = np.random.Generator(np.random.Philox(3))
    rng.random(5)
    state = np.arange(6.0).reshape(1, 2, 3)
    checkpoint.save(tmp_path / "x", model, rng=rng, extra={"state.0": state})
    found = checkpoint.load(tmp_path / "x")
    other = np.random.Generator(np.random.Philox(4))
    found.restore(model, rng=other)
    np.testing.assert_array_equal(other.random(4), rng.random(4))
    np.testing.assert_array_equal(found.extra["state.0"], state)
    with pytest.raises(CheckpointError, match="no optimiser state"):
        found.restore(model, optimiser)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20, 200, -100, -1])
def test_a_truncated_file_is_refused(saved, kept):
    path = saved[0]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"run\.safetensors"):
        checkpoint.load(path)


def test_every_altered_byte_is_noticed(saved):
    path = saved[0]
    data = path.read_bytes()
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :])
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, foreign)
    with pytest.raises(CheckpointError, match="expected a checkpoint of format"):
        checkpoint.load(foreign)
    checkpoint.write(foreign, {"weight": np.zeros(3)}, {"other": 1})
    with pytest.raises(CheckpointError, match="config"):
        checkpoint.load(foreign)
    foreign.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(CheckpointError):
        checkpoint.load(foreign)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("misfit", ["model", "optimiser", "random"])
def test_what_does_not_fit_changes_nothing(saved, misfit):
    found = checkpoint.load(saved[0])
    model, optimiser, rng = trained(seed=9, inputs=4 if misfit == "model" else 3)
    if misfit == "optimiser":
        _, optimiser, _ = trained(inputs=5)
    if misfit == "random":
        rng = np.random.Generator(np.random.MT19937(1))
    before = everything(model, optimiser, rng)
    with pytest.raises(CheckpointError, match="does not fit"):
        found.restore(model, optimiser, rng)
    assert everything(model, optimiser, rng) == before


def test_a_failed_write_leaves_the_old_file_and_no_other(saved, monkeypatch):
    path, model, *_ = saved
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space"):
                checkpoint.save(path, model, step=8)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]
    checkpoint.load(path)


def test_the_contents_reach_the_disk_before_the_name_does(saved, monkeypatch):
    path, model, *_ = saved
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    checkpoint.save(path, model)
    assert calls == ["fsync", "replace", "fsync"]


def test_a_link_is_written_through(saved, tmp_path):
    path, model, *_ = saved
    link = tmp_path / "link"
    link.symlink_to(path)
    checkpoint.save(link, model, step=11)
    assert link.is_symlink() and checkpoint.load(path).step == 11
