/* Which of the linked kernel tables an instruction set uses. setup.py announces a linked kernels_<name>.c as
 * RC_HAVE_<NAME>. */
#ifndef RC_DISPATCH_H
#define RC_DISPATCH_H

#include "kernels.h"

/* The float32 table for `isa` (RC_ISA_*): the best linked one that is not above it. */
const rc_kernels *rc_pick_f32(int isa);
/* The float64 table, one for all machines. */
const rc_kernels *rc_pick_f64(void);

#endif
