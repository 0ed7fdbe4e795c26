"""The recurrent layers in plain float64 NumPy, written to be read beside the equations.

One sequence at a time, one step at a time, forward and backward side by side; nothing is fused, packed or
reordered. rnn_core is held against this file, and this file against central differences (test_reference.py)
and against PyTorch (peers/test_recurrent_torch.py).

Dims: T steps, B batch, I input, H hidden, P output of a cell (proj_size, else H), L layers, D directions, G gates.
Names: W input-to-hidden (G*H, I) with bias b, R hidden-to-hidden (G*H, P) with bias d, M projection (P, H).
Gates: i, f, g, o (LSTM) and r, z, n (GRU). `d*` is the gradient of *, and gradients are added to.

Sources: Elman 1990 (RNN); Hochreiter & Schmidhuber 1997 with Gers' forget gate 2000 (LSTM); Sak et al. 2014
(projection); Cho et al. 2014, arXiv:1406.1078v1 with the reset gate before the product (v3 after it) (GRU).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# ---- Activations ---------------------------------------------------------------------------------------------------


def sigmoid(a):
    return np.exp(-np.logaddexp(0.0, -a))  # 1 / (1 + exp(-a)) that does not overflow


def relu(a):
    return np.maximum(a, 0.0)


# ---- Weights of one layer in one direction -------------------------------------------------------------------------


@dataclass
class Weights:
    W: np.ndarray  # (G*H, I)
    R: np.ndarray  # (G*H, P)
    b: np.ndarray  # (G*H,)
    d: np.ndarray  # (G*H,)
    M: np.ndarray | None  # (P, H); without projection M is the identity

    @classmethod
    def read(cls, params, suffix=""):
        """From PyTorch's keys, e.g. suffix "_l0_reverse"; a cell's keys have none. Absent biases are zero."""
        params = {key: np.asarray(value, np.float64) for key, value in params.items()}
        W = params["weight_ih" + suffix]
        zero = np.zeros(len(W))
        return cls(
            W,
            params["weight_hh" + suffix],
            params.get("bias_ih" + suffix, zero),
            params.get("bias_hh" + suffix, zero),
            params.get("weight_hr" + suffix),
        )

    def zeros_like(self):
        arrays = (self.W, self.R, self.b, self.d, self.M)
        return Weights(*(None if a is None else np.zeros_like(a) for a in arrays))

    def write(self, params, suffix=""):
        """The gradients under PyTorch's keys, those that `params` has."""
        names = {"weight_ih": self.W, "weight_hh": self.R, "bias_ih": self.b, "bias_hh": self.d, "weight_hr": self.M}
        return {name + suffix: value for name, value in names.items() if name + suffix in params}


# ---- Cells: one step of one sequence, forward and backward ---------------------------------------------------------
# step:          x (I,), state -> state, kept         state is (h,), or (h, c) for LSTM
# step_backward: kept, dstate  -> dx (I,), dstate     adds into dw


class RNN:
    """h' = act(W x + b + R h + d)"""

    gates, states = 1, 1

    def __init__(self, nonlinearity="tanh"):
        self.act = {"tanh": np.tanh, "relu": relu}[nonlinearity]
        self.slope = {"tanh": lambda h: 1 - h * h, "relu": lambda h: (h > 0) * 1.0}[nonlinearity]

    def step(self, w, x, h):
        h1 = self.act(w.W @ x + w.b + w.R @ h + w.d)
        return (h1,), (x, h, h1)

    def step_backward(self, w, dw, kept, dh1):
        x, h, h1 = kept
        da = dh1 * self.slope(h1)
        dw.W += np.outer(da, x)
        dw.R += np.outer(da, h)
        dw.b += da
        dw.d += da
        return w.W.T @ da, (w.R.T @ da,)


class LSTM:
    """i, f, o = sigmoid(W x + b + R h + d), g = tanh(W x + b + R h + d);  c' = f c + i g;  h' = M (o tanh(c'))"""

    gates, states = 4, 2

    def step(self, w, x, h, c):
        i, f, g, o = np.split(w.W @ x + w.b + w.R @ h + w.d, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c1 = f * c + i * g
        m = o * np.tanh(c1)
        h1 = m if w.M is None else w.M @ m
        return (h1, c1), (x, h, c, i, f, g, o, c1, m)

    def step_backward(self, w, dw, kept, dh1, dc1):
        x, h, c, i, f, g, o, c1, m = kept
        if w.M is None:
            dm = dh1
        else:
            dm = w.M.T @ dh1
            dw.M += np.outer(dh1, m)
        dc1 = dc1 + dm * o * (1 - np.tanh(c1) ** 2)
        do = dm * np.tanh(c1)
        di, df, dg = dc1 * g, dc1 * c, dc1 * i
        da = np.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)])
        dw.W += np.outer(da, x)
        dw.R += np.outer(da, h)
        dw.b += da
        dw.d += da
        return w.W.T @ da, (w.R.T @ da, dc1 * f)


class GRU:
    """r, z = sigmoid(W x + b + R h + d);  h' = (1 - z) n + z h

    reset_after:  n = tanh(W x + b + r (R h + d))
    else:         n = tanh(W x + b + R (r h) + d)
    """

    gates, states = 3, 1

    def __init__(self, reset_after=True):
        self.reset_after = reset_after

    def step(self, w, x, h):
        H = len(h)
        a = w.W @ x + w.b
        r, z = np.split(sigmoid(a[: 2 * H] + w.R[: 2 * H] @ h + w.d[: 2 * H]), 2)
        R, d = w.R[2 * H :], w.d[2 * H :]
        if self.reset_after:
            q = R @ h + d
            n = np.tanh(a[2 * H :] + r * q)
        else:
            q = r * h
            n = np.tanh(a[2 * H :] + R @ q + d)
        return ((1 - z) * n + z * h,), (x, h, r, z, n, q)

    def step_backward(self, w, dw, kept, dh1):
        x, h, r, z, n, q = kept
        H = len(h)
        R = w.R[2 * H :]
        dz = dh1 * (h - n) * z * (1 - z)
        dn = dh1 * (1 - z) * (1 - n * n)
        dh = dh1 * z
        if self.reset_after:
            dr = dn * q * r * (1 - r)
            dq = dn * r
            dw.R[2 * H :] += np.outer(dq, h)
            dw.d[2 * H :] += dq
            dh += R.T @ dq
        else:
            dq = R.T @ dn
            dr = dq * h * r * (1 - r)
            dw.R[2 * H :] += np.outer(dn, q)
            dw.d[2 * H :] += dn
            dh += dq * r
        drz = np.concatenate([dr, dz])
        dw.R[: 2 * H] += np.outer(drz, h)
        dw.d[: 2 * H] += drz
        da = np.concatenate([drz, dn])
        dw.W += np.outer(da, x)
        dw.b += da
        return w.W.T @ da, (dh + w.R[: 2 * H].T @ drz,)


# ---- Layers: stacked, bidirectional, ragged ------------------------------------------------------------------------


@dataclass
class Tape:
    """What backward needs: `kept[layer, direction, row, t]` of every step, and the arguments."""

    cell: object
    params: dict
    masks: list | None
    lengths: np.ndarray
    num_layers: int
    directions: int
    x: np.ndarray
    all_states: list = field(default_factory=list)  # a list of (L*D, T, B, H or P) arrays: h, and c for LSTM
    kept: dict = field(default_factory=dict)


def suffix(layer, direction):
    return f"_l{layer}" + ("_reverse" if direction else "")


def steps(length, direction):
    """The time steps in the order in which a direction takes them."""
    return range(length - 1, -1, -1) if direction else range(length)


def zero_state(cell, params, num_layers, directions, batch):
    """(h,) or (h, c), each (L*D, B, P or H)."""
    R = params["weight_hh_l0"]
    sizes = (R.shape[1], len(R) // cell.gates)[: cell.states]
    return tuple(np.zeros((num_layers * directions, batch, n)) for n in sizes)


def forward(cell, params, x, state=None, lengths=None, masks=None):
    """x (T, B, I), state a tuple of (L*D, B, .), lengths (B,), masks L-1 factors (T, B, D*P) between the layers.

    Returns y (T, B, D*P), state and tape. Outputs past a sequence's end are zero; its final state is the one
    after its last step (its initial state when it has none).
    """
    num_layers = sum(key.startswith("weight_ih") and not key.endswith("_reverse") for key in params)
    directions = 2 if "weight_ih_l0_reverse" in params else 1
    T, B, _ = x.shape
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    initial = zero_state(cell, params, num_layers, directions, B) if state is None else state
    final = tuple(np.array(s, np.float64) for s in initial)
    tape = Tape(cell, params, masks, lengths, num_layers, directions, np.asarray(x, np.float64))
    tape.all_states = [np.zeros((s.shape[0], T, *s.shape[1:])) for s in final]
    P = final[0].shape[2]
    below = tape.x
    for layer in range(num_layers):
        y = np.zeros((T, B, directions * P))
        for direction in range(directions):
            k = layer * directions + direction
            w = Weights.read(params, suffix(layer, direction))
            for row in range(B):
                s = tuple(f[k, row].copy() for f in final)
                for t in steps(lengths[row], direction):
                    s, tape.kept[layer, direction, row, t] = cell.step(w, below[t, row], *s)
                    y[t, row, direction * P : (direction + 1) * P] = s[0]
                    for all_of, one in zip(tape.all_states, s):
                        all_of[k, t, row] = one
                for f, one in zip(final, s):
                    f[k, row] = one
        below = y if masks is None or layer == num_layers - 1 else y * masks[layer]
    return y, final, tape


def backward(tape, dy, dstate=None):
    """dy (T, B, D*P), dstate a tuple as the final state. Returns dx (T, B, I), dstate of the initial state, grads."""
    cell, directions = tape.cell, tape.directions
    T, B, _ = tape.x.shape
    if dstate is None:
        dstate = zero_state(cell, tape.params, tape.num_layers, directions, B)
    dinitial = tuple(np.array(s, np.float64) for s in dstate)
    P = dinitial[0].shape[2]
    grads = {}
    dabove = np.asarray(dy, np.float64)
    for layer in reversed(range(tape.num_layers)):
        dbelow = 0.0
        for direction in range(directions):
            k = layer * directions + direction
            w = Weights.read(tape.params, suffix(layer, direction))
            dw = w.zeros_like()
            dx = np.zeros((T, B, w.W.shape[1]))
            for row in range(B):
                ds = tuple(s[k, row].copy() for s in dinitial)
                for t in reversed(steps(tape.lengths[row], direction)):
                    dh = ds[0] + dabove[t, row, direction * P : (direction + 1) * P]
                    dx[t, row], ds = cell.step_backward(w, dw, tape.kept[layer, direction, row, t], dh, *ds[1:])
                for s, one in zip(dinitial, ds):
                    s[k, row] = one
            grads.update(dw.write(tape.params, suffix(layer, direction)))
            dbelow = dbelow + dx
        dabove = dbelow if tape.masks is None or layer == 0 else dbelow * tape.masks[layer - 1]
    return dabove, dinitial, grads


# ---- Cells over a batch: the keys have no suffix -------------------------------------------------------------------


def cell_forward(cell, params, x, state):
    """x (B, I), state a tuple of (B, H): the next state, and what cell_backward needs."""
    w = Weights.read(params)
    state = tuple(np.asarray(s, np.float64) for s in state)
    rows = [cell.step(w, x_row, *s) for x_row, *s in zip(np.asarray(x, np.float64), *state)]
    after = tuple(np.array([row[0][n] for row in rows]).reshape(state[n].shape) for n in range(cell.states))
    return after, (cell, params, w, [kept for _, kept in rows])


def cell_backward(tape, dstate):
    """dstate a tuple of (B, H). Returns dx (B, I), dstate of the step's initial state, grads."""
    cell, params, w, rows = tape
    dw = w.zeros_like()
    outs = [cell.step_backward(w, dw, kept, *ds) for kept, *ds in zip(rows, *dstate)]
    dx = np.array([dx for dx, _ in outs]).reshape(len(rows), w.W.shape[1])
    before = tuple(np.array([ds[n] for _, ds in outs]).reshape(np.shape(dstate[n])) for n in range(cell.states))
    return dx, before, dw.write(params)
