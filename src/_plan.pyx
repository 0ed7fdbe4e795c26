"""Packed weights, the order of a ragged batch, teams of threads, and memory: what the time loops are planned with."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign

import numpy as np
cimport numpy as cnp

from rnn_core._kernels cimport *
from rnn_core._runtime cimport barrier_wait, fp_begin, fp_end, tick

cnp.import_array()

cdef extern from "pages.h" nogil:
    void rc_use_huge_pages(void *data, size_t bytes)

cdef enum:
    CACHE_LINE = 64
    HUGE_PAGE = 1 << 21                # large weights are streamed at each step: fewer, larger pages do it faster

# ------------------------------------------------------------------------------------------------------------ memory


cdef class Block:
    """A block of memory that starts on a cache line; every field taken from it does too."""

    def __dealloc__(self):
        free(self.data)

    cdef void *take(self, size_t bytes):
        cdef char *field = self.data + self.used
        self.used += (bytes + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
        return field

    cdef void *take_zeros(self, size_t bytes):
        cdef void *field = self.take(bytes)
        memset(field, 0, bytes)
        return field


cdef Block block(size_t bytes):
    """Of a large block the large pages are those that it fills to the half: the rest stays in small ones."""
    cdef Block b = Block.__new__(Block)
    cdef bint large = bytes >= HUGE_PAGE // 2
    cdef size_t huge = (bytes + HUGE_PAGE // 2) // HUGE_PAGE * HUGE_PAGE
    b.size = max(bytes + CACHE_LINE, huge)
    if posix_memalign(<void **>&b.data, HUGE_PAGE if large else CACHE_LINE, b.size) != 0:
        raise MemoryError(f"cannot allocate {bytes} bytes")
    if large:
        rc_use_huge_pages(b.data, huge)
    return b


cdef Block reuse(list blocks, size_t least, size_t most):
    """The last of `blocks`, taken out of them, if it has from `least` to `most` bytes; else a new one."""
    cdef Block b
    try:
        b = blocks.pop()  # not after a look: without the GIL another thread may be faster
    except IndexError:
        b = None
    if b is None or not least <= b.size <= most:
        b = block(least)
    b.used = 0
    return b


cdef size_t padded(size_t count, size_t size) except? 0:
    """Bytes that `count` elements of `size` bytes take in a Block."""
    if size and count > (<size_t>1 << 62) // size:
        raise MemoryError(f"{count} elements of {size} bytes are more than the address space holds")
    return (count * size + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE


# ------------------------------------------------------------------------------------------------------------- teams


cdef bint meet(Team *team) noexcept nogil:
    """Wait for the team; true when the call is to be left, for all members alike."""
    if team.size > 1:
        if team.rank == 0:
            rc_stop_announce(team.stop, team.call, team.count)
        barrier_wait(team.barrier)
        team.count += 1
        return rc_stop_leave(team.stop, team.count - 1)
    return rc_stop_asked(team.call)


cdef bint interrupted(Team *team, int steps) noexcept nogil:
    """After so many steps: look for signals (the leader), and tell whether this thread may leave its loop now: only
    where nobody waits."""
    if team.leader:
        team.until_look -= steps
        if team.until_look <= 0:
            team.until_look = team.look_every
            if tick(&team.tick) != 0:
                rc_stop_set(team.call)
    return not team.meets and rc_stop_asked(team.call)


cdef void share(ptrdiff_t n, int rank, int size, ptrdiff_t *begin, ptrdiff_t *end) noexcept nogil:
    """The part of n equal pieces that falls to `rank`. Who takes one more goes in turn with n: where n changes, as in a
    ragged batch, the others would always wait for the same ones."""
    cdef ptrdiff_t turn = n // size % size
    begin[0] = (n * rank + turn) // size
    end[0] = (n * (rank + 1) + turn) // size


cdef void share_panels(ptrdiff_t columns, ptrdiff_t each, const Team *team, ptrdiff_t *begin,
                       ptrdiff_t *end) noexcept nogil:
    """The panels of `each` columns that fall to a thread. It is the columns that are shared out evenly: the last panel
    may have fewer, and then cost less."""
    cdef ptrdiff_t panels = (columns + each - 1) // each, n = each * team.size
    begin[0] = min((columns * team.rank + n // 2) // n, panels)
    end[0] = panels if team.rank + 1 == team.size else min((columns * (team.rank + 1) + n // 2) // n, panels)


# ----------------------------------------------------------------------------------------------------------- weights


cdef void set_segments(Direction *d) noexcept nogil:
    """The layout of a dz row (kernels.h, rc_step_back) and whose gradients its columns are."""
    cdef ptrdiff_t h = d.units
    cdef Segment n_gate, rz_gates
    n_gate.column, n_gate.row, n_gate.count = 0, 2 * h, h
    rz_gates.column, rz_gates.row, rz_gates.count = h, 0, 2 * h
    d.inputs_count = d.recurrent_count = 1
    d.input[0].column = d.input[0].row = 0
    d.dz = d.input[0].count = 4 * h if d.cell == RC_LSTM else h
    d.recurrent[0] = d.input[0]
    if d.cell == RC_GRU or d.cell == RC_GRU_RESET_BEFORE:
        d.inputs_count = 2
        d.input[0], d.input[1] = n_gate, rz_gates
        if d.cell == RC_GRU:
            d.dz = 4 * h
            d.recurrent[0].column, d.recurrent[0].row, d.recurrent[0].count = h, 0, 3 * h
        else:
            d.dz = 3 * h
            d.recurrent_count = 2
            d.recurrent[0], d.recurrent[1] = rz_gates, n_gate


cdef int gates_of(int cell) noexcept nogil:
    return 4 if cell == RC_LSTM else 1 if cell <= RC_RNN_RELU else 3


cdef void set_shapes(Direction *d) noexcept nogil:
    cdef ptrdiff_t h = d.units
    cdef int gates = gates_of(d.cell)
    d.w = shape_of(d.inputs, h, gates)
    d.r = shape_of(d.out, h, gates)
    d.p = shape_of(h, d.projection, 1)
    d.wt = shape_of(gates * h, d.inputs, 1)
    d.rt = shape_of(d.recurrent[0].count, d.out, 1)
    d.pt = shape_of(d.projection, h, 1)
    if d.cell == RC_GRU_RESET_BEFORE:
        d.r.gates = 2
        d.rn = shape_of(h, h, 1)
        d.rnt = shape_of(h, h, 1)
    d.chains = rc_chains(gates, h)


cdef const void *data_of(object array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(array)


cdef class Weights:
    """The weights of all layers and directions, packed for one set of kernels."""

    def __dealloc__(self):
        free(self.directions)

    cdef size_t bytes_of(self, const rc_shape *shape) except? 0:
        return padded(rc_packed_size(shape, self.kernels.lanes), self.kernels.itemsize)

    cdef void *packed(self, Block memory, const rc_shape *shape, object array, ptrdiff_t column_stride,
                      ptrdiff_t row_stride, ptrdiff_t offset) except NULL:
        cdef size_t itemsize = self.kernels.itemsize
        cdef const char *source = <const char *>data_of(array) + offset * <ptrdiff_t>itemsize
        cdef void *to = memory.take(self.bytes_of(shape))
        with nogil:
            self.kernels.pack(shape, source, column_stride, row_stride, to)
        return to

    cdef int pack_forward(self, Direction *d, tuple arrays) except -1:
        w, r, b_ih, b_hh, w_hr, *norms = arrays
        cdef ptrdiff_t h = d.units, lanes = self.kernels.lanes
        cdef size_t itemsize = self.kernels.itemsize, tail = padded(whole(h, lanes), itemsize)
        cdef Block b = block(padded(rc_row_size(&d.w, lanes), itemsize) + tail + self.bytes_of(&d.w)
                             + self.bytes_of(&d.r) + self.bytes_of(&d.rn) + self.bytes_of(&d.p)
                             + 2 * padded(rc_row_size(&d.w, lanes), itemsize) * bool(norms))
        cdef int which
        d.w_packed = self.packed(b, &d.w, w, d.inputs, 1, 0)
        d.r_packed = self.packed(b, &d.r, r, d.out, 1, 0)
        if d.cell == RC_GRU_RESET_BEFORE:
            d.rn_packed = self.packed(b, &d.rn, r, d.out, 1, 2 * h * h)
        if d.projection:
            d.p_packed = self.packed(b, &d.p, w_hr, h, 1, 0)
        d.bias = b.take(rc_row_size(&d.w, lanes) * itemsize)
        d.bias_n = b.take_zeros(whole(h, lanes) * itemsize)
        self.blocks.append(b)
        d.normed = bool(norms)
        for which in range(len(norms) // 2):
            d.gain[which] = <const char *>data_of(norms[2 * which])
            d.shift[which] = <const char *>data_of(norms[2 * which + 1])
        return self.pack_bias_apart(d, b, b_ih, b_hh) if d.normed else self.pack_biases(d, b_ih, b_hh)

    cdef int pack_biases(self, Direction *d, b_ih, b_hh) except -1:
        """Both in one, but for the b_hn of a GRU that is multiplied by r."""
        cdef ptrdiff_t h = d.units
        cdef size_t itemsize = self.kernels.itemsize
        cdef const char *hidden = <const char *>data_of(b_hh)
        cdef rc_shape n = shape_of(0, h, 1)
        if d.cell == RC_GRU and hidden != NULL:
            self.kernels.pack_bias(&n, hidden + 2 * h * itemsize, NULL, d.bias_n)
            b_hh = b_hh.copy()
            b_hh[2 * h:] = 0
        self.kernels.pack_bias(&d.w, data_of(b_ih), data_of(b_hh), d.bias)
        return 0

    cdef int pack_bias_apart(self, Direction *d, Block b, b_ih, b_hh) except -1:
        """Each on its own, since each is normalised with its product."""
        cdef const char *hidden = <const char *>data_of(b_hh)
        cdef size_t itemsize = self.kernels.itemsize
        self.kernels.pack_bias(&d.w, data_of(b_ih), NULL, d.bias)
        d.bias_hh = b.take(rc_row_size(&d.r, self.kernels.lanes) * itemsize)
        self.kernels.pack_bias(&d.r, hidden, NULL, d.bias_hh)
        if d.cell == RC_GRU_RESET_BEFORE:
            d.bias_rn = b.take(rc_row_size(&d.rn, self.kernels.lanes) * itemsize)
            if hidden != NULL:
                hidden += 2 * d.units * itemsize
            self.kernels.pack_bias(&d.rn, hidden, NULL, d.bias_rn)
        return 0

    cdef int pack_transposed(self, Direction *d, tuple arrays) except -1:
        w, r, w_hr = arrays[0], arrays[1], arrays[4]
        cdef ptrdiff_t h = d.units
        cdef Block b = block(self.bytes_of(&d.wt) + self.bytes_of(&d.rt) + self.bytes_of(&d.rnt)
                             + self.bytes_of(&d.pt))
        self.blocks.append(b)
        if d.inputs_count == 2:  # rows of W in the order of a dz row: n before r and z
            w = np.concatenate((w[2 * h:], w[:2 * h]))
        d.wt_packed = self.packed(b, &d.wt, w, 1, d.inputs, 0)
        d.rt_packed = self.packed(b, &d.rt, r, 1, d.out, 0)
        if d.cell == RC_GRU_RESET_BEFORE:
            d.rnt_packed = self.packed(b, &d.rnt, r, 1, d.out, 2 * h * h)
        if d.projection:
            d.pt_packed = self.packed(b, &d.pt, w_hr, 1, h, 0)
        return 0

    def table(self, embedding, int directions):
        """The first layer's input projection of every row of `embedding` (V, inputs). Network.has_tables says whether
        that has the bits of a projection of each token."""
        cdef Table found = Table.__new__(Table)
        cdef int i
        found.rows = embedding
        found.blocks = [gate_rows(self.kernels, &self.directions[i], cnp.PyArray_DATA(embedding), len(embedding))
                        for i in range(directions)]
        return found

    cdef int need_backward(self) except -1:
        """Pack what only backward reads, once."""
        cdef int i
        if not self.has_backward:
            for i in range(self.count):
                self.pack_transposed(&self.directions[i], self.arrays[i])
            self.has_backward = True
        return 0


cdef Weights pack(const rc_kernels *kernels, int cell, list sizes, list arrays):
    """Weights of directions of `sizes` (inputs, units, projection), each with its arrays."""
    cdef Weights weights = Weights.__new__(Weights)
    cdef Direction *d
    cdef int i
    weights.kernels, weights.blocks, weights.arrays, weights.count = kernels, [], arrays, len(arrays)
    weights.directions = <Direction *>calloc(max(1, len(arrays)), sizeof(Direction))
    if weights.directions == NULL:
        raise MemoryError("cannot allocate the plan of the layers")
    for i, (inputs, units, projection) in enumerate(sizes):
        d = &weights.directions[i]
        d.cell, d.inputs, d.units, d.projection = <rc_cell>cell, inputs, units, projection
        d.out = projection if projection else units
        set_segments(d)
        set_shapes(d)
        weights.pack_forward(d, arrays[i])
    return weights


cdef void multiply(const rc_kernels *kernels, const rc_shape *shape, const void *packed, const void *bias,
                   bint accumulate, bint padded, rc_rows a, rc_rows c, ptrdiff_t n) noexcept nogil:
    cdef rc_gemm job = product_job(kernels, shape, packed, bias, accumulate, padded, a, c, n)
    kernels.gemm(&job)


cdef void add_outer(const rc_kernels *kernels, rc_rows a, rc_rows x, ptrdiff_t rows, ptrdiff_t n, void *c,
                    ptrdiff_t c_stride, ptrdiff_t begin, ptrdiff_t end, void *columns=NULL) noexcept nogil:
    cdef rc_outer job = outer_job(a, x, rows, n, c, c_stride, begin, end, columns)
    kernels.outer(&job)


cdef void project(const rc_kernels *kernels, const Direction *d, rc_rows a, rc_rows c, ptrdiff_t n) noexcept nogil:
    multiply(kernels, &d.w, d.w_packed, d.bias, False, True, a, c, n)


cdef Block gate_rows(const rc_kernels *kernels, const Direction *d, const void *embedding, ptrdiff_t tokens):
    cdef ptrdiff_t row = rc_row_size(&d.w, kernels.lanes)
    cdef Block b = block(padded(row * tokens, kernels.itemsize))
    cdef unsigned control = fp_begin() if kernels.itemsize == 4 else 0
    project(kernels, d, rows_at(embedding, d.inputs), rows_at(b.data, row), tokens)
    if kernels.itemsize == 4:
        fp_end(control)
    return b


# ------------------------------------------------------------------------------------------------- batches and rows

def longest_first(lengths):
    """The order in which a batch's sequences are taken: int64 (B,)."""
    return np.argsort(-lengths, kind="stable")


cdef Block plan_batch(Batch *b, ptrdiff_t steps, ptrdiff_t rows, object lengths, object order_of):
    """Sort by length, longest first (or take that order as given), and count who runs when."""
    cdef Block memory = block(2 * padded(steps + 1, sizeof(ptrdiff_t)) + 2 * padded(rows, sizeof(ptrdiff_t)))
    cdef cnp.int64_t[::1] order, length
    cdef ptrdiff_t t, m, begin = 0, tokens = 0
    b.rows, b.parts = rows, 1
    b.active = <ptrdiff_t *>memory.take((steps + 1) * sizeof(ptrdiff_t))
    b.first = <ptrdiff_t *>memory.take((steps + 1) * sizeof(ptrdiff_t))
    b.order = <ptrdiff_t *>memory.take(rows * sizeof(ptrdiff_t))
    b.length = <ptrdiff_t *>memory.take(rows * sizeof(ptrdiff_t))
    b.steps = steps if rows else 0
    if lengths is None:
        for m in range(rows):
            b.order[m], b.length[m] = m, steps
    else:
        order = longest_first(lengths) if order_of is None else order_of
        length = lengths
        for m in range(rows):
            b.order[m] = order[m]
            b.length[m] = length[order[m]]
        b.steps = b.length[0] if rows else 0
    b.first[0] = 0
    for m in range(rows, 0, -1):  # the first m together, from the end of the next one to that of the last
        for t in range(begin, b.length[m - 1]):
            tokens += m
            b.active[t], b.first[t + 1] = m, tokens
        begin = b.length[m - 1]
    return memory


cdef Block plan_chunks(Chunks *c, const Batch *b, ptrdiff_t most):
    """Chunks of at most `most` tokens, unless a step alone has more; they live as long as the block."""
    cdef Block memory = block((b.steps + 1) * sizeof(ptrdiff_t))
    cdef ptrdiff_t t, tokens = 0
    c.begin = <ptrdiff_t *>memory.data
    c.count = c.tokens = 0
    for t in range(b.steps):
        if t == 0 or tokens + b.active[t] > most:
            c.begin[c.count] = t
            c.count += 1
            tokens = 0
        tokens += b.active[t]
        c.tokens = max(c.tokens, tokens)
    c.begin[c.count] = b.steps
    return memory


cdef Plan make_plan(ptrdiff_t steps, ptrdiff_t rows, ptrdiff_t most, object lengths, object order=None):
    cdef Plan p = Plan.__new__(Plan)
    p.steps, p.rows, p.most = steps, rows, most
    p.memory = plan_batch(&p.batch, steps, rows, lengths, order)
    p.chunk_memory = plan_chunks(&p.chunks, &p.batch, most)
    return p


cdef Plan plan_of(list kept, ptrdiff_t steps, ptrdiff_t rows, ptrdiff_t most, object lengths, object order):
    cdef Plan last
    if lengths is not None:
        return make_plan(steps, rows, most, lengths, order)
    if kept:  # never emptied again: without the GIL another thread may only have replaced what it holds
        last = kept[0]
        if last.steps == steps and last.rows == rows and last.most == most:
            return last
    last = make_plan(steps, rows, most, None)
    kept[:] = [last]
    return last


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
    v.steps = 0 if layout == CONCATENATED else steps
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
    v.sequence, v.step, v.steps, v.origin = NULL, 0, 0, 0
    v.row = width * <ptrdiff_t>itemsize
    v.base = NULL if base == NULL else <char *>base + column * itemsize
    return v


cdef void clear_padding(const View *v, const Batch *b, size_t bytes, const Team *team) noexcept nogil:
    """Zero `bytes` of every token past its sequence's end; each thread takes a part of the sequences."""
    cdef ptrdiff_t t, m = team.rank
    while m < b.rows:
        for t in range(b.length[m], v.steps):
            memset(v.sequence[m] + t * v.step, 0, bytes)
        m += team.size


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


cdef char *part_of(object array, ptrdiff_t index, ptrdiff_t size, size_t itemsize) noexcept:
    """Element `index` of an array of parts of `size` elements; NULL where there is no array."""
    return NULL if array is None else <char *>cnp.PyArray_DATA(array) + index * size * <ptrdiff_t>itemsize
