/* The contract between the time loops (Cython) and the kernels (C, one build for each instruction set).
 *
 * The kernels are written once, in kernels_body.h, over `real` (float or double) and LANES of it; everything that a
 * caller sees is in bytes or elements, never in lanes, except the packed layouts:
 *
 *   vector   LANES columns (hidden units, or outputs of a matrix product) side by side
 *   panel    the vectors that a tile computes together: one of each gate of the same LANES hidden units
 *            (`gates` > 1), or four neighbouring vectors (`gates` == 1; the last panel may have fewer)
 *   half     a last panel whose units fill at most half a vector: it is packed with two gates in a vector
 *   packed   [panel][k][vector of the panel][lane]: what a tile reads, in the order in which it reads it
 *   gate row [panel][vector of the panel][lane]: a row of gates or pre-activations, in the same order
 *
 * Columns past the true size are zero in packed matrices and are carried along in gate rows and in state rows,
 * whose strides are therefore whole vectors (rc_kernels.lanes). Arrays that the user sees are never padded.
 *
 * Every output element is one chain of fused multiply-adds over k in ascending order, starting from its initial
 * value: the bits depend neither on the tile nor on the batch, the threads or the vector width.
 *
 * No kernel allocates, fails or keeps a pointer. Pointers in one call must not overlap unless it says so.
 */
#ifndef RC_KERNELS_H
#define RC_KERNELS_H

#include <stddef.h>

/* Rows of a matrix: ptr[i] where given, else base + i * stride (elements). */
typedef struct {
    void *base;
    ptrdiff_t stride;
    void **ptr;
} rc_rows;

/* The shape of a packed matrix of n = gates * units columns and k rows. */
typedef struct {
    ptrdiff_t k;
    ptrdiff_t units; /* columns of one gate */
    int gates;       /* vectors in a panel; 1 means four neighbouring vectors instead */
} rc_shape;

/* C = init + A B, or C += A B: A (rows, k), B packed, C (rows, columns). */
typedef struct {
    rc_shape shape;
    const void *packed;
    const void *bias; /* gate row to start from, or NULL: start from zero (or from C where accumulate is set) */
    int accumulate;
    int padded; /* C has whole vectors (a gate row): store them whole; else `units` bounds the store */
    rc_rows a, c;
    ptrdiff_t row_begin, row_end;
    ptrdiff_t panel_begin, panel_end;
    int backwards; /* take the panels from the last to the first: the same bits, another order of memory */
    int far;       /* C is written anew and lies beyond L2: its lines are worth fetching before */
} rc_gemm;

/* Of more bytes of weights a core reads most from L3 at every step: faster in few streams, so that a single row takes
 * fewer panels side by side. */
#define RC_MOSTLY_L3 (3 << 20)

/* C (m, n) += A^T X: A (rows, m) with one stride, X (rows, n), both as the user or a gate buffer holds them. One chain
 * spans RC_OUTER_ROWS rows; the sums of the chains are added to C in ascending order, with the same bits with and
 * without `columns`, and alone or beside another. */
#define RC_OUTER_ROWS 256
#define RC_OUTER_COLUMNS 512
#define RC_OUTER_LARGE (1 << 16) /* elements of C from which on `columns` pay: more than a small part of L2 */
typedef struct rc_outer {
    rc_rows a; /* base + stride only */
    rc_rows x;
    void *c;
    ptrdiff_t c_stride;
    ptrdiff_t rows, n;
    ptrdiff_t m_begin, m_end;
    void *columns; /* NULL, or scratch of rc_outer_scratch() elements, on a cache line */
    const struct rc_outer *beside; /* NULL, or one of the same a, rows and m: a is then read once for both */
} rc_outer;

enum rc_cell { RC_RNN_TANH, RC_RNN_RELU, RC_LSTM, RC_GRU, RC_GRU_RESET_BEFORE, RC_CELLS };

/* One time step of a cell for some rows (sequences) and panels (hidden units).
 *
 *   z[row] = gates[row] + h_prev[row] R        (gates: input projection with both biases, a gate row)
 *
 * then the cell's equations on z while it is in registers. LSTM gates are i f g o; GRU gates are r z n, where
 * the recurrent part of n starts from `bias` instead of the gate row; GRU_RESET_BEFORE runs in two phases
 * (`phase` 0: r and z, writes r*h to `reset`; phase 1: n from reset R_n), with all rows of phase 0 done first.
 */
typedef struct {
    enum rc_cell cell;
    int phase;
    rc_shape shape;      /* of packed: k = recurrent size, units = hidden size, gates of this phase */
    int chains;          /* partial sums, each over every chains-th k, where one would wait for itself: rc_chains() */
    const void *packed;  /* R */
    const void *bias;    /* GRU: (units) b_hn, whole vectors */
    rc_rows gates;       /* in: input projection */
    rc_rows product;     /* NULL, or h_prev R already computed (gate rows): k is then 0 and `packed` is not read */
    rc_rows h_prev;      /* (k); GRU also reads (units) of it, whole vectors */
    rc_rows h_next;      /* out (units), whole vectors; never h_prev */
    rc_rows c;           /* LSTM: in and out (units), whole vectors, in place; GRU_RESET_BEFORE: z between phases */
    rc_rows reset;       /* GRU_RESET_BEFORE: r*h, whole vectors */
    rc_rows y;           /* out (units) exactly, or base and ptr NULL */
    rc_rows saved;       /* tape, or NULL: the activated gates, a gate row; may be `gates` */
    rc_rows saved_unit;  /* tape, or NULL: LSTM the c that the step started from, GRU R_n h + b_hn; whole vectors */
    ptrdiff_t row_begin, row_end;
    ptrdiff_t panel_begin, panel_end;
    int backwards; /* as in rc_gemm */
} rc_step;

/* Steps of the same rows that follow each other: the state after one is the state before the next. After each h_prev
 * and h_next change places, gates and y (both by `ptr`) go on by `rows` pointers, saved and saved_unit by `tape` rows.
 * Not for GRU_RESET_BEFORE, whose steps have two phases. */
typedef struct {
    ptrdiff_t count;
    ptrdiff_t rows, tape;
    int alternates; /* every other step takes the panels the other way round */
    /* NULL, or the team whose members share out the panels in ascending order. Once wait(team, 0) has returned, the
     * units of this member and those before it are there for the next step; all are after wait(team, 1). `pass` tells
     * the team that the step is done. */
    void *team;
    void (*wait)(void *team, int later);
    void (*pass)(void *team);
} rc_sequence;

/* The pointwise part of one backward step, for some rows and some unit vectors.
 *
 *   dh = dy + dh_next; writes the gradient of the pre-activations, gate after gate, `units` apart:
 *   RNN [dz], LSTM [di df dg do], GRU [dn dr dz dn*r], GRU_RESET_BEFORE [dn dr dz]
 *   (GRU: the first three belong to the input side, the last three to the recurrent side).
 */
typedef struct {
    enum rc_cell cell;
    int phase; /* GRU_RESET_BEFORE: 0 gives dn and dz, 1 gives dr from d(r*h) in `reset` */
    ptrdiff_t units;
    rc_rows saved, saved_unit;
    rc_rows h_prev; /* (units): GRU reads it; the others fetch it for the weights' gradients, or have none */
    rc_rows dy;     /* (units) or NULL */
    rc_rows dh;     /* in: dh from step t+1, whole vectors; out: the part of dh_{t-1} that does not pass through R */
    rc_rows dc;     /* LSTM, in place, whole vectors */
    rc_rows reset;  /* GRU_RESET_BEFORE: phase 0 out nothing; phase 1 in d(r*h), whole vectors */
    rc_rows dz;     /* out, gate after gate, exactly `units` apart */
    ptrdiff_t row_begin, row_end;
    ptrdiff_t unit_begin, unit_end; /* in vectors */
    ptrdiff_t ahead;    /* what to fetch: from a row of saved and saved_unit to that of the next step, in rows */
    ptrdiff_t dy_ahead; /* the same of dy, in elements; neither changes a result */
} rc_step_back;

/* Layer normalisation of each gate of each row by itself: of the `units` pre-activations x of a gate
 *
 *   hat = (x - mean(x)) rstd,  rstd = 1 / sqrt(variance(x) + RC_NORM_EPSILON),  y = hat gain + shift
 *
 * With `saved`, x is the c of an LSTM (one gate) and y goes on to its output, h = o tanh(hat gain + shift).
 */
typedef struct {
    ptrdiff_t units;
    int gates;
    const void *gain, *shift; /* (gates * units), gate after gate */
    rc_rows x, y;             /* gate rows: forward in, and out; y may be x */
    rc_rows hat;              /* gate after gate, exactly `units` apart: forward out, backward in */
    rc_rows rstd;             /* (gates): forward out, backward in */
    rc_rows saved;            /* NULL, or the LSTM's saved gates */
    rc_rows dh;               /* backward with `saved`: in dL/dh, whole vectors; out zero */
    rc_rows dz;               /* backward with `saved`: out, exactly `units`: the gradient of o's pre-activation */
    rc_rows dy;               /* backward in (out with `saved`): gate after gate, exactly `units` apart */
    rc_rows dx;               /* backward out, like dy; never dy */
    int accumulate;           /* add to what dx holds */
    ptrdiff_t rows;
} rc_norm;

#define RC_NORM_EPSILON 1e-5

typedef struct {
    const char *name;
    ptrdiff_t lanes;
    size_t itemsize;
    /* packed <- the matrix whose element of column n (gate g, unit u: n = g * units + u) and row k lies at
     * src + n * column_stride + k * row_stride (elements). Writes at most rc_packed_size() elements. */
    void (*pack)(const rc_shape *, const void *src, ptrdiff_t column_stride, ptrdiff_t row_stride, void *packed);
    /* gate row <- a + b, vectors in gate order (either may be NULL: zero) */
    void (*pack_bias)(const rc_shape *, const void *a, const void *b, void *row);
    void (*gemm)(const rc_gemm *);
    void (*outer)(const rc_outer *);
    void (*step)(const rc_step *);
    void (*steps)(const rc_step *first, const rc_sequence *);
    void (*step_back)(const rc_step_back *);
    /* sum[j] += sum over rows of a[row][j], or of a[row][j] x[row][j] where x is not NULL; the same to `also`[j] where
     * that is not NULL */
    void (*column_sums)(const rc_rows *a, const rc_rows *x, ptrdiff_t rows, void *sum, void *also, ptrdiff_t begin,
                        ptrdiff_t end);
    void (*norm)(const rc_norm *);
    void (*norm_back)(const rc_norm *);
    /* test twins: y[i] = f(x[i]), f: 0 exp, 1 sigmoid, 2 tanh */
    void (*activate)(int f, const void *x, void *y, ptrdiff_t n);
    const struct rc_dense *dense; /* losses, optimisers, embedding, dropout: dense.h */
} rc_kernels;

/* Bytes of the first data cache of a core: to be set before the kernels run. No result depends on it. */
extern ptrdiff_t rc_l1_bytes;

/* Whether L3 gives nearly what L2 does. Of the machines measured, a Zen 4's does (101 and 117 GB/s), an Intel Xeon's
 * does not (31 and 147): what tells them apart is L1, which holds a block of weights there and none here. */
#define RC_L1_BLOCK (33 << 10)
static inline int rc_l3_is_fast(void) { return rc_l1_bytes < RC_L1_BLOCK; }

extern const rc_kernels rc_kernels_generic, rc_kernels_f64;
#if defined(__x86_64__)
extern const rc_kernels rc_kernels_avx2, rc_kernels_avx512;
#endif

static inline ptrdiff_t rc_vectors(ptrdiff_t units, ptrdiff_t lanes) { return (units + lanes - 1) / lanes; }

static inline ptrdiff_t rc_panels(const rc_shape *s, ptrdiff_t lanes) {
    ptrdiff_t vectors = rc_vectors(s->units, lanes);
    return s->gates > 1 ? vectors : (vectors + 3) / 4;
}

/* Elements of a gate row. */
static inline ptrdiff_t rc_row_size(const rc_shape *s, ptrdiff_t lanes) {
    return rc_vectors(s->units, lanes) * lanes * s->gates;
}

static inline size_t rc_packed_size(const rc_shape *s, ptrdiff_t lanes) {
    return (size_t)rc_row_size(s, lanes) * (size_t)s->k;
}

/* Elements of rc_outer.columns; n is the sum of whole vectors of 16 of both sides. */
static inline size_t rc_outer_scratch(ptrdiff_t rows, ptrdiff_t n) {
    const ptrdiff_t columns = n < RC_OUTER_COLUMNS ? rc_vectors(n, 16) * 16 : RC_OUTER_COLUMNS;
    return (size_t)(rows < RC_OUTER_ROWS ? rows : RC_OUTER_ROWS) * (size_t)columns;
}

/* A step has gates * ceil(units / 16) chains of its own to hide the latency of a multiply-add (8 in flight); a layer of
 * up to four cuts k in 2 or 4. Counted in 16 lanes whatever the machine, so that the bits agree. */
static inline int rc_chains(int gates, ptrdiff_t units) {
    ptrdiff_t vectors = gates * rc_vectors(units, 16);
    return vectors < 4 ? 4 : vectors == 4 ? 2 : 1;
}

#endif
