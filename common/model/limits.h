/*
 * limits.h - how much memory this process may still take.
 */
#ifndef POSTTRAIN_LIMITS_H
#define POSTTRAIN_LIMITS_H

#include <stddef.h>

/* The bytes of memory that are free for this process: the least of what the machine has
   (MemAvailable), what the memory limits of its control groups leave (version 1 and 2, its own and
   those above it; pages of files that can be dropped count as free), and what RLIMIT_AS leaves.
   SIZE_MAX where nothing is known. root: where /proc and /sys are, "" for those of the system. */
size_t memory_left(const char *root);

/* A number of kB from the first line of a file that fits this scanf format, in bytes; 0 where no
   line does. */
size_t kilobytes_in(const char *path, const char *form);

#endif
