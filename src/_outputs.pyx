"""Arrays for results: on cache lines, in memory that earlier results left, or small ones that nobody holds any more.

NumPy asks the C library for each, which may give the memory of a large one back to the system each time: a loop of
calls then pays for hundreds of page faults in each. And what begins within a cache line is stored line by line in two.
"""

cimport numpy as cnp
from cpython.ref cimport PyObject, Py_REFCNT

from rnn_core._plan cimport Block, block

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArrayObject_fields:
        PyObject *weakreflist

cnp.import_array()

cdef enum:
    SMALL = 1 << 16                    # bytes below which NumPy's own memory is as good, and arrays are worth keeping
    LARGE = 1 << 24                    # bytes above which memory goes back to the system
    SPARE = 4                          # at most so many are kept
    RECENT = 8                         # small arrays that each Recent holds

cdef list spare = []                   # blocks of results that are gone, the oldest first


cdef class Memory:
    """What a result's array holds: its block becomes a spare one once the array and all views of it are gone."""
    cdef Block block

    def __del__(self):
        if self.block.size <= LARGE:
            spare.append(self.block)
            if len(spare) > SPARE:
                drop(spare[0])


cdef bint drop(block) except -1:
    """Take a block out of the spare ones; false where another thread was faster, which it may be without the GIL."""
    try:
        spare.remove(block)
    except ValueError:
        return False
    return True


cdef Block spare_or_new(size_t bytes):
    """A spare block, unless all are too small, or so large that it would be a waste."""
    for found in list(spare):
        if bytes <= (<Block>found).size <= 2 * bytes and drop(found):
            return found
    return block(bytes)


cdef object empty_array(int ndim, cnp.npy_intp *shape, int type):
    """As PyArray_EMPTY in C order, of float32 or float64."""
    cdef double size = 4 if type == cnp.NPY_FLOAT32 else 8  # may be more than memory has
    cdef Memory memory
    cdef Block taken
    cdef int i
    for i in range(ndim):
        size *= shape[i]
    if not SMALL <= size < <double>(<size_t>1 << 62):
        return cnp.PyArray_EMPTY(ndim, shape, type, 0)
    taken = spare_or_new(<size_t>size)
    memory = Memory.__new__(Memory)
    memory.block = taken
    array = cnp.PyArray_SimpleNewFromData(ndim, shape, type, taken.data)
    cnp.set_array_base(array, memory)
    return array


cdef bint is_alike(array, int ndim, const cnp.npy_intp *shape, int type) noexcept:
    """As empty_array would make it; a user may have changed shape, type or flags in place."""
    if cnp.PyArray_TYPE(array) != type or not cnp.PyArray_ISCARRAY(array) or cnp.PyArray_NDIM(array) != ndim:
        return False
    return cnp.PyArray_CompareLists(cnp.PyArray_DIMS(array), shape, ndim)


cdef class Recent:
    """The latest small results. Loops of single steps let go of each a call or two later, and new arrays would take a
    tenth of a small layer's step: one that nobody else holds, not even weakly, is a result again."""
    def __init__(self):
        self.arrays = []

    cdef object empty(self, int ndim, cnp.npy_intp *shape, int type):
        """As empty_array."""
        cdef Py_ssize_t i
        for i in range(len(self.arrays)):
            array = self.arrays[i]
            # held by the list and here; views and buffers hold their array
            if Py_REFCNT(array) == 2 and (<PyArrayObject_fields *>array).weakreflist == NULL \
                    and is_alike(array, ndim, shape, type):
                return array
        array = empty_array(ndim, shape, type)
        if cnp.PyArray_NBYTES(array) >= SMALL:
            return array
        if len(self.arrays) < RECENT:
            self.arrays.append(array)
        else:
            self.arrays[self.oldest] = array
            self.oldest = (self.oldest + 1) % RECENT
        return array


def empty(tuple shape, dtype):
    """As numpy.empty, of float32 or float64."""
    cdef cnp.npy_intp[64] sizes
    cdef int i, type = cnp.dtype(dtype).type_num
    if len(shape) > 64:
        raise ValueError(f"expected at most 64 dimensions, got {len(shape)}")
    for i in range(len(shape)):
        sizes[i] = shape[i]
    return empty_array(len(shape), sizes, type)
