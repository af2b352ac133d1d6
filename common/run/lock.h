/*
 * lock.h - what a run writes belongs to this run alone: its directories and the files of its flags.
 */
#ifndef POSTTRAIN_LOCK_H
#define POSTTRAIN_LOCK_H

#include "util.h"

/* Keeps the directory of a flag for this process until it ends, or until lock_release. A directory
   that is missing is made; if it is still empty at the end it is removed again. -1 with e filled:
   it cannot be made or opened, or another process keeps it, which e names; it is waited for about a
   second, because a process that was killed has its locks a moment longer. On a file system without
   locks a note says so, and the result is 0. A second call does nothing. */
int lock_directory(const char *flag, const char *dir, Error *e);
/* The same for a directory in which the flag's file or directory is a part, such as best/. It is
   kept together with other processes that share it, and from those that want it alone. */
int lock_share(const char *flag, const char *dir, Error *e);
/* The same for a file. A pipe or a device is not kept. */
int lock_file(const char *flag, const char *path, Error *e);
/* Is the directory or file kept for this process alone, by a lock and not only by a note? Then no
   other process that keeps it is alive. */
bool lock_holds(const char *path);
/* Is the directory that is kept for a flag still the one at its path? -1 with e filled: it was
   moved or removed. *now, to be freed: where it is now, or NULL where it is no more. */
int lock_check(const char *flag, char **now, Error *e);
void lock_release(void);
/* Removes what was made here and is still empty. For a signal handler that ends the program. */
void lock_abandon(void);

#endif
