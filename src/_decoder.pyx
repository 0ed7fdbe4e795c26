"""One step of a decoder for many rows at once: recurrent layers, attention, the combining and the output layer.

The weights are packed once and kept until a parameter changes. The products are the kernels' own, so a step gives the
same bits as the teacher-forced pass over whole sequences.
"""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from rnn_core._kernels cimport *
from rnn_core._plan cimport FEW_ROWS, Block, Direction, Weights, add_outer, block, gate_rows, multiply, padded, \
    project, rows_at, rows_by, shape_of, whole
from rnn_core._rows cimport *
from rnn_core._runtime cimport kernels_f32, kernels_f64

cnp.import_array()


cdef inline Py_ssize_t wide(const Net *plan, Py_ssize_t n) noexcept nogil:
    return whole(n, plan.kernels.lanes)


cdef class Plan:
    """The packed weights of one decoder."""

    def __init__(self, Weights rnn, embedding, bint feeds, str attention, query, v, combine, output,
                 Py_ssize_t hidden, Py_ssize_t width):
        """query, combine, output: (weight, bias) or None; attention: "", "dot", "general" or "additive"."""
        cdef Py_ssize_t itemsize = embedding.itemsize
        cdef Net *n = &self.net
        cdef Block table
        n.kernels = kernels_f32() if itemsize == 4 else kernels_f64()
        n.cells, n.directions = rnn.kernels, rnn.directions
        self.blocks, self.arrays = [], [rnn, embedding, v]
        n.vocabulary, n.embedding_size = embedding.shape
        n.hidden, n.width, n.layers, n.feeds = hidden, width if attention else 0, rnn.count, feeds
        self.net.kind = 2 if attention == "additive" else 1 if attention else 0
        if self.net.layers > MOST_LAYERS:
            raise ValueError(f"decoder: expected at most {MOST_LAYERS} layers, got {self.net.layers}")
        self.net.embedding, self.net.v = cnp.PyArray_DATA(embedding), NULL if v is None else cnp.PyArray_DATA(v)
        self.net.size = combine[0].shape[0] if combine is not None else hidden
        if query is not None:
            self.product(&n.query, query[0], query[1])
        if combine is not None:
            self.product(&n.combine, combine[0], combine[1])
        self.product(&n.output, output[0], output[1])
        if not feeds and self.net.vocabulary <= TABLE_TOKENS:
            table = gate_rows(n.cells, &n.directions[0], n.embedding, n.vocabulary)
            n.table = table.data
            self.blocks.append(table)

    def whole(self, Py_ssize_t n):
        """n in whole vectors of this machine's kernels."""
        return wide(&self.net, n)

    cdef int product(self, Product *p, weight, bias) except -1:
        cdef size_t itemsize = self.net.kernels.itemsize, row
        p.shape = shape_of(weight.shape[1], weight.shape[0], 1)
        row = padded(rc_row_size(&p.shape, self.net.kernels.lanes), itemsize)
        cdef Block b = block(padded(rc_packed_size(&p.shape, self.net.kernels.lanes), itemsize) + row)
        p.packed = b.take(rc_packed_size(&p.shape, self.net.kernels.lanes) * itemsize)
        p.bias = b.take(row)
        self.net.kernels.pack(&p.shape, cnp.PyArray_DATA(weight), p.shape.k, 1, p.packed)
        self.net.kernels.pack_bias(&p.shape, NULL if bias is None else cnp.PyArray_DATA(bias), NULL, p.bias)
        self.blocks.append(b)
        return 0


cdef void apply(const rc_kernels *k, const Product *p, rc_rows a, rc_rows c, Py_ssize_t n) noexcept nogil:
    """c <- a W^T + b of n rows."""
    multiply(k, &p.shape, p.packed, p.bias, False, False, a, c, n)


# ---- memory -----------------------------------------------------------------------------------------------------


cdef Py_ssize_t gate_row(const Net *plan) noexcept nogil:
    return rc_row_size(&plan.directions[0].w, plan.kernels.lanes)


cdef size_t steps_bytes(const Net *plan, Py_ssize_t rows, Py_ssize_t sources) except? 0:
    cdef size_t each = 4 * plan.layers * wide(plan, plan.hidden) + 2 * wide(plan, plan.size)
    each += plan.embedding_size + plan.size + 2 * gate_row(plan) + plan.width + plan.hidden + plan.hidden
    each += 2 * sources + sources * plan.hidden * (plan.kind == 2)
    return (padded(rows + 1, each * plan.kernels.itemsize) + padded(2 * rows, sizeof(void *))
            + 64 * (4 * plan.layers + 16))


cdef int take_steps(const Net *plan, Steps *s, Block memory, Py_ssize_t rows, Py_ssize_t sources) except -1:
    cdef Py_ssize_t itemsize = plan.kernels.itemsize, units = wide(plan, plan.hidden) * itemsize * rows
    cdef int layer, i
    memset(s, 0, sizeof(Steps))
    s.rows = rows
    for layer in range(plan.layers):
        for i in range(2):
            s.h[layer][i] = <char *>memory.take_zeros(units)
            s.c[layer][i] = <char *>memory.take_zeros(units)
    for i in range(2):
        s.result[i] = <char *>memory.take_zeros(wide(plan, plan.size) * itemsize * rows)
    s.inputs = <char *>memory.take((plan.embedding_size + plan.size) * itemsize * rows)
    s.gates = <char *>memory.take(gate_row(plan) * itemsize * rows)
    s.product = <char *>memory.take(gate_row(plan) * itemsize * rows)
    s.joined = <char *>memory.take((plan.width + plan.hidden) * itemsize * rows)
    s.queries = <char *>memory.take(plan.hidden * itemsize * rows)
    s.scores = <char *>memory.take(sources * itemsize * rows)
    s.turned = <char *>memory.take(sources * itemsize * rows)
    if plan.kind == 2:
        s.work = <char *>memory.take(sources * plan.hidden * itemsize * rows)
    s.pointers = <void **>memory.take(2 * rows * sizeof(void *))
    return 0


cdef Steps part_of_steps(const Net *plan, const Steps *s, Py_ssize_t first, Py_ssize_t rows,
                         Py_ssize_t sources) noexcept nogil:
    cdef Steps part = s[0]
    cdef Py_ssize_t at = first * <Py_ssize_t>plan.kernels.itemsize
    cdef int layer, i
    part.rows = rows
    for i in range(2):
        for layer in range(plan.layers):
            part.h[layer][i] += at * wide(plan, plan.hidden)
            part.c[layer][i] += at * wide(plan, plan.hidden)
        part.result[i] += at * wide(plan, plan.size)
    part.inputs += at * (plan.embedding_size + plan.size)
    part.gates += at * gate_row(plan)
    part.product += at * gate_row(plan)
    part.joined += at * (plan.width + plan.hidden)
    part.queries += at * plan.hidden
    part.scores += at * sources
    part.turned += at * sources
    if part.work != NULL:
        part.work += at * sources * plan.hidden
    part.pointers += 2 * first
    return part


cdef void start_row(const Net *plan, Steps *s, Py_ssize_t row, char **h, char **c) noexcept nogil:
    """The states of `row` before the first step: h[layer] and c[layer] (H), c NULL for zero or no cell."""
    cdef Py_ssize_t itemsize = plan.kernels.itemsize, stride = wide(plan, plan.hidden) * itemsize
    cdef int layer
    for layer in range(plan.layers):
        memcpy(s.h[layer][s.now] + row * stride, h[layer], plan.hidden * itemsize)
        if c[layer] != NULL:
            memcpy(s.c[layer][s.now] + row * stride, c[layer], plan.hidden * itemsize)
    memset(s.result[s.now] + row * wide(plan, plan.size) * itemsize, 0, plan.size * itemsize)


# ---- the step ---------------------------------------------------------------------------------------------------


cdef rc_rows first_gates(const Net *plan, Steps *s, Py_ssize_t n, const int32_t *parents,
                         const int32_t *tokens) noexcept nogil:
    """The first layer's input projection of each row's token (and of what is fed)."""
    cdef Py_ssize_t itemsize = plan.kernels.itemsize, row = gate_row(plan), i
    cdef Py_ssize_t e = plan.embedding_size, x = (e + plan.size) * itemsize
    cdef rc_rows a = rows_by(s.pointers), c = rows_at(s.gates, row)
    for i in range(n):
        if plan.table != NULL:
            s.pointers[i] = plan.table + tokens[i] * row * itemsize
            continue
        s.pointers[i] = <char *>plan.embedding + tokens[i] * e * itemsize
        if plan.feeds:
            memcpy(s.inputs + i * x, s.pointers[i], e * itemsize)
            memcpy(s.inputs + i * x + e * itemsize,
                   s.result[s.now] + parents[i] * wide(plan, plan.size) * itemsize, plan.size * itemsize)
    if plan.table != NULL:
        return a
    if plan.feeds:
        a = rows_at(s.inputs, e + plan.size)
    project(plan.cells, &plan.directions[0], a, c, n)
    return c


cdef void run_layers(const Net *plan, Steps *s, Py_ssize_t n, const int32_t *parents,
                     const int32_t *tokens) noexcept nogil:
    cdef Py_ssize_t itemsize = plan.kernels.itemsize, units = wide(plan, plan.hidden), i
    cdef int layer, now = s.now, after = 1 - s.now
    cdef Direction *d
    cdef rc_step step
    cdef rc_rows none = rows_at(NULL, 0)
    cdef void **previous = s.pointers + s.rows
    memset(&step, 0, sizeof(rc_step))
    step.backwards = n < FEW_ROWS and now     # few rows wait for the weights: start with those still in the cache
    for layer in range(plan.layers):
        d = &plan.directions[layer]
        if layer == 0:
            step.gates = first_gates(plan, s, n, parents, tokens)
        else:
            step.gates = rows_at(s.gates, gate_row(plan))
            project(plan.cells, d, rows_at(s.h[layer - 1][after], units), step.gates, n)
        for i in range(n):
            previous[i] = s.h[layer][now] + parents[i] * units * itemsize
            if d.cell == RC_LSTM:
                memcpy(s.c[layer][after] + i * units * itemsize, s.c[layer][now] + parents[i] * units * itemsize,
                       units * itemsize)
        step.cell, step.phase, step.shape, step.chains, step.packed = d.cell, 0, d.r, d.chains, d.r_packed
        step.bias, step.h_prev, step.h_next = d.bias_n, rows_by(previous), rows_at(s.h[layer][after], units)
        step.c, step.y, step.reset = rows_at(s.c[layer][after], units), none, none
        step.saved, step.saved_unit, step.product = none, none, none
        if plan.cells.gemm != kernels_f32().gemm:
            step.product = rows_at(s.product, gate_row(plan))
        step.row_begin, step.row_end, step.panel_begin = 0, n, 0
        step.panel_end = rc_panels(&d.r, plan.kernels.lanes)
        plan.cells.step(&step)
    for i in range(n):
        memcpy(s.joined + (i * (plan.width + plan.hidden) + plan.width) * itemsize,
               s.h[plan.layers - 1][after] + i * units * itemsize, plan.hidden * itemsize)
    if plan.kind == 2:
        apply(plan.kernels, &plan.query, rows_at(s.joined + plan.width * itemsize, plan.width + plan.hidden),
              rows_at(s.queries, plan.hidden), n)


cdef void pack_keys(const Net *plan, const char *keys, Py_ssize_t length, char *packed) noexcept nogil:
    cdef rc_shape shape = shape_of(plan.hidden, length, 1)
    plan.kernels.pack(&shape, keys, plan.hidden, 1, packed)


cdef void look(const Net *plan, Steps *s, const Source *source, Py_ssize_t begin, Py_ssize_t n,
               char *weights) noexcept nogil:
    """Attention weights (n, S) and contexts of rows [begin, begin + n), all of one sentence."""
    cdef Py_ssize_t itemsize = plan.kernels.itemsize, stride = plan.width + plan.hidden, i
    cdef char *joined = s.joined + begin * stride * itemsize
    cdef rc_shape keys = shape_of(plan.hidden, source.length, 1)
    if plan.kind == 2:
        for i in range(n):
            rc_additive(plan.kernels, s.queries + (begin + i) * plan.hidden * itemsize, source.keys, plan.v,
                        source.length, plan.hidden, s.work, weights + i * source.length * itemsize)
    else:
        multiply(plan.kernels, &keys, source.packed, NULL, False, False,
                 rows_at(joined + plan.width * itemsize, stride), rows_at(weights, source.length), n)
    rc_softmax(plan.kernels, weights, n, source.length)
    rc_transpose(plan.kernels, weights, n, source.length, s.turned)
    for i in range(n):
        memset(joined + i * stride * itemsize, 0, plan.width * itemsize)
    add_outer(plan.kernels, rows_at(s.turned, n), rows_at(source.memory, plan.width), source.length, plan.width, joined,
              stride, 0, n)


cdef void combine_rows(const Net *plan, Steps *s, Py_ssize_t n) noexcept nogil:
    """a_t of n rows, to s.result."""
    cdef Py_ssize_t itemsize = plan.kernels.itemsize, size = wide(plan, plan.size), joined = plan.width + plan.hidden, i
    cdef char *result = s.result[1 - s.now]
    if plan.combine.packed == NULL:
        for i in range(n):
            memcpy(result + i * size * itemsize, s.joined + i * joined * itemsize, plan.hidden * itemsize)
        return
    apply(plan.kernels, &plan.combine, rows_at(s.joined, joined), rows_at(result, size), n)
    plan.kernels.activate(RC_TANH, result, result, n * size)


cdef void logits_of(const Net *plan, Steps *s, Py_ssize_t begin, Py_ssize_t n, char *logits) noexcept nogil:
    """Logits (n, V) of rows [begin, begin + n)."""
    cdef Py_ssize_t size = wide(plan, plan.size)
    apply(plan.kernels, &plan.output, rows_at(s.result[1 - s.now] + begin * size * plan.kernels.itemsize, size),
          rows_at(logits, plan.vocabulary), n)
