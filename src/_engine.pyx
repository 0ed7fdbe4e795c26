"""The engine as Python sees it: a Network runs forward and backward over arrays that have been checked.

One call is one parallel region: every thread walks through layers, directions and time, and they meet at barriers.
"""

from libc.string cimport memcpy, memset
from cpython.pycapsule cimport PyCapsule_GetPointer

import os

import numpy as np
cimport numpy as cnp

from rnn_core._backward cimport BackPass, backward_pass
from rnn_core._forward cimport Pass, forward_span
from rnn_core._kernels cimport *
from rnn_core._plan cimport Batch, Block, Direction, Team, View, Weights, block, meet, pack, padded, rc_stop, \
    rc_stop_asked, rc_stop_init, share, token, whole
from rnn_core._runtime cimport barrier_init, fp_begin, fp_end, kernels_f32, kernels_f64, num_threads, raise_pending, \
    rc_barrier, run_prepared

cnp.import_array()

cdef enum:
    TIME_MAJOR, BATCH_FIRST, CONCATENATED, PACKED

CELLS = {"rnn_tanh": RC_RNN_TANH, "rnn_relu": RC_RNN_RELU, "lstm": RC_LSTM, "gru": RC_GRU,
         "gru_reset_before": RC_GRU_RESET_BEFORE}
LAYOUTS = {"time_major": TIME_MAJOR, "batch_first": BATCH_FIRST, "concatenated": CONCATENATED,
           "packed": PACKED}  # as torch's PackedSequence: our compact rows, of sequences from the longest down

# What one core should find in its cache: the gates of a chunk of steps (forward), and the tokens whose weight
# gradients are summed at once (backward).
cdef enum:
    CHUNK_BYTES = 1 << 18
    CHUNK_LEAST = 48
    CHUNK_MOST = 512
    BACK_TOKENS = 256
    # Below this many multiply-adds a step and thread, a barrier costs more than another thread saves.
    WORTH_A_THREAD = 1 << 14
    # Multiply-adds of about 10 microseconds: a shorter call keeps the GIL.
    WORTH_RELEASING = 1 << 19


cdef struct Call:
    # One forward or backward call, seen by all of its threads.
    const rc_kernels *kernels
    Batch *batch
    int layers, directions
    ptrdiff_t chunk
    Pass *passes
    BackPass *back
    bint units                         # threads share out hidden units, else sequences
    void **pointers                    # a part for each thread
    ptrdiff_t pointers_each
    View *masks                        # (layers - 1) dropout masks, or NULL
    rc_stop stop
    rc_stop team_stop[3]               # of all threads, and of those of each direction
    rc_barrier barrier[3]


# ---------------------------------------------------------------------------------------------------------- planning


cdef size_t batch_bytes(ptrdiff_t steps, ptrdiff_t rows) except? 0:
    return 2 * padded(steps + 1, sizeof(ptrdiff_t)) + 2 * padded(rows, sizeof(ptrdiff_t))


cdef int plan_batch(Batch *b, Block memory, ptrdiff_t steps, ptrdiff_t rows, object lengths) except -1:
    """Sort by length, longest first, and count who runs when. `steps` becomes the longest length."""
    cdef cnp.int64_t[::1] order, length
    cdef ptrdiff_t t, m
    b.rows = rows
    b.active = <ptrdiff_t *>memory.take((steps + 1) * sizeof(ptrdiff_t))
    b.first = <ptrdiff_t *>memory.take((steps + 1) * sizeof(ptrdiff_t))
    b.order = <ptrdiff_t *>memory.take(rows * sizeof(ptrdiff_t))
    b.length = <ptrdiff_t *>memory.take(rows * sizeof(ptrdiff_t))
    b.steps = steps if rows else 0
    if lengths is None:
        for m in range(rows):
            b.order[m], b.length[m] = m, steps
    else:
        order = np.argsort(-lengths, kind="stable")
        length = lengths
        for m in range(rows):
            b.order[m] = order[m]
            b.length[m] = length[order[m]]
        b.steps = b.length[0] if rows else 0
    m = rows
    b.first[0] = 0
    for t in range(b.steps):
        while b.length[m - 1] <= t:
            m -= 1
        b.active[t] = m
        b.first[t + 1] = b.first[t] + m
    return 0


cdef View user_view(Block memory, const Batch *b, object array, int layout, ptrdiff_t width, ptrdiff_t column,
                    ptrdiff_t steps, object offsets, size_t itemsize) except *:
    """The caller's array as rows of tokens; `column` starts this direction's part of a row of `width`."""
    cdef View v
    cdef ptrdiff_t m, begin, row = width * <ptrdiff_t>itemsize
    cdef char *data
    cdef const cnp.int64_t[::1] starts
    memset(&v, 0, sizeof(View))
    if array is None:
        return v
    if layout == PACKED:
        return compact_view(cnp.PyArray_DATA(array), width, column, itemsize)
    data = <char *>cnp.PyArray_DATA(array) + column * itemsize
    v.sequence = <char **>memory.take(b.rows * sizeof(char *))
    v.step = b.rows * row if layout == TIME_MAJOR else row
    if layout == CONCATENATED:
        starts = offsets
    for m in range(b.rows):
        begin = b.order[m]
        if layout == BATCH_FIRST:
            begin *= steps
        elif layout == CONCATENATED:
            begin = starts[begin]
        v.sequence[m] = data + begin * row
    return v


cdef View compact_view(void *base, ptrdiff_t width, ptrdiff_t column, size_t itemsize) noexcept nogil:
    cdef View v
    v.sequence, v.step, v.origin = NULL, 0, 0
    v.row = width * <ptrdiff_t>itemsize
    v.base = NULL if base == NULL else <char *>base + column * itemsize
    return v


cdef void load_state(const Batch *b, char *to, ptrdiff_t stride, const char *source, ptrdiff_t width,
                     size_t itemsize) noexcept nogil:
    """Rows in the caller's order (or zeros where source is NULL) to sorted, padded rows."""
    cdef ptrdiff_t m
    memset(to, 0, b.rows * stride * itemsize)
    if source != NULL:
        for m in range(b.rows):
            memcpy(to + m * stride * itemsize, source + b.order[m] * width * itemsize, width * itemsize)


cdef void store_state(const Batch *b, char *to, const char *source, ptrdiff_t stride, ptrdiff_t width,
                      size_t itemsize) noexcept nogil:
    cdef ptrdiff_t m
    for m in range(b.rows):
        memcpy(to + b.order[m] * width * itemsize, source + m * stride * itemsize, width * itemsize)


cdef inline char *part_of(object array, ptrdiff_t index, ptrdiff_t size, size_t itemsize) noexcept:
    """Element `index` of an array of parts of `size` elements; NULL where there is no array."""
    return NULL if array is None else <char *>cnp.PyArray_DATA(array) + index * size * <ptrdiff_t>itemsize


# ------------------------------------------------------------------------------------------------- the parallel region


cdef Team make_team(Call *call, int which, int rank, int size, bint leader) noexcept nogil:
    cdef Team t
    t.rank, t.size, t.leader, t.units = rank, size, leader, call.units and size > 1
    t.barrier, t.stop, t.call = &call.barrier[which], &call.team_stop[which], &call.stop
    t.count, t.tick = 0, 0
    return t


cdef int prepare_teams(Call *call, int rank, int size, Team *all, Team *own, int *direction) noexcept nogil:
    """The team of all threads, and the one for a direction of its own where there are two for at least two threads.
    Rank 0 makes the barriers before run() starts the others. Returns how many directions a thread walks through."""
    cdef int half = (size + 1) // 2
    all[0] = make_team(call, 0, rank, size, rank == 0)
    own[0] = all[0]
    direction[0] = 0
    if call.directions == 2 and size > 1:
        direction[0] = rank >= half
        own[0] = make_team(call, 1 + direction[0], rank - half if rank >= half else rank,
                           size - half if rank >= half else half, rank == 0)
        return 1
    return call.directions


cdef void start_teams(Call *call, int size) noexcept nogil:
    cdef int i
    cdef int sizes[3]
    sizes[0], sizes[1] = size, (size + 1) // 2
    sizes[2] = max(size - sizes[1], 1)
    rc_stop_init(&call.stop)
    for i in range(3 if size > 1 else 0):
        rc_stop_init(&call.team_stop[i])
        barrier_init(&call.barrier[i], sizes[i])


cdef void apply_mask(const rc_kernels *k, const Batch *b, const View *mask, const View *x, const View *to, ptrdiff_t n,
                     ptrdiff_t begin, ptrdiff_t end, const Team *team) noexcept nogil:
    """to <- mask * x in rows of n elements, for the tokens of steps [begin, end); `to` may be x."""
    cdef ptrdiff_t t, m, i
    cdef char *row
    cdef char *factor
    cdef char *result
    share(end - begin, team.rank, team.size, &t, &m)
    end, begin = begin + m, begin + t
    for t in range(begin, end):
        for m in range(b.active[t]):
            factor, row, result = token(mask, b, t, m), token(x, b, t, m), token(to, b, t, m)
            for i in range(n):
                if k.itemsize == 4:
                    (<float *>result)[i] = (<float *>factor)[i] * (<float *>row)[i]
                else:
                    (<double *>result)[i] = (<double *>factor)[i] * (<double *>row)[i]


cdef void forward_task(void *context, int rank, int size) noexcept nogil:
    cdef Call *call = <Call *>context
    cdef Batch *b = call.batch
    cdef Team all, own
    cdef Pass *p
    cdef int layer, i, first, own_directions = prepare_teams(call, rank, size, &all, &own, &first)
    cdef ptrdiff_t begin, end, span = call.chunk if call.directions == 1 else b.steps
    cdef void **pointers = call.pointers + rank * call.pointers_each
    begin = 0
    while begin < b.steps:
        end = min(begin + span, b.steps)
        for layer in range(call.layers):
            for i in range(own_directions):
                p = &call.passes[layer * call.directions + first + i]
                if layer + 1 < call.layers and p.saved == NULL and call.directions == 1:
                    p.y.origin = b.first[begin]     # inference keeps one span of an inner layer's outputs
                if layer and p.x.sequence == NULL and p.saved == NULL and call.directions == 1:
                    p.x.origin = b.first[begin]
                forward_span(p, b, &own, begin, end, call.chunk, pointers)
            if meet(&all):
                return
            if call.masks != NULL and layer + 1 < call.layers:
                p = &call.passes[layer * call.directions]
                apply_mask(call.kernels, b, &call.masks[layer], &p.y, &call.passes[(layer + 1) * call.directions].x,
                           call.directions * p.d.out, begin, end, &all)
                if meet(&all):
                    return
        begin = end


cdef void backward_task(void *context, int rank, int size) noexcept nogil:
    cdef Call *call = <Call *>context
    cdef Batch *b = call.batch
    cdef Team all = make_team(call, 0, rank, size, rank == 0)
    cdef BackPass *p
    cdef int layer, d
    cdef void **pointers = call.pointers + rank * call.pointers_each
    for layer in range(call.layers - 1, -1, -1):
        for d in range(call.directions):
            p = &call.back[layer * call.directions + d]
            if backward_pass(p, b, &all, call.chunk, pointers):
                return
        if call.masks != NULL and layer:
            p = &call.back[layer * call.directions]
            apply_mask(call.kernels, b, &call.masks[layer - 1], &p.dx, &p.dx, p.d.inputs, 0, b.steps, &all)
            if meet(&all):
                return


ctypedef void (*task)(void *, int, int) noexcept nogil


cdef void prepare_call(void *context, int size) noexcept nogil:
    start_teams(<Call *>context, size)


cdef void run_team(Call *call, task work, int threads) noexcept nogil:
    """The call on up to `threads` threads; float32 flushes denormals to zero."""
    cdef bint single = call.kernels.itemsize == 4
    cdef unsigned control = fp_begin() if single else 0
    run_prepared(prepare_call, work, call, threads)
    if single:
        fp_end(control)


cdef int run_call(Call *call, task work, int threads, double multiplications) except -1:
    """The whole call, without the GIL unless it is over before another thread could make use of it."""
    if multiplications < WORTH_RELEASING:
        run_team(call, work, threads)
    else:
        with nogil:
            run_team(call, work, threads)
    if rc_stop_asked(&call.stop):
        return raise_pending()
    return 0


# ------------------------------------------------------------------------------------------------------------ network


cdef class Tape:
    """What backward needs of one forward call. It refers to x and y: changing them before backward is undefined."""
    cdef readonly Network network
    cdef Weights weights
    cdef Block memory
    cdef Batch batch
    cdef Pass *passes                  # saved, saved_c, saved_hidden, x and y are the tape's
    cdef View *mask_views
    cdef tuple arrays                  # x, y, h0, masks: kept alive
    cdef int layout
    cdef object offsets
    cdef ptrdiff_t user_steps
    cdef readonly list masks           # dropout masks between layers: (T, B, D*out)


cdef class Network:
    """Layers x directions of one cell with given sizes; it holds no weights, only scratch."""
    cdef const rc_kernels *kernels
    cdef int cell
    cdef readonly int layers, directions
    cdef list sizes
    cdef list scratch                  # blocks that no call uses now
    cdef readonly object dtype
    cdef readonly ptrdiff_t inputs, units, out

    def __init__(self, str cell, list sizes, int layers, int directions, dtype, bint blas=False):
        """sizes: (inputs, units, projection) of each direction of each layer."""
        self.dtype = np.dtype(dtype)
        self.cell, self.layers, self.directions = CELLS[cell], layers, directions
        self.sizes, self.scratch = sizes, []
        self.inputs, self.units, projection = sizes[0]
        self.out = projection or self.units
        blas = blas or os.environ.get("RNN_CORE_GEMM", "panel") == "blas" or self.dtype == np.float64
        if blas:
            from rnn_core._blas import tables
            self.kernels = table_of(tables(self.dtype.name))
        else:
            self.kernels = kernels_f32()

    def pack(self, list arrays):
        """arrays: (w_ih, w_hh, b_ih, b_hh, w_hr) of each direction of each layer; None where there is none."""
        return pack(self.kernels, self.cell, self.sizes, arrays)

    def takes(self, x):
        """Whether x is a 3-D array that the engine can read as it lies."""
        if not cnp.PyArray_CheckExact(x) or not cnp.PyArray_ISCARRAY_RO(x) or cnp.PyArray_NDIM(x) != 3:
            return False
        return cnp.PyArray_DIM(x, 2) == self.inputs and cnp.PyArray_TYPE(x) == (
            cnp.NPY_FLOAT32 if self.kernels.itemsize == 4 else cnp.NPY_FLOAT64)

    # -- threads

    cdef int team_size(self, ptrdiff_t rows) noexcept:
        """As many threads as have something to do: each needs a panel or a sequence, and work worth a barrier."""
        cdef int threads = num_threads()
        cdef double step
        if self.kernels.gemm != kernels_f32().gemm or threads == 1:
            return 1
        step = <double>rows * self.units * (self.out + self.inputs) * gates_of(self.cell)
        return <int>max(1, min(threads, step / WORTH_A_THREAD))

    cdef bint by_units(self, ptrdiff_t rows, int threads) noexcept:
        """Share out hidden units rather than sequences?"""
        return rows < 8 * threads

    # -- scratch

    cdef Block check_out(self, size_t bytes):
        cdef Block b
        try:
            b = self.scratch.pop()
        except IndexError:
            b = None
        if b is None or b.size < bytes:
            b = block(bytes)
        b.used = 0
        return b

    cdef void check_in(self, Block b):
        if len(self.scratch) < 8:
            self.scratch.append(b)


    # -- forward

    cdef ptrdiff_t chunk_of(self, const Batch *b) noexcept:
        """Steps to project at once."""
        cdef ptrdiff_t row = gates_of(self.cell) * whole(self.units, self.kernels.lanes) * self.kernels.itemsize
        cdef ptrdiff_t tokens = max(CHUNK_LEAST, min(CHUNK_MOST, CHUNK_BYTES // row))
        return max(1, min(b.steps, tokens // max(1, b.rows)))

    cdef size_t forward_bytes(self, const Batch *b, ptrdiff_t chunk, int threads, bint keep) except? 0:
        cdef size_t itemsize = self.kernels.itemsize, passes = self.layers * self.directions, rows = b.rows
        cdef size_t units = whole(self.units, self.kernels.lanes), gates = units * gates_of(self.cell)
        cdef size_t tokens = chunk * rows if self.directions == 1 else b.first[b.steps]
        cdef size_t each = padded(passes, sizeof(Pass)) // passes + 6 * padded(rows * units, itemsize)
        each += padded(chunk * rows * gates, itemsize) + padded(rows * gates, itemsize) + 3 * padded(rows, sizeof(char *))
        cdef size_t total = passes * (each + 64) + threads * padded(chunk * rows + rows, sizeof(void *))
        if not keep:
            total += self.layers * padded(tokens * self.directions * self.out, itemsize)
        return total + 4096

    cdef size_t tape_bytes(self, const Batch *b, bint dropout) except? 0:
        cdef size_t itemsize = self.kernels.itemsize, passes = self.layers * self.directions, n = b.first[b.steps]
        cdef size_t units = whole(self.units, self.kernels.lanes)
        cdef size_t each = padded(n * units * rc_saved_gates(<rc_cell>self.cell), itemsize) + 2 * padded(n * units, itemsize)
        each += 4 * padded(b.rows, sizeof(char *)) + sizeof(Pass) + sizeof(View) + 64
        return passes * each + self.layers * (1 + dropout) * (padded(n * self.directions * self.out, itemsize) + 64) + 4096

    cdef void set_pass(self, Pass *p, Direction *d, Block memory, const Batch *b, ptrdiff_t chunk) except *:
        """The scratch of one direction; views and tape are set by the caller."""
        cdef ptrdiff_t lanes = self.kernels.lanes, units = whole(d.units, lanes), out = whole(d.out, lanes)
        cdef size_t itemsize = self.kernels.itemsize, gates = rc_row_size(&d.w, lanes)
        memset(p, 0, sizeof(Pass))
        p.kernels, p.d = self.kernels, d
        p.h[0] = <char *>memory.take(b.rows * out * itemsize)
        p.h[1] = <char *>memory.take(b.rows * out * itemsize)
        p.c = <char *>memory.take_zeros(b.rows * units * itemsize)
        p.gates = <char *>memory.take(chunk * b.rows * gates * itemsize)
        if d.projection:
            p.hidden = <char *>memory.take_zeros(b.rows * units * itemsize)
        if d.cell == RC_GRU_RESET_BEFORE:
            p.reset = <char *>memory.take_zeros(b.rows * units * itemsize)
        if self.kernels.gemm != kernels_f32().gemm:
            p.product = <char *>memory.take(b.rows * gates * itemsize)

    cdef void set_tape(self, Pass *p, Block memory, const Batch *b) except *:
        cdef ptrdiff_t units = whole(p.d.units, self.kernels.lanes), n = b.first[b.steps]
        cdef size_t itemsize = self.kernels.itemsize
        p.saved = <char *>memory.take(n * units * rc_saved_gates(p.d.cell) * itemsize)
        if p.d.cell == RC_LSTM:
            p.saved_c = <char *>memory.take(n * units * itemsize)
        if p.d.projection:
            p.saved_hidden = <char *>memory.take(n * units * itemsize)

    cdef void set_states(self, Pass *p, const Batch *b, int index, object h0, object c0) except *:
        cdef ptrdiff_t lanes = self.kernels.lanes, i
        cdef size_t itemsize = self.kernels.itemsize
        for i in range(2):
            load_state(b, p.h[i], whole(p.d.out, lanes), part_of(h0, index, b.rows * p.d.out, itemsize), p.d.out,
                       itemsize)
        if p.d.cell == RC_LSTM:
            load_state(b, p.c, whole(p.d.units, lanes), part_of(c0, index, b.rows * p.d.units, itemsize), p.d.units,
                       itemsize)

    cdef void store_states(self, Pass *p, const Batch *b, int index, object hn, object cn) except *:
        cdef ptrdiff_t lanes = self.kernels.lanes, m, out = whole(p.d.out, lanes)
        cdef size_t itemsize = self.kernels.itemsize
        cdef char *to = part_of(hn, index, b.rows * p.d.out, itemsize)
        for m in range(b.rows):
            memcpy(to + b.order[m] * p.d.out * itemsize,
                   p.h[(b.steps if p.reverse else b.length[m]) % 2] + m * out * itemsize, p.d.out * itemsize)
        if p.d.cell == RC_LSTM:
            store_state(b, part_of(cn, index, b.rows * p.d.units, itemsize), p.c, whole(p.d.units, lanes), p.d.units,
                        itemsize)

    def forward(self, Weights weights, x, y, str layout, ptrdiff_t steps, ptrdiff_t rows, lengths, h0, c0, hn, cn,
                bint keep=False, list masks=None, states_c=None):
        """Run x through all layers into y, hn and cn; a Tape if `keep`.

        x (T, B, I), (B, T, I) or (tokens, I) and y likewise with D*out columns, hn (L*D, B, out), cn (L*D, B, units);
        lengths int64 (B,) or None; h0, c0 like hn, cn or None; masks: L-1 arrays of (tokens, D*out), or None;
        states_c like y with D*units columns: every step's c of the last layer.
        """
        cdef Tape tape = Tape.__new__(Tape)
        cdef Call call
        cdef Batch *b = &tape.batch
        cdef int threads = self.team_size(rows), code = LAYOUTS[layout]
        cdef size_t itemsize = self.kernels.itemsize
        cdef Block plan = block(batch_bytes(steps, rows)) if keep else self.check_out(batch_bytes(steps, rows))
        plan_batch(b, plan, steps, rows, lengths)
        cdef ptrdiff_t chunk = self.chunk_of(b), n = b.first[b.steps]
        cdef Block scratch = self.check_out(self.forward_bytes(b, chunk, threads, keep))
        cdef Block memory = block(self.tape_bytes(b, masks is not None)) if keep else scratch
        offsets = None
        if code == CONCATENATED:
            offsets = np.concatenate(([0], np.cumsum(lengths[:-1]))) if rows else np.zeros(0, np.int64)
        memset(&call, 0, sizeof(Call))
        call.kernels, call.batch, call.chunk = self.kernels, b, chunk
        call.layers, call.directions, call.units = self.layers, self.directions, self.by_units(rows, threads)
        call.passes = <Pass *>memory.take(self.layers * self.directions * sizeof(Pass))
        if masks is not None:
            call.masks = <View *>memory.take(self.layers * sizeof(View))
        self.set_passes(&call, weights, memory, scratch, keep, x, y, code, steps, offsets, masks, states_c)
        call.pointers_each = chunk * rows + rows
        call.pointers = <void **>scratch.take(threads * call.pointers_each * sizeof(void *))
        cdef int i
        for i in range(self.layers * self.directions):
            self.set_states(&call.passes[i], b, i, h0, c0)
        if n:
            run_call(&call, forward_task, threads, <double>n * self.work_of(weights))
        for i in range(self.layers * self.directions):
            self.store_states(&call.passes[i], b, i, hn, cn)
        self.check_in(scratch)
        if not keep:
            self.check_in(plan)
            return None
        tape.network, tape.weights, tape.memory, tape.passes, tape.mask_views = self, weights, memory, call.passes, call.masks
        tape.arrays, tape.layout, tape.offsets, tape.user_steps = (x, y, h0, plan), code, offsets, steps
        tape.masks = masks
        return tape

    cdef double work_of(self, Weights weights) noexcept:
        """Multiply-adds for one token."""
        cdef double work = 0
        cdef int i
        for i in range(weights.count):
            work += <double>weights.directions[i].units * (weights.directions[i].inputs + weights.directions[i].out)
        return work * gates_of(self.cell)

    cdef int set_passes(self, Call *call, Weights weights, Block memory, Block scratch, bint keep, x, y, int layout,
                        ptrdiff_t steps, offsets, list masks, states_c) except -1:
        cdef Batch *b = call.batch
        cdef Pass *p
        cdef int layer, d, i
        cdef size_t itemsize = self.kernels.itemsize
        cdef ptrdiff_t width = self.directions * self.out
        cdef ptrdiff_t tokens = b.first[b.steps] if keep or self.directions == 2 else call.chunk * b.rows
        cdef char *inner = NULL
        cdef char *below = NULL
        cdef char *dropped = NULL
        for layer in range(self.layers):
            below = inner if masks is None else dropped
            if layer + 1 < self.layers:
                inner = <char *>memory.take(tokens * width * itemsize)
                if masks is not None:
                    call.masks[layer] = user_view(memory, b, masks[layer], TIME_MAJOR, width, 0, steps, None, itemsize)
                    dropped = <char *>memory.take(tokens * width * itemsize)
            for d in range(self.directions):
                i = layer * self.directions + d
                p = &call.passes[i]
                self.set_pass(p, &weights.directions[i], scratch, b, call.chunk)
                p.reverse = d == 1
                if keep:
                    self.set_tape(p, memory, b)
                p.x = compact_view(below, width, 0, itemsize)
                if layer == 0:
                    p.x = user_view(memory, b, x, layout, self.inputs, 0, steps, offsets, itemsize)
                p.y = compact_view(inner, width, d * self.out, itemsize)
                if layer + 1 == self.layers:
                    p.y = user_view(memory, b, y, layout, width, d * self.out, steps, offsets, itemsize)
                    p.states_c = user_view(memory, b, states_c, layout, self.directions * self.units, d * self.units,
                                           steps, offsets, itemsize)
        return 0

    # -- backward

    def backward(self, Tape tape, dy, dhn, dcn, list grads, dx, dh0, dc0):
        """Gradients of one forward call: adds into grads (per direction dW, dR, db_ih, db_hh, dW_hr; None where
        unwanted) and writes dx (or None), dh0 and dc0. dy, dhn, dcn as y, hn, cn, or None for zero."""
        cdef Call call
        cdef Batch *b = &tape.batch
        cdef int i, count = self.layers * self.directions, threads = self.team_size(b.rows)
        cdef ptrdiff_t lanes = self.kernels.lanes, n = b.first[b.steps]
        cdef size_t itemsize = self.kernels.itemsize
        tape.weights.need_backward()
        memset(&call, 0, sizeof(Call))
        call.kernels, call.batch, call.layers, call.directions = self.kernels, b, self.layers, self.directions
        call.chunk = max(1, min(b.steps, BACK_TOKENS // max(1, b.rows)))
        call.units = self.by_units(b.rows, threads) and self.out == self.units
        cdef Block scratch = self.check_out(self.backward_bytes(b, call.chunk, threads))
        call.back = <BackPass *>scratch.take(count * sizeof(BackPass))
        call.pointers_each = 2 * (call.chunk + 1) * b.rows
        call.pointers = <void **>scratch.take(threads * call.pointers_each * sizeof(void *))
        if tape.masks is not None:
            call.masks = tape.mask_views
        self.set_back_passes(&call, tape, scratch, dy, dhn, dcn, grads, dx)
        if n:
            run_call(&call, backward_task, threads, 2.0 * n * self.work_of(tape.weights))
        for i in range(count):
            store_state(b, part_of(dh0, i, b.rows * self.out, itemsize), call.back[i].dh, whole(self.out, lanes),
                        self.out, itemsize)
            if self.cell == RC_LSTM:
                store_state(b, part_of(dc0, i, b.rows * self.units, itemsize), call.back[i].dc,
                            whole(self.units, lanes), self.units, itemsize)
        self.check_in(scratch)

    cdef ptrdiff_t dz_stride(self, const Direction *d) noexcept:
        """Elements between dz rows: whole cache lines, and never a multiple of a page, since the rows of one column
        would then all fall into the same few lines of the cache."""
        cdef ptrdiff_t line = 64 // <ptrdiff_t>self.kernels.itemsize, row = (d.dz + line - 1) // line * line
        return row + line if row % (16 * line) == 0 else row

    cdef size_t backward_bytes(self, const Batch *b, ptrdiff_t chunk, int threads) except? 0:
        cdef size_t itemsize = self.kernels.itemsize, rows = b.rows, units = whole(self.units, self.kernels.lanes)
        cdef size_t each = sizeof(BackPass) + 4 * padded(rows * units, itemsize) + 5 * padded(rows, sizeof(void *)) + 64
        cdef size_t shared = padded(chunk * rows * (4 * units + 64), itemsize) + 2 * padded(chunk * rows * units, itemsize)
        cdef size_t inner = 2 * padded(b.first[b.steps] * self.directions * self.out, itemsize)
        return (self.layers * self.directions * each + shared + inner + padded(self.inputs + 2 * units, itemsize)
                + threads * padded(2 * (chunk + 1) * rows, sizeof(void *)) + 4096)

    cdef int set_back_passes(self, Call *call, Tape tape, Block scratch, dy, dhn, dcn, list grads, dx) except -1:
        """One after the other the directions share dz; the gradient between two layers has two buffers in turn."""
        cdef Batch *b = call.batch
        cdef BackPass *p
        cdef Pass *q
        cdef int layer, d, i
        cdef ptrdiff_t lanes = self.kernels.lanes, units = whole(self.units, lanes), m, width = self.directions * self.out
        cdef size_t itemsize = self.kernels.itemsize
        cdef char *inner[2]
        cdef char *zeros = <char *>scratch.take_zeros(units * itemsize)
        cdef char *dz = <char *>scratch.take(call.chunk * b.rows * (4 * units + 64) * itemsize)
        cdef char *douts = <char *>scratch.take(call.chunk * b.rows * units * itemsize)
        cdef char *resets = <char *>scratch.take(call.chunk * b.rows * units * itemsize)
        x, y, h0 = tape.arrays[:3]
        for i in range(2):
            inner[i] = <char *>scratch.take(b.first[b.steps] * width * itemsize)
        memset(douts, 0, call.chunk * b.rows * units * itemsize)
        for layer in range(self.layers):
            for d in range(self.directions):
                i = layer * self.directions + d
                p, q = &call.back[i], &tape.passes[i]
                memset(p, 0, sizeof(BackPass))
                p.kernels, p.d, p.reverse, p.x, p.y = self.kernels, q.d, q.reverse, q.x, q.y
                p.saved, p.saved_c, p.saved_hidden = q.saved, q.saved_c, q.saved_hidden
                p.dz, p.dz_row, p.douts, p.resets = dz, self.dz_stride(q.d), douts, resets
                p.need_dx, p.add_dx = layer > 0 or dx is not None, d == 1
                p.dx = compact_view(inner[layer % 2], width, 0, itemsize)
                if layer == 0:
                    p.dx = user_view(scratch, b, dx, tape.layout, self.inputs, 0, tape.user_steps, tape.offsets, itemsize)
                p.dy = compact_view(inner[(layer + 1) % 2], width, d * self.out, itemsize)
                if layer + 1 == self.layers:
                    p.dy = user_view(scratch, b, dy, tape.layout, width, d * self.out, tape.user_steps, tape.offsets,
                                     itemsize)
                p.dh = <char *>scratch.take(b.rows * units * itemsize)
                p.dc = <char *>scratch.take(b.rows * units * itemsize)
                p.dhidden = <char *>scratch.take_zeros(b.rows * units * itemsize)
                p.reset = <char *>scratch.take_zeros(b.rows * units * itemsize)
                load_state(b, p.dh, whole(self.out, lanes), part_of(dhn, i, b.rows * self.out, itemsize), self.out, itemsize)
                load_state(b, p.dc, units, part_of(dcn, i, b.rows * self.units, itemsize), self.units, itemsize)
                p.h0 = <void **>scratch.take(b.rows * sizeof(void *))
                for m in range(b.rows):
                    p.h0[m] = zeros
                    if h0 is not None:
                        p.h0[m] = part_of(h0, i * b.rows + b.order[m], self.out, itemsize)
                dw, dr, db_ih, db_hh, dp = grads[i]
                p.dw, p.dr, p.dp = part_of(dw, 0, 0, itemsize), part_of(dr, 0, 0, itemsize), part_of(dp, 0, 0, itemsize)
                p.db_ih, p.db_hh = part_of(db_ih, 0, 0, itemsize), part_of(db_hh, 0, 0, itemsize)
        return 0


cdef int gates_of(int cell) noexcept nogil:
    return 4 if cell == RC_LSTM else 1 if cell <= RC_RNN_RELU else 3


cdef const rc_kernels *table_of(object capsule) except NULL:
    return <const rc_kernels *>PyCapsule_GetPointer(capsule, "rnn_core.kernels")


def activate(str function, x, bint double=False):
    """exp, sigmoid or tanh of a float32 (or float64) array by the kernels: for tests."""
    cdef const rc_kernels *k = kernels_f64() if double else kernels_f32()
    values = np.ascontiguousarray(x, np.float64 if double else np.float32)
    result = np.empty_like(values)
    cdef unsigned control = fp_begin()
    k.activate(["exp", "sigmoid", "tanh"].index(function), cnp.PyArray_DATA(values), cnp.PyArray_DATA(result), values.size)
    fp_end(control)
    return result
