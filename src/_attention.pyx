"""Attention over ragged batches, forward and backward, and tanh: the same bits for any batch and any thread count.

Private: rnn_core.seq2seq has checked every array (C-contiguous, of one dtype, of fitting shape). Sequences lie one
after the other, with no padding: sentence b has rows target[b]:target[b + 1] of the queries, source[b]:source[b + 1]
of keys and memory, and its weights (T_b, S_b) start at weight[b].

    score = query . key (dot, general), or v . tanh(query + key) (additive; Bahdanau et al. 2015)
    weights = softmax(score) over the sentence's own sources,  context = weights memory  (Luong et al. 2015)
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

cimport numpy as cnp

import numpy as np

from rnn_core._dense cimport data, is_single, launch, share
from rnn_core._kernels cimport *
from rnn_core._plan cimport Block, add_outer, block, multiply, padded, rows_at, shape_of, whole
from rnn_core._rows cimport *
from rnn_core._runtime cimport kernels_f32, kernels_f64, num_threads

cnp.import_array()


cdef struct Attend:
    const rc_kernels *k
    bint additive
    const int64_t *source          # (B + 1) offsets
    const int64_t *target
    const int64_t *weight
    Py_ssize_t batch, units, width  # units: of a query; width: of the memory
    Py_ssize_t context_stride      # of context and dcontext
    char *query                    # (targets, units)
    char *keys                     # (sources, units)
    char *memory                   # (sources, width)
    char *v                        # (units), additive only
    char *weights                  # (sum of T_b S_b): forward out, backward in
    char *context                  # (targets, context_stride): forward out; backward dcontext
    char *dquery                   # (targets, units), zero
    char *dkeys                    # (sources, units), zero
    char *dmemory                  # (sources, width), zero
    char *dv                       # (B, units), zero: a sum for each sentence
    char *scratch                  # a part for each thread
    size_t each


cdef struct Sentence:
    # One sentence's part of every array.
    Py_ssize_t sources, targets
    char *query
    char *keys
    char *memory
    char *weights
    char *context
    char *packed                   # scratch
    char *small                    # scratch (T, S), twice
    char *other


cdef Sentence sentence(const Attend *a, Py_ssize_t b, int rank) noexcept nogil:
    cdef Sentence s
    cdef Py_ssize_t itemsize = a.k.itemsize
    cdef size_t area
    s.sources, s.targets = a.source[b + 1] - a.source[b], a.target[b + 1] - a.target[b]
    s.query = a.query + a.target[b] * a.units * itemsize
    s.keys = a.keys + a.source[b] * a.units * itemsize
    s.memory = a.memory + a.source[b] * a.width * itemsize
    s.weights = a.weights + a.weight[b] * itemsize
    s.context = a.context + a.target[b] * a.context_stride * itemsize
    area = whole(s.sources * s.targets * itemsize, 64)
    s.small = a.scratch + rank * a.each
    s.other = s.small + area
    s.packed = s.other + area
    return s


cdef void times_transposed(const Attend *a, const Sentence *s, char *rows, Py_ssize_t stride, char *matrix,
                           Py_ssize_t n, char *to) noexcept nogil:
    """to (T, S) = rows (T, n) matrix^T, matrix (S, n)."""
    cdef rc_shape shape = shape_of(n, s.sources, 1)
    a.k.pack(&shape, matrix, n, 1, s.packed)
    multiply(a.k, &shape, s.packed, NULL, False, False, rows_at(rows, stride), rows_at(to, s.sources), s.targets)


cdef void add_product(const Attend *a, char *left, Py_ssize_t m, Py_ssize_t rows, char *x, Py_ssize_t x_stride,
                      Py_ssize_t n, char *to, Py_ssize_t to_stride) noexcept nogil:
    """to (m, n) += left^T x, left (rows, m), x (rows, n)."""
    add_outer(a.k, rows_at(left, m), rows_at(x, x_stride), rows, n, to, to_stride, 0, m)


cdef void forward_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Attend *a = <Attend *>ctx
    cdef Sentence s
    cdef Py_ssize_t b, t, itemsize = a.k.itemsize
    for b in range(share(a.batch, 1, rank, size), share(a.batch, 1, rank + 1, size)):
        s = sentence(a, b, rank)
        if s.targets == 0 or s.sources == 0:
            continue
        if a.additive:
            for t in range(s.targets):
                rc_additive(a.k, s.query + t * a.units * itemsize, s.keys, a.v, s.sources, a.units, s.packed,
                            s.weights + t * s.sources * itemsize)
        else:
            times_transposed(a, &s, s.query, a.units, s.keys, a.units, s.weights)
        rc_softmax(a.k, s.weights, s.targets, s.sources)
        rc_transpose(a.k, s.weights, s.targets, s.sources, s.small)
        for t in range(s.targets):
            memset(s.context + t * a.context_stride * itemsize, 0, a.width * itemsize)
        add_product(a, s.small, s.targets, s.sources, s.memory, a.width, a.width, s.context, a.context_stride)


cdef void backward_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Attend *a = <Attend *>ctx
    cdef Sentence s
    cdef Py_ssize_t b, t, itemsize = a.k.itemsize
    cdef char *dkeys
    cdef char *dquery
    for b in range(share(a.batch, 1, rank, size), share(a.batch, 1, rank + 1, size)):
        s = sentence(a, b, rank)
        if s.targets == 0 or s.sources == 0:
            continue
        dkeys, dquery = a.dkeys + a.source[b] * a.units * itemsize, a.dquery + a.target[b] * a.units * itemsize
        add_product(a, s.weights, s.sources, s.targets, s.context, a.context_stride, a.width,
                    a.dmemory + a.source[b] * a.width * itemsize, a.width)
        times_transposed(a, &s, s.context, a.context_stride, s.memory, a.width, s.small)
        rc_softmax_back(a.k, s.weights, s.small, s.targets, s.sources)
        if a.additive:
            for t in range(s.targets):
                rc_additive_back(a.k, s.query + t * a.units * itemsize, s.keys, a.v, s.small + t * s.sources * itemsize,
                                 s.sources, a.units, s.packed, dquery + t * a.units * itemsize, dkeys,
                                 a.dv + b * a.units * itemsize)
        else:
            rc_transpose(a.k, s.small, s.targets, s.sources, s.other)
            add_product(a, s.other, s.targets, s.sources, s.keys, a.units, a.units, dquery, a.units)
            add_product(a, s.small, s.sources, s.targets, s.query, a.units, a.units, dkeys, a.units)


cdef Attend attend(query, keys, memory, v, const int64_t[::1] source, const int64_t[::1] target,
                   const int64_t[::1] weight, weights, context) except *:
    cdef Attend a
    memset(&a, 0, sizeof(Attend))
    a.k = kernels_f32() if is_single(query) else kernels_f64()
    a.additive, a.batch = v is not None, source.shape[0] - 1
    a.source, a.target, a.weight = &source[0], &target[0], &weight[0]
    a.units, a.width, a.context_stride = query.shape[1], memory.shape[1], context.strides[0] // query.itemsize
    a.query, a.keys, a.memory, a.v = <char *>data(query), <char *>data(keys), <char *>data(memory), <char *>data(v)
    a.weights, a.context = <char *>data(weights), <char *>data(context)
    return a


cdef int run_attention(Attend *a, bint backward) except -1:
    """Scratch for every thread, and the call."""
    cdef Py_ssize_t b, sources, area = 0, most = 0
    cdef double work = 0
    for b in range(a.batch):
        sources = a.source[b + 1] - a.source[b]
        most = max(most, sources)
        area = max(area, sources * (a.target[b + 1] - a.target[b]))
        work += <double>sources * (a.target[b + 1] - a.target[b]) * (a.units * (8 if a.additive else 1) + a.width)
        work += 4.0 * sources * (a.units + a.width)
    a.each = 2 * padded(area, a.k.itemsize)
    a.each += padded(whole(most, a.k.lanes) * max(a.units, a.width), a.k.itemsize)
    cdef Block scratch = block(a.each * num_threads())
    a.scratch = scratch.data
    launch(backward_task if backward else forward_task, a, work * (0.15 if backward else 0.08), a.k.itemsize == 4)
    return 0


def forward(query, keys, memory, v, const int64_t[::1] source, const int64_t[::1] target, const int64_t[::1] weight,
            weights, context):
    """weights (sum of T_b S_b) and context (targets, width; the rows may lie apart) from query (targets, units), keys
    (sources, units), memory (sources, width) and, for additive attention, v (units)."""
    cdef Attend a = attend(query, keys, memory, v, source, target, weight, weights, context)
    run_attention(&a, False)


def backward(query, keys, memory, v, const int64_t[::1] source, const int64_t[::1] target, const int64_t[::1] weight,
             weights, dcontext, dquery, dkeys, dmemory, dv):
    """Add to dquery, dkeys, dmemory, which are zero or earlier gradients, and to dv (B, units): one row a sentence."""
    cdef Attend a = attend(query, keys, memory, v, source, target, weight, weights, dcontext)
    a.dquery, a.dkeys, a.dmemory = <char *>data(dquery), <char *>data(dkeys), <char *>data(dmemory)
    a.dv = <char *>data(dv)
    run_attention(&a, True)


# ---- tanh -------------------------------------------------------------------------------------------------------


cdef struct Tanh:
    const rc_kernels *k
    char *y
    char *dy                       # NULL: forward
    Py_ssize_t n


cdef void tanh_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Tanh *p = <Tanh *>ctx
    cdef Py_ssize_t begin = share(p.n, 64, rank, size), end = share(p.n, 64, rank + 1, size)
    cdef char *y = p.y + begin * p.k.itemsize
    if p.dy == NULL:
        p.k.activate(RC_TANH, y, y, end - begin)
    else:
        rc_tanh_back(p.k, y, p.dy + begin * p.k.itemsize, end - begin)


def tanh(y, dy=None):
    """y <- tanh(y) in place, or with dy: dy <- dy (1 - y^2), in place."""
    cdef Tanh p
    p.k = kernels_f32() if is_single(y) else kernels_f64()
    p.y, p.dy, p.n = <char *>data(y), <char *>data(dy), y.size
    launch(tanh_task, &p, p.n * 1.0, p.k.itemsize == 4)


# ---- log-probabilities ------------------------------------------------------------------------------------------


cdef struct Scoring:
    const rc_kernels *k
    const char *logits
    const int64_t *tokens
    double *found
    Py_ssize_t rows, classes


cdef void scoring_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Scoring *p = <Scoring *>ctx
    cdef Py_ssize_t i
    cdef double top
    cdef const char *row
    for i in range(share(p.rows, 1, rank, size), share(p.rows, 1, rank + 1, size)):
        row = p.logits + i * p.classes * <Py_ssize_t>p.k.itemsize
        p.found[i] = rc_get(p.k, row, p.tokens[i]) - rc_log_sum(p.k, row, p.classes, &top)


def log_probabilities(logits, const int64_t[::1] tokens):
    """(N,) log softmax(logits)[i, tokens[i]] in double, of logits (N, V): the same bits as in decoding."""
    cdef Scoring p
    found = np.empty(len(tokens))
    if len(tokens) == 0:
        return found
    cdef double[::1] to = found
    p.k = kernels_f32() if is_single(logits) else kernels_f64()
    p.logits, p.tokens, p.found = <const char *>data(logits), &tokens[0], &to[0]
    p.rows, p.classes = logits.shape
    launch(scoring_task, &p, p.rows * (20.0 + p.classes), p.k.itemsize == 4)
    return found
