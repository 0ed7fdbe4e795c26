/* How many threads of a call are still at work: for one that has nothing left to do but to look for signals. */
#ifndef RC_COUNT_H
#define RC_COUNT_H

#include <stdatomic.h>
#include <time.h>

typedef struct {
    _Atomic int left;
} rc_count;

static inline void rc_count_init(rc_count *c, int n) { atomic_init(&c->left, n); }
static inline void rc_count_down(rc_count *c) { atomic_fetch_sub_explicit(&c->left, 1, memory_order_release); }
static inline int rc_count_left(rc_count *c) { return atomic_load_explicit(&c->left, memory_order_acquire); }

/* Sleep for less than a second. */
static inline void rc_nap(double seconds)
{
    struct timespec time = {0, (long)(seconds * 1e9)};
    nanosleep(&time, NULL);
}

#endif
