"""Linear, Embedding, Dropout and Sequential against plain NumPy (rnn_core/layers.py)."""

import copy
import pickle

import numpy as np
import pytest
from cases import close, parameter_differences
from hypothesis import given, settings
from hypothesis import strategies as st

import rnn_core as rc
from rnn_core.module import Module

FORWARD = {"float32": 5e-6, "float64": 1e-12}
BACKWARD = {"float32": 2e-5, "float64": 1e-12}
LEADS = [(), (1,), (7,), (0,), (3, 4), (2, 0, 3), (2, 3, 1)]
COPIES = [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]


def array(rng, shape, dtype="float64"):
    return np.asarray(rng.standard_normal(shape), dtype)


# ---- Linear ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (16, 64), (17, 65), (100, 7), (33, 130)])
def test_linear_is_the_product(dtype, bias, sizes):
    rng, layer = np.random.default_rng(0), rc.Linear(*sizes, bias=bias, dtype=dtype, seed=1)
    W = layer.params["weight"].astype(np.float64)
    b = layer.params["bias"].astype(np.float64) if bias else 0.0
    for lead in [*LEADS, (1100,)]:
        layer.zero_grad()
        x, dy = array(rng, (*lead, sizes[0]), dtype), array(rng, (*lead, sizes[1]), dtype)
        y, tape = layer.forward(x)
        assert np.array_equal(layer(x), y) and y.dtype == dtype
        close(y, x @ W.T + b, FORWARD[dtype], lead)
        dx = layer.backward(tape, dy)
        assert dx.dtype == dtype
        close(dx, dy @ W, BACKWARD[dtype], lead)
        flat_x, flat_dy = x.reshape(-1, sizes[0]).astype(np.float64), dy.reshape(-1, sizes[1])
        close(layer.grads["weight"], flat_dy.T @ flat_x, BACKWARD[dtype], lead)
        if bias:
            close(layer.grads["bias"], flat_dy.sum(0, dtype=np.float64), BACKWARD[dtype], lead)


def test_linear_adds_into_grads_and_may_skip_dx():
    rng, layer = np.random.default_rng(0), rc.Linear(6, 9, seed=0)
    x, dy = array(rng, (4, 6), "float32"), array(rng, (4, 9), "float32")
    tape = layer.forward(x)[1]
    assert layer.backward(tape, dy, need_dx=False) is None
    once = {key: grad.copy() for key, grad in layer.grads.items()}
    layer.backward(tape, dy)
    for key, grad in layer.grads.items():
        assert once[key].any() and np.allclose(grad, 2 * once[key], rtol=1e-6)


def test_linear_notices_every_change_of_its_weights():
    layer, x = rc.Linear(5, 3, bias=False), np.eye(5, dtype=np.float32)
    optimiser = rc.optim.SGD(layer.params, lr=1.0)
    for step in range(4):
        assert np.array_equal(layer(x), layer.params["weight"].T)
        assert np.array_equal(
            layer.backward(layer.forward(x)[1], np.eye(5, 3, dtype=np.float32))[:3], layer.params["weight"]
        )
        if step % 2:
            optimiser.step({"weight": np.full((3, 5), step, np.float32)})
        else:
            layer.assign("weight", np.random.default_rng(step).standard_normal((3, 5)).astype(np.float32))


def test_linear_starts_as_torch_does():
    layer = rc.Linear(100, 200, seed=3)
    for param in layer.params.values():
        assert np.abs(param).max() <= 0.1 and np.abs(param).max() > 0.098 and abs(param.mean()) < 0.01
    assert np.array_equal(rc.Linear(100, 200, seed=3).params["weight"], layer.params["weight"])
    assert not np.array_equal(rc.Linear(100, 200).params["weight"], rc.Linear(100, 200).params["weight"])


def test_linear_takes_read_only_strided_input_and_lists():
    layer = rc.Linear(3, 2, seed=0)
    big = array(np.random.default_rng(0), (4, 6), "float32")
    big.flags.writeable = False
    assert np.array_equal(layer(big[:, ::2]), layer(big[:, ::2].copy()))
    assert np.array_equal(layer([1.0, 2.0, 3.0]), layer(np.array([1, 2, 3], np.float32)))


def test_linear_says_what_it_expected():
    layer = rc.Linear(3, 2)
    tape = layer.forward(np.ones((4, 3), np.float32))[1]
    cases = [
        (lambda: layer(np.ones((4, 2), np.float32)), ValueError, r"x: expected shape \(4, 3\), got \(4, 2\)"),
        (lambda: layer(np.float32(1)), ValueError, r"x: expected shape \(N, 3\), got \(\)"),
        (lambda: layer(np.ones((4, 3))), TypeError, "x: expected dtype float32, got float64"),
        (lambda: layer.backward(tape, np.ones((4, 3), np.float32)), ValueError, r"dy: expected shape \(4, 2\)"),
        (lambda: layer.backward(tape, np.ones((4, 2))), TypeError, "dy: expected dtype float32, got float64"),
        (lambda: rc.Linear(0, 2), ValueError, "in_features: expected 1 to"),
        (lambda: rc.Linear(2, -1), ValueError, "out_features: expected 1 to"),
        (lambda: rc.Linear(2, 1, dtype="int32"), TypeError, "dtype: expected float32 or float64"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()
    assert not any(grad.any() for grad in layer.grads.values())


@pytest.mark.parametrize("duplicate", COPIES)
def test_linear_copies(duplicate):
    layer, x = rc.Linear(4, 3, seed=0), np.ones((2, 4), np.float32)
    want = layer(x)
    other = duplicate(layer)
    layer.assign("bias", np.zeros(3, np.float32))
    assert np.array_equal(other(x), want) and repr(other) == "Linear(in_features=4, out_features=3, bias=True)"


# ---- Embedding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 7, 16, 33, 100])
def test_embedding_looks_up_and_adds_up(dtype, width):
    rng = np.random.default_rng(0)
    layer = rc.Embedding(11, width, padding_idx=4, dtype=dtype, seed=2)
    assert not layer.params["weight"][4].any() and layer.params["weight"][3].all()
    for lead in [*LEADS, (300,)]:
        layer.zero_grad()
        at, dy = rng.integers(0, 11, lead), array(rng, (*lead, width), dtype)
        y, tape = layer.forward(at)
        assert np.array_equal(y, layer.params["weight"][at]) and np.array_equal(layer(at), y)
        assert layer.backward(tape, dy) is None
        want = np.zeros((11, width))
        np.add.at(want, at.reshape(-1), dy.reshape(-1, width))
        want[4] = 0
        close(layer.grads["weight"], want, BACKWARD[dtype], lead)


def test_embedding_adds_into_grads():
    layer = rc.Embedding(3, 2)
    for _ in range(2):
        layer.backward(layer.forward([1, 1])[1], np.ones((2, 2), np.float32))
    assert np.array_equal(layer.grads["weight"], [[0, 0], [4, 4], [0, 0]])


def test_embedding_starts_normal():
    weight = rc.Embedding(300, 100, seed=0).params["weight"]
    assert abs(weight.mean()) < 0.02 and abs(weight.std() - 1) < 0.02


def test_padding_may_count_from_the_end():
    layer = rc.Embedding(5, 2, padding_idx=-1)
    assert layer.padding_idx == 4 and not layer.params["weight"][4].any()
    assert repr(layer) == "Embedding(num_embeddings=5, embedding_dim=2, padding_idx=4)"


def test_embedding_says_what_it_expected():
    layer = rc.Embedding(5, 2)
    tape = layer.forward([0, 1])[1]
    cases = [
        (lambda: layer([5]), ValueError, "indices: expected 0 to 4, got 5"),
        (lambda: layer([-1]), ValueError, "indices: expected 0 to 4, got -1"),
        (lambda: layer([0.5]), TypeError, "indices: expected integers, got dtype float64"),
        (lambda: layer.backward(tape, np.ones((2, 3), np.float32)), ValueError, r"dy: expected shape \(2, 2\)"),
        (lambda: rc.Embedding(5, 2, padding_idx=5), ValueError, "padding_idx: expected -5 to 4, got 5"),
        (lambda: rc.Embedding(0, 2), ValueError, "num_embeddings: expected"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()


# ---- Dropout --------------------------------------------------------------------------------------------------------

MASK64 = (1 << 64) - 1


def mix(z):
    """The finaliser of splitmix64."""
    z = (z + 0x9E3779B97F4A7C15) & MASK64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK64
    return z ^ (z >> 31)


def philox(counter, key):
    """Philox 4x32-10 of Salmon and others, 2011, as their paper has it."""
    x, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ x[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def test_the_reference_gives_the_published_numbers():
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def plain_mask(layer, call, shape, p):
    """(T, B, N) in the order of the header: group, word, lane of a unit."""
    key = mix(mix(mix(layer.seed) ^ call) ^ 0)
    mask = np.zeros(shape)
    for step, sequence, unit in np.ndindex(shape):
        group, word, lane = unit // 64, unit // 16 % 4, unit % 16
        random = philox([16 * group + lane, step, sequence, 0], [key & 0xFFFFFFFF, key >> 32])[word]
        mask[step, sequence, unit] = 0 if random < int(p * 2**32) else 1 / (1 - p)
    return mask


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_are_philox_by_call_sequence_step_and_unit(dtype):
    layer = rc.Dropout(0.3, seed=5)
    x = array(np.random.default_rng(0), (3, 2, 70), dtype)
    for call in range(2):
        y, mask = layer.forward(x)
        want = plain_mask(layer, call, x.shape, 0.3).astype(dtype)
        assert np.array_equal(mask, want) and np.array_equal(y, x * want)


def test_masks_do_not_depend_on_the_batch_or_the_layout():
    x = np.ones((4, 6, 50), np.float32)
    whole = rc.Dropout(0.5, seed=1).forward(x)[1]
    assert np.array_equal(rc.Dropout(0.5, seed=1).forward(x[:2, :3])[1], whole[:2, :3])
    first = rc.Dropout(0.5, seed=1, batch_first=True).forward(x.swapaxes(0, 1))[1]
    assert np.array_equal(first.swapaxes(0, 1), whole)
    assert np.array_equal(rc.Dropout(0.5, seed=1).forward(x[0])[1], whole[0])
    assert np.array_equal(rc.Dropout(0.5, seed=1).forward(x[0, 0])[1], whole[0, 0])
    assert not np.array_equal(rc.Dropout(0.5, seed=2).forward(x)[1], whole)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_have_the_mean_of_one(p):
    mask = rc.Dropout(p, seed=0).forward(np.ones((50, 40, 100), np.float32))[1]
    assert set(np.unique(mask)) == {0, np.float32(1 / (1 - p))}
    for axes in ((1, 2), (0, 2), (0, 1)):
        found = (mask == 0).mean(axes)
        assert abs(found - p).max() < 5 * np.sqrt(p * (1 - p) * found.size / mask.size)
    assert abs((mask == 0).mean() - p) < 0.004


def test_dropout_backward_and_the_limits_of_p():
    x, dy = np.full((2, 3, 4), 3, np.float32), np.full((2, 3, 4), 2, np.float32)
    layer = rc.Dropout(0.5, seed=0)
    y, tape = layer.forward(x)
    assert np.array_equal(layer.backward(tape, dy), dy * tape) and layer.backward(tape, dy, need_dx=False) is None
    assert layer(x) is x
    y, tape = rc.Dropout(0.0).forward(x)
    assert np.array_equal(y, x) and np.array_equal(rc.Dropout(0.0).backward(tape, dy), dy)
    y, tape = rc.Dropout(1.0).forward(x)
    assert not y.any() and not tape.any()
    for shape in ((), (0,), (0, 3), (2, 0, 3)):
        assert layer.forward(np.ones(shape, np.float32))[0].shape == shape
    with pytest.raises(ValueError, match="p: expected 0 to 1, got 1.5"):
        rc.Dropout(1.5)
    with pytest.raises(ValueError, match="dy: expected shape"):
        layer.backward(layer.forward(x)[1], dy[0])


@pytest.mark.parametrize("duplicate", COPIES)
def test_dropout_goes_on_where_it_was(duplicate):
    layer, x = rc.Dropout(0.5), np.ones((2, 2, 30), np.float32)
    layer.forward(x)
    other = duplicate(layer)
    resumed = rc.Dropout(0.5)
    resumed.seed, resumed.calls = layer.seed, 1
    want = layer.forward(x)[1]
    assert np.array_equal(other.forward(x)[1], want) and np.array_equal(resumed.forward(x)[1], want)


# ---- Sequential -----------------------------------------------------------------------------------------------------


class Doubling(Module):
    """Stands for a recurrent layer: gives a state beside y, and takes lengths."""

    def __call__(self, x, state=None, lengths=None):
        self.seen = lengths
        return 2 * x, "state"

    def forward(self, x, state=None, lengths=None):
        return 2 * x, "state", "tape" if lengths is None else lengths

    def backward(self, tape, dy, dstate=None, need_dx=True):
        self.got = tape, need_dx
        return 2 * dy if need_dx else None, "dstate"


def test_sequential_runs_its_layers_in_order():
    rng = np.random.default_rng(0)
    a, b = rc.Linear(4, 6, seed=0), rc.Linear(6, 3, seed=1)
    net = rc.Sequential(a, Doubling(), b)
    x, dy = array(rng, (5, 2, 4), "float32"), array(rng, (5, 2, 3), "float32")
    assert list(net.params) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    y, tape = net.forward(x)
    assert np.array_equal(y, b(2 * a(x))) and np.array_equal(net(x), y)
    dx = net.backward(tape, dy)
    want = 2 * dy.astype(np.float64) @ b.params["weight"] @ a.params["weight"]
    close(dx, want, 2e-5)
    assert net.grads["0.weight"].any() and net.backward(tape, dy, need_dx=False) is None


def test_sequential_passes_lengths_on_and_skips_dx_only_at_its_start():
    net = rc.Sequential(first=Doubling(), drop=rc.Dropout(0.0), last=Doubling())
    net(np.ones(2, np.float32), lengths=[1])
    assert net.children["last"].seen == [1]
    _, tape = net.forward(np.ones(2, np.float32), lengths=[3])
    assert net.backward(tape, np.ones(2, np.float32), need_dx=False) is None
    assert net.children["last"].got == ([3], True) and net.children["first"].got == ([3], False)
    with pytest.raises(ValueError, match="tape: expected that of 3 layers, got 1"):
        net.backward(tape[:1], np.ones(2, np.float32))
    with pytest.raises(TypeError, match="0: expected a Module, got int"):
        rc.Sequential(3)


@pytest.mark.parametrize("form", ["padded", "ragged"])
@pytest.mark.parametrize("kind", [rc.LSTM, rc.GRU, rc.RNN])
def test_sequential_with_recurrent_layers(form, kind):
    """Gradients of a whole model are differences, for padded and concatenated sequences of different lengths."""
    rng, lengths = np.random.default_rng(0), [4, 0, 2]
    net = rc.Sequential(
        embedding=rc.Embedding(5, 3, dtype="float64", seed=0),
        rnn=kind(3, 4, num_layers=2, dtype="float64", seed=1),
        head=rc.Linear(4, 5, dtype="float64", seed=2),
    )
    x, targets = rng.integers(0, 5, (4, 3)), rng.integers(0, 5, (4, 3))
    inside = np.arange(4)[:, None] < np.array(lengths)

    def loss():
        if form == "padded":
            y, tape = net.forward(x, lengths)
            return (tape, *rc.losses.cross_entropy(y, targets, lengths))
        y, tape = net.forward(rc.Ragged(x.T[inside.T], lengths))
        value, dy = rc.losses.cross_entropy(y.values, targets.T[inside.T])
        return tape, value, rc.Ragged(dy, lengths)

    tape, _, dy = loss()
    net.backward(tape, dy, need_dx=False)
    assert list(net.params)[:2] == ["embedding.weight", "rnn.weight_ih_l0"]
    for key in net.params:
        at = tuple(rng.integers(0, net.params[key].shape))
        slope = parameter_differences(lambda: loss()[1], net, key, at)
        assert abs(slope - net.grads[key][at]) < 1e-8, key
    plain = net(x, lengths) if form == "padded" else net(rc.Ragged(x.T[inside.T], lengths)).values
    again = net.forward(x, lengths)[0]
    assert np.allclose(plain, again if form == "padded" else again.swapaxes(0, 1)[inside.T], atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_sequential_gradients_are_differences(seed):
    rng = np.random.default_rng(seed)
    net = rc.Sequential(
        embedding=rc.Embedding(7, 5, dtype="float64", seed=seed),
        hidden=rc.Linear(5, 6, dtype="float64", seed=seed + 1),
        head=rc.Linear(6, 4, bias=False, dtype="float64", seed=seed + 2),
    )
    x, targets = rng.integers(0, 7, (3, 2)), rng.integers(0, 4, (3, 2))
    y, tape = net.forward(x)
    net.backward(tape, rc.losses.cross_entropy(y, targets)[1])
    for key in net.params:
        at = tuple(rng.integers(0, net.params[key].shape))
        slope = parameter_differences(lambda: rc.losses.cross_entropy(net(x), targets)[0], net, key, at)
        assert abs(slope - net.grads[key][at]) < 1e-8, key
