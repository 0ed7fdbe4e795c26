"""Variants of the cells: variational dropout of the recurrent connection, zoneout, and room for layer normalisation.

The time loops take their steps apart for them (product, then cell) and call the row functions here. They are compiled
once for all instruction sets and contract nothing, so that their bits are the same everywhere.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cimport numpy as cnp

from rnn_core._kernels cimport *
from rnn_core._plan cimport Batch, Block, Direction, View, block, padded, row_at, rows_at, token, whole
from rnn_core._runtime cimport kernels_f32, kernels_f64

cnp.import_array()

ctypedef fused real:
    float
    double

# -------------------------------------------------------------------------------------------------------------- rows


# What is done with three rows of n elements, in either type; it may write the last two.
ctypedef void (*float_row)(const float *, float *, float *, ptrdiff_t) noexcept nogil
ctypedef void (*double_row)(const double *, double *, double *, ptrdiff_t) noexcept nogil


cdef inline void on_row(size_t itemsize, void *x, void *y, void *z, ptrdiff_t n, float_row single,
                        double_row wide) noexcept nogil:
    if itemsize == 4:
        single(<float *>x, <float *>y, <float *>z, n)
    else:
        wide(<double *>x, <double *>y, <double *>z, n)


cdef void on_rows(size_t itemsize, rc_rows x, rc_rows y, rc_rows z, ptrdiff_t count, ptrdiff_t n, float_row single,
                  double_row wide) noexcept nogil:
    cdef ptrdiff_t m
    for m in range(count):
        on_row(itemsize, row_at(&x, m, itemsize), row_at(&y, m, itemsize), row_at(&z, m, itemsize), n, single, wide)


cdef void on_tokens(size_t itemsize, const View *take, const Batch *b, ptrdiff_t t, ptrdiff_t first, rc_rows y,
                    rc_rows z, ptrdiff_t count, ptrdiff_t n, float_row single, double_row wide) noexcept nogil:
    """The same, the first of the three rows being a token of step t."""
    cdef ptrdiff_t m
    for m in range(count):
        on_row(itemsize, token(take, b, t, first + m), row_at(&y, m, itemsize), row_at(&z, m, itemsize), n, single,
               wide)


cdef void multiply_row(const real *x, real *factor, real *to, ptrdiff_t n) noexcept nogil:
    cdef ptrdiff_t j
    for j in range(n):
        to[j] = x[j] * factor[j]


cdef void multiply_rows(size_t itemsize, rc_rows x, rc_rows factor, rc_rows to,
                        ptrdiff_t count, ptrdiff_t n) noexcept nogil:
    on_rows(itemsize, x, factor, to, count, n, multiply_row[float], multiply_row[double])


cdef void add_product_row(const real *x, real *factor, real *to, ptrdiff_t n) noexcept nogil:
    cdef ptrdiff_t j
    for j in range(n):
        to[j] += x[j] * (factor[j] if factor != NULL else 1)


cdef void add_product(size_t itemsize, rc_rows x, rc_rows factor, rc_rows to,
                      ptrdiff_t count, ptrdiff_t n) noexcept nogil:
    on_rows(itemsize, x, factor, to, count, n, add_product_row[float], add_product_row[double])


cdef void add_rows(size_t itemsize, rc_rows x, rc_rows to, ptrdiff_t count, ptrdiff_t n) noexcept nogil:
    add_product(itemsize, x, rows_at(NULL, 0), to, count, n)  # no factors: x as it is


cdef void copy_rows(size_t itemsize, rc_rows x, rc_rows to, ptrdiff_t count, ptrdiff_t n) noexcept nogil:
    cdef ptrdiff_t m
    for m in range(count):
        memcpy(row_at(&to, m, itemsize), row_at(&x, m, itemsize), n * itemsize)


cdef void mix_row(const real *take, real *old, real *new, ptrdiff_t n) noexcept nogil:
    cdef ptrdiff_t j
    for j in range(n):
        new[j] = take[j] * new[j] + (1 - take[j]) * old[j]


cdef void mix_rows(size_t itemsize, const View *take, const Batch *b, ptrdiff_t t, ptrdiff_t first, rc_rows old,
                   rc_rows new, ptrdiff_t count, ptrdiff_t n) noexcept nogil:
    on_tokens(itemsize, take, b, t, first, old, new, count, n, mix_row[float], mix_row[double])


cdef void split_row(const real *take, real *d, real *kept, ptrdiff_t n) noexcept nogil:
    cdef ptrdiff_t j
    for j in range(n):
        kept[j] = (1 - take[j]) * d[j]
        d[j] = take[j] * d[j]


cdef void split_rows(size_t itemsize, const View *take, const Batch *b, ptrdiff_t t, ptrdiff_t first, rc_rows d,
                     rc_rows kept, ptrdiff_t count, ptrdiff_t n) noexcept nogil:
    on_tokens(itemsize, take, b, t, first, d, kept, count, n, split_row[float], split_row[double])


# ------------------------------------------------------------------------------------------------------- one call's


cdef const rc_kernels *plain_kernels(const rc_kernels *kernels) noexcept nogil:
    """The kernels whose step acts on a product that is there, whatever makes the products."""
    return kernels_f32() if kernels.itemsize == 4 else kernels_f64()


cdef class Variants:
    """The masks of one call, and the memory that its steps need beside the engine's.

    drop: (B, out) factors of each direction of each layer; take_h (T, B, out) and take_c (T, B, units): 1 where the new
    state is taken and 0 where the old one is kept; None for no such variant. taken < 1: this part of every new state
    is taken, without a mask.
    """

    def __init__(self, int count, list drop=None, list take_h=None, list take_c=None, double taken=1.0):
        self.each = <Variant *>calloc(max(1, count), sizeof(Variant))
        if self.each == NULL:
            raise MemoryError("cannot allocate the variants of the layers")
        self.blocks, self.drop, self.take_h, self.take_c, self.taken = [], drop, take_h, take_c, taken

    def __dealloc__(self):
        free(self.each)

    cdef View view(self, list arrays, int index, const Batch *b, ptrdiff_t n, size_t itemsize) except *:
        """Rows of tokens of a (T, B, n) mask, or the one number that stands for all of them."""
        cdef View v
        cdef Block memory
        cdef ptrdiff_t m
        cdef char *data
        v.sequence, v.step, v.steps, v.base, v.row, v.origin = NULL, 0, 0, NULL, 0, 0
        if arrays is not None:
            memory = block(padded(b.rows, sizeof(char *)))
            self.blocks.append(memory)
            data = <char *>cnp.PyArray_DATA(arrays[index])
            v.sequence, v.step = <char **>memory.take(b.rows * sizeof(char *)), b.rows * n * itemsize
            for m in range(b.rows):
                v.sequence[m] = data + b.order[m] * n * <ptrdiff_t>itemsize
        elif self.taken < 1:
            memory = block(padded(n, itemsize))
            self.blocks.append(memory)
            v.base = <char *>memory.take(n * itemsize)
            for m in range(n):
                if itemsize == 4:
                    (<float *>v.base)[m] = <float>self.taken
                else:
                    (<double *>v.base)[m] = self.taken
        return v

    cdef Variant *prepare(self, int index, const rc_kernels *kernels, const Direction *d, const Batch *b) except NULL:
        cdef Variant *v = &self.each[index]
        cdef size_t itemsize = kernels.itemsize
        cdef ptrdiff_t out = whole(d.out, kernels.lanes), units = whole(d.units, kernels.lanes), m
        cdef ptrdiff_t row = rc_row_size(&d.w, kernels.lanes)
        cdef Block memory = block(padded(b.rows * row, itemsize) + 3 * padded(b.rows * out, itemsize)
                                  + padded(b.rows * units, itemsize))
        cdef char *factors
        self.blocks.append(memory)
        v.plain = plain_kernels(kernels)
        v.product = <char *>memory.take(b.rows * row * itemsize)
        v.kept_h = <char *>memory.take(b.rows * out * itemsize)
        v.kept_c = <char *>memory.take(b.rows * units * itemsize)
        if self.drop is not None:
            v.masked = <char *>memory.take_zeros(b.rows * out * itemsize)
            v.drop = <char *>memory.take_zeros(b.rows * out * itemsize)
            factors = <char *>cnp.PyArray_DATA(self.drop[index])
            for m in range(b.rows):
                memcpy(v.drop + m * out * itemsize, factors + b.order[m] * d.out * itemsize, d.out * itemsize)
        v.take_h = self.view(self.take_h, index, b, d.out, itemsize)
        if d.cell == RC_LSTM:
            v.take_c = self.view(self.take_c, index, b, d.units, itemsize)
        return v

    cdef Variant *prepare_back(self, int index, const rc_kernels *kernels, const Direction *d,
                               ptrdiff_t tokens) except NULL:
        cdef Variant *v = &self.each[index]
        cdef Block memory
        cdef ptrdiff_t size = tokens * whole(d.out, kernels.lanes)
        if v.drop != NULL and v.states == NULL:
            memory = block(padded(size, kernels.itemsize))
            self.blocks.append(memory)
            v.states = <char *>memory.take(size * kernels.itemsize)
        return v
