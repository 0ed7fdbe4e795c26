# One step of a decoder for some rows (hypotheses, or sentences in training): what decoding and input feeding share.

from libc.stdint cimport int32_t, int64_t

from rnn_core._kernels cimport *
from rnn_core._plan cimport Block, Direction

cdef enum:
    MOST_LAYERS = 16
    # Up to so many tokens the first layer's input projection of every token is computed beforehand.
    TABLE_TOKENS = 1024

# A packed matrix (gates == 1) with its bias row, or packed NULL where there is none.
cdef struct Product:
    rc_shape shape
    void *packed
    void *bias

# A decoder's weights, ready to step with: (V, E) embeddings, a_t of `size`, a memory of `width`.
cdef struct Net:
    const rc_kernels *kernels
    const rc_kernels *cells            # of the recurrent layers
    Direction *directions              # (layers)
    Py_ssize_t vocabulary, embedding_size, hidden, width, size
    int layers, kind                   # kind: 0 no attention, 1 dot or general, 2 additive
    bint feeds
    const void *embedding              # (V, E)
    char *table                        # (V, gate row): the first layer's input projection of every token, or NULL
    Product query, combine, output
    const void *v

# Owner of a Net, which all threads share and nobody writes.
cdef class Plan:
    cdef Net net
    cdef list blocks, arrays           # kept alive
    cdef int product(self, Product *p, object weight, object bias) except -1

# One sentence as attention sees it.
cdef struct Source:
    Py_ssize_t length
    char *keys                         # (S, H): additive
    char *packed                       # keys packed: dot and general
    char *memory                       # (S, width)

# What a step writes, for `rows` rows; row strides in elements, whole vectors. [2]: before and after, by turns.
cdef struct Steps:
    Py_ssize_t rows                    # most rows
    int now                            # which of two buffers holds the states before the step
    char *h[MOST_LAYERS][2]
    char *c[MOST_LAYERS][2]            # LSTM
    char *result[2]                    # a_t: what the output layer reads, and what is fed
    char *inputs                       # (rows, E + A): with input feeding
    char *gates
    char *product
    char *joined                       # (rows, width + H)
    char *queries                      # (rows, H): additive
    char *scores                       # (rows, most sources)
    char *turned                       # the same, transposed
    char *work                         # (most sources, H): additive
    void **pointers                    # (2 rows)

cdef size_t steps_bytes(const Net *plan, Py_ssize_t rows, Py_ssize_t sources) except? 0
cdef int take_steps(const Net *plan, Steps *s, Block memory, Py_ssize_t rows, Py_ssize_t sources) except -1
# The part of a team's buffers that starts at row `first`.
cdef Steps part_of_steps(const Net *plan, const Steps *s, Py_ssize_t first, Py_ssize_t rows,
                         Py_ssize_t sources) noexcept nogil
cdef void start_row(const Net *plan, Steps *s, Py_ssize_t row, char **h, char **c) noexcept nogil
# states and a_t of `n` rows from their parents' and a token each; s.now stays, the result is in the other buffers
cdef void run_layers(const Net *plan, Steps *s, Py_ssize_t n, const int32_t *parents,
                     const int32_t *tokens) noexcept nogil
# rows [begin, begin + n) look at one source; s.scores + offset (n, S) gets the weights
cdef void look(const Net *plan, Steps *s, const Source *source, Py_ssize_t begin, Py_ssize_t n,
               char *weights) noexcept nogil
cdef void combine_rows(const Net *plan, Steps *s, Py_ssize_t n) noexcept nogil
cdef void logits_of(const Net *plan, Steps *s, Py_ssize_t begin, Py_ssize_t n, char *logits) noexcept nogil
cdef void pack_keys(const Net *plan, const char *keys, Py_ssize_t length, char *packed) noexcept nogil
