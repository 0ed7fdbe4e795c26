"""Recurrent layers of the general path: every cell that ONNX can describe, forward and backward.

They have what the fused layers (rc.LSTM, rc.GRU, rc.RNN) leave out: peepholes, coupled input and forget gates, a clip
on the gates' inputs, other activations, and a single direction that runs backward in time. They take the same calls
and have the same keys, and are slower; a layer that needs none of this should be a fused one.

    lstm = GeneralLSTM(8, 16, peepholes=True, activations=["HardSigmoid", "Tanh", "Tanh"], clip=3.0)
    y, state = lstm(x, lengths=lengths)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import checks
from rnn_core._general import ACTIVATIONS, GATES, Direction
from rnn_core.module import Module

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


class GeneralTape(NamedTuple):
    """What backward needs of one call: inputs and tapes of each layer, none of them shared with another call."""

    owner: int
    inputs: list[Array]  # of each layer, (T, B, I)
    lengths: NDArray[np.int64] | None
    steps: list[list[Array | None]]  # of each layer and direction: pre, post, aux, h, c
    unbatched: bool


class General(Module):
    """Base of the three: subclasses name the cell and its default activations.

    activations  one list for all directions, or that of the second after that of the first
    clip         bound on the input of every gate's activation; None for none
    reverse      a single direction from each sequence's last step to its first
    ValueError where a number or a name does not fit.
    """

    cell = ""
    defaults: tuple[str, ...] = ()
    states = 1
    peepholes = False
    coupled = False
    reset_after = False
    _transient = ("_runs",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        reverse: bool = False,
        activations: Sequence[Any] | None = None,
        clip: float | None = None,
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        super().__init__(dtype)
        self.input_size = checks.count("input_size", input_size)
        self.hidden_size = checks.count("hidden_size", hidden_size)
        self.num_layers = checks.count("num_layers", num_layers)
        self.bias, self.batch_first, self.bidirectional = bool(bias), bool(batch_first), bool(bidirectional)
        self.reverse = bool(reverse)
        if self.reverse and self.bidirectional:
            raise ValueError("reverse: expected False for a bidirectional layer, which has both directions")
        self.clip = None if clip is None else checks.real("clip", clip)
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip: expected a bound above 0, got {clip}")
        self.activations = self._each_direction(self.defaults if activations is None else activations)
        self._runs: list[Direction] | None = None
        self._make_parameters(np.random.default_rng(seed))

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _each_direction(self, specs: Sequence[Any]) -> list[list[Activation]]:
        each, D = len(self.defaults), self.directions
        found = [activation(spec) for spec in specs]
        if len(found) == each:
            found = found * D
        if len(found) != each * D:
            raise ValueError(f"activations: expected {each} for each of {D} directions, got {len(found)}")
        return [found[d * each : (d + 1) * each] for d in range(D)]

    def _make_parameters(self, rng: np.random.Generator) -> None:
        H, GH, bound = self.hidden_size, GATES[self.cell] * self.hidden_size, self.hidden_size**-0.5
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else H * self.directions
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (GH, width), "weight_hh": (GH, H)}
            if self.bias:
                shapes.update(bias_ih=(GH,), bias_hh=(GH,))
            if self.peepholes:
                shapes["weight_p"] = (3 * H,)
            for d in range(self.directions):
                for name, shape in shapes.items():
                    self._add_parameter(name + self._suffix(layer, d), rng.uniform(-bound, bound, shape))

    @staticmethod
    def _suffix(layer: int, direction: int) -> str:
        return f"_l{layer}" + "_reverse" * direction

    def _keys(self, layer: int, direction: int) -> list[str | None]:
        """The keys in the order of Direction's weights; None for what this layer does not have."""
        suffix = self._suffix(layer, direction)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_p")
        return [name + suffix if name + suffix in self._buffers else None for name in names]

    def _weights(self, layer: int, direction: int) -> list[Array | None]:
        return [None if key is None else self._buffers[key].view for key in self._keys(layer, direction)]

    def _directions(self) -> list[Direction]:
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
                for d in range(self.directions)
            ]
        return self._runs

    # ---- calls ------------------------------------------------------------------------------------------------

    def __call__(self, x: ArrayLike, state: Any = None, lengths: ArrayLike | None = None) -> tuple[Array, Any]:
        """y and the final state, as the fused layers give them; keeps nothing.

        x        (T, B, I), (B, T, I) with batch_first, or (T, I)
        state    h, or (h, c) for LSTM, each (L*D, B, H), or (L*D, H) with a 2-D x; None for zeros
        lengths  one integer a sequence, 0..T
        """
        y, final, _ = self._run(x, state, lengths, keep=False)
        return y, final

    def forward(
        self, x: ArrayLike, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[Array, Any, GeneralTape]:
        """As a call, with the tape that backward needs."""
        y, final, tape = self._run(x, state, lengths, keep=True)
        return y, final, tape

    def backward(
        self, tape: GeneralTape, dy: ArrayLike | None, dstate: Any = None, need_dx: bool = True
    ) -> tuple[Any, Any]:
        """Add the parameters' gradients into `grads`; returns (dx or None, gradients of the initial state).

        dy      as y, or None for zeros
        dstate  gradients of the final state, as it; None, or None in a pair's place, for zeros
        """
        if not isinstance(tape, GeneralTape) or tape.owner != id(self):
            raise ValueError("tape: expected what this layer's forward returned")
        T, B, _ = tape.inputs[0].shape
        wide = self.directions * self.hidden_size
        flow = (
            np.zeros((T, B, wide), self.dtype) if dy is None else self._inward("dy", dy, tape.unbatched, (T, B, wide))
        )
        given = self._states("dstate", dstate, B, tape.unbatched)
        starts: list[list[Array]] = []
        for layer in reversed(range(self.num_layers)):
            x = tape.inputs[layer]
            dx = np.zeros_like(x) if layer or need_dx else None
            found = []
            for d, run in enumerate(self._directions()):
                at = layer * self.directions + d
                keys = self._keys(layer, d)
                grads = [None if key is None else self._grad(key) for key in keys]
                dstart = [None if one is None else one[at] for one in given]
                found.append(
                    run.backward(
                        *(self._weights(layer, d), grads, tape.steps[at], x, flow, d * self.hidden_size),
                        *(tape.lengths, dstart, dx),
                    )
                )
            starts = found + starts
            if dx is not None:
                flow = dx
        return self._outward(flow, tape.unbatched) if need_dx else None, self._joined(starts, tape.unbatched)

    def _run(self, x: ArrayLike, state: Any, lengths: ArrayLike | None, keep: bool) -> tuple[Array, Any, GeneralTape]:
        unbatched = np.ndim(x) == 2
        now = self._inward("x", x, unbatched, ("T", "B", self.input_size))
        T, B, _ = now.shape
        counts = None if lengths is None else checks.lengths(lengths, B, T)
        given = self._states("state", state, B, unbatched)
        tape = GeneralTape(id(self), [], counts, [], unbatched)
        finals: list[list[Array]] = []
        for layer in range(self.num_layers):
            y = np.zeros((T, B, self.directions * self.hidden_size), self.dtype)
            for d, run in enumerate(self._directions()):
                start = [None if one is None else one[layer * self.directions + d] for one in given]
                final, steps = run.forward(self._weights(layer, d), now, y, d * self.hidden_size, counts, start, keep)
                finals.append(final)
                tape.steps.append(steps)
            tape.inputs.append(now)
            now = y
        return self._outward(now, unbatched), self._joined(finals, unbatched), tape

    # ---- shapes at the door: (T, B, *) inside -----------------------------------------------------------------

    def _inward(self, name: str, x: ArrayLike, unbatched: bool, shape: Sequence[int | str]) -> Array:
        if unbatched:
            return checks.floats(name, x, self.dtype, (shape[0], shape[2]))[:, None, :]
        if not self.batch_first:
            return checks.floats(name, x, self.dtype, shape)
        found = checks.floats(name, x, self.dtype, (shape[1], shape[0], shape[2]))
        return np.ascontiguousarray(found.transpose(1, 0, 2))

    def _outward(self, y: Array, unbatched: bool) -> Array:
        if unbatched:
            return y[:, 0]
        return np.ascontiguousarray(y.transpose(1, 0, 2)) if self.batch_first else y

    def _states(self, name: str, state: Any, batch: int, unbatched: bool) -> list[Array | None]:
        """[h] or [h, c], each (L*D, B, H) or None."""
        if state is None:
            return [None] * self.states
        parts = (state,) if self.states == 1 else tuple(state)
        if len(parts) != self.states:
            raise ValueError(f"{name}: expected {self.states} arrays, got {len(parts)}")
        sizes = (self.num_layers * self.directions, batch, self.hidden_size)
        found: list[Array | None] = []
        for part, letter in zip(parts, "hc"):
            if part is None:
                found.append(None)
            elif unbatched:
                found.append(checks.floats(f"{name} {letter}", part, self.dtype, (sizes[0], sizes[2]))[:, None])
            else:
                found.append(checks.floats(f"{name} {letter}", part, self.dtype, sizes))
        return found

    def _joined(self, parts: list[list[Array]], unbatched: bool) -> Any:
        """One array (L*D, B, H) for h, or the pair for LSTM, from those of each layer and direction."""
        joined = [np.stack(each) for each in zip(*parts)]
        if unbatched:
            joined = [each[:, 0] for each in joined]
        return tuple(joined) if self.states == 2 else joined[0]

    def _describe(self) -> str:
        words = [str(self.input_size), str(self.hidden_size)]
        words += [f"num_layers={self.num_layers}"] if self.num_layers > 1 else []
        words += [
            f"{name}=True" for name in ("bidirectional", "reverse", "peepholes", "coupled") if getattr(self, name)
        ]
        words += [] if self.clip is None else [f"clip={self.clip}"]
        return ", ".join(words)


class GeneralRNN(General):
    """h' = f(W x + b + R h + d); activations [f], Tanh unless given. The options: General."""

    cell, defaults = "rnn", ("Tanh",)


class GeneralGRU(General):
    """r, z = f(...), n = g(...), h' = (1 - z) n + z h; activations [f, g], Sigmoid and Tanh unless given.

    reset_after  True: n = g(W x + b + r (R h + d)); False: n = g(W x + b + R (r h) + d). Other options: General.
    """

    cell, defaults = "gru", ("Sigmoid", "Tanh")

    def __init__(self, *sizes: int, reset_after: bool = True, **options: Any) -> None:
        self.reset_after = bool(reset_after)
        super().__init__(*sizes, **options)


class GeneralLSTM(General):
    """i, f, o = f(...), g = g(...), c' = f c + i g, h' = o h(c'); activations [f, g, h].

    peepholes  weight_p (3*H,) in the order i, f, o: p c is added to the inputs of i and f, p c' to that of o
    coupled    f = 1 - i; the forget gate's rows are kept and read by nobody
    Other options: General.
    """

    cell, defaults, states = "lstm", ("Sigmoid", "Tanh", "Tanh"), 2

    def __init__(self, *sizes: int, peepholes: bool = False, coupled: bool = False, **options: Any) -> None:
        self.peepholes, self.coupled = bool(peepholes), bool(coupled)
        super().__init__(*sizes, **options)
