/*
 * check_readme.c - README.md, common/README.md and test/README.md say what is true: the code they
 * quote, the messages and the output they show, the flags they name, the files they link to.
 *
 * HTML comments, which a reader of the page does not see, say what the indented block after them
 * is:
 *
 *     <!-- FILE.c -->              consecutive lines of FILE.c; white space may differ
 *     <!-- printed: COMMAND -->    COMMAND fails and prints the block. It runs in a directory with
 *                                  the few files made below; $ROOT is the repository and $BUILD the
 *                                  directory of the programs. White space and numbers may differ.
 *     <!-- output of sft -->       lines of ./sft's output, except for the lines "after"
 *     <!-- presets -->             the presets of ./ppo --help, word for word, up to the next
 * comment
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

/* The pages, each with the directory that its links start from. */
static struct {
    const char *path, *directory;
    char *text;
} pages[] = {
    {"README.md", ".", NULL},
    {"common/README.md", "common", NULL},
    {"test/README.md", "test", NULL},
};
enum { PAGES = sizeof pages / sizeof *pages };

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

/* The block after a mark: its indented lines without their indentation, n of them. Free each. */
enum { MOST = 16 };
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

/* The lines of a block as one text, with a blank between them. Frees the lines. */
static char *joined(char **line, int n) {
    size_t length = 1;
    for (int i = 0; i < n; i++) length += strlen(line[i]) + 1;
    char *text = (char *)calloc(1, length);
    for (int i = 0; i < n; i++) {
        if (i) strcat(text, " ");
        strcat(text, line[i]);
        free(line[i]);
    }
    return text;
}

/* Where is this in text, however the white space of either is laid out? NULL: nowhere. */
static const char *find(const char *text, const char *what) {
    for (const char *from = text; *from; from++) {
        const char *p = from, *q = what;
        while (*q && (isspace((unsigned char)*q) || isspace((unsigned char)*p) || *p == *q)) {
            const bool blank = isspace((unsigned char)*q);
            if (blank || *p == *q) q++;
            if (!blank) p++;
        }
        if (!*q) return from;
    }
    return NULL;
}

/* Does this line, n characters long, end a statement, a block or a comment? */
static bool is_end(const char *line, size_t n) {
    for (size_t i = 0; i + 1 < n; i++)
        if (line[i] == '/' && line[i + 1] == '/') n = i;
    while (n && isspace((unsigned char)line[n - 1])) n--;
    return !n || strchr(";{}/", line[n - 1]);
}

/* Is the quote at this place of a file made of whole statements? */
static bool is_whole(const char *text, const char *at, const char *last) {
    while (isspace((unsigned char)*at)) at++;
    while (at > text && at[-1] != '\n' && isspace((unsigned char)at[-1])) at--;
    if (at > text && at[-1] != '\n') return false;
    const char *end = at > text ? at - 1 : text, *begin = end;
    while (begin > text && begin[-1] != '\n') begin--;
    return is_end(begin, (size_t)(end - begin)) && is_end(last, strlen(last));
}

START_TEST(the_code_they_quote_exists) {
    static const char *const files[] = {
        "sft.c",    "full_ft.c", "lora.c",           "adapter.c",
        "reward.c", "ppo.c",     "constitutional.c", "common/model/loss.c"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char mark[64], *line[MOST], *text = slurp(files[i]);
        int quotes = 0;
        snprintf(mark, sizeof mark, "<!-- %s -->", files[i]);
        for (int k = 0; k < PAGES; k++)
            for (const char *at = pages[k].text; (at = strstr(at, mark)); at++, quotes++) {
                const int n = block(at, line);
                ck_assert_msg(n > 0 && n < MOST, "%d lines of %s", n, files[i]);
                char *last = strdup(line[n - 1]), *quote = joined(line, n);
                const char *there = find(text, quote);
                ck_assert_msg(there != NULL, "%s quotes what %s does not have: %s", pages[k].path,
                              files[i], quote);
                ck_assert_msg(is_whole(text, there, last), "%s quotes half a statement of %s: %s",
                              pages[k].path, files[i], quote);
                free(quote);
                free(last);
            }
        ck_assert_msg(quotes > 0, "no page quotes %s", files[i]);
        free(text);
    }
}
END_TEST

/* PPO's clipped surrogate is on the first screen. */
START_TEST(the_surrogate_comes_first) {
    const char *at = strstr(pages[0].text, "<!-- ppo.c -->");
    char *line[MOST];
    int lines = 0;
    ck_assert(at != NULL);
    for (const char *p = pages[0].text; p < at; p++) lines += *p == '\n';
    ck_assert_int_lt(lines, 40);
    ck_assert_int_eq(block(at, line), 4);
    char *quote = joined(line, 4);
    ck_assert(strstr(quote, "clipped") != NULL);
    free(quote);
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

START_TEST(the_messages_they_quote_are_printed) {
    // files
    ck_assert_int_eq(shell("cd %s && ln -s %s/test test && mkdir -p models/gpt2 && cp "
                           "test/tiny/config.json models/gpt2/ && cp test/tiny/sft.jsonl my.jsonl",
                           work, root),
                     0);
    write_file("fields.jsonl", "{\"질문\": \"안녕\", \"답변\": \"안녕하세요\"}\n");
    write_file("korean.jsonl", "{\"instruction\": \"\xB4\xE4\", \"output\": \"b\"}\n");
    write_file("table.csv", "instruction,output\na,b\n");
    ck_assert_int_eq(shell("cd %s && $BUILD/sft --model test/tiny --data my.jsonl --max_steps 1 "
                           "--eval_samples 0 --output tuned >/dev/null",
                           work),
                     0);
    int messages = 0;
    const char *mark = "<!-- printed: ";
    for (int k = 0; k < PAGES; k++)
        for (const char *at = pages[k].text; (at = strstr(at, mark)); messages++) {
            char command[1024], path[128], *line[MOST];
            at += strlen(mark);
            const char *end = strstr(at, " -->");
            ck_assert(end && (size_t)(end - at) < sizeof command);
            snprintf(command, sizeof command, "%.*s", (int)(end - at), at);
            const int n = block(end, line),
                      status = shell("cd %s && { %s; } >said 2>&1", work, command);
            snprintf(path, sizeof path, "%s/said", work);
            char *said = slurp(path), *message = joined(line, n);
            ck_assert_msg(status == 1 || status == 2, "%s: ends with %d\n%s", command, status,
                          said);
            ck_assert_msg(n > 0 && n < MOST, "%s: %d lines of message", command, n);
            ck_assert_msg(find(without_numbers(said), without_numbers(message)) != NULL,
                          "%s\n%s: %s\nprinted: %s", command, pages[k].path, message, said);
            free(message);
            free(said);
        }
    ck_assert_int_ge(messages, 10);
}
END_TEST

/* Before training, with one step: the lines "after" are left out, numbers may differ. */
START_TEST(the_output_it_shows_is_printed) {
    char path[128], *line[MOST];
    const char *at = strstr(pages[0].text, "<!-- output of sft -->");
    ck_assert(at != NULL);
    const int n = block(at, line);
    ck_assert_int_ge(n, 8);
    ck_assert_int_eq(shell("$BUILD/sft --max_steps 1 >%s/said 2>&1", work), 0);
    snprintf(path, sizeof path, "%s/said", work);
    char *said = slurp(path);
    without_numbers(said);
    for (int i = 0; i < n; i++) {
        if (strncmp(line[i], "after", 5))
            ck_assert_msg(find(said, without_numbers(line[i])) != NULL,
                          "README.md shows: %s\nprinted: %s", line[i], said);
        free(line[i]);
    }
    free(said);
}
END_TEST

/* The presets in README.md are the text of ./ppo --help; only its indentation may differ. */
START_TEST(the_presets_are_those_of_the_program) {
    char path[128];
    char *from = strstr(pages[0].text, "<!-- presets -->");
    ck_assert(from != NULL);
    from = strchr(from, '\n');
    const char *to = strstr(from, "<!-- /presets -->");
    ck_assert(to != NULL);
    char *shown = strndup(from, (size_t)(to - from));
    ck_assert_int_eq(shell("$BUILD/ppo --help >%s/help", work), 0);
    snprintf(path, sizeof path, "%s/help", work);
    char *help = slurp(path), *presets = strstr(help, "\n  --preset lmhp:");
    ck_assert(presets != NULL);
    char *end = strstr(presets, "\n\n");
    ck_assert(end != NULL);
    *end = 0;
    const char *p = shown, *q = presets;
    for (;; p++, q++) {
        p += strspn(p, " \n");
        q += strspn(q, " \n");
        if (*p != *q) ck_abort_msg("README.md: \"%.40s\", ./ppo --help: \"%.40s\"", p, q);
        if (!*p) break;
    }
    free(shown);
    free(help);
}
END_TEST

START_TEST(the_flags_they_name_exist) {
    ck_assert_int_eq(shell("for p in sft full_ft lora adapter reward ppo constitutional; do "
                           "$BUILD/$p --help; done >%s/help",
                           work),
                     0);
    char path[128];
    snprintf(path, sizeof path, "%s/help", work);
    char *help = slurp(path);
    int flags = 0;
    // of bench, peers.py, plots.sh and planted.sh
    static const char others[] = " --only --threads --quick --table --dry ";
    for (int k = 0; k < PAGES; k++)
        for (const char *p = pages[k].text; (p = strstr(p, "--")); p++) {
            size_t n = 2;
            while (islower((unsigned char)p[n]) || isdigit((unsigned char)p[n]) || p[n] == '_') n++;
            if (n == 2 || (p > pages[k].text && p[-1] == '-')) continue;
            char flag[64], other[68];
            snprintf(flag, sizeof flag, "%.*s", (int)n, p);
            snprintf(other, sizeof other, " %s ", flag);
            flags++;
            if (strstr(others, other) || !strcmp(flag, "--help") || !strcmp(flag, "--batch_size"))
                continue;
            bool found = false;
            for (const char *q = help; !found && (q = strstr(q, flag)); q += n)
                found =
                    !islower((unsigned char)q[n]) && !isdigit((unsigned char)q[n]) && q[n] != '_';
            ck_assert_msg(found, "%s names %s, which no program has", pages[k].path, flag);
        }
    ck_assert_int_ge(flags, 50);
    free(help);
}
END_TEST

/* Links to files, relative to the page; pictures among them are small. */
START_TEST(the_files_they_show_are_there_and_small) {
    int pictures = 0;
    for (int k = 0; k < PAGES; k++)
        for (const char *p = pages[k].text; (p = strstr(p, "]("));) {
            char path[PATH_MAX];
            p += 2;
            if (!strncmp(p, "http", 4)) continue;
            const int n = (int)strcspn(p, ")");
            snprintf(path, sizeof path, "%s/%.*s", pages[k].directory, n, p);
            struct stat s;
            ck_assert_msg(!stat(path, &s), "%s links to %s", pages[k].path, path);
            if (n < 4 || strncmp(p + n - 4, ".svg", 4)) continue;
            ck_assert_msg(s.st_size > 1000 && s.st_size < 65536, "%s", path);
            pictures++;
        }
    ck_assert_int_ge(pictures, 4);
}
END_TEST

START_TEST(the_first_page_is_short) {
    int lines = 0;
    for (const char *p = pages[0].text; *p; p++) lines += *p == '\n';
    ck_assert_int_le(lines, 250);
    for (int k = 0; k < PAGES; k++) {
        int columns = 0;
        for (const char *p = pages[k].text; *p; p++) {
            const bool begins = ((unsigned char)*p & 0xC0) != 0x80;  // a character of UTF-8
            columns = *p == '\n' ? 0 : columns + begins;
            ck_assert_msg(columns <= 100, "%s: more than 100 columns, before: %.60s", pages[k].path,
                          p);
        }
    }
}
END_TEST

int main(void) {
    setenv("POSTTRAIN_CPU", "avx2", 1);  // the messages name the instructions in use
    char there[PATH_MAX];
    if (!mkdtemp(work) || !getcwd(root, sizeof root) || !realpath(build(), there)) return 1;
    setenv("ROOT", root, 1);
    setenv("BUILD", there, 1);
    setenv("OMP_NUM_THREADS", "2", 1);  // a message contains the number of threads
    for (int k = 0; k < PAGES; k++) pages[k].text = slurp(pages[k].path);
    const TTest *const tests[] = {
        the_code_they_quote_exists,
        the_surrogate_comes_first,
        the_messages_they_quote_are_printed,
        the_output_it_shows_is_printed,
        the_presets_are_those_of_the_program,
        the_flags_they_name_exist,
        the_files_they_show_are_there_and_small,
        the_first_page_is_short,
    };
    int failed = run_tests("readme", NULL, tests, sizeof tests / sizeof *tests);
    shell("rm -rf %s", work);
    for (int k = 0; k < PAGES; k++) free(pages[k].text);
    return failed != 0;
}
