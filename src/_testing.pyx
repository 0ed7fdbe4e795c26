"""Python-visible twins of what compiled code has for itself, for the tests."""

from libc.stdlib cimport calloc, free

import numpy as np
cimport numpy as cnp

from rnn_core._kernels cimport rc_kernels
from rnn_core._runtime cimport (
    awake, barrier_init, barrier_wait, fp_begin, fp_end, kernels_f32, kernels_f64, raise_pending, rc_barrier, run,
    run_prepared, set_eager, set_l1_bytes, tick,
)

cnp.import_array()

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef extern from "ticks.h":
    double rc_seconds() noexcept nogil

cdef struct Cell:
    unsigned long thread
    long sum
    float value

cdef struct Team:
    Cell *cells
    rc_barrier barrier
    int steps
    int stop
    double until    # rc_seconds()


cdef void note_thread(void *ctx, int rank, int size) noexcept nogil:
    (<Cell *> ctx)[rank].thread = PyThread_get_thread_ident()


cdef void halve(void *ctx, int rank, int size) noexcept nogil:
    (<Cell *> ctx)[rank].value *= 0.5


cdef void prepare(void *ctx, int size) noexcept nogil:
    barrier_init(&(<Team *> ctx).barrier, size)


cdef void march(void *ctx, int rank, int size) noexcept nogil:
    """Each rank sums, step after step, what all ranks wrote in that step."""
    cdef Team *team = <Team *> ctx
    cdef int step, i
    for step in range(1, team.steps + 1):
        team.cells[rank].thread = step
        barrier_wait(&team.barrier)
        for i in range(size):
            team.cells[rank].sum += team.cells[i].thread
        barrier_wait(&team.barrier)


cdef void wait(void *ctx, int rank, int size) noexcept nogil:
    """All ranks meet at a barrier until the time is over or rank 0 finds that a signal handler raised."""
    cdef Team *team = <Team *> ctx
    cdef double next = 0
    while True:
        if rank == 0:
            if tick(&next):
                team.stop = -1
            elif rc_seconds() > team.until:
                team.stop = 1
        barrier_wait(&team.barrier)
        if team.stop:
            return
        barrier_wait(&team.barrier)  # or a fast rank 0 might set `stop` for the next round before a slow rank reads it


cdef Cell *new_cells(int n) except NULL:
    cdef Cell *cells = <Cell *> calloc(n, sizeof(Cell))
    if cells == NULL:
        raise MemoryError(f"{n} cells")
    return cells


def team_threads(int want):
    """The identity of the thread of each rank of one run."""
    cdef Cell *cells = new_cells(want)
    cdef int size
    with nogil:
        size = run(note_thread, cells, want)
    threads = [cells[i].thread for i in range(size)]
    free(cells)
    return threads


def wake_for_all(bint yes):
    """Whether brief calls, too, wake the threads that they would share their work with."""
    set_eager(yes)


def assume_l1(Py_ssize_t count):
    """What the kernels take for the bytes of the first data cache."""
    set_l1_bytes(count)


def team_awake(int want):
    """`want`, or 1 while the team sleeps; see rc_pool_awake."""
    return awake(want)


def team_sums(int want, int steps):
    """The sums of `march`, one a rank: size * steps * (steps + 1) / 2 each, if every barrier held."""
    cdef Team team
    cdef int size
    team.cells = new_cells(want)
    team.steps = steps
    with nogil:
        size = run_prepared(prepare, march, &team, want)
    sums = [team.cells[i].sum for i in range(size)]
    free(team.cells)
    return sums


def team_waits(int want, double seconds):
    """Keep a team busy for `seconds` without the GIL, denormals flushed, with a look for signals; returns its size."""
    cdef Team team
    cdef unsigned control
    cdef int size
    team.stop, team.until = 0, rc_seconds() + seconds
    with nogil:
        control = fp_begin()
        size = run_prepared(prepare, wait, &team, want)
        fp_end(control)
    if team.stop < 0:
        raise_pending()
    return size


def team_halves(float x, int want, bint flush):
    """x / 2 in float32 on each rank, with denormals flushed to zero or not."""
    cdef Cell *cells = new_cells(want)
    cdef unsigned control = 0
    cdef int size, i
    for i in range(want):
        cells[i].value = x
    with nogil:
        if flush:
            control = fp_begin()
        size = run(halve, cells, want)
        if flush:
            fp_end(control)
    values = [cells[i].value for i in range(size)]
    free(cells)
    return values


def activate(str function, x, bint double=False):
    """exp, sigmoid or tanh of a float32 (or float64) array by the kernels."""
    cdef const rc_kernels *k = kernels_f64() if double else kernels_f32()
    values = np.ascontiguousarray(x, np.float64 if double else np.float32)
    result = np.empty_like(values)
    cdef unsigned control = fp_begin()
    cdef int which = ["exp", "sigmoid", "tanh"].index(function)
    k.activate(which, cnp.PyArray_DATA(values), cnp.PyArray_DATA(result), values.size)
    fp_end(control)
    return result
