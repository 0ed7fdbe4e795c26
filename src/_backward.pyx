"""Backpropagation through time, one loop for all cells.

Step by step backwards: the cell's pointwise gradients give dz (the gradient of the pre-activations), and dz R the
gradient of the state before. The gradients of the weights and of x follow when a chunk of steps is done
(_gradients.pyx). Chunks do not depend on the threads, so nor do the bits.
"""

from rnn_core._gradients cimport begin_gradients, chunk_gradients, end_gradients
from rnn_core._kernels cimport *
from rnn_core._norms cimport normalise_back, normalise_cell_back
from rnn_core._plan cimport LN_HH, LN_IH, Batch, Chunks, Segment, Team, View, from_row, interrupted, meet, \
    meet_if_shared_anew, multiply, place, product_job, rows_at, rows_by, share, share_panels, share_rows, token, whole
from rnn_core._variants cimport add_product, add_rows, copy_rows, is_view, multiply_rows, split_rows


ctypedef fused real:
    float
    double


cdef struct Part:
    # Sequences [row_begin, row_end) of the step at hand and hidden units, in vectors, that this thread takes back.
    ptrdiff_t row_begin, row_end, unit_begin, unit_end
    # Where their rows lie in the chunk's buffers: from `local` on, those from the split-th on from `local_after` on.
    ptrdiff_t local, split, local_after


cdef void product(const BackPass *p, const rc_shape *shape, void *packed, rc_rows a, rc_rows c, ptrdiff_t rows,
                  const Part *part, bint accumulate, bint is_padded) noexcept nogil:
    """c (+)= a times a packed matrix, for this thread's columns."""
    cdef rc_gemm job = product_job(p.kernels, shape, packed, NULL, accumulate, is_padded, a, c, rows)
    job.panel_begin, job.panel_end = part.unit_begin // 4, min((part.unit_end + 3) // 4, job.panel_end)
    p.kernels.gemm(&job)


# ------------------------------------------------------------------------------------------------------- through time


cdef void project_back(BackPass *p, const Batch *b, const Part *part, ptrdiff_t t, ptrdiff_t n,
                       rc_rows dh) noexcept nogil:
    """With a projection: dout = dy + dh, kept for W_hr's gradient, and dhidden = dout W_hr."""
    cdef ptrdiff_t lanes = p.kernels.lanes, m, out = whole(p.d.out, lanes)
    cdef size_t itemsize = p.kernels.itemsize
    cdef rc_rows douts = from_row(p.douts, out, part.local, itemsize)
    cdef rc_rows hidden = from_row(p.dhidden, whole(p.d.units, lanes), part.row_begin, itemsize)
    cdef void *dy
    for m in range(n):
        dy = NULL
        if p.variant == NULL and is_view(&p.dy):
            dy = token(&p.dy, b, t, part.row_begin + m)
        if itemsize == 4:
            add_row[float](<float *>douts.base + m * out, <float *>dh.base + m * out, <float *>dy, p.d.out)
        else:
            add_row[double](<double *>douts.base + m * out, <double *>dh.base + m * out, <double *>dy, p.d.out)
    multiply(p.kernels, &p.d.pt, p.d.pt_packed, NULL, False, True, douts, hidden, n)


cdef void add_row(real *to, real *a, const real *b, ptrdiff_t n) noexcept nogil:
    """to <- a + b (b may be NULL), and a <- 0."""
    cdef ptrdiff_t j
    for j in range(n):
        to[j] = a[j] + (b[j] if b != NULL else 0)
        a[j] = 0


cdef void add_tokens(const BackPass *p, const Batch *b, const Part *part, const View *of, rc_rows to, ptrdiff_t t,
                     ptrdiff_t n, ptrdiff_t size) noexcept nogil:
    """to (n, size) += the tokens of step t, where there are any. Row by row: the step's pointers are in use."""
    cdef size_t itemsize = p.kernels.itemsize
    cdef ptrdiff_t m
    if is_view(of):
        for m in range(n):
            add_rows(itemsize, rows_at(token(of, b, t, part.row_begin + m), 0),
                     from_row(<char *>to.base, to.stride, m, itemsize), 1, size)


cdef rc_rows dz_rows(const BackPass *p, char *dz, ptrdiff_t column, const Part *part, void **pointers) noexcept nogil:
    """The step's rows of dz, from a column on; in two places they need pointers, one each."""
    cdef ptrdiff_t m, row, n = part.row_end - part.row_begin
    cdef size_t itemsize = p.kernels.itemsize
    if part.split >= n:
        return from_row(dz + column * itemsize, p.dz_row, part.local, itemsize)
    for m in range(n):
        row = part.local + m if m < part.split else part.local_after + m - part.split
        pointers[m] = dz + (row * p.dz_row + column) * itemsize
    return rows_by(pointers)


cdef rc_rows tape_rows(char *tape, ptrdiff_t stride, const Batch *b, const Team *team, const Part *part, ptrdiff_t t,
                       size_t itemsize, void **pointers) noexcept nogil:
    """The step's rows of a tape. Where its parts are not what the threads take now, they need pointers, one each."""
    cdef ptrdiff_t m, row, n = part.row_end - part.row_begin, first = 0, last = 0
    cdef int which = 0
    if tape == NULL or b.parts == 1 or (b.parts == team.size and not team.units):
        return from_row(tape, stride, place(b, t, part.row_begin, n), itemsize)
    for m in range(n):
        while last <= part.row_begin + m:
            share(b.rows, which, b.parts, &first, &last)
            which += 1
        row = place(b, t, first, last - first) + part.row_begin + m - first
        pointers[m] = tape + row * stride * <ptrdiff_t>itemsize
    return rows_by(pointers)


cdef void look_ahead(const BackPass *p, const Batch *b, const Part *part, rc_step_back *s, ptrdiff_t t,
                     ptrdiff_t n) noexcept nogil:
    """How far the rows of the step that comes next are from this one's. No result depends on it: where a tape's parts
    are not the threads', or lengths differ, it may be off."""
    cdef ptrdiff_t later = t + 1 if p.reverse else t - 1
    s.ahead, s.dy_ahead = 0, 0
    if not 0 <= later < b.steps:
        return
    s.ahead = place(b, later, part.row_begin, n) - place(b, t, part.row_begin, n)
    if s.dy.ptr != NULL and n:
        s.dy_ahead = (token(&p.dy, b, later, part.row_begin) - <char *>s.dy.ptr[0]) // <ptrdiff_t>p.kernels.itemsize


cdef void prepare(BackPass *p, const Batch *b, const Team *team, const Part *part, rc_step_back *s, ptrdiff_t t,
                  ptrdiff_t n, void **pointers) noexcept nogil:
    """The step's rows. pointers: 6 n of them, the fourth n of which stay free."""
    cdef ptrdiff_t lanes = p.kernels.lanes, m, units = whole(p.d.units, lanes)
    cdef size_t itemsize = p.kernels.itemsize
    s.cell, s.phase, s.units = p.d.cell, 0, p.d.units
    s.saved = tape_rows(p.saved, rc_row_size(&p.d.w, lanes), b, team, part, t, itemsize, pointers + 4 * n)
    s.saved_unit = tape_rows(p.saved_unit, units, b, team, part, t, itemsize, pointers + 5 * n)
    s.dh = from_row(p.dh, whole(p.d.out, lanes), part.row_begin, itemsize)
    s.dc = from_row(p.dc, units, part.row_begin, itemsize)
    s.reset = from_row(p.reset, units, part.row_begin, itemsize)
    s.dz = dz_rows(p, p.dz, 0, part, pointers + 2 * n)
    s.row_begin, s.row_end, s.unit_begin, s.unit_end = 0, n, part.unit_begin, part.unit_end
    s.h_prev = rows_by(pointers)
    s.dy = rows_at(NULL, 0)
    for m in range(n):
        pointers[m] = state_before(p, b, t, part.row_begin + m)
    if p.d.projection == 0 and p.variant == NULL and is_view(&p.dy):
        for m in range(n):
            pointers[n + m] = token(&p.dy, b, t, part.row_begin + m)
        s.dy = rows_by(pointers + n)
    look_ahead(p, b, part, s, t, n)


cdef void enter_variant(BackPass *p, const Batch *b, const Part *part, rc_step_back *s, ptrdiff_t t,
                        ptrdiff_t n) noexcept nogil:
    """dh += dy; zoneout: the gradient of the old state goes past the cell."""
    cdef ptrdiff_t lanes = p.kernels.lanes
    cdef size_t itemsize = p.kernels.itemsize
    add_tokens(p, b, part, &p.dy, s.dh, t, n, p.d.out)
    if is_view(&p.variant.take_h):
        split_rows(itemsize, &p.variant.take_h, b, t, part.row_begin, s.dh,
                   from_row(p.variant.kept_h, whole(p.d.out, lanes), part.row_begin, itemsize), n, p.d.out)
    if is_view(&p.variant.take_c):
        split_rows(itemsize, &p.variant.take_c, b, t, part.row_begin, s.dc,
                   from_row(p.variant.kept_c, whole(p.d.units, lanes), part.row_begin, itemsize), n, p.d.units)


cdef void leave_variant(BackPass *p, const Part *part, rc_rows dh, rc_rows dc, rc_rows dz, ptrdiff_t n) noexcept nogil:
    """dh += dz R, through the mask before R; and what went past the cell."""
    cdef ptrdiff_t out = whole(p.d.out, p.kernels.lanes), units = whole(p.d.units, p.kernels.lanes)
    cdef size_t itemsize = p.kernels.itemsize
    cdef rc_rows masked = from_row(p.variant.masked, out, part.row_begin, itemsize)
    if p.variant.drop == NULL:
        product(p, &p.d.rt, p.d.rt_packed, dz, dh, n, part, True, True)
    else:
        product(p, &p.d.rt, p.d.rt_packed, dz, masked, n, part, False, True)
        add_product(itemsize, masked, from_row(p.variant.drop, out, part.row_begin, itemsize), dh, n, p.d.out)
    if is_view(&p.variant.take_h):
        add_rows(itemsize, from_row(p.variant.kept_h, out, part.row_begin, itemsize), dh, n, p.d.out)
    if is_view(&p.variant.take_c):
        add_rows(itemsize, from_row(p.variant.kept_c, units, part.row_begin, itemsize), dc, n, p.d.units)


cdef void cell_back(BackPass *p, const Batch *b, const Part *part, rc_step_back *s, ptrdiff_t t,
                    ptrdiff_t n) noexcept nogil:
    """The cell's pointwise gradients. Where an LSTM's c is normalised, h has its gradient through that: the cell then
    starts from dh = 0 and the dc that came of it, and its dz of the gate o is not its own."""
    cdef ptrdiff_t units = whole(p.d.units, p.kernels.lanes)
    cdef size_t itemsize = p.kernels.itemsize
    cdef rc_rows dz_o
    if not p.d.normed or p.d.cell != RC_LSTM:
        p.kernels.step_back(s)
        return
    dz_o = from_row(p.variant.norms.dz_o, units, part.row_begin, itemsize)
    normalise_cell_back(p.kernels, p.d, &p.variant.norms, s.saved, s.dh, s.dc, dz_o,
                        from_row(p.variant.norms.dy_c, units, part.local, itemsize), b.first[t] + part.row_begin, n)
    p.kernels.step_back(s)
    copy_rows(itemsize, dz_o, rows_at(<char *>s.dz.base + 3 * p.d.units * itemsize, p.dz_row), n, p.d.units)


cdef void side_back(BackPass *p, const Batch *b, const Part *part, int which, const Segment *segment, ptrdiff_t t,
                    ptrdiff_t n) noexcept nogil:
    """dz of the step through one side's layer normalisation, if there is one."""
    cdef size_t itemsize = p.kernels.itemsize
    if p.d.normed:
        normalise_back(p.kernels, p.d, &p.variant.norms, which, segment, from_row(p.dz, p.dz_row, part.local, itemsize),
                       from_row(p.dz_ih if which == LN_IH else p.dz_hh, p.dz_row, part.local, itemsize),
                       b.first[t] + part.row_begin, n)


cdef bint step_back(BackPass *p, const Batch *b, const Part *part, Team *team, ptrdiff_t t,
                    void **pointers) noexcept nogil:
    """One step back; pointers: 6 for each row. True when the call is to be left."""
    cdef ptrdiff_t n = part.row_end - part.row_begin, units = whole(p.d.units, p.kernels.lanes)
    cdef size_t itemsize = p.kernels.itemsize
    cdef int i
    cdef rc_step_back s
    cdef rc_rows dh, recurrent
    prepare(p, b, team, part, &s, t, n, pointers)
    dh = s.dh
    add_tokens(p, b, part, &p.all_dh, dh, t, n, p.d.out)
    add_tokens(p, b, part, &p.all_dc, s.dc, t, n, p.d.units)
    if p.variant != NULL:
        enter_variant(p, b, part, &s, t, n)
    if p.d.projection:
        project_back(p, b, part, t, n, dh)
        s.dh = from_row(p.dhidden, units, part.row_begin, itemsize)
    cell_back(p, b, part, &s, t, n)
    if team.units and meet(team):
        return True
    if p.d.cell == RC_GRU_RESET_BEFORE:
        recurrent = from_row(p.dz_hh, p.dz_row, part.local, itemsize)
        side_back(p, b, part, LN_HH, &p.d.recurrent[1], t, n)
        product(p, &p.d.rnt, p.d.rnt_packed, recurrent, s.reset, n, part, False, True)
        if p.variant != NULL and p.variant.drop != NULL:
            multiply_rows(itemsize, s.reset, from_row(p.variant.drop, units, part.row_begin, itemsize), s.reset, n,
                          p.d.units)
        s.phase = 1
        p.kernels.step_back(&s)
        if team.units and meet(team):
            return True
    side_back(p, b, part, LN_HH, &p.d.recurrent[0], t, n)
    for i in range(p.d.inputs_count):
        side_back(p, b, part, LN_IH, &p.d.input[i], t, n)
    recurrent = dz_rows(p, p.dz_hh, p.d.recurrent[0].column, part, pointers + 3 * n)
    if p.variant != NULL:
        leave_variant(p, part, dh, s.dc, recurrent, n)
    else:
        product(p, &p.d.rt, p.d.rt_packed, recurrent, dh, n, part, True, True)
    return False


cdef inline void pass_step(const BackPass *p, const Batch *b, ptrdiff_t t, int sign, ptrdiff_t *at) noexcept nogil:
    """Where each group's rows of dz begin, one step later (or with -1 earlier) than at step t."""
    cdef ptrdiff_t first = border(p, b, t)
    at[0] += sign * first
    at[1] += sign * (b.active[t] - first)


cdef void place_part(const BackPass *p, const Batch *b, const Team *team, ptrdiff_t t, const ptrdiff_t *at,
                     Part *part) noexcept nogil:
    """This thread's rows of step t, whose groups' rows of dz begin at `at`."""
    share_rows(b, team, t, &part.row_begin, &part.row_end)
    part.split = border(p, b, t) - part.row_begin
    part.local, part.local_after = at[0] + part.row_begin, at[1]
    if part.split <= 0:  # all are of the second group
        part.split, part.local = part.row_end, at[1] - part.split


cdef bint chunk_back(BackPass *p, const Batch *b, Part *part, Team *team, ptrdiff_t begin, ptrdiff_t end,
                     void **pointers) noexcept nogil:
    """Steps [begin, end) in the order opposite to the forward pass's, then the chunk's products."""
    cdef ptrdiff_t i, t
    cdef ptrdiff_t[2] at
    at[0], at[1] = 0, p.group_rows
    if not p.reverse:
        for t in range(begin, end):
            pass_step(p, b, t, 1, at)
    for i in range(end - begin):
        t = begin + i if p.reverse else end - 1 - i
        if meet_if_shared_anew(b, team, t, t - 1 if p.reverse else t + 1):
            return True
        if not p.reverse:
            pass_step(p, b, t, -1, at)
        place_part(p, b, team, t, at, part)
        if part.row_end > part.row_begin or team.units:
            if step_back(p, b, part, team, t, pointers):
                return True
        if p.reverse:
            pass_step(p, b, t, 1, at)
        if interrupted(team, 1):
            break
    return chunk_gradients(p, b, team, begin, end, pointers)


cdef bint backward_pass(BackPass *p, const Batch *b, Team *team, const Chunks *chunks, void **pointers) noexcept nogil:
    """This thread's part of one direction's backward pass; `pointers` holds 6 * chunks.tokens of them. True when the
    call is to be left."""
    cdef Part part
    cdef ptrdiff_t i, at, vectors = rc_vectors(p.d.units, p.kernels.lanes)
    part.unit_begin, part.unit_end = 0, vectors
    if team.units:
        share_panels(p.d.units, 4 * p.kernels.lanes, team, &part.unit_begin, &part.unit_end)
        part.unit_begin, part.unit_end = 4 * part.unit_begin, min(4 * part.unit_end, vectors)
    begin_gradients(p, team)
    for i in range(chunks.count):
        at = i if p.reverse else chunks.count - 1 - i
        if chunk_back(p, b, &part, team, chunks.begin[at], chunks.begin[at + 1], pointers):
            return True
    return end_gradients(p, team)
