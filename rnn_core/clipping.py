"""Clipping of gradients, in place: by their global norm, or element by element."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from rnn_core import checks
from rnn_core._tensors import by_dtype
from rnn_core.optim import gradients


def _limit(name: str, value: float) -> float:
    if not isinstance(value, bool) and value == math.inf:
        return math.inf
    limit = checks.real(name, value)
    if limit <= 0:
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")
    return limit


def clip_grad_norm(grads: Mapping[str, NDArray[Any]], max_norm: float) -> float:
    """Scale all gradients so that their global 2-norm is at most `max_norm`; gives the norm that they had.

    As in PyTorch the factor is min(1, max_norm / (norm + 1e-6)). Where the norm is not finite nothing is scaled, so
    that the optimiser can name the gradient at fault. max_norm may be math.inf, to measure only.
    """
    limit, lists = _limit("max_norm", max_norm), by_dtype(gradients(grads))
    norm = math.sqrt(sum(tensors.sum_squares() for tensors in lists))
    factor = limit / (norm + 1e-6)
    if math.isfinite(norm) and factor < 1.0:
        for tensors in lists:
            tensors.scale(factor)
    return norm


def clip_grad_value(grads: Mapping[str, NDArray[Any]], max_value: float) -> None:
    """Cut every element of the gradients to [-max_value, max_value]; NaN stays."""
    limit = _limit("max_value", max_value)
    for tensors in by_dtype(gradients(grads)):
        tensors.clamp(limit)
