/*
 * utf8.c - decoding, checking and repairing UTF-8: see utf8.h.
 */
#include "text/utf8.h"

/* How many bytes a character has that begins with this byte; 0 if none does. */
static size_t length_from(unsigned char first) {
    if (first < 0x80) return 1;
    if (first < 0xC2) return 0;
    if (first < 0xE0) return 2;
    if (first < 0xF0) return 3;
    return first < 0xF5 ? 4 : 0;
}

/* True if byte i > 0 of a character that begins with `first` may be c: table 3-7 of the Unicode
   standard, well-formed UTF-8. The second byte decides whether the form is overlong (E0, F0), a
   surrogate (ED) or above U+10FFFF (F4). */
static bool may_follow(unsigned char first, size_t i, unsigned char c) {
    unsigned char low = 0x80, high = 0xBF;
    if (i == 1 && first == 0xE0) low = 0xA0;
    if (i == 1 && first == 0xF0) low = 0x90;
    if (i == 1 && first == 0xED) high = 0x9F;
    if (i == 1 && first == 0xF4) high = 0x8F;
    return c >= low && c <= high;
}

Utf8 utf8_decode(const char *s, size_t n) {
    const unsigned char *byte = (const unsigned char *)s;
    const size_t length = length_from(byte[0]);
    if (length == 0) return (Utf8){UTF8_BROKEN, 1, 0};
    if (length == 1) return (Utf8){UTF8_WHOLE, 1, byte[0]};
    uint32_t code = byte[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (i == n) return (Utf8){UTF8_INCOMPLETE, n, 0};
        if (!may_follow(byte[0], i, byte[i])) return (Utf8){UTF8_BROKEN, i, 0};
        code = code << 6 | (byte[i] & 0x3Fu);
    }
    return (Utf8){UTF8_WHOLE, length, code};
}

size_t utf8_run(const char *s, size_t n, bool valid) {
    size_t i = 0;
    while (i < n) {
        const Utf8 c = utf8_decode(s + i, n - i);
        if ((c.kind == UTF8_WHOLE) != valid) break;
        i += valid ? c.n : 1;
    }
    return i;
}

bool utf8_valid(const char *s, size_t n) { return utf8_run(s, n, true) == n; }

void utf8_stream(Str *bytes, bool end, Str *text) {
    size_t at = 0;
    while (at < bytes->n) {
        const Utf8 c = utf8_decode(bytes->s + at, bytes->n - at);
        if (c.kind == UTF8_INCOMPLETE && !end) break;
        if (c.kind == UTF8_WHOLE)
            str_add(text, bytes->s + at, c.n);
        else
            str_add(text, UTF8_REPLACEMENT, 3);
        at += c.n;
    }
    if (!at) return;
    bytes->n -= at;
    memmove(bytes->s, bytes->s + at, bytes->n);
}

void text_repair(Str *s, size_t from) {
    Str fixed = {0};
    size_t i = from;
    while (i < s->n) {
        const Utf8 c = utf8_decode(s->s + i, s->n - i);
        const bool keep = c.kind == UTF8_WHOLE && c.code != 0;
        if (keep)
            str_add(&fixed, s->s + i, c.n);
        else
            str_add(&fixed, UTF8_REPLACEMENT, 3);
        i += keep ? c.n : 1;
    }
    s->n = from;
    str_add(s, fixed.s ? fixed.s : "", fixed.n);
    free(fixed.s);
}
