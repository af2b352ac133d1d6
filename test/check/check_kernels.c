/*
 * check_kernels.c - the kernels against their contract, kernels.h.
 *
 * The witnesses: ref.h, in double, for values; central differences of ref.h for ref.h's own
 * gradients; ref_chain() for the exact bits of a product; and the promises that need no second
 * opinion: the same bits for 1, 2 and 3 threads, for a row or a sequence alone and in company, for
 * half a batch after the other, and for a token decoded or trained on.
 *
 * Every array of a test is between guard words that are NaN when read as floats. So a kernel that
 * writes outside its output is caught, and one that reads outside its input gives NaN. An output
 * starts as NaN, too: what is not written shows. The arrays begin at every alignment of a float in
 * turn.
 *
 * With -DON_DEVICE the kernels are those of a device with its own memory, and on_device.h takes the
 * arrays there and back. What kernels.h promises of every backend is held to the bit there, too.
 * What it promises of the CPU (the chain of a product, and that halves of a batch add up to the
 * bits of the whole) becomes a comparison within rounding. With -DREAL_BF16 inputs are numbers that
 * bf16 holds, so that the reference sees the same, and results that are stored as reals may be off
 * by the roundings of bf16 that their line names.
 */
#include "ref.h"
#include "program.h"

#include <malloc.h>
#include <check.h>  // after util.h, whose fail() it hides behind a macro of its own
#include <omp.h>

#define EPSILON \
    0x1p-24  // half a unit in the last place of a float near 1: the relative error of one rounding
#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))
#define AT(...) snprintf(where, sizeof where, __VA_ARGS__)  // the shape under test
#define FOR_THREADS(t)                                             \
    for (int t = 1; omp_set_num_threads(t), t <= (DEVICE ? 1 : 3); \
         t++)  // ends with 4 set; nothing depends on it

#ifdef ON_DEVICE
enum { DEVICE = 1 };
#else
enum { DEVICE = 0 };
#endif
enum { SHORT = sizeof(real) < sizeof(float) };
/* What a number stored as a real may be off by, relative to itself, when `roundings` of its size
 * came together: of bf16, which has 8 bits, 2^-8 each. */
#define STORED(roundings) (SHORT ? (roundings)*0x1p-8 : 0)

/* ck_assert() writes a file each time that it passes: too slow for every element. These speak only
 * when they fail. */
#define ck_must(condition, ...)                      \
    do {                                             \
        if (!(condition)) ck_abort_msg(__VA_ARGS__); \
    } while (0)
#define ck_true(condition) ck_must(condition, "%s: it is not true that %s", where, #condition)

static char where[256];

/* ---- Guarded arrays, released together ------------------------------------------------------- */

enum { GUARD = 48, BLOCKS = 8192 };
static const uint32_t guard_word = 0x7fc5a5a5;  // a quiet NaN

typedef struct {
    uint32_t *memory, *words, *frozen;  // frozen: what words must still hold at the end, or NULL
    size_t n;
    unsigned char *mirror;  // on a device
} Block;

static Block blocks[BLOCKS];
static double *doubles[BLOCKS];
static int block_count, double_count;
static uint32_t draw_count;

/* n words of 4 bytes, all of them NaN, at an odd alignment and between guards. For an output. */
static void *room(size_t n) {
    ck_assert_int_lt(block_count, BLOCKS);
    size_t before = GUARD + (size_t)block_count % 16;
    Block b = {.memory = xmalloc((before + n + GUARD) * sizeof(uint32_t)), .n = n};
    b.words = b.memory + before;
    for (size_t i = 0; i < before + n + GUARD; i++) b.memory[i] = guard_word;
    blocks[block_count++] = b;
    return b.words;
}

/* From here on every array made so far is an input: it must not change. */
static void freeze(void) {
    for (int i = 0; i < block_count; i++) {
        Block *b = &blocks[i];
        if (b->frozen) continue;
        b->frozen = xmalloc(b->n * sizeof(uint32_t));
        memcpy(b->frozen, b->words, b->n * sizeof(uint32_t));
    }
}

#ifdef ON_DEVICE
#    include "../emu/on_device.h"
#else
static void drop_mirrors(void) {}
#endif

/* Frees every array, unchecked. */
static void forget(void) {
    drop_mirrors();
    for (int i = 0; i < block_count; i++) {
        free(blocks[i].memory);
        free(blocks[i].frozen);
    }
    for (int i = 0; i < double_count; i++) free(doubles[i]);
    memset(blocks, 0, sizeof blocks);
    block_count = double_count = 0;
}

/* Checks the guards and the frozen inputs, then frees every array. */
static void release(void) {
    for (int i = 0; i < block_count; i++) {
        const Block *b = &blocks[i];
        for (const uint32_t *w = b->memory; w < b->words; w++)
            ck_must(*w == guard_word, "%s: array %d (%zu words): word -%td written", where, i, b->n,
                    b->words - w);
        for (size_t k = 0; k < GUARD; k++)
            ck_must(b->words[b->n + k] == guard_word, "%s: array %d (%zu words): word %zu written",
                    where, i, b->n, b->n + k);
        for (size_t k = 0; b->frozen && k < b->n; k++)
            ck_must(b->words[k] == b->frozen[k], "%s: input %d (%zu words): word %zu changed",
                    where, i, b->n, k);
    }
    forget();
}

/* How often the emulated GPU did something that no result shows. NULL without one. */
long cuda_emu_count(const char *what) __attribute__((weak));

/* Before each test. A failed test may have left its arrays. */
static void begin(void) {
    device_init();
    forget();
    draw_count = 0;
    AT("(no shape)");
    omp_set_num_threads(2);
}

static double *zeros(size_t n) {
    ck_assert_int_lt(double_count, BLOCKS);
    return doubles[double_count++] = xcalloc(n, sizeof(double));
}

static double *widen(const float *x, size_t n) {
    double *wide = zeros(n);
    for (size_t i = 0; i < n; i++) wide[i] = x[i];
    return wide;
}

static float draw(void) {
    return random_uniform(random4(20, RANDOM_DATA, 0, 0, 0, draw_count++).v[0]);
}

/* x as it is stored: the nearest number of bf16, where a real has 16 bits. */
static float stored(float x) {
    union {
        float f;
        uint32_t w;
    } u = {x};
    if (SHORT && !isnan(x)) u.w = (u.w + 0x7fff + (u.w >> 16 & 1)) & 0xffff0000u;
    return isnan(x) && SHORT ? NAN : u.f;
}

static float *store(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = stored(x[i]);
    return x;
}

/* n numbers between -size and size */
static float *reals(size_t n, double size) {
    float *x = room(n);
    for (size_t i = 0; i < n; i++) x[i] = stored((float)(size * (2 * (double)draw() - 1)));
    return x;
}

static int *indices(size_t n, int below) {
    int *x = room(n);
    for (size_t i = 0; i < n; i++) x[i] = (int)(draw() * (float)below);
    return x;
}

static float *copy(const float *x, size_t n) { return memcpy(room(n), x, n * sizeof(float)); }

__attribute__((noinline)) static float *filled(size_t n, float value) {
    float *x = room(n);
    for (size_t i = 0; i < n; i++) x[i] = stored(value);
    return x;
}

/* ---- Comparisons ----------------------------------------------------------------------------- */

/* Each returns NULL or the complaint, so that Check reports the line of the test. */

#define ck_complaint(complaint)         \
    do {                                \
        const char *said = (complaint); \
        ck_must(!said, "%s", said);     \
    } while (0)
#define ck_close(got, want, n, tolerance) \
    ck_complaint(compare(#got, widen((got), (n)), (want), (n), (tolerance)))
#define ck_bits(got, want, n) ck_complaint(compare_bits(#got, (got), (want), (n)))
/* with the documented chain, which is the CPU's promise: on a device within `tolerance` of it */
#define ck_chain(got, want, n, tolerance)                        \
    do {                                                         \
        if (DEVICE)                                              \
            ck_close(got, widen((want), (n)), (n), (tolerance)); \
        else                                                     \
            ck_bits(got, want, n);                               \
    } while (0)
#define ck_all_nan(x, n) ck_complaint(compare_nan(#x, (x), (n)))
#define ck_gradient(gradient, x, n, loss) \
    ck_complaint(differences(#gradient, (gradient), (x), (n), (loss)))

static char complaint[512];

/* The error of an element is relative to its own size plus the root mean square of the tensor: an
   element that is small because large terms cancelled is allowed their rounding, and a tensor of
   small numbers has a small tolerance. */
static const char *compare(const char *what, const double *got, const double *want, size_t n,
                           double tolerance) {
    double squares = 0, worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) squares += want[i] * want[i];
    double rms = n ? sqrt(squares / (double)n) : 0;
    for (size_t i = 0; i < n; i++) {
        double error = got[i] == want[i] ? 0 : fabs(got[i] - want[i]) / (fabs(want[i]) + rms);
        if (!(error <= worst)) {
            worst = error;
            at = i;
        }
        if (isnan(error)) break;
    }
    if (worst <= tolerance) return NULL;
    snprintf(complaint, sizeof complaint,
             "%s: %s[%zu of %zu] is %.9g, not %.9g; relative error %.3g, tolerance %.3g (rms %.3g)",
             where, what, at, n, got[at], want[at], worst, tolerance, rms);
    return complaint;
}

static const char *compare_bits(const char *what, const float *got, const float *want, size_t n) {
    if (!memcmp(got, want, n * sizeof *got)) return NULL;
    size_t at = 0;
    while (!memcmp(got + at, want + at, sizeof *got)) at++;
    snprintf(complaint, sizeof complaint, "%s: %s[%zu of %zu] is %.9g (%a), not exactly %.9g (%a)",
             where, what, at, n, (double)got[at], (double)got[at], (double)want[at],
             (double)want[at]);
    return complaint;
}

static const char *compare_nan(const char *what, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isnan(x[i])) {
            snprintf(complaint, sizeof complaint, "%s: %s[%zu] is %.9g: a NaN got lost", where,
                     what, i, (double)x[i]);
            return complaint;
        }
    return NULL;
}

/* gradient against central differences of loss() in each of x[0..n). At a step of 1e-5 the error of
   the formula is around 1e-10 and the rounding around 1e-11 of the loss, so 1e-7 is far from both
   and from any mistake. */
static const char *differences(const char *what, const double *gradient, double *x, size_t n,
                               double (*loss)(void)) {
    double *numeric = zeros(n);
    for (size_t i = 0; i < n; i++) {
        double here = x[i], step = 1e-5;
        x[i] = here + step;
        double up = loss();
        x[i] = here - step;
        numeric[i] = (up - loss()) / (2 * step);
        x[i] = here;
    }
    return compare(what, gradient, numeric, n, 1e-7);
}

static double dot(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* ---- The device ------------------------------------------------------------------------------ */

/* Rounding on the device gives the bits of rounding on the way to it. */
START_TEST(floats_of_the_device_are_rounded) {
    enum { N = 3001 };
    float *x = xmalloc(sizeof *x * N), *a = xmalloc(sizeof *x * N), *b = xmalloc(sizeof *x * N);
    for (int i = 0; i < N; i++) x[i] = ldexpf((float)(i * 7919 % 65537 - 32768), i % 61 - 40);
    x[0] = 1 + 0x1p-8f;  // half way: to even
    x[1] = 1 + 0x3p-8f;
    x[2] = -INFINITY;
    float *from = device_alloc(sizeof *x * N);
    real *to = device_alloc(sizeof *to * N), *written = device_alloc(sizeof *to * N);
    device_write(from, x, sizeof *x * N);
    real_round(to, from, N);
    real_write(written, x, N);
    real_read(a, to, N);
    real_read(b, written, N);
    ck_assert(a[0] == (sizeof(real) == 4 ? 1 + 0x1p-8f : 1) && a[2] == -INFINITY);
    ck_assert(a[1] == (sizeof(real) == 4 ? 1 + 0x3p-8f : 1 + 0x1p-6f));
    for (int i = 0; i < N; i++) ck_must(a[i] == b[i], "number %d: %g and %g", i, a[i], b[i]);
    device_free(from, sizeof *x * N);
    device_free(to, sizeof *to * N);
    device_free(written, sizeof *to * N);
    free(x);
    free(a);
    free(b);
}
END_TEST

/* What is done beside comes after what was queued before, of any size, and its own order is kept.
 */
START_TEST(a_second_queue_follows_the_first) {
    enum { N = 40000 };  // and 25: small and large copies to a GPU go different ways
    float *x = xmalloc(sizeof *x * N), *y = xmalloc(sizeof *x * N);
    float *a = device_alloc(sizeof *x * N), *b = device_alloc(sizeof *x * N);
    for (int round = 0; round < 3; round++) {
        const size_t n = round == 1 ? 25 : N;
        for (size_t i = 0; i < n; i++) x[i] = (float)(round + 1) * (float)i;
        device_write(a, x, sizeof *x * n);
        device_beside(true);
        device_copy(b, a, sizeof *x * n);
        add_floats(b, a, n);
        for (size_t i = 0; i < n; i++) y[i] = 1;
        device_write(a, y, sizeof *x * n);
        memset(y, 0, sizeof *x * n);  // has been read
        add_floats(b, a, n);
        device_wait();
        device_beside(false);
        device_zero(a, sizeof *x * n);
        device_read(y, b, sizeof *x * n);
        for (size_t i = 0; i < n; i++)
            ck_must(y[i] == 2 * x[i] + 1, "%d: number %zu is %g", round, i, y[i]);
    }
    device_free(a, sizeof *x * N);
    device_free(b, sizeof *x * N);
    free(x);
    free(y);
}
END_TEST

/* So the host runs ahead of the device, and the caller may reuse its array at once. */
START_TEST(small_arrays_go_to_the_device_without_a_wait) {
    enum { N = 50, TIMES = 20 };
    int *a = device_alloc(sizeof *a * N * TIMES), x[N], y[N * TIMES];
    device_wait();
    const long before = cuda_emu_count ? cuda_emu_count("waits for a stream") : 0;
    for (int t = 0; t < TIMES; t++) {
        for (int i = 0; i < N; i++) x[i] = t * N + i;
        device_write(a + t * N, x, sizeof x);
    }
    if (cuda_emu_count) ck_assert_int_eq(cuda_emu_count("waits for a stream"), before);
    device_read(y, a, sizeof y);
    for (int i = 0; i < N * TIMES; i++) ck_must(y[i] == i, "number %d is %d", i, y[i]);
    device_free(a, sizeof *a * N * TIMES);
}
END_TEST

START_TEST(device_memory_is_zeroed_aligned_and_copied) {
    size_t bytes = 12345 * sizeof(float);
    unsigned char *p = device_alloc(bytes);
    ck_assert_ptr_nonnull(p);
    ck_assert_uint_eq((uintptr_t)p % 64, 0);
    unsigned char *seen = (unsigned char *)room(12345);
    device_read(seen, p, bytes);
    for (size_t i = 0; i < bytes; i++) ck_must(seen[i] == 0, "byte %zu is %d", i, seen[i]);

    float *x = reals(12345, 1), *back = room(12345);
    freeze();
    real_write((real *)p, x, 12345);
    real_read(back, (real *)p, 12345);
    ck_bits(back, x, 12345);
    device_write(p, x, bytes);
    device_write(p, x + 1, 100);
    device_read(back, p, 100);
    ck_bits(back, x + 1, 25);
    device_zero(p, 100);
    device_read(back, p, 104);
    for (int i = 0; i < 25; i++) ck_true(back[i] == 0);
    ck_true(back[25] == x[25]);
    device_free(p, bytes);

    const size_t many = (size_t)64 << 20, before = device_memory_peak();
    float *ones = malloc(many);
    for (size_t i = 0; i < many / sizeof *ones; i++) ones[i] = 1;
    ck_assert_ptr_nonnull(p = device_alloc(many));
    device_write(p, ones, many);
    device_free(p, many);
    free(ones);
    const size_t peak = device_memory_peak();
    ck_assert(peak >= many && peak >= before);
    ck_assert_ptr_nonnull(p = device_alloc(4096));
    device_free(p, 4096);
    ck_assert_uint_eq(device_memory_peak(), peak);  // what was given back is not counted again

    // many writes, of all sizes, before anything is read
    const size_t floats = 3 << 20;
    float *big = device_alloc(floats * sizeof *big), *sent = xmalloc(floats * sizeof *sent),
          *received = xmalloc(floats * sizeof *sent);
    for (size_t from = 0, m = 1; from < floats; from += m, m = m * 3 % 16500 + 1) {
        float piece[16500];  // is overwritten at once
        m = m < floats - from ? m : floats - from;
        for (size_t i = 0; i < m; i++) sent[from + i] = piece[i] = (float)(from + i);
        device_write(big + from, piece, m * sizeof *piece);
    }
    device_read(received, big, floats * sizeof *big);
    ck_bits(received, sent, floats);
    device_free(big, floats * sizeof *big);
    free(sent);
    free(received);

    ck_assert_ptr_null(device_alloc(SIZE_MAX / 4));
    ck_assert_uint_gt(device_memory_free(), 0);
    ck_assert_uint_gt(strlen(device_name()), 0);
}
END_TEST

/* ---- Embedding ------------------------------------------------------------------------------- */

/* Half of the rows have the same token. Each position has N / POSITIONS rows, or one more. */
static void check_embed(int N, int C, int POSITIONS) {
    enum { V = 11, FREQUENT = 4 };
    AT("N=%d C=%d positions=%d", N, C, POSITIONS);
    size_t NC = (size_t)N * C;
    int *token = indices((size_t)N, V), *position = room((size_t)N);
    for (int n = 0; n < N; n++) {
        if (draw() < 0.5f) token[n] = FREQUENT;
        position[n] = n % POSITIONS;
    }
    float *wte = reals(V * (size_t)C, 1), *wpe = reals(POSITIONS * (size_t)C, 1),
          *dout = reals(NC, 1);
    float *dwte_before = reals(V * (size_t)C, 1), *dwpe_before = reals(POSITIONS * (size_t)C, 1);
    freeze();

    double *out_ref = zeros(NC), *dwte_ref = widen(dwte_before, V * (size_t)C);
    double *dwpe_ref = widen(dwpe_before, POSITIONS * (size_t)C);
    ref_embed_forward(out_ref, token, position, widen(wte, V * (size_t)C),
                      widen(wpe, POSITIONS * (size_t)C), N, C);
    ref_embed_backward(dwte_ref, dwpe_ref, widen(dout, NC), token, position, N, C);
    float *dwte_chain = copy(dwte_before, V * (size_t)C),
          *dwpe_chain = copy(dwpe_before, POSITIONS * (size_t)C);
    for (size_t i = 0; i < NC; i++) {
        dwte_chain[token[i / C] * C + i % C] += dout[i];
        dwpe_chain[position[i / C] * C + i % C] += dout[i];
    }

    FOR_THREADS(t) {
        float *out = room(NC), *dwte = copy(dwte_before, V * (size_t)C),
              *dwpe = copy(dwpe_before, POSITIONS * (size_t)C);
        embed_forward(out, token, position, wte, wpe, N, C);
        ck_close(out, out_ref, NC, EPSILON + STORED(1));   // one rounding
        embed_forward(out, token, NULL, wte, NULL, N, C);  // without positions: a copy
        for (size_t i = 0; i < NC; i++) ck_assert(out[i] == wte[(size_t)token[i / C] * C + i % C]);
        embed_backward(dwte, dwpe, dout, token, position, N, C);
        ck_close(dwte, dwte_ref, V * (size_t)C, (N + 1) * EPSILON);  // a rounding for each row
        ck_close(dwpe, dwpe_ref, POSITIONS * (size_t)C, (N + 1) * EPSILON);
        ck_bits(dwte, dwte_chain, V * (size_t)C);
        ck_bits(dwpe, dwpe_chain, POSITIONS * (size_t)C);
    }

    // two halves, and one table at a time
    int half = N / 2;
    float *dwte = copy(dwte_before, V * (size_t)C),
          *dwpe = copy(dwpe_before, POSITIONS * (size_t)C);
    embed_backward(dwte, NULL, dout, token, position, half, C);
    embed_backward(NULL, dwpe, dout, token, position, half, C);
    embed_backward(dwte, dwpe, dout + (size_t)half * C, token + half, position + half, N - half, C);
    ck_bits(dwte, dwte_chain, V * (size_t)C);
    ck_bits(dwpe, dwpe_chain, POSITIONS * (size_t)C);
    release();
}

START_TEST(embedding) {
    // a GPU compares chunks of 1,024 ids, each 16th with the same block, and loads 8 or 16 rows of
    // an id at a time; a block has at most 2,048 channels, or 256 if their number is no multiple of
    // eight
    static const int shapes[][3] = {
        {1, 1, 7},    {2, 3, 7},    {5, 8, 7},     {6, 17, 7},   {7, 100, 7},  {9, 300, 2},
        {3, 2056, 2}, {15, 8, 1},   {16, 8, 1},    {17, 3, 1},   {64, 16, 4},  {97, 129, 6},
        {400, 48, 7}, {17, 768, 7}, {1024, 8, 32}, {1025, 5, 1}, {2100, 8, 7}, {17000, 1, 1000}};
    for (int i = 0; i < LENGTH(shapes); i++) check_embed(shapes[i][0], shapes[i][1], shapes[i][2]);
}
END_TEST

START_TEST(embedding_reference) {
    enum { N = 5, V = 4, POSITIONS = 3, C = 2 };
    // linear in both tables, so the gradient is the sum of dout over the rows that share an entry:
    // worked out by hand
    static const int token[N] = {3, 0, 3, 1, 3}, position[N] = {0, 1, 2, 0, 1};
    double dout[N * C] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, dwte[V * C] = {0},
                    dwpe[POSITIONS * C] = {0};
    ref_embed_backward(dwte, dwpe, dout, token, position, N, C);
    double dwte_by_hand[V * C] = {3, 4, 7, 8, 0, 0, 15, 18},
                            dwpe_by_hand[POSITIONS * C] = {8, 10, 12, 14, 5, 6};
    ck_complaint(compare("dwte", dwte, dwte_by_hand, V * C, 0));
    ck_complaint(compare("dwpe", dwpe, dwpe_by_hand, POSITIONS * C, 0));
}
END_TEST

/* ---- Linear layer ---------------------------------------------------------------------------- */

typedef struct {
    int N, IC, OC;
    float *inp, *weight, *bias, *dout, *dweight, *dbias;  // dweight, dbias: what is there before
    size_t inp_n, weight_n, out_n;
} Linear;

static Linear linear_inputs(int N, int IC, int OC) {
    Linear l = {.N = N, .IC = IC, .OC = OC};
    AT("N=%d IC=%d OC=%d", N, IC, OC);
    l.inp_n = (size_t)N * IC;
    l.weight_n = (size_t)IC * OC;
    l.out_n = (size_t)N * OC;
    l.inp = reals(l.inp_n, 1);
    l.weight = reals(l.weight_n, 1);
    l.bias = reals((size_t)OC, 1);
    l.dout = reals(l.out_n, 1);
    l.dweight = reals(l.weight_n, 1);
    l.dbias = reals((size_t)OC, 1);
    freeze();
    return l;
}

/* A product of K terms rounds K times, each time by at most EPSILON of a partial sum, and the
   partial sums of random terms are no larger than a few times the result; the start rounds nothing.
 */
static double product_tolerance(int K) { return (K + 8) * EPSILON; }

static void check_linear_values(int N, int IC, int OC) {
    Linear l = linear_inputs(N, IC, OC);
    double *inp = widen(l.inp, l.inp_n), *weight = widen(l.weight, l.weight_n),
           *dout = widen(l.dout, l.out_n);
    double *out_ref = zeros(l.out_n), *dinp_ref = zeros(l.inp_n);
    double *dweight_ref = widen(l.dweight, l.weight_n), *dbias_ref = widen(l.dbias, (size_t)OC);
    ref_linear_forward(out_ref, inp, weight, widen(l.bias, (size_t)OC), N, IC, OC);
    ref_linear_backward_input(dinp_ref, dout, weight, N, IC, OC);
    ref_linear_backward_weight(dweight_ref, dbias_ref, inp, dout, N, IC, OC);

    float *out = room(l.out_n), *dinp = room(l.inp_n);
    float *dweight = copy(l.dweight, l.weight_n), *dbias = copy(l.dbias, (size_t)OC);
    linear_forward(out, l.inp, l.weight, l.bias, N, IC, OC);
    linear_backward_input(dinp, l.dout, l.weight, N, IC, OC);
    linear_backward_weight(dweight, dbias, l.inp, l.dout, N, IC, OC);
    ck_close(out, out_ref, l.out_n, product_tolerance(IC) + STORED(1));
    ck_close(dinp, dinp_ref, l.inp_n, product_tolerance(OC) + STORED(1));
    ck_close(dweight, dweight_ref, l.weight_n, product_tolerance(N));
    ck_close(dbias, dbias_ref, (size_t)OC, product_tolerance(N));
    release();
}

static void check_linear_chains(int N, int IC, int OC) {
    Linear l = linear_inputs(N, IC, OC);
    float *out_chain = room(l.out_n), *bare_chain = room(l.out_n), *dinp_chain = room(l.inp_n);
    float *dweight_chain = room(l.weight_n), *dbias_chain = room((size_t)OC);
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            const float *inp_n = l.inp + (size_t)n * IC;
            out_chain[(size_t)n * OC + o] =
                ref_chain(l.bias[o], inp_n, 1, l.weight + o, (size_t)OC, IC);
            bare_chain[(size_t)n * OC + o] = ref_chain(0, inp_n, 1, l.weight + o, (size_t)OC, IC);
        }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < IC; i++)
            dinp_chain[(size_t)n * IC + i] =
                ref_chain(0, l.dout + (size_t)n * OC, 1, l.weight + (size_t)i * OC, 1, OC);
    for (int i = 0; i < IC; i++)
        for (int o = 0; o < OC; o++) {
            size_t at = (size_t)i * OC + o;
            dweight_chain[at] =
                ref_chain(l.dweight[at], l.inp + i, (size_t)IC, l.dout + o, (size_t)OC, N);
        }
    for (int o = 0; o < OC; o++)
        dbias_chain[o] = ref_sum_chain(l.dbias[o], l.dout + o, (size_t)OC, N);
    float *out_all = room(l.out_n), *dinp_all = room(l.inp_n);
    linear_forward(out_all, l.inp, l.weight, l.bias, N, IC, OC);
    linear_backward_input(dinp_all, l.dout, l.weight, N, IC, OC);
    freeze();

    FOR_THREADS(t) {
        float *out = room(l.out_n), *bare = room(l.out_n), *dinp = room(l.inp_n);
        float *dweight = copy(l.dweight, l.weight_n), *dbias = copy(l.dbias, (size_t)OC);
        linear_forward(out, l.inp, l.weight, l.bias, N, IC, OC);
        linear_forward(bare, l.inp, l.weight, NULL, N, IC, OC);
        linear_backward_input(dinp, l.dout, l.weight, N, IC, OC);
        linear_backward_weight(dweight, dbias, l.inp, l.dout, N, IC, OC);
        ck_chain(out, out_chain, l.out_n, product_tolerance(IC) + STORED(1));
        ck_bits(out, out_all, l.out_n);
        ck_chain(bare, bare_chain, l.out_n, product_tolerance(IC) + STORED(1));
        ck_chain(dinp, dinp_chain, l.inp_n, product_tolerance(OC) + STORED(1));
        ck_bits(dinp, dinp_all, l.inp_n);
        ck_chain(dweight, dweight_chain, l.weight_n, product_tolerance(N));
        ck_chain(dbias, dbias_chain, (size_t)OC, product_tolerance(N));
    }

    // rows alone: the first, one in the middle, the last
    for (int i = 0; i < 3; i++) {
        int n = i * (N - 1) / 2;
        float *out = room((size_t)OC), *dinp = room((size_t)IC);
        linear_forward(out, l.inp + (size_t)n * IC, l.weight, l.bias, 1, IC, OC);
        linear_backward_input(dinp, l.dout + (size_t)n * OC, l.weight, 1, IC, OC);
        ck_bits(out, out_all + (size_t)n * OC, (size_t)OC);
        ck_bits(dinp, dinp_all + (size_t)n * IC, (size_t)IC);
    }

    // two halves, the second without a bias
    int half = N / 2;
    float *dweight = copy(l.dweight, l.weight_n), *dbias = copy(l.dbias, (size_t)OC);
    float *dbias_half = copy(l.dbias, (size_t)OC);
    linear_backward_weight(dweight, dbias, l.inp, l.dout, half, IC, OC);
    for (int o = 0; o < OC; o++)
        dbias_half[o] = ref_sum_chain(l.dbias[o], l.dout + o, (size_t)OC, half);
    ck_chain(dbias, dbias_half, (size_t)OC, product_tolerance(N));
    memcpy(dbias_half, dbias, (size_t)OC * sizeof *dbias);
    linear_backward_weight(dweight, NULL, l.inp + (size_t)half * IC, l.dout + (size_t)half * OC,
                           N - half, IC, OC);
    ck_chain(dweight, dweight_chain, l.weight_n, product_tolerance(N));
    ck_bits(dbias, dbias_half, (size_t)OC);
    release();
}

static const int linear_shapes[][3] = {
    {1, 1, 1},      {1, 3, 8},      {2, 8, 3},      {2, 1, 17},     {5, 17, 16},     {6, 16, 48},
    {6, 3, 1},      {7, 48, 17},    {17, 100, 129}, {64, 129, 100}, {97, 8, 3},      {97, 100, 17},
    {400, 16, 48},  {400, 1, 3},    {17, 1, 100},   {1, 768, 129},  {5, 129, 768},   {1, 100, 1003},
    {193, 385, 33}, {13, 769, 50},  {64, 768, 48},  {3, 48, 2305},  {400, 129, 129}, {16, 768, 768},
    {50, 3, 3100},  {193, 785, 16}, {97, 400, 7},
};

START_TEST(linear_values) {
    for (int i = 0; i < LENGTH(linear_shapes); i++)
        check_linear_values(linear_shapes[i][0], linear_shapes[i][1], linear_shapes[i][2]);
}
END_TEST

START_TEST(linear_is_the_documented_chain_to_the_bit) {
    for (int i = 0; i < LENGTH(linear_shapes); i++)
        check_linear_chains(linear_shapes[i][0], linear_shapes[i][1], linear_shapes[i][2]);
    for (int N = 1; N <= 26; N++) check_linear_chains(N, 7 + N % 5, 51 - N);
}
END_TEST

/* ---- Linear layer in bf16 -------------------------------------------------------------------- */

/* The numbers of x, some of them made hard: denormals, the largest denormal (which must not become
   the smallest normal number), infinities, NaN, ties of rounding. */
static void make_hard(float *x, size_t n) {
    static const float hard[] = {0x1p-130f, -0x1p-149f, 0x1.fffffcp-127f, 0x1p-126f, 0x1p-70f,
                                 -0x1p-80f, 0x1.01p0f,  0x1.03p0f,        -0.0f,     0x1.ffffp100f};
    for (size_t i = 0; i < n; i++)
        if (draw() < 0.3f) x[i] = hard[(int)(draw() * (float)LENGTH(hard))];
    if (n > 40) {
        x[n / 3] = NAN;
        x[n / 2] = INFINITY;
    }
}

/* As compare_bits, but every NaN is equal to every other. */
static const char *compare_numbers(const char *what, const float *got, const float *want,
                                   size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(isnan(got[i]) && isnan(want[i])) && memcmp(got + i, want + i, sizeof *got)) {
            snprintf(complaint, sizeof complaint, "%s: %s[%zu of %zu] is %a, not %a", where, what,
                     i, n, (double)got[i], (double)want[i]);
            return complaint;
        }
    return NULL;
}
#define ck_numbers(got, want, n) ck_complaint(compare_numbers(#got, (got), (want), (n)))

static uint16_t *halves(const float *x, size_t n) {
    uint16_t *half = room((n + 1) / 2);
    round_weights(half, (const real *)(const void *)x, n);
    for (size_t i = 0; i < n; i++) {
        const uint32_t w = (uint32_t)half[i] << 16;
        float back;
        memcpy(&back, &w, sizeof back);
        ck_must(isnan(x[i]) ? isnan(back) : back == ref_bf16(x[i]), "%a became %a", (double)x[i],
                (double)back);
    }
    return half;
}

static void check_bf16_chains(int N, int IC, int OC, bool hard) {
    Linear l = linear_inputs(N, IC, OC);
    float *inp = copy(l.inp, l.inp_n), *weight = copy(l.weight, l.weight_n);
    float *dout = copy(l.dout, l.out_n), *bias = copy(l.bias, (size_t)OC);
    if (hard) {
        make_hard(inp, l.inp_n);
        make_hard(weight, l.weight_n);
        make_hard(dout, l.out_n);
        make_hard(bias, (size_t)OC);
    }
    float *out_ref = room(l.out_n), *dinp_ref = room(l.inp_n), *dweight_ref = room(l.weight_n);
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++)
            out_ref[(size_t)n * OC + o] =
                ref_chain_bf16(bias[o], inp + (size_t)n * IC, 1, weight + o, (size_t)OC, IC);
    for (int n = 0; n < N; n++)
        for (int i = 0; i < IC; i++)
            dinp_ref[(size_t)n * IC + i] =
                ref_chain_bf16(0, dout + (size_t)n * OC, 1, weight + (size_t)i * OC, 1, OC);
    for (int i = 0; i < IC; i++)
        for (int o = 0; o < OC; o++) {
            const size_t at = (size_t)i * OC + o;
            dweight_ref[at] =
                ref_chain_bf16(l.dweight[at], inp + i, (size_t)IC, dout + o, (size_t)OC, N);
        }
    const float *stored_weight = (const float *)(const void *)halves(weight, l.weight_n);
    freeze();
    for (int t = 1; t <= 3; t += 2) {
        omp_set_num_threads(t);
        float *out = room(l.out_n), *dinp = room(l.inp_n), *dweight = copy(l.dweight, l.weight_n);
        device_precision(BF16);
        linear_forward(out, inp, weight, bias, N, IC, OC);
        linear_backward_input(dinp, dout, weight, N, IC, OC);
        linear_backward_weight(dweight, NULL, inp, dout, N, IC, OC);
        ck_numbers(out, out_ref, l.out_n);
        ck_numbers(dinp, dinp_ref, l.inp_n);
        ck_numbers(dweight, dweight_ref, l.weight_n);
        device_precision(BF16_WEIGHTS);
        linear_forward(out, inp, stored_weight, bias, N, IC, OC);
        linear_backward_input(dinp, dout, stored_weight, N, IC, OC);
        ck_numbers(out, out_ref, l.out_n);
        ck_numbers(dinp, dinp_ref, l.inp_n);
        linear_forward(out, inp + (size_t)(N - 1) * IC, stored_weight, bias, 1, IC, OC);
        ck_numbers(out, out_ref + (size_t)(N - 1) * OC, (size_t)OC);
        device_precision(FLOAT32);
    }
    release();
}

START_TEST(linear_in_bf16_is_the_documented_chain) {
    if (DEVICE) return;  // which has bf16 of its own
    for (int i = 0; i < LENGTH(linear_shapes); i++)
        for (int hard = 0; hard < 2; hard++)
            check_bf16_chains(linear_shapes[i][0], linear_shapes[i][1], linear_shapes[i][2], hard);
    for (int N = 1; N <= 31; N++) check_bf16_chains(N, 7 + N % 5, 66 - N, true);
}
END_TEST

START_TEST(head_in_bf16_is_the_documented_chain) {
    if (DEVICE) return;
    static const int shapes[][3] = {{1, 5, 3}, {1, 129, 1003}, {7, 33, 67}, {60, 17, 130}};
    for (int i = 0; i < LENGTH(shapes); i++) {
        const int R = shapes[i][0], C = shapes[i][1], V = shapes[i][2];
        AT("R=%d C=%d V=%d", R, C, V);
        const size_t RC = (size_t)R * C, VC = (size_t)V * C, RV = (size_t)R * V;
        float *inp = reals(RC, 1), *wte = reals(VC, 1), *dlogits = reals(RV, 1);
        make_hard(wte, VC);
        const float *stored_wte = (const float *)(const void *)halves(wte, VC);
        float *logits_ref = room(RV), *dinp_ref = room(RC);
        for (int r = 0; r < R; r++) {
            for (int v = 0; v < V; v++)
                logits_ref[(size_t)r * V + v] =
                    ref_chain_bf16(0, inp + (size_t)r * C, 1, wte + (size_t)v * C, 1, C);
            for (int c = 0; c < C; c++)
                dinp_ref[(size_t)r * C + c] =
                    ref_chain_bf16(0, dlogits + (size_t)r * V, 1, wte + c, (size_t)C, V);
        }
        freeze();
        float *logits = room(RV), *dinp = room(RC);
        for (int stored = 0; stored < 2; stored++) {
            device_precision(stored ? BF16_WEIGHTS : BF16);
            const float *w = stored ? stored_wte : wte;
            head_forward(logits, inp, w, R, C, V, V);
            head_backward(dinp, NULL, dlogits, NULL, w, R, C, V, V);
            ck_numbers(logits, logits_ref, RV);
            ck_numbers(dinp, dinp_ref, RC);
        }
        // the embedding is that of the same weight
        static const int token[3] = {2, 0, 1};
        float *row = room((size_t)3 * C);
        for (int stored = 0; stored < 2; stored++) {
            device_precision(stored ? BF16_WEIGHTS : BF16);
            embed_forward(row, token, NULL, stored ? stored_wte : wte, NULL, 3, C);
            for (int k = 0; k < 3 * C; k++) {
                const float want = ref_bf16(wte[(size_t)token[k / C] * C + k % C]);
                ck_true(isnan(want) ? isnan(row[k]) : row[k] == want);
            }
        }
        device_precision(FLOAT32);
        release();
    }
}
END_TEST

/* A GPU loads eight columns at a time, if their number is a multiple of eight. */
START_TEST(a_bias_has_the_same_gradient_in_any_matrix) {
    enum { N = 300, IC = 3, OC = 520, LESS = OC - 1 };
    float *inp = reals((size_t)N * IC, 1), *dout = reals((size_t)N * OC, 1),
          *less = room((size_t)N * LESS);
    for (int n = 0; n < N; n++) memcpy(less + n * LESS, dout + n * OC, LESS * sizeof *less);
    freeze();
    float *dweight = filled(IC * OC, 0), *dbias = filled(OC, 0.5f),
          *dbias_less = filled(LESS, 0.5f);
    linear_backward_weight(dweight, dbias, inp, dout, N, IC, OC);
    dweight = filled(IC * LESS, 0);
    linear_backward_weight(dweight, dbias_less, inp, less, N, IC, LESS);
    ck_bits(dbias_less, dbias, LESS);
    release();
}
END_TEST

START_TEST(linear_shows_nan_in_its_row_only) {
    Linear l = linear_inputs(19, 33, 29);
    float *inp = copy(l.inp, l.inp_n), *dout = copy(l.dout, l.out_n);
    inp[7 * 33 + 32] = dout[7 * 29 + 28] = NAN;
    freeze();
    float *clean = room(l.out_n), *out = room(l.out_n), *clean_dinp = room(l.inp_n),
          *dinp = room(l.inp_n);
    linear_forward(clean, l.inp, l.weight, l.bias, l.N, l.IC, l.OC);
    linear_forward(out, inp, l.weight, l.bias, l.N, l.IC, l.OC);
    linear_backward_input(clean_dinp, l.dout, l.weight, l.N, l.IC, l.OC);
    linear_backward_input(dinp, dout, l.weight, l.N, l.IC, l.OC);
    ck_all_nan(out + 7 * l.OC, (size_t)l.OC);
    ck_all_nan(dinp + 7 * l.IC, (size_t)l.IC);
    memcpy(out + 7 * l.OC, clean + 7 * l.OC, (size_t)l.OC * sizeof *out);
    memcpy(dinp + 7 * l.IC, clean_dinp + 7 * l.IC, (size_t)l.IC * sizeof *dinp);
    ck_bits(out, clean, l.out_n);
    ck_bits(dinp, clean_dinp, l.inp_n);

    float *dweight = copy(l.dweight, l.weight_n), *dbias = copy(l.dbias, (size_t)l.OC);
    linear_backward_weight(dweight, dbias, inp, dout, l.N, l.IC, l.OC);
    for (int i = 0; i < l.IC; i++) ck_true(isnan(dweight[i * l.OC + 28]));
    for (int o = 0; o < l.OC; o++) ck_true(isnan(dweight[32 * l.OC + o]));
    ck_true(!isnan(dweight[0]) && !isnan(dbias[0]) && isnan(dbias[28]));
    release();
}
END_TEST

enum { REF_N = 3, REF_IC = 4, REF_OC = 5 };
static double *ref_inp, *ref_weight, *ref_bias, *ref_out,
    *ref_dout;  // of whichever reference is under the microscope

static double linear_loss(void) {
    ref_linear_forward(ref_out, ref_inp, ref_weight, ref_bias, REF_N, REF_IC, REF_OC);
    return dot(ref_out, ref_dout, REF_N * REF_OC);
}

START_TEST(linear_reference) {
    ref_inp = widen(reals(REF_N * REF_IC, 1), REF_N * REF_IC);
    ref_weight = widen(reals(REF_IC * REF_OC, 1), REF_IC * REF_OC);
    ref_bias = widen(reals(REF_OC, 1), REF_OC);
    ref_out = zeros(REF_N * REF_OC);
    ref_dout = widen(reals(REF_N * REF_OC, 1), REF_N * REF_OC);
    double *dinp = zeros(REF_N * REF_IC), *dweight = zeros(REF_IC * REF_OC), *dbias = zeros(REF_OC);
    ref_linear_backward_input(dinp, ref_dout, ref_weight, REF_N, REF_IC, REF_OC);
    ref_linear_backward_weight(dweight, dbias, ref_inp, ref_dout, REF_N, REF_IC, REF_OC);
    ck_gradient(dinp, ref_inp, REF_N * REF_IC, linear_loss);
    ck_gradient(dweight, ref_weight, REF_IC * REF_OC, linear_loss);
    ck_gradient(dbias, ref_bias, REF_OC, linear_loss);
}
END_TEST

/* A row has the same bits in any number of rows, though cuBLASLt chooses by that number: where it
   offers a way of the same bits for few rows, and (CUDA_EMU_OTHER) where it offers none and refuses
   the way for many. */
static void check_few_rows(int IC, int OC, bool others) {
    enum { N = 300 };
    static const int few[] = {1, 3, 7, 8, 16, 17, 64, 65, 100, 257};
    AT("IC=%d OC=%d", IC, OC);
    if (others) setenv("CUDA_EMU_OTHER", "1", 1);
    const size_t in = (size_t)IC, out = (size_t)OC, stride = out + 8;
    float *inp = reals(N * in, 1), *weight = reals(in * out, 1), *bias = reals(out, 1),
          *was = reals(N * out, 1);
    freeze();
    // by rows: all, then few
    float *linear[2], *dinp[2], *added[2], *pre[2], *gelu[2], *logits[2];
    for (int i = -1; i < LENGTH(few); i++) {
        const int n = i < 0 ? N : few[i], k = i >= 0;
        const size_t rows = (size_t)n;
        linear[k] = room(rows * out);
        dinp[k] = room(rows * in);
        added[k] = copy(was, rows * out);
        pre[k] = room(rows * out);
        gelu[k] = room(rows * out);
        logits[k] = filled(rows * stride, 7);
        linear_forward(linear[k], inp, weight, bias, n, IC, OC);
        linear_backward_input(dinp[k], was, weight, n, IC, OC);
        projection_forward(added[k], inp, weight, NULL, true, n, IC, OC);
        linear_gelu_forward(gelu[k], pre[k], inp, weight, bias, n, IC, OC);
        head_forward(logits[k], inp, weight, n, IC, OC, OC + 8);
        for (int r = 0; r < n; r++)
            for (int c = OC; c < OC + 8; c++)
                ck_true(logits[k][(size_t)r * stride + (size_t)c] == 7);
        if (!k) continue;
        ck_bits(linear[1], linear[0], rows * out);
        ck_bits(dinp[1], dinp[0], rows * in);
        ck_bits(added[1], added[0], rows * out);
        ck_bits(pre[1], pre[0], rows * out);
        ck_bits(gelu[1], gelu[0], rows * out);
        ck_bits(logits[1], logits[0], rows * stride);
        float *dweight = filled(in * out, 0), *dbias = filled(out, 0);
        linear_backward_weight(dweight, dbias, inp, was, n, IC, OC);
    }
    unsetenv("CUDA_EMU_OTHER");
    release();
}

START_TEST(few_rows_have_the_bits_of_many) {
    check_few_rows(48, 32, false);
    check_few_rows(3, 5, false);
    // no product was tried in vain
    if (cuda_emu_count) ck_assert_int_eq(cuda_emu_count("refused products"), 0);
    check_few_rows(32, 48, true);
    if (cuda_emu_count) ck_assert_int_gt(cuda_emu_count("refused products"), 0);
}
END_TEST

/* A device may compute gradients of weights beside what comes next. Whatever that is, it must not
   change them, nor see them before they are complete. The names in parentheses are the functions
   themselves: on_device.h's macros of their names would wait. */
enum {
    BESIDE_N = 37,
    BESIDE_C = 24,
    BESIDE_ALL = BESIDE_N * BESIDE_C,
    BESIDE_W = BESIDE_C * BESIDE_C
};
typedef enum {
    NOTHING,
    IN_PLACE,
    SUMS,
    ZEROS,
    OTHER_INPUT,
    NORM,
    COPY,
    READING,
    MANY,
    HEAD,
    AFTER_ALL,
} Next;

static void check_beside(Next next) {
    enum { N = BESIDE_N, C = BESIDE_C, MOST = 12 };
    AT("next %d", (int)next);
    const int times = next == MANY ? MOST : 1;
    float *inp = reals(BESIDE_ALL, 1), *dout = reals(BESIDE_ALL, 1), *weight = reals(BESIDE_W, 1),
          *other = reals(BESIDE_ALL, 1), *ones = filled(C, 1), *sum = room(BESIDE_W),
          *dweight = reals(BESIDE_W, 1), *dbias = reals(C, 1), *dinp = room(BESIDE_ALL);
    // on the device, before anything of it is waited for
    real *inp_ = device_alloc(BESIDE_ALL * sizeof *inp_ * MOST),
         *dout_ = device_alloc(BESIDE_ALL * sizeof *dout_),
         *weight_ = device_alloc(BESIDE_W * sizeof *weight_),
         *ones_ = device_alloc(C * sizeof *ones_),
         *dinp_ = device_alloc(BESIDE_ALL * sizeof *dinp_);
    float *sum_ = device_alloc(BESIDE_W * sizeof *sum_),
          *dweight_ = device_alloc(BESIDE_W * sizeof *dweight_),
          *dbias_ = device_alloc(C * sizeof *dbias_), *rows_ = device_alloc(2 * N * sizeof *rows_);
    device_write(dweight_, dweight, BESIDE_W * sizeof *dweight);
    device_write(dbias_, dbias, C * sizeof *dbias);
    real_write(ones_, ones, C);
    real_write(weight_, weight, BESIDE_W);
    real_write(dout_, dout, BESIDE_ALL);
    for (int i = 0; i < times; i++) real_write(inp_ + i * BESIDE_ALL, inp, BESIDE_ALL);
    for (int i = 0; i < times; i++)
        (linear_backward_weight)(dweight_, dbias_, inp_ + i * BESIDE_ALL, dout_, N, C, C);
    real *to = next == IN_PLACE || next == MANY ? inp_ : dinp_;
    if (next == ZEROS) {
        device_zero(inp_, BESIDE_ALL * sizeof *inp_);
    } else if (next == OTHER_INPUT) {
        real_write(inp_, other, BESIDE_ALL);
    } else if (next == NORM) {
        (layernorm_forward)(NULL, inp_, rows_, rows_ + N, dout_, NULL, ones_, ones_, N, C, 1e-5f);
    } else if (next == COPY) {
        device_copy(inp_, dout_, BESIDE_ALL * sizeof *inp_);
    } else if (next == SUMS) {
        (add_floats)(sum_, dweight_, BESIDE_W);
    } else if (next == HEAD) {
        (head_backward)(NULL, dweight_, inp_, dout_, NULL, N, C, C, C);
    } else if (next == READING) {
        float *now = room(BESIDE_W);
        device_read(now, dweight_, BESIDE_W * sizeof *now);
        device_write(sum_, now, BESIDE_W * sizeof *now);
    }
    (linear_backward_input)(to, dout_, weight_, N, C, C);
    if (next == MANY) device_zero(inp_ + BESIDE_ALL, BESIDE_ALL * sizeof *inp_ * (MOST - 1));
    if (next == AFTER_ALL) {
        device_zero(dout_, BESIDE_ALL * sizeof *dout_);
        (add_floats)(sum_, dweight_, BESIDE_W);
    }
    // the same, where each function is waited for
    for (int i = 0; i < times; i++) linear_backward_weight(dweight, dbias, inp, dout, N, C, C);
    memcpy(sum, dweight, BESIDE_W * sizeof *sum);
    if (next == HEAD) head_backward(NULL, dweight, inp, dout, NULL, N, C, C, C);
    linear_backward_input(dinp, dout, weight, N, C, C);
    float *dweight_seen = room(BESIDE_W), *dbias_seen = room(C), *dinp_seen = room(BESIDE_ALL),
          *sum_seen = room(BESIDE_W);
    real_read(dinp_seen, to, BESIDE_ALL);
    device_read(dweight_seen, dweight_, BESIDE_W * sizeof *dweight_seen);
    device_read(dbias_seen, dbias_, C * sizeof *dbias_seen);
    device_read(sum_seen, sum_, BESIDE_W * sizeof *sum_seen);
    ck_bits(dinp_seen, dinp, BESIDE_ALL);
    ck_bits(dweight_seen, dweight, BESIDE_W);
    ck_bits(dbias_seen, dbias, C);
    if (next == SUMS || next == AFTER_ALL || next == READING) ck_bits(sum_seen, sum, BESIDE_W);
    device_free(inp_, BESIDE_ALL * sizeof *inp_ * MOST);
    device_free(dout_, BESIDE_ALL * sizeof *dout_);
    device_free(weight_, BESIDE_W * sizeof *weight_);
    device_free(ones_, C * sizeof *ones_);
    device_free(dinp_, BESIDE_ALL * sizeof *dinp_);
    device_free(sum_, BESIDE_W * sizeof *sum_);
    device_free(dweight_, BESIDE_W * sizeof *dweight_);
    device_free(dbias_, C * sizeof *dbias_);
    device_free(rows_, 2 * N * sizeof *rows_);
    release();
}

START_TEST(what_runs_beside_a_weight_gradient_does_not_change_it) {
    for (Next next = NOTHING; next <= AFTER_ALL; next++) check_beside(next);
    // the gradient of a weight was computed beside others, where that can be seen
    if (cuda_emu_count) ck_assert_int_gt(cuda_emu_count("products of other streams"), 0);
}
END_TEST

START_TEST(scale_multiplies) {
    for (int n = 0; n <= 33; n++) {
        float *x = reals((size_t)n, 1), *scaled = copy(x, (size_t)n);
        scale(scaled, 0.3f, (size_t)n);
        for (int i = 0; i < n; i++) ck_true(scaled[i] == stored(x[i] * 0.3f));
        release();
    }
}
END_TEST

/* ---- A weight of four bits a number ---------------------------------------------------------- */

static NF4 quantized(const float *weight, int IC, int OC, bool double_quant) {
    NF4 q;
    size_t words = (nf4_bytes(IC, OC, double_quant) + 3) / 4;
    nf4_quantize(&q, room(words), weight, IC, OC, double_quant);
    return q;
}

static int code_of(const NF4 *q, int at) {
    return at % 2 ? q->code[at / 2] & 15 : q->code[at / 2] >> 4;
}

/* bitsandbytes' thresholds: a number goes up one code strictly above them. */
START_TEST(nf4_codes_change_at_the_thresholds) {
    if (SHORT) return;  // the neighbours of a threshold are floats
    static const float threshold[15] = {
        -0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
        -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
        0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
        0.5016634166240692f,   0.6427869200706482f,   0.8614784181118011f};
    float *weight = filled(64, 0);
    weight[0] = 1;  // so that the block is not scaled
    for (int c = 0; c < 15; c++) {
        weight[1 + 3 * c] = nextafterf(threshold[c], -2);
        weight[2 + 3 * c] = threshold[c];
        weight[3 + 3 * c] = nextafterf(threshold[c], 2);
    }
    for (int c = 0; c < 16; c++) weight[46 + c] = (float)ref_nf4_values[c];
    freeze();
    NF4 q = quantized(weight, 64, 1, false);
    ck_true(q.absmax[0] == 1 && code_of(&q, 0) == 15);
    for (int c = 0; c < 15; c++) {
        ck_true(code_of(&q, 1 + 3 * c) == c);
        ck_must(code_of(&q, 2 + 3 * c) == c, "threshold %d: %d", c, code_of(&q, 2 + 3 * c));
        ck_true(code_of(&q, 3 + 3 * c) == c + 1);
    }
    float *back = room(64);
    nf4_read(back, &q, 0, 64);
    for (int c = 0; c < 16; c++)
        ck_true(code_of(&q, 46 + c) == c && back[46 + c] == (float)ref_nf4_values[c]);
    ck_true(q.code[23] == 0x01 &&
            q.code[24] == 0x23);  // elements 46 to 49: the first of two in the upper half
    release();
}
END_TEST

static void check_nf4_values(int IC, int OC) {
    AT("IC=%d OC=%d", IC, OC);
    const size_t n = (size_t)IC * (size_t)OC;
    float *weight = reals(n, 0.1);
    if (n > 40) weight[n / 2] = 3;  // blocks of very different sizes
    freeze();
    float *back = room(n), *part = room(n);
    double *want = widen(weight, n);
    ref_nf4_round(want, IC, OC);
    NF4 q = quantized(weight, IC, OC, false);
    nf4_read(back, &q, 0, n);
    for (size_t i = 0; i < n; i++)  // x times the reciprocal of the scale may round across a
                                    // threshold: then it is as near to both values
        ck_must(fabs((double)back[i] - want[i]) <= (1e-6 + STORED(1)) * fabs(want[i]) ||
                    fabs(fabs((double)back[i] - (double)weight[i]) -
                         fabs(want[i] - (double)weight[i])) < 1e-6 + STORED(1) * fabs(want[i]),
                "%s: [%zu] %g becomes %g, not %g", where, i, (double)weight[i], (double)back[i],
                want[i]);
    nf4_read(part, &q, n / 3, n - n / 3);
    ck_bits(part, back + n / 3, n - n / 3);
    release();
}

START_TEST(nf4_blocks_run_along_the_input_channels) {
    static const int shapes[][2] = {{64, 1}, {1, 64},  {1, 1},     {7, 1},     {17, 7},  {48, 5},
                                    {64, 3}, {65, 66}, {128, 130}, {100, 129}, {768, 17}};
    for (int i = 0; i < LENGTH(shapes); i++) check_nf4_values(shapes[i][0], shapes[i][1]);
    // two columns of 64: the second is a thousand times the first, and neither shows in the other's
    // scale
    float *weight = room(128);
    for (int i = 0; i < 64; i++) {
        weight[2 * i] = stored((float)(i - 20) / 1000);
        weight[2 * i + 1] = (float)(i - 20);
    }
    NF4 q = quantized(weight, 64, 2, false);
    ck_true(q.absmax[0] == stored(0.043f) && q.absmax[1] == 43);
    release();
    weight = filled(64, 0);
    q = quantized(weight, 64, 1, false);
    float zero[64];
    nf4_read(zero, &q, 0, 64);
    for (int i = 0; i < 64; i++) ck_true(zero[i] == 0);
    release();
}
END_TEST

START_TEST(nf4_shows_what_is_not_finite) {
    for (int k = 0; k < 4; k++) {
        float *weight = reals(64 * 3, 1), *back = room(64 * 3);
        weight[3 * 5 + 1] = k % 2 ? NAN : INFINITY;  // input channel 5, output channel 1
        NF4 q = quantized(weight, 64, 3, k / 2);
        nf4_read(back, &q, 0, 64 * 3);
        for (int i = 0; i < 64; i++) ck_true(isnan(back[3 * i + 1]));
        if (k < 2) ck_true(!isnan(back[0]) && !isnan(back[2]));
        release();
    }
}
END_TEST

/* The 8-bit values by their definition: for e = 0 .. 6 the centres of 2^e parts of [0.1, 1] times
 * 10^(e-6), both signs, 0 and 1. */
static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

START_TEST(nf4_scales_are_quantised_to_the_dynamic_map) {
    enum {
        IC = 128,
        OC = 300,
        BLOCKS_N = IC * OC / 64
    };  // 600: three blocks of scales, the last one short
    double map[256];
    int count = 0;
    for (int e = 0; e < 7; e++)
        for (int i = 0; i < 1 << e; i++)
            for (int sign = -1; sign <= 1; sign += 2)
                map[count++] = sign * (0.1 + 0.9 * (i + 0.5) / (1 << e)) * pow(10, e - 6);
    map[count++] = 0;
    map[count++] = 1;
    ck_assert_int_eq(count, 256);
    qsort(map, 256, sizeof *map, by_value);
    ck_true(fabs(map[0] + 0.992968738) < 1e-6 &&
            fabs(map[254] - 0.992968738) < 1e-6);  // as bitsandbytes' own begins and ends

    float *weight = reals(IC * OC, 1);
    for (int i = 0; i < IC * OC; i++)
        weight[i] = stored(weight[i] * (0.2f + (float)(i % OC) / OC));  // scales of many sizes
    freeze();
    float *single = room(IC * OC), *twice = room(IC * OC);
    NF4 a = quantized(weight, IC, OC, false), b = quantized(weight, IC, OC, true);
    ck_true(!memcmp(a.code, b.code, IC * OC / 2));
    double mean = 0;
    for (int i = 0; i < BLOCKS_N; i++) mean += (double)a.absmax[i] / BLOCKS_N;
    ck_true(fabs((double)b.offset - mean) < 1e-6);
    for (int from = 0; from < BLOCKS_N; from += 256) {
        double top = 0;
        for (int i = from; i < from + 256 && i < BLOCKS_N; i++)
            top = fmax(top, fabs((double)a.absmax[i] - (double)b.offset));
        ck_true(fabs((double)b.absmax2[from / 256] - top) < 1e-6);
        for (int i = from; i < from + 256 && i < BLOCKS_N; i++) {
            double x = ((double)a.absmax[i] - (double)b.offset) / top, nearest = 2;
            for (int c = 0; c < 256; c++) nearest = fmin(nearest, fabs(x - map[c]));
            ck_must(fabs(x - map[b.absmax8[i]]) < nearest + 1e-6, "scale %d: %g is coded as %g", i,
                    x, map[b.absmax8[i]]);
        }
    }
    nf4_read(single, &a, 0, IC * OC);
    nf4_read(twice, &b, 0, IC * OC);
    for (int o = 0; o < OC; o++)
        for (int i = 0; i < IC; i++) {
            int block = (o * IC + i) / 64;
            double absmax =
                map[b.absmax8[block]] * (double)b.absmax2[block / 256] + (double)b.offset;
            double want = (double)single[i * OC + o] / (double)a.absmax[block] * absmax;
            ck_true(fabs((double)twice[i * OC + o] - want) < 1e-6 + STORED(2) * fabs(want));
        }
    ck_true(fabs(8.0 * (double)nf4_bytes(768, 3072, true) / (768 * 3072) - 4.127) < 5e-4);
    ck_true(8.0 * (double)nf4_bytes(768, 3072, false) / (768 * 3072) == 4.5);
    release();
}
END_TEST

/* The errors that bitsandbytes publishes for normal numbers in blocks of 64, with seven times the
 * deviation it allows for. */
START_TEST(nf4_errors_are_the_published_ones) {
    enum { IC = 1024, OC = 1024, ALL = IC * OC };
    float *weight = room(ALL), *back = room(ALL);
    for (uint32_t i = 0; i < ALL; i++) {
        Random4 r = random4(3, RANDOM_DATA, 0, 0, 0, i);
        weight[i] = stored(random_normal(r.v[0], r.v[1]));
    }
    for (int twice = 0; twice < 2; twice++) {
        NF4 q = quantized(weight, IC, OC, twice);
        nf4_read(back, &q, 0, ALL);
        double absolute = 0, relative = 0;
        for (int i = 0; i < ALL; i++) {
            double error = fabs((double)back[i] - (double)weight[i]);
            absolute += error / ALL;
            relative += error / (fabs((double)weight[i]) + 1e-8) / ALL;
        }
        AT("double quantisation %d: absolute %.6f, relative %.6f", twice, absolute, relative);
        ck_true(fabs(absolute - 0.072798) < 7 * 7.4e-5);
        ck_true(fabs(relative - 0.203339) < 7 * 3.4e-4);
    }
    release();
}
END_TEST

static void check_nf4_products(int N, int IC, int OC, bool double_quant) {
    Linear l = linear_inputs(N, IC, OC);
    NF4 q = quantized(l.weight, IC, OC, double_quant);
    float *weight = room(l.weight_n), *out_want = room(l.out_n), *bare_want = room(l.out_n),
          *dinp_want = room(l.inp_n);
    nf4_read(weight, &q, 0, l.weight_n);
    linear_forward(out_want, l.inp, weight, l.bias, N, IC, OC);
    linear_forward(bare_want, l.inp, weight, NULL, N, IC, OC);
    linear_backward_input(dinp_want, l.dout, weight, N, IC, OC);
    freeze();
    FOR_THREADS(t) {
        float *out = room(l.out_n), *bare = room(l.out_n), *dinp = room(l.inp_n);
        nf4_linear_forward(out, l.inp, &q, l.bias, N);
        nf4_linear_forward(bare, l.inp, &q, NULL, N);
        nf4_linear_backward_input(dinp, l.dout, &q, N);
        ck_chain(out, out_want, l.out_n, product_tolerance(IC) + STORED(1));
        ck_chain(bare, bare_want, l.out_n, product_tolerance(IC) + STORED(1));
        ck_chain(dinp, dinp_want, l.inp_n, product_tolerance(OC) + STORED(1));
    }
    release();
}

START_TEST(nf4_products_have_the_bits_of_the_whole_matrix) {
    static const int more[][3] = {{1, 64, 64},  {1, 768, 768}, {7, 128, 384}, {49, 512, 128},
                                  {60, 48, 96}, {1, 40, 72},   {3, 72, 40}};
    for (int twice = 0; twice < 2; twice++) {
        for (int i = 0; i < LENGTH(linear_shapes); i++)
            check_nf4_products(linear_shapes[i][0], linear_shapes[i][1], linear_shapes[i][2],
                               twice);
        for (int i = 0; i < LENGTH(more); i++)
            check_nf4_products(more[i][0], more[i][1], more[i][2], twice);
    }
}
END_TEST

/* ---- Projection ------------------------------------------------------------------------------ */

/* The chains of a linear layer with the weight turned round, from whatever they are to start from
 */

static void check_projection(int N, int IC, int OC) {
    Linear l =
        linear_inputs(N, IC, OC);  // its weight and dweight are (IC,OC) there, and (OC,IC) here
    float *before = reals(l.out_n, 1), *dinp_before = reals(l.inp_n, 1);
    double *inp = widen(l.inp, l.inp_n), *weight = widen(l.weight, l.weight_n),
           *dout = widen(l.dout, l.out_n), *bias = widen(l.bias, (size_t)OC);
    freeze();
    double *dweight_ref = widen(l.dweight, l.weight_n), *dbias_ref = widen(l.dbias, (size_t)OC);
    ref_projection_backward_weight(dweight_ref, dbias_ref, inp, dout, N, IC, OC);
    float *dweight_chain = room(l.weight_n), *dbias_chain = room((size_t)OC);
    for (int o = 0; o < OC; o++) {
        dbias_chain[o] = ref_sum_chain(l.dbias[o], l.dout + o, (size_t)OC, N);
        for (int i = 0; i < IC; i++) {
            size_t at = (size_t)o * IC + i;
            dweight_chain[at] =
                ref_chain(l.dweight[at], l.dout + o, (size_t)OC, l.inp + i, (size_t)IC, N);
        }
    }
    FOR_THREADS(t) {
        float *dweight = copy(l.dweight, l.weight_n), *dbias = copy(l.dbias, (size_t)OC),
              *bare = copy(l.dweight, l.weight_n);
        projection_backward_weight(dweight, dbias, l.inp, l.dout, N, IC, OC);
        projection_backward_weight(bare, NULL, l.inp, l.dout, N, IC, OC);
        ck_close(dweight, dweight_ref, l.weight_n, product_tolerance(N));
        ck_close(dbias, dbias_ref, (size_t)OC, product_tolerance(N));
        ck_chain(dweight, dweight_chain, l.weight_n, product_tolerance(N));
        ck_bits(bare, dweight, l.weight_n);
        ck_chain(dbias, dbias_chain, (size_t)OC, product_tolerance(N));
    }
    for (int kind = 0; kind < 4; kind++) {
        const bool on = kind & 1, with_bias = kind & 2;
        double *out_ref = widen(before, l.out_n), *dinp_ref = widen(dinp_before, l.inp_n);
        float *out_chain = room(l.out_n), *dinp_chain = room(l.inp_n);
        ref_projection_forward(out_ref, inp, weight, with_bias ? bias : NULL, on, N, IC, OC);
        ref_projection_backward_input(dinp_ref, dout, weight, on, N, IC, OC);
        for (int n = 0; n < N; n++) {
            for (int o = 0; o < OC; o++) {
                size_t at = (size_t)n * OC + o;
                float start = on && with_bias ? before[at] + l.bias[o]
                              : on            ? before[at]
                              : with_bias     ? l.bias[o]
                                              : 0;
                out_chain[at] =
                    ref_chain(start, l.inp + (size_t)n * IC, 1, l.weight + (size_t)o * IC, 1, IC);
            }
            for (int i = 0; i < IC; i++) {
                size_t at = (size_t)n * IC + i;
                dinp_chain[at] = ref_chain(on ? dinp_before[at] : 0, l.dout + (size_t)n * OC, 1,
                                           l.weight + i, (size_t)IC, OC);
            }
        }
        FOR_THREADS(t) {
            float *out = copy(before, l.out_n), *dinp = copy(dinp_before, l.inp_n);
            projection_forward(out, l.inp, l.weight, with_bias ? l.bias : NULL, on, N, IC, OC);
            projection_backward_input(dinp, l.dout, l.weight, on, N, IC, OC);
            ck_close(out, out_ref, l.out_n,
                     product_tolerance(IC + 1) + STORED(1 + (on && with_bias)));
            ck_close(dinp, dinp_ref, l.inp_n, product_tolerance(OC + 1) + STORED(1));
            ck_chain(out, out_chain, l.out_n,
                     product_tolerance(IC + 1) + STORED(1 + (on && with_bias)));
            ck_chain(dinp, dinp_chain, l.inp_n, product_tolerance(OC + 1) + STORED(1));
            const size_t row = (size_t)(N / 2);  // one alone
            float *out_1 = copy(before + row * (size_t)OC, (size_t)OC),
                  *dinp_1 = copy(dinp_before + row * (size_t)IC, (size_t)IC);
            projection_forward(out_1, l.inp + row * (size_t)IC, l.weight, with_bias ? l.bias : NULL,
                               on, 1, IC, OC);
            projection_backward_input(dinp_1, l.dout + row * (size_t)OC, l.weight, on, 1, IC, OC);
            ck_bits(out_1, out + row * (size_t)OC, (size_t)OC);
            ck_bits(dinp_1, dinp + row * (size_t)IC, (size_t)IC);
        }
    }
    release();
}

START_TEST(projection) {
    for (int i = 0; i < LENGTH(linear_shapes); i++)
        check_projection(linear_shapes[i][0], linear_shapes[i][1], linear_shapes[i][2]);
}
END_TEST

static bool projection_adds;

static double projection_loss(void) {
    for (int i = 0; i < REF_N * REF_OC; i++) ref_out[i] = 0.25 * i;
    ref_projection_forward(ref_out, ref_inp, ref_weight, ref_bias, projection_adds, REF_N, REF_IC,
                           REF_OC);
    return dot(ref_out, ref_dout, REF_N * REF_OC);
}

START_TEST(projection_reference) {
    ref_inp = widen(reals(REF_N * REF_IC, 1), REF_N * REF_IC);
    ref_weight = widen(reals(REF_IC * REF_OC, 1), REF_IC * REF_OC);
    ref_bias = widen(reals(REF_OC, 1), REF_OC);
    ref_out = zeros(REF_N * REF_OC);
    ref_dout = widen(reals(REF_N * REF_OC, 1), REF_N * REF_OC);
    double *dinp = zeros(REF_N * REF_IC), *dweight = zeros(REF_IC * REF_OC), *dbias = zeros(REF_OC);
    ref_projection_backward_input(dinp, ref_dout, ref_weight, false, REF_N, REF_IC, REF_OC);
    ref_projection_backward_weight(dweight, dbias, ref_inp, ref_dout, REF_N, REF_IC, REF_OC);
    for (int on = 0; on < 2; on++) {
        projection_adds = on;
        ck_gradient(dinp, ref_inp, REF_N * REF_IC, projection_loss);
        ck_gradient(dweight, ref_weight, REF_IC * REF_OC, projection_loss);
        ck_gradient(dbias, ref_bias, REF_OC, projection_loss);
    }
}
END_TEST

START_TEST(activations_are_added) {
    for (size_t n = 0; n < 40; n++) {
        AT("%zu elements", n);
        float *x = reals(n, 1), *y = reals(n, 1), *want = room(n);
        for (size_t i = 0; i < n; i++) want[i] = stored(x[i] + y[i]);
        freeze();
        float *out = room(n), *first = copy(x, n), *second = copy(y, n);
        add_activations(out, x, y, n);
        add_activations(first, first, y, n);
        add_activations(second, x, second, n);
        ck_bits(out, want, n);
        ck_bits(first, want, n);
        ck_bits(second, want, n);
        release();
    }
}
END_TEST

/* ---- Residual and layer norm ----------------------------------------------------------------- */

static const float norm_epsilon = 1e-5f;

static void check_layernorm_forward(int N, int C) {
    AT("forward N=%d C=%d", N, C);
    size_t NC = (size_t)N * C, n = (size_t)N;
    float *x = reals(NC, 1), *y = reals(NC, 1), *weight = reals((size_t)C, 1),
          *bias = reals((size_t)C, 1);
    freeze();
    double *sum_ref = zeros(NC), *out_ref = zeros(NC), *mean_ref = zeros(n), *rstd_ref = zeros(n);
    ref_layernorm_forward(sum_ref, out_ref, mean_ref, rstd_ref, widen(x, NC), widen(y, NC),
                          widen(weight, (size_t)C), widen(bias, (size_t)C), N, C,
                          (double)norm_epsilon);
    float *sum = room(NC), *out = room(NC), *mean = room(n), *rstd = room(n);
    omp_set_num_threads(1);
    layernorm_forward(sum, out, mean, rstd, x, y, weight, bias, N, C, norm_epsilon);
    // sum and mean round by EPSILON of numbers that are up to rstd / 2 larger than the norm; C
    // additions grow like sqrt C
    double largest_rstd = 0;
    for (int i = 0; i < N; i++) largest_rstd = fmax(largest_rstd, rstd_ref[i]);
    double tolerance = (8 + 4 * largest_rstd + sqrt(C)) * EPSILON;
    ck_close(sum, sum_ref, NC, EPSILON + STORED(1));
    if (SHORT)  // what is normalised is the sum as it is stored
        ref_layernorm_forward(NULL, out_ref, mean_ref, rstd_ref, widen(sum, NC), NULL,
                              widen(weight, (size_t)C), widen(bias, (size_t)C), N, C,
                              (double)norm_epsilon);
    ck_close(mean, mean_ref, n, tolerance);
    ck_close(rstd, rstd_ref, n, tolerance * largest_rstd);
    ck_close(out, out_ref, NC, tolerance * largest_rstd + STORED(1));

    float *bare_out = room(NC), *bare_mean = room(n),
          *bare_rstd = room(n);  // the norm of sum, with nothing to add
    FOR_THREADS(t) {
        float *sum_t = copy(x, NC), *out_t = room(NC), *mean_t = room(n), *rstd_t = room(n);
        layernorm_forward(sum_t, out_t, mean_t, rstd_t, sum_t, y, weight, bias, N, C,
                          norm_epsilon);  // in place
        ck_bits(sum_t, sum, NC);
        ck_bits(out_t, out, NC);
        ck_bits(mean_t, mean, n);
        ck_bits(rstd_t, rstd, n);
        layernorm_forward(NULL, bare_out, bare_mean, bare_rstd, sum, NULL, weight, bias, N, C,
                          norm_epsilon);
        ck_bits(bare_out, out, NC);
        ck_bits(bare_mean, mean, n);
        ck_bits(bare_rstd, rstd, n);
    }
    for (int i = 0; i < N; i++) {
        float *sum_1 = room((size_t)C), *out_1 = room((size_t)C), *mean_1 = room(1),
              *rstd_1 = room(1);
        layernorm_forward(sum_1, out_1, mean_1, rstd_1, x + i * C, y + i * C, weight, bias, 1, C,
                          norm_epsilon);
        ck_bits(sum_1, sum + i * C, (size_t)C);
        ck_bits(out_1, out + i * C, (size_t)C);
        ck_bits(mean_1, mean + i, 1);
        ck_bits(rstd_1, rstd + i, 1);
    }
    release();
}

static void check_layernorm_backward(int N, int C) {
    AT("backward N=%d C=%d", N, C);
    size_t NC = (size_t)N * C, n = (size_t)N, c = (size_t)C;
    float *sum = reals(NC, 1), *dout = reals(NC, 1), *weight = reals(c, 1);
    float *mean = room(n), *rstd = room(n);
    float *dsum_before = reals(NC, 1), *dweight_before = reals(c, 1), *dbias_before = reals(c, 1);
    double *mean_ref = zeros(n), *rstd_ref = zeros(n);
    ref_layernorm_forward(NULL, zeros(NC), mean_ref, rstd_ref, widen(sum, NC), NULL, zeros(c),
                          zeros(c), N, C, (double)norm_epsilon);
    for (int i = 0; i < N; i++) {
        mean[i] = (float)mean_ref[i];
        rstd[i] = (float)rstd_ref[i];
    }
    freeze();
    double *dsum_ref = widen(dsum_before, NC), *dweight_ref = widen(dweight_before, c),
           *dbias_ref = widen(dbias_before, c);
    ref_layernorm_backward(dsum_ref, dweight_ref, dbias_ref, widen(dout, NC), widen(sum, NC),
                           widen(mean, n), widen(rstd, n), widen(weight, c), N, C);
    float *dsum = copy(dsum_before, NC), *dweight = copy(dweight_before, c),
          *dbias = copy(dbias_before, c);
    omp_set_num_threads(1);
    layernorm_backward(dsum, dweight, dbias, dout, sum, mean, rstd, weight, N, C);
    // rstd multiplies a difference of numbers of size 1, and sums over C and N round at every
    // addition
    double largest_rstd = 1;
    for (int i = 0; i < N; i++) largest_rstd = fmax(largest_rstd, rstd_ref[i]);
    ck_close(dsum, dsum_ref, NC, (8 + sqrt(C)) * largest_rstd * EPSILON + STORED(1));
    ck_close(dweight, dweight_ref, c, (8 + N) * EPSILON);
    ck_close(dbias, dbias_ref, c, (8 + N) * EPSILON);

    FOR_THREADS(t) {
        float *dsum_t = copy(dsum_before, NC), *dweight_t = copy(dweight_before, c),
              *dbias_t = copy(dbias_before, c);
        layernorm_backward(dsum_t, dweight_t, dbias_t, dout, sum, mean, rstd, weight, N, C);
        ck_bits(dsum_t, dsum, NC);
        ck_bits(dweight_t, dweight, c);
        ck_bits(dbias_t, dbias, c);
        float *frozen = copy(dsum_before, NC);
        layernorm_backward(frozen, NULL, NULL, dout, sum, mean, rstd, weight, N, C);
        ck_bits(frozen, dsum, NC);
    }

    // two halves, which also shows that a row of dsum does not depend on the others
    int half = N / 2;
    size_t at = (size_t)half * C;
    float *dsum_2 = copy(dsum_before, NC), *dweight_2 = copy(dweight_before, c),
          *dbias_2 = copy(dbias_before, c);
    layernorm_backward(dsum_2, dweight_2, dbias_2, dout, sum, mean, rstd, weight, half, C);
    layernorm_backward(dsum_2 + at, dweight_2, dbias_2, dout + at, sum + at, mean + half,
                       rstd + half, weight, N - half, C);
    ck_bits(dsum_2, dsum, NC);
    ck_chain(dweight_2, dweight, c, (8 + N) * EPSILON);
    ck_chain(dbias_2, dbias, c, (8 + N) * EPSILON);
    float *dsum_1 = copy(dsum_before + NC - c, c);
    layernorm_backward(dsum_1, NULL, NULL, dout + NC - c, sum + NC - c, mean + n - 1, rstd + n - 1,
                       weight, 1, C);
    ck_bits(dsum_1, dsum + NC - c, c);
    release();
}

START_TEST(layernorm) {
    static const int shapes[][2] = {{1, 1},    {1, 3},    {2, 8},    {5, 17},   {6, 16},  {7, 48},
                                    {17, 100}, {64, 129}, {97, 768}, {400, 12}, {1, 1600}};
    for (int i = 0; i < LENGTH(shapes); i++) {
        check_layernorm_forward(shapes[i][0], shapes[i][1]);
        check_layernorm_backward(shapes[i][0], shapes[i][1]);
    }
}
END_TEST

START_TEST(layernorm_of_hard_rows) {
    enum { C = 768 };
    float *x = room(3 * C), *weight = filled(C, 1), *bias = reals(C, 1);
    for (int c = 0; c < C; c++) {
        x[c] = stored(0.7f);  // constant: the norm is 0, the output the bias
        x[C + c] = stored(1e4f + 2 * draw() -
                          1);  // a large offset: E[x^2] - E[x]^2 has no correct digit in float
        x[2 * C + c] = stored(1e-4f * draw());  // a variance far below epsilon
    }
    freeze();
    double *out_ref = zeros(3 * C), *mean_ref = zeros(3), *rstd_ref = zeros(3);
    ref_layernorm_forward(NULL, out_ref, mean_ref, rstd_ref, widen(x, 3 * C), NULL,
                          widen(weight, C), widen(bias, C), 3, C, (double)norm_epsilon);
    float *out = room(3 * C), *mean = room(3), *rstd = room(3);
    layernorm_forward(NULL, out, mean, rstd, x, NULL, weight, bias, 3, C, norm_epsilon);
    // a mean is C additions, in 8 lanes at least, whose roundings add up like a walk; rstd
    // magnifies its error
    double mean_error = sqrt(C / 8.) * EPSILON;
    AT("a constant row");  // rstd = 1 / sqrt(1e-5) = 316
    ck_close(out, out_ref, C,
             0.7 * 316 * mean_error / 0.5 +
                 STORED(1));  // the bias, which is what should remain, is 0.5 or so
    AT("a row around 1e4");   // rstd = sqrt(3)
    ck_close(out + C, out_ref + C, C, sqrt(3) * 1e4 * mean_error + STORED(1));
    ck_close(rstd + 1, rstd_ref + 1, 1,
             3 * (1e4 * mean_error) * (1e4 * mean_error) + 8 * EPSILON);  // the error squared
    AT("a row around 1e-4");
    ck_close(out + 2 * C, out_ref + 2 * C, C, 1e-5 + STORED(1));
    release();
}
END_TEST

START_TEST(layernorm_shows_nan_in_its_row_only) {
    enum { N = 9, C = 43 };
    float *x = reals(N * C, 1), *y = reals(N * C, 1), *weight = reals(C, 1), *bias = reals(C, 1);
    float *clean = room(N * C), *out = room(N * C), *sum = room(N * C), *mean = room(N),
          *rstd = room(N);
    layernorm_forward(sum, clean, mean, rstd, x, y, weight, bias, N, C, norm_epsilon);
    y[4 * C + 42] = NAN;
    layernorm_forward(sum, out, mean, rstd, x, y, weight, bias, N, C, norm_epsilon);
    ck_all_nan(out + 4 * C, C);
    ck_true(isnan(mean[4]) && isnan(rstd[4]) && isnan(sum[4 * C + 42]));
    memcpy(out + 4 * C, clean + 4 * C, C * sizeof *out);
    ck_bits(out, clean, N * C);

    float *dsum = filled(N * C, 0), *dweight = filled(C, 0), *dbias = filled(C, 0);
    layernorm_backward(dsum, dweight, dbias, x, sum, mean, rstd, weight, N, C);
    ck_all_nan(dsum + 4 * C, C);
    ck_all_nan(dweight, C);
    for (int i = 0; i < N * C; i++) ck_true(i / C == 4 || isfinite(dsum[i]));
    release();
}
END_TEST

static double *norm_sum, *norm_mean, *norm_rstd, *ref_y;

static double layernorm_loss(void) {
    ref_layernorm_forward(norm_sum, ref_out, norm_mean, norm_rstd, ref_inp, ref_y, ref_weight,
                          ref_bias, REF_N, REF_OC, 1e-5);
    return dot(ref_out, ref_dout, REF_N * REF_OC);
}

START_TEST(layernorm_reference) {
    enum { NC = REF_N * REF_OC, C = REF_OC };
    ref_inp = widen(reals(NC, 1), NC);
    ref_y = widen(reals(NC, 1), NC);
    ref_dout = widen(reals(NC, 1), NC);
    ref_weight = widen(reals(C, 1), C);
    ref_bias = widen(reals(C, 1), C);
    ref_out = zeros(NC);
    norm_sum = zeros(NC);
    norm_mean = zeros(REF_N);
    norm_rstd = zeros(REF_N);
    double *dsum = zeros(NC), *dweight = zeros(C), *dbias = zeros(C);
    layernorm_loss();
    ref_layernorm_backward(dsum, dweight, dbias, ref_dout, norm_sum, norm_mean, norm_rstd,
                           ref_weight, REF_N, C);
    ck_gradient(dsum, ref_inp, NC, layernorm_loss);
    ck_gradient(dsum, ref_y, NC, layernorm_loss);
    ck_gradient(dweight, ref_weight, C, layernorm_loss);
    ck_gradient(dbias, ref_bias, C, layernorm_loss);
}
END_TEST

/* ---- GELU ------------------------------------------------------------------------------------ */

/* (1 + tanh(u)) / 2 is a number of size 1 with a few roundings, however small it gets, and gelu(x)
   is x times that. The derivative is that plus x 2u' times a product of two such numbers, and
   beyond |x| = 5 one of them is a plain 0. */
static void ck_gelu(float x, float value, float dout, float dinp) {
    double wide = (double)x, size = fmin(fabs(wide), 5),
           derivative = (double)dout * ref_gelu_derivative(wide);
    double value_tolerance =
        6 * EPSILON * fabs(wide) + STORED(1) * fabs(ref_gelu(wide)) + (SHORT ? 0x1p-134 : 0);
    double derivative_tolerance =
        (6 + 2 * size * 1.6 * (1 + 0.134 * size * size)) * EPSILON * fabs((double)dout) +
        STORED(1) * fabs(derivative);
    ck_must(fabs((double)value - ref_gelu(wide)) <= value_tolerance, "gelu(%.9g) is %.9g, not %.9g",
            wide, (double)value, ref_gelu(wide));
    ck_must(fabs((double)dinp - derivative) <= derivative_tolerance,
            "%g gelu'(%.9g) is %.9g, not %.9g", (double)dout, wide, (double)dinp, derivative);
}

START_TEST(gelu_values) {
    static const float special[] = {0.0f, -0.0f, 1e-8f, -1e-8f, 1e-38f, -1e-38f, 1e-41f,
                                    0.1f, -0.1f, 1,     -1,     3,      -3,      5,
                                    -5,   9,     -9,    10,     -10,    100,     -100,
                                    1e6f, -1e6f, 1e18f, -1e18f};  // from 2e19 on x^2 overflows
    enum { SWEEP = 40001, N = SWEEP + LENGTH(special) };
    float *x = room(N);
    for (int i = 0; i < SWEEP; i++) x[i] = (float)(i - SWEEP / 2) * 0.0007f;  // -14 .. 14
    memcpy(x + SWEEP, special, sizeof special);
    store(x, N);
    freeze();
    float *out = room(N), *dinp = filled(N, 1), *replaced = copy(x, N);
    omp_set_num_threads(1);
    gelu_forward(out, x, N);
    gelu_backward(dinp, replaced, N);
    ck_bits(replaced, out, N);
    for (int i = 0; i < N; i++) ck_gelu(x[i], out[i], 1, dinp[i]);

    FOR_THREADS(t) {
        float *out_t = room(N), *dinp_t = filled(N, 1), *replaced_t = copy(x, N);
        gelu_forward(out_t, x, N);
        gelu_backward(dinp_t, replaced_t, N);
        ck_bits(out_t, out, N);
        ck_bits(dinp_t, dinp, N);
        ck_bits(replaced_t, out, N);
    }
    release();
}
END_TEST

START_TEST(gelu_of_an_element_does_not_depend_on_its_neighbours) {
    enum { MOST = 130 };
    float *x = reals(MOST, 4), *dout = reals(MOST, 1);
    freeze();
    float *out = room(MOST), *dinp = copy(dout, MOST), *replaced = copy(x, MOST);
    gelu_forward(out, x, MOST);
    gelu_backward(dinp, replaced, MOST);
    for (int i = 0; i < MOST; i++) ck_gelu(x[i], out[i], dout[i], dinp[i]);
    for (int first = 0; first < MOST; first += 13)
        for (size_t n = 0; first + n <= MOST; n++) {
            AT("%zu elements from %d", n, first);
            float *out_n = room(n), *dinp_n = copy(dout + first, n),
                  *replaced_n = copy(x + first, n);
            gelu_forward(out_n, x + first, n);
            gelu_backward(dinp_n, replaced_n, n);
            ck_bits(out_n, out + first, n);
            ck_bits(dinp_n, dinp + first, n);
            ck_bits(replaced_n, out + first, n);
        }
    float *in_place = copy(x, MOST);
    gelu_forward(in_place, in_place, MOST);
    ck_bits(in_place, out, MOST);
    release();
}
END_TEST

/* A GPU has GELU in the product for some widths, and takes it afterwards for others. */
START_TEST(gelu_of_a_linear_layer) {
    static const int shapes[][3] = {{1, 1, 1},   {5, 17, 16},   {7, 48, 17},   {33, 20, 48},
                                    {6, 48, 24}, {97, 100, 64}, {3, 100, 1000}};
    for (int k = 0; k < LENGTH(shapes); k++) {
        const int N = shapes[k][0], OC = shapes[k][2], IC = shapes[k][1];
        Linear l = linear_inputs(N, IC, OC);
        double *pre_ref = zeros(l.out_n), *out_ref = zeros(l.out_n);
        ref_linear_forward(pre_ref, widen(l.inp, l.inp_n), widen(l.weight, l.weight_n),
                           widen(l.bias, (size_t)OC), N, IC, OC);
        ref_gelu_forward(out_ref, pre_ref, l.out_n);
        float *pre = room(l.out_n), *out = room(l.out_n);
        linear_gelu_forward(out, pre, l.inp, l.weight, l.bias, N, IC, OC);
        ck_close(pre, pre_ref, l.out_n, product_tolerance(IC) + STORED(1));
        ck_close(out, out_ref, l.out_n, 2 * product_tolerance(IC) + 8 * EPSILON + STORED(2));
        float *plain = room(l.out_n), *plain_gelu = room(l.out_n);
        linear_forward(plain, l.inp, l.weight, l.bias, N, IC, OC);
        gelu_forward(plain_gelu, plain, l.out_n);
        ck_chain(pre, plain, l.out_n, product_tolerance(IC) + STORED(1));
        ck_chain(out, plain_gelu, l.out_n, 2 * product_tolerance(IC) + 8 * EPSILON + STORED(2));
        freeze();
        for (int i = 0; i < 3; i++) {  // rows alone: the first, one in the middle, the last
            const size_t n = (size_t)(i * (N - 1) / 2);
            float *pre_n = room((size_t)OC), *out_n = room((size_t)OC);
            linear_gelu_forward(out_n, pre_n, l.inp + n * (size_t)IC, l.weight, l.bias, 1, IC, OC);
            ck_bits(pre_n, pre + n * (size_t)OC, (size_t)OC);
            ck_bits(out_n, out + n * (size_t)OC, (size_t)OC);
        }
        float *bad = copy(l.inp, l.inp_n), *bad_pre = room(l.out_n), *bad_out = room(l.out_n);
        bad[(size_t)(N - 1) * (size_t)IC] = NAN;  // shows in its row only
        linear_gelu_forward(bad_out, bad_pre, bad, l.weight, l.bias, N, IC, OC);
        const size_t before = (size_t)(N - 1) * (size_t)OC;
        ck_bits(bad_pre, pre, before);
        ck_bits(bad_out, out, before);
        ck_all_nan(bad_pre + before, (size_t)OC);
        ck_all_nan(bad_out + before, (size_t)OC);
        release();
    }
}
END_TEST

START_TEST(gelu_shows_nan) {
    for (size_t n = 1; n <= 20; n++) {
        float *x = reals(n, 1), *dinp = filled(n, 1), *out = room(n);
        x[n - 1] = NAN;
        gelu_forward(out, x, n);
        gelu_backward(dinp, x, n);
        ck_true(isnan(out[n - 1]) && isnan(dinp[n - 1]) && isnan(x[n - 1]));
        for (size_t i = 0; i + 1 < n; i++)
            ck_true(isfinite(out[i]) && isfinite(dinp[i]) && isfinite(x[i]));
        release();
    }
}
END_TEST

enum { GELU_N = 33 };

static double gelu_loss(void) {
    ref_gelu_forward(ref_out, ref_inp, GELU_N);
    return dot(ref_out, ref_dout, GELU_N);
}

START_TEST(gelu_reference) {
    ref_inp = zeros(GELU_N);
    ref_out = zeros(GELU_N);
    ref_dout = widen(reals(GELU_N, 1), GELU_N);
    double *dinp = zeros(GELU_N), *value = zeros(GELU_N);
    for (int i = 0; i < GELU_N; i++) {
        ref_inp[i] = value[i] = (i - GELU_N / 2) * 0.37;
        dinp[i] = ref_dout[i];
    }  // -5.9 .. 5.9
    ref_gelu_backward(dinp, value, GELU_N);
    ck_gradient(dinp, ref_inp, GELU_N, gelu_loss);
    gelu_loss();
    ck_complaint(compare("value", value, ref_out, GELU_N, 0));
    // gelu(1) and gelu(-1) of the tanh form, from its definition with u = sqrt(2/pi) 1.044715 and
    // tanh = (e^2u-1)/(e^2u+1)
    double u = 0.7978845608028654 * 1.044715, tanh_u = (exp(2 * u) - 1) / (exp(2 * u) + 1);
    ck_true(fabs(ref_gelu(1) - 0.5 * (1 + tanh_u)) < 1e-15);
    ck_true(fabs(ref_gelu(-1) + 0.5 * (1 - tanh_u)) < 1e-15);
}
END_TEST

/* ---- ReLU and SiLU --------------------------------------------------------------------------- */

/* Functions, which have addresses also where on_device.h makes macros of the kernels. */
#define ACTIVATION(name)                                                                           \
    static void name##_up(float *out, const float *inp, size_t n) { name##_forward(out, inp, n); } \
    static void name##_down(float *dout, float *inp, size_t n) { name##_backward(dout, inp, n); }
ACTIVATION(relu)
ACTIVATION(silu)

/* s(x) is a number of size 1 with a few roundings, and silu(x) is x times that; its derivative is
   that plus x s (1 - s), a product of two such numbers that is never above 0.25 |x| and vanishes
   where |x| is large. ReLU rounds nothing. */
static const struct {
    const char *name;
    void (*forward)(float *, const float *, size_t), (*backward)(float *, float *, size_t);
    double (*value)(double), (*derivative)(double);
    double roundings;
} activations[] = {{"relu", relu_up, relu_down, ref_relu, ref_relu_derivative, 0},
                   {"silu", silu_up, silu_down, ref_silu, ref_silu_derivative, 6}};

START_TEST(relu_and_silu) {
    static const float special[] = {0.0f, -0.0f, 1e-8f, -1e-8f, 1e-38f, -1e-38f, 0.1f, -0.1f,
                                    1,    -1,    5,     -5,     20,     -20,     80,   -80,
                                    100,  -100,  1e6f,  -1e6f,  1e30f,  -1e30f};
    enum { SWEEP = 20001, N = SWEEP + LENGTH(special) };
    for (int a = 0; a < LENGTH(activations); a++) {
        float *x = room(N), *dout = reals(N, 1);
        for (int i = 0; i < SWEEP; i++) x[i] = (float)(i - SWEEP / 2) * 0.0014f;  // -14 .. 14
        memcpy(x + SWEEP, special, sizeof special);
        store(x, N);
        freeze();
        float *out = room(N), *dinp = copy(dout, N), *replaced = copy(x, N);
        omp_set_num_threads(1);
        activations[a].forward(out, x, N);
        activations[a].backward(dinp, replaced, N);
        ck_bits(replaced, out, N);
        for (int i = 0; i < N; i++) {
            double wide = x[i], value = activations[a].value(wide),
                   derivative = (double)dout[i] * activations[a].derivative(wide);
            double size = activations[a].roundings * EPSILON;
            ck_must(fabs((double)out[i] - value) <=
                        size * fabs(wide) + STORED(1) * fabs(value) + (SHORT ? 0x1p-134 : 0),
                    "%s(%.9g) is %.9g, not %.9g", activations[a].name, wide, (double)out[i], value);
            ck_must(fabs((double)dinp[i] - derivative) <=
                        size * (1 + fmin(fabs(wide), 4)) * fabs((double)dout[i]) +
                            STORED(1) * fabs(derivative),
                    "%g %s'(%.9g) is %.9g, not %.9g", (double)dout[i], activations[a].name, wide,
                    (double)dinp[i], derivative);
        }
        FOR_THREADS(t) {
            float *out_t = room(N), *dinp_t = copy(dout, N), *replaced_t = copy(x, N);
            activations[a].forward(out_t, x, N);
            activations[a].backward(dinp_t, replaced_t, N);
            ck_bits(out_t, out, N);
            ck_bits(dinp_t, dinp, N);
            ck_bits(replaced_t, out, N);
        }
        for (size_t n = 0; n <= 20; n++) {  // the first n alone, and in place
            AT("%s of %zu elements", activations[a].name, n);
            float *out_n = copy(x, n), *dinp_n = copy(dout, n), *replaced_n = copy(x, n);
            activations[a].forward(out_n, out_n, n);
            activations[a].backward(dinp_n, replaced_n, n);
            ck_bits(out_n, out, n);
            ck_bits(dinp_n, dinp, n);
            ck_bits(replaced_n, out, n);
        }
        release();
    }
}
END_TEST

START_TEST(relu_and_silu_show_nan) {
    for (int a = 0; a < LENGTH(activations); a++)
        for (size_t n = 1; n <= 20; n++) {
            float *x = reals(n, 1), *dinp = filled(n, 1), *spoilt = filled(n, NAN), *out = room(n);
            x[n - 1] = NAN;
            activations[a].forward(out, x, n);
            activations[a].backward(dinp, x, n);
            ck_true(isnan(out[n - 1]) && isnan(x[n - 1]));
            for (size_t i = 0; i + 1 < n; i++)
                ck_true(isfinite(out[i]) && isfinite(dinp[i]) && isfinite(x[i]));
            float *one = filled(n, 1);
            activations[a].backward(spoilt, one, n);
            ck_all_nan(spoilt, n);
            release();
        }
}
END_TEST

static int activation_tested;

static double activation_loss(void) {
    double sum = 0;
    for (int i = 0; i < GELU_N; i++)
        sum += activations[activation_tested].value(ref_inp[i]) * ref_dout[i];
    return sum;
}

START_TEST(relu_and_silu_reference) {
    ref_dout = widen(reals(GELU_N, 1), GELU_N);
    for (activation_tested = 0; activation_tested < LENGTH(activations); activation_tested++) {
        double *dinp = zeros(GELU_N);
        ref_inp = zeros(GELU_N);
        for (int i = 0; i < GELU_N; i++) {
            ref_inp[i] = (i - GELU_N / 2 + 0.25) * 0.37;  // not 0, where ReLU has a corner
            dinp[i] = ref_dout[i] * activations[activation_tested].derivative(ref_inp[i]);
        }
        ck_gradient(dinp, ref_inp, GELU_N, activation_loss);
    }
    ck_true(fabs(ref_silu(1) - 0.7310585786300049) < 1e-15);  // 1 / (1 + 1/e)
}
END_TEST

/* ---- Random noise on activations ------------------------------------------------------------- */

/* N rows of S sequences with ids that are not their numbers, and positions from 0. */
static Noise noise_over(float p, const int *start, int S) {
    uint32_t *sequence = room((size_t)start[S]);
    int *position = room((size_t)start[S]);
    for (int s = 0; s < S; s++)
        for (int n = start[s]; n < start[s + 1]; n++) {
            sequence[n] = 1000u + 7919u * (uint32_t)s;
            position[n] = n - start[s];
        }
    return (Noise){.p = p,
                   .seed = 0x123456789abcdef,
                   .purpose = RANDOM_DROPOUT_EMBD | 3 << 8,
                   .step = 5,
                   .sequence = sequence,
                   .position = position};
}

/* The noise of the rows from n on. */
static Noise noise_from(Noise noise, int n) {
    noise.sequence += n;
    noise.position += n;
    return noise;
}

static void check_noise(int N, int C, float p) {
    AT("N=%d C=%d p=%g", N, C, (double)p);
    size_t NC = (size_t)N * C;
    int start[3] = {0, (N + 1) / 3, N};
    float *x = reals(NC, 1), *magnitude = reals((size_t)N, 0.1);
    Noise noise = noise_over(p, start, 2);
    freeze();
    double *dropped_ref = widen(x, NC), *noisy_ref = widen(x, NC);
    ref_dropout(dropped_ref, N, C, noise);
    ref_add_uniform_noise(noisy_ref, widen(magnitude, (size_t)N), N, C, noise);
    float *dropped = copy(x, NC), *noisy = copy(x, NC);
    omp_set_num_threads(1);
    dropout(dropped, N, C, noise);
    add_uniform_noise(noisy, magnitude, N, C, noise);
    ck_close(dropped, dropped_ref, NC,
             4 * EPSILON + STORED(1));  // 1 - p, 1 / (1 - p) and the product round
    ck_close(noisy, noisy_ref, NC, 4 * EPSILON + STORED(1));
    for (size_t i = 0; i < NC; i++)
        if (dropped_ref[i] == 0) ck_true(dropped[i] == 0);

    FOR_THREADS(t) {
        float *dropped_t = copy(x, NC), *noisy_t = copy(x, NC);
        dropout(dropped_t, N, C, noise);
        add_uniform_noise(noisy_t, magnitude, N, C, noise);
        ck_bits(dropped_t, dropped, NC);
        ck_bits(noisy_t, noisy, NC);
    }
    for (int n = 0; n < N; n++) {
        float *dropped_n = copy(x + n * C, (size_t)C), *noisy_n = copy(x + n * C, (size_t)C);
        dropout(dropped_n, 1, C, noise_from(noise, n));
        add_uniform_noise(noisy_n, magnitude + n, 1, C, noise_from(noise, n));
        ck_bits(dropped_n, dropped + n * C, (size_t)C);
        ck_bits(noisy_n, noisy + n * C, (size_t)C);
    }
    release();
}

START_TEST(noise_is_the_documented_function_of_where_it_falls) {
    static const int shapes[][2] = {{1, 1},    {2, 3},  {5, 8},    {7, 17},
                                    {64, 100}, {97, 5}, {17, 768}, {6, 33}};
    for (int i = 0; i < LENGTH(shapes); i++)
        for (int k = 0; k < 3; k++)
            check_noise(shapes[i][0], shapes[i][1], (const float[]){0.1f, 0.5f, 0.9f}[k]);
}
END_TEST

START_TEST(dropout_is_added_to_what_is_there) {
    static const int shapes[][2] = {{1, 1}, {2, 3}, {7, 17}, {5, 33}, {17, 768}};
    for (int i = 0; i < LENGTH(shapes); i++)
        for (int k = 0; k < 3; k++) {
            const int N = shapes[i][0], C = shapes[i][1];
            const float p = (const float[]){0, 0.1f, 0.5f}[k];
            const size_t NC = (size_t)N * (size_t)C;
            AT("N=%d C=%d p=%g", N, C, (double)p);
            Noise noise = noise_over(p, (const int[]){0, N}, 1);
            float *x = reals(NC, 1), *before = reals(NC, 1), *dropped = copy(x, NC),
                  *want = room(NC);
            dropout(dropped, N, C, noise);
            for (size_t j = 0; j < NC; j++) want[j] = before[j] + dropped[j];
            freeze();
            FOR_THREADS(t) {
                float *out = copy(before, NC);
                dropout_add(out, x, N, C, noise);
                ck_chain(
                    out, want, NC,
                    4 * EPSILON +
                        STORED(2));  // a device may fuse the product and the sum, and round once
                for (size_t j = 0; j < NC; j++)
                    if (dropped[j] == 0) ck_true(out[j] == before[j]);
            }
            release();
        }
}
END_TEST

START_TEST(dropout_of_nothing_is_the_identity) {
    enum { N = 6, C = 37 };
    float *x = reals(N * C, 1);
    x[3] = -0.0f;
    freeze();
    float *same = copy(x, N * C);
    dropout(same, N, C, noise_over(0, (const int[]){0, N}, 1));
    ck_bits(same, x, N * C);
    dropout(same, N, C, (Noise){.p = 0});  // where nothing is drawn, no position is asked for
    ck_bits(same, x, N * C);
    release();
}
END_TEST

START_TEST(dropout_keeps_the_right_share) {
    enum { N = 200, C = 500, NC = N * C };
    for (int k = 0; k < 3; k++) {
        double p = (const double[]){0.1, 0.5, 0.8}[k];
        float *x = filled(NC, 1);
        dropout(x, N, C, noise_over((float)p, (const int[]){0, N}, 1));
        int kept = 0;
        double sum = 0;
        for (int i = 0; i < NC; i++) {
            kept += x[i] != 0;
            sum += (double)x[i];
        }
        double sigma = sqrt(p * (1 - p) * NC);
        ck_must(fabs(kept - (1 - p) * NC) < 5 * sigma, "p=%g: kept %d of %d", p, kept, NC);
        ck_must(fabs(sum - NC) < 5 * sigma / (1 - p), "p=%g: the sum of %d ones became %g", p, NC,
                sum);
        release();
    }
}
END_TEST

/* ---- Attention ------------------------------------------------------------------------------- */

typedef struct {
    int S, NH, hs, N, C, start[16];
    size_t out_n, qkv_n, lse_n;
    float *qkv, *dout, *out, *lse, *dqkv;  // results of one thread
    Noise noise;
} Attention;

/* size: of the queries and keys */
static Attention attention_inputs(const int *lengths, int S, int NH, int hs, double size, float p) {
    Attention a = {.S = S, .NH = NH, .hs = hs, .C = NH * hs};
    AT("S=%d (lengths %d, ...) NH=%d hs=%d size=%g p=%g", S, lengths[0], NH, hs, size, (double)p);
    for (int s = 0; s < S; s++) a.start[s + 1] = a.start[s] + lengths[s];
    a.N = a.start[S];
    a.out_n = (size_t)a.N * a.C;
    a.qkv_n = 3 * a.out_n;
    a.lse_n = (size_t)a.N * NH;
    a.qkv = reals(a.qkv_n, size);
    a.dout = reals(a.out_n, 1);
    for (size_t i = 0; i < a.qkv_n; i++)
        if ((int)(i % (3 * (size_t)a.C)) >= 2 * a.C)
            a.qkv[i] = stored(a.qkv[i] / (float)size);  // values stay near 1
    a.noise = noise_over(p, a.start, S);
    freeze();
    return a;
}

static void attention_run(Attention *a) {
    a->out = room(a->out_n);
    a->lse = room(a->lse_n);
    a->dqkv = room(a->qkv_n);
    attention_forward(a->out, a->lse, a->qkv, a->start, NULL, a->start[a->S], a->S, a->NH, a->hs,
                      a->noise);
    attention_backward(a->dqkv, a->dout, a->qkv, a->out, a->lse, a->start, NULL, a->start[a->S],
                       a->S, a->NH, a->hs, a->noise);
}

/* The queries', keys' and values' gradients differ in size, so each is compared within its own. */
static void ck_attention_gradient(const Attention *a, const double *dqkv_ref, double tolerance) {
    for (int part = 0; part < 3; part++) {
        double *got = zeros(a->out_n), *want = zeros(a->out_n);
        for (int n = 0; n < a->N; n++)
            for (int c = 0; c < a->C; c++) {
                size_t at = ((size_t)n * 3 + (size_t)part) * (size_t)a->C + (size_t)c;
                got[(size_t)n * a->C + c] = (double)a->dqkv[at];
                want[(size_t)n * a->C + c] = dqkv_ref[at];
            }
        if (dot(want, want, a->out_n) == 0) {  // of one key each, whose probability is 1: what is
                                               // left is rounding of numbers of size 1
            for (size_t i = 0; i < a->out_n; i++)
                ck_must(fabs(got[i]) <= tolerance, "%s: %c gradient %zu is %g, not 0", where,
                        "qkv"[part], i, got[i]);
            continue;
        }
        ck_complaint(
            compare((const char *[]){"dq", "dk", "dv"}[part], got, want, a->out_n, tolerance));
    }
}

static void check_attention(const int *lengths, int S, int NH, int hs, double size, float p) {
    Attention a = attention_inputs(lengths, S, NH, hs, size, p);
    double *out_ref = zeros(a.out_n), *lse_ref = zeros(a.lse_n), *dqkv_ref = zeros(a.qkv_n);
    ref_attention_forward(out_ref, lse_ref, widen(a.qkv, a.qkv_n), a.start, S, NH, hs, a.noise);
    ref_attention_backward(dqkv_ref, widen(a.dout, a.out_n), widen(a.qkv, a.qkv_n), a.start, S, NH,
                           hs, a.noise);
    omp_set_num_threads(1);
    attention_run(&a);
    // a score is a product of hs terms of size^2 / 3 or so, divided by sqrt(hs): its error goes
    // whole into the exponential; the sums over keys add a rounding each, of parts of a total of 1
    double score_error = (4 + sqrt(hs)) * fmax(1, size * size) * EPSILON;
    // in bf16 probabilities are rounded before they meet the values; in backward out was, whose
    // product with dout is taken from every gradient by a probability, and these are what many of
    // them cancel to
    ck_close(a.lse, lse_ref, a.lse_n, 8 * EPSILON + score_error);
    ck_close(a.out, out_ref, a.out_n, 16 * EPSILON + 4 * score_error + STORED(4));
    ck_attention_gradient(&a, dqkv_ref,
                          64 * EPSILON + 16 * score_error + STORED(16) * fmax(1, size / 4));

    FOR_THREADS(t) {
        Attention b = a;
        attention_run(&b);
        ck_bits(b.out, a.out, a.out_n);
        ck_bits(b.lse, a.lse, a.lse_n);
        ck_bits(b.dqkv, a.dqkv, a.qkv_n);
    }
    for (int s = 0; s < S; s++) {  // each sequence alone
        size_t first = (size_t)a.start[s], T = (size_t)(a.start[s + 1] - a.start[s]),
               C = (size_t)a.C;
        Attention b = {.S = 1,
                       .NH = NH,
                       .hs = hs,
                       .N = (int)T,
                       .C = a.C,
                       .start = {0, (int)T},
                       .out_n = T * C,
                       .qkv_n = 3 * T * C,
                       .lse_n = T * (size_t)NH,
                       .noise = noise_from(a.noise, (int)first)};
        b.qkv = copy(a.qkv + first * 3 * C, b.qkv_n);
        b.dout = copy(a.dout + first * C, b.out_n);
        attention_run(&b);
        ck_bits(b.out, a.out + first * C, b.out_n);
        ck_bits(b.lse, a.lse + first * (size_t)NH, b.lse_n);
        ck_bits(b.dqkv, a.dqkv + first * 3 * C, b.qkv_n);
    }
    release();
}

static const int attention_lengths[] = {1, 7, 64, 65, 100, 1, 130, 63, 2};
static const int attention_heads[][2] = {{1, 1},  {2, 3},  {3, 8}, {12, 16},
                                         {1, 20}, {2, 64}, {3, 80}};  // NH, hs

START_TEST(attention_values) {
    for (int i = 0; i < LENGTH(attention_heads); i++)
        check_attention(attention_lengths, LENGTH(attention_lengths), attention_heads[i][0],
                        attention_heads[i][1], 1, 0);
    check_attention((const int[]){1}, 1, 1, 1, 1, 0);
    check_attention((const int[]){1}, 1, 3, 20, 1, 0);
    check_attention((const int[]){5, 33}, 2, 12, 64, 1, 0);
    check_attention((const int[]){520}, 1, 1, 16, 1, 0);
    check_attention((const int[]){70}, 1, 2, 128, 1, 0);
    check_attention((const int[]){70}, 1, 2, 48, 1, 0);  // columns of zeros follow these two
    check_attention((const int[]){70}, 1, 2, 50, 1, 0);
}
END_TEST

START_TEST(
    attention_of_large_scores) {  // exp(score) overflows from 89 on: here they reach hundreds
    check_attention((const int[]){130, 67}, 2, 2, 16, 16, 0);
    check_attention((const int[]){200}, 1, 1, 64, 12, 0.2f);
}
END_TEST

START_TEST(attention_with_dropout) {
    for (int i = 0; i < LENGTH(attention_heads); i++)
        check_attention(attention_lengths, LENGTH(attention_lengths), attention_heads[i][0],
                        attention_heads[i][1], 1, 0.3f);
}
END_TEST

START_TEST(attention_is_causal) {
    enum { NH = 2, hs = 8, C = NH * hs, T = 100 };
    for (int k = 0; k < 6; k++) {
        int changed = (const int[]){1, 3, 63, 64, 90, 99}[k];
        Attention before = attention_inputs((const int[]){T}, 1, NH, hs, 1, 0), after = before;
        after.qkv = copy(before.qkv, before.qkv_n);
        for (int c = 0; c < 3 * C; c++)
            after.qkv[changed * 3 * C + c] = stored(after.qkv[changed * 3 * C + c] + 3);
        attention_run(&before);
        attention_run(&after);
        AT("row %d of %d changed", changed, T);
        ck_bits(after.out, before.out, (size_t)changed * C);
        ck_bits(after.lse, before.lse, (size_t)changed * NH);
        for (int n = changed; n < T; n++)
            ck_must(memcmp(after.out + n * C, before.out + n * C, C * sizeof(float)),
                    "%s: row %d did not notice", where, n);
        release();
    }
}
END_TEST

/* Sequences that continue a common beginning have the bits of the same sequences laid out whole;
   and the beginning's gradient is the sum of what it gets by itself and through each of them, here
   from ref.h on the whole ones. */
static void check_shared_beginnings(int NH, int hs, float p) {
    enum { S = 7 };
    static const int lengths[S] = {7, 5, 60, 70, 3, 66, 9}, parent[S] = {-1, 0, 0, -1, 3, 3, -1};
    Attention a = attention_inputs(lengths, S, NH, hs, 1, p);
    const size_t C = (size_t)a.C;
    int *position = (int *)a.noise.position;  // of a continuation: after its parent's
    for (int s = 0; s < S; s++)
        for (int n = a.start[s]; n < a.start[s + 1]; n++)
            position[n] += parent[s] < 0 ? 0 : lengths[parent[s]];
    freeze();
    for (int i = 0; i < block_count; i++)  // the positions changed after they were frozen
        if (blocks[i].words == (uint32_t *)position)
            memcpy(blocks[i].frozen, position, blocks[i].n * sizeof(uint32_t));
    omp_set_num_threads(1);
    a.out = room(a.out_n);
    a.lse = room(a.lse_n);
    a.dqkv = room(a.qkv_n);
    attention_forward(a.out, a.lse, a.qkv, a.start, parent, a.start[S], S, NH, hs, a.noise);
    attention_backward(a.dqkv, a.dout, a.qkv, a.out, a.lse, a.start, parent, a.start[S], S, NH, hs,
                       a.noise);
    double *want = zeros(a.qkv_n);
    for (int s = 0; s < S; s++) {
        AT("NH=%d hs=%d p=%g, sequence %d", NH, hs, (double)p, s);
        const int P = parent[s] < 0 ? 0 : lengths[parent[s]], T = P + lengths[s];
        const size_t before = P ? (size_t)a.start[parent[s]] : 0, own = (size_t)a.start[s];
        Attention w = {
            .S = 1, .NH = NH, .hs = hs, .N = T, .C = a.C, .start = {0, T}, .noise = a.noise};
        w.out_n = (size_t)T * C;
        w.qkv_n = 3 * w.out_n;
        w.lse_n = (size_t)T * (size_t)NH;
        w.qkv = room(w.qkv_n);
        w.dout = filled(w.out_n, 0);
        uint32_t *sequence = room((size_t)T);
        int *at = room((size_t)T);
        for (int t = 0; t < T; t++) {
            size_t n = t < P ? before + (size_t)t : own + (size_t)(t - P);
            memcpy(w.qkv + (size_t)t * 3 * C, a.qkv + n * 3 * C, 3 * C * sizeof(float));
            if (t >= P) memcpy(w.dout + (size_t)t * C, a.dout + n * C, C * sizeof(float));
            sequence[t] = a.noise.sequence[n];
            at[t] = t;
        }
        w.noise.sequence = sequence;
        w.noise.position = at;
        w.out = room(w.out_n);
        w.lse = room(w.lse_n);
        attention_forward(w.out, w.lse, w.qkv, w.start, NULL, w.start[1], 1, NH, hs, w.noise);
        ck_bits(a.out + own * C, w.out + (size_t)P * C, (size_t)lengths[s] * C);
        ck_bits(a.lse + own * (size_t)NH, w.lse + (size_t)P * (size_t)NH,
                (size_t)lengths[s] * (size_t)NH);
        double *dqkv = zeros(w.qkv_n);
        ref_attention_backward(dqkv, widen(w.dout, w.out_n), widen(w.qkv, w.qkv_n), w.start, 1, NH,
                               hs, w.noise);
        for (int t = 0; t < T; t++)
            for (size_t i = 0; i < 3 * C; i++)
                want[(t < P ? before + (size_t)t : own + (size_t)(t - P)) * 3 * C + i] +=
                    dqkv[(size_t)t * 3 * C + i];
    }
    ck_attention_gradient(&a, want, 64 * EPSILON + 16 * (4 + sqrt(hs)) * EPSILON + STORED(16));
    FOR_THREADS(t) {
        float *out = room(a.out_n), *lse = room(a.lse_n), *dqkv = room(a.qkv_n);
        attention_forward(out, lse, a.qkv, a.start, parent, a.start[S], S, NH, hs, a.noise);
        attention_backward(dqkv, a.dout, a.qkv, out, lse, a.start, parent, a.start[S], S, NH, hs,
                           a.noise);
        ck_bits(out, a.out, a.out_n);
        ck_bits(dqkv, a.dqkv, a.qkv_n);
    }
    release();
}

START_TEST(attention_of_shared_beginnings) {
    for (int i = 0; i < LENGTH(attention_heads); i++)
        check_shared_beginnings(attention_heads[i][0], attention_heads[i][1], 0);
    check_shared_beginnings(2, 3, 0.3f);
    check_shared_beginnings(1, 64, 0.3f);
}
END_TEST

/* A token that is NaN shows in its row and in all that follow, in the gradient of its keys and
   values' users, and in no other sequence. (Rows before it need not stay clean: a kernel may
   multiply what it must not see by 0.) */
START_TEST(attention_shows_nan_in_its_sequence_only) {
    enum { NH = 2, hs = 8, C = NH * hs, T = 100 };
    for (int k = 0; k < 3; k++) {
        int bad = (const int[]){3, 64, 90}[k];
        Attention clean = attention_inputs((const int[]){7, T, 9}, 3, NH, hs, 1, 0), a = clean;
        a.qkv = copy(clean.qkv, clean.qkv_n);
        for (int c = 0; c < 3 * C; c++) a.qkv[(7 + bad) * 3 * C + c] = NAN;
        attention_run(&clean);
        attention_run(&a);
        AT("row %d of %d is NaN", bad, T);
        ck_all_nan(a.out + (7 + bad) * C, (size_t)(T - bad) * C);
        for (int n = 0; n <= bad; n++) ck_all_nan(a.dqkv + (7 + n) * 3 * C + C, 2 * C);
        ck_bits(a.out, clean.out, 7 * C);
        ck_bits(a.dqkv, clean.dqkv, 7 * 3 * C);
        ck_bits(a.out + (7 + T) * C, clean.out + (7 + T) * C, 9 * C);
        ck_bits(a.dqkv + (7 + T) * 3 * C, clean.dqkv + (7 + T) * 3 * C, 9 * 3 * C);
        release();
    }
}
END_TEST

/* On an emulated Hopper in bf16, a head of 64 numbers is attended to by warp groups, if that gives
   the bits of warps, which is tried once. Returns the products of 64 x 64 x 16 of one more forward
   and backward pass, for two heads of sequences of 70 and 5 tokens. */
static long products_of_warp_groups(void) {
    Attention a = attention_inputs((const int[]){70, 5}, 2, 2, 64, 1, 0);
    attention_run(&a);
    const long before = cuda_emu_count("products of warp groups");
    attention_run(&a);
    const long after = cuda_emu_count("products of warp groups");
    release();
    return after - before;
}

START_TEST(attention_by_warp_groups) {
    if (!cuda_emu_count) return;
    // 70 tokens have 1 + 2 blocks of 64 keys for their two blocks of queries, 5 have 1. Each takes
    // two products of 64 x 64 x 64 in the forward pass, three for dq, and four for dk and dv
    const long wanted = 2 * (1 + 2 + 1) * (2 + 3 + 4) * 4;
    ck_assert_int_eq(products_of_warp_groups(), sizeof(real) == 2 ? wanted : 0);
}
END_TEST

START_TEST(attention_by_warps_if_warp_groups_have_other_bits) {
    if (!cuda_emu_count) return;
    setenv("CUDA_EMU_WGMMA", "backwards", 1);
    ck_assert_int_eq(products_of_warp_groups(), 0);
    // the comparison: 9 pairs of blocks as above, once without and once with dropout
    const long wanted = 2 * 9 * (2 + 3 + 4) * 4;
    ck_assert_int_eq(cuda_emu_count("products of warp groups"), sizeof(real) == 2 ? wanted : 0);
}
END_TEST

/* Before a test on an emulated GPU that came after Hopper. */
static void begin_on_blackwell(void) {
    setenv("CUDA_EMU_CAPABILITY", "100", 1);
    begin();
}

START_TEST(attention_by_warps_on_blackwell) {
    if (!cuda_emu_count) return;
    ck_assert_int_eq(products_of_warp_groups(), 0);
    ck_assert_int_eq(cuda_emu_count("products of warp groups"), 0);  // nor was it tried
}
END_TEST

enum { ATT_N = 13, ATT_NH = 2, ATT_HS = 3, ATT_C = ATT_NH * ATT_HS, ATT_S = 3 };
static const int att_start[ATT_S + 1] = {0, 1, 8, ATT_N};
static double *ref_lse;
static Noise ref_noise;

static double attention_loss(void) {
    ref_attention_forward(ref_out, ref_lse, ref_inp, att_start, ATT_S, ATT_NH, ATT_HS, ref_noise);
    return dot(ref_out, ref_dout, ATT_N * ATT_C);
}

START_TEST(attention_reference) {
    for (int k = 0; k < 2; k++) {
        ref_noise = noise_over(k ? 0.4f : 0, att_start, ATT_S);
        ref_inp = widen(reals(ATT_N * 3 * ATT_C, 1), ATT_N * 3 * ATT_C);
        ref_dout = widen(reals(ATT_N * ATT_C, 1), ATT_N * ATT_C);
        ref_out = zeros(ATT_N * ATT_C);
        ref_lse = zeros(ATT_N * ATT_NH);
        double *dqkv = zeros(ATT_N * 3 * ATT_C);
        ref_attention_backward(dqkv, ref_dout, ref_inp, att_start, ATT_S, ATT_NH, ATT_HS,
                               ref_noise);
        ck_gradient(dqkv, ref_inp, ATT_N * 3 * ATT_C, attention_loss);
    }
    // a first token sees only itself: its output is its value
    for (int i = 0; i < ATT_C; i++) ref_inp[i] = 5;
    ref_noise.p = 0;
    attention_loss();
    for (int i = 0; i < ATT_C; i++) ck_true(fabs(ref_out[i] - ref_inp[2 * ATT_C + i]) < 1e-15);
    release();
}
END_TEST

/* ---- the same with a cache ------------------------------------------------------------------- */

enum { CACHED_S = 4, SLOTS = 5, POSITIONS = 192 };
static const int cached_lengths[CACHED_S] = {130, 65, 192, 7}, slot_of[CACHED_S] = {3, 0, 4, 1};

/* Sequences in different calls, or the order of their rows in one call. */
typedef enum { SEPARATE, ONE_AFTER_THE_OTHER, ALTERNATING } Feeding;

typedef struct {
    int n, row[CACHED_S * POSITIONS], slot[CACHED_S * POSITIONS],
        position[CACHED_S * POSITIONS];  // row: in the batch
    int S, start[CACHED_S * POSITIONS + 1];
} Call;

static void call_add(Call *call, const Attention *a, int *done, int s) {
    if (done[s] == cached_lengths[s]) return;
    if (!call->n || call->slot[call->n - 1] != slot_of[s]) call->S++;
    call->start[call->S] = call->n + 1;
    call->row[call->n] = a->start[s] + done[s];
    call->slot[call->n] = slot_of[s];
    call->position[call->n] = done[s];
    call->n++;
    done[s]++;
}

/* Feeds the tokens of all sequences to the cache, at most `chunk` of a sequence in a call, and
   compares each row with attention_forward's. */
static void check_cached(const Attention *a, float *cache, int chunk, Feeding feeding) {
    size_t C = (size_t)a->C, fed = 0;
    int done[CACHED_S] = {0};
    for (int turn = 0; fed < (size_t)a->N; turn++) {
        Call call = {.n = 0};  // start[0] is 0
        if (feeding == SEPARATE)
            for (int i = 0; i < chunk; i++) call_add(&call, a, done, turn % CACHED_S);
        if (feeding == ONE_AFTER_THE_OTHER)
            for (int s = 0; s < CACHED_S; s++)
                for (int i = 0; i < chunk; i++) call_add(&call, a, done, s);
        if (feeding == ALTERNATING)
            for (int i = 0; i < chunk; i++)
                for (int s = 0; s < CACHED_S; s++) call_add(&call, a, done, s);
        size_t n = (size_t)call.n;
        fed += n;
        if (!n) continue;
        float *qkv = room(n * 3 * C), *out = room(n * C), *want = room(n * C);
        for (size_t i = 0; i < n; i++) {
            memcpy(qkv + i * 3 * C, a->qkv + (size_t)call.row[i] * 3 * C, 3 * C * sizeof *qkv);
            memcpy(want + i * C, a->out + (size_t)call.row[i] * C, C * sizeof *want);
        }
        attention_cached(out, cache, qkv, call.start, call.slot, call.position, call.n, call.S,
                         POSITIONS, a->NH, a->hs);
        AT("NH=%d hs=%d chunk=%d feeding=%d, %zu rows from slot %d position %d on", a->NH, a->hs,
           chunk, (int)feeding, n, call.slot[0], call.position[0]);
        ck_bits(out, want, n * C);
    }
}

START_TEST(attention_with_a_cache_has_the_same_bits) {
    static const struct {
        int chunk;
        Feeding feeding;
    } ways[] = {
        {1, SEPARATE},
        {1, ALTERNATING},
        {POSITIONS, ONE_AFTER_THE_OTHER},
        {3, ONE_AFTER_THE_OTHER},
        {50, ALTERNATING},
        {64, SEPARATE},
        {7, ALTERNATING},
        {20, ONE_AFTER_THE_OTHER},
    };
    for (int i = 0; i < LENGTH(attention_heads); i++) {
        int NH = attention_heads[i][0], hs = attention_heads[i][1];
        // what was not fed must not count: the cache starts as NaN. Later ways find the slots full
        // of other sequences.
        float *cache = room(cache_bytes(SLOTS, POSITIONS, NH, hs) / sizeof(real));
        for (int k = 0; k < LENGTH(ways); k++) {
            omp_set_num_threads(1 + k % 3);
            float *qkv = reals((size_t)(130 + 65 + 192 + 7) * 3 * (size_t)(NH * hs), 2);
            Attention a = {.S = CACHED_S,
                           .NH = NH,
                           .hs = hs,
                           .N = 130 + 65 + 192 + 7,
                           .C = NH * hs,
                           .qkv = qkv,
                           .start = {0, 130, 195, 387, 394}};
            a.out = room((size_t)(a.N * a.C));
            a.lse = room((size_t)(a.N * NH));
            attention_forward(a.out, a.lse, a.qkv, a.start, NULL, a.start[a.S], a.S, NH, hs,
                              (Noise){.p = 0});
            check_cached(&a, cache, ways[k].chunk, ways[k].feeding);
        }
        release();
    }
}
END_TEST

/* ---- The loss head --------------------------------------------------------------------------- */

START_TEST(rows_are_gathered_and_scattered) {
    enum { R = 4, N = 9, C = 19 };
    int *row = room(R);
    memcpy(row, (const int[R]){7, 0, 3, 8}, R * sizeof(int));
    float *inp = reals(N * C, 1), *few = reals(R * C, 1), *before = reals(N * C, 1);
    freeze();
    FOR_THREADS(t) {
        float *out = room(R * C), *scattered = copy(before, N * C), *want = copy(before, N * C);
        gather_rows(out, inp, row, R, C);
        scatter_rows(scattered, few, row, R, C);
        for (int r = 0; r < R; r++) {
            ck_bits(out + r * C, inp + row[r] * C, C);
            memcpy(want + row[r] * C, few + r * C, C * sizeof *want);
        }
        ck_bits(scattered, want, N * C);
    }
    release();
}
END_TEST

/* A matrix (R,V) with stride ldv, random, with NaN in the columns nobody may look at. */
static float *padded(int R, int V, int ldv, double size) {
    float *x = room((size_t)R * ldv);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            x[(size_t)r * ldv + v] = stored((float)(size * (2 * (double)draw() - 1)));
    return x;
}

static float *tight(const float *x, int R, int V, int ldv) {
    float *out = room((size_t)R * V);
    for (int r = 0; r < R; r++)
        memcpy(out + (size_t)r * V, x + (size_t)r * ldv, (size_t)V * sizeof *out);
    return out;
}

static void ck_padding(const float *x, int R, int V, int ldv) {
    for (int r = 0; r < R; r++)
        for (int v = V; v < ldv; v++)
            ck_must(!memcmp(x + (size_t)r * ldv + v, &guard_word, 4),
                    "%s: column %d of row %d written", where, v, r);
}

/* Columns that products may include. */
static void ck_no_padding(const float *x, int R, int V, int ldv) {
    for (int r = 0; r < R; r++)
        for (int v = V; v < ldv; v++)
            ck_must(x[(size_t)r * ldv + v] == 0, "%s: column %d of row %d is %g, not 0", where, v,
                    r, (double)x[(size_t)r * ldv + v]);
}

static void check_head(int R, int C, int V, int ldv) {
    AT("R=%d C=%d V=%d ldv=%d", R, C, V, ldv);
    size_t inp_n = (size_t)R * C, wte_n = (size_t)V * C, out_n = (size_t)R * V;
    float *inp = reals(inp_n, 1), *wte = reals(wte_n, 1), *dwte_before = reals(wte_n, 1),
          *dlogits = padded(R, V, ldv, 1);
    freeze();
    double *logits_ref = zeros(out_n), *dinp_ref = zeros(inp_n),
           *dwte_ref = widen(dwte_before, wte_n);
    ref_head_forward(logits_ref, widen(inp, inp_n), widen(wte, wte_n), R, C, V, V);
    ref_head_backward(dinp_ref, dwte_ref, widen(dlogits, (size_t)R * ldv), widen(inp, inp_n),
                      widen(wte, wte_n), R, C, V, ldv);
    float *logits_chain = room(out_n), *dinp_chain = room(inp_n), *dwte_chain = room(wte_n);
    for (int r = 0; r < R; r++) {
        for (int v = 0; v < V; v++)
            logits_chain[(size_t)r * V + v] =
                ref_chain(0, inp + (size_t)r * C, 1, wte + (size_t)v * C, 1, C);
        for (int c = 0; c < C; c++)
            dinp_chain[(size_t)r * C + c] =
                ref_chain(0, dlogits + (size_t)r * ldv, 1, wte + c, (size_t)C, V);
    }
    for (int v = 0; v < V; v++)
        for (int c = 0; c < C; c++) {
            size_t at = (size_t)v * C + c;
            dwte_chain[at] =
                ref_chain(dwte_before[at], dlogits + v, (size_t)ldv, inp + c, (size_t)C, R);
        }
    ck_close(logits_chain, logits_ref, out_n, product_tolerance(C));
    ck_close(dinp_chain, dinp_ref, inp_n, product_tolerance(V));
    ck_close(dwte_chain, dwte_ref, wte_n, product_tolerance(R));
    freeze();

    FOR_THREADS(t) {
        float *logits = room((size_t)R * ldv), *dinp = room(inp_n), *dinp_alone = room(inp_n);
        float *dwte = copy(dwte_before, wte_n);
        head_forward(logits, inp, wte, R, C, V, ldv);
        float *dense = tight(logits, R, V, ldv);
        ck_chain(dense, logits_chain, out_n, product_tolerance(C) + STORED(1));
        ck_padding(logits, R, V, ldv);
        head_backward(dinp, dwte, dlogits, inp, wte, R, C, V, ldv);
        ck_chain(dinp, dinp_chain, inp_n, product_tolerance(V) + STORED(1));
        ck_chain(dwte, dwte_chain, wte_n, product_tolerance(R));
        head_backward(dinp_alone, NULL, dlogits, inp, wte, R, C, V, ldv);
        ck_bits(dinp_alone, dinp, inp_n);
        float *last = room((size_t)V), *dinp_last = room((size_t)C);  // the last row alone
        head_forward(last, inp + inp_n - C, wte, 1, C, V, V);
        ck_bits(last, dense + out_n - V, (size_t)V);
        head_backward(dinp_last, NULL, dlogits + (size_t)(R - 1) * ldv, inp + inp_n - C, wte, 1, C,
                      V, ldv);
        ck_bits(dinp_last, dinp + inp_n - C, (size_t)C);
    }
    float *dwte = copy(dwte_before, wte_n);  // two halves
    int half = R / 2;
    head_backward(NULL, dwte, dlogits, inp, wte, half, C, V, ldv);
    head_backward(NULL, dwte, dlogits + (size_t)half * ldv, inp + (size_t)half * C, wte, R - half,
                  C, V, ldv);
    ck_chain(dwte, dwte_chain, wte_n, product_tolerance(R));
    release();
}

START_TEST(head_is_the_documented_chain_to_the_bit) {
    static const int shapes[][4] = {
        {1, 1, 3, 3},        {2, 3, 5, 8},          {5, 17, 61, 64},       {6, 16, 257, 257},
        {7, 48, 1003, 1008}, {17, 100, 61, 77},     {64, 33, 257, 264},    {97, 8, 5, 16},
        {1, 768, 61, 61},    {200, 48, 1003, 1003}, {3, 24, 50257, 50264}, {1, 24, 50257, 50257},
        {13, 769, 100, 101}, {17, 8, 50257, 50257}, {50, 5, 3100, 3104},
    };
    for (int i = 0; i < LENGTH(shapes); i++)
        check_head(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3]);
}
END_TEST

static double head_loss(void) {
    ref_head_forward(ref_out, ref_inp, ref_weight, REF_N, REF_IC, REF_OC, REF_OC + 1);
    return dot(ref_out, ref_dout, REF_N * (REF_OC + 1));
}

START_TEST(head_reference) {
    ref_inp = widen(reals(REF_N * REF_IC, 1), REF_N * REF_IC);
    ref_weight = widen(reals(REF_OC * REF_IC, 1), REF_OC * REF_IC);
    ref_out = zeros(REF_N * (REF_OC + 1));
    ref_dout = widen(reals(REF_N * (REF_OC + 1), 1), REF_N * (REF_OC + 1));
    double *dinp = zeros(REF_N * REF_IC), *dwte = zeros(REF_OC * REF_IC);
    ref_head_backward(dinp, dwte, ref_dout, ref_inp, ref_weight, REF_N, REF_IC, REF_OC, REF_OC + 1);
    ck_gradient(dinp, ref_inp, REF_N * REF_IC, head_loss);
    ck_gradient(dwte, ref_weight, REF_OC * REF_IC, head_loss);
}
END_TEST

/* ---- log-probabilities ----------------------------------------------------------------------- */

typedef struct {
    int R, V, ldv;
    float *logits, *dlogp, *dentropy;
    int *target;
    float *logp, *entropy, *lse, *dlogits;  // results
    int *best;
} Logprob;

static void logprob_run(Logprob *l) {
    size_t R = (size_t)l->R;
    l->logp = room(R);
    l->entropy = room(R);
    l->lse = room(R);
    l->best = room(R);
    logprob_forward(l->logp, l->entropy, l->lse, l->best, l->logits, l->target, 1, l->R, l->V,
                    l->ldv);
    l->dlogits = copy(l->logits, R * (size_t)l->ldv);
    logprob_backward(l->dlogits, l->lse, l->entropy, l->target, l->dlogp, l->dentropy, 1, l->R,
                     l->V, l->ldv);
}

static Logprob logprob_inputs(float *logits, int R, int V, int ldv) {
    Logprob l = {.R = R, .V = V, .ldv = ldv, .logits = logits, .target = indices((size_t)R, V)};
    l.dlogp = reals((size_t)R, 1);
    l.dentropy = reals((size_t)R, 1);
    freeze();
    return l;
}

/* The gradient of row r, element by element: p_v times what the formula multiplies it with, to a
   relative tolerance, but the target's 1 - p rounds like a number of size 1. exp() may be 0 where p
   is below the smallest float. */
static void ck_dlogits(const Logprob *l, int r, const float *dlogits, const double *want,
                       const double *dentropy, double tolerance) {
    size_t row = (size_t)r * l->ldv;
    const float *logit = l->logits + row;
    double lse = ref_log_sum_exp(widen(logit, (size_t)l->V), l->V), d = fabs((double)l->dlogp[r]),
           sum = 0;
    for (int v = 0; v < l->V; v++) {
        double log_p = (double)logit[v] - lse, got = (double)dlogits[row + v],
               right = want[row + v];
        double size = d + (dentropy ? fabs(dentropy[r]) * (1 + fabs(log_p) + log(l->V)) : 0);
        double allowed = tolerance * exp(log_p) * size + (v == l->target[r] ? 4 * EPSILON * d : 0) +
                         STORED(1) * fabs(right) + 1e-36;
        ck_must(fabs(got - right) <= allowed,
                "%s: dlogits[%d][%d] is %.9g, not %.9g; tolerance %.3g", where, r, v, got, right,
                allowed);
        sum += got;
    }
    // the parts of the sum of 0 are p_v times their size, of which all but the logarithm of V is
    // bounded by 1 on average
    ck_must(fabs(sum) <= (2 * tolerance + STORED(1)) * (1 + log(l->V)),
            "%s: row %d of dlogits sums to %g, not 0", where, r, sum);
}

/* size: of the largest logits. A logit carries an error of EPSILON of its size before anything is
   computed, and so does lse; p = exp(logit - lse) has that as its relative error. The sum over V
   adds a little. */
static void check_logprob(float *logits, int R, int V, int ldv, double size) {
    AT("R=%d V=%d ldv=%d logits up to %g", R, V, ldv, size);
    Logprob l = logprob_inputs(logits, R, V, ldv);
    size_t n = (size_t)R, all = (size_t)R * ldv;
    double *logp_ref = zeros(n), *entropy_ref = zeros(n), *lse_ref = zeros(n),
           *dlogits_ref = widen(logits, all);
    double *dentropy = widen(l.dentropy, n);
    int *best_ref = room(n);
    ref_logprob_forward(logp_ref, entropy_ref, lse_ref, best_ref, dlogits_ref, l.target, R, V, ldv);
    ref_logprob_backward(dlogits_ref, lse_ref, entropy_ref, l.target, widen(l.dlogp, n), dentropy,
                         R, V, ldv);
    omp_set_num_threads(1);
    logprob_run(&l);
    double tolerance = (24 + 4 * size + 4 * log(V)) * EPSILON;
    ck_close(l.lse, lse_ref, n, tolerance);
    for (int r = 0; r < R; r++) {
        // a log-probability near 0 and an entropy near 0 are differences of numbers of size 1
        ck_must(fabs((double)l.logp[r] - logp_ref[r]) <= tolerance * (1 + fabs(logp_ref[r])),
                "%s: logp[%d] is %.9g, not %.9g", where, r, (double)l.logp[r], logp_ref[r]);
        ck_must(fabs((double)l.entropy[r] - entropy_ref[r]) <= 4 * tolerance,
                "%s: entropy[%d] is %.9g, not %.9g", where, r, (double)l.entropy[r],
                entropy_ref[r]);
        ck_must(l.best[r] == best_ref[r], "%s: best[%d] is %d, not %d", where, r, l.best[r],
                best_ref[r]);
        ck_dlogits(&l, r, l.dlogits, dlogits_ref, dentropy, tolerance);
    }
    ck_no_padding(l.dlogits, R, V, ldv);

    FOR_THREADS(t) {
        Logprob m = l;
        logprob_run(&m);
        ck_bits(m.logp, l.logp, n);
        ck_bits(m.entropy, l.entropy, n);
        ck_bits(m.lse, l.lse, n);
        ck_bits((float *)m.best, (float *)l.best, n);
        ck_bits(m.dlogits, l.dlogits, all);
        logprob_forward(m.logp, NULL, m.lse, NULL, logits, l.target, 1, R, V,
                        ldv);  // the optional outputs change nothing
        ck_bits(m.logp, l.logp, n);
        ck_bits(m.lse, l.lse, n);
    }
    for (int r = 0; r < R; r++) {  // each row alone
        Logprob m = {.R = 1,
                     .V = V,
                     .ldv = V,
                     .logits = copy(logits + (size_t)r * ldv, (size_t)V),
                     .target = l.target + r,
                     .dlogp = l.dlogp + r,
                     .dentropy = l.dentropy + r};
        logprob_run(&m);
        ck_bits(m.logp, l.logp + r, 1);
        ck_bits(m.entropy, l.entropy + r, 1);
        ck_bits(m.lse, l.lse + r, 1);
        ck_bits((float *)m.best, (float *)l.best + r, 1);
        ck_bits(m.dlogits, l.dlogits + (size_t)r * ldv, (size_t)V);
    }

    // without an entropy, and without anything
    double *plain_ref = widen(logits, all);
    ref_logprob_backward(plain_ref, lse_ref, NULL, l.target, widen(l.dlogp, n), NULL, R, V, ldv);
    float *plain = copy(logits, all), *nothing = copy(logits, all), *zero = filled(n, 0);
    logprob_backward(plain, l.lse, NULL, l.target, l.dlogp, NULL, 1, R, V, ldv);
    ck_no_padding(plain, R, V, ldv);
    for (int r = 0; r < R; r++) ck_dlogits(&l, r, plain, plain_ref, NULL, tolerance);
    logprob_backward(nothing, l.lse, l.entropy, l.target, zero, zero, 1, R, V, ldv);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) ck_true(nothing[(size_t)r * ldv + v] == 0);
    release();
}

START_TEST(logprob_values) {
    static const int shapes[][3] = {
        {1, 1, 1},   {1, 3, 3},      {2, 5, 8},       {5, 61, 64},       {7, 257, 257},
        {17, 8, 16}, {64, 100, 103}, {3, 1003, 1003}, {3, 50257, 50264}, {1, 50257, 50257}};
    static const double sizes[] = {1, 20};
    for (int i = 0; i < LENGTH(shapes); i++)
        for (int k = 0; k < LENGTH(sizes); k++) {
            int R = shapes[i][0], V = shapes[i][1], ldv = shapes[i][2];
            check_logprob(padded(R, V, ldv, sizes[k]), R, V, ldv, sizes[k]);
        }
}
END_TEST

/* At a temperature: what the same kernel gives for logits that are multiplied by beta beforehand,
   to rounding; and the gradient by the logits is beta times theirs. beta is a power of two, so that
   multiplying rounds nothing, and then a number that does. */
START_TEST(logprob_at_a_temperature) {
    enum { R = 5, V = 61, LDV = 64 };
    for (int k = 0; k < (SHORT ? 2 : 3); k++) {  // bf16 holds the multiples by a power of two only
        const float beta = (const float[]){2, 0.25f, 1 / 0.7f}[k];
        AT("beta=%g", (double)beta);
        Logprob l = logprob_inputs(padded(R, V, LDV, 3), R, V, LDV), scaled = l;
        scaled.logits = copy(l.logits, R * LDV);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) scaled.logits[r * LDV + v] *= beta;
        logprob_run(&scaled);
        l.logp = room(R);
        l.entropy = room(R);
        l.lse = room(R);
        l.best = room(R);
        l.dlogits = copy(l.logits, R * LDV);
        logprob_forward(l.logp, l.entropy, l.lse, l.best, l.logits, l.target, beta, R, V, LDV);
        logprob_backward(l.dlogits, l.lse, l.entropy, l.target, l.dlogp, l.dentropy, beta, R, V,
                         LDV);
        ck_no_padding(l.dlogits, R, V, LDV);
        ck_close(l.logp, widen(scaled.logp, R), R, 16 * EPSILON);
        ck_close(l.entropy, widen(scaled.entropy, R), R, 16 * EPSILON);
        ck_close(l.lse, widen(scaled.lse, R), R, 16 * EPSILON);
        for (int r = 0; r < R; r++) {
            ck_true(l.best[r] == scaled.best[r]);
            double *want = widen(scaled.dlogits + r * LDV, V);
            for (int v = 0; v < V; v++) want[v] *= (double)beta;
            ck_close(l.dlogits + r * LDV, want, V, 64 * EPSILON + STORED(2));
        }
        release();
    }
}
END_TEST

/* ---- divergence ------------------------------------------------------------------------------ */

START_TEST(divergence_values) {
    static const int shapes[][3] = {{1, 1, 1}, {3, 5, 8}, {2, 257, 257}, {4, 1003, 1008}};
    for (int i = 0; i < LENGTH(shapes); i++)
        for (int k = 0; k < 2; k++) {
            const int R = shapes[i][0], V = shapes[i][1], ldv = shapes[i][2];
            const float beta = k ? 0.5f : 1;
            AT("R=%d V=%d beta=%g", R, V, (double)beta);
            float *x = padded(R, V, ldv, 4), *y = padded(R, V, ldv, 4);
            int *target = indices((size_t)R, V);
            freeze();
            float *kl = room((size_t)R), *lse_x = room((size_t)R), *lse_y = room((size_t)R),
                  *logp = room((size_t)R);
            logprob_forward(logp, NULL, lse_x, NULL, x, target, beta, R, V, ldv);
            logprob_forward(logp, NULL, lse_y, NULL, y, target, beta, R, V, ldv);
            kl_forward(kl, x, lse_x, y, lse_y, beta, R, V, ldv);
            for (int r = 0; r < R; r++) {
                double *wide_x = widen(x + r * ldv, (size_t)V),
                       *wide_y = widen(y + r * ldv, (size_t)V);
                for (int v = 0; v < V; v++) {
                    wide_x[v] *= (double)beta;
                    wide_y[v] *= (double)beta;
                }
                double want =
                    ref_kl(wide_x, wide_y,
                           V);  // log p and log q each carry an error of the size of a logit
                ck_must(fabs((double)kl[r] - want) <= 64 * EPSILON * (1 + want),
                        "%s: kl[%d] is %.9g, not %.9g", where, r, (double)kl[r], want);
            }
            kl_forward(kl, x, lse_x, x, lse_x, beta, R, V,
                       ldv);  // of a distribution with itself it is nothing
            for (int r = 0; r < R; r++) ck_true(kl[r] == 0);
            FOR_THREADS(t) {
                float *again = room((size_t)R), *first = room((size_t)R);
                kl_forward(first, x, lse_x, y, lse_y, beta, R, V, ldv);
                for (int r = 0; r < R; r++)
                    kl_forward(again + r, x + r * ldv, lse_x + r, y + r * ldv, lse_y + r, beta, 1,
                               V, ldv);
                ck_bits(again, first, (size_t)R);
            }
            release();
        }
    // tokens that one of them rules out
    float *x = copy((const float[]){0, -INFINITY, 0}, 3),
          *y = copy((const float[]){0, 0, -INFINITY}, 3), *z = filled(3, 0);
    float *lse_x = copy(&(const float){logf(2)}, 1), *lse_z = copy(&(const float){logf(3)}, 1),
          *kl = room(1);
    kl_forward(kl, x, lse_x, z, lse_z, 1, 1, 3, 3);
    ck_must(fabs((double)*kl - log(1.5)) < 1e-6, "KL is %g, not log 3/2", (double)*kl);
    kl_forward(kl, x, lse_x, y, lse_x, 1, 1, 3, 3);
    ck_must(isinf(*kl) && *kl > 0, "KL is %g, not infinite", (double)*kl);
    float *bad = copy((const float[]){0, NAN, 0}, 3);
    kl_forward(kl, bad, lse_x, y, lse_x, 1, 1, 3, 3);
    ck_must(isnan(*kl), "KL is %g, not NaN", (double)*kl);
    release();
}
END_TEST

/* ---- the scalar head ------------------------------------------------------------------------- */

START_TEST(value_and_its_gradient) {
    static const int shapes[][2] = {{1, 1}, {3, 7}, {17, 40}, {5, 768}};
    for (int i = 0; i < LENGTH(shapes); i++) {
        const int N = shapes[i][0], C = shapes[i][1];
        AT("N=%d C=%d", N, C);
        const size_t n = (size_t)N * (size_t)C;
        float *inp = reals(n, 1), *weight = reals((size_t)C, 1), *bias = reals(1, 1),
              *dvalue = reals((size_t)N, 1), *start = reals(n, 1);
        if (N > 1) dvalue[1] = 0;  // a token that no loss looks at
        freeze();
        double *value = zeros((size_t)N), *dinp = widen(start, n), *dweight = zeros((size_t)C),
               dbias = 0.5;
        for (int r = 0; r < N; r++) {
            value[r] = (double)*bias;
            dbias += (double)dvalue[r];
            for (int c = 0; c < C; c++) {
                value[r] += (double)inp[r * C + c] * (double)weight[c];
                dinp[r * C + c] += (double)dvalue[r] * (double)weight[c];
                dweight[c] += (double)dvalue[r] * (double)inp[r * C + c];
            }
        }
        float *got = room((size_t)N), *got_dinp = copy(start, n),
              *got_dweight = filled((size_t)C, 0), *got_dbias = filled(1, 0.5f);
        value_forward(got, inp, weight, bias, N, C);
        value_backward(got_dinp, got_dweight, got_dbias, dvalue, inp, weight, N, C);
        ck_close(got, value, (size_t)N, (16 + sqrt(C)) * EPSILON);
        ck_close(got_dinp, dinp, n, 8 * EPSILON + STORED(1));
        ck_close(got_dweight, dweight, (size_t)C, (16 + N) * EPSILON);
        ck_close(got_dbias, &dbias, 1, (16 + N) * EPSILON);
        if (N > 1) ck_bits(got_dinp + C, start + C, (size_t)C);
        FOR_THREADS(t) {
            float *again = room((size_t)N), *d = copy(start, n), *dw = filled((size_t)C, 0);
            for (int r = 0; r < N; r++) value_forward(again + r, inp + r * C, weight, bias, 1, C);
            ck_bits(again, got, (size_t)N);
            value_backward(d, dw, NULL, dvalue, inp, weight, N, C);
            ck_bits(d, got_dinp, n);
            ck_bits(dw, got_dweight, (size_t)C);
        }
        release();
    }
}
END_TEST

START_TEST(logprob_of_extreme_logits) {
    check_logprob(padded(6, 61, 61, 1e4), 6, 61, 61, 1e4);
    float *x = padded(4, 37, 40, 1);
    for (int v = 0; v < 37; v++) {
        x[v] = v % 2 ? 1e4f : -1e4f;         // ties at both ends
        x[40 + v] = v == 36 ? 1e4f : -1e4f;  // certain, and the likeliest in the last column
        x[80 + v] = -1e4f;                   // equal
        x[120 + v] = v == 5 || v == 30 ? 1e30f : -1e30f;
    }
    for (int r = 0; r < 4; r++) store(x + r * 40, 37);
    freeze();
    AT("logits of +-1e4 and +-1e30");
    Logprob l = logprob_inputs(x, 4, 37, 40);
    l.target = memcpy(room(4), (const int[]){2, 36, 7, 6}, 4 * sizeof(int));
    logprob_run(&l);
    ck_assert_int_eq(l.best[0], 1);
    ck_assert_int_eq(l.best[1], 36);
    ck_assert_int_eq(l.best[2], 0);
    ck_assert_int_eq(l.best[3], 5);
    ck_true(l.logp[0] < -1.99e4f && l.logp[1] == 0 && l.logp[3] == -2 * stored(1e30f));
    ck_true(fabs((double)l.logp[2] + log(37)) < 4 * 1e4 * EPSILON);
    ck_true(fabs((double)l.entropy[0] - log(18)) < 1e-4 &&
            l.entropy[1] == 0);  // p is exact to 1e4 * EPSILON
    ck_true(fabs((double)l.entropy[2] - log(37)) < 1e-4);
    for (int r = 0; r < 4; r++)
        for (int v = 0; v < 37; v++)
            ck_must(isfinite(l.dlogits[r * 40 + v]), "dlogits[%d][%d] is not finite", r, v);
    release();
}
END_TEST

START_TEST(entropy_of_equal_logits_is_log_V) {
    static const int sizes[] = {1, 2, 3, 8, 61, 257, 50257};
    for (int i = 0; i < LENGTH(sizes); i++) {
        int V = sizes[i], *target = room(1), *best = room(1);
        float *x = filled((size_t)V, 3.25f), *logp = room(1), *entropy = room(1), *lse = room(1);
        *target = V - 1;
        logprob_forward(logp, entropy, lse, best, x, target, 1, 1, V, V);
        AT("V=%d", V);
        double want = log(V), minus = -want;
        ck_close(entropy, &want, 1, 16 * EPSILON);
        ck_close(logp, &minus, 1, 16 * EPSILON);
        ck_assert_int_eq(*best, 0);
        release();
    }
}
END_TEST

START_TEST(logprob_shows_nan_in_its_row_only) {
    enum { R = 5, V = 29 };
    for (int column = 0; column < V; column++) {
        float *x = padded(R, V, V, 1);
        Logprob clean = logprob_inputs(copy(x, R * V), R, V, V), l = clean;
        logprob_run(&clean);
        l.logits = copy(x, R * V);
        l.logits[2 * V + column] = NAN;
        logprob_run(&l);
        AT("column %d", column);
        ck_true(isnan(l.logp[2]) && isnan(l.entropy[2]) && isnan(l.lse[2]) && l.best[2] >= 0 &&
                l.best[2] < V);
        ck_all_nan(l.dlogits + 2 * V, V);
        memcpy(l.dlogits + 2 * V, clean.dlogits + 2 * V, V * sizeof(float));
        l.logp[2] = clean.logp[2];
        ck_bits(l.dlogits, clean.dlogits, R * V);
        ck_bits(l.logp, clean.logp, R);
        release();
    }
}
END_TEST

static double *ref_entropy, *ref_dentropy;
static int *ref_target, *ref_best;

static double logprob_loss(void) {
    ref_logprob_forward(ref_out, ref_entropy, ref_lse, ref_best, ref_inp, ref_target, REF_N, REF_OC,
                        REF_OC + 2);
    return dot(ref_out, ref_dout, REF_N) + dot(ref_entropy, ref_dentropy, REF_N);
}

START_TEST(rows_are_scaled) {
    float *x = reals(5 * 7, 1), *factor = reals(5, 1), *scaled = copy(x, 5 * 7);
    freeze();
    float *got = copy(x, 5 * 7);
    scale_rows(got, factor, 5, 7);
    for (int i = 0; i < 35; i++) ck_true(got[i] == stored(scaled[i] * factor[i / 7]));
    release();
}
END_TEST

START_TEST(the_largest_difference_of_logits) {
    enum { R = 3, ROW = 21 };
    float *a = reals(R * ROW, 1), *b = copy(a, R * ROW);
    for (int i = 0; i < R; i++) b[i * ROW + 20] = 1000;  // beyond V
    ck_true(largest_difference(a, b, R, 20, ROW) == 0);
    b[2 * ROW + 19] = stored(a[2 * ROW + 19] - 3);
    b[7] = stored(a[7] + 1);
    ck_true(largest_difference(a, b, R, 20, ROW) == fabsf(a[2 * ROW + 19] - b[2 * ROW + 19]));
    a[4] = -7;
    ck_true(largest_difference(a, NULL, R, 20, ROW) == 7);
    b[4] = NAN;
    ck_true(isinf(largest_difference(a, b, R, 20, ROW)));
    release();
}
END_TEST

START_TEST(logprob_reference) {
    enum { n = REF_N * (REF_OC + 2) };
    ref_inp = zeros(n);
    for (int r = 0; r < REF_N; r++)
        for (int v = 0; v < REF_OC; v++) ref_inp[r * (REF_OC + 2) + v] = 2 * (double)draw();
    ref_target = indices(REF_N, REF_OC);
    ref_best = room(REF_N);
    ref_dout = widen(reals(REF_N, 1), REF_N);
    ref_dentropy = widen(reals(REF_N, 1), REF_N);
    ref_out = zeros(REF_N);
    ref_entropy = zeros(REF_N);
    ref_lse = zeros(REF_N);
    logprob_loss();
    double *dlogits = zeros(n);
    memcpy(dlogits, ref_inp, n * sizeof *dlogits);
    ref_logprob_backward(dlogits, ref_lse, ref_entropy, ref_target, ref_dout, ref_dentropy, REF_N,
                         REF_OC, REF_OC + 2);
    ck_gradient(dlogits, ref_inp, n, logprob_loss);

    // three logits, by hand: e^0 : e^log2 : e^log5 = 1/8, 2/8, 5/8
    double logits[3] = {0, log(2), log(5)}, logp, entropy, lse;
    int target = 2, best;
    ref_logprob_forward(&logp, &entropy, &lse, &best, logits, &target, 1, 3, 3);
    ck_true(fabs(logp - log(0.625)) < 1e-15 && fabs(lse - log(8)) < 1e-15 && best == 2);
    ck_true(fabs(entropy + 0.125 * log(0.125) + 0.25 * log(0.25) + 0.625 * log(0.625)) < 1e-15);
    release();
}
END_TEST

/* ---- Sampling -------------------------------------------------------------------------------- */

/* An emulated GPU looks for what top_k and top_p keep at a thousandth of a GPU's speed. */
static int draws(int R, int emulated) { return strstr(device_name(), "emulated") ? emulated : R; }

/* R draws from one row of logits, for uniforms over the whole of [0, 1). */
static void check_sample(const float *logits, int V, int R, float temperature, int top_k,
                         float top_p) {
    AT("V=%d temperature=%g top_k=%d top_p=%g", V, (double)temperature, top_k, (double)top_p);
    int ldv = V + 3;
    float *rows = room((size_t)R * ldv), *uniform = room((size_t)R);
    for (int r = 0; r < R; r++) {
        memcpy(rows + (size_t)r * ldv, logits, (size_t)V * sizeof *rows);
        uniform[r] = ((float)r + draw()) / (float)R;
        if (uniform[r] > 1 - 0x1p-24f) uniform[r] = 1 - 0x1p-24f;
    }
    uniform[0] = 0;
    uniform[R - 1] = 1 - 0x1p-24f;
    freeze();
    double *p = zeros((size_t)V), *wide = widen(logits, (size_t)V);
    ref_sample_distribution(p, wide, V, (double)temperature, top_k, (double)top_p);
    for (int v = 0; v < V; v++) wide[v] /= (double)temperature;
    double lse = ref_log_sum_exp(wide, V), size = fabs(wide[ref_argmax(wide, V)]);

    omp_set_num_threads(1);
    int *token = room((size_t)R);
    float *logp = room((size_t)R);
    sample(token, logp, rows, R, V, ldv, temperature, top_k, top_p, uniform);
    for (int r = 0; r < R; r++) {
        ck_must(token[r] >= 0 && token[r] < V, "%s: token %d", where, token[r]);
        // within the rounding of the cumulative sum (V additions of parts of 1) a neighbour is as
        // good
        double u = (double)uniform[r], slack = (16 + 2 * size + sqrt(V)) * EPSILON;
        int low = ref_sample(p, V, u - slack), high = ref_sample(p, V, u + slack);
        ck_must(token[r] >= low && token[r] <= high && p[token[r]] > 0,
                "%s: uniform %.9g gave token %d (probability %.9g), not %d", where, u, token[r],
                p[token[r]], ref_sample(p, V, u));
        double want = wide[token[r]] - lse;
        ck_must(fabs((double)logp[r] - want) <=
                    (16 + 4 * size + 4 * log(V)) * EPSILON * (1 + fabs(want)),
                "%s: logp of token %d is %.9g, not %.9g", where, token[r], (double)logp[r], want);
    }
    FOR_THREADS(t) {
        int *token_t = room((size_t)R);
        float *logp_t = room((size_t)R);
        sample(token_t, logp_t, rows, R, V, ldv, temperature, top_k, top_p, uniform);
        ck_bits((float *)token_t, (float *)token, (size_t)R);
        ck_bits(logp_t, logp, (size_t)R);
        sample(token_t, NULL, rows, R, V, ldv, temperature, top_k, top_p, uniform);
        ck_bits((float *)token_t, (float *)token, (size_t)R);
    }
    int token_1;
    sample(&token_1, logp, rows + (size_t)(R / 2) * ldv, 1, V, V, temperature, top_k, top_p,
           uniform + R / 2);
    ck_assert_int_eq(token_1, token[R / 2]);
    release();
}

START_TEST(sample_is_the_inverse_of_the_cumulative_distribution) {
    static const int vocabulary[] = {1, 3, 5, 61, 257, 1003};
    static const struct {
        float temperature;
        int top_k;
        float top_p;
    } settings[] = {
        {1, 0, 1},     {0.7f, 0, 1},    {2.5f, 0, 1},      {1, 1, 1},     {1, 2, 1},
        {1, 4, 1},     {1, 40, 1},      {1, 1000, 1},      {1, 0, 0.9f},  {1, 0, 0.5f},
        {1, 0, 1e-6f}, {0.8f, 7, 0.8f}, {1.5f, 50, 0.95f}, {0.01f, 0, 1},
    };
    for (int i = 0; i < LENGTH(vocabulary); i++)
        for (int k = 0; k < LENGTH(settings); k++) {
            float logits[1003];
            for (int v = 0; v < vocabulary[i]; v++) logits[v] = stored(6 * draw() - 3);
            check_sample(logits, vocabulary[i], draws(300, 12), settings[k].temperature,
                         settings[k].top_k, settings[k].top_p);
        }
}
END_TEST

START_TEST(sample_from_a_real_vocabulary) {
    enum { V = 50257 };
    float *logits = xmalloc(V * sizeof *logits);
    for (int v = 0; v < V; v++) logits[v] = stored(20 * draw() * draw() * draw());
    const int R = draws(20, 3);
    check_sample(logits, V, R, 1, 0, 1);
    check_sample(logits, V, R, 1, 40, 1);
    check_sample(logits, V, R, 0.9f, 1000, 0.9f);
    free(logits);
}
END_TEST

START_TEST(sample_with_ties_keeps_the_lower_tokens) {
    static const float equal[12] = {0}, two_levels[9] = {1, 0, 1, 0, 1, 0, 1, 0, 1};
    check_sample(equal, 12, draws(200, 24), 1, 0, 1);
    check_sample(equal, 12, draws(200, 24), 1, 5, 1);
    check_sample(equal, 12, draws(200, 24), 1, 0, 0.55f);  // 0.55 * 12 = 6.6: seven tokens
    check_sample(two_levels, 9, draws(200, 24), 1, 3, 1);
    check_sample(two_levels, 9, draws(200, 24), 1, 7, 1);  // five ones and the first two zeros
    check_sample(two_levels, 9, draws(200, 24), 1, 0, 0.3f);
    check_sample(two_levels, 9, draws(200, 24), 1, 7, 0.85f);
}
END_TEST

/* The ids of equal logits have several digits, and +0 equals -0. */
START_TEST(sample_with_many_ties_keeps_the_lower_tokens) {
    enum { V = 1003 };
    static const float level[] = {-2, -1.5f, -0.0f, 0, 0.5f, 1};
    float logits[V];
    for (int v = 0; v < V; v++) logits[v] = level[(int)(draw() * LENGTH(level))];
    static const int top_k[] = {3, 100, 201, 350, 500, 777, 999, 1002};
    static const float top_p[] = {0.01f, 0.25f, 0.5f, 0.77f, 0.97f, 0.9999f};
    for (int i = 0; i < LENGTH(top_k); i++) check_sample(logits, V, draws(300, 24), 1, top_k[i], 1);
    for (int i = 0; i < LENGTH(top_p); i++) check_sample(logits, V, draws(300, 24), 1, 0, top_p[i]);
    check_sample(logits, V, draws(300, 24), 0.7f, 600, 0.6f);
}
END_TEST

START_TEST(sample_never_draws_the_impossible) {
    float logits[37];
    for (int v = 0; v < 37; v++)
        logits[v] = v == 4 || v == 20 || v == 33 ? 2 : stored(-1e4f);  // exp(-1e4) is 0
    check_sample(logits, 37, draws(100, 24), 1, 0, 1);
    check_sample(logits, 37, draws(100, 24), 1, 2, 1);
    check_sample(logits, 37, draws(100, 24), 1, 30, 1);
    check_sample(logits, 37, draws(100, 24), 1, 0, 0.99f);
}
END_TEST

START_TEST(sample_at_temperature_0_is_the_argmax) {
    enum { R = 6, V = 61, LDV = 64 };
    float *logits = padded(R, V, LDV, 3), *uniform = room(R);
    for (int r = 0; r < R; r++) uniform[r] = (float)r / R;
    logits[LDV + 7] = logits[LDV + 50] = 9;  // a tie: the lower
    logits[2 * LDV + 60] = 9;                // the last
    logits[3 * LDV] = 9;                     // the first
    freeze();
    float *logp = room(R), *lse = room(R), *want = room(R);
    int *token = room(R), *best = room(R);
    static const int top_k[] = {0, 5};
    for (int k = 0; k < 2; k++) {
        sample(token, logp, logits, R, V, LDV, 0, top_k[k], 0.5f, uniform);
        ck_assert_int_eq(token[1], 7);
        ck_assert_int_eq(token[2], 60);
        ck_assert_int_eq(token[3], 0);
        logprob_forward(want, NULL, lse, best, logits, token, 1, R, V,
                        LDV);  // logp is of temperature 1
        for (int r = 0; r < R; r++) {
            ck_assert_int_eq(token[r], best[r]);
            ck_true(fabs((double)(logp[r] - want[r])) <= 64 * EPSILON);
        }
    }
    int *one = room(R);
    sample(one, NULL, logits, R, V, LDV, 1, 1, 1, uniform);
    for (int r = 0; r < R; r++) ck_assert_int_eq(one[r], best[r]);
    release();
}
END_TEST

START_TEST(sample_draws_with_the_right_frequencies) {
    enum { V = 7 };
    const int R = draws(20000, 600);
    float *logits = room((size_t)R * V), *uniform = room((size_t)R);
    static const float row[V] = {0, 1, -1, 2, 0.5f, -3, 1.5f};
    for (int r = 0; r < R; r++) {
        memcpy(logits + r * V, row, sizeof row);
        uniform[r] = draw();
    }
    freeze();
    int *token = room((size_t)R), count[V] = {0};
    double p[V];
    ref_sample_distribution(p, widen(row, V), V, 1.3, 6, 0.97);
    sample(token, NULL, logits, R, V, V, 1.3f, 6, 0.97f, uniform);
    for (int r = 0; r < R; r++) count[token[r]]++;
    for (int v = 0; v < V; v++)
        ck_must(fabs(count[v] - R * p[v]) <= 5 * sqrt(R * p[v] * (1 - p[v])),
                "token %d: %d of %d, probability %g", v, count[v], R, p[v]);
    release();
}
END_TEST

START_TEST(sample_reference) {
    // probabilities 1/16 .. 8/16, by hand
    double logits[5] = {log(2), log(8), log(1), log(4), log(1)}, p[5];
    ref_sample_distribution(p, logits, 5, 1, 0, 1);
    ck_complaint(
        compare("p", p, (const double[]){2 / 16., 8 / 16., 1 / 16., 4 / 16., 1 / 16.}, 5, 1e-14));
    ref_sample_distribution(p, logits, 5, 1, 4, 1);  // of the two likelihoods 1 the first stays
    ck_complaint(
        compare("top_k", p, (const double[]){2 / 15., 8 / 15., 1 / 15., 4 / 15., 0}, 5, 1e-14));
    ref_sample_distribution(p, logits, 5, 1, 0,
                            0.7);  // 8 + 4 = 12 of 16 are the first to reach 0.7
    ck_complaint(compare("top_p", p, (const double[]){0, 8 / 12., 0, 4 / 12., 0}, 5, 1e-14));
    ref_sample_distribution(p, logits, 5, 1, 2,
                            0.7);  // of what top_k left: 8 of 12 do not reach 0.7
    ck_complaint(compare("both", p, (const double[]){0, 8 / 12., 0, 4 / 12., 0}, 5, 1e-14));
    ref_sample_distribution(p, logits, 5, 0.5, 0, 1);  // squared
    ck_complaint(compare("temperature", p,
                         (const double[]){4 / 86., 64 / 86., 1 / 86., 16 / 86., 1 / 86.}, 5,
                         1e-14));
    const double q[4] = {0, 0.25, 0.5, 0.25};
    ck_assert_int_eq(ref_sample(q, 4, 0), 1);
    ck_assert_int_eq(ref_sample(q, 4, 0.2499), 1);
    ck_assert_int_eq(ref_sample(q, 4, 0.25), 2);
    ck_assert_int_eq(ref_sample(q, 4, 0.9999), 3);
}
END_TEST

/* ---- The optimiser --------------------------------------------------------------------------- */

START_TEST(squares_are_summed_in_double) {
    static const size_t lengths[] = {0, 1, 3, 7, 8, 9, 17, 100, 1000, 4097, 100003, 1 << 20};
    for (int i = 0; i < LENGTH(lengths); i++) {
        size_t n = lengths[i];
        AT("n=%zu", n);
        float *x = reals(n, 3);
        if (n > 1) x[n / 2] = 3000;  // a sum in float would lose the rest
        freeze();
        // the square of a float is exact in double, and n additions in double round to far less
        // than 1e-12
        double want = ref_sum_of_squares(widen(x, n), n);
        omp_set_num_threads(1);
        double first = sum_of_squares(&(const float *){x}, &(size_t){n}, 1);
        ck_must(fabs(first - want) <= 1e-12 * want, "%s: %.17g, not %.17g", where, first, want);
        FOR_THREADS(t) {
            double again = sum_of_squares(&(const float *){x}, &(size_t){n}, 1);
            ck_must(!memcmp(&again, &first, sizeof first), "%s: %a with %d threads, %a with 1",
                    where, again, t, first);
            float *elsewhere = copy(x, n);
            again = sum_of_squares(&(const float *){elsewhere}, &(size_t){n}, 1);
            ck_must(!memcmp(&again, &first, sizeof first), "%s: the sum depends on the address",
                    where);
        }
        release();
    }
    float *x = filled(40, 1);
    x[39] = NAN;
    ck_true(isnan(sum_of_squares(&(const float *){x}, &(size_t){40}, 1)));
    release();
}
END_TEST

/* n weights w, which are floats here whatever `real` is, and all that belongs to them, from k on */
static Stepped stepped(float *w, float *master, float *g, float *m, float *v, size_t k, size_t n,
                       float decay) {
    return (Stepped){
        (real *)(void *)(w + k), master ? master + k : NULL, g + k, m + k, v + k, n, decay};
}

static void check_adamw(float scale, float decay, int step) {
    enum { n = 4099 };
    AT("scale=%g decay=%g t=%d", (double)scale, (double)decay, step);
    // a learning rate so high that the step is as large as the weight: a wrong step cannot hide
    // behind it
    const float lr = 0.1f, beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;
    float *w = reals(n, 0.1), *g = reals(n, 1), *m = reals(n, 0.1), *v = reals(n, 0.01);
    for (int i = 0; i < n; i++) {
        v[i] = fabsf(v[i]) + 0.001f;
        if (step == 1) m[i] = v[i] = 0;
    }
    float *master = SHORT ? room(n) : NULL;  // what w is rounded from: it has digits that w has not
    for (int i = 0; master && i < n; i++) master[i] = w[i] * (1 + 0x1p-12f);
    freeze();
    double *w_ref = widen(master ? master : w, n), *g_ref = widen(g, n), *m_ref = widen(m, n),
           *v_ref = widen(v, n);
    ref_adamw(w_ref, g_ref, m_ref, v_ref, n, (double)scale, (double)lr, (double)beta1,
              (double)beta2, (double)epsilon, (double)decay, step);
    float *w_1 = copy(w, n), *g_1 = copy(g, n), *m_1 = copy(m, n), *v_1 = copy(v, n),
          *master_1 = master ? copy(master, n) : NULL;
    omp_set_num_threads(1);
    const Stepped all = stepped(w_1, master_1, g_1, m_1, v_1, 0, n, decay);
    adamw(&all, 1, scale, lr, beta1, beta2, epsilon, step);
    ck_close(m_1, m_ref, n, 8 * EPSILON);  // a handful of roundings each
    ck_close(v_1, v_ref, n, 8 * EPSILON);
    ck_close(master ? master_1 : w_1, w_ref, n, 16 * EPSILON);
    for (int i = 0; i < n; i++) ck_true(g_1[i] == 0 && (!master || w_1[i] == stored(master_1[i])));

    static const size_t lengths[] = {0, 1, 2, 7, 8, 9, 31, 100, n};  // elements do not mix
    for (int k = 0; k < LENGTH(lengths); k++) FOR_THREADS(t) {
            size_t from = n - lengths[k];
            float *w_t = copy(w + from, n - from), *g_t = copy(g + from, n - from),
                  *m_t = copy(m + from, n - from), *v_t = copy(v + from, n - from),
                  *master_t = master ? copy(master + from, n - from) : NULL;
            const Stepped some = stepped(w_t, master_t, g_t, m_t, v_t, 0, n - from, decay);
            adamw(&some, 1, scale, lr, beta1, beta2, epsilon, step);
            ck_bits(w_t, w_1 + from, n - from);
            ck_bits(m_t, m_1 + from, n - from);
            ck_bits(v_t, v_1 + from, n - from);
            ck_bits(g_t, g_1 + from, n - from);
        }
    release();
}

START_TEST(adamw_takes_the_documented_step) {
    check_adamw(1, 0, 1);
    check_adamw(1, 0.1f, 1);
    check_adamw(0.37f, 0.1f, 10);
    check_adamw(0.37f, 0, 1000);
    check_adamw(2, 0.01f, 100000);
}
END_TEST

START_TEST(adamw_shows_nan) {
    enum { N = 19 };
    float *w = reals(N, 1), *g = reals(N, 1), *m = filled(N, 0), *v = filled(N, 0),
          *master = SHORT ? copy(w, N) : NULL;
    g[18] = g[3] = NAN;
    const Stepped all = stepped(w, master, g, m, v, 0, N, 0.1f);
    adamw(&all, 1, 1, 0.1f, 0.9f, 0.999f, 1e-8f, 1);
    for (int i = 0; i < N; i++) ck_assert_int_eq(isnan(w[i]) != 0, i == 18 || i == 3);
    release();
}
END_TEST

/* Arrays of a step, one behind the other, so that some are not aligned; a few around the numbers
   that a block of a GPU steps on, which are 2,048, and that it adds up, which are 4,096 */
static const size_t stepped_n[] = {4096, 2048, 0, 8, 2056, 1, 2047, 16, 3, 8192, 4097, 0, 70000, 5};

static size_t stepped_from[LENGTH(stepped_n) + 1];

static size_t all_stepped(void) {
    for (int i = 0; i < LENGTH(stepped_n); i++)
        stepped_from[i + 1] = stepped_from[i] + stepped_n[i];
    return stepped_from[LENGTH(stepped_n)];
}

START_TEST(a_step_on_many_arrays_is_that_on_each) {
    const size_t n = all_stepped();
    float *w = reals(n, 0.1), *g = reals(n, 1), *m = reals(n, 0.1), *v = reals(n, 0.01),
          *master = SHORT ? copy(w, n) : NULL;
    for (size_t i = 0; i < n; i++) v[i] = fabsf(v[i]);
    freeze();
    float *w_1 = copy(w, n), *g_1 = copy(g, n), *m_1 = copy(m, n), *v_1 = copy(v, n),
          *master_1 = master ? copy(master, n) : NULL;
    float *w_2 = copy(w, n), *g_2 = copy(g, n), *m_2 = copy(m, n), *v_2 = copy(v, n),
          *master_2 = master ? copy(master, n) : NULL;
    Stepped each, list[LENGTH(stepped_n)];
    for (int i = 0; i < LENGTH(stepped_n); i++) {
        const float decay = 0.01f * (float)i;
        list[i] = stepped(w_2, master_2, g_2, m_2, v_2, stepped_from[i], stepped_n[i], decay);
        each = stepped(w_1, master_1, g_1, m_1, v_1, stepped_from[i], stepped_n[i], decay);
        adamw(&each, 1, 0.3f, 0.1f, 0.9f, 0.999f, 1e-8f, 7);
    }
    adamw(list, LENGTH(list), 0.3f, 0.1f, 0.9f, 0.999f, 1e-8f, 7);
    adamw(list, 0, 0.3f, 0.1f, 0.9f, 0.999f, 1e-8f, 7);
    ck_bits(w_2, w_1, n);
    ck_bits(m_2, m_1, n);
    ck_bits(v_2, v_1, n);
    ck_bits(g_2, g_1, n);
    if (master) ck_bits(master_2, master_1, n);
    for (size_t i = 0; i < n; i++) ck_true(g_2[i] == 0 && (m_2[i] != m[i] || v_2[i] != v[i]));
    release();
}
END_TEST

START_TEST(squares_of_many_arrays_do_not_depend_on_where_they_lie) {
    const size_t n = all_stepped();
    float *x = reals(n + 1, 1);
    const float *together[LENGTH(stepped_n)], *moved[LENGTH(stepped_n)], *alone[LENGTH(stepped_n)];
    freeze();
    float *beside = room(n + 1);
    memcpy(beside + 1, x, n * sizeof *x);
    for (int i = 0; i < LENGTH(stepped_n); i++) {
        together[i] = x + stepped_from[i];
        moved[i] = beside + 1 + stepped_from[i];
        alone[i] = copy(x + stepped_from[i], stepped_n[i]);
    }
    const double want = ref_sum_of_squares(widen(x, n), n),
                 sum = sum_of_squares(together, stepped_n, LENGTH(stepped_n)),
                 sum_moved = sum_of_squares(moved, stepped_n, LENGTH(stepped_n)),
                 sum_alone = sum_of_squares(alone, stepped_n, LENGTH(stepped_n));
    ck_must(fabs(sum - want) <= 1e-12 * want, "%.17g, not %.17g", sum, want);
    ck_assert(!memcmp(&sum, &sum_moved, sizeof sum) && !memcmp(&sum, &sum_alone, sizeof sum));
    release();
}
END_TEST

START_TEST(adamw_reference) {
    // the first step is lr * sign(g), whatever the size of g; decay takes lr * decay of the weight
    double w[2] = {1, -2}, g[2] = {1e-3, -50}, m[2] = {0}, v[2] = {0};
    ref_adamw(w, g, m, v, 2, 1, 0.01, 0.9, 0.999, 0, 0.5, 1);
    ck_complaint(compare("w", w, (const double[]){1 - 0.01 - 0.005, -2 + 0.01 + 0.01}, 2, 1e-12));
    ck_complaint(compare("m", m, (const double[]){1e-4, -5}, 2, 1e-12));
    ck_complaint(compare("v", v, (const double[]){1e-9, 2.5}, 2, 1e-12));
    ck_true(g[0] == 0 && g[1] == 0);
    // and with a constant gradient every step is
    double x = 0, moment = 0, square = 0;
    for (int t = 1; t <= 100; t++) {
        double gradient = 0.3;
        ref_adamw(&x, &gradient, &moment, &square, 1, 2, 0.01, 0.9, 0.999, 0, 0, t);
    }
    ck_true(fabs(x + 1) < 1e-10);
}
END_TEST

/* ---- Nothing to do is allowed ---------------------------------------------------------------- */

START_TEST(empty_batches) {
    float *none = room(0), *nothing = room(0), *weight = reals(15, 1), *kept = copy(weight, 15),
          *gradient = copy(weight, 15);  // of reals, of floats
    int *zero = memcpy(room(2), (const int[]){0, 0}, 2 * sizeof(int)), *best = room(0);
    Noise noise = noise_over(0.5f, zero, 1);
    embed_forward(none, zero, zero, weight, weight, 0, 3);
    embed_backward(gradient, gradient, none, zero, zero, 0, 3);
    linear_forward(none, none, weight, NULL, 0, 3, 5);
    linear_backward_input(none, none, weight, 0, 3, 5);
    linear_backward_weight(gradient, gradient, none, none, 0, 3, 5);
    dropout_add(none, none, 0, 3, noise);
    layernorm_forward(none, none, nothing, nothing, none, none, weight, weight, 0, 3, norm_epsilon);
    layernorm_backward(none, gradient, gradient, none, none, nothing, nothing, weight, 0, 3);
    gelu_forward(none, none, 0);
    gelu_backward(none, none, 0);
    relu_forward(none, none, 0);
    relu_backward(none, none, 0);
    silu_forward(none, none, 0);
    silu_backward(none, none, 0);
    projection_forward(none, none, weight, NULL, true, 0, 3, 5);
    projection_backward_input(none, none, weight, true, 0, 3, 5);
    projection_backward_weight(gradient, gradient, none, none, 0, 3, 5);
    dropout(none, 0, 3, noise);
    attention_forward(none, nothing, none, zero, NULL, 0, 0, 1, 3, noise);
    attention_backward(none, none, none, none, nothing, zero, NULL, 0, 0, 1, 3, noise);
    gather_rows(none, weight, zero, 0, 3);
    scatter_rows(weight, none, zero, 0, 3);
    head_forward(none, none, weight, 0, 3, 5, 5);
    head_backward(none, gradient, none, none, weight, 0, 3, 5, 5);
    logprob_forward(nothing, nothing, nothing, best, none, zero, 1, 0, 5, 5);
    logprob_backward(none, nothing, nothing, zero, nothing, nothing, 1, 0, 5, 5);
    kl_forward(nothing, none, nothing, none, nothing, 1, 0, 5, 5);
    value_forward(nothing, none, weight, weight, 0, 3);
    value_backward(none, gradient, gradient, nothing, none, weight, 0, 3);
    ck_bits(weight, kept, 15);
    ck_bits(gradient, kept, 15);
    release();
}
END_TEST

/* ----  ---------------------------------------------------------------------------------------- */

/* Tags: what takes minutes on an emulated GPU under ThreadSanitizer is large. */
static void add(Suite *suite, const char *name, const char *tag, void (*setup)(void),
                const TTest *const *tests, int n) {
    TCase *tcase = tcase_create(name);
    tcase_set_tags(tcase, tag);
    tcase_set_timeout(tcase, 3600);  // with sanitizers on an emulated GPU
    tcase_add_checked_fixture(tcase, setup, forget);
    for (int i = 0; i < n; i++) tcase_add_test(tcase, tests[i]);
    suite_add_tcase(suite, tcase);
}

#define ADD(name, ...) ADD_AFTER(begin, name, "small", __VA_ARGS__)
#define ADD_LARGE(name, ...) ADD_AFTER(begin, name, "large", __VA_ARGS__)
#define ADD_AFTER(setup, name, tag, ...)                              \
    add(suite, name, tag, setup, (const TTest *const[]){__VA_ARGS__}, \
        LENGTH(((const TTest *const[]){__VA_ARGS__})))

static int run_all(const char *name) {
    Suite *suite = suite_create(name);
    ADD("device", device_memory_is_zeroed_aligned_and_copied, floats_of_the_device_are_rounded,
        a_second_queue_follows_the_first, small_arrays_go_to_the_device_without_a_wait);
    ADD("reference", embedding_reference, linear_reference, projection_reference,
        layernorm_reference, gelu_reference, relu_and_silu_reference, attention_reference,
        head_reference, logprob_reference, sample_reference, adamw_reference);
    ADD("embedding", embedding);
    ADD("linear", a_bias_has_the_same_gradient_in_any_matrix, linear_shows_nan_in_its_row_only,
        few_rows_have_the_bits_of_many, what_runs_beside_a_weight_gradient_does_not_change_it,
        scale_multiplies);
    ADD_LARGE("linear, large", linear_values, linear_is_the_documented_chain_to_the_bit);
    ADD("bf16", linear_in_bf16_is_the_documented_chain, head_in_bf16_is_the_documented_chain);
    ADD("nf4", nf4_codes_change_at_the_thresholds, nf4_blocks_run_along_the_input_channels,
        nf4_shows_what_is_not_finite, nf4_scales_are_quantised_to_the_dynamic_map);
    ADD_LARGE("nf4, large", nf4_errors_are_the_published_ones,
              nf4_products_have_the_bits_of_the_whole_matrix);
    ADD("projection", activations_are_added);
    ADD_LARGE("projection, large", projection);
    ADD("layernorm", layernorm, layernorm_of_hard_rows, layernorm_shows_nan_in_its_row_only);
    ADD("gelu", gelu_values, gelu_of_an_element_does_not_depend_on_its_neighbours,
        gelu_of_a_linear_layer, gelu_shows_nan);
    ADD("relu and silu", relu_and_silu, relu_and_silu_show_nan);
    ADD("noise", noise_is_the_documented_function_of_where_it_falls,
        dropout_is_added_to_what_is_there, dropout_of_nothing_is_the_identity,
        dropout_keeps_the_right_share);
    ADD("attention", attention_of_large_scores, attention_is_causal,
        attention_shows_nan_in_its_sequence_only, attention_by_warp_groups,
        attention_by_warps_if_warp_groups_have_other_bits);
    ADD_AFTER(begin_on_blackwell, "attention on Blackwell", "small",
              attention_by_warps_on_blackwell);
    ADD_LARGE("attention, large", attention_values, attention_with_dropout,
              attention_of_shared_beginnings);
    ADD_LARGE("cache", attention_with_a_cache_has_the_same_bits);
    ADD("head", rows_are_gathered_and_scattered, rows_are_scaled);
    ADD_LARGE("head, large", head_is_the_documented_chain_to_the_bit);
    ADD("logprob", logprob_values, logprob_at_a_temperature, logprob_of_extreme_logits,
        entropy_of_equal_logits_is_log_V, logprob_shows_nan_in_its_row_only,
        the_largest_difference_of_logits);
    ADD("divergence", divergence_values);
    ADD("value", value_and_its_gradient);
    ADD("sample", sample_from_a_real_vocabulary, sample_at_temperature_0_is_the_argmax);
    ADD_LARGE("sample, large", sample_with_ties_keeps_the_lower_tokens,
              sample_with_many_ties_keeps_the_lower_tokens, sample_never_draws_the_impossible,
              sample_is_the_inverse_of_the_cumulative_distribution,
              sample_draws_with_the_right_frequencies);
    ADD("optimiser", squares_are_summed_in_double,
        squares_of_many_arrays_do_not_depend_on_where_they_lie, adamw_takes_the_documented_step,
        a_step_on_many_arrays_is_that_on_each, adamw_shows_nan);
    ADD("empty", empty_batches);
    return run_suite(suite);
}

/* On a CPU, all tests run in each way of computing that the machine has, or in that which
   POSTTRAIN_CPU names. */
int main(void) {
    static const char *const ways[] = {"avx2", "avx512", "avx512bf16"};
    mallopt(M_MMAP_THRESHOLD, 1 << 25);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);          // the arrays of one shape serve the next
    if (DEVICE) return run_all("kernels") != 0;  // in other processes (program.h)
    device_init();
    if (getenv("POSTTRAIN_CPU")) return run_all("kernels") != 0;
    int failed = 0;
    for (int i = 0; i < LENGTH(ways); i++) {
        Error e;
        char name[64];
        snprintf(name, sizeof name, "kernels, %s", ways[i]);
        if (device_choose(ways[i], &e))
            printf("note: %s\n", e.text);
        else
            failed += run_all(name);
    }
    return failed != 0;
}
