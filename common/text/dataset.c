/*
 * dataset.c - records and pairs as tokens, and ragged batches of them: see dataset.h.
 */
#include "text/dataset.h"

#include "model/memory.h"

#include <limits.h>

/* ---- Dataset --------------------------------------------------------------------------------- */

/* The tokens of one record before any cut. response[i]: token i belongs to a scored span. */
typedef struct {
    Ints tokens, response;
} Example;

/* Tokenises each span by itself, so no token belongs to both the prompt and the response. */
static void tokenise(const Record *r, const Tokenizer *t, Example *x) {
    const int eos = tokenizer_eos(t);
    x->tokens.n = x->response.n = 0;
    for (int s = 0; s < r->n; s++) {
        const Span *span = &r->spans[s];
        size_t before = x->tokens.n;
        tokenizer_encode(t, span->text, span->n, true, &x->tokens);
        // a response that ends with <|endoftext|> in the data gets no second one
        bool ended = x->tokens.n > before && x->tokens.v[x->tokens.n - 1] == eos;
        if (span->scored && !ended) ints_push(&x->tokens, eos);
        while (x->response.n < x->tokens.n) ints_push(&x->response, span->scored);
    }
}

typedef struct {
    size_t from, to;
    bool prompt_cut, response_cut;
} Window;

/* Chooses the tokens of an example to keep: cuts the prompt first, then the end. */
static Window fit(const Example *x, size_t max_length) {
    Window w = {.to = x->tokens.n};
    size_t excess = w.to > max_length ? w.to - max_length : 0, prompt = 0;
    while (prompt < w.to && !x->response.v[prompt]) prompt++;
    w.from = excess < prompt ? excess : prompt;
    w.to -= excess - w.from;
    w.prompt_cut = w.from > 0;
    w.response_cut = excess > w.from;
    while (w.to > w.from && !x->response.v[w.to - 1]) w.to--;  // a last question lost its answer
    return w;
}

void dataset_build(Dataset *d, const Records *r, const Tokenizer *t, int max_length,
                   bool train_on_prompt) {
    *d = (Dataset){0};
    d->line = xcalloc((size_t)r->n, sizeof *d->line);
    d->start = xcalloc((size_t)r->n + 1, sizeof *d->start);
    Example x = {0};
    Ints tokens = {0};
    Str scored = {0};
    for (int i = 0; i < r->n; i++) {
        tokenise(&r->v[i], t, &x);
        Window w = fit(&x, max_length > 0 ? (size_t)max_length : 0);
        size_t before = tokens.n;
        long targets = 0;
        for (size_t k = w.from; k < w.to; k++) {
            // no token comes before the first one to predict it from
            char learned = k > w.from && (train_on_prompt || x.response.v[k]);
            ints_push(&tokens, x.tokens.v[k]);
            str_add(&scored, &learned, 1);
            targets += learned;
        }
        if (targets == 0) {
            tokens.n = scored.n = before;
            d->dropped++;
            continue;
        }
        d->prompts_cut += w.prompt_cut;
        d->responses_cut += w.response_cut;
        d->scored_tokens += targets;
        if (d->longest < (int)(w.to - w.from)) d->longest = (int)(w.to - w.from);
        d->line[d->n++] = r->v[i].line;
        d->start[d->n] = tokens.n;
    }
    d->tokens = tokens.v;
    d->scored = (unsigned char *)scored.s;
    free(x.tokens.v);
    free(x.response.v);
}

void dataset_free(Dataset *d) {
    free(d->line);
    free(d->start);
    free(d->tokens);
    free(d->scored);
    *d = (Dataset){0};
}

/* ---- ragged batches -------------------------------------------------------------------------- */

void ragged_fill(RaggedBatch *rb, const Dataset *d, const int *which, int S) {
    size_t N = 0;
    for (int s = 0; s < S; s++) N += d->start[which[s] + 1] - d->start[which[s]] - 1;
    if (N > INT_MAX) die("a batch of %zu tokens is too large; use fewer sequences at once", N);
    if (S > rb->room_S || !rb->start) {
        rb->room_S = S;
        rb->start = xrealloc(rb->start, (size_t)S + 1, sizeof *rb->start);
        rb->id = xrealloc(rb->id, (size_t)S, sizeof *rb->id);
    }
    if ((int)N > rb->room_N) {
        rb->room_N = (int)N;
        rb->tokens = xrealloc(rb->tokens, N, sizeof *rb->tokens);
        rb->target = xrealloc(rb->target, N, sizeof *rb->target);
    }
    int row = 0;
    rb->scored = 0;
    for (int s = 0; s < S; s++) {
        rb->start[s] = row;
        rb->id[s] = (uint32_t)which[s];
        for (size_t i = d->start[which[s]]; i + 1 < d->start[which[s] + 1]; i++, row++) {
            rb->tokens[row] = d->tokens[i];
            rb->target[row] = d->scored[i + 1] ? d->tokens[i + 1] : -1;
            rb->scored += d->scored[i + 1];
        }
    }
    rb->start[S] = row;
    rb->batch = (Batch){.S = S,
                        .N = row,
                        .start = rb->start,
                        .tokens = rb->tokens,
                        .id = rb->id,
                        .needed = rb->target};
}

void ragged_free(RaggedBatch *rb) {
    free(rb->start);
    free(rb->tokens);
    free(rb->target);
    free(rb->id);
    *rb = (RaggedBatch){0};
}

int dataset_targets(const Dataset *d, int i) {
    int n = 0;
    for (size_t j = d->start[i] + 1; j < d->start[i + 1]; j++) n += d->scored[j];
    return n;
}

int dataset_rows(const Dataset *d, int i) { return (int)(d->start[i + 1] - d->start[i]) - 1; }

int largest_first(const void *a, const void *b) { return *(const int *)b - *(const int *)a; }

int ragged_largest(const Dataset *d, const int *which, int n, int S, int *scored) {
    int *rows = xmalloc(sizeof(int) * (size_t)n), *targets = xmalloc(sizeof(int) * (size_t)n);
    int64_t total = 0;
    for (int i = 0; i < n; i++) {
        rows[i] = (int)(d->start[which[i] + 1] - d->start[which[i]]) - 1;
        targets[i] = dataset_targets(d, which[i]);
    }
    qsort(rows, (size_t)n, sizeof *rows, largest_first);
    qsort(targets, (size_t)n, sizeof *targets, largest_first);
    *scored = 0;
    for (int i = 0; i < n && i < S; i++) {
        total += rows[i];
        *scored += targets[i];
    }
    free(rows);
    free(targets);
    return batch_tokens(total);
}

/* ---- Pairs ----------------------------------------------------------------------------------- */

int judged_tokens(const int *tokens, int n, int eos) {
    while (n > 0 && tokens[n - 1] == eos) n--;
    return n;
}

/* Appends the tokens of a span, or of an answer its judged tokens. Returns how many. */
static size_t add_part_tokens(const Span *span, const Tokenizer *t, Ints *out) {
    size_t before = out->n;
    tokenizer_encode(t, span->text, span->n, true, out);
    if (span->scored)
        out->n = before +
                 (size_t)judged_tokens(out->v + before, (int)(out->n - before), tokenizer_eos(t));
    return out->n - before;
}

void pairs_build(Pairs *p, const Records *r, const Tokenizer *t, int max_length) {
    *p = (Pairs){0};
    p->line = xcalloc((size_t)r->n, sizeof *p->line);
    p->start = xcalloc(3 * (size_t)r->n + 1, sizeof *p->start);
    p->margin = xcalloc((size_t)r->n, sizeof *p->margin);
    p->p_chosen = xcalloc((size_t)r->n, sizeof *p->p_chosen);
    const size_t room = max_length > 0 ? (size_t)max_length : 0;
    Ints tokens = {0}, one = {0};
    for (int i = 0; i < r->n; i++) {
        const Record *pair = &r->v[i];
        one.n = 0;
        for (int s = 0; s < pair->n - 2; s++) add_part_tokens(&pair->spans[s], t, &one);
        size_t prompt = one.n, chosen = add_part_tokens(&pair->spans[pair->n - 2], t, &one);
        size_t rejected = add_part_tokens(&pair->spans[pair->n - 1], t, &one),
               longer = chosen > rejected ? chosen : rejected;
        const int *answer = one.v + prompt;
        bool empty = !chosen || !rejected,
             equal = !empty && chosen == rejected &&
                     !memcmp(answer, answer + chosen, chosen * sizeof *answer);
        // at least one token of the prompt must be left
        bool too_long = !empty && !equal && longer + (prompt > 0) > room;
        p->empty += empty;
        p->equal += equal;
        p->too_long += too_long;
        if (empty || equal || too_long) continue;
        size_t cut = prompt + longer > room ? prompt + longer - room : 0;
        p->prompts_cut += cut > 0;
        for (size_t k = cut; k < one.n; k++) ints_push(&tokens, one.v[k]);
        size_t *start = p->start + 3 * (size_t)p->n;
        start[1] = start[0] + prompt - cut;
        start[2] = start[1] + chosen;
        start[3] = start[2] + rejected;
        if (p->longest < (int)(prompt - cut + longer)) p->longest = (int)(prompt - cut + longer);
        p->line[p->n] = pair->line;
        p->margin[p->n] = pair->margin;
        p->p_chosen[p->n++] = pair->p_chosen;
    }
    p->tokens = tokens.v;
    free(one.v);
}

void pairs_free(Pairs *p) {
    free(p->line);
    free(p->start);
    free(p->tokens);
    free(p->margin);
    free(p->p_chosen);
    *p = (Pairs){0};
}

void say_cut(const Dataset *d, const char *path, int max_length) {
    const long prompts = d->prompts_cut, responses = d->responses_cut;
    if (!prompts && !responses) return;
    printf("%s%scut ", path ? path : "", path ? ": " : "");
    if (prompts) printf("the beginning of %ld prompt%s", prompts, plural(prompts));
    if (prompts && responses) printf(" and ");
    if (responses) printf("the end of %ld response%s", responses, plural(responses));
    printf(", longer than --max_length %d\n", max_length);
}
