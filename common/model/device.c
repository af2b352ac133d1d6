/*
 * device.c - the first part of kernels.h on a CPU: the check of the machine, and memory.
 */
#include "model/kernels.h"

#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util.h"

/* ---- The device ------------------------------------------------------------------------------ */

void device_init(void) {
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return;
    die_usage(
        "this CPU lacks AVX2 or FMA, which posttrain.c needs (Intel since Haswell, 2013; AMD "
        "since Excavator, 2015); run it on another machine");
}

const char *device_name(void) {
    static char name[64];
    snprintf(name, sizeof name, "CPU, %d thread%s, AVX2", omp_get_max_threads(),
             omp_get_max_threads() == 1 ? "" : "s");
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
