/* Row work of attention and decoding (softmax, sums, search for the largest), for float and double.
 *
 * Sums run in 16 lanes that one fixed tree adds up, so a row's result depends on nothing but the row. The exponential
 * and tanh are the kernels' own (rc_kernels.activate), and so have the same bits as inside a layer.
 */
#ifndef RC_ROWS_H
#define RC_ROWS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

enum { RC_EXP = 0, RC_TANH = 2, RC_LANES = 16, RC_PIECE = 1024 };

/* A continuation of a hypothesis: its total log-probability, the hypothesis (row) and the token. */
typedef struct {
    double score;
    int64_t row, token;
} rc_candidate;

/* The order of a beam: better scores first, then the lower row and token, so that ties have one outcome. */
static inline int rc_before(const rc_candidate *a, const rc_candidate *b) {
    if (a->score != b->score) return a->score > b->score;
    return a->row != b->row ? a->row < b->row : a->token < b->token;
}

/* Put `one` into `best` (sorted, `count` of at most `most`); returns the new count. */
static inline ptrdiff_t rc_keep(rc_candidate *best, ptrdiff_t count, ptrdiff_t most, rc_candidate one) {
    ptrdiff_t at = count < most ? count : most - 1;
    if (count == most && !rc_before(&one, &best[most - 1])) return count;
    while (at > 0 && rc_before(&one, &best[at - 1])) {
        best[at] = best[at - 1];
        at--;
    }
    best[at] = one;
    return count < most ? count + 1 : most;
}

#define REAL float
#define NAME(f) f##_f32
#include "rows_body.h"
#undef REAL
#undef NAME
#define REAL double
#define NAME(f) f##_f64
#include "rows_body.h"
#undef REAL
#undef NAME

/* The same by the kernels' element size. */
#define RC_BY_SIZE(k, f, ...) ((k)->itemsize == sizeof(float) ? f##_f32(__VA_ARGS__) : f##_f64(__VA_ARGS__))

static inline void rc_softmax(const rc_kernels *k, void *x, ptrdiff_t rows, ptrdiff_t n) {
    RC_BY_SIZE(k, softmax, k, x, rows, n);
}
static inline void rc_softmax_back(const rc_kernels *k, const void *p, void *dp, ptrdiff_t rows, ptrdiff_t n) {
    RC_BY_SIZE(k, softmax_back, p, dp, rows, n);
}
static inline void rc_transpose(const rc_kernels *k, const void *x, ptrdiff_t rows, ptrdiff_t n, void *y) {
    RC_BY_SIZE(k, transpose, x, rows, n, y);
}
static inline void rc_additive(const rc_kernels *k, const void *query, const void *keys, const void *v,
                               ptrdiff_t sources, ptrdiff_t n, void *work, void *scores) {
    RC_BY_SIZE(k, additive, k, query, keys, v, sources, n, work, scores);
}
static inline void rc_additive_back(const rc_kernels *k, const void *query, const void *keys, const void *v,
                                    const void *dscores, ptrdiff_t sources, ptrdiff_t n, void *work, void *dquery,
                                    void *dkeys, void *dv) {
    RC_BY_SIZE(k, additive_back, k, query, keys, v, dscores, sources, n, work, dquery, dkeys, dv);
}
static inline void rc_tanh_back(const rc_kernels *k, const void *y, void *dy, ptrdiff_t n) {
    RC_BY_SIZE(k, tanh_back, y, dy, n);
}
static inline double rc_log_sum(const rc_kernels *k, const void *x, ptrdiff_t n, double *top) {
    return RC_BY_SIZE(k, log_sum, k, x, n, top);
}
static inline ptrdiff_t rc_best(const rc_kernels *k, const void *x, ptrdiff_t n, int64_t row, double base,
                                rc_candidate *best, ptrdiff_t count, ptrdiff_t most) {
    return RC_BY_SIZE(k, best, x, n, row, base, best, count, most);
}
static inline double rc_get(const rc_kernels *k, const void *x, ptrdiff_t i) {
    return k->itemsize == sizeof(float) ? (double)((const float *)x)[i] : ((const double *)x)[i];
}
static inline void rc_set(const rc_kernels *k, void *x, ptrdiff_t i, double value) {
    if (k->itemsize == sizeof(float)) ((float *)x)[i] = (float)value;
    else ((double *)x)[i] = value;
}

#endif
