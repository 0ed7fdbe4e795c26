"""Decoding against a plain reference written with lists, brute force, and one test for every option."""

import itertools
import math
import os
import signal
import threading
import time

import numpy as np
import pytest

import rnn_core as rc
from rnn_core import seq2seq_decode
from rnn_core.seq2seq import Decoder, Encoder, Seq2Seq

START, END, UNK, VOCABULARY = 1, 2, 0, 8
SOURCES = [[1, 2, 3], [4, 5], [6, 0, 1, 2, 3], [2]]


def build(attention="general", dtype="float64", cell="gru", sharp=4.0, **decoder):
    """A random model whose output layer is made sharper, so that hypotheses end early and scores differ."""
    first = Encoder(7, 4, 6, dtype=dtype, seed=1, cell=cell)
    second = Decoder(
        VOCABULARY, 5, 6, attention=attention, memory_size=6, unk_token=UNK, dtype=dtype, seed=5, cell=cell, **decoder
    )
    model = Seq2Seq(first, second, seed=3)
    model.assign("decoder.output.weight", model.params["decoder.output.weight"] * sharp)
    model.assign("decoder.output.bias", np.arange(VOCABULARY) % 3 * 0.2 + (np.arange(VOCABULARY) == END) * 1.5)
    return model


# ---- the reference ----------------------------------------------------------------------------------------------


def next_logits(model, source, said):
    return model([source], [said]).values[len(said)].astype(np.float64)


def restricted(
    logits,
    said,
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    suppress_sequences=(),
    disable_unk=False,
    min_decoding_length=1,
    ends=(END,),
    **_,
):
    """log-probabilities after what the options forbid."""
    x, n = logits.copy(), no_repeat_ngram_size
    for token in set(said):
        x[token] = x[token] * repetition_penalty if x[token] < 0 else x[token] / repetition_penalty
    for i in range(len(said) - n + 1) if n else ():
        if said[i : i + n - 1] == said[len(said) - n + 1 :]:
            x[said[i + n - 1]] = -math.inf
    for sequence in suppress_sequences:
        if said[len(said) - len(sequence) + 1 :] == list(sequence[:-1]) and len(said) >= len(sequence) - 1:
            x[sequence[-1]] = -math.inf
    if disable_unk:
        x[UNK] = -math.inf
    if len(said) < min_decoding_length:
        x[list(ends)] = -math.inf
    top = x.max()
    return x - top - math.log(np.exp(x - top).sum())


def beam_search(
    model,
    source,
    beam_size,
    patience=1.0,
    num_hypotheses=1,
    length_penalty=1.0,
    max_decoding_length=6,
    prefix=(),
    ends=(END,),
    **options,
):
    """[(score, tokens)] best first: CTranslate2's search, one sentence, lists."""
    beams, done = [(0.0, list(prefix))], []
    top_finished = False

    def finished(score, said, end):
        length = len(said) - len(prefix) + end
        done.append((score / length**length_penalty, said))

    for step in range(len(prefix), max_decoding_length):
        found = []
        for row, (score, said) in enumerate(beams):
            logs = restricted(next_logits(model, source, said), said, ends=ends, **options)
            found += [(-(score + logs[t]), row, t) for t in range(VOCABULARY) if logs[t] > -math.inf]
        found = sorted(found)[: 2 * beam_size]
        spare = [c for c in found[beam_size:] if c[2] not in ends]
        last, following = step + 1 == max_decoding_length, []
        for rank, (score, row, token) in enumerate(found[:beam_size]):
            said = beams[row][1]
            if token in ends or last:
                top_finished |= rank == 0
                finished(-score, said + [token] * (token not in ends), token in ends)
                if spare and not last:
                    score, row, token = spare.pop(0)
                    following.append((-score, beams[row][1] + [token]))
            else:
                following.append((-score, said + [token]))
        early = patience == 1 and length_penalty == 0 and top_finished
        if last or len(done) >= (num_hypotheses if early else round(beam_size * patience)):
            break
        beams = following
    return sorted(done, key=lambda hypothesis: -hypothesis[0])[:num_hypotheses]


def agree(model, source, result, **options):
    expected = beam_search(model, source, **options)
    assert [h[1] for h in expected] == result.hypotheses
    np.testing.assert_allclose(result.scores, [h[0] for h in expected], rtol=1e-9)


@pytest.mark.parametrize("attention", ["general", "additive", "dot", None])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_beam_search_is_the_reference(attention, cell):
    model = build(attention, cell=cell)
    for beam in (2, 5):
        results = model.decode(SOURCES, beam_size=beam, num_hypotheses=beam, max_decoding_length=6, return_scores=True)
        for source, result in zip(SOURCES, results):
            agree(model, source, result, beam_size=beam, num_hypotheses=beam)


@pytest.mark.parametrize("attention", ["general", "additive"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_beam_search_with_input_feeding_is_the_reference(attention, cell):
    model = build(attention, cell=cell, input_feeding=True)
    results = model.decode(SOURCES, beam_size=3, num_hypotheses=3, max_decoding_length=6, return_scores=True)
    for source, result in zip(SOURCES, results):
        agree(model, source, result, beam_size=3, num_hypotheses=3)


@pytest.mark.parametrize(
    "options",
    [
        {"length_penalty": 0.0},
        {"length_penalty": 2.5},
        {"patience": 2.0},
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"min_decoding_length": 4},
        {"min_decoding_length": 0},
        {"max_decoding_length": 1},
        {"disable_unk": True},
        {"suppress_sequences": [[7], [3, 4], [5, 5]]},
    ],
)
def test_each_option_is_the_reference_and_changes_something(options):
    model = build(sharp=3.0)
    wide = {"beam_size": 3, "num_hypotheses": 3, "max_decoding_length": 6}
    results = model.decode(SOURCES, return_scores=True, **{**wide, **options})
    for source, result in zip(SOURCES, results):
        agree(model, source, result, **{**wide, **options})
    without = model.decode(SOURCES, return_scores=True, **wide)
    assert [r.scores for r in results] != [r.scores for r in without]


def test_a_beam_of_everything_finds_the_best_of_all():
    model = build(sharp=2.0)
    ordinary = [t for t in range(VOCABULARY) if t != END]
    for source in SOURCES[:2]:
        best = max(
            (sum_log(model, source, said, complete) / (len(said) + complete), list(said))
            for length in range(1, 4)
            for said in itertools.product(ordinary, repeat=length)
            for complete in {length < 3, False}
            if complete or length == 3
        )
        (result,) = model.decode([source], beam_size=VOCABULARY**3, max_decoding_length=3, return_scores=True)
        assert result.tokens == best[1]
        assert abs(result.scores[0] - best[0]) < 1e-9


def sum_log(model, source, said, complete):
    x = model([source], [list(said)]).values
    x = x - np.log(np.exp(x).sum(1, keepdims=True))
    first = math.log1p(-math.exp(x[0, END]))  # no empty output: the first step has no end token
    return sum(x[i, t] for i, t in enumerate(said)) - first + (x[len(said), END] if complete else 0.0)


# ---- the same in any company ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 1},
        {"beam_size": 4, "num_hypotheses": 4, "coverage_penalty": 0.3, "return_attention": True},
        {"beam_size": 1, "sampling_topk": 0, "num_hypotheses": 3, "seed": 1},
    ],
)
def test_a_sentence_alone_and_in_any_batch(options, threads):
    model = build("general", "float32", sharp=2.0)
    rng = np.random.default_rng(0)
    sources = [rng.integers(0, 7, rng.integers(1, 9)).tolist() for _ in range(30)]
    together = model.decode(sources, max_decoding_length=9, return_scores=True, **options)
    threads(1)
    for some in (sources, sources[::-1]):
        assert same(
            model.decode(some, max_decoding_length=9, return_scores=True, **options),
            together if some is sources else together[::-1],
        )
    threads(2)
    for i in (0, 7, 29):
        assert same(model.decode([sources[i]], max_decoding_length=9, return_scores=True, **options), [together[i]])


def same(a, b):
    return all(
        x.hypotheses == y.hypotheses and x.scores == y.scores and all(map(np.array_equal, x.attention, y.attention))
        for x, y in zip(a, b, strict=True)
    )


def test_many_sentences_go_through_in_parts(monkeypatch):
    from rnn_core import seq2seq_decode

    model = build(dtype="float32")
    expected = model.decode(SOURCES * 3, return_scores=True, max_decoding_length=7)
    monkeypatch.setattr(seq2seq_decode, "ROWS", 10)
    assert same(model.decode(SOURCES * 3, return_scores=True, max_decoding_length=7), expected)


def test_a_large_vocabulary_in_float32():
    """Blocks of logits, and top-k without sorting: against NumPy."""
    first = Encoder(7, 4, 16, seed=1)
    model = Seq2Seq(first, Decoder(5000, 8, 16, memory_size=16, seed=2), seed=3)
    results = model.decode(
        SOURCES * 20,
        beam_size=3,
        max_decoding_length=3,
        return_scores=True,
        length_penalty=0,
        min_decoding_length=3,
        num_hypotheses=3,
    )
    for source, result in zip(SOURCES, results):
        beams = [(0.0, [])]
        for _ in range(3):
            found = []
            for score, said in beams:
                x = next_logits(model, source, said)
                x[END] = -np.inf
                logs = x - np.log(np.exp(x).sum())
                found += [(score + logs[t], [*said, int(t)]) for t in np.argsort(-logs)[:3]]
            beams = sorted(found, reverse=True)[:3]
        assert [b[1] for b in beams] == result.hypotheses
        np.testing.assert_allclose(result.scores, [b[0] for b in beams], rtol=1e-5)


# ---- greedy, scores, prefixes, ends -----------------------------------------------------------------------------


def greedy(model, source, prefix=(), most=8, ends=(END,)):
    said = list(prefix)
    while len(said) < most:
        token = int(restricted(next_logits(model, source, said), said, ends=ends).argmax())
        if token in ends:
            break
        said.append(token)
    return said


def test_greedy_is_the_reference_with_scores_and_without():
    model = build(sharp=3.0)
    plain = model.decode(SOURCES, beam_size=1, max_decoding_length=8)
    scored = model.decode(
        SOURCES, beam_size=1, max_decoding_length=8, return_scores=True, length_penalty=0, min_decoding_length=0
    )
    assert [r.tokens for r in plain] == [greedy(model, source) for source in SOURCES]
    assert plain[0].scores == []
    for source, result in zip(SOURCES, scored):
        if len(result.tokens) < 8:
            assert abs(result.scores[0] - model.score([source], [result.tokens])[0]) < 1e-9


def test_target_prefix_is_kept_and_not_scored():
    model = build(sharp=3.0)
    prefixes = [[5, 5], [], [3], [7, 6, 4]]
    for beam in (1, 3):
        options = {"beam_size": beam, "max_decoding_length": 6, "return_scores": True}
        results = model.decode(SOURCES, target_prefix=prefixes, **options)
        for source, prefix, result in zip(SOURCES, prefixes, results):
            assert result.tokens[: len(prefix)] == prefix
            if beam == 1:
                assert result.tokens == greedy(model, source, prefix, 6)
            else:
                agree(model, source, result, beam_size=beam, prefix=prefix)


def test_several_end_tokens():
    model = build(sharp=4.0)
    ends = (END, 5, 7)
    results = model.decode(SOURCES, beam_size=1, end_token=ends, max_decoding_length=8)
    assert [r.tokens for r in results] == [greedy(model, source, ends=ends) for source in SOURCES]
    for source, result in zip(
        SOURCES, model.decode(SOURCES, beam_size=3, end_token=ends, max_decoding_length=6, return_scores=True)
    ):
        agree(model, source, result, beam_size=3, ends=ends)
    other = model.decode(SOURCES, beam_size=1, max_decoding_length=8)
    assert [r.tokens for r in results] != [r.tokens for r in other]


@pytest.mark.parametrize("attention", ["general", "additive"])
@pytest.mark.parametrize("beam", [1, 4])
def test_attention_is_that_of_the_teacher(attention, beam):
    model = build(attention)
    result = model.decode(SOURCES, beam_size=beam, return_attention=True, max_decoding_length=6)[2]
    encoded = model.encode([SOURCES[2]])
    inputs, _ = model.teacher([result.tokens])
    _, tape = model.decoder.forward(inputs, encoded.state, encoded.memory, encoded.lengths, train=False)
    expected = tape.attention.weights.reshape(-1, 5)[: len(result.tokens)]
    np.testing.assert_allclose(result.attention[0], expected, atol=1e-12)
    np.testing.assert_allclose(result.attention[0].sum(1), 1.0)


def test_coverage_penalty_is_added():
    model = build(sharp=2.0)
    options = {
        "beam_size": 4,
        "num_hypotheses": 4,
        "max_decoding_length": 5,
        "return_scores": True,
        "return_attention": True,
    }
    plain = {
        tuple(h): s
        for h, s in zip(*(getattr(model.decode([SOURCES[2]], **options)[0], n) for n in ("hypotheses", "scores")))
    }
    (result,) = model.decode([SOURCES[2]], coverage_penalty=0.7, **options)
    for tokens, score in zip(result.hypotheses, result.scores):
        said = model.encode([SOURCES[2]])
        inputs, _ = model.teacher([tokens])
        _, tape = model.decoder.forward(inputs, said.state, said.memory, said.lengths, train=False)
        weights = tape.attention.weights.reshape(-1, 5)
        steps = min(len(weights), 5)  # the step of the end token looks too
        expected = plain[tuple(tokens)] + 0.7 * np.log(np.minimum(weights[:steps].sum(0), 1)).sum()
        assert abs(score - expected) < 1e-9


# ---- sampling ---------------------------------------------------------------------------------------------------


def first_tokens(model, n=4000, **options):
    (result,) = model.decode([SOURCES[0]], beam_size=1, num_hypotheses=n, max_decoding_length=1, seed=7, **options)
    return np.bincount([h[0] for h in result.hypotheses], minlength=VOCABULARY) / n


def test_sampling_follows_the_distribution():
    model = build(sharp=2.0)
    p = np.exp(restricted(next_logits(model, SOURCES[0], []), []))
    assert np.abs(first_tokens(model, sampling_topk=0) - p).max() < 0.03
    for temperature in (0.5, 2.0):
        q = p ** (1 / temperature)
        assert np.abs(first_tokens(model, sampling_topk=0, sampling_temperature=temperature) - q / q.sum()).max() < 0.03
    best = np.argsort(-p)[:3]
    found = first_tokens(model, sampling_topk=3)
    assert np.abs(found[best] - p[best] / p[best].sum()).max() < 0.03 and np.count_nonzero(found) == 3


def test_top_p_draws_from_the_fewest():
    model = build(sharp=2.0)
    p = np.sort(np.exp(restricted(next_logits(model, SOURCES[0], []), [])))[::-1]
    found = first_tokens(model, sampling_topk=0, sampling_topp=float(p[:2].sum() + p[2] / 2))
    assert np.count_nonzero(found) == 3


def test_seeds_change_samples_and_repeat_them():
    model = build(dtype="float32", sharp=1.0)
    a, b, c = (
        model.decode(SOURCES, beam_size=1, sampling_topk=0, seed=s, max_decoding_length=8, return_scores=True)
        for s in (1, 1, 2)
    )
    assert same(a, b) and not same(a, c)


# ---- callback and Ctrl-C ----------------------------------------------------------------------------------------


def test_callback_sees_every_token_and_stops():
    model = build(sharp=3.0)
    seen = []
    results = model.decode(SOURCES, beam_size=1, max_decoding_length=8, callback=seen.append)
    for i, result in enumerate(results):
        mine = [step for step in seen if step.batch_id == i]
        assert [step.token_id for step in mine if step.token_id != END] == result.tokens
        assert [step.is_last for step in mine] == [False] * (len(mine) - 1) + [True]
        assert [step.step for step in mine] == list(range(len(mine)))
    stopped = model.decode(
        SOURCES[:1], beam_size=1, max_decoding_length=200, min_decoding_length=100, callback=lambda step: step.step == 4
    )
    assert len(stopped[0].tokens) == 5


def test_an_error_of_the_callback_comes_out():
    def fail(step):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        build().decode(SOURCES, beam_size=1, callback=fail)


def interrupted(call):
    """The call would take minutes; a signal is to end it, where the tests run in the background too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("batch", "beam", "limit"), [(1, 1, 10**6), (1, 5, 10**5), (64, 1, 10**5), (400, 5, 20000)])
def test_an_interrupt_stops_a_long_decode(batch, beam, limit, threads):
    model = Seq2Seq(Encoder(7, 8, 64, seed=1), Decoder(3000, 8, 64, memory_size=64, seed=2), seed=3)
    before = rc.get_num_threads()
    rc.set_num_threads(threads)
    try:
        interrupted(lambda: model.decode((SOURCES * 100)[:batch], beam_size=beam, min_decoding_length=limit,
                                         max_decoding_length=limit))
    finally:
        rc.set_num_threads(before)


def test_an_interrupt_ends_the_wait_for_another_thread():
    """The main thread's sentence ends at once, the other thread's does not."""
    model = Seq2Seq(Encoder(7, 8, 64, seed=1), Decoder(3000, 8, 64, memory_size=64, seed=2), seed=3)
    given = {"beam_size": 1, "min_decoding_length": 10**6, "max_decoding_length": 10**6}
    _, options = seq2seq_decode._checked_options(model.decoder, given)
    before = rc.get_num_threads()
    rc.set_num_threads(2)
    try:
        interrupted(lambda: seq2seq_decode.run_loop(model, SOURCES[:2], None, options, lambda n: [[]] * n,
                                                    lambda n: [1, 10**6]))
    finally:
        rc.set_num_threads(before)


# ---- scheduled sampling, bad input ------------------------------------------------------------------------------


def test_sampled_inputs_mix_the_truth_with_what_the_model_says():
    model = build(sharp=4.0)
    targets = model.teacher([[3, 4, 5, 6], [7, 3], [], [5]])[0]
    from rnn_core.seq2seq_parts import ragged_tokens

    sources, goals = ragged_tokens("s", SOURCES, None, 7), ragged_tokens("t", [[3, 4, 5, 6], [7, 3], [], [5]], None, 8)
    assert np.array_equal(model.sampled_inputs(sources, goals, 0.0, 1).values, targets.values)
    mixed = model.sampled_inputs(sources, goals, 1.0, 1)
    assert np.array_equal(mixed.lengths, targets.lengths) and not np.array_equal(mixed.values, targets.values)
    assert np.all(mixed.values[[0, 5, 8, 9]] == START)
    assert np.isfinite(model.learn(sources, goals, inputs=mixed))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"beam_size": 0}, "beam_size"),
        ({"beam_size": 2, "num_hypotheses": 3}, "num_hypotheses: expected at most beam_size 2"),
        ({"sampling_topk": 0, "beam_size": 2}, "sampling expects beam_size=1"),
        ({"sampling_topp": 0.5}, "sampling_topk other than 1"),
        ({"sampling_topk": 3, "beam_size": 1, "sampling_topp": 0.0}, "sampling_topp"),
        ({"sampling_topk": 3, "beam_size": 1, "sampling_temperature": 0.0}, "sampling_temperature"),
        ({"min_decoding_length": 9, "max_decoding_length": 8}, "min_decoding_length"),
        ({"target_prefix": [[3]]}, "expected one for each of 4"),
        ({"target_prefix": [[3] * 9] * 4, "max_decoding_length": 8}, "at most max_decoding_length 8 tokens, got 9"),
        ({"target_prefix": [[END]] * 4}, "no end token"),
        ({"target_prefix": [[8]] * 4}, "expected 0 to 7, got 8"),
        ({"suppress_sequences": [[]]}, "suppress_sequences"),
        ({"end_token": 8}, "end_token"),
        ({"patience": 0.0}, "patience"),
        ({"callback": print}, "callback"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        build().decode(SOURCES, **options)


def test_bad_sources_and_unknown_options():
    model = build()
    for sources, words in (([[]], "at least 1 token"), ([[7]], "0 to 6")):
        with pytest.raises(ValueError, match=words):
            model.decode(sources)
    with pytest.raises(TypeError, match="beam_width"):
        model.decode(SOURCES, beam_width=3)
    with pytest.raises(ValueError, match="return_attention"):
        build(None).decode(SOURCES, return_attention=True)
    assert model.decode([]) == []
