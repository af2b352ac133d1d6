/*
 * check_util.c - tests of common/util.c: random numbers, growing arrays, paths, files that are
 * written whole or not at all, and the two ways to fail.
 */
#define _GNU_SOURCE  // defines: nftw

#include "util.h"

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#undef fail  // Check's name for something else

/* Under AddressSanitizer a failed allocation must return NULL, as it does without it. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }

static char directory[64];

static const char *at(const char *name) {
    static char path[4][256];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", directory, name);
    return p;
}

static void setup(void) {
    strcpy(directory, "/tmp/check_util.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
}

static int remove_entry(const char *path, const struct stat *found, int type, struct FTW *where) {
    (void)found;
    (void)type;
    (void)where;
    return remove(path);
}

static void teardown(void) { nftw(directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS); }

static int count_entries(void) {
    DIR *d = opendir(directory);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(d));) n += *entry->d_name != '.';
    closedir(d);
    return n;
}

/* ---- random numbers -------------------------------------------------------------------------- */

/* The philox4x32-10 lines of kat_vectors in the Random123 distribution (D. E. Shaw Research):
 * counter, key, result. */
START_TEST(test_philox_known_answers) {
    const struct {
        uint32_t counter[4], key[2], result[4];
    } row[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        Random4 c;
        memcpy(c.v, row[i].counter, sizeof c.v);
        const Random4 r = philox(c, row[i].key[0] | (uint64_t)row[i].key[1] << 32);
        for (int j = 0; j < 4; j++)
            ck_assert_msg(r.v[j] == row[i].result[j], "vector %d, word %d: %08x", i, j, r.v[j]);
    }
}
END_TEST

/* Each argument of random4 selects another stream. */
START_TEST(test_random4_depends_on_everything) {
    const Random4 r = random4(1, RANDOM_INIT, 2, 3, 4, 5);
    const Random4 other[] = {
        random4(2, RANDOM_INIT, 2, 3, 4, 5),
        random4(1ull << 40 | 1, RANDOM_INIT, 2, 3, 4, 5),  // the upper half of a seed counts
        random4(1, RANDOM_SHUFFLE, 2, 3, 4, 5),
        random4(1, RANDOM_INIT, 3, 3, 4, 5),
        random4(1, RANDOM_INIT, 2, 2, 4, 5),
        random4(1, RANDOM_INIT, 2, 3, 5, 5),
        random4(1, RANDOM_INIT, 2, 3, 4, 4),
        random4(1, RANDOM_INIT, 3, 2, 4, 5),  // and so does which is which
        random4(1, RANDOM_INIT, 2, 4, 3, 5)};
    /* the third known answer again: which word of the counter is which is part of the definition */
    const Random4 pi =
        random4(0x299f31d0a4093822u, 0, 0x03707344, 0x13198a2e, 0x85a308d3, 0x243f6a88);
    ck_assert_uint_eq(pi.v[0], 0xd16cfe09);
    ck_assert_uint_eq(pi.v[3], 0x24126ea1);
    const Random4 again = random4(1, RANDOM_INIT, 2, 3, 4, 5);
    ck_assert_mem_eq(&r, &again, sizeof r);
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        ck_assert_msg(memcmp(&r, &other[i], sizeof r) != 0, "row %zu", i);
    ck_assert(random_key(7, RANDOM_INIT) != random_key(7, RANDOM_DATA));
    /* the layers of a dropout are told apart by bits 8 and up of the purpose */
    ck_assert(random_key(7, RANDOM_DROPOUT_ATTN) != random_key(7, RANDOM_DROPOUT_ATTN | 1 << 8));
}
END_TEST

#define DRAWS 400000

/* The moments of n draws differ from the true ones by about s / sqrt(n), where s is the deviation
   of one term. Five times that is allowed: a good generator exceeds it for one seed in two million,
   and the seed is fixed. */
#define ck_near(got, truth, deviation)                                   \
    ck_assert_msg(fabs((got) - (truth)) < 5 * (deviation) / sqrt(DRAWS), \
                  #got " is %.6f, expected %.6f", (got), (double)(truth))

START_TEST(test_uniform) {
    ck_assert_float_eq(random_uniform(0), 0);
    ck_assert_float_eq(random_uniform(255), 0);
    ck_assert_float_eq(random_uniform(256), 0x1p-24f);
    ck_assert_float_eq(random_uniform(0x80000000u), 0.5f);
    ck_assert(random_uniform(0xffffffffu) < 1);
    ck_assert_float_eq(random_uniform(0xffffffffu), 1 - 0x1p-24f);
    double sum = 0, squares = 0, products = 0, before = 0.5;
    int bin[16] = {0};
    for (uint32_t i = 0; i < DRAWS / 4; i++) {
        const Random4 r = random4(42, RANDOM_DATA, 0, 0, 0, i);
        for (int j = 0; j < 4; j++) {
            const double u = random_uniform(r.v[j]);
            ck_assert(u >= 0 && u < 1);
            sum += u;
            squares += u * u;
            products += (u - 0.5) * (before - 0.5);
            before = u;
            bin[(int)(u * 16)]++;
        }
    }
    ck_near(sum / DRAWS, 0.5, sqrt(1 / 12.0));
    ck_near(squares / DRAWS, 1 / 3.0, sqrt(4 / 45.0));
    ck_near(products / DRAWS, 0, 1 / 12.0);  // neighbours know nothing of each other
    for (int i = 0; i < 16; i++)
        ck_near((double)bin[i] / DRAWS, 1 / 16.0, sqrt(1 / 16.0 * 15 / 16));
}
END_TEST

START_TEST(test_normal) {
    ck_assert(isfinite(random_normal(0, 0)) && isfinite(random_normal(0xffffffffu, 0xffffffffu)));
    ck_assert_float_eq(random_normal(0xffffffffu, 12345), 0);  // u = 1: the innermost ring
    /* by hand: u = 1/2, v = 0: sqrt(2 ln 2); v = 1/2: the same, negative */
    ck_assert_float_eq_tol(random_normal(0x7fffffffu, 0), 1.17741002f, 1e-6f);
    ck_assert_float_eq_tol(random_normal(0x7fffffffu, 0x80000000u), -1.17741002f, 1e-6f);
    double sum = 0, squares = 0, cubes = 0, fourths = 0;
    int within[3] = {0};
    for (uint32_t i = 0; i < DRAWS / 2; i++) {
        const Random4 r = random4(42, RANDOM_INIT, 0, 0, 0, i);
        for (int j = 0; j < 4; j += 2) {
            const double x = random_normal(r.v[j], r.v[j + 1]);
            sum += x;
            squares += x * x;
            cubes += x * x * x;
            fourths += x * x * x * x;
            for (int k = 0; k < 3; k++) within[k] += fabs(x) < k + 1;
        }
    }
    ck_near(sum / DRAWS, 0, 1);
    ck_near(squares / DRAWS, 1, sqrt(2));
    ck_near(cubes / DRAWS, 0, sqrt(15));
    ck_near(fourths / DRAWS, 3, sqrt(96));
    const double truth[] = {0.682689492, 0.954499736, 0.997300204};  // erf(k / sqrt 2)
    for (int k = 0; k < 3; k++)
        ck_near((double)within[k] / DRAWS, truth[k], sqrt(truth[k] * (1 - truth[k])));
}
END_TEST

START_TEST(test_permutation) {
    const int sizes[] = {0, 1, 2, 7, 17, 1000};
    for (int s = 0; s < 6; s++) {
        const int n = sizes[s];
        int order[3][1000], seen[1000] = {0};
        for (int epoch = 0; epoch < 2; epoch++)
            random_permutation(order[epoch], n, 42, RANDOM_SHUFFLE, (uint32_t)epoch);
        random_permutation(order[2], n, 43, RANDOM_SHUFFLE, 0);
        for (int i = 0; i < n; i++) {
            ck_assert(order[0][i] >= 0 && order[0][i] < n);
            ck_assert_int_eq(seen[order[0][i]]++, 0);
        }
        if (n < 7) continue;
        ck_assert_int_ne(memcmp(order[0], order[1], (size_t)n * sizeof(int)), 0);  // another epoch
        ck_assert_int_ne(memcmp(order[0], order[2], (size_t)n * sizeof(int)), 0);  // another seed
        random_permutation(order[2], n, 42, RANDOM_SPLIT, 0);
        ck_assert_int_ne(memcmp(order[0], order[2], (size_t)n * sizeof(int)),
                         0);  // another purpose
        random_permutation(order[2], n, 42, RANDOM_SHUFFLE, 0);
        ck_assert_int_eq(memcmp(order[0], order[2], (size_t)n * sizeof(int)), 0);  // the same again
    }
}
END_TEST

/* All 24 orders of 4 elements are equally likely. */
START_TEST(test_permutations_are_even) {
    enum { TRIALS = 48000 };
    int count[256] = {0}, orders = 0;
    for (uint32_t epoch = 0; epoch < TRIALS; epoch++) {
        int o[4];
        random_permutation(o, 4, 42, RANDOM_SHUFFLE, epoch);
        count[o[0] << 6 | o[1] << 4 | o[2] << 2 | o[3]]++;
    }
    for (int i = 0; i < 256; i++) {
        if (!count[i]) continue;
        orders++;  // 2000 each, give or take 44; 5 deviations are allowed, as above
        ck_assert_msg(abs(count[i] - TRIALS / 24) < 5 * 44, "order %03o: %d times", i, count[i]);
    }
    ck_assert_int_eq(orders, 24);
}
END_TEST

/* ---- growing arrays -------------------------------------------------------------------------- */

START_TEST(test_ints_grow) {
    Ints a = {0};
    for (int i = 0; i < 10000; i++) ints_push(&a, i * 7);
    ck_assert_uint_eq(a.n, 10000);
    ck_assert_uint_ge(a.capacity, a.n);
    for (int i = 0; i < 10000; i++) ck_assert_int_eq(a.v[i], i * 7);
    free(a.v);
}
END_TEST

START_TEST(test_str_grows) {
    Str s = {0};
    str_add(&s, "", 0);
    ck_assert_str_eq(s.s, "");
    for (int i = 0; i < 3000; i++) {
        str_add(&s, "a\0b", 3);  // bytes, not a C string
        ck_assert_int_eq(s.s[s.n], 0);
    }
    ck_assert_uint_eq(s.n, 9000);
    for (size_t i = 0; i < s.n; i++) ck_assert_int_eq(s.s[i], "a\0b"[i % 3]);
    free(s.s);

    Str t = {0};
    char expected[20000] = "";
    for (int i = 0, n = 0; i < 2000; i++) {
        str_printf(&t, "%d:%s ", i, "xy");
        n += sprintf(expected + n, "%d:%s ", i, "xy");
    }
    ck_assert_str_eq(t.s, expected);
    ck_assert_uint_eq(t.n, strlen(expected));
    str_printf(&t, "%s", "");  // nothing added, nothing lost
    ck_assert_str_eq(t.s, expected);
    free(t.s);
}
END_TEST

/* ---- files ----------------------------------------------------------------------------------- */

static void put(const char *name, const char *text) {
    FILE *f = fopen(at(name), "wb");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    ck_assert_int_eq(fclose(f), 0);
}

static void assert_content(const char *name, const char *text) {
    Str s = {0};
    Error e;
    if (read_file(at(name), 1000, &s, &e)) ck_abort_msg("%s", e.text);
    ck_assert_str_eq(s.s, text);
    free(s.s);
}

START_TEST(test_new_file_replaces_at_once) {
    NewFile n;
    Error e;
    put("f", "old");
    ck_assert_int_eq(newfile_open(&n, at("missing/f"), &e), -1);
    ck_assert_int_eq(newfile_place(&n, false, NULL), 0);  // it has nothing to release
    ck_assert_int_eq(newfile_open(&n, at("f"), &e), 0);
    fputs("new", n.f);
    fflush(n.f);
    assert_content("f", "old");  // until it is closed
    ck_assert_int_eq(count_entries(), 2);
    ck_assert_int_eq(newfile_close(&n, true, &e), 0);
    assert_content("f", "new");
    ck_assert_int_eq(count_entries(), 1);

    ck_assert_int_eq(newfile_open(&n, at("f"), &e), 0);
    fputs("newer", n.f);
    ck_assert_int_eq(newfile_close(&n, false, &e), 0);  // given up
    assert_content("f", "new");
    ck_assert_int_eq(count_entries(), 1);
}
END_TEST

/* Files of a directory that others may have made. */
START_TEST(test_links_and_pipes_are_not_written_to) {
    FILE *(*const open_as[2])(const char *, Error *) = {append_file, replace_file};
    Error e;
    for (int i = 0; i < 2; i++) {
        put("f", "old");
        ck_assert_int_eq(symlink("f", at("link")) || mkfifo(at("pipe"), 0666) ||
                             mkdir(at("d"), 0777) || symlink("nothing", at("broken")),
                         0);
        const char *const names[] = {"link", "pipe", "d", "broken"};
        for (int k = 0; k < 4; k++) {
            ck_assert_ptr_null(open_as[i](at(names[k]), &e));
            ck_assert_msg(strstr(e.text, "not a regular file; remove it"), "%s", e.text);
        }
        ck_assert_int_ne(access(at("nothing"), F_OK), 0);
        ck_assert_int_eq(link(at("f"), at("second")), 0);
        FILE *f = open_as[i](at("f"), &e);
        ck_assert_ptr_nonnull(f);
        fputs("er", f);
        fclose(f);
        assert_content("f", i ? "er" : "older");
        assert_content("second", i ? "old" : "older");
        ck_assert_int_eq(unlink(at("link")) || unlink(at("pipe")) || rmdir(at("d")) ||
                             unlink(at("broken")) || unlink(at("second")),
                         0);
    }
    ck_assert_ptr_null(append_file(at("no/f"), &e));
    ck_assert(strstr(e.text, "cannot write"));
    // newfile_open puts a file in the place of a pipe
    NewFile n;
    ck_assert_int_eq(mkfifo(at("pipe"), 0666), 0);
    ck_assert_int_eq(newfile_open(&n, at("pipe"), &e), 0);
    fputs("x", n.f);
    ck_assert_int_eq(newfile_close(&n, true, &e), 0);
    assert_content("pipe", "x");
}
END_TEST

/* What a message says to do is about its own reason. */
START_TEST(test_reasons_have_their_own_remedies) {
    Error e;
    NewFile n;
    struct rlimit before;
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    const struct rlimit none = {0, before.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    const int status = newfile_open(&n, at("f"), &e);
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    ck_assert_int_eq(status, -1);
    ck_assert_msg(strstr(e.text, ": Too many open files; raise the limit on open files"), "%s",
                  e.text);
    ck_assert_str_eq(error_remedy(e.error), "do so");  // the text has said what
    ck_assert_int_eq(newfile_open(&n, at("no/f"), &e), -1);
    ck_assert_msg(strstr(e.text, ": No such file or directory; make the directory"), "%s", e.text);
    ck_assert_int_eq(newfile_open_named(&n, "/dev/full", &e), 0);
    fputs("x", n.f);
    ck_assert_int_eq(newfile_close(&n, true, &e), -1);
    ck_assert_msg(strstr(e.text, ": No space left on device; free some space"), "%s", e.text);
    ck_assert_int_eq(mkfifo(at("pipe"), 0666), 0);
    ck_assert_int_eq(newfile_open_named(&n, at("pipe"), &e), -1);  // does not wait
    ck_assert_msg(strstr(e.text, "; start the reader of the pipe first"), "%s", e.text);
    ck_assert_int_eq(fail_errno(&e, EDQUOT, "%s", strerror(EDQUOT)), -1);
    ck_assert_str_eq(error_remedy(e.error), "free some space");
    const int others[] = {EMFILE, ENFILE, EACCES, EROFS, ENOENT, ENOTDIR, EPIPE, EIO, ENOMEM};
    for (int i = 0; i < 9; i++) ck_assert_str_ne(error_remedy(others[i]), error_remedy(ENOSPC));
}
END_TEST

START_TEST(test_lines_have_a_limit) {
    Error e;
    Str line = {0};
    put("f", "four\n12345\n\nend");
    FILE *f = fopen(at("f"), "rb");
    ck_assert_int_eq(read_line(f, 6, &line, &e), 1);
    ck_assert_str_eq(line.s, "four\n");
    ck_assert_int_eq(read_line(f, 6, &line, &e), 1);
    ck_assert_str_eq(line.s, "12345\n");
    ck_assert_int_eq(read_line(f, 6, &line, &e), 1);
    ck_assert_str_eq(line.s, "\n");
    ck_assert_int_eq(read_line(f, 6, &line, &e), 1);
    ck_assert_str_eq(line.s, "end");
    ck_assert_int_eq(read_line(f, 6, &line, &e), 0);
    rewind(f);
    ck_assert_int_eq(read_line(f, 4, &line, &e), -1);
    ck_assert_str_eq(e.text, "a line has more than 4 bytes, the limit");
    fclose(f);
    f = fopen(directory, "rb");  // can be opened, and not read
    ck_assert_int_eq(read_line(f, 4, &line, &e), -1);
    fclose(f);
    free(line.s);
}
END_TEST

/* A limit on the size of a file simulates a full disk: in the middle of many writes, and only at
 * the last flush. */
START_TEST(test_new_file_keeps_the_old_one) {
    const int sizes[] = {200000, 50};
    put("f", "old");
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, limit;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (int i = 0; i < 2; i++) {
        NewFile n;
        Error e = {0};
        ck_assert_int_eq(newfile_open(&n, at("f"), &e), 0);
        limit = before;
        limit.rlim_cur = i ? 10 : 5000;
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
        for (int j = 0; j < sizes[i]; j++) fputc('x', n.f);
        const int status = newfile_close(&n, true, &e);
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
        ck_assert_int_eq(status, -1);
        ck_assert_ptr_nonnull(strstr(e.text, "File too large"));
        ck_assert_ptr_nonnull(strstr(e.text, at("f")));
        ck_assert_ptr_nonnull(strstr(e.text, "unchanged"));
        assert_content("f", "old");
        ck_assert_int_eq(count_entries(), 1);  // nothing half-written stays
    }
}
END_TEST

/* A write fails, and the disk has room again when the file is closed. That is still an error. */
START_TEST(test_new_file_remembers_a_lost_write) {
    NewFile n;
    Error e;
    struct rlimit before, limit;
    put("f", "old");
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    ck_assert_int_eq(newfile_open(&n, at("f"), &e), 0);
    limit = before;
    limit.rlim_cur = 0;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    fputs("lost", n.f);
    ck_assert_int_eq(fflush(n.f), EOF);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    fputs("kept", n.f);
    ck_assert_int_eq(newfile_close(&n, true, &e), -1);
    assert_content("f", "old");
    ck_assert_int_eq(count_entries(), 1);
}
END_TEST

/* The temporary files of a dead writer are removed. Those of a living one, and of other files, are
 * not. */
START_TEST(test_new_file_tidies_up) {
    NewFile n;
    Error e;
    char name[4][32];
    const pid_t dead = fork();
    if (!dead) _exit(0);
    waitpid(dead, NULL, 0);
    snprintf(name[0], 32, "f.posttrain-%ld", (long)dead);
    snprintf(name[1], 32, "f.posttrain-%ld", (long)getppid());
    snprintf(name[2], 32, "ff.posttrain-%ld", (long)dead);
    snprintf(name[3], 32, "f.posttrain-%ldx", (long)dead);
    for (int i = 0; i < 4; i++) put(name[i], "half");
    ck_assert_int_eq(newfile_open(&n, at("f"), &e), 0);
    ck_assert_int_eq(newfile_close(&n, true, &e), 0);
    ck_assert(access(at(name[0]), F_OK) && errno == ENOENT);
    for (int i = 1; i < 4; i++) assert_content(name[i], "half");
}
END_TEST

/* Where nobody waits for a child it stays a zombie, to which signals can be sent. */
START_TEST(test_a_zombie_has_ended) {
    NewFile n;
    Error e;
    char name[64];
    siginfo_t info;
    const pid_t child = fork();
    if (!child) _exit(0);
    ck_assert_int_eq(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
    ck_assert_int_eq(kill(child, 0), 0);
    ck_assert(process_ended(child) && !process_ended(getpid()) && !process_ended(getppid()));
    snprintf(name, sizeof name, "f.posttrain-%ld", (long)child);
    put(name, "half");
    ck_assert_int_eq(newfile_open(&n, at("f"), &e), 0);
    ck_assert_int_eq(newfile_close(&n, true, &e), 0);
    ck_assert_int_eq(count_entries(), 1);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
    ck_assert(process_ended(child));
}
END_TEST

/* A path that is not a regular file is opened itself: no rename may replace /dev/null. */
START_TEST(test_new_file_of_a_pipe) {
    NewFile n;
    Error e;
    char text[8] = "";
    ck_assert_int_eq(mkfifo(at("pipe"), 0600), 0);
    const int fd = open(at("pipe"), O_RDONLY | O_NONBLOCK);
    ck_assert_int_eq(newfile_open_named(&n, at("pipe"), &e), 0);
    fputs("new", n.f);
    ck_assert_int_eq(newfile_close(&n, true, &e), 0);
    ck_assert_int_eq(read(fd, text, sizeof text), 3);
    ck_assert_str_eq(text, "new");
    struct stat s;
    ck_assert(!stat(at("pipe"), &s) && S_ISFIFO(s.st_mode));
    ck_assert_int_eq(count_entries(), 1);
    close(fd);
}
END_TEST

START_TEST(test_new_file_that_cannot_be) {
    NewFile n;
    Error e = {0};
    ck_assert_int_eq(newfile_open(&n, at("no/such/f"), &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "no/such/f"));
    ck_assert_ptr_nonnull(strstr(e.text, "No such file or directory"));
    ck_assert_int_eq(mkdir(at("d"), 0777), 0);  // a directory in the place of the file
    ck_assert_int_eq(mkdir(at("d/inside"), 0777), 0);
    ck_assert_int_eq(newfile_open(&n, at("d"), &e), 0);
    ck_assert_int_eq(newfile_close(&n, true, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "directory"));
    ck_assert_int_eq(count_entries(), 1);
}
END_TEST

START_TEST(test_paths) {
    Error e;
    char *path = path_join(at("a"), "b/c");
    ck_assert_str_eq(path, at("a/b/c"));
    ck_assert(!file_exists(path));
    ck_assert_int_eq(make_directories(path), 0);
    ck_assert_int_eq(make_directories(path), 0);  // they exist already
    ck_assert_int_eq(make_directories(at("a/d/")), 0);
    ck_assert(file_exists(path) && exists_in(at("a"), "d") && !exists_in(path, "d"));
    put("a/file", "text\n");
    Str s = {0};
    ck_assert_int_eq(read_file(at("a/file"), 100, &s, &e), 0);
    ck_assert_str_eq(s.s, "text\n");
    ck_assert_int_eq(make_directories(at("a/file")), -1);
    ck_assert_int_eq(errno, ENOTDIR);
    ck_assert_int_eq(make_directories(at("a/file/x")), -1);
    ck_assert_int_eq(errno, ENOTDIR);
    free(s.s);
    free(path);
}
END_TEST

START_TEST(test_read_file) {
    Str s = {0};
    Error e = {0};
    FILE *f = fopen(at("big"), "wb");
    for (int i = 0; i < 150000; i++) fputc(i % 251, f);  // more than one block, with zeros in it
    fclose(f);
    ck_assert_int_eq(read_file(at("big"), 150000, &s, &e), 0);  // the limit itself is allowed
    ck_assert_uint_eq(s.n, 150000);
    for (int i = 0; i < 150000; i++) ck_assert_int_eq((unsigned char)s.s[i], i % 251);
    ck_assert_int_eq(read_file(at("big"), 149999, &s, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "149999"));
    free(s.s);
    s = (Str){0};
    ck_assert_int_eq(read_file("/dev/zero", 1 << 20, &s, &e),
                     -1);  // without end: stops at the limit
    ck_assert_uint_le(s.n, 1 << 20);
    free(s.s);
    s = (Str){0};
    put("empty", "");
    ck_assert_int_eq(read_file(at("empty"), 10, &s, &e), 0);
    ck_assert_str_eq(s.s, "");
    put("more", "more");
    ck_assert_int_eq(read_file(at("more"), 10, &s, &e), 0);
    ck_assert_int_eq(read_file(at("more"), 10, &s, &e), 0);  // appends
    ck_assert_str_eq(s.s, "moremore");
    ck_assert_int_eq(read_file(at("absent"), 10, &s, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "absent: No such file"));
    ck_assert_int_eq(read_file(directory, 10, &s, &e), -1);  // opens, but cannot be read
    ck_assert_ptr_nonnull(strstr(e.text, "is a directory"));
    free(s.s);
}
END_TEST

/* ---- failing --------------------------------------------------------------------------------- */

START_TEST(test_fail_fills_and_cuts) {
    Error e;
    ck_assert_int_eq(fail(&e, "%s:%d", "file", 3), -1);
    ck_assert_str_eq(e.text, "file:3");
    ck_assert_int_eq(fail(NULL, "nobody asked"), -1);
    char longest[3000];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    fail(&e, "%s", longest);
    ck_assert_uint_eq(strlen(e.text), sizeof e.text - 1);
}
END_TEST

typedef enum { RUN_FAILED, BAD_INPUT, TOO_LARGE, PRODUCT_WRAPS } Ending;

/* Runs how in a child process. Returns its exit status, and its output in said. */
static int ending(Ending how, char *said, size_t size) {
    int fd[2], status;
    ck_assert_int_eq(pipe(fd), 0);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        dup2(fd[1], STDERR_FILENO);
        if (how == RUN_FAILED) die("the disk of %s is full", "x");
        if (how == BAD_INPUT) die_usage("--rate %d: too large", 7);
        if (how == TOO_LARGE) xmalloc((size_t)1 << 62);
        if (how == PRODUCT_WRAPS)
            xrealloc(NULL, SIZE_MAX / 8 + 2, 8);  // the product wraps round to 8
        _exit(0);
    }
    close(fd[1]);
    size_t n = 0;
    for (ssize_t got; n < size - 1 && (got = read(fd[0], said + n, size - 1 - n)) > 0;)
        n += (size_t)got;
    said[n] = 0;
    close(fd[0]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

START_TEST(test_exit_status) {
    char said[4096];
    ck_assert_int_eq(ending(RUN_FAILED, said, sizeof said), 1);
    ck_assert_str_eq(said, "error: the disk of x is full\n");
    ck_assert_int_eq(ending(BAD_INPUT, said, sizeof said), 2);
    ck_assert_str_eq(said, "error: --rate 7: too large\n");
    ck_assert_int_eq(ending(PRODUCT_WRAPS, said, sizeof said), 1);
    ck_assert_ptr_nonnull(strstr(said, "out of memory"));
    ck_assert_ptr_nonnull(strstr(said, "check_util.c:"));  // where
    ck_assert_int_eq(ending(TOO_LARGE, said, sizeof said), 1);
}
END_TEST

START_TEST(test_memory_is_never_null) {
    void *p = xmalloc(0), *q = xcalloc(0, 8), *r = xrealloc(NULL, 0, 4);
    ck_assert(p && q && r);
    r = xrealloc(r, 10, 4);
    memset(r, 1, 40);
    r = xrealloc(r, 0, 4);  // realloc() may free here and say NULL
    ck_assert_ptr_nonnull(r);
    char *s = xstrdup("copy");
    ck_assert_str_eq(s, "copy");
    free(p);
    free(q);
    free(r);
    free(s);
}
END_TEST

START_TEST(test_clock_goes_on) {
    const double before = now_seconds();
    usleep(20000);
    const double after = now_seconds();
    ck_assert(after - before >= 0.02 && after - before < 60);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("util");
    TCase *tcase = tcase_create("util");
    const TTest *const tests[] = {test_philox_known_answers,
                                  test_random4_depends_on_everything,
                                  test_uniform,
                                  test_normal,
                                  test_permutation,
                                  test_permutations_are_even,
                                  test_ints_grow,
                                  test_str_grows,
                                  test_new_file_replaces_at_once,
                                  test_links_and_pipes_are_not_written_to,
                                  test_reasons_have_their_own_remedies,
                                  test_lines_have_a_limit,
                                  test_new_file_keeps_the_old_one,
                                  test_new_file_remembers_a_lost_write,
                                  test_new_file_tidies_up,
                                  test_a_zombie_has_ended,
                                  test_new_file_of_a_pipe,
                                  test_new_file_that_cannot_be,
                                  test_paths,
                                  test_read_file,
                                  test_fail_fills_and_cuts,
                                  test_exit_status,
                                  test_memory_is_never_null,
                                  test_clock_goes_on};
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) tcase_add_test(tcase, tests[i]);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
