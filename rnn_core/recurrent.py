"""RNN, LSTM and GRU layers: stacked, bidirectional, ragged. The arithmetic is the engine's (src/_engine.pyx)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import _dense, checks, lookup, recompute, sequences, variants
from rnn_core._engine import Network
from rnn_core._outputs import empty
from rnn_core._parameters import stamp
from rnn_core._plain import Plain, call
from rnn_core._step import Stepper
from rnn_core.layers import Embedding
from rnn_core.module import Module
from rnn_core.sequences import Ragged, Sequences

Array = NDArray[Any]
State = Any  # h, or (h, c) for an LSTM


@dataclass
class Tape:
    """What `backward` needs of one `forward`. It refers to x and y: changing them before backward is undefined.

    It refers to the weights as well; backward refuses it once they have been written.
    """

    engine: Any
    stamp: int
    source: Sequences
    variant_masks: variants.Masks  # of weight_drop and so on: a list of an array for each direction of each layer
    every_state: bool = False  # whether forward gave the state after every step, and backward gets its gradient
    plain: bool = False  # whether it is of a plain call

    @property
    def masks(self) -> list[Array]:
        """The dropout masks between the layers, L-1 arrays (T, B, D*H) of 0 and 1/(1-p); none without dropout."""
        return self.engine.masks or []


# -------------------------------------------------------------------------------------------------------------- layers


class Recurrent(Module):
    """Base of RNN, LSTM and GRU: `num_layers` layers of one cell, in one or two directions.

    Weights of layer k are weight_ih_l{k} (G*H, I), weight_hh_l{k} (G*H, H), bias_ih_l{k} and bias_hh_l{k} (G*H,),
    with `_reverse` for the second direction; U(-1/sqrt(H), 1/sqrt(H)) at the start, from `seed`.

    weight_drop, recurrent_dropout and zoneout are probabilities of dropping an element of weight_hh (a mask a call) or
    of h before it (a mask a sequence), and of keeping a unit's old state at a step.

    layer_norm=True normalises each gate of W x + b_ih and of R h + b_hh over its H units, and the c that an LSTM's h is
    made of (after Ba et al. 2016): (a - mean) / sqrt(var + 1e-5) * weight + bias, with weight_ln_ih, bias_ln_ih,
    weight_ln_hh and bias_ln_hh (G*H,) of each layer and direction, for an LSTM weight_ln_c and bias_ln_c (H,) too;
    they start from 1 and 0. Equations of all four in docs/equations.md.
    """

    _gates = 1
    weight_drop: float
    recurrent_dropout: float
    zoneout: float
    layer_norm: bool
    _has_c = False
    _transient: tuple[str, ...] = ("_packed", "_gradients")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        weight_drop: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        super().__init__(dtype)
        self.input_size = checks.count("input_size", input_size)
        self.hidden_size = checks.count("hidden_size", hidden_size)
        self.num_layers = checks.count("num_layers", num_layers)
        self.bias, self.batch_first, self.bidirectional = bool(bias), bool(batch_first), bool(bidirectional)
        self.dropout = checks.fraction("dropout", dropout)
        variants.set_options(self, weight_drop, recurrent_dropout, zoneout, layer_norm)
        self.proj_size = checks.count("proj_size", proj_size, 0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size: expected less than hidden_size {hidden_size}, got {proj_size}")
        self._directions = 2 if bidirectional else 1
        self._out = self.proj_size or self.hidden_size
        self._names = self._make_parameters(np.random.default_rng(seed))
        self._mask_seed = int(np.random.default_rng(seed).integers(2**63))
        self.calls = 0  # of forward with random masks; set it to go on where a former run stopped
        self._network: Network | None = None
        self._plain: Plain | None = None
        self._packed: tuple[tuple[int, ...], Any] | None = None
        self._gradients: list[tuple[Array | None, ...]] | None = None

    def _cell(self) -> str:
        raise NotImplementedError

    def _make_parameters(self, rng: np.random.Generator) -> list[list[str | None]]:
        """Random weights; the five names (None where there is none) of each direction of each layer, then those of
        `variants.norm_shapes`."""
        rows, bound = self._gates * self.hidden_size, 1 / math.sqrt(self.hidden_size)
        names: list[list[str | None]] = []
        for layer in range(self.num_layers):
            inputs = self.input_size if layer == 0 else self._directions * self._out
            for suffix in ("", "_reverse")[: self._directions]:
                shapes: dict[str, tuple[int, ...] | None] = {
                    "weight_ih": (rows, inputs),
                    "weight_hh": (rows, self._out),
                    "bias_ih": (rows,) if self.bias else None,
                    "bias_hh": (rows,) if self.bias else None,
                    "weight_hr": (self.proj_size, self.hidden_size) if self.proj_size else None,
                }
                norms, end = variants.norm_shapes(self), f"_l{layer}{suffix}"
                names.append([name + end if shape else None for name, shape in (shapes | norms).items()])
                for name, shape in shapes.items():
                    if shape:
                        self._add_parameter(name + end, rng.uniform(-bound, bound, shape))
                for name, size in norms.items():
                    self._add_parameter(name + end, variants.norm_start(name, size))
        return names

    # ---- the engine's side --------------------------------------------------------------------------------

    def _engine(self) -> Network:
        if self._network is None:
            sizes = [
                (self.input_size if layer == 0 else self._directions * self._out, self.hidden_size, self.proj_size)
                for layer in range(self.num_layers)
                for _ in range(self._directions)
            ]
            self._network = Network(self._cell(), sizes, self.num_layers, self._directions, self.dtype)
        return self._network

    def _plain_calls(self) -> Plain:
        if self._plain is None:
            is_one_cell = len(self._names) == 1 and not self.proj_size and not self.layer_norm
            stepper = Stepper(self._buffers, self._weights, 3) if is_one_cell else None
            self._plain = Plain(self._engine(), self._has_c, stepper)
        return self._plain

    def _arrays(self, of: dict[str, Array]) -> list[tuple[Array | None, ...]]:
        return [tuple(None if name is None else of[name] for name in names) for names in self._names]

    def _gradient_arrays(self) -> list[tuple[Array | None, ...]]:
        if self._gradients is None:
            self._gradients = self._arrays({name: self._grad(name) for name in self._buffers})
        return self._gradients

    def _weights(self) -> Any:
        """The packed weights, made anew when a parameter has been written since."""
        now = stamp(self._buffers)
        packed = self._packed
        if packed is None or packed[0] != now:
            views = {name: buffer.view for name, buffer in self._buffers.items()}
            packed = self._packed = now, self._engine().pack(self._arrays(views))
        return packed[1]

    def _call_weights(self, drawn: variants.Masks) -> Any:
        """The packed weights of one call: its own where it drew a mask over them."""
        if "weight_drop" not in drawn:
            return self._weights()
        views = {name: buffer.view for name, buffer in self._buffers.items()}
        return self._engine().pack(variants.drop_weights(self._arrays(views), drawn["weight_drop"]))

    # ---- arguments and results ----------------------------------------------------------------------------

    def _input(self, x: Any, lengths: Any, embedding: Embedding | None = None, table: bool = True) -> Sequences:
        """Floats, or with an embedding tokens; `table`: whether the engine may be given places in a table of them."""
        if embedding is None:
            return sequences.take(x, lengths, self.dtype, self.input_size, self.batch_first)
        table = table and self._has_tables()
        return lookup.take(embedding, x, lengths, self.dtype, self.input_size, self.batch_first, table)

    def _has_tables(self) -> bool:
        """Whether the input projection can be computed for each distinct token instead of for each that comes."""
        return not self.layer_norm and self._engine().has_tables()

    def _state_parts(self, name: str, state: State) -> tuple[Any, ...]:
        """The arrays of a state, one name each: (h,) here, (h, c) for an LSTM."""
        return ((name, state, self._out),)

    def _join(self, parts: list[Array]) -> State:
        return parts[0]

    def _states(self, name: str, state: State, batch: int, unbatched: bool) -> list[Array | None]:
        """Checked arrays (L*D, B, size) of a state; None where it is None. Always two: c is None but for an LSTM."""
        found: list[Array | None] = []
        rows = self.num_layers * self._directions
        for part, value, size in self._state_parts(name, state):
            if value is not None:
                shape = (rows, size) if unbatched else (rows, batch, size)
                value = checks.floats(part, value, self.dtype, shape).reshape(rows, batch, size)
            found.append(value)
        return [*found, None][:2]

    def _new_states(self, batch: int) -> list[Any]:
        rows = self.num_layers * self._directions
        h = np.empty((rows, batch, self._out), self.dtype)
        return [h, np.empty((rows, batch, self.hidden_size), self.dtype) if self._has_c else None]

    def _public_state(self, states: list[Array | None], unbatched: bool) -> State:
        return self._join([s[..., 0, :] if unbatched else s for s in states if s is not None])

    # ---- forward and backward -----------------------------------------------------------------------------

    __call__ = call  # compiled: src/_plain.pyx

    def _short_forward(self, x: Any, state: State) -> Any:
        """(y, state, tape), where the arguments need no more than a look, else None: a short call is mostly
        overhead."""
        if self.zoneout or self.dropout or self.recurrent_dropout or self.weight_drop:
            return None
        now = stamp(self._buffers)
        found = self._plain_calls().forward(self, x, state, self.batch_first)
        if found is None:
            return None
        y, state, engine = found
        steps, batch = x.shape[1::-1] if self.batch_first else x.shape[:2]
        source = Sequences(x, "batch_first" if self.batch_first else "time_major", steps, batch, None, self.dtype)
        return y, state, Tape(engine, now, source, {}, plain=True)

    def forward(self, x: ArrayLike | Ragged, state: State = None, lengths: ArrayLike | None = None, *,
                embedding: Embedding | None = None, return_all_states: bool = False, recompute: bool = False) -> Any:
        """Training: (y, state, tape), with dropout between the layers; arguments and results as in a plain call. An
        embedding gets its gradients from backward, too.

        recompute=True keeps states at checkpoints only and computes the rest again inside backward: about sqrt(T)
        times less memory for a third more time or less, the same gradients bit for bit. One direction, no Ragged. The
        tape refers to x and y: changing them before backward is undefined.
        """
        if lengths is None and embedding is None and not return_all_states and not recompute:
            found = self._short_forward(x, state)
            if found is not None:
                return found
        if recompute:
            if return_all_states:
                raise ValueError("recompute: expected return_all_states=False beside it, since it keeps no states")
            return self._run_checkpointed(self._input(x, lengths, embedding, table=False), state)
        return self._run(self._input(x, lengths, embedding), state, True, return_all_states)

    def _run(self, source: Sequences, state: State, keep: bool, every: bool = False) -> Any:
        h0, c0 = self._states("state", state, source.batch, source.unbatched)
        y, final = source.empty(self._directions * self._out), self._new_states(source.batch)
        states: list[Array | None] = self._every_state(source) if every else [None, None]
        masks = self._masks(source) if keep and self.dropout and self.num_layers > 1 else None
        drawn = self._draw(source, masks) if keep else {}
        now, weights = stamp(self._buffers), self._call_weights(drawn)
        rows = None if source.looked is None else source.looked.rows
        engine = self._engine().forward(
            weights, source.array, y, source.layout, source.steps, source.batch, source.lengths,
            h0, c0, final[0], final[1], keep, masks, *states, variant=variants.for_engine(self, drawn),
            table=None if rows is None else weights.table(rows, self._directions),
        )
        tape = Tape(engine, now, source, drawn, every) if keep else None
        return source.result(y), self._public_state(states if every else final, source.unbatched), tape

    def _every_state(self, source: Sequences) -> list[Array | None]:
        """Arrays (T, L*D, B, size) for the states after every step."""
        lead = (source.steps, self.num_layers * self._directions, source.batch)
        h = empty((*lead, self._out), self.dtype)
        return [h, empty((*lead, self.hidden_size), self.dtype) if self._has_c else None]

    def _run_checkpointed(self, source: Sequences, state: State) -> Any:
        start = self._states("state", state, source.batch, source.unbatched)
        y = source.empty(self._directions * self._out)
        masks = self._masks(source) if self.dropout and self.num_layers > 1 else []
        drawn = self._draw(source, masks)
        final, tape = recompute.forward(self, source, start, y, masks, drawn)
        return source.result(y), self._public_state(final, source.unbatched), tape

    def _masks(self, source: Sequences) -> list[Array]:
        """Factors 0 or 1/(1-p) of each element between two layers, by (seed, call, layer, sequence, step, unit)."""
        shape = (source.steps, source.batch, self._directions * self._out)
        masks = [empty(shape, self.dtype) for _ in range(self.num_layers - 1)]
        for layer, mask in enumerate(masks):
            _dense.dropout(None, None, mask, self.dropout, self._mask_seed, self.calls, layer, False)
        return masks

    def _draw(self, source: Sequences, masks: list[Array] | None) -> variants.Masks:
        """The masks of the variants for this call, which ends the drawing of its random numbers."""
        drawn = variants.draw(self, source.steps, source.batch)
        if masks or drawn:
            self.calls += 1
        return drawn

    def backward(self, tape: Tape, dy: Any, dstate: State = None, *, need_dx: bool = True) -> Any:
        """(dx, dstate) of the gradients dy of y and dstate of the state (None for zero); adds into `grads`.

        dstate is shaped as the state that forward gave: the final one, or with return_all_states every step's.

        dy as y (a Ragged for a Ragged); dx as x, or None with need_dx=False; of tokens dx is None, their embedding gets
        its gradient, or none with need_dx=False. Werbos 1990, "Backpropagation through
        time: what it does and how to do it".
        """
        self._check_tape(tape)
        source = tape.source
        if isinstance(tape, Tape) and tape.plain:
            calls, grads = self._plain_calls(), self._gradient_arrays()
            batch_first = source.layout == "batch_first"
            found = calls.backward(tape.engine, source.array, dy, dstate, grads, need_dx, batch_first)
            if found is not None:
                return found
        dx = source.empty_input(self.input_size) if need_dx else None
        grads = self._gradient_arrays()
        found = variants.gradient_arrays(grads, tape.variant_masks)
        dy = source.gradient(dy, self._directions * self._out)
        if isinstance(tape, recompute.Checkpoints):
            before = recompute.backward(self, tape, dy, self._states("dstate", dstate, source.batch, source.unbatched),
                                        dx, found)
        else:
            before = self._new_states(source.batch)
            self._engine().backward(tape.engine, dy, *self._final_gradients(tape, dstate), found, dx, *before,
                                    *self._every_gradient(tape, dstate))
        variants.add_gradients(grads, found, tape.variant_masks)
        return source.input_gradient(dx), self._public_state(before, source.unbatched)

    def _check_tape(self, tape: Any) -> None:
        network = tape.engine.network if isinstance(tape, Tape) else getattr(tape, "engine", None)
        if not isinstance(tape, (Tape, recompute.Checkpoints)) or network is not self._engine():
            raise ValueError(f"tape: expected one that this layer's forward made, got {type(tape).__name__}")
        if tape.stamp != stamp(self._buffers):
            raise ValueError("tape: expected the weights of its forward, got weights that have been written since")

    def _final_gradients(self, tape: Tape, dstate: State) -> list[Array | None]:
        if tape.every_state:
            return [None, None]
        return self._states("dstate", dstate, tape.source.batch, tape.source.unbatched)

    def _every_gradient(self, tape: Tape, dstate: State) -> list[Array | None]:
        """The gradients of every step's state, where forward gave those: (T, L*D, B, size), or None."""
        if not tape.every_state or dstate is None:
            return [None, None]
        found = self._every_state(tape.source)
        for to, (name, value, _) in zip(found, self._state_parts("dstate", dstate)):
            if to is not None and value is not None:
                shape = to[:, :, 0].shape if tape.source.unbatched else to.shape
                to[...] = checks.floats(name, value, self.dtype, shape).reshape(to.shape)
        return found

    def _describe(self) -> str:
        options = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
                   "proj_size": 0, "weight_drop": 0.0, "recurrent_dropout": 0.0, "zoneout": 0.0,
                   "layer_norm": False}
        text = [f"{self.input_size}, {self.hidden_size}"]
        text += [f"{k}={getattr(self, k)!r}" for k, default in options.items() if getattr(self, k) != default]
        return ", ".join(text)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_network": None, "_plain": None}


class RNN(Recurrent):
    """h_t = tanh(W x_t + b_ih + R h_{t-1} + b_hh), or max(0, .) with nonlinearity="relu" (Elman 1990).

    Arguments, shapes and keys are torch.nn.RNN's.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, nonlinearity: str = "tanh",
                 **options: Any) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        _refuse_projection(options)
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, num_layers, **options)

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with Gers et al.'s forget gate), gates i, f, g, o:

        i, f, o = sigmoid(.), g = tanh(.) of W x_t + b_ih + R h_{t-1} + b_hh
        c_t = f c_{t-1} + i g,  h_t = o tanh(c_t), and with proj_size W_hr h_t instead of h_t (Sak et al. 2014)

    Arguments, shapes and keys are torch.nn.LSTM's; the state is (h, c).
    """

    _gates = 4
    _has_c = True

    def _cell(self) -> str:
        return "lstm"

    def _state_parts(self, name: str, state: State) -> tuple[Any, ...]:
        if state is None:
            state = (None, None)
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"{name}: expected a pair (h, c), got {type(state).__name__}")
        return ((f"{name} h", state[0], self._out), (f"{name} c", state[1], self.hidden_size))

    def _join(self, parts: list[Array]) -> State:
        return parts[0], parts[1]


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014), gates r, z, n:

        r, z = sigmoid(.) of W x_t + b_ih + R h_{t-1} + b_hh
        n = tanh(W_n x_t + b_in + r (R_n h_{t-1} + b_hn)), or with reset_after=False
        n = tanh(W_n x_t + b_in + R_n (r h_{t-1}) + b_hn)
        h_t = (1 - z) n + z h_{t-1}

    Arguments, shapes and keys are torch.nn.GRU's. reset_after=False is Cho's original, Keras' version 1 and ONNX'
    linear_before_reset=0.
    """

    _gates = 3

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, reset_after: bool = True,
                 **options: Any) -> None:
        _refuse_projection(options)
        self.reset_after = bool(reset_after)
        super().__init__(input_size, hidden_size, num_layers, **options)

    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"


def _refuse_projection(options: dict[str, Any]) -> None:
    if options.get("proj_size"):
        raise ValueError(f"proj_size: expected 0, since only LSTM has a projection, got {options['proj_size']!r}")
