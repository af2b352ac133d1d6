/*
 * tokenizer_files.c - a tokenizer out of the files of a model directory: see tokenizer.h.
 *
 * transformers reads tokenizer.json first and changes what it found by tokenizer_config.json. The
 * code here does the same. What would give other tokens in two versions of transformers, or in two
 * files of the directory, is refused with a message that names both.
 */
#include "text/json.h"
#include "text/private.h"
#include "text/utf8.h"

#include <limits.h>

enum { VOCABULARY_FILE_LIMIT = 256 << 20 };  // bytes of one file of a tokenizer (GPT-2: 1.4 MB)

/* ---- How bytes are spelled ------------------------------------------------------------------- */

/* The files spell bytes in an alphabet of printable characters. A byte that is a printable Latin-1
   character is spelled by itself. The other 68, in order, are U+0100, U+0101, ... So the space is
   U+0120. */

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

/* ---- A tokenizer while it is loaded ---------------------------------------------------------- */

enum { VOCAB, MERGES, ADDED, TOKENIZER, CONFIG, SPECIAL, MODEL, FILES, BY_CLASS = FILES };

static const char *const file_name[FILES] = {
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
};

/* The maps from a token's spelling to its id are jansson's objects. */
typedef struct {
    Tokenizer *t;
    char *path[FILES];
    json_t *file[FILES];  // what was read; NULL: it does not exist, or is not JSON
    int from;             // the file with the vocabulary: TOKENIZER or VOCAB
    json_t *vocabulary;   // spelling -> id
    json_t *added;        // spelling -> its number in t->added
    Alphabet alphabet;
    Error *e;
} Loading;

static json_t *load_json_object(const char *path, size_t flags, Error *e) {
    Str text = {0};
    json_error_t where;
    json_t *j = NULL;
    if (read_regular_file(path, VOCABULARY_FILE_LIMIT, &text, e) == 0 &&
        refuse_mark(path, text.s, text.n, e) == 0) {
        j = json_loadb(text.s, text.n, JSON_REJECT_DUPLICATES | flags, &where);
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

/* Reads every file that exists. model_max_length of a tokenizer_config.json does not fit an
   integer. */
static int read_files(Loading *l, const char *dir) {
    const bool pair = file_exists(l->path[VOCAB]) && file_exists(l->path[MERGES]);
    l->from = file_exists(l->path[TOKENIZER]) ? TOKENIZER : VOCAB;
    static const char *const others[] = {"vocab.txt", "spiece.model", "tokenizer.model",
                                         "sentencepiece.bpe.model"};
    for (size_t i = 0; l->from == VOCAB && !pair && i < sizeof others / sizeof *others; i++)
        if (exists_in(dir, others[i]))
            return fail(l->e,
                        "%s has a tokenizer of another kind, %s; only GPT-2s with GPT-2's own "
                        "byte-level tokenizer can be read, such as gpt2, distilgpt2 and DialoGPT",
                        dir, others[i]);
    if (l->from == VOCAB && !pair)
        return fail(l->e,
                    "no tokenizer in %s: found neither vocab.json with merges.txt nor "
                    "tokenizer.json; copy them from the directory of the model",
                    dir);
    for (int i = 0; i < FILES; i++) {
        if (i == MERGES || !file_exists(l->path[i])) continue;
        if (i == VOCAB && !pair) continue;
        const size_t flags = i >= CONFIG ? JSON_DECODE_INT_AS_REAL : 0;
        if (!(l->file[i] = load_json_object(l->path[i], flags, l->e))) return -1;
    }
    return 0;
}

static int find_id(const json_t *map, const char *spelling) {
    const json_t *id = json_object_get(map, spelling);
    return id ? (int)json_integer_value(id) : -1;
}

/* ---- Added tokens ---------------------------------------------------------------------------- */

static AddedToken *find_added(const Loading *l, const char *content) {
    const int at = find_id(l->added, content);
    return at < 0 ? NULL : &l->t->added[at];
}

static AddedToken *append_added(Loading *l, const char *content, int id) {
    Tokenizer *t = l->t;
    const int n = t->n_added++;
    t->added = grow(t->added, n, sizeof *t->added);
    t->added[n] = (AddedToken){.content = xstrdup(content), .id = id};
    json_object_set_new(l->added, content, json_integer(n));
    return &t->added[n];
}

/* The first of the files that list an added token. */
static int file_of(const Loading *l, const AddedToken *a) {
    const int first = __builtin_ctz(a->listed);
    return first < FILES ? first : l->from;
}

/* The flags of an added token in a file; absent ones are false. */
static void take_flags(AddedToken *a, const json_t *token) {
    a->lstrip = json_is_true(json_object_get(token, "lstrip"));
    a->rstrip = json_is_true(json_object_get(token, "rstrip"));
    a->single_word = json_is_true(json_object_get(token, "single_word"));
    a->normalized = json_is_true(json_object_get(token, "normalized"));
}

/* Notes that a file lists a token under this id. token: an object with its flags, or NULL. */
static int list_token(Loading *l, int file, const char *content, json_int_t id,
                      const json_t *token) {
    AddedToken *a = find_added(l, content);
    const json_t *known = json_object_get(l->vocabulary, content);
    if (a && a->listed >> file & 1)
        return fail(l->e, "%s: added token \"%.80s\" is listed twice", l->path[file], content);
    if (id < 0 || id > INT_MAX)
        return fail(l->e, "%s: added token \"%.80s\" has id %lld, expected 0 or more",
                    l->path[file], content, (long long)id);
    const long long other = a       ? a->id
                            : known ? (long long)json_integer_value(known)
                                    : (long long)id;
    if (other != (long long)id)
        return fail(l->e,
                    "%s: added token \"%.80s\" has id %lld, but %lld in %s%s; make them equal",
                    l->path[file], content, (long long)id, other, a ? "" : "the vocabulary of ",
                    file_name[a ? file_of(l, a) : l->from]);
    const bool first = !a;
    if (first) a = append_added(l, content, (int)id);
    if (token)
        take_flags(a, token);
    else if (first)
        a->normalized = true;
    a->listed |= 1u << file;
    return 0;
}

/* added_tokens of a tokenizer.json, [{"id", "content", ...}]. */
static int list_tokenizer_json(Loading *l) {
    const json_t *list = json_object_get(l->file[TOKENIZER], "added_tokens"), *token;
    size_t i;
    if (list && !json_is_null(list) && !json_is_array(list))
        return fail(l->e, "%s: added_tokens is %s, expected an array", l->path[TOKENIZER],
                    json_type_name(list));
    json_array_foreach(list, i, token) {
        const json_t *content = json_object_get(token, "content"),
                     *id = json_object_get(token, "id");
        if (!json_is_string(content) || !json_is_integer(id))
            return fail(l->e,
                        "%s: added_tokens[%zu] needs a string \"content\" and an integer \"id\"",
                        l->path[TOKENIZER], i);
        if (list_token(l, TOKENIZER, json_string_value(content), json_integer_value(id), token))
            return -1;
    }
    return 0;
}

/* added_tokens_decoder of a tokenizer_config.json, {"id": {"content", ...}}. */
static int list_config(Loading *l) {
    json_t *decoder = json_object_get(l->file[CONFIG], "added_tokens_decoder"), *token;
    const char *key;
    json_object_foreach(decoder, key, token) {
        char *end;
        const long long id = strtoll(key, &end, 10);
        const json_t *content = json_object_get(token, "content");
        if (*end || end == key || !json_is_string(content))
            return fail(l->e, "%s: added_tokens_decoder: \"%.40s\" is no id with a \"content\"",
                        l->path[CONFIG], key);
        if (list_token(l, CONFIG, json_string_value(content), id, token)) return -1;
    }
    return 0;
}

/* added_tokens.json, {"content": id}. transformers ignores it where tokenizer_config.json lists the
   added tokens, so it must then say nothing new. */
static int list_added(Loading *l) {
    const bool newer = json_is_object(json_object_get(l->file[CONFIG], "added_tokens_decoder"));
    const char *content;
    json_t *id;
    json_object_foreach(l->file[ADDED], content, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0)
            return fail(l->e, "%s: the id of token \"%.80s\" is not an integer >= 0",
                        l->path[ADDED], content);
        if (newer && !find_added(l, content) && !json_object_get(l->vocabulary, content))
            return fail(l->e,
                        "%s lists \"%.80s\", which %s does not know: transformers would not read "
                        "it; take it out, or add it to both",
                        l->path[ADDED], content, file_name[CONFIG]);
        if (list_token(l, ADDED, content, json_integer_value(id), NULL)) return -1;
    }
    return 0;
}

/* ---- Tokens of special use ------------------------------------------------------------------- */

static bool is_gpt2_class(const Loading *l) {
    const json_t *class = json_object_get(l->file[CONFIG], "tokenizer_class");
    return !class || json_is_null(class) || json_string_is(class, "GPT2Tokenizer") ||
           json_string_is(class, "GPT2TokenizerFast");
}

/* The text of a token that is named by a string or by {"content": string}; NULL: neither. */
static const char *named_content(const json_t *value) {
    if (json_is_object(value)) value = json_object_get(value, "content");
    return json_string_value(value);
}

/* A token named by one of the files is recognised in texts. One that no vocabulary has gets the
   next id, as in transformers. */
static void name_token(Loading *l, int file, const json_t *value) {
    const char *content = named_content(value);
    if (!content || !*content) return;
    AddedToken *a = find_added(l, content);
    if (!a) {
        int id = find_id(l->vocabulary, content);
        if (id < 0) {
            id = (int)json_object_size(l->vocabulary);
            for (int i = 0; i < l->t->n_added; i++) id = max_int(id, l->t->added[i].id + 1);
        }
        a = append_added(l, content, id);
        if (json_is_object(value)) take_flags(a, value);
    }
    a->listed |= 1u << file;
}

/* The token of a use, "eos_token" or another, and the file that names it. special_tokens_map.json
   counts only in older directories. NULL: no file names it. */
static const json_t *named_token(const Loading *l, const char *use, int *file) {
    const bool newer = json_object_get(l->file[CONFIG], "added_tokens_decoder");
    const json_t *value = newer ? NULL : json_object_get(l->file[SPECIAL], use);
    *file = value ? SPECIAL : CONFIG;
    return value ? value : json_object_get(l->file[CONFIG], use);
}

static void name_tokens(Loading *l) {
    static const char *const use[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                      "pad_token", "cls_token", "mask_token"};
    static const char *const list[] = {"additional_special_tokens", "extra_special_tokens"};
    int file;
    for (size_t i = 0; i < sizeof use / sizeof *use; i++) {
        const json_t *value = named_token(l, use[i], &file);
        name_token(l, file, value);
        // GPT-2's own class gives these three uses to one token, if the vocabulary has it
        if (!value && i < 3 && is_gpt2_class(l) && json_object_get(l->vocabulary, END_OF_TEXT)) {
            json_t *end = json_string(END_OF_TEXT);
            name_token(l, BY_CLASS, end);
            json_decref(end);
        }
    }
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        const json_t *values = named_token(l, list[i], &file), *value;
        size_t k;
        json_array_foreach(values, k, value) name_token(l, file, value);
    }
}

/* The id of the token that a file gives this use, or -1. */
static int id_of_use(const Loading *l, const char *use) {
    int file;
    const char *content = named_content(named_token(l, use, &file));
    const AddedToken *a = content ? find_added(l, content) : NULL;
    return a ? a->id : -1;
}

/* GPT-2's own class reads no added token from tokenizer.json where tokenizer_config.json lists
   them, since version 5 of transformers; older versions do. */
static int check_lists(const Loading *l) {
    const bool newer = json_object_get(l->file[CONFIG], "added_tokens_decoder");
    for (int i = 0; newer && is_gpt2_class(l) && i < l->t->n_added; i++)
        if ((l->t->added[i].listed & (1u << CONFIG | 1u << TOKENIZER)) == 1u << TOKENIZER)
            return fail(l->e,
                        "%s lists the added token \"%.80s\", and added_tokens_decoder of %s does "
                        "not: versions of transformers differ in whether they know it; list it in "
                        "both, or in none",
                        l->path[TOKENIZER], l->t->added[i].content, file_name[CONFIG]);
    return 0;
}

/* Finds the token that ends a text: the tokenizer's eos_token; else <|endoftext|>; else the added
   token that config.json names. */
static int find_end(Loading *l) {
    Tokenizer *t = l->t;
    t->eos = id_of_use(l, "eos_token");
    const AddedToken *usual = find_added(l, END_OF_TEXT);
    if (t->eos < 0 && usual) t->eos = usual->id;
    if (t->eos < 0) t->eos = find_id(l->vocabulary, END_OF_TEXT);
    const double named = json_number_value(json_object_get(l->file[MODEL], "eos_token_id"));
    for (int i = 0; t->eos < 0 && named > 0 && i < t->n_added; i++)
        if (t->added[i].id == named) t->eos = t->added[i].id;
    if (t->eos < 0)
        return fail(l->e,
                    "%s: no token \"%s\", which ends every response; name the model's own end as "
                    "\"eos_token\" in %s",
                    l->path[l->from], END_OF_TEXT, file_name[CONFIG]);
    return 0;
}

/* ---- The tables ------------------------------------------------------------------------------ */

/* Sets name[id] = spelling. id must be below n and new, or be this spelling's already. */
static int place_id(const Loading *l, int file, const char *spelling, long long id,
                    const char **name, size_t n) {
    if (id < 0)
        return fail(l->e, "%s: the id of token \"%.80s\" is not an integer >= 0", l->path[file],
                    spelling);
    if ((size_t)id >= n)
        return fail(l->e,
                    "%s: token \"%.80s\" has id %lld, but there are %zu tokens: ids must be 0 to "
                    "%zu without holes",
                    l->path[file], spelling, id, n, n - 1);
    if (name[id] && strcmp(name[id], spelling))
        return fail(l->e, "%s: tokens \"%.80s\" and \"%.80s\" have the same id %lld", l->path[file],
                    name[id], spelling, id);
    name[id] = spelling;
    return 0;
}

static int place_ids(const Loading *l, const char **name, size_t n) {
    const Tokenizer *t = l->t;
    const char *spelling;
    json_t *value;
    json_object_foreach(l->vocabulary, spelling, value) {
        const long long id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (place_id(l, l->from, spelling, id, name, n)) return -1;
    }
    for (int i = 0; i < t->n_added; i++) {
        const AddedToken *a = &t->added[i];
        if (place_id(l, file_of(l, a), a->content, a->id, name, n)) return -1;
    }
    return 0;
}

/* Fills the tokens: every id from 0 up, and its bytes. */
static int build_tokens(Loading *l) {
    Tokenizer *t = l->t;
    size_t n = json_object_size(l->vocabulary);
    for (int i = 0; i < t->n_added; i++) n += !json_object_get(l->vocabulary, t->added[i].content);
    if (n > INT_MAX) return fail(l->e, "%s: %zu tokens are too many", l->path[l->from], n);
    const char **name = xcalloc(n, sizeof *name);
    if (place_ids(l, name, n)) {
        free(name);
        return -1;
    }
    Str bytes = {0};
    t->size = (int)n;
    t->offset = xcalloc(n + 1, sizeof *t->offset);
    for (size_t id = 0; id < n; id++) {
        // An added token is plain text. So is a token outside the alphabet, which encoding never
        // gives.
        if (find_added(l, name[id]) || !spelled_bytes(&l->alphabet, name[id], &bytes))
            str_add(&bytes, name[id], strlen(name[id]));
        t->offset[id + 1] = bytes.n;
    }
    t->bytes = bytes.s;
    free(name);
    return 0;
}

static int build_byte_ids(Loading *l) {
    for (int byte = 0; byte < BYTES; byte++) {
        l->t->byte_id[byte] = find_id(l->vocabulary, l->alphabet.character[byte]);
        if (l->t->byte_id[byte] < 0)
            return fail(l->e,
                        "%s: no token \"%s\" for byte 0x%02X: this is not a byte-level vocabulary "
                        "like GPT-2's",
                        l->path[l->from], l->alphabet.character[byte], byte);
    }
    return 0;
}

/* Fills the trees of the added tokens, and the names of their files. */
static void build_added(Loading *l) {
    Tokenizer *t = l->t;
    for (int i = 0; i < t->n_added; i++) {
        Str files = {0};
        for (int f = 0; f < FILES; f++)
            if (t->added[i].listed >> f & 1)
                str_printf(&files, "%s%s", files.n ? ", " : "", file_name[f]);
        str_printf(&files, "%s", "");
        t->added[i].files = files.s;
    }
    trie_build(&t->plain, t->added, t->n_added, false);
    trie_build(&t->normalized, t->added, t->n_added, true);
}

/* ---- Merges ---------------------------------------------------------------------------------- */

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
    t->merges = grow(t->merges, t->n_merges, sizeof *t->merges);
    t->merges[t->n_merges++] = (Merge){id[0], id[1], id[2]};
    return 0;
}

/* Two files with merges must have the same ones. This is called for each merge of merges.txt. */
static int compare_merge(const Loading *l, const char *left, const char *right, size_t number,
                         int rank) {
    const Tokenizer *t = l->t;
    const Merge *m = rank < t->n_merges ? &t->merges[rank] : NULL;
    if (m && find_id(l->vocabulary, left) == m->left && find_id(l->vocabulary, right) == m->right)
        return 0;
    return fail(l->e,
                "%s:%zu: the merge \"%.80s %.80s\" is not merge %d of %s: the two files are of "
                "different tokenizers; remove the one that is not the model's (transformers reads "
                "%s)",
                l->path[MERGES], number, left, right, rank + 1, file_name[TOKENIZER],
                file_name[TOKENIZER]);
}

/* Splits a merge given as text at its space, over which it writes a NUL. NULL with e filled. */
static char *split_merge(const Loading *l, char *pair, const char *where, size_t number) {
    char *space = strchr(pair, ' ');
    if (!space || space == pair || !space[1] || strchr(space + 1, ' ')) {
        fail(l->e, "%s:%zu: expected two tokens with one space between, found \"%.80s\"", where,
             number, pair);
        return NULL;
    }
    *space = 0;
    return space + 1;
}

/* Reads merges.txt: adds its merges, or compares them with those of tokenizer.json. */
static int read_merges_txt(Loading *l) {
    const char *path = l->path[MERGES];
    const bool compare = l->from == TOKENIZER;
    Str text = {0};
    int status = read_regular_file(path, VOCABULARY_FILE_LIMIT, &text, l->e), rank = 0;
    if (status == 0) status = refuse_mark(path, text.s, text.n, l->e);
    if (status == 0 && memchr(text.s, 0, text.n))
        status = fail(l->e, "%s: a NUL byte in what should be text", path);
    size_t number = 0;
    for (char *line = text.s, *next; status == 0 && *line; line = next) {
        size_t n = strcspn(line, "\n");
        next = line + n + (line[n] != 0);
        line[n] = 0;
        if (n && line[n - 1] == '\r') line[n - 1] = 0;
        number++;
        if (!*line || !strncmp(line, "#version", 8)) continue;
        const char *right = split_merge(l, line, path, number);
        if (!right)
            status = -1;
        else if (compare)
            status = compare_merge(l, line, right, number, rank++);
        else
            status = add_merge(l, line, right, path, number);
    }
    if (status == 0 && compare && rank < l->t->n_merges)
        status = fail(l->e,
                      "%s has %d merges and %s %d: one of them is cut short, or they are of "
                      "different tokenizers; remove the one that is not the model's",
                      path, rank, file_name[TOKENIZER], l->t->n_merges);
    free(text.s);
    return status;
}

/* Reads the merges of a tokenizer.json. Each is "a b" (before 2024) or ["a", "b"]. */
static int read_merges_json(Loading *l, const json_t *merges) {
    if (!json_is_array(merges))
        return fail(l->e, "%s: model.merges is missing or not an array", l->path[TOKENIZER]);
    Str where = {0};
    str_printf(&where, "%s: model.merges", l->path[TOKENIZER]);
    size_t i;
    const json_t *merge;
    int status = 0;
    json_array_foreach(merges, i, merge) {
        const char *left = json_string_value(json_array_get(merge, 0)),
                   *right = json_string_value(json_array_get(merge, 1));
        if (json_is_string(merge)) {
            char *pair = xstrdup(json_string_value(merge)), *second;
            second = split_merge(l, pair, where.s, i);
            status = second ? add_merge(l, pair, second, where.s, i) : -1;
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

/* Every token of several bytes comes from a merge. Notes when merges are missing: a merges.txt that
   was cut short gives other tokens without an error. */
static void note_missing_merges(Loading *l) {
    Tokenizer *t = l->t;
    const char *spelling;
    json_t *value;
    bool *made = xcalloc((size_t)t->size, sizeof *made);
    int missing = 0;
    Str bytes = {0};
    for (int i = 0; i < t->n_merges; i++) made[t->merges[i].result] = true;
    json_object_foreach(l->vocabulary, spelling, value) {
        bytes.n = 0;
        if (made[json_integer_value(value)] || find_added(l, spelling)) continue;
        missing += spelled_bytes(&l->alphabet, spelling, &bytes) && bytes.n > 1;
    }
    if (missing)
        str_printf(&t->notes,
                   "%s: no merge makes %d of the %d tokens, which texts therefore never get; the "
                   "list of merges may be cut short\n",
                   l->path[l->from == VOCAB ? MERGES : TOKENIZER], missing, t->size);
    free(bytes.s);
    free(made);
}

/* ---- The use of the tokenizer ---------------------------------------------------------------- */

static int refuse(const Loading *l, int file, const char *what) {
    return fail(l->e, "%s: %s", l->path[file], what);
}

/* Checks what tokenizer_config.json says about the use of the tokenizer. */
static int check_config(const Loading *l) {
    static const char *const adds[] = {"add_bos_token", "add_eos_token"};
    const json_t *config = l->file[CONFIG], *class = json_object_get(config, "tokenizer_class");
    if (!is_gpt2_class(l) && !json_string_is(class, "PreTrainedTokenizerFast") &&
        !json_string_is(class, "TokenizersBackend"))
        return fail(l->e, "%s: tokenizer_class is \"%.60s\", expected GPT2Tokenizer",
                    l->path[CONFIG], json_is_string(class) ? json_string_value(class) : "");
    for (int i = 0; i < 2; i++)
        if (json_is_true(json_object_get(config, adds[i])))
            return fail(
                l->e,
                "%s: %s is true, and a token added to every text is not implemented; set it "
                "to false%s",
                l->path[CONFIG], adds[i],
                i ? ": every response gets its end here"
                  : ", and if the model was trained with the token at the beginning, write "
                    "it there in --template");
    if (json_is_true(json_object_get(config, "split_special_tokens")))
        return refuse(l, CONFIG, "split_special_tokens is true, which is not implemented");
    return 0;
}

/* Does a text get a space in front? transformers reads this in tokenizer_config.json, the
   tokenizers library in tokenizer.json. */
static int read_prefix_space(Loading *l) {
    const json_t *here = tokenizer_prefix_space(l->file[TOKENIZER]),
                 *there = json_object_get(l->file[CONFIG], "add_prefix_space");
    const bool config = json_is_true(there);
    // the tokenizers library takes true where the key is absent
    const bool json = l->from == TOKENIZER ? !json_is_false(here) : config;
    l->t->add_prefix_space = config;
    if (json == config) return 0;
    return fail(l->e,
                "%s: pre_tokenizer.add_prefix_space is %s, and add_prefix_space of %s is %s; make "
                "them equal: true gives every text a space in front",
                l->path[TOKENIZER], json ? "true" : "false", file_name[CONFIG],
                there             ? config ? "true" : "false"
                : l->file[CONFIG] ? "absent, which means false"
                                  : "false, as the file does not exist");
}

/* ---- Two files with a vocabulary ------------------------------------------------------------- */

/* Every token of one must be in the other with its id, unless it is an added token. */
static int compare_vocabularies(const Loading *l) {
    json_t *const map[2] = {l->vocabulary, l->file[VOCAB]};
    const int file[2] = {TOKENIZER, VOCAB};
    if (l->from == VOCAB || !l->file[VOCAB]) return 0;
    for (int k = 0; k < 2; k++) {
        const char *spelling;
        json_t *value;
        json_object_foreach(map[k], spelling, value) {
            const json_t *other = json_object_get(map[!k], spelling);
            const AddedToken *a = other ? NULL : find_added(l, spelling);
            if (other ? json_equal(value, other) : a && a->id == json_integer_value(value))
                continue;
            Str has = {0};
            if (other)
                str_printf(&has, "has id %lld", (long long)json_integer_value(other));
            else
                str_printf(&has, "is missing");
            fail(l->e,
                 "%s and %s are of different tokenizers: token \"%.80s\" has id %lld in %s and %s "
                 "in %s; remove the one that is not the model's (transformers reads %s)",
                 l->path[TOKENIZER], file_name[VOCAB], spelling,
                 (long long)json_integer_value(value), file_name[file[k]], has.s,
                 file_name[file[!k]], file_name[TOKENIZER]);
            free(has.s);
            return -1;
        }
    }
    return 0;
}

/* ---- Loading --------------------------------------------------------------------------------- */

static int find_vocabulary(Loading *l) {
    const json_t *model = json_object_get(l->file[TOKENIZER], "model");
    l->vocabulary = l->from == VOCAB ? l->file[VOCAB] : json_object_get(model, "vocab");
    if (!json_is_object(l->vocabulary))
        return refuse(l, TOKENIZER, "model.vocab is missing or not an object");
    return 0;
}

static int check_kind(const Loading *l) {
    return l->from == TOKENIZER ? tokenizer_check_kind(l->file[TOKENIZER], l->path[TOKENIZER], l->e)
                                : 0;
}

static int load(Loading *l, const char *dir) {
    const json_t *model;
    if (read_files(l, dir) || check_kind(l) || check_config(l) || read_prefix_space(l) ||
        find_vocabulary(l) || list_tokenizer_json(l) || list_config(l) || list_added(l) ||
        check_lists(l) || compare_vocabularies(l))
        return -1;
    name_tokens(l);
    if (find_end(l) || build_tokens(l) || build_byte_ids(l)) return -1;
    l->t->pad = id_of_use(l, "pad_token");
    build_added(l);
    model = json_object_get(l->file[TOKENIZER], "model");
    if (model && read_merges_json(l, json_object_get(model, "merges"))) return -1;
    // vocab.json was read only because merges.txt exists
    if ((l->file[VOCAB] && read_merges_txt(l)) || tokenizer_compile(l->t, l->e)) return -1;
    const json_t *truncation = json_object_get(l->file[TOKENIZER], "truncation");
    if (truncation && !json_is_null(truncation))
        str_printf(&l->t->notes,
                   "%s: truncation is not used, as in transformers; --max_length cuts examples\n",
                   l->path[TOKENIZER]);
    note_missing_merges(l);
    tokenizer_index_merges(l->t);
    return 0;
}

Tokenizer *tokenizer_load(const char *dir, Error *e) {
    Loading l = {.t = xcalloc(1, sizeof *l.t), .added = json_object(), .e = e};
    for (int i = 0; i < FILES; i++) l.path[i] = path_join(dir, file_name[i]);
    alphabet_build(&l.alphabet);
    Tokenizer *t = l.t;
    str_add(&t->notes, "", 0);
    const int status = load(&l, dir);
    for (int i = 0; i < FILES; i++) {
        json_decref(l.file[i]);
        free(l.path[i]);
    }
    json_decref(l.added);
    if (status == 0) return t;
    tokenizer_free(t);
    return NULL;
}

const char *tokenizer_notes(const Tokenizer *t) { return t->notes.s; }

const char *tokenizer_added_in(const Tokenizer *t, int id) {
    for (int i = 0; i < t->n_added; i++)
        if (t->added[i].id == id && *t->added[i].files) return t->added[i].files;
    return NULL;
}
