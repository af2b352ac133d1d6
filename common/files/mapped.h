/*
 * mapped.h - files that are mapped into memory, and what happens when somebody changes one of them.
 */
#ifndef POSTTRAIN_MAPPED_H
#define POSTTRAIN_MAPPED_H

#include "util.h"

/* Maps a regular file read-only; *bytes is NULL when it is empty. A file that becomes shorter while
   it is mapped ends the program with 1 and a sentence when a missing part is read. Replacing it by
   a rename, as newfile_close does, is safe. 0, or -1 with e filled. */
int map_file(const char *path, const void **bytes, size_t *size, Error *e);
void unmap_file(const void *bytes, size_t size);

/* -1 with e filled if a file that is mapped now has been written to since it was mapped. */
int mapped_check(Error *e);

#endif
