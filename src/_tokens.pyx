"""Token sequences as the engine wants them: one after the other, and where each begins."""

from cpython.list cimport PyList_GET_SIZE
from cpython.long cimport PyLong_CheckExact
from libc.stdint cimport int64_t

cimport numpy as cnp

cnp.import_array()

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int *) except? -1


cdef object new_integers(Py_ssize_t n):
    cdef cnp.npy_intp size = n
    return cnp.PyArray_SimpleNew(1, &size, cnp.NPY_INT64)


def from_lists(sequences, long long high, Py_ssize_t least):
    """(values, lengths), both int64, of a list of lists of plain ints from 0 to high - 1, each of at least `least`.
    None for anything else: NumPy then finds what it is, or what is wrong with it."""
    cdef Py_ssize_t i, j, size, total = 0
    cdef long long token
    cdef int overflow = 0
    if type(sequences) is not list:
        return None
    cdef list rows = sequences, row
    lengths = new_integers(PyList_GET_SIZE(rows))
    cdef int64_t *to = <int64_t *>cnp.PyArray_DATA(lengths)
    for i in range(PyList_GET_SIZE(rows)):
        if type(rows[i]) is not list:
            return None
        size = PyList_GET_SIZE(<list>rows[i])
        if size < least:
            return None
        to[i] = size
        total += size
    values = new_integers(total)
    to = <int64_t *>cnp.PyArray_DATA(values)
    for i in range(PyList_GET_SIZE(rows)):
        row = rows[i]
        for j in range(PyList_GET_SIZE(row)):
            if not PyLong_CheckExact(row[j]):
                return None
            token = PyLong_AsLongLongAndOverflow(row[j], &overflow)
            if overflow or token < 0 or token >= high:
                return None
            to[0] = token
            to += 1
    return values, lengths


def offsets(const int64_t[::1] lengths):
    """(B + 1): where each sentence begins, and the end of the last."""
    cdef Py_ssize_t b
    found = new_integers(lengths.shape[0] + 1)
    cdef int64_t *at = <int64_t *>cnp.PyArray_DATA(found)
    at[0] = 0
    for b in range(lengths.shape[0]):
        at[b + 1] = at[b] + lengths[b]
    return found
