"""rnn_core: recurrent networks on CPUs. NumPy in, NumPy out."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rnn_core import _runtime as _runtime  # at once: a bad RNN_CORE_ISA or RNN_CORE_NUM_THREADS stops the import here

__version__ = "0.1.0"

# Public name -> the module that has it, loaded when the name is first used; a name that is itself a module of this
# package stands for that module.
_HOMES: dict[str, str] = {
    "CharLM": "charlm",
    "Dropout": "layers",
    "Embedding": "layers",
    "GRU": "recurrent",
    "GRUCell": "cells",
    "LSTM": "recurrent",
    "LSTMCell": "cells",
    "Linear": "layers",
    "Module": "module",
    "RNN": "recurrent",
    "RNNCell": "cells",
    "Ragged": "sequences",
    "Seq2Seq": "seq2seq",
    "Sequential": "layers",
    "checkpoint": "checkpoint",
    "clip_grad_norm": "clipping",
    "clip_grad_value": "clipping",
    "diagnostics": "diagnostics",
    "from_torch": "torch",
    "general": "general",
    "get_num_threads": "config",
    "keras": "keras",
    "losses": "losses",
    "onnx": "onnx",
    "optim": "optim",
    "schedules": "schedules",
    "seq2seq": "seq2seq",
    "set_num_threads": "config",
    "show_config": "config",
    "torch": "torch",
    "weights": "weights",
}

# Reachable by name, but not by `import *`, which must not need packages that are optional.
_OPTIONAL = {"from_torch", "keras", "onnx", "torch"}

__all__ = ["__version__", *sorted(set(_HOMES) - _OPTIONAL)]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{home}")
    value = module if name == home else getattr(module, name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
