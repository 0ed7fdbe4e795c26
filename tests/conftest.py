"""Fixtures that every test file may use."""

import pytest

import rnn_core as rc


@pytest.fixture
def threads():
    """set_num_threads, undone after the test."""
    before = rc.get_num_threads()
    yield rc.set_num_threads
    rc.set_num_threads(before)
