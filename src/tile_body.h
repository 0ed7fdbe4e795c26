/* The micro-kernel of every matrix product: a tile of rows x vectors whose accumulators live in registers.
 *
 * What a tile starts from and what becomes of its sums is up to its `kind`: a plain product stores them, a cell
 * computes its equations on them. Rows, vectors and kind are compile-time constants in every instance, so that the
 * loops over them unroll and the accumulators stay in registers.
 */

#define ROW_PANELS (TILE_VECTORS >= 24 ? 4 : 2) /* panels side by side when there is only one row */

enum kind { GEMM, RNN, LSTM, GRU, GRU_RZ, GRU_N };

INLINE real *row_of(const rc_rows *rows, ptrdiff_t i) {
    return rows->ptr ? (real *)rows->ptr[i] : (real *)rows->base + i * rows->stride;
}

INLINE int has_rows(const rc_rows *rows) { return rows->ptr || rows->base; }

/* Vectors in a full panel. */
INLINE int panel_vectors(const rc_shape *shape) { return shape->gates > 1 ? shape->gates : 4; }

INLINE vf tile_start(enum kind kind, const void *job, ptrdiff_t row, ptrdiff_t panel, int v);
INLINE void tile_finish(enum kind kind, const void *job, ptrdiff_t row, ptrdiff_t panel, int rows, int panels,
                        int vectors, vf z[][4]);

/* Weights come from L2 in the order in which they lie: fetch them this many rows of k ahead, for a tile of several rows
 * (which uses each of them longer) and for a single one. */
#define AHEAD 8
#define AHEAD_SINGLE 16

/* acc[r][v] += sum_k a[r][k] * b[k][v] */
INLINE void multiply(const int rows, const int vectors, const real *const *a, const real *b, ptrdiff_t k,
                     vf acc[][4]) {
    for (ptrdiff_t i = 0; i < k; i++, b += vectors * LANES) {
        vf w[4];
        UNROLL for (int v = 0; v < vectors; v++) {
            w[v] = v_load(b + v * LANES);
            __builtin_prefetch(b + (AHEAD * vectors + v) * LANES);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            vf x = v_set1(a[r][i]);
            UNROLL for (int v = 0; v < vectors; v++) acc[r][v] = v_fma(x, w[v], acc[r][v]);
        }
    }
}

/* What all tiles of a product share. */
typedef struct {
    const rc_shape *shape;
    const real *packed;
    const rc_rows *a;
    const void *job;
    ptrdiff_t row_begin, row_end, panel_begin, panel_end;
    int chains;
    int backwards; /* from the last panel to the first */
} product;

INLINE void tile(enum kind kind, const int rows, const int vectors, const product *g, const real *b, ptrdiff_t row,
                 ptrdiff_t panel) {
    const real *pa[MAX_ROWS];
    vf acc[MAX_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++) {
        pa[r] = row_of(g->a, row + r);
        UNROLL for (int v = 0; v < vectors; v++) acc[r][v] = tile_start(kind, g->job, row + r, panel, v);
    }
    multiply(rows, vectors, pa, b, g->shape->k, acc);
    tile_finish(kind, g->job, row, panel, rows, 1, vectors, acc);
}

/* One row times `panels` panels, with k cut into `chains` partial sums: enough independent accumulators to hide the
 * latency of a multiply-add. Chain s covers k in [s, s + 1) * ceil(k / chains); their sum is a fixed tree. */
INLINE void row_tile(enum kind kind, const int panels, const int vectors, const int chains, const void *job,
                     const real *a, const real *b, ptrdiff_t k, ptrdiff_t row, ptrdiff_t panel) {
    vf acc[4][4][4];
    const ptrdiff_t each = (k + chains - 1) / chains, size = (ptrdiff_t)vectors * LANES, next = k * size;
    UNROLL for (int p = 0; p < panels; p++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            acc[0][p][v] = tile_start(kind, job, row, panel + p, v);
            UNROLL for (int s = 1; s < chains; s++) acc[s][p][v] = v_zero();
        }
    }
    for (ptrdiff_t i = 0; i < each; i++) {
        UNROLL for (int s = 0; s < chains; s++) {
            if (chains > 1 && s * each + i >= k) break;
            vf x = v_set1(a[s * each + i]);
            UNROLL for (int p = 0; p < panels; p++) {
                UNROLL for (int v = 0; v < vectors; v++) {
                    const real *w = b + p * next + (s * each + i) * size + v * LANES;
                    __builtin_prefetch(w + AHEAD_SINGLE * size);
                    acc[s][p][v] = v_fma(x, v_load(w), acc[s][p][v]);
                }
            }
        }
    }
    UNROLL for (int p = 0; p < panels; p++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            if (chains == 2) acc[0][p][v] = v_add(acc[0][p][v], acc[1][p][v]);
            if (chains == 4)
                acc[0][p][v] = v_add(v_add(acc[0][p][v], acc[1][p][v]), v_add(acc[2][p][v], acc[3][p][v]));
        }
    }
    tile_finish(kind, job, row, panel, 1, panels, vectors, acc[0]);
}

INLINE const real *panel_of(const product *g, ptrdiff_t panel) {
    return g->packed + panel * panel_vectors(g->shape) * LANES * g->shape->k;
}

/* The vectors that a panel really has. */
INLINE int vectors_of(const product *g, ptrdiff_t panel) {
    if (g->shape->gates > 1) return g->shape->gates;
    ptrdiff_t left = (g->shape->units + LANES - 1) / LANES - 4 * panel;
    return left < 4 ? (int)left : 4;
}

/* All rows times one panel, the rows shared out evenly between tiles (32 = 6 6 5 5 5 5). Blocks of k that stay in L1
 * were tried: they gain nothing at K 256 and lose a tenth at 1024. */
INLINE void panel_rows(enum kind kind, const int vectors, const product *g, ptrdiff_t panel) {
    enum { LIMIT = TILE_VECTORS };
    const ptrdiff_t most = LIMIT / vectors < MAX_ROWS ? LIMIT / vectors : MAX_ROWS;
    const ptrdiff_t rows = g->row_end - g->row_begin, tiles = (rows + most - 1) / most;
    const real *b = panel_of(g, panel);
    ptrdiff_t row = g->row_begin;
    for (ptrdiff_t t = 0; t < tiles; t++) {
        ptrdiff_t size = rows / tiles + (t < rows % tiles);
#define ROWS(n) \
    case n: \
        if (n <= MAX_ROWS && n * vectors <= LIMIT) tile(kind, n, vectors, g, b, row, panel); \
        break;
        switch (size) { ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) }
#undef ROWS
        row += size;
    }
}

/* Rows one by one, each times several panels at once. */
INLINE void single_rows(enum kind kind, const int vectors, const int panels, const int chains, const product *g,
                        ptrdiff_t panel) {
    for (ptrdiff_t row = g->row_begin; row < g->row_end; row++) {
        const real *a = row_of(g->a, row), *b = panel_of(g, panel);
        row_tile(kind, panels, vectors, chains, g->job, a, b, g->shape->k, row, panel);
    }
}

/* One panel. The cells of a small layer, whose k is cut into chains, take their rows one by one. */
INLINE void run_panel(enum kind kind, const int vectors, const product *g, ptrdiff_t panel) {
    if (kind != GEMM && g->chains == 2) single_rows(kind, vectors, 1, 2, g, panel);
    else if (kind != GEMM && g->chains == 4) single_rows(kind, vectors, 1, 4, g, panel);
    else panel_rows(kind, vectors, g, panel);
}

/* How many groups of ROW_PANELS full panels a single row takes at once. */
INLINE ptrdiff_t groups_of(const int full, const product *g) {
    if (g->row_end - g->row_begin != 1 || g->chains != 1) return 0;
    ptrdiff_t panels = g->panel_end - g->panel_begin;
    if (panels > 0 && vectors_of(g, g->panel_end - 1) != full) panels--;
    return panels / ROW_PANELS;
}

INLINE void run_groups(enum kind kind, const int full, const product *g, ptrdiff_t groups) {
    for (ptrdiff_t i = 0; i < groups; i++) {
        ptrdiff_t group = g->backwards ? groups - 1 - i : i;
        single_rows(kind, full, ROW_PANELS, 1, g, g->panel_begin + group * ROW_PANELS);
    }
}

/* Panels [first, panel_end), of `full` vectors, or (full 0) of up to four. */
INLINE void run_single_panels(enum kind kind, const int full, const product *g, ptrdiff_t first) {
    for (ptrdiff_t i = 0; i < g->panel_end - first; i++) {
        ptrdiff_t panel = g->backwards ? g->panel_end - 1 - i : first + i;
        if (full) {
            run_panel(kind, full, g, panel);
            continue;
        }
        switch (vectors_of(g, panel)) {
        case 1: run_panel(kind, 1, g, panel); break;
        case 2: run_panel(kind, 2, g, panel); break;
        case 3: run_panel(kind, 3, g, panel); break;
        default: run_panel(kind, 4, g, panel);
        }
    }
}

/* All panels. Where every other step goes backwards, the panels that one step left in the cache are the first that the
 * next one reads: of weights larger than a cache, what fits stays. */
INLINE void run_panels(enum kind kind, const int wide, const int full, const product *g) {
    const ptrdiff_t groups = panel_vectors(g->shape) == wide ? groups_of(wide, g) : 0;
    for (int part = 0; part < 2; part++) {
        if (part == (g->backwards != 0)) run_groups(kind, wide, g, groups);
        else run_single_panels(kind, full, g, g->panel_begin + groups * ROW_PANELS);
    }
}

/* Cells with gates: every panel has `full` vectors. */
INLINE void run_gates(enum kind kind, const int full, const product *g) { run_panels(kind, full, full, g); }

/* Panels of up to four vectors. */
INLINE void run_columns(enum kind kind, const product *g) { run_panels(kind, 4, 0, g); }
