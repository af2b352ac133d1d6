/*
 * progress.h - how far a long computation has come.
 *
 * A loop that may take long says so here, in any room. What is made of it is up to the run
 * (run/screen.c), which shows it on a terminal and prints a line now and then elsewhere. A program
 * that shows nothing ignores it. Call these from one thread only.
 */
#ifndef POSTTRAIN_PROGRESS_H
#define POSTTRAIN_PROGRESS_H

#include "util.h"

/* What is computed from here on, as for printf: "answering held-out prompts". A word in the plural,
   "examples", is shown with their number only, "16 of 64 examples". */
PRINTF_LIKE(1, 2) void progress_begin(const char *format, ...);
/* That is done. What is computed from here on has no name. */
void progress_end(void);
/* So many parts of it are done, of all. */
void progress(long done, long all);
/* It is still being computed. */
void progress_tick(void);

/* What is shown: its name, or ""; how many parts are done of all, or 0 of 0. */
typedef void ProgressShow(const char *doing, long done, long all);
/* Calls show at each report from here on. NULL: nothing. */
void progress_show(ProgressShow *show);

#endif
