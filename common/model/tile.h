/*
 * tile.h - the register tile: the innermost loop of every product, for product.c and attention.c.
 */
#ifndef POSTTRAIN_TILE_H
#define POSTTRAIN_TILE_H

#include "model/simd.h"

enum { MR = 6, NR = 16 };  // rows and columns of a tile

static const float zeros[NR];

/* Cache lines to prefetch: `lines` lines of 64 bytes from p on, then as many from each row below.
 */
typedef struct {
    const float *p;
    size_t stride;
    int line, lines;
    int every;  // a tile prefetches one line every so many steps of k
} Ahead;

/* Prefetches the line of the last of 16 floats, because rows need not start at a line. */
static inline void prefetch_line(Ahead *a) {
    _mm_prefetch((const char *)(a->p + 16 * a->line + 15), _MM_HINT_T1);
    if (++a->line == a->lines) {
        a->line = 0;
        a->p += a->stride;
    }
}

/*
 * C (rows,16) = start + A (rows,K) B (K,16), rows <= 6. Strides are in floats: element (i,k) of A
 * is a[i * a_row + k * a_k], row k of B is at b + k * b_k, row i of start and C is at
 * start + i * start_row and c + i * c_row. Uses 15 of the 16 registers: 12 accumulators, 2 for B,
 * 1 for A. It is always inlined with a constant number of rows, and with ahead NULL if nothing is
 * prefetched, so that the compiler removes unused parts.
 */
#define EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)

static inline __attribute__((always_inline)) void tile_rows(const int rows, int K, const float *a,
                                                            size_t a_row, size_t a_k,
                                                            const float *b, size_t b_k,
                                                            const float *start, size_t start_row,
                                                            float *c, size_t c_row, Ahead *ahead) {
#define DECLARE(i) __m256 c##i = _mm256_setzero_ps(), d##i = c##i;
#define START(i)                                           \
    if (i < rows) {                                        \
        c##i = _mm256_loadu_ps(start + i * start_row);     \
        d##i = _mm256_loadu_ps(start + i * start_row + 8); \
    }
#define STEP(i)                                 \
    if (i < rows) {                             \
        x = _mm256_broadcast_ss(a + i * a_row); \
        c##i = _mm256_fmadd_ps(x, b0, c##i);    \
        d##i = _mm256_fmadd_ps(x, b1, d##i);    \
    }
#define FINISH(i)                                  \
    if (i < rows) {                                \
        _mm256_storeu_ps(c + i * c_row, c##i);     \
        _mm256_storeu_ps(c + i * c_row + 8, d##i); \
    }
    EACH_ROW(DECLARE)
    EACH_ROW(START)
    for (int steps; K > 0; K -= steps) {
        steps = ahead ? min_int(K, ahead->every) : K;
        if (ahead) prefetch_line(ahead);
        for (int k = 0; k < steps; k++, a += a_k, b += b_k) {
            __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8), x;
            EACH_ROW(STEP)
        }
    }
    EACH_ROW(FINISH)
#undef DECLARE
#undef START
#undef STEP
#undef FINISH
}

static inline __attribute__((always_inline)) void tile(int rows, int K, const float *a,
                                                       size_t a_row, size_t a_k, const float *b,
                                                       size_t b_k, const float *start,
                                                       size_t start_row, float *c, size_t c_row,
                                                       Ahead *ahead) {
    switch (rows) {
        case 6: tile_rows(6, K, a, a_row, a_k, b, b_k, start, start_row, c, c_row, ahead); break;
        case 5: tile_rows(5, K, a, a_row, a_k, b, b_k, start, start_row, c, c_row, ahead); break;
        case 4: tile_rows(4, K, a, a_row, a_k, b, b_k, start, start_row, c, c_row, ahead); break;
        case 3: tile_rows(3, K, a, a_row, a_k, b, b_k, start, start_row, c, c_row, ahead); break;
        case 2: tile_rows(2, K, a, a_row, a_k, b, b_k, start, start_row, c, c_row, ahead); break;
        case 1: tile_rows(1, K, a, a_row, a_k, b, b_k, start, start_row, c, c_row, ahead); break;
    }
}

/* c (64) = start (0 if NULL) + a (K) B (K,64), B having row stride b_k. A tile for one row, which

   has enough registers for 64 columns at once. Attention of 32 sequences over 128 keys each, all
   layers of GPT-2 124M, one thread, takes 46 ms; with tile() it took 89 ms. */
enum { WIDE = 64 };

static inline void tile_wide(int K, const float *a, const float *b, size_t b_k, const float *start,
                             float *c) {
    __m256 s[WIDE / 8];
    for (int v = 0; v < WIDE / 8; v++)
        s[v] = start ? _mm256_loadu_ps(start + 8 * v) : _mm256_setzero_ps();
    for (int k = 0; k < K; k++, b += b_k)
        for (int v = 0; v < WIDE / 8; v++)
            s[v] = _mm256_fmadd_ps(_mm256_broadcast_ss(a + k), _mm256_loadu_ps(b + 8 * v), s[v]);
    for (int v = 0; v < WIDE / 8; v++) _mm256_storeu_ps(c + 8 * v, s[v]);
}
#endif
