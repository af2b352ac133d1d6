/*
 * principles.h - the constitution of a run: its principles with the text of their requests, and the
 * principle that each prompt is judged by.
 */
#ifndef POSTTRAIN_PRINCIPLES_H
#define POSTTRAIN_PRINCIPLES_H

#include "rl/constitution.h"

/* Reads the constitution in a file, or with path NULL the built-in principles in English and
   Korean. Fills in the critique request and the revision request of every principle: its own, or
   the file's layout, or the built-in layout. Adds the headings of all layouts, and those of the
   usual dialogue formats, to h. Exits with 2 if the file
   cannot be used. */
void constitution_open(const char *path, Constitution *c, Headings *h);

/* The layout that shows two answers and asks which is better by principle p. It has the holes
   {prompt} (without the heading of its answer), {principle}, {a} and {b}. */
const char *comparison_layout(const Constitution *c, const Principle *p);
/* The text of a principle in a comparison, to be freed: its "comparison", its sentence, or else its
   critique request without the headings. */
char *principle_text(const Principle *p);
/* Exits with 2 if a principle has no such text where the comparison asks for one. */
void comparisons_check(const Constitution *c);
/* The two labels that answer the question of comparison_layout: the file's, or "(A)" and "(B)". */
char **comparison_labels(const Constitution *c);

/* A prompt in Korean is judged by the principles in Korean, any other prompt by the others; if
   there is none in its language, by all. *n: how many principles that are. Returns number k % *n.
 */
const Principle *principle_for(const Constitution *c, const char *prompt, uint32_t k, int *n);

typedef enum { PRINCIPLES_RANDOM, PRINCIPLES_ALL } PrincipleOrder;

/* The principle of a round. PRINCIPLES_RANDOM draws it: a function of the seed, the epoch, the
   prompt's id and the round. PRINCIPLES_ALL takes them in turn. */
const Principle *draw_principle(const Constitution *c, PrincipleOrder order, const char *prompt,
                                uint32_t epoch, uint32_t id, uint32_t round, int64_t seed);

#endif
