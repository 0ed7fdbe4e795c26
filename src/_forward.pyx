"""The forward time loop, one for all cells.

Steps are taken in chunks: the input projection of a whole chunk is one matrix product, small enough that the
recurrence still finds it in the cache, then each step multiplies the state by R and applies the cell.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from rnn_core._kernels cimport *
from rnn_core._norms cimport normalise, normalise_cell
from rnn_core._plan cimport FEW_ROWS, LN_HH, LN_IH, Batch, Block, Chunks, Team, View, from_row, interrupted, \
    load_state, meet, meet_if_shared_anew, own_rows, part_of, place, product_job, rows_at, rows_by, share_panels, \
    share_rows, store_state, token, whole
from rnn_core._runtime cimport kernels_f32, relay_pass, relay_wait
from rnn_core._variants cimport copy_rows, is_view, mix_rows, multiply_rows


cdef struct Part:
    # What one thread does of a pass: sequences [row_begin, row_end) of the step at hand, and its share of hidden units.
    ptrdiff_t row_begin, row_end
    ptrdiff_t gates_begin, gates_end       # panels of W, which are those of R but for GRU_RESET_BEFORE's R_n
    ptrdiff_t rn_begin, rn_end
    ptrdiff_t out_begin, out_end           # panels of W_hr


cdef struct Rows:
    # Pointers to the rows of a chunk's tokens, as many as it may have of each kind.
    void **x
    void **gates
    void **y


# ---------------------------------------------------------------------------------------------------------- memory


cdef void set_pass(Pass *p, const rc_kernels *kernels, Direction *d, Block memory, const Batch *b, ptrdiff_t tokens,
                   bint keep) except *:
    """The scratch of one direction; views and tape are set by the caller. Gates that no tape will keep have a buffer, a
    row for each of `tokens`: where lengths are equal, a thread's rows lie in the same places in every chunk, and where
    not, the threads meet after each."""
    cdef ptrdiff_t units = whole(d.units, kernels.lanes), out = whole(d.out, kernels.lanes)
    cdef size_t itemsize = kernels.itemsize, gates = rc_row_size(&d.w, kernels.lanes)
    memset(p, 0, sizeof(Pass))
    p.kernels, p.d = kernels, d
    p.h[0] = <char *>memory.take(b.rows * out * itemsize)
    p.h[1] = <char *>memory.take(b.rows * out * itemsize)
    p.c = <char *>memory.take_zeros(b.rows * units * itemsize)
    if not keep:
        p.gates = <char *>memory.take(tokens * gates * itemsize)
    if d.projection:
        p.hidden = <char *>memory.take_zeros(b.rows * units * itemsize)
    if d.cell == RC_GRU_RESET_BEFORE:
        p.reset = <char *>memory.take_zeros(b.rows * units * itemsize)
    if kernels.gemm != kernels_f32().gemm:
        p.product = <char *>memory.take(b.rows * gates * itemsize)


cdef void set_tape(Pass *p, Block memory, const Batch *b) except *:
    """What the pass leaves for backward."""
    cdef ptrdiff_t units = whole(p.d.units, p.kernels.lanes), n = b.first[b.steps]
    cdef size_t itemsize = p.kernels.itemsize
    p.saved = <char *>memory.take(n * rc_row_size(&p.d.w, p.kernels.lanes) * itemsize)
    if saves_units(p.d.cell):
        p.saved_unit = <char *>memory.take(n * units * itemsize)
    if p.d.projection:
        p.saved_hidden = <char *>memory.take(n * units * itemsize)


cdef void set_states(Pass *p, const Batch *b, int index, object h0, object c0) except *:
    """h and c from row `index` of h0 and c0, (L*D, B, size) or None."""
    cdef ptrdiff_t lanes = p.kernels.lanes, i
    cdef size_t itemsize = p.kernels.itemsize
    for i in range(2):
        load_state(b, p.h[i], whole(p.d.out, lanes), part_of(h0, index, b.rows * p.d.out, itemsize), p.d.out, itemsize)
    if p.d.cell == RC_LSTM:
        load_state(b, p.c, whole(p.d.units, lanes), part_of(c0, index, b.rows * p.d.units, itemsize), p.d.units,
                   itemsize)


cdef void store_states(Pass *p, const Batch *b, int index, object hn, object cn) except *:
    """Row `index` of hn and cn from the state after each sequence's last step."""
    cdef ptrdiff_t lanes = p.kernels.lanes, m, out = whole(p.d.out, lanes)
    cdef size_t itemsize = p.kernels.itemsize
    cdef char *to = part_of(hn, index, b.rows * p.d.out, itemsize)
    for m in range(b.rows):
        memcpy(to + b.order[m] * p.d.out * itemsize,
               p.h[(b.steps if p.reverse else b.length[m]) % 2] + m * out * itemsize, p.d.out * itemsize)
    if p.d.cell == RC_LSTM:
        store_state(b, part_of(cn, index, b.rows * p.d.units, itemsize), p.c, whole(p.d.units, lanes), p.d.units,
                    itemsize)


# ------------------------------------------------------------------------------------------------------------- steps


cdef void panels_of(const Pass *p, const rc_shape *shape, const Team *team, ptrdiff_t *begin,
                    ptrdiff_t *end) noexcept nogil:
    begin[0], end[0] = 0, rc_panels(shape, p.kernels.lanes)
    if team.units:
        share_panels(shape.units, (1 if shape.gates > 1 else 4) * p.kernels.lanes, team, begin, end)


cdef inline ptrdiff_t enter_step(const Batch *b, const Team *team, ptrdiff_t t, Part *part) noexcept nogil:
    """How many sequences this thread takes through step t."""
    share_rows(b, team, t, &part.row_begin, &part.row_end)
    return part.row_end - part.row_begin


cdef ptrdiff_t locate(const Pass *p, const Batch *b, Part *part, const Team *team, ptrdiff_t begin, ptrdiff_t end,
                      const Rows *rows) noexcept nogil:
    """Where this thread's tokens of steps [begin, end) lie, in ascending order of time, and how many they are. Gate
    rows of a table are there already, a tape's are computed in their place, others in the chunk's buffer."""
    cdef ptrdiff_t n = 0, t, m, count, row = rc_row_size(&p.d.w, p.kernels.lanes) * <ptrdiff_t>p.kernels.itemsize
    cdef char *gates
    for t in range(begin, end):
        count = enter_step(b, team, t, part)
        if p.saved == NULL:
            gates = p.gates + (b.first[t] - b.first[begin] + part.row_begin) * row
        else:
            gates = p.saved + place(b, t, part.row_begin, count) * row
        for m in range(part.row_begin, part.row_end):
            rows.x[n], rows.y[n] = token(&p.x, b, t, m), token(&p.y, b, t, m)
            if p.table != NULL:
                rows.gates[n] = p.table + (<int64_t *>rows.x[n])[0] * row
            else:
                rows.gates[n] = gates + (m - part.row_begin) * row
            n += 1
    return n


cdef void project_inputs(const Pass *p, const Batch *b, Part *part, const Team *team, ptrdiff_t begin, ptrdiff_t end,
                         const Rows *rows, ptrdiff_t n) noexcept nogil:
    """W x + b for this thread's n tokens of steps [begin, end)."""
    cdef rc_gemm job
    if p.table == NULL:
        job = product_job(p.kernels, &p.d.w, p.d.w_packed, p.d.bias, False, True, rows_by(rows.x), rows_by(rows.gates),
                          n)
        job.panel_begin, job.panel_end, job.far = part.gates_begin, part.gates_end, p.saved != NULL
        p.kernels.gemm(&job)
    if p.known:
        add_states(p, b, part, team, begin, end, rows)
    if p.d.normed:
        normalise_inputs(p, b, part, team, begin, end, rows.gates)


cdef void add_states(const Pass *p, const Batch *b, Part *part, const Team *team, ptrdiff_t begin, ptrdiff_t end,
                     const Rows *rows) noexcept nogil:
    """R h for the same tokens: where the outputs are known, the recurrence leaves one large product of all steps."""
    cdef ptrdiff_t out = whole(p.d.out, p.kernels.lanes), n = 0, t, m
    cdef rc_gemm job
    for t in range(begin, end):
        enter_step(b, team, t, part)
        for m in range(part.row_begin, part.row_end):
            rows.x[n] = token(&p.y, b, t - 1, m) if t else from_row(p.h[0], out, m, p.kernels.itemsize).base
            n += 1
    job = product_job(p.kernels, &p.d.r, p.d.r_packed, NULL, True, True, rows_by(rows.x), rows_by(rows.gates), n)
    job.panel_begin, job.panel_end = part.gates_begin, part.gates_end
    p.kernels.gemm(&job)


cdef inline ptrdiff_t hat_row(const Pass *p, const Batch *b, const Part *part, ptrdiff_t t) noexcept nogil:
    """Where the normalised values of this thread's first sequence at step t go."""
    return part.row_begin + (b.first[t] if p.variant.norms.kept else 0)


cdef void normalise_inputs(const Pass *p, const Batch *b, Part *part, const Team *team, ptrdiff_t begin, ptrdiff_t end,
                           void **gates) noexcept nogil:
    cdef ptrdiff_t t, n, to, before = 0
    cdef rc_rows x
    for t in range(begin, end):
        n = enter_step(b, team, t, part)
        x = rows_by(gates + before)
        to = hat_row(p, b, part, t) if p.variant.norms.kept else own_rows(b, team)
        normalise(p.kernels, p.d, &p.variant.norms, LN_IH, 0, p.d.w.gates, x, x, to, n)
        before += n


cdef void set_product(const Pass *p, const Part *part, rc_step *s, ptrdiff_t done, bint second) noexcept nogil:
    """The weights and panels of the `done`-th step; `second`: GRU_RESET_BEFORE's n, from r*h. With few rows, which only
    wait for the weights, every other step takes the panels backwards: it starts with those still in the cache."""
    s.phase, s.backwards = second, done % 2 and s.row_end < FEW_ROWS
    s.shape = p.d.rn if second else p.d.r
    s.packed = p.d.rn_packed if second else p.d.r_packed
    s.panel_begin, s.panel_end = part.gates_begin, part.gates_end
    if second:
        s.panel_begin, s.panel_end = part.rn_begin, part.rn_end
    s.chains = p.d.chains if p.d.cell != RC_GRU_RESET_BEFORE else rc_chains(s.shape.gates, s.shape.units)
    if p.known:  # the gates hold it
        s.shape.k = 0


cdef void run_cell(const Pass *p, const Batch *b, const Part *part, rc_step *s, ptrdiff_t t, ptrdiff_t done,
                   bint second) noexcept nogil:
    """The product and cell of the `done`-th step."""
    set_product(p, part, s, done, second)
    if p.variant != NULL:
        step_apart(p, b, part, s, t, second)
    else:
        p.kernels.step(s)


cdef void step_apart(const Pass *p, const Batch *b, const Part *part, rc_step *s, ptrdiff_t t,
                     bint second) noexcept nogil:
    """The step's product on its own, then the cell on it: a variant may multiply R by another state than the cell's, or
    normalise the product."""
    cdef ptrdiff_t out = whole(p.d.out, p.kernels.lanes)
    cdef rc_gemm job
    cdef rc_rows masked, h = s.reset if second else s.h_prev
    # but for layer normalisation the bias is in the input projection
    cdef const void *bias = p.d.bias_rn if second else p.d.bias_hh
    if p.variant.drop != NULL:
        masked = s.reset if second else from_row(p.variant.masked, out, part.row_begin, p.kernels.itemsize)
        multiply_rows(p.kernels.itemsize, h, from_row(p.variant.drop, out, part.row_begin, p.kernels.itemsize), masked,
                      s.row_end, p.d.out)
        h = masked
    job = product_job(p.kernels, &s.shape, s.packed, bias, False, True, h, s.product, s.row_end)
    job.panel_begin, job.panel_end, job.backwards = s.panel_begin, s.panel_end, s.backwards
    p.kernels.gemm(&job)
    if p.d.normed:
        normalise(p.kernels, p.d, &p.variant.norms, LN_HH, 2 if second else 0, s.shape.gates, s.product, s.product,
                  hat_row(p, b, part, t), s.row_end)
    s.shape.k, s.chains = 0, 1
    p.variant.plain.step(s)


cdef char *other_state(const Pass *p, const Part *part, const rc_step *s) noexcept nogil:
    """The buffer of the state after the step."""
    cdef ptrdiff_t offset = part.row_begin * whole(p.d.out, p.kernels.lanes) * <ptrdiff_t>p.kernels.itemsize
    return p.h[1] + offset if s.h_prev.base == p.h[0] + offset else p.h[0] + offset


cdef void copy_columns(const Pass *p, const View *to, const Batch *b, ptrdiff_t t, ptrdiff_t row_begin, rc_rows rows,
                       ptrdiff_t count, ptrdiff_t begin, ptrdiff_t end) noexcept nogil:
    """Columns [begin, end) of `count` padded rows to the tokens of step t."""
    cdef size_t itemsize = p.kernels.itemsize
    cdef ptrdiff_t m
    if begin >= end:
        return
    for m in range(count):
        memcpy(token(to, b, t, row_begin + m) + begin * itemsize,
               <char *>rows.base + (m * rows.stride + begin) * itemsize, (end - begin) * itemsize)


cdef void project_state(const Pass *p, const Batch *b, const Part *part, const rc_step *s, ptrdiff_t t) noexcept nogil:
    """h <- W_hr hidden, and a copy to y."""
    cdef ptrdiff_t lanes = p.kernels.lanes
    cdef rc_gemm job = product_job(p.kernels, &p.d.p, p.d.p_packed, NULL, False, True, s.h_next,
                                   rows_at(other_state(p, part, s), whole(p.d.out, lanes)), s.row_end)
    job.panel_begin, job.panel_end = part.out_begin, part.out_end
    p.kernels.gemm(&job)
    copy_columns(p, &p.y, b, t, part.row_begin, job.c, s.row_end, part.out_begin * 4 * lanes,
                 min(part.out_end * 4 * lanes, p.d.out))


cdef void begin_variant(const Pass *p, const Part *part, rc_step *s) noexcept nogil:
    """Keep the c that the step starts from, where a part of it will stay, and the gates for a normalised c."""
    cdef ptrdiff_t units = whole(p.d.units, p.kernels.lanes)
    if is_view(&p.variant.take_c):
        copy_rows(p.kernels.itemsize, s.c, from_row(p.variant.kept_c, units, part.row_begin, p.kernels.itemsize),
                  s.row_end, p.d.units)
    if p.variant.norms.gates != NULL:
        s.saved = from_row(p.variant.norms.gates, rc_row_size(&p.d.w, p.kernels.lanes), part.row_begin,
                           p.kernels.itemsize)


cdef void end_variant(const Pass *p, const Batch *b, const Part *part, rc_step *s, ptrdiff_t t) noexcept nogil:
    """Zoneout: what stays of the old state; then y."""
    cdef size_t itemsize = p.kernels.itemsize
    cdef ptrdiff_t units = whole(p.d.units, p.kernels.lanes)
    cdef rc_rows h = rows_at(other_state(p, part, s), whole(p.d.out, p.kernels.lanes))
    if is_view(&p.variant.take_h):
        mix_rows(itemsize, &p.variant.take_h, b, t, part.row_begin, s.h_prev, h, s.row_end, p.d.out)
    if is_view(&p.variant.take_c):
        mix_rows(itemsize, &p.variant.take_c, b, t, part.row_begin,
                 from_row(p.variant.kept_c, units, part.row_begin, itemsize), s.c, s.row_end, p.d.units)
    copy_columns(p, &p.y, b, t, part.row_begin, h, s.row_end, 0, p.d.out)


cdef void set_step(const Pass *p, const Batch *b, const Part *part, rc_step *s, ptrdiff_t t,
                   ptrdiff_t done) noexcept nogil:
    """The rows of step t, the `done`-th of this direction; gates and y are set by the caller."""
    cdef ptrdiff_t lanes = p.kernels.lanes, n = part.row_end - part.row_begin
    cdef ptrdiff_t tape = place(b, t, part.row_begin, n)
    cdef ptrdiff_t units = whole(p.d.units, lanes), out = whole(p.d.out, lanes)
    cdef size_t itemsize = p.kernels.itemsize
    s.cell, s.bias, s.row_begin, s.row_end = p.d.cell, p.d.bias_n, 0, n
    s.c = from_row(p.c, units, part.row_begin, itemsize)
    s.reset = from_row(p.reset, units, part.row_begin, itemsize)
    s.product = rows_at(NULL, 0)
    if p.product != NULL:
        s.product = from_row(p.product, rc_row_size(&p.d.w, lanes), part.row_begin, itemsize)
    s.h_prev = from_row(p.h[done % 2], out, part.row_begin, itemsize)
    s.h_next = from_row(p.h[(done + 1) % 2], out, part.row_begin, itemsize)
    s.saved = from_row(p.saved, rc_row_size(&p.d.w, lanes), tape, itemsize)
    s.saved_unit = from_row(p.saved_unit, units, tape, itemsize)
    if p.d.projection:
        s.h_next = from_row(p.hidden, units, part.row_begin, itemsize)
        if p.saved_hidden != NULL:
            s.h_next = from_row(p.saved_hidden, units, tape, itemsize)
    if p.d.projection or p.variant != NULL or p.known:  # what the cell gives is not yet the output, or is there
        s.y = rows_at(NULL, 0)


cdef bint one_step(const Pass *p, const Batch *b, const Part *part, Team *team, rc_step *s, ptrdiff_t t,
                   ptrdiff_t done) noexcept nogil:
    """Step t, the `done`-th of this direction. True when the call is to be left."""
    cdef ptrdiff_t out = whole(p.d.out, p.kernels.lanes)
    if p.variant != NULL:
        begin_variant(p, part, s)
    run_cell(p, b, part, s, t, done, False)
    if p.d.normed and p.d.cell == RC_LSTM:
        normalise_cell(p.kernels, p.d, &p.variant.norms, s.c, s.saved, s.h_next, hat_row(p, b, part, t), s.row_end)
    if p.d.cell == RC_GRU_RESET_BEFORE:
        if team.units and meet(team):
            return True
        run_cell(p, b, part, s, t, done, True)
    if p.d.projection:
        if team.units and meet(team):
            return True
        project_state(p, b, part, s, t)
    if p.variant != NULL:
        end_variant(p, b, part, s, t)
    if p.all_h.sequence != NULL:  # only asked for where threads share out sequences
        copy_columns(p, &p.all_h, b, t, part.row_begin, rows_at(other_state(p, part, s), out), s.row_end, 0, p.d.out)
        if p.all_c.sequence != NULL:
            copy_columns(p, &p.all_c, b, t, part.row_begin, s.c, s.row_end, 0, p.d.units)
    return team.units and meet(team)


cdef bint is_plain(const Pass *p) noexcept nogil:
    """Whether its steps are nothing but their kernel."""
    return not (p.variant != NULL or p.product != NULL or p.d.projection or p.d.cell == RC_GRU_RESET_BEFORE
                or p.all_h.sequence != NULL)


cdef ptrdiff_t steps_alike(const Pass *p, const Batch *b, const Team *team, ptrdiff_t t, ptrdiff_t most) noexcept nogil:
    """How many plain steps from t on are of the same sequences: one call takes them all, which saves a tiny layer half
    of its time. At most as many as may pass between two looks for signals."""
    cdef ptrdiff_t n = 1, onwards = -1 if p.reverse else 1
    most = min(most, team.look_every)
    while n < most and b.active[t + n * onwards] == b.active[t]:
        n += 1
    return n


cdef void plain_steps(const Pass *p, const Batch *b, const Part *part, Team *team, rc_step *s, ptrdiff_t t,
                      ptrdiff_t done, ptrdiff_t count) noexcept nogil:
    """Step t and those after it, `count` in all. Threads that share out units begin each with what there is of h."""
    cdef rc_sequence q
    q.team = NULL
    if team.units:
        q.team, q.wait, q.pass_on = &team.relay, relay_wait, relay_pass
    q.count, q.rows, q.alternates = count, s.row_end, s.row_end < FEW_ROWS
    q.tape = place(b, t + 1, part.row_begin, s.row_end) - place(b, t, part.row_begin, s.row_end)
    if p.reverse:
        q.rows, q.tape = -q.rows, -q.tape
    set_product(p, part, s, done, False)
    p.kernels.steps(s, &q)


cdef bint chunk_steps(const Pass *p, const Batch *b, Part *part, Team *team, ptrdiff_t begin, ptrdiff_t end,
                      const Rows *rows) noexcept nogil:
    """The recurrence over steps [begin, end)."""
    cdef ptrdiff_t i = 0, t, n, count, done, before = 0
    cdef bint plain = is_plain(p)
    cdef rc_step s
    if p.reverse:
        for t in range(begin, end):
            before += enter_step(b, team, t, part)
    while i < end - begin:
        t = end - 1 - i if p.reverse else begin + i
        done = b.steps - 1 - t if p.reverse else t
        if meet_if_shared_anew(b, team, t, t + 1 if p.reverse else t - 1):
            return True
        n = enter_step(b, team, t, part)
        if plain and team.units and i > 0 and meet(team):  # after each look for signals
            return True
        count = steps_alike(p, b, team, t, end - begin - i) if plain else 1
        if p.reverse:
            before -= n
        s.gates, s.y = rows_by(rows.gates + before), rows_by(rows.y + before)
        if n > 0 or team.units:
            set_step(p, b, part, &s, t, done)
            if plain:
                plain_steps(p, b, part, team, &s, t, done, count)
            elif one_step(p, b, part, team, &s, t, done):
                return True
        before += -n * (count - 1) if p.reverse else n * count
        i += count
        if interrupted(team, count):
            return True
    return False


cdef bint forward_chunks(const Pass *p, const Batch *b, Team *team, const Chunks *chunks, ptrdiff_t first,
                         ptrdiff_t last, bint projects, bint recurs, void **pointers) noexcept nogil:
    """This thread's part of chunks [first, last): their input projection, their recurrence, or both. `pointers` holds
    3 * chunks.tokens of them. True when the call is to be left."""
    cdef Part part
    cdef ptrdiff_t i, at, begin, end, n
    cdef Rows rows
    rows.x, rows.gates, rows.y = pointers, pointers + chunks.tokens, pointers + 2 * chunks.tokens
    panels_of(p, &p.d.w, team, &part.gates_begin, &part.gates_end)
    panels_of(p, &p.d.rn, team, &part.rn_begin, &part.rn_end)
    panels_of(p, &p.d.p, team, &part.out_begin, &part.out_end)
    for i in range(last - first):
        at = last - 1 - i if p.reverse else first + i
        begin, end = chunks.begin[at], chunks.begin[at + 1]
        n = locate(p, b, &part, team, begin, end, &rows)
        if projects:
            project_inputs(p, b, &part, team, begin, end, &rows, n)
        if p.d.cell == RC_GRU_RESET_BEFORE and team.units and meet(team):  # R_n's panels are others than W's
            return True
        if recurs and chunk_steps(p, b, &part, team, begin, end, &rows):
            return True
        if team.meets and i + 1 < last - first and meet(team):  # so that all can leave
            return True
    return False
