/* The micro-kernel of every matrix product: a tile of rows x panels x vectors whose accumulators live in registers.
 *
 * What a tile starts from and what becomes of its sums is up to its `kind`: a plain product stores them, a cell
 * computes its equations on them. Kind, rows, panels and vectors are compile-time constants in every instance, so that
 * the loops over them unroll and the accumulators stay in registers. Every instance is a function of its own, so that
 * the compiler has all registers for it: inlined into one large function its pointers went to the stack, a tenth
 * slower.
 */

enum kind { GEMM, RNN, LSTM, GRU, GRU_RZ, GRU_N };

#define MAX_PANELS (TILE_VECTORS >= 24 ? 4 : 2) /* side by side */
#define WIDE_ROWS 4                             /* of a tile of several panels */
/* Panels side by side in a tile of so few rows that one panel would leave accumulators idle, waiting for itself. */
#define WIDE_PANELS(rows, vectors) \
    (TILE_VECTORS / ((rows) * (vectors)) < MAX_PANELS ? TILE_VECTORS / ((rows) * (vectors)) : MAX_PANELS)

INLINE real *row_of(const rc_rows *rows, ptrdiff_t i) {
    return rows->ptr ? (real *)rows->ptr[i] : (real *)rows->base + i * rows->stride;
}

/* Pointers to `count` rows from `first` on. */
INLINE void rows_of(const rc_rows *rows, ptrdiff_t first, const int count, real **to) {
    if (rows->ptr) {
        UNROLL for (int r = 0; r < count; r++) to[r] = rows->ptr[first + r];
    } else {
        real *at = (real *)rows->base + first * rows->stride;
        UNROLL for (int r = 0; r < count; r++, at += rows->stride) to[r] = at;
    }
}

INLINE int has_rows(const rc_rows *rows) { return rows->ptr || rows->base; }

/* Vectors in a whole panel. */
INLINE int panel_vectors(const rc_shape *shape) { return shape->gates > 1 ? shape->gates : 4; }

/* A half panel: two gates in a vector (kernels.h). */
#define HALF_LANES (LANES / 2)
#define HALF_VECTORS(gates) (((gates) + 1) / 2)

INLINE int is_half(const rc_shape *shape, ptrdiff_t panel) {
    return shape->gates > 1 && shape->units - panel * LANES <= HALF_LANES;
}

/* The vectors that a panel really has. */
INLINE int vectors_of(const rc_shape *shape, ptrdiff_t panel) {
    if (shape->gates > 1) return is_half(shape, panel) ? HALF_VECTORS(shape->gates) : shape->gates;
    const ptrdiff_t left = rc_vectors(shape->units, LANES) - 4 * panel;
    return left < 4 ? (int)left : 4;
}

/* What all tiles of a product share. */
typedef struct product {
    const rc_shape *shape;
    const real *packed;
    const rc_rows *a;
    const void *job;
    ptrdiff_t row_begin, row_end, panel_begin, panel_end;
    int chains;
    int backwards; /* from the last panel to the first */
    int far;       /* as in rc_gemm */
    ptrdiff_t k_begin, k_end; /* the block of k at hand, usually all */
    vf (*sums)[4];            /* by panel and row: what the blocks before it came to */
    int wide;      /* panels that all rows take side by side; 1 where they fill a tile with one */
    void (*group)(const struct product *g, const real *b, ptrdiff_t row, ptrdiff_t panel, const real *later,
                  ptrdiff_t step); /* the tile for them */
    ptrdiff_t groups, count; /* groups of so many panels, and how often tiles are run: groups and single panels */
} product;

/* Vector v of row r of panel p of a tile has the accumulator acc[p * rows + r][v]. */
#define EACH_VECTOR(p, r, v) \
    UNROLL for (int p = 0; p < panels; p++) \
        UNROLL for (int r = 0; r < rows; r++) \
            UNROLL for (int v = 0; v < vectors; v++)

INLINE void tile_start(enum kind kind, const void *job, ptrdiff_t row, ptrdiff_t panel, int rows, int panels,
                       int vectors, vf acc[][4]);
INLINE void tile_finish(enum kind kind, const void *job, ptrdiff_t row, ptrdiff_t panel, int rows, int panels,
                        int vectors, vf acc[][4]);
/* Fetches for writing what tile_finish of a GEMM will store to this row. */
INLINE void gemm_fetch(const void *job, ptrdiff_t row, ptrdiff_t panel, int vectors);

/* acc[r][v] += x[r][i] w[v], w a row of vectors. The shorter side is what stays in registers: of AVX2's sixteen the
 * accumulators leave four. */
INLINE void add_products(const int rows, const int vectors, real *const *x, ptrdiff_t i, const real *w,
                         vf acc[][4]) {
    vf held[MAX_ROWS];
    if (rows < vectors) {
        UNROLL for (int r = 0; r < rows; r++) held[r] = v_set1(x[r][i]);
        UNROLL for (int v = 0; v < vectors; v++) {
            const vf one = v_load(w + v * LANES);
            UNROLL for (int r = 0; r < rows; r++) acc[r][v] = v_fma(held[r], one, acc[r][v]);
        }
    } else {
        UNROLL for (int v = 0; v < vectors; v++) held[v] = v_load(w + v * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const vf one = v_set1(x[r][i]);
            UNROLL for (int v = 0; v < vectors; v++) acc[r][v] = v_fma(one, held[v], acc[r][v]);
        }
    }
}

/* acc[p * rows + r][v] += sum of a[r][k] * b[p][k][v] over k in [begin, end). Meanwhile, with `fetch`, what lies from
 * `later` on, `step` apart, comes into L2. */
INLINE void multiply(const int rows, const int panels, const int vectors, real *const *a, const real *b, ptrdiff_t k,
                     ptrdiff_t begin, ptrdiff_t end, vf acc[][4], const int fetch, const real *later,
                     ptrdiff_t step) {
    const ptrdiff_t size = (ptrdiff_t)vectors * LANES, next = k * size;
    TWICE for (ptrdiff_t i = begin; i < end; i++) {
        if (fetch) __builtin_prefetch(later + i * step, 0, 2);
        UNROLL for (int p = 0; p < panels; p++)
            add_products(rows, vectors, a, i, b + p * next + i * size, acc + p * rows);
    }
}

/* The block of k at hand. */
INLINE void multiply_tile(const int rows, const int panels, const int vectors, const product *g, real *const *a,
                          const real *b, vf acc[][4], const real *later, ptrdiff_t step) {
    const ptrdiff_t k = g->shape->k;
    if (step) multiply(rows, panels, vectors, a, b, k, g->k_begin, g->k_end, acc, 1, later, step);
    else multiply(rows, panels, vectors, a, b, k, g->k_begin, g->k_end, acc, 0, b, 0);
}

/* All of k of one row, in partial sums: acc[s][0] over k = s, s + chains, ... As many of them side by side as there are
 * accumulators, so that b is read in order. */
INLINE void multiply_cut(const int vectors, const int chains, const product *g, real *const *a, const real *b,
                         vf acc[][MAX_ROWS][4]) {
    const ptrdiff_t k = g->shape->k, size = (ptrdiff_t)vectors * LANES;
    const int most = chains * vectors <= TILE_VECTORS ? chains : chains / 2;
    UNROLL for (int first = 0; first < chains; first += most) {
        ptrdiff_t i = first;
        TWICE for (; i + most <= k; i += chains) {
            UNROLL for (int s = 0; s < most; s++)
                add_products(1, vectors, a, i + s, b + (i + s) * size, acc[first + s]);
        }
        UNROLL for (int s = 0; s < most - 1; s++) {
            if (i + s < k) add_products(1, vectors, a, i + s, b + (i + s) * size, acc[first + s]);
        }
    }
}

#define LONG 96 /* k of a tile in which pieces cost nothing */

/* The same of a tile that writes to far memory, in as many pieces as it has rows: before each it fetches what it will
 * store to one of them. All those lines at once gained nothing: probably they take the place of those that the loop
 * waits for. */
INLINE void multiply_far(const int rows, const int vectors, const int whole, const product *g, real *const *a,
                         const real *b, ptrdiff_t row, ptrdiff_t panel, vf acc[][4], const real *later,
                         ptrdiff_t step) {
    const ptrdiff_t k = g->shape->k, piece = (g->k_end - g->k_begin) / rows & ~(ptrdiff_t)1;
    for (int r = 0; r < rows; r++) {
        const ptrdiff_t begin = g->k_begin + r * piece, end = r + 1 < rows ? begin + piece : g->k_end;
        gemm_fetch(g->job, row + r, panel, whole);
        if (step) multiply(rows, 1, vectors, a, b, k, begin, end, acc, 1, later, step);
        else multiply(rows, 1, vectors, a, b, k, begin, end, acc, 0, b, 0);
    }
}

/* What a tile starts from; of a half panel two gates joined in a vector. */
INLINE void joined_start(enum kind kind, const int rows, const int panels, const int vectors, const int whole,
                         const product *g, ptrdiff_t row, ptrdiff_t panel, vf acc[][4]) {
    vf z[MAX_ROWS][4];
    if (vectors == whole) {
        tile_start(kind, g->job, row, panel, rows, panels, vectors, acc);
        return;
    }
    tile_start(kind, g->job, row, panel, rows, 1, whole, z);
    EACH_VECTOR(p, r, v) acc[r][v] = v_join(z[r][2 * v], 2 * v + 1 < whole ? z[r][2 * v + 1] : v_zero());
}

/* What becomes of its sums; those of a half panel are parted into whole vectors again. */
INLINE void parted_finish(enum kind kind, const int rows, const int panels, const int vectors, const int whole,
                          const product *g, ptrdiff_t row, ptrdiff_t panel, vf acc[][4]) {
    vf z[MAX_ROWS][4];
    if (vectors == whole) {
        tile_finish(kind, g->job, row, panel, rows, panels, vectors, acc);
        return;
    }
    EACH_VECTOR(p, r, v) {
        z[r][2 * v] = v_low(acc[r][v]);
        if (2 * v + 1 < whole) z[r][2 * v + 1] = v_high(acc[r][v]);
    }
    tile_finish(kind, g->job, row, panel, rows, 1, whole, z);
}

/* A tile, with k cut into `chains` partial sums where there are too few accumulators to hide the latency of a
 * multiply-add; their sum is a fixed tree. Weights so small are never far. */
INLINE void tile(enum kind kind, const int rows, const int panels, const int vectors, const int whole,
                 const int chains, const product *g, const real *b, ptrdiff_t row, ptrdiff_t panel, const real *later,
                 ptrdiff_t step) {
    real *a[MAX_ROWS];
    vf acc[4][MAX_ROWS][4];
    const int cut = chains > 1; /* never in blocks */
    const int first = cut || g->k_begin == 0, last = cut || g->k_end == g->shape->k;
    rows_of(g->a, row, rows, a);
    if (first) {
        joined_start(kind, rows, panels, vectors, whole, g, row, panel, acc[0]);
    } else {
        EACH_VECTOR(p, r, v) acc[0][p * rows + r][v] = g->sums[row - g->row_begin + p * rows + r][v];
    }
    UNROLL for (int s = 1; s < chains; s++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[s][0][v] = v_zero();
    }
    if (cut) multiply_cut(vectors, chains, g, a, b, acc);
    else if (kind == GEMM && panels == 1 && rows > 2 && g->far && last && g->k_end - g->k_begin >= LONG)
        multiply_far(rows, vectors, whole, g, a, b, row, panel, acc[0], later, step);
    else multiply_tile(rows, panels, vectors, g, a, b, acc[0], later, step);
    UNROLL for (int v = 0; v < vectors && chains > 1; v++) {
        vf *sum = &acc[0][0][v];
        *sum = v_add(*sum, acc[1][0][v]);
        if (chains == 4) *sum = v_add(*sum, v_add(acc[2][0][v], acc[3][0][v]));
    }
    if (last) {
        parted_finish(kind, rows, panels, vectors, whole, g, row, panel, acc[0]);
    } else {
        EACH_VECTOR(p, r, v) g->sums[row - g->row_begin + p * rows + r][v] = acc[0][p * rows + r][v];
    }
}

/* ------------------------------------------------------------------------------------------------- the instances */

typedef void tile_fn(const product *g, const real *b, ptrdiff_t row, ptrdiff_t panel, const real *later,
                     ptrdiff_t step);

/* The tiles of one kind whose panels have so many vectors. */
typedef struct {
    tile_fn *tile[9];             /* by rows: one panel */
    tile_fn *wide[WIDE_ROWS + 1]; /* by rows: several panels */
    tile_fn *pair;                /* one row: two panels */
    tile_fn *cut[2];              /* one row and panel, k in 2 or 4 chains */
} tiles;

#define TILE(name, kind, rows, panels, least, vectors, whole, chains) \
    static __attribute__((noinline)) void name(const product *g, const real *b, ptrdiff_t row, ptrdiff_t panel, \
                                               const real *later, ptrdiff_t step) { \
        if (panels >= least && rows * (panels) <= MAX_ROWS && rows * (panels) * (vectors) <= TILE_VECTORS) \
            tile(kind, rows, panels, vectors, whole, chains, g, b, row, panel, later, step); \
    }
#define ROWS_TILE(kind, v, rows) TILE(kind##_##v##_##rows, kind, rows, 1, 1, v, v, 1)
#define HALF_TILE(kind, gates, rows) \
    TILE(kind##_half_##gates##_##rows, kind, rows, 1, 1, HALF_VECTORS(gates), gates, 1)
#define WIDE_TILE(kind, v, rows) TILE(kind##_##v##_wide_##rows, kind, rows, WIDE_PANELS(rows, v), 2, v, v, 1)
#define PAIR_TILE(kind, v) TILE(kind##_##v##_pair, kind, 1, 2, 2, v, v, 1)
#define CUT_TILE(kind, v, chains) TILE(kind##_##v##_cut_##chains, kind, 1, 1, 1, v, v, chains)
#define HALF_CUT_TILE(kind, gates, chains) \
    TILE(kind##_half_##gates##_cut_##chains, kind, 1, 1, 1, HALF_VECTORS(gates), gates, chains)
#define EACH_ROWS(tile, kind, v) \
    tile(kind, v, 1) tile(kind, v, 2) tile(kind, v, 3) tile(kind, v, 4) \
    tile(kind, v, 5) tile(kind, v, 6) tile(kind, v, 7) tile(kind, v, 8)
#define ROWS_NAMES(name) {0, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8}
#define DEFINE_TILES(kind, v) \
    EACH_ROWS(ROWS_TILE, kind, v) \
    WIDE_TILE(kind, v, 1) WIDE_TILE(kind, v, 2) WIDE_TILE(kind, v, 3) WIDE_TILE(kind, v, 4) \
    PAIR_TILE(kind, v) CUT_TILE(kind, v, 2) CUT_TILE(kind, v, 4) \
    static const tiles kind##_##v = { \
        ROWS_NAMES(kind##_##v), \
        {0, kind##_##v##_wide_1, kind##_##v##_wide_2, kind##_##v##_wide_3, kind##_##v##_wide_4}, \
        kind##_##v##_pair, \
        {kind##_##v##_cut_2, kind##_##v##_cut_4}};
/* A product has at most one half panel, which stands alone. */
#define DEFINE_HALF(kind, gates) \
    EACH_ROWS(HALF_TILE, kind, gates) HALF_CUT_TILE(kind, gates, 2) HALF_CUT_TILE(kind, gates, 4) \
    static const tiles kind##_half_##gates = { \
        ROWS_NAMES(kind##_half_##gates), {0}, 0, {kind##_half_##gates##_cut_2, kind##_half_##gates##_cut_4}};

DEFINE_TILES(GEMM, 1)
DEFINE_TILES(GEMM, 2)
DEFINE_TILES(GEMM, 3)
DEFINE_TILES(GEMM, 4)
DEFINE_TILES(RNN, 1)
DEFINE_TILES(RNN, 2)
DEFINE_TILES(RNN, 3)
DEFINE_TILES(RNN, 4)
DEFINE_TILES(GRU_N, 1)
DEFINE_TILES(GRU_N, 2)
DEFINE_TILES(GRU_N, 3)
DEFINE_TILES(GRU_N, 4)
DEFINE_TILES(LSTM, 4)
DEFINE_TILES(GRU, 3)
DEFINE_TILES(GRU_RZ, 2)
DEFINE_HALF(GEMM, 2)
DEFINE_HALF(GEMM, 3)
DEFINE_HALF(GEMM, 4)
DEFINE_HALF(LSTM, 4)
DEFINE_HALF(GRU, 3)
DEFINE_HALF(GRU_RZ, 2)

static const tiles *const all_tiles[][5] = {
    [GEMM] = {0, &GEMM_1, &GEMM_2, &GEMM_3, &GEMM_4},
    [RNN] = {0, &RNN_1, &RNN_2, &RNN_3, &RNN_4},
    [LSTM] = {0, 0, 0, 0, &LSTM_4},
    [GRU] = {0, 0, 0, &GRU_3},
    [GRU_RZ] = {0, 0, &GRU_RZ_2},
    [GRU_N] = {0, &GRU_N_1, &GRU_N_2, &GRU_N_3, &GRU_N_4},
};
/* By gates. */
static const tiles *const half_tiles[][5] = {
    [GEMM] = {0, 0, &GEMM_half_2, &GEMM_half_3, &GEMM_half_4},
    [LSTM] = {0, 0, 0, 0, &LSTM_half_4},
    [GRU] = {0, 0, 0, &GRU_half_3},
    [GRU_RZ] = {0, 0, &GRU_RZ_half_2},
};

/* ------------------------------------------------------------------------------------------------------ all tiles */

static const real *panel_of(const product *g, ptrdiff_t panel) {
    return g->packed + panel * panel_vectors(g->shape) * LANES * g->shape->k;
}

static ptrdiff_t bytes_of(const product *g) {
    return (g->panel_end - g->panel_begin) * panel_vectors(g->shape) * (ptrdiff_t)sizeof(vf) * g->shape->k;
}

/* The panel that is read after this one: after the last the first. */
static ptrdiff_t panel_after(const product *g, ptrdiff_t panel) {
    if (g->backwards) return panel > g->panel_begin ? panel - 1 : g->panel_end - 1;
    return panel < g->panel_end - 1 ? panel + 1 : g->panel_begin;
}

/* Weights that a small L2, or a large one beside all else, may have lost since they were read last. */
#define FAR (1 << 18)

/* The block of k at hand of one panel: all rows, shared out evenly between `count` tiles (32 = 6 6 5 5 5 5). Of far
 * weights what comes `next` goes into L2 meanwhile, `step` elements in each k of each tile: a core has so few lines of
 * L3 under way at once that a burst would have to wait. */
static void run_block(const tiles *by_rows, const product *g, ptrdiff_t panel, ptrdiff_t count, const real *next,
                      ptrdiff_t step) {
    const ptrdiff_t rows = g->row_end - g->row_begin, k = g->k_end - g->k_begin;
    const real *b = panel_of(g, panel);
    next -= g->k_begin * step; /* the tile counts from there */
    for (ptrdiff_t t = 0, row = g->row_begin; row < g->row_end; t++, next += k * step) {
        const ptrdiff_t size = rows / count + (t < rows % count);
        by_rows->tile[size](g, b, row, panel, next, step);
        row += size;
    }
}

#define BEYOND_L2 (3 << 19) /* bytes of weights that L2 does not hold */
#define BLOCKED_ROWS 64     /* at most: more read a panel often enough */
#define L2_BLOCK (128 << 10)

/* The k of a block of weights that come from beyond L2, all of it where blocks would not pay. What is fetched a whole
 * long panel ahead is gone again when its turn comes, and the few tiles of a small batch wait for L2 unless the first
 * leaves its block in L1 for the others, which those of eight rows, that need less of it, do not. Of weights within L2
 * blocks gain nothing at K 256, and lose a tenth at 1024. Zen 4, whose L1 holds none and whose L3 is fast, takes 3 %
 * longer with blocks of any size. */
static ptrdiff_t block_of(const product *g, const int vectors, ptrdiff_t most, ptrdiff_t count) {
    const ptrdiff_t k = g->shape->k, bytes = k * vectors * (ptrdiff_t)sizeof(vf);
    const ptrdiff_t size = count <= (most > 6 ? 1 : 4) ? RC_L1_BLOCK : L2_BLOCK, blocks = (bytes + size - 1) / size;
    if (rc_l3_is_fast() || bytes_of(g) < BEYOND_L2 || blocks <= 3) return k;
    if (g->row_end - g->row_begin > BLOCKED_ROWS || g->k_end - g->k_begin < k) return k; /* the latter: cut already */
    return ((k + blocks - 1) / blocks + 1) & ~(ptrdiff_t)1;
}

/* A panel in blocks of `size`: the accumulators wait in `sums`. */
static __attribute__((noinline)) void run_blocks(const tiles *by_rows, const product *all, ptrdiff_t panel,
                                                 ptrdiff_t count, ptrdiff_t size, const real *next, ptrdiff_t step) {
    const ptrdiff_t k = all->shape->k, columns = vectors_of(all->shape, panel) * LANES;
    vf sums[BLOCKED_ROWS][4];
    product g = *all;
    g.sums = sums;
    for (g.k_begin = 0; g.k_begin < k; g.k_begin = g.k_end) {
        g.k_end = k - g.k_begin < size ? k : g.k_begin + size;
        run_block(by_rows, &g, panel, count, g.k_end < k ? panel_of(all, panel) + g.k_end * columns : next, step);
    }
}

/* All rows times one panel. Meanwhile the next one is fetched (after the last one the first, for the next step, unless
 * that goes the other way); a small tile that is the only one reads its panel as fast as it comes. */
static void run_panel(const tiles *by_rows, const product *g, ptrdiff_t panel) {
    const int vectors = vectors_of(g->shape, panel);
    const ptrdiff_t most = TILE_VECTORS / vectors < MAX_ROWS ? TILE_VECTORS / vectors : MAX_ROWS;
    const ptrdiff_t rows = g->row_end - g->row_begin, count = (rows + most - 1) / most;
    const int fetch = bytes_of(g) > FAR && (count > 1 || rows > WIDE_ROWS);
    const ptrdiff_t step = fetch ? (vectors * LANES + count - 1) / count : 0; /* a tile's part of a row of k */
    const ptrdiff_t k = g->shape->k, size = fetch ? block_of(g, vectors, most, count) : k;
    const real *next = panel_of(g, panel_after(g, panel));
    if (size < k) run_blocks(by_rows, g, panel, count, size, next, step);
    else run_block(by_rows, g, panel, count, next, step);
}

/* The cells of a small layer, whose k is cut into chains, take their rows one by one. */
static void run_cut(const tiles *by_rows, const product *g, ptrdiff_t panel) {
    const real *b = panel_of(g, panel);
    tile_fn *cut = by_rows->cut[g->chains == 4];
    for (ptrdiff_t row = g->row_begin; row < g->row_end; row++) cut(g, b, row, panel, b, 0);
}

/* Weights of which the first level of cache keeps a good part from one step to the next, if they come in small groups:
 * those that a step ends with are the next one's first. */
#define NEAR (192 << 10)

/* How the rows go through the panels: the same for every step of a sequence. */
static void plan_run(enum kind kind, product *g) {
    const ptrdiff_t rows = g->row_end - g->row_begin, panels = g->panel_end - g->panel_begin;
    const int full = panel_vectors(g->shape);
    g->wide = 1;
    g->groups = 0;
    g->k_begin = 0;
    g->k_end = g->shape->k;
    g->count = rows > 0 && panels > 0 ? panels : 0; /* a thread may have no part */
    if (g->count == 0 || rows > WIDE_ROWS || g->chains > 1) return;
    const int pair = rows == 1 && (bytes_of(g) <= NEAR || bytes_of(g) > RC_MOSTLY_L3);
    const ptrdiff_t wide = pair ? 2 : WIDE_PANELS(rows, full);
    if (wide < 2 || rows * wide > MAX_ROWS) return;
    g->wide = (int)wide;
    g->group = pair ? all_tiles[kind][full]->pair : all_tiles[kind][full]->wide[rows];
    g->groups = (vectors_of(g->shape, g->panel_end - 1) != full ? panels - 1 : panels) / wide;
    g->count = g->groups + panels - g->groups * wide;
}

/* A group or a panel of those that a run goes through. */
INLINE void run_at(enum kind kind, const product *g, ptrdiff_t i) {
    const ptrdiff_t at = g->backwards ? g->count - 1 - i : i;
    const ptrdiff_t panel = g->panel_begin + (at < g->groups ? at * g->wide : g->groups * (g->wide - 1) + at);
    const tiles *by_rows = is_half(g->shape, panel) ? half_tiles[kind][g->shape->gates]
                                                    : all_tiles[kind][vectors_of(g->shape, panel)];
    if (at < g->groups) g->group(g, panel_of(g, panel), g->row_begin, panel, 0, 0);
    else if (g->chains > 1) run_cut(by_rows, g, panel);
    else run_panel(by_rows, g, panel);
}

/* All panels. Where every other step goes backwards, the panels that one step left in the cache are the first that the
 * next one reads: of weights larger than a cache, what fits stays. */
static void run(enum kind kind, const product *g) {
    for (ptrdiff_t i = 0; i < g->count; i++) run_at(kind, g, i);
}
