/*
 * watch.c - figures: declared by their first value, accumulated, logged, kept. See watch.h.
 */
#include "run/private.h"

static const char *const kinds[] = {
    [FIGURE_LAST] = "last",         [FIGURE_MEAN] = "mean", [FIGURE_COMBINED] = "combined",
    [FIGURE_MIN] = "min",           [FIGURE_MAX] = "max",   [FIGURE_TOTAL] = "total",
    [FIGURE_HELD_OUT] = "held-out",
};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* ---- values ---------------------------------------------------------------------------------- */

static void start_anew(Figure *f) {
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

static Figure *figure(Run *run, const char *name, FigureKind kind) {
    struct RunState *s = run->state;
    const int i = position(run, name);
    if (i >= 0) return &s->figure[i];
    s->figure = (Figure *)xrealloc(s->figure, (size_t)s->figures + 1, sizeof *s->figure);
    Figure *f = &s->figure[s->figures++];
    *f = (Figure){.name = xstrdup(name), .kind = kind};
    start_anew(f);
    return f;
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
    f->a = a;
    f->b = b;
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

static double value_of(const Run *run, const Figure *f) {
    if (f->kind == FIGURE_MEAN) return f->sum / f->count;
    if (f->kind != FIGURE_COMBINED) return f->sum;
    const int i = position(run, f->a), j = position(run, f->b);
    if (i < 0 || j < 0) return NAN;
    const Figure *a = &run->state->figure[i], *b = &run->state->figure[j];
    return (f->weight_a * a->sum + f->weight_b * b->sum) / a->count;
}

/* ---- phases -----------------------------------------------------------------------------------*/

void watch_phase(Run *run, const char *name) {
    struct RunState *s = run->state;
    const double now = now_seconds();
    if (s->in_phase >= 0) s->phase[s->in_phase].seconds += now - s->phase_began;
    s->phase_began = now;
    s->in_phase = -1;
    if (!name) return;
    int i = 0;
    while (i < s->phases && strcmp(s->phase[i].name, name)) i++;
    if (i == (int)(sizeof s->phase / sizeof *s->phase)) die("more phases than there is room for");
    if (i == s->phases) s->phase[s->phases++] = (Phase){name, 0};
    s->in_phase = i;
}

static void print_phases(Run *run) {
    struct RunState *s = run->state;
    double all = 0;
    for (int i = 0; i < s->phases; i++) all += s->phase[i].seconds;
    if (!(all > 0)) return;
    for (int i = 0; i < s->phases; i++) {
        printf("  %s %.1f s (%.0f %%)", s->phase[i].name, s->phase[i].seconds,
               100 * s->phase[i].seconds / all);
        s->phase[i].seconds = 0;
    }
    printf("\n");
}

/* ---- the log --------------------------------------------------------------------------------- */

/* A line of the log being written: for the file all figures, for a person the first `shown` of them
   (0: all), without those that are not finite. */
typedef struct {
    Str file, person;
    int n, shown;
} Line;

static Line begin_line(const Run *run, int shown) {
    Line l = {.shown = shown};
    str_printf(&l.file, "{\"step\": %d", run->step);
    str_printf(&l.person, "step %d/%d", run->step, run->total_steps);
    return l;
}

static void add_value(Line *l, const char *name, double value) {
    char text[64];
    str_printf(&l->file, ", \"%s\": %s", name, isfinite(value) ? number_text(value, text) : "null");
    const bool shown = !l->shown || l->n++ < l->shown;
    if (shown && isfinite(value)) str_printf(&l->person, "  %s %.5g", name, value);
}

static void end_line(Run *run, Line *l) {
    struct RunState *s = run->state;
    run_begin_writing(run);
    str_add(&l->file, "}\n", 2);
    if (s->log && (fwrite(l->file.s, 1, l->file.n, s->log) != l->file.n || fflush(s->log)))
        die("cannot write %s/log.jsonl: %s; the checkpoints are complete: free some space and use "
            "--resume",
            run->output, strerror(errno));
    run_clear_progress(run);
    printf("%s", l->person.s);
    if (s->trained > s->logged_trained)
        printf("  %.0f tokens/s",
               (double)(s->tokens - s->logged_tokens) / (s->trained - s->logged_trained));
    if (s->started) printf("  %.1f s", now_seconds() - s->started);
    printf("\n");
    fflush(stdout);
    s->logged_trained = s->trained;
    s->logged_tokens = s->tokens;
    free(l->file.s);
    free(l->person.s);
}

/* Has every mean an empty count? Then nothing was trained on since the last line. */
static bool nothing_to_say(const Run *run) {
    int means = 0;
    for (const Figure *f = run->state->figure; f < run->state->figure + run->state->figures; f++) {
        if (f->kind != FIGURE_MEAN) continue;
        if (f->count > 0) return false;
        means++;
    }
    return means > 0;
}

void watch_log(Run *run) {
    struct RunState *s = run->state;
    if (nothing_to_say(run)) return;
    Line line = begin_line(run, s->program->shown);
    for (int i = 0; i < s->figures; i++)
        if (s->figure[i].kind != FIGURE_HELD_OUT)
            add_value(&line, s->figure[i].name, value_of(run, &s->figure[i]));
    add_value(&line, "epoch", (double)run->step / run->steps_per_epoch);
    end_line(run, &line);
    print_phases(run);
    for (int i = 0; i < s->figures; i++)
        if (s->figure[i].kind != FIGURE_HELD_OUT) start_anew(&s->figure[i]);
}

void watch_log_held_out(Run *run) {
    struct RunState *s = run->state;
    Line line = begin_line(run, 0);
    int n = 0;
    for (int i = 0; i < s->figures; i++) {
        Figure *f = &s->figure[i];
        if (f->kind != FIGURE_HELD_OUT || !f->fresh) continue;
        add_value(&line, f->name, f->sum);
        f->fresh = false;
        n++;
    }
    if (n) {
        end_line(run, &line);
    } else {
        free(line.file.s);
        free(line.person.s);
    }
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
        if (k == KINDS || position(run, name) >= 0) return -1;
        Figure *f = figure(run, name, (FigureKind)k);
        f->sum = sum;
        f->count = count;
    }
    return 0;
}

void watch_free(Run *run) {
    struct RunState *s = run->state;
    for (int i = 0; i < s->figures; i++) free(s->figure[i].name);
    free(s->figure);
    s->figure = NULL;
    s->figures = 0;
}
