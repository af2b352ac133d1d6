/*
 * child.h - another program, kept running, that answers a line with a line.
 *
 * It is started by the shell, reads lines on its standard input and writes as many to its standard
 * output, in their order; what it writes to its standard error goes to ours. It may answer each
 * line at once or wait for more: both pipes are served together, so neither side waits for the
 * other for ever. Ctrl-C does not reach it; when we end, its input ends, and it is told to. One at
 * a time.
 */
#ifndef POSTTRAIN_CHILD_H
#define POSTTRAIN_CHILD_H

#include "util.h"

typedef struct Child Child;

/* Starts `command`. NULL with e filled. */
Child *child_start(const char *command, Error *e);
/* Writes the `lines` lines (each ends in \n) of `question`, and sets answer to as many lines of its
   own, without their newlines and NUL-terminated one by one; answer.n counts all of it. -1 with e
   filled: it has ended, for `patience` seconds neither read nor wrote, or says more than it was
   asked. */
int child_ask(Child *c, const Str *question, int lines, double patience, Str *answer, Error *e);
/* Ends its input, waits a little, and if need be ends the program. c may be NULL. */
void child_end(Child *c);

#endif
