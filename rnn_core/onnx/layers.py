"""load and save: a layer from a model's recurrent nodes, and a model from a layer."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rnn_core.module import Module

from .files import read_model
from .graph import Glue, Graph, Node
from .nodes import INPUTS, Recurrent, describe, weights_of

Array = NDArray[Any]
_PROBE = 1024  # the largest time and batch that a check tries; models with larger fixed sizes are refused
_OPSET, _IR = 14, 8  # the first opset with `layout`, and its IR version


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Module:
    """The recurrent layer of a model: one RNN, GRU or LSTM node, or a stack of equal ones joined by shape operators.

    Fused (rc.LSTM, rc.GRU, rc.RNN) where the nodes ask for nothing more, else of rnn_core.general. Every weight keeps
    its bits. layout 1 becomes batch_first. Initial states and lengths are arguments of the layer's call.
    External data is read from inside the model's folder only.
    ValueError for malformed files, other operators (by name), nodes that do not form one stack, and states or
    lengths that the model holds as constants (rnn_core.onnx.backend runs such models).
    """
    graph = Graph(*read_model(source))
    nodes = graph.nodes
    for node in nodes:
        _check_constants(node, graph)
    _check_chain(graph)
    _check_states(graph)
    first = nodes[0].spec
    for node in nodes[1:]:
        if _likeness(node.spec) != _likeness(first):
            raise ValueError(f"graph: {node.spec.name} differs from {first.name}: they do not make one stacked layer")
    return first.stacked([node.weights(graph.constants) for node in nodes])


def _likeness(spec: Recurrent) -> dict[str, Any]:
    return {key: value for key, value in vars(spec).items() if key not in ("name", "hidden_size")}


def _check_constants(node: Node, graph: Graph) -> None:
    """Weights are constants of the model, lengths are not."""
    for role, name in node.inputs.items():
        if role in ("W", "R", "B", "P") and name not in graph.constants:
            raise ValueError(
                f"{node.spec.name}: expected {role} as a constant of the model; the backend runs such models"
            )
        if role == "sequence_lens" and name not in graph.inputs:
            raise ValueError(
                f"{node.spec.name}: sequence_lens is a constant of the model, but an argument of a layer's call"
            )


def _probe_sizes(declared: list[int | None], layout: int) -> tuple[int, int]:
    """A time and a batch for X: what the model says, where it fixes them."""
    first, second = declared[:2] if len(declared) == 3 else (None, None)
    T, B = (second, first) if layout else (first, second)
    return min(T or 2, _PROBE), min(B or 3, _PROBE)


def _check_states(graph: Graph) -> None:
    """Tried on numbers: each node starts from zeros or from its part of an input, h and c of all levels one after the
    other, as a layer's state has them."""
    nodes, spec = graph.nodes, graph.nodes[0].spec
    D, (width, H) = spec.directions, spec.sizes(nodes[0].weights(graph.constants))
    at = spec.layout  # the axis of levels and directions in a state
    T, B = _probe_sizes(graph.shapes[nodes[0].inputs["X"]], spec.layout)
    stacked = np.moveaxis(np.arange(1.0, 1 + D * len(nodes) * B * H).reshape(D * len(nodes), B, H), 0, at)
    values: dict[str, Array] = {**graph.constants, **dict.fromkeys(graph.inputs, stacked)}
    values[nodes[0].inputs["X"]] = np.zeros((B, T, width) if spec.layout else (T, B, width))
    y, h = ((B, T, D, H), (B, D, H)) if spec.layout else ((T, D, B, H), (D, B, H))
    for step in graph.steps:
        if isinstance(step, Node):  # its sizes matter here; that its values must not, NaN sees to
            values.update((name, np.full(h if part else y, np.nan)) for part, name in enumerate(step.outputs))
        elif all(name in values for name in step.proto.input if name):
            with suppress(ValueError):  # what then is missing is found below
                step.run(values)
    for level, node in enumerate(nodes):
        own = stacked.take(range(level * D, (level + 1) * D), at)
        for name in (node.inputs.get(role) for role in ("initial_h", "initial_c")):
            start = values.get(name) if name else None
            if name and (start is None or (start.any() and not np.array_equal(start, own))):
                raise ValueError(
                    f"{node.spec.name}: expected zeros or its part of an input as the initial state, which is an "
                    f"argument of a layer's call, got {name!r}; the backend runs such models"
                )


def _check_chain(graph: Graph) -> None:
    """Each node reads the one before it, put into the form (T, B, D*H) or (B, T, D*H)."""
    nodes = graph.nodes
    if nodes[0].inputs["X"] not in graph.inputs:
        raise ValueError(f"{nodes[0].spec.name}: expected X to be an input of the model")
    made = {name: step for step in graph.steps if isinstance(step, Glue) for name in step.proto.output}
    for before, node in zip(nodes, nodes[1:]):
        path, name = [], node.inputs["X"]
        while name in made:
            path.append(made[name])
            name = made[name].proto.input[0]
        if not before.outputs or name != before.outputs[0] or not _is_flattening(path[::-1], before.spec, graph):
            raise ValueError(
                f"{node.spec.name}: expected X to be the output of {before.spec.name}, directions side by side"
            )


def _is_flattening(path: list[Glue], spec: Recurrent, graph: Graph) -> bool:
    """Tried on numbers: whether these operators turn Y into (time, batch, D*H), or batch first in layout 1."""
    D, probe = spec.directions, np.arange(2 * 3 * spec.directions * 5.0)
    y = probe.reshape((2, 3, D, 5) if spec.layout else (2, D, 3, 5))
    wanted = (y if spec.layout else y.transpose(0, 2, 1, 3)).reshape(2, 3, D * 5)
    values = {**graph.constants}
    for step in path:
        values[step.proto.input[0]] = y
        if any(name not in values for name in step.proto.input):
            return False
        try:
            step.run(values)
        except ValueError:
            return False
        y = values[step.proto.output[0]]
    return y.shape == wanted.shape and bool((y == wanted).all())


def save(layer: Module, path: str | os.PathLike[str], *, lengths: bool = False, state: bool = False) -> None:
    """Write a recurrent layer as an ONNX model (opset 14) that rnn_core.onnx.load and other engines read.

    Inputs: X as the layer takes it; with lengths=True sequence_lens (int32); with state=True initial_h (L*D, B, H), and
    initial_c for LSTM. Outputs: Y as the last node gives it (T, D, B, H), Y_h (L*D, B, H), and Y_c for LSTM; a
    batch_first layer becomes layout 1, with batch first in all of them.
    TypeError for other modules, ValueError for options that the operators do not have (proj_size, layer_norm, ...).
    """
    op, attributes = describe(layer)
    made: Any = layer
    builder = _Builder(op, attributes, made.num_layers, lengths, state, made.dtype)
    for level in range(made.num_layers):
        builder.add_level(level, weights_of(layer, op, level))
    Path(path).write_bytes(builder.model(made.input_size).SerializeToString())


class _Builder:
    """The nodes and initializers of one stacked layer."""

    def __init__(
        self, op: str, attributes: dict[str, Any], levels: int, lengths: bool, state: bool, dtype: Any
    ) -> None:
        self.op, self.attributes, self.levels, self.lengths, self.dtype = op, attributes, levels, lengths, dtype
        self.directions = 2 if attributes.get("direction") == "bidirectional" else 1
        self.first = attributes.get("layout", 0) == 1
        self.parts = ["h", "c"] if op == "LSTM" else ["h"]
        self.starts = self.parts if state else []
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        if levels > 1:
            self._constant("split", [self.directions] * levels)
            self._constant("flat", [0, 0, -1])
            self.nodes += [
                helper.make_node("Split", [f"initial_{p}", "split"], self._names(f"initial_{p}"), axis=int(self.first))
                for p in self.starts
            ]

    def _names(self, name: str) -> list[str]:
        return [name] if self.levels == 1 else [f"{name}_l{level}" for level in range(self.levels)]

    def _constant(self, name: str, value: Any) -> None:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))

    def add_level(self, level: int, weights: dict[str, Array]) -> None:
        """The node of one level, and what shapes its Y (T, D, B, H) into the next one's X (T, B, D*H); with layout 1
        (B, T, D, H) into (B, T, D*H). weights: W (D, G*H, I), R (D, G*H, H) and so on, by ONNX's names."""
        last = level == self.levels - 1
        given = {"X": "X" if level == 0 else f"X_l{level}"}
        for role, value in weights.items():
            given[role] = self._names(role)[level]
            self._constant(given[role], value)
        if self.lengths:
            given["sequence_lens"] = "sequence_lens"
        given.update((f"initial_{part}", self._names(f"initial_{part}")[level]) for part in self.starts)
        inputs = [given.get(role, "") for role in INPUTS]
        while not inputs[-1]:
            inputs.pop()
        y = "Y" if last else f"Y_l{level}"
        outputs = [y, *(self._names(f"Y_{part}")[level] for part in self.parts)]
        self.nodes.append(helper.make_node(self.op, inputs, outputs, f"{self.op}_{level}", **self.attributes))
        if not last:
            flat = y
            if not self.first:
                flat = f"{y}_turned"
                self.nodes.append(helper.make_node("Transpose", [y], [flat], perm=[0, 2, 1, 3]))
            self.nodes.append(helper.make_node("Reshape", [flat, "flat"], [f"X_l{level + 1}"]))

    def model(self, width: int) -> onnx.ModelProto:
        """The whole model, its inputs and outputs as in `save`; width: I of X. To be called once, after every level."""
        H, L, D = self.attributes["hidden_size"], self.levels, self.directions
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        if L > 1:
            self.nodes += [
                helper.make_node("Concat", self._names(f"Y_{p}"), [f"Y_{p}"], axis=int(self.first)) for p in self.parts
            ]
        x, y = (["B", "T", width], ["B", "T", D, H]) if self.first else (["T", "B", width], ["T", D, "B", H])
        h = ["B", L * D, H] if self.first else [L * D, "B", H]
        inputs = [helper.make_tensor_value_info("X", kind, x)]
        if self.lengths:
            inputs.append(helper.make_tensor_value_info("sequence_lens", onnx.TensorProto.INT32, ["B"]))
        inputs += [helper.make_tensor_value_info(f"initial_{part}", kind, h) for part in self.starts]
        outputs = [helper.make_tensor_value_info("Y", kind, y)]
        outputs += [helper.make_tensor_value_info(f"Y_{part}", kind, h) for part in self.parts]
        graph = helper.make_graph(self.nodes, "rnn_core", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="rnn_core")
