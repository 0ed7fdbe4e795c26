#define KERNELS rc_kernels_generic
#include "simd_generic.h"
#include "kernels_body.h"
