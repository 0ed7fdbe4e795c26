#include "dispatch.h"

#include "cpu.h"

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
#if defined(RC_HAVE_GENERIC)
    return &rc_kernels_generic;
#else
    return 0;
#endif
}

const rc_kernels *rc_pick_f64(void)
{
#if defined(RC_HAVE_F64)
    return &rc_kernels_f64;
#else
    return 0;
#endif
}
