# What the other compiled modules share: one thread pool and one table of kernels for the whole process.
# cimport from here; the C code behind it is linked into rnn_core._runtime alone.

from rnn_core._kernels cimport rc_kernels

cdef extern from "pool.h":
    ctypedef void (*rc_task)(void *ctx, int rank, int size) noexcept nogil
    ctypedef void (*rc_prepare)(void *ctx, int size) noexcept nogil
    ctypedef struct rc_barrier:
        pass
    ctypedef struct rc_pace:
        pass
    ctypedef struct rc_relay:
        pass

# The kernels for float and double, picked once at import from the CPU, the system and RNN_CORE_ISA.
cdef const rc_kernels *kernels_f32() noexcept nogil
cdef const rc_kernels *kernels_f64() noexcept nogil

# task(ctx, rank, size) on `size` <= want threads, the caller being rank 0; returns size. See pool.h.
cdef int run(rc_task task, void *ctx, int want) noexcept nogil
# The same with prepare(ctx, size) before, on the caller's thread: `size` may be smaller than `want` (the pool is busy,
# or another thread has just lowered the number of threads), so barriers and shares of work can be set up only there.
cdef int run_prepared(rc_prepare prepare, rc_task task, void *ctx, int want) noexcept nogil
# `want`, or 1 while that team sleeps: to ask before a run of less than BRIEF multiply-adds, which would be over before
# it woke. See pool.h.
cdef enum:
    BRIEF = 1 << 22
cdef int awake(int want) noexcept nogil
# For tests: awake() gives `want` whoever sleeps.
cdef void set_eager(bint eager) noexcept nogil
# The largest team of a run.
cdef int num_threads() noexcept nogil
cdef void barrier_init(rc_barrier *barrier, int size) noexcept nogil
cdef void barrier_wait(rc_barrier *barrier) noexcept nogil
# For teams that go through the same steps; see pool.h.
cdef void relay_init(rc_relay *relay, rc_pace *paces, int rank, int size) noexcept nogil
cdef void relay_pass(void *relay) noexcept nogil
cdef void relay_wait(void *relay, int later) noexcept nogil

# Denormals flushed to signed zero on this thread and on the workers of the runs that it starts; the former state back.
cdef unsigned fp_begin() noexcept nogil
cdef void fp_end(unsigned control) noexcept nogil

# Bytes of the cache of level 1 (data), 2 or 3 that one core sees; never 0.
cdef size_t cache_bytes(int level) noexcept nogil
# That of level 1, as the kernels take it; for tests.
cdef void set_l1_bytes(ptrdiff_t count) noexcept
# Of kernels.h.
cdef bint l3_is_fast() noexcept nogil

# Signals in a long loop without the GIL. Rank 0 calls tick(&next) every few microseconds of work, with
# `double next = 0` before the loop. It costs a few nanoseconds, and every 50 ms, on Python's main thread alone, it
# takes the GIL and runs the signal handlers. Returns 0, or -1 when a handler raised: the exception is then pending on
# this thread. The caller must set its stop flag before its next barrier, so that all ranks see it after the barrier
# and leave together, finish the run, give back its scratch and then, with the GIL, call raise_pending(), which raises.
# No other Python code may run between the two.
cdef int tick(double *next) noexcept nogil
cdef int raise_pending() except -1
