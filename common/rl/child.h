/*
 * child.h - another program that keeps running and answers each line with a line.
 *
 * The shell starts it. It reads lines on its standard input and writes as many to its standard
 * output, in their order; its standard error is ours. It may answer each line at once or wait for
 * more lines: we serve both pipes together, so the two sides cannot deadlock. Ctrl-C does not reach
 * it. On exit we close its standard input, then send SIGTERM to all its processes; when this
 * program is killed, a watcher does so, and SIGKILL a second later. There can be one child at a
 * time.
 */
#ifndef POSTTRAIN_CHILD_H
#define POSTTRAIN_CHILD_H

#include "util.h"

typedef struct Child Child;

/* Starts `command`. NULL with e filled. */
Child *child_start(const char *command, Error *e);
enum { CHILD_STOPPED = 1 };
/* Writes the `lines` lines (each ends in \n) of `question`, and sets answer to as many lines of the
   program's, each ended by NUL instead of the newline; answer.n counts all bytes. -1 with e filled:
   the program has ended, has neither read nor written for `patience` seconds, or writes more lines
   than it was asked for. CHILD_STOPPED: stopped(), which is asked every half second, is true; the
   child must not be asked again. stopped NULL: it is never true. */
int child_ask(Child *c, const Str *question, int lines, double patience, bool (*stopped)(void),
              Str *answer, Error *e);
/* Closes its standard input, waits up to a second, and if need be ends the program. c may be NULL.
 */
void child_end(Child *c);

#endif
