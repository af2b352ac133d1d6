/*
 * product.c - the matrix product on a CPU, with OpenMP threads; and the layers that are one
 * product.
 *
 * Two ideas determine these files. First, every matrix product (linear layers, loss head, attention
 * forward and backward, prefill and decoding) uses one register tile, tile() in tile.h, or
 * a similar loop where there is only one row. In all of them an output element is a chain of fused
 * multiply-adds over k in ascending order. Blocking cuts the chain into pieces but does not change
 * its order, because a tile starts from the previous contents of C. Second, threads divide the
 * output elements among them, never the terms of a sum. So the bits do not depend on threads,
 * blocking or batch.
 *
 * Decoding reads every weight to multiply it with only a few rows. Its speed is limited by memory,
 * so it prefetches the next cache lines.
 *
 * Left out: AVX-512, because this was tuned on a Zen 4, where its fp32 peak equals that of AVX2;
 * and packed copies of the weights between calls, because they would double the memory of a frozen
 * model.
 * Left out: packed copies of the weights between calls, because they would double the memory of a
 * frozen model.
 */
#include "model/cpu.h"

#include <omp.h>

#include "model/nf4.h"
#include "model/simd.h"
#include "model/tile.h"

/* ---- The matrix product ---------------------------------------------------------------------- */

/* Packing, and the loops around the tile (Goto & van de Geijn 2008; names as in BLIS). Blocks were
   chosen by measurement on 2 cores of Zen 4 (32 KB L1, 1 MB L2): a tile's B panel (KC x 16) stays
   in L1, MC rows of A (288 KB) in L2, the packed superblocks (MB x KC and KC x NC, 7 MB) in L3. */
enum { KC = 384, MC = 192, MB = 1536, NC = 3072, JT = 128 };

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

/* A tile of packed A and B. start and C have only `columns` of its 16 columns. */
static void tile_packed(int rows, int columns, int K, const float *a, const float *b,
                        const float *start, size_t start_row, float *c, size_t c_row) {
    if (columns == NR) {
        tile(rows, K, a, 1, MR, b, NR, start, start_row, c, c_row, NULL);
        return;
    }
    float edge[MR * NR] = {0};
    for (int i = 0; i < rows; i++)
        memcpy(edge + i * NR, start + i * start_row, sizeof(float) * (size_t)columns);
    tile(rows, K, a, 1, MR, b, NR, edge, NR, edge, NR, NULL);
    for (int i = 0; i < rows; i++)
        memcpy(c + i * c_row, edge + i * NR, sizeof(float) * (size_t)columns);
}

/* pack_b decodes the weight, eight numbers at a time: the lower three bits of a code are looked up
   in both halves of the table of 16, and the upper bit selects one of the two. Each number is
   decoded once for all rows of a superblock. So decoding costs little in training, but halves the
   speed of a product with a single row. */
static inline __m256 nf4_load(const NF4 *q, size_t at, int n) {
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

/* load() of B from element `at` on. nf4 is constant where this is inlined. */
static inline __attribute__((always_inline)) __m256 load_from(const bool nf4, Matrix B, size_t at,
                                                              int n) {
    return nf4 ? nf4_load(B.nf4, at, n) : load(B.p + at, n);
}

/* Packs rows i .. i+6 (rows from M on are 0) and columns k .. k+K of A, column after column:
   out[k * 6 + i]. Also writes 2 floats after the panel, which the next panel overwrites. */
static void pack_a(float *out, Matrix A, int i, int M, int k, int K) {
    int rows = min_int(MR, M - i);
    if (A.transposed) {
        for (int kk = 0; kk < K; kk++, out += MR)
            _mm256_storeu_ps(out, load(A.p + (size_t)(k + kk) * A.stride + (size_t)i, M - i));
        return;
    }
    const float *p = A.p + (size_t)i * A.stride + (size_t)k;
    for (int kk = 0; kk < K; kk += 8) {
        __m256 r[8];
        int columns = min_int(8, K - kk);
        for (int row = 0; row < 8; row++)
            r[row] = row < rows ? load(p + (size_t)row * A.stride + (size_t)kk, columns)
                                : _mm256_setzero_ps();
        transpose8(r);
        for (int column = 0; column < columns; column++, out += MR)
            _mm256_storeu_ps(out, r[column]);
    }
}

/* Packs columns j .. j+columns (at most 16; the others are 0) and rows k .. k+K of B, row after
   row: out[k * 16 + j]. */
static inline __attribute__((always_inline)) void pack_b_from(const bool nf4, float *out, Matrix B,
                                                              int j, int columns, int k, int K) {
    if (!B.transposed) {
        size_t at = (size_t)k * B.stride + (size_t)j;
        for (int kk = 0; kk < K; kk++, at += B.stride, out += NR) {
            _mm256_store_ps(out, load_from(nf4, B, at, columns));
            _mm256_store_ps(out + 8, columns > 8 ? load_from(nf4, B, at + 8, columns - 8)
                                                 : _mm256_setzero_ps());
        }
        return;
    }
    for (int half = 0; half < NR; half += 8) {
        const size_t at = (size_t)(j + half) * B.stride + (size_t)k;
        for (int kk = 0; kk < K; kk += 8) {
            __m256 r[8];
            int depth = min_int(8, K - kk);
            for (int row = 0; row < 8; row++)
                r[row] = half + row < columns
                             ? load_from(nf4, B, at + (size_t)row * B.stride + (size_t)kk, depth)
                             : _mm256_setzero_ps();
            transpose8(r);
            for (int d = 0; d < depth; d++) _mm256_store_ps(out + (kk + d) * NR + half, r[d]);
        }
    }
}

static void pack_b(float *out, Matrix B, int j, int columns, int k, int K) {
    if (B.nf4)
        pack_b_from(true, out, B, j, columns, k, K);
    else
        pack_b_from(false, out, B, j, columns, k, K);
}

/* Returns where the chains of C's tile at (i,j) start, and the row stride there: C itself if they
   continue from it, else the bias of the columns, else zeros. */
static inline const float *chain_start(const float *c, const float *bias, int j, bool continues,
                                       size_t ldc, size_t *row) {
    *row = continues ? ldc : 0;
    return continues ? c : bias ? bias + j : zeros;
}

/*
 * Many rows. All threads together pack superblocks of A and B, then take tiles of MC x JT one by
 * one. Few barriers and dynamic scheduling limit the slowdown when another process uses one of the
 * cores.
 */
static void product_large(int M, int N, int K, Matrix A, Matrix B, float *C, size_t ldc,
                          const float *bias, bool accumulate) {
#pragma omp parallel
    for (int jc = 0; jc < N; jc += NC)
        for (int ic = 0; ic < M; ic += MB)
            for (int kc = 0; kc < K; kc += KC) {
                int columns = min_int(NC, N - jc), rows = min_int(MB, M - ic),
                    depth = min_int(KC, K - kc);
                int b_panels = (columns + NR - 1) / NR, a_panels = (rows + MR - 1) / MR;
#pragma omp for schedule(dynamic, 8) nowait
                for (int panel = 0; panel < b_panels; panel++)
                    pack_b(packed_b + (size_t)panel * NR * depth, B, jc + panel * NR,
                           min_int(NR, columns - panel * NR), kc, depth);
#pragma omp for schedule(dynamic, 16)
                for (int panel = 0; panel < a_panels; panel++) {
                    // pack_a writes 2 floats too many. Pack the end of the panel elsewhere, so
                    // that they do not overwrite the next panel, which another thread packs.
                    float last[MR * 8 + 2], *out = packed_a + (size_t)panel * MR * depth;
                    int head = (depth - 1) / 8 * 8;
                    pack_a(last, A, ic + panel * MR, M, kc + head, depth - head);
                    if (head) pack_a(out, A, ic + panel * MR, M, kc, head);
                    memcpy(out + head * MR, last, sizeof(float) * (size_t)((depth - head) * MR));
                }
                int tiles_i = (rows + MC - 1) / MC, tiles_j = (columns + JT - 1) / JT;
#pragma omp for schedule(dynamic, 1)
                for (int t = 0; t < tiles_i * tiles_j; t++) {
                    int i0 = t / tiles_j * MC, i1 = min_int(i0 + MC, rows), j0 = t % tiles_j * JT,
                        j1 = min_int(j0 + JT, columns);
                    for (int j = j0; j < j1; j += NR)
                        for (int i = i0; i < i1; i += MR) {
                            float *c = C + (size_t)(ic + i) * ldc + (size_t)(jc + j);
                            size_t start_row;
                            const float *start =
                                chain_start(c, bias, jc + j, accumulate || kc > 0, ldc, &start_row);
                            for (int row = 0; row < MR; row++)
                                _mm_prefetch((const char *)(c + (size_t)(MR + row) * ldc),
                                             _MM_HINT_T0);
                            tile_packed(min_int(MR, i1 - i), min_int(NR, j1 - j), depth,
                                        packed_a + (size_t)i * depth, packed_b + (size_t)j * depth,
                                        start, start_row, c, ldc);
                        }
                }
            }
}

/*
 * Few rows, as in decoding. Most of the time is spent on reading B once. All of A is packed, with
 * its rows divided evenly among the panels. Each thread processes strips of 64 columns of B: it
 * packs KC rows of a strip, which fit in its L2, and multiplies them. Meanwhile the tiles prefetch
 * the part that it packs next, one cache line every few steps. Prefetching all of it between two
 * tiles would not help, because a core can only wait for about two dozen lines at a time. The
 * results of a strip stay in `sum` until its chains end. All matrices of GPT-2 124M with 32 rows
 * take 46-48 ms; without prefetching and with results in C they took 62-70 ms. With 4 rows: 19 and
 * 28.6 ms.
 */
enum { FEW = 48, STRIP = 64 };

static void product_few(int M, int N, int K, Matrix A, Matrix B, float *C, size_t ldc,
                        const float *bias, bool accumulate) {
    const int panels = (M + MR - 1) / MR;
    int first[FEW / MR + 1];
    for (int p = 0; p <= panels; p++) first[p] = M * p / panels;
    for (int kc = 0; kc < K; kc += KC)
        for (int p = 0, depth = min_int(KC, K - kc); p < panels; p++)
            pack_a(packed_a + (size_t)(kc * panels + p * depth) * MR, A, first[p], first[p + 1], kc,
                   depth);
#pragma omp parallel for schedule(static)
    for (int j0 = 0; j0 < N; j0 += STRIP) {
        _Alignas(64) float strip[STRIP * KC], sum[FEW * STRIP];
        const int columns = min_int(STRIP, N - j0), tiles = panels * ((columns + NR - 1) / NR);
        for (int i = 0; i < M; i++) {
            const float *start = accumulate ? C + (size_t)i * ldc + (size_t)j0
                                 : bias     ? bias + j0
                                            : NULL;
            for (int j = 0; j < STRIP; j += 8)
                _mm256_store_ps(sum + i * STRIP + j,
                                start ? load(start + j, columns - j) : _mm256_setzero_ps());
        }
        for (int kc = 0; kc < K; kc += KC) {
            const int depth = min_int(KC, K - kc);
            // prefetch the rows below, or the top of the strip to the right
            const int k = kc + KC < K ? kc + KC : 0, j = k ? j0 : j0 + STRIP,
                      wide = min_int(STRIP, N - j), deep = min_int(KC, K - k);
            const int rows = B.transposed ? wide : deep,
                      lines = ((B.transposed ? deep : wide) + 15) / 16;
            // by default prefetch nothing new: after the last strip, and for NF4, where decoding
            // takes longer than reading
            Ahead ahead = {strip, 0, 0, 1, depth};
            if (wide > 0 && !B.nf4)
                ahead = (Ahead){B.p + (size_t)(B.transposed ? j : k) * B.stride +
                                    (size_t)(B.transposed ? k : j),
                                B.stride, 0, lines, max_int(1, depth * tiles / (rows * lines))};
            for (int jj = 0; jj < columns; jj += NR)
                pack_b(strip + jj * depth, B, j0 + jj, min_int(NR, columns - jj), kc, depth);
            for (int jj = 0; jj < columns; jj += NR)
                for (int p = 0; p < panels; p++) {
                    float *c = sum + first[p] * STRIP + jj;
                    tile(first[p + 1] - first[p], depth,
                         packed_a + (size_t)(kc * panels + p * depth) * MR, 1, MR,
                         strip + jj * depth, NR, c, STRIP, c, STRIP, &ahead);
                }
        }
        for (int i = 0; i < M; i++)
            memcpy(C + (size_t)i * ldc + (size_t)j0, sum + i * STRIP,
                   sizeof(float) * (size_t)columns);
    }
}

/*
 * One row: a vector times B, which is read once, in place, at the speed of memory. All matrices of
 * GPT-2 124M take 12 ms, where a plain stream reads 63 GB/s; with strips of 64 columns they took
 * 28 ms.
 *
 * For a row-major B, each thread takes a segment of columns, as wide as possible, and 8 rows of it
 * at a time, while it prefetches the next 8 rows. At the end of a segment the hardware prefetcher
 * reads too far, so short segments are slow: with 384 columns a thread reaches two thirds of its
 * speed with 1,536.
 */
enum { DOWN = 8, SEGMENT = 1536 };

static void row_segment(int columns, int K, const float *x, const float *b, size_t stride,
                        float *c) {
    int k = 0;
    for (; k + DOWN <= K; k += DOWN, b += DOWN * stride) {
        __m256 xk[DOWN];
        for (int i = 0; i < DOWN; i++) xk[i] = _mm256_broadcast_ss(x + k + i);
        int j = 0;
        for (; j + 16 <= columns; j += 16) {
            __m256 s = _mm256_loadu_ps(c + j), t = _mm256_loadu_ps(c + j + 8);
#pragma GCC unroll 8
            for (int i = 0; i < DOWN; i++) {
                const float *p = b + (size_t)i * stride + (size_t)j;
                _mm_prefetch((const char *)(p + DOWN * stride), _MM_HINT_T1);
                s = _mm256_fmadd_ps(xk[i], _mm256_loadu_ps(p), s);
                t = _mm256_fmadd_ps(xk[i], _mm256_loadu_ps(p + 8), t);
            }
            _mm256_storeu_ps(c + j, s);
            _mm256_storeu_ps(c + j + 8, t);
        }
        for (; j < columns; j += 8) {
            __m256 s = load(c + j, columns - j);
            for (int i = 0; i < DOWN; i++)
                s = _mm256_fmadd_ps(xk[i], load(b + (size_t)i * stride + (size_t)j, columns - j),
                                    s);
            store(c + j, s, columns - j);
        }
    }
    for (; k < K; k++, b += stride)
        for (int j = 0; j < columns; j += 8)
            store(c + j,
                  _mm256_fmadd_ps(_mm256_broadcast_ss(x + k), load(b + j, columns - j),
                                  load(c + j, columns - j)),
                  columns - j);
}

/*
 * For a transposed B: 8 of its rows together, 4 columns at a time, which are transposed in
 * registers. If fewer than 8 rows remain, the last one is repeated. Meanwhile it prefetches the
 * same rows 1 KB ahead, or the start of the next 8.
 */
enum { ACROSS = 256 };

static void row_turned(int rows, int K, const float *x, const float *b, size_t stride, float *c) {
    const float *p[8];
    for (int i = 0; i < 8; i++) p[i] = b + (size_t)min_int(i, rows - 1) * stride;
    __m256 s = load(c, rows);
    int k = 0;
    for (; k + 4 <= K; k += 4) {
        if (k % 16 == 0) {
            size_t ahead = k + ACROSS < K ? (size_t)(k + ACROSS)
                                          : (size_t)(k + ACROSS) % (size_t)K + 8 * stride;
            for (int i = 0; i < 8; i++) _mm_prefetch((const char *)(p[i] + ahead), _MM_HINT_T1);
        }
        __m256 r[4];  // row i, row i + 4
        for (int i = 0; i < 4; i++)
            r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p[i] + k)),
                                        _mm_loadu_ps(p[i + 4] + k), 1);
        __m256 t0 = _mm256_unpacklo_ps(r[0], r[1]), t1 = _mm256_unpackhi_ps(r[0], r[1]);
        __m256 t2 = _mm256_unpacklo_ps(r[2], r[3]), t3 = _mm256_unpackhi_ps(r[2], r[3]);
        s = _mm256_fmadd_ps(_mm256_broadcast_ss(x + k), _mm256_shuffle_ps(t0, t2, 0x44), s);
        s = _mm256_fmadd_ps(_mm256_broadcast_ss(x + k + 1), _mm256_shuffle_ps(t0, t2, 0xEE), s);
        s = _mm256_fmadd_ps(_mm256_broadcast_ss(x + k + 2), _mm256_shuffle_ps(t1, t3, 0x44), s);
        s = _mm256_fmadd_ps(_mm256_broadcast_ss(x + k + 3), _mm256_shuffle_ps(t1, t3, 0xEE), s);
    }
    for (; k < K; k++)
        s = _mm256_fmadd_ps(
            _mm256_broadcast_ss(x + k),
            _mm256_setr_ps(p[0][k], p[1][k], p[2][k], p[3][k], p[4][k], p[5][k], p[6][k], p[7][k]),
            s);
    store(c, s, rows);
}

static void product_one(int N, int K, const float *x, Matrix B, float *C, const float *bias,
                        bool accumulate) {
    const int threads = omp_get_max_threads(),
              parts = threads * ((N + threads * SEGMENT - 1) / (threads * SEGMENT));
    const int segment = B.transposed ? 128 : round_up((N + parts - 1) / parts, 64);
#pragma omp parallel for schedule(dynamic, 1)
    for (int j0 = 0; j0 < N; j0 += segment) {
        const int columns = min_int(segment, N - j0);
        if (!accumulate && bias)
            memcpy(C + j0, bias + j0, sizeof(float) * (size_t)columns);
        else if (!accumulate)
            memset(C + j0, 0, sizeof(float) * (size_t)columns);
        if (!B.transposed)
            row_segment(columns, K, x, B.p + j0, B.stride, C + j0);
        else
            for (int j = j0; j < j0 + columns; j += 8)
                row_turned(min_int(8, N - j), K, x, B.p + (size_t)j * B.stride, B.stride, C + j);
    }
}

/*
 * Few columns, at most those of one tile. With LoRA's rank of 16, packing A would take as long as
 * the product. So each thread packs KC rows of B and reads A in place. A step of lora.c on GPT-2
 * 124M with 4 x 256 tokens and 2 threads takes 3,103 ms; with A packed it took 3,618 ms.
 */
static void product_thin(int M, int N, int K, Matrix A, Matrix B, float *C, size_t ldc,
                         const float *bias, bool accumulate) {
    const size_t a_row = A.transposed ? 1 : A.stride, a_k = A.transposed ? A.stride : 1;
#pragma omp parallel
    for (int kc = 0; kc < K; kc += KC) {
        _Alignas(64) float panel[KC * NR], edge[MR * NR];
        const int depth = min_int(KC, K - kc);
        pack_b(panel, B, 0, N, kc, depth);
#pragma omp for schedule(static)
        for (int i = 0; i < M; i += MR) {
            const int rows = min_int(MR, M - i);
            float *c = C + (size_t)i * ldc;
            size_t start_row;
            const float *start = chain_start(c, bias, 0, accumulate || kc > 0, ldc, &start_row);
            const float *a = A.p + (size_t)i * a_row + (size_t)kc * a_k;
            if (N == NR) {
                tile(rows, depth, a, a_row, a_k, panel, NR, start, start_row, c, ldc, NULL);
                continue;
            }
            memset(edge, 0, sizeof edge);
            for (int r = 0; r < rows; r++)
                memcpy(edge + r * NR, start + (size_t)r * start_row, sizeof(float) * (size_t)N);
            tile(rows, depth, a, a_row, a_k, panel, NR, edge, NR, edge, NR, NULL);
            for (int r = 0; r < rows; r++)
                memcpy(c + (size_t)r * ldc, edge + r * NR, sizeof(float) * (size_t)N);
        }
    }
}
void product(int M, int N, int K, Matrix A, Matrix B, float *C, size_t ldc, const float *bias,
             bool accumulate) {
    allocate_superblocks();
    if (B.nf4) fill_dynamic_map();
    device_init();
    if (M < 1 || N < 1) return;
    if (M == 1 && !A.transposed && !B.nf4)
        product_one(N, K, A.p, B, C, bias, accumulate);
    else if (M <= FEW && (size_t)round_up(M, MR) * (size_t)K <= (size_t)MB * KC)
        product_few(M, N, K, A, B, C, ldc, bias, accumulate);
    else if (N <= NR)
        product_thin(M, N, K, A, B, C, ldc, bias, accumulate);
    else
        product_large(M, N, K, A, B, C, ldc, bias, accumulate);
}

/* ---- Linear layer ---------------------------------------------------------------------------- */

void linear_forward(real *out, const real *inp, const real *weight, const real *bias, int N, int IC,
                    int OC) {
    product(N, OC, IC, (Matrix){inp, (size_t)IC, false, NULL},
            (Matrix){weight, (size_t)OC, false, NULL}, out, (size_t)OC, bias, false);
}

void linear_backward_input(real *dinp, const real *dout, const real *weight, int N, int IC,
                           int OC) {
    // out = inp weight:  dinp = dout weight^T
    product(N, IC, OC, (Matrix){dout, (size_t)OC, false, NULL},
            (Matrix){weight, (size_t)OC, true, NULL}, dinp, (size_t)IC, NULL, false);
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
        product(IC, OC, N, (Matrix){inp, (size_t)IC, true, NULL},
                (Matrix){dout, (size_t)OC, false, NULL}, dweight, (size_t)OC, NULL, true);
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
    product(N, OC, IC, (Matrix){inp, (size_t)IC, false, NULL},
            (Matrix){weight, (size_t)IC, true, NULL}, out, (size_t)OC, bias, add);
}

void projection_backward_input(real *dinp, const real *dout, const real *weight, bool add, int N,
                               int IC, int OC) {
    // out = inp weight^T:  dinp = dout weight
    product(N, IC, OC, (Matrix){dout, (size_t)OC, false, NULL},
            (Matrix){weight, (size_t)IC, false, NULL}, dinp, (size_t)IC, NULL, add);
}

void projection_backward_weight(float *dweight, float *dbias, const real *inp, const real *dout,
                                int N, int IC, int OC) {
    // out = inp weight^T:  dweight = dout^T inp
    if (dweight)
        product(OC, IC, N, (Matrix){dout, (size_t)OC, true, NULL},
                (Matrix){inp, (size_t)IC, false, NULL}, dweight, (size_t)IC, NULL, true);
    if (dbias) add_columns(dbias, dout, N, OC);
}

void add_activations(real *out, const real *x, const real *y, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 8) {
        int left = n - i < 8 ? (int)(n - i) : 8;
        store(out + i, _mm256_add_ps(load(x + i, left), load(y + i, left)), left);
    }
}

void scale(real *x, float factor, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}
