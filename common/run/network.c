/*
 * network.c - opening the models of a run: configurations, checks, memory, weights. See network.h.
 */
#include "run/network.h"

#include "files/hf.h"
#include "files/usage.h"
#include "model/weights.h"
#include "run/private.h"
#include "run/streams.h"
#include "run/technique.h"

/* ---- before anything is loaded --------------------------------------------------------------- */

/* The directory to read a model from. */
static void find_directory(const Run *run, Network *n, bool first) {
    const Technique *technique = run->state->program->technique;
    const char *checkpoint = run_weights_dir(run);
    if (first)
        n->from = xstrdup(checkpoint && !technique ? checkpoint : run->model);
    else if (n->trains && checkpoint)
        n->from = checkpoint_model_dir(run, n->role);
    else
        n->from = xstrdup(n->dir);
}

/* The tokens of a directory's tokenizer must be those of run->tokenizer. */
static void check_vocabulary(const Run *run, const char *dir) {
    Error e;
    const Tokenizer *t = run->tokenizer;
    Tokenizer *own = tokenizer_load(dir, &e);
    if (!own) die_usage("%s", e.text);
    bool same = tokenizer_size(own) == tokenizer_size(t) && tokenizer_eos(own) == tokenizer_eos(t);
    for (int i = 0; i < tokenizer_size(t) && same; i++) {
        Str a = {0}, b = {0};
        tokenizer_decode(own, &i, 1, &a);
        tokenizer_decode(t, &i, 1, &b);
        same = a.n == b.n && !memcmp(a.s, b.s, a.n);
        free(a.s);
        free(b.s);
    }
    if (!same)
        die_usage(
            "%s and the policy %s have different vocabularies; train it from a model with the "
            "policy's, or give its scores through --reward_cmd",
            dir, run->model);
    tokenizer_free(own);
}

bool network_scores_at_end(const char *dir, const GPT2Config *config, const Tokenizer *t) {
    const int pad = usage_pad(dir);
    if (config->head != SCORE_HEAD || pad < 0 || pad >= config->vocab_size ||
        pad == tokenizer_eos(t))
        return false;
    fprintf(stderr,
            "note: %s is padded with token %d, not with its end of text: as TRL trains such a "
            "model, the score is read at an end of text after each text\n",
            dir, pad);
    return true;
}

/* A reward model that is read at an end of text can score texts, but here it can neither learn nor
   judge a policy. */
static void refuse_score_at_end(const Run *run, const Network *n) {
    if (n->head != SCORE_HEAD || !network_scores_at_end(n->from, &n->config, run->tokenizer))
        return;
    die_usage(
        "%s: ./reward --score and --prompt read its score there, and training and ./ppo do not; "
        "train a reward model with ./reward, or give ./ppo the scores through --reward_cmd",
        n->from);
}

static void read_config(const Run *run, Network *n, bool first) {
    Error e;
    find_directory(run, n, first);
    if (first)
        n->config = run->config;
    else if (hf_config(n->from, &n->config, &e))
        die_usage("%s", e.text);
    refuse_score_at_end(run, n);
    n->config.head = n->head;
    n->limits.train = n->trains && run->total_steps > 0;
    if (n->config.n_positions < n->longest)
        die_usage("the %s %s has %d positions, and prompt and answer take up to %d", n->role,
                  n->from, n->config.n_positions, n->longest);
    if (!first && tokenizer_size(run->tokenizer) > n->config.vocab_size)
        die_usage("the %s %s has %d tokens and the tokenizer of %s %d; they do not belong together",
                  n->role, n->from, n->config.vocab_size, run->model,
                  tokenizer_size(run->tokenizer));
    if (n->judges) check_vocabulary(run, n->from);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void add_memory(GPT2Memory *sum, const GPT2Memory *m) {
    sum->weights = size_sum(sum->weights, m->weights);
    sum->gradients = size_sum(sum->gradients, m->gradients);
    sum->moments = size_sum(sum->moments, m->moments);
    sum->activations = size_sum(sum->activations, m->activations);
    sum->logits = size_sum(sum->logits, m->logits);
    sum->cache = size_sum(sum->cache, m->cache);
    sum->workspace = size_sum(sum->workspace, m->workspace);
    sum->total = size_sum(sum->total, m->total);
}

static void add_part(Str *line, const char *name, size_t bytes) {
    if (bytes) str_printf(line, "%s %s %.1f", line->n ? "," : ":", name, (double)bytes / 1e6);
}

static void print_memory(const GPT2Memory *m) {
    Str parts = {0};
    add_part(&parts, "weights", m->weights);
    add_part(&parts, "gradients", m->gradients);
    add_part(&parts, "moments", m->moments);
    add_part(&parts, "activations", m->activations);
    add_part(&parts, "logits", m->logits);
    add_part(&parts, "cache", m->cache);
    add_part(&parts, "workspace", m->workspace);
    printf("memory: %.1f MB%s\n", (double)m->total / 1e6, parts.s ? parts.s : "");
    fflush(stdout);
    free(parts.s);
}

/* Prints parameters and memory of all models, and keeps the sum. */
static void plan_memory(Run *run) {
    struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    size_t trained = 0, all = 0;
    Str models = {0};
    for (int i = 0; i < s->networks; i++) {
        Network *n = s->network[i];
        GPT2Memory m = gpt2_memory(&n->config, &n->limits);
        if (technique && i == 0) {
            const size_t more = technique_bytes(technique, &n->limits, &n->config);
            m.workspace = size_sum(m.workspace, more);
            m.total = size_sum(m.total, more);
        }
        add_part(&models, n->role, m.total);
        add_memory(&s->memory, &m);
        const size_t parameters = gpt2_parameters(&n->config, TRAIN_ALL);
        all += parameters;
        if (n->limits.train) trained += parameters;
    }
    if (!technique) run_print_parameters(trained, all);
    if (s->networks > 1) printf("memory in MB, by model%s\n", models.s);
    free(models.s);
    print_memory(&s->memory);
}

/* ---- is the model whole? --------------------------------------------------------------------- */

/* Is what the model computes finite? On a few tokens: where weights are too large, it is so on any.
   Returns the first number that is not, or 0. */
static float probe(const Network *n) {
    enum { MOST = 16 };
    const GPT2Limits *l = &n->limits;
    int N = min_int(MOST, min_int(l->tokens, n->config.n_positions));
    if (n->config.head != SCORE_HEAD) N = min_int(N, l->scored);
    int token[MOST], target[MOST];
    float out[MOST] = {0};
    for (int i = 0; i < MOST; i++) token[i] = target[i] = i % n->config.vocab_size;
    const Batch batch = {.S = 1, .N = N, .start = (int[]){0, N}, .tokens = token};
    gpt2_forward(n->model, &batch, NULL);
    if (n->config.head != SCORE_HEAD) gpt2_logprob(n->model, target, 1, out, NULL, NULL);
    size_t bad = first_not_finite(out, (size_t)N);
    if (bad == (size_t)N && n->config.head != LM_HEAD) {
        gpt2_value(n->model, out);
        bad = first_not_finite(out, (size_t)N);
    }
    return bad < (size_t)N ? out[bad] : 0;
}

void networks_check(const Run *run) {
    const struct RunState *s = run->state;
    Error e;
    for (int i = 0; i < s->networks; i++) {
        const Network *n = s->network[i];
        if (!n->limits.train) continue;
        float output = 0;
        const int status = gpt2_check_trained(n->model, &e);
        if (!status) output = probe(n);
        if (!status && output == 0) continue;
        if (!status) fail(&e, "an output is %g", (double)output);
        die("after step %d the %s is ruined (%s), so it is not saved; lower --learning_rate, and "
            "resume from an earlier checkpoint or start anew",
            run->step, n->role, e.text);
    }
}

/* ---- weights --------------------------------------------------------------------------------- */

/* Reads what every save of the network will write besides its weights. */
static void read_files(const Run *run, Network *n, bool first) {
    Error e;
    const bool saved = first ? !run->state->program->technique : n->trains;
    if (!run_writes(run) || !saved) return;
    if (hf_check_config(&n->config, &e)) die_usage("the %s: %s", n->role, e.text);
    if (bundle_read(n->from, &n->files, &e)) die_usage("%s", e.text);
}

static const Technique *technique_of(const Run *run, bool first) {
    return first ? run->state->program->technique : NULL;
}

/* Is it a model that the run needs and that no checkpoint holds? */
static bool is_outside(const Run *run, const Network *n, bool first) {
    return technique_of(run, first) || !(first || n->trains);
}

/* Reads the weights, or makes them. */
static void load(Run *run, Network *n, bool first) {
    Error e;
    const Technique *technique = technique_of(run, first);
    const bool frozen =
        technique ? n->limits.trains == TRAIN_NONE : !n->limits.train && !n->changes;
    if (n->model) return;
    n->has_head = true;
    if (n->create && !run_weights_dir(run))
        n->model = n->create(&n->config, (uint64_t)run->seed);
    else
        n->model = hf_load_head(n->from, n->head, frozen, &n->has_head, &e);
    if (!n->model) die_usage("%s", e.text);
    if (n->judges && !n->has_head)
        die_usage("%s holds no reward model: it has neither score.weight nor v_head.summary.weight",
                  n->from);
    if (is_outside(run, n, first))
        agree_note_model(run, n);
    else
        agree_note_origin(run, n);
}

static void reserve(Run *run, Network *n, bool first) {
    const Technique *technique = technique_of(run, first);
    gpt2_reserve(n->model, &n->limits);
    if (technique) technique_start(technique, run, n->model, &n->limits);
}

void networks_open(Run *run, Network *const list[]) {
    struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    best_keep(run);
    for (; list[s->networks]; s->networks++) {
        s->network = (Network **)xrealloc(s->network, (size_t)s->networks + 1, sizeof *s->network);
        s->network[s->networks] = list[s->networks];
        read_config(run, list[s->networks], s->networks == 0);
    }
    if (technique) technique_limits(technique, &s->network[0]->limits);
    for (int i = 0; i < s->networks; i++) {
        Network *n = s->network[i];
        const bool adapted = technique && i == 0;
        gpt2_use_bf16(&n->limits, run->bf16,
                      adapted ? n->limits.trains == TRAIN_NONE : !n->trains && !n->changes);
    }
    // 1. A run that cannot be resumed is refused before its memory is planned
    agree_note_tokenizer(run);
    for (int i = 0; i < s->networks; i++) {
        const Network *n = s->network[i];
        if (i == 0 || n->trains) agree_note_config(run, n, technique_of(run, i == 0));
    }
    agree_check(run);
    for (int i = 0; i < s->networks && s->checkpoint; i++)
        if (is_outside(run, s->network[i], i == 0)) load(run, s->network[i], i == 0);
    agree_check(run);
    agree_over_ranks(run);
    // 2. Memory and weights
    plan_memory(run);
    flags_echo(s->flags,
               "flags that differ from their defaults:", min_int(streams_columns(80), 100));
    if (run->dry_run) exit(0);
    for (int i = 0; i < s->networks; i++) read_files(run, s->network[i], i == 0);
    for (int i = 0; i < s->networks; i++) {
        load(run, s->network[i], i == 0);
        reserve(run, s->network[i], i == 0);
    }
    checkpoint_resume(run);
    agree_on_weights(run);
    screen_follow(run);
}
