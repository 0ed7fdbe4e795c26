"""ONNX in and out: load(path or bytes) -> layer, save(layer, path), and a backend by ONNX's own convention.

    layer = rnn_core.onnx.load("model.onnx")
    rnn_core.onnx.save(layer, "again.onnx")
    outputs = rnn_core.onnx.backend.run_model(model, [x])

Needs the onnx package (pip install rnn-core[onnx]). Operators without extra features become fused layers (rc.LSTM,
rc.GRU, rc.RNN), the others layers of rnn_core.general.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"load": "layers", "save": "layers"}

__all__ = ["backend", "load", "save"]


def __getattr__(name: str) -> Any:
    """The onnx package is imported on first use of anything that needs it."""
    if name == "backend":
        return import_module("rnn_core.onnx.backend")
    if name in _HOMES:
        return getattr(import_module(f"rnn_core.onnx.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
