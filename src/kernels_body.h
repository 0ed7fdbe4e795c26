/* The kernels of one instruction set: included by kernels_<isa>.c after its vocabulary. */
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#define TWICE _Pragma("GCC unroll 2") /* of inner loops: fewer turns, and their code still short */

#include "activation_body.h"
#include "tile_body.h"
#include "cell_body.h"
#include "gemm_body.h"
#include "dense_body.h"
#include "norm_body.h"

static void activate(int f, const void *x, void *y, ptrdiff_t n) {
    const real *from = x;
    real *to = y;
    for (ptrdiff_t begin = 0; begin < n; begin += SIDE_BY_SIDE * LANES) {
        vf v[SIDE_BY_SIDE];
        int count = 0;
        for (ptrdiff_t i = begin; i < n && count < SIDE_BY_SIDE; i += LANES, count++)
            v[count] = n - i < LANES ? v_load_n(from + i, n - i) : v_load(from + i);
        if (f == 1) sigmoid_all(v, count);
        else if (f == 2) tanh_all(v, count);
        else for (int i = 0; i < count; i++) v[i] = v_exp(v[i]);
        for (int i = 0; i < count; i++) {
            const ptrdiff_t at = begin + i * LANES;
            if (n - at < LANES) v_store_n(to + at, v[i], n - at);
            else v_store(to + at, v[i]);
        }
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
    .steps = steps,
    .step_back = step_back,
    .column_sums = column_sums,
    .norm = norm,
    .norm_back = norm_back,
    .activate = activate,
    .dense = &dense_table,
};
