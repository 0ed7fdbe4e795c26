"""ONNX's RNN, GRU and LSTM operators in plain float64 NumPy: one sequence and one step at a time.

Written from the operators' specification (https://onnx.ai/onnx/operators/, version 22) to be read beside it, and
knowing nothing of any engine. Where the text leaves room, this is what it takes:
- clip bounds the input of the gates' activations (f and g), after peepholes and biases, not that of h, as ONNX Runtime;
- input_forget sets the forget gate to 1 - i; its own weights, bias and peephole are read by nobody;
- alphas and betas are consumed, in order, by the activations that have them;
- Y is zero past a sequence's end; Y_h and Y_c are the state after its last real step, the initial one at length 0;
- the reverse direction starts at each sequence's own last step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Array = np.ndarray
ACTIVATIONS: dict[str, tuple[float | None, float | None, Callable[..., Array]]] = {
    # name: (default alpha, default beta, function); None where the activation has no such value
    "relu": (None, None, lambda x, a, b: np.maximum(x, 0.0)),
    "tanh": (None, None, lambda x, a, b: np.tanh(x)),
    "sigmoid": (None, None, lambda x, a, b: 1.0 / (1.0 + np.exp(-x))),
    "affine": (1.0, 0.0, lambda x, a, b: a * x + b),
    "leakyrelu": (0.01, None, lambda x, a, b: np.where(x >= 0.0, x, a * x)),
    "thresholdedrelu": (1.0, None, lambda x, a, b: np.where(x >= a, x, 0.0)),
    "scaledtanh": (1.0, 1.0, lambda x, a, b: a * np.tanh(b * x)),
    "hardsigmoid": (0.2, 0.5, lambda x, a, b: np.clip(a * x + b, 0.0, 1.0)),
    "elu": (1.0, None, lambda x, a, b: np.where(x >= 0.0, x, a * (np.exp(x) - 1.0))),
    "softsign": (None, None, lambda x, a, b: x / (1.0 + np.abs(x))),
    "softplus": (None, None, lambda x, a, b: np.log1p(np.exp(x))),
}
DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def activations_of(op: str, attributes: dict[str, Any], directions: int) -> list[list[Callable[..., Array]]]:
    """For each direction the functions [f], [f, g] or [f, g, h]."""
    names = attributes.get("activations") or DEFAULTS[op] * directions
    alphas = list(attributes.get("activation_alpha", []))
    betas = list(attributes.get("activation_beta", []))
    functions: list[Callable[..., Array]] = []
    for name in names:
        alpha, beta, function = ACTIVATIONS[name.lower()]
        if alpha is not None and alphas:
            alpha = alphas.pop(0)
        if beta is not None and betas:
            beta = betas.pop(0)
        functions.append(partial(function, a=alpha, b=beta))
    each = len(DEFAULTS[op])
    return [functions[d * each : (d + 1) * each] for d in range(directions)]


# One step of one sequence in one direction: x (I,), h and c (H,), W (G*H, I), R (G*H, H), Wb and Rb (G*H,), P (3*H,) in
# the operator's order of gates; `acts` as activations_of gives them, `clip` a function, `attributes` the node's. Each
# returns the new (h, c), both (H,); an operator without c hands it on.


def rnn_step(x, h, c, W, R, Wb, Rb, P, acts, clip, attributes):  # type: ignore[no-untyped-def]
    """h = f(W x + R h + Wb + Rb)."""
    (f,) = acts
    return f(clip(W @ x + R @ h + Wb + Rb)), c


def gru_step(x, h, c, W, R, Wb, Rb, P, acts, clip, attributes):  # type: ignore[no-untyped-def]
    """Gates z, r, h; h = (1 - z) n + z h, with r before the product with Rh or, linear_before_reset, after it."""
    f, g = acts
    Wz, Wr, Wh = np.split(W, 3)
    Rz, Rr, Rh = np.split(R, 3)
    Wbz, Wbr, Wbh = np.split(Wb, 3)
    Rbz, Rbr, Rbh = np.split(Rb, 3)
    z = f(clip(Wz @ x + Rz @ h + Wbz + Rbz))
    r = f(clip(Wr @ x + Rr @ h + Wbr + Rbr))
    if attributes.get("linear_before_reset", 0) != 0:
        n = g(clip(Wh @ x + r * (Rh @ h + Rbh) + Wbh))
    else:
        n = g(clip(Wh @ x + Rh @ (r * h) + Rbh + Wbh))
    return (1.0 - z) * n + z * h, c


def lstm_step(x, h, c, W, R, Wb, Rb, P, acts, clip, attributes):  # type: ignore[no-untyped-def]
    """Gates i, o, f, c with peepholes P of i, o, f; C = f c + i g(.), h = o act_h(C)."""
    f, g, act_h = acts
    Wi, Wo, Wf, Wc = np.split(W, 4)
    Ri, Ro, Rf, Rc = np.split(R, 4)
    Wbi, Wbo, Wbf, Wbc = np.split(Wb, 4)
    Rbi, Rbo, Rbf, Rbc = np.split(Rb, 4)
    Pi, Po, Pf = np.split(P, 3)
    i = f(clip(Wi @ x + Ri @ h + Pi * c + Wbi + Rbi))
    forget = f(clip(Wf @ x + Rf @ h + Pf * c + Wbf + Rbf))
    if attributes.get("input_forget", 0) != 0:
        forget = 1.0 - i
    new = g(clip(Wc @ x + Rc @ h + Wbc + Rbc))
    C = forget * c + i * new
    o = f(clip(Wo @ x + Ro @ h + Po * C + Wbo + Rbo))
    return o * act_h(C), C


STEPS = {"RNN": rnn_step, "GRU": gru_step, "LSTM": lstm_step}


def run_node(op: str, attributes: dict[str, Any], inputs: dict[str, Array]) -> dict[str, Array]:
    """One node; inputs by ONNX's names: X, W, R and, unless left out, B, sequence_lens, initial_h, initial_c, P.

    Returns {"Y": ..., "Y_h": ..., "Y_c": ...}, the last for LSTM only, all float64.
    """
    given = {name: np.asarray(value, np.float64) for name, value in inputs.items() if value is not None}
    X, W, R = given["X"], given["W"], given["R"]
    D, H, GH = W.shape[0], R.shape[2], GATES[op] * R.shape[2]
    batch_first = attributes.get("layout", 0) == 1
    if batch_first:
        X = X.transpose(1, 0, 2)
    T, B = X.shape[:2]
    biases = given.get("B", np.zeros((D, 2 * GH)))
    peepholes = given.get("P", np.zeros((D, 3 * H)))
    lengths = given.get("sequence_lens", np.full(B, T)).astype(int)
    states = [given.get(name, np.zeros((B, D, H) if batch_first else (D, B, H))) for name in ("initial_h", "initial_c")]
    H0, C0 = [state.transpose(1, 0, 2) if batch_first else state for state in states]
    acts = activations_of(op, attributes, D)
    bound = attributes.get("clip", np.inf)

    def clip(x: Array) -> Array:
        return np.clip(x, -bound, bound)

    Y, Y_h, Y_c = np.zeros((T, D, B, H)), H0.copy(), C0.copy()
    for d in range(D):
        reverse = d == 1 or attributes.get("direction", "forward") == "reverse"
        Wb, Rb = biases[d, :GH], biases[d, GH:]
        for b in range(B):
            h, c = H0[d, b], C0[d, b]
            times = range(lengths[b])
            for t in reversed(times) if reverse else times:
                h, c = STEPS[op](X[t, b], h, c, W[d], R[d], Wb, Rb, peepholes[d], acts[d], clip, attributes)
                Y[t, d, b] = h
            Y_h[d, b], Y_c[d, b] = h, c
    if batch_first:
        Y, Y_h, Y_c = Y.transpose(2, 0, 1, 3), Y_h.transpose(1, 0, 2), Y_c.transpose(1, 0, 2)
    outputs = {"Y": Y, "Y_h": Y_h}
    if op == "LSTM":
        outputs["Y_c"] = Y_c
    return outputs
