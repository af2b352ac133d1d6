/*
 * watch.h - the figures of a run. A figure is a metric: a named number in the log. It is declared
 * by giving its first value. From then on it is accumulated, kept in checkpoints, written to the
 * log and started anew.
 *
 * Figures appear in a log line in the order in which they were first given. A figure that is not
 * finite does not exist, and is left out: nothing was counted, or it is not defined. run/table.c
 * says which of them a person sees.
 */
#ifndef POSTTRAIN_WATCH_H
#define POSTTRAIN_WATCH_H

struct Run;

/* The value of the last step of a log line, such as a gradient norm. */
void watch(struct Run *run, const char *name, double value);
/* A mean over everything since the last log line: sums and counts add up, one divides the other. */
void watch_mean(struct Run *run, const char *name, double sum, double count);
/* (weight_a sum_a + weight_b sum_b) / count_a of two means, which are given before the line is
   written. The names are string constants. */
void watch_combined(struct Run *run, const char *name, const char *a, double weight_a,
                    const char *b, double weight_b);
/* The least and the largest value since the last log line */
void watch_min(struct Run *run, const char *name, double value);
void watch_max(struct Run *run, const char *name, double value);
/* A sum since the run began, such as the number of tokens. */
void watch_total(struct Run *run, const char *name, double more);
/* A held-out figure: it gets a log line of its own, after that of the step. One that is given
   before the first step is in the first line of the log, that of step 0. */
void watch_held_out(struct Run *run, const char *name, double value);
/* This run cannot have the figure, so the table on the screen has no column for it. Before the
   first step. */
void run_without_figure(struct Run *run, const char *name);
/* From this call on, time belongs to this phase of a step; NULL: to none. It is also what the run
   is shown to be doing. At the end stdout shows the seconds of each phase, and their shares. name
   is a string constant. */
void watch_phase(struct Run *run, const char *name);

#endif
