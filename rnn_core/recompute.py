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
from rnn_core._outputs import empty
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
    """What backward needs: the input, the state at the start of every segment, and the masks. It refers to x and, with
    `y`, to the output: changing them before backward is undefined."""

    engine: Any
    stamp: int
    source: Sequences
    y: Array | None  # the output, where running a segment again is faster with it
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


def _room(part: Array) -> Array:
    """Where to write what goes to a part of an array: there, if the engine can, else memory to copy from."""
    return part if part.flags.c_contiguous else empty(part.shape, part.dtype)


def _run(layer: Recurrent, tape: Checkpoints, piece: Piece, start: Pair, y: Array | None) -> Any:
    """One segment: (tape or None, state after it). It writes y, or keeps a tape where y is None."""
    begin, end, lengths = piece
    source, final = tape.source, layer._new_states(tape.source.batch)
    x, keep = np.ascontiguousarray(_time(source.array, source, begin, end)), y is None
    known = tape.y if keep else None
    if known is not None:
        y = np.ascontiguousarray(_time(known, source, begin, end))
    elif y is None:
        y = empty((*x.shape[:2], layer._out), layer.dtype)
    masks = [np.ascontiguousarray(mask[begin:end]) for mask in tape.masks] or None
    engine = layer._engine().forward(
        tape.weights, x, y, source.layout, end - begin, source.batch, lengths, start[0], start[1],
        final[0], final[1], keep, masks, order=tape.order, known=known is not None,
        variant=variants.for_engine(layer, tape.variant_masks, begin, end),
    )
    return engine, final


def forward(layer: Recurrent, source: Sequences, start: Pair, y: Array, masks: list[Array],
            drawn: variants.Masks) -> tuple[Pair, Checkpoints]:
    """Fill y; (final state, checkpoints). ValueError for inputs whose segments would need each other."""
    if layer.bidirectional:
        raise ValueError("recompute: expected one direction, got a bidirectional layer")
    if source.layout not in ("time_major", "batch_first"):
        raise ValueError("recompute: expected a padded array, with lengths or without, got a ragged input")
    engine, weights = layer._engine(), layer._call_weights(drawn)
    order = None if source.lengths is None else longest_first(source.lengths)
    pieces = list(_segments(source, engine.chunk_ends(source.steps, source.batch, source.lengths)))
    known = y if variants.for_engine(layer, drawn) is None and engine.knows(weights) else None
    tape = Checkpoints(engine, stamp(layer._buffers), source, known, weights, drawn, masks, [], pieces, order)
    state = _zeros_for_none(layer, start, source.batch)
    for piece in tape.pieces:
        tape.starts.append(state)
        part = _time(y, source, *piece[:2])
        out = _room(part)
        _, state = _run(layer, tape, piece, state, out)
        if out is not part:
            part[...] = out
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
        part = None if dx is None else _time(dx, source, begin, end)
        dx_piece = None if part is None else _room(part)
        before = layer._new_states(source.batch)
        layer._engine().backward(engine, dy_piece, dstate[0], dstate[1], grads, dx_piece, before[0], before[1],
                                 second=second, last=begin == 0)
        if part is not None and dx_piece is not part:
            part[...] = dx_piece
        dstate = before
    return dstate


def _zeros_for_none(layer: Recurrent, state: Pair, batch: int) -> Pair:
    """The state as arrays of its own, zero where nothing was given."""
    found = layer._new_states(batch)
    for to, given in zip(found, state):
        if to is not None:
            to[...] = 0 if given is None else given
    return found
