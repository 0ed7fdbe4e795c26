/* The cells. Each one's forward and backward stand side by side; equations and gate orders are in docs/equations.md.
 *
 * Forward gets a finished tile of n = rows (sequences) x panels: z[v * n + p * rows + r] is vector v of panel p of row
 * r, so that activations run over all of a gate's vectors side by side. It is inlined into every shape of a tile, where
 * rows and panels are constants, and only the activations are calls; z lies on the stack, in L1. Backward gets dh of
 * one unit vector (LANES hidden units) of one sequence and what forward saved.
 */

/* Where unit vector j of a row lies. */
INLINE real *unit_of(const rc_rows *rows, ptrdiff_t row, ptrdiff_t j) { return row_of(rows, row) + j * LANES; }

/* Vector j of a row that has exactly `units` elements. */
INLINE vf load_units(const real *row, ptrdiff_t j, ptrdiff_t units) {
    ptrdiff_t left = units - j * LANES;
    return left >= LANES ? v_load(row + j * LANES) : v_load_n(row + j * LANES, left);
}

INLINE vf load_or_zero(const rc_rows *rows, ptrdiff_t row, ptrdiff_t j, ptrdiff_t units) {
    return has_rows(rows) ? load_units(row_of(rows, row), j, units) : v_zero();
}

/* Store vector j of a row that has exactly `units` elements. */
INLINE void store_units(real *row, ptrdiff_t j, ptrdiff_t units, vf v) {
    ptrdiff_t left = units - j * LANES;
    if (left >= LANES) v_store(row + j * LANES, v);
    else v_store_n(row + j * LANES, v, left);
}

/* Which rows and panels a tile has. */
typedef struct {
    ptrdiff_t row, panel;
    int rows, panels;
} place;

/* z <- vectors [first, first + vectors) of the tile's panels, from rows that have `size` of them for each panel. */
INLINE void load_tile(const rc_rows *from, const place t, const int vectors, const int size, const int first, vf *z) {
    const int rows = t.rows, panels = t.panels;
    real *at[MAX_ROWS];
    rows_of(from, t.row, rows, at);
    EACH_VECTOR(p, r, v) z[(v * panels + p) * rows + r] = v_load(at[r] + ((t.panel + p) * size + first + v) * LANES);
}

/* The first `vectors` vectors of each panel to such rows, if there are any. */
INLINE void store_tile(const rc_rows *to, const place t, const int vectors, const int size, const vf *z) {
    const int rows = t.rows, panels = t.panels;
    real *at[MAX_ROWS];
    if (!has_rows(to)) return;
    rows_of(to, t.row, rows, at);
    EACH_VECTOR(p, r, v) v_store(at[r] + ((t.panel + p) * size + v) * LANES, z[(v * panels + p) * rows + r]);
}

/* The new h, of `vectors` unit vectors of the `size` of a panel, to the state and to y. */
INLINE void emit_h(const rc_step *s, const place t, const int vectors, const int size, const vf *h) {
    const int rows = t.rows, panels = t.panels;
    real *y[MAX_ROWS];
    store_tile(&s->h_next, t, vectors, size, h);
    if (!has_rows(&s->y)) return;
    rows_of(&s->y, t.row, rows, y);
    EACH_VECTOR(p, r, v)
        store_units(y[r], (t.panel + p) * size + v, s->shape.units, h[(v * panels + p) * rows + r]);
}

INLINE vf one_minus(vf a) { return v_sub(v_set1(1), a); }
/* Derivatives from the activated value. */
INLINE vf d_sigmoid(vf s) { return v_mul(s, one_minus(s)); }
INLINE vf d_tanh(vf t) { return v_fnma(t, t, v_set1(1)); }

/* dz of gate g (in the order of rc_step_back) of unit vector j */
INLINE void emit_dz(const rc_step_back *s, ptrdiff_t row, ptrdiff_t j, int g, vf dz) {
    store_units(row_of(&s->dz, row) + g * s->units, j, s->units, dz);
}

/* ---------------------------------------------------------------------------------------------------------- RNN
 * h = tanh(z) or max(z, 0) */

INLINE void rnn_forward(const rc_step *s, const place t, const int vectors, vf *z) {
    const int n = t.rows * t.panels * vectors;
    if (s->cell != RC_RNN_TANH) UNROLL for (int i = 0; i < n; i++) z[i] = v_max(v_zero(), z[i]);
    else if (n > MOST_TANHS) tanh_all(z, n);
    else v_tanhs(n > MOST_TANHS ? MOST_TANHS : n, z); /* inline: of a single row the next step waits for it */
    store_tile(&s->saved, t, vectors, 4, z);
    emit_h(s, t, vectors, 4, z);
}

INLINE void rnn_backward(const enum rc_cell cell, const rc_step_back *s, ptrdiff_t row, ptrdiff_t j, vf dh) {
    vf h = v_load(unit_of(&s->saved, row, j));
    vf dz = cell == RC_RNN_TANH ? v_mul(dh, d_tanh(h)) : v_lt(v_zero(), h, dh, v_zero());
    emit_dz(s, row, j, 0, dz);
    v_store(unit_of(&s->dh, row, j), v_zero());
}

/* --------------------------------------------------------------------------------------------------------- LSTM
 * i, f, o = sigmoid(z_i, z_f, z_o), g = tanh(z_g);  c = f c_prev + i g;  h = o tanh(c) */

INLINE void lstm_forward(const rc_step *s, const place t, vf *z) {
    const int n = t.rows * t.panels;
    vf *i = z, *f = z + n, *g = z + 2 * n, *o = z + 3 * n, *c = i, *h = i, c_prev[MAX_ROWS];
    sigmoid_all(i, 2 * n);
    tanh_all(g, n);
    sigmoid_all(o, n);
    store_tile(&s->saved, t, 4, 4, z);
    load_tile(&s->c, t, 1, 1, 0, c_prev);
    UNROLL for (int k = 0; k < n; k++) c[k] = v_fma(f[k], c_prev[k], v_mul(i[k], g[k]));
    store_tile(&s->saved_unit, t, 1, 1, c_prev);
    store_tile(&s->c, t, 1, 1, c);
    tanh_all(c, n);
    UNROLL for (int k = 0; k < n; k++) h[k] = v_mul(o[k], c[k]);
    emit_h(s, t, 1, 1, h);
}

/* c, of which backward takes the tanh again. */
INLINE vf lstm_c(const rc_step_back *s, ptrdiff_t row, ptrdiff_t j) {
    const real *gate = row_of(&s->saved, row) + j * 4 * LANES;
    vf c_prev = v_load(unit_of(&s->saved_unit, row, j));
    return v_fma(v_load(gate + LANES), c_prev, v_mul(v_load(gate), v_load(gate + 2 * LANES)));
}

/* With several threads the others have read these lines of dz for the weights' gradients: each store alone would wait
 * for its line in turn. */
INLINE void dz_fetch(const rc_step_back *s, const int gates, ptrdiff_t row, ptrdiff_t j) {
    real *dz = row_of(&s->dz, row) + j * LANES;
    UNROLL for (int g = 0; g < gates; g++, dz += s->units) __builtin_prefetch(dz, 1);
}

INLINE void lstm_backward(const rc_step_back *s, ptrdiff_t row, ptrdiff_t j, vf dh, vf tanh_c) {
    const real *gate = row_of(&s->saved, row) + j * 4 * LANES;
    vf i = v_load(gate), f = v_load(gate + LANES), g = v_load(gate + 2 * LANES), o = v_load(gate + 3 * LANES);
    vf c_prev = v_load(unit_of(&s->saved_unit, row, j));
    real *dc_row = unit_of(&s->dc, row, j);
    vf dc = v_fma(v_mul(dh, o), d_tanh(tanh_c), v_load(dc_row));
    emit_dz(s, row, j, 0, v_mul(v_mul(dc, g), d_sigmoid(i)));
    emit_dz(s, row, j, 1, v_mul(v_mul(dc, c_prev), d_sigmoid(f)));
    emit_dz(s, row, j, 2, v_mul(v_mul(dc, i), d_tanh(g)));
    emit_dz(s, row, j, 3, v_mul(v_mul(dh, tanh_c), d_sigmoid(o)));
    v_store(dc_row, v_mul(dc, f));
    v_store(unit_of(&s->dh, row, j), v_zero());
}

/* ---------------------------------------------------------------------------------------------------------- GRU
 * r, z = sigmoid(z_r, z_z);  n = tanh(x_n + r (R_n h + b_hn));  h = (1 - z) n + z h_prev = n + z (h_prev - n) */

INLINE vf gru_mix(vf z, vf n, vf h_prev) { return v_fma(z, v_sub(h_prev, n), n); }

INLINE void gru_forward(const rc_step *s, const place t, vf *z) {
    const int n = t.rows * t.panels;
    vf *reset = z, *update = z + n, *h_n = z + 2 * n, *h = h_n, x_n[MAX_ROWS], h_prev[MAX_ROWS];
    sigmoid_all(reset, 2 * n);
    store_tile(&s->saved_unit, t, 1, 1, h_n);
    load_tile(&s->gates, t, 1, 3, 2, x_n);
    UNROLL for (int k = 0; k < n; k++) h_n[k] = v_fma(reset[k], h_n[k], x_n[k]);
    tanh_all(h_n, n);
    store_tile(&s->saved, t, 3, 3, z);
    load_tile(&s->h_prev, t, 1, 1, 0, h_prev);
    UNROLL for (int k = 0; k < n; k++) h[k] = gru_mix(update[k], h_n[k], h_prev[k]);
    emit_h(s, t, 1, 1, h);
}

INLINE void gru_backward(const rc_step_back *s, ptrdiff_t row, ptrdiff_t j, vf dh) {
    const real *gate = row_of(&s->saved, row) + j * 3 * LANES;
    vf r = v_load(gate), z = v_load(gate + LANES), n = v_load(gate + 2 * LANES);
    vf h_n = v_load(unit_of(&s->saved_unit, row, j));
    vf h_prev = load_or_zero(&s->h_prev, row, j, s->units);
    vf dn = v_mul(v_mul(dh, one_minus(z)), d_tanh(n));
    emit_dz(s, row, j, 0, dn);
    emit_dz(s, row, j, 1, v_mul(v_mul(dn, h_n), d_sigmoid(r)));
    emit_dz(s, row, j, 2, v_mul(v_mul(dh, v_sub(h_prev, n)), d_sigmoid(z)));
    emit_dz(s, row, j, 3, v_mul(dn, r));
    v_store(unit_of(&s->dh, row, j), v_mul(dh, z));
}

/* ----------------------------------------------------------------------------- GRU with the reset gate before R_n
 * r, z = sigmoid(z_r, z_z);  n = tanh(x_n + b_hn + R_n (r h));  h = n + z (h_prev - n)     (Cho et al. 2014)
 * Two products a step, so two phases: R_n needs r h of all units. */

INLINE void gru_rz_forward(const rc_step *s, const place t, vf *z) {
    const int n = t.rows * t.panels;
    vf *reset = z, *update = z + n, h_prev[MAX_ROWS];
    sigmoid_all(reset, 2 * n);
    store_tile(&s->saved, t, 2, 3, z);
    store_tile(&s->c, t, 1, 1, update);
    load_tile(&s->h_prev, t, 1, 1, 0, h_prev);
    UNROLL for (int k = 0; k < n; k++) reset[k] = v_mul(reset[k], h_prev[k]);
    store_tile(&s->reset, t, 1, 1, reset);
}

/* Panels of n have four unit vectors; where gates are saved, n is the third of each. */
INLINE void gru_n_forward(const rc_step *s, const place t, const int vectors, vf *z) {
    const int rows = t.rows, panels = t.panels, n = rows * panels * vectors;
    vf update[4 * MAX_ROWS], h_prev[4 * MAX_ROWS];
    real *saved[MAX_ROWS];
    tanh_all(z, n);
    if (has_rows(&s->saved)) {
        rows_of(&s->saved, t.row, rows, saved);
        EACH_VECTOR(p, r, v)
            v_store(saved[r] + (((t.panel + p) * 4 + v) * 3 + 2) * LANES, z[(v * panels + p) * rows + r]);
    }
    load_tile(&s->c, t, vectors, 4, 0, update);
    load_tile(&s->h_prev, t, vectors, 4, 0, h_prev);
    UNROLL for (int k = 0; k < n; k++) z[k] = gru_mix(update[k], z[k], h_prev[k]);
    emit_h(s, t, vectors, 4, z);
}

INLINE void gru_n_backward(const rc_step_back *s, ptrdiff_t row, ptrdiff_t j, vf dh) {
    const real *gate = row_of(&s->saved, row) + j * 3 * LANES;
    vf z = v_load(gate + LANES), n = v_load(gate + 2 * LANES);
    vf h_prev = load_or_zero(&s->h_prev, row, j, s->units);
    emit_dz(s, row, j, 0, v_mul(v_mul(dh, one_minus(z)), d_tanh(n)));
    emit_dz(s, row, j, 2, v_mul(v_mul(dh, v_sub(h_prev, n)), d_sigmoid(z)));
    v_store(unit_of(&s->dh, row, j), v_mul(dh, z));
}

/* d(r h) has come back through R_n. */
INLINE void gru_rz_backward(const rc_step_back *s, ptrdiff_t row, ptrdiff_t j) {
    vf r = v_load(row_of(&s->saved, row) + j * 3 * LANES);
    vf d_reset = v_load(unit_of(&s->reset, row, j));
    vf h_prev = load_or_zero(&s->h_prev, row, j, s->units);
    real *dh = unit_of(&s->dh, row, j);
    emit_dz(s, row, j, 1, v_mul(v_mul(d_reset, h_prev), d_sigmoid(r)));
    v_store(dh, v_fma(d_reset, r, v_load(dh)));
}

/* --------------------------------------------------------------------------------------------- tiles to cells */

/* Where in a gate row a panel's vector v lies. GRU_RZ has the gates r and z, GRU_N n, of gate rows of all three. */
INLINE ptrdiff_t gate_at(enum kind kind, ptrdiff_t panel, int v, int size) {
    if (kind == GRU_RZ) return panel * 3 + v;
    if (kind == GRU_N) return (panel * 4 + v) * 3 + 2;
    return panel * size + v;
}

/* The tile starts from the rows' gates, but for R_n h of a GRU, which starts from its bias; and from the product, where
 * it has been computed already. */
INLINE void step_start(enum kind kind, const rc_step *s, ptrdiff_t row, ptrdiff_t panel, const int rows,
                       const int panels, const int vectors, vf acc[][4]) {
    const int size = kind == GRU ? 3 : kind == GRU_RZ ? 2 : 4; /* vectors of a whole panel */
    real *from[MAX_ROWS];
    rows_of(&s->gates, row, rows, from);
    EACH_VECTOR(p, r, v) {
        const real *gate = from[r] + gate_at(kind, panel + p, v, size) * LANES;
        acc[p * rows + r][v] = v_load(kind == GRU && v == 2 ? (const real *)s->bias + (panel + p) * LANES : gate);
    }
    if (!has_rows(&s->product)) return;
    rows_of(&s->product, row, rows, from);
    EACH_VECTOR(p, r, v) {
        vf *z = &acc[p * rows + r][v];
        *z = v_add(*z, v_load(from[r] + ((panel + p) * size + v) * LANES));
    }
}

INLINE void step_finish(enum kind kind, const rc_step *s, const place t, const int vectors, vf *z) {
    switch (kind) {
    case LSTM: lstm_forward(s, t, z); break;
    case GRU: gru_forward(s, t, z); break;
    case GRU_RZ: gru_rz_forward(s, t, z); break;
    case GRU_N: gru_n_forward(s, t, vectors, z); break;
    default: rnn_forward(s, t, vectors, z);
    }
}

static enum kind kind_of(const rc_step *s) {
    switch (s->cell) {
    case RC_LSTM: return LSTM;
    case RC_GRU: return GRU;
    case RC_GRU_RESET_BEFORE: return s->phase ? GRU_N : GRU_RZ;
    default: return RNN;
    }
}

/* The rows after a step, as rc_sequence has them. */
INLINE void next_step(rc_step *s, const rc_sequence *q) {
    const rc_rows h = s->h_prev;
    s->h_prev = s->h_next;
    s->h_next = h;
    s->gates.ptr += q->rows;
    if (s->y.ptr) s->y.ptr += q->rows;
    if (s->saved.base) s->saved.base = row_of(&s->saved, q->tape);
    if (s->saved_unit.base) s->saved_unit.base = row_of(&s->saved_unit, q->tape);
}

/* Field by field in place: a whole struct copied at once would wait for the stores of its fields. */
INLINE void plan_step(enum kind kind, product *g, const rc_step *s) {
    g->shape = &s->shape;
    g->packed = s->packed;
    g->a = s->phase ? &s->reset : &s->h_prev;
    g->job = s;
    g->row_begin = s->row_begin;
    g->row_end = s->row_end;
    g->panel_begin = s->panel_begin;
    g->panel_end = s->panel_end;
    g->chains = s->chains;
    g->backwards = s->backwards;
    plan_run(kind, g);
}

static void step(const rc_step *s) {
    const enum kind kind = kind_of(s);
    product g;
    plan_step(kind, &g, s);
    run(kind, &g);
}

/* A step of a team: the first tile takes what there is of k, and goes on when the rest is there. */
static void run_shared(enum kind kind, product *g, const rc_sequence *q) {
    vf sums[MAX_ROWS][4];
    const ptrdiff_t k = g->shape->k, there = g->panel_end * (g->shape->gates > 1 ? 1 : 4) * LANES;
    const int cut = g->count > 0 && g->chains == 1 && g->row_end - g->row_begin <= WIDE_ROWS && there < k;
    q->wait(q->team, 0);
    if (cut) {
        g->sums = sums;
        g->k_end = there;
        run_at(kind, g, 0);
        g->k_begin = there;
        g->k_end = k;
    }
    q->wait(q->team, 1);
    for (ptrdiff_t i = 0; i < g->count; i++, g->k_begin = 0) run_at(kind, g, i);
    q->pass(q->team);
}

static void steps(const rc_step *first, const rc_sequence *q) {
    rc_step s = *first;
    const enum kind kind = kind_of(&s);
    product g;
    plan_step(kind, &g, &s);
    for (ptrdiff_t left = q->count; left > 0;) {
        if (q->team) run_shared(kind, &g, q);
        else run(kind, &g);
        if (--left == 0) return;
        next_step(&s, q);
        g.backwards ^= q->alternates;
    }
}

INLINE void unit_back(const enum rc_cell cell, const rc_step_back *s, ptrdiff_t row, ptrdiff_t j, vf tanh_c) {
    vf dh = v_add(load_or_zero(&s->dy, row, j, s->units), v_load(unit_of(&s->dh, row, j)));
    switch (cell) {
    case RC_LSTM: lstm_backward(s, row, j, dh, tanh_c); break;
    case RC_GRU: gru_backward(s, row, j, dh); break;
    case RC_GRU_RESET_BEFORE: gru_n_backward(s, row, j, dh); break;
    default: rnn_backward(cell, s, row, j, dh);
    }
}

/* Into L2: of the tape and of dy what the next step will read, of h_prev, which a GRU reads itself, what the weights'
 * gradients will. So many streams, which begin anew at each step, the processor does not fetch by itself. */
INLINE void back_fetch(const enum rc_cell cell, const rc_step_back *s, ptrdiff_t row, ptrdiff_t j) {
    const int is_gru = cell == RC_GRU || cell == RC_GRU_RESET_BEFORE, gates = cell == RC_LSTM ? 4 : is_gru ? 3 : 1;
    const ptrdiff_t unit = (s->ahead * rc_vectors(s->units, LANES) + j) * LANES;
    const real *gate = row_of(&s->saved, row) + unit * gates;
    UNROLL for (int v = 0; v < gates; v++) __builtin_prefetch(gate + v * LANES, 0, 2);
    if (cell == RC_LSTM || cell == RC_GRU) __builtin_prefetch(row_of(&s->saved_unit, row) + unit, 0, 2);
    if (has_rows(&s->dy)) __builtin_prefetch(unit_of(&s->dy, row, j) + s->dy_ahead, 0, 2);
    if (!is_gru && has_rows(&s->h_prev)) __builtin_prefetch(unit_of(&s->h_prev, row, j), 0, 2);
}

/* `cell` is a constant, and s a copy that no store can reach: what is the same for all units is computed once. */
INLINE void back(const enum rc_cell cell, rc_step_back s) {
    const rc_rows dz = s.dz;
    const int gradients = cell == RC_LSTM || cell == RC_GRU ? 4 : cell == RC_GRU_RESET_BEFORE ? 3 : 1; /* of a unit */
    for (ptrdiff_t row = s.row_begin; row < s.row_end; row++) {
        s.dz = (rc_rows){row_of(&dz, row), 0, 0};
        for (ptrdiff_t j = s.unit_begin; j < s.unit_end; j += SIDE_BY_SIDE) {
            const int count = s.unit_end - j < SIDE_BY_SIDE ? (int)(s.unit_end - j) : SIDE_BY_SIDE;
            vf tanh_c[SIDE_BY_SIDE];
            for (int i = 0; i < count; i++) dz_fetch(&s, gradients, row, j + i);
            for (int i = 0; i < count; i++) back_fetch(cell, &s, row, j + i);
            for (int i = 0; i < count; i++) tanh_c[i] = cell == RC_LSTM ? lstm_c(&s, row, j + i) : v_zero();
            if (cell == RC_LSTM) tanh_all(tanh_c, count);
            for (int i = 0; i < count; i++) unit_back(cell, &s, row, j + i, tanh_c[i]);
        }
    }
}

static void step_back(const rc_step_back *s) {
    switch (s->cell) {
    case RC_LSTM: back(RC_LSTM, *s); break;
    case RC_GRU: back(RC_GRU, *s); break;
    case RC_GRU_RESET_BEFORE:
        if (s->phase == 0) back(RC_GRU_RESET_BEFORE, *s);
        else for (ptrdiff_t row = s->row_begin; row < s->row_end; row++)
            for (ptrdiff_t j = s->unit_begin; j < s->unit_end; j++) gru_rz_backward(s, row, j);
        break;
    case RC_RNN_TANH: back(RC_RNN_TANH, *s); break;
    default: back(RC_RNN_RELU, *s);
    }
}
