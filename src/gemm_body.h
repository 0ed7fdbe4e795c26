/* Packing, plain products and weight gradients. */

static void pack(const rc_shape *shape, const void *src, ptrdiff_t column_stride, ptrdiff_t row_stride, void *packed) {
    const real *from = src;
    real *to = packed;
    const ptrdiff_t vectors = rc_vectors(shape->units, LANES), panels = rc_panels(shape, LANES);
    for (ptrdiff_t p = 0; p < panels; p++) {
        const ptrdiff_t left = vectors - 4 * p;
        const int count = shape->gates > 1 ? shape->gates : left < 4 ? (int)left : 4;
        for (ptrdiff_t k = 0; k < shape->k; k++) {
            for (int v = 0; v < count; v++, to += LANES) {
                const ptrdiff_t gate = shape->gates > 1 ? v : 0;
                const ptrdiff_t unit = (shape->gates > 1 ? p : 4 * p + v) * LANES;
                const real *column = from + (gate * shape->units + unit) * column_stride + k * row_stride;
                const ptrdiff_t valid = shape->units - unit < LANES ? shape->units - unit : LANES;
                for (ptrdiff_t l = 0; l < valid; l++) to[l] = column[l * column_stride];
                for (ptrdiff_t l = valid; l < LANES; l++) to[l] = 0;
            }
        }
    }
}

static void pack_bias(const rc_shape *shape, const void *a, const void *b, void *row) {
    const real *pa = a, *pb = b;
    const ptrdiff_t vectors = rc_vectors(shape->units, LANES);
    real *to = row;
    for (ptrdiff_t j = 0; j < vectors; j++) {
        for (int g = 0; g < shape->gates; g++, to += LANES) {
            for (ptrdiff_t l = 0; l < LANES; l++) {
                ptrdiff_t unit = j * LANES + l, i = g * shape->units + unit;
                to[l] = unit < shape->units ? (pa ? pa[i] : 0) + (pb ? pb[i] : 0) : 0;
            }
        }
    }
}

INLINE vf gemm_start(const rc_gemm *g, ptrdiff_t row, ptrdiff_t vector) {
    if (g->bias) return v_load((const real *)g->bias + vector * LANES);
    if (!g->accumulate) return v_zero();
    return g->padded ? v_load(unit_of(&g->c, row, vector)) : load_or_zero(&g->c, row, vector, g->shape.units);
}

INLINE vf tile_start(enum kind kind, const void *job, ptrdiff_t row, ptrdiff_t panel, int v) {
    if (kind != GEMM) return step_start(kind, job, row, panel, v);
    const rc_gemm *g = job;
    return gemm_start(g, row, panel * panel_vectors(&g->shape) + v);
}

INLINE void gemm_finish(const rc_gemm *g, ptrdiff_t row, ptrdiff_t panel, int vectors, const vf *z) {
    const ptrdiff_t first = panel * panel_vectors(&g->shape);
    real *c = row_of(&g->c, row);
    UNROLL for (int v = 0; v < vectors; v++) {
        if (g->padded) v_store(c + (first + v) * LANES, z[v]);
        else store_units(c, first + v, g->shape.units, z[v]);
    }
}

INLINE void tile_finish(enum kind kind, const void *job, ptrdiff_t row, ptrdiff_t panel, int rows, int panels,
                        int vectors, vf z[][4]) {
    const int tiles = rows * panels; /* one of the two is 1 */
    if (kind == GEMM) {
        UNROLL for (int i = 0; i < tiles; i++)
            gemm_finish(job, row + (panels == 1 ? i : 0), panel + (panels == 1 ? 0 : i), vectors, z[i]);
        return;
    }
    vf by_gate[4 * MAX_ROWS];
    UNROLL for (int v = 0; v < vectors; v++) {
        UNROLL for (int i = 0; i < tiles; i++) by_gate[v * tiles + i] = z[i][v];
    }
    step_finish(job, row, panel, tiles, panels == 1, vectors, by_gate);
}

static void gemm(const rc_gemm *job) {
    const product g = {&job->shape, job->packed, &job->a, job, job->row_begin, job->row_end, job->panel_begin,
                       job->panel_end, 1, job->backwards};
    if (job->shape.gates == 3) run_gates(GEMM, 3, &g);
    else run_columns(GEMM, &g);
}

/* ------------------------------------------------------------------------------------------- weight gradients */

#define OUTER_ROWS (TILE_VECTORS / 4)

/* c[m][v] += sum_k a[k][m] * x[k][v]: `tail` elements in the last vector. */
INLINE void outer_tile(const int rows, const int vectors, const int whole, const rc_outer *o, ptrdiff_t m,
                       ptrdiff_t n, ptrdiff_t tail) {
    vf acc[OUTER_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[r][v] = v_zero();
    }
    const real *a = (const real *)o->a.base + m;
    for (ptrdiff_t k = 0; k < o->rows; k++, a += o->a.stride) {
        const real *x = row_of(&o->x, k) + n;
        vf w[4];
        UNROLL for (int v = 0; v < vectors; v++) {
            w[v] = whole || v + 1 < vectors ? v_load(x + v * LANES) : v_load_n(x + v * LANES, tail);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            vf b = v_set1(a[r]);
            UNROLL for (int v = 0; v < vectors; v++) acc[r][v] = v_fma(b, w[v], acc[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        real *c = (real *)o->c + (m + r) * o->c_stride + n;
        UNROLL for (int v = 0; v < vectors; v++, c += LANES) {
            if (whole || v + 1 < vectors) v_store(c, v_add(v_load(c), acc[r][v]));
            else v_store_n(c, v_add(v_load_n(c, tail), acc[r][v]), tail);
        }
    }
}

INLINE void outer_strip(const int rows, const rc_outer *o, ptrdiff_t m) {
    ptrdiff_t n = 0;
    for (; n + 4 * LANES <= o->n; n += 4 * LANES) outer_tile(rows, 4, 1, o, m, n, 0);
    const ptrdiff_t left = o->n - n;
    if (left > 3 * LANES) outer_tile(rows, 4, 0, o, m, n, left - 3 * LANES);
    else if (left > 2 * LANES) outer_tile(rows, 3, 0, o, m, n, left - 2 * LANES);
    else if (left > LANES) outer_tile(rows, 2, 0, o, m, n, left - LANES);
    else if (left > 0) outer_tile(rows, 1, 0, o, m, n, left);
}

static void outer(const rc_outer *o) {
    ptrdiff_t m = o->m_begin;
    for (; m + OUTER_ROWS <= o->m_end; m += OUTER_ROWS) outer_strip(OUTER_ROWS, o, m);
    switch (o->m_end - m) {
    case 1: outer_strip(1, o, m); break;
    case 2: outer_strip(2, o, m); break;
#if OUTER_ROWS > 3
    case 3: outer_strip(3, o, m); break;
    case 4: outer_strip(4, o, m); break;
    case 5: outer_strip(5, o, m); break;
#endif
    default: break;
    }
}

static void column_sums(const rc_rows *a, const rc_rows *x, ptrdiff_t rows, void *sum, ptrdiff_t begin,
                        ptrdiff_t end) {
    real *to = sum;
    for (ptrdiff_t j = begin; j < end; j += LANES) {
        const ptrdiff_t left = end - j < LANES ? end - j : LANES;
        vf acc = v_zero();
        for (ptrdiff_t i = 0; i < rows; i++) {
            const vf one = load_units(row_of(a, i) + j, 0, left);
            acc = x ? v_fma(one, load_units(row_of(x, i) + j, 0, left), acc) : v_add(acc, one);
        }
        v_store_n(to + j, v_add(v_load_n(to + j, left), acc), left);
    }
}
