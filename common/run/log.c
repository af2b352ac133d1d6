/*
 * log.c - the lines of a run's log: all figures in OUTPUT/log.jsonl, the first of them on stdout.
 */
#include "run/private.h"

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
            add_value(&line, s->figure[i].name, figure_value(run, &s->figure[i]));
    add_value(&line, "epoch", (double)run->step / run->steps_per_epoch);
    end_line(run, &line);
    print_phases(run);
    for (int i = 0; i < s->figures; i++)
        if (s->figure[i].kind != FIGURE_HELD_OUT) figure_start_anew(&s->figure[i]);
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
