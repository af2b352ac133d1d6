/*
 * util.h - what every file of posttrain.c leans on: errors, checked memory, growing arrays, files
 * that are either whole or absent, and random numbers that are a function of where they are used.
 *
 * Two ways to fail, and no third. A *parser* (anything that reads what a person or another program
 * wrote) fills an Error and returns -1 or NULL. A *program* that cannot go on says what happened,
 * where, and what to do next, and ends: die_usage() with status 2 when the input or the command
 * line is wrong, die() with status 1 when a run failed.
 */
#ifndef POSTTRAIN_UTIL_H
#define POSTTRAIN_UTIL_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- Errors ---------------------------------------------------------------------------------- */

typedef struct {
    char text[1024];  // one or two sentences, no newline at the end
} Error;

/* Fills e (which may be NULL) and returns -1, so that a parser can say `return fail(e, "...",
 * ...)`. */
__attribute__((format(printf, 2, 3))) static inline int fail(Error *e, const char *format, ...) {
    if (e) {
        va_list args;
        va_start(args, format);
        vsnprintf(e->text, sizeof e->text, format, args);
        va_end(args);
    }
    return -1;
}

__attribute__((noreturn, format(printf, 2, 0))) static inline void die_with(int status,
                                                                            const char *format,
                                                                            va_list args) {
    fflush(stdout);
    fputs("error: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(status);
}

/* A run that failed (no memory, no disk, a number that is not finite): exit status 1. */
__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    die_with(1, format, args);
}

/* A wrong command line or wrong input: exit status 2. */
__attribute__((noreturn, format(printf, 1, 2))) static inline void die_usage(const char *format,
                                                                             ...) {
    va_list args;
    va_start(args, format);
    die_with(2, format, args);
}

/* ---- Memory: never NULL ---------------------------------------------------------------------- */

/* Sizes are products of dimensions, so they are size_t and checked for overflow. */

static inline void *checked_memory(void *p, size_t count, size_t size, const char *file, int line) {
    if (!p)
        die("%s:%d: out of memory asking for %zu x %zu bytes; close other programs, or use a "
            "smaller batch or model",
            file, line, count, size);
    return p;
}

static inline void *checked_realloc(void *p, size_t count, size_t size, const char *file,
                                    int line) {
    if (size && count > (SIZE_MAX - 1) / size) checked_memory(NULL, count, size, file, line);
    size_t bytes = count * size;
    return checked_memory(realloc(p, bytes ? bytes : 1), count, size, file, line);
}

#define xmalloc(bytes) checked_realloc(NULL, (bytes), 1, __FILE__, __LINE__)
#define xcalloc(count, size) \
    checked_memory(calloc((count) + !(count), (size)), (count), (size), __FILE__, __LINE__)
#define xrealloc(p, count, size) checked_realloc((p), (count), (size), __FILE__, __LINE__)
#define xstrdup(s) ((char *)checked_memory(strdup(s), strlen(s) + 1, 1, __FILE__, __LINE__))

/* An array of ints that grows; start from {0}, release with free(a.v). */
typedef struct {
    int *v;
    size_t n, capacity;
} Ints;

static inline void ints_push(Ints *a, int x) {
    if (a->n == a->capacity) {
        a->capacity = a->capacity ? 2 * a->capacity : 64;
        a->v = (int *)xrealloc(a->v, a->capacity, sizeof *a->v);
    }
    a->v[a->n++] = x;
}

/* A string that grows; start from {0}, release with free(s.s). s.s is NUL-terminated once anything
   was added; the text itself may hold NUL bytes, so s.n is its length. */
typedef struct {
    char *s;
    size_t n, capacity;
} Str;

static inline void str_add(Str *a, const char *s, size_t n) {
    if (a->n + n + 1 > a->capacity) {
        a->capacity = 2 * (a->n + n) + 64;
        a->s = (char *)xrealloc(a->s, a->capacity, 1);
    }
    if (n) memcpy(a->s + a->n, s, n);
    a->n += n;
    a->s[a->n] = 0;
}

__attribute__((format(printf, 2, 3))) static inline void str_printf(Str *a, const char *format,
                                                                    ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    str_add(a, "", 0);
    if (n > 0) {
        a->capacity = a->n + (size_t)n + 1;
        a->s = (char *)xrealloc(a->s, a->capacity, 1);
        vsnprintf(a->s + a->n, (size_t)n + 1, format, again);
        a->n += (size_t)n;
    }
    va_end(again);
}

/* Bytes that belong to something else. s NULL: there is no text, unlike a text of 0 bytes. */
typedef struct {
    const char *s;
    size_t n;
} Slice;

/* Makes room for one more element of `size` bytes in an array of n elements that was only ever
   grown here: at n = 0 and at each power of two it doubles. Returns the array. */
static inline void *grow(void *v, int n, size_t size) {
    const bool full = (n & (n - 1)) == 0;
    return full ? xrealloc(v, n ? 2 * (size_t)n : 1, size) : v;
}

/* ---- Files ----------------------------------------------------------------------------------- */

/* A file is written beside its place, synced and renamed: a reader sees the old one or the new one,
 * whole, and a full disk or a killed process never costs the old one. */

typedef struct {
    FILE *f;
    char *path, *aside;  // aside = path + ".tmp-<pid>"; NULL: path is a pipe, a terminal or
                         // /dev/null, and is written itself
} NewFile;

/* The process that was writing a name that ends in mark and its number (".tmp-123"), or -1. */
static inline long newfile_writer(const char *name, const char *mark) {
    const char *p = strrchr(name, '.');
    const size_t length = strlen(mark),
                 n = p && !strncmp(p, mark, length) ? strspn(p + length, "0123456789") : 0;
    return n >= 1 && n <= 9 && !p[length + n] ? strtol(p + length, NULL, 10) : -1;
}

/* Removes what writers of path that are no longer alive left beside it. */
static inline void newfile_tidy(const char *path) {
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

/* Opens path's neighbour for writing. 0, or -1 with e filled. */
static inline int newfile_open(NewFile *n, const char *path, Error *e) {
    struct stat there;
    Str aside = {NULL, 0, 0};
    if (stat(path, &there) || S_ISREG(there.st_mode) || S_ISDIR(there.st_mode)) {
        newfile_tidy(path);
        str_printf(&aside, "%s.tmp-%ld", path, (long)getpid());
    }
    n->path = xstrdup(path);
    n->aside = aside.s;
    n->f = fopen(n->aside ? n->aside : path, "wb");
    if (n->f) return 0;
    fail(e, "cannot write %s: %s; choose a directory that exists and is yours to write", path,
         strerror(errno));
    free(n->path);
    free(n->aside);
    return -1;
}

/* Makes the directory entry of path durable (a rename is only as safe as its directory). Errors are
 * not fatal. */
static inline void sync_directory_of(const char *path) {
    char *copy = xstrdup(path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(copy);
}

/* Syncs, renames into place and releases n; with keep false (or after a failed write) removes what
   was written. 0, or -1 with e filled and the old file untouched. */
static inline int newfile_close(NewFile *n, bool keep, Error *e) {
    int status = 0;
    bool bad = ferror(n->f) | fflush(n->f);
    int error = errno;
    if (!bad && keep && n->aside && fsync(fileno(n->f))) {
        bad = true;
        error = errno;
    }
    if (fclose(n->f) && !bad) {
        bad = true;
        error = errno;
    }
    if (!bad && keep && n->aside && rename(n->aside, n->path)) {
        bad = true;
        error = errno;
    }
    if ((bad || !keep) && n->aside) unlink(n->aside);
    if (bad && keep)
        status = fail(e, "cannot write %s: %s; what stood there before is unchanged", n->path,
                      strerror(error));
    if (!bad && keep) sync_directory_of(n->path);
    free(n->path);
    free(n->aside);
    memset(n, 0, sizeof *n);
    return status;
}

/* Reads a whole file of at most limit bytes into out (appended; NUL-terminated). 0, or -1 with e
 * filled. */
static inline int read_file(const char *path, size_t limit, Str *out, Error *e) {
    FILE *f = fopen(path, "rb");
    if (!f) return fail(e, "cannot open %s: %s", path, strerror(errno));
    char block[65536];
    size_t n, total = 0;
    str_add(out, "", 0);
    while ((n = fread(block, 1, sizeof block, f)) > 0) {
        total += n;
        if (total > limit) {
            fclose(f);
            return fail(e, "%s is larger than %zu bytes, the most that is read from such a file",
                        path, limit);
        }
        str_add(out, block, n);
    }
    int bad = ferror(f), error = errno;
    fclose(f);
    return bad ? fail(e, "cannot read %s: %s", path, strerror(error)) : 0;
}

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }

/* FNV-1a, 64 bits (Fowler, Noll, Vo): the hash of n more bytes, after those that gave `hash`. The
   first call gets HASH_START. */
#define HASH_START 0xcbf29ce484222325u
static inline uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n) {
    const unsigned char *b = (const unsigned char *)bytes;
    for (size_t i = 0; i < n; i++) hash = (hash ^ b[i]) * 0x100000001b3u;
    return hash;
}

/* The ending of a noun that is counted: "" for 1, else "s". */
static inline const char *plural(long n) { return n == 1 ? "" : "s"; }

/* Seconds on a clock that never goes back. */
static inline double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Random numbers: Philox-4x32-10 (Salmon et al -------------------------------------------- */

/* 2011, "Parallel random numbers: as easy as 1, 2, 3"). There is no state. A number is a function
 * of the seed and of what it is for: purpose, optimiser step, sequence, position and an index
 * within the position. So a draw does not depend on the batch, the thread, or on what was drawn
 * before, and a resumed run needs to know nothing but its step. */

typedef enum {
    RANDOM_INIT = 1,      // weights at random initialisation (step = tensor)
    RANDOM_SHUFFLE,       // order of the records in an epoch
    RANDOM_SPLIT,         // which records are held out
    RANDOM_SAMPLE,        // a token drawn in generation
    RANDOM_NEFTUNE,       // noise on the embeddings
    RANDOM_DROPOUT_EMBD,  // after the embeddings
    RANDOM_DROPOUT_ATTN,  // on the attention probabilities  (these three: add layer << 8)
    RANDOM_DROPOUT_ATTN_RESID,
    RANDOM_DROPOUT_MLP_RESID,
    RANDOM_DATA,          // whatever a stage draws for its records
    RANDOM_DROPOUT_LORA,  // on the input of a LoRA        (these two: add layer << 8 and the place
                          // << 24)
    RANDOM_DROPOUT_ADAPTER,  // in a bottleneck adapter
} RandomPurpose;

typedef struct {
    uint32_t v[4];
} Random4;

#ifdef __CUDACC__
#    define ON_BOTH __host__ __device__  // a GPU draws the same numbers
#else
#    define ON_BOTH
#endif

/* Four independent 32-bit numbers: the Philox bijection of counter c under key. */
ON_BOTH static inline Random4 philox(Random4 c, uint64_t key) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c.v[0], p1 = (uint64_t)0xCD9E8D57u * c.v[2];
        Random4 next = {{(uint32_t)(p1 >> 32) ^ c.v[1] ^ k0, (uint32_t)p1,
                         (uint32_t)(p0 >> 32) ^ c.v[3] ^ k1, (uint32_t)p0}};
        c = next;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

ON_BOTH static inline uint64_t random_key(uint64_t seed, uint32_t purpose) {
    return seed ^ ((uint64_t)purpose * 0x9E3779B97F4A7C15u);
}

ON_BOTH static inline Random4 random4(uint64_t seed, uint32_t purpose, uint32_t step,
                                      uint32_t sequence, uint32_t position, uint32_t index) {
    Random4 counter = {{index, position, sequence, step}};
    return philox(counter, random_key(seed, purpose));
}

/* [0, 1) in steps of 2^-24: exact in float. */
ON_BOTH static inline float random_uniform(uint32_t x) { return (float)(x >> 8) * 0x1p-24f; }

/* N(0, 1) from two words (Box and Muller 1958). */
static inline float random_normal(uint32_t x, uint32_t y) {
    double u = ((double)x + 1) * 0x1p-32, v = (double)y * 0x1p-32;
    return (float)(sqrt(-2 * log(u)) * cos(2 * M_PI * v));
}

/* order[0..n) becomes a permutation of 0..n-1: Fisher and Yates, drawn for this seed, purpose and
 * epoch. */
static inline void random_permutation(int *order, int n, uint64_t seed, uint32_t purpose,
                                      uint32_t epoch) {
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        uint32_t x = random4(seed, purpose, epoch, 0, (uint32_t)i, 0).v[0];
        int j = (int)(((uint64_t)x * (uint64_t)(i + 1)) >> 32);
        int swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

#endif
