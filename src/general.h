/* The general recurrent path: every RNN, LSTM and GRU that ONNX can describe, plainly written.
 *
 * One call runs one direction of one layer over a range of steps. The fused engine is the fast path for the
 * usual cells; this one adds peepholes, clip, coupled gates and other activations, forward and backward.
 * Gate order is i,f,g,o (LSTM) and r,z,n (GRU); G is the number of gates.
 *
 * Steps are counted along each sequence in the order in which the recurrence takes them: step s of a sequence
 * of length n stands at time s, or at time n-1-s in reverse. All arrays are C-contiguous and belong to the caller;
 * none may overlap another. Nothing here allocates or fails.
 */
#ifndef RC_GENERAL_H
#define RC_GENERAL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { RC_CELL_RNN, RC_CELL_LSTM, RC_CELL_GRU };

enum {
    RC_ACT_RELU, RC_ACT_TANH, RC_ACT_SIGMOID, RC_ACT_AFFINE, RC_ACT_LEAKY_RELU, RC_ACT_THRESHOLDED_RELU,
    RC_ACT_SCALED_TANH, RC_ACT_HARD_SIGMOID, RC_ACT_ELU, RC_ACT_SOFTSIGN, RC_ACT_SOFTPLUS, RC_ACT_COUNT
};

typedef struct {
    int kind;                    /* RC_ACT_* */
    double alpha, beta;          /* read only by the kinds that have them */
} rc_activation;

typedef struct {
    int cell;                    /* RC_CELL_* */
    int reverse;                 /* each sequence from its last real step to its first */
    int coupled;                 /* LSTM: f = 1 - i; the forget gate's rows are then read by nobody */
    int reset_after;             /* GRU: n = g(Wx + b + r (Rh + b')) instead of g(Wx + b + R(r h) + b') */
    int keep;                    /* the tape keeps every step; otherwise one step and two states */
    double clip;                 /* bound on the input of every gate's activation; INFINITY for none */
    rc_activation act[3];        /* RNN: f. GRU: f (r, z), g (n). LSTM: f (i, f, o), g (g), h (on c) */
    size_t steps, batch, input, hidden;
    size_t y_stride;             /* elements from one row of y (or dy) to the next, >= hidden */
    const int64_t *lengths;      /* (B,), each 0..steps, or NULL: all are `steps` */
} rc_general_plan;

/* Scratch of one call, B elements each: the sequences of a step and pointers to their rows. */
typedef struct {
    size_t *active;
    void **a, **b, **c;
} rc_general_scratch;

/* Every array of a call, of float or of double; S = steps with keep, 1 without.
 * Backward needs a kept tape; what a call does not use may be NULL. */
typedef struct {
    const void *x;               /* (T, B, I) */
    const void *w, *r;           /* (G*H, I), (G*H, H) */
    const void *bw, *br;         /* (G*H,) each, or both NULL */
    const void *p;               /* LSTM peepholes (3*H,) in the order i, f, o, or NULL */
    void *y;                     /* T*B rows of H at y_stride, zeroed by the caller */
    void *pre, *post;            /* (S, B, G*H): inputs (before the clip) and outputs of the gates */
    void *aux;                   /* (S, B, H): LSTM h(c); GRU R_n h + b' (reset_after) or r h */
    void *h, *c;                 /* (S + 1, B, H), or (2, B, H) without keep; slot 0 filled; c for LSTM only */
    const void *dy;              /* as y */
    void *dx;                    /* as x, added to, or NULL */
    void *dw, *dr, *dbw, *dbr, *dp;   /* shapes as of the weights; added to; NULL where the weight is */
    void *dh, *dc;               /* (B, H): in, gradients of the final state; out, of the initial one */
    void *dgx, *dgh;             /* (B, G*H) scratch; may be one array unless a GRU has reset_after */
    void *drh;                   /* (B, H) scratch, GRU only */
} rc_general_arrays;

/* ---- where things stand ---- */

static size_t general_length(const rc_general_plan *plan, size_t b)
{
    return plan->lengths ? (size_t)plan->lengths[b] : plan->steps;
}

/* Row of x and y (counted in T, B) at which sequence b has its step s. */
static size_t general_place(const rc_general_plan *plan, size_t s, size_t b)
{
    const size_t t = plan->reverse ? general_length(plan, b) - 1 - s : s;
    return t * plan->batch + b;
}

static size_t general_step_row(const rc_general_plan *plan, size_t s, size_t b)
{
    return (plan->keep ? s : 0) * plan->batch + b;
}

static size_t general_state_row(const rc_general_plan *plan, size_t s, size_t b)
{
    return (plan->keep ? s : s & 1) * plan->batch + b;
}

static size_t general_gates(const rc_general_plan *plan)
{
    return plan->cell == RC_CELL_LSTM ? 4 : plan->cell == RC_CELL_GRU ? 3 : 1;
}

/* The sequences that have a step s; returns their number. */
static size_t general_find_active(const rc_general_plan *plan, const rc_general_scratch *scratch, size_t s)
{
    size_t count = 0;
    for (size_t b = 0; b < plan->batch; b++)
        if (s < general_length(plan, b))
            scratch->active[count++] = b;
    return count;
}

/* The body once for each element type. Static: _general.pyx is the only user. */
#define RC_PASTE_(a, b) a##_##b
#define RC_PASTE(a, b) RC_PASTE_(a, b)
#define NAME(name) RC_PASTE(name, SUFFIX)

/* The products compiled for several instruction sets, one of which is picked when the module is loaded. Products and
 * sums are never fused and their order is written out, so that all of them give the same bits. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FOR_EACH_CPU
#endif
#define LANES 16                 /* partial sums of a product, whatever the instruction set */

#define real float
#define SUFFIX f32
#define TANH tanhf
#define EXP expf
#define LOG1P log1pf
#define FABS fabsf
#include "general_body.h"

#define real double
#define SUFFIX f64
#define TANH tanh
#define EXP exp
#define LOG1P log1p
#define FABS fabs
#include "general_body.h"
#undef NAME
#undef RC_PASTE
#undef RC_PASTE_
#undef FOR_EACH_CPU
#undef LANES

/* Steps begin..end-1; without keep the final state stands in slot `steps & 1`, with it in slot `steps`. */
static void rc_general_forward(const rc_general_plan *plan, const rc_general_arrays *arrays,
                               const rc_general_scratch *scratch, int wide, size_t begin, size_t end)
{
    (wide ? general_forward_f64 : general_forward_f32)(plan, arrays, scratch, begin, end);
}

/* Steps end-1 down to begin. */
static void rc_general_backward(const rc_general_plan *plan, const rc_general_arrays *arrays,
                                const rc_general_scratch *scratch, int wide, size_t begin, size_t end)
{
    (wide ? general_backward_f64 : general_backward_f32)(plan, arrays, scratch, begin, end);
}

#endif
