# What a hypothesis may say next: the options of decoding, what they forbid, and sampling.

from libc.stdint cimport int32_t, int64_t, uint64_t

from rnn_core._decoder cimport Net
from rnn_core._plan cimport Block
from rnn_core._rows cimport rc_candidate

# What the user asked for; numbers as in rnn_core.seq2seq_decode.
cdef struct Options:
    bint compete                       # beam search: rows of a sentence compete; else each row goes its own way
    bint sample, score, keep_attention, early
    int beam, finished                 # rows a sentence may have; finished hypotheses that end a sentence's search
    int wanted                         # hypotheses that the user wants
    double length_penalty, coverage_penalty, repetition_penalty, top_p, temperature
    int no_repeat, least, topk
    uint64_t seed
    int64_t unk                        # -1: allowed
    int64_t *ends
    int ends_count
    int64_t *suppressed                # sequences, one after the other
    int64_t *suppressed_at             # (suppressed_count + 1)
    int suppressed_count

cdef bint is_end(const Options *o, int64_t token) noexcept nogil
# change the logits x (V) of a hypothesis that has said n tokens
cdef void restrict(const Net *plan, const Options *o, char *x, const int32_t *said, int n) noexcept nogil
cdef double uniform(const Options *o, uint64_t key, int hypothesis, int t) noexcept nogil
# a token from logits x (V) and 0 <= u < 1; `all_tokens` (V) is scratch
cdef int64_t draw(const Net *plan, const Options *o, rc_candidate *all_tokens, const char *x, double u) noexcept nogil
cdef int64_t *integers_of(Block memory, object values) except NULL

# Options as the compiled loop has them, made of a dict.
cdef class Choice:
    cdef Options o
    cdef Block memory
