"""Layer normalisation in the cells (Ba et al. 2016): its memory, and the calls of its kernels (src/norm_body.h).

The input projection, h R and an LSTM's c pass through it, each gate of each row by itself.
"""

from libc.string cimport memset

from rnn_core._kernels cimport *
from rnn_core._plan cimport LN_C, LN_KINDS, Block, Direction, Segment, gates_of, padded, rows_at, whole


cdef inline int gates_in(rc_cell cell, int which) noexcept nogil:
    """How many gates this normalisation takes."""
    if which == LN_C:
        return 1 if cell == RC_LSTM else 0
    return gates_of(cell)


cdef inline ptrdiff_t row_of(rc_cell cell, ptrdiff_t units, int which, const rc_kernels *k) noexcept nogil:
    """Elements of a row of normalised values and deviations."""
    cdef ptrdiff_t gates = gates_in(cell, which)
    return whole(gates * (units + 1), k.lanes)


cdef size_t norm_bytes(rc_cell cell, ptrdiff_t units, ptrdiff_t count, ptrdiff_t rows, const rc_kernels *k) except? 0:
    """What take_norms takes."""
    cdef size_t total = padded(rows * whole(units, k.lanes) * gates_of(cell), k.itemsize)
    cdef int which
    for which in range(LN_KINDS):
        total += padded(count * row_of(cell, units, which, k), k.itemsize)
    return total


cdef int take_norms(Norms *n, const Direction *d, ptrdiff_t count, ptrdiff_t rows, bint kept, const rc_kernels *k,
                    Block memory) except -1:
    """Memory for `count` rows of normalised values: the tokens where they are kept for backward, else the sequences."""
    cdef int which
    memset(n, 0, sizeof(Norms))
    n.kept = kept
    for which in range(LN_KINDS):
        n.hat_row[which] = row_of(d.cell, d.units, which, k)
        n.hat[which] = <char *>memory.take(count * n.hat_row[which] * k.itemsize)
    if d.cell == RC_LSTM and not kept:
        n.gates = <char *>memory.take(rows * rc_row_size(&d.w, k.lanes) * k.itemsize)
    return 0


cdef size_t norm_back_bytes(ptrdiff_t units, ptrdiff_t dz_row, ptrdiff_t count, ptrdiff_t rows,
                            const rc_kernels *k) except? 0:
    """What take_norms_back takes."""
    cdef ptrdiff_t row = whole(units, k.lanes)
    return 2 * padded(count * dz_row, k.itemsize) + padded(count * row, k.itemsize) + padded(rows * row, k.itemsize)


cdef int take_norms_back(Norms *n, Norms *first, ptrdiff_t units, ptrdiff_t dz_row, ptrdiff_t count,
                         ptrdiff_t rows, const rc_kernels *k, Block memory) except -1:
    """Memory for the first direction, with chunks of `count` tokens; every other one has the same."""
    cdef ptrdiff_t row = whole(units, k.lanes)
    cdef int which
    if n != first:
        n.dz, n.dz_o, n.dy_c = first.dz, first.dz_o, first.dy_c
        return 0
    for which in range(LN_C):
        n.dz[which] = <char *>memory.take(count * dz_row * k.itemsize)
    n.dz_o = <char *>memory.take(rows * row * k.itemsize)
    n.dy_c = <char *>memory.take(count * row * k.itemsize)
    return 0


cdef rc_norm job_of(const rc_kernels *k, const Direction *d, const Norms *n, int which, int first, int gates,
                    ptrdiff_t row, ptrdiff_t rows) noexcept nogil:
    """Gates `first` to first + gates of `rows` rows; what else it reads and writes is the caller's to set."""
    cdef rc_norm job
    memset(&job, 0, sizeof(rc_norm))
    job.units, job.gates, job.rows = d.units, gates, rows
    job.gain = d.gain[which] + first * d.units * <ptrdiff_t>k.itemsize
    job.shift = d.shift[which] + first * d.units * <ptrdiff_t>k.itemsize
    job.hat = rows_at(hat_at(n, which, row, first * d.units, k.itemsize), n.hat_row[which])
    job.rstd = rows_at(hat_at(n, which, row, gates_in(d.cell, which) * d.units + first, k.itemsize), n.hat_row[which])
    return job


cdef void normalise(const rc_kernels *k, const Direction *d, const Norms *n, int which, int first, int gates, rc_rows x,
                    rc_rows y, ptrdiff_t row, ptrdiff_t rows) noexcept nogil:
    cdef rc_norm job = job_of(k, d, n, which, first, gates, row, rows)
    job.x, job.y = x, y
    k.norm(&job)


cdef void normalise_cell(const rc_kernels *k, const Direction *d, const Norms *n, rc_rows c, rc_rows saved, rc_rows h,
                         ptrdiff_t row, ptrdiff_t rows) noexcept nogil:
    cdef rc_norm job = job_of(k, d, n, LN_C, 0, 1, row, rows)
    job.x, job.y, job.saved = c, h, saved
    k.norm(&job)


cdef void normalise_back(const rc_kernels *k, const Direction *d, const Norms *n, int which, const Segment *segment,
                         rc_rows dy, rc_rows dx, ptrdiff_t row, ptrdiff_t rows) noexcept nogil:
    cdef rc_norm job = job_of(k, d, n, which, <int>(segment.row // d.units), <int>(segment.count // d.units), row, rows)
    job.dy = rows_at(<char *>dy.base + segment.column * k.itemsize, dy.stride)
    job.dx = rows_at(<char *>dx.base + segment.column * k.itemsize, dx.stride)
    k.norm_back(&job)


cdef void normalise_cell_back(const rc_kernels *k, const Direction *d, const Norms *n, rc_rows saved, rc_rows dh,
                              rc_rows dc, rc_rows dz_o, rc_rows dy_c, ptrdiff_t row, ptrdiff_t rows) noexcept nogil:
    cdef rc_norm job = job_of(k, d, n, LN_C, 0, 1, row, rows)
    job.saved, job.dh, job.dz, job.dy, job.dx, job.accumulate = saved, dh, dz_o, dy_c, dc, True
    k.norm_back(&job)
