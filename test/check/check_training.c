/*
 * check_training.c - the parts of gpt2.c that training needs besides forward and backward, and what
 * changes its gradients: the optimiser's step, the scalar head, shared prefixes, KL, frozen tensors
 * and taps.
 */
#include "gpt2_fixture.h"

/* ---- The optimiser's step -------------------------------------------------------------------- */

START_TEST(a_step_is_that_of_the_reference) {
    for (int clipped = 0; clipped <= 1; clipped++) {
        AT("%s", clipped ? "clipped" : "not clipped");
        Text *t = text_of(MIDDLING);
        GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
        AdamW o = {.learning_rate = 0.02f,
                   .beta1 = 0.8f,
                   .beta2 = 0.99f,
                   .epsilon = 1e-6f,
                   .weight_decay = 0.3f};
        o.max_grad_norm = clipped ? 0.5f : 0;
        size_t all = elements(m);
        double *w = widen_weights(m).all, *m1 = doubles(all), *m2 = doubles(all);
        for (int step = 1; step <= 3; step++) {
            learn(m, t, NULL);
            double *g = widen(read_all(m, GPT2_GRADIENT), all), size = norm(g, all),
                   scale = clipped ? 0.5 / (size + 1e-6) : 1;
            ck_assert_double_gt(size, 1);  // so that it is clipped
            // the norm before clipping; a float of a sum in double
            ck_assert_double_eq_tol((double)gpt2_step(m, &o, step), size, 1e-7 * size);
            size_t from = 0;
            for (int i = 0; i < gpt2_tensors(m); from += gpt2_tensor(m, i++)->n)
                ref_adamw(w + from, g + from, m1 + from, m2 + from, gpt2_tensor(m, i)->n, scale,
                          (double)o.learning_rate, (double)o.beta1, (double)o.beta2,
                          (double)o.epsilon,
                          gpt2_tensor(m, i)->ndim == 2 ? (double)o.weight_decay : 0, step);
            // moments and weights are float from step to step: a few roundings of 2^-24 each
            ck_close(read_all(m, GPT2_MOMENT1), m1, all, 1e-6);
            ck_close(read_all(m, GPT2_MOMENT2), m2, all, 1e-6);
            ck_close(read_all(m, GPT2_WEIGHT), w, all, 1e-6);
            ck_zero(read_all(m, GPT2_GRADIENT), all);
        }
    }
}
END_TEST

START_TEST(a_small_gradient_is_not_clipped) {
    Text *t = text_of(MIDDLING);
    GPT2 *limited = model(&MIDDLING->config, fit(t, true, false)),
         *free_ = model(&MIDDLING->config, fit(t, true, false));
    AdamW o = ADAMW(0.02f, 0, 1e6f);
    o.epsilon = 1;  // with a small epsilon the scale of a gradient has little effect
    learn(limited, t, NULL);
    gpt2_step(limited, &o, 1);
    o.max_grad_norm = 0;
    learn(free_, t, NULL);
    gpt2_step(free_, &o, 1);
    ck_bits(read_all(limited, GPT2_WEIGHT), read_all(free_, GPT2_WEIGHT), elements(limited));
}
END_TEST

START_TEST(cleared_gradients_are_forgotten) {
    Text *t = text_of(MIDDLING);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false)),
         *other = model(&MIDDLING->config, fit(t, true, false));
    const AdamW o = ADAMW(0.02f, 0, 1);
    learn(m, t, NULL);
    gpt2_clear(m);
    ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
    learn(m, t, NULL);
    gpt2_step(m, &o, 1);  // as if there had been no first step
    learn(other, t, NULL);
    gpt2_step(other, &o, 1);
    ck_bits(read_all(m, GPT2_WEIGHT), read_all(other, GPT2_WEIGHT), elements(m));
}
END_TEST

START_TEST(a_gradient_that_is_not_finite_changes_nothing) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    const AdamW o = ADAMW(0.02f, 0.1f, 1);
    Text *t = text_of(MIDDLING);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    learn(m, t, NULL);
    gpt2_step(m, &o, 1);
    const float *w = read_all(m, GPT2_WEIGHT), *m1 = read_all(m, GPT2_MOMENT1),
                *m2 = read_all(m, GPT2_MOMENT2);
    for (int k = 0; k < LENGTH(bad); k++)
        for (int i = 0; i < gpt2_tensors(m); i++) {
            AT("%f in %s", (double)bad[k], gpt2_tensor(m, i)->name);
            if (i == 5) learn(m, t, NULL);  // together with finite gradients, or with zeros
            gpt2_write(m, i, GPT2_GRADIENT, gpt2_tensor(m, i)->n - 1, 1, &bad[k]);
            ck_assert(!isfinite(gpt2_step(m, &o, 2)));
            ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
        }
    ck_bits(read_all(m, GPT2_WEIGHT), w, elements(m));
    ck_bits(read_all(m, GPT2_MOMENT1), m1, elements(m));
    ck_bits(read_all(m, GPT2_MOMENT2), m2, elements(m));
}
END_TEST

/* What a GPU has beyond the vocabulary, so that products are of whole tiles, is zero and remains so
   in training: weights, masters, gradients. */
START_TEST(rows_beyond_the_vocabulary_remain_zero) {
    const AdamW o = ADAMW(0.02f, 0.1f, 1);
    Text *t = text_of(MIDDLING);
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    const size_t V = (size_t)m->config.vocab_size, C = (size_t)m->config.n_embd,
                 beyond = ((size_t)m->vocabulary - V) * C;
    float *x = floats(beyond + 1);
    ck_assert_int_ge(m->vocabulary, m->config.vocab_size);
    ck_assert_int_ge(m->ldv, m->vocabulary);
    for (int step = 1; step <= 3; step++) {
        learn(m, t, NULL);
        AT("step %d", step);
        device_read(x, m->parts[WTE].g + V * C, sizeof(float) * beyond);
        ck_zero(x, beyond);
        gpt2_step(m, &o, step);
        real_read(x, m->parts[WTE].w + V * C, beyond);
        ck_zero(x, beyond);
        if (m->parts[WTE].master)
            device_read(x, m->parts[WTE].master + V * C, sizeof(float) * beyond);
        ck_zero(x, beyond);
    }
}
END_TEST

/* ---- Gradients and slopes -------------------------------------------------------------------- */

/* Along the gradient g of a tensor, the slope of the loss is |g|^2. Central differences in float
   confirm this to a few thousandths, for any loss, tensor and model, without a second
   implementation.
 */

typedef double Loss(GPT2 *m, const void *what);

/* Returns NULL, or a message about the first tensor whose gradient is not the slope of the loss. */
static const char *compare_gradients_with_slopes(GPT2 *m, Loss *loss, const void *what) {
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        if (!t->trains) continue;
        float *w = read_tensor(m, i, GPT2_WEIGHT), *g = read_tensor(m, i, GPT2_GRADIENT),
              *moved = floats(t->n);
        double square = norm(widen(g, t->n), t->n) * norm(widen(g, t->n), t->n), value[2],
               size = norm(widen(w, t->n), t->n) + 1;
        if (square == 0)
            return snprintf(complaint, sizeof complaint, "%s: the gradient of %s is 0", where,
                            t->name),
                   complaint;
        const double step = WITHIN(0.002, 0.015) * size /
                            sqrt(square);  // small compared to weights, large compared to rounding
        double rise = 0;  // expected rise of the loss: g . (w on one side - w on the other), with
                          // both as they are stored
        for (int side = 0; side < 2; side++) {
            for (size_t j = 0; j < t->n; j++)
                moved[j] = (float)((double)w[j] + (side ? step : -step) * (double)g[j]);
            gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, moved);
            real_read(moved, m->parts[i].w, t->n);
            for (size_t j = 0; j < t->n; j++)
                rise += (side ? 1 : -1) * (double)g[j] * (double)moved[j];
            value[side] = loss(m, what);
        }
        gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, w);
        const double rounding =
            WITHIN(1e-6, 6e-3) *
            (fabs(value[0]) + 10);  // in bf16 it exceeds the effect of a small tensor
        if (fabs(value[1] - value[0] - rise) > WITHIN(0.01, 0.12) * rise + rounding)
            return snprintf(complaint, sizeof complaint,
                            "%s: along the gradient of %s the loss rises by %.6g, not by %.6g "
                            "(rounding: %.2g)",
                            where, t->name, value[1] - value[0], rise, rounding),
                   complaint;
    }
    return NULL;
}

/* ---- The scalar head ------------------------------------------------------------------------- */

static const GPT2Head scalar_heads[] = {SCORE_HEAD, LM_AND_VALUE_HEAD};

static GPT2Config with_head(const Shape *s, GPT2Head head) {
    GPT2Config c = s->config;
    c.head = head;
    return c;
}

/* The sum of dentropy_i value_i and, if there is a vocabulary's head, of dlogp_i logp_i. */
static double value_loss(GPT2 *m, const void *what) {
    const Text *t = what;
    double sum = 0;
    float *value = floats((size_t)t->batch.N), *logp = floats((size_t)t->batch.N);
    gpt2_forward(m, &t->batch, NULL);
    if (gpt2_config(m)->head == LM_AND_VALUE_HEAD)
        gpt2_logprob(m, t->target, 0.8f, logp, NULL, NULL);
    gpt2_value(m, value);
    for (int i = 0; i < t->batch.N; i++) {
        sum += 0.5 * cos(i) * (double)value[i];
        if (gpt2_config(m)->head == LM_AND_VALUE_HEAD && t->target[i] >= 0)
            sum += (double)t->dlogp[i] * (double)logp[i];
    }
    return sum;
}

START_TEST(a_scalar_head_reads_the_final_norm_and_trains) {
    for (int k = 0; k < LENGTH(scalar_heads); k++) {
        AT("head %d", (int)scalar_heads[k]);
        const GPT2Config c = with_head(MIDDLING, scalar_heads[k]);
        Text *t = text_of(MIDDLING);
        GPT2Limits limits = fit(t, true, k > 0);
        if (c.head == SCORE_HEAD) limits.scored = 0;
        GPT2 *m = model(&c, limits);
        ck_assert_int_eq(gpt2_own_tensors(m), gpt2_tensors(m));
        const int N = t->batch.N, C = c.n_embd, head = gpt2_tensors(m) - (int)c.head;
        float *value = floats((size_t)N), *w = read_tensor(m, head, GPT2_WEIGHT),
              *dvalue = floats((size_t)N), *last = floats((size_t)(N * C));
        value_loss(m, t);
        gpt2_value(m, value);
        real_read(last, m->norm, (size_t)(N * C));
        double *want = doubles((size_t)N);
        for (int i = 0; i < N; i++) {
            want[i] = c.head == SCORE_HEAD ? 0 : (double)*read_tensor(m, head + 1, GPT2_WEIGHT);
            for (int j = 0; j < C; j++) want[i] += (double)w[j] * (double)last[i * C + j];
            dvalue[i] = (float)(0.5 * cos(i));
        }
        ck_close(value, want, (size_t)N, WITHIN(1e-6, 0.01));
        gpt2_backward(m, c.head == SCORE_HEAD ? NULL : t->dlogp, NULL, dvalue);
        ck_complaint(compare_gradients_with_slopes(m, value_loss, t));
        for (int q = 0; q < t->batch.S; q++) {  // a score has the same bits in any batch
            Text *one = part_of(t, q, 1);
            float *alone = floats((size_t)one->batch.N);
            gpt2_forward(m, &one->batch, NULL);
            gpt2_value(m, alone);
            ck_bits(alone, value + t->start[q], (size_t)one->batch.N);
        }
    }
}
END_TEST

/* ---- Sequences with a common prefix ---------------------------------------------------------- */

/* Prefixes of 7 and 3 tokens, continuations of the first (5, 1) and of the second (9), and a
   sequence without either. */
enum { FAMILY = 6 };
static const int family_lengths[FAMILY] = {7, 5, 1, 3, 9, 4},
                 family_parent[FAMILY] = {-1, 0, 0, -1, 3, -1};

START_TEST(continuations_have_the_bits_of_whole_sequences) {
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        Text *t = text(MIDDLING->config.vocab_size, FAMILY, family_lengths),
             *whole = zeros(1, sizeof *whole);
        t->batch.parent = family_parent;
        // the same as whole sequences: a prefix is scored once, as a sequence of its own, and not
        // again before its continuations
        int N = 0;
        for (int q = 0; q < FAMILY; q++) {
            const int p = family_parent[q];
            for (int part = p < 0; part < 2; part++)
                for (int i = t->start[part ? q : p]; i < t->start[(part ? q : p) + 1]; i++, N++) {
                    whole->tokens[N] = t->tokens[i];
                    whole->target[N] = part ? t->target[i] : -1;
                    whole->dlogp[N] = part ? t->dlogp[i] : 0;
                    whole->dentropy[N] = part ? t->dentropy[i] : 0;
                }
            whole->start[q + 1] = N;
            whole->id[q] = t->id[q];
        }
        whole->scored = t->scored;
        whole->batch = (Batch){
            .S = FAMILY, .N = N, .start = whole->start, .tokens = whole->tokens, .id = whole->id};
        GPT2 *shared = model(&MIDDLING->config, fit(t, true, checkpointing)),
             *apart = model(&MIDDLING->config, fit(whole, true, checkpointing));
        Scores got = learn(shared, t, NULL), want = learn(apart, whole, NULL);
        for (int q = 0; q < FAMILY; q++) {
            AT("sequence %d%s", q, checkpointing ? ", checkpointing" : "");
            int own = t->start[q + 1] - t->start[q], at = whole->start[q + 1] - own;
            Scores a = {got.logp + t->start[q], got.entropy + t->start[q], got.best + t->start[q]};
            Scores b = {want.logp + at, want.entropy + at, want.best + at};
            ck_same_scores(a, b, (size_t)own);
        }
        // the gradient: the same sum in another order
        for (int i = 0; i < gpt2_tensors(shared); i++) {
            AT("%s%s", gpt2_tensor(shared, i)->name, checkpointing ? ", checkpointing" : "");
            size_t n = gpt2_tensor(shared, i)->n;
            ck_close(read_tensor(shared, i, GPT2_GRADIENT),
                     widen(read_tensor(apart, i, GPT2_GRADIENT), n), n, WITHIN(2e-5, 0.12));
        }
    }
}
END_TEST

/* ---- Outputs that are not needed ------------------------------------------------------------- */

/* The gradients of a text whose prompts are not scored, with and without Batch.needed: of both
   heads and of a technique at every site. -0 becomes 0, which is no other number. */
static float *gradients_of(const Shape *s, Text *t, bool needed, bool checkpointing, bool bf16,
                           const GPT2Noise *noise, Scores *scores, float *value) {
    Trick *k;
    GPT2Config c = s->config;
    c.head = LM_AND_VALUE_HEAD;
    GPT2Limits limits = fit(t, true, checkpointing);
    limits.bf16 = bf16;
    GPT2 *m = tricked(&c, limits, TRAIN_ALL, noise ? 0 : 0x7f, 0.1f, &k);
    float *dvalue = floats((size_t)t->batch.N);
    for (int i = 0; i < t->batch.N; i++) dvalue[i] = t->target[i] < 0 ? 0 : (float)cos(i);
    t->batch.needed = needed ? t->target : NULL;
    *scores = score(m, t, noise);
    gpt2_value(m, value);
    for (int i = 0; i < t->batch.N; i++) value[i] = t->target[i] < 0 ? 0 : value[i];
    ck_assert_int_eq(m->outputs < t->batch.N, needed);
    gpt2_backward(m, t->dlogp, t->dentropy, dvalue);
    t->batch.needed = NULL;
    float *all = read_all(m, GPT2_GRADIENT);
    for (size_t i = 0; i < elements(m); i++) all[i] += 0.0f;
    all = memcpy(floats(elements(m) + 1) + 1, all, elements(m) * sizeof *all);
    all[-1] = (float)elements(m);
    return all;
}

START_TEST(outputs_that_are_not_needed_change_no_bit) {
    static const GPT2Noise *const noises[] = {NULL, &all_noise};
    FOR_SHAPES(s) for (int k = 0; k < 8; k++) {
        const bool checkpointing = k & 1, bf16 = k & 2;
        const GPT2Noise *noise = noises[k >> 2];
        AT("%s%s%s%s", s->name, checkpointing ? ", checkpointing" : "", bf16 ? ", bf16" : "",
           noise ? ", noise" : "");
        Text *t = text_of(s);
        for (int q = 0; q < t->batch.S; q++)  // the first two thirds of each are a prompt
            for (int i = t->start[q], n = t->start[q + 1] - i; i < t->start[q] + 2 * n / 3; i++)
                t->target[i] = -1;
        derivatives(t);
        Scores got, want;
        float *value[2] = {floats((size_t)t->batch.N), floats((size_t)t->batch.N)};
        const float *a = gradients_of(s, t, false, checkpointing, bf16, noise, &want, value[0]),
                    *b = gradients_of(s, t, true, checkpointing, bf16, noise, &got, value[1]);
        ck_same_scores(got, want, (size_t)t->batch.N);
        ck_bits(value[1], value[0], (size_t)t->batch.N);
        if (on_cpu())
            ck_bits(b, a, (size_t)a[-1]);
        else
            ck_close(b, widen(a, (size_t)a[-1]), (size_t)a[-1], WITHIN(2e-5, 0.12));
    }
}
END_TEST

START_TEST(a_batch_may_need_no_output) {
    Text *t = text_of(MIDDLING);
    int *none = zeros((size_t)t->batch.N, sizeof *none);
    for (int i = 0; i < t->batch.N; i++) none[i] = t->target[i] = -1;
    t->batch.needed = none;
    GPT2 *m = model(&MIDDLING->config, fit(t, true, false));
    ck_zero(score(m, t, NULL).logp, (size_t)t->batch.N);
    gpt2_backward(m, t->dlogp, NULL, NULL);
    ck_zero(read_all(m, GPT2_GRADIENT), elements(m));
}
END_TEST

/* ---- Divergence of two models ---------------------------------------------------------------- */

START_TEST(divergence_is_that_of_the_two_distributions) {
    Text *t = text_of(MIDDLING);
    const int N = t->batch.N, V = MIDDLING->config.vocab_size;
    const float temperature = 0.7f;
    GPT2Limits limits = fit(t, true, false);
    GPT2 *p = model(&MIDDLING->config, limits), *q = model(&MIDDLING->config, fit(t, false, false));
    float *w = read_tensor(q, 0, GPT2_WEIGHT), *logp = floats((size_t)N), *kl = floats((size_t)N);
    for (size_t j = 0; j < gpt2_tensor(q, 0)->n; j++) w[j] += 0.1f * normal(77, (uint32_t)j);
    gpt2_write(q, 0, GPT2_WEIGHT, 0, gpt2_tensor(q, 0)->n, w);
    double *rows[2];
    for (int k = 0; k < 2; k++) {
        GPT2 *m = k ? q : p;
        gpt2_forward(m, &t->batch, NULL);
        gpt2_logprob(m, t->target, temperature, logp, NULL, NULL);
        float *logits = floats((size_t)(t->scored * V));
        for (int r = 0; r < t->scored; r++)
            real_read(logits + r * V, m->logits + r * m->ldv, (size_t)V);
        rows[k] = widen(logits, (size_t)(t->scored * V));
        for (int j = 0; j < t->scored * V; j++) rows[k][j] /= (double)temperature;
    }
    gpt2_kl(p, q, kl);
    for (int i = 0, r = 0; i < N; i++) {
        if (t->target[i] < 0) {
            ck_assert(kl[i] == 0);
            continue;
        }
        ck_assert_double_eq_tol((double)kl[i], ref_kl(rows[0] + r * V, rows[1] + r * V, V),
                                1e-5 * (1 + (double)kl[i]));
        ck_assert_double_gt((double)kl[i], 1e-4);
        r++;
    }
    gpt2_kl(p, p, kl);
    ck_zero(kl, (size_t)N);
    // gpt2_kl does not affect the backward pass, and logits scored in turns give the same bits
    GPT2 *fresh = model(&MIDDLING->config, limits);
    learn(fresh, t, NULL);
    Scores s = score(p, t, NULL);
    gpt2_forward(q, &t->batch, NULL);
    gpt2_logprob(q, t->target, 1, logp, NULL, NULL);
    gpt2_kl(p, q, kl);
    float *few = floats((size_t)N);
    p->logit_rows = 3;
    gpt2_forward(p, &t->batch, NULL);
    gpt2_logprob(p, t->target, 1, s.logp, s.entropy, NULL);
    gpt2_kl(p, q, few);
    ck_bits(few, kl, (size_t)N);
    gpt2_backward(p, t->dlogp, t->dentropy, NULL);
    ck_chain(read_all(p, GPT2_GRADIENT), read_all(fresh, GPT2_GRADIENT), elements(p));
}
END_TEST

/* ---- Frozen tensors and taps ----------------------------------------------------------------- */

START_TEST(a_technique_inside_the_network_gets_its_gradient) {
    for (int trains = TRAIN_ALL; trains <= TRAIN_NONE; trains++) {
        Text *t = text_of(MIDDLING);
        float *plainly = NULL;
        for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
            Trick *k;
            AT("trains %d%s", trains, checkpointing ? ", checkpointing" : "");
            GPT2 *m = tricked(&MIDDLING->config, fit(t, true, checkpointing), (GPT2Trains)trains,
                              0x7f, 0.3f, &k);
            learn(m, t, NULL);
            for (int i = 0; i < gpt2_tensors(m); i++) {
                const char *name = gpt2_tensor(m, i)->name;
                bool should = i >= gpt2_own_tensors(m) || trains == TRAIN_ALL ||
                              (trains == TRAIN_NORMS && strstr(name, "ln_"));
                ck_assert_msg(
                    gpt2_tensor(m, i)->trains == should && (m->parts[i].g != NULL) == should,
                    "%s: %s", where, name);
            }
            ck_complaint(compare_gradients_with_slopes(m, score_loss, t));
            // checkpointing changes no bit of the gradient
            float *all = floats(elements(m)), *x = all;
            for (int i = 0; i < gpt2_tensors(m); i++)
                if (gpt2_tensor(m, i)->trains) {
                    memcpy(x, read_tensor(m, i, GPT2_GRADIENT), gpt2_tensor(m, i)->n * sizeof *x);
                    x += gpt2_tensor(m, i)->n;
                }
            if (checkpointing) ck_bits(all, plainly, elements(m));
            plainly = all;
        }
    }
}
END_TEST

START_TEST(a_technique_that_adds_nothing_changes_no_bit_and_has_its_own_saves) {
    Text *t = text_of(MIDDLING);
    GPT2 *without = model(&MIDDLING->config, fit(t, true, false));
    Scores want = learn(without, t, NULL);
    for (unsigned mask = 1; mask <= 0x40; mask <<= 1) {
        Trick *k;
        AT("places %x", mask);
        GPT2 *m = tricked(&MIDDLING->config, fit(t, true, false), TRAIN_ALL, mask, 0, &k);
        Scores got = learn(m, t, NULL);
        ck_same_scores(got, want, (size_t)t->batch.N);
        ck_bits(read_all(m, GPT2_GRADIENT), read_all(without, GPT2_GRADIENT), elements(without));
        const int calls = mask == 1 << TAP_WTE ? 1 : m->config.n_layer;
        ck_assert(k->calls[0] == calls && k->calls[1] == calls);
        for (int i = 0; i < k->n; i++)
            ck_assert((*read_tensor(m, k->first + i, GPT2_GRADIENT) != 0) ==
                      (mask >> (i == k->n - 1 ? TAP_WTE : i % TAP_WTE) & 1));
    }
}
END_TEST

/* A training step with a frozen embedding stores d logp / d head_in of each row instead of its
   logits. The gradient is the same up to rounding, and has the same bits for any number of rows at
   a time. If the logits are needed after all, they are computed again. */
START_TEST(gradients_replace_logits_where_the_embedding_is_frozen) {
    const GPT2Noise none = {.seed = 1};
    FOR_SHAPES(s) {
        Text *t = text_of(s);
        GPT2Limits limits = fit(t, true, false);
        limits.trains = TRAIN_NORMS;
        float *want = NULL;
        for (int k = 0; k < 5;
             k++) {  // first evaluated, then trained; then a training step, in turns
            GPT2 *m = model(&s->config, limits), *other = model(&s->config, fit(t, false, false));
            if (k > 1) m->logit_rows = (int[]){1, 3, t->scored / 2 + 1}[k - 2];
            if (m->logit_rows > t->scored) continue;
            AT("%s, %s, %d rows at a time", s->name, k ? "training" : "evaluation", m->logit_rows);
            Scores got = score(m, t, k ? &none : NULL), plainly = score(other, t, NULL);
            ck_assert(m->head_in_is_grad == (k > 0));
            ck_same_scores(got, plainly, (size_t)t->batch.N);
            gpt2_backward(m, t->dlogp, NULL, NULL);
            size_t n = 0;
            for (int i = 0; i < gpt2_tensors(m); i++)
                n += gpt2_tensor(m, i)->trains ? gpt2_tensor(m, i)->n : 0;
            float *all = floats(n), *x = all;
            for (int i = 0; i < gpt2_tensors(m); i++)
                if (gpt2_tensor(m, i)->trains) {
                    memcpy(x, read_tensor(m, i, GPT2_GRADIENT), gpt2_tensor(m, i)->n * sizeof *x);
                    x += gpt2_tensor(m, i)->n;
                }
            if (k == 1) ck_close(all, widen(want, n), n, WITHIN(1e-4, 0.08));
            if (k > 1) ck_bits(all, want, n);
            want = all;
            // KL of a model from itself is 0 only if the right logits are used. With a gradient of
            // the entropy the result is that of evaluation.
            float kl[MAX_N];
            score(m, t, k ? &none : NULL);
            score(other, t, NULL);
            gpt2_kl(m, other, kl);
            for (int i = 0; i < t->batch.N; i++)
                ck_assert_msg(kl[i] == 0, "%s: kl[%d] is %g", where, i, (double)kl[i]);
            score(m, t, k ? &none : NULL);
            ck_assert(gpt2_logit_difference(m, other, NULL) == 0);
        }
        GPT2 *a = model(&s->config, limits), *b = model(&s->config, limits);
        learn(a, t, NULL);
        learn(b, t, &none);
        for (int i = 0; i < gpt2_tensors(a); i++)
            if (gpt2_tensor(a, i)->trains)
                ck_bits(read_tensor(b, i, GPT2_GRADIENT), read_tensor(a, i, GPT2_GRADIENT),
                        gpt2_tensor(a, i)->n);
    }
}
END_TEST

START_TEST(a_frozen_model_may_be_mapped_and_does_not_change) {
    Text *t = text_of(MIDDLING);
    Tap tap;
    Trick *k = trick(&MIDDLING->config, &tap, 0x7f, false, t->batch.N);
    GPT2Limits limits = fit(t, true, false);
    limits.trains = TRAIN_NONE;
    limits.more = k->tensor;
    limits.more_n = k->n;
    limits.tap = &tap;
    GPT2 *own = model(&MIDDLING->config, fit(t, false, false)),
         *m = adopt(gpt2_create(&MIDDLING->config, true));
    const size_t n = elements(own);
    float *file = read_all(own, GPT2_WEIGHT), *kept = memcpy(floats(n), file, n * sizeof *kept),
          *w = file;
    for (int i = 0; i < gpt2_tensors(m); w += gpt2_tensor(m, i++)->n) map_tensor(m, i, w);
    gpt2_reserve(m, &limits);
    k->first = gpt2_own_tensors(m);
    GPT2Memory memory = gpt2_memory(&MIDDLING->config, &limits);
    ck_assert_uint_eq(memory.gradients,
                      16 * sizeof(float) * (size_t)k->n);  // each of one number starts a cache line
    ck_assert_uint_eq(memory.moments,
                      (SHORT ? 3 : 2) * memory.gradients);  // in bf16 with the masters
    const AdamW o = ADAMW(0.02f, 0.1f, 1);
    const double first = score_loss(m, t);
    for (int step = 1; step <= 5; step++) {
        learn(m, t, NULL);
        gpt2_step(m, &o, step);
    }
    const double last = score_loss(m, t);
    ck_assert_msg(last < first - 0.1, "five steps moved the loss from %g to %g", first, last);
    ck_bits(file, kept, n);
}
END_TEST

int main(void) {
    omp_set_num_threads(1);
    Suite *suite = suite_create("training");
    ADD("step", a_step_is_that_of_the_reference, a_small_gradient_is_not_clipped,
        rows_beyond_the_vocabulary_remain_zero, cleared_gradients_are_forgotten,
        a_gradient_that_is_not_finite_changes_nothing);
    ADD("scalar head", a_scalar_head_reads_the_final_norm_and_trains);
    ADD("shared beginnings", outputs_that_are_not_needed_change_no_bit, a_batch_may_need_no_output,
        continuations_have_the_bits_of_whole_sequences);
    ADD("divergence", divergence_is_that_of_the_two_distributions);
    ADD("technique", a_technique_inside_the_network_gets_its_gradient,
        a_technique_that_adds_nothing_changes_no_bit_and_has_its_own_saves,
        gradients_replace_logits_where_the_embedding_is_frozen,
        a_frozen_model_may_be_mapped_and_does_not_change);
    return run_suite(suite) != 0;
}
