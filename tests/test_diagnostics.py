"""rnn_core.diagnostics: dL/dh at every step, held against central differences."""

from __future__ import annotations

import numpy as np
import pytest
from cases import differences, parts

from rnn_core import losses, recurrent
from rnn_core.charlm import CharLM
from rnn_core.diagnostics import gradient_flow, model_gradient_flow

STEPS, BATCH = 5, 2


def dh_by_differences(layer, x, dy, state, t):
    """dL/dh_t of a one-layer network: the derivative of sum(dy * y) over what h_t changes, itself included."""
    y, middle = layer(x[: t + 1], state)
    h = parts(middle)[0]

    def loss():
        later = (layer(x[t + 1 :], middle)[0] * dy[t + 1 :]).sum() if t + 1 < len(x) else 0.0
        return later + (h[0] * dy[t]).sum()

    return differences(loss, h, 1e-6)


def small(kind, layers=1, **options):
    layer = getattr(recurrent, kind)(3, 4, layers, dtype="float64", seed=2, **options)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((STEPS, BATCH, 3))
    return layer, x, rng.standard_normal(layer(x)[0].shape)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu"}),
        ("LSTM", {}),
        ("LSTM", {"proj_size": 2}),
        ("GRU", {}),
        ("GRU", {"reset_after": False}),
    ],
)
def test_one_layer_against_central_differences(kind, options):
    layer, x, dy = small(kind, **options)
    _, state = layer(x[::-1].copy())
    norms = gradient_flow(layer, x, dy, state)
    assert norms.shape == (1, STEPS)
    for t in range(STEPS):
        wanted = np.linalg.norm(dh_by_differences(layer, x, dy, state, t))
        assert norms[0, STEPS - 1 - t] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_lower_layer_counts_the_paths_through_the_one_above(kind):
    layer, x, dy = small(kind, layers=2)
    parts = [getattr(recurrent, kind)(3 if level == 0 else 4, 4, dtype="float64") for level in range(2)]
    for level, part in enumerate(parts):
        part.load_state_dict({key: layer.params[key[:-1] + str(level)] for key in part.params})
    y, _ = parts[0](x)
    _, _, tape = parts[1].forward(y)
    from_above, _ = parts[1].backward(tape, dy)
    norms = gradient_flow(layer, x, dy)
    np.testing.assert_allclose(norms[0], gradient_flow(parts[0], x, from_above)[0], rtol=1e-9)
    np.testing.assert_allclose(norms[1], gradient_flow(parts[1], y, dy)[0], rtol=1e-9)


def test_both_directions_and_batch_first():
    layer, x, dy = small("GRU", bidirectional=True)
    norms = gradient_flow(layer, x, dy)
    one = recurrent.GRU(3, 4, dtype="float64")
    for d, ending in enumerate(("", "_reverse")):
        one.load_state_dict({key: layer.params[key + ending] for key in one.params})
        order = slice(None, None, -1 if d else 1)
        alone = gradient_flow(one, x[order].copy(), dy[order, :, 4 * d : 4 * d + 4].copy())
        np.testing.assert_allclose(norms[d], alone[0], rtol=1e-9)
    first = recurrent.GRU(3, 4, bidirectional=True, batch_first=True, dtype="float64")
    first.load_state_dict(layer.state_dict())
    swapped = gradient_flow(first, x.swapaxes(0, 1), dy.swapaxes(0, 1))
    np.testing.assert_array_equal(swapped, norms)


def test_vanishing_and_exploding_gradients_can_be_told_apart():
    x = np.zeros((30, 1, 2), np.float32)
    dy = np.zeros((30, 1, 8), np.float32)
    dy[-1] = 1.0
    for scale, grows in ((0.5, False), (1.5, True)):
        layer = recurrent.RNN(2, 8, nonlinearity="relu", seed=0)
        layer.assign("weight_hh_l0", scale * np.eye(8, dtype=np.float32))
        layer.assign("bias_ih_l0", np.ones(8, np.float32))
        layer.assign("bias_hh_l0", np.zeros(8, np.float32))
        norms = gradient_flow(layer, x, dy)[0]
        np.testing.assert_allclose(norms, np.sqrt(8) * scale ** np.arange(30.0), rtol=1e-4)
        assert (norms[-1] > norms[0]) == grows


def test_a_model_s_flow_starts_from_the_loss_of_the_last_step_and_leaves_its_gradients_alone():
    model = CharLM("abcd", cell="lstm", layers=2, hidden=5, embedding=3, seed=0)
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 4, (6, 3)), rng.integers(0, 4, 3)
    for grad in model.grads.values():
        grad[...] = 7
    norms = model_gradient_flow(model, tokens, targets)
    assert norms.shape == (2, 6) and (norms > 0).all()
    assert all((grad == 7).all() for grad in model.grads.values())
    logits, _ = model(tokens)
    _, dlogits = losses.cross_entropy(logits[-1:], targets[None])
    np.testing.assert_allclose(norms[1, 0], np.linalg.norm(dlogits[0] @ model.params["head.weight"]), rtol=1e-5)


def test_bad_arguments_are_named():
    layer, x, dy = small("LSTM")
    with pytest.raises(ValueError, match="dy: expected shape"):
        gradient_flow(layer, x, dy[:-1])
    with pytest.raises(TypeError, match="x: expected dtype float64"):
        gradient_flow(layer, x.astype(np.float32), dy)
    with pytest.raises(ValueError, match="at least one step"):
        gradient_flow(layer, x[:0], dy[:0])
