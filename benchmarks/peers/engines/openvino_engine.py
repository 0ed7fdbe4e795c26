"""OpenVINO's CPU plugin in float32, the latency hint, tensors shared with NumPy."""

from __future__ import annotations

import numpy as np
import openvino as ov

from .. import engine
from ..engine import Arrays, Variant
from ..rows import Row
from . import onnx_models


class Engine(engine.Engine):
    name = "openvino"

    def version(self) -> str:
        return ov.__version__

    def _compile(self, model: bytes) -> ov.CompiledModel:
        core = ov.Core()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
        }
        return core.compile_model(core.read_model(model), "CPU", options)

    def layer(self, row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
        compiled = self._compile(onnx_models.build(row, weights))
        feeds = [onnx_models.feeds(row, inputs, k) for k in range(len(inputs["x"]))]
        names = [out.get_any_name() for out in compiled.outputs]
        request = compiled.create_infer_request()
        shared = [{name: ov.Tensor(a, shared_memory=True) for name, a in feed.items()} for feed in feeds]

        # A request for each input with its tensors set once; or one request whose tensors are set at each call.
        requests = []
        outs = {name: np.empty(tuple(o.shape), np.float32) for name, o in zip(names, compiled.outputs)}
        held = {name: ov.Tensor(a, shared_memory=True) for name, a in outs.items()}
        for feed in shared:
            one = compiled.create_infer_request()
            for name, tensor in {**feed, **held}.items():
                one.set_tensor(name, tensor)
            requests.append(one)

        def preset(k):
            requests[k].infer(share_outputs=True)
            return outs

        def call(k):
            request.infer(shared[k], share_inputs=True, share_outputs=True)
            return {name: request.get_tensor(name).data for name in names}

        def read(result):
            return {key: a.copy() for key, a in onnx_models.canonical(row, result).items()}

        return {"preset": Variant(preset, read), "infer": Variant(call, read)}
