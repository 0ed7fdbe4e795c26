"""What recurrent layers are called with: sequences padded, ragged, or alone, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import checks
from rnn_core._outputs import empty

Array = NDArray[Any]


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths one after the other, with no padding between them.

    values (sum(lengths), ...): all steps of the first sequence, then all of the second, and so on.
    lengths (B,): steps of each, zero allowed.
    """

    values: Array
    lengths: NDArray[np.int64]

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        lengths = checks.integers("lengths", self.lengths, 0, 2**31, ("B",))
        if values.ndim < 1 or len(values) != lengths.sum():
            raise ValueError(f"values: expected sum(lengths) = {lengths.sum()} rows, got shape {values.shape}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "lengths", lengths)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass
class Sequences:
    """A checked input: what the engine is to be told of it, and how its results go back to the caller."""

    array: Array
    layout: str  # time_major, batch_first or concatenated
    steps: int
    batch: int
    lengths: NDArray[np.int64] | None
    dtype: np.dtype[Any]  # of results and gradients
    unbatched: bool = False
    looked: Any = None  # a lookup.Lookup, where the caller gave tokens

    def empty(self, width: int) -> Array:
        """An output of `width` columns for this input."""
        return empty((*self.array.shape[:-1], width), self.dtype)

    def result(self, y: Array) -> Any:
        """An output as the caller is to see it: Ragged, (T, columns) or padded, as the input was."""
        if self.layout == "concatenated" and self.lengths is not None:
            return Ragged(y, self.lengths)
        return y.reshape(self.steps, y.shape[-1]) if self.unbatched else y

    def gradient(self, dy: Any, width: int) -> Array | None:
        """The caller's gradient of such an output of `width` columns, checked, as the engine's."""
        if dy is None:
            return None
        if self.layout == "concatenated" and isinstance(dy, Ragged):
            if self.lengths is None or not np.array_equal(dy.lengths, self.lengths):
                raise ValueError(f"dy.lengths: expected {self.lengths}, got {dy.lengths}")
            dy = dy.values
        shape = (*self.array.shape[:-1], width)
        if self.unbatched:
            return checks.floats("dy", dy, self.dtype, (self.steps, width)).reshape(shape)
        return checks.floats("dy", dy, self.dtype, shape)

    def empty_input(self, columns: int) -> Array:
        """An array for the gradient of the input: as it is, or with a table of tokens as the table is."""
        rows = None if self.looked is None else self.looked.empty()
        return self.empty(columns) if rows is None else rows

    def input_gradient(self, dx: Array | None) -> Any:
        """dx as the caller is to see it; of tokens there is none, it goes into their embedding's gradient."""
        if dx is None or self.looked is None:
            return None if dx is None else self.result(dx)
        self.looked.add_gradient(dx)
        return None


Check = Callable[[str, Any, tuple[Any, ...]], Array]  # (name, values, leading sizes) -> (*leading, columns)


def take(x: ArrayLike | Ragged, lengths: ArrayLike | None, dtype: Any, columns: int, batch_first: bool) -> Sequences:
    """Check x, a Ragged, (T, columns), (T, B, columns) or with batch_first (B, T, columns), and its lengths."""

    def check(name: str, values: Any, lead: tuple[Any, ...]) -> Array:
        return checks.floats(name, values, dtype, (*lead, columns))

    return _take(x, lengths, dtype, batch_first, check, 2)


def take_tokens(tokens: Any, lengths: Any, dtype: Any, count: int, batch_first: bool) -> Sequences:
    """Check tokens from 0 to count - 1, a Ragged, (T,), (T, B) or with batch_first (B, T), as int64 of one column."""

    def check(name: str, values: Any, lead: tuple[Any, ...]) -> Array:
        return checks.integers(name, values, 0, count, lead)[..., None]

    return _take(tokens, lengths, dtype, batch_first, check, 1)


def _take(x: Any, lengths: Any, dtype: Any, batch_first: bool, check: Check, unbatched_rank: int) -> Sequences:
    if isinstance(x, Ragged):
        if lengths is not None:
            raise ValueError("lengths: expected None beside a Ragged input, which has its own")
        values = check("x.values", x.values, ("tokens",))
        return Sequences(values, "concatenated", int(max(x.lengths, default=0)), len(x), x.lengths, dtype)
    unbatched = checks.rank("x", x) == unbatched_rank
    if unbatched:
        array = check("x", x, ("T",))
        array = array[None] if batch_first else array[:, None]
        if lengths is not None and np.ndim(lengths) == 0:
            lengths = np.reshape(lengths, 1)
    else:
        array = check("x", x, ("B", "T") if batch_first else ("T", "B"))
    steps, batch = array.shape[1::-1] if batch_first else array.shape[:2]
    ragged = None if lengths is None else checks.lengths(lengths, batch, steps)
    return Sequences(array, "batch_first" if batch_first else "time_major", steps, batch, ragged, dtype, unbatched)
