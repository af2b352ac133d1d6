/*
 * tokenizer.h - text to tokens and back: GPT-2's byte-level BPE.
 */
#ifndef POSTTRAIN_TOKENIZER_H
#define POSTTRAIN_TOKENIZER_H

#include "util.h"

#define END_OF_TEXT "<|endoftext|>"

typedef struct Tokenizer Tokenizer;

/*
 * Reads the tokenizer of a model directory as transformers does:
 *
 *     tokenizer.json                      the vocabulary, the merges and the added tokens; without
 *     vocab.json, merges.txt              it these two
 *     tokenizer_config.json               added tokens, the tokens of special use, add_prefix_space
 *     added_tokens.json,                  the same in older directories
 *     special_tokens_map.json
 *
 * NULL with e filled. Reasons: a file is missing or malformed; two files contradict each other; the
 * vocabulary lacks an end or a token for some byte, uses an id twice or leaves one out; a merge is
 * of unknown tokens; the tokenizer is of another kind than GPT-2's, or does what is not implemented
 * here (a normalizer, a token added to every text, dropout), which the message names.
 */
Tokenizer *tokenizer_load(const char *dir, Error *e);
void tokenizer_free(Tokenizer *t);
int tokenizer_size(const Tokenizer *t);  // ids are 0 .. size-1
/* The id of the token that ends a text: eos_token, which is <|endoftext|> unless a file says
   otherwise. */
int tokenizer_eos(const Tokenizer *t);
/* Another token than eos_token ends a text. */
void tokenizer_set_eos(Tokenizer *t, int id);
/* The first added token that is written in a text: its id, or -1. */
int tokenizer_first_added(const Tokenizer *t, const char *text);
/* The id of pad_token, or -1. */
int tokenizer_pad(const Tokenizer *t);
/* What a person should know about the files, one sentence per line; "" if there is nothing. */
const char *tokenizer_notes(const Tokenizer *t);
/* The names of the files that list an added token; NULL: the token is an ordinary one. */
const char *tokenizer_added_in(const Tokenizer *t, int id);
/* Appends the ids of the n bytes at s, the same as the libraries' for any text. With specials,
   "<|endoftext|>" (or any other added token) written in the text becomes its one id, as in the
   libraries; without, it is ordinary text. Any bytes are accepted: a run of bytes that are not
   UTF-8 is a piece of its own. Takes O(n log n) at worst. Threads may share a tokenizer. */
void tokenizer_encode(const Tokenizer *t, const char *s, size_t n, bool specials, Ints *out);
/* Appends the bytes of the n ids. One token may hold part of a UTF-8 character. An id outside 0 ..
   size-1 adds nothing: a model's vocabulary may be padded beyond its tokenizer's. */
void tokenizer_decode(const Tokenizer *t, const int *ids, size_t n, Str *out);
/* True if decode(encode(s)) == s for every s. It is false where the files ask for a space before
   each text, or for added tokens that swallow the spaces around them. */
bool tokenizer_keeps_text(const Tokenizer *t);

#endif
