"""Passes over the elements of many arrays at once: finiteness, norms, clipping, optimiser steps.

Private: the Python modules above have checked every array (C-contiguous, one dtype, fitting sizes).
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memset

cimport numpy as cnp

import numpy as np

from rnn_core._dense cimport (
    RC_ADAM, RC_RMSPROP, RC_SGD, data, is_single, launch, least, rc_blocks, rc_dense, rc_update, share, table,
)
from rnn_core._parameters cimport Buffer

cnp.import_array()

cdef enum:
    CHUNK = 16 * 1024   # elements that a thread takes at a time: 16 blocks, 64 KiB

cdef struct Chunk:
    Py_ssize_t tensor, begin, size
    Py_ssize_t block        # index of its first block among all


# What runs without the GIL sees of a pass. `state` is the gradients and up to three states, or NULL.
cdef struct Pass:
    const rc_dense *kernels
    const Chunk *chunks
    char **start
    char **state[4]
    Py_ssize_t chunk_count, itemsize
    unsigned char *bad      # (chunks)
    double *sums            # (blocks)
    double number
    rc_update terms

ctypedef void (*Step)(const Pass *, const Chunk *, Py_ssize_t) noexcept nogil


cdef inline void *at(char **start, const Pass *p, const Chunk *c) noexcept nogil:
    return NULL if start == NULL else start[c.tensor] + c.begin * p.itemsize


cdef inline void own_part(const Pass *p, int rank, int size, Step step) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(share(p.chunk_count, 1, rank, size), share(p.chunk_count, 1, rank + 1, size)):
        step(p, &p.chunks[i], i)


cdef void finite_step(const Pass *p, const Chunk *c, Py_ssize_t i) noexcept nogil:
    p.bad[i] = not p.kernels.finite(at(p.start, p, c), c.size)


cdef void squares_step(const Pass *p, const Chunk *c, Py_ssize_t i) noexcept nogil:
    p.kernels.sum_squares(at(p.start, p, c), c.size, p.sums + c.block)


cdef void scale_step(const Pass *p, const Chunk *c, Py_ssize_t i) noexcept nogil:
    p.kernels.scale(at(p.start, p, c), c.size, p.number)


cdef void clamp_step(const Pass *p, const Chunk *c, Py_ssize_t i) noexcept nogil:
    p.kernels.clamp(at(p.start, p, c), c.size, p.number)


cdef void zero_step(const Pass *p, const Chunk *c, Py_ssize_t i) noexcept nogil:
    memset(at(p.start, p, c), 0, c.size * p.itemsize)


cdef void update_step(const Pass *p, const Chunk *c, Py_ssize_t i) noexcept nogil:
    p.kernels.update(&p.terms, at(p.start, p, c), at(p.state[0], p, c), at(p.state[1], p, c), at(p.state[2], p, c),
                     at(p.state[3], p, c), c.size)


cdef void finite_task(void *ctx, int rank, int size) noexcept nogil:
    own_part(<Pass *> ctx, rank, size, finite_step)


cdef void squares_task(void *ctx, int rank, int size) noexcept nogil:
    own_part(<Pass *> ctx, rank, size, squares_step)


cdef void scale_task(void *ctx, int rank, int size) noexcept nogil:
    own_part(<Pass *> ctx, rank, size, scale_step)


cdef void clamp_task(void *ctx, int rank, int size) noexcept nogil:
    own_part(<Pass *> ctx, rank, size, clamp_step)


cdef void zero_task(void *ctx, int rank, int size) noexcept nogil:
    own_part(<Pass *> ctx, rank, size, zero_step)


cdef void update_task(void *ctx, int rank, int size) noexcept nogil:
    own_part(<Pass *> ctx, rank, size, update_step)


cdef class Tensors:
    """Arrays that one pass works through, cut into chunks that threads share out.

    arrays: C-contiguous, all float32 or all float64; buffers: those whose version a write moves.
    """

    cdef readonly list arrays
    cdef readonly bint single
    cdef readonly Py_ssize_t elements
    cdef list buffers
    cdef char **start
    cdef Chunk *chunks
    cdef Py_ssize_t chunk_count, blocks

    def __cinit__(self, list arrays, list buffers=None):
        cdef Py_ssize_t i, begin, size, made = 0
        self.arrays, self.buffers = arrays, buffers or []
        self.single = not arrays or is_single(arrays[0])
        for array in arrays:
            self.elements += array.size
            self.chunk_count += (array.size + CHUNK - 1) // CHUNK
        self.start = <char **> calloc(len(arrays) + 1, sizeof(char *))
        self.chunks = <Chunk *> calloc(self.chunk_count + 1, sizeof(Chunk))
        if self.start == NULL or self.chunks == NULL:
            raise MemoryError("no memory for a list of tensors")
        for i in range(len(arrays)):
            self.start[i] = <char *> data(arrays[i])
            size = arrays[i].size
            begin = 0
            while begin < size:
                self.chunks[made] = Chunk(i, begin, least(size - begin, CHUNK), self.blocks)
                self.blocks += rc_blocks(self.chunks[made].size)
                begin += CHUNK
                made += 1

    def __dealloc__(self):
        free(self.start)
        free(self.chunks)

    cdef Pass _pass(self):
        cdef Pass p
        p.kernels, p.chunks, p.start = table(self.single), self.chunks, self.start
        p.chunk_count, p.itemsize = self.chunk_count, 4 if self.single else 8
        p.state[0] = p.state[1] = p.state[2] = p.state[3] = NULL
        return p

    cdef void _touch(self):
        cdef Buffer buffer
        for buffer in self.buffers:
            buffer.touch()

    def first_not_finite(self):
        """Index of the first array with an inf or NaN; -1 when there is none."""
        cdef unsigned char[::1] bad = np.zeros(self.chunk_count + 1, np.uint8)
        cdef Pass p = self._pass()
        cdef Py_ssize_t i
        p.bad = &bad[0]
        launch(finite_task, &p, self.elements * 0.06, self.single)
        for i in range(self.chunk_count):
            if bad[i]:
                return self.chunks[i].tensor
        return -1

    def sum_squares(self):
        """The sum of the squares of all elements: blocks of 1024, then block after block in double."""
        cdef double[::1] sums = np.empty(self.blocks + 1)
        cdef Pass p = self._pass()
        cdef Py_ssize_t i
        cdef double total = 0
        p.sums = &sums[0]
        launch(squares_task, &p, self.elements * 0.06, self.single)
        for i in range(self.blocks):
            total += sums[i]
        return total

    def scale(self, double factor):
        """Multiply every element by `factor`, in place."""
        cdef Pass p = self._pass()
        p.number = factor
        launch(scale_task, &p, self.elements * 0.1, self.single)
        self._touch()

    def clamp(self, double limit):
        """Cut every element to [-limit, limit], in place; NaN stays."""
        cdef Pass p = self._pass()
        p.number = limit
        launch(clamp_task, &p, self.elements * 0.1, self.single)
        self._touch()

    def zero(self):
        """Set every element to zero."""
        cdef Pass p = self._pass()
        launch(zero_task, &p, self.elements * 0.1, self.single)
        self._touch()

    def update(self, str kind, dict terms, list state):
        """One optimiser step of every element, in place. state: Tensors of the gradients, then the first, second and
        third state or None, with these arrays' sizes. terms: the fields of rc_update, where not 0."""
        cdef Pass p = self._pass()
        cdef Py_ssize_t i
        p.terms.kind = {"sgd": RC_SGD, "rmsprop": RC_RMSPROP, "adam": RC_ADAM}[kind]
        p.terms.nesterov, p.terms.decoupled = terms.get("nesterov", 0), terms.get("decoupled", 0)
        p.terms.lr, p.terms.decay = terms["lr"], terms.get("decay", 0)
        p.terms.momentum, p.terms.dampening = terms.get("momentum", 0), terms.get("dampening", 0)
        p.terms.alpha, p.terms.eps = terms.get("alpha", 0), terms.get("eps", 0)
        p.terms.correction1, p.terms.correction2 = terms.get("correction1", 1), terms.get("correction2", 1)
        for i in range(len(state)):
            p.state[i] = self._matching(state[i])
        launch(update_task, &p, self.elements * 0.3, self.single)
        self._touch()

    cdef char **_matching(self, Tensors other) except? NULL:
        if other is None:
            return NULL
        if other.single != self.single or [a.size for a in other.arrays] != [a.size for a in self.arrays]:
            raise ValueError("expected gradients and states of the parameters' sizes and dtype")
        return other.start


def by_dtype(list arrays):
    """Tensors of the arrays of each dtype that there is."""
    cdef list dtypes = sorted({array.dtype for array in arrays})
    return [Tensors([array for array in arrays if array.dtype == dtype]) for dtype in dtypes]
