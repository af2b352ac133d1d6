/*
 * flags.c - the table of flags: parser, defaults and echo. See flags.h; --help is in help.c.
 *
 * Left out on purpose: configuration files. A shell script of flags is one.
 */
#include "run/flags.h"

#include "run/spelling.h"
#include "text/utf8.h"

#include <ctype.h>
#include <libgen.h>
#include <limits.h>
#include <strings.h>
#include <unistd.h>

enum { NAME_WIDTH = 63 };

struct FlagTable {
    Flag *row;  // ends with {0}
    int n;
    char **usual;   // (n) each flag's default in this program, as text; NULL: not set
    char **parsed;  // (n) its value after parsing, likewise; the program may have changed it since
    const char *preset;  // the value of --preset
    char *preset_help;   // the help of its row
    char **joined;       // (joined_n) values that were made of several words
    int joined_n;
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
            if (!*text && !f->may_be_empty && !f->initial)
                return fail(e,
                            "--%s is empty; perhaps a variable of the shell is not set; leave the "
                            "flag out, or give it a value",
                            f->name);
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

static void free_values(const FlagTable *t, char ***values) {
    for (int i = 0; *values && i < t->n; i++) free((*values)[i]);
    free(*values);
    *values = NULL;
}

/* Notes the values that the flags have now. */
static void note_values(const FlagTable *t, char ***values) {
    free_values(t, values);
    *values = (char **)xcalloc((size_t)t->n + 1, sizeof **values);
    for (int i = 0; i < t->n; i++) {
        char text[64];
        const char *value = t->row[i].type == FLAG_TITLE ? NULL : flag_text(&t->row[i], text);
        (*values)[i] = value ? xstrdup(value) : NULL;
    }
}

void flags_free(FlagTable *t) {
    if (!t) return;
    for (int i = 0; i < t->joined_n; i++) free(t->joined[i]);
    free(t->joined);
    free_values(t, &t->usual);
    free_values(t, &t->parsed);
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
    free_values(t, &t->usual);
    free_values(t, &t->parsed);
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

/* Is one name the other's beginning or end, up to a "_"? --output_path, --batch_size. Of a name
   that was typed (whole false) the beginning may end anywhere: --max_len. */
static bool is_part(const char *longer, const char *shorter, bool whole) {
    const size_t n = strlen(longer), m = strlen(shorter);
    if (m >= n || m < 4) return false;
    return (!strncmp(longer, shorter, m) && (longer[m] == '_' || !whole)) ||
           (!strcmp(longer + n - m, shorter) && longer[n - m - 1] == '_');
}

/* The flag that was probably meant, or NULL: one of almost the same letters, or one whose name is a
   part of the other's. */
static const Flag *nearest(const FlagTable *t, const char *name) {
    const char *meant = spelling_meant(name);
    const Flag *best = meant ? find(t, meant) : NULL;
    if (best || !*name) return best;
    int least = min_int((int)strlen(name) / 4, 3) + 1;
    for (const Flag *f = t->row; f->name; f++) {
        if (f->type == FLAG_TITLE || strlen(f->name) > NAME_WIDTH) continue;
        const int distance = edit_distance(name, f->name);
        if (distance >= least) continue;
        least = distance;
        best = f;
    }
    for (const Flag *f = t->row; f->name && !best; f++)
        if (f->type != FLAG_TITLE &&
            (is_part(name, f->name, true) || is_part(f->name, name, false)))
            best = f;
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

/* Reads a flag that does not exist here, at word[*i], with this name and the value after "=", or
   NULL. Returns 0 if it is a flag of another library whose value is what happens anyway, else -1
   with e filled. */
static int read_foreign(const FlagTable *t, int n, const char *const *word, int *i,
                        const char *name, const char *value, Error *e) {
    const char *values, *why, *argument = word[*i];
    bool known = spelling_foreign(name, &values, &why);
    if (!known && !value && !strncmp(name, "no_", 3)) {
        known = spelling_foreign(name + 3, &values, &why);
        name += 3;
        value = "false";
    }
    if (!known) {
        const Flag *near = nearest(t, name);
        return fail(e, "there is no flag %s%s%s%s", argument, near ? "; did you mean --" : "",
                    near ? near->name : "", near ? "?" : "");
    }
    const bool follows = !value && *i + 1 < n && strncmp(word[*i + 1], "--", 2) != 0;
    if (!value) value = follows ? word[++*i] : "true";
    size_t length;
    const char *same;
    for (unsigned k = 0; *values && (same = choice(values, k, &length)); k++)
        if (strlen(value) == length && !strncasecmp(same, value, length)) return 0;
    if (*values)
        return fail(e, "--%s %s has no counterpart here, only %s: %s", name, value, values, why);
    return fail(e, "--%s has no counterpart here: %s", name, why);
}

/* Reads the setting at word[*i] and moves *i to its last word. n words. s->flag NULL: it sets
   nothing. */
static int read_setting(const FlagTable *t, int n, const char *const *word, int *i, Setting *s,
                        Error *e) {
    char name[NAME_WIDTH + 1], takes[256];
    const char *argument = word[*i];
    if (strncmp(argument, "--", 2) != 0 || !argument[2])
        return fail(e, "unexpected argument \"%s\"; every setting is --name value", argument);
    const char *value = s->value = split(argument, name);
    s->flag = find(t, name);
    if (!s->flag && spelling_alias(name)) s->flag = find(t, spelling_alias(name));
    Flag *positive = !s->flag && !strncmp(name, "no_", 3) ? find(t, name + 3) : NULL;
    if (positive && positive->type == FLAG_BOOL) {
        if (value)
            return fail(e, "--%s takes no value; use --%s or --%s true", name, name, name + 3);
        s->flag = positive;
        s->value = "false";
    }
    if (!s->flag) return read_foreign(t, n, word, i, name, value, e);
    if (!s->value && value_follows(s->flag, *i + 1 < n ? word[*i + 1] : NULL))
        s->value = word[++*i];
    if (!s->value) s->value = s->flag->type == FLAG_BOOL ? "true" : s->flag->bare;
    if (s->value) return 0;
    return fail(e, "--%s has no value; it takes %s", s->flag->name, takes_text(s->flag, takes));
}

bool flags_idle(const Flag *f) {
    return f->type == FLAG_INT && f->low == 0 && *(const int *)f->value == 0;
}

/* Is a number the default of its row? */
static bool is_default(const Flag *f) {
    char text[64];
    double initial;
    const bool number = f->type == FLAG_INT || f->type == FLAG_LONG || f->type == FLAG_FLOAT;
    return number && f->initial && read_number(f->initial, &initial) &&
           strtod(flag_text(f, text), NULL) == initial;
}

/* Does a given flag ask for something else than what its row says? */
static bool asks(const Flag *f) { return f->given && !flags_idle(f) && !is_default(f); }

/* Is the flag given, or a switch that a line of the program turned on? */
static bool is_on(const Flag *f) {
    return asks(f) || (f->type == FLAG_BOOL && *(const bool *)f->value);
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
        if (example && !strncmp(s.value, "test/", 5)) {
            s.value = example_file(s.value + 5);
            if (example_check(s.value, e)) return -1;
        }
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

int flags_check_uses(const FlagTable *t, const char *mode, const char *uses, Error *e) {
    for (const Flag *f = t->row; f->name; f++)
        if (f->given && !flags_idle(f) && strcmp(f->name, mode) && !word_in(uses, f->name))
            return fail(e, "--%s has no effect with --%s", f->name, mode);
    return 0;
}

/* Has the program the flag of a word "name" or "name=value" of n characters? */
static bool exists(const FlagTable *t, const char *word, size_t n) {
    const size_t equals = strcspn(word, "=");
    if (equals < n) n = equals;
    for (const Flag *f = t->row; f->name; f++)
        if (strlen(f->name) == n && !strncmp(f->name, word, n)) return true;
    return false;
}

/* Checks conflicts, uses and only_with of the flags that are given. */
static int check_given(const FlagTable *t, Error *e) {
    for (const Flag *a = t->row; a->name; a++) {
        for (const Flag *b = t->row; b->name && is_on(a); b++)
            if (asks(b) && word_in(a->conflicts, b->name))
                return fail(e,
                            a->given ? "--%s and --%s are both given; give one of them"
                                     : "--%s is on, and --%s has no effect with it",
                            a->name, b->name);
        if (is_on(a) && a->uses && flags_check_uses(t, a->name, a->uses, e)) return -1;
        if (!a->given || flags_idle(a)) continue;
        if (a->only_with && !any_set(t, a->only_with)) {
            Str names = {0};
            for (const char *p = a->only_with; *p; p += *p == ' ') {
                const size_t n = strcspn(p, " ");
                if (exists(t, p, n))
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

/* The value of a flag of many words, with those that follow word *i, up to the next flag. */
static const char *join_words(FlagTable *t, const char *value, int n, char **word, int *i) {
    if (*i + 1 >= n || !strncmp(word[*i + 1], "--", 2)) return value;
    Str all = {0};
    str_printf(&all, "%s", value);
    while (*i + 1 < n && strncmp(word[*i + 1], "--", 2) != 0) str_printf(&all, ",%s", word[++*i]);
    t->joined = (char **)xrealloc(t->joined, (size_t)t->joined_n + 1, sizeof *t->joined);
    return t->joined[t->joined_n++] = all.s;
}

int flags_parse(FlagTable *t, const FlagLines *lines, int argc, char **argv, Error *e) {
    if (lines->presets && !find(t, "preset")) add_preset_row(t, lines->presets);
    for (Flag *f = t->row; f->name; f++) {
        f->given = false;
        if (set_default(f, e)) return -1;
    }
    if (apply_line(t, lines->program, false, e)) return -1;
    note_values(t, &t->usual);

    Setting *setting = (Setting *)xcalloc((size_t)argc + 1, sizeof *setting);
    int n = 0, status = 0;
    for (int i = 1; i < argc && !status; i++) {
        if (!strcmp(argv[i], "--help")) {
            status = FLAGS_HELP;
        } else if (!strcmp(argv[i], "-h")) {
            status = FLAGS_SHORT_HELP;
        } else if (!strcmp(argv[i], "--version")) {
            status = FLAGS_VERSION;
        } else if (read_setting(t, argc, (const char *const *)argv, &i, &setting[n], e)) {
            status = -1;
        } else if (setting[n].flag) {
            Flag *f = setting[n].flag;
            if (f->many) setting[n].value = join_words(t, setting[n].value, argc, argv, &i);
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
    // The example leaves out what conflicts with the command line, which is then applied again
    for (int k = 0; k < n && !status; k++) status = set_flag(setting[k].flag, setting[k].value, e);
    if (!status && lines->example && !any_given(t, lines->example_unless))
        status = apply_line(t, lines->example, true, e);
    for (int k = 0; k < n && !status; k++) status = set_flag(setting[k].flag, setting[k].value, e);
    free(setting);
    note_values(t, &t->parsed);
    return status ? status : check_given(t, e);
}

/* ---- echo ------------------------------------------------------------------------------------ */

/* Appends text as a shell reads it back. */
void add_quoted(Str *line, const char *text) {
    bool plain = *text != 0;
    bool printable = true;
    for (const char *p = text; *p; p++)
        plain &= isalnum((unsigned char)*p) || strchr("-_+./:,@%=", *p) != NULL;
    for (size_t n = strlen(text), at = 0; at < n && printable;) {
        const Utf8 c = utf8_decode(text + at, n - at);
        printable = c.kind == UTF8_WHOLE && c.code >= ' ' && (c.code < 0x7F || c.code >= 0xA0) &&
                    !utf8_is_hidden(c.code);
        at += c.n;
    }
    if (plain) {
        str_add(line, text, strlen(text));
        return;
    }
    if (!printable) {  // as bash and zsh read them
        str_add(line, "$'", 2);
        for (const char *p = text; *p; p++)
            if (isalnum((unsigned char)*p) || strchr("-_+./:,@%= ", *p))
                str_add(line, p, 1);
            else
                str_printf(line, "\\x%02x", (unsigned char)*p);
        str_add(line, "'", 1);
        return;
    }
    str_add(line, "'", 1);
    for (const char *p = text; *p; p++) str_add(line, *p == '\'' ? "'\\''" : p, *p == '\'' ? 4 : 1);
    str_add(line, "'", 1);
}

/* May a command line that repeats the run name this flag? If not, its value has no effect. */
static bool may_echo(const FlagTable *t, const Flag *f) {
    if (!f->given && conflicts_with_set(t, f)) return false;
    return !f->only_with || any_set(t, f->only_with);
}

/* Appends text as a shell reads it back, in lines of at most about `columns`: a shell joins two
   quoted pieces with a backslash and the end of a line between them. */
static void add_pieces(Str *line, const char *text, int columns) {
    const size_t most = (size_t)max_int(columns - 8, 8);
    size_t n = strlen(text), at = 0;
    while (n - at > most) {
        size_t piece = most;
        while (((unsigned char)text[at + piece] & 0xC0) == 0x80) piece--;  // not inside a character
        char *part = xstrndup(text + at, piece);
        add_quoted(line, part);
        str_add(line, "\\\n", 2);
        free(part);
        at += piece;
    }
    add_quoted(line, text + at);
}

void flags_echo(const FlagTable *t, const char *heading, int columns) {
    int at = 0, n = 0;
    for (const Flag *f = t->row; f->name; f++) {
        char text[64];
        const char *value = f->type == FLAG_TITLE ? NULL : flag_text(f, text);
        const char *usual = t->usual[f - t->row], *parsed = t->parsed[f - t->row];
        const bool same = !parsed || (usual && !strcmp(usual, parsed));
        if (!value || same || !may_echo(t, f)) continue;
        if (!n++) printf("%s\n", heading);
        Str word = {0};
        if (f->type == FLAG_BOOL) {
            str_printf(&word, "--%s%s", *(bool *)f->value ? "" : "no_", f->name);
        } else {
            str_printf(&word, "--%s=", f->name);
            add_pieces(&word, value, columns - (int)word.n);
        }
        if (at && at + 1 + (int)word.n > columns - 2) {
            printf(" \\\n");
            at = 0;
        }
        at += printf("%s%s", at ? " " : "  ", word.s);
        free(word.s);
    }
    if (n) printf("\n");
    fflush(stdout);
}

/* ---- the built-in example -------------------------------------------------------------------- */

// ./sft is in test/'s directory, .build/gcc/sft two below it
enum { EXAMPLE_PLACES = 3 };

/* Where a file of the example would be if test/ were so many directories above the program's. */
static Str example_place(const char *name, int up) {
    char program[4096], *dir = program;
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    for (int i = 0; i <= up; i++) dir = dirname(dir);
    Str path = {0};
    str_printf(&path, "%s/test/%s", strcmp(dir, "/") ? dir : "", name);
    return path;
}

const char *example_file(const char *name) {
    Str path = {0};
    for (int up = 0; up < EXAMPLE_PLACES; up++) {
        free(path.s);
        path = example_place(name, up);
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

int example_check(const char *path, Error *e) {
    if (access(path, F_OK) == 0) return 0;
    Str last = example_place("", EXAMPLE_PLACES - 1), tried = {0};
    const char *name = strncmp(path, last.s, last.n) ? path : path + last.n;
    for (int up = 0; up < EXAMPLE_PLACES && name != path; up++) {
        Str place = example_place(name, up);
        // in / the directory above is the same
        if (tried.n < place.n || strcmp(tried.s + tried.n - place.n, place.s) ||
            (tried.n > place.n && tried.s[tried.n - place.n - 1] != ' '))
            str_printf(&tried, "%s%s", tried.n ? ", " : "", place.s);
        free(place.s);
    }
    fail(e,
         "the built-in example is not there: none of these exists: %s; to use your own, give "
         "--model, a directory with Hugging Face's files of a GPT-2, and --data, a file of records",
         tried.n ? tried.s : path);
    free(last.s);
    free(tried.s);
    return -1;
}
