/*
 * rollout_task.c - prompts, a judge, answers and held-out answers: see rollout_task.h.
 */
#include "rl/rollout_task.h"

#include "parts.h"
#include "progress.h"
#include "ranks.h"
#include "run/dump.h"
#include "run/table.h"
#include "text/records.h"
#include "text/utf8.h"

#include <sys/stat.h>

#include <inttypes.h>
#include <limits.h>

/* ---- before the loop ------------------------------------------------------------------------- */

/* Reads --ptx_data. */
static void load_ptx(RolloutTask *t, Run *run, const char *template) {
    Error e;
    Records records;
    if (records_read(t->ptx_data, template, t->strict, &records, &e)) die_usage("%s", e.text);
    say_skipped(t->ptx_data, &records.counts, "record");
    say_unused(t->ptx_data, records.unused);
    say_empty(t->ptx_data, &records);
    const int longest = min_int(512, run->config.n_positions + 1);
    dataset_build(&t->ptx, &records, run->tokenizer, longest, false);
    records_free(&records);
    if (!t->ptx.n) die_usage("%s (--ptx_data): no record has a token to score", t->ptx_data);
}

/* --replay is read at every step, and again by a resumed run. */
static void check_replay(const RolloutTask *t) {
    struct stat s;
    if (t->replay && !stat(t->replay, &s) && !S_ISREG(s.st_mode))
        die_usage("--replay %s is no regular file, and it is read at every step; copy it to one",
                  t->replay);
}

/* What is printed of the held-out answers before training and after: a checkpoint keeps it. */
static void keep_figures(RolloutTask *t, Run *run) {
    static const char *const names[2][6] = {{"reward_before", "kl_before", "kl_exact_before",
                                             "length_before", "ended_before", "right_before"},
                                            {"reward_after", "kl_after", "kl_exact_after",
                                             "length_after", "ended_after", "right_after"}};
    static const char *const texts[2][SHOWN_ANSWERS] = {{"before1", "before2", "before3"},
                                                        {"after1", "after2", "after3"}};
    for (int k = 0; k < 2; k++) {
        Figures *f = k ? &t->after : &t->before;
        double *const values[] = {&f->raw,      &f->k1,
                                  &f->kl_exact, &f->length,
                                  &f->ended,    k ? &t->correct_after : &t->correct_before};
        for (int i = 0; i < 6; i++) run_keep(run, names[k][i], values[i]);
        for (int i = 0; i < SHOWN_ANSWERS; i++)
            run_keep_text(run, texts[k][i], k ? &t->shown_after[i] : &t->shown_before[i]);
    }
}

/* Says what is rounded up to whole iterations. */
static void note_rounding(const RolloutTask *t) {
    const int rest = t->total_episodes % t->batch_size;
    if (rest)
        printf(
            "note: --total_episodes %d is no multiple of --batch_size %d, the answers of an "
            "iteration: the run samples %" PRId64 "\n",
            t->total_episodes, t->batch_size, (int64_t)t->total_episodes - rest + t->batch_size);
}

void rollout_task_load(RolloutTask *t, Run *run, const Chat *chat) {
    const int positions = run->config.n_positions;
    const char *template = chat->template;
    if (chat->temperature < 0.01f)
        die_usage("--temperature %g: rollouts are samples; the minimum is 0.01", chat->temperature);
    if (!t->reward_model && !t->reward_cmd)
        die_usage("one of --reward_model DIR and --reward_cmd 'program' is needed");
    run_check_output(run, "dump_rollouts", run_checkpoint_dir(run) ? "{\"step\": " : NULL);
    check_replay(t);
    if (t->batch_size % t->num_generations)
        die_usage("--batch_size %d is not a multiple of --num_generations %d", t->batch_size,
                  t->num_generations);
    if (t->response_length >= positions)
        die_usage("--response_length %d leaves no room for a prompt in the model's %d positions",
                  t->response_length, positions);
    const int longest = min_int(t->max_prompt_length, positions - t->response_length);
    t->train = queries_read(run->data, template, t->strict, run->tokenizer, longest);
    if (run->eval) {
        t->held_out = queries_read(run->eval, template, t->strict, run->tokenizer, longest);
    } else {
        run_refuse(run, "eval_steps", "because there are no held-out prompts: see --eval");
        printf("note: there are no held-out prompts (--eval), so no answers are shown\n");
    }
    if (run->eval && !t->eval_samples)
        printf("note: --eval_samples is 0, so no answers are shown\n");
    bool right = false;  // some held-out prompt has its right answer
    for (int i = 0; i < min_int(t->held_out.n, t->eval_samples); i++)
        right |= t->held_out.answer[i] != NULL;
    if (!right) run_without_figure(run, "eval/correct");
    keep_figures(t, run);
    t->longest = max_int(t->train.longest, t->held_out.longest) + t->response_length;
    t->answers = min_int(t->held_out.n, t->eval_samples);
    t->prompts = t->batch_size / t->num_generations;
    const int most = max_int(t->batch_size, t->answers);
    if ((int64_t)most * t->longest > INT_MAX)
        die_usage(
            "%d answers of up to %d tokens, prompts included, are more tokens than can be "
            "counted, %d; use a smaller --batch_size, --eval_samples or --response_length",
            most, t->longest, INT_MAX);
    run_fingerprint(run, "data", run->data);
    run_fingerprint(run, "eval", run->eval);
    if (t->ptx_data) load_ptx(t, run, template);
    run_fingerprint(run, "ptx_data", t->ptx_data);
    run_fingerprint(run, "replay", t->replay);
    run_template_used(run, template, t->train.templated);
    const double batches = (double)t->total_episodes / t->batch_size;
    const double passes = (double)run->num_train_epochs * t->train.n / t->prompts;
    run_plan(run, t->train.n, t->prompts, t->total_episodes ? batches : passes);
    if (run->max_steps < 0) note_rounding(t);
    printf("data: %d prompt%s, %d held out\n", t->train.n, plural(t->train.n), t->held_out.n);
    printf("steps: %d iteration%s of %d answers, %d to each of %d prompt%s\n", run->total_steps,
           plural(run->total_steps), t->batch_size, t->num_generations, t->prompts,
           plural(t->prompts));
}

/* The most answers of this process, of an iteration or of the held-out prompts. */
static int own_answers(const RolloutTask *t) {
    return part_most(max_int(t->batch_size, t->answers));
}

/* The limits of a model that reads prompts with their answers, and scores the answers' tokens. */
static GPT2Limits reading(const RolloutTask *t, const Run *run) {
    const int B = min_int(run->per_device_train_batch_size, own_answers(t));
    return (GPT2Limits){.tokens = batch_tokens((int64_t)B * t->longest),
                        .sequences = B + B / 2,  // answers, and prompts that they share
                        .scored = batch_tokens((int64_t)B * t->response_length)};
}

/* The same for a model that learns from them as well, a micro-batch within a shard at a time. */
static GPT2Limits learning(const RolloutTask *t, const Run *run) {
    GPT2Limits limits = reading(t, run);
    const int B = min_int(run->per_device_train_batch_size, t->batch_size);
    const int rows = shards_most((int64_t)t->batch_size * t->longest, t->longest,
                                 batch_tokens((int64_t)B * t->longest));
    limits.tokens = max_int(limits.tokens, rows);
    const int scored = batch_tokens((int64_t)B * t->response_length);
    limits.scored = max_int(limits.scored, min_int(rows, scored));
    limits.sequences = max_int(limits.sequences, B + B / 2);
    return limits;
}

/* The same for the policy, which also samples the answers and learns from --ptx_data. keep: the
   outputs for the sampled tokens (gpt2_recall). */
static GPT2Limits sampling(const RolloutTask *t, const Run *run, bool keep) {
    GPT2Limits limits = learning(t, run);
    const int answers = own_answers(t);
    limits.slots = min_int(t->rollout_slots, answers);
    limits.kept = keep ? answers * t->response_length : 0;
    limits.positions = t->longest;
    limits.tokens = max_int(limits.tokens, limits.slots);
    const int n = t->ptx.n, B = t->ptx_batch_size;
    if (!n) return limits;
    int *all = (int *)xmalloc(sizeof(int) * (size_t)n), scored;
    for (int i = 0; i < n; i++) all[i] = i;
    const int rows = ragged_largest(&t->ptx, all, n, B, &scored);
    limits.tokens = max_int(limits.tokens, rows);
    limits.scored = max_int(limits.scored, scored);
    limits.sequences = max_int(limits.sequences, B);
    free(all);
    return limits;
}

/* Of n held-out answers. */
static void print_figures(const char *when, int n, const Figures *f, double correct) {
    printf("held-out, %-6s  %d answer%s  reward %.3f  KL %.3f  length %.1f  ended %.1f %%", when, n,
           plural(n), f->raw, isnan(f->kl_exact) ? f->k1 : f->kl_exact, f->length,
           100 * f->ended / n);
    if (!isnan(correct)) printf("  contain the right answer %.1f %%", 100 * correct);
    printf("\n");
}

void rollout_task_open(RolloutTask *t, Run *run, bool has_critic, bool shared, bool exact_kl) {
    Error e;
    if (!has_critic) run_without_figure(run, "loss/value_avg");
    GPT2Limits judging = reading(t, run), criticising = learning(t, run);
    judging.scored = criticising.scored = 0;
    const char *critic_from = t->reward_model ? t->reward_model : run->model;  // (21)
    Network *policy = &t->network[0], *reference = &t->network[1];
    Network *reward = &t->network[2], *critic = &t->network[3];
    *policy = (Network){.role = "policy",
                        .head = has_critic && shared ? LM_AND_VALUE_HEAD : LM_HEAD,
                        .limits = sampling(t, run, exact_kl || (has_critic && shared)),
                        .trains = true};
    *reference = (Network){
        .role = "reference", .dir = run->model, .head = LM_HEAD, .limits = reading(t, run)};
    *reward = (Network){.role = "reward",
                        .dir = t->reward_model,
                        .head = SCORE_HEAD,
                        .limits = judging,
                        .longest = t->longest,
                        .judges = true};
    *critic = (Network){.role = "critic",
                        .dir = t->critic_model ? t->critic_model : critic_from,
                        .head = SCORE_HEAD,
                        .limits = criticising,
                        .longest = t->longest,
                        .trains = true};
    Network *models[5] = {policy, reference};
    int n = 2;
    if (t->reward_model) models[n++] = reward;
    if (has_critic && !shared) models[n++] = critic;
    networks_open(run, models);
    if (critic->model && !critic->has_head)
        printf("the critic starts from %s and a head of zeros\n", critic->from);
    t->policy = policy->model;
    t->reference = reference->model;
    t->critic = has_critic && shared ? policy->model : critic->model;
    t->judge = (Judge){
        .model = reward->model, .patience = (double)t->reward_timeout, .tokenizer = run->tokenizer};
    if (t->reward_cmd && !(t->judge.program = child_start(t->reward_cmd, &e))) die("%s", e.text);
    t->r = rollouts_new(max_int(t->batch_size, t->answers), t->longest - t->response_length,
                        t->response_length);
    t->rows = rows_new(policy->limits.sequences, policy->limits.tokens);
    t->shard_sums = (Sums *)xcalloc((size_t)shards_count(), sizeof *t->shard_sums);
    dump_begin(run, t->dump_rollouts, "dump_rollouts");
    t->measured = run_checkpoint_dir(run) != NULL;
    if (t->measured && t->answers)
        print_figures("before", t->answers, &t->before, t->correct_before);
}

/* ---- an iteration ---------------------------------------------------------------------------- */

void rollout_task_choose(RolloutTask *t, const Run *run) {
    const int n = t->train.n;
    int *order = (int *)xmalloc(sizeof(int) * (size_t)n);
    int64_t ordered = -1;  // the epoch that `order` belongs to
    t->r.E = 0;
    for (int p = 0; p < t->prompts; p++) {
        const int64_t k = (int64_t)run->step * t->prompts + p, epoch = k / n;
        if (epoch != ordered)
            random_permutation(order, n, (uint64_t)run->seed, RANDOM_SHUFFLE, (uint32_t)epoch);
        ordered = epoch;
        for (int g = 0; g < t->num_generations; g++) t->r.query[t->r.E++] = order[k % n];
    }
    free(order);
}

static Sampler sampler(const RolloutTask *t, const Run *run, float temperature, uint32_t step) {
    return (Sampler){.temperature = temperature,
                     .top_p = 1,
                     .max_new_tokens = t->response_length,
                     .stop_token = tokenizer_eos(run->tokenizer),
                     .seed = (uint64_t)run->seed,
                     .step = step};
}

bool rollout_task_sample(RolloutTask *t, const Run *run, float temperature) {
    Sampler s = sampler(t, run, temperature, (uint32_t)run->step);
    s.stopped = run_interrupted;
    rollouts_sample(&t->r, t->policy, &t->train, &s);
    return !run_interrupted();
}

double shaped_score(const RolloutTask *t, float score, bool ended) {
    const double c = (double)t->score_clip, given = (double)score;
    const double clipped = c > 0 ? fmin(fmax(given, -c), c) : given;  // (3)
    if (ended) return clipped;
    return t->non_eos_penalty ? (double)t->penalty_reward_value
                              : clipped - (double)t->missing_eos_penalty;  // (2)
}

static void shape_scores(RolloutTask *t) {
    for (int e = 0; e < t->r.E; e++) t->r.shaped[e] = shaped_score(t, t->r.score[e], t->r.ended[e]);
}

bool rollout_task_judge(RolloutTask *t, const Run *run) {
    const bool judged =
        judge_score(&t->judge, &t->r, &t->train, run->per_device_train_batch_size, run_interrupted);
    if (judged) shape_scores(t);
    return judged;
}

void rollout_task_replay(RolloutTask *t, const Run *run) {
    rollouts_replay(&t->r, t->batch_size, &t->train, run->config.vocab_size, run->step + 1,
                    t->replay);
    shape_scores(t);
}

void rollout_task_dump(const RolloutTask *t, const Run *run) {
    if (t->dump_rollouts)
        rollouts_dump(&t->r, &t->train, run->tokenizer, run->step + 1, false, t->dump_rollouts);
}

/* Cuts the minibatch into shards. */
static void begin_minibatch(RolloutTask *t, const int *which, int n) {
    int *size = (int *)xmalloc(sizeof *size * (size_t)n);
    for (int i = 0; i < n; i++) size[i] = t->r.begin[which[i] + 1] - t->r.begin[which[i]];
    shards_cut(&t->shards, size, n);
    free(size);
    for (int g = 0; g < shards_count() && t->shard_sums; g++) t->shard_sums[g] = (Sums){0};
    t->begun = true;
    t->first = shards_begin(&t->shards);
    t->n = 0;
}

/* Adds the sums of all shards in their order, and collects the new log-probabilities. */
static void end_minibatch(RolloutTask *t, const int *which, int n, Sums *s) {
    Rollouts *r = &t->r;
    size_t bytes;
    t->begun = false;
    if (shards_count() == 1) return;
    if (shards_now() >= 0) t->shard_sums[shards_now()] = *s;
    shards_enter(-1);
    ranks_gather(t->shard_sums, sizeof *s * (size_t)shards_own());
    *s = (Sums){0};
    for (int g = 0; g < shards_count(); g++) sums_add(s, &t->shard_sums[g]);
    const int first = shards_begin(&t->shards);
    const int last = t->shards.end[shards_first() + shards_own() - 1];
    const int mine = rollouts_gather(r, r->new_logp, which + first, last - first, r->gathered);
    float *all = (float *)ranks_join(r->gathered, sizeof(float) * (size_t)mine, &bytes);
    rollouts_scatter(r, all, which, n, r->new_logp);
    free(all);
}

bool rollout_task_rows(RolloutTask *t, const int *which, int n, int B, Sums *s) {
    if (!t->begun) begin_minibatch(t, which, n);
    const int before = shards_now();
    t->first += t->n;
    t->n = shards_batch(&t->shards, t->first, B);
    if (t->ptx_data) shards_more();
    if (!t->n) {
        end_minibatch(t, which, n, s);
        return false;
    }
    if (before >= 0 && shards_now() != before) {
        t->shard_sums[before] = *s;
        *s = (Sums){0};
    }
    rows_fill(&t->rows, &t->r, which + t->first, t->n);
    return true;
}

static void mix_in(RolloutTask *t, Sums *s) {
    const int B = t->ptx_batch_size;
    const int64_t number = (int64_t)t->policy_updates;
    int which[B];
    for (int i = 0; i < B; i++) which[i] = (int)((number * B + i) % t->ptx.n);
    ragged_fill(&t->ptx_batch, &t->ptx, which, B);
    const Batch *batch = &t->ptx_batch.batch;
    const int *target = t->ptx_batch.target, M = t->ptx_batch.scored;
    float *logp = t->rows.logp, *dlogp = t->rows.dlogp;
    gpt2_forward(t->policy, batch, NULL);
    gpt2_logprob(t->policy, target, 1, logp, NULL, NULL);
    for (int i = 0; i < batch->N; i++) {
        dlogp[i] = target[i] < 0 ? 0 : -t->ptx_coef / (float)M;  // (20)
        s->ptx -= (double)logp[i];
    }
    s->ptx_tokens += M;
    gpt2_backward(t->policy, dlogp, NULL, NULL);
}

/* The records of --ptx_data are learned from in the last shard. */
void rollout_task_mix_in(RolloutTask *t, Sums *s) {
    const int last = ranks() - 1;
    if (rank() == last) {
        shards_enter(shards_count() - 1);
        mix_in(t, s);
        shards_enter(-1);
    }
    double sums[2] = {s->ptx, s->ptx_tokens};
    ranks_share(sums, sizeof sums, last);
    s->ptx = sums[0];
    s->ptx_tokens = sums[1];
}

void rollout_task_check(const RolloutTask *t, const Run *run, int epoch, int e, const Sums *s,
                        double norm) {
    if (isfinite(s->policy) && isfinite(s->value) && isfinite(norm)) return;
    rollout_task_dump(t, run);
    Str text = {0};
    rollouts_text(&t->r, e, true, run->tokenizer, &text);
    die("step %d, epoch %d: the policy's loss is %g, the critic's %g, the gradient's norm %g; "
        "lower "
        "--learning_rate. The first answer of the minibatch: \"%.300s\"",
        run->step + 1, epoch + 1, s->policy / s->tokens, s->value / s->value_tokens, norm, text.s);
}

/* ---- held-out prompts ------------------------------------------------------------------------ */

bool rollout_task_answer(RolloutTask *t, Run *run, float temperature) {
    Sampler s = sampler(t, run, temperature, UINT32_MAX);
    if (!t->answers) return false;
    s.stopped = run_interrupted;
    t->r.E = t->answers;
    for (int e = 0; e < t->r.E; e++) t->r.query[e] = e;
    progress_begin("answering held-out prompts");
    rollouts_sample(&t->r, t->policy, &t->held_out, &s);
    if (run_postpones(run)) return false;
    progress_begin("scoring held-out answers");
    judge_score(&t->judge, &t->r, &t->held_out, run->per_device_train_batch_size, run_interrupted);
    if (run_postpones(run)) return false;
    shape_scores(t);
    return true;
}

/* The share of the answers that contain the answer of the data; NAN: the data has none. */
static double correct_share(const RolloutTask *t, const Tokenizer *tokenizer) {
    int known = 0, correct = 0;
    for (int e = 0; e < t->r.E; e++) {
        const char *right = t->held_out.answer[e];
        if (!right) continue;
        Str text = {0};
        rollouts_text(&t->r, e, true, tokenizer, &text);
        known++;
        correct += strstr(text.s, right) != NULL;
        free(text.s);
    }
    return known ? (double)correct / known : NAN;
}

/* The first answers and their scores, as text. */
static void show_answers(const Rollouts *r, const Tokenizer *tokenizer, Str *shown) {
    for (int i = 0; i < SHOWN_ANSWERS && i < r->E; i++) {
        shown[i].n = 0;
        rollouts_text(r, i, true, tokenizer, &shown[i]);
        text_repair(&shown[i], 0);
        str_printf(&shown[i], "  (%.2f)", (double)r->score[i]);
    }
}

/* Adds the held-out answers to --dump_rollouts: those before training and those after a step. */
static void dump_held_out(const RolloutTask *t, const Run *run) {
    if (!t->dump_rollouts) return;
    rollouts_dump(&t->r, &t->held_out, run->tokenizer, run->step + t->measured, true,
                  t->dump_rollouts);
}

void rollout_task_measured(RolloutTask *t, Run *run, const Figures *f) {
    dump_held_out(t, run);
    t->after = *f;
    t->correct_after = correct_share(t, run->tokenizer);
    watch_held_out(run, "eval/reward", f->raw);
    watch_held_out(run, "eval/kl", f->k1);
    watch_held_out(run, "eval/kl_exact", f->kl_exact);
    watch_held_out(run, "eval/length", f->length);
    watch_held_out(run, "eval/ended", f->ended / t->answers);
    watch_held_out(run, "eval/correct", t->correct_after);
    if (!t->measured) {
        t->measured = true;
        t->before = t->after;
        t->correct_before = t->correct_after;
        print_figures("before", t->answers, f, t->correct_before);
        show_answers(&t->r, run->tokenizer, t->shown_before);
        return;
    }
    if (run_is_last(run)) show_answers(&t->r, run->tokenizer, t->shown_after);
}

static void show_answer(const char *label, const Str *text) {
    printf("  %-9s | ", label);
    print_indented(text->s, text->n);
    putchar('\n');
}

/* Is the judge that of the built-in example, which rewards manners? */
static bool judges_manners(const RolloutTask *t) {
    return t->reward_model && !strcmp(t->reward_model, example_file("tiny/reward"));
}

/* Says what the figures mean. */
static void conclude(const RolloutTask *t) {
    const Figures *b = &t->before, *a = &t->after;
    const double kl = isnan(a->kl_exact) ? a->k1 : a->kl_exact;
    const double p = t->correct_before, q = t->correct_after;
    const double gain = q - p;  // NAN: the data has no answers
    // two standard errors of a difference of two shares
    const double chance = 2 * sqrt((p * (1 - p) + q * (1 - q)) / t->answers);
    const int rose = compare_printed(a->raw, b->raw, 3);
    const bool manners = judges_manners(t);
    if (rose)
        printf("The mean reward of held-out answers %s from %.3f to %.3f. ",
               rose > 0 ? "rose" : "did not rise: it went", b->raw, a->raw);
    else
        printf("The mean reward of held-out answers stayed at %.3f. ", a->raw);
    printf("The policy is %.2f nats per answer away from the initial model (KL).\n", kl);
    if (isnan(gain) || rose <= 0) return;
    printf("%s answers contain the right one: %.1f %% before, %.1f %% after.%s\n",
           gain > chance     ? "More"
           : gain >= -chance ? "About as many"
                             : "Fewer",
           100 * p, 100 * q,
           gain > chance    ? ""
           : gain < -chance ? " A larger --kl_coef keeps the policy nearer to the initial model."
           : manners ? " The policy learned what the judge rewards: a reward for manners buys "
                       "manners, and no facts."
           : compare_printed(100 * p, 100 * q, 1) ? " The difference may be chance."
                                                  : "");
}

void rollout_task_report(const RolloutTask *t) {
    for (int i = 0; i < SHOWN_ANSWERS && t->shown_after[i].n; i++) {
        printf("held-out prompt, line %d (the reward is in brackets)\n", t->held_out.line[i]);
        show_answer("before", &t->shown_before[i]);
        show_answer("after", &t->shown_after[i]);
    }
    if (!t->answers || run_interrupted()) return;
    print_figures("before", t->answers, &t->before, t->correct_before);
    print_figures("after", t->answers, &t->after, t->correct_after);
    if (t->shown_after[0].s) conclude(t);
}

void rollout_task_free(RolloutTask *t) {
    child_end(t->judge.program);
    rollouts_free(&t->r);
    rows_free(&t->rows);
    queries_free(&t->train);
    queries_free(&t->held_out);
    dataset_free(&t->ptx);
    ragged_free(&t->ptx_batch);
    free(t->shard_sums);
    for (int i = 0; i < SHOWN_ANSWERS; i++) {
        free(t->shown_before[i].s);
        free(t->shown_after[i].s);
    }
}
