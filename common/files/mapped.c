/*
 * mapped.c - mapped files: see mapped.h.
 */
#include "files/mapped.h"

#include "text/utf8.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The files that are mapped now. The signal handler reads this list, so an entry is complete before
   `begin` is set, and nothing in it is allocated. More files than there is room for are mapped
   without being watched. */
enum { WATCHED = 64, PATH_ROOM = 512 };

static struct Watched {
    const char *volatile begin;  // NULL: a free entry
    size_t size;
    int file;
    struct timespec written;
    char path[PATH_ROOM];
} watched[WATCHED];

static void print(const char *text) {
    if (write(STDERR_FILENO, text, strlen(text)) < 0) return;  // there is nowhere else to say it
}

/* A part of a mapped file does not exist any more. Only functions that are safe in a handler. */
static void on_missing_page(int number, siginfo_t *info, void *context) {
    const char *at = info->si_addr;
    (void)context;
    for (int i = 0; i < WATCHED; i++) {
        const struct Watched *w = &watched[i];
        if (!w->begin || at < w->begin || at >= w->begin + w->size) continue;
        print("\nerror: ");
        print(w->path);
        print(
            " became shorter, or cannot be read any more, while this program used it; restore the "
            "file and use --resume: the last checkpoint is complete\n");
        _exit(1);
    }
    signal(number, SIG_DFL);  // not one of our files: the instruction fails again and ends us
}

/* Copies a path as it may be printed: the handler writes past the filter of stderr. */
static void copy_printable(char to[PATH_ROOM], const char *path) {
    size_t n = 0, at = 0;
    for (const size_t end = strlen(path); at < end && n + 4 < PATH_ROOM;) {
        const Utf8 c = utf8_decode(path + at, end - at);
        const bool shown =
            c.kind == UTF8_WHOLE && c.code >= ' ' && (c.code < 0x7F || c.code >= 0xA0);
        if (shown) memcpy(to + n, path + at, c.n);
        if (!shown) to[n] = '?';
        n += shown ? c.n : 1;
        at += c.n;
    }
    to[n] = 0;
}

static void watch(const char *path, const void *bytes, int file, const struct stat *info) {
    static bool handled;
    int i = 0;
    while (i < WATCHED && watched[i].begin) i++;
    if (i == WATCHED) {
        close(file);
        return;
    }
    copy_printable(watched[i].path, path);
    watched[i].size = (size_t)info->st_size;
    watched[i].file = file;
    watched[i].written = info->st_mtim;
    watched[i].begin = bytes;
    if (handled) return;
    handled = true;
    struct sigaction action = {.sa_sigaction = on_missing_page, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

int map_file(const char *path, const void **bytes, size_t *size, Error *e) {
    struct stat info;
    // O_NONBLOCK: opening a pipe must not block
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return fail(e, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &info) || !S_ISREG(info.st_mode)) {
        close(fd);
        return fail(e, "%s is not a regular file", path);
    }
    *size = (size_t)info.st_size;
    *bytes = NULL;
    if (!*size) {
        close(fd);
        return 0;
    }
    void *mapped = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
        fail(e, "cannot map the %zu bytes of %s: %s", *size, path, strerror(errno));
        close(fd);
        return -1;
    }
    *bytes = mapped;
    watch(path, mapped, fd, &info);
    return 0;
}

void unmap_file(const void *bytes, size_t size) {
    if (!bytes) return;
    for (int i = 0; i < WATCHED; i++) {
        if (watched[i].begin != bytes) continue;
        close(watched[i].file);
        watched[i].begin = NULL;
    }
    munmap((void *)bytes, size);
}

int mapped_check(Error *e) {
    struct stat now;
    for (int i = 0; i < WATCHED; i++) {
        const struct Watched *w = &watched[i];
        if (!w->begin || fstat(w->file, &now)) continue;
        if ((size_t)now.st_size == w->size && now.st_mtim.tv_sec == w->written.tv_sec &&
            now.st_mtim.tv_nsec == w->written.tv_nsec)
            continue;
        return fail(e, "%s has been written to while this run used it", w->path);
    }
    return 0;
}
