/*
 * dump.h - the files of --dump_rollouts, --dump_tokens and --dump_dialogues: JSON, one line for
 * each answer, record, pair or dialogue, and in most of them a number for each token.
 *
 * A line begins {"step": N. N counts the steps done when its numbers were computed; 0: before
 * training. `make page` makes these files readable.
 */
#ifndef POSTTRAIN_DUMP_H
#define POSTTRAIN_DUMP_H

#include "run/run.h"

/* Begins the file of the flag --name; path NULL: the flag is not given. A new run starts with an
   empty file; of a resumed run the lines of steps that come again are removed. Returns whether the
   file is empty now, so that it lacks what was before training. A file that cannot be written ends
   the program with 2. */
bool dump_begin(const Run *run, const char *path, const char *name);
/* Appends whole lines to it. The half line of a run that was killed gets its end first. A file that
   cannot be written ends the program with 1. */
void dump_append(const char *path, const char *name, const Str *lines);

/* Append ", "name": [...]" to a line: the n numbers, nine digits each, which name a float; one that
   is not finite is null. */
void dump_numbers(Str *line, const char *name, const float *x, int n);
void dump_number(Str *line, const char *name, double x);  // ", "name": x"
void dump_ints(Str *line, const char *name, const int *x, int n);
/* The same with the text of each token. A character whose bytes several tokens share is in the last
   one of them, and the others are empty or have what precedes it. */
void dump_pieces(Str *line, const char *name, const Tokenizer *t, const int *tokens, int n);
/* The same with the n tokens decoded together, as one string. */
void dump_text(Str *line, const char *name, const Tokenizer *t, const int *tokens, int n);

#endif
