/*
 * program.h - a stage's program as people run it, from a test; and how such tests are run.
 */
#ifndef POSTTRAIN_TEST_PROGRAM_H
#define POSTTRAIN_TEST_PROGRAM_H

#include <check.h>
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

/* Runs the suite in this process, because OpenMP does not survive a fork: how many tests failed. */
static inline int run_suite(Suite *s) {
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_NOFORK);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed;
}

/* Runs the tests as one suite of that name, ten minutes each at most, after setup unless it is
 * NULL: how many failed. */
static inline int run_tests(const char *name, void (*setup)(void), const TTest *const *tests,
                            size_t n) {
    Suite *s = suite_create(name);
    TCase *c = tcase_create(name);
    tcase_set_timeout(c, 600);
    if (setup) tcase_add_unchecked_fixture(c, setup, NULL);
    for (size_t i = 0; i < n; i++) tcase_add_test(c, tests[i]);
    suite_add_tcase(s, c);
    return run_suite(s);
}

#endif
