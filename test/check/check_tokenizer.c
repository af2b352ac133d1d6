/*
 * check_tokenizer.c - the tokenizer: encoding, decoding and loading.
 *
 * Most ids are derived by hand. A naive BPE is the second opinion on merging. golden_text.h, made
 * by the tokenizers library, is the third, if the real vocabulary is at hand.
 */
#include "text_files.h"

#include "../golden/golden_added.h"
#include "../golden/golden_text.h"

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
    IDS("aaa", 267, 'a');  // of equal merges the leftmost comes first
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
    IDS("\n\nw", '\n', '\n',
        'w');  // the last newline is cut off for the word, which does not take it
    IDS("\n\n\nw", 270, '\n', 'w');
    IDS("  \t", 269, '\t');
    // U+3000 is white space and forms one piece with the blanks before it. U+180E and U+200B are
    // not white space and take the last blank.
    IDS("  \xE3\x80\x80", 269, 0xE3, 0x80, 0x80);
    IDS("  \xC2\x85", 269, 0xC2, 0x85);
    IDS("  \xE1\xA0\x8E", ' ', ' ', 0xE1, 0xA0, 0x8E);
    IDS("  \xE2\x80\x8B", ' ', ' ', 0xE2, 0x80, 0x8B);
    // U+10D4A is a letter since Unicode 16 and U+31350 since 15: each is one piece with the a.
    // U+1F600 is no letter.
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
    IDS("a\xF0", 'a', 0xF0);  // they are two pieces, or 275 would join them
    // two blanks at the end of a piece stay together; before a character, it takes the last one
    IDS("  \xED\xA0\x80", 269, 0xED, 0xA0, 0x80);  // a surrogate is no character
    IDS("  \xC0\x80", 269, 0xC0, 0x80);            // an overlong form is no character
    IDS("  \xE0\x80\x80", 269, 0xE0, 0x80, 0x80);
    IDS("  \xF4\x90\x80\x80", 269, 0xF4, 0x90, 0x80, 0x80);  // above U+10FFFF there is no character
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
    enum { MERGES = 64, LONGEST = 60 };  // half of the hash table's 128 slots: it is never fuller
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
        int ids, id;  // this many units give one token of this id
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
    write_text("added_tokens.json", added);
    Tokenizer *t = must_load();
    ck_assert_int_eq(tokenizer_size(t), 281);
    const int ids[] = {256, 277, 278, '<', '|',      'u',
                       's', 'e', 'r', 279, HAND_EOS, 280};  // the longer of two that fit
    check_ids(t, text, sizeof text - 1, true, ids, COUNT(ids));
    IDS("<|user|>", '<', '|', 'u', 's', 'e', 'r', '|', '>');
    IDS("<|endoftext|>", '<', '|', 'e', 'n', 'd', 'o', 'f', 't', 'e', 'x', 't', '|', '>');
    tokenizer_free(t);
}
END_TEST

/* s with its first `from` replaced. */
static Str replaced(Str s, const char *from, const char *to) {
    Str out = {0};
    char *at = strstr(s.s, from);
    ck_assert_msg(at != NULL, "the test's own text has no %s", from);
    str_printf(&out, "%.*s%s%s", (int)(at - s.s), s.s, to, at + strlen(from));
    free(s.s);
    return out;
}

/* The tokens of a setting as tokenizer.json lists them. */
static Str listed_tokens(const GoldenSetting *g) {
    static const char *const flag[][2] = {
        {"l", "lstrip"}, {"r", "rstrip"}, {"w", "single_word"}, {"n", "normalized"}};
    Str out = {0};
    str_printf(&out, "{\"id\": 256, \"content\": \"<|endoftext|>\"}");
    for (int i = 0; i < COUNT(g->added) && g->added[i].content; i++) {
        str_printf(&out, ", {\"id\": %d, \"content\": \"%s\"", 257 + i, g->added[i].content);
        for (int k = 0; k < 4; k++)
            if (strstr(g->added[i].flags, flag[k][0]))
                str_printf(&out, ", \"%s\": true", flag[k][1]);
        str_printf(&out, "}");
    }
    return out;
}

START_TEST(added_tokens_as_in_the_library) {
    int checked = 0;
    for (int k = 0; k < COUNT(golden_setting); k++) {
        clean_directory();
        Str vocab = vocabulary(NULL, 0), added = listed_tokens(&golden_setting[k]);
        Str json = tokenizer_json(vocab.s, NULL, 0, false, added.s, "");
        Str config = {0};
        str_printf(&config, "{\"add_prefix_space\": %s}", golden_setting[k].add_prefix_space);
        if (!strcmp(golden_setting[k].add_prefix_space, "true"))
            json = replaced(json, "\"add_prefix_space\": false", "\"add_prefix_space\": true");
        write_str("tokenizer.json", json);
        write_str("tokenizer_config.json", config);
        Tokenizer *t = must_load();
        for (int i = 0; i < COUNT(golden_added); i++) {
            const GoldenAdded *g = &golden_added[i];
            if (g->setting != k) continue;
            Ints got = {0};
            tokenizer_encode(t, g->text, strlen(g->text), true, &got);
            bool same = (int)got.n == g->n;
            for (int j = 0; same && j < g->n; j++) same = got.v[j] == g->ids[j];
            ck_assert_msg(same, "setting %d: other ids of \"%s\"", k, g->text);
            free(got.v);
            checked++;
        }
        tokenizer_free(t);
        free(vocab.s);
        free(added.s);
    }
    ck_assert_int_eq(checked, COUNT(golden_added));
}
END_TEST

/* Thousands of tokens that begin with the same byte cost no more than one: a search that compared
   each with the text took minutes here. */
START_TEST(many_added_tokens) {
    enum { TOKENS = 10000, CHARACTERS = 200000 };
    Str added = {0}, text = {0};
    Ints ids = {0};
    for (int i = 0; i < TOKENS; i++)
        str_printf(&added, "%s\"\\u%04x\\uC694\": %d", i ? ", " : "{", 0xAC00 + i, 257 + i);
    str_printf(&added, "}");
    clean_directory();
    write_str("vocab.json", vocabulary(NULL, 0));
    write_str("merges.txt", merges_txt(NULL, 0));
    write_str("added_tokens.json", added);
    Tokenizer *t = must_load();
    // U+B098 is followed by U+C694 once in four times
    for (int i = 0; i < CHARACTERS; i += 4)
        str_printf(&text, "\xEB\x82\x98\xEB\x82\x98\xEB\x82\x98\xEC\x9A\x94");
    const double before = now_seconds();
    tokenizer_encode(t, text.s, text.n, true, &ids);
    ck_assert_double_lt(now_seconds() - before, 5);
    ck_assert_uint_eq(ids.n, CHARACTERS / 4 * 7);
    ck_assert_int_eq(ids.v[6], 257 + 0xB098 - 0xAC00);
    free(text.s);
    free(ids.v);
    tokenizer_free(t);
}
END_TEST

/* ---- loading --------------------------------------------------------------------------------- */

static void must_not_load(const char *word) {
    Error e = {0};
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

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\\\p{L}+| ?\\\\p{N}+| ?[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s+(?!\\\\S)|" \
    "\\\\s+"
#define LEVEL "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}"
#define SPLIT(pattern, behavior, invert)                                                           \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {"            \
    "\"Regex\": \"" pattern "\"}, \"behavior\": \"" behavior "\", \"invert\": " invert "}, " LEVEL \
    "]}"

/* Spellings of GPT-2's tokenizer that the tokenizers library (0.22.1) reads as the same one. */
START_TEST(other_spellings_of_the_same_tokenizer) {
    static const char plain[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}";
    static const char *const spelling[][2] = {
        {plain, SPLIT(GPT2_PATTERN, "Isolated", "false")},
        {plain, SPLIT(GPT2_PATTERN, "Removed", "true")},
        {plain,
         "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Sequence\", "
         "\"pretokenizers\": [{\"type\": \"ByteLevel\", \"add_prefix_space\": false}]}]}"},
        {"{\"added_tokens\"",
         "{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": []}, \"added_tokens\""},
        {"{\"added_tokens\"",
         "{\"post_processor\": {\"type\": \"Sequence\", \"processors\": [{\"type\": "
         "\"ByteLevel\", \"trim_offsets\": false}, {\"type\": \"TemplateProcessing\", \"single\": "
         "[{\"Sequence\": {\"id\": \"A\"}}]}]}, \"added_tokens\""},
    };
    static const char text[] = "hello world it's  \xED\x95\x9C\n\n";
    const int ids[] = {259, 264, ' ', 'i', 't', 271, ' ', ' ', 274, 270};
    for (int i = 0; i < COUNT(spelling); i++) {
        clean_directory();
        Str vocab = vocabulary(hand_merges, COUNT(hand_merges));
        Str json = tokenizer_json(vocab.s, hand_merges, COUNT(hand_merges), false, "", "");
        write_str("tokenizer.json", replaced(json, spelling[i][0], spelling[i][1]));
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
        {"", "", "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}",
         SPLIT("\\\\w+", "Isolated", "false"), "found Split with another pattern"},
        {"", "", "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}",
         SPLIT(GPT2_PATTERN, "Removed", "false"), "found Split with another pattern"},
        {"", "", "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}", LEVEL,
         "found ByteLevel with another pattern"},
        {"", "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}]},",
         "", "", "normalizer"},
        {"",
         "\"post_processor\": {\"type\": \"Sequence\", \"processors\": [{\"type\": "
         "\"ByteLevel\"}, {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": "
         "{\"id\": \"x\"}}, {\"Sequence\": {\"id\": \"A\"}}]}]},",
         "", "", "write it there in --template"},
        {"", "", "\"add_prefix_space\": false", "\"add_prefix_space\": true",
         "add_prefix_space of tokenizer_config.json is false"},
        {"", "", "ByteLevel", "Metaspace", "as in KoGPT2"},
        {"", "\"post_processor\": {\"type\": \"RobertaProcessing\"},", "", "", "adds tokens"},
        {"",
         "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": "
         "{\"id\": \"<|endoftext|>\"}}, {\"Sequence\": {\"id\": \"A\"}}]},",
         "", "", "TemplateProcessing adds tokens"},
        {"", "", "\"type\": \"BPE\"", "\"type\": \"BPE\", \"dropout\": 0.1", "dropout"},
        {"", "", "\"added_tokens\": []", "\"added_tokens\": {}", "added_tokens is an object"},
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
        write_text("merges.txt", wrong[i].text);
        must_not_load(wrong[i].word);
    }
    write_file("merges.txt", "h e\0", 4);
    must_not_load("NUL");
    write_file("merges.txt", "h e\r\nl l", 8);  // CRLF and a missing last newline are accepted
    Tokenizer *t = must_load();
    IDS("hell", 256, 257);
    tokenizer_free(t);
}
END_TEST

/* Writes both kinds of files, and the JSON of tokenizer_config.json. */
static void write_both(const char *config) {
    clean_directory();
    Str vocab = vocabulary(hand_merges, COUNT(hand_merges));
    write_str("tokenizer.json", tokenizer_json(vocab.s, hand_merges, COUNT(hand_merges), false,
                                               "{\"id\": 277, \"content\": \"<sep>\"}", ""));
    write_str("vocab.json", vocab);
    write_str("merges.txt", merges_txt(hand_merges, COUNT(hand_merges)));
    write_text("tokenizer_config.json", config);
}

/* What the files say about a token: its id, and the uses of tokens. */
START_TEST(the_other_files_count) {
    write_both("{}");
    Tokenizer *t = must_load();  // <sep> is in tokenizer.json alone
    const int sep[] = {'a', 277, 'b'};
    check_ids(t, "a<sep>b", 7, true, sep, 3);
    ck_assert_int_eq(tokenizer_eos(t), HAND_EOS);
    ck_assert_int_eq(tokenizer_pad(t), -1);
    ck_assert_str_eq(tokenizer_added_in(t, 277), "tokenizer.json");
    ck_assert_ptr_null(tokenizer_added_in(t, 'a'));
    tokenizer_free(t);
    write_both(
        "{\"eos_token\": \"<sep>\", \"pad_token\": {\"content\": \"[PAD]\"}, "
        "\"model_max_length\": 1000000000000000019884624838656}");
    t = must_load();
    ck_assert_int_eq(tokenizer_eos(t), 277);
    ck_assert_int_eq(tokenizer_pad(t), 278);  // no vocabulary has it, so it gets the next id
    ck_assert_int_eq(tokenizer_size(t), 279);
    ck_assert_str_eq(tokenizer_added_in(t, 278), "tokenizer_config.json");
    tokenizer_free(t);
    // an older directory: special_tokens_map.json counts where added_tokens_decoder is absent
    static const char map[] = "{\"eos_token\": \"<sep>\"}";
    write_both("{\"eos_token\": \"<|endoftext|>\"}");
    write_text("special_tokens_map.json", map);
    t = must_load();
    ck_assert_int_eq(tokenizer_eos(t), 277);
    tokenizer_free(t);
    write_both(
        "{\"eos_token\": \"<|endoftext|>\", \"added_tokens_decoder\": {\"277\": "
        "{\"content\": \"<sep>\"}}}");
    write_text("special_tokens_map.json", map);
    t = must_load();
    ck_assert_int_eq(tokenizer_eos(t), HAND_EOS);
    tokenizer_free(t);
}
END_TEST

/* A vocabulary without <|endoftext|>: the end is the one that a file names. */
START_TEST(another_end) {
    static const char added[] = "{\"</s>\": 277}", config[] = "{\"eos_token_id\": 277}";
    tokenizer_free(load_merges(hand_merges, COUNT(hand_merges)));
    write_str("vocab.json",
              replaced(vocabulary(hand_merges, COUNT(hand_merges)), END_OF_TEXT, "<|fim|>"));
    write_text("added_tokens.json", added);
    must_not_load("name the model's own end as \"eos_token\" in tokenizer_config.json");
    write_text("config.json", config);
    Tokenizer *t = must_load();
    ck_assert_int_eq(tokenizer_eos(t), 277);
    tokenizer_free(t);
}
END_TEST

START_TEST(files_that_contradict_each_other) {
    static const struct {
        const char *file, *from, *to, *config, *word;
    } wrong[] = {
        {"vocab.json", "\"a\": 97", "\"a\": 98", "{}", "token \"a\" has id 97"},
        {"vocab.json", "\"ab\": 266", "\"ba\": 266", "{}", "\"ab\" has id 266"},
        {"merges.txt", "l l\n", "", "{}", "merges.txt:3: the merge \"he ll\" is not merge 2"},
        {"merges.txt", "a \xC3\xB0\n", "", "{}", "has 19 merges and tokenizer.json 20"},
        {NULL, "", "", "{\"added_tokens_decoder\": {\"278\": {\"content\": \"<sep>\"}}}",
         "\"<sep>\" has id 278, but 277 in tokenizer.json"},
        {NULL, "", "", "{\"added_tokens_decoder\": {}}",
         "lists the added token \"<sep>\", and added_tokens_decoder"},
        {NULL, "", "", "{\"add_prefix_space\": true}", "add_prefix_space is false, and"},
        {NULL, "", "", "{\"add_bos_token\": true}", "add_bos_token is true"},
        {NULL, "", "", "{\"tokenizer_class\": \"BertTokenizer\"}", "BertTokenizer"},
        {NULL, "", "", "{\"split_special_tokens\": true}", "split_special_tokens"},
        {NULL, "", "", "[]", "tokenizer_config.json"},
    };
    for (int i = 0; i < COUNT(wrong); i++) {
        write_both(wrong[i].config);
        Str merges = merges_txt(hand_merges, COUNT(hand_merges)),
            vocab = vocabulary(hand_merges, COUNT(hand_merges));
        const bool is_vocab = wrong[i].file && !strcmp(wrong[i].file, "vocab.json");
        if (wrong[i].file)
            write_str(wrong[i].file,
                      replaced(is_vocab ? vocab : merges, wrong[i].from, wrong[i].to));
        if (!is_vocab) free(vocab.s);
        if (!wrong[i].file || is_vocab) free(merges.s);
        must_not_load(wrong[i].word);
    }
    static const char added[] = "{\"<x>\": 278}";
    write_both("{\"added_tokens_decoder\": {\"277\": {\"content\": \"<sep>\"}}}");
    write_text("added_tokens.json", added);
    must_not_load("lists \"<x>\", which tokenizer_config.json does not know");
}
END_TEST

/* A byte order mark, which Windows' editors write, is named with the command that removes it. */
START_TEST(byte_order_marks) {
    static const char *const file[] = {"vocab.json", "merges.txt", "tokenizer.json",
                                       "tokenizer_config.json"};
    for (int i = 0; i < COUNT(file); i++) {
        write_both("{}");
        Str text = {0}, marked = {0};
        Error e;
        ck_assert_int_eq(read_file(in_directory(file[i]), 1 << 20, &text, &e), 0);
        str_printf(&marked, "\xEF\xBB\xBF%s", text.s);
        write_str(file[i], marked);
        must_not_load("begins with a byte order mark");
        must_not_load("sed -i '1s/^\\xEF\\xBB\\xBF//' /");
        must_not_load(file[i]);
        free(text.s);
    }
}
END_TEST

/* Another token may end a text, and added tokens are found in one. */
START_TEST(the_end_may_be_set) {
    write_both("{}");
    Tokenizer *t = must_load();
    ck_assert_int_eq(tokenizer_first_added(t, "ab<sep>\n<|endoftext|>"), 277);
    ck_assert_int_eq(tokenizer_first_added(t, "ab<se"), -1);
    tokenizer_set_eos(t, 277);
    ck_assert_int_eq(tokenizer_eos(t), 277);
    tokenizer_free(t);
}
END_TEST

START_TEST(notes) {
    static const char short_list[] = "h e\nl l\n";
    Tokenizer *t = hand_tokenizer();
    ck_assert_str_eq(tokenizer_notes(t), "");
    ck_assert(tokenizer_keeps_text(t));
    tokenizer_free(t);
    write_text("merges.txt", short_list);
    t = must_load();
    ck_assert(strstr(tokenizer_notes(t), "no merge makes 18 of the 277 tokens"));
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

int main(void) {
    const TTest *const tokenizer[] = {merging,
                                      cutting,
                                      not_utf8,
                                      any_bytes_come_back,
                                      unknown_ids_decode_to_nothing,
                                      merging_as_defined,
                                      long_pieces,
                                      added_tokens,
                                      added_tokens_as_in_the_library,
                                      many_added_tokens,
                                      same_ids_as_the_library};
    const TTest *const loading[] = {the_other_files_count,
                                    another_end,
                                    files_that_contradict_each_other,
                                    notes,
                                    bytes_alone,
                                    tokenizer_json_is_the_same,
                                    other_spellings_of_the_same_tokenizer,
                                    wrong_tokenizer_json,
                                    byte_order_marks,
                                    the_end_may_be_set,
                                    wrong_vocabulary,
                                    wrong_merges,
                                    files_cut_short};
    Suite *s = suite_create("tokenizer");
    add_case(s, "tokenizer", tokenizer, COUNT(tokenizer));
    add_case(s, "loading", loading, COUNT(loading));
    return run_cases(s);
}
