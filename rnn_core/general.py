"""Recurrent layers of the general path: every cell that ONNX can describe, forward and backward.

They have what the fused layers (rc.LSTM, rc.GRU, rc.RNN) leave out: peepholes, coupled input and forget gates, a clip
on the gates' inputs, other activations, and a single direction that runs backward in time. They take the same calls
and have the same keys, and are slower; a layer that needs none of this should be a fused one.

    lstm = GeneralLSTM(8, 16, peepholes=True, activations=["HardSigmoid", "Tanh", "Tanh"], clip=3.0)
    y, state = lstm(x, lengths=lengths)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnn_core import checks, variants
from rnn_core._general import ACTIVATIONS, Direction
from rnn_core._plain import Plain
from rnn_core.recurrent import LSTM, Recurrent
from rnn_core.sequences import Sequences

Array = NDArray[Any]
# The values of ONNX's operators where an activation is named without any.
_DEFAULT_ALPHA = {
    "Affine": 1.0,
    "LeakyRelu": 0.01,
    "ThresholdedRelu": 1.0,
    "ScaledTanh": 1.0,
    "HardSigmoid": 0.2,
    "Elu": 1.0,
}
_DEFAULT_BETA = {"Affine": 0.0, "ScaledTanh": 1.0, "HardSigmoid": 0.5}
_SPELLING = {name.lower(): name for name in ACTIVATIONS}


class Activation(NamedTuple):
    """An activation by ONNX's name; alpha and beta are None where it has no such value."""

    name: str
    alpha: float | None = None
    beta: float | None = None


def activation(spec: str | Sequence[Any] | Activation) -> Activation:
    """`spec` (a name in any case, or name, alpha, beta) with its own spelling and default values.

    ValueError for a name that ONNX does not have, and for a value that the activation does not take.
    """
    name, *values = (spec,) if isinstance(spec, str) else tuple(spec)
    found = _SPELLING.get(name.lower()) if isinstance(name, str) else None
    if found is None or len(values) > 2:
        raise ValueError(f"activation: expected a name of {ACTIVATIONS} or (name, alpha, beta), got {spec!r}")
    given = []
    for what, value, defaults in zip(("alpha", "beta"), [*values, None, None], (_DEFAULT_ALPHA, _DEFAULT_BETA)):
        if value is not None and found not in defaults:
            raise ValueError(f"activation: {found} has no {what}, got {value!r}")
        given.append(defaults.get(found) if value is None else checks.real(f"{found} {what}", value))
    return Activation(found, *given)


@dataclass
class GeneralTape:
    """What backward needs of one forward. It refers to x: changing it before backward is undefined."""

    layer: Any
    source: Any
    inputs: list[Array]  # of each layer, (T, B, I)
    steps: list[list[Array | None]]  # of each layer and direction: pre, post, aux, h, c
    masks: list[Array]  # dropout's, between the layers


class General(Recurrent):
    """Base of the three: subclasses name the cell and its default activations. Options and calls are those of the fused
    layers (no proj_size), and besides:

    activations  one list for all directions, or that of the second after that of the first
    clip         bound on the input of every gate's activation; None for none
    reverse      a single direction from each sequence's last step to its first
    ValueError where a number or a name does not fit.
    """

    cell = ""
    defaults: tuple[str, ...] = ()
    peepholes = False
    coupled = False
    reset_after = False
    _transient: tuple[str, ...] = ("_packed", "_runs")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reverse: bool = False,
        activations: Sequence[Any] | None = None,
        clip: float | None = None,
        **options: Any,
    ) -> None:
        if options.get("proj_size"):
            raise ValueError(f"proj_size: expected 0 in the general path, got {options['proj_size']!r}")
        variants.refuse(options, "the general path has none")
        super().__init__(input_size, hidden_size, num_layers, **options)
        self.reverse = bool(reverse)
        if self.reverse and self.bidirectional:
            raise ValueError("reverse: expected False for a bidirectional layer, which has both directions")
        self.clip = None if clip is None else checks.real("clip", clip)
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip: expected a bound above 0, got {clip}")
        self.activations = self._each_direction(self.defaults if activations is None else activations)
        self._runs: list[Direction] | None = None

    def _plain_calls(self) -> Plain:
        if self._plain is None:
            self._plain = Plain(None, False, None)  # plain calls are the fused engine's
        return self._plain

    def _each_direction(self, specs: Sequence[Any]) -> list[list[Activation]]:
        each, D = len(self.defaults), self._directions
        found = [activation(spec) for spec in specs]
        if len(found) == each:
            found = found * D
        if len(found) != each * D:
            raise ValueError(f"activations: expected {each} for each of {D} directions, got {len(found)}")
        return [found[d * each : (d + 1) * each] for d in range(D)]

    def _make_parameters(self, rng: np.random.Generator) -> list[list[str | None]]:
        """As the fused layers; the place of their projection is the peepholes'."""
        names = super()._make_parameters(rng)
        bound = self.hidden_size**-0.5
        for each in names if self.peepholes else []:
            key = each[4] = str(each[0]).replace("weight_ih", "weight_p")
            self._add_parameter(key, rng.uniform(-bound, bound, 3 * self.hidden_size))
        return names

    def _has_tables(self) -> bool:
        return False

    def _each_run(self) -> list[Direction]:
        """The engine's side of each direction."""
        if self._runs is None:
            self._runs = [
                Direction(
                    self.cell,
                    [(name, alpha or 0.0, beta or 0.0) for name, alpha, beta in self.activations[d]],
                    reverse=self.reverse or d == 1,
                    coupled=self.coupled,
                    reset_after=self.reset_after,
                    clip=np.inf if self.clip is None else self.clip,
                )
                for d in range(self._directions)
            ]
        return self._runs

    # ---- forward and backward ---------------------------------------------------------------------------------

    def _run(self, source: Sequences, state: Any, keep: bool, every: bool = False) -> Any:
        if every:
            raise ValueError("return_all_states: expected False in the general path")
        starts = self._states("state", state, source.batch, source.unbatched)
        masks = self._masks(source) if keep and self.dropout and self.num_layers > 1 else []
        self.calls += bool(masks)
        weights = self._arrays({name: buffer.view for name, buffer in self._buffers.items()})
        finals, H = self._new_states(source.batch), self.hidden_size
        tape = GeneralTape(self, source, [], [], masks)
        now = _time_major(source.array, source)
        for layer in range(self.num_layers):
            if layer and masks:
                now = now * masks[layer - 1]
            y = np.zeros((*now.shape[:2], self._directions * H), self.dtype)
            for d, run in enumerate(self._each_run()):
                at = layer * self._directions + d
                start = _parts(starts, finals, at)
                final, steps = run.forward(weights[at], now, y, d * H, source.lengths, start, keep)
                for to, part in zip(_parts(finals, finals, at), final):
                    to[...] = part
                tape.steps.append(steps)
            tape.inputs.append(now)
            now = y
        y = source.result(_as_given(now, source))
        return y, self._public_state(finals, source.unbatched), tape if keep else None

    def _run_checkpointed(self, source: Sequences, state: Any) -> Any:
        raise ValueError("recompute: expected False in the general path")

    def backward(self, tape: Any, dy: Any, dstate: Any = None, *, need_dx: bool = True) -> Any:
        """(dx, dstate) of the gradients dy of y and dstate of the final state (None for zero); adds into `grads`.

        dy as y; dx as x, or None with need_dx=False.
        """
        if not isinstance(tape, GeneralTape) or tape.layer is not self:
            raise ValueError(f"tape: expected one that this layer's forward made, got {type(tape).__name__}")
        source, H = tape.source, self.hidden_size
        given = self._states("dstate", dstate, source.batch, source.unbatched)
        starts = self._new_states(source.batch)
        weights = self._arrays({name: buffer.view for name, buffer in self._buffers.items()})
        grads = self._arrays({name: self._grad(name) for name in self._buffers})
        flow = source.gradient(dy, self._directions * self._out)
        flow = self._no_gradient(tape) if flow is None else _time_major(flow, source)
        for layer in reversed(range(self.num_layers)):
            dx = np.zeros_like(tape.inputs[layer]) if layer or need_dx else None
            for d, run in enumerate(self._each_run()):
                at = layer * self._directions + d
                start = run.backward(
                    *(weights[at], grads[at], tape.steps[at], tape.inputs[layer], flow, d * H, source.lengths),
                    *(_parts(given, starts, at), dx),
                )
                for to, part in zip(_parts(starts, starts, at), start):
                    to[...] = part
            if dx is not None:
                flow = dx * tape.masks[layer - 1] if layer and tape.masks else dx
        dx = source.input_gradient(_as_given(flow, source) if need_dx else None)
        return dx, self._public_state(starts, source.unbatched)

    def _no_gradient(self, tape: GeneralTape) -> Array:
        return np.zeros((*tape.inputs[0].shape[:2], self._directions * self.hidden_size), self.dtype)

    def _describe(self) -> str:
        words = [super()._describe()]
        words += [f"{name}=True" for name in ("reverse", "peepholes", "coupled") if getattr(self, name)]
        words += [] if self.clip is None else [f"clip={self.clip}"]
        return ", ".join(words)


def _parts(states: Sequence[Array | None], like: Sequence[Array | None], at: int) -> list[Any]:
    """Row `at` of h (and c) or None; as many as there are in `like`."""
    return [None if part is None else part[at] for part, other in zip(states, like) if other is not None]


def _time_major(array: Array, source: Any) -> Array:
    """(T, B, n) of an array in the layout of its input; zero where there is no step."""
    if source.layout == "time_major":
        return array
    if source.layout == "batch_first":
        return np.ascontiguousarray(array.transpose(1, 0, 2))
    padded = np.zeros((source.batch, source.steps, array.shape[1]), array.dtype)
    padded[_real(source)] = array
    return np.ascontiguousarray(padded.transpose(1, 0, 2))


def _as_given(array: Array, source: Any) -> Array:
    """The inverse of _time_major."""
    if source.layout == "time_major":
        return array
    turned = np.ascontiguousarray(array.transpose(1, 0, 2))
    return turned if source.layout == "batch_first" else turned[_real(source)]


def _real(source: Any) -> NDArray[np.bool_]:
    """(B, T): where a Ragged has steps."""
    return np.arange(source.steps) < source.lengths[:, None]


class GeneralRNN(General):
    """h' = f(W x + b + R h + d); activations [f], Tanh unless given. The options: General."""

    cell, defaults, _gates = "rnn", ("Tanh",), 1


class GeneralGRU(General):
    """r, z = f(...), n = g(...), h' = (1 - z) n + z h; activations [f, g], Sigmoid and Tanh unless given.

    reset_after  True: n = g(W x + b + r (R h + d)); False: n = g(W x + b + R (r h) + d). Other options: General.
    """

    cell, defaults, _gates = "gru", ("Sigmoid", "Tanh"), 3

    def __init__(self, *sizes: int, reset_after: bool = True, **options: Any) -> None:
        self.reset_after = bool(reset_after)
        super().__init__(*sizes, **options)


class GeneralLSTM(General):
    """i, f, o = f(...), g = g(...), c' = f c + i g, h' = o h(c'); activations [f, g, h].

    peepholes  weight_p (3*H,) in the order i, f, o: p c is added to the inputs of i and f, p c' to that of o
    coupled    f = 1 - i; the forget gate's rows are kept and read by nobody
    Other options: General.
    """

    cell, defaults, _gates = "lstm", ("Sigmoid", "Tanh", "Tanh"), 4
    _has_c, _state_parts, _join = True, LSTM._state_parts, LSTM._join

    def __init__(self, *sizes: int, peepholes: bool = False, coupled: bool = False, **options: Any) -> None:
        self.peepholes, self.coupled = bool(peepholes), bool(coupled)
        super().__init__(*sizes, **options)
