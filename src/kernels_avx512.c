#if !defined(__AVX512F__) || !defined(__AVX512DQ__) || !defined(__FMA__)
#error "kernels_avx512.c needs -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"
#endif
#define KERNELS rc_kernels_avx512
#include "simd_avx512.h"
#include "kernels_body.h"
