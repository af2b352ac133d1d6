/*
 * rollouts.h - answers of a policy to prompts, and the numbers of their tokens.
 *
 * Reinforcement learning from a language model's own answers needs sampling, batches of answers,
 * and a file with every number. The algorithm is the stage's; judge.h scores the answers.
 *
 * An iteration of ppo.c needs these passes over its answers. A pass reads all tokens of prompts and
 * answers; of a backward pass count two, which is what it costs.
 *
 *     sample     1   the policy, with a cache: each token once, and a prompt once for all its
 * answers score      1   the reward model, if there is one; its last layer only at the last tokens
 *     log π_ref  1   the reference; last layer and vocabulary only at the tokens of answers
 *     exact KL   0   the policy's outputs are those that its tokens were sampled from; only its
 *                    logits are computed again, because they take 65 times the memory of an output
 *     V          1   a separate critic; a head on the policy reads those outputs, too
 *     update     3   of the policy and as many of a separate critic, for each epoch
 *
 * With 4 epochs and 4 models that is 4 + 24, of which 2 compute numbers that are known: the forward
 * passes of the first epoch. They are made for their activations. To keep those of all answers
 * would take 370 KB a token in GPT-2 124M.
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
    bool templated;       // some prompt was put into the template
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
    float *logp, *ref_logp;  // log π_old and log π_ref of the token
    float *new_logp;         // log π as the last minibatch with this answer saw it
    float *kl;               // KL(π_old || π_ref) over the whole vocabulary
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
/* Each process has ref_logp, kl and value of its part of the answers (parts.h): all get all of
   them. */
void rollouts_collect(Rollouts *r);
/* Appends the text of answer e without the end of text, or the text of its prompt. */
void rollouts_text(const Rollouts *r, int e, bool answer, const Tokenizer *t, Str *out);
/* Copies the numbers of the answers which[0..n), in that order, to out. Returns how many. */
int rollouts_gather(const Rollouts *r, const float *numbers, const int *which, int n, float *out);
/* The reverse: copies them back to where they belong in numbers. */
void rollouts_scatter(const Rollouts *r, const float *gathered, const int *which, int n,
                      float *numbers);
/* Appends one JSON line for each answer of this step to a file, with every number, exactly. Answers
   to held-out prompts have no rewards: their lines have held_out in the place of episode, and only
   logp, ref_logp and kl. A file that cannot be written ends the program with 1. */
void rollouts_dump(const Rollouts *r, const Queries *q, const Tokenizer *t, int step, bool held_out,
                   const char *path);
/* Reads the E answers of a step, with all numbers, from such a file. A file without them ends the
   program with 2. */
void rollouts_replay(Rollouts *r, int E, const Queries *q, int vocabulary, int step,
                     const char *path);
/* The same from an open file. 0, or -1 with e filled. */
int rollouts_read(Rollouts *r, int E, const Queries *q, int vocabulary, int step, FILE *f,
                  Error *e);

/* ---- batches of answers ---------------------------------------------------------------------- */

/* The micro-batch in the network: some answers with their prompts, concatenated without padding. It
   has one row per position, N in all. Row i reads a token and predicts the next one, target[i],
   whose numbers are at of[i] in Rollouts. Both are -1 where the next token belongs to a prompt. */
typedef struct {
    Batch batch;
    int *start, *parent;                    // (S+1) (S)
    int *tokens, *target, *of;              // (N)
    float *logp, *entropy, *kl, *value;     // (N) from the models
    float *old_logp, *A, *old_value, *ret;  // (N) from the rollouts
    float *dlogp, *dentropy, *dvalue;       // (N) gradients
} Rows;

/* Room for S sequences of N tokens in all: S = B + B/2 for B answers (rows_range). */
Rows rows_new(int S, int N);
void rows_free(Rows *b);
/* Fills the batch with the answers which[0..n) and their prompts. The last token of an answer is
   only a target. */
void rows_fill(Rows *b, const Rollouts *r, const int *which, int n);
/* The same with the next answers from `from` on, B of them or as many as there are. Answers to the
   same prompt that follow each other share it: all of it but the last token is a sequence of its
   own, their parent. This is for forward passes, because the gradients of the prompts would be
   added up in another order. */
void rows_range(Rows *b, const Rollouts *r, int from, int B);
/* Copies a result of the rows, (N), back: numbers[of[i]] = row[i] for the rows with target[i] >= 0.
   numbers is an array of Rollouts. */
void rows_keep(const Rows *b, const float *row, float *numbers);
/* Ends the program with 1 unless logp, of a forward pass in training, is bitwise identical to
   old_logp, which was computed while the answers were sampled. */
void rows_check(const Rows *b);

#endif
