"""Variants of the recurrent layers: the masks that one call of `forward` draws, and what they act on; and layer
normalisation's parameters.

Masks are counter-based (Philox by seed, call, stream, direction of a layer, row and unit), so they are the same for
any number of threads and any order of work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_core import _dense, checks
from rnn_core._variants import Variants

if TYPE_CHECKING:
    from rnn_core.recurrent import Recurrent

Array = NDArray[Any]
Masks = dict[str, list[Array]]  # option -> one array for each direction of each layer

# Streams of random numbers beside those between the layers, which are numbered from 0 by the layer.
_STREAM = {"weight_drop": 1 << 32, "recurrent_dropout": 2 << 32, "zoneout_h": 3 << 32, "zoneout_c": 4 << 32}
OPTIONS = ("weight_drop", "recurrent_dropout", "zoneout", "layer_norm")
_WEIGHT_HH = 1  # its place among the arrays of a direction


def refuse(options: dict[str, Any], why: str) -> None:
    """ValueError where one of these options is set."""
    for name in OPTIONS:
        if options.get(name):
            none = False if name == "layer_norm" else 0
            raise ValueError(f"{name}: expected {none}, since {why}, got {options[name]!r}")


def _draw(layer: Recurrent, option: str, p: float, index: int, shape: tuple[int, int, int]) -> Array:
    """Factors 0 (with probability p) or 1/(1-p): (steps, rows, units)."""
    mask = np.empty(shape, layer.dtype)
    _dense.dropout(None, None, mask, p, layer._mask_seed, layer.calls, _STREAM[option] + index, False)
    return mask


def set_options(layer: Recurrent, weight_drop: float, recurrent_dropout: float, zoneout: float,
                layer_norm: bool) -> None:
    """Check and keep the options as attributes."""
    layer.weight_drop = checks.fraction("weight_drop", weight_drop)
    layer.recurrent_dropout = checks.fraction("recurrent_dropout", recurrent_dropout)
    layer.zoneout = checks.fraction("zoneout", zoneout)
    layer.layer_norm = bool(layer_norm)


def norm_shapes(layer: Recurrent) -> dict[str, tuple[int, ...]]:
    """Gain and shift of each normalisation of one direction, in the engine's order; empty without layer_norm."""
    if not layer.layer_norm:
        return {}
    rows = layer._gates * layer.hidden_size
    sizes = {"ih": rows, "hh": rows} | ({"c": layer.hidden_size} if layer._has_c else {})
    return {f"{role}_ln_{which}": (size,) for which, size in sizes.items() for role in ("weight", "bias")}


def norm_start(name: str, shape: tuple[int, ...]) -> Array:
    """What a gain (1) or a shift (0) starts from."""
    return np.ones(shape) if name.startswith("weight") else np.zeros(shape)


def draw(layer: Recurrent, steps: int, batch: int) -> Masks:
    """The masks of one forward call; empty for a layer without such options.

    weight_drop (G*H, out) factors of weight_hh; recurrent_dropout (B, out) factors of h before R, the same at every
    step; zoneout_h (T, B, out) and for an LSTM zoneout_c (T, B, H): 1 where the new state is taken, 0 where the old
    one stays.
    """
    masks: Masks = {}
    count = layer.num_layers * layer._directions
    if layer.recurrent_dropout:
        p, shape = layer.recurrent_dropout, (1, batch, layer._out)
        masks["recurrent_dropout"] = [_draw(layer, "recurrent_dropout", p, i, shape)[0] for i in range(count)]
    if layer.zoneout:
        for name, size in [("zoneout_h", layer._out), ("zoneout_c", layer.hidden_size)][: 1 + layer._has_c]:
            masks[name] = [_draw(layer, name, layer.zoneout, i, (steps, batch, size)) for i in range(count)]
            for mask in masks[name]:
                np.not_equal(mask, 0, out=mask)
    if layer.weight_drop:
        shape = (1, layer._gates * layer.hidden_size, layer._out)
        masks["weight_drop"] = [_draw(layer, "weight_drop", layer.weight_drop, i, shape)[0] for i in range(count)]
    return masks


def for_engine(layer: Recurrent, masks: Masks, begin: int = 0, end: int | None = None) -> Variants | None:
    """What one call of the engine over steps [begin, end) is to be told; None where its cells are the plain ones.

    Without masks (inference) zoneout takes its expectation.
    """
    count = layer.num_layers * layer._directions
    if "zoneout_h" in masks or "recurrent_dropout" in masks:
        h, c = ([mask[begin:end] for mask in masks[name]] if name in masks else None
                for name in ("zoneout_h", "zoneout_c"))
        return Variants(count, masks.get("recurrent_dropout"), h, c)
    if layer.zoneout:
        return Variants(count, taken=1 - layer.zoneout)
    return None


def drop_weights(arrays: list[tuple[Array | None, ...]], masks: list[Array]) -> list[tuple[Array | None, ...]]:
    """The arrays of each direction with weight_hh replaced by its masked copy."""
    dropped = []
    for own, mask in zip(arrays, masks, strict=True):
        weight = np.empty_like(mask)
        _dense.multiply(own[_WEIGHT_HH], mask, weight)
        dropped.append((*own[:_WEIGHT_HH], weight, *own[_WEIGHT_HH + 1 :]))
    return dropped


def gradient_arrays(grads: list[tuple[Array | None, ...]], masks: Masks) -> list[tuple[Array | None, ...]]:
    """The arrays that backward is to add into: zeros for a weight_hh whose gradient has yet to pass its mask."""
    if "weight_drop" not in masks:
        return grads
    return [(*own[:_WEIGHT_HH], np.zeros_like(own[_WEIGHT_HH]), *own[_WEIGHT_HH + 1 :]) for own in grads]


def add_gradients(
    grads: list[tuple[Array | None, ...]], found: list[tuple[Array | None, ...]], masks: Masks
) -> None:
    """Add what came to stand in `gradient_arrays`, through its masks."""
    for own, new, mask in zip(grads, found, masks.get("weight_drop", ())):
        gradient, total = new[_WEIGHT_HH], own[_WEIGHT_HH]
        if gradient is not None and total is not None:
            _dense.multiply(gradient, mask, gradient)
            np.add(total, gradient, out=total)
