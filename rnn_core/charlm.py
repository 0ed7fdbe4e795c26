"""A character-level language model: Embedding -> stacked LSTM, GRU or RNN -> Linear.

    x_t = E[token_t]        h_t = cell(x_t, h_{t-1})        p(token_{t+1}) = softmax(A h_t + b)

Tensors are named embedding.weight (V, E), rnn.* (PyTorch's keys), head.weight (V, H) and head.bias (V,);
the vocabulary is part of the configuration and stands in the metadata of a saved model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import checkpoint, checks
from rnn_core.layers import Dropout, Embedding, Linear
from rnn_core.module import Module
from rnn_core.recurrent import GRU, LSTM, RNN

CELLS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
KIND = "character language model"


class Tape(NamedTuple):
    """What the layers keep for backward."""

    rnn: Any
    dropout: Any
    head: Any


class CharLM(Module):
    """Predicts the next character from those before it.

    vocabulary: the distinct characters, whose index is the token. cell: "lstm", "gru" or "rnn".
    dropout: between the stacked layers and before the output layer, in training only.
    """

    def __init__(
        self,
        vocabulary: str,
        *,
        cell: str = "lstm",
        layers: int = 1,
        hidden: int = 256,
        embedding: int = 64,
        dropout: float = 0.0,
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        super().__init__(dtype)
        if not isinstance(vocabulary, str) or not vocabulary or len(set(vocabulary)) != len(vocabulary):
            raise ValueError(f"vocabulary: expected a string of distinct characters, got {vocabulary!r}")
        if cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
        seeds = np.random.SeedSequence(seed).generate_state(4)
        layers, hidden = checks.count("layers", layers), checks.count("hidden", hidden)
        embedding, dropout = checks.count("embedding", embedding), checks.fraction("dropout", dropout)
        sizes = {"layers": layers, "hidden": hidden, "embedding": embedding, "dropout": dropout}
        self.config = {"kind": KIND, "vocabulary": vocabulary, "cell": cell, **sizes, "dtype": self.dtype.name}
        self.vocabulary = vocabulary
        V = len(vocabulary)
        self.embedding = Embedding(V, embedding, dtype=dtype, seed=int(seeds[0]))
        self.rnn: Any = CELLS[cell](embedding, hidden, layers, dropout=dropout, dtype=dtype, seed=int(seeds[1]))
        self.dropout = Dropout(dropout, seed=int(seeds[3]))
        self.head = Linear(hidden, V, dtype=dtype, seed=int(seeds[2]))
        points = np.frombuffer(vocabulary.encode("utf-32-le"), np.uint32)
        self._order = np.argsort(points)
        self._points = points[self._order]

    # ---- text and tokens ----------------------------------------------------------------------------------

    def encode(self, text: str) -> NDArray[np.int64]:
        """The tokens of `text`, (len(text),); ValueError names characters outside the vocabulary."""
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        at = np.minimum(np.searchsorted(self._points, points), len(self._points) - 1)
        unknown = points[self._points[at] != points]
        if unknown.size:
            names = "".join(chr(point) for point in np.unique(unknown)[:10])
            raise ValueError(f"text: expected characters of the vocabulary, got {names!r}")
        return self._order[at]

    def decode(self, tokens: ArrayLike) -> str:
        """The text of `tokens`, the inverse of encode."""
        return "".join(self.vocabulary[i] for i in checks.integers("tokens", tokens, 0, len(self.vocabulary), ("N",)))

    # ---- the network --------------------------------------------------------------------------------------

    def __call__(self, tokens: ArrayLike, state: Any = None) -> tuple[NDArray[Any], Any]:
        """Logits (T, B, V) of the next character after each of `tokens` (T, B), and the state after them."""
        y, state = self.rnn(tokens, state, embedding=self.embedding)
        return self.head(y), state

    def forward(self, tokens: ArrayLike, state: Any = None) -> tuple[NDArray[Any], Any, Tape]:
        """The same for training: (logits, state, tape)."""
        y, state, rnn = self.rnn.forward(tokens, state, embedding=self.embedding)
        y, dropout = self.dropout.forward(y)
        logits, head = self.head.forward(y)
        return logits, state, Tape(rnn, dropout, head)

    def backward(self, tape: Tape, dlogits: ArrayLike) -> None:
        """Add the gradients for `dlogits` (T, B, V) into `grads`; the state before the tape is a constant."""
        dy: Any = self.head.backward(tape.head, dlogits)
        self.rnn.backward(tape.rnn, self.dropout.backward(tape.dropout, dy))

    @property
    def calls(self) -> dict[str, int]:
        """How often each part with dropout was called: with the seed, all that decides its next masks."""
        return {name: part.calls for name, part in self.children.items() if hasattr(part, "calls")}

    @calls.setter
    def calls(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            setattr(self.children[name], "calls", count)  # noqa: B010

    # ---- files --------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, step: int = 0) -> Path:
        """Write the model to a safetensors file, atomically."""
        return checkpoint.save(path, self, config={"model": self.config}, step=step)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CharLM:
        """The model in a file that `save` or training wrote. OSError or CheckpointError where there is none."""
        return cls.from_checkpoint(checkpoint.load(path), path)

    @classmethod
    def from_checkpoint(cls, found: checkpoint.Checkpoint, path: Any = "checkpoint") -> CharLM:
        """A new model with a checkpoint's sizes, vocabulary and weights; `path` is what messages call its file.
        CheckpointError where the checkpoint is of something else, or its parts do not fit together."""
        config = dict(found.config.get("model") or {})
        if config.pop("kind", None) != KIND:
            raise checkpoint.CheckpointError(f"{path}: expected a {KIND}, got another kind of checkpoint")
        try:
            model = cls(**config, seed=0)
        except (TypeError, ValueError) as fault:
            raise checkpoint.CheckpointError(f"{path}: {fault}") from None
        found.restore(model)
        return model

    # ---- writing text -------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str = "",
        length: int = 1000,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """`length` characters that follow `prompt`, one at a time as they are drawn; the prompt is not among them.

        temperature: below 1 more likely text, 0 always the likeliest character. top_k: draw among the k
        likeliest only. The same seed gives the same text. Without a prompt the text starts a new line.
        """
        checks.count("length", length, 0)
        if checks.real("temperature", temperature) < 0:
            raise ValueError(f"temperature: expected at least 0, got {temperature}")
        k = len(self.vocabulary) if top_k is None else min(checks.count("top_k", top_k), len(self.vocabulary))
        start = prompt or ("\n" if "\n" in self.vocabulary else self.vocabulary[0])
        tokens = self.encode(start)[:, None]
        return self._write(tokens, length, temperature, k, np.random.default_rng(seed))

    def _write(
        self, tokens: NDArray[np.int64], length: int, temperature: float, k: int, rng: np.random.Generator
    ) -> Iterator[str]:
        state = None
        for _ in range(length):
            x = self.embedding(tokens)
            y, state = self.rnn(x, state)
            choice = draw(self.head(y[-1])[0], temperature, k, rng)
            tokens = np.array([[choice]])
            yield self.vocabulary[choice]


def draw(logits: NDArray[Any], temperature: float, k: int, rng: np.random.Generator) -> int:
    """A token drawn from softmax(logits / temperature) over the k largest of `logits` (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    z = logits.astype(np.float64)
    if k < len(z):
        z[z < np.partition(z, -k)[-k]] = -np.inf
    total = np.cumsum(np.exp((z - z.max()) / temperature))
    return int(min(np.searchsorted(total, rng.random() * total[-1], side="right"), len(z) - 1))
