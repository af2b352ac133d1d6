/*
 * table.h - the table that a person watches: which figures of a program are its columns, and how a
 * number is written in one. log.jsonl has all figures.
 */
#ifndef POSTTRAIN_TABLE_H
#define POSTTRAIN_TABLE_H

#include "util.h"

typedef enum { AS_LOSS, AS_SHARE, AS_REWARD, AS_RATE, AS_COUNT, AS_LENGTH } Form;

typedef struct {
    const char *heading;  // of one line or two: "gradient|norm"
    const char *figure;   // in training; of several, "a b", the first that has a number; NULL: none
    const char *held_out;  // of held-out data, likewise
    int width;
    Form form;
    int rank;           // where not all fit, those of the highest rank are left out
    const char *means;  // for --help
} Column;

/* The columns of a program, up to one without a heading. A program that has none of its own gets
   those of a supervised one. The columns step, tokens/s and time left are not among them. */
const Column *table_columns(const char *program);

enum { MOST_COLUMNS = 16 };

/* A table as it is laid out for a screen. */
typedef struct {
    const Column *column[MOST_COLUMNS];
    int n;
    int step;  // columns of the screen for the number of the step
} Table;

/* The columns of a program that fit into `width` columns of a screen, with steps up to `steps`.
   without: figures that this run cannot have, " a b ", each after a blank and before one; a column
   that has no other is left out. */
Table table_layout(const char *program, int steps, int width, const char *without);
/* Appends the two lines of the heading, without the end of the second. */
void table_heading(const Table *t, Str *out);
/* Appends a row. label: its first column; value (n): the numbers of the columns; rate: tokens/s;
   left: the seconds that are left. NAN: a number that does not exist, "-" in a row of training and
   nothing in one that is held out. */
void table_row(const Table *t, const char *label, const double *value, double rate, double left,
               bool held_out, Str *out);
/* Appends a number in at most `width` columns, at least 6: with fewer digits where not all fit. */
void table_number(Str *out, Form form, int width, double x);
/* Compares two numbers as they are printed with so many decimals: 1, 0 or -1, as a is larger than,
   looks like, or is smaller than b. */
int compare_printed(double a, double b, int decimals);
/* Appends a time: "40 s", "12 min", "2 h 05 min". */
void add_duration(Str *out, double seconds);
/* Prints the columns of a program and what they mean. */
void table_print_legend(const char *program);

#endif
