"""The rows of the table, how many operations each counts, and the least time it can take."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from benchmarks.limits import Limits

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS = 16  # chained calls that are timed as one in a row of single steps

# What a row measures: a layer call, a chain of single-step calls, forward + backward, or a whole training step
KINDS = ("layer", "step", "train", "ragged", "charlm")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    T steps, B batch, I input, H hidden, L layers, D directions. `shortest` is the least length of a ragged row
    as a share of T; the lengths are uniform from there to T. A charlm row adds V classes above the recurrent layers.
    """

    kind: str
    cell: str
    T: int
    B: int
    I: int
    H: int
    L: int = 1
    D: int = 1
    shortest: float = 1.0
    V: int = 0
    quick: bool = False

    @property
    def name(self) -> str:
        """As the table shows it, e.g. `LSTM 100 16 256 2 layers`; --rows matches against it."""
        text = f"{self.cell} {self.T} {self.B} " + (f"{self.H}" if self.I == self.H else f"{self.I}->{self.H}")
        text += " 2 layers" if self.L == 2 else ""
        text += " bidirectional" if self.D == 2 else ""
        text += "" if self.kind == "layer" else f" {self.kind}"
        return text + ("" if self.shortest else " from 0")

    @property
    def gates(self) -> int:
        return GATES[self.cell]

    @property
    def trains(self) -> bool:
        return self.kind in ("train", "ragged", "charlm")

    def inputs_of(self, layer: int) -> int:
        """The width of what a layer reads."""
        return self.I if layer == 0 else self.D * self.H

    def flops(self, tokens: int | None = None) -> float:
        """2 T B G H (I + H) summed over layers and directions, three times that for training.

        tokens: what stands for T*B where sequences are ragged.
        """
        tokens = self.T * self.B if tokens is None else tokens
        forward = sum(2.0 * tokens * self.gates * self.H * (self.inputs_of(n) + self.H) for n in range(self.L)) * self.D
        forward += 2.0 * tokens * self.H * self.V
        return forward * (3 if self.trains else 1)

    def recurrent_bytes(self) -> int:
        """Bytes of R of one layer in one direction."""
        return 4 * self.gates * self.H * self.H

    def limit(self, limits: Limits, tokens: int | None = None) -> float:
        """The least seconds it can take: peak and bandwidths bound it, nothing else is counted.

        T > 1: the input projection at peak, and every step at peak or reading R from its cache, the slower.
        T = 1: all at peak, or reading W and R once. Training: all at peak.
        """
        if self.trains:
            return self.flops(tokens) / limits.peak
        if self.T == 1:
            weights = sum(4 * self.gates * self.H * (self.inputs_of(n) + self.H) for n in range(self.L)) * self.D
            return max(self.flops() / limits.peak, weights / limits.bandwidth(weights))
        size = self.recurrent_bytes()
        step = max(2.0 * self.B * self.gates * self.H * self.H / limits.peak, size / limits.bandwidth(size))
        projections = sum(2.0 * self.T * self.B * self.gates * self.inputs_of(n) * self.H for n in range(self.L))
        return self.D * (projections / limits.peak + self.L * self.T * step)

    def as_dict(self) -> dict:
        return asdict(self)


def _layers(cell: str, T: int, batches, hidden, **more) -> list[Row]:
    return [Row("layer", cell, T, B, H, H, **more) for B in batches for H in hidden]


def _quick(row: Row) -> Row:
    return Row(**{**row.as_dict(), "quick": True})


_INFERENCE = [
    *_layers("LSTM", 1, [1], [64, 128, 256, 512]),
    *_layers("LSTM", 100, [1], [64, 128, 256, 512]),
    *_layers("LSTM", 50, [1], [1024]),
    *_layers("LSTM", 150, [1, 2, 4], [256]),
    *_layers("LSTM", 25, [1, 2, 4], [512]),
    *_layers("LSTM", 25, [1], [2048]),
    *_layers("LSTM", 100, [8], [256]),
    *_layers("LSTM", 100, [32], [128, 256]),
    *_layers("LSTM", 50, [32], [512]),
    *_layers("LSTM", 25, [64], [1024]),
    Row("layer", "LSTM", 256, 1, 240, 1024),
    *_layers("LSTM", 100, [1, 16], [256], L=2),
    *_layers("LSTM", 100, [1, 16], [256], D=2),
    *_layers("GRU", 1, [1], [128, 256]),
    *_layers("GRU", 100, [1], [128, 256]),
    *_layers("GRU", 187, [1], [1024]),
    *_layers("GRU", 100, [32], [256]),
    *_layers("GRU", 50, [32], [512]),
    *_layers("RNN", 672, [1], [32]),
    *_layers("RNN", 96, [1], [64]),
    *_layers("RNN", 100, [1, 32], [256]),
    *_layers("RNN", 50, [16], [1760]),
    *[Row("step", cell, 1, 1, H, H) for cell in ("LSTM", "GRU") for H in (64, 128, 256, 512)],
]
_TRAINED = [  # cell T B H L D
    ("LSTM", 64, 16, 64, 1, 1),
    ("LSTM", 64, 32, 128, 1, 1),
    ("LSTM", 64, 32, 256, 1, 1),
    ("LSTM", 35, 20, 200, 2, 1),
    ("LSTM", 35, 20, 650, 2, 1),
    ("LSTM", 100, 64, 512, 1, 1),
    ("LSTM", 150, 16, 256, 1, 1),
    ("LSTM", 64, 32, 256, 1, 2),
    ("GRU", 64, 16, 64, 1, 1),
    ("GRU", 64, 32, 128, 1, 1),
    ("GRU", 64, 32, 256, 1, 1),
    ("GRU", 100, 32, 512, 1, 1),
    ("RNN", 64, 32, 128, 1, 1),
    ("RNN", 64, 32, 256, 1, 1),
]
_TRAINING = [
    *[Row("train", cell, T, B, H, H, L, D) for cell, T, B, H, L, D in _TRAINED],
    *[Row("ragged", cell, T, B, H, H, L, D, shortest=0.25) for cell, T, B, H, L, D in _TRAINED],
    Row("ragged", "LSTM", 64, 32, 256, 256, shortest=0.0),
    *[Row("charlm", cell, 64, 64, 256, 256, 2, V=96) for cell in ("LSTM", "GRU")],
]
_QUICK = {
    "LSTM 1 1 256",
    "LSTM 100 1 128",
    "LSTM 100 1 256",
    "LSTM 25 1 512",
    "LSTM 100 32 256",
    "GRU 1 1 128",
    "GRU 100 1 256",
    "GRU 100 32 256",
    "RNN 100 1 256",
    "RNN 100 32 256",
    "LSTM 1 1 128 step",
    "LSTM 64 16 64 train",
    "LSTM 64 32 256 train",
    "GRU 64 32 128 train",
    "RNN 64 32 128 train",
    "LSTM 64 32 128 ragged",
    "GRU 64 32 128 ragged",
}


def table(train: bool) -> list[Row]:
    """The inference rows, or the training rows, in the order in which they are shown."""
    return [_quick(row) if row.name in _QUICK else row for row in (_TRAINING if train else _INFERENCE)]


def geometric_mean(values) -> float:
    """NaN for none."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan
