"""ONNX Runtime on its CPU provider: session.run and IOBinding compete."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from .. import engine
from ..engine import Arrays, Variant
from ..rows import STEPS, Row
from . import onnx_models


class Engine(engine.Engine):
    name = "onnxruntime"

    def version(self) -> str:
        return ort.__version__

    def _session(self, model: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def layer(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        session = self._session(onnx_models.build(row, weights))
        names = [out.name for out in session.get_outputs()]
        feeds = [onnx_models.feeds(row, inputs, k) for k in range(len(inputs["x"]))]
        outs = {out.name: np.empty(out.shape, np.float32) for out in session.get_outputs()}
        bindings = [_bind(session, feed, outs) for feed in feeds]

        def bound(k):
            session.run_with_iobinding(bindings[k])
            return outs

        def plain(k):
            return dict(zip(names, session.run(None, feeds[k])))

        def read(result):
            return {key: a.copy() for key, a in onnx_models.canonical(row, result).items()}

        return {"iobinding": Variant(bound, read), "run": Variant(plain, read)}

    def step(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        """T = 1 with the states bound back and forth between two sets of buffers, nothing copied."""
        session = self._session(onnx_models.build(row, weights, sequence=False))
        states = ("h", "c") if row.cell == "LSTM" else ("h",)
        buffers = [{s: np.zeros((1, row.B, row.H), np.float32) for s in states} for _ in range(2)]
        bindings = []
        for t in range(STEPS):
            before, after = buffers[t % 2], buffers[1 - t % 2]
            feed = {"x": inputs["x"][t]} | {f"{s}0": before[s] for s in states}
            bindings.append(_bind(session, feed, {f"{s}n0": after[s] for s in states}))

        def call(k):
            for s in states:
                buffers[0][s][...] = inputs[s + "0"][0]
            for binding in bindings:
                session.run_with_iobinding(binding)
            return buffers[STEPS % 2]

        def read(result):
            return {s: result[s].copy() for s in states}

        return {"iobinding": Variant(call, read, units=STEPS)}


def _bind(session: ort.InferenceSession, feed: Arrays, outs: Arrays) -> ort.IOBinding:
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    for name, array in outs.items():
        binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    return binding
