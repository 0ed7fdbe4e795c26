# The gradients of the weights and of x.

from rnn_core._backward cimport BackPass
from rnn_core._plan cimport Batch, Block, Team

# Elements of the second group's gradients of one pass: dw, dr, db_ih, db_hh.
cdef inline ptrdiff_t second_size(int gates, ptrdiff_t units, ptrdiff_t inputs, ptrdiff_t out) noexcept nogil:
    return gates * units * (inputs + out + 2)

cdef int groups_of(int gates, ptrdiff_t units, ptrdiff_t columns, ptrdiff_t rows) noexcept nogil
cdef void take_second(BackPass *passes, int count, Block scratch, second, bint last) except *
cdef void begin_gradients(const BackPass *p, const Team *team) noexcept nogil
cdef bint chunk_gradients(BackPass *p, const Batch *b, Team *team, ptrdiff_t begin, ptrdiff_t end,
                          void **pointers) noexcept nogil
cdef bint end_gradients(BackPass *p, Team *team) noexcept nogil
