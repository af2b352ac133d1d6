/*
 * task.c - the examples of a supervised task, and the figures on those held out: see task.h.
 */
#include "run/task.h"

#include "text/records.h"
#include "text/template.h"

/* ---- examples -------------------------------------------------------------------------------- */

Task task_defaults(void) {
    return (Task){.template = TEMPLATE_DEFAULT,
                  .max_length = 512,
                  .validation_split_percentage = 5,
                  .eval_samples = 8,
                  .talk = talk_defaults()};
}

/* Reads dir's tokenizer, which must fit the model. */
static void read_tokenizer(Task *t, const char *dir, const GPT2Config *config) {
    Error e;
    if (!(t->tokenizer = tokenizer_load(dir, &e))) die_usage("%s", e.text);
    if (tokenizer_size(t->tokenizer) > config->vocab_size)
        die_usage("%s: the tokenizer has %d tokens and the model %d; they do not belong together",
                  dir, tokenizer_size(t->tokenizer), config->vocab_size);
}

/* Reads a file of records. template: what they are put into, to be freed, unless NULL. */
static Dataset *read_data(const Task *t, const char *path, char **template) {
    Error e;
    Records records;
    if (records_read(path, t->template, t->strict, &records, &e)) die_usage("%s", e.text);
    say_skipped(path, records.skipped, "record", &records.first_skipped);
    Dataset *d = (Dataset *)xcalloc(1, sizeof *d);
    dataset_build(d, &records, t->tokenizer, t->max_length, t->train_on_prompt);
    printf("%s: %d records of kind %s; %ld tokens are scored, the longest example has %d\n", path,
           records.n, records.kind, d->scored_tokens, d->longest);
    if (d->prompts_cut + d->responses_cut)
        printf(
            "%s: longer than --max_length %d: %ld prompts lost their beginning, %ld responses "
            "their end\n",
            path, t->max_length, d->prompts_cut, d->responses_cut);
    if (d->dropped) printf("%s: dropped %ld records with no token to score\n", path, d->dropped);
    if (!d->n) die_usage("%s: no example has a token to score", path);
    if (template) {
        *template = records.template;
        records.template = NULL;
    }
    records_free(&records);
    return d;
}

void task_load(Task *t, Run *run, const GPT2Config *config) {
    if (t->max_length > config->n_positions + 1) {  // an example of n tokens feeds the model n-1
        printf("--max_length %d is more than the model's %d positions can learn from; using %d\n",
               t->max_length, config->n_positions, config->n_positions + 1);
        t->max_length = config->n_positions + 1;
    }
    read_tokenizer(t, run->model, config);
    Dataset *data = read_data(t, run->data, &t->form);
    run_template(run, t->form);
    int share = run->eval ? 0 : (int)((long)data->n * t->validation_split_percentage / 100);
    int *order = (int *)xmalloc(sizeof(int) * (size_t)data->n);
    random_permutation(order, data->n, (uint64_t)run->seed, RANDOM_SPLIT, 0);
    t->held_out = (Examples){data, share, order};
    t->train = (Examples){data, data->n - share, order + share};
    if (run->eval) {
        t->held_out.data = read_data(t, run->eval, NULL);
        t->held_out.n = t->held_out.data->n;
        t->held_out.which = (int *)xmalloc(sizeof(int) * (size_t)t->held_out.n);
        for (int i = 0; i < t->held_out.n; i++) t->held_out.which[i] = i;
    }
    t->answers = min_int(t->eval_samples, t->held_out.n);
    run_fingerprint(run, "data", run->data);
    run_fingerprint(run, "eval", run->eval);
    run_plan_steps(run, t->train.n);
    printf("%d examples to train on, %d held out; %d steps of %d x %d examples\n", t->train.n,
           t->held_out.n, run->total_steps, run->gradient_accumulation_steps,
           run->per_device_train_batch_size);
}

void task_show(const Task *t, int examples) {
    const Dataset *d = t->train.data;
    for (int k = 0; k < min_int(examples, t->train.n); k++) {
        int i = t->train.which[k];
        Str text = {0}, token = {0};
        bool scored = false;  // as far as the text says
        for (size_t j = d->start[i]; j < d->start[i + 1]; j++) {
            token.n = 0;
            tokenizer_decode(t->tokenizer, d->tokens + j, 1, &token);
            bool within =
                token.n &&
                (unsigned char)*token.s >> 6 ==
                    2;  // a character that several tokens share: its mark waits for the end
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
}

/* Where an example's prompt ends: at its first scored token; of plain text, in the middle. */
static int prompt_length(const Dataset *d, int i) {
    int n = (int)(d->start[i + 1] - d->start[i]), end = 1;
    while (end < n && !d->scored[d->start[i] + (size_t)end]) end++;
    return end > 1 ? end : (n + 1) / 2;
}

GPT2Limits task_limits(const Task *t, const Run *run) {
    GPT2Limits limits = {.sequences = run->per_device_train_batch_size,
                         .train = run->total_steps > 0};
    int scored;
    limits.tokens =
        ragged_largest(t->train.data, t->train.which, t->train.n, limits.sequences, &limits.scored);
    limits.tokens =
        max_int(limits.tokens, ragged_largest(t->held_out.data, t->held_out.which, t->held_out.n,
                                              limits.sequences, &scored));
    limits.scored = max_int(limits.scored, scored);
    limits.slots = min_int(t->answers, 16);
    limits.tokens = max_int(limits.tokens, limits.slots);
    for (int i = 0; i < t->answers; i++)
        limits.positions =
            max_int(limits.positions,
                    prompt_length(t->held_out.data, t->held_out.which[i]) + t->talk.max_new_tokens);
    return limits;
}

void task_reserve(Task *t, const GPT2Limits *limits) {
    size_t N = (size_t)limits->tokens;
    t->y = (PerToken){xmalloc(sizeof(float) * N), xmalloc(sizeof(float) * N),
                      xmalloc(sizeof(float) * N), xmalloc(sizeof(int) * N)};
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
    tokenizer_free(t->tokenizer);
    ragged_free(&t->batch);
    free(t->form);
    free(t->y.logp);
    free(t->y.entropy);
    free(t->y.dlogp);
    free(t->y.best);
}

/* ---- held-out figures ------------------------------------------------------------------------ */

void task_add(const Task *t, Totals *totals) {
    for (int i = 0; i < t->batch.batch.N; i++)
        if (t->batch.target[i] >= 0) {
            totals->loss -= (double)t->y.logp[i];
            totals->entropy += (double)t->y.entropy[i];
            totals->correct += t->y.best[i] == t->batch.target[i];
            totals->tokens++;
        }
}

Totals task_evaluate(Task *t, GPT2 *model, int batch_size) {
    Totals totals = {0};
    for (int i = 0; i < t->held_out.n; i += batch_size) {
        ragged_fill(&t->batch, t->held_out.data, t->held_out.which + i,
                    min_int(batch_size, t->held_out.n - i));
        gpt2_forward(model, &t->batch.batch, NULL);
        gpt2_logprob(model, t->batch.target, 1, t->y.logp, t->y.entropy, t->y.best);
        task_add(t, &totals);
    }
    return totals;
}

Generation task_answer(const Task *t, GPT2 *model) {
    Generation g = {0};
    if (!t->answers) return g;
    int *start = (int *)xcalloc((size_t)t->answers + 1, sizeof(int));
    Ints tokens = {0};
    for (int i = 0; i < t->answers; i++) {
        const Dataset *d = t->held_out.data;
        int example = t->held_out.which[i], n = prompt_length(d, example);
        for (int j = 0; j < n; j++) ints_push(&tokens, d->tokens[d->start[example] + (size_t)j]);
        start[i + 1] = (int)tokens.n;
    }
    Batch prompts = {t->answers, (int)tokens.n, start, tokens.v, NULL, NULL};
    Sampler greedy = {.temperature = 0,
                      .top_p = 1,
                      .max_new_tokens = t->talk.max_new_tokens,
                      .stop_token = tokenizer_eos(t->tokenizer)};
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
    size_t A = words_of(reference, n, a), B = words_of(candidate, m, b);
    size_t *row = (size_t *)xcalloc(
        B + 1, sizeof *row);  // row[j]: the longest subsequence common to a[0..i) and b[0..j)
    for (size_t i = 0; i < A; i++)
        for (size_t j = 0, diagonal = 0; j < B; j++) {
            size_t above = row[j + 1];
            row[j + 1] = a[i] == b[j] ? diagonal + 1 : above > row[j] ? above : row[j];
            diagonal = above;
        }
    double common = (double)row[B];
    free(row);
    free(a);
    // precision common/B, recall common/A; their harmonic mean is 2 common / (A + B)
    return A + B ? 2 * common / (double)(A + B) : 1;
}

/* The reference response of answer i, without the end-of-text token that ends it. */
static const int *reference(const Task *t, int i, int *n) {
    const Dataset *d = t->held_out.data;
    int example = t->held_out.which[i], prompt = prompt_length(d, example);
    *n = (int)(d->start[example + 1] - d->start[example]) - prompt;
    const int *tokens = d->tokens + d->start[example] + prompt;
    if (*n > 0 && tokens[*n - 1] == tokenizer_eos(t->tokenizer)) --*n;
    return tokens;
}

static const int *given(const Generation *g, int i, int *n) {
    *n = g->start[i + 1] - g->start[i] - g->ended[i];
    return g->tokens + g->start[i];
}

Quality task_quality(const Task *t, const Generation *g) {
    Quality q = {0};
    for (int i = 0; i < t->answers; i++) {
        int n, m;
        const int *a = reference(t, i, &n), *b = given(g, i, &m);
        Str x = {0}, y = {0};
        tokenizer_decode(t->tokenizer, a, (size_t)n, &x);
        tokenizer_decode(t->tokenizer, b, (size_t)m, &y);
        q.exact += (n == m && !memcmp(a, b, sizeof(int) * (size_t)n)) / (double)t->answers;
        q.rouge += rouge_l(x.s ? x.s : "", x.n, y.s ? y.s : "", y.n) / t->answers;
        free(x.s);
        free(y.s);
    }
    return q;
}

static void print_tokens(const Task *t, const char *label, const int *tokens, int n) {
    Str text = {0};
    tokenizer_decode(t->tokenizer, tokens, (size_t)n, &text);
    printf("  %-9s | ", label);
    for (size_t i = 0; i < text.n; i++)
        if (text.s[i] == '\n')
            printf(i + 1 < text.n ? "\n            | " : "");
        else
            putchar(text.s[i]);
    putchar('\n');
    free(text.s);
}

void task_print_totals(const char *when, Totals t) {
    if (t.tokens > 0)
        printf("held-out, %-6s  loss %.4f  perplexity %.2f  token accuracy %.1f %%\n", when,
               t.loss / t.tokens, exp(t.loss / t.tokens), 100 * t.correct / t.tokens);
}

void task_report(const Task *t, const Generation *was, const Generation *is, Totals before,
                 Totals after) {
    for (int i = 0; i < t->answers && i < 3; i++) {
        const Dataset *d = t->held_out.data;
        int example = t->held_out.which[i], n;
        printf("held-out example, line %d\n", d->line[example]);
        print_tokens(t, "prompt", d->tokens + d->start[example], prompt_length(d, example));
        const int *tokens = reference(t, i, &n);
        print_tokens(t, "reference", tokens, n);
        tokens = given(was, i, &n);
        print_tokens(t, "before", tokens, n);
        tokens = given(is, i, &n);
        print_tokens(t, "after", tokens, n);
    }
    task_print_totals("before", before);
    task_print_totals("after", after);
    if (!t->answers) return;
    Quality a = task_quality(t, was), b = task_quality(t, is);
    printf("held-out answers (%d)  exact match %.1f %% -> %.1f %%  ROUGE-L %.3f -> %.3f\n",
           t->answers, 100 * a.exact, 100 * b.exact, a.rouge, b.rouge);
}
