/*
 * flags.c - the table of flags: parser, defaults, help and echo. See flags.h.
 *
 * Left out on purpose: configuration files. A shell script of flags is one.
 */
#include "run/flags.h"

#include "text/utf8.h"

#include <ctype.h>
#include <libgen.h>
#include <limits.h>
#include <strings.h>
#include <unistd.h>

enum { LINE_WIDTH = 100, NAME_WIDTH = 63 };

struct FlagTable {
    Flag *row;  // ends with {0}
    int n;
    const char *preset;  // the value of --preset
    char *preset_help;   // the help of its row
};

/* ---- words and numbers ----------------------------------------------------------------------- */

bool word_in(const char *list, const char *name) {
    const size_t n = strlen(name);
    for (const char *p = list; p && (p = strstr(p, name)); p += n)
        if ((p == list || p[-1] == ' ') && (p[n] == ' ' || !p[n])) return true;
    return false;
}

static bool spelled_with(const char *text, const char *characters) {
    return *text && strspn(text, characters) == strlen(text);
}

bool read_whole(const char *text, long long *value) {
    char *end;
    errno = 0;
    *value = strtoll(text, &end, 10);
    return spelled_with(text, "+-0123456789") && !*end && !errno;
}

bool read_number(const char *text, double *value) {
    char *end;
    *value = strtod(text, &end);
    return spelled_with(text, "+-.eE0123456789") && !*end && isfinite(*value);
}

const char *number_text(double x, char text[64]) {
    const bool is_float = (double)(float)x == x;
    if (x == floor(x) && fabs(x) < 1e15) {
        snprintf(text, 64, "%.0f", x);
        return text;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, 64, "%.*g", digits, x);
        if (is_float ? strtof(text, NULL) == (float)x : strtod(text, NULL) == x) break;
    }
    return text;
}

/* ---- one flag and its value ------------------------------------------------------------------ */

/* The start of choice number i of "a|b|c", and its length. NULL past the last. */
static const char *choice(const char *choices, unsigned i, size_t *length) {
    const char *p = choices;
    for (; i && p; i--) p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL;
    if (p) *length = strcspn(p, "|");
    return p;
}

const char *flag_text(const Flag *f, char text[64]) {
    size_t length = 0;
    const char *word;
    switch (f->type) {
        case FLAG_BOOL: return *(bool *)f->value ? "true" : "false";
        case FLAG_INT: snprintf(text, 64, "%d", *(int *)f->value); return text;
        case FLAG_LONG: snprintf(text, 64, "%lld", (long long)*(int64_t *)f->value); return text;
        case FLAG_FLOAT: return number_text((double)*(float *)f->value, text);
        case FLAG_CHOICE:
            word = choice(f->choices, *(unsigned *)f->value, &length);
            snprintf(text, 64, "%.*s", (int)length, word);
            return text;
        default: return *(const char **)f->value;
    }
}

/* The values that a flag takes, for messages: "a whole number from 1 to 8". */
static const char *takes_text(const Flag *f, char text[256]) {
    if (f->type == FLAG_BOOL) return "true or false";
    if (f->type == FLAG_TEXT) return f->may_change_on_resume ? "a text" : "a text in UTF-8";
    if (f->type == FLAG_CHOICE) {
        snprintf(text, 256, "one of %s", f->choices);
        return text;
    }
    const char *kind = f->type == FLAG_FLOAT ? "a number" : "a whole number";
    if (f->low == 0 && f->high == 0)
        snprintf(text, 256, "%s", kind);
    else if (isinf(f->high))
        snprintf(text, 256, "%s, %.10g or more", kind, f->low);
    else
        snprintf(text, 256, "%s from %.10g to %.10g", kind, f->low, f->high);
    return text;
}

static bool outside(const Flag *f, double x) {
    return (f->low != 0 || f->high != 0) && !(x >= f->low && x <= f->high);
}

static bool read_choice(const Flag *f, const char *text) {
    size_t length;
    const char *word;
    for (unsigned i = 0; (word = choice(f->choices, i, &length)); i++)
        if (length == strlen(text) && !memcmp(word, text, length)) {
            *(unsigned *)f->value = i;
            return true;
        }
    return false;
}

/* Gives a flag the value that text spells. */
static int set_flag(const Flag *f, const char *text, Error *e) {
    char takes[256];
    long long whole = 0;
    double number = 0;
    bool understood = true, fits = true;
    switch (f->type) {
        case FLAG_BOOL:
            understood = !strcasecmp(text, "true") || !strcasecmp(text, "false");
            if (understood) *(bool *)f->value = !strcasecmp(text, "true");
            break;
        case FLAG_INT:
        case FLAG_LONG:
            understood = read_whole(text, &whole);
            fits = !outside(f, (double)whole) &&
                   (f->type == FLAG_LONG || (whole >= INT_MIN && whole <= INT_MAX));
            if (!understood || !fits) break;
            if (f->type == FLAG_INT)
                *(int *)f->value = (int)whole;
            else
                *(int64_t *)f->value = whole;
            break;
        case FLAG_FLOAT:
            understood = read_number(text, &number);
            fits = !outside(f, number) && isfinite((float)number) &&
                   (number == 0 || (float)number != 0);
            if (understood && fits) *(float *)f->value = (float)number;
            break;
        case FLAG_CHOICE: understood = read_choice(f, text); break;
        default:
            understood = f->may_change_on_resume || utf8_valid(text, strlen(text));
            if (understood) *(const char **)f->value = text;
    }
    if (understood && fits) return 0;
    return fail(e, "--%s \"%s\" %s; it takes %s", f->name, text,
                understood ? "is out of range" : "is not understood", takes_text(f, takes));
}

/* ---- the table ------------------------------------------------------------------------------- */

FlagTable *flags_new(void) {
    FlagTable *t = (FlagTable *)xcalloc(1, sizeof *t);
    t->row = (Flag *)xcalloc(1, sizeof *t->row);
    return t;
}

void flags_free(FlagTable *t) {
    if (!t) return;
    free(t->row);
    free(t->preset_help);
    free(t);
}

/* Gives a flag the default of its row. */
static int set_default(const Flag *f, Error *e) {
    if (f->type == FLAG_TEXT) *(const char **)f->value = NULL;
    return f->initial ? set_flag(f, f->initial, e) : 0;
}

void flags_add(FlagTable *t, const Flag *rows, const char *without) {
    for (const Flag *f = rows; f && f->name; f++) {
        if (*f->name && word_in(without, f->name)) {
            set_default(f, NULL);
            continue;
        }
        t->row = (Flag *)xrealloc(t->row, (size_t)t->n + 2, sizeof *t->row);
        t->row[t->n++] = *f;
        t->row[t->n] = (Flag){0};
    }
}

const Flag *flags_at(const FlagTable *t, int i) { return i >= 0 && i < t->n ? &t->row[i] : NULL; }

static Flag *find(const FlagTable *t, const char *name) {
    for (Flag *f = t->row; f->name; f++)
        if (f->type != FLAG_TITLE && !strcmp(f->name, name)) return f;
    return NULL;
}

const Flag *flags_find(const FlagTable *t, const char *name) { return find(t, name); }

/* The number of letters to change, add or remove to turn a into b (Levenshtein 1966). */
static int edit_distance(const char *a, const char *b) {
    int row[NAME_WIDTH + 1], la = (int)strlen(a), lb = (int)strlen(b);
    for (int j = 0; j <= lb; j++) row[j] = j;
    for (int i = 1; i <= la; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= lb; j++) {
            const int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = min_int(change, min_int(row[j], row[j - 1]) + 1);
        }
    }
    return row[lb];
}

/* The flag that was probably meant, or NULL. A name that contains the other (--output_dir,
   --batch_size) is near, too. */
static const Flag *nearest(const FlagTable *t, const char *name) {
    const Flag *best = NULL;
    if (!*name) return NULL;
    int least = max_int((int)strlen(name) / 2, 3);
    for (const Flag *f = t->row; f->name; f++) {
        if (f->type == FLAG_TITLE || strlen(f->name) > NAME_WIDTH) continue;
        int distance = edit_distance(name, f->name);
        const bool contains = strstr(name, f->name) || strstr(f->name, name);
        if (distance > 3 && contains) distance = 3;
        if (distance < least || (distance == least && !best)) {
            least = distance;
            best = f;
        }
    }
    return best;
}

/* ---- parsing --------------------------------------------------------------------------------- */

/* One "--name=value" of a command line. */
typedef struct {
    Flag *flag;
    const char *value;
} Setting;

/* "--Name-of-it=value": writes name_of_it into name and returns the value, or NULL. A longer name
   is cut: no flag has one. */
static const char *split(const char *argument, char name[NAME_WIDTH + 1]) {
    const char *p = argument + 2;
    const size_t length = strcspn(p, "="), n = length < NAME_WIDTH ? length : NAME_WIDTH;
    for (size_t i = 0; i < n; i++) name[i] = p[i] == '-' ? '_' : p[i];
    name[n] = 0;
    return p[length] ? p + length + 1 : NULL;
}

/* Is the next word there, and a value rather than the next flag? */
static bool value_follows(const Flag *f, const char *next) {
    if (!next) return false;
    if (f->type == FLAG_BOOL) return !strcasecmp(next, "true") || !strcasecmp(next, "false");
    return strncmp(next, "--", 2) != 0;
}

/* Reads the setting at word[*i] and moves *i to its last word. n words. */
static int read_setting(const FlagTable *t, int n, const char *const *word, int *i, Setting *s,
                        Error *e) {
    char name[NAME_WIDTH + 1], takes[256];
    const char *argument = word[*i];
    if (strncmp(argument, "--", 2) != 0 || !argument[2])
        return fail(e, "unexpected argument \"%s\"; every setting is --name value", argument);
    s->value = split(argument, name);
    s->flag = find(t, name);
    if (!s->flag && !strncmp(name, "no_", 3) && !s->value) {
        s->flag = find(t, name + 3);
        if (s->flag && s->flag->type != FLAG_BOOL) s->flag = NULL;
        s->value = "false";
    }
    if (!s->flag) {
        const Flag *near = nearest(t, name);
        return fail(e, "there is no flag %s%s%s%s", argument, near ? "; did you mean --" : "",
                    near ? near->name : "", near ? "?" : "");
    }
    if (!s->value && value_follows(s->flag, *i + 1 < n ? word[*i + 1] : NULL))
        s->value = word[++*i];
    if (!s->value) s->value = s->flag->type == FLAG_BOOL ? "true" : s->flag->bare;
    if (s->value) return 0;
    return fail(e, "--%s has no value; it takes %s", s->flag->name, takes_text(s->flag, takes));
}

/* Is the flag given, or a switch that a line of the program turned on? */
static bool is_on(const Flag *f) {
    return f->given || (f->type == FLAG_BOOL && *(const bool *)f->value);
}

/* Do the two exclude each other? */
static bool conflict(const Flag *a, const Flag *b) {
    return word_in(a->conflicts, b->name) || word_in(b->conflicts, a->name);
}

static bool conflicts_with_set(const FlagTable *t, const Flag *f) {
    for (const Flag *g = t->row; g->name; g++)
        if (is_on(g) && conflict(f, g)) return true;
    return false;
}

/* Applies a line of the program itself. In the example, a value "test/..." becomes the path that
   example_file finds, and a flag that conflicts with a given one, or with a switch that is on, is
   left out. */
static int apply_line(const FlagTable *t, const char *const *line, bool example, Error *e) {
    int n = 0;
    while (line && line[n]) n++;
    for (int i = 0; i < n; i++) {
        Setting s;
        if (read_setting(t, n, line, &i, &s, e)) return -1;
        if (example && conflicts_with_set(t, s.flag)) continue;
        if (example && !strncmp(s.value, "test/", 5)) s.value = example_file(s.value + 5);
        if (set_flag(s.flag, s.value, e)) return -1;
    }
    return 0;
}

static const Preset *find_preset(const Preset *presets, const char *name) {
    for (const Preset *p = presets; p && p->name; p++)
        if (!strcmp(p->name, name)) return p;
    return NULL;
}

static void add_preset_row(FlagTable *t, const Preset *presets) {
    Str help = {0};
    str_printf(&help, "Start from published settings: none");
    for (const Preset *p = presets; p->name; p++)
        str_printf(&help, "%s%s", p[1].name ? ", " : " or ", p->name);
    str_printf(&help, ". Flags on the command line override them.");
    t->preset_help = help.s;
    const Flag rows[] = {TITLE("Presets"), {"preset", TEXT(t->preset, "none"), help.s}, {0}};
    flags_add(t, rows, NULL);
}

/* Is a flag of the list "a b c" given on the command line? */
static bool any_given(const FlagTable *t, const char *list) {
    for (const Flag *f = t->row; f->name; f++)
        if (f->given && word_in(list, f->name)) return true;
    return false;
}

/* Is a flag of the list set, by the command line or by any line of the program? The word name=value
   asks for this value of a choice. */
static bool any_set(const FlagTable *t, const char *list) {
    for (const Flag *f = t->row; f->name; f++) {
        char value[64], word[128];
        if (f->type == FLAG_CHOICE) {
            snprintf(word, sizeof word, "%s=%s", f->name, flag_text(f, value));
            if (word_in(list, word)) return true;
        }
        if (f->type == FLAG_TITLE || !word_in(list, f->name)) continue;
        const char *text = f->type == FLAG_TEXT ? *(const char **)f->value : NULL;
        if (f->given || (text && *text) || (f->type == FLAG_BOOL && *(bool *)f->value)) return true;
    }
    return false;
}

/* Checks conflicts and only_with of the flags that are given. */
static int check_given(const FlagTable *t, Error *e) {
    for (const Flag *a = t->row; a->name; a++) {
        for (const Flag *b = t->row; b->name && is_on(a); b++)
            if (b->given && word_in(a->conflicts, b->name))
                return fail(e,
                            a->given ? "--%s and --%s are both given; give one of them"
                                     : "--%s is on, and --%s has no effect with it",
                            a->name, b->name);
        if (!a->given) continue;
        if (a->only_with && !any_set(t, a->only_with)) {
            Str names = {0};
            for (const char *p = a->only_with; *p; p += *p == ' ') {
                const size_t n = strcspn(p, " ");
                str_printf(&names, "%s--%.*s", names.n ? " or " : "", (int)n, p);
                p += n;
            }
            fail(e, "--%s has no effect without %s", a->name, names.s);
            free(names.s);
            return -1;
        }
    }
    return 0;
}

int flags_parse(FlagTable *t, const FlagLines *lines, int argc, char **argv, Error *e) {
    if (lines->presets && !find(t, "preset")) add_preset_row(t, lines->presets);
    for (Flag *f = t->row; f->name; f++) {
        f->given = false;
        if (set_default(f, e)) return -1;
    }
    if (apply_line(t, lines->program, false, e)) return -1;

    Setting *setting = (Setting *)xcalloc((size_t)argc + 1, sizeof *setting);
    int n = 0, status = 0;
    for (int i = 1; i < argc && !status; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            status = 1;
        } else if (read_setting(t, argc, (const char *const *)argv, &i, &setting[n], e)) {
            status = -1;
        } else {
            Flag *f = setting[n].flag;
            const char *value = setting[n++].value;
            f->given = f->type == FLAG_BOOL ? !strcasecmp(value, "true") : *value != 0;
            if (!strcmp(f->name, "preset")) t->preset = value;
        }
    }
    if (!status && lines->presets && strcmp(t->preset, "none")) {
        const Preset *preset = find_preset(lines->presets, t->preset);
        if (!preset)
            status = fail(e, "--preset \"%s\" is not known. %s", t->preset, t->preset_help);
        else
            status = apply_line(t, preset->line, false, e);
    }
    if (!status && lines->example && !any_given(t, lines->example_unless))
        status = apply_line(t, lines->example, true, e);
    for (int k = 0; k < n && !status; k++) status = set_flag(setting[k].flag, setting[k].value, e);
    free(setting);
    return status ? status : check_given(t, e);
}

/* ---- help and echo --------------------------------------------------------------------------- */

/* Prints text from column `column`, where the cursor is, to LINE_WIDTH, and breaks at blanks. */
static void print_wrapped(const char *text, int column) {
    int at = column;
    while (*text) {
        const int word = (int)strcspn(text, " ");
        if (at > column && at + 1 + word > LINE_WIDTH) {
            printf("\n%*s", column, "");
            at = column;
        } else if (at > column) {
            putchar(' ');
            at++;
        }
        printf("%.*s", word, text);
        at += word;
        text += word;
        text += strspn(text, " ");
    }
    putchar('\n');
}

/* Appends text as a shell reads it back. */
static void add_quoted(Str *line, const char *text) {
    bool plain = *text != 0;
    for (const char *p = text; *p; p++)
        plain &= isalnum((unsigned char)*p) || strchr("-_+./:,@%=", *p) != NULL;
    if (plain) {
        str_add(line, text, strlen(text));
        return;
    }
    str_add(line, "'", 1);
    for (const char *p = text; *p; p++) str_add(line, *p == '\'' ? "'\\''" : p, *p == '\'' ? 4 : 1);
    str_add(line, "'", 1);
}

/* A command line, with blanks inside a word quoted, from column `column` on. */
static void print_line(const char *const *line, int column) {
    Str text = {0};
    for (const char *const *word = line; *word; word++) {
        const size_t name = strcspn(*word, "=");
        str_printf(&text, "%s%.*s", text.n ? " " : "", (int)name, *word);
        if (!(*word)[name]) continue;
        str_add(&text, "=", 1);
        add_quoted(&text, *word + name + 1);
    }
    printf("%*s", column, "");
    print_wrapped(text.s, column);
    free(text.s);
}

void flags_print_help(const FlagTable *t, const FlagLines *lines, const char *program,
                      const char *about) {
    printf("usage: %s [--name value ...]\n\n%s\n", program, about);
    for (const Flag *f = t->row; f->name; f++) {
        char text[64];
        if (f->type == FLAG_TITLE) {
            printf("\n%s\n", f->help);
            continue;
        }
        const char *value = flag_text(f, text);
        int column = printf("  --%-28s %-12s", f->name, value && *value ? value : "-");
        if (column >= LINE_WIDTH / 2)
            column = printf("\n%46s", "") - 1;  // after a long default
        else
            column += printf(" ");
        Str help = {0};
        if (f->choices) str_printf(&help, "%s: ", f->choices);
        str_printf(&help, "%s", f->help);
        print_wrapped(help.s, column);
        free(help.s);
    }
    for (const Preset *p = lines->presets; p && p->name; p++) {
        if (p == lines->presets) printf("\nThe presets are these command lines:\n");
        printf("  --preset %s: %s\n", p->name, p->source);
        print_line(p->line, 4);
    }
    if (lines->example) {
        printf("\nWithout arguments, %s runs its built-in example:\n", program);
        print_line(lines->example, 4);
    }
    printf(
        "\nThe second column is the default. --name value and --name=value are the same, and so "
        "are "
        "- and _.\n--no_name turns a switch off. The last of two equal flags counts.\n");
}

/* May a command line that repeats the run name this flag? If not, its value has no effect. */
static bool may_echo(const FlagTable *t, const Flag *f) {
    if (!f->given && conflicts_with_set(t, f)) return false;
    return !f->only_with || any_set(t, f->only_with);
}

void flags_echo(const FlagTable *t) {
    int at = 0;
    for (const Flag *f = t->row; f->name; f++) {
        char text[64];
        const char *value = f->type == FLAG_TITLE ? NULL : flag_text(f, text);
        if (!value || !may_echo(t, f)) continue;
        Str word = {0};
        if (f->type == FLAG_BOOL) {
            str_printf(&word, "--%s%s", *(bool *)f->value ? "" : "no_", f->name);
        } else {
            str_printf(&word, "--%s=", f->name);
            add_quoted(&word, value);
        }
        if (at && at + 1 + (int)word.n > LINE_WIDTH) {
            printf(" \\\n");
            at = 0;
        }
        at += printf("%s%s", at ? " " : "  ", word.s);
        free(word.s);
    }
    printf("\n");
    fflush(stdout);
}

/* ---- the built-in example -------------------------------------------------------------------- */

const char *example_file(const char *name) {
    char program[4096], *dir = program;
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    Str path = {0};
    for (int up = 0; up < 3; up++) {  // ./sft is in test/'s directory, .build/gcc/sft two below it
        dir = dirname(dir);
        path.n = 0;
        str_printf(&path, "%s/test/%s", dir, name);
        if (access(path.s, F_OK) == 0) break;
    }
    static char *kept[32];  // each path once, for a leak checker
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        if (!kept[i]) return kept[i] = path.s;
        if (strcmp(kept[i], path.s)) continue;
        free(path.s);
        return kept[i];
    }
    return path.s;
}
