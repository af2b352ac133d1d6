/*
 * tokenizer.c - byte-level BPE: see tokenizer.h.
 *
 * The tokenizer is GPT-2's (Radford et al. 2019, section 2.2; merging after Sennrich et al. 2016)
 * and gives the same ids. A regular expression cuts a text into pieces. Each piece starts as its
 * bytes. Of all neighbours with a learned merge, the pair whose merge was learned first is joined,
 * until no learned merge is left. tokenizer_files.c reads the files.
 */
#include "text/private.h"
#include "text/utf8.h"

#include <limits.h>

/* ---- The table of merges --------------------------------------------------------------------- */

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

/* A pair that is listed twice has the rank of its last place, as in the libraries. */
void tokenizer_index_merges(Tokenizer *t) {
    t->slot_bits = 4;
    while ((size_t)1 << t->slot_bits < 2 * (size_t)t->n_merges) t->slot_bits++;
    size_t slots = (size_t)1 << t->slot_bits;
    t->slot = xmalloc(slots * sizeof *t->slot);
    for (size_t i = 0; i < slots; i++) t->slot[i] = -1;
    for (int rank = 0; rank < t->n_merges; rank++)
        *merge_slot(t, t->merges[rank].left, t->merges[rank].right) = rank;
}

/* ---- Patterns -------------------------------------------------------------------------------- */

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

/* The characters of a word, which Rust's \w has: letters, marks, decimal digits, connectors. */
static const char WORD_PATTERN[] =
    "[" LETTER
    "\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{"
    "1f169}\\x{1f170}-\\x{1f189}\\x{200c}\\x{200d}]";

static int compile(const char *pattern, pcre2_code **out, Error *e) {
    int code;
    PCRE2_SIZE at;
    *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED,
                         &code, &at, NULL);
    if (!*out) {
        PCRE2_UCHAR why[256] = "";
        pcre2_get_error_message(code, why, sizeof why);
        return fail(e, "PCRE2 cannot compile a pattern: %s (at %zu)", (const char *)why,
                    (size_t)at);
    }
    // without a JIT pcre2_match interprets the pattern: the same pieces
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);
    return 0;
}

int tokenizer_compile(Tokenizer *t, Error *e) {
    return compile(SPLIT_PATTERN, &t->split, e) || compile(WORD_PATTERN, &t->word, e) ? -1 : 0;
}

void tokenizer_free(Tokenizer *t) {
    if (!t) return;
    for (int i = 0; i < t->n_added; i++) {
        free(t->added[i].content);
        free(t->added[i].files);
    }
    free(t->bytes);
    free(t->offset);
    free(t->merges);
    free(t->slot);
    free(t->added);
    free(t->plain.node);
    free(t->normalized.node);
    free(t->notes.s);
    pcre2_code_free(t->split);
    pcre2_code_free(t->word);
    free(t);
}

int tokenizer_size(const Tokenizer *t) { return t->size; }
int tokenizer_eos(const Tokenizer *t) { return t->eos; }
int tokenizer_pad(const Tokenizer *t) { return t->pad; }
void tokenizer_set_eos(Tokenizer *t, int id) { t->eos = id; }

int tokenizer_first_added(const Tokenizer *t, const char *text) {
    for (const char *p = text; *p; p++) {
        size_t length;
        int found = -1;
        if (t->plain.node)
            found = trie_find(&t->plain, (const unsigned char *)p, strlen(p), &length);
        if (found < 0 && t->normalized.node)
            found = trie_find(&t->normalized, (const unsigned char *)p, strlen(p), &length);
        if (found >= 0) return t->added[found].id;
    }
    return -1;
}

bool tokenizer_keeps_text(const Tokenizer *t) {
    bool keeps = !t->add_prefix_space;
    for (int i = 0; i < t->n_added && keeps; i++)
        keeps = !t->added[i].lstrip && !t->added[i].rstrip;
    return keeps;
}

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

/* Appends the ids of any bytes. Each run of bytes that are not UTF-8 is one piece.
   The text before it is cut as if the text ended there, the text after it as if it began there. */
static void encode_runs(const Tokenizer *t, Workspace *w, const unsigned char *s, size_t n,
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

/* Appends the ids of text without added tokens. */
static void encode_ordinary(const Tokenizer *t, Workspace *w, const unsigned char *s, size_t n,
                            Ints *out) {
    if (!t->add_prefix_space || n == 0 || *s == ' ') {
        encode_runs(t, w, s, n, out);
        return;
    }
    Str spaced = {0};
    str_add(&spaced, " ", 1);
    str_add(&spaced, (const char *)s, n);
    encode_runs(t, w, (const unsigned char *)spaced.s, spaced.n, out);
    free(spaced.s);
}

/* ---- Added tokens in a text ------------------------------------------------------------------ */

static bool is_white(uint32_t c) {
    return (c >= '\t' && c <= '\r') || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

/* The character that ends at s[n], and its length. */
static Utf8 last_character(const unsigned char *s, size_t n) {
    size_t length = 1;
    while (length < 4 && length < n && s[n - length] >> 6 == 2) length++;
    const Utf8 c = utf8_decode((const char *)s + n - length, length);
    return c.kind == UTF8_WHOLE && c.n == length ? c : (Utf8){.kind = UTF8_BROKEN, .n = 1};
}

/* How many bytes of white space the n bytes at s begin with, or end with. */
static size_t white_before(const unsigned char *s, size_t n) {
    size_t at = n;
    while (at > 0) {
        const Utf8 c = last_character(s, at);
        if (c.kind != UTF8_WHOLE || !is_white(c.code)) break;
        at -= c.n;
    }
    return n - at;
}

static size_t white_behind(const unsigned char *s, size_t n) {
    size_t at = 0;
    while (at < n) {
        const Utf8 c = utf8_decode((const char *)s + at, n - at);
        if (c.kind != UTF8_WHOLE || !is_white(c.code)) break;
        at += c.n;
    }
    return at;
}

static bool is_word(const Tokenizer *t, const Workspace *w, const unsigned char *s, Utf8 c) {
    return c.kind == UTF8_WHOLE &&
           pcre2_match(t->word, s, c.n, 0, PCRE2_NO_UTF_CHECK, w->match, NULL) >= 0;
}

/* Is s[from .. to) a word of its own within the n bytes at s? */
static bool is_single_word(const Tokenizer *t, const Workspace *w, const unsigned char *s, size_t n,
                           size_t from, size_t to) {
    if (from > 0) {
        const Utf8 c = last_character(s, from);
        if (is_word(t, w, s + from - c.n, c)) return false;
    }
    return to == n || !is_word(t, w, s + to, utf8_decode((const char *)s + to, n - to));
}

typedef void EncodeBetween(const Tokenizer *t, Workspace *w, const unsigned char *s, size_t n,
                           Ints *out);

/* Appends the ids of the tokens in trie that are written in the n bytes at s, and, by `between`, of
   the text between them. The leftmost token is taken first, of several there the longest. */
static void encode_around(const Tokenizer *t, const Trie *trie, Workspace *w,
                          const unsigned char *s, size_t n, EncodeBetween *between, Ints *out) {
    size_t done = 0;
    for (size_t i = 0; trie->node && i < n;) {
        size_t length = 0;
        const int found = trie_find(trie, s + i, n - i, &length);
        if (found < 0) {
            i++;
            continue;
        }
        const AddedToken *a = &t->added[found];
        size_t from = i, to = i + length;
        i = to;
        if (a->single_word && !is_single_word(t, w, s, n, from, to)) continue;
        if (a->lstrip) from -= white_before(s + done, from > done ? from - done : 0);
        if (a->rstrip) to += white_behind(s + to, n - to);
        if (from > done) between(t, w, s + done, from - done, out);
        ints_push(out, a->id);
        done = to;
    }
    if (done < n) between(t, w, s + done, n - done, out);
}

static void encode_rest(const Tokenizer *t, Workspace *w, const unsigned char *s, size_t n,
                        Ints *out) {
    encode_around(t, &t->normalized, w, s, n, encode_ordinary, out);
}

void tokenizer_encode(const Tokenizer *t, const char *text, size_t n, bool specials, Ints *out) {
    if (n == 0) return;
    const unsigned char *s = (const unsigned char *)text;
    Workspace w = {.match = pcre2_match_data_create(1, NULL)};
    checked_memory(w.match, 1, sizeof(void *), __FILE__, __LINE__);
    if (specials)
        encode_around(t, &t->plain, &w, s, n, encode_rest, out);
    else
        encode_ordinary(t, &w, s, n, out);
    pcre2_match_data_free(w.match);
    free(w.symbol);
    free(w.heap);
}

void tokenizer_decode(const Tokenizer *t, const int *ids, size_t n, Str *out) {
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= 0 && ids[i] < t->size)
            str_add(out, t->bytes + t->offset[ids[i]], t->offset[ids[i] + 1] - t->offset[ids[i]]);
}
