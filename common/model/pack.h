/*
 * pack.h - the elements of a product's factors, and packing them; for product.c and row.c.
 */
#ifndef POSTTRAIN_PACK_H
#define POSTTRAIN_PACK_H

#include "model/nf4.h"
#include "model/tile.h"

static inline const char *bytes_at(Matrix M, size_t at) {
    return M.kind == OF_BF16 ? (const char *)(M.half + at) : (const char *)(M.p + at);
}
static inline size_t bytes_each(Matrix M) {
    return M.kind == OF_BF16 ? sizeof(uint16_t) : sizeof(float);
}

/* ---- elements of a matrix -------------------------------------------------------------------- */

/* kind and bf16 are constants wherever these functions are inlined. */
#define INLINE static inline __attribute__((always_inline))

/* pack_b decodes the weight, eight numbers at a time: the lower three bits of a code are looked up
   in both halves of the table of 16, and the upper bit selects one of the two. Each number is
   decoded once for all rows of a superblock. So decoding costs little in training, but halves the
   speed of a product with a single row. */
static inline Vec8 nf4_load(const NF4 *q, size_t at, int n) {
    if (at % 8 || n < 8) {  // may cross a block or a byte, or the end
        float x[8] = {0};
        for (int i = 0; i < min_int(n, 8); i++) x[i] = nf4_number(q, at + (size_t)i);
        return _mm256_loadu_ps(x);
    }
    int four;
    memcpy(&four, q->code + at / 2, sizeof four);
    __m256i code =
        _mm256_srlv_epi32(_mm256_set1_epi32(four), _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(nf4_value), code),
           high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(nf4_value + 8), code);
    __m256 value = _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
    return _mm256_mul_ps(value, _mm256_set1_ps(nf4_absmax_of(q, at / NF4_BLOCK)));
}

/* Eight elements from element `at` on. Only n are read; the others are 0. */
INLINE Vec8 elements8(const MatrixKind kind, Matrix M, size_t at, int n) {
    if (kind == OF_NF4) return n > 0 ? nf4_load(M.nf4, at, n) : _mm256_setzero_ps();
    if (kind == OF_FLOATS) return load8(M.p + at, n);
    uint16_t padded[8] = {0};
    const uint16_t *p = M.half + at;
    if (n < 8) {
        for (int i = 0; i < n; i++) padded[i] = p[i];
        p = padded;
    }
    const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

/* W elements. */
INLINE Vec elements(const MatrixKind kind, Matrix M, size_t at, int n) {
#ifdef __AVX512F__
    if (kind == OF_BF16 && n >= W) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(M.half + at));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    }
    if (kind != OF_FLOATS)
        return join(elements8(kind, M, at, n), elements8(kind, M, at + 8, n - 8));
    return load(M.p + at, n);
#else
    return elements8(kind, M, at, n);
#endif
}

/* The elements in a packed word: 2 in a product of bf16 where there are pairs (tile.h), else 1. */
static inline int per_word(bool bf16) { return bf16 ? PAIRS : 1; }

/* The words of K elements. A pair that lacks its second element gets 0 (kernels.h). */
static inline int words_of(bool bf16, int K) {
    return !bf16 ? K : PAIRS == 2 ? (K + 1) / 2 : (K + 1) / 2 * 2;
}

/* Eight words along k: of the n elements from element `at` on, which are contiguous. */
INLINE Vec8 words_along(const MatrixKind kind, const bool bf16, Matrix M, size_t at, int n) {
    if (!bf16) return elements8(kind, M, at, n);
#ifdef __AVX512BF16__
    if (kind == OF_BF16)
        return _mm256_castsi256_ps(_mm256_maskz_loadu_epi16(first(n), M.half + at));
    return (Vec8)_mm512_cvtneps_pbh(elements(kind, M, at, n));
#else
    const Vec8 x = elements8(kind, M, at, n);
    return _mm256_permute_ps(kind == OF_BF16 ? x : rounded8(x), 0xB1);  // 1, 0, 3, 2, ...
#endif
}

#ifdef __AVX512BF16__
/* The order of 16 bit elements that pairs element i with element i + distance, for i = from .. */
INLINE __m512i pairs_of(uint32_t from, uint32_t distance) {
    const UVec i = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (__m512i)(i * 0x10001u + (from * 0x10001u + (distance << 16)));
}
#endif

/* Word w along k of each of W columns. Element (0,0) is `at`, and there are K rows. */
INLINE Vec words_across(const MatrixKind kind, const bool bf16, Matrix M, size_t at, int K, int w,
                        int n) {
    if (!bf16) return elements(kind, M, at + (size_t)w * M.stride, n);
#ifdef __AVX512BF16__
    const size_t even = at + 2 * (size_t)w * M.stride, odd = even + M.stride;
    const bool pair = 2 * w + 1 < K;
    __m512i both;
    if (kind == OF_BF16) {
        both = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(first(n), M.half + even));
        both = _mm512_inserti64x4(
            both, pair ? _mm256_maskz_loadu_epi16(first(n), M.half + odd) : _mm256_setzero_si256(),
            1);
    } else {
        both = (__m512i)_mm512_cvtne2ps_pbh(pair ? elements(kind, M, odd, n) : none(),
                                            elements(kind, M, even, n));
    }
    // word i: element i of the lower half and of the upper half
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(pairs_of(0, 16), both));
#else
    const int k = w ^ 1;
    if (k >= K) return none();
    const Vec x = elements(kind, M, at + (size_t)k * M.stride, n);
    return kind == OF_BF16 ? x : rounded(x);
#endif
}

/* The same of 2 W columns. */
INLINE void words_across_both(const MatrixKind kind, const bool bf16, Matrix M, size_t at, int K,
                              int w, Vec out[2]) {
#ifdef __AVX512BF16__
    if (kind == OF_BF16 && bf16 && 2 * w + 1 < K) {
        const uint16_t *p = M.half + at + 2 * (size_t)w * M.stride;
        const __m512i even = _mm512_loadu_si512(p), odd = _mm512_loadu_si512(p + M.stride);
        out[0] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(even, pairs_of(0, 32), odd));
        out[1] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(even, pairs_of(16, 32), odd));
        return;
    }
#endif
    out[0] = words_across(kind, bf16, M, at, K, w, W);
    out[1] = words_across(kind, bf16, M, at + W, K, w, W);
}

#endif
