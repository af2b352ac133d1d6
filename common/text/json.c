/*
 * json.c - JSON strings of any bytes, and numbers out of a line: see json.h.
 */
#include "text/json.h"

#include "text/utf8.h"

void json_add_string(Str *out, const char *s, size_t n) {
    str_add(out, "\"", 1);
    size_t i = 0;
    while (i < n) {
        const Utf8 c = utf8_decode(s + i, n - i);
        const bool whole = c.kind == UTF8_WHOLE;
        if (!whole)
            str_add(out, UTF8_REPLACEMENT, 3);
        else if (c.code == '"' || c.code == '\\')
            str_printf(out, "\\%c", (int)c.code);
        else if (c.code == '\n')
            str_add(out, "\\n", 2);
        else if (c.code < ' ' || c.code == 0x7F)
            str_printf(out, "\\u%04x", c.code);
        else
            str_add(out, s + i, c.n);
        i += whole ? c.n : 1;
    }
    str_add(out, "\"", 1);
}

const char *json_type_name(const json_t *value) {
    switch (json_typeof(value)) {
        case JSON_OBJECT: return "an object";
        case JSON_ARRAY: return "an array";
        case JSON_STRING: return "a string";
        case JSON_NULL: return "null";
        case JSON_TRUE:
        case JSON_FALSE: return "a boolean";
        default: return "a number";
    }
}

Slice json_slice(const json_t *string) {
    return (Slice){json_string_value(string), json_string_length(string)};
}

bool json_string_is(const json_t *value, const char *text) {
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

/* Copies the numbers of an array, or the one number that value is. Returns how many there are, or
   -1 with e filled. */
static int take_numbers(const json_t *value, const char *name, double *out, int room, Error *e) {
    const bool array = json_is_array(value);
    if (!array && !json_is_number(value))
        return fail(e, "\"%s\" is %s, expected a number", name, json_type_name(value));
    const int count = array ? (int)json_array_size(value) : 1;
    for (int i = 0; i < count; i++) {
        const json_t *x = array ? json_array_get(value, (size_t)i) : value;
        if (!json_is_number(x))
            return fail(e, "element %d of \"%s\" is %s, expected a number", i, name,
                        json_type_name(x));
        if (i < room) out[i] = json_number_value(x);
    }
    return count;
}

int json_numbers(const char *s, size_t n, const char *name, double *out, int room, Error *e) {
    const size_t flags =
        JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL;
    json_error_t where;
    json_t *j = json_loadb(s, n, flags, &where);
    if (!j) return fail(e, "it is not JSON: %s", where.text);
    const json_t *value = json_object_get(j, name);
    int count;
    if (!json_is_object(j))
        count = fail(e, "it is %s, expected an object", json_type_name(j));
    else if (!value)
        count = fail(e, "it has no \"%s\"", name);
    else
        count = take_numbers(value, name, out, room, e);
    json_decref(j);
    return count;
}
