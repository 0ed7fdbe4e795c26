"""ONNX models of the rows' layers, for the engines that run ONNX.

ONNX orders the gates i,o,f,c (LSTM) and z,r,h (GRU); torch i,f,g,o and r,z,n.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ..engine import Arrays
from ..rows import Row

_ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}


def _reorder(cell: str, array: np.ndarray) -> np.ndarray:
    """From torch's gate order to ONNX's along axis 0."""
    gates = np.split(array, len(_ORDER[cell]))
    return np.concatenate([gates[k] for k in _ORDER[cell]])


def _layer_weights(row: Row, weights: Arrays, layer: int) -> dict[str, np.ndarray]:
    """W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H) of one layer."""
    parts: dict[str, list[np.ndarray]] = {"W": [], "R": [], "B": []}
    for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: row.D]:
        w, r, b, d = (
            _reorder(row.cell, weights[key + suffix]) for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        parts["W"].append(w)
        parts["R"].append(r)
        parts["B"].append(np.concatenate([b, d]))
    return {key: np.stack(value) for key, value in parts.items()}


def build(row: Row, weights: Arrays, sequence: bool = True) -> bytes:
    """A model x, h0.. -> y, hn.. with fixed sizes.

    Per layer k: inputs h{k}, c{k} and outputs hn{k}, cn{k}, each (D, B, H). y is (T, D, B, H) as ONNX has it,
    the same memory as (T, B, H) for one direction; without `sequence` only the states are outputs.
    """
    nodes, held, ins, outs = [], [], [], []

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    ins.append(value("x", row.T, row.B, row.I))
    below = "x"
    for k in range(row.L):
        held += [numpy_helper.from_array(a, f"{n}{k}") for n, a in _layer_weights(row, weights, k).items()]
        states = ["h", "c"] if row.cell == "LSTM" else ["h"]
        last = k == row.L - 1
        top = ("y" if last else f"y{k}") if sequence or not last else ""
        options = {"linear_before_reset": 1} if row.cell == "GRU" else {}
        direction = "bidirectional" if row.D == 2 else "forward"
        nodes.append(
            helper.make_node(
                row.cell,
                [below, f"W{k}", f"R{k}", f"B{k}", ""] + [f"{s}{k}" for s in states],
                [top] + [f"{s}n{k}" for s in states],
                hidden_size=row.H,
                direction=direction,
                **options,
            )
        )
        ins += [value(f"{s}{k}", row.D, row.B, row.H) for s in states]
        outs += [value(f"{s}n{k}", row.D, row.B, row.H) for s in states]
        if not last:  # (T, D, B, H) -> (T, B, D*H)
            held.append(numpy_helper.from_array(np.array([row.T, row.B, row.D * row.H]), f"shape{k}"))
            flat = top
            if row.D == 2:
                flat = f"turned{k}"
                nodes.append(helper.make_node("Transpose", [top], [flat], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [flat, f"shape{k}"], [f"x{k + 1}"]))
            below = f"x{k + 1}"
    if sequence:
        outs.insert(0, value("y", row.T, row.D, row.B, row.H))
    graph = helper.make_graph(nodes, row.cell, ins, outs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
    model.ir_version = 8
    return model.SerializeToString()


def feeds(row: Row, inputs: Arrays, k: int) -> Arrays:
    """The model's inputs for input k."""
    D = row.D
    found = {"x": inputs["x"][k]}
    for state in ("h", "c"):
        if state + "0" in inputs:
            found |= {f"{state}{n}": inputs[state + "0"][k, n * D : (n + 1) * D] for n in range(row.L)}
    return found


def canonical(row: Row, outputs: Arrays) -> Arrays:
    """The model's outputs as y (T, B, D*H), h and c (L*D, B, H)."""
    found = {}
    if "y" in outputs:
        found["y"] = outputs["y"].transpose(0, 2, 1, 3).reshape(row.T, row.B, row.D * row.H)
    for state in ("h", "c"):
        if f"{state}n0" in outputs:
            found[state] = np.concatenate([outputs[f"{state}n{k}"] for k in range(row.L)])
    return found
