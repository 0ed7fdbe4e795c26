# One time step of a cell, the fast path.

from rnn_core._kernels cimport *
from rnn_core._outputs cimport Recent
from rnn_core._plan cimport Block, Weights

# What the threads of a step share; each works on a copy.
cdef struct Products:
    const rc_kernels *kernels
    rc_gemm inputs
    rc_step cell
    bint backwards                     # from the last panel to the first, as every other step
    size_t bytes                       # of W and R

cdef class Stepper:
    cdef Weights weights
    cdef object pack
    cdef dict buffers
    cdef Py_ssize_t stamp
    cdef int dims
    cdef Block memory
    cdef ptrdiff_t rows                # that `memory` is for
    cdef Products products
    cdef rc_step second                # GRU_RESET_BEFORE's other phase
    cdef char *h_prev                  # for a GRU, which reads whole vectors of h
    cdef char *h
    cdef char *c
    cdef bint copies                   # h into h_prev
    cdef readonly bint busy            # a thread without the GIL is using `memory`
    cdef Recent recent                 # results
    cdef object zeros                  # a layer's state where the caller gives none: (1, rows, units)
    cdef int prepare(self, Weights weights, ptrdiff_t rows) except -1
    cdef void compute(self, const float *x, const float *h, const float *c, float *out_h, float *out_c,
                      int threads) noexcept nogil
    cdef bint is_ready(self, ptrdiff_t rows) except? False
    cdef bint do_step(self, x, h, c, out_h, out_c)
    cpdef object step(self, x, state, out)
    # (y, state) of a layer whose sequences have one step; None where that is not so or something does not fit
    cdef object layer_step(self, x, state, bint batch_first)
