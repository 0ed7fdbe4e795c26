"""Optimisers against their formulas in plain NumPy (rnn_core/optim.py)."""

import copy
import math
import pickle

import numpy as np
import pytest

import rnn_core as rc
from rnn_core.module import Module
from rnn_core.optim import SGD, Adam, AdamW, RMSprop

SHAPES = {"w": (17, 33), "b": (5,), "one": (1,), "none": (0, 3), "scalar": ()}


class Net(Module):
    def __init__(self, shapes=SHAPES, dtype="float64", seed=0):
        super().__init__(dtype)
        rng = np.random.default_rng(seed)
        for name, shape in shapes.items():
            self._add_parameter(name, rng.standard_normal(shape))


def random_grads(net, seed):
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal(p.shape).astype(p.dtype) for key, p in net.params.items()}


def plain_sgd(p, g, s, t, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False):
    g = g + weight_decay * p
    if momentum:
        s["b"] = g if t == 1 else momentum * s["b"] + (1 - dampening) * g
        g = g + momentum * s["b"] if nesterov else s["b"]
    return p - lr * g


def plain_rmsprop(p, g, s, t, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
    g = g + weight_decay * p
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g**2
    s["m"] = alpha * s.get("m", 0) + (1 - alpha) * g
    step = g / (np.sqrt(s["v"] - s["m"] ** 2 * centered) + eps)
    s["b"] = momentum * s.get("b", 0) + step
    return p - lr * s["b"]


def plain_adam(p, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, decoupled=False):
    if decoupled:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g**2
    m, v = s["m"] / (1 - betas[0] ** t), s["v"] / (1 - betas[1] ** t)
    return p - lr * m / (np.sqrt(v) + eps)


def plain_adamw(p, g, s, t, weight_decay=1e-2, **options):
    return plain_adam(p, g, s, t, weight_decay=weight_decay, decoupled=True, **options)


CASES = [
    (SGD, plain_sgd, {"lr": 0.1}),
    (SGD, plain_sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (SGD, plain_sgd, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
    (SGD, plain_sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (RMSprop, plain_rmsprop, {}),
    (RMSprop, plain_rmsprop, {"lr": 0.02, "alpha": 0.8, "momentum": 0.5, "weight_decay": 0.1, "eps": 1e-3}),
    (RMSprop, plain_rmsprop, {"centered": True, "momentum": 0.9}),
    (Adam, plain_adam, {}),
    (Adam, plain_adam, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-4, "weight_decay": 0.1}),
    (AdamW, plain_adamw, {}),
    (AdamW, plain_adamw, {"lr": 0.05, "weight_decay": 0.3, "betas": (0.0, 0.99)}),
]
NAMES = [f"{kind.__name__}{i}" for i, (kind, *_) in enumerate(CASES)]


@pytest.mark.parametrize("kind, plain, options", CASES, ids=NAMES)
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 3e-6)])
def test_steps_are_the_formula(kind, plain, options, dtype, tolerance):
    net = Net(dtype=dtype)
    optimiser = kind(net.params, **options)
    want = {key: p.astype(np.float64) for key, p in net.params.items()}
    states = {key: {} for key in want}
    for t in range(1, 8):
        grads = random_grads(net, t)
        kept = copy.deepcopy(grads)
        optimiser.step(grads)
        for key in want:
            want[key] = plain(want[key], kept[key].astype(np.float64), states[key], t, **options)
            assert np.array_equal(grads[key], kept[key])
            assert np.allclose(net.params[key], want[key], rtol=tolerance, atol=tolerance), (key, t)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 300, -1])
def test_a_gradient_that_is_not_finite_is_named_and_nothing_changes(bad, at):
    net = Net(dtype="float32")
    optimiser = Adam(net.params)
    optimiser.step(random_grads(net, 0))
    before, state = net.state_dict(), optimiser.state_dict()
    grads = random_grads(net, 1)
    grads["w"].reshape(-1)[at] = bad
    with pytest.raises(ValueError, match=r"grads\['w'\]: expected finite gradients"):
        optimiser.step(grads)
    after = optimiser.state_dict()
    assert all(np.array_equal(net.params[key], before[key]) for key in before)
    assert after["groups"] == state["groups"]
    for name in state["state"]:
        assert all(np.array_equal(after["state"][name][k], v) for k, v in state["state"][name].items())


def test_bad_gradients_change_nothing():
    net = Net()
    optimiser = SGD(net.params, lr=1.0)
    before, good = net.state_dict(), random_grads(net, 0)
    cases = [
        ({k: v for k, v in good.items() if k != "b"}, ValueError, r"missing: \['b'\]"),
        (good | {"b": np.ones(4)}, ValueError, r"grads\['b'\]: expected shape \(5,\), got \(4,\)"),
        (good | {"b": np.ones(5, np.float32)}, TypeError, r"grads\['b'\]: expected dtype float64, got float32"),
        (good | {"b": [1.0] * 5}, TypeError, r"grads\['b'\]: expected an array, got list"),
        (list(good.values()), TypeError, "grads: expected a dictionary of arrays, got list"),
    ]
    for grads, kind, words in cases:
        with pytest.raises(kind, match=words):
            optimiser.step(grads)
    assert all(np.array_equal(net.params[key], before[key]) for key in before)
    optimiser.step(good | {"another": np.ones(2)})
    assert not np.array_equal(net.params["b"], before["b"])


def test_strided_gradients_are_taken_anew_each_step():
    net = Net({"w": (3, 4)})
    optimiser, big = SGD(net.params, lr=1.0), np.ones((4, 3))
    start = net.params["w"].copy()
    for _ in range(2):
        optimiser.step({"w": big.T})
        big += 1
    assert np.array_equal(net.params["w"], start - 1 - 2)


def test_other_arrays_are_noticed():
    net = Net({"w": (3,)})
    optimiser, start = SGD(net.params, lr=1.0), net.params["w"].copy()
    optimiser.step({"w": np.ones(3)})
    optimiser.step({"w": np.full(3, 2.0)})
    assert np.allclose(net.params["w"], start - 3)


def test_groups_have_options_of_their_own():
    net = Net({"a": (3,), "b": (3,)})
    params, start = net.params, net.state_dict()
    groups = [{"params": {"a": params["a"]}, "lr": 0.5}, {"params": {"b": params["b"]}}]
    optimiser = SGD(groups, lr=0.1)
    optimiser.step({"a": np.ones(3), "b": np.ones(3)})
    assert np.allclose(params["a"], start["a"] - 0.5) and np.allclose(params["b"], start["b"] - 0.1)
    assert optimiser.lr == 0.5
    optimiser.lr = 0.25
    assert [group["lr"] for group in optimiser.groups] == [0.25, 0.25]
    optimiser.groups[1]["lr"] = 0.0
    kept = params["b"].copy()
    optimiser.step({"a": np.ones(3), "b": np.ones(3)})
    assert np.allclose(params["a"], start["a"] - 0.75) and np.array_equal(params["b"], kept)


def test_a_part_of_a_parameter_and_own_arrays():
    net = Net({"w": (4, 3)})
    own, start = np.zeros(3), net.params["w"].copy()
    optimiser = SGD({"rows": net.params["w"][1:3], "own": own}, lr=1.0)
    optimiser.step({"rows": np.ones((2, 3)), "own": np.ones(3)})
    assert np.array_equal(own, [-1, -1, -1])
    assert np.allclose(net.params["w"] - start, [[0] * 3, [-1] * 3, [-1] * 3, [0] * 3])


@pytest.mark.parametrize("kind, plain, options", CASES, ids=NAMES)
def test_state_dict_continues_to_the_same_bits(kind, plain, options):
    net, other = Net(dtype="float32"), Net(dtype="float32")
    optimiser = kind(net.params, **options)
    for t in range(3):
        optimiser.step(random_grads(net, t))
    other.load_state_dict(net.state_dict())
    resumed = kind(other.params, lr=77.0)
    if options.get("centered"):
        resumed.groups[0]["centered"] = True
    resumed.load_state_dict(optimiser.state_dict())
    for t in range(3, 6):
        optimiser.step(random_grads(net, t))
        resumed.step(random_grads(net, t))
    assert all(np.array_equal(net.params[key], other.params[key]) for key in net.params)


def test_a_state_dict_of_something_else_is_refused_whole():
    net = Net({"a": (3,), "b": (2,)})
    optimiser = Adam(net.params)
    optimiser.step(random_grads(net, 0))
    good = optimiser.state_dict()
    changes = [
        (lambda s: s.pop("groups"), ValueError, "expected the dictionary of an optimiser"),
        (lambda s: s["groups"].append(s["groups"][0]), ValueError, "expected 1 groups, got 2"),
        (lambda s: s["groups"][0].update(params=["b", "a"]), ValueError, r"expected the keys \['a', 'b'\]"),
        (lambda s: s["groups"][0].update(lr=-1.0), ValueError, "lr: expected"),
        (lambda s: s["groups"][0].update(other=1.0), ValueError, "expected the options"),
        (lambda s: s["groups"][0].pop("eps"), ValueError, "expected the options"),
        (lambda s: s["groups"][0].update(step=-1), ValueError, "step: expected"),
        (lambda s: s["state"]["exp_avg"].update(a=np.zeros(4)), ValueError, r"exp_avg\['a'\]: expected shape \(3,\)"),
        (lambda s: s["state"]["exp_avg"].pop("a"), ValueError, r"exp_avg: .*missing: \['a'\]"),
    ]
    for change, kind, words in changes:
        state = copy.deepcopy(good)
        change(state)
        with pytest.raises(kind, match=words):
            optimiser.load_state_dict(state)
    after = optimiser.state_dict()
    assert after["groups"] == good["groups"]
    assert np.array_equal(after["state"]["exp_avg"]["a"], good["state"]["exp_avg"]["a"])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_with_its_model_stays_tied_to_it(duplicate):
    net = Net(dtype="float32")
    optimiser = Adam({"part": net.params["w"][2:], "b": net.params["b"]})
    grads = {"part": np.ones((15, 33), np.float32), "b": np.ones(5, np.float32)}
    optimiser.step(grads)
    other, copied = duplicate((net, optimiser))
    optimiser.step(grads)
    assert not np.array_equal(other.params["b"], net.params["b"])
    copied.step(grads)
    assert all(np.array_equal(other.params[key], net.params[key]) for key in net.params)
    alone = duplicate(optimiser)
    before = net.state_dict()
    alone.step(grads)
    assert all(np.array_equal(net.params[key], before[key]) for key in before)


@pytest.mark.parametrize(
    "make, kind, words",
    [
        (lambda p: SGD({}), ValueError, "expected at least one parameter"),
        (lambda p: SGD([]), ValueError, "expected at least one group"),
        (lambda p: SGD([1]), TypeError, "expected a dictionary of arrays, or groups"),
        (lambda p: SGD({"w": [1.0]}), TypeError, r"params\['w'\]: expected an array, got list"),
        (lambda p: SGD({"w": np.ones(3, int)}), TypeError, "expected float32 or float64"),
        (lambda p: SGD({"w": np.ones((3, 4)).T}), ValueError, r"params\['w'\]: expected a C-contiguous array"),
        (lambda p: SGD({"w": np.broadcast_to(1.0, (1,))}), ValueError, "a module's parameter or a writable array"),
        (lambda p: SGD({"a": np.ones(1), "b": np.ones(1, np.float32)}), TypeError, "expected one dtype in a group"),
        (lambda p: SGD([{"params": p}, {"params": p}]), ValueError, r"expected each key in one group"),
        (lambda p: SGD([{"params": p, "beta": 1}]), ValueError, r"got \['beta'\]"),
        (lambda p: SGD(p, lr=-1.0), ValueError, "lr: expected"),
        (lambda p: SGD(p, lr=math.nan), ValueError, "lr: expected a finite number"),
        (lambda p: SGD(p, lr="1"), TypeError, "lr: expected a number"),
        (lambda p: SGD(p, nesterov=True), ValueError, "nesterov: expected a momentum"),
        (lambda p: Adam(p, betas=(0.9, 1.0)), ValueError, "betas: expected"),
        (lambda p: Adam(p, betas=(0.9,)), ValueError, "betas: expected two numbers"),
        (lambda p: Adam(p, eps=-1e-8), ValueError, "eps: expected"),
    ],
)
def test_bad_arguments(make, kind, words):
    with pytest.raises(kind, match=words):
        make(Net({"w": (3,)}).params)


def test_a_bad_rate_set_later_is_refused_before_anything_changes():
    net = Net({"w": (3,)})
    optimiser, before = Adam(net.params), net.params["w"].copy()
    with pytest.raises(ValueError, match="lr: expected"):
        optimiser.lr = -1.0
    optimiser.groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr: expected a finite number"):
        optimiser.step({"w": np.ones(3)})
    assert np.array_equal(net.params["w"], before)


def test_repr_and_public_names():
    assert repr(rc.optim.SGD(Net().params, lr=0.5)).startswith("SGD(lr=0.5, momentum=0.0")
