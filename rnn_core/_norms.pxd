# Layer normalisation in the cells: what the time loops keep for it, and their calls of its kernels.

from rnn_core._kernels cimport *
from rnn_core._plan cimport LN_C, LN_KINDS, Block, Direction, Segment

# Of one direction in one call. Rows are compact where they are kept on the tape, one for each token; else one for each
# sequence, sorted.
cdef struct Norms:
    bint kept
    char *hat[LN_KINDS]                # rows: normalised values, gate after gate, then 1 / deviation of each gate
    ptrdiff_t hat_row[LN_KINDS]        # their stride in elements
    char *gates                        # (rows, gate row) LSTM: its activated gates where there is no tape
    # Backward, shared by all directions, which run one after the other.
    char *dz[LN_C]                     # (chunk tokens, dz row): dz before the normalisation, of W x and of h R
    char *dz_o                         # (rows, units) LSTM: dz of the gate o
    char *dy_c                         # (chunk tokens, units) LSTM: gradient of the normalised c

cdef inline char *hat_at(const Norms *n, int which, ptrdiff_t row, ptrdiff_t column, size_t itemsize) noexcept nogil:
    return n.hat[which] + (row * n.hat_row[which] + column) * <ptrdiff_t>itemsize

cdef size_t norm_bytes(rc_cell cell, ptrdiff_t units, ptrdiff_t count, ptrdiff_t rows, const rc_kernels *k) except? 0
cdef int take_norms(Norms *n, const Direction *d, ptrdiff_t count, ptrdiff_t rows, bint kept, const rc_kernels *k,
                    Block memory) except -1
cdef size_t norm_back_bytes(ptrdiff_t units, ptrdiff_t dz_row, ptrdiff_t count, ptrdiff_t rows,
                            const rc_kernels *k) except? 0
cdef int take_norms_back(Norms *n, Norms *first, ptrdiff_t units, ptrdiff_t dz_row, ptrdiff_t count,
                         ptrdiff_t rows, const rc_kernels *k, Block memory) except -1
# y <- gates `first` to first + gates of gate rows x normalised, y may be x; `row`: the first one of hat's.
cdef void normalise(const rc_kernels *k, const Direction *d, const Norms *n, int which, int first, int gates, rc_rows x,
                    rc_rows y, ptrdiff_t row, ptrdiff_t rows) noexcept nogil
# h <- o tanh(c normalised) of an LSTM with these saved gates.
cdef void normalise_cell(const rc_kernels *k, const Direction *d, const Norms *n, rc_rows c, rc_rows saved, rc_rows h,
                         ptrdiff_t row, ptrdiff_t rows) noexcept nogil
# The gradients before the normalisation, dx, from those after it, dy: these columns of dz rows.
cdef void normalise_back(const rc_kernels *k, const Direction *d, const Norms *n, int which, const Segment *segment,
                         rc_rows dy, rc_rows dx, ptrdiff_t row, ptrdiff_t rows) noexcept nogil
# dc += and dz_o, dy_c <- from dh, which is zero then.
cdef void normalise_cell_back(const rc_kernels *k, const Direction *d, const Norms *n, rc_rows saved, rc_rows dh,
                              rc_rows dc, rc_rows dz_o, rc_rows dy_c, ptrdiff_t row, ptrdiff_t rows) noexcept nogil
