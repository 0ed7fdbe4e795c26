"""RNN, LSTM and GRU cells: one time step at a time, for services and for loops of one's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import checks
from rnn_core._engine import Network
from rnn_core._parameters import stamp
from rnn_core._step import Stepper, step
from rnn_core.module import Module

Array = NDArray[Any]
State = Any  # h (B, H), or (h, c) for an LSTM

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass
class CellTape:
    """What `backward` needs of one step. It refers to x and the state: changing them before backward is undefined.

    It refers to the weights as well; backward refuses it once they have been written.
    """

    engine: Any
    stamp: int
    batch: int
    unbatched: bool


class Cell(Module):
    """Base of the cells. Weights weight_ih (G*H, I), weight_hh (G*H, H), bias_ih, bias_hh (G*H,), as in torch's cells;
    U(-1/sqrt(H), 1/sqrt(H)) at the start, from `seed`."""

    _gates = 1
    _transient = ("_packed", "_stepper", "_network")

    def __init__(self, input_size: int, hidden_size: int, *, bias: bool = True, dtype: Any = "float32",
                 seed: int | None = None) -> None:
        super().__init__(dtype)
        self.input_size = checks.count("input_size", input_size)
        self.hidden_size = checks.count("hidden_size", hidden_size)
        self.bias = bool(bias)
        rng, bound, rows = np.random.default_rng(seed), 1 / math.sqrt(self.hidden_size), self._gates * self.hidden_size
        shapes = [(rows, self.input_size), (rows, self.hidden_size), (rows,), (rows,)]
        for name, shape in list(zip(_NAMES, shapes))[: 4 if bias else 2]:
            self._add_parameter(name, rng.uniform(-bound, bound, shape))
        self._network: Network | None = None
        self._packed: tuple[tuple[int, ...], Any] | None = None
        self._stepper: Stepper | None = None

    def _cell(self) -> str:
        raise NotImplementedError

    def _engine(self) -> Network:
        if self._network is None:
            self._network = Network(self._cell(), [(self.input_size, self.hidden_size, 0)], 1, 1, self.dtype)
        return self._network

    def _arrays(self, of: dict[str, Array]) -> tuple[Array | None, ...]:
        return tuple(of.get(name) for name in (*_NAMES, "weight_hr"))

    def _weights(self) -> Any:
        """The packed weights, made anew when a parameter has been written since."""
        now = stamp(self._buffers)
        packed = self._packed
        if packed is None or packed[0] != now:
            views = {name: buffer.view for name, buffer in self._buffers.items()}
            packed = self._packed = now, self._engine().pack([self._arrays(views)])
        return packed[1]

    # ---- arguments ----------------------------------------------------------------------------------------

    def _input(self, x: ArrayLike) -> tuple[Array, bool]:
        """x as (B, I), and whether it came as (I,)."""
        unbatched = checks.rank("x", x) == 1
        if unbatched:
            return checks.floats("x", x, self.dtype, (self.input_size,))[None], True
        return checks.floats("x", x, self.dtype, ("B", self.input_size)), False

    def _parts(self, name: str, state: State) -> tuple[tuple[str, Any], ...]:
        return ((name, state),)

    def _states(self, name: str, state: State, batch: int, unbatched: bool) -> list[Array | None]:
        """h and c as (1, B, H), or None; c is always None but for an LSTM."""
        found: list[Array | None] = []
        for part, value in self._parts(name, state):
            if value is not None:
                shape = (self.hidden_size,) if unbatched else (batch, self.hidden_size)
                value = checks.floats(part, value, self.dtype, shape).reshape(1, batch, self.hidden_size)
            found.append(value)
        return [*found, None][:2]

    def _new_states(self, batch: int) -> list[Array | None]:
        parts = self._parts("", None)
        return [*(np.empty((1, batch, self.hidden_size), self.dtype) for _ in parts), None][:2]

    def _join(self, states: list[Array | None], unbatched: bool) -> State:
        parts = tuple(s.reshape(s.shape[2:] if unbatched else s.shape[1:]) for s in states if s is not None)
        return parts if len(parts) == 2 else parts[0]

    # ---- one step -----------------------------------------------------------------------------------------

    def __call__(self, x: ArrayLike, state: State = None) -> State:
        """The state after one step: h, or (h, c) for an LSTM. x (B, I) or (I,); state alike, zero if None."""
        return self._run(x, state, False)[0]

    def forward(self, x: ArrayLike, state: State = None) -> tuple[State, CellTape]:
        """(state, tape): the same, keeping what backward needs."""
        return self._run(x, state, True)

    def _run(self, x: ArrayLike, state: State, keep: bool) -> Any:
        array, unbatched = self._input(x)
        batch = len(array)
        h0, c0 = self._states("state", state, batch, unbatched)
        final, now = self._new_states(batch), stamp(self._buffers)
        tape = self._advance(array, h0, c0, final[0], final[1], keep)
        return self._join(final, unbatched), CellTape(tape, now, batch, unbatched) if keep else None

    def _advance(self, x: Array, h0: Any, c0: Any, h: Any, c: Any, keep: bool = False) -> Any:
        return self._engine().forward(self._weights(), x[None], h, "time_major", 1, len(x), None, h0, c0, h, c, keep)

    step = step  # compiled: src/_step.pyx

    def _slow_step(self, x: ArrayLike, state: State, out: State) -> State:
        """Any arguments that are valid, and the errors for those that are not."""
        final = self._run(x, state, False)[0]
        if out is None:
            return final
        for (name, to), (_, value) in zip(self._parts("out", out), self._parts("out", final)):
            if not isinstance(to, np.ndarray) or not to.flags.writeable:
                raise TypeError(f"{name}: expected a writable array, got {type(to).__name__}"
                                + (" that is read-only" if isinstance(to, np.ndarray) else ""))
            checks.floats(name, to, self.dtype, value.shape)
        parts = [to for _, to in self._parts("out", out)]
        if len(parts) == 2 and np.may_share_memory(*parts):
            raise ValueError("out: expected h and c in memory of their own, got arrays that overlap")
        for (_, to), (_, value) in zip(self._parts("out", out), self._parts("out", final)):
            to[...] = value
        return out

    def backward(self, tape: CellTape, dstate: State, *, need_dx: bool = True) -> Any:
        """(dx, dstate before) of the gradient dstate of the state after; adds into `grads`."""
        if not isinstance(tape, CellTape) or tape.engine.network is not self._engine():
            raise ValueError(f"tape: expected one that this cell's forward made, got {type(tape).__name__}")
        if tape.stamp != stamp(self._buffers):
            raise ValueError("tape: expected the weights of its forward, got weights that have been written since")
        dhn, dcn = self._states("dstate", dstate, tape.batch, tape.unbatched)
        dh0, dc0 = self._new_states(tape.batch)
        dx = np.empty((1, tape.batch, self.input_size), self.dtype) if need_dx else None
        grads = {name: self._grad(name) for name in self._buffers}
        self._engine().backward(tape.engine, None, dhn, dcn, [self._arrays(grads)], dx, dh0, dc0)
        if dx is not None:
            dx = dx[0, 0] if tape.unbatched else dx[0]
        return dx, self._join([dh0, dc0], tape.unbatched)

    def _describe(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(Cell):
    """One step of `RNN`: h' = tanh(W x + b_ih + R h + b_hh), or max(0, .) with nonlinearity="relu"."""

    def __init__(self, input_size: int, hidden_size: int, *, nonlinearity: str = "tanh", **options: Any) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, **options)

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"


class GRUCell(Cell):
    """One step of `GRU`; reset_after=False is Cho's original."""

    _gates = 3

    def __init__(self, input_size: int, hidden_size: int, *, reset_after: bool = True, **options: Any) -> None:
        self.reset_after = bool(reset_after)
        super().__init__(input_size, hidden_size, **options)

    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"


class LSTMCell(Cell):
    """One step of `LSTM`; the state is (h, c)."""

    _gates = 4

    def _cell(self) -> str:
        return "lstm"

    def _parts(self, name: str, state: State) -> tuple[tuple[str, Any], ...]:
        if state is None:
            state = (None, None)
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"{name}: expected a pair (h, c), got {type(state).__name__}")
        return ((f"{name} h", state[0]), (f"{name} c", state[1]))
