/*
 * pairs.c - preference data for a reward model: see pairs.h.
 */
#include "rl/pairs.h"

#include "progress.h"
#include "run/dump.h"
#include "text/utf8.h"

/* ---- reading --------------------------------------------------------------------------------- */

/* Prints which lines and pairs of a file are not used, and why. */
static void print_left_out(const char *path, const Records *r, const Pairs *p, int max_length) {
    say_skipped(path, &r->counts, "pair");
    say_unused(path, r->unused);
    if (r->counts.left_out)
        printf("%s: left out %d pair%s whose chosen and rejected answer different prompts\n", path,
               r->counts.left_out, plural(r->counts.left_out));
    if (p->prompts_cut)
        printf(
            "%s: cut the beginning of %ld prompt%s, longer than --max_length %d together with the "
            "answer\n",
            path, p->prompts_cut, plural(p->prompts_cut), max_length);
    if (p->too_long)
        printf(
            "%s: left out %ld pair%s with an answer that is longer than --max_length %d by "
            "itself\n",
            path, p->too_long, plural(p->too_long), max_length);
    if (p->empty)
        printf("%s: left out %ld pair%s with an answer that has no token\n", path, p->empty,
               plural(p->empty));
    if (p->equal)
        printf("%s: left out %ld pair%s whose answers are the same\n", path, p->equal,
               plural(p->equal));
}

static Pairs *read_pairs(const Preferences *preferences, const char *path, const Tokenizer *t) {
    Error e;
    Records records;
    if (pairs_read(path, preferences->template, preferences->strict, &records, &e))
        die_usage("%s", e.text);
    Pairs *p = (Pairs *)xcalloc(1, sizeof *p);
    pairs_build(p, &records, t, preferences->max_length);
    p->templated = records.templated;
    printf("%s: %d pair%s of kind %s; the longest has %d tokens with its prompt\n", path, records.n,
           plural(records.n), records.kind, p->longest);
    print_left_out(path, &records, p, preferences->max_length);
    if (!p->n) die_usage("%s: no pair is left to learn from", path);
    const long left_out = records.counts.left_out + p->too_long + p->empty + p->equal;
    if (left_out > p->n)
        die_usage(
            "%s: %ld pair%s %s left out and %d %s kept, for the reasons above; mend the file, or "
            "raise --max_length",
            path, left_out, plural(left_out), are(left_out), p->n, are(p->n));
    records_free(&records);
    return p;
}

/* A rule that knows lengths alone, to compare a model with. Of two equally long answers it guesses:
   that counts half. */
typedef struct {
    double longer, ties, judged;  // pairs in which the longer answer is better; all that have one
} LengthRule;

static LengthRule length_rule(const PairSet *x) {
    LengthRule rule = {0};
    for (int k = 0; k < x->n; k++) {
        const int i = x->which[k], sign = preference(x->data->p_chosen[i]);
        if (!sign) continue;
        const int difference = sign * (pair_part(x->data, i, 1) - pair_part(x->data, i, 2));
        rule.judged++;
        rule.longer += difference > 0 ? 1 : difference == 0 ? 0.5 : 0;
        rule.ties += difference == 0;
    }
    return rule;
}

static void print_length_rule(const char *name, const PairSet *x) {
    const LengthRule r = length_rule(x);
    if (r.judged > 0)
        printf(
            "%s: of %d pair%s the longer answer wins in %.1f %%, the shorter in %.1f %% (equally "
            "long: %.1f %%, counted half); at random: 50 %%\n",
            name, (int)r.judged, plural((long)r.judged), 100 * r.longer / r.judged,
            100 - 100 * r.longer / r.judged, 100 * r.ties / r.judged);
}

void pairs_conclude(const PairSet *x, double accuracy) {
    const LengthRule r = length_rule(x);
    if (!(r.judged > 0)) return;
    const double rule = fmax(r.longer, r.judged - r.longer) / r.judged;
    printf("The better answer has the higher reward in %.1f %% of the held-out pairs. ",
           100 * accuracy);
    if (accuracy <= 0.55)
        printf("That is no better than guessing, which gives 50 %%.\n");
    else if (rule <= 0.55)
        printf("Guessing gives 50 %%.\n");
    else
        printf("Guessing gives 50 %%, and the length alone %.1f %%%s.\n", 100 * rule,
               accuracy > rule + 0.05 ? "" : ": the model may have learned nothing but the length");
}

void preferences_load(Preferences *p, Run *run) {
    if (p->max_length > run->config.n_positions) {
        if (run_given(run, "max_length"))
            printf("--max_length %d is more than the model's %d positions; using %d\n",
                   p->max_length, run->config.n_positions, run->config.n_positions);
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
    if (!p->held_out.n) run_nothing_held_out(run, "dump_tokens");
    run_fingerprint(run, "data", run->data);
    run_fingerprint(run, "eval", run->eval);
    run_template_used(run, p->template, data->templated);
    run_plan(run, p->train.n,
             (int64_t)run->per_device_train_batch_size * run->gradient_accumulation_steps, 0);
    p->which = (int *)xmalloc(sizeof(int) * (size_t)p->train.n);
    p->size = (int *)xmalloc(sizeof(int) * (size_t)p->train.n);
    run_print_plan(run, "pair", p->train.n, p->held_out.n);
    for (int k = 0; k < min_int(run->dry_run ? 3 : 1, p->train.n); k++)
        pairs_show(run->tokenizer, &p->train, k, NULL, NULL);
    print_length_rule("training", &p->train);
    print_length_rule("held-out", &p->held_out);
}

int preferences_examples(Preferences *p, Run *run) {
    const int n = run_examples(run, p->which);
    progress_begin("pairs");
    for (int i = 0; i < n; i++) {
        p->which[i] = p->train.which[p->which[i]];
        const size_t *start = pair_start(p->train.data, p->which[i]);
        p->size[i] = (int)(start[3] - start[0]);
    }
    shards_take(&p->shards, p->size, p->which, n);
    return n;
}

int preferences_batch(const Preferences *p, int from, int most) {
    return shards_batch(&p->shards, from, most);
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
    free(p->size);
}

/* ---- figures of a set ------------------------------------------------------------------------ */

int pairs_largest(const PairSet *x, int P) {
    int *size = (int *)xmalloc(sizeof(int) * ((size_t)x->n + 1));
    int64_t total = 0;
    for (int k = 0; k < x->n; k++) {
        const size_t *start = pair_start(x->data, x->which[k]);
        size[k] = (int)(start[3] - start[0]);
    }
    qsort(size, (size_t)x->n, sizeof(int), largest_first);
    for (int k = 0; k < min_int(x->n, P); k++) total += size[k];
    free(size);
    return batch_tokens(total);
}

void pairs_show(const Tokenizer *t, const PairSet *x, int k, const float *before,
                const float *after) {
    static const char *const label[] = {"prompt", "chosen", "rejected"};
    const int i = x->which[k];
    printf("%s, line %d\n", before ? "held-out pair" : "pair", x->data->line[i]);
    for (int part = 0; part < 3; part++) {
        Str text = {0};
        tokenizer_decode(t, x->data->tokens + pair_start(x->data, i)[part],
                         (size_t)pair_part(x->data, i, part), &text);
        text_repair(&text, 0);
        printf("  %-9s | ", label[part]);
        print_indented(text.s, text.n);
        if (before && part)
            printf("   (reward %.3f -> %.3f)", (double)before[2 * (size_t)k + (size_t)part - 1],
                   (double)after[2 * (size_t)k + (size_t)part - 1]);
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
        const double size =
            sign * ((double)rewards[2 * (size_t)k] - (double)rewards[2 * (size_t)k + 1]);
        if (sign) d[n++] = (Difference){fabs(size), size > 0};
    }
    qsort(d, (size_t)n, sizeof *d, by_size);
    if (n)
        printf("held-out accuracy by margin, |chosen - rejected|, and as the model predicts it\n");
    for (int quarter = 0; quarter < QUARTERS; quarter++) {
        const int from = (int)((long)n * quarter / QUARTERS);
        const int to = (int)((long)n * (quarter + 1) / QUARTERS);
        double correct = 0, predicted = 0;
        for (int i = from; i < to; i++) {
            correct += d[i].correct;
            predicted += 1 / (1 + exp(-d[i].size));
        }
        if (to > from)
            printf("  %7.3f to %7.3f  %5d pair%s  accuracy %5.1f %%, predicted %5.1f %%\n",
                   d[from].size, d[to - 1].size, to - from, to - from == 1 ? " " : "s",
                   100 * correct / (to - from), 100 * predicted / (to - from));
    }
    free(d);
}

/* ---- a batch --------------------------------------------------------------------------------- */

PairBatch pair_batch_new(int P, int N) {
    const size_t n = (size_t)N, p = (size_t)P, s = 3 * p;
    PairBatch b = {.start = (int *)xmalloc(sizeof(int) * (s + 1)),
                   .tokens = (int *)xmalloc(sizeof(int) * n),
                   .parent = (int *)xmalloc(sizeof(int) * s),
                   .needed = (int *)xmalloc(sizeof(int) * n),
                   .id = (uint32_t *)xmalloc(sizeof(uint32_t) * s),
                   .last = xmalloc(sizeof(int[2]) * p)};
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
    free(b->needed);
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
    for (int i = 0; i < n + more_n; i++) b->needed[b->batch.N + i] = -1;
    b->batch.N += n + more_n;
    b->start[s + 1] = b->batch.N;
    b->parent[s] = parent;
    b->id[s] = id;
}

/* Appends an answer of pair i of the batch, chosen (k = 1) or rejected (2): its text, the reward of
   the whole, and the value at each token, which is the reward of the answer up to there. */
static void add_answer(Str *lines, const Tokenizer *t, const Pairs *pairs, int pair,
                       const PairBatch *b, int i, int k) {
    const int *tokens = pairs->tokens + pair_start(pairs, pair)[k], n = pair_part(pairs, pair, k);
    const int last = b->last[i][k - 1];
    str_printf(lines, ", \"%s\": {\"n\": %d", k == 1 ? "chosen" : "rejected", n);
    dump_number(lines, "score", (double)(k == 1 ? b->chosen : b->rejected)[i]);
    dump_ints(lines, "tokens", tokens, n);
    dump_pieces(lines, "pieces", t, tokens, n);
    dump_numbers(lines, "value", b->value + last - n + 1, n);
    str_add(lines, "}", 1);
}

void pairs_dump(const Preferences *p, const Run *run, const PairBatch *b, int from) {
    const Pairs *pairs = p->held_out.data;
    Str lines = {0};
    for (int i = 0; i < b->P; i++) {
        const int pair = p->held_out.which[from + i];
        str_printf(&lines, "{\"step\": %d, \"pair\": %d, \"line\": %d", run->step, from + i,
                   pairs->line[pair]);
        dump_text(&lines, "prompt", run->tokenizer, pairs->tokens + *pair_start(pairs, pair),
                  pair_part(pairs, pair, 0));
        dump_number(&lines, "margin", (double)pairs->margin[pair]);
        dump_number(&lines, "p_chosen", (double)pairs->p_chosen[pair]);
        for (int k = 1; k <= 2; k++) add_answer(&lines, run->tokenizer, pairs, pair, b, i, k);
        str_add(&lines, "}\n", 2);
    }
    dump_append(p->dump_tokens, "dump_tokens", &lines);
    free(lines.s);
}

/* The mean over the first n pairs of p(<|endoftext|> | prompt, chosen answer), P at a time. */
static double end_probability(PairBatch *b, GPT2 *model, const PairSet *x, int n, int P, int eos) {
    double sum = 0;
    for (int i = 0; i < n; i += P) {
        const int S = min_int(P, n - i);
        b->batch = (Batch){.start = b->start, .tokens = b->tokens, .id = b->id};
        for (int k = 0; k < S; k++) {
            const int pair = x->which[i + k];
            const size_t *start = pair_start(x->data, pair);
            const int *prompt = x->data->tokens + start[0];
            pair_batch_add(b, -1, 0, prompt, pair_part(x->data, pair, 0),
                           x->data->tokens + start[1], pair_part(x->data, pair, 1));
        }
        int *target = (int *)xmalloc(sizeof(int) * (size_t)b->batch.N);
        for (int j = 0; j < b->batch.N; j++) target[j] = -1;
        for (int s = 0; s < S; s++) target[b->start[s + 1] - 1] = eos;
        b->batch.needed = target;
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
    const int P = shards_count() > 1 ? 1 : run->per_device_train_batch_size;  // fits into any shard
    const double end =
        end_probability(b, model, x, min_int(x->n, 32), P, tokenizer_eos(run->tokenizer));
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
