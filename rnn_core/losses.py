"""Losses: each gives (loss, gradient with respect to the first argument), means over what counts.

Every loss is one pass over its input: the loss and the gradient are computed together. Where nothing counts the loss is
0.0 and the gradient zero. `out` takes the gradient (it may be the input itself: then nothing is allocated), and
need_dlogits=False skips it for validation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import _dense, checks
from rnn_core._outputs import empty

Gradient = NDArray[Any] | None


def _floats(name: str, x: ArrayLike, ndim: int | None = None) -> NDArray[Any]:
    """`x` in its own precision; Python lists become float64."""
    found = np.asarray(x)
    if ndim is not None and found.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions with lengths, got shape {found.shape}")
    wanted = found.dtype if found.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    return checks.floats(name, x, wanted, found.shape)


def _gradient(out: NDArray[Any] | None, like: NDArray[Any], wanted: bool) -> Gradient:
    """Where the gradient goes: `out`, a new array, or nowhere."""
    if not wanted:
        return None
    if out is None:
        return empty(like.shape, like.dtype)
    if not isinstance(out, np.ndarray) or out.dtype != like.dtype or out.shape != like.shape:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out: expected a {like.dtype} array of shape {like.shape}, got {got}")
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise ValueError("out: expected a writable C-contiguous array")
    if out.ctypes.data != like.ctypes.data and np.may_share_memory(out, like):
        raise ValueError("out: expected the input itself or an array that does not overlap it")
    return out


def _mask(shape: tuple[int, ...], lengths: ArrayLike, batch_first: bool) -> NDArray[np.bool_]:
    """(T, B) or, with batch_first, (B, T): which steps are before their sequence's end."""
    batch, steps = (shape[0], shape[1]) if batch_first else (shape[1], shape[0])
    ends, at = checks.lengths(lengths, batch, steps), np.arange(steps)
    return at < ends[:, None] if batch_first else at[:, None] < ends


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    lengths: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    batch_first: bool = False,
    *,
    out: NDArray[Any] | None = None,
    need_dlogits: bool = True,
) -> tuple[float, Gradient]:
    """Softmax cross-entropy from logits, in nats: the mean over the targets that count, and its gradient.

        loss = -mean_n sum_v q_nv log softmax(logits_n)_v,   q = (1 - label_smoothing) onehot + label_smoothing / V

    logits   (..., V), float32 or float64; (T, B, V), or (B, T, V) with batch_first, when `lengths` is given
    targets  (...), integers below V; `ignore_index` does not count, nor does a step past its sequence's end
    lengths  (B,) or None
    """
    x = _floats("logits", logits, None if lengths is None else 3)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"logits: expected shape (..., V) with at least one class, got {x.shape}")
    classes, limits = x.shape[-1], np.iinfo(np.int64)
    labels = checks.integers("targets", targets, limits.min, limits.max, x.shape[:-1])
    smoothing = checks.fraction("label_smoothing", label_smoothing)
    inner = x.shape[1] if lengths is not None else 1
    ends = None if lengths is None else checks.lengths(lengths, x.shape[0 if batch_first else 1], x.shape[batch_first])
    found, counted, bad = _dense.counted_targets(labels.reshape(-1), classes, ignore_index, ends, inner, batch_first)
    if bad >= 0:
        place = np.unravel_index(bad, labels.shape) if labels.ndim else ()
        where = "".join(f"[{i}]" for i in place)
        raise ValueError(f"targets{where}: expected 0 to {classes - 1} or {ignore_index}, got {labels[place]}")
    dx = _gradient(out, x, need_dlogits)
    scale = 1.0 / counted if counted else 0.0
    rows = x.reshape(-1, classes)
    total = _dense.cross_entropy(rows, None if dx is None else dx.reshape(rows.shape), found, scale, smoothing)
    return total * scale, dx


def _pair_loss(
    kind: str,
    name: str,
    predicted: ArrayLike,
    targets: ArrayLike,
    lengths: ArrayLike | None,
    batch_first: bool,
    out: NDArray[Any] | None,
    wanted: bool,
) -> tuple[float, Gradient]:
    """A loss element by element, its mean over the elements that count, and its gradient."""
    x = _floats(name, predicted)
    target = checks.floats("targets", targets, x.dtype, x.shape)
    mask, counted = None, x.size
    if lengths is not None:
        if x.ndim < 2:
            raise ValueError(f"{name}: expected at least 2 dimensions with lengths, got shape {x.shape}")
        steps = _mask(x.shape, lengths, batch_first)
        spread = np.broadcast_to(steps.reshape(steps.shape + (1,) * (x.ndim - 2)), x.shape)
        mask, counted = spread.astype(x.dtype), int(np.count_nonzero(spread))
    dx = _gradient(out, x, wanted)
    scale = 1.0 / counted if counted else 0.0
    return _dense.pair_loss(kind, x, target, mask, dx, scale) * scale, dx


def binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    lengths: ArrayLike | None = None,
    batch_first: bool = False,
    *,
    out: NDArray[Any] | None = None,
    need_dlogits: bool = True,
) -> tuple[float, Gradient]:
    """Sigmoid cross-entropy (log loss) from logits, in nats: the mean over the elements that count, and its gradient.

        loss = mean(max(x, 0) - x target + log(1 + e^-|x|))

    logits, targets  the same shape and dtype, targets from 0 to 1; with `lengths` (T, B, ...), or (B, T, ...) with
                     batch_first, and steps past a sequence's end do not count
    """
    return _pair_loss("bce", "logits", logits, targets, lengths, batch_first, out, need_dlogits)


def mse(
    predictions: ArrayLike,
    targets: ArrayLike,
    lengths: ArrayLike | None = None,
    batch_first: bool = False,
    *,
    out: NDArray[Any] | None = None,
    need_dlogits: bool = True,
) -> tuple[float, Gradient]:
    """Mean squared error over the elements that count, and its gradient; arguments as in binary_cross_entropy."""
    return _pair_loss("mse", "predictions", predictions, targets, lengths, batch_first, out, need_dlogits)
