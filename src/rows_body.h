/* Included by rows.h for each REAL; pointers are arrays of REAL in C order. */

static inline REAL NAME(lanes_sum)(REAL *s) {
    for (int half = RC_LANES / 2; half; half /= 2) {
        for (int l = 0; l < half; l++) s[l] += s[l + half];
    }
    return s[0];
}

static inline REAL NAME(row_sum)(const REAL *x, ptrdiff_t n) {
    REAL s[RC_LANES] = {0};
    ptrdiff_t j = 0;
    for (; j + RC_LANES <= n; j += RC_LANES) {
        for (int l = 0; l < RC_LANES; l++) s[l] += x[j + l];
    }
    for (int l = 0; j + l < n; l++) s[l] += x[j + l];
    return NAME(lanes_sum)(s);
}

static inline REAL NAME(row_dot)(const REAL *x, const REAL *y, ptrdiff_t n) {
    REAL s[RC_LANES] = {0};
    ptrdiff_t j = 0;
    for (; j + RC_LANES <= n; j += RC_LANES) {
        for (int l = 0; l < RC_LANES; l++) s[l] += x[j + l] * y[j + l];
    }
    for (int l = 0; j + l < n; l++) s[l] += x[j + l] * y[j + l];
    return NAME(lanes_sum)(s);
}

static inline REAL NAME(row_top)(const REAL *x, ptrdiff_t n) {
    REAL s[RC_LANES], top = x[0];
    for (int l = 0; l < RC_LANES; l++) s[l] = top;
    ptrdiff_t j = 0;
    for (; j + RC_LANES <= n; j += RC_LANES) {
        for (int l = 0; l < RC_LANES; l++) s[l] = x[j + l] > s[l] ? x[j + l] : s[l];
    }
    for (int l = 0; j + l < n; l++) s[l] = x[j + l] > s[l] ? x[j + l] : s[l];
    for (int l = 0; l < RC_LANES; l++) top = s[l] > top ? s[l] : top;
    return top;
}

/* x (rows, n) <- softmax of each row. */
static inline void NAME(softmax)(const rc_kernels *k, void *data, ptrdiff_t rows, ptrdiff_t n) {
    REAL *x = data;
    for (ptrdiff_t i = 0; i < rows; i++) {
        const REAL top = NAME(row_top)(x + i * n, n);
        for (ptrdiff_t j = 0; j < n; j++) x[i * n + j] -= top;
    }
    k->activate(RC_EXP, x, x, rows * n);
    for (ptrdiff_t i = 0; i < rows; i++) {
        const REAL sum = NAME(row_sum)(x + i * n, n);
        for (ptrdiff_t j = 0; j < n; j++) x[i * n + j] /= sum;
    }
}

/* dp (rows, n) <- p (dp - sum(p dp)). */
static inline void NAME(softmax_back)(const void *p_data, void *dp_data, ptrdiff_t rows, ptrdiff_t n) {
    const REAL *p = p_data;
    REAL *dp = dp_data;
    for (ptrdiff_t i = 0; i < rows; i++, p += n, dp += n) {
        const REAL sum = NAME(row_dot)(p, dp, n);
        for (ptrdiff_t j = 0; j < n; j++) dp[j] = p[j] * (dp[j] - sum);
    }
}

static inline void NAME(transpose)(const void *x_data, ptrdiff_t rows, ptrdiff_t n, void *y_data) {
    const REAL *x = x_data;
    REAL *y = y_data;
    for (ptrdiff_t i = 0; i < rows; i++) {
        for (ptrdiff_t j = 0; j < n; j++) y[j * rows + i] = x[i * n + j];
    }
}

/* work (sources, n) <- tanh(query + keys). */
static inline void NAME(additive_tanh)(const rc_kernels *k, const REAL *query, const REAL *keys, ptrdiff_t sources,
                                       ptrdiff_t n, REAL *work) {
    for (ptrdiff_t s = 0; s < sources; s++) {
        for (ptrdiff_t j = 0; j < n; j++) work[s * n + j] = query[j] + keys[s * n + j];
    }
    k->activate(RC_TANH, work, work, sources * n);
}

/* scores[s] = v . tanh(query + keys[s]): one query (n), keys (sources, n), work (sources, n). */
static inline void NAME(additive)(const rc_kernels *k, const void *query, const void *keys, const void *v,
                                  ptrdiff_t sources, ptrdiff_t n, void *work_data, void *scores) {
    REAL *work = work_data;
    NAME(additive_tanh)(k, query, keys, sources, n, work);
    for (ptrdiff_t s = 0; s < sources; s++) ((REAL *)scores)[s] = NAME(row_dot)(work + s * n, v, n);
}

/* The gradients of `additive` from those of its scores, added to dquery (n), dkeys (sources, n) and dv (n). */
static inline void NAME(additive_back)(const rc_kernels *k, const void *query, const void *keys, const void *v_data,
                                       const void *dscores, ptrdiff_t sources, ptrdiff_t n, void *work_data,
                                       void *dquery_data, void *dkeys_data, void *dv_data) {
    const REAL *v = v_data;
    REAL *work = work_data, *dquery = dquery_data, *dv = dv_data;
    NAME(additive_tanh)(k, query, keys, sources, n, work);
    for (ptrdiff_t s = 0; s < sources; s++) {
        const REAL d = ((const REAL *)dscores)[s];
        const REAL *y = work + s * n;
        REAL *dkeys = (REAL *)dkeys_data + s * n;
        for (ptrdiff_t j = 0; j < n; j++) {
            const REAL g = d * v[j] * (1 - y[j] * y[j]);
            dv[j] += d * y[j];
            dquery[j] += g;
            dkeys[j] += g;
        }
    }
}

/* dy <- dy (1 - y^2). */
static inline void NAME(tanh_back)(const void *y_data, void *dy_data, ptrdiff_t n) {
    const REAL *y = y_data;
    REAL *dy = dy_data;
    for (ptrdiff_t j = 0; j < n; j++) dy[j] *= 1 - y[j] * y[j];
}

/* log(sum(exp(x))), and the largest x. */
static inline double NAME(log_sum)(const rc_kernels *k, const void *x_data, ptrdiff_t n, double *top) {
    const REAL *x = x_data, most = NAME(row_top)(x, n);
    REAL e[RC_PIECE];
    double sum = 0;
    *top = most;
    if (isinf(most)) return most;
    for (ptrdiff_t begin = 0; begin < n; begin += RC_PIECE) {
        const ptrdiff_t count = n - begin < RC_PIECE ? n - begin : RC_PIECE;
        for (ptrdiff_t j = 0; j < count; j++) e[j] = x[begin + j] - most;
        k->activate(RC_EXP, e, e, count);
        sum += NAME(row_sum)(e, count);
    }
    return most + log(sum);
}

/* Keep the best of base + x[j]: sixteen at a time are held against the worst that is kept. */
static inline ptrdiff_t NAME(best)(const void *x_data, ptrdiff_t n, int64_t row, double base, rc_candidate *best,
                                   ptrdiff_t count, ptrdiff_t most) {
    const REAL *x = x_data;
    for (ptrdiff_t begin = 0; begin < n; begin += RC_LANES) {
        const ptrdiff_t end = begin + RC_LANES < n ? begin + RC_LANES : n;
        /* Rounding may not let a better one pass: compare with a bound that is a little lower. */
        const double worst = count == most ? best[most - 1].score - base : -INFINITY;
        const REAL bound = (REAL)(worst - 1e-6 * fabs(worst));
        if (count == most && end - begin == RC_LANES) {
            int above = 0;
            for (int l = 0; l < RC_LANES; l++) above |= x[begin + l] >= bound;
            if (!above) continue;
        }
        for (ptrdiff_t j = begin; j < end; j++) {
            if (isinf(x[j]) && x[j] < 0) continue; /* forbidden */
            if (count == most && x[j] < bound) continue;
            const rc_candidate one = {base + (double)x[j], row, j};
            count = rc_keep(best, count, most, one);
        }
    }
    return count;
}
