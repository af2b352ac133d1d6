/*
 * cpu.h - what the files of the CPU's kernels share.
 */
#ifndef POSTTRAIN_CPU_H
#define POSTTRAIN_CPU_H

#include "model/kernels.h"
#include "util.h"

/* What device_precision() was told. */
extern Precision cpu_precision;
/* VDPBF16PS is slower here than the two multiply-adds that it replaces (device.c). */
extern bool cpu_slow_pairs;

/* A factor of a product: a row-major matrix with a row stride, or the transpose of one. The second
   factor may be in NF4 or, under BF16_WEIGHTS, in bf16. */
typedef enum { OF_FLOATS, OF_NF4, OF_BF16 } MatrixKind;
typedef struct {
    MatrixKind kind;
    bool transposed;
    size_t stride;
    const float *p;
    const uint16_t *half;
    const NF4 *nf4;
} Matrix;

static inline Matrix matrix(const real *p, int stride) {
    return (Matrix){OF_FLOATS, false, (size_t)stride, p, NULL, NULL};
}

/* A model's weight: floats, or under BF16_WEIGHTS numbers of bf16. */
static inline Matrix weight_matrix(const real *p, int stride) {
    if (cpu_precision != BF16_WEIGHTS) return matrix(p, stride);
    return (Matrix){OF_BF16, false, (size_t)stride, NULL, (const uint16_t *)(const void *)p, NULL};
}

static inline Matrix nf4_matrix(const NF4 *q) {
    return (Matrix){OF_NF4, false, (size_t)q->IC, NULL, NULL, q};
}

static inline Matrix transposed(Matrix m) {
    m.transposed = !m.transposed;
    return m;
}

/* C (M,N) = A (M,K) B (K,N). The chains start from C (accumulate), from bias (N), or from 0. */
void product(int M, int N, int K, Matrix A, Matrix B, float *C, size_t ldc, const float *bias,
             bool accumulate);

/* The arguments of product(). */
typedef struct {
    int M, N, K;
    Matrix A, B;
    float *C;
    size_t ldc;
    const float *bias;  // (N) or NULL
    bool accumulate;
    bool bf16;  // the factors are rounded to bf16
} Product;

/* product() for M = 1, an A that is not transposed, and a B that is not in NF4. room has K + 16
   floats. */
void product_one(Product p, float *room);

/* Returns n floats of workspace for this thread. It is allocated once and reused, so that training
   steps and decoding do not allocate memory. */
float *workspace(size_t n);

/* The uniform number of element c of the token in row n. */
static inline float noise_uniform(const Noise *z, int n, uint32_t c) {
    return random_uniform(
        random4(z->seed, z->purpose, z->step, z->sequence[n], (uint32_t)z->position[n], c / 4)
            .v[c % 4]);
}

#endif
