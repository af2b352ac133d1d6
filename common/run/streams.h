/*
 * streams.h - stdin, stdout and stderr of every program: what is closed, what may be printed, and
 * whether all of it arrived.
 *
 * Much of what a program prints was written by others: names in files, records, answers of a model,
 * lines of a judge. So nothing is printed as it is. From streams_begin on, everything that is
 * written to stdout and stderr passes one filter. A control character but a new line and a tab
 * becomes \x1b or what its number is. So does \u202e, and every other character that changes the
 * order of others, separates lines or is a byte order mark. A byte that belongs to no character
 * becomes U+FFFD.
 *
 * On a terminal the filter also breaks a line at a blank before it is wider than the screen, and
 * colours the beginning of an error and of a note, unless the environment variable NO_COLOR is set.
 * Anywhere else a line stays whole and has no colour.
 */
#ifndef POSTTRAIN_STREAMS_H
#define POSTTRAIN_STREAMS_H

#include "util.h"

/* Opens /dev/null in the place of a stdin, stdout or stderr that is closed, and puts the filter
   before stdout and stderr. When the program ends with 0 although something could not be written to
   stdout, it ends with 1 and a message instead; a stdout that is closed takes nothing. If the
   reader of a pipe has gone, the program ends as by SIGPIPE. Call it first in main. */
void streams_begin(void);
/* What is printed is not all that the program does: a stdout that is closed is as good as
   /dev/null, also for what was printed before. */
void streams_optional(void);
/* The same, because the program writes files. Now it also outlives the reader of stdout: a note
   says so, and the program ends with 1 when it has done the rest. */
void streams_outlive(void);
/* Writes a text of the program's own to stdout past the filter, at once: a line of progress that
   begins with a carriage return. */
PRINTF_LIKE(1, 2) void streams_draw(const char *format, ...);
/* Draws a line of progress in the place of the last one, as much of it as the screen is wide; "":
   only removes that. Whatever is printed next on stdout or stderr removes it, too. For a terminal.
 */
void streams_progress(const char *line);
/* Writes a line to stdout: in bold on a terminal with colours. */
void streams_heading(const char *line);
/* From here on stdout is passed on at once and as it is, but for control characters: what a model
   says is not broken into lines. */
void streams_say(void);
/* From here on nothing is printed on stdout, unless it was asked for (all false), and no note on
   stderr. Errors still are. */
void streams_quiet(bool all);
/* Was streams_quiet called? */
bool streams_are_quiet(void);
/* The columns of a line: those of the terminal that stdout is; else the environment variable
   COLUMNS; else `otherwise`. From 40 to 1000. */
int streams_columns(int otherwise);
/* The columns that a character takes on a terminal: 2 if it is wide, as those of Korean, 0 if it is
   drawn over the one before, else 1. */
int character_columns(uint32_t code);

#endif
