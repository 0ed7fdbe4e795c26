"""rnn_core.charlm: text and tokens, gradients, files, and drawing characters."""

from __future__ import annotations

import numpy as np
import pytest
from cases import parameter_differences

from rnn_core import checkpoint, losses
from rnn_core.charlm import CELLS, CharLM, draw

LETTERS = "\n abcdefé𝄞"


def small(cell="lstm", **options):
    return CharLM(LETTERS, **{"cell": cell, "layers": 2, "hidden": 6, "embedding": 4, "seed": 1, **options})


def test_the_keys_are_those_that_pytorch_would_use():
    for cell, gates in (("lstm", 4), ("gru", 3), ("rnn", 1)):
        shapes = {key: array.shape for key, array in small(cell).params.items()}
        assert shapes == {
            "embedding.weight": (10, 4),
            "rnn.weight_ih_l0": (gates * 6, 4), "rnn.weight_hh_l0": (gates * 6, 6),
            "rnn.bias_ih_l0": (gates * 6,), "rnn.bias_hh_l0": (gates * 6,),
            "rnn.weight_ih_l1": (gates * 6, 6), "rnn.weight_hh_l1": (gates * 6, 6),
            "rnn.bias_ih_l1": (gates * 6,), "rnn.bias_hh_l1": (gates * 6,),
            "head.weight": (10, 6), "head.bias": (10,),
        }  # fmt: skip


def test_text_and_tokens():
    model = small()
    tokens = model.encode("fé𝄞 a\n")
    assert tokens.dtype == np.int64 and [LETTERS[i] for i in tokens] == list("fé𝄞 a\n")
    assert model.decode(tokens) == "fé𝄞 a\n"
    assert model.encode("").shape == (0,)
    with pytest.raises(ValueError, match="got 'Zß'"):
        model.encode("abßZ")
    with pytest.raises(ValueError, match="expected 0 to 9, got 10"):
        model.decode([1, 10])


@pytest.mark.parametrize("cell", CELLS)
def test_training_and_inference_agree_and_a_text_can_be_read_in_pieces(cell):
    model = small(cell)
    tokens = np.random.default_rng(0).integers(0, 10, (7, 3))
    logits, state = model(tokens)
    assert logits.shape == (7, 3, 10)
    np.testing.assert_array_equal(model.forward(tokens)[0], logits)
    first, middle = model(tokens[:4])
    second, end = model(tokens[4:], middle)
    np.testing.assert_array_equal(np.concatenate([first, second]), logits)
    np.testing.assert_array_equal(np.asarray(end), np.asarray(state))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_against_central_differences(cell):
    rng = np.random.default_rng(2)
    model = small(cell, dtype="float64")
    tokens, targets = rng.integers(0, 10, (5, 3)), rng.integers(0, 10, (5, 3))
    _, state = model(rng.integers(0, 10, (2, 3)))
    logits, _, tape = model.forward(tokens, state)
    model.zero_grad()
    model.backward(tape, losses.cross_entropy(logits, targets)[1])

    def loss():
        return losses.cross_entropy(model(tokens, state)[0], targets)[0]

    for key, grad in model.grads.items():
        at = tuple(int(rng.integers(n)) for n in grad.shape)
        if key == "embedding.weight":
            at = (int(tokens[0, 0]), 1)
        assert parameter_differences(loss, model, key, at, 1e-6) == pytest.approx(grad[at], abs=1e-8), key


def test_a_model_survives_its_file(tmp_path):
    model = small("gru", dropout=0.25)
    model.save(tmp_path / "m.safetensors", step=3)
    other = CharLM.load(tmp_path / "m.safetensors")
    assert other.config == model.config and other.vocabulary == LETTERS
    for key, value in model.params.items():
        np.testing.assert_array_equal(other.params[key], value)
    assert "".join(other.generate("ab", 20, seed=1)) == "".join(model.generate("ab", 20, seed=1))


def test_files_that_hold_no_such_model_are_refused(tmp_path):
    model, path = small(), tmp_path / "m.safetensors"
    checkpoint.save(path, model.head, config={"model": {"kind": "something else"}})
    with pytest.raises(checkpoint.CheckpointError, match="another kind"):
        CharLM.load(path)
    checkpoint.save(path, model, config={"model": {**model.config, "hidden": 7}})
    with pytest.raises(checkpoint.CheckpointError, match=r"expected shape .* got"):
        CharLM.load(path)
    checkpoint.save(path, model, config={"model": {**model.config, "cell": "tram"}})
    with pytest.raises(checkpoint.CheckpointError, match="expected one of lstm, gru, rnn, got 'tram'"):
        CharLM.load(path)


def test_generation_follows_the_model():
    model = small()
    state, token, expected = None, None, []
    for letter in "abc":
        logits, state = model(model.encode(letter)[:, None], state)
    for _ in range(12):
        token = int(logits[-1, 0].argmax())
        expected.append(LETTERS[token])
        logits, state = model([[token]], state)
    assert "".join(model.generate("abc", 12, temperature=0)) == "".join(expected)
    assert "".join(model.generate("abc", 12, top_k=1, seed=3)) == "".join(expected)


def test_generation_is_lazy_seeded_and_checked():
    model = small()
    text = model.generate("", 10**9)
    assert next(text) in LETTERS
    assert list(model.generate("a", 30, seed=4)) == list(model.generate("a", 30, seed=4))
    assert list(model.generate("a", 30, seed=4)) != list(model.generate("a", 30, seed=5))
    assert list(model.generate("a", 0)) == []
    for bad in ({"length": -1}, {"temperature": -0.5}, {"temperature": np.nan}, {"top_k": 0}, {"prompt": "xyz"}):
        with pytest.raises(ValueError, match="expected"):
            model.generate(**bad)


def test_draws_have_the_softmax_distribution():
    rng = np.random.default_rng(0)
    logits = np.array([0.0, 1.0, -np.inf, 2.0, 1.5], np.float32)
    counts = np.bincount([draw(logits, 0.5, 5, rng) for _ in range(20000)], minlength=5) / 20000
    wanted = np.exp(2 * logits) / np.exp(2 * logits).sum()
    np.testing.assert_allclose(counts, wanted, atol=0.015)
    assert {draw(logits, 2.0, 2, rng) for _ in range(300)} == {3, 4}
    assert {draw(logits, 1e-300, 5, rng) for _ in range(20)} == {3}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocabulary": ""}, "vocabulary"),
        ({"vocabulary": "aba"}, "distinct"),
        ({"cell": "transformer"}, "expected one of lstm, gru, rnn, got 'transformer'"),
        ({"hidden": 0}, "hidden: expected 1"),
        ({"embedding": -1}, "embedding: expected 1"),
        ({"layers": 0}, "layers: expected 1"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        CharLM(**{"vocabulary": LETTERS, "hidden": 4, **change})
