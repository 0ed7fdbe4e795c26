"""Learning-rate schedules with PyTorch's names and meaning: call step() once an epoch, after the optimiser's steps.

Each changes the rate that it finds, as PyTorch's do, so several may act on one optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rnn_core import checks
from rnn_core.optim import Optimiser


class _Kept:
    """What a schedule keeps: `_saved` names the attributes of its state_dict."""

    _saved: tuple[str, ...] = ()

    def __init__(self, optimiser: Optimiser) -> None:
        if not isinstance(optimiser, Optimiser):
            raise TypeError(f"optimiser: expected an optimiser of rnn_core.optim, got {type(optimiser).__name__}")
        self.optimiser = optimiser
        self.last_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists only; the optimiser saves its own."""
        state = {name: getattr(self, name) for name in self._saved}
        return {name: list(value) if isinstance(value, list) else value for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict of a schedule of the same kind."""
        if not isinstance(state, Mapping) or set(state) != set(self._saved):
            raise ValueError(f"load_state_dict: expected the keys {list(self._saved)}, got {sorted(state)}")
        for name in self._saved:
            value = state[name]
            setattr(self, name, list(value) if isinstance(value, list) else value)


class _Schedule(_Kept):
    """A schedule by the number of epochs: `_next` gives a group's rate from the one it has."""

    _saved = ("base_lrs", "last_epoch")

    def __init__(self, optimiser: Optimiser) -> None:
        super().__init__(optimiser)
        self.base_lrs = [float(group["lr"]) for group in optimiser.groups]

    def step(self) -> None:
        """Go on to the next epoch."""
        self.last_epoch += 1
        for group, base in zip(self.optimiser.groups, self.base_lrs):
            group["lr"] = self._next(group["lr"], base)

    def _next(self, lr: float, base: float) -> float:
        raise NotImplementedError


class StepLR(_Schedule):
    """lr *= gamma every `step_size` epochs."""

    def __init__(self, optimiser: Optimiser, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimiser)
        self.step_size, self.gamma = checks.count("step_size", step_size), _factor("gamma", gamma)

    def _next(self, lr: float, base: float) -> float:
        return lr * self.gamma if self.last_epoch % self.step_size == 0 else lr


class ExponentialLR(_Schedule):
    """lr *= gamma every epoch."""

    def __init__(self, optimiser: Optimiser, gamma: float) -> None:
        super().__init__(optimiser)
        self.gamma = _factor("gamma", gamma)

    def _next(self, lr: float, base: float) -> float:
        return lr * self.gamma


class CosineAnnealingLR(_Schedule):
    """lr = eta_min + (base - eta_min) (1 + cos(pi epoch / T_max)) / 2: down for T_max epochs, then up again.

    Computed from the rate of the epoch before, as in PyTorch (Loshchilov and Hutter 2017, without restarts).
    """

    def __init__(self, optimiser: Optimiser, T_max: int, eta_min: float = 0.0) -> None:
        super().__init__(optimiser)
        self.T_max, self.eta_min = checks.count("T_max", T_max), checks.real("eta_min", eta_min)

    def _next(self, lr: float, base: float) -> float:
        epoch, half = self.last_epoch, self.T_max
        if (epoch - 1 - half) % (2 * half) == 0:  # the epoch before was the lowest: nothing to scale from
            return lr + (base - self.eta_min) * (1 - math.cos(math.pi / half)) / 2
        now, before = (1 + math.cos(math.pi * e / half) for e in (epoch, epoch - 1))
        return now / before * (lr - self.eta_min) + self.eta_min


class ReduceLROnPlateau(_Kept):
    """lr *= factor when a measure has not got better for more than `patience` epochs: step(measure) once an epoch.

    mode "min" or "max"; better means by more than `threshold`, a part of the best ("rel") or a difference ("abs");
    after a change nothing is counted for `cooldown` epochs; lr stays at least min_lr; changes below eps are not made.
    """

    _saved = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")

    def __init__(
        self,
        optimiser: Optimiser,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(optimiser)
        if mode not in ("min", "max"):
            raise ValueError(f"mode: expected 'min' or 'max', got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode: expected 'rel' or 'abs', got {threshold_mode!r}")
        if not checks.real("factor", factor) < 1.0 or factor < 0:
            raise ValueError(f"factor: expected 0 <= factor < 1, got {factor!r}")
        self.mode, self.threshold_mode, self.factor = mode, threshold_mode, float(factor)
        self.patience, self.cooldown = checks.count("patience", patience, 0), checks.count("cooldown", cooldown, 0)
        self.threshold, self.min_lr = checks.real("threshold", threshold), checks.real("min_lr", min_lr)
        self.eps = checks.real("eps", eps)
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0

    def step(self, measure: float) -> None:
        """Take in the measure of an epoch (a validation loss, say); NaN counts as no better."""
        value = float(measure)
        self.last_epoch += 1
        if self._better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _better(self, value: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        if self.threshold_mode == "rel":
            return sign * value < sign * self.best * (1.0 - sign * self.threshold)
        return sign * value < sign * self.best - self.threshold

    def _reduce(self) -> None:
        for group in self.optimiser.groups:
            lr = max(group["lr"] * self.factor, self.min_lr)
            if group["lr"] - lr > self.eps:
                group["lr"] = lr


def _factor(name: str, value: float) -> float:
    if checks.real(name, value) < 0:
        raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
    return float(value)
