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

INLINE void gemm_finish(const rc_gemm *g, ptrdiff_t row, ptrdiff_t panel, int vectors, const vf *z, int next) {
    const ptrdiff_t first = panel * panel_vectors(&g->shape);
    real *c = row_of(&g->c, row);
    UNROLL for (int v = 0; v < vectors; v++) {
        if (g->padded) v_store(c + (first + v) * LANES, z[v * next]);
        else store_units(c, first + v, g->shape.units, z[v * next]);
    }
}

INLINE void tile_finish(enum kind kind, const void *job, ptrdiff_t row, ptrdiff_t panel, int rows, int panels,
                        int vectors, vf *z) {
    if (kind != GEMM) {
        step_finish(job, row, panel, rows, panels, vectors, z);
        return;
    }
    UNROLL for (int t = 0; t < rows * panels; t++)
        gemm_finish(job, row + t % rows, panel + t / rows, vectors, z + t, rows * panels);
}

static void gemm(const rc_gemm *job) {
    const product g = {&job->shape, job->packed, &job->a, job, job->row_begin, job->row_end, job->panel_begin,
                       job->panel_end, 1, job->backwards};
    run(GEMM, &g);
}

/* ------------------------------------------------------------------------------------------- weight gradients */

#define OUTER_ROWS (TILE_VECTORS / 4)
#define OUTER_K 128 /* rows that one chain of a sum spans, on every instruction set: a tile's part of x stays in L1 */
#define AHEAD_APART 16 /* rows of a to fetch ahead: they lie apart, so that the processor does not do it by itself */

/* Columns [n, n + 4 vectors) of rows [k, k + count) of x, one after the other: however far apart the rows lie, and
 * whatever their number is a multiple of, the tiles read them in order and aligned. Zeros follow the last column. */
static void pack_columns(const rc_outer *o, ptrdiff_t k, ptrdiff_t count, ptrdiff_t n, int vectors, ptrdiff_t tail,
                         real *to) {
    for (ptrdiff_t i = 0; i < count; i++) {
        const real *x = row_of(&o->x, k + i) + n;
        for (int v = 0; v < vectors; v++, to += LANES)
            v_store(to, v + 1 < vectors ? v_load(x + v * LANES) : v_load_n(x + v * LANES, tail));
    }
}

/* c[m][v] += sum_k a[k][m] * x[k][v] over `count` rows k: `tail` elements in the last vector. */
INLINE void outer_tile(const int rows, const int vectors, const rc_outer *o, const real *a, const real *x,
                       ptrdiff_t count, ptrdiff_t m, ptrdiff_t n, ptrdiff_t tail) {
    vf acc[OUTER_ROWS][4];
    real *c = (real *)o->c + m * o->c_stride + n;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            acc[r][v] = v_zero();
            __builtin_prefetch(c + r * o->c_stride + v * LANES, 1);
        }
    }
    TWICE for (ptrdiff_t k = 0; k < count; k++, a += o->a.stride, x += vectors * LANES) {
        vf w[4];
        __builtin_prefetch(a + AHEAD_APART * o->a.stride);
        UNROLL for (int v = 0; v < vectors; v++) w[v] = v_load(x + v * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            vf b = v_set1(a[r]);
            UNROLL for (int v = 0; v < vectors; v++) acc[r][v] = v_fma(b, w[v], acc[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            real *to = c + r * o->c_stride + v * LANES;
            if (v + 1 < vectors || tail == LANES) v_store(to, v_add(v_load(to), acc[r][v]));
            else v_store_n(to, v_add(v_load_n(to, tail), acc[r][v]), tail);
        }
    }
}

/* All m of one block of k and columns. */
#define OUTER_STRIP(vectors) \
    static __attribute__((noinline)) void outer_strip_##vectors(const rc_outer *o, ptrdiff_t k, const real *x, \
                                                                ptrdiff_t count, ptrdiff_t n, ptrdiff_t tail) { \
        const real *a = (const real *)o->a.base + k * o->a.stride; \
        ptrdiff_t m = o->m_begin; \
        for (; m + OUTER_ROWS <= o->m_end; m += OUTER_ROWS) \
            outer_tile(OUTER_ROWS, vectors, o, a + m, x, count, m, n, tail); \
        switch (o->m_end - m) { \
        case 1: outer_tile(1, vectors, o, a + m, x, count, m, n, tail); break; \
        case 2: outer_tile(2, vectors, o, a + m, x, count, m, n, tail); break; \
        OUTER_REST(vectors) \
        default: break; \
        } \
    }
#if OUTER_ROWS > 3
#define OUTER_REST(vectors) \
    case 3: outer_tile(3, vectors, o, a + m, x, count, m, n, tail); break; \
    case 4: outer_tile(4, vectors, o, a + m, x, count, m, n, tail); break; \
    case 5: outer_tile(5, vectors, o, a + m, x, count, m, n, tail); break;
#else
#define OUTER_REST(vectors)
#endif
OUTER_STRIP(1)
OUTER_STRIP(2)
OUTER_STRIP(3)
OUTER_STRIP(4)

static void outer(const rc_outer *o) {
    _Alignas(64) real x[OUTER_K * 4 * LANES];
    for (ptrdiff_t k = 0; k < o->rows; k += OUTER_K) {
        const ptrdiff_t count = o->rows - k < OUTER_K ? o->rows - k : OUTER_K;
        for (ptrdiff_t n = 0; n < o->n; n += 4 * LANES) {
            const ptrdiff_t left = rc_vectors(o->n - n, LANES);
            const int vectors = left < 4 ? (int)left : 4;
            const ptrdiff_t end = o->n - n - (vectors - 1) * LANES, tail = end < LANES ? end : LANES;
            pack_columns(o, k, count, n, vectors, tail, x);
            switch (vectors) {
            case 1: outer_strip_1(o, k, x, count, n, tail); break;
            case 2: outer_strip_2(o, k, x, count, n, tail); break;
            case 3: outer_strip_3(o, k, x, count, n, tail); break;
            default: outer_strip_4(o, k, x, count, n, tail);
            }
        }
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
