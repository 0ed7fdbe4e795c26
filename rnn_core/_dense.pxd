# What the compiled modules with dense work share: the table of dense.h, and how a call is cut and started.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport numpy as cnp

from rnn_core._runtime cimport rc_kernels, rc_task

cdef extern from "dense.h":
    enum:
        RC_BLOCK
    enum rc_pair:
        RC_BCE
        RC_MSE
    enum rc_optimiser:
        RC_SGD
        RC_RMSPROP
        RC_ADAM
    ctypedef struct rc_cross_entropy:
        const void *x
        void *dx
        const int64_t *targets
        double *loss
        Py_ssize_t classes
        double scale, smoothing
    ctypedef struct rc_pair_loss:
        rc_pair kind
        const void *x
        const void *target
        const void *mask
        void *dx
        double *loss
        Py_ssize_t n
        double scale
    ctypedef struct rc_update:
        rc_optimiser kind
        int nesterov, decoupled
        double lr, decay, momentum, dampening, alpha, eps, correction1, correction2
    ctypedef struct rc_dropout:
        uint64_t key
        double p
        Py_ssize_t units
    ctypedef struct rc_dense:
        void (*cross_entropy)(const rc_cross_entropy *, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*pair_loss)(const rc_pair_loss *, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*update)(const rc_update *, void *, const void *, void *, void *, void *, Py_ssize_t) noexcept nogil
        void (*sum_squares)(const void *, Py_ssize_t, double *) noexcept nogil
        int (*finite)(const void *, Py_ssize_t) noexcept nogil
        void (*scale)(void *, Py_ssize_t, double) noexcept nogil
        void (*clamp)(void *, Py_ssize_t, double) noexcept nogil
        void (*gather)(const void *, const int64_t *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*scatter_add)(void *, const int64_t *, Py_ssize_t, Py_ssize_t, const void *, int64_t,
                            Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*dropout_mask)(const rc_dropout *, uint32_t, uint32_t, void *) noexcept nogil
        void (*multiply)(const void *, const void *, void *, Py_ssize_t) noexcept nogil
        void (*log)(const void *, void *, Py_ssize_t) noexcept nogil
    uint64_t rc_dropout_key(uint64_t seed, uint64_t call, uint64_t layer) nogil
    Py_ssize_t rc_blocks(Py_ssize_t n) nogil

cdef extern from *:
    """
    #include "kernels.h"
    #define dense_of(kernels) ((kernels)->dense)
    """
    const rc_dense *dense_of(const rc_kernels *kernels) nogil


cdef const rc_dense *table(bint single) noexcept nogil

# Run a task that takes one thread about `nanoseconds`, on as many threads as that is worth. A short one keeps the GIL.
# Denormals are flushed in single precision only.
cdef void launch(rc_task task, void *ctx, double nanoseconds, bint single) noexcept


cdef inline bint is_single(cnp.ndarray array):
    return cnp.PyArray_ITEMSIZE(array) == 4


cdef inline void *data(cnp.ndarray array):
    return NULL if array is None else cnp.PyArray_DATA(array)


cdef inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


# Where the part of `rank` begins when n items, `granule` of them together, are shared out evenly.
cdef inline Py_ssize_t share(Py_ssize_t n, Py_ssize_t granule, int rank, int size) noexcept nogil:
    cdef Py_ssize_t grains = (n + granule - 1) // granule
    return least(n, grains * rank // size * granule)
