"""layer(tokens, embedding=...): what the layer gives for the embedding's rows, whether or not tokens come again."""

import numpy as np
import pytest
from cases import BACKWARD, KINDS, Case, all_close, exact_bits, parts, public, same

import rnn_core as rc
from rnn_core import general, lookup


def made(case, tokens, dtype="float32", **options):
    """(layer, embedding) of a case, the first row of the embedding padding."""
    embedding = rc.Embedding(tokens, case.input_size, padding_idx=0, seed=case.seed)
    weight = embedding.params["weight"]
    other = rc.Embedding(tokens, case.input_size, padding_idx=0, dtype=dtype)
    other.load_state_dict({"weight": weight.astype(dtype)})
    return case.layer(dtype, **options), other


def tokens_of(case, count):
    return case.rng(5).integers(0, count, (case.T, case.B))


def apart(layer, embedding, tokens, state, lengths, dy, dstate):
    """Results and gradients of the layer on the rows that the tokens stand for."""
    x, at = embedding.forward(tokens)
    y, final, tape = layer.forward(x, public(state), lengths)
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    embedding.backward(at, dx)
    return (y, *parts(final)), parts(dinitial), {**layer.grads, "embedding": embedding.grads["weight"]}


def together(layer, embedding, tokens, state, lengths, dy, dstate):
    y, final, tape = layer.forward(tokens, public(state), lengths, embedding=embedding)
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    assert dx is None
    return (y, *parts(final)), parts(dinitial), {**layer.grads, "embedding": embedding.grads["weight"]}


def cases(kind, count):
    """Random ones with their tokens: few (all rows are in the table), some (the distinct ones) and many (no table)."""
    for seed in range(25):
        case = Case.random(kind, 900 + seed)
        tokens = tokens_of(case, count)
        yield case, tokens if count < 100 or seed % 2 else tokens % 5 * 1000  # of many, a few that come again


@exact_bits
@pytest.mark.parametrize("count", [2, 7, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_with_the_rows(kind, count):
    for case, tokens in cases(kind, count):
        _, state, dy, dstate = case.arrays()
        want = apart(*made(case, count), tokens, state, case.lengths, dy, dstate)[0]
        layer, embedding = made(case, count)
        same(together(layer, embedding, tokens, state, case.lengths, dy, dstate)[0], want, case)
        y, final = layer(tokens, public(state), case.lengths, embedding=embedding)
        same((y, *parts(final)), want, "inference", case)


@pytest.mark.parametrize("count", [2, 7, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_float64(kind, count):
    for case, tokens in cases(kind, count):
        _, state, dy, dstate = case.arrays()
        _, got_state, got = together(*made(case, count), tokens, state, case.lengths, dy, dstate)
        _, state, dy, dstate = case.arrays("float64")
        _, want_state, want = apart(*made(case, count, "float64"), tokens, state, case.lengths, dy, dstate)
        all_close(got_state, want_state, BACKWARD["float32"], case)
        all_close(got, want, BACKWARD["float32"], case)
        assert not got["embedding"][0].any(), case


@exact_bits
@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind, threads):
    case = Case.random(kind, 3, hidden_size=70, input_size=40, T=60, B=13, bidirectional=True)
    tokens, (_, state, dy, dstate) = tokens_of(case, 9), case.arrays()
    found = []
    for n in (1, 2, 3):
        threads(n)
        found.append(together(*made(case, 9), tokens, state, case.lengths, dy, dstate))
    for y, dstate, grads in found[1:]:
        same(y, found[0][0], case)
        same(dstate, found[0][1], case)
        for key, g in grads.items():
            same(g, found[0][2][key], key, case)


@exact_bits
@pytest.mark.parametrize("repeated", [True, False])
def test_every_layout(repeated):
    rng, count = np.random.default_rng(0), 3 if repeated else 1000
    tokens, lengths = rng.integers(0, count, (8, 5)), [8, 0, 3, 8, 1]
    embedding, time = rc.Embedding(count, 6, seed=0), rc.GRU(6, 4, seed=0)
    batch = rc.GRU(6, 4, batch_first=True, seed=0)
    want, h = time(embedding(tokens), None, lengths)
    same(time(tokens, None, lengths, embedding=embedding)[0], want)
    same(batch(np.asfortranarray(tokens.T), None, lengths, embedding=embedding)[0], want.transpose(1, 0, 2))
    same(time(tokens.astype(np.uint8 if repeated else np.int32), None, lengths, embedding=embedding)[0], want)
    ragged = rc.Ragged(np.concatenate([tokens[:n, row] for row, n in enumerate(lengths)]), lengths)
    got, last = time(ragged, embedding=embedding)
    same((got.values, last), (np.concatenate([want[:n, row] for row, n in enumerate(lengths)]), h))
    y, _, tape = time.forward(ragged, embedding=embedding)
    time.backward(tape, y)
    assert embedding.grads["weight"].any()
    same(time(tokens[:, 0], embedding=embedding)[0], want[:, 0])


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"zoneout": 0.3}, {"weight_drop": 0.4, "num_layers": 2},
                                     {"recurrent_dropout": 0.4}, {"dropout": 0.5, "num_layers": 2}])
@pytest.mark.parametrize("more", [{}, {"return_all_states": True}, {"recompute": True}])
def test_with_variants_and_ways_to_run(options, more):
    tokens, embedding = np.random.default_rng(0).integers(0, 4, (30, 3)), rc.Embedding(4, 6, seed=0)
    found = []
    for apart in (False, True):
        layer = rc.LSTM(6, 5, seed=0, **options)
        embedding.zero_grad()
        x, at = embedding.forward(tokens)
        y, _, tape = layer.forward(x, **more) if apart else layer.forward(tokens, embedding=embedding, **more)
        dx, _ = layer.backward(tape, y)
        if apart:
            embedding.backward(at, dx)
        found.append((y, {**layer.grads, "embedding": embedding.grads["weight"].copy()}))
    all_close((found[0][0],), (found[1][0],), 1e-6)
    all_close(found[0][1], found[1][1], 2e-5)


def test_general_layers_and_float64():
    tokens = np.random.default_rng(0).integers(0, 4, (30, 3))
    for layer in (general.GeneralLSTM(6, 5, peepholes=True, seed=0), rc.GRU(6, 5, dtype="float64", seed=0)):
        embedding = rc.Embedding(4, 6, dtype=layer.dtype, seed=0)
        y, _, tape = layer.forward(tokens, embedding=embedding)
        same(y, layer(embedding(tokens))[0])
        assert layer.backward(tape, y)[0] is None and embedding.grads["weight"].any()


@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (0, 0)])
def test_no_tokens(shape):
    layer, embedding = rc.LSTM(6, 5), rc.Embedding(4, 6)
    y, _, tape = layer.forward(np.zeros(shape, np.int64), embedding=embedding)
    assert y.shape == (*shape, 5) and layer.backward(tape, y)[0] is None and not embedding.grads["weight"].any()


def test_an_embedding_that_stays_as_it_is():
    layer, embedding, tokens = rc.GRU(6, 5, seed=0), rc.Embedding(4, 6, seed=0), np.zeros((20, 3), np.int64)
    y, _, tape = layer.forward(tokens, embedding=embedding)
    layer.backward(tape, y, need_dx=False)
    assert not embedding.grads["weight"].any() and layer.grads["weight_ih_l0"].any()


def test_the_rows_are_those_of_the_forward_call():
    """An embedding written between forward and backward changes no gradient."""
    tokens, found = np.random.default_rng(0).integers(0, 4, (20, 3)), []
    for written in (False, True):
        layer, embedding = rc.GRU(6, 5, seed=0), rc.Embedding(4, 6, seed=0)
        y, _, tape = layer.forward(tokens, embedding=embedding)
        if written:
            embedding.load_state_dict({"weight": np.ones((4, 6), np.float32)})
        layer.backward(tape, y)
        found.append(layer.grads["weight_ih_l0"])
    same(found[1], found[0])


def test_bad_input():
    layer, embedding, tokens = rc.GRU(6, 5), rc.Embedding(4, 6), np.zeros((7, 3), np.int64)
    for wrong in (rc.Embedding(4, 5), rc.Embedding(4, 6, dtype="float64"), np.zeros((4, 6), np.float32)):
        with pytest.raises(ValueError, match=r"embedding: expected a float32 Embedding with 6 columns, got"):
            layer(tokens, embedding=wrong)
    for wrong in (tokens - 1, tokens + 4):
        with pytest.raises(ValueError, match=r"x: expected 0 to 3, got"):
            layer.forward(wrong, embedding=embedding)
    with pytest.raises(TypeError, match=r"x: expected integers, got"):
        layer(tokens + 0.5, embedding=embedding)
    with pytest.raises(ValueError, match=r"expected.*got"):
        layer(tokens[..., None], embedding=embedding)
    with pytest.raises(ValueError, match=r"lengths: expected None"):
        layer(rc.Ragged(tokens.ravel(), [7, 7, 7]), lengths=[7, 7, 7], embedding=embedding)


@pytest.mark.parametrize("count, tokens, rows", [
    (3, [0] * 12, 3),
    (999, [5, 5, 9] * 4, 2),
    (999, [1, 2, 3, 1], None),
    (lookup.MOST_ROWS + 1, [*range(lookup.MOST_ROWS + 1)] * lookup.REPEATS, None),
])
def test_which_tokens_have_a_table(count, tokens, rows):
    source = lookup.take(rc.Embedding(count, 6), tokens, None, np.dtype("float32"), 6, False, True)
    assert (None if source.looked.rows is None else len(source.looked.rows)) == rows
