/*
 * check_readme.c - that what README.md quotes is so: lines of code, messages, flags, pictures.
 *
 * Marks that nobody sees on the page say what a block of it is:
 *
 *     <!-- sft.c -->               each line of the block stands in sft.c, word for word
 *     <!-- printed: COMMAND -->    COMMAND prints the block and ends with an error. It runs in a
 * directory with a few files (files below), $ROOT being the repository and $BUILD the programs.
 * Numbers may differ: they are the machine's.
 */
#include "program.h"

#include <check.h>
#include <ctype.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char work[64] = "/tmp/check_readme.XXXXXX", root[PATH_MAX / 2];
static char *readme;

/* A whole text file, to be freed; ends the test program when it cannot be read. */
static char *slurp(const char *path) {
    struct stat s;
    FILE *f = fopen(path, "r");
    char *text = f && !fstat(fileno(f), &s) ? (char *)calloc(1, (size_t)s.st_size + 1) : NULL;
    if (!text || fread(text, 1, (size_t)s.st_size, f) != (size_t)s.st_size) {
        perror(path);
        exit(1);
    }
    fclose(f);
    return text;
}

/* The block behind a mark: its indented lines, without indentation, n of them. To be freed with
 * free(line[0]) if n. */
enum { MOST = 8 };
static int block(const char *mark, char *line[MOST]) {
    const char *p = strchr(mark, '\n');
    int n = 0;
    while (p && p[1] == '\n') p++;
    while (p && !strncmp(p + 1, "    ", 4) && n < MOST) {
        const char *from = p + 1 + strspn(p + 1, " ");
        p = strchr(from, '\n');
        line[n++] = strndup(from, p ? (size_t)(p - from) : strlen(from));
    }
    return n;
}

/* Is this a part of text, however the white space of either is laid out? */
static bool has_line(const char *text, const char *line) {
    for (const char *from = text; *from; from++) {
        const char *p = from, *q = line;
        while (*q && (isspace((unsigned char)*q) || isspace((unsigned char)*p) || *p == *q)) {
            const bool blank = isspace((unsigned char)*q);
            if (blank || *p == *q) q++;
            if (!blank) p++;
        }
        if (!*q) return true;
    }
    return false;
}

START_TEST(the_code_it_quotes_stands_there) {
    static const char *const stages[] = {"sft.c",    "full_ft.c", "lora.c",          "adapter.c",
                                         "reward.c", "ppo.c",     "constitutional.c"};
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        char mark[64], *line[MOST];
        snprintf(mark, sizeof mark, "<!-- %s -->", stages[i]);
        const char *at = strstr(readme, mark);
        ck_assert_msg(at != NULL, "README.md quotes nothing of %s", stages[i]);
        const int n = block(at, line);
        ck_assert_msg(n == 3, "%d lines of %s", n, stages[i]);
        char *text = slurp(stages[i]);
        for (int k = 0; k < n; k++) {
            ck_assert_msg(has_line(text, line[k]), "README.md quotes, and %s does not have: %s",
                          stages[i], line[k]);
            free(line[k]);
        }
        free(text);
    }
}
END_TEST

/* text with # for every number, in place. */
static char *without_numbers(char *text) {
    char *to = text;
    for (const char *p = text; *p;) {
        const char *q = p + (*p == '-');
        if (isdigit((unsigned char)*q)) {
            while (isdigit((unsigned char)*q) ||
                   ((*q == '.' || *q == 'e' || *q == '-' || *q == '+') &&
                    isdigit((unsigned char)q[1])) ||
                   (*q == 'e' && (q[1] == '-' || q[1] == '+') && isdigit((unsigned char)q[2])))
                q++;
        } else if (!strncmp(q, "nan", 3) || !strncmp(q, "inf", 3)) {
            q += 3;
        } else {
            *to++ = *p++;
            continue;
        }
        *to++ = '#';
        p = q;
    }
    *to = 0;
    return text;
}

static void write_file(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", work, name);
    FILE *f = fopen(path, "w");
    ck_assert(f && fputs(text, f) >= 0 && !fclose(f));
}

START_TEST(the_messages_it_quotes_are_printed) {
    // files
    ck_assert_int_eq(shell("cd %s && ln -s %s/test test && mkdir -p models/gpt2 && cp "
                           "test/tiny/config.json models/gpt2/ && cp test/tiny/sft.jsonl my.jsonl",
                           work, root),
                     0);
    write_file("fields.jsonl", "{\"질문\": \"안녕\", \"답변\": \"안녕하세요\"}\n");
    write_file("array.json", "[{\"instruction\": \"a\",\n  \"output\": \"b\"}]\n");
    ck_assert_int_eq(shell("cd %s && $BUILD/sft --model test/tiny --data my.jsonl --max_steps 1 "
                           "--eval_samples 0 --output tuned >/dev/null",
                           work),
                     0);
    int messages = 0;
    const char *mark = "<!-- printed: ";
    for (const char *at = readme; (at = strstr(at, mark)); messages++) {
        char command[1024], path[128], *line[MOST];
        at += strlen(mark);
        const char *end = strstr(at, " -->");
        ck_assert(end && (size_t)(end - at) < sizeof command);
        snprintf(command, sizeof command, "%.*s", (int)(end - at), at);
        const int n = block(end, line),
                  status = shell("cd %s && { %s; } >said 2>&1", work, command);
        snprintf(path, sizeof path, "%s/said", work);
        char *said = slurp(path);
        ck_assert_msg(status == 1 || status == 2, "%s: ends with %d\n%s", command, status, said);
        ck_assert_msg(n == 1, "%s: %d lines of message", command, n);
        ck_assert_msg(strstr(without_numbers(said), without_numbers(line[0])) != NULL,
                      "%s\nREADME.md: %s\nprinted: %s", command, line[0], said);
        free(line[0]);
        free(said);
    }
    ck_assert_int_ge(messages, 10);
}
END_TEST

START_TEST(the_flags_it_names_exist) {
    ck_assert_int_eq(shell("for p in sft full_ft lora adapter reward ppo constitutional; do "
                           "$BUILD/$p --help; done >%s/help",
                           work),
                     0);
    char path[128];
    snprintf(path, sizeof path, "%s/help", work);
    char *help = slurp(path);
    int flags = 0;
    static const char others[] = " --only --threads --quick --table ";  // of bench and plots.sh
    for (const char *p = readme; (p = strstr(p, "--")); p++) {
        size_t n = 2;
        while (islower((unsigned char)p[n]) || isdigit((unsigned char)p[n]) || p[n] == '_') n++;
        if (n == 2 || (p > readme && p[-1] == '-')) continue;
        char flag[64], other[68];
        snprintf(flag, sizeof flag, "%.*s", (int)n, p);
        snprintf(other, sizeof other, " %s ", flag);
        flags++;
        if (strstr(others, other) || !strcmp(flag, "--help") || !strcmp(flag, "--batch_size"))
            continue;
        bool found = false;
        for (const char *q = help; !found && (q = strstr(q, flag)); q += n)
            found = !islower((unsigned char)q[n]) && !isdigit((unsigned char)q[n]) && q[n] != '_';
        ck_assert_msg(found, "README.md names %s, which no program has", flag);
    }
    ck_assert_int_ge(flags, 50);
    free(help);
}
END_TEST

START_TEST(the_files_it_shows_are_there_and_small) {
    int pictures = 0;
    for (const char *p = readme; (p = strstr(p, "](test/")); pictures++) {
        char path[128];
        p += 2;
        snprintf(path, sizeof path, "%.*s", (int)strcspn(p, ")"), p);
        struct stat s;
        ck_assert_msg(!stat(path, &s) && s.st_size > 1000 && s.st_size < 40000, "%s", path);
    }
    ck_assert_int_ge(pictures, 3);
}
END_TEST

int main(void) {
    char there[PATH_MAX];
    if (!mkdtemp(work) || !getcwd(root, sizeof root) || !realpath(build(), there)) return 1;
    setenv("ROOT", root, 1);
    setenv("BUILD", there, 1);
    setenv("OMP_NUM_THREADS", "2", 1);  // a message tells the number of threads
    readme = slurp("README.md");
    const TTest *const tests[] = {
        the_code_it_quotes_stands_there,
        the_messages_it_quotes_are_printed,
        the_flags_it_names_exist,
        the_files_it_shows_are_there_and_small,
    };
    int failed = run_tests("readme", NULL, tests, sizeof tests / sizeof *tests);
    shell("rm -rf %s", work);
    free(readme);
    return failed != 0;
}
