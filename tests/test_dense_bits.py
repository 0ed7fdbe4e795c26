"""The promise about bits for losses, optimisers, norms, embedding, dropout and Linear: whatever threads and CPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import exact_bits, run_python, same

import rnn_core as rc
from rnn_core import _runtime

pytestmark = exact_bits


def losses_bits(rng):
    for rows, classes in ((1, 1), (7, 13), (300, 33), (257, 96), (40, 2001)):
        x = (rng.standard_normal((rows, classes)) * 5).astype(np.float32)
        targets = rng.integers(0, classes, rows)
        for smoothing in (0.0, 0.1):
            yield rc.losses.cross_entropy(x, targets, label_smoothing=smoothing)
    for n in (1, 15, 1023, 5000, 300000):
        x, target = rng.standard_normal((2, n)).astype(np.float32)
        yield rc.losses.binary_cross_entropy(x * 8, target)
        yield rc.losses.mse(x, target)
        shape = (n, 1)
        lengths = [n // 2]
        yield rc.losses.mse(x.reshape(shape), target.reshape(shape), lengths)


def optimisers(params):
    yield rc.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    yield rc.optim.RMSprop(params, momentum=0.5, centered=True)
    yield rc.optim.Adam(params, weight_decay=0.1)
    yield rc.optim.AdamW(params)


def optimiser_bits(rng):
    sizes = (1, 17, 1024, 16384, 16385, 200001)
    for i in range(4):
        params = {str(n): rng.standard_normal(n).astype(np.float32) for n in sizes}
        grads = {key: rng.standard_normal(p.shape).astype(np.float32) for key, p in params.items()}
        optimiser = list(optimisers(params))[i]
        for _ in range(3):
            norm = rc.clip_grad_norm(grads, 300.0)
            optimiser.step(grads)
            yield norm, *params.values(), *grads.values()
    rc.clip_grad_value(grads, 0.5)
    yield tuple(grads.values())


def layer_bits(rng):
    for sizes in ((1, 1), (7, 13), (64, 96), (200, 65), (33, 513)):
        layer = rc.Linear(*sizes, seed=1)
        for rows in (1, 5, 64, 700):
            x = rng.standard_normal((rows, sizes[0])).astype(np.float32)
            y, tape = layer.forward(x)
            dx = layer.backward(tape, rng.standard_normal(y.shape).astype(np.float32))
            yield y, dx, *(grad.copy() for grad in layer.grads.values())
    for width in (1, 31, 64, 300):
        layer = rc.Embedding(50, width, padding_idx=3, seed=1)
        y, tape = layer.forward(rng.integers(0, 50, (40, 30)))
        layer.backward(tape, rng.standard_normal(y.shape).astype(np.float32))
        yield y, layer.grads["weight"].copy()
    dropout = rc.Dropout(0.3, seed=1)
    for shape in ((50, 16, 100), (3, 2, 5), (2000, 3, 64)):
        yield dropout.forward(rng.standard_normal(shape).astype(np.float32))


def everything():
    """All results as one tuple of arrays; equal inputs whoever calls."""
    rng = np.random.default_rng(0)
    found = [item for part in (losses_bits, optimiser_bits, layer_bits) for item in part(rng)]
    return tuple(np.array(value) for item in found for value in item)


def test_threads_change_nothing(threads):
    threads(1)
    want = everything()
    for n in (2, 3):
        threads(n)
        same(everything(), want, n, "threads")


WORKER = """
import sys
import numpy as np
from test_dense_bits import everything
np.savez(sys.argv[1], *everything())
"""


@pytest.mark.skipif(_runtime.isa() != "avx512", reason="needs a CPU with AVX-512")
def test_avx2_gives_the_bits_of_avx512(tmp_path):
    run_python(WORKER, tmp_path / "avx2.npz", env={"RNN_CORE_ISA": "avx2"})
    want = everything()
    with np.load(tmp_path / "avx2.npz") as narrow:
        same(tuple(narrow[f"arr_{i}"] for i in range(len(want))), want, "avx2")


def test_a_row_has_the_bits_that_it_has_alone():
    rng, layer = np.random.default_rng(1), rc.Linear(130, 70, seed=0)
    x = rng.standard_normal((100, 130)).astype(np.float32)
    y = layer(x)
    for begin, end in ((0, 1), (3, 4), (10, 15), (50, 99)):
        same(layer(x[begin:end]), y[begin:end], begin, end)


def test_many_python_threads_share_a_layer_and_its_packings():
    """After each change of the weights all threads find them stale at once; none may read a half-made packing."""
    layer, x = rc.Linear(300, 400, bias=False), np.ones((64, 300), np.float32)
    dy = np.ones((64, 400), np.float32)

    def call(_):
        y, tape = layer.forward(x)
        return set(np.unique(y)), set(np.unique(layer.backward(tape, dy)))

    with ThreadPoolExecutor(4) as pool:
        for value in range(1, 30):
            layer.assign("weight", np.full((400, 300), value, np.float32))
            for found in pool.map(call, range(8)):
                assert found == ({300.0 * value}, {400.0 * value})
