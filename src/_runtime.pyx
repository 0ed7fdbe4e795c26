"""The thread pool, the choice of kernels and the look for signals: once in a process, for all compiled modules."""

import os
import sys
from _thread import get_ident

from rnn_core.environment import ISAS, available_cores, choose_isa, choose_threads


cdef extern from "cpu.h":
    int rc_cpu_isa()
    size_t rc_cache_bytes(int level) nogil
    unsigned rc_fp_begin() nogil
    void rc_fp_end(unsigned control) nogil
    void rc_fp_set(unsigned control) nogil
    unsigned rc_fp_standard() nogil

cdef extern from "dispatch.h":
    ptrdiff_t rc_l1_bytes
    int rc_l3_is_fast() nogil
    const rc_kernels *rc_pick_f32(int isa)
    const rc_kernels *rc_pick_f64()

cdef extern from "pool.h":
    int rc_pool_init(int cores)
    void rc_pool_set_threads(int threads)
    int rc_pool_threads() nogil
    unsigned rc_pool_epoch() nogil
    int rc_pool_run(rc_task task, void *ctx, int want) nogil
    int rc_pool_run_prepared(rc_prepare prepare, rc_task task, void *ctx, int want) nogil
    int rc_pool_awake(int want) nogil
    void rc_pool_set_eager(int eager) nogil
    void rc_barrier_init(rc_barrier *barrier, int size) nogil
    void rc_barrier_wait(rc_barrier *barrier) nogil
    void rc_relay_init(rc_relay *relay, rc_pace *paces, int rank, int size) nogil
    void rc_relay_pass(void *relay) nogil
    void rc_relay_wait(void *relay, int later) nogil

cdef extern from "ticks.h":
    double rc_seconds() nogil

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept
    void PyErr_SetString(object kind, const char *text) noexcept
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef enum:
    FIRST_READING = 0

cdef double TICK = 0.03  # seconds between two looks for signals
cdef double NEVER = 1e300

cdef const rc_kernels *table_f32 = NULL
cdef const rc_kernels *table_f64 = NULL
cdef unsigned long main_thread = 0
cdef size_t cache_sizes[4]  # by level; asking the CPU takes microseconds on a virtual machine


# ---- for the other compiled modules: see _runtime.pxd ----

cdef const rc_kernels *kernels_f32() noexcept nogil:
    return table_f32


cdef const rc_kernels *kernels_f64() noexcept nogil:
    return table_f64


cdef int run(rc_task task, void *ctx, int want) noexcept nogil:
    return rc_pool_run(task, ctx, want)


cdef int run_prepared(rc_prepare prepare, rc_task task, void *ctx, int want) noexcept nogil:
    return rc_pool_run_prepared(prepare, task, ctx, want)


cdef int awake(int want) noexcept nogil:
    return rc_pool_awake(want)


cdef void set_eager(bint eager) noexcept nogil:
    rc_pool_set_eager(eager)


cdef int num_threads() noexcept nogil:
    return rc_pool_threads()


cdef void barrier_init(rc_barrier *barrier, int size) noexcept nogil:
    rc_barrier_init(barrier, size)


cdef void barrier_wait(rc_barrier *barrier) noexcept nogil:
    rc_barrier_wait(barrier)


cdef void relay_init(rc_relay *relay, rc_pace *paces, int rank, int size) noexcept nogil:
    rc_relay_init(relay, paces, rank, size)


cdef void relay_pass(void *relay) noexcept nogil:
    rc_relay_pass(relay)


cdef void relay_wait(void *relay, int later) noexcept nogil:
    rc_relay_wait(relay, later)


cdef unsigned fp_begin() noexcept nogil:
    return rc_fp_begin()


cdef void fp_end(unsigned control) noexcept nogil:
    rc_fp_end(control)


cdef size_t cache_bytes(int level) noexcept nogil:
    return cache_sizes[level]


cdef void set_l1_bytes(ptrdiff_t count) noexcept:
    global rc_l1_bytes
    rc_l1_bytes = count


cdef bint l3_is_fast() noexcept nogil:
    return rc_l3_is_fast()


cdef int check_signals() noexcept nogil:
    """Run Python's signal handlers now; -1 if one raised. Handlers are Python code: they see denormals as usual.

    A handler may fork. The child has lost the other threads of the call, so that the call must end there.
    """
    cdef unsigned control = rc_fp_standard(), epoch = rc_pool_epoch()
    cdef int status
    with gil:
        status = PyErr_CheckSignals()
        if status == 0 and rc_pool_epoch() != epoch:
            PyErr_SetString(RuntimeError, "rnn_core: a signal handler forked in the middle of this call")
            status = -1
    rc_fp_set(control)
    return status


cdef int tick(double *next) noexcept nogil:
    cdef double now
    if next[0] == NEVER:
        return 0
    now = rc_seconds()
    if now < next[0]:
        return 0
    if next[0] == FIRST_READING:
        # Handlers run on Python's main thread only: another one would take the GIL for nothing.
        next[0] = now + TICK if PyThread_get_thread_ident() == main_thread else NEVER
        return 0
    next[0] = now + TICK
    return check_signals()


cdef int raise_pending() except -1:
    return -1


# ---- for Python ----

def isa():
    """The instruction set of the kernels in use: "avx512", "avx2" or "generic"."""
    return _isa


def set_num_threads(n):
    """See rnn_core.set_num_threads; `n` is checked there."""
    rc_pool_set_threads(n)


def get_num_threads():
    """The largest number of threads that one call uses."""
    return rc_pool_threads()


def cores():
    """Cores that this process may use: affinity and cgroup quota, as seen at import."""
    return _cores


def caches():
    """Bytes of the caches that one core sees: (L1 data, L2, L3)."""
    return cache_sizes[1], cache_sizes[2], cache_sizes[3]


def _this_is_the_main_thread():
    global main_thread
    main_thread = get_ident()


_isa = choose_isa(ISAS[rc_cpu_isa()])
_cores = available_cores()
_threads = choose_threads(_cores)
if rc_pool_init(_cores):
    raise MemoryError("rnn_core: no memory for the thread pool's fork handler")
rc_pool_set_threads(_threads)
table_f32 = rc_pick_f32(ISAS.index(_isa))
table_f64 = rc_pick_f64()
for _level in (1, 2, 3):
    cache_sizes[_level] = rc_cache_bytes(_level)
set_l1_bytes(cache_sizes[1])
# A process that has not loaded `threading` has one thread; to load it here would cost every import a millisecond.
main_thread = sys.modules["threading"].main_thread().ident if "threading" in sys.modules else get_ident()
if hasattr(os, "register_at_fork"):  # the thread that forks is the child's main thread
    os.register_at_fork(after_in_child=_this_is_the_main_thread)
