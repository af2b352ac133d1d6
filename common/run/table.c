/*
 * table.c - the columns of each program, headings and rows: see table.h.
 */
#include "run/table.h"

#include <math.h>

#define GRADIENT_NORM \
    { "gradient|norm", "grad_norm", NULL, 8, AS_REWARD, 3, "the gradient's norm before clipping" }
#define LEARNING_RATE \
    { "learning|rate", "learning_rate lr", NULL, 8, AS_RATE, 3, "of the last step of the row" }

static const Column supervised[] = {
    {"loss", "loss", "eval_loss", 8, AS_LOSS, 0, "-log p of a scored token, in nats"},
    {"accuracy", "mean_token_accuracy", "eval_mean_token_accuracy", 8, AS_SHARE, 1,
     "scored tokens that are the likeliest"},
    GRADIENT_NORM,
    LEARNING_RATE,
    {0},
};

static const Column reward[] = {
    {"loss", "loss", "eval_loss", 8, AS_LOSS, 0, "of a pair; ln 2 = 0.69 is guessing"},
    {"accuracy", "accuracy", "eval_accuracy", 8, AS_SHARE, 1,
     "pairs whose better answer has the higher reward"},
    {"margin", "margin", "eval_margin", 7, AS_REWARD, 2, "reward of chosen less that of rejected"},
    GRADIENT_NORM,
    LEARNING_RATE,
    {0},
};

static const Column ppo[] = {
    {"reward", "objective/raw_scores", "eval/reward", 6, AS_REWARD, 0,
     "of an answer, as the judge gave it"},
    {"KL", "objective/kl_exact objective/kl_k1", "eval/kl_exact eval/kl", 6, AS_REWARD, 1,
     "from the initial model, in nats per answer"},
    {"length", "lengths/mean", "eval/length", 6, AS_LENGTH, 2, "of an answer, in tokens"},
    {"correct", NULL, "eval/correct", 7, AS_SHARE, 2,
     "held-out answers that contain the right one, where the data has it"},
    {"entropy", "policy/entropy_avg", NULL, 7, AS_REWARD, 5, "of the policy, in nats per token"},
    {"clipped", "policy/clipfrac_avg", NULL, 7, AS_SHARE, 4, "tokens whose ratio is clipped (12)"},
    {"value|loss", "loss/value_avg", NULL, 7, AS_REWARD, 6, "of the critic"},
    GRADIENT_NORM,
    LEARNING_RATE,
    {0},
};

static const Column constitutional[] = {
    {"loss", "loss", NULL, 8, AS_LOSS, 0, "-log p of a token of a revision, in nats"},
    {"accuracy", "mean_token_accuracy", NULL, 8, AS_SHARE, 4, "tokens that are the likeliest"},
    {"revised", "revised", NULL, 7, AS_SHARE, 5, "dialogues whose answer was revised"},
    {"breaches", NULL, "eval_breaches", 8, AS_SHARE, 1,
     "held-out answers that say one of --breaches"},
    {"criti-|cised", NULL, "eval_criticised", 7, AS_SHARE, 2,
     "held-out answers in which the model finds fault"},
    GRADIENT_NORM,
    LEARNING_RATE,
    {0},
};

const Column *table_columns(const char *program) {
    return !strcmp(program, "reward")           ? reward
           : !strcmp(program, "ppo")            ? ppo
           : !strcmp(program, "constitutional") ? constitutional
                                                : supervised;
}

/* ---- numbers --------------------------------------------------------------------------------- */

void add_duration(Str *out, double seconds) {
    const int minutes = (int)fmin(seconds / 60, 1e8);
    if (minutes >= 60)
        str_printf(out, "%d h %02d min", minutes / 60, minutes % 60);
    else if (minutes >= 2)
        str_printf(out, "%d min", minutes);
    else
        str_printf(out, "%.0f s", seconds);
}

/* The same in eight characters: "2h 05m" */
static void add_short_duration(Str *out, double seconds) {
    const int minutes = (int)fmin(seconds / 60, 59999);
    if (minutes >= 60)
        str_printf(out, "%dh %02dm", minutes / 60, minutes % 60);
    else
        add_duration(out, seconds);
}

/* Makes text the number in a format, if it fits into `width` columns. */
PRINTF_LIKE(3, 4) static bool fits(Str *text, int width, const char *format, ...) {
    char written[512];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(written, sizeof written, format, args);
    va_end(args);
    if (n > width || n >= (int)sizeof written) return false;
    str_add(text, written, (size_t)n);
    return true;
}

/* With as many decimals as fit. */
static bool fits_decimal(Str *text, int width, int decimals, double x, const char *unit) {
    for (; decimals >= 0; decimals--)
        if (fits(text, width, "%.*f%s", decimals, x, unit)) return true;
    return false;
}

/* With as many significant digits as fit. */
static bool fits_significant(Str *text, int width, double x) {
    for (int digits = 3; digits > 0; digits--)
        if (fits(text, width, "%.*g", digits, x)) return true;
    return fits(text, width, "%.0e", x);  // of -0.0004, -4e-04 is shorter
}

void table_number(Str *out, Form form, int width, double x) {
    static const int decimals[] = {[AS_LOSS] = 4, [AS_SHARE] = 1, [AS_REWARD] = 3,
                                   [AS_RATE] = 0, [AS_COUNT] = 0, [AS_LENGTH] = 1};
    if (form == AS_SHARE && fits_decimal(out, width, 1, 100 * x, " %")) return;
    if (form == AS_SHARE) x *= 100;
    const bool large = fabs(x) >= 1000, small = fabs(x) < 1e-3 && x != 0;
    const bool short_form =
        form == AS_RATE || ((form == AS_LOSS || form == AS_REWARD) && (large || small));
    if (short_form && fits(out, width, "%.3g", x)) return;
    if ((large || !short_form) && fits_decimal(out, width, short_form ? 0 : decimals[form], x, ""))
        return;
    if (fits_significant(out, width, x)) return;
    // its exponent has three digits, and does not fit either
    str_printf(out, "%s", fabs(x) < 1 ? "0" : x < 0 ? "<-1e99" : ">1e99");
}

int compare_printed(double a, double b, int decimals) {
    char x[512], y[512];
    snprintf(x, sizeof x, "%.*f", decimals, a);
    snprintf(y, sizeof y, "%.*f", decimals, b);
    const double p = atof(x), q = atof(y);
    return (p > q) - (p < q);
}

/* ---- layout ---------------------------------------------------------------------------------- */

enum { GAP = 2 };  // between two columns
static const Column rate_column = {"tokens|/s", NULL, NULL, 7, AS_COUNT, 0, NULL},
                    left_column = {"time|left", NULL, NULL, 8, AS_COUNT, 0, NULL};

static int width_of(const Table *t) {
    int width = t->step;
    for (int i = 0; i < t->n; i++) width += GAP + t->column[i]->width;
    return width;
}

/* Leaves out the last column of the highest rank. False: they are all of rank 0. */
static bool leave_one_out(Table *t) {
    int worst = -1;
    for (int i = 0; i < t->n; i++)
        if (t->column[i]->rank > 0 && (worst < 0 || t->column[i]->rank >= t->column[worst]->rank))
            worst = i;
    if (worst < 0) return false;
    t->n--;
    for (int i = worst; i < t->n; i++) t->column[i] = t->column[i + 1];
    return true;
}

/* Whether one of the figures "a b" may exist. without: the figures that cannot, " a b ". */
static bool may_exist(const char *figures, const char *without) {
    for (const char *word = figures; word && *word;) {
        const size_t n = strcspn(word, " ");
        char name[64];
        snprintf(name, sizeof name, " %.*s ", (int)n, word);
        if (!strstr(without, name)) return true;
        word += n + (word[n] == ' ');
    }
    return false;
}

Table table_layout(const char *program, int steps, int width, const char *without) {
    char last[32];
    Table t = {.step = max_int(8, 2 * snprintf(last, sizeof last, "%d", steps) + 1)};
    for (const Column *c = table_columns(program); c->heading; c++)
        if (may_exist(c->figure, without) || may_exist(c->held_out, without)) t.column[t.n++] = c;
    t.column[t.n++] = &rate_column;
    t.column[t.n++] = &left_column;
    while (width_of(&t) > width && leave_one_out(&t)) continue;
    return t;
}

/* The line of a heading, 0 or 1. A heading of one line is on the second. */
static const char *heading_line(const char *heading, int line, int *length) {
    const char *bar = strchr(heading, '|');
    const char *text = !bar ? (line ? heading : "") : line ? bar + 1 : heading;
    *length = bar && !line ? (int)(bar - heading) : (int)strlen(text);
    return text;
}

void table_heading(const Table *t, Str *out) {
    for (int line = 0; line < 2; line++) {
        str_printf(out, "%*s", t->step, line ? "step" : "");
        for (int i = 0; i < t->n; i++) {
            int length;
            const char *text = heading_line(t->column[i]->heading, line, &length);
            str_printf(out, "%*s%.*s", GAP + t->column[i]->width - length, "", length, text);
        }
        if (!line) str_add(out, "\n", 1);
    }
}

void table_row(const Table *t, const char *label, const double *value, double rate, double left,
               bool held_out, Str *out) {
    str_printf(out, "%*s", t->step, label);
    for (int i = 0; i < t->n; i++) {
        const Column *c = t->column[i];
        const bool blank = held_out || (!c->figure && c->held_out);
        const double x = c == &rate_column ? rate : c == &left_column ? left : value[i];
        Str text = {0};
        if (isfinite(x) && c == &left_column)
            add_short_duration(&text, x);
        else if (isfinite(x))
            table_number(&text, c->form, c->width, x);
        else
            str_printf(&text, "%s", blank ? "" : "-");
        str_printf(out, "%*s%s", max_int(1, GAP + c->width - (int)text.n), "", text.s);
        free(text.s);
    }
    while (out->n && out->s[out->n - 1] == ' ') out->s[--out->n] = 0;
}

void table_print_legend(const char *program) {
    printf("\nThe table that is printed in training; log.jsonl has more:\n");
    for (const Column *c = table_columns(program); c->heading; c++) {
        char name[32];
        snprintf(name, sizeof name, "%s", c->heading);
        char *bar = strchr(name, '|');
        if (bar && bar > name && bar[-1] == '-')
            memmove(bar - 1, bar + 1, strlen(bar));
        else if (bar)
            *bar = ' ';
        printf("  %-14s %s\n", name, c->means);
    }
}
