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

#include "model/pack.h"

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
            (int)((size_t)(MB + NC) * KC * sizeof(float) >> 20));
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
        memcpy(edge + (size_t)i * NR, start + (size_t)i * start_row,
               sizeof(float) * (size_t)columns);
    o = (Operands){a, 1, MR, b, NR, edge, NR, edge, NR};
    tile_of(rows, NR, bf16, words, o, NULL);
    for (int i = 0; i < rows; i++)
        memcpy(c + (size_t)i * c_row, edge + (size_t)i * NR, sizeof(float) * (size_t)columns);
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
            if (columns == NR) {
                Vec both[2];
                words_across_both(kind, bf16, B, at, K, w, both);
                store(out, both[0], W);
                store(out + W, both[1], W);
                continue;
            }
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
            for (int d = 0; d < depth; d++)
                _mm256_store_ps(out + (size_t)(w + d) * NR + part, r[d]);
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
    memcpy(out + (size_t)head * MR, last, sizeof(float) * (size_t)(words - head) * MR);
}

/*
 * Many rows. All threads together pack superblocks of A and B, then take tiles of MC x JT one by
 * one. Few barriers and dynamic scheduling limit the slowdown when another process uses one of the
 * cores. All loops that are scheduled dynamically say `monotonic`. Without this word the threads of
 * LLVM's OpenMP library steal iterations from each other, and have a race there (LLVM issue 54422),
 * which has ended a run with an assertion of that library.
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
#pragma omp for schedule(monotonic : dynamic, 8) nowait
                    for (int panel = 0; panel < b_panels; panel++)
                        pack_b(p.bf16, packed_b + (size_t)panel * NR * (size_t)words, p.B,
                               jc + panel * NR, min_int(NR, columns - panel * NR), kc, depth);
#pragma omp for schedule(monotonic : dynamic, 16)
                    for (int panel = 0; panel < a_panels; panel++)
                        pack_panel(&p, panel, ic, kc, depth, words);
                    const int tiles_i = (rows + MC - 1) / MC, tiles_j = (columns + JT - 1) / JT;
#pragma omp for schedule(monotonic : dynamic, 1)
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
 * packs a chunk of 64 words of a strip, which fits in its L1, and multiplies it. Meanwhile the
 * tiles prefetch the next chunk, one cache line every few steps. Prefetching all of it between two
 * tiles would not help, because a core can only wait for about two dozen lines at a time. The
 * results of a strip stay in `sum` until its chains end. All matrices of GPT-2 124M with 4 rows,
 * one thread, take 23.9 ms, and 14.6 ms in bf16; with chunks of 512 words, which fit in L2, they
 * took 39.7 and 24.1 ms. With 32 rows 84 ms, and before 90 ms.
 */
enum { FEW = 48, STRIP = 64, CHUNK = 64, FEW_PANELS = (FEW + MR - 1) / MR };

/* What to prefetch while the chunk at (k,j0) is multiplied in so many tiles: the rows below, or the
   top of the strip to the right. Nothing new after the last strip, and for NF4, where decoding
   takes longer than reading. */
static Ahead chunk_ahead(const Product *p, int k, int j0, int tiles, const float *chunk) {
    const int deep = CHUNK * per_word(p->bf16);
    const int steps = tiles * words_of(p->bf16, min_int(deep, p->K - k));
    const int k1 = k + deep < p->K ? k + deep : 0, j = k1 ? j0 : j0 + STRIP,
              wide = min_int(STRIP, p->N - j), down = min_int(deep, p->K - k1);
    if (wide <= 0 || p->B.kind == OF_NF4) return (Ahead){(const char *)chunk, 0, 0, 1, steps, 1};
    const bool turned = p->B.transposed;
    const size_t size = bytes_each(p->B),
                 at = (size_t)(turned ? j : k1) * p->B.stride + (size_t)(turned ? k1 : j);
    const int rows = turned ? wide : down, lines = ((turned ? down : wide) * (int)size + 63) / 64;
    return (Ahead){bytes_at(p->B, at),
                   p->B.stride * size,
                   0,
                   lines,
                   max_int(1, steps / (rows * lines)),
                   (rows * lines + steps - 1) / steps};
}

/* sum (rows,NR), a part of a strip's, += a panel of A times a packed panel of B. */
static void multiply_panel(bool bf16, int rows, int words, const float *a, const float *b,
                           float *sum, Ahead *ahead) {
    const Operands o = {a, 1, MR, b, NR, sum, STRIP, sum, STRIP};
    if (bf16 && PAIRS == 2)
        tile_of(rows, NR, true, words, o, ahead);
    else
        tile_of(rows, NR, false, words, o, ahead);
}

/* One strip of the product. packed_a holds the panels of A, those of one depth after the other. */
static void product_strip(const Product *p, const int *first_row, int panels, int j0) {
    _Alignas(64) float chunk[NR * CHUNK], sum[FEW * STRIP];
    const int columns = min_int(STRIP, p->N - j0), tiles = panels * ((columns + NR - 1) / NR);
    const int each = per_word(p->bf16), deep = CHUNK * each;
    for (int i = 0; i < p->M; i++) {
        const float *start = p->accumulate ? p->C + (size_t)i * p->ldc + (size_t)j0
                             : p->bias     ? p->bias + j0
                                           : NULL;
        for (int j = 0; j < STRIP; j += W)
            store(sum + (size_t)i * STRIP + j,
                  start && j < columns ? load(start + j, columns - j) : none(), W);
    }
    for (int k = 0; k < p->K; k += deep) {
        const int kc = k / (KC * each) * (KC * each),  // the depth that packed_a has this chunk in
            panel_words = words_of(p->bf16, min_int(KC * each, p->K - kc)),
                  depth = min_int(deep, p->K - k);
        const float *a =
            packed_a + ((size_t)(kc / each) * (size_t)panels + (size_t)((k - kc) / each)) * MR;
        Ahead ahead = chunk_ahead(p, k, j0, tiles, chunk);
        for (int j = 0; j < columns; j += NR) {
            pack_b(p->bf16, chunk, p->B, j0 + j, min_int(NR, columns - j), k, depth);
            for (int i = 0; i < panels; i++)
                multiply_panel(p->bf16, first_row[i + 1] - first_row[i], words_of(p->bf16, depth),
                               a + (size_t)i * (size_t)panel_words * MR, chunk,
                               sum + (size_t)first_row[i] * STRIP + j, &ahead);
        }
    }
    for (int i = 0; i < p->M; i++)
        memcpy(p->C + (size_t)i * p->ldc + (size_t)j0, sum + (size_t)i * STRIP,
               sizeof(float) * (size_t)columns);
}

static void product_few(Product p) {
    const int panels = (p.M + MR - 1) / MR, deep = KC * per_word(p.bf16);
    int first_row[FEW_PANELS + 1];
    for (int i = 0; i <= panels; i++) first_row[i] = p.M * i / panels;
    for (int kc = 0; kc < p.K; kc += deep) {
        const int depth = min_int(deep, p.K - kc), words = words_of(p.bf16, depth);
        for (int i = 0; i < panels; i++)
            pack_a(p.bf16,
                   packed_a +
                       ((size_t)(kc / deep * KC) * (size_t)panels + (size_t)i * (size_t)words) * MR,
                   p.A, first_row[i], first_row[i + 1], kc, depth);
    }
#pragma omp parallel
    {
        const unsigned state = flush_denormals(p.bf16);
#pragma omp for schedule(static)
        for (int j0 = 0; j0 < p.N; j0 += STRIP) product_strip(&p, first_row, panels, j0);
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
                memcpy(edge + (size_t)r * NR, start + (size_t)r * start_row,
                       sizeof(float) * (size_t)p.N);
            const float *a = p.A.p + (size_t)i * a_row + (size_t)kc * a_k;
            const Operands o = {a, a_row, a_k, panel, NR, edge, NR, edge, NR};
            if (p.N > W)
                tile_of(rows, NR, false, depth, o, NULL);
            else
                tile_of(rows, W, false, depth, o, NULL);
            for (int r = 0; r < rows; r++)
                memcpy(c + (size_t)r * p.ldc, edge + (size_t)r * NR, sizeof(float) * (size_t)p.N);
        }
    }
}

/* The same function of the way avx512, which computes a product of bf16 with two fused
   multiply-adds instead of a VDPBF16PS, and so gives the same bits. */
__typeof__(product) other_product __asm__("product_avx512");

void product(int M, int N, int K, Matrix A, Matrix B, float *C, size_t ldc, const float *bias,
             bool accumulate) {
    allocate_superblocks();
    if (M < 1 || N < 1) return;
    if (B.kind == OF_NF4) fill_dynamic_map();
    const Product p = {M, N, K, A, B, C, ldc, bias, accumulate, cpu_precision != FLOAT32};
    const bool fits = (size_t)round_up(M, MR) * (size_t)round_up(K, KC) <= (size_t)MB * KC;
    if (M == 1 && !A.transposed && B.kind != OF_NF4 && fits)
        product_one(p, packed_a);
    else if (M <= FEW && fits)
        product_few(p);
    else if (N <= NR && !p.bf16)
        product_thin(p);
    else if (p.bf16 && PAIRS == 2 && cpu_slow_pairs)
        other_product(M, N, K, A, B, C, ldc, bias, accumulate);
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
