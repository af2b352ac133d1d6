/*
 * rollouts.h - answers of a policy to prompts, and the numbers of their tokens.
 *
 * Reinforcement learning from a language model's own answers needs sampling, batches of answers,
 * and a file with every number. The algorithm is the stage's; judge.h scores the answers.
 */
#ifndef POSTTRAIN_ROLLOUTS_H
#define POSTTRAIN_ROLLOUTS_H

#include "model/generate.h"
#include "text/tokenizer.h"
#include "util.h"

/* ---- prompts as tokens ----------------------------------------------------------------------- */

/* Prompt i is tokens[start[i] .. start[i+1]). */
typedef struct {
    int n, longest;       // prompts, and the tokens of the longest
    int *line;            // (n) where each is in the file
    int *start, *tokens;  // (n+1), (start[n])
    char **answer;        // (n) the answer of the data; NULL = it has none
} Queries;

/* Reads a file of prompts and prints what was found. A prompt of more than max_length tokens loses
   its beginning. A file without a prompt ends the program with 2. */
Queries queries_read(const char *path, const char *template, bool strict, const Tokenizer *t,
                     int max_length);
void queries_free(Queries *q);

/* ---- answers, and a number for each of their tokens ------------------------------------------ */

/* The answers of an iteration. Each array of per-token numbers concatenates the answers: the
   numbers of answer e are [start[e] .. start[e+1]). T is the length of one answer. */
typedef struct {
    int E, n_tokens;      // answers, and tokens of all of them
    int longest;          // most tokens of an answer
    int *query;           // (E) the prompt that each answers
    int *begin, *tokens;  // (E+1) prompt and answer e are tokens[begin[e] .. begin[e+1])
    int *start;           // (E+1)
    bool *ended;          // (E) the last token is the end of text
    float *score;         // (E) as the judge gave it
    double *shaped;       // (E) as the policy learns from it
    int *order;           // (E) room for a permutation of the answers
    /* (n_tokens) */
    float *logp, *ref_logp;                   // log π_old and log π_ref of the token
    float *kl;                                // KL(π_old || π_ref) over the whole vocabulary
    float *value, *reward, *advantage, *ret;  // V, r, A, and the return R
    float *A;                                 // advantage as the current minibatch uses it, perhaps
                                              // whitened; advantage itself stays
    float *gathered;                          // room for rollouts_gather
} Rollouts;

/* Room for E answers of up to `answer` tokens to prompts of up to `prompt`. */
Rollouts rollouts_new(int E, int prompt, int answer);
void rollouts_free(Rollouts *r);
/* Answers r->query[0..E): tokens, logp, ended. Answer e is drawn from the random numbers of (seed,
   step, e). */
void rollouts_sample(Rollouts *r, GPT2 *policy, const Queries *q, const Sampler *s);
/* Appends the text of answer e without the end of text, or the text of its prompt. */
void rollouts_text(const Rollouts *r, int e, bool answer, const Tokenizer *t, Str *out);
/* Copies the numbers of the answers which[0..n), in that order, to out. Returns how many. */
int rollouts_gather(const Rollouts *r, const float *numbers, const int *which, int n, float *out);
/* The reverse: copies them back to where they belong in numbers. */
void rollouts_scatter(const Rollouts *r, const float *gathered, const int *which, int n,
                      float *numbers);
/* Appends one JSON line for each answer of this step to a file, with every number, exactly. A file
   that cannot be written ends the program with 1. */
void rollouts_dump(const Rollouts *r, const Queries *q, const Tokenizer *t, int step,
                   const char *path);
/* Reads the E answers of a step, with all numbers, from such a file. A file without them ends the
   program with 2. */
void rollouts_replay(Rollouts *r, int E, const Queries *q, int step, const char *path);

/* ---- batches of answers ---------------------------------------------------------------------- */

/* The micro-batch in the network: some answers with their prompts, concatenated without padding. It
   has one row per position, N in all. Row i reads a token and predicts the next one, target[i],
   whose numbers are at of[i] in Rollouts. Both are -1 where the next token belongs to a prompt. */
typedef struct {
    Batch batch;
    int *start, *tokens, *target, *of;      // (S+1), then (N)
    float *logp, *entropy, *kl, *value;     // (N) from the models
    float *old_logp, *A, *old_value, *ret;  // (N) from the rollouts
    float *dlogp, *dentropy, *dvalue;       // (N) gradients
} Rows;

Rows rows_new(int S, int N);
void rows_free(Rows *b);
/* Fills the batch with the answers which[0..n) and their prompts. The last token of an answer is
   only a target. */
void rows_fill(Rows *b, const Rollouts *r, const int *which, int n);
/* The same with the next answers from `from` on, B of them or as many as there are. */
void rows_range(Rows *b, const Rollouts *r, int from, int B);
/* Copies a result of the rows, (N), back: numbers[of[i]] = row[i] for the rows with target[i] >= 0.
   numbers is an array of Rollouts. */
void rows_keep(const Rows *b, const float *row, float *numbers);
/* Ends the program with 1 unless logp, of a forward pass in training, is bitwise identical to
   old_logp, which was computed while the answers were sampled. */
void rows_check(const Rows *b);

#endif
