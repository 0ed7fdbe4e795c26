"""The parallel region: one call is one region, in which every thread walks through layers, directions and time."""

from rnn_core._backward cimport BackPass, backward_pass
from rnn_core._forward cimport Pass, forward_chunks
from rnn_core._kernels cimport *
from rnn_core._plan cimport Batch, Team, View, clear_padding, equally_long, meet, rc_stop_asked, \
    rc_stop_init, rows_at, share, token
from rnn_core._runtime cimport BRIEF, awake, barrier_init, fp_begin, fp_end, raise_pending, relay_init, \
    run_prepared
from rnn_core._variants cimport multiply_rows

cdef enum:
    # Multiply-adds of about 10 microseconds: a shorter call keeps the GIL.
    WORTH_RELEASING = 1 << 19
    # Multiply-adds between two looks at the clock (some 100 microseconds), but at most so many steps. After each look
    # threads that share out units meet, so that all can leave.
    WORTH_A_LOOK = 1 << 23
    STEPS_A_LOOK = 64


cdef Team make_team(Call *call, int which, int first, int rank, int size) noexcept nogil:
    """Member `rank` of a team of `size`, whose first one is rank `first` of the call."""
    cdef Team t
    cdef int at = first + rank
    t.rank, t.size, t.leader, t.units = rank, size, at == 0, call.units and size > 1
    t.meets = size > 1 and (call.units or not equally_long(call.batch))
    t.barrier, t.stop, t.call = &call.barrier[which], &call.team_stop[which], &call.stop
    t.count, t.tick, t.look_every, t.until_look = 0, 0, call.look_every, 0
    t.columns = NULL if call.columns == NULL else call.columns + at * call.columns_each
    if t.units and call.paces != NULL:
        relay_init(&t.relay, call.paces + first, rank, size)
    return t


cdef int prepare_teams(Call *call, int rank, int size, Team *all, Team *own, int *direction) noexcept nogil:
    """The team of all threads, and the one for a direction of its own where there are two for at least two threads.
    Rank 0 makes the barriers before run() starts the others. Returns how many directions a thread walks through."""
    cdef int half = (size + 1) // 2
    all[0] = make_team(call, 0, 0, rank, size)
    own[0] = all[0]
    direction[0] = 0
    if call.directions == 2 and size > 1:
        direction[0] = rank >= half
        if direction[0]:
            own[0] = make_team(call, 2, half, rank - half, size - half)
        else:
            own[0] = make_team(call, 1, 0, rank, half)
        return 1
    return call.directions


cdef void start_teams(Call *call, int size) noexcept nogil:
    cdef int i
    cdef int sizes[3]
    sizes[0], sizes[1] = size, (size + 1) // 2
    sizes[2] = max(size - sizes[1], 1)
    if call.apart:
        call.batch.parts = size
    rc_stop_init(&call.stop)
    for i in range(3 if size > 1 else 0):
        rc_stop_init(&call.team_stop[i])
        barrier_init(&call.barrier[i], sizes[i])


cdef void apply_mask(const rc_kernels *k, const Batch *b, const View *mask, const View *x, const View *to, ptrdiff_t n,
                     ptrdiff_t begin, ptrdiff_t end, const Team *team) noexcept nogil:
    """to <- mask * x in rows of n elements, for the tokens of steps [begin, end); `to` may be x."""
    cdef ptrdiff_t t, m
    share(end - begin, team.rank, team.size, &t, &m)
    end, begin = begin + m, begin + t
    for t in range(begin, end):
        for m in range(b.active[t]):
            multiply_rows(k.itemsize, rows_at(token(mask, b, t, m), 0), rows_at(token(x, b, t, m), 0),
                          rows_at(token(to, b, t, m), 0), 1, n)


cdef void clear_outputs(Call *call, const Team *team) noexcept nogil:
    """Zeros past the ends of the sequences, where the caller's arrays are padded."""
    cdef Pass *p
    cdef int i
    for i in range(call.layers * call.directions):
        p = &call.passes[i]
        if not p.known:
            clear_padding(&p.y, call.batch, p.d.out * p.kernels.itemsize, team)
        clear_padding(&p.all_h, call.batch, p.d.out * p.kernels.itemsize, team)
        clear_padding(&p.all_c, call.batch, p.d.units * p.kernels.itemsize, team)


cdef Pass pass_of_span(const Call *call, int layer, int direction, ptrdiff_t chunk) noexcept nogil:
    """A thread's own copy of a pass. Inference keeps one span of what lies between two layers, which begins with
    `chunk`; where threads take turns two, of which every other chunk has the second."""
    cdef Pass p = call.passes[layer * call.directions + direction]
    cdef ptrdiff_t before = chunk % 2 * call.chunks.tokens if call.staged else 0
    cdef ptrdiff_t origin = call.batch.first[call.chunks.begin[chunk]] - before
    if p.saved == NULL and call.directions == 1:
        if layer:
            p.x.origin = origin
        if layer + 1 < call.layers:
            p.y.origin = origin
        p.gates += before * rc_row_size(&p.d.w, p.kernels.lanes) * <ptrdiff_t>p.kernels.itemsize
    return p


cdef void forward_task(void *context, int rank, int size) noexcept nogil:
    cdef Call *call = <Call *>context
    cdef Batch *b = call.batch
    cdef Team all, part
    cdef Pass span
    cdef Pass *p
    cdef int layer, i, first, own_directions = prepare_teams(call, rank, size, &all, &part, &first)
    cdef Team *own = &all if own_directions == call.directions else &part  # a team counts its barriers in one place
    cdef ptrdiff_t chunk = 0, after, begin, end
    cdef void **pointers = call.pointers + rank * call.pointers_each
    while chunk < call.chunks.count:
        after = chunk + 1 if call.directions == 1 else call.chunks.count
        begin, end = call.chunks.begin[chunk], call.chunks.begin[after]
        for layer in range(call.layers):
            for i in range(own_directions):
                span = pass_of_span(call, layer, first + i, chunk)
                forward_chunks(&span, b, own, &call.chunks, chunk, after, True, True, pointers)
            if (layer + 1 < call.layers or after < call.chunks.count) and meet(&all):
                return
            if call.masks != NULL and layer + 1 < call.layers:
                p = &call.passes[layer * call.directions]
                apply_mask(call.kernels, b, &call.masks[layer], &p.y, &call.passes[(layer + 1) * call.directions].x,
                           call.directions * p.d.out, begin, end, &all)
                if meet(&all):
                    return
        chunk = after
    clear_outputs(call, &all)


cdef void staged_task(void *context, int rank, int size) noexcept nogil:
    """The projection and the recurrence of each layer are stages, of which every thread takes some in a row: while the
    last thread, the caller, is at a chunk, the one before it is at the next chunk already."""
    cdef Call *call = <Call *>context
    cdef Team all = make_team(call, 0, 0, rank, size), alone = make_team(call, 0, rank, 0, 1)
    cdef Pass span
    cdef ptrdiff_t begin, end, i, chunk
    cdef int layer, behind = size - 1 - rank
    share(2 * call.layers, behind, size, &begin, &end)
    for i in range(call.chunks.count + size - 1):
        chunk = i - behind
        if 0 <= chunk < call.chunks.count:
            for layer in range(begin // 2, (end + 1) // 2):
                span = pass_of_span(call, layer, 0, chunk)
                forward_chunks(&span, call.batch, &alone, &call.chunks, chunk, chunk + 1, 2 * layer >= begin,
                               2 * layer + 1 < end, call.pointers + rank * call.pointers_each)
        if meet(&all):
            return
    clear_outputs(call, &all)


cdef void backward_task(void *context, int rank, int size) noexcept nogil:
    cdef Call *call = <Call *>context
    cdef Batch *b = call.batch
    cdef Team all = make_team(call, 0, 0, rank, size)
    cdef BackPass *p
    cdef int layer, d
    cdef void **pointers = call.pointers + rank * call.pointers_each
    for layer in range(call.layers - 1, -1, -1):
        for d in range(call.directions):
            p = &call.back[layer * call.directions + d]
            if backward_pass(p, b, &all, &call.chunks, pointers):
                return
        if call.masks != NULL and layer:
            p = &call.back[layer * call.directions]
            apply_mask(call.kernels, b, &call.masks[layer - 1], &p.dx, &p.dx, p.d.inputs, 0, b.steps, &all)
            if meet(&all):
                return
    clear_padding(&call.back.dx, b, call.back.d.inputs * call.kernels.itemsize, &all)


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
    call.look_every = <int>min(STEPS_A_LOOK, 1 + WORTH_A_LOOK / (1 + multiplications / max(1, call.batch.steps)))
    if multiplications < BRIEF:
        threads = awake(threads)
    if multiplications < WORTH_RELEASING:
        run_team(call, work, threads)
    else:
        with nogil:
            run_team(call, work, threads)
    if rc_stop_asked(&call.stop):
        return raise_pending()
    return 0
