#if !defined(__AVX2__) || !defined(__FMA__)
#error "kernels_avx2.c needs -mavx2 -mfma"
#endif
#define KERNELS rc_kernels_avx2
#include "simd_avx2.h"
#include "kernels_body.h"
