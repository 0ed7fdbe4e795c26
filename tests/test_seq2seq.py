"""The model: gradients against central differences, the batch that changes nothing, and bad input."""

import copy
import os
import pickle

import numpy as np
import pytest
from cases import difference, parameter_differences

import rnn_core as rc
from rnn_core import _runtime, losses
from rnn_core.seq2seq import Decoder, Encoder, Seq2Seq
from rnn_core.seq2seq_parts import ragged_tokens
from rnn_core.sequences import Ragged

EXACT = _runtime.isa() != "generic" and os.environ.get("RNN_CORE_GEMM") != "blas"  # BLAS promises no bits
SOURCES = [[1, 2, 3], [4, 5], [6, 0, 1, 2, 3]]
TARGETS = [[3, 4], [5, 6, 7, 8], []]


def build(encoder=None, decoder=None, model=None, dtype="float64"):
    first = Encoder(7, 4, 6, **{"dtype": dtype, "seed": 1, **(encoder or {})})
    options = {"dtype": dtype, "memory_size": first.output_size, "seed": 2, **(decoder or {})}
    return Seq2Seq(first, Decoder(9, 5, 6, **options), seed=3, **(model or {}))


CASES = {
    "general": ({"bidirectional": True}, {"attention": "general"}, {}),
    "dot": ({}, {"attention": "dot"}, {}),
    "additive": ({"bidirectional": True}, {"attention": "additive"}, {}),
    "none": ({"bidirectional": True}, {"attention": None}, {}),
    "none combined": ({}, {"attention": None, "attention_size": 4}, {}),
    "lstm tied": ({"cell": "lstm", "num_layers": 2}, {"cell": "lstm", "num_layers": 2, "tied": True}, {}),
    "lstm bridge": ({"cell": "lstm", "bidirectional": True}, {"cell": "lstm", "attention": "additive"}, {}),
    "gru to lstm": ({}, {"cell": "lstm", "num_layers": 2, "attention_size": 8}, {}),
    "lstm to rnn": ({"cell": "lstm"}, {"cell": "rnn"}, {}),
    "feeding": ({"bidirectional": True}, {"input_feeding": True}, {}),
    "feeding additive": ({}, {"attention": "additive", "input_feeding": True, "cell": "lstm", "num_layers": 2}, {}),
    "feeding dot tied": ({}, {"attention": "dot", "input_feeding": True, "cell": "rnn", "tied": True}, {}),
    "linear": ({}, {}, {"bridge": "linear"}),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_central_differences(case):
    model = build(*CASES[case])
    outputs = model.teacher(TARGETS)[1]

    def loss():
        return losses.cross_entropy(model(SOURCES, TARGETS).values, outputs, label_smoothing=0.1, need_dlogits=False)[0]

    assert abs(model.learn(SOURCES, TARGETS, label_smoothing=0.1) - loss()) < 1e-12
    rng = np.random.default_rng(0)
    for key, grad in model.grads.items():
        for _ in range(4):
            index = tuple(rng.integers(size) for size in grad.shape)
            assert abs(parameter_differences(loss, model, key, index) - grad[index]) < 1e-6, key


def test_shared_vocabulary_has_one_table():
    model = Seq2Seq(
        Encoder(9, 5, 6, dtype="float64", seed=1),
        Decoder(9, 5, 6, memory_size=6, dtype="float64", seed=2, tied=True),
        shared_vocabulary=True,
        seed=3,
    )
    outputs = model.teacher(TARGETS)[1]
    assert not any("embedding" in key and key != "encoder.embedding.weight" for key in model.params)
    model.learn(SOURCES, TARGETS)
    key = "encoder.embedding.weight"

    def loss():
        return losses.cross_entropy(model(SOURCES, TARGETS).values, outputs)[0]

    expected = parameter_differences(loss, model, key, (3, 2))
    assert abs(expected - model.grads[key][3, 2]) < 1e-6


def test_one_to_many_gradient_reaches_the_vectors():
    decoder = Decoder(9, 5, 6, attention=None, cell="lstm", dtype="float64", seed=1)
    model = Seq2Seq(None, decoder, context_size=4, seed=2)
    x = np.random.default_rng(0).standard_normal((3, 4))
    logits, tape = model.forward(x, TARGETS)
    weights = np.random.default_rng(1).standard_normal(logits.values.shape)
    dx = model.backward(tape, weights)
    for index in ((0, 0), (2, 3)):
        slope = difference(lambda: float((model(x, TARGETS).values * weights).sum()), x, index)
        assert abs(slope - dx[index]) < 1e-6
    assert len(model.decode(x, max_decoding_length=5)) == 3


@pytest.mark.parametrize("feeding", [False, True])
@pytest.mark.parametrize("attention", ["dot", "general", "additive", None])
def test_a_sentence_gives_the_same_bits_alone_and_in_a_batch(attention, feeding, threads):
    model = build({}, {"attention": attention, "input_feeding": feeding and attention is not None}, dtype="float32")
    together = model(SOURCES, TARGETS)
    threads(1)
    ends = np.cumsum([0, *together.lengths])
    for i, (source, target) in enumerate(zip(SOURCES, TARGETS)):
        alone = model([source], [target]).values
        np.testing.assert_allclose(alone, together.values[ends[i] : ends[i + 1]], rtol=0, atol=0 if EXACT else 1e-6)


@pytest.mark.skipif(not EXACT, reason="BLAS promises no bits")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_encoders_table_is_never_stale_and_changes_no_bit(cell, threads):
    encoder = Encoder(7, 4, 20, 2, cell=cell, bidirectional=True, seed=1)
    sources = ragged_tokens("sources", SOURCES, None, 7)
    before = rc.get_num_threads()
    rc.set_num_threads(threads)
    try:
        for name in (None, "embedding.weight", "rnn.weight_ih_l0_reverse", "rnn.bias_hh_l0"):
            if name is not None:
                encoder.assign(name, encoder.params[name] * 1.5)
            memory, state, _ = encoder.forward(sources)
            for use in range(3):  # the first without the table, the others with it
                found, last = encoder(sources)
                assert (encoder._known[2] is not None) == (use > 0)
                assert np.array_equal(found, memory) and np.array_equal(last, state)
            alone, last = encoder(ragged_tokens("sources", SOURCES[1:2], None, 7))
            assert np.array_equal(alone, memory[3:5])
            assert np.array_equal(np.array(last)[..., 0, :], np.array(state)[..., 1, :])
    finally:
        rc.set_num_threads(before)


def test_padded_arrays_and_ragged_are_the_same():
    model = build()
    padded = np.full((3, 5), 99)
    for row, source in zip(padded, SOURCES):
        row[: len(source)] = source
    lengths = [len(source) for source in SOURCES]
    expected = model(SOURCES, TARGETS).values
    assert np.array_equal(model(padded, TARGETS, lengths).values, expected)
    assert np.array_equal(model(Ragged(np.concatenate(SOURCES), lengths), TARGETS).values, expected)


def test_dropout_is_only_in_training():
    model = build({"dropout": 0.5}, {"dropout": 0.5})
    plain = model(SOURCES, TARGETS).values
    assert np.array_equal(plain, model(SOURCES, TARGETS).values)
    assert not np.array_equal(plain, model.forward(SOURCES, TARGETS)[0].values)


def test_copies_and_configurations_give_the_same_model():
    model = build({"bidirectional": True}, {"tied": True, "cell": "lstm"}, dtype="float32")
    expected = model(SOURCES, TARGETS).values
    again = Seq2Seq.from_config(model.config())
    again.load_state_dict(model.state_dict())
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other(SOURCES, TARGETS).values, expected)
        other.learn(SOURCES, TARGETS)
        rc.optim.Adam(other.params).step(other.grads)
        assert not np.array_equal(other(SOURCES, TARGETS).values, expected)
    assert np.array_equal(model(SOURCES, TARGETS).values, expected)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: build()([[]], [[1]]), "sources: expected at least 1 token"),
        (lambda: build()([[7]], [[1]]), "sources: expected 0 to 6, got 7"),
        (lambda: build()([[1]], [[9]]), "targets: expected 0 to 8, got 9"),
        (lambda: build()([[1]], [[1], [2]]), "targets: expected 1 as the sources, got 2"),
        (lambda: build({"bidirectional": True}, {"attention": "dot"}), "use 'general'"),
        (lambda: build(decoder={"attention": "best"}), "expected one of .*'additive'"),
        (lambda: build({"cell": "elman"}), "cell: expected one of"),
        (lambda: build(decoder={"memory_size": 5}), "memory_size: expected 6"),
        (lambda: build(decoder={"attention": None, "input_feeding": True}), "input_feeding"),
        (lambda: build(decoder={"tied": True, "attention_size": 9}), "attention_size"),
        (lambda: build(decoder={"end_token": 9}), "end"),
        (lambda: Seq2Seq(None, Decoder(9, 5, 6, memory_size=6)), "without an encoder"),
        (lambda: build(model={"bridge": "none"}), "bridge"),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_score_is_the_log_probability():
    model = build(dtype="float32")
    logits = model(SOURCES, TARGETS)
    x = logits.values.astype(np.float64)
    each = (x - np.log(np.exp(x).sum(1, keepdims=True)))[np.arange(len(x)), model.teacher(TARGETS)[1]]
    ends = np.cumsum([0, *logits.lengths])
    expected = [each[a:b].sum() for a, b in zip(ends[:-1], ends[1:])]
    np.testing.assert_allclose(model.score(SOURCES, TARGETS), expected, rtol=1e-6)
