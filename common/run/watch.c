/*
 * watch.c - figures: declared by their first value, accumulated, logged, kept. See watch.h.
 */
#include "model/shards.h"
#include "progress.h"
#include "ranks.h"
#include "run/private.h"

static const char *const kinds[] = {
    [FIGURE_LAST] = "last",         [FIGURE_MEAN] = "mean", [FIGURE_COMBINED] = "combined",
    [FIGURE_MIN] = "min",           [FIGURE_MAX] = "max",   [FIGURE_TOTAL] = "total",
    [FIGURE_HELD_OUT] = "held-out",
};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* ---- values ---------------------------------------------------------------------------------- */

void figure_start_anew(Figure *f) {
    if (f->kind == FIGURE_TOTAL) return;
    f->sum = f->kind == FIGURE_MIN ? INFINITY : f->kind == FIGURE_MAX ? -INFINITY : 0;
    f->count = 0;
}

/* -1: there is none of that name. */
static int position(const Run *run, const char *name) {
    if (!name) return -1;
    for (int i = 0; i < run->state->figures; i++)
        if (!strcmp(run->state->figure[i].name, name)) return i;
    return -1;
}

static Figure *add_figure(Figure **list, int *n, const char *name, FigureKind kind) {
    *list = (Figure *)xrealloc(*list, (size_t)*n + 1, sizeof **list);
    Figure *f = &(*list)[(*n)++];
    *f = (Figure){.name = xstrdup(name), .kind = kind, .shard = shards_now()};
    figure_start_anew(f);
    return f;
}

/* The figure of the shard that is computed now (shards.h). */
static Figure *figure_of_shard(Run *run, const char *name, FigureKind kind) {
    struct RunState *s = run->state;
    for (int i = s->parts - 1; i >= 0 && s->part[i].shard == shards_now(); i--)
        if (!strcmp(s->part[i].name, name)) return &s->part[i];
    return add_figure(&s->part, &s->parts, name, kind);
}

static Figure *figure(Run *run, const char *name, FigureKind kind) {
    struct RunState *s = run->state;
    if (shards_now() >= 0) return figure_of_shard(run, name, kind);
    const int i = position(run, name);
    if (i >= 0 && s->figure[i].kind != kind)
        die_usage(
            "the figure %s is of the kind \"%s\" in the checkpoint and \"%s\" now; resume from an "
            "earlier checkpoint",
            name, kinds[s->figure[i].kind], kinds[kind]);
    if (i >= 0) return &s->figure[i];
    return add_figure(&s->figure, &s->figures, name, kind);
}

void watch(Run *run, const char *name, double value) {
    figure(run, name, FIGURE_LAST)->sum = value;
}

void watch_mean(Run *run, const char *name, double sum, double count) {
    Figure *f = figure(run, name, FIGURE_MEAN);
    f->sum += sum;
    f->count += count;
}

void watch_combined(Run *run, const char *name, const char *a, double weight_a, const char *b,
                    double weight_b) {
    Figure *f = figure(run, name, FIGURE_COMBINED);
    if (!f->a) f->a = xstrdup(a);
    if (!f->b) f->b = xstrdup(b);
    f->weight_a = weight_a;
    f->weight_b = weight_b;
}

void watch_min(Run *run, const char *name, double value) {
    Figure *f = figure(run, name, FIGURE_MIN);
    f->sum = fmin(f->sum, value);
}

void watch_max(Run *run, const char *name, double value) {
    Figure *f = figure(run, name, FIGURE_MAX);
    f->sum = fmax(f->sum, value);
}

void watch_total(Run *run, const char *name, double more) {
    figure(run, name, FIGURE_TOTAL)->sum += more;
}

void watch_held_out(Run *run, const char *name, double value) {
    Figure *f = figure(run, name, FIGURE_HELD_OUT);
    f->sum = value;
    f->fresh = true;
}

double figure_value(const Run *run, const Figure *f) {
    if (f->kind == FIGURE_MEAN) return f->sum / f->count;
    if (f->kind != FIGURE_COMBINED) return f->sum;
    const int i = position(run, f->a), j = position(run, f->b);
    if (i < 0 || j < 0) return NAN;
    const Figure *a = &run->state->figure[i], *b = &run->state->figure[j];
    return (f->weight_a * a->sum + f->weight_b * b->sum) / a->count;
}

/* ---- shards and processes -------------------------------------------------------------------- */

static void free_figures(Figure *list, int n) {
    for (int i = 0; i < n; i++) {
        free(list[i].name);
        free(list[i].a);
        free(list[i].b);
    }
    free(list);
}

/* Adds what a shard has given to a figure. */
static void take_part(Run *run, const Figure *part) {
    const char *name = part->name;
    switch (part->kind) {
        case FIGURE_LAST: watch(run, name, part->sum); break;
        case FIGURE_MEAN: watch_mean(run, name, part->sum, part->count); break;
        case FIGURE_MIN: watch_min(run, name, part->sum); break;
        case FIGURE_MAX: watch_max(run, name, part->sum); break;
        case FIGURE_TOTAL: watch_total(run, name, part->sum); break;
        case FIGURE_HELD_OUT: watch_held_out(run, name, part->sum); break;
        case FIGURE_COMBINED:
            watch_combined(run, name, part->a, part->weight_a, part->b, part->weight_b);
            break;
    }
}

/* The figures of this process's shards as text. */
static void parts_text(const struct RunState *s, Str *text) {
    str_add(text, "", 0);
    for (int i = 0; i < s->parts; i++) {
        const Figure *f = &s->part[i];
        str_printf(text, "%d %s %.17g %.17g %s %s %.17g %.17g;", (int)f->kind, f->name, f->sum,
                   f->count, f->a ? f->a : "-", f->b ? f->b : "-", f->weight_a, f->weight_b);
    }
}

void watch_gather(Run *run) {
    struct RunState *s = run->state;
    shards_enter(-1);
    if (shards_count() == 1) return;
    Str mine = {0};
    size_t n;
    parts_text(s, &mine);
    char *all = (char *)ranks_join(mine.s, mine.n, &n), name[64], a[64], b[64];
    int kind, end;
    for (size_t at = 0; at < n; at += (size_t)end) {
        Figure part = {.name = name, .a = a, .b = b};
        end = 0;
        if (sscanf(all + at, "%d %63s %lf %lf %63s %63s %lf %lf;%n", &kind, name, &part.sum,
                   &part.count, a, b, &part.weight_a, &part.weight_b, &end) != 8 ||
            !end)
            die("the figures of the processes cannot be read: \"%.200s\"", all + at);
        part.kind = (FigureKind)kind;
        take_part(run, &part);
    }
    free(all);
    free(mine.s);
    free_figures(s->part, s->parts);
    s->part = NULL;
    s->parts = 0;
}

/* ---- phases -----------------------------------------------------------------------------------*/

void watch_phase(Run *run, const char *name) {
    struct RunState *s = run->state;
    const double now = now_seconds();
    if (s->in_phase >= 0) s->phase[s->in_phase].seconds += now - s->phase_began;
    s->phase_began = now;
    s->in_phase = -1;
    if (!name) progress_end();
    if (!name) return;
    progress_begin("%s", name);
    int i = 0;
    while (i < s->phases && strcmp(s->phase[i].name, name)) i++;
    if (i == (int)(sizeof s->phase / sizeof *s->phase)) die("more phases than there is room for");
    if (i == s->phases) s->phase[s->phases++] = (Phase){name, 0};
    s->in_phase = i;
}

/* ---- checkpoints ----------------------------------------------------------------------------- */

char *watch_text(const Run *run) {
    Str text = {0};
    str_add(&text, "", 0);
    for (int i = 0; i < run->state->figures; i++) {
        const Figure *f = &run->state->figure[i];
        str_printf(&text, "%s %s %.17g %.17g;", kinds[f->kind], f->name, f->sum, f->count);
    }
    return text.s;
}

int watch_restore(Run *run, const char *text) {
    for (int end = 0; *text; text += end) {
        char kind[16], name[64];
        double sum, count;
        end = 0;
        if (sscanf(text, "%15s %63s %lf %lf;%n", kind, name, &sum, &count, &end) != 4 || !end)
            return -1;
        int k = 0;
        while (k < KINDS && strcmp(kinds[k], kind)) k++;
        if (k == KINDS || position(run, name) >= 0 || !(count >= 0)) return -1;
        Figure *f = figure(run, name, (FigureKind)k);
        f->sum = sum;
        f->count = count;
    }
    return 0;
}

void watch_free(Run *run) {
    struct RunState *s = run->state;
    free_figures(s->figure, s->figures);
    free_figures(s->part, s->parts);
    s->part = NULL;
    s->parts = 0;
    s->figure = NULL;
    s->figures = 0;
}
