/*
 * util.c - errors, checked memory, growing arrays, files that are written whole or not at all.
 */
#include "util.h"

#include "input.h"

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

PRINTF_LIKE(3, 0)
static int fail_with(Error *e, int error, const char *format, va_list args) {
    if (!e) return -1;
    vsnprintf(e->text, sizeof e->text, format, args);
    e->error = error;
    return -1;
}

int fail(Error *e, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fail_with(e, 0, format, args);
    va_end(args);
    return -1;
}

int fail_errno(Error *e, int error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fail_with(e, error, format, args);
    va_end(args);
    return -1;
}

const char *error_remedy(int error) {
    switch (error) {
        case 0: return "do so";
        case ENOSPC:
        case EDQUOT: return "free some space";
        case EFBIG: return "raise the limit on the size of a file (ulimit -f)";
        case EMFILE: return "raise the limit on open files (ulimit -n)";
        case ENFILE: return "close other programs, as the system has too many files open";
        case ENOMEM: return "close other programs";
        case EACCES:
        case EPERM: return "see to it that you may write there";
        case EROFS: return "make the disk one that can be written";
        case ENOENT: return "make the directory that it is in";
        case ENOTDIR: return "choose a directory, as a file cannot hold others";
        case EISDIR: return "choose the name of a file";
        case ENAMETOOLONG: return "choose a shorter name";
        case ELOOP: return "remove the link";
        case EBADF: return "keep stdout open";
        case ENXIO: return "start the reader of the pipe first";
        case EPIPE: return "keep the reader of the pipe";
        default: return "look after the disk";
    }
}

static void (*through)(int status, const char *message);

void die_through(void (*f)(int status, const char *message)) { through = f; }

PRINTF_LIKE(2, 0)
__attribute__((noreturn)) static void die_with(int status, const char *format, va_list args) {
    static char text[8192];  // vfprintf would have as much on a stack that may be too small
    fflush(stdout);
    vsnprintf(text, sizeof text, format, args);
    if (through) through(status, text);
    fputs("error: ", stderr);
    fputs(text, stderr);
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

void note_once(const char *format, ...) {
    static char **said;
    static int n;
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (int i = 0; i < n; i++)
        if (!strcmp(said[i], text)) return;
    said = grow(said, n, sizeof *said);
    said[n++] = xstrdup(text);
    fprintf(stderr, "note: %s\n", text);
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

bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return a && b && !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
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

/* Reads f, the file at path, to its end and closes it: see read_file. */
static int read_open_file(FILE *f, const char *path, size_t limit, Str *out, Error *e) {
    char block[8192];
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

int read_file(const char *path, size_t limit, Str *out, Error *e) {
    FILE *f = input_open(path, e);
    return f ? read_open_file(f, path, limit, out, e) : -1;
}

/* The stream of a file that open() has returned. NULL, with errno: there is no file or no memory,
   and the file is closed. */
static FILE *stream_of(int file, const char *mode) {
    FILE *f = file < 0 ? NULL : fdopen(file, mode);
    const int error = errno;
    if (file >= 0 && !f) close(file);
    errno = error;
    return f;
}

int read_regular_file(const char *path, size_t limit, Str *out, Error *e) {
    struct stat info;
    // O_NONBLOCK: opening a pipe must not wait for its writer
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    FILE *f = stream_of(fd, "r");
    if (!f) return fail(e, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &info) || !S_ISREG(info.st_mode)) {
        fclose(f);
        return fail(e, "%s is not a regular file; remove it or put a file in its place", path);
    }
    return read_open_file(f, path, limit, out, e);
}

/* Creates a file that nobody else has. A regular file of that name is removed: it is an older log,
   or was left by an earlier process with our own number. */
static FILE *create_file(const char *path) {
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
    struct stat there;
    int file = open(path, flags, 0666);
    if (file < 0 && errno == EEXIST && !lstat(path, &there) && S_ISREG(there.st_mode) &&
        !unlink(path))
        file = open(path, flags, 0666);
    FILE *f = stream_of(file, "wb");
    const int error = errno;
    if (file >= 0 && !f) unlink(path);
    errno = error;
    return f;
}

/* The reason in errno, or that path is no regular file. Returns NULL with e filled. */
static FILE *cannot_write(const char *path, Error *e) {
    struct stat there;
    const int error = errno;
    if (!lstat(path, &there) && !S_ISREG(there.st_mode))
        fail(e, "%s is %s and not a regular file; remove it", path,
             S_ISLNK(there.st_mode)   ? "a link"
             : S_ISDIR(there.st_mode) ? "a directory"
                                      : "a pipe or a device");
    else
        fail(e, "cannot write %s: %s; %s", path, strerror(error), error_remedy(error));
    return NULL;
}

FILE *append_file(const char *path, Error *e) {
    struct stat info;
    // O_NONBLOCK: opening a pipe must not wait for its reader
    const int flags = O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    const int file = open(path, flags, 0666);
    const bool regular = file >= 0 && !fstat(file, &info) && S_ISREG(info.st_mode);
    if (file >= 0 && !regular) close(file);
    FILE *f = regular ? stream_of(file, "ab") : NULL;
    return f ? f : cannot_write(path, e);
}

FILE *replace_file(const char *path, Error *e) {
    FILE *f = create_file(path);
    return f ? f : cannot_write(path, e);
}

int read_line(FILE *f, size_t limit, Str *line, Error *e) {
    int c;
    line->n = 0;
    str_add(line, "", 0);
    errno = 0;
    while ((c = getc(f)) != EOF) {
        const char byte = (char)c;
        if (line->n == limit) return fail(e, "a line has more than %zu bytes, the limit", limit);
        str_add(line, &byte, 1);
        if (c == '\n') return 1;
    }
    if (ferror(f)) return fail(e, "%s", strerror(errno));
    return line->n > 0;
}

int refuse_mark(const char *path, const char *text, size_t n, Error *e) {
    if (n < 3 || memcmp(text, "\xEF\xBB\xBF", 3)) return 0;
    return fail(e,
                "%s begins with a byte order mark; take it out: sed -i '1s/^\\xEF\\xBB\\xBF//' %s",
                path, path);
}

char *real_path(const char *path) {
    char *real = realpath(path, NULL);
    if (!real && errno == ENOMEM) die("out of memory for the path of %s", path);
    return real;
}

int list_directory(const char *dir, int (*wanted)(const struct dirent *),
                   int (*order)(const struct dirent **, const struct dirent **),
                   struct dirent ***list) {
    const int n = scandir(dir, list, wanted, order);
    if (n >= 0) return n;
    if (errno != ENOENT && errno != ENOTDIR)
        die("cannot list %s: %s; nothing in it has been changed", dir, strerror(errno));
    *list = NULL;
    return 0;
}

char *resolve_path(const char *path) {
    char *resolved = real_path(path);
    if (resolved) return resolved;
    char *in = xstrdup(path), *of = xstrdup(path);
    const char *parent = dirname(in);
    if (!strcmp(parent, path)) {  // "/" or "." itself
        free(of);
        return in;
    }
    char *above = resolve_path(parent);
    resolved = path_join(above, basename(of));
    free(above);
    free(in);
    free(of);
    return resolved;
}

char *newfile_name(const char *path, const char *mark, long process) {
    Str name = {0};
    str_printf(&name, "%s%s%ld", path, mark, process);
    return name.s;
}

long newfile_writer(const char *name, const char *mark) {
    const char *p = strrchr(name, '.');
    const size_t length = strlen(mark);
    if (!p || strncmp(p, mark, length)) return -1;
    const size_t n = strspn(p + length, "0123456789");
    return n >= 1 && n <= 9 && !p[length + n] ? strtol(p + length, NULL, 10) : -1;
}

bool process_ended(long process) {
    char path[64], text[512];
    if (kill((pid_t)process, 0) && errno == ESRCH) return true;
    snprintf(path, sizeof path, "/proc/%ld/stat", process);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    // "number (name) state ...": the name may hold anything, and Z and X are those that have ended
    const char *state = strrchr(text, ')');
    return state && state[1] && (state[2] == 'Z' || state[2] == 'X');
}

static bool (*is_ours)(const char *path);

void newfile_owned_by(bool (*f)(const char *path)) { is_ours = f; }

/* Removes the temporary files of path whose process no longer runs. */
static void remove_abandoned(const char *path) {
    const bool ours = is_ours && is_ours(path);
    char *in = xstrdup(path), *of = xstrdup(path);
    const char *name = basename(of);
    const size_t n = strlen(name), mark = strlen(UNFINISHED_MARK);
    DIR *list = opendir(dirname(in));
    for (struct dirent *entry; list && (entry = readdir(list));) {
        const long writer = newfile_writer(entry->d_name, UNFINISHED_MARK);
        if (writer > 0 && !strncmp(entry->d_name, name, n) &&
            !strncmp(entry->d_name + n, UNFINISHED_MARK, mark) && writer != getpid() &&
            (ours || process_ended(writer)))
            unlinkat(dirfd(list), entry->d_name, 0);
    }
    if (list) closedir(list);
    free(in);
    free(of);
}

/* The temporary files that are open, for newfile_abandon. A signal may come between any two
   instructions, so an entry is one pointer. */
enum { OPEN_FILES = 32 };
static char *volatile unfinished[OPEN_FILES];

static void exchange(char *from, char *to) {
    int i = 0;
    while (i < OPEN_FILES && unfinished[i] != from) i++;
    if (i < OPEN_FILES) unfinished[i] = to;
}

void newfile_abandon(void) {
    for (int i = 0; i < OPEN_FILES; i++)
        if (unfinished[i]) unlink(unfinished[i]);
}

FILE *open_named(const char *path, bool append) {
    const int flags = O_WRONLY | O_CREAT | (append ? O_APPEND : O_TRUNC);
    const int file = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);
    if (file < 0) return NULL;
    fcntl(file, F_SETFL, flags & O_APPEND);  // only opening it does not block
    return stream_of(file, append ? "ab" : "wb");
}

/* plain: path itself is opened. */
static int open_new(NewFile *n, const char *path, bool plain, Error *e) {
    if (!plain) remove_abandoned(path);
    n->path = xstrdup(path);
    n->temporary = plain ? NULL : newfile_name(path, UNFINISHED_MARK, getpid());
    if (n->temporary) exchange(NULL, n->temporary);
    n->f = n->temporary ? create_file(n->temporary) : open_named(path, false);
    if (n->f) return 0;
    fail(e, "cannot write %s: %s; %s", path, strerror(errno), error_remedy(errno));
    if (n->temporary) exchange(n->temporary, NULL);
    free(n->path);
    free(n->temporary);
    memset(n, 0, sizeof *n);  // newfile_place then has nothing to do
    return -1;
}

int newfile_open(NewFile *n, const char *path, Error *e) { return open_new(n, path, false, e); }

int newfile_open_named(NewFile *n, const char *path, Error *e) {
    struct stat there;
    const bool plain = !stat(path, &there) && !S_ISREG(there.st_mode) && !S_ISDIR(there.st_mode);
    const bool link = !plain && !lstat(path, &there) && S_ISLNK(there.st_mode);
    char *real = link ? resolve_path(path) : NULL;
    const int status = open_new(n, link ? real : path, plain, e);
    free(real);
    return status;
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

const char *newfile_old(const char *path) {
    const int error = errno;  // which the same message names
    const bool there = access(path, F_OK) == 0;
    errno = error;
    return there ? "; the old file is unchanged" : "";
}

/* Removes the temporary file and releases n. Returns -1 with e filled. */
static int give_up(NewFile *n, int error, Error *e) {
    if (!error) error = EIO;  // an earlier write failed, whose errno is lost
    if (n->temporary)
        fail_errno(e, error, "cannot write %s: %s%s", n->path, strerror(error),
                   newfile_old(n->path));
    else
        fail(e, "cannot write %s: %s; %s", n->path, strerror(error), error_remedy(error));
    newfile_place(n, false, NULL);
    return -1;
}

int newfile_finish(NewFile *n, Error *e) {
    bool bad = ferror(n->f) | fflush(n->f);
    int error = errno;
    if (!bad && n->temporary && fsync(fileno(n->f))) {
        bad = true;
        error = errno;
    }
    if (fclose(n->f) && !bad) {
        bad = true;
        error = errno;
    }
    n->f = NULL;
    return bad ? give_up(n, error, e) : 0;
}

int newfile_place(NewFile *n, bool keep, Error *e) {
    if (keep && n->temporary && rename(n->temporary, n->path)) return give_up(n, errno, e);
    if (!keep && n->temporary) unlink(n->temporary);
    if (n->temporary) exchange(n->temporary, NULL);
    if (keep) sync_directory_of(n->path);
    free(n->path);
    free(n->temporary);
    memset(n, 0, sizeof *n);
    return 0;
}

int newfile_close(NewFile *n, bool keep, Error *e) {
    if (keep) return newfile_finish(n, e) ? -1 : newfile_place(n, true, e);
    fclose(n->f);
    return newfile_place(n, false, e);
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
