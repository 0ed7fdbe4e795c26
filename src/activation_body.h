/* exp, log, sigmoid and tanh of a vector, by one formula on every instruction set (so: the same bits), within 2 ULP
 * wherever argument and result are normal. In double precision they are the C library's, lane by lane. */

#include <float.h>
#include <math.h>

/* sigmoid and tanh come for several vectors side by side, stage by stage: one is a chain of some 20 operations that
 * wait for each other, and the processor looks ahead too short a way to find the next one's by itself. */
#define SIDE_BY_SIDE (TILE_VECTORS / 4) /* as many as there are registers for */
#define MOST_TANHS (SIDE_BY_SIDE > 4 ? SIDE_BY_SIDE : 4) /* a tanh takes less of them; 4: a panel of an RNN */
#define EACH(n) UNROLL for (int i = 0; i < (n); i++)

#ifdef RC_REAL_IS_DOUBLE

LANEWISE1(v_exp, exp(a.lane[l]))
LANEWISE1(v_exp_below, exp(a.lane[l]))
LANEWISE1(v_log, log(a.lane[l]))
LANEWISE1(tanh_lane, tanh(a.lane[l]))
LANEWISE1(sigmoid_lane, 1.0 / (1.0 + exp(-a.lane[l])))
INLINE void v_tanhs(const int n, vf *x) { EACH(n) x[i] = tanh_lane(x[i]); }
INLINE void v_sigmoids(const int n, vf *x) { EACH(n) x[i] = sigmoid_lane(x[i]); }

#else

/* x = n ln2 + r with |r| <= ln2/2, ln2 split in two so that n * LN2_HIGH is exact. */
#define LOG2_E 1.44269504088896341f
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
/* 1.5 2^23 + 127: added to x it leaves the integer nearest to x in the low bits, and there as the exponent of 2^x. */
#define EXPONENT_ZERO 12583039.0f

/* x[i] = n ln2 + log(1 + p), n an integer and |p| < 0.42: p takes the place of x, and scale[i] = n + EXPONENT_ZERO. For
 * |x| < 90. The tail (e^r - 1 - r) / r^2 on |r| <= ln2/2 is a minimax polynomial: 2^-28 of e^r. */
INLINE void exp_parts(const int n, vf *x, vf *scale) {
    static const float tail[] = {8.3687451609e-3f, 4.1668390796e-2f, 1.6666520398e-1f, 4.9999993432e-1f};
    vf p[SIDE_BY_SIDE];
    EACH(n) scale[i] = v_fma(x[i], v_set1(LOG2_E), v_set1(EXPONENT_ZERO));
    EACH(n) p[i] = v_sub(scale[i], v_set1(EXPONENT_ZERO));
    EACH(n) x[i] = v_fnma(p[i], v_set1(LN2_HIGH), x[i]);
    EACH(n) x[i] = v_fnma(p[i], v_set1(LN2_LOW), x[i]);
    EACH(n) p[i] = v_set1(1.3814539571e-3f);
    UNROLL for (int d = 0; d < 4; d++) EACH(n) p[i] = v_fma(p[i], x[i], v_set1(tail[d]));
    EACH(n) x[i] = v_fma(p[i], v_mul(x[i], x[i]), x[i]);
}

/* 2^n of an integral n. */
INLINE vf pow2(vf n) { return v_pow2(v_add(n, v_set1(EXPONENT_ZERO))); }
/* The integer nearest to half of an integral n, of at most 2^20. */
INLINE vf half_of(vf n) {
    return v_sub(v_fma(n, v_set1(0.5f), v_set1(EXPONENT_ZERO)), v_set1(EXPONENT_ZERO));
}

/* e^x; 0 below -87.3 (there are no denormals here) and inf above 88.7. */
static inline vf v_exp(vf x) {
    vf scale, p = v_min(v_set1(88.8f), v_max(v_set1(-87.4f), x));
    exp_parts(1, &p, &scale);
    /* 2^n in two factors, since n reaches 128. */
    vf n = v_sub(scale, v_set1(EXPONENT_ZERO)), half = half_of(n);
    vf e = v_mul(v_mul(v_add(p, v_set1(1.0f)), pow2(half)), pow2(v_sub(n, half)));
    return v_lt(x, v_set1(-87.33654f), v_zero(), e);
}

/* 1 / (1 + e^-x); the sum is rounded about once, since what 2^n + 1 loses is added to the smaller term. */
INLINE void v_sigmoids(const int n, vf *x) {
    const vf one = v_set1(1.0f);
    vf scale[SIDE_BY_SIDE], sum[SIDE_BY_SIDE];
    EACH(n) x[i] = v_min(v_set1(88.0f), v_max(v_set1(-40.0f), v_neg(x[i])));
    exp_parts(n, x, scale);
    EACH(n) scale[i] = v_pow2(scale[i]);
    EACH(n) sum[i] = v_add(scale[i], one);
    EACH(n) x[i] = v_fma(scale[i], x[i], v_add(v_sub(scale[i], sum[i]), one));
    EACH(n) x[i] = v_div(one, v_add(x[i], sum[i]));
}

/* The intervals of a = |x| by v_index(a + 3/4), halves of octaves: a number near the middle, then the coefficients of
 * tanh a in powers of its distance, in ascending order. From tools/tanh_table.py. */
#define TANH_SHIFT 0.75f
#define TANH_END 9.25f /* from here on it is 1 */
#define TANH_DEGREE 7
static const float tanh_table[TANH_DEGREE + 2][8] __attribute__((aligned(32))) = {
    {1.749765e+00f, 2.7503352e+00f, 4.2505774e+00f, 6.250181e+00f, 9.251907e+00f, 0.0e+00f, 4.999708e-01f,
     1.0001992e+00f},
    {9.413488e-01f, 9.9186516e-01f, 9.995936e-01f, 9.9999255e-01f, 1.0e+00f, 0.0e+00f, 4.620942e-01f, 7.616778e-01f},
    {1.1386251e-01f, 1.620351e-02f, 8.1258354e-04f, 1.4900692e-05f, 3.653416e-08f, 1.0e+00f, 7.86469e-01f,
     4.1984692e-01f},
    {-1.0718178e-01f, -1.6071698e-02f, -8.12768e-04f, -1.4910677e-05f, -7.56387e-08f, -3.793637e-08f, -3.6342236e-01f,
     -3.197884e-01f},
    {6.2941454e-02f, 1.05397105e-02f, 5.413399e-04f, 9.939244e-06f, 2.5481038e-08f, -3.3333048e-01f, -9.422416e-02f,
     1.0362727e-01f},
    {-2.3583863e-02f, -5.0967555e-03f, -2.6715468e-04f, -4.909144e-06f, 9.052509e-09f, -7.063165e-05f, 1.6464396e-01f,
     2.7696086e-02f},
    {3.7187245e-03f, 1.9032272e-03f, 1.0675399e-04f, 1.9673985e-06f, 4.0504986e-09f, 1.3412142e-01f, -2.7066194e-02f,
     -4.631942e-02f},
    {2.3959333e-03f, -5.4554065e-04f, -4.0624924e-05f, -7.5900226e-07f, -5.4232925e-09f, -4.2305854e-03f,
     -4.9412783e-02f, 1.8099826e-02f},
    {-2.0564413e-03f, 1.0084727e-04f, 1.1269549e-05f, 2.1417546e-07f, 7.4634243e-10f, -4.4493448e-02f, 2.6188053e-02f,
     3.0054417e-03f},
};

INLINE void v_tanhs(const int n, vf *x) {
    vf t[MOST_TANHS], p[MOST_TANHS];
    vi at[MOST_TANHS];
    EACH(n) t[i] = v_min(v_set1(TANH_END), v_abs(x[i]));
    EACH(n) at[i] = v_index(v_add(t[i], v_set1(TANH_SHIFT)));
    EACH(n) t[i] = v_sub(t[i], v_look_up(tanh_table[0], at[i]));
    EACH(n) p[i] = v_look_up(tanh_table[TANH_DEGREE + 1], at[i]);
    UNROLL for (int d = TANH_DEGREE; d > 0; d--) EACH(n) p[i] = v_fma(p[i], t[i], v_look_up(tanh_table[d], at[i]));
    EACH(n) x[i] = v_copysign(p[i], x[i]);
}

/* e^x for x <= 0, with the bits of v_exp and two thirds of its work: 2^n needs no second factor. */
static inline vf v_exp_below(vf x) {
    vf low = v_set1(-87.33654f), scale, p = v_max(low, x);
    exp_parts(1, &p, &scale);
    scale = v_pow2(scale);
    return v_lt(x, low, v_zero(), v_fma(scale, p, scale));
}

/* log x of a normal x = m 2^n with m in (sqrt(1/2), sqrt(2)], by a polynomial in m - 1; -inf for zero and (there are
 * no denormals here) anything that is not normal, NaN below. */
static inline vf v_log(vf x) {
    static const float coefficient[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                                        -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                                        2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    vf normal = v_min(v_set1(FLT_MAX), v_max(v_set1(FLT_MIN), x)), n = v_exponent(normal);
    vf half = half_of(n); /* 2^-n in two factors, since n reaches 127 */
    vf m = v_mul(v_mul(normal, pow2(v_neg(half))), pow2(v_sub(half, n)));
    vf root = v_set1(1.41421356f);
    n = v_lt(root, m, v_add(n, v_set1(1.0f)), n);
    vf r = v_sub(v_lt(root, m, v_mul(m, v_set1(0.5f)), m), v_set1(1.0f)), square = v_mul(r, r);
    vf p = v_set1(coefficient[0]);
    for (int i = 1; i < 9; i++) p = v_fma(p, r, v_set1(coefficient[i]));
    p = v_fma(n, v_set1(LN2_LOW), v_mul(v_mul(p, r), square));
    p = v_fma(v_set1(-0.5f), square, p);
    vf y = v_fma(n, v_set1(LN2_HIGH), v_add(r, p));
    vf special = v_lt(x, v_zero(), v_set1(NAN), v_set1(-INFINITY));
    return v_lt(v_set1(FLT_MAX), x, x, v_lt(x, v_set1(FLT_MIN), special, y));
}

#endif

/* f of all n elements of x. */
#define ALL(name, f) \
    static __attribute__((noinline)) void name(vf *x, int n) { \
        for (; n >= SIDE_BY_SIDE; n -= SIDE_BY_SIDE, x += SIDE_BY_SIDE) f(SIDE_BY_SIDE, x); \
        switch (n) { LEFT(f, 1) LEFT(f, 2) LEFT(f, 3) LEFT(f, 4) LEFT(f, 5) } \
    }
#define LEFT(f, count) \
    case count: \
        if (count < SIDE_BY_SIDE) f(count, x); \
        break;

ALL(sigmoid_all, v_sigmoids)
ALL(tanh_all, v_tanhs)
#undef ALL
#undef LEFT
