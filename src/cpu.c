#include "cpu.h"

#include <stdio.h>

#if defined(__x86_64__)
#define RC_X86 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define RC_X86 0
#endif

#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#define NOINLINE __attribute__((noinline))

/* ---- instruction sets ---- */

#if RC_X86

/* The register state that the operating system saves and restores: CPUID alone says only what the silicon has. */
static unsigned saved_state(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

int rc_cpu_isa(void)
{
    enum { XMM_YMM = 0x6, OPMASK_ZMM = 0xe6 };
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX) || !(c & bit_FMA))
        return RC_ISA_GENERIC;
    unsigned state = saved_state();
    if ((state & XMM_YMM) != XMM_YMM || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2))
        return RC_ISA_GENERIC;
    unsigned wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((state & OPMASK_ZMM) == OPMASK_ZMM && (b & wanted) == wanted)
        return RC_ISA_AVX512;
    return RC_ISA_AVX2;
}

#else

int rc_cpu_isa(void)
{
    return RC_ISA_GENERIC;
}

#endif

/* ---- caches: each source fills bytes[1..3] and leaves what it does not know at 0 ---- */

#if RC_X86

static void caches_from_leaf(unsigned leaf, size_t bytes[4])
{
    enum { DATA = 1, UNIFIED = 3 };
    for (unsigned i = 0; i < 16; i++) {
        unsigned a, b, c, d;
        if (!__get_cpuid_count(leaf, i, &a, &b, &c, &d) || (a & 31) == 0)
            return;
        unsigned type = a & 31, level = (a >> 5) & 7;
        size_t ways = (b >> 22) + 1, parts = ((b >> 12) & 1023) + 1, line = (b & 4095) + 1, sets = (size_t)c + 1;
        if ((type == DATA || type == UNIFIED) && level >= 1 && level <= 3)
            bytes[level] = ways * parts * line * sets;
    }
}

static void caches_from_cpu(size_t bytes[4])
{
    caches_from_leaf(4, bytes); /* Intel; AMD reports nothing there */
    if (!bytes[1])
        caches_from_leaf(0x8000001d, bytes);
}

#elif defined(__APPLE__)

static void caches_from_cpu(size_t bytes[4])
{
    static const char *const names[4] = {0, "hw.l1dcachesize", "hw.l2cachesize", "hw.l3cachesize"};
    for (int level = 1; level <= 3; level++) {
        long long value = 0;
        size_t size = sizeof value;
        if (sysctlbyname(names[level], &value, &size, 0, 0) == 0 && value > 0)
            bytes[level] = (size_t)value;
    }
}

#else

static void caches_from_cpu(size_t bytes[4])
{
    (void)bytes;
}

#endif

#if defined(__linux__)

/* The first word of one file about a cache of CPU 0; empty if there is no such file. */
static void read_cache_file(int index, const char *field, char word[32])
{
    char path[96];
    word[0] = 0;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, field);
    FILE *file = fopen(path, "r");
    if (!file)
        return;
    if (fscanf(file, "%31s", word) != 1)
        word[0] = 0;
    fclose(file);
}

static void caches_from_system(size_t bytes[4])
{
    for (int i = 0; i < 8; i++) {
        char level[32], type[32], size[32], unit = 0;
        unsigned long value = 0;
        read_cache_file(i, "level", level);
        read_cache_file(i, "type", type);
        read_cache_file(i, "size", size);
        if (level[0] < '1' || level[0] > '3' || type[0] == 'I' || sscanf(size, "%lu%c", &value, &unit) < 1)
            continue;
        bytes[level[0] - '0'] = (size_t)value << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
    }
}

#else

static void caches_from_system(size_t bytes[4])
{
    (void)bytes;
}

#endif

size_t rc_cache_bytes(int level)
{
    size_t bytes[4] = {0, 0, 0, 0};
    if (level < 1 || level > 3)
        return 0;
    caches_from_cpu(bytes);
    if (!bytes[1])
        caches_from_system(bytes);
    if (!bytes[1]) { /* an unknown machine, or a hypervisor that hides the caches */
        bytes[1] = (size_t)32 << 10;
        bytes[2] = (size_t)512 << 10;
        bytes[3] = (size_t)8 << 20;
    }
    for (int i = 2; i <= 3; i++)
        if (bytes[i] < bytes[i - 1])
            bytes[i] = bytes[i - 1];
    return bytes[level];
}

/* ---- floating-point control ---- */

#if RC_X86

enum { FLUSH = 0x8040 }; /* MXCSR: flush to zero (bit 15), denormals are zero (bit 6) */

NOINLINE unsigned rc_fp_get(void)
{
    return _mm_getcsr();
}

NOINLINE void rc_fp_set(unsigned control)
{
    _mm_setcsr(control);
}

#elif defined(__aarch64__)

enum { FLUSH = 0x1000000 }; /* FPCR.FZ (bit 24): denormal inputs and results */

NOINLINE unsigned rc_fp_get(void)
{
    unsigned long long control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return (unsigned)control;
}

NOINLINE void rc_fp_set(unsigned control)
{
    unsigned long long wide = control;
    __asm__ volatile("msr fpcr, %0" : : "r"(wide));
}

#else

enum { FLUSH = 0 };

NOINLINE unsigned rc_fp_get(void)
{
    return 0;
}

NOINLINE void rc_fp_set(unsigned control)
{
    (void)control;
}

#endif

NOINLINE unsigned rc_fp_begin(void)
{
    unsigned control = rc_fp_get();
    rc_fp_set(control | FLUSH);
    return control;
}

NOINLINE void rc_fp_end(unsigned control)
{
    rc_fp_set(control);
}

NOINLINE unsigned rc_fp_standard(void)
{
    unsigned control = rc_fp_get();
    rc_fp_set(control & ~(unsigned)FLUSH);
    return control;
}
