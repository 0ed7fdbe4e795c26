"""rnn_core through its public API, from NumPy arrays to NumPy arrays."""

from __future__ import annotations

import numpy as np

import rnn_core as rc

from .. import engine
from ..engine import Arrays, Variant
from ..rows import STEPS, Row


def _layer(row: Row, weights: Arrays):
    layer = getattr(rc, row.cell)(row.I, row.H, row.L, bidirectional=row.D == 2)
    layer.load_state_dict({key: a for key, a in weights.items() if "." not in key})
    return layer


def _states(inputs: Arrays) -> list:
    """h, or (h, c), of each input."""
    return list(zip(inputs["h0"], inputs["c0"])) if "c0" in inputs else list(inputs["h0"])


def _state_arrays(state) -> Arrays:
    parts = state if isinstance(state, tuple) else (state,)
    return {name: part.copy() for name, part in zip(("h", "c"), parts)}


class Engine(engine.Engine):
    name = "rnn_core"

    def __init__(self, threads: int):
        super().__init__(threads)
        rc.set_num_threads(threads)

    def version(self) -> str:
        return rc.__version__

    def layer(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        layer = _layer(row, weights)
        x, states = list(inputs["x"]), _states(inputs)

        def read(result):
            return {"y": result[0]} | _state_arrays(result[1])

        return {"layer": Variant(lambda k: layer(x[k], states[k]), read)}

    def step(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        cell = getattr(rc, row.cell + "Cell")(row.I, row.H)
        cell.load_state_dict({key.removesuffix("_l0"): a for key, a in weights.items()})
        x = [inputs["x"][t, 0] for t in range(STEPS)]
        first = _states({key: inputs[key][:, 0] for key in ("h0", "c0") if key in inputs})[0]
        state = tuple(np.empty_like(s) for s in first) if isinstance(first, tuple) else np.empty_like(first)
        step = cell.step

        def call(_):
            step(x[0], first, out=state)
            for t in range(1, STEPS):
                step(x[t], state, out=state)
            return state

        def read(state):
            return {name: array[None] for name, array in _state_arrays(state).items()}

        return {"step": Variant(call, read, units=STEPS)}

    def train(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        layer = _layer(row, weights)
        x, dy, states = list(inputs["x"]), list(inputs["dy"]), _states(inputs)
        lengths = list(inputs["lengths"]) if row.kind == "ragged" else [None] * len(x)

        def call(k):
            layer.zero_grad()
            _, _, tape = layer.forward(x[k], states[k], lengths[k])
            return layer.backward(tape, dy[k])[0]

        def read(dx):
            return {f"d{key}": grad.copy() for key, grad in layer.grads.items()} | {"dx": dx}

        return {"forward + backward": Variant(call, read)}

    ragged = train

    def charlm(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        """Forward, loss, backward, clipping by norm and Adam, the state carried over."""
        embedding, layer, head = rc.Embedding(row.V, row.I), _layer(row, weights), rc.Linear(row.H, row.V)
        embedding.load_state_dict({"weight": weights["embedding.weight"]})
        head.load_state_dict({"weight": weights["head.weight"], "bias": weights["head.bias"]})
        parts = {"embedding": embedding, "rnn": layer, "head": head}
        params = {f"{name}.{key}": p for name, part in parts.items() for key, p in part.params.items()}
        grads = {f"{name}.{key}": g for name, part in parts.items() for key, g in part.grads.items()}
        optimiser = rc.optim.Adam(params, lr=1e-3)
        tokens, carried = inputs["tokens"], [None]

        def call(k):
            for part in parts.values():
                part.zero_grad()
            y, carried[0], below = layer.forward(tokens[k, :-1], carried[0], embedding=embedding)
            logits, tape = head.forward(y)
            loss, dlogits = rc.losses.cross_entropy(logits, tokens[k, 1:])
            layer.backward(below, head.backward(tape, dlogits))
            rc.clip_grad_norm(grads, 1.0)
            optimiser.step(grads)
            return loss

        return {"step": Variant(call, lambda loss: {"loss": np.array([loss])})}
