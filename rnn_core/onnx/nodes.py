"""One RNN, GRU or LSTM node: its attributes, and the way between its weights and a layer's parameters.

ONNX orders gates z,r,h (GRU) and i,o,f,c (LSTM) and peepholes i,o,f; layers order them r,z,n and i,f,g,o and i,f,o.
Reordering moves whole blocks of rows, so that every weight keeps its bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rnn_core import recurrent
from rnn_core.general import Activation, General, GeneralGRU, GeneralLSTM, GeneralRNN, activation
from rnn_core.module import Module

Array = NDArray[Any]
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
ACTIVATIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
# Our block k is ONNX's block ORDER[k].
ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
PEEPHOLES = (0, 2, 1)
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
_KNOWN = {
    *("hidden_size", "direction", "activations", "activation_alpha", "activation_beta", "clip", "layout"),
    *("linear_before_reset", "input_forget"),
}


def blocks(array: Array, order: tuple[int, ...]) -> Array:
    """`array`, whose first axis is len(order) equal blocks, with block order[k] as its block k."""
    parts = np.split(array, len(order))
    return np.concatenate([parts[k] for k in order])


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(k) for k in range(len(order)))


@dataclass
class Recurrent:
    """The attributes of a recurrent node, checked."""

    op: str
    name: str
    direction: str = "forward"
    hidden_size: int | None = None
    activations: list[Activation] = field(default_factory=list)
    clip: float | None = None
    layout: int = 0
    linear_before_reset: int = 0
    input_forget: int = 0

    @classmethod
    def read(cls, node: onnx.NodeProto) -> Recurrent:
        """From a NodeProto; ValueError names what does not fit."""
        label = f"{node.op_type} {node.name or list(node.output)}"
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if unknown := sorted(set(given) - _KNOWN):
            raise ValueError(f"{label}: unknown attributes {unknown}")
        direction = given.get("direction", b"forward").decode(errors="replace")
        if direction not in _DIRECTIONS:
            raise ValueError(f"{label}: expected a direction of {list(_DIRECTIONS)}, got {direction!r}")
        found = cls(node.op_type, label, direction)
        found.hidden_size = given.get("hidden_size")
        found.clip = given.get("clip")
        if found.clip is not None and not found.clip > 0:
            raise ValueError(f"{label}: expected a clip above 0, got {found.clip}")
        for name in ("layout", "linear_before_reset", "input_forget"):
            setattr(found, name, int(given.get(name, 0)))
        if found.layout not in (0, 1):
            raise ValueError(f"{label}: expected layout 0 or 1, got {found.layout}")
        found.activations = found._activations(given)
        return found

    @property
    def directions(self) -> int:
        return _DIRECTIONS[self.direction]

    def _activations(self, given: Mapping[str, Any]) -> list[Activation]:
        """Alphas and betas go, in order, to the activations that have them."""
        usual = ACTIVATIONS[self.op] * self.directions
        names = [name.decode(errors="replace") for name in given.get("activations", [])] or list(usual)
        if len(names) != len(usual):
            raise ValueError(f"{self.name}: expected {len(usual)} activations, got {len(names)}")
        values = [list(given.get(f"activation_{which}", [])) for which in ("alpha", "beta")]
        found = []
        for name in names:
            taken = [
                rest.pop(0) if rest and default is not None else None
                for rest, default in zip(values, activation(name)[1:])
            ]
            found.append(activation((name, *taken)))
        return found

    # ---- weights to layer -------------------------------------------------------------------------------------

    def sizes(self, weights: Mapping[str, Array | None]) -> tuple[int, int]:
        """(I, H) of the arrays W, R and, where present, B and P; ValueError unless all shapes agree."""
        w, r = weights["W"], weights["R"]
        if w is None or r is None or w.ndim != 3 or r.ndim != 3:
            raise ValueError(f"{self.name}: expected W and R of three dimensions")
        D, G, width, H = self.directions, len(ORDER[self.op]), w.shape[2], r.shape[2]
        wanted = {"W": (D, G * H, width), "R": (D, G * H, H), "B": (D, 2 * G * H), "P": (D, 3 * H)}
        for name, array in weights.items():
            if array is not None and array.shape != wanted[name]:
                raise ValueError(f"{self.name}: expected {name} of shape {wanted[name]}, got {array.shape}")
            if array is not None and (array.dtype != w.dtype or array.dtype.kind != "f"):
                raise ValueError(f"{self.name}: expected {name} in the floating dtype of W, got {array.dtype}")
        if self.hidden_size is not None and self.hidden_size != H:
            raise ValueError(f"{self.name}: hidden_size is {self.hidden_size}, but R has {H} units")
        if not width or not H:
            raise ValueError(f"{self.name}: expected sizes of at least 1, got I {width}, H {H}")
        return width, H

    def layer(self, weights: Mapping[str, Array | None]) -> Module:
        """A layer of one level with these weights (W, R, B, P; None where left out): fused where it can be."""
        return self.stacked([weights])

    def stacked(self, levels: list[Mapping[str, Array | None]]) -> Module:
        """A layer with one level for each entry, every level having this node's attributes."""
        width, H = self.sizes(levels[0])
        made = self._make(width, H, len(levels), levels[0])
        state: dict[str, Array] = {}
        for number, weights in enumerate(levels):
            self.sizes(weights)
            state.update(self._parameters(number, weights))
        made.load_state_dict(state)
        return made

    def _make(self, width: int, H: int, levels: int, weights: Mapping[str, Array | None]) -> Module:
        first = weights["W"]
        assert first is not None  # sizes() has seen to it
        options: dict[str, Any] = {
            "bias": weights.get("B") is not None,
            "batch_first": self.layout == 1,
            "bidirectional": self.directions == 2,
            "dtype": first.dtype.name,
        }
        if self._is_fused(weights):
            if self.op == "GRU":
                options["reset_after"] = self.linear_before_reset != 0
            if self.op == "RNN":
                options["nonlinearity"] = self.activations[0].name.lower()
            return getattr(recurrent, self.op)(width, H, levels, **options)
        options.update(activations=self.activations, clip=self.clip, reverse=self.direction == "reverse")
        if self.op == "RNN":
            return GeneralRNN(width, H, levels, **options)
        if self.op == "GRU":
            return GeneralGRU(width, H, levels, reset_after=self.linear_before_reset != 0, **options)
        peepholes = weights.get("P") is not None
        return GeneralLSTM(width, H, levels, peepholes=peepholes, coupled=self.input_forget != 0, **options)

    def _is_fused(self, weights: Mapping[str, Array | None]) -> bool:
        names = tuple(one.name for one in self.activations)
        usual = [ACTIVATIONS[self.op] * self.directions]
        if self.op == "RNN":
            usual.append(("Relu",) * self.directions)
        extras = (self.clip is not None, self.op == "LSTM" and self.input_forget != 0, self.direction == "reverse")
        return names in usual and weights.get("P") is None and not any(extras)

    def _parameters(self, level: int, weights: Mapping[str, Array | None]) -> dict[str, Array]:
        order, state = ORDER[self.op], {}
        w, r, b, p = (weights.get(name) for name in "WRBP")
        assert w is not None and r is not None
        for d in range(self.directions):
            suffix = f"_l{level}" + "_reverse" * d
            state["weight_ih" + suffix] = blocks(w[d], order)
            state["weight_hh" + suffix] = blocks(r[d], order)
            if b is not None:
                ih, hh = np.split(b[d], 2)
                state["bias_ih" + suffix], state["bias_hh" + suffix] = blocks(ih, order), blocks(hh, order)
            if p is not None:
                state["weight_p" + suffix] = blocks(p[d], PEEPHOLES)
        return state

    # ---- running ----------------------------------------------------------------------------------------------

    def run(self, layer: Any, fed: Mapping[str, Array | None]) -> list[Array]:
        """[Y, Y_h] or [Y, Y_h, Y_c] in ONNX's shapes, from X, sequence_lens, initial_h and initial_c."""
        x = fed["X"]
        if x is None or x.ndim != 3:
            raise ValueError(f"{self.name}: expected X of three dimensions")
        state = [self._swapped(fed.get(name)) for name in ("initial_h", "initial_c")]
        y, final = layer(x, self._state(state, x), fed.get("sequence_lens"))
        y = y.reshape(*y.shape[:2], self.directions, -1)
        outputs = [y if self.layout else np.ascontiguousarray(y.transpose(0, 2, 1, 3))]
        final = final if self.op == "LSTM" else (final,)
        return outputs + [np.ascontiguousarray(self._swapped(part)) for part in final]

    def _state(self, state: list[Array | None], x: Array) -> Any:
        """The layer's form of the initial state; a missing half of an LSTM's pair is zero."""
        if all(part is None for part in state):
            return None
        if self.op != "LSTM":
            return state[0]
        shape = next(part.shape for part in state if part is not None)
        return tuple(np.zeros(shape, x.dtype) if part is None else part for part in state)

    def _swapped(self, part: Array | None) -> Array | None:
        """States are (B, D, H) in layout 1, (D, B, H) in a layer."""
        return part if part is None or not self.layout else np.ascontiguousarray(np.swapaxes(part, 0, 1))


# ---- layer to node ----------------------------------------------------------------------------------------------


def describe(layer: Module) -> tuple[str, dict[str, Any]]:
    """The operator of a recurrent layer and its attributes; TypeError for any other module."""
    kind = next((op for op in ACTIVATIONS if isinstance(layer, (getattr(recurrent, op), _GENERAL[op]))), None)
    if kind is None:
        raise TypeError(f"layer: expected an RNN, GRU or LSTM layer, got {type(layer).__name__}")
    found: Any = layer
    attributes: dict[str, Any] = {"hidden_size": found.hidden_size}
    if found.bidirectional:
        attributes["direction"] = "bidirectional"
    elif getattr(found, "reverse", False):
        attributes["direction"] = "reverse"
    if found.batch_first:
        attributes["layout"] = 1
    if kind == "GRU" and found.reset_after:
        attributes["linear_before_reset"] = 1
    if kind == "RNN" and not isinstance(layer, General) and found.nonlinearity != "tanh":
        attributes["activations"] = ["Relu"] * (2 if found.bidirectional else 1)
    if isinstance(layer, General):
        attributes.update(_general_attributes(found))
    _refuse_variants(found)
    return kind, attributes


_GENERAL = {"RNN": GeneralRNN, "GRU": GeneralGRU, "LSTM": GeneralLSTM}


def _refuse_variants(layer: Any) -> None:
    """What the operators cannot say."""
    for option in ("proj_size", "layer_norm", "recurrent_dropout", "zoneout", "weight_drop"):
        if value := getattr(layer, option, None):
            raise ValueError(f"layer: ONNX's operators have no {option}, got {option}={value!r}")


def _general_attributes(layer: Any) -> dict[str, Any]:
    specs = [one for each in layer.activations for one in each]
    found: dict[str, Any] = {"activations": [one.name for one in specs]}
    for which in ("alpha", "beta"):
        values = [getattr(one, which) for one in specs if getattr(one, which) is not None]
        usual = [getattr(activation(one.name), which) for one in specs if getattr(one, which) is not None]
        if values != usual:  # ONNX holds them in float32; its defaults need not be written
            found[f"activation_{which}"] = values
    if layer.clip is not None:
        found["clip"] = layer.clip
    if layer.coupled:
        found["input_forget"] = 1
    return found


def weights_of(layer: Module, op: str, level: int) -> dict[str, Array]:
    """W, R and, where the layer has them, B and P of one level."""
    params, order = layer.params, inverse(ORDER[op])
    suffixes = [f"_l{level}"] + [f"_l{level}_reverse"] * bool(getattr(layer, "bidirectional", False))
    found = {
        "W": np.stack([blocks(params["weight_ih" + end], order) for end in suffixes]),
        "R": np.stack([blocks(params["weight_hh" + end], order) for end in suffixes]),
    }
    if "bias_ih" + suffixes[0] in params:
        found["B"] = np.stack(
            [np.concatenate([blocks(params[name + end], order) for name in ("bias_ih", "bias_hh")]) for end in suffixes]
        )
    if "weight_p" + suffixes[0] in params:
        found["P"] = np.stack([blocks(params["weight_p" + end], PEEPHOLES) for end in suffixes])
    return found
