/*
 * rollouts.c - answers of a policy to prompts, and the numbers of their tokens: see rollouts.h.
 */
#include "rl/rollouts.h"

#include "parts.h"
#include "progress.h"
#include "run/dump.h"
#include "text/dataset.h"
#include "text/json.h"
#include "text/jsonl.h"
#include "text/records.h"

/* ---- prompts as tokens ----------------------------------------------------------------------- */

Queries queries_read(const char *path, const char *template, bool strict, const Tokenizer *t,
                     int max_length) {
    Error e;
    Prompts p;
    if (prompts_read(path, template, strict, &p, &e)) die_usage("%s", e.text);
    say_skipped(path, &p.counts, "prompt");
    say_unused(path, p.unused);
    Queries q = {.n = p.n,
                 .line = (int *)xmalloc(sizeof(int) * (size_t)p.n),
                 .start = (int *)xcalloc((size_t)p.n + 1, sizeof(int))};
    q.answer = (char **)xcalloc((size_t)p.n, sizeof(char *));
    Ints all = {0}, one = {0};
    int cut = 0;
    for (int i = 0; i < p.n; i++) {
        one.n = 0;
        tokenizer_encode(t, p.v[i].text, p.v[i].n, true, &one);
        int n = (int)one.n, from = max_int(0, n - max_length);
        cut += from > 0;
        for (int j = from; j < n; j++) ints_push(&all, one.v[j]);
        q.line[i] = p.v[i].line;
        q.answer[i] = p.v[i].answer ? xstrdup(p.v[i].answer) : NULL;
        q.start[i + 1] = (int)all.n;
        q.longest = max_int(q.longest, n - from);
    }
    q.tokens = all.v;
    q.templated = p.templated;
    printf("%s: %d prompt%s, the longest of %d token%s\n", path, q.n, plural(q.n), q.longest,
           plural(q.longest));
    if (cut)
        printf("%s: cut the beginning of %d prompt%s, longer than %d tokens\n", path, cut,
               plural(cut), max_length);
    free(one.v);
    prompts_free(&p);
    return q;
}

void queries_free(Queries *q) {
    for (int i = 0; i < q->n; i++) free(q->answer[i]);
    free(q->line);
    free(q->start);
    free(q->tokens);
    free(q->answer);
}

/* ---- answers --------------------------------------------------------------------------------- */

Rollouts rollouts_new(int E, int prompt, int answer) {
    const size_t n = (size_t)E, tokens = n * (size_t)answer, i = sizeof(int), f = sizeof(float);
    return (Rollouts){.longest = answer,
                      .query = xmalloc(n * i),
                      .begin = xcalloc(n + 1, i),
                      .tokens = xmalloc((tokens + n * (size_t)prompt) * i),
                      .start = xcalloc(n + 1, i),
                      .ended = xmalloc(n),
                      .score = xmalloc(n * f),
                      .shaped = xcalloc(n, sizeof(double)),
                      .order = xmalloc(n * i),
                      .logp = xcalloc(tokens, f),
                      .ref_logp = xcalloc(tokens, f),
                      .new_logp = xcalloc(tokens, f),
                      .kl = xcalloc(tokens, f),
                      .value = xcalloc(tokens, f),
                      .reward = xcalloc(tokens, f),
                      .advantage = xcalloc(tokens, f),
                      .ret = xcalloc(tokens, f),
                      .A = xcalloc(tokens, f),
                      .gathered = xcalloc(tokens, f)};
}

void rollouts_free(Rollouts *r) {
    free(r->query);
    free(r->begin);
    free(r->tokens);
    free(r->start);
    free(r->ended);
    free(r->score);
    free(r->shaped);
    free(r->order);
    free(r->logp);
    free(r->ref_logp);
    free(r->new_logp);
    free(r->kl);
    free(r->value);
    free(r->reward);
    free(r->advantage);
    free(r->ret);
    free(r->A);
    free(r->gathered);
}

void rollouts_sample(Rollouts *r, GPT2 *policy, const Queries *q, const Sampler *s) {
    Ints tokens = {0};
    int *start = (int *)xcalloc((size_t)r->E + 1, sizeof(int));
    for (int e = 0; e < r->E; e++) {
        for (int i = q->start[r->query[e]]; i < q->start[r->query[e] + 1]; i++)
            ints_push(&tokens, q->tokens[i]);
        start[e + 1] = (int)tokens.n;
    }
    Generation g;
    gpt2_generate(policy,
                  &(Batch){.S = r->E, .N = (int)tokens.n, .start = start, .tokens = tokens.v}, s,
                  &g, NULL, NULL);
    for (int e = 0; e < r->E; e++) {
        const int n = start[e + 1] - start[e], T = g.start[e + 1] - g.start[e];
        memcpy(r->tokens + r->begin[e], tokens.v + start[e], sizeof(int) * (size_t)n);
        memcpy(r->tokens + r->begin[e] + n, g.tokens + g.start[e], sizeof(int) * (size_t)T);
        memcpy(r->logp + g.start[e], g.logp + g.start[e], sizeof(float) * (size_t)T);
        r->begin[e + 1] = r->begin[e] + n + T;
        r->start[e + 1] = g.start[e + 1];
        r->ended[e] = g.ended[e];
    }
    r->n_tokens = g.start[r->E];
    memcpy(r->new_logp, r->logp, sizeof(float) * (size_t)r->n_tokens);
    generation_free(&g);
    free(start);
    free(tokens.v);
}

void rollouts_collect(Rollouts *r) {
    float *const numbers[] = {r->ref_logp, r->kl, r->value};
    for (int i = 0; i < 3; i++) parts_collect(numbers[i], sizeof(float), r->E, r->start);
}

void rollouts_text(const Rollouts *r, int e, bool answer, const Tokenizer *t, Str *out) {
    const int T = r->start[e + 1] - r->start[e], middle = r->begin[e + 1] - T;
    str_add(out, "", 0);
    if (answer)
        tokenizer_decode(t, r->tokens + middle, (size_t)(T - r->ended[e]), out);
    else
        tokenizer_decode(t, r->tokens + r->begin[e], (size_t)(middle - r->begin[e]), out);
}

int rollouts_gather(const Rollouts *r, const float *numbers, const int *which, int n, float *out) {
    int M = 0;
    for (int k = 0; k < n; k++)
        for (int t = r->start[which[k]]; t < r->start[which[k] + 1]; t++) out[M++] = numbers[t];
    return M;
}

void rollouts_scatter(const Rollouts *r, const float *gathered, const int *which, int n,
                      float *numbers) {
    int at = 0;
    for (int k = 0; k < n; k++)
        for (int t = r->start[which[k]]; t < r->start[which[k] + 1]; t++)
            numbers[t] = gathered[at++];
}

/* ---- batches of answers ---------------------------------------------------------------------- */

Rows rows_new(int S, int N) {
    Rows b = {.start = xcalloc((size_t)S + 1, sizeof(int)),
              .parent = xcalloc((size_t)S + 1, sizeof(int))};
    int **ints[] = {&b.tokens, &b.target, &b.of};
    float **floats[] = {&b.logp,      &b.entropy, &b.kl,    &b.value,    &b.old_logp, &b.A,
                        &b.old_value, &b.ret,     &b.dlogp, &b.dentropy, &b.dvalue};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        *ints[i] = xcalloc((size_t)N, sizeof(int));
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        *floats[i] = xcalloc((size_t)N, sizeof(float));
    return b;
}

void rows_free(Rows *b) {
    free(b->start);
    free(b->parent);
    free(b->tokens);
    free(b->target);
    free(b->of);
    free(b->logp);
    free(b->entropy);
    free(b->kl);
    free(b->value);
    free(b->old_logp);
    free(b->A);
    free(b->old_value);
    free(b->ret);
    free(b->dlogp);
    free(b->dentropy);
    free(b->dvalue);
}

/* Appends the sequence of tokens [from, to) of answer e and its prompt. */
static void rows_add(Rows *b, const Rollouts *r, int e, int from, int to, int parent) {
    const int length = r->begin[e + 1] - r->begin[e], T = r->start[e + 1] - r->start[e];
    int N = b->batch.N;
    for (int i = from; i < to; i++, N++) {
        const int t = i + 1 - (length - T), of = t < 0 ? -1 : r->start[e] + t;
        b->tokens[N] = r->tokens[r->begin[e] + i];
        b->target[N] = of < 0 ? -1 : r->tokens[r->begin[e] + i + 1];
        b->of[N] = of;
        b->old_logp[N] = of < 0 ? 0 : r->logp[of];
        b->A[N] = of < 0 ? 0 : r->A[of];
        b->old_value[N] = of < 0 ? 0 : r->value[of];
        b->ret[N] = of < 0 ? 0 : r->ret[of];
    }
    b->parent[b->batch.S++] = parent;
    b->start[b->batch.S] = b->batch.N = N;
}

/* How many of the answers which[0..n) follow each other, from the first on, and have its prompt. */
static int same_prompt(const Rollouts *r, const int *which, int n) {
    int same = 1;
    while (same < n && r->query[which[same]] == r->query[which[0]]) same++;
    return same;
}

static void fill_rows(Rows *b, const Rollouts *r, const int *which, int n, bool share) {
    b->batch = (Batch){.start = b->start, .tokens = b->tokens, .needed = b->target};
    for (int k = 0, group; k < n; k += group) {
        const int e = which[k], T = r->start[e + 1] - r->start[e],
                  prompt = r->begin[e + 1] - r->begin[e] - T;
        group = share && prompt > 1 ? same_prompt(r, which + k, n - k) : 1;
        const int parent = group > 1 ? b->batch.S : -1, from = group > 1 ? prompt - 1 : 0;
        if (group > 1) {
            rows_add(b, r, e, 0, from, -1);
            b->batch.parent = b->parent;
        }
        for (int i = k; i < k + group; i++)
            rows_add(b, r, which[i], from, r->begin[which[i] + 1] - r->begin[which[i]] - 1, parent);
    }
}

void rows_fill(Rows *b, const Rollouts *r, const int *which, int n) {
    fill_rows(b, r, which, n, false);
}

void rows_range(Rows *b, const Rollouts *r, int from, int B) {
    progress(from, r->E);
    const int n = min_int(B, r->E - from);
    int *which = (int *)xmalloc(sizeof(int) * (size_t)n);
    for (int k = 0; k < n; k++) which[k] = from + k;
    fill_rows(b, r, which, n, true);
    free(which);
}

void rows_keep(const Rows *b, const float *row, float *numbers) {
    for (int i = 0; i < b->batch.N; i++)
        if (b->of[i] >= 0) numbers[b->of[i]] = row[i];
}

void rows_check(const Rows *b) {
    for (int i = 0; i < b->batch.N; i++)
        if (b->of[i] >= 0 && b->logp[i] != b->old_logp[i])
            die("a token's log-probability is %.9g in the rollout and %.9g in training; the two "
                "must be equal",
                (double)b->old_logp[i], (double)b->logp[i]);
}

/* ---- the file of rollouts -------------------------------------------------------------------- */

/* The numbers of a token, as they are called in the file. The first ones are also those of held-out
   answers. */
enum { DUMPED = 7, DUMPED_HELD_OUT = 3 };
static const char *const dumped[DUMPED] = {"logp",   "ref_logp",  "kl",    "value",
                                           "reward", "advantage", "return"};
static float *dumped_part(const Rollouts *r, int i) {
    return (float *const[]){
        r->logp, r->ref_logp, r->kl, r->value, r->reward, r->advantage, r->ret}[i];
}

/* Appends ρ = π / π_old of the tokens of answer e. */
static void add_ratio(const Rollouts *r, int e, Str *lines) {
    const int at = r->start[e], T = r->start[e + 1] - at;
    float ratio[T + 1];
    for (int t = 0; t < T; t++) ratio[t] = expf(r->new_logp[at + t] - r->logp[at + t]);
    dump_numbers(lines, "ratio", ratio, T);
}

void rollouts_dump(const Rollouts *r, const Queries *q, const Tokenizer *t, int step, bool held_out,
                   const char *path) {
    Str lines = {0};
    str_add(&lines, "", 0);
    for (int e = 0; e < r->E; e++) {
        const int T = r->start[e + 1] - r->start[e], *tokens = r->tokens + r->begin[e];
        const int n = r->begin[e + 1] - r->begin[e];
        str_printf(&lines, "{\"step\": %d, \"%s\": %d, \"line\": %d", step,
                   held_out ? "held_out" : "episode", e, q->line[r->query[e]]);
        dump_text(&lines, "prompt", t, tokens, n - T);
        dump_text(&lines, "response", t, tokens + n - T, T - r->ended[e]);
        str_printf(&lines, ", \"query\": %d, \"ended\": %d, \"score\": %.9g", r->query[e],
                   r->ended[e], (double)r->score[e]);
        dump_ints(&lines, "tokens", tokens, n);
        dump_pieces(&lines, "pieces", t, tokens, n);
        for (int k = 0; k < (held_out ? DUMPED_HELD_OUT : DUMPED); k++)
            dump_numbers(&lines, dumped[k], dumped_part(r, k) + r->start[e], T);
        if (!held_out) add_ratio(r, e, &lines);
        str_add(&lines, "}\n", 2);
    }
    dump_append(path, "dump_rollouts", &lines);
    free(lines.s);
}

/* A member of the line that must hold n numbers; n < 0: as many as there are, up to room. They must
   be finite floats. Their number, or -1 with e filled. */
static int dumped_numbers(const char *line, size_t length, const char *name, int n, int room,
                          double *out, Error *e) {
    Error why;
    const int count = json_numbers(line, length, name, out, room, &why);
    if (count < 0) return fail(e, "a line cannot be used: %.900s", why.text);
    if (count > room || (n >= 0 && count != n))
        return fail(e, "\"%s\" holds %d numbers, where %d are possible", name, count,
                    n >= 0 ? n : room);
    for (int i = 0; i < count; i++)
        if (!isfinite((float)out[i]))
            return fail(e, "\"%s\" holds %g, which is not a finite float", name, out[i]);
    return count;
}

/* The same for one whole number from 0 to limit - 1. -1 with e filled. */
static int dumped_index(const char *line, size_t length, const char *name, int limit, Error *e) {
    double x;
    if (dumped_numbers(line, length, name, 1, 1, &x, e) < 0) return -1;
    if (!(x >= 0 && x < limit) || x != floor(x))
        return fail(e, "\"%s\" is %g, expected a whole number from 0 to %d", name, x, limit - 1);
    return (int)x;
}

/* Reads one answer, number e of r, from its line. x: room for `most` numbers. 0, or -1 with e
   filled. */
static int replay_answer(Rollouts *r, const Queries *q, int vocabulary, const char *line, size_t n,
                         int most, double *x, Error *error) {
    const int e = r->E;
    const int query = dumped_index(line, n, "query", q->n, error);
    const int ended = query < 0 ? -1 : dumped_index(line, n, "ended", 2, error);
    if (ended < 0 || dumped_numbers(line, n, "score", 1, 1, x, error) < 0) return -1;
    r->query[e] = query;
    r->ended[e] = ended;
    r->score[e] = (float)x[0];
    const int length = dumped_numbers(line, n, "tokens", -1, most, x, error);
    if (length < 0) return -1;
    for (int i = 0; i < length; i++) {
        if (!(x[i] >= 0 && x[i] < vocabulary) || x[i] != floor(x[i]))
            return fail(error, "\"tokens\" holds %g, and the vocabulary has %d tokens", x[i],
                        vocabulary);
        r->tokens[r->begin[e] + i] = (int)x[i];
    }
    // an answer has at least one token, and its prompt as well
    const int T = length < 2 ? 0
                             : dumped_numbers(line, n, dumped[0], -1,
                                              min_int(r->longest, length - 1), x, error);
    if (T < 0) return -1;
    if (T == 0)
        return fail(error, "an answer of %d tokens, its prompt included, has none of its own",
                    length);
    for (int k = 0; k < DUMPED; k++) {
        if (dumped_numbers(line, n, dumped[k], T, T, x, error) < 0) return -1;
        for (int t = 0; t < T; t++) dumped_part(r, k)[r->n_tokens + t] = (float)x[t];
    }
    r->E++;
    r->begin[e + 1] = r->begin[e] + length;
    r->start[e + 1] = r->n_tokens += T;
    return 0;
}

int rollouts_read(Rollouts *r, int E, const Queries *q, int vocabulary, int step, FILE *f,
                  Error *error) {
    char wanted[64];
    Str line = {0};
    const int most = q->longest + r->longest;
    double *x = (double *)xmalloc(sizeof(double) * (size_t)most);
    int status = 0;
    r->E = r->n_tokens = 0;
    while (!status && r->E < E && (status = read_line(f, LINE_LIMIT, &line, error)) > 0) {
        status = 0;
        snprintf(wanted, sizeof wanted, "{\"step\": %d, \"episode\": %d, ", step, r->E);
        if (strncmp(line.s, wanted, strlen(wanted)) || line.s[line.n - 1] != '\n')
            continue;  // another's, or cut off
        status = replay_answer(r, q, vocabulary, line.s, line.n, most, x, error);
    }
    if (!status && r->E < E)
        status =
            fail(error, "it holds %d answers of step %d, where --batch_size is %d", r->E, step, E);
    memcpy(r->new_logp, r->logp, sizeof(float) * (size_t)r->n_tokens);
    free(line.s);
    free(x);
    return status;
}

void rollouts_replay(Rollouts *r, int E, const Queries *q, int vocabulary, int step,
                     const char *path) {
    Error e;
    FILE *f = fopen(path, "rbe");
    if (!f) die_usage("cannot open %s (--replay): %s", path, strerror(errno));
    if (rollouts_read(r, E, q, vocabulary, step, f, &e)) die_usage("--replay %s: %s", path, e.text);
    fclose(f);
}
