"""The thread pool (src/pool.c) and the look for signals, through their Python-visible twins."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import rnn_core as rc
from rnn_core import _runtime, _testing

STEPS = 200
ONE_SUM = STEPS * (STEPS + 1) // 2

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")
needs_cores = pytest.mark.skipif(_runtime.cores() < 2, reason="one core: a team waits asleep")
# Python warns of forks beside threads, which is what these tests are about.
fork_on_purpose = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def threads():
    """Restores the number of threads; call it to set one."""
    before = rc.get_num_threads()
    yield rc.set_num_threads
    rc.set_num_threads(before)


def child_status(part, seconds=60):
    """Run `part` in a forked child; returns its exit status: 0 if `part` returned, SIGALRM's if it hung."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            part()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def march_in_twos():
    for _ in range(3):
        assert _testing.team_sums(2, STEPS) == [2 * ONE_SUM] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_each_rank_has_a_thread_of_its_own(threads, size):
    threads(size)
    found = _testing.team_threads(size)
    assert found[0] == threading.get_ident()
    assert len(set(found)) == size


def test_a_team_is_never_larger_than_the_number_of_threads(threads):
    threads(2)
    assert len(_testing.team_threads(8)) == 2
    assert len(_testing.team_threads(1)) == 1
    threads(1)
    assert len(_testing.team_threads(8)) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_barriers_hold(threads, size):
    threads(size)
    for _ in range(5):
        assert _testing.team_sums(size, STEPS) == [size * ONE_SUM] * size


def test_many_callers_at_once(threads):
    threads(2)
    wrong = []

    def call():
        for _ in range(50):
            sums = _testing.team_sums(2, STEPS)
            if sums != [len(sums) * ONE_SUM] * len(sums):
                wrong.append(sums)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


def test_a_second_caller_works_alone_and_does_not_wait(threads):
    threads(2)
    for _ in range(5):
        sizes, held = [], []
        holder = threading.Thread(target=lambda held=held: held.append(_testing.team_waits(2, 1.0)))
        holder.start()
        time.sleep(0.2)
        while holder.is_alive():
            sizes.append(len(_testing.team_threads(2)))
            time.sleep(0.01)
        holder.join()
        if held == [2]:  # else our own call was there first, and the holder worked alone
            break
    assert held == [2]
    assert sizes.count(1) > 5  # one that waited would have come back once, after the end


def test_the_number_of_threads_may_change_while_others_call(threads):
    stop = threading.Event()
    wrong = []

    def call():
        while not stop.is_set():
            sums = _testing.team_sums(3, 20)
            if sums != [len(sums) * 210] * len(sums):
                wrong.append(sums)

    caller = threading.Thread(target=call)
    caller.start()
    for i in range(200):
        threads(1 + i % 3)
        time.sleep(0.001)
    stop.set()
    caller.join(60)
    assert not caller.is_alive() and not wrong


def test_an_idle_pool_uses_no_cpu(threads):
    threads(3)
    _testing.team_sums(3, STEPS)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1  # a spinning worker would use 0.5


def team_becomes(size, pause):
    """Whether a team of two, asked every `pause` seconds, counts `size` within 10 seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        time.sleep(pause)
        if _testing.team_awake(2) == size:
            return True
    return False


def falls_asleep():
    return team_becomes(1, 0.01)


@pytest.fixture
def sleepers():
    """Brief runs leave a sleeping team alone, as outside the tests."""
    _testing.wake_for_all(False)
    yield
    _testing.wake_for_all(True)


@needs_cores
@pytest.mark.usefixtures("sleepers")
def test_brief_runs_wake_a_team_only_if_they_follow_each_other(threads):
    threads(2)
    march_in_twos()
    assert _testing.team_awake(1) == 1
    assert _testing.team_awake(2) == 2
    assert falls_asleep()
    time.sleep(0.01)
    assert _testing.team_awake(2) == 1
    assert team_becomes(2, 0)
    march_in_twos()
    assert falls_asleep()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's /proc")
def test_a_woken_thread_may_run_on_all_cores_again(threads):
    threads(2)
    for _ in range(3):
        march_in_twos()
        masks = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
        assert all(mask == masks[0] for mask in masks)
        time.sleep(0.02)


@needs_cores
@pytest.mark.usefixtures("sleepers")
def test_the_bits_do_not_depend_on_who_is_awake(threads):
    threads(2)
    layer, x = rc.LSTM(64, 64, seed=0), np.ones((20, 1, 64), np.float32)
    march_in_twos()
    shared = layer(x)[0]
    assert falls_asleep()
    np.testing.assert_array_equal(layer(x)[0], shared)


@needs_fork
@fork_on_purpose
@pytest.mark.usefixtures("sleepers")
def test_a_child_of_a_process_whose_team_sleeps_has_a_team(threads):
    threads(2)
    march_in_twos()
    falls_asleep()

    def part():
        assert _testing.team_awake(2) == 2  # there is none yet: made, not woken
        march_in_twos()

    assert child_status(part) == 0


def test_workers_flush_denormals_as_their_caller_does(threads):
    threads(2)
    assert _testing.team_halves(1e-38, 2, True) == [0.0, 0.0]
    assert _testing.team_halves(-1e-38, 2, True) == [0.0, 0.0]
    for value in _testing.team_halves(1e-38, 2, False):
        assert 4.9e-39 < value < 5.1e-39


@needs_fork
@fork_on_purpose
class TestFork:
    def test_before_the_first_use(self):
        code = (
            "import os, sys, rnn_core._testing as t, rnn_core as rc\n"
            "rc.set_num_threads(2)\n"
            "pid = os.fork()\n"
            "ok = t.team_sums(2, 10) == [110, 110]\n"
            "if pid == 0: os._exit(0 if ok else 1)\n"
            "sys.exit(0 if ok and os.waitpid(pid, 0)[1] == 0 else 1)\n"
        )
        assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 0

    def test_after_use(self, threads):
        threads(2)
        march_in_twos()
        assert child_status(march_in_twos) == 0
        march_in_twos()

    def test_in_the_child_of_a_child(self, threads):
        threads(2)
        march_in_twos()

        def part():
            march_in_twos()
            assert child_status(march_in_twos) == 0
            march_in_twos()

        assert child_status(part) == 0
        march_in_twos()

    def test_while_another_thread_is_inside_the_pool(self, threads):
        threads(2)
        holder = threading.Thread(target=_testing.team_waits, args=(2, 1.0))
        holder.start()
        for _ in range(5):
            assert child_status(march_in_twos) == 0
        holder.join(60)
        assert not holder.is_alive()
        march_in_twos()

    def test_by_a_signal_handler_in_the_middle_of_a_call(self, threads):
        """The child has lost the call's other threads: the call ends there with an error, and the next one works."""
        threads(2)
        forked, error = [], None
        before = signal.signal(signal.SIGALRM, lambda *_: forked.append(os.fork()))
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            _testing.team_waits(2, 0.3)
        except RuntimeError as raised:
            error = raised
        finally:
            signal.signal(signal.SIGALRM, before)
        if forked == [0]:
            signal.alarm(60)
            os._exit(0 if error and _testing.team_sums(2, STEPS) == [2 * ONE_SUM] * 2 else 1)
        assert error is None
        assert os.waitpid(forked[0], 0)[1] == 0
        march_in_twos()

    def test_a_thread_that_forks_takes_the_childs_signals(self, threads):
        threads(2)
        statuses = []
        forker = threading.Thread(target=lambda: statuses.append(child_status(interrupted_wait)))
        forker.start()
        forker.join(60)
        assert statuses == [0]


class Interrupted(Exception):
    """What the handler raises."""


def interrupted_wait(size=2):
    def handler(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(Interrupted):
            _testing.team_waits(size, 60.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_signal_ends_a_long_call(threads, size):
    threads(size)
    interrupted_wait(size)
    assert len(_testing.team_threads(size)) == size  # the pool is free again


def test_a_call_on_another_thread_runs_on_while_signals_come(threads):
    threads(2)
    handled, sizes = [], []
    before = signal.signal(signal.SIGALRM, lambda *_: handled.append(1))
    caller = threading.Thread(target=lambda: sizes.append(_testing.team_waits(2, 0.2)))
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        caller.start()
        caller.join(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sizes == [2] and handled


def test_handlers_see_denormals(threads):
    """Also in the middle of a loop that flushes them."""
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(float("1e-310") / 2))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        _testing.team_waits(1, 0.2)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert seen == [5e-311]
