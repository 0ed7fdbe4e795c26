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
#define STRIP (4 * LANES)
#define OUTER_K 128    /* rows that one chain of a sum spans, on every instruction set: a tile's x stays in L1 */
#define AHEAD_APART 16 /* rows of a to fetch ahead: they lie apart, so that the processor does not do it by itself */

/* A block of x that is packed: `count` rows from k on, columns from n on, a strip of 4 vectors after the other. */
typedef struct {
    const rc_outer *o;
    const real *x;
    ptrdiff_t k, count, n, strips;
    ptrdiff_t tail; /* elements in the last vector of a strip */
} outer_block;

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
        const real *column[OUTER_ROWS];
        UNROLL for (int r = 0; r < rows; r++) column[r] = a + r;
        __builtin_prefetch(a + AHEAD_APART * o->a.stride);
        add_products(rows, vectors, column, 0, x, acc);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            real *to = c + r * o->c_stride + v * LANES;
            if (v + 1 < vectors || tail == LANES) v_store(to, v_add(v_load(to), acc[r][v]));
            else v_store_n(to, v_add(v_load_n(to, tail), acc[r][v]), tail);
        }
    }
}

/* Rows [m, m_end) of C, so many at a time, through all strips of a block while their part of a is in L1. */
#define OUTER_TILES(rows, vectors) \
    static __attribute__((noinline)) void outer_##rows##_##vectors(const outer_block *b, ptrdiff_t m, \
                                                                   ptrdiff_t m_end) { \
        const outer_block own = *b; \
        const rc_outer o = *own.o; \
        for (; rows <= OUTER_ROWS && m + rows <= m_end; m += rows) { \
            const real *x = own.x; \
            for (ptrdiff_t s = 0; s < own.strips; s++) { \
                for (ptrdiff_t i = 0; i < own.count; i += OUTER_K) { \
                    const ptrdiff_t count = own.count - i < OUTER_K ? own.count - i : OUTER_K; \
                    const real *a = (const real *)o.a.base + (own.k + i) * o.a.stride + m; \
                    outer_tile(rows, vectors, &o, a, x, count, m, own.n + s * STRIP, own.tail); \
                    x += count * vectors * LANES; \
                } \
            } \
        } \
    }
#define OUTER_ALL(rows) OUTER_TILES(rows, 1) OUTER_TILES(rows, 2) OUTER_TILES(rows, 3) OUTER_TILES(rows, 4)
#define OUTER_NAMES(rows) {0, outer_##rows##_1, outer_##rows##_2, outer_##rows##_3, outer_##rows##_4}
OUTER_ALL(1) OUTER_ALL(2) OUTER_ALL(3) OUTER_ALL(4) OUTER_ALL(5) OUTER_ALL(6)
static void (*const outer_tiles[][5])(const outer_block *, ptrdiff_t, ptrdiff_t) = {
    {0}, OUTER_NAMES(1), OUTER_NAMES(2), OUTER_NAMES(3), OUTER_NAMES(4), OUTER_NAMES(5), OUTER_NAMES(6)};

/* Strips of so many vectors, all rows of C. */
static void outer_strips(const outer_block *b, int vectors) {
    const ptrdiff_t begin = b->o->m_begin, end = b->o->m_end, rest = (end - begin) % OUTER_ROWS;
    if (b->strips <= 0) return;
    outer_tiles[OUTER_ROWS][vectors](b, begin, end);
    if (rest) outer_tiles[rest][vectors](b, end - rest, end);
}

/* One block: columns [n, end) of x are packed to `to`, whole strips first, then what is left. */
static void outer_columns(const rc_outer *o, ptrdiff_t k, ptrdiff_t count, ptrdiff_t n, ptrdiff_t end, real *to) {
    const ptrdiff_t strips = (end - n) / STRIP, left = (end - n) % STRIP;
    const int vectors = (int)rc_vectors(left, LANES);
    const outer_block whole = {o, to, k, count, n, strips, LANES};
    for (ptrdiff_t s = 0; s < strips; s++, to += count * STRIP) pack_columns(o, k, count, n + s * STRIP, 4, LANES, to);
    outer_strips(&whole, 4);
    if (left) {
        const outer_block last = {o, to, k, count, n + strips * STRIP, 1, left - (vectors - 1) * LANES};
        pack_columns(o, k, count, last.n, vectors, last.tail, to);
        outer_strips(&last, vectors);
    }
}

/* With memory for it, x comes in blocks that stay in L2, so that a and C are read once a block and not once a strip:
 * a tenth of the time where they lie in L3. */
static void outer(const rc_outer *o) {
    _Alignas(64) real strip[OUTER_K * STRIP];
    const int large = o->columns && (o->m_end - o->m_begin) * o->n >= RC_OUTER_LARGE;
    const ptrdiff_t most_rows = large ? RC_OUTER_ROWS : OUTER_K, most = large ? RC_OUTER_COLUMNS : STRIP;
    const ptrdiff_t strips = (o->n + STRIP - 1) / STRIP, blocks = (o->n + most - 1) / most;
    const ptrdiff_t each = blocks ? (strips + blocks - 1) / blocks * STRIP : 0; /* columns of a block, evenly */
    for (ptrdiff_t n = 0; n < o->n; n += each) {
        const ptrdiff_t end = o->n - n < each ? o->n : n + each;
        for (ptrdiff_t k = 0; k < o->rows; k += most_rows)
            outer_columns(o, k, o->rows - k < most_rows ? o->rows - k : most_rows, n, end,
                          large ? o->columns : strip);
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
