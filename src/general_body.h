/* Body of the general path for one `real`; general.h is the contract. Included by general.h only.
 *
 * Rows are handed to the products as arrays of pointers, so that the sequences which still have a step are
 * computed together and those that ended cost nothing. Every sum has an order that depends on its own length
 * alone: a row's bits do not depend on the batch around it.
 */

/* The typed view of rc_general_arrays. */
typedef struct {
    const real *w, *r, *bw, *br, *p;
} NAME(weights);
typedef struct {
    real *dw, *dr, *dbw, *dbr, *dp;
} NAME(grads);
typedef struct {
    real *pre, *post, *aux, *h, *c;
} NAME(tape);
typedef struct {
    real *dgx, *dgh, *drh, *dh, *dc;
} NAME(flow);

/* ---- activations ---------------------------------------------------------------------------------------- */

static real NAME(activate)(const rc_activation *act, real x)
{
    const real a = (real)act->alpha, b = (real)act->beta;
    switch (act->kind) {
    case RC_ACT_RELU: return x < 0 ? 0 : x;
    case RC_ACT_TANH: return TANH(x);
    case RC_ACT_SIGMOID: return 1 / (1 + EXP(-x));
    case RC_ACT_AFFINE: return a * x + b;
    case RC_ACT_LEAKY_RELU: return x < 0 ? a * x : x;
    case RC_ACT_THRESHOLDED_RELU: return x < a ? 0 : x;
    case RC_ACT_SCALED_TANH: return a * TANH(b * x);
    case RC_ACT_HARD_SIGMOID: x = a * x + b; return x < 0 ? 0 : x > 1 ? 1 : x;
    case RC_ACT_ELU: return x < 0 ? a * (EXP(x) - 1) : x;
    case RC_ACT_SOFTSIGN: return x / (1 + FABS(x));
    default: return (x > 0 ? x : 0) + LOG1P(EXP(-FABS(x)));   /* softplus without overflow; NaN stays NaN */
    }
}

/* d activate(x) / dx, given y = activate(x); at a corner the slope to the right, as activate() decides there. */
static real NAME(slope)(const rc_activation *act, real x, real y)
{
    const real a = (real)act->alpha, b = (real)act->beta;
    real t;
    switch (act->kind) {
    case RC_ACT_RELU: return x > 0 ? 1 : 0;
    case RC_ACT_TANH: return 1 - y * y;
    case RC_ACT_SIGMOID: return y * (1 - y);
    case RC_ACT_AFFINE: return a;
    case RC_ACT_LEAKY_RELU: return x < 0 ? a : 1;
    case RC_ACT_THRESHOLDED_RELU: return x < a ? 0 : 1;
    case RC_ACT_SCALED_TANH: t = TANH(b * x); return a * b * (1 - t * t);
    case RC_ACT_HARD_SIGMOID: t = a * x + b; return t < 0 || t > 1 ? 0 : a;
    case RC_ACT_ELU: return x < 0 ? y + a : 1;
    case RC_ACT_SOFTSIGN: t = 1 + FABS(x); return 1 / (t * t);
    default: return 1 / (1 + EXP(-x));
    }
}

/* A gate: its activation over the clipped input. */
static real NAME(gate)(const rc_general_plan *plan, int which, real pre)
{
    const real bound = (real)plan->clip;
    pre = pre > bound ? bound : pre < -bound ? -bound : pre;
    return NAME(activate)(&plan->act[which], pre);
}

/* Outside the bound the clip is flat, so nothing flows. */
static real NAME(gate_slope)(const rc_general_plan *plan, int which, real pre, real post)
{
    if (FABS(pre) > (real)plan->clip)
        return 0;
    return NAME(slope)(&plan->act[which], pre, post);
}

#include "general_products_body.h"

/* ---- rows and states -------------------------------------------------------------------------------------- */

/* One row's pointers at step s. */
typedef struct {
    const real *x, *h_prev, *c_prev;
    real *pre, *post, *aux, *h, *c;
} NAME(row);

static NAME(row) NAME(row_at)(const rc_general_plan *plan, const NAME(tape) *tape, const real *x, size_t s, size_t b)
{
    const size_t H = plan->hidden, GH = general_gates(plan) * H;
    const size_t now = general_step_row(plan, s, b);
    const size_t before = general_state_row(plan, s, b), after = general_state_row(plan, s + 1, b);
    const int lstm = plan->cell == RC_CELL_LSTM;
    NAME(row) row = {
        x + general_place(plan, s, b) * plan->input,
        tape->h + before * H,
        lstm ? tape->c + before * H : NULL,
        tape->pre + now * GH,
        tape->post + now * GH,
        plan->cell == RC_CELL_RNN ? NULL : tape->aux + now * H,
        tape->h + after * H,
        lstm ? tape->c + after * H : NULL,
    };
    return row;
}

/* The state of a sequence that has ended goes on unchanged. */
static void NAME(carry)(const rc_general_plan *plan, const NAME(tape) *tape, size_t s)
{
    const size_t H = plan->hidden;
    for (size_t b = 0; b < plan->batch; b++) {
        if (s < general_length(plan, b))
            continue;
        const size_t from = general_state_row(plan, s, b) * H, to = general_state_row(plan, s + 1, b) * H;
        memcpy(tape->h + to, tape->h + from, H * sizeof(real));
        if (plan->cell == RC_CELL_LSTM)
            memcpy(tape->c + to, tape->c + from, H * sizeof(real));
    }
}

/* ---- cells, forward: pre holds W x + R h + b ------------------------------------------------------------ */

static void NAME(lstm_forward)(const rc_general_plan *plan, const real *p, const NAME(row) *row)
{
    const size_t H = plan->hidden;
    real *pre = row->pre, *post = row->post;
    for (size_t u = 0; u < H; u++) {
        const real c_prev = row->c_prev[u];
        if (p) {
            pre[u] += p[u] * c_prev;
            pre[H + u] += p[H + u] * c_prev;
        }
        const real i = NAME(gate)(plan, 0, pre[u]);
        const real f = plan->coupled ? 1 - i : NAME(gate)(plan, 0, pre[H + u]);
        const real g = NAME(gate)(plan, 1, pre[2 * H + u]);
        const real c = f * c_prev + i * g;
        if (p)
            pre[3 * H + u] += p[2 * H + u] * c;
        const real o = NAME(gate)(plan, 0, pre[3 * H + u]);
        post[u] = i;
        post[H + u] = f;
        post[2 * H + u] = g;
        post[3 * H + u] = o;
        row->c[u] = c;
        row->aux[u] = NAME(activate)(&plan->act[2], c);   /* the clip bounds gates, not c: as ONNX Runtime has it */
        row->h[u] = o * row->aux[u];
    }
}

/* Reset gate first: r * h is the input of R_n, or r scales what R_n gave. */
static void NAME(gru_reset)(const rc_general_plan *plan, const real *br, const NAME(row) *row)
{
    const size_t H = plan->hidden;
    for (size_t u = 0; u < H; u++) {
        row->post[u] = NAME(gate)(plan, 0, row->pre[u]);
        row->aux[u] = plan->reset_after ? (br ? br[2 * H + u] : 0) : row->post[u] * row->h_prev[u];
    }
}

static void NAME(gru_forward)(const rc_general_plan *plan, const NAME(row) *row)
{
    const size_t H = plan->hidden;
    real *pre = row->pre, *post = row->post;
    for (size_t u = 0; u < H; u++) {
        const real z = NAME(gate)(plan, 0, pre[H + u]);
        if (plan->reset_after)
            pre[2 * H + u] += post[u] * row->aux[u];
        const real n = NAME(gate)(plan, 1, pre[2 * H + u]);
        post[H + u] = z;
        post[2 * H + u] = n;
        row->h[u] = (1 - z) * n + z * row->h_prev[u];
    }
}

static void NAME(rnn_forward)(const rc_general_plan *plan, const NAME(row) *row)
{
    for (size_t u = 0; u < plan->hidden; u++)
        row->h[u] = row->post[u] = NAME(gate)(plan, 0, row->pre[u]);
}

/* pre = b: both biases, but for R_n's under reset_after, which gru_reset puts inside the product with r. */
static void NAME(start_row)(const rc_general_plan *plan, const NAME(weights) *w, real *pre)
{
    const size_t GH = general_gates(plan) * plan->hidden;
    const size_t both = plan->cell == RC_CELL_GRU && plan->reset_after ? 2 * plan->hidden : GH;
    for (size_t j = 0; j < GH; j++)
        pre[j] = !w->bw ? 0 : j < both ? w->bw[j] + w->br[j] : w->bw[j];
}

/* W x + R h + b into pre, and a GRU's reset gate into post and aux. */
static void NAME(gates_step)(const rc_general_plan *plan, const NAME(weights) *w, const real *x,
                             const NAME(tape) *tape, const rc_general_scratch *scratch, size_t count, size_t s)
{
    const size_t H = plan->hidden, GH = general_gates(plan) * H;
    const int gru = plan->cell == RC_CELL_GRU;
    real **as = (real **)scratch->a, **hs = (real **)scratch->b, **pres = (real **)scratch->c;
    for (size_t m = 0; m < count; m++) {
        const NAME(row) row = NAME(row_at)(plan, tape, x, s, scratch->active[m]);
        NAME(start_row)(plan, w, row.pre);
        as[m] = (real *)row.x;
        hs[m] = (real *)row.h_prev;
        pres[m] = row.pre;
    }
    NAME(rows_dot)(count, GH, plan->input, as, w->w, pres, 0);
    NAME(rows_dot)(count, gru ? 2 * H : GH, H, hs, w->r, pres, 0);
    if (!gru)
        return;
    for (size_t m = 0; m < count; m++) {
        const NAME(row) row = NAME(row_at)(plan, tape, x, s, scratch->active[m]);
        NAME(gru_reset)(plan, w->br, &row);
        as[m] = row.aux;
    }
    if (plan->reset_after)
        NAME(rows_dot)(count, H, H, hs, w->r + 2 * H * H, as, 0);
    else
        NAME(rows_dot)(count, H, H, as, w->r + 2 * H * H, pres, 2 * H);
}

static void NAME(forward_step)(const rc_general_plan *plan, const NAME(weights) *w, const real *x, real *y,
                               const NAME(tape) *tape, const rc_general_scratch *scratch, size_t s)
{
    const size_t H = plan->hidden, count = general_find_active(plan, scratch, s);
    NAME(carry)(plan, tape, s);
    NAME(gates_step)(plan, w, x, tape, scratch, count, s);
    for (size_t m = 0; m < count; m++) {
        const size_t b = scratch->active[m];
        const NAME(row) row = NAME(row_at)(plan, tape, x, s, b);
        if (plan->cell == RC_CELL_LSTM)
            NAME(lstm_forward)(plan, w->p, &row);
        else if (plan->cell == RC_CELL_GRU)
            NAME(gru_forward)(plan, &row);
        else
            NAME(rnn_forward)(plan, &row);
        real *out = y + general_place(plan, s, b) * plan->y_stride;
        for (size_t u = 0; u < H; u++)
            out[u] = row.h[u];
    }
}

static void NAME(general_forward)(const rc_general_plan *plan, const rc_general_arrays *arrays,
                                  const rc_general_scratch *scratch, size_t begin, size_t end)
{
    const NAME(weights) w = {arrays->w, arrays->r, arrays->bw, arrays->br, arrays->p};
    const NAME(tape) tape = {arrays->pre, arrays->post, arrays->aux, arrays->h, arrays->c};
    for (size_t s = begin; s < end; s++)
        NAME(forward_step)(plan, &w, arrays->x, arrays->y, &tape, scratch, s);
}

/* ---- cells, backward: from dh (and dc) of this step to the gates' gradients and what goes to the step before --- */

static void NAME(lstm_backward)(const rc_general_plan *plan, const real *p, const NAME(row) *row, real *dp, real *dg,
                                real *dh, real *dc)
{
    const size_t H = plan->hidden;
    const real *pre = row->pre, *post = row->post;
    for (size_t u = 0; u < H; u++) {
        const real i = post[u], f = post[H + u], g = post[2 * H + u], o = post[3 * H + u];
        const real c = row->c[u], c_prev = row->c_prev[u], hc = row->aux[u];
        const real d_o = dh[u] * hc * NAME(gate_slope)(plan, 0, pre[3 * H + u], o);
        real d_c = dc[u] + dh[u] * o * NAME(slope)(&plan->act[2], c, hc);
        if (p)
            d_c += d_o * p[2 * H + u];
        const real into_i = plan->coupled ? d_c * (g - c_prev) : d_c * g;
        const real d_i = into_i * NAME(gate_slope)(plan, 0, pre[u], i);
        const real d_f = plan->coupled ? 0 : d_c * c_prev * NAME(gate_slope)(plan, 0, pre[H + u], f);
        dg[u] = d_i;
        dg[H + u] = d_f;
        dg[2 * H + u] = d_c * i * NAME(gate_slope)(plan, 1, pre[2 * H + u], g);
        dg[3 * H + u] = d_o;
        dh[u] = 0;
        dc[u] = d_c * f;
        if (p) {
            dc[u] += d_i * p[u] + d_f * p[H + u];
            dp[u] += d_i * c_prev;
            dp[H + u] += d_f * c_prev;
            dp[2 * H + u] += d_o * c;
        }
    }
}

/* All but the reset gate of a GRU without reset_after, whose gradient comes through R_n: gru_reset_backward. */
static void NAME(gru_backward)(const rc_general_plan *plan, const NAME(row) *row, real *dgx, real *dgh, real *dh)
{
    const size_t H = plan->hidden;
    const real *pre = row->pre, *post = row->post;
    for (size_t u = 0; u < H; u++) {
        const real r = post[u], z = post[H + u], n = post[2 * H + u];
        const real d_z = dh[u] * (row->h_prev[u] - n) * NAME(gate_slope)(plan, 0, pre[H + u], z);
        const real d_n = dh[u] * (1 - z) * NAME(gate_slope)(plan, 1, pre[2 * H + u], n);
        dgx[H + u] = dgh[H + u] = d_z;
        dgx[2 * H + u] = d_n;
        dh[u] *= z;
        if (plan->reset_after) {
            dgx[u] = dgh[u] = d_n * row->aux[u] * NAME(gate_slope)(plan, 0, pre[u], r);
            dgh[2 * H + u] = d_n * r;
        }
    }
}

static void NAME(gru_reset_backward)(const rc_general_plan *plan, const NAME(row) *row, const real *drh, real *dg,
                                     real *dh)
{
    for (size_t u = 0; u < plan->hidden; u++) {
        dg[u] = drh[u] * row->h_prev[u] * NAME(gate_slope)(plan, 0, row->pre[u], row->post[u]);
        dh[u] += drh[u] * row->post[u];
    }
}

static void NAME(rnn_backward)(const rc_general_plan *plan, const NAME(row) *row, real *dg, real *dh)
{
    for (size_t u = 0; u < plan->hidden; u++) {
        dg[u] = dh[u] * NAME(gate_slope)(plan, 0, row->pre[u], row->post[u]);
        dh[u] = 0;
    }
}

/* Pointwise part of one row: takes dy in, leaves the gates' gradients and the direct part of dh, dc. */
static void NAME(row_backward)(const rc_general_plan *plan, const NAME(weights) *w, real *dp, const NAME(flow) *flow,
                               const NAME(row) *row, const real *dy, size_t b)
{
    const size_t H = plan->hidden, GH = general_gates(plan) * H;
    real *dh = flow->dh + b * H, *dgx = flow->dgx + b * GH, *dgh = flow->dgh + b * GH;
    for (size_t u = 0; u < H; u++)
        dh[u] += dy[u];
    if (plan->cell == RC_CELL_LSTM)
        NAME(lstm_backward)(plan, w->p, row, dp, dgx, dh, flow->dc + b * H);
    else if (plan->cell == RC_CELL_GRU)
        NAME(gru_backward)(plan, row, dgx, dgh, dh);
    else
        NAME(rnn_backward)(plan, row, dgx, dh);
}

/* The way through R_n (r h) of a GRU without reset_after: the reset gate's gradient and dR_n. */
static void NAME(reset_step)(const rc_general_plan *plan, const NAME(weights) *w, const NAME(grads) *grads,
                             const NAME(tape) *tape, const NAME(flow) *flow, const real *x,
                             const rc_general_scratch *scratch, size_t count, size_t s)
{
    const size_t H = plan->hidden;
    real **dgs = (real **)scratch->a, **auxs = (real **)scratch->b, **drhs = (real **)scratch->c;
    for (size_t m = 0; m < count; m++) {
        const size_t b = scratch->active[m];
        dgs[m] = flow->dgx + b * 3 * H;
        auxs[m] = NAME(row_at)(plan, tape, x, s, b).aux;
        drhs[m] = flow->drh + b * H;
        memset(drhs[m], 0, H * sizeof(real));
    }
    NAME(rows_axpy)(count, H, H, dgs, 2 * H, w->r + 2 * H * H, drhs);
    NAME(rows_outer)(count, H, H, dgs, 2 * H, auxs, grads->dr + 2 * H * H);
    for (size_t m = 0; m < count; m++) {
        const size_t b = scratch->active[m];
        const NAME(row) row = NAME(row_at)(plan, tape, x, s, b);
        NAME(gru_reset_backward)(plan, &row, flow->drh + b * H, flow->dgx + b * 3 * H, flow->dh + b * H);
    }
}

/* dW, dbw and dx of one step. */
static void NAME(input_step)(const rc_general_plan *plan, const NAME(weights) *w, const NAME(grads) *grads,
                             const NAME(flow) *flow, const real *x, real *dx, const rc_general_scratch *scratch,
                             size_t count, size_t s)
{
    const size_t width = plan->input, GH = general_gates(plan) * plan->hidden;
    real **dgs = (real **)scratch->a, **xs = (real **)scratch->b, **dxs = (real **)scratch->c;
    for (size_t m = 0; m < count; m++) {
        const size_t b = scratch->active[m], at = general_place(plan, s, b) * width;
        dgs[m] = flow->dgx + b * GH;
        xs[m] = (real *)x + at;
        dxs[m] = dx ? dx + at : NULL;
        if (grads->dbw)
            NAME(axpy)(GH, 1, dgs[m], grads->dbw);
    }
    NAME(rows_outer)(count, GH, width, dgs, 0, xs, grads->dw);
    if (dx)
        NAME(rows_axpy)(count, GH, width, dgs, 0, w->w, dxs);
}

/* dR, dbr and the dh of the step before; without reset_after, R_n had its share in reset_step. */
static void NAME(hidden_step)(const rc_general_plan *plan, const NAME(weights) *w, const NAME(grads) *grads,
                              const NAME(tape) *tape, const NAME(flow) *flow, const real *x,
                              const rc_general_scratch *scratch, size_t count, size_t s)
{
    const size_t H = plan->hidden, GH = general_gates(plan) * H;
    const size_t direct = plan->cell == RC_CELL_GRU && !plan->reset_after ? 2 * H : GH;
    real **dgs = (real **)scratch->a, **hs = (real **)scratch->b, **dhs = (real **)scratch->c;
    for (size_t m = 0; m < count; m++) {
        const size_t b = scratch->active[m];
        dgs[m] = flow->dgh + b * GH;
        hs[m] = (real *)NAME(row_at)(plan, tape, x, s, b).h_prev;
        dhs[m] = flow->dh + b * H;
        if (grads->dbr)
            NAME(axpy)(GH, 1, dgs[m], grads->dbr);
    }
    NAME(rows_outer)(count, direct, H, dgs, 0, hs, grads->dr);
    NAME(rows_axpy)(count, direct, H, dgs, 0, w->r, dhs);
}

static void NAME(backward_step)(const rc_general_plan *plan, const NAME(weights) *w, const NAME(grads) *grads,
                                const NAME(tape) *tape, const NAME(flow) *flow, const real *x, const real *dy,
                                real *dx, const rc_general_scratch *scratch, size_t s)
{
    const size_t count = general_find_active(plan, scratch, s);
    for (size_t m = 0; m < count; m++) {
        const size_t b = scratch->active[m];
        const NAME(row) row = NAME(row_at)(plan, tape, x, s, b);
        NAME(row_backward)(plan, w, grads->dp, flow, &row, dy + general_place(plan, s, b) * plan->y_stride, b);
    }
    if (plan->cell == RC_CELL_GRU && !plan->reset_after)
        NAME(reset_step)(plan, w, grads, tape, flow, x, scratch, count, s);
    NAME(input_step)(plan, w, grads, flow, x, dx, scratch, count, s);
    NAME(hidden_step)(plan, w, grads, tape, flow, x, scratch, count, s);
}

static void NAME(general_backward)(const rc_general_plan *plan, const rc_general_arrays *arrays,
                                   const rc_general_scratch *scratch, size_t begin, size_t end)
{
    const NAME(weights) w = {arrays->w, arrays->r, arrays->bw, arrays->br, arrays->p};
    const NAME(grads) grads = {arrays->dw, arrays->dr, arrays->dbw, arrays->dbr, arrays->dp};
    const NAME(tape) tape = {arrays->pre, arrays->post, arrays->aux, arrays->h, arrays->c};
    const NAME(flow) flow = {arrays->dgx, arrays->dgh, arrays->drh, arrays->dh, arrays->dc};
    for (size_t s = end; s-- > begin;)
        NAME(backward_step)(plan, &w, &grads, &tape, &flow, arrays->x, arrays->dy, arrays->dx, scratch, s);
}

#undef real
#undef SUFFIX
#undef TANH
#undef EXP
#undef LOG1P
#undef FABS
