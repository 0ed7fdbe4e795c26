/* One kernel call at a time on data of its own, for benchmarks/kernels.py. Compiled with -DKERNELS=rc_kernels_<isa>. */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#ifndef KERNELS
#define KERNELS rc_kernels_generic
#endif

enum kind { STEP, STEP_BACK, GEMM, OUTER, ACTIVATE, PACK };
enum { BUFFERS = 12 };

ptrdiff_t rc_l1_bytes; /* which the package's runtime has; here benchmarks/kernels.py sets it */

typedef struct {
    enum kind kind;
    rc_step step;
    rc_step_back back;
    rc_gemm gemm;
    rc_outer outer;
    int function;
    ptrdiff_t size;
    float *buffer[BUFFERS];
    int buffers;
    int failed;
} bench_job;

/* Memory of its own with small values of both signs, so that nothing overflows and nothing is denormal. */
static float *fill(bench_job *job, ptrdiff_t n)
{
    size_t bytes = ((size_t)n * sizeof(float) + 127) / 64 * 64;
    float *p = job->buffers < BUFFERS ? aligned_alloc(64, bytes) : NULL;
    if (!p) {
        job->failed = 1;
        return NULL;
    }
    for (size_t i = 0; i < bytes / sizeof(float); i++)
        p[i] = 0.02f * (float)((int)(i * 2654435761u % 101u) - 50) / 50.0f;
    return job->buffer[job->buffers++] = p;
}

static rc_rows rows_of(bench_job *job, ptrdiff_t rows, ptrdiff_t stride)
{
    return (rc_rows){.base = fill(job, rows * stride), .stride = stride};
}

static int gates_of(enum rc_cell cell) { return cell == RC_LSTM ? 4 : cell == RC_GRU ? 3 : 1; }

/* rows sequences, one time step of a cell with `units` hidden units. */
static void make_step(bench_job *job, enum rc_cell cell, ptrdiff_t rows, ptrdiff_t units)
{
    const ptrdiff_t lanes = KERNELS.lanes, padded = rc_vectors(units, lanes) * lanes;
    const int gates = gates_of(cell);
    rc_step *s = &job->step;
    *s = (rc_step){.cell = cell, .shape = {.k = units, .units = units, .gates = gates}, .row_end = rows};
    s->chains = rc_chains(gates, units);
    s->packed = fill(job, (ptrdiff_t)rc_packed_size(&s->shape, lanes));
    s->bias = fill(job, padded);
    s->gates = rows_of(job, rows, rc_row_size(&s->shape, lanes));
    s->h_prev = rows_of(job, rows, padded);
    s->h_next = rows_of(job, rows, padded);
    s->c = rows_of(job, rows, padded);
    s->y = rows_of(job, rows, units);
    s->panel_end = rc_panels(&s->shape, lanes);
}

static void make_step_back(bench_job *job, enum rc_cell cell, ptrdiff_t rows, ptrdiff_t units)
{
    const ptrdiff_t vectors = rc_vectors(units, KERNELS.lanes), padded = vectors * KERNELS.lanes;
    rc_step_back *s = &job->back;
    *s = (rc_step_back){.cell = cell, .units = units, .row_end = rows, .unit_end = vectors};
    s->saved = rows_of(job, rows, padded * gates_of(cell));
    s->saved_unit = rows_of(job, rows, padded);
    s->h_prev = rows_of(job, rows, padded);
    s->dy = rows_of(job, rows, units);
    s->dh = rows_of(job, rows, padded);
    s->dc = rows_of(job, rows, padded);
    s->dz = rows_of(job, rows, 4 * units);
}

/* C (rows, units) = A (rows, k) B as a gate row of `gates` gates, or as plain columns where gates is 1. */
static void make_gemm(bench_job *job, int gates, ptrdiff_t rows, ptrdiff_t k, ptrdiff_t units)
{
    rc_gemm *g = &job->gemm;
    *g = (rc_gemm){.shape = {.k = k, .units = units, .gates = gates}, .padded = 1, .row_end = rows};
    g->packed = fill(job, (ptrdiff_t)rc_packed_size(&g->shape, KERNELS.lanes));
    g->bias = fill(job, rc_row_size(&g->shape, KERNELS.lanes));
    g->a = rows_of(job, rows, k);
    g->c = rows_of(job, rows, rc_row_size(&g->shape, KERNELS.lanes));
    g->panel_end = rc_panels(&g->shape, KERNELS.lanes);
}

/* C (units, k) += A (rows, units)^T X (rows, k) */
static void make_outer(bench_job *job, ptrdiff_t rows, ptrdiff_t k, ptrdiff_t units)
{
    rc_outer *o = &job->outer;
    *o = (rc_outer){.rows = rows, .n = k, .c_stride = k, .m_end = units};
    o->a = rows_of(job, rows, units);
    o->x = rows_of(job, rows, k);
    o->c = fill(job, units * k);
    o->columns = fill(job, (ptrdiff_t)rc_outer_scratch(rows, k));
}

void bench_free(bench_job *job)
{
    for (int i = 0; i < job->buffers; i++) free(job->buffer[i]);
    free(job);
}

/* selector: the cell of a step, the gates of a product, the function of an activation. NULL: no memory. */
bench_job *bench_make(enum kind kind, int selector, ptrdiff_t rows, ptrdiff_t k, ptrdiff_t units)
{
    bench_job *job = calloc(1, sizeof *job);
    if (!job) return NULL;
    job->kind = kind;
    job->function = selector;
    job->size = units;
    switch (kind) {
    case STEP: make_step(job, (enum rc_cell)selector, rows, units); break;
    case STEP_BACK: make_step_back(job, (enum rc_cell)selector, rows, units); break;
    case GEMM: make_gemm(job, selector, rows, k, units); break;
    case OUTER: make_outer(job, rows, k, units); break;
    case PACK:
        make_gemm(job, selector, 1, k, units);
        fill(job, selector * units * k);
        break;
    case ACTIVATE:
        fill(job, units);
        fill(job, units);
    }
    if (job->failed) {
        bench_free(job);
        return NULL;
    }
    return job;
}

void bench_run(bench_job *job, int repeats)
{
    for (int i = 0; i < repeats; i++) {
        switch (job->kind) {
        case STEP: {
            rc_rows next = job->step.h_prev;
            KERNELS.step(&job->step);
            job->step.h_prev = job->step.h_next;
            job->step.h_next = next;
            break;
        }
        case STEP_BACK: KERNELS.step_back(&job->back); break;
        case GEMM: KERNELS.gemm(&job->gemm); break;
        case OUTER: KERNELS.outer(&job->outer); break;
        case PACK: {
            const rc_shape *shape = &job->gemm.shape;
            KERNELS.pack(shape, job->buffer[job->buffers - 1], shape->k, 1, job->buffer[0]);
            break;
        }
        case ACTIVATE: KERNELS.activate(job->function, job->buffer[0], job->buffer[1], job->size);
        }
    }
}
