/* Plain C in double precision: any CPU. Its matrix products usually go to BLAS. */
#ifndef RC_SIMD_F64_H
#define RC_SIMD_F64_H

#define SIMD_NAME "float64"
#define LANES 4
#define TILE_VECTORS 12
#define MAX_ROWS 4 /* of a tile */

typedef double real;
#define RC_REAL_IS_DOUBLE 1
#define REAL_SQRT sqrt
#define REAL_ABS fabs
#define REAL_LOGB logb
#define REAL_COPYSIGN copysign
#include "simd_scalar.h"

#endif
