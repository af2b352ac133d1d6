/*
 * choices.c - a model's replies, labelled pairs, and multiple choice: see choices.h.
 */
#include "rl/choices.h"

#include "model/generate.h"
#include "parts.h"
#include "progress.h"
#include "ranks.h"
#include "text/json.h"
#include "text/utf8.h"

/* ---- replies --------------------------------------------------------------------------------- */

int text_tokens(const Tokenizer *t, const char *text) {
    Ints tokens = {0};
    tokenizer_encode(t, text, strlen(text), true, &tokens);
    free(tokens.v);
    return (int)tokens.n;
}

static bool speaker_fits(void *context, const char *prompt) {
    const Speaker *s = (const Speaker *)context;
    const int n = text_tokens(s->tokenizer, prompt);
    return n > 0 && n <= s->positions &&
           s->max_new_tokens <= s->positions + 1 - n;  // the last token is drawn, not fed
}

static void speaker_say(void *context, int n, char *const *prompt, const uint32_t *id,
                        uint32_t turn, float temperature, char **text) {
    const Speaker *s = (const Speaker *)context;
    int *start = (int *)xcalloc((size_t)n + 1, sizeof *start);
    Ints tokens = {0};
    for (int i = 0; i < n; i++) {
        tokenizer_encode(s->tokenizer, prompt[i], strlen(prompt[i]), true, &tokens);
        start[i + 1] = (int)tokens.n;
    }
    Batch batch = {.S = n, .N = (int)tokens.n, .start = start, .tokens = tokens.v, .id = id};
    Sampler sampler = {.temperature = temperature,
                       .top_p = 1,
                       .max_new_tokens = s->max_new_tokens,
                       .stop_token = tokenizer_eos(s->tokenizer),
                       .seed = s->seed,
                       .step = turn,
                       .stopped = s->stopped};
    Generation g;
    gpt2_generate(s->model, &batch, &sampler, &g, NULL, NULL);
    for (int i = 0; i < n; i++) {
        Str out = {0};
        tokenizer_decode(s->tokenizer, g.tokens + g.start[i],
                         (size_t)(g.start[i + 1] - g.start[i] - g.ended[i]), &out);
        text_repair(&out, 0);
        text[i] = out.s;
    }
    generation_free(&g);
    free(start);
    free(tokens.v);
}

Voice speaker_voice(Speaker *s) { return (Voice){speaker_say, speaker_fits, s}; }

/* ---- labelled pairs -------------------------------------------------------------------------- */

int labelled_read(const char *path, const char *template, bool strict, Labelled **out) {
    Error e;
    Records r;
    if (pairs_read(path, template, strict, &r, &e)) die_usage("%s", e.text);
    say_skipped(path, &r.counts, "pair");
    say_unused(path, r.unused);
    printf("%s: %d pair%s\n", path, r.n, plural(r.n));
    *out = (Labelled *)xcalloc((size_t)r.n, sizeof **out);
    for (int i = 0; i < r.n; i++) {
        const Record *x = &r.v[i];
        Str text[3] = {{0}};  // prompt (all spans before the last two), chosen, rejected
        for (int k = 0; k < x->n; k++)
            str_add(&text[k < x->n - 2 ? 0 : k - x->n + 3], x->spans[k].text, x->spans[k].n);
        for (int k = 0; k < 3; k++) text_repair(&text[k], 0);
        (*out)[i] = (Labelled){
            .prompt = text[0].s, .a = text[1].s, .b = text[2].s, .p = (double)x->p_chosen};
    }
    const int n = r.n;
    records_free(&r);
    return n;
}

void labelled_free(Labelled *pairs, int n) {
    for (int i = 0; i < n; i++) {
        free(pairs[i].prompt);
        free(pairs[i].a);
        free(pairs[i].b);
    }
    free(pairs);
}

void labelled_take(Labelled *pairs, int n, const char *path, const char *template, bool strict) {
    Labelled *known;
    const int K = labelled_read(path, template, strict, &known);
    int taken = 0, at = 0;
    // the search begins after the last match, so a file in the order of pairs is read once
    for (int i = 0; i < n; i++)
        for (int k = 0; k < K && !pairs[i].given; k++) {
            const Labelled *x = &known[(at + k) % K];
            const bool same = !strcmp(x->a, pairs[i].a) && !strcmp(x->b, pairs[i].b),
                       turned = !strcmp(x->a, pairs[i].b) && !strcmp(x->b, pairs[i].a);
            if (!(same || turned) || strcmp(x->prompt, pairs[i].prompt)) continue;
            pairs[i].p = same ? x->p : 1 - x->p;
            pairs[i].given = true;
            at = (at + k + 1) % K;
            taken++;
        }
    printf("labels from %s for %d of %d pair%s\n", path, taken, n, plural(n));
    labelled_free(known, K);
}

static void add_text(Str *line, const char *before, const char *text) {
    str_printf(line, "%s", before);
    json_add_string(line, text, strlen(text));
}

int labelled_write(const char *path, const Labelled *pairs, int n, Error *e) {
    NewFile file;
    if (rank()) return 0;
    if (newfile_open_named(&file, path, e)) return -1;
    for (int i = 0; i < n; i++) {
        const Labelled *x = &pairs[i];
        const bool a = x->p >= 0.5;
        Str line = {0};
        add_text(&line, "{\"prompt\": ", x->prompt);
        add_text(&line, ", \"chosen\": ", a ? x->a : x->b);
        add_text(&line, ", \"rejected\": ", a ? x->b : x->a);
        str_printf(&line, ", \"p_chosen\": %.9g",
                   (double)(float)(a ? x->p : 1 - x->p));  // 9 digits read back as the same float
        if (x->asked)
            str_printf(&line, ", \"p_chosen_first\": %.9g, \"p_chosen_second\": %.9g",
                       a ? x->p_ab : x->p_ba, 1 - (a ? x->p_ba : x->p_ab));
        str_add(&line, "}\n", 2);
        fwrite(line.s, 1, line.n, file.f);
        free(line.s);
    }
    return newfile_close(&file, true, e);
}

/* ---- multiple choice ------------------------------------------------------------------------- */

/* How many tokens all options of a question have together. *longest: of the longest option. */
static int option_tokens(const Question *q, const Tokenizer *t, int *longest) {
    int all = 0;
    *longest = 0;
    for (int o = 0; o < q->n; o++) {
        const int n = text_tokens(t, q->option[o]);
        all += n;
        *longest = max_int(*longest, n);
    }
    return all;
}

void chooser_ceilings(GPT2Limits *limits, const Questions *q, const Tokenizer *t, int positions) {
    for (int i = 0, longest; i < q->n; i++) {
        const int all = option_tokens(&q->v[i], t, &longest);
        limits->tokens = max_int(limits->tokens, positions + all);
        limits->scored = max_int(limits->scored, all);
        limits->sequences = max_int(limits->sequences, 1 + q->v[i].n);
    }
}

/* A batch while it is collected. The log-probability of sequence s is added to *sum[s]; NULL: it is
   a prompt. */
typedef struct {
    Ints start, tokens, target, parent;
    double **sum;
    int scored;
} Gathering;

static void add_sequence(Gathering *g, int parent, double *sum) {
    ints_push(&g->start, (int)g->tokens.n);
    g->sum[g->parent.n] = sum;
    ints_push(&g->parent, parent);
}

static void add_row(Gathering *g, int token, int target) {
    ints_push(&g->tokens, token);
    ints_push(&g->target, target);
}

/* Scores the collected batch and empties it. */
static void score(const Chooser *j, Gathering *g) {
    const int S = (int)g->parent.n, N = (int)g->tokens.n;
    if (!S) return;
    ints_push(&g->start, N);
    Batch batch = {
        .S = S, .N = N, .start = g->start.v, .tokens = g->tokens.v, .parent = g->parent.v};
    float *logp = (float *)xmalloc(sizeof(float) * (size_t)N);
    gpt2_forward(j->model, &batch, NULL);
    gpt2_logprob(j->model, g->target.v, 1, logp, NULL, NULL);
    for (int s = 0; s < S; s++) {
        for (int i = g->start.v[s]; g->sum[s] && i < g->start.v[s + 1]; i++)
            *g->sum[s] += (double)logp[i];
        if (g->sum[s] && !isfinite(*g->sum[s]))
            die("the model's output is not finite; its weights are damaged or training has "
                "diverged");
    }
    free(logp);
    g->start.n = g->tokens.n = g->target.n = g->parent.n = 0;
    g->scored = 0;
}

/* Each process has the log-probabilities of its questions: all get all of them. */
static void collect(const Questions *q, double **logp) {
    int *start = (int *)xcalloc((size_t)q->n + 1, sizeof(int));
    for (int k = 0; k < q->n; k++) start[k + 1] = start[k] + q->v[k].n;
    double *all = (double *)xcalloc((size_t)start[q->n], sizeof *all);
    for (int k = part_first(q->n); k < part_end(q->n); k++)
        memcpy(all + start[k], logp[k], sizeof *all * (size_t)q->v[k].n);
    parts_collect(all, sizeof *all, q->n, start);
    for (int k = 0; k < q->n; k++) memcpy(logp[k], all + start[k], sizeof *all * (size_t)q->v[k].n);
    free(all);
    free(start);
}

void chooser_ask(Chooser *j, const Questions *q, double **logp) {
    double cut = 0;
    Gathering g = {.sum = (double **)xmalloc(sizeof(double *) * (size_t)j->limits.sequences)};
    Ints prompt = {0}, option = {0};
    progress_begin("asking questions");
    for (int k = part_first(q->n); k < part_end(q->n); k++) {
        progress(k, q->n);
        const Question *x = &q->v[k];
        int longest;
        const int all = option_tokens(x, j->tokenizer, &longest);
        prompt.n = 0;
        tokenizer_encode(j->tokenizer, x->prompt, strlen(x->prompt), true, &prompt);
        // cut the beginning of a prompt that does not fit
        int from = max_int(0, (int)prompt.n + longest - 1 - j->positions);
        cut += from > 0;
        if (from >= (int)prompt.n || !prompt.n)
            die_usage("line %d: an option of %d tokens leaves no room for its question in %d",
                      x->line, longest, j->positions);
        // The prompt's last token is the first row of each option. The tokens before it are shared.
        const int shared = (int)prompt.n - 1 - from;
        if ((int)g.tokens.n + shared + all > j->limits.tokens ||
            (int)g.parent.n + 1 + x->n > j->limits.sequences || g.scored + all > j->limits.scored)
            score(j, &g);
        const int parent = shared ? (int)g.parent.n : -1;
        if (shared) add_sequence(&g, -1, NULL);
        for (int i = 0; i < shared; i++) add_row(&g, prompt.v[from + i], -1);
        for (int o = 0; o < x->n; o++) {
            option.n = 0;
            tokenizer_encode(j->tokenizer, x->option[o], strlen(x->option[o]), true, &option);
            logp[k][o] = 0;
            add_sequence(&g, parent, &logp[k][o]);
            for (size_t i = 0; i < option.n; i++)
                add_row(&g, i ? option.v[i - 1] : prompt.v[prompt.n - 1], option.v[i]);
        }
        g.scored += all;
    }
    score(j, &g);
    collect(q, logp);
    ranks_add(&cut, 1);
    j->cut += (long)cut;
    free(g.start.v);
    free(g.tokens.v);
    free(g.target.v);
    free(g.parent.v);
    free(g.sum);
    free(prompt.v);
    free(option.v);
}

void among_options(double *x, int n) {
    double top = x[0], sum = 0;
    for (int o = 1; o < n; o++) top = fmax(top, x[o]);
    for (int o = 0; o < n; o++) sum += exp(x[o] - top);
    for (int o = 0; o < n; o++) x[o] -= top + log(sum);
}

static int largest(const double *x, int n) {
    int best = 0;
    for (int o = 1; o < n; o++)
        if (x[o] > x[best]) best = o;
    return best;
}

/* One occurrence of an option's text. */
typedef struct {
    const char *text;
    int question;
    double *x;
} Occurrence;

static int by_text(const void *p, const void *q) {
    const Occurrence *a = (const Occurrence *)p, *b = (const Occurrence *)q;
    const int order = strcmp(a->text, b->text);
    return order ? order : a->question - b->question;  // a fixed order, so a fixed sum
}

/* Subtracts from each *x the mean of the other occurrences of its text. */
static void debias(Occurrence *v, int n) {
    qsort(v, (size_t)n, sizeof *v, by_text);
    for (int from = 0, to; from < n; from = to) {
        double sum = 0;
        for (to = from; to < n && !strcmp(v[to].text, v[from].text); to++) sum += *v[to].x;
        for (int k = from; k < to && to - from > 1; k++)
            *v[k].x -= (sum - *v[k].x) / (to - from - 1);
    }
}

Choices chooser_choose(const Questions *q, double **logp) {
    Choices c = {0};
    int n = 0;
    for (int i = 0; i < q->n; i++) n += q->v[i].n;
    Occurrence *all = (Occurrence *)xmalloc(sizeof *all * (size_t)n);
    n = 0;
    for (int i = 0; i < q->n; i++) {
        const Question *x = &q->v[i];
        int first = 0;
        among_options(logp[i], x->n);
        for (int o = 0; o < x->n; o++) {
            all[n++] = (Occurrence){x->option[o], i, &logp[i][o]};
            if (strcmp(x->option[o], x->option[first]) < 0) first = o;
        }
        c.raw += largest(logp[i], x->n) < x->corrects;
        c.first += first < x->corrects;
    }
    debias(all, n);
    for (int i = 0; i < q->n; i++) c.debiased += largest(logp[i], q->v[i].n) < q->v[i].corrects;
    free(all);
    return (Choices){c.raw / q->n, c.debiased / q->n, c.first / q->n};
}

void choices_print(const Choices *c, int n, const char *when) {
    printf(
        "multiple choice, %-6s  a right one is preferred in %.1f %% of %d questions, debiased in "
        "%.1f %%; always the first option: %.1f %%\n",
        when, 100 * c->raw, n, 100 * c->debiased, 100 * c->first);
}

Choices chooser_report(Chooser *j, const Questions *q, const char *when) {
    double **logp = (double **)xmalloc(sizeof *logp * (size_t)q->n);
    for (int i = 0; i < q->n; i++) logp[i] = (double *)xcalloc((size_t)q->v[i].n, sizeof **logp);
    j->cut = 0;
    chooser_ask(j, q, logp);
    const Choices c = chooser_choose(q, logp);
    for (int i = 0; i < q->n; i++) free(logp[i]);
    free(logp);
    choices_print(&c, q->n, when);
    if (j->cut)
        printf("cut the beginning of %ld question%s, longer than --max_length\n", j->cut,
               plural(j->cut));
    return c;
}
