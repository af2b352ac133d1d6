/*
 * kernels.c - kernels.h on a CPU with AVX2 and FMA, with OpenMP threads.
 *
 * Two ideas determine this file. First, every matrix product (linear layers, loss head, attention
 * forward and backward, prefill and decoding) uses one register tile of 6 x 16 outputs, tile(), or
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
 */
#include "model/kernels.h"

#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/nf4.h"
#include "util.h"

static inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

/* ---- The device ------------------------------------------------------------------------------ */

/* Blocks of a product, chosen by measurement on 2 cores of Zen 4 (32 KB L1, 1 MB L2): a tile's B
   panel (KC x 16) stays in L1, MC rows of A (288 KB) in L2, the packed superblocks (MB x KC and KC
   x NC, 7 MB) in L3. */
enum { MR = 6, NR = 16, KC = 384, MC = 192, MB = 1536, NC = 3072, JT = 128 };

static float *packed_a, *packed_b;  // the superblocks, shared by all threads

void device_init(void) {
    if (packed_a) return;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        die_usage(
            "this CPU lacks AVX2 or FMA, which posttrain.c needs (Intel since Haswell, 2013; AMD "
            "since Excavator, 2015); "
            "run it on another machine");
    packed_a = device_alloc(sizeof(float) * MB * KC + 64);
    packed_b = device_alloc(sizeof(float) * KC * NC + 64);
    if (!packed_a || !packed_b)
        die("out of memory for the kernels' %d MB of workspace; close other programs",
            (int)((MB + NC) * KC * sizeof(float) >> 20));
}

const char *device_name(void) {
    static char name[64];
    snprintf(name, sizeof name, "CPU, %d thread%s, AVX2", omp_get_max_threads(),
             omp_get_max_threads() == 1 ? "" : "s");
    return name;
}

/* Reads a number of kB from the first line of a system file that matches this scanf format. Returns
   it in bytes, or 0 if no line matches. */
static size_t bytes_of(const char *path, const char *form) {
    FILE *f = fopen(path, "r");
    unsigned long long kb = 0;
    char line[256];
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, form, &kb) == 1) break;
    if (f) fclose(f);
    return (size_t)kb * 1024;
}

size_t device_memory_free(void) {
    const size_t bytes = bytes_of("/proc/meminfo", "MemAvailable: %llu kB");
    return bytes ? bytes : SIZE_MAX;
}

/* getrusage is not suitable: a process inherits its peak from the process that started it. */
size_t device_memory_peak(void) { return bytes_of("/proc/self/status", "VmHWM: %llu kB"); }

/* Large arrays are aligned to 2 MB and use huge pages if the system allows it. Reading a column of
   a weight matrix touches a new 4 KB page in every row. */
enum { HUGE_PAGE = 1 << 21 };

void *device_alloc(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * (size_t)HUGE_PAGE) return NULL;
    size_t ask = bytes + (bytes >= HUGE_PAGE ? HUGE_PAGE : 0) + !bytes;
    char *p =
        mmap(NULL, ask, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (bytes < HUGE_PAGE) return p;
    char *aligned = (char *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    if (aligned > p) munmap(p, (size_t)(aligned - p));
    size_t after = (size_t)(p + ask - (aligned + bytes)), page = 4096,
           rest = (page - bytes % page) % page;
    if (after > rest) munmap(aligned + bytes + rest, after - rest);
    madvise(aligned, bytes, MADV_HUGEPAGE);
    return aligned;
}

void device_free(void *p, size_t bytes) {
    if (p) munmap(p, bytes + !bytes);
}

void device_zero(void *p, size_t bytes) { memset(p, 0, bytes); }
void device_copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
void device_write(void *device, const void *host, size_t bytes) { memcpy(device, host, bytes); }
void device_read(void *host, const void *device, size_t bytes) { memcpy(host, device, bytes); }
real *device_map(const void *host, size_t n) {
    return n && (uintptr_t)host % _Alignof(real) == 0 ? (real *)(uintptr_t)host : NULL;
}

void device_unmap(const real *device, size_t n) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE),
                    begin = ((uintptr_t)device + page - 1) / page * page,
                    end = (uintptr_t)(device + n) / page * page;
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

void real_write(real *device, const float *host, size_t n) {
    memcpy(device, host, n * sizeof *host);
}
void real_read(float *host, const real *device, size_t n) {
    memcpy(host, device, n * sizeof *host);
}

/* ---- Eight floats at a time ------------------------------------------------------------------ */

/* The mask of the first n of 8 lanes. */
static inline __m256i lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Loads 8 floats from p. Only the first n are read; the others are 0. */
static inline __m256 load(const float *p, int n) {
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes(n));
}

static inline void store(float *p, __m256 x, int n) {
    if (n >= 8)
        _mm256_storeu_ps(p, x);
    else
        _mm256_maskstore_ps(p, lanes(n), x);
}

/* The sum of the lanes in a fixed order: ((0+4)+(2+6)) + ((1+5)+(3+7)). */
static inline float sum8(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline float max8(__m256 x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* e^x = 2^n e^r with x = n log 2 + r and |r| <= log(2)/2: a polynomial in r, and 2^n by shifting
   the exponent. The error is at most 2 units in the last place. e^0 = 1 exactly; e^x = 0 below
   -87.3 and infinity above 88.7; NaN stays NaN. */
static inline __m256 exp8(__m256 x) {
    const __m256 low = _mm256_set1_ps(-87.33654f), high = _mm256_set1_ps(88.72283f);
    __m256 z = _mm256_min_ps(high, _mm256_max_ps(low, x));  // this order of operands preserves NaN
    __m256 n = _mm256_round_ps(_mm256_mul_ps(z, _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f),
                                z);  // log 2 in two parts: n times the first is exact
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);  // Taylor series to r^7: error below 2^-26
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    __m256i half = _mm256_srai_epi32(_mm256_cvtps_epi32(n),
                                     1);  // 2^n in two factors, because 2^128 is not a float
    __m256i rest = _mm256_sub_epi32(_mm256_cvtps_epi32(n), half);
    __m256i one = _mm256_set1_epi32(127);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, one), 23)));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, one), 23)));
    p = _mm256_andnot_ps(_mm256_cmp_ps(x, low, _CMP_LT_OQ), p);
    return _mm256_blendv_ps(p, _mm256_set1_ps(INFINITY), _mm256_cmp_ps(x, high, _CMP_GT_OQ));
}

/* Transposes 8 x 8 floats. */
static inline void transpose8(__m256 r[8]) {
    __m256 t0 = _mm256_unpacklo_ps(r[0], r[1]), t1 = _mm256_unpackhi_ps(r[0], r[1]);
    __m256 t2 = _mm256_unpacklo_ps(r[2], r[3]), t3 = _mm256_unpackhi_ps(r[2], r[3]);
    __m256 t4 = _mm256_unpacklo_ps(r[4], r[5]), t5 = _mm256_unpackhi_ps(r[4], r[5]);
    __m256 t6 = _mm256_unpacklo_ps(r[6], r[7]), t7 = _mm256_unpackhi_ps(r[6], r[7]);
    __m256 s0 = _mm256_shuffle_ps(t0, t2, 0x44), s1 = _mm256_shuffle_ps(t0, t2, 0xEE);
    __m256 s2 = _mm256_shuffle_ps(t1, t3, 0x44), s3 = _mm256_shuffle_ps(t1, t3, 0xEE);
    __m256 s4 = _mm256_shuffle_ps(t4, t6, 0x44), s5 = _mm256_shuffle_ps(t4, t6, 0xEE);
    __m256 s6 = _mm256_shuffle_ps(t5, t7, 0x44), s7 = _mm256_shuffle_ps(t5, t7, 0xEE);
    r[0] = _mm256_permute2f128_ps(s0, s4, 0x20);
    r[4] = _mm256_permute2f128_ps(s0, s4, 0x31);
    r[1] = _mm256_permute2f128_ps(s1, s5, 0x20);
    r[5] = _mm256_permute2f128_ps(s1, s5, 0x31);
    r[2] = _mm256_permute2f128_ps(s2, s6, 0x20);
    r[6] = _mm256_permute2f128_ps(s2, s6, 0x31);
    r[3] = _mm256_permute2f128_ps(s3, s7, 0x20);
    r[7] = _mm256_permute2f128_ps(s3, s7, 0x31);
}

/* ---- The matrix product ---------------------------------------------------------------------- */

/* A register tile, packing, and the loops around them (Goto & van de Geijn 2008; names as in BLIS).
 */

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

static void tile_wide(int K, const float *a, const float *b, size_t b_k, const float *start,
                      float *c) {
    __m256 s[WIDE / 8];
    for (int v = 0; v < WIDE / 8; v++)
        s[v] = start ? _mm256_loadu_ps(start + 8 * v) : _mm256_setzero_ps();
    for (int k = 0; k < K; k++, b += b_k)
        for (int v = 0; v < WIDE / 8; v++)
            s[v] = _mm256_fmadd_ps(_mm256_broadcast_ss(a + k), _mm256_loadu_ps(b + 8 * v), s[v]);
    for (int v = 0; v < WIDE / 8; v++) _mm256_storeu_ps(c + 8 * v, s[v]);
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

/* A factor of a product: a row-major matrix with a row stride, or the transpose of one. The second
   factor may be in NF4; then p is NULL. */
typedef struct {
    const float *p;
    size_t stride;
    bool transposed;
    const NF4 *nf4;
} Matrix;

static inline __m256 nf4_load(const NF4 *q, size_t at, int n);  // defined below

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

static const float zeros[NR];

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

/* C (M,N) = A (M,K) B (K,N). The chains start from C (accumulate), from bias (N), or from 0. */
static void product(int M, int N, int K, Matrix A, Matrix B, float *C, size_t ldc,
                    const float *bias, bool accumulate) {
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

/* ---- Embedding ------------------------------------------------------------------------------- */

void embed_forward(real *out, const int *token, const int *position, const real *wte,
                   const real *wpe, int N, int C) {
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const float *t = wte + (size_t)token[n] * (size_t)C;
        const float *p = wpe ? wpe + (size_t)position[n] * (size_t)C : NULL;
        float *o = out + (size_t)n * (size_t)C;
        for (int c = 0; c < C; c++) o[c] = p ? t[c] + p[c] : t[c];
    }
}

/* A token may occur several times, so threads divide the channels, not the tokens. */
void embed_backward(float *dwte, float *dwpe, const real *dout, const int *token,
                    const int *position, int N, int C) {
#pragma omp parallel for
    for (int c0 = 0; c0 < C; c0 += 64)
        for (int n = 0; n < N; n++)
            for (int c = c0; c < min_int(c0 + 64, C); c++) {
                // out[n][c] = wte[token[n]][c] + wpe[position[n]][c]
                float d = dout[(size_t)n * (size_t)C + (size_t)c];
                if (dwte) dwte[(size_t)token[n] * (size_t)C + (size_t)c] += d;
                if (dwpe) dwpe[(size_t)position[n] * (size_t)C + (size_t)c] += d;
            }
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

/* ---- Linear layer in NF4 --------------------------------------------------------------------- */

/* pack_b decodes the weight, eight numbers at a time: the lower three bits of a code are looked up
   in both halves of the table of 16, and the upper bit selects one of the two. Each number is
   decoded once for all rows of a superblock. So decoding costs little in training, but halves the
   speed of a product with a single row. */

size_t nf4_bytes(int IC, int OC, bool double_quant) { return nf4_bytes_of(IC, OC, double_quant); }

static inline float nf4_absmax(const NF4 *q, size_t block) {
    return q->absmax ? q->absmax[block]
                     : dynamic_map[q->absmax8[block]] * q->absmax2[block / NF4_BLOCK2] + q->offset;
}

/* Element `at` of weight^T, counted row after row. */
static inline float nf4_number(const NF4 *q, size_t at) {
    return nf4_value[at % 2 ? q->code[at / 2] & 15 : q->code[at / 2] >> 4] *
           nf4_absmax(q, at / NF4_BLOCK);
}

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
    return _mm256_mul_ps(value, _mm256_set1_ps(nf4_absmax(q, at / NF4_BLOCK)));
}

/* The code of a number from -1 to 1. */
static inline uint8_t nf4_code(float x) {
    int code = 0;
    for (int c = 0; c < 15; c++) code += x > nf4_threshold[c];
    return (uint8_t)code;
}

void nf4_quantize(NF4 *q, void *memory, const real *weight, int IC, int OC, bool double_quant) {
    enum { ROWS = NF4_BLOCK };  // of weight^T at a time: whole blocks for any IC
    const size_t n = (size_t)IC * (size_t)OC, blocks = blocks_of(n, NF4_BLOCK);
    *q = (NF4){.IC = IC, .OC = OC, .code = memory};
    float *absmax = (float *)(void *)(q->code + blocks * (NF4_BLOCK / 2));
    if (double_quant) {
        fill_dynamic_map();
        q->absmax2 = absmax;
        q->absmax8 = (uint8_t *)(absmax + blocks_of(blocks, NF4_BLOCK2));
        absmax = xmalloc(sizeof *absmax * blocks);
    } else {
        q->absmax = absmax;
    }
#pragma omp parallel
    {
        float *x = xmalloc(sizeof *x * ROWS * (size_t)IC);
#pragma omp for schedule(dynamic, 1)
        for (int o0 = 0; o0 < OC; o0 += ROWS) {
            const int rows = min_int(ROWS, OC - o0);
            for (int i = 0; i < IC; i++)
                for (int o = 0; o < rows; o++)
                    x[(size_t)o * (size_t)IC + (size_t)i] =
                        weight[(size_t)i * (size_t)OC + (size_t)(o0 + o)];
            const size_t first = (size_t)o0 * (size_t)IC, count = (size_t)rows * (size_t)IC;
            for (size_t at = 0; at < count; at += NF4_BLOCK) {
                const size_t end = at + NF4_BLOCK < count ? at + NF4_BLOCK : count,
                             block = (first + at) / NF4_BLOCK;
                float top = 0;
                bool finite = true;
                for (size_t k = at; k < end; k++) top = fmaxf(top, fabsf(x[k]));
                for (size_t k = at; k < end; k++) finite = finite && isfinite(x[k]);
                if (!finite) top = NAN;  // makes the whole block NaN
                const float inverse = top > 0 ? 1.0f / top : 0;
                for (size_t k = at; k < at + NF4_BLOCK; k += 2) {  // code of 0 after the end
                    uint8_t a = nf4_code(k < end ? x[k] * inverse : 0),
                            b = nf4_code(k + 1 < end ? x[k + 1] * inverse : 0);
                    q->code[(first + k) / 2] = (uint8_t)(a << 4 | b);
                }
                absmax[block] = top;
            }
        }
        free(x);
    }
    if (!double_quant) return;
    quantize_absmax(q, absmax, blocks);
    free(absmax);
}

void nf4_read(float *out, const NF4 *q, size_t offset, size_t n) {
    const size_t IC = (size_t)q->IC, OC = (size_t)q->OC;
#pragma omp parallel for
    for (size_t k = 0; k < n; k++)
        out[k] = nf4_number(q, (offset + k) % OC * IC + (offset + k) / OC);
}

void nf4_linear_forward(real *out, const real *inp, const NF4 *q, const real *bias, int N) {
    product(N, q->OC, q->IC, (Matrix){inp, (size_t)q->IC, false, NULL},
            (Matrix){NULL, (size_t)q->IC, true, q}, out, (size_t)q->OC, bias, false);
}

void nf4_linear_backward_input(real *dinp, const real *dout, const NF4 *q, int N) {
    // out = inp weight:  dinp = dout weight^T
    product(N, q->IC, q->OC, (Matrix){dout, (size_t)q->OC, false, NULL},
            (Matrix){NULL, (size_t)q->IC, false, q}, dinp, (size_t)q->IC, NULL, false);
}

/* ---- Residual and layer norm ----------------------------------------------------------------- */

void layernorm_forward(real *sum, real *out, float *mean, float *rstd, const real *x, const real *y,
                       const real *weight, const real *bias, int N, int C, float epsilon) {
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const float *row = x + (size_t)n * (size_t)C;
        __m256 total = _mm256_setzero_ps();
        if (y) {
            const float *more = y + (size_t)n * (size_t)C;
            float *to = sum + (size_t)n * (size_t)C;
            for (int c = 0; c < C; c += 8) {
                __m256 s = _mm256_add_ps(load(row + c, C - c), load(more + c, C - c));
                store(to + c, s, C - c);
                total = _mm256_add_ps(total, s);
            }
            row = to;
        } else {
            for (int c = 0; c < C; c += 8) total = _mm256_add_ps(total, load(row + c, C - c));
        }
        float m = sum8(total) / (float)C;
        __m256 mean8 = _mm256_set1_ps(m), square = _mm256_setzero_ps();
        // the variance in a second pass, to avoid cancellation when the mean is large
        for (int c = 0; c < C; c += 8) {
            __m256 d = _mm256_sub_ps(load(row + c, C - c), mean8);
            if (C - c < 8) d = _mm256_and_ps(d, _mm256_castsi256_ps(lanes(C - c)));
            square = _mm256_fmadd_ps(d, d, square);
        }
        float r = 1.0f / sqrtf(sum8(square) / (float)C + epsilon);
        __m256 rstd8 = _mm256_set1_ps(r);
        for (int c = 0; c < C; c += 8) {
            __m256 normed = _mm256_mul_ps(_mm256_sub_ps(load(row + c, C - c), mean8), rstd8);
            store(out + (size_t)n * (size_t)C + c,
                  _mm256_fmadd_ps(normed, load(weight + c, C - c), load(bias + c, C - c)), C - c);
        }
        mean[n] = m;
        rstd[n] = r;
    }
}

void layernorm_backward(real *dsum, float *dweight, float *dbias, const real *dout, const real *sum,
                        const float *mean, const float *rstd, const real *weight, int N, int C) {
    // out = xhat * weight + bias, xhat = (sum - mean) * rstd:
    // with g = dout * weight,  dsum += rstd * (g - mean(g) - xhat * mean(g * xhat))
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const float *dy = dout + (size_t)n * (size_t)C, *x = sum + (size_t)n * (size_t)C;
        float *dx = dsum + (size_t)n * (size_t)C;
        __m256 mean8 = _mm256_set1_ps(mean[n]), rstd8 = _mm256_set1_ps(rstd[n]);
        __m256 g_total = _mm256_setzero_ps(), gx_total = _mm256_setzero_ps();
        for (int c = 0; c < C; c += 8) {
            __m256 g = _mm256_mul_ps(load(dy + c, C - c), load(weight + c, C - c));
            __m256 xhat = _mm256_mul_ps(_mm256_sub_ps(load(x + c, C - c), mean8), rstd8);
            g_total = _mm256_add_ps(g_total, g);
            gx_total = _mm256_fmadd_ps(g, xhat, gx_total);
        }
        __m256 g_mean = _mm256_set1_ps(sum8(g_total) / (float)C),
               gx_mean = _mm256_set1_ps(sum8(gx_total) / (float)C);
        for (int c = 0; c < C; c += 8) {
            __m256 g = _mm256_mul_ps(load(dy + c, C - c), load(weight + c, C - c));
            __m256 xhat = _mm256_mul_ps(_mm256_sub_ps(load(x + c, C - c), mean8), rstd8);
            __m256 d = _mm256_sub_ps(_mm256_sub_ps(g, g_mean), _mm256_mul_ps(xhat, gx_mean));
            store(dx + c, _mm256_fmadd_ps(rstd8, d, load(dx + c, C - c)), C - c);
        }
    }
    if (!dweight && !dbias) return;
#pragma omp parallel for
    for (int c0 = 0; c0 < C; c0 += 32)  // threads divide the columns; each adds tokens in order
        for (int n = 0; n < N; n++)
            for (int c = c0; c < min_int(c0 + 32, C); c += 8) {
                __m256 dy = load(dout + (size_t)n * (size_t)C + c, C - c);
                __m256 xhat =
                    _mm256_mul_ps(_mm256_sub_ps(load(sum + (size_t)n * (size_t)C + c, C - c),
                                                _mm256_set1_ps(mean[n])),
                                  _mm256_set1_ps(rstd[n]));
                if (dweight)
                    store(dweight + c, _mm256_fmadd_ps(dy, xhat, load(dweight + c, C - c)), C - c);
                if (dbias) store(dbias + c, _mm256_add_ps(dy, load(dbias + c, C - c)), C - c);
            }
}

/* ---- GELU ------------------------------------------------------------------------------------ */

/* 0.5 x (1 + tanh(u)) = x s(2u) with the logistic function s(z) = 1 / (1 + e^-z), which needs one
   exponential and no tanh. */

static const float GELU_A = 0.7978845608f;  // sqrt(2 / pi)
static const float GELU_B = 0.044715f;      // coefficient of the cubic term

/* s(2u), u = A (x + B x^3) */
static inline __m256 gelu_gate(__m256 x) {
    __m256 xx = _mm256_mul_ps(x, x);
    __m256 u = _mm256_mul_ps(
        x, _mm256_fmadd_ps(xx, _mm256_set1_ps(GELU_A * GELU_B), _mm256_set1_ps(GELU_A)));
    __m256 e = exp8(_mm256_mul_ps(u, _mm256_set1_ps(-2.0f)));
    return _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

void gelu_forward(real *out, const real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 8) {
        int left = n - i < 8 ? (int)(n - i) : 8;
        __m256 x = load(inp + i, left);
        store(out + i, _mm256_mul_ps(x, gelu_gate(x)), left);
    }
}

void linear_gelu_forward(real *out, real *pre, const real *inp, const real *weight,
                         const real *bias, int N, int IC, int OC) {
    linear_forward(pre, inp, weight, bias, N, IC, OC);
    gelu_forward(out, pre, (size_t)N * (size_t)OC);
}

void gelu_backward(real *dout, real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 8) {
        int left = n - i < 8 ? (int)(n - i) : 8;
        __m256 x = load(inp + i, left), s = gelu_gate(x), one = _mm256_set1_ps(1.0f);
        // out = x s(2u):  d = s + x s (1 - s) 2 u',  u' = A (1 + 3 B x^2).  x s (1 - s) is
        // computed first, because it reaches 0 before u' becomes large
        __m256 du = _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(6 * GELU_A * GELU_B),
                                    _mm256_set1_ps(2 * GELU_A));
        __m256 y = _mm256_mul_ps(x, s);
        __m256 d = _mm256_fmadd_ps(_mm256_mul_ps(y, _mm256_sub_ps(one, s)), du, s);
        store(dout + i, _mm256_mul_ps(load(dout + i, left), d), left);
        store(inp + i, y, left);
    }
}

/* ---- ReLU and SiLU --------------------------------------------------------------------------- */

void relu_forward(real *out, const real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 8) {
        int left = n - i < 8 ? (int)(n - i) : 8;
        // this order of operands preserves NaN
        store(out + i, _mm256_max_ps(_mm256_setzero_ps(), load(inp + i, left)), left);
    }
}

void relu_backward(real *dout, real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 8) {
        int left = n - i < 8 ? (int)(n - i) : 8;
        __m256 x = load(inp + i, left), off = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LE_OQ);
        // out = max(x, 0):  d = 1 above 0, else 0
        store(dout + i, _mm256_andnot_ps(off, load(dout + i, left)), left);
        store(inp + i, _mm256_max_ps(_mm256_setzero_ps(), x), left);
    }
}

/* s(x) = 1 / (1 + e^-x) */
static inline __m256 silu_gate(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_div_ps(one, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

void silu_forward(real *out, const real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 8) {
        int left = n - i < 8 ? (int)(n - i) : 8;
        __m256 x = load(inp + i, left);
        store(out + i, _mm256_mul_ps(x, silu_gate(x)), left);
    }
}

void silu_backward(real *dout, real *inp, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 8) {
        int left = n - i < 8 ? (int)(n - i) : 8;
        __m256 x = load(inp + i, left), s = silu_gate(x), y = _mm256_mul_ps(x, s);
        // out = x s(x):  d = s + x s (1 - s)
        __m256 d = _mm256_fmadd_ps(y, _mm256_sub_ps(_mm256_set1_ps(1.0f), s), s);
        store(dout + i, _mm256_mul_ps(load(dout + i, left), d), left);
        store(inp + i, y, left);
    }
}

/* ---- Random noise ---------------------------------------------------------------------------- */

/* The uniform number of element c of the token in row n. */
static inline float noise_uniform(const Noise *z, int n, uint32_t c) {
    return random_uniform(
        random4(z->seed, z->purpose, z->step, z->sequence[n], (uint32_t)z->position[n], c / 4)
            .v[c % 4]);
}

/* The lower and the upper 32 bits of x m, for 8 lanes x of 32 bits. */
static inline void multiply_wide(__m256i x, uint32_t m, __m256i *low, __m256i *high) {
    __m256i m8 = _mm256_set1_epi32((int)m), even = _mm256_mul_epu32(x, m8),
            odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), m8);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

/* The dropout mask of channels c .. c+31 of the token in row n, c being a multiple of 4: all bits
   set where the channel is not dropped. Computes eight Philox draws (util.h) at once, in a seventh
   of the time of eight single ones. */
static inline void mask32(__m256 mask[4], const Noise *z, int n, int c) {
    const uint64_t key = random_key(z->seed, z->purpose);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    __m256i v0 =
        _mm256_add_epi32(_mm256_set1_epi32(c / 4), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i v1 = _mm256_set1_epi32(z->position[n]), v2 = _mm256_set1_epi32((int)z->sequence[n]),
            v3 = _mm256_set1_epi32((int)z->step);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        __m256i low0, high0, low1, high1;
        multiply_wide(v0, 0xD2511F53u, &low0, &high0);
        multiply_wide(v2, 0xCD9E8D57u, &low1, &high1);
        v0 = _mm256_xor_si256(_mm256_xor_si256(high1, v1), _mm256_set1_epi32((int)k0));
        v2 = _mm256_xor_si256(_mm256_xor_si256(high0, v3), _mm256_set1_epi32((int)k1));
        v1 = low1;
        v3 = low0;
    }
    // lane i of v0 .. v3 has the words of channels 4i .. 4i+3: transpose into the order of channels
    __m256i a = _mm256_unpacklo_epi32(v0, v1), b = _mm256_unpackhi_epi32(v0, v1),
            d = _mm256_unpacklo_epi32(v2, v3), e = _mm256_unpackhi_epi32(v2, v3);
    __m256i w0 = _mm256_unpacklo_epi64(a, d), w1 = _mm256_unpackhi_epi64(a, d),
            w2 = _mm256_unpacklo_epi64(b, e), w3 = _mm256_unpackhi_epi64(b, e);
    __m256i word[4] = {
        _mm256_permute2x128_si256(w0, w1, 0x20), _mm256_permute2x128_si256(w2, w3, 0x20),
        _mm256_permute2x128_si256(w0, w1, 0x31), _mm256_permute2x128_si256(w2, w3, 0x31)};
    for (int i = 0; i < 4; i++) {
        __m256 uniform = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(word[i], 8)),
                                       _mm256_set1_ps(0x1p-24f));
        mask[i] = _mm256_cmp_ps(uniform, _mm256_set1_ps(z->p), _CMP_GE_OQ);
    }
}

void dropout(real *x, int N, int C, Noise noise) {
    if (noise.p <= 0) return;
    const __m256 scale = _mm256_set1_ps(1.0f / (1.0f - noise.p));
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        float *row = x + (size_t)n * (size_t)C;
        __m256 mask[4];
        for (int c = 0; c < C; c += 8) {
            if (c % 32 == 0) mask32(mask, &noise, n, c);
            store(row + c,
                  _mm256_and_ps(mask[c % 32 / 8], _mm256_mul_ps(load(row + c, C - c), scale)),
                  C - c);
        }
    }
}

void dropout_add(real *out, const real *x, int N, int C, Noise noise) {
    const __m256 scale = _mm256_set1_ps(1.0f / (1.0f - noise.p));
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const float *row = x + (size_t)n * (size_t)C;
        float *to = out + (size_t)n * (size_t)C;
        __m256 mask[4];
        for (int c = 0; c < C; c += 8) {
            __m256 v = load(row + c, C - c);
            if (noise.p > 0 && c % 32 == 0) mask32(mask, &noise, n, c);
            if (noise.p > 0) v = _mm256_and_ps(mask[c % 32 / 8], _mm256_mul_ps(v, scale));
            store(to + c, _mm256_add_ps(load(to + c, C - c), v), C - c);
        }
    }
}

void add_uniform_noise(real *x, const float *magnitude, int N, int C, Noise noise) {
#pragma omp parallel for
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++)
            x[(size_t)n * (size_t)C + (size_t)c] +=
                magnitude[n] * (2.0f * noise_uniform(&noise, n, (uint32_t)c) - 1.0f);
}

/* ---- Attention ------------------------------------------------------------------------------- */

/* Threads divide the pairs of sequence and head. The keys of a head are stored in transposed blocks
   of 64: keys[block][d][64]. Its values are stored as rows: values[key][hsp], hsp being hs rounded
   up to 16, with zeros. The cache for decoding has the same layout, and both use attend(), so a
   decoded row has the same bits as in training: a masked key contributes fma(0, v, o) = o, and a
   block of masked keys is skipped, which gives the same result. */

enum { KB = 64 };

static inline int padded_head(int hs) { return round_up(hs, NR); }

/* Returns n floats of workspace for this thread. It is allocated once and reused, so that training
   steps and decoding do not allocate memory. */
static float *workspace(size_t n) {
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

/* Stores the key and value of position t (hs floats each) in a head's arrays. */
static inline void put_key_value(float *keys, float *values, const float *k, const float *v, int t,
                                 int hs) {
    int hsp = padded_head(hs);
    float *column = keys + (size_t)(t / KB) * (size_t)(hs * KB) + t % KB,
          *row = values + (size_t)t * (size_t)hsp;
    for (int d = 0; d < hs; d++) column[(size_t)d * KB] = k[d];
    for (int d = 0; d < hs; d++) row[d] = v[d];
    for (int d = hs; d < hsp; d++) row[d] = 0;
}

/* The dropout factor, 0 or 1 / (1-p), of (query, key) in a head; n is the query's row in the batch.
 */
static inline float attention_dropout(const Noise *z, int n, int key, int h, int NH) {
    return noise_uniform(z, n, (uint32_t)key * (uint32_t)NH + (uint32_t)h) >= z->p
               ? 1.0f / (1.0f - z->p)
               : 0.0f;
}

/*
 * Attention of `rows` (at most 6) consecutive queries at positions q0, q0+1, ... to keys 0 .. their
 * own position. The softmax is computed online, one block of keys after the other (Milakov &
 * Gimelshein 2018): m is the largest score so far, l the sum of e^(score - m), o the weighted sum
 * of values. l and o are rescaled when m grows. noise NULL: no dropout. n0 is the batch row of q0.
 */
static void attend(float *out, size_t out_row, float *lse, size_t lse_row, const float *q,
                   size_t q_row, int rows, int q0, const float *keys, const float *values, int hs,
                   const Noise *noise, int n0, int h, int NH) {
    const int hsp = padded_head(hs);
    const __m256 scale = _mm256_set1_ps(1.0f / sqrtf((float)hs));
    float m[MR], l[MR] = {0}, o[MR * hsp], s[MR * KB];
    for (int i = 0; i < rows; i++) m[i] = -INFINITY;
    memset(o, 0, sizeof o);
    for (int k0 = 0; k0 < q0 + rows; k0 += KB) {
        const float *block = keys + (size_t)k0 * (size_t)hs;
        int seen = min_int(KB, q0 + rows - k0);  // keys of this block that the last row sees
        if (rows == 1 && seen > WIDE - NR)
            tile_wide(hs, q, block, KB, NULL, s);
        else
            for (int j = 0; j < seen; j += NR)
                tile(rows, hs, q, q_row, 1, block + j, KB, zeros, 0, s + j, KB, NULL);
        for (int i = 0; i < rows; i++) {
            float *row = s + i * KB;
            int visible = min_int(seen, q0 + i + 1 - k0);
            __m256 top = _mm256_set1_ps(-INFINITY), total = _mm256_setzero_ps();
            for (int j = 0; j < visible; j += 8) {
                __m256 x = _mm256_mul_ps(_mm256_loadu_ps(row + j), scale);
                if (visible - j < 8)
                    x = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), x,
                                         _mm256_castsi256_ps(lanes(visible - j)));
                _mm256_storeu_ps(row + j, x);
                top = _mm256_max_ps(top, x);
            }
            float m_new = fmaxf(m[i], max8(top));
            for (int j = 0; j < visible; j += 8) {
                __m256 p = exp8(_mm256_sub_ps(_mm256_loadu_ps(row + j), _mm256_set1_ps(m_new)));
                _mm256_storeu_ps(row + j, p);
                total = _mm256_add_ps(total, p);
            }
            for (int j = visible > 0 ? round_up(visible, 8) : 0; j < seen; j++) row[j] = 0;
            if (m_new > m[i]) {
                __m256 shrink = exp8(_mm256_set1_ps(m[i] - m_new));
                l[i] *= _mm256_cvtss_f32(shrink);
                for (int d = 0; d < hsp; d += 8)
                    _mm256_storeu_ps(o + i * hsp + d,
                                     _mm256_mul_ps(_mm256_loadu_ps(o + i * hsp + d), shrink));
                m[i] = m_new;
            }
            l[i] += sum8(total);
            if (noise)
                for (int j = 0; j < visible; j++)
                    row[j] *= attention_dropout(noise, n0 + i, k0 + j, h, NH);
        }
        int d = 0;
        for (; rows == 1 && d + WIDE <= hsp; d += WIDE)
            tile_wide(seen, s, values + (size_t)k0 * (size_t)hsp + d, (size_t)hsp, o + d, o + d);
        for (; d < hsp; d += NR)
            tile(rows, seen, s, KB, 1, values + (size_t)k0 * (size_t)hsp + d, (size_t)hsp, o + d,
                 (size_t)hsp, o + d, (size_t)hsp, NULL);
    }
    for (int i = 0; i < rows; i++) {
        float inverse = 1.0f / l[i];
        for (int d = 0; d < hs; d++)
            out[(size_t)i * out_row + (size_t)d] = o[i * hsp + d] * inverse;
        if (lse) lse[(size_t)i * lse_row] = m[i] + logf(l[i]);
    }
}

/* The batch rows of a sequence: P rows of its parent from row `prefix` on, then T rows of its own
   from row `own` on. */
typedef struct {
    int prefix, P, own, T;
} Rows;

static inline Rows rows_of(const int *start, const int *parent, int s) {
    int p = parent ? parent[s] : -1;
    return (Rows){p < 0 ? 0 : start[p], p < 0 ? 0 : start[p + 1] - start[p], start[s],
                  start[s + 1] - start[s]};
}

/* The batch row of the token at position t. */
static inline size_t row_at(Rows r, int t) {
    return (size_t)(t < r.P ? r.prefix + t : r.own + t - r.P);
}

void attention_forward(real *out, float *lse, const real *qkv, const int *start, const int *parent,
                       int N, int S, int NH, int hs, Noise noise) {
    (void)N;
    const int hsp = padded_head(hs);
    const size_t C = (size_t)NH * (size_t)hs;
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < S * NH; item++) {
        Rows r = rows_of(start, parent, item / NH);
        int h = item % NH, end = r.P + r.T, blocks = (end + KB - 1) / KB;
        float *keys = workspace((size_t)blocks * KB * (size_t)(hs + hsp)),
              *values = keys + (size_t)blocks * KB * (size_t)hs;
        for (int t = 0; t < end; t++) {
            const float *q = qkv + row_at(r, t) * 3 * C + (size_t)(h * hs);
            put_key_value(keys, values, q + C, q + 2 * C, t, hs);
        }
        for (int t = r.P; t < end; t += MR) {
            size_t n = row_at(r, t);
            attend(out + n * C + (size_t)(h * hs), C, lse + n * (size_t)NH + h, (size_t)NH,
                   qkv + n * 3 * C + (size_t)(h * hs), 3 * C, min_int(MR, end - t), t, keys, values,
                   hs, noise.p > 0 ? &noise : NULL, (int)n, h, NH);
        }
    }
}

/* C (M,hsp) += A (M,K) B (K,hsp), for the small products of attention's backward pass. */
static inline __attribute__((always_inline)) void small_product(int M, int K, int hsp,
                                                                const float *a, size_t a_row,
                                                                size_t a_k, const float *b,
                                                                float *c) {
    for (int i = 0; i < M; i += MR)
        for (int j = 0; j < hsp; j += NR)
            tile(min_int(MR, M - i), K, a + (size_t)i * a_row, a_row, a_k, b + j, (size_t)hsp,
                 c + (size_t)i * (size_t)hsp + j, (size_t)hsp, c + (size_t)i * (size_t)hsp + j,
                 (size_t)hsp, NULL);
}

/* The arrays of one head for the backward pass of a sequence. They have a row for every position,
   including those of the parent. */
typedef struct {
    float *q, *k, *dO, *keys, *values;  // rows padded to hsp; keys, values: transposed blocks
    float *dq, *dk, *dv, *delta;
} HeadArrays;

static inline size_t head_array_rows(int positions, int hsp) {
    return (size_t)round_up(positions, KB) * (size_t)hsp;
}

/* Computes dq of a sequence's own queries, and dk and dv of all keys and values that they attend
   to. q, dO and delta are 0 at the parent's positions, so that these contribute nothing to a block
   of queries that contains some of them. */
static void head_backward_sequence(HeadArrays a, const real *dout, const real *qkv, const real *out,
                                   const float *lse, Rows r, int h, int NH, int hs,
                                   const Noise *noise) {
    const int hsp = padded_head(hs), T = r.P + r.T;
    const size_t C = (size_t)NH * (size_t)hs, rows = head_array_rows(T, hsp);
    const float scale = 1.0f / sqrtf((float)hs);
    float *const q = a.q, *const k = a.k, *const dO = a.dO, *const delta = a.delta;
    memset(q, 0, sizeof(float) * 8 * rows);
    for (int t = 0; t < T; t++) {
        const size_t n = row_at(r, t);
        const float *from = qkv + n * 3 * C + (size_t)(h * hs), *o = out + n * C + (size_t)(h * hs),
                    *d = dout + n * C + (size_t)(h * hs);
        size_t column = (size_t)(t / KB) * (size_t)(hs * KB) + (size_t)(t % KB),
               row = (size_t)t * (size_t)hsp;
        delta[t] = 0;
        for (int i = 0; i < hs; i++) {
            k[row + (size_t)i] = a.keys[column + (size_t)i * KB] = from[C + (size_t)i];
            a.values[column + (size_t)i * KB] = from[2 * C + (size_t)i];
            if (t < r.P) continue;
            q[row + (size_t)i] = from[i];
            dO[row + (size_t)i] = d[i];
            delta[t] = fmaf(o[i], d[i], delta[t]);
        }
    }
    float p[KB * KB], ds[KB * KB];
    for (int q0 = r.P / KB * KB; q0 < T; q0 += KB)
        for (int k0 = 0; k0 <= q0; k0 += KB) {
            int queries = min_int(KB, T - q0), columns = min_int(KB, T - k0);
            size_t block = (size_t)k0 * (size_t)hs, qrow = (size_t)q0 * (size_t)hsp,
                   krow = (size_t)k0 * (size_t)hsp;
            for (int i = 0; i < queries; i += MR) {
                int n = min_int(MR, queries - i), seen = min_int(KB, q0 + i + n - k0);
                for (int j = 0; j < seen; j += NR) {
                    tile(n, hs, q + qrow + (size_t)(i * hsp), (size_t)hsp, 1, a.keys + block + j,
                         KB, zeros, 0, p + i * KB + j, KB, NULL);
                    tile(n, hs, dO + qrow + (size_t)(i * hsp), (size_t)hsp, 1, a.values + block + j,
                         KB, zeros, 0, ds + i * KB + j, KB, NULL);
                }
            }
            for (int i = 0; i < queries; i++) {
                int visible = q0 + i < r.P ? 0 : min_int(columns, q0 + i + 1 - k0),
                    n = (int)row_at(r, q0 + i), j = 0;
                __m256 lse8 = _mm256_set1_ps(lse[(size_t)n * (size_t)NH + (size_t)h]),
                       delta8 = _mm256_set1_ps(delta[q0 + i]);
                for (; j < visible; j += 8) {
                    // p = softmax(scale q k^T);  o = p v  =>  dv += p^T do,  dp = do v^T
                    // ds = p (dp - sum_j p dp) scale, and sum_j p dp = do . o = delta
                    float factor[8] = {1, 1, 1, 1, 1, 1, 1, 1};
                    if (noise)
                        for (int jj = j; jj < min_int(j + 8, visible); jj++)
                            factor[jj - j] = attention_dropout(noise, n, k0 + jj, h, NH);
                    __m256 factor8 = _mm256_loadu_ps(factor);
                    __m256 x = exp8(_mm256_fmsub_ps(_mm256_loadu_ps(p + i * KB + j),
                                                    _mm256_set1_ps(scale), lse8));
                    if (visible - j < 8)
                        x = _mm256_and_ps(x, _mm256_castsi256_ps(lanes(visible - j)));
                    __m256 d = _mm256_sub_ps(
                        _mm256_mul_ps(_mm256_loadu_ps(ds + i * KB + j), factor8), delta8);
                    d = _mm256_mul_ps(_mm256_mul_ps(x, d), _mm256_set1_ps(scale));
                    if (visible - j < 8)
                        d = _mm256_and_ps(d, _mm256_castsi256_ps(lanes(visible - j)));
                    _mm256_storeu_ps(p + i * KB + j, _mm256_mul_ps(x, factor8));
                    _mm256_storeu_ps(ds + i * KB + j, d);
                }
                for (; j < KB; j++) p[i * KB + j] = ds[i * KB + j] = 0;
            }
            // s = scale q k^T:  dq += ds k,  dk += ds^T q.  On the diagonal, only queries from i on
            // attend to keys from i on
            for (int i = 0; i < columns; i += MR) {
                int n = min_int(MR, columns - i), from = k0 == q0 ? i : 0;
                size_t fromrow = qrow + (size_t)(from * hsp);
                small_product(n, queries - from, hsp, p + from * KB + i, 1, KB, dO + fromrow,
                              a.dv + krow + (size_t)(i * hsp));
                small_product(n, queries - from, hsp, ds + from * KB + i, 1, KB, q + fromrow,
                              a.dk + krow + (size_t)(i * hsp));
            }
            for (int i = 0; i < queries; i += MR) {
                int n = min_int(MR, queries - i);
                small_product(n, min_int(columns, q0 + i + n - k0), hsp, ds + i * KB, KB, 1,
                              k + krow, a.dq + qrow + (size_t)(i * hsp));
            }
        }
}

/* Writes dq, dk and dv of the sequence's own positions to dqkv. With parents, instead adds dk and
   dv to the rows of its parent, which have been written before. */
static void put_head_gradients(real *dqkv, HeadArrays a, Rows r, int h, int NH, int hs,
                               bool parents) {
    const int hsp = padded_head(hs);
    const size_t C = (size_t)NH * (size_t)hs;
    for (int t = parents ? 0 : r.P; t < (parents ? r.P : r.P + r.T); t++) {
        float *to = dqkv + row_at(r, t) * 3 * C + (size_t)(h * hs);
        const size_t row = (size_t)t * (size_t)hsp;
        if (!parents) memcpy(to, a.dq + row, sizeof(float) * (size_t)hs);
        for (int i = 0; i < hs; i++) {
            to[C + (size_t)i] =
                parents ? to[C + (size_t)i] + a.dk[row + (size_t)i] : a.dk[row + (size_t)i];
            to[2 * C + (size_t)i] =
                parents ? to[2 * C + (size_t)i] + a.dv[row + (size_t)i] : a.dv[row + (size_t)i];
        }
    }
}

/* Threads divide the pairs of head and sequence without a parent. One thread processes such a
   sequence and then its continuations in order. So the gradients of the shared keys and values are
   added in a fixed order. */
void attention_backward(real *dqkv, const real *dout, const real *qkv, const real *out,
                        const float *lse, const int *start, const int *parent, int N, int S, int NH,
                        int hs, Noise noise) {
    (void)N;
    const int hsp = padded_head(hs);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < S * NH; item++) {
        int h = item % NH, first = item / NH;
        if (parent && parent[first] >= 0) continue;
        for (int s = first; s < (parent ? S : first + 1); s++) {
            if (s != first && parent[s] != first) continue;
            Rows r = rows_of(start, parent, s);
            size_t rows = head_array_rows(r.P + r.T, hsp);
            float *q = workspace(8 * rows + (size_t)round_up(r.P + r.T, KB)), *k = q + rows,
                  *dO = k + rows, *keys = dO + rows, *values = keys + rows;
            HeadArrays a = {q,
                            k,
                            dO,
                            keys,
                            values,
                            values + rows,
                            values + 2 * rows,
                            values + 3 * rows,
                            values + 4 * rows};
            head_backward_sequence(a, dout, qkv, out, lse, r, h, NH, hs,
                                   noise.p > 0 ? &noise : NULL);
            put_head_gradients(dqkv, a, r, h, NH, hs, false);
            if (r.P) put_head_gradients(dqkv, a, r, h, NH, hs, true);
        }
    }
}

size_t cache_bytes(int slots, int positions, int NH, int hs) {
    return (size_t)slots * (size_t)NH * (size_t)round_up(positions, KB) *
           (size_t)(hs + padded_head(hs)) * sizeof(real);
}

void attention_cached(real *out, real *cache, const real *qkv, const int *slot, const int *position,
                      int N, int slots, int positions, int NH, int hs) {
    (void)slots;
    const size_t C = (size_t)NH * (size_t)hs,
                 keys_size = (size_t)round_up(positions, KB) * (size_t)hs;
    const size_t head_size = keys_size + (size_t)round_up(positions, KB) * (size_t)padded_head(hs);
    // threads divide the heads; each stores the new keys and values, then attends, up to 6
    // consecutive rows at a time
#pragma omp parallel for schedule(static)
    for (int h = 0; h < NH; h++) {
        for (int n = 0; n < N; n++) {
            float *keys = cache + ((size_t)slot[n] * (size_t)NH + (size_t)h) * head_size;
            const float *row = qkv + (size_t)n * 3 * C + (size_t)(h * hs);
            put_key_value(keys, keys + keys_size, row + C, row + 2 * C, position[n], hs);
        }
        for (int n = 0, rows; n < N; n += rows) {
            for (rows = 1; rows < MR && n + rows < N && slot[n + rows] == slot[n] &&
                           position[n + rows] == position[n] + rows;
                 rows++) {
            }
            const float *keys = cache + ((size_t)slot[n] * (size_t)NH + (size_t)h) * head_size;
            attend(out + (size_t)n * C + (size_t)(h * hs), C, NULL, 0,
                   qkv + (size_t)n * 3 * C + (size_t)(h * hs), 3 * C, rows, position[n], keys,
                   keys + keys_size, hs, NULL, 0, h, NH);
        }
    }
}

/* ---- The loss head --------------------------------------------------------------------------- */

void gather_rows(real *out, const real *inp, const int *row, int R, int C) {
    for (int r = 0; r < R; r++)
        memcpy(out + (size_t)r * (size_t)C, inp + (size_t)row[r] * (size_t)C,
               sizeof(real) * (size_t)C);
}

void scatter_rows(real *out, const real *inp, const int *row, int R, int C) {
    for (int r = 0; r < R; r++)
        memcpy(out + (size_t)row[r] * (size_t)C, inp + (size_t)r * (size_t)C,
               sizeof(real) * (size_t)C);
}

void scale_rows(real *x, const float *factor, int R, int C) {
#pragma omp parallel for
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) x[(size_t)r * (size_t)C + (size_t)c] *= factor[r];
}

void head_forward(real *logits, const real *inp, const real *wte, int R, int C, int V, int ldv) {
    product(R, V, C, (Matrix){inp, (size_t)C, false, NULL}, (Matrix){wte, (size_t)C, true, NULL},
            logits, (size_t)ldv, NULL, false);
}

void head_backward(real *dinp, float *dwte, const real *dlogits, const real *inp, const real *wte,
                   int R, int C, int V, int ldv) {
    // logits = inp wte^T:  dinp = dlogits wte,  dwte = dlogits^T inp
    if (dinp)
        product(R, C, V, (Matrix){dlogits, (size_t)ldv, false, NULL},
                (Matrix){wte, (size_t)C, false, NULL}, dinp, (size_t)C, NULL, false);
    if (dwte)
        product(V, C, R, (Matrix){dlogits, (size_t)ldv, true, NULL},
                (Matrix){inp, (size_t)C, false, NULL}, dwte, (size_t)C, NULL, true);
}

/* The largest element of a row, and its lowest index. A NaN is never the largest, but makes the
   sums below NaN. */
static float row_max(const float *x, int V, int *where) {
    __m256 top = _mm256_set1_ps(-INFINITY);
    __m256 index = _mm256_setzero_ps();  // as floats, which are exact below 2^24
    __m256 here = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    int j = 0;
    for (; j + 8 <= V; j += 8, here = _mm256_add_ps(here, _mm256_set1_ps(8))) {
        __m256 v = _mm256_loadu_ps(x + j), more = _mm256_cmp_ps(v, top, _CMP_GT_OQ);
        top = _mm256_blendv_ps(top, v, more);
        index = _mm256_blendv_ps(index, here, more);
    }
    float tops[8], indices[8], best = -INFINITY;
    _mm256_storeu_ps(tops, top);
    _mm256_storeu_ps(indices, index);
    *where = 0;
    for (int i = 0; i < 8 && j; i++)
        if (tops[i] > best || (tops[i] == best && (int)indices[i] < *where)) {
            best = tops[i];
            *where = (int)indices[i];
        }
    for (; j < V; j++)
        if (x[j] > best) {
            best = x[j];
            *where = j;
        }
    return best;
}

/* Returns sum_j e^((x_j - top) beta). *weighted, unless NULL, becomes sum_j e^(..) (x_j - top)
   beta. Each block of 512 is summed in eight lanes of float, and the blocks in double, because a
   sum of 50,257 terms in float would lose four digits. */
static double row_sum(const float *x, int V, float top, float beta, double *weighted) {
    double sum = 0, more = 0;
    for (int j0 = 0; j0 < V; j0 += 512) {
        __m256 s = _mm256_setzero_ps(), w = _mm256_setzero_ps();
        int end = min_int(j0 + 512, V);
        for (int j = j0; j < end; j += 8) {
            __m256 d = _mm256_mul_ps(_mm256_sub_ps(load(x + j, end - j), _mm256_set1_ps(top)),
                                     _mm256_set1_ps(beta)),
                   e = exp8(d);
            if (end - j < 8) e = _mm256_and_ps(e, _mm256_castsi256_ps(lanes(end - j)));
            s = _mm256_add_ps(s, e);
            if (weighted)
                // bounded, because 0 * -infinity would be NaN
                w = _mm256_fmadd_ps(e, _mm256_max_ps(_mm256_set1_ps(-1e4f), d), w);
        }
        sum += (double)sum8(s);
        more += (double)sum8(w);
    }
    if (weighted) *weighted = more;
    return sum;
}

void logprob_forward(float *logp, float *entropy, float *lse, int *best, const real *logits,
                     const int *target, float beta, int R, int V, int ldv) {
#pragma omp parallel for
    for (int r = 0; r < R; r++) {
        const float *x = logits + (size_t)r * (size_t)ldv;
        int where;
        double weighted;
        float top = row_max(x, V, &where);
        double sum = row_sum(x, V, top, beta, entropy ? &weighted : NULL), log_sum = log(sum);
        lse[r] = (float)((double)top * (double)beta + log_sum);
        // the same bits as in sample()
        logp[r] = (float)((double)(x[target[r]] - top) * (double)beta - log_sum);
        // -sum p log p with log p = (x - top) beta - log_sum
        if (entropy) entropy[r] = (float)(log_sum - weighted / sum);
        if (best) best[r] = where;
    }
}

void logprob_backward(real *logits, const float *lse, const float *entropy, const int *target,
                      const float *dlogp, const float *dentropy, float beta, int R, int V,
                      int ldv) {
#pragma omp parallel for
    for (int r = 0; r < R; r++) {
        float *x = logits + (size_t)r * (size_t)ldv;
        __m256 lse8 = _mm256_set1_ps(lse[r]), minus_dlogp = _mm256_set1_ps(-dlogp[r]),
               beta8 = _mm256_set1_ps(beta);
        bool with_entropy = dentropy && dentropy[r] != 0;
        for (int j = 0; j < V; j += 8) {
            // log p_j = beta x_j - lse:   d log p[target] / d x_j = beta (1[j = target] - p_j)
            // entropy = -sum p log p:   d entropy / d x_j = -beta p_j (log p_j + entropy)
            __m256 log_p = _mm256_sub_ps(_mm256_mul_ps(beta8, load(x + j, V - j)), lse8),
                   p = exp8(log_p), factor = minus_dlogp;
            if (with_entropy)
                factor = _mm256_fnmadd_ps(_mm256_set1_ps(dentropy[r]),
                                          _mm256_add_ps(_mm256_max_ps(_mm256_set1_ps(-1e4f), log_p),
                                                        _mm256_set1_ps(entropy[r])),
                                          factor);
            store(x + j, _mm256_mul_ps(beta8, _mm256_mul_ps(p, factor)), V - j);
        }
        x[target[r]] += beta * dlogp[r];
    }
}

void kl_forward(float *kl, const real *logits_p, const float *lse_p, const real *logits_q,
                const float *lse_q, float beta, int R, int V, int ldv) {
#pragma omp parallel for
    for (int r = 0; r < R; r++) {
        const float *x = logits_p + (size_t)r * (size_t)ldv,
                    *y = logits_q + (size_t)r * (size_t)ldv;
        const __m256 beta8 = _mm256_set1_ps(beta), lse_x = _mm256_set1_ps(lse_p[r]),
                     lse_y = _mm256_set1_ps(lse_q[r]);
        double sum = 0;  // in blocks of 512, as in row_sum
        for (int j0 = 0; j0 < V; j0 += 512) {
            __m256 s = _mm256_setzero_ps();
            for (int j = j0, end = min_int(j0 + 512, V); j < end; j += 8) {
                __m256 log_p = _mm256_sub_ps(_mm256_mul_ps(beta8, load(x + j, end - j)), lse_x);
                __m256 log_q = _mm256_sub_ps(_mm256_mul_ps(beta8, load(y + j, end - j)), lse_y),
                       p = exp8(log_p);
                if (end - j < 8) p = _mm256_and_ps(p, _mm256_castsi256_ps(lanes(end - j)));
                // the term is 0 where p is 0, even if a logit of -infinity makes the difference NaN
                __m256 term = _mm256_mul_ps(p, _mm256_sub_ps(log_p, log_q));
                s = _mm256_add_ps(
                    s, _mm256_andnot_ps(_mm256_cmp_ps(p, _mm256_setzero_ps(), _CMP_EQ_OQ), term));
            }
            sum += (double)sum8(s);
        }
        kl[r] = (float)sum;
    }
}

float largest_difference(const real *a, const real *b, int R, int V, int ldv) {
    float top = 0;
#pragma omp parallel for reduction(max : top)
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) {
            const size_t at = (size_t)r * (size_t)ldv + (size_t)j;
            float d = fabsf(a[at] - (b ? b[at] : 0));
            if (isnan(d)) d = INFINITY;
            if (d > top) top = d;
        }
    return top;
}

/* ---- The scalar head ------------------------------------------------------------------------- */

void value_forward(float *value, const real *inp, const real *weight, const real *bias, int N,
                   int C) {
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        __m256 sum = _mm256_setzero_ps();
        for (int c = 0; c < C; c += 8)
            sum = _mm256_fmadd_ps(load(inp + (size_t)n * (size_t)C + c, C - c),
                                  load(weight + c, C - c), sum);
        value[n] = sum8(sum) + (bias ? *bias : 0);
    }
}

void value_backward(real *dinp, float *dweight, float *dbias, const float *dvalue, const real *inp,
                    const real *weight, int N, int C) {
    // value[n] = sum_c inp[n][c] weight[c] + bias
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const __m256 d = _mm256_set1_ps(dvalue[n]);
        float *to = dinp + (size_t)n * (size_t)C;
        if (dvalue[n] == 0) continue;
        for (int c = 0; c < C; c += 8)
            store(to + c, _mm256_fmadd_ps(d, load(weight + c, C - c), load(to + c, C - c)), C - c);
    }
    if (dweight) {
#pragma omp parallel for
        for (int c0 = 0; c0 < C; c0 += 32)  // threads divide the columns; each adds tokens in order
            for (int n = 0; n < N; n++)
                for (int c = c0; c < min_int(c0 + 32, C) && dvalue[n] != 0; c += 8)
                    store(dweight + c,
                          _mm256_fmadd_ps(_mm256_set1_ps(dvalue[n]),
                                          load(inp + (size_t)n * (size_t)C + c, C - c),
                                          load(dweight + c, C - c)),
                          C - c);
    }
    if (dbias)
        for (int n = 0; n < N; n++) *dbias += dvalue[n];
}

/* ---- Sampling -------------------------------------------------------------------------------- */

typedef struct {
    float logit;
    int id;
} Candidate;

/* The order in which top_k and top_p select tokens: the more likely first; of two that are equally
   likely, the one with the lower id. */
static inline bool before(Candidate a, Candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* Moves the first elements of c (n), in the order of before(), to its front: `most` of them, or
   fewer if the sum of their weights reaches `enough`. Returns how many. A quickselect (Hoare 1961)
   by count and by weight: only the part that contains the end is partitioned again. */
static int first_of(Candidate *c, int n, const float *weight, int most, double enough) {
    int low = 0, high = n;  // elements before low are selected, from high on they are not
    double sum = 0;         // of the weights of elements before low
    while (low < high) {
        Candidate *pivot = &c[low + (high - low) / 2], p = *pivot;
        *pivot = c[high - 1];
        c[high - 1] = p;
        int m = low;
        double more = 0;
        for (int i = low; i < high - 1; i++)
            if (before(c[i], p)) {
                Candidate t = c[i];
                c[i] = c[m];
                c[m++] = t;
                more += (double)weight[t.id];
            }
        c[high - 1] = c[m];
        c[m] = p;
        if (m >= most || sum + more >= enough) {
            high = m;
            continue;
        }
        sum += more + (double)weight[p.id];
        low = m + 1;
        if (sum >= enough) break;
    }
    return low;
}

/* Samples with top_k and top_p. 32 rows of 50,257 logits take 6 ms with top_k 50, and 29 ms with
   top_p 0.9 and nearly uniform probabilities. Sorting the vocabulary took 48 and 100 ms. */
static int sample_restricted(const float *x, int V, float top, float beta, int top_k, float top_p,
                             double u) {
    float *weight = workspace(3 * (size_t)V + 16);
    Candidate *c = (Candidate *)(weight + round_up(V, 16));
    for (int j = 0; j < V; j++) c[j] = (Candidate){x[j], j};
    for (int j = 0; j < V; j += 8)
        store(weight + j,
              exp8(_mm256_mul_ps(_mm256_sub_ps(load(x + j, V - j), _mm256_set1_ps(top)),
                                 _mm256_set1_ps(beta))),
              V - j);
    int n = top_k > 0 && top_k < V ? first_of(c, V, weight, top_k, INFINITY) : V;
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += (double)weight[c[i].id];
    if (top_p < 1) {
        n = max_int(1, first_of(c, n, weight, n, (double)top_p * total));
        total = 0;
        for (int i = 0; i < n; i++) total += (double)weight[c[i].id];
    }
    Candidate last = c[0];
    for (int i = 1; i < n; i++)
        if (before(last, c[i])) last = c[i];
    int token = c[0].id;
    for (int j = 0; j < V; j++) {
        if (weight[j] == 0 || before(last, (Candidate){x[j], j})) continue;
        token = j;
        sum += (double)weight[j];
        if (sum > u * total) break;
    }
    return token;
}

/* Samples from the whole vocabulary: finds the block of 512 in which the cumulative sum exceeds
   u * total, then the token in this block. */
static int sample_all(const float *x, int V, float top, float beta, double total, double u) {
    double sum = 0;
    int last = 0;
    for (int j0 = 0; j0 < V; j0 += 512) {
        int n = min_int(512, V - j0);
        double block = row_sum(x + j0, n, top, beta, NULL);
        if (block > 0) last = j0;
        if (sum + block > u * total) break;
        sum += block;
    }
    int token = last;
    for (int j = last; j < min_int(last + 512, V); j++) {
        double p = exp((double)(x[j] - top) * (double)beta);
        if (p > 0) token = j;
        sum += p;
        if (p > 0 && sum > u * total) break;
    }
    return token;
}

void sample(int *token, float *logp, const real *logits, int R, int V, int ldv, float temperature,
            int top_k, float top_p, const float *uniform) {
    const float beta = temperature > 0 ? 1.0f / temperature : 1.0f;
#pragma omp parallel for
    for (int r = 0; r < R; r++) {
        const float *x = logits + (size_t)r * (size_t)ldv;
        int where;
        float top = row_max(x, V, &where);
        double total = row_sum(x, V, top, beta, NULL);
        if (temperature <= 0 || top_k == 1)
            token[r] = where;
        else if (top_k > 0 || top_p < 1)
            token[r] = sample_restricted(x, V, top, beta, top_k, top_p, (double)uniform[r]);
        else
            token[r] = sample_all(x, V, top, beta, total, (double)uniform[r]);
        if (logp) logp[r] = (float)((double)(x[token[r]] - top) * (double)beta - log(total));
    }
}

/* ---- The optimiser --------------------------------------------------------------------------- */

static double sum_of_squares_of(const float *x, size_t n) {
    enum { PARTS = 1024 };  // fixed, so that the order of the sum does not depend on the threads
    double part[PARTS];
    size_t step = (n / PARTS + 8) / 8 * 8;
#pragma omp parallel for
    for (int i = 0; i < PARTS; i++) {
        size_t from = (size_t)i * step < n ? (size_t)i * step : n,
               to = from + step < n ? from + step : n;
        __m256d a = _mm256_setzero_pd(), b = a;
        for (size_t j = from; j < to; j += 8) {
            __m256 v = load(x + j, to - j < 8 ? (int)(to - j) : 8);
            __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v)),
                    high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
            a = _mm256_fmadd_pd(low, low, a);
            b = _mm256_fmadd_pd(high, high, b);
        }
        double s[4];
        _mm256_storeu_pd(s, _mm256_add_pd(a, b));
        part[i] = (s[0] + s[1]) + (s[2] + s[3]);
    }
    double sum = 0;
    for (int i = 0; i < PARTS; i++) sum += part[i];
    return sum;
}

double sum_of_squares(const float *const *x, const size_t *n, int count) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += sum_of_squares_of(x[i], n[i]);
    return sum;
}

void adamw(real *w, float *master, float *g, float *m, float *v, size_t n, float scale, float lr,
           float beta1, float beta2, float epsilon, float decay, int t) {
    (void)master;  // w is a float
    // m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t); the powers in double, once
    const float m_correct = (float)(1 / (1 - pow((double)beta1, t))),
                v_correct = (float)(1 / (1 - pow((double)beta2, t)));
    const __m256 b1 = _mm256_set1_ps(beta1), c1 = _mm256_set1_ps(1 - beta1),
                 b2 = _mm256_set1_ps(beta2), c2 = _mm256_set1_ps(1 - beta2);
    const __m256 rate = _mm256_set1_ps(lr), mc = _mm256_set1_ps(m_correct),
                 vc = _mm256_set1_ps(v_correct);
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 8) {
        int left = n - i < 8 ? (int)(n - i) : 8;
        __m256 grad = _mm256_mul_ps(load(g + i, left), _mm256_set1_ps(scale)),
               weight = load(w + i, left);
        __m256 m1 = _mm256_fmadd_ps(b1, load(m + i, left), _mm256_mul_ps(c1, grad));
        __m256 v1 =
            _mm256_fmadd_ps(b2, load(v + i, left), _mm256_mul_ps(c2, _mm256_mul_ps(grad, grad)));
        __m256 root = _mm256_add_ps(_mm256_sqrt_ps(_mm256_mul_ps(v1, vc)), _mm256_set1_ps(epsilon));
        __m256 step = _mm256_fmadd_ps(_mm256_set1_ps(decay), weight,
                                      _mm256_div_ps(_mm256_mul_ps(m1, mc), root));
        store(w + i, _mm256_fnmadd_ps(rate, step, weight), left);
        store(m + i, m1, left);
        store(v + i, v1, left);
        store(g + i, _mm256_setzero_ps(), left);
    }
}
