"""JAX: jit and lax.scan, the input projection hoisted out of the loop."""

from __future__ import annotations

import os

import numpy as np

from .. import engine
from ..engine import Arrays, Unsupported, Variant
from ..rows import Row


def _limit_threads(threads: int) -> None:
    """XLA takes as many threads as the affinity mask has CPUs; one thread needs no pool at all."""
    if threads == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"


class Engine(engine.Engine):
    name = "jax"

    def __init__(self, threads: int):
        super().__init__(threads)
        _limit_threads(threads)
        import jax

        self._jax = jax

    def version(self) -> str:
        return self._jax.__version__

    # ---- The layers as functions of (weights, x, state) ----

    def _step(self, cell: str):
        """(R, d), projected input, state -> next state; states are tuples."""
        jax, jnp = self._jax, self._jax.numpy

        def lstm(R, d, a, h, c):
            i, f, g, o = jnp.split(a + h @ R.T, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return jax.nn.sigmoid(o) * jnp.tanh(c), c

        def gru(R, d, a, h):
            # The barrier keeps XLA from fusing the product into the gates, which is up to 8 times slower at batch 1.
            q = jax.lax.optimization_barrier(h @ R.T) + d
            (ar, az, an), (qr, qz, qn) = jnp.split(a, 3, axis=-1), jnp.split(q, 3, axis=-1)
            r, z = jax.nn.sigmoid(ar + qr), jax.nn.sigmoid(az + qz)
            n = jnp.tanh(an + r * qn)
            return ((1 - z) * n + z * h,)

        def rnn(R, d, a, h):
            return (jnp.tanh(a + h @ R.T),)

        return {"LSTM": lstm, "GRU": gru, "RNN": rnn}[cell]

    def _run(self, row: Row, w, x, state, lengths=None):
        """y (T, B, D*H) and the final states, each (L*D, B, H). lengths (B,): a step past the end changes nothing."""
        jnp, step = self._jax.numpy, self._step(row.cell)
        final = []
        for layer in range(row.L):
            outs = []
            for direction in range(row.D):
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                W, R, b, d = (w[key + suffix] for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
                a = x @ W.T + (b if row.cell == "GRU" else b + d)
                first = tuple(s[layer * row.D + direction] for s in state)

                def body(s, item, R=R, d=d):
                    after = step(R, d, item[0], *s)
                    if lengths is not None:
                        after = tuple(jnp.where(item[1], new, old) for new, old in zip(after, s))
                    return after, after[0]

                mask = None if lengths is None else (jnp.arange(row.T)[:, None] < lengths)[..., None]
                last, y = self._jax.lax.scan(body, first, (a, mask), reverse=bool(direction))
                outs.append(y)
                final.append(last)
            x = jnp.concatenate(outs, -1) if row.D == 2 else outs[0]
        return x, tuple(jnp.stack(parts) for parts in zip(*final))

    def _held(self, row: Row, weights: Arrays, inputs: Arrays):
        jnp = self._jax.numpy
        w = {key: jnp.asarray(a) for key, a in weights.items()}
        x = [jnp.asarray(one) for one in inputs["x"]]
        names = [key for key in ("h0", "c0") if key in inputs]
        return w, x, [tuple(jnp.asarray(inputs[key][k]) for key in names) for k in range(len(x))]

    # ---- The rows ----

    def layer(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        w, x, states = self._held(row, weights, inputs)
        run = self._jax.jit(lambda w, x, state: self._run(row, w, x, state))
        wait = self._jax.block_until_ready

        def read(result):
            return {"y": np.array(result[0])} | {n: np.array(s) for n, s in zip(("h", "c"), result[1])}

        return {"scan": Variant(lambda k: wait(run(w, x[k], states[k])), read)}

    def train(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        jnp = self._jax.numpy
        w, x, states = self._held(row, weights, inputs)
        dy = [jnp.asarray(one) for one in inputs["dy"]]
        # The masked dy is enough where the padding comes last; the reverse direction starts in it.
        masked = row.kind == "ragged" and row.D == 2
        lengths = [jnp.asarray(one) for one in inputs["lengths"]] if masked else [None] * len(x)

        def loss(w, x, state, dy, lengths):
            return jnp.vdot(self._run(row, w, x, state, lengths)[0], dy)

        run = self._jax.jit(self._jax.grad(loss, argnums=(0, 1)))
        wait = self._jax.block_until_ready

        def read(result):
            grads, dx = result
            return {f"d{key}": np.array(a) for key, a in grads.items()} | {"dx": np.array(dx)}

        return {"scan": Variant(lambda k: wait(run(w, x[k], states[k], dy[k], lengths[k])), read, family="padded")}

    ragged = train

    def step(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        raise Unsupported("single steps are compared with torch's cells and ONNX Runtime")
