/*
 * dataset.h - records and pairs of answers as tokens, and the ragged batches made of them.
 */
#ifndef POSTTRAIN_DATASET_H
#define POSTTRAIN_DATASET_H

#include "model/gpt2.h"
#include "text/records.h"
#include "text/tokenizer.h"
#include "util.h"

/* ---- examples -------------------------------------------------------------------------------- */

/* Records as tokens. Example i is tokens[start[i] .. start[i+1]). scored[j]: the model learns to
   predict token j. */
typedef struct {
    int n;          // examples
    int *line;      // (n) the line of each in its file
    size_t *start;  // (n+1)
    int *tokens;
    unsigned char *scored;
    long prompts_cut;    // examples that lost tokens at the beginning of their prompt
    long responses_cut;  // examples that lost tokens at their end
    long dropped;        // records without a token to score
    long scored_tokens;
    int longest;  // tokens of the longest example
} Dataset;

/* Tokenises each span by itself (added tokens written in it are recognised). Each response (scored
   span) ends with one <|endoftext|>, which is scored. Of an example with more than max_length
   tokens, the beginning of the text before the first response is cut; if that is not enough, the
   example's end is cut too. train_on_prompt scores all tokens. The first token is never scored,
   because there is nothing to predict it from. */
void dataset_build(Dataset *d, const Records *r, const Tokenizer *t, int max_length,
                   bool train_on_prompt);
/* Prints how many prompts and responses of a file lost tokens to max_length; nothing if none did.
   path: the file, or NULL. */
void say_cut(const Dataset *d, const char *path, int max_length);
void dataset_free(Dataset *d);
/* How many tokens of example i are scored: its share of the loss's denominator. */
int dataset_targets(const Dataset *d, int i);
/* How many tokens the model reads of example i: all but the last one. */
int dataset_rows(const Dataset *d, int i);

/* ---- ragged batches -------------------------------------------------------------------------- */

/* Memory for one ragged batch. */
typedef struct {
    Batch batch;
    int *start, *tokens, *target;  // target[i] is the token after token i; -1: it is not scored
    uint32_t *id;
    int scored;          // targets >= 0
    int room_S, room_N;  // sequences and rows that fit the memory
} RaggedBatch;

/* Fills rb with examples which[0..S) of d. An example of n tokens gives n-1 rows, because its last
   token is only a target. Grows rb as needed (start from {0}). */
void ragged_fill(RaggedBatch *rb, const Dataset *d, const int *which, int S);
void ragged_free(RaggedBatch *rb);
/* The most rows, and in *scored the most targets, of any batch of up to S of the examples
   which[0..n). */
int ragged_largest(const Dataset *d, const int *which, int n, int S, int *scored);

/* Compares two ints for qsort: the largest comes first. */
int largest_first(const void *a, const void *b);

/* ---- pairs of answers ------------------------------------------------------------------------ */

/*
 * A reward is read at the last token of a text, before the <|endoftext|> that ends it. Returns how
 * many of the n tokens remain without the <|endoftext|>s at the end. (Libraries pad GPT-2's batches
 * with <|endoftext|> and cannot tell a text's own from padding; they also read the score at the
 * last token before it.)
 */
int judged_tokens(const int *tokens, int n, int eos);

/* Pairs as tokens. Pair i has three parts, prompt, chosen and rejected. Part k is
   tokens[start[3i+k] .. start[3i+k+1]). The answers are their judged tokens. The prompt may be
   empty. */
typedef struct {
    int n;          // pairs
    int *line;      // (n) the line of each in its file
    size_t *start;  // (3n+1)
    int *tokens;
    float *margin, *p_chosen;  // (n)
    long prompts_cut;          // prompts that lost their beginning, the same for both answers
    long empty;                // pairs dropped: an answer without a token
    long equal;                // pairs dropped: both answers are the same tokens
    long too_long;             // pairs dropped: an answer alone is too long
    int longest;               // tokens of the longest prompt with the longer of its answers
    bool templated;            // some prompt was put into the template
} Pairs;

/* Tokenises each part by itself. If prompt and longer answer have more than max_length tokens, the
   beginning of the prompt is cut. */
void pairs_build(Pairs *p, const Records *r, const Tokenizer *t, int max_length);
void pairs_free(Pairs *p);
/* Where the three parts of pair i begin in tokens, and where the last one ends. */
static inline const size_t *pair_start(const Pairs *p, int i) { return p->start + 3 * (size_t)i; }
/* How many tokens part k of pair i has. */
static inline int pair_part(const Pairs *p, int i, int k) {
    const size_t *start = pair_start(p, i);
    return (int)(start[k + 1] - start[k]);
}

#endif
