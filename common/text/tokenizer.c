/*
 * tokenizer.c - byte-level BPE: see tokenizer.h.
 *
 * The tokenizer is GPT-2's (Radford et al. 2019, section 2.2; merging after Sennrich et al. 2016)
 * and gives the same ids. A regular expression cuts a text into pieces. Each piece starts as its
 * bytes. Of all neighbours with a learned merge, the pair whose merge was learned first is joined,
 * until no learned merge is left. Left out: any other pre-tokenizer or normalizer (refused with a
 * message), and added tokens that swallow the spaces around them (refused: decoding could not give
 * the text back).
 */
#include "text/tokenizer.h"

#include "text/json.h"
#include "text/utf8.h"

#include <limits.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <unistd.h>

enum {
    BYTES = 256,
    VOCABULARY_FILE_LIMIT = 256 << 20,  // bytes of one file of a tokenizer (GPT-2: 1.4 MB at most)
};

/* ---- The tokenizer's data -------------------------------------------------------------------- */

typedef struct {
    int left, right, result;  // ids
} Merge;

struct Tokenizer {
    int size, eos;
    char *bytes;         // token i is bytes[offset[i] .. offset[i+1])
    size_t *offset;      // (size+1)
    int byte_id[BYTES];  // the token of each single byte
    Merge *merges;       // by rank: the merge learned first has rank 0 and is applied first
    int n_merges, merges_capacity;
    int *slot;      // a hash table from (left, right) to rank: open addressing, -1 = free
    int slot_bits;  // it has 2^slot_bits slots
    int *added;     // ids of added tokens, which are recognised when written out in a text
    int n_added;
    bool starts_added[BYTES];  // the first bytes of added tokens
    pcre2_code *split;
};

static size_t token_length(const Tokenizer *t, int id) { return t->offset[id + 1] - t->offset[id]; }

/* The slot of (left, right), or the free slot where it belongs. */
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

/* From vocab.json, merges.txt and perhaps added_tokens.json, or from tokenizer.json. These files
   spell bytes in an alphabet of printable characters. A byte that is a printable Latin-1 character
   is spelled by itself. The other 68, in order, are U+0100, U+0101, ... So the space is U+0120. */

enum { ALPHABET_END = 0x100 + 68 };

/* The alphabet in both directions: each byte's character as UTF-8 (at most two bytes), and each
   code point's byte (-1: not in the alphabet). */
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

/* Appends the bytes that a token spells. If it is not written in the alphabet: returns false and
   appends nothing. */
static bool spelled_bytes(const Alphabet *a, const char *token, Str *out) {
    const size_t length = strlen(token), before = out->n;
    size_t i = 0;
    while (i < length) {
        const Utf8 c = utf8_decode(token + i, length - i);  // whole: jansson checked the string
        if (c.code >= ALPHABET_END || a->byte[c.code] < 0) {
            out->n = before;
            return false;
        }
        str_add(out, &(char){(char)a->byte[c.code]}, 1);
        i += c.n;
    }
    return true;
}

/* A tokenizer while it is loaded. The maps from a token's spelling to its id are jansson's objects.
 */
typedef struct {
    Tokenizer *t;
    const char *path;            // of the file with the vocabulary, for messages
    const char *added_path;      // of the file with the added tokens
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

/* Sets name[id] = spelling for every entry of map. Each id must be below n and occur once. */
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

/* Fills the tokens: every id from 0 up, and its bytes. */
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
        // An added token is plain text. So is a token outside the alphabet, which encoding never
        // gives.
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
                        "like GPT-2's",
                        l->path, l->alphabet.character[byte], byte);
    }
    return 0;
}

/* Fills the added tokens. <|endoftext|> is one of them, listed or not. */
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

/* Adds the merge of the next rank: of left and right into the token spelled by both in a row. where
   and number name its line or element in messages. */
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

/* Adds one merge given as text: two tokens with a space between. Writes a NUL over the space. */
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

/* Reads the merges of a tokenizer.json. Each is "a b" (before 2024) or ["a", "b"]. */
static int read_merges_json(Loading *l, const json_t *merges) {
    if (!json_is_array(merges))
        return fail(l->e, "%s: model.merges is missing or not an array", l->path);
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

/* A pair that is listed twice has the rank of its last place, as in the libraries. */
static void build_merge_table(Tokenizer *t) {
    t->slot_bits = 4;
    while ((size_t)1 << t->slot_bits < 2 * (size_t)t->n_merges) t->slot_bits++;
    size_t slots = (size_t)1 << t->slot_bits;
    t->slot = xmalloc(slots * sizeof *t->slot);
    for (size_t i = 0; i < slots; i++) t->slot[i] = -1;
    for (int rank = 0; rank < t->n_merges; rank++)
        *merge_slot(t, t->merges[rank].left, t->merges[rank].right) = rank;
}

/* A tokenizer.json can describe many kinds of tokenizers. This reader would read any other than
   GPT-2's wrongly, so it refuses them. */
static int check_is_gpt2(const json_t *top, const char *path, Error *e) {
    const json_t *model = json_object_get(top, "model"), *type = json_object_get(model, "type");
    const json_t *pre = json_object_get(top, "pre_tokenizer"),
                 *normalizer = json_object_get(top, "normalizer");
    if (!json_is_object(model)) return fail(e, "%s: \"model\" is missing or not an object", path);
    if (type && !json_string_is(type, "BPE"))
        return fail(e, "%s: model.type is not \"BPE\", as in GPT-2", path);
    if (!json_string_is(json_object_get(pre, "type"), "ByteLevel") ||
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
        if (value && !json_is_null(value) && !json_string_is(value, ""))
            return fail(e, "%s: model.%s is set; GPT-2 has none", path, affix[i]);
    }
    return 0;
}

/* Reads added_tokens of a tokenizer.json, [{"id", "content", ...}], into the map l->added. */
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

/* GPT-2's pattern for PCRE2,
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * with its three classes written out. So they do not depend on the installed PCRE2, and they equal
 * those of the tokenizers library (0.23.3) at each of the 1,112,064 code points. White space is
 * Unicode's White_Space; PCRE2's \s also has U+180E. Letters and numbers are those of Unicode 16;
 * the 9,272 and 120 code points listed here are missing in PCRE2 10.42 (Unicode 14). */
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
    // without a JIT pcre2_match interprets the pattern: the same pieces
    pcre2_jit_compile(t->split, PCRE2_JIT_COMPLETE);
    return 0;
}

/* Reads l->vocabulary and l->added from vocab.json and, if it exists, added_tokens.json. */
static int open_vocabulary(Loading *l) {
    l->vocabulary = load_json_object(l->path, l->e);
    bool more = access(l->added_path, F_OK) == 0;
    l->added = !more ? json_object() : l->vocabulary ? load_json_object(l->added_path, l->e) : NULL;
    return l->vocabulary && l->added ? 0 : -1;
}

/* Reads the same from tokenizer.json. *merges is its list of merges and belongs to *top, which the
   caller releases. */
static int open_tokenizer_json(Loading *l, json_t **top, const json_t **merges) {
    *top = load_json_object(l->path, l->e);
    if (!*top || check_is_gpt2(*top, l->path, l->e)) return -1;
    const json_t *model = json_object_get(*top, "model");
    *merges = json_object_get(model, "merges");
    l->vocabulary = json_incref(json_object_get(model, "vocab"));
    l->added = json_object();
    if (!json_is_object(l->vocabulary))
        return fail(l->e, "%s: model.vocab is missing or not an object", l->path);
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
                      "the directory of the model",
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

/* A piece is a linked list of symbols. A merge changes the left symbol and unlinks the right one
   (id -1). */
typedef struct {
    int id;
    int previous, next;  // at the head, previous is -1; at the tail, next is the number of symbols
} Symbol;

/* Memory for one call of tokenizer_encode. The heap holds the merges that can be made now: a binary
   heap with the smallest on top. An entry is rank << 32 | position, so the leftmost of equal rank
   comes first. An entry is stale once one of its symbols has been merged. */
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

/* Puts the merge of symbol i and its next symbol on the heap, if they can merge. */
static void consider(const Tokenizer *t, Workspace *w, int i, int n) {
    int next = w->symbol[i].next;
    if (next == n) return;
    int rank = *merge_slot(t, w->symbol[i].id, w->symbol[next].id);
    if (rank >= 0) heap_push(w, (uint64_t)rank << 32 | (uint32_t)i);
}

/* Appends the ids of one piece. A merge costs O(log n), so a piece of n bytes costs O(n log n). */
static void encode_piece(const Tokenizer *t, Workspace *w, const unsigned char *s, size_t length,
                         Ints *out) {
    if (length > INT_MAX)
        die("cannot tokenise a piece of %zu bytes without a place to cut it", length);
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

/* Appends the ids of valid UTF-8, which the pattern cuts into pieces. It matches everywhere, so
   each match begins where the last one ended. PCRE2 does not check the text: it would check all of
   s again for every piece. */
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

/* Appends the ids of text without added tokens. Each run of bytes that are not UTF-8 is one piece.
   The text before it is cut as if the text ended there, the text after it as if it began there. */
static void encode_ordinary(const Tokenizer *t, Workspace *w, const unsigned char *s, size_t n,
                            Ints *out) {
    for (size_t at = 0; at < n;) {
        size_t valid = utf8_run((const char *)s + at, n - at, true);
        encode_utf8(t, w, s + at, valid, out);
        at += valid;
        size_t invalid = utf8_run((const char *)s + at, n - at, false);
        if (invalid) encode_piece(t, w, s + at, invalid, out);
        at += invalid;
    }
}

/* The longest added token at the beginning of s[0..n), or -1. */
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
