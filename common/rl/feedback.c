/*
 * feedback.c - pairs of answers, questions about them, and what their labels are worth: see
 * feedback.h.
 */
#include "rl/feedback.h"

Range range_read(const char *flag, const char *text) {
    Range r;
    int end = 0;
    const bool numbers = sscanf(text, "%lf,%lf%n", &r.low, &r.high, &end) == 2 && !text[end];
    if (!numbers || !(0 <= r.low && r.low <= 0.5 && 0.5 <= r.high && r.high <= 1))
        die_usage("--%s %s: takes LOW,HIGH with 0 <= LOW <= 0.5 <= HIGH <= 1", flag, text);
    return r;
}

/* ---- pairs ----------------------------------------------------------------------------------- */

int pair_answers(const Dialogue *first, const Dialogue *second, int n, Labelled **pairs) {
    int made = 0, missing = 0;
    *pairs = (Labelled *)xcalloc((size_t)n, sizeof **pairs);
    for (int i = 0; i < n; i++) {
        const char *a = first[i].answer, *b = second[i].answer;
        missing += !a + !b;
        if (!a || !b || !*a || !*b || !strcmp(a, b)) continue;
        (*pairs)[made++] =
            (Labelled){.prompt = xstrdup(first[i].prompt), .a = xstrdup(a), .b = xstrdup(b)};
    }
    printf(
        "two answers to each of %d prompt%s: %d pair%s; of the other prompts, both answers are "
        "the same or one is empty; %d answer%s did not fit into --max_length\n",
        n, plural(n), made, plural(made), missing, plural(missing));
    return made;
}

/* ---- questions ------------------------------------------------------------------------------- */

void questions_add(Questions *q, char *prompt, char **labels) {
    q->v = (Question *)grow(q->v, q->n, sizeof *q->v);
    q->v[q->n++] = (Question){.n = 2, .prompt = prompt, .option = labels};
}

double *chooser_first(Chooser *judge, Questions *q) {
    double *p = (double *)xmalloc(sizeof *p * (size_t)q->n);
    double *two = (double *)xcalloc((size_t)q->n, 2 * sizeof *two);
    double **logp = (double **)xmalloc(sizeof *logp * (size_t)q->n);
    for (int i = 0; i < q->n; i++) logp[i] = two + 2 * (size_t)i;
    chooser_ask(judge, q, logp);
    for (int i = 0; i < q->n; i++) {
        among_options(logp[i], 2);
        p[i] = exp(logp[i][0]);
        free(q->v[i].prompt);
    }
    free(q->v);
    free(logp);
    free(two);
    *q = (Questions){0};
    return p;
}

void comparison_limits(GPT2Limits *l, const Constitution *c, const Tokenizer *t, int positions) {
    Question two = {.n = 2, .option = comparison_labels(c)};
    chooser_ceilings(l, &(Questions){.n = 1, .v = &two}, t, positions);
}

/* ---- figures --------------------------------------------------------------------------------- */

void labelled_report(const Labelled *pairs, int n, bool first_is_better, const char *phrases) {
    int asked = 0, first = 0, known = 0, right = 0, right_ab = 0, right_ba = 0;
    for (int i = 0; i < n; i++) {
        const Labelled *x = &pairs[i];
        if (x->given) continue;
        asked++;
        first += (x->p_ab > 0.5) + (x->p_ba > 0.5);
        const bool bad_a = text_says(x->a, phrases), bad_b = text_says(x->b, phrases);
        if (!first_is_better && bad_a == bad_b) continue;
        const bool a_better = first_is_better || bad_b;
        known++;
        right += (x->p > 0.5) == a_better;
        right_ab += (x->p_ab > 0.5) == a_better;
        right_ba += (x->p_ba < 0.5) == a_better;
    }
    if (asked)
        printf("the model prefers the first option in %.1f %% of %d comparisons\n",
               50.0 * first / asked, 2 * asked);
    if (known)
        printf(
            "agreement with %s on %d pairs  debiased %.1f %%; in one order alone %.1f %%, in "
            "the other %.1f %%; always the first option: 50.0 %%\n",
            first_is_better ? "--pairs" : "--breaches", known, 100.0 * right / known,
            100.0 * right_ab / known, 100.0 * right_ba / known);
}
