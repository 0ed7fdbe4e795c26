/* Plain C in single precision: any CPU. */
#ifndef RC_SIMD_GENERIC_H
#define RC_SIMD_GENERIC_H

#define SIMD_NAME "generic"
#define LANES 4
#define TILE_VECTORS 12
#define MAX_ROWS 4 /* of a tile */

typedef float real;
#define REAL_SQRT sqrtf
#define REAL_ABS fabsf
#define REAL_LOGB logbf
#define REAL_COPYSIGN copysignf
#include "simd_scalar.h"

#include <stdint.h>

static inline vf v_pow2(vf n) {
    uint32_t bits[LANES];
    memcpy(bits, n.lane, sizeof bits);
    EACH_LANE bits[l] <<= 23;
    memcpy(n.lane, bits, sizeof bits);
    return n;
}

typedef struct {
    uint32_t lane[LANES];
} vi;
static inline vi v_index(vf a) {
    vi i;
    memcpy(i.lane, a.lane, sizeof i.lane);
    EACH_LANE i.lane[l] = i.lane[l] >> 22 & 7;
    return i;
}
static inline vf v_look_up(const real *table, vi i) {
    vf r;
    EACH_LANE r.lane[l] = table[i.lane[l]];
    return r;
}

#endif
