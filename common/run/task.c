/*
 * task.c - the examples of a supervised task, and the figures on those held out. See task.h.
 */
#include "run/task.h"

#include "text/records.h"

/* ---- examples -------------------------------------------------------------------------------- */

/* Reads a file of records. form: gets the template they are put into, to be freed, unless NULL. */
static Dataset *read_data(const Task *t, const Run *run, const char *path, char **form) {
    Error e;
    Records records;
    if (records_read(path, t->chat.template, t->strict, &records, &e)) die_usage("%s", e.text);
    say_skipped(path, records.skipped, "record", &records.first_skipped);
    Dataset *d = (Dataset *)xcalloc(1, sizeof *d);
    dataset_build(d, &records, run->tokenizer, t->max_length, t->train_on_prompt);
    printf("%s: %d records of kind %s; %ld tokens are scored, the longest example has %d\n", path,
           records.n, records.kind, d->scored_tokens, d->longest);
    if (d->prompts_cut + d->responses_cut)
        printf(
            "%s: longer than --max_length %d: %ld prompts lost their beginning, %ld responses "
            "their end\n",
            path, t->max_length, d->prompts_cut, d->responses_cut);
    if (d->dropped) printf("%s: dropped %ld records with no token to score\n", path, d->dropped);
    if (!d->n) die_usage("%s: no example has a token to score", path);
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
    printf("--- line %d: %zu tokens, scored between « and »\n%s%s\n", d->line[i],
           d->start[i + 1] - d->start[i], text.s, scored ? "»" : "");
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

void task_load(Task *t, Run *run) {
    const int most = run->config.n_positions + 1;  // an example of n tokens feeds the model n-1
    if (t->max_length > most) {
        printf("--max_length %d is more than the model's %d positions can learn from; using %d\n",
               t->max_length, run->config.n_positions, most);
        t->max_length = most;
    }
    read_examples(t, run);
    run_template(run, t->form);
    t->answers = min_int(t->eval_samples, t->held_out.n);
    t->noise.seed = (uint64_t)run->seed;
    run_dropout(&t->noise, &run->config, t->dropout);
    run_fingerprint(run, "data", run->data);
    run_fingerprint(run, "eval", run->eval);
    t->lowest = INFINITY;
    run_keep(run, "lowest", &t->lowest);
    const int B = run->per_device_train_batch_size, accumulation = run->gradient_accumulation_steps;
    run_plan(run, t->train.n, B * accumulation, 0);
    printf("%d examples to train on, %d held out; %d steps of %d x %d examples\n", t->train.n,
           t->held_out.n, run->total_steps, accumulation, B);
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
    }
    t->noise.step = (uint32_t)run->step;
    t->tokens = 0;
    t->drawn = n;
    return n;
}

const Batch *task_batch(Task *t, int from, int B) {
    ragged_fill(&t->ragged, t->train.data, t->which + from, min_int(B, t->drawn - from));
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

static HeldOut measure(Task *t, const Run *run, GPT2 *model) {
    HeldOut h = {0};
    const int B = run->per_device_train_batch_size;  // which changes no bit of a token's score
    for (int from = 0; from < t->held_out.n; from += B) {
        RaggedBatch *r = &t->ragged;
        ragged_fill(r, t->held_out.data, t->held_out.which + from,
                    min_int(B, t->held_out.n - from));
        gpt2_forward(model, &r->batch, NULL);
        gpt2_logprob(model, r->target, 1, t->logp, NULL, t->best);
        for (int i = 0; i < r->batch.N; i++) {
            if (r->target[i] < 0) continue;
            h.loss -= (double)t->logp[i];
            h.correct += t->best[i] == r->target[i];
            h.tokens++;
        }
    }
    return h;
}

static void print_held_out(const char *when, HeldOut h) {
    if (h.tokens > 0)
        printf("held-out, %-6s  loss %.4f  perplexity %.2f  token accuracy %.1f %%\n", when,
               h.loss / h.tokens, exp(h.loss / h.tokens), 100 * h.correct / h.tokens);
}

bool task_evaluate(Task *t, Run *run, GPT2 *model) {
    if (!t->held_out.n) return false;
    t->after = measure(t, run, model);
    const double loss = t->after.loss / t->after.tokens;
    watch_held_out(run, "eval_loss", loss);
    watch_held_out(run, "eval_perplexity", exp(loss));
    watch_held_out(run, "eval_mean_token_accuracy", t->after.correct / t->after.tokens);
    if (!(loss < t->lowest)) return false;
    t->lowest = loss;
    return true;
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
    gpt2_generate(model, &prompts, &greedy, &g, NULL, NULL);
    free(start);
    free(tokens.v);
    return g;
}

void task_begin(Task *t, Run *run, GPT2 *model) {
    const GPT2Limits l = task_limits(t, run);
    const size_t N = (size_t)l.tokens, B = (size_t)run->per_device_train_batch_size;
    t->logp = (float *)xmalloc(sizeof(float) * N);
    t->entropy = (float *)xmalloc(sizeof(float) * N);
    t->dlogp = (float *)xmalloc(sizeof(float) * N);
    t->best = (int *)xmalloc(sizeof(int) * N);
    t->which = (int *)xmalloc(sizeof(int) * B * (size_t)run->gradient_accumulation_steps);
    t->before = t->after = measure(t, run, model);
    print_held_out("before", t->before);
    t->answered = answer(t, run, model);
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

/* Of the answers: the share that equals the reference token for token, and the mean ROUGE-L. */
typedef struct {
    double exact, rouge;
} Quality;

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

static void print_tokens(const Run *run, const char *label, const int *tokens, int n) {
    Str text = {0};
    tokenizer_decode(run->tokenizer, tokens, (size_t)n, &text);
    printf("  %-9s | ", label);
    print_indented(text.s, text.n);
    putchar('\n');
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
    tokens = given(&t->answered, i, &n);
    print_tokens(run, "before", tokens, n);
    tokens = given(after, i, &n);
    print_tokens(run, "after", tokens, n);
}

void task_report(Task *t, Run *run, GPT2 *model) {
    if (!run_completed(run) || run->total_steps == 0) return;
    Generation after = answer(t, run, model);
    for (int i = 0; i < min_int(t->answers, 3); i++) print_answer(t, run, i, &after);
    print_held_out("before", t->before);
    print_held_out("after", t->after);
    if (t->answers) {
        const Quality a = quality(t, run, &t->answered), b = quality(t, run, &after);
        printf("held-out answers (%d)  exact match %.1f %% -> %.1f %%  ROUGE-L %.3f -> %.3f\n",
               t->answers, 100 * a.exact, 100 * b.exact, a.rouge, b.rouge);
    }
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
    generation_free(&t->answered);
    ragged_free(&t->ragged);
    free(t->form);
    free(t->logp);
    free(t->entropy);
    free(t->dlogp);
    free(t->best);
    free(t->which);
}
