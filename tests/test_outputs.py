"""Memory of results: whole cache lines, taken again once a result and all its views are gone, never before."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rnn_core._outputs import empty

import rnn_core as rc

SHAPE = (64, 32, 128)  # 1 MiB of float32


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0, 5), (3, 4), (200, 100), SHAPE, (1,) * 63 + (1 << 15,)])
def test_an_array_as_numpy_makes_it(shape, dtype):
    array = empty(shape, dtype)
    assert array.shape == shape and array.dtype == dtype
    assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
    array[...] = 3
    assert (np.array(array) == 3).all()


def test_large_ones_begin_on_a_cache_line():
    assert [address(empty((n, 1000), "float32")) % 64 for n in (20, 300, 4000, 9001)] == [0] * 4


def test_memory_is_taken_again():
    layer, x = rc.LSTM(8, SHAPE[2], seed=0), np.zeros((*SHAPE[:2], 8), np.float32)
    found = {address(layer(x)[0]) for _ in range(5)}
    assert len(found) == 1


def test_memory_in_use_is_not():
    first = empty(SHAPE, "float32")
    first[...] = 1
    view = first[3:5].T
    at = address(first)
    del first
    for _ in range(3):
        other = empty(SHAPE, "float32")
        other[...] = 2
        assert address(other) != at
    assert (view == 1).all()
    del view
    assert at in {address(array) for array in [empty(SHAPE, "float32") for _ in range(3)]}


def test_a_far_larger_block_is_left_alone():
    at = address(empty((4, *SHAPE), "float32"))
    assert address(empty(SHAPE, "float32")) != at


def test_threads_get_memory_of_their_own():
    def fill(value):
        for _ in range(200):
            array = empty(SHAPE, "float32")[:2]
            array[...] = value
            if not (array == value).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fill, range(4)))


@pytest.mark.parametrize("shape, error", [
    ((1 << 31, 1 << 31), (MemoryError, ValueError)), ((1 << 50,), MemoryError), ((-1, 1 << 20), ValueError),
    ((1,) * 65, ValueError),
])
def test_impossible_shapes(shape, error):
    with pytest.raises(error):
        empty(shape, "float32")
