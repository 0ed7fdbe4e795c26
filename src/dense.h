/* The contract of the dense kernels: losses, optimisers, embedding, dropout, norms.
 *
 * Written once, in dense_body.h, over `real` (float or double) in the vector vocabulary. `void *` is an array of
 * `real`, C order, never padded; sizes are in elements, ranges are [begin, end).
 *
 * Reductions run in 16 virtual lanes (element i belongs to lane i % 16) that one fixed tree adds up, and blocks are
 * summed in double in ascending order, so the bits depend neither on the vector width nor on the threads. Ranges
 * that threads share out are rows, blocks of RC_BLOCK elements, or columns: each output belongs to one of them.
 *
 * No kernel allocates, fails or keeps a pointer. Pointers in one call must not overlap unless it says so.
 */
#ifndef RC_DENSE_H
#define RC_DENSE_H

#include <stddef.h>
#include <stdint.h>

enum { RC_BLOCK = 1024 }; /* elements that one sum in `real` spans */

static inline ptrdiff_t rc_blocks(ptrdiff_t n) { return (n + RC_BLOCK - 1) / RC_BLOCK; }

/* Softmax cross-entropy from logits x (rows, classes), one target a row:
 *
 *   loss = -sum_j q_j log softmax(x)_j,  dx = scale (softmax(x) - q),  q = (1 - smoothing) onehot + smoothing / classes
 *
 * A row whose target is negative does not count: its loss and gradient are zero.
 */
typedef struct {
    const void *x;          /* (rows, classes) */
    void *dx;               /* out (rows, classes); NULL: the loss alone; may be x itself */
    const int64_t *targets; /* (rows), below classes */
    double *loss;           /* out (rows) */
    ptrdiff_t classes;      /* at least 1 */
    double scale, smoothing;
} rc_cross_entropy;

/* A loss of n pairs (x, target), element by element; `mask` NULL, or (n) where 0 means: does not count.
 *
 *   RC_BCE  max(x, 0) - x target + log(1 + e^-|x|),  dx = scale (sigmoid(x) - target)
 *   RC_MSE  (x - target)^2,                          dx = scale 2 (x - target)
 */
enum rc_pair { RC_BCE, RC_MSE };
typedef struct {
    enum rc_pair kind;
    const void *x, *target, *mask; /* (n) each */
    void *dx;                      /* out (n), or NULL; may be x itself */
    double *loss;                  /* out (rc_blocks(n)): the sum over each block */
    ptrdiff_t n;
    double scale;
} rc_pair_loss;

/* One optimiser step of n parameters, in place. PyTorch's formulas; g = grad, p = param.
 *
 *   RC_SGD      g += decay p;  first = momentum first + (1 - dampening) g;  p -= lr first
 *               (nesterov: p -= lr (g + momentum first))
 *   RC_RMSPROP  g += decay p;  second = alpha second + (1 - alpha) g^2;  third (centered) = the mean of g;
 *               step = g / (sqrt(second - third^2) + eps);  first = momentum first + step;  p -= lr first
 *   RC_ADAM     g += decay p (decoupled: p -= lr decay p);  first += (1 - beta1)(g - first);
 *               second = beta2 second + (1 - beta2) g^2;
 *               p -= lr / correction1 first / (sqrt(second) / correction2 + eps)
 *
 * A state that is not used (`first` without momentum) is NULL.
 */
enum rc_optimiser { RC_SGD, RC_RMSPROP, RC_ADAM };
typedef struct {
    enum rc_optimiser kind;
    int nesterov, decoupled;
    double lr, decay, momentum, dampening; /* momentum is Adam's beta1 */
    double alpha;                          /* RMSprop's alpha, Adam's beta2 */
    double eps, correction1, correction2;
} rc_update;

/* Dropout by counter: whether a unit is kept follows from what it is, never from the order of computing. */
typedef struct {
    uint64_t key; /* rc_dropout_key() */
    double p;     /* chance of a zero, 0 to 1 */
    ptrdiff_t units;
} rc_dropout;

static inline uint64_t rc_mix64(uint64_t z) { /* the finaliser of splitmix64: a bijection that scatters every bit */
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* One key for all masks of a layer in a call; sequence, step and unit are Philox's counter. */
static inline uint64_t rc_dropout_key(uint64_t seed, uint64_t call, uint64_t layer) {
    return rc_mix64(rc_mix64(rc_mix64(seed) ^ call) ^ layer);
}

typedef struct rc_dense {
    void (*cross_entropy)(const rc_cross_entropy *, ptrdiff_t row_begin, ptrdiff_t row_end);
    void (*pair_loss)(const rc_pair_loss *, ptrdiff_t block_begin, ptrdiff_t block_end);
    void (*update)(const rc_update *, void *param, const void *grad, void *first, void *second, void *third,
                   ptrdiff_t n);
    /* sums[b] = sum of squares over block b of x (n); also where a square overflows `real` */
    void (*sum_squares)(const void *x, ptrdiff_t n, double *sums);
    int (*finite)(const void *x, ptrdiff_t n); /* 1 when no element is inf or NaN */
    void (*scale)(void *x, ptrdiff_t n, double factor);
    void (*clamp)(void *x, ptrdiff_t n, double limit); /* to [-limit, limit]; NaN stays */
    /* y[i] = table[index[i]] for rows of `columns` */
    void (*gather)(const void *table, const int64_t *index, ptrdiff_t columns, void *y, ptrdiff_t begin, ptrdiff_t end);
    /* table[index[i]] += dy[i], i ascending, for the columns [begin, end); rows of `skip` stay out */
    void (*scatter_add)(void *table, const int64_t *index, ptrdiff_t rows, ptrdiff_t columns, const void *dy,
                        int64_t skip, ptrdiff_t begin, ptrdiff_t end);
    /* mask (units): 0 with probability p, else 1 / (1 - p) */
    void (*dropout_mask)(const rc_dropout *, uint32_t sequence, uint32_t step, void *mask);
    void (*multiply)(const void *a, const void *b, void *y, ptrdiff_t n); /* y = a b; y may be a or b */
    void (*log)(const void *x, void *y, ptrdiff_t n);                     /* test twin of v_log */
} rc_dense;

/* Philox 4x32 with ten rounds (Salmon, Moraes, Dror, Shaw 2011): `words` in: the counter, out: the random words. */
#define RC_PHILOX_MUL0 0xD2511F53u
#define RC_PHILOX_MUL1 0xCD9E8D57u
#define RC_PHILOX_KEY0 0x9E3779B9u
#define RC_PHILOX_KEY1 0xBB67AE85u

#endif
