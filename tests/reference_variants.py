"""Variants of the recurrent layers in plain float64 NumPy, forward only: gradients are held against its differences.

One sequence and one step at a time, as reference.py, whose names it shares. `masks` is what `tape.variant_masks` of a
layer holds: for each option a list of one array for each direction of each layer. Sources: Merity et al. 2018
(weight_drop), Gal & Ghahramani 2016 (recurrent_dropout), Krueger et al. 2017 (zoneout), Ba et al. 2016 (layer_norm).
"""

from __future__ import annotations

import numpy as np
from reference import Weights, relu, sigmoid, steps, suffix


def normalise(a, gain, shift):
    """Layer normalisation of one gate."""
    return (a - a.mean()) / np.sqrt(a.var() + 1e-5) * gain + shift


class Norms:
    """The layer normalisations of one direction; without parameters each is the identity."""

    def __init__(self, params, end):
        self.params, self.end = params, end

    def _one(self, which, a, gate):
        gain = self.params.get(f"weight_ln_{which}{self.end}")
        if gain is None:
            return a
        part = slice(gate * len(a), (gate + 1) * len(a))
        return normalise(a, gain[part], self.params[f"bias_ln_{which}{self.end}"][part])

    def gates(self, which, a, count, first=0):
        return [self._one(which, part, first + n) for n, part in enumerate(np.split(a, count))]

    def cell(self, c):
        return self._one("c", c, 0)


def rnn(act, w, norms, x, hm, h):
    (a,), (q,) = norms.gates("ih", w.W @ x + w.b, 1), norms.gates("hh", w.R @ hm + w.d, 1)
    return (act(a + q),)


def lstm(w, norms, x, hm, h, c):
    a, q = norms.gates("ih", w.W @ x + w.b, 4), norms.gates("hh", w.R @ hm + w.d, 4)
    i, f, g, o = (one + other for one, other in zip(a, q))
    c1 = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    m = sigmoid(o) * np.tanh(norms.cell(c1))
    return m if w.M is None else w.M @ m, c1


def gru(w, norms, x, hm, h):
    a, q = norms.gates("ih", w.W @ x + w.b, 3), norms.gates("hh", w.R @ hm + w.d, 3)
    r, z = sigmoid(a[0] + q[0]), sigmoid(a[1] + q[1])
    return ((1 - z) * np.tanh(a[2] + r * q[2]) + z * h,)


def gru_v1(w, norms, x, hm, h):
    """The reset gate before the product."""
    H = len(h)
    a = norms.gates("ih", w.W @ x + w.b, 3)
    q = norms.gates("hh", w.R[: 2 * H] @ hm + w.d[: 2 * H], 2)
    r, z = sigmoid(a[0] + q[0]), sigmoid(a[1] + q[1])
    (n,) = norms.gates("hh", w.R[2 * H :] @ (r * hm) + w.d[2 * H :], 1, first=2)
    return ((1 - z) * np.tanh(a[2] + n) + z * h,)


CELLS = {
    "rnn_tanh": lambda *args: rnn(np.tanh, *args),
    "rnn_relu": lambda *args: rnn(relu, *args),
    "lstm": lstm,
    "gru": gru,
    "gru_v1": gru_v1,
}


def mixed(before, after, masks, k, row, t, zoneout):
    """Zoneout: what stays of each state, by its mask (1 where the new value is taken) or in expectation."""
    states = []
    for name, old, new in zip(("zoneout_h", "zoneout_c"), before, after):
        take = masks[name][k][t, row] if name in masks else 1 - zoneout
        states.append(take * new + (1 - take) * old)
    return tuple(states)


def forward(kind, params, x, state, lengths, masks, between=None, zoneout=0.0):
    """x (T, B, I), state a tuple of (L*D, B, .), lengths (B,), `between` the dropout masks between the layers.

    Returns y (T, B, D*P) and the final state.
    """
    num_layers = sum(key.startswith("weight_ih") and not key.endswith("_reverse") for key in params)
    directions = 2 if "weight_ih_l0_reverse" in params else 1
    final, below = tuple(np.array(s) for s in state), x
    P = final[0].shape[2]
    for layer in range(num_layers):
        y = np.zeros((*x.shape[:2], directions * P))
        for direction in range(directions):
            k, end = layer * directions + direction, suffix(layer, direction)
            w, norms = Weights.read(params, end), Norms(params, end)
            if "weight_drop" in masks:
                w.R = w.R * masks["weight_drop"][k]
            for row in range(x.shape[1]):
                s = tuple(f[k, row].copy() for f in final)
                drop = masks["recurrent_dropout"][k][row] if "recurrent_dropout" in masks else 1.0
                for t in steps(lengths[row], direction):
                    s = mixed(s, CELLS[kind](w, norms, below[t, row], drop * s[0], *s), masks, k, row, t, zoneout)
                    y[t, row, direction * P : (direction + 1) * P] = s[0]
                for f, one in zip(final, s):
                    f[k, row] = one
        below = y if between is None or layer == num_layers - 1 else y * between[layer]
    return y, final
