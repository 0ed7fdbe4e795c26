/* exp, log, sigmoid and tanh of a vector, by one formula on every instruction set (so: the same bits), within 2 ULP
 * wherever argument and result are normal. In double precision they are the C library's, lane by lane. */

#include <float.h>
#include <math.h>

#ifdef RC_REAL_IS_DOUBLE

LANEWISE1(v_exp, exp(a.lane[l]))
LANEWISE1(v_exp_below, exp(a.lane[l]))
LANEWISE1(v_log, log(a.lane[l]))
LANEWISE1(v_tanh, tanh(a.lane[l]))
LANEWISE1(v_sigmoid, 1.0 / (1.0 + exp(-a.lane[l])))

#else

/* x = n ln2 + r with |r| <= ln2/2, ln2 split in two so that n * LN2_HIGH is exact. */
#define LOG2_E 1.44269504088896341f
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f

/* (e^r - 1 - r) / r^2 on |r| <= ln2/2: Taylor's coefficients, moved a little to even the error out. */
static inline vf exp_tail(vf r) {
    vf p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    return v_fma(p, r, v_set1(5.0000001201e-1f));
}

/* e^x = 2^n (1 + p) with |p| < 0.42: gives p, and n by the pointer. For |x| < 90. */
static inline vf exp_parts(vf x, vf *n) {
    *n = v_round(v_mul(x, v_set1(LOG2_E)));
    vf r = v_fnma(*n, v_set1(LN2_LOW), v_fnma(*n, v_set1(LN2_HIGH), x));
    return v_fma(exp_tail(r), v_mul(r, r), r);
}

/* e^x; 0 below -87.3 (there are no denormals here) and inf above 88.7. */
static inline vf v_exp(vf x) {
    vf n, p = exp_parts(v_min(v_set1(88.8f), v_max(v_set1(-87.4f), x)), &n);
    /* 2^n in two factors, since n reaches 128. */
    vf half = v_round(v_mul(n, v_set1(0.5f)));
    vf scale = v_pow2(half);
    vf e = v_mul(v_mul(v_add(p, v_set1(1.0f)), scale), v_pow2(v_sub(n, half)));
    return v_lt(x, v_set1(-87.33654f), v_zero(), e);
}

/* 1 / (1 + e^-x); the sum is rounded about once, since what 2^n + 1 loses is added to the smaller term. */
static inline vf v_sigmoid(vf x) {
    vf n, p = exp_parts(v_min(v_set1(88.0f), v_max(v_set1(-40.0f), v_neg(x))), &n);
    vf one = v_set1(1.0f), scale = v_pow2(n), sum = v_add(scale, one);
    vf lost = v_add(v_sub(scale, sum), one);
    return v_div(one, v_add(v_fma(scale, p, lost), sum));
}

/* Near zero x + x^3 P(x^2), P by Moshier (Cephes, tanhf); from 0.625 on 1 - 2 / (1 + e^2|x|). */
static inline vf v_tanh(vf x) {
    vf one = v_set1(1.0f), a = v_abs(x), square = v_mul(x, x);
    vf poly = v_set1(-5.70498872745e-3f);
    poly = v_fma(poly, square, v_set1(2.06390887954e-2f));
    poly = v_fma(poly, square, v_set1(-5.37397155531e-2f));
    poly = v_fma(poly, square, v_set1(1.33314422036e-1f));
    poly = v_fma(poly, square, v_set1(-3.33332819422e-1f));
    vf near = v_fma(v_mul(a, square), poly, a);
    vf n, p = exp_parts(v_min(v_set1(40.0f), v_add(a, a)), &n);
    vf scale = v_pow2(n);
    vf far = v_sub(one, v_div(v_set1(2.0f), v_fma(scale, p, v_add(scale, one))));
    return v_copysign(v_lt(a, v_set1(0.625f), near, far), x);
}

/* e^x for x <= 0, with the bits of v_exp and two thirds of its work: 2^n needs no second factor. */
static inline vf v_exp_below(vf x) {
    vf low = v_set1(-87.33654f), n, p = exp_parts(v_max(low, x), &n), scale = v_pow2(n);
    return v_lt(x, low, v_zero(), v_fma(scale, p, scale));
}

/* log x of a normal x = m 2^n with m in (sqrt(1/2), sqrt(2)], by a polynomial in m - 1; -inf for zero and (there are
 * no denormals here) anything that is not normal, NaN below. */
static inline vf v_log(vf x) {
    static const float coefficient[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                                        -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                                        2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    vf normal = v_min(v_set1(FLT_MAX), v_max(v_set1(FLT_MIN), x)), n = v_exponent(normal);
    vf half = v_round(v_mul(n, v_set1(0.5f))); /* 2^-n in two factors, since n reaches 127 */
    vf m = v_mul(v_mul(normal, v_pow2(v_neg(half))), v_pow2(v_sub(half, n)));
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
