#define KERNELS rc_kernels_f64
#include "simd_f64.h"
#include "kernels_body.h"
