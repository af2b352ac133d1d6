/*
 * task.c - the examples of a supervised task, and the figures on those held out. See task.h.
 */
#include "run/task.h"

#include "parts.h"
#include "progress.h"
#include "ranks.h"
#include "run/dump.h"
#include "run/table.h"
#include "text/json.h"
#include "text/records.h"
#include "text/utf8.h"

/* ---- examples -------------------------------------------------------------------------------- */

/* Reads a file of records. form: gets the template they are put into, to be freed, unless NULL. */
static Dataset *read_data(const Task *t, Run *run, const char *path, char **form) {
    Error e;
    Records records;
    if (records_read(path, t->chat.template, t->strict, &records, &e)) die_usage("%s", e.text);
    say_skipped(path, &records.counts, "record");
    say_unused(path, records.unused);
    Dataset *d = (Dataset *)xcalloc(1, sizeof *d);
    if (form) run_settle_end(run, !records.template);
    dataset_build(d, &records, run->tokenizer, t->max_length, t->train_on_prompt);
    printf("%s: %d record%s of kind %s; %ld scored token%s, at most %d tokens in an example\n",
           path, records.n, plural(records.n), records.kind, d->scored_tokens,
           plural(d->scored_tokens), d->longest);
    say_cut(d, path, t->max_length);
    say_empty(path, &records);
    if (d->dropped)
        printf("%s: dropped %ld record%s with no token to score\n", path, d->dropped,
               plural(d->dropped));
    if (!d->n || d->dropped > d->n) {
        const long dropped = d->dropped;
        const bool none = !d->n;
        dataset_free(d);
        free(d);
        if (none) die_usage("%s: no example has a token to score", path);
        die_usage(
            "%s: no token to score within --max_length %d in %ld of %d records, which is more than "
            "half; raise --max_length, or remove these records",
            path, t->max_length, dropped, records.n);
    }
    if (form) {
        *form = records.template;
        records.template = NULL;
    }
    records_free(&records);
    return d;
}

/* Prints an example as the model gets it. What is scored is between « and ». */
static void show_example(const Task *t, const Run *run, int k) {
    const Dataset *d = t->train.data;
    const int i = t->train.which[k];
    Str text = {0}, token = {0};
    bool scored = false;  // the text is inside « »
    for (size_t j = d->start[i]; j < d->start[i + 1]; j++) {
        token.n = 0;
        tokenizer_decode(run->tokenizer, d->tokens + j, 1, &token);
        // Several tokens may share a character. The mark then waits for its end
        const bool within = token.n && (unsigned char)*token.s >> 6 == 2;
        if (d->scored[j] != scored && !within) {
            str_printf(&text, "%s", scored ? "»" : "«");
            scored = d->scored[j];
        }
        str_add(&text, token.s, token.n);
    }
    text_repair(&text, 0);  // a prompt may have lost the beginning of a character
    printf(
        "--- line %d: an example of %zu tokens; the model learns what is between « and »\n%s%s\n",
        d->line[i], d->start[i + 1] - d->start[i], text.s, scored ? "»" : "");
    free(text.s);
    free(token.s);
}

/* Splits the data, or reads --eval. */
static void read_examples(Task *t, Run *run) {
    Dataset *data = read_data(t, run, run->data, &t->form);
    const long percent = run->eval ? 0 : t->validation_split_percentage;
    const int share = (int)((long)data->n * percent / 100);
    int *order = (int *)xmalloc(sizeof(int) * (size_t)data->n);
    random_permutation(order, data->n, (uint64_t)run->seed, RANDOM_SPLIT, 0);
    t->held_out = (Examples){data, share, order};
    t->train = (Examples){data, data->n - share, order + share};
    if (!run->eval) return;
    Dataset *held_out = read_data(t, run, run->eval, NULL);
    t->held_out = (Examples){held_out, held_out->n, NULL};
    t->held_out.which = (int *)xmalloc(sizeof(int) * (size_t)held_out->n);
    for (int i = 0; i < held_out->n; i++) t->held_out.which[i] = i;
}

/* Says what is not measured, and refuses flags that have no effect then. */
static void note_held_out(const Task *t, const Run *run) {
    if (!t->held_out.n) run_nothing_held_out(run, "eval_samples dump_tokens");
    if (!t->answers) {
        run_refuse(run, "max_new_tokens",
                   "because no held-out prompt is answered: see --eval and --eval_samples");
        if (t->held_out.n) printf("note: --eval_samples is 0, so no answers are shown\n");
    }
}

/* What was measured before training, which a resumed run does not measure again. */
static void keep_before(Task *t, Run *run) {
    run_keep(run, "loss_sum_before", &t->before.loss);
    run_keep(run, "correct_before", &t->before.correct);
    run_keep(run, "tokens_before", &t->before.tokens);
    run_keep(run, "exact_before", &t->quality_before.exact);
    run_keep(run, "rouge_before", &t->quality_before.rouge);
    for (int i = 0; i < SHOWN_TEXTS; i++) {
        static const char *const names[SHOWN_TEXTS] = {"answer1", "answer2", "answer3"};
        run_keep_text(run, names[i], &t->shown_before[i]);
    }
}

void task_load(Task *t, Run *run) {
    const int most = run->config.n_positions + 1;  // an example of n tokens feeds the model n-1
    if (t->max_length > most) {
        if (run_given(run, "max_length"))
            printf(
                "--max_length %d is more than the model's %d positions can learn from; using "
                "%d\n",
                t->max_length, run->config.n_positions, most);
        t->max_length = most;
    }
    read_examples(t, run);
    if (!t->form) run_refuse(run, "template", "because the records are plain text");
    run_template(run, t->form);
    t->answers = min_int(t->eval_samples, t->held_out.n);
    note_held_out(t, run);
    t->noise.seed = (uint64_t)run->seed;
    run_dropout(&t->noise, &run->config, t->dropout);
    run_fingerprint(run, "data", run->data);
    run_fingerprint(run, "eval", run->eval);
    keep_before(t, run);
    run_plan(run, t->train.n,
             (int64_t)run->per_device_train_batch_size * run->gradient_accumulation_steps, 0);
    run_print_plan(run, "example", t->train.n, t->held_out.n);
    const int shown = min_int(run->dry_run ? 3 : 1, t->train.n);
    for (int k = 0; k < shown; k++) show_example(t, run, k);
}

/* Where an example's prompt ends: at its first scored token; of plain text, in the middle. */
static int prompt_length(const Dataset *d, int i) {
    const int n = (int)(d->start[i + 1] - d->start[i]);
    int end = 1;
    while (end < n && !d->scored[d->start[i] + (size_t)end]) end++;
    return end > 1 ? end : (n + 1) / 2;
}

static int largest_batch(const Examples *x, int S, int *scored) {
    return ragged_largest(x->data, x->which, x->n, S, scored);
}

GPT2Limits task_limits(const Task *t, const Run *run) {
    const int S = run->per_device_train_batch_size;
    GPT2Limits l = {.sequences = S, .gradient_checkpointing = t->gradient_checkpointing};
    int scored;
    l.tokens = largest_batch(&t->train, S, &l.scored);
    l.tokens = shards_most((int64_t)l.tokens * run->gradient_accumulation_steps,
                           largest_batch(&t->train, 1, &scored), l.tokens);
    l.scored = min_int(l.scored, l.tokens);
    l.tokens = max_int(l.tokens, largest_batch(&t->held_out, S, &scored));
    l.scored = max_int(l.scored, scored);
    l.slots = min_int(t->answers, 16);
    l.tokens = max_int(l.tokens, l.slots);
    for (int i = 0; i < t->answers; i++) {
        const int prompt = prompt_length(t->held_out.data, t->held_out.which[i]);
        l.positions = max_int(l.positions, prompt + t->chat.max_new_tokens);
    }
    return l;
}

/* ---- a step ---------------------------------------------------------------------------------- */

int task_examples(Task *t, Run *run, double *M) {
    const int n = run_examples(run, t->which);
    *M = 0;
    for (int i = 0; i < n; i++) {
        t->which[i] = t->train.which[t->which[i]];
        *M += dataset_targets(t->train.data, t->which[i]);
        t->size[i] = dataset_rows(t->train.data, t->which[i]);
    }
    t->noise.step = (uint32_t)run->step;
    t->tokens = 0;
    progress_begin("examples");
    t->drawn = shards_take(&t->shards, t->size, t->which, n);
    return t->drawn;
}

const Batch *task_batch(Task *t, int from, int B) {
    progress(from, t->drawn);
    ragged_fill(&t->ragged, t->train.data, t->which + from, shards_batch(&t->shards, from, B));
    t->tokens += t->ragged.batch.N;
    return &t->ragged.batch;
}

void task_watch(Task *t, Run *run) {
    for (int i = 0; i < t->ragged.batch.N; i++) {
        if (t->ragged.target[i] < 0) continue;
        watch_mean(run, "loss", -(double)t->logp[i], 1);
        watch_mean(run, "entropy", (double)t->entropy[i], 1);
        watch_mean(run, "mean_token_accuracy", t->best[i] == t->ragged.target[i], 1);
    }
}

void task_optimise(Task *t, Run *run, GPT2 *model, double loss) {
    run_optimise(run, model, loss, t->tokens, t->train.data->line[t->which[0]]);
}

/* ---- held-out figures ------------------------------------------------------------------------ */

/* Appends the text of the likeliest token in the place of each scored token of sequence s. */
static void add_likeliest(const Task *t, const Run *run, int s, Str *line) {
    const Batch *b = &t->ragged.batch;
    str_printf(line, ", \"likeliest\": [null");
    for (int i = b->start[s]; i < b->start[s + 1]; i++) {
        Str text = {0};
        if (t->ragged.target[i] >= 0) tokenizer_decode(run->tokenizer, t->best + i, 1, &text);
        str_add(line, ", ", 2);
        if (t->ragged.target[i] >= 0)
            json_add_string(line, text.s, text.n);
        else
            str_add(line, "null", 4);
        free(text.s);
    }
    str_add(line, "]", 1);
}

/* Appends the lines of the micro-batch, held-out records from number `from` on, for --dump_tokens.
   The loss of a token is in the row before it, which predicts it. */
static void dump_records(const Task *t, const Run *run, int step, int from, Str *lines) {
    const Dataset *d = t->held_out.data;
    const Batch *b = &t->ragged.batch;
    for (int s = 0; s < b->S; s++) {
        const int example = t->held_out.which[from + s];
        const int *tokens = d->tokens + d->start[example];
        const int n = (int)(d->start[example + 1] - d->start[example]);
        float *loss = (float *)xmalloc(sizeof(float) * (size_t)n);
        loss[0] = NAN;  // nothing predicts it
        for (int j = 1; j < n; j++) {
            const int row = b->start[s] + j - 1;
            loss[j] = t->ragged.target[row] < 0 ? NAN : -t->logp[row];
        }
        str_printf(lines, "{\"step\": %d, \"record\": %d, \"line\": %d", step, from + s,
                   d->line[example]);
        dump_ints(lines, "tokens", tokens, n);
        dump_pieces(lines, "pieces", run->tokenizer, tokens, n);
        dump_numbers(lines, "loss", loss, n);
        free(loss);
        add_likeliest(t, run, s, lines);
        str_add(lines, "}\n", 2);
    }
}

/* The numbers of all held-out records, which processes share out. Those of record i begin at row
   start[i]. */
typedef struct {
    int *start;  // (n+1)
    float *logp;
    int *best;
} Shared;

/* Scores the held-out records [from, end), the micro-batch. */
static void score(Task *t, GPT2 *model, int from, int end) {
    RaggedBatch *r = &t->ragged;
    ragged_fill(r, t->held_out.data, t->held_out.which + from, end - from);
    gpt2_forward(model, &r->batch, NULL);
    gpt2_logprob(model, r->target, 1, t->logp, NULL, t->best);
}

/* Scores this process's part of the held-out records, and gets the others. */
static Shared share_scores(Task *t, GPT2 *model, int B) {
    const int n = t->held_out.n, end = part_end(n);
    Shared x = {.start = (int *)xcalloc((size_t)n + 1, sizeof(int))};
    for (int i = 0; i < n; i++)
        x.start[i + 1] = x.start[i] + dataset_rows(t->held_out.data, t->held_out.which[i]);
    x.logp = (float *)xmalloc(sizeof(float) * (size_t)x.start[n]);
    x.best = (int *)xmalloc(sizeof(int) * (size_t)x.start[n]);
    for (int from = part_first(n); from < end; from += B) {
        score(t, model, from, min_int(from + B, end));
        const size_t N = (size_t)t->ragged.batch.N;
        memcpy(x.logp + x.start[from], t->logp, sizeof(float) * N);
        memcpy(x.best + x.start[from], t->best, sizeof(int) * N);
    }
    parts_collect(x.logp, sizeof(float), n, x.start);
    parts_collect(x.best, sizeof(int), n, x.start);
    return x;
}

/* Makes the held-out records [from, end) the micro-batch, with the numbers that they have in x. */
static void take_scores(Task *t, const Shared *x, int from, int end) {
    const size_t N = (size_t)(x->start[end] - x->start[from]);
    ragged_fill(&t->ragged, t->held_out.data, t->held_out.which + from, end - from);
    memcpy(t->logp, x->logp + x->start[from], sizeof(float) * N);
    memcpy(t->best, x->best + x->start[from], sizeof(int) * N);
}

/* dump: adds the records to --dump_tokens, as those of this step; -1: does not. A signal in
   training ends it, and then there are no figures. */
static HeldOut measure(Task *t, const Run *run, GPT2 *model, int dump) {
    HeldOut h = {0};
    Shared x = {0};
    Str lines = {0};  // written at the end, so that an evaluation that is left writes none
    const int B = run->per_device_train_batch_size;  // which changes no bit of a token's score
    progress_begin("measuring held-out records");
    if (ranks() > 1) x = share_scores(t, model, B);
    for (int from = 0; from < t->held_out.n && !run_interrupted(); from += B) {
        RaggedBatch *r = &t->ragged;
        const int end = min_int(from + B, t->held_out.n);
        progress(from, t->held_out.n);
        if (ranks() > 1)
            take_scores(t, &x, from, end);
        else
            score(t, model, from, end);
        for (int i = 0; i < r->batch.N; i++) {
            if (r->target[i] < 0) continue;
            h.loss -= (double)t->logp[i];
            h.correct += t->best[i] == r->target[i];
            h.tokens++;
        }
        if (dump >= 0) dump_records(t, run, dump, from, &lines);
    }
    if (lines.n && !run_interrupted()) dump_append(t->dump_tokens, "dump_tokens", &lines);
    free(lines.s);
    free(x.start);
    free(x.logp);
    free(x.best);
    run_check_finite(run, "the loss of the held-out records", h.loss);
    return h;
}

static void print_held_out(const char *when, HeldOut h) {
    char perplexity[32];
    const double loss = h.loss / h.tokens, x = exp(loss);
    if (!(h.tokens > 0)) return;
    snprintf(perplexity, sizeof perplexity, x < 1e6 ? "%.2f" : "%.1e", x);
    printf("held-out, %-6s  loss %.4f  perplexity %s  token accuracy %.1f %%\n", when, loss,
           perplexity, 100 * h.correct / h.tokens);
}

/* Gives the figures to the log, and the loss to what finds the best model. */
static void watch_figures(Run *run, HeldOut h) {
    const double loss = h.loss / h.tokens;
    watch_held_out(run, "eval_loss", loss);
    watch_held_out(run, "eval_perplexity", exp(loss));
    watch_held_out(run, "eval_mean_token_accuracy", h.correct / h.tokens);
    run_held_out_loss(run, loss);
}

void task_evaluate(Task *t, Run *run, GPT2 *model) {
    if (!t->held_out.n) return;
    // of the best model the report dumps them
    const bool dump = t->dump_tokens && run_is_last(run) && !run->load_best_model_at_end;
    const HeldOut h = measure(t, run, model, dump ? run->step + 1 : -1);
    if (run_postpones(run)) return;
    t->after = h;
    t->dumped |= dump;
    t->measured_at = run->step + 1;
    watch_figures(run, t->after);
}

/* Answers the first held-out prompts, always with the likeliest token. */
static Generation answer(const Task *t, const Run *run, GPT2 *model) {
    Generation g = {0};
    if (!t->answers) return g;
    const Dataset *d = t->held_out.data;
    int *start = (int *)xcalloc((size_t)t->answers + 1, sizeof(int));
    Ints tokens = {0};
    for (int i = 0; i < t->answers; i++) {
        const int example = t->held_out.which[i], n = prompt_length(d, example);
        for (int j = 0; j < n; j++) ints_push(&tokens, d->tokens[d->start[example] + (size_t)j]);
        start[i + 1] = (int)tokens.n;
    }
    const Batch prompts = {.S = t->answers, .N = (int)tokens.n, .start = start, .tokens = tokens.v};
    const Sampler greedy = {.temperature = 0,
                            .top_p = 1,
                            .max_new_tokens = t->chat.max_new_tokens,
                            .stop_token = tokenizer_eos(run->tokenizer)};
    progress_begin("answering held-out prompts");
    gpt2_generate(model, &prompts, &greedy, &g, NULL, NULL);
    free(start);
    free(tokens.v);
    return g;
}

/* ---- figures of answers ---------------------------------------------------------------------- */

static bool is_word(unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 128;
}

/* Writes the hash of each word of a text and returns how many words there are. Two words with one
   hash are taken to be equal. */
static size_t words_of(const char *text, size_t n, uint64_t *words) {
    size_t count = 0;
    for (size_t i = 0; i < n;) {
        if (!is_word((unsigned char)text[i])) {
            i++;
            continue;
        }
        uint64_t hash = HASH_START;
        for (; i < n && is_word((unsigned char)text[i]); i++) {
            const char c = text[i], lower = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
            hash = hash_bytes(hash, &lower, 1);
        }
        words[count++] = hash;
    }
    return count;
}

double rouge_l(const char *reference, size_t n, const char *candidate, size_t m) {
    uint64_t *a = (uint64_t *)xmalloc((n + m + 2) * sizeof *a), *b = a + n + 1;
    const size_t A = words_of(reference, n, a), B = words_of(candidate, m, b);
    // row[j]: the longest subsequence common to a[0..i) and b[0..j)
    size_t *row = (size_t *)xcalloc(B + 1, sizeof *row);
    for (size_t i = 0; i < A; i++)
        for (size_t j = 0, diagonal = 0; j < B; j++) {
            const size_t above = row[j + 1];
            row[j + 1] = a[i] == b[j] ? diagonal + 1 : above > row[j] ? above : row[j];
            diagonal = above;
        }
    const double common = (double)row[B];
    free(row);
    free(a);
    // precision common/B, recall common/A; their harmonic mean is 2 common / (A + B)
    return A + B ? 2 * common / (double)(A + B) : 1;
}

/* The reference response of answer i, without the end-of-text token that ends it. */
static const int *reference(const Task *t, const Run *run, int i, int *n) {
    const Dataset *d = t->held_out.data;
    const int example = t->held_out.which[i], prompt = prompt_length(d, example);
    const int *tokens = d->tokens + d->start[example] + prompt;
    *n = (int)(d->start[example + 1] - d->start[example]) - prompt;
    if (*n > 0 && tokens[*n - 1] == tokenizer_eos(run->tokenizer)) --*n;
    return tokens;
}

/* The answer i itself, without its end-of-text token. */
static const int *given(const Generation *g, int i, int *n) {
    *n = g->start[i + 1] - g->start[i] - g->ended[i];
    return g->tokens + g->start[i];
}

static Quality quality(const Task *t, const Run *run, const Generation *g) {
    Quality q = {0};
    for (int i = 0; i < t->answers; i++) {
        int n, m;
        const int *a = reference(t, run, i, &n), *b = given(g, i, &m);
        Str x = {0}, y = {0};
        tokenizer_decode(run->tokenizer, a, (size_t)n, &x);
        tokenizer_decode(run->tokenizer, b, (size_t)m, &y);
        q.exact += (n == m && !memcmp(a, b, sizeof(int) * (size_t)n)) / (double)t->answers;
        q.rouge += rouge_l(x.s ? x.s : "", x.n, y.s ? y.s : "", y.n) / t->answers;
        free(x.s);
        free(y.s);
    }
    return q;
}

/* Makes text that of the tokens, without a NUL or half a character. */
static void decode(const Run *run, const int *tokens, int n, Str *text) {
    text->n = 0;
    str_add(text, "", 0);
    tokenizer_decode(run->tokenizer, tokens, (size_t)n, text);
    text_repair(text, 0);
}

/* Keeps what the model says before training. */
static void answer_before(Task *t, const Run *run, GPT2 *model) {
    Generation g = answer(t, run, model);
    t->quality_before = quality(t, run, &g);
    for (int i = 0; i < min_int(t->answers, SHOWN_TEXTS); i++) {
        int n;
        const int *tokens = given(&g, i, &n);
        decode(run, tokens, n, &t->shown_before[i]);
    }
    generation_free(&g);
}

void task_begin(Task *t, Run *run, GPT2 *model) {
    const GPT2Limits l = task_limits(t, run);
    const size_t N = (size_t)l.tokens;
    t->logp = (float *)xmalloc(sizeof(float) * N);
    t->entropy = (float *)xmalloc(sizeof(float) * N);
    t->dlogp = (float *)xmalloc(sizeof(float) * N);
    t->best = (int *)xmalloc(sizeof(int) * N);
    t->which = (int *)xmalloc(sizeof(int) * (size_t)t->train.n);
    t->size = (int *)xmalloc(sizeof(int) * (size_t)t->train.n);
    const bool dump = dump_begin(run, t->dump_tokens, "dump_tokens");
    const bool resumed = run_checkpoint_dir(run) != NULL;
    t->dumped = run_completed(run);
    if (!resumed || dump) t->after = measure(t, run, model, dump ? run->step : -1);
    if (!resumed) {
        t->before = t->after;
        if (t->held_out.n) watch_figures(run, t->before);
    }
    print_held_out("before", t->before);
    if (!resumed) answer_before(t, run, model);
}

static void print_text(const char *label, const Str *text) {
    printf("  %-9s | ", label);
    print_indented(text->s, text->n);
    putchar('\n');
}

static void print_tokens(const Run *run, const char *label, const int *tokens, int n) {
    Str text = {0};
    decode(run, tokens, n, &text);
    print_text(label, &text);
    free(text.s);
}

static void print_answer(const Task *t, const Run *run, int i, const Generation *after) {
    const Dataset *d = t->held_out.data;
    const int example = t->held_out.which[i];
    int n;
    printf("held-out example, line %d\n", d->line[example]);
    print_tokens(run, "prompt", d->tokens + d->start[example], prompt_length(d, example));
    const int *tokens = reference(t, run, i, &n);
    print_tokens(run, "reference", tokens, n);
    print_text("before", &t->shown_before[i]);
    tokens = given(after, i, &n);
    print_tokens(run, "after", tokens, n);
}

/* Says what the figures mean. A loss that rose is run_finish's subject. */
static void conclude(const Task *t) {
    const HeldOut *b = &t->before, *a = &t->after;
    const double before = b->loss / b->tokens, after = a->loss / a->tokens;
    const double was = 100 * b->correct / b->tokens, is = 100 * a->correct / a->tokens;
    const int rose = compare_printed(is, was, 1);
    if (isnan(after) || compare_printed(after, before, 4) >= 0) return;
    printf("The held-out loss fell from %.4f to %.4f", before, after);
    if (rose > 0)
        printf(
            ": in records that it was not trained on, the model now predicts %.1f %% of the scored "
            "tokens, and %.1f %% before training.\n",
            is, was);
    else if (rose < 0)
        printf(
            ", but the accuracy did not rise: the model now predicts %.1f %% of the scored tokens, "
            "and %.1f %% before training.\n",
            is, was);
    else
        printf(", but the accuracy stayed at %.1f %% of the scored tokens.\n", is);
}

void task_report(Task *t, Run *run, GPT2 *model) {
    if (!run_completed(run) || run->total_steps == 0) return;
    const bool dump = t->dump_tokens && !t->dumped;
    if (t->measured_at != run->step || run_has_best(run) || dump)
        t->after = measure(t, run, model, dump ? run->step : -1);
    Generation after = answer(t, run, model);
    for (int i = 0; i < min_int(t->answers, SHOWN_TEXTS); i++) print_answer(t, run, i, &after);
    print_held_out("before", t->before);
    print_held_out("after", t->after);
    if (t->answers) {
        const Quality a = t->quality_before, b = quality(t, run, &after);
        printf("held-out answers (%d)  exact match %.1f %% -> %.1f %%  ROUGE-L %.3f -> %.3f\n",
               t->answers, 100 * a.exact, 100 * b.exact, a.rouge, b.rouge);
    }
    conclude(t);
    generation_free(&after);
}

void task_free(Task *t) {
    if (t->held_out.data != t->train.data) {
        dataset_free(t->held_out.data);
        free(t->held_out.data);
        free(t->held_out.which);
        free(t->train.which);
    } else {
        free(t->held_out.which);  // the training half follows in the same array
    }
    if (t->train.data) dataset_free(t->train.data);
    free(t->train.data);
    for (int i = 0; i < SHOWN_TEXTS; i++) free(t->shown_before[i].s);
    ragged_free(&t->ragged);
    free(t->form);
    free(t->logp);
    free(t->entropy);
    free(t->dlogp);
    free(t->best);
    free(t->which);
    free(t->size);
}
