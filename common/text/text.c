/*
 * text.c - byte-level BPE, JSONL records, prompt templates, ragged batches.
 *
 * The tokenizer is GPT-2's (Radford et al. 2019, section 2.2; merging after Sennrich et al. 2016),
 * to the id. A text is cut into pieces by a regular expression, each piece starts as its bytes, and
 * the neighbours whose merge was learned first are joined until no learned merge is left. Left out:
 * any other pre-tokenizer or normalizer (refused with a message), and added tokens that swallow the
 * spaces around them (refused: decoding could not give the text back).
 */
#include "text/text.h"

#include <jansson.h>
#include <limits.h>
#include <unistd.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum {
    BYTES = 256,
    VOCABULARY_FILE_LIMIT =
        256 << 20,  // bytes of vocab.json, merges.txt or tokenizer.json (GPT-2: 1.4 MB at most)
    LINE_LIMIT = 64 << 20,  // bytes of one JSONL line
};

static const char END_OF_TEXT[] = "<|endoftext|>";

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

/* Length of the character s[0..n) begins with, its code point in *c; 0 when that is not UTF-8 (RFC
   3629: no overlong forms, no surrogates, nothing above U+10FFFF). n > 0. */
static size_t utf8_character(const unsigned char *s, size_t n, uint32_t *c) {
    if (s[0] < 0x80) return *c = s[0], 1;
    size_t length = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || n < length) return 0;
    *c = s[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        *c = *c << 6 | (s[i] & 0x3F);
    }
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    return *c < smallest[length] || *c > 0x10FFFF || (*c >= 0xD800 && *c < 0xE000) ? 0 : length;
}

/* Bytes at the head of s that are UTF-8 (valid), or that are not (!valid). */
static size_t utf8_run(const unsigned char *s, size_t n, bool valid) {
    size_t i = 0, length;
    uint32_t c;
    for (; i < n; i += valid ? length : 1) {
        length = utf8_character(s + i, n - i, &c);
        if ((length > 0) != valid) break;
    }
    return i;
}

/* ---- The tokenizer's data -------------------------------------------------------------------- */

typedef struct {
    int left, right, result;  // ids
} Merge;

struct Tokenizer {
    int size, eos;
    char *bytes;         // token i is bytes[offset[i] .. offset[i+1])
    size_t *offset;      // (size+1)
    int byte_id[BYTES];  // the token of each single byte
    Merge *merges;       // by rank: the earlier learned, the earlier applied
    int n_merges, merges_capacity;
    int *slot;  // a hash table from (left, right) to rank: open addressing, -1 = free, slots a
                // power of two
    int slot_bits;
    int *added;  // ids that stand for themselves when written out in a text
    int n_added;
    bool starts_added[BYTES];  // the bytes they begin with
    pcre2_code *split;
};

static size_t token_length(const Tokenizer *t, int id) { return t->offset[id + 1] - t->offset[id]; }

/* The slot that holds (left, right), or the free one where it belongs. */
static int *merge_slot(const Tokenizer *t, int left, int right) {
    uint64_t hash = ((uint64_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    size_t mask = ((size_t)1 << t->slot_bits) - 1;
    for (size_t i = hash >> (64 - t->slot_bits);; i = (i + 1) & mask) {
        int rank = t->slot[i];
        if (rank < 0 || (t->merges[rank].left == left && t->merges[rank].right == right))
            return &t->slot[i];
    }
}

/* ---- Loading --------------------------------------------------------------------------------- */

/* Vocab.json + merges.txt (+ added_tokens.json), or tokenizer.json  These files spell bytes in an
 * alphabet of printable characters: a byte that is a printable Latin-1 character stands for itself,
 * and the other 68, in order, are U+0100, U+0101, ... So the space is U+0120. */

enum { ALPHABET_END = 0x100 + 68 };

/* Both ways: the characters as UTF-8 (at most two bytes), and the byte of a code point (-1: not in
 * the alphabet). */
typedef struct {
    char character[BYTES][3];
    int byte[ALPHABET_END];
} Alphabet;

static void alphabet_build(Alphabet *a) {
    for (int c = 0; c < ALPHABET_END; c++) a->byte[c] = -1;
    int next = 0x100;
    for (int byte = 0; byte < BYTES; byte++) {
        bool itself =
            (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        int c = itself ? byte : next++;
        a->byte[c] = byte;
        if (c < 0x80)
            snprintf(a->character[byte], 3, "%c", c);
        else
            snprintf(a->character[byte], 3, "%c%c", 0xC0 | c >> 6, 0x80 | (c & 0x3F));
    }
}

/* Appends the bytes that a token spells. False, and nothing appended, if it is not written in the
 * alphabet. */
static bool spelled_bytes(const Alphabet *a, const char *token, Str *out) {
    const unsigned char *s = (const unsigned char *)token;
    size_t left = strlen(token), length, before = out->n;
    for (uint32_t c; left > 0; s += length, left -= length) {
        length = utf8_character(s, left, &c);  // JSON strings are valid: never 0
        if (c >= ALPHABET_END || a->byte[c] < 0) {
            out->n = before;
            return false;
        }
        str_add(out, &(char){(char)a->byte[c]}, 1);
    }
    return true;
}

/* What is being loaded. The maps from a token's spelling to its id are jansson's objects. */
typedef struct {
    Tokenizer *t;
    const char *path;            // of the file that holds the vocabulary, for messages
    const char *added_path;      // of the one that holds the added tokens
    json_t *vocabulary, *added;  // spelling -> id; added may be empty
    Alphabet alphabet;
    Error *e;
} Loading;

static json_t *load_json_object(const char *path, Error *e) {
    Str text = {0};
    json_error_t where;
    json_t *j = NULL;
    if (read_file(path, VOCABULARY_FILE_LIMIT, &text, e) == 0) {
        j = json_loadb(text.s, text.n, JSON_REJECT_DUPLICATES, &where);
        if (!j) fail(e, "%s:%d:%d: %s", path, where.line, where.column, where.text);
    }
    if (j && !json_is_object(j)) {
        fail(e, "%s: expected a JSON object at the top", path);
        json_decref(j);
        j = NULL;
    }
    free(text.s);
    return j;
}

/* name[id] = spelling for every entry of map; each id below n, and once. */
static int place_ids(json_t *map, const char *path, const char **name, size_t n, Error *e) {
    const char *spelling;
    json_t *value;
    json_object_foreach(map, spelling, value) {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0)
            return fail(e, "%s: the id of token \"%.80s\" is not an integer >= 0", path, spelling);
        if ((size_t)id >= n)
            return fail(e,
                        "%s: token \"%.80s\" has id %lld, but there are %zu tokens: ids must be 0 "
                        "to %zu without holes",
                        path, spelling, (long long)id, n, n - 1);
        if (name[id] && strcmp(name[id], spelling))
            return fail(e, "%s: tokens \"%.80s\" and \"%.80s\" have the same id %lld", path,
                        name[id], spelling, (long long)id);
        name[id] = spelling;
    }
    return 0;
}

/* Gives the tokenizer its tokens: every id from 0 on, and the bytes of each. */
static int build_tokens(Loading *l) {
    Tokenizer *t = l->t;
    const char *spelling;
    json_t *value;
    size_t n = json_object_size(l->vocabulary);
    json_object_foreach(l->added, spelling, value) {
        json_t *known = json_object_get(l->vocabulary, spelling);
        if (known && !json_equal(known, value))
            return fail(l->e, "%s: added token \"%.80s\" has id %lld, but %lld in the vocabulary",
                        l->added_path, spelling, (long long)json_integer_value(value),
                        (long long)json_integer_value(known));
        n += !known;
    }
    const char **name = xcalloc(n, sizeof *name);
    if (place_ids(l->vocabulary, l->path, name, n, l->e) ||
        place_ids(l->added, l->added_path, name, n, l->e)) {
        free(name);
        return -1;
    }
    Str bytes = {0};
    t->size = (int)n;
    t->offset = xcalloc(n + 1, sizeof *t->offset);
    for (size_t id = 0; id < n; id++) {
        // an added token is plain text; any other that is not in the alphabet can only be decoded,
        // as it stands
        if (json_object_get(l->added, name[id]) || !spelled_bytes(&l->alphabet, name[id], &bytes))
            str_add(&bytes, name[id], strlen(name[id]));
        t->offset[id + 1] = bytes.n;
    }
    t->bytes = bytes.s;
    free(name);
    return 0;
}

static int find_id(const json_t *map, const char *spelling) {
    const json_t *id = json_object_get(map, spelling);
    return id ? (int)json_integer_value(id) : -1;
}

static int build_byte_ids(Loading *l) {
    for (int byte = 0; byte < BYTES; byte++) {
        l->t->byte_id[byte] = find_id(l->vocabulary, l->alphabet.character[byte]);
        if (l->t->byte_id[byte] < 0)
            return fail(l->e,
                        "%s: no token \"%s\" for byte 0x%02X: this is not a byte-level vocabulary "
                        "as GPT-2's",
                        l->path, l->alphabet.character[byte], byte);
    }
    return 0;
}

/* The added tokens, <|endoftext|> among them whether or not it is listed. */
static int build_added(Loading *l) {
    Tokenizer *t = l->t;
    const char *spelling;
    json_t *value;
    t->eos = find_id(l->added, END_OF_TEXT);
    bool listed = t->eos >= 0;
    if (!listed) t->eos = find_id(l->vocabulary, END_OF_TEXT);
    if (t->eos < 0)
        return fail(l->e, "%s: no token \"%s\", which ends every response", l->path, END_OF_TEXT);
    t->added = xcalloc(json_object_size(l->added) + 1, sizeof *t->added);
    if (!listed) t->added[t->n_added++] = t->eos;
    json_object_foreach(l->added, spelling, value) {
        if (*spelling) t->added[t->n_added++] = (int)json_integer_value(value);
    }
    for (int i = 0; i < t->n_added; i++)
        t->starts_added[(unsigned char)t->bytes[t->offset[t->added[i]]]] = true;
    return 0;
}

/* The next merge in rank: left and right give the token spelled left followed by right. where:
   "merges.txt:17" or the like. */
static int add_merge(Loading *l, const char *left, const char *right, const char *where,
                     size_t number) {
    Tokenizer *t = l->t;
    Str joined = {0};
    str_printf(&joined, "%s%s", left, right);
    const char *spelling[3] = {left, right, joined.s};
    int id[3], status = 0;
    for (int i = 0; i < 3 && status == 0; i++) {
        id[i] = find_id(l->vocabulary, spelling[i]);
        if (id[i] < 0)
            status = fail(l->e,
                          "%s:%zu: the merge \"%.80s %.80s\" needs a token \"%.160s\", which the "
                          "vocabulary lacks",
                          where, number, left, right, spelling[i]);
    }
    free(joined.s);
    if (status) return status;
    if (t->n_merges == t->merges_capacity) {
        t->merges_capacity = 2 * t->merges_capacity + 1024;
        t->merges = xrealloc(t->merges, (size_t)t->merges_capacity, sizeof *t->merges);
    }
    t->merges[t->n_merges++] = (Merge){id[0], id[1], id[2]};
    return 0;
}

/* One merge as text: two tokens with a space between. Cuts pair in two. */
static int add_merge_text(Loading *l, char *pair, const char *where, size_t number) {
    char *space = strchr(pair, ' ');
    if (!space || space == pair || !space[1] || strchr(space + 1, ' '))
        return fail(l->e, "%s:%zu: expected two tokens with one space between, found \"%.80s\"",
                    where, number, pair);
    *space = 0;
    return add_merge(l, pair, space + 1, where, number);
}

static int read_merges_txt(Loading *l, const char *path) {
    Str text = {0};
    int status = read_file(path, VOCABULARY_FILE_LIMIT, &text, l->e);
    if (status == 0 && memchr(text.s, 0, text.n))
        status = fail(l->e, "%s: a NUL byte in what should be text", path);
    size_t number = 0;
    for (char *line = text.s, *next; status == 0 && *line; line = next) {
        size_t n = strcspn(line, "\n");
        next = line + n + (line[n] != 0);
        line[n] = 0;
        if (n && line[n - 1] == '\r') line[n - 1] = 0;
        number++;
        if (*line && strncmp(line, "#version", 8)) status = add_merge_text(l, line, path, number);
    }
    free(text.s);
    return status;
}

/* merges of a tokenizer.json: "a b" (before 2024) or ["a", "b"] each. */
static int read_merges_json(Loading *l, const json_t *merges) {
    if (!json_is_array(merges))
        return fail(l->e, "%s: model.merges is missing or is no array", l->path);
    Str where = {0};
    str_printf(&where, "%s: model.merges", l->path);
    size_t i;
    const json_t *merge;
    int status = 0;
    json_array_foreach(merges, i, merge) {
        const char *left = json_string_value(json_array_get(merge, 0)),
                   *right = json_string_value(json_array_get(merge, 1));
        if (json_is_string(merge)) {
            char *pair = xstrdup(json_string_value(merge));
            status = add_merge_text(l, pair, where.s, i);
            free(pair);
        } else if (left && right && json_array_size(merge) == 2) {
            status = add_merge(l, left, right, where.s, i);
        } else {
            status = fail(l->e, "%s:%zu: expected \"a b\" or [\"a\", \"b\"]", where.s, i);
        }
        if (status) break;
    }
    free(where.s);
    return status;
}

/* The same pair listed twice counts where it comes last, as in the libraries. */
static void build_merge_table(Tokenizer *t) {
    t->slot_bits = 4;
    while ((size_t)1 << t->slot_bits < 2 * (size_t)t->n_merges) t->slot_bits++;
    size_t slots = (size_t)1 << t->slot_bits;
    t->slot = xmalloc(slots * sizeof *t->slot);
    for (size_t i = 0; i < slots; i++) t->slot[i] = -1;
    for (int rank = 0; rank < t->n_merges; rank++)
        *merge_slot(t, t->merges[rank].left, t->merges[rank].right) = rank;
}

static bool is_text(const json_t *value, const char *text) {
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

/* A tokenizer.json describes many kinds of tokenizers; anything but GPT-2's would be read wrongly,
 * so it is refused. */
static int check_is_gpt2(const json_t *top, const char *path, Error *e) {
    const json_t *model = json_object_get(top, "model"), *type = json_object_get(model, "type");
    const json_t *pre = json_object_get(top, "pre_tokenizer"),
                 *normalizer = json_object_get(top, "normalizer");
    if (!json_is_object(model)) return fail(e, "%s: \"model\" is missing or is no object", path);
    if (type && !is_text(type, "BPE"))
        return fail(e, "%s: model.type is not \"BPE\", the only kind GPT-2 uses", path);
    if (!is_text(json_object_get(pre, "type"), "ByteLevel") ||
        !json_is_false(json_object_get(pre, "add_prefix_space")) ||
        json_is_false(json_object_get(pre, "use_regex")))
        return fail(
            e,
            "%s: pre_tokenizer is not GPT-2's: expected type ByteLevel with add_prefix_space false",
            path);
    if (normalizer && !json_is_null(normalizer))
        return fail(e, "%s: has a normalizer; GPT-2 has none", path);
    if (json_is_true(json_object_get(model, "ignore_merges")))
        return fail(e, "%s: model.ignore_merges is true; GPT-2 always merges", path);
    static const char *affix[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const json_t *value = json_object_get(model, affix[i]);
        if (value && !json_is_null(value) && !is_text(value, ""))
            return fail(e, "%s: model.%s is set; GPT-2 has none", path, affix[i]);
    }
    return 0;
}

/* added_tokens of a tokenizer.json, [{"id", "content", ...}], as a map into l->added. */
static int read_added_json(Loading *l, const json_t *list) {
    static const char *unlike[] = {"lstrip", "rstrip", "single_word"};
    size_t i;
    const json_t *token;
    json_array_foreach(list, i, token) {
        json_t *content = json_object_get(token, "content"), *id = json_object_get(token, "id");
        if (!json_is_string(content) || !json_is_integer(id))
            return fail(l->e,
                        "%s: added_tokens[%zu] needs a string \"content\" and an integer \"id\"",
                        l->path, i);
        for (int k = 0; k < 3; k++)
            if (json_is_true(json_object_get(token, unlike[k])))
                return fail(
                    l->e,
                    "%s: added token \"%.80s\" has %s, so decoding would not give the text back",
                    l->path, json_string_value(content), unlike[k]);
        if (json_object_get(l->added, json_string_value(content)))
            return fail(l->e, "%s: added token \"%.80s\" is listed twice", l->path,
                        json_string_value(content));
        json_object_set(l->added, json_string_value(content), id);
    }
    return 0;
}

/* PCRE2's view of GPT-2's pattern
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * with its three classes spelled so that they do not depend on the PCRE2 installed, and are those
 * of the tokenizers library (0.23.3) for each of the 1,112,064 code points. White space is
 * Unicode's White_Space; PCRE2's \s has U+180E too. Letters and numbers are those of Unicode 16,
 * which PCRE2 10.42 (Unicode 14) lacks: 9,272 and 120 code points. */
#define WHITE  \
    "\\t-\\r " \
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define LETTER                                                                                     \
    "\\p{L}\\x{1c89}\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}\\x{"      \
    "10d4a}-\\x{10d65}"                                                                            \
    "\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}\\x{11240}\\x{11380}-\\x{11389}\\x{"      \
    "1138b}\\x{1138e}"                                                                             \
    "\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}" \
    "-\\x{11f10}"                                                                                  \
    "\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{"     \
    "1611d}"                                                                                       \
    "\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{"      \
    "1e06d}"                                                                                       \
    "\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{"      \
    "31350}-\\x{323af}"
#define NUMBER                                                                                   \
    "\\p{N}\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}" \
    "\\x{16130}-\\x{16139}"                                                                      \
    "\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}\\x{1e4f0}-\\x{1e4f9}\\x{"   \
    "1e5f1}-\\x{1e5fa}"
static const char SPLIT_PATTERN[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?[" LETTER "]+| ?[" NUMBER "]+| ?[^" WHITE LETTER NUMBER
    "]+"
    "|[" WHITE "]+(?![^" WHITE "])|[" WHITE "]+";

static int compile_split(Tokenizer *t, Error *e) {
    int code;
    PCRE2_SIZE at;
    t->split = pcre2_compile((PCRE2_SPTR)SPLIT_PATTERN, PCRE2_ZERO_TERMINATED,
                             PCRE2_UTF | PCRE2_ANCHORED, &code, &at, NULL);
    if (!t->split) {
        PCRE2_UCHAR why[256] = "";
        pcre2_get_error_message(code, why, sizeof why);
        return fail(e, "PCRE2 cannot compile GPT-2's pattern: %s (at %zu)", (const char *)why,
                    (size_t)at);
    }
    pcre2_jit_compile(
        t->split,
        PCRE2_JIT_COMPLETE);  // where there is no JIT, pcre2_match interprets: the same pieces
    return 0;
}

/* l->vocabulary and l->added from vocab.json (and added_tokens.json, if there is one). */
static int open_vocabulary(Loading *l) {
    l->vocabulary = load_json_object(l->path, l->e);
    bool more = access(l->added_path, F_OK) == 0;
    l->added = !more ? json_object() : l->vocabulary ? load_json_object(l->added_path, l->e) : NULL;
    return l->vocabulary && l->added ? 0 : -1;
}

/* The same from tokenizer.json; *merges is what it lists as such, borrowed from *top, which the
 * caller releases. */
static int open_tokenizer_json(Loading *l, json_t **top, const json_t **merges) {
    *top = load_json_object(l->path, l->e);
    if (!*top || check_is_gpt2(*top, l->path, l->e)) return -1;
    const json_t *model = json_object_get(*top, "model");
    *merges = json_object_get(model, "merges");
    l->vocabulary = json_incref(json_object_get(model, "vocab"));
    l->added = json_object();
    if (!json_is_object(l->vocabulary))
        return fail(l->e, "%s: model.vocab is missing or is no object", l->path);
    return read_added_json(l, json_object_get(*top, "added_tokens"));
}

Tokenizer *tokenizer_load(const char *dir, Error *e) {
    enum { VOCAB, MERGES, ADDED, TOKENIZER, FILES };
    static const char *file[FILES] = {"vocab.json", "merges.txt", "added_tokens.json",
                                      "tokenizer.json"};
    Str path[FILES] = {{0}};
    for (int i = 0; i < FILES; i++) str_printf(&path[i], "%s/%s", dir, file[i]);
    bool pair = access(path[VOCAB].s, F_OK) == 0 && access(path[MERGES].s, F_OK) == 0;
    int used = pair ? VOCAB : TOKENIZER;
    Loading l = {.t = xcalloc(1, sizeof *l.t),
                 .path = path[used].s,
                 .added_path = path[pair ? ADDED : TOKENIZER].s,
                 .e = e};
    alphabet_build(&l.alphabet);
    json_t *top = NULL;
    const json_t *merges = NULL;
    int status;
    if (access(l.path, F_OK))
        status = fail(e,
                      "no tokenizer in %s: found neither vocab.json with merges.txt nor "
                      "tokenizer.json; copy them from "
                      "where the model came from",
                      dir);
    else
        status = pair ? open_vocabulary(&l) : open_tokenizer_json(&l, &top, &merges);
    if (status == 0) status = build_tokens(&l);
    if (status == 0) status = build_byte_ids(&l);
    if (status == 0) status = build_added(&l);
    if (status == 0)
        status = pair ? read_merges_txt(&l, path[MERGES].s) : read_merges_json(&l, merges);
    if (status == 0) status = compile_split(l.t, e);
    if (status == 0) build_merge_table(l.t);
    json_decref(l.vocabulary);
    json_decref(l.added);
    json_decref(top);
    for (int i = 0; i < FILES; i++) free(path[i].s);
    if (status == 0) return l.t;
    tokenizer_free(l.t);
    return NULL;
}

void tokenizer_free(Tokenizer *t) {
    if (!t) return;
    free(t->bytes);
    free(t->offset);
    free(t->merges);
    free(t->slot);
    free(t->added);
    pcre2_code_free(t->split);
    free(t);
}

int tokenizer_size(const Tokenizer *t) { return t->size; }
int tokenizer_eos(const Tokenizer *t) { return t->eos; }

/* ---- Encoding and decoding ------------------------------------------------------------------- */

/* A piece being merged is a linked list of symbols. A merge keeps the left symbol and unlinks the
 * right one (id -1). */
typedef struct {
    int id, previous,
        next;  // previous is -1 at the head; next is the number of symbols at the tail
} Symbol;

/* Memory for one call of tokenizer_encode, and the merges that can be made now: a binary heap with
   the smallest on top. An entry is rank << 32 | position, so of equal rank the leftmost comes
   first. It goes stale when one of its symbols has been merged meanwhile. */
typedef struct {
    Symbol *symbol;
    size_t symbols_capacity;
    uint64_t *heap;
    size_t n, capacity;
    pcre2_match_data *match;
} Workspace;

static void heap_push(Workspace *w, uint64_t x) {
    if (w->n == w->capacity) {
        w->capacity = 2 * w->capacity + 64;
        w->heap = xrealloc(w->heap, w->capacity, sizeof *w->heap);
    }
    size_t i = w->n++;
    for (size_t parent; i > 0 && w->heap[parent = (i - 1) / 2] > x; i = parent)
        w->heap[i] = w->heap[parent];
    w->heap[i] = x;
}

static uint64_t heap_pop(Workspace *w) {
    uint64_t top = w->heap[0], x = w->heap[--w->n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->n; i = child) {
        if (child + 1 < w->n && w->heap[child + 1] < w->heap[child]) child++;
        if (w->heap[child] >= x) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = x;
    return top;
}

/* If the symbols at i and after it can merge, they are a candidate. */
static void consider(const Tokenizer *t, Workspace *w, int i, int n) {
    int next = w->symbol[i].next;
    if (next == n) return;
    int rank = *merge_slot(t, w->symbol[i].id, w->symbol[next].id);
    if (rank >= 0) heap_push(w, (uint64_t)rank << 32 | (uint32_t)i);
}

/* Appends the ids of one piece. Each merge costs O(log n), so a piece of n bytes O(n log n). */
static void encode_piece(const Tokenizer *t, Workspace *w, const unsigned char *s, size_t length,
                         Ints *out) {
    if (length > INT_MAX)
        die("a text with %zu bytes and no place to cut it cannot be tokenised", length);
    if (length > w->symbols_capacity) {
        w->symbols_capacity = 2 * length;
        w->symbol = xrealloc(w->symbol, w->symbols_capacity, sizeof *w->symbol);
    }
    Symbol *symbol = w->symbol;
    int n = (int)length;
    for (int i = 0; i < n; i++) symbol[i] = (Symbol){t->byte_id[s[i]], i - 1, i + 1};
    for (int i = 0; i < n; i++) consider(t, w, i, n);
    while (w->n > 0) {
        uint64_t best = heap_pop(w);
        const Merge *merge = &t->merges[best >> 32];
        int at = (int)(best & UINT32_MAX);
        Symbol *left = &symbol[at];
        if (left->id != merge->left || left->next == n || symbol[left->next].id != merge->right)
            continue;  // stale
        Symbol *right = &symbol[left->next];
        left->id = merge->result;
        left->next = right->next;
        right->id = -1;
        if (left->next < n) symbol[left->next].previous = at;
        if (left->previous >= 0) consider(t, w, left->previous, n);
        consider(t, w, at, n);
    }
    for (int i = 0; i < n; i = symbol[i].next) ints_push(out, symbol[i].id);
}

/* Valid UTF-8: the pattern cuts it. It matches at every place, so each match begins where the last
   one ended. Validity has been checked once; PCRE2 would check the whole of s again for every
   piece. */
static void encode_utf8(const Tokenizer *t, Workspace *w, const unsigned char *s, size_t n,
                        Ints *out) {
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(w->match);
    for (size_t at = 0; at < n; at = span[1]) {
        int status = pcre2_match(t->split, s, n, at, PCRE2_NO_UTF_CHECK, w->match, NULL);
        if (status < 0 || span[1] <= at)
            die("PCRE2 failed with %d at byte %zu of a text of %zu", status, at, n);
        encode_piece(t, w, s + at, span[1] - at, out);
    }
}

/* Text without added tokens. Bytes that are not UTF-8 form pieces of their own, as long as they
   run; what stands before and after them is cut as if the text ended and began there. */
static void encode_ordinary(const Tokenizer *t, Workspace *w, const unsigned char *s, size_t n,
                            Ints *out) {
    for (size_t at = 0; at < n;) {
        size_t valid = utf8_run(s + at, n - at, true);
        encode_utf8(t, w, s + at, valid, out);
        at += valid;
        size_t invalid = utf8_run(s + at, n - at, false);
        if (invalid) encode_piece(t, w, s + at, invalid, out);
        at += invalid;
    }
}

/* The longest added token s[0..n) begins with, or -1. */
static int find_added(const Tokenizer *t, const unsigned char *s, size_t n) {
    int found = -1;
    size_t longest = 0;
    for (int i = 0; t->starts_added[s[0]] && i < t->n_added; i++) {
        int id = t->added[i];
        size_t length = token_length(t, id);
        if (length <= longest || length > n || memcmp(s, t->bytes + t->offset[id], length))
            continue;
        found = id;
        longest = length;
    }
    return found;
}

void tokenizer_encode(const Tokenizer *t, const char *text, size_t n, bool specials, Ints *out) {
    if (n == 0) return;
    const unsigned char *s = (const unsigned char *)text;
    Workspace w = {.match = pcre2_match_data_create(1, NULL)};
    checked_memory(w.match, 1, sizeof(void *), __FILE__, __LINE__);
    size_t from = 0;
    for (size_t i = 0; specials && i < n;) {
        int id = find_added(t, s + i, n - i);
        if (id < 0) {
            i++;
            continue;
        }
        encode_ordinary(t, &w, s + from, i - from, out);
        ints_push(out, id);
        from = i += token_length(t, id);
    }
    encode_ordinary(t, &w, s + from, n - from, out);
    pcre2_match_data_free(w.match);
    free(w.symbol);
    free(w.heap);
}

void tokenizer_decode(const Tokenizer *t, const int *ids, size_t n, Str *out) {
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= 0 && ids[i] < t->size)
            str_add(out, t->bytes + t->offset[ids[i]], token_length(t, ids[i]));
}

/* ---- Templates ------------------------------------------------------------------------------- */

static const char DEFAULT_TEMPLATE[] =
    "### Instruction:\n{instruction}\n\n[[### Input:\n{input}\n\n]]### Response:\n";

/* Borrowed bytes; s NULL: there is none. */
typedef struct {
    const char *s;
    size_t n;
} Text;

typedef enum { PART_LITERAL, PART_INSTRUCTION, PART_INPUT } PartKind;

typedef struct {
    PartKind kind;
    bool needs_input;  // from within [[ ]]
    Str literal;
} Part;

typedef struct {
    Part *part;
    int n;
    bool has_input;  // {input} occurs
    Str tail;        // what follows {response}
} Template;

static void template_free(Template *t) {
    for (int i = 0; i < t->n; i++) free(t->part[i].literal.s);
    free(t->part);
    free(t->tail.s);
}

static void add_part(Template *t, PartKind kind, bool needs_input) {
    t->part = xrealloc(t->part, (size_t)t->n + 1, sizeof *t->part);
    t->part[t->n++] = (Part){.kind = kind, .needs_input = needs_input};
    if (kind == PART_INPUT) t->has_input = true;
}

static void add_literal(Template *t, bool needs_input, char c) {
    bool same = t->n > 0 && t->part[t->n - 1].kind == PART_LITERAL &&
                t->part[t->n - 1].needs_input == needs_input;
    if (!same) add_part(t, PART_LITERAL, needs_input);
    str_add(&t->part[t->n - 1].literal, &c, 1);
}

/* If *p begins with word, steps over it. */
static bool accept(const char **p, const char *word) {
    size_t n = strlen(word);
    if (strncmp(*p, word, n)) return false;
    *p += n;
    return true;
}

/* The character at *p, which \n, \t and \\ may spell; steps over it. */
static char unescape(const char **p) {
    if (accept(p, "\\n")) return '\n';
    if (accept(p, "\\t")) return '\t';
    if (accept(p, "\\\\")) return '\\';
    return *(*p)++;
}

/* A lower-case word in braces: surely meant to be a field. */
static bool looks_like_field(const char *p) {
    size_t n = *p == '{' ? strspn(p + 1, "abcdefghijklmnopqrstuvwxyz_") : 0;
    return n > 0 && p[1 + n] == '}';
}

/* Reads a template into t, which the caller releases in any case. 0, or -1 with e filled. */
static int template_parse(const char *text, Template *t, Error *e) {
    bool has_instruction = false, optional = false, ended = false;
    str_add(&t->tail, "", 0);
    for (const char *p = text; *p;) {
        int at = (int)(p - text) + 1;
        bool instruction = accept(&p, "{instruction}"),
             input = !instruction && accept(&p, "{input}");
        bool response = !instruction && !input && accept(&p, "{response}");
        if (looks_like_field(p) && !instruction && !input && !response)
            return fail(
                e, "template, column %d: \"%.40s\" is none of {instruction}, {input}, {response}",
                at, p);
        if (ended && (instruction || input || response))
            return fail(e, "template, column %d: no field may follow {response}", at);
        if (instruction || input) {
            add_part(t, input ? PART_INPUT : PART_INSTRUCTION, optional);
            has_instruction |= instruction && !optional;
        } else if (response) {
            if (optional)
                return fail(e, "template, column %d: {response} cannot be within [[ ]]", at);
            ended = true;
        } else if (!ended && accept(&p, "[[")) {
            if (optional) return fail(e, "template, column %d: [[ within [[ ]]", at);
            optional = true;
        } else if (optional && accept(&p, "]]")) {
            optional = false;
        } else if (ended) {
            str_add(&t->tail, &(char){unescape(&p)}, 1);
        } else {
            add_literal(t, optional, unescape(&p));
        }
    }
    if (optional) return fail(e, "template: [[ without ]]");
    if (!has_instruction)
        return fail(e, "template: {instruction} is missing, or only within [[ ]]");
    return 0;
}

/* Appends the prompt. */
static void render(const Template *t, Text instruction, Text input, Str *out) {
    str_add(out, "", 0);
    for (int i = 0; i < t->n; i++) {
        const Part *part = &t->part[i];
        if (part->needs_input && !input.s) continue;
        if (part->kind == PART_LITERAL) str_add(out, part->literal.s, part->literal.n);
        if (part->kind == PART_INPUT && input.s) str_add(out, input.s, input.n);
        if (part->kind == PART_INSTRUCTION) {
            str_add(out, instruction.s, instruction.n);
            if (input.s &&
                !t->has_input) {  // a template with no place for it: the input must not be lost
                str_add(out, "\n", 1);
                str_add(out, input.s, input.n);
            }
        }
    }
}

char *template_prompt(const char *template, const char *instruction, const char *input, Error *e) {
    Template t = {0};
    Str out = {0};
    Text second = {input && *input ? input : NULL, input ? strlen(input) : 0};
    if (template_parse(template ? template : DEFAULT_TEMPLATE, &t, e) == 0)
        render(&t, (Text){instruction, strlen(instruction)}, second, &out);
    template_free(&t);
    return out.s;
}

char *template_response(const char *template, const char *response, Error *e) {
    Template t = {0};
    Str out = {0};
    if (template_parse(template ? template : DEFAULT_TEMPLATE, &t, e) == 0) {
        str_add(&out, response, strlen(response));
        str_add(&out, t.tail.s, t.tail.n);
    }
    template_free(&t);
    return out.s;
}

char *template_line(const char *template) {
    Str out = {0};
    str_add(&out, "", 0);
    for (const char *p = template ? template : DEFAULT_TEMPLATE; *p;) {
        const char *from = p;
        const char c = unescape(&p);
        if (p - from == 2)
            str_add(&out, from, 2);  // spelled already
        else if (c == '\n')
            str_add(&out, "\\n", 2);
        else if (c == '\t')
            str_add(&out, "\\t", 2);
        else if (c == '\\' && (*p == '\n' || *p == '\t'))
            str_add(&out, "\\\\", 2);  // lest it be taken for the spelling of what follows
        else
            str_add(&out, &c, 1);
    }
    return out.s;
}

/* ---- Records: one JSON object each ----------------------------------------------------------- */

/* What is wrong with a record, and which of its fields to blame (NULL: the record). */
typedef struct {
    const char *field;
    Error why;
} Fault;

#define FAULT(fault, name, ...) ((fault)->field = (name), fail(&(fault)->why, __VA_ARGS__))

/* The fields of a record with one prompt and one response, by which it is recognised: both must be
   there, the first row wins. */
typedef struct {
    const char *prompt, *input, *response;  // input: a field that may be there, too
    const char *before,
        *after;  // what stands around the prompt without a --template; NULL: the default template
} Fields;

static const Fields known_fields[] = {
    {"instruction", "input", "output", NULL, NULL},
    {"instruction", "input", "response", NULL, NULL},
    {"prompt", NULL, "completion", "", ""},
    {"prompt", NULL, "response", NULL, NULL},
    {"input", NULL, "output", NULL, NULL},
    {"text", NULL, "summary", "Summarize the following text.\n\n", "\n\nSummary:\n"},
    {"question", NULL, "answer", NULL, NULL},
};

/* How a conversation is spelled. */
typedef struct {
    const char *list, *role, *content;
    const char *user, *assistant;
} Conversation;

static const Conversation known_conversations[] = {
    {"messages", "role", "content", "user", "assistant"},
    {"conversations", "from", "value", "human", "gpt"},
};

static const char EXPECTED[] =
    "instruction/response, instruction[/input]/output, prompt/completion, prompt/response, "
    "input/output, text/summary, question/answer, messages, conversations or text";

typedef enum { LEARNED, JUDGED, PAIRED } Purpose;

typedef struct {
    Template template;
    const char *given;  // the template the user gave; NULL: the default
    Purpose purpose;    // what records are read for: records_read, answers_read, pairs_read
} Style;

static const char *type_name(const json_t *value) {
    switch (json_typeof(value)) {
        case JSON_OBJECT: return "an object";
        case JSON_ARRAY: return "an array";
        case JSON_STRING: return "a string";
        case JSON_NULL: return "null";
        case JSON_TRUE:
        case JSON_FALSE: return "a boolean";
        default: return "a number";
    }
}

static int get_text(const json_t *object, const char *name, Text *out, Fault *f) {
    const json_t *value = json_object_get(object, name);
    if (!json_is_string(value))
        return FAULT(
            f, name, "\"%s\" is %s, expected a string%s", name, type_name(value),
            json_is_array(value) ? "; a conversation belongs in a field \"messages\"" : "");
    *out = (Text){json_string_value(value), json_string_length(value)};
    return 0;
}

/* Adds a span; takes over the text. */
static void add_span(Record *r, Str *text, bool scored) {
    str_add(text, "", 0);
    r->spans = xrealloc(r->spans, (size_t)r->n + 1, sizeof *r->spans);
    r->spans[r->n++] = (Span){text->s, text->n, scored};
    *text = (Str){0};
}

static void add_response(Record *r, const Template *t, Text response) {
    Str text = {0};
    str_add(&text, response.s, response.n);
    str_add(&text, t->tail.s, t->tail.n);
    add_span(r, &text, true);
}

static int read_pair(const json_t *object, const Fields *fields, const Style *style, Record *r,
                     Fault *f) {
    Text prompt, response, input = {0};
    if (get_text(object, fields->prompt, &prompt, f) ||
        get_text(object, fields->response, &response, f))
        return -1;
    const json_t *extra = fields->input ? json_object_get(object, fields->input) : NULL;
    if (extra && !json_is_null(extra) && get_text(object, fields->input, &input, f)) return -1;
    if (input.n == 0) input.s = NULL;  // "input": "" is how Alpaca says that there is none
    Str text = {0};
    bool complete = style->purpose == JUDGED && !strcmp(fields->prompt, "prompt");
    if ((fields->before || complete) && !style->given) {
        if (!complete) str_add(&text, fields->before, strlen(fields->before));
        str_add(&text, prompt.s, prompt.n);
        if (!complete) str_add(&text, fields->after, strlen(fields->after));
    } else {
        render(&style->template, prompt, input, &text);
    }
    add_span(r, &text, false);
    add_response(r, &style->template, response);
    return 0;
}

/* One message of a conversation. prompt collects what the assistant will be given; asked: it ends
 * in a user's turn. */
static int read_turn(const json_t *turn, size_t number, const Conversation *c, const Style *style,
                     Str *prompt, bool *asked, Record *r, Fault *f) {
    const json_t *role = json_object_get(turn, c->role),
                 *content = json_object_get(turn, c->content);
    if (!json_is_string(role) || !json_is_string(content))
        return FAULT(f, c->list, "message %zu of \"%s\" is not {\"%s\": string, \"%s\": string}",
                     number, c->list, c->role, c->content);
    Text text = {json_string_value(content), json_string_length(content)};
    bool user = is_text(role, c->user) || is_text(role, "user");
    bool assistant = is_text(role, c->assistant) || is_text(role, "assistant");
    if (is_text(role, "system") && number == 1) {
        str_add(prompt, text.s, text.n);
        str_add(prompt, "\n\n", 2);
    } else if (user && !*asked) {
        render(&style->template, text, (Text){0}, prompt);
        *asked = true;
    } else if (assistant && *asked) {
        add_span(r, prompt, false);
        add_response(r, &style->template, text);
        *asked = false;
    } else if (user || assistant) {
        return FAULT(
            f, c->list,
            "message %zu of \"%s\" is by \"%s\" out of turn: user and assistant must alternate",
            number, c->list, json_string_value(role));
    } else {
        return FAULT(
            f, c->list,
            "message %zu of \"%s\" has role \"%.40s\", expected %s or %s, or system in the first",
            number, c->list, json_string_value(role), c->user, c->assistant);
    }
    return 0;
}

static int read_conversation(const json_t *turns, const Conversation *c, const Style *style,
                             Record *r, Fault *f) {
    if (!json_is_array(turns))
        return FAULT(f, c->list, "\"%s\" is %s, expected an array", c->list, type_name(turns));
    Str prompt = {0};
    bool asked = false;
    int status = 0;
    for (size_t i = 0; status == 0 && i < json_array_size(turns); i++)
        status = read_turn(json_array_get(turns, i), i + 1, c, style, &prompt, &asked, r, f);
    free(prompt.s);  // a last question without an answer: nothing to learn there
    if (status == 0 && r->n == 0)
        return FAULT(f, c->list, "\"%s\" holds no assistant's turn, so nothing to learn", c->list);
    return status;
}

/* The fields a record does have, for a message. */
static int unknown_fields(const json_t *object, const char *expected, Fault *f) {
    Str found = {0};
    const char *name;
    json_t *value;
    str_add(&found, "", 0);
    json_object_foreach((json_t *)object, name, value) {
        if (found.n < 200) str_printf(&found, "%s%.40s", found.n ? ", " : "", name);
    }
    FAULT(f, NULL, "the fields are not those of a known kind: found %s; expected %s",
          found.n ? found.s : "none", expected);
    free(found.s);
    return -1;
}

/* The fields of a record with one prompt and one response, or NULL when it is none. */
static const Fields *fields_of(const json_t *object) {
    for (size_t i = 0; i < sizeof known_fields / sizeof *known_fields; i++)
        if (json_object_get(object, known_fields[i].prompt) &&
            json_object_get(object, known_fields[i].response))
            return &known_fields[i];
    return NULL;
}

/* Recognises a record by its fields and renders it. kind names what it was. */
static int read_record(const json_t *object, const Style *style, Record *r, char kind[32],
                       Fault *f) {
    const Fields *k = fields_of(object);
    if (k) {
        bool input = k->input && json_object_get(object, k->input);
        snprintf(kind, 32, "%s%s%s/%s", k->prompt, input ? "/" : "", input ? k->input : "",
                 k->response);
        return read_pair(object, k, style, r, f);
    }
    for (size_t i = 0; i < sizeof known_conversations / sizeof *known_conversations; i++) {
        const Conversation *c = &known_conversations[i];
        const json_t *turns = json_object_get(object, c->list);
        if (!turns) continue;
        snprintf(kind, 32, "%s", c->list);
        return read_conversation(turns, c, style, r, f);
    }
    if (!json_object_get(object, "text")) return unknown_fields(object, EXPECTED, f);
    snprintf(kind, 32, "text");
    Text text;
    if (get_text(object, "text", &text, f)) return -1;
    Str copy = {0};
    str_add(&copy, text.s, text.n);
    add_span(r, &copy, true);
    return 0;
}

static const char AS_IT_IS[] = "{instruction}";  // the template of a prompt that is complete

/* What the prompt of a record was put into, as one line; NULL when it is plain text. */
static char *template_of(const json_t *object, const Style *style, const char *kind) {
    const Fields *k = fields_of(object);
    if (!k && !strcmp(kind, "text")) return NULL;
    if (style->given || !k || !k->before) return template_line(style->given);
    Str own = {0};
    str_printf(&own, "%s%s%s", k->before, AS_IT_IS, k->after);
    char *line = template_line(own.s);
    free(own.s);
    return line;
}

/* ---- pairs ----------------------------------------------------------------------------------- */

static const char EXPECTED_PAIR[] =
    "chosen and rejected, and beside them instruction[/input], or prompt, or nothing when both "
    "begin with the prompt";

/* What read_pair_of_answers returns of a pair that is in order but whose answers are to different
 * prompts. */
enum { APART = 1 };

/* Where hh-rlhf's prompts end: after the last of these. */
static const char ASSISTANT[] = "\n\nAssistant:";

/* A number that may be there. */
static int get_number(const json_t *object, const char *name, double low, double high, float *out,
                      Fault *f) {
    const json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value)) return 0;
    if (!json_is_number(value))
        return FAULT(f, name, "\"%s\" is %s, expected a number", name, type_name(value));
    double x = json_number_value(value);
    if (!(x >= low && x <= high))
        return FAULT(f, name, "\"%s\" is %g, expected a number from %g to %g", name, x, low, high);
    *out = (float)x;
    return 0;
}

/* How many bytes of an implicit prompt's text are the prompt; 0: it does not say. */
static size_t prompt_end(Text text) {
    const size_t n = sizeof ASSISTANT - 1;
    for (size_t end = text.n; end >= n; end--)
        if (!memcmp(text.s + end - n, ASSISTANT, n)) return end;
    return 0;
}

static int add_answer(Record *r, const char *name, const Style *style, Text answer, Fault *f) {
    if (answer.n == 0)
        return FAULT(f, name, "the answer in \"%s\" is empty, so there is nothing to judge", name);
    add_response(r, &style->template, answer);
    return 0;
}

/* The prompt stands by itself, or both texts begin with it. */
static int read_pair_of_texts(const json_t *object, const Style *style, Record *r, char kind[32],
                              Fault *f) {
    Text chosen, rejected, prompt, input = {0};
    Str text = {0};
    str_add(&text, "", 0);
    bool instruction = json_object_get(object, "instruction");
    if (get_text(object, "chosen", &chosen, f) || get_text(object, "rejected", &rejected, f))
        goto bad;
    if (instruction || json_object_get(object, "prompt")) {
        const json_t *extra = instruction ? json_object_get(object, "input") : NULL;
        if (get_text(object, instruction ? "instruction" : "prompt", &prompt, f)) goto bad;
        if (extra && !json_is_null(extra) && get_text(object, "input", &input, f)) goto bad;
        if (input.n == 0) input.s = NULL;
        if (instruction || style->given)
            render(&style->template, prompt, input, &text);
        else
            str_add(&text, prompt.s, prompt.n);
        snprintf(kind, 32, "%s/chosen/rejected", instruction ? "instruction" : "prompt");
    } else {
        size_t n = prompt_end(chosen), m = prompt_end(rejected);
        if (!n || !m) {
            FAULT(f, n ? "rejected" : "chosen",
                  "there is no prompt, and \"%s\" has no \"\\n\\nAssistant:\" to end one",
                  n ? "rejected" : "chosen");
            goto bad;
        }
        if (n != m || memcmp(chosen.s, rejected.s, n)) return free(text.s), APART;
        str_add(&text, chosen.s, n);
        chosen = (Text){chosen.s + n, chosen.n - n};
        rejected = (Text){rejected.s + n, rejected.n - n};
        snprintf(kind, 32, "chosen/rejected");
    }
    add_span(r, &text, false);
    return add_answer(r, "chosen", style, chosen, f) ||
                   add_answer(r, "rejected", style, rejected, f)
               ? -1
               : 0;
bad:
    free(text.s);
    return -1;
}

/* The answer that `turn`, the last of a field's messages, gives. */
static int get_answer(const json_t *turn, const char *name, Text *out, Fault *f) {
    const json_t *content = json_object_get(turn, "content");
    if (!is_text(json_object_get(turn, "role"), "assistant") || !json_is_string(content))
        return FAULT(f, name,
                     "\"%s\" does not end in {\"role\": \"assistant\", \"content\": string}", name);
    *out = (Text){json_string_value(content), json_string_length(content)};
    return 0;
}

/* The same in messages. An answer given earlier in the conversation belongs to the prompt, and ends
 * as it did when it was given. */
static int read_pair_of_messages(const json_t *object, const Style *style, Record *r, char kind[32],
                                 Fault *f) {
    const json_t *history = json_object_get(object, "prompt"),
                 *chosen = json_object_get(object, "chosen"),
                 *rejected = json_object_get(object, "rejected");
    const bool implicit = !history;
    const Conversation c = {implicit ? "chosen" : "prompt", "role", "content", "user", "assistant"};
    if (implicit) history = chosen;
    if (!json_is_array(history) || !json_is_array(chosen) || !json_is_array(rejected))
        return FAULT(f, NULL,
                     "prompt, chosen and rejected are not alike: all must be strings, or all lists "
                     "of messages");
    size_t n = json_array_size(history), m = json_array_size(chosen), k = json_array_size(rejected);
    if (m < 1 || k < 1 || (!implicit && (m > 1 || k > 1)))
        return FAULT(f, m == 1 ? "rejected" : "chosen", "\"%s\" has %zu messages, expected %s",
                     m == 1 ? "rejected" : "chosen", m == 1 ? k : m,
                     implicit ? "at least one" : "one, the answer to \"prompt\"");
    if (implicit && m != k) return APART;
    if (implicit) n--;
    Str prompt = {0};
    Text better, worse;
    bool asked = false;
    int status = get_answer(json_array_get(chosen, m - 1), "chosen", &better, f) ||
                         get_answer(json_array_get(rejected, k - 1), "rejected", &worse, f)
                     ? -1
                     : 0;
    for (size_t i = 0; status == 0 && i < n; i++) {
        if (implicit && !json_equal(json_array_get(chosen, i), json_array_get(rejected, i)))
            status = APART;
        else
            status = read_turn(json_array_get(history, i), i + 1, &c, style, &prompt, &asked, r, f);
    }
    if (status == 0 && !asked)
        status = FAULT(
            f, c.list,
            "the messages before the answer do not end in a user's, so there is nothing to answer");
    if (status) return free(prompt.s), status;
    for (int i = 0; i < r->n; i++) {
        Span *span = &r->spans[i];
        if (!span->scored) continue;
        Str ended = {0};
        str_add(&ended, span->text, span->n);
        str_add(&ended, END_OF_TEXT, sizeof END_OF_TEXT - 1);
        free(span->text);
        *span = (Span){ended.s, ended.n, false};
    }
    add_span(r, &prompt, false);
    snprintf(kind, 32, "%schosen/rejected messages", implicit ? "" : "prompt/");
    return add_answer(r, "chosen", style, better, f) || add_answer(r, "rejected", style, worse, f)
               ? -1
               : 0;
}

/* 0, -1, or APART. */
static int read_pair_of_answers(const json_t *object, const Style *style, Record *r, char kind[32],
                                Fault *f) {
    const json_t *chosen = json_object_get(object, "chosen"),
                 *rejected = json_object_get(object, "rejected");
    if (!chosen || !rejected) return unknown_fields(object, EXPECTED_PAIR, f);
    r->margin = 0;
    r->p_chosen = 1;
    if (get_number(object, "margin", -1e6, 1e6, &r->margin, f) ||
        get_number(object, "p_chosen", 0, 1, &r->p_chosen, f))
        return -1;
    return json_is_array(chosen) ? read_pair_of_messages(object, style, r, kind, f)
                                 : read_pair_of_texts(object, style, r, kind, f);
}

static void record_free(Record *r) {
    for (int i = 0; i < r->n; i++) free(r->spans[i].text);
    free(r->spans);
    *r = (Record){0};
}

/* ---- lines ----------------------------------------------------------------------------------- */

/* Column, in characters from 1, where a line that is a valid JSON object names a field of its
   outermost level; 1 if nowhere, or if the name is written with escapes. */
static int field_column(const Str *line, const char *field) {
    size_t n = strlen(field);
    int depth = 0, column = 0;
    bool quoted = false;
    for (const char *c = line->s, *end = line->s + line->n; c < end; c++) {
        column +=
            ((unsigned char)*c & 0xC0) != 0x80;  // bytes that continue a character are not counted
        if (quoted && *c == '\\') {
            c++;
            column++;
        } else if (*c == '"') {
            if (!quoted && depth == 1 && strncmp(c + 1, field, n) == 0 && c[n + 1] == '"') {
                const char *after = c + n + 2;
                if (after[strspn(after, " \t\r")] == ':') return column;  // a name, not a value
            }
            quoted = !quoted;
        } else if (!quoted) {
            depth += (*c == '{' || *c == '[') - (*c == '}' || *c == ']');
        }
    }
    return 1;
}

/* What becomes of a line that is a JSON object: add appends it to out. 0; -1 with f filled, or
 * APART, and then nothing is appended. */
typedef int AddObject(void *out, const json_t *object, int line, const Style *style, Fault *f);

typedef struct {
    const char *path;
    Style style;
    AddObject *add;
    void *out;
    int n, skipped, apart;  // lines that were added; that are bad; that are in order but APART
    Error first_skipped;
} Reading;

/* One line. 0, -1 with e filled (file, line, column, reason), or APART. */
static int read_line(const Reading *r, int number, const Str *line, Error *e) {
    json_error_t where;
    // anything: a line that is not an object gets a better message here; and integers as reals, so
    // that one that is too large for an integer does no harm in a field that is ignored
    size_t flags =
        JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL;
    json_t *j = json_loadb(line->s, line->n, flags, &where);
    if (!j)
        return fail(e, "%s:%d:%d: %s", r->path, number, where.column > 0 ? where.column : 1,
                    where.text);
    Fault f = {0};
    int status;
    if (json_is_object(j))
        status = r->add(r->out, j, number, &r->style, &f);
    else
        status = FAULT(&f, NULL, "the line is %s, expected a JSON object", type_name(j));
    if (status == -1)
        fail(e, "%s:%d:%d: %s", r->path, number, f.field ? field_column(line, f.field) : 1,
             f.why.text);
    json_decref(j);
    return status;
}

/* The next line, without its newline, in line; whether there was one. Of a line longer than
   LINE_LIMIT no more than that is kept. */
static bool next_line(FILE *file, Str *line, bool *too_long) {
    char block[4096];
    int c;
    line->n = 0;
    *too_long = false;
    do {
        size_t n = 0;
        while (n < sizeof block && (c = getc_unlocked(file)) != EOF && c != '\n')
            block[n++] = (char)c;
        *too_long |= line->n + n > LINE_LIMIT;
        if (!*too_long) str_add(line, block, n);
        if (n < sizeof block) return c != EOF || line->n > 0 || *too_long;
    } while (true);
}

/* A control character of a hostile file must not reach the terminal. */
static void make_printable(Error *e) {
    for (char *c = e->text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7F) *c = '?';
}

static int read_lines(Reading *r, FILE *file, bool strict, Error *e) {
    Str line = {0};
    bool too_long;
    int status = 0;
    for (int number = 1; status == 0 && next_line(file, &line, &too_long); number++) {
        if (number == 1 && line.n >= 3 &&
            !memcmp(line.s, "\xEF\xBB\xBF", 3)) {  // a byte order mark
            line.n -= 3;
            memmove(line.s, line.s + 3, line.n + 1);
        }
        if (!too_long && strspn(line.s, " \t\r") == line.n) continue;
        Error why;
        int bad = too_long ? fail(&why, "%s:%d:1: the line is longer than %d bytes", r->path,
                                  number, LINE_LIMIT)
                           : read_line(r, number, &line, &why);
        r->n += !bad;
        r->apart += bad == APART;
        if (!bad || bad == APART) continue;
        make_printable(&why);
        if (r->skipped++ == 0) r->first_skipped = why;
        if (strict) status = fail(e, "%s", why.text);
    }
    free(line.s);
    if (status == 0 && ferror(file))
        status = fail(e, "cannot read %s: %s", r->path, strerror(errno));
    if (status || r->n > 0) return status;
    if (r->apart && !r->skipped)
        return fail(e,
                    "%s holds no usable pair: in all %d of them chosen and rejected answer "
                    "different prompts",
                    r->path, r->apart);
    if (!r->skipped) return fail(e, "%s holds no record: it is empty", r->path);
    return fail(e, "%s holds no usable record; %d lines were skipped, the first: %s", r->path,
                r->skipped, r->first_skipped.text);
}

/* Every line of r->path goes through r->add. */
static int read_objects(Reading *r, const char *template, bool strict, Error *e) {
    r->style.given = template;
    int status = template_parse(template ? template : DEFAULT_TEMPLATE, &r->style.template, e);
    FILE *file = NULL;
    if (status == 0 && !(file = fopen(r->path, "rb")))
        status = fail(e, "cannot open %s: %s", r->path, strerror(errno));
    if (status == 0) status = read_lines(r, file, strict, e);
    if (file) fclose(file);
    template_free(&r->style.template);
    return status;
}

/* Room for one element more in an array of n that grows by doubling. */
static void *grow(void *v, int n, size_t size) {
    bool full = n == 0 || (n & (n - 1)) == 0;  // n is a power of two
    return full ? xrealloc(v, n ? 2 * (size_t)n : 1, size) : v;
}

static int add_record(void *context, const json_t *object, int line, const Style *style, Fault *f) {
    Records *out = context;
    Record r = {.line = line};
    char kind[32];
    int status =
        (style->purpose == PAIRED ? read_pair_of_answers : read_record)(object, style, &r, kind, f);
    if (status) {
        record_free(&r);
        return status;
    }
    if (out->n == 0) memcpy(out->kind, kind, sizeof out->kind);
    if (style->purpose == LEARNED && (!out->template || !strcmp(out->template, AS_IT_IS))) {
        char *template = template_of(object, style, kind);
        if (template) {
            free(out->template);
            out->template = template;
        }
    }
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = r;
    return 0;
}

static int read_as(Purpose purpose, const char *path, const char *template, bool strict,
                   Records *out, Error *e) {
    *out = (Records){0};
    Reading r = {.path = path, .style.purpose = purpose, .add = add_record, .out = out};
    int status = read_objects(&r, template, strict, e);
    out->skipped = r.skipped;
    out->first_skipped = r.first_skipped;
    out->apart = r.apart;
    if (status) records_free(out);
    return status;
}

int records_read(const char *path, const char *template, bool strict, Records *out, Error *e) {
    return read_as(LEARNED, path, template, strict, out, e);
}

int answers_read(const char *path, const char *template, bool strict, Records *out, Error *e) {
    return read_as(JUDGED, path, template, strict, out, e);
}

int pairs_read(const char *path, const char *template, bool strict, Records *out, Error *e) {
    return read_as(PAIRED, path, template, strict, out, e);
}

void records_free(Records *r) {
    for (int i = 0; i < r->n; i++) record_free(&r->v[i]);
    free(r->v);
    free(r->template);
    *r = (Records){0};
}

/* ---- Prompts --------------------------------------------------------------------------------- */

/* Fields that hold a prompt; the first that is there counts. */
static const char *const prompt_fields[] = {"instruction", "prompt", "chosen"};
static const char *const answer_fields[] = {"answer", "response", "output", "completion"};

static int add_prompt(void *context, const json_t *object, int line, const Style *style, Fault *f) {
    Prompts *out = context;
    Text prompt, input = {0};
    const char *field = NULL;
    for (int i = 0; i < 3 && !field; i++)
        if (json_object_get(object, prompt_fields[i])) field = prompt_fields[i];
    if (!field) return unknown_fields(object, "instruction[/input], prompt or chosen", f);
    if (get_text(object, field, &prompt, f)) return -1;
    bool instruction = field == prompt_fields[0], dialogue = field == prompt_fields[2];
    const json_t *extra = instruction ? json_object_get(object, "input") : NULL;
    if (extra && !json_is_null(extra) && get_text(object, "input", &input, f)) return -1;
    if (input.n == 0) input.s = NULL;
    if (dialogue && !(prompt.n = prompt_end(prompt)))
        return FAULT(f, field,
                     "\"chosen\" has no turn \"\\n\\nAssistant:\", by which a dialogue's prompt "
                     "ends, and there is no \"prompt\" beside it");
    Str text = {0};
    str_add(&text, "", 0);
    if (instruction || (style->given && !dialogue))
        render(&style->template, prompt, input, &text);
    else
        str_add(&text, prompt.s, prompt.n);
    if (text.n == 0) {
        free(text.s);
        return FAULT(f, field, "the prompt is empty: there is nothing to go on from");
    }
    const json_t *answer = NULL;
    for (int i = 0; i < 4 && !json_is_string(answer); i++)
        answer = json_object_get(object, answer_fields[i]);
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = (Prompt){line, text.s, text.n,
                                json_is_string(answer) ? xstrdup(json_string_value(answer)) : NULL};
    return 0;
}

int prompts_read(const char *path, const char *template, bool strict, Prompts *out, Error *e) {
    *out = (Prompts){0};
    Reading r = {.path = path, .add = add_prompt, .out = out};
    int status = read_objects(&r, template, strict, e);
    out->skipped = r.skipped;
    out->first_skipped = r.first_skipped;
    if (status) prompts_free(out);
    return status;
}

void prompts_free(Prompts *p) {
    for (int i = 0; i < p->n; i++) {
        free(p->v[i].text);
        free(p->v[i].answer);
    }
    free(p->v);
    *p = (Prompts){0};
}

/* ---- Constitutions, questions, dialogues ----------------------------------------------------- */

enum { CONSTITUTION_LIMIT = 16 << 20 };  // bytes

void text_repair(Str *s, size_t from) {
    Str fixed = {0};
    uint32_t c;
    for (size_t i = from; i < s->n;) {
        size_t length = utf8_character((const unsigned char *)s->s + i, s->n - i, &c);
        if (length && c)
            str_add(&fixed, s->s + i, length);
        else
            str_add(&fixed, "\xEF\xBF\xBD", 3);
        i += length ? length : 1;
    }
    s->n = from;
    str_add(s, fixed.s ? fixed.s : "", fixed.n);
    free(fixed.s);
}

/* Copies field `name` of object into *out: where it is there, a string that is not empty. what: how
 * messages call the object. */
static int take_string(const json_t *object, const char *name, const char *what, char **out,
                       Error *e) {
    const json_t *value = json_object_get(object, name);
    if (!value) return 0;
    if (!json_is_string(value) || !json_string_length(value))
        return fail(e, "\"%s\" of %s is %s, expected a text", name, what,
                    json_is_string(value) ? "empty" : type_name(value));
    *out = xstrdup(json_string_value(value));
    return 0;
}

static int refuse_other_fields(const json_t *object, const char *const *known, const char *what,
                               Error *e) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value) {
        int i = 0;
        while (known[i] && strcmp(known[i], name)) i++;
        if (!known[i])
            return fail(e, "%s has a field \"%.40s\", which means nothing here", what, name);
    }
    return 0;
}

static Principle *add_principle(Constitution *c, const char *name) {
    c->v = grow(c->v, c->n, sizeof *c->v);
    Principle *p = &c->v[c->n++];
    *p = (Principle){0};
    Str numbered = {0};
    str_printf(&numbered, "principle %d", c->n);
    p->name = name ? xstrdup(name) : xstrdup(numbered.s);
    free(numbered.s);
    return p;
}

static int read_principle(const json_t *item, Constitution *c, Error *e) {
    static const char *const known[] = {"name", "critique_request", "revision_request",
                                        "comparison", NULL};
    Principle *p = add_principle(c, NULL);
    char *name = NULL;
    if (json_is_string(item) && json_string_length(item))
        return p->text = xstrdup(json_string_value(item)), 0;
    if (!json_is_object(item))
        return fail(e, "%s is %s, expected a text or an object", p->name,
                    json_is_string(item) ? "empty" : type_name(item));
    if (refuse_other_fields(item, known, p->name, e) ||
        take_string(item, "critique_request", p->name, &p->critique_request, e) ||
        take_string(item, "revision_request", p->name, &p->revision_request, e) ||
        take_string(item, "comparison", p->name, &p->comparison, e) ||
        take_string(item, "name", p->name, &name, e))
        return -1;
    if (!p->critique_request || !p->revision_request) {
        free(name);
        return fail(e, "%s needs both \"critique_request\" and \"revision_request\"", p->name);
    }
    if (name) {
        free(p->name);
        p->name = name;
    }
    return 0;
}

/* {"name": {"prompt": [...], "edit_request": "..."}}: one principle for each text of prompt. */
static int read_published(const json_t *top, Constitution *c, Error *e) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)top, name, value) {
        const json_t *prompt = json_object_get(value, "prompt"),
                     *edit = json_object_get(value, "edit_request");
        const size_t n = json_is_array(prompt) ? json_array_size(prompt) : json_is_string(prompt);
        if (!n || !json_is_string(edit) || !json_string_length(edit))
            return fail(e,
                        "\"%.40s\" is no {\"prompt\": [...], \"edit_request\": \"...\"}, and there "
                        "is no list \"principles\"",
                        name);
        for (size_t i = 0; i < n; i++) {
            const json_t *text = json_is_array(prompt) ? json_array_get(prompt, i) : prompt;
            if (!json_is_string(text) || !json_string_length(text))
                return fail(e, "\"prompt\" of \"%.40s\" holds something else than texts", name);
            Principle *p = add_principle(c, name);
            p->critique_request = xstrdup(json_string_value(text));
            p->revision_request = xstrdup(json_string_value(edit));
        }
    }
    return 0;
}

static int read_own_form(const json_t *top, Constitution *c, Error *e) {
    static const char *const known[] = {
        "principles", "few_shot", "critique_request", "revision_request", "comparison",
        "options",    NULL};
    static const char what[] = "the constitution";
    if (refuse_other_fields(top, known, what, e) ||
        take_string(top, "critique_request", what, &c->critique_request, e) ||
        take_string(top, "revision_request", what, &c->revision_request, e) ||
        take_string(top, "comparison", what, &c->comparison, e))
        return -1;
    const json_t *few = json_object_get(top, "few_shot"),
                 *options = json_object_get(top, "options"), *item;
    if (few && !json_is_array(few))
        return fail(e, "\"few_shot\" is %s, expected an array of texts", type_name(few));
    size_t i;
    json_array_foreach(few, i, item) {
        if (!json_is_string(item) || !json_string_length(item))
            return fail(e, "few_shot[%zu] is no text", i);
        c->few_shot = grow(c->few_shot, c->few_shot_n, sizeof *c->few_shot);
        c->few_shot[c->few_shot_n++] = xstrdup(json_string_value(item));
    }
    for (i = 0; options && i < 2; i++) {
        item = json_array_get(options, i);
        if (json_array_size(options) != 2 || !json_is_string(item) || !json_string_length(item))
            return fail(e, "\"options\" is no array of two texts");
        c->option[i] = xstrdup(json_string_value(item));
    }
    if (options && !strcmp(c->option[0], c->option[1]))
        return fail(e, "the two \"options\" are the same text");
    json_array_foreach(json_object_get(top, "principles"), i,
                       item) if (read_principle(item, c, e)) return -1;
    return 0;
}

static int read_constitution(const json_t *top, Constitution *c, Error *e) {
    const json_t *list = json_is_array(top) ? top : NULL, *item;
    size_t i;
    if (!list && !json_is_object(top))
        return fail(e, "the file is %s, expected an array or an object", type_name(top));
    if (list) {
        json_array_foreach(list, i, item) if (read_principle(item, c, e)) return -1;
    } else if (json_is_array(json_object_get(top, "principles"))) {
        if (read_own_form(top, c, e)) return -1;
    } else if (read_published(top, c, e)) {
        return -1;
    }
    return c->n ? 0 : fail(e, "it holds no principle");
}

int constitution_read(const char *path, Constitution *out, Error *e) {
    *out = (Constitution){0};
    Str text = {0};
    json_error_t where;
    Error why;
    if (read_file(path, CONSTITUTION_LIMIT, &text, e)) {
        free(text.s);
        return -1;
    }
    const size_t mark = text.n >= 3 && !memcmp(text.s, "\xEF\xBB\xBF", 3) ? 3 : 0;
    json_t *top =
        json_loadb(text.s + mark, text.n - mark,
                   JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, &where);
    int status =
        top ? 0 : fail(&why, "line %d, column %d: %s", where.line, where.column, where.text);
    if (!status) status = read_constitution(top, out, &why);
    if (status) {
        make_printable(&why);
        fail(e, "%s: %s", path, why.text);
        constitution_free(out);
    }
    json_decref(top);
    free(text.s);
    return status;
}

void constitution_free(Constitution *c) {
    for (int i = 0; i < c->n; i++) {
        Principle *p = &c->v[i];
        free(p->name);
        free(p->text);
        free(p->critique_request);
        free(p->revision_request);
        free(p->comparison);
    }
    for (int i = 0; i < c->few_shot_n; i++) free(c->few_shot[i]);
    free(c->v);
    free(c->few_shot);
    free(c->critique_request);
    free(c->revision_request);
    free(c->comparison);
    free(c->option[0]);
    free(c->option[1]);
    *c = (Constitution){0};
}

/* Appends the texts of an array to the options. */
static int add_options(Question *q, const json_t *object, const char *name, Fault *f) {
    const json_t *list = json_object_get(object, name), *item;
    size_t i;
    if (!json_is_array(list) || !json_array_size(list))
        return FAULT(f, name, "\"%s\" is not an array with something in it", name);
    json_array_foreach(list, i, item) {
        if (!json_is_string(item) || !json_string_length(item) ||
            strlen(json_string_value(item)) != json_string_length(item))
            return FAULT(f, name, "\"%s\" holds something else than texts", name);
        q->option = grow(q->option, q->n, sizeof *q->option);
        q->option[q->n++] = xstrdup(json_string_value(item));
    }
    return 0;
}

static void question_free(Question *q) {
    for (int i = 0; i < q->n; i++) free(q->option[i]);
    free(q->option);
    free(q->prompt);
}

static int add_question(void *context, const json_t *object, int line, const Style *style,
                        Fault *f) {
    (void)style;
    Questions *out = context;
    Question q = {.line = line};
    Text prompt;
    if (!json_object_get(object, "prompt"))
        return unknown_fields(object, "prompt, corrects and incorrects", f);
    if (get_text(object, "prompt", &prompt, f)) return -1;
    if (!prompt.n || strlen(prompt.s) != prompt.n)
        return FAULT(f, "prompt", "\"prompt\" is empty or holds a NUL");
    bool bad = add_options(&q, object, "corrects", f);
    q.corrects = q.n;
    if (bad || add_options(&q, object, "incorrects", f)) {
        question_free(&q);
        return -1;
    }
    q.prompt = xstrdup(prompt.s);
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = q;
    return 0;
}

int questions_read(const char *path, bool strict, Questions *out, Error *e) {
    *out = (Questions){0};
    Reading r = {.path = path, .add = add_question, .out = out};
    int status = read_objects(&r, TEMPLATE_DEFAULT, strict, e);
    out->skipped = r.skipped;
    out->first_skipped = r.first_skipped;
    if (status) questions_free(out);
    return status;
}

void questions_free(Questions *q) {
    for (int i = 0; i < q->n; i++) question_free(&q->v[i]);
    free(q->v);
    *q = (Questions){0};
}

/* ---- dialogues ------------------------------------------------------------------------------- */

const char *const endings[ENDINGS] = {"unfinished",      "nothing left to criticise",
                                      "nothing said",    "what was given said again",
                                      "all rounds used", "no room"};

char *prompt_question(const char *prompt, bool bare) {
    static const char *const forms[][2] = {{"### Instruction:\n", "\n\n### Response:\n"},
                                           {"\n\nHuman:", "\n\nAssistant:"}};
    const size_t n = strlen(prompt);
    for (int i = 0; i < 2; i++) {
        const size_t head = strlen(forms[i][0]), tail = strlen(forms[i][1]);
        if (n < head + tail || strncmp(prompt, forms[i][0], head) ||
            strcmp(prompt + n - tail, forms[i][1]))
            continue;
        return checked_memory(
            bare ? strndup(prompt + head, n - head - tail) : strndup(prompt, n - tail), n, 1,
            __FILE__, __LINE__);
    }
    return xstrdup(prompt);
}

const char *dialogue_answer(const Dialogue *d) {
    for (int r = d->rounds - 1; r >= 0; r--)
        if (d->round[r].revision) return d->round[r].revision;
    return d->answer;
}

void dialogue_free(Dialogue *d) {
    for (int i = 0; i < d->rounds; i++) {
        Round *r = &d->round[i];
        free(r->principle);
        free(r->critique_request);
        free(r->critique);
        free(r->revision_request);
        free(r->revision);
    }
    free(d->prompt);
    free(d->answer);
    free(d->round);
    *d = (Dialogue){0};
}

/* "name": "text", after a comma unless it is an object's first. NULL: nothing. */
static void write_field(Str *line, const char *name, const char *text) {
    if (!text) return;
    str_printf(line, "%s\"%s\": ", line->s[line->n - 1] == '{' ? "" : ", ", name);
    json_add_string(line, text, strlen(text));
}

static void write_dialogue(const Dialogue *d, Str *line) {
    const char *answer = d->answer ? d->answer : "", *final = dialogue_answer(d);
    char *question = prompt_question(d->prompt, true);
    str_printf(line, "{\"epoch\": %d, \"id\": %d", d->epoch, d->id);
    write_field(line, "init_prompt", d->prompt);
    write_field(line, "init_response", answer);
    str_printf(line, ", \"rounds\": [");
    for (int i = 0; i < d->rounds; i++) {
        const Round *r = &d->round[i];
        str_printf(line, "%s{", i ? ", " : "");
        write_field(line, "principle", r->principle);
        write_field(line, "critic_prompt", r->critique_request);
        write_field(line, "critic_response", r->critique);
        write_field(line, "revision_prompt", r->revision_request);
        write_field(line, "revision_response", r->revision);
        str_printf(line, "}");
    }
    str_printf(line, "]");
    write_field(line, "ended", endings[d->ending]);
    str_printf(line, ", \"messages\": [{");
    write_field(line, "role", "user");
    write_field(line, "content", question);
    str_printf(line, "}, {");
    write_field(line, "role", "assistant");
    write_field(line, "content", final ? final : "");
    str_printf(line, "}]");
    if (final && final != d->answer) {
        write_field(line, "prompt", d->prompt);
        write_field(line, "chosen", final);
        write_field(line, "rejected", answer);
    }
    str_printf(line, "}\n");
    free(question);
}

/* A copy of a field that is a string; else NULL. */
static char *copy_field(const json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    return text ? xstrdup(text) : NULL;
}

/* A count, or -1. */
static int count_field(const json_t *object, const char *name) {
    const json_t *value = json_object_get(object, name);
    const double x = json_number_value(value);
    return json_is_number(value) && x >= 0 && x <= INT_MAX ? (int)x : -1;
}

static int add_dialogue(void *context, const json_t *object, int line, const Style *style,
                        Fault *f) {
    (void)style;
    Dialogues *out = context;
    Dialogue d = {
        .line = line, .epoch = count_field(object, "epoch"), .id = count_field(object, "id")};
    const json_t *rounds = json_object_get(object, "rounds"), *item;
    size_t i;
    d.prompt = copy_field(object, "init_prompt");
    d.answer = copy_field(object, "init_response");
    char *ended = copy_field(object, "ended");
    while (d.ending < ENDINGS && ended && strcmp(endings[d.ending], ended)) d.ending++;
    bool whole = d.epoch >= 0 && d.id >= 0 && d.prompt && d.answer && ended && d.ending < ENDINGS &&
                 json_is_array(rounds);
    json_array_foreach(rounds, i, item) {
        d.round = grow(d.round, d.rounds, sizeof *d.round);
        Round *r = &d.round[d.rounds++];
        *r = (Round){copy_field(item, "principle"), copy_field(item, "critic_prompt"),
                     copy_field(item, "critic_response"), copy_field(item, "revision_prompt"),
                     copy_field(item, "revision_response")};
        whole = whole && r->critique && r->critique_request;
    }
    free(ended);
    if (!whole) {
        dialogue_free(&d);
        return FAULT(f, NULL, "the line is no dialogue of constitutional.c");
    }
    out->v = grow(out->v, out->n, sizeof *out->v);
    out->v[out->n++] = d;
    return 0;
}

int dialogues_append(const char *path, const Dialogue *d, int n, Error *e) {
    Str lines = {0};
    str_add(&lines, "", 0);
    for (int i = 0; i < n; i++) write_dialogue(&d[i], &lines);
    FILE *f = fopen(path, "ab");
    bool bad = !f || fwrite(lines.s, 1, lines.n, f) != lines.n || fflush(f) || fsync(fileno(f));
    if (bad) fail(e, "cannot write %s: %s", path, strerror(errno));
    if (f) fclose(f);
    free(lines.s);
    return bad ? -1 : 0;
}

int dialogues_keep(const char *from, int epoch, const char *to, Dialogues *out, Error *e) {
    *out = (Dialogues){0};
    Reading r = {.path = from, .add = add_dialogue, .out = out};
    read_objects(&r, TEMPLATE_DEFAULT, true,
                 NULL);  // strict: it stops at the first bad line, and what stands before it counts
    int keep = 0, status = 0;
    while (keep < out->n && out->v[keep].epoch <= epoch) keep++;
    for (int i = keep; i < out->n; i++) dialogue_free(&out->v[i]);
    out->n = keep;
    NewFile file;
    if (!to || newfile_open(&file, to, e)) return to ? -1 : 0;
    Str lines = {0};
    str_add(&lines, "", 0);
    for (int i = 0; i < keep; i++) write_dialogue(&out->v[i], &lines);
    fwrite(lines.s, 1, lines.n, file.f);
    status = newfile_close(&file, true, e);
    free(lines.s);
    return status;
}

static void show_text(const char *label, const char *text) {
    printf("  %-8s | ", label);
    for (; text && *text; text++)
        if (*text == '\n')
            printf("\n           | ");
        else
            putchar(*text);
    putchar('\n');
}

void dialogue_show(const Dialogue *d, const char *when) {
    printf("prompt %d, %s: %s\n", d->id + 1, when, endings[d->ending]);
    show_text("prompt", d->prompt);
    show_text("answer", d->answer);
    for (int r = 0; r < d->rounds; r++) {
        show_text("critique", d->round[r].critique);
        if (d->round[r].revision) show_text("revision", d->round[r].revision);
    }
}

/* ---- Dataset --------------------------------------------------------------------------------- */

/* The tokens of one record before any cut; response[i]: token i belongs to a scored span. */
typedef struct {
    Ints tokens, response;
} Example;

/* Spans are tokenised one by one: what the model is given and what it learns never share a token.
 */
static void tokenise(const Record *r, const Tokenizer *t, Example *x) {
    x->tokens.n = x->response.n = 0;
    for (int s = 0; s < r->n; s++) {
        const Span *span = &r->spans[s];
        size_t before = x->tokens.n;
        tokenizer_encode(t, span->text, span->n, true, &x->tokens);
        bool ended = x->tokens.n > before &&
                     x->tokens.v[x->tokens.n - 1] == t->eos;  // by the data itself: once is enough
        if (span->scored && !ended) ints_push(&x->tokens, t->eos);
        while (x->response.n < x->tokens.n) ints_push(&x->response, span->scored);
    }
}

typedef struct {
    size_t from, to;
    bool prompt_cut, response_cut;
} Window;

/* Which of an example's tokens are kept. */
static Window fit(const Example *x, size_t max_length) {
    Window w = {.to = x->tokens.n};
    size_t excess = w.to > max_length ? w.to - max_length : 0, prompt = 0;
    while (prompt < w.to && !x->response.v[prompt]) prompt++;
    w.from = excess < prompt ? excess : prompt;
    w.to -= excess - w.from;
    w.prompt_cut = w.from > 0;
    w.response_cut = excess > w.from;
    while (w.to > w.from && !x->response.v[w.to - 1]) w.to--;  // a conversation cut in a question
    return w;
}

void dataset_build(Dataset *d, const Records *r, const Tokenizer *t, int max_length,
                   bool train_on_prompt) {
    *d = (Dataset){0};
    d->line = xcalloc((size_t)r->n, sizeof *d->line);
    d->start = xcalloc((size_t)r->n + 1, sizeof *d->start);
    Example x = {0};
    Ints tokens = {0};
    Str scored = {0};
    for (int i = 0; i < r->n; i++) {
        tokenise(&r->v[i], t, &x);
        Window w = fit(&x, max_length > 0 ? (size_t)max_length : 0);
        size_t before = tokens.n;
        long targets = 0;
        for (size_t k = w.from; k < w.to; k++) {
            // nothing comes before the first token from which it could be predicted
            char learned = k > w.from && (train_on_prompt || x.response.v[k]);
            ints_push(&tokens, x.tokens.v[k]);
            str_add(&scored, &learned, 1);
            targets += learned;
        }
        if (targets == 0) {
            tokens.n = scored.n = before;
            d->dropped++;
            continue;
        }
        d->prompts_cut += w.prompt_cut;
        d->responses_cut += w.response_cut;
        d->scored_tokens += targets;
        if (d->longest < (int)(w.to - w.from)) d->longest = (int)(w.to - w.from);
        d->line[d->n++] = r->v[i].line;
        d->start[d->n] = tokens.n;
    }
    d->tokens = tokens.v;
    d->scored = (unsigned char *)scored.s;
    free(x.tokens.v);
    free(x.response.v);
}

void dataset_free(Dataset *d) {
    free(d->line);
    free(d->start);
    free(d->tokens);
    free(d->scored);
    *d = (Dataset){0};
}

/* ---- ragged batches -------------------------------------------------------------------------- */

void ragged_fill(RaggedBatch *rb, const Dataset *d, const int *which, int S) {
    size_t N = 0;
    for (int s = 0; s < S; s++) N += d->start[which[s] + 1] - d->start[which[s]] - 1;
    if (N > INT_MAX) die("a batch of %zu tokens is too large; use fewer sequences at once", N);
    if (S > rb->room_S || !rb->start) {
        rb->room_S = S;
        rb->start = xrealloc(rb->start, (size_t)S + 1, sizeof *rb->start);
        rb->id = xrealloc(rb->id, (size_t)S, sizeof *rb->id);
    }
    if ((int)N > rb->room_N) {
        rb->room_N = (int)N;
        rb->tokens = xrealloc(rb->tokens, N, sizeof *rb->tokens);
        rb->target = xrealloc(rb->target, N, sizeof *rb->target);
    }
    int row = 0;
    rb->scored = 0;
    for (int s = 0; s < S; s++) {
        rb->start[s] = row;
        rb->id[s] = (uint32_t)which[s];
        for (size_t i = d->start[which[s]]; i + 1 < d->start[which[s] + 1]; i++, row++) {
            rb->tokens[row] = d->tokens[i];
            rb->target[row] = d->scored[i + 1] ? d->tokens[i + 1] : -1;
            rb->scored += d->scored[i + 1];
        }
    }
    rb->start[S] = row;
    rb->batch = (Batch){.S = S, .N = row, .start = rb->start, .tokens = rb->tokens, .id = rb->id};
}

void ragged_free(RaggedBatch *rb) {
    free(rb->start);
    free(rb->tokens);
    free(rb->target);
    free(rb->id);
    *rb = (RaggedBatch){0};
}

int dataset_targets(const Dataset *d, int i) {
    int n = 0;
    for (size_t j = d->start[i] + 1; j < d->start[i + 1]; j++) n += d->scored[j];
    return n;
}

static int largest_first(const void *a, const void *b) { return *(const int *)b - *(const int *)a; }

int ragged_largest(const Dataset *d, const int *which, int n, int S, int *scored) {
    int *rows = xmalloc(sizeof(int) * (size_t)n), *targets = xmalloc(sizeof(int) * (size_t)n),
        total = 0;
    for (int i = 0; i < n; i++) {
        rows[i] = (int)(d->start[which[i] + 1] - d->start[which[i]]) - 1;
        targets[i] = dataset_targets(d, which[i]);
    }
    qsort(rows, (size_t)n, sizeof *rows, largest_first);
    qsort(targets, (size_t)n, sizeof *targets, largest_first);
    *scored = 0;
    for (int i = 0; i < n && i < S; i++) {
        total += rows[i];
        *scored += targets[i];
    }
    free(rows);
    free(targets);
    return total;
}

/* ---- JSON from and for other programs -------------------------------------------------------- */

void json_add_string(Str *out, const char *s, size_t n) {
    const unsigned char *text = (const unsigned char *)s;
    str_add(out, "\"", 1);
    for (size_t i = 0; i < n;) {
        uint32_t c;
        size_t length = utf8_character(text + i, n - i, &c);
        if (!length)
            str_add(out, "\xEF\xBF\xBD", 3);
        else if (c == '"' || c == '\\')
            str_printf(out, "\\%c", (int)c);
        else if (c == '\n')
            str_add(out, "\\n", 2);
        else if (c < ' ' || c == 0x7F)
            str_printf(out, "\\u%04x", c);
        else
            str_add(out, s + i, length);
        i += length ? length : 1;
    }
    str_add(out, "\"", 1);
}

int json_numbers(const char *s, size_t n, const char *name, double *out, int room, Error *e) {
    json_error_t where;
    json_t *j = json_loadb(
        s, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL,
        &where);
    if (!j) return fail(e, "it is not JSON: %s", where.text);
    const json_t *value = json_is_object(j) ? json_object_get(j, name) : NULL;
    int count = json_is_array(value) ? (int)json_array_size(value) : json_is_number(value) ? 1 : -1;
    if (!json_is_object(j))
        fail(e, "it is %s, expected an object", type_name(j));
    else if (!value)
        fail(e, "it has no \"%s\"", name);
    else if (count < 0)
        fail(e, "\"%s\" is %s, expected a number", name, type_name(value));
    for (int i = 0; i < count; i++) {
        const json_t *x = json_is_array(value) ? json_array_get(value, (size_t)i) : value;
        if (!json_is_number(x)) {
            count = fail(e, "element %d of \"%s\" is %s, expected a number", i, name, type_name(x));
        } else if (i < room) {
            out[i] = json_number_value(x);
        }
    }
    json_decref(j);
    return count;
}

/* ---- What is judged -------------------------------------------------------------------------- */

int judged_tokens(const int *tokens, int n, int eos) {
    while (n > 0 && tokens[n - 1] == eos) n--;
    return n;
}

/* Appends span's tokens, or of an answer its judged ones; how many there are. */
static size_t add_part_tokens(const Span *span, const Tokenizer *t, Ints *out) {
    size_t before = out->n;
    tokenizer_encode(t, span->text, span->n, true, out);
    if (span->scored)
        out->n = before + (size_t)judged_tokens(out->v + before, (int)(out->n - before), t->eos);
    return out->n - before;
}

void pairs_build(Pairs *p, const Records *r, const Tokenizer *t, int max_length) {
    *p = (Pairs){0};
    p->line = xcalloc((size_t)r->n, sizeof *p->line);
    p->start = xcalloc(3 * (size_t)r->n + 1, sizeof *p->start);
    p->margin = xcalloc((size_t)r->n, sizeof *p->margin);
    p->p_chosen = xcalloc((size_t)r->n, sizeof *p->p_chosen);
    const size_t room = max_length > 0 ? (size_t)max_length : 0;
    Ints tokens = {0}, one = {0};
    for (int i = 0; i < r->n; i++) {
        const Record *pair = &r->v[i];
        one.n = 0;
        for (int s = 0; s < pair->n - 2; s++) add_part_tokens(&pair->spans[s], t, &one);
        size_t prompt = one.n, chosen = add_part_tokens(&pair->spans[pair->n - 2], t, &one);
        size_t rejected = add_part_tokens(&pair->spans[pair->n - 1], t, &one),
               longer = chosen > rejected ? chosen : rejected;
        const int *answer = one.v + prompt;
        bool empty = !chosen || !rejected,
             equal = !empty && chosen == rejected &&
                     !memcmp(answer, answer + chosen, chosen * sizeof *answer);
        bool too_long = !empty && !equal &&
                        longer + (prompt > 0) > room;  // a token of the prompt is left at least
        p->empty += empty;
        p->equal += equal;
        p->too_long += too_long;
        if (empty || equal || too_long) continue;
        size_t cut = prompt + longer > room ? prompt + longer - room : 0;
        p->prompts_cut += cut > 0;
        for (size_t k = cut; k < one.n; k++) ints_push(&tokens, one.v[k]);
        p->start[3 * p->n + 1] = p->start[3 * p->n] + prompt - cut;
        p->start[3 * p->n + 2] = p->start[3 * p->n + 1] + chosen;
        p->start[3 * p->n + 3] = p->start[3 * p->n + 2] + rejected;
        if (p->longest < (int)(prompt - cut + longer)) p->longest = (int)(prompt - cut + longer);
        p->line[p->n] = pair->line;
        p->margin[p->n] = pair->margin;
        p->p_chosen[p->n++] = pair->p_chosen;
    }
    p->tokens = tokens.v;
    free(one.v);
}

void pairs_free(Pairs *p) {
    free(p->line);
    free(p->start);
    free(p->tokens);
    free(p->margin);
    free(p->p_chosen);
    *p = (Pairs){0};
}
