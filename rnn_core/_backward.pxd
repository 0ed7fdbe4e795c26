# Backpropagation through time.

from rnn_core._kernels cimport *
from rnn_core._plan cimport LN_KINDS, Batch, Chunks, Direction, Team, View, token
from rnn_core._variants cimport Variant

# One direction of one layer on its way back. Gradients d* mirror the names of _forward.Pass.
cdef struct BackPass:
    const rc_kernels *kernels
    Direction *d
    bint reverse
    bint need_dx, add_dx           # whether dx is wanted, and whether to add to what the other direction left there
    View x, y, dy, dx              # dy: base and sequence NULL for zero
    Variant *variant               # or NULL; threads then share out sequences
    View all_dh, all_dc            # gradients of every step's state, or sequence NULL
    void **h0                      # (rows): the row of the initial state of each sequence
    char *dh                       # (rows, out) whole vectors: in, dL/dh_n; out, dL/dh_0
    char *dc                       # (rows, units) whole vectors: the same for c
    char *dhidden                  # (rows, units): with a projection, the gradient of h before it
    char *reset                    # (rows, units): d(r*h)
    char *dz                       # (groups, chunk tokens, dz row)
    char *dz_ih                    # the same before the layer normalisations of either side; without them dz itself
    char *dz_hh
    ptrdiff_t dz_row               # its stride in elements
    int groups                     # of sequences whose gradients are summed up apart: 1, or 2 without any variant
    ptrdiff_t group_rows           # of dz for each: a chunk's tokens
    char *second                   # the second group's dw, dr, db_ih and db_hh
    bint own_second, add_second    # whether it is this pass's own, zeros at first; and to be added to the first's
    char *sums                     # (table rows, dz row), or NULL: dz summed over the tokens that x puts at each row
    char *table                    # (table rows, inputs): x is then (token), its int64 place here
    char *dtable                   # gradient of the table, in place of dx
    ptrdiff_t table_rows
    char *douts                    # (chunk tokens, out): with a projection, the gradient of the projected h
    char *resets                   # (chunk tokens, units): r*h again, for R_n's gradient
    char *saved                    # the tape, compact
    char *saved_unit
    char *saved_hidden
    char *dw                       # gradients, as the user's: (gates * units, inputs) and so on; NULL where unwanted
    char *dr
    char *db_ih
    char *db_hh
    char *dp
    char *dgain[LN_KINDS]          # of the layer normalisations
    char *dshift[LN_KINDS]

# The first sequence of step t that is not of the first group: the border between two threads that share() them out.
cdef inline ptrdiff_t border(const BackPass *p, const Batch *b, ptrdiff_t t) noexcept nogil:
    cdef ptrdiff_t n = b.active[t]
    return n if p.groups == 1 else (n + n // 2 % 2) // 2

# The h that step t of sequence m started from: y of the step before, or the initial state.
cdef inline void *state_before(const BackPass *p, const Batch *b, ptrdiff_t t, ptrdiff_t m) noexcept nogil:
    if p.reverse:
        return token(&p.y, b, t + 1, m) if t + 1 < b.length[m] else p.h0[m]
    return token(&p.y, b, t - 1, m) if t > 0 else p.h0[m]

cdef bint backward_pass(BackPass *p, const Batch *b, Team *team, const Chunks *chunks, void **pointers) noexcept nogil
