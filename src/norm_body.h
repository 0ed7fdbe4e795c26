/* Layer normalisation inside the cells (Ba et al. 2016; docs/equations.md), forward and backward side by side. Sums run
 * in 16 virtual lanes that one tree adds up, so that a row's bits are those of every instruction set.
 */

INLINE wide w_load_at(const real *p, ptrdiff_t j, ptrdiff_t n) {
    return n - j >= WIDE ? w_load(p + j) : w_load_n(p + j, n - j);
}

static real norm_sum(const real *x, ptrdiff_t n) {
    wide sum = w_set1(0);
    for (ptrdiff_t j = 0; j < n; j += WIDE) sum = w_add(sum, w_load_at(x, j, n));
    return w_sum(sum);
}

/* The sum of (x - mean)^2. */
static real norm_squares(const real *x, ptrdiff_t n, real mean) {
    const wide zero = w_set1(0), shift = w_set1(mean);
    wide sum = zero;
    for (ptrdiff_t j = 0; j < n; j += WIDE) {
        wide d = w_sub(w_load_at(x, j, n), shift);
        if (n - j < WIDE) d = w_first(n - j, d, zero);
        sum = w_fma(d, d, sum);
    }
    return w_sum(sum);
}

INLINE const real *of_gate(const void *parameter, const rc_norm *s, int g) {
    return (const real *)parameter + g * s->units;
}

static void norm_gate(const rc_norm *s, ptrdiff_t row, int g) {
    const ptrdiff_t n = s->units, step = s->gates * LANES;
    const real *x = row_of(&s->x, row) + g * LANES, *gain = of_gate(s->gain, s, g), *shift = of_gate(s->shift, s, g);
    real *y = row_of(&s->y, row) + g * LANES, *hat = row_of(&s->hat, row) + g * n;
    for (ptrdiff_t j = 0; j * LANES < n; j++) store_units(hat, j, n, v_load(x + j * step));
    const real mean = norm_sum(hat, n) / (real)n, variance = norm_squares(hat, n, mean) / (real)n;
    const vf middle = v_set1(mean), rstd = v_div(v_set1(1), v_sqrt(v_set1(variance + (real)RC_NORM_EPSILON)));
    v_store_n(row_of(&s->rstd, row) + g, rstd, 1);
    for (ptrdiff_t j = 0; j * LANES < n; j++) {
        store_units(hat, j, n, v_mul(v_sub(load_units(hat, j, n), middle), rstd));
        v_store(y + j * step, v_fma(load_units(hat, j, n), load_units(gain, j, n), load_units(shift, j, n)));
    }
}

/* With d = dy gain:  dx = rstd (d - mean(d) - hat mean(d hat)) */
static void norm_gate_back(const rc_norm *s, ptrdiff_t row, int g) {
    const ptrdiff_t n = s->units;
    const real *dy = row_of(&s->dy, row) + g * n, *hat = row_of(&s->hat, row) + g * n, *gain = of_gate(s->gain, s, g);
    real *dx = row_of(&s->dx, row) + g * n;
    wide sum = w_set1(0), product = w_set1(0);
    for (ptrdiff_t j = 0; j < n; j += WIDE) {
        const wide d = w_mul(w_load_at(dy, j, n), w_load_at(gain, j, n));
        sum = w_add(sum, d);
        product = w_fma(d, w_load_at(hat, j, n), product);
    }
    const vf middle = v_set1(w_sum(sum) / (real)n), slope = v_set1(w_sum(product) / (real)n);
    const vf rstd = v_set1(row_of(&s->rstd, row)[g]);
    for (ptrdiff_t j = 0; j * LANES < n; j++) {
        const vf d = v_mul(load_units(dy, j, n), load_units(gain, j, n));
        const vf rest = v_fnma(load_units(hat, j, n), slope, v_sub(d, middle));
        store_units(dx, j, n, v_fma(rest, rstd, s->accumulate ? load_units(dx, j, n) : v_zero()));
    }
}

/* ---------------------------------------------------------- an LSTM's output from its normalised c:  h = o tanh(y) */

INLINE vf output_gate(const rc_norm *s, ptrdiff_t row, ptrdiff_t j) {
    return v_load(row_of(&s->saved, row) + (j * 4 + 3) * LANES);
}

/* From vector j on, as many as have their tanh taken side by side. */
INLINE int norm_count(const rc_norm *s, ptrdiff_t j) {
    const ptrdiff_t left = rc_vectors(s->units, LANES) - j;
    return left < SIDE_BY_SIDE ? (int)left : SIDE_BY_SIDE;
}

static void norm_output(const rc_norm *s, ptrdiff_t row) {
    for (ptrdiff_t j = 0; j * LANES < s->units; j += SIDE_BY_SIDE) {
        const int count = norm_count(s, j);
        vf y[SIDE_BY_SIDE];
        for (int i = 0; i < count; i++) y[i] = v_load(unit_of(&s->y, row, j + i));
        tanh_all(y, count);
        for (int i = 0; i < count; i++) v_store(unit_of(&s->y, row, j + i), v_mul(output_gate(s, row, j + i), y[i]));
    }
}

static void norm_vector_back(const rc_norm *s, ptrdiff_t row, ptrdiff_t j, vf tanh_y) {
    const vf o = output_gate(s, row, j), dh = v_load(unit_of(&s->dh, row, j));
    store_units(row_of(&s->dz, row), j, s->units, v_mul(v_mul(dh, tanh_y), d_sigmoid(o)));
    store_units(row_of(&s->dy, row), j, s->units, v_mul(v_mul(dh, o), d_tanh(tanh_y)));
    v_store(unit_of(&s->dh, row, j), v_zero());
}

static void norm_output_back(const rc_norm *s, ptrdiff_t row) {
    const ptrdiff_t n = s->units;
    for (ptrdiff_t j = 0; j * LANES < n; j += SIDE_BY_SIDE) {
        const int count = norm_count(s, j);
        vf y[SIDE_BY_SIDE];
        for (int i = 0; i < count; i++) {
            const vf hat = load_units(row_of(&s->hat, row), j + i, n);
            y[i] = v_fma(hat, load_units(s->gain, j + i, n), load_units(s->shift, j + i, n));
        }
        tanh_all(y, count);
        for (int i = 0; i < count; i++) norm_vector_back(s, row, j + i, y[i]);
    }
}

/* ------------------------------------------------------------------------------------------------------ all rows */

static void norm(const rc_norm *s) {
    for (ptrdiff_t row = 0; row < s->rows; row++) {
        for (int g = 0; g < s->gates; g++) norm_gate(s, row, g);
        if (has_rows(&s->saved)) norm_output(s, row);
    }
}

static void norm_back(const rc_norm *s) {
    for (ptrdiff_t row = 0; row < s->rows; row++) {
        if (has_rows(&s->saved)) norm_output_back(s, row);
        for (int g = 0; g < s->gates; g++) norm_gate_back(s, row, g);
    }
}
