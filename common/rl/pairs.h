/*
 * pairs.h - preference data for a reward model: pairs of answers to one prompt, of which one was
 * preferred.
 *
 * This is reward.c's data, and not its technique: reading the files, splitting them, printing what
 * was found, and the memory of a batch. How a pair becomes sequences is in reward.c.
 */
#ifndef POSTTRAIN_PAIRS_H
#define POSTTRAIN_PAIRS_H

#include "model/shards.h"
#include "run/chat.h"
#include "run/run.h"
#include "text/dataset.h"

/* ---- the preference data of a run ------------------------------------------------------------ */

enum { SHOWN_PAIRS = 3 };  // held-out pairs that are printed with their rewards

/* Some pairs of a file: all of them, or one side of a split. */
typedef struct {
    Pairs *data;
    int n, *which;
} PairSet;

typedef struct {
    /* flags */
    const char *template, *dump_tokens;
    int max_length, validation_split_percentage;
    bool strict;
    /* preferences_load fills in the rest */
    PairSet train, held_out;
    int *which;     // the pairs of this step that are this process's
    Shards shards;  // of these pairs
    int *size;      // room for the tokens of each
} Preferences;

/* Rows of a stage's table of flags, for variable, a Preferences in static storage. */
// clang-format off
#define PREFERENCE_FLAGS(variable)                                                                 \
    TEMPLATE_FLAG(variable),                                                                       \
    {"max_length", NUMBER((variable).max_length, "512", 2, 1 << 20),                               \
     "The most tokens of a prompt with the longer of its answers. A longer pair loses the "        \
     "beginning of its prompt, the same for both answers."},                                       \
    {"strict", SWITCH((variable).strict, "false"),                                                 \
     "Stop at the first bad line of a data file instead of skipping it."},                         \
    {"validation_split_percentage",                                                                \
     NUMBER((variable).validation_split_percentage, "5", 0, 50),                                   \
     "The share of --data that is held out when there is no --eval, in percent.",                  \
     .conflicts = "eval"},                                                                         \
    {"dump_tokens", TEXT((variable).dump_tokens, NULL),                                            \
     "Write the held-out pairs with the model's value at each token, before training and after, "  \
     "to this file, one JSON line each.",                                                          \
     .may_change_on_resume = true}
// clang-format on

/* Reads the pairs of --data and of --eval (or splits --data, shuffled by the seed), prints what was
   found and the first training pair, and plans the run's steps. Wrong input ends the program with
   2. */
void preferences_load(Preferences *p, Run *run);
/* Draws the pairs of this step, and returns how many there are. p->which gets those of them that
   are this process's: all, if it is alone. */
int preferences_examples(Preferences *p, Run *run);
/* How many of these pairs the micro-batch from number `from` on has: at most `most`, and only pairs
   of one shard (shards.h); 0: there are no more. */
int preferences_batch(const Preferences *p, int from, int most);
void preferences_free(Preferences *p);

/* Which answer is the better one? 1: chosen; -1: rejected, as a soft label below 1/2 says; 0:
   neither. */
static inline int preference(float p_chosen) { return (p_chosen > 0.5f) - (p_chosen < 0.5f); }
/* The most tokens that any P pairs of the set can have, each with its prompt once. */
int pairs_largest(const PairSet *x, int P);
/* Prints pair k of a set. before and after: rewards (2n) of all its pairs, chosen's and rejected's
   in turn, to print with the answers; or both NULL. */
void pairs_show(const Tokenizer *t, const PairSet *x, int k, const float *before,
                const float *after);
/* Says what a share of held-out pairs means whose better answer has the higher reward: how often
   guessing gives it, and the length alone. */
void pairs_conclude(const PairSet *x, double accuracy);
/* Prints four quarters of the pairs, sorted by the difference of their rewards (2n), each with its
   accuracy and with the accuracy that the model itself predicts: the mean of sigmoid(|r_c - r_r|).
   A calibrated model has equal numbers. */
void pairs_print_calibration(const PairSet *x, const float *rewards);

/* ---- a batch of pairs ------------------------------------------------------------------------ */

/* Room for P pairs in 3P sequences of N tokens in all, and the numbers of each. */
typedef struct {
    Batch batch;
    int *start, *tokens, *parent;  // of the batch: (3P+1), (N), (3P)
    int *needed;                   // (N) 0 at the rows of last, else -1
    uint32_t *id;                  // (3P)
    int P;                         // pairs in the batch
    int (*last)[2];            // (P,2) the rows whose values are the rewards of chosen and rejected
    float *value, *dvalue;     // (N) values of all rows, and the derivatives of the loss
    float *chosen, *rejected;  // (P) rewards
    float *margin, *p_chosen;  // (P) of the record
    float *dchosen, *drejected;  // (P) derivatives of the loss by the rewards
} PairBatch;

PairBatch pair_batch_new(int P, int N);
void pair_batch_free(PairBatch *b);
/* Appends the sequence tokens[0..n) then more[0..more_n). parent: the sequence that it continues,
   or -1. id names it in the random streams. None of its outputs is needed. */
void pair_batch_add(PairBatch *b, int parent, uint32_t id, const int *tokens, int n,
                    const int *more, int more_n);

/* Adds a batch of held-out pairs, from number `from` of the set on, with their rewards and values
   to --dump_tokens, as those of run->step. */
void pairs_dump(const Preferences *p, const Run *run, const PairBatch *b, int from);

/* For a model without a scalar head, before it gets one: prints how probable the model, as a
   language model, finds <|endoftext|> after a chosen answer, the mean over the first 32 pairs. A
   model that was fine-tuned on this template knows where answers end; a note says so when this one
   does not. Ends the program with 2 when the run does not train. */
void pairs_check_start(PairBatch *b, GPT2 *model, const Run *run, const PairSet *x);

#endif
