/*
 * foreign.h - what a data file is that is not JSONL in UTF-8, and the command that makes it so.
 */
#ifndef POSTTRAIN_FOREIGN_H
#define POSTTRAIN_FOREIGN_H

#include "util.h"

/* The first bytes of a file, n of at most a few thousand. -1 with e filled if they are those of a
   format that is not text in UTF-8: UTF-16, gzip, Parquet, ... The message names the format and a
   command that converts the file. 0: it may be JSONL. */
int foreign_check(const char *path, const char *head, size_t n, Error *e);
/* For a file in UTF-8 or another encoding whose lines are not JSON objects: appends to e what the
   first bytes look like (CSV, Python's dictionaries, plain text) and the command that converts the
   file, or nothing. */
void foreign_hint(const char *path, const char *head, size_t n, Error *e);
/* Appends to e that a line is not UTF-8, and the command for the encoding that its bytes suggest:
   CP949 if each byte above 127 is one of a pair, else Windows-1252. */
void foreign_encoding(const char *path, const char *line, size_t n, Error *e);

/* Appends to a message about a path that cannot be read as a file what it is: an address, a data
   set of the hub, or a directory that datasets saved; and the command that makes it a file. */
void foreign_path(const char *path, Error *e);

#endif
