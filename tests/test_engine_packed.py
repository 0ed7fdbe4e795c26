"""The engine's fourth layout: packed rows, as torch's PackedSequence keeps them."""

import numpy as np
import pytest
from rnn_core._engine import Network

import rnn_core as rc

KINDS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
    "rnn_tanh": ("RNN", {}),
}


@pytest.mark.parametrize("threads_", [1, 2])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_gives_the_bits_of_padded(kind, both, threads_, threads):
    """Long enough for several chunks; forward with and without a tape, and backward."""
    threads(threads_)
    name, options = KINDS[kind]
    I, H, D, L, B, T = 5, 40, 1 + both, 2, 12, 90
    layer = getattr(rc, name)(I, H, L, bidirectional=both, seed=1, **options)
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(1, T + 1, B))[::-1].astype(np.int64)
    x, dy = (rng.standard_normal((T, B, n)).astype(np.float32) for n in (I, D * H))
    real = np.arange(T)[:, None] < lengths  # (T, B), whose true entries in order are the packed rows
    want, final, tape = layer.forward(x, lengths=lengths)
    dx, _ = layer.backward(tape, dy)

    network = Network(kind, sizes(layer), L, D, "float32")
    packed = network.pack([tuple(None if k is None else layer.params[k] for k in names) for names in layer._names])
    grads = [tuple(None if k is None else np.zeros_like(layer.params[k]) for k in names) for names in layer._names]
    hn, cn, dh0, dc0 = (np.empty((L * D, B, H), np.float32) for _ in range(4))
    for keep in (False, True):
        y = np.empty((int(lengths.sum()), D * H), np.float32)
        tape = network.forward(packed, x[real], y, "packed", lengths[0], B, lengths, None, None, hn, cn, keep, None)
        np.testing.assert_array_equal(y, want[real])
        np.testing.assert_array_equal(hn, final[0] if name == "LSTM" else final)
    got = np.empty((int(lengths.sum()), I), np.float32)
    network.backward(tape, dy[real], None, None, grads, got, dh0, dc0)
    np.testing.assert_array_equal(got, dx[real])
    for names, arrays in zip(layer._names, grads):
        for key, grad in zip(names, arrays):
            if key is not None:
                np.testing.assert_array_equal(grad, layer.grads[key], err_msg=key)


def sizes(layer):
    """(inputs, units, projection) of each direction of each layer."""
    D = 2 if layer.bidirectional else 1
    inputs = [layer.input_size] + [D * layer.hidden_size] * (layer.num_layers - 1)
    return [(width, layer.hidden_size, 0) for width in inputs for _ in range(D)]
