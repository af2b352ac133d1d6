/*
 * rollouts.c - answers of a policy to prompts, and the numbers of their tokens: see rollouts.h.
 */
#include "rl/rollouts.h"

#include "text/dataset.h"
#include "text/json.h"
#include "text/records.h"

/* ---- prompts as tokens ----------------------------------------------------------------------- */

Queries queries_read(const char *path, const char *template, bool strict, const Tokenizer *t,
                     int max_length) {
    Error e;
    Prompts p;
    if (prompts_read(path, template, strict, &p, &e)) die_usage("%s", e.text);
    say_skipped(path, p.skipped, "prompt", &p.first_skipped);
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
    printf("%s: %d prompts, the longest of %d tokens\n", path, q.n, q.longest);
    if (cut)
        printf("%s: %d prompts are longer than %d tokens and lose their beginning\n", path, cut,
               max_length);
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
    generation_free(&g);
    free(start);
    free(tokens.v);
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
    Rows b = {.start = xcalloc((size_t)S + 1, sizeof(int))};
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

void rows_fill(Rows *b, const Rollouts *r, const int *which, int n) {
    int N = 0;
    for (int k = 0; k < n; k++) {
        const int e = which[k], length = r->begin[e + 1] - r->begin[e],
                  T = r->start[e + 1] - r->start[e];
        for (int i = 0; i < length - 1; i++, N++) {
            const int t = i + 1 - (length - T), of = t < 0 ? -1 : r->start[e] + t;
            b->tokens[N] = r->tokens[r->begin[e] + i];
            b->target[N] = of < 0 ? -1 : r->tokens[r->begin[e] + i + 1];
            b->of[N] = of;
            b->old_logp[N] = of < 0 ? 0 : r->logp[of];
            b->A[N] = of < 0 ? 0 : r->A[of];
            b->old_value[N] = of < 0 ? 0 : r->value[of];
            b->ret[N] = of < 0 ? 0 : r->ret[of];
        }
        b->start[k + 1] = N;
    }
    b->batch = (Batch){.S = n, .N = N, .start = b->start, .tokens = b->tokens};
}

void rows_range(Rows *b, const Rollouts *r, int from, int B) {
    const int n = min_int(B, r->E - from);
    int which[n];
    for (int k = 0; k < n; k++) which[k] = from + k;
    rows_fill(b, r, which, n);
}

void rows_keep(const Rows *b, const float *row, float *numbers) {
    for (int i = 0; i < b->batch.N; i++)
        if (b->of[i] >= 0) numbers[b->of[i]] = row[i];
}

void rows_check(const Rows *b) {
    for (int i = 0; i < b->batch.N; i++)
        if (b->of[i] >= 0 && b->logp[i] != b->old_logp[i])
            die("a token's log-probability is %.9g in the rollout and %.9g in training; the two "
                "must "
                "be equal",
                (double)b->old_logp[i], (double)b->logp[i]);
}

/* ---- the file of rollouts -------------------------------------------------------------------- */

/* The numbers of a token, as they are called in the file. */
enum { DUMPED = 7 };
static const char *const dumped[DUMPED] = {"logp",   "ref_logp",  "kl",    "value",
                                           "reward", "advantage", "return"};
static float *dumped_part(const Rollouts *r, int i) {
    return (float *const[]){
        r->logp, r->ref_logp, r->kl, r->value, r->reward, r->advantage, r->ret}[i];
}

/* Nine digits name a float. */
void rollouts_dump(const Rollouts *r, const Queries *q, const Tokenizer *t, int step,
                   const char *path) {
    Str line = {0}, text = {0};
    FILE *f = fopen(path, "a+");
    bool cut = f && fseek(f, -1, SEEK_END) == 0 &&
               getc(f) != '\n';  // the last line of a run that was killed
    for (int e = 0; e < r->E && f; e++) {
        line.n = 0;
        if (cut) {
            str_add(&line, "\n", 1);
            cut = false;
        }
        str_printf(&line, "{\"step\": %d, \"episode\": %d, \"line\": %d", step, e,
                   q->line[r->query[e]]);
        for (int answer = 0; answer < 2; answer++) {
            text.n = 0;
            rollouts_text(r, e, answer, t, &text);
            str_printf(&line, answer ? ", \"response\": " : ", \"prompt\": ");
            json_add_string(&line, text.s, text.n);
        }
        str_printf(&line, ", \"query\": %d, \"ended\": %d, \"score\": %.9g, \"tokens\": [",
                   r->query[e], r->ended[e], (double)r->score[e]);
        for (int i = r->begin[e]; i < r->begin[e + 1]; i++)
            str_printf(&line, i > r->begin[e] ? ", %d" : "%d", r->tokens[i]);
        for (int k = 0; k < DUMPED; k++) {
            str_printf(&line, "], \"%s\": [", dumped[k]);
            for (int i = r->start[e]; i < r->start[e + 1]; i++)
                str_printf(&line, i > r->start[e] ? ", %.9g" : "%.9g",
                           (double)dumped_part(r, k)[i]);
        }
        str_add(&line, "]}\n", 3);
        fwrite(line.s, 1, line.n, f);
    }
    if (!f || ferror(f) | fclose(f))
        die("cannot write %s (--dump_rollouts): %s", path, strerror(errno));
    free(line.s);
    free(text.s);
}

/* A member of the line that must hold n numbers; n < 0: as many as there are, up to room. Ends the
 * program when it does not. */
static int dumped_numbers(const char *path, const char *line, size_t length, const char *name,
                          int n, int room, double *out) {
    Error e;
    int count = json_numbers(line, length, name, out, room, &e);
    if (count < 0) die_usage("--replay %s: a line cannot be used: %s", path, e.text);
    if (count > room || (n >= 0 && count != n))
        die_usage("--replay %s: \"%s\" holds %d numbers, where %d are possible", path, name, count,
                  n >= 0 ? n : room);
    return count;
}

void rollouts_replay(Rollouts *r, int E, const Queries *q, int step, const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) die_usage("cannot open %s (--replay): %s", path, strerror(errno));
    char *line = NULL, wanted[64];
    size_t room = 0;
    const int most = q->longest + r->longest;
    double *x = (double *)xmalloc(sizeof(double) * (size_t)most);
    r->E = r->n_tokens = 0;
    for (ssize_t n; r->E < E && (n = getline(&line, &room, f)) > 0;) {
        snprintf(wanted, sizeof wanted, "{\"step\": %d, \"episode\": %d, ", step, r->E);
        if (strncmp(line, wanted, strlen(wanted)) || line[n - 1] != '\n')
            continue;  // another's, or cut off
        const int e = r->E++;
        dumped_numbers(path, line, (size_t)n, "query", 1, 1, x);
        r->query[e] = (int)x[0];
        if (!(x[0] >= 0 && x[0] < q->n))
            die_usage("--replay %s: query %g, where there are %d prompts", path, x[0], q->n);
        dumped_numbers(path, line, (size_t)n, "ended", 1, 1, x);
        r->ended[e] = x[0] != 0;
        dumped_numbers(path, line, (size_t)n, "score", 1, 1, x);
        r->score[e] = (float)x[0];
        int length = dumped_numbers(path, line, (size_t)n, "tokens", -1, most, x);
        for (int i = 0; i < length; i++) r->tokens[r->begin[e] + i] = (int)x[i];
        int T = dumped_numbers(path, line, (size_t)n, dumped[0], -1,
                               min_int(r->longest, length - 1), x);
        for (int k = 0; k < DUMPED; k++) {
            dumped_numbers(path, line, (size_t)n, dumped[k], T, T, x);
            for (int t = 0; t < T; t++) dumped_part(r, k)[r->n_tokens + t] = (float)x[t];
        }
        r->begin[e + 1] = r->begin[e] + length;
        r->start[e + 1] = r->n_tokens += T;
    }
    if (r->E < E)
        die_usage("--replay %s holds %d answers of step %d, where --batch_size is %d", path, r->E,
                  step, E);
    fclose(f);
    free(line);
    free(x);
}
