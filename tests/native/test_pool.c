/* The thread pool without Python, for the sanitizers: cc -std=gnu11 -g -fsanitize=thread -Isrc tests/native/test_pool.c
 * src/pool.c src/cpu.c -pthread (`make sanitize`). Exits with 0 when all is well. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cpu.h"
#include "pool.h"

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition)) {                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

enum { MOST = 8, STEPS = 300 };

/* Plain memory on purpose: only the pool and its barriers order the accesses; ThreadSanitizer sees if they do not. */
typedef struct {
    rc_barrier *barrier;
    long cells[MOST];
    long sums[MOST];
} work;

/* Each rank adds up what all ranks wrote in the step before: wrong as soon as a barrier lets one pass early. */
static void march(void *ctx, int rank, int size)
{
    work *w = ctx;
    for (int step = 1; step <= STEPS; step++) {
        w->cells[rank] = step;
        rc_barrier_wait(w->barrier);
        for (int i = 0; i < size; i++)
            w->sums[rank] += w->cells[i];
        rc_barrier_wait(w->barrier);
    }
}

static void make_barrier(void *ctx, int size)
{
    rc_barrier_init(((work *)ctx)->barrier, size);
}

static int march_with(int size)
{
    rc_barrier barrier;
    work w = {.barrier = &barrier};
    int used = rc_pool_run_prepared(make_barrier, march, &w, size);
    for (int i = 0; i < used; i++)
        CHECK(w.sums[i] == (long)used * STEPS * (STEPS + 1) / 2);
    return used;
}

static void mark(void *ctx, int rank, int size)
{
    long *marks = ctx;
    CHECK(rank >= 0 && rank < size);
    marks[rank]++;
}

static void test_every_rank_runs_once(void)
{
    for (int round = 0; round < 500; round++) {
        long marks[MOST] = {0};
        int want = 1 + round % MOST;
        int used = rc_pool_run(mark, marks, want);
        CHECK(used == (want < rc_pool_threads() ? want : rc_pool_threads()));
        for (int i = 0; i < MOST; i++)
            CHECK(marks[i] == (i < used));
    }
}

static void test_barriers(void)
{
    for (int size = 1; size <= MOST; size++) {
        rc_pool_set_threads(size);
        CHECK(march_with(size) == size);
    }
}

/* Each rank reads what those before it and those after it wrote in the step before, between the two waits for them. */
typedef struct {
    rc_pace paces[MOST];
    long cells[2][MOST]; /* by turns: a rank may be a step ahead of one that still reads */
    long sums[MOST];
} relayed;

static void pass_on(void *ctx, int rank, int size)
{
    relayed *w = ctx;
    rc_relay relay;
    rc_relay_init(&relay, w->paces, rank, size);
    for (int step = 1; step <= STEPS; step++) {
        const long *before = w->cells[(step - 1) % 2];
        rc_relay_wait(&relay, 0);
        for (int i = 0; i <= rank; i++)
            w->sums[rank] += before[i];
        rc_relay_wait(&relay, 1);
        for (int i = rank + 1; i < size; i++)
            w->sums[rank] += before[i];
        w->cells[step % 2][rank] = step;
        rc_relay_pass(&relay);
    }
}

static void test_relays(void)
{
    for (int size = 1; size <= MOST; size++) {
        relayed w = {0};
        rc_pool_set_threads(size);
        CHECK(rc_pool_run(pass_on, &w, size) == size);
        for (int i = 0; i < size; i++)
            CHECK(w.sums[i] == (long)size * STEPS * (STEPS - 1) / 2);
    }
}

/* Two halves of one team, each with a barrier of its own. */
static void halves(void *ctx, int rank, int size)
{
    work *w = ctx;
    march(&w[rank & 1], rank / 2, size / 2);
}

static void test_parts_of_a_team(void)
{
    rc_barrier barriers[2];
    work w[2] = {{.barrier = &barriers[0]}, {.barrier = &barriers[1]}};
    rc_pool_set_threads(4);
    rc_barrier_init(&barriers[0], 2);
    rc_barrier_init(&barriers[1], 2);
    CHECK(rc_pool_run(halves, w, 4) == 4);
    for (int i = 0; i < 4; i++)
        CHECK(w[i & 1].sums[i / 2] == (long)STEPS * (STEPS + 1));
}

static void nested(void *ctx, int rank, int size)
{
    long *marks = ctx;
    (void)size;
    CHECK(rc_pool_run(mark, &marks[rank], MOST) == 1);
}

static void test_nested_run_is_alone(void)
{
    long marks[MOST] = {0};
    rc_pool_set_threads(3);
    CHECK(rc_pool_run(nested, marks, 3) == 3);
    CHECK(marks[0] == 1 && marks[1] == 1 && marks[2] == 1 && marks[3] == 0);
}

static void *call_often(void *unused)
{
    for (int i = 0; i < 100; i++) {
        int used = march_with(2);
        CHECK(used == 2 || used == 1);
    }
    return unused;
}

static void test_many_callers(void)
{
    pthread_t threads[4];
    rc_pool_set_threads(2);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], 0, call_often, 0) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], 0) == 0);
}

static void check_flush(void *ctx, int rank, int size)
{
    unsigned *seen = ctx;
    (void)size;
    seen[rank] = rc_fp_get();
}

static void test_workers_take_the_callers_fp_control(void)
{
    unsigned seen[2] = {0}, before = rc_fp_begin();
    CHECK(rc_pool_run(check_flush, seen, 2) == 2);
    CHECK(seen[0] == seen[1] && seen[0] == rc_fp_get());
    CHECK(rc_fp_standard() == seen[0]);
    rc_fp_end(before);
    CHECK(rc_fp_get() == before);
    CHECK(rc_pool_run(check_flush, seen, 2) == 2);
    CHECK((seen[1] & 0xffc0) == (before & 0xffc0)); /* without the exception flags */
}

/* A sleeping team is woken by brief runs that follow each other closely, by a run, and by several callers at once. */
static void *be_brief(void *unused)
{
    (void)unused;
    for (int i = 0; i < 200; i++) {
        long marks[MOST] = {0};
        CHECK(rc_pool_run(mark, marks, rc_pool_awake(2)) <= 2);
        CHECK(marks[0] == 1);
        if (i % 20 == 0)
            usleep(1000);
    }
    return 0;
}

static void test_brief_runs(void)
{
    pthread_t others[3];
    rc_pool_set_threads(2);
    march_with(2);
    CHECK(rc_pool_awake(1) == 1);
    for (int tries = 0; rc_pool_awake(2) == 2; tries++) {
        CHECK(tries < 1000);
        usleep(5000);
    }
    CHECK(march_with(2) == 2);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&others[i], 0, be_brief, 0) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(others[i], 0) == 0);
}

/* Runs the child's part and expects it to end well within the time. */
static void in_child(void (*part)(void))
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        part();
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void march_in_threes(void)
{
    rc_pool_set_threads(3);
    for (int i = 0; i < 5; i++)
        CHECK(march_with(3) == 3);
}

#if !defined(__SANITIZE_THREAD__) /* it cannot start threads in the child of a threaded process */

static void *march_until_told(void *ctx)
{
    _Atomic int *stop = ctx;
    while (!atomic_load(stop))
        march_with(3);
    return 0;
}

static void test_fork_while_another_thread_is_inside(void)
{
    _Atomic int stop = 0;
    pthread_t other;
    rc_pool_set_threads(3);
    CHECK(pthread_create(&other, 0, march_until_told, &stop) == 0);
    for (int i = 0; i < 20; i++) {
        usleep(500);
        in_child(march_in_threes);
    }
    atomic_store(&stop, 1);
    CHECK(pthread_join(other, 0) == 0);
    march_in_threes();
}

/* A fork in the middle of a task (a signal handler may do that): the child has lost its team, and must get out. */
static void fork_inside(void *ctx, int rank, int size)
{
    work *w = ctx;
    rc_barrier_wait(w->barrier);
    if (rank == 0) {
        pid_t child = fork();
        int status = 0;
        CHECK(child >= 0);
        if (child == 0)
            alarm(60);
        else
            CHECK(waitpid(child, &status, 0) == child);
        w->cells[0] = status;
        w->cells[1] = child;
    }
    rc_barrier_wait(w->barrier);
    (void)size;
}

static void test_fork_inside_a_task(void)
{
    rc_barrier barrier;
    work w = {.barrier = &barrier};
    rc_pool_set_threads(3);
    rc_barrier_init(&barrier, 3);
    CHECK(rc_pool_run(fork_inside, &w, 3) == 3);
    if (w.cells[1] == 0) {
        march_in_threes();
        _exit(0);
    }
    CHECK(w.cells[0] == 0);
}

#endif

int main(void)
{
    alarm(300);
    CHECK(rc_pool_init(2) == 0);
    CHECK(rc_pool_threads() == 2);
    rc_pool_set_threads(MOST);
    in_child(march_in_threes); /* before first use */
    test_every_rank_runs_once();
    test_barriers();
    test_relays();
    test_parts_of_a_team();
    test_nested_run_is_alone();
    test_many_callers();
    test_workers_take_the_callers_fp_control();
    test_brief_runs();
#if !defined(__SANITIZE_THREAD__)
    in_child(march_in_threes);
    test_fork_while_another_thread_is_inside();
    test_fork_inside_a_task();
#endif
    for (int level = 1; level <= 3; level++)
        CHECK(rc_cache_bytes(level) >= 4096);
    puts("pool: ok");
    return 0;
}
