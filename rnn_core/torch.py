"""torch.nn's recurrent modules on the engine: the same constructors, attributes, state_dict keys and results.

    model = rnn_core.torch.accelerate(model)         # every recurrent module of an existing model, in place
    lstm = rnn_core.torch.LSTM(64, 128)              # or in the place of torch.nn.LSTM
    layer = rnn_core.from_torch(lstm)                # a NumPy layer with its weights; layer.to_torch() goes back

Each class derives from torch.nn's own and replaces its forward: tensors are read and written where they lie, through
torch.autograd.Function, with the GIL released. float32 and float64 on the CPU; anything else says so. Gradients of
gradients are refused.

Weights are packed for the engine on every forward that records a gradient. Without gradients a packing is kept as long
as every weight has the address and the version that it was made from. Writes through `.data` move neither: call
flatten_parameters() (or train(), eval()) after them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

import rnn_core
from rnn_core._engine import Network

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_VARIANTS = ("layer_norm", "recurrent_dropout", "zoneout", "weight_drop")  # constructor options that torch has not
_ROLES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


# ---- one call of the engine --------------------------------------------------------------------------------


class Engine:
    """The plan of one module for one dtype, and its last packing with the weights' addresses and versions."""

    def __init__(self, cell: str, sizes: list[tuple[int, int, int]], layers: int, directions: int, dtype: torch.dtype):
        self.cell, self.sizes, self.layers, self.directions, self.dtype = cell, sizes, layers, directions, dtype
        self.network = Network(cell, sizes, layers, directions, _DTYPES[dtype])
        self.lstm = cell == "lstm"
        self.units = sizes[0][1]
        self.out = sizes[0][2] or self.units
        self.names: list[str | None] = []
        self.packed: tuple[Any, Any] | None = None

    def pack(self, weights: list[Tensor | None]) -> Any:
        return self.network.pack(grouped(weights))

    def kept(self, weights: list[Tensor | None]) -> Any:
        """The packing for inference: made again when a weight has another address or version."""
        try:
            key = [(w.data_ptr(), w._version) for w in weights if w is not None]
        except RuntimeError:  # tensors made in inference mode count no versions
            return self.pack(weights)
        packed = self.packed
        if packed is None or packed[0] != key:
            packed = self.packed = (key, self.pack(weights))
        return packed[1]

    def run(self, packed: Any, x: Tensor, h0: Tensor | None, c0: Tensor | None, call: Call, keep: bool) -> Any:
        """(y, hn, cn or None, tape or None) of contiguous tensors."""
        count, dtype = self.layers * self.directions, self.network.dtype
        padded = call.lengths is not None and call.layout != "packed"  # the engine writes real steps only
        y = (np.zeros if padded else np.empty)((*x.shape[:-1], self.directions * self.out), dtype)
        hn = np.empty((count, call.rows, self.out), dtype)
        cn = np.empty((count, call.rows, self.units), dtype) if self.lstm else None
        tape = self.network.forward(
            *(packed, array(x), y, call.layout, call.steps, call.rows, call.lengths),
            *(array(h0), array(c0), hn, cn, keep, call.masks),
        )
        made = torch.from_numpy  # an array of NumPy's and its tensor cost less than a tensor and its array
        return made(y), made(hn), None if cn is None else made(cn), tape


class Call:
    """How the tokens of x lie (Network.forward's layouts), and dropout's masks."""

    __slots__ = ("layout", "lengths", "masks", "rows", "steps")

    def __init__(self, layout: str, steps: int, rows: int, lengths: Any = None) -> None:
        self.layout, self.steps, self.rows, self.lengths = layout, steps, rows, lengths
        self.masks: list[np.ndarray] | None = None


def array(tensor: Tensor | None) -> Any:
    """The tensor's memory as an ndarray; detached, so that nothing kept refers back to the graph."""
    return None if tensor is None else tensor.detach().numpy()


def grouped(tensors: list[Tensor | None]) -> list[tuple[Any, ...]]:
    """Memory of five tensors (_ROLES) for each layer and direction."""
    arrays = [array(tensor) for tensor in tensors]
    return [tuple(arrays[at : at + len(_ROLES)]) for at in range(0, len(arrays), len(_ROLES))]


class _Recurrence(torch.autograd.Function):
    """x, initial states and weights to y and final states."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, call: Call, x: Tensor, h0: Any, c0: Any, *weights: Tensor | None) -> Any:
        y, hn, cn, ctx.tape = engine.run(engine.pack(list(weights)), x, h0, c0, call, True)
        ctx.engine, ctx.rows = engine, call.rows
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, h0, *weights)
        return (y, hn, cn) if engine.lstm else (y, hn)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dhn: Tensor | None, dcn: Tensor | None = None) -> Any:
        with torch.no_grad():
            found = _Recurrence.gradients(ctx, dy, dhn, dcn)
        if torch.is_grad_enabled():  # create_graph: these gradients can be used, but not differentiated
            given = [g for g in found if g is not None]
            wrapped = iter(_NoSecondDerivative.apply(torch.empty(0, requires_grad=True), *given))
            found = [None if g is None else next(wrapped) for g in found]
        return (None, None, *found)

    @staticmethod
    def gradients(ctx: Any, dy: Tensor | None, dhn: Tensor | None, dcn: Tensor | None) -> list[Tensor | None]:
        """Of x, h0, c0 and the weights; None where nobody asks."""
        x, _, _, *weights = ctx.saved_tensors  # raises where one of them was changed in place since
        engine, needs = ctx.engine, ctx.needs_input_grad
        grads = [torch.zeros_like(w) if need else None for w, need in zip(weights, needs[5:])]
        dx = torch.zeros_like(x) if needs[2] else None
        states = (engine.layers * engine.directions, ctx.rows)
        dh0, dc0 = x.new_empty((*states, engine.out)), x.new_empty((*states, engine.units))
        engine.network.backward(
            *(ctx.tape, *(array(None if d is None else d.contiguous()) for d in (dy, dhn, dcn))),
            *(grouped(grads), array(dx), array(dh0), array(dc0)),
        )
        return [dx, dh0 if needs[3] else None, dc0 if needs[4] else None, *grads]


class _NoSecondDerivative(torch.autograd.Function):
    """Lets gradients through and says, when somebody differentiates them, that this cannot be done."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(g.view_as(g) for g in grads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("rnn_core.torch: gradients of gradients are not supported")


def recur(engine: Engine, weights: list[Tensor | None], x: Tensor, h0: Any, c0: Any, call: Call) -> Any:
    """(y, hn) or (y, hn, cn) of x, with what backward needs where a gradient is recorded."""
    x = x.contiguous()
    h0, c0 = (None if s is None else s.contiguous() for s in (h0, c0))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *weights)):
        engine.packed = None  # weights that are trained may next be written by ways that move no version
        return _Recurrence.apply(engine, call, x, h0, c0, *weights)
    y, hn, cn, _ = engine.run(engine.kept(weights), x, h0, c0, call, False)
    return (y, hn, cn) if engine.lstm else (y, hn)


# ---- layers ------------------------------------------------------------------------------------------------


class _Cached:
    """What layers and cells share: an engine for their dtype, which no copy or pickle takes along."""

    _rc_engine: Engine | None = None

    def _rc_sizes(self) -> tuple[str, list[tuple[int, int, int]], int, int]:
        """Cell, (inputs, units, projection) of each layer and direction, layers, directions."""
        raise NotImplementedError

    def _rc_names(self) -> list[str]:
        """Five names (_ROLES) for each layer and direction."""
        raise NotImplementedError

    def _rc_for(self, x: Tensor) -> Engine:
        """The engine for the dtype of x; NotImplementedError for tensors that it cannot take."""
        engine = self._rc_engine
        if engine is not None and engine.dtype is x.dtype and x.is_cpu:
            return engine
        if not x.is_cpu or x.layout is not torch.strided:
            raise NotImplementedError(f"rnn_core.torch: expected a dense tensor on the CPU, got {x.device}, {x.layout}")
        if x.dtype not in _DTYPES:
            raise NotImplementedError(f"rnn_core.torch: expected float32 or float64, got {x.dtype}")
        engine = Engine(*self._rc_sizes(), x.dtype)
        engine.names = [name if getattr(self, name, None) is not None else None for name in self._rc_names()]
        self.__dict__["_rc_engine"] = engine  # torch's own __setattr__ is slow and has nothing to do here
        return engine

    def _rc_weights(self, engine: Engine, x: Tensor) -> list[Tensor | None]:
        """The module's tensors in the engine's order (None where it has none), parametrized ones computed."""
        own = self.__dict__["_parameters"]
        found: list[Tensor | None] = [
            None if name is None else own[name] if name in own else getattr(self, name) for name in engine.names
        ]
        for one in found:
            if one is not None and (one.dtype is not x.dtype or not one.is_cpu or not one.is_contiguous()):
                return self._rc_checked(found, x)
        return found

    @staticmethod
    def _rc_checked(weights: list[Tensor | None], x: Tensor) -> list[Tensor | None]:
        for one in weights:
            if one is not None and one.dtype is not x.dtype:
                raise ValueError(f"RNN input dtype ({x.dtype}) does not match weight dtype ({one.dtype})")
            if one is not None and not one.is_cpu:
                raise NotImplementedError(f"rnn_core.torch: expected weights on the CPU, got {one.device}")
        return [None if one is None else one.contiguous() for one in weights]

    def _rc_drop(self) -> None:
        self.__dict__.pop("_rc_engine", None)

    def __getstate__(self) -> dict[str, Any]:
        inherited = getattr(super(), "__getstate__", None)  # which object has from Python 3.11 on
        state: dict[str, Any] = self.__dict__ if inherited is None else inherited()
        return {key: value for key, value in state.items() if key != "_rc_engine"}

    def train(self, mode: bool = True) -> Any:
        """As torch.nn.Module.train; drops the packed weights."""
        self._rc_drop()
        return super().train(mode)  # type: ignore[misc]


class _Layer(_Cached):
    """forward() of torch.nn.RNNBase's subclasses."""

    def _rc_sizes(self) -> tuple[str, list[tuple[int, int, int]], int, int]:
        own: Any = self
        directions, out = 2 if own.bidirectional else 1, own.proj_size or own.hidden_size
        inputs = [own.input_size] + [out * directions] * (own.num_layers - 1)
        sizes = [(width, own.hidden_size, own.proj_size) for width in inputs for _ in range(directions)]
        return own.mode.lower(), sizes, own.num_layers, directions

    def flatten_parameters(self) -> None:
        """Drop the packed weights: the next call packs them as they then are."""
        self._rc_drop()

    def _rc_names(self) -> list[str]:
        own: Any = self
        ends = [
            f"_l{layer}{end}" for layer in range(own.num_layers) for end in ("", "_reverse")[: 1 + own.bidirectional]
        ]
        return [role + end for end in ends for role in _ROLES]

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch.nn's: a tensor (T, B, I), (B, T, I) with batch_first or (T, I), or a PackedSequence."""
        if isinstance(input, PackedSequence):
            return self._rc_packed(input, hx)
        if not isinstance(input, Tensor) or input.dim() not in (2, 3):
            return super().forward(input, hx)  # type: ignore[misc]  # torch's own error
        own: Any = self
        engine = self._rc_for(input)
        alone = input.dim() == 2
        x = input.unsqueeze(1) if alone else input
        first = own.batch_first and not alone
        rows, steps = (x.shape[0], x.shape[1]) if first else (x.shape[1], x.shape[0])
        if x.shape[2] != own.input_size:
            own.check_input(input, None)
        h0, c0 = self._rc_states(engine, hx, rows, 2 if alone else 3)
        call = Call("batch_first" if first else "time_major", steps, rows)
        call.masks = self._rc_masks(engine, x, call)
        y, *states = recur(engine, self._rc_weights(engine, x), x, h0, c0, call)
        if alone:
            y, states = y.squeeze(1), [s.squeeze(1) for s in states]
        return y, tuple(states) if engine.lstm else states[0]

    def _rc_packed(self, packed: PackedSequence, hx: Any) -> Any:
        """Packed data are the engine's own compact rows: sequences from the longest down, step by step."""
        own: Any = self
        x, sizes, order, back = packed
        engine = self._rc_for(x)
        if x.dim() != 2 or x.shape[1] != own.input_size:
            own.check_input(x, sizes)
        running = sizes.numpy()
        steps, rows = len(running), int(running[0])
        lengths = np.repeat(np.arange(steps, 0, -1), np.diff(running[::-1], prepend=0))
        h0, c0 = self._rc_states(engine, hx, rows, 3)
        if order is not None:
            h0, c0 = (None if s is None else s.index_select(1, order) for s in (h0, c0))
        call = Call("packed", steps, rows, lengths)
        call.masks = self._rc_masks(engine, x, call)
        y, *states = recur(engine, self._rc_weights(engine, x), x, h0, c0, call)
        if back is not None:
            states = [s.index_select(1, back) for s in states]
        return PackedSequence(y, sizes, order, back), tuple(states) if engine.lstm else states[0]

    def _rc_states(self, engine: Engine, hx: Any, rows: int, dims: int) -> tuple[Any, Any]:
        """h0 and c0 with three dimensions, or None; torch's errors for wrong shapes."""
        if hx is None:
            return None, None
        own: Any = self
        given = hx if engine.lstm else (hx,)
        count = engine.layers * engine.directions
        for state, width, name in zip(given, (engine.out, engine.units), ("hidden[0]", "hidden[1]")):
            if state.dim() != dims:
                raise RuntimeError(f"For {dims}-D input, hx should also be {dims}-D but got {state.dim()}-D tensor")
            wanted = (count, rows, width) if dims == 3 else (count, width)
            own.check_hidden_size(state, wanted, f"Expected {name} size {{}}, got {{}}")
            if state.dtype is not engine.dtype:
                raise RuntimeError(f"expected {name} of {engine.dtype}, got {state.dtype}")
        h0, c0 = [*given, None][:2]
        return (h0.unsqueeze(1), c0 if c0 is None else c0.unsqueeze(1)) if dims == 2 else (h0, c0)

    def _rc_masks(self, engine: Engine, x: Tensor, call: Call) -> list[np.ndarray] | None:
        """Dropout between layers while training: (T, B, D*H) of zero and 1/(1-p), from torch's generator."""
        own: Any = self
        if not (own.training and own.dropout and engine.layers > 1):
            return None
        keep, shape = 1 - own.dropout, (call.steps, call.rows, engine.directions * engine.out)
        masks = [x.new_empty(shape).bernoulli_(keep) for _ in range(engine.layers - 1)]
        return [array(mask.div_(keep) if keep else mask) for mask in masks]


class LSTM(_Layer, torch.nn.LSTM):
    """torch.nn.LSTM on the engine."""


class GRU(_Layer, torch.nn.GRU):
    """torch.nn.GRU on the engine."""


class RNN(_Layer, torch.nn.RNN):
    """torch.nn.RNN on the engine."""


# ---- cells -------------------------------------------------------------------------------------------------


class _Cell(_Cached):
    """forward() of torch.nn.RNNCellBase's subclasses: one step of one layer."""

    def _rc_sizes(self) -> tuple[str, list[tuple[int, int, int]], int, int]:
        own: Any = self
        cell = type(self)._rc_kind or f"rnn_{own.nonlinearity}"
        return cell, [(own.input_size, own.hidden_size, 0)], 1, 1

    _rc_kind = ""

    def _rc_names(self) -> list[str]:
        return list(_ROLES)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """As torch.nn's: input (B, I) or (I,), states alike."""
        if input.dim() not in (1, 2):
            return super().forward(input, hx)  # type: ignore[misc]  # torch's own error
        own: Any = self
        engine = self._rc_for(input)
        alone = input.dim() == 1
        x = input.view(1, 1, -1) if alone else input.unsqueeze(0)
        rows = x.shape[1]
        if x.shape[2] != own.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.shape[2]}, expected {own.input_size}")
        states = [None, None]
        given = () if hx is None else hx if engine.lstm else (hx,)
        states = [self._rc_state(f"hidden{at}", state, x, alone) for at, state in enumerate(given)]
        h0, c0 = [*states, None, None][:2]
        _, *found = recur(engine, self._rc_weights(engine, x), x, h0, c0, Call("time_major", 1, rows))
        found = [s.view(-1) if alone else s.squeeze(0) for s in found]
        return tuple(found) if engine.lstm else found[0]

    def _rc_state(self, name: str, state: Tensor, x: Tensor, alone: bool) -> Tensor:
        """(1, B, H); torch's kind of error for another shape."""
        own: Any = self
        rows = x.shape[1]
        wanted = (own.hidden_size,) if alone else (rows, own.hidden_size)
        if state.shape != wanted:
            raise RuntimeError(f"{name} has inconsistent shape: got {tuple(state.shape)}, expected {wanted}")
        if state.dtype is not x.dtype:
            raise RuntimeError(f"{name}: expected {x.dtype}, got {state.dtype}")
        return state.reshape(1, rows, -1)


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell on the engine."""

    _rc_kind = "lstm"


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell on the engine."""

    _rc_kind = "gru"


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell on the engine."""


# ---- whole models, and the way to NumPy and back -----------------------------------------------------------

_TWINS: dict[type, type] = {
    getattr(torch.nn, one.__name__): one for one in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
}


def accelerate(model: torch.nn.Module) -> torch.nn.Module:
    """Swap every torch.nn LSTM, GRU, RNN and their cells inside `model` in place; returns the model.

    The modules stay the same objects with the same parameters, hooks and keys: only their forward changes. Subclasses
    with a forward of their own are left alone. Modules with parametrizations keep them.
    """
    for module in model.modules():
        kind = type(module)
        if kind in _TWINS:
            module.__class__ = _TWINS[kind]
        elif parametrize.is_parametrized(module) and parametrize.type_before_parametrizations(module) in _TWINS:
            # torch made a class for this one module, derived from the plain one.
            kind.__bases__ = (_TWINS[parametrize.type_before_parametrizations(module)],)
    return model


def _options(module: Any) -> dict[str, Any]:
    """What torch's and our constructors share, as this module (of either side) has it."""
    found: dict[str, Any] = {"bias": bool(module.bias)}
    for name in ("batch_first", "bidirectional"):
        if hasattr(module, name):
            found[name] = bool(getattr(module, name))
    if hasattr(module, "dropout"):
        found["dropout"] = float(module.dropout)
    for name in ("proj_size", "nonlinearity"):
        if getattr(module, name, None):
            found[name] = getattr(module, name)
    return found


def from_torch(module: torch.nn.Module) -> Any:
    """A NumPy layer or cell with copies of the weights of a torch.nn LSTM, GRU, RNN or cell; every bit kept.

    TypeError for other modules and dtypes.
    """
    name = next((kind.__name__ for kind in _TWINS if isinstance(module, kind)), None)
    if name is None:
        raise TypeError(f"module: expected a torch.nn LSTM, GRU, RNN or cell, got {type(module).__name__}")
    own: Any = module
    cell = name.endswith("Cell")
    sizes = (own.input_size, own.hidden_size) if cell else (own.input_size, own.hidden_size, own.num_layers)
    keys = [key for key in (_ROLES if cell else own._flat_weights_names) if getattr(own, key, None) is not None]
    weights: dict[str, Tensor] = {key: getattr(own, key).detach() for key in keys}
    kind = weights[keys[0]].dtype
    if kind not in _DTYPES:
        raise TypeError(f"module: expected float32 or float64 weights, got {kind}")
    layer = getattr(rnn_core, name)(*sizes, dtype=_DTYPES[kind], **_options(module))
    layer.load_state_dict({key: weight.cpu().numpy() for key, weight in weights.items()})
    return layer


def to_torch(layer: Any) -> torch.nn.Module:
    """A module of this file with copies of the weights of rc.LSTM, rc.GRU, rc.RNN or a cell; every bit kept.

    TypeError for other layers, ValueError for options that torch.nn does not have.
    """
    twin: Any = globals().get(type(layer).__name__)
    if twin not in _TWINS.values() or type(layer) is not getattr(rnn_core, type(layer).__name__, None):
        raise TypeError(f"layer: expected an LSTM, GRU, RNN or cell of rnn_core, got {type(layer).__name__}")
    if not getattr(layer, "reset_after", True):
        raise ValueError("layer: torch.nn.GRU has reset_after=True only, got reset_after=False")
    for option in _VARIANTS:
        if getattr(layer, option, None):
            raise ValueError(f"layer: torch.nn has no {option}, got {getattr(layer, option)!r}")
    cell = issubclass(twin, _Cell)
    sizes = (layer.input_size, layer.hidden_size) if cell else (layer.input_size, layer.hidden_size, layer.num_layers)
    module = twin(*sizes, dtype=getattr(torch, np.dtype(layer.dtype).name), **_options(layer))
    with torch.no_grad():
        for key, value in layer.params.items():
            getattr(module, key).copy_(torch.from_numpy(value.copy()))
    return module
