/*
 * program.h - a stage's program as people run it, from a test.
 */
#ifndef POSTTRAIN_TEST_PROGRAM_H
#define POSTTRAIN_TEST_PROGRAM_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

/* Runs the shell command and returns its exit status, -1 when a signal ended it. */
__attribute__((format(printf, 1, 2))) static inline int shell(const char *format, ...) {
    char command[4096];
    va_list list;
    va_start(list, format);
    vsnprintf(command, sizeof command, format, list);
    va_end(list);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The directory of the programs under test: the Makefile says which build. */
static inline const char *build(void) { return getenv("BUILD") ? getenv("BUILD") : ".build/gcc"; }

#endif
