/*
 * feedback.h - AI feedback: the files and figures around the labels that a model gives to pairs of
 * answers. How a pair is labelled is in constitutional.c.
 */
#ifndef POSTTRAIN_FEEDBACK_H
#define POSTTRAIN_FEEDBACK_H

#include "rl/choices.h"
#include "rl/dialogues.h"
#include "rl/principles.h"

/* A range of probabilities, "LOW,HIGH" with 0 <= LOW <= 0.5 <= HIGH <= 1. */
typedef struct {
    double low, high;
} Range;

/* Reads the value of a flag. Exits with 2 if it is not such a range. */
Range range_read(const char *flag, const char *text);

/* Makes pairs of the answers that two dialogues about each of n prompts begin with. An answer that
   is missing or empty and two answers that are the same make none. Prints how many pairs there are,
   and returns that number. */
int pair_answers(const Dialogue *first, const Dialogue *second, int n, Labelled **pairs);

/* Adds a question whose answers are the two labels. prompt: the question takes it over. */
void questions_add(Questions *q, char *prompt, char **labels);
/* Asks the n questions: p[i] is the probability of the first label, and not the second, as the
   answer to question i. Frees the questions. The caller frees p. */
double *chooser_first(Chooser *judge, Questions *q);
/* Raises tokens, sequences and scored to the needs of such questions. */
void comparison_limits(GPT2Limits *l, const Constitution *c, const Tokenizer *t, int positions);

/* Prints how often the first option was preferred, and how often the model's labels agree with what
   is known: that the first of each pair is better (first_is_better), or that an answer which says
   one of the phrases is worse than one that does not. */
void labelled_report(const Labelled *pairs, int n, bool first_is_better, const char *phrases);

#endif
