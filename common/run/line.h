/*
 * line.h - a line that a person types: with editing and a history where the program was built with
 * libedit or GNU readline (see the Makefile), else as the terminal gives it.
 */
#ifndef POSTTRAIN_LINE_H
#define POSTTRAIN_LINE_H

#include "util.h"

/* Was the program built with a line editor? */
bool line_edits(void);
/* The next line of stdin without its end, after the prompt "> " if both stdin and stdout are a
   terminal. To be freed. It is valid UTF-8 without NUL and without escape sequences. NULL: there is
   no more. A line of more than 1 MiB, or a stdin that cannot be read, ends the program with 2. */
char *line_read(void);
/* Removes escape sequences (ECMA-48) from a text: of an arrow key, a colour, a title. */
void line_clean(Str *text);

#endif
