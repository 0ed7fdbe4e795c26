# src/rows.h for Cython.

from libc.stdint cimport int64_t

from rnn_core._kernels cimport rc_kernels

cdef extern from "rows.h" nogil:
    enum:
        RC_EXP
        RC_TANH
    ctypedef struct rc_candidate:
        double score
        int64_t row, token
    bint rc_before(const rc_candidate *, const rc_candidate *)
    void rc_softmax(const rc_kernels *, void *x, ptrdiff_t rows, ptrdiff_t n)
    void rc_softmax_back(const rc_kernels *, const void *p, void *dp, ptrdiff_t rows, ptrdiff_t n)
    void rc_transpose(const rc_kernels *, const void *x, ptrdiff_t rows, ptrdiff_t n, void *y)
    void rc_additive(const rc_kernels *, const void *query, const void *keys, const void *v, ptrdiff_t sources,
                     ptrdiff_t n, void *work, void *scores)
    void rc_additive_back(const rc_kernels *, const void *query, const void *keys, const void *v, const void *dscores,
                          ptrdiff_t sources, ptrdiff_t n, void *work, void *dquery, void *dkeys, void *dv)
    void rc_tanh_back(const rc_kernels *, const void *y, void *dy, ptrdiff_t n)
    double rc_log_sum(const rc_kernels *, const void *x, ptrdiff_t n, double *top)
    ptrdiff_t rc_best(const rc_kernels *, const void *x, ptrdiff_t n, int64_t row, double base, rc_candidate *best,
                      ptrdiff_t count, ptrdiff_t most)
    double rc_get(const rc_kernels *, const void *x, ptrdiff_t i)
    void rc_set(const rc_kernels *, void *x, ptrdiff_t i, double value)
