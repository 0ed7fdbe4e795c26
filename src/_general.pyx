"""The general recurrent path: one direction of one layer of any cell that ONNX can describe; see src/general.h.

The callers (rnn_core/general.py) hand over checked, C-contiguous arrays of one dtype. The GIL is released for a
sequence, but for a look at the signals about every 20 ms, so that Ctrl-C ends a long call.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

cimport numpy as cnp

import numpy as np

from rnn_core._runtime cimport fp_begin, fp_end

cnp.import_array()

cdef extern from "general.h":
    ctypedef struct rc_activation:
        int kind
        double alpha, beta
    ctypedef struct rc_general_plan:
        int cell, reverse, coupled, reset_after, keep
        double clip
        rc_activation act[3]
        size_t steps, batch, input, hidden, y_stride
        const int64_t *lengths
    ctypedef struct rc_general_scratch:
        size_t *active
        void **a
        void **b
        void **c
    ctypedef struct rc_general_arrays:
        const void *x
        const void *w
        const void *r
        const void *bw
        const void *br
        const void *p
        void *y
        void *pre
        void *post
        void *aux
        void *h
        void *c
        const void *dy
        void *dx
        void *dw
        void *dr
        void *dbw
        void *dbr
        void *dp
        void *dh
        void *dc
        void *dgx
        void *dgh
        void *drh
    void rc_general_forward(const rc_general_plan *, const rc_general_arrays *, const rc_general_scratch *, int wide,
                            size_t begin, size_t end) noexcept nogil
    void rc_general_backward(const rc_general_plan *, const rc_general_arrays *, const rc_general_scratch *, int wide,
                             size_t begin, size_t end) noexcept nogil

CELLS = ("rnn", "lstm", "gru")                     # the order of RC_CELL_*
ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid",
               "Elu", "Softsign", "Softplus")      # the order of RC_ACT_*
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
# Multiply-adds between two looks at the signals: some 20 ms.
cdef double CHUNK_WORK = 2e7


cdef void *data(object array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray> array)


cdef class Direction:
    """One direction of one layer: its cell, its options and the pointers of one call at a time.

    cell         "rnn", "lstm" or "gru"
    activations  (name, alpha, beta) of f, of f and g, or of f, g and h
    clip         bound on the input of every gate's activation; inf for none
    """
    cdef readonly str cell
    cdef readonly int gates
    cdef rc_general_plan options

    def __init__(self, str cell, activations, *, bint reverse=False, bint coupled=False, bint reset_after=False,
                 double clip=float("inf")):
        self.cell = cell
        self.gates = GATES[cell]
        self.options.cell = CELLS.index(cell)
        self.options.reverse, self.options.coupled = reverse, coupled
        self.options.reset_after, self.options.clip = reset_after, clip
        for i, (name, alpha, beta) in enumerate(activations):
            self.options.act[i].kind = ACTIVATIONS.index(name)
            self.options.act[i].alpha, self.options.act[i].beta = alpha, beta

    def forward(self, weights, x, y, Py_ssize_t column, lengths, state, bint keep):
        """Run over x (T, B, I) and write y (T, B, *) from `column` on; returns (final state, tape).

        weights  [w, r, bw, br, p], None where absent
        state    [h] or [h, c], each (B, H) or None for zeros
        lengths  int64 (B,) or None
        The tape is None unless keep.
        """
        cdef rc_general_plan plan = self.plan_for(x, y, weights[1], lengths)
        cdef rc_general_arrays arrays = point_at_inputs(weights, x)
        cdef Py_ssize_t steps = plan.steps if keep else 1
        cdef Py_ssize_t slots = plan.steps + 1 if keep else 2
        cdef size_t itemsize = x.dtype.itemsize
        made = self.make_tape(plan, steps, slots, x.dtype)
        for i, initial in enumerate(state):
            made[3 + i][0] = 0 if initial is None else initial
        plan.keep = keep
        arrays.y = <char *> data(y) + column * itemsize
        self.point_at_tape(&arrays, made)
        run(&plan, &arrays, itemsize == 8, False)
        last = plan.steps if keep else plan.steps & 1
        final = [made[3 + i][last].copy() for i in range(len(state))]
        return final, made if keep else None

    def backward(self, weights, grads, tape, x, dy, Py_ssize_t column, lengths, dstate, dx):
        """Add to grads (as weights) and to dx (as x, or None); returns the initial state's gradients, as `dstate`."""
        cdef rc_general_plan plan = self.plan_for(x, dy, weights[1], lengths)
        cdef rc_general_arrays arrays = point_at_inputs(weights, x)
        cdef size_t itemsize = x.dtype.itemsize
        flow = [np.zeros((plan.batch, plan.hidden), x.dtype) if d is None else d.copy() for d in dstate]
        wide = (plan.batch, self.gates * plan.hidden)
        dgx = np.empty(wide, x.dtype)
        dgh = np.empty(wide, x.dtype) if self.options.reset_after else dgx
        drh = np.empty((plan.batch, plan.hidden), x.dtype)
        plan.keep = True
        self.point_at_tape(&arrays, tape)
        arrays.dy = <char *> data(dy) + column * itemsize
        arrays.dx = data(dx)
        arrays.dw, arrays.dr, arrays.dbw = data(grads[0]), data(grads[1]), data(grads[2])
        arrays.dbr, arrays.dp = data(grads[3]), data(grads[4])
        arrays.dgx, arrays.dgh, arrays.drh = data(dgx), data(dgh), data(drh)
        arrays.dh = data(flow[0])
        arrays.dc = data(flow[1]) if len(flow) > 1 else NULL
        run(&plan, &arrays, itemsize == 8, True)
        return flow

    cdef rc_general_plan plan_for(self, x, y, r, lengths):
        cdef rc_general_plan plan = self.options
        plan.steps, plan.batch, plan.input = x.shape
        plan.hidden, plan.y_stride = r.shape[1], y.shape[2]
        plan.lengths = <const int64_t *> data(lengths)
        return plan

    cdef make_tape(self, rc_general_plan plan, Py_ssize_t steps, Py_ssize_t slots, dtype):
        """[pre, post, aux, h, c] as general.h wants them."""
        shape = (steps, plan.batch, self.gates * plan.hidden)
        units = (steps, plan.batch, plan.hidden)
        aux = None if self.cell == "rnn" else np.empty(units, dtype)
        h = np.empty((slots, plan.batch, plan.hidden), dtype)
        c = np.empty_like(h) if self.cell == "lstm" else None
        return [np.empty(shape, dtype), np.empty(shape, dtype), aux, h, c]

    cdef void point_at_tape(self, rc_general_arrays *arrays, tape):
        arrays.pre, arrays.post, arrays.aux = data(tape[0]), data(tape[1]), data(tape[2])
        arrays.h, arrays.c = data(tape[3]), data(tape[4])


cdef rc_general_arrays point_at_inputs(weights, x):
    cdef rc_general_arrays arrays
    arrays.x = data(x)
    arrays.w, arrays.r, arrays.bw = data(weights[0]), data(weights[1]), data(weights[2])
    arrays.br, arrays.p = data(weights[3]), data(weights[4])
    return arrays


cdef int run(rc_general_plan *plan, rc_general_arrays *arrays, bint wide, bint backward) except -1:
    """All steps in chunks; raises what a signal handler raised."""
    cdef rc_general_scratch scratch
    cdef size_t B = plan.batch, steps = plan.steps, chunk, begin = 0, end
    cdef double step_work = 4.0 * B * plan.hidden * (plan.input + plan.hidden + 16) * (3 if backward else 1)
    cdef char *memory = <char *> malloc((B + 1) * (sizeof(size_t) + 3 * sizeof(void *)))
    cdef unsigned control
    if memory == NULL:
        raise MemoryError()
    scratch.active = <size_t *> memory
    scratch.a = <void **> (scratch.active + B)
    scratch.b, scratch.c = scratch.a + B, scratch.a + 2 * B
    chunk = <size_t> (CHUNK_WORK / (step_work + 1)) + 1
    try:
        while begin < steps:
            end = min(begin + chunk, steps)
            with nogil:
                control = 0 if wide else fp_begin()
                if backward:
                    rc_general_backward(plan, arrays, &scratch, wide, steps - end, steps - begin)
                else:
                    rc_general_forward(plan, arrays, &scratch, wide, begin, end)
                if not wide:
                    fp_end(control)
            PyErr_CheckSignals()
            begin = end
    finally:
        free(memory)
    return 0
