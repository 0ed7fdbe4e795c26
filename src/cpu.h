/* What this CPU and this operating system can run, its caches, and the floating-point control register. */
#ifndef RC_CPU_H
#define RC_CPU_H

#include <stddef.h>

/* Ordered: a larger value is a superset, so "may only lower" is a comparison. */
enum { RC_ISA_GENERIC = 0, RC_ISA_AVX2 = 1, RC_ISA_AVX512 = 2 };

/* The best instruction set that both the CPU (CPUID) and the operating system (XGETBV: YMM, ZMM and mask state)
 * support. */
int rc_cpu_isa(void);

/* Bytes of the data or unified cache of `level` (1, 2, 3) that one core sees: the whole instance, also where cores
 * share it. Never 0 for these levels: a cache that is not reported counts as the next smaller one, and a machine that
 * reports none as 32 KiB, 512 KiB, 8 MiB. */
size_t rc_cache_bytes(int level);

/* The floating-point control register of the calling thread (MXCSR or FPCR; 0 where neither exists).
 * All of these are real calls on purpose: compilers move float arithmetic across an inlined change of the register,
 * so set it only around a call to the function that does the arithmetic, never around BLAS, float64 code or Python. */
unsigned rc_fp_get(void);
void rc_fp_set(unsigned control);
/* Denormal results and inputs become signed zeros; returns the former register for rc_fp_end. */
unsigned rc_fp_begin(void);
void rc_fp_end(unsigned control);
/* Denormals are kept again (for Python code that runs in the middle of a kernel loop); returns the former register. */
unsigned rc_fp_standard(void);

#endif
