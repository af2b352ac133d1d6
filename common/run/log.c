/*
 * log.c - the lines of a run's log: all figures in OUTPUT/log.jsonl, some of them in the table.
 */
#include "run/private.h"
#include "text/jsonl.h"

#include <sys/stat.h>

/* Begins a line of the log. */
static Str begin_line(const Run *run) {
    Str line = {0};
    str_printf(&line, "{\"step\": %d", run->step);
    return line;
}

static void add_value(Str *line, const char *name, double value) {
    char text[64];
    if (!isfinite(value)) return;
    str_printf(line, ", \"%s\": %s", name, number_text(value, text));
}

void watch_cannot_write(const Run *run) {
    const int error = errno;
    die("cannot write %s/log.jsonl: %s; %s", run->output, strerror(error),
        checkpoint_remedy(run, error_remedy(error)));
}

static void write_line(const Run *run, const Str *line) {
    FILE *log = run->state->log;
    if (log && (fwrite(line->s, 1, line->n, log) != line->n || fflush(log)))
        watch_cannot_write(run);
}

static void end_line(Run *run, Str *line) {
    run_begin_writing(run);
    str_add(line, "}\n", 2);
    write_line(run, line);
    free(line->s);
}

/* Has every mean an empty count? Then nothing was trained on since the last line. */
static bool nothing_to_say(const Run *run) {
    int means = 0;
    for (int i = 0; i < run->state->figures; i++) {
        const Figure *f = &run->state->figure[i];
        if (f->kind != FIGURE_MEAN) continue;
        if (f->count > 0) return false;
        means++;
    }
    return means > 0;
}

void watch_log(Run *run) {
    struct RunState *s = run->state;
    if (nothing_to_say(run)) return;
    Str line = begin_line(run);
    for (int i = 0; i < s->figures; i++)
        if (s->figure[i].kind != FIGURE_HELD_OUT)
            add_value(&line, s->figure[i].name, figure_value(run, &s->figure[i]));
    add_value(&line, "epoch", (double)run->step / run->steps_per_epoch);
    end_line(run, &line);
    screen_row(run, false);
    for (int i = 0; i < s->figures; i++)
        if (s->figure[i].kind != FIGURE_HELD_OUT) figure_start_anew(&s->figure[i]);
}

/* Adds the held-out figures that no line has yet, and returns how many these are. */
static int add_fresh(const Run *run, Str *line) {
    int n = 0;
    for (int i = 0; i < run->state->figures; i++) {
        const Figure *f = &run->state->figure[i];
        if (f->kind != FIGURE_HELD_OUT || !f->fresh) continue;
        add_value(line, f->name, f->sum);
        n++;
    }
    return n;
}

/* They are shown, and in no further line. */
static void show_fresh(Run *run) {
    screen_row(run, true);
    for (int i = 0; i < run->state->figures; i++) run->state->figure[i].fresh = false;
}

void watch_log_held_out(Run *run) {
    Str line = begin_line(run);
    if (!add_fresh(run, &line)) {
        free(line.s);
        return;
    }
    end_line(run, &line);
    show_fresh(run);
}

/* ---- before training ------------------------------------------------------------------------- */

void watch_log_before(Run *run) {
    struct RunState *s = run->state;
    Str line = begin_line(run);
    if (!add_fresh(run, &line)) {
        free(line.s);
        return;
    }
    free(s->first_line.s);
    s->first_line = line;
    str_add(&s->first_line, "}\n", 2);
    watch_write_first(run);
    show_fresh(run);
}

void watch_write_first(Run *run) {
    struct RunState *s = run->state;
    if (!s->log || !s->first_line.n || s->first_logged || s->continues) return;
    write_line(run, &s->first_line);
    s->first_logged = true;
}

void watch_add_held_out(const Run *run, Str *text) {
    char number[64];
    for (int i = 0; i < run->state->figures; i++) {
        const Figure *f = &run->state->figure[i];
        if (f->kind == FIGURE_HELD_OUT && isfinite(f->sum))
            str_printf(text, ", \"%s\": %s", f->name, number_text(f->sum, number));
    }
}

/* Does a line belong to a step that does not come again? If the evaluation after the last step
   does, its lines go; those of the step itself have its epoch, or are its answers. */
static bool stays(const Run *run, const char *line) {
    int step;
    if (sscanf(line, "{\"step\": %d", &step) != 1 || step > run->step) return false;
    return step < run->step || !run->state->postponed || strstr(line, "\"epoch\": ") ||
           strstr(line, "\"episode\": ");
}

void run_cut_lines(const Run *run, const char *path) {
    Str line = {0};
    Error e;
    struct stat s;
    NewFile new;
    if (!stat(path, &s) && !S_ISREG(s.st_mode)) return;  // a pipe has no lines of before
    FILE *old = fopen(path, "rbe");
    if (!old && errno == ENOENT) return;
    if (!old) die("cannot open %s: %s", path, strerror(errno));
    if (newfile_open_named(&new, path, &e)) die("%s", e.text);
    int got;
    while ((got = read_line(old, LINE_LIMIT, &line, &e)) > 0)
        if (line.s[line.n - 1] == '\n' && stays(run, line.s)) fwrite(line.s, 1, line.n, new.f);
    if (got < 0) {
        newfile_close(&new, false, NULL);
        die("cannot read %s: %s", path, e.text);
    }
    fclose(old);
    if (newfile_close(&new, true, &e)) die("%s", e.text);
    free(line.s);
}
