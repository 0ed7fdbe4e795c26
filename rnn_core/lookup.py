"""Tokens as the input of a layer: the rows of an embedding that they stand for.

W E[token] + b is the same wherever a token stands, so it is computed once for each distinct token, not once for each
that comes. So are the gradients: with S[v] the sum of dz over the places where token v stands, dW = S^T E and dE = S W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_core import sequences
from rnn_core._outputs import empty
from rnn_core.layers import Embedding
from rnn_core.sequences import Sequences

Array = NDArray[Any]
REPEATS = 4  # times that a token must come on average before its row of a table pays
MOST_ROWS = 4096  # of a table: it takes memory, which else does not grow with the input


@dataclass
class Lookup:
    """Where an input came from."""

    embedding: Embedding
    index: NDArray[np.int64]  # rows of the embedding, one for each row of dx: the tokens, or the distinct ones
    rows: Array | None  # (distinct tokens, E): the table's inputs, where the input is places among them

    def empty(self) -> Array | None:
        """An array for dx, (distinct tokens, E), where there is a table."""
        return None if self.rows is None else empty(self.rows.shape, self.rows.dtype)

    def add_gradient(self, dx: Array) -> None:
        """Add dx, of each row of `index`, into the embedding's gradient."""
        self.embedding.backward(self.index, dx, need_dx=False)


def take(
    embedding: Any, tokens: Any, lengths: Any, dtype: np.dtype[Any], columns: int, batch_first: bool, table: bool
) -> Sequences:
    """Check the tokens, (T, B), with batch_first (B, T), (T,) or a Ragged, and the embedding of `columns` columns. With
    `table` the input of tokens that repeat themselves is places in a table of the distinct ones."""
    if not isinstance(embedding, Embedding) or embedding.embedding_dim != columns or embedding.dtype != dtype:
        raise ValueError(f"embedding: expected a {dtype} Embedding with {columns} columns, got {embedding!r}")
    source = sequences.take_tokens(tokens, lengths, dtype, embedding.num_embeddings, batch_first)
    at = source.array[..., 0]
    found = _distinct(at, embedding.num_embeddings) if table else None
    if found is None:
        source.array, source.looked = embedding(at), Lookup(embedding, at, None)
    else:
        source.array = found[1][..., None]
        source.looked = Lookup(embedding, found[0], embedding(found[0]))
    return source


def _distinct(tokens: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The rows of a table and the place of each token among them; None where the tokens hardly repeat themselves."""
    most = min(tokens.size // REPEATS, MOST_ROWS)
    if count <= most:
        return np.arange(count), tokens
    used, place = np.unique(tokens, return_inverse=True)
    return (used, place.reshape(tokens.shape)) if 0 < len(used) <= most else None
