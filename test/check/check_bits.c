/*
 * check_bits.c - the bits of every kernel of a CPU, as hashes over many shapes.
 *
 * All ways of computing (avx2, avx512, avx512bf16) must give the hashes of golden_bits.h, with each
 * compiler. The table was made with avx2, so a machine without AVX-512 checks the claim as well.
 * `check_bits print` prints the table. attention_forward's lse is left out, because it comes from
 * the C library's logf.
 */
#include "../golden/golden_bits.h"
#include "model/cpu.h"
#include "util.h"

#undef fail  // check.h has a macro of this name
#include "program.h"

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- arrays and hashes ----------------------------------------------------------------------- */

static void *arrays[64];
static int array_count;
static uint32_t drawn;
static uint64_t hash;

static void *array(size_t bytes) {
    if (array_count == LENGTH(arrays)) die("more than %d arrays", array_count);
    return arrays[array_count++] = xcalloc(bytes + 64, 1);
}

/* n numbers between -size and size */
static float *numbers(size_t n, float size) {
    float *x = array(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = size * (2 * random_uniform(random4(7, RANDOM_DATA, 0, 0, 0, drawn++).v[0]) - 1);
    return x;
}

static int *below(int n, int limit) {
    int *x = array((size_t)n * sizeof *x);
    for (int i = 0; i < n; i++)
        x[i] = (int)(random4(8, RANDOM_DATA, 0, 0, 0, drawn++).v[0] % (uint32_t)limit);
    return x;
}

/* FNV-1a */
static void add_to_hash(const void *x, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const unsigned char *)x)[i]) * 0x100000001b3u;
}
static void add(const float *x, size_t n) { add_to_hash(x, n * sizeof *x); }

/* ---- kernels --------------------------------------------------------------------------------- */

/* Each takes three numbers, rows and channels, and adds its outputs to the hash. */

static void linear(int N, int IC, int OC) {
    const size_t x = (size_t)N * (size_t)IC, y = (size_t)N * (size_t)OC,
                 w = (size_t)IC * (size_t)OC;
    float *inp = numbers(x, 1), *weight = numbers(w, 1), *bias = numbers((size_t)OC, 1);
    float *out = numbers(y, 1), *dweight = numbers(w, 1), *dbias = numbers((size_t)OC, 1);
    linear_backward_weight(dweight, dbias, inp, out, N, IC, OC);
    linear_backward_input(inp, out, weight, N, IC, OC);
    linear_forward(out, inp, weight, bias, N, IC, OC);
    add(dweight, w);
    add(dbias, (size_t)OC);
    add(inp, x);
    add(out, y);
    linear_gelu_forward(numbers(y, 1), out, inp, weight, bias, N, IC, OC);
    add(out, y);
}

static void projection(int N, int IC, int OC) {
    const size_t x = (size_t)N * (size_t)IC, y = (size_t)N * (size_t)OC,
                 w = (size_t)IC * (size_t)OC;
    float *inp = numbers(x, 1), *weight = numbers(w, 1), *bias = numbers((size_t)OC, 1);
    float *out = numbers(y, 1), *dweight = numbers(w, 1), *dbias = numbers((size_t)OC, 1);
    projection_backward_weight(dweight, dbias, inp, out, N, IC, OC);
    projection_backward_input(inp, out, weight, true, N, IC, OC);
    projection_forward(out, inp, weight, bias, true, N, IC, OC);
    add(dweight, w);
    add(dbias, (size_t)OC);
    add(inp, x);
    add(out, y);
}

/* Linear layers whose weight is stored in NF4. */
static void nf4(int N, int IC, int OC) {
    const size_t x = (size_t)N * (size_t)IC, y = (size_t)N * (size_t)OC,
                 w = (size_t)IC * (size_t)OC;
    float *inp = numbers(x, 1), *weight = numbers(w, 1), *out = numbers(y, 1), *back = array(4 * w);
    for (int twice = 0; twice < 2; twice++) {
        NF4 q;
        nf4_quantize(&q, array(nf4_bytes(IC, OC, twice)), weight, IC, OC, twice);
        nf4_linear_forward(out, inp, &q, NULL, N);
        nf4_linear_backward_input(inp, out, &q, N);
        nf4_read(back, &q, 0, w);
        add(out, y);
        add(inp, x);
        add(back, w);
    }
}

static void head(int R, int C, int V) {
    const size_t x = (size_t)R * (size_t)C, y = (size_t)R * (size_t)V, w = (size_t)V * (size_t)C;
    float *inp = numbers(x, 1), *wte = numbers(w, 1), *logits = array(4 * y), *dwte = numbers(w, 1);
    head_forward(logits, inp, wte, R, C, V, V);
    add(logits, y);
    head_backward(NULL, dwte, logits, inp, wte, R, C, V, V);
    head_backward(inp, NULL, logits, NULL, wte, R, C, V, V);
    add(dwte, w);
    add(inp, x);
    embed_forward(inp, below(R, V), NULL, wte, NULL, R, C);
    add(inp, x);
}

/* The loss of a head with V logits: R rows. */
static void loss(int R, int unused, int V) {
    (void)unused;
    const size_t n = (size_t)R, y = n * (size_t)V;
    float *logits = numbers(y, 9), *other = numbers(y, 9), *logp = array(4 * n),
          *entropy = array(4 * n), *lse = array(4 * n), *lse2 = array(4 * n), *kl = array(4 * n),
          *uniform = numbers(n, 1);
    int *target = below(R, V), *best = array(4 * n), *token = array(4 * n);
    for (int r = 0; r < R; r++) uniform[r] = fabsf(uniform[r]);
    logprob_forward(logp, entropy, lse2, best, other, target, 0.7f, R, V, V);
    logprob_forward(logp, entropy, lse, best, logits, target, 0.7f, R, V, V);
    kl_forward(kl, logits, lse, other, lse2, 0.7f, R, V, V);
    add(logp, n);
    add(entropy, n);
    add(lse, n);
    add(kl, n);
    add_to_hash(best, 4 * n);
    for (int k = 0; k < 3; k++) {
        sample(token, logp, logits, R, V, V, 0.9f, k == 1 ? 5 : 0, k == 2 ? 0.8f : 1, uniform);
        add_to_hash(token, 4 * n);
    }
    logprob_backward(logits, lse, entropy, target, logp, kl, 0.7f, R, V, V);
    add(logits, y);
}

static void norm(int N, int unused, int C) {
    (void)unused;
    const size_t n = (size_t)N, x = n * (size_t)C, c = (size_t)C;
    float *sum = array(4 * x), *out = array(4 * x), *mean = array(4 * n), *rstd = array(4 * n);
    float *w = numbers(c, 1), *b = numbers(c, 1), *dw = numbers(c, 1), *db = numbers(c, 1);
    float *inp = numbers(x, 1), *more = numbers(x, 2), *dout = numbers(x, 1);
    layernorm_forward(sum, out, mean, rstd, inp, more, w, b, N, C, 1e-5f);
    layernorm_backward(sum, dw, db, dout, out, mean, rstd, w, N, C);
    float *value = array(4 * n);
    value_forward(value, out, w, b, N, C);
    value_backward(out, dw, db, value, sum, w, N, C);
    add(sum, x);
    add(out, x);
    add(mean, n);
    add(rstd, n);
    add(dw, c);
    add(db, 1);
    add(value, n);
}

static void elements(int N, int unused, int C) {
    (void)unused;
    const size_t n = (size_t)N * (size_t)C;
    float *x = numbers(n, 8), *y = numbers(n, 1), *out = array(4 * n);
    gelu_forward(out, x, n);
    add(out, n);
    silu_forward(out, x, n);
    add(out, n);
    relu_forward(out, x, n);
    add(out, n);
    add_activations(out, x, y, n);
    scale(out, 0.3f, n);
    add(out, n);
    gelu_backward(y, x, n);
    silu_backward(y, x, n);
    relu_backward(y, x, n);
    add(x, n);
    add(y, n);
    round_weights((uint16_t *)(void *)out, y, n);
    add_to_hash(out, 2 * n);
}

static void noise(int N, int unused, int C) {
    (void)unused;
    const size_t n = (size_t)N * (size_t)C;
    const int *sequence = below(N, 9), *at = below(N, 50);
    const Noise z = {0.3f, 1, 2, 3, (const uint32_t *)sequence, at};
    float *x = numbers(n, 1), *y = numbers(n, 1);
    dropout(x, N, C, z);
    dropout_add(y, x, N, C, z);
    add_uniform_noise(x, numbers((size_t)N, 1), N, C, z);
    add(x, n);
    add(y, n);
    int *token = below(N, 5), *position = below(N, 7);
    float *wte = numbers(5 * (size_t)C, 1), *wpe = numbers(7 * (size_t)C, 1);
    embed_forward(x, token, position, wte, wpe, N, C);
    embed_backward(wte, wpe, y, token, position, N, C);
    add(x, n);
    add(wte, 5 * (size_t)C);
    add(wpe, 7 * (size_t)C);
}

/* A sequence of N tokens, one of 3, and one of N that continues the first; heads of size hs. */
static void attention(int N, int NH, int hs) {
    const int start[4] = {0, N, N + 3, 2 * N + 3}, parent[3] = {-1, -1, 0}, all = 2 * N + 3;
    const size_t C = (size_t)NH * (size_t)hs, x = (size_t)all * C;
    float *qkv = numbers(3 * x, 2), *out = array(4 * x), *dqkv = array(12 * x),
          *lse = array(4 * (size_t)(all * NH));
    const int *sequence = below(all, 9), *at = below(all, 50);
    const Noise z = {N % 2 ? 0.2f : 0, 1, 2, 3, (const uint32_t *)sequence, at};
    attention_forward(out, lse, qkv, start, parent, all, 3, NH, hs, z);
    add(out, x);
    attention_backward(dqkv, numbers(x, 1), qkv, out, lse, start, parent, all, 3, NH, hs, z);
    add(dqkv, 3 * x);
    int *slot = array(4 * (size_t)N), *position = array(4 * (size_t)N);
    for (int i = 0; i < N; i++) position[i] = i;
    attention_cached(out, array(cache_bytes(1, N, NH, hs)), qkv, start, slot, position, N, 1, N, NH,
                     hs);
    add(out, (size_t)N * C);
}

static void optimiser(int N, int unused, int C) {
    (void)unused;
    const size_t n = (size_t)N * (size_t)C;
    float *w = numbers(n, 1), *g = numbers(n, 1), *m = numbers(n, 1), *v = numbers(n, 1);
    for (size_t i = 0; i < n; i++) v[i] = fabsf(v[i]);
    const double sum = sum_of_squares(&(const float *){g}, &n, 1);
    adamw(&(Stepped){w, NULL, g, m, v, n, 0.1f}, 1, 0.5f, 1e-3f, 0.9f, 0.95f, 1e-8f, 3);
    add_to_hash(&sum, sizeof sum);
    add(w, n);
    add(m, n);
    add(v, n);
}

static const struct {
    const char *name;
    void (*kernel)(int, int, int);
    bool product;  // with a hash in bf16
} kernels[] = {
    {"linear", linear, true},
    {"projection", projection, true},
    {"nf4", nf4, true},
    {"head", head, true},
    {"loss", loss, false},
    {"norm", norm, false},
    {"elements", elements, false},
    {"noise", noise, false},
    {"attention", attention, false},
    {"optimiser", optimiser, false},
};

static const int shapes[][3] = {
    {1, 1, 1},    {1, 33, 70},   {1, 768, 129}, {2, 3, 17},    {3, 2, 64},    {5, 17, 33},
    {6, 4, 16},   {7, 3, 48},    {13, 8, 65},   {14, 2, 80},   {15, 5, 31},   {28, 3, 100},
    {29, 40, 20}, {47, 12, 513}, {48, 65, 63},  {49, 17, 129}, {70, 3, 64},   {97, 6, 24},
    {130, 7, 50}, {60, 400, 40}, {50, 3, 3100}, {50, 771, 34}, {1600, 5, 18}, {200, 2, 300},
};

/* The hash of a kernel over all shapes. */
static uint64_t hash_of(int kernel, bool bf16) {
    hash = 0xcbf29ce484222325u;
    drawn = 0;
    for (int i = 0; i < LENGTH(shapes); i++) {
        const int *s = shapes[i];
        const bool heads = kernels[kernel].kernel == attention;
        if (heads && (s[0] > 200 || s[1] > 12 || s[2] > 100)) continue;
        device_precision(bf16 ? BF16 : FLOAT32);
        kernels[kernel].kernel(s[0], s[1], s[2]);
        while (array_count) free(arrays[--array_count]);
    }
    device_precision(FLOAT32);
    return hash;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void compare_with_table(void) {
    int row = 0;
    for (int k = 0; k < LENGTH(kernels); k++)
        for (int bf16 = 0; bf16 <= kernels[k].product; bf16++, row++) {
            ck_assert_int_lt(row, LENGTH(golden_bits));
            const uint64_t got = hash_of(k, bf16);
            ck_assert_msg(got == golden_bits[row].hash, "%s, %s%s: %#llx, not %#llx", device_name(),
                          kernels[k].name, bf16 ? " in bf16" : "", (unsigned long long)got,
                          (unsigned long long)golden_bits[row].hash);
        }
    ck_assert_int_eq(row, LENGTH(golden_bits));
}

START_TEST(avx2_has_the_bits_of_the_table) {
    ck_assert_int_eq(device_choose("avx2", NULL), 0);
    compare_with_table();
}
END_TEST

START_TEST(avx512_has_them_too) {
    if (!device_choose("avx512", NULL)) compare_with_table();
}
END_TEST

START_TEST(avx512bf16_has_them_too) {
    if (!device_choose("avx512bf16", NULL)) compare_with_table();
}
END_TEST

/* As on a CPU of Intel's: the products of many rows leave VDPBF16PS to the others. */
START_TEST(slow_pairs_have_them_too) {
    if (device_choose("avx512bf16", NULL)) return;
    cpu_slow_pairs = true;
    compare_with_table();
    cpu_slow_pairs = false;
}
END_TEST

START_TEST(a_way_that_does_not_exist_is_refused) {
    Error e;
    ck_assert_int_eq(device_choose("avx1024", &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "avx1024 is no way to compute"));
    ck_assert_int_eq(device_choose("auto", &e), 0);
}
END_TEST

static void print_table(void) {
    device_choose("avx2", NULL);
    for (int k = 0; k < LENGTH(kernels); k++)
        for (int bf16 = 0; bf16 <= kernels[k].product; bf16++)
            printf("    {\"%s%s\", 0x%016llxu},\n", kernels[k].name, bf16 ? " in bf16" : "",
                   (unsigned long long)hash_of(k, bf16));
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "print")) {
        print_table();
        return 0;
    }
    const TTest *const tests[] = {avx2_has_the_bits_of_the_table, avx512_has_them_too,
                                  avx512bf16_has_them_too, slow_pairs_have_them_too,
                                  a_way_that_does_not_exist_is_refused};
    return run_tests("bits", NULL, tests, LENGTH(tests)) != 0;
}
