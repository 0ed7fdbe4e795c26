"""Sequence to sequence: an encoder, attention and a decoder, trained on ragged batches that cost their real tokens.

Sentences lie one after the other everywhere (`Ragged`): there is no padding to mask. Decoding is in seq2seq_decode.py,
training in seq2seq_train.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import _attention, checks, losses
from rnn_core.layers import Dropout, Embedding, Linear
from rnn_core.module import Module
from rnn_core.recurrent import LSTM, Recurrent
from rnn_core.seq2seq_parts import (
    ATTENTION,
    CELLS,
    Array,
    Attention,
    Encoder,
    Lengths,
    SharedEmbedding,
    cell_class,
    offsets,
    ragged_tokens,
    seeds_from,
)
from rnn_core.sequences import Ragged

__all__ = ["ATTENTION", "CELLS", "Attention", "Decoder", "Encoder", "Seq2Seq", "offsets", "ragged_tokens"]

# ---------------------------------------------------------------------------------------------------------- decoder


@dataclass
class DecoderTape:
    at: Lengths
    masks: list[Any]
    rnn: Any
    attention: Any = None
    combined: Any = None
    hidden: Array | None = None
    output: Any = None
    feeding: Any = None


class Decoder(Module):
    """Embedding, recurrent layers, attention and output layer over the targets.

        h_t = rnn(embedding(y_{t-1}), h_{t-1});   a_t = tanh(W_c [context_t; h_t] + b);   logits_t = W_o a_t + b

    (Luong et al. 2015.) With input_feeding the rnn's input is [embedding; a_{t-1}]. Without attention a_t = h_t, but
    for attention_size, which makes it tanh(W_c h_t + b). tied: the output layer's weight is the embedding's table;
    a_t is then as wide as an embedding. memory_size: the width of the encoder's outputs, needed for attention.
    dropout: of embeddings, between layers and of a_t. start_token, end_token, unk_token: numbers in the vocabulary.
    """

    _transient = ("_plan", "_known_options")

    def __init__(self, num_embeddings: int, embedding_dim: int, hidden_size: int, num_layers: int = 1, *,
                 cell: str = "gru", attention: str | None = "general", memory_size: int = 0,
                 attention_size: int | None = None, input_feeding: bool = False, tied: bool = False,
                 dropout: float = 0.0, start_token: int = 1, end_token: int = 2, unk_token: int | None = None,
                 dtype: Any = "float32", seed: int | None = None) -> None:
        super().__init__(dtype)
        self._plan: Any = None
        self._known_options: dict[Any, Any] | None = None
        self.arguments = {"num_embeddings": num_embeddings, "embedding_dim": embedding_dim, "hidden_size": hidden_size,
                          "num_layers": num_layers, "cell": cell, "attention": attention, "memory_size": memory_size,
                          "attention_size": attention_size, "input_feeding": input_feeding, "tied": tied,
                          "dropout": dropout, "start_token": start_token, "end_token": end_token,
                          "unk_token": unk_token, "dtype": self.dtype.name}
        self.vocabulary_size = checks.count("num_embeddings", num_embeddings)
        self.tokens = {name: int(checks.integers(name, value, 0, num_embeddings, ())) for name, value in
                       (("start", start_token), ("end", end_token), ("unk", unk_token)) if value is not None}
        self.input_feeding, self.tied = bool(input_feeding), bool(tied)
        if tied and attention_size not in (None, embedding_dim):
            raise ValueError(f"attention_size: expected embedding_dim {embedding_dim} with tied, got {attention_size}")
        if input_feeding and attention is None:
            raise ValueError("input_feeding: expected an attention, whose result is what is fed, got attention=None")
        combine = attention is not None or attention_size is not None or (tied and hidden_size != embedding_dim)
        size = embedding_dim if tied else attention_size or hidden_size
        seeds = seeds_from(seed, 7)
        self.drop, self.drop_output = Dropout(dropout, seeds[0]), Dropout(dropout, seeds[1])
        self.rnn = cell_class(cell)(embedding_dim + (size if input_feeding else 0), hidden_size, num_layers,
                               dropout=dropout, dtype=dtype, seed=seeds[2])
        if attention is not None:
            self.attention = Attention(attention, hidden_size, checks.count("memory_size", memory_size), dtype=dtype,
                                       seed=seeds[3])
        if combine:
            width = hidden_size + (memory_size if attention is not None else 0)
            self.combine = Linear(width, size, dtype=dtype, seed=seeds[4])
        self.output = Linear(size, num_embeddings, dtype=dtype, seed=seeds[5])
        table = Embedding(num_embeddings, embedding_dim, dtype=dtype, seed=seeds[6])
        self.embedding: Embedding = SharedEmbedding(self.output) if tied else table
        self.hidden_size, self.num_layers, self.attention_size = hidden_size, num_layers, size

    @property
    def attends(self) -> bool:
        return "attention" in self._children

    @property
    def combines(self) -> bool:
        return "combine" in self._children

    def forward(self, inputs: Ragged, state: Any, memory: Array | None = None, source_lengths: Lengths | None = None, *,
                train: bool = True) -> tuple[Array, DecoderTape]:
        """(logits (tokens, V), tape) of the input tokens, teacher forcing; without `train` no dropout."""
        embedded, at = self.embedding.forward(inputs.values)
        mask = None
        if train:
            embedded, mask = self.drop.forward(embedded)
        if self.input_feeding:
            return self._forward_feeding(DecoderTape(at, [mask, None], None), inputs, embedded, state, memory,
                                         source_lengths, train)
        x = Ragged(embedded, inputs.lengths)
        y, _, recurrent = self.rnn.forward(x, state) if train else (*self.rnn(x, state), None)
        tape = DecoderTape(at, [mask, None], recurrent)
        hidden = y.values
        if self.attends:
            assert memory is not None and source_lengths is not None
            width = memory.shape[1]
            joined = np.empty((len(hidden), width + self.hidden_size), self.dtype)
            joined[:, width:] = hidden
            tape.attention = self.attention.forward(hidden, memory, source_lengths, inputs.lengths, joined[:, :width])
            hidden = joined
        if self.combines:
            hidden, tape.combined = self.combine.forward(hidden)
            _attention.tanh(hidden)
            tape.hidden = hidden
        if train:
            hidden, tape.masks[1] = self.drop_output.forward(hidden)
        logits, tape.output = self.output.forward(hidden)
        return logits, tape

    def _forward_feeding(self, tape: DecoderTape, inputs: Ragged, embedded: Array, state: Any, memory: Any,
                         source_lengths: Any, train: bool) -> tuple[Array, DecoderTape]:
        """With input feeding the steps come one after the other, in a compiled loop."""
        from rnn_core import seq2seq_feeding

        hidden, tape.feeding = seq2seq_feeding.forward(self, inputs, embedded, state, memory, source_lengths, train)
        if train:
            hidden, tape.masks[1] = self.drop_output.forward(hidden)
        logits, tape.output = self.output.forward(hidden)
        return logits, tape

    def backward(self, tape: DecoderTape, dlogits: Array) -> tuple[Any, Array | None]:
        """(dstate, dmemory) of the logits' gradients; adds into grads."""
        d: Any = self.output.backward(tape.output, dlogits)
        d = self.drop_output.backward(tape.masks[1], d)
        if tape.feeding is not None:
            from rnn_core import seq2seq_feeding

            embedded: Any
            embedded, dstate, memory_gradient = seq2seq_feeding.backward(self, tape.feeding, d)
            embedded = self.drop.backward(tape.masks[0], embedded)
            self.embedding.backward(tape.at, embedded)
            return dstate, memory_gradient
        dmemory: Array | None = None
        if self.combines:
            _attention.tanh(tape.hidden, d)
            d = self.combine.backward(tape.combined, d)
        if self.attends:
            width = self.attention.memory_size
            dh, dmemory = self.attention.backward(tape.attention, d[:, :width])
            dh += d[:, width:]
            d = dh
        dx, dstate = self.rnn.backward(tape.rnn, d)
        embedded = self.drop.backward(tape.masks[0], dx.values)
        self.embedding.backward(tape.at, embedded)
        return dstate, dmemory


# ------------------------------------------------------------------------------------------------------------ model


@dataclass
class Encoded:
    """What the decoder needs of a source: its first state, and the memory (tokens, N) that attention looks at."""

    state: Any
    memory: Array | None
    lengths: Lengths | None
    batch: int
    tape: Any = None
    bridges: list[Any] = field(default_factory=list)


@dataclass
class Tape:
    encoded: Encoded
    decoder: DecoderTape
    batch: int


class Seq2Seq(Module):
    """An encoder and a decoder, trained together.

    The decoder's first state is the encoder's last one where their shapes agree (bridge="auto"), else, or with
    bridge="linear", tanh(W h + b) of the last layer's final states side by side (an LSTM's c likewise, without tanh).
    encoder None (one-to-many): sources are vectors (B, context_size), and the state is made of them by the bridge.
    shared_vocabulary: one embedding table for both sides.
    """

    def __init__(self, encoder: Encoder | None, decoder: Decoder, *, shared_vocabulary: bool = False,
                 bridge: str = "auto", context_size: int | None = None, seed: int | None = None) -> None:
        super().__init__(decoder.dtype)
        self.options = {"shared_vocabulary": shared_vocabulary, "bridge": bridge, "context_size": context_size}
        if bridge not in ("auto", "linear"):
            raise ValueError(f"bridge: expected 'auto' or 'linear', got {bridge!r}")
        self._check_parts(encoder, decoder, context_size)
        self.encoder, self.decoder = encoder, decoder
        self._lstm = isinstance(decoder.rnn, LSTM)
        if encoder is not None and shared_vocabulary:
            ours, theirs = encoder.embedding._buffers["weight"].shape, decoder.embedding._buffers["weight"].shape
            if ours != theirs:
                raise ValueError(f"shared_vocabulary: expected tables of one shape, got {ours} and {theirs}")
            owner = decoder.output if decoder.tied else decoder.embedding
            encoder.embedding = SharedEmbedding(owner)
        self.copies = bridge == "auto" and encoder is not None and self._fits(encoder.rnn, decoder.rnn)
        if not self.copies:
            features = context_size if encoder is None else encoder.output_size
            size, seeds = decoder.num_layers * decoder.hidden_size, seeds_from(seed, 2)
            self.bridge = Linear(features, size, dtype=self.dtype, seed=seeds[0])  # type: ignore[arg-type]
            if self._lstm:
                self.bridge_c = Linear(features, size, dtype=self.dtype, seed=seeds[1])  # type: ignore[arg-type]

    @staticmethod
    def _check_parts(encoder: Any, decoder: Any, context_size: int | None) -> None:
        if not isinstance(decoder, Decoder):
            raise TypeError(f"decoder: expected a Decoder, got {type(decoder).__name__}")
        if encoder is None:
            if context_size is None or decoder.attends:
                raise ValueError("without an encoder: expected context_size, and a decoder with attention=None")
            checks.count("context_size", context_size)
            return
        if not isinstance(encoder, Encoder):
            raise TypeError(f"encoder: expected an Encoder or None, got {type(encoder).__name__}")
        if context_size is not None:
            raise ValueError("context_size: expected None beside an encoder")
        if encoder.dtype != decoder.dtype:
            raise TypeError(f"decoder: expected dtype {encoder.dtype} as the encoder's, got {decoder.dtype}")
        if decoder.attends and decoder.attention.memory_size != encoder.output_size:
            raise ValueError(f"memory_size: expected {encoder.output_size} as the encoder's outputs, "
                             f"got {decoder.attention.memory_size}")

    @staticmethod
    def _fits(encoder: Recurrent, decoder: Recurrent) -> bool:
        """Whether a state of one is a state of the other."""
        same = isinstance(encoder, LSTM) == isinstance(decoder, LSTM) and not encoder.bidirectional
        return same and (encoder.num_layers, encoder.hidden_size) == (decoder.num_layers, decoder.hidden_size)

    # ---- the two halves ------------------------------------------------------------------------------------

    def encode(self, sources: Any, lengths: ArrayLike | None = None, *, train: bool = False) -> Encoded:
        """Run the encoder and the bridge; with `train` their tapes are kept and dropout is on."""
        if self.encoder is None:
            x = checks.floats("sources", sources, self.dtype, ("B", self.bridge.in_features))
            return self._bridged(Encoded(None, None, None, len(x)), x, x)
        tokens = ragged_tokens("sources", sources, lengths, self.encoder.embedding.num_embeddings, 1)
        memory, state, tape = self.encoder.forward(tokens) if train else (*self.encoder(tokens), None)
        found = Encoded(state, memory, tokens.lengths, len(tokens), tape)
        if self.copies:
            return found
        h, c = state if isinstance(state, tuple) else (state, state)
        return self._bridged(found, self._features(h), self._features(c))

    def _features(self, state: Array) -> Array:
        """(B, D*H) of the last layer's states (L*D, B, H)."""
        last = state[-self.encoder.rnn._directions :]  # type: ignore[union-attr]
        return np.ascontiguousarray(last.transpose(1, 0, 2)).reshape(state.shape[1], -1)

    def _bridged(self, found: Encoded, h: Array, c: Array) -> Encoded:
        first, tape = self.bridge.forward(h)
        _attention.tanh(first)
        found.bridges = [tape, first]
        found.state = self._layers(first)
        if self._lstm:
            cells, tape = self.bridge_c.forward(c)
            found.bridges.append(tape)
            found.state = found.state, self._layers(cells)
        return found

    def _layers(self, rows: Array) -> Array:
        """(L, B, H) of rows (B, L*H)."""
        split = rows.reshape(len(rows), self.decoder.num_layers, self.decoder.hidden_size)
        return np.ascontiguousarray(split.transpose(1, 0, 2))

    def _encoder_backward(self, encoded: Encoded, dstate: Any, dmemory: Array | None) -> Array | None:
        if not self.copies:
            h: Any
            c: Any
            h, c = dstate if self._lstm else (dstate, None)
            tape, first = encoded.bridges[:2]
            rows = np.ascontiguousarray(h.transpose(1, 0, 2)).reshape(first.shape)
            _attention.tanh(first, rows)
            dh: Any = self.bridge.backward(tape, rows)
            dc: Any = None
            if self._lstm:
                rows = np.ascontiguousarray(c.transpose(1, 0, 2)).reshape(first.shape)
                dc = self.bridge_c.backward(encoded.bridges[2], rows)
            if self.encoder is None:
                return dh if dc is None else dh + dc
            dstate = self._spread(dh, dc)
        assert self.encoder is not None
        self.encoder.backward(encoded.tape, dmemory, dstate)
        return None

    def _spread(self, dh: Array, dc: Array | None) -> Any:
        """The gradient of the encoder's state from those of its features."""
        rnn = self.encoder.rnn  # type: ignore[union-attr]

        def state_of(d: Array) -> Array:
            full = np.zeros((rnn.num_layers * rnn._directions, len(d), rnn.hidden_size), self.dtype)
            full[-rnn._directions :] = d.reshape(len(d), rnn._directions, rnn.hidden_size).transpose(1, 0, 2)
            return full

        if not isinstance(rnn, LSTM):
            return state_of(dh if dc is None else dh + dc)
        return state_of(dh), None if dc is None else state_of(dc)

    # ---- training and scoring ------------------------------------------------------------------------------

    def teacher(self, targets: Any, lengths: ArrayLike | None = None) -> tuple[Ragged, Lengths]:
        """(decoder inputs: the start token and the target, what is to be predicted: the target and the end token)."""
        tokens = ragged_tokens("targets", targets, lengths, self.decoder.vocabulary_size)
        ends = offsets(tokens.lengths + 1)
        inputs, outputs = np.empty(ends[-1], np.int64), np.empty(ends[-1], np.int64)
        firsts = np.zeros(ends[-1], bool)
        firsts[ends[:-1]] = True
        inputs[firsts], inputs[~firsts] = self.decoder.tokens["start"], tokens.values
        lasts = np.zeros(ends[-1], bool)
        lasts[ends[1:] - 1] = True
        outputs[lasts], outputs[~lasts] = self.decoder.tokens["end"], tokens.values
        return Ragged(inputs, tokens.lengths + 1), outputs

    def __call__(self, sources: Any, targets: Any, lengths: ArrayLike | None = None,
                 target_lengths: ArrayLike | None = None) -> Ragged:
        """Logits, a Ragged of values (tokens, V): for each target its tokens and the end token, given those before.

        sources, targets: lists of sequences of token numbers, Ragged, or arrays (B, T) with lengths; the targets
        without start and end tokens.
        """
        encoded = self.encode(sources, lengths)
        inputs, _ = self.teacher(targets, target_lengths)
        self._check_batch(encoded, inputs)
        logits, _ = self.decoder.forward(inputs, encoded.state, encoded.memory, encoded.lengths, train=False)
        return Ragged(logits, inputs.lengths)

    def forward(self, sources: Any, targets: Any, lengths: ArrayLike | None = None,
                target_lengths: ArrayLike | None = None) -> tuple[Ragged, Tape]:
        """As the call, with dropout, and the tape."""
        return self._forward_inputs(sources, self.teacher(targets, target_lengths)[0], lengths)

    def _forward_inputs(self, sources: Any, inputs: Ragged, lengths: ArrayLike | None = None) -> tuple[Ragged, Tape]:
        encoded = self.encode(sources, lengths, train=True)
        self._check_batch(encoded, inputs)
        logits, tape = self.decoder.forward(inputs, encoded.state, encoded.memory, encoded.lengths)
        return Ragged(logits, inputs.lengths), Tape(encoded, tape, len(inputs))

    @staticmethod
    def _check_batch(encoded: Encoded, inputs: Ragged) -> None:
        if encoded.batch != len(inputs):
            raise ValueError(f"targets: expected {encoded.batch} as the sources, got {len(inputs)}")

    def backward(self, tape: Tape, dlogits: Any) -> Array | None:
        """Add into grads; without an encoder the gradient (B, context_size) of the vectors."""
        values = dlogits.values if isinstance(dlogits, Ragged) else dlogits
        dstate, dmemory = self.decoder.backward(tape.decoder, values)
        return self._encoder_backward(tape.encoded, dstate, dmemory)

    def learn(self, sources: Any, targets: Any, *, label_smoothing: float = 0.0, inputs: Ragged | None = None) -> float:
        """Forward, cross-entropy and backward: the mean loss in nats a token; adds into grads.

        inputs: decoder inputs that are to stand in for the true ones (scheduled sampling).
        """
        true_inputs, outputs = self.teacher(targets)
        logits, tape = self._forward_inputs(sources, true_inputs if inputs is None else inputs)
        loss, d = losses.cross_entropy(logits.values, outputs, label_smoothing=label_smoothing, out=logits.values)
        self.backward(tape, d)
        return loss

    def loss(self, sources: Any, targets: Any) -> tuple[float, int]:
        """(sum of -log p over the targets' tokens and end tokens in nats, how many those are)."""
        logits, outputs = self(sources, targets), self.teacher(targets)[1]
        mean, _ = losses.cross_entropy(logits.values, outputs, need_dlogits=False)
        return mean * len(outputs), len(outputs)

    def score(self, sources: Any, targets: Any, lengths: ArrayLike | None = None,
              target_lengths: ArrayLike | None = None) -> NDArray[np.float64]:
        """(B,): the log-probability in nats of each whole target, its end token included."""
        logits, outputs = self(sources, targets, lengths, target_lengths), self.teacher(targets, target_lengths)[1]
        each = _attention.log_probabilities(logits.values, outputs)
        return np.add.reduceat(each, offsets(logits.lengths)[:-1]) if len(each) else np.zeros(0)

    def decode(self, sources: Any, lengths: ArrayLike | None = None, **options: Any) -> list[Any]:
        """Outputs for each source: a list of DecodeResult with tokens, scores and attention.

        sources: token sequences as in the call (without an encoder: vectors (B, context_size)). options: those of
        rnn_core.seq2seq_decode.DecodeOptions, CTranslate2's by name: beam_size=2, patience, num_hypotheses,
        length_penalty, coverage_penalty, repetition_penalty, no_repeat_ngram_size, min_decoding_length,
        max_decoding_length, sampling_topk, sampling_topp, sampling_temperature, seed, target_prefix, end_token,
        suppress_sequences, disable_unk, return_scores, return_attention, callback.
        """
        from rnn_core import seq2seq_decode

        return seq2seq_decode.decode(self, sources, lengths, options)

    def sampled_inputs(self, sources: Ragged, targets: Ragged, probability: float, seed: int) -> Ragged:
        """Decoder inputs for scheduled sampling: each token with `probability` the model's own (see `learn`)."""
        from rnn_core import seq2seq_decode

        return seq2seq_decode.sampled_inputs(self, sources, targets, probability, seed)

    # ---- files ---------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What `from_config` builds a model of the same shape from; JSON can hold it."""
        encoder = None if self.encoder is None else self.encoder.arguments
        return {"encoder": encoder, "decoder": self.decoder.arguments, **self.options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Seq2Seq:
        """A model with random weights; load_state_dict gives it those that were trained."""
        rest = {key: value for key, value in config.items() if key not in ("encoder", "decoder")}
        encoder = None if config["encoder"] is None else Encoder(**config["encoder"])
        return cls(encoder, Decoder(**config["decoder"]), **rest)
