"""A graph of recurrent nodes and the few shape operators that join them (GLUE), as one thing that runs.

Other operators are refused by name: rnn_core is not a general runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rnn_core.module import Module

from . import files
from .nodes import ACTIVATIONS, INPUTS, Recurrent

Array = NDArray[Any]
WEIGHTS = ("W", "R", "B", "P")


def _reshape(inputs: list[Array], attributes: Mapping[str, Any]) -> list[Array]:
    x, wanted = inputs
    keep = not attributes.get("allowzero", 0)
    return [x.reshape([x.shape[k] if n == 0 and keep else int(n) for k, n in enumerate(wanted)])]


def _squeeze(inputs: list[Array], attributes: Mapping[str, Any]) -> list[Array]:
    axes = attributes.get("axes") if len(inputs) == 1 else inputs[1].tolist()
    return [inputs[0].squeeze(None if axes is None else tuple(axes))]


def _split(inputs: list[Array], attributes: Mapping[str, Any]) -> list[Array]:
    sizes = attributes.get("split") if len(inputs) == 1 else inputs[1].tolist()
    axis = attributes.get("axis", 0)
    pieces = attributes.get("num_outputs") if sizes is None else np.cumsum(sizes)[:-1]
    if pieces is None:
        raise ValueError("Split: expected sizes or num_outputs")
    return list(np.split(inputs[0], pieces, axis))


def _unsqueeze(inputs: list[Array], attributes: Mapping[str, Any]) -> list[Array]:
    axes = attributes["axes"] if len(inputs) == 1 else inputs[1].tolist()
    return [np.expand_dims(inputs[0], tuple(axes))]


def _slice(inputs: list[Array], attributes: Mapping[str, Any]) -> list[Array]:
    x, given = inputs[0], inputs[1:] or [np.asarray(attributes[name]) for name in ("starts", "ends")]
    starts, ends = given[:2]
    axes = given[2] if len(given) > 2 else attributes.get("axes", range(len(starts)))
    steps = given[3] if len(given) > 3 else [1] * len(starts)
    cut: list[slice] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps):
        cut[int(axis)] = slice(int(start), int(end), int(step))
    return [x[tuple(cut)]]


def _filled(inputs: list[Array], attributes: Mapping[str, Any]) -> list[Array]:
    value = files.tensor_array(attributes["value"], None) if "value" in attributes else np.zeros(1, np.float32)
    return [np.full(inputs[0], value[0])]


def _expand(inputs: list[Array], attributes: Mapping[str, Any]) -> list[Array]:
    x, wanted = inputs
    return [x * np.ones([int(n) for n in wanted], x.dtype)]


def _shape(inputs: list[Array], attributes: Mapping[str, Any]) -> list[Array]:
    return [np.array(inputs[0].shape[attributes.get("start", 0) : attributes.get("end")], np.int64)]


# What exporters put around recurrent nodes: operators that move, cut and join, and sizes for zero states.
GLUE: dict[str, Callable[[list[Array], Mapping[str, Any]], list[Array]]] = {
    "Concat": lambda inputs, attributes: [np.concatenate(inputs, attributes["axis"])],
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Gather": lambda inputs, attributes: [np.take(inputs[0], inputs[1], attributes.get("axis", 0))],
    "Identity": lambda inputs, attributes: inputs,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": lambda inputs, attributes: [inputs[0].transpose(attributes.get("perm"))],
    "Unsqueeze": _unsqueeze,
}


class OtherOperators(ValueError):
    """A graph that needs a general runtime."""


class Node:
    """A recurrent node in its graph: what it reads and writes by name, and its layer once its weights are known."""

    def __init__(self, proto: onnx.NodeProto, known: Mapping[str, Array]) -> None:
        self.spec = Recurrent.read(proto)
        self.inputs = {role: name for role, name in zip(INPUTS, proto.input) if name}
        self.outputs = list(proto.output)
        if missing := [role for role in ("X", "W", "R") if role not in self.inputs]:
            raise ValueError(f"{self.spec.name}: expected inputs X, W and R, got no {missing}")
        fixed = all(name in known for role, name in self.inputs.items() if role in WEIGHTS)
        self.made: Module | None = self.spec.layer(self.weights(known)) if fixed else None

    def weights(self, values: Mapping[str, Array]) -> dict[str, Array | None]:
        return {role: values[self.inputs[role]] if role in self.inputs else None for role in WEIGHTS}

    def run(self, values: dict[str, Array]) -> None:
        layer = self.made or self.spec.layer(self.weights(values))
        fed = {role: values[name] for role, name in self.inputs.items() if role not in WEIGHTS}
        values.update((name, value) for name, value in zip(self.outputs, self.spec.run(layer, fed)) if name)


class Glue:
    """A shape operator."""

    def __init__(self, proto: onnx.NodeProto) -> None:
        self.op, self.proto = proto.op_type, proto
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def run(self, values: dict[str, Array]) -> None:
        inputs = [values[name] for name in self.proto.input if name]
        try:
            found = GLUE[self.op](inputs, self.attributes)
        except (ValueError, IndexError, KeyError, TypeError, MemoryError) as error:
            raise ValueError(f"{self.op} {list(self.proto.output)}: {error}") from None
        values.update(zip(self.proto.output, found))


class Graph:
    """A whole model: `run` takes the inputs by name and gives the outputs by name."""

    def __init__(self, model: onnx.ModelProto, folder: Path | None = None) -> None:
        found = {f"{n.domain}.{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type for n in model.graph.node}
        glue = {*GLUE, "Constant"}
        if others := sorted(found - {*ACTIVATIONS, *(glue if found - glue else ())}):
            raise OtherOperators(f"graph: expected RNN, GRU and LSTM nodes, got other operators: {', '.join(others)}")
        files.opset(model)
        self.constants = files.constants(model, folder)
        self.steps: list[Node | Glue] = []
        for proto in model.graph.node:
            if proto.op_type in ACTIVATIONS:
                self.steps.append(Node(proto, self.constants))
            elif proto.op_type != "Constant":
                self.steps.append(Glue(proto))
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in model.graph.output]
        # What the model says of its inputs' sizes; None where it leaves one open.
        self.shapes = {
            value.name: [d.dim_value or None for d in value.type.tensor_type.shape.dim] for value in model.graph.input
        }
        self._check_names()

    @property
    def nodes(self) -> list[Node]:
        return [step for step in self.steps if isinstance(step, Node)]

    def _check_names(self) -> None:
        """Every name is made before it is read, as ONNX asks."""
        known = {*self.constants, *self.inputs}
        for step in self.steps:
            reads = list(step.inputs.values()) if isinstance(step, Node) else [n for n in step.proto.input if n]
            if unknown := sorted(set(reads) - known):
                raise ValueError(f"graph: nothing makes {unknown} before it is read")
            known.update(step.outputs if isinstance(step, Node) else step.proto.output)
        if unknown := sorted(set(self.outputs) - known):
            raise ValueError(f"graph: nothing makes the outputs {unknown}")

    def run(self, fed: Mapping[str, Array]) -> dict[str, Array]:
        if missing := [name for name in self.inputs if name not in fed]:
            raise ValueError(f"inputs: expected {self.inputs}, got no {missing}")
        values = {**self.constants, **{name: np.asarray(value) for name, value in fed.items()}}
        for step in self.steps:
            step.run(values)
        return {name: values[name] for name in self.outputs}
