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

bool utf8_is_hidden(uint32_t c) {
    return c == 0x061C || c == 0x200E || c == 0x200F || (c >= 0x2028 && c <= 0x202E) ||
           (c >= 0x2066 && c <= 0x2069) || c == 0xFEFF;
}

/* What Python's str.isspace() holds for white space: Unicode's White_Space, and four separators. */
static bool is_space(uint32_t c) {
    return (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= ' ') || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

/* The length of the character that ends the n bytes at s if it is white space, else 0. */
static size_t space_at_end(const char *s, size_t n) {
    size_t length = 1;
    while (length < 4 && length < n && ((unsigned char)s[n - length] & 0xC0) == 0x80) length++;
    const Utf8 c = utf8_decode(s + n - length, length);
    return c.kind == UTF8_WHOLE && c.n == length && is_space(c.code) ? length : 0;
}

Slice utf8_trimmed_at(Slice text, bool left, bool right) {
    for (size_t k; right && text.n && (k = space_at_end(text.s, text.n)) > 0;) text.n -= k;
    while (left && text.n) {
        const Utf8 c = utf8_decode(text.s, text.n);
        if (c.kind != UTF8_WHOLE || !is_space(c.code)) break;
        text.s += c.n;
        text.n -= c.n;
    }
    return text;
}

Slice utf8_trimmed(Slice text) { return utf8_trimmed_at(text, true, true); }
