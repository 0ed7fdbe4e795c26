/* The dense kernels of every instruction set that this machine has, on arrays of exactly their size: the sanitizers see
 * a read or write past an end. What is computed is the business of the Python tests. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "dense.h"
#include "dispatch.h"

enum { MOST = 70, ROWS = 3 };

static void *array(ptrdiff_t n, size_t itemsize)
{
    void *made = malloc((size_t)n * itemsize + (n == 0));
    if (!made)
        exit(2);
    for (ptrdiff_t i = 0; i < n; i++) {
        if (itemsize == sizeof(float))
            ((float *)made)[i] = (float)(i % 7) - 3;
        else
            ((double *)made)[i] = (double)(i % 7) - 3;
    }
    return made;
}

static void losses(const rc_dense *k, ptrdiff_t n, size_t itemsize)
{
    int64_t targets[ROWS] = {0, -1, n - 1};
    double row_loss[ROWS];
    double *block_loss = array(rc_blocks(n * ROWS), sizeof(double));
    void *x = array(n * ROWS, itemsize), *dx = array(n * ROWS, itemsize), *mask = array(n * ROWS, itemsize);
    for (int smooth = 0; smooth < 2; smooth++) {
        rc_cross_entropy job = {x, smooth ? dx : NULL, targets, row_loss, n, 0.5, 0.1 * smooth};
        k->cross_entropy(&job, 0, ROWS);
        rc_pair_loss pair = {smooth ? RC_BCE : RC_MSE, x, mask, smooth ? mask : NULL, dx, block_loss, n * ROWS, 1.0};
        k->pair_loss(&pair, 0, rc_blocks(pair.n));
    }
    free(block_loss), free(x), free(dx), free(mask);
}

static void passes(const rc_dense *k, ptrdiff_t n, size_t itemsize)
{
    double *sums = array(rc_blocks(n), sizeof(double));
    void *a = array(n, itemsize), *b = array(n, itemsize), *c = array(n, itemsize), *d = array(n, itemsize);
    void *e = array(n, itemsize);
    for (int kind = RC_SGD; kind <= RC_ADAM; kind++) {
        rc_update u = {(enum rc_optimiser)kind, 1, 1, 0.1, 0.1, 0.9, 0.0, 0.9, 1e-8, 1.0, 1.0};
        k->update(&u, a, b, c, d, e, n);
    }
    k->sum_squares(b, n, sums);
    if (!k->finite(b, n))
        exit(3);
    k->scale(b, n, 0.5);
    k->clamp(b, n, 1.0);
    k->multiply(a, b, c, n);
    k->log(b, c, n);
    rc_dropout drop = {rc_dropout_key(1, 2, 3), 0.5, n};
    k->dropout_mask(&drop, 4, 5, c);
    free(sums), free(a), free(b), free(c), free(d), free(e);
}

static void embedding(const rc_dense *k, ptrdiff_t n, size_t itemsize)
{
    const int64_t index[ROWS] = {1, 0, 1};
    void *table = array(2 * n, itemsize), *y = array(ROWS * n, itemsize);
    k->gather(table, index, n, y, 0, ROWS);
    k->scatter_add(table, index, ROWS, n, y, 0, 0, n);
    free(table), free(y);
}

static void all(const rc_kernels *kernels)
{
    for (ptrdiff_t n = 1; n <= MOST; n++) {
        losses(kernels->dense, n, kernels->itemsize);
        passes(kernels->dense, n, kernels->itemsize);
        embedding(kernels->dense, n, kernels->itemsize);
    }
    passes(kernels->dense, 0, kernels->itemsize);
    passes(kernels->dense, 2 * RC_BLOCK + 1, kernels->itemsize);
    printf("%s: well\n", kernels->name);
}

int main(void)
{
    for (int isa = 0; isa <= rc_cpu_isa(); isa++)
        all(rc_pick_f32(isa));
    all(rc_pick_f64());
    return 0;
}
