"""Weights and inputs of a row, made once and read by every engine from the same .npz file.

Canonical layout: PyTorch's keys, shapes and gate orders; x (T, B, I), h and c (L*D, B, H), y (T, B, D*H).
"""

from __future__ import annotations

import os
import zlib

import numpy as np

from .rows import STEPS, Row

INPUTS = 4  # different inputs, taken in turn


def weights(row: Row, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """U(-1/sqrt(H), 1/sqrt(H)) under PyTorch's keys; a charlm row adds embedding.weight and head.*."""
    G, H = row.gates, row.H
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(row.L):
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: row.D]:
            shapes["weight_ih" + suffix] = (G * H, row.inputs_of(layer))
            shapes["weight_hh" + suffix] = (G * H, H)
            shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = (G * H,)
    if row.V:
        shapes |= {"embedding.weight": (row.V, row.I), "head.weight": (row.V, H), "head.bias": (row.V,)}
    bound = 1 / np.sqrt(H)
    return {key: rng.uniform(-bound, bound, shape).astype(np.float32) for key, shape in shapes.items()}


def _inputs(row: Row, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays with the different inputs along axis 0: x, h0, c0; dy and lengths for training; tokens for charlm."""

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    n = STEPS if row.kind == "step" else INPUTS
    if row.kind == "charlm":
        return {"tokens": rng.integers(0, row.V, (n, row.T + 1, row.B))}
    states = ("h0", "c0") if row.cell == "LSTM" else ("h0",)
    found = {"x": normal(n, row.T, row.B, row.I)}
    found |= {name: 0.5 * normal(n, row.L * row.D, row.B, row.H) for name in states}
    if row.trains:
        found["dy"] = normal(n, row.T, row.B, row.D * row.H)
    if row.kind == "ragged":
        found["lengths"] = np.stack([_lengths(row, rng) for _ in range(n)])
        for dy, lengths in zip(found["dy"], found["lengths"]):
            dy[np.arange(row.T)[:, None] >= lengths] = 0  # a masked loss has no gradient past the end
    return found


def _lengths(row: Row, rng: np.random.Generator) -> np.ndarray:
    """B lengths evenly spread over [shortest * T, T], one of them T, in random order."""
    low = max(1, round(row.shortest * row.T))
    return rng.permutation(np.rint(np.linspace(low, row.T, row.B)).astype(np.int64))


def make(row: Row) -> dict[str, np.ndarray]:
    """Weights (keys `w.*`) and inputs of a row; the same arrays every time."""
    rng = np.random.default_rng(zlib.crc32(row.name.encode()))
    return {f"w.{key}": value for key, value in weights(row, rng).items()} | _inputs(row, rng)


def save(path: str, arrays: dict[str, np.ndarray]) -> None:
    """As an uncompressed .npz without pickles, whole or not at all."""
    with open(path + ".new", "wb") as file:
        np.savez(file, **arrays)
    os.replace(path + ".new", path)


def load(path: str) -> dict[str, np.ndarray]:
    """The arrays, each in memory of its own that is aligned to 64 bytes."""
    with np.load(path, allow_pickle=False) as file:
        return {key: _aligned(file[key]) for key in file.files}


def _aligned(array: np.ndarray) -> np.ndarray:
    block = np.empty(array.nbytes + 64, np.uint8)
    start = -block.ctypes.data % 64
    out = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def split(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights and inputs of what `make` made."""
    held = {key[2:]: value for key, value in arrays.items() if key.startswith("w.")}
    return held, {key: value for key, value in arrays.items() if not key.startswith("w.")}
