"""Training with input feeding: the decoder goes step by step, since each step reads what the one before attended to.

Tokens are compact and time-major: sentences stand from the longest target to the shortest, step t has the rows
first[t] : first[t] + active[t]. Threads share out sentences and never wait for each other; the weights' gradients are
products over all tokens after the loop.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

cimport numpy as cnp

from rnn_core._dense cimport least, share
from rnn_core._decoder cimport MOST_LAYERS, Net, Plan
from rnn_core._kernels cimport *
from rnn_core._plan cimport Block, Direction, Weights, add_outer, block, from_row, multiply, padded, project, rows_at, \
    rows_by, shape_of, whole
from rnn_core._rows cimport *
from rnn_core._runtime cimport fp_begin, fp_end, kernels_f32, num_threads, raise_pending, run, tick
from rnn_core._variants cimport add_rows, copy_rows, multiply_rows

cnp.import_array()

cdef enum:
    SUM_BLOCK = 512                    # tokens that one chain of a weight gradient spans

# Pointers into NumPy arrays that Python keeps. N tokens, B sentences; `units` is H in whole vectors.
cdef struct Layer:
    Direction *d
    char *x                            # (N, inputs)
    char *h                            # (N, units): states after each step
    char *h0                           # (B, units)
    char *c                            # (B, units): LSTM's cell
    char *saved                        # (N, gate row): the input projection, then the activated gates
    char *saved_unit                   # (N, units): rc_step.saved_unit
    char *mask                         # (N, H) between this layer and the next, or NULL
    char *dz                           # (N, dz)
    char *dh                           # (B, units)
    char *dc
    char *dy                           # (B, H): gradient of a lower layer's output
    char *dw
    char *dr
    char *db_ih
    char *db_hh

cdef struct Sentence:
    Py_ssize_t sources, steps
    char *keys
    char *memory
    char *packed_keys                  # dot and general
    char *packed_memory
    char *weights                      # (T, S)
    char *ds                           # (T, S): gradients of the scores
    char *dkeys
    char *dmemory
    char *dv

cdef struct Feed:
    const Net *net
    Layer layers[MOST_LAYERS]
    Sentence *sentences
    Py_ssize_t rows, steps, tokens, sources
    const int64_t *active
    const int64_t *first
    char *joined                       # (N, width + H)
    char *result                       # (N, size): a_t
    char *queries                      # (N, H)
    char *dresult                      # (N, size): in the output layer's part; out before tanh
    char *djoined                      # (N, width + H)
    char *dqueries                     # (N, H), zero
    char *dinputs                      # (N, E + size)
    Py_ssize_t embedding
    rc_shape combine_shape, query_shape
    void *combine_back                 # packed for the way back
    void *query_back
    char *product
    char *work                         # (threads, most sources, H)
    void **pointers                    # (N)
    int stop


cdef inline rc_rows at(char *base, Py_ssize_t row, Py_ssize_t stride, const Feed *f) noexcept nogil:
    return from_row(base, stride, row, f.net.kernels.itemsize)


cdef inline Py_ssize_t padded_units(const Feed *f) noexcept nogil:
    return whole(f.net.hidden, f.net.kernels.lanes)


cdef inline Py_ssize_t running(const Feed *f, Py_ssize_t t, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return least(f.active[t], end) - begin if f.active[t] > begin else 0


cdef rc_rows states_before(const Feed *f, const Layer *l, Py_ssize_t t, Py_ssize_t row) noexcept nogil:
    if t == 0:
        return at(l.h0, row, padded_units(f), f)
    return at(l.h, f.first[t - 1] + row, padded_units(f), f)


# ---- forward ----------------------------------------------------------------------------------------------------


cdef void step_layer(const Feed *f, int layer, Py_ssize_t t, Py_ssize_t row, Py_ssize_t n) noexcept nogil:
    cdef const Layer *l = &f.layers[layer]
    cdef Py_ssize_t base = f.first[t] + row, units = padded_units(f), lanes = f.net.kernels.lanes
    cdef Py_ssize_t hidden = f.net.hidden
    cdef rc_rows x
    cdef rc_step s
    memset(&s, 0, sizeof(rc_step))
    s.gates = s.saved = at(l.saved, base, rc_row_size(&l.d.w, lanes), f)
    s.saved_unit = at(l.saved_unit, base, units, f)
    project(f.net.cells, l.d, at(l.x, base, l.d.inputs, f), s.gates, n)
    s.cell, s.shape, s.chains, s.packed, s.bias = l.d.cell, l.d.r, l.d.chains, l.d.r_packed, l.d.bias_n
    s.h_prev, s.h_next = states_before(f, l, t, row), at(l.h, base, units, f)
    s.c = at(l.c, row, units, f)
    if f.net.cells.gemm != kernels_f32().gemm:
        s.product = at(f.product, row, rc_row_size(&l.d.w, lanes), f)
    s.row_end, s.panel_end = n, rc_panels(&l.d.r, lanes)
    f.net.cells.step(&s)
    if layer + 1 == f.net.layers:
        return
    x = at(f.layers[layer + 1].x, base, hidden, f)
    if l.mask == NULL:
        copy_rows(f.net.kernels.itemsize, s.h_next, x, n, hidden)
    else:
        multiply_rows(f.net.kernels.itemsize, s.h_next, at(l.mask, base, hidden, f), x, n, hidden)


cdef void look_one(const Feed *f, Py_ssize_t m, Py_ssize_t t, int rank) noexcept nogil:
    """Attention of sentence m's step t."""
    cdef const Net *net = f.net
    cdef const Sentence *s = &f.sentences[m]
    cdef Py_ssize_t size = net.kernels.itemsize, token = f.first[t] + m, stride = net.width + net.hidden
    cdef char *weights = s.weights + t * s.sources * size
    cdef char *context = f.joined + token * stride * size
    cdef rc_shape shape = shape_of(net.hidden, s.sources, 1)
    if net.kind == 2:
        rc_additive(net.kernels, f.queries + token * net.hidden * size, s.keys, net.v, s.sources, net.hidden,
                    f.work + rank * f.sources * net.hidden * size, weights)
    else:
        multiply(net.kernels, &shape, s.packed_keys, NULL, False, False, rows_at(context + net.width * size, stride),
                 rows_at(weights, s.sources), 1)
    rc_softmax(net.kernels, weights, 1, s.sources)
    memset(context, 0, net.width * size)
    add_outer(net.kernels, rows_at(weights, 1), rows_at(s.memory, net.width), s.sources, net.width, context, stride, 0,
              1)


cdef void forward_step(const Feed *f, Py_ssize_t t, Py_ssize_t row, Py_ssize_t n, int rank) noexcept nogil:
    cdef const Net *net = f.net
    cdef Py_ssize_t size = net.kernels.itemsize, base = f.first[t] + row, i, x = f.embedding + net.size
    cdef Py_ssize_t stride = net.width + net.hidden, units = padded_units(f)
    cdef const Layer *top = &f.layers[net.layers - 1]
    cdef rc_rows states = rows_at(f.joined + (base * stride + net.width) * size, stride)
    cdef char *fed = f.layers[0].x + (base * x + f.embedding) * size
    cdef char *result = f.result + base * net.size * size
    cdef int layer
    if t == 0:
        for i in range(n):
            memset(fed + i * x * size, 0, net.size * size)
    else:
        copy_rows(size, at(f.result, f.first[t - 1] + row, net.size, f), rows_at(fed, x), n, net.size)
    for layer in range(net.layers):
        step_layer(f, layer, t, row, n)
    copy_rows(size, at(top.h, base, units, f), states, n, net.hidden)
    if net.kind == 2:
        multiply(net.kernels, &net.query.shape, net.query.packed, net.query.bias, False, False, states,
                 at(f.queries, base, net.hidden, f), n)
    for i in range(n):
        look_one(f, row + i, t, rank)
    multiply(net.kernels, &net.combine.shape, net.combine.packed, net.combine.bias, False, False,
             at(f.joined, base, stride, f), at(f.result, base, net.size, f), n)
    net.kernels.activate(RC_TANH, result, result, n * net.size)


cdef void forward_task(void *context, int rank, int size) noexcept nogil:
    cdef Feed *f = <Feed *>context
    cdef Py_ssize_t begin = share(f.rows, 1, rank, size), end = share(f.rows, 1, rank + 1, size), t = 0, m, n
    cdef rc_shape shape
    cdef double next = 0
    for m in range(begin, end):
        if f.net.kind == 1:
            shape = shape_of(f.net.hidden, f.sentences[m].sources, 1)
            f.net.kernels.pack(&shape, f.sentences[m].keys, f.net.hidden, 1, f.sentences[m].packed_keys)
    while t < f.steps and not f.stop:
        n = running(f, t, begin, end)
        if n == 0:
            return
        forward_step(f, t, begin, n, rank)
        t += 1
        if rank == 0 and tick(&next) != 0:
            f.stop = 1


# ---- backward ---------------------------------------------------------------------------------------------------


cdef void look_back(const Feed *f, Py_ssize_t m, Py_ssize_t t, int rank) noexcept nogil:
    """Gradients of the scores of sentence m's step t, and of its query: into djoined or, additive, dqueries."""
    cdef const Net *net = f.net
    cdef const Sentence *s = &f.sentences[m]
    cdef Py_ssize_t size = net.kernels.itemsize, token = f.first[t] + m, stride = net.width + net.hidden
    cdef char *ds = s.ds + t * s.sources * size
    cdef char *d = f.djoined + token * stride * size
    cdef rc_shape shape = shape_of(net.width, s.sources, 1)
    multiply(net.kernels, &shape, s.packed_memory, NULL, False, False, rows_at(d, stride), rows_at(ds, s.sources), 1)
    rc_softmax_back(net.kernels, s.weights + t * s.sources * size, ds, 1, s.sources)
    if net.kind == 2:
        rc_additive_back(net.kernels, f.queries + token * net.hidden * size, s.keys, net.v, ds, s.sources, net.hidden,
                         f.work + rank * f.sources * net.hidden * size, f.dqueries + token * net.hidden * size,
                         s.dkeys, s.dv)
        return
    add_outer(net.kernels, rows_at(ds, 1), rows_at(s.keys, net.hidden), s.sources, net.hidden, d + net.width * size,
              stride, 0, 1)


cdef void step_layer_back(const Feed *f, int layer, Py_ssize_t t, Py_ssize_t row, Py_ssize_t n) noexcept nogil:
    cdef const Layer *l = &f.layers[layer]
    cdef Py_ssize_t base = f.first[t] + row, units = padded_units(f), size = f.net.kernels.itemsize
    cdef Py_ssize_t h = f.net.hidden
    cdef rc_step_back s
    cdef rc_rows dx
    memset(&s, 0, sizeof(rc_step_back))
    s.cell, s.units = l.d.cell, h
    s.saved = at(l.saved, base, rc_row_size(&l.d.w, f.net.kernels.lanes), f)
    s.saved_unit = at(l.saved_unit, base, units, f)
    s.h_prev = states_before(f, l, t, row)
    s.dy = at(l.dy, row, h, f)
    if layer + 1 == f.net.layers:
        s.dy = rows_at(f.djoined + (base * (f.net.width + h) + f.net.width) * size, f.net.width + h)
    s.dh, s.dc, s.dz = at(l.dh, row, units, f), at(l.dc, row, units, f), at(l.dz, base, l.d.dz, f)
    s.row_end, s.unit_end = n, rc_vectors(h, f.net.kernels.lanes)
    s.ahead = f.first[t - 1] - f.first[t] if t else 0
    f.net.cells.step_back(&s)
    multiply(f.net.cells, &l.d.rt, l.d.rt_packed, NULL, True, True,
             rows_at(<char *>s.dz.base + l.d.recurrent[0].column * size, l.d.dz), s.dh, n)
    dx = at(f.dinputs, base, l.d.inputs, f) if layer == 0 else at(f.layers[layer - 1].dy, row, h, f)
    multiply(f.net.cells, &l.d.wt, l.d.wt_packed, NULL, False, False, s.dz, dx, n)
    if layer and f.layers[layer - 1].mask != NULL:
        multiply_rows(size, dx, at(f.layers[layer - 1].mask, base, h, f), dx, n, h)


cdef void backward_step(const Feed *f, Py_ssize_t t, Py_ssize_t row, Py_ssize_t n, int rank) noexcept nogil:
    cdef const Net *net = f.net
    cdef Py_ssize_t size = net.kernels.itemsize, base = f.first[t] + row, i, stride = net.width + net.hidden
    cdef Py_ssize_t x = f.embedding + net.size
    cdef int layer
    if t + 1 < f.steps:                # what is fed to the next step
        add_rows(size, rows_at(f.dinputs + ((f.first[t + 1] + row) * x + f.embedding) * size, x),
                 at(f.dresult, base, net.size, f), running(f, t + 1, row, row + n), net.size)
    rc_tanh_back(net.kernels, f.result + base * net.size * size, f.dresult + base * net.size * size, n * net.size)
    multiply(net.kernels, &f.combine_shape, f.combine_back, NULL, False, False, at(f.dresult, base, net.size, f),
             at(f.djoined, base, stride, f), n)
    for i in range(n):
        look_back(f, row + i, t, rank)
    if net.kind == 2:
        multiply(net.kernels, &f.query_shape, f.query_back, NULL, True, False, at(f.dqueries, base, net.hidden, f),
                 rows_at(f.djoined + (base * stride + net.width) * size, stride), n)
    for layer in range(net.layers - 1, -1, -1):
        step_layer_back(f, layer, t, row, n)


cdef void sentence_back(const Feed *f, Py_ssize_t m) noexcept nogil:
    """The gradients of memory and keys, over all steps of sentence m."""
    cdef const Net *net = f.net
    cdef const Sentence *s = &f.sentences[m]
    cdef Py_ssize_t size = net.kernels.itemsize, stride = (net.width + net.hidden) * size, t
    cdef void **pointers = f.pointers + m * f.steps
    for t in range(s.steps):
        pointers[t] = f.djoined + (f.first[t] + m) * stride
    add_outer(net.kernels, rows_at(s.weights, s.sources), rows_by(pointers), s.steps, net.width, s.dmemory, net.width,
              0, s.sources)
    if net.kind == 1:
        for t in range(s.steps):
            pointers[t] = f.joined + (f.first[t] + m) * stride + net.width * size
        add_outer(net.kernels, rows_at(s.ds, s.sources), rows_by(pointers), s.steps, net.hidden, s.dkeys, net.hidden,
                  0, s.sources)


cdef void backward_task(void *context, int rank, int size) noexcept nogil:
    cdef Feed *f = <Feed *>context
    cdef Py_ssize_t begin = share(f.rows, 1, rank, size), end = share(f.rows, 1, rank + 1, size), t = f.steps - 1, m, n
    cdef rc_shape shape
    cdef double next = 0
    for m in range(begin, end):
        shape = shape_of(f.net.width, f.sentences[m].sources, 1)
        f.net.kernels.pack(&shape, f.sentences[m].memory, f.net.width, 1, f.sentences[m].packed_memory)
    while t >= 0 and not f.stop:
        n = running(f, t, begin, end)
        if n:
            backward_step(f, t, begin, n, rank)
        t -= 1
        if rank == 0 and tick(&next) != 0:
            f.stop = 1
    for m in range(begin, end):
        sentence_back(f, m)


cdef void weights_task(void *context, int rank, int size) noexcept nogil:
    """The gradients of W, R and the biases; threads share out their rows."""
    cdef Feed *f = <Feed *>context
    cdef Layer *l
    cdef Py_ssize_t begin, n
    cdef int layer, i
    for layer in range(f.net.layers):
        l = &f.layers[layer]
        begin = 0
        while begin < f.tokens:
            n = least(SUM_BLOCK, f.tokens - begin)
            for i in range(l.d.inputs_count):
                add_gradient(f, l, l.d.input[i].column, l.d.input[i].row, l.d.input[i].count, l.dw, l.db_ih,
                             at(l.x, begin, l.d.inputs, f), l.d.inputs, begin, n, rank, size)
            add_gradient(f, l, l.d.recurrent[0].column, l.d.recurrent[0].row, l.d.recurrent[0].count, l.dr, l.db_hh,
                         rows_by(f.pointers + layer * f.tokens + begin), f.net.hidden, begin, n, rank, size)
            begin += n


cdef void add_gradient(const Feed *f, const Layer *l, Py_ssize_t column, Py_ssize_t row, Py_ssize_t count, char *dw,
                       char *db, rc_rows x, Py_ssize_t columns, Py_ssize_t begin, Py_ssize_t n, int rank,
                       int size) noexcept nogil:
    cdef Py_ssize_t itemsize = f.net.kernels.itemsize, first = share(count, 1, rank, size)
    cdef Py_ssize_t last = share(count, 1, rank + 1, size)
    cdef rc_rows dz = rows_at(l.dz + (begin * l.d.dz + column) * itemsize, l.d.dz)
    add_outer(f.net.cells, dz, x, n, columns, dw + row * columns * itemsize, columns, first, last)
    f.net.kernels.column_sums(&dz, NULL, n, db + row * itemsize, NULL, first, last)


# ---- from Python ------------------------------------------------------------------------------------------------


cdef char *data(object array) except? NULL:
    return NULL if array is None else <char *>cnp.PyArray_DATA(array)


cdef int start(Feed *f, void (*task)(void *, int, int) noexcept nogil) except -1:
    cdef bint single = f.net.kernels.itemsize == 4
    cdef unsigned control = fp_begin() if single else 0
    cdef int threads = num_threads() if single else 1      # BLAS has threads of its own
    with nogil:
        run(task, f, threads)
    if single:
        fp_end(control)
    if f.stop:
        raise_pending()
    return 0


cdef class Loop:
    """One batch's arrays, made by rnn_core.seq2seq_feeding, as the loops see them."""
    cdef Feed f
    cdef list kept
    cdef Block memory
    cdef Weights weights

    def __init__(self, Plan plan, Weights weights, dict a, Py_ssize_t embedding):
        """a: the arrays by name; `layers`, `sentences`: lists of dictionaries."""
        cdef Feed *f = &self.f
        cdef Py_ssize_t i, size = plan.net.kernels.itemsize, total = 0, sources, lanes = plan.net.kernels.lanes
        cdef const int64_t[::1] active = a["active"]
        cdef const int64_t[::1] first = a["first"]
        cdef const int64_t[::1] lengths = a["source_lengths"]
        cdef const int64_t[::1] steps = a["steps"]
        cdef const int64_t[::1] begins = a["source_begins"]
        cdef const int64_t[::1] places = a["weight_begins"]
        self.kept, self.weights = [plan, a, active, first], weights
        f.net, f.embedding = &plan.net, embedding
        f.rows, f.steps, f.tokens = len(steps), len(active), a["joined"].shape[0]
        f.active, f.first = &active[0], &first[0]
        f.sources = max(a["source_lengths"])
        for name_layer, given in enumerate(a["layers"]):
            self.set_layer(&f.layers[name_layer], name_layer, given)
        f.joined, f.result, f.queries = data(a["joined"]), data(a["result"]), data(a["queries"])
        cdef Py_ssize_t row = rc_row_size(&weights.directions[0].w, lanes)
        for i in range(f.rows):
            total += 2 * padded(whole(lengths[i], lanes) * max(plan.net.hidden, plan.net.width), size)
        total += padded(row * f.rows, size) + padded(f.rows, sizeof(Sentence))
        total += padded(num_threads() * f.sources * plan.net.hidden, size) + 1024
        total += padded(max(f.rows * f.steps, f.tokens * plan.net.layers), sizeof(void *))
        self.memory = block(total)
        f.sentences = <Sentence *>self.memory.take_zeros(f.rows * sizeof(Sentence))
        f.product = <char *>self.memory.take(row * f.rows * size)
        f.work = <char *>self.memory.take(num_threads() * f.sources * plan.net.hidden * size)
        f.pointers = <void **>self.memory.take(max(f.rows * f.steps, f.tokens * plan.net.layers) * sizeof(void *))
        cdef Sentence *s
        for i in range(f.rows):
            s = &f.sentences[i]
            s.sources, s.steps = lengths[i], steps[i]
            s.keys = data(a["keys"]) + begins[i] * plan.net.hidden * size
            s.memory = data(a["memory"]) + begins[i] * plan.net.width * size
            s.weights = data(a["weights"]) + places[i] * size
            sources = whole(s.sources, lanes)
            s.packed_keys = <char *>self.memory.take(sources * plan.net.hidden * size)
            s.packed_memory = <char *>self.memory.take(sources * plan.net.width * size)

    cdef int set_layer(self, Layer *l, int number, dict given) except -1:
        l.d = &self.weights.directions[number]
        l.x, l.h, l.h0, l.c = data(given["x"]), data(given["h"]), data(given["h0"]), data(given["c"])
        l.saved, l.saved_unit, l.mask = data(given["saved"]), data(given["saved_unit"]), data(given["mask"])
        return 0

    def forward(self):
        start(&self.f, forward_task)

    def backward(self, dict d, combine, query):
        """d: gradient arrays by name; combine, query: their weights (query None unless additive)."""
        cdef Feed *f = &self.f
        cdef const Net *net = f.net
        cdef Py_ssize_t i, m, t, size = net.kernels.itemsize
        cdef const int64_t[::1] begins = self.kept[1]["source_begins"]
        cdef const int64_t[::1] places = self.kept[1]["weight_begins"]
        cdef Layer *l
        self.weights.need_backward()
        f.combine_shape = shape_of(net.size, net.width + net.hidden, 1)
        f.query_shape = shape_of(net.hidden, net.hidden, 1)
        cdef Block packed = block(padded(rc_packed_size(&f.combine_shape, net.kernels.lanes), size)
                                  + padded(rc_packed_size(&f.query_shape, net.kernels.lanes), size))
        f.combine_back = packed.take(rc_packed_size(&f.combine_shape, net.kernels.lanes) * size)
        f.query_back = packed.take(rc_packed_size(&f.query_shape, net.kernels.lanes) * size)
        net.kernels.pack(&f.combine_shape, data(combine), 1, net.width + net.hidden, f.combine_back)
        if query is not None:
            net.kernels.pack(&f.query_shape, data(query), 1, net.hidden, f.query_back)
        f.dresult, f.djoined, f.dqueries = data(d["result"]), data(d["joined"]), data(d["queries"])
        f.dinputs = data(d["inputs"])
        for i, given in enumerate(d["layers"]):
            l = &f.layers[i]
            l.dz, l.dh, l.dc, l.dy = data(given["dz"]), data(given["dh"]), data(given["dc"]), data(given["dy"])
            l.dw, l.dr = data(given["dw"]), data(given["dr"])
            l.db_ih, l.db_hh = data(given["db_ih"]), data(given["db_hh"])
        for m in range(f.rows):
            f.sentences[m].ds = data(d["weights"]) + places[m] * size
            f.sentences[m].dkeys = data(d["keys"]) + begins[m] * net.hidden * size
            f.sentences[m].dmemory = data(d["memory"]) + begins[m] * net.width * size
            f.sentences[m].dv = data(d["v"]) + m * net.hidden * size
        start(&self.f, backward_task)
        for i in range(net.layers):
            for t in range(f.steps):
                for m in range(f.active[t]):
                    f.pointers[i * f.tokens + f.first[t] + m] = <char *>states_before(f, &f.layers[i], t, m).base
        start(&self.f, weights_task)
