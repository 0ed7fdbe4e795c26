"""Keras 3's lstm and gru backend functions on the engine: the numpy backend by layers, the torch backend by autograd.

What is not covered goes to the function that stood there before, which on these backends means Keras's own loop.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_core import keras as files

Array = NDArray[Any]
_KEPT = 256  # layers that the numpy backend keeps
_calling = threading.local()  # .zero_output: what the layer whose call is running wants behind a sequence's end


def inner_loop(original: Callable[..., Any]) -> Callable[..., Any]:
    """For keras.layers.LSTM.inner_loop and GRU's: tells the hook what the backend function is not told."""

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        _calling.zero_output = self.zero_output_for_mask
        return original(self, *arguments, **options)

    return noted


def hook(backend: str, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The function for keras.src.backend.lstm or .gru."""
    run: Callable[..., Any] = _Numpy() if backend == "numpy" else _Torch()

    def recurrent(inputs: Any, *states: Any, **options: Any) -> Any:
        """Keras's contract: inputs (B, T, I), then the initial h (B, H), an LSTM's c, and the mask (B, T) or None; in
        options kernel (I, G*H), recurrent_kernel (H, G*H), bias, activations, return_sequences, go_backwards and so on.
        Returns (last output (B, H), outputs (B, T, H) or, without return_sequences, (B, 1, H), [final h (and c)])."""
        *starts, mask = states
        config = _config(options)
        if config is None or len(starts) != (2 if kind == "lstm" else 1) or not options.get("batch_first", True):
            return original(inputs, *states, **options)
        try:
            return run(kind, inputs, starts, mask, config, options)
        except _NotCovered:
            return original(inputs, *states, **options)

    return recurrent


class _NotCovered(Exception):
    """Keras's own way is to be taken."""


def _config(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The layer's config as files.layer_of reads it; None for activations that only Keras knows."""
    import keras

    found: dict[str, Any] = {"reset_after": options.get("reset_after", True)}
    for which in ("activation", "recurrent_activation"):
        function = options.get(which)
        name = getattr(function, "__name__", "linear")
        if name not in files.ACTIVATIONS or (function is not None and keras.activations.get(name) is not function):
            return None
        found[which] = name
    return found


def _lengths(mask: Any, backwards: bool) -> NDArray[np.int64] | None:
    """Real steps of each sequence; _NotCovered unless the mask (B, T) is right-padded and time runs forward.

    Empty sequences are left to Keras, whose output for them is neither zero nor the state.
    """
    if mask is None:
        return None
    given: Array = np.asarray(mask).astype(bool)
    given = given.reshape(given.shape[0], given.shape[1])
    lengths = given.sum(1)
    if backwards or not lengths.all() or (given != (np.arange(given.shape[1]) < lengths[:, None])).any():
        raise _NotCovered
    return lengths.astype(np.int64)


class _Numpy:
    """Keeps a layer for each kernel. Weights are compared by value: an array has no version to go by."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[weakref.ref[Any], list[Array | None], Any]] = {}

    def __call__(self, kind: str, inputs: Any, starts: list[Any], mask: Any, config: Any, options: Any) -> Any:
        x, backwards = np.asarray(inputs), options.get("go_backwards", False)
        layer = self.layer(kind, config, options)
        if x.dtype != layer.dtype:
            raise _NotCovered
        lengths = _lengths(mask, backwards)
        states = [np.broadcast_to(np.asarray(s, x.dtype), (len(x), layer.hidden_size))[None] for s in starts]
        x = np.ascontiguousarray(x[:, ::-1] if backwards else x)
        y, final = layer(x, tuple(states) if kind == "lstm" else states[0], lengths)
        final = [s[0] for s in (final if kind == "lstm" else (final,))]
        if lengths is not None and not getattr(_calling, "zero_output", False):
            # Keras repeats the last output behind a sequence's end
            y = np.where((np.arange(y.shape[1]) < lengths[:, None])[:, :, None], y, final[0][:, None])
        return final[0], y if options.get("return_sequences") else final[0][:, None], final

    def layer(self, kind: str, config: Any, options: Any) -> Any:
        """The batch_first layer with the kernel (I, G*H), recurrent_kernel (H, G*H) and bias in `options`: the kept one
        while their values are the same, else a new one. _NotCovered unless they are float32 or float64."""
        kernel = options["kernel"]
        arrays = [None if one is None else np.asarray(one) for one in _variables(options)]
        if arrays[0] is None or arrays[0].dtype not in (np.float32, np.float64):
            raise _NotCovered
        found = self.kept.get(id(kernel))
        if found is not None and found[0]() is kernel and all(map(_same, arrays, found[1])):
            return found[2]
        layer = files.layer_of(kind, [dict(zip(("kernel", "recurrent", "bias"), arrays))], config)
        if len(self.kept) >= _KEPT:
            self.kept.clear()
        self.kept[id(kernel)] = weakref.ref(kernel), [None if a is None else a.copy() for a in arrays], layer
        return layer


def _variables(options: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return options["kernel"], options["recurrent_kernel"], options.get("bias")


def _same(a: Array | None, b: Array | None) -> bool:
    return np.array_equal(a, b) if a is not None and b is not None else a is b


class _Torch:
    """Through rnn_core.torch: gradients flow to Keras's own variables. The fused cells only."""

    def __init__(self) -> None:
        self.engines: dict[Any, Any] = {}
        self.prepared: dict[int, tuple[Any, Any, list[Any]]] = {}

    def __call__(self, kind: str, inputs: Any, starts: list[Any], mask: Any, config: Any, options: Any) -> Any:
        import torch
        from keras.src.backend import convert_to_tensor

        from rnn_core import torch as ours

        if (config["activation"], config["recurrent_activation"]) != ("tanh", "sigmoid"):
            raise _NotCovered
        x = convert_to_tensor(inputs)
        variables: list[Any] = [None if one is None else convert_to_tensor(one) for one in _variables(options)]
        if not x.is_cpu or x.dtype not in (torch.float32, torch.float64) or variables[0].dtype is not x.dtype:
            raise _NotCovered
        backwards = options.get("go_backwards", False)
        lengths = _lengths(None if mask is None else convert_to_tensor(mask).numpy(), backwards)
        cell = "gru_reset_before" if kind == "gru" and not config["reset_after"] else kind
        size = (cell, x.shape[2], variables[1].shape[0], x.dtype)
        engine = self.engines.get(size)
        if engine is None:
            engine = self.engines[size] = ours.Engine(cell, [(*size[1:3], 0)], 1, 1, x.dtype)
        given = [convert_to_tensor(s).to(x.dtype).expand(len(x), size[2])[None] for s in starts]
        h0, c0 = [*given, None][:2]
        call = ours.Call("batch_first", x.shape[1], len(x), lengths)
        weights = self.weights(kind, variables)
        y, *final = ours.recur(engine, weights, x.flip(1) if backwards else x, h0, c0, call)
        final = [s[0] for s in final]
        if lengths is not None and not getattr(_calling, "zero_output", False):
            real = torch.arange(y.shape[1]) < torch.from_numpy(lengths)[:, None]
            y = torch.where(real[:, :, None], y, final[0][:, None])
        return final[0], y if options.get("return_sequences") else final[0][:, None], final

    def weights(self, kind: str, variables: list[Any]) -> list[Any]:
        """weight_ih, weight_hh, bias_ih, bias_hh, None; kept between calls that record no gradient."""
        import torch

        training = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in variables)
        key = [(v.data_ptr(), v._version) for v in variables if v is not None]
        at = id(variables[0])
        if not training and at in self.prepared and self.prepared[at][:2] == (variables[0], key):
            return self.prepared[at][2]
        made = self.turned(kind, variables)
        if not training:
            if len(self.prepared) >= _KEPT:
                self.prepared.clear()
            self.prepared[at] = variables[0], key, made
        return made

    @staticmethod
    def turned(kind: str, variables: list[Any]) -> list[Any]:
        """Keras's kernels as torch's weights, by operations that gradients pass."""
        import torch

        def rows(matrix: Any) -> Any:
            if kind != "gru":
                return matrix.contiguous()
            z, r, h = matrix.chunk(3)
            return torch.cat([r, z, h])

        kernel, recurrent, bias = variables
        pair = [None, None]
        if bias is not None:
            pair = [rows(b) for b in (bias if bias.dim() == 2 else (bias, torch.zeros_like(bias)))]
        return [rows(kernel.t()), rows(recurrent.t()), *pair, None]
