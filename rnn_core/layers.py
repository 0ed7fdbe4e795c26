"""Layers without recurrence: Linear, Embedding, Dropout, and Sequential, which runs any layers one after the other."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import _dense, _linear, _runtime, checks
from rnn_core._outputs import empty
from rnn_core.module import Module
from rnn_core.sequences import Ragged

Array = NDArray[Any]


def _rows(name: str, x: ArrayLike, dtype: Any, features: int) -> tuple[Array, tuple[int, ...]]:
    """x (..., features) as (N, features), and its leading sizes."""
    if type(x) is np.ndarray and x.ndim == 2 and x.dtype == dtype and x.flags.carray and x.shape[1] == features:
        return x, x.shape[:1]  # needs no more looks: a short call is mostly overhead
    found = np.asarray(x)
    lead = found.shape[:-1] if found.ndim else ("N",)
    checked = checks.floats(name, x, dtype, (*lead, features))
    return checked.reshape(-1, features), checked.shape[:-1]


def _like(name: str, x: ArrayLike, dtype: Any, shape: tuple[int, ...]) -> Array:
    """x of exactly this shape, as rows of its last size."""
    return checks.floats(name, x, dtype, shape).reshape(-1, shape[-1])


@functools.cache
def _panels(dtype: np.dtype) -> bool:
    """Whether our packed kernels compute products of this dtype; BLAS does where they are not tuned."""
    return dtype == np.float32 and _runtime.isa() != "generic" and os.environ.get("RNN_CORE_GEMM") != "blas"


class Linear(Module):
    """y = x W^T + b.

    in_features, out_features: sizes of the last dimension of x and y; weight (out, in) and bias (out) start from
    U(-1/sqrt(in), 1/sqrt(in)), as PyTorch's do. seed: of that start; None takes a new one from the system.
    """

    _transient = ("_plan",)

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, dtype: Any = "float32", seed: int | None = None
    ) -> None:
        super().__init__(dtype)
        self.in_features = checks.count("in_features", in_features)
        self.out_features = checks.count("out_features", out_features)
        self.bias = bool(bias)
        bound, rng = 1.0 / math.sqrt(self.in_features), np.random.default_rng(seed)
        self._add_parameter("weight", rng.uniform(-bound, bound, (self.out_features, self.in_features)))
        if self.bias:
            self._add_parameter("bias", rng.uniform(-bound, bound, self.out_features))
        self._plan: _linear.Plan | None = None

    def __call__(self, x: ArrayLike) -> Array:
        """x (..., in_features) -> y (..., out_features); keeps nothing."""
        rows, lead = _rows("x", x, self.dtype, self.in_features)
        return self._product(rows).reshape(*lead, self.out_features)

    def forward(self, x: ArrayLike) -> tuple[Array, Array]:
        """As the call, and the tape: x itself, which must not change before backward."""
        checked = _rows("x", x, self.dtype, self.in_features)
        rows, lead = checked
        y = self._product(rows)
        if len(lead) == 1:
            return y, rows
        return y.reshape(*lead, self.out_features), rows.reshape(*lead, self.in_features)

    def backward(self, tape: Array, dy: ArrayLike, need_dx: bool = True) -> Array | None:
        """Add dL/dW and dL/db into grads; gives dL/dx, or None with need_dx=False. dy has the shape of y."""
        x = tape.reshape(-1, self.in_features)
        dy = _like("dy", dy, self.dtype, (*tape.shape[:-1], self.out_features))
        dx = empty(x.shape, self.dtype) if need_dx else None
        dw, db = self._grad("weight"), self._grad("bias") if self.bias else None
        if _panels(self.dtype):
            self._ready_plan().backward(x, dy, dx, dw, db)
        else:
            dw += dy.T @ x
            if db is not None:
                db += dy.sum(0)
            if dx is not None:
                np.matmul(dy, self._buffers["weight"].view, out=dx)
        return None if dx is None else dx.reshape(tape.shape)

    def _product(self, x: Array) -> Array:
        y = empty((x.shape[0], self.out_features), self.dtype)
        if _panels(self.dtype):
            plan = self._ready_plan()
            plan.forward(x, y, np.empty(plan.bias_size, self.dtype) if self.bias else None)
            return y
        np.matmul(x, self._buffers["weight"].view.T, out=y)
        if self.bias:
            y += self._buffers["bias"].view
        return y

    def _ready_plan(self) -> _linear.Plan:
        if self._plan is None:
            self._plan = _linear.Plan(self._buffers["weight"], self._buffers.get("bias"))
        return self._plan

    def _describe(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias}"


class Embedding(Module):
    """Rows of a table: y = weight[indices].

    weight (num_embeddings, embedding_dim) starts from N(0, 1); the row of padding_idx starts from zero and gets no
    gradient (a negative padding_idx counts from the end, as in PyTorch).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        super().__init__(dtype)
        self.num_embeddings = checks.count("num_embeddings", num_embeddings)
        self.embedding_dim = checks.count("embedding_dim", embedding_dim)
        self.padding_idx = padding_idx
        weight = np.random.default_rng(seed).standard_normal((self.num_embeddings, self.embedding_dim))
        if padding_idx is not None:
            n = self.num_embeddings
            self.padding_idx = int(checks.integers("padding_idx", padding_idx, -n, n, ())) % n
            weight[self.padding_idx] = 0
        self._add_parameter("weight", weight)

    def __call__(self, indices: ArrayLike) -> Array:
        """indices (...), integers from 0 to num_embeddings - 1 -> (..., embedding_dim)."""
        return self.forward(indices)[0]

    def forward(self, indices: ArrayLike) -> tuple[Array, Array]:
        """As the call, and the tape: the indices."""
        at = checks.integers("indices", indices, 0, self.num_embeddings, np.shape(indices))
        y = empty((*at.shape, self.embedding_dim), self.dtype)
        _dense.gather(self._buffers["weight"].view, at.reshape(-1), y)
        return y, at

    def backward(self, tape: Array, dy: ArrayLike, need_dx: bool = True) -> None:
        """Add dL/dweight into grads: dy (..., embedding_dim) of each index, in their order. There is no dx."""
        rows = _like("dy", dy, self.dtype, (*tape.shape, self.embedding_dim))
        skip = -1 if self.padding_idx is None else self.padding_idx
        _dense.scatter_add(self._grad("weight"), tape.reshape(-1), rows, skip)

    def _describe(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}{padding}"


class Dropout(Module):
    """In training each element is zero with probability p, else multiplied by 1 / (1 - p); in inference nothing.

    Whether an element is kept follows from (seed, call, sequence, step, unit) by Philox, whatever the batch or the
    threads. `calls` counts the forward calls: set it to go on where a former run stopped. The tape is the mask.
    x is (T, B, N), or (B, T, N) with batch_first; further leading dimensions are counted as steps (with batch_first, as
    sequences), and (B, N) is one step.
    """

    def __init__(self, p: float = 0.5, seed: int | None = None, *, batch_first: bool = False) -> None:
        super().__init__()
        self.p, self.batch_first = checks.fraction("p", p), bool(batch_first)
        self.seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        self.calls = 0

    def __call__(self, x: Array) -> Array:
        """x itself."""
        return x

    def forward(self, x: ArrayLike) -> tuple[Array, Array | None]:
        """x with a new mask (float32 or float64), and the mask; (x, None) where p is 0."""
        found = np.asarray(x)
        values = checks.floats("x", found, checks.dtype(found.dtype), found.shape)
        call, self.calls = self.calls, self.calls + 1
        if self.p == 0:
            return values, None
        shape = self._steps(values.shape)
        mask, y = empty(shape, values.dtype), empty(shape, values.dtype)
        _dense.dropout(values.reshape(shape), y, mask, self.p, self.seed, call, 0, self.batch_first)
        return y.reshape(values.shape), mask.reshape(values.shape)

    def _steps(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The three sizes under which the elements are counted."""
        units = shape[-1] if shape else 1
        rows = math.prod(shape[:-1])
        if self.batch_first and len(shape) == 2:
            return rows, 1, units
        inner = shape[-2] if len(shape) > 1 else 1
        return (rows // inner if inner else 0), inner, units

    def backward(self, tape: Array | None, dy: ArrayLike, need_dx: bool = True) -> Array | None:
        """dy times the mask."""
        if not need_dx:
            return None
        if tape is None:
            return np.asarray(dy)
        grad = checks.floats("dy", dy, tape.dtype, tape.shape)
        dx = empty(tape.shape, tape.dtype)
        _dense.multiply(grad, tape, dx)
        return dx

    def _describe(self) -> str:
        return f"p={self.p}"


class Sequential(Module):
    """Layers one after the other: Sequential(a, b) with the keys "0.…" and "1.…", or Sequential(name=a, other=b).

    Of a recurrent layer the output y goes on, and its states start from zero; `lengths` goes to the layers that take
    it. Of a Ragged the other layers see the values.
    """

    def __init__(self, *layers: Module, **named: Module) -> None:
        children = {str(i): layer for i, layer in enumerate(layers)} | named
        super().__init__()
        for name, child in children.items():
            self._add_child(name, child)

    def __call__(self, x: Any, lengths: ArrayLike | None = None) -> Any:
        """The last layer's output; keeps nothing."""
        for child in self._children.values():
            given, wrap, options = _prepared(child, x, lengths)
            x = wrap(_first(child(given, **options)))  # type: ignore[operator]
        return x

    def forward(self, x: Any, lengths: ArrayLike | None = None) -> tuple[Any, list[Any]]:
        """The last layer's output, and the tapes."""
        tapes = []
        for child in self._children.values():
            given, wrap, options = _prepared(child, x, lengths)
            y, *_, tape = child.forward(given, **options)  # type: ignore[attr-defined]
            x = wrap(y)
            tapes.append(tape)
        return x, tapes

    def backward(self, tape: list[Any], dy: Any, need_dx: bool = True) -> Any:
        """Add to every layer's grads; gives dL/dx of the first layer, or None with need_dx=False."""
        children = list(self._children.values())
        if len(tape) != len(children):
            raise ValueError(f"tape: expected that of {len(children)} layers, got {len(tape)}")
        for i in range(len(children) - 1, -1, -1):
            given, wrap, _ = _prepared(children[i], dy, None)
            dx = _first(children[i].backward(tape[i], given, need_dx=need_dx or i > 0))  # type: ignore[attr-defined]
            dy = None if dx is None else wrap(dx)
        return dy


def _first(result: Any) -> Any:
    """y of (y, state), dx of (dx, dstate)."""
    return result[0] if isinstance(result, tuple) else result


def _prepared(child: Module, x: Any, lengths: ArrayLike | None) -> tuple[Any, Callable[[Any], Any], dict[str, Any]]:
    """What a layer is given for x, what makes a Ragged of its result again, and its options."""
    if "lengths" in inspect.signature(child.__call__).parameters:  # type: ignore[operator]
        return x, lambda y: y, {} if lengths is None else {"lengths": lengths}
    if isinstance(x, Ragged):
        return x.values, lambda y: Ragged(y, x.lengths), {}
    return x, lambda y: y, {}
