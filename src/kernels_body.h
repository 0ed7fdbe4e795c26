/* The kernels of one instruction set: included by kernels_<isa>.c after its vocabulary. */
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

#include "activation_body.h"
#include "tile_body.h"
#include "cell_body.h"
#include "gemm_body.h"
#include "dense_body.h"

static void activate(int f, const void *x, void *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t left = n - i < LANES ? n - i : LANES;
        vf v = v_load_n((const real *)x + i, left);
        v_store_n((real *)y + i, f == 0 ? v_exp(v) : f == 1 ? v_sigmoid(v) : v_tanh(v), left);
    }
}

const rc_kernels KERNELS = {
    .name = SIMD_NAME,
    .lanes = LANES,
    .itemsize = sizeof(real),
    .pack = pack,
    .pack_bias = pack_bias,
    .gemm = gemm,
    .outer = outer,
    .step = step,
    .step_back = step_back,
    .column_sums = column_sums,
    .activate = activate,
    .dense = &dense_table,
};
