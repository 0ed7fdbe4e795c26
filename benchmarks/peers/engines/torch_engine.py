"""PyTorch inference: one nn module call in inference_mode. Training is in torch_training.py."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from .. import engine
from ..engine import Arrays, Variant
from ..rows import STEPS, Row
from . import torch_training


def _state_arrays(state) -> Arrays:
    parts = state if isinstance(state, tuple) else (state,)
    return {name: part.numpy().copy() for name, part in zip(("h", "c"), parts)}


class Engine(engine.Engine):
    name = "torch"

    def __init__(self, threads: int):
        super().__init__(threads)
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        self._trains = False

    def version(self) -> str:
        return torch.__version__

    def context(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._trains else torch.inference_mode()

    def prepare(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        self._trains = row.trains
        with self.context():
            return super().prepare(row, weights, inputs)

    def layer(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        module = torch_training.module(row, weights).eval()
        x, states = torch_training.inputs_and_states(inputs)

        def call(k):
            return module(x[k], states[k])

        def read(result):
            y, state = result
            return {"y": y.numpy().copy()} | _state_arrays(state)

        return {"module": Variant(call, read)}

    def step(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        cell = getattr(nn, row.cell + "Cell")(row.I, row.H).eval()
        named = torch_training.tensors(weights)
        cell.load_state_dict({key.removesuffix("_l0"): value for key, value in named.items()})
        x, states = torch_training.inputs_and_states({key: a[:, 0] for key, a in inputs.items()})

        def call(_):
            state = states[0]
            for t in range(STEPS):
                state = cell(x[t], state)
            return state

        def read(state):
            return {name: array[None] for name, array in _state_arrays(state).items()}

        return {"cell": Variant(call, read, units=STEPS)}

    train = staticmethod(torch_training.dense)
    ragged = staticmethod(torch_training.ragged)
    charlm = staticmethod(torch_training.charlm)
