/*
 * pairs.c - preference data for a reward model: see pairs.h.
 */
#include "rl/pairs.h"

/* ---- reading --------------------------------------------------------------------------------- */

/* Prints which lines and pairs of a file are not used, and why. */
static void print_left_out(const char *path, const Records *r, const Pairs *p, int max_length) {
    say_skipped(path, r->skipped, "record", &r->first_skipped);
    if (r->mismatched)
        printf("%s: left out %d pairs whose chosen and rejected answer different prompts\n", path,
               r->mismatched);
    if (p->prompts_cut)
        printf(
            "%s: %ld prompts lost their beginning, because with their answer they are longer than "
            "--max_length %d\n",
            path, p->prompts_cut, max_length);
    if (p->too_long)
        printf(
            "%s: left out %ld pairs with an answer that is longer than --max_length %d by itself\n",
            path, p->too_long, max_length);
    if (p->empty)
        printf("%s: left out %ld pairs with an answer that has no token\n", path, p->empty);
    if (p->equal) printf("%s: left out %ld pairs whose answers are the same\n", path, p->equal);
}

static Pairs *read_pairs(const Preferences *preferences, const char *path, const Tokenizer *t) {
    Error e;
    Records records;
    if (pairs_read(path, preferences->template, preferences->strict, &records, &e))
        die_usage("%s", e.text);
    Pairs *p = (Pairs *)xcalloc(1, sizeof *p);
    pairs_build(p, &records, t, preferences->max_length);
    printf("%s: %d pairs of kind %s; the longest has %d tokens with its prompt\n", path, records.n,
           records.kind, p->longest);
    print_left_out(path, &records, p, preferences->max_length);
    if (!p->n) die_usage("%s: no pair is left to learn from", path);
    records_free(&records);
    return p;
}

/* Prints the accuracy of a rule that knows lengths alone, to compare a model's with. Of two equally
   long answers the rule guesses: that counts half. */
static void print_length_rule(const char *name, const PairSet *x) {
    double longer = 0, ties = 0, judged = 0;
    for (int k = 0; k < x->n; k++) {
        const int i = x->which[k], sign = preference(x->data->p_chosen[i]);
        if (!sign) continue;
        const int difference = sign * (pair_part(x->data, i, 1) - pair_part(x->data, i, 2));
        judged++;
        longer += difference > 0 ? 1 : difference == 0 ? 0.5 : 0;
        ties += difference == 0;
    }
    if (judged > 0)
        printf(
            "%s: of %d pairs the longer answer wins in %.1f %%, the shorter in %.1f %% (equally "
            "long: %.1f %%, counted half); at random: 50 %%\n",
            name, (int)judged, 100 * longer / judged, 100 - 100 * longer / judged,
            100 * ties / judged);
}

void preferences_load(Preferences *p, Run *run) {
    if (p->max_length > run->config.n_positions) {
        printf("--max_length %d is more than the model's %d positions; using %d\n", p->max_length,
               run->config.n_positions, run->config.n_positions);
        p->max_length = run->config.n_positions;
    }
    Pairs *data = read_pairs(p, run->data, run->tokenizer);
    const int share = run->eval ? 0 : (int)((long)data->n * p->validation_split_percentage / 100);
    int *order = (int *)xmalloc(sizeof(int) * (size_t)data->n);
    random_permutation(order, data->n, (uint64_t)run->seed, RANDOM_SPLIT, 0);
    p->held_out = (PairSet){data, share, order};
    p->train = (PairSet){data, data->n - share, order + share};
    if (run->eval) {
        Pairs *eval = read_pairs(p, run->eval, run->tokenizer);
        p->held_out = (PairSet){eval, eval->n, (int *)xmalloc(sizeof(int) * (size_t)eval->n)};
        for (int i = 0; i < eval->n; i++) p->held_out.which[i] = i;
    }
    run_fingerprint(run, "data", run->data);
    run_fingerprint(run, "eval", run->eval);
    run_template(run, p->template);
    const int P = run->per_device_train_batch_size, accumulated = run->gradient_accumulation_steps;
    run_plan(run, p->train.n, P * accumulated, 0);
    p->which = (int *)xmalloc(sizeof(int) * (size_t)p->train.n);
    printf("%d pairs to train on, %d held out; %d steps of %d x %d pairs\n", p->train.n,
           p->held_out.n, run->total_steps, accumulated, P);
    for (int k = 0; k < min_int(run->dry_run ? 3 : 1, p->train.n); k++)
        pairs_show(run->tokenizer, &p->train, k, NULL, NULL);
    print_length_rule("training", &p->train);
    print_length_rule("held-out", &p->held_out);
}

int preferences_examples(Preferences *p, Run *run) {
    const int n = run_examples(run, p->which);
    for (int i = 0; i < n; i++) p->which[i] = p->train.which[p->which[i]];
    return n;
}

void preferences_free(Preferences *p) {
    const bool split = p->held_out.data == p->train.data;
    if (!split && p->held_out.data) {
        pairs_free(p->held_out.data);
        free(p->held_out.data);
        free(p->held_out.which);
    }
    if (p->train.data) {
        pairs_free(p->train.data);
        free(p->train.data);
    }
    // of a split the held-out pairs come first, in the same array
    free(split ? p->held_out.which : p->train.which);
    free(p->which);
}

/* ---- figures of a set ------------------------------------------------------------------------ */

int pairs_largest(const PairSet *x, int P) {
    int *size = (int *)xmalloc(sizeof(int) * (size_t)(x->n + 1)), total = 0;
    for (int k = 0; k < x->n; k++) {
        const size_t *start = x->data->start + 3 * x->which[k];
        size[k] = (int)(start[3] - start[0]);
    }
    qsort(size, (size_t)x->n, sizeof(int), largest_first);
    for (int k = 0; k < min_int(x->n, P); k++) total += size[k];
    free(size);
    return total;
}

void pairs_show(const Tokenizer *t, const PairSet *x, int k, const float *before,
                const float *after) {
    static const char *const label[] = {"prompt", "chosen", "rejected"};
    const int i = x->which[k];
    printf("%s, line %d\n", before ? "held-out pair" : "pair", x->data->line[i]);
    for (int part = 0; part < 3; part++) {
        Str text = {0};
        tokenizer_decode(t, x->data->tokens + x->data->start[3 * i + part],
                         (size_t)pair_part(x->data, i, part), &text);
        printf("  %-9s | ", label[part]);
        print_indented(text.s, text.n);
        if (before && part)
            printf("   (reward %.3f -> %.3f)", (double)before[2 * k + part - 1],
                   (double)after[2 * k + part - 1]);
        putchar('\n');
        free(text.s);
    }
}

/* The difference of a pair's rewards, and whether the better answer has the higher one. */
typedef struct {
    double size;
    bool correct;
} Difference;

static int by_size(const void *a, const void *b) {
    const double x = ((const Difference *)a)->size, y = ((const Difference *)b)->size;
    return (x > y) - (x < y);
}

void pairs_print_calibration(const PairSet *x, const float *rewards) {
    enum { QUARTERS = 4 };
    Difference *d = (Difference *)xmalloc(sizeof *d * (size_t)(x->n + 1));
    int n = 0;
    for (int k = 0; k < x->n; k++) {
        const int sign = preference(x->data->p_chosen[x->which[k]]);
        const double size = sign * ((double)rewards[2 * k] - (double)rewards[2 * k + 1]);
        if (sign) d[n++] = (Difference){fabs(size), size > 0};
    }
    qsort(d, (size_t)n, sizeof *d, by_size);
    printf("held-out accuracy by margin\n");
    for (int quarter = 0; quarter < QUARTERS; quarter++) {
        const int from = (int)((long)n * quarter / QUARTERS);
        const int to = (int)((long)n * (quarter + 1) / QUARTERS);
        double correct = 0, predicted = 0;
        for (int i = from; i < to; i++) {
            correct += d[i].correct;
            predicted += 1 / (1 + exp(-d[i].size));
        }
        if (to > from)
            printf(
                "  |chosen - rejected| from %7.3f to %7.3f  %5d pairs  accuracy %5.1f %%, "
                "predicted "
                "by the model %5.1f %%\n",
                d[from].size, d[to - 1].size, to - from, 100 * correct / (to - from),
                100 * predicted / (to - from));
    }
    free(d);
}

/* ---- a batch --------------------------------------------------------------------------------- */

PairBatch pair_batch_new(int P, int N) {
    const size_t n = (size_t)N, p = (size_t)P, s = 3 * p;
    PairBatch b = {.start = (int *)xmalloc(sizeof(int) * (s + 1)),
                   .tokens = (int *)xmalloc(sizeof(int) * n),
                   .parent = (int *)xmalloc(sizeof(int) * s),
                   .id = (uint32_t *)xmalloc(sizeof(uint32_t) * s),
                   .last = (int *)xmalloc(sizeof(int) * 2 * p)};
    b.value = (float *)xmalloc(sizeof(float) * (2 * n + 6 * p));
    b.dvalue = b.value + n;
    b.chosen = b.dvalue + n;
    b.rejected = b.chosen + p;
    b.margin = b.rejected + p;
    b.p_chosen = b.margin + p;
    b.dchosen = b.p_chosen + p;
    b.drejected = b.dchosen + p;
    return b;
}

void pair_batch_free(PairBatch *b) {
    free(b->start);
    free(b->tokens);
    free(b->parent);
    free(b->id);
    free(b->last);
    free(b->value);
    *b = (PairBatch){0};
}

void pair_batch_add(PairBatch *b, int parent, uint32_t id, const int *tokens, int n,
                    const int *more, int more_n) {
    const int s = b->batch.S++;
    int *to = b->tokens + b->batch.N;
    if (n) memcpy(to, tokens, sizeof(int) * (size_t)n);
    if (more_n) memcpy(to + n, more, sizeof(int) * (size_t)more_n);
    b->start[s] = b->batch.N;
    b->batch.N += n + more_n;
    b->start[s + 1] = b->batch.N;
    b->parent[s] = parent;
    b->id[s] = id;
}

/* The mean over the first n pairs of p(<|endoftext|> | prompt, chosen answer), P at a time. */
static double end_probability(PairBatch *b, GPT2 *model, const PairSet *x, int n, int P, int eos) {
    double sum = 0;
    for (int i = 0; i < n; i += P) {
        const int S = min_int(P, n - i);
        b->batch = (Batch){.start = b->start, .tokens = b->tokens, .id = b->id};
        for (int k = 0; k < S; k++) {
            const int pair = x->which[i + k], *prompt = x->data->tokens + x->data->start[3 * pair];
            pair_batch_add(b, -1, 0, prompt, pair_part(x->data, pair, 0),
                           x->data->tokens + x->data->start[3 * pair + 1],
                           pair_part(x->data, pair, 1));
        }
        int *target = (int *)xmalloc(sizeof(int) * (size_t)b->batch.N);
        for (int j = 0; j < b->batch.N; j++) target[j] = -1;
        for (int s = 0; s < S; s++) target[b->start[s + 1] - 1] = eos;
        gpt2_forward(model, &b->batch, NULL);
        gpt2_logprob(model, target, 1, b->value, NULL, NULL);
        for (int s = 0; s < S; s++) sum += exp((double)b->value[b->start[s + 1] - 1]);
        free(target);
    }
    return sum / n;
}

void pairs_check_start(PairBatch *b, GPT2 *model, const Run *run, const PairSet *x) {
    if (run->total_steps == 0)
        die_usage(
            "%s has no score.weight, so it is not a reward model, and --max_steps 0 does not "
            "train one",
            run->model);
    const double end =
        end_probability(b, model, x, min_int(x->n, 32), run->per_device_train_batch_size,
                        tokenizer_eos(run->tokenizer));
    printf(
        "%s has no score.weight, so it gets a new head. Its probability of the end of text after "
        "a chosen answer is %.3f\n",
        run->model, end);
    if (end < 0.1)
        printf(
            "note: this does not look like a model that was fine-tuned to answer in this template, "
            "and the accuracy may stay at 50 %%. Use a --model that ./sft trained, or the "
            "--template that it was trained in\n");
}
