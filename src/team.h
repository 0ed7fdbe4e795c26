/* Stopping a team of threads together, for the time loops.
 *
 * The leader (member 0) may learn at any time that the call must end. A member that saw it at once would leave the
 * others waiting at the next barrier, so the leader announces the number of a barrier that it has not reached yet, and
 * everyone leaves after that one.
 */
#ifndef RC_TEAM_H
#define RC_TEAM_H

#include <limits.h>
#include <stdatomic.h>

typedef struct {
    _Atomic int stop;   /* somebody asked the whole call to end */
    _Atomic long leave; /* the barrier after which this team leaves */
} rc_stop;

static inline void rc_stop_init(rc_stop *s) {
    atomic_init(&s->stop, 0);
    atomic_init(&s->leave, LONG_MAX);
}

static inline void rc_stop_set(rc_stop *s) { atomic_store_explicit(&s->stop, 1, memory_order_relaxed); }
static inline int rc_stop_asked(rc_stop *s) { return atomic_load_explicit(&s->stop, memory_order_relaxed); }

/* By the leader before barrier `number`; `call` is the whole call's, of which the team may be a part. */
static inline void rc_stop_announce(rc_stop *s, rc_stop *call, long number) {
    if (rc_stop_asked(call) && atomic_load_explicit(&s->leave, memory_order_relaxed) == LONG_MAX)
        atomic_store_explicit(&s->leave, number, memory_order_relaxed);
}

/* By everyone after barrier `number`. */
static inline int rc_stop_leave(rc_stop *s, long number) {
    return atomic_load_explicit(&s->leave, memory_order_relaxed) <= number;
}

#endif
