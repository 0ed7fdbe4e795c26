"""What a hypothesis may say next: what the options forbid, and sampling."""

from libc.math cimport INFINITY, exp, isinf
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport qsort

from rnn_core._decoder cimport Net
from rnn_core._kernels cimport *
from rnn_core._plan cimport Block, block, padded
from rnn_core._rows cimport *

cdef extern from "dense.h" nogil:
    uint64_t rc_mix64(uint64_t z)


# ---- what may come next -----------------------------------------------------------------------------------------


cdef bint is_end(const Options *o, int64_t token) noexcept nogil:
    cdef int i
    for i in range(o.ends_count):
        if o.ends[i] == token:
            return True
    return False


cdef void repeat_penalty(const Net *plan, const Options *o, char *x, const int32_t *said, int n) noexcept nogil:
    """Keskar et al. 2019: tokens that were said count less, each once."""
    cdef int i, j
    cdef double value
    for i in range(n):
        for j in range(i):
            if said[j] == said[i]:
                break
        else:
            value = rc_get(plan.kernels, x, said[i])
            rc_set(plan.kernels, x, said[i],
                   value * o.repetition_penalty if value < 0 else value / o.repetition_penalty)


cdef void forbid_ngrams(const Net *plan, const Options *o, char *x, const int32_t *said, int n) noexcept nogil:
    """No token that would complete an n-gram that was said before."""
    cdef int i, j, same = o.no_repeat - 1
    for i in range(n - same):
        j = 0
        while j < same and said[i + j] == said[n - same + j]:
            j += 1
        if j == same:
            rc_set(plan.kernels, x, said[i + same], -INFINITY)


cdef void forbid_sequences(const Net *plan, const Options *o, char *x, const int32_t *said, int n) noexcept nogil:
    cdef int i, j, before
    cdef int64_t *sequence
    for i in range(o.suppressed_count):
        sequence = o.suppressed + o.suppressed_at[i]
        before = <int>(o.suppressed_at[i + 1] - o.suppressed_at[i]) - 1
        if before > n:
            continue
        j = 0
        while j < before and said[n - before + j] == sequence[j]:
            j += 1
        if j == before:
            rc_set(plan.kernels, x, sequence[before], -INFINITY)


cdef void restrict(const Net *plan, const Options *o, char *x, const int32_t *said, int n) noexcept nogil:
    """Change a row's logits as the options want; `said`: its n tokens so far."""
    cdef int i
    if o.repetition_penalty != 1.0:
        repeat_penalty(plan, o, x, said, n)
    if o.no_repeat and n >= o.no_repeat - 1:
        forbid_ngrams(plan, o, x, said, n)
    if o.suppressed_count:
        forbid_sequences(plan, o, x, said, n)
    if o.unk >= 0:
        rc_set(plan.kernels, x, o.unk, -INFINITY)
    if n < o.least:
        for i in range(o.ends_count):
            rc_set(plan.kernels, x, o.ends[i], -INFINITY)


# ---- sampling ---------------------------------------------------------------------------------------------------


cdef int compare(const void *a, const void *b) noexcept nogil:
    return -1 if rc_before(<const rc_candidate *>a, <const rc_candidate *>b) else 1


cdef double uniform(const Options *o, uint64_t key, int hypothesis, int t) noexcept nogil:
    """0 <= u < 1 from what is decoded, not from where it stands in a batch."""
    cdef uint64_t z = rc_mix64(rc_mix64(rc_mix64(o.seed) ^ key) ^ (<uint64_t>hypothesis << 32 | <uint64_t>t))
    return (z >> 11) * (1.0 / 9007199254740992.0)


cdef int64_t draw(const Net *plan, const Options *o, rc_candidate *all_tokens, const char *x, double u) noexcept nogil:
    """A token by temperature, top-k and top-p from a row of logits."""
    cdef Py_ssize_t i, n = 0, most = plan.vocabulary if o.topk == 0 else min(<Py_ssize_t>o.topk, plan.vocabulary)
    cdef double total = 0, sum = 0, top = -INFINITY
    if o.topk:
        n = rc_best(plan.kernels, x, plan.vocabulary, 0, 0.0, all_tokens, 0, most)
    else:
        for i in range(plan.vocabulary):
            all_tokens[n].score, all_tokens[n].row, all_tokens[n].token = rc_get(plan.kernels, x, i), 0, i
            n += not isinf(all_tokens[n].score)
        if o.top_p < 1:
            qsort(all_tokens, n, sizeof(rc_candidate), compare)
    if n == 0:
        return -1
    for i in range(n):
        top = max(top, all_tokens[i].score)
    for i in range(n):
        all_tokens[i].score = exp((all_tokens[i].score - top) / o.temperature)
        total += all_tokens[i].score
    if o.top_p < 1:
        i = 0
        while i < n - 1 and sum + all_tokens[i].score < o.top_p * total:
            sum += all_tokens[i].score
            i += 1
        n, total = i + 1, sum + all_tokens[i].score
    u *= total
    sum = 0
    for i in range(n):
        sum += all_tokens[i].score
        if u < sum:
            return all_tokens[i].token
    return all_tokens[n - 1].token


# ---- options ----------------------------------------------------------------------------------------------------


cdef int64_t *integers_of(Block memory, object values) except NULL:
    """A copy of a sequence of integers."""
    cdef int64_t *to = <int64_t *>memory.take((len(values) + 1) * sizeof(int64_t))
    cdef Py_ssize_t i
    for i in range(len(values)):
        to[i] = values[i]
    return to


cdef class Choice:
    def __init__(self, dict given):
        self.memory = block(option_bytes(given))
        set_options(&self.o, self.memory, given)


cdef int set_options(Options *o, Block memory, dict given) except -1:
    o.compete, o.sample, o.score = given["compete"], given["sample"], given["score"]
    o.keep_attention, o.early, o.beam = given["attention"], given["early"], given["beam"]
    o.finished, o.wanted = given["finished"], given["wanted"]
    o.length_penalty, o.coverage_penalty = given["length_penalty"], given["coverage_penalty"]
    o.repetition_penalty, o.top_p = given["repetition_penalty"], given["topp"]
    o.temperature, o.no_repeat, o.least = given["temperature"], given["no_repeat_ngram_size"], given["least"]
    o.topk, o.seed, o.unk = given["topk"], given["seed"], given["unk"]
    o.ends, o.ends_count = integers_of(memory, [*given["ends"], given["start"]]), len(given["ends"])
    o.suppressed_count = len(given["suppressed"])
    o.suppressed = integers_of(memory, [token for row in given["suppressed"] for token in row])
    cdef list places = [0]
    cdef Py_ssize_t end = 0
    for sequence in given["suppressed"]:
        end += len(sequence)
        places.append(end)
    o.suppressed_at = integers_of(memory, places)
    return 0


cdef size_t option_bytes(dict given) except? 0:
    cdef size_t n = len(given["ends"]) + 2 * len(given["suppressed"]) + 8
    n += sum([len(row) for row in given["suppressed"]])
    return padded(n, sizeof(int64_t)) + 4 * 64
