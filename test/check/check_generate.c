/*
 * check_generate.c - generate.c against its contract, generate.h.
 *
 * A sampled token must be the one that a full forward pass and the token's random number give, and
 * its log-probability must have the bits of gpt2_logprob.
 */
#include "gpt2_fixture.h"

/* ---- Generation ------------------------------------------------------------------------------ */

/* A model for decoding with room for prompt and response. */
static GPT2 *writer(int slots, int tokens) {
    return model(&MIDDLING->config, (GPT2Limits){.tokens = tokens,
                                                 .sequences = PROMPTS,
                                                 .scored = tokens,
                                                 .slots = slots,
                                                 .positions = 24});
}

/* Prompt q and the first n tokens of its response, as a batch of one with prompt q's id. */
static Text *continued(const Text *t, const Generation *g, int q, int n) {
    Text *one = part_of(t, q, 1);
    memcpy(one->tokens + one->batch.N, g->tokens + g->start[q], sizeof(int) * (size_t)n);
    one->batch.N = one->start[1] += n;
    return one;
}

/* The logits of the last row of a batch of one. */
static double *last_logits(GPT2 *m, Text *one) {
    int V = gpt2_config(m)->vocab_size, last = one->batch.N - 1;
    for (int i = 0; i <= last; i++) one->target[i] = i == last ? 0 : -1;
    score(m, one, NULL);
    float *logits = floats((size_t)V);
    real_read(logits, m->logits, (size_t)V);
    return widen(logits, (size_t)V);
}

START_TEST(greedy_texts_are_those_of_full_forward_passes) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    const Generation *g = generate(m, &t->batch, greedy);
    for (int q = 0; q < PROMPTS; q++) {
        AT("prompt %d", q);
        ck_assert_int_eq(g->start[q + 1] - g->start[q], 12);
        for (int n = 0; n < 12; n++) {
            Text *one = continued(t, g, q, n);
            int V = m->config.vocab_size, at = g->start[q] + n,
                next = ref_argmax(last_logits(m, one), V);
            ck_assert_int_eq(g->tokens[at], next);
            // logp of greedy texts is that of temperature 1
            one->target[one->batch.N - 1] = next;
            Scores s = score(m, one, NULL);
            ck_bits(&g->logp[at], &s.logp[one->batch.N - 1], 1);
            ck_assert_int_eq((int)s.best[one->batch.N - 1], next);
        }
    }
}
END_TEST

/* Decoding and scoring run the same chains of multiply-adds and the same sum over the vocabulary:
   at temperature 1 the two log-probabilities are the same bits, so that the first ratio of PPO is
   exactly 1. */
START_TEST(sampled_log_probabilities_are_those_of_logprob_to_the_bit) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    for (int k = 0; k < 4; k++) {
        Sampler s = plain;
        if (k == 1) {
            s.top_k = 5;
            s.top_p = 0.8f;
        }  // they restrict the choice, but do not change logp
        if (k > 1) s.temperature = k == 2 ? 0.7f : 1.9f;
        const Generation *g = generate(m, &t->batch, s);
        for (int q = 0; q < PROMPTS; q++) {
            AT("prompt %d, sampler %d", q, k);
            int prompt = prompt_lengths[q], n = g->start[q + 1] - g->start[q];
            Text *one = continued(t, g, q, n);
            for (int i = 0; i < one->batch.N; i++)
                one->target[i] = i + 1 < one->batch.N && i + 1 >= prompt ? one->tokens[i + 1] : -1;
            Scores again = score(m, one, NULL);
            gpt2_logprob(m, one->target, s.temperature, again.logp, NULL, NULL);
            ck_bits(g->logp + g->start[q], again.logp + prompt - 1, (size_t)n);
        }
    }
}
END_TEST

START_TEST(a_technique_is_there_in_generation) {
    Trick *k;
    Text *t = prompts();
    GPT2 *m = tricked(
        &MIDDLING->config,
        (GPT2Limits){.tokens = 64, .sequences = PROMPTS, .scored = 64, .slots = 2, .positions = 24},
        TRAIN_ALL, 0x7f, 0.3f, &k);
    const Generation *g = generate(m, &t->batch, plain);
    for (int q = 0; q < PROMPTS; q++) {
        AT("prompt %d", q);
        int prompt = prompt_lengths[q], n = g->start[q + 1] - g->start[q];
        Text *one = continued(t, g, q, n);
        for (int i = 0; i < one->batch.N; i++)
            one->target[i] = i + 1 < one->batch.N && i + 1 >= prompt ? one->tokens[i + 1] : -1;
        ck_bits(g->logp + g->start[q], score(m, one, NULL).logp + prompt - 1, (size_t)n);
    }
}
END_TEST

/* A tap at the embedding that counts the tokens that the model reads. */
static void count_rows(void *context, const TapCall *call) {
    *(int *)context += call->site == TAP_WTE ? call->N : 0;
}

/* Answers to the same prompt have the bits that each has alone, and the prompt is read once. */
START_TEST(a_prompt_with_several_answers_is_read_once) {
    enum { GROUPS = 3, EACH = 4, ALL = GROUPS * EACH, NEW = 6 };
    static const int lengths[GROUPS] = {9, 1, 14};
    Text *all = text(MIDDLING->config.vocab_size, GROUPS, lengths), *t = zeros(1, sizeof *t);
    int once = 0, N = 0;
    for (int q = 0; q < ALL; q++) {
        const int n = lengths[q / EACH];
        memcpy(t->tokens + N, all->tokens + all->start[q / EACH], sizeof(int) * (size_t)n);
        t->start[q + 1] = N += n;
        t->id[q] = (uint32_t)(3 * q);
        once += q % EACH ? 1 : n;  // of a prompt that was read, the last token is read again
    }
    t->batch = (Batch){.S = ALL, .N = N, .start = t->start, .tokens = t->tokens, .id = t->id};
    Sampler s = plain;
    s.max_new_tokens = NEW;
    s.stop_token = 7;
    GPT2 *one = writer(1, 24);
    const Generation *want[ALL];
    for (int q = 0; q < ALL; q++) {  // each alone, by a model that has read nothing before it
        Batch alone = {.S = 1, .N = t->start[q + 1] - t->start[q], .id = t->id + q};
        alone.start = (int[]){0, alone.N};
        alone.tokens = t->tokens + t->start[q];
        want[q] = generate(one, &alone, s);
    }
    static const int rooms[][2] = {{1, 24}, {2, 3}, {3, 64}, {5, 7}, {5, 64}, {12, 12}, {12, 64}};
    for (int r = 0; r < LENGTH(rooms); r++) {
        AT("%d slots, %d tokens", rooms[r][0], rooms[r][1]);
        int rows = 0, drawn = 0;
        Tap tap = {.at[TAP_WTE] = true, .forward = count_rows, .context = &rows};
        const GPT2Limits limits = {.tokens = rooms[r][1],
                                   .sequences = ALL,
                                   .slots = rooms[r][0],
                                   .positions = 24,
                                   .tap = &tap};
        const Generation *g = generate(model(&MIDDLING->config, limits), &t->batch, s);
        for (int q = 0; q < ALL; q++) {
            const int n = g->start[q + 1] - g->start[q];
            drawn += n;
            ck_assert_int_eq(n, want[q]->start[1]);
            ck_assert(g->ended[q] == want[q]->ended[0] &&
                      !memcmp(g->tokens + g->start[q], want[q]->tokens, sizeof(int) * (size_t)n));
            ck_bits(g->logp + g->start[q], want[q]->logp, (size_t)n);
        }
        // every sampled token is read but the last of each answer
        ck_assert_msg(rows == once + drawn - ALL, "%s: %d tokens were read, not %d", where, rows,
                      once + drawn - ALL);
    }
}
END_TEST

/* gpt2_recall gives what gpt2_forward gives for the same tokens, to the bit, until a step. */
START_TEST(outputs_of_sampled_tokens_are_recalled) {
    GPT2Config c = MIDDLING->config;
    c.head = LM_AND_VALUE_HEAD;
    Text *t = prompts(), *whole = zeros(1, sizeof *whole);
    GPT2Limits limits = {.tokens = 200, .sequences = PROMPTS, .scored = 100, .train = true};
    limits.slots = 3;
    limits.positions = 24;
    limits.kept = PROMPTS * plain.max_new_tokens;
    GPT2 *m = model(&c, limits);
    Sampler s = plain;
    s.stop_token = 7;
    const Generation *g = generate(m, &t->batch, s);
    int of[MAX_N], N = 0;
    for (int q = 0; q < PROMPTS; q++) {
        const int prompt = prompt_lengths[q], n = g->start[q + 1] - g->start[q];
        for (int i = 0; i < prompt + n - 1; i++, N++) {
            const int at = g->start[q] + i - prompt;  // the last token of the prompt has at + 1 = 0
            whole->tokens[N] = i < prompt ? t->tokens[t->start[q] + i] : g->tokens[at];
            of[N] = i + 1 < prompt ? -1 : at + 1;
            whole->target[N] = of[N] < 0 ? -1 : g->tokens[of[N]];
        }
        whole->start[q + 1] = N;
    }
    whole->batch = (Batch){.S = PROMPTS, .N = N, .start = whole->start, .tokens = whole->tokens};
    Scores got = {floats((size_t)N), floats((size_t)N), NULL};
    float *value = floats((size_t)N), *full = floats((size_t)N);
    gpt2_recall(m, &whole->batch, of);
    gpt2_logprob(m, whole->target, 1, got.logp, got.entropy, NULL);
    gpt2_value(m, value);
    const Scores want = score(m, whole, NULL);
    gpt2_value(m, full);
    ck_bits(got.logp, want.logp, (size_t)N);
    ck_bits(got.entropy, want.entropy, (size_t)N);
    for (int i = 0; i < N; i++) {
        if (of[i] < 0)
            ck_assert(value[i] == 0);
        else
            ck_assert(value[i] == full[i] && got.logp[i] == g->logp[of[i]]);
    }
    gpt2_recall(m, &whole->batch, of);  // a forward pass does not overwrite what is kept
    gpt2_logprob(m, whole->target, 1, got.logp, NULL, NULL);
    ck_bits(got.logp, want.logp, (size_t)N);
    ck_assert_int_eq(m->kept_n, g->start[PROMPTS]);
    learn(m, t, NULL);
    gpt2_step(m, &(AdamW)ADAMW(0.02f, 0, 1), 1);
    ck_assert_int_eq(m->kept_n, 0);  // the policy has changed
}
END_TEST

/* The random number is part of the contract: it is the uniform number of (seed, step, id, position
   of the sampled token). */
START_TEST(sampled_tokens_are_those_of_the_reference) {
    const Sampler samplers[] = {
        {.temperature = 1, .top_p = 1, .seed = 3, .step = 1},
        {.temperature = 0.6f, .top_p = 1, .seed = 4, .step = 0},
        {.temperature = 1.7f, .top_k = 4, .top_p = 1, .seed = 5, .step = 9},
        {.temperature = 1.2f, .top_k = 9, .top_p = 0.7f, .seed = 1ull << 50, .step = 1u << 31},
    };
    Text *t = prompts();
    GPT2 *m = writer(2, 64);
    int V = m->config.vocab_size;
    for (int k = 0; k < LENGTH(samplers); k++)
        for (int named = 0; named <= 1; named++) {
            Sampler sampler = samplers[k], *s = &sampler;
            s->max_new_tokens = 8;
            s->stop_token = -1;
            t->batch.id = named ? t->id : NULL;
            const Generation *g = generate(m, &t->batch, *s);
            for (int q = 0; q < PROMPTS; q++)
                for (int n = 0; n < 8; n++) {
                    AT("sampler %d, prompt %d, token %d", k, q, n);
                    double *logits = last_logits(m, continued(t, g, q, n)), *p = doubles((size_t)V);
                    ref_sample_distribution(p, logits, V, (double)s->temperature, s->top_k,
                                            (double)s->top_p);
                    uint32_t id = named ? t->id[q] : (uint32_t)q;
                    double u = random_uniform(random4(s->seed, RANDOM_SAMPLE, s->step, id,
                                                      (uint32_t)(prompt_lengths[q] + n), 0)
                                                  .v[0]);
                    int at = g->start[q] + n, token = ref_sample(p, V, u);
                    ck_assert_msg(g->tokens[at] == token, "%s is %d, not %d", where, g->tokens[at],
                                  token);
                    // logp of softmax(logits / temperature) without top_k and top_p. Exponentials
                    // and their sums of blocks are float: 1e-6
                    for (int v = 0; v < V; v++) logits[v] /= (double)s->temperature;
                    ck_assert_double_eq_tol((double)g->logp[at],
                                            logits[token] - ref_log_sum_exp(logits, V), 2e-6);
                }
        }
}
END_TEST

START_TEST(texts_do_not_depend_on_slots_or_room) {
    Text *t = prompts();
    for (int k = 0; k < 2; k++) {
        Sampler s = k ? plain : greedy;
        if (k) s.stop_token = 7;  // texts of different lengths free their slots at different times
        const Generation *want = generate(writer(1, 64), &t->batch, s);
        const int rooms[][2] = {{1, 1}, {1, 2}, {2, 2},  {2, 5},  {3, 64},
                                {5, 5}, {5, 7}, {5, 64}, {7, 26}, {20, 64}};
        for (int r = 0; r < LENGTH(rooms); r++) {
            AT("%d slots, %d tokens", rooms[r][0], rooms[r][1]);
            ck_complaint(compare_texts(generate(writer(rooms[r][0], rooms[r][1]), &t->batch, s),
                                       want, PROMPTS));
        }
    }
}
END_TEST

START_TEST(texts_do_not_depend_on_what_the_model_did_before_or_on_training) {
    Text *t = prompts();
    GPT2 *fresh = writer(3, 64), *trained;
    const Generation *want = generate(fresh, &t->batch, plain);
    AT("twice");
    ck_complaint(compare_texts(generate(fresh, &t->batch, plain), want, PROMPTS));
    AT("after a forward pass");
    score(fresh, text_of(MIDDLING), &all_noise);
    ck_complaint(compare_texts(generate(fresh, &t->batch, plain), want, PROMPTS));
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        AT("in a model that trains, checkpointing %d", checkpointing);
        GPT2Limits limits = {.tokens = 64,
                             .sequences = PROMPTS,
                             .scored = 64,
                             .train = true,
                             .slots = 3,
                             .positions = 24};
        limits.gradient_checkpointing = checkpointing;
        trained = model(&MIDDLING->config, limits);
        learn(trained, text_of(MIDDLING), &all_noise);
        ck_complaint(compare_texts(generate(trained, &t->batch, plain), want, PROMPTS));
    }
    AT("and back to training");  // generation leaves no traces
    Text *batch = text_of(MIDDLING);
    clear_gradients(trained);
    learn(trained, batch, &all_noise);
    GPT2 *never = model(&MIDDLING->config, fit(batch, true, false));
    learn(never, batch, &all_noise);
    ck_bits(read_all(trained, GPT2_GRADIENT), read_all(never, GPT2_GRADIENT), elements(never));
}
END_TEST

START_TEST(texts_follow_their_ids_not_their_order) {
    Text *t = prompts(), *back = zeros(1, sizeof *back);
    for (int q = 0, n = 0; q < PROMPTS; q++) {
        int from = PROMPTS - 1 - q;
        memcpy(back->tokens + n, t->tokens + t->start[from],
               sizeof(int) * (size_t)prompt_lengths[from]);
        back->start[q + 1] = n += prompt_lengths[from];
        back->id[q] = t->id[from];
    }
    back->batch = (Batch){.S = PROMPTS,
                          .N = t->batch.N,
                          .start = back->start,
                          .tokens = back->tokens,
                          .id = back->id};
    GPT2 *m = writer(3, 16);
    const Generation *a = generate(m, &t->batch, plain), *b = generate(m, &back->batch, plain);
    for (int q = 0; q < PROMPTS; q++) {
        int n = a->start[q + 1] - a->start[q], other = PROMPTS - 1 - q;
        ck_assert_int_eq(b->start[other + 1] - b->start[other], n);
        for (int i = 0; i < n; i++)
            ck_assert_int_eq(b->tokens[b->start[other] + i], a->tokens[a->start[q] + i]);
        ck_bits(b->logp + b->start[other], a->logp + a->start[q], (size_t)n);
    }
}
END_TEST

START_TEST(a_text_ends_with_the_stop_token) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    const Generation *free_ = generate(m, &t->batch, plain);
    Sampler s = plain;
    s.stop_token = free_->tokens[free_->start[2] + 4];  // a token that occurs in at least one text
    const Generation *g = generate(m, &t->batch, s);
    for (int q = 0; q < PROMPTS; q++) {
        const int *whole = free_->tokens + free_->start[q];
        int n = 0;
        while (n < 12 && whole[n++] != s.stop_token) {
        }
        ck_assert_int_eq(g->start[q + 1] - g->start[q], n);
        ck_assert(!memcmp(g->tokens + g->start[q], whole, sizeof(int) * (size_t)n));
        ck_assert_int_eq(g->ended[q], whole[n - 1] == s.stop_token);
    }
    ck_assert(g->ended[2]);
}
END_TEST

START_TEST(a_stop_token_in_the_prompt_does_not_stop) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    Sampler s = plain;
    s.max_new_tokens = 1;
    s.stop_token = t->tokens[t->start[3] - 1];  // the last token of prompt 2
    const Generation *g = generate(m, &t->batch, s);
    ck_assert_int_eq(g->start[3] - g->start[2], 1);
}
END_TEST

START_TEST(max_new_tokens_is_kept) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    const Generation *whole = generate(m, &t->batch, plain);
    for (int max = 0; max <= 3; max++) {
        AT("max_new_tokens %d", max);
        Sampler s = plain;
        s.max_new_tokens = max;
        const Generation *g = generate(m, &t->batch, s);
        for (int q = 0; q < PROMPTS; q++) {
            ck_assert_int_eq(g->start[q + 1] - g->start[q], max);
            ck_assert(!memcmp(g->tokens + g->start[q], whole->tokens + whole->start[q],
                              sizeof(int) * (size_t)max));
            ck_assert(!g->ended[q]);
        }
    }
    AT("no prompt");
    const Generation *none =
        generate(m, &(Batch){.S = 0, .N = 0, .start = (int[]){0}, .tokens = NULL}, plain);
    ck_assert_int_eq(none->start[0], 0);
}
END_TEST

/* The token after the last position can be sampled but not read, so a text has at most one token
   more than there are positions. */
START_TEST(a_text_stops_at_the_last_position) {
    const int T = MIDDLING->config.n_positions;
    for (int positions = T - 4; positions <= T + 4; positions += 4) {
        int end = positions < T ? positions : T;
        AT("%d positions to decode, %d in the model", positions, T);
        Text *t = text(MIDDLING->config.vocab_size, 4, (int[]){end, end - 1, 2, end - 3});
        for (int tokens = 2; tokens <= 80; tokens += 78) {  // in several rounds, and in one
            GPT2 *m = model(&MIDDLING->config,
                            (GPT2Limits){.tokens = tokens, .slots = 2, .positions = positions});
            Sampler s = plain;
            s.max_new_tokens = 1000;
            const Generation *g = generate(m, &t->batch, s);
            for (int q = 0; q < 4; q++)
                ck_assert_int_eq(g->start[q + 1] - g->start[q],
                                 end + 1 - (t->start[q + 1] - t->start[q]));
            GPT2 *full =
                model(&MIDDLING->config, (GPT2Limits){.tokens = T, .sequences = 1, .scored = 1});
            for (int q = 0; q < 4; q++) {  // logp of the last token is that of the last position
                int n = g->start[q + 1] - g->start[q];
                Text *one = continued(t, g, q, n - 1);
                for (int i = 0; i < end; i++)
                    one->target[i] = i == end - 1 ? g->tokens[g->start[q] + n - 1] : -1;
                ck_bits(&g->logp[g->start[q] + n - 1], &score(full, one, NULL).logp[end - 1], 1);
            }
        }
    }
}
END_TEST

START_TEST(seed_and_step_choose_the_text) {
    Text *t = prompts();
    GPT2 *m = writer(3, 64);
    Sampler seeds = plain, steps = plain, cut = plain;
    const Generation *g = generate(m, &t->batch, plain);
    seeds.seed++;
    steps.step++;
    ck_assert_ptr_nonnull(compare_texts(generate(m, &t->batch, seeds), g, PROMPTS));
    ck_assert_ptr_nonnull(compare_texts(generate(m, &t->batch, steps), g, PROMPTS));
    const Generation *likeliest = generate(m, &t->batch, greedy);
    ck_assert_ptr_nonnull(compare_texts(likeliest, g, PROMPTS));
    AT("top_k 1");
    cut.top_k = 1;
    ck_complaint(compare_texts(generate(m, &t->batch, cut), likeliest, PROMPTS));
    cut.top_k = 0;
    cut.top_p = 1e-6f;
    AT("top_p 0.000001");
    ck_complaint(compare_texts(generate(m, &t->batch, cut), likeliest, PROMPTS));
}
END_TEST

/* Only with an emulated GPU. */
long cuda_emu_count(const char *what) __attribute__((weak));

/* A round makes one copy to the device and one from it, and waits once: for the second. */
START_TEST(a_token_costs_one_copy_each_way_and_one_wait) {
    if (!cuda_emu_count) return;
    static const char *const counted[] = {"copies to the device", "copies to the host",
                                          "waits for a stream"};
    Text *t = prompts();
    for (int kept = 0; kept <= 1; kept++)
        for (int k = 0; k < 2; k++) {
            GPT2 *m = model(&MIDDLING->config, (GPT2Limits){.tokens = 64,
                                                            .sequences = PROMPTS,
                                                            .slots = PROMPTS,
                                                            .positions = 24,
                                                            .kept = kept * PROMPTS * 12});
            Sampler s = k ? plain : greedy;
            if (k) s.top_k = 9, s.top_p = 0.8f;
            generate(m, &t->batch, s);  // allocates the workspace
            long before[LENGTH(counted)];
            for (int i = 0; i < LENGTH(counted); i++) before[i] = cuda_emu_count(counted[i]);
            generate(m, &t->batch, s);
            // all prompts are read in the first round, and each round samples a token of every text
            for (int i = 0; i < LENGTH(counted); i++)
                ck_assert_msg(cuda_emu_count(counted[i]) - before[i] == s.max_new_tokens,
                              "%s, kept %d, sampler %d: %ld for %d rounds", counted[i], kept, k,
                              cuda_emu_count(counted[i]) - before[i], s.max_new_tokens);
            ck_assert_int_eq(m->kept_n, kept * PROMPTS * 12);
        }
}
END_TEST

typedef struct {
    int count[PROMPTS], token[PROMPTS][16];
} Heard;

static void hear_token(void *context, int sequence, int token) {
    Heard *h = context;
    h->token[sequence][h->count[sequence]++] = token;
}

START_TEST(every_token_is_told_as_it_is_drawn) {
    Text *t = prompts();
    Sampler s = plain;
    s.stop_token = 7;
    Heard heard = {0};
    Generation *g = &generations[generation_count++];
    gpt2_generate(writer(2, 5), &t->batch, &s, g, hear_token, &heard);
    for (int q = 0; q < PROMPTS; q++) {
        ck_assert_int_eq(heard.count[q], g->start[q + 1] - g->start[q]);
        ck_assert(
            !memcmp(heard.token[q], g->tokens + g->start[q], sizeof(int) * (size_t)heard.count[q]));
    }
}
END_TEST

int main(void) {
    omp_set_num_threads(1);
    Suite *suite = suite_create("generate");
    ADD("generation", greedy_texts_are_those_of_full_forward_passes,
        sampled_log_probabilities_are_those_of_logprob_to_the_bit,
        a_technique_is_there_in_generation, a_prompt_with_several_answers_is_read_once,
        outputs_of_sampled_tokens_are_recalled, sampled_tokens_are_those_of_the_reference,
        texts_do_not_depend_on_slots_or_room,
        texts_do_not_depend_on_what_the_model_did_before_or_on_training,
        texts_follow_their_ids_not_their_order, a_text_ends_with_the_stop_token,
        a_stop_token_in_the_prompt_does_not_stop, max_new_tokens_is_kept,
        a_text_stops_at_the_last_position, seed_and_step_choose_the_text,
        every_token_is_told_as_it_is_drawn, a_token_costs_one_copy_each_way_and_one_wait);
    return run_suite(suite) != 0;
}
