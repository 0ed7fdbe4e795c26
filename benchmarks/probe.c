/* What this machine can do: the FMA peak of one core and the rate at which it reads a buffer.
 *
 * Compiled by benchmarks/limits.py into a small shared library, never a part of the package. Every function
 * times itself and returns the best of many short runs, so that a busy neighbour costs nothing but time.
 * isa: 0 what every CPU of the architecture has, 1 AVX2 + FMA, 2 AVX-512F. */
#define _POSIX_C_SOURCE 199309L
#include <stddef.h>
#include <stdint.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef double (*fma_fn)(size_t rounds);
typedef double (*read_fn)(const float *p, size_t n);

static volatile double sink; /* keeps the results alive */

/* CHAINS independent accumulators hide the latency of the FMA units: LANES * CHAINS * 2 operations a round. */
#define DEFINE_PROBE(NAME, TARGET, LANES, CHAINS, STREAMS, MULTIPLY_ADD)                                      \
    typedef float NAME##_v __attribute__((vector_size(4 * LANES)));                                           \
    TARGET static double NAME##_fma(size_t rounds)                                                            \
    {                                                                                                         \
        NAME##_v acc[CHAINS], a, b;                                                                           \
        for (int j = 0; j < LANES; j++) a[j] = 0.5f, b[j] = 1.0f;                                             \
        _Pragma("GCC unroll 32") for (int i = 0; i < CHAINS; i++) acc[i] = b;                                 \
        for (size_t r = 0; r < rounds; r++) {                                                                 \
            _Pragma("GCC unroll 32") for (int i = 0; i < CHAINS; i++)                                         \
            {                                                                                                 \
                acc[i] = MULTIPLY_ADD(acc[i], a, b);                                                          \
                __asm__ volatile("" : REGISTER(acc[i]));                                                      \
            }                                                                                                 \
        }                                                                                                     \
        _Pragma("GCC unroll 32") for (int i = 1; i < CHAINS; i++) acc[0] += acc[i];                           \
        sink = acc[0][0];                                                                                     \
        return 2.0 * LANES * CHAINS * (double)rounds;                                                         \
    }                                                                                                         \
    TARGET static double NAME##_read(const float *p, size_t n)                                                \
    {                                                                                                         \
        const NAME##_v *x = (const NAME##_v *)p;                                                              \
        NAME##_v acc[STREAMS] = {{0}};                                                                        \
        size_t whole = n / LANES / STREAMS * STREAMS;                                                         \
        for (size_t k = 0; k < whole; k += STREAMS) {                                                         \
            _Pragma("GCC unroll 32") for (int i = 0; i < STREAMS; i++) acc[i] += x[k + (size_t)i];            \
        }                                                                                                     \
        _Pragma("GCC unroll 32") for (int i = 1; i < STREAMS; i++) acc[0] += acc[i];                          \
        sink = acc[0][0];                                                                                     \
        return 4.0 * LANES * (double)whole;                                                                   \
    }

#define PLAIN(a, b, c) ((a) * (b) + (c))
#if defined(__x86_64__)
#include <immintrin.h>
#define REGISTER(v) "+v"(v)
#define FMA256(a, b, c) ((avx2_v)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define FMA512(a, b, c) ((avx512_v)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
DEFINE_PROBE(generic, , 4, 12, 8, PLAIN)
DEFINE_PROBE(avx2, __attribute__((target("avx2,fma"))), 8, 12, 8, FMA256)
DEFINE_PROBE(avx512, __attribute__((target("avx512f"))), 16, 24, 16, FMA512)
static const fma_fn fma_table[] = {generic_fma, avx2_fma, avx512_fma};
static const read_fn read_table[] = {generic_read, avx2_read, avx512_read};
#else
#define REGISTER(v) "+w"(v)
DEFINE_PROBE(generic, , 4, 24, 16, PLAIN)
static const fma_fn fma_table[] = {generic_fma};
static const read_fn read_table[] = {generic_read};
#endif

/* Floating-point operations a second of the calling thread, the best of as many runs as `seconds` allow. */
double probe_fma(int isa, double seconds)
{
    double best = 0.0;
    const double end = now() + seconds;
    do {
        const double begin = now();
        const double operations = fma_table[isa](20000);
        const double rate = operations / (now() - begin);
        if (rate > best) best = rate;
    } while (now() < end);
    return best;
}

/* Bytes a second of the calling thread reading `bytes` at `p` (64-byte aligned) over and over, best of many. */
double probe_read(int isa, const void *p, size_t bytes, double seconds)
{
    double best = 0.0;
    const size_t repeats = bytes < (1u << 20) ? (1u << 20) / bytes + 1 : 1; /* a run of some 10 us at the least */
    const double end = now() + seconds;
    do {
        const double begin = now();
        double read = 0.0;
        for (size_t i = 0; i < repeats; i++) read += read_table[isa](p, bytes / sizeof(float));
        const double rate = read / (now() - begin);
        if (rate > best) best = rate;
    } while (now() < end);
    return best;
}
