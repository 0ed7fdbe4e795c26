"""Backpropagation through time, one loop for all cells.

Step by step backwards: the cell's pointwise gradients give dz (the gradient of the pre-activations), and dz R the
gradient of the state before. The gradients of the weights and of x are matrix products over a whole chunk of steps,
taken when the chunk is done and its dz still in the cache. Chunks do not depend on the threads, so nor do the bits.
"""

from libc.stdint cimport int64_t

from rnn_core._dense cimport dense_of
from rnn_core._kernels cimport *
from rnn_core._norms cimport hat_at, normalise_back, normalise_cell_back
from rnn_core._plan cimport LN_C, LN_HH, LN_IH, Batch, Chunks, Segment, Team, View, add_outer, from_row, gates_of, \
    interrupted, meet, meet_if_shared_anew, outer_job, product_job, rows_after, rows_at, rows_by, share, share_rows, \
    token, whole
from rnn_core._variants cimport add_product, add_rows, copy_rows, is_view, multiply_rows, split_rows


ctypedef fused real:
    float
    double


cdef struct Part:
    # Sequences [row_begin, row_end) of the step at hand and hidden units, in vectors, that this thread takes back.
    ptrdiff_t row_begin, row_end, unit_begin, unit_end


cdef inline void *state_before(const BackPass *p, const Batch *b, ptrdiff_t t, ptrdiff_t m) noexcept nogil:
    """The h that step t of sequence m started from: y of the step before, or the initial state."""
    if p.reverse:
        return token(&p.y, b, t + 1, m) if t + 1 < b.length[m] else p.h0[m]
    return token(&p.y, b, t - 1, m) if t > 0 else p.h0[m]


cdef void product(const BackPass *p, const rc_shape *shape, void *packed, rc_rows a, rc_rows c, ptrdiff_t rows,
                  const Part *part, bint accumulate, bint is_padded) noexcept nogil:
    """c (+)= a times a packed matrix, for this thread's columns."""
    cdef rc_gemm job = product_job(p.kernels, shape, packed, NULL, accumulate, is_padded, a, c, rows)
    job.panel_begin, job.panel_end = part.unit_begin // 4, min((part.unit_end + 3) // 4, job.panel_end)
    p.kernels.gemm(&job)


cdef Part all_columns() noexcept nogil:
    """No rows, but every column there is: for a product that this thread does whole."""
    cdef Part every
    every.row_begin, every.row_end, every.unit_begin, every.unit_end = 0, 0, 0, <ptrdiff_t>1 << 40
    return every


# ------------------------------------------------------------------------------------------------------- through time


cdef void project_back(BackPass *p, const Batch *b, const Part *part, ptrdiff_t t, ptrdiff_t n, ptrdiff_t local,
                       rc_rows dh) noexcept nogil:
    """With a projection: dout = dy + dh, kept for W_hr's gradient, and dhidden = dout W_hr."""
    cdef ptrdiff_t lanes = p.kernels.lanes, m, out = whole(p.d.out, lanes)
    cdef size_t itemsize = p.kernels.itemsize
    cdef rc_rows douts = from_row(p.douts, out, local, itemsize)
    cdef rc_rows hidden = from_row(p.dhidden, whole(p.d.units, lanes), part.row_begin, itemsize)
    cdef Part every = all_columns()
    cdef void *dy
    for m in range(n):
        dy = NULL
        if p.variant == NULL and is_view(&p.dy):
            dy = token(&p.dy, b, t, part.row_begin + m)
        if itemsize == 4:
            add_row[float](<float *>douts.base + m * out, <float *>dh.base + m * out, <float *>dy, p.d.out)
        else:
            add_row[double](<double *>douts.base + m * out, <double *>dh.base + m * out, <double *>dy, p.d.out)
    product(p, &p.d.pt, p.d.pt_packed, douts, hidden, n, &every, False, True)


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


cdef void set_reset(real *to, const real *saved, const real *h, ptrdiff_t units, ptrdiff_t lanes) noexcept nogil:
    """to <- r*h, from a saved gate row [unit vector][r z n][lane]."""
    cdef ptrdiff_t j
    for j in range(units):
        to[j] = saved[j // lanes * 3 * lanes + j % lanes] * h[j]


cdef void prepare(BackPass *p, const Batch *b, const Part *part, rc_step_back *s, ptrdiff_t t, ptrdiff_t n,
                  ptrdiff_t local, void **pointers) noexcept nogil:
    """The step's rows. pointers: 2 n of them."""
    cdef ptrdiff_t lanes = p.kernels.lanes, m, tape = b.first[t] + part.row_begin, units = whole(p.d.units, lanes)
    cdef size_t itemsize = p.kernels.itemsize
    s.cell, s.phase, s.units = p.d.cell, 0, p.d.units
    s.saved = from_row(p.saved, rc_row_size(&p.d.w, lanes), tape, itemsize)
    s.saved_unit = from_row(p.saved_unit, units, tape, itemsize)
    s.dh = from_row(p.dh, whole(p.d.out, lanes), part.row_begin, itemsize)
    s.dc = from_row(p.dc, units, part.row_begin, itemsize)
    s.reset = from_row(p.reset, units, part.row_begin, itemsize)
    s.dz = from_row(p.dz, p.dz_row, local, itemsize)
    s.row_begin, s.row_end, s.unit_begin, s.unit_end = 0, n, part.unit_begin, part.unit_end
    s.h_prev = rows_by(pointers)
    s.dy = rows_at(NULL, 0)
    for m in range(n):
        pointers[m] = state_before(p, b, t, part.row_begin + m)
    if p.d.projection == 0 and p.variant == NULL and is_view(&p.dy):
        for m in range(n):
            pointers[n + m] = token(&p.dy, b, t, part.row_begin + m)
        s.dy = rows_by(pointers + n)


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


cdef void cell_back(BackPass *p, const Batch *b, const Part *part, rc_step_back *s, ptrdiff_t t, ptrdiff_t local,
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
                        from_row(p.variant.norms.dy_c, units, local, itemsize), b.first[t] + part.row_begin, n)
    p.kernels.step_back(s)
    copy_rows(itemsize, dz_o, rows_at(<char *>s.dz.base + 3 * p.d.units * itemsize, p.dz_row), n, p.d.units)


cdef void side_back(BackPass *p, const Batch *b, const Part *part, int which, const Segment *segment, ptrdiff_t t,
                    ptrdiff_t local, ptrdiff_t n) noexcept nogil:
    """dz of the step through one side's layer normalisation, if there is one."""
    cdef size_t itemsize = p.kernels.itemsize
    if p.d.normed:
        normalise_back(p.kernels, p.d, &p.variant.norms, which, segment, from_row(p.dz, p.dz_row, local, itemsize),
                       from_row(p.dz_ih if which == LN_IH else p.dz_hh, p.dz_row, local, itemsize),
                       b.first[t] + part.row_begin, n)


cdef bint step_back(BackPass *p, const Batch *b, const Part *part, Team *team, ptrdiff_t t, ptrdiff_t local,
                    void **pointers) noexcept nogil:
    """One step back; `local`: the step's first row in the chunk's buffers. True when the call is to be left."""
    cdef ptrdiff_t n = part.row_end - part.row_begin, units = whole(p.d.units, p.kernels.lanes)
    cdef size_t itemsize = p.kernels.itemsize
    cdef int i
    cdef rc_step_back s
    cdef rc_rows dh, recurrent
    prepare(p, b, part, &s, t, n, local, pointers)
    dh = s.dh
    add_tokens(p, b, part, &p.all_dh, dh, t, n, p.d.out)
    add_tokens(p, b, part, &p.all_dc, s.dc, t, n, p.d.units)
    if p.variant != NULL:
        enter_variant(p, b, part, &s, t, n)
    if p.d.projection:
        project_back(p, b, part, t, n, local, dh)
        s.dh = from_row(p.dhidden, units, part.row_begin, itemsize)
    cell_back(p, b, part, &s, t, local, n)
    if team.units and meet(team):
        return True
    recurrent = from_row(p.dz_hh, p.dz_row, local, itemsize)
    if p.d.cell == RC_GRU_RESET_BEFORE:
        side_back(p, b, part, LN_HH, &p.d.recurrent[1], t, local, n)
        product(p, &p.d.rnt, p.d.rnt_packed, recurrent, s.reset, n, part, False, True)
        if p.variant != NULL and p.variant.drop != NULL:
            multiply_rows(itemsize, s.reset, from_row(p.variant.drop, units, part.row_begin, itemsize), s.reset, n,
                          p.d.units)
        s.phase = 1
        p.kernels.step_back(&s)
        if team.units and meet(team):
            return True
    side_back(p, b, part, LN_HH, &p.d.recurrent[0], t, local, n)
    for i in range(p.d.inputs_count):
        side_back(p, b, part, LN_IH, &p.d.input[i], t, local, n)
    recurrent.base = <char *>recurrent.base + p.d.recurrent[0].column * itemsize
    if p.variant != NULL:
        leave_variant(p, part, dh, s.dc, recurrent, n)
    else:
        product(p, &p.d.rt, p.d.rt_packed, recurrent, dh, n, part, True, True)
    return False


# ------------------------------------------------------------------------------------------- products over a chunk


cdef rc_outer gradient_job(const BackPass *p, char *dz, char *dw, const Segment *segment, rc_rows x,
                           ptrdiff_t columns, ptrdiff_t rows, const Team *team) noexcept nogil:
    """The product dw[segment.row : + count] += dz[:, segment.column : + count]^T x, this thread's part of the gates."""
    cdef size_t itemsize = p.kernels.itemsize
    cdef ptrdiff_t begin, end
    share(segment.count, team.rank, team.size, &begin, &end)
    return outer_job(rows_at(dz + segment.column * itemsize, p.dz_row), x, rows, columns,
                     dw + segment.row * columns * itemsize, columns, begin, end, team.columns)


cdef void sum_columns(const BackPass *p, rc_rows dz, const rc_rows *factors, char *db, const Segment *segment,
                      ptrdiff_t rows, int rank, int size) noexcept nogil:
    """db[segment.row : + count] += the sums over dz[:, segment.column : + count], of its products where there are
    factors (whose columns begin at the segment's)."""
    cdef size_t itemsize = p.kernels.itemsize
    cdef ptrdiff_t begin, end
    dz.base = <char *>dz.base + segment.column * itemsize
    if db != NULL:
        share(segment.count, rank, size, &begin, &end)
        p.kernels.column_sums(&dz, factors, rows, db + segment.row * itemsize, begin, end)


cdef void norm_gradient(const BackPass *p, const Batch *b, const Team *team, int which, const Segment *segment,
                        rc_rows dy, ptrdiff_t begin, ptrdiff_t rows) noexcept nogil:
    """dshift += sums of dy, dgain += sums of dy * the normalised values, over the chunk that begins at step `begin`."""
    cdef rc_rows hat = rows_at(hat_at(&p.variant.norms, which, b.first[begin], segment.row, p.kernels.itemsize),
                               p.variant.norms.hat_row[which])
    sum_columns(p, dy, NULL, p.dshift[which], segment, rows, team.rank, team.size)
    sum_columns(p, dy, &hat, p.dgain[which], segment, rows, team.rank, team.size)


cdef void norm_gradients(const BackPass *p, const Batch *b, const Team *team, ptrdiff_t begin,
                         ptrdiff_t rows) noexcept nogil:
    cdef rc_rows dz = rows_at(p.dz, p.dz_row)
    cdef Segment cell
    cdef int i
    for i in range(p.d.inputs_count):
        norm_gradient(p, b, team, LN_IH, &p.d.input[i], dz, begin, rows)
    for i in range(p.d.recurrent_count):
        norm_gradient(p, b, team, LN_HH, &p.d.recurrent[i], dz, begin, rows)
    if p.d.cell == RC_LSTM:
        cell.column, cell.row, cell.count = 0, 0, p.d.units
        norm_gradient(p, b, team, LN_C, &cell, rows_at(p.variant.norms.dy_c, whole(p.d.units, p.kernels.lanes)), begin,
                      rows)


cdef void input_products(BackPass *p, Team *team, char *dz, rc_rows x, rc_rows dx, ptrdiff_t rows,
                         const rc_rows *states, Segment *recurrent) noexcept nogil:
    """dx = dz W, dW += dz^T x, db_ih += sums of dz. With `states`, dR += dz^T states goes beside where it takes the
    same columns of dz; `recurrent` is left with those that it does not."""
    cdef size_t itemsize = p.kernels.itemsize
    cdef ptrdiff_t i, first, last
    cdef Part every = all_columns()
    cdef const Segment *segment
    cdef rc_outer of_w, of_r
    for i in range(p.d.inputs_count):
        segment = &p.d.input[i]
        if p.dw != NULL:
            of_w = gradient_job(p, dz, p.dw, segment, x, p.d.inputs, rows, team)
            if states != NULL and segment.column == recurrent.column:
                of_r = gradient_job(p, dz, p.dr, segment, states[0], p.d.out, rows, team)
                of_w.beside = &of_r
                recurrent.column += segment.count
                recurrent.row += segment.count
                recurrent.count -= segment.count
            p.kernels.outer(&of_w)
        sum_columns(p, rows_at(dz, p.dz_row), NULL, p.db_ih, segment, rows, team.rank, team.size)
    if p.need_dx:
        share(rows, team.rank, team.size, &first, &last)
        product(p, &p.d.wt, p.d.wt_packed, from_row(dz, p.dz_row, first, itemsize), rows_after(dx, first, itemsize),
                last - first, &every, p.add_dx, False)


cdef void add_to_sums(BackPass *p, const Batch *b, const Team *team, ptrdiff_t begin, ptrdiff_t end,
                      int64_t *places) noexcept nogil:
    """sums[place of the token] += dz over steps [begin, end), this thread taking a part of the columns. With them the
    gradients of the input follow once the pass is done."""
    cdef ptrdiff_t t, m, n = 0, line = 64 // <ptrdiff_t>p.kernels.itemsize, first, last
    cdef ptrdiff_t columns = gates_of(p.d.cell) * p.d.units
    for t in range(begin, end):
        for m in range(b.active[t]):
            places[n] = (<int64_t *>token(&p.x, b, t, m))[0]
            n += 1
    share((columns + line - 1) // line, team.rank, team.size, &first, &last)
    dense_of(p.kernels).scatter_add(p.sums, places, n, p.dz_row, p.dz_ih, -1, first * line, min(last * line, columns))


cdef void chunk_gradients(BackPass *p, const Batch *b, Team *team, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t rows,
                          void **pointers) noexcept nogil:
    """The gradients of x, the weights and the biases from steps [begin, end) of `rows` tokens. Where dz is summed up
    first, the input's follow once the pass is done."""
    cdef ptrdiff_t t, m, n = 0
    cdef void **h = pointers + 2 * rows
    cdef Segment rest = p.d.recurrent[0]
    cdef rc_rows states = rows_by(h)
    cdef bint beside = p.dr != NULL and p.dz_ih == p.dz_hh
    cdef rc_outer job
    if p.sums != NULL:
        add_to_sums(p, b, team, begin, end, <int64_t *>pointers)
    for t in range(begin, end):
        for m in range(b.active[t]):
            if p.sums == NULL:
                pointers[n] = token(&p.x, b, t, m)
            if p.sums == NULL and p.need_dx:
                pointers[rows + n] = token(&p.dx, b, t, m)
            h[n] = state_before(p, b, t, m)
            n += 1
    if p.variant != NULL and p.variant.drop != NULL:
        states = rows_at(p.variant.states, whole(p.d.out, p.kernels.lanes))
    if p.sums == NULL:
        input_products(p, team, p.dz_ih, rows_by(pointers), rows_by(pointers + rows), rows,
                       &states if beside else NULL, &rest)
    if p.dr != NULL and rest.count:
        job = gradient_job(p, p.dz_hh, p.dr, &rest, states, p.d.out, rows, team)
        p.kernels.outer(&job)
    recurrent_gradients(p, b, team, begin, rows)


cdef void recurrent_gradients(BackPass *p, const Batch *b, Team *team, ptrdiff_t begin, ptrdiff_t rows) noexcept nogil:
    """db_hh; with them dR_n += dz^T (r*h_prev) of GRU_RESET_BEFORE, and dW_hr."""
    cdef ptrdiff_t i, lanes = p.kernels.lanes, units = whole(p.d.units, lanes), first, last
    cdef size_t itemsize = p.kernels.itemsize
    cdef rc_outer job
    for i in range(p.d.recurrent_count):
        if i and p.dr != NULL:
            job = gradient_job(p, p.dz_hh, p.dr, &p.d.recurrent[i], rows_at(p.resets, units), p.d.out, rows, team)
            p.kernels.outer(&job)
        sum_columns(p, rows_at(p.dz_hh, p.dz_row), NULL, p.db_hh, &p.d.recurrent[i], rows, team.rank, team.size)
    if p.d.projection and p.dp != NULL:
        share(p.d.out, team.rank, team.size, &first, &last)
        add_outer(p.kernels, rows_at(p.douts, whole(p.d.out, lanes)),
                  from_row(p.saved_hidden, units, b.first[begin], itemsize), rows, p.d.units, p.dp, p.d.units, first,
                  last, team.columns)


cdef void reset_states(BackPass *p, const Batch *b, Team *team, ptrdiff_t begin, ptrdiff_t end) noexcept nogil:
    """resets <- r*h_prev of every token of the chunk; each thread its share of them."""
    cdef ptrdiff_t lanes = p.kernels.lanes, t, m, n = 0, units = whole(p.d.units, lanes), first, last
    cdef void *h
    share(b.first[end] - b.first[begin], team.rank, team.size, &first, &last)
    for t in range(begin, end):
        for m in range(b.active[t]):
            if first <= n < last:
                h = state_before(p, b, t, m)
                if p.kernels.itemsize == 4:
                    set_reset[float](<float *>p.resets + n * units,
                                     <float *>p.saved + (b.first[t] + m) * 3 * units, <float *>h, p.d.units, lanes)
                else:
                    set_reset[double](<double *>p.resets + n * units,
                                      <double *>p.saved + (b.first[t] + m) * 3 * units, <double *>h, p.d.units, lanes)
            n += 1


cdef void mask_states(BackPass *p, const Batch *b, Team *team, ptrdiff_t begin, ptrdiff_t end) noexcept nogil:
    """states <- the masked h_prev of every token of the chunk, and resets through the same mask."""
    cdef ptrdiff_t out = whole(p.d.out, p.kernels.lanes), t, m, n = 0, first, last
    cdef size_t itemsize = p.kernels.itemsize
    cdef rc_rows factor, reset
    share(b.first[end] - b.first[begin], team.rank, team.size, &first, &last)
    for t in range(begin, end):
        for m in range(b.active[t]):
            if first <= n < last:
                factor, reset = from_row(p.variant.drop, out, m, itemsize), from_row(p.resets, out, n, itemsize)
                multiply_rows(itemsize, rows_at(state_before(p, b, t, m), 0), factor,
                              from_row(p.variant.states, out, n, itemsize), 1, p.d.out)
                if p.d.cell == RC_GRU_RESET_BEFORE:
                    multiply_rows(itemsize, reset, factor, reset, 1, p.d.out)
            n += 1


cdef bint chunk_back(BackPass *p, const Batch *b, Part *part, Team *team, ptrdiff_t begin, ptrdiff_t end,
                     void **pointers) noexcept nogil:
    """Steps [begin, end) in the order opposite to the forward pass's, then the chunk's products."""
    cdef ptrdiff_t i, t, rows = b.first[end] - b.first[begin]
    for i in range(end - begin):
        t = begin + i if p.reverse else end - 1 - i
        if meet_if_shared_anew(b, team, t, t - 1 if p.reverse else t + 1):
            return True
        share_rows(b, team, t, &part.row_begin, &part.row_end)
        if part.row_end > part.row_begin or team.units:
            if step_back(p, b, part, team, t, b.first[t] - b.first[begin] + part.row_begin, pointers):
                return True
        if interrupted(team, 1):
            break
    if p.d.cell == RC_GRU_RESET_BEFORE:
        reset_states(p, b, team, begin, end)
    if p.variant != NULL and p.variant.drop != NULL:
        mask_states(p, b, team, begin, end)
    if meet(team):  # all of dz is there
        return True
    chunk_gradients(p, b, team, begin, end, rows, pointers)
    if p.d.normed:
        norm_gradients(p, b, team, begin, rows)
    return meet(team)  # nobody reads dz any more


cdef bint backward_pass(BackPass *p, const Batch *b, Team *team, const Chunks *chunks, void **pointers) noexcept nogil:
    """This thread's part of one direction's backward pass; `pointers` holds 3 * chunks.tokens of them. True when the
    call is to be left."""
    cdef Part part
    cdef ptrdiff_t i, at
    cdef ptrdiff_t panels = (rc_vectors(p.d.units, p.kernels.lanes) + 3) // 4
    part.unit_begin, part.unit_end = 0, rc_vectors(p.d.units, p.kernels.lanes)
    if team.units:
        share(panels, team.rank, team.size, &part.unit_begin, &part.unit_end)
        part.unit_begin *= 4
        part.unit_end = min(4 * part.unit_end, rc_vectors(p.d.units, p.kernels.lanes))
    for i in range(chunks.count):
        at = i if p.reverse else chunks.count - 1 - i
        if chunk_back(p, b, &part, team, chunks.begin[at], chunks.begin[at + 1], pointers):
            return True
    if p.sums != NULL:
        input_products(p, team, p.sums, rows_at(p.table, p.d.inputs), rows_at(p.dtable, p.d.inputs), p.table_rows, NULL,
                       NULL)
    return False
