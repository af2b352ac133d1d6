/*
 * run_files.h - for the tests of common/run: a directory for each test, processes of their own, and
 * what was written to stdout.
 */
#ifndef POSTTRAIN_TEST_RUN_FILES_H
#define POSTTRAIN_TEST_RUN_FILES_H

#include "util.h"

#undef fail  // check.h has a macro of this name
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- a directory for each test, and files in it ---------------------------------------------- */

static char directory[64];

/* The path of a file in it. The last eight paths stay valid. */
static inline const char *at(const char *name) {
    static char path[8][512];
    static int turn;
    char *p = path[turn++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", directory, name);
    return p;
}

static inline void write_text(const char *name, const char *text) {
    FILE *f = fopen(at(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(text, 1, strlen(text), f), strlen(text));
    ck_assert_int_eq(fclose(f), 0);
}

/* The bytes of a file, to be freed. */
static inline Str bytes_of(const char *name) {
    Str s = {0};
    Error e;
    if (read_file(at(name), 1 << 24, &s, &e)) ck_abort_msg("%s", e.text);
    return s;
}

static inline bool exists(const char *name) { return !access(at(name), F_OK); }

static inline void assert_same_file(const char *a, const char *b) {
    Str x = bytes_of(a), y = bytes_of(b);
    ck_assert_msg(x.n == y.n && !memcmp(x.s, y.s, x.n), "%s and %s differ", a, b);
    free(x.s);
    free(y.s);
}

/* How many entries of a directory have names that contain `part`. */
static inline int count_entries(const char *name, const char *part) {
    DIR *d = opendir(at(name));
    ck_assert_ptr_nonnull(d);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(d));)
        n += *entry->d_name != '.' && strstr(entry->d_name, part);
    closedir(d);
    return n;
}

static inline void make_directory(void) {
    strcpy(directory, "/tmp/check_run.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
}

static inline void remove_directory(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    ck_assert_int_eq(system(command), 0);
}

/* ---- command lines --------------------------------------------------------------------------- */

typedef struct {
    char text[2048], *argv[64];
    int argc;
} Words;

/* Splits words at blanks. "_" becomes an empty argument. */
static inline void split_words(Words *w, const char *program, const char *words) {
    ck_assert_uint_lt(strlen(words), sizeof w->text);
    strcpy(w->text, words);
    w->argc = 0;
    w->argv[w->argc++] = (char *)program;
    for (char *p = strtok(w->text, " "); p; p = strtok(NULL, " "))
        w->argv[w->argc++] = strcmp(p, "_") ? p : (char *)"";
    w->argv[w->argc] = NULL;
}

/* ---- processes ------------------------------------------------------------------------------- */

typedef int Main(const char *program, int argc, char **argv);

static Str said;       // stdout and stderr of the last process or command
static bool ignoring;  // start processes with SIGINT ignored, as nohup and `command &` do

/* Waits for a process and takes what it writes into a pipe. Returns waitpid's status. */
static inline int hear_child(pid_t child, int from) {
    char block[4096];
    said.n = 0;
    str_add(&said, "", 0);
    for (ssize_t n; (n = read(from, block, sizeof block)) > 0;) str_add(&said, block, (size_t)n);
    close(from);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return status;
}

/* Starts a process whose stdout and stderr are a pipe, not a file: a limit on the size of files
   must not cost its messages. In the child it returns 0, in this process the child's number, and
   where to read. */
static inline pid_t start(int *from) {
    int pair[2];
    ck_assert_int_eq(pipe(pair), 0);
    fflush(stdout);
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (!child) {
        dup2(pair[1], STDOUT_FILENO);
        dup2(pair[1], STDERR_FILENO);
        close(pair[0]);
    }
    close(pair[1]);
    *from = pair[0];
    return child;
}

/* Runs main with these words as a process. Its exit status, or minus the signal that ended it. */
static inline int run_process(Main *main, const char *program, const char *words) {
    Words w;
    int from;
    split_words(&w, program, words);
    const pid_t child = start(&from);
    if (!child) {
        signal(SIGINT, ignoring ? SIG_IGN : SIG_DFL);
        signal(SIGXFSZ, SIG_IGN);  // a full disk is an error that write() returns, not a signal
        exit(main(program, w.argc, w.argv));
    }
    const int status = hear_child(child, from);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* Takes what a command of the shell wrote to the file `said`. */
static inline void read_said(void) {
    free(said.s);
    said = bytes_of("said");
}

static inline void assert_said(const char *text) {
    ck_assert_msg(strstr(said.s, text) != NULL, "expected \"%s\" in:\n%s", text, said.s);
}

static inline void assert_not_said(const char *text) {
    ck_assert_msg(!strstr(said.s, text), "did not expect \"%s\" in:\n%s", text, said.s);
}

/* ---- what this process writes to stdout ------------------------------------------------------ */

static int real_stdout;

/* From here on stdout is the file `name`. */
static inline void begin_capture(const char *name) {
    fflush(stdout);
    real_stdout = dup(STDOUT_FILENO);
    const int fd = open(at(name), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    ck_assert_int_ge(fd, 0);
    dup2(fd, STDOUT_FILENO);
    close(fd);
}

static inline void end_capture(void) {
    fflush(stdout);
    dup2(real_stdout, STDOUT_FILENO);
    close(real_stdout);
}

/* ---- suites ---------------------------------------------------------------------------------- */

static inline void add_tests(Suite *suite, const char *name, void (*setup)(void),
                             const TTest *const *test, int n) {
    TCase *c = tcase_create(name);
    tcase_set_timeout(c, 300);
    tcase_add_checked_fixture(c, setup, remove_directory);
    for (int i = 0; i < n; i++) tcase_add_test(c, test[i]);
    suite_add_tcase(suite, c);
}

/* Runs a suite and returns the exit status of its program. */
static inline int finish_suite(Suite *suite) {
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}

#endif
