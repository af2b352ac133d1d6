/*
 * machine.c - stacks, threads and the size of files: see machine.h.
 */
#include "run/machine.h"

#include "util.h"

#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <strings.h>
#include <sys/resource.h>

enum {
    LEAST_STACK = 512 << 10,  // bytes: the kernels keep tiles of up to 64 KiB there
    MOST_THREADS = 1024,
};

/* The bytes of a size in the form of OMP_STACKSIZE: a number of kilobytes, or one with B, K, M or G
   after it. 0: it is no size, and OpenMP ignores it. */
static double stack_size(const char *text) {
    char *end;
    const double n = strtod(text, &end);
    end += strspn(end, " \t");
    const double unit = !*end || !strcasecmp(end, "k") ? 1024
                        : !strcasecmp(end, "b")        ? 1
                        : !strcasecmp(end, "m")        ? 1 << 20
                        : !strcasecmp(end, "g")        ? 1 << 30
                                                       : 0;
    return end == text ? 0 : n * unit;
}

static pthread_mutex_t together = PTHREAD_MUTEX_INITIALIZER;

static void *wait_for_all(void *nothing) {
    pthread_mutex_lock(&together);
    pthread_mutex_unlock(&together);
    return nothing;
}

/* Makes the threads once that OpenMP will make, all at a time, since it ends the program in its own
   words when it cannot. bytes: of a thread's stack; 0: as many as the system gives. */
static void check_threads(int threads, double bytes) {
    pthread_t thread[MOST_THREADS];
    pthread_attr_t form;
    int n = 0, error = 0;
    pthread_attr_init(&form);
    if (bytes >= LEAST_STACK && bytes < 1e15) pthread_attr_setstacksize(&form, (size_t)bytes);
    pthread_mutex_lock(&together);
    while (n < threads - 1 && !(error = pthread_create(&thread[n], &form, wait_for_all, NULL))) n++;
    pthread_mutex_unlock(&together);
    for (int i = 0; i < n; i++) pthread_join(thread[i], NULL);
    pthread_attr_destroy(&form);
    if (error)
        die_usage(
            "only %d of %d threads can be made: %s; set OMP_NUM_THREADS=%d, or raise the limit "
            "(ulimit -u: processes and threads; ulimit -v and OMP_STACKSIZE: their memory)",
            n + 1, threads, strerror(error), n + 1);
}

/* Returns the bytes of a stack that the variable asks for, or 0. */
static double check_threads_stack(const char *variable) {
    const char *text = getenv(variable);
    const double bytes = text ? stack_size(text) : 0;
    if (bytes > 0 && bytes < LEAST_STACK)
        die_usage("%s is \"%s\", and a thread needs a stack of %d KiB; unset it, or set it to 2M",
                  variable, text, LEAST_STACK >> 10);
    return bytes;
}

void machine_check(void) {
    static const char *const variables[] = {"OMP_STACKSIZE", "GOMP_STACKSIZE", "KMP_STACKSIZE"};
    struct rlimit stack;
    double stack_of_threads = 0;
    signal(SIGXFSZ, SIG_IGN);
    if (!getrlimit(RLIMIT_STACK, &stack) && stack.rlim_cur < LEAST_STACK)
        die_usage("the stack is limited to %llu KiB, and %d KiB are needed; use ulimit -s 8192",
                  (unsigned long long)stack.rlim_cur >> 10, LEAST_STACK >> 10);
    for (int i = 0; i < 3; i++)
        stack_of_threads = fmax(stack_of_threads, check_threads_stack(variables[i]));
    if (omp_get_max_threads() > MOST_THREADS)
        die_usage(
            "OMP_NUM_THREADS asks for %d threads, and at most %d are possible; the machine has %d "
            "processors",
            omp_get_max_threads(), MOST_THREADS, omp_get_num_procs());
    check_threads(omp_get_max_threads(), stack_of_threads);
}
