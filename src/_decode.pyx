"""A call of the decoding loop (src/_search.pyx): its memory, and its results as Python objects."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

cimport numpy as cnp

import numpy as np

from rnn_core._choice cimport Choice, integers_of
from rnn_core._decoder cimport MOST_LAYERS, Net, Plan, steps_bytes, take_steps
from rnn_core._kernels cimport *
from rnn_core._plan cimport Block, block, padded, whole
from rnn_core._rows cimport rc_candidate
from rnn_core._runtime cimport fp_begin, fp_end, num_threads, raise_pending, run_prepared
from rnn_core._search cimport Call, Hypothesis, Sentence, prepare_search, search_task

cnp.import_array()

cdef enum:
    LOGITS_BYTES = 1 << 22     # of a block of rows whose logits are computed and searched while they are in the cache
    LOGITS_LEAST = 16


cdef Block take_rows(Call *call, const Net *plan, int threads):
    """Memory of everything that a row needs."""
    cdef size_t rows = call.count * call.o.beam, one = rows * call.limit
    cdef size_t each = 2 * (2 * padded(one, sizeof(int32_t)) + padded(rows, 8) + padded(rows, 4)
                            + padded(rows * call.sources, sizeof(double)))
    call.block_rows = max(<Py_ssize_t>LOGITS_LEAST,
                          LOGITS_BYTES // <Py_ssize_t>(plan.vocabulary * plan.kernels.itemsize))
    call.block_rows = min(call.block_rows, <Py_ssize_t>max(rows, <size_t>1))
    cdef size_t logits = padded(threads * call.block_rows * plan.vocabulary, plan.kernels.itemsize)
    cdef size_t found = padded(threads * plan.vocabulary, sizeof(rc_candidate)) * call.o.sample
    found += padded(rows * call.most, sizeof(rc_candidate)) + padded(4 * rows, sizeof(int32_t))
    cdef Block b = block(steps_bytes(plan, rows, call.sources) + each + logits + found + 4096)
    cdef int i
    take_steps(plan, &call.steps, b, rows, call.sources)
    for i in range(2):
        call.histories[i].tokens = <int32_t *>b.take(one * sizeof(int32_t))
        call.histories[i].path = <int32_t *>b.take(one * sizeof(int32_t))
        call.histories[i].score = <double *>b.take(rows * sizeof(double))
        call.histories[i].sample = <int32_t *>b.take(rows * sizeof(int32_t))
        call.histories[i].coverage = <double *>b.take_zeros(rows * call.sources * sizeof(double))
    call.logits = <char *>b.take(threads * call.block_rows * plan.vocabulary * plan.kernels.itemsize)
    if call.o.sample:
        call.all_tokens = <rc_candidate *>b.take(threads * plan.vocabulary * sizeof(rc_candidate))
    call.candidates = <rc_candidate *>b.take(rows * call.most * sizeof(rc_candidate))
    call.integers = <int32_t *>b.take(4 * rows * sizeof(int32_t))
    return b


cdef Block take_sentences(Call *call, const Net *plan, const int64_t[::1] at, list limits, list forced):
    """Memory of everything that a sentence needs, and what is known of it."""
    cdef Py_ssize_t b, k, size = plan.kernels.itemsize, most = call.o.finished + call.o.beam, length
    cdef size_t total = padded(call.count + 1, sizeof(Sentence))
    total += 2 * padded((call.count + 1) * MOST_LAYERS, sizeof(char *))
    cdef Sentence *s
    for b in range(call.count):
        length = at[b + 1] - at[b] if at is not None else 0
        total += padded(most, sizeof(Hypothesis)) + 2 * most * padded(limits[b] + 1, sizeof(int32_t))
        total += padded(len(forced[b]) + 1, sizeof(int64_t))
        total += padded(whole(length, plan.kernels.lanes) * plan.hidden, size)
        if call.o.keep_attention:
            total += padded(limits[b] * call.o.beam * length, size)
    cdef Block memory = block(total + 1024)
    call.sentences = <Sentence *>memory.take_zeros((call.count + 1) * sizeof(Sentence))
    call.h0 = <char **>memory.take_zeros((call.count + 1) * MOST_LAYERS * sizeof(char *))
    call.c0 = <char **>memory.take_zeros((call.count + 1) * MOST_LAYERS * sizeof(char *))
    for b in range(call.count):
        s = &call.sentences[b]
        s.limit, s.forced_count, s.forced = limits[b], len(forced[b]), integers_of(memory, forced[b])
        s.source.length = at[b + 1] - at[b] if at is not None else 0
        if plan.kind == 1:
            s.source.packed = <char *>memory.take(whole(s.source.length, plan.kernels.lanes) * plan.hidden * size)
        if call.o.keep_attention:
            s.attention = <char *>memory.take(limits[b] * call.o.beam * s.source.length * size)
        s.hypotheses = <Hypothesis *>memory.take(most * sizeof(Hypothesis))
        for k in range(most):
            s.hypotheses[k].tokens = <int32_t *>memory.take((limits[b] + 1) * sizeof(int32_t))
            s.hypotheses[k].path = <int32_t *>memory.take((limits[b] + 1) * sizeof(int32_t))
    return memory


cdef int set_inputs(Call *call, const Net *plan, Py_ssize_t begin, cnp.ndarray h0, c0, keys, memory,
                    const int64_t[::1] at, list seeds) except -1:
    """Where each sentence's state, keys and memory are; `at` begins with the first one's."""
    cdef Py_ssize_t b, layer, state, size = plan.kernels.itemsize, batch = cnp.PyArray_DIM(h0, 1)
    cdef char *h = <char *>cnp.PyArray_DATA(h0)
    cdef char *c = NULL if c0 is None else <char *>cnp.PyArray_DATA(c0)
    for b in range(call.count):
        call.sentences[b].key = seeds[b]
        for layer in range(plan.layers):
            state = (layer * batch + begin + b) * plan.hidden * size
            call.h0[b * MOST_LAYERS + layer] = h + state
            if c != NULL:
                call.c0[b * MOST_LAYERS + layer] = c + state
        if plan.kind:
            call.sentences[b].source.keys = <char *>cnp.PyArray_DATA(keys) + at[b] * plan.hidden * size
            call.sentences[b].source.memory = <char *>cnp.PyArray_DATA(memory) + at[b] * plan.width * size
    return 0


cdef object results(Call *call, const Net *plan):
    """[[(tokens, score, attention or None)]] of each sentence, best first."""
    cdef Sentence *s
    cdef Hypothesis *h
    cdef Py_ssize_t b, k, t, row
    cdef char *to
    found = []
    dtype = np.float32 if plan.kernels.itemsize == 4 else np.float64
    for b in range(call.count):
        s = &call.sentences[b]
        order = sorted(range(s.found), key=[-s.hypotheses[k].final for k in range(s.found)].__getitem__)
        mine = []
        for k in order[:call.o.wanted]:
            h = &s.hypotheses[k]
            attention = None
            if call.o.keep_attention:
                attention = np.empty((h.length, s.source.length), dtype)
                to = <char *>cnp.PyArray_DATA(attention)
                row = s.source.length * <Py_ssize_t>plan.kernels.itemsize
                for t in range(h.length):
                    memcpy(to + t * row, s.attention + (t * call.o.beam + h.path[t]) * row, row)
            mine.append(([h.tokens[t] for t in range(h.length)], h.final, attention))
        found.append(mine)
    return found


def decode(Plan plan, Choice options, Py_ssize_t begin, Py_ssize_t end, h0, c0, keys, memory, const int64_t[::1] at,
           list limits, list forced, list seeds, callback):
    """Decode sentences [begin, end) of B. h0, c0 (L, B, H); keys (sources, H), memory (sources, width), at (B + 1), or
    None; for each of those sentences its limit, the tokens that are given (-1 where free) and its seed. Lists of
    (tokens, score, attention), best first."""
    cdef Call call
    cdef int threads = 1 if callback is not None else num_threads()
    cdef unsigned control = 0
    cdef bint single = plan.net.kernels.itemsize == 4
    cdef list failure = []
    cdef Py_ssize_t i
    memset(&call, 0, sizeof(Call))
    call.plan, call.count, call.o = &plan.net, end - begin, options.o
    call.callback, call.failure = NULL if callback is None else <void *>callback, <void *>failure
    call.most = 2 * call.o.beam if call.o.compete else 1
    call.limit = max(limits, default=0)
    if at is not None:
        at = at[begin : end + 1]
        for i in range(call.count):
            call.sources = max(call.sources, at[i + 1] - at[i])
    threads = max(1, min(threads, <int>call.count)) if single else 1    # BLAS has threads of its own
    cdef Block _sentences = take_sentences(&call, &plan.net, at, limits, forced)
    cdef Block _rows = take_rows(&call, &plan.net, threads)
    set_inputs(&call, &plan.net, begin, h0, c0, keys, memory, at, seeds)
    if single:
        control = fp_begin()
    call.control = control
    with nogil:
        run_prepared(prepare_search, search_task, &call, threads)
    if single:
        fp_end(control)
    if failure:
        raise failure[0]
    if call.stop == 2:
        raise_pending()
    return results(&call, &plan.net)
