"""rnn_core as a backend by ONNX's own convention, for BackendTest and for anything else that speaks it:
onnx.backend.test.BackendTest(rnn_core.onnx.backend, __name__) runs the official tests.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import ArrayLike
from onnx.backend.base import BackendRep, namedtupledict

from .files import read_model
from .graph import Graph, OtherOperators


class Prepared(BackendRep):
    """A model ready to run again and again."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._outputs = namedtupledict("Outputs", graph.outputs)

    def run(self, inputs: Sequence[ArrayLike] | Mapping[str, ArrayLike] | ArrayLike, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs in the graph's order, from inputs in its order or by name; a single one may come bare."""
        names = self.graph.inputs
        if isinstance(inputs, Mapping):
            fed: dict[str, Any] = dict(inputs)
        else:
            given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            if len(given) != len(names):
                raise ValueError(f"inputs: expected {len(names)} ({names}), got {len(given)}")
            fed = dict(zip(names, given))
        found = self.graph.run(fed)
        return self._outputs(*(found[name] for name in self.graph.outputs))


def supports_device(device: str) -> bool:
    """Whether `device`, such as "CPU" or "CUDA:1", is the CPU."""
    return device.split(":")[0].upper() == "CPU"


def is_compatible(model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
    """Whether prepare would take the model."""
    try:
        prepare(model, device)
    except (ValueError, TypeError):
        return False
    return True


def prepare(model: Any, device: str = "CPU", **kwargs: Any) -> Prepared:
    """A model (ModelProto, path or bytes) ready to run.

    ValueError for another device, for a malformed model and for operators beside RNN, GRU, LSTM and their glue.
    """
    if not supports_device(device):
        raise ValueError(f"device: expected CPU, got {device!r}")
    try:
        return Prepared(Graph(*read_model(model)))
    except OtherOperators as error:
        raise _not_implemented(error) from None


def _not_implemented(error: OtherOperators) -> Exception:
    """While ONNX's own test runner is in use, the exception by which it counts a test as none of this backend's."""
    runner = sys.modules.get("onnx.backend.test.runner")
    if runner is None:
        return error
    kind = type("NotImplementedHere", (runner.BackendIsNotSupposedToImplementIt, OtherOperators), {})
    return kind(str(error))


def run_model(model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
    """prepare(model).run(inputs)."""
    return prepare(model, device).run(inputs)


def run_node(node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any) -> Any:
    """One node by itself; its inputs in its own order, without the ones left out."""
    names = [name for name in node.input if name]
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [onnx.helper.make_empty_tensor_value_info(name) for name in names],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    opset = onnx.helper.make_opsetid("", kwargs.get("opset_version", onnx.defs.onnx_opset_version()))
    return run_model(onnx.helper.make_model(graph, opset_imports=[opset]), inputs, device)
