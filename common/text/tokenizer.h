/*
 * tokenizer.h - text to tokens and back: GPT-2's byte-level BPE.
 */
#ifndef POSTTRAIN_TOKENIZER_H
#define POSTTRAIN_TOKENIZER_H

#include "util.h"

#define END_OF_TEXT "<|endoftext|>"

typedef struct Tokenizer Tokenizer;

/* Reads dir/vocab.json, dir/merges.txt and, if it exists, dir/added_tokens.json, or else
   dir/tokenizer.json. NULL with e filled: a file is missing or malformed; the vocabulary lacks
   <|endoftext|> or a token for some byte, uses an id twice or leaves one out; a merge is of unknown
   tokens; a tokenizer.json is of another kind than GPT-2's. */
Tokenizer *tokenizer_load(const char *dir, Error *e);
void tokenizer_free(Tokenizer *t);
int tokenizer_size(const Tokenizer *t);  // ids are 0 .. size-1
int tokenizer_eos(const Tokenizer *t);   // the id of <|endoftext|>
/* Appends the ids of the n bytes at s, the same as the libraries' for any text. With specials,
   "<|endoftext|>" (or any other added token) written in the text becomes its one id, as in the
   libraries; without, it is ordinary text. Any bytes are accepted: a run of bytes that are not
   UTF-8 is a piece of its own. decode(encode(s)) == s. Takes O(n log n) at worst. Threads may share
   a tokenizer. */
void tokenizer_encode(const Tokenizer *t, const char *s, size_t n, bool specials, Ints *out);
/* Appends the bytes of the n ids. One token may hold part of a UTF-8 character. An id outside 0 ..
   size-1 adds nothing: a model's vocabulary may be padded beyond its tokenizer's. */
void tokenizer_decode(const Tokenizer *t, const int *ids, size_t n, Str *out);

#endif
