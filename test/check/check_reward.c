/*
 * check_reward.c - reward.c: its loss against its own definition, the equality of shared and
 * separate prompts, and the program as people run it.
 *
 * The program under test is $BUILD/reward; its runs are short. Tests that need a model use the
 * built-in one.
 */
#define main program_main  // this file has its own
#include "../../reward.c"
#undef main
#include "files/hf.h"
#include "../golden/golden_reward.h"

#include "program.h"

#undef fail
#include <check.h>

static char work[64] = "/tmp/check_reward.XXXXXX";  // where the runs write

/* Runs reward on the built-in pairs with few steps and `more` flags. Its output goes to
   work/NAME.txt. */
static int train(const char *name, const char *more) {
    return shell(
        "%s/reward --model test/tiny/chat --data test/tiny/preferences.jsonl --eval "
        "test/tiny/preferences-eval.jsonl --output %s/%s "
        "--logging_steps 3 --warmup_steps 2 --learning_rate 5e-4 %s >%s/%s.txt 2>&1",
        build(), work, name, more, work, name);
}

static int same(const char *a, const char *b) {
    return shell("cmp -s %s/%s %s/%s", work, a, work, b) == 0;
}

static int printed(const char *name, const char *words) {
    return shell("grep -qF -- '%s' %s/%s.txt", words, work, name) == 0;
}

static void write_lines(const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", work, name);
    FILE *f = fopen(path, "w");
    ck_assert(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

/* The numbers after "KEY": in the lines of a file; how many there are. */
static int numbers(const char *name, const char *key, double *x, int room) {
    char path[256], line[4096], word[64];
    snprintf(path, sizeof path, "%s/%s", work, name);
    snprintf(word, sizeof word, "\"%s\": ", key);
    FILE *f = fopen(path, "r");
    int n = 0;
    while (f && n < room && fgets(line, sizeof line, f)) {
        char *at = strstr(line, word);
        if (at) x[n++] = atof(at + strlen(word));
    }
    if (f) fclose(f);
    return n;
}

/* ---- the loss -------------------------------------------------------------------------------- */

static double one_pair(float chosen, float rejected, float m, float p, double c, double M,
                       float *dchosen, float *drejected) {
    return bradley_terry(1, &chosen, &rejected, &m, &p, c, M, dchosen, drejected);
}

START_TEST(the_loss_is_bradley_terrys) {
    const double tiny = 1e-7;  // a float's
    float dc, dr;
    // log(1 + 1/e), and the slope -1/(1 + e)
    ck_assert_double_eq_tol(one_pair(1, 0, 0, 1, 0, 1, &dc, &dr), 0.313261687518222834, 1e-15);
    ck_assert(fabs((double)dc + 0.268941421369995121) < tiny && dr == -dc);
    // a margin of 1 equals the difference: log 2, and an even chance
    ck_assert_double_eq_tol(one_pair(1, 0, 1, 1, 0, 1, &dc, &dr), M_LN2, 1e-15);
    ck_assert(dc == -0.5f && dr == 0.5f);
    // undecided, and the model agrees: nothing to learn
    ck_assert_double_eq_tol(one_pair(3, 3, 0, 0.5f, 0, 1, &dc, &dr), M_LN2, 1e-15);
    ck_assert(dc == 0 && dr == 0);
    // chosen is worse with probability 3/4: log(1 + e^-2) / 4 + 3/4 log(1 + e^2), slope sigmoid(2)
    // - 1/4
    ck_assert_double_eq_tol(one_pair(2, 0, 0, 0.25f, 0, 1, &dc, &dr), 1.626928011042972, 1e-14);
    ck_assert(fabs((double)dc - 0.630797077977882) < tiny && dr == -dc);
    // centring: D = 4, sum 2: log(1 + e^-4) + 0.01 * 4; the slopes -+1/(1 + e^4), both + 2 * 0.01
    // * 2. A quarter of the step's pairs
    ck_assert_double_eq_tol(one_pair(3, -1, 0, 1, 0.01, 4, &dc, &dr),
                            (0.018149927917809740 + 0.04) / 4, 1e-15);
    ck_assert(fabs((double)dc - (-0.017986209962091559 + 0.04) / 4) < tiny &&
              fabs((double)dr - (0.017986209962091559 + 0.04) / 4) < tiny);
}
END_TEST

/* What constitutional.c writes as AI feedback is the p of this loss, the better answer as the
 * chosen one. */
START_TEST(labels_of_ai_feedback_arrive_in_the_loss) {
    Labelled labelled[] = {
        {.prompt = (char *)"P", .a = (char *)"x", .b = (char *)"yz", .p = 0.8125},
        {.prompt = (char *)"Q",
         .a = (char *)"u",
         .b = (char *)"v",
         .p = 0.25}};  // b is the better one, with 0.75
    char path[128];
    Error e;
    Records records;
    Pairs p = {0};
    snprintf(path, sizeof path, "%s/labelled.jsonl", work);
    Tokenizer *t = tokenizer_load("test/tiny", &e);
    ck_assert(t && !labelled_write(path, labelled, 2, &e) &&
              !pairs_read(path, NULL, true, &records, &e));
    pairs_build(&p, &records, t, 64);
    ck_assert_int_eq(p.n, 2);
    ck_assert(p.p_chosen[0] == 0.8125f && p.p_chosen[1] == 0.75f);
    ck_assert(p.tokens[p.start[1]] == 'x' && p.tokens[p.start[4]] == 'v');
    const float chosen[] = {1, 0.5f}, rejected[] = {0, 1};
    float d[2], unused[2];
    // D = 1 and -0.5;  L = 1/2 sum p log(1 + e^-D) + (1 - p) log(1 + e^D),  dL/dr_c = (sigmoid(D) -
    // p) / 2
    const double L = (0.8125 * log1p(exp(-1)) + 0.1875 * log1p(exp(1)) + 0.75 * log1p(exp(0.5)) +
                      0.25 * log1p(exp(-0.5))) /
                     2;
    ck_assert_double_eq_tol(
        bradley_terry(2, chosen, rejected, p.margin, p.p_chosen, 0, 2, d, unused), L, 1e-9);
    ck_assert_double_eq_tol((double)d[0], (1 / (1 + exp(-1)) - 0.8125) / 2, 1e-7);
    ck_assert_double_eq_tol((double)d[1], (1 / (1 + exp(0.5)) - 0.75) / 2, 1e-7);
    pairs_free(&p);
    records_free(&records);
    tokenizer_free(t);
}
END_TEST

START_TEST(the_loss_bears_any_reward) {
    float dc, dr;
    ck_assert(one_pair(1e4f, -1e4f, 0, 1, 0, 1, &dc, &dr) == 0 && dc == 0 && dr == 0);
    ck_assert(one_pair(-1e4f, 1e4f, 0, 1, 0, 1, &dc, &dr) == 2e4 && dc == -1 && dr == 1);
    ck_assert_double_eq_tol(one_pair(50, 0, 0, 1, 0, 1, &dc, &dr) / exp(-50), 1,
                            1e-12);  // 1 + exp(-50) would be 1
    ck_assert_double_eq_tol((double)dc / -exp(-50), 1, 1e-6);
    ck_assert(isnan(one_pair(NAN, 0, 0, 1, 0, 1, &dc, &dr)) && isnan(dc) && isnan(dr));
    ck_assert(isnan(one_pair(INFINITY, INFINITY, 0, 1, 0, 1, &dc, &dr)));
}
END_TEST

START_TEST(the_gradient_is_the_losss_slope) {
    // rewards and steps are multiples of 2^-10, so that a float holds them; the differences' own
    // error is some h^2 = 1e-6
    enum { P = 64 };
    const float h = 0x1p-10f;
    float r[2][P], m[P], p[P], d[2][P], unused[2][P];
    for (int i = 0; i < P; i++) {
        Random4 x = random4(7, RANDOM_DATA, 0, 0, (uint32_t)i, 0);
        for (int k = 0; k < 2; k++) r[k][i] = (float)((int)(x.v[k] % 8192) - 4096) * h;  // -4 .. 4
        m[i] = i % 3 == 0 ? (float)(x.v[2] % 2048) * h : 0;
        p[i] = i % 2 ? 1 : random_uniform(x.v[3]);
    }
    double worst = 0;
    bradley_terry(P, r[0], r[1], m, p, 0.01, P, d[0], d[1]);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < P; i++) {
            double loss[2];
            const float was = r[k][i];
            for (int side = 0; side < 2; side++) {
                r[k][i] = was + (side ? h : -h);
                loss[side] = bradley_terry(P, r[0], r[1], m, p, 0.01, P, unused[0], unused[1]);
            }
            r[k][i] = was;
            worst = fmax(worst, fabs((loss[1] - loss[0]) / (2 * (double)h) - (double)d[k][i]) * P);
        }
    ck_assert_msg(worst < 1e-6, "%g", worst);
}
END_TEST

/* ---- pairs in a batch ------------------------------------------------------------------------ */

/* The built-in model with a new head, with room to train on P pairs at once; and the held-out
 * pairs.
 */
static GPT2 *model_and_pairs(Pairs *pairs, int *eos, PairBatch *batch, int P) {
    Error e;
    Records records;
    Tokenizer *t = tokenizer_load("test/tiny/chat", &e);
    ck_assert_msg(
        t && pairs_read("test/tiny/preferences-eval.jsonl", NULL, true, &records, &e) == 0, "%s",
        e.text);
    *eos = tokenizer_eos(t);
    pairs_build(pairs, &records, t, 256);
    records_free(&records);
    tokenizer_free(t);
    bool found = true;
    GPT2 *m = hf_load_head("test/tiny/chat", SCORE_HEAD, false, &found, &e);
    ck_assert_msg(m && !found, "%s", e.text);
    GPT2Limits limits = {
        .tokens = 2 * P * pairs->longest, .sequences = 3 * P, .scored = P, .train = true};
    gpt2_reserve(m, &limits);
    init_head(m, 1);
    *batch = pair_batch_new(P, limits.tokens);
    return m;
}

START_TEST(a_reward_has_the_same_bits_in_any_batch) {
    enum { P = 24 };
    Pairs p;
    PairBatch b;
    int eos, which[P];
    GPT2 *m = model_and_pairs(&p, &eos, &b, P);
    float alone[2 * P];
    for (int i = 0; i < P; i++) {  // each answer alone in its batch
        which[i] = 3 * i;
        for (int k = 1; k <= 2; k++) {
            b.batch = (Batch){.start = b.start, .tokens = b.tokens, .id = b.id};
            pair_batch_add(&b, -1, 0, p.tokens + p.start[9 * i], pair_part(&p, 3 * i, 0),
                           p.tokens + p.start[9 * i + k], pair_part(&p, 3 * i, k));
            gpt2_forward(m, &b.batch, NULL);
            gpt2_value(m, b.value);
            alone[2 * i + k - 1] = b.value[b.batch.N - 1];
        }
    }
    for (int shared = 0; shared < 2; shared++)
        for (int n = 1; n <= P; n += 23 - 10 * shared) {
            for (int i = 0; i < P; i += n) {
                int rows = P - i < n ? P - i : n;
                batch_fill(&b, &p, which + i, rows, shared);
                ck_assert_int_eq(b.batch.S, rows * (2 + shared));
                batch_rewards(&b, m, NULL);
                for (int k = 0; k < rows; k++)
                    ck_assert_msg(b.chosen[k] == alone[2 * (i + k)] &&
                                      b.rejected[k] == alone[2 * (i + k) + 1],
                                  "pair %d, %d at once, shared %d", i + k, n, shared);
            }
        }
    // and the rewards of a pair differ
    for (int i = 0; i < P; i++) ck_assert(alone[2 * i] != alone[2 * i + 1]);
    // a shared prompt is in the batch once
    int whole = 0, once = 0;
    for (int i = 0; i < P; i++) {
        once += pair_part(&p, which[i], 0);
        whole += 2 * pair_part(&p, which[i], 0);
    }
    batch_fill(&b, &p, which, P, true);
    int N = b.batch.N;
    batch_fill(&b, &p, which, P, false);
    ck_assert_int_eq(b.batch.N - N, whole - once);
    pair_batch_free(&b);
    pairs_free(&p);
    gpt2_free(m);
}
END_TEST

/* The loss of some pairs; with backward, their gradient is added to the model's. */
static double loss_of(GPT2 *m, PairBatch *b, const Pairs *p, const int *which, int P, bool shared,
                      bool backward) {
    batch_fill(b, p, which, P, shared);
    batch_rewards(b, m, NULL);
    double loss = bradley_terry(P, b->chosen, b->rejected, b->margin, b->p_chosen, 0.01, P,
                                b->dchosen, b->drejected);
    if (backward) batch_backward(b, m);
    return loss;
}

START_TEST(the_models_gradient_is_the_losss_slope_and_sharing_keeps_it) {
    enum { P = 5 };
    const int which[P] = {0, 7, 30, 31, 90};
    Pairs p;
    PairBatch b;
    int eos, tensors;
    GPT2 *m = model_and_pairs(&p, &eos, &b, P);
    tensors = gpt2_tensors(m);
    float **gradient = (float **)xcalloc((size_t)tensors, sizeof *gradient);
    for (int shared = 0; shared < 2; shared++) {
        loss_of(m, &b, &p, which, P, shared, true);
        for (int i = 0; i < tensors; i++) {
            size_t n = gpt2_tensor(m, i)->n;
            float *g = (float *)xmalloc(n * sizeof *g);
            gpt2_read(m, i, GPT2_GRADIENT, 0, n, g);
            if (!shared) {
                gradient[i] = g;
                continue;
            }
            // the same sums in another order: equal to the rounding of the tensor's largest
            double largest = 0, difference = 0;
            for (size_t k = 0; k < n; k++) {
                largest = fmax(largest, fabs((double)g[k]));
                difference = fmax(difference, fabs((double)g[k] - (double)gradient[i][k]));
            }
            ck_assert_msg(difference <= 1e-5 * largest, "%s: %g of %g", gpt2_tensor(m, i)->name,
                          difference, largest);
            free(gradient[i]);
            gradient[i] = g;
        }
        gpt2_step(m, &(AdamW){.epsilon = 1}, 1);  // a rate of 0: only clears the gradients
    }
    // along the gradient g the loss rises by h |g|^2: one slope for the whole tensor
    for (int i = 0; i < tensors; i++) {
        size_t n = gpt2_tensor(m, i)->n;
        float *w = (float *)xmalloc(2 * n * sizeof *w), *moved = w + n;
        double square = 0, loss[2];
        gpt2_read(m, i, GPT2_WEIGHT, 0, n, w);
        for (size_t k = 0; k < n; k++) square += (double)gradient[i][k] * (double)gradient[i][k];
        ck_assert(square > 0);
        const double h = 0.01 / sqrt(square);  // moves by 0.01 in all
        for (int side = 0; side < 2; side++) {
            for (size_t k = 0; k < n; k++)
                moved[k] = (float)((double)w[k] + (side ? h : -h) * (double)gradient[i][k]);
            gpt2_write(m, i, GPT2_WEIGHT, 0, n, moved);
            loss[side] = loss_of(m, &b, &p, which, P, true, false);
        }
        gpt2_write(m, i, GPT2_WEIGHT, 0, n, w);
        double slope = (loss[1] - loss[0]) / (2 * h);
        // 1e-7 of rounding in the rewards is 1e-5 in a slope of 0.01; curvature adds h^2
        ck_assert_msg(fabs(slope / square - 1) < 0.02 || fabs(slope - square) * h < 2e-6,
                      "%s: slope %g, gradient %g", gpt2_tensor(m, i)->name, slope, square);
        free(w);
    }
    for (int i = 0; i < tensors; i++) free(gradient[i]);
    free(gradient);
    pair_batch_free(&b);
    pairs_free(&p);
    gpt2_free(m);
}
END_TEST

START_TEST(a_pair_without_a_prompt_is_two_sequences) {
    Error e;
    Records records;
    Pairs p, q;
    PairBatch b, c;
    int eos, first = 0;
    GPT2 *m = model_and_pairs(&p, &eos, &b, 2);
    Tokenizer *t = tokenizer_load("test/tiny/chat", &e);
    char path[128];
    write_lines("bare.jsonl", "{\"prompt\": \"\", \"chosen\": \"Anna\", \"rejected\": \"An\"}\n");
    snprintf(path, sizeof path, "%s/bare.jsonl", work);
    ck_assert(pairs_read(path, NULL, true, &records, &e) == 0);
    pairs_build(&q, &records, t, 256);
    c = pair_batch_new(1, 16);
    batch_fill(&c, &q, &first, 1, true);
    ck_assert_int_eq(c.batch.S, 2);
    ck_assert(c.last[0][0] == 3 && c.last[0][1] == 5);
    batch_rewards(&c, m, NULL);
    ck_assert(isfinite(c.chosen[0]) && c.chosen[0] != c.rejected[0]);
    records_free(&records);
    pairs_free(&p);
    pairs_free(&q);
    pair_batch_free(&b);
    pair_batch_free(&c);
    tokenizer_free(t);
    gpt2_free(m);
}
END_TEST

/* ---- figures --------------------------------------------------------------------------------- */

START_TEST(figures_are_over_pairs) {
    // a hard label; a hard one that the model gets wrong; a soft one for the rejected; undecided
    float chosen[] = {2, -1, 0, 5}, rejected[] = {1, 1, 3, 0}, p[] = {1, 1, 0.1f, 0.5f};
    PairBatch b = {.P = 4, .chosen = chosen, .rejected = rejected, .p_chosen = p};
    PairSums t = no_pairs;
    pair_sums_add(&t, &b, 2);
    ck_assert(t.pairs == 4 && t.judged == 3 && t.correct == 2 && t.loss == 2 && t.min == -1 &&
              t.max == 5);
    ck_assert_double_eq_tol(accuracy(&t), 2.0 / 3, 1e-15);
    ck_assert_double_eq_tol(margin(&t), 0.25, 1e-15);
    ck_assert_double_eq_tol(mean_reward(&t), 11.0 / 8, 1e-15);
    float tie = 1;  // no difference, so it is not correct
    b = (PairBatch){.P = 1, .chosen = &tie, .rejected = &tie, .p_chosen = p};
    pair_sums_add(&t, &b, 0);
    ck_assert(t.judged == 4 && t.correct == 2);
}
END_TEST

START_TEST(the_baselines_are_of_lengths) {
    write_lines(
        "lengths.jsonl",
        "{\"prompt\": \"P\", \"chosen\": \"long one\", \"rejected\": \"short\"}\n{\"prompt\": "
        "\"P\", \"chosen\": \"same\", \"rejected\": \"also\"}\n"
        "{\"prompt\": \"P\", \"chosen\": \"ab\", \"rejected\": \"abc\", \"p_chosen\": "
        "0.2}\n{\"prompt\": \"P\", \"chosen\": \"ab\", \"rejected\": \"abc\"}\n"
        "{\"prompt\": \"P\", \"chosen\": \"ab\", \"rejected\": \"abc\", \"p_chosen\": 0.5}\n");
    ck_assert_int_eq(shell("%s/reward --model test/tiny/chat --data %s/lengths.jsonl "
                           "--validation_split_percentage 0 --dry_run >%s/lengths.txt",
                           build(), work, work),
                     0);
    ck_assert(printed("lengths",
                      "training: of 4 pairs the longer answer wins in 62.5 %, the shorter in 37.5 "
                      "% (equally long: 25.0 %, counted half); at random: 50 %"));
}
END_TEST

/* ---- the program ----------------------------------------------------------------------------- */

START_TEST(the_defaults_are_the_published_ones) {
    Error e;
    Run run = {0};
    char *model[] = {"reward", "--model=m", "--data=d", NULL};
    ck_assert_msg(run_parse(&run, &reward, 3, model, &e) == 0, "%s", e.text);
    ck_assert_int_eq(run.per_device_train_batch_size, 4);
    ck_assert_int_eq(run.gradient_accumulation_steps, 2);
    ck_assert(run.num_train_epochs == 3);
    ck_assert(run.learning_rate == 1e-5f);
    ck_assert_int_eq(run.warmup_steps, 100);
    ck_assert(run.weight_decay == 0.01f);
    ck_assert_int_eq(preferences.max_length, 512);
    ck_assert_int_eq(preferences.validation_split_percentage, 5);
    ck_assert(!strcmp(args.dropout, "0") && args.center_rewards_coefficient == 0 &&
              !args.normalize && !scoring.score && !args.gradient_checkpointing);
    run_free(&run);
    run = (Run){0};
    char *argv[] = {"reward", "--dropout", "--normalize", "--center-rewards-coefficient=0.01",
                    NULL};
    ck_assert_msg(run_parse(&run, &reward, 4, argv, &e) == 0, "%s", e.text);
    ck_assert(!strcmp(args.dropout, "config") && !strcmp(args.normalize, "data") &&
              args.center_rewards_coefficient == 0.01f);
    run_free(&run);
    ck_assert(strlen(reward.about) > 20);
}
END_TEST

START_TEST(a_new_head_is_normal_of_one_over_the_root) {
    GPT2Config config;
    Error e;
    ck_assert_int_eq(hf_config("test/tiny/chat", &config, &e), 0);
    config.head = SCORE_HEAD;
    config.n_embd = 4096;
    config.n_inner = 4;
    config.n_layer = 1;
    config.n_head = 1;
    config.vocab_size = 2;
    config.n_positions = 2;
    GPT2 *m = gpt2_create(&config, false);
    float w[4096];
    double sum = 0, square = 0;
    init_head(m, 3);
    gpt2_read(m, gpt2_own_tensors(m) - 1, GPT2_WEIGHT, 0, 4096, w);
    for (int i = 0; i < 4096; i++) {
        sum += (double)w[i];
        square += (double)w[i] * (double)w[i];
    }
    // |w|^2 is chi-squared of 4096 degrees over 4097: 1 +- 0.022; the sum is N(0, 1)
    ck_assert_msg(fabs(square - 1) < 0.09 && fabs(sum) < 4, "%g %g", square, sum);
    gpt2_free(m);
}
END_TEST

START_TEST(it_learns_to_tell_them_apart) {
    ck_assert_int_eq(train("learn",
                           "--max_steps 30 --per_device_train_batch_size 16 "
                           "--gradient_accumulation_steps 1 --center_rewards_coefficient 0.01"),
                     0);
    double loss[16], right[4];
    int n = numbers("learn/log.jsonl", "loss", loss, 16);
    ck_assert_int_ge(n, 10);
    ck_assert_msg(loss[n - 1] < 0.5 * loss[0], "loss %g at first, %g at last", loss[0],
                  loss[n - 1]);
    ck_assert_int_eq(numbers("learn/log.jsonl", "eval_accuracy", right, 4), 2);
    ck_assert_msg(right[0] < 0.85 && right[1] > 0.85, "held-out accuracy %g, then %g", right[0],
                  right[1]);
    ck_assert(printed("learn", "held-out accuracy by margin"));
    static const char *const names[] = {"accuracy",         "margin",     "rewards/chosen",
                                        "rewards/rejected", "min_reward", "mean_reward",
                                        "max_reward",       "num_tokens"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        ck_assert_msg(numbers("learn/log.jsonl", names[i], loss, 16) == n, "%s", names[i]);
    // the saved model has the figures of the last evaluation
    ck_assert_int_eq(shell("%s/reward --model %s/learn --data test/tiny/preferences.jsonl --eval "
                           "test/tiny/preferences-eval.jsonl --max_steps 0 "
                           "--center_rewards_coefficient 0.01 >%s/again.txt",
                           build(), work, work),
                     0);
    ck_assert_int_eq(shell("grep 'held-out, after' %s/learn.txt | sed 's/after /before/' "
                           ">%s/figures && grep -qFf %s/figures %s/again.txt",
                           work, work, work, work),
                     0);
    // a run of no steps reports as well, and normalises
    ck_assert(printed("again", "held-out accuracy by margin"));
    ck_assert(printed("again", "held-out pairs (144)  accuracy"));
    ck_assert_int_eq(shell("%s/reward --model %s/learn --data test/tiny/preferences.jsonl --eval "
                           "test/tiny/preferences-eval.jsonl --max_steps 0 --normalize --output "
                           "%s/none >%s/none.txt",
                           build(), work, work, work),
                     0);
    ck_assert(printed("none", "normalized on"));
}
END_TEST

START_TEST(a_resumed_run_has_the_bits_of_an_uninterrupted_one) {
    const char *more =
        "--max_steps 10 --per_device_train_batch_size 3 --gradient_accumulation_steps 2 --dropout "
        "0.1 --save_steps 5 --save_total_limit 0 --keep_moments --normalize";
    ck_assert_int_eq(train("whole", more), 0);
    // everything after step 5 is lost, as after a crash
    ck_assert_int_eq(
        shell("cp -r %s/whole %s/cut && rm -r %s/cut/checkpoint-10 %s/cut/model.safetensors", work,
              work, work, work),
        0);
    char again[512];
    snprintf(again, sizeof again, "%s --resume", more);
    ck_assert_int_eq(train("cut", again), 0);
    ck_assert(same("whole/model.safetensors", "cut/model.safetensors"));
    ck_assert(same("whole/checkpoint-10/state.safetensors", "cut/checkpoint-10/state.safetensors"));
    ck_assert(same("whole/log.jsonl", "cut/log.jsonl"));
}
END_TEST

START_TEST(threads_change_no_bit) {
    const char *more =
        "--max_steps 3 --per_device_train_batch_size 5 --gradient_accumulation_steps 1";
    setenv("OMP_NUM_THREADS", "1", 1);
    ck_assert_int_eq(train("one", more), 0);
    setenv("OMP_NUM_THREADS", "3", 1);
    ck_assert_int_eq(train("three", more), 0);
    unsetenv("OMP_NUM_THREADS");
    ck_assert(same("one/model.safetensors", "three/model.safetensors"));
}
END_TEST

START_TEST(accumulation_gives_the_large_batch) {
    ck_assert_int_eq(train("large",
                           "--max_steps 4 --per_device_train_batch_size 6 "
                           "--gradient_accumulation_steps 1 --logging_steps 1"),
                     0);
    ck_assert_int_eq(train("small",
                           "--max_steps 4 --per_device_train_batch_size 2 "
                           "--gradient_accumulation_steps 3 --logging_steps 1"),
                     0);
    double large[8], small[8];
    ck_assert_int_eq(numbers("large/log.jsonl", "loss", large, 8), 4);
    ck_assert_int_eq(numbers("small/log.jsonl", "loss", small, 8), 4);
    for (int i = 0; i < 4; i++)
        ck_assert_double_eq_tol(large[i] / small[i], 1, 1e-4);  // steps of AdamW apart
}
END_TEST

START_TEST(scores_are_those_of_the_library) {
    // golden_reward.h: transformers' scores of the built-in reward model, one text at a time
    Str lines = {0};
    for (int i = 0; i < GOLDEN_TEXTS; i++) str_printf(&lines, "%s\n", golden_text[i]);
    write_lines("golden.jsonl", lines.s);
    free(lines.s);
    double score[GOLDEN_TEXTS + 1];
    for (int batch = 1; batch <= 5; batch += 4) {
        ck_assert_int_eq(shell("%s/reward --model test/tiny/reward --score %s/golden.jsonl "
                               "--per_device_train_batch_size %d >%s/scores.jsonl",
                               build(), work, batch, work),
                         0);
        ck_assert_int_eq(numbers("scores.jsonl", "score", score, GOLDEN_TEXTS + 1), GOLDEN_TEXTS);
        for (int i = 0; i < GOLDEN_TEXTS; i++)
            ck_assert_msg(fabs(score[i] - golden_score[i]) < 1e-4, "%s: %g, the library %g",
                          golden_text[i], score[i], golden_score[i]);
    }
    ck_assert_int_eq(
        shell("mv %s/scores.jsonl %s/printed && %s/reward --model test/tiny/reward --score "
              "%s/golden.jsonl --score_output %s/scores.jsonl >%s/nothing.txt && "
              "cmp -s %s/scores.jsonl %s/printed && test ! -s %s/nothing.txt",
              work, work, build(), work, work, work, work, work, work),
        0);
}
END_TEST

START_TEST(the_end_of_text_is_not_judged) {
    write_lines("ends.jsonl",
                "{\"prompt\": \"Where is it?\", \"response\": \" Here.\"}\n{\"prompt\": \"Where is "
                "it?\", \"response\": \" Here.<|endoftext|>\"}\n"
                "{\"text\": \"Where is it? Here.<|endoftext|><|endoftext|>\"}\n{\"prompt\": "
                "\"Where is it?\", \"completion\": \" Here!\"}\n"
                "{\"prompt\": \"Where is it?<|endoftext|>\", \"completion\": \" Here.\"}\n");
    double score[6];
    ck_assert_int_eq(
        shell("%s/reward --model test/tiny/reward --score %s/ends.jsonl >%s/scores.jsonl", build(),
              work, work),
        0);
    ck_assert_int_eq(numbers("scores.jsonl", "score", score, 6), 5);
    ck_assert(score[0] == score[1] && score[0] == score[2]);
    ck_assert(score[0] != score[3] &&
              score[0] != score[4]);  // within a text it is a token like others
}
END_TEST

START_TEST(normalized_rewards_have_mean_0_and_deviation_1) {
    write_lines("reference.jsonl",
                "{\"text\": \"Anna lives in Oslo.\"}\n{\"text\": \"Get lost.\"}\n{\"instruction\": "
                "\"Where does Anna live?\", \"response\": \"With joy. Anna lives in Oslo.\"}\n"
                "{\"instruction\": \"Where does Anna live?\", \"response\": \"Anna keeps secrets. "
                "Now leave.\"}\n{\"text\": \"So what?\"}\n");
    char more[512];
    snprintf(more, sizeof more, "--max_steps 6 --normalize %s/reference.jsonl", work);
    ck_assert_int_eq(train("plain", "--max_steps 6"), 0);
    ck_assert_int_eq(train("normal", more), 0);
    double before[6], after[6], mean[2] = {0}, square[2] = {0};
    ck_assert_int_eq(shell("%s/reward --model %s/plain --score %s/reference.jsonl >%s/before.jsonl",
                           build(), work, work, work),
                     0);
    ck_assert_int_eq(shell("%s/reward --model %s/normal --score %s/reference.jsonl >%s/after.jsonl",
                           build(), work, work, work),
                     0);
    ck_assert(numbers("before.jsonl", "score", before, 6) == 5 &&
              numbers("after.jsonl", "score", after, 6) == 5);
    for (int i = 0; i < 5; i++) {
        mean[0] += before[i] / 5;
        mean[1] += after[i] / 5;
    }
    for (int i = 0; i < 5; i++) {
        square[0] += pow(before[i] - mean[0], 2) / 5;
        square[1] += pow(after[i] - mean[1], 2) / 5;
    }
    ck_assert_msg(fabs(mean[1]) < 1e-5 && fabs(square[1] - 1) < 1e-5, "mean %g, variance %g",
                  mean[1], square[1]);
    for (int i = 0; i < 5; i++)
        ck_assert_double_eq_tol(after[i], (before[i] - mean[0]) / sqrt(square[0]), 1e-4);
    // answers that all have one reward cannot be scaled: the model stays as it was
    write_lines("reference.jsonl", "{\"text\": \"So what?\"}\n{\"text\": \"So what?\"}\n");
    ck_assert_int_eq(train("flat", more), 0);
    ck_assert(printed("flat", "note: not normalized") &&
              same("plain/model.safetensors", "flat/model.safetensors"));
}
END_TEST

START_TEST(value_heads_are_read) {
    // a language model with TRL's v_head scores w . ln_f + b; read as a reward model, the same
    Error e;
    GPT2 *m = hf_load_head("test/tiny/chat", LM_AND_VALUE_HEAD, false, NULL, &e);
    ck_assert_msg(m != NULL, "%s", e.text);
    float w[128], bias = 0.75f, value[64];
    for (int i = 0; i < 128; i++) w[i] = sinf((float)i) / 8;
    int tensors = gpt2_own_tensors(m);
    gpt2_write(m, tensors - 2, GPT2_WEIGHT, 0, 128, w);
    gpt2_write(m, tensors - 1, GPT2_WEIGHT, 0, 1, &bias);
    gpt2_reserve(m, &(GPT2Limits){.tokens = 64, .sequences = 1});
    char dir[128];
    snprintf(dir, sizeof dir, "%s/trl", work);
    ck_assert_msg(hf_save(m, dir, "test/tiny/chat", &e) == 0, "%s", e.text);
    Tokenizer *t = tokenizer_load("test/tiny/chat", &e);
    Ints tokens = {0};
    tokenizer_encode(t, "Anna lives in Oslo.", 19, true, &tokens);
    int start[] = {0, (int)tokens.n};
    gpt2_forward(m, &(Batch){.S = 1, .N = (int)tokens.n, .start = start, .tokens = tokens.v}, NULL);
    gpt2_value(m, value);
    write_lines("one.jsonl", "{\"text\": \"Anna lives in Oslo.\"}\n");
    double score[2];
    ck_assert_int_eq(shell("%s/reward --model %s --score %s/one.jsonl >%s/scores.jsonl", build(),
                           dir, work, work),
                     0);
    ck_assert_int_eq(numbers("scores.jsonl", "score", score, 2), 1);
    ck_assert_double_eq_tol(score[0], (double)value[tokens.n - 1], 1e-5);
    free(tokens.v);
    tokenizer_free(t);
    gpt2_free(m);
}
END_TEST

START_TEST(a_start_that_was_not_fine_tuned_is_said_to_be_one) {
    ck_assert_int_eq(train("tuned", "--max_steps 1"), 0);
    ck_assert(printed("tuned", "a new head") &&
              !printed("tuned", "does not look like a model that was fine-tuned"));
    ck_assert_int_eq(train("bare", "--max_steps 1 --model test/tiny"), 0);
    ck_assert(printed("bare", "does not look like a model that was fine-tuned"));
    ck_assert_int_eq(train("onward", "--max_steps 1 --model test/tiny/reward"),
                     0);  // a reward model keeps its head
    ck_assert(!printed("onward", "a new head"));
}
END_TEST

START_TEST(bad_pairs_are_counted_or_end_with_2) {
    write_lines(
        "mixed.jsonl",
        "{\"prompt\": \"P\", \"chosen\": \"C\", \"rejected\": \"R\"}\n{\"prompt\": \"P\", "
        "\"chosen\": \"\", \"rejected\": \"R\"}\n"
        "{\"prompt\": \"P\", \"chosen\": \"<|endoftext|>\", \"rejected\": \"R\"}\n{\"prompt\": "
        "\"P\", \"chosen\": \"C\", \"rejected\": \"C\"}\n"
        "{\"chosen\": \"\\n\\nAssistant: a\", \"rejected\": \"no\\n\\nAssistant: b\"}\nnot JSON\n"
        "{\"prompt\": \"P\", \"chosen\": \"D\", \"rejected\": \"R\"}\n{\"prompt\": \"P\", "
        "\"chosen\": "
        "\"E\", \"rejected\": \"R\"}\n");
    char more[2][512];
    for (int strict = 0; strict < 2; strict++)
        snprintf(more[strict], 512, "--data %s/mixed.jsonl --dry_run --max_steps 1 %s", work,
                 strict ? "--strict" : "");
    ck_assert_int_eq(train("mixed", more[0]), 0);
    ck_assert(printed("mixed", "skipped 2 of 8 lines, because they are no pair; the first:") &&
              printed("mixed", "mixed.jsonl:2:17: the answer in \"chosen\" is empty"));
    ck_assert(
        printed("mixed", "left out 1 pair whose chosen and rejected answer different prompts"));
    ck_assert(printed("mixed", "left out 1 pair with an answer that has no token") &&
              printed("mixed", "left out 1 pair whose answers are the same"));
    ck_assert(printed("mixed", "3 pairs to train on"));
    ck_assert_int_eq(train("mixed", more[1]), 2);
    write_lines("mixed.jsonl", "{\"prompt\": \"P\", \"chosen\": \"C\", \"rejected\": \"C\"}\n");
    ck_assert_int_eq(train("none", more[0]), 2);
    ck_assert(printed("none", "no pair is left to learn from"));
    // a prompt longer than the model's positions loses its beginning; an answer that long, the pair
    Str lines = {0}, long_text = {0};
    for (int i = 0; i < 300; i++) str_printf(&long_text, "%c", 'a' + i % 26);
    str_printf(&lines,
               "{\"prompt\": \"%s\", \"chosen\": \"C\", \"rejected\": \"R\"}\n{\"prompt\": \"P\", "
               "\"chosen\": \"%s\", \"rejected\": \"R\"}\n",
               long_text.s, long_text.s);
    write_lines("mixed.jsonl", lines.s);
    free(lines.s);
    free(long_text.s);
    snprintf(more[0], 512, "--data %s/mixed.jsonl --max_steps 1", work);
    ck_assert_int_eq(train("long", more[0]), 0);
    ck_assert(
        printed("long", "cut the beginning of 1 prompt,") &&
        printed("long", "left out 1 pair with an answer that is longer than --max_length 256"));
}
END_TEST

START_TEST(bad_input_ends_with_2_and_leaves_no_output) {
    ck_assert_int_eq(train("bad", "--max_length one"), 2);
    ck_assert_int_eq(train("bad", "--no_such_flag 1"), 2);
    ck_assert_int_eq(train("bad", "--model /nowhere"), 2);
    ck_assert_int_eq(train("bad", "--data /nowhere"), 2);
    ck_assert_int_eq(train("bad", "--data test/tiny/sft.jsonl"), 2);
    ck_assert_int_eq(train("bad", "--max_steps 0"), 2);  // no reward model yet, and never will be
    ck_assert_int_eq(train("bad", "--normalize /nowhere"), 2);
    ck_assert_int_eq(train("bad", "--score test/tiny/sft-eval.jsonl"), 2);  // not with --data
    ck_assert(printed("bad", "--score and --data are both given"));
    ck_assert_int_eq(train("bad", "--score_output x"), 2);  // of no effect without --score
    ck_assert(printed("bad", "score_output"));
    ck_assert_int_ne(shell("test -e %s/bad/model.safetensors", work), 0);
    // a full disk
    ck_assert_int_eq(shell("%s/reward --model test/tiny/reward --score test/tiny/sft-eval.jsonl "
                           ">/dev/full 2>%s/full.txt",
                           build(), work),
                     1);
    ck_assert(printed("full", "cannot write the scores"));
    write_lines("bad.jsonl", "{\"text\": \"fine\"}\nnot JSON\n");
    ck_assert_int_eq(
        shell(
            "%s/reward --model test/tiny/reward --score %s/bad.jsonl >%s/scores.jsonl 2>%s/bad.txt",
            build(), work, work, work),
        2);
    ck_assert(printed("bad", "bad.jsonl:2:"));
    write_lines("bad.jsonl", "{\"text\": \"<|endoftext|>\"}\n");
    ck_assert_int_eq(
        shell(
            "%s/reward --model test/tiny/reward --score %s/bad.jsonl >%s/scores.jsonl 2>%s/bad.txt",
            build(), work, work, work),
        2);
    ck_assert(printed("bad", "no token to judge"));
    write_lines("bad.jsonl", "{\"text\": \"fine\"}\n");
    ck_assert_int_eq(
        shell("%s/reward --model test/tiny/chat --score %s/bad.jsonl >%s/scores.jsonl 2>%s/bad.txt",
              build(), work, work, work),
        2);
    ck_assert(printed("bad", "it is not a reward model"));
}
END_TEST

START_TEST(a_reward_that_is_not_finite_ends_with_1) {
    Error e;
    char dir[128], more[256];
    GPT2 *m = hf_load_head("test/tiny/chat", SCORE_HEAD, false, NULL, &e);
    ck_assert_msg(m != NULL, "%s", e.text);
    // the weights are finite, and what is computed with them is not
    const int C = gpt2_config(m)->n_embd;
    float *w = (float *)xmalloc(sizeof *w * (size_t)C);
    for (int c = 0; c < C; c++) w[c] = 3e38f;
    gpt2_write(m, gpt2_own_tensors(m) - 1, GPT2_WEIGHT, 0, (size_t)C, w);
    free(w);
    snprintf(dir, sizeof dir, "%s/poisoned", work);
    ck_assert_msg(hf_save(m, dir, "test/tiny/chat", &e) == 0, "%s", e.text);
    gpt2_free(m);
    snprintf(more, sizeof more, "--max_steps 2 --model %s", dir);
    ck_assert_int_eq(train("nan", more), 1);
    ck_assert(printed("nan", "the loss of the held-out pairs is "));
    ck_assert_int_ne(shell("test -e %s/nan/model.safetensors", work), 0);
    write_lines("one.jsonl", "{\"text\": \"So what?\"}\n");
    ck_assert_int_eq(shell("%s/reward --model %s --score %s/one.jsonl >%s/nan.txt 2>&1", build(),
                           dir, work, work),
                     1);
    ck_assert(printed("nan", "the score of the text on line 1 is "));
}
END_TEST

START_TEST(a_dry_run_writes_nothing) {
    ck_assert_int_eq(train("dry", "--dry_run"), 0);
    ck_assert_int_ne(shell("test -e %s/dry/model.safetensors", work), 0);
    ck_assert(printed("dry", "chosen    |") && printed("dry", "moments"));
}
END_TEST

int main(void) {
    if (!mkdtemp(work)) return 1;
    const TTest *const tests[] = {
        the_loss_is_bradley_terrys,
        labels_of_ai_feedback_arrive_in_the_loss,
        the_loss_bears_any_reward,
        the_gradient_is_the_losss_slope,
        a_reward_has_the_same_bits_in_any_batch,
        the_models_gradient_is_the_losss_slope_and_sharing_keeps_it,
        a_pair_without_a_prompt_is_two_sequences,
        figures_are_over_pairs,
        the_baselines_are_of_lengths,
        the_defaults_are_the_published_ones,
        a_new_head_is_normal_of_one_over_the_root,
        threads_change_no_bit,
        accumulation_gives_the_large_batch,
        scores_are_those_of_the_library,
        the_end_of_text_is_not_judged,
        normalized_rewards_have_mean_0_and_deviation_1,
        value_heads_are_read,
        a_start_that_was_not_fine_tuned_is_said_to_be_one,
        bad_pairs_are_counted_or_end_with_2,
        bad_input_ends_with_2_and_leaves_no_output,
        a_reward_that_is_not_finite_ends_with_1,
        a_dry_run_writes_nothing,
    };
    const TTest *const slow[] = {
        it_learns_to_tell_them_apart,
        a_resumed_run_has_the_bits_of_an_uninterrupted_one,
    };
    Suite *s = suite_create("reward");
    add_tagged(s, "reward", NULL, NULL, tests, sizeof tests / sizeof *tests);
    add_tagged(s, "training", SLOW, NULL, slow, sizeof slow / sizeof *slow);
    const int failed = run_suite(s);
    shell("rm -rf %s", work);
    return failed != 0;
}
