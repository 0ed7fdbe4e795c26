"""The gradients of the weights and of x: products over a chunk of steps, taken while its dz is in the cache.

Where these gradients are small, the sequences of a batch are two groups whose sums are kept apart until the pass is
done: two threads then take one each, and neither reads what the other has written last, nor waits for it. One thread
takes both, so that the bits are the same.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

from rnn_core._backward cimport BackPass, border, state_before
from rnn_core._dense cimport dense_of
from rnn_core._kernels cimport *
from rnn_core._norms cimport hat_at
from rnn_core._plan cimport LN_C, LN_HH, LN_IH, Batch, Block, Segment, Team, add_outer, from_row, gates_of, meet, \
    outer_job, part_of, product_job, rc_stop_asked, rows_after, rows_at, rows_by, share, token, whole
from rnn_core._variants cimport multiply_rows

ctypedef fused real:
    float
    double


cdef rc_outer gradient_job(const BackPass *p, char *dz, char *dw, const Segment *segment, rc_rows x,
                           ptrdiff_t columns, ptrdiff_t rows, const Team *team) noexcept nogil:
    """The product dw[segment.row : + count] += dz[:, segment.column : + count]^T x, this thread's part of the gates."""
    cdef size_t itemsize = p.kernels.itemsize
    cdef ptrdiff_t begin, end
    share(segment.count, team.rank, team.size, &begin, &end)
    return outer_job(rows_at(dz + segment.column * itemsize, p.dz_row), x, rows, columns,
                     dw + segment.row * columns * itemsize, columns, begin, end, team.columns)


cdef void sum_columns(const BackPass *p, rc_rows dz, const rc_rows *factors, char *db, char *also,
                      const Segment *segment, ptrdiff_t rows, const Team *team) noexcept nogil:
    """db[segment.row : + count] += the sums over dz[:, segment.column : + count], of its products where there are
    factors (whose columns begin at the segment's); and also[...] += the same. Either may be NULL."""
    cdef size_t itemsize = p.kernels.itemsize
    cdef ptrdiff_t begin, end
    dz.base = <char *>dz.base + segment.column * itemsize
    if db == NULL:
        db, also = also, NULL
    if db != NULL:
        share(segment.count, team.rank, team.size, &begin, &end)
        if also != NULL:
            also += segment.row * itemsize
        p.kernels.column_sums(&dz, factors, rows, db + segment.row * itemsize, also, begin, end)


cdef void pass_over(Segment *segment, ptrdiff_t count) noexcept nogil:
    """What is left of a segment after so many of its columns."""
    segment.column += count
    segment.row += count
    segment.count -= count


cdef void bias_gradients(const BackPass *p, const Team *team, char *dz_ih, char *dz_hh, ptrdiff_t rows) noexcept nogil:
    """db_ih += sums of dz_ih, db_hh += sums of dz_hh, either of which may be NULL; where they are the same, both take
    the sums of the columns that they share at once."""
    cdef rc_rows of_input = rows_at(dz_ih, p.dz_row), of_recurrent = rows_at(dz_hh, p.dz_row)
    cdef Segment rest = p.d.recurrent[0]
    cdef ptrdiff_t i
    cdef bint both
    for i in range(p.d.inputs_count if dz_ih != NULL else 0):
        both = dz_ih == dz_hh and p.d.input[i].column == rest.column
        sum_columns(p, of_input, NULL, p.db_ih, p.db_hh if both else NULL, &p.d.input[i], rows, team)
        if both:
            pass_over(&rest, p.d.input[i].count)
    for i in range(p.d.recurrent_count if dz_hh != NULL else 0):
        sum_columns(p, of_recurrent, NULL, p.db_hh, NULL, &p.d.recurrent[i] if i else &rest, rows, team)


cdef void norm_gradient(const BackPass *p, const Batch *b, const Team *team, int which, const Segment *segment,
                        rc_rows dy, ptrdiff_t begin, ptrdiff_t rows) noexcept nogil:
    """dshift += sums of dy, dgain += sums of dy * the normalised values, over the chunk that begins at step `begin`."""
    cdef rc_rows hat = rows_at(hat_at(&p.variant.norms, which, b.first[begin], segment.row, p.kernels.itemsize),
                               p.variant.norms.hat_row[which])
    sum_columns(p, dy, NULL, p.dshift[which], NULL, segment, rows, team)
    sum_columns(p, dy, &hat, p.dgain[which], NULL, segment, rows, team)


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
    """dx = dz W, dW += dz^T x. With `states`, dR += dz^T states goes beside where it takes the same columns of dz;
    `recurrent` is left with those that it does not."""
    cdef size_t itemsize = p.kernels.itemsize
    cdef ptrdiff_t i, first, last
    cdef const Segment *segment
    cdef rc_outer of_w, of_r
    cdef rc_gemm job
    for i in range(p.d.inputs_count):
        segment = &p.d.input[i]
        if p.dw != NULL:
            of_w = gradient_job(p, dz, p.dw, segment, x, p.d.inputs, rows, team)
            if states != NULL and segment.column == recurrent.column:
                of_r = gradient_job(p, dz, p.dr, segment, states[0], p.d.out, rows, team)
                of_w.beside = &of_r
                pass_over(recurrent, segment.count)
            p.kernels.outer(&of_w)
    if p.need_dx:
        share(rows, team.rank, team.size, &first, &last)
        job = product_job(p.kernels, &p.d.wt, p.d.wt_packed, NULL, p.add_dx, False,
                          from_row(dz, p.dz_row, first, itemsize), rows_after(dx, first, itemsize), last - first)
        job.far = not p.add_dx
        p.kernels.gemm(&job)


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


cdef void special_gradients(BackPass *p, const Batch *b, Team *team, ptrdiff_t begin, ptrdiff_t rows) noexcept nogil:
    """What only some layers have: dR_n += dz^T (r*h_prev) of GRU_RESET_BEFORE, and dW_hr."""
    cdef ptrdiff_t lanes = p.kernels.lanes, units = whole(p.d.units, lanes), first, last
    cdef size_t itemsize = p.kernels.itemsize
    cdef rc_outer job
    if p.d.recurrent_count == 2 and p.dr != NULL:
        job = gradient_job(p, p.dz_hh, p.dr, &p.d.recurrent[1], rows_at(p.resets, units), p.d.out, rows, team)
        p.kernels.outer(&job)
    if p.d.projection and p.dp != NULL:
        share(p.d.out, team.rank, team.size, &first, &last)
        add_outer(p.kernels, rows_at(p.douts, whole(p.d.out, lanes)),
                  from_row(p.saved_hidden, units, b.first[begin], itemsize), rows, p.d.units, p.dp, p.d.units, first,
                  last, team.columns)


cdef void set_reset(real *to, const real *saved, const real *h, ptrdiff_t units, ptrdiff_t lanes) noexcept nogil:
    """to <- r*h, from a saved gate row [unit vector][r z n][lane]."""
    cdef ptrdiff_t j
    for j in range(units):
        to[j] = saved[j // lanes * 3 * lanes + j % lanes] * h[j]


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


cdef void group_gradients(BackPass *p, const Batch *b, Team *team, int group, ptrdiff_t begin, ptrdiff_t end,
                          void **pointers) noexcept nogil:
    """The gradients of x, the weights and the biases from steps [begin, end) of a group. Where dz is summed up first,
    the input's follow once the pass is done."""
    cdef ptrdiff_t t, m, first, n = 0
    cdef void **dx = pointers + p.group_rows
    cdef void **h = dx + p.group_rows
    cdef Segment rest = p.d.recurrent[0]
    cdef rc_rows states = rows_by(h)
    cdef bint beside = p.dr != NULL and p.dz_ih == p.dz_hh
    cdef rc_outer job
    if p.sums != NULL:
        add_to_sums(p, b, team, begin, end, <int64_t *>pointers)
    for t in range(begin, end):
        first = border(p, b, t)
        for m in range(first if group else 0, b.active[t] if group else first):
            if p.sums == NULL:
                pointers[n] = token(&p.x, b, t, m)
            if p.sums == NULL and p.need_dx:
                dx[n] = token(&p.dx, b, t, m)
            h[n] = state_before(p, b, t, m)
            n += 1
    if p.variant != NULL and p.variant.drop != NULL:
        states = rows_at(p.variant.states, whole(p.d.out, p.kernels.lanes))
    if p.sums == NULL:
        input_products(p, team, p.dz_ih, rows_by(pointers), rows_by(dx), n,
                       &states if beside else NULL, &rest)
    if p.dr != NULL and rest.count:
        job = gradient_job(p, p.dz_hh, p.dr, &rest, states, p.d.out, n, team)
        p.kernels.outer(&job)
    special_gradients(p, b, team, begin, n)
    bias_gradients(p, team, NULL if p.sums != NULL else p.dz_ih, p.dz_hh, n)


# -------------------------------------------------------------------------------------------- groups of sequences


cdef int groups_of(int gates, ptrdiff_t units, ptrdiff_t columns, ptrdiff_t rows) noexcept nogil:
    """1, or 2 where the second sum costs one thread nothing: where gradients of so many columns fit into a part of L2,
    and the batch has enough sequences for two threads."""
    return 2 if gates * units * columns <= 2 * RC_OUTER_LARGE and rows >= 16 else 1


cdef size_t second_bytes(const BackPass *p) noexcept nogil:
    return second_size(gates_of(p.d.cell), p.d.units, p.d.inputs, p.d.out) * p.kernels.itemsize


cdef void take_second(BackPass *passes, int count, Block scratch, second, bint last) except *:
    """Memory for the second group's gradients of each pass: of its own, or a part of `second`, zeros that several
    calls add to and the last one adds to the gradients."""
    cdef BackPass *p
    cdef int i
    cdef size_t used = 0
    for i in range(count):
        p = &passes[i]
        p.own_second, p.add_second = second is None, last
        p.second = <char *>scratch.take(second_bytes(p)) if second is None else part_of(second, 0, 0, 1) + used
        used += second_bytes(p)


cdef bint is_apart(const BackPass *p, const Team *team) noexcept nogil:
    """Whether each thread takes a group of its own all the way, and needs nothing of the other before the end."""
    return p.groups == 2 and team.size == 2 and not team.units


cdef char *move_on(char *first, char **second, size_t bytes) noexcept nogil:
    """The second group's place for a gradient, NULL where it is unwanted."""
    second[0] += bytes
    return NULL if first == NULL else second[0] - bytes


cdef BackPass pass_of(const BackPass *p, int group) noexcept nogil:
    """The pass with the group's dz and gradients."""
    cdef BackPass q = p[0]
    cdef size_t gates = gates_of(p.d.cell) * p.d.units * p.kernels.itemsize
    cdef char *second = p.second
    if group:
        q.dz = q.dz_ih = q.dz_hh = p.dz + p.group_rows * p.dz_row * <ptrdiff_t>p.kernels.itemsize
        q.dw = move_on(p.dw, &second, gates * p.d.inputs)
        q.dr = move_on(p.dr, &second, gates * p.d.out)
        q.db_ih = move_on(p.db_ih, &second, gates)
        q.db_hh = move_on(p.db_hh, &second, gates)
    return q


cdef void add_share(const BackPass *p, const Team *team, char *of, char *to, ptrdiff_t n) noexcept nogil:
    """to += of, this thread's part of n elements."""
    cdef ptrdiff_t begin, end
    cdef rc_rows row = rows_at(of, n)
    share(n, team.rank, team.size, &begin, &end)
    if to != NULL:
        p.kernels.column_sums(&row, NULL, 1, to, NULL, begin, end)


cdef void begin_gradients(const BackPass *p, const Team *team) noexcept nogil:
    """Before a pass: zeros, by a thread that adds to them first or meets the others before they do."""
    if p.groups == 2 and p.own_second and team.rank == is_apart(p, team):
        memset(p.second, 0, second_bytes(p))


cdef bint chunk_gradients(BackPass *p, const Batch *b, Team *team, ptrdiff_t begin, ptrdiff_t end,
                          void **pointers) noexcept nogil:
    """Steps [begin, end), whose dz this thread has done its part of. True when the call is to be left."""
    cdef Team own = team[0]
    cdef BackPass q
    cdef int group
    if is_apart(p, team):
        own.rank, own.size = 0, 1
        q = pass_of(p, team.rank)
        if not rc_stop_asked(team.call):
            group_gradients(&q, b, &own, team.rank, begin, end, pointers)
        return False
    if p.d.cell == RC_GRU_RESET_BEFORE:
        reset_states(p, b, team, begin, end)
    if p.variant != NULL and p.variant.drop != NULL:
        mask_states(p, b, team, begin, end)
    if meet(team):  # all of dz is there
        return True
    for group in range(p.groups):
        q = pass_of(p, group)
        group_gradients(&q, b, team, group, begin, end, pointers)
    if p.d.normed:
        norm_gradients(p, b, team, begin, b.first[end] - b.first[begin])
    return meet(team)  # nobody reads dz any more


cdef bint end_gradients(BackPass *p, Team *team) noexcept nogil:
    """After a pass: what dz summed up first gives, and the second group's gradients to the first's."""
    cdef BackPass q = pass_of(p, p.groups - 1)
    cdef ptrdiff_t gates = gates_of(p.d.cell) * p.d.units
    if p.sums != NULL:
        input_products(p, team, p.sums, rows_at(p.table, p.d.inputs), rows_at(p.dtable, p.d.inputs), p.table_rows, NULL,
                       NULL)
        bias_gradients(p, team, p.sums, NULL, p.table_rows)
    if is_apart(p, team) and meet(team):
        return True
    if p.groups == 2 and p.add_second:
        add_share(p, team, q.dw, p.dw, gates * p.d.inputs)
        add_share(p, team, q.dr, p.dr, gates * p.d.out)
        add_share(p, team, q.db_ih, p.db_ih, gates)
        add_share(p, team, q.db_hh, p.db_hh, gates)
    return False
