/*
 * cpu.h - what the files of the CPU's kernels share.
 */
#ifndef POSTTRAIN_CPU_H
#define POSTTRAIN_CPU_H

#include "model/kernels.h"
#include "util.h"

/* A factor of a product: a row-major matrix with a row stride, or the transpose of one. The second
   factor may be in NF4; then p is NULL. */
typedef struct {
    const float *p;
    size_t stride;
    bool transposed;
    const NF4 *nf4;
} Matrix;

/* C (M,N) = A (M,K) B (K,N). The chains start from C (accumulate), from bias (N), or from 0. */
void product(int M, int N, int K, Matrix A, Matrix B, float *C, size_t ldc, const float *bias,
             bool accumulate);

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
