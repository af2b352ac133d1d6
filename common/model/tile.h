/*
 * tile.h - the register tile: the innermost loop of every product, for product.c and attention.c.
 */
#ifndef POSTTRAIN_TILE_H
#define POSTTRAIN_TILE_H

#include "model/simd.h"

/* Rows and columns of a tile. It has 2 MR accumulators: 12 of AVX2's 16 registers, 28 of AVX-512's
   32. The others are for 2 vectors of B and 1 of A. */
#ifdef __AVX512F__
enum { MR = 14 };
#else
enum { MR = 6 };
#endif
enum { NR = 2 * W };

static const float zeros[NR];

/* ---- one step of a chain --------------------------------------------------------------------- */

/* A product of bf16 takes two terms of its chain at a time (kernels.h). Where there is an
   instruction for that, operands are packed as pairs: a word of 32 bits has element k, which is
   even, in its lower half and element k + 1 in its upper half. Elsewhere they are packed as floats
   in the order of the chain, 1, 0, 3, 2, ..., and each is a step of its own. */
#ifdef __AVX512BF16__
enum { PAIRS = 2 };  // elements of bf16 in a word of packed operands
#else
enum { PAIRS = 1 };
#endif

/* z + x y; of pairs if bf16 is set and there is an instruction for it */
static inline __attribute__((always_inline)) Vec step(const bool bf16, Vec x, Vec y, Vec z) {
#ifdef __AVX512BF16__
    if (bf16) return _mm512_dpbf16_ps(z, (__m512bh)x, (__m512bh)y);
#endif
    (void)bf16;
    return fma_(x, y, z);
}

/* ---- prefetching ----------------------------------------------------------------------------- */

/* Cache lines to prefetch: `lines` lines of 64 bytes from p on, then as many from each row below.
 */
typedef struct {
    const char *p;
    size_t stride;  // bytes
    int line, lines;
    int every;  // a tile prefetches every so many steps of k
    int burst;  // so many lines
} Ahead;

/* Prefetches the line of the last of 64 bytes, because rows need not start at a line. */
static inline void prefetch_line(Ahead *a) {
    _mm_prefetch(a->p + 64 * (size_t)a->line + 60, _MM_HINT_T1);
    if (++a->line == a->lines) {
        a->line = 0;
        a->p += a->stride;
    }
}

/* ---- the tile -------------------------------------------------------------------------------- */

/* Where a tile's operands are. Strides are in floats: element (i,k) of A is a[i * a_row + k * a_k],
   row k of B is at b + k * b_k, row i of start and C is at start + i * start_row and
   c + i * c_row. */
typedef struct {
    const float *a;
    size_t a_row, a_k;
    const float *b;
    size_t b_k;
    const float *start;
    size_t start_row;
    float *c;
    size_t c_row;
} Operands;

/*
 * C (rows,columns) = start + A (rows,K) B (K,columns), rows <= MR; columns is W or NR. It is always
 * inlined with a constant number of rows, and with ahead NULL if nothing is prefetched, so that the
 * compiler removes unused parts and keeps the accumulators s and t in registers.
 */
static inline __attribute__((always_inline)) void tile_rows(const int rows, const int columns,
                                                            const bool bf16, int K, Operands o,
                                                            Ahead *ahead) {
    const bool two = columns == NR;
    Vec s[MR], t[MR];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        s[i] = load(o.start + (size_t)i * o.start_row, W);
        if (two) t[i] = load(o.start + (size_t)i * o.start_row + W, W);
    }
    for (int steps; K > 0; K -= steps) {
        steps = ahead ? min_int(K, ahead->every) : K;
        for (int i = 0; ahead && i < ahead->burst; i++) prefetch_line(ahead);
        for (int k = 0; k < steps; k++, o.a += o.a_k, o.b += o.b_k) {
            const Vec b0 = load(o.b, W), b1 = two ? load(o.b + W, W) : b0;
#pragma GCC unroll 14
            for (int i = 0; i < rows; i++) {
                const Vec a = all(o.a[(size_t)i * o.a_row]);
                s[i] = step(bf16, a, b0, s[i]);
                if (two) t[i] = step(bf16, a, b1, t[i]);
            }
        }
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        store(o.c + (size_t)i * o.c_row, s[i], W);
        if (two) store(o.c + (size_t)i * o.c_row + W, t[i], W);
    }
}

#define TILE_CASE(n) \
    case n: tile_rows(n, columns, bf16, K, o, ahead); break;

static inline __attribute__((always_inline)) void tile_of(int rows, const int columns,
                                                          const bool bf16, int K, Operands o,
                                                          Ahead *ahead) {
    switch (rows) {
#ifdef __AVX512F__
        TILE_CASE(14)
        TILE_CASE(13)
        TILE_CASE(12)
        TILE_CASE(11)
        TILE_CASE(10)
        TILE_CASE(9)
        TILE_CASE(8)
        TILE_CASE(7)
#endif
        TILE_CASE(6)
        TILE_CASE(5)
        TILE_CASE(4)
        TILE_CASE(3)
        TILE_CASE(2)
        TILE_CASE(1)
    }
}

/* c (columns) = start (0 if NULL) + a (K) B (K,columns), B having row stride b_k; columns is a
   multiple of 16, at most 64. A tile for one row, which has enough registers for 64 columns at
   once. It prefetches the numbers that are `ahead` bytes after those of B. Attention of 32
   sequences over 64 to 128 keys each, all layers of GPT-2 124M, one thread, takes 11 ms; without
   prefetching it took 15 ms. */
enum { WIDE = 64 };

static inline __attribute__((always_inline)) void tile_wide(const int columns, int K,
                                                            const float *a, const float *b,
                                                            size_t b_k, const float *start,
                                                            float *c, ptrdiff_t ahead) {
    Vec s[WIDE / W];
    for (int v = 0; v < columns / W; v++)
        s[v] = start ? load(start + (size_t)W * (size_t)v, W) : none();
    for (int k = 0; k < K; k++, b += b_k) {
        for (int v = 0; v < columns / W; v++)
            s[v] = fma_(all(a[k]), load(b + (size_t)W * (size_t)v, W), s[v]);
        for (int line = 0; line < columns / 16; line++)
            _mm_prefetch((const char *)(b + 16 * (size_t)line) + ahead, _MM_HINT_T1);
    }
    for (int v = 0; v < columns / W; v++) store(c + (size_t)W * (size_t)v, s[v], W);
}

#endif
