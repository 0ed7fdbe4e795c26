/* The general path's products over rows, for one `real`; included by general_body.h only.
 *
 * Rows come as arrays of pointers, so that sequences which ended cost nothing. A product's order of sums depends on
 * its own length alone.
 */

typedef real NAME(lanes) __attribute__((vector_size(LANES * sizeof(real))));

/* *sum += a * b, lane by lane. */
static inline void NAME(multiply_add)(NAME(lanes) *sum, const real *a, const NAME(lanes) *b)
{
    NAME(lanes) v;
    memcpy(&v, a, sizeof v);
    *sum += v * *b;
}

/* The lanes' sum by one fixed tree, and the products of what was left over behind whole vectors. */
static inline real NAME(finish)(const NAME(lanes) *sum, size_t begin, size_t k, const real *a, const real *w)
{
    real lane[LANES], rest = 0;
    memcpy(lane, sum, sizeof lane);
    for (size_t i = begin; i < k; i++)
        rest += a[i] * w[i];
    for (size_t width = LANES / 2; width; width /= 2)
        for (size_t l = 0; l < width; l++)
            lane[l] += lane[l + width];
    return lane[0] + rest;
}

static inline void NAME(axpy)(size_t k, real scale, const real *v, real *y)
{
    for (size_t i = 0; i < k; i++)
        y[i] += scale * v[i];
}

/* c[m][at + j] += <a[m], w[j]> for `n` rows of w (n, k); four rows of a at a time share the loads of w. */
FOR_EACH_CPU
static void NAME(rows_dot)(size_t count, size_t n, size_t k, real *const *a, const real *w, real *const *c, size_t at)
{
    const size_t whole = k / LANES * LANES;
    NAME(lanes) v;
    size_t m = 0;
    for (; m + 4 <= count; m += 4)
        for (size_t j = 0; j < n; j++) {
            const real *row = w + j * k;
            NAME(lanes) s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
            for (size_t i = 0; i < whole; i += LANES) {
                memcpy(&v, row + i, sizeof v);
                NAME(multiply_add)(&s0, a[m] + i, &v);
                NAME(multiply_add)(&s1, a[m + 1] + i, &v);
                NAME(multiply_add)(&s2, a[m + 2] + i, &v);
                NAME(multiply_add)(&s3, a[m + 3] + i, &v);
            }
            c[m][at + j] += NAME(finish)(&s0, whole, k, a[m], row);
            c[m + 1][at + j] += NAME(finish)(&s1, whole, k, a[m + 1], row);
            c[m + 2][at + j] += NAME(finish)(&s2, whole, k, a[m + 2], row);
            c[m + 3][at + j] += NAME(finish)(&s3, whole, k, a[m + 3], row);
        }
    for (; m < count; m++)
        for (size_t j = 0; j < n; j++) {
            NAME(lanes) s0 = {0};
            for (size_t i = 0; i < whole; i += LANES) {
                memcpy(&v, w + j * k + i, sizeof v);
                NAME(multiply_add)(&s0, a[m] + i, &v);
            }
            c[m][at + j] += NAME(finish)(&s0, whole, k, a[m], w + j * k);
        }
}

/* c[m] += sum_j a[m][at + j] w[j]: the transpose of rows_dot. */
FOR_EACH_CPU
static void NAME(rows_axpy)(size_t count, size_t n, size_t k, real *const *a, size_t at, const real *w,
                            real *const *c)
{
    for (size_t m = 0; m < count; m++)
        for (size_t j = 0; j < n; j++)
            NAME(axpy)(k, a[m][at + j], w + j * k, c[m]);
}

/* dw[j] += sum_m a[m][at + j] x[m]: the gradient of rows_dot's w. */
FOR_EACH_CPU
static void NAME(rows_outer)(size_t count, size_t n, size_t k, real *const *a, size_t at, real *const *x, real *dw)
{
    for (size_t j = 0; j < n; j++)
        for (size_t m = 0; m < count; m++)
            NAME(axpy)(k, a[m][at + j], x[m], dw + j * k);
}

/* ---- where things stand --------------------------------------------------------------------------------- */
