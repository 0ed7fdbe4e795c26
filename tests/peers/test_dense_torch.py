"""Losses, optimisers, schedules, clipping and layers against PyTorch."""

import numpy as np
import pytest
from cases import close

import rnn_core as rc
from rnn_core.module import Module

torch = pytest.importorskip("torch")
F = torch.nn.functional

pytestmark = pytest.mark.peers
SHAPES = {"a": (7, 5), "b": (13,), "c": (40, 30)}


def leaf(x):
    return torch.tensor(np.asarray(x), requires_grad=True)


def loss_close(got, loss, x, tolerance=1e-12):
    loss.backward()
    assert abs(got[0] - loss.item()) <= tolerance * max(1.0, abs(loss.item()))
    close(got[1], x.grad.numpy(), tolerance)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(seed, smoothing):
    rng = np.random.default_rng(seed)
    rows, classes = (int(n) for n in rng.integers(1, 60, 2))
    x, targets = rng.standard_normal((rows, classes)) * 3, rng.integers(0, classes, rows)
    targets[1:][rng.random(rows - 1) < 0.3] = -100
    tx = leaf(x)
    loss = F.cross_entropy(tx, torch.tensor(targets), label_smoothing=smoothing)
    loss_close(rc.losses.cross_entropy(x, targets, label_smoothing=smoothing), loss, tx)


@pytest.mark.parametrize("seed", range(10))
def test_losses_element_by_element(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 20, int(rng.integers(1, 4))))
    x, target = rng.standard_normal(shape) * 10, rng.random(shape)
    pairs = [(rc.losses.binary_cross_entropy, F.binary_cross_entropy_with_logits), (rc.losses.mse, F.mse_loss)]
    for ours, theirs in pairs:
        tx = leaf(x)
        loss_close(ours(x, target), theirs(tx, torch.tensor(target)), tx)


class Net(Module):
    def __init__(self, seed, dtype):
        super().__init__(dtype)
        rng = np.random.default_rng(seed)
        for name, shape in SHAPES.items():
            self._add_parameter(name, rng.standard_normal(shape))


OPTIMISERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.2}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.1, "alpha": 0.5, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.7}),
    ("RMSprop", {"centered": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-4, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.5}),
]


@pytest.mark.parametrize("name, options", OPTIMISERS)
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-6)])
def test_optimisers(name, options, dtype, tolerance):
    net = Net(0, dtype)
    theirs = {key: leaf(p.copy()) for key, p in net.params.items()}
    ours = getattr(rc.optim, name)(net.params, **options)
    peer = getattr(torch.optim, name)(theirs.values(), **options)
    rng = np.random.default_rng(1)
    for step in range(10):
        grads = {key: rng.standard_normal(p.shape).astype(dtype) for key, p in net.params.items()}
        for key, p in theirs.items():
            p.grad = torch.tensor(grads[key])
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 20.0)
        assert abs(rc.clip_grad_norm(grads, 20.0) - norm.item()) <= 1e-5 * norm.item()
        ours.step(grads)
        peer.step()
        for key, p in theirs.items():
            close(net.params[key], p.detach().numpy().astype(np.float64), tolerance, key, step)
    assert {k for g in ours.groups for k in g} <= set(peer.param_groups[0])


def test_the_defaults_are_theirs():
    net = Net(0, "float64")
    for name in ("SGD", "RMSprop", "Adam", "AdamW"):
        peer = getattr(torch.optim, name)([leaf(np.ones(1))]).param_groups[0]
        for key, value in getattr(rc.optim, name)(net.params).groups[0].items():
            assert peer[key] == value, (name, key)


SCHEDULES = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("CosineAnnealingLR", {"T_max": 7}),
    ("CosineAnnealingLR", {"T_max": 1, "eta_min": 0.01}),
    ("CosineAnnealingLR", {"T_max": 12, "eta_min": 0.1}),
]


def optimisers():
    groups = [{"params": {"a": np.zeros(1)}, "lr": 0.5}, {"params": {"b": np.zeros(1)}, "lr": 0.2}]
    peers = [{"params": [leaf(np.zeros(1))], "lr": group["lr"]} for group in groups]
    return rc.optim.SGD(groups), torch.optim.SGD(peers, lr=0.5)


def same_rates(ours, peer):
    for mine, theirs in zip(ours.groups, peer.param_groups):
        assert abs(mine["lr"] - theirs["lr"]) < 1e-14


@pytest.mark.parametrize("name, options", SCHEDULES)
def test_schedules(name, options):
    ours, peer = optimisers()
    schedule = getattr(rc.schedules, name)(ours, **options)
    theirs = getattr(torch.optim.lr_scheduler, name)(peer, **options)
    for epoch in range(40):
        if epoch == 20:  # a rate that was set by hand
            for group in [*ours.groups, *peer.param_groups]:
                group["lr"] *= 0.7
        peer.step()
        schedule.step()
        theirs.step()
        same_rates(ours, peer)


@pytest.mark.parametrize("seed", range(20))
def test_plateau(seed):
    rng = np.random.default_rng(seed)
    options = {
        "mode": str(rng.choice(["min", "max"])),
        "factor": float(rng.uniform(0.1, 0.9)),
        "patience": int(rng.integers(0, 4)),
        "threshold": float(rng.choice([0.0, 1e-4, 0.2])),
        "threshold_mode": str(rng.choice(["rel", "abs"])),
        "cooldown": int(rng.integers(0, 3)),
        "min_lr": float(rng.choice([0.0, 0.05])),
    }
    ours, peer = optimisers()
    schedule = rc.schedules.ReduceLROnPlateau(ours, **options)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(peer, **options)
    for measure in rng.integers(1, 6, 60).astype(float):
        schedule.step(measure)
        theirs.step(measure)
        same_rates(ours, peer)


def test_layers_take_their_weights():
    rng = np.random.default_rng(0)
    for ours, peer, x in (
        (rc.Linear(9, 5, dtype="float64"), torch.nn.Linear(9, 5).double(), rng.standard_normal((4, 3, 9))),
        (rc.Embedding(9, 5, 2, dtype="float64"), torch.nn.Embedding(9, 5, 2).double(), rng.integers(0, 9, (4, 3))),
    ):
        ours.load_state_dict(peer.state_dict())
        y, tape = ours.forward(x)
        dy = rng.standard_normal(y.shape)
        want = peer(torch.tensor(x))
        want.backward(torch.tensor(dy))
        ours.backward(tape, dy)
        close(y, want.detach().numpy(), 1e-12)
        for key, p in peer.named_parameters():
            close(ours.grads[key], p.grad.numpy(), 1e-12, key)
