/*
 * check_text.c - the tokenizer, records, templates and datasets of common/text/text.c.
 *
 * Most tests run on a vocabulary small enough that every id can be derived by hand, which they
 * write themselves. A naive BPE is the second opinion on merging; golden_text.h, made by the
 * tokenizers library, the third, where the real vocabulary is at hand.
 */
#include "text/text.h"

#include <check.h>

#include "../golden/golden_text.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- files ----------------------------------------------------------------------------------- */

static char directory[64];

static const char *in_directory(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static void write_file(const char *name, const char *bytes, size_t n) {
    FILE *f = fopen(in_directory(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

static void clean_directory(void) {
    static const char *name[] = {"vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json",
                                 "records.jsonl"};
    for (int i = 0; i < COUNT(name); i++) unlink(in_directory(name[i]));
}

static void make_directory(void) {
    strcpy(directory, "/tmp/check_text.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
}

static void remove_directory(void) {
    clean_directory();
    rmdir(directory);
}

/* ---- a vocabulary by hand: byte b has id b, then come the merges in order, then <|endoftext|>  */

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
    {"a", BYTE_F0},                                   // 275: F0 begins what lies beyond U+FFFF
};
enum { HAND_EOS = 276 };

/* A byte as the files spell it, inside a JSON string. */
static void spell(Str *out, int byte) {
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
static Str vocabulary(const Pair *merge, int n) {
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

static Str merges_txt(const Pair *merge, int n) {
    Str out = {0};
    str_printf(&out, "#version: 0.2\n");
    for (int i = 0; i < n; i++) str_printf(&out, "%s %s\n", merge[i].left, merge[i].right);
    return out;
}

/* A tokenizer.json with the parts given. */
static Str tokenizer_json(const char *vocab, const Pair *merge, int n, bool as_pairs,
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

static void write_str(const char *name, Str s) {
    write_file(name, s.s, s.n);
    free(s.s);
}

static Tokenizer *must_load(void) {
    Error e = {""};
    Tokenizer *t = tokenizer_load(directory, &e);
    ck_assert_msg(t != NULL, "%s", e.text);
    return t;
}

static Tokenizer *load_merges(const Pair *merge, int n) {
    clean_directory();
    write_str("vocab.json", vocabulary(merge, n));
    write_str("merges.txt", merges_txt(merge, n));
    return must_load();
}

static Tokenizer *hand_tokenizer(void) { return load_merges(hand_merges, COUNT(hand_merges)); }
static Tokenizer *byte_tokenizer(void) { return load_merges(NULL, 0); }

/* ---- encoding -------------------------------------------------------------------------------- */

static void check_ids(const Tokenizer *t, const char *text, size_t bytes, bool specials,
                      const int *ids, int n) {
    Ints got = {0};
    Str back = {0};
    tokenizer_encode(t, text, bytes, specials, &got);
    bool same = (int)got.n == n;
    for (int i = 0; same && i < n; i++) same = got.v[i] == ids[i];
    if (!same) {
        Str message = {0};
        for (size_t i = 0; i < got.n; i++) str_printf(&message, " %d", got.v[i]);
        str_printf(&message, ", expected");
        for (int i = 0; i < n; i++) str_printf(&message, " %d", ids[i]);
        ck_abort_msg("\"%s\" gave%s", text, message.s);
    }
    tokenizer_decode(t, got.v, got.n, &back);
    ck_assert_uint_eq(back.n, bytes);
    ck_assert(bytes == 0 || memcmp(back.s, text, bytes) == 0);
    free(got.v);
    free(back.s);
}

#define IDS(text, ...)                                                      \
    check_ids(t, text, sizeof(text) - 1, false, (const int[]){__VA_ARGS__}, \
              COUNT(((const int[]){__VA_ARGS__})))

START_TEST(merging) {
    Tokenizer *t = hand_tokenizer();
    ck_assert_int_eq(tokenizer_size(t), HAND_EOS + 1);
    ck_assert_int_eq(tokenizer_eos(t), HAND_EOS);
    check_ids(t, "", 0, true, NULL, 0);
    IDS("hello", 259);
    IDS("hello world", 259, 264);
    IDS("hell", 258);
    IDS("helo", 256, 'l', 'o');
    IDS("hellold", 259, 263);
    IDS("ab", 266);
    IDS("abc", 'a', 265);  // bc was learned before ab
    IDS("aaa", 267, 'a');  // of equals the leftmost
    IDS("aaaaa", 268, 'a');
    IDS("aaaaaaa", 268, 267, 'a');
    IDS("\xED\x95\x9C", 274);
    tokenizer_free(t);
}
END_TEST

START_TEST(cutting) {
    Tokenizer *t = hand_tokenizer();
    IDS("it's", 'i', 't', 271);  // "t'" is a token, but the pieces are it and 's
    IDS("t'x", 't', '\'', 'x');
    IDS("T'S", 'T', '\'', 'S');  // contractions are lower case only
    IDS("t9a'a", 't', '9', 'a', '\'', 'a');
    IDS(" w", 260);
    IDS("  w", ' ', 260);  // the last blank goes with the word
    IDS("   w", 269, 260);
    IDS("w  ", 'w', 269);  // at the end the blanks stay together
    IDS("\n\n", 270);
    IDS("\n\nw", '\n', '\n', 'w');  // no word takes a newline, yet it is left for one
    IDS("\n\n\nw", 270, '\n', 'w');
    IDS("  \t", 269, '\t');
    // U+3000 is white space, so one piece with the blanks before it; U+180E and U+200B are not, and
    // take the last blank
    IDS("  \xE3\x80\x80", 269, 0xE3, 0x80, 0x80);
    IDS("  \xC2\x85", 269, 0xC2, 0x85);
    IDS("  \xE1\xA0\x8E", ' ', ' ', 0xE1, 0xA0, 0x8E);
    IDS("  \xE2\x80\x8B", ' ', ' ', 0xE2, 0x80, 0x8B);
    // U+10D4A is a letter since Unicode 16, and U+31350 since 15: one piece with the a; U+1F600 is
    // none
    IDS("a\xF0\x90\xB5\x8A", 275, 0x90, 0xB5, 0x8A);
    IDS("a\xF0\xB1\x8D\x90", 275, 0xB1, 0x8D, 0x90);
    IDS("a\xF0\x9F\x98\x80", 'a', 0xF0, 0x9F, 0x98, 0x80);
    tokenizer_free(t);
}
END_TEST

START_TEST(not_utf8) {
    Tokenizer *t = hand_tokenizer();
    IDS("hel\xFFlo", 256, 'l', 0xFF, 'l', 'o');
    IDS("\xED\x95hello", 273, 259);  // cut short: its bytes still merge
    IDS("\xED\x95\x9C\xED\x95", 274, 273);
    IDS("\x95\xED", 0x95, 0xED);
    IDS("a\xF0", 'a', 0xF0);  // 275 would join them, were they one piece
    // two blanks at an end stay together, but before any character one of them goes with it
    IDS("  \xED\xA0\x80", 269, 0xED, 0xA0, 0x80);  // a surrogate is none
    IDS("  \xC0\x80", 269, 0xC0, 0x80);            // nor is an overlong form
    IDS("  \xE0\x80\x80", 269, 0xE0, 0x80, 0x80);
    IDS("  \xF4\x90\x80\x80", 269, 0xF4, 0x90, 0x80, 0x80);  // nor what lies above U+10FFFF
    IDS("  \xFF  ", 269, 0xFF, 269);  // as if the text ended before and began after
    IDS("\0h\0", 0, 'h', 0);
    tokenizer_free(t);
}
END_TEST

START_TEST(any_bytes_come_back) {
    Tokenizer *t = hand_tokenizer();
    char text[64];
    Ints ids = {0};
    Str back = {0};
    for (uint32_t trial = 0; trial < 20000; trial++) {
        size_t n = random4(1, RANDOM_DATA, trial, 0, 0, 0).v[0] % sizeof text;
        for (size_t i = 0; i < n; i++) {
            Random4 x = random4(1, RANDOM_DATA, trial, 1, (uint32_t)i, 0);
            text[i] = x.v[0] % 3 ? "a \n'\xED\x95\x9C\xF0helo"[x.v[1] % 12] : (char)x.v[1];
        }
        ids.n = back.n = 0;
        tokenizer_encode(t, text, n, trial % 2, &ids);
        tokenizer_decode(t, ids.v, ids.n, &back);
        ck_assert_uint_eq(back.n, n);
        ck_assert(n == 0 || memcmp(back.s, text, n) == 0);
    }
    free(ids.v);
    free(back.s);
    tokenizer_free(t);
}
END_TEST

START_TEST(unknown_ids_decode_to_nothing) {
    Tokenizer *t = hand_tokenizer();
    Str out = {0};
    tokenizer_decode(t, (const int[]){-1, 'a', HAND_EOS + 1, INT32_MAX, 'b', INT32_MIN}, 6, &out);
    ck_assert_str_eq(out.s, "ab");
    free(out.s);
    tokenizer_free(t);
}
END_TEST

/* The definition: of all merges that can be made take the first learned, of those the leftmost;
 * until there is none. */
static int naive_bpe(const int (*merge)[2], int n_merges, const char *text, int n, int *ids) {
    for (int i = 0; i < n; i++) ids[i] = (unsigned char)text[i];
    for (;;) {
        int best = n_merges, at = 0;
        for (int i = 0; i + 1 < n; i++)
            for (int rank = 0; rank < best; rank++)
                if (merge[rank][0] == ids[i] && merge[rank][1] == ids[i + 1]) {
                    best = rank;
                    at = i;
                }
        if (best == n_merges) return n;
        ids[at] = 256 + best;
        memmove(ids + at + 1, ids + at + 2, (size_t)(n - at - 2) * sizeof *ids);
        n--;
    }
}

START_TEST(merging_as_defined) {
    enum {
        MERGES = 64,
        LONGEST = 60
    };  // as many as fit 128 slots of the hash table: it is never fuller
    for (uint32_t trial = 0; trial < 30; trial++) {
        char token[256 + MERGES][16] = {{0}};
        int id[MERGES][2], n = 0;
        Pair pair[MERGES];
        for (int c = 'a'; c <= 'c'; c++) token[c][0] = (char)c;
        for (uint32_t draw = 0; n < MERGES; draw++) {
            Random4 x = random4(2, RANDOM_DATA, trial, 0, draw, 0);
            int side[2];
            for (int k = 0; k < 2; k++) {
                int pick = (int)(x.v[k] % (uint32_t)(3 + n));
                side[k] = pick < 3 ? 'a' + pick : 256 + pick - 3;
            }
            char joined[32];
            snprintf(joined, sizeof joined, "%s%s", token[side[0]], token[side[1]]);
            bool known = strlen(joined) > 12;
            for (int i = 0; i < n; i++) known |= !strcmp(token[256 + i], joined);
            if (known) continue;
            strcpy(token[256 + n], joined);
            pair[n] = (Pair){token[side[0]], token[side[1]]};
            memcpy(id[n++], side, sizeof side);
        }
        Tokenizer *t = load_merges(pair, MERGES);
        for (uint32_t k = 0; k < 300; k++) {
            char text[LONGEST + 1] = "";
            int expected[LONGEST],
                length = 1 + (int)(random4(2, RANDOM_DATA, trial, 1, k, 0).v[0] % LONGEST);
            for (int i = 0; i < length; i++)
                text[i] = (char)('a' + random4(2, RANDOM_DATA, trial, 2, k, (uint32_t)i).v[0] % 3);
            int count = naive_bpe((const int(*)[2])id, MERGES, text, length, expected);
            check_ids(t, text, (size_t)length, false, expected, count);
        }
        tokenizer_free(t);
    }
}
END_TEST

/* 1 MiB without a place to cut. A method that goes through the piece for each merge would take
   10^11 steps, which is minutes; this one needs a fraction of a second, so the bound holds on a
   busy machine under a sanitizer. */
START_TEST(long_pieces) {
    static const struct {
        const char *unit;
        size_t bytes;
        int ids, id;  // so many units give one token of this id
    } piece[] = {{"a", 1, 4, 268},  {" ", 1, 2, 269},
                 {"\n", 1, 2, 270}, {"\xED\x95\x9C", 3, 1, 274},
                 {"!", 1, 1, '!'},  {"\xFF", 1, 1, 0xFF}};
    Tokenizer *t = hand_tokenizer();
    for (int k = 0; k < COUNT(piece); k++) {
        Str text = {0};
        Ints ids = {0};
        size_t units = 1 << 20;
        for (size_t i = 0; i < units; i++) str_add(&text, piece[k].unit, piece[k].bytes);
        double before = now_seconds();
        tokenizer_encode(t, text.s, text.n, true, &ids);
        ck_assert_double_lt(now_seconds() - before, 20);
        ck_assert_uint_eq(ids.n, units / (size_t)piece[k].ids);
        size_t same = 0;
        for (size_t i = 0; i < ids.n; i++) same += ids.v[i] == piece[k].id;
        ck_assert_uint_eq(same, ids.n);
        free(text.s);
        free(ids.v);
    }
    tokenizer_free(t);
}
END_TEST

START_TEST(added_tokens) {
    static const char added[] =
        "{\"<|user|>\": 277, \"<|user|>s\": 278, \"\xED\x95\x9C \": 279, \"<\xC3\xA9>\": 280}";
    static const char text[] =
        "he<|user|><|user|>s<|user\xED\x95\x9C <|endoftext|><\xC3\xA9>";  // U+00E9 is no byte here
    clean_directory();
    write_str("vocab.json", vocabulary(hand_merges, COUNT(hand_merges)));
    write_str("merges.txt", merges_txt(hand_merges, COUNT(hand_merges)));
    write_file("added_tokens.json", added, sizeof added - 1);
    Tokenizer *t = must_load();
    ck_assert_int_eq(tokenizer_size(t), 281);
    const int ids[] = {256, 277, 278, '<', '|',      'u',
                       's', 'e', 'r', 279, HAND_EOS, 280};  // of two that fit the longer
    check_ids(t, text, sizeof text - 1, true, ids, COUNT(ids));
    IDS("<|user|>", '<', '|', 'u', 's', 'e', 'r', '|', '>');
    IDS("<|endoftext|>", '<', '|', 'e', 'n', 'd', 'o', 'f', 't', 'e', 'x', 't', '|', '>');
    tokenizer_free(t);
}
END_TEST

/* ---- loading --------------------------------------------------------------------------------- */

/* s with its first `from` replaced. */
static Str replaced(Str s, const char *from, const char *to) {
    Str out = {0};
    char *at = strstr(s.s, from);
    ck_assert_msg(at != NULL, "the test's own text has no %s", from);
    str_printf(&out, "%.*s%s%s", (int)(at - s.s), s.s, to, at + strlen(from));
    free(s.s);
    return out;
}

static void must_not_load(const char *word) {
    Error e = {""};
    Tokenizer *t = tokenizer_load(directory, &e);
    ck_assert_msg(t == NULL, "loaded what lacks: %s", word);
    ck_assert_msg(strstr(e.text, word) != NULL, "\"%s\" does not say \"%s\"", e.text, word);
}

START_TEST(bytes_alone) {
    Tokenizer *t = byte_tokenizer();
    ck_assert_int_eq(tokenizer_size(t), 257);
    ck_assert_int_eq(tokenizer_eos(t), 256);
    IDS("hello\n", 'h', 'e', 'l', 'l', 'o', '\n');
    tokenizer_free(t);
}
END_TEST

START_TEST(tokenizer_json_is_the_same) {
    static const char plain[] =
        "{\"id\": 276, \"content\": \"<|endoftext|>\", \"special\": true, \"lstrip\": false}";
    static const char text[] = "hello world it's  \xED\x95\x9C\n\n<|endoftext|>";
    const int ids[] = {259, 264, ' ', 'i', 't', 271, ' ', ' ', 274, 270, HAND_EOS};
    for (int as_pairs = 0; as_pairs < 2; as_pairs++) {
        clean_directory();
        Str vocab = vocabulary(hand_merges, COUNT(hand_merges));
        static const char more[] = "\"normalizer\": null,";
        write_str("tokenizer.json",
                  tokenizer_json(vocab.s, hand_merges, COUNT(hand_merges), as_pairs, plain, more));
        free(vocab.s);
        Tokenizer *t = must_load();
        check_ids(t, text, sizeof text - 1, true, ids, COUNT(ids));
        tokenizer_free(t);
    }
}
END_TEST

START_TEST(wrong_tokenizer_json) {
    static const struct {
        const char *added, *more, *from, *to, *word;
    } wrong[] = {
        {"", "\"normalizer\": {\"type\": \"NFC\"},", "", "", "normalizer"},
        {"", "", "ByteLevel", "Whitespace", "pre_tokenizer"},
        {"", "", "\"add_prefix_space\": false", "\"add_prefix_space\": true", "pre_tokenizer"},
        {"", "", "\"BPE\"", "\"Unigram\"", "model.type"},
        {"", "", "\"model\"", "\"mode\"", "\"model\" is missing"},
        {"", "", "\"vocab\"", "\"voca\"", "model.vocab"},
        {"", "", "\"merges\"", "\"merge\"", "model.merges"},
        {"", "", "\"h e\"", "7", "model.merges:0"},
        {"", "", "\"h e\"", "[\"h\"]", "model.merges:0"},
        {"", "", "\"h e\"", "\"he\"", "model.merges:0"},
        {"", "", "\"type\": \"BPE\"", "\"ignore_merges\": true", "ignore_merges"},
        {"", "", "\"type\": \"BPE\"", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix"},
        {"{\"id\": 7}", "", "", "", "added_tokens[0]"},
        {"{\"id\": 277, \"content\": \"<mask>\", \"lstrip\": true}", "", "", "", "lstrip"},
        {"{\"id\": 277, \"content\": \"x1\"}, {\"id\": 278, \"content\": \"x1\"}", "", "", "",
         "twice"},
        {"{\"id\": 277, \"content\": \"hello\"}", "", "", "", "259 in the vocabulary"},
        {"{\"id\": 12, \"content\": \"<|user|>\"}", "", "", "", "same id 12"},
        {"{\"id\": 299, \"content\": \"<|user|>\"}", "", "", "", "without holes"},
    };
    for (int i = 0; i < COUNT(wrong); i++) {
        clean_directory();
        Str vocab = vocabulary(hand_merges, COUNT(hand_merges));
        Str json = tokenizer_json(vocab.s, hand_merges, COUNT(hand_merges), false, wrong[i].added,
                                  wrong[i].more);
        write_str("tokenizer.json", replaced(json, wrong[i].from, wrong[i].to));
        free(vocab.s);
        must_not_load(wrong[i].word);
    }
}
END_TEST

START_TEST(wrong_vocabulary) {
    static const struct {
        const char *from, *to, *word;
    } wrong[] = {
        {"{", "", "vocab.json:1:"},
        {"{", "[", "vocab.json:1:"},
        {"\"!\": 33", "\"!!\": 33", "byte 0x21"},
        {"\"he\": 256", "\"he\": 257", "same id 257"},
        {"\"<|endoftext|>\": 276", "\"<|endoftext|>\": 300", "ids must be 0 to 276 without holes"},
        {"\"he\": 256", "\"he\": \"256\"", "\"he\" is not an integer"},
        {"\"he\": 256", "\"he\": -1", "\"he\" is not an integer"},
        {"\"he\": 256", "\"he\": 256.0", "\"he\" is not an integer"},
        {"\"he\": 256", "\"he\": 99999999999999999999", "vocab.json:1:"},
        {"\"he\": 256", "\"he\": 9223372036854775807", "9223372036854775807"},
        {"\"he\": 256", "\"ll\": 256", "duplicate"},
        {"\"<|endoftext|>\"", "\"<|end|>\"", "no token \"<|endoftext|>\""},
    };
    for (int i = 0; i < COUNT(wrong); i++) {
        clean_directory();
        write_str("merges.txt", merges_txt(hand_merges, COUNT(hand_merges)));
        write_str("vocab.json", replaced(vocabulary(hand_merges, COUNT(hand_merges)), wrong[i].from,
                                         wrong[i].to));
        must_not_load(wrong[i].word);
    }
    write_file("vocab.json", "[1, 2]", 6);
    must_not_load("expected a JSON object");
    write_str("vocab.json", vocabulary(NULL, 0));
    write_file("merges.txt", "", 0);
    write_file("added_tokens.json", "{\"<|user|>\": 300}", 17);
    must_not_load("added_tokens.json");
    write_file("added_tokens.json", "7", 1);
    must_not_load("added_tokens.json");
    clean_directory();
    must_not_load("no tokenizer");
    write_str("vocab.json", vocabulary(NULL, 0));
    must_not_load("merges.txt");
}
END_TEST

START_TEST(wrong_merges) {
    static const struct {
        const char *text, *word;
    } wrong[] = {
        {"#version: 0.2\nh e\nq q\n", "merges.txt:3: the merge \"q q\" needs a token \"qq\""},
        {"h e\nhe zz", "merges.txt:2: the merge \"he zz\" needs a token \"zz\""},
        {"h\n", "merges.txt:1: expected two tokens"},
        {"h e l\n", "merges.txt:1: expected two tokens"},
        {" h\n", "merges.txt:1: expected two tokens"},
        {"\r\nh \r\n", "merges.txt:2: expected two tokens"},
    };
    clean_directory();
    write_str("vocab.json", vocabulary(hand_merges, COUNT(hand_merges)));
    for (int i = 0; i < COUNT(wrong); i++) {
        write_file("merges.txt", wrong[i].text, strlen(wrong[i].text));
        must_not_load(wrong[i].word);
    }
    write_file("merges.txt", "h e\0", 4);
    must_not_load("NUL");
    write_file("merges.txt", "h e\r\nl l", 8);  // but CRLF and a missing last newline are harmless
    Tokenizer *t = must_load();
    IDS("hell", 256, 257);
    tokenizer_free(t);
}
END_TEST

START_TEST(files_cut_short) {
    for (int json = 0; json < 2; json++) {
        clean_directory();
        Str whole = vocabulary(hand_merges, COUNT(hand_merges));
        if (json) {
            Str vocab = whole;
            whole = tokenizer_json(vocab.s, hand_merges, COUNT(hand_merges), false, "", "");
            free(vocab.s);
        } else {
            write_str("merges.txt", merges_txt(hand_merges, COUNT(hand_merges)));
        }
        for (size_t n = 0; n < whole.n; n += 13) {
            write_file(json ? "tokenizer.json" : "vocab.json", whole.s, n);
            must_not_load(json ? "tokenizer.json" : "vocab.json");
        }
        free(whole.s);
    }
}
END_TEST

/* ---- the real vocabulary --------------------------------------------------------------------- */

static const char *shared(const char *name) {
    static char path[512];
    const char *root = getenv("SHARED");
    snprintf(path, sizeof path, "%s/%s", root ? root : "../shared/data", name);
    return path;
}

/* NULL, and said so, where the folder is not there. */
static Tokenizer *real_tokenizer(void) {
    Error e;
    if (access(shared("gpt2-vocab/vocab.json"), R_OK)) {
        printf("skipped: no %s\n", shared("gpt2-vocab"));
        return NULL;
    }
    Tokenizer *t = tokenizer_load(shared("gpt2-vocab"), &e);
    ck_assert_msg(t != NULL, "%s", e.text);
    return t;
}

START_TEST(same_ids_as_the_library) {
    Tokenizer *t = real_tokenizer();
    if (!t) return;
    ck_assert_int_eq(tokenizer_size(t), 50257);
    ck_assert_int_eq(tokenizer_eos(t), 50256);
    for (int i = 0; i < COUNT(golden_text); i++) {
        const GoldenText *g = &golden_text[i];
        check_ids(t, g->text, g->bytes, true, g->ids, g->n);
    }
    tokenizer_free(t);
}
END_TEST

/* ---- templates ------------------------------------------------------------------------------- */

static void check_prompt(const char *template, const char *instruction, const char *input,
                         const char *expected) {
    Error e = {""};
    char *prompt = template_prompt(template, instruction, input, &e);
    ck_assert_msg(prompt != NULL, "%s", e.text);
    ck_assert_str_eq(prompt, expected);
    free(prompt);
}

START_TEST(templates) {
    check_prompt(NULL, "Sum.", NULL, "### Instruction:\nSum.\n\n### Response:\n");
    check_prompt(NULL, "Sum.", "", "### Instruction:\nSum.\n\n### Response:\n");
    check_prompt(NULL, "Sum.", "1 2",
                 "### Instruction:\nSum.\n\n### Input:\n1 2\n\n### Response:\n");
    check_prompt("Q: {instruction}\\nA:", "why", NULL, "Q: why\nA:");
    check_prompt("Q: {instruction}\\nA:", "why", "so",
                 "Q: why\nso\nA:");  // no place for the input: it is not lost
    check_prompt("{instruction}[[\\t{input}]]|{instruction}", "a", "b", "a\tb|a");
    check_prompt("{instruction}[[\\t{input}]]|{instruction}", "a", NULL, "a|a");
    check_prompt("{instruction}{input}.", "a", NULL, "a.");
    // what a record brings is not read as a template again
    check_prompt("{instruction}", "{input} {response} [[", "{instruction}",
                 "{input} {response} [[\n{instruction}");
    check_prompt("{ {instruction} } \\\\n \\x ]] [", "a", NULL, "{ a } \\n \\x ]] [");
    check_prompt("{instruction}\n{response} tail", "a", NULL, "a\n");
    check_prompt("{instruction}", "", NULL, "");
}
END_TEST

/* The template in one line, and means the same. */
static void check_line(const char *template, const char *expected) {
    Error e;
    char *line = template_line(template), *again = template_line(line);
    ck_assert_str_eq(line, expected);
    ck_assert_str_eq(again, expected);
    for (int input = 0; input < 2; input++) {
        char *a = template_prompt(template, "why", input ? "so" : NULL, &e),
             *b = template_prompt(line, "why", input ? "so" : NULL, &e);
        ck_assert_str_eq(a, b);
        free(a);
        free(b);
    }
    char *a = template_response(template, "because", &e),
         *b = template_response(line, "because", &e);
    ck_assert_str_eq(a, b);
    free(a);
    free(b);
    free(line);
    free(again);
}

START_TEST(a_template_in_one_line) {
    check_line(
        NULL,
        "### Instruction:\\n{instruction}\\n\\n[[### Input:\\n{input}\\n\\n]]### Response:\\n");
    check_line("Q: {instruction}\n\tA:", "Q: {instruction}\\n\\tA:");
    check_line("Q: {instruction}\\n\\t\\\\A:",
               "Q: {instruction}\\n\\t\\\\A:");  // spelled out already
    check_line(
        "{instruction} a\\\nb \\x \\\\\nc",
        "{instruction} a\\\\\\nb \\x \\\\\\nc");  // a backslash before a line feed is no spelling
    check_line("{instruction}\n{response}\n---\n", "{instruction}\\n{response}\\n---\\n");
    Error e;
    char *response = template_response("{instruction}:{response}|\\n", "yes", &e);
    ck_assert_str_eq(response, "yes|\n");
    free(response);
    ck_assert_ptr_null(template_response("nothing", "yes", &e));
}
END_TEST

START_TEST(wrong_templates) {
    static const struct {
        const char *template, *word;
    } wrong[] = {
        {"", "{instruction} is missing"},
        {"Question:", "{instruction} is missing"},
        {"[[{instruction}]]", "only within"},
        {"{instruction} {ouput}", "column 15"},
        {"{instruction}[[{input}", "without ]]"},
        {"{instruction}[[ [[{input}]] ]]", "column 17"},
        {"{response}{instruction}", "column 11"},
        {"{instruction}{response}{response}", "column 24"},
        {"{instruction}[[{response}]]", "within"},
        {"{instruction}{response}{input}", "column 24"},
    };
    for (int i = 0; i < COUNT(wrong); i++) {
        Error e = {""};
        ck_assert_ptr_null(template_prompt(wrong[i].template, "a", "b", &e));
        ck_assert_msg(strstr(e.text, wrong[i].word) != NULL, "%s: \"%s\"", wrong[i].template,
                      e.text);
        Records r;
        write_file("records.jsonl", "{\"text\": \"a\"}", 13);
        ck_assert_int_eq(
            records_read(in_directory("records.jsonl"), wrong[i].template, false, &r, &e), -1);
    }
}
END_TEST

/* ---- records --------------------------------------------------------------------------------- */

static int read_bytes(const char *bytes, size_t n, const char *template, bool strict, Records *r,
                      Error *e) {
    write_file("records.jsonl", bytes, n);
    return records_read(in_directory("records.jsonl"), template, strict, r, e);
}

static Records must_read(const char *text, const char *template) {
    Error e = {""};
    Records r;
    ck_assert_msg(read_bytes(text, strlen(text), template, true, &r, &e) == 0, "%s", e.text);
    return r;
}

START_TEST(records_say_what_their_prompts_were_put_into) {
    static const struct {
        const char *json, *template, *expected;
    } cases[] = {
        {"{\"instruction\": \"a\", \"output\": \"b\"}", NULL,
         "### Instruction:\\n{instruction}\\n\\n[[### Input:\\n{input}\\n\\n]]### Response:\\n"},
        {"{\"question\": \"a\", \"answer\": \"b\"}", "Q {instruction}\n", "Q {instruction}\\n"},
        {"{\"prompt\": \"a\", \"completion\": \"b\"}", NULL, "{instruction}"},
        {"{\"prompt\": \"a\", \"completion\": \"b\"}", "Q {instruction}", "Q {instruction}"},
        {"{\"text\": \"a\", \"summary\": \"b\"}", NULL,
         "Summarize the following text.\\n\\n{instruction}\\n\\nSummary:\\n"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
         "\"content\": \"b\"}]}",
         "U {instruction} A", "U {instruction} A"},
        {"{\"text\": \"a\"}", "Q {instruction}", NULL},
        // of several kinds, the first that is put into something
        {"{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"text\": \"a\", "
         "\"summary\": \"b\"}\n{\"question\": \"a\", \"answer\": \"b\"}",
         NULL, "Summarize the following text.\\n\\n{instruction}\\n\\nSummary:\\n"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        Records r = must_read(cases[i].json, cases[i].template);
        if (cases[i].expected)
            ck_assert_str_eq(r.template ? r.template : "(none)", cases[i].expected);
        else
            ck_assert_ptr_null(r.template);
        if (cases[i].expected &&
            r.n ==
                1) {  // and so it is: what --prompt makes of the prompt is what the record became
            Error e;
            char *prompt = template_prompt(r.template, "a", NULL, &e);
            ck_assert_str_eq(prompt, r.v[0].spans[0].text);
            free(prompt);
        }
        records_free(&r);
    }
}
END_TEST

/* One record: the expected spans follow, each as text, with "+" before what is scored and "-"
   before what is not; then NULL. */
static void check_record(const char *json, const char *template, const char *kind, ...) {
    Records r = must_read(json, template);
    ck_assert_int_eq(r.n, 1);
    ck_assert_int_eq(r.skipped, 0);
    ck_assert_str_eq(r.kind, kind);
    va_list spans;
    va_start(spans, kind);
    int n = 0;
    for (const char *span; (span = va_arg(spans, const char *)) != NULL; n++) {
        ck_assert_msg(n < r.v[0].n, "%s: %d spans", json, r.v[0].n);
        ck_assert_str_eq(r.v[0].spans[n].text, span + 1);
        ck_assert_uint_eq(r.v[0].spans[n].n, strlen(span + 1));
        ck_assert_msg(r.v[0].spans[n].scored == (*span == '+'), "%s: span %d", json, n);
    }
    va_end(spans);
    ck_assert_int_eq(r.v[0].n, n);
    records_free(&r);
}

#define ALPACA(instruction) "### Instruction:\n" instruction "\n\n### Response:\n"

START_TEST(kinds) {
    static const char I[] = "-" ALPACA("I"), P[] = "-" ALPACA("P");
    static const char pair[] = "instruction/response", triple[] = "instruction/input/output";
    check_record("{\"instruction\": \"I\", \"response\": \"R\"}", NULL, pair, I, "+R", NULL);
    check_record("{\"output\": \"R\", \"instruction\": \"I\", \"input\": \"X\"}", NULL, triple,
                 "-### Instruction:\nI\n\n### Input:\nX\n\n### Response:\n", "+R", NULL);
    check_record("{\"instruction\": \"I\", \"input\": \"\", \"output\": \"R\"}", NULL, triple, I,
                 "+R", NULL);
    check_record("{\"instruction\": \"I\", \"input\": null, \"output\": \"R\"}", NULL, triple, I,
                 "+R", NULL);
    check_record("{\"instruction\": \"I\", \"output\": \"R\", \"text\": \"T\"}", NULL,
                 "instruction/output", I, "+R", NULL);
    check_record("{\"prompt\": \"P\", \"completion\": \" R\"}", NULL, "prompt/completion", "-P",
                 "+ R", NULL);
    check_record("{\"prompt\": \"P\", \"completion\": \"R\"}", "<{instruction}>",
                 "prompt/completion", "-<P>", "+R", NULL);
    check_record("{\"prompt\": \"P\", \"response\": \"R\"}", NULL, "prompt/response", P, "+R",
                 NULL);
    check_record("{\"input\": \"P\", \"output\": \"R\"}", NULL, "input/output", P, "+R", NULL);
    check_record("{\"text\": \"P\", \"summary\": \"R\"}", NULL, "text/summary",
                 "-Summarize the following text.\n\nP\n\nSummary:\n", "+R", NULL);
    check_record("{\"text\": \"P\", \"summary\": \"R\"}", "{instruction}=", "text/summary",
                 "-P=", "+R", NULL);
    check_record("{\"question\": \"P\", \"answer\": \"\"}", NULL, "question/answer", P, "+", NULL);
    check_record("{\"text\": \"T\", \"id\": 12345678901234567890123}", "{instruction}{response}>",
                 "text", "+T", NULL);
    check_record("{\"instruction\": \"I\", \"response\": \"R\"}", "{instruction}|{response}\\n>",
                 pair, "-I|", "+R\n>", NULL);
    check_record("{\"instruction\": \"\\u0041\\ud83d\\ude00\", \"response\": \"\\\"\\n\"}",
                 "{instruction}", pair, "-A\xF0\x9F\x98\x80", "+\"\n", NULL);
}
END_TEST

#define TURN(role, content) "{\"role\": \"" role "\", \"content\": \"" content "\"}"

START_TEST(conversations) {
    check_record("{\"messages\": [" TURN("user", "U") ", " TURN("assistant", "A") "]}", NULL,
                 "messages", "-" ALPACA("U"), "+A", NULL);
    check_record(
        "{\"prompt\": \"ignored\", \"messages\": [" TURN("system", "S") ", " TURN(
            "user", "U") ", " TURN("assistant",
                                   "A") ", " TURN("user", "V") ", " TURN("assistant",
                                                                         "B") ", " TURN("user",
                                                                                        "W") "]}",
        NULL, "messages", "-S\n\n" ALPACA("U"), "+A", "-" ALPACA("V"), "+B", NULL);
    check_record(
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"U\"}, {\"from\": \"gpt\", "
        "\"value\": \"A\"}]}",
        "<{instruction}>{response}!", "conversations", "-<U>", "+A!", NULL);
}
END_TEST

START_TEST(bad_lines) {
    static const struct {
        const char *line;
        int column;
        const char *word;
    } bad[] = {
        {"{\"text\": \"a\"", 12, "expected"},
        {"{\"text\": \"a\"} x", 15, "end of file"},
        {"{\"text\": tru}", 12, "invalid token"},
        {"[1]", 1, "an array, expected a JSON object"},
        {"7", 1, "a number, expected a JSON object"},
        {"\"text\"", 1, "a string, expected a JSON object"},
        {"nul", 3, "invalid token"},
        {"{\"text\": \"a\", \"text\": \"b\"}", 20, "duplicate"},
        {"{}", 1, "found none"},
        {"{\"instruction\": \"a\", \"reply\": \"b\"}", 1,
         "found instruction, reply; expected instruction/response"},
        {"{\"text\": 7}", 2, "\"text\" is a number, expected a string"},
        {"{\"k\": {\"response\": \"\\\"\"}, \"instruction\": \"a\", \"response\": null}", 47,
         "\"response\" is null"},
        {"{\"\xED\x95\x9C\": \"\\\\\", \"prompt\" : [1], \"completion\": \"x\"}", 13,
         "belongs in a field \"messages\""},
        {"{\"instruction\": \"a\", \"input\": {}, \"output\": \"b\"}", 22,
         "\"input\" is an object"},
        {"{\"messages\": {}}", 2, "\"messages\" is an object, expected an array"},
        {"{\"messages\": []}", 2, "no assistant's turn"},
        {"{\"messages\": [7]}", 2, "message 1"},
        {"{\"messages\": [" TURN("user", "a") "]}", 2, "no assistant's turn"},
        {"{\"messages\": [" TURN("assistant", "a") "]}", 2, "must alternate"},
        {"{\"messages\": [" TURN("user", "a") "," TURN("user", "b") "]}", 2, "message 2"},
        {"{\"messages\": [" TURN("user", "a") "," TURN("system", "b") "]}", 2, "role \"system\""},
        {"{\"messages\": [" TURN("user", "a") "," TURN("tool", "b") "]}", 2, "role \"tool\""},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [\"a\"]}]}", 2, "message 1"},
        {"{\"text\": \"\\ud800\"}", 17, "Unicode"},
        {"{\"text\": \"a\tb\"}", 11, "control character"},
        {"{\"text\": \"a\xFF\"}", 11, "unable to decode byte 0xff"},
        {"{\"text\": \"\xED\xA0\x80\"}", 10, "unable to decode byte 0xed"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        for (int strict = 0; strict < 2; strict++) {
            Str file = {0};
            char where[256];
            Records r;
            Error e = {""};
            str_printf(&file, "{\"text\": \"first\"}\n\n%s\n{\"text\": \"last\"}\n", bad[i].line);
            int status = read_bytes(file.s, file.n, NULL, strict, &r, &e);
            ck_assert_int_eq(status, strict ? -1 : 0);
            if (!strict) {
                ck_assert_int_eq(r.n, 2);
                ck_assert_int_eq(r.v[1].line, 4);
                ck_assert_int_eq(r.skipped, 1);
                e = r.first_skipped;
            }
            snprintf(where, sizeof where, "%s:3:%d: ", in_directory("records.jsonl"),
                     bad[i].column);
            ck_assert_msg(strncmp(e.text, where, strlen(where)) == 0,
                          "%s: \"%s\", expected column %d", bad[i].line, e.text, bad[i].column);
            ck_assert_msg(strstr(e.text, bad[i].word) != NULL, "%s: \"%s\"", bad[i].line, e.text);
            records_free(&r);
            free(file.s);
        }
    }
}
END_TEST

START_TEST(line_ends) {
    // a byte order mark, CRLF, blank lines, no newline at the end
    Records r = must_read(
        "\xEF\xBB\xBF{\"text\": \"a\"}\r\n\r\n \t\n{\"text\": \"b\"}\r\n{\"text\": \"c\"}", NULL);
    ck_assert_int_eq(r.n, 3);
    ck_assert_int_eq(r.v[0].line, 1);
    ck_assert_int_eq(r.v[1].line, 4);
    ck_assert_int_eq(r.v[2].line, 5);
    ck_assert_str_eq(r.v[2].spans[0].text, "c");
    records_free(&r);
}
END_TEST

START_TEST(nul_bytes) {
    static const char file[] =
        "{\"text\": \"a\\u0000b\"}\n{\"text\": \"a\0b\"}\n\0\n{\"\\u0000\": 1, \"text\": \"a\"}\n";
    Records r;
    Error e = {""};
    ck_assert_int_eq(read_bytes(file, sizeof file - 1, NULL, false, &r, &e), 0);
    ck_assert_int_eq(
        r.n, 1);  // written as an escape it is a character as any other; a raw one is not JSON
    ck_assert_int_eq(r.skipped, 3);
    ck_assert_uint_eq(r.v[0].spans[0].n, 3);
    ck_assert_mem_eq(r.v[0].spans[0].text, "a\0b", 4);
    records_free(&r);
}
END_TEST

START_TEST(nothing_to_read) {
    Records r;
    Error e = {""};
    ck_assert_int_eq(read_bytes("", 0, NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "it is empty"));
    ck_assert_int_eq(read_bytes("x\ny\n", 4, NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "2 lines were skipped, the first: "));
    ck_assert_ptr_nonnull(strstr(e.text, "records.jsonl:1:1: "));
    ck_assert_int_eq(r.n, 0);
    ck_assert_int_eq(records_read(in_directory("absent.jsonl"), NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "absent.jsonl"));
    ck_assert_int_eq(records_read(directory, NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, directory));
}
END_TEST

/* A message about a hostile line must not carry an escape sequence to the terminal. */
START_TEST(messages_are_printable) {
    Records r;
    Error e = {""};
    static const char file[] = "{\"\\u001b[31m\": 1}\n";
    ck_assert_int_eq(read_bytes(file, sizeof file - 1, NULL, true, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "[31m"));
    for (const char *c = e.text; *c; c++) ck_assert((unsigned char)*c >= ' ');
}
END_TEST

START_TEST(records_cut_short) {
    static const char file[] =
        "{\"prompt\": \"\xED\x95\x9C\", \"completion\": \"\\u00e9\"}\n"
        "{\"messages\": [" TURN("user", "a") ", " TURN("assistant", "b") "]}\n{\"text\": \"t\"}\n";
    for (size_t n = 1; n < sizeof file; n++) {
        Records r;
        Error e = {""};
        int whole = 0;
        for (size_t i = 1; i <= n; i++)
            whole += file[i] == '\n' || (i == n && i == sizeof file - 1 && file[i - 1] != '\n');
        bool rest = file[n - 1] != '\n' && file[n] != '\n';  // a line has begun and not ended
        int status = read_bytes(file, n, NULL, false, &r, &e);
        ck_assert_int_eq(status, whole ? 0 : -1);
        if (status) continue;
        ck_assert_int_eq(r.n, whole);
        ck_assert_int_eq(r.skipped, rest);
        records_free(&r);
    }
}
END_TEST

START_TEST(deep_nesting) {
    static const int depth[] = {1000, 3000, 1000000};
    for (int k = 0; k < COUNT(depth); k++) {
        Str file = {0};
        Records r;
        Error e = {""};
        str_printf(&file, "{\"text\": \"a\", \"other\": ");
        for (int i = 0; i < depth[k]; i++) str_add(&file, k % 2 ? "{\"a\":" : "[", k % 2 ? 5 : 1);
        if (k == 0)
            for (int i = 0; i < depth[k]; i++) str_add(&file, "]", 1);
        str_printf(&file, "}\n{\"text\": \"b\"}\n");
        ck_assert_int_eq(read_bytes(file.s, file.n, NULL, false, &r, &e), 0);
        ck_assert_int_eq(r.skipped, k > 0);
        if (k > 0) ck_assert_ptr_nonnull(strstr(r.first_skipped.text, "depth"));
        records_free(&r);
        free(file.s);
    }
}
END_TEST

START_TEST(huge_lines) {
    for (int k = 0; k < 2; k++) {
        Str file = {0};
        Records r;
        Error e = {""};
        size_t n = k ? (64u << 20) + 1 : 8u << 20;
        char *filler = xmalloc(n);
        memset(filler, 'a', n);
        str_printf(&file, "{\"text\": \"");
        str_add(&file, filler, n);
        str_printf(&file, "\"}\n{\"text\": \"b\"}\n");
        ck_assert_int_eq(read_bytes(file.s, file.n, NULL, false, &r, &e), 0);
        ck_assert_int_eq(r.n, k ? 1 : 2);
        ck_assert_int_eq(r.skipped, k);
        if (k)
            ck_assert_ptr_nonnull(
                strstr(r.first_skipped.text, "records.jsonl:1:1: the line is longer than"));
        else
            ck_assert_uint_eq(r.v[0].spans[0].n, n);
        ck_assert_int_eq(r.v[r.n - 1].line, 2);
        records_free(&r);
        free(filler);
        free(file.s);
    }
}
END_TEST

/* ---- prompts --------------------------------------------------------------------------------- */

static int read_prompts(const char *bytes, size_t n, const char *template, bool strict, Prompts *p,
                        Error *e) {
    write_file("prompts.jsonl", bytes, n);
    return prompts_read(in_directory("prompts.jsonl"), template, strict, p, e);
}

static void check_prompts(const char *json, const char *template, const char *expected) {
    Error e = {""};
    Prompts p;
    ck_assert_msg(read_prompts(json, strlen(json), template, true, &p, &e) == 0, "%s", e.text);
    ck_assert_int_eq(p.n, 1);
    ck_assert_int_eq(p.skipped, 0);
    ck_assert_int_eq(p.v[0].line, 1);
    ck_assert_str_eq(p.v[0].text, expected);
    ck_assert_uint_eq(p.v[0].n, strlen(expected));
    prompts_free(&p);
    ck_assert(p.v == NULL && p.n == 0);
}

START_TEST(prompts) {
    check_prompts("{\"prompt\": \"P\"}", NULL, "P");
    check_prompts("{\"prompt\": \"P\"}", "<{instruction}>", "<P>");
    check_prompts("{\"prompt\": \"P\", \"chosen\": \"C\", \"rejected\": 7}", NULL, "P");
    check_prompts("{\"instruction\": \"I\"}", NULL, ALPACA("I"));
    check_prompts("{\"instruction\": \"I\", \"prompt\": \"P\", \"output\": \"O\"}", NULL,
                  ALPACA("I"));
    check_prompts("{\"instruction\": \"I\", \"input\": \"X\"}",
                  "{instruction}[[|{input}]]>{response}!", "I|X>");
    check_prompts("{\"instruction\": \"I\", \"input\": \"\"}", "{instruction}[[|{input}]]>", "I>");
    check_prompts("{\"instruction\": \"I\", \"input\": null}", "{instruction}[[|{input}]]>", "I>");
    // a dialogue is cut after its last answer begins, and no template touches it
    check_prompts(
        "{\"chosen\": \"\\n\\nHuman: H\\n\\nAssistant: A\\n\\nHuman: I\\n\\nAssistant: B\"}",
        "<{instruction}>", "\n\nHuman: H\n\nAssistant: A\n\nHuman: I\n\nAssistant:");
    check_prompts("{\"chosen\": \"\\n\\nAssistant:\"}", NULL, "\n\nAssistant:");
    // what a record answers is kept beside it
    Prompts p;
    Error e = {""};
    static const char file[] =
        "{\"prompt\": \"P\"}\n{\"prompt\": \"P\", \"answer\": \"A\"}\n{\"instruction\": \"I\", "
        "\"answer\": 1, \"output\": \"O\"}\n";
    ck_assert_int_eq(read_prompts(file, sizeof file - 1, NULL, true, &p, &e), 0);
    ck_assert(p.n == 3 && !p.v[0].answer && !strcmp(p.v[1].answer, "A") &&
              !strcmp(p.v[2].answer, "O"));
    prompts_free(&p);
}
END_TEST

START_TEST(bad_prompts) {
    static const struct {
        const char *line;
        int column;
        const char *word;
    } bad[] = {
        {"{\"prompt\": 7}", 2, "\"prompt\" is a number, expected a string"},
        {"{\"prompt\": \"\"}", 2, "the prompt is empty"},
        {"{\"a\": 1, \"instruction\": null}", 10, "\"instruction\" is null"},
        {"{\"instruction\": \"a\", \"input\": {}}", 22, "\"input\" is an object"},
        {"{\"chosen\": \"no dialogue\"}", 2, "has no turn"},
        {"{\"chosen\": \"\\nAssistant:\"}", 2, "has no turn"},
        {"{\"chosen\": \"\"}", 2, "has no turn"},
        {"{\"text\": \"t\"}", 1, "found text; expected instruction[/input], prompt or chosen"},
        {"[]", 1, "an array, expected a JSON object"},
        {"{\"prompt\": \"a\"", 14, "expected"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        for (int strict = 0; strict < 2; strict++) {
            Str file = {0};
            char where[256];
            Prompts p;
            Error e = {""};
            str_printf(&file, "{\"prompt\": \"first\"}\n\n%s\n{\"prompt\": \"last\"}", bad[i].line);
            ck_assert_int_eq(read_prompts(file.s, file.n, NULL, strict, &p, &e), strict ? -1 : 0);
            if (!strict) {
                ck_assert_int_eq(p.n, 2);
                ck_assert_int_eq(p.v[1].line, 4);
                ck_assert_int_eq(p.skipped, 1);
                e = p.first_skipped;
            }
            snprintf(where, sizeof where, "%s:3:%d: ", in_directory("prompts.jsonl"),
                     bad[i].column);
            ck_assert_msg(strncmp(e.text, where, strlen(where)) == 0,
                          "%s: \"%s\", expected column %d", bad[i].line, e.text, bad[i].column);
            ck_assert_msg(strstr(e.text, bad[i].word) != NULL, "%s: \"%s\"", bad[i].line, e.text);
            prompts_free(&p);
            free(file.s);
        }
    }
    Prompts p;
    Error e = {""};
    ck_assert_int_eq(read_prompts("", 0, NULL, false, &p, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "it is empty"));
    ck_assert_int_eq(read_prompts("{\"prompt\": \"a\"}", 15, "no field", false, &p, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "{instruction} is missing"));
    ck_assert_int_eq(prompts_read(in_directory("absent.jsonl"), NULL, false, &p, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "absent.jsonl"));
    ck_assert(p.v == NULL && p.n == 0);
}
END_TEST

/* ---- JSON ------------------------------------------------------------------------------------ */

static void check_string(const char *s, size_t n, const char *expected) {
    Str out = {0};
    json_add_string(&out, s, n);
    ck_assert_str_eq(out.s, expected);
    free(out.s);
}

START_TEST(json_strings) {
    check_string("", 0, "\"\"");
    check_string("a\"\\\n\t\0/\x7F", 8, "\"a\\\"\\\\\\n\\u0009\\u0000/\\u007f\"");
    check_string("\xED\x95\x9C", 3, "\"\xED\x95\x9C\"");
    check_string("\xED\x95", 2,
                 "\"\xEF\xBF\xBD\xEF\xBF\xBD\"");  // half a character, as a token may end
}
END_TEST

START_TEST(numbers_in_json) {
    static const struct {
        const char *text;
        int count;
        double first;
        const char *word;
    } cases[] = {
        {"{\"x\": 2.5}", 1, 2.5, NULL},
        {" {\"y\": \"s\", \"x\": -3}\n", 1, -3, NULL},
        {"{\"x\": [1e-3, 2, 3]}", 3, 1e-3, NULL},
        {"{\"x\": []}", 0, 7, NULL},
        {"{\"x\": null}", -1, 7, "null"},
        {"{\"x\": \"1\"}", -1, 7, "a string, expected a number"},
        {"{\"y\": 1}", -1, 7, "no \"x\""},
        {"[1]", -1, 7, "an array, expected an object"},
        {"3", -1, 7, "a number, expected an object"},
        {"", -1, 7, "not JSON"},
        {"{\"x\": NaN}", -1, 7, "not JSON"},
        {"{\"x\": 1", -1, 7, "not JSON"},
        {"{\"x\": [1, {}]}", -1, 1, "element 1"},
        {"{\"x\": 1, \"x\": 2}", -1, 7, "not JSON"},
        {"{\"x\": 1} {}", -1, 7, "not JSON"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        double out[2] = {7, 7};
        Error e = {""};
        ck_assert_msg(
            json_numbers(cases[i].text, strlen(cases[i].text), "x", out, 2, &e) == cases[i].count,
            "%s", cases[i].text);
        ck_assert(out[0] == cases[i].first);
        if (cases[i].word)
            ck_assert_msg(strstr(e.text, cases[i].word) != NULL, "%s: \"%s\"", cases[i].text,
                          e.text);
    }
}
END_TEST

/* ---- pairs ----------------------------------------------------------------------------------- */

static int read_pairs(const char *text, const char *template, bool strict, Records *r, Error *e) {
    write_file("records.jsonl", text, strlen(text));
    return pairs_read(in_directory("records.jsonl"), template, strict, r, e);
}

/* One pair: its prompt's spans joined by "|", then chosen and rejected. */
static void check_pair(const char *json, const char *template, const char *kind, const char *prompt,
                       const char *chosen, const char *rejected) {
    Records r;
    Error e = {""};
    ck_assert_msg(read_pairs(json, template, true, &r, &e) == 0, "%s", e.text);
    ck_assert_int_eq(r.n, 1);
    ck_assert_int_eq(r.apart, 0);
    ck_assert_str_eq(r.kind, kind);
    const Record *v = &r.v[0];
    ck_assert_int_ge(v->n, 3);
    Str got = {0};
    for (int i = 0; i < v->n - 2; i++) {
        ck_assert(!v->spans[i].scored && strlen(v->spans[i].text) == v->spans[i].n);
        str_printf(&got, "%s%s", i ? "|" : "", v->spans[i].text);
    }
    ck_assert_str_eq(got.s, prompt);
    ck_assert_str_eq(v->spans[v->n - 2].text, chosen);
    ck_assert_str_eq(v->spans[v->n - 1].text, rejected);
    ck_assert(v->spans[v->n - 2].scored && v->spans[v->n - 1].scored);
    free(got.s);
    records_free(&r);
}

#define ANSWERS "\"chosen\": \"C\", \"rejected\": \"R\""

START_TEST(kinds_of_pairs) {
    check_pair("{\"prompt\": \"P \", " ANSWERS "}", NULL, "prompt/chosen/rejected", "P ", "C",
               "R");  // complete: as it is
    check_pair("{\"prompt\": \"\", " ANSWERS "}", NULL, "prompt/chosen/rejected", "", "C", "R");
    check_pair("{\"prompt\": \"P\", " ANSWERS "}", "<{instruction}>{response}!",
               "prompt/chosen/rejected", "<P>", "C!", "R!");
    check_pair("{\"instruction\": \"I\", " ANSWERS "}", NULL, "instruction/chosen/rejected",
               ALPACA("I"), "C", "R");
    check_pair("{\"instruction\": \"I\", \"input\": \"X\", " ANSWERS "}", NULL,
               "instruction/chosen/rejected",
               "### Instruction:\nI\n\n### Input:\nX\n\n### Response:\n", "C", "R");
    check_pair("{\"instruction\": \"I\", \"input\": null, " ANSWERS ", \"id\": 7}", NULL,
               "instruction/chosen/rejected", ALPACA("I"), "C", "R");
    // hh-rlhf: the prompt ends with the last "\n\nAssistant:", and what it says of "Assistant:"
    // otherwise does not matter
    check_pair(
        "{\"chosen\": \"\\n\\nHuman: H\\n\\nAssistant: A\\n\\nHuman: Assistant:?\\n\\nAssistant: "
        "C\", "
        "\"rejected\": \"\\n\\nHuman: H\\n\\nAssistant: A\\n\\nHuman: Assistant:?\\n\\nAssistant: "
        "R Assistant:\"}",
        "<{instruction}>", "chosen/rejected",
        "\n\nHuman: H\n\nAssistant: A\n\nHuman: Assistant:?\n\nAssistant:", " C", " R Assistant:");
    // messages: an answer given earlier is part of the prompt, and has ended
    check_pair("{\"prompt\": [" TURN("system", "S") ", " TURN("user", "U") ", " TURN("assistant", "A") ", " TURN("user", "V") "], "
               "\"chosen\": [" TURN("assistant", "C") "], \"rejected\": [" TURN("assistant", "R") "]}",
               "<{instruction}>", "prompt/chosen/rejected messages", "S\n\n<U>|A<|endoftext|>|<V>", "C", "R");
    check_pair(
        "{\"chosen\": [" TURN("user", "U") ", " TURN("assistant", "C") "], \"rejected\": [" TURN(
            "user", "U") ", " TURN("assistant", "R") "]}",
        NULL, "chosen/rejected messages", ALPACA("U"), "C", "R");
}
END_TEST

START_TEST(margins_and_soft_labels) {
    static const char file[] = "{\"prompt\": \"P\", " ANSWERS "}\n{\"prompt\": \"P\", " ANSWERS
                               ", \"margin\": 2, \"p_chosen\": 0.25}\n"
                               "{\"prompt\": \"P\", " ANSWERS
                               ", \"margin\": null, \"p_chosen\": 0}\n{\"prompt\": \"P\", " ANSWERS
                               ", \"margin\": -0.5}\n";
    const float margin[] = {0, 2, 0, -0.5f}, p[] = {1, 0.25f, 0, 1};
    Records r;
    Error e = {""};
    ck_assert_msg(read_pairs(file, NULL, true, &r, &e) == 0, "%s", e.text);
    ck_assert_int_eq(r.n, 4);
    for (int i = 0; i < 4; i++)
        ck_assert_msg(r.v[i].margin == margin[i] && r.v[i].p_chosen == p[i], "pair %d", i);
    records_free(&r);
}
END_TEST

START_TEST(pairs_with_different_prompts_are_left_out) {
#define DIALOGUE(h, a) "\\n\\nHuman: " h "\\n\\nAssistant:" a
    static const char file[] = "{\"chosen\": \"" DIALOGUE("H", "C") "\", \"rejected\": \"" DIALOGUE("G", "R") "\"}\n"
                               "{\"chosen\": \"" DIALOGUE("H", "C") "\", \"rejected\": \"" DIALOGUE("H", "R") "\"}\n"
                               "{\"chosen\": \"" DIALOGUE("H", "C") "\", \"rejected\": \"" DIALOGUE("H", "C") DIALOGUE("H", "R") "\"}\n"
                               "{\"chosen\": [" TURN("user", "U") ", " TURN("assistant", "C") "], \"rejected\": [" TURN("user", "V") ", " TURN("assistant", "R") "]}\n"
                               "{\"chosen\": [" TURN("user", "U") ", " TURN("assistant", "C") "], \"rejected\": [" TURN("assistant", "R") "]}\n";
    Records r;
    Error e = {""};
    ck_assert_msg(read_pairs(file, NULL, true, &r, &e) == 0, "%s",
                  e.text);  // strict: they are in order, just of no use
    ck_assert_int_eq(r.n, 1);
    ck_assert_int_eq(r.apart, 4);
    ck_assert_int_eq(r.skipped, 0);
    ck_assert_int_eq(r.v[0].line, 2);
    records_free(&r);
    ck_assert_int_eq(read_pairs("{\"chosen\": \"" DIALOGUE(
                                    "H", "C") "\", \"rejected\": \"" DIALOGUE("G", "R") "\"}\n",
                                NULL, true, &r, &e),
                     -1);
    ck_assert_msg(strstr(e.text, "in all 1 of them chosen and rejected answer different prompts"),
                  "%s", e.text);
}
END_TEST

START_TEST(bad_pairs) {
    static const struct {
        const char *line;
        int column;
        const char *word;
    } bad[] = {
        {"{\"chosen\": \"\\n\\nAssistant: C\"}", 1, "found chosen; expected chosen and rejected"},
        {"{\"instruction\": \"a\", \"response\": \"b\"}", 1,
         "found instruction, response; expected chosen and rejected"},
        {"{\"prompt\": \"P\", \"chosen\": \"\", \"rejected\": \"R\"}", 17,
         "the answer in \"chosen\" is empty"},
        {"{\"prompt\": \"P\", \"chosen\": \"C\", \"rejected\": \"\"}", 32,
         "the answer in \"rejected\" is empty"},
        {"{\"prompt\": 3, " ANSWERS "}", 2, "\"prompt\" is a number"},
        {"{\"prompt\": null, " ANSWERS "}", 2, "\"prompt\" is null"},
        {"{\"instruction\": \"I\", \"input\": [], " ANSWERS "}", 22, "\"input\" is an array"},
        {"{\"prompt\": \"P\", \"chosen\": null, \"rejected\": \"R\"}", 17, "\"chosen\" is null"},
        {"{" ANSWERS "}", 2, "no prompt, and \"chosen\" has no \"\\n\\nAssistant:\""},
        {"{\"chosen\": \"\\n\\nAssistant: C\", \"rejected\": \"R\"}", 32, "\"rejected\" has no"},
        {"{\"chosen\": \"\\n\\nAssistant:\", \"rejected\": \"\\n\\nAssistant:R\"}", 2,
         "the answer in \"chosen\" is empty"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"margin\": \"1\"}", 49,
         "\"margin\" is a string, expected a number"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"margin\": 1e7}", 49,
         "\"margin\" is 1e+07, expected a number from -1e+06 to 1e+06"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"margin\": 1e999}", 63, "real number overflow"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"p_chosen\": 1.01}", 49,
         "\"p_chosen\" is 1.01, expected a number from 0 to 1"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"p_chosen\": -1}", 49, "\"p_chosen\" is -1"},
        {"{\"prompt\": \"P\", " ANSWERS ", \"p_chosen\": true}", 49, "\"p_chosen\" is a boolean"},
        {"{\"prompt\": \"P\", \"chosen\": [" TURN("assistant", "C") "], \"rejected\": [" TURN(
             "assistant", "R") "]}",
         1, "are not alike"},
        {"{\"prompt\": [" TURN("user", "U") "], \"chosen\": [" TURN("assistant",
                                                                    "C") "], \"rejected\": []}",
         99, "\"rejected\" has 0 messages, expected one"},
        {"{\"prompt\": [" TURN("user", "U") "], \"chosen\": [" TURN(
             "user", "C") "], \"rejected\": [" TURN("assistant", "R") "]}",
         48, "\"chosen\" does not end in {\"role\": \"assistant\""},
        {"{\"prompt\": [" TURN("user", "U") ", " TURN("assistant", "A") "], \"chosen\": [" TURN(
             "assistant", "C") "], \"rejected\": [" TURN("assistant", "R") "]}",
         2, "do not end in a user's"},
        {"{\"prompt\": [], \"chosen\": [" TURN("assistant", "C") "], \"rejected\": [" TURN(
             "assistant", "R") "]}",
         2, "do not end in a user's"},
        {"{\"prompt\": [3], \"chosen\": [" TURN("assistant", "C") "], \"rejected\": [" TURN(
             "assistant", "R") "]}",
         2, "message 1 of \"prompt\" is not"},
        {"{\"chosen\": [], \"rejected\": []}", 2, "\"chosen\" has 0 messages"},
        {"{\"chosen\": [" TURN("user", "U") ", {\"role\": \"assistant\"}], \"rejected\": [" TURN(
             "user", "U") ", " TURN("assistant", "R") "]}",
         2, "\"chosen\" does not end in"},
        {"[]", 1, "an array, expected a JSON object"},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        Str file = {0};
        Records r;
        Error e = {""};
        str_printf(&file, "{\"prompt\": \"P\", " ANSWERS "}\n%s\n", bad[i].line);
        ck_assert_msg(read_pairs(file.s, NULL, false, &r, &e) == 0, "%s", e.text);
        ck_assert_msg(r.n == 1 && r.skipped == 1 && r.apart == 0, "%s", bad[i].line);
        ck_assert_msg(strstr(r.first_skipped.text, bad[i].word), "%s: %s", bad[i].line,
                      r.first_skipped.text);
        char where[160];
        snprintf(where, sizeof where, "%s:2:%d: ", in_directory("records.jsonl"), bad[i].column);
        ck_assert_msg(!strncmp(r.first_skipped.text, where, strlen(where)), "%s: %s, expected %s",
                      bad[i].line, r.first_skipped.text, where);
        records_free(&r);
        ck_assert_int_eq(read_pairs(file.s, NULL, true, &r, &e), -1);
        free(file.s);
    }
}
END_TEST

/* The parts of pair i of a file, "prompt|chosen|rejected" (tokens are bytes), and the counts of
 * what was left out. */
static void check_parts(const char *file, int max_length, const char *expected, long prompts_cut,
                        long empty, long equal, long too_long) {
    Tokenizer *t = byte_tokenizer();
    Records r;
    Error e = {""};
    Pairs p;
    ck_assert_msg(read_pairs(file, NULL, true, &r, &e) == 0, "%s", e.text);
    pairs_build(&p, &r, t, max_length);
    Str got = {0};
    str_add(&got, "", 0);
    int longest = 0;
    for (int i = 0; i < p.n; i++) {
        for (int k = 0; k < 3; k++) {
            if (i || k) str_add(&got, k ? "|" : ";", 1);
            ck_assert_int_eq(pair_part(&p, i, k),
                             (int)(p.start[3 * i + k + 1] - p.start[3 * i + k]));
            for (size_t j = p.start[3 * i + k]; j < p.start[3 * i + k + 1]; j++)
                str_printf(&got, "%c", p.tokens[j] == 256 ? '$' : p.tokens[j]);
        }
        for (int k = 1; k <= 2; k++)
            longest = pair_part(&p, i, 0) + pair_part(&p, i, k) > longest
                          ? pair_part(&p, i, 0) + pair_part(&p, i, k)
                          : longest;
    }
    ck_assert_str_eq(got.s, expected);
    ck_assert_int_eq(p.longest, longest);
    ck_assert_msg(p.prompts_cut == prompts_cut && p.empty == empty && p.equal == equal &&
                      p.too_long == too_long,
                  "%ld prompts cut, %ld empty, %ld equal, %ld too long", p.prompts_cut, p.empty,
                  p.equal, p.too_long);
    free(got.s);
    pairs_free(&p);
    records_free(&r);
    tokenizer_free(t);
}

START_TEST(pairs_as_tokens) {
    static const char pair[] = "{\"prompt\": \"abcd\", \"chosen\": \"xyz\", \"rejected\": \"uv\"}";
    check_parts(pair, 100, "abcd|xyz|uv", 0, 0, 0, 0);
    check_parts(pair, 7, "abcd|xyz|uv", 0, 0, 0, 0);
    check_parts(pair, 6, "bcd|xyz|uv", 1, 0, 0, 0);  // one cut for both
    check_parts(pair, 4, "d|xyz|uv", 1, 0, 0, 0);
    check_parts(pair, 3, "", 0, 0, 0, 1);  // an answer is never cut
    check_parts(pair, 0, "", 0, 0, 0, 1);
    check_parts(pair, -1, "", 0, 0, 0, 1);
    check_parts("{\"prompt\": \"\", \"chosen\": \"xyz\", \"rejected\": \"uv\"}", 3, "|xyz|uv", 0, 0,
                0, 0);
    // the end of text is not judged: neither is an answer of nothing else, and two answers are not
    // told apart by it
    check_parts(
        "{\"prompt\": \"a\", \"chosen\": \"x<|endoftext|>\", \"rejected\": "
        "\"u<|endoftext|>v<|endoftext|><|endoftext|>\"}",
        100, "a|x|u$v", 0, 0, 0, 0);
    check_parts("{\"prompt\": \"a\", \"chosen\": \"<|endoftext|>\", \"rejected\": \"u\"}", 100, "",
                0, 1, 0, 0);
    check_parts("{\"prompt\": \"a\", \"chosen\": \"u\", \"rejected\": \"u<|endoftext|>\"}", 100, "",
                0, 0, 1, 0);
    check_parts(
        "{\"prompt\": \"a\", \"chosen\": \"u\", \"rejected\": \"ux\"}\n{\"prompt\": \"a\", "
        "\"chosen\": \"x\", \"rejected\": \"x\"}\n"
        "{\"prompt\": \"bc\", \"chosen\": \"xx\", \"rejected\": \"v\"}\n",
        3, "a|u|ux;c|xx|v", 1, 0, 1, 0);
    const int tokens[] = {256, 5, 256, 256};
    for (int n = 0; n <= 4; n++) ck_assert_int_eq(judged_tokens(tokens, n, 256), n < 2 ? 0 : 2);
    ck_assert_int_eq(judged_tokens(tokens, 4, 7), 4);
}
END_TEST

START_TEST(a_prompt_to_be_judged_is_complete) {
    static const struct {
        const char *json, *prompt;
    } one[] = {
        {"{\"prompt\": \"P\", \"response\": \"R\"}", "P"},
        {"{\"prompt\": \"P\", \"completion\": \"R\"}", "P"},
        {"{\"instruction\": \"P\", \"response\": \"R\"}", ALPACA("P")},
    };
    for (size_t i = 0; i < COUNT(one); i++) {
        Records r;
        Error e = {""};
        write_file("records.jsonl", one[i].json, strlen(one[i].json));
        ck_assert_msg(answers_read(in_directory("records.jsonl"), NULL, true, &r, &e) == 0, "%s",
                      e.text);
        ck_assert_str_eq(r.v[0].spans[0].text, one[i].prompt);
        ck_assert_str_eq(r.v[0].spans[1].text, "R");
        records_free(&r);
    }
}
END_TEST

/* ---- datasets -------------------------------------------------------------------------------- */

static Dataset build(const Tokenizer *t, const char *file, int max_length, bool train_on_prompt) {
    Records r = must_read(file, NULL);
    Dataset d;
    dataset_build(&d, &r, t, max_length, train_on_prompt);
    records_free(&r);
    return d;
}

/* Example i, with "_" before each token that is not scored, and "$" for the end of text (tokens are
 * bytes). */
static void check_example(const Dataset *d, int i, const char *expected) {
    Str got = {0};
    ck_assert_int_lt(i, d->n);
    str_add(&got, "", 0);
    for (size_t k = d->start[i]; k < d->start[i + 1]; k++)
        str_printf(&got, "%s%c", d->scored[k] ? "" : "_", d->tokens[k] == 256 ? '$' : d->tokens[k]);
    ck_assert_str_eq(got.s, expected);
    free(got.s);
}

/* The one example of a file of one line, and how it was counted. */
static void check_fit(const char *line, int max_length, const char *expected, long prompts_cut,
                      long responses_cut) {
    Tokenizer *t = byte_tokenizer();
    Dataset d = build(t, line, max_length, false);
    ck_assert_int_eq(d.n, expected != NULL);
    ck_assert_int_eq(d.dropped, expected == NULL);
    if (expected) check_example(&d, 0, expected);
    ck_assert_int_eq(d.prompts_cut, prompts_cut);
    ck_assert_int_eq(d.responses_cut, responses_cut);
    ck_assert_int_eq(d.longest, (int)d.start[d.n]);
    long scored = 0;
    for (size_t i = 0; i < d.start[d.n]; i++) scored += d.scored[i];
    ck_assert_int_eq(d.scored_tokens, scored);
    dataset_free(&d);
    tokenizer_free(t);
}

START_TEST(what_is_scored) {
    static const char pair[] = "{\"prompt\": \"ab\", \"completion\": \"cd\"}";
    check_fit(pair, 100, "_a_bcd$", 0, 0);
    check_fit("{\"prompt\": \"ab\", \"completion\": \"\"}", 100, "_a_b$", 0, 0);
    check_fit("{\"prompt\": \"\", \"completion\": \"cd\"}", 100, "_cd$", 0,
              0);  // nothing comes before the c
    check_fit("{\"prompt\": \"\", \"completion\": \"\"}", 100, NULL, 0, 0);
    check_fit("{\"text\": \"abc\"}", 100, "_abc$", 0, 0);
    check_fit("{\"text\": \"\"}", 100, NULL, 0, 0);
    check_fit("{\"prompt\": \"ab\", \"completion\": \"cd<|endoftext|>\"}", 100, "_a_bcd$", 0,
              0);  // ended already
    check_fit("{\"prompt\": \"a<|endoftext|>\", \"completion\": \"\"}", 100, "_a_$$", 0, 0);
    Tokenizer *t = byte_tokenizer();
    Dataset d = build(t, pair, 100, true);
    check_example(&d, 0, "_abcd$");
    ck_assert_int_eq(d.scored_tokens, 4);
    dataset_free(&d);
    tokenizer_free(t);
}
END_TEST

START_TEST(too_long) {
    static const char pair[] = "{\"prompt\": \"abcdef\", \"completion\": \"xy\"}";
    check_fit(pair, 9, "_a_b_c_d_e_fxy$", 0, 0);
    check_fit(pair, 8, "_b_c_d_e_fxy$", 1, 0);
    check_fit(pair, 5, "_e_fxy$", 1, 0);
    check_fit(pair, 3, "_xy$", 1, 0);
    check_fit(pair, 2, "_xy", 1, 1);
    check_fit(pair, 1, NULL, 0, 0);
    check_fit(pair, 0, NULL, 0, 0);
    check_fit(pair, -1, NULL, 0, 0);
    check_fit("{\"text\": \"abcdef\"}", 3, "_abc", 0, 1);
}
END_TEST

START_TEST(conversations_are_cut) {
    Tokenizer *t = byte_tokenizer();
    static const char file[] = "{\"messages\": [" TURN("user", "ab") ", " TURN(
        "assistant", "X") ", " TURN("user", "cd") ", " TURN("assistant", "YZ") "]}";
    static const struct {
        int max_length;
        const char *expected;
        long prompts_cut, responses_cut;
    } fits[] = {
        {100, "_a_b_;X$_c_d_;YZ$", 0, 0},
        {10, "_b_;X$_c_d_;YZ$", 1, 0},  // ab; X$ cd; YZ$ are 11
        {8, "_X$_c_d_;YZ$", 1, 0},
        {7, "_X$_c_d_;YZ", 1, 1},
        {5, "_X$", 1, 1},  // the question cd that would be left has no answer
    };
    for (int i = 0; i < COUNT(fits); i++) {
        Error e = {""};
        Records r;
        Dataset d;
        ck_assert_int_eq(read_bytes(file, sizeof file - 1, "{instruction};", true, &r, &e), 0);
        dataset_build(&d, &r, t, fits[i].max_length, false);
        check_example(&d, 0, fits[i].expected);
        ck_assert_int_eq(d.prompts_cut, fits[i].prompts_cut);
        ck_assert_int_eq(d.responses_cut, fits[i].responses_cut);
        dataset_free(&d);
        records_free(&r);
    }
    tokenizer_free(t);
}
END_TEST

/* "hel" + "lo" is never tokenised as hello: the boundary stays where the record has it. */
START_TEST(boundary_is_of_bytes) {
    Tokenizer *t = hand_tokenizer();
    Dataset d = build(t, "{\"prompt\": \"hel\", \"completion\": \"lo\"}", 100, false);
    static const int tokens[] = {256, 'l', 'l', 'o', HAND_EOS}, scored[] = {0, 0, 1, 1, 1};
    ck_assert_int_eq(d.n, 1);
    ck_assert_uint_eq(d.start[1], 5);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(d.tokens[i], tokens[i]);
        ck_assert_int_eq(d.scored[i], scored[i]);
    }
    dataset_free(&d);
    tokenizer_free(t);
}
END_TEST

START_TEST(ragged_batches) {
    Tokenizer *t = byte_tokenizer();
    Dataset d = build(t,
                      "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"text\": \"\"}\n"
                      "{\"prompt\": \"cd\", \"completion\": \"e\"}\n\n{\"text\": \"fg\"}\n",
                      100, false);
    ck_assert_int_eq(d.n, 3);
    ck_assert_int_eq(d.dropped, 1);
    ck_assert_int_eq(d.longest, 4);
    ck_assert_int_eq(d.scored_tokens, 2 + 2 + 2);
    static const int line[] = {1, 3, 5};
    for (int i = 0; i < 3; i++) ck_assert_int_eq(d.line[i], line[i]);

    RaggedBatch rb = {0};
    ragged_fill(&rb, &d, (const int[]){0}, 1);
    ck_assert_int_eq(rb.batch.N, 2);
    ragged_fill(&rb, &d, (const int[]){2, 0, 1}, 3);
    static const int start[] = {0, 2, 4, 7}, tokens[] = {'f', 'g', 'a', 'b', 'c', 'd', 'e'};
    static const int target[] = {'g', 256, 'b', 256, -1, 'e', 256};
    static const uint32_t id[] = {2, 0, 1};
    ck_assert_int_eq(rb.batch.S, 3);
    ck_assert_int_eq(rb.batch.N, 7);
    ck_assert_int_eq(rb.scored, 6);
    for (int i = 0; i < 4; i++) ck_assert_int_eq(rb.batch.start[i], start[i]);
    for (int i = 0; i < 3; i++) ck_assert_uint_eq(rb.batch.id[i], id[i]);
    for (int i = 0; i < 7; i++) {
        ck_assert_int_eq(rb.batch.tokens[i], tokens[i]);
        ck_assert_int_eq(rb.target[i], target[i]);
    }
    ragged_fill(&rb, &d, (const int[]){1}, 1);
    ck_assert_int_eq(rb.batch.S, 1);
    ck_assert_int_eq(rb.batch.N, 3);
    ck_assert_int_eq(rb.scored, 2);
    ragged_free(&rb);
    dataset_free(&d);
    tokenizer_free(t);
}
END_TEST

/* Every record of the real files decodes to its spans, each response followed by one end of text.
 */
START_TEST(real_records) {
    static const struct {
        const char *file, *kind;
        int n;
    } real[] = {{"korean/chat.jsonl", "instruction/response", 8000},
                {"instructions/alpaca-style.jsonl", "instruction/input/output", 1000},
                {"summaries/news.jsonl", "prompt/completion", 200},
                {"e2e-nlg/valid.jsonl", "prompt/completion", 4672}};
    Tokenizer *t = real_tokenizer();
    for (int k = 0; t && k < COUNT(real); k++) {
        Error e = {""};
        Records r;
        Dataset d;
        ck_assert_msg(records_read(shared(real[k].file), NULL, true, &r, &e) == 0, "%s", e.text);
        ck_assert_int_eq(r.n, real[k].n);
        ck_assert_str_eq(r.kind, real[k].kind);
        dataset_build(&d, &r, t, INT32_MAX, false);
        ck_assert_int_eq(d.n, r.n);
        for (int i = 0; i < d.n; i++) {
            Str got = {0}, expected = {0};
            tokenizer_decode(t, d.tokens + d.start[i], d.start[i + 1] - d.start[i], &got);
            for (int s = 0; s < r.v[i].n; s++) {
                str_add(&expected, r.v[i].spans[s].text, r.v[i].spans[s].n);
                // a response that ends so already, as those of summaries/ do, gets no second one
                bool ended =
                    expected.n >= 13 && !strcmp(expected.s + expected.n - 13, "<|endoftext|>");
                if (r.v[i].spans[s].scored && !ended) str_printf(&expected, "<|endoftext|>");
            }
            ck_assert_msg(got.n == expected.n && !memcmp(got.s, expected.s, got.n), "%s: record %d",
                          real[k].file, i);
            free(got.s);
            free(expected.s);
        }
        dataset_free(&d);
        records_free(&r);
    }
    tokenizer_free(t);
}
END_TEST

/* ----  ---------------------------------------------------------------------------------------- */

static void add_case(Suite *s, const char *name, const TTest *const *test, int n) {
    TCase *c = tcase_create(name);
    tcase_set_timeout(c, 300);  // a busy machine, perhaps under a sanitizer
    tcase_add_checked_fixture(c, make_directory, remove_directory);
    for (int i = 0; i < n; i++) tcase_add_test(c, test[i]);
    suite_add_tcase(s, c);
}

int main(void) {
    const TTest *const tokenizer[] = {merging,
                                      cutting,
                                      not_utf8,
                                      any_bytes_come_back,
                                      unknown_ids_decode_to_nothing,
                                      merging_as_defined,
                                      long_pieces,
                                      added_tokens,
                                      same_ids_as_the_library};
    const TTest *const loading[] = {bytes_alone,          tokenizer_json_is_the_same,
                                    wrong_tokenizer_json, wrong_vocabulary,
                                    wrong_merges,         files_cut_short};
    const TTest *const records[] = {templates,
                                    a_template_in_one_line,
                                    records_say_what_their_prompts_were_put_into,
                                    wrong_templates,
                                    kinds,
                                    conversations,
                                    bad_lines,
                                    line_ends,
                                    nul_bytes,
                                    nothing_to_read,
                                    messages_are_printable,
                                    records_cut_short,
                                    deep_nesting,
                                    huge_lines};
    const TTest *const prompt[] = {prompts, bad_prompts};
    const TTest *const json[] = {json_strings, numbers_in_json};
    const TTest *const pairs[] = {
        kinds_of_pairs, margins_and_soft_labels, pairs_with_different_prompts_are_left_out,
        bad_pairs,      pairs_as_tokens,         a_prompt_to_be_judged_is_complete};
    const TTest *const datasets[] = {what_is_scored,       too_long,       conversations_are_cut,
                                     boundary_is_of_bytes, ragged_batches, real_records};
    Suite *s = suite_create("text");
    add_case(s, "tokenizer", tokenizer, COUNT(tokenizer));
    add_case(s, "loading", loading, COUNT(loading));
    add_case(s, "records", records, COUNT(records));
    add_case(s, "pairs", pairs, COUNT(pairs));
    add_case(s, "prompts", prompt, COUNT(prompt));
    add_case(s, "json", json, COUNT(json));
    add_case(s, "datasets", datasets, COUNT(datasets));
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
