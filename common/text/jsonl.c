/*
 * jsonl.c - JSONL files, line by line: see jsonl.h.
 */
#include "text/jsonl.h"

#include "input.h"
#include "text/foreign.h"
#include "text/utf8.h"

int fault(Fault *f, const char *field, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(f->why.text, sizeof f->why.text, format, args);
    va_end(args);
    f->field = field;
    return -1;
}

/* What to do with a file of whole columns, as pandas and datasets' to_dict write it. */
static const char TURN_COLUMNS[] =
    ". If the file has columns in place of records, turn it: python3 -c 'import pandas, sys; "
    "pandas.read_json(sys.argv[1]).to_json(\"my.jsonl\", orient=\"records\", lines=True, "
    "force_ascii=False)' FILE";

int jsonl_text(const json_t *object, const char *name, Slice *out, Fault *f) {
    const json_t *value = json_object_get(object, name);
    const bool plain = json_is_number(value) || json_is_boolean(value),
               column = json_is_string(json_array_get(value, 0)) || json_object_get(value, "0");
    if (!json_is_string(value))
        return fault(f, name, "\"%s\" is %s, expected a string%s%s%s", name, json_type_name(value),
                     plain    ? "; to make it one: jq -c '."
                     : column ? TURN_COLUMNS
                              : "",
                     plain ? name : "", plain ? " |= tostring'" : "");
    *out = json_slice(value);
    return 0;
}

int jsonl_optional_text(const json_t *object, const char *name, Slice *out, Fault *f) {
    const json_t *value = json_object_get(object, name);
    *out = (Slice){0};
    if (value && !json_is_null(value) && jsonl_text(object, name, out, f)) return -1;
    if (out->n == 0) out->s = NULL;
    return 0;
}

/* Is it the name of a list of messages that the readers know? */
static bool is_known_list(const char *name) {
    static const char *const names[] = {"messages", "conversations", "conversation", "prompt",
                                        "chosen",   "rejected",      "completion"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    return false;
}

/* Appends to a fault what is likely meant by the fields of an object of no known kind. */
static void suggest_fields(const json_t *object, Fault *f) {
    const char *name, *list = NULL, *talk = NULL;
    json_t *value;
    bool capital = false, asked = false;
    json_object_foreach((json_t *)object, name, value) {
        const json_t *first = json_array_get(value, 0);
        const bool message = json_object_get(first, "role") || json_object_get(first, "from");
        if (message && !talk && !is_known_list(name)) talk = name;
        if (!message && json_is_object(first) && !list) list = name;
        for (const char *c = name; *c; c++) capital |= *c >= 'A' && *c <= 'Z';
        asked |= json_is_string(value);
    }
    const size_t n = strlen(f->why.text), room = sizeof f->why.text - n;
    char *end = f->why.text + n;
    if (list && (!asked || !strcmp(list, "data") || !strcmp(list, "instances")))
        snprintf(end, room,
                 ". If \"%.40s\" holds the records, take them out: jq -c '.[\"%.40s\"][]'", list,
                 list);
    else if (talk)
        snprintf(end, room,
                 ". If \"%.40s\" is a conversation, rename it: jq -c '.messages = .[\"%.40s\"]'",
                 talk, talk);
    else if (json_object_get(object, "role") || json_object_get(object, "from"))
        snprintf(end, room,
                 ". A message by itself is no record: a conversation is {\"messages\": [...]}");
    else if (capital)
        snprintf(end, room,
                 ". Names are in lower case: jq -c 'with_entries(.key |= ascii_downcase)'");
}

int jsonl_unknown_fields(const json_t *object, const char *expected, Fault *f) {
    Str found = {0};
    const char *name;
    json_t *value;
    str_add(&found, "", 0);
    json_object_foreach((json_t *)object, name, value) if (found.n < 200)
        str_printf(&found, "%s%.40s", found.n ? ", " : "", name);
    fault(f, NULL, "the fields are not those of a known kind: found %s; expected %s",
          found.n ? found.s : "none", expected);
    free(found.s);
    suggest_fields(object, f);
    return -1;
}

void make_printable(Error *e) {
    for (char *c = e->text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7F) *c = '?';
}

/* ---- where things are in a file -------------------------------------------------------------- */

/* A line of the file, or an element of its array: its text, and where it begins. */
typedef struct {
    Str text;
    int line, column;  // from 1; a column counts characters
    bool too_long;     // the text is left out
} Piece;

/* Moves a place in a file behind byte c. */
static void pass(unsigned char c, int *line, int *column) {
    *line += c == '\n';
    *column = c == '\n' ? 1 : *column + ((c & 0xC0) != 0x80);  // 10xxxxxx continues a character
}

/* Where byte `offset` of a piece is in its file. */
static void locate(const Piece *p, size_t offset, int *line, int *column) {
    *line = p->line;
    *column = p->column;
    for (size_t i = 0; i < offset && i < p->text.n; i++)
        pass((unsigned char)p->text.s[i], line, column);
}

/* The offset of a field's name in a text that is a valid JSON object. Only the outermost level is
   searched. 0 if the name is not found or is written with escapes. */
static size_t field_offset(const Str *text, const char *field) {
    const size_t n = strlen(field);
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < text->n; i++) {
        const char *c = text->s + i;
        if (quoted && *c == '\\') {
            i++;
        } else if (*c == '"') {
            if (!quoted && depth == 1 && strncmp(c + 1, field, n) == 0 && c[n + 1] == '"') {
                const char *after = c + n + 2;
                if (after[strspn(after, " \t\r\n")] == ':') return i;  // a name, not a value
            }
            quoted = !quoted;
        } else if (!quoted) {
            depth += (*c == '{' || *c == '[') - (*c == '}' || *c == ']');
        }
    }
    return 0;
}

/* ---- one object ------------------------------------------------------------------------------ */

/* A file while it is read. */
typedef struct {
    const char *path;
    AddObject *add;
    void *out;
    bool strict;
    JsonlCounts *counts;  // of all files
    Error *e;
    int line;  // lines of the files before this one
    int bad;   // bad lines of this file, and why the first is
    Error first;
} Reading;

/* Python's json writes NaN, Infinity and -Infinity, which are not JSON. Replaces each that is not
   in a string: NaN, a missing value, by null, the others by a string, which is no number where one
   is needed. False: the text has none. */
static bool replace_constants(const Str *text, Str *out) {
    static const char *const constant[][2] = {
        {"NaN", "null"}, {"-Infinity", "\"-Infinity\""}, {"Infinity", "\"Infinity\""}};
    bool quoted = false, replaced = false;
    out->n = 0;
    for (size_t i = 0; i < text->n;) {
        const char *c = text->s + i;
        size_t n = 0;
        for (int k = 0; !quoted && k < 3 && !n; k++) {
            if (strncmp(c, constant[k][0], strlen(constant[k][0]))) continue;
            n = strlen(constant[k][0]);
            str_add(out, constant[k][1], strlen(constant[k][1]));
        }
        replaced |= n > 0;
        if (!n) {
            n = quoted && *c == '\\' && i + 1 < text->n ? 2 : 1;
            if (*c == '"') quoted = !quoted;
            str_add(out, c, n);
        }
        i += n;
    }
    return replaced;
}

/* Parses a piece. NULL with e filled: file, line, column, reason. */
static json_t *parse(const char *path, const Piece *p, Error *e) {
    // DECODE_ANY: the message about a line that is not an object is made by the caller.
    // INT_AS_REAL: an integer too large for 64 bits does no harm in a field that is not read
    const size_t flags =
        JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL;
    json_error_t where, other;
    json_t *j = json_loadb(p->text.s, p->text.n, flags, &where);
    if (j) return j;
    Str text = {0};
    if (replace_constants(&p->text, &text)) j = json_loadb(text.s, text.n, flags, &other);
    free(text.s);
    if (j) return j;
    const int column = where.column > 0 ? where.column : 1, lines = where.line - 1;
    fail(e, "%s:%d:%d: %s", path, p->line + lines, lines ? column : p->column + column - 1,
         where.text);
    if (!utf8_valid(p->text.s, p->text.n)) foreign_encoding(path, p->text.s, p->text.n, e);
    return NULL;
}

/* Adds an object that was parsed. As AddObject, with e filled: file, line, column, reason. */
static int add_object(const Reading *r, const Piece *p, const json_t *j, Error *e) {
    Fault f = {0};
    int status, line, column;
    if (json_is_object(j))
        status = r->add(r->out, j, r->line + p->line, &f);
    else
        status = fault(&f, NULL, "the line is %s, expected a JSON object%s", json_type_name(j),
                       json_is_string(j) ? "; to learn it as a text: jq -c '{text: .}'" : "");
    if (status != -1) return status;
    locate(p, f.field ? field_offset(&p->text, f.field) : 0, &line, &column);
    return fail(e, "%s:%d:%d: %s", r->path, line, column, f.why.text);
}

/* Counts what became of a piece. -1 with r->e filled: it is bad, and the reading is strict. */
static int count(Reading *r, int result, Error *why) {
    JsonlCounts *counts = r->counts;
    counts->lines++;
    counts->n += result == 0;
    counts->left_out += result == JSONL_LEFT_OUT;
    if (result != -1) return 0;
    make_printable(why);
    if (counts->skipped++ == 0) counts->first_skipped = *why;
    if (r->bad++ == 0) r->first = *why;
    return r->strict ? fail(r->e, "%s", why->text) : 0;
}

/* ---- the bytes of a file --------------------------------------------------------------------- */

enum { BLOCK = 1 << 16, END = -1 };

/* Bytes of a file in blocks; the file may be a pipe. */
typedef struct {
    FILE *file;
    unsigned char block[BLOCK];
    size_t n, at;
    int line, column;  // of the next byte
} Source;

static void fill(Source *s) {
    s->n = fread(s->block, 1, sizeof s->block, s->file);
    s->at = 0;
}

/* The next byte, which is not taken, or END. */
static int peek(Source *s) {
    if (s->at == s->n) fill(s);
    return s->n ? s->block[s->at] : END;
}

/* Takes a byte, which peek has given. */
static void take(Source *s) { pass(s->block[s->at++], &s->line, &s->column); }

static bool is_blank(int c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static void begin_piece(const Source *s, Piece *p) {
    p->text.n = 0;
    str_add(&p->text, "", 0);
    p->too_long = false;
    p->line = s->line;
    p->column = s->column;
}

/* Appends the next byte of a piece that is not yet too long. */
static void add_byte(Source *s, Piece *p) {
    p->too_long |= p->text.n >= LINE_LIMIT;
    if (!p->too_long) str_add(&p->text, (const char *)&s->block[s->at], 1);
    take(s);
}

/* ---- lines ----------------------------------------------------------------------------------- */

/* Reads the next line, without its newline. False at the end of the file. */
static bool next_line(Source *s, Piece *p) {
    begin_piece(s, p);
    if (peek(s) == END) return false;
    while (peek(s) != END && peek(s) != '\n') {
        const unsigned char *from = s->block + s->at, *end = memchr(from, '\n', s->n - s->at);
        const size_t n = end ? (size_t)(end - from) : s->n - s->at;
        p->too_long |= p->text.n + n > LINE_LIMIT;
        if (!p->too_long) str_add(&p->text, (const char *)from, n);
        s->at += n;
    }
    if (peek(s) == '\n') take(s);
    return true;
}

static int read_lines(Reading *r, Source *s, Piece *p) {
    while (next_line(s, p)) {
        if (!p->too_long && strspn(p->text.s, " \t\r") == p->text.n) continue;
        Error why;
        int result;
        if (p->too_long) {
            result = fail(&why, "%s:%d:1: the line is longer than %d bytes", r->path, p->line,
                          LINE_LIMIT);
        } else {
            json_t *j = parse(r->path, p, &why);
            result = j ? add_object(r, p, j, &why) : -1;
            json_decref(j);
        }
        if (count(r, result, &why)) return -1;
    }
    return 0;
}

/* ---- a JSON array, or objects that are written over several lines ---------------------------- */

/* Reads the next value: up to its closing brace, or a comma, a closing bracket or the end of the
   file. */
static void next_value(Source *s, Piece *p) {
    int depth = 0;
    bool quoted = false;
    begin_piece(s, p);
    for (int c; (c = peek(s)) != END;) {
        if (!quoted && depth == 0 && (c == ',' || c == ']')) break;
        if (quoted && c == '\\') {
            add_byte(s, p);
            if (peek(s) == END) break;
        } else if (c == '"') {
            quoted = !quoted;
        } else if (!quoted) {
            depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        }
        add_byte(s, p);
        if (depth <= 0 && c == '}' && !quoted) break;
    }
}

/* Reads a file that is one array, or a sequence of objects. A mistake in the JSON ends the reading,
   because it is not known where the next record begins. */
static int read_values(Reading *r, Source *s, Piece *p, bool array) {
    static const char whole[] = "the file is not JSON lines, so it is read whole or not at all";
    if (array) take(s);
    for (bool comma = true;;) {
        while (is_blank(peek(s)) || (peek(s) == ',' && !comma)) {
            comma |= peek(s) == ',';
            take(s);
        }
        if (peek(s) == END && array)
            return fail(r->e, "%s:%d:%d: the array has no ] at its end: the file is cut off",
                        r->path, s->line, s->column);
        if (peek(s) == END) return 0;
        if (array && peek(s) == ']') break;
        if (array && !comma)
            return fail(r->e, "%s:%d:%d: a comma is missing between two elements; %s", r->path,
                        s->line, s->column, whole);
        next_value(s, p);
        comma = !array;
        Error why;
        if (p->too_long)
            return fail(r->e, "%s:%d:%d: the element is longer than %d bytes; %s", r->path, p->line,
                        p->column, LINE_LIMIT, whole);
        json_t *j = parse(r->path, p, &why);
        if (!j) {
            make_printable(&why);
            return fail(r->e, "%s; %s", why.text, whole);
        }
        const int result = add_object(r, p, j, &why);
        json_decref(j);
        if (count(r, result, &why)) return -1;
    }
    take(s);
    while (is_blank(peek(s))) take(s);
    if (peek(s) == END) return 0;
    return fail(
        r->e,
        "%s:%d:%d: there is text after the end of the array; a file is one array, or an object a "
        "line",
        r->path, s->line, s->column);
}

/* ---- a file ---------------------------------------------------------------------------------- */

typedef enum { LINES, ARRAY, OBJECTS } Layout;

/* Takes a byte order mark and, unless the file is JSON lines, the blanks before its first value.
   An array begins with [. The first line of an object over several lines is { alone, or ends with {
   or [. */
static Layout begin(Source *s) {
    fill(s);
    if (s->n >= 3 && !memcmp(s->block, "\xEF\xBB\xBF", 3)) s->at = 3;
    size_t i = s->at;
    while (i < s->n && is_blank(s->block[i])) i++;
    if (i == s->n) return LINES;
    Layout layout = s->block[i] == '[' ? ARRAY : LINES;
    if (s->block[i] == '{') {
        const unsigned char *end = memchr(s->block + i, '\n', s->n - i);
        size_t k = end ? (size_t)(end - s->block) : i + 1;
        while (k > i + 1 && is_blank(s->block[k - 1])) k--;
        if (end && (s->block[k - 1] == '{' || s->block[k - 1] == '[')) layout = OBJECTS;
    }
    while (layout != LINES && s->at < i) take(s);
    return layout;
}

char *take_path(const char **list) {
    if (!*list || !**list) return NULL;
    const size_t n = file_exists(*list) ? strlen(*list) : strcspn(*list, ",");
    char *path = xstrndup(*list, n);
    *list += n + ((*list)[n] == ',');
    return path;
}

/* Reads the file r->path. */
static int read_one(Reading *r) {
    const JsonlCounts *counts = r->counts;
    const int before = counts->lines;
    Source *s = xcalloc(1, sizeof *s);
    *s = (Source){.file = input_open(r->path, r->e), .line = 1, .column = 1};
    if (!s->file) {
        foreign_path(r->path, r->e);
        free(s);
        return -1;
    }
    Piece p = {{0}, 1, 1, false};
    const Layout layout = begin(s);
    Str head = {0};
    str_add(&head, (const char *)s->block, s->n < 4096 ? s->n : 4096);
    int status = foreign_check(r->path, head.s, head.n, r->e);
    if (!status)
        status = layout == LINES ? read_lines(r, s, &p) : read_values(r, s, &p, layout == ARRAY);
    while (fread(s->block, 1, sizeof s->block, s->file) > 0) continue;  // a hash of all of it
    if (ferror(s->file)) status = fail(r->e, "cannot read %s: %s", r->path, strerror(errno));
    const int lines = counts->lines - before, bad = r->bad;
    if (!status && !lines) status = fail(r->e, "%s holds no record: it is empty", r->path);
    if (!status && bad > lines - bad)
        status = fail(r->e, "%s: %d of %d line%s cannot be used; the first: %s", r->path, bad,
                      lines, plural(lines), r->first.text);
    if (status && bad && bad == lines) foreign_hint(r->path, head.s, head.n, r->e);
    r->line += s->line - 1;
    fclose(s->file);
    free(s);
    free(p.text.s);
    free(head.s);
    return status;
}

int jsonl_read(const char *path, bool strict, AddObject *add, void *out, JsonlCounts *counts,
               Error *e) {
    *counts = (JsonlCounts){0};
    Error unused;
    Reading r = {.add = add, .out = out, .strict = strict, .counts = counts, .e = e ? e : &unused};
    int status = path && *path ? 0 : fail(e, "the name of the file is empty");
    for (char *one; !status && (one = take_path(&path)); free(one)) {
        r.path = one;
        r.bad = 0;
        status = read_one(&r);
    }
    return status;
}
