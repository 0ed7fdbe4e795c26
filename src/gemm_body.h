/* Packing, plain products and weight gradients. */
#include <string.h>

static void pack(const rc_shape *shape, const void *src, ptrdiff_t column_stride, ptrdiff_t row_stride, void *packed) {
    const real *from = src;
    real *to = packed;
    const ptrdiff_t panels = rc_panels(shape, LANES);
    for (ptrdiff_t p = 0; p < panels; p++) {
        const ptrdiff_t width = is_half(shape, p) ? HALF_LANES : LANES; /* of a gate, or of a neighbouring vector */
        const int count = (int)(vectors_of(shape, p) * LANES / width);
        for (ptrdiff_t k = 0; k < shape->k; k++) {
            for (int v = 0; v < count; v++, to += width) {
                const ptrdiff_t gate = shape->gates > 1 ? v : 0;
                const ptrdiff_t unit = (shape->gates > 1 ? p : 4 * p + v) * LANES;
                const real *column = from + (gate * shape->units + unit) * column_stride + k * row_stride;
                const ptrdiff_t left = gate < shape->gates ? shape->units - unit : 0;
                const ptrdiff_t valid = left < width ? left : width;
                for (ptrdiff_t l = 0; l < valid; l++) to[l] = column[l * column_stride];
                for (ptrdiff_t l = valid; l < width; l++) to[l] = 0;
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

INLINE ptrdiff_t first_column(const rc_gemm *g, ptrdiff_t panel) { return panel * panel_vectors(&g->shape) * LANES; }

/* Elements of a panel's last vector that C has: the tile reads and writes no others. */
INLINE ptrdiff_t last_columns(const rc_gemm *g, ptrdiff_t panel, const int vectors) {
    const ptrdiff_t left = g->shape.units - first_column(g, panel) - (vectors - 1) * LANES;
    return g->padded || left > LANES ? LANES : left;
}

INLINE void gemm_start(const rc_gemm *g, ptrdiff_t row, ptrdiff_t panel, const int rows, const int panels,
                       const int vectors, vf acc[][4]) {
    const ptrdiff_t first = first_column(g, panel), last = last_columns(g, panel + panels - 1, vectors);
    real *c[MAX_ROWS];
    if (g->bias) {
        EACH_VECTOR(p, r, v) acc[p * rows + r][v] = v_load((const real *)g->bias + first + (p * vectors + v) * LANES);
    } else if (!g->accumulate) {
        EACH_VECTOR(p, r, v) acc[p * rows + r][v] = v_zero();
    } else {
        rows_of(&g->c, row, rows, c);
        EACH_VECTOR(p, r, v) {
            const ptrdiff_t n = p < panels - 1 || v < vectors - 1 ? LANES : last;
            acc[p * rows + r][v] = load_units(c[r] + first + (p * vectors + v) * LANES, 0, n);
        }
    }
}

INLINE void gemm_finish(const rc_gemm *g, ptrdiff_t row, ptrdiff_t panel, const int rows, const int panels,
                        const int vectors, vf acc[][4]) {
    const ptrdiff_t first = first_column(g, panel), last = last_columns(g, panel + panels - 1, vectors);
    real *c[MAX_ROWS];
    rows_of(&g->c, row, rows, c);
    EACH_VECTOR(p, r, v) {
        const ptrdiff_t n = p < panels - 1 || v < vectors - 1 ? LANES : last;
        store_units(c[r] + first + (p * vectors + v) * LANES, 0, n, acc[p * rows + r][v]);
    }
}

/* Fetches for writing the lines of some vectors; where they begin within a line, they end in one more. */
INLINE void store_fetch(const real *c, const int vectors) {
    UNROLL for (int v = 0; v < vectors; v++) __builtin_prefetch(c + v * LANES, 1);
    __builtin_prefetch(c + vectors * LANES - 1, 1);
}

INLINE void gemm_fetch(const void *job, ptrdiff_t row, ptrdiff_t panel, const int vectors) {
    const rc_gemm *g = job;
    const real *c = row_of(&g->c, row) + first_column(g, panel);
    store_fetch(c, vectors);
}

INLINE void tile_start(enum kind kind, const void *job, ptrdiff_t row, ptrdiff_t panel, int rows, int panels,
                       int vectors, vf acc[][4]) {
    if (kind == GEMM) gemm_start(job, row, panel, rows, panels, vectors, acc);
    else step_start(kind, job, row, panel, rows, panels, vectors, acc);
}

INLINE void tile_finish(enum kind kind, const void *job, ptrdiff_t row, ptrdiff_t panel, int rows, int panels,
                        int vectors, vf acc[][4]) {
    if (kind == GEMM) {
        gemm_finish(job, row, panel, rows, panels, vectors, acc);
        return;
    }
    vf z[4 * MAX_ROWS];
    EACH_VECTOR(p, r, v) z[(v * panels + p) * rows + r] = acc[p * rows + r][v];
    step_finish(kind, job, (place){row, panel, rows, panels}, vectors, z);
}

static void gemm(const rc_gemm *job) {
    product g = {.shape = &job->shape, .packed = job->packed, .a = &job->a, .job = job, .chains = 1,
                 .row_begin = job->row_begin, .row_end = job->row_end, .panel_begin = job->panel_begin,
                 .panel_end = job->panel_end, .backwards = job->backwards, .far = job->far};
    plan_run(GEMM, &g);
    run(GEMM, &g);
}

/* ------------------------------------------------------------------------------------------- weight gradients */

#define OUTER_ROWS (TILE_VECTORS / 4)
#define STRIP (4 * LANES)
#define AHEAD_APART 16 /* rows of a to fetch ahead: they lie apart, so that the processor does not do it by itself */

/* Four vectors of columns of x over a block of rows: `columns` of one side of the product, then the first `more` of
 * the side beside it; and where they are packed. */
typedef struct {
    const rc_outer *side;
    ptrdiff_t row, column, columns, more; /* `row` and `column` are the first */
    int vectors;
    real *packed;
} strip;

INLINE ptrdiff_t least_of(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* Columns of strips up to where the side beside begins: in the middle of a strip where that saves a vector. */
static ptrdiff_t own_columns(const rc_outer *o) {
    const ptrdiff_t n = o->n, beside = o->beside ? o->beside->n : 0;
    const int saves = rc_vectors(n + beside, LANES) < rc_vectors(n, LANES) + rc_vectors(beside, LANES);
    return saves ? n : (n + STRIP - 1) / STRIP * STRIP;
}

static ptrdiff_t strips_of(const rc_outer *o) {
    return (own_columns(o) + (o->beside ? o->beside->n : 0) + STRIP - 1) / STRIP;
}

/* Strip i, from row `row` of x on. */
static strip strip_at(const rc_outer *o, ptrdiff_t i, ptrdiff_t row, real *packed) {
    const ptrdiff_t own = own_columns(o), column = i * STRIP - (i * STRIP < own ? 0 : own);
    strip s = {i * STRIP < own ? o : o->beside, row, column, 0, 0, 4, packed};
    s.columns = least_of(s.side->n - column, STRIP);
    if (s.side == o && column + STRIP > own) s.more = least_of(column + STRIP - own, o->beside->n);
    s.vectors = (int)rc_vectors(s.columns + s.more, LANES);
    return s;
}

/* to <- n columns of a row of x */
INLINE void copy_columns(real *to, const real *x, ptrdiff_t n) {
    for (ptrdiff_t j = 0; j < rc_vectors(n, LANES); j++) store_units(to, j, n, load_units(x, j, n));
}

/* Row k of a strip to where it is packed: however far apart the rows of x lie, and whatever their number is a multiple
 * of, the tiles after the first read them in order and aligned. Zeros follow the last column. */
INLINE void pack_row(const strip *s, const int vectors, ptrdiff_t k) {
    const real *x = row_of(&s->side->x, s->row + k) + s->column;
    real *to = s->packed + k * vectors * LANES;
    if (s->more) {
        v_store(to + (vectors - 1) * LANES, v_zero());
        copy_columns(to, x, s->columns);
        copy_columns(to + s->columns, row_of(&s->side->beside->x, s->row + k), s->more);
        return;
    }
    UNROLL for (int v = 0; v < vectors; v++)
        v_store(to + v * LANES, load_units(x, v, v + 1 < vectors ? (v + 1) * LANES : s->columns));
}

/* acc[r][v] += sum_k a[k][r] * x[k][v] over k in [begin, end), with `fetch` of rows of a that lie apart; these go to
 * `packed`, too, and with `pack_x` the rows of x into their strip. */
INLINE void outer_products(const int rows, const int vectors, const int fetch, const int pack_x, const strip *s,
                           const real *a, ptrdiff_t a_stride, ptrdiff_t begin, ptrdiff_t end, real *packed,
                           vf acc[][4]) {
    real *column[OUTER_ROWS];
    const real *x = s->packed + begin * vectors * LANES;
    a += begin * a_stride;
    TWICE for (ptrdiff_t k = begin; k < end; k++, a += a_stride, x += vectors * LANES) {
        UNROLL for (int r = 0; r < rows; r++) column[r] = (real *)a + r;
        if (fetch) __builtin_prefetch(a + AHEAD_APART * a_stride);
        if (pack_x) pack_row(s, vectors, k);
        if (packed) memcpy(packed + k * OUTER_ROWS, a, (size_t)rows * sizeof(real));
        add_products(rows, vectors, column, 0, x, acc);
    }
}

INLINE void add_units(real *row, ptrdiff_t n, vf v) { store_units(row, 0, n, v_add(load_units(row, 0, n), v)); }

/* row <- row + n columns of x */
INLINE void add_columns(real *row, const real *x, ptrdiff_t n) {
    for (ptrdiff_t j = 0; j < rc_vectors(n, LANES); j++) add_units(row + j * LANES, n - j * LANES, load_units(x, j, n));
}

/* Rows of C from row m on += sums, of a strip that takes columns of both sides. */
static __attribute__((noinline)) void add_to_both(const strip *s, int rows, ptrdiff_t m, real (*sums)[STRIP]) {
    const rc_outer *beside = s->side->beside;
    real *c = (real *)s->side->c + m * s->side->c_stride + s->column, *d = (real *)beside->c + m * beside->c_stride;
    for (int r = 0; r < rows; r++, c += s->side->c_stride, d += beside->c_stride) {
        add_columns(c, sums[r], s->columns);
        add_columns(d, sums[r] + s->columns, s->more);
    }
}

/* C[m + r][v] += sum_k a[k][r] * x[k][v] over `count` rows k of a strip. With `packed` the tile's columns of a are left
 * there, row after row. */
INLINE void outer_tile(const int rows, const int vectors, const int pack_x, const strip *s, const real *a,
                       ptrdiff_t a_stride, ptrdiff_t count, ptrdiff_t m, real *packed) {
    vf acc[OUTER_ROWS][4];
    const ptrdiff_t c_stride = s->side->c_stride, piece = count / rows; /* as in multiply_far */
    real *c = (real *)s->side->c + m * c_stride + s->column, *to = c, sums[OUTER_ROWS][STRIP];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[r][v] = v_zero();
    }
    for (int r = 0; r < rows; r++, to += c_stride) {
        const ptrdiff_t begin = r * piece, end = r + 1 < rows ? begin + piece : count;
        store_fetch(to, vectors);
        if (packed) outer_products(rows, vectors, 1, pack_x, s, a, a_stride, begin, end, packed, acc);
        else if (a_stride == OUTER_ROWS) outer_products(rows, vectors, 0, pack_x, s, a, OUTER_ROWS, begin, end, 0, acc);
        else outer_products(rows, vectors, 1, pack_x, s, a, a_stride, begin, end, 0, acc);
    }
    if (s->more) {
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < vectors; v++) v_store(sums[r] + v * LANES, acc[r][v]);
        }
        add_to_both(s, rows, m, sums);
        return;
    }
    UNROLL for (int r = 0; r < rows; r++, c += c_stride) {
        UNROLL for (int v = 0; v < vectors; v++)
            add_units(c + v * LANES, v + 1 < vectors ? LANES : s->columns - v * LANES, acc[r][v]);
    }
}

typedef void outer_fn(const strip *s, const real *a, ptrdiff_t a_stride, ptrdiff_t count, ptrdiff_t m, real *packed);
#define OUTER_TILE(name, rows, vectors, pack_x) \
    static __attribute__((noinline)) void name(const strip *s, const real *a, ptrdiff_t a_stride, ptrdiff_t count, \
                                               ptrdiff_t m, real *packed) { \
        if (rows <= OUTER_ROWS) outer_tile(rows, vectors, pack_x, s, a, a_stride, count, m, packed); \
    }
#define OUTER_PAIR(rows, v) \
    OUTER_TILE(outer_##rows##_##v, rows, v, 0) OUTER_TILE(outer_##rows##_##v##_first, rows, v, 1)
#define OUTER_ALL(rows) OUTER_PAIR(rows, 1) OUTER_PAIR(rows, 2) OUTER_PAIR(rows, 3) OUTER_PAIR(rows, 4)
#define PAIR_NAMES(rows, v) {outer_##rows##_##v, outer_##rows##_##v##_first}
#define OUTER_NAMES(rows) \
    {{0}, PAIR_NAMES(rows, 1), PAIR_NAMES(rows, 2), PAIR_NAMES(rows, 3), PAIR_NAMES(rows, 4)}
OUTER_ALL(1) OUTER_ALL(2) OUTER_ALL(3) OUTER_ALL(4) OUTER_ALL(5) OUTER_ALL(6)
/* By rows, vectors, and whether it is the first tile of a strip, which packs it. */
static outer_fn *const outer_tiles[][5][2] = {
    {{0}}, OUTER_NAMES(1), OUTER_NAMES(2), OUTER_NAMES(3), OUTER_NAMES(4), OUTER_NAMES(5), OUTER_NAMES(6)};

/* C += A^T X over rows [k, k + count), for strips [first, last) of x, which are packed to `x`; a few rows of C at a
 * time go through all strips. Where those are many, their columns of a are packed, too: to take a line from every row
 * in each of them costs a tenth of the tiles' speed. The tiles that come first do both between their multiply-adds,
 * which hides it: beforehand it took 3 to 6 % of the time. */
static void outer_block(const rc_outer *o, ptrdiff_t k, ptrdiff_t count, ptrdiff_t first, ptrdiff_t last, real *x) {
    real packed[RC_OUTER_ROWS * OUTER_ROWS];
    strip strips[RC_OUTER_COLUMNS / STRIP];
    const int pack = last - first > 2;
    for (ptrdiff_t i = 0; i < last - first; i++) {
        strips[i] = strip_at(o, first + i, k, x);
        x += count * strips[i].vectors * LANES;
    }
    for (ptrdiff_t m = o->m_begin, rows; m < o->m_end; m += rows) {
        const real *a = (const real *)o->a.base + k * o->a.stride + m;
        rows = o->m_end - m < OUTER_ROWS ? o->m_end - m : OUTER_ROWS;
        for (const strip *s = strips; s < strips + (last - first); s++) {
            const int is_packed = pack && s > strips;
            outer_tiles[rows][s->vectors][m == o->m_begin](
                s, is_packed ? packed : a, is_packed ? OUTER_ROWS : o->a.stride, count, m,
                pack && !is_packed ? packed : 0);
        }
    }
}

/* With memory for it, x comes in blocks that stay in L2, so that a and C are read once a block and not once a strip:
 * a tenth of the time where they lie in L3. */
static void outer(const rc_outer *o) {
    _Alignas(64) real one[RC_OUTER_ROWS * STRIP];
    const ptrdiff_t n = o->n + (o->beside ? o->beside->n : 0), strips = strips_of(o);
    const int large = o->columns && (o->m_end - o->m_begin) * n >= RC_OUTER_LARGE;
    const ptrdiff_t most = large ? RC_OUTER_COLUMNS / STRIP : 1, blocks = (strips + most - 1) / most;
    const ptrdiff_t each = blocks ? (strips + blocks - 1) / blocks : 0; /* strips of a block, evenly */
    for (ptrdiff_t first = 0; first < strips; first += each) {
        const ptrdiff_t last = strips - first < each ? strips : first + each;
        for (ptrdiff_t k = 0; k < o->rows; k += RC_OUTER_ROWS)
            outer_block(o, k, o->rows - k < RC_OUTER_ROWS ? o->rows - k : RC_OUTER_ROWS, first, last,
                        large ? o->columns : one);
    }
}

/* The sums of `vectors` neighbouring columns side by side: one alone would wait for its own additions. */
INLINE void sums(const rc_rows *a, const rc_rows *x, ptrdiff_t rows, const int vectors, real *to, real *also,
                 ptrdiff_t j, ptrdiff_t tail) {
    vf acc[4];
    UNROLL for (int v = 0; v < vectors; v++) acc[v] = v_zero();
    for (ptrdiff_t i = 0; i < rows; i++) {
        const real *from = row_of(a, i) + j, *factors = x ? row_of(x, i) + j : 0;
        UNROLL for (int v = 0; v < vectors; v++) {
            const ptrdiff_t n = v + 1 < vectors ? LANES : tail;
            const vf one = load_units(from + v * LANES, 0, n);
            acc[v] = x ? v_fma(one, load_units(factors + v * LANES, 0, n), acc[v]) : v_add(acc[v], one);
        }
    }
    UNROLL for (int v = 0; v < vectors; v++) {
        const ptrdiff_t n = v + 1 < vectors ? LANES : tail;
        add_units(to + j + v * LANES, n, acc[v]);
        if (also) add_units(also + j + v * LANES, n, acc[v]);
    }
}

static void column_sums(const rc_rows *a, const rc_rows *x, ptrdiff_t rows, void *sum, void *also, ptrdiff_t begin,
                        ptrdiff_t end) {
    ptrdiff_t j = begin;
    for (; j + 4 * LANES <= end; j += 4 * LANES) sums(a, x, rows, 4, sum, also, j, LANES);
    for (; j < end; j += LANES) sums(a, x, rows, 1, sum, also, j, end - j < LANES ? end - j : LANES);
}
