/*
 * json_file.h - JSON files that others wrote: bounded reading, and messages that name the file, the
 * key, the value found and the value expected. Used by hf.c and peft.c.
 */
#ifndef POSTTRAIN_JSON_FILE_H
#define POSTTRAIN_JSON_FILE_H

#include "util.h"

#include <jansson.h>

enum {
    MAX_CONFIG = 4 << 20,  // bytes of config.json or adapter_config.json
    SHOWN = 120,           // characters of a name or value from a file that a message repeats
};

/* Reads a JSON object from a regular file of at most limit bytes. NULL with e filled. Keys may not
   repeat.
 */
json_t *read_json(const char *path, size_t limit, Error *e);
/* The same from the n bytes of a text. flags: more of jansson's, or 0. name is for messages. */
json_t *parse_json(const char *text, size_t n, size_t flags, const char *name, Error *e);
/* The value (NULL: absent) as a message shows it, to be freed. */
char *shown_value(json_t *value);
/* Fills e with "path: key is VALUE, expected EXPECTED" and returns -1. */
PRINTF_LIKE(5, 6)
int refuse_value(Error *e, const char *path, json_t *config, const char *key, const char *expected,
                 ...);
/* Reads a number x, low <= x < 1, such as a dropout probability. An absent key has the value
 * otherwise. 0, or -1 with e filled. */
int read_fraction(json_t *config, const char *path, const char *key, double low, float otherwise,
                  float *out, Error *e);

/* The double nearest to the shortest decimal that reads back as x: 1e-05 instead of
 * 9.9999997473787516e-06. */
double shortest_decimal(float x);
/* The JSON text of config, with the fewest digits that keep every number. To be freed. NULL when
 * config is not valid UTF-8. */
char *json_text(json_t *config);

#endif
