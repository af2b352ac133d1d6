/*
 * check_gpt2.c - the forward and backward pass of gpt2.c against their contract, gpt2.h.
 *
 * They are compared with golden numbers of another implementation (golden_gpt2.h); with the same
 * model in double, composed from ref.h, and its central differences; and with the activations of a
 * small trained model in its original implementation, if the shared data is there. The promises of
 * equal bits need no second implementation: for any number of threads, for a sequence alone and in
 * a batch, with and without gradient checkpointing.
 */
#include "gpt2_fixture.h"

#include "files/hf.h"
#include "../golden/golden_gpt2.h"

#include <jansson.h>

/* ---- Golden numbers, computed by PyTorch ----------------------------------------------------- */

enum { GOLDEN_N = 20 };
static const GPT2Config golden_config = CONFIG(32, 61, 2, 3, 24, 96, 1e-5f);

static GPT2 *golden_model(void) {
    GPT2 *m = adopt(gpt2_create(&golden_config, false));
    ck_assert_int_eq(gpt2_tensors(m), LENGTH(golden_grad));
    for (int t = 0; t < gpt2_tensors(m); t++) {
        const GPT2Tensor *x = gpt2_tensor(m, t);
        ck_assert_str_eq(x->name, golden_grad[t].name);
        ck_assert_uint_eq(x->n, (size_t)golden_grad[t].n);
        float *w = floats(x->n);
        for (uint32_t i = 0; i < x->n; i++) {
            uint32_t h = (uint32_t)t * 1000003u + i * 7919u + 12345u;
            h ^= h >> 16;
            h *= 0x7feb352du;
            h ^= h >> 15;
            h *= 0x846ca68bu;
            h ^= h >> 16;
            double v = (h / 4294967296.0 - 0.5) * 0.4;
            w[i] = (float)(is_gain(x->name) ? 1.0 + v : v);
        }
        gpt2_write(m, t, GPT2_WEIGHT, 0, x->n, w);
    }
    gpt2_reserve(m, &(GPT2Limits){.tokens = GOLDEN_N,
                                  .sequences = 3,
                                  .scored = GOLDEN_N,
                                  .train = true,
                                  .slots = 1,
                                  .positions = 32});
    return m;
}

static Text *golden_text(void) {
    Text *t = zeros(1, sizeof *t);
    for (int s = 0; s < 3; s++) {
        t->start[s + 1] = t->start[s] + golden_length[s];
        for (int p = 0; p < golden_length[s]; p++)
            t->tokens[t->start[s] + p] = (5 * p * p + 3 * p + 11 * s + 2) % 61;
        for (int p = 0; p < golden_length[s]; p++) {
            bool scored = p >= golden_first_scored[s] && p + 1 < golden_length[s];
            t->target[t->start[s] + p] = scored ? t->tokens[t->start[s] + p + 1] : -1;
            t->dlogp[t->start[s] + p] = scored ? -1.0f / LENGTH(golden_logp) : 0;
            t->scored += scored;
        }
    }
    t->batch = (Batch){.S = 3, .N = t->start[3], .start = t->start, .tokens = t->tokens};
    ck_assert_int_eq(t->batch.N, GOLDEN_N);
    ck_assert_int_eq(t->scored, LENGTH(golden_logp));
    return t;
}

static double mean_loss(const Text *t, const float *logp) {
    double sum = 0;
    for (int i = 0; i < t->batch.N; i++) sum -= logp[i];
    return sum / t->scored;
}

START_TEST(golden_scores) {
    GPT2 *m = golden_model();
    Text *t = golden_text();
    Scores s = score(m, t, NULL);
    for (int i = 0, k = 0; i < GOLDEN_N; i++) {
        // Sums of 24 to 96 terms of size 1 in float. The error of PyTorch's float32 is 6e-7; four
        // times as much is allowed.
        if (t->target[i] >= 0) {
            ck_assert_double_eq_tol((double)s.logp[i], golden_logp[k], WITHIN(2.4e-6, 0.04));
            ck_assert_double_eq_tol((double)s.entropy[i], golden_entropy[k], WITHIN(2.4e-6, 0.04));
            k++;
        } else {
            ck_assert(s.logp[i] == 0 && s.entropy[i] == 0 && s.best[i] == 0);
        }
    }
    // the logits of each sequence's last row
    for (int i = 0; i < GOLDEN_N; i++) t->target[i] = -1;
    for (int q = 0; q < 3; q++) t->target[t->start[q + 1] - 1] = 0;
    score(m, t, NULL);
    for (int q = 0; q < 3; q++) {
        float logits[61];
        real_read(logits, m->logits + q * m->ldv, 61);
        for (int v = 0; v < 61; v++)
            ck_assert_double_eq_tol((double)logits[v], golden_logits[q * 61 + v],
                                    WITHIN(2.4e-6, 0.04));
    }
}
END_TEST

/* The error of PyTorch's float32 has L2 norm f32_l2. Four times as much is allowed, plus the
   rounding of the numbers themselves by 2^-24. An error of norm e changes the norm and each element
   by at most e, and a sum with factors up to 1 by e sqrt(n). */
static const char *compare_golden(const GoldenTensor *g, const float *x, double in_bf16) {
    double sum = 0, squares = 0, dot = 0;
    for (int i = 0; i < g->n; i++) {
        sum += (double)x[i];
        squares += (double)x[i] * (double)x[i];
        dot += (double)x[i] * cos(0.1 * i);
    }
    double e = WITHIN(4 * g->f32_l2 + 0x1p-24 * g->l2, in_bf16 * g->l2),
           got[] = {sum, dot, sqrt(squares), x[0], x[1], x[2], x[g->n - 1]};
    const double want[] = {g->sum,      g->dot_cos,  g->l2,  g->first[0],
                           g->first[1], g->first[2], g->last};
    static const char *const what[] = {
        "sum", "dot_cos", "norm", "element 0", "element 1", "element 2", "the last element"};
    for (int i = 0; i < LENGTH(want); i++) {
        if (fabs(got[i] - want[i]) <= (i < 2 ? e * sqrt(g->n) : e)) continue;
        snprintf(complaint, sizeof complaint,
                 "%s: %s is %.9g, not %.9g (error of all allowed: %.2g)", g->name, what[i], got[i],
                 want[i], e);
        return complaint;
    }
    return NULL;
}

START_TEST(golden_gradient) {
    GPT2 *m = golden_model();
    Text *t = golden_text();
    score(m, t, NULL);
    gpt2_backward(m, t->dlogp, NULL, NULL);
    for (int i = 0; i < gpt2_tensors(m); i++)
        ck_complaint(compare_golden(&golden_grad[i], read_tensor(m, i, GPT2_GRADIENT), 0.03));
}
END_TEST

START_TEST(golden_steps) {
    GPT2 *m = golden_model();
    Text *t = golden_text();
    const AdamW o = ADAMW(0.01f, 0.1f, 1);
    for (int step = 0; step <= 3; step++) {
        // the error of PyTorch's float32 is 3.4e-7 (loss) and 5e-7 (norm)
        ck_assert_double_eq_tol(mean_loss(t, score(m, t, NULL).logp), golden_loss[step],
                                WITHIN(1.4e-6, 0.02));
        if (step == 3) break;
        gpt2_backward(m, t->dlogp, NULL, NULL);
        ck_assert_double_eq_tol((double)gpt2_step(m, &o, step + 1), golden_norm[step],
                                WITHIN(2e-6, 0.02));
    }
    for (int i = 0; i < gpt2_tensors(m); i++) {
        float *w = read_tensor(m, i, GPT2_WEIGHT);
        if (strstr(golden_after[i].name, "c_attn.bias"))
            memset(w + 24, 0, sizeof *w * 24);  // KEY BIAS in golden_gpt2.h
        ck_complaint(compare_golden(&golden_after[i], w, 0.1));
    }
}
END_TEST

START_TEST(golden_continuation) {
    const Batch prompt = {.S = 1,
                          .N = LENGTH(golden_start),
                          .start = (int[]){0, LENGTH(golden_start)},
                          .tokens = golden_start};
    const Generation *g =
        generate(golden_model(), &prompt,
                 (Sampler){.top_p = 1, .max_new_tokens = LENGTH(golden_greedy), .stop_token = -1});
    ck_assert_int_eq(g->start[1], LENGTH(golden_greedy));
    for (int i = 0; i < LENGTH(golden_greedy) && !SHORT; i++)
        ck_assert_int_eq(g->tokens[i], golden_greedy[i]);  // bf16 resolves a near tie differently
    ck_assert(!g->ended[0]);
}
END_TEST

/* ---- The same model in double ---------------------------------------------------------------- */

static void ref_add(double *x, const double *y, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

/* GPT-2 in its simplest form: logp, entropy and best (N) of the rows with a target. The others are
   left as they are. noise may be NULL. */
static void ref_gpt2(const GPT2Config *c, double *const *w, const Batch *b, const int *target,
                     const GPT2Noise *noise, double *logp, double *entropy, int *best) {
    const int N = b->N, C = c->n_embd, F = c->n_inner, V = c->vocab_size;
    const size_t NC = (size_t)N * (size_t)C;
    const GPT2Noise z = noise ? *noise : (GPT2Noise){0};
    uint32_t *sequence = xcalloc((size_t)N, sizeof *sequence);
    int *position = xcalloc((size_t)N, sizeof *position);
    double *memory =
        xcalloc(NC * 6 + (size_t)N * (size_t)(2 * F + c->n_head + 3 + V), sizeof *memory);
    double *r = memory, *x = r + NC, *branch = x + NC, *qkv = branch + NC, *fc = qkv + 3 * NC,
           *act = fc + (size_t)N * (size_t)F;
    double *lse = act + (size_t)N * (size_t)F, *mean = lse + (size_t)N * (size_t)c->n_head,
           *rstd = mean + N, *magnitude = rstd + N, *logits = magnitude + N;
    for (int s = 0; s < b->S; s++)
        for (int i = b->start[s]; i < b->start[s + 1]; i++) {
            sequence[i] = b->id ? b->id[s] : (uint32_t)s;
            position[i] = i - b->start[s];
            magnitude[i] =
                (double)z.neftune_alpha / sqrt((double)(b->start[s + 1] - b->start[s]) * C);
        }
#define SITE(probability, what, layer)                                                            \
    ((Noise){(probability), z.seed, (uint32_t)(what) + 256 * (uint32_t)(layer), z.step, sequence, \
             position})

    ref_embed_forward(r, b->tokens, position, w[0], w[1], N, C);
    ref_add_uniform_noise(r, magnitude, N, C, SITE(1, RANDOM_NEFTUNE, 0));
    ref_dropout(r, N, C, SITE(z.embd_pdrop, RANDOM_DROPOUT_EMBD, 0));
    double *const *p = w + 2;
    for (int l = 0; l < c->n_layer; l++, p += 12) {
        ref_layernorm_forward(NULL, x, mean, rstd, r, NULL, p[0], p[1], N, C,
                              (double)c->layer_norm_epsilon);
        ref_linear_forward(qkv, x, p[2], p[3], N, C, 3 * C);
        ref_attention_forward(x, lse, qkv, b->start, b->S, c->n_head, C / c->n_head,
                              SITE(z.attn_pdrop, RANDOM_DROPOUT_ATTN, l));
        ref_linear_forward(branch, x, p[4], p[5], N, C, C);
        ref_dropout(branch, N, C, SITE(z.resid_pdrop, RANDOM_DROPOUT_ATTN_RESID, l));
        ref_add(r, branch, NC);
        ref_layernorm_forward(NULL, x, mean, rstd, r, NULL, p[6], p[7], N, C,
                              (double)c->layer_norm_epsilon);
        ref_linear_forward(fc, x, p[8], p[9], N, C, F);
        ref_gelu_forward(act, fc, (size_t)N * (size_t)F);
        ref_linear_forward(branch, act, p[10], p[11], N, F, C);
        ref_dropout(branch, N, C, SITE(z.resid_pdrop, RANDOM_DROPOUT_MLP_RESID, l));
        ref_add(r, branch, NC);
    }
    ref_layernorm_forward(NULL, x, mean, rstd, r, NULL, p[0], p[1], N, C,
                          (double)c->layer_norm_epsilon);
    ref_head_forward(logits, x, w[0], N, C, V, V);
    for (int i = 0; i < N; i++)
        if (target[i] >= 0)
            ref_logprob_forward(logp + i, entropy + i, lse, best + i,
                                logits + (size_t)i * (size_t)V, target + i, 1, V, V);
    free(memory);
    free(position);
    free(sequence);
}

START_TEST(scores_are_those_of_the_reference) {
    FOR_SHAPES(s)
    for (int noisy = 0; noisy <= 1; noisy++) {
        const GPT2Noise *noise = noisy ? &all_noise : NULL;
        Text *t = text_of(s);
        GPT2 *m = model(&s->config, fit(t, false, false));
        size_t N = (size_t)t->batch.N;
        double *logp = doubles(N), *entropy = doubles(N);
        int *best = zeros(N, sizeof(int));
        ref_gpt2(&s->config, widen_weights(m).w, &t->batch, t->target, noise, logp, entropy, best);
        Scores got = score(m, t, noise);
        // Some ten sums, one after the other, of up to 60 terms. The error of each is 2^-24 times
        // the root of the number of terms, 5e-7, and the errors add up like random steps to
        // 2e-6, which is allowed. An eighth of it is measured.
        ck_close(got.logp, logp, N, WITHIN(2e-6, 0.01));
        ck_close(got.entropy, entropy, N, WITHIN(2e-6, 0.01));
        for (size_t i = 0; i < N && !SHORT; i++) ck_assert_int_eq((int)got.best[i], best[i]);
    }
}
END_TEST

START_TEST(each_kind_of_noise_is_that_of_the_reference_alone) {
    const GPT2Noise kinds[] = {{.embd_pdrop = 0.5f, .seed = 1},
                               {.attn_pdrop = 0.5f, .seed = 1},
                               {.resid_pdrop = 0.5f, .seed = 1},
                               {.neftune_alpha = 15, .seed = 1},
                               {.embd_pdrop = 0.5f, .seed = 1ull << 40, .step = 4000000000u}};
    Text *t = text_of(MIDDLING);
    GPT2 *m = model(&MIDDLING->config, fit(t, false, false));
    size_t N = (size_t)t->batch.N;
    Scores silent = score(m, t, NULL);
    for (int k = 0; k < LENGTH(kinds); k++)
        for (int named = 0; named <= 1; named++) {
            AT("noise %d, ids %s", k, named ? "given" : "counted");
            t->batch.id = named ? t->id : NULL;
            double *logp = doubles(N), *entropy = doubles(N);
            ref_gpt2(&MIDDLING->config, widen_weights(m).w, &t->batch, t->target, &kinds[k], logp,
                     entropy, zeros(N, sizeof(int)));
            Scores noisy = score(m, t, &kinds[k]);
            ck_close(noisy.logp, logp, N, WITHIN(2e-6, 0.01));  // as above
            ck_assert(memcmp(noisy.logp, silent.logp, N * sizeof(float)));
        }
    AT("after noise");
    score(m, t, &all_noise);
    ck_same_scores(score(m, t, NULL), silent, N);
    ck_same_scores(score(m, t, &(GPT2Noise){.seed = 9}), silent,
                   N);  // all 0 by default, so nothing is random
}
END_TEST

/* The loss whose derivatives with respect to logp and entropy are those of the text. */
static double ref_loss(const GPT2Config *c, double *const *w, const Text *t,
                       const GPT2Noise *noise) {
    double logp[MAX_N] = {0}, entropy[MAX_N] = {0}, loss = 0;
    int best[MAX_N];
    ref_gpt2(c, w, &t->batch, t->target, noise, logp, entropy, best);
    for (int i = 0; i < t->batch.N; i++)
        if (t->target[i] >= 0)
            loss += (double)t->dlogp[i] * logp[i] + (double)t->dentropy[i] * entropy[i];
    return loss;
}

/* For each tensor, compares the slope of the double reference by central differences with the
   product of gradient and direction. The directions are random and have +-1/sqrt(n) in every
   element, so that no element is skipped. */
static const char *compare_slopes(GPT2 *m, const Text *t, const GPT2Noise *noise,
                                  double tolerance) {
    enum { DIRECTIONS = 3 };
    Wide wide = widen_weights(m);
    for (int i = 0; i < gpt2_tensors(m); i++) {
        size_t n = gpt2_tensor(m, i)->n;
        const double *g = widen(read_tensor(m, i, GPT2_GRADIENT), n),
                     *here = memcpy(doubles(n), wide.w[i], n * sizeof *here);
        double size = norm(g, n),
               step = 1e-4;  // error of the formula: step^2 = 1e-8; of rounding: 1e-16 / step
        for (int k = 0; k < DIRECTIONS; k++) {
            double product = 0, up, slope, unit = 1 / sqrt((double)n);
#define SIGN(j) (below(2, 200 + (uint32_t)k, (uint32_t)(j)) ? unit : -unit)
            for (size_t j = 0; j < n; j++) product += g[j] * SIGN(j);
            for (size_t j = 0; j < n; j++) wide.w[i][j] = here[j] + step * SIGN(j);
            up = ref_loss(&m->config, wide.w, t, noise);
            for (size_t j = 0; j < n; j++) wide.w[i][j] = here[j] - step * SIGN(j);
            slope = (up - ref_loss(&m->config, wide.w, t, noise)) / (2 * step);
            memcpy(wide.w[i], here, n * sizeof *here);
            if (size > 0 && fabs(product - slope) <= tolerance * size) continue;
            snprintf(complaint, sizeof complaint,
                     "%s: gradient of %s: slope %.9g, not %.9g; error %.3g of its norm %.3g", where,
                     gpt2_tensor(m, i)->name, product, slope, fabs(product - slope) / size, size);
            return complaint;
        }
    }
    return NULL;
}

START_TEST(gradients_are_slopes_of_the_reference) {
    FOR_SHAPES(s)
    for (int noisy = 0; noisy <= 1; noisy++)
        for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
            const GPT2Noise *noise = noisy ? &all_noise : NULL;
            AT("%s%s%s", s->name, noisy ? ", noise" : "",
               checkpointing ? ", gradient checkpointing" : "");
            Text *t = text_of(s);
            GPT2 *m = model(&s->config, fit(t, true, checkpointing));
            learn(m, t, noise);
            // The gradient is float. Relative to its norm it has the error of the scores, with
            // twice as many sums. Measured: 8e-7. If one element of n is wrong, the slope changes
            // by its error / sqrt(n), so among 1,200 elements one that is wrong by 1 % is noticed.
            ck_complaint(compare_slopes(m, t, noise, WITHIN(5e-6, 0.04)));
        }
}
END_TEST

/* ---- The same bits in other ways ------------------------------------------------------------- */

START_TEST(gradient_checkpointing_changes_no_bit) {
    FOR_SHAPES(s)
    for (int noisy = 0; noisy <= 1; noisy++) {
        const GPT2Noise *noise = noisy ? &all_noise : NULL;
        Text *t = text_of(s);
        GPT2 *keeps = model(&s->config, fit(t, true, false)),
             *forgets = model(&s->config, fit(t, true, true));
        Scores want = learn(keeps, t, noise), got = learn(forgets, t, noise);
        ck_same_scores(got, want, (size_t)t->batch.N);
        ck_bits(read_all(forgets, GPT2_GRADIENT), read_all(keeps, GPT2_GRADIENT), elements(keeps));
    }
}
END_TEST

START_TEST(a_model_without_gradients_gives_the_same_scores) {
    FOR_SHAPES(s) {
        Text *t = text_of(s);
        Scores want = score(model(&s->config, fit(t, true, false)), t, &all_noise),
               got = score(model(&s->config, fit(t, false, false)), t, &all_noise);
        ck_same_scores(got, want, (size_t)t->batch.N);
    }
}
END_TEST

/* Detects arrays that overlap by an element, and limits that are used as sizes. */
START_TEST(room_to_spare_changes_no_bit) {
    FOR_SHAPES(s)
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        Text *t = text_of(s);
        GPT2 *tight = model(&s->config, fit(t, true, checkpointing));
        GPT2 *roomy = model(&s->config, (GPT2Limits){.tokens = 3 * t->batch.N + 5,
                                                     .sequences = 50,
                                                     .scored = 2 * t->batch.N + 3,
                                                     .train = true,
                                                     .gradient_checkpointing = checkpointing,
                                                     .slots = 3,
                                                     .positions = 7});
        Scores want = learn(tight, t, &all_noise), got = learn(roomy, t, &all_noise);
        ck_same_scores(got, want, (size_t)t->batch.N);
        ck_bits(read_all(roomy, GPT2_GRADIENT), read_all(tight, GPT2_GRADIENT), elements(tight));
    }
}
END_TEST

START_TEST(a_second_batch_does_not_see_the_first) {
    Text *t = text_of(MIDDLING),
         *other = text(MIDDLING->config.vocab_size, 5, (int[]){9, 12, 2, 5, 7});
    GPT2 *fresh = model(&MIDDLING->config, fit(t, true, false));
    GPT2 *used = model(&MIDDLING->config,
                       (GPT2Limits){.tokens = 64, .sequences = 5, .scored = 64, .train = true});
    Scores want = learn(fresh, t, &all_noise);
    learn(used, other, &all_noise);
    score(used, other, NULL);  // and a forward pass without a backward pass
    clear_gradients(used);
    Scores got = learn(used, t, &all_noise);
    ck_same_scores(got, want, (size_t)t->batch.N);
    ck_bits(read_all(used, GPT2_GRADIENT), read_all(fresh, GPT2_GRADIENT), elements(fresh));
}
END_TEST

START_TEST(logits_scored_in_turns_give_the_same_bits) {
    FOR_SHAPES(s) {
        Text *t = text_of(s);
        GPT2 *whole = model(&s->config, fit(t, true, false));
        ck_assert_int_eq(whole->logit_rows, t->scored);
        Scores want = learn(whole, t, NULL);
        for (int k = 0; k < 4; k++) {
            GPT2 *turns = model(&s->config, fit(t, true, k % 2));
            turns->logit_rows = (int[]){1, 3, (t->scored + 1) / 2, t->scored - 1}[k];
            AT("%s, %d rows in turns of %d", s->name, t->scored, turns->logit_rows);
            if (turns->logit_rows < 1 || turns->logit_rows >= t->scored) continue;
            Scores got = learn(turns, t, NULL);
            ck_same_scores(got, want, (size_t)t->batch.N);
            // the chains of the gradient of wte continue from turn to turn, and the gradient of a
            // row is independent of the others
            ck_chain(read_all(turns, GPT2_GRADIENT), read_all(whole, GPT2_GRADIENT),
                     elements(whole));
        }
    }
}
END_TEST

START_TEST(logits_keep_to_their_budget) {
    const GPT2Config c = CONFIG(8, 50257, 1, 1, 4, 4, 1e-5f);
    GPT2 *m = adopt(gpt2_create(&c, false));
    gpt2_reserve(m,
                 &(GPT2Limits){.tokens = 18000, .sequences = 2250, .scored = 17000, .train = true});
    size_t row = (size_t)m->ldv * sizeof(real);
    ck_assert_int_ge(m->ldv, c.vocab_size);
    ck_assert_uint_le((size_t)m->logit_rows * row, LOGIT_BYTES);
    ck_assert_uint_gt(((size_t)m->logit_rows + 1) * row, LOGIT_BYTES);
    ck_assert_uint_le(m->memory.logits, LOGIT_BYTES + 64);
    ck_assert_uint_ge(m->memory.logits, (size_t)m->logit_rows * row);
}
END_TEST

/* All results of a model for a text, as numbers: scores, gradients, norms, weights and moments
   after steps, and generated texts. */
static float *everything(size_t *n) {
    const GPT2Config c = CONFIG(80, 301, 2, 3, 72, 200, 1e-5f);
    Text *t = text(c.vocab_size, 5, (int[]){33, 70, 1, 12, 50});
    GPT2Limits limits = fit(t, true, false);
    limits.slots = 3;
    limits.positions = 80;
    GPT2 *m = model(&c, limits);
    const AdamW o = ADAMW(0.01f, 0.1f, 1);
    size_t N = (size_t)t->batch.N, all = elements(m), generated = 5 * 10;
    float *x = floats(2 * (3 * N + all + 1) + 3 * all + 2 * generated + 5), *to = x;
    for (int step = 1; step <= 2; step++) {
        GPT2Noise noise = all_noise;
        noise.step = (uint32_t)step;
        Scores s = learn(m, t, &noise);
        memcpy(to, s.logp, N * sizeof *to);
        to += N;
        memcpy(to, s.entropy, N * sizeof *to);
        to += N;
        memcpy(to, s.best, N * sizeof *to);
        to += N;
        memcpy(to, read_all(m, GPT2_GRADIENT), all * sizeof *to);
        to += all;
        *to++ = gpt2_step(m, &o, step);
    }
    memcpy(to, read_all(m, GPT2_WEIGHT), all * sizeof *to);
    to += all;
    memcpy(to, read_all(m, GPT2_MOMENT1), all * sizeof *to);
    to += all;
    memcpy(to, read_all(m, GPT2_MOMENT2), all * sizeof *to);
    to += all;
    const Generation *g = generate(
        m, &t->batch,
        (Sampler){
            .temperature = 1, .top_p = 0.9f, .max_new_tokens = 10, .stop_token = -1, .seed = 5});
    ck_assert_int_eq(g->start[5], (int)generated);
    for (int i = 0; i < g->start[5]; i++) {
        *to++ = (float)g->tokens[i];
        *to++ = g->logp[i];
    }
    *n = (size_t)(to - x);
    return x;
}

START_TEST(threads_change_no_bit) {
    size_t n;
    omp_set_num_threads(1);
    const float *one = everything(&n);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(one[i])) ck_abort_msg("number %zu of %zu is not finite", i, n);
    for (int threads = 2; threads <= 3; threads++) {
        AT("%d threads", threads);
        omp_set_num_threads(threads);
        ck_bits(everything(&n), one, n);
    }
}
END_TEST

START_TEST(a_sequence_alone_has_the_bits_it_has_in_company) {
    FOR_SHAPES(s) {
        Text *all = text_of(s);
        GPT2 *m = model(&s->config, fit(all, false, false));
        Scores together = score(m, all, &all_noise);
        for (int q = 0; q < s->S; q++)
            for (int S = 1; q + S <= s->S;
                 S++) {  // first, in the middle, last; alone, with one other, with two, ...
                AT("%s: sequences %d to %d", s->name, q, q + S - 1);
                Text *some = part_of(all, q, S);
                Scores alone = score(m, some, &all_noise), want = together;
                want.logp += all->start[q];
                want.entropy += all->start[q];
                want.best += all->start[q];
                ck_same_scores(alone, want, (size_t)some->batch.N);
            }
    }
}
END_TEST

START_TEST(an_empty_sequence_changes_no_bit) {
    Text *t = text(MIDDLING->config.vocab_size, 2, (int[]){7, 5}),
         *gap = text(MIDDLING->config.vocab_size, 4, (int[]){7, 0, 5, 0});
    gap->id[0] = t->id[0];
    gap->id[2] = t->id[1];
    GPT2 *a = model(&MIDDLING->config, fit(t, true, false)),
         *b = model(&MIDDLING->config, fit(gap, true, false));
    Scores want = learn(a, t, &all_noise), got = learn(b, gap, &all_noise);
    ck_same_scores(got, want, 12);
    ck_bits(read_all(b, GPT2_GRADIENT), read_all(a, GPT2_GRADIENT), elements(a));
}
END_TEST

START_TEST(entropy_and_best_are_optional) {
    Text *t = text_of(MIDDLING);
    GPT2 *with = model(&MIDDLING->config, fit(t, true, false)),
         *without = model(&MIDDLING->config, fit(t, true, false));
    Scores want = score(with, t, NULL), got = {.logp = floats((size_t)t->batch.N)};
    gpt2_backward(with, t->dlogp, NULL, NULL);
    gpt2_forward(without, &t->batch, NULL);
    gpt2_logprob(without, t->target, 1, got.logp, NULL, NULL);
    gpt2_backward(without, t->dlogp, NULL, NULL);
    ck_bits(got.logp, want.logp, (size_t)t->batch.N);
    ck_bits(read_all(without, GPT2_GRADIENT), read_all(with, GPT2_GRADIENT), elements(with));
    // a loss of the entropy alone
    GPT2 *by_entropy = model(&MIDDLING->config, fit(t, true, false)),
         *by_zero = model(&MIDDLING->config, fit(t, true, false));
    const float *none = floats((size_t)t->batch.N);
    score(by_entropy, t, NULL);
    gpt2_backward(by_entropy, NULL, t->dentropy, NULL);
    score(by_zero, t, NULL);
    gpt2_backward(by_zero, none, t->dentropy, NULL);
    ck_bits(read_all(by_entropy, GPT2_GRADIENT), read_all(by_zero, GPT2_GRADIENT), elements(with));
    double *g = widen(read_all(by_entropy, GPT2_GRADIENT), elements(with));
    ck_assert_double_gt(norm(g, elements(with)), 0.1);
}
END_TEST

START_TEST(the_last_scores_count) {
    Text *t = text_of(MIDDLING);
    GPT2 *once = model(&MIDDLING->config, fit(t, true, false)),
         *twice = model(&MIDDLING->config, fit(t, true, false));
    Scores want = learn(once, t, NULL);
    Text *shifted = memcpy(zeros(1, sizeof *shifted), t, sizeof *t);
    for (int i = 0; i < t->batch.N; i++) shifted->target[i] = t->target[t->batch.N - 1 - i];
    score(twice, shifted, NULL);
    Scores got = {floats((size_t)t->batch.N), floats((size_t)t->batch.N), want.best};
    gpt2_logprob(twice, t->target, 1, got.logp, got.entropy,
                 NULL);  // again, without another forward pass
    gpt2_backward(twice, t->dlogp, t->dentropy, NULL);
    ck_same_scores(got, want, (size_t)t->batch.N);
    ck_bits(read_all(twice, GPT2_GRADIENT), read_all(once, GPT2_GRADIENT), elements(once));
}
END_TEST

/* ---- Accumulation, rows without a target ----------------------------------------------------- */

/* The chain of a gradient over tokens continues from its previous value. So two micro-batches give
   the bits of one batch with both. The tied matrix is an exception: one batch adds both heads and
   then both embeddings, while two batches add head, embedding, head, embedding. So the order of
   additions differs, and each may round by 2^-24. */
START_TEST(micro_batches_accumulate_to_the_bits_of_one_batch) {
    FOR_SHAPES(s)
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        Text *all = text_of(s), *first = part_of(all, 0, 1), *rest = part_of(all, 1, s->S - 1);
        GPT2 *whole = model(&s->config, fit(all, true, checkpointing)),
             *parts = model(&s->config, fit(all, true, checkpointing));
        learn(whole, all, &all_noise);
        learn(parts, first, &all_noise);
        learn(parts, rest, &all_noise);
        size_t n = gpt2_tensor(whole, 0)->n;
        ck_close(read_tensor(parts, 0, GPT2_GRADIENT),
                 widen(read_tensor(whole, 0, GPT2_GRADIENT), n), n, 1e-6);
        for (int i = 1; i < gpt2_tensors(whole); i++) {
            AT("%s: %s", s->name, gpt2_tensor(whole, i)->name);
            ck_chain(read_tensor(parts, i, GPT2_GRADIENT), read_tensor(whole, i, GPT2_GRADIENT),
                     gpt2_tensor(whole, i)->n);
        }
    }
}
END_TEST

START_TEST(rows_without_a_target_have_no_score_and_no_gradient) {
    Text *t = text_of(MIDDLING);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    for (int i = 0; i < t->batch.N; i++) t->target[i] = -1 - i;
    derivatives(t);  // all NaN
    Scores s = learn(m, t, NULL);
    for (int i = 0; i < t->batch.N; i++)
        ck_assert(s.logp[i] == 0 && s.entropy[i] == 0 && s.best[i] == 0);
    ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
    // the same if gpt2_logprob is not called at all
    score(m, text_of(MIDDLING), NULL);
    gpt2_forward(m, &t->batch, NULL);
    gpt2_backward(m, t->dlogp, t->dentropy, NULL);
    ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
}
END_TEST

/* Later positions do not affect a row. If only one row is scored, the gradients of later positions
   are 0. */
START_TEST(gradients_do_not_come_from_the_future) {
    Text *t = text(MIDDLING->config.vocab_size, 1, (int[]){20});
    for (int i = 0; i < 20; i++) t->target[i] = i == 11 ? 3 : -1;
    derivatives(t);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    learn(m, t, NULL);
    const float *wpe = read_tensor(m, 1, GPT2_GRADIENT);
    size_t C = (size_t)MIDDLING->config.n_embd;
    for (size_t p = 0; p < 24; p++)
        ck_assert(p <= 11 ? norm(widen(wpe + p * C, C), C) > 0
                          : norm(widen(wpe + p * C, C), C) == 0);
}
END_TEST

/* ---- A trained model ------------------------------------------------------------------------- */

/* gpt-nano-sort and its activations in its original implementation */

static const char *shared_path(const char *file) {
    static char path[1024];
    const char *shared = getenv("SHARED");
    snprintf(path, sizeof path, "%s/data/gpt-nano-sort/%s",
             shared && *shared ? shared : "../shared", file);
    return path;
}

/* The n floats of an activation: base64 of little-endian float32. */
static float *activation(const json_t *root, const char *name, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *text = json_string_value(json_object_get(json_object_get(root, name), "data"));
    ck_assert_msg(text && strlen(text) == (4 * n + 2) / 3 * 4, "%s: not %zu numbers", name, n);
    unsigned char *bytes = zeros(4 * n + 3, 1), *to = bytes;
    for (; *text; text += 4, to += 3) {
        uint32_t word = 0;
        for (int i = 0; i < 4; i++)
            word = word << 6 | (text[i] == '=' ? 0 : (uint32_t)(strchr(digits, text[i]) - digits));
        to[0] = (unsigned char)(word >> 16);
        to[1] = (unsigned char)(word >> 8);
        to[2] = (unsigned char)word;
    }
    return (float *)(void *)bytes;
}

/* bias = the mean over rows of qkv (N,3C) - ln1 (N,C) weight, in block 0. */
static void missing_bias(const json_t *root, const float *weight, float *bias, int N, int C) {
    size_t rows = (size_t)N, columns = 3 * (size_t)C;
    const double *qkv = widen(activation(root, "qkv", rows * columns), rows * columns);
    double *product = doubles(rows * columns);
    ref_linear_forward(product, widen(activation(root, "ln1", rows * (size_t)C), rows * (size_t)C),
                       widen(weight, (size_t)C * columns), NULL, N, C, 3 * C);
    for (size_t j = 0; j < columns; j++) {
        double sum = 0;
        for (size_t i = 0; i < rows; i++) sum += qkv[i * columns + j] - product[i * columns + j];
        bias[j] = (float)(sum / (double)rows);
    }
}

START_TEST(activations_of_a_learned_model) {
    Error e;
    SafeTensors *file = st_open(shared_path("model.safetensors"), &e);
    json_t *root = json_load_file(shared_path("reference-activations.json"), 0, NULL);
    if (!file || !root) {
        printf("skipped: activations_of_a_learned_model needs %s\n", shared_path(""));
        if (file) st_close(file);
        json_decref(root);
        return;
    }
    enum { T = 11, V = 3, C = 48, F = 192, S = 3, N = S * T };
    const GPT2Config c = CONFIG(T, V, 3, 3, C, F, 1e-5f);
    GPT2 *m = adopt(gpt2_create(&c, false));
    bool complete = true;
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        const STTensor *from = st_find(file, t->name);
        float *w = floats(t->n);
        if (!from && strstr(t->name,
                            "attn.c_attn.bias")) {  // one copy of the model lacks these three
            complete = false;
            if (i == FIRST_LAYER + QKV_B)
                missing_bias(root, read_tensor(m, i - 1, GPT2_WEIGHT), w, N, C);
        } else {
            ck_assert_msg(from && from->n == t->n && from->ndim == t->ndim &&
                              from->shape[0] == (size_t)t->shape[0],
                          "%s", t->name);
            ck_assert_int_eq(st_floats(from, 0, t->n, w, &e), 0);
        }
        gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, w);
    }
    if (!complete)
        printf(
            "skipped in part: activations_of_a_learned_model, blocks 1 and 2, which need "
            "h.*.attn.c_attn.bias in %s\n",
            shared_path("model.safetensors"));
    float head[V * C];
    ck_assert_int_eq(st_floats(st_find(file, "lm_head.weight"), 0, V * C, head, &e), 0);
    st_close(file);

    int tokens[N];
    const float *idx = activation(root, "idx", N);
    for (int i = 0; i < N; i++) tokens[i] = (int)idx[i];
    const Batch b = {.S = S, .N = N, .start = (int[]){0, T, 2 * T, 3 * T}, .tokens = tokens};
    gpt2_reserve(m, &(GPT2Limits){.tokens = N, .sequences = S, .scored = 1, .train = true});
    gpt2_forward(m, &b, NULL);
    const struct {
        const char *name;  // of block 0, unless another block is named
        const real *at;
        size_t n;
        bool later;  // depends on blocks 1 and 2
    } kept[] = {{"x", m->layer[0].r, N * C, false},     {"qkv", m->layer[0].qkv, N * 3 * C, false},
                {"y", m->layer[0].att, N * C, false},   {"attnResid", m->layer[0].h, N * C, false},
                {"fc", m->layer[0].fc, N * F, false},   {"block0", m->layer[1].r, N * C, false},
                {"block1", m->layer[2].r, N * C, true}, {"block2", m->r_final, N * C, true},
                {"ln_f", m->norm, N * C, true}};
    for (int k = 0; k < LENGTH(kept); k++) {
        if (kept[k].later && !complete) continue;
        AT("%s", kept[k].name);
        float *got = floats(kept[k].n);
        real_read(got, kept[k].at, kept[k].n);
        // both are float32, with the error of the scores above. Measured: 9e-7.
        ck_close(got, widen(activation(root, kept[k].name, kept[k].n), kept[k].n), kept[k].n,
                 WITHIN(5e-6, 0.03));
    }
    if (complete) {  // its head is not tied, so it is applied here
        AT("lm_head");
        double *logits = doubles(N * V);
        float *normed = floats(N * C), *narrow = floats(N * V);
        real_read(normed, m->norm, N * C);
        ref_head_forward(logits, widen(normed, N * C), widen(head, V * C), N, C, V, V);
        for (int i = 0; i < N * V; i++) narrow[i] = (float)logits[i];
        ck_close(narrow, widen(activation(root, "lm_head", N * V), N * V), N * V,
                 WITHIN(5e-6, 0.03));
    }
    json_decref(root);
}
END_TEST

int main(void) {
    omp_set_num_threads(1);
    Suite *suite = suite_create("gpt2");
    ADD("golden", golden_scores, golden_gradient, golden_steps, golden_continuation);
    ADD("reference", scores_are_those_of_the_reference,
        each_kind_of_noise_is_that_of_the_reference_alone, gradients_are_slopes_of_the_reference);
    ADD("same bits", gradient_checkpointing_changes_no_bit,
        a_model_without_gradients_gives_the_same_scores, room_to_spare_changes_no_bit,
        a_second_batch_does_not_see_the_first, logits_scored_in_turns_give_the_same_bits,
        logits_keep_to_their_budget, threads_change_no_bit,
        a_sequence_alone_has_the_bits_it_has_in_company, an_empty_sequence_changes_no_bit,
        entropy_and_best_are_optional, the_last_scores_count);
    ADD("accumulation", micro_batches_accumulate_to_the_bits_of_one_batch,
        rows_without_a_target_have_no_score_and_no_gradient, gradients_do_not_come_from_the_future);
    ADD("learned model", activations_of_a_learned_model);
    return run_suite(suite) != 0;
}
