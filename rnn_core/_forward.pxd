# The forward time loop.

from rnn_core._kernels cimport *
from rnn_core._plan cimport Batch, Block, Chunks, Direction, Team, View
from rnn_core._variants cimport Variant

# One direction of one layer on its way through time. Strides in elements, all of whole vectors.
cdef struct Pass:
    const rc_kernels *kernels
    Direction *d
    bint reverse
    View x, y                      # (token, inputs), (token, out)
    char *table                    # (V, gate row), or NULL: W x + b of every x there is; x is then (token): its int64
    char *h[2]                     # (rows, out): the state before and after step s is h[s % 2], h[(s + 1) % 2]
    char *c                        # (rows, units): LSTM's cell state; GRU_RESET_BEFORE: z between its phases
    char *hidden                   # (rows, units): h before the projection
    char *reset                    # (rows, units): r*h
    char *gates                    # (held tokens, gate row): the input projection, where there is no tape for it
    char *product                  # (rows, gate row), or NULL: scratch of kernels that do not fuse
    char *saved                    # tape, compact, or NULL: the input projection, then the activated gates
    char *saved_unit               # tape: LSTM c before each step, GRU R_n h + b_hn
    char *saved_hidden             # tape, with a projection: h before it
    bint known                     # y holds the outputs already, and is only read
    Variant *variant               # or NULL; threads then share out sequences
    View all_h, all_c              # every step's state, where asked for (else base and sequence NULL)

cdef bint forward_chunks(const Pass *p, const Batch *b, Team *team, const Chunks *chunks, ptrdiff_t first,
                         ptrdiff_t last, bint projects, bint recurs, void **pointers) noexcept nogil

cdef void set_pass(Pass *p, const rc_kernels *kernels, Direction *d, Block memory, const Batch *b, ptrdiff_t tokens,
                   bint keep) except *
cdef void set_tape(Pass *p, Block memory, const Batch *b) except *
cdef void set_states(Pass *p, const Batch *b, int index, object h0, object c0) except *
cdef void store_states(Pass *p, const Batch *b, int index, object hn, object cn) except *

cdef inline bint saves_units(int cell) noexcept nogil:
    return cell == RC_LSTM or cell == RC_GRU
