"""Do gradients reach back in time? The norm of dL/dh at every step, where they vanish and where they explode."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import checks, losses
from rnn_core.charlm import CharLM


def gradient_flow(layer: Any, x: ArrayLike, dy: ArrayLike, state: Any = None) -> NDArray[np.float64]:
    """The norm of dL/dh_t in every layer and direction of an RNN, GRU or LSTM, for t from the last step back.

    x: (T, B, I), or (B, T, I) with batch_first. dy: dL/dy, of y's shape; zero but for the last step where only
    the last output counts. state: as the layer takes it.

    The result is (L*D, T): row l*D + d belongs to layer l and direction d, and column k to the step k steps
    before the one that this direction reads last. A norm is over batch and hidden units, and dL/dh_t counts all
    paths: through the steps after t and through the layers above. A curve that falls like a straight line on
    a logarithmic scale vanishes, one that rises explodes. No gradient of the layer is changed; dropout is off.
    """
    x, dy = _time_major(layer, "x", x), _time_major(layer, "dy", dy)
    directions, steps, width = 2 if layer.bidirectional else 1, len(x), layer.proj_size or layer.hidden_size
    checks.floats("dy", dy, layer.dtype, (steps, x.shape[1], directions * width))
    singles = [_single(layer, row, directions) for row in range(layer.num_layers * directions)]
    tapes: list[list[Any]] = []
    for first in range(0, len(singles), directions):
        outputs = []
        for row in range(first, first + directions):
            y, kept = _run(singles[row], _ordered(x, row % directions), _state_row(state, row))
            outputs.append(_ordered(y, row % directions))
            tapes.append(kept)
        x = np.concatenate(outputs, axis=2)
    norms = np.zeros((len(singles), steps))
    for first in reversed(range(0, len(singles), directions)):
        parts = np.split(dy, directions, axis=2)
        below: Any = 0.0
        for d, part in enumerate(parts):
            dx, norms[first + d] = _run_back(singles[first + d], tapes[first + d], _ordered(part, d))
            below = below + _ordered(dx, d)
        dy = np.asarray(below)
    return norms


def model_gradient_flow(model: CharLM, tokens: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """gradient_flow of a character model: tokens (T, B), and the loss of the last step alone with targets (B,).

    How much each earlier step matters to the prediction of the last character.
    """
    x = model.embedding(tokens)
    y, _ = model.rnn(x)
    last = model.head(y[-1:])
    losses.cross_entropy(last, np.asarray(targets)[None], out=last)  # its gradient takes the place of the logits
    dy = np.zeros_like(y)
    dy[-1] = last[0] @ model.head.params["weight"]
    return gradient_flow(model.rnn, x, dy)


def _time_major(layer: Any, name: str, array: ArrayLike) -> NDArray[Any]:
    found = checks.floats(name, array, layer.dtype, ("T", "B", "N"))
    if layer.batch_first:
        found = np.ascontiguousarray(found.swapaxes(0, 1))
    if not len(found):
        raise ValueError(f"{name}: expected at least one step, got shape {found.shape}")
    return found


def _ordered(array: NDArray[Any], direction: int) -> NDArray[Any]:
    """Time in the order in which `direction` reads it; its own inverse."""
    return np.ascontiguousarray(array[::-1]) if direction else array


def _single(layer: Any, row: int, directions: int) -> Any:
    """One layer and one direction of a stack as a layer of its own, so that its gradients can be watched."""
    level, reverse = divmod(row, directions)
    width = layer.proj_size or layer.hidden_size
    options = {"bias": layer.bias, "dtype": layer.dtype.name, "proj_size": layer.proj_size, "seed": 0}
    options.update({name: getattr(layer, name) for name in ("nonlinearity", "reset_after") if hasattr(layer, name)})
    alone = type(layer)(width * directions if level else layer.input_size, layer.hidden_size, **options)
    ending = f"_l{level}" + ("_reverse" if reverse else "")
    alone.load_state_dict({key: layer.params[key.removesuffix("_l0") + ending] for key in alone.params})
    return alone


def _state_row(state: Any, row: int) -> Any:
    if state is None:
        return None
    if isinstance(state, tuple):
        return tuple(np.ascontiguousarray(part[row : row + 1]) for part in state)
    return np.ascontiguousarray(state[row : row + 1])


def _run(layer: Any, x: NDArray[Any], state: Any) -> tuple[NDArray[Any], list[Any]]:
    """The outputs (T, B, N), and a tape for every step by itself."""
    outputs, tapes = [], []
    for t in range(len(x)):
        y, state, tape = layer.forward(x[t : t + 1], state)
        outputs.append(y)
        tapes.append(tape)
    return np.concatenate(outputs), tapes


def _run_back(layer: Any, tapes: list[Any], dy: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """dL/dx (T, B, I), and the norms of dL/dh from the last step back."""
    dx, norms = [], []
    dstate: Any = None
    for t in reversed(range(len(tapes))):
        here = dy[t : t + 1]
        later = dstate[0] if isinstance(dstate, tuple) else dstate
        norms.append(np.linalg.norm(here if later is None else here + later))
        step, dstate = layer.backward(tapes[t], here, dstate)
        dx.append(step)
    return np.concatenate(dx[::-1]), np.array(norms)
