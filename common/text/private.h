/*
 * private.h - the data of a Tokenizer, which tokenizer.c, added.c, tokenizer_files.c and
 * tokenizer_kind.c share.
 */
#ifndef POSTTRAIN_TEXT_PRIVATE_H
#define POSTTRAIN_TEXT_PRIVATE_H

#include "text/json.h"
#include "text/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { BYTES = 256 };

typedef struct {
    int left, right, result;  // ids
} Merge;

/* ---- added tokens: added.c ------------------------------------------------------------------- */

/* A token that is recognised when it is written out in a text. */
typedef struct {
    char *content;
    int id;
    bool lstrip, rstrip;  // it takes the white space before it, behind it
    bool single_word;     // it is recognised only if no letter, digit or "_" is next to it
    bool normalized;      // it is looked for after the others, in what they leave
    unsigned listed;      // a bit for each file that lists it, and BY_CLASS: tokenizer_files.c
    char *files;          // the names of these files, for messages
} AddedToken;

/* A node of a tree of bytes. The children of a node are neighbours in its array, in the order of
   their bytes. */
typedef struct {
    uint64_t has[4];  // a bit for each byte that a child follows
    int first;        // the first child
    int added;        // the added token that ends here; -1: none
} TrieNode;

typedef struct {
    TrieNode *node;  // node 0 is the root; NULL: the tree is empty
    int n;
} Trie;

/* Makes the tree of those tokens whose `normalized` is the given one. Tokens must differ. */
void trie_build(Trie *trie, const AddedToken *added, int n, bool normalized);
/* The longest token at the beginning of the n bytes at s: its number in the array, or -1. */
int trie_find(const Trie *trie, const unsigned char *s, size_t n, size_t *length);

/* ---- kinds of tokenizers: tokenizer_kind.c ----------------------------------------------------
 */

/* Is what a tokenizer.json describes GPT-2's kind, which adds no tokens to a text? 0, or -1 with e
   filled. path is for messages. */
int tokenizer_check_kind(const json_t *top, const char *path, Error *e);
/* add_prefix_space of its pre-tokenizer; NULL: it says nothing. */
const json_t *tokenizer_prefix_space(const json_t *top);

/* ---- the tokenizer --------------------------------------------------------------------------- */

struct Tokenizer {
    int size, eos, pad;  // pad: -1 = none
    char *bytes;         // token i is bytes[offset[i] .. offset[i+1])
    size_t *offset;      // (size+1)
    int byte_id[BYTES];  // the token of each single byte
    Merge *merges;       // by rank: the merge learned first has rank 0 and is applied first
    int n_merges;
    int *slot;      // a hash table from (left, right) to rank: open addressing, -1 = free
    int slot_bits;  // it has 2^slot_bits slots
    AddedToken *added;
    int n_added;
    Trie plain, normalized;  // of the added tokens
    bool add_prefix_space;   // a text that begins without a space gets one
    pcre2_code *split;       // GPT-2's pattern, which cuts a text into pieces
    pcre2_code *word;        // a character of a word
    Str notes;               // what a person should know about the files, a sentence a line
};

/* Compiles both patterns. 0, or -1 with e filled. */
int tokenizer_compile(Tokenizer *t, Error *e);
/* Fills the hash table from the merges. */
void tokenizer_index_merges(Tokenizer *t);

#endif
