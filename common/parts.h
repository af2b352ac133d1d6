/*
 * parts.h - work that processes share out: each computes a part of n items and gets the results of
 * all. A process that is alone computes all of them.
 */
#ifndef POSTTRAIN_PARTS_H
#define POSTTRAIN_PARTS_H

#include <stddef.h>

/* The items of this process are first to end - 1. */
int part_first(int n);
int part_end(int n);
/* The items of process r are first to the next one's first - 1. */
int part_of(int n, int r);
/* The most items of any process. */
int part_most(int n);
/* Each process has filled in the rows of its items, and gets the others. Item i has the rows
   start[i] to start[i+1] - 1, of size bytes each; start NULL: one row. */
void parts_collect(void *rows, size_t size, int n, const int *start);

#endif
