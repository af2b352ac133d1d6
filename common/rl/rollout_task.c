/*
 * rollout_task.c - prompts, a judge, answers and held-out answers: see rollout_task.h.
 */
#include "rl/rollout_task.h"

#include "text/records.h"

/* ---- before the loop ------------------------------------------------------------------------- */

/* Reads --ptx_data. */
static void load_ptx(RolloutTask *t, Run *run, const char *template) {
    Error e;
    Records records;
    if (records_read(t->ptx_data, template, t->strict, &records, &e)) die_usage("%s", e.text);
    const int longest = min_int(512, run->config.n_positions + 1);
    dataset_build(&t->ptx, &records, run->tokenizer, longest, false);
    records_free(&records);
    if (!t->ptx.n) die_usage("%s (--ptx_data): no record has a token to score", t->ptx_data);
}

void rollout_task_load(RolloutTask *t, Run *run, const Chat *chat) {
    const int positions = run->config.n_positions;
    const char *template = chat->template;
    if (chat->temperature < 0.01f)
        die_usage("--temperature %g: rollouts are samples; the minimum is 0.01", chat->temperature);
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
    run_fingerprint(run, "ptx_data", t->ptx_data);
    if (t->ptx_data) load_ptx(t, run, template);
    run_template(run, template);
    const double batches = (double)t->total_episodes / t->batch_size;
    const double passes = (double)run->num_train_epochs * t->train.n / t->prompts;
    run_plan(run, t->train.n, t->prompts, t->total_episodes ? batches : passes);
    printf("%d iterations of %d answers, %d to each of %d prompts\n", run->total_steps,
           t->batch_size, t->num_generations, t->prompts);
}

/* The limits of a model that reads prompts with their answers, and scores the answers' tokens. */
static GPT2Limits reading(const RolloutTask *t, const Run *run) {
    const int B = run->per_device_train_batch_size;
    return (GPT2Limits){.tokens = B * t->longest, .sequences = B, .scored = B * t->response_length};
}

/* The same for the policy, which also samples the answers and learns from --ptx_data. */
static GPT2Limits sampling(const RolloutTask *t, const Run *run) {
    GPT2Limits limits = reading(t, run);
    limits.slots = min_int(t->rollout_slots, max_int(t->batch_size, t->answers));
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

/* Of a resumed run, removes the lines of steps that come again; else starts with an empty file. */
static void begin_dump(const Run *run, const char *path) {
    if (run->step) {
        run_cut_lines(run, path);
        return;
    }
    FILE *f = fopen(path, "w");
    if (!f || fclose(f)) die_usage("cannot write %s (--dump_rollouts): %s", path, strerror(errno));
}

void rollout_task_open(RolloutTask *t, Run *run, bool has_critic, bool shared) {
    Error e;
    GPT2Limits judging = reading(t, run);
    judging.scored = 0;
    const char *critic_from = t->reward_model ? t->reward_model : run->model;  // (21)
    Network *policy = &t->network[0], *reference = &t->network[1];
    Network *reward = &t->network[2], *critic = &t->network[3];
    *policy = (Network){.role = "policy",
                        .head = has_critic && shared ? LM_AND_VALUE_HEAD : LM_HEAD,
                        .limits = sampling(t, run),
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
                        .limits = judging,
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

void rollout_task_sample(RolloutTask *t, const Run *run, float temperature) {
    const Sampler s = sampler(t, run, temperature, (uint32_t)run->step);
    rollouts_sample(&t->r, t->policy, &t->train, &s);
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

void rollout_task_judge(RolloutTask *t, const Run *run) {
    judge_score(&t->judge, &t->r, &t->train, run->per_device_train_batch_size);
    shape_scores(t);
}

void rollout_task_replay(RolloutTask *t, const Run *run) {
    rollouts_replay(&t->r, t->batch_size, &t->train, run->step + 1, t->replay);
    shape_scores(t);
}

void rollout_task_dump(const RolloutTask *t, const Run *run) {
    if (t->dump_rollouts)
        rollouts_dump(&t->r, &t->train, run->tokenizer, run->step + 1, t->dump_rollouts);
}

void rollout_task_mix_in(RolloutTask *t, Sums *s) {
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

void rollout_task_check(const RolloutTask *t, const Run *run, int epoch, int e, const Sums *s,
                        double norm) {
    if (isfinite(s->policy) && isfinite(s->value) && isfinite(norm)) return;
    Str text = {0};
    rollouts_text(&t->r, e, true, run->tokenizer, &text);
    die("step %d, epoch %d: the policy's loss is %g, the critic's %g, the gradient's norm %g; "
        "lower "
        "--learning_rate. The first answer of the minibatch: \"%.300s\"",
        run->step + 1, epoch + 1, s->policy / s->tokens, s->value / s->value_tokens, norm, text.s);
}

/* ---- held-out prompts ------------------------------------------------------------------------ */

bool rollout_task_answer(RolloutTask *t, const Run *run, float temperature) {
    const Sampler s = sampler(t, run, temperature, UINT32_MAX);
    if (!t->answers) return false;
    t->r.E = t->answers;
    for (int e = 0; e < t->r.E; e++) t->r.query[e] = e;
    rollouts_sample(&t->r, t->policy, &t->held_out, &s);
    judge_score(&t->judge, &t->r, &t->held_out, run->per_device_train_batch_size);
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

void rollout_task_report(const RolloutTask *t) {
    for (int i = 0; i < SHOWN_ANSWERS && t->shown_after[i].s; i++)
        printf("held-out prompt, line %d\n  before | %s\n  after  | %s\n", t->held_out.line[i],
               t->shown_before[i].s, t->shown_after[i].s);
    if (!t->answers || run_interrupted()) return;
    print_figures("before", t->answers, &t->before, t->correct_before);
    print_figures("after", t->answers, &t->after, t->correct_after);
}

void rollout_task_free(RolloutTask *t) {
    child_end(t->judge.program);
    rollouts_free(&t->r);
    rows_free(&t->rows);
    queries_free(&t->train);
    queries_free(&t->held_out);
    dataset_free(&t->ptx);
    ragged_free(&t->ptx_batch);
    for (int i = 0; i < SHOWN_ANSWERS; i++) {
        free(t->shown_before[i].s);
        free(t->shown_after[i].s);
    }
}
