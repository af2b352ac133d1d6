/*
 * dump.c - files with a line for each answer, record or pair: see dump.h.
 */
#include "run/dump.h"

#include "ranks.h"
#include "run/lock.h"
#include "text/json.h"
#include "text/utf8.h"

#include <sys/stat.h>

/* The file, which stays open: a pipe ends for its reader when it is closed. A program has one. */
static FILE *file;

bool dump_begin(const Run *run, const char *path, const char *name) {
    Error e;
    if (!path || rank()) return false;
    run_check_output(run, name, run_checkpoint_dir(run) ? "{\"step\": " : NULL);
    if (run->step) run_cut_lines(run, path);
    if (lock_file(name, path, &e)) die_usage("%s", e.text);  // the file may be a new one
    if (file) fclose(file);
    file = open_named(path, run->step > 0);
    const bool empty = !run->step || (file && !fseek(file, 0, SEEK_END) && ftell(file) == 0);
    if (!file)
        die_usage("cannot write %s (--%s): %s; %s", path, name, strerror(errno),
                  error_remedy(errno));
    return empty;
}

void dump_append(const char *path, const char *name, const Str *lines) {
    struct stat s;
    if (rank()) return;
    if (fwrite(lines->s, 1, lines->n, file) != lines->n || fflush(file))
        die("cannot write %s (--%s): %s; %s, or choose another file", path, name, strerror(errno),
            error_remedy(errno));
    if (!fstat(fileno(file), &s) && !s.st_nlink && S_ISREG(s.st_mode))
        die("%s (--%s) was removed while this run wrote it; use --resume to continue", path, name);
}

/* ---- members of a line ----------------------------------------------------------------------- */

/* Appends one more number to an array, of which it is the i-th. */
static void add_number(Str *line, int i, const char *format, double x) {
    char text[32];
    if (i) str_add(line, ", ", 2);
    if (isfinite(x))
        str_add(line, text, (size_t)snprintf(text, sizeof text, format, x));
    else
        str_add(line, "null", 4);
}

void dump_numbers(Str *line, const char *name, const float *x, int n) {
    str_printf(line, ", \"%s\": [", name);
    for (int i = 0; i < n; i++) add_number(line, i, "%.9g", (double)x[i]);
    str_add(line, "]", 1);
}

void dump_number(Str *line, const char *name, double x) {
    str_printf(line, ", \"%s\": ", name);
    add_number(line, 0, "%.9g", x);
}

void dump_ints(Str *line, const char *name, const int *x, int n) {
    str_printf(line, ", \"%s\": [", name);
    for (int i = 0; i < n; i++) add_number(line, i, "%.0f", x[i]);
    str_add(line, "]", 1);
}

void dump_pieces(Str *line, const char *name, const Tokenizer *t, const int *tokens, int n) {
    Str bytes = {0}, text = {0};
    str_printf(line, ", \"%s\": [", name);
    for (int i = 0; i < n; i++) {
        text.n = 0;
        tokenizer_decode(t, tokens + i, 1, &bytes);
        utf8_stream(&bytes, i == n - 1, &text);
        if (i) str_add(line, ", ", 2);
        json_add_string(line, text.s, text.n);
    }
    str_add(line, "]", 1);
    free(bytes.s);
    free(text.s);
}

void dump_text(Str *line, const char *name, const Tokenizer *t, const int *tokens, int n) {
    Str text = {0};
    tokenizer_decode(t, tokens, (size_t)n, &text);
    str_printf(line, ", \"%s\": ", name);
    json_add_string(line, text.s, text.n);
    free(text.s);
}
