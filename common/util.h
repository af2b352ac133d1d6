/*
 * util.h - errors, checked memory, growing arrays, files that are written whole or not at all, and
 * random numbers that are a function of where they are used.
 *
 * A function fails in one of two ways. A *parser* (anything that reads what a person or another
 * program wrote) fills an Error and returns -1 or NULL. A *program* that cannot continue prints
 * what happened, where, and what to do next, and exits: die_usage() with status 2 when the input or
 * the command line is wrong, die() with status 1 when a run failed.
 *
 * kernels.cu includes this file too, so it must compile as C++.
 */
#ifndef POSTTRAIN_UTIL_H
#define POSTTRAIN_UTIL_H

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))

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
/* The verb after it */
static inline const char *are(long n) { return n == 1 ? "is" : "are"; }

/* Prints the n bytes of a text on stdout, each further line of it after "            | ". */
void print_indented(const char *text, size_t n);

/* Seconds on a monotonic clock. */
double now_seconds(void);

/* ---- Errors ---------------------------------------------------------------------------------- */

typedef struct {
    char text[1024];  // one or two sentences, no newline at the end
    int error;        // the errno that the text names and says no remedy for; 0: there is none
} Error;

/* Fills e (which may be NULL) and returns -1, so that a parser can write
 * `return fail(e, "...", ...)`. */
PRINTF_LIKE(2, 3) int fail(Error *e, const char *format, ...);
/* The same because of an errno, which the text names. */
PRINTF_LIKE(3, 4) int fail_errno(Error *e, int error, const char *format, ...);
/* What to do about an errno of a file that is written, "free some space". 0, for a text that says
   it itself: "do so". */
const char *error_remedy(int error);

/* Prints the message and exits with status 1: a run failed (no memory, no disk, a number that is
 * not finite). */
PRINTF_LIKE(1, 2) __attribute__((noreturn)) void die(const char *format, ...);

/* Prints the message and exits with status 2: the command line or the input is wrong. */
PRINTF_LIKE(1, 2) __attribute__((noreturn)) void die_usage(const char *format, ...);

/* From now on both call f with the message, instead of printing it, before they exit. */
void die_through(void (*f)(int status, const char *message));

/* Prints "note: ..." on stderr, for what a person should know about a file. The same note is
 * printed once. */
PRINTF_LIKE(1, 2) void note_once(const char *format, ...);

/* ---- Memory ---------------------------------------------------------------------------------- */

/* These never return NULL: when memory is short, the program exits with the file and the line that
 * asked for it. Sizes are products of dimensions, so they are size_t and checked for overflow. */
void *checked_memory(void *p, size_t count, size_t size, const char *file, int line);
void *checked_realloc(void *p, size_t count, size_t size, const char *file, int line);

#define xmalloc(bytes) checked_realloc(NULL, (bytes), 1, __FILE__, __LINE__)
#define xcalloc(count, size) \
    checked_memory(calloc((count) + !(count), (size)), (count), (size), __FILE__, __LINE__)
#define xrealloc(p, count, size) checked_realloc((p), (count), (size), __FILE__, __LINE__)
#define xstrdup(s) ((char *)checked_memory(strdup(s), strlen(s) + 1, 1, __FILE__, __LINE__))
#define xstrndup(s, n) ((char *)checked_memory(strndup((s), (n)), (n), 1, __FILE__, __LINE__))

/* An array of ints that grows. Start from {0}, release with free(a.v). */
typedef struct {
    int *v;
    size_t n, capacity;
} Ints;

void ints_push(Ints *a, int x);

/* A string that grows. Start from {0}, release with free(s.s). s.s is NULL until the first
   addition, and NUL-terminated after it. The text may itself contain NUL bytes, so its length is
   s.n. */
typedef struct {
    char *s;
    size_t n, capacity;
} Str;

void str_add(Str *a, const char *s, size_t n);
PRINTF_LIKE(2, 3) void str_printf(Str *a, const char *format, ...);

/* Bytes that belong to something else. s NULL: there is no text, unlike a text of 0 bytes. */
typedef struct {
    const char *s;
    size_t n;
} Slice;

/* a * b and a + b, or SIZE_MAX where that is more than a size_t can hold, so that a plan of memory
   never wraps around to a small number. */
static inline size_t size_product(size_t a, size_t b) {
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}
static inline size_t size_sum(size_t a, size_t b) {
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

/* Makes room for one more element of `size` bytes in an array of n elements that was only ever
   grown here: at n = 0 and at each power of two it doubles. Returns the array. */
static inline void *grow(void *v, int n, size_t size) {
    const bool full = (n & (n - 1)) == 0;
    return full ? xrealloc(v, n ? 2 * (size_t)n : 1, size) : v;
}

/* ---- Files ----------------------------------------------------------------------------------- */

/* "dir/name", to be freed. */
char *path_join(const char *dir, const char *name);
/* True when path, or dir/name, exists and is of any kind. A broken link does not exist. */
bool file_exists(const char *path);
bool exists_in(const char *dir, const char *name);
/* Are both there, and the same file or directory? A link is the one that it leads to. NULL: no. */
bool same_file(const char *a, const char *b);
/* Makes the directory and its missing parents, like mkdir -p. 0, or -1 with errno set. */
int make_directories(const char *path);

/* Appends a whole file of at most limit bytes to out, which is then NUL-terminated. 0, or -1 with e
 * filled. */
int read_file(const char *path, size_t limit, Str *out, Error *e);
/* The same for a file of a directory that somebody else made. A link is followed. A pipe, a device
   or a directory is refused, and never waited for. */
int read_regular_file(const char *path, size_t limit, Str *out, Error *e);
/* Opens a file of a directory that we write: at its end; or in the place of an older one, which is
   removed. A link, a pipe or a device of that name is refused, never followed and never waited for.
   NULL with e filled. */
FILE *append_file(const char *path, Error *e);
FILE *replace_file(const char *path, Error *e);
/* Opens a file, a pipe or a device that a person named, to write at its end or anew. A pipe that
   nobody reads is not waited for: errno is ENXIO. NULL: errno says why. */
FILE *open_named(const char *path, bool append);
/* Reads a line of at most limit bytes, its newline included. 1; 0: the file has ended; -1 with e
   filled: the line is longer, or cannot be read. */
int read_line(FILE *f, size_t limit, Str *line, Error *e);
/* -1 with e filled, which says how to mend it, if a text begins with a byte order mark:
   transformers reads no file of a model with one. */
int refuse_mark(const char *path, const char *text, size_t n, Error *e);
struct dirent;
/* The absolute path without links, to be freed. NULL: there is nothing, or it cannot be reached;
   errno says why. Without memory the program ends: the file must not be taken for an absent one. */
char *real_path(const char *path);
/* The same, also of a file that does not exist yet. */
char *resolve_path(const char *path);
/* A scandir of a directory that may be absent. One that cannot be read ends the program: it must
   not be taken for an empty one. order: of the entries, or NULL. Returns how many. */
int list_directory(const char *dir, int (*wanted)(const struct dirent *),
                   int (*order)(const struct dirent **, const struct dirent **),
                   struct dirent ***list);

/* A file or directory of ours that is not finished is called NAME.posttrain-PID, a name that nobody
   else uses: it may be removed when that process has ended. */
#define UNFINISHED_MARK ".posttrain-"

/* A new file is written under a temporary name, synced and renamed. A reader finds the old file or
 * the new one, each complete, and a full disk or a killed process never costs the old one. */
typedef struct {
    FILE *f;          // write here
    char *path;       // where the file will be
    char *temporary;  // path + UNFINISHED_MARK + our process id; NULL: path is opened itself
} NewFile;

/* Opens a temporary file in path's directory. First removes the temporary files of path whose
 * process no longer runs. A link, a pipe or a device at path is replaced, and not written to. 0, or
 * -1 with e filled. */
int newfile_open(NewFile *n, const char *path, Error *e);
/* The same for a path that a person named: a pipe, a terminal or /dev/null is written to, and a
   link stays, so that the file that it leads to is the one replaced. */
int newfile_open_named(NewFile *n, const char *path, Error *e);
/* With keep: syncs the file and renames it to path. Without keep, or after a failed write: removes
   it. Releases n in every case. 0, or -1 with e filled and the old file untouched. */
int newfile_close(NewFile *n, bool keep, Error *e);

/* The two halves of newfile_close with keep. newfile_finish syncs and closes the file, which keeps
   its temporary name; after a failure it is removed and n released. newfile_place renames a
   finished file to path, or without keep removes it, and releases n. 0, or -1 with e filled. */
int newfile_finish(NewFile *n, Error *e);
int newfile_place(NewFile *n, bool keep, Error *e);

/* For a message about a new file that cannot be written: says that the old one is unchanged, or is
   empty if there is none. */
const char *newfile_old(const char *path);
/* Removes the temporary files that are open now. For a signal handler that ends the program. */
void newfile_abandon(void);
/* newfile_open removes what another process has left of the same file: if that process has ended,
   or if f says that this one alone may write the file, whoever has that process's number now. */
void newfile_owned_by(bool (*f)(const char *path));

/* Has the process ended? One that has, and that its parent has not yet waited for, has. */
bool process_ended(long process);
/* path with mark and the id of a process behind it: f.posttrain-123. To be freed. */
char *newfile_name(const char *path, const char *mark, long process);
/* The process id in such a name, or -1. */
long newfile_writer(const char *name, const char *mark);
/* Syncs the directory that contains path, so that a rename in it survives a power failure. Errors
 * are ignored. */
void sync_directory_of(const char *path);

/* ---- Random numbers: Philox-4x32-10 ---------------------------------------------------------- */

/* Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". There is no state. A number is
 * a function of the seed and of its use: purpose, optimiser step, sequence, position and an index
 * within the position. So a draw depends neither on the batch nor on the thread nor on earlier
 * draws, and a resumed run needs to know only its step. */

typedef enum {
    RANDOM_INIT = 1,            // weights at random initialisation (step = tensor)
    RANDOM_SHUFFLE,             // order of the records in an epoch
    RANDOM_SPLIT,               // choice of the held-out records
    RANDOM_SAMPLE,              // a token drawn in generation
    RANDOM_NEFTUNE,             // noise on the embeddings
    RANDOM_DROPOUT_EMBD,        // dropout after the embeddings
    RANDOM_DROPOUT_ATTN,        // on the attention probabilities; plus layer << 8
    RANDOM_DROPOUT_ATTN_RESID,  // on the output of the attention; plus layer << 8
    RANDOM_DROPOUT_MLP_RESID,   // on the output of the MLP; plus layer << 8
    RANDOM_DATA,                // draws of a stage for its records
    RANDOM_DROPOUT_LORA,        // on the input of a LoRA; plus layer << 8 and place << 24
    RANDOM_DROPOUT_ADAPTER,     // in a bottleneck adapter; plus layer << 8 and place << 24
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
float random_normal(uint32_t x, uint32_t y);

/* Fills order[n] with a permutation of 0..n-1 (Fisher and Yates), drawn for this seed, purpose and
 * epoch. */
void random_permutation(int *order, int n, uint64_t seed, uint32_t purpose, uint32_t epoch);

#ifdef __cplusplus
}
#endif

#endif
