/*
 * rollouts.h - answers of a policy to prompts, the numbers of their tokens, and who judges them.
 *
 * What reinforcement learning from a language model's own answers needs and does not explain:
 * sampling, batches of answers, scores from a reward model or a program, a file with every number.
 * The algorithm is the stage's.
 */
#ifndef POSTTRAIN_ROLLOUTS_H
#define POSTTRAIN_ROLLOUTS_H

#include "rl/child.h"
#include "model/generate.h"
#include "text/tokenizer.h"
#include "util.h"

/* ---- prompts as tokens ----------------------------------------------------------------------- */

/* Prompt i is tokens[start[i] .. start[i+1]). */
typedef struct {
    int n, longest;
    int *line, *start, *tokens;
    char **answer;  // (n) what the data answers; NULL = nothing
} Queries;

/* Reads a file of prompts and says what was found; of a prompt longer than max_length the beginning
   is lost. Ends the program with 2 when it cannot be used. */
Queries queries_read(const char *path, const char *template, bool strict, const Tokenizer *t,
                     int max_length);
void queries_free(Queries *q);

/* ---- answers, and a number for each of their tokens ------------------------------------------ */

/* The numbers of all answers stand end to end: those of answer e are [start[e] .. start[e+1]). */
typedef struct {
    int E, T;                     // answers, and tokens of all of them
    int longest;                  // most tokens of an answer
    int *query;                   // (E) the prompt each answers
    int *begin, *tokens;          // (E+1) prompt and answer e are tokens[begin[e] .. begin[e+1])
    int *start;                   // (E+1)
    bool *ended;                  // (E) its last token is the end of text
    float *score;                 // (E) as the judge gave it
    float *logp, *ref_logp, *kl;  // (T) log π_old and log π_ref of the token; KL(π_old || π_ref)
                                  // over the whole vocabulary
    float *value, *reward, *advantage, *ret,
        *A;  // (T) V, r, A, R; and A once more as a minibatch uses it
} Rollouts;

/* Room for E answers of up to `answer` tokens to prompts of up to `prompt`. */
Rollouts rollouts_new(int E, int prompt, int answer);
void rollouts_free(Rollouts *r);
/* Answers r->query[0..E): tokens, logp, ended. Answer e is drawn from the random numbers of (seed,
 * step, e). */
void rollouts_sample(Rollouts *r, GPT2 *policy, const Queries *q, const Sampler *s);
/* Appends the text of answer e, without the end of text, or of its prompt. */
void rollouts_text(const Rollouts *r, int e, bool answer, const Tokenizer *t, Str *out);
/* Appends to the file at path one JSON line for each answer of this step, with every number,
   exactly; and reads the answers of a step from such a file. Both end the program when that cannot
   be done. */
void rollouts_dump(const Rollouts *r, const Queries *q, const Tokenizer *t, int step,
                   const char *path);
void rollouts_replay(Rollouts *r, int E, const Queries *q, int step, const char *path);

/* ---- batches of answers ---------------------------------------------------------------------- */

/* Row i reads a token and predicts the next: target[i], whose numbers are at of[i]; both -1 where
 * the next belongs to a prompt. */
typedef struct {
    Batch batch;
    int *start, *tokens, *target, *of;      // (S+1), then (N)
    float *logp, *entropy, *kl, *value;     // (N) what the models say
    float *old_logp, *A, *old_value, *ret;  // (N) of the rollouts
    float *dlogp, *dentropy, *dvalue;       // (N) gradients
} Rows;

Rows rows_new(int S, int N);
void rows_free(Rows *b);
/* Answers which[0..n) with their prompts, each without its last token, which is only ever
 * predicted. */
void rows_fill(Rows *b, const Rollouts *r, const int *which, int n);
/* numbers[of[i]] = row[i], for the rows that predict an answer's token. */
void rows_keep(const Rows *b, const float *row, float *numbers);

/* ---- the judge ------------------------------------------------------------------------------- */

/* One of model and program. */
typedef struct {
    GPT2 *model;      // SCORE_HEAD
    Child *program;   // reads {"prompt", "response"} lines, answers {"score"} lines
    double patience;  // seconds of silence until it is given up
    const Tokenizer *tokenizer;
} Judge;

/* r->score, of texts B at a time: the model's value at the last token that is not the end of text;
   or what the program says. A score that is not finite, and a program that fails, end this program
   with 1 and say so. */
void judge_score(const Judge *j, Rollouts *r, const Queries *q, Rows *b, int B);
/* Ends the program with 2 unless the tokenizer in dir has the same tokens, as a model that reads
 * the policy's must. */
void judge_reads(const Tokenizer *t, const char *dir);

#endif
