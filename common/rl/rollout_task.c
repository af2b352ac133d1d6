/*
 * rollout_task.c - prompts, a judge, answers and held-out answers: see rollout_task.h.
 */
#include "rl/rollout_task.h"

#include "text/records.h"

/* ---- before the loop ------------------------------------------------------------------------- */

void rollout_task_load(RolloutTask *t, Run *run, const char *template) {
    const int positions = run->config.n_positions;
    if (!t->reward_model && !t->reward_cmd)
        die_usage("one of --reward_model DIR and --reward_cmd 'program' is needed");
    if (t->batch_size % t->num_generations)
        die_usage("--batch_size %d is not a multiple of --num_generations %d", t->batch_size,
                  t->num_generations);
    if (t->response_length >= positions)
        die_usage("--response_length %d leaves no room for a prompt in the model's %d positions",
                  t->response_length, positions);
    const int longest = min_int(t->max_prompt_length, positions - t->response_length);
    t->train = queries_read(run->data, template, t->strict, run->tokenizer, longest);
    if (run->eval)
        t->held_out = queries_read(run->eval, template, t->strict, run->tokenizer, longest);
    t->longest = max_int(t->train.longest, t->held_out.longest) + t->response_length;
    t->answers = min_int(t->held_out.n, t->eval_samples);
    t->prompts = t->batch_size / t->num_generations;
    run_fingerprint(run, "data", run->data);
    run_fingerprint(run, "eval", run->eval);
    run_template(run, template);
    const double batches = (double)t->total_episodes / t->batch_size;
    const double passes = (double)run->num_train_epochs * t->train.n / t->prompts;
    run_plan(run, t->train.n, t->prompts, t->total_episodes ? batches : passes);
}

GPT2Limits rollout_task_limits(const RolloutTask *t, const Run *run) {
    const int B = run->per_device_train_batch_size;
    return (GPT2Limits){.tokens = B * t->longest, .sequences = B, .scored = B * t->response_length};
}

GPT2Limits rollout_task_policy_limits(const RolloutTask *t, const Run *run) {
    GPT2Limits limits = rollout_task_limits(t, run);
    limits.slots = min_int(t->rollout_slots, max_int(t->batch_size, t->answers));
    limits.positions = t->longest;
    limits.tokens = max_int(limits.tokens, limits.slots);
    return limits;
}

/* Of a resumed run, removes the lines of steps that come again; else starts with an empty file. */
static void begin_dump(const Run *run, const char *path) {
    if (run->step) {
        run_cut_lines(run, path);
        return;
    }
    FILE *f = fopen(path, "w");
    if (!f || fclose(f)) die_usage("cannot write %s (--dump_rollouts): %s", path, strerror(errno));
}

void rollout_task_begin(RolloutTask *t, const Run *run, GPT2 *reward, const GPT2Limits *limits) {
    Error e;
    t->r = rollouts_new(max_int(t->batch_size, t->answers), t->longest - t->response_length,
                        t->response_length);
    t->rows = rows_new(limits->sequences, limits->tokens);
    t->judge = (Judge){
        .model = reward, .patience = (double)t->reward_timeout, .tokenizer = run->tokenizer};
    if (!reward && !(t->judge.program = child_start(t->reward_cmd, &e))) die("%s", e.text);
    if (t->dump_rollouts) begin_dump(run, t->dump_rollouts);
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

void rollout_task_sample(RolloutTask *t, const Run *run, GPT2 *policy, float temperature) {
    const Sampler s = sampler(t, run, temperature, (uint32_t)run->step);
    rollouts_sample(&t->r, policy, &t->train, &s);
}

void rollout_task_replay(RolloutTask *t, const Run *run) {
    rollouts_replay(&t->r, t->batch_size, &t->train, run->step + 1, t->replay);
}

void rollout_task_judge(RolloutTask *t, const Run *run) {
    judge_score(&t->judge, &t->r, &t->train, run->per_device_train_batch_size);
}

void rollout_task_dump(const RolloutTask *t, const Run *run) {
    if (t->dump_rollouts)
        rollouts_dump(&t->r, &t->train, run->tokenizer, run->step + 1, t->dump_rollouts);
}

void rollout_task_diverged(const RolloutTask *t, const Run *run, int epoch, int e, const Sums *s,
                           double norm) {
    Str text = {0};
    rollouts_text(&t->r, e, true, run->tokenizer, &text);
    die("step %d, epoch %d: the policy's loss is %g, the critic's %g, the gradient's norm %g; "
        "lower "
        "--learning_rate. The first answer of the minibatch: \"%.300s\"",
        run->step + 1, epoch + 1, s->policy / s->tokens, s->value / s->value_tokens, norm, text.s);
}

/* ---- held-out prompts ------------------------------------------------------------------------ */

bool rollout_task_answer(RolloutTask *t, const Run *run, GPT2 *policy, float temperature) {
    const Sampler s = sampler(t, run, temperature, UINT32_MAX);
    if (!t->answers) return false;
    t->r.E = t->answers;
    for (int e = 0; e < t->r.E; e++) t->r.query[e] = e;
    rollouts_sample(&t->r, policy, &t->held_out, &s);
    judge_score(&t->judge, &t->r, &t->held_out, run->per_device_train_batch_size);
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
        rollouts_text(r, i, true, tokenizer, &shown[i]);
        str_printf(&shown[i], "  (%.2f)", (double)r->score[i]);
    }
}

static void print_figures(const char *when, int n, const Figures *f, double correct) {
    printf("held-out, %-6s  %d answers  reward %.3f  KL %.3f  length %.1f  ended %.1f %%", when, n,
           f->raw, isnan(f->kl_exact) ? f->k1 : f->kl_exact, f->length, 100 * f->ended / n);
    if (!isnan(correct)) printf("  contain the right answer %.1f %%", 100 * correct);
    printf("\n");
}

void rollout_task_measured(RolloutTask *t, Run *run, const Figures *f) {
    t->after = *f;
    t->correct_after = correct_share(t, run->tokenizer);
    if (!t->measured) {
        t->measured = true;
        t->before = t->after;
        t->correct_before = t->correct_after;
        print_figures("before", t->answers, f, t->correct_before);
        show_answers(&t->r, run->tokenizer, t->shown_before);
        return;
    }
    watch_held_out(run, "eval/reward", f->raw);
    watch_held_out(run, "eval/kl", f->k1);
    watch_held_out(run, "eval/kl_exact", f->kl_exact);
    watch_held_out(run, "eval/length", f->length);
    watch_held_out(run, "eval/ended", f->ended / t->answers);
    watch_held_out(run, "eval/correct", t->correct_after);
    if (run_is_last(run)) show_answers(&t->r, run->tokenizer, t->shown_after);
}

void rollout_task_report(const RolloutTask *t, const Run *run) {
    for (int i = 0; i < SHOWN_ANSWERS && t->shown_after[i].s; i++)
        printf("held-out prompt, line %d\n  before | %s\n  after  | %s\n", t->held_out.line[i],
               t->shown_before[i].s, t->shown_after[i].s);
    if (!t->answers || !run_completed(run)) return;
    print_figures("before", t->answers, &t->before, t->correct_before);
    print_figures("after", t->answers, &t->after, t->correct_after);
}

void rollout_task_free(RolloutTask *t) {
    child_end(t->judge.program);
    rollouts_free(&t->r);
    rows_free(&t->rows);
    queries_free(&t->train);
    queries_free(&t->held_out);
    for (int i = 0; i < SHOWN_ANSWERS; i++) {
        free(t->shown_before[i].s);
        free(t->shown_after[i].s);
    }
}

/* ---- records of supervised learning, mixed into reinforcement learning ----------------------- */

void mixture_load(Mixture *m, Run *run, const char *flag, const char *path, const char *template,
                  bool strict, int B, GPT2Limits *limits) {
    Error e;
    Records records;
    run_fingerprint(run, flag, path);
    if (!path) return;
    if (records_read(path, template, strict, &records, &e)) die_usage("%s", e.text);
    const int longest = min_int(512, run->config.n_positions + 1);
    dataset_build(&m->data, &records, run->tokenizer, longest, false);
    records_free(&records);
    const int n = m->data.n;
    if (!n) die_usage("%s (--%s): no record has a token to score", path, flag);
    int *all = (int *)xmalloc(sizeof(int) * (size_t)n), scored;
    for (int i = 0; i < n; i++) all[i] = i;
    const int rows = ragged_largest(&m->data, all, n, B, &scored);
    limits->tokens = max_int(limits->tokens, rows);
    limits->scored = max_int(limits->scored, scored);
    limits->sequences = max_int(limits->sequences, B);
    free(all);
}

int mixture_fill(Mixture *m, int64_t done, int B) {
    int which[B];
    for (int i = 0; i < B; i++) which[i] = (int)((done * B + i) % m->data.n);
    ragged_fill(&m->batch, &m->data, which, B);
    return m->batch.scored;
}

void mixture_free(Mixture *m) {
    dataset_free(&m->data);
    ragged_free(&m->batch);
}
