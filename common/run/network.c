/*
 * network.c - opening the models of a run: configurations, checks, memory, weights. See network.h.
 */
#include "run/network.h"

#include "files/hf.h"
#include "run/private.h"
#include "run/technique.h"

/* ---- before anything is loaded --------------------------------------------------------------- */

/* The directory to read a model from. */
static void find_directory(const Run *run, Network *n, bool first) {
    const struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    if (first)
        n->from = xstrdup(s->checkpoint && !technique ? s->checkpoint : run->model);
    else if (n->trains && s->checkpoint)
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

static void read_config(const Run *run, Network *n, bool first) {
    Error e;
    find_directory(run, n, first);
    if (first)
        n->config = run->config;
    else if (hf_config(n->from, &n->config, &e))
        die_usage("%s", e.text);
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
    sum->weights += m->weights;
    sum->gradients += m->gradients;
    sum->moments += m->moments;
    sum->activations += m->activations;
    sum->logits += m->logits;
    sum->cache += m->cache;
    sum->workspace += m->workspace;
    sum->total += m->total;
}

static void print_row(const char *name, size_t bytes) {
    if (bytes) printf("  %-12s %10.1f MiB\n", name, (double)bytes / (1 << 20));
}

static void print_memory(const GPT2Memory *m) {
    printf("memory\n");
    print_row("weights", m->weights);
    print_row("gradients", m->gradients);
    print_row("moments", m->moments);
    print_row("activations", m->activations);
    print_row("logits", m->logits);
    print_row("cache", m->cache);
    print_row("workspace", m->workspace);
    print_row("total", m->total);
    fflush(stdout);
}

/* Prints parameters and memory of all models, and keeps the sum. */
static void plan_memory(Run *run) {
    struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
    size_t trained = 0, all = 0;
    if (s->networks > 1) printf("memory, by model\n");
    for (int i = 0; i < s->networks; i++) {
        Network *n = s->network[i];
        GPT2Memory m = gpt2_memory(&n->config, &n->limits);
        if (technique && i == 0) {
            const size_t more = technique_bytes(technique, &n->limits, &n->config);
            m.workspace += more;
            m.total += more;
        }
        if (s->networks > 1) print_row(n->role, m.total);
        add_memory(&s->memory, &m);
        const size_t parameters = gpt2_parameters(&n->config, TRAIN_ALL);
        all += parameters;
        if (n->limits.train) trained += parameters;
    }
    if (!technique) run_print_parameters(trained, all);
    print_memory(&s->memory);
}

/* ---- weights --------------------------------------------------------------------------------- */

static void load(Run *run, Network *n, bool first) {
    Error e;
    const Technique *technique = first ? run->state->program->technique : NULL;
    const bool frozen =
        technique ? n->limits.trains == TRAIN_NONE : !n->limits.train && !n->changes;
    n->has_head = true;
    if (n->create && !run->state->checkpoint)
        n->model = n->create(&n->config, (uint64_t)run->seed);
    else
        n->model = hf_load_head(n->from, n->head, frozen, &n->has_head, &e);
    if (!n->model) die_usage("%s", e.text);
    if (n->judges && !n->has_head)
        die_usage("%s holds no reward model: it has neither score.weight nor v_head.summary.weight",
                  n->from);
    gpt2_reserve(n->model, &n->limits);
    if (technique) technique_start(technique, run, n->model, &n->limits);
}

void networks_open(Run *run, Network *const list[]) {
    struct RunState *s = run->state;
    const Technique *technique = s->program->technique;
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
    plan_memory(run);
    if (run->dry_run) exit(0);
    for (int i = 0; i < s->networks; i++) load(run, s->network[i], i == 0);
    checkpoint_resume(run);
}
