"""Decoding with the options that users of CTranslate2 know, under its names. The loop is compiled (src/_decode.pyx)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import _choice, _decode, _decoder, checks, module
from rnn_core.seq2seq import Decoder, Encoded, offsets, ragged_tokens
from rnn_core.sequences import Ragged

ROWS = 1024  # hypotheses of one call of the compiled loop: bounds its memory, and the time between looks for signals


class GenerationStep(NamedTuple):
    """What a callback is told of each token as it comes."""

    step: int
    batch_id: int
    token_id: int
    hypothesis_id: int
    log_prob: float | None
    is_last: bool


@dataclass
class DecodeResult:
    """Hypotheses of one source, best first: token numbers without the end token; scores and attention if asked for.

    attention: one array (tokens, source tokens) for each hypothesis.
    """

    hypotheses: list[list[int]]
    scores: list[float] = field(default_factory=list)
    attention: list[NDArray[Any]] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """The best hypothesis."""
        return self.hypotheses[0]


@dataclass
class DecodeOptions:
    """Options of `decode`, with CTranslate2's names and meanings.

    beam_size              1: greedy, or sampling
    patience               the search of a sentence ends with beam_size * patience finished hypotheses
    num_hypotheses         results wanted, at most beam_size but in sampling
    length_penalty         scores are divided by length^length_penalty; the end token counts, a target_prefix does not
    coverage_penalty       scores get coverage_penalty * sum_s log(min(1, sum_t attention_ts))
    repetition_penalty     logits of tokens said before are divided (if negative multiplied) by it
    no_repeat_ngram_size   no n-gram of this size twice
    min_decoding_length    no end token before so many tokens
    max_decoding_length    most tokens, those of a prefix included
    sampling_topk          1: the best one; k: draw from the k best; 0: from all
    sampling_topp          draw from the fewest tokens whose probabilities sum to this
    sampling_temperature   draw by probabilities^(1/temperature)
    seed                   of sampling: the draws follow from it and the source, whatever the batch
    target_prefix          tokens that each result is to begin with, a list for each source; not scored
    end_token              one token or several; None: the decoder's
    suppress_sequences     token sequences that are not to be said
    disable_unk            never the decoder's unknown token
    return_scores, return_attention
    callback               called with a GenerationStep for each token (greedy and sampling); True stops the decoding
    """

    beam_size: int = 2
    patience: float = 1.0
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_decoding_length: int = 1
    max_decoding_length: int = 256
    sampling_topk: int = 1
    sampling_topp: float = 1.0
    sampling_temperature: float = 1.0
    seed: int | None = None
    target_prefix: Sequence[Sequence[int]] | None = None
    end_token: int | Sequence[int] | None = None
    suppress_sequences: Sequence[Sequence[int]] | None = None
    disable_unk: bool = False
    return_scores: bool = False
    return_attention: bool = False
    callback: Callable[[GenerationStep], Any] | None = None

    @property
    def sampling(self) -> bool:
        return self.sampling_topk != 1

    def check(self) -> None:
        """ValueError or TypeError where a value is out of range, or two contradict each other."""
        for name in ("beam_size", "num_hypotheses", "max_decoding_length"):
            checks.count(name, getattr(self, name))
        for name in ("no_repeat_ngram_size", "min_decoding_length", "sampling_topk"):
            checks.count(name, getattr(self, name), 0)
        for name in ("length_penalty", "coverage_penalty"):
            checks.real(name, getattr(self, name))
        for name in ("patience", "repetition_penalty", "sampling_temperature"):
            if checks.real(name, getattr(self, name)) <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if not 0 < checks.fraction("sampling_topp", self.sampling_topp):
            raise ValueError(f"sampling_topp: expected above 0, at most 1, got {self.sampling_topp}")
        self._check_together()

    def _check_together(self) -> None:
        if self.min_decoding_length > self.max_decoding_length:
            raise ValueError(f"min_decoding_length: expected at most max_decoding_length {self.max_decoding_length}, "
                             f"got {self.min_decoding_length}")
        if self.sampling and self.beam_size > 1:
            raise ValueError(f"sampling_topk: sampling expects beam_size=1, got beam_size={self.beam_size}")
        if not self.sampling and self.num_hypotheses > self.beam_size:
            raise ValueError(f"num_hypotheses: expected at most beam_size {self.beam_size} without sampling, "
                             f"got {self.num_hypotheses}")
        if not self.sampling and (self.sampling_topp != 1 or self.sampling_temperature != 1):
            raise ValueError("sampling_topp and sampling_temperature: expected sampling_topk other than 1 beside them")
        if self.callback is not None and (self.beam_size > 1 or not callable(self.callback)):
            raise ValueError(f"callback: expected a function, and beam_size=1, got beam_size={self.beam_size}")
        if round(self.beam_size * self.patience) < 1:
            raise ValueError(f"patience: expected beam_size * patience of at least 1, got {self.patience}")


# --------------------------------------------------------------------------------------------------------- decoding


def plan_of(decoder: Decoder) -> Any:
    """The decoder's packed weights, made anew when a parameter has been written since."""
    kept = decoder._plan
    buffers = _buffers(decoder) if kept is None or kept[2] != module._structure else kept[3]
    versions = [buffer.version for buffer in buffers]
    if kept is None or kept[0] != versions:
        look = decoder.attention if decoder.attends else None
        kept = decoder._plan = versions, _decoder.Plan(
            decoder.rnn._weights(), decoder.embedding._buffers["weight"].view, decoder.input_feeding,
            look.kind if look else "", _pair(look.query) if look and look.kind == "additive" else None,
            look.v if look else None, _pair(decoder.combine) if decoder.combines else None,
            _pair(decoder.output), decoder.hidden_size, look.memory_size if look else 0,
        ), module._structure, buffers
    return kept[1]


def _buffers(decoder: Decoder) -> list[Any]:
    return [node._buffers[name] for _, node, name in decoder._named_buffers()]


def _pair(linear: Any) -> tuple[Any, Any]:
    return linear._buffers["weight"].view, linear._buffers["bias"].view


def token_list(name: str, tokens: Any, vocabulary: int) -> list[int]:
    row = np.atleast_1d(np.asarray(tokens, None if np.size(tokens) else np.int64))
    return [int(t) for t in checks.integers(name, row, 0, vocabulary, ("tokens",))]


def _compiled_options(decoder: Decoder, o: DecodeOptions, **others: Any) -> dict[str, Any]:
    """The options, but for the `others`, as the compiled loop wants them: by name, and all of them as "choice"."""
    ends = [decoder.tokens["end"]] if o.end_token is None else token_list("end_token", o.end_token,
                                                                         decoder.vocabulary_size)
    suppressed = [token_list("suppress_sequences", row, decoder.vocabulary_size) for row in o.suppress_sequences or ()]
    if not all(suppressed):
        raise ValueError("suppress_sequences: expected at least one token in each, got an empty one")
    if o.disable_unk and "unk" not in decoder.tokens:
        raise ValueError("disable_unk: expected a decoder with an unk_token, got one without")
    for name, wanted in (("coverage_penalty", o.coverage_penalty), ("return_attention", o.return_attention)):
        if wanted and not decoder.attends:
            raise ValueError(f"{name}: expected a decoder with attention, got one without")
    compete = o.beam_size > 1
    found = {
        "length_penalty": o.length_penalty, "coverage_penalty": o.coverage_penalty,
        "repetition_penalty": o.repetition_penalty, "no_repeat_ngram_size": o.no_repeat_ngram_size,
        "compete": compete, "sample": o.sampling, "attention": o.return_attention,
        "score": compete or o.return_scores or o.num_hypotheses > 1 or o.callback is not None,
        "early": o.patience == 1 and o.length_penalty == 0 and o.coverage_penalty == 0,
        "beam": o.beam_size if compete else o.num_hypotheses, "wanted": o.num_hypotheses,
        "finished": round(o.beam_size * o.patience) if compete else o.num_hypotheses,
        "topp": o.sampling_topp, "topk": o.sampling_topk, "temperature": o.sampling_temperature,
        "least": o.min_decoding_length, "unk": decoder.tokens["unk"] if o.disable_unk else -1, "ends": ends,
        "suppressed": suppressed, "start": decoder.tokens["start"],
        "seed": int(np.random.SeedSequence(o.seed).generate_state(1, np.uint64)[0]) if o.sampling else 0, **others,
    }
    return {**found, "choice": _choice.Choice(found)}


def _checked_options(decoder: Decoder, given: dict[str, Any]) -> tuple[DecodeOptions, dict[str, Any]]:
    """The same, checked; remembered where they can be, since a short decode takes a fraction of a millisecond."""
    key = tuple(given.items())
    try:
        return (decoder._known_options or {})[key]
    except (KeyError, TypeError):
        pass
    unknown = sorted(set(given) - set(DecodeOptions.__dataclass_fields__))
    if unknown:
        raise TypeError(f"decode: expected options of DecodeOptions, got {', '.join(unknown)}")
    o = DecodeOptions(**given)
    o.check()
    found, known = (o, _compiled_options(decoder, o)), decoder._known_options or {}
    try:
        if not (o.sampling or o.suppress_sequences or o.target_prefix or o.callback):
            decoder._known_options = {**(known if len(known) < 32 else {}), key: found}
    except TypeError:  # a list among the options
        pass
    return found


def _prefixes(o: DecodeOptions, batch: int, vocabulary: int, ends: list[int]) -> list[list[int]]:
    if o.target_prefix is None:
        return [[]] * batch
    if len(o.target_prefix) != batch:
        raise ValueError(f"target_prefix: expected one for each of {batch} sources, got {len(o.target_prefix)}")
    found = [token_list("target_prefix", row, vocabulary) for row in o.target_prefix]
    longest = max(map(len, found), default=0)
    if longest > o.max_decoding_length:
        raise ValueError(f"target_prefix: expected at most max_decoding_length {o.max_decoding_length} tokens, "
                         f"got {longest}")
    for row in found:
        if set(row) & set(ends):
            raise ValueError(f"target_prefix: expected no end token {ends}, got {row}")
    return found


def run_loop(model: Any, sources: Any, lengths: ArrayLike | None, options: dict[str, Any],
             forced: Callable[[int], list[list[int]]], limits: Callable[[int], list[int]],
             callback: Any = None) -> list[list[tuple[list[int], float, Any]]]:
    """Encode, and run the compiled loop; forced(B) and limits(B) give what each source is held to."""
    encoded: Encoded = model.encode(sources, lengths)
    decoder: Decoder = model.decoder
    h, c = encoded.state if isinstance(encoded.state, tuple) else (encoded.state, None)
    keys: Any = None
    memory: Any = None
    if decoder.attends:
        memory = encoded.memory
        keys = decoder.attention.project(memory)[0]
    places = offsets(encoded.lengths) if decoder.attends and encoded.lengths is not None else None
    given, most = forced(encoded.batch), limits(encoded.batch)
    keys_of_sources = _source_keys(model, sources, lengths, encoded.batch) if options["sample"] else [0] * encoded.batch
    plan, found = plan_of(decoder), []
    count = max(1, ROWS // options["beam"])
    for begin in range(0, encoded.batch, count):
        end = min(begin + count, encoded.batch)
        told = None if callback is None else _Teller(callback, begin)
        found += _decode.decode(plan, options["choice"], begin, end, h, c, keys, memory, places, most[begin:end],
                                given[begin:end], keys_of_sources[begin:end], told)
        if told is not None and told.stopped:
            found += [[([], 0.0, None)]] * (encoded.batch - len(found))
            break
    return found


class _Teller:
    """The user's callback as the loop calls it."""

    def __init__(self, callback: Callable[[GenerationStep], Any], first: int) -> None:
        self.callback, self.first, self.stopped = callback, first, False

    def __call__(self, step: int, sentence: int, token: int, hypothesis: int, log_prob: float, last: bool) -> bool:
        told = GenerationStep(step, self.first + sentence, token, hypothesis, log_prob, bool(last))
        self.stopped = bool(self.callback(told)) or self.stopped
        return self.stopped


def _source_keys(model: Any, sources: Any, lengths: Any, batch: int) -> list[int]:
    """A number for each source that follows from its tokens alone."""
    if model.encoder is None:
        return [zlib.crc32(np.ascontiguousarray(row, model.dtype).tobytes()) for row in sources]
    tokens = ragged_tokens("sources", sources, lengths, model.encoder.embedding.num_embeddings)
    rows = np.split(tokens.values, offsets(tokens.lengths)[1:-1]) if batch else []
    return [zlib.crc32(row.tobytes()) for row in rows]


def decode(model: Any, sources: Any, lengths: ArrayLike | None, given: dict[str, Any]) -> list[DecodeResult]:
    """One result a source; `given`: DecodeOptions by name."""
    o, options = _checked_options(model.decoder, given)
    found = run_loop(
        model, sources, lengths, options, lambda n: _prefixes(o, n, model.decoder.vocabulary_size, options["ends"]),
        lambda n: [o.max_decoding_length] * n, o.callback,
    )
    return [DecodeResult([h[0] for h in row], [h[1] for h in row] if o.return_scores else [],
                         [h[2] for h in row] if o.return_attention else []) for row in found]


def sampled_inputs(model: Any, sources: Ragged, targets: Ragged, probability: float, seed: int) -> Ragged:
    """Decoder inputs in which each token is, with `probability`, one that the model drew itself where it stood.

    Scheduled sampling (Bengio et al. 2015): what the model says at a step is what it reads at the next one.
    """
    rng = np.random.default_rng([seed, 5])
    free = rng.random(len(targets.values)) < probability
    mixed = np.where(free, -1, targets.values)
    rows = [row.tolist() for row in np.split(mixed, offsets(targets.lengths)[1:-1])] if len(targets) else []
    o = DecodeOptions(beam_size=1, sampling_topk=0, seed=seed, min_decoding_length=0)
    options = _compiled_options(model.decoder, o, ends=[])
    most = [max(1, len(row)) for row in rows]
    found = run_loop(model, sources, None, options, lambda n: rows, lambda n: most)
    said = [row[0][0][: len(given)] for row, given in zip(found, rows)]
    inputs, _ = model.teacher(said)
    return inputs

