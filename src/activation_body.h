/* exp, sigmoid and tanh of a vector, by one formula on every instruction set (so: the same bits), within 2 ULP
 * wherever argument and result are normal. In double precision they are the C library's, lane by lane. */

#ifdef RC_REAL_IS_DOUBLE

LANEWISE1(v_exp, exp(a.lane[l]))
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

/* e^x; 0 below -87.3 (there are no denormals here) and inf above 88.7. */
static inline vf v_exp(vf x) {
    vf clamped = v_min(v_set1(88.8f), v_max(v_set1(-87.4f), x));
    vf n = v_round(v_mul(clamped, v_set1(LOG2_E)));
    vf r = v_fnma(n, v_set1(LN2_LOW), v_fnma(n, v_set1(LN2_HIGH), clamped));
    vf p = v_fma(exp_tail(r), v_mul(r, r), r);
    /* 2^n in two factors, since n reaches 128. */
    vf half = v_round(v_mul(n, v_set1(0.5f)));
    vf scale = v_pow2(half);
    vf e = v_mul(v_mul(v_add(p, v_set1(1.0f)), scale), v_pow2(v_sub(n, half)));
    return v_lt(x, v_set1(-87.33654f), v_zero(), e);
}

/* 1 / (1 + e^-x) */
static inline vf v_sigmoid(vf x) {
    vf one = v_set1(1.0f);
    return v_div(one, v_add(one, v_exp(v_neg(x))));
}

/* tanh|x| = -m / (2 + m) with m = e^(-2|x|) - 1, which keeps its relative precision where x is small. */
static inline vf v_tanh(vf x) {
    vf y = v_max(v_set1(-40.0f), v_mul(v_abs(x), v_set1(-2.0f)));
    vf n = v_round(v_mul(y, v_set1(LOG2_E)));
    vf r = v_fnma(n, v_set1(LN2_LOW), v_fnma(n, v_set1(LN2_HIGH), y));
    vf p = v_fma(exp_tail(r), v_mul(r, r), r);
    vf scale = v_pow2(n);
    vf m = v_fma(scale, p, v_sub(scale, v_set1(1.0f)));
    return v_copysign(v_div(m, v_add(m, v_set1(2.0f))), x);
}

#endif
