"""Single steps at batch 1, from Python (make bench)."""

import numpy as np
import pytest

import rnn_core as rc


def _cell_and_data(name, hidden):
    rng = np.random.default_rng(0)
    cell = getattr(rc, name)(hidden, hidden, seed=0)
    x, h, c = (rng.standard_normal((1, hidden), dtype=np.float32) for _ in range(3))
    return cell, x, (h, c) if name == "LSTMCell" else h


@pytest.mark.parametrize("hidden", [1, 64, 128, 256, 512])
@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_step(benchmark, name, hidden):
    cell, x, state = _cell_and_data(name, hidden)
    benchmark(lambda: cell.step(x, state, out=state))


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_call(benchmark, name):
    cell, x, state = _cell_and_data(name, 128)
    benchmark(cell, x, state)


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_forward_backward(benchmark, name):
    cell, x, state = _cell_and_data(name, 128)

    def step():
        after, tape = cell.forward(x, state)
        cell.backward(tape, after)

    benchmark(step)
