"""Memory of results: whole cache lines, taken again once a result and all its views are gone, never before."""

import weakref
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


X = np.ones((1, 2, 3), np.float32)


def short_calls():
    """Calls that give new small arrays: a layer's of one step and of more, a cell's."""
    layer, cell = rc.GRU(3, 4, seed=0), rc.GRUCell(3, 4, seed=0)
    return {
        "layer, one step": lambda: layer(X)[0],
        "layer, two steps": lambda: layer(np.concatenate([X, X]))[0],
        "cell": lambda: cell.step(X[0], np.zeros((2, 4), np.float32)),
    }


@pytest.fixture(params=sorted(short_calls()))
def short_call(request):
    return short_calls()[request.param]


def test_small_results_are_taken_again(short_call):
    assert len({address(short_call()) for _ in range(20)}) <= 2


def test_small_results_that_somebody_holds_are_not(short_call):
    kept = [short_call() for _ in range(30)]
    assert len({address(array) for array in kept}) == 30
    assert all((array == kept[0]).all() for array in kept)


@pytest.mark.parametrize("hold", [lambda a: a[:1].T, memoryview, weakref.ref])
def test_nor_those_that_are_held_otherwise(short_call, hold):
    held = [hold(short_call()) for _ in range(3)]
    before = {address(np.asarray(h() if isinstance(h, weakref.ref) else h)) for h in held}
    assert len(before) == 3
    assert before.isdisjoint({address(short_call()) for _ in range(20)})


def reshape(array):
    array.shape = (-1,)


def retype(array):
    array.dtype = np.int32


def freeze(array):
    array.flags.writeable = False


@pytest.mark.parametrize("change", [reshape, retype, freeze])
@pytest.mark.filterwarnings("ignore:Setting the")
def test_small_results_that_were_changed_in_place(short_call, change):
    right = short_call().copy()
    for _ in range(12):
        change(short_call())
    array = short_call()
    assert array.shape == right.shape and array.dtype == right.dtype and array.flags.writeable
    assert (array == right).all()


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_loop_of_steps_over_results_that_are_taken_again(kind):
    layer, x = getattr(rc, kind)(3, 20, seed=0), np.random.default_rng(0).standard_normal((40, 2, 3), np.float32)
    whole, _ = layer(x)
    state = None
    for t in range(40):
        y, state = layer(x[t : t + 1], state)
        assert (y == whole[t]).all()


def test_threads_get_small_results_of_their_own():
    layer = rc.LSTM(3, 4, seed=0)

    def steps(value):
        x = np.full((1, 2, 3), value, np.float32)
        right = layer(x)[0].copy()
        return all((layer(x)[0] == right).all() for _ in range(2000))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(steps, range(4)))


@pytest.mark.parametrize("shape, error", [
    ((1 << 31, 1 << 31), (MemoryError, ValueError)), ((1 << 50,), MemoryError), ((-1, 1 << 20), ValueError),
    ((1,) * 65, ValueError),
])
def test_impossible_shapes(shape, error):
    with pytest.raises(error):
        empty(shape, "float32")
