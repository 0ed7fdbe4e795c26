/* A small thread pool whose hand-over and barrier cost well under a microsecond while its workers are awake.
 *
 * - Workers are made on first use and kept. They spin for a short while after a run, then sleep: an idle pool costs
 *   no CPU.
 * - A second caller never waits: while the pool is busy (also for a nested call) a task runs on its caller alone.
 * - A task runs on every rank under its caller's floating-point control register, so rc_fp_begin holds for the team.
 * - After fork() the child starts with an empty pool and builds its own on first use.
 * - No lock is held while a task runs. */
#ifndef RC_POOL_H
#define RC_POOL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#define RC_MAX_THREADS 512
#define RC_CACHE_LINE 64

typedef void (*rc_task)(void *ctx, int rank, int size);

/* Once, before all others: the number of cores that this process may use, which is also the number of threads to begin
 * with. Registers the fork handler. Returns 0, or the errno of pthread_atfork. */
int rc_pool_init(int cores);

/* The largest team of a run. Clipped to 1..RC_MAX_THREADS; holds from the next run on. */
void rc_pool_set_threads(int threads);
int rc_pool_threads(void);

/* Changes by a fork, in the child: a call that sees it change has lost its team. */
unsigned rc_pool_epoch(void);

/* Calls task(ctx, rank, size) once for each rank 0..size-1, each on a thread of its own, the caller being rank 0;
 * returns when all have finished. size = min(want, rc_pool_threads()), 1 if the pool is busy, fewer if threads cannot
 * be made: a task must take any size. Returns size. What the caller wrote before is seen by the task, and what the
 * task wrote is seen by the caller after. */
int rc_pool_run(rc_task task, void *ctx, int want);

/* The same, and before any rank starts prepare(ctx, size) is called once, on the caller's thread: the place to set up
 * barriers and shares of work, since the size is not known sooner. */
typedef void (*rc_prepare)(void *ctx, int size);
int rc_pool_run_prepared(rc_prepare prepare, rc_task task, void *ctx, int want);

/* Before a run that would be over sooner than a sleeping thread wakes up: `want`, or 1 if one of its team sleeps. Where
 * such runs follow each other within the while that threads stay awake, these are woken for the next ones. */
int rc_pool_awake(int want);

/* For tests, in which small work has to meet all threads: rc_pool_awake gives `want` whoever sleeps. */
void rc_pool_set_eager(int eager);

/* A barrier for a team or a part of one; any number of them, each with its own members, may be in use at once.
 * It lives in its owner's memory (any alignment that malloc gives), needs no destruction, and must outlive the run that
 * uses it. What any member wrote before the wait is seen by all after it. */
typedef struct {
    int size;               /* members */
    int crowded;            /* fewer cores than threads: give way instead of spinning */
    unsigned epoch;         /* forks so far at init: in a child the other members do not exist any more */
    char pad0[RC_CACHE_LINE]; /* `state` is written at each wait: nothing else may share its line */
    _Atomic unsigned state; /* arrivals in the low 16 bits, phase in the high 16 */
    char pad1[RC_CACHE_LINE];
    _Atomic int sleepers; /* read at each phase, written only by those who sleep */
    pthread_mutex_t lock;
    pthread_cond_t wake;
} rc_barrier;

void rc_barrier_init(rc_barrier *barrier, int size);
void rc_barrier_wait(rc_barrier *barrier);

/* A team whose members go through the same steps, each at its own pace: a barrier in two halves, of which the second
 * may wait for some of the others only, and later. */
typedef struct {
    _Atomic size_t steps; /* that this member has done */
    char pad[2 * RC_CACHE_LINE - sizeof(size_t)]; /* written at each step: some processors fetch lines in pairs */
} rc_pace;

/* One member's view of it; `paces` has one for each member, in memory that starts with zeros. */
typedef struct {
    rc_pace *paces;
    int rank, size, crowded;
    unsigned epoch;
    size_t steps; /* done by this member */
} rc_relay;

void rc_relay_init(rc_relay *relay, rc_pace *paces, int rank, int size);

/* Tells the others that this member has done one more step: who waits for it sees what it wrote before. */
void rc_relay_pass(void *relay);

/* Returns when all members before this one, or with `later` those after it, have done as many steps as this one. */
void rc_relay_wait(void *relay, int later);

#endif
