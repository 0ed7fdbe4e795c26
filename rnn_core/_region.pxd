# One call of the engine, seen by all of its threads.

from rnn_core._backward cimport BackPass
from rnn_core._forward cimport Pass
from rnn_core._kernels cimport *
from rnn_core._plan cimport Batch, Chunks, View, rc_stop
from rnn_core._runtime cimport rc_barrier, rc_pace

ctypedef void (*task)(void *, int, int) noexcept nogil

cdef struct Call:
    # One forward or backward call, seen by all of its threads.
    const rc_kernels *kernels
    Batch *batch
    int layers, directions
    Chunks chunks
    Pass *passes
    BackPass *back
    bint units                         # threads share out hidden units, else sequences
    bint apart                         # the batch is to have a part for each thread (Batch.parts)
    bint staged                        # threads take turns with the chunks (staged_task)
    ptrdiff_t held                     # tokens of which a buffer holds what lies between two stages or layers
    void **pointers                    # a part for each thread
    ptrdiff_t pointers_each
    char *columns                      # a part for each thread (Team.columns), or NULL
    size_t columns_each
    View *masks                        # (layers - 1) dropout masks, or NULL
    int look_every                     # steps between two looks for signals
    rc_stop stop
    rc_stop team_stop[3]               # of all threads, and of those of each direction
    rc_barrier barrier[3]
    rc_pace *paces                     # forward: one for each thread

cdef void forward_task(void *context, int rank, int size) noexcept nogil
# Of layers whose steps are too small to be shared out: threads take turns with the chunks.
cdef void staged_task(void *context, int rank, int size) noexcept nogil
cdef void backward_task(void *context, int rank, int size) noexcept nogil
# Run `work` on up to `threads` threads; `multiplications` tells whether it is worth letting go of the GIL.
cdef int run_call(Call *call, task work, int threads, double multiplications) except -1
