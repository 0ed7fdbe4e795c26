"""y = x W^T + b on the packed float32 kernels, and its gradients.

Private: rnn_core.layers has checked every array (C-contiguous float32 of fitting shape).
"""

from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

cimport numpy as cnp

from rnn_core._dense cimport data, launch, least, share
from rnn_core._kernels cimport *
from rnn_core._parameters cimport Buffer
from rnn_core._plan cimport add_outer, product_job, rows_at, shape_of
from rnn_core._runtime cimport kernels_f32, raise_pending, tick

cnp.import_array()

cdef enum:
    PANEL = 4           # vectors in a panel
    TILE = 24           # rows that threads share out together: whole tiles on every instruction set
    ROW_BLOCK = 480     # rows between two looks for signals
    SUM_BLOCK = 512     # rows that one chain of a weight gradient spans; it does not depend on the threads
    FEW_ROWS = 64       # up to here threads share out columns, so that each keeps its part of W in its own cache

cdef double GEMM_NS = 1 / 90.0   # ns a floating-point operation, one thread


cdef inline const rc_kernels *kernels() noexcept nogil:
    return kernels_f32()


# ---- packed weights ---------------------------------------------------------------------------------------------

cdef struct Packing:
    rc_shape shape
    const char *source
    Py_ssize_t column_stride, row_stride
    char *packed


cdef void pack_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Packing *p = <Packing *> ctx
    cdef const rc_kernels *k = kernels()
    cdef Py_ssize_t begin = share(p.shape.units, PANEL * k.lanes, rank, size)
    cdef rc_shape part = p.shape
    part.units = share(p.shape.units, PANEL * k.lanes, rank + 1, size) - begin
    if part.units > 0:
        k.pack(&part, p.source + begin * p.column_stride * sizeof(float), p.column_stride, p.row_stride,
               p.packed + begin * p.shape.k * sizeof(float))


cdef class Packed:
    """A packed copy of a weight matrix (or its transpose) and the version that it was made from."""

    cdef float *memory
    cdef rc_shape shape
    cdef Py_ssize_t version
    cdef int users          # calls that read it now, without the GIL

    def __cinit__(self, Py_ssize_t k, Py_ssize_t units):
        self.shape, self.version = shape_of(k, units, 1), -1
        cdef size_t size = rc_packed_size(&self.shape, kernels().lanes) * sizeof(float)
        if posix_memalign(<void **> &self.memory, 64, size + 64):
            self.memory = NULL
            raise MemoryError(f"no memory for {size} bytes of packed weights")

    def __dealloc__(self):
        free(self.memory)

    cdef void fill(self, Buffer weight, Py_ssize_t column_stride, Py_ssize_t row_stride):
        cdef Packing p
        cdef Py_ssize_t version = weight.version
        p.shape, p.source, p.packed = self.shape, <const char *> weight.data, <char *> self.memory
        p.column_stride, p.row_stride = column_stride, row_stride
        launch(pack_task, &p, self.shape.k * self.shape.units * 0.5, True)
        self.version = version  # only now: until then other threads take it for stale, and make their own


# ---- forward and backward ---------------------------------------------------------------------------------------

cdef struct Product:
    rc_gemm job         # y = x W^T + b, or dx = dy W
    Py_ssize_t rows
    const float *x      # (rows, inputs); backward only, as all below
    const float *dy     # (rows, outputs)
    float *dw           # (outputs, inputs), added to
    float *db           # (outputs) or NULL, added to
    Py_ssize_t inputs, outputs
    int stop


cdef void product_task(void *ctx, int rank, int size) noexcept nogil:
    cdef Product *p = <Product *> ctx
    cdef rc_gemm job = p.job
    cdef Py_ssize_t row, begin, end, panels = job.panel_end
    cdef double next = 0
    if job.c.base == NULL:
        return
    if p.rows > FEW_ROWS * size:
        begin, end = share(p.rows, TILE, rank, size), share(p.rows, TILE, rank + 1, size)
    else:
        begin, end = 0, p.rows
        job.panel_begin, job.panel_end = share(panels, 1, rank, size), share(panels, 1, rank + 1, size)
    row = begin
    while row < end and not p.stop:
        job.row_begin, job.row_end = row, least(row + ROW_BLOCK, end)
        kernels().gemm(&job)
        row += ROW_BLOCK
        if rank == 0 and tick(&next):
            p.stop = 1


cdef void gradient_task(void *ctx, int rank, int size) noexcept nogil:
    """dW += dy^T x and db += column sums of dy, in blocks of rows, each thread for its own outputs; then dx."""
    cdef Product *p = <Product *> ctx
    cdef Py_ssize_t row = 0, n
    cdef Py_ssize_t begin = share(p.outputs, TILE, rank, size), end = share(p.outputs, TILE, rank + 1, size)
    cdef rc_rows dy, x
    cdef double next = 0
    while row < p.rows and not p.stop:
        n = least(SUM_BLOCK, p.rows - row)
        dy, x = rows_at(p.dy + row * p.outputs, p.outputs), rows_at(p.x + row * p.inputs, p.inputs)
        add_outer(kernels(), dy, x, n, p.inputs, p.dw, p.inputs, begin, end)
        if p.db != NULL:
            kernels().column_sums(&dy, NULL, n, p.db, NULL, begin, end)
        row += SUM_BLOCK
        if rank == 0 and tick(&next):
            p.stop = 1
    product_task(ctx, rank, size)


cdef class Plan:
    """A linear layer's parameters and their packings: W^T for the way forward, W for the way back.

    Many Python threads may use one plan: a packing that is being read is never written, but replaced.
    """

    cdef Buffer weight, bias            # (outputs, inputs); (outputs) or None
    cdef Packed ahead, back
    cdef Py_ssize_t inputs, outputs
    cdef readonly Py_ssize_t bias_size  # floats of a row of outputs in whole vectors

    def __cinit__(self, Buffer weight, Buffer bias):
        cdef rc_shape row
        self.weight, self.bias = weight, bias
        self.outputs, self.inputs = weight.shape
        row = shape_of(1, self.outputs, 1)
        self.bias_size = rc_row_size(&row, kernels().lanes)

    cdef Packed _ready(self, Packed packed, bint forward):
        """A packing of the weights as they are now, checked out."""
        if packed is None or (packed.version != self.weight.version and packed.users):
            packed = Packed(self.inputs, self.outputs) if forward else Packed(self.outputs, self.inputs)
        packed.users += 1
        if packed.version != self.weight.version:
            packed.fill(self.weight, self.inputs if forward else 1, 1 if forward else self.inputs)
        return packed

    def forward(self, x, y, bias_row):
        """y (N, outputs) = x (N, inputs) W^T + b. bias_row: scratch of `bias_size` floats, or None without a bias."""
        cdef Product p
        cdef Packed packed = self._ready(self.ahead, True)
        self.ahead = packed
        p.rows, p.stop = x.shape[0], 0
        if self.bias is not None:
            kernels().pack_bias(&packed.shape, self.bias.data, NULL, data(bias_row))
        p.job = product_job(kernels(), &packed.shape, packed.memory, data(bias_row), False, False,
                            rows_at(data(x), self.inputs), rows_at(data(y), self.outputs), p.rows)
        launch(product_task, &p, 2.0 * p.rows * self.inputs * self.outputs * GEMM_NS, True)
        packed.users -= 1
        if p.stop:
            raise_pending()

    def backward(self, x, dy, dx, dw, db):
        """dw += dy^T x, db += sums of dy's columns (None: no bias), dx = dy W (None: not wanted)."""
        cdef Product p
        cdef Packed packed = None
        cdef double flops = 2.0 * x.shape[0] * self.inputs * self.outputs
        p.x, p.dy, p.dw, p.db = <float *> data(x), <float *> data(dy), <float *> data(dw), <float *> data(db)
        p.inputs, p.outputs, p.rows, p.stop, p.job.c = self.inputs, self.outputs, x.shape[0], 0, rows_at(NULL, 0)
        if dx is not None:
            packed = self._ready(self.back, False)
            self.back = packed
            p.job = product_job(kernels(), &packed.shape, packed.memory, NULL, False, False,
                                rows_at(p.dy, self.outputs), rows_at(data(dx), self.inputs), p.rows)
            flops *= 2
        launch(gradient_task, &p, flops * GEMM_NS, True)
        if packed is not None:
            packed.users -= 1
        if p.stop:
            raise_pending()
