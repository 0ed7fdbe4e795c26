"""Faults that the suite must notice: each is one edit of the reference's source, run as if it were an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# (what the engine gets wrong, text of reference.py that stands there once, what it becomes)
MUTATIONS = [
    ("GRU: update and reset rows of W swapped", "Wz, Wr, Wh = np.split(W, 3)", "Wr, Wz, Wh = np.split(W, 3)"),
    ("GRU: update and reset rows of R swapped", "Rz, Rr, Rh = np.split(R, 3)", "Rr, Rz, Rh = np.split(R, 3)"),
    ("GRU: biases in torch's order", "Wbz, Wbr, Wbh = np.split(Wb, 3)", "Wbr, Wbz, Wbh = np.split(Wb, 3)"),
    ("GRU: recurrent bias outside the reset", "r * (Rh @ h + Rbh) + Wbh", "r * (Rh @ h) + Rbh + Wbh"),
    ("GRU: recurrent bias dropped", "Rh @ (r * h) + Rbh + Wbh", "Rh @ (r * h) + Wbh"),
    ("GRU: linear_before_reset ignored", 'attributes.get("linear_before_reset", 0) != 0', "False"),
    ("GRU: linear_before_reset always", 'attributes.get("linear_before_reset", 0) != 0', "True"),
    ("GRU: update gate turned round", "(1.0 - z) * n + z * h", "z * n + (1.0 - z) * h"),
    ("LSTM: output and forget rows of W swapped", "Wi, Wo, Wf, Wc = np.split(W, 4)", "Wi, Wf, Wo, Wc = np.split(W, 4)"),
    ("LSTM: forget and cell rows of R swapped", "Ri, Ro, Rf, Rc = np.split(R, 4)", "Ri, Ro, Rc, Rf = np.split(R, 4)"),
    ("LSTM: input bias of the forget gate dropped", "Pf * c + Wbf + Rbf", "Pf * c + Rbf"),
    ("LSTM: output peephole sees the old cell", "Po * C + Wbo", "Po * c + Wbo"),
    ("LSTM: peepholes in the order i, f, o", "Pi, Po, Pf = np.split(P, 3)", "Pi, Pf, Po = np.split(P, 3)"),
    ("LSTM: forget peephole left out", "Rf @ h + Pf * c", "Rf @ h"),
    ("LSTM: input_forget ignored", 'attributes.get("input_forget", 0) != 0', "False"),
    ("LSTM: input_forget couples the other way", "forget = 1.0 - i", "i = 1.0 - forget"),
    ("LSTM: h is always tanh", "o * act_h(C)", "o * np.tanh(C)"),
    ("LSTM: h sees a clipped cell", "o * act_h(C)", "o * act_h(clip(C))"),
    ("RNN: recurrent bias dropped", "f(clip(W @ x + R @ h + Wb + Rb))", "f(clip(W @ x + R @ h + Wb))"),
    ("RNN: clip after the activation", "f(clip(W @ x + R @ h + Wb + Rb))", "clip(f(W @ x + R @ h + Wb + Rb))"),
    ("RNN: bias added after the clip", "f(clip(W @ x + R @ h + Wb + Rb))", "f(clip(W @ x + R @ h) + Wb + Rb)"),
    (
        "GRU: clip after the activation",
        "z = f(clip(Wz @ x + Rz @ h + Wbz + Rbz))",
        "z = clip(f(Wz @ x + Rz @ h + Wbz + Rbz))",
    ),
    ("clip ignored", "return np.clip(x, -bound, bound)", "return x"),
    ("clip from above only", "return np.clip(x, -bound, bound)", "return np.minimum(x, bound)"),
    (
        "reverse starts at the padded end",
        "reversed(times) if reverse else times",
        "reversed(range(T)) if reverse else times",
    ),
    ("reverse runs forward", "reversed(times) if reverse else times", "times"),
    ("bidirectional: second direction runs forward", "reverse = d == 1 or attributes", "reverse = attributes"),
    ("lengths ignored", "times = range(lengths[b])", "times = range(T)"),
    ("final state read at the padded end", "Y_h[d, b], Y_c[d, b] = h, c", "Y_h[d, b], Y_c[d, b] = Y[T - 1, d, b], c"),
    ("initial_h ignored", "h, c = H0[d, b], C0[d, b]", "h, c = np.zeros(H), C0[d, b]"),
    ("initial_c ignored", "h, c = H0[d, b], C0[d, b]", "h, c = H0[d, b], np.zeros(H)"),
    ("second direction starts from the first one's state", "h, c = H0[d, b], C0[d, b]", "h, c = H0[0, b], C0[0, b]"),
    ("length 0 gives a zero state", "h, c = H0[d, b], C0[d, b]", "h, c = H0[d, b] * (lengths[b] > 0), C0[d, b]"),
    ("second direction takes the first one's R", "W[d], R[d], Wb", "W[d], R[0], Wb"),
    ("second direction takes the first one's activations", "functions[d * each : (d + 1) * each]", "functions[:each]"),
    ("alphas counted by position", "if alpha is not None and alphas:", "if alphas:"),
    ("betas ignored", "if beta is not None and betas:", "if False:"),
    ("LeakyRelu: another default", '"leakyrelu": (0.01,', '"leakyrelu": (0.1,'),
    ("HardSigmoid: Keras's default", '"hardsigmoid": (0.2,', '"hardsigmoid": (1 / 6,'),
    ("HardSigmoid: not clamped", "np.clip(a * x + b, 0.0, 1.0)", "a * x + b"),
    ("Elu: alpha ignored", "a * (np.exp(x) - 1.0)", "np.exp(x) - 1.0"),
    ("ScaledTanh: beta outside", "a * np.tanh(b * x)", "a * b * np.tanh(x)"),
    ("Softsign: square for absolute", "x / (1.0 + np.abs(x))", "x / (1.0 + x * x)"),
    ("ThresholdedRelu: shifted", "np.where(x >= a, x, 0.0)", "np.where(x >= a, x - a, 0.0)"),
    ("layout 1: state reshaped, not transposed", "[state.transpose(1, 0, 2) if", "[state.reshape(D, B, H) if"),
    (
        "layout 1: Y_h left as in layout 0",
        "Y.transpose(2, 0, 1, 3), Y_h.transpose(1, 0, 2)",
        "Y.transpose(2, 0, 1, 3), Y_h",
    ),
]


def mutant(old: str, new: str) -> Any:
    """run_node of a reference whose one `old` is `new`; ValueError unless `old` stands there once."""
    source = Path(__file__).with_name("reference.py").read_text(encoding="utf-8")
    if source.count(old) != 1:
        raise ValueError(f"mutation: expected one {old!r} in reference.py, found {source.count(old)}")
    space: dict[str, Any] = {"__name__": "mutant"}
    exec(compile(source.replace(old, new), "mutant of reference.py", "exec"), space)
    return space["run_node"]
