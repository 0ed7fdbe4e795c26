"""An existing PyTorch training script, and the same with one more line: rnn_core.torch.accelerate(model).

    python -m benchmarks.accelerate_vs_torch [--threads 1] [--steps 30]

Both run from the same weights over the same batches, a step of one after a step of the other; the losses are compared
before any time is given. A step is forward, backward and an Adam update. The best step of each counts.
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnn_core as rc
import rnn_core.torch

T, B, WIDTH = 64, 32, 128


class Tagger(torch.nn.Module):
    """A label for each step, by a GRU over padded batches or an LSTM over packed ones."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(torch.nn, kind)(WIDTH, WIDTH)
        self.out = torch.nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        if lengths is None:
            return self.out(self.rnn(x)[0])
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return self.out(pad_packed_sequence(self.rnn(packed)[0], total_length=len(x))[0])


def batch(seed: int, ragged: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """x (T, B, WIDTH), lengths of mean 0.6 T or None, and the labels, which follow from x."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(T, B, WIDTH, generator=draw)
    lengths = torch.randint(int(0.2 * T), T + 1, (B,), generator=draw) if ragged else None
    return x, lengths, x[:, :, :10].argmax(2)


class Script:
    """One training script's state; step() is one step of it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.optimiser = model, torch.optim.Adam(model.parameters(), 1e-3)
        self.losses: list[float] = []
        self.best = np.inf

    def step(self, x: torch.Tensor, lengths: torch.Tensor | None, labels: torch.Tensor) -> None:
        start = time.perf_counter()
        self.optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.model(x, lengths).flatten(0, 1), labels.flatten())
        loss.backward()
        self.optimiser.step()
        self.best = min(self.best, time.perf_counter() - start)
        self.losses.append(loss.item())


def compare(what: str, kind: str, ragged: bool, steps: int) -> float:
    torch.manual_seed(0)
    model = Tagger(kind)
    plain, fast = Script(model), Script(rc.torch.accelerate(copy.deepcopy(model)))
    for seed in range(steps):
        data = batch(seed, ragged)
        plain.step(*data)
        fast.step(*data)
    apart = float(np.abs(np.subtract(plain.losses, fast.losses)).max())
    if apart > 1e-3:
        raise SystemExit(f"{what}: the losses differ by {apart:.1e}")
    ratio = plain.best / fast.best
    print(
        f"{what:28} torch {plain.best * 1e3:7.2f} ms  accelerated {fast.best * 1e3:7.2f} ms  {ratio:5.2f} times as fast"
    )
    print(f"{'':28} loss {plain.losses[0]:.3f} to {plain.losses[-1]:.3f}, within {apart:.1e} at every step")
    return ratio


def best_of(call: object, count: int = 20000) -> float:
    """Microseconds of the fastest of `count` calls."""
    best = np.inf
    for _ in range(count):
        start = time.perf_counter()
        call()  # type: ignore[operator]
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def overhead() -> None:
    """What the adapter adds to the engine: the smallest layer for one step, so that there is little else."""
    layer = rc.torch.LSTM(4, 4)
    x = torch.randn(1, 1, 4)
    with torch.no_grad():
        called = best_of(lambda: layer(x))
    engine, numbers = layer._rc_engine, x.numpy()
    packed, y, h, c = engine.packed[1], *(np.empty((1, 1, 4), np.float32) for _ in range(3))
    alone = best_of(
        lambda: engine.network.forward(packed, numbers, y, "time_major", 1, 1, None, None, None, h, c, False, None)
    )
    print(
        f"{'overhead of a call':28} {called - alone:.1f} us ({called:.1f} us, of which {alone:.1f} us are the engine's)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rc.set_num_threads(options.threads)
    print(f"T {T}, B {B}, input and hidden {WIDTH}, {options.threads} thread(s), best of {options.steps} steps")
    compare("GRU", "GRU", False, options.steps)
    compare("LSTM, packed, mean 0.6 T", "LSTM", True, options.steps)
    overhead()


if __name__ == "__main__":
    main()
