"""Training that keeps states at checkpoints only and computes the rest again inside backward (Chen et al. 2016,
"Training deep nets with sublinear memory cost"), for sequences whose tape would not fit.

A batch is taken in segments of about sqrt(T) steps. Forward keeps the state that each segment starts from; backward
runs a segment forward once more, this time with a tape, and then back. Segments are whole chunks of the backward pass,
so the gradients have the bits of an ordinary backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_core import variants
from rnn_core._parameters import stamp
from rnn_core._plan import longest_first

if TYPE_CHECKING:
    from rnn_core.recurrent import Recurrent
    from rnn_core.sequences import Sequences

Array = NDArray[Any]
Pair = list["Array | None"]  # h and c; c is None but for an LSTM
Piece = tuple[int, int, "NDArray[np.int64] | None"]  # a segment's first step, the one after its last, and lengths


@dataclass
class Checkpoints:
    """What backward needs: the input, the state at the start of every segment, and the masks."""

    engine: Any
    stamp: int
    source: Sequences
    weights: Any
    variant_masks: variants.Masks
    masks: list[Array]
    starts: list[Pair]
    pieces: list[Piece]
    order: NDArray[np.int64] | None  # of the whole batch, so that a segment adds its tokens up in the same order


def _time(array: Array, source: Sequences, begin: int, end: int) -> Array:
    """Steps [begin, end) of x or y: a view, which is contiguous where time comes first."""
    return array[:, begin:end] if source.layout == "batch_first" else array[begin:end]


def _segments(source: Sequences, ends: NDArray[np.int64]) -> Iterator[Piece]:
    """Each segment; `ends` are the steps where one may end, but for the last."""
    begin, steps = 0, math.sqrt(0.4 * source.steps)  # a tape keeps 5 numbers a unit and step, a checkpoint 2 a unit
    while begin < source.steps:
        later = ends[ends > begin]
        end = int(later[np.argmin(abs(later - begin - steps))]) if len(later) > 1 else source.steps
        lengths = None if source.lengths is None else np.clip(source.lengths - begin, 0, end - begin)
        yield begin, end, lengths
        begin = end


def _run(layer: Recurrent, tape: Checkpoints, piece: Piece, start: Pair, y: Array | None) -> Any:
    """One segment: (tape or None, state after it). It writes y, or keeps a tape where y is None."""
    begin, end, lengths = piece
    source, final = tape.source, layer._new_states(tape.source.batch)
    x = np.ascontiguousarray(_time(source.array, source, begin, end))
    columns = layer._directions * layer._out
    out = np.empty((*x.shape[:2], columns), layer.dtype)
    masks = [np.ascontiguousarray(mask[begin:end]) for mask in tape.masks] or None
    engine = layer._engine().forward(
        tape.weights, x, out, source.layout, end - begin, source.batch, lengths, start[0], start[1],
        final[0], final[1], y is None, masks, order=tape.order,
        variant=variants.for_engine(layer, tape.variant_masks, begin, end),
    )
    if y is not None:
        _time(y, source, begin, end)[...] = out
    return engine, final


def forward(layer: Recurrent, source: Sequences, start: Pair, y: Array, masks: list[Array],
            drawn: variants.Masks) -> tuple[Pair, Checkpoints]:
    """Fill y; (final state, checkpoints). ValueError for inputs whose segments would need each other."""
    if layer.bidirectional:
        raise ValueError("recompute: expected one direction, got a bidirectional layer")
    if source.layout not in ("time_major", "batch_first"):
        raise ValueError("recompute: expected a padded array, with lengths or without, got a ragged input")
    ends = layer._engine().chunk_ends(source.steps, source.batch, source.lengths)
    order = None if source.lengths is None else longest_first(source.lengths)
    tape = Checkpoints(layer._engine(), stamp(layer._buffers), source, layer._call_weights(drawn), drawn, masks, [],
                       list(_segments(source, ends)), order)
    state = _zeros_for_none(layer, start, source.batch)
    for piece in tape.pieces:
        tape.starts.append(state)
        _, state = _run(layer, tape, piece, state, y)
    return state, tape


def backward(layer: Recurrent, tape: Checkpoints, dy: Array | None, dstate: Pair, dx: Array | None,
             grads: list[tuple[Any, ...]]) -> Pair:
    """Add into grads and fill dx; the gradient of the initial state."""
    source = tape.source
    dstate = _zeros_for_none(layer, dstate, source.batch)
    second = None
    for piece, start in zip(reversed(tape.pieces), reversed(tape.starts)):
        begin, end, _ = piece
        engine, _ = _run(layer, tape, piece, start, None)
        if end == source.steps:
            second = layer._engine().second_gradients(engine)
        dy_piece = None if dy is None else np.ascontiguousarray(_time(dy, source, begin, end))
        dx_piece = None
        if dx is not None:
            dx_piece = np.empty(_time(dx, source, begin, end).shape, dx.dtype)
        before = layer._new_states(source.batch)
        layer._engine().backward(engine, dy_piece, dstate[0], dstate[1], grads, dx_piece, before[0], before[1],
                                 second=second, last=begin == 0)
        if dx is not None:
            _time(dx, source, begin, end)[...] = dx_piece
        dstate = before
    return dstate


def _zeros_for_none(layer: Recurrent, state: Pair, batch: int) -> Pair:
    """The state as arrays of its own, zero where nothing was given."""
    found = layer._new_states(batch)
    for to, given in zip(found, state):
        if to is not None:
            to[...] = 0 if given is None else given
    return found
