/* Which of the linked kernel tables an instruction set uses. A file kernels_<name>.c is announced to the compiler as
 * RC_HAVE_<NAME> by setup.py. */
#ifndef RC_DISPATCH_H
#define RC_DISPATCH_H

#if __has_include("kernels.h")
#include "kernels.h"
#else
typedef struct rc_kernels rc_kernels;
#endif

/* The float32 table for `isa` (RC_ISA_*): the best linked one that is not above it. NULL if none is linked. */
const rc_kernels *rc_pick_f32(int isa);
/* The float64 table, one for all machines. */
const rc_kernels *rc_pick_f64(void);

#endif
