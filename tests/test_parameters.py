"""Buffers: aligned, versioned, written through one door only (src/_parameters.pyx)."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from rnn_core._parameters import Buffer, address, door


def test_memory_is_aligned_zero_and_of_the_asked_shape():
    for shape in ((), (0,), (1,), (3, 5), (2, 0, 4), (1000, 7)):
        for dtype in (np.float32, np.float64):
            view = Buffer(shape, dtype).view
            assert view.shape == shape and view.dtype == dtype and not view.any()
            assert view.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    "make_writable",
    [
        lambda a: a.__setitem__(..., 1.0),
        lambda a: a.setflags(write=True),
        lambda a: a[1:].setflags(write=True),
        lambda a: a.reshape(-1).view(np.ndarray).setflags(write=True),
        lambda a: np.add(a, 1.0, out=a),
        lambda a: np.frombuffer(a, np.float32).setflags(write=True),
    ],
)
def test_views_cannot_be_written(make_writable):
    buffer = Buffer((3, 2), np.float32)
    with pytest.raises((ValueError, TypeError)):
        make_writable(buffer.view)
    assert not buffer.view.any() and buffer.version == 0


def test_writing_moves_the_version_and_closes_the_door():
    buffer = Buffer((3,), np.float32)
    view = buffer.view
    with buffer.writing() as out:
        out[...] = [1, 2, 3]
        assert buffer.version == 0
    assert buffer.version == 1 and view.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        out[0] = 7
    with pytest.raises(KeyError), buffer.writing() as out:
        out[0] = 9
        raise KeyError
    assert buffer.version == 2 and view[0] == 9


def test_door_finds_the_buffer_behind_any_view():
    buffer = Buffer((4, 6), np.float64)
    view = buffer.view
    for part in (view, view[1:3], view.reshape(-1)[5:], view.T, view[:, None], view.view(np.ndarray)):
        assert door(part) is buffer
    for other in (view.copy(), np.zeros(3), [1.0], None):
        with pytest.raises(TypeError, match="expected a parameter"):
            door(other)


def test_address_and_part_are_inverse():
    buffer = Buffer((4, 6), np.float32)
    with buffer.writing() as out:
        out[...] = np.arange(24).reshape(4, 6)
    for part in (buffer.view, buffer.view[2:], buffer.view[1, 3:5], buffer.view[3:3]):
        found, offset = address(part)
        again = found.part(offset, part.shape)
        assert found is buffer and np.array_equal(again, part)
        assert door(again) is buffer and (part.size == 0 or np.shares_memory(again, part))
    with pytest.raises(ValueError, match="C-contiguous"):
        address(buffer.view[:, 1:])
    for offset, shape in ((-1, (2,)), (20, (5,)), (0, (5, 6))):
        with pytest.raises(ValueError, match="expected a part of 24 elements"):
            buffer.part(offset, shape)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies_have_memory_of_their_own(duplicate):
    buffer = Buffer((2, 3), np.float64)
    with buffer.writing() as out:
        out[...] = 5
    other = duplicate(buffer)
    with buffer.writing() as out:
        out[...] = 6
    assert (other.view == 5).all() and other.view.dtype == np.float64 and other.view.ctypes.data % 64 == 0


def test_views_keep_the_memory_and_nothing_else_does():
    buffer = Buffer((1000,), np.float32)
    gone = weakref.ref(buffer)
    part = buffer.view[10:]
    del buffer
    gc.collect()
    assert gone() is not None and not part.any()
    del part
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("dtype", [np.float16, np.int32, ">f4", complex])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match="expected float32 or float64"):
        Buffer((2,), dtype)


@pytest.mark.parametrize("shape", [(-1,), (1,) * 9])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected at most 8 sizes"):
        Buffer(shape, np.float32)


def test_sizes_beyond_memory_are_an_error_and_no_overflow():
    for shape in ((2**40, 2**40), (2**62,), (2**31, 2**31, 2**31), (2**50,)):
        with pytest.raises(MemoryError):
            Buffer(shape, np.float64)
