/*
 * check_bf16.c - a model under --bf16: what stays equal to the bit, and what it costs.
 */
#include "files/hf.h"
#include "model/generate.h"
#include "model/gpt2.h"
#include "model/kernels.h"
#include "model/memory.h"
#include "util.h"

#undef fail  // check.h has a macro of this name
#include "program.h"

#define CHAT "test/tiny/chat"
#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))
enum { N = 40, S = 3 };

static int tokens[N], target[N];
static const int start[S + 1] = {0, 7, 23, N};
static Batch batch = {.S = S, .N = N, .start = start, .tokens = tokens};

static void setup(void) {
    for (int i = 0; i < N; i++)
        tokens[i] = (int)(random4(3, RANDOM_DATA, 0, 0, (uint32_t)i, 0).v[0] % 250);
    for (int i = 0; i < N; i++) target[i] = i + 1 < N ? tokens[i + 1] : 0;
}

/* The chat model, for bf16 unless it is false. */
static GPT2 *model(bool bf16, bool frozen, bool train) {
    Error e;
    GPT2 *m = hf_load(CHAT, frozen, &e);
    if (!m) die("%s", e.text);
    GPT2Limits limits = {
        .tokens = N, .sequences = S, .scored = N, .slots = 2, .positions = 64, .train = train};
    gpt2_use_bf16(&limits, bf16, frozen);
    gpt2_reserve(m, &limits);
    return m;
}

static void score(GPT2 *m, float *logp) {
    gpt2_forward(m, &batch, NULL);
    gpt2_logprob(m, target, 1, logp, NULL, NULL);
}

START_TEST(a_frozen_model_has_the_bits_of_one_that_trains) {
    GPT2 *trains = model(true, false, true), *frozen = model(true, true, false),
         *full = model(false, true, false);
    float a[N], b[N], c[N], kl[N];
    score(trains, a);
    score(frozen, b);
    score(full, c);
    ck_assert(!memcmp(a, b, sizeof a));
    ck_assert(memcmp(a, c, sizeof a));
    for (int i = 0; i < N; i++) ck_assert(fabsf(a[i] - c[i]) < 0.05f * (1 + fabsf(c[i])));
    score(frozen, b);
    score(trains, a);
    gpt2_kl(trains, frozen, kl);
    for (int i = 0; i < N; i++) ck_assert(kl[i] == 0);
    gpt2_free(trains);
    gpt2_free(frozen);
    gpt2_free(full);
}
END_TEST

/* A decoded token has the bits of the same token in a whole forward pass, whether the model decodes
   with a copy of its weights in bf16 (many tokens) or without (few). */
START_TEST(decoding_has_the_bits_of_the_forward_pass) {
    static const int lengths[] = {2, 12};
    for (int frozen = 0; frozen < 2; frozen++)
        for (int i = 0; i < LENGTH(lengths); i++) {
            GPT2 *m = model(true, frozen, !frozen);
            const Sampler sampler = {
                .temperature = 1, .top_p = 1, .max_new_tokens = lengths[i], .stop_token = -1};
            Generation g;
            gpt2_generate(m, &batch, &sampler, &g, NULL, NULL);
            for (int s = 0; s < S; s++) {
                const int prompt = start[s + 1] - start[s], answer = g.start[s + 1] - g.start[s],
                          ends[2] = {0, prompt + answer};
                int text[N + 16], next[N + 16];
                float logp[N + 16];
                memcpy(text, tokens + start[s], sizeof *text * (size_t)prompt);
                memcpy(text + prompt, g.tokens + g.start[s], sizeof *text * (size_t)answer);
                for (int k = 0; k < ends[1]; k++) next[k] = k + 1 < ends[1] ? text[k + 1] : -1;
                const Batch one = {.S = 1, .N = ends[1], .start = ends, .tokens = text};
                gpt2_forward(m, &one, NULL);
                gpt2_logprob(m, next, 1, logp, NULL, NULL);
                for (int k = 0; k < answer; k++)
                    ck_assert(logp[prompt - 1 + k] == g.logp[g.start[s] + k]);
            }
            generation_free(&g);
            gpt2_free(m);
        }
}
END_TEST

START_TEST(a_frozen_model_takes_half_the_memory) {
    Error e;
    GPT2Config config;
    ck_assert_int_eq(hf_config(CHAT, &config, &e), 0);
    GPT2Limits limits = {.tokens = N, .sequences = S, .scored = N};
    const size_t full = gpt2_memory(&config, &limits).weights;
    gpt2_use_bf16(&limits, true, true);
    const size_t half = gpt2_memory(&config, &limits).weights;
    ck_assert_uint_lt(half, full * 6 / 10);
}
END_TEST

/* A model whose matrices are frozen computes fc again. Its gradients have the bits of a model that
   stores all, and of one that computes each layer again. */
START_TEST(a_lean_model_has_the_same_gradients) {
    enum { ALL, LEAN, CHECKPOINTING, MODELS };
    float logp[N], dlogp[N], *gradient[MODELS] = {NULL};
    size_t activations[MODELS];
    int compared = 0;
    GPT2 *m[MODELS];
    for (int i = 0; i < N; i++) dlogp[i] = -1.0f / N;
    for (int i = 0; i < MODELS; i++) {
        Error e;
        if (!(m[i] = hf_load(CHAT, false, &e))) die("%s", e.text);
        GPT2Limits limits = {.tokens = N,
                             .sequences = S,
                             .scored = N,
                             .train = true,
                             .trains = i == ALL ? TRAIN_ALL : TRAIN_NORMS,
                             .gradient_checkpointing = i == CHECKPOINTING};
        gpt2_use_bf16(&limits, true, false);
        gpt2_reserve(m[i], &limits);
        activations[i] = gpt2_memory(gpt2_config(m[i]), &limits).activations;
        score(m[i], logp);
        gpt2_backward(m[i], dlogp, NULL, NULL);
    }
    ck_assert_uint_lt(activations[LEAN], activations[ALL]);
    ck_assert_uint_lt(activations[CHECKPOINTING], activations[LEAN]);
    for (int t = 0; t < gpt2_tensors(m[ALL]); t++) {
        const size_t n = gpt2_tensor(m[ALL], t)->n;
        if (!strstr(gpt2_tensor(m[ALL], t)->name, "ln_")) continue;
        for (int i = 0; i < MODELS; i++) {
            gradient[i] = xrealloc(gradient[i], n, sizeof(float));
            gpt2_read(m[i], t, GPT2_GRADIENT, 0, n, gradient[i]);
            ck_assert(!memcmp(gradient[i], gradient[ALL], n * sizeof(float)));
        }
        for (size_t k = 0; k < n; k++) compared += gradient[ALL][k] != 0;
    }
    ck_assert_int_gt(compared, 100);
    for (int i = 0; i < MODELS; i++) {
        free(gradient[i]);
        gpt2_free(m[i]);
    }
}
END_TEST

START_TEST(a_weight_reads_back_rounded) {
    GPT2 *m = model(true, true, false), *full = model(false, true, false);
    float a[64], b[64];
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const size_t n = gpt2_tensor(m, i)->n < 64 ? gpt2_tensor(m, i)->n : 64;
        gpt2_read(m, i, GPT2_WEIGHT, gpt2_tensor(m, i)->n - n, n, a);
        gpt2_read(full, i, GPT2_WEIGHT, gpt2_tensor(m, i)->n - n, n, b);
        for (size_t k = 0; k < n; k++) ck_assert(fabsf(a[k] - b[k]) <= fabsf(b[k]) * 0x1p-8f);
    }
    gpt2_free(m);
    gpt2_free(full);
}
END_TEST

/* A file in bf16 is used where it is; without --bf16 its numbers become floats. */
START_TEST(a_file_in_bf16_is_mapped) {
    Error e;
    char directory[] = "/tmp/check_bf16.XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(directory));
    ck_assert_int_eq(shell("cp " CHAT "/config.json %s/", directory), 0);
    GPT2 *from = model(false, true, false);
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    FILE *f = fopen(path, "wb");
    Str header = {0};
    size_t at = 0;
    str_printf(&header, "{");
    for (int i = 0; i < gpt2_tensors(from); i++) {
        const GPT2Tensor *t = gpt2_tensor(from, i);
        str_printf(&header, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%d", i ? "," : "", t->name,
                   t->shape[0]);
        if (t->ndim == 2) str_printf(&header, ",%d", t->shape[1]);
        str_printf(&header, "],\"data_offsets\":[%zu,%zu]}", at, at + 2 * t->n);
        at += 2 * t->n;
    }
    str_printf(&header, "}");
    while (header.n % 8) str_add(&header, " ", 1);
    const uint64_t length = header.n;
    fwrite(&length, sizeof length, 1, f);
    fwrite(header.s, 1, header.n, f);
    for (int i = 0; i < gpt2_tensors(from); i++) {
        const size_t n = gpt2_tensor(from, i)->n;
        float *x = xmalloc(n * sizeof *x);
        uint16_t *half = xmalloc(n * sizeof *half);
        gpt2_read(from, i, GPT2_WEIGHT, 0, n, x);
        round_weights(half, x, n);
        fwrite(half, sizeof *half, n, f);
        free(x);
        free(half);
    }
    ck_assert_int_eq(fclose(f), 0);
    float logp[2][N];
    for (int frozen = 0; frozen < 2; frozen++) {
        GPT2 *m = hf_load(directory, frozen, &e);
        if (!m) die("%s", e.text);
        GPT2Limits limits = {.tokens = N, .sequences = S, .scored = N};
        gpt2_use_bf16(&limits, true, frozen);
        gpt2_reserve(m, &limits);
        score(m, logp[frozen]);
        gpt2_free(m);
    }
    ck_assert(!memcmp(logp[0], logp[1], sizeof *logp));
    for (int frozen = 0; frozen < 2; frozen++) {
        GPT2 *m = hf_load(directory, frozen, &e);
        gpt2_reserve(m, &(GPT2Limits){.tokens = N, .sequences = S, .scored = N});
        score(m, logp[frozen]);
        gpt2_free(m);
    }
    ck_assert(!memcmp(logp[0], logp[1], sizeof *logp));
    gpt2_free(from);
    free(header.s);
    shell("rm -r %s", directory);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {a_frozen_model_has_the_bits_of_one_that_trains,
                                  decoding_has_the_bits_of_the_forward_pass,
                                  a_frozen_model_takes_half_the_memory,
                                  a_lean_model_has_the_same_gradients,
                                  a_weight_reads_back_rounded,
                                  a_file_in_bf16_is_mapped};
    return run_tests("bf16", setup, tests, LENGTH(tests)) != 0;
}
