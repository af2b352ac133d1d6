/*
 * row.c - a product with one row, on a CPU: a vector times a matrix, as in decoding one sequence.
 *
 * B is read once, in place, at the speed of memory. The words of the chain (pack.h) are made in
 * registers, and nothing is packed but the vector. What matters is the order in which lines of the
 * cache are asked for. A core waits for about two dozen lines at a time, and the hardware looks
 * ahead only along a stream. So both functions prefetch the part of B that follows into L2.
 *
 * All matrices of GPT-2 124M, on one thread of Zen 4 with 33 GB/s, take 8.9 ms in bf16 and 17.4 ms
 * as floats. With the head 8 rows at a time, without pairs of bf16, they took 13.4 ms and 19.9 ms.
 */
#include "model/simd.h"

#include <omp.h>

#include "model/pack.h"

/* ---- B as it is ------------------------------------------------------------------------------ */

/* Each thread takes a segment of columns, as wide as possible, and 8 rows of it at a time, while it
   prefetches the next 8. At the end of a segment the hardware prefetcher reads too far, so short
   segments are slow: with 384 columns a thread reaches two thirds of its speed with 1,536. */
enum { DOWN = 8, SEGMENT = 1536 };

/* Prefetches 2 W columns of a row. */
INLINE void prefetch_columns(const MatrixKind kind, Matrix B, size_t at) {
    const char *p = kind == OF_BF16 ? (const char *)(B.half + at) : (const char *)(B.p + at);
    _mm_prefetch(p, _MM_HINT_T1);
    if (kind == OF_FLOATS && W == 16) _mm_prefetch(p + 64, _MM_HINT_T1);
}

/* c (columns) += x B, with B's first element at `at`; x in words. */
INLINE void row_segment(const MatrixKind kind, const bool bf16, int columns, int K, const float *x,
                        Matrix B, size_t at, float *c) {
    const int each = per_word(bf16), deep = DOWN / each;
    for (; K >= DOWN; K -= DOWN, at += DOWN * B.stride, x += deep) {
        Vec xw[DOWN];
        for (int i = 0; i < deep; i++) xw[i] = all(x[i]);
        int j = 0;
        for (; j + 2 * W <= columns; j += 2 * W) {
            Vec s = load(c + j, W), t = load(c + j + W, W);
            const size_t here = at + (size_t)j;
#pragma GCC unroll 8
            for (int i = 0; i < deep; i++) {
#pragma GCC unroll 2
                for (int row = i * each; row < (i + 1) * each; row++)
                    prefetch_columns(kind, B, here + (size_t)(DOWN + row) * B.stride);
                Vec words[2];
                words_across_both(kind, bf16, B, here, DOWN, i, words);
                s = step(bf16, xw[i], words[0], s);
                t = step(bf16, xw[i], words[1], t);
            }
            store(c + j, s, W);
            store(c + j + W, t, W);
        }
        for (; j < columns; j += W) {
            Vec s = load(c + j, columns - j);
            for (int i = 0; i < deep; i++)
                s = step(bf16, xw[i],
                         words_across(kind, bf16, B, at + (size_t)j, DOWN, i, columns - j), s);
            store(c + j, s, columns - j);
        }
    }
    for (int j = 0; j < columns && K; j += W) {
        Vec s = load(c + j, columns - j);
        for (int w = 0; w < words_of(bf16, K); w++)
            s = step(bf16, all(x[w]),
                     words_across(kind, bf16, B, at + (size_t)j, K, w, columns - j), s);
        store(c + j, s, columns - j);
    }
}

/* ---- B transposed ---------------------------------------------------------------------------- */

/* Its rows are columns of the product: 2 W of them at a time, because a single chain would wait for
   itself. Four words of each are transposed in registers. If fewer rows remain, the last one is
   repeated. */
enum { GROUP = 16 };

/* Four words of n elements of a row. */
INLINE __m128 four_words(const MatrixKind kind, const bool bf16, Matrix B, size_t at, int n) {
    const int all_four = 4 * per_word(bf16);
    if (n < all_four) return _mm256_castps256_ps128(words_along(kind, bf16, B, at, n));
    if (!bf16) return _mm_loadu_ps(B.p + at);
    if (kind == OF_FLOATS) return _mm256_castps256_ps128(words_along(kind, bf16, B, at, all_four));
    if (PAIRS == 2) return _mm_loadu_ps((const float *)(const void *)(B.half + at));
    const __m128i half = _mm_loadl_epi64((const __m128i *)(const void *)(B.half + at));
    return _mm_permute_ps(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16)), 0xB1);
}

/* Lane r of column[i] = word i of the row that starts at row[r], of n elements. */
INLINE void four_columns(const MatrixKind kind, const bool bf16, Matrix B, const size_t *row,
                         size_t k, int n, Vec column[4]) {
    Vec r[4];  // r[i]: rows i, i + 4, ...
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m128 a = four_words(kind, bf16, B, row[i] + k, n),
                     b = four_words(kind, bf16, B, row[i + 4] + k, n);
#ifdef __AVX512F__
        r[i] = _mm512_mask_broadcast_f32x4(_mm512_castps128_ps512(a), 0x00f0, b);
        r[i] =
            _mm512_mask_broadcast_f32x4(r[i], 0x0f00, four_words(kind, bf16, B, row[i + 8] + k, n));
        r[i] = _mm512_mask_broadcast_f32x4(r[i], 0xf000,
                                           four_words(kind, bf16, B, row[i + 12] + k, n));
#else
        r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(a), b, 1);
#endif
    }
    const Vec t0 = SIMD(unpacklo_ps)(r[0], r[1]), t1 = SIMD(unpackhi_ps)(r[0], r[1]),
              t2 = SIMD(unpacklo_ps)(r[2], r[3]), t3 = SIMD(unpackhi_ps)(r[2], r[3]);
    column[0] = SIMD(shuffle_ps)(t0, t2, 0x44);
    column[1] = SIMD(shuffle_ps)(t0, t2, 0xEE);
    column[2] = SIMD(shuffle_ps)(t1, t3, 0x44);
    column[3] = SIMD(shuffle_ps)(t1, t3, 0xEE);
}

/* c (rows) += x B, of rows `at` .. of the transposed B, at most GROUP; x in words. */
INLINE void row_turned(const MatrixKind kind, const bool bf16, int rows, int K, const float *x,
                       Matrix B, size_t at, float *c) {
    const int each = per_word(bf16), size = kind == OF_BF16 ? 2 : 4;
    size_t row[GROUP];
    for (int i = 0; i < GROUP; i++) row[i] = at + (size_t)min_int(i, rows - 1) * B.stride;
    const char *next = bytes_at(B, at + GROUP * B.stride);
    Vec s[GROUP / W], column[4];
    for (int v = 0; v < GROUP / W; v++) s[v] = load(c + (size_t)v * W, max_int(0, rows - v * W));
    for (int k = 0; k < K; k += 4 * each, x += 4) {
        const int left = K - k, words = min_int(4, words_of(bf16, left));
#pragma GCC unroll 4
        for (int line = 0; line < GROUP * 4 * each * size / 64; line++, next += 64)
            _mm_prefetch(next, _MM_HINT_T1);
        for (int v = 0; v < GROUP / W; v++) {
            if (left >= 4 * each) {
                four_columns(kind, bf16, B, row + (size_t)v * W, (size_t)k, 4 * each, column);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) s[v] = step(bf16, all(x[i]), column[i], s[v]);
            } else {
                four_columns(kind, bf16, B, row + (size_t)v * W, (size_t)k, left, column);
                for (int i = 0; i < words; i++) s[v] = step(bf16, all(x[i]), column[i], s[v]);
            }
        }
    }
    for (int v = 0; v < GROUP / W; v++) store(c + (size_t)v * W, s[v], max_int(0, rows - v * W));
}

/* ---- the product ----------------------------------------------------------------------------- */

/* Columns j0 .. j0 + columns. */
INLINE void segment_of_row(const MatrixKind kind, const bool bf16, const Product *p, const float *x,
                           int j0, int columns) {
    float *c = p->C + j0;
    if (!p->B.transposed) {
        row_segment(kind, bf16, columns, p->K, x, p->B, (size_t)j0, c);
        return;
    }
    for (int j = 0; j < columns; j += GROUP)
        row_turned(kind, bf16, min_int(GROUP, columns - j), p->K, x, p->B,
                   (size_t)(j0 + j) * p->B.stride, c + j);
}

static void segment_of_floats(const Product *p, const float *x, int j0, int columns) {
    segment_of_row(OF_FLOATS, false, p, x, j0, columns);
}
static void segment_rounded(const Product *p, const float *x, int j0, int columns) {
    segment_of_row(OF_FLOATS, true, p, x, j0, columns);
}
static void segment_of_bf16(const Product *p, const float *x, int j0, int columns) {
    segment_of_row(OF_BF16, true, p, x, j0, columns);
}

void product_one(Product p, float *room) {
    const int threads = omp_get_max_threads(), wide = SEGMENT * 4 / (int)bytes_each(p.B),
              parts = threads * ((p.N + threads * wide - 1) / (threads * wide));
    const int segment = p.B.transposed ? 128 : round_up((p.N + parts - 1) / parts, 64);
    const float *x = p.A.p;
    if (p.bf16) {
        for (int w = 0; w < words_of(true, p.K); w += 8) {
            const int k = w * per_word(true);
            store8(room + w, words_along(OF_FLOATS, true, p.A, (size_t)k, p.K - k), 8);
        }
        x = room;
    }
    void (*const part)(const Product *, const float *, int, int) = p.B.kind == OF_BF16
                                                                       ? segment_of_bf16
                                                                   : p.bf16 ? segment_rounded
                                                                            : segment_of_floats;
#pragma omp parallel
    {
        const unsigned state = flush_denormals(p.bf16);
#pragma omp for schedule(monotonic : dynamic, 1)
        for (int j0 = 0; j0 < p.N; j0 += segment) {
            const int columns = min_int(segment, p.N - j0);
            if (!p.accumulate && p.bias)
                memcpy(p.C + j0, p.bias + j0, sizeof(float) * (size_t)columns);
            else if (!p.accumulate)
                memset(p.C + j0, 0, sizeof(float) * (size_t)columns);
            part(&p, x, j0, columns);
        }
        _mm_setcsr(state);
    }
}
