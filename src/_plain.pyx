"""Plain calls of a layer: padded arrays that the engine can read as they lie, no lengths, no options.

They are most of what short calls and training loops do, and Python would be much of their time: its code has left the
caches after every step of training. So the look at the arguments, the results and the call itself are compiled.
"""

cimport numpy as cnp

from rnn_core._outputs cimport Recent
from rnn_core._step cimport Stepper

cnp.import_array()


def call(self, x, state=None, lengths=None, *, embedding=None, return_all_states=False):
    """Inference: (y, state), nothing kept.

    x (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or a Ragged; state h (L*D, B, H), for an LSTM
    (h, c), zero if None; lengths (B,) of sequences that end before T, in any order.
    embedding: x is tokens, integers (T, B), (B, T), (T,) or a Ragged, that stand for its rows: the same result as
    with x = embedding(tokens), in less time the more often they repeat themselves.
    y has D*H columns instead of I, zero past a sequence's end; state is the one after each one's last step, or
    with return_all_states those after every step: h (T, L*D, B, H), for an LSTM (h, c), zero past the ends.
    """
    if lengths is None and embedding is None and not return_all_states:
        plain = self._plain
        if plain is None:
            plain = self._plain_calls()
        found = (<Plain?>plain).infer(self, x, state)
        if found is not None:
            return found
    return self._run(self._input(x, lengths, embedding), state, False, return_all_states)[:2]


cdef class Plain:
    """A layer's calls of its Network; each gives None where an argument needs more than a look. `stepper`: for a layer
    of one cell, calls of one step; without a network (None) no call is plain."""
    cdef object network
    cdef Stepper stepper
    cdef Recent recent
    cdef bint has_c
    cdef int type
    cdef ptrdiff_t inputs, units, out, width, states

    def __init__(self, network, bint has_c, Stepper stepper):
        self.network, self.has_c, self.stepper, self.recent = network, has_c, stepper, Recent()
        if network is None:
            return
        self.type = cnp.NPY_FLOAT32 if network.dtype.itemsize == 4 else cnp.NPY_FLOAT64
        self.inputs, self.units, self.out = network.inputs, network.units, network.out
        self.width, self.states = network.directions * self.out, network.layers * network.directions

    cdef bint reads(self, x, ptrdiff_t first, ptrdiff_t second, ptrdiff_t columns) noexcept:
        """Whether x is an array of this shape (-1: any size) that the engine can read as it lies."""
        if not cnp.PyArray_CheckExact(x) or not cnp.PyArray_ISCARRAY_RO(x) or cnp.PyArray_NDIM(x) != 3:
            return False
        if cnp.PyArray_TYPE(x) != self.type or cnp.PyArray_DIM(x, 2) != columns:
            return False
        return first in (-1, cnp.PyArray_DIM(x, 0)) and second in (-1, cnp.PyArray_DIM(x, 1))

    cdef bint reads_state(self, state, ptrdiff_t rows) except -1:
        """The same of h, or of (h, c); None is the state of zeros."""
        if state is None:
            return True
        if not self.has_c:
            return self.reads(state, self.states, rows, self.out)
        return (type(state) is tuple and len(state) == 2 and self.reads(state[0], self.states, rows, self.out)
                and self.reads(state[1], self.states, rows, self.units))

    cdef tuple parts(self, state):
        """(h, c), None for what there is not."""
        return (None, None) if state is None else state if self.has_c else (state, None)

    cdef object empty(self, cnp.npy_intp first, cnp.npy_intp second, cnp.npy_intp columns):
        cdef cnp.npy_intp[3] shape
        shape[0], shape[1], shape[2] = first, second, columns
        return self.recent.empty(3, shape, self.type)

    cdef object empty_state(self, ptrdiff_t rows):
        h = self.empty(self.states, rows, self.out)
        return (h, self.empty(self.states, rows, self.units)) if self.has_c else h

    cdef object infer(self, layer, x, state):
        """(y, state)"""
        cdef bint batch_first = layer.batch_first
        if self.network is None or layer.zoneout:
            return None
        if self.stepper is not None:
            found = self.stepper.layer_step(x, state, batch_first)
            if found is not None:
                return found
        return self.run(layer, x, state, batch_first, False)

    def forward(self, layer, x, state, bint batch_first):
        """(y, state, the engine's tape)"""
        return None if self.network is None else self.run(layer, x, state, batch_first, True)

    cdef object run(self, layer, x, state, bint batch_first, bint keep):
        if not self.reads(x, -1, -1, self.inputs):
            return None
        cdef ptrdiff_t rows = cnp.PyArray_DIM(x, not batch_first)
        if not self.reads_state(state, rows):
            return None
        y = self.empty(cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), self.width)
        after = self.empty_state(rows)
        h0, c0 = self.parts(state)
        h, c = self.parts(after)
        tape = self.network.forward(layer._weights(), x, y, "batch_first" if batch_first else "time_major",
                                    cnp.PyArray_DIM(x, batch_first), rows, None, h0, c0, h, c, keep)
        return (y, after, tape) if keep else (y, after)

    def backward(self, tape, cnp.ndarray x, dy, dstate, list grads, bint need_dx, bint batch_first):
        """(dx, dstate) of a forward of x; adds into grads."""
        cdef ptrdiff_t first = cnp.PyArray_DIM(x, 0), second = cnp.PyArray_DIM(x, 1)
        cdef ptrdiff_t rows = first if batch_first else second
        if dy is not None and not self.reads(dy, first, second, self.width) or not self.reads_state(dstate, rows):
            return None
        dx = self.empty(first, second, self.inputs) if need_dx else None
        before = self.empty_state(rows)
        dh, dc = self.parts(dstate)
        dh0, dc0 = self.parts(before)
        self.network.backward(tape, dy, dh, dc, grads, dx, dh0, dc0)
        return dx, before
