/*
 * check_utf8.c - UTF-8: every code point, every string of up to three bytes against a plain reading
 * of RFC 3629, and texts with broken bytes.
 */
#include "text/utf8.h"

#undef fail  // check.h has a macro of this name
#include <check.h>

/* Writes a code point as RFC 3629, section 3, says. Returns its length; 0: it has no form. */
static size_t encode(uint32_t code, char *s) {
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return 0;
    if (code < 0x80) {
        s[0] = (char)code;
        return 1;
    }
    const size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    const uint32_t head[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = n; i-- > 1; code >>= 6) s[i] = (char)(0x80 | (code & 0x3F));
    s[0] = (char)(head[n] | code);
    return n;
}

/* whole[x], begun[x]: the three bytes of x, of which the first n count, are a character; are the
   beginning of a longer one. */
static bool whole[4][1 << 24], begun[4][1 << 24];

static uint32_t key(const char *s, size_t n) {
    uint32_t x = 0;
    for (size_t i = 0; i < n; i++) x = x << 8 | (unsigned char)s[i];
    return x;
}

START_TEST(every_code_point_and_every_beginning) {
    for (uint32_t code = 0; code < 0x120000; code++) {
        char s[5] = "";
        const size_t n = encode(code, s);
        if (!n) continue;
        const Utf8 c = utf8_decode(s, n);
        ck_assert_msg(c.kind == UTF8_WHOLE && c.n == n && c.code == code, "U+%04X", code);
        if (n < 4) whole[n][key(s, n)] = true;
        for (size_t i = 1; i < n; i++) {
            const Utf8 part = utf8_decode(s, i);
            ck_assert_msg(part.kind == UTF8_INCOMPLETE && part.n == i, "U+%04X", code);
            begun[i][key(s, i)] = true;
        }
    }
    for (size_t n = 1; n <= 3; n++)
        for (uint32_t x = 0; x < 1u << 8 * n; x++) {
            char s[3];
            for (size_t i = 0; i < n; i++) s[i] = (char)(x >> 8 * (n - 1 - i));
            size_t length = 1;  // of a whole character, or of the longest beginning of one
            while (length < n && begun[length][key(s, length)] &&
                   (begun[length + 1][key(s, length + 1)] || whole[length + 1][key(s, length + 1)]))
                length++;
            const Utf8 c = utf8_decode(s, n);
            Utf8Kind kind = UTF8_BROKEN;
            if (whole[length][key(s, length)]) kind = UTF8_WHOLE;
            if (length == n && begun[n][key(s, n)]) kind = UTF8_INCOMPLETE;
            if (c.kind != kind || c.n != length) ck_abort_msg("%zu bytes %06X", n, x);
        }
}
END_TEST

START_TEST(texts) {
    static const struct {
        const char *text;
        bool valid;
        const char *repaired, *streamed;
    } cases[] = {
        {"", true, "", ""},
        {"a\xED\x95\x9C", true, "a\xED\x95\x9C", "a\xED\x95\x9C"},
        {"\xF0\x9F\x98\x80!", true, "\xF0\x9F\x98\x80!", "\xF0\x9F\x98\x80!"},
        // a repair replaces each byte, a stream each broken part
        {"a\xED\x95", false, "a\xEF\xBF\xBD\xEF\xBF\xBD", "a\xEF\xBF\xBD"},
        {"\xF0\x9F\x98z", false, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBDz", "\xEF\xBF\xBDz"},
        {"\xC0\x80", false, "\xEF\xBF\xBD\xEF\xBF\xBD", "\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xFF", false, "\xEF\xBF\xBD", "\xEF\xBF\xBD"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *s = cases[i].text;
        Str repaired = {0}, bytes = {0}, streamed = {0};
        ck_assert_msg(utf8_valid(s, strlen(s)) == cases[i].valid, "text %zu", i);
        str_add(&repaired, s, strlen(s));
        text_repair(&repaired, 0);
        ck_assert_str_eq(repaired.s, cases[i].repaired);
        str_add(&streamed, "", 0);
        for (const char *c = s; *c; c++) {
            str_add(&bytes, c, 1);
            utf8_stream(&bytes, false, &streamed);
        }
        utf8_stream(&bytes, true, &streamed);
        ck_assert_str_eq(streamed.s, cases[i].streamed);
        ck_assert_uint_eq(bytes.n, 0);
        free(repaired.s);
        free(bytes.s);
        free(streamed.s);
    }
}
END_TEST

START_TEST(runs_end_where_validity_changes) {
    static const char text[] = "ab\xFF\xED\x95z\xED\x95\x9C";
    ck_assert_uint_eq(utf8_run(text, 9, true), 2);
    ck_assert_uint_eq(utf8_run(text + 2, 7, false), 3);
    ck_assert_uint_eq(utf8_run(text + 5, 4, true), 4);
    ck_assert_uint_eq(utf8_run(text, 9, false), 0);
}
END_TEST

/* Python 3.11: [hex(c) for c in range(0x110000) if not chr(c).strip()] */
START_TEST(white_space_is_that_of_python) {
    static const uint32_t white[] = {0x9,    0xA,    0xB,    0xC,    0xD,    0x1C,   0x1D,   0x1E,
                                     0x1F,   0x20,   0x85,   0xA0,   0x1680, 0x2000, 0x2001, 0x2002,
                                     0x2003, 0x2004, 0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200A,
                                     0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
    size_t next = 0;
    for (uint32_t c = 1; c < 0x110000; c++) {
        char text[16];
        int n = 0;
        if (c >= 0xD800 && c < 0xE000) continue;
        if (c < 0x80) text[n++] = (char)c;
        for (int shift = 18; c >= 0x80 && shift >= 0; shift -= 6) {
            const bool first = n == 0;
            const uint32_t lead[] = {0x80, 0xC0, 0xE0, 0xF0};
            if (first && c < (shift == 18 ? 0x10000u : shift == 12 ? 0x800u : 0x80u)) continue;
            text[n++] = (char)(first ? lead[shift / 6] | c >> shift : 0x80 | (c >> shift & 0x3F));
        }
        char all[32];
        const int length = snprintf(all, sizeof all, "%.*sx%.*s", n, text, n, text);
        const Slice trimmed = utf8_trimmed((Slice){all, (size_t)length});
        const bool is = next < sizeof white / sizeof *white && white[next] == c;
        next += is;
        ck_assert_msg(trimmed.n == (is ? 1 : (size_t)length), "U+%04X", c);
        ck_assert(!is || *trimmed.s == 'x');
    }
    ck_assert_uint_eq(next, sizeof white / sizeof *white);
    ck_assert_uint_eq(utf8_trimmed((Slice){" \n\xE3\x80\x80", 5}).n, 0);
    ck_assert_uint_eq(utf8_trimmed((Slice){"", 0}).n, 0);
    const Slice left = utf8_trimmed_at((Slice){" a ", 3}, true, false);
    ck_assert(left.n == 2 && *left.s == 'a');
}
END_TEST

int main(void) {
    Suite *s = suite_create("utf8");
    TCase *c = tcase_create("utf8");
    tcase_set_timeout(c, 300);
    tcase_add_test(c, every_code_point_and_every_beginning);
    tcase_add_test(c, texts);
    tcase_add_test(c, runs_end_where_validity_changes);
    tcase_add_test(c, white_space_is_that_of_python);
    suite_add_tcase(s, c);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
