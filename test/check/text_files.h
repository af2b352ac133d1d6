/*
 * text_files.h - a directory of files, tokenizers and records for the tests of common/text.
 *
 * Most tests use a vocabulary so small that every id can be derived by hand. The tests write its
 * files themselves.
 */
#ifndef POSTTRAIN_TEXT_FILES_H
#define POSTTRAIN_TEXT_FILES_H

#include "text/records.h"
#include "text/tokenizer.h"

#undef fail  // check.h has a macro of this name
#include <check.h>
#include <unistd.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- files ----------------------------------------------------------------------------------- */

static char directory[64];

static inline const char *in_directory(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static inline void write_file(const char *name, const char *bytes, size_t n) {
    FILE *f = fopen(in_directory(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

static inline void write_text(const char *name, const char *text) {
    write_file(name, text, strlen(text));
}

static inline void clean_directory(void) {
    static const char *name[] = {"vocab.json",
                                 "merges.txt",
                                 "added_tokens.json",
                                 "tokenizer.json",
                                 "records.jsonl",
                                 "prompts.jsonl",
                                 "config.json",
                                 "tokenizer_config.json",
                                 "special_tokens_map.json"};
    for (int i = 0; i < COUNT(name); i++) unlink(in_directory(name[i]));
}

static inline void make_directory(void) {
    strcpy(directory, "/tmp/check.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
}

static inline void remove_directory(void) {
    clean_directory();
    rmdir(directory);
}

/* ---- a vocabulary by hand -------------------------------------------------------------------- */

/* Byte b has id b. Then come the merges in order, then <|endoftext|>. */

#define SPACE "\xC4\xA0"    // U+0120, how the files spell a space
#define NEWLINE "\xC4\x8A"  // U+010A
#define BYTE_ED "\xC3\xAD"  // U+00ED, itself
#define BYTE_95 "\xC4\xB7"  // U+0137
#define BYTE_9C "\xC4\xBE"  // U+013E
#define BYTE_F0 "\xC3\xB0"  // U+00F0, itself

typedef struct {
    const char *left, *right;
} Pair;

static const Pair hand_merges[] = {
    {"h", "e"},          {"l", "l"},
    {"he", "ll"},        {"hell", "o"},  // 256 he, ll, hell, 259 hello
    {SPACE, "w"},        {"o", "r"},
    {SPACE "w", "or"},   {"l", "d"},  // 260 " w", or, " wor", 263 ld
    {SPACE "wor", "ld"},              // 264 " world"
    {"b", "c"},          {"a", "b"},
    {"a", "a"},          {"aa", "aa"},                // 265 bc, ab, aa, 268 aaaa
    {SPACE, SPACE},      {NEWLINE, NEWLINE},          // 269, 270
    {"'", "s"},          {"t", "'"},                  // 271 's, 272 t'
    {BYTE_ED, BYTE_95},  {BYTE_ED BYTE_95, BYTE_9C},  // 273, 274: U+D55C is ED 95 9C
    {"a", BYTE_F0},                                   // 275: F0 begins characters beyond U+FFFF
};
enum { HAND_EOS = 276 };

/* A byte as the files spell it, inside a JSON string. */
static inline void spell(Str *out, int byte) {
    int c = 0x100;
    for (int b = 0; b <= byte; b++) {
        bool itself = (b > 32 && b < 127) || (b > 160 && b != 173);
        if (b == byte && itself)
            c = b;
        else if (b < byte && !itself)
            c++;
    }
    if (c == '"' || c == '\\')
        str_printf(out, "\\%c", c);
    else if (c < 0x80)
        str_printf(out, "%c", c);
    else
        str_printf(out, "%c%c", 0xC0 | c >> 6, 0x80 | (c & 63));
}

/* {"token": id, ...} for the bytes, the merges and the end of text. */
static inline Str vocabulary(const Pair *merge, int n) {
    Str out = {0};
    str_printf(&out, "{");
    for (int b = 0; b < 256; b++) {
        str_printf(&out, "\"");
        spell(&out, b);
        str_printf(&out, "\": %d, ", b);
    }
    for (int i = 0; i < n; i++)
        str_printf(&out, "\"%s%s\": %d, ", merge[i].left, merge[i].right, 256 + i);
    str_printf(&out, "\"<|endoftext|>\": %d}", 256 + n);
    return out;
}

static inline Str merges_txt(const Pair *merge, int n) {
    Str out = {0};
    str_printf(&out, "#version: 0.2\n");
    for (int i = 0; i < n; i++) str_printf(&out, "%s %s\n", merge[i].left, merge[i].right);
    return out;
}

/* A tokenizer.json with the parts given. */
static inline Str tokenizer_json(const char *vocab, const Pair *merge, int n, bool as_pairs,
                                 const char *added, const char *more) {
    Str out = {0};
    str_printf(&out, "{\"added_tokens\": [%s], %s", added, more);
    str_printf(&out, "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, ");
    str_printf(&out, "\"model\": {\"type\": \"BPE\", \"vocab\": %s, \"merges\": [", vocab);
    for (int i = 0; i < n; i++)
        str_printf(&out, as_pairs ? "%s[\"%s\", \"%s\"]" : "%s\"%s %s\"", i ? ", " : "",
                   merge[i].left, merge[i].right);
    str_printf(&out, "]}}");
    return out;
}

static inline void write_str(const char *name, Str s) {
    write_file(name, s.s, s.n);
    free(s.s);
}

static inline Tokenizer *must_load(void) {
    Error e = {0};
    Tokenizer *t = tokenizer_load(directory, &e);
    ck_assert_msg(t != NULL, "%s", e.text);
    return t;
}

static inline Tokenizer *load_merges(const Pair *merge, int n) {
    clean_directory();
    write_str("vocab.json", vocabulary(merge, n));
    write_str("merges.txt", merges_txt(merge, n));
    return must_load();
}

static inline Tokenizer *hand_tokenizer(void) {
    return load_merges(hand_merges, COUNT(hand_merges));
}
static inline Tokenizer *byte_tokenizer(void) { return load_merges(NULL, 0); }

/* ---- the real vocabulary --------------------------------------------------------------------- */

static inline const char *shared(const char *name) {
    static char path[512];
    const char *root = getenv("SHARED");
    snprintf(path, sizeof path, "%s/%s", root ? root : "../shared/data", name);
    return path;
}

/* NULL, with a message, if the folder is not there. */
static inline Tokenizer *real_tokenizer(void) {
    Error e;
    if (access(shared("gpt2-vocab/vocab.json"), R_OK)) {
        printf("skipped: no %s\n", shared("gpt2-vocab"));
        return NULL;
    }
    Tokenizer *t = tokenizer_load(shared("gpt2-vocab"), &e);
    ck_assert_msg(t != NULL, "%s", e.text);
    return t;
}

/* ---- records --------------------------------------------------------------------------------- */

static inline int read_bytes(const char *bytes, size_t n, const char *template, bool strict,
                             Records *r, Error *e) {
    write_file("records.jsonl", bytes, n);
    return records_read(in_directory("records.jsonl"), template, strict, r, e);
}

static inline Records must_read(const char *text, const char *template) {
    Error e = {0};
    Records r;
    ck_assert_msg(read_bytes(text, strlen(text), template, true, &r, &e) == 0, "%s", e.text);
    return r;
}

static inline int read_pairs(const char *text, const char *template, bool strict, Records *r,
                             Error *e) {
    write_text("records.jsonl", text);
    return pairs_read(in_directory("records.jsonl"), template, strict, r, e);
}

/* A message of a conversation, as JSON. */
#define TURN(role, content) "{\"role\": \"" role "\", \"content\": \"" content "\"}"

/* ---- suites ---------------------------------------------------------------------------------- */

static inline void add_case(Suite *s, const char *name, const TTest *const *test, int n) {
    TCase *c = tcase_create(name);
    tcase_set_timeout(c, 300);  // a busy machine, perhaps under a sanitizer
    tcase_add_checked_fixture(c, make_directory, remove_directory);
    for (int i = 0; i < n; i++) tcase_add_test(c, test[i]);
    suite_add_tcase(s, c);
}

/* Runs a suite and returns the exit status of its program. */
static inline int run_cases(Suite *s) {
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}

#endif
