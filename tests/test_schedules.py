"""Learning-rate schedules against their closed forms (rnn_core/schedules.py)."""

import math

import numpy as np
import pytest

from rnn_core.optim import SGD
from rnn_core.schedules import CosineAnnealingLR, ExponentialLR, ReduceLROnPlateau, StepLR


def optimiser(*rates):
    return SGD([{"params": {str(i): np.zeros(1)}, "lr": lr} for i, lr in enumerate(rates or (0.5,))])


CLOSED = [
    (lambda o: StepLR(o, 3, 0.5), lambda base, e: base * 0.5 ** (e // 3)),
    (lambda o: StepLR(o, 1), lambda base, e: base * 0.1**e),
    (lambda o: ExponentialLR(o, 0.9), lambda base, e: base * 0.9**e),
    (lambda o: CosineAnnealingLR(o, 7), lambda base, e: base * (1 + math.cos(math.pi * e / 7)) / 2),
    (
        lambda o: CosineAnnealingLR(o, 5, 0.1),
        lambda base, e: 0.1 + (base - 0.1) * (1 + math.cos(math.pi * e / 5)) / 2,
    ),
    (lambda o: CosineAnnealingLR(o, 1), lambda base, e: base * (1 + math.cos(math.pi * e)) / 2),
]


@pytest.mark.parametrize("make, closed", CLOSED)
def test_rates_follow_the_closed_form(make, closed):
    found = optimiser(0.5, 0.125)
    schedule = make(found)
    assert [group["lr"] for group in found.groups] == [0.5, 0.125]
    for epoch in range(1, 25):
        schedule.step()
        for group, base in zip(found.groups, (0.5, 0.125)):
            assert abs(group["lr"] - closed(base, epoch)) < 1e-12, epoch


@pytest.mark.parametrize("make, closed", CLOSED)
def test_state_dict_continues(make, closed):
    first = optimiser()
    schedule = make(first)
    for _ in range(4):
        schedule.step()
    second = optimiser(first.lr)
    resumed = make(second)
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(6):
        schedule.step()
        resumed.step()
        assert second.lr == first.lr


def test_schedules_act_on_the_rate_that_they_find():
    found = optimiser(1.0)
    schedules = [ExponentialLR(found, 0.5), StepLR(found, 2, 0.1)]
    for _ in range(2):
        for schedule in schedules:
            schedule.step()
    assert abs(found.lr - 0.25 * 0.1) < 1e-15


def rates(schedule, measures):
    found = []
    for measure in measures:
        schedule.step(measure)
        found.append(schedule.optimiser.lr)
    return found


def test_plateau_waits_patience_epochs_and_then_reduces():
    schedule = ReduceLROnPlateau(optimiser(1.0), factor=0.5, patience=2)
    assert rates(schedule, [5, 4, 4, 4, 4, 4, 4, 4, 3]) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_plateau_cooldown_floor_and_eps():
    schedule = ReduceLROnPlateau(optimiser(1.0), factor=0.5, patience=0, cooldown=2)
    assert rates(schedule, [1] * 8) == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    schedule = ReduceLROnPlateau(optimiser(1.0), factor=0.5, patience=0, min_lr=0.3)
    assert rates(schedule, [1] * 5) == [1, 0.5, 0.3, 0.3, 0.3]
    schedule = ReduceLROnPlateau(optimiser(1.0), factor=0.5, patience=0, eps=0.3)
    assert rates(schedule, [1] * 4) == [1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "mode, threshold_mode, better, worse",
    [("min", "rel", 8.9, 9.1), ("min", "abs", 9.8, 9.95), ("max", "rel", 11.1, 10.9), ("max", "abs", 10.2, 10.05)],
)
def test_plateau_knows_what_is_better(mode, threshold_mode, better, worse):
    threshold = 0.1
    for measure, want in ((better, 1.0), (worse, 0.5), (math.nan, 0.5)):
        schedule = ReduceLROnPlateau(optimiser(1.0), mode, 0.5, 0, threshold, threshold_mode)
        assert rates(schedule, [10.0, measure])[-1] == want


def test_plateau_state_dict_continues():
    first = ReduceLROnPlateau(optimiser(1.0), factor=0.5, patience=2, cooldown=1)
    rates(first, [3, 3, 3])
    second = ReduceLROnPlateau(optimiser(1.0), factor=0.5, patience=2, cooldown=1)
    second.load_state_dict(first.state_dict())
    assert rates(second, [3] * 6) == rates(first, [3] * 6) == [0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    "make, kind, words",
    [
        (lambda o: StepLR(o, 0), ValueError, "step_size: expected"),
        (lambda o: StepLR(o, 1, -1), ValueError, "gamma: expected"),
        (lambda o: ExponentialLR(o, math.nan), ValueError, "gamma: expected a finite number"),
        (lambda o: CosineAnnealingLR(o, 2.5), TypeError, "T_max: expected an integer"),
        (lambda o: ReduceLROnPlateau(o, "best"), ValueError, "mode: expected 'min' or 'max', got 'best'"),
        (lambda o: ReduceLROnPlateau(o, factor=1.0), ValueError, "factor: expected"),
        (lambda o: ReduceLROnPlateau(o, threshold_mode="x"), ValueError, "threshold_mode: expected"),
        (lambda o: StepLR(o.groups, 1), TypeError, "optimiser: expected an optimiser"),
        (lambda o: StepLR(o, 1).load_state_dict({"last_epoch": 1}), ValueError, "expected the keys"),
    ],
)
def test_bad_arguments(make, kind, words):
    with pytest.raises(kind, match=words):
        make(optimiser())
