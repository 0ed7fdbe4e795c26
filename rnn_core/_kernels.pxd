# src/kernels.h, the contract with the kernels, for Cython. Shapes and owners are documented there.

cdef extern from "kernels.h" nogil:
    ctypedef struct rc_rows:
        void *base
        ptrdiff_t stride
        void **ptr
    ctypedef struct rc_shape:
        ptrdiff_t k, units
        int gates
    ctypedef struct rc_gemm:
        rc_shape shape
        const void *packed
        const void *bias
        int accumulate, padded
        rc_rows a, c
        ptrdiff_t row_begin, row_end, panel_begin, panel_end
        int backwards, far
    ctypedef struct rc_outer:
        rc_rows a, x
        void *c
        ptrdiff_t c_stride, rows, n, m_begin, m_end
        void *columns
        const rc_outer *beside
    cdef enum:
        RC_OUTER_LARGE, RC_MOSTLY_L3
    cdef enum rc_cell:
        RC_RNN_TANH, RC_RNN_RELU, RC_LSTM, RC_GRU, RC_GRU_RESET_BEFORE, RC_CELLS
    ctypedef struct rc_step:
        rc_cell cell
        int phase
        rc_shape shape
        int chains
        const void *packed
        const void *bias
        rc_rows gates, product, h_prev, h_next, c, reset, y, saved, saved_unit
        ptrdiff_t row_begin, row_end, panel_begin, panel_end
        int backwards
    ctypedef struct rc_sequence:
        ptrdiff_t count, rows, tape
        int alternates
        void *team
        void (*wait)(void *team, int later) noexcept nogil
        void (*pass_on "pass")(void *team) noexcept nogil
    ctypedef struct rc_step_back:
        rc_cell cell
        int phase
        ptrdiff_t units
        rc_rows saved, saved_unit, h_prev, dy, dh, dc, reset, dz
        ptrdiff_t row_begin, row_end, unit_begin, unit_end, ahead, dy_ahead
    ctypedef struct rc_norm:
        ptrdiff_t units
        int gates
        const void *gain
        const void *shift
        rc_rows x, y, hat, rstd, saved, dh, dz, dy, dx
        int accumulate
        ptrdiff_t rows
    ctypedef struct rc_kernels:
        const char *name
        ptrdiff_t lanes
        size_t itemsize
        void (*pack)(const rc_shape *, const void *, ptrdiff_t, ptrdiff_t, void *) noexcept nogil
        void (*pack_bias)(const rc_shape *, const void *, const void *, void *) noexcept nogil
        void (*gemm)(const rc_gemm *) noexcept nogil
        void (*outer)(const rc_outer *) noexcept nogil
        void (*step)(const rc_step *) noexcept nogil
        void (*steps)(const rc_step *first, const rc_sequence *) noexcept nogil
        void (*step_back)(const rc_step_back *) noexcept nogil
        void (*column_sums)(const rc_rows *, const rc_rows *, ptrdiff_t, void *, void *, ptrdiff_t,
                            ptrdiff_t) noexcept nogil
        void (*norm)(const rc_norm *) noexcept nogil
        void (*norm_back)(const rc_norm *) noexcept nogil
        void (*activate)(int, const void *, void *, ptrdiff_t) noexcept nogil
    ptrdiff_t rc_vectors(ptrdiff_t units, ptrdiff_t lanes)
    ptrdiff_t rc_panels(const rc_shape *, ptrdiff_t lanes)
    ptrdiff_t rc_row_size(const rc_shape *, ptrdiff_t lanes)
    size_t rc_packed_size(const rc_shape *, ptrdiff_t lanes)
    size_t rc_outer_scratch(ptrdiff_t rows, ptrdiff_t n)
    int rc_chains(int gates, ptrdiff_t units)
