/*
 * program.h - a stage's program as people run it, from a test; and how such tests are run.
 */
#ifndef POSTTRAIN_TEST_PROGRAM_H
#define POSTTRAIN_TEST_PROGRAM_H

#include <check.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

/* Does this build have a sanitizer with a malloc of its own? valgrind does not run it, and
   faults.so cannot be loaded before it. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#    define SANITIZED true
#elif defined(__has_feature)
#    define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#    define SANITIZED false
#endif

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

/* What this process writes to stdout from hear() to heard(), which returns it to be freed. */
static struct {
    FILE *before;
    char *text;
    size_t n;
} hearing;

static inline void hear(void) {
    hearing.before = stdout;
    stdout = open_memstream(&hearing.text, &hearing.n);
}

static inline char *heard(void) {
    fclose(stdout);
    stdout = hearing.before;
    return hearing.text;
}

/* Runs the suite in this process, because OpenMP does not survive a fork: how many tests failed. On
   a device each test has a process of its own, so that one that ends its process does not end the
   suite. Then this process must not use the device, which does not survive a fork either. */
static inline int run_suite(Suite *s) {
    SRunner *r = srunner_create(s);
#ifdef ON_DEVICE
    srunner_set_fork_status(r, CK_FORK);
#else
    srunner_set_fork_status(r, CK_NOFORK);
#endif
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed;
}

/* The tag of tests that take a minute or more under sanitizers. Those of CI leave them out. */
#define SLOW "slow"

/* Adds the tests as a case of the suite, ten minutes each at most, after setup unless it is NULL;
   tag is SLOW or NULL. */
static inline void add_tagged(Suite *s, const char *name, const char *tag, void (*setup)(void),
                              const TTest *const *tests, size_t n) {
    TCase *c = tcase_create(name);
    if (tag) tcase_set_tags(c, tag);
    tcase_set_timeout(c, 600);
    if (setup) tcase_add_unchecked_fixture(c, setup, NULL);
    for (size_t i = 0; i < n; i++) tcase_add_test(c, tests[i]);
    suite_add_tcase(s, c);
}

/* Runs the tests as one suite of that name: how many failed. */
static inline int run_tests(const char *name, void (*setup)(void), const TTest *const *tests,
                            size_t n) {
    Suite *s = suite_create(name);
    add_tagged(s, name, NULL, setup, tests, n);
    return run_suite(s);
}

#endif
