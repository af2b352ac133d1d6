/*
 * choices.h - sampling a model's replies to prompts, pairs of answers with the probability that the
 * first is better, and scoring multiple-choice options.
 */
#ifndef POSTTRAIN_CHOICES_H
#define POSTTRAIN_CHOICES_H

#include "model/gpt2.h"
#include "model/memory.h"
#include "text/records.h"
#include "text/tokenizer.h"

/* ---- replies --------------------------------------------------------------------------------- */

/* Something that replies to prompts; a test has its own. say sets text[i] to the reply to prompt[i]
   (UTF-8, the caller frees it). id[i] and turn select its random numbers. fits: true if a prompt
   leaves room for a reply. */
typedef struct {
    void (*say)(void *context, int n, char *const *prompt, const uint32_t *id, uint32_t turn,
                float temperature, char **text);
    bool (*fits)(void *context, const char *prompt);
    void *context;
} Voice;

/* A model that replies: gpt2_generate gets all prompts together, and each reply ends at
   <|endoftext|> or after max_new_tokens. positions: of prompt and reply together. */
typedef struct {
    GPT2 *model;
    const Tokenizer *tokenizer;
    int positions, max_new_tokens;
    uint64_t seed;
    bool (*stopped)(void);  // as in Sampler; NULL = never
} Speaker;

Voice speaker_voice(Speaker *s);  // s must outlive it
/* How many tokens a text has. */
int text_tokens(const Tokenizer *t, const char *text);

/* ---- labelled pairs -------------------------------------------------------------------------- */

/* Two answers to a prompt, and the probability that the first is the better one. */
typedef struct {
    char *prompt, *a, *b;
    double p;           // that a is better than b
    double p_ab, p_ba;  // of the first option's label if a is shown first, and if b is; means over
                        // the principles asked
    int asked;          // the number of those principles
    bool given;         // p was read from a file
} Labelled;

/* Reads a file of pairs (pairs_read), with a the chosen answer, and prints how many there are.
   Returns that number. Exits with 2 if the file cannot be used. */
int labelled_read(const char *path, const char *template, bool strict, Labelled **out);
/* Sets p of each of the n pairs that is in the file, in either order of its answers, and prints how
   many there are. */
void labelled_take(Labelled *pairs, int n, const char *path, const char *template, bool strict);
/* Writes the n pairs as prompt, chosen, rejected and p_chosen; the better answer is chosen. A label
   that the model gave also has p_chosen_first and p_chosen_second: the probability of the chosen
   answer where it was shown first, and where second. 0, or -1 with e filled. */
int labelled_write(const char *path, const Labelled *pairs, int n, Error *e);
void labelled_free(Labelled *pairs, int n);

/* ---- multiple choice ------------------------------------------------------------------------- */

/* limits: of the reserved model; its tokens, sequences and scored bound one batch. positions: of a
   prompt with its longest option. */
typedef struct {
    GPT2 *model;
    const Tokenizer *tokenizer;
    GPT2Limits limits;
    int positions;
    long cut;  // prompts so far that lost their beginning
} Chooser;

/* Raises tokens, sequences and scored to the needs of the largest of these questions. */
void chooser_ceilings(GPT2Limits *limits, const Questions *q, const Tokenizer *t, int positions);
/* Sets logp[q][o] = log p(option o | prompt) for every question. A prompt is computed once for all
   its options (Batch.parent). Exits with 2 if an option does not fit. */
void chooser_ask(Chooser *c, const Questions *q, double **logp);
/* Normalises n log-probabilities in place: x[o] = log(p[o] / sum of p). */
void among_options(double *x, int n);

/* Shares of the questions whose first choice is right. */
typedef struct {
    double raw, debiased, first;
} Choices;

/*
 * raw: chooses the likeliest option. debiased: chooses by log p(o | x) - mean over x' of
 * log p(o | x'), where p is among the question's options and x' are the file's other questions with
 * the same option text (as in batch calibration, Zhou et al. 2023). So a constant preference for
 * "(A)" cancels. An option that occurs once is not changed. first: chooses the option that comes
 * first in alphabetical order. logp is that of chooser_ask; afterwards it holds the debiased
 * values.
 */
Choices chooser_choose(const Questions *q, double **logp);
/* Prints one line about n questions; when: "before" or "after" training. */
void choices_print(const Choices *c, int n, const char *when);
/* Asks, chooses, and prints the line. */
Choices chooser_report(Chooser *c, const Questions *q, const char *when);

#endif
