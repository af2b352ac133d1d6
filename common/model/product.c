/*
 * product.c - the matrix product on a CPU, with OpenMP threads; and the layers that are one
 * product.
 *
 * Two ideas determine the CPU's kernels. First, every matrix product (linear layers, loss head,
 * attention forward and backward, prefill and decoding) uses one register tile, tile_of() in
 * tile.h, or a similar loop where there is only one row. In all of them an output element is a
 * chain of fused multiply-adds over k in a fixed order. Blocking cuts the chain into pieces but
 * does not change its order, because a tile starts from the previous contents of C. Second, threads
 * divide the output elements among them, never the terms of a sum. So the bits do not depend on
 * threads, blocking or batch.
 *
 * Decoding reads every weight to multiply it with only a few rows. Its speed is limited by memory,
 * so it prefetches the next cache lines.
 *
 * Left out: packed copies of the weights between calls, because they would double the memory of a
 * frozen model.
 */
#include "model/simd.h"

#include <omp.h>

#include "model/nf4.h"
#include "model/tile.h"

/* ---- The matrix product ---------------------------------------------------------------------- */

/* Packing, and the loops around the tile (Goto & van de Geijn 2008; names as in BLIS). Blocks were
   chosen by measurement on 2 cores of Zen 4 (32 KB L1, 1 MB L2): a tile's panel of B (KC x NR)
   stays in L1 or L2, MC rows of A in L2, the packed superblocks (MB x KC and KC x NC, 7 MB) in L3.
   KC counts words of 4 bytes: floats, or pairs of bf16. */
enum { KC = W == 16 ? 512 : 384, MC = MR * (192 / MR), MB = MR * (1536 / MR), NC = 3072, JT = 128 };

static float *packed_a, *packed_b;  // the superblocks, shared by all threads

static void allocate_superblocks(void) {
    if (packed_a) return;
    device_init();
    packed_a = device_alloc(sizeof(float) * MB * KC + 64);
    packed_b = device_alloc(sizeof(float) * KC * NC + 64);
    if (!packed_a || !packed_b)
        die("out of memory for the kernels' %d MB of workspace; close other programs",
            (int)((MB + NC) * KC * sizeof(float) >> 20));
}

float *workspace(size_t n) {
    static __thread float *memory;
    static __thread size_t have;
    if (n > have) {
        device_free(memory, have * sizeof(float));
        memory = device_alloc(n * sizeof(float));
        if (!memory)
            die("out of memory for %zu bytes of workspace; use a smaller --max_length",
                n * sizeof(float));
        have = n;
    }
    return memory;
}

/* A tile of packed A and B. start and C have only `columns` of its NR columns. */
static inline __attribute__((always_inline)) void tile_packed(const bool bf16, int rows,
                                                              int columns, int words,
                                                              const float *a, const float *b,
                                                              const float *start, size_t start_row,
                                                              float *c, size_t c_row) {
    Operands o = {a, 1, MR, b, NR, start, start_row, c, c_row};
    if (columns == NR) {
        tile_of(rows, NR, bf16, words, o, NULL);
        return;
    }
    float edge[MR * NR] = {0};
    for (int i = 0; i < rows; i++)
        memcpy(edge + i * NR, start + (size_t)i * start_row, sizeof(float) * (size_t)columns);
    o = (Operands){a, 1, MR, b, NR, edge, NR, edge, NR};
    tile_of(rows, NR, bf16, words, o, NULL);
    for (int i = 0; i < rows; i++)
        memcpy(c + (size_t)i * c_row, edge + i * NR, sizeof(float) * (size_t)columns);
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
    return _mm256_permute_ps(rounded8(elements8(kind, M, at, n)), 0xB1);  // 1, 0, 3, 2, ...
#endif
}

/* Word w along k of each of W columns. Element (0,0) is `at`, and there are K rows. */
INLINE Vec words_across(const MatrixKind kind, const bool bf16, Matrix M, size_t at, int K, int w,
                        int n) {
    if (!bf16) return elements(kind, M, at + (size_t)w * M.stride, n);
#ifdef __AVX512BF16__
    const size_t row = at + (size_t)(2 * w) * M.stride;
    const Vec even = elements(kind, M, row, n),
              odd = 2 * w + 1 < K ? elements(kind, M, row + M.stride, n) : none();
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even)),
                  high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
#else
    const int k = w ^ 1;
    return k < K ? rounded(elements(kind, M, at + (size_t)k * M.stride, n)) : none();
#endif
}

/* ---- packing --------------------------------------------------------------------------------- */

/* Packs rows i .. i+MR (rows from M on are 0) and elements k .. k+K of A, word after word:
   out[w * MR + i]. Also writes 2 words after the panel, which the next panel overwrites. */
INLINE void pack_a_from(const bool bf16, float *out, Matrix A, int i, int M, int k, int K) {
    const int words = words_of(bf16, K), rows = min_int(MR, M - i);
    if (A.transposed) {
        const size_t at = (size_t)k * A.stride + (size_t)i;
        for (int w = 0; w < words; w++, out += MR)
            store(out, words_across(OF_FLOATS, bf16, A, at, K, w, M - i), W);
        return;
    }
    const size_t at = (size_t)i * A.stride + (size_t)k;
    for (int w = 0; w < words; w += 8) {
        Vec8 r[W / 8][8];
        const int done = w * per_word(bf16), columns = min_int(8, words - w);
        for (int row = 0; row < W; row++) {
            const size_t here = at + (size_t)row * A.stride + (size_t)done;
            r[row / 8][row % 8] =
                row < rows ? words_along(OF_FLOATS, bf16, A, here, K - done) : _mm256_setzero_ps();
        }
        for (int part = 0; part < W / 8; part++) transpose8(r[part]);
        for (int column = 0; column < columns; column++, out += MR)
            store(out, join(r[0][column], r[W / 8 - 1][column]), W);
    }
}

static void pack_a(bool bf16, float *out, Matrix A, int i, int M, int k, int K) {
    if (bf16)
        pack_a_from(true, out, A, i, M, k, K);
    else
        pack_a_from(false, out, A, i, M, k, K);
}

/* Packs columns j .. j+columns (at most NR; the others are 0) and elements k .. k+K of B, word
   after word: out[w * NR + j]. */
INLINE void pack_b_from(const MatrixKind kind, const bool bf16, float *out, Matrix B, int j,
                        int columns, int k, int K) {
    const int words = words_of(bf16, K);
    if (!B.transposed) {
        const size_t at = (size_t)k * B.stride + (size_t)j;
        for (int w = 0; w < words; w++, out += NR) {
            store(out, words_across(kind, bf16, B, at, K, w, columns), W);
            store(out + W,
                  columns > W ? words_across(kind, bf16, B, at + W, K, w, columns - W) : none(), W);
        }
        return;
    }
    for (int part = 0; part < NR; part += 8)
        for (int w = 0; w < words; w += 8) {
            Vec8 r[8];
            const int done = w * per_word(bf16), depth = min_int(8, words - w);
            for (int row = 0; row < 8; row++) {
                const size_t here = (size_t)(j + part + row) * B.stride + (size_t)(k + done);
                r[row] = part + row < columns ? words_along(kind, bf16, B, here, K - done)
                                              : _mm256_setzero_ps();
            }
            transpose8(r);
            for (int d = 0; d < depth; d++) _mm256_store_ps(out + (w + d) * NR + part, r[d]);
        }
}

static void pack_b(bool bf16, float *out, Matrix B, int j, int columns, int k, int K) {
    if (B.kind == OF_BF16)
        pack_b_from(OF_BF16, true, out, B, j, columns, k, K);
    else if (B.kind == OF_NF4 && bf16)
        pack_b_from(OF_NF4, true, out, B, j, columns, k, K);
    else if (B.kind == OF_NF4)
        pack_b_from(OF_NF4, false, out, B, j, columns, k, K);
    else if (bf16)
        pack_b_from(OF_FLOATS, true, out, B, j, columns, k, K);
    else
        pack_b_from(OF_FLOATS, false, out, B, j, columns, k, K);
}

/* ---- many rows ------------------------------------------------------------------------------- */

/* C (M,N) = A (M,K) B (K,N) */
typedef struct {
    int M, N, K;
    Matrix A, B;
    float *C;
    size_t ldc;
    const float *bias;  // (N) or NULL
    bool accumulate;    // the chains start from C
    bool bf16;          // the factors are rounded to bf16
} Product;

/* Returns where the chains of C's tile at (i,j) start, and the row stride there: C itself if they
   continue from it, else the bias of the columns, else zeros. */
static inline const float *chain_start(const float *c, const float *bias, int j, bool continues,
                                       size_t ldc, size_t *row) {
    *row = continues ? ldc : 0;
    return continues ? c : bias ? bias + j : zeros;
}

/* A part of a superblock at row ic, column jc and element kc of a product: rows i0 .. i1 and
   columns j0 .. j1 of it, which is packed `words` words deep. */
typedef struct {
    int ic, jc, kc, words, i0, i1, j0, j1;
} Part;

INLINE void multiply_part(const bool bf16, const Product *p, Part t) {
    for (int j = t.j0; j < t.j1; j += NR)
        for (int i = t.i0; i < t.i1; i += MR) {
            float *c = p->C + (size_t)(t.ic + i) * p->ldc + (size_t)(t.jc + j);
            size_t start_row;
            const float *start =
                chain_start(c, p->bias, t.jc + j, p->accumulate || t.kc > 0, p->ldc, &start_row);
            for (int row = 0; row < MR; row++)
                _mm_prefetch((const char *)(c + (size_t)(MR + row) * p->ldc), _MM_HINT_T0);
            const size_t words = (size_t)t.words;
            tile_packed(bf16, min_int(MR, t.i1 - i), min_int(NR, t.j1 - j), t.words,
                        packed_a + (size_t)i * words, packed_b + (size_t)j * words, start,
                        start_row, c, p->ldc);
        }
}

static void multiply_floats(const Product *p, Part t) { multiply_part(false, p, t); }
static void multiply_bf16(const Product *p, Part t) { multiply_part(PAIRS == 2, p, t); }

/* Packs panel number `panel` of a superblock of A. pack_a writes 2 words too many. So it packs the
   end of the panel elsewhere, so that they do not overwrite the next panel, which another thread
   packs. */
static void pack_panel(const Product *p, int panel, int ic, int kc, int depth, int words) {
    float last[MR * 8 + 2], *out = packed_a + (size_t)panel * MR * (size_t)words;
    const int head = (words - 1) / 8 * 8, done = head * per_word(p->bf16), i = ic + panel * MR;
    pack_a(p->bf16, last, p->A, i, p->M, kc + done, depth - done);
    if (head) pack_a(p->bf16, out, p->A, i, p->M, kc, done);
    memcpy(out + head * MR, last, sizeof(float) * (size_t)((words - head) * MR));
}

/*
 * Many rows. All threads together pack superblocks of A and B, then take tiles of MC x JT one by
 * one. Few barriers and dynamic scheduling limit the slowdown when another process uses one of the
 * cores.
 */
static void product_large(Product p) {
    const int deep = KC * per_word(p.bf16);
#pragma omp parallel
    {
        const unsigned state = flush_denormals(p.bf16);
        for (int jc = 0; jc < p.N; jc += NC)
            for (int ic = 0; ic < p.M; ic += MB)
                for (int kc = 0; kc < p.K; kc += deep) {
                    const int columns = min_int(NC, p.N - jc), rows = min_int(MB, p.M - ic),
                              depth = min_int(deep, p.K - kc), words = words_of(p.bf16, depth);
                    const int b_panels = (columns + NR - 1) / NR, a_panels = (rows + MR - 1) / MR;
#pragma omp for schedule(dynamic, 8) nowait
                    for (int panel = 0; panel < b_panels; panel++)
                        pack_b(p.bf16, packed_b + (size_t)panel * NR * (size_t)words, p.B,
                               jc + panel * NR, min_int(NR, columns - panel * NR), kc, depth);
#pragma omp for schedule(dynamic, 16)
                    for (int panel = 0; panel < a_panels; panel++)
                        pack_panel(&p, panel, ic, kc, depth, words);
                    const int tiles_i = (rows + MC - 1) / MC, tiles_j = (columns + JT - 1) / JT;
#pragma omp for schedule(dynamic, 1)
                    for (int t = 0; t < tiles_i * tiles_j; t++) {
                        const int i0 = t / tiles_j * MC, j0 = t % tiles_j * JT;
                        const Part part = {ic, jc,
                                           kc, words,
                                           i0, min_int(i0 + MC, rows),
                                           j0, min_int(j0 + JT, columns)};
                        if (p.bf16)
                            multiply_bf16(&p, part);
                        else
                            multiply_floats(&p, part);
                    }
                }
        _mm_setcsr(state);
    }
}

/* ---- few rows -------------------------------------------------------------------------------- */

/*
 * Few rows, as in decoding. Most of the time is spent on reading B once. All of A is packed, with
 * its rows divided evenly among the panels. Each thread processes strips of 64 columns of B: it
 * packs KC words of a strip, which fit in its L2, and multiplies them. Meanwhile the tiles prefetch
 * the part that it packs next, one cache line every few steps. Prefetching all of it between two
 * tiles would not help, because a core can only wait for about two dozen lines at a time. The
 * results of a strip stay in `sum` until its chains end. All matrices of GPT-2 124M with 32 rows
 * take 46-48 ms; without prefetching and with results in C they took 62-70 ms. With 4 rows: 19 and
 * 28.6 ms.
 */
enum { FEW = 48, STRIP = 64, FEW_PANELS = (FEW + MR - 1) / MR };

static inline const char *bytes_at(Matrix M, size_t at) {
    return M.kind == OF_BF16 ? (const char *)(M.half + at) : (const char *)(M.p + at);
}
static inline size_t bytes_each(Matrix M) {
    return M.kind == OF_BF16 ? sizeof(uint16_t) : sizeof(float);
}

/* What to prefetch while the strip at (kc,j0) is multiplied in so many tiles: the rows below, or
   the top of the strip to the right. Nothing new after the last strip, and for NF4, where decoding
   takes longer than reading. */
static Ahead strip_ahead(const Product *p, int kc, int j0, int tiles, const float *strip) {
    const int deep = KC * per_word(p->bf16), steps = words_of(p->bf16, min_int(deep, p->K - kc));
    const int k = kc + deep < p->K ? kc + deep : 0, j = k ? j0 : j0 + STRIP,
              wide = min_int(STRIP, p->N - j), down = min_int(deep, p->K - k);
    if (wide <= 0 || p->B.kind == OF_NF4) return (Ahead){(const char *)strip, 0, 0, 1, steps};
    const bool turned = p->B.transposed;
    const size_t size = bytes_each(p->B),
                 at = (size_t)(turned ? j : k) * p->B.stride + (size_t)(turned ? k : j);
    const int rows = turned ? wide : down, lines = ((turned ? down : wide) * (int)size + 63) / 64;
    return (Ahead){bytes_at(p->B, at), p->B.stride * size, 0, lines,
                   max_int(1, steps * tiles / (rows * lines))};
}

/* sum (M,STRIP) += the panels of A, `words` deep, times the packed strip of B. */
INLINE void multiply_strip(const bool bf16, const int *first_row, int panels, int columns,
                           int words, const float *a, const float *strip, float *sum,
                           Ahead *ahead) {
    for (int j = 0; j < columns; j += NR)
        for (int p = 0; p < panels; p++) {
            float *c = sum + first_row[p] * STRIP + j;
            const Operands o = {a + (size_t)p * (size_t)words * MR,
                                1,
                                MR,
                                strip + j * words,
                                NR,
                                c,
                                STRIP,
                                c,
                                STRIP};
            tile_of(first_row[p + 1] - first_row[p], NR, bf16, words, o, ahead);
        }
}

/* One strip of the product. packed_a holds the panels of A, those of one depth after the other. */
static void product_strip(const Product *p, const int *first_row, int panels, int j0) {
    _Alignas(64) float strip[STRIP * KC], sum[FEW * STRIP];
    const int columns = min_int(STRIP, p->N - j0), tiles = panels * ((columns + NR - 1) / NR);
    const int deep = KC * per_word(p->bf16);
    for (int i = 0; i < p->M; i++) {
        const float *start = p->accumulate ? p->C + (size_t)i * p->ldc + (size_t)j0
                             : p->bias     ? p->bias + j0
                                           : NULL;
        for (int j = 0; j < STRIP; j += W)
            store(sum + i * STRIP + j, start && j < columns ? load(start + j, columns - j) : none(),
                  W);
    }
    for (int kc = 0; kc < p->K; kc += deep) {
        const int depth = min_int(deep, p->K - kc), words = words_of(p->bf16, depth);
        const float *a = packed_a + (size_t)(kc / deep * KC * panels) * MR;
        Ahead ahead = strip_ahead(p, kc, j0, tiles, strip);
        for (int j = 0; j < columns; j += NR)
            pack_b(p->bf16, strip + j * words, p->B, j0 + j, min_int(NR, columns - j), kc, depth);
        if (p->bf16)
            multiply_strip(PAIRS == 2, first_row, panels, columns, words, a, strip, sum, &ahead);
        else
            multiply_strip(false, first_row, panels, columns, words, a, strip, sum, &ahead);
    }
    for (int i = 0; i < p->M; i++)
        memcpy(p->C + (size_t)i * p->ldc + (size_t)j0, sum + i * STRIP,
               sizeof(float) * (size_t)columns);
}

static void product_few(Product p) {
    const int panels = (p.M + MR - 1) / MR, deep = KC * per_word(p.bf16);
    int first_row[FEW_PANELS + 1];
    for (int i = 0; i <= panels; i++) first_row[i] = p.M * i / panels;
    for (int kc = 0; kc < p.K; kc += deep) {
        const int depth = min_int(deep, p.K - kc), words = words_of(p.bf16, depth);
        for (int i = 0; i < panels; i++)
            pack_a(p.bf16, packed_a + (size_t)(kc / deep * KC * panels + i * words) * MR, p.A,
                   first_row[i], first_row[i + 1], kc, depth);
    }
#pragma omp parallel
    {
        const unsigned state = flush_denormals(p.bf16);
#pragma omp for schedule(static)
        for (int j0 = 0; j0 < p.N; j0 += STRIP) product_strip(&p, first_row, panels, j0);
        _mm_setcsr(state);
    }
}

/* ---- one row --------------------------------------------------------------------------------- */

/*
 * One row: a vector times B, which is read once, in place, at the speed of memory. All matrices of
 * GPT-2 124M take 12 ms, where a plain stream reads 63 GB/s; with strips of 64 columns they took
 * 28 ms.
 *
 * For a row-major B, each thread takes a segment of columns, as wide as possible, and 8 rows of it
 * at a time, while it prefetches the next 8 rows. At the end of a segment the hardware prefetcher
 * reads too far, so short segments are slow: with 384 columns a thread reaches two thirds of its
 * speed with 1,536.
 *
 * In a product of bf16 the chain takes the rows of B in the order 1, 0, 3, 2, ..., and if K is odd,
 * a row of zeros before the last one (kernels.h).
 */
enum { DOWN = 8, SEGMENT = 1536 };

/* W elements of B, rounded if they are factors of a product of bf16. */
INLINE Vec factors(const MatrixKind kind, const bool bf16, Matrix B, size_t at, int n) {
    const Vec x = elements(kind, B, at, n);
    return bf16 && kind == OF_FLOATS ? rounded(x) : x;
}

/* c (columns) += x (K) B, with B's first element at `at`. */
INLINE void row_segment(const MatrixKind kind, const bool bf16, int columns, int K, const float *x,
                        Matrix B, size_t at, float *c) {
    int k = 0;
    for (; k + DOWN <= K; k += DOWN, at += DOWN * B.stride) {
        Vec xk[DOWN];
        for (int i = 0; i < DOWN; i++) xk[i] = all(x[k + i]);
        int j = 0;
        for (; j + 2 * W <= columns; j += 2 * W) {
            Vec s = load(c + j, W), t = load(c + j + W, W);
#pragma GCC unroll 8
            for (int i = 0; i < DOWN; i++) {
                const int row = bf16 ? i ^ 1 : i;
                const size_t here = at + (size_t)row * B.stride + (size_t)j;
                const char *next = kind == OF_BF16 ? (const char *)(B.half + here + DOWN * B.stride)
                                                   : (const char *)(B.p + here + DOWN * B.stride);
                _mm_prefetch(next, _MM_HINT_T1);
                if (W == 16 && kind == OF_FLOATS) _mm_prefetch(next + 64, _MM_HINT_T1);
                s = fma_(xk[row], factors(kind, bf16, B, here, W), s);
                t = fma_(xk[row], factors(kind, bf16, B, here + W, W), t);
            }
            store(c + j, s, W);
            store(c + j + W, t, W);
        }
        for (; j < columns; j += W) {
            Vec s = load(c + j, columns - j);
            for (int i = 0; i < DOWN; i++) {
                const int row = bf16 ? i ^ 1 : i;
                const size_t here = at + (size_t)row * B.stride + (size_t)j;
                s = fma_(xk[row], factors(kind, bf16, B, here, columns - j), s);
            }
            store(c + j, s, columns - j);
        }
    }
    const int rest = K - k, steps = bf16 ? (rest + 1) / 2 * 2 : rest;
    for (int j = 0; j < columns && steps; j += W) {
        Vec s = load(c + j, columns - j);
        for (int i = 0; i < steps; i++) {
            const int row = bf16 ? i ^ 1 : i;
            const size_t here = at + (size_t)row * B.stride + (size_t)j;
            if (row < rest)
                s = fma_(all(x[k + row]), factors(kind, bf16, B, here, columns - j), s);
            else
                s = fma_(none(), none(), s);
        }
        store(c + j, s, columns - j);
    }
}

/*
 * For a transposed B: 8 of its rows together, 4 columns of words at a time, which are transposed in
 * registers. If fewer than 8 rows remain, the last one is repeated. Meanwhile it prefetches the
 * same rows 1 KB ahead, or the start of the next 8.
 */
enum { ACROSS = 1024 };

/* Prefetches 1 KB after byte `at` of 8 rows of `length` bytes, once per cache line. */
static inline void prefetch_rows(const char *const p[8], size_t at, size_t length, size_t stride) {
    if (at % 64) return;
    const size_t ahead = at + ACROSS < length ? at + ACROSS : (at + ACROSS) % length + 8 * stride;
    for (int i = 0; i < 8; i++) _mm_prefetch(p[i] + ahead, _MM_HINT_T1);
}

/* Four columns of 8 rows. r[i] has row i and row i + 4. */
static inline void transpose4(const Vec8 r[4], Vec8 column[4]) {
    const Vec8 t0 = _mm256_unpacklo_ps(r[0], r[1]), t1 = _mm256_unpackhi_ps(r[0], r[1]),
               t2 = _mm256_unpacklo_ps(r[2], r[3]), t3 = _mm256_unpackhi_ps(r[2], r[3]);
    column[0] = _mm256_shuffle_ps(t0, t2, 0x44);
    column[1] = _mm256_shuffle_ps(t0, t2, 0xEE);
    column[2] = _mm256_shuffle_ps(t1, t3, 0x44);
    column[3] = _mm256_shuffle_ps(t1, t3, 0xEE);
}

static inline Vec8 two_rows(__m128 row, __m128 below) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(row), below, 1);
}

/* c (rows) += x (K) B, of rows `at` .. of the transposed B. */
static void row_turned(int rows, int K, const float *x, Matrix B, size_t at, float *c) {
    const float *p[8];
    for (int i = 0; i < 8; i++) p[i] = B.p + at + (size_t)min_int(i, rows - 1) * B.stride;
    Vec8 s = load8(c, rows);
    int k = 0;
    for (; k + 4 <= K; k += 4) {
        const size_t size = sizeof(float);
        prefetch_rows((const char *const *)p, size * (size_t)k, size * (size_t)K, size * B.stride);
        Vec8 r[4], column[4];
        for (int i = 0; i < 4; i++)
            r[i] = two_rows(_mm_loadu_ps(p[i] + k), _mm_loadu_ps(p[i + 4] + k));
        transpose4(r, column);
        for (int i = 0; i < 4; i++)
            s = _mm256_fmadd_ps(_mm256_broadcast_ss(x + k + i), column[i], s);
    }
    for (; k < K; k++)
        s = _mm256_fmadd_ps(
            _mm256_broadcast_ss(x + k),
            _mm256_setr_ps(p[0][k], p[1][k], p[2][k], p[3][k], p[4][k], p[5][k], p[6][k], p[7][k]),
            s);
    store8(c, s, rows);
}

/* Eight elements as four words, which are pairs of bf16. n are read. */
INLINE __m128 four_pairs(const MatrixKind kind, Matrix B, size_t at, int n) {
    if (kind == OF_BF16 && n >= 8) return _mm_loadu_ps((const float *)(const void *)(B.half + at));
    Vec8 x = elements8(kind, B, at, n);
    if (kind != OF_BF16) x = rounded8(x);
    const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(x), 16);
    return _mm_castsi128_ps(
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}

/* z + x y for a pair x (2 rounded floats) and eight pairs y of bf16. */
static inline Vec8 step_of_pairs(const float *x, Vec8 y, Vec8 z) {
    const __m256i pair = _mm256_castps_si256(y);
#ifdef __AVX512BF16__
    uint64_t both;
    memcpy(&both, x, sizeof both);
    const uint32_t word = (uint32_t)(both >> 32 & 0xffff0000u) | (uint16_t)(both >> 16);
    return _mm256_dpbf16_ps(z, (__m256bh)_mm256_set1_epi32((int)word), (__m256bh)pair);
#else
    const __m256i high = _mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000)),
                  low = _mm256_slli_epi32(pair, 16);
    z = _mm256_fmadd_ps(_mm256_broadcast_ss(x + 1), _mm256_castsi256_ps(high), z);
    return _mm256_fmadd_ps(_mm256_broadcast_ss(x), _mm256_castsi256_ps(low), z);
#endif
}

/* s + x (n) times columns k .. k + n (at most 8) of 8 rows of B, which start at from[]. */
INLINE Vec8 eight_columns(const MatrixKind kind, const float *x, Matrix B, const size_t from[8],
                          size_t k, const int n, Vec8 s) {
    Vec8 r[4], column[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        r[i] =
            two_rows(four_pairs(kind, B, from[i] + k, n), four_pairs(kind, B, from[i + 4] + k, n));
    transpose4(r, column);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        if (2 * i < n) s = step_of_pairs(x + 2 * i, column[i], s);
    return s;
}

/* The same in a product of bf16: four columns of pairs at a time. x has a zero after its end. */
INLINE void row_turned_bf16(const MatrixKind kind, int rows, int K, const float *x, Matrix B,
                            size_t at, float *c) {
    const char *p[8];
    size_t from[8];
    for (int i = 0; i < 8; i++) {
        from[i] = at + (size_t)min_int(i, rows - 1) * B.stride;
        p[i] = bytes_at(B, from[i]);
    }
    const size_t size = bytes_each(B);
    Vec8 s = load8(c, rows);
    int k = 0;
    for (; k + 8 <= K; k += 8) {
        prefetch_rows(p, size * (size_t)k, size * (size_t)K, size * B.stride);
        s = eight_columns(kind, x + k, B, from, (size_t)k, 8, s);
    }
    if (k < K) s = eight_columns(kind, x + k, B, from, (size_t)k, K - k, s);
    store8(c, s, rows);
}

/* Columns j0 .. j0 + columns of the product. */
static void segment_of_row(const Product *p, const float *x, int j0, int columns) {
    float *c = p->C + j0;
    const Matrix B = p->B;
    if (!B.transposed) {
        if (B.kind == OF_BF16)
            row_segment(OF_BF16, true, columns, p->K, x, B, (size_t)j0, c);
        else if (p->bf16)
            row_segment(OF_FLOATS, true, columns, p->K, x, B, (size_t)j0, c);
        else
            row_segment(OF_FLOATS, false, columns, p->K, x, B, (size_t)j0, c);
        return;
    }
    for (int j = 0; j < columns; j += 8) {
        const size_t at = (size_t)(j0 + j) * B.stride;
        const int rows = min_int(8, columns - j);
        if (B.kind == OF_BF16)
            row_turned_bf16(OF_BF16, rows, p->K, x, B, at, c + j);
        else if (p->bf16)
            row_turned_bf16(OF_FLOATS, rows, p->K, x, B, at, c + j);
        else
            row_turned(rows, p->K, x, B, at, c + j);
    }
}

static void product_one(Product p) {
    const int threads = omp_get_max_threads(), wide = SEGMENT * 4 / (int)bytes_each(p.B),
              parts = threads * ((p.N + threads * wide - 1) / (threads * wide));
    const int segment = p.B.transposed ? 128 : round_up((p.N + parts - 1) / parts, 64);
    const float *x = p.A.p;
    if (p.bf16) {
        for (int k = 0; k < p.K; k += W)
            store(packed_a + k, rounded(load(x + k, p.K - k)), p.K - k);
        packed_a[p.K] = 0;
        x = packed_a;
    }
#pragma omp parallel
    {
        const unsigned state = flush_denormals(p.bf16);
#pragma omp for schedule(dynamic, 1)
        for (int j0 = 0; j0 < p.N; j0 += segment) {
            const int columns = min_int(segment, p.N - j0);
            if (!p.accumulate && p.bias)
                memcpy(p.C + j0, p.bias + j0, sizeof(float) * (size_t)columns);
            else if (!p.accumulate)
                memset(p.C + j0, 0, sizeof(float) * (size_t)columns);
            segment_of_row(&p, x, j0, columns);
        }
        _mm_setcsr(state);
    }
}

/* ---- few columns ----------------------------------------------------------------------------- */

/*
 * Few columns, at most those of one tile. With LoRA's rank of 16, packing A would take as long as
 * the product. So each thread packs KC rows of B and reads A in place. A step of lora.c on GPT-2
 * 124M with 4 x 256 tokens and 2 threads takes 3,103 ms; with A packed it took 3,618 ms.
 */
static void product_thin(Product p) {
    const size_t a_row = p.A.transposed ? 1 : p.A.stride, a_k = p.A.transposed ? p.A.stride : 1;
#pragma omp parallel
    for (int kc = 0; kc < p.K; kc += KC) {
        _Alignas(64) float panel[KC * NR], edge[MR * NR] = {0};
        const int depth = min_int(KC, p.K - kc);
        pack_b(false, panel, p.B, 0, p.N, kc, depth);
#pragma omp for schedule(static)
        for (int i = 0; i < p.M; i += MR) {
            const int rows = min_int(MR, p.M - i);
            float *c = p.C + (size_t)i * p.ldc;
            size_t start_row;
            const float *start =
                chain_start(c, p.bias, 0, p.accumulate || kc > 0, p.ldc, &start_row);
            for (int r = 0; r < rows; r++)
                memcpy(edge + r * NR, start + (size_t)r * start_row, sizeof(float) * (size_t)p.N);
            const float *a = p.A.p + (size_t)i * a_row + (size_t)kc * a_k;
            const Operands o = {a, a_row, a_k, panel, NR, edge, NR, edge, NR};
            if (p.N > W)
                tile_of(rows, NR, false, depth, o, NULL);
            else
                tile_of(rows, W, false, depth, o, NULL);
            for (int r = 0; r < rows; r++)
                memcpy(c + (size_t)r * p.ldc, edge + r * NR, sizeof(float) * (size_t)p.N);
        }
    }
}

void product(int M, int N, int K, Matrix A, Matrix B, float *C, size_t ldc, const float *bias,
             bool accumulate) {
    allocate_superblocks();
    if (M < 1 || N < 1) return;
    if (B.kind == OF_NF4) fill_dynamic_map();
    const Product p = {M, N, K, A, B, C, ldc, bias, accumulate, cpu_precision != FLOAT32};
    const bool fits = (size_t)round_up(M, MR) * (size_t)round_up(K, KC) <= (size_t)MB * KC;
    if (M == 1 && !A.transposed && B.kind != OF_NF4 && fits)
        product_one(p);
    else if (M <= FEW && fits)
        product_few(p);
    else if (N <= NR && !p.bf16)
        product_thin(p);
    else
        product_large(p);
}

/* ---- Linear layer ---------------------------------------------------------------------------- */

void linear_forward(real *out, const real *inp, const real *weight, const real *bias, int N, int IC,
                    int OC) {
    product(N, OC, IC, matrix(inp, IC), weight_matrix(weight, OC), out, (size_t)OC, bias, false);
}

void linear_backward_input(real *dinp, const real *dout, const real *weight, int N, int IC,
                           int OC) {
    // out = inp weight:  dinp = dout weight^T
    product(N, IC, OC, matrix(dout, OC), transposed(weight_matrix(weight, OC)), dinp, (size_t)IC,
            NULL, false);
}

/* sum (OC) += rows of x (N,OC), in ascending order. */
static void add_columns(float *sum, const real *x, int N, int OC) {
#pragma omp parallel for
    for (int j = 0; j < OC; j += 64)
        for (int n = 0; n < N; n++)
            for (int jj = j; jj < min_int(j + 64, OC); jj++)
                sum[jj] += x[(size_t)n * (size_t)OC + (size_t)jj];
}

void linear_backward_weight(float *dweight, float *dbias, const real *inp, const real *dout, int N,
                            int IC, int OC) {
    // out = inp weight:  dweight = inp^T dout
    if (dweight)
        product(IC, OC, N, transposed(matrix(inp, IC)), matrix(dout, OC), dweight, (size_t)OC, NULL,
                true);
    if (dbias) add_columns(dbias, dout, N, OC);
}

/* ---- Projection ------------------------------------------------------------------------------ */

void projection_forward(real *out, const real *inp, const real *weight, const real *bias, bool add,
                        int N, int IC, int OC) {
    if (add && bias) {
#pragma omp parallel for
        for (int n = 0; n < N; n++)
            for (int j = 0; j < OC; j++) out[(size_t)n * (size_t)OC + (size_t)j] += bias[j];
    }
    product(N, OC, IC, matrix(inp, IC), transposed(matrix(weight, IC)), out, (size_t)OC, bias, add);
}

void projection_backward_input(real *dinp, const real *dout, const real *weight, bool add, int N,
                               int IC, int OC) {
    // out = inp weight^T:  dinp = dout weight
    product(N, IC, OC, matrix(dout, OC), matrix(weight, IC), dinp, (size_t)IC, NULL, add);
}

void projection_backward_weight(float *dweight, float *dbias, const real *inp, const real *dout,
                                int N, int IC, int OC) {
    // out = inp weight^T:  dweight = dout^T inp
    if (dweight)
        product(OC, IC, N, transposed(matrix(dout, OC)), matrix(inp, IC), dweight, (size_t)IC, NULL,
                true);
    if (dbias) add_columns(dbias, dout, N, OC);
}
