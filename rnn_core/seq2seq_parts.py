"""Parts of a sequence-to-sequence model: token sequences, shared embeddings, the encoder, attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import _attention, _tokens, checks
from rnn_core.layers import Dropout, Embedding, Linear
from rnn_core.module import Module
from rnn_core.recurrent import GRU, LSTM, RNN, Recurrent
from rnn_core.sequences import Ragged

Array = NDArray[Any]
Lengths = NDArray[np.int64]
CELLS: dict[str, type[Recurrent]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
ATTENTION = (None, "dot", "general", "additive")
TABLE_TOKENS = 1024  # up to so many tokens the encoder keeps the first layer's input projection of every one
offsets = _tokens.offsets


def ragged_tokens(name: str, sequences: Any, lengths: ArrayLike | None, high: int, least: int = 0) -> Ragged:
    """Token sequences as a Ragged of int64 below `high`, each of at least `least` tokens.

    sequences: a Ragged, a list of sequences of integers, or an integer array (B, T) with `lengths` (B,) or without.
    """
    found = None if lengths is not None else _tokens.from_lists(sequences, high, least)
    if found is not None:
        known = Ragged.__new__(Ragged)  # needs no more checks, which would take longer than a short decode's encoder
        vars(known).update(values=found[0], lengths=found[1])
        return known
    if isinstance(sequences, np.ndarray) and sequences.ndim == 2:
        batch, steps = sequences.shape
        ends = np.full(batch, steps) if lengths is None else checks.lengths(lengths, batch, steps)
        values = sequences[np.arange(steps) < ends[:, None]]
    elif lengths is not None:
        raise ValueError(f"{name}: expected an integer array (B, T) beside lengths, got {type(sequences).__name__}")
    elif isinstance(sequences, Ragged):
        values, ends = sequences.values, sequences.lengths
    else:
        rows = [np.asarray(row, None if len(row) else np.int64) for row in sequences]
        if any(row.ndim != 1 for row in rows):
            raise ValueError(f"{name}: expected a list of sequences of integers")
        values = rows[0] if len(rows) == 1 else np.concatenate(rows) if rows else np.zeros(0, np.int64)
        ends = np.array([len(row) for row in rows], np.int64)
    if least and len(ends) and ends.min() < least:
        raise ValueError(f"{name}: expected at least {least} token in each, got none in [{ends.argmin()}]")
    return Ragged(checks.integers(name, values, 0, high, ("tokens",)), ends)


class SharedEmbedding(Embedding):
    """An embedding whose table is another module's weight: tied output embeddings, or one table for two languages."""

    def __init__(self, owner: Module) -> None:
        rows, columns = owner._buffers["weight"].shape
        super().__init__(1, 1, dtype=owner.dtype, seed=0)
        self.num_embeddings, self.embedding_dim, self._owner = rows, columns, [owner]  # in a list: no child
        self._buffers["weight"] = owner._buffers["weight"]

    def _grad(self, name: str) -> Array:
        return self._owner[0]._grad(name)


# ---------------------------------------------------------------------------------------------------------- encoder


class Encoder(Module):
    """Embedding, dropout and a recurrent layer over the sources.

    cell: "rnn", "lstm" or "gru". dropout is that of the embeddings and between layers. Sizes and weights as in
    Embedding and the layers of rnn_core.recurrent; keys `embedding.weight`, `rnn.weight_ih_l0` and so on.
    """

    _transient = ("_known",)

    def __init__(self, num_embeddings: int, embedding_dim: int, hidden_size: int, num_layers: int = 1, *,
                 cell: str = "gru", bidirectional: bool = False, dropout: float = 0.0, dtype: Any = "float32",
                 seed: int | None = None) -> None:
        super().__init__(dtype)
        self.arguments = {"num_embeddings": num_embeddings, "embedding_dim": embedding_dim, "hidden_size": hidden_size,
                          "num_layers": num_layers, "cell": cell, "bidirectional": bidirectional, "dropout": dropout,
                          "dtype": self.dtype.name}
        self._known: tuple[Any, int, Any] | None = None
        seeds = seeds_from(seed, 3)
        self.embedding: Embedding = Embedding(num_embeddings, embedding_dim, dtype=dtype, seed=seeds[0])
        self.drop = Dropout(dropout, seeds[1])
        self.rnn = cell_class(cell)(embedding_dim, hidden_size, num_layers, bidirectional=bidirectional,
                                    dropout=dropout, dtype=dtype, seed=seeds[2])
        self.output_size = hidden_size * (2 if bidirectional else 1)

    def __call__(self, sources: Ragged) -> tuple[Array, Any]:
        """(memory (tokens, D*H), state) of source tokens; keeps nothing."""
        rnn, table, layout = self.rnn, self._table(), "concatenated"
        x = self.embedding(sources.values) if table is None else sources.values
        lengths: Lengths | None = sources.lengths
        batch, tokens = len(sources), len(x)
        steps = int(max(sources.lengths, default=0)) if batch > 1 else tokens
        if batch == 1:  # the same bits by a shorter way
            lengths, layout = None, "time_major"
        y = np.empty((tokens, self.output_size), self.dtype)
        h, c = rnn._new_states(batch)
        rnn._engine().forward(rnn._weights(), x, y, layout, steps, batch, lengths, None, None, h, c, table=table)
        return y, h if c is None else (h, c)

    def _table(self) -> Any:
        """The first layer's input projection of every token, made when the same weights are used a second time."""
        weights, buffer = self.rnn._weights(), self.embedding._buffers["weight"]
        known = self._known
        if known is None or known[0] is not weights or known[1] != buffer.version:
            known = self._known = weights, buffer.version, None
        elif known[2] is None and self.embedding.num_embeddings <= TABLE_TOKENS and self.rnn._has_tables():
            known = self._known = weights, buffer.version, weights.table(buffer.view, self.rnn._directions)
        return known[2]

    def forward(self, sources: Ragged) -> tuple[Array, Any, Any]:
        """(memory, state, tape)."""
        embedded, at = self.embedding.forward(sources.values)
        dropped, mask = self.drop.forward(embedded)
        y, state, tape = self.rnn.forward(Ragged(dropped, sources.lengths))
        return y.values, state, (at, mask, tape)

    def backward(self, tape: Any, dmemory: Array | None, dstate: Any) -> None:
        at, mask, recurrent = tape
        dx, _ = self.rnn.backward(recurrent, dmemory, dstate)
        embedded: Any = self.drop.backward(mask, dx.values)
        self.embedding.backward(at, embedded)


def cell_class(name: str) -> type[Recurrent]:
    if name not in CELLS:
        raise ValueError(f"cell: expected one of {list(CELLS)}, got {name!r}")
    return CELLS[name]


def seeds_from(seed: int | None, n: int) -> list[int]:
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(n)]


# -------------------------------------------------------------------------------------------------------- attention


@dataclass
class AttentionTape:
    query: Array
    keys: Array
    memory: Array
    places: tuple[Lengths, Lengths, Lengths]
    weights: Array
    projections: tuple[Any, Any]


class Attention(Module):
    """Scores of each target step for its sentence's sources: "dot", "general" (Luong) or "additive" (Bahdanau).

        dot  h . m      general  h . W m      additive  v . tanh(W_q h + b + W_k m)

    Keys: `keys.weight` (W or W_k), `query.weight`, `query.bias`, `v`.
    """

    def __init__(self, kind: str, query_size: int, memory_size: int, *, dtype: Any = "float32",
                 seed: int | None = None) -> None:
        super().__init__(dtype)
        self.kind, self.memory_size, self.query_size = kind, memory_size, query_size
        seeds = seeds_from(seed, 3)
        if kind == "dot":
            if query_size != memory_size:
                raise ValueError(f"attention: 'dot' expects a memory as wide as the decoder, {query_size}, "
                                 f"got {memory_size}; use 'general'")
        elif kind in ("general", "additive"):
            self.keys = Linear(memory_size, query_size, bias=False, dtype=dtype, seed=seeds[0])
        else:
            raise ValueError(f"attention: expected one of {list(ATTENTION)}, got {kind!r}")
        if kind == "additive":
            self.query = Linear(query_size, query_size, dtype=dtype, seed=seeds[1])
            bound = query_size**-0.5
            self._add_parameter("v", np.random.default_rng(seeds[2]).uniform(-bound, bound, query_size))

    @property
    def v(self) -> Array | None:
        return self._buffers["v"].view if self.kind == "additive" else None

    def project(self, memory: Array) -> tuple[Array, Any]:
        """(keys, tape) of a memory: what does not change from step to step."""
        return (memory, None) if self.kind == "dot" else self.keys.forward(memory)

    def forward(self, h: Array, memory: Array, source_lengths: Lengths, target_lengths: Lengths,
                context: Array) -> AttentionTape:
        """Write the context of each h (targets, H) to `context` (targets, memory's width)."""
        keys, keys_tape = self.project(memory)
        query, query_tape = self.query.forward(h) if self.kind == "additive" else (h, None)
        places = offsets(source_lengths), offsets(target_lengths), offsets(source_lengths * target_lengths)
        weights = np.empty(places[2][-1], self.dtype)
        _attention.forward(query, keys, memory, self.v, *places, weights, context)
        return AttentionTape(query, keys, memory, places, weights, (keys_tape, query_tape))

    def backward(self, tape: AttentionTape, dcontext: Array) -> tuple[Array, Array]:
        """(dh, dmemory) in the shapes of forward's h and memory, from dcontext (targets, memory's width)."""
        dquery, dkeys = np.zeros_like(tape.query), np.zeros_like(tape.keys)
        dmemory = np.zeros_like(tape.memory)
        dv = np.zeros((len(tape.places[0]) - 1, self.query_size), self.dtype) if self.kind == "additive" else None
        _attention.backward(tape.query, tape.keys, tape.memory, self.v, *tape.places, tape.weights, dcontext,
                            dquery, dkeys, dmemory, dv)
        keys_tape, query_tape = tape.projections
        if dv is not None:
            grad = self._grad("v")
            grad += dv.sum(0)
            asked: Any = self.query.backward(query_tape, dquery)
            dquery = asked
        projected: Any = dkeys if self.kind == "dot" else self.keys.backward(keys_tape, dkeys)
        dmemory += projected
        return dquery, dmemory
