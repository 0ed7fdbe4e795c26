#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* threads' affinity */
#endif
#include "pool.h"

#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <time.h>

#include "cpu.h"
#include "ticks.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("isb") /* `yield` does nothing on most cores */
#else
#define PAUSE() ((void)0)
#endif

enum { STACK_BYTES = 512 << 10 };

/* All that a worker needs for a run lies in the one line that tells it to run. */
typedef struct {
    alignas(RC_CACHE_LINE) _Atomic unsigned ticket; /* number of the run to do; the caller writes it last */
    int rank, size, crowded;
    unsigned fp;
    rc_task task;
    void *ctx;
    alignas(RC_CACHE_LINE) _Atomic unsigned done; /* number of the last run finished; the worker writes it */
    alignas(RC_CACHE_LINE) _Atomic int asleep;
    pthread_mutex_t lock; /* of all that follows */
    pthread_cond_t wake;
    int roused; /* told to wake up though there is no run yet */
    int displaced; /* from its waker's core */
    pthread_t thread;
#ifdef __linux__
    cpu_set_t allowed; /* the cores that it goes back to */
#endif
} worker;

static worker workers[RC_MAX_THREADS - 1];

static struct {
    alignas(RC_CACHE_LINE) _Atomic int busy; /* who sets it owns `created` and the workers' first lines */
    int created;
    alignas(RC_CACHE_LINE) _Atomic int threads;
    _Atomic int cores;
    _Atomic unsigned epoch; /* forks between the first process and this one */
    _Atomic double alone_at; /* when the last brief run found its team asleep */
    _Atomic int eager;       /* brief runs wake it all the same */
    alignas(RC_CACHE_LINE) _Atomic int caller_asleep;
    pthread_mutex_t lock;
    pthread_cond_t finished;
} pool = {.threads = 1, .cores = 1, .lock = PTHREAD_MUTEX_INITIALIZER, .finished = PTHREAD_COND_INITIALIZER};

static void reset_lock(pthread_mutex_t *lock, pthread_cond_t *condition)
{
    static const pthread_mutex_t fresh_lock = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t fresh_condition = PTHREAD_COND_INITIALIZER;
    *lock = fresh_lock;
    *condition = fresh_condition;
}

static void forget_sleep(worker *w)
{
    atomic_store(&w->asleep, 0);
    w->roused = w->displaced = 0;
    reset_lock(&w->lock, &w->wake);
}

/* ---- waiting: first awake for a bounded while, then asleep ---- */

/* With a core for each thread we pause, as long as Python takes between two calls of a training loop: to be woken costs
 * more than a small layer's whole step. Now and then we give way, in case the one waited for sits on our own core. With
 * fewer cores we give way each time, since spinning would only keep the others from running. */
enum { TRIES_BETWEEN_LOOKS = 256, YIELDS_WHEN_CROWDED = 20 };
#define SPIN_SECONDS 200e-6

static int is_crowded(int threads)
{
    return threads > atomic_load_explicit(&pool.cores, memory_order_relaxed);
}

typedef struct {
    int tries;
    double until;
} patience;

/* A try of a wait has failed: 1 after a moment, or 0 when it is time to sleep. */
static inline int try_again(patience *p, int crowded)
{
    p->tries++;
    if (crowded) {
        sched_yield();
        return p->tries < YIELDS_WHEN_CROWDED;
    }
    PAUSE();
    if (p->tries % TRIES_BETWEEN_LOOKS)
        return 1;
    sched_yield();
    const double now = rc_precise_seconds();
    if (p->tries == TRIES_BETWEEN_LOOKS)
        p->until = now + SPIN_SECONDS;
    return now < p->until;
}

/* ---- fork: only the forking thread lives on in the child; what the others held or were doing is forgotten ---- */

static void after_fork_in_child(void)
{
    atomic_fetch_add(&pool.epoch, 1);
    for (int i = 0; i < pool.created; i++)
        forget_sleep(&workers[i]);
    pool.created = 0;
    atomic_store(&pool.caller_asleep, 0);
    reset_lock(&pool.lock, &pool.finished);
    atomic_store(&pool.busy, 0);
}

int rc_pool_init(int cores)
{
    static _Atomic int registered;
    atomic_store(&pool.cores, cores < 1 ? 1 : cores);
    rc_pool_set_threads(cores);
    return atomic_exchange(&registered, 1) ? 0 : pthread_atfork(0, 0, after_fork_in_child);
}

void rc_pool_set_threads(int threads)
{
    atomic_store(&pool.threads, threads < 1 ? 1 : threads > RC_MAX_THREADS ? RC_MAX_THREADS : threads);
}

int rc_pool_threads(void)
{
    return atomic_load_explicit(&pool.threads, memory_order_relaxed);
}

unsigned rc_pool_epoch(void)
{
    return atomic_load_explicit(&pool.epoch, memory_order_relaxed);
}

/* ---- workers ---- */

/* Linux often starts or wakes a thread on the core of the one that does so, even if another core is idle, and takes
 * some 5 ms to move it, in which the two take turns. So a worker is kept off this core until it has begun to run. */
#ifdef __linux__
static void displace(worker *w)
{
    const int here = sched_getcpu();
    if (here < 0 || here >= CPU_SETSIZE || pthread_getaffinity_np(w->thread, sizeof w->allowed, &w->allowed))
        return;
    cpu_set_t others = w->allowed;
    CPU_CLR(here, &others);
    w->displaced = CPU_COUNT(&others) > 0 && !pthread_setaffinity_np(w->thread, sizeof others, &others);
}

static void replace(worker *w)
{
    if (w->displaced)
        pthread_setaffinity_np(w->thread, sizeof w->allowed, &w->allowed);
    w->displaced = 0;
}
#else
static void displace(worker *w)
{
    (void)w;
}

static void replace(worker *w)
{
    (void)w;
}
#endif

/* With `run` 0 for a run that may come soon. */
static void wake_up(worker *w, int crowded, int run)
{
    pthread_mutex_lock(&w->lock);
    if (!crowded && atomic_load(&w->asleep) && !w->displaced)
        displace(w);
    w->roused = !run;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

/* Sleep and wake follow one pattern everywhere: the sleeper announces itself, then looks at the word again; the waker
 * writes the word, then looks for the announcement. All four are sequentially consistent, so that at least one of the
 * two sees the other. */
static void sleep_until_told(worker *w, unsigned seen)
{
    pthread_mutex_lock(&w->lock);
    atomic_store(&w->asleep, 1);
    while (atomic_load(&w->ticket) == seen && !w->roused)
        pthread_cond_wait(&w->wake, &w->lock);
    w->roused = 0;
    replace(w);
    atomic_store(&w->asleep, 0);
    pthread_mutex_unlock(&w->lock);
}

static unsigned wait_for_ticket(worker *w, unsigned seen, int crowded)
{
    for (;;) {
        patience p = {0, 0};
        do {
            unsigned ticket = atomic_load_explicit(&w->ticket, memory_order_acquire);
            if (ticket != seen)
                return ticket;
        } while (try_again(&p, crowded));
        sleep_until_told(w, seen);
    }
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    unsigned ticket = 0;
    int crowded = 1;
    pthread_mutex_lock(&w->lock);
    replace(w);
    pthread_mutex_unlock(&w->lock);
    for (;;) {
        ticket = wait_for_ticket(w, ticket, crowded);
        crowded = w->crowded; /* read before `done` is written: after that the line is the next caller's */
        rc_fp_set(w->fp);
        w->task(w->ctx, w->rank, w->size);
        atomic_store(&w->done, ticket);
        if (atomic_load(&pool.caller_asleep)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.finished);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return 0;
}

/* Signals are for the program's own threads: all are blocked in workers. */
static int start_worker(worker *w, int crowded)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    if (pthread_attr_init(&attributes))
        return -1;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&w->lock);
    int failed = pthread_create(&w->thread, &attributes, worker_main, w);
    if (!failed && !crowded)
        displace(w);
    pthread_mutex_unlock(&w->lock);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&attributes);
    return failed ? -1 : 0;
}

/* Grows the pool to `size` - 1 workers; returns the size of the team that there is. */
static int gather(int size)
{
    const int crowded = is_crowded(size);
    while (pool.created < size - 1) {
        worker *w = &workers[pool.created];
        w->rank = pool.created + 1;
        atomic_store(&w->ticket, 0);
        atomic_store(&w->done, 0);
        forget_sleep(w);
        if (start_worker(w, crowded))
            return pool.created + 1;
        pool.created++;
    }
    return size;
}

/* ---- a run ---- */

static void hand_over(worker *w, rc_task task, void *ctx, int size, int crowded, unsigned fp)
{
    w->task = task;
    w->ctx = ctx;
    w->size = size;
    w->crowded = crowded;
    w->fp = fp;
    atomic_fetch_add(&w->ticket, 1);
    if (atomic_load(&w->asleep))
        wake_up(w, crowded, 1);
}

static int has_finished(worker *w)
{
    unsigned ticket = atomic_load_explicit(&w->ticket, memory_order_relaxed); /* our own: we hold the pool */
    return atomic_load(&w->done) == ticket;
}

static void join_worker(worker *w, int crowded)
{
    patience p = {0, 0};
    do {
        if (has_finished(w))
            return;
    } while (try_again(&p, crowded));
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.caller_asleep, 1);
    while (!has_finished(w))
        pthread_cond_wait(&pool.finished, &pool.lock);
    atomic_store(&pool.caller_asleep, 0);
    pthread_mutex_unlock(&pool.lock);
}

static void prepare_nothing(void *ctx, int size)
{
    (void)ctx;
    (void)size;
}

int rc_pool_run(rc_task task, void *ctx, int want)
{
    return rc_pool_run_prepared(prepare_nothing, task, ctx, want);
}

int rc_pool_run_prepared(rc_prepare prepare, rc_task task, void *ctx, int want)
{
    int size = rc_pool_threads();
    if (want < size)
        size = want;
    if (size < 2 || atomic_exchange(&pool.busy, 1)) {
        prepare(ctx, 1);
        task(ctx, 0, 1);
        return 1;
    }
    unsigned epoch = rc_pool_epoch();
    size = gather(size);
    prepare(ctx, size);
    int crowded = is_crowded(size);
    unsigned fp = rc_fp_get();
    for (int i = 0; i < size - 1; i++)
        hand_over(&workers[i], task, ctx, size, crowded, fp);
    task(ctx, 0, size);
    /* If the task forked, this is the child: it has no workers to join, and its pool was released by the handler. */
    if (rc_pool_epoch() != epoch)
        return size;
    for (int i = 0; i < size - 1; i++)
        join_worker(&workers[i], crowded);
    atomic_store(&pool.busy, 0);
    return size;
}

/* ---- brief runs ---- */

void rc_pool_set_eager(int eager)
{
    atomic_store(&pool.eager, eager);
}

int rc_pool_awake(int want)
{
    int size = rc_pool_threads(), asleep = 0;
    if (want < size)
        size = want;
    const int crowded = is_crowded(size);
    for (int i = 0; i < size - 1; i++)
        asleep |= atomic_load(&workers[i].asleep);
    if (!asleep || atomic_load_explicit(&pool.eager, memory_order_relaxed))
        return want;
    const double now = rc_precise_seconds(), before = atomic_exchange(&pool.alone_at, now);
    for (int i = 0; i < size - 1 && now - before < SPIN_SECONDS && !crowded; i++) {
        if (atomic_load(&workers[i].asleep))
            wake_up(&workers[i], crowded, 0);
    }
    return 1;
}

/* ---- barrier ---- */

/* A part of a team shares the cores with the rest of it. */
static int is_crowded_team(int size)
{
    const int threads = rc_pool_threads();
    return is_crowded(size > threads ? size : threads);
}

enum { ONE_PHASE = 1 << 16, ARRIVALS = ONE_PHASE - 1 };

void rc_barrier_init(rc_barrier *b, int size)
{
    b->size = size;
    b->crowded = is_crowded_team(size);
    b->epoch = rc_pool_epoch();
    atomic_init(&b->state, 0);
    atomic_init(&b->sleepers, 0);
    reset_lock(&b->lock, &b->wake);
}

static int same_phase(unsigned a, unsigned b)
{
    return (a ^ b) < ONE_PHASE;
}

static void barrier_sleep(rc_barrier *b, unsigned before)
{
    if (rc_pool_epoch() != b->epoch)
        return;
    pthread_mutex_lock(&b->lock);
    atomic_fetch_add(&b->sleepers, 1);
    while (same_phase(atomic_load(&b->state), before))
        pthread_cond_wait(&b->wake, &b->lock);
    atomic_fetch_sub(&b->sleepers, 1);
    pthread_mutex_unlock(&b->lock);
}

void rc_barrier_wait(rc_barrier *b)
{
    if (b->size < 2)
        return;
    unsigned before = atomic_fetch_add(&b->state, 1);
    if ((int)(before & ARRIVALS) + 1 == b->size) { /* the last one opens the next phase, with no arrivals in it */
        atomic_store(&b->state, (before | ARRIVALS) + 1);
        if (atomic_load(&b->sleepers)) {
            pthread_mutex_lock(&b->lock);
            pthread_cond_broadcast(&b->wake);
            pthread_mutex_unlock(&b->lock);
        }
        return;
    }
    patience p = {0, 0};
    do {
        if (!same_phase(atomic_load_explicit(&b->state, memory_order_acquire), before))
            return;
    } while (try_again(&p, b->crowded));
    barrier_sleep(b, before);
}

/* ---- relay ---- */

enum { TRIES_BEFORE_A_NAP = 1000, NAP_NANOSECONDS = 50000 };

void rc_relay_init(rc_relay *r, rc_pace *paces, int rank, int size)
{
    r->paces = paces;
    r->rank = rank;
    r->size = size;
    r->crowded = is_crowded_team(size);
    r->epoch = rc_pool_epoch();
    r->steps = 0;
}

void rc_relay_pass(void *relay)
{
    rc_relay *r = relay;
    atomic_store_explicit(&r->paces[r->rank].steps, ++r->steps, memory_order_release);
}

/* To be told to wake up, a sleeper would have to announce itself, and all to look for it at each step. So it looks
 * again by itself, after naps: who waits here for long waits for a thread that has lost its core. */
static void wait_for_pace(const rc_relay *r, rc_pace *other)
{
    static const struct timespec nap = {0, NAP_NANOSECONDS};
    patience p = {0, 0};
    while (atomic_load_explicit(&other->steps, memory_order_acquire) < r->steps) {
        if (try_again(&p, r->crowded) || p.tries < TRIES_BEFORE_A_NAP)
            continue;
        if (rc_pool_epoch() != r->epoch)
            return;
        nanosleep(&nap, 0);
    }
}

void rc_relay_wait(void *relay, int later)
{
    rc_relay *r = relay;
    const int begin = later ? r->rank + 1 : 0, end = later ? r->size : r->rank;
    for (int i = begin; i < end; i++)
        wait_for_pace(r, &r->paces[i]);
}
