/* The vector vocabulary on AVX2 with FMA: 8 floats. See simd_generic.h for the meaning of each operation. */
#ifndef RC_SIMD_AVX2_H
#define RC_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_NAME "avx2"
#define LANES 8
#define TILE_VECTORS 12 /* accumulators of a GEMM tile; the other 4 of 16 registers hold its operands */
#define MAX_ROWS 8 /* of a tile */

typedef float real;
typedef __m256 vf;

static inline vf v_zero(void) { return _mm256_setzero_ps(); }
static inline vf v_set1(real x) { return _mm256_set1_ps(x); }
static inline vf v_load(const real *p) { return _mm256_loadu_ps(p); }
static inline void v_store(real *p, vf v) { _mm256_storeu_ps(p, v); }
static inline __m256i v_first(long n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vf v_load_n(const real *p, long n) { return _mm256_maskload_ps(p, v_first(n)); }
static inline void v_store_n(real *p, vf v, long n) { _mm256_maskstore_ps(p, v_first(n), v); }
static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf v_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf v_sqrt(vf a) { return _mm256_sqrt_ps(a); }
static inline vf v_neg(vf a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
static inline vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf v_join(vf a, vf b) { return _mm256_insertf128_ps(a, _mm256_castps256_ps128(b), 1); }
static inline vf v_low(vf a) { return _mm256_zextps128_ps256(_mm256_castps256_ps128(a)); }
static inline vf v_high(vf a) { return _mm256_zextps128_ps256(_mm256_extractf128_ps(a, 1)); }
static inline vf v_pow2(vf n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n), 23)); }
static inline vf v_exponent(vf a) {
    __m256i e = _mm256_srli_epi32(_mm256_castps_si256(v_abs(a)), 23);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(127)));
}
typedef __m256i vi;
static inline vi v_index(vf a) { return _mm256_srli_epi32(_mm256_castps_si256(a), 22); }
static inline vf v_look_up(const real *table, vi i) { return _mm256_permutevar8x32_ps(_mm256_load_ps(table), i); }
static inline vf v_lt(vf a, vf b, vf x, vf y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
static inline vf v_copysign(vf mag, vf sgn) {
    vf sign = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(sign, mag), _mm256_and_ps(sign, sgn));
}

#endif
