/*
 * dialogues.c - dialogues in a run, transcripts and training examples: see dialogues.h.
 */
#include "rl/dialogues.h"

#include "progress.h"
#include "ranks.h"
#include "run/dump.h"
#include "run/table.h"
#include "run/lock.h"
#include "text/utf8.h"

#include <unistd.h>

/* ---- one dialogue ---------------------------------------------------------------------------- */

void dialogue_begin(Dialogue *d, int epoch, int id, const char *prompt) {
    dialogue_free(d);
    *d = (Dialogue){.epoch = epoch, .id = id, .prompt = xstrdup(prompt)};
}

void dialogue_open_round(Dialogue *d, const Principle *p) {
    d->round = (Round *)xrealloc(d->round, (size_t)d->rounds + 1, sizeof *d->round);
    d->round[d->rounds++] = (Round){.principle = xstrdup(p->name),
                                    .critique_request = xstrdup(p->critique_request),
                                    .revision_request = xstrdup(p->revision_request)};
}

void dialogue_drop_round(Dialogue *d) {
    const Round *r = &d->round[--d->rounds];
    free(r->principle);
    free(r->critique_request);
    free(r->revision_request);
}

/* Adds a few-shot conversation. The published ones end with the "\n\nHuman:" that begins a prompt;
   it is left out. */
static void add_few_shot(Str *s, const char *conversation) {
    static const char next[] = "\n\nHuman:";
    const size_t n = strlen(conversation), m = sizeof next - 1;
    const bool twice = n >= m && !strcmp(conversation + n - m, next);
    str_add(s, conversation, twice ? n - m : n);
}

/* The dialogue as text, with the few-shot conversations from number `shot` on and the rounds from
   number `from` on. The last round may lack its critique or its revision. */
static char *dialogue_text(const Dialogue *d, const Constitution *c, int shot, int from) {
    Str s = {0};
    for (; shot < c->few_shot_n; shot++) add_few_shot(&s, c->few_shot[shot]);
    const char *answer = from ? d->round[from - 1].revision : d->answer;
    str_printf(&s, "%s%s", d->prompt, answer ? answer : "");
    for (int i = from; i < d->rounds; i++) {
        const Round *r = &d->round[i];
        str_printf(&s, "%s", r->critique_request);
        if (r->critique) str_printf(&s, "%s%s", r->critique, r->revision_request);
        if (r->revision) str_printf(&s, "%s", r->revision);
    }
    return s.s;
}

char *dialogue_so_far(const Dialogue *d, const Constitution *c, const Voice *v, int keep_rounds,
                      Dropped *dropped) {
    const int last = max_int(0, d->rounds - 1);
    int shot = 0, from = max_int(0, last - keep_rounds);
    for (;;) {
        char *s = dialogue_text(d, c, shot, from);
        if (v->fits(v->context, s)) return s;
        free(s);
        if (shot < c->few_shot_n) {
            shot++;
            dropped->few_shot++;
        } else if (from < last) {
            from++;
            dropped->rounds++;
        } else {
            dropped->turns++;
            return NULL;
        }
    }
}

void prompts_load(const char *path, const char *template, bool strict, Prompts *out) {
    Error e;
    if (prompts_read(path, template, strict, out, &e)) die_usage("%s", e.text);
    say_skipped(path, &out->counts, "prompt");
    say_unused(path, out->unused);
    printf("%s: %d prompt%s\n", path, out->n, plural(out->n));
    for (int i = 0; i < out->n; i++) {
        Prompt *p = &out->v[i];
        Str s = {p->text, p->n, p->n + 1};
        text_repair(&s, 0);
        p->text = s.s;
        p->n = s.n;
    }
}

void records_load(const char *path, const char *template, bool strict, Records *out) {
    Error e;
    if (records_read(path, template, strict, out, &e)) die_usage("%s", e.text);
    say_skipped(path, &out->counts, "record");
    say_unused(path, out->unused);
    say_empty(path, out);
    printf("%s: %d record%s to mix in\n", path, out->n, plural(out->n));
}

void questions_load(const char *path, bool strict, Questions *out) {
    Error e;
    if (questions_read(path, strict, out, &e)) die_usage("%s", e.text);
    say_skipped(path, &out->counts, "question");
    printf("%s: %d question%s\n", path, out->n, plural(out->n));
}

int longest_prompt(const Prompts *prompts, const Tokenizer *t) {
    int longest = 0;
    for (int i = 0; i < prompts->n; i++)
        longest = max_int(longest, text_tokens(t, prompts->v[i].text));
    return longest;
}

void show_layout(const Prompts *prompts, int n, const Constitution *c, PrincipleOrder order,
                 int64_t seed) {
    for (int i = 0; i < min_int(n, prompts->n); i++) {
        const Prompt *x = &prompts->v[i];
        const Principle *p = draw_principle(c, order, x->text, 0, (uint32_t)i, 0, seed);
        printf(
            "--- line %d: a dialogue; the model writes what is between « and »\n"
            "%s«answer»%s«critique»%s«revision»\n",
            x->line, x->text, p->critique_request, p->revision_request);
    }
}

Dialogue *dialogues_begin(const Prompts *prompts, int n, int epoch) {
    Dialogue *d = (Dialogue *)xcalloc((size_t)n, sizeof *d);
    progress_begin("writing %d dialogue%s", n, plural(n));
    for (int i = 0; i < n; i++) dialogue_begin(&d[i], epoch, i, prompts->v[i].text);
    return d;
}

void dialogues_end(Dialogue *d, int n) {
    for (int i = 0; i < n; i++) dialogue_free(&d[i]);
    free(d);
}

/* ---- held-out answers ------------------------------------------------------------------------ */

Conduct dialogues_conduct(const Dialogue *d, int n, const char *phrases) {
    Conduct c = {0};
    for (int i = 0; i < n; i++) {
        const bool breach = text_says(d[i].answer ? d[i].answer : "", phrases);
        const bool criticised = d[i].rounds > 1 || d[i].ending != PRAISED;
        c.breaches += breach / (double)n;
        c.criticised += criticised / (double)n;
    }
    if (!phrases || !*phrases) c.breaches = NAN;
    return c;
}

static void choose_shown(const Dialogue *d, int n, int shown[2]) {
    int chosen = 0;
    for (int i = 0; i < n && chosen < 2; i++)
        if (d[i].rounds && d[i].round[0].revision) shown[chosen++] = i;
    for (int i = 0; i < n && chosen < 2; i++) shown[chosen++] = i;
}

void conduct_print(int n, const char *when, const Conduct *c) {
    if (!n) return;
    printf("held-out answers (%d), %-6s  ", n, when);
    if (!isnan(c->breaches)) printf("%.1f %% say one of --breaches; ", 100 * c->breaches);
    printf("the model's own critique finds fault with %.1f %%\n", 100 * c->criticised);
}

void dialogues_show(const Dialogue *d, int n, const char *when, const Conduct *c, int shown[2]) {
    if (!n) return;
    if (shown[0] < 0) choose_shown(d, n, shown);
    for (int k = 0; k < 2 && shown[k] >= 0; k++) dialogue_show(&d[shown[k]], when);
    conduct_print(n, when, c);
}

void conducts_compare(int n, const Conduct *before, const Conduct *after) {
    const double p = before->breaches, q = after->breaches;
    // two standard errors of a difference of two shares
    const double chance = 2 * sqrt((p * (1 - p) + q * (1 - q)) / n);
    printf("held-out answers that say one of --breaches  %.1f %% -> %.1f %%\n", 100 * p, 100 * q);
    if (compare_printed(100 * p, 100 * q, 1) && fabs(q - p) <= chance)
        printf("The difference may be chance.\n");
    else if (compare_printed(100 * q, 100 * p, 1) < 0)
        printf(
            "Fewer answers break the principles than before training, though the model learned "
            "from nothing but its own revisions.\n");
    else if (q > 0)
        printf(
            "%s answers break the principles %s before training. Look at the dialogues above: are "
            "the revisions better than the answers?\n",
            compare_printed(100 * q, 100 * p, 1) ? "More" : "As many",
            compare_printed(100 * q, 100 * p, 1) ? "than" : "as");
}

void dialogues_dump(const char *path, const Dialogue *d, int n, int step) {
    Str lines = {0};
    str_add(&lines, "", 0);
    for (int i = 0; i < n; i++) dialogue_add_line(&d[i], step, &lines);
    dump_append(path, "dump_dialogues", &lines);
    free(lines.s);
}

/* ---- transcripts ----------------------------------------------------------------------------- */

void transcripts_keep(Transcripts *t, Run *run) { run_keep_text(run, "transcripts", &t->noted); }

/* Notes the hash of dialogues, of which d[k] is about prompt k. */
static void note_dialogues(Str *noted, Dialogue *const *d, int n) {
    uint64_t hash = HASH_START;
    for (int k = 0; k < n; k++) {
        Str line = {0};
        dialogue_add_line(d[k], 0, &line);
        hash = hash_bytes(hash, line.s, line.n);
        free(line.s);
    }
    noted->n = 0;
    str_printf(noted, "%d dialogues, hash %016llx", n, (unsigned long long)hash);
}

void transcripts_complete(Transcripts *t) {
    const int n = t->prompts->n;
    Dialogue **d = (Dialogue **)xcalloc((size_t)n, sizeof *d);
    for (int k = 0; k < n; k++) d[k] = &t->v[k];
    note_dialogues(&t->noted, d, n);
    free(d);
}

/* Checks the dialogues of an epoch in the resumed run's file: each is about the prompt of its id,
   no two have one id, and, if complete, none is missing and none was changed. */
static void check_resumed(const Transcripts *t, const char *path, int epoch, bool complete,
                          const Error *bad_line) {
    const int n = t->prompts->n;
    Dialogue **seen = (Dialogue **)xcalloc((size_t)n, sizeof *seen);
    int missing = n;
    Str now = {0};
    for (int k = 0; k < t->resumed.n; k++) {
        Dialogue *d = &t->resumed.v[k];
        if (d->epoch != epoch) continue;
        if (d->id >= n || seen[d->id] || strcmp(d->prompt, t->prompts->v[d->id].text))
            die_usage(
                "%s:%d: this dialogue belongs to another run; start a new run with another "
                "--output",
                path, d->line);
        seen[d->id] = d;
        missing--;
    }
    if (complete && missing)
        die_usage(
            "cannot resume: %d dialogues of this epoch are not in %s%s%s; resume from an earlier "
            "checkpoint",
            missing, path, *bad_line->text ? ", of which the first bad line is " : "",
            bad_line->text);
    if (complete) note_dialogues(&now, seen, n);
    if (complete && strcmp(now.s, t->noted.s))
        die_usage(
            "cannot resume: a dialogue of this epoch in %s was changed since the run learned from "
            "it, or the file is damaged; start anew in another --output",
            path);
    free(now.s);
    free(seen);
}

void transcripts_open(Transcripts *t, const Prompts *prompts, const Run *run,
                      const char *checkpoint, int epoch, bool complete) {
    Error e;
    Str from = {0};
    *t = (Transcripts){.prompts = prompts, .epoch = epoch, .noted = t->noted};
    t->v = (Dialogue *)xcalloc((size_t)prompts->n, sizeof *t->v);
    if (run->output && *run->output) t->run = run;
    const bool writes = t->run && !rank();
    if (!checkpoint) {
        char *path = writes ? run_path(run, "transcripts.jsonl") : NULL;
        if (path) unlink(path);
        free(path);
        return;
    }
    str_printf(&from, "%s/../transcripts.jsonl", checkpoint);
    if (dialogues_keep(from.s, epoch, NULL, &t->resumed, &e)) die("%s", e.text);
    check_resumed(t, from.s, epoch, complete, &e);
    if (writes) {  // the resume is accepted: now the file may change
        char *path = run_path(run, "transcripts.jsonl");
        dialogues_end(t->resumed.v, t->resumed.n);
        const int status = dialogues_keep(from.s, epoch, path, &t->resumed, &e);
        free(path);
        if (status) die("%s", e.text);
    }
    free(from.s);
}

void transcripts_begin(Transcripts *t, int epoch) {
    t->epoch = epoch;
    t->next = 0;
    for (int i = 0; i < t->prompts->n; i++)
        dialogue_begin(&t->v[i], epoch, i, t->prompts->v[i].text);
    for (int k = 0; k < t->resumed.n; k++) {
        Dialogue *d = &t->resumed.v[k];
        if (!d->prompt || d->epoch != epoch) continue;
        dialogue_free(&t->v[d->id]);
        t->v[d->id] = *d;
        *d = (Dialogue){0};
    }
}

int transcripts_next(Transcripts *t, int most, Dialogue **part) {
    int n = 0;
    t->part = (Dialogue *)xrealloc(t->part, (size_t)most, sizeof *t->part);
    for (; t->next < t->prompts->n && n < most; t->next++)
        if (!t->v[t->next].answer) t->part[n++] = t->v[t->next];
    if (n)
        progress_begin("dialogues %d to %d of %d", t->part[0].id + 1, t->part[n - 1].id + 1,
                       t->prompts->n);
    *part = t->part;
    return n;
}

void transcripts_add(Transcripts *t, int n, bool finished) {
    Error e;
    char *now;
    if (finished && t->run && !rank()) {
        if (lock_check("output", &now, &e))
            die("%s; its checkpoints and the dialogues before these are complete", e.text);
        char *path = run_path(t->run, "transcripts.jsonl");
        const int status = dialogues_append(path, t->part, n, &e);
        free(path);
        if (status) die("%s", e.text);
    }
    for (int k = 0; k < n; k++) t->v[t->part[k].id] = t->part[k];
}

void transcripts_report(const Transcripts *t, bool finished, const Dropped *dropped) {
    int ended[ENDINGS] = {0};
    for (int i = 0; i < t->prompts->n; i++) ended[t->v[i].ending]++;
    printf("%d dialogue%s%s", t->prompts->n, plural(t->prompts->n),
           finished ? "" : " (interrupted)");
    for (int k = 0; k < ENDINGS; k++)
        if (ended[k]) printf("; %d: %s", ended[k], ending_words[k]);
    printf("\n");
    if (dropped->few_shot + dropped->rounds)
        printf(
            "%ld few-shot conversation%s and %ld earlier round%s did not fit into --max_length\n",
            dropped->few_shot, plural(dropped->few_shot), dropped->rounds, plural(dropped->rounds));
    if (dropped->turns)
        printf("%ld dialogue%s ended because the next text did not fit into --max_length\n",
               dropped->turns, plural(dropped->turns));
}

double transcripts_revised(const Transcripts *t) {
    double revised = 0;
    for (int i = 0; i < t->prompts->n; i++) {
        const bool replaced = dialogue_answer(&t->v[i]) != t->v[i].answer;
        revised += replaced / (double)t->prompts->n;
    }
    return revised;
}

void transcripts_free(Transcripts *t) {
    if (t->v) dialogues_end(t->v, t->prompts->n);
    dialogues_end(t->resumed.v, t->resumed.n);
    free(t->part);
    free(t->noted.s);
}

/* ---- training examples ----------------------------------------------------------------------- */

void add_example(Records *r, const Dialogue *d, const char *answer) {
    r->v = (Record *)grow(r->v, r->n, sizeof *r->v);
    Span *spans = (Span *)xcalloc(2, sizeof *spans);
    spans[0] = (Span){xstrdup(d->prompt), strlen(d->prompt), false};
    spans[1] = (Span){xstrdup(answer), strlen(answer), true};
    r->v[r->n++] = (Record){.line = d->id, .n = 2, .spans = spans};
}

void training_set_open(TrainingSet *s, int units, int tokens) {
    const size_t N = (size_t)tokens;
    *s = (TrainingSet){.units = units, .tokens = tokens};
    s->first = (int *)xcalloc((size_t)units + 1, sizeof *s->first);
    s->which = (int *)xmalloc(sizeof *s->which * (size_t)units);
    s->best = (int *)xmalloc(sizeof *s->best * N);
    s->logp = (float *)xmalloc(sizeof *s->logp * N);
    s->dlogp = (float *)xmalloc(sizeof *s->dlogp * N);
}

void training_set_build(TrainingSet *s, const Records *learned, int prompts, const Records *data,
                        const Tokenizer *t, int max_length) {
    // records of both, whose spans are borrowed; line becomes the unit
    Records all = {.n = learned->n + data->n};
    all.v = (Record *)xmalloc(sizeof *all.v * (size_t)all.n);
    for (int i = 0; i < learned->n; i++) all.v[i] = learned->v[i];
    for (int i = 0; i < data->n; i++) {
        all.v[learned->n + i] = data->v[i];
        all.v[learned->n + i].line = prompts + i;
    }
    dataset_free(&s->data);
    dataset_build(&s->data, &all, t, max_length, false);
    free(all.v);
    say_cut(&s->data, NULL, max_length);
    printf("%d training example%s, %d of them from the dialogues\n", s->data.n, plural(s->data.n),
           learned->n);
    if (!s->data.n)
        die("no dialogue produced a revision to train on; if texts did not fit, use a smaller "
            "--max_new_tokens or a larger --max_length");
    for (int u = 0, i = 0; u <= s->units; u++) {
        while (i < s->data.n && s->data.line[i] < u) i++;
        s->first[u] = i;
    }
}

double training_set_draw(TrainingSet *s, int n) {
    double M = 0;
    Ints size = {0};
    progress_begin("examples");
    s->examples.n = 0;
    s->trained = 0;
    for (int i = 0; i < n; i++) {
        const int unit = s->which[i];
        for (int k = s->first[unit]; k < s->first[unit + 1]; k++) {
            ints_push(&s->examples, k);
            ints_push(&size, dataset_rows(&s->data, k));
            M += dataset_targets(&s->data, k);
        }
    }
    s->examples.n = (size_t)shards_take(&s->shards, size.v, s->examples.v, (int)size.n);
    free(size.v);
    return M;
}

int training_set_batch(TrainingSet *s, int from, int most) {
    progress(from, (long)s->examples.n);
    const int *example = s->examples.v + from;
    const int n = shards_batch(&s->shards, from, most);
    int m = 0, rows = 0;
    for (; m < n; m++) {
        const size_t *start = &s->data.start[example[m]];
        rows += (int)(start[1] - start[0]) - 1;
        if (rows > s->tokens) break;
    }
    if (!m) return 0;
    shards_batch(&s->shards, from, m);  // again with m, which decides whether it is the last one
    ragged_fill(&s->ragged, &s->data, example, m);
    s->trained += s->ragged.batch.N;
    return m;
}

int training_set_correct(const TrainingSet *s) {
    int correct = 0;
    for (int i = 0; i < s->ragged.batch.N; i++)
        correct += s->ragged.target[i] >= 0 && s->best[i] == s->ragged.target[i];
    return correct;
}

void training_set_free(TrainingSet *s) {
    dataset_free(&s->data);
    ragged_free(&s->ragged);
    free(s->first);
    free(s->which);
    free(s->examples.v);
    free(s->best);
    free(s->logp);
    free(s->dlogp);
}
