/*
 * json.h - what jansson lacks: writing a string of any bytes, and reading numbers out of a line.
 */
#ifndef POSTTRAIN_JSON_H
#define POSTTRAIN_JSON_H

#include "util.h"

#include <jansson.h>

/* Appends the n bytes at s as a JSON string. Each byte that belongs to no UTF-8 character becomes
   U+FFFD. */
void json_add_string(Str *out, const char *s, size_t n);
/* Reads member `name` of the JSON object in the n bytes at s: a number, or an array of numbers.
   Writes the first `room` numbers to out and returns how many the member has. -1 with e filled: not
   an object, no such member, or not a number. */
int json_numbers(const char *s, size_t n, const char *name, double *out, int room, Error *e);

/* The type of a value in words, for messages: "a string", "null", ... */
const char *json_type_name(const json_t *value);
/* The bytes of a string, which belong to it. */
Slice json_slice(const json_t *string);
/* True if value is a string equal to text. */
bool json_string_is(const json_t *value, const char *text);

#endif
