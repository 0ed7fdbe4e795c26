# What the time loops do for variants of the cells: factors on the state before R, and states that are kept (zoneout).

from rnn_core._kernels cimport *
from rnn_core._norms cimport Norms
from rnn_core._plan cimport Batch, Direction, View

# The variants of one direction of one layer in one call. Rows are sorted and padded as the states are.
cdef struct Variant:
    const rc_kernels *plain            # kernels whose step takes a product that is there already
    char *product                      # (rows, gate row): h R
    char *drop                         # (rows, out): factors of h before R, or NULL
    char *masked                       # (rows, out): the state times them; backward: its gradient
    char *states                       # (chunk tokens, out): backward: the same of a chunk
    View take_h, take_c                # (token, out), (token, units): the part of the new state that is taken, or none
    char *kept_h                       # (rows, out): backward: the gradient that goes past the cell
    char *kept_c                       # (rows, units): forward: c before the step; backward as kept_h
    Norms norms                        # where the direction is normed

cdef inline bint is_view(const View *v) noexcept nogil:
    return v.sequence != NULL or v.base != NULL

# All in rows of n elements; `count` of them.
cdef void multiply_rows(size_t itemsize, rc_rows x, rc_rows factor, rc_rows to,
                        ptrdiff_t count, ptrdiff_t n) noexcept nogil
cdef void add_product(size_t itemsize, rc_rows x, rc_rows factor, rc_rows to,
                      ptrdiff_t count, ptrdiff_t n) noexcept nogil
cdef void copy_rows(size_t itemsize, rc_rows x, rc_rows to, ptrdiff_t count, ptrdiff_t n) noexcept nogil
cdef void add_rows(size_t itemsize, rc_rows x, rc_rows to, ptrdiff_t count, ptrdiff_t n) noexcept nogil
# new <- take new + (1 - take) old, for step t of the sequences from `first` on.
cdef void mix_rows(size_t itemsize, const View *take, const Batch *b, ptrdiff_t t, ptrdiff_t first, rc_rows old,
                   rc_rows new, ptrdiff_t count, ptrdiff_t n) noexcept nogil
# Its gradient: kept <- (1 - take) d, d <- take d.
cdef void split_rows(size_t itemsize, const View *take, const Batch *b, ptrdiff_t t, ptrdiff_t first, rc_rows d,
                     rc_rows kept, ptrdiff_t count, ptrdiff_t n) noexcept nogil

cdef class Variants:
    cdef Variant *each
    cdef list blocks
    cdef readonly list drop, take_h, take_c
    cdef readonly double taken
    cdef View view(self, list arrays, int index, const Batch *b, ptrdiff_t n, size_t itemsize) except *
    cdef Variant *prepare(self, int index, const rc_kernels *kernels, const Direction *d, const Batch *b) except NULL
    cdef Variant *prepare_back(self, int index, const rc_kernels *kernels, const Direction *d,
                               ptrdiff_t tokens) except NULL
