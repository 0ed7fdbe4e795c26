/* Clocks: one cheap enough to read in a loop of microsecond steps, and one that tells microseconds. */
#ifndef RC_TICKS_H
#define RC_TICKS_H

#include <time.h>

/* Monotonic seconds, as coarse as a few milliseconds where that is cheaper. */
static inline double rc_seconds(void)
{
    struct timespec now;
#ifdef CLOCK_MONOTONIC_COARSE
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline double rc_precise_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
