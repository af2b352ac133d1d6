/*
 * bench.c - the speed of kernels, whole training steps, decoding, files and the tokenizer, as a
 * share of what the machine can do.
 *
 *     bench [--threads N] [--only SUBSTRING] [--size 124M|355M|tiny] [--quick]
 *         [--cpu WAY] [--bf16]
 *
 * It runs in the repository's root. `make bench` runs all rows with the kernels of a CPU, `make
 * bench_cuda` with those of a GPU, `make bench_compare` with both, for one table.
 *
 * It prints one tab-separated row per kernel and shape, at GPT-2 124M's size with random weights.
 * Milliseconds mean little by themselves: other programs disturb them, and clocks drift. Compare
 * the shares of the peak that a probe reached in the same process, in turns with the row: probe,
 * kernel, probe, kernel, ..., probe. The first call is never timed: it touches memory for the first
 * time.
 *
 *   ms, rate   of the fastest repetition
 *   best       the rate of the fastest repetition by the fastest probe of this row
 *   median     the median over the repetitions of (rate of the repetition) / (mean rate of the
 *              probes before and after it)
 *   GFLOP/s    the peak: multiply-adds in registers, on all threads; one counts 2. Operands may be
 *              in the cache from the repetition before, unlike those of a whole step. The rows
 *              "step" show the real speed
 *   GB/s       the rate of a stream: read for rows that read, updated in place for rows that read
 *              and write (both count). The probe flushes the caches before every repetition. A row
 *              can exceed it: its output may stay in the caches, if it is small
 *   MB/s       no peak
 *   tokens/s   of a whole program, in turns with the others: compare the ratio
 *
 * On a GPU the first peak is linear_forward's on matrices of 8C x 8C, and the other one is a copy
 * within its memory, read and written. No repetition is shorter than 5 ms there: a faster kernel is
 * called several times in a row, and then finds in the cache what fits into it.
 *
 * Left out: comparisons with other programs, which need those programs. BENCHMARKS.md has them.
 */
#include "files/hf.h"
#include "model/kernels.h"
#include "run/run.h"
#include "rl/choices.h"
#include "rl/constitution.h"
#include "text/dataset.h"
#include "text/template.h"
#include "util.h"

#include <dirent.h>
#include <immintrin.h>
#include <omp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct {
    const char *name;
    int T, V, L, NH, C;
} sizes[] = {{"124M", 1024, 50257, 12, 12, 768},
             {"355M", 1024, 50257, 24, 16, 1024},
             {"tiny", 256, 512, 3, 4, 128}};
static int T, V, LDV, L, NH, C, F;  // --size
static double parameters;
static GPT2Config config_of_size;

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))
static const char *only = "";      // --only
static bool quick;                 // --quick
static const char *size = "124M";  // --size
static const char *way = "auto";   // --cpu
static bool bf16;                  // --bf16
static bool gpu;

/* ---- arrays ---------------------------------------------------------------------------------- */

static struct {
    void *p;
    size_t bytes;
    bool on_host;
} arrays[24];
static int array_count;

static void *keep(void *p, size_t bytes, bool on_host) {
    if (!p || array_count == LENGTH(arrays))
        die("no room for an array of %zu bytes on %s", bytes, on_host ? "the host" : device_name());
    arrays[array_count].p = p;
    arrays[array_count].on_host = on_host;
    arrays[array_count++].bytes = bytes;
    return p;
}

/* Memory of the device and of the host, until arrays_free(). */
static void *array(size_t bytes) { return keep(device_alloc(bytes), bytes, false); }
static void *host_array(size_t bytes) { return keep(calloc(1, bytes), bytes, true); }

static void arrays_free(void) {
    while (array_count > 0) {
        array_count--;
        if (arrays[array_count].on_host)
            free(arrays[array_count].p);
        else
            device_free(arrays[array_count].p, arrays[array_count].bytes);
    }
}

/* x (n), in pieces through the host: uniform in [-0.1, 0.1), of the size of activations; or, as
 * second moments, the squares of that. */
static void fill(void *x, size_t n, bool reals, bool squares) {
    enum { PIECE = 1 << 22 };
    float *piece = xmalloc(sizeof *piece * (n < PIECE ? n : PIECE));
    for (size_t done = 0, part; done < n; done += part) {
        part = n - done < PIECE ? n - done : PIECE;
#pragma omp parallel for
        for (size_t i = 0; i < part; i++) {
            const float u = 0.2f * random_uniform((uint32_t)(done + i) * 2654435761u) - 0.1f;
            piece[i] = squares ? u * u : u;
        }
        if (reals)
            real_write((real *)x + done, piece, part);
        else
            device_write((float *)x + done, piece, sizeof *piece * part);
    }
    free(piece);
}

static real *random_reals(size_t n) {
    real *x = array(n * sizeof *x);
    return fill(x, n, true, false), x;
}

static float *random_floats(size_t n) {
    float *x = array(n * sizeof *x);
    return fill(x, n, false, false), x;
}

/* n ints, uniform in [0, below), on the host. */
static int *random_ints(int n, int below) {
    int *p = host_array((size_t)n * sizeof *p);
    for (int i = 0; i < n; i++)
        p[i] = (int)(random4(1, RANDOM_DATA, 0, 0, 0, (uint32_t)i).v[0] % (uint32_t)below);
    return p;
}

/* Where each of S sequences of `length` tokens starts, and the last ends, on the host. */
static int *starts(int S, int length) {
    int *p = host_array(sizeof *p * ((size_t)S + 1));
    for (int s = 0; s <= S; s++) p[s] = s * length;
    return p;
}

static int *on_device(const int *ints, int n) {
    int *p = array(sizeof *p * (size_t)n);
    return device_write(p, ints, sizeof *p * (size_t)n), p;
}

/* Waits until the device has done all that it was asked to. */
static void wait_for_device(void) {
    static real *any;
    float x;
    if (!any && !(any = device_alloc(sizeof *any))) die("no room on %s", device_name());
    real_read(&x, any, 1);
}

/* ---- probes: a fixed amount of work, shared out in pieces so that a disturbed thread does less of
 * it  */

enum {
    PIECES = 256,
    FMA_STEPS = 50000,
    STREAM_PIECE = 1 << 19
};  // floats: 256 pieces of 2 MB, far more than any L3
typedef enum { FMA, READ, UPDATE, NOTHING } Peak;
static struct {
    const char *name, *unit;
    double per_unit, work;
} peaks[] = {
    [FMA] = {"probe multiply-add", "GFLOP/s", 1e9, 2.0 * 12 * 8 * FMA_STEPS *PIECES},
    [READ] = {"probe read", "GB/s", 1e9, sizeof(float) * (double)STREAM_PIECE *PIECES},
    [UPDATE] = {"probe update", "GB/s", 1e9, 2 * sizeof(float) * (double)STREAM_PIECE *PIECES},
    [NOTHING] = {"", "MB/s", 1e6, 0},
};
static float *stream;        // (PIECES, STREAM_PIECE)
static volatile float sink;  // takes results that would otherwise not be computed

/* Twelve chains of multiply-adds: more than latency (4-5) times units (2) needs. One for each way
   to compute: 8 lanes, 16 lanes, and 16 lanes of two products of bf16. */
#define FMA_PIECE(name, extensions, vector, set, step)                                             \
    __attribute__((target(extensions))) static void name(void) {                                   \
        vector chain[12], x = set(0.999f), y = set(0.001f);                                        \
        for (int i = 0; i < 12; i++) chain[i] = set((float)i);                                     \
        for (int k = 0; k < FMA_STEPS; k++) {                                                      \
            _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) chain[i] = step(chain[i], x, y); \
        }                                                                                          \
        for (int i = 1; i < 12; i++) chain[0] = chain[0] + chain[i];                               \
        sink = chain[0][0];                                                                        \
    }
#define BF16_STEP(c, x, y) _mm512_dpbf16_ps(c, (__m512bh)(x), (__m512bh)(y))
FMA_PIECE(fma_piece_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps)
FMA_PIECE(fma_piece_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps)
FMA_PIECE(fma_piece_bf16, "avx512bf16,avx512f", __m512, _mm512_set1_ps, BF16_STEP)
static void (*fma_piece)(void) = fma_piece_avx2;

static double seconds_of(void (*piece)(void)) {
    piece();
    const double start = now_seconds();
    piece();
    return now_seconds() - start;
}

/* The multiply-adds of the way in use: the peak is that of its fastest instruction. A VDPBF16PS
   does the work of two multiply-adds, but on some CPUs takes more than twice their time. */
static void choose_peak(void) {
    const bool wide = strstr(device_name(), "AVX-512") != NULL,
               pairs = bf16 && strstr(device_name(), "AVX-512 with bf16") &&
                       seconds_of(fma_piece_bf16) < 2 * seconds_of(fma_piece_avx512);
    if (wide) fma_piece = fma_piece_avx512;
    if (pairs) fma_piece = fma_piece_bf16;
    peaks[FMA].work *= pairs ? 4 : wide ? 2 : 1;
}

__attribute__((target("avx2"))) static void read_piece(const float *p) {
    __m256 any = _mm256_setzero_ps();
    for (int j = 0; j < STREAM_PIECE; j += 8) any = _mm256_or_ps(any, _mm256_load_ps(p + j));
    sink = _mm256_cvtss_f32(any);
}

/* In place: a store elsewhere costs a reading of the line as well, or, past the caches, came out a
 * quarter slower than this. */
__attribute__((target("avx2"))) static void update_piece(float *p) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int j = 0; j < STREAM_PIECE; j += 8)
        _mm256_store_ps(p + j, _mm256_xor_ps(_mm256_load_ps(p + j), sign));
}

/* What takes so many seconds is done so often, so that it takes 5 ms. */
static int times(double seconds) { return (int)fmin(1000, fmax(1, ceil(5e-3 / seconds))); }

/* The seconds that a GPU needs for so many large products, or copies from one half of the stream to
 * the other. */
static double device_seconds(Peak peak, int often) {
    static real *x, *y, *weight;
    const int width = 8 * C;
    const size_t matrix = (size_t)width * (size_t)width,
                 half = sizeof(float) * STREAM_PIECE * PIECES / 2;
    if (peak == FMA && !x) {
        x = device_alloc(matrix * sizeof *x);
        y = device_alloc(matrix * sizeof *y);
        weight = device_alloc(matrix * sizeof *weight);
        if (!x || !y || !weight)
            die("no room for three matrices of %d x %d on %s", width, width, device_name());
        fill(x, matrix, true, false);
        fill(weight, matrix, true, false);
    }
    wait_for_device();
    const double start = now_seconds();
    for (int i = 0; i < often; i++)
        if (peak == FMA)
            linear_forward(y, x, weight, NULL, width, width, width);
        else
            device_copy((char *)stream + half, stream, half);
    wait_for_device();
    return now_seconds() - start;
}

static double device_probe(Peak peak) {
    static int often[NOTHING];
    if (!often[peak]) {
        device_seconds(peak, 1);
        often[peak] = times(device_seconds(peak, 1));
    }  // the first prepares it
    return peaks[peak].work * often[peak] / device_seconds(peak, often[peak]);
}

/* FLOP or bytes a second. */
static double probe(Peak peak) {
    const size_t bytes = sizeof(float) * STREAM_PIECE * PIECES;
    if (peak == NOTHING) return 1;
    if (peak != FMA && !stream) {
        if (!(stream = device_alloc(bytes)))
            die("no room for the %zu MB of the memory probes", bytes >> 20);
        fill(stream, bytes / sizeof(float), false,
             false);  // lines of zeros can be cheaper than others
    }
    if (gpu) return device_probe(peak);
    double start = now_seconds();
#pragma omp parallel for schedule(monotonic : dynamic, 1)
    for (int i = 0; i < PIECES; i++)
        if (peak == FMA)
            fma_piece();
        else if (peak == READ)
            read_piece(stream + (size_t)i * STREAM_PIECE);
        else
            update_piece(stream + (size_t)i * STREAM_PIECE);
    return peaks[peak].work / (now_seconds() - start);
}

/* ---- one row:  SHAPE(...);  ROW(name, peak, work) statement; --------------------------------- */

enum { MOST = 40 };  // repetitions of a row
static char shape[64];
static struct {
    const char *name;
    Peak peak;
    double work;  // FLOP or bytes of one repetition
    int tokens;   // of one repetition, to print tokens/s; 0 = do not
    bool memory;  // print the most memory this process has had
    bool active;
    bool once;               // the statement runs once a repetition, however fast it is
    int calls, repetitions;  // repetitions begun so far; those to time
    int often, left;         // how often it runs in a repetition; still to run in this one
    double start, stop;      // of the current repetition; stop 0: when again() is called
    double seconds[MOST], peaks[MOST + 1];
} row;
static struct {
    double work, best, median;
} total;  // of the rows since it was cleared: work, and work / share of the peak

#define SHAPE(...) snprintf(shape, sizeof shape, __VA_ARGS__)
#define ROW(name, peak, work) for (begin(name, peak, work); again();)

static bool wanted(const char *name) {
    char both[160];
    snprintf(both, sizeof both, "%s %s", name, shape);
    return strstr(both, only) != NULL;
}

static void begin(const char *name, Peak peak, double work) {
    memset(&row, 0, sizeof row);
    row.name = name;
    row.peak = peak;
    row.work = work;
    row.active = wanted(name);
    row.often = 1;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts x (n); its median. */
static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, ascending);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

/* What a file of the system says after a key; out is left alone where it does not. */
static void look_up(const char *path, const char *key, const char *format, void *out) {
    Str text = {0};
    const char *found = read_file(path, 1 << 24, &text, NULL) ? NULL : strstr(text.s, key);
    if (found) sscanf(found + strlen(key), format, out);
    free(text.s);
}

static void print_row(void) {
    const int n = row.repetitions;
    double share[MOST], best_peak = 0;
    for (int i = 0; i <= n; i++) best_peak = fmax(best_peak, row.peaks[i]);
    for (int i = 0; i < n; i++)
        share[i] = row.work / row.seconds[i] / ((row.peaks[i] + row.peaks[i + 1]) / 2);
    double middle = median(share, n), middle_seconds = median(row.seconds, n),
           least = row.seconds[0];  // the first, now that they are sorted
    double best = row.work / least / best_peak;
    total.work += row.work;
    total.best += row.work / best;
    total.median += row.work / middle;
    printf("%s\t%s\t%.*f\t%.1f\t%s\t", row.name, shape, least < 1e-3 ? 4 : 2, 1e3 * least,
           row.work / least / peaks[row.peak].per_unit, peaks[row.peak].unit);
    if (row.peak == NOTHING)
        printf("-\t-\t");
    else
        printf("%.1f\t%.1f\t", 100 * best, 100 * middle);
    if (row.tokens)
        printf("%.1f tokens/s, median %.1f", row.tokens / least, row.tokens / middle_seconds);
    if (row.memory) printf(", at most %.3f GB", (double)device_memory_peak() / 1e9);
    putchar('\n');
}

/* True: run the statement once more. Times it between two calls, or up to stop(). The first
   repetition is not timed, nor on a GPU the second, which finds how often the others run it. */
static bool again(void) {
    if (!row.active) return false;
    if (row.left > 0) return row.left--, true;
    if (row.stop == 0) wait_for_device();
    const double seconds = ((row.stop > 0 ? row.stop : now_seconds()) - row.start) / row.often;
    const int done =
        row.calls++ - (gpu ? 3 : 2);  // timed so far; -1: the last one that is not has been done
    if (done == -1) {
        if (gpu && !row.once) row.often = times(seconds);
        row.repetitions =
            (int)fmin(MOST, fmax(quick ? 2 : 5, (quick ? 0.1 : 0.8) / (seconds * row.often)));
    }
    if (done >= 0) row.seconds[done] = seconds;
    if (done >= -1) row.peaks[done + 1] = probe(row.peak);
    if (done >= 0 && done + 1 == row.repetitions) return print_row(), row.active = false;
    row.stop = 0;
    row.left = row.often - 1;
    row.start = now_seconds();
    return true;
}

static void stop(void) {
    wait_for_device();
    row.stop = now_seconds();
    row.once = true;
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* Each against itself: how steady the machine is. */
static void bench_probes(void) {
    for (Peak peak = FMA; peak <= UPDATE; peak++) {
        SHAPE("%.0f M%s", peaks[peak].work / 1e6, peak == FMA ? "FLOP" : "B");
        if (gpu && peak == READ) continue;  // the copy, which is UPDATE's
        ROW(peaks[peak].name, peak, peaks[peak].work) {
            if (gpu)
                device_seconds(peak, 1);
            else
                probe(peak);
        }
    }
}

/* The three products of each linear layer: 2 N IC OC. In a step each of them runs once in each of
   the L layers, so that the total is all their work by the time each of them would take at its own
   share of one peak. */
static void bench_linear(void) {
    const int shapes[][2] = {{C, 3 * C}, {C, C}, {C, F}, {F, C}}, tokens[] = {64, 256, 1024, 16384};
    for (int t = 0; t < (gpu ? 4 : 3); t++) {
        memset(&total, 0, sizeof total);
        for (int s = 0; s < LENGTH(shapes); s++) {
            const int N = tokens[t], IC = shapes[s][0], OC = shapes[s][1];
            const double flop = 2.0 * N * IC * OC;
            const size_t in = (size_t)N * (size_t)IC, out = (size_t)N * (size_t)OC,
                         matrix = (size_t)IC * (size_t)OC;
            real *x = random_reals(in), *y = random_reals(out), *weight = random_reals(matrix),
                 *bias = random_reals((size_t)OC), *dx = random_reals(in);
            float *dweight = random_floats(matrix), *dbias = random_floats((size_t)OC);
            SHAPE("%dx%dx%d", N, IC, OC);
            ROW("linear forward", FMA, flop) linear_forward(y, x, weight, bias, N, IC, OC);
            ROW("linear backward input", FMA, flop) linear_backward_input(dx, y, weight, N, IC, OC);
            ROW("linear backward weight", FMA, flop)
            linear_backward_weight(dweight, dbias, x, y, N, IC, OC);
            arrays_free();
        }
        double work = 100 * total.work;
        if (work > 0)
            printf("linear, all of these\t%d tokens\t\t\t\t%.1f\t%.1f\t\n", tokens[t],
                   work / total.best, work / total.median);
    }
}

enum { HEAD_ROWS = 1024 };

/* The loss head: products of 2 R C V FLOP; then over the logits, which logprob and sampling read
   (once; a second reading does not count) and logprob's backward pass reads and writes. */
static void bench_head(int R) {
    enum { ROWS = 32 };
    const struct {
        int rows, top_k;
        float top_p;
    } samplers[] = {{1, 0, 1}, {ROWS, 0, 1}, {ROWS, 50, 1}, {ROWS, 0, 0.9f}};
    const double flop = 2.0 * R * C * V, bytes = (double)sizeof(real) * R * V;
    const size_t n = (size_t)R;
    real *logits = random_reals(n * (size_t)LDV), *inp = random_reals(n * (size_t)C),
         *wte = random_reals((size_t)V * (size_t)C);
    float *dwte = random_floats((size_t)V * (size_t)C), *logp = random_floats(n),
          *lse = random_floats(n), *entropy = random_floats(n), *uniform = random_floats(ROWS),
          host_uniform[ROWS];
    int *target = on_device(random_ints(R, V), R), drawn[ROWS];
    for (int r = 0; r < ROWS; r++) host_uniform[r] = ((float)r + 0.5f) / ROWS;
    device_write(uniform, host_uniform, sizeof host_uniform);
    SHAPE("%dx%dx%d", R, C, V);
    ROW("head forward", FMA, flop) head_forward(logits, inp, wte, R, C, V, LDV);
    ROW("head backward input", FMA, flop) head_backward(inp, NULL, logits, NULL, wte, R, C, V, LDV);
    ROW("head backward weight", FMA, flop)
    head_backward(NULL, dwte, logits, inp, wte, R, C, V, LDV);
    SHAPE("%dx%d", R, V);
    ROW("logprob forward", READ, bytes)
    logprob_forward(logp, NULL, lse, NULL, logits, target, 1, R, V, LDV);
    ROW("logprob forward, entropy", READ, bytes)
    logprob_forward(logp, entropy, lse, NULL, logits, target, 1, R, V, LDV);
    ROW("logprob backward", UPDATE, 2 * bytes)
    logprob_backward(logits, lse, NULL, target, logp, NULL, 1, R, V, LDV);
    for (int i = 0; i < LENGTH(samplers) && R == HEAD_ROWS; i++) {
        const int rows = samplers[i].rows, top_k = samplers[i].top_k;
        SHAPE("%dx%d top_k %d top_p %g", rows, V, top_k, (double)samplers[i].top_p);
        ROW("sample", READ, (double)sizeof(real) * rows * V)
        sample(drawn, NULL, logits, rows, V, LDV, 1, top_k, samplers[i].top_p, uniform);
    }
    arrays_free();
}

static void bench_heads(void) {
    bench_head(HEAD_ROWS);
    if (gpu) bench_head(8 * HEAD_ROWS);
}

/* FLOP of causal attention's forward pass in one layer: q k^T and p v, each 2 C a pair of query and
   key, T (T+1) / 2 pairs a sequence. The backward pass has five such products and so counts 2.5
   times that. */
static double attention_flop(int S, int length) {
    return 2.0 * 2 * C * S * length * (length + 1) / 2;
}

static void bench_attention(void) {
    const int shapes[][2] = {{16, 64}, {4, 256}, {2, 512}, {1, 1024}, {64, 256}, {16, 1024}};
    for (int i = 0; i < (gpu ? 6 : 4); i++) {
        const int S = shapes[i][0], length = shapes[i][1],
                  *start = on_device(starts(S, length), S + 1);
        const size_t N = (size_t)(S * length), NC = N * (size_t)C;
        real *qkv = random_reals(3 * NC), *dqkv = random_reals(3 * NC), *out = random_reals(NC),
             *dout = random_reals(NC);
        float *lse = random_floats(N * (size_t)NH);
        SHAPE("%dx%d", S, length);
        ROW("attention forward", FMA, attention_flop(S, length))
        attention_forward(out, lse, qkv, start, NULL, S * length, S, NH, C / NH, (Noise){0});
        attention_forward(out, lse, qkv, start, NULL, S * length, S, NH, C / NH,
                          (Noise){0});  // backward needs it even where that row was not wanted
        ROW("attention backward", FMA, 2.5 * attention_flop(S, length))
        attention_backward(dqkv, dout, qkv, out, lse, start, NULL, S * length, S, NH, C / NH,
                           (Noise){0});
        arrays_free();
    }
}

/* What is bound by memory. Bytes: those of every number read and every number written, each once.
 */
static void bench_memory_bound(int N) {
    const size_t NC = (size_t)N * (size_t)C, NF = (size_t)N * (size_t)F;
    real *x = random_reals(NF), *y = random_reals(NF), *z = random_reals(NC), *w = random_reals(NC),
         *weight = random_reals((size_t)C), *bias = random_reals((size_t)C);
    real *wte = random_reals((size_t)V * (size_t)C), *wpe = random_reals((size_t)T * (size_t)C);
    float *dwte = random_floats((size_t)V * (size_t)C),
          *dwpe = random_floats((size_t)T * (size_t)C), *dweight = random_floats((size_t)C),
          *dbias = random_floats((size_t)C);
    float *mean = random_floats((size_t)N), *rstd = random_floats((size_t)N);
    int *token = on_device(random_ints(N, V), N), *position = on_device(random_ints(N, T), N);
    const double reals = (double)sizeof(real) * (double)NC,
                 floats = (double)sizeof(float) * (double)NC;
    SHAPE("%dx%d", N, C);  // reads x, y and writes sum, out;  reads dout, sum, dsum and writes dsum
    ROW("layernorm forward", UPDATE, 4 * reals)
    layernorm_forward(x, y, mean, rstd, z, w, weight, bias, N, C, 1e-5f);
    ROW("layernorm backward", UPDATE, 4 * reals)
    layernorm_backward(x, dweight, dbias, y, z, mean, rstd, weight, N, C);
    // (same shape)         reads rows of wte, wpe and writes out;  reads dout, reads and writes
    // rows of dwte, dwpe
    ROW("embed forward", UPDATE, 3 * reals) embed_forward(x, token, position, wte, wpe, N, C);
    ROW("embed backward", UPDATE, reals + 4 * floats)
    embed_backward(dwte, dwpe, x, token, position, N, C);
    SHAPE("%dx%d", N, F);  // reads inp and writes out;  reads and writes dout, inp
    ROW("gelu forward", UPDATE, 2.0 * sizeof(real) * (double)NF) gelu_forward(x, y, NF);
    ROW("gelu backward", UPDATE, 4.0 * sizeof(real) * (double)NF) gelu_backward(x, y, NF);
    real *fc = random_reals((size_t)C * (size_t)F), *fc_bias = random_reals((size_t)F);
    // compare with "linear forward" of that shape plus "gelu forward"
    SHAPE("%dx%dx%d", N, C, F);
    ROW("linear gelu forward", FMA, 2.0 * N * C * F)
    linear_gelu_forward(x, y, z, fc, fc_bias, N, C, F);
    arrays_free();
}

/* On as many numbers as wte has. sum_of_squares reads them; AdamW reads and writes g, m, v and w,
 * or else master, and then writes w. */
static void bench_optimiser(void) {
    const size_t n = (size_t)V * (size_t)C;
    const bool masters = sizeof(real) < sizeof(float);
    real *w = random_reals(n);
    float *g = random_floats(n), *m = random_floats(n), *v = array(n * sizeof *v),
          *master = masters ? random_floats(n) : NULL;
    fill(v, n, false, true);
    SHAPE("%zu", n);
    ROW("sum_of_squares", READ, (double)sizeof *g * (double)n)
    sink = (float)sum_of_squares(&(const float *){g}, &n, 1);
    ROW("adamw", UPDATE, (double)(8 * sizeof *g + (masters ? sizeof *w : 0)) * (double)n) {
        adamw(&(Stepped){w, master, g, m, v, n, 0.1f}, 1, 1, 1e-5f, 0.9f, 0.95f, 1e-8f, 10);
        stop();
        fill(g, n, false, false);
    }  // g was zeroed
    arrays_free();
}

static void bench_elementwise(void) {
    bench_memory_bound(1024);
    if (gpu) bench_memory_bound(16384);
    bench_optimiser();
}

/* ---- whole steps: forward, log-probability of every row, backward, AdamW --------------------- */

static GPT2 *random_model(const GPT2Limits *limits) {
    GPT2 *m = gpt2_create(&config_of_size, false);
    gpt2_init_weights(m, 1);
    if (limits) gpt2_reserve(m, limits);
    return m;
}

/* S sequences of `length` random tokens each. */
static Batch random_batch(int S, int length) {
    return (Batch){
        .S = S, .N = S * length, .start = starts(S, length), .tokens = random_ints(S * length, V)};
}

static const struct {
    int S, length;
    bool checkpointing;
    const char *note;
} steps[] = {{4, 256, false, ""},
             {4, 256, true, " checkpointing"},
             {2, 512, false, ""},
             {4, 64, false, ""},
             {1, 1024, false, ""},
             {16, 1024, false, ""},
             {16, 1024, true, " checkpointing"}};
enum { STEPS_OF_CPU = 5 };

/* FLOP = 6 x parameters x tokens + 3.5 x attention's forward pass in every layer. All parameters
   count: those of wpe, the norms and the biases, which multiply little, are 0.7 % of them. What
   gradient checkpointing computes again does not count. */
static void bench_step(int i) {
    const int S = steps[i].S, length = steps[i].length, N = S * length;
    const AdamW o = {.learning_rate = 1e-5f,
                     .beta1 = 0.9f,
                     .beta2 = 0.95f,
                     .epsilon = 1e-8f,
                     .weight_decay = 0.1f,
                     .max_grad_norm = 1};
    const GPT2Limits limits = {.tokens = N,
                               .sequences = S,
                               .scored = N,
                               .train = true,
                               .bf16 = bf16 && !gpu,
                               .gradient_checkpointing = steps[i].checkpointing};
    GPT2 *m = random_model(&limits);
    const Batch b = random_batch(S, length);
    const int *target = random_ints(N, V);
    float *logp = host_array(sizeof(float) * (size_t)N),
          *dlogp = host_array(sizeof(float) * (size_t)N);
    for (int j = 0; j < N; j++) dlogp[j] = -1.0f / (float)N;
    SHAPE("%dx%d%s", S, length, steps[i].note);
    begin("step", FMA, 6.0 * parameters * N + 3.5 * attention_flop(S, length) * L);
    row.tokens = N;
    row.memory = true;
    for (int t = 1; again(); t++) {
        gpt2_forward(m, &b, NULL);
        gpt2_logprob(m, target, 1, logp, NULL, NULL);
        gpt2_backward(m, dlogp, NULL, NULL);
        if (!isfinite(gpt2_step(m, &o, t))) die("step %s: the gradient is not finite", shape);
    }
    gpt2_free(m);
    arrays_free();
}

/* A part of this program in a process of its own, so that the most memory it has had is that
 * part's. */
static void in_a_process(const char *part, int which) {
    char number[16], threads[16];
    snprintf(number, sizeof number, "%d", which);
    snprintf(threads, sizeof threads, "%d", omp_get_max_threads());
    int status, child = fork();
    if (child == 0)
        execl("/proc/self/exe", "bench", "--threads", threads, "--size", size, "--only", only,
              "--cpu", way, part, number,
              bf16    ? "--bf16"
              : quick ? "--quick"
                      : NULL,
              bf16 && quick ? "--quick" : NULL, NULL);
    if (child <= 0) die("cannot run this program anew: %s", strerror(errno));
    if (waitpid(child, &status, 0) < 0 || status) die("%s failed", shape);
}

static void bench_steps(void) {
    for (int i = 0; i < (gpu ? LENGTH(steps) : STEPS_OF_CPU); i++) {
        SHAPE("%dx%d%s", steps[i].S, steps[i].length, steps[i].note);
        if (wanted("step") && steps[i].length <= T) in_a_process("--step", i);
    }
}

/* ---- pairs ----------------------------------------------------------------------------------- */

/* A step of reward.c: two pairs with prompts of 448 tokens and answers of 64. Laid out whole, each
   answer has its prompt before it; shared, the prompt is there once. Both rows count the FLOP of
   the pairs laid out whole, without a vocabulary's head (no reward has one), so the rates of the
   two show how much faster the same result is there. */
static void bench_pairs(void) {
    enum { PAIRS = 2, PROMPT = 448, ANSWER = 64, WHOLE = PROMPT + ANSWER };
    const AdamW o = {.learning_rate = 1e-5f,
                     .beta1 = 0.9f,
                     .beta2 = 0.95f,
                     .epsilon = 1e-8f,
                     .weight_decay = 0.1f,
                     .max_grad_norm = 1};
    GPT2Config config = config_of_size;
    config.head = SCORE_HEAD;
    for (int shared = 0; shared < 2; shared++) {
        const int S = (shared ? 3 : 2) * PAIRS,
                  N = PAIRS * (shared ? PROMPT + 2 * ANSWER : 2 * WHOLE);
        SHAPE("%dx2x%d+%d %s", PAIRS, PROMPT, ANSWER, shared ? "shared" : "whole");
        if (!wanted("pairs") || WHOLE > T) continue;
        GPT2 *m = gpt2_create(&config, false);
        gpt2_init_weights(m, 1);
        gpt2_reserve(m, &(GPT2Limits){.tokens = N, .sequences = S, .train = true});
        int *start = host_array(sizeof *start * ((size_t)S + 1)),
            *parent = host_array(sizeof *parent * (size_t)S);
        float *value = host_array(sizeof(float) * (size_t)N),
              *dvalue = host_array(sizeof(float) * (size_t)N);
        start[0] = 0;
        for (int s = 0; s < S; s++) {
            bool answer = shared && s % 3;
            parent[s] = answer ? s - s % 3 : -1;
            start[s + 1] = start[s] + (!shared ? WHOLE : answer ? ANSWER : PROMPT);
            if (!shared || answer) dvalue[start[s + 1] - 1] = 0.25f;
        }
        const Batch b = {
            .S = S, .N = N, .start = start, .tokens = random_ints(N, V), .parent = parent};
        begin("pairs", FMA,
              6.0 * 12 * C * C * L * (2 * PAIRS * WHOLE) +
                  3.5 * attention_flop(2 * PAIRS, WHOLE) * L);
        row.tokens = 2 * PAIRS * WHOLE;
        for (int t = 1; again(); t++) {
            gpt2_forward(m, &b, NULL);
            gpt2_value(m, value);
            gpt2_backward(m, NULL, NULL, dvalue);
            if (!isfinite(gpt2_step(m, &o, t))) die("pairs %s: the gradient is not finite", shape);
        }
        gpt2_free(m);
        arrays_free();
    }
}

/* ---- decoding -------------------------------------------------------------------------------- */

/* A round, one token of every sequence, ends with the last sequence's. The time between two rounds
   is one repetition; the first round, which has read the prompts, starts the repetition that is not
   timed. */
static void round_ends(void *last, int sequence, int token) {
    (void)token;
    if (sequence == *(const int *)last) again();
}

/* Prompts of 64 tokens, 64 new tokens each. Prefill: 2 FLOP for each number of the layers' matrices
   and each token, the head on the last row of each sequence, attention. Decoding: every round reads
   each matrix once, wte (as the head) among them, and so many bytes count; with one sequence the
   percentage is that of what memory bandwidth allows. */
static void bench_decode(void) {
    enum { EACH = 64 };
    const int sequences[] = {1, 4, 16, 32, 64, 256}, shapes = gpu ? 6 : 5,
              most = sequences[shapes - 1];
    const GPT2Limits limits = {.tokens = most * EACH,
                               .sequences = most,
                               .slots = most,
                               .positions = 2 * EACH,
                               .bf16 = bf16 && !gpu};
    const double layers = L * (4.0 * C * C + 2.0 * C * F), head = (double)V * C;
    GPT2 *m = NULL;
    for (int i = 0; i < shapes; i++) {
        const int S = sequences[i], last = S - 1;
        Sampler sampler = {.temperature = 1, .top_p = 1, .max_new_tokens = 1, .stop_token = -1};
        SHAPE("%dx%d", S, EACH);
        if (!wanted("prefill") && !wanted("decode")) continue;
        if (!m) m = random_model(&limits);
        const Batch prompts = random_batch(S, EACH);
        Generation out;
        begin("prefill", FMA, 2 * (layers * EACH + head) * S + attention_flop(S, EACH) * L);
        row.tokens = prompts.N;
        while (again()) {
            gpt2_generate(m, &prompts, &sampler, &out, NULL, NULL);
            generation_free(&out);
        }
        begin("decode", READ, (double)(bf16 ? sizeof(uint16_t) : sizeof(real)) * (layers + head));
        row.tokens = S;
        row.once = true;
        sampler.max_new_tokens = EACH;
        if (row.active) {
            gpt2_generate(m, &prompts, &sampler, &out, round_ends, (void *)&last);
            generation_free(&out);
        }
        arrays_free();
    }
    gpt2_free(m);
}

/* ---- one iteration of PPO -------------------------------------------------------------------- */

/* ppo.c and what it is written with, every call of the model timed. The rest is host code. */
static double in_model;
#define IN_MODEL(call)                     \
    ({                                     \
        double began = now_seconds();      \
        call;                              \
        in_model += now_seconds() - began; \
    })
#define IN_MODEL_VALUE(call)               \
    ({                                     \
        double began = now_seconds();      \
        __auto_type value_of_call = call;  \
        in_model += now_seconds() - began; \
        value_of_call;                     \
    })
#define gpt2_forward(...) IN_MODEL(gpt2_forward(__VA_ARGS__))
#define gpt2_recall(...) IN_MODEL(gpt2_recall(__VA_ARGS__))
#define gpt2_logprob(...) IN_MODEL(gpt2_logprob(__VA_ARGS__))
#define gpt2_value(...) IN_MODEL(gpt2_value(__VA_ARGS__))
#define gpt2_kl(...) IN_MODEL(gpt2_kl(__VA_ARGS__))
#define gpt2_backward(...) IN_MODEL(gpt2_backward(__VA_ARGS__))
#define gpt2_generate(...) IN_MODEL(gpt2_generate(__VA_ARGS__))
#define gpt2_step(...) IN_MODEL_VALUE(gpt2_step(__VA_ARGS__))
#define main program_main  // this file has its own
#include "../../ppo.c"
#undef main
#include "rl/rollouts.c"
#undef gpt2_forward
#undef gpt2_recall
#undef gpt2_logprob
#undef gpt2_value
#undef gpt2_kl
#undef gpt2_backward
#undef gpt2_generate
#undef gpt2_step

/* A row of a single repetition, without the one that is not timed: an iteration is long enough. */
static void begin_once(const char *name, double work) {
    begin(name, FMA, work);
    row.calls = gpu ? 3 : 2;
    row.repetitions = 1;
    row.peaks[0] = probe(FMA);
    row.start = now_seconds();
}

static GPT2 *random_scores(const GPT2Limits *limits) {
    GPT2Config config = config_of_size;
    config.head = SCORE_HEAD;
    GPT2 *m = gpt2_create(&config, false);
    gpt2_init_weights(m, 2);
    float w[C];
    for (int c = 0; c < C; c++)
        w[c] = 0.02f * random_normal((uint32_t)c * 2654435761u, (uint32_t)c * 40503u);
    gpt2_write(m, gpt2_own_tensors(m) - 1, GPT2_WEIGHT, 0, C, w);
    gpt2_reserve(m, limits);
    return m;
}

/* 32 prompts of 64 tokens, answers of 48, 4 epochs of one minibatch, 8 sequences at a time; policy,
   reference, reward model and critic of 124M each. FLOP: 2 x the layers' matrices a row and 2 x wte
   a scored row, for each forward pass, and twice that for each backward; attention, a few percent,
   is not counted. Rollouts read 112 rows an answer and draw from 48. */
static void bench_iteration(void) {
    enum {
        S = 32,
        PROMPT = 64,
        ANSWER = 48,
        ALL = PROMPT + ANSWER,
        B = 8,
        N = S * (ALL - 1),
        R = S * ANSWER
    };
    const double layers = 2.0 * L * (4.0 * C * C + 2.0 * C * F), head = 2.0 * V * C,
                 policy_pass = layers * N + head * R, critic_pass = layers * N;
    static Run run;
    Error e;
    char *argv[] = {"ppo", "--model=m", "--data=d", NULL};
    if (run_parse(&run, &program, 3, argv, &e)) die("%s", e.text);
    run.per_device_train_batch_size = B;
    run.total_steps = 10;
    task.batch_size = task.prompts = S;
    task.response_length = ANSWER;
    int line[S], start[S + 1], *tokens = random_ints(S * PROMPT, V);
    for (int i = 0; i <= S; i++) start[i] = i * PROMPT;
    for (int i = 0; i < S; i++) line[i] = i + 1;
    task.train =
        (Queries){.n = S, .longest = PROMPT, .line = line, .start = start, .tokens = tokens};
    task.beta = 0.05;
    // only its end of text is used
    if (!(run.tokenizer = tokenizer_load(example_file("tiny"), &e))) die("%s", e.text);
    GPT2Limits limits = {.tokens = B * ALL,
                         .sequences = B + B / 2,
                         .scored = B * ANSWER,
                         .bf16 = bf16 && !gpu},
               scores = limits, critic, policy;
    scores.scored = 0;
    critic = scores;
    critic.train = true;
    policy = limits;
    policy.train = true;
    policy.slots = S;
    policy.positions = ALL;
    policy.kept = R;
    GPT2Config config = config_of_size;
    double planned =
        (double)(gpt2_memory(&config, &policy).total + gpt2_memory(&config, &limits).total);
    config.head = SCORE_HEAD;
    planned += (double)(gpt2_memory(&config, &scores).total + gpt2_memory(&config, &critic).total);
    task.policy = random_model(&policy);
    task.reference = random_model(&limits);
    task.critic = random_scores(&critic);
    task.judge = (Judge){.model = random_scores(&scores), .tokenizer = run.tokenizer};
    task.r = rollouts_new(S, PROMPT, ANSWER);
    task.rows = rows_new(limits.sequences, B * ALL);
    Rollouts *r = &task.r;
    SHAPE("%dx%d+%d", S, PROMPT, ANSWER);
    rollout_task_choose(&task, &run);
    begin("rollout", FMA, layers * S * ALL + head * R);
    row.tokens = R;
    while (again()) rollout_task_sample(&task, &run, chat.temperature);
    if (wanted("ppo iteration")) {
        double t[4];
        begin_once("ppo iteration", layers * S * ALL + head * R + 2 * policy_pass +
                                        2 * critic_pass + 4 * 3 * (policy_pass + critic_pass));
        row.tokens = R;
        row.memory = true;
        in_model = 0;
        t[0] = now_seconds();
        rollout_task_sample(&task, &run, chat.temperature);
        t[1] = now_seconds();
        rollout_task_judge(&task, &run);
        reference_and_values(r, B, true);
        reward_tokens(r, task.beta);
        advantages(r);
        sink = (float)measure(r, task.beta).kl;
        t[2] = now_seconds();
        sink = (float)update(r, &run).policy;
        t[3] = row.stop = now_seconds();
        again();
        printf(
            "# of that iteration, %.2f %% outside the model; rollout %.1f s, scoring %.1f s, "
            "update %.1f s; planned memory %.3f GB\n",
            100 * (1 - in_model / (t[3] - t[0])), t[1] - t[0], t[2] - t[1], t[3] - t[2],
            planned / 1e9);
    }
    rollouts_free(r);
    rows_free(&task.rows);
    run_free(&run);
    gpt2_free(task.policy);
    gpt2_free(task.reference);
    gpt2_free(task.critic);
    gpt2_free(task.judge.model);
    arrays_free();
}

static void bench_ppo(void) {
    SHAPE("32x64+48");
    if (wanted("rollout") || wanted("ppo iteration")) in_a_process("--iteration", 0);
}

/* ---- whole programs -------------------------------------------------------------------------- */

static char directory[256];  // of the model that is written and read

static void remove_directory(void) {
    DIR *d = opendir(directory);
    for (struct dirent *entry; d && (entry = readdir(d));) unlinkat(dirfd(d), entry->d_name, 0);
    if (d) closedir(d);
    rmdir(directory);
}

/* Writes a random model into a new directory in TMPDIR, which the page cache holds; once. */
static void write_model(void) {
    Error e;
    if (*directory) return;
    GPT2 *m = random_model(NULL);
    snprintf(directory, sizeof directory, "%.200s/bench.XXXXXX",
             getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    if (!mkdtemp(directory))
        die("cannot make %s: %s; set TMPDIR to a directory with 500 MB free", directory,
            strerror(errno));
    atexit(remove_directory);
    if (hf_save(m, directory, NULL, &e)) die("%s", e.text);
    gpt2_free(m);
}

/* Texts of 256 bytes, which are so many tokens of the built-in vocabulary of bytes, all of them
 * scored. */
static void write_texts(void) {
    char path[512], command[1024];
    snprintf(command, sizeof command, "cp test/tiny/vocab.json test/tiny/merges.txt %s", directory);
    snprintf(path, sizeof path, "%s/data.jsonl", directory);
    FILE *f = system(command) ? NULL : fopen(path, "w");
    for (int i = 0; f && i < 8; i++) {
        fputs("{\"text\": \"", f);
        for (uint32_t j = 0; j < 256; j++)
            fputc('a' + (int)(random4(1, RANDOM_DATA, 0, 0, (uint32_t)i, j).v[0] % 26), f);
        fputs("\"}\n", f);
    }
    if (!f || fclose(f)) die("cannot write %s; run this from the repository's root", path);
}

static const struct {
    const char *name, *program, *flags;
} programs[] = {{"full_ft", "full_ft", ""},
                {"lora", "lora", ""},
                {"lora, four bits", "lora", "--load_in_4bit"},
                {"lora, bf16", "lora", "--bf16"},
                {"lora, four bits, bf16", "lora", "--load_in_4bit --bf16"},
                {"adapter", "adapter", ""}};

/* What a program prints at its end. */
typedef struct {
    double memory, planned;           // MB
    double sent, gradients, weights;  // of several processes: bytes by the least; seconds a step
} Said;

/* Runs a program. Returns the last tokens/s that it prints. */
static double rate_of(const char *command, Said *said) {
    double rate = 0;
    char line[4096];
    FILE *f = popen(command, "r");
    while (f && fgets(line, sizeof line, f)) {
        char *at = strstr(line, " tokens/s");
        while (at && at > line && at[-1] != ' ') at--;
        if (at) rate = atof(at);
        sscanf(line, "peak memory %lf MB, planned %lf MB", &said->memory, &said->planned);
        sscanf(line, "sent: %*f MB a step and process, %lf", &said->sent);
        sscanf(line, "waits of a step: %lf s for gradients, %lf s", &said->gradients,
               &said->weights);
    }
    if (!f || pclose(f) || !(rate > 0)) die("%s failed", command);
    return rate;
}

/* The programs that fine-tune, each with its own defaults, 4 x 256 tokens a step, in turns: a round
   is a run of each. Tokens/s as they say it, without the first step; their ratio to full_ft's
   within a round; and the most memory they had. */
static void bench_programs(void) {
    enum { ROUNDS = 3 };
    double rate[LENGTH(programs)][ROUNDS] = {{0}}, ratio[LENGTH(programs)][ROUNDS] = {{0}},
           memory[LENGTH(programs)] = {0};
    Said said = {0};
    const int rounds = quick ? 1 : ROUNDS;
    char self[512] = "";
    SHAPE("4x256");
    if (!wanted("program") || T < 256 || readlink("/proc/self/exe", self, sizeof self - 1) < 0)
        return;
    *strrchr(self, '/') = 0;
    write_model();
    write_texts();
    for (int k = 0; k < rounds; k++)
        for (int i = 0; i < LENGTH(programs); i++) {
            char command[2048];
            snprintf(command, sizeof command, "%s/%s", self, programs[i].program);
            if (access(command, X_OK)) continue;
            snprintf(command, sizeof command,
                     "%s/%s --model %s --data %s/data.jsonl --per_device_train_batch_size 4 "
                     "--gradient_accumulation_steps 1 "
                     "--max_steps 4 --logging_steps 0 --eval_samples 0 %s",
                     self, programs[i].program, directory, directory, programs[i].flags);
            rate[i][k] = rate_of(command, &said);
            memory[i] = said.memory;
            ratio[i][k] = rate[i][k] / rate[0][k];
        }
    for (int i = 0; i < LENGTH(programs); i++)
        if (memory[i] > 0) {
            double middle = median(ratio[i], rounds), rate_middle = median(rate[i], rounds);
            printf(
                "program %s\t%s\t%.2f\t%.1f\ttokens/s\t-\t-\t%.2f times full_ft's, at most %.3f "
                "GB, %.0f %% of full_ft's\n",
                programs[i].name, shape, 1024e3 / rate_middle, rate_middle, middle, memory[i] / 1e3,
                100 * memory[i] / memory[0]);
        }
}

/* full_ft in two processes, each with half of the threads, in turns with full_ft in one, where
   mpirun is there: the ratio of tokens/s within a round, the most memory of a process by what it
   planned, and the bytes that it sends by 2 (R-1)/R of the parameters'. */
static void bench_processes(void) {
    enum { ROUNDS = 5 };
    const int threads = omp_get_max_threads(), rounds = quick ? 1 : ROUNDS;
    double rate[2][ROUNDS], ratio[ROUNDS];
    char self[512] = "", command[2048];
    Said said = {0};
    SHAPE("4x256");
    if (!wanted("2 processes") || gpu || T < 256 || threads % 2 ||
        readlink("/proc/self/exe", self, sizeof self - 1) < 0)
        return;
    *strrchr(self, '/') = 0;
    snprintf(command, sizeof command,
             "test -x %s/full_ft_mpi && ${MPIRUN-mpirun} --version >/dev/null 2>&1", self);
    if (system(command)) {
        printf("# no row 2 processes: %s/full_ft_mpi or mpirun is not there\n", self);
        return;
    }
    write_model();
    write_texts();
    for (int k = 0; k < rounds; k++) {
        for (int both = 0; both < 2; both++) {
            snprintf(
                command, sizeof command,
                "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
                "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none "
                "OMP_NUM_THREADS=%d %s %s/full_ft%s --model %s --data %s/data.jsonl "
                "--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_steps 4 "
                "--logging_steps 0 --eval_samples 0 --validation_split_percentage 0 "
                "--no_gradient_checkpointing --shards %d",
                both ? threads / 2 : threads, both ? "${MPIRUN-mpirun} -n 2" : "", self,
                both ? "_mpi" : "", directory, directory, both ? 2 : 1);
            rate[both][k] = rate_of(command, &said);
        }
        ratio[k] = rate[1][k] / rate[0][k];
    }
    const double middle = median(rate[1], rounds);
    printf(
        "2 processes of %d thread%s\t%s\t%.2f\t%.1f\ttokens/s\t-\t-\t%.3f times those of 1 process "
        "of %d; at most %.3f GB, %.3f of planned; sent %.3f of 2 (R-1)/R; a step waited %.3f s for "
        "gradients, %.3f s for weights\n",
        threads / 2, plural(threads / 2), shape, 1024e3 / middle, middle, median(ratio, rounds),
        threads, said.memory / 1e3, said.memory / said.planned, said.sent, said.gradients,
        said.weights);
}

/* A process that computes for nobody until it is killed, or until this program ends. */
static pid_t neighbour(void) {
    const pid_t parent = getpid(), pid = fork();
    if (pid) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (volatile unsigned i = 0; getppid() == parent; i++)
        for (volatile unsigned j = 0; j < 1u << 20; j++) continue;
    _exit(0);
}

/* sft on its built-in example, alone and with other processes that compute: for two threads 1 and 3
   of them. In turns with the waiting that the OpenMP runtimes have by themselves. Ratios are those
   to the same program alone, within a round. On a large machine: taskset -c 0,1 make bench ... */
static void bench_neighbours(void) {
    enum { ROUNDS = 3, MOST = 1024 };
    static const int halves[] = {0, 1, 3};
    static const char *const waits[] = {"env -u GOMP_SPINCOUNT -u OMP_DYNAMIC",
                                        "env GOMP_SPINCOUNT=300000 OMP_DYNAMIC=false"};
    double rate[2][LENGTH(halves)][ROUNDS], by_alone[2][LENGTH(halves)][ROUNDS],
        by_default[LENGTH(halves)][ROUNDS];
    Said said;
    const int rounds = quick ? 1 : ROUNDS, threads = omp_get_max_threads();
    char self[512] = "";
    SHAPE("of %d threads", threads);
    if (!wanted("busy neighbours") || gpu || readlink("/proc/self/exe", self, sizeof self - 1) < 0)
        return;
    *strrchr(self, '/') = 0;
    for (int k = 0; k < rounds; k++)
        for (int i = 0; i < LENGTH(halves); i++)
            for (int w = 0; w < 2; w++) {
                pid_t others[MOST];
                const int n = min_int((halves[i] * threads + 1) / 2, MOST);
                char command[2048];
                snprintf(command, sizeof command,
                         "%s %s/sft --model test/tiny --data test/tiny/sft.jsonl "
                         "--validation_split_percentage 0 --per_device_train_batch_size 16 "
                         "--gradient_accumulation_steps 1 --warmup_steps 5 --max_steps %d "
                         "--logging_steps 0",
                         waits[w], self, i ? 40 : 120);
                for (int j = 0; j < n; j++) others[j] = neighbour();
                rate[w][i][k] = rate_of(command, &said);
                for (int j = 0; j < n; j++) {
                    if (others[j] < 0) die("cannot start a process: %s", strerror(errno));
                    kill(others[j], SIGKILL);
                    waitpid(others[j], NULL, 0);
                }
                by_alone[w][i][k] = rate[w][i][k] / rate[w][0][k];
                by_default[i][k] = rate[0][i][k] / rate[w][i][k];
            }
    for (int i = 0; i < LENGTH(halves); i++)
        printf(
            "%d busy neighbours\t%s\t-\t%.0f\ttokens/s\t-\t-\t%.2f of those alone; with the "
            "runtime's own waiting %.0f, %.2f; ours by that %.3f\n",
            (halves[i] * threads + 1) / 2, shape, median(rate[0][i], rounds),
            median(by_alone[0][i], rounds), median(rate[1][i], rounds),
            median(by_alone[1][i], rounds), median(by_default[i], rounds));
}

/* ---- files and text -------------------------------------------------------------------------- */

/* A model to train, from a file in TMPDIR which the page cache holds. Bytes: those of the weights.
 */
static void bench_load(void) {
    Error e;
    SHAPE("%s", size);
    if (!wanted("load")) return;
    GPT2 *m = NULL;
    write_model();
    ROW("load", NOTHING, 4.0 * parameters) {
        if (!(m = hf_load(directory, false, &e))) die("%s", e.text);
        stop();
        gpt2_free(m);
    }
}

/* One million bytes of news articles (repeated: there is half of that) on one thread, by GPT-2's
 * own vocabulary. */
static void bench_tokenizer(void) {
    const char *shared = getenv("SHARED") ? getenv("SHARED") : "../shared";
    char vocabulary[512], news[512];
    Records r = {0};
    Error e;
    SHAPE("1 MB of English");
    snprintf(vocabulary, sizeof vocabulary, "%s/data/gpt2-vocab", shared);
    snprintf(news, sizeof news, "%s/data/summaries/news.jsonl", shared);
    if (!wanted("tokenise")) return;
    if (access(vocabulary, R_OK) || access(news, R_OK)) {
        printf("# no row tokenise: %s or %s is not there\n", vocabulary, news);
        return;
    }
    Tokenizer *t = tokenizer_load(vocabulary, &e);
    if (!t || records_read(news, TEMPLATE_DEFAULT, true, &r, &e)) die("%s", e.text);
    Str text = {0};
    Ints ids = {0};
    for (int i = 0; text.n < 1000000; i = (i + 1) % r.n)
        for (int j = 0; j < r.v[i].n; j++) str_add(&text, r.v[i].spans[j].text, r.v[i].spans[j].n);
    ROW("tokenise", NOTHING, 1e6) {
        ids.n = 0;
        tokenizer_encode(t, text.s, 1000000, false, &ids);
    }
    free(ids.v);
    free(text.s);
    records_free(&r);
    tokenizer_free(t);
}

/* ---- main ------------------------------------------------------------------------------------ */

/* The machine, and whether it is quiet. */
static void print_heading(void) {
    char cpu[128] = "";
    double load = NAN;
    look_up("/proc/cpuinfo", "model name", " : %127[^\n]", cpu);
    look_up("/proc/loadavg", "", "%lf", &load);
    printf("# %s; %s; compiled by " __VERSION__ "; ", cpu, device_name());
    printf("load average %.2f%s\n", load, load > 0.5 ? ": not a quiet machine" : "");
    printf("name\tshape\tms\trate\tunit\t%% of peak, best\t%% of peak, median\tnote\n");
}

/* What constitutional.c does with each prompt: an answer, a critique and a revision, 48 tokens
   each, 16 prompts together. texts: the part of it outside the model: tokenising the
   conversation so far, and cutting the new text. */
static void bench_round(void) {
    enum { S = 16, EACH = 48 };
    static const char *const requests[] = {
        "", "\n\n### Critique request:\nSay where the response falls short.\n\n### Critique:\n",
        "\n\n### Revision request:\nRewrite the response.\n\n### Revision:\n"};
    const char *shared = getenv("SHARED") ? getenv("SHARED") : "../shared";
    const GPT2Limits limits = {.tokens = 1024, .sequences = S, .slots = S, .positions = 512};
    char vocabulary[512];
    Error e;
    SHAPE("%d prompts, 3 x %d tokens", S, EACH);
    snprintf(vocabulary, sizeof vocabulary, "%s/data/gpt2-vocab", shared);
    if ((!wanted("round") && !wanted("texts")) || limits.positions > T) return;
    if (access(vocabulary, R_OK)) {
        printf("# no row round: %s is not there\n", vocabulary);
        return;
    }
    Tokenizer *t = tokenizer_load(vocabulary, &e);
    if (!t) die("%s", e.text);
    GPT2 *m = random_model(&limits);
    Speaker speaker = {m, t, limits.positions, EACH, 1, NULL};
    Voice voice = speaker_voice(&speaker);
    Headings headings = {0};
    headings_add(&headings, requests[1]);
    headings_add(&headings, requests[2]);
    Str said[S] = {{0}};
    uint32_t id[S];
    double seconds[2] = {0};
    begin("round", NOTHING, 0);
    row.tokens = 3 * S * EACH;
    for (int texts = 0; texts < 2; texts++) {
        if (texts) begin("texts", NOTHING, 0);
        while (again()) {
            const double start = now_seconds();
            for (int s = 0; s < S; s++) {
                id[s] = (uint32_t)s;
                said[s].n = 0;
            }
            for (int turn = 0; turn < 3; turn++) {
                char *prompt[S], *text[S];
                for (int s = 0; s < S; s++) {
                    if (!turn)
                        str_printf(&said[s],
                                   "### Instruction:\nWhat is the capital of country number %d, "
                                   "and why?\n\n### Response:\n",
                                   s);
                    else
                        str_printf(&said[s], "%s", requests[turn]);
                    prompt[s] = said[s].s;
                    if (texts) {
                        text_tokens(t, prompt[s]);
                        text[s] = xstrdup(
                            " and the the of capital, that is in it and was not a.\nSo it is");
                    }
                    if (!voice.fits(voice.context, prompt[s])) die("bench: no room for a dialogue");
                }
                if (!texts) voice.say(voice.context, S, prompt, id, (uint32_t)turn, 1, text);
                for (int s = 0; s < S; s++) {
                    headings_cut(&headings, text[s]);
                    str_printf(&said[s], "%s", text[s]);
                    free(text[s]);
                }
            }
            seconds[texts] = now_seconds() - start;
        }
    }
    if (seconds[0] > 0 && seconds[1] > 0)
        printf("# round: %.0f prompts a minute; texts are %.2f %% of it\n", 60 * S / seconds[0],
               100 * seconds[1] / seconds[0]);
    for (int s = 0; s < S; s++) free(said[s].s);
    headings_free(&headings);
    tokenizer_free(t);
    gpt2_free(m);
}

/* T, V, ... of that size, and what a GPU's probes do; device_init() has been called. */
static void set_size(void) {
    int i = 0;
    while (i < LENGTH(sizes) && strcmp(sizes[i].name, size)) i++;
    if (i == LENGTH(sizes)) die_usage("no --size %s; there are 124M, 355M and tiny", size);
    T = sizes[i].T;
    V = sizes[i].V;
    L = sizes[i].L;
    NH = sizes[i].NH;
    C = sizes[i].C;
    F = 4 * C;
    LDV = (V + 15) / 16 * 16;
    parameters =
        (double)V * C + (double)T * C + L * (12.0 * C * C + 13.0 * C) + 2.0 * C;  // 124,439,808
    config_of_size = (GPT2Config){T, V, L, NH, C, F, 1e-5f, 0.1f, 0.1f, 0.1f, LM_HEAD};
    if (!(gpu = strncmp(device_name(), "CPU", 3))) return;
    peaks[FMA].name = "probe product";
    peaks[FMA].work = 2 * pow(8.0 * C, 3);
    peaks[UPDATE].name = "probe copy";
    peaks[UPDATE].work = peaks[READ].work;  // one half read, the other written
}

int main(int argc, char **argv) {
    int step = -1, iteration = -1,
        threads =
            omp_get_max_threads();  // --step I, --iteration 0: that part only, in this process
    for (int i = 1; i < argc; i++) {
        const char *flag = argv[i], *value = argv[i + 1];
        if (!strcmp(flag, "--quick"))
            quick = true;
        else if (!strcmp(flag, "--bf16"))
            bf16 = true;
        else if (!strcmp(flag, "--cpu") && value)
            way = argv[++i];
        else if (!strcmp(flag, "--only") && value)
            only = argv[++i];
        else if (!strcmp(flag, "--size") && value)
            size = argv[++i];
        else if (!strcmp(flag, "--threads") && value && (threads = atoi(value)) > 0)
            i++;
        else if (!strcmp(flag, "--iteration") && value)
            iteration = atoi(argv[++i]);
        else if (!strcmp(flag, "--step") && value && (step = atoi(value)) >= 0 &&
                 step < LENGTH(steps))
            i++;
        else
            die_usage(
                "bad %s; usage: bench [--threads N] [--only SUBSTRING] [--size 124M|355M|tiny] "
                "[--quick] [--cpu avx2|avx512|avx512bf16] [--bf16]",
                flag);
    }
    omp_set_num_threads(threads);
    setvbuf(stdout, NULL, _IOLBF,
            0);  // a row is there when it is measured, and before a process is started
    Error e;
    if (device_choose(way, &e)) die_usage("--cpu: %s", e.text);
    set_size();
    if (!gpu) choose_peak();
    device_precision(bf16 ? BF16 : FLOAT32);
    if (step >= 0) return bench_step(step), 0;
    if (iteration >= 0) return bench_iteration(), 0;
    print_heading();
    void (*const sections[])(void) = {
        bench_probes, bench_linear, bench_heads,    bench_attention, bench_elementwise,
        bench_steps,  bench_pairs,  bench_programs, bench_processes, bench_neighbours,
        bench_decode, bench_ppo,    bench_round,    bench_load,      bench_tokenizer};
    void (*const of_products[])(void) = {bench_probes, bench_linear, bench_heads, bench_attention,
                                         bench_steps,  bench_decode, bench_ppo};
    // with --bf16 or --cpu only the rows that these flags change
    if (bf16 || strcmp(way, "auto")) {
        for (int i = 0; i < LENGTH(of_products); i++) of_products[i]();
        return 0;
    }
    for (int i = 0; i < LENGTH(sections); i++) sections[i]();
    return 0;
}
