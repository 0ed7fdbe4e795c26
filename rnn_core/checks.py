"""The one place that checks arguments: every public entry passes its arrays, sizes and lengths through here.

Each function returns the checked value in the form that the engine wants, or raises an error that says
what was expected and what came. Nothing below these checks raises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FLOATS = ("float32", "float64")


def dtype(name: Any) -> np.dtype:
    """float32 or float64 as a numpy.dtype."""
    try:
        found = np.dtype(name)
    except TypeError:
        found = None
    if found is None or found.name not in FLOATS or not found.isnative:
        raise TypeError(f"dtype: expected float32 or float64, got {name!r}")
    return found


def count(name: str, n: Any, minimum: int = 1) -> int:
    """A whole number of at least `minimum`, small enough to be a size."""
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise TypeError(f"{name}: expected an integer, got {type(n).__name__} {n!r}")
    size = int(n)
    if not minimum <= size < 2**31:
        raise ValueError(f"{name}: expected {minimum} to 2**31 - 1, got {n}")
    return size


def fraction(name: str, p: Any) -> float:
    """A probability: 0 <= p <= 1."""
    value = real(name, p)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected 0 to 1, got {p!r}")
    return value


def real(name: str, x: Any) -> float:
    """A finite real number."""
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{name}: expected a number, got {type(x).__name__} {x!r}")
    try:
        value = float(x)
    except OverflowError:  # an integer beyond the largest float
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {x!r}")
    return value


def _shape_text(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"


def _match(name: str, found: tuple[int, ...], shape: Sequence[int | str]) -> None:
    """Raise unless `found` fits `shape`, whose strings name free sizes (the same name, the same size)."""
    if found == shape:
        return
    sizes: dict[str, int] = {}
    fits = len(found) == len(shape)
    for got, want in zip(found, shape):
        fits = fits and got == (sizes.setdefault(want, got) if isinstance(want, str) else want)
    if not fits:
        raise ValueError(f"{name}: expected shape {_shape_text(shape)}, got {_shape_text(found)}")


def floats(name: str, x: ArrayLike, dtype: Any, shape: Sequence[int | str]) -> NDArray[Any]:
    """`x` as a C-contiguous, aligned array of `dtype` and `shape`; copied only where it is not so already.

    shape: sizes, or names such as "T" for free ones. Python lists of numbers are converted; an array of
    another dtype is refused, since a silent conversion would hide a doubled cost.
    """
    wanted = np.dtype(dtype)
    if not isinstance(x, np.ndarray):
        x = _converted(name, x, wanted)
    if x.dtype != wanted:
        raise TypeError(f"{name}: expected dtype {wanted.name}, got {x.dtype}")
    _match(name, x.shape, shape)
    flags = x.flags
    return x if flags.c_contiguous and flags.aligned else np.require(x, wanted, ("C", "A"))


def rank(name: str, x: Any) -> int:
    """The number of dimensions of an array or of lists in lists."""
    try:
        return np.ndim(x)
    except ValueError:
        raise TypeError(f"{name}: expected an array, got {type(x).__name__} of parts of unequal lengths") from None


def _converted(name: str, x: Any, wanted: np.dtype) -> NDArray[Any]:
    if hasattr(x, "dtype") and hasattr(x, "__array__"):  # a scalar or an array of another library
        return np.asarray(x)
    try:
        found = np.asarray(x)
        if found.dtype.kind not in "iuf" and found.size:
            raise TypeError
        return found.astype(wanted)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a {wanted.name} array, got {type(x).__name__}") from None


def integers(name: str, x: ArrayLike, low: int, high: int, shape: Sequence[int | str]) -> NDArray[np.int64]:
    """`x` as a C-contiguous int64 array of `shape` with low <= x < high."""
    try:
        found = np.asarray(x)
    except ValueError:
        raise TypeError(f"{name}: expected an array of integers, got {type(x).__name__}") from None
    if found.dtype.kind not in "iu" and found.size:
        raise TypeError(f"{name}: expected integers, got dtype {found.dtype}")
    _match(name, found.shape, shape)
    if found.size and not (low <= int(found.min()) and int(found.max()) < high):
        bad = found[(found < low) | (found >= high)].flat[0]
        raise ValueError(f"{name}: expected {low} to {high - 1}, got {bad}")
    return np.require(found, np.int64, ("C", "A"))


def lengths(lengths: ArrayLike, batch: int, steps: int) -> NDArray[np.int64]:
    """One length a sequence, 0 to `steps`, unsorted: int64 (B,)."""
    return integers("lengths", lengths, 0, steps + 1, (batch,))
