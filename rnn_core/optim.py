"""Optimisers: SGD, RMSprop, Adam and AdamW by PyTorch's formulas, one fused pass over all parameters, in place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_core import checks
from rnn_core._parameters import Buffer, address
from rnn_core._tensors import Tensors
from rnn_core.module import aligned_zeros

Arrays = Mapping[str, NDArray[Any]]


def gradients(grads: Arrays) -> list[NDArray[Any]]:
    """The arrays of a dictionary of gradients, checked: writable, C-contiguous, float32 or float64."""
    if not isinstance(grads, Mapping):
        raise TypeError(f"grads: expected a dictionary of arrays, got {type(grads).__name__}")
    for key, grad in grads.items():
        if not isinstance(grad, np.ndarray):
            raise TypeError(f"grads[{key!r}]: expected an array, got {type(grad).__name__}")
        checks.dtype(grad.dtype)
        if not (grad.flags.c_contiguous and grad.flags.aligned and grad.flags.writeable):
            raise ValueError(f"grads[{key!r}]: expected a writable C-contiguous array")
    return list(grads.values())


def _parameter(key: str, array: Any) -> Buffer | None:
    """The Buffer of a parameter; None for an array of the user's own, which must be writable."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"params[{key!r}]: expected an array, got {type(array).__name__}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"params[{key!r}]: expected a C-contiguous array")
    checks.dtype(array.dtype)
    try:
        return address(array)[0]
    except TypeError:
        if not array.flags.writeable:
            raise ValueError(f"params[{key!r}]: expected a module's parameter or a writable array") from None
        return None


class _Group:
    """Parameters that share their options, and their states."""

    def __init__(self, params: Arrays, options: dict[str, Any]) -> None:
        if not isinstance(params, Mapping):
            raise TypeError(f"params: expected a dictionary of arrays, got {type(params).__name__}")
        if not params:
            raise ValueError("params: expected at least one parameter")
        self.options = options
        self.step = 0
        self.states: dict[str, dict[str, NDArray[Any]]] = {}
        self.params = dict(params)
        self._prepare()

    def _prepare(self) -> None:
        """List the parameters' memory for the kernels, and that of the states which there are."""
        buffers = {key: _parameter(key, array) for key, array in self.params.items()}
        dtypes = {array.dtype.name for array in self.params.values()}
        if len(dtypes) > 1:
            raise TypeError(f"params: expected one dtype in a group, got {sorted(dtypes)}: use a group for each")
        self.tensors = Tensors(list(self.params.values()), [b for b in buffers.values() if b is not None])
        self.state_tensors = {name: Tensors(list(arrays.values())) for name, arrays in self.states.items()}
        self.grads = Tensors([])
        self.checked_options: dict[str, Any] = {}

    def state(self, name: str) -> Tensors:
        """The state `name` of every parameter, zero at first."""
        if name not in self.states:
            self.states[name] = {key: aligned_zeros(p.shape, p.dtype) for key, p in self.params.items()}
            self.state_tensors[name] = Tensors(list(self.states[name].values()))
        return self.state_tensors[name]

    def take(self, grads: Arrays) -> None:
        """Check this group's gradients; nothing is checked twice while the arrays stay the same objects."""
        if not isinstance(grads, Mapping):
            raise TypeError(f"grads: expected a dictionary of arrays, got {type(grads).__name__}")
        missing = [key for key in self.params if key not in grads]
        if missing:
            raise ValueError(f"grads: expected the parameters' keys, missing: {missing}")
        found = [grads[key] for key in self.params]
        known = self.grads.arrays
        if len(known) == len(found) and all(a is b for a, b in zip(known, found)):
            return
        checked = []
        for (key, param), grad in zip(self.params.items(), found):
            if not isinstance(grad, np.ndarray):
                raise TypeError(f"grads[{key!r}]: expected an array, got {type(grad).__name__}")
            checked.append(checks.floats(f"grads[{key!r}]", grad, param.dtype, param.shape))
        self.grads = Tensors(checked)

    def check_finite(self) -> None:
        bad = self.grads.first_not_finite()
        if bad >= 0:
            raise ValueError(f"grads[{list(self.params)[bad]!r}]: expected finite gradients, got inf or NaN")

    def __getstate__(self) -> dict[str, Any]:
        """Parameters go as (Buffer, offset, shape), so that a copy made together with its model stays tied to it."""
        params = {}
        for key, array in self.params.items():
            tied = _parameter(key, array) is not None
            params[key] = (*address(array), array.shape) if tied else array
        return {"options": self.options, "step": self.step, "states": self.states, "params": params}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        parts = state["params"].items()
        self.params = {k: v[0].part(v[1], v[2]) if isinstance(v, tuple) else v for k, v in parts}
        self._prepare()


class Optimiser:
    """Base of the optimisers.

    params: a dictionary of a module's params (or of writable arrays of your own), or a list of groups
    `{"params": {...}, "lr": ..., ...}` with options of their own.
    """

    _kind = ""
    _ranges: dict[str, tuple[float, float]] = {}  # option -> lowest, and what it stays below

    def __init__(self, params: Arrays | Iterable[Mapping[str, Any]], defaults: dict[str, Any]) -> None:
        self._check(defaults)
        groups = [{"params": params}] if isinstance(params, Mapping) else list(params)
        if not groups:
            raise ValueError("params: expected at least one group")
        self._groups: list[_Group] = []
        for group in groups:
            if not isinstance(group, Mapping) or "params" not in group:
                raise TypeError("params: expected a dictionary of arrays, or groups {'params': {...}, 'lr': ...}")
            options = {key: value for key, value in group.items() if key != "params"}
            unknown = [key for key in options if key not in defaults]
            if unknown:
                raise ValueError(f"params: expected the options {list(defaults)} in a group, got {unknown}")
            options = {**defaults, **options}
            self._check(options)
            self._groups.append(_Group(group["params"], options))
        keys = [key for group in self._groups for key in group.params]
        twice = sorted(key for key in set(keys) if keys.count(key) > 1)
        if twice:
            raise ValueError(f"params: expected each key in one group, got {twice} in several")

    def _check(self, options: dict[str, Any]) -> None:
        for name, value in options.items():
            if isinstance(value, bool):
                continue
            for number in value if isinstance(value, tuple) else (value,):
                low, below = self._ranges.get(name, (0.0, math.inf))
                if not low <= checks.real(name, number) < below:
                    raise ValueError(f"{name}: expected {low} <= {name} < {below}, got {value!r}")

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The options of each group; `lr` and the others may be changed here between steps."""
        return [group.options for group in self._groups]

    @property
    def lr(self) -> float:
        """The learning rate of the first group; setting it sets that of every group."""
        return self._groups[0].options["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self._groups:
            self._check({"lr": value})
            group.options["lr"] = value

    def step(self, grads: Arrays) -> None:
        """Update every parameter in place by its gradient; keys that are no parameters of ours are passed over.

        ValueError names the key of a gradient that is missing, of another shape, or not finite; nothing changes then.
        """
        for group in self._groups:
            group.take(grads)
        for group in self._groups:
            if group.options != group.checked_options:
                self._check(group.options)
                group.checked_options = dict(group.options)
            group.check_finite()
        for group in self._groups:
            group.step += 1
            terms, states = self._terms(group)
            group.tensors.update(self._kind, terms, [group.grads, *states])

    def _terms(self, group: _Group) -> tuple[dict[str, Any], list[Tensors | None]]:
        """The numbers of this step, and the states that it reads and writes."""
        raise NotImplementedError

    # ---- saving and loading ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"state": {name: {key: array}}, "groups": [{"params": [key, ...], "step": n, "lr": ..., ...}]}, as copies."""
        state: dict[str, dict[str, NDArray[Any]]] = {}
        for group in self._groups:
            for name, arrays in group.states.items():
                state.setdefault(name, {}).update((key, array.copy()) for key, array in arrays.items())
        groups = [{"params": list(group.params), "step": group.step, **group.options} for group in self._groups]
        return {"state": state, "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the options, step counts and states of a state_dict of the same parameters; checks come first."""
        if not isinstance(state, Mapping) or not {"state", "groups"} <= set(state):
            raise ValueError("load_state_dict: expected the dictionary of an optimiser's state_dict()")
        if len(state["groups"]) != len(self._groups):
            raise ValueError(f"load_state_dict: expected {len(self._groups)} groups, got {len(state['groups'])}")
        loaded = [self._loadable(group, found, state["state"]) for group, found in zip(self._groups, state["groups"])]
        for group, (step, options, states) in zip(self._groups, loaded):
            group.step = step
            group.options.update(options)
            group.states = states
            group._prepare()

    def _loadable(self, group: _Group, found: Mapping[str, Any], state: Mapping[str, Arrays]) -> tuple[Any, ...]:
        """(step, options, own copies of the states) of one group, all checked."""
        if list(found.get("params", ())) != list(group.params):
            raise ValueError(f"load_state_dict: expected the keys {list(group.params)}, got {found.get('params')}")
        options = {key: value for key, value in found.items() if key not in ("params", "step")}
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        if set(options) != set(group.options):
            raise ValueError(f"load_state_dict: expected the options {sorted(group.options)}, got {sorted(options)}")
        self._check(options)
        states: dict[str, dict[str, NDArray[Any]]] = {}
        for name, arrays in state.items():
            missing = [key for key in group.params if key not in arrays]
            if missing and len(missing) < len(group.params):
                raise ValueError(f"load_state_dict: {name}: expected all of the group's keys, missing: {missing}")
            if not missing:
                states[name] = {k: self._state_copy(f"{name}[{k!r}]", arrays[k], p) for k, p in group.params.items()}
        return checks.count("step", found.get("step"), 0), options, states

    @staticmethod
    def _state_copy(name: str, array: Any, param: NDArray[Any]) -> NDArray[Any]:
        made = aligned_zeros(param.shape, param.dtype)
        made[...] = checks.floats(name, array, param.dtype, param.shape)
        return made

    def __repr__(self) -> str:
        options = "; ".join(", ".join(f"{k}={v}" for k, v in group.options.items()) for group in self._groups)
        return f"{type(self).__name__}({options})"


class SGD(Optimiser):
    """Stochastic gradient descent.

    g += weight_decay p; b = momentum b + (1 - dampening) g (b = g at the first step); p -= lr b, or with Nesterov's
    momentum p -= lr (g + momentum b)
    """

    _kind = "sgd"

    def __init__(
        self,
        params: Arrays | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nesterov": bool(nesterov)})

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        if options.get("nesterov") and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ValueError("nesterov: expected a momentum above 0 and no dampening")

    def _terms(self, group: _Group) -> tuple[dict[str, Any], list[Tensors | None]]:
        options = group.options
        terms = {key: options[key] for key in ("lr", "momentum", "dampening", "nesterov")}
        terms["decay"] = options["weight_decay"]
        if options["momentum"] and "momentum_buffer" not in group.states:
            terms["dampening"] = 0.0  # the first step takes the gradient whole
        return terms, [group.state("momentum_buffer") if options["momentum"] else None]


class RMSprop(Optimiser):
    """RMSprop (Tieleman and Hinton 2012).

    v = alpha v + (1 - alpha) g^2; d = g / (sqrt(v) + eps), with `centered` g / (sqrt(v - mean(g)^2) + eps); p -= lr d,
    with momentum b = momentum b + d; p -= lr b
    """

    _kind = "rmsprop"

    def __init__(
        self,
        params: Arrays | Iterable[Mapping[str, Any]],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**defaults, "centered": bool(centered)})

    def _terms(self, group: _Group) -> tuple[dict[str, Any], list[Tensors | None]]:
        options = group.options
        terms = {key: options[key] for key in ("lr", "alpha", "eps", "momentum")}
        terms["decay"] = options["weight_decay"]
        first = group.state("momentum_buffer") if options["momentum"] else None
        return terms, [first, group.state("square_avg"), group.state("grad_avg") if options["centered"] else None]


class Adam(Optimiser):
    """Adam (Kingma and Ba 2015), with L2 decay in the gradient.

    m += (1 - beta1)(g - m); v = beta2 v + (1 - beta2) g^2;
    p -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    """

    _kind = "adam"
    _ranges = {"betas": (0.0, 1.0)}
    _decoupled = False

    def __init__(
        self,
        params: Arrays | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        betas = tuple(betas)  # type: ignore[assignment]
        if len(betas) != 2:
            raise ValueError(f"betas: expected two numbers, got {betas!r}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _terms(self, group: _Group) -> tuple[dict[str, Any], list[Tensors | None]]:
        beta1, beta2 = group.options["betas"]
        terms = {
            "lr": group.options["lr"],
            "decay": group.options["weight_decay"],
            "eps": group.options["eps"],
            "momentum": beta1,
            "alpha": beta2,
            "correction1": 1.0 - beta1**group.step,
            "correction2": math.sqrt(1.0 - beta2**group.step),
            "decoupled": self._decoupled,
        }
        return terms, [group.state("exp_avg"), group.state("exp_avg_sq")]


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): p *= 1 - lr weight_decay before the step."""

    _decoupled = True

    def __init__(
        self,
        params: Arrays | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
