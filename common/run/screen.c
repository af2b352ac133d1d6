/*
 * screen.c - what a person sees of a run while it trains: the table of its figures, a line of
 * progress that is redrawn on a terminal, and elsewhere a line now and then.
 *
 * table.c knows the columns. log.c writes the same figures, and all others, into log.jsonl.
 */
#include "progress.h"
#include "run/private.h"
#include "run/streams.h"

/* ---- the plan -------------------------------------------------------------------------------- */

void run_print_plan(const Run *run, const char *one, int train, int held_out) {
    const long B = run->per_device_train_batch_size, batches = run->gradient_accumulation_steps;
    const double epochs = (double)run->total_steps / run->steps_per_epoch;
    printf("data: %d %s%s to train on, %d held out\n", train, one, plural(train), held_out);
    printf("steps: %d of %ld %s%s", run->total_steps, B * batches, one, plural(B * batches));
    if (batches > 1) printf(" (%ld batches of %ld)", batches, B);
    if (run->total_steps > 0) printf(", %.3g epoch%s", epochs, epochs == 1 ? "" : "s");
    printf("\n");
}

/* ---- the line of progress -------------------------------------------------------------------- */

static Run *followed;  // the run whose progress is shown

/* The seconds until the last step has ended; NAN: not known yet. The first step, which pays for
   memory that is touched for the first time, counts only as long as there is no other. */
static double seconds_left(const Run *run, int done) {
    const struct RunState *s = run->state;
    const int others = done - s->first_step, left = run_end(run) - done;
    if (!s->first_ended) return NAN;
    return others > 0 ? (now_seconds() - s->first_ended) / others * left
                      : (s->first_ended - s->started) * left;
}

/* "step 20/180  loss 0.0312  22041 tokens/s  12 s left", as far as that is known after `done`
   steps. brief: without the rate and the time, which leaves room for what is being done. */
static void add_state(const Run *run, int done, bool brief, Str *line) {
    const struct RunState *s = run->state;
    str_printf(line, "step %d/%d", done, run->total_steps);
    if (s->loss_known) str_printf(line, "  loss %.4f", s->loss);
    if (brief) return;
    if (s->trained > 0) str_printf(line, "  %.0f tokens/s", (double)s->tokens / s->trained);
    const double left = seconds_left(run, done);
    if (!isfinite(left)) return;
    str_printf(line, "  ");
    add_duration(line, left);
    str_printf(line, " left");
}

/* A name of one word in the plural, such as "examples", is what is counted: "16 of 64 examples". */
static void add_doing(const char *doing, long done, long all, Str *line) {
    const size_t n = strlen(doing);
    const bool counted = n && doing[n - 1] == 's' && !strchr(doing, ' ');
    if (counted && all > 1)
        str_printf(line, "%s%ld of %ld %s", line->n ? "  " : "", done, all, doing);
    if (counted) return;
    if (*doing) str_printf(line, "%s%s", line->n ? "  " : "", doing);
    if (*doing && all > 1) str_printf(line, ": %ld of %ld", done, all);
}

static void draw(Run *run, const Str *line, double now) {
    streams_progress(line->s);
    run->state->redrawn = now;
}

static void show(const char *doing, long done, long all) {
    Run *run = followed;
    struct RunState *s = run->state;
    const double now = now_seconds();
    const bool late = run->progress_seconds > 0 && now - s->said >= (double)run->progress_seconds;
    if (s->terminal ? now - s->redrawn < 0.1 : !late) return;
    Str line = {0};
    if (s->in_step || run->step)
        add_state(run, max_int(run->step, s->done), *doing && s->terminal, &line);
    add_doing(doing, done, all, &line);
    if (s->terminal && line.n) {
        draw(run, &line, now);
    } else if (line.n) {
        printf("%s\n", line.s);
        fflush(stdout);
        s->said = now;
    }
    free(line.s);
}

void screen_follow(Run *run) {
    if (!run->state->said) run->state->said = now_seconds();
    followed = run;
    progress_show(show);
}

void screen_leave(const Run *run) {
    if (!followed || followed->state != run->state) return;
    progress_show(NULL);
    followed = NULL;
}

/* Says once how long the run will take: after two steps, or after one that took long. */
static void expect(Run *run, int done) {
    struct RunState *s = run->state;
    const int left = run_end(run) - done;
    const bool known = done > s->first_step || s->first_ended - s->started > 5;
    if (s->expected || !known || left <= 0) return;
    Str time = {0};
    add_duration(&time, seconds_left(run, done));
    streams_progress("");
    printf("time: about %s for the other %d step%s, at %.0f tokens/s\n", time.s, left, plural(left),
           (double)s->tokens / s->trained);
    fflush(stdout);
    s->expected = true;
    free(time.s);
}

/* Rates leave out the first step as soon as there is another: a step may take minutes. */
void run_progress(Run *run, double loss, long tokens) {
    struct RunState *s = run->state;
    const double now = now_seconds();
    s->loss = loss;
    s->loss_known = !isnan(loss);
    if (!s->first_ended) {
        s->first_ended = now;
        s->first_step = run->step + 1;
    } else if (run->step == s->first_step) {
        s->trained = s->logged_trained = 0;
        s->tokens = s->logged_tokens = 0;
    }
    s->done = run->step + 1;
    s->trained += now - s->step_began;
    s->tokens += tokens;
    expect(run, s->done);
    if (!s->terminal || now - s->redrawn < 0.1) return;
    Str line = {0};
    add_state(run, s->done, false, &line);
    draw(run, &line, now);
    free(line.s);
}

/* ---- the table ------------------------------------------------------------------------------- */

enum { ROWS = 40 };  // after so many rows the heading comes again

/* The number of the first of the figures "a b" that has one; NAN: none has. */
static double number_of(const Run *run, const char *figures, bool held_out) {
    const struct RunState *s = run->state;
    for (const char *word = figures; word && *word;) {
        const size_t n = strcspn(word, " ");
        for (int i = 0; i < s->figures; i++) {
            const Figure *f = &s->figure[i];
            if (strlen(f->name) != n || strncmp(f->name, word, n)) continue;
            const double x = held_out && !f->fresh ? NAN : figure_value(run, f);
            if (isfinite(x)) return x;
        }
        word += n + (word[n] == ' ');
    }
    return NAN;
}

void run_without_figure(Run *run, const char *name) {
    char *to = run->state->without;
    const size_t n = strlen(to), room = sizeof run->state->without - n;
    snprintf(to + n, room, " %s ", name);
}

static void print_heading(Run *run) {
    struct RunState *s = run->state;
    Str text = {0};
    s->table = table_layout(s->program->name, run->total_steps, streams_columns(80), s->without);
    table_heading(&s->table, &text);
    printf("\n");
    streams_heading(text.s);
    free(text.s);
}

void screen_row(Run *run, bool held_out) {
    struct RunState *s = run->state;
    double value[MOST_COLUMNS], rate = NAN;
    char label[64];
    streams_progress("");
    if (s->rows++ % ROWS == 0) print_heading(run);
    for (int i = 0; i < s->table.n; i++) {
        const Column *c = s->table.column[i];
        value[i] = number_of(run, held_out ? c->held_out : c->figure, held_out);
    }
    if (held_out)
        snprintf(label, sizeof label, "held out");
    else
        snprintf(label, sizeof label, "%d/%d", run->step, run->total_steps);
    if (!held_out && s->trained > s->logged_trained)
        rate = (double)(s->tokens - s->logged_tokens) / (s->trained - s->logged_trained);
    Str row = {0};
    const double left = held_out ? NAN : seconds_left(run, run->step);
    table_row(&s->table, label, value, rate, left, held_out, &row);
    printf("%s\n", row.s);
    fflush(stdout);
    free(row.s);
    s->said = now_seconds();
    if (held_out) return;
    s->logged_trained = s->trained;
    s->logged_tokens = s->tokens;
}

void screen_times(const Run *run) {
    const struct RunState *s = run->state;
    double all = 0;
    if (!s->started) return;
    printf("time %.1f s", now_seconds() - s->started);
    if (s->trained > 0) printf(", %.0f tokens/s", (double)s->tokens / s->trained);
    for (int i = 0; i < s->phases; i++) all += s->phase[i].seconds;
    for (int i = 0; i < s->phases && all > 0; i++)
        printf(", %s %.1f s (%.0f %%)", s->phase[i].name, s->phase[i].seconds,
               100 * s->phase[i].seconds / all);
    printf("\n");
}
