/* The recurrent kernels of every instruction set that this machine has, on arrays of exactly the size that kernels.h
 * promises them: the sanitizers see a read or write past an end. What is computed is the business of the Python tests.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "dispatch.h"
#include "kernels.h"
#include "pool.h"

enum { OUT = 5 }; /* a stride of the caller's own: rows that lie apart */

static size_t itemsize;

static void *array(ptrdiff_t n)
{
    void *made = malloc((size_t)n * itemsize + (n == 0));
    if (!made)
        exit(2);
    for (ptrdiff_t i = 0; i < n; i++) {
        if (itemsize == sizeof(float))
            ((float *)made)[i] = 0.01f * (float)(i % 7 - 3);
        else
            ((double *)made)[i] = 0.01 * (double)(i % 7 - 3);
    }
    return made;
}

static rc_rows rows(ptrdiff_t count, ptrdiff_t width)
{
    rc_rows r = {array(count * width), width, NULL};
    return r;
}

/* Rows of exactly `width` elements, each an array of its own. */
static rc_rows apart(ptrdiff_t count, ptrdiff_t width)
{
    rc_rows r = {NULL, 0, malloc((size_t)count * sizeof(void *) + 1)};
    if (!r.ptr)
        exit(2);
    for (ptrdiff_t i = 0; i < count; i++) r.ptr[i] = array(width);
    return r;
}

static void drop(rc_rows r, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; r.ptr && i < count; i++) free(r.ptr[i]);
    free(r.ptr), free(r.base);
}

static void *packed(const rc_kernels *k, const rc_shape *shape)
{
    ptrdiff_t columns = shape->gates * shape->units;
    void *from = array(columns * shape->k), *to = array((ptrdiff_t)rc_packed_size(shape, k->lanes));
    k->pack(shape, from, shape->k, 1, to);
    free(from);
    return to;
}

static void products(const rc_kernels *k, ptrdiff_t n, ptrdiff_t m, ptrdiff_t depth)
{
    for (int gates = 1; gates <= 4; gates++) {
        rc_shape shape = {depth, n, gates};
        ptrdiff_t row = rc_row_size(&shape, k->lanes);
        void *weights = packed(k, &shape), *b = array(gates * n), *bias = array(row);
        k->pack_bias(&shape, b, NULL, bias);
        for (int padded = gates > 1; padded < 2; padded++) {
            rc_rows a = apart(m, depth), c = padded ? rows(m, row) : apart(m, n);
            rc_gemm job = {shape, weights, padded ? bias : NULL, !padded, padded, a, c, 0, m, 0,
                           rc_panels(&shape, k->lanes), gates % 2, padded};
            k->gemm(&job);
            drop(a, m), drop(c, m);
        }
        free(weights), free(b), free(bias);
    }
    rc_rows a = rows(m, n + OUT), x = apart(m, depth);
    void *c = array(n * depth), *sum = array(n), *also = array(n);
    rc_outer job = {a, x, c, depth, m, depth, 0, n, NULL, NULL};
    k->outer(&job);
    rc_rows factors = apart(m, n);
    k->column_sums(&a, NULL, m, sum, also, 0, n);
    k->column_sums(&a, &factors, m, sum, NULL, 0, n);
    drop(a, m), drop(x, m), drop(factors, m), free(c), free(sum), free(also);
}

/* A gradient large enough for `columns`, and one beside it: the bits are the same without them. */
static void large_gradient(const rc_kernels *k, ptrdiff_t n, ptrdiff_t other)
{
    const ptrdiff_t m = 521, tokens = 300;
    rc_rows a = rows(tokens, m), x = apart(tokens, n), y = apart(tokens, other);
    void *c = array(m * n), *with = array(m * n), *d = array(m * other), *beside = array(m * other), *columns = NULL;
    if (posix_memalign(&columns, 64, rc_outer_scratch(tokens, n + 5 + other + 5) * itemsize))
        exit(2);
    rc_outer job = {a, x, c, n, tokens, n, 1, m, NULL, NULL};
    rc_outer second = {a, y, d, other, tokens, other, 1, m, NULL, NULL};
    rc_outer next = {a, y, beside, other, tokens, other, 1, m, NULL, NULL};
    rc_outer large = {a, x, with, n, tokens, n, 1, m, columns, &next};
    k->outer(&job);
    k->outer(&second);
    k->outer(&large);
    if (memcmp(c, with, (size_t)(m * n) * itemsize) || memcmp(d, beside, (size_t)(m * other) * itemsize)) {
        printf("%s: a large gradient has other bits with columns, or beside another one\n", k->name);
        exit(1);
    }
    drop(a, tokens), drop(x, tokens), drop(y, tokens);
    free(c), free(with), free(d), free(beside), free(columns);
}

/* Weights of at least 1.6 MB in long panels, which several rows take in blocks of k: the bits of each row alone. Of
 * four gates the last panel is a half one. */
static void blocks(const rc_kernels *k, int gates)
{
    rc_shape shape = {2503, gates > 1 ? 36 : 170, gates};
    const ptrdiff_t depth = shape.k, n = gates > 1 ? rc_row_size(&shape, k->lanes) : shape.units;
    void *weights = packed(k, &shape);
    for (ptrdiff_t m = 5; m < 70; m += 9) {
        rc_rows a = apart(m, depth), c = apart(m, n), alone = apart(m, n);
        rc_gemm job = {shape, weights, NULL, 1, gates > 1, a, c, 0, m, 0, rc_panels(&shape, k->lanes), 0, m % 2};
        k->gemm(&job);
        job.c = alone;
        int same = 1;
        for (ptrdiff_t i = 0; i < m; i++) {
            job.row_begin = i, job.row_end = i + 1;
            k->gemm(&job);
            same &= !memcmp(c.ptr[i], alone.ptr[i], (size_t)n * itemsize);
        }
        if (!same) {
            printf("%s: %td rows have other bits than one by one\n", k->name, m);
            exit(1);
        }
        drop(a, m), drop(c, m), drop(alone, m);
    }
    free(weights);
}

static void cell(const rc_kernels *k, enum rc_cell kind, ptrdiff_t units, ptrdiff_t m)
{
    const int gates = kind == RC_LSTM ? 4 : kind <= RC_RNN_RELU ? 1 : 3, before = kind == RC_GRU_RESET_BEFORE;
    const ptrdiff_t wide = rc_vectors(units, k->lanes) * k->lanes;
    const ptrdiff_t dz = units * (kind == RC_GRU ? 4 : gates);
    rc_rows g = rows(m, wide * gates), h = rows(m, wide), next = rows(m, wide);
    rc_rows c = rows(m, wide), reset = rows(m, wide);
    rc_rows y = apart(m, units), saved = rows(m, wide * gates), saved_unit = rows(m, wide);
    rc_rows none = {NULL, 0, NULL}, h_prev = apart(m, units), dh = rows(m, wide), d = rows(m, dz);
    void *bias = array(wide);
    for (int phase = 0; phase <= before; phase++) {
        rc_shape shape = {units, units, before ? 2 - phase : gates};
        void *weights = packed(k, &shape);
        rc_step s = {kind, phase, shape, rc_chains(shape.gates, units), weights, bias, g, none, h, next, c, reset, y,
                     saved, saved_unit, 0, m, 0, rc_panels(&shape, k->lanes), phase};
        k->step(&s);
        free(weights);
        rc_step_back back = {kind, phase, units, saved, saved_unit, h_prev, y, dh, c, reset, d, 0, m, 0,
                             rc_vectors(units, k->lanes), -m, -m * units};
        k->step_back(&back);
    }
    drop(g, m), drop(h, m), drop(next, m), drop(c, m), drop(reset, m), drop(y, m), drop(saved, m), drop(saved_unit, m);
    drop(h_prev, m), drop(dh, m), drop(d, m), free(bias);
}

enum { MEMBERS = 3 };

typedef struct {
    const rc_kernels *k;
    const rc_step *first;
    const rc_sequence *q;
    rc_pace paces[MEMBERS];
} teamwork;

/* Some of the panels, which may be none. */
static void share_of_steps(void *ctx, int rank, int size)
{
    teamwork *w = ctx;
    rc_step s = *w->first;
    rc_sequence q = *w->q;
    rc_relay relay;
    rc_relay_init(&relay, w->paces, rank, size);
    s.panel_begin = w->first->panel_end * rank / size;
    s.panel_end = w->first->panel_end * (rank + 1) / size;
    q.team = &relay, q.wait = rc_relay_wait, q.pass = rc_relay_pass;
    w->k->steps(&s, &q);
}

/* Three steps in one call, of one thread or of a team, give the bits of three calls. */
static void sequence(const rc_kernels *k, enum rc_cell kind, ptrdiff_t units, ptrdiff_t m)
{
    enum { STEPS = 3, WAYS = 3 };
    const int gates = kind == RC_LSTM ? 4 : kind == RC_GRU ? 3 : 1;
    const ptrdiff_t wide = rc_vectors(units, k->lanes) * k->lanes, all = STEPS * m;
    const rc_shape shape = {units, units, gates};
    const rc_rows none = {NULL, 0, NULL};
    void *weights = packed(k, &shape), *bias = array(wide);
    rc_rows g = apart(all, wide * gates), y[WAYS], saved[WAYS], saved_unit[WAYS], h[WAYS], next[WAYS], c[WAYS];
    for (int i = 0; i < WAYS; i++) {
        y[i] = apart(all, units), saved[i] = rows(all, wide * gates), saved_unit[i] = rows(all, wide);
        h[i] = rows(m, wide), next[i] = rows(m, wide), c[i] = rows(m, wide);
    }
    for (int i = 0; i < WAYS; i++) {
        rc_step s = {kind, 0, shape, rc_chains(gates, units), weights, bias, g, none, h[i], next[i], c[i], none, y[i],
                     saved[i], saved_unit[i], 0, m, 0, rc_panels(&shape, k->lanes), 0};
        const rc_sequence q = {.count = STEPS, .rows = m, .tape = m, .alternates = 1};
        teamwork w = {.k = k, .first = &s, .q = &q};
        if (i == 1) k->steps(&s, &q);
        if (i == 2) rc_pool_run(share_of_steps, &w, MEMBERS);
        for (int t = 0; t < STEPS && !i; t++) {
            s.backwards = t % 2;
            s.gates.ptr = g.ptr + t * m, s.y.ptr = y[0].ptr + t * m;
            s.saved.base = (char *)saved[0].base + (size_t)(t * m * saved[0].stride) * itemsize;
            s.saved_unit.base = (char *)saved_unit[0].base + (size_t)(t * m * saved_unit[0].stride) * itemsize;
            s.h_prev = t % 2 ? next[0] : h[0], s.h_next = t % 2 ? h[0] : next[0];
            k->step(&s);
        }
    }
    for (int way = 1; way < WAYS; way++) {
        int same = !memcmp(saved[0].base, saved[way].base, (size_t)(all * wide * gates) * itemsize);
        for (ptrdiff_t i = 0; i < all; i++) same &= !memcmp(y[0].ptr[i], y[way].ptr[i], (size_t)units * itemsize);
        if (!same) {
            printf("%s: steps in one call%s have other bits than one by one\n", k->name, way == 1 ? "" : " of a team");
            exit(1);
        }
    }
    for (int i = 0; i < WAYS; i++) {
        drop(y[i], all), drop(saved[i], all), drop(saved_unit[i], all), drop(h[i], m), drop(next[i], m), drop(c[i], m);
    }
    drop(g, all), free(weights), free(bias);
}

/* Gates, and with `cell` an LSTM's c. */
static void normalisation(const rc_kernels *k, int gates, int cell, ptrdiff_t units, ptrdiff_t m)
{
    const ptrdiff_t wide = rc_vectors(units, k->lanes) * k->lanes;
    rc_rows none = {NULL, 0, NULL}, x = rows(m, wide * gates), y = rows(m, wide * gates), hat = apart(m, gates * units);
    rc_rows rstd = apart(m, gates), saved = cell ? rows(m, wide * 4) : none, dh = rows(m, wide), dz = apart(m, units);
    rc_rows dy = apart(m, gates * units), dx = apart(m, gates * units);
    void *gain = array(gates * units), *shift = array(gates * units);
    rc_norm job = {units, gates, gain, shift, x, y, hat, rstd, saved, dh, dz, dy, dx, cell, m};
    k->norm(&job);
    k->norm_back(&job);
    drop(x, m), drop(y, m), drop(hat, m), drop(rstd, m), drop(saved, m), drop(dh, m), drop(dz, m), drop(dy, m);
    drop(dx, m), free(gain), free(shift);
}

static void all(const rc_kernels *k)
{
    static const ptrdiff_t sizes[] = {1, 3, 8, 15, 16, 17, 33, 64, 70, 100};
    itemsize = k->itemsize;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (ptrdiff_t m = 1; m <= 9; m++) {
            products(k, sizes[i], m, sizes[(i + (size_t)m) % 10]);
            for (int gates = 1; gates <= 4; gates++) normalisation(k, gates, 0, sizes[i], m);
            normalisation(k, 1, 1, sizes[i], m);
            for (int kind = 0; kind < RC_CELLS; kind++) cell(k, (enum rc_cell)kind, sizes[i], m);
            for (int kind = 0; kind <= RC_GRU; kind++) sequence(k, (enum rc_cell)kind, sizes[i], m);
        }
    }
    large_gradient(k, 523, 75);
    large_gradient(k, 521, 65); /* whose columns share a vector */
    blocks(k, 1);
    blocks(k, 4);
    printf("%s: all kernels within their arrays\n", k->name);
}

int main(void)
{
    rc_l1_bytes = 48 << 10; /* with less there are no blocks */
    if (rc_pool_init(2))
        return 2;
    rc_pool_set_threads(MEMBERS);
    for (int isa = 0; isa <= rc_cpu_isa(); isa++) all(rc_pick_f32(isa));
    all(rc_pick_f64());
    return 0;
}
