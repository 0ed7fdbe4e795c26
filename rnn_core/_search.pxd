# The search: what one call of the decoding loop works on. rnn_core._decode makes it.

from libc.stdint cimport int32_t, int64_t, uint64_t

from rnn_core._choice cimport Options
from rnn_core._decoder cimport Net, Source, Steps
from rnn_core._rows cimport rc_candidate

cdef extern from "count.h" nogil:
    ctypedef struct rc_count:
        pass
    void rc_count_init(rc_count *, int n)
    void rc_count_down(rc_count *)
    int rc_count_left(rc_count *)
    void rc_nap(double seconds)

cdef struct Hypothesis:
    double score                       # sum of log-probabilities
    double final                       # with the penalties
    int32_t length, generated          # tokens, and how many of them (and the end token) were scored
    int32_t *tokens
    int32_t *path                      # the row of its sentence at each step

cdef struct Sentence:
    Source source
    uint64_t key
    int64_t *forced                    # tokens that are given; -1: free
    int forced_count, limit            # limit: most tokens
    int first, live                    # its rows
    bint top_finished
    int found
    Hypothesis *hypotheses
    char *attention                    # (limit, beam, S): weights of every step

# Everything a row has besides states; two buffers, by turns.
cdef struct Histories:
    int32_t *tokens                    # (rows, limit)
    int32_t *path
    double *score                      # (rows)
    int32_t *sample                    # (rows): which of a sentence's samples it is
    double *coverage                   # (rows, most sources)

cdef struct Call:
    const Net *plan
    Options o
    Sentence *sentences
    int64_t count
    Py_ssize_t limit, sources          # largest of all
    Steps steps
    Histories histories[2]
    char **h0                          # (sentences, MOST_LAYERS)
    char **c0
    char *logits                       # a block for each thread
    Py_ssize_t block_rows
    rc_candidate *candidates           # (rows, most)
    int32_t *integers                  # (rows, 3): parents, tokens, owners
    int most                           # candidates that a sentence keeps
    rc_candidate *all_tokens           # (threads, V): sampling from the whole vocabulary
    void *callback                     # a Python function, or NULL
    void *failure                      # the exception that it raised
    unsigned control                   # the caller's floating-point state
    int stop                           # 1: by the callback, 2: by a signal
    rc_count working                   # threads

cdef void prepare_search(void *context, int size) noexcept nogil
cdef void search_task(void *context, int rank, int size) noexcept nogil
