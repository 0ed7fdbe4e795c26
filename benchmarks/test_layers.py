"""Whole layers on the quick rows of the table of peers, and the rest of a training step (make bench)."""

import numpy as np
import pytest

import rnn_core as rc
from benchmarks.peers import data, rows
from benchmarks.peers.engines.rnn_core_engine import Engine

THREADS = [1, 2]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("row", [r for r in rows.table(False) + rows.table(True) if r.quick], ids=lambda r: r.name)
def test_row(benchmark, row, threads):
    variant = next(iter(Engine(threads).prepare(row, *data.split(data.make(row))).values()))
    benchmark(variant.call, 0)
    benchmark.extra_info["gflops"] = row.flops() / benchmark.stats.stats.min / 1e9


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_linear(benchmark, rng):
    layer = rc.Linear(256, 96, seed=0)
    x, dy = (rng.standard_normal((64, 64, n), dtype=np.float32) for n in (256, 96))

    def step():
        layer.backward(layer.forward(x)[1], dy)

    benchmark(step)


def test_embedding(benchmark, rng):
    layer = rc.Embedding(96, 256, seed=0)
    tokens, dy = rng.integers(0, 96, (64, 64)), rng.standard_normal((64, 64, 256), dtype=np.float32)

    def step():
        layer.backward(layer.forward(tokens)[1], dy)

    benchmark(step)


def test_cross_entropy(benchmark, rng):
    logits, targets = rng.standard_normal((64, 64, 96), dtype=np.float32), rng.integers(0, 96, (64, 64))
    benchmark(rc.losses.cross_entropy, logits, targets)


def test_clip_and_adam(benchmark, rng):
    layer = rc.LSTM(256, 256, 2, seed=0)
    optimiser = rc.optim.Adam(layer.params, lr=1e-3)
    for grad in layer.grads.values():
        grad[...] = rng.standard_normal(grad.shape, dtype=np.float32)

    def step():
        rc.clip_grad_norm(layer.grads, 1e9)
        optimiser.step(layer.grads)

    benchmark(step)
