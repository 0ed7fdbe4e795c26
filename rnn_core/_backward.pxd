# Backpropagation through time.

from rnn_core._kernels cimport *
from rnn_core._plan cimport LN_KINDS, Batch, Chunks, Direction, Team, View
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
    char *dz                       # (chunk tokens, dz row)
    char *dz_ih                    # the same before the layer normalisations of either side; without them dz itself
    char *dz_hh
    ptrdiff_t dz_row               # its stride in elements
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

cdef bint backward_pass(BackPass *p, const Batch *b, Team *team, const Chunks *chunks, void **pointers) noexcept nogil
