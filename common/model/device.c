/*
 * device.c - the first part of kernels.h on a CPU: the check of the machine, the choice of a
 * way to compute (simd.h), and memory.
 */
#include "model/limits.h"
#include "model/ways.h"

#include <omp.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util.h"

/* ---- Threads that wait ----------------------------------------------------------------------- */

/*
 * A thread that waits for the others can spin, which is fast if they come soon, or sleep. When
 * another process takes a core, a spinning thread uses up the time that the thread it waits for
 * needs, and training is many times as slow. A value that the user has set is left alone.
 *
 * gcc's libgomp spins for milliseconds. SPINS rounds, some 20 microseconds, cost little on an idle
 * machine and avoid that (test/BENCHMARKS.md). libgomp reads the environment before main and has no
 * function for this, so the program starts itself again, once, with the variable set. It stays the
 * same process, with the same arguments, files and directory.
 *
 * clang's libomp sleeps too slowly to gain by it, but it can use fewer threads while other
 * processes run. The results do not depend on the number of threads.
 */
#define SPINS "2000"

extern void kmp_set_blocktime(int) __attribute__((weak));  // only libomp has it

/* Runs before main. In a static program it also runs before libgomp reads the environment. */
__attribute__((constructor(101))) static void wait_briefly(int argc, char **argv) {
    const char *preload = getenv("LD_PRELOAD");
    char self[4096];
    if (argc < 1 || kmp_set_blocktime || getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") ||
        setenv("GOMP_SPINCOUNT", SPINS, 0))
        return;
    // AT_BASE is 0 in a static program, and if the program is an argument of ld.so
    if (!getauxval(AT_BASE) || omp_get_max_threads() == 1) return;
    // by now the threads are bound to cores, and after execv this process would stay on the first's
    if (getenv("OMP_PROC_BIND") || getenv("OMP_PLACES") || getenv("GOMP_CPU_AFFINITY")) return;
    if (preload && strstr(preload, "vgpreload")) return;  // valgrind would not follow
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return;
    self[n] = 0;
    execv(self, argv);  // if this fails, the program runs as it is
}

static void share_the_machine(void) {
    if (kmp_set_blocktime && !getenv("OMP_DYNAMIC") && !getenv("OMP_NUM_THREADS") &&
        !getenv("KMP_BLOCKTIME") && !getenv("OMP_WAIT_POLICY"))
        omp_set_dynamic(true);
}

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

/*
 * Intel's CPUs begin a VDPBF16PS only every second cycle, but two multiply-adds every cycle. So the
 * products of many rows of bf16 use the latter there. Those of few rows read bf16 from memory, and
 * pairs need fewer instructions for that. Measured on 2 cores of an Intel Xeon with AMX, GPT-2
 * 124M: a step of 4x256 takes 4.8 and 5.2 s, with VDPBF16PS 7.5 and 7.1 s (`bench --bf16 --only
 * step`).
 */
bool cpu_slow_pairs;

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
    cpu_slow_pairs = !strcmp(name, "auto") && w == AVX512_BF16 && __builtin_cpu_is("intel");
    return 0;
}

/* The environment variable POSTTRAIN_CPU is for tests. */
void device_init(void) {
    static bool checked;
    if (checked) return;
    checked = true;
    share_the_machine();
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

size_t device_memory_free(void) { return memory_left(""); }

/* getrusage is not suitable: a process inherits its peak from the process that started it. */
size_t device_memory_peak(void) { return kilobytes_in("/proc/self/status", "VmHWM: %llu kB"); }

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

int vocabulary_rows(int V) { return V; }

void real_write(real *device, const float *host, size_t n) {
    memcpy(device, host, n * sizeof *host);
}
void real_read(float *host, const real *device, size_t n) {
    memcpy(host, device, n * sizeof *host);
}
void real_round(real *to, const float *from, size_t n) { memcpy(to, from, n * sizeof *to); }

void device_beside(bool beside) { (void)beside; }
void device_wait(void) {}
