/*
 * json_file.c - JSON files that others wrote.
 */
#include "files/json_file.h"

json_t *read_json(const char *path, size_t limit, Error *e) {
    Str text = {0};
    json_t *json =
        read_regular_file(path, limit, &text, e) ? NULL : parse_json(text.s, text.n, 0, path, e);
    free(text.s);
    return json;
}

json_t *parse_json(const char *text, size_t n, size_t flags, const char *name, Error *e) {
    json_error_t error;
    if (refuse_mark(name, text, n, e)) return NULL;
    json_t *json = json_loadb(text, n, JSON_REJECT_DUPLICATES | flags, &error);
    if (!json) fail(e, "%s:%d:%d: %s", name, error.line, error.column, error.text);
    if (json && !json_is_object(json)) {
        fail(e, "%s: not a JSON object", name);
        json_decref(json);
        return NULL;
    }
    return json;
}

char *shown_value(json_t *value) {
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    if (text && strlen(text) > SHOWN) text[SHOWN] = 0;
    return text ? text : xstrdup("absent");
}

int refuse_value(Error *e, const char *path, json_t *config, const char *key, const char *expected,
                 ...) {
    char reason[256], *found = shown_value(json_object_get(config, key));
    va_list args;
    va_start(args, expected);
    vsnprintf(reason, sizeof reason, expected, args);
    va_end(args);
    fail(e, "%s: %s is %s, expected %s", path, key, found, reason);
    free(found);
    return -1;
}

int read_fraction(json_t *config, const char *path, const char *key, double low, float otherwise,
                  float *out, Error *e) {
    json_t *value = json_object_get(config, key);
    double x = value ? json_number_value(value) : otherwise;
    if ((value && !json_is_number(value)) || !(x >= low && x < 1))
        return refuse_value(e, path, config, key, "a number of at least %g and less than 1", low);
    *out = (float)x;
    return 0;
}

double shortest_decimal(float x) {
    char text[32];
    for (int digits = 1;; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (digits == 9 || strtof(text, NULL) == x) return strtod(text, NULL);
    }
}

/* jansson prints all numbers with one precision: 15 to 17 digits. */
char *json_text(json_t *config) {
    char *text = NULL;
    bool same = false;
    for (int digits = 15; digits <= 17 && !same; digits++) {
        free(text);
        text =
            json_dumps(config, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(digits));
        json_t *back = text ? json_loads(text, 0, NULL) : NULL;
        same = json_equal(config, back);
        json_decref(back);
    }
    return text;
}
