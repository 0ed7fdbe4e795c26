"""The BLAS backend: the same contract as kernels.h, with every matrix product done by SciPy's BLAS.

Packed matrices are plain (k, columns) ones here, columns in the order of a gate row, so that a product gives gate
rows as the fused kernels do; the cells themselves are the fused kernels', on a product that is already computed.
Loaded on first need, since importing SciPy's BLAS takes longer than all the rest of the package.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, sgemm

from rnn_core._kernels cimport *
from rnn_core._plan cimport product_job, row_at
from rnn_core._runtime cimport kernels_f32, kernels_f64

cdef enum:
    MOST = 1 << 30                     # BLAS counts in 32 bits


cdef const rc_kernels *base(bint double) noexcept nogil:
    return kernels_f64() if double else kernels_f32()


ctypedef fused real:
    float
    double


cdef void multiply(real *tag, bint transpose_a, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const void *a, ptrdiff_t lda,
                   const void *b, ptrdiff_t ldb, real beta, void *c, ptrdiff_t ldc) noexcept nogil:
    """Row-major c (m, n) <- op(a) b + beta c."""
    cdef int rows = <int>m, columns = <int>n, depth = <int>k, sa = <int>lda, sb = <int>ldb, sc = <int>ldc
    cdef real one = 1
    cdef char *ta = b"T" if transpose_a else b"N"
    if m == 0 or n == 0:
        return
    if real is float:
        sgemm(b"N", ta, &columns, &rows, &depth, &one, <float *>b, &sb, <float *>a, &sa, &beta, <float *>c, &sc)
    else:
        dgemm(b"N", ta, &columns, &rows, &depth, &one, <double *>b, &sb, <double *>a, &sa, &beta, <double *>c, &sc)


cdef ptrdiff_t run_of(const rc_rows *rows, ptrdiff_t begin, ptrdiff_t end, size_t itemsize,
                      ptrdiff_t *stride) noexcept nogil:
    """How many rows from `begin` on lie at one stride, which is set in elements (1 where there is only one row)."""
    cdef ptrdiff_t i = begin + 1, step
    stride[0] = 1
    if rows.ptr == NULL:
        stride[0] = rows.stride
        return min(end - begin, MOST)
    if i < end:
        step = <char *>rows.ptr[i] - <char *>rows.ptr[begin]
        if 0 < step < MOST and step % <ptrdiff_t>itemsize == 0:
            stride[0] = step // <ptrdiff_t>itemsize
            while i < end and <char *>rows.ptr[i] - <char *>rows.ptr[i - 1] == step:
                i += 1
    return i - begin


cdef void pack_plain(real *tag, const rc_shape *shape, const void *src, ptrdiff_t column_stride, ptrdiff_t row_stride,
                     void *packed) noexcept nogil:
    """(k, row size), the columns in the order of a gate row."""
    cdef ptrdiff_t lanes = base(real is double).lanes, width = rc_row_size(shape, lanes), k, j, vector, unit, gate
    cdef const real *values = <const real *>src
    cdef real *to = <real *>packed
    for k in range(shape.k):
        for j in range(width):
            vector = j // lanes
            gate, unit = vector % shape.gates, vector // shape.gates * lanes + j % lanes
            to[k * width + j] = 0
            if unit < shape.units:
                to[k * width + j] = values[(gate * shape.units + unit) * column_stride + k * row_stride]


cdef void gemm_run(real *tag, const rc_gemm *g, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t a_stride, ptrdiff_t c_stride,
                   ptrdiff_t first, ptrdiff_t columns) noexcept nogil:
    cdef ptrdiff_t lanes = base(real is double).lanes, width = rc_row_size(&g.shape, lanes), i
    cdef real *c = <real *>row_at(&g.c, row, sizeof(real)) + first
    if g.bias != NULL:
        for i in range(rows):
            memcpy(c + i * c_stride, <real *>g.bias + first, columns * sizeof(real))
    multiply(tag, False, rows, columns, g.shape.k, row_at(&g.a, row, sizeof(real)), max(a_stride, g.shape.k),
             <real *>g.packed + first, width, <real>(1 if g.bias != NULL or g.accumulate else 0), c,
             max(c_stride, columns))


cdef void gemm(real *tag, const rc_gemm *g) noexcept nogil:
    cdef ptrdiff_t lanes = base(real is double).lanes, row = g.row_begin, rows, a_stride = 0, c_stride = 0
    cdef ptrdiff_t vectors = g.shape.gates if g.shape.gates > 1 else 4
    cdef ptrdiff_t first = g.panel_begin * vectors * lanes
    cdef ptrdiff_t columns = min(g.panel_end * vectors * lanes,
                                 rc_row_size(&g.shape, lanes) if g.padded else g.shape.units) - first
    while row < g.row_end and columns > 0:
        rows = run_of(&g.a, row, g.row_end, sizeof(real), &a_stride)
        rows = min(rows, run_of(&g.c, row, g.row_end, sizeof(real), &c_stride))
        if g.shape.k == 0 and g.bias == NULL and not g.accumulate:
            memset(row_at(&g.c, row, sizeof(real)) + first * sizeof(real), 0, columns * sizeof(real))
        if rows > 1 and (a_stride < g.shape.k or c_stride < columns):  # overlapping or repeated rows: one by one
            rows = 1
        gemm_run(tag, g, row, rows, a_stride, c_stride, first, columns)
        row += rows


cdef void outer(real *tag, const rc_outer *o) noexcept nogil:
    cdef ptrdiff_t row = 0, rows, stride = 0, m = o.m_end - o.m_begin
    if o.beside != NULL:
        outer(tag, o.beside)
    while row < o.rows:
        rows = run_of(&o.x, row, o.rows, sizeof(real), &stride)
        if rows > 1 and stride < o.n:
            rows = 1
        multiply(tag, True, m, o.n, rows, <real *>o.a.base + row * o.a.stride + o.m_begin, o.a.stride,
                 row_at(&o.x, row, sizeof(real)), max(stride, o.n), <real>1, <real *>o.c + o.m_begin * o.c_stride,
                 o.c_stride)
        row += rows


cdef void step(real *tag, const rc_step *s) noexcept nogil:
    """The product with R by BLAS, then the fused kernel's cell with no product of its own left to do."""
    cdef const rc_kernels *fused = base(real is double)
    cdef rc_rows h = s.reset if s.cell == RC_GRU_RESET_BEFORE and s.phase else s.h_prev
    cdef rc_gemm g = product_job(fused, &s.shape, s.packed, NULL, False, True, h, s.product, s.row_end)
    cdef rc_step cell = s[0]
    g.row_begin, g.panel_begin, g.panel_end = s.row_begin, s.panel_begin, s.panel_end
    gemm(tag, &g)
    cell.shape.k, cell.chains = 0, 1
    fused.step(&cell)


cdef void pack_f32(const rc_shape *s, const void *src, ptrdiff_t c, ptrdiff_t r, void *to) noexcept nogil:
    pack_plain(<float *>NULL, s, src, c, r, to)

cdef void pack_f64(const rc_shape *s, const void *src, ptrdiff_t c, ptrdiff_t r, void *to) noexcept nogil:
    pack_plain(<double *>NULL, s, src, c, r, to)

cdef void gemm_f32(const rc_gemm *g) noexcept nogil:
    gemm(<float *>NULL, g)

cdef void gemm_f64(const rc_gemm *g) noexcept nogil:
    gemm(<double *>NULL, g)

cdef void outer_f32(const rc_outer *o) noexcept nogil:
    outer(<float *>NULL, o)

cdef void outer_f64(const rc_outer *o) noexcept nogil:
    outer(<double *>NULL, o)

cdef void step_f32(const rc_step *s) noexcept nogil:
    step(<float *>NULL, s)

cdef void step_f64(const rc_step *s) noexcept nogil:
    step(<double *>NULL, s)


cdef rc_kernels f32 = kernels_f32()[0]
cdef rc_kernels f64 = kernels_f64()[0]
f32.name = f64.name = "blas"
f32.pack, f32.gemm, f32.outer, f32.step = pack_f32, gemm_f32, outer_f32, step_f32
f64.pack, f64.gemm, f64.outer, f64.step = pack_f64, gemm_f64, outer_f64, step_f64


def tables(str dtype):
    """The table of kernels for float32 or float64, as a capsule."""
    return PyCapsule_New(&f32 if dtype == "float32" else &f64, "rnn_core.kernels", NULL)
