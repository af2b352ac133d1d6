/*
 * device.c - the first part of kernels.h on a CPU: the check of the machine, the choice of a
 * way to compute (simd.h), and memory.
 */
#include "model/ways.h"

#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util.h"

/* ---- The device ------------------------------------------------------------------------------ */

#define HAS(feature) (__builtin_cpu_supports(feature) != 0)

/* The ways to compute, the slowest first (simd.h). */
static const char *const way_names[] = {"avx2", "avx512", "avx512bf16"};
enum { AVX2, AVX512, AVX512_BF16, WAYS };

static int way;
static bool chosen;

static bool machine_has(int w) {
    const bool avx2 = HAS("avx2") && HAS("fma"),
               avx512 = HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl");
    return avx2 && (w < AVX512 || avx512) && (w < AVX512_BF16 || HAS("avx512bf16"));
}

/* Each function of kernels.h is a jump to that of the way that was chosen. */
#define DECLARE(f)                                               \
    extern __typeof__(f) f##_avx2, f##_avx512, f##_avx512bf16;   \
    __attribute__((used)) __typeof__(f) *f##_chosen = f##_avx2;  \
    __asm__(".text\n.globl " #f "\n.type " #f ", @function\n" #f \
            ":\n"                                                \
            "jmp *" #f "_chosen(%rip)\n");
KERNELS(DECLARE)

static void choose(int w) {
    way = w;
    chosen = true;
#define CHOOSE(f) f##_chosen = w == AVX2 ? f##_avx2 : w == AVX512 ? f##_avx512 : f##_avx512bf16;
    KERNELS(CHOOSE)
}

int device_choose(const char *name, Error *e) {
    device_init();
    int w = WAYS - 1;
    while (w > 0 && (strcmp(name, "auto") ? strcmp(name, way_names[w]) != 0 : !machine_has(w))) w--;
    if (strcmp(name, "auto") && strcmp(name, way_names[w]))
        return fail(e, "%s is no way to compute: use avx2, avx512, avx512bf16 or auto", name);
    if (!machine_has(w))
        return fail(e, "this CPU has no %s; without --cpu the program uses what there is", name);
    choose(w);
    return 0;
}

/* The environment variable POSTTRAIN_CPU is for tests. */
void device_init(void) {
    static bool checked;
    if (checked) return;
    checked = true;
    Error e;
    if (!machine_has(AVX2))
        die_usage(
            "this CPU lacks AVX2 or FMA, which posttrain.c needs (Intel since Haswell, 2013; AMD "
            "since Excavator, 2015); run it on another machine");
    const char *asked = getenv("POSTTRAIN_CPU");
    if (!chosen && device_choose(asked ? asked : "auto", &e))
        die_usage("POSTTRAIN_CPU: %s", e.text);
}

Precision cpu_precision;

void device_precision(Precision precision) { cpu_precision = precision; }

const char *device_name(void) {
    static const char *const names[] = {"AVX2", "AVX-512", "AVX-512 with bf16"};
    static char name[64];
    device_init();
    snprintf(name, sizeof name, "CPU, %d thread%s, %s", omp_get_max_threads(),
             omp_get_max_threads() == 1 ? "" : "s", names[way]);
    return name;
}

/* Reads a number of kB from the first line of a system file that matches this scanf format. Returns
   it in bytes, or 0 if no line matches. */
static size_t bytes_of(const char *path, const char *form) {
    FILE *f = fopen(path, "r");
    unsigned long long kb = 0;
    char line[256];
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, form, &kb) == 1) break;
    if (f) fclose(f);
    return (size_t)kb * 1024;
}

size_t device_memory_free(void) {
    const size_t bytes = bytes_of("/proc/meminfo", "MemAvailable: %llu kB");
    return bytes ? bytes : SIZE_MAX;
}

/* getrusage is not suitable: a process inherits its peak from the process that started it. */
size_t device_memory_peak(void) { return bytes_of("/proc/self/status", "VmHWM: %llu kB"); }

/* Large arrays are aligned to 2 MB and use huge pages if the system allows it. Reading a column of
   a weight matrix touches a new 4 KB page in every row. */
enum { HUGE_PAGE = 1 << 21 };

void *device_alloc(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * (size_t)HUGE_PAGE) return NULL;
    size_t ask = bytes + (bytes >= HUGE_PAGE ? HUGE_PAGE : 0) + !bytes;
    char *p =
        mmap(NULL, ask, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (bytes < HUGE_PAGE) return p;
    char *aligned = (char *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    if (aligned > p) munmap(p, (size_t)(aligned - p));
    size_t after = (size_t)(p + ask - (aligned + bytes)), page = 4096,
           rest = (page - bytes % page) % page;
    if (after > rest) munmap(aligned + bytes + rest, after - rest);
    madvise(aligned, bytes, MADV_HUGEPAGE);
    return aligned;
}

void device_free(void *p, size_t bytes) {
    if (p) munmap(p, bytes + !bytes);
}

void device_zero(void *p, size_t bytes) { memset(p, 0, bytes); }
void device_copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
void device_write(void *device, const void *host, size_t bytes) { memcpy(device, host, bytes); }
void device_read(void *host, const void *device, size_t bytes) { memcpy(host, device, bytes); }
real *device_map(const void *host, size_t n) {
    return n && (uintptr_t)host % _Alignof(real) == 0 ? (real *)(uintptr_t)host : NULL;
}

void device_unmap(const real *device, size_t n) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE),
                    begin = ((uintptr_t)device + page - 1) / page * page,
                    end = (uintptr_t)(device + n) / page * page;
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

void real_write(real *device, const float *host, size_t n) {
    memcpy(device, host, n * sizeof *host);
}
void real_read(float *host, const real *device, size_t n) {
    memcpy(host, device, n * sizeof *host);
}
