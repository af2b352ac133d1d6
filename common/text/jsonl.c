/*
 * jsonl.c - JSONL files, line by line: see jsonl.h.
 */
#include "text/jsonl.h"

enum { LINE_LIMIT = 64 << 20 };  // bytes of one line

int fault(Fault *f, const char *field, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(f->why.text, sizeof f->why.text, format, args);
    va_end(args);
    f->field = field;
    return -1;
}

int jsonl_text(const json_t *object, const char *name, Slice *out, Fault *f) {
    const json_t *value = json_object_get(object, name);
    if (!json_is_string(value))
        return fault(
            f, name, "\"%s\" is %s, expected a string%s", name, json_type_name(value),
            json_is_array(value) ? "; a conversation belongs in a field \"messages\"" : "");
    *out = (Slice){json_string_value(value), json_string_length(value)};
    return 0;
}

int jsonl_optional_text(const json_t *object, const char *name, Slice *out, Fault *f) {
    const json_t *value = json_object_get(object, name);
    *out = (Slice){0};
    if (value && !json_is_null(value) && jsonl_text(object, name, out, f)) return -1;
    if (out->n == 0) out->s = NULL;
    return 0;
}

int jsonl_unknown_fields(const json_t *object, const char *expected, Fault *f) {
    Str found = {0};
    const char *name;
    json_t *value;
    str_add(&found, "", 0);
    json_object_foreach((json_t *)object, name, value) {
        if (found.n < 200) str_printf(&found, "%s%.40s", found.n ? ", " : "", name);
    }
    fault(f, NULL, "the fields are not those of a known kind: found %s; expected %s",
          found.n ? found.s : "none", expected);
    free(found.s);
    return -1;
}

void make_printable(Error *e) {
    for (char *c = e->text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7F) *c = '?';
}

/* The column, in characters from 1, of a field's name in a line that is a valid JSON object. Only
   the outermost level is searched. 1 if the name is not found or is written with escapes. */
static int field_column(const Str *line, const char *field) {
    size_t n = strlen(field);
    int depth = 0, column = 0;
    bool quoted = false;
    for (const char *c = line->s, *end = line->s + line->n; c < end; c++) {
        column += ((unsigned char)*c & 0xC0) != 0x80;  // a byte 10xxxxxx continues a character
        if (quoted && *c == '\\') {
            c++;
            column++;
        } else if (*c == '"') {
            if (!quoted && depth == 1 && strncmp(c + 1, field, n) == 0 && c[n + 1] == '"') {
                const char *after = c + n + 2;
                if (after[strspn(after, " \t\r")] == ':') return column;  // a name, not a value
            }
            quoted = !quoted;
        } else if (!quoted) {
            depth += (*c == '{' || *c == '[') - (*c == '}' || *c == ']');
        }
    }
    return 1;
}

/* A file while it is read. */
typedef struct {
    const char *path;
    AddObject *add;
    void *out;
    JsonlCounts *counts;
} Reading;

/* Adds one line. 0, -1 with e filled (file, line, column, reason), or JSONL_LEFT_OUT. */
static int read_line(const Reading *r, int number, const Str *line, Error *e) {
    json_error_t where;
    // DECODE_ANY: the message about a line that is not an object is made here. INT_AS_REAL: an
    // integer too large for 64 bits does no harm in a field that is not read.
    const size_t flags =
        JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL;
    json_t *j = json_loadb(line->s, line->n, flags, &where);
    if (!j)
        return fail(e, "%s:%d:%d: %s", r->path, number, where.column > 0 ? where.column : 1,
                    where.text);
    Fault f = {0};
    int status;
    if (json_is_object(j))
        status = r->add(r->out, j, number, &f);
    else
        status = fault(&f, NULL, "the line is %s, expected a JSON object", json_type_name(j));
    if (status == -1)
        fail(e, "%s:%d:%d: %s", r->path, number, f.field ? field_column(line, f.field) : 1,
             f.why.text);
    json_decref(j);
    return status;
}

/* Reads the next line, without its newline. False at the end of the file. A line longer than
   LINE_LIMIT sets too_long and is read to its end, but not stored further. */
static bool next_line(FILE *file, Str *line, bool *too_long) {
    char block[4096];
    int c;
    line->n = 0;
    *too_long = false;
    do {
        size_t n = 0;
        while (n < sizeof block && (c = getc_unlocked(file)) != EOF && c != '\n')
            block[n++] = (char)c;
        *too_long |= line->n + n > LINE_LIMIT;
        if (!*too_long) str_add(line, block, n);
        if (n < sizeof block) return c != EOF || line->n > 0 || *too_long;
    } while (true);
}

static void remove_byte_order_mark(Str *line) {
    if (line->n < 3 || memcmp(line->s, "\xEF\xBB\xBF", 3)) return;
    line->n -= 3;
    memmove(line->s, line->s + 3, line->n + 1);
}

static int read_lines(const Reading *r, FILE *file, bool strict, Error *e) {
    JsonlCounts *counts = r->counts;
    Str line = {0};
    bool too_long;
    int status = 0;
    for (int number = 1; status == 0 && next_line(file, &line, &too_long); number++) {
        if (number == 1) remove_byte_order_mark(&line);
        if (!too_long && strspn(line.s, " \t\r") == line.n) continue;
        Error why;
        int result;
        if (too_long)
            result = fail(&why, "%s:%d:1: the line is longer than %d bytes", r->path, number,
                          LINE_LIMIT);
        else
            result = read_line(r, number, &line, &why);
        counts->n += result == 0;
        counts->left_out += result == JSONL_LEFT_OUT;
        if (result != -1) continue;
        make_printable(&why);
        if (counts->skipped++ == 0) counts->first_skipped = why;
        if (strict) status = fail(e, "%s", why.text);
    }
    free(line.s);
    if (status == 0 && ferror(file))
        status = fail(e, "cannot read %s: %s", r->path, strerror(errno));
    return status;
}

int jsonl_read(const char *path, bool strict, AddObject *add, void *out, JsonlCounts *counts,
               Error *e) {
    *counts = (JsonlCounts){0};
    FILE *file = fopen(path, "rb");
    if (!file) return fail(e, "cannot open %s: %s", path, strerror(errno));
    const Reading r = {path, add, out, counts};
    int status = read_lines(&r, file, strict, e);
    fclose(file);
    if (status || counts->n > 0) return status;
    if (counts->skipped)
        return fail(e, "%s holds no usable record; %d lines were skipped, the first: %s", path,
                    counts->skipped, counts->first_skipped.text);
    return counts->left_out ? 0 : fail(e, "%s holds no record: it is empty", path);
}
