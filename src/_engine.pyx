"""The engine as Python sees it: a Network runs forward and backward over arrays that have been checked.

One call is one parallel region: every thread walks through layers, directions and time, and waits for the others where
it needs what they compute.
"""

from libc.stdint cimport SIZE_MAX, int64_t
from libc.string cimport memset
from cpython.pycapsule cimport PyCapsule_GetPointer

import os

import numpy as np
cimport numpy as cnp

from rnn_core._backward cimport BackPass
from rnn_core._forward cimport Pass, saves_units, set_pass, set_states, set_tape, store_states
from rnn_core._gradients cimport groups_of, second_size, take_second
from rnn_core._kernels cimport *
from rnn_core._norms cimport norm_back_bytes, norm_bytes, take_norms, take_norms_back
from rnn_core._plan cimport BATCH_FIRST, CONCATENATED, LN_HH, LN_IH, PACKED, TIME_MAJOR, Batch, Block, Direction, \
    Plan, Table, View, Weights, compact_view, equally_long, gates_of, load_state, make_plan, pack, padded, part_of, \
    plan_chunks, plan_of, reuse, store_state, user_view, whole
from rnn_core._region cimport Call, backward_task, forward_task, run_call, staged_task
from rnn_core._runtime cimport cache_bytes, kernels_f32, num_threads, rc_pace
from rnn_core._variants cimport Variants

cnp.import_array()

CELLS = {"rnn_tanh": RC_RNN_TANH, "rnn_relu": RC_RNN_RELU, "lstm": RC_LSTM, "gru": RC_GRU,
         "gru_reset_before": RC_GRU_RESET_BEFORE}
LAYOUTS = {"time_major": TIME_MAJOR, "batch_first": BATCH_FIRST, "concatenated": CONCATENATED,
           "packed": PACKED}  # as torch's PackedSequence: our compact rows, of sequences from the longest down

cdef enum:
    # Tokens of the steps that are taken together: forward, at most so many for each thread, and at least a quarter of
    # them; backward, whatever the threads, those whose part of the weights' gradients is summed at once.
    CHUNK_TOKENS = 256
    # Below this many multiply-adds a step and thread, a barrier costs more than another thread saves.
    WORTH_A_THREAD = 1 << 14
    # With smaller steps threads take turns with the chunks of a call of so many in all: with so many chunks, of at
    # least so many tokens.
    WORTH_STAGES = 1 << 19
    STAGED_CHUNKS = 8
    STAGED_TOKENS = 12


# ------------------------------------------------------------------------------------------------------------ network


cdef class Tape:
    """What backward needs of one forward call. It refers to x and y: changing them before backward is undefined."""
    cdef readonly Network network
    cdef Weights weights
    cdef Block memory
    cdef Batch batch
    cdef Pass *passes                  # saved, saved_unit, saved_hidden, x and y are the tape's
    cdef View *mask_views
    cdef tuple arrays                  # x, y, h0, masks: kept alive
    cdef int layout
    cdef object offsets
    cdef ptrdiff_t user_steps
    cdef Variants variant              # or None
    cdef Table table                   # or None
    cdef readonly list masks           # dropout masks between layers: (T, B, D*out)

    def __del__(self):
        """A training loop makes the next tape in the same memory, whose pages are there already."""
        if self.memory is not None and self.network is not None:
            self.network.keep_spare(self.memory)


cdef class Network:
    """Layers x directions of one cell with given sizes; it holds no weights, only scratch."""
    cdef const rc_kernels *kernels
    cdef int cell
    cdef readonly int layers, directions
    cdef list sizes
    cdef list scratch                  # blocks that no call uses now
    cdef list spare                    # memory of a tape that is gone
    cdef list plans                    # at most one, of the last batch of equal lengths
    cdef readonly object dtype
    cdef readonly ptrdiff_t inputs, units, out

    def __init__(self, str cell, list sizes, int layers, int directions, dtype, bint blas=False):
        """sizes: (inputs, units, projection) of each direction of each layer."""
        self.dtype = np.dtype(dtype)
        self.cell, self.layers, self.directions = CELLS[cell], layers, directions
        self.sizes, self.scratch, self.spare, self.plans = sizes, [], [], []
        self.inputs, self.units, projection = sizes[0]
        self.out = projection or self.units
        blas = blas or os.environ.get("RNN_CORE_GEMM", "panel") == "blas" or self.dtype == np.float64
        if blas:
            from rnn_core._blas import tables
            self.kernels = <const rc_kernels *>PyCapsule_GetPointer(tables(self.dtype.name), "rnn_core.kernels")
        else:
            self.kernels = kernels_f32()

    def pack(self, list arrays):
        """arrays: (w_ih, w_hh, b_ih, b_hh, w_hr) of each direction of each layer; None where there is none. With layer
        normalisation they go on with gain and shift of W x, of R h, and of an LSTM's c."""
        return pack(self.kernels, self.cell, self.sizes, arrays)

    def has_tables(self):
        """Whether Weights.table gives what the projection of each token would: the products of these kernels have the
        same bits for any number of rows."""
        return self.kernels == kernels_f32()

    # -- threads

    cdef int team_size(self, ptrdiff_t rows) noexcept:
        """As many threads as have something to do: each needs a panel or a sequence, and work worth a barrier."""
        cdef int threads = num_threads()
        cdef double step
        if self.kernels.gemm != kernels_f32().gemm or threads == 1:
            return 1
        step = <double>rows * self.units * (self.out + self.inputs) * gates_of(self.cell)
        return <int>max(1, min(threads, step / WORTH_A_THREAD))

    def chunk_ends(self, ptrdiff_t steps, ptrdiff_t rows, lengths):
        """Steps after which backward sums up the weights' gradients, int64: pieces of a batch that end there give the
        bits of the whole."""
        cdef Plan p = make_plan(steps, rows, CHUNK_TOKENS, lengths)
        cdef ptrdiff_t i
        return np.array([p.chunks.begin[i + 1] for i in range(p.chunks.count)], np.int64)

    cdef bint by_units(self, ptrdiff_t rows, int threads) noexcept:
        """Share out hidden units rather than sequences? They then wait for each other once a step, and each reads
        only its part of R. That pays for the more sequences the less of R one core's cache holds."""
        cdef size_t weights = self.units * self.out * gates_of(self.cell) * self.kernels.itemsize
        cdef size_t cache = cache_bytes(2)
        return rows < (4 if 2 * weights <= cache else 8 if weights <= cache else 32) * threads

    cdef ptrdiff_t chunk_tokens(self) noexcept:
        """As many for each thread as half of its L2 holds the gates of: the recurrence finds them there."""
        cdef size_t row = whole(self.units, self.kernels.lanes) * gates_of(self.cell) * self.kernels.itemsize
        return max(CHUNK_TOKENS // 4, min(<ptrdiff_t>(cache_bytes(2) // 2 // row), CHUNK_TOKENS))

    cdef int stage_threads(self, Weights weights, ptrdiff_t tokens) noexcept:
        """How many threads take turns with the chunks of a call whose steps are too small to be shared out."""
        if self.directions == 2 or self.kernels.gemm != kernels_f32().gemm:
            return 1
        if tokens * self.work_of(weights) < WORTH_STAGES or tokens < STAGED_CHUNKS * STAGED_TOKENS:
            return 1
        return min(num_threads(), 2 * self.layers)

    # -- scratch

    cdef Block check_out(self, size_t bytes):
        return reuse(self.scratch, bytes, SIZE_MAX)

    cdef void check_in(self, Block b):
        if len(self.scratch) < 8:
            self.scratch.append(b)

    cdef Block tape_block(self, size_t bytes):
        """Memory for a tape: a spare one unless it is too small, or so large that it would be a waste."""
        return reuse(self.spare, bytes, 2 * bytes)

    cdef void keep_spare(self, Block b):
        if not self.spare:
            self.spare.append(b)

    # -- forward

    cdef size_t forward_bytes(self, const Batch *b, ptrdiff_t chunk, int threads, bint keep) except? 0:
        """`chunk`: tokens."""
        cdef size_t itemsize = self.kernels.itemsize, passes = self.layers * self.directions, rows = b.rows
        cdef size_t units = whole(self.units, self.kernels.lanes), gates = units * gates_of(self.cell)
        cdef size_t tokens = chunk if self.directions == 1 else b.first[b.steps]
        cdef size_t each = padded(passes, sizeof(Pass)) // passes + 6 * padded(rows * units, itemsize)
        each += (not keep) * padded(chunk * gates, itemsize) + padded(rows * gates, itemsize)
        each += 5 * padded(rows, sizeof(char *))
        cdef size_t total = passes * (each + 64) + threads * (padded(3 * chunk, sizeof(void *)) + sizeof(rc_pace))
        if not keep:
            total += self.layers * padded(tokens * self.directions * self.out, itemsize)
        return total + 4096

    cdef size_t tape_bytes(self, const Batch *b, bint dropout) except? 0:
        cdef size_t itemsize = self.kernels.itemsize, passes = self.layers * self.directions, n = b.first[b.steps]
        cdef size_t units = whole(self.units, self.kernels.lanes)
        cdef size_t each = padded(n * units * gates_of(self.cell), itemsize)
        each += (saves_units(self.cell) + self.has_projection()) * padded(n * units, itemsize)
        each += 6 * padded(b.rows, sizeof(char *)) + sizeof(Pass) + sizeof(View) + 64
        cdef size_t outputs = padded(n * self.directions * self.out, itemsize) + 64
        return passes * each + (self.layers - 1) * (1 + dropout) * outputs + 4096

    def forward(self, Weights weights, x, y, str layout, ptrdiff_t steps, ptrdiff_t rows, lengths, h0, c0, hn, cn,
                bint keep=False, list masks=None, all_h=None, all_c=None, order=None, Variants variant=None,
                Table table=None, bint known=False):
        """Run x through all layers into y, hn and cn; a Tape if `keep`.

        x (T, B, I), (B, T, I) or (tokens, I) and y likewise with D*out columns, hn (L*D, B, out), cn (L*D, B, units);
        lengths int64 (B,) or None; h0, c0 like hn, cn or None; masks: L-1 arrays of (tokens, D*out), or None;
        order: longest_first(lengths), where it is that of a longer batch of which this is a part;
        all_h (T, L*D, B, out) and all_c (T, L*D, B, units), or None: the state after every step;
        variant: made for this call; table: of these weights, x is then the tokens, int64 as (T, B, 1) or (tokens);
        known: y holds what this call would write, and knows(weights).
        """
        cdef Tape tape = Tape.__new__(Tape) if keep else None
        cdef Call call
        cdef Batch passing
        cdef Batch *b = &tape.batch if keep else &passing
        cdef int threads = self.team_size(rows), code = LAYOUTS[layout]
        cdef ptrdiff_t n = steps * rows if lengths is None else <ptrdiff_t>lengths.sum()
        cdef ptrdiff_t most = self.chunk_tokens() * threads
        memset(&call, 0, sizeof(Call))
        if variant is None and weights.directions.normed:
            variant = Variants(self.layers * self.directions)
        if threads == 1 and not keep and masks is None and variant is None and table is None:
            threads = self.stage_threads(weights, n)
            call.staged = threads > 1
        if call.staged:
            most = min(most, n // STAGED_CHUNKS)
        cdef Plan plan = plan_of(self.plans, steps, rows, most, lengths, order)
        b[0], call.chunks = plan.batch, plan.chunks
        cdef ptrdiff_t chunk = call.chunks.tokens, hats = n if keep else rows + threads
        call.held = chunk * (1 + call.staged)
        cdef size_t norms = self.layers * self.directions * norm_bytes(
            <rc_cell>self.cell, self.units, hats, rows, self.kernels) if weights.directions.normed else 0
        cdef Block scratch = self.check_out(self.forward_bytes(b, call.held, threads, keep) + norms)
        cdef Block memory = self.tape_block(self.tape_bytes(b, masks is not None) + norms) if keep else scratch
        offsets = np.cumsum(lengths) - lengths if code == CONCATENATED else None
        call.kernels, call.batch = self.kernels, b
        call.layers, call.directions, call.units = self.layers, self.directions, self.by_units(rows, threads)
        call.units = call.units and not call.staged and all_h is None and variant is None
        call.apart = not (call.units or call.staged or variant is not None or self.directions == 2
                          or self.has_projection() or self.has_resets())
        call.apart = call.apart and equally_long(b)
        call.passes = <Pass *>memory.take(self.layers * self.directions * sizeof(Pass))
        if masks is not None:
            call.masks = <View *>memory.take(self.layers * sizeof(View))
        self.set_passes(&call, weights, memory, scratch, keep, x, y, code, steps, offsets, masks, all_h, all_c, table)
        call.passes[self.layers - 1].known = known
        call.pointers_each = 3 * chunk
        call.pointers = <void **>scratch.take(threads * call.pointers_each * sizeof(void *))
        call.paces = <rc_pace *>scratch.take_zeros(threads * sizeof(rc_pace))
        cdef int i
        for i in range(self.layers * self.directions):
            set_states(&call.passes[i], b, i, h0, c0)
            if variant is not None:
                call.passes[i].variant = variant.prepare(i, self.kernels, call.passes[i].d, b)
                call.passes[i].product = call.passes[i].variant.product
                if weights.directions.normed:
                    take_norms(&call.passes[i].variant.norms, call.passes[i].d, hats, rows, keep,
                               self.kernels, memory)
        run_call(&call, staged_task if call.staged else forward_task, threads, <double>n * self.work_of(weights))
        for i in range(self.layers * self.directions):
            store_states(&call.passes[i], b, i, hn, cn)
        self.check_in(scratch)
        if not keep:
            return None
        tape.network, tape.weights, tape.memory = self, weights, memory
        tape.passes, tape.mask_views = call.passes, call.masks
        tape.arrays, tape.layout, tape.offsets, tape.user_steps = (x, y, h0, plan), code, offsets, steps
        tape.masks, tape.variant, tape.table = masks, variant, table
        return tape

    def knows(self, Weights weights):
        """Whether a forward call without a variant is faster, with the same bits, where its outputs are known. Not a
        GRU's, whose R_n h stands apart from its gates."""
        cdef const Direction *d = weights.directions
        return (d.cell <= RC_LSTM and d.chains == 1 and not d.projection and not d.normed and self.directions == 1
                and self.kernels.gemm == kernels_f32().gemm)

    cdef double work_of(self, Weights weights) noexcept:
        """Multiply-adds for one token."""
        cdef double work = 0
        cdef int i
        for i in range(weights.count):
            work += <double>weights.directions[i].units * (weights.directions[i].inputs + weights.directions[i].out)
        return work * gates_of(self.cell)

    cdef int set_passes(self, Call *call, Weights weights, Block memory, Block scratch, bint keep, x, y, int layout,
                        ptrdiff_t steps, offsets, list masks, all_h, all_c, Table table) except -1:
        cdef Batch *b = call.batch
        cdef Pass *p
        cdef int layer, d, i
        cdef size_t itemsize = self.kernels.itemsize
        cdef ptrdiff_t width = self.directions * self.out
        cdef ptrdiff_t tokens = b.first[b.steps] if keep or self.directions == 2 else call.held
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
                set_pass(p, self.kernels, &weights.directions[i], scratch, b, call.held, keep)
                p.reverse = d == 1
                if keep:
                    set_tape(p, memory, b)
                p.x = compact_view(below, width, 0, itemsize)
                if layer == 0 and table is not None:
                    p.table = (<Block>table.blocks[d]).data
                    p.x = user_view(memory, b, x, layout, 1, 0, steps, offsets, sizeof(int64_t))
                elif layer == 0:
                    p.x = user_view(memory, b, x, layout, self.inputs, 0, steps, offsets, itemsize)
                p.y = compact_view(inner, width, d * self.out, itemsize)
                if layer + 1 == self.layers:
                    p.y = user_view(memory, b, y, layout, width, d * self.out, steps, offsets, itemsize)
                p.all_h = self.states_view(memory, b, all_h, i, self.out, steps)
                p.all_c = self.states_view(memory, b, all_c, i, self.units, steps)
        return 0

    cdef View states_view(self, Block memory, const Batch *b, array, int index, ptrdiff_t size,
                          ptrdiff_t steps) except *:
        """Direction `index` of (T, L*D, B, size), T being `steps`, as rows of tokens; `sequence` is NULL where there is
        no array."""
        cdef View v = user_view(memory, b, array, TIME_MAJOR, size, index * b.rows * size, steps, None,
                                self.kernels.itemsize)
        v.step *= self.layers * self.directions
        return v

    # -- backward

    def backward(self, Tape tape, dy, dhn, dcn, list grads, dx, dh0, dc0, all_dh=None, all_dc=None, second=None,
                 bint last=True):
        """Gradients of one forward call: adds into grads (each direction's as pack's arrays; None where unwanted) and
        writes dx (or None; after a forward with a table that of the table's rows), dh0 and dc0. dy, dhn, dcn as y, hn,
        cn, or None for zero; all_dh, all_dc as forward's all_h, all_c. Pieces of a batch all take its
        second_gradients(), which the `last` one adds to grads."""
        cdef Call call
        cdef Batch *b = &tape.batch
        cdef int i, count = self.layers * self.directions, threads = self.team_size(b.rows)
        cdef ptrdiff_t lanes = self.kernels.lanes, n = b.first[b.steps]
        cdef size_t itemsize = self.kernels.itemsize
        tape.weights.need_backward()
        memset(&call, 0, sizeof(Call))
        call.kernels, call.batch, call.layers, call.directions = self.kernels, b, self.layers, self.directions
        cdef Block _chunk_memory = plan_chunks(&call.chunks, b, CHUNK_TOKENS)
        cdef int groups = self.groups(tape)
        cdef ptrdiff_t chunk = call.chunks.tokens
        call.units = self.by_units(b.rows, threads) and not self.has_projection() and all_dh is None
        call.units = call.units and tape.variant is None
        cdef size_t norms = norm_back_bytes(
            self.units, self.dz_stride(tape.weights.directions), chunk, b.rows,
            self.kernels) if tape.weights.directions.normed else 0
        cdef ptrdiff_t places = 0 if tape.table is None else len(tape.table.rows)
        cdef size_t sums = self.directions * padded(places * self.dz_stride(tape.weights.directions), itemsize)
        call.columns_each = self.columns_bytes(max(chunk, places))
        cdef Block scratch = self.check_out(
            self.backward_bytes(b, chunk, threads, groups) + norms + sums + threads * call.columns_each)
        call.back = <BackPass *>scratch.take(count * sizeof(BackPass))
        call.pointers_each = 6 * chunk
        call.pointers = <void **>scratch.take(threads * call.pointers_each * sizeof(void *))
        if call.columns_each:
            call.columns = <char *>scratch.take(threads * call.columns_each)
        if tape.masks is not None:
            call.masks = tape.mask_views
        self.set_back_passes(&call, tape, scratch, dy, dhn, dcn, grads, dx, all_dh, all_dc, groups)
        if groups == 2:
            take_second(call.back, count, scratch, second, last)
        run_call(&call, backward_task, threads, 2.0 * n * self.work_of(tape.weights))
        for i in range(count):
            store_state(b, part_of(dh0, i, b.rows * self.out, itemsize), call.back[i].dh, whole(self.out, lanes),
                        self.out, itemsize)
            if self.cell == RC_LSTM:
                store_state(b, part_of(dc0, i, b.rows * self.units, itemsize), call.back[i].dc,
                            whole(self.units, lanes), self.units, itemsize)
        self.check_in(scratch)

    cdef void set_sums(self, BackPass *p, Table table, Block scratch, dx) except *:
        p.table, p.table_rows = <char *>cnp.PyArray_DATA(table.rows), len(table.rows)
        p.sums = <char *>scratch.take_zeros(p.table_rows * p.dz_row * self.kernels.itemsize)
        p.dtable = NULL if dx is None else <char *>cnp.PyArray_DATA(dx)

    cdef int groups(self, Tape tape) noexcept:
        """Groups of sequences whose gradients backward sums up apart."""
        if tape.variant is not None or tape.table is not None or self.has_projection() or self.has_resets():
            return 1
        return groups_of(gates_of(self.cell), self.units, self.columns(), tape.batch.rows)

    def second_gradients(self, Tape tape):
        """Zeros for the second group's gradients of a batch that comes to backward in pieces like this, or None."""
        cdef ptrdiff_t n = 0
        cdef int i
        if self.groups(tape) == 1:
            return None
        for i in range(self.layers * self.directions):
            n += second_size(gates_of(self.cell), self.units,
                             self.inputs if i < self.directions else self.directions * self.out, self.out)
        return np.zeros(n, np.float32 if self.kernels.itemsize == 4 else np.float64)

    cdef bint has_projection(self) noexcept:
        return self.out != self.units

    cdef bint has_resets(self) noexcept:
        """Whether R's gradient needs r*h once more."""
        return self.cell == RC_GRU_RESET_BEFORE

    cdef ptrdiff_t dz_stride(self, const Direction *d) noexcept:
        """Elements between dz rows: whole cache lines, and never a multiple of a page, since the rows of one column
        would then all fall into the same few lines of the cache."""
        cdef ptrdiff_t line = 64 // <ptrdiff_t>self.kernels.itemsize, row = (d.dz + line - 1) // line * line
        return row + line if row % (16 * line) == 0 else row

    cdef ptrdiff_t columns(self) noexcept:
        """The most columns that gradients of weights have, W's beside R's."""
        return max(whole(max(self.inputs, self.directions * self.out), 16) + whole(self.out, 16), self.units)

    cdef size_t columns_bytes(self, ptrdiff_t rows) except? 0:
        """Scratch of a thread for the weights' gradients (rc_outer.columns), if any of them is large."""
        cdef ptrdiff_t most = self.columns()
        if self.kernels.gemm != kernels_f32().gemm or gates_of(self.cell) * self.units * most < RC_OUTER_LARGE:
            return 0
        return padded(rc_outer_scratch(rows, most), self.kernels.itemsize)

    cdef size_t backward_bytes(self, const Batch *b, ptrdiff_t chunk, int threads, int groups) except? 0:
        """`chunk`: tokens."""
        cdef size_t itemsize = self.kernels.itemsize, rows = b.rows, units = whole(self.units, self.kernels.lanes)
        cdef size_t each = sizeof(BackPass) + 4 * padded(rows * units, itemsize) + 7 * padded(rows, sizeof(void *)) + 64
        cdef size_t shared = padded(groups * chunk * (4 * units + 64), itemsize)
        if groups == 2:
            each += padded(second_size(gates_of(self.cell), self.units, self.columns(), 0), itemsize)
        shared += (self.has_projection() + self.has_resets()) * padded(chunk * units, itemsize)
        cdef size_t inner = 2 * padded(b.first[b.steps] * self.directions * self.out, itemsize)
        inner *= self.layers > 1
        return (self.layers * self.directions * each + shared + inner + padded(self.inputs + 2 * units, itemsize)
                + threads * padded(6 * chunk, sizeof(void *)) + 4096)

    cdef int set_back_passes(self, Call *call, Tape tape, Block scratch, dy, dhn, dcn, list grads, dx,
                             all_dh, all_dc, int groups) except -1:
        """One after the other the directions share dz; the gradient between two layers has two buffers in turn."""
        cdef Batch *b = call.batch
        cdef BackPass *p
        cdef Pass *q
        cdef int layer, d, i
        cdef ptrdiff_t lanes = self.kernels.lanes, units = whole(self.units, lanes), m
        cdef ptrdiff_t width = self.directions * self.out, chunk = call.chunks.tokens
        cdef size_t itemsize = self.kernels.itemsize
        cdef char *inner[2]
        cdef char *douts = NULL
        cdef char *resets = NULL
        cdef char *zeros = <char *>scratch.take_zeros(units * itemsize)
        cdef char *dz = <char *>scratch.take(groups * chunk * (4 * units + 64) * itemsize)
        if self.has_projection():
            douts = <char *>scratch.take_zeros(chunk * units * itemsize)
        if self.has_resets():
            resets = <char *>scratch.take(chunk * units * itemsize)
        h0 = tape.arrays[2]
        for i in range(2):
            inner[i] = <char *>scratch.take((self.layers > 1) * b.first[b.steps] * width * itemsize)
        for layer in range(self.layers):
            for d in range(self.directions):
                i = layer * self.directions + d
                p, q = &call.back[i], &tape.passes[i]
                memset(p, 0, sizeof(BackPass))
                p.kernels, p.d, p.reverse, p.x, p.y = self.kernels, q.d, q.reverse, q.x, q.y
                p.saved, p.saved_unit, p.saved_hidden = q.saved, q.saved_unit, q.saved_hidden
                p.dz, p.dz_row, p.douts, p.resets = dz, self.dz_stride(q.d), douts, resets
                p.dz_ih = p.dz_hh = dz
                p.groups, p.group_rows = groups, chunk
                p.need_dx, p.add_dx = layer > 0 or dx is not None, d == 1
                p.dx = compact_view(inner[layer % 2], width, 0, itemsize)
                if layer == 0 and tape.table is not None:
                    self.set_sums(p, tape.table, scratch, dx)
                elif layer == 0:
                    p.dx = user_view(scratch, b, dx, tape.layout, self.inputs, 0, tape.user_steps, tape.offsets,
                                     itemsize)
                p.dy = compact_view(inner[(layer + 1) % 2], width, d * self.out, itemsize)
                if layer + 1 == self.layers:
                    p.dy = user_view(scratch, b, dy, tape.layout, width, d * self.out, tape.user_steps, tape.offsets,
                                     itemsize)
                p.dh = <char *>scratch.take(b.rows * units * itemsize)
                p.dc = <char *>scratch.take(b.rows * units * itemsize)
                p.dhidden = <char *>scratch.take_zeros(b.rows * units * itemsize)
                p.reset = <char *>scratch.take_zeros(b.rows * units * itemsize)
                load_state(b, p.dh, whole(self.out, lanes), part_of(dhn, i, b.rows * self.out, itemsize), self.out,
                           itemsize)
                load_state(b, p.dc, units, part_of(dcn, i, b.rows * self.units, itemsize), self.units, itemsize)
                if tape.variant is not None:
                    p.variant = tape.variant.prepare_back(i, self.kernels, p.d, chunk)
                    if p.d.normed:
                        take_norms_back(&p.variant.norms, &call.back.variant.norms, self.units, p.dz_row,
                                        chunk, b.rows, self.kernels, scratch)
                        p.dz_ih, p.dz_hh = p.variant.norms.dz[LN_IH], p.variant.norms.dz[LN_HH]
                p.all_dh = self.states_view(scratch, b, all_dh, i, self.out, tape.user_steps)
                p.all_dc = self.states_view(scratch, b, all_dc, i, self.units, tape.user_steps)
                p.h0 = <void **>scratch.take(b.rows * sizeof(void *))
                for m in range(b.rows):
                    p.h0[m] = zeros
                    if h0 is not None:
                        p.h0[m] = part_of(h0, i * b.rows + b.order[m], self.out, itemsize)
                dw, dr, db_ih, db_hh, dp, *norms = grads[i]
                p.dw, p.dr, p.dp = part_of(dw, 0, 0, itemsize), part_of(dr, 0, 0, itemsize), part_of(dp, 0, 0, itemsize)
                p.db_ih, p.db_hh = part_of(db_ih, 0, 0, itemsize), part_of(db_hh, 0, 0, itemsize)
                for m in range(len(norms) // 2):
                    p.dgain[m] = part_of(norms[2 * m], 0, 0, itemsize)
                    p.dshift[m] = part_of(norms[2 * m + 1], 0, 0, itemsize)
        return 0
