/*
 * speech.h - texts in, texts out: what a model says to a prompt, where it stopped making sense, and
 * which of several texts it would sooner say.
 */
#ifndef POSTTRAIN_SPEECH_H
#define POSTTRAIN_SPEECH_H

#include "model/generate.h"
#include "model/memory.h"
#include "text/text.h"

/* ---- what is said ---------------------------------------------------------------------------- */

/* Who speaks. say goes on from n prompts, and makes text[i] what follows prompt[i] (UTF-8, to be
   freed); id and turn name it in the random streams. fits: does a prompt leave room for an answer?
   A test has its own. */
typedef struct {
    void (*say)(void *context, int n, char *const *prompt, const uint32_t *id, uint32_t turn,
                float temperature, char **text);
    bool (*fits)(void *context, const char *prompt);
    void *context;
} Voice;

/* A model's voice: all prompts together through gpt2_generate, each until <|endoftext|> or
 * max_new_tokens. positions: prompt and answer together. */
typedef struct {
    GPT2 *model;
    const Tokenizer *tokenizer;
    int positions, max_new_tokens;
    uint64_t seed;
} Speaker;

Voice speaker_voice(Speaker *s);  // s must outlive it
int text_tokens(const Tokenizer *t, const char *text);

/* ---- texts ----------------------------------------------------------------------------------- */

typedef struct {
    const char *name, *text;
} Hole;

/* template with each name of holes (which end with {0}) replaced by its text, where nothing is
 * replaced again. To be freed. */
char *text_fill(const char *template, const Hole *holes);
/* Does text say one of the phrases of a list "a|b|c"? From the beginning of a word on, so that
   "inappropriate" does not say "appropriate", nor 부적절함 적절함; ASCII letters in either case. */
bool text_says(const char *text, const char *list);
/* Is there a syllable of Hangul in it? text may be NULL. */
bool text_is_korean(const char *text);

/* The headings that a layout puts before what somebody says. */
typedef struct {
    char **v;
    int n;
} Headings;

/* Of a template: the first and the last of its lines that say something, and those that begin with
   #, each up to its colon; a line without one is none. */
void headings_add(Headings *h, const char *template);
void headings_free(Headings *h);
/* Ends a text where a line of it begins with a heading, or with <|endoftext|>: from there on it
   speaks for somebody else. Then takes the white space off its end. */
void headings_cut(const Headings *h, char *text);

/* ---- labelled pairs -------------------------------------------------------------------------- */

/* Two answers and how surely the first is the better one. */
typedef struct {
    char *prompt, *a, *b;
    double p;           // that a is better than b
    double p_ab, p_ba;  // of the first option's label, when a stands first and when b does; means
                        // over the principles asked
    int asked;          // how many those are
    bool given;         // p is from elsewhere
} Labelled;

/* Reads a file of pairs (pairs_read), chosen first, and says how many there are. Returns that;
 * whatever is wrong ends the program with 2. */
int labelled_read(const char *path, const char *template, bool strict, Labelled **out);
/* Takes the labels of a file for those of the n pairs that are in it, whichever answer stands first
 * there, and says how many. */
void labelled_take(Labelled *pairs, int n, const char *path, const char *template, bool strict);
/* Writes the n pairs as prompt, chosen, rejected, p_chosen: the better first. 0, or -1 with e
 * filled. */
int labelled_write(const char *path, const Labelled *pairs, int n, Error *e);
void labelled_free(Labelled *pairs, int n);

/* ---- which of several ------------------------------------------------------------------------ */

/* limits: of the reserved model; tokens, sequences and scored are how much is scored at once.
 * positions: of a prompt with its longest option. */
typedef struct {
    GPT2 *model;
    const Tokenizer *tokenizer;
    GPT2Limits limits;
    int positions;
    long cut;  // prompts that lost their beginning, so far
} Chooser;

/* Raises tokens, sequences and scored to what the largest of these questions takes. */
void chooser_ceilings(GPT2Limits *limits, const Questions *q, const Tokenizer *t, int positions);
/* logp[q][o] = log p(option o | prompt) of every question. A prompt is computed once for all its
   options (Batch.parent). Ends the program when an option does not fit. */
void chooser_ask(Chooser *c, const Questions *q, double **logp);
/* x[o] = log(p[o] / sum over the n options of p), from log p: the options alone share the
 * probability. */
void among_options(double *x, int n);

/* Shares of questions with a right first choice. */
typedef struct {
    double raw, debiased, first;
} Choices;

/*
 * raw: the choice is the likeliest option. debiased: the likeliest compared with how likely its
 * text is after the file's other questions, log p(o | x) - mean over x' of log p(o | x') (p among
 * the question's options; as Zhou et al. 2023, batch calibration) so that a constant liking for
 * "(A)" cancels; an option that occurs once stays as it is. first: of the options in alphabetical
 * order. logp is chooser_ask's, and comes back as what decided.
 */
Choices chooser_choose(const Questions *q, double **logp);
/* Asks and chooses, and prints one line. */
Choices chooser_report(Chooser *c, const Questions *q, const char *when);

#endif
