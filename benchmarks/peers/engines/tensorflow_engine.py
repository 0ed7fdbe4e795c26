"""TensorFlow through Keras, training rows only: a graph and an XLA-compiled graph compete.

Keras has transposed kernels, batch-major sequences, gates i,f,c,o (LSTM) and z,r,h (GRU), one bias but for GRU's two.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from .. import engine  # noqa: E402
from ..engine import Arrays, Variant  # noqa: E402
from ..rows import Row  # noqa: E402

_LAYERS = {"LSTM": keras.layers.LSTM, "GRU": keras.layers.GRU, "RNN": keras.layers.SimpleRNN}
_ORDER = {"LSTM": [0, 1, 2, 3], "GRU": [1, 0, 2], "RNN": [0]}  # its own inverse


def _gates(cell: str, array: np.ndarray) -> np.ndarray:
    """Between torch's and Keras's gate order along axis 0."""
    parts = np.split(array, len(_ORDER[cell]))
    return np.concatenate([parts[k] for k in _ORDER[cell]])


def _to_keras(row: Row, weights: Arrays, suffix: str) -> list[np.ndarray]:
    W, R, b, d = (_gates(row.cell, weights[key + suffix]) for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return [W.T, R.T, np.stack([b, d]) if row.cell == "GRU" else b + d]


def _from_keras(row: Row, grads: list[np.ndarray], suffix: str) -> Arrays:
    kernel, recurrent, bias = grads
    b, d = bias if row.cell == "GRU" else (bias, bias)
    named = {"weight_ih": kernel.T, "weight_hh": recurrent.T, "bias_ih": b, "bias_hh": d}
    return {f"d{key}{suffix}": _gates(row.cell, array) for key, array in named.items()}


class Engine(engine.Engine):
    name = "tensorflow"

    def __init__(self, threads: int):
        super().__init__(threads)
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)

    def version(self) -> str:
        return tf.__version__

    def train(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        """The masked dy of a ragged row is enough where padding comes last; the reverse direction needs the mask."""
        layers, suffixes = _build(row, weights)
        parameters = [p for layer in layers for p in layer.trainable_variables]

        def run(x, states, dy, mask):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = x
                for layer, state in zip(layers, states):
                    y = layer(y, initial_state=state, mask=mask, training=True)
                loss = tf.reduce_sum(y * dy)
            return tape.gradient(loss, [x, *parameters])

        feeds = [_feed(row, inputs, k) for k in range(len(inputs["x"]))]

        def variant(**options) -> Variant:
            compiled = tf.function(run, **options)

            def call(k):
                grads = compiled(*feeds[k])
                grads[-1].numpy()  # read before the clock stops
                return grads

            return Variant(call, read, family="padded")

        def read(grads):
            found = {"dx": grads[0].numpy().transpose(1, 0, 2)}
            for n, suffix in enumerate(suffixes):
                found |= _from_keras(row, [g.numpy() for g in grads[1 + 3 * n : 4 + 3 * n]], suffix)
            return found

        return {"graph": variant(), "xla": variant(jit_compile=True)}

    ragged = train


def _build(row: Row, weights: Arrays) -> tuple[list, list[str]]:
    """The stack of layers, and the suffix of each set of weights in the order of their variables."""
    layers, suffixes = [], []
    for k in range(row.L):
        options = {"reset_after": True} if row.cell == "GRU" else {}
        layer = _LAYERS[row.cell](row.H, return_sequences=True, **options)
        layer = keras.layers.Bidirectional(layer) if row.D == 2 else layer
        layer.build((row.B, row.T, row.inputs_of(k)))
        own = [f"_l{k}", f"_l{k}_reverse"][: row.D]
        layer.set_weights([array for suffix in own for array in _to_keras(row, weights, suffix)])
        layers.append(layer)
        suffixes += own
    return layers, suffixes


def _feed(row: Row, inputs: Arrays, k: int) -> tuple:
    """x, initial states of each layer, dy and mask of input k, batch first."""
    x, dy = (tf.constant(inputs[key][k].transpose(1, 0, 2)) for key in ("x", "dy"))
    names = [key for key in ("h0", "c0") if key in inputs]
    states = [
        [tf.constant(inputs[name][k, layer * row.D + d]) for d in range(row.D) for name in names]
        for layer in range(row.L)
    ]
    masked = row.kind == "ragged" and row.D == 2
    return x, states, dy, tf.constant(np.arange(row.T) < inputs["lengths"][k][:, None]) if masked else None
