/*
 * faults.c - a library to be loaded before a program (LD_PRELOAD), which makes one thing go wrong
 * in it. check_torture.c uses it.
 *
 *     FAULT="site N"     the first allocation on the N-th distinct path of calls fails (N from 1):
 *                        every place that allocates, once
 *     FAULT="call N"     the N-th allocation fails
 *     FAULT="kill N"     SIGKILL in place of the N-th operation on files: opening, closing,
 *                        syncing, renaming, making, removing
 *     FAULT="count"      nothing fails
 *     FAULTS=FILE        at the end "ALLOCATIONS SITES OPERATIONS" is written to this file
 *
 * An allocation is malloc, calloc, realloc, aligned_alloc, posix_memalign or mmap, of the program
 * or of a library that it uses, libc included and clang's libomp left out. A path consists of the
 * addresses to which the eight innermost calls return. There must be one thread: OMP_NUM_THREADS=1.
 */
#define _GNU_SOURCE  // defines: RTLD_NEXT

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* glibc's own, under names that are not replaced. */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

static enum { OFF, COUNT, SITE, CALL, KILL } mode;
static long wanted, allocations, sites, operations;
static int inside;  // backtrace may allocate

__attribute__((constructor)) static void begin(void) {
    void *path[2];
    const char *text = getenv("FAULT");
    if (!text) return;
    inside = 1;
    backtrace(path, 2);  // the first call loads a library
    inside = 0;
    if (sscanf(text, "site %ld", &wanted) == 1)
        mode = SITE;
    else if (sscanf(text, "call %ld", &wanted) == 1)
        mode = CALL;
    else if (sscanf(text, "kill %ld", &wanted) == 1)
        mode = KILL;
    else
        mode = COUNT;
}

__attribute__((destructor)) static void end(void) {
    char text[100];
    const char *path = getenv("FAULTS");
    if (!mode || !path) return;
    mode = OFF;
    int fd = (int)syscall(SYS_open, path, O_CREAT | O_WRONLY | O_TRUNC, 0666);
    int n = snprintf(text, sizeof text, "%ld %ld %ld\n", allocations, sites, operations);
    if (write(fd, text, (size_t)n) != n) _exit(9);
    close(fd);
}

/* ---- allocations ----------------------------------------------------------------------------- */

enum { DEPTH = 10, SLOTS = 1 << 16 };
static uint64_t seen[SLOTS];

/* Is this path of calls a new one? */
static int is_new(void) {
    void *path[DEPTH] = {0};
    inside = 1;
    int n = backtrace(path, DEPTH);
    inside = 0;
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 2; i < n; i++)
        hash = (hash ^ (uintptr_t)path[i]) * 0x100000001b3u;  // the first two are in this file
    hash += !hash;
    for (size_t at = hash % SLOTS;; at = (at + 1) % SLOTS) {
        if (seen[at] == hash) return 0;
        if (!seen[at]) return seen[at] = hash, sites < SLOTS / 2 ? 1 : (abort(), 0);
    }
}

/* clang's OpenMP is left out. When an allocation of its own fails, it waits for ever for a lock
   that it holds. */
static int is_openmp(const void *caller) {
    Dl_info found;
    return dladdr(caller, &found) && found.dli_fname && strstr(found.dli_fname, "libomp");
}

/* Counts an allocation; is it the one that fails? caller: the address to which it returns. */
static int fails(const void *caller) {
    if (!mode || mode == KILL || inside || is_openmp(caller)) return 0;
    allocations++;
    if (mode == CALL ? allocations != wanted : !is_new() || ++sites != wanted || mode != SITE)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n) { return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}
void *realloc(void *p, size_t n) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(p, n);
}
void *aligned_alloc(size_t alignment, size_t n) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, n);
}
int posix_memalign(void **p, size_t alignment, size_t n) {
    void *got = fails(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, n);
    if (got) *p = got;
    return got ? 0 : ENOMEM;
}
void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    return fails(__builtin_return_address(0))
               ? MAP_FAILED
               : (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

/* ---- operations on files --------------------------------------------------------------------- */

static void operation(void) {
    if (!mode) return;
    operations++;
    if (mode == KILL && operations == wanted) raise(SIGKILL);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

FILE *fopen(const char *path, const char *how) { return operation(), NEXT(fopen)(path, how); }
int fclose(FILE *f) { return operation(), NEXT(fclose)(f); }
int fflush(FILE *f) { return f != stdout && f != stderr ? operation() : (void)0, NEXT(fflush)(f); }
int fsync(int fd) { return operation(), NEXT(fsync)(fd); }
int rename(const char *from, const char *to) { return operation(), NEXT(rename)(from, to); }
int mkdir(const char *path, mode_t how) { return operation(), NEXT(mkdir)(path, how); }
int unlink(const char *path) { return operation(), NEXT(unlink)(path); }
int remove(const char *path) { return operation(), NEXT(remove)(path); }
