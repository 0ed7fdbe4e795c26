"""Memory of the parameters, and the one door through which they are written.

A Buffer owns aligned memory and counts its writes. Users see read-only arrays over it; whatever derives
something from a parameter (packed weights) remembers the version it was made from and is never stale.
"""

from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject
from libc.stdlib cimport free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef enum:
    ALIGNMENT = 64      # a cache line, and a full AVX-512 vector
    MAX_DIMS = 8


cdef class Buffer:
    """64-byte aligned, zeroed memory of `shape` and `dtype` (float32 or float64) with a version counter.

    view      read-only ndarray over the memory; NumPy refuses to make it or a slice of it writable
    version   moves after every write through the door
    """

    def __cinit__(self, shape, dtype):
        cdef Py_ssize_t n, size = 1
        cdef size_t nbytes
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype: expected float32 or float64, got {self.dtype}")
        self.shape = tuple([int(n) for n in shape])
        if len(self.shape) > MAX_DIMS or min(self.shape, default=0) < 0:
            raise ValueError(f"shape: expected at most {MAX_DIMS} sizes of at least 0, got {self.shape}")
        for n in self.shape:
            if n and size > (<Py_ssize_t> 1 << 56) // n:
                raise MemoryError(f"a parameter of shape {self.shape} is too large for memory")
            size *= n
        self.size = size
        nbytes = <size_t> size * <size_t> self.dtype.itemsize
        nbytes = (nbytes + ALIGNMENT) // ALIGNMENT * ALIGNMENT       # never zero, whole cache lines
        if posix_memalign(&self.data, ALIGNMENT, nbytes) != 0:
            self.data = NULL
            raise MemoryError(f"cannot allocate {nbytes} bytes for a parameter of shape {self.shape}")
        memset(self.data, 0, nbytes)

    def __dealloc__(self):
        free(self.data)

    cdef void touch(self) noexcept:
        self.version += 1

    cdef object _array(self, bint writeable):
        cdef cnp.npy_intp dims[MAX_DIMS]
        cdef int i
        for i in range(len(self.shape)):
            dims[i] = self.shape[i]
        cdef int code = cnp.NPY_FLOAT32 if self.dtype.itemsize == 4 else cnp.NPY_FLOAT64
        cdef cnp.ndarray array = cnp.PyArray_SimpleNewFromData(len(self.shape), dims, code, self.data)
        cnp.set_array_base(array, self)
        # A Buffer offers no writable memory by Python's protocol, so NumPy refuses to turn the flag on again.
        if not writeable:
            array.flags.writeable = False
        return array

    @property
    def view(self):
        # Made anew each time: an array kept here would refer back to us, and arrays take no part in garbage collection.
        return self._array(False)

    def writing(self):
        """`with buffer.writing() as a: a[...] = ...`; the version moves on exit, also after an exception."""
        return Writing(self)

    def part(self, Py_ssize_t offset, shape):
        """Read-only view of `shape` over the elements from `offset` on."""
        cdef Py_ssize_t n, size = 1
        for n in shape:
            size *= n
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"expected a part of {self.size} elements, got offset {offset} and shape {tuple(shape)}")
        return self._array(False).reshape(-1)[offset:offset + size].reshape(shape)

    def __reduce__(self):
        return _restored, (self._array(False),)

    def __repr__(self):
        return f"Buffer(shape={self.shape}, dtype={self.dtype.name}, version={self.version})"


cdef class Writing:
    """The open door: hands out the writable array and moves the version when it closes."""

    cdef Buffer buffer
    cdef object array

    def __cinit__(self, Buffer buffer):
        self.buffer = buffer

    def __enter__(self):
        self.array = self.buffer._array(True)
        return self.array

    def __exit__(self, *exception):
        self.array.flags.writeable = False
        self.array = None
        self.buffer.touch()
        return False


def _restored(array):
    """A Buffer that holds a copy of `array` (for pickle and deepcopy)."""
    cdef Buffer buffer = Buffer(array.shape, array.dtype)
    with buffer.writing() as out:
        out[...] = array
    return buffer


cpdef Py_ssize_t stamp(dict buffers):
    """A number that every write to one of the buffers moves, since versions only grow."""
    cdef Py_ssize_t total = 0, at = 0
    cdef PyObject *buffer
    while PyDict_Next(buffers, &at, NULL, &buffer):
        total += (<Buffer> buffer).version
    return total


def door(array):
    """The Buffer behind a parameter's read-only view, or behind a slice or reshape of it.

    TypeError when `array` is anything else, a copy of a parameter for example.
    """
    cdef object found = array
    while isinstance(found, np.ndarray):
        found = found.base
    if not isinstance(found, Buffer):
        raise TypeError(f"expected a parameter (a view of a module's params), got {type(array).__name__}")
    return found


def address(array):
    """(Buffer, offset in elements) of a C-contiguous view of a parameter, so that `buffer.part` finds it again."""
    cdef Buffer buffer = door(array)
    if not array.flags.c_contiguous:
        raise ValueError("expected a C-contiguous part of a parameter")
    return buffer, (<char *> cnp.PyArray_DATA(array) - <char *> buffer.data) // array.itemsize
