"""Random ONNX nodes with recurrent operators: every attribute, optional input and output, with weights that tell the
gates apart. Case number n is the same everywhere and for ever: it depends on nothing but n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .reference import ACTIVATIONS, DEFAULTS, GATES, run_node

INPUTS = {
    "RNN": ["X", "W", "R", "B", "sequence_lens", "initial_h"],
    "GRU": ["X", "W", "R", "B", "sequence_lens", "initial_h"],
    "LSTM": ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"],
}
OUTPUTS = {"RNN": ["Y", "Y_h"], "GRU": ["Y", "Y_h"], "LSTM": ["Y", "Y_h", "Y_c"]}
WEIGHTS = ("W", "R", "B", "P")
SPELLING = (
    *("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu"),
    *("ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus"),
)
# Gates that leave 0..1 would let states grow beyond what float32 compares well.
BOUNDED = ("Sigmoid", "HardSigmoid", "Softsign", "Tanh")


@dataclass
class Case:
    """One node: op, attributes and inputs (float32, sequence_lens int32); outputs names the ones asked for."""

    number: int
    op: str
    attributes: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: list[str]

    def expected(self, run: Callable[..., dict[str, np.ndarray]] = run_node) -> dict[str, np.ndarray]:
        """The float64 reference's outputs, those asked for."""
        found = run(self.op, self.attributes, self.inputs)
        return {name: found[name] for name in self.outputs}

    def fed(self) -> dict[str, np.ndarray]:
        """The graph's inputs; the weights are initializers in even cases and inputs in odd ones."""
        if self.number % 2:
            return self.inputs
        return {name: value for name, value in self.inputs.items() if name not in WEIGHTS}

    def model(self) -> Any:
        """The node as an onnx.ModelProto."""
        from onnx import TensorProto, helper, numpy_helper

        def trimmed(names: list[str], present: Any) -> list[str]:
            names = [name if name in present else "" for name in names]
            while names and not names[-1]:
                names.pop()
            return names

        names = trimmed(INPUTS[self.op], self.inputs)
        node = helper.make_node(self.op, names, trimmed(OUTPUTS[self.op], self.outputs), **self.attributes)
        fed = self.fed()
        kinds = {"sequence_lens": TensorProto.INT32}
        graph = helper.make_graph(
            [node],
            f"case_{self.number}",
            [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), v.shape) for n, v in fed.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in self.expected().items()],
            [numpy_helper.from_array(v, name) for name, v in self.inputs.items() if name not in fed],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)

    def __str__(self) -> str:
        given = ", ".join(name for name in self.inputs if name not in ("X", "W", "R"))
        x = self.inputs["X"].shape
        return f"case {self.number}: {self.op} X {x} {self.attributes} with {given or 'nothing optional'}"


def _activations(rng: np.random.Generator, op: str, directions: int) -> dict[str, Any]:
    """The attributes of freely drawn activations: gates bounded, values given for those that take them."""
    names, alphas, betas = [], [], []
    for _ in range(directions):
        for position in range(len(DEFAULTS[op])):
            gate = position == 0 and op != "RNN"
            name = str(rng.choice(BOUNDED if gate else SPELLING))
            names.append(name)
            alpha, beta, _function = ACTIVATIONS[name.lower()]
            if alpha is not None:
                alphas.append(round(float(rng.uniform(0.2, 0.9)), 3))
            if beta is not None:
                betas.append(round(float(rng.uniform(0.2, 0.9)), 3))
    found: dict[str, Any] = {"activations": names}
    if alphas:
        found["activation_alpha"] = alphas
    if betas:
        found["activation_beta"] = betas
    if rng.random() < 0.2 and all(name not in ("Affine", "ScaledTanh", "ThresholdedRelu") for name in names):
        found = {"activations": names}  # the operators' own defaults
    return found


def _attributes(rng: np.random.Generator, op: str, directions: int, hidden: int) -> dict[str, Any]:
    found: dict[str, Any] = {"hidden_size": hidden}
    if directions == 2:
        found["direction"] = "bidirectional"
    elif rng.random() < 0.4:
        found["direction"] = "reverse"
    if rng.random() < 0.4:
        found.update(_activations(rng, op, directions))
    if rng.random() < 0.3:
        found["clip"] = round(float(rng.uniform(0.2, 1.0)), 3)
    if rng.random() < 0.3:
        found["layout"] = 1
    if op == "GRU" and rng.random() < 0.6:
        found["linear_before_reset"] = 1
    if op == "LSTM" and rng.random() < 0.3:
        found["input_forget"] = 1
    return found


def _inputs(
    rng: np.random.Generator, op: str, directions: int, hidden: int, batch_first: bool
) -> dict[str, np.ndarray]:
    T, B, I = (int(rng.integers(1, high)) for high in (8, 5, 6))
    G = GATES[op]

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    state = (B, directions, hidden) if batch_first else (directions, B, hidden)
    found = {
        "X": normal(*((B, T, I) if batch_first else (T, B, I))),
        "W": normal(directions, G * hidden, I, scale=I**-0.5),
        "R": normal(directions, G * hidden, hidden, scale=hidden**-0.5),
    }
    if rng.random() < 0.8:
        found["B"] = normal(directions, 2 * G * hidden, scale=0.5)
    if rng.random() < 0.5:
        found["sequence_lens"] = rng.integers(0 if rng.random() < 0.3 else 1, T + 1, B).astype(np.int32)
    if rng.random() < 0.5:
        found["initial_h"] = normal(*state)
    if op == "LSTM" and rng.random() < 0.5:
        found["initial_c"] = normal(*state)
    if op == "LSTM" and rng.random() < 0.5:
        found["P"] = normal(directions, 3 * hidden, scale=0.5)
    return found


def case(number: int) -> Case:
    """Case `number` (>= 0): the operators take turns, everything else is drawn."""
    rng = np.random.default_rng([2026, number])
    op = ("RNN", "GRU", "LSTM")[number % 3]
    directions = int(rng.integers(1, 3))
    hidden = int(rng.integers(1, 8)) if rng.random() < 0.9 else int(rng.integers(16, 40))
    attributes = _attributes(rng, op, directions, hidden)
    inputs = _inputs(rng, op, directions, hidden, attributes.get("layout") == 1)
    outputs = [name for name in OUTPUTS[op] if rng.random() < 0.8] or ["Y"]
    return Case(number, op, attributes, inputs, outputs)


def cases(count: int = 600) -> list[Case]:
    """The first `count` cases."""
    return [case(number) for number in range(count)]
