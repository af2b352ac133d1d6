/*
 * page.c - makes one HTML page of the logs and dumps of some runs, to be opened by double click.
 *
 *   page TOOLS RUN [RUN ...]     RUN: the --output of a program, or one JSONL file
 *
 * The page is RUN/page.html of the first run: TOOLS/template.html with the data in the place of its
 * line "<!-- data -->", and charts.js and reader.js in that of "<!-- script -->". Of a directory it
 * takes log.jsonl and each other *.jsonl whose lines it recognises: --dump_rollouts, --dump_tokens,
 * --dump_dialogues, transcripts.jsonl, --feedback.
 *
 * The data are JSON in <script type="application/json">, which no browser runs. The lines of a dump
 * are copied as they are, ten in each script, so that the page parses only those it shows; an
 * index has the numbers by which they are sorted. A line that is not JSON, or not of the kind of
 * the file's first good line, is left out, and both the page and stderr name it. In JSON, "<" can
 * occur only in a string; it is written as \u003c, so that no text ends a script.
 *
 * Exit status: 2 if an argument is wrong or there is nothing to show, 1 if the page cannot be
 * written.
 */
#include "text/json.h"
#include "text/jsonl.h"
#include "util.h"

#include <dirent.h>
#include <libgen.h>
#include <sys/stat.h>

enum { LINES_OF_A_CHUNK = 10, NAMED = 20, COLUMNS = 8 };

/* ---- the fields of a line -------------------------------------------------------------------- */

/* 0 if the member is a number (or, unless *x was set to INFINITY before, null or missing); *x gets
   it, or NAN. */
static int number(const json_t *o, const char *name, double *x, Error *e) {
    const json_t *value = json_object_get(o, name);
    const bool needed = *x == INFINITY;
    *x = json_is_number(value) ? json_number_value(value) : NAN;
    if (json_is_number(value) || (!needed && (!value || json_is_null(value)))) return 0;
    if (!value) return fail(e, "there is no \"%s\"", name);
    return fail(e, "\"%s\" is %s, expected a number", name, json_type_name(value));
}

/* 0 if the member is an array of numbers and nulls; *n < 0: of any length, which *n gets. sum gets
   their sum, and `numbers` (or NULL) how many are not null. */
static int array(const json_t *o, const char *name, int *n, double *sum, int *numbers, Error *e) {
    const json_t *all = json_object_get(o, name), *x;
    size_t i;
    if (!json_is_array(all)) return fail(e, "\"%s\" is not an array", name);
    if (*n < 0) *n = (int)json_array_size(all);
    if ((int)json_array_size(all) != *n)
        return fail(e, "\"%s\" has %zu elements, expected %d", name, json_array_size(all), *n);
    *sum = 0;
    if (numbers) *numbers = 0;
    json_array_foreach(all, i, x) {
        if (!json_is_number(x) && !json_is_null(x))
            return fail(e, "\"%s\" holds %s, expected a number", name, json_type_name(x));
        *sum += json_number_value(x);  // 0 of null
        if (numbers) *numbers += json_is_number(x);
    }
    return 0;
}

/* 0 if the member is an array of n strings (or, with `nulls`, nulls), or is missing and may be. */
static int texts(const json_t *o, const char *name, int n, bool needed, bool nulls, Error *e) {
    const json_t *all = json_object_get(o, name), *x;
    size_t i;
    if (!all && !needed) return 0;
    if (!json_is_array(all) || (int)json_array_size(all) != n)
        return fail(e, "\"%s\" is not an array of %d texts", name, n);
    json_array_foreach(all, i, x) {
        if (!json_is_string(x) && !(nulls && json_is_null(x)))
            return fail(e, "\"%s\" holds %s, expected a text", name, json_type_name(x));
    }
    return 0;
}

static int text(const json_t *o, const char *name, bool needed, Error *e) {
    const json_t *value = json_object_get(o, name);
    if (json_is_string(value) || (!value && !needed)) return 0;
    return fail(e, "\"%s\" is not a text", name);
}

static bool has(const json_t *o, const char *name) { return json_object_get(o, name) != NULL; }

/* ---- kinds of lines -------------------------------------------------------------------------- */

/* Checks a line, and fills in the numbers of the index, in the order of the kind's columns. */
typedef int Check(const json_t *o, double *x, Error *e);

static int check_rollout(const json_t *o, double *x, Error *e) {
    static const char *const others[] = {"value", "reward", "advantage", "return", "ratio"};
    double ignored, reference;
    int T = -1, N = -1;
    x[0] = x[2] = INFINITY;
    if (number(o, "step", &x[0], e) || number(o, "query", &x[2], e) ||
        number(o, "score", &x[3], e) || text(o, "prompt", true, e) ||
        text(o, "response", true, e) || array(o, "logp", &T, &x[5], NULL, e) ||
        array(o, "ref_logp", &T, &reference, NULL, e) ||
        array(o, "tokens", &N, &ignored, NULL, e) || texts(o, "pieces", N, false, false, e) ||
        array(o, "kl", &T, &x[6], NULL, e))
        return -1;
    if (T > N) return fail(e, "\"logp\" has %d elements, and \"tokens\" only %d", T, N);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (has(o, others[i]) && array(o, others[i], &T, &ignored, NULL, e)) return -1;
    x[1] = has(o, "held_out");
    x[4] = T;
    x[5] -= reference;  // Σ (log π_old - log π_ref), the KL by k1
    return 0;
}

static int check_record(const json_t *o, double *x, Error *e) {
    int T = -1, scored = 0;
    double ignored;
    x[0] = x[1] = INFINITY;
    if (number(o, "step", &x[0], e) || number(o, "record", &x[1], e) ||
        array(o, "loss", &T, &x[2], &scored, e) || array(o, "tokens", &T, &ignored, NULL, e) ||
        texts(o, "pieces", T, true, false, e) || texts(o, "likeliest", T, false, true, e))
        return -1;
    x[3] = scored;
    return 0;
}

static int check_answer(const json_t *o, const char *name, double *score, Error *e) {
    const json_t *answer = json_object_get(o, name);
    int T = -1;
    double ignored;
    *score = INFINITY;
    if (!json_is_object(answer)) return fail(e, "\"%s\" is not an object", name);
    if (json_is_null(json_object_get(answer, "score"))) *score = 0;
    return number(answer, "score", score, e) || array(answer, "value", &T, &ignored, NULL, e) ||
                   array(answer, "tokens", &T, &ignored, NULL, e) ||
                   texts(answer, "pieces", T, true, false, e)
               ? -1
               : 0;
}

static int check_pair(const json_t *o, double *x, Error *e) {
    x[0] = x[1] = INFINITY;
    if (number(o, "step", &x[0], e) || number(o, "pair", &x[1], e) || text(o, "prompt", true, e) ||
        check_answer(o, "chosen", &x[2], e) || check_answer(o, "rejected", &x[3], e) ||
        number(o, "p_chosen", &x[4], e))
        return -1;
    return 0;
}

static int check_dialogue(const json_t *o, double *x, Error *e) {
    const json_t *rounds = json_object_get(o, "rounds"), *round;
    size_t i;
    x[2] = INFINITY;
    if (number(o, "step", &x[0], e) || number(o, "epoch", &x[1], e) || number(o, "id", &x[2], e) ||
        text(o, "init_prompt", true, e) || text(o, "init_response", true, e) ||
        text(o, "ended", false, e))
        return -1;
    if (!json_is_array(rounds)) return fail(e, "\"rounds\" is not an array");
    x[3] = 0;
    json_array_foreach(rounds, i, round) {
        if (text(round, "principle", false, e) || text(round, "critic_response", false, e) ||
            text(round, "revision_response", false, e))
            return -1;
        x[3] += has(round, "revision_response");
    }
    return 0;
}

static int check_label(const json_t *o, double *x, Error *e) {
    x[0] = INFINITY;
    if (number(o, "p_chosen", &x[0], e) || number(o, "p_chosen_first", &x[1], e) ||
        number(o, "p_chosen_second", &x[2], e) || text(o, "prompt", false, e) ||
        text(o, "chosen", true, e) || text(o, "rejected", true, e))
        return -1;
    return 0;
}

/* A line with these two fields is of this kind. */
typedef struct {
    const char *name, *field[2];
    Check *check;
    const char *column[COLUMNS];
} Kind;

static const Kind kinds[] = {
    {"rollouts",
     {"response", "ref_logp"},
     check_rollout,
     {"step", "held_out", "query", "score", "length", "kl_k1", "kl"}},
    {"tokens", {"record", "loss"}, check_record, {"step", "record", "loss", "scored"}},
    {"pairs", {"pair", "rejected"}, check_pair, {"step", "pair", "chosen", "rejected", "p_chosen"}},
    {"dialogues", {"init_prompt", "rounds"}, check_dialogue, {"step", "epoch", "id", "revisions"}},
    {"labels", {"chosen", "p_chosen"}, check_label, {"p_chosen", "first", "second"}},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static const Kind *kind_of(const json_t *o) {
    for (const Kind *k = kinds; k < kinds + KINDS; k++)
        if (has(o, k->field[0]) && has(o, k->field[1])) return k;
    return NULL;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Writes JSON into a script element: nothing in it can end the element. U+2028 and U+2029 end lines
   in some readers of scripts. */
static void write_json(FILE *f, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '<') {
            fputs("\\u003c", f);
        } else if (n - i > 2 && !memcmp(s + i, "\xE2\x80\xA8", 3)) {
            fputs("\\u2028", f);
            i += 2;
        } else if (n - i > 2 && !memcmp(s + i, "\xE2\x80\xA9", 3)) {
            fputs("\\u2029", f);
            i += 2;
        } else {
            putc(s[i], f);
        }
    }
}

static void add_column(Str *column, int row, double x) {
    if (row) str_add(column, ",", 1);
    if (isfinite(x))
        str_printf(column, "%.17g", x);
    else
        str_add(column, "null", 4);
}

/* ---- a file ---------------------------------------------------------------------------------- */

/* A file of lines, while it is read. What the page says of it goes to `about`, its lines to page.
 */
typedef struct {
    FILE *page;
    const char *path;  // for messages
    char id[32];       // of its scripts: id-0, id-1, ...
    const Kind *kind;
    int n, left_out;
    Str column[COLUMNS], reasons;
} Reading;

static void leave_out(Reading *r, int line, const char *why) {
    Error e;
    fail(&e, "%s:%d: %s", r->path, line, why);
    make_printable(&e);
    if (r->left_out++ >= NAMED) return;
    fprintf(stderr, "note: left out %s\n", e.text);
    fail(&e, "line %d: %s", line, why);
    make_printable(&e);
    if (r->left_out > 1) str_add(&r->reasons, ",", 1);
    json_add_string(&r->reasons, e.text, strlen(e.text));
}

/* Adds a line of a dump; of a kind unknown so far it decides the kind of the file. */
static void add_line(Reading *r, const char *line, size_t n, int number_of_line) {
    json_error_t where;
    Error e;
    double x[COLUMNS] = {0};
    json_t *o = json_loadb(line, n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &where);
    const Kind *kind = json_is_object(o) ? kind_of(o) : NULL;
    if (!r->kind && kind) r->kind = kind;
    if (!o) {
        fail(&e, "column %d: invalid JSON: %s", where.column, where.text);
    } else if (!kind || kind != r->kind) {
        fail(&e, "it has not the fields of %s", r->kind ? r->kind->name : "any dump");
    } else if (!kind->check(o, x, &e)) {
        const int row = r->n++;
        if (row % LINES_OF_A_CHUNK == 0)
            fprintf(r->page, "%s<script type=\"application/json\" id=\"%s-%d\">[\n",
                    row ? "]</script>\n" : "", r->id, row / LINES_OF_A_CHUNK);
        else
            fputs(",\n", r->page);
        write_json(r->page, line, n);
        for (int c = 0; c < COLUMNS && kind->column[c]; c++) add_column(&r->column[c], row, x[c]);
        json_decref(o);
        return;
    }
    leave_out(r, number_of_line, e.text);
    json_decref(o);
}

/* Adds a line of log.jsonl: an object of numbers and nulls. */
static void add_log_line(Reading *r, const char *line, size_t n, int number_of_line, Str *log) {
    json_error_t where;
    Error e;
    const char *name;
    json_t *o = json_loadb(line, n, JSON_REJECT_DUPLICATES, &where), *value;
    double step = INFINITY;
    bool bad = false;
    if (!o) {
        bad = fail(&e, "column %d: invalid JSON: %s", where.column, where.text);
    } else if (!json_is_object(o)) {
        bad = fail(&e, "it is not an object");
    } else {
        bad = number(o, "step", &step, &e);
        json_object_foreach(o, name, value) {
            if (!bad && !json_is_number(value) && !json_is_null(value))
                bad = fail(&e, "\"%.40s\" is %s, expected a number", name, json_type_name(value));
        }
    }
    if (bad) {
        leave_out(r, number_of_line, e.text);
    } else {
        if (r->n++) str_add(log, ",\n", 2);
        str_add(log, line, n);
    }
    json_decref(o);
}

/* Calls one of these two for each line of the file that is not blank. log NULL: of a dump. */
static void read_lines(Reading *r, Str *log) {
    FILE *f = fopen(r->path, "rb");
    if (!f) die_usage("cannot open %s: %s", r->path, strerror(errno));
    char *line = NULL;
    size_t room = 0;
    int number_of_line = 0;
    for (ssize_t n; (n = getline(&line, &room, f)) > 0;) {
        const char *from = line;
        if (!number_of_line++ && n >= 3 && !memcmp(line, "\xEF\xBB\xBF", 3)) from += 3;
        size_t length = (size_t)(line + n - from);
        while (length && strchr(" \t\r\n", from[length - 1]) && from[length - 1]) length--;
        while (length && (*from == ' ' || *from == '\t')) {
            from++;
            length--;
        }
        if (!length) continue;
        if (log)
            add_log_line(r, from, length, number_of_line, log);
        else
            add_line(r, from, length, number_of_line);
    }
    if (ferror(f)) die_usage("cannot read %s: %s", r->path, strerror(errno));
    free(line);
    fclose(f);
}

/* Reads a dump, and appends what the page must know of it to files. */
static void take_dump(FILE *page, const char *path, int number_of_file, Str *files) {
    Reading r = {.page = page, .path = path};
    struct stat s;
    if (stat(path, &s) || !S_ISREG(s.st_mode)) return;  // not a file: nothing to read
    snprintf(r.id, sizeof r.id, "lines-%d", number_of_file);
    read_lines(&r, NULL);
    if (r.n) fputs("]</script>\n", page);
    str_printf(files, "%s{\"name\": ", files->n ? ",\n" : "");
    json_add_string(files, path, strlen(path));
    str_printf(files, ", \"id\": \"%s\", \"kind\": \"%s\", \"n\": %d, \"chunk\": %d", r.id,
               r.n ? r.kind->name : "unknown", r.n, LINES_OF_A_CHUNK);
    str_printf(files, ", \"left_out\": %d, \"reasons\": [%s], \"columns\": {", r.left_out,
               r.reasons.s ? r.reasons.s : "");
    for (int c = 0; r.n && c < COLUMNS && r.kind->column[c]; c++) {
        str_printf(files, "%s\"%s\": [", c ? ",\n" : "", r.kind->column[c]);
        str_add(files, r.column[c].s, r.column[c].n);
        str_add(files, "]", 1);
    }
    str_add(files, "}}", 2);
    for (int c = 0; c < COLUMNS; c++) free(r.column[c].s);
    free(r.reasons.s);
}

/* ---- a run ----------------------------------------------------------------------------------- */

static int is_jsonl(const struct dirent *d) {
    const size_t n = strlen(d->d_name);
    return n > 6 && !strcmp(d->d_name + n - 6, ".jsonl") && strcmp(d->d_name, "log.jsonl") != 0;
}

/* Reads a run. Appends an object with its log and its dumps to runs. */
static void take_run(FILE *page, const char *run, int *files_so_far, Str *runs) {
    struct stat s;
    if (stat(run, &s)) die_usage("%s: %s; name the directory of --output", run, strerror(errno));
    Str log = {0}, files = {0};
    Reading reading = {.page = page};
    if (S_ISDIR(s.st_mode)) {
        char *path = path_join(run, "log.jsonl");
        reading.path = path;
        if (file_exists(path)) read_lines(&reading, &log);
        struct dirent **name;
        const int n = scandir(run, &name, is_jsonl, alphasort);
        if (n < 0) die_usage("cannot read %s: %s", run, strerror(errno));
        for (int i = 0; i < n; i++) {
            char *dump = path_join(run, name[i]->d_name);
            take_dump(page, dump, (*files_so_far)++, &files);
            free(dump);
            free(name[i]);
        }
        free(name);
        free(path);
    } else {
        take_dump(page, run, (*files_so_far)++, &files);
    }
    if (!reading.n && !files.n)
        die_usage("%s holds no log.jsonl with a line and no dump; give the --output of a run", run);
    str_printf(runs, "%s{\"name\": ", runs->n ? ",\n" : "");
    json_add_string(runs, run, strlen(run));
    str_printf(runs, ",\n\"left_out\": %d, \"reasons\": [%s],\n\"log\": [", reading.left_out,
               reading.reasons.s ? reading.reasons.s : "");
    if (log.n) str_add(runs, log.s, log.n);
    str_printf(runs, "],\n\"files\": [");
    if (files.n) str_add(runs, files.s, files.n);
    str_add(runs, "]}", 2);
    free(log.s);
    free(files.s);
    free(reading.reasons.s);
}

/* ---- the page -------------------------------------------------------------------------------- */

/* RUN/page.html, or page.html next to the file RUN. */
static char *page_of(const char *run) {
    struct stat s;
    if (!stat(run, &s) && S_ISDIR(s.st_mode)) return path_join(run, "page.html");
    char *copy = xstrdup(run), *path = path_join(dirname(copy), "page.html");
    free(copy);
    return path;
}

/* Writes the template up to the line `mark`, and returns what follows it. */
static const char *write_up_to(const char *mark, const char *from, FILE *f) {
    const char *at = strstr(from, mark);
    if (!at) die("the template has no line %s", mark);
    fwrite(from, 1, (size_t)(at - from), f);
    return at + strlen(mark);
}

/* Appends all of one file to another. */
static void copy_file(FILE *from, FILE *to) {
    char block[1 << 16];
    rewind(from);
    for (size_t n; (n = fread(block, 1, sizeof block, from)) > 0;) fwrite(block, 1, n, to);
    if (ferror(from)) die("cannot read a temporary file: %s", strerror(errno));
}

static void read_tool(const char *tools, const char *name, Str *out) {
    Error e;
    char *path = path_join(tools, name);
    if (read_file(path, 1 << 24, out, &e)) die_usage("%s", e.text);
    free(path);
}

int main(int argc, char **argv) {
    Error e;
    Str template = {0}, script = {0}, runs = {0};
    NewFile file;
    if (argc < 3)
        die_usage(
            "which run? make page RUN=out/ppo, where out/ppo was the --output of a program; "
            "several: RUN=\"out/a out/b\"");
    read_tool(argv[1], "template.html", &template);
    read_tool(argv[1], "charts.js", &script);
    read_tool(argv[1], "reader.js", &script);
    // The lines of all dumps come first, so that a wrong argument leaves no half page
    FILE *lines = tmpfile();
    if (!lines) die("cannot make a temporary file: %s", strerror(errno));
    int files = 0;
    for (int i = 2; i < argc; i++) take_run(lines, argv[i], &files, &runs);
    if (fflush(lines)) die("cannot write a temporary file: %s", strerror(errno));
    char *path = page_of(argv[2]);
    if (newfile_open(&file, path, &e)) die("%s", e.text);
    const char *rest = write_up_to("<!-- data -->\n", template.s, file.f);
    copy_file(lines, file.f);
    fclose(lines);
    fputs("<script type=\"application/json\" id=\"data\">{\"runs\": [\n", file.f);
    write_json(file.f, runs.s, runs.n);
    fputs("\n]}</script>\n", file.f);
    rest = write_up_to("<!-- script -->\n", rest, file.f);
    fwrite(script.s, 1, script.n, file.f);
    fputs(rest, file.f);
    if (newfile_close(&file, true, &e)) die("%s", e.text);
    printf("%s: open it in a browser\n", path);
    free(path);
    free(template.s);
    free(script.s);
    free(runs.s);
}
