"""One time step of a cell for services that call it a thousand times a second: no allocation, one check, no GIL dance.

A step shorter than about 10 microseconds keeps the GIL, so its scratch needs no lock; during a longer one the scratch
is marked busy. Whatever does not fit here (other layouts or types, a second caller, a wrong argument) is the general
path's, which gives the same bits or the right error.
"""

from libc.string cimport memcpy

import numpy as np
cimport numpy as cnp

from rnn_core._kernels cimport *
from rnn_core._parameters cimport stamp
from rnn_core._plan cimport Direction, Weights, block, padded, product_job, rows_at, share, whole
from rnn_core._runtime cimport BRIEF, awake, fp_begin, fp_end, kernels_f32, l3_is_fast, num_threads, run

cnp.import_array()

cdef enum:
    # Multiply-adds of about 10 microseconds: a longer step lets go of the GIL.
    SHORT = 1 << 19
    # For so many another thread is worth its hand-over.
    WORTH_A_THREAD = 1 << 13
    # Panels of W, then the same of R, and so on: see multiply. As many as a single row takes side by side.
    SLICE = 4
    # From RC_MOSTLY_L3 a thread on, of a single row: few streams where L3 is slow, long ones where it is fast.
    SLOW_L3_SLICE = 2
    FAST_L3_SLICE = 8
    # More rows than these take such weights whole: the kernels fetch the next panel while they take one.
    FEW = 4


cdef ptrdiff_t slice_of(const Products *p, int size) noexcept nogil:
    """How many panels are a slice, for `size` threads that share them out."""
    cdef ptrdiff_t rows = p.cell.row_end
    if p.bytes <= size * <size_t>RC_MOSTLY_L3 or 1 < rows <= FEW:
        return SLICE
    if rows > FEW:
        return rc_panels(&p.inputs.shape, p.kernels.lanes)
    return FAST_L3_SLICE if l3_is_fast() else SLOW_L3_SLICE


cdef void multiply(void *context, int rank, int size) noexcept nogil:
    """W x and R h, slice by slice, there in one call and back in the next: of weights larger than a cache, the half
    that a call left there is the half that the next one starts with."""
    cdef Products own = (<Products *>context)[0]
    cdef ptrdiff_t slice = slice_of(&own, size), begin, end, count, i
    share(rc_panels(&own.inputs.shape, own.kernels.lanes), rank, size, &begin, &end)
    count = (end - begin + slice - 1) // slice
    own.inputs.backwards = own.cell.backwards = own.backwards
    for i in range(count):
        own.inputs.panel_begin = begin + slice * (count - 1 - i if own.backwards else i)
        own.inputs.panel_end = min(own.inputs.panel_begin + slice, end)
        own.cell.panel_begin, own.cell.panel_end = own.inputs.panel_begin, own.inputs.panel_end
        own.kernels.gemm(&own.inputs)
        own.kernels.step(&own.cell)


cdef bint fits(object array, int dims, ptrdiff_t rows, ptrdiff_t columns, bint written) noexcept:
    """A float32 array of `dims` axes with so many rows in all and columns that can be read, or written, as it lies."""
    if not cnp.PyArray_CheckExact(array) or cnp.PyArray_TYPE(array) != cnp.NPY_FLOAT32:
        return False
    if cnp.PyArray_NDIM(array) != dims or cnp.PyArray_DIM(array, dims - 1) != columns:
        return False
    if cnp.PyArray_SIZE(array) != rows * columns:
        return False
    return cnp.PyArray_ISCARRAY(array) if written else cnp.PyArray_ISCARRAY_RO(array)


cdef bint is_state(object array) noexcept:
    """An array of one layer's states (1, B, units), as far as its rank and first axis tell."""
    return cnp.PyArray_CheckExact(array) and cnp.PyArray_NDIM(array) == 3 and cnp.PyArray_DIM(array, 0) == 1


cdef inline bint is_pair(object state) noexcept:
    return type(state) is tuple and len(<tuple>state) == 2


cdef class Stepper:
    """The fast path of one cell, or of a layer whose sequences have one step. `buffers` are its parameters; when one
    has been written, `pack` is asked again. Arrays have `dims` axes, of which all but the last count rows."""
    def __init__(self, dict buffers, pack, int dims=2):
        self.buffers, self.pack, self.dims, self.stamp, self.rows = buffers, pack, dims, -1, -1
        self.recent = Recent()

    cdef int prepare(self, Weights weights, ptrdiff_t rows) except -1:
        """Everything about a step of `rows` rows that does not change from call to call."""
        cdef Direction *d = weights.directions
        cdef ptrdiff_t lanes = weights.kernels.lanes, units = whole(d.units, lanes), row = rc_row_size(&d.w, lanes)
        self.rows, self.weights = -1, weights  # no step fits what an error leaves half made
        self.zeros = np.zeros((1, rows, d.units), np.float32) if self.dims == 3 else None
        self.memory = block(4 * padded(rows * units, 4) + padded(rows * row, 4))
        self.h_prev = <char *>self.memory.take_zeros(rows * units * 4)
        self.copies = d.cell >= RC_GRU and units != d.units
        self.h = <char *>self.memory.take(rows * units * 4)
        self.c = <char *>self.memory.take_zeros(rows * units * 4)
        cdef char *reset = <char *>self.memory.take_zeros(rows * units * 4)
        cdef char *gates = <char *>self.memory.take(rows * row * 4)
        cdef rc_rows none = rows_at(NULL, 0)
        self.products.kernels = self.weights.kernels
        self.products.bytes = (rc_packed_size(&d.w, lanes) + rc_packed_size(&d.r, lanes)) * sizeof(float)
        self.products.inputs = product_job(self.weights.kernels, &d.w, d.w_packed, d.bias, False, True, none,
                                           rows_at(gates, row), rows)
        cdef rc_step *s = &self.products.cell
        s.backwards = False
        s.cell, s.phase, s.shape, s.packed, s.bias = d.cell, 0, d.r, d.r_packed, d.bias_n
        s.chains = d.chains if d.cell != RC_GRU_RESET_BEFORE else rc_chains(2, d.units)
        s.gates, s.product, s.h_next, s.c = self.products.inputs.c, none, rows_at(self.h, units), rows_at(self.c, units)
        s.reset, s.y, s.saved, s.saved_unit = rows_at(reset, units), none, none, none
        s.row_begin, s.row_end, s.panel_begin = 0, rows, 0
        self.second = s[0]
        s = &self.second
        s.phase, s.shape, s.packed, s.chains = 1, d.rn, d.rn_packed, rc_chains(1, d.units)
        s.panel_end = rc_panels(&d.rn, lanes)
        self.rows = rows
        return 0

    cdef void compute(self, const float *x, const float *h, const float *c, float *out_h, float *out_c,
                      int threads) noexcept nogil:
        cdef const rc_kernels *k = self.weights.kernels
        cdef Direction *d = self.weights.directions
        cdef ptrdiff_t m, units = d.units, stride = whole(units, k.lanes), size = units * sizeof(float)
        cdef unsigned control = fp_begin()
        self.products.inputs.a = rows_at(<void *>x, d.inputs)
        self.products.cell.h_prev = rows_at(self.h_prev, stride) if self.copies else rows_at(<void *>h, units)
        for m in range(self.rows):
            if self.copies:
                memcpy(self.h_prev + m * stride * sizeof(float), h + m * units, size)
            if d.cell == RC_LSTM:
                memcpy(self.c + m * stride * sizeof(float), c + m * units, size)
        run(multiply, &self.products, threads)
        self.products.backwards = not self.products.backwards
        if d.cell == RC_GRU_RESET_BEFORE:
            self.second.h_prev = self.products.cell.h_prev
            k.step(&self.second)
        for m in range(self.rows):
            memcpy(out_h + m * units, self.h + m * stride * sizeof(float), size)
            if d.cell == RC_LSTM:
                memcpy(out_c + m * units, self.c + m * stride * sizeof(float), size)
        fp_end(control)

    cdef bint is_ready(self, ptrdiff_t rows) except? False:
        """Whether a step of `rows` rows can be done here, with the weights as they are now."""
        cdef Py_ssize_t now = stamp(self.buffers)
        if self.busy:
            return False
        if self.rows != rows or self.stamp != now:
            weights = self.pack()
            if self.busy:  # packing is Python, and lets go of the GIL: another thread's step may have begun meanwhile
                return False
            self.prepare(weights, rows)
            self.stamp = now
        return self.weights.kernels == kernels_f32()

    cdef bint do_step(self, x, h, c, out_h, out_c):
        """False (and nothing done) if an array does not fit. Only after is_ready."""
        cdef Direction *d = self.weights.directions
        cdef ptrdiff_t rows = self.rows, lanes = self.weights.kernels.lanes
        cdef bint lstm = d.cell == RC_LSTM
        cdef ptrdiff_t work = rows * rc_row_size(&d.w, lanes) * (d.inputs + d.units)
        cdef int threads = <int>max(1, min(num_threads(), work // WORTH_A_THREAD, rc_panels(&d.w, lanes)))
        if not fits(x, self.dims, rows, d.inputs, False) or not fits(h, self.dims, rows, d.units, False) \
                or not fits(out_h, self.dims, rows, d.units, True):
            return False
        if lstm and not (fits(c, self.dims, rows, d.units, False) and fits(out_c, self.dims, rows, d.units, True)):
            return False
        cdef float *from_x = <float *>cnp.PyArray_DATA(x)
        cdef float *from_h = <float *>cnp.PyArray_DATA(h)
        cdef float *from_c = NULL if c is None else <float *>cnp.PyArray_DATA(c)
        cdef float *to_h = <float *>cnp.PyArray_DATA(out_h)
        cdef float *to_c = NULL if out_c is None else <float *>cnp.PyArray_DATA(out_c)
        if work < BRIEF:
            threads = awake(threads)
        if work <= SHORT:
            self.compute(from_x, from_h, from_c, to_h, to_c, threads)
            return True
        self.busy = True
        with nogil:
            self.compute(from_x, from_h, from_c, to_h, to_c, threads)
        self.busy = False
        return True

    cpdef object step(self, x, state, out):
        """A cell's step: `out`, with the state after it, or a new one where that is None. None, and nothing done, if
        something does not fit. A state is h, an LSTM's the tuple (h, c); `out` may be `state`."""
        if not cnp.PyArray_CheckExact(x) or cnp.PyArray_NDIM(x) != 2 or not self.is_ready(cnp.PyArray_DIM(x, 0)):
            return None
        cdef bint lstm = self.weights.directions.cell == RC_LSTM
        cdef cnp.npy_intp shape[2]
        if out is None:
            shape[0], shape[1] = self.rows, self.weights.directions.units
            out = self.recent.empty(2, shape, cnp.NPY_FLOAT32)
            if lstm:
                out = out, self.recent.empty(2, shape, cnp.NPY_FLOAT32)
        h, c, out_h, out_c = state, None, out, None
        if lstm:
            if not is_pair(state) or not is_pair(out):
                return None
            h, c = <tuple>state
            out_h, out_c = <tuple>out
            if out_h is out_c:
                return None
        return out if self.do_step(x, h, c, out_h, out_c) else None

    cdef object layer_step(self, x, state, bint batch_first):
        """(y, state) of a layer whose sequences have one step; None where that is not so or something does not fit."""
        if not cnp.PyArray_CheckExact(x) or cnp.PyArray_NDIM(x) != 3 or cnp.PyArray_DIM(x, batch_first) != 1:
            return None
        cdef cnp.npy_intp shape[3]
        cdef ptrdiff_t rows = cnp.PyArray_DIM(x, not batch_first)
        if rows == 0 or not self.is_ready(rows):
            return None
        cdef bint lstm = self.weights.directions.cell == RC_LSTM
        h = c = self.zeros
        if lstm and state is not None:
            if not is_pair(state):
                return None
            h, c = <tuple>state
        elif state is not None:
            h = state
        if not is_state(h) or lstm and not is_state(c):
            return None
        shape[0], shape[1], shape[2] = 1, rows, self.weights.directions.units
        out_h = self.recent.empty(3, shape, cnp.NPY_FLOAT32)
        out_c = self.recent.empty(3, shape, cnp.NPY_FLOAT32) if lstm else None
        if not self.do_step(x, h, c, out_h, out_c):
            return None
        shape[batch_first], shape[not batch_first] = 1, rows
        y = self.recent.empty(3, shape, cnp.NPY_FLOAT32)
        memcpy(cnp.PyArray_DATA(y), cnp.PyArray_DATA(out_h), cnp.PyArray_NBYTES(y))
        return y, (out_h, out_c) if lstm else out_h


def step(self, x, state, *, out=None):
    """One step into `out` (arrays like the state; may be the state itself), which is returned; new arrays if None.

    With float32, C-contiguous (B, I) and (B, H) arrays it allocates nothing.
    """
    stepper = self._stepper
    if stepper is None:
        stepper = self._stepper = Stepper(self._buffers, self._weights)
    stepped = (<Stepper?>stepper).step(x, state, out)
    return self._slow_step(x, state, out) if stepped is None else stepped
