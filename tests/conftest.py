"""Fixtures that every test file may use."""

import pytest

import rnn_core as rc
from rnn_core import _testing

L1_BYTES = 48 << 10  # with less, large weights are not taken in blocks
_testing.assume_l1(L1_BYTES)
_testing.wake_for_all(True)  # what is small enough for a test would often find its threads asleep and leave them so


@pytest.fixture
def threads():
    """set_num_threads, undone after the test."""
    before = rc.get_num_threads()
    yield rc.set_num_threads
    rc.set_num_threads(before)


@pytest.fixture
def assume_l1():
    """_testing.assume_l1, undone after the test."""
    yield _testing.assume_l1
    _testing.assume_l1(L1_BYTES)
