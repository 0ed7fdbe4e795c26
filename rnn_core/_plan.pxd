# What forward and backward share: packed weights, the order of a ragged batch, views of rows, teams, memory.

from rnn_core._kernels cimport *
from rnn_core._runtime cimport rc_barrier, rc_relay

cdef extern from "team.h" nogil:
    ctypedef struct rc_stop:
        pass
    void rc_stop_init(rc_stop *)
    void rc_stop_set(rc_stop *)
    int rc_stop_asked(rc_stop *)
    void rc_stop_announce(rc_stop *, rc_stop *call, long number)
    int rc_stop_leave(rc_stop *, long number)

# Fewer rows than this wait for the weights, and not for the arithmetic.
cdef enum:
    FEW_ROWS = 8

# Columns of a dz row and the rows of the weight matrix (and bias) whose gradient they make.
cdef struct Segment:
    ptrdiff_t column, row, count

# What layer normalisation acts on: the input projection, h R, and an LSTM's c.
cdef enum:
    LN_IH, LN_HH, LN_C, LN_KINDS

# One direction of one layer. Sizes in elements; `out` is what recurs: the projection's size, or the units.
cdef struct Direction:
    rc_cell cell
    ptrdiff_t inputs, units, out, projection
    ptrdiff_t dz                       # elements of a row of pre-activation gradients
    Segment input[2]                   # of W and b_ih
    int inputs_count
    Segment recurrent[2]               # of R and b_hh; the second one acts on r*h (GRU with the reset gate before R_n)
    int recurrent_count
    rc_shape w, r, rn, p               # forward: W, R, R_n where it is apart, W_hr
    void *w_packed
    void *r_packed
    void *rn_packed
    void *p_packed
    void *bias                         # gate row: both biases; with layer normalisation b_ih alone
    void *bias_n                       # GRU: b_hn, whole vectors; zero with layer normalisation
    bint normed                        # layer normalisation: what follows is set
    void *bias_hh                      # gate row: b_hh
    void *bias_rn                      # whole vectors: b_hn where R_n is apart
    const char *gain[LN_KINDS]         # as the user's, gate after gate
    const char *shift[LN_KINDS]
    rc_shape wt, rt, rnt, pt           # backward: the same transposed, k in the order of a dz row
    void *wt_packed
    void *rt_packed
    void *rnt_packed
    void *pt_packed
    int chains

# Sequences from the longest to the shortest, so that those still running at step t are the first active[t].
# Compact storage keeps a row for each real token: step t starts at row first[t].
cdef struct Batch:
    ptrdiff_t steps, rows
    ptrdiff_t *active                  # (steps)
    ptrdiff_t *first                   # (steps + 1)
    ptrdiff_t *order                   # (rows): the caller's index of each
    ptrdiff_t *length                  # (rows)
    int parts                          # of the sequences, which a tape keeps apart; 1 unless equally_long()

# Steps [begin[i], begin[i + 1]) are taken together: as many as have `tokens` tokens at most, but at least one.
cdef struct Chunks:
    ptrdiff_t count, tokens
    ptrdiff_t *begin                   # (count + 1)

# Rows of token (t, m): the caller's (a pointer a sequence and a stride a step) or compact (starting at row `origin`).
cdef struct View:
    char **sequence
    ptrdiff_t step                     # bytes
    ptrdiff_t steps                    # of a padded array, whose sequences may end before; else 0
    char *base
    ptrdiff_t row                      # bytes
    ptrdiff_t origin

cdef inline char *token(const View *v, const Batch *b, ptrdiff_t t, ptrdiff_t m) noexcept nogil:
    if v.sequence != NULL:
        return v.sequence[m] + t * v.step
    return v.base + (b.first[t] + m - v.origin) * v.row

# One thread's place among those that share a time loop. With `units` they share out hidden units and wait for each
# other at each step; else they share out the sequences still running, and meet only where that number changes.
cdef struct Team:
    int rank, size
    bint units
    bint meets                         # in the time loop: so nobody may leave it alone
    bint leader                        # rank 0 of the whole call: looks for signals
    rc_barrier *barrier
    rc_relay relay                     # with `units`
    rc_stop *stop                      # this team's
    rc_stop *call                      # the whole call's
    long count                         # barriers passed
    double tick
    int look_every, until_look         # steps between two looks at the clock, and until the next one
    char *columns                      # this thread's scratch for large weight gradients (rc_outer), or NULL

cdef bint meet(Team *team) noexcept nogil
cdef bint interrupted(Team *team, int steps) noexcept nogil
cdef void share(ptrdiff_t n, int rank, int size, ptrdiff_t *begin, ptrdiff_t *end) noexcept nogil
cdef void share_panels(ptrdiff_t columns, ptrdiff_t each, const Team *team, ptrdiff_t *begin,
                       ptrdiff_t *end) noexcept nogil

# The sequences that this thread takes through step t.
cdef inline void share_rows(const Batch *b, const Team *team, ptrdiff_t t, ptrdiff_t *begin,
                            ptrdiff_t *end) noexcept nogil:
    begin[0], end[0] = 0, b.active[t]
    if not team.units and team.size > 1:
        share(b.active[t], team.rank, team.size, begin, end)

# Where a buffer of rows + team.size rows begins to be this thread's alone, whatever the step.
cdef inline ptrdiff_t own_rows(const Batch *b, const Team *team) noexcept nogil:
    return 0 if team.units else team.rank * ((b.rows + team.size - 1) // team.size)

cdef inline bint equally_long(const Batch *b) noexcept nogil:
    return b.first[b.steps] == b.steps * b.rows

# Where a tape keeps sequences [row, row + n) of step t: after those of the steps before, and with several parts, of
# which these are one, after those alone. What a thread writes then lies together: every other stretch of memory would
# use half of the sets of its cache, and what the processor fetches ahead at a stretch's end would be another's.
cdef inline ptrdiff_t place(const Batch *b, ptrdiff_t t, ptrdiff_t row, ptrdiff_t n) noexcept nogil:
    return b.first[t] + row if b.parts == 1 else b.steps * row + t * n

# Before step t, after step `before`: where threads share out another number of sequences, one may get what another has
# just done. True when the call is to be left.
cdef inline bint meet_if_shared_anew(const Batch *b, Team *team, ptrdiff_t t, ptrdiff_t before) noexcept nogil:
    if not team.meets or team.units or before < 0 or before >= b.steps or b.active[t] == b.active[before]:
        return False
    return meet(team)

cdef inline rc_rows rows_at(const void *base, ptrdiff_t stride) noexcept nogil:
    cdef rc_rows r
    r.base, r.stride, r.ptr = <void *>base, stride, NULL
    return r

# Rows of a buffer, the first being `row`; no rows where there is no buffer.
cdef inline rc_rows from_row(char *base, ptrdiff_t stride, ptrdiff_t row, size_t itemsize) noexcept nogil:
    return rows_at(NULL if base == NULL else base + row * stride * <ptrdiff_t>itemsize, stride)

cdef inline rc_rows rows_by(void **ptr) noexcept nogil:
    cdef rc_rows r
    r.base, r.stride, r.ptr = NULL, 0, ptr
    return r

# The rows from the n-th on.
cdef inline rc_rows rows_after(rc_rows r, ptrdiff_t n, size_t itemsize) noexcept nogil:
    if r.ptr != NULL:
        return rows_by(r.ptr + n)
    return from_row(<char *>r.base, r.stride, n, itemsize)

cdef inline char *row_at(const rc_rows *r, ptrdiff_t i, size_t itemsize) noexcept nogil:
    return <char *>r.ptr[i] if r.ptr != NULL else <char *>r.base + i * r.stride * <ptrdiff_t>itemsize

cdef inline ptrdiff_t whole(ptrdiff_t units, ptrdiff_t lanes) noexcept nogil:
    return (units + lanes - 1) // lanes * lanes

cdef inline rc_shape shape_of(ptrdiff_t k, ptrdiff_t units, int gates) noexcept nogil:
    cdef rc_shape s
    s.k, s.units, s.gates = k, units, gates
    return s

# Aligned memory. `take` carves fields out of it.
cdef class Block:
    cdef char *data
    cdef size_t size, used
    cdef void *take(self, size_t bytes)
    cdef void *take_zeros(self, size_t bytes)

cdef Block block(size_t bytes)
cdef Block reuse(list blocks, size_t least, size_t most)
cdef size_t padded(size_t count, size_t size) except? 0

cdef class Weights:
    cdef const rc_kernels *kernels
    cdef Direction *directions
    cdef int count
    cdef list blocks
    # per direction: w_ih, w_hh, b_ih, b_hh, w_hr (or None); with layer normalisation a gain and a shift of each kind
    cdef readonly list arrays
    cdef bint has_backward
    cdef size_t bytes_of(self, const rc_shape *shape) except? 0
    cdef void *packed(self, Block memory, const rc_shape *shape, object array, ptrdiff_t column_stride,
                      ptrdiff_t row_stride, ptrdiff_t offset) except NULL
    cdef int pack_forward(self, Direction *d, tuple arrays) except -1
    cdef int pack_biases(self, Direction *d, b_ih, b_hh) except -1
    cdef int pack_bias_apart(self, Direction *d, Block b, b_ih, b_hh) except -1
    cdef int pack_transposed(self, Direction *d, tuple arrays) except -1
    cdef int need_backward(self) except -1

cdef int gates_of(int cell) noexcept nogil
cdef Weights pack(const rc_kernels *kernels, int cell, list sizes, list arrays)

# Gate rows of every token there is, instead of a product for each that comes: one Block for each direction of a first
# layer, its rows a gate row apart; and the inputs that they were made of, (tokens, inputs).
cdef class Table:
    cdef list blocks
    cdef object rows

# c (n, columns) <- a B + bias (or NULL), or += a B, of a (n, k), B packed; padded: rows of c have whole vectors. A
# caller may narrow the job to some of its panels.
cdef inline rc_gemm product_job(const rc_kernels *kernels, const rc_shape *shape, const void *packed, const void *bias,
                                bint accumulate, bint padded, rc_rows a, rc_rows c, ptrdiff_t n) noexcept nogil:
    cdef rc_gemm job
    job.shape, job.packed, job.bias, job.accumulate, job.padded = shape[0], packed, bias, accumulate, padded
    job.a, job.c, job.row_begin, job.row_end = a, c, 0, n
    job.panel_begin, job.panel_end, job.backwards, job.far = 0, rc_panels(shape, kernels.lanes), False, False
    return job

cdef void multiply(const rc_kernels *kernels, const rc_shape *shape, const void *packed, const void *bias,
                   bint accumulate, bint padded, rc_rows a, rc_rows c, ptrdiff_t n) noexcept nogil
# c[m] += the sum over k of a[k][m] x[k], for m in [begin, end): a (rows, m) with one stride, x (rows, n), c (m, n);
# `columns`: scratch that makes large ones faster (kernels.h, rc_outer). A caller may put another such product beside.
cdef inline rc_outer outer_job(rc_rows a, rc_rows x, ptrdiff_t rows, ptrdiff_t n, void *c, ptrdiff_t c_stride,
                               ptrdiff_t begin, ptrdiff_t end, void *columns) noexcept nogil:
    cdef rc_outer job
    job.a, job.x, job.rows, job.n, job.c, job.c_stride = a, x, rows, n, c, c_stride
    job.m_begin, job.m_end, job.columns, job.beside = begin, end, columns, NULL
    return job

cdef void add_outer(const rc_kernels *kernels, rc_rows a, rc_rows x, ptrdiff_t rows, ptrdiff_t n, void *c,
                    ptrdiff_t c_stride, ptrdiff_t begin, ptrdiff_t end, void *columns=*) noexcept nogil
# gate rows <- W a + b of n rows
cdef void project(const rc_kernels *kernels, const Direction *d, rc_rows a, rc_rows c, ptrdiff_t n) noexcept nogil
# W embedding + b of `tokens` embeddings (tokens, inputs): the chains of the products are the same, and so are the bits
cdef Block gate_rows(const rc_kernels *kernels, const Direction *d, const void *embedding, ptrdiff_t tokens)

# Layouts of the caller's arrays.
cdef enum:
    TIME_MAJOR, BATCH_FIRST, CONCATENATED, PACKED

# Who runs when, and in which chunks, of at most `most` tokens unless a step alone has more. It never changes, so that
# calls may share it; each has a copy of the batch.
cdef class Plan:
    cdef Block memory, chunk_memory
    cdef Batch batch
    cdef Chunks chunks
    cdef ptrdiff_t steps, rows, most

# lengths: int64 (rows), or None; order: longest_first(lengths), where it is known or that of a longer batch.
cdef Plan make_plan(ptrdiff_t steps, ptrdiff_t rows, ptrdiff_t most, object lengths, object order=*)
# The same, from `kept` where lengths are None and it was made for the same: a list of the last such plan, or empty.
cdef Plan plan_of(list kept, ptrdiff_t steps, ptrdiff_t rows, ptrdiff_t most, object lengths, object order)
cdef Block plan_chunks(Chunks *c, const Batch *b, ptrdiff_t most)
cdef View user_view(Block memory, const Batch *b, object array, int layout, ptrdiff_t width, ptrdiff_t column,
                    ptrdiff_t steps, object offsets, size_t itemsize) except *
cdef View compact_view(void *base, ptrdiff_t width, ptrdiff_t column, size_t itemsize) noexcept nogil
cdef void clear_padding(const View *v, const Batch *b, size_t bytes, const Team *team) noexcept nogil
cdef void load_state(const Batch *b, char *to, ptrdiff_t stride, const char *source, ptrdiff_t width,
                     size_t itemsize) noexcept nogil
cdef void store_state(const Batch *b, char *to, const char *source, ptrdiff_t stride, ptrdiff_t width,
                      size_t itemsize) noexcept nogil
cdef char *part_of(object array, ptrdiff_t index, ptrdiff_t size, size_t itemsize) noexcept
