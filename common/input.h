/*
 * input.h - files that are read once, from beginning to end, and what was read: its size and hash.
 *
 * A pipe can be read only once, and a file may change after it was read. So a resumed run compares
 * what was read, and not what a second reading of the file would find.
 */
#ifndef POSTTRAIN_INPUT_H
#define POSTTRAIN_INPUT_H

#include "util.h"

/* Opens a file, a pipe or a terminal, to be read to its end and closed with fclose. It cannot seek.
   NULL with e filled: also for a directory and for a device that has no end. */
FILE *input_open(const char *path, Error *e);
/* What was read of path when it was last opened so, "12 bytes, hash 0123456789abcdef", to be freed.
   NULL: it was never read, or not to its end. */
char *input_read(const char *path);

#endif
