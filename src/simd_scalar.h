/* The vector vocabulary spelt out in plain C, for any CPU and either precision; the compiler vectorises it.
 * Included by simd_generic.h (float) and simd_f64.h (double), which define `real`, LANES and the maths names.
 *
 *   v_load_n(p, n) / v_store_n(p, v, n)   the first n lanes: the rest read as 0 / stay untouched (0 <= n <= LANES)
 *   v_fma(a, b, c) / v_fnma(a, b, c)      a*b + c / c - a*b   (one rounding where the hardware has it)
 *   v_max(a, b) / v_min(a, b)             b where the two are unordered, so NaN passes when it stands second
 *   v_pow2(n + EXPONENT_ZERO)             2^n for an integral n within the exponent's range (float only)
 *   v_exponent(a)                         floor(log2 |a|) for a normal a
 *   v_index(a), v_look_up(table, i)       of a table of 8 the entry that the lowest two bits of a's exponent and the
 *                                         upper one of its mantissa say; on 32 bytes' boundary (float only)
 *   v_lt(a, b, x, y)                      a < b ? x : y
 *   v_copysign(mag, sgn)                  |mag| with the sign of sgn
 *   v_join(a, b)                          the lower half of a, then that of b
 *   v_low(a) / v_high(a)                  that half of a, then zeros
 */
#include <math.h>
#include <string.h>

typedef struct {
    real lane[LANES];
} vf;

#define EACH_LANE for (int l = 0; l < LANES; l++)
#define LANEWISE1(name, expr) \
    static inline vf name(vf a) { vf r; EACH_LANE { r.lane[l] = (expr); } return r; }
#define LANEWISE2(name, expr) \
    static inline vf name(vf a, vf b) { vf r; EACH_LANE { r.lane[l] = (expr); } return r; }
#define LANEWISE3(name, expr) \
    static inline vf name(vf a, vf b, vf c) { vf r; EACH_LANE { r.lane[l] = (expr); } return r; }

static inline vf v_set1(real x) { vf r; EACH_LANE { r.lane[l] = x; } return r; }
static inline vf v_zero(void) { return v_set1(0); }
static inline vf v_load(const real *p) { vf r; memcpy(r.lane, p, sizeof r.lane); return r; }
static inline void v_store(real *p, vf v) { memcpy(p, v.lane, sizeof v.lane); }
static inline vf v_load_n(const real *p, long n) {
    vf r = v_zero();
    for (long l = 0; l < n; l++) r.lane[l] = p[l];
    return r;
}
static inline void v_store_n(real *p, vf v, long n) {
    for (long l = 0; l < n; l++) p[l] = v.lane[l];
}
LANEWISE2(v_add, a.lane[l] + b.lane[l])
LANEWISE2(v_sub, a.lane[l] - b.lane[l])
LANEWISE2(v_mul, a.lane[l] * b.lane[l])
LANEWISE2(v_div, a.lane[l] / b.lane[l])
LANEWISE3(v_fma, a.lane[l] * b.lane[l] + c.lane[l])
LANEWISE3(v_fnma, c.lane[l] - a.lane[l] * b.lane[l])
LANEWISE2(v_max, a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l])
LANEWISE2(v_min, a.lane[l] < b.lane[l] ? a.lane[l] : b.lane[l])
LANEWISE1(v_sqrt, REAL_SQRT(a.lane[l]))
LANEWISE1(v_abs, REAL_ABS(a.lane[l]))
LANEWISE1(v_neg, -a.lane[l])
LANEWISE1(v_exponent, REAL_LOGB(a.lane[l]))
LANEWISE2(v_copysign, REAL_COPYSIGN(a.lane[l], b.lane[l]))
LANEWISE2(v_join, l < LANES / 2 ? a.lane[l] : b.lane[l - LANES / 2])
LANEWISE1(v_low, l < LANES / 2 ? a.lane[l] : 0)
LANEWISE1(v_high, l < LANES / 2 ? a.lane[l + LANES / 2] : 0)
static inline vf v_lt(vf a, vf b, vf x, vf y) {
    vf r;
    EACH_LANE { r.lane[l] = a.lane[l] < b.lane[l] ? x.lane[l] : y.lane[l]; }
    return r;
}
