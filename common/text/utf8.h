/*
 * utf8.h - UTF-8 (RFC 3629): decoding one character, checking a text, repairing it, and passing on
 * whole characters from a stream of bytes.
 *
 * An overlong form, a surrogate (U+D800 to U+DFFF) and a code point above U+10FFFF are broken.
 */
#ifndef POSTTRAIN_UTF8_H
#define POSTTRAIN_UTF8_H

#include "util.h"

/* U+FFFD, the replacement character, as UTF-8. */
#define UTF8_REPLACEMENT "\xEF\xBF\xBD"

typedef enum {
    UTF8_WHOLE,       // the first n bytes are one character, with this code point
    UTF8_INCOMPLETE,  // all n bytes are the beginning of a character
    UTF8_BROKEN,  // the first n bytes (1 to 3) cannot be completed: either a byte that begins no
                  // character, or the longest beginning of one before a byte that does not fit
} Utf8Kind;

typedef struct {
    Utf8Kind kind;
    size_t n;
    uint32_t code;  // 0 unless kind is UTF8_WHOLE
} Utf8;

/* Decodes the first character of the n > 0 bytes at s. */
Utf8 utf8_decode(const char *s, size_t n);
/* True if all n bytes at s are whole characters. */
bool utf8_valid(const char *s, size_t n);
/* Returns how many bytes at the beginning of s are whole characters (valid), or belong to none
   (!valid). */
size_t utf8_run(const char *s, size_t n, bool valid);
/* Moves whole characters from `bytes` to the end of `text`. Each broken part becomes one U+FFFD, as
   in Python's and Rust's decoders. The beginning of a character stays in `bytes` until its rest
   arrives; with `end` it becomes one U+FFFD too. */
void utf8_stream(Str *bytes, bool end, Str *text);

/* Does a character turn the direction of a text, separate lines, or mark a byte order? Such a
   character shows nothing, and can make a text look like another one. */
bool utf8_is_hidden(uint32_t code);

/* The text without the white space around it, as Python's strip(). */
Slice utf8_trimmed(Slice text);
/* The same at its beginning (left), at its end (right). */
Slice utf8_trimmed_at(Slice text, bool left, bool right);

/* Replaces each byte from s[from] on that belongs to no whole character, and each NUL, by one
   U+FFFD. The text can then be written as JSON and read back unchanged. */
void text_repair(Str *s, size_t from);

#endif
