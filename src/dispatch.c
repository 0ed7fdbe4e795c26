#include "dispatch.h"

#include "cpu.h"

ptrdiff_t rc_l1_bytes = 32 << 10;

const rc_kernels *rc_pick_f32(int isa)
{
#if defined(RC_HAVE_AVX512)
    if (isa >= RC_ISA_AVX512)
        return &rc_kernels_avx512;
#endif
#if defined(RC_HAVE_AVX2)
    if (isa >= RC_ISA_AVX2)
        return &rc_kernels_avx2;
#endif
    (void)isa;
    return &rc_kernels_generic;
}

const rc_kernels *rc_pick_f64(void)
{
    return &rc_kernels_f64;
}
