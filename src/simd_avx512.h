/* The vector vocabulary on AVX-512: 16 floats. See simd_generic.h for the meaning of each operation. */
#ifndef RC_SIMD_AVX512_H
#define RC_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_NAME "avx512"
#define LANES 16
#define TILE_VECTORS 24 /* accumulators of a GEMM tile; the other 8 of 32 registers hold its operands */
#define MAX_ROWS 8 /* of a tile */

typedef float real;
typedef __m512 vf;

static inline vf v_zero(void) { return _mm512_setzero_ps(); }
static inline vf v_set1(real x) { return _mm512_set1_ps(x); }
static inline vf v_load(const real *p) { return _mm512_loadu_ps(p); }
static inline void v_store(real *p, vf v) { _mm512_storeu_ps(p, v); }
static inline __mmask16 v_first(long n) { return (__mmask16)((1u << n) - 1u); }
static inline vf v_load_n(const real *p, long n) { return _mm512_maskz_loadu_ps(v_first(n), p); }
static inline void v_store_n(real *p, vf v, long n) { _mm512_mask_storeu_ps(p, v_first(n), v); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf v_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf v_sqrt(vf a) { return _mm512_sqrt_ps(a); }
static inline vf v_abs(vf a) { return _mm512_abs_ps(a); }
static inline vf v_neg(vf a) {
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a), _mm512_set1_epi32(INT32_MIN)));
}
static inline vf v_join(vf a, vf b) {
    return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(a), _mm256_castps_pd(_mm512_castps512_ps256(b)), 1));
}
static inline vf v_low(vf a) { return _mm512_zextps256_ps512(_mm512_castps512_ps256(a)); }
static inline vf v_high(vf a) {
    return _mm512_zextps256_ps512(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
}
static inline vf v_pow2(vf n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(n), 23)); }
static inline vf v_exponent(vf a) { return _mm512_getexp_ps(a); }
typedef __m512i vi;
static inline vi v_index(vf a) { return _mm512_srli_epi32(_mm512_castps_si512(a), 22); }
static inline vf v_look_up(const real *table, vi i) {
    return _mm512_permutexvar_ps(i, _mm512_broadcast_f32x8(_mm256_load_ps(table)));
}
static inline vf v_lt(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
static inline vf v_copysign(vf mag, vf sgn) { /* 0xCA: sign ? sgn : mag, bit by bit */
    __m512i sign = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(sgn), _mm512_castps_si512(mag), 0xCA));
}

#endif
