/*
 * input.c - files that are read once, and the hash of what was read: see input.h.
 */
#define _GNU_SOURCE  // defines: fopencookie

#include "input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* A file that is read or was read. */
typedef struct Input Input;
struct Input {
    char *path;
    int file;
    uint64_t bytes, hash;
    bool ended;  // it was read to its end
    Input *next;
};

static Input *inputs;  // one for each path

static Input *find(const char *path) {
    Input *x = inputs;
    while (x && strcmp(x->path, path)) x = x->next;
    return x;
}

static ssize_t read_some(void *cookie, char *to, size_t room) {
    Input *x = (Input *)cookie;
    ssize_t n;
    do n = read(x->file, to, room);
    while (n < 0 && errno == EINTR);
    if (n == 0) x->ended = true;
    if (n <= 0) return n;
    x->bytes += (uint64_t)n;
    x->hash = hash_bytes(x->hash, to, (size_t)n);
    return n;
}

static int close_file(void *cookie) { return close(((Input *)cookie)->file); }

/* A device without an end, such as /dev/zero? /dev/null and terminals have one. */
static bool is_endless(const struct stat *s, int file) {
    const bool null = S_ISCHR(s->st_mode) && s->st_rdev == makedev(1, 3);
    return S_ISBLK(s->st_mode) || (S_ISCHR(s->st_mode) && !null && !isatty(file));
}

FILE *input_open(const char *path, Error *e) {
    struct stat s;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    int status = 0;
    if (file < 0 || fstat(file, &s))
        status = fail(e, "cannot open %s: %s", path, strerror(errno));
    else if (S_ISDIR(s.st_mode))
        status = fail(e, "%s is a directory; give a file", path);
    else if (is_endless(&s, file))
        status = fail(e, "%s is a device; give a file or a pipe", path);
    if (status) {
        if (file >= 0) close(file);
        return NULL;
    }
    Input *x = find(path);
    if (!x) {
        x = (Input *)xcalloc(1, sizeof *x);
        *x = (Input){.path = xstrdup(path), .next = inputs};
        inputs = x;
    }
    x->file = file;
    x->bytes = 0;
    x->hash = HASH_START;
    x->ended = false;
    const cookie_io_functions_t functions = {.read = read_some, .close = close_file};
    return (FILE *)checked_memory(fopencookie(x, "r", functions), 1, sizeof *x, __FILE__, __LINE__);
}

char *input_read(const char *path) {
    const Input *x = find(path);
    Str text = {0};
    if (!x || !x->ended) return NULL;
    str_printf(&text, "%llu bytes, hash %016llx", (unsigned long long)x->bytes,
               (unsigned long long)x->hash);
    return text.s;
}
