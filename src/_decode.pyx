"""A call of the decoding loop (src/_search.pyx): its memory, and its results as Python objects."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

cimport numpy as cnp

import numpy as np

from rnn_core._choice cimport integers_of, option_bytes, set_options
from rnn_core._decoder cimport MOST_LAYERS, Net, Plan, steps_bytes, take_steps
from rnn_core._kernels cimport *
from rnn_core._plan cimport Block, block, padded, whole
from rnn_core._rows cimport rc_candidate
from rnn_core._runtime cimport fp_begin, fp_end, num_threads, raise_pending, run
from rnn_core._search cimport Call, Hypothesis, Sentence, search_task

cnp.import_array()

cdef enum:
    LOGITS_BYTES = 1 << 22     # of a block of rows whose logits are computed and searched while they are in the cache
    LOGITS_LEAST = 16


cdef Block take_rows(Call *call, const Net *plan, int threads):
    """Memory of everything that a row needs."""
    cdef size_t rows = call.count * call.o.beam, one = rows * call.limit
    cdef size_t each = 2 * (2 * padded(one, sizeof(int32_t)) + padded(rows, 8) + padded(rows, 4)
                            + padded(rows * call.sources, sizeof(double)))
    call.block_rows = max(<Py_ssize_t>LOGITS_LEAST, LOGITS_BYTES // <Py_ssize_t>(plan.vocabulary * plan.kernels.itemsize))
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


cdef Block take_sentences(Call *call, const Net *plan, const int64_t[::1] at, object limits, object forced):
    """Memory of everything that a sentence needs, and what is known of it."""
    cdef Py_ssize_t b, k, size = plan.kernels.itemsize, most = call.o.finished + call.o.beam, length
    cdef size_t total = padded(call.count + 1, sizeof(Sentence)) + 2 * padded((call.count + 1) * MOST_LAYERS, sizeof(char *))
    cdef Sentence *s
    for b in range(call.count):
        length = at[b + 1] - at[b] if at is not None else 0
        total += padded(most, sizeof(Hypothesis)) + 2 * most * padded(limits[b] + 1, sizeof(int32_t))
        total += padded(len(forced[b]) + 1, sizeof(int64_t)) + padded(whole(length, plan.kernels.lanes) * plan.hidden, size)
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


cdef int set_inputs(Call *call, const Net *plan, h0, c0, keys, memory, const int64_t[::1] at, seeds) except -1:
    """Where each sentence's state, keys and memory are."""
    cdef Py_ssize_t b, layer, size = plan.kernels.itemsize
    cdef char *h = <char *>cnp.PyArray_DATA(h0)
    cdef char *c = NULL if c0 is None else <char *>cnp.PyArray_DATA(c0)
    for b in range(call.count):
        call.sentences[b].key = seeds[b]
        for layer in range(plan.layers):
            call.h0[b * MOST_LAYERS + layer] = h + (layer * call.count + b) * plan.hidden * size
            if c != NULL:
                call.c0[b * MOST_LAYERS + layer] = c + (layer * call.count + b) * plan.hidden * size
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


def decode(Plan plan, dict options, h0, c0, keys, memory, at, limits, forced, seeds, callback):
    """Decode every sentence. h0, c0 (L, B, H); keys (sources, H), memory (sources, width), at (B + 1); forced: tokens
    that are given, -1 where free. Lists of (tokens, score, attention), best first."""
    cdef Call call
    cdef int threads = 1 if callback is not None else num_threads()
    cdef unsigned control = 0
    cdef bint single = plan.net.kernels.itemsize == 4
    cdef list failure = []
    cdef Py_ssize_t i
    memset(&call, 0, sizeof(Call))
    call.plan, call.count = &plan.net, h0.shape[1]
    call.callback, call.failure = NULL if callback is None else <void *>callback, <void *>failure
    cdef Block small = block(option_bytes(options))
    set_options(&call.o, small, options)
    call.most = 2 * call.o.beam if call.o.compete else 1
    call.limit = max(limits, default=0)
    cdef const int64_t[::1] places = at
    for i in range(call.count if at is not None else 0):
        call.sources = max(call.sources, places[i + 1] - places[i])
    threads = max(1, min(threads, <int>call.count)) if single else 1    # BLAS has threads of its own
    cdef Block sentences = take_sentences(&call, &plan.net, at, limits, forced)
    cdef Block rows = take_rows(&call, &plan.net, threads)
    set_inputs(&call, &plan.net, h0, c0, keys, memory, at, seeds)
    if single:
        control = fp_begin()
    call.control = control
    with nogil:
        run(search_task, &call, threads)
    if single:
        fp_end(control)
    if failure:
        raise failure[0]
    if call.stop == 2:
        raise_pending()
    return results(&call, &plan.net)

