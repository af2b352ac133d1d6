/*
 * lock.c - directories and files that belong to one run: see lock.h.
 *
 * The lock is on the directory or the file itself, so that no further file has to be made or
 * removed, and the kernel releases it however the process ends. The kernel also knows who has it.
 */
#include "run/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum {
    MOST = 16,     // an output, a merged model, a dump, scores, labels, and directories around them
    TRIES = 50,    // at a lock that another process has: a killed one has it for a moment longer
    PAUSE = 20000  // microseconds between two of them
};

typedef struct {
    const char *flag;
    char *path;
    int file;
    bool directory, made;  // made: by us
    bool shared;           // with the runs in other parts of the directory
    bool locked;           // the file system has locks
} Lock;

/* A signal may come between any two instructions: an entry is complete before `locks` counts it. */
static Lock lock[MOST];
static volatile int locks;

/* Another process that has a lock on the file, from /proc/locks; 0: it is not known. */
static long holder(int file) {
    struct stat s;
    FILE *f = fopen("/proc/locks", "r");
    char line[256];
    long found = 0;
    while (f && !fstat(file, &s) && fgets(line, sizeof line, f)) {
        long process;
        unsigned major, minor;
        unsigned long long inode;
        if (sscanf(line, "%*s FLOCK %*s %*s %ld %x:%x:%llu", &process, &major, &minor, &inode) !=
                4 ||
            inode != s.st_ino || process == getpid())
            continue;
        // some file systems show another device here; then the file's number has to do
        if (!found || (major == major(s.st_dev) && minor == minor(s.st_dev))) found = process;
    }
    if (f) fclose(f);
    return found > 0 ? found : 0;
}

/* "process 123 (sft)", or "another process" */
static void name_holder(int file, char text[64]) {
    char path[64], name[32] = "";
    const long process = holder(file);
    if (!process) {
        snprintf(text, 64, "another process");
        return;
    }
    snprintf(path, sizeof path, "/proc/%ld/comm", process);
    FILE *f = fopen(path, "r");
    if (f && !fgets(name, sizeof name, f)) *name = 0;
    if (f) fclose(f);
    name[strcspn(name, "\n")] = 0;
    snprintf(text, 64, *name ? "process %ld (%s)" : "process %ld", process, name);
}

/* ---- keeping --------------------------------------------------------------------------------- */

static bool is_at(const struct stat *s, const char *path) {
    struct stat there;
    return !stat(path, &there) && there.st_dev == s->st_dev && there.st_ino == s->st_ino;
}

/* The lock of the file at path, if it is kept already; or NULL. */
static Lock *find_kept(const char *path) {
    struct stat s;
    for (int i = 0; i < locks; i++)
        if (!fstat(lock[i].file, &s) && is_at(&s, path)) return &lock[i];
    return NULL;
}

/* Only functions that are safe in a signal handler. */
static void remove_empty(const Lock *l) {
    struct stat s;
    if (!l->made || fstat(l->file, &s) || !is_at(&s, l->path)) return;
    if (l->directory)
        rmdir(l->path);
    else if (!s.st_size)
        unlink(l->path);
}

void lock_abandon(void) {
    for (int i = locks - 1; i >= 0; i--)
        remove_empty(&lock[i]);  // what is in a directory before it
}

void lock_release(void) {
    lock_abandon();
    const int n = locks;
    locks = 0;
    for (int i = 0; i < n; i++) {
        close(lock[i].file);
        free(lock[i].path);
    }
}

/* Locks the open file of l. 0, or -1 with e filled: another process has it. */
static int claim(Lock *l, const char *flag, bool shared, Error *e) {
    const char *path = l->path;
    const int file = l->file;
    char who[64];
    int error = 0;
    for (int tries = 0; tries < TRIES; tries++) {
        error = flock(file, (shared ? LOCK_SH : LOCK_EX) | LOCK_NB) ? errno : 0;
        if (error != EWOULDBLOCK) break;
        usleep(PAUSE);
    }
    if (error == EWOULDBLOCK) {
        name_holder(file, who);
        return fail(e,
                    "--%s %s belongs to a run that has not ended, %s; wait for it, or choose "
                    "another --%s",
                    flag, path, who, flag);
    }
    if (error && !shared)
        fprintf(stderr, "note: %s cannot be locked (%s); do not start another run with it\n", path,
                strerror(error));
    l->locked = !error;
    return 0;
}

bool lock_holds(const char *path) {
    const Lock *l = find_kept(path);
    return l && l->locked && !l->shared;
}

/* Does this process alone keep the file, or a directory that it is in? */
static bool holds_around(const char *path) {
    char *part = xstrdup(path);
    bool holds = lock_holds(part);
    for (char *slash; !holds && (slash = strrchr(part, '/')) && slash > part;) {
        *slash = 0;
        holds = lock_holds(part);
    }
    free(part);
    return holds;
}

/* Locks the open file and notes it. l.path is copied. 0, or -1 with e filled and the file closed.
 */
static int keep(Lock l, Error *e) {
    static bool registered;
    if (!registered) registered = !atexit(lock_abandon);
    newfile_owned_by(holds_around);
    if (claim(&l, l.flag, l.shared, e)) {
        close(l.file);
        return -1;
    }
    if (locks == MOST) die("more than %d directories and files are kept", MOST);
    l.path = xstrdup(l.path);
    lock[locks] = l;
    locks++;
    return 0;
}

/* Keeps once more what is kept already, for this process alone unless it is shared. */
static int keep_again(Lock *l, const char *flag, bool shared, Error *e) {
    if (shared || !l->shared) return 0;
    if (claim(l, flag, false, e)) return -1;
    l->flag = flag;
    l->shared = false;
    return 0;
}

/* Opens a directory, and makes it if it is missing. *made: it was. -1: errno says why. */
static int open_directory(const char *dir, bool *made) {
    *made = !file_exists(dir);
    return make_directories(dir) ? -1 : open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* The same for a file. */
static int open_file(const char *path, bool *made) {
    const int flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC;  // O_NONBLOCK: a pipe is not waited for
    int file = open(path, flags);
    *made = false;
    if (file >= 0 || errno != ENOENT) return file;
    file = open(path, flags | O_CREAT | O_EXCL, 0666);
    *made = file >= 0;
    return file;
}

/* The beginning of a path that is a link which leads nowhere, to be freed; NULL: there is none. */
static char *broken_link(const char *path) {
    char *part = xstrdup(path);
    struct stat s;
    for (size_t i = 1; path[i - 1]; i++) {
        if (path[i] && path[i] != '/') continue;
        part[i] = 0;
        if (!lstat(part, &s) && S_ISLNK(s.st_mode) && stat(part, &s)) return part;
        part[i] = path[i];
    }
    free(part);
    return NULL;
}

/* Says why it cannot be made, for the reason in errno. Returns -1. */
static int cannot_make(const char *flag, const char *path, Error *e) {
    const int error = errno;
    char to[256] = "", *link = broken_link(path);
    if (!link)
        return fail(e, "cannot make --%s %s: %s; %s", flag, path, strerror(error),
                    error_remedy(error));
    if (readlink(link, to, sizeof to - 1) < 0) *to = 0;
    struct stat s;
    const bool reached = !stat(link, &s), loop = !reached && errno == ELOOP;
    if (reached || loop || errno == ENOENT || errno == ENOTDIR)
        fail(e, "cannot make --%s %s: %s is a link to %s, which %s", flag, path, link, to,
             loop ? "leads back to the link, or through too many others; remove the link"
                  : "is not there; make that, or remove the link");
    else
        fail(e, "cannot make --%s %s: %s is a link to %s: %s; %s", flag, path, link, to,
             strerror(errno), error_remedy(errno));
    free(link);
    return -1;
}

static int lock_one(const char *flag, const char *path, bool directory, bool shared, Error *e) {
    // Another process may remove or replace it between our opening and our locking it
    for (int tries = 0; tries < 100; tries++) {
        struct stat s;
        bool made;
        Lock *kept = find_kept(path);
        if (kept) return keep_again(kept, flag, shared, e);
        const int file = directory ? open_directory(path, &made) : open_file(path, &made);
        const bool again = file < 0 && (errno == EEXIST || errno == ENOENT);
        if (again && tries < 99) continue;
        if (file < 0 && shared) return 0;  // nor can a run of this user be in it
        if (file < 0) return cannot_make(flag, path, e);
        if (!directory && !fstat(file, &s) && !S_ISREG(s.st_mode)) {
            close(file);
            return 0;
        }
        if (keep((Lock){flag, (char *)path, file, directory, made, shared, false}, e)) return -1;
        if (!fstat(file, &s) && is_at(&s, path)) return 0;
        locks--;
        close(file);
        free(lock[locks].path);
    }
    return fail(e, "--%s %s is replaced again and again; choose another", flag, path);
}

int lock_directory(const char *flag, const char *dir, Error *e) {
    return lock_one(flag, dir, true, false, e);
}

int lock_share(const char *flag, const char *dir, Error *e) {
    return lock_one(flag, dir, true, true, e);
}

int lock_file(const char *flag, const char *path, Error *e) {
    return lock_one(flag, path, false, false, e);
}

/* ---- still in its place? --------------------------------------------------------------------- */

int lock_check(const char *flag, char **now, Error *e) {
    char path[64], *to;
    struct stat s;
    *now = NULL;
    for (int i = 0; i < locks; i++) {
        const bool whole = lock[i].directory && !lock[i].shared;
        if (!whole || strcmp(lock[i].flag, flag) || fstat(lock[i].file, &s)) continue;
        if (is_at(&s, lock[i].path)) continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", lock[i].file);
        to = real_path(path);
        if (to && !is_at(&s, to)) {
            free(to);
            to = NULL;
        }
        *now = to;
        return to ? fail(e, "--%s %s was moved to %s while this run used it", flag, lock[i].path,
                         to)
                  : fail(e, "--%s %s was removed while this run used it", flag, lock[i].path);
    }
    return 0;
}
