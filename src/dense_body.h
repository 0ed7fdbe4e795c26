/* The dense kernels of one instruction set: included by kernels_body.h after the vocabulary and the activations. */
#include "dense.h"

#include <string.h>

/* ---------------------------------------------------------------------------------------- 16 virtual lanes */

#define WIDE 16
#define PARTS (WIDE / LANES)
#define EACH_PART UNROLL for (int i = 0; i < PARTS; i++)

typedef struct {
    vf part[PARTS];
} wide;

static const real lane_index[WIDE] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* How many of n elements fall into part i. */
INLINE long part_of(long n, int i) {
    const long left = n - (long)i * LANES;
    return left < 0 ? 0 : left < LANES ? left : LANES;
}

INLINE wide w_set1(real x) { wide r; EACH_PART r.part[i] = v_set1(x); return r; }
INLINE wide w_load(const real *p) { wide r; EACH_PART r.part[i] = v_load(p + i * LANES); return r; }
INLINE void w_store(real *p, wide a) { EACH_PART v_store(p + i * LANES, a.part[i]); }
INLINE wide w_load_n(const real *p, long n) {
    wide r;
    EACH_PART r.part[i] = v_load_n(p + i * LANES, part_of(n, i));
    return r;
}
INLINE void w_store_n(real *p, wide a, long n) { EACH_PART v_store_n(p + i * LANES, a.part[i], part_of(n, i)); }

#define LIFT1(f) INLINE wide w_##f(wide a) { wide r; EACH_PART r.part[i] = v_##f(a.part[i]); return r; }
#define LIFT2(f) \
    INLINE wide w_##f(wide a, wide b) { wide r; EACH_PART r.part[i] = v_##f(a.part[i], b.part[i]); return r; }
#define LIFT3(f) \
    INLINE wide w_##f(wide a, wide b, wide c) { \
        wide r; \
        EACH_PART r.part[i] = v_##f(a.part[i], b.part[i], c.part[i]); \
        return r; \
    }
LIFT1(exp_below)
LIFT1(log)
LIFT1(abs)
LIFT1(neg)
LIFT2(add)
LIFT2(sub)
LIFT2(mul)
LIFT2(div)
LIFT2(max)
LIFT3(fma)
INLINE wide w_lt(wide a, wide b, wide x, wide y) {
    wide r;
    EACH_PART r.part[i] = v_lt(a.part[i], b.part[i], x.part[i], y.part[i]);
    return r;
}
/* a in the first n lanes, b in the others. */
INLINE wide w_first(long n, wide a, wide b) { return w_lt(w_load(lane_index), w_set1((real)n), a, b); }

/* The one tree: lane l takes in l + 8, then l + 4, l + 2, l + 1. */
INLINE real w_sum(wide a) {
    real s[WIDE];
    w_store(s, a);
    UNROLL for (int half = WIDE / 2; half; half /= 2) {
        UNROLL for (int l = 0; l < half; l++) s[l] += s[l + half];
    }
    return s[0];
}
INLINE real w_top(wide a) {
    real s[WIDE];
    w_store(s, a);
    UNROLL for (int half = WIDE / 2; half; half /= 2) {
        UNROLL for (int l = 0; l < half; l++) s[l] = s[l] > s[l + half] ? s[l] : s[l + half];
    }
    return s[0];
}

/* ------------------------------------------------------------------------------------ softmax cross-entropy */

#define LOG_ROWS 64 /* rows whose logarithms are taken side by side */

static real row_top(const real *x, ptrdiff_t n) {
    const wide low = w_set1(-(real)INFINITY);
    wide top[4] = {low, low, low, low};
    ptrdiff_t j = 0;
    for (; j + 4 * WIDE <= n; j += 4 * WIDE) {
        UNROLL for (int k = 0; k < 4; k++) top[k] = w_max(top[k], w_load(x + j + k * WIDE));
    }
    for (; j + WIDE <= n; j += WIDE) top[0] = w_max(top[0], w_load(x + j));
    if (j < n) top[1] = w_max(top[1], w_first(n - j, w_load_n(x + j, n - j), low));
    return w_top(w_max(w_max(top[0], top[1]), w_max(top[2], top[3])));
}

/* sum of e^(x - top), each of which goes to `e` where `keep`; `shifted` gets the sum of x - top where `smooth`. */
INLINE real row_exp(const int keep, const int smooth, const real *x, real *e, ptrdiff_t n, real top, real *shifted) {
    const wide zero = w_set1(0), shift = w_set1(top);
    wide sum = zero, sum_x = zero;
    ptrdiff_t j = 0;
    for (; j + WIDE <= n; j += WIDE) {
        const wide d = w_sub(w_load(x + j), shift), y = w_exp_below(d);
        if (keep) w_store(e + j, y);
        if (smooth) sum_x = w_add(sum_x, d);
        sum = w_add(sum, y);
    }
    if (j < n) {
        const wide d = w_sub(w_load_n(x + j, n - j), shift), y = w_exp_below(d);
        if (keep) w_store_n(e + j, y, n - j);
        if (smooth) sum_x = w_add(sum_x, w_first(n - j, d, zero));
        sum = w_add(sum, w_first(n - j, y, zero));
    }
    *shifted = smooth ? w_sum(sum_x) : 0;
    return w_sum(sum);
}

/* dx = factor dx + base */
static void row_affine(real *dx, ptrdiff_t n, real factor, real base) {
    const wide f = w_set1(factor), b = w_set1(base);
    ptrdiff_t j = 0;
    for (; j + WIDE <= n; j += WIDE) w_store(dx + j, w_fma(w_load(dx + j), f, b));
    if (j < n) w_store_n(dx + j, w_fma(w_load_n(dx + j, n - j), f, b), n - j);
}

/* One row: gives the softmax's denominator; the loss lacks its logarithm. */
INLINE real cross_entropy_row(const int keep, const int smooth, const rc_cross_entropy *job, ptrdiff_t row) {
    const ptrdiff_t n = job->classes;
    const real *x = (const real *)job->x + row * n;
    real *dx = keep ? (real *)job->dx + row * n : NULL;
    const int64_t target = job->targets[row];
    job->loss[row] = 0;
    if (target < 0) {
        if (keep) memset(dx, 0, (size_t)n * sizeof(real));
        return 1;
    }
    const real top = row_top(x, n), right = x[target]; /* read before dx is written: dx may be x */
    const double share = smooth ? job->smoothing / (double)n : 0;
    real shifted;
    const real sum = row_exp(keep, smooth, x, dx, n, top, &shifted);
    if (keep) {
        row_affine(dx, n, (real)job->scale / sum, (real)(-job->scale * share));
        dx[target] -= (real)(job->scale * (1.0 - job->smoothing));
    }
    job->loss[row] = (1.0 - job->smoothing) * ((double)top - (double)right);
    if (smooth) job->loss[row] -= share * (double)shifted;
    return sum;
}

static void cross_entropy(const rc_cross_entropy *job, ptrdiff_t begin, ptrdiff_t end) {
    const int smooth = job->smoothing != 0;
    real sums[LOG_ROWS];
    for (ptrdiff_t first = begin; first < end; first += LOG_ROWS) {
        const ptrdiff_t rows = end - first < LOG_ROWS ? end - first : LOG_ROWS;
        for (ptrdiff_t i = 0; i < rows; i++) {
            if (job->dx) {
                sums[i] = smooth ? cross_entropy_row(1, 1, job, first + i) : cross_entropy_row(1, 0, job, first + i);
            } else {
                sums[i] = smooth ? cross_entropy_row(0, 1, job, first + i) : cross_entropy_row(0, 0, job, first + i);
            }
        }
        for (ptrdiff_t i = 0; i < rows; i += LANES) {
            const long left = rows - i < LANES ? rows - i : LANES;
            v_store_n(sums + i, v_log(v_load_n(sums + i, left)), left);
        }
        for (ptrdiff_t i = 0; i < rows; i++) job->loss[first + i] += (double)sums[i];
    }
}

/* ------------------------------------------------------------------------------- losses element by element */

/* The loss of 16 pairs; `dx` gets the gradient. e = e^-|x| serves both log(1 + e) and the sigmoid. */
INLINE wide bce(wide x, wide target, wide scale, wide *dx) {
    const wide zero = w_set1(0), one = w_set1(1);
    const wide e = w_exp_below(w_neg(w_abs(x))), u = w_add(one, e);
    const wide sigmoid = w_div(w_lt(x, zero, e, one), u);
    /* log(u), and what e lost when it was added to 1 */
    const wide log1p = w_add(w_log(u), w_div(w_sub(e, w_sub(u, one)), u));
    *dx = w_mul(scale, w_sub(sigmoid, target));
    return w_add(w_sub(w_max(zero, x), w_mul(x, target)), log1p);
}

INLINE wide mse(wide x, wide target, wide scale, wide *dx) {
    const wide d = w_sub(x, target);
    *dx = w_mul(scale, w_add(d, d));
    return w_mul(d, d);
}

INLINE wide pair_step(const enum rc_pair kind, const rc_pair_loss *job, ptrdiff_t at, const int whole, long n) {
    const real *px = (const real *)job->x + at, *pt = (const real *)job->target + at;
    const wide zero = w_set1(0), scale = w_set1((real)job->scale);
    const wide x = whole ? w_load(px) : w_load_n(px, n), target = whole ? w_load(pt) : w_load_n(pt, n);
    wide dx, loss = kind == RC_BCE ? bce(x, target, scale, &dx) : mse(x, target, scale, &dx);
    if (job->mask) {
        const real *pm = (const real *)job->mask + at;
        const wide mask = whole ? w_load(pm) : w_load_n(pm, n);
        loss = w_lt(zero, mask, loss, zero);
        dx = w_lt(zero, mask, dx, zero);
    }
    real *to = (real *)job->dx + at;
    if (job->dx && whole) w_store(to, dx);
    else if (job->dx) w_store_n(to, dx, n);
    return whole ? loss : w_first(n, loss, zero);
}

INLINE void pair_blocks(const enum rc_pair kind, const rc_pair_loss *job, ptrdiff_t begin, ptrdiff_t end) {
    for (ptrdiff_t b = begin; b < end; b++) {
        const ptrdiff_t stop = (b + 1) * RC_BLOCK < job->n ? (b + 1) * RC_BLOCK : job->n;
        ptrdiff_t j = b * RC_BLOCK;
        wide sum = w_set1(0);
        for (; j + WIDE <= stop; j += WIDE) sum = w_add(sum, pair_step(kind, job, j, 1, WIDE));
        if (j < stop) sum = w_add(sum, pair_step(kind, job, j, 0, stop - j));
        job->loss[b] = (double)w_sum(sum);
    }
}

static void pair_loss(const rc_pair_loss *job, ptrdiff_t begin, ptrdiff_t end) {
    if (job->kind == RC_BCE) pair_blocks(RC_BCE, job, begin, end);
    else pair_blocks(RC_MSE, job, begin, end);
}

/* --------------------------------------------------------------------------------------------- optimisers */

typedef struct {
    vf lr, decay, keep, momentum, gain, alpha, blend, eps, correction1, correction2;
    int nesterov, decoupled;
} update_terms;

static update_terms terms_of(const rc_update *u) {
    const update_terms t = {
        .lr = v_set1((real)u->lr),
        .decay = v_set1((real)u->decay),
        .keep = v_set1((real)(1.0 - u->lr * u->decay)),
        .momentum = v_set1((real)u->momentum),
        .gain = v_set1((real)(1.0 - (u->kind == RC_ADAM ? u->momentum : u->dampening))),
        .alpha = v_set1((real)u->alpha),
        .blend = v_set1((real)(1.0 - u->alpha)),
        .eps = v_set1((real)u->eps),
        .correction1 = v_set1((real)(-u->lr / u->correction1)),
        .correction2 = v_set1((real)(1.0 / u->correction2)),
        .nesterov = u->nesterov,
        .decoupled = u->decoupled,
    };
    return t;
}

INLINE vf get(const int whole, const real *p, long n) { return whole ? v_load(p) : v_load_n(p, n); }
INLINE void put(const int whole, real *p, vf v, long n) {
    if (whole) v_store(p, v);
    else v_store_n(p, v, n);
}

INLINE vf sgd(const update_terms *t, const int whole, vf p, vf g, real *first, long n) {
    g = v_fma(t->decay, p, g);
    if (first) {
        const vf m = v_fma(t->momentum, get(whole, first, n), v_mul(t->gain, g));
        put(whole, first, m, n);
        g = t->nesterov ? v_fma(t->momentum, m, g) : m;
    }
    return v_fnma(t->lr, g, p);
}

INLINE vf rmsprop(const update_terms *t, const int whole, vf p, vf g, real *first, real *second, real *third, long n) {
    g = v_fma(t->decay, p, g);
    const vf square = v_fma(t->alpha, get(whole, second, n), v_mul(v_mul(t->blend, g), g));
    put(whole, second, square, n);
    vf spread = square;
    if (third) {
        const vf old = get(whole, third, n), mean = v_fma(t->blend, v_sub(g, old), old);
        put(whole, third, mean, n);
        spread = v_fnma(mean, mean, square);
    }
    vf step = v_div(g, v_add(v_sqrt(spread), t->eps));
    if (first) {
        step = v_fma(t->momentum, get(whole, first, n), step);
        put(whole, first, step, n);
    }
    return v_fnma(t->lr, step, p);
}

INLINE vf adam(const update_terms *t, const int whole, vf p, vf g, real *first, real *second, long n) {
    if (t->decoupled) p = v_mul(p, t->keep);
    else g = v_fma(t->decay, p, g);
    const vf old = get(whole, first, n), m = v_fma(t->gain, v_sub(g, old), old);
    const vf v = v_fma(t->alpha, get(whole, second, n), v_mul(v_mul(t->blend, g), g));
    put(whole, first, m, n);
    put(whole, second, v, n);
    const vf spread = v_fma(v_sqrt(v), t->correction2, t->eps);
    return v_fma(t->correction1, v_div(m, spread), p);
}

INLINE void update_at(const enum rc_optimiser kind, const update_terms *t, const int whole, real *p, const real *g,
                      real *first, real *second, real *third, long n) {
    const vf vp = get(whole, p, n), vg = get(whole, g, n);
    const vf next = kind == RC_SGD       ? sgd(t, whole, vp, vg, first, n)
                    : kind == RC_RMSPROP ? rmsprop(t, whole, vp, vg, first, second, third, n)
                                         : adam(t, whole, vp, vg, first, second, n);
    put(whole, p, next, n);
}

#define AT(p, j) ((p) ? (p) + (j) : NULL)

INLINE void update_all(const enum rc_optimiser kind, const rc_update *u, real *p, const real *g, real *first,
                       real *second, real *third, ptrdiff_t n) {
    const update_terms t = terms_of(u);
    ptrdiff_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        update_at(kind, &t, 1, p + j, g + j, AT(first, j), AT(second, j), AT(third, j), LANES);
    }
    if (j < n) update_at(kind, &t, 0, p + j, g + j, AT(first, j), AT(second, j), AT(third, j), n - j);
}

static void update(const rc_update *u, void *p, const void *g, void *first, void *second, void *third, ptrdiff_t n) {
    switch (u->kind) {
    case RC_SGD: update_all(RC_SGD, u, p, g, first, NULL, NULL, n); break;
    case RC_RMSPROP: update_all(RC_RMSPROP, u, p, g, first, second, third, n); break;
    default: update_all(RC_ADAM, u, p, g, first, second, NULL, n);
    }
}

/* -------------------------------------------------------------------------------------- norms and clipping */

static real block_squares(const real *x, ptrdiff_t n) {
    const wide zero = w_set1(0);
    wide sum[4] = {zero, zero, zero, zero};
    ptrdiff_t j = 0;
    for (; j + 4 * WIDE <= n; j += 4 * WIDE) {
        UNROLL for (int k = 0; k < 4; k++) {
            const wide v = w_load(x + j + k * WIDE);
            sum[k] = w_fma(v, v, sum[k]);
        }
    }
    for (; j < n; j += WIDE) {
        const wide v = w_load_n(x + j, n - j);
        sum[0] = w_fma(v, v, sum[0]);
    }
    return w_sum(w_add(w_add(sum[0], sum[1]), w_add(sum[2], sum[3])));
}

static void sum_squares(const void *x, ptrdiff_t n, double *sums) {
    for (ptrdiff_t b = 0; b < rc_blocks(n); b++) {
        const real *p = (const real *)x + b * RC_BLOCK;
        const ptrdiff_t size = n - b * RC_BLOCK < RC_BLOCK ? n - b * RC_BLOCK : RC_BLOCK;
        sums[b] = (double)block_squares(p, size);
        if (sums[b] < INFINITY) continue;
        sums[b] = 0; /* a square was too large for `real`, or there is an inf or NaN to pass on */
        for (ptrdiff_t j = 0; j < size; j++) sums[b] += (double)p[j] * (double)p[j];
    }
}

static int finite_all(const void *x, ptrdiff_t n) {
    const real *p = x;
    const vf zero = v_zero();
    vf sum[4] = {zero, zero, zero, zero}; /* 0 * x is NaN for inf and NaN, and stays so in a sum */
    ptrdiff_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
        UNROLL for (int k = 0; k < 4; k++) sum[k] = v_fma(zero, v_load(p + j + k * LANES), sum[k]);
    }
    for (; j < n; j += LANES) sum[0] = v_fma(zero, v_load_n(p + j, n - j < LANES ? n - j : LANES), sum[0]);
    real lanes[LANES];
    v_store(lanes, v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
    for (int l = 0; l < LANES; l++) {
        if (lanes[l] != 0) return 0;
    }
    return 1;
}

enum map { SCALE, CLAMP, MULTIPLY, LOG };

INLINE vf mapped(const enum map f, vf a, vf b) {
    switch (f) {
    case CLAMP: return v_max(v_neg(b), v_min(b, a)); /* NaN stands second, so it stays */
    case LOG: return v_log(a);
    default: return v_mul(a, b);
    }
}

/* y = f(a, b), where `b` NULL means the same number everywhere. */
INLINE void map_all(const enum map f, const void *a, const void *b, double everywhere, void *y, ptrdiff_t n) {
    const real *pa = a, *pb = b;
    const vf same = v_set1((real)everywhere);
    ptrdiff_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        v_store((real *)y + j, mapped(f, v_load(pa + j), pb ? v_load(pb + j) : same));
    }
    if (j < n) v_store_n((real *)y + j, mapped(f, v_load_n(pa + j, n - j), pb ? v_load_n(pb + j, n - j) : same), n - j);
}

static void scale(void *x, ptrdiff_t n, double factor) { map_all(SCALE, x, NULL, factor, x, n); }
static void clamp(void *x, ptrdiff_t n, double limit) { map_all(CLAMP, x, NULL, limit, x, n); }
static void multiply_all(const void *a, const void *b, void *y, ptrdiff_t n) { map_all(MULTIPLY, a, b, 0, y, n); }
static void log_all(const void *x, void *y, ptrdiff_t n) { map_all(LOG, x, NULL, 0, y, n); }

/* -------------------------------------------------------------------------------------- embedding, dropout */

static void gather(const void *table, const int64_t *index, ptrdiff_t columns, void *y, ptrdiff_t begin,
                   ptrdiff_t end) {
    const size_t bytes = (size_t)columns * sizeof(real);
    for (ptrdiff_t i = begin; i < end; i++) {
        memcpy((real *)y + i * columns, (const real *)table + index[i] * columns, bytes);
    }
}

static void scatter_add(void *table, const int64_t *index, ptrdiff_t rows, ptrdiff_t columns, const void *dy,
                        int64_t skip, ptrdiff_t begin, ptrdiff_t end) {
    for (ptrdiff_t i = 0; i < rows; i++) {
        if (index[i] == skip) continue;
        real *to = (real *)table + index[i] * columns;
        const real *from = (const real *)dy + i * columns;
        ptrdiff_t j = begin;
        for (; j + LANES <= end; j += LANES) v_store(to + j, v_add(v_load(to + j), v_load(from + j)));
        if (j < end) v_store_n(to + j, v_add(v_load_n(to + j, end - j), v_load_n(from + j, end - j)), end - j);
    }
}

/* 16 counters at a time, so that the compiler has vectors to work with: unit u = 64 group + 16 word + lane takes
 * word `word` of the counter (16 group + lane, step, sequence, 0). */
static void philox_group(uint64_t key, uint32_t group, uint32_t step, uint32_t sequence, uint32_t words[4][WIDE]) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int l = 0; l < WIDE; l++) {
        words[0][l] = WIDE * group + (uint32_t)l;
        words[1][l] = step;
        words[2][l] = sequence;
        words[3][l] = 0;
    }
    for (int round = 0; round < 10; round++, k0 += RC_PHILOX_KEY0, k1 += RC_PHILOX_KEY1) {
        for (int l = 0; l < WIDE; l++) {
            const uint64_t a = (uint64_t)RC_PHILOX_MUL0 * words[0][l], b = (uint64_t)RC_PHILOX_MUL1 * words[2][l];
            words[0][l] = (uint32_t)(b >> 32) ^ words[1][l] ^ k0;
            words[1][l] = (uint32_t)b;
            words[2][l] = (uint32_t)(a >> 32) ^ words[3][l] ^ k1;
            words[3][l] = (uint32_t)a;
        }
    }
}

static void dropout_mask(const rc_dropout *d, uint32_t sequence, uint32_t step, void *mask) {
    real *to = mask;
    if (d->p >= 1) {
        memset(to, 0, (size_t)d->units * sizeof(real));
        return;
    }
    const uint32_t threshold = (uint32_t)(d->p * 4294967296.0);
    const real kept = (real)(1.0 / (1.0 - d->p));
    for (ptrdiff_t first = 0; first < d->units; first += 4 * WIDE) {
        uint32_t words[4][WIDE];
        philox_group(d->key, (uint32_t)(first / (4 * WIDE)), step, sequence, words);
        const ptrdiff_t left = d->units - first < 4 * WIDE ? d->units - first : 4 * WIDE;
        for (ptrdiff_t u = 0; u < left; u++) to[first + u] = (&words[0][0])[u] >= threshold ? kept : 0;
    }
}

static const rc_dense dense_table = {
    .cross_entropy = cross_entropy,
    .pair_loss = pair_loss,
    .update = update,
    .sum_squares = sum_squares,
    .finite = finite_all,
    .scale = scale,
    .clamp = clamp,
    .gather = gather,
    .scatter_add = scatter_add,
    .dropout_mask = dropout_mask,
    .multiply = multiply_all,
    .log = log_all,
};
