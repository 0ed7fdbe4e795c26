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

#endif
