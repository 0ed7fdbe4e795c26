"""The decoding loop: greedy, beam search and sampling over many sentences at once, without the GIL.

The hypotheses of all running sentences are the rows of one batch; a step computes all of them, then each sentence picks
its own continuations. Threads share out sentences, which know nothing of each other: the result of one is the same
alone, in any batch and for any thread count.
"""

from libc.math cimport log, pow
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from rnn_core._choice cimport *
from rnn_core._decoder cimport *
from rnn_core._kernels cimport *
from rnn_core._rows cimport *
from rnn_core._runtime cimport fp_begin, fp_end, tick

# One thread's sentences and rows.
cdef struct Worker:
    Call *call
    int first_sentence, last_sentence, rank
    Steps steps
    Histories histories[2]
    int now, t, rows
    int32_t *parents                   # row of the step before
    int32_t *tokens                    # what each row reads
    int32_t *owners                    # the sentence of each row
    rc_candidate *candidates
    char *logits


# ---- hypotheses -------------------------------------------------------------------------------------------------


cdef void finish(Worker *w, Sentence *s, int row, int64_t token, double score) noexcept nogil:
    """`row` with one more token (-1: none) is a finished hypothesis."""
    cdef Call *call = w.call
    cdef Histories *old = &w.histories[w.now]
    cdef Hypothesis *h = &s.hypotheses[s.found]
    cdef int n = w.t, i, steps = w.t + (token >= 0)
    cdef double seen
    s.found += 1
    memcpy(h.tokens, old.tokens + row * call.limit, n * sizeof(int32_t))
    if call.o.keep_attention:
        memcpy(h.path, old.path + row * call.limit, n * sizeof(int32_t))
        h.path[n] = row - s.first
    if token >= 0 and not is_end(&call.o, token):
        h.tokens[n] = <int32_t>token
        n += 1
    h.length, h.score, h.generated = n, score, steps - min(steps, s.forced_count)
    h.final = score
    if call.o.length_penalty != 0:
        h.final /= pow(max(1, h.generated), call.o.length_penalty)
    if call.o.coverage_penalty != 0:
        for i in range(s.source.length):
            seen = old.coverage[row * call.sources + i]
            h.final += call.o.coverage_penalty * log(min(max(seen, 1e-30), 1.0))


cdef void go_on(Worker *w, Sentence *s, int place, int row, int64_t token, double score) noexcept nogil:
    """`row` with one more token is row `place` of the next step."""
    cdef Call *call = w.call
    cdef Histories *old = &w.histories[w.now]
    cdef Histories *new = &w.histories[1 - w.now]
    cdef Py_ssize_t from_, to
    from_, to = row * call.limit, place * call.limit
    memcpy(new.tokens + to, old.tokens + from_, w.t * sizeof(int32_t))
    new.tokens[to + w.t] = <int32_t>token
    if call.o.keep_attention:
        memcpy(new.path + to, old.path + from_, w.t * sizeof(int32_t))
        new.path[to + w.t] = row - s.first
    if call.o.coverage_penalty != 0:
        memcpy(new.coverage + place * call.sources, old.coverage + row * call.sources,
               s.source.length * sizeof(double))
    new.score[place], new.sample[place] = score, old.sample[row]
    w.parents[place], w.tokens[place] = row, <int32_t>token


cdef int notify(Worker *w, int sentence, int hypothesis, int64_t token, double score, bint last) noexcept with gil:
    """Tell the callback; true when it wants to stop or failed."""
    cdef bint single = w.call.plan.kernels.itemsize == 4
    cdef bint stop = True
    if single:
        fp_end(w.call.control)
    try:
        stop = bool((<object>w.call.callback)(w.t, sentence, token, hypothesis, score, last))
    except BaseException as fault:
        (<list>w.call.failure).append(fault)
    if single:
        fp_begin()
    return stop


# ---- one sentence picks its continuations -----------------------------------------------------------------------


cdef int64_t forced_token(const Worker *w, const Sentence *s) noexcept nogil:
    return s.forced[w.t] if w.t < s.forced_count else -1


cdef int compete(Worker *w, Sentence *s, rc_candidate *best, int count, int place) noexcept nogil:
    """Beam search's choice among the candidates; the number of rows of the next step, from row `place` on."""
    cdef const Options *o = &w.call.o
    cdef int k, j = o.beam, live = 0, rows = s.live
    cdef bint last = w.t + 1 == s.limit, over
    if count == 0:                     # everything is forbidden: what there is, is all there will be
        for k in range(rows):
            finish(w, s, s.first + k, -1, w.histories[w.now].score[s.first + k])
        return 0
    for k in range(min(o.beam, count)):
        if not last and not is_end(o, best[k].token):
            go_on(w, s, place + live, <int>best[k].row, best[k].token, best[k].score)
            live += 1
            continue
        if k == 0:
            s.top_finished = True
        finish(w, s, <int>best[k].row, best[k].token, best[k].score)
        while not last and j < count and is_end(o, best[j].token):
            j += 1
        if not last and j < count:
            go_on(w, s, place + live, <int>best[j].row, best[j].token, best[j].score)
            live += 1
            j += 1
    over = last or s.found >= (o.wanted if o.early and s.top_finished else o.finished)
    return 0 if over else live


cdef int forced_step(Worker *w, Sentence *s, int64_t token, int place) noexcept nogil:
    """All rows of a sentence take the given token, which is not scored."""
    cdef int k, row
    for k in range(s.live):
        row = s.first + k
        if w.t + 1 == s.limit:
            finish(w, s, row, token, w.histories[w.now].score[row])
        else:
            go_on(w, s, place + k, row, token, w.histories[w.now].score[row])
    return 0 if w.t + 1 == s.limit else s.live


cdef int alone(const Net *plan, Worker *w, Sentence *s, int row, char *x) noexcept nogil:
    """Greedy and sampling: the token of one row, kept as its candidate."""
    cdef Call *call = w.call
    cdef rc_candidate *best = &w.candidates[row * call.most]
    cdef double top = 0, sum = 0
    cdef int64_t token
    if call.o.score:
        sum = rc_log_sum(plan.kernels, x, plan.vocabulary, &top)
    if call.o.sample:
        token = draw(plan, &call.o, call.all_tokens + w.rank * plan.vocabulary, x,
                     uniform(&call.o, s.key, w.histories[w.now].sample[row], w.t))
    else:
        token = best.token if rc_best(plan.kernels, x, plan.vocabulary, row, 0.0, best, 0, 1) else -1
    best.token, best.row, best.score = token, row, w.histories[w.now].score[row]
    if token >= 0 and call.o.score:
        best.score += rc_get(plan.kernels, x, token) - sum
    return 0


cdef int alone_step(Worker *w, Sentence *s, int sentence, int place) noexcept nogil:
    """Rows that do not compete take their tokens."""
    cdef Call *call = w.call
    cdef Histories *old = &w.histories[w.now]
    cdef rc_candidate *best
    cdef int k, live = 0
    cdef bint last
    for k in range(s.live):
        best = &w.candidates[(s.first + k) * call.most]
        last = w.t + 1 == s.limit or best.token < 0 or is_end(&call.o, best.token)
        if call.callback != NULL and best.token >= 0 and notify(
                w, sentence, old.sample[s.first + k], best.token,
                best.score - old.score[s.first + k], last):
            last = True
            call.stop = 1
        if last:
            finish(w, s, s.first + k, best.token, best.score)
        else:
            go_on(w, s, place + live, s.first + k, best.token, best.score)
            live += 1
    return live


# ---- the loop ---------------------------------------------------------------------------------------------------


cdef void attend(const Net *plan, Worker *w) noexcept nogil:
    """Every sentence's rows look at their source; weights go to the histories that want them."""
    cdef Call *call = w.call
    cdef Sentence *s
    cdef Py_ssize_t itemsize = plan.kernels.itemsize, i, k, at
    cdef int b
    cdef char *weights
    for b in range(w.first_sentence, w.last_sentence):
        s = &call.sentences[b]
        if s.live == 0:
            continue
        weights = w.steps.scores + s.first * call.sources * itemsize
        look(plan, &w.steps, &s.source, s.first, s.live, weights)
        if call.o.keep_attention:
            at = <Py_ssize_t>w.t * call.o.beam * s.source.length * itemsize
            memcpy(s.attention + at, weights, s.live * s.source.length * itemsize)
        if call.o.coverage_penalty != 0:
            for k in range(s.live):
                for i in range(s.source.length):
                    w.histories[w.now].coverage[(s.first + k) * call.sources + i] += \
                        rc_get(plan.kernels, weights, k * s.source.length + i)


cdef void search_rows(const Net *plan, Worker *w, int *counts, double *next) noexcept nogil:
    """Logits of all rows, block by block, and each sentence's best continuations."""
    cdef Call *call = w.call
    cdef Sentence *s
    cdef Histories *old = &w.histories[w.now]
    cdef Py_ssize_t row, begin = 0, end, first
    cdef double top, sum
    cdef char *x
    while begin < w.rows and not call.stop:
        end = min(begin + call.block_rows, <Py_ssize_t>w.rows)
        logits_of(plan, &w.steps, begin, end - begin, w.logits)
        for row in range(begin, end):
            s = &call.sentences[w.owners[row]]
            x = w.logits + (row - begin) * plan.vocabulary * <Py_ssize_t>plan.kernels.itemsize
            if forced_token(w, s) >= 0:
                continue
            restrict(plan, &call.o, x, old.tokens + row * call.limit, w.t)
            if not call.o.compete:
                alone(plan, w, s, <int>row, x)
                continue
            sum = rc_log_sum(plan.kernels, x, plan.vocabulary, &top)
            first = s.first * call.most
            counts[w.owners[row] - w.first_sentence] = <int>rc_best(
                plan.kernels, x, plan.vocabulary, row, old.score[row] - sum, w.candidates + first,
                counts[w.owners[row] - w.first_sentence], call.most)
        begin = end
        if w.rank == 0 and tick(next) != 0:
            call.stop = 2


cdef void pick(const Net *plan, Worker *w, const int *counts) noexcept nogil:
    """Every sentence's rows of the next step; finished sentences have none."""
    cdef Call *call = w.call
    cdef Sentence *s
    cdef int b, k, place = 0, live
    cdef int64_t token
    for b in range(w.first_sentence, w.last_sentence):
        s = &call.sentences[b]
        if s.live == 0:
            continue
        token = forced_token(w, s)
        if token >= 0:
            live = forced_step(w, s, token, place)
        elif call.o.compete:
            live = compete(w, s, w.candidates + s.first * call.most, counts[b - w.first_sentence], place)
        else:
            live = alone_step(w, s, b, place)
        s.first, s.live = place, live
        for k in range(live):
            w.owners[place + k] = b
        place += live
    w.rows = place


cdef void begin_rows(const Net *plan, Worker *w, int64_t start) noexcept nogil:
    """The first rows: one a sentence, or as many as it has samples; their states are the encoder's."""
    cdef Call *call = w.call
    cdef Sentence *s
    cdef int b, k, rows
    for b in range(w.first_sentence, w.last_sentence):
        s = &call.sentences[b]
        rows = 1 if call.o.compete else call.o.beam
        s.first, s.live = w.rows, rows if s.limit > 0 else 0
        if plan.kind == 1:
            pack_keys(plan, s.source.keys, s.source.length, s.source.packed)
        for k in range(s.live):
            start_row(plan, &w.steps, w.rows, call.h0 + b * MOST_LAYERS, call.c0 + b * MOST_LAYERS)
            w.parents[w.rows], w.tokens[w.rows], w.owners[w.rows] = w.rows, <int32_t>start, b
            w.histories[0].score[w.rows], w.histories[0].sample[w.rows] = 0, k
            w.rows += 1


cdef Worker worker(const Net *plan, Call *call, int rank, int size, int32_t *integers) noexcept nogil:
    cdef Worker w
    cdef Py_ssize_t beam = call.o.beam, at, i
    memset(&w, 0, sizeof(Worker))
    w.call, w.rank = call, rank
    w.first_sentence, w.last_sentence = <int>(call.count * rank // size), <int>(call.count * (rank + 1) // size)
    at = w.first_sentence * beam
    w.steps = part_of_steps(plan, &call.steps, at, (w.last_sentence - w.first_sentence) * beam, call.sources)
    for i in range(2):
        w.histories[i] = call.histories[i]
        w.histories[i].tokens += at * call.limit
        w.histories[i].path += at * call.limit
        w.histories[i].score += at
        w.histories[i].sample += at
        w.histories[i].coverage += at * call.sources
    w.parents, w.tokens, w.owners = integers + 4 * at, integers + 4 * at + w.steps.rows, \
        integers + 4 * at + 2 * w.steps.rows
    w.candidates = call.candidates + at * call.most
    w.logits = call.logits + rank * call.block_rows * plan.vocabulary * <Py_ssize_t>plan.kernels.itemsize
    return w


cdef int64_t start_token(Call *call) noexcept nogil:
    return call.o.ends[call.o.ends_count]      # kept behind the end tokens


cdef void prepare_search(void *context, int size) noexcept nogil:
    rc_count_init(&(<Call *>context).working, size)


cdef void search_task(void *context, int rank, int size) noexcept nogil:
    cdef Call *call = <Call *>context
    search(call, rank, size)
    rc_count_down(&call.working)
    if rank == 0:
        watch(call)


cdef void watch(Call *call) noexcept nogil:
    """Look for signals until the other threads are done. Naps are short beside the time that has passed."""
    cdef double next = 0, nap, passed = 0
    while rc_count_left(&call.working) and not call.stop:
        nap = min(max(passed / 8, 2e-5), 1e-2)
        rc_nap(nap)
        passed += nap
        if tick(&next) != 0:
            call.stop = 2


cdef void search(Call *call, int rank, int size) noexcept nogil:
    """One thread's sentences, from the first token to the last."""
    cdef const Net *plan = call.plan
    cdef Worker w = worker(plan, call, rank, size, call.integers)
    cdef double next = 0
    cdef int *counts = <int *>w.owners + w.steps.rows
    if w.first_sentence == w.last_sentence:
        return
    begin_rows(plan, &w, start_token(call))
    while w.rows and not call.stop:
        run_layers(plan, &w.steps, w.rows, w.parents, w.tokens)
        if plan.kind:
            attend(plan, &w)
        combine_rows(plan, &w.steps, w.rows)
        memset(counts, 0, (w.last_sentence - w.first_sentence) * sizeof(int))
        search_rows(plan, &w, counts, &next)
        if call.stop > 1:
            return
        pick(plan, &w, counts)
        w.steps.now, w.now, w.t = 1 - w.steps.now, 1 - w.now, w.t + 1
    if call.stop == 1:
        close_rows(&w)


cdef void close_rows(Worker *w) noexcept nogil:
    """The callback stopped the search: what runs still is a result as it is."""
    cdef Sentence *s
    cdef int b, k
    for b in range(w.first_sentence, w.last_sentence):
        s = &w.call.sentences[b]
        for k in range(s.live):
            finish(w, s, s.first + k, -1, w.histories[w.now].score[s.first + k])
