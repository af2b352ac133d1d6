/*
 * util.c - errors, checked memory, growing arrays, files that are written whole or not at all.
 */
#include "util.h"

#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Errors ---------------------------------------------------------------------------------- */

int fail(Error *e, const char *format, ...) {
    if (e) {
        va_list args;
        va_start(args, format);
        vsnprintf(e->text, sizeof e->text, format, args);
        va_end(args);
    }
    return -1;
}

PRINTF_LIKE(2, 0)
__attribute__((noreturn)) static void die_with(int status, const char *format, va_list args) {
    fflush(stdout);
    fputs("error: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(status);
}

void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    die_with(1, format, args);
}

void die_usage(const char *format, ...) {
    va_list args;
    va_start(args, format);
    die_with(2, format, args);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

void *checked_memory(void *p, size_t count, size_t size, const char *file, int line) {
    if (!p)
        die("%s:%d: out of memory asking for %zu x %zu bytes; close other programs, or use a "
            "smaller batch or model",
            file, line, count, size);
    return p;
}

void *checked_realloc(void *p, size_t count, size_t size, const char *file, int line) {
    if (size && count > (SIZE_MAX - 1) / size) checked_memory(NULL, count, size, file, line);
    const size_t bytes = count * size;
    return checked_memory(realloc(p, bytes ? bytes : 1), count, size, file, line);
}

void ints_push(Ints *a, int x) {
    if (a->n == a->capacity) {
        a->capacity = a->capacity ? 2 * a->capacity : 64;
        a->v = xrealloc(a->v, a->capacity, sizeof *a->v);
    }
    a->v[a->n++] = x;
}

void str_add(Str *a, const char *s, size_t n) {
    if (a->n + n + 1 > a->capacity) {
        a->capacity = 2 * (a->n + n) + 64;
        a->s = xrealloc(a->s, a->capacity, 1);
    }
    if (n) memcpy(a->s + a->n, s, n);
    a->n += n;
    a->s[a->n] = 0;
}

void str_printf(Str *a, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    str_add(a, "", 0);
    if (n > 0) {
        a->capacity = a->n + (size_t)n + 1;
        a->s = xrealloc(a->s, a->capacity, 1);
        vsnprintf(a->s + a->n, (size_t)n + 1, format, again);
        a->n += (size_t)n;
    }
    va_end(again);
}

/* ---- Paths ----------------------------------------------------------------------------------- */

char *path_join(const char *dir, const char *name) {
    Str path = {0};
    str_printf(&path, "%s/%s", dir, name);
    return path.s;
}

bool file_exists(const char *path) { return !access(path, F_OK); }

bool exists_in(const char *dir, const char *name) {
    char *path = path_join(dir, name);
    const bool yes = file_exists(path);
    free(path);
    return yes;
}

int make_directories(const char *path) {
    char *copy = xstrdup(path);
    struct stat found;
    for (char *slash = strchr(copy, '/'); slash; slash = strchr(slash + 1, '/')) {
        if (slash == copy) continue;
        *slash = 0;
        mkdir(copy, 0777);  // a failure here makes the last mkdir fail, too
        *slash = '/';
    }
    free(copy);
    if (mkdir(path, 0777) && errno != EEXIST) return -1;
    if (!stat(path, &found) && !S_ISDIR(found.st_mode)) {
        errno = ENOTDIR;
        return -1;
    }
    return 0;
}

/* ---- Files ----------------------------------------------------------------------------------- */

int read_file(const char *path, size_t limit, Str *out, Error *e) {
    FILE *f = fopen(path, "rb");
    if (!f) return fail(e, "cannot open %s: %s", path, strerror(errno));
    char block[65536];
    size_t n, total = 0;
    str_add(out, "", 0);
    while ((n = fread(block, 1, sizeof block, f)) > 0) {
        total += n;
        if (total > limit) {
            fclose(f);
            return fail(e, "%s is larger than %zu bytes, the limit for such a file", path, limit);
        }
        str_add(out, block, n);
    }
    const int bad = ferror(f), error = errno;
    fclose(f);
    return bad ? fail(e, "cannot read %s: %s", path, strerror(error)) : 0;
}

long newfile_writer(const char *name, const char *mark) {
    const char *p = strrchr(name, '.');
    const size_t length = strlen(mark);
    if (!p || strncmp(p, mark, length)) return -1;
    const size_t n = strspn(p + length, "0123456789");
    return n >= 1 && n <= 9 && !p[length + n] ? strtol(p + length, NULL, 10) : -1;
}

/* Removes the temporary files of path whose process no longer runs. */
static void remove_abandoned(const char *path) {
    char *in = xstrdup(path), *of = xstrdup(path);
    const char *name = basename(of);
    const size_t n = strlen(name);
    DIR *list = opendir(dirname(in));
    for (struct dirent *entry; list && (entry = readdir(list));) {
        const long writer = newfile_writer(entry->d_name, ".tmp-");
        if (writer > 0 && !strncmp(entry->d_name, name, n) &&
            !strncmp(entry->d_name + n, ".tmp-", 5) && kill((pid_t)writer, 0) && errno == ESRCH)
            unlinkat(dirfd(list), entry->d_name, 0);
    }
    if (list) closedir(list);
    free(in);
    free(of);
}

int newfile_open(NewFile *n, const char *path, Error *e) {
    struct stat there;
    Str temporary = {0};
    if (stat(path, &there) || S_ISREG(there.st_mode) || S_ISDIR(there.st_mode)) {
        remove_abandoned(path);
        str_printf(&temporary, "%s.tmp-%ld", path, (long)getpid());
    }
    n->path = xstrdup(path);
    n->temporary = temporary.s;
    n->f = fopen(n->temporary ? n->temporary : path, "wb");
    if (n->f) return 0;
    fail(e, "cannot write %s: %s; choose a directory that exists and that you may write", path,
         strerror(errno));
    free(n->path);
    free(n->temporary);
    return -1;
}

void sync_directory_of(const char *path) {
    char *copy = xstrdup(path);
    const int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(copy);
}

int newfile_close(NewFile *n, bool keep, Error *e) {
    int status = 0;
    bool bad = ferror(n->f) | fflush(n->f);
    int error = errno;
    if (!bad && keep && n->temporary && fsync(fileno(n->f))) {
        bad = true;
        error = errno;
    }
    if (fclose(n->f) && !bad) {
        bad = true;
        error = errno;
    }
    if (!bad && keep && n->temporary && rename(n->temporary, n->path)) {
        bad = true;
        error = errno;
    }
    if ((bad || !keep) && n->temporary) unlink(n->temporary);
    if (bad && keep)
        status =
            fail(e, "cannot write %s: %s; the old file is unchanged", n->path, strerror(error));
    if (!bad && keep) sync_directory_of(n->path);
    free(n->path);
    free(n->temporary);
    memset(n, 0, sizeof *n);
    return status;
}

int write_text_file(const char *path, const char *text, Error *e) {
    NewFile file;
    if (newfile_open(&file, path, e)) return -1;
    fprintf(file.f, "%s\n", text);
    return newfile_close(&file, true, e);
}

/* ---- Random numbers -------------------------------------------------------------------------- */

float random_normal(uint32_t x, uint32_t y) {
    const double u = ((double)x + 1) * 0x1p-32, v = (double)y * 0x1p-32;
    return (float)(sqrt(-2 * log(u)) * cos(2 * M_PI * v));
}

void random_permutation(int *order, int n, uint64_t seed, uint32_t purpose, uint32_t epoch) {
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        const uint32_t x = random4(seed, purpose, epoch, 0, (uint32_t)i, 0).v[0];
        const int j = (int)(((uint64_t)x * (uint64_t)(i + 1)) >> 32);
        const int swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

void print_indented(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (text[i] != '\n')
            putchar(text[i]);
        else if (i + 1 < n)
            printf("\n            | ");
}
