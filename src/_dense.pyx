"""Losses, embedding and dropout: thin calls of the dense kernels.

Private: the Python modules above have checked every array (C-contiguous, of one dtype, of fitting shape).
Work is cut where the cut cannot change bits, and given to as many threads as it is worth.
"""

cimport numpy as cnp

import numpy as np

from rnn_core._runtime cimport awake, fp_begin, fp_end, kernels_f32, kernels_f64, run

cnp.import_array()

cdef enum:
    LINE = 16           # columns that threads share out: a cache line of floats

cdef double KEEP_GIL = 10e3      # ns; a call under this keeps the GIL: taking it back can cost a scheduler quantum
cdef double THREAD_WORTH = 8e3   # ns of work that pay for another thread
cdef double WAKING_WORTH = 80e3  # and for one that has to be woken


cdef const rc_dense *table(bint single) noexcept nogil:
    return dense_of(kernels_f32() if single else kernels_f64())


cdef void launch(rc_task task, void *ctx, double nanoseconds, bint single) noexcept:
    cdef unsigned control = 0
    cdef int want = <int> (nanoseconds / THREAD_WORTH) if nanoseconds < 1e9 else 1 << 16
    if single:
        control = fp_begin()
    if nanoseconds < KEEP_GIL:
        task(ctx, 0, 1)
    else:
        if nanoseconds < WAKING_WORTH:
            want = awake(want)
        with nogil:
            run(task, ctx, want if want > 1 else 1)
    if single:
        fp_end(control)


# ---- losses -----------------------------------------------------------------------------------------------------

cdef struct CrossEntropy:
    const rc_dense *kernels
    rc_cross_entropy job
    Py_ssize_t rows


cdef void cross_entropy_task(void *ctx, int rank, int size) noexcept nogil:
    cdef CrossEntropy *c = <CrossEntropy *> ctx
    c.kernels.cross_entropy(&c.job, share(c.rows, 1, rank, size), share(c.rows, 1, rank + 1, size))


def cross_entropy(x, dx, const int64_t[::1] targets, double scale, double smoothing):
    """Sum of the losses of x (rows, classes) in double; dx (or None) gets scale times their gradient.

    targets (rows): negative where a row does not count.
    """
    cdef CrossEntropy c
    cdef Py_ssize_t i
    cdef double total = 0
    c.rows = x.shape[0]
    if c.rows == 0:
        return 0.0
    cdef double[::1] loss = np.empty(c.rows)
    c.kernels = table(is_single(x))
    c.job.x, c.job.dx, c.job.targets, c.job.loss = data(x), data(dx), &targets[0], &loss[0]
    c.job.classes, c.job.scale, c.job.smoothing = x.shape[1], scale, smoothing
    launch(cross_entropy_task, &c, c.rows * (20.0 + c.job.classes), is_single(x))
    for i in range(c.rows):
        total += loss[i]
    return total


def counted_targets(const int64_t[::1] targets, Py_ssize_t classes, int64_t ignore_index, const int64_t[::1] lengths,
                    Py_ssize_t inner, bint batch_first):
    """(targets with -1 where a row does not count, how many count, position of the first bad one or -1).

    targets is (T, B) flattened, inner = B, or with batch_first (B, T), inner = T; lengths (B,) or None.
    """
    cdef Py_ssize_t i, n = targets.shape[0], counted = 0, step, sequence
    made = np.empty(n, np.int64)
    cdef int64_t[::1] found = made
    cdef bint ragged = lengths is not None
    for i in range(n):
        found[i] = -1
        if ragged:
            sequence = i // inner if batch_first else i % inner
            step = i % inner if batch_first else i // inner
            if step >= lengths[sequence]:
                continue
        if targets[i] == ignore_index:
            continue
        if targets[i] < 0 or targets[i] >= classes:
            return made, counted, i
        found[i] = targets[i]
        counted += 1
    return made, counted, -1


cdef struct PairLoss:
    const rc_dense *kernels
    rc_pair_loss job


cdef void pair_loss_task(void *ctx, int rank, int size) noexcept nogil:
    cdef PairLoss *c = <PairLoss *> ctx
    cdef Py_ssize_t blocks = rc_blocks(c.job.n)
    c.kernels.pair_loss(&c.job, share(blocks, 4, rank, size), share(blocks, 4, rank + 1, size))


def pair_loss(str kind, x, target, mask, dx, double scale):
    """Sum of the losses ("bce" or "mse") of all pairs in double; dx gets scale times the gradient; mask may be None."""
    cdef PairLoss c
    cdef Py_ssize_t i
    cdef double total = 0
    c.job.n = x.size
    if c.job.n == 0:
        return 0.0
    cdef double[::1] loss = np.empty(rc_blocks(c.job.n))
    c.kernels = table(is_single(x))
    c.job.kind = RC_BCE if kind == "bce" else RC_MSE
    c.job.x, c.job.target, c.job.mask, c.job.dx = data(x), data(target), data(mask), data(dx)
    c.job.loss, c.job.scale = &loss[0], scale
    launch(pair_loss_task, &c, c.job.n * (2.0 if c.job.kind == RC_BCE else 0.5), is_single(x))
    for i in range(loss.shape[0]):
        total += loss[i]
    return total


# ---- embedding --------------------------------------------------------------------------------------------------

cdef struct Embed:
    const rc_dense *kernels
    const int64_t *index
    void *table
    void *rows_data
    Py_ssize_t rows, columns
    int64_t skip


cdef void gather_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Embed *e = <Embed *> ctx
    e.kernels.gather(e.table, e.index, e.columns, e.rows_data, share(e.rows, 1, rank, size),
                     share(e.rows, 1, rank + 1, size))


cdef void scatter_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Embed *e = <Embed *> ctx
    e.kernels.scatter_add(e.table, e.index, e.rows, e.columns, e.rows_data, e.skip,
                          share(e.columns, LINE, rank, size), share(e.columns, LINE, rank + 1, size))


cdef void embed(rc_task task, weight, const int64_t[::1] index, rows, int64_t skip, double ns):
    cdef Embed e
    if index.shape[0] == 0:
        return
    e.kernels, e.index, e.table, e.rows_data = table(is_single(weight)), &index[0], data(weight), data(rows)
    e.rows, e.columns, e.skip = index.shape[0], weight.shape[1], skip
    launch(task, &e, e.rows * (2.0 + ns * e.columns), is_single(weight))


def gather(weight, const int64_t[::1] index, y):
    """y (N, E) = weight[index] for index (N,) within the table."""
    embed(gather_task, weight, index, y, -1, 0.1)


def scatter_add(grad, const int64_t[::1] index, dy, int64_t skip):
    """grad[index[i]] += dy[i], i ascending, where index[i] is not `skip`. Threads share out columns: the same bits."""
    embed(scatter_task, grad, index, dy, skip, 0.2)


# ---- dropout ----------------------------------------------------------------------------------------------------

cdef struct Dropout:
    const rc_dense *kernels
    rc_dropout job
    char *x
    char *y
    char *mask
    Py_ssize_t steps, sequences, itemsize
    bint batch_first


cdef void dropout_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Dropout *d = <Dropout *> ctx
    cdef Py_ssize_t rows = d.steps * d.sequences, row, at, sequence, step
    for row in range(share(rows, 1, rank, size), share(rows, 1, rank + 1, size)):
        sequence = row // d.steps if d.batch_first else row % d.sequences
        step = row % d.steps if d.batch_first else row // d.sequences
        at = row * d.job.units * d.itemsize
        d.kernels.dropout_mask(&d.job, <uint32_t> sequence, <uint32_t> step, d.mask + at)
        if d.x != NULL:
            d.kernels.multiply(d.x + at, d.mask + at, d.y + at, d.job.units)


def dropout(x, y, mask, double p, uint64_t seed, uint64_t call, uint64_t layer, bint batch_first):
    """mask (T, B, N), or (B, T, N) with batch_first, by Philox; y = x mask unless x is None."""
    cdef Dropout d
    d.kernels, d.itemsize = table(is_single(mask)), cnp.PyArray_ITEMSIZE(mask)
    d.job.key, d.job.p, d.job.units = rc_dropout_key(seed, call, layer), p, mask.shape[2]
    d.x, d.y, d.mask = <char *> data(x), <char *> data(y), <char *> data(mask)
    d.steps, d.sequences = mask.shape[1 if batch_first else 0], mask.shape[0 if batch_first else 1]
    d.batch_first = batch_first
    launch(dropout_task, &d, d.steps * d.sequences * (50.0 + d.job.units), is_single(mask))


cdef struct Product:
    const rc_dense *kernels
    char *a
    char *b
    char *y
    Py_ssize_t n, itemsize


cdef void multiply_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Product *p = <Product *> ctx
    cdef Py_ssize_t begin = share(p.n, RC_BLOCK, rank, size), end = share(p.n, RC_BLOCK, rank + 1, size)
    cdef Py_ssize_t at = begin * p.itemsize
    p.kernels.multiply(p.a + at, p.b + at, p.y + at, end - begin)


def multiply(a, b, y):
    """y = a b, element by element; y may be a or b."""
    cdef Product p
    p.kernels, p.itemsize, p.n = table(is_single(a)), cnp.PyArray_ITEMSIZE(a), a.size
    p.a, p.b, p.y = <char *> data(a), <char *> data(b), <char *> data(y)
    launch(multiply_task, &p, p.n * 0.3, is_single(a))


def log(x, y):
    """Test twin of v_log: y = log x."""
    cdef unsigned control = fp_begin()
    table(is_single(x)).log(data(x), data(y), x.size)
    fp_end(control)
