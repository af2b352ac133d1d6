/*
 * reward.c - a reward model: learn from pairs of answers, of which people preferred one, to give
 * every answer a number.
 *
 * A pair is a prompt x, a chosen answer y_c and a rejected answer y_r. The model is a GPT-2 whose
 * head is one vector w. The reward of an answer is r(x, y) = w . ln_f(h), where h is the last
 * layer's output at the last token of the text. Bradley and Terry (1952) give the probability that
 * the chosen answer is the preferred one, and the loss is its negative logarithm:
 *
 *     P(y_c preferred to y_r) = sigmoid(r_c - r_r - m)
 *     L = -1/M  sum over pairs of  log sigmoid(r_c - r_r - m)
 *
 * M counts the pairs of the whole optimiser step. m is the margin that the record asks for, or 0.
 *
 * This is the second stage of InstructGPT (Ouyang et al. 2022, section 3.5). Margins are from
 * Llama 2 (Touvron et al. 2023, section 3.2.2), soft labels from Constitutional AI (Bai et al.
 * 2022, section 4.1), the term that centres the rewards at 0 from Eisenstein et al. (2023, equation
 * 2).
 *
 * Two things go wrong in other implementations and cannot here. Nothing is padded, so a reward does
 * not depend on the rest of the batch, and no end-of-text token is mistaken for padding. One
 * function, judged_tokens, says where a reward is read, and ppo.c calls the same one. And the
 * prompt that both answers share goes through the model once instead of twice, with the same
 * rewards to the bit.
 *
 * Left out: rankings of more than two answers (write them as pairs), scalar ratings, and a bias of
 * the head, which cancels in every difference. --normalize needs one, and adds it to ln_f.bias.
 */
#include "common/posttrain.h"

/* ---- flags ----------------------------------------------------------------------------------- */

static Preferences preferences;
static Scoring scoring;

static struct {
    float center_rewards_coefficient;
    const char *dropout, *normalize;
    bool gradient_checkpointing;
} args;

static const Flag flags[] = {
    TITLE("Reward model"),
    PREFERENCE_FLAGS(preferences),
    {"center_rewards_coefficient", NUMBER(args.center_rewards_coefficient, "0", 0, 1000),
     "The weight of (chosen + rejected)^2 in the loss, which keeps the rewards near 0; 0.01 is "
     "usual."},
    {"dropout", TEXT(args.dropout, "0"),
     "The dropout probability on embeddings, attention and residuals; without a value, those of "
     "config.json.",
     .bare = "config"},
    GRADIENT_CHECKPOINTING_FLAG(args.gradient_checkpointing, "false"),
    {"normalize", TEXT(args.normalize, NULL),
     "After training, scale and shift the rewards to mean 0 and standard deviation 1 on the "
     "answers of this JSONL file (in the form of --score); without a value, on those of --data.",
     .bare = "data"},
    SCORING_FLAGS(scoring),
    {0},
};

static bool score_instead(Run *run) {
    return scoring_asked(&scoring, run, preferences.template, preferences.max_length);
}

/* The built-in example learns to tell the answers apart in some seconds. */
static const Program reward = {
    .name = "reward",
    .about = "A reward model from pairs of answers, chosen and rejected.",
    .flags = flags,
    .lines.program = COMMAND_LINE("--learning_rate=1e-5"),
    .lines.example =
        COMMAND_LINE("--model=test/tiny/chat", "--data=test/tiny/preferences.jsonl",
                     "--eval=test/tiny/preferences-eval.jsonl", "--per_device_train_batch_size=16",
                     "--gradient_accumulation_steps=1", "--max_steps=40", "--learning_rate=3e-4",
                     "--adam_beta2=0.99", "--lr_scheduler_type=cosine", "--warmup_steps=20",
                     "--logging_steps=10", "--eval_steps=20"),
    .lines.example_unless = "model data score prompt response chat",
    .lines.uses =
        "  ./reward --model tuned --data pairs.jsonl --normalize --output judge\n"
        "      trains on pairs of chosen and rejected\n"
        "  ./reward --model judge --score answers.jsonl\n"
        "      scores answers\n",
    .needs = "model data",
    .usage =
        "To train, give --model and --data (or neither, for the built-in example). To score "
        "answers, give --model with --score, or --prompt with --response.",
    .instead = score_instead,
};

/* ---- the loss -------------------------------------------------------------------------------- */

/* log(1 + e^x) = -log sigmoid(-x). It does not overflow, and for very negative x it is e^x and not
   0. */
static double softplus(double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }

static double sigmoid(double x) { return exp(-softplus(-x)); }

/*
 * With D = r_c - r_r - m, and p the probability that the chosen answer is the better one (1 without
 * soft labels), the share of these P pairs in the loss of a step of M pairs is
 *
 *     L = 1/M sum { -[p log sigmoid(D) + (1-p) log sigmoid(-D)] + c (r_c + r_r)^2 }
 *     dL/dD   = 1/M (sigmoid(D) - p)
 *     dL/dr_c =  dL/dD + 2c/M (r_c + r_r)
 *     dL/dr_r = -dL/dD + 2c/M (r_c + r_r)
 *
 * Returns L and writes its derivatives by the rewards (P).
 */
static double bradley_terry(int P, const float *chosen, const float *rejected, const float *margin,
                            const float *p_chosen, double c, double M, float *dchosen,
                            float *drejected) {
    double loss = 0;
    for (int i = 0; i < P; i++) {
        const double D = (double)chosen[i] - (double)rejected[i] - (double)margin[i];
        const double p = (double)p_chosen[i], sum = (double)chosen[i] + (double)rejected[i];
        loss += (p * softplus(-D) + (1 - p) * softplus(D) + c * sum * sum) / M;
        // for p = 1, sigmoid(D) - 1 = -sigmoid(-D): the difference would be 0 from D = 37 on
        const double dD = p == 1 ? -sigmoid(-D) : sigmoid(D) - p;
        dchosen[i] = (float)((dD + 2 * c * sum) / M);
        drejected[i] = (float)((-dD + 2 * c * sum) / M);
    }
    return loss;
}

/* ---- forward and backward: a pair is two sequences with one prompt --------------------------- */

/*
 * Makes pairs which[0..P) a batch: for each pair its prompt as a sequence, and two sequences that
 * continue it, the answers. The reward of an answer is read at its last token. Without a prompt, or
 * with shared = false (for tests), a pair is two independent sequences, prompt and answer each.
 */
static void batch_fill(PairBatch *b, const Pairs *pairs, const int *which, int P, bool shared) {
    b->batch = (Batch){.start = b->start,
                       .tokens = b->tokens,
                       .parent = b->parent,
                       .id = b->id,
                       .needed = b->needed};
    b->P = P;
    for (int i = 0; i < P; i++) {
        const int pair = which[i], prompt_n = pair_part(pairs, pair, 0);
        const size_t *start = pair_start(pairs, pair);
        const int *prompt = pairs->tokens + start[0];
        const uint32_t id = 3 * (uint32_t)pair;
        const bool parent = shared && prompt_n > 0;
        if (parent) pair_batch_add(b, -1, id, prompt, prompt_n, NULL, 0);
        const int continued = parent ? b->batch.S - 1 : -1;
        for (int k = 1; k <= 2; k++) {  // 1: chosen, 2: rejected
            const int *answer = pairs->tokens + start[k];
            pair_batch_add(b, continued, id + (uint32_t)k, prompt, parent ? 0 : prompt_n, answer,
                           pair_part(pairs, pair, k));
            b->last[i][k - 1] = b->batch.N - 1;
            b->needed[b->batch.N - 1] = 0;
        }
        b->margin[i] = pairs->margin[pair];
        b->p_chosen[i] = pairs->p_chosen[pair];
    }
}

/* The rewards of the pairs: the model's values at the last tokens of the answers. */
static void batch_rewards(PairBatch *b, GPT2 *model, const GPT2Noise *noise) {
    gpt2_forward(model, &b->batch, noise);
    gpt2_value(model, b->value);
    for (int i = 0; i < b->P; i++) {
        b->chosen[i] = b->value[b->last[i][0]];
        b->rejected[i] = b->value[b->last[i][1]];
    }
}

/* The loss of the pairs and its derivatives by their rewards. */
static double batch_loss(PairBatch *b, double M) {
    return bradley_terry(b->P, b->chosen, b->rejected, b->margin, b->p_chosen,
                         (double)args.center_rewards_coefficient, M, b->dchosen, b->drejected);
}

/* The gradient of the model. The values of all other tokens have no part in the loss. */
static void batch_backward(PairBatch *b, GPT2 *model) {
    memset(b->dvalue, 0, sizeof(float) * (size_t)b->batch.N);
    for (int i = 0; i < b->P; i++) {
        b->dvalue[b->last[i][0]] = b->dchosen[i];
        b->dvalue[b->last[i][1]] = b->drejected[i];
    }
    gpt2_backward(model, NULL, NULL, b->dvalue);  // NULL: log p and entropy have no part either
}

/* ---- the mathematics of the head: its start and its scale ------------------------------------ */

/* Draws a new head from N(0, 1/(C+1)) (Stiennon et al. 2020), so that the first rewards are about
   as large as 1. */
static void init_head(GPT2 *model, uint64_t seed) {
    const int C = gpt2_config(model)->n_embd, score = gpt2_own_tensors(model) - 1;
    float *w = (float *)xmalloc(sizeof(float) * (size_t)C);
    for (int c = 0; c < C; c++) {
        const Random4 x = random4(seed, RANDOM_INIT, (uint32_t)score, 0, (uint32_t)c, 0);
        w[c] = random_normal(x.v[0], x.v[1]) / sqrtf((float)C + 1);
    }
    gpt2_write(model, score, GPT2_WEIGHT, 0, (size_t)C, w);
    free(w);
}

/* Mean and population standard deviation of n numbers. */
static void moments(const float *x, int n, double *mean, double *deviation) {
    double sum = 0, square = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i];
    *mean = sum / n;
    for (int i = 0; i < n; i++) square += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    *deviation = sqrt(square / n);
}

/* --normalize: makes every reward r' = (r - mean) / deviation, the moments being those of the
   rewards of some answers, so that PPO's coefficients mean the same for any reward model. False:
   those rewards do not differ. */
static bool normalize(GPT2 *model, double mean, double deviation) {
    const bool scalable = isfinite(mean) && isfinite(deviation) && deviation >= 1e-12;
    if (scalable) gpt2_scale_value(model, 1 / deviation, -mean / deviation);
    return scalable;
}

/* ---- the mathematics of the figures: accuracy and margin ------------------------------------- */

/* Sums over pairs. judged: the pairs of which one answer is the better one; correct: of those, the
   pairs where it has the higher reward. */
typedef struct {
    double loss, pairs, correct, judged, chosen, rejected, min, max;
} PairSums;

static const PairSums no_pairs = {.min = INFINITY, .max = -INFINITY};

static bool is_correct(const PairBatch *b, int i) {
    return preference(b->p_chosen[i]) * ((double)b->chosen[i] - (double)b->rejected[i]) > 0;
}

/* Adds the pairs of a batch, whose loss sums to `loss`. */
static void pair_sums_add(PairSums *s, const PairBatch *b, double loss) {
    s->loss += loss;
    s->pairs += b->P;
    for (int i = 0; i < b->P; i++) {
        const double c = (double)b->chosen[i], r = (double)b->rejected[i];
        s->chosen += c;
        s->rejected += r;
        s->min = fmin(s->min, fmin(c, r));
        s->max = fmax(s->max, fmax(c, r));
        s->judged += preference(b->p_chosen[i]) != 0;
        s->correct += is_correct(b, i);
    }
}

static double accuracy(const PairSums *s) { return s->correct / s->judged; }
static double margin(const PairSums *s) { return (s->chosen - s->rejected) / s->pairs; }
static double mean_reward(const PairSums *s) { return (s->chosen + s->rejected) / (2 * s->pairs); }

/* The same figures of the pairs in training, for the log. */
static void watch_pairs(Run *run, const PairBatch *b, double loss) {
    watch_mean(run, "loss", loss, b->P);
    for (int i = 0; i < b->P; i++) {
        const double c = (double)b->chosen[i], r = (double)b->rejected[i];
        watch_mean(run, "accuracy", is_correct(b, i), preference(b->p_chosen[i]) != 0);
        watch_combined(run, "margin", "rewards/chosen", 1, "rewards/rejected", -1);
        watch_mean(run, "rewards/chosen", c, 1);
        watch_mean(run, "rewards/rejected", r, 1);
        watch_min(run, "min_reward", fmin(c, r));
        watch_combined(run, "mean_reward", "rewards/chosen", 0.5, "rewards/rejected", 0.5);
        watch_max(run, "max_reward", fmax(c, r));
    }
}

/* ---- held-out pairs, and what is printed ----------------------------------------------------- */

/* The rewards (2n) of a set of pairs without dropout, those of chosen and rejected in turn, a batch
   at a time; a signal in training ends it. Processes share the pairs out. */
static void measure(const Run *run, PairBatch *b, GPT2 *model, const PairSet *x, float *rewards) {
    const int P = run->per_device_train_batch_size, end = part_end(x->n);
    progress_begin("measuring pairs");
    for (int i = part_first(x->n); i < end && !run_interrupted(); i += P) {
        progress(i, x->n);
        batch_fill(b, x->data, x->which + i, min_int(P, end - i), true);
        batch_rewards(b, model, NULL);
        for (int k = 0; k < b->P; k++) {
            float *pair = rewards + 2 * (size_t)(i + k);
            pair[0] = b->chosen[k];
            pair[1] = b->rejected[k];
        }
    }
    parts_collect(rewards, 2 * sizeof *rewards, x->n, NULL);
}

/* Measures a set of pairs: their rewards (2n), and the sums over them. dump: adds these pairs to
   --dump_tokens, which needs the values of all tokens. */
static PairSums evaluate(const Run *run, PairBatch *b, GPT2 *model, const PairSet *x,
                         float *rewards, bool dump) {
    PairSums sums = no_pairs;
    const int P = run->per_device_train_batch_size;
    measure(run, b, model, x, rewards);
    for (int i = 0; i < x->n && !run_interrupted(); i += P) {
        batch_fill(b, x->data, x->which + i, min_int(P, x->n - i), true);
        if (dump) batch_rewards(b, model, NULL);
        for (int k = 0; k < b->P; k++) {
            const float *pair = rewards + 2 * (size_t)(i + k);
            b->chosen[k] = pair[0];
            b->rejected[k] = pair[1];
        }
        pair_sums_add(&sums, b, batch_loss(b, 1));
        if (dump) pairs_dump(&preferences, run, b, i);
    }
    run_check_finite(run, "the loss of the held-out pairs", sums.loss);
    return sums;
}

static void print_sums(const char *when, const PairSums *s) {
    printf(
        "held-out, %-6s  loss %.4f  accuracy %.1f %%  margin %.3f  reward min %.3f mean %.3f max "
        "%.3f\n",
        when, s->loss / s->pairs, 100 * accuracy(s), margin(s), s->min, mean_reward(s), s->max);
}

/* Gives the figures of the held-out pairs to the log, and the loss to what finds the best model. */
static void watch_held_out_pairs(Run *run, const PairSums *s) {
    watch_held_out(run, "eval_loss", s->loss / s->pairs);
    watch_held_out(run, "eval_accuracy", accuracy(s));
    watch_held_out(run, "eval_margin", margin(s));
    watch_held_out(run, "eval_min_reward", s->min);
    watch_held_out(run, "eval_mean_reward", mean_reward(s));
    watch_held_out(run, "eval_max_reward", s->max);
    run_held_out_loss(run, s->loss / s->pairs);
}

/* Measures the held-out pairs after a step. */
static void watch_evaluation(Run *run, PairBatch *b, GPT2 *model) {
    const PairSet *x = &preferences.held_out;
    float *rewards = (float *)xmalloc(sizeof(float) * 2 * (size_t)x->n);
    const PairSums s = evaluate(run, b, model, x, rewards, false);
    free(rewards);
    if (run_postpones(run)) return;
    watch_held_out_pairs(run, &s);
}

/* The held-out pairs before training: their figures, and the rewards of those that are shown. */
static struct {
    PairSums sums;
    double reward[2 * SHOWN_PAIRS];
    bool dumped;  // --dump_tokens has those after training
} before;

/* A resumed run takes them from its checkpoint. */
static void keep_before(Run *run) {
    run_keep(run, "loss_sum_before", &before.sums.loss);
    run_keep(run, "pairs_before", &before.sums.pairs);
    run_keep(run, "correct_before", &before.sums.correct);
    run_keep(run, "judged_before", &before.sums.judged);
    run_keep(run, "chosen_before", &before.sums.chosen);
    run_keep(run, "rejected_before", &before.sums.rejected);
    run_keep(run, "min_before", &before.sums.min);
    run_keep(run, "max_before", &before.sums.max);
    for (int i = 0; i < 2 * SHOWN_PAIRS; i++) {
        static const char *const names[] = {"reward1", "reward2", "reward3",
                                            "reward4", "reward5", "reward6"};
        run_keep(run, names[i], &before.reward[i]);
    }
}

/* Measures the held-out pairs as they are before training, unless the run is resumed. */
static void begin(Run *run, PairBatch *b, GPT2 *model) {
    const PairSet *x = &preferences.held_out;
    const bool dump = dump_begin(run, preferences.dump_tokens, "dump_tokens");
    const bool resumed = run_checkpoint_dir(run) != NULL;
    float *rewards = (float *)xmalloc(sizeof(float) * 2 * (size_t)(x->n + 1));
    PairSums sums = no_pairs;
    before.dumped = run_completed(run);
    if (!resumed || dump) sums = evaluate(run, b, model, x, rewards, dump);
    if (!resumed) {
        before.sums = sums;
        for (int i = 0; i < 2 * min_int(SHOWN_PAIRS, x->n); i++)
            before.reward[i] = (double)rewards[i];
        if (x->n) watch_held_out_pairs(run, &sums);
    }
    free(rewards);
    if (x->n) print_sums("before", &before.sums);
}

/* Prints what training has changed on the held-out pairs. */
static void report(const Run *run, PairBatch *b, GPT2 *model) {
    const PairSet *x = &preferences.held_out;
    float *is = (float *)xmalloc(sizeof(float) * 2 * (size_t)x->n), was[2 * SHOWN_PAIRS];
    for (int i = 0; i < 2 * SHOWN_PAIRS; i++) was[i] = (float)before.reward[i];
    const bool dump = preferences.dump_tokens && run->total_steps > 0 && !before.dumped;
    const PairSums after = evaluate(run, b, model, x, is, dump);
    for (int k = 0; k < min_int(SHOWN_PAIRS, x->n) && run->total_steps > 0; k++)
        pairs_show(run->tokenizer, x, k, was, is);
    pairs_print_calibration(x, is);
    if (run->total_steps > 0) print_sums("after", &after);
    printf("held-out pairs (%d)  accuracy %.1f %% -> %.1f %%\n", x->n, 100 * accuracy(&before.sums),
           100 * accuracy(&after));
    if (run->total_steps > 0) pairs_conclude(x, accuracy(&after));
    free(is);
}

/* ---- --normalize ----------------------------------------------------------------------------- */

/* The answers of the file that --normalize names; none when it names no file. */
static Texts normalize_texts(Run *run) {
    Texts x = {0};
    const bool file = args.normalize && strcmp(args.normalize, "data") != 0;
    if (file)
        x = texts_read(args.normalize, preferences.template, preferences.max_length, run->tokenizer,
                       false);
    run_fingerprint(run, "normalize", file ? args.normalize : NULL);
    return x;
}

/* Normalises the rewards on those texts, or when there are none on the training pairs. */
static void normalize_on(const Run *run, const Texts *texts, PairBatch *b, GPT2 *model,
                         const GPT2Limits *limits) {
    const int n = texts->n ? texts->n : 2 * preferences.train.n;
    float *rewards = (float *)xmalloc(sizeof(float) * (size_t)n);
    double mean[2], deviation[2];
    bool scaled = true;
    for (int after = 0; after < 2 && scaled; after++) {
        if (texts->n)
            texts_score(model, limits, texts, rewards);
        else
            evaluate(run, b, model, &preferences.train, rewards, false);
        moments(rewards, n, &mean[after], &deviation[after]);
        if (!after) scaled = normalize(model, mean[0], deviation[0]);
    }
    if (scaled)
        printf("normalized on %d answer%s: mean %.4f -> %.4f, deviation %.4f -> %.4f\n", n,
               plural(n), mean[0], mean[1], deviation[0], deviation[1]);
    else
        fprintf(stderr,
                "note: not normalized: the rewards of the answers have mean %g and deviation %g\n",
                mean[0], deviation[0]);
    free(rewards);
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* The largest batch: P pairs, or the longest of the texts. In training it is within a shard. */
static GPT2Limits largest_batch(const Run *run, const Texts *texts) {
    const int P = run->per_device_train_batch_size;
    int train = pairs_largest(&preferences.train, P);
    if (!args.normalize || texts->n)
        train = shards_most((int64_t)train * run->gradient_accumulation_steps,
                            pairs_largest(&preferences.train, 1), train);
    const int held_out = pairs_largest(&preferences.held_out, P);
    return (GPT2Limits){.tokens = max_int(max_int(train, held_out), texts->longest),
                        .sequences = 3 * P,
                        .scored = P,
                        .gradient_checkpointing = args.gradient_checkpointing};
}

int main(int argc, char **argv) {
    Run run = run_begin(&reward, argc, argv);
    preferences_load(&preferences, &run);
    const PairSet *train = &preferences.train, *held_out = &preferences.held_out;
    Texts texts = normalize_texts(&run);
    const int P = run.per_device_train_batch_size;
    const GPT2Limits limits = largest_batch(&run, &texts);
    keep_before(&run);
    Network network = {.role = "model",
                       .head = SCORE_HEAD,
                       .limits = limits,
                       .trains = true,
                       .changes = args.normalize != NULL};
    networks_open(&run, (Network *[]){&network, NULL});
    GPT2 *model = network.model;
    PairBatch batch = pair_batch_new(P, limits.tokens);
    if (!network.has_head) {
        pairs_check_start(&batch, model, &run, train);
        init_head(model, (uint64_t)run.seed);
    }
    GPT2Noise noise = {.seed = (uint64_t)run.seed};
    run_dropout(&noise, &run.config, args.dropout);
    begin(&run, &batch, model);
    if (run_measures_again(&run) && held_out->n) watch_evaluation(&run, &batch, model);

    while (run_next(&run)) {
        // 1. The pairs of this step, and M, their number
        const int M = preferences_examples(&preferences, &run), *which = preferences.which;
        double loss = 0;
        long tokens = 0;
        noise.step = (uint32_t)run.step;
        // 2. Per micro-batch: the rewards, the loss, its gradient. Gradients add up
        bool left = false;
        for (int i = 0, n; (n = preferences_batch(&preferences, i, P)); i += n) {
            if ((left = run_interrupted())) break;
            batch_fill(&batch, train->data, which + i, n, true);
            batch_rewards(&batch, model, &noise);
            const double part = batch_loss(&batch, M);
            batch_backward(&batch, model);
            watch_pairs(&run, &batch, part * M);  // for the log: the sum of the losses, the rewards
            loss += part;
            tokens += batch.batch.N;
        }
        if (left) break;  // a signal: a resumed run begins the step anew
        // 3. Clip the gradient, take a step of AdamW, clear the gradient
        run_optimise(&run, model, loss, tokens, train->data->line[which[0]]);
        // 4. Measure the held-out pairs. OUTPUT/best holds the model with the lowest loss
        if (run_should_evaluate(&run) && held_out->n) watch_evaluation(&run, &batch, model);
    }

    if (run_completed(&run) && held_out->n) report(&run, &batch, model);
    if (run_completed(&run) && args.normalize) normalize_on(&run, &texts, &batch, model, &limits);
    pair_batch_free(&batch);
    texts_free(&texts);
    preferences_free(&preferences);
    return run_finish(&run);
}
