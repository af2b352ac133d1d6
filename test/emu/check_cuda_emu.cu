/*
 * check_cuda_emu.cu - the emulation of CUDA itself: correct kernels give the right results in every
 * order, and every mistake that it claims to find is planted here once and found.
 *
 * What ends the program runs in a child, whose last words are compared. What only spoils results
 * must do so in at least one order. The witnesses are sums of small integers, which have one right
 * answer, and double precision. AddressSanitizer and ThreadSanitizer find some mistakes before the
 * emulator does, and say so in their own words.
 */
#include "cuda_emu.h"

#include <check.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))
/* ck_assert() writes a file each time that it passes: too slow for every element. */
#define ck_must(condition, ...)                      \
    do {                                             \
        if (!(condition)) ck_abort_msg(__VA_ARGS__); \
    } while (0)

static const char *const orders[] = {"forward",  "reverse",  "roundrobin",
                                     "random:1", "random:2", "random:3"};
#define FOR_ORDERS(o)                   \
    for (const char *const *o = orders; \
         o < orders + LENGTH(orders) && !setenv("CUDA_EMU_ORDER", *o, 1); o++)

/* Device memory with n numbers, and back. */
template <class T>
static T *device(const std::vector<T> &v) {
    T *p;
    ck_assert_int_eq(cudaMalloc(&p, v.size() * sizeof(T)), cudaSuccess);
    cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice);
    return p;
}

template <class T>
static std::vector<T> take(T *p, size_t n) {
    std::vector<T> v(n);
    cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost);
    cudaFree(p);
    return v;
}

static float random_float(uint32_t i) {  // in [-1, 1)
    i = (i ^ 61 ^ i >> 16) * 9;
    i = (i ^ i >> 4) * 0x27d4eb2d;
    i ^= i >> 15;
    return (float)(int32_t)(i * 2654435761u) * 0x1p-31f;
}

static std::vector<float> random_floats(size_t n, uint32_t seed) {
    std::vector<float> v(n);
    for (size_t i = 0; i < n; i++) v[i] = random_float((uint32_t)i + seed * 1000003);
    return v;
}

/* f must end its process, and say any of the words (separated by |) while it does. */
static void dies(const char *words, const std::function<void()> &f) {
    int ends[2];
    fflush(stdout);
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        f();
        exit(0);
    }
    close(ends[1]);
    std::string said;
    char part[4096];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) said.append(part, (size_t)n);
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    ck_assert_msg(status != 0, "not found: %s", words);
    for (std::string rest = words; !rest.empty();) {
        size_t bar = std::min(rest.find('|'), rest.size());
        if (said.find(rest.substr(0, bar)) != std::string::npos) return;
        rest.erase(0, bar + 1);
    }
    ck_abort_msg("instead of \"%s\" it said: %s", words, said.c_str());
}

/* The results of f, which are wrong, must show it in some order. ThreadSanitizer would stop the
 * program at a race before that. */
static void shows(const char *what, const std::function<bool()> &right) {
    bool shown = CUDA_EMU_TSAN;
    FOR_ORDERS(o) shown = shown || !right();
    ck_assert_msg(shown, "right in every order: %s", what);
}

/* ---- Blocks of threads. bug: which mistake is planted; 0: none ------------------------------- */

/* out[block] = the sum of n numbers */
template <int WARPS>
__global__ void __launch_bounds__(32 * WARPS)
    sum_kernel(float *out, const float *__restrict__ in, int n, int bug) {
    SHARED(float, part, [WARPS]);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float x = 0;
#pragma unroll 2
    for (int i = threadIdx.x; i < n; i += blockDim.x) x += in[(size_t)blockIdx.x * n + i];
    for (int flip = 16; flip > 0; flip /= 2) x += __shfl_xor_sync(0xffffffff, x, flip);
    if (lane == 0) part[warp] = x;
    if (bug != 1) __syncthreads();
    x = 0;
    for (int w = 0; w < WARPS; w++) x += part[w];
    if (threadIdx.x == 0) out[blockIdx.x] = x;
}

static bool sums_right(int bug) {
    const int n = 1000, blocks = 5;
    std::vector<float> in(n * blocks);
    for (int i = 0; i < n * blocks; i++) in[i] = (float)(i % 17);
    float *d_in = device(in), *d_out;
    cudaMalloc(&d_out, blocks * sizeof(float));
    LAUNCH(sum_kernel<8>, blocks, 256, 0, NULL, d_out, d_in, n, bug);
    std::vector<float> out = take(d_out, blocks);
    cudaFree(d_in);
    for (int b = 0; b < blocks; b++) {
        int want = 0;
        for (int i = 0; i < n; i++) want += (b * n + i) % 17;
        if (out[b] != (float)want) return false;
    }
    return true;
}

/* out (C,R) = in (R,C)^T through a padded tile; a block is 32 x 8 threads */
__global__ void transpose_kernel(float *out, const float *in, int R, int C, int bug) {
    SHARED(float, tile, [32][33]);
    for (int i = threadIdx.y; i < 32; i += blockDim.y) {
        int r = blockIdx.y * 32 + i, c = blockIdx.x * 32 + threadIdx.x;
        if (r < R && c < C + (bug == 2)) tile[i][threadIdx.x] = in[(size_t)r * C + c];
    }
    if (bug != 1) __syncthreads();
    for (int i = threadIdx.y; i < 32; i += blockDim.y) {
        int r = blockIdx.y * 32 + threadIdx.x, c = blockIdx.x * 32 + i;
        if (r < R && c < C) out[(size_t)c * R + r] = tile[threadIdx.x][i];
    }
}

static bool transposes_right(int bug) {
    const int R = 70, C = 41;
    float *d_in = device(random_floats(R * C, 1)), *d_out;
    cudaMalloc(&d_out, R * C * sizeof(float));
    LAUNCH(transpose_kernel, dim3((C + 31) / 32, (R + 31) / 32), dim3(32, 8), 0, 0, d_out, d_in, R,
           C, bug);
    std::vector<float> in = take(d_in, R * C), out = take(d_out, R * C);
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++)
            if (out[c * R + r] != in[r * C + c]) return false;
    return true;
}

/* x[i] = the sum of x[0 .. i], by doubling, in dynamic shared memory; with fmaxf in the place of +
 * for the largest so far */
__global__ void scan_kernel(float *x, bool largest, int bug) {
    SHARED_DYN(float, y);
    int i = threadIdx.x;
    if (bug != 3 || i > 0) y[i] = x[i];
    __syncthreads();
    for (int step = 1; step < (int)blockDim.x; step *= 2) {
        float other = i >= step ? y[i - step] : largest ? -INFINITY : 0;
        if (bug != 1) __syncthreads();
        y[i] = largest ? fmaxf(y[i], other) : y[i] + other;
        if (bug != 2) __syncthreads();
    }
    x[i] = y[i];
}

static bool scans_right(bool largest, int bug) {
    std::vector<float> x(128);
    for (int i = 0; i < 128; i++) x[i] = (float)((i * 37) % 128) - 200;
    float *d = device(x);
    LAUNCH(scan_kernel, 1, 128, 128 * sizeof(float), 0, d, largest, bug);
    std::vector<float> y = take(d, 128);
    float want = largest ? -INFINITY : 0;
    for (int i = 0; i < 128; i++) {
        want = largest ? fmaxf(want, x[i]) : want + x[i];
        if (y[i] != want) return false;
    }
    return true;
}

START_TEST(blocks) {
    setenv("CUDA_EMU_ORDER", orders[_i], 1);
    ck_assert(sums_right(0));
    ck_assert(transposes_right(0));
    ck_assert(scans_right(false, 0));
    ck_assert(scans_right(true, 0));
}
END_TEST

START_TEST(missing_barriers) {
    if (CUDA_EMU_TSAN) {
        dies("ThreadSanitizer: data race", [] { sums_right(1); });
        dies("ThreadSanitizer: data race", [] { transposes_right(1); });
        dies("ThreadSanitizer: data race", [] { scans_right(false, 1); });
        dies("ThreadSanitizer: data race", [] { scans_right(false, 2); });
        return;
    }
    shows("no barrier before the sum", [] { return sums_right(1); });
    shows("no barrier in the transposition", [] { return transposes_right(1); });
    shows("no barrier between read and write", [] { return scans_right(false, 1); });
    shows("no barrier between write and read", [] { return scans_right(false, 2); });
}
END_TEST

/* Unwritten shared memory: NaN shows in a sum, but fmaxf swallows it. */
START_TEST(fresh_memory) {
    setenv("CUDA_EMU_ORDER", "forward", 1);
    ck_assert(!scans_right(false, 3));
    setenv("CUDA_EMU_ORDER", "reverse", 1);
    ck_assert(!scans_right(true, 3));
    FOR_ORDERS(o) {
        float *d;
        ck_assert_int_eq(cudaMalloc(&d, 100 * sizeof(float)), cudaSuccess);
        ck_assert_uint_eq((uintptr_t)d % 256, 0);
        std::vector<float> x = take(d, 100);
        for (float f : x)
            ck_must(!strcmp(*o, "reverse") || (*o)[7] % 2 ? f > 3e38f : isnan(f), "%s: %g", *o,
                    (double)f);
    }
}
END_TEST

/* Every thread of every block draws a number. */
__global__ void ticket_kernel(int *ticket, int *counter) {
    ticket[(size_t)blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1);
}

START_TEST(order) {
    const int threads = 64, n = 5 * threads;
    FOR_ORDERS(o) {
        int *ticket = device(std::vector<int>(n, -1)), *counter = device(std::vector<int>(1, 0));
        LAUNCH(ticket_kernel, 5, threads, 0, 0, ticket, counter);
        ck_assert_int_eq(take(counter, 1)[0], n);
        std::vector<int> got = take(ticket, n), sorted = got;
        std::sort(sorted.begin(), sorted.end());
        for (int i = 0; i < n; i++) ck_must(sorted[i] == i, "%s: ticket %d", *o, i);
        if (!strcmp(*o, "reverse")) std::reverse(got.begin(), got.end());
        if (strncmp(*o, "random", 6))
            ck_assert(got == sorted);
        else
            ck_assert(got != sorted && got[0] / threads * threads + got[0] % threads == got[0]);
        if (!strncmp(*o, "random", 6))  // whole blocks, whatever their order
            for (int i = 0; i < n; i++)
                ck_must(got[i] / threads == got[i / threads * threads] / threads,
                        "%s: blocks overlap", *o);
    }
    setenv("CUDA_EMU_ORDER", "sideways", 1);
    dies("CUDA_EMU_ORDER is \"sideways\"", [] { sums_right(0); });
}
END_TEST

/* ---- Warps ----------------------------------------------------------------------------------- */

template <class T>
__global__ void shuffle_kernel(T *out, int width) {
    int i = threadIdx.x;
    T x = (T)(i * 3 + 1);
    out[i] = __shfl_sync(0xffffffff, x, (i + 1) % width, width);
    out[64 + i] = __shfl_up_sync(0xffffffff, x, 2u, width);
    out[128 + i] = __shfl_down_sync(0xffffffff, x, 3u, width);
    out[192 + i] = __shfl_xor_sync(0xffffffff, x, 5, width);
}

template <class T>
static void check_shuffles() {
    for (int width = 8; width <= 32; width *= 2) {
        T *d;
        cudaMalloc(&d, 256 * sizeof(T));
        LAUNCH(shuffle_kernel<T>, 1, 64, 0, 0, d, width);
        std::vector<T> out = take(d, 256);
        for (int i = 0; i < 64; i++) {
            int begin = i / width * width, end = begin + width;
            int from[4] = {begin + (i + 1) % width, i - 2 < begin ? i : i - 2,
                           i + 3 >= end ? i : i + 3, i ^ 5};
            for (int k = 0; k < 4; k++)
                ck_must(out[64 * k + i] == (T)(from[k] * 3 + 1), "width %d, shuffle %d, thread %d",
                        width, k, i);
        }
    }
}

__global__ void vote_kernel(unsigned *out) {
    int i = threadIdx.x;
    out[4 * i] = __ballot_sync(0xffffffff, i % 3 == 0);
    out[4 * i + 1] = (unsigned)__any_sync(0xffffffff, i == 40);
    out[4 * i + 2] = (unsigned)__all_sync(0xffffffff, i < 40);
    __syncwarp();
    out[4 * i + 3] = (unsigned)__all_sync(0xffffffff, i);
}

/* A warp passes numbers round through shared memory. */
__global__ void round_kernel(int *out, int bug) {
    SHARED(int, seat, [64]);
    int i = threadIdx.x, left = i / 32 * 32 + (i + 1) % 32;
    seat[i] = i;
    __syncwarp();
    for (int k = 0; k < 5; k++) {
        int x = seat[left];
        if (bug != 1) __syncwarp();
        seat[i] = x;
        if (bug != 2)
            __syncwarp();
        else
            __shfl_sync(0xffffffff, 0, 0);  // orders nothing
    }
    out[i] = seat[i];
}

static bool round_right(int bug) {
    int *d = device(std::vector<int>(64, 0));
    LAUNCH(round_kernel, 1, 64, 0, 0, d, bug);
    std::vector<int> out = take(d, 64);
    for (int i = 0; i < 64; i++)
        if (out[i] != i / 32 * 32 + (i + 5) % 32) return false;
    return true;
}

START_TEST(warps) {
    setenv("CUDA_EMU_ORDER", orders[_i], 1);
    check_shuffles<int>();
    check_shuffles<unsigned>();
    check_shuffles<float>();
    check_shuffles<double>();
    unsigned *d;
    cudaMalloc(&d, 256 * sizeof(unsigned));
    LAUNCH(vote_kernel, 1, 64, 0, 0, d);
    std::vector<unsigned> out = take(d, 256);
    for (int i = 0; i < 64; i++) {
        unsigned ballot = 0;
        for (int l = 0; l < 32; l++) ballot |= (unsigned)((i / 32 * 32 + l) % 3 == 0) << l;
        ck_must(out[4 * i] == ballot, "ballot of thread %d", i);
        ck_must(out[4 * i + 1] == (i >= 32) && out[4 * i + 2] == (i < 32) &&
                    out[4 * i + 3] == (i >= 32),
                "votes of thread %d", i);
    }
    ck_assert(round_right(0));
}
END_TEST

START_TEST(missing_syncwarp) {
    if (CUDA_EMU_TSAN) {
        dies("ThreadSanitizer: data race", [] { round_right(1); });
        dies("ThreadSanitizer: data race", [] { round_right(2); });
    } else {
        shows("no __syncwarp between read and write", [] { return round_right(1); });
    }
}
END_TEST

/* Sums of a histogram by integer atomics, and their largest. */
__global__ void histogram_kernel(int *count, unsigned *total, int *largest) {
    atomicAdd(&count[threadIdx.x % 7], 1);
    atomicAdd(total, threadIdx.x);
    atomicMax(largest, (int)(threadIdx.x * 37 % 101));
}

template <class T, class = void>
struct CanAdd : std::false_type {};
template <class T>
struct CanAdd<T, decltype((void)atomicAdd((T *)NULL, T()))> : std::true_type {};
static_assert(CanAdd<int>::value && CanAdd<unsigned>::value && !CanAdd<float>::value &&
                  !CanAdd<double>::value,
              "no atomics of floating point");

START_TEST(atomics) {
    FOR_ORDERS(o) {
        int *count = device(std::vector<int>(7, 0)), *largest = device(std::vector<int>(1, -5));
        unsigned *total = device(std::vector<unsigned>(1, 0));
        LAUNCH(histogram_kernel, 3, 128, 0, 0, count, total, largest);
        std::vector<int> c = take(count, 7);
        for (int i = 0; i < 7; i++) ck_assert_int_eq(c[i], 3 * (i < 128 % 7 ? 19 : 18));
        ck_assert_uint_eq(take(total, 1)[0], 3 * 127 * 128 / 2);
        ck_assert_int_eq(take(largest, 1)[0], 100);
    }
}
END_TEST

/* ---- Divergence ------------------------------------------------------------------------------ */

__global__ void diverging_kernel(int bug) {
    int i = threadIdx.x;
    if (bug == 1 && i < 40) __syncthreads();
    if (bug == 2 && i == 5) return;
    if (bug == 2) __syncthreads();
    if (bug == 3 && i < 63) __shfl_sync(0xffffffff, i, 0);
    if (bug == 4) {
        if (i % 2)
            __ballot_sync(0xffffffff, 1);
        else
            __any_sync(0xffffffff, 1);
    }
    if (bug == 5) {
        if (i < 32)
            __syncthreads();
        else
            __any_sync(0xffffffff, i == 40);
        if (i == 63) __syncthreads();
    }
    if (bug == 6) {
        if (i < 32)
            __syncthreads();
        else
            __syncthreads();
    }
    if (bug == 7) __shfl_sync(0x0000ffff, i, 0);
    if (bug == 8) __shfl_sync(0xffffffff, i, 32);
    if (bug == 9) __shfl_sync(0xffffffff, i, 9, 8);
    if (bug == 10) __shfl_xor_sync(0xffffffff, i, 32);
    if (bug == 11) __shfl_down_sync(0xffffffff, i, 1, 12);
    if (bug == 12) __shfl_up_sync(0xffffffff, i, 1, 0);
    if (bug == 13) __shfl_xor_sync(0xffffffff, i, 1, i < 7 ? 8 : 32);
    if (bug == 14) {
        if (i % 2)
            __syncwarp();
        else
            __syncwarp();
    }
    if (bug == 15 && i < 32) return;  // a whole warp leaves: only a barrier would miss it
    if (bug == 15) __syncwarp();
}

START_TEST(divergence) {
    static const char *const words[] = {"diverge",
                                        "diverge",
                                        "diverge",
                                        "diverge",
                                        "diverge",
                                        "diverge",
                                        "only whole warps are allowed",
                                        "reads lane 32 of a segment of 32",
                                        "reads lane 9 of a segment of 8",
                                        "reads lane",
                                        "with width 12",
                                        "with width 0",
                                        "diverge",
                                        "diverge"};
    FOR_ORDERS(o) {
        for (int bug = 1; bug <= LENGTH(words); bug++)
            dies(words[bug - 1], [=] { LAUNCH(diverging_kernel, 1, 64, 0, 0, bug); });
        LAUNCH(diverging_kernel, 1, 64, 0, 0, 15);
    }
    setenv("CUDA_EMU_ORDER", "forward", 1);
    dies(
        "✗ emulated CUDA: the threads of a block diverge: thread (0,0,0) is at __syncthreads, "
        "line ",
        [] { LAUNCH(diverging_kernel, 2, 64, 0, 0, 1); });
    dies("; kernel diverging_kernel, block (0,0,0), thread (",
         [] { LAUNCH(diverging_kernel, 2, 64, 0, 0, 1); });
    dies("thread (5,0,0) has ended", [] { LAUNCH(diverging_kernel, 2, 64, 0, 0, 2); });
}
END_TEST

/* ---- Memory ---------------------------------------------------------------------------------- */

__global__ void memory_kernel(float *p, int n, int bug) {
    SHARED(float, a, [8]);
    if (threadIdx.x) return;
    if (bug == 1) a[n] = 1;
    if (bug == 2) a[-n] = 1;
    if (bug == 3) {
        SHARED_DYN(float, b);
        b[n] = 1;
    }
    if (bug == 4) p[n] = 1;
    if (bug == 5) p[-n] = 1;
    if (bug == 6) {
        SHARED(float, c, [50000 / 4]);
        c[0] = 1;
    }
    if (bug == 7) {
        SHARED(float, c, [58200]);
        c[0] = 1;
    }
    if (bug == 8)
        p[0] = (float)(((const float4 *)(const void *)(p + n))->x +
                       ((const float4 *)(const void *)(p + n))->y),
        p[0] += make_float4(0, 0, 0, 0).x;
    if (bug == 9) {
        float4 v = *(const float4 *)(const void *)(p + n);
        p[0] = v.x;
    }
    if (bug == 10) *(uint4 *)(void *)(p + n) = make_uint4(1, 2, 3, 4);
    if (bug == 11) {
        __nv_bfloat162 v =
            *(const __nv_bfloat162 *)(const void *)((const __nv_bfloat16 *)(const void *)p + n);
        p[0] = __low2float(v);
    }
}

static void run_memory(int n, int bug, size_t dynamic) {
    float *p;
    cudaMalloc(&p, 8 * sizeof(float));
    LAUNCH(memory_kernel, 1, 32, dynamic, 0, p, n, bug);
    cudaFree(p);
}

START_TEST(bounds) {
    run_memory(7, 1, 0);
    run_memory(0, 2, 0);
    run_memory(7, 3, 32);
    run_memory(7, 4, 0);
    run_memory(0, 5, 0);
    run_memory(4, 9, 0);
    run_memory(4, 10, 0);
    run_memory(2, 11, 0);
    dies("written past the end of a of 32 bytes|AddressSanitizer|out of bounds",
         [] { run_memory(8, 1, 0); });
    dies("written before the beginning of a of 32 bytes|AddressSanitizer|out of bounds",
         [] { run_memory(1, 2, 0); });
    dies("written past the end of the dynamic array of 32 bytes|AddressSanitizer",
         [] { run_memory(8, 3, 32); });
    dies("written past the end of an allocation of the device of 32 bytes|AddressSanitizer",
         [] { run_memory(8, 4, 0); });
    dies("written before the beginning of an allocation of the device of 32 bytes|AddressSanitizer",
         [] { run_memory(1, 5, 0); });
    dies("launched without dynamic shared memory", [] { run_memory(0, 3, 0); });
    dies("50032 bytes of shared memory with c, where 49152 are allowed",
         [] { run_memory(0, 6, 0); });
    dies("49184 bytes of shared memory", [] { run_memory(0, 1, 48 << 10); });
    dies("more than 49152 need cudaFuncSetAttribute", [] { run_memory(0, 0, (48 << 10) + 4); });
    for (int most = 99 << 10; most <= 227 << 10; most += 128 << 10) {
        // what a block can have on GPUs of compute capability 8.6 and 12.0, and on those of 9.0
        if (most > 99 << 10) setenv("CUDA_EMU_SHARED", std::to_string(most).c_str(), 1);
        cudaDeviceProp prop;
        cudaGetDeviceProperties(&prop, 0);
        ck_assert_uint_eq(prop.sharedMemPerBlockOptin, (size_t)most);
        const std::string limit = "a block has at most " + std::to_string(most);
        dies(limit.c_str(), [=] { run_memory(0, 0, (size_t)most + 4); });
        ck_assert_int_eq(cudaFuncSetAttribute(
                             memory_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most + 1),
                         cudaErrorInvalidValue);
        ck_assert_int_eq(cudaGetLastError(), cudaErrorInvalidValue);
        ck_assert_int_eq(cudaFuncSetAttribute(
                             memory_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 90 << 10),
                         cudaSuccess);
        run_memory(0, 3, 90 << 10);
        dies("need cudaFuncSetAttribute", [] { run_memory(0, 0, 91 << 10); });
    }
    dies("232832 bytes of shared memory with c, where 232448 are allowed",
         [] { run_memory(0, 7, 0); });
    setenv("CUDA_EMU_SHARED", "1000", 1);
    dies("CUDA_EMU_SHARED is 1000; it can be 49152 to 232448", [] { run_memory(0, 0, 4); });
    unsetenv("CUDA_EMU_SHARED");
}
END_TEST

START_TEST(misaligned) {
    for (int n = 1; n < 4; n++) {
        dies("misaligned", [=] { run_memory(n, 9, 0); });
        dies("misaligned", [=] { run_memory(n, 10, 0); });
    }
    dies("misaligned", [] { run_memory(1, 11, 0); });
}
END_TEST

__global__ void nothing_kernel(const float *, int) {}
__global__ void nested_kernel() { LAUNCH(nothing_kernel, 1, 32, 0, 0, nullptr, 0); }

START_TEST(launches) {
    LAUNCH(nothing_kernel, 1, 32, 0, 0, NULL, 0);
    LAUNCH((nothing_kernel), dim3(2, 3, 4), dim3(4, 4, 64), 0, 0, nullptr, 0);
    for (int threads : {0, 31, 33, 1056, -32})
        dies("a block of ", [=] { LAUNCH(nothing_kernel, 1, threads, 0, 0, NULL, 0); });
    dies("a block of ", [] { LAUNCH(nothing_kernel, 1, dim3(1, 1, 128), 0, 0, NULL, 0); });
    for (int blocks : {0, -1})
        dies("a grid of ", [=] { LAUNCH(nothing_kernel, blocks, 32, 0, 0, NULL, 0); });
    dies("a grid of ", [] { LAUNCH(nothing_kernel, dim3(1, 65536), 32, 0, 0, NULL, 0); });
    dies("argument 1, ", [] {
        float x = 0;
        LAUNCH(nothing_kernel, 1, 32, 0, 0, &x, 0);
    });
    dies("is launched from inside a kernel", [] { LAUNCH(nested_kernel, 1, 32, 0, 0); });
    float *pinned;
    cudaMallocHost(&pinned, 4);
    LAUNCH(nothing_kernel, 1, 32, 0, 0, pinned, 0);
    cudaFreeHost(pinned);
}
END_TEST

/* ---- Tensor cores, copies that take time ----------------------------------------------------- */

/* C (16,N) = A (16,K) B (K,N), bf16, row-major; K and N multiples of 16. A block of two warps makes
   16 columns, 8 each; the first warp fetches A and the second B, the next slice of 16 while this
   one is multiplied. */
__global__ void mma_kernel(float *C, const __nv_bfloat16 *A, const __nv_bfloat16 *B, int K, int N,
                           int bug) {
    SHARED(__nv_bfloat16, a, [2][16][24]);
    SHARED(__nv_bfloat16, b, [2][16][24]);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = 16 * blockIdx.x;
    float d[4] = {0, 0, 0, 0};
    auto fetch = [&](int slice) {
        int row = lane / 2, half = lane % 2 * 8;
        if (slice * 16 < K && warp == 0)
            cp_async16(&a[slice % 2][row][half], A + (size_t)row * K + slice * 16 + half);
        if (slice * 16 < K && warp == 1)
            cp_async16(&b[slice % 2][row][half],
                       B + (size_t)(slice * 16 + row) * N + column + half);
        cp_async_commit();
    };
    fetch(0);
    for (int slice = 0; slice * 16 < K; slice++) {
        fetch(slice + 1);
        if (bug == 1)
            cp_async_wait<2>();
        else if (bug != 2 || slice == 0)
            cp_async_wait<1>();
        if (bug != 3) __syncthreads();
        uint32_t x[4], y[4];
        ldmatrix_x4(x, &a[slice % 2][lane % 16][lane / 16 * 8]);
        ldmatrix_x4_trans(y, &b[slice % 2][lane % 16][lane / 16 * 8]);
        mma_bf16(d, x, y + 2 * warp);
        if (bug != 4) __syncthreads();
    }
    cp_async_wait<0>();
    float *out = C + (size_t)(lane / 4) * N + column + 8 * warp + lane % 4 * 2;
    *(float2 *)(void *)out = make_float2(d[0], d[1]);
    *(float2 *)(void *)(out + 8 * N) = make_float2(d[2], d[3]);
}

static bool mma_right(int bug) {
    const int K = 80, N = 32;
    std::vector<__nv_bfloat16> A(16 * K), B(K * N);
    for (int i = 0; i < 16 * K; i++) A[i] = __float2bfloat16((float)(i * 7 % 23 - 11));
    for (int i = 0; i < K * N; i++) B[i] = __float2bfloat16((float)(i * 5 % 19 - 9));
    __nv_bfloat16 *a = device(A), *b = device(B);
    float *c;
    cudaMalloc(&c, 16 * N * sizeof(float));
    LAUNCH(mma_kernel, N / 16, 64, 0, 0, c, a, b, K, N, bug);
    cudaFree(a);
    cudaFree(b);
    std::vector<float> C = take(c, 16 * N);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < N; j++) {
            int want = 0;
            for (int k = 0; k < K; k++)
                want += ((i * K + k) * 7 % 23 - 11) * ((k * N + j) * 5 % 19 - 9);
            if (C[i * N + j] != (float)want) return false;
        }
    }
    return true;
}

/* ldmatrix and mma against the tables of the PTX ISA, one lane's registers at a time. */
__global__ void layout_kernel(uint32_t *out) {
    SHARED(uint16_t, m, [4][8][8]);
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) m[i / 64][i / 8 % 8][i % 8] = (uint16_t)i;
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, m[lane / 8][lane % 8]);
    for (int i = 0; i < 4; i++) out[8 * lane + i] = r[i];
    ldmatrix_x4_trans(r, m[lane / 8][lane % 8]);
    for (int i = 0; i < 4; i++) out[8 * lane + 4 + i] = r[i];
}

START_TEST(tensor_cores) {
    setenv("CUDA_EMU_ORDER", orders[_i], 1);
    ck_assert(mma_right(0));
    uint32_t *d = device(std::vector<uint32_t>(256, 0));
    LAUNCH(layout_kernel, 1, 32, 0, 0, d);
    std::vector<uint32_t> out = take(d, 256);
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            uint32_t straight = (uint32_t)(64 * i + 2 * lane),
                     across = (uint32_t)(64 * i + lane / 4 + lane % 4 * 16);
            ck_must(out[8 * lane + i] == (straight | (straight + 1) << 16),
                    "ldmatrix: lane %d, register %d", lane, i);
            ck_must(out[8 * lane + 4 + i] == (across | (across + 8) << 16),
                    "ldmatrix.trans: lane %d, register %d", lane, i);
        }
    }
}
END_TEST

/* C (64,64) = A (64,64) B, all integers, by one warp group. B is a tile of 64 rows of 128 bytes:
   rows of B if they are `down`, else its columns. PTX ISA, wgmma: chunk c of row r of a tile that
   begins at a multiple of 1,024 bytes is at 128 r + 16 (c xor r % 8); a product of 16 more terms
   begins 16 rows further down, or 32 bytes further right. */
template <bool down>
__global__ void group_kernel(float *C, const __nv_bfloat16 *A, const __nv_bfloat16 *tile, int bug) {
    SHARED_DYN(unsigned char, memory);
    const int i = threadIdx.x, lane = i % 32, g = lane / 4, t = lane % 4, row = i / 32 * 16 + g;
    memory += (1024 - shared_address(memory) % 1024) % 1024;
    for (int chunk = i; chunk < 512; chunk += blockDim.x)
        cp_async16(memory + chunk / 8 * 128 + (chunk % 8 ^ chunk / 8 % 8) * 16, tile + 8 * chunk);
    cp_async_commit();
    cp_async_wait<0>();
    if (bug != 1) fence_for_wgmma();
    __syncthreads();
    float d[8][4], other[8][4];
    for (int k = 0; k < (bug == 2 && i < 32 ? 48 : 64); k += 16) {
        uint32_t a[4];
        for (int j = 0; j < 4; j++) {
            const __nv_bfloat16 *from = A + 64 * (row + j % 2 * 8) + k + 2 * t + j / 2 * 8;
            a[j] = __bfloat16_as_ushort(from[0]) | (uint32_t)__bfloat16_as_ushort(from[1]) << 16;
        }
        uint64_t begin = shared_address(memory) + (uint64_t)(down ? 128 * k : 2 * k);
        uint64_t operand =
            begin / 16 | (uint64_t)(1024 / 16) << 32 | (uint64_t)(bug == 3 ? 0 : 1) << 62;
        wgmma_bf16<down>(d, a, operand, k > 0);
    }
    if (bug == 4) memory[16 * i]++;
    if (bug != 5 && bug != 6) wgmma_wait(bug == 8 ? other : d);
    for (int j = 0; j < 8; j++)
        for (int e = 0; e < 4; e++) C[64 * (row + e / 2 * 8) + 8 * j + 2 * t + e % 2] = d[j][e];
    if (bug == 6) wgmma_wait(d);
}

template <bool down>
static bool group_right(int bug) {
    std::vector<__nv_bfloat16> A(64 * 64), tile(64 * 64);
    for (int i = 0; i < 64 * 64; i++) {
        A[i] = __float2bfloat16((float)(i * 7 % 23 - 11));
        tile[i] = __float2bfloat16((float)(i * 5 % 19 - 9));
    }
    __nv_bfloat16 *a = device(A), *b = device(tile);
    float *c;
    cudaMalloc(&c, 64 * 64 * sizeof(float));
    LAUNCH(group_kernel<down>, 1, bug == 7 ? 64 : 128, 64 * 128 + 1024, 0, c, a, b, bug);
    cudaFree(a);
    cudaFree(b);
    std::vector<float> C = take(c, 64 * 64);
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < 64; j++) {
            int want = 0;
            for (int k = 0; k < 64; k++)
                want +=
                    ((i * 64 + k) * 7 % 23 - 11) * ((down ? k * 64 + j : j * 64 + k) * 5 % 19 - 9);
            if (C[i * 64 + j] != (float)want) return false;
        }
    return true;
}

START_TEST(warp_groups) {
    setenv("CUDA_EMU_ORDER", orders[_i], 1);
    ck_assert(group_right<false>(0));
    ck_assert(group_right<true>(0));
}
END_TEST

START_TEST(bad_warp_groups) {
    dies("has written without a fence", [] { group_right<false>(1); });
    dies("wgmma_bf16 and warp", [] { group_right<true>(2); });
    dies("only rows of 128 bytes, swizzled", [] { group_right<true>(3); });
    dies("while a wgmma_bf16 read it", [] { group_right<false>(4); });
    dies("that it has not waited for", [] { group_right<false>(5); });
    shows("reading sums before the wait", [] { return group_right<false>(6); });
    dies("in a block of 64 threads", [] { group_right<false>(7); });
    dies("that it has not waited for", [] { group_right<false>(8); });  // but for other sums
}
END_TEST

START_TEST(missing_waits) {
    if (CUDA_EMU_TSAN) {
        dies("ThreadSanitizer: data race", [] { mma_right(3); });
        dies("ThreadSanitizer: data race", [] { mma_right(4); });
        return;
    }
    shows("waiting for too few copies", [] { return mma_right(1); });
    shows("waiting once", [] { return mma_right(2); });
    shows("no barrier after the wait", [] { return mma_right(3); });
    shows("no barrier before the next copy", [] { return mma_right(4); });
}
END_TEST

__global__ void copy_kernel(const float *p, int bug) {
    SHARED(float, a, [128]);
    uint32_t r[4];
    int i = threadIdx.x;
    if (bug == 0) {
        cp_async16(a + 4 * i, p + 4 * i);
        cp_async_commit();
        cp_async_wait<0>();
    }
    if (bug == 1) {
        cp_async16(a + 4 * i, p + 4 * i);
        cp_async_commit();
    }
    if (bug == 2) {
        cp_async16(a + 4 * i, p + 4 * i);
        cp_async_wait<0>();
    }  // no group, nothing to wait for
    if (bug == 3) cp_async16(a + i + 1, p + 4 * i);
    if (bug == 4) cp_async16(a + 4 * i, p + i + 1);
    if (bug == 5) cp_async16(a + 4 * i + 128, p + 4 * i);
    if (bug == 6) cp_async16(a + 4 * i, p + 4 * i + 128);
    if (bug == 7) cp_async16(const_cast<float *>(p) + 4 * i, p + 4 * i);
    if (bug == 8) ldmatrix_x4(r, a + i);
    if (bug == 9) ldmatrix_x4(r, p + 4 * i);
    if (bug == 10) ldmatrix_x4_trans(r, a + 4 * i + 4);
}

START_TEST(bad_copies) {
    static const char *const words[] = {"that nobody waited for",
                                        "that nobody waited for",
                                        "misaligned cp_async16",
                                        "misaligned cp_async16",
                                        "not within an array of shared memory",
                                        "where the allocation of 512 bytes ends",
                                        "not within an array of shared memory",
                                        "misaligned ldmatrix_x4",
                                        "not within an array",
                                        "ldmatrix_x4_trans"};
    float *p = device(random_floats(128, 3));
    LAUNCH(copy_kernel, 1, 32, 0, 0, p, 0);
    for (int bug = 1; bug <= LENGTH(words); bug++)
        dies(words[bug - 1], [=] { LAUNCH(copy_kernel, 1, 32, 0, 0, p, bug); });
    cudaFree(p);
}
END_TEST

/* ---- Arithmetic ------------------------------------------------------------------------------ */

/* Of the two bf16 next to x, the nearer one; in a tie the even one. */
START_TEST(bf16) {
    for (uint32_t i = 0; i < 200000; i++) {
        float x = __uint_as_float(i * 21407u + (i % 3 ? 0 : 0x8000));
        if (!isfinite(x)) continue;
        uint16_t low = (uint16_t)(__float_as_uint(x) >> 16),
                 got = __bfloat16_as_ushort(__float2bfloat16(x));
        uint16_t high = (uint16_t)(low + 1);  // away from zero; beyond the largest it is infinity,
                                              // which counts as the next power of two
        double down = (double)__bfloat162float(__ushort_as_bfloat16(low)),
               up = (high & 0x7fff) == 0x7f80
                        ? copysign(0x1p128, (double)x)
                        : (double)__bfloat162float(__ushort_as_bfloat16(high));
        double to_down = fabs((double)x - down), to_up = fabs(up - (double)x);
        uint16_t want = to_down < to_up || (to_down == to_up && low % 2 == 0) ? low : high;
        ck_must(got == want, "%a becomes %04x, not %04x", (double)x, got, want);
    }
    ck_assert(isnan(__bfloat162float(__float2bfloat16(NAN))) &&
              isnan(__bfloat162float(__float2bfloat16(__uint_as_float(0x7f800001)))));
    ck_assert(isinf(__bfloat162float(__float2bfloat16(3.4e38f))) &&
              __bfloat162float(__float2bfloat16(-INFINITY)) == -INFINITY);
    float2 pair = __bfloat1622float2(__floats2bfloat162_rn(1.5f, -2));
    ck_assert(pair.x == 1.5f && pair.y == -2);
    ck_assert_uint_eq(__umulhi(0xffffffff, 0xfffffffe), 0xfffffffd);
    ck_assert(__fmaf_rn(0x1.001p0f, 0x1.001p0f, -0x1.002p0f) == 0x1p-24f);
}
END_TEST

/* ---- The runtime ----------------------------------------------------------------------------- */

START_TEST(memory) {
    cudaDeviceProp prop;
    ck_assert_int_eq(cudaGetDeviceProperties(&prop, 0), cudaSuccess);
    ck_assert_str_eq(prop.name, "emulated");
    ck_assert(prop.major == 9 && prop.minor == 0);
    setenv("CUDA_EMU_CAPABILITY", "75", 1);
    ck_assert_int_eq(cudaGetDeviceProperties(&prop, 0), cudaSuccess);
    ck_assert(prop.major == 7 && prop.minor == 5);

    setenv("CUDA_EMU_MEMORY", "1000", 1);
    size_t left, total;
    void *p, *q;
    ck_assert_int_eq(cudaMalloc(&p, 600), cudaSuccess);
    ck_assert_int_eq(cudaMalloc(&q, 401), cudaErrorMemoryAllocation);
    ck_assert_ptr_null(q);
    ck_assert_int_eq(cudaPeekAtLastError(), cudaErrorMemoryAllocation);
    ck_assert_str_eq(cudaGetErrorName(cudaGetLastError()), "cudaErrorMemoryAllocation");
    ck_assert_int_eq(cudaGetLastError(), cudaSuccess);
    ck_assert_int_eq(cudaMemGetInfo(&left, &total), cudaSuccess);
    ck_assert(left == 400 && total == 1000);
    ck_assert_int_eq(cudaMalloc(&q, 400), cudaSuccess);
    cudaFree(p);
    cudaFree(q);
    cudaFree(NULL);
    cudaMemGetInfo(&left, &total);
    ck_assert_uint_eq(left, 1000);

    setenv("CUDA_EMU_DEVICES", "0", 1);
    int count = 5;
    ck_assert_int_eq(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    ck_assert_int_eq(count, 0);
    ck_assert_int_eq(cudaSetDevice(0), cudaErrorNoDevice);
    ck_assert_int_eq(cudaMalloc(&p, 4), cudaErrorNoDevice);
    ck_assert_str_eq(cudaGetErrorString(cudaErrorNoDevice), "no CUDA-capable device is detected");
}
END_TEST

START_TEST(copies) {
    std::vector<float> x = random_floats(10, 4);
    float *d = device(x), *e, *h = x.data();
    cudaMalloc(&e, 40);
    cudaMemcpy(e, d, 40, cudaMemcpyDeviceToDevice);
    cudaMemset(d, 0, 20);
    std::vector<float> y(10);
    cudaMemcpy(y.data(), d, 40, cudaMemcpyDefault);
    for (int i = 0; i < 10; i++) ck_must(y[i] == (i < 5 ? 0 : x[i]), "element %d", i);
    cudaMemcpy(y.data(), e + 1, 36, cudaMemcpyDeviceToHost);
    ck_assert(y[8] == x[9]);

    dies("cudaMemcpyHostToDevice of 40 bytes",
         [=] { cudaMemcpy(h, d, 40, cudaMemcpyHostToDevice); });
    dies("cudaMemcpyDeviceToHost of 40 bytes",
         [=] { cudaMemcpy(d, h, 40, cudaMemcpyDeviceToHost); });
    dies("cudaMemcpyDeviceToDevice of 40 bytes",
         [=] { cudaMemcpyAsync(d, h, 40, cudaMemcpyDeviceToDevice); });
    dies("ends after 36", [=] { cudaMemcpy(d + 1, h, 40, cudaMemcpyHostToDevice); });
    dies("ends after 36", [=] { cudaMemcpy(h, d + 1, 40, cudaMemcpyDeviceToHost); });
    dies("ends after 40", [=] { cudaMemset(d, 0, 41); });
    dies("is not memory of the device", [=] { cudaMemset(h, 0, 4); });
    dies("not the beginning of an allocation", [=] { cudaFree(d + 1); });
    dies("not the beginning of an allocation", [=] { cudaFree(h); });
    dies("not the beginning of an allocation|AddressSanitizer", [=] {
        cudaFree(d);
        cudaFree(d);
    });
    if (CUDA_EMU_ASAN) {
        dies("AddressSanitizer", [=] { printf("%g\n", (double)*(volatile float *)d); });
        dies("AddressSanitizer", [=] { *(volatile float *)d = 1; });
        dies("AddressSanitizer", [=] { memcpy(h, d, 40); });
    }
    cudaFree(d);
    cudaFree(e);
}
END_TEST

/* Pinned memory, asynchronously: reading too early gives NaN, and a change too early is reported.
 */
START_TEST(asynchronous) {
    float *d = device(std::vector<float>(4, 2.5f)), *h;
    cudaStream_t stream;
    cudaStreamCreate(&stream);
    cudaMallocHost(&h, 16);
    cudaMemcpyAsync(h, d, 16, cudaMemcpyDeviceToHost, stream);
    ck_assert(isnan(h[0]) && isnan(h[3]));
    cudaStreamSynchronize(stream);
    ck_assert(h[0] == 2.5f && h[3] == 2.5f);
    h[1] = 7;
    cudaMemcpyAsync(d, h, 16, cudaMemcpyHostToDevice, stream);
    dies("was changed before it was waited for", [=] {
        h[1] = 8;
        cudaStreamSynchronize(stream);
    });
    cudaDeviceSynchronize();
    h[1] = 8;
    cudaMemcpyAsync(h, d, 16, cudaMemcpyDeviceToHost, stream);
    cudaMemcpyAsync(d, h, 16, cudaMemcpyHostToDevice, stream);  // after the other, as in a stream
    cudaDeviceSynchronize();
    ck_assert(h[1] == 7);
    volatile int one = 1;  // gcc would see it, too
    dies("is not pinned memory", [=, &one] { cudaFreeHost(h + one); });
    cudaFreeHost(h);
    float page[4] = {1, 2, 3, 4};
    ck_assert_int_eq(cudaHostRegister(page, sizeof page, cudaHostRegisterDefault), cudaSuccess);
    ck_assert_int_eq(cudaHostRegister(page, sizeof page, cudaHostRegisterDefault),
                     cudaErrorInvalidValue);
    cudaMemcpyAsync(page, d, 16, cudaMemcpyDeviceToHost, stream);
    ck_assert(isnan(page[0]));
    cudaHostUnregister(page);
    ck_assert(page[1] == 7);
    cudaEvent_t from, to;
    float ms;
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    cudaEventRecord(from, stream);
    cudaEventRecord(to, stream);
    cudaEventSynchronize(to);
    cudaEventElapsedTime(&ms, from, to);
    ck_assert(ms >= 0 && ms < 1000);
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    cudaStreamDestroy(stream);
    cudaFree(d);
}
END_TEST

/* ---- Streams --------------------------------------------------------------------------------- */

__global__ void twice_kernel(float *out, const float *in) {
    out[threadIdx.x] = 2 * in[threadIdx.x];
}

/* The first stream brings a number, the second doubles it, and the first doubles it again and
 * overwrites it. bug: the wait that is missing; 0: none. */
static bool two_streams_right(int bug) {
    enum { N = 32 };
    const std::vector<float> none(N);
    float *a = device(none), *b = device(none), *c = device(none), *here;
    cudaStream_t first, second;
    cudaEvent_t brought, doubled;
    cudaStreamCreate(&first);
    cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&brought, cudaEventDisableTiming);
    cudaEventCreate(&doubled);
    cudaMallocHost(&here, 2 * N * sizeof(float));
    for (int i = 0; i < N; i++) here[i] = (float)i;
    cudaStreamWaitEvent(second, doubled, 0);  // was not recorded: waits for nothing
    cudaMemcpyAsync(a, here, N * sizeof(float), cudaMemcpyHostToDevice, first);
    cudaEventRecord(brought, first);
    if (bug != 1) cudaStreamWaitEvent(second, brought, 0);
    LAUNCH(twice_kernel, 1, N, 0, second, b, a);
    cudaEventRecord(doubled, second);
    if (bug != 2 && bug != 3) cudaStreamWaitEvent(first, doubled, 0);
    if (bug != 2) cudaMemsetAsync(a, 0, N * sizeof(float), first);
    if (bug == 3) cudaStreamWaitEvent(first, doubled, 0);
    LAUNCH(twice_kernel, 1, N, 0, first, c, b);
    cudaMemcpyAsync(here + N, c, N * sizeof(float), cudaMemcpyDeviceToHost, first);
    bug == 4 ? cudaStreamSynchronize(second) : cudaStreamSynchronize(first);
    ck_assert_int_eq(cudaStreamQuery(bug == 4 ? second : first), cudaSuccess);
    bool right = true;
    for (int i = 0; i < N; i++) right = right && here[N + i] == 4 * (float)i;
    cudaDeviceSynchronize();
    cudaFreeHost(here);
    for (float *p : {a, b, c}) cudaFree(p);
    for (cudaStream_t s : {first, second}) cudaStreamDestroy(s);
    for (cudaEvent_t e : {brought, doubled}) cudaEventDestroy(e);
    return right;
}

START_TEST(two_streams) {
    FOR_ORDERS(o) ck_must(two_streams_right(0), "%s", *o);
    for (int bug = 1; bug <= 4; bug++) {
        bool shown = false;
        FOR_ORDERS(o) shown = shown || !two_streams_right(bug);
        ck_assert_msg(shown, "right in every order without wait %d", bug);
    }
}
END_TEST

/* The stream NULL comes after all that was given to others before. */
START_TEST(the_stream_null) {
    FOR_ORDERS(o) {
        float *a = device(std::vector<float>(32, 3)), *b = device(std::vector<float>(32, 0));
        cudaStream_t first, second;
        cudaStreamCreate(&first);
        cudaStreamCreate(&second);
        LAUNCH(twice_kernel, 1, 32, 0, first, a, a);
        LAUNCH(twice_kernel, 1, 32, 0, NULL, b, a);
        LAUNCH(twice_kernel, 1, 32, 0, second, b, b);
        ck_assert(take(b, 32)[31] == 24);
        cudaFree(a);
        cudaStreamDestroy(second);
        cudaStreamDestroy(first);
    }
}
END_TEST

/* ---- cuBLASLt -------------------------------------------------------------------------------- */

struct Product {
    int m = 0, n = 0, k = 0, batch = 1;
    bool ta = false, tb = false;
    cudaDataType_t in = CUDA_R_32F, out = CUDA_R_32F;
    int extra = 0;  // of every leading dimension
    unsigned epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    float alpha = 1, beta = 0;
    int shift = 0;  // elements that A begins after an address of 256 bytes
    int bug = 0;
};

/* n numbers that bf16 holds exactly, as an array of the type */
static void *numbers(std::vector<float> *v, size_t n, uint32_t seed, cudaDataType_t type) {
    std::vector<__nv_bfloat16> half;
    *v = random_floats(n, seed);
    for (float &x : *v) half.push_back(__float2bfloat16(x)), x = __bfloat162float(half.back());
    return type == CUDA_R_32F ? (void *)device(*v) : (void *)device(half);
}

static std::vector<float> back(void *p, size_t n, cudaDataType_t type) {
    if (type == CUDA_R_32F) return take((float *)p, n);
    std::vector<float> v;
    for (__nv_bfloat16 x : take((__nv_bfloat16 *)p, n)) v.push_back(__bfloat162float(x));
    return v;
}

template <class T>
static void set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, T value) {
    ck_assert_int_eq(cublasLtMatmulDescSetAttribute(d, attribute, &value, sizeof value),
                     CUBLAS_STATUS_SUCCESS);
}

static double gelu_of(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* Runs it and compares with double precision; without an epilogue, beta and rounding to bf16 also
 * with the chain, to the bit. */
static void multiply(Product p) {
    setenv("CUDA_EMU_ODD", "1", 1);
    int lda = (p.ta ? p.k : p.m) + p.extra, ldb = (p.tb ? p.n : p.k) + p.extra, ldd = p.m + p.extra,
        ldx = (p.m + 15) / 8 * 8;
    int64_t sa = (lda * (p.ta ? p.m : p.k) + 7) / 8 * 8,
            sb = (ldb * (p.tb ? p.k : p.n) + 7) / 8 * 8, sd = (ldd * p.n + 7) / 8 * 8;
    std::vector<float> a, b, d, bias, aux;
    void *A = numbers(&a, (size_t)sa * p.batch + 8, 1, p.in),
         *B = numbers(&b, (size_t)sb * p.batch, 2, p.in),
         *D = numbers(&d, (size_t)sd * p.batch, 3, p.out);
    void *bias_pointer = numbers(&bias, (size_t)std::max(p.m, p.n), 4, p.out),
         *aux_pointer = numbers(&aux, (size_t)ldx * p.n, 5, p.out), *workspace;
    size_t workspace_bytes = 4096;
    cudaMalloc(&workspace, workspace_bytes);

    cublasLtHandle_t handle = NULL;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t la, lb, ld;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t results[5];
    int found;
    ck_assert_int_eq(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
    ck_assert_int_eq(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                     CUBLAS_STATUS_SUCCESS);
    set(desc, CUBLASLT_MATMUL_DESC_TRANSA, p.ta ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(desc, CUBLASLT_MATMUL_DESC_TRANSB, p.tb ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, (cublasLtEpilogue_t)p.epilogue);
    set(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bug == 1 ? NULL : bias_pointer);
    set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux_pointer);
    set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (int64_t)ldx + (p.bug == 2));
    if (p.bug == 3)
        set(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
            p.out == CUDA_R_32F ? CUDA_R_16BF : CUDA_R_32F);
    if (p.bug == 4)
        set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, 8);  // 4 bytes where 8 are wanted
    cublasLtMatrixLayoutCreate(&la, p.in, p.ta ? p.k : p.m, p.ta ? p.m : p.k,
                               p.bug == 5 ? lda - p.extra - 1 : lda);
    cublasLtMatrixLayoutCreate(&lb, p.bug == 6 ? CUDA_R_16BF : p.in,
                               (p.tb ? p.n : p.k) + (p.bug == 7), p.tb ? p.k : p.n, ldb);
    cublasLtMatrixLayoutCreate(&ld, p.out, p.m, p.n, ldd);
    for (auto l : {std::make_pair(la, sa), std::make_pair(lb, sb), std::make_pair(ld, sd)}) {
        cublasLtMatrixLayoutSetAttribute(l.first, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &p.batch,
                                         sizeof p.batch);
        cublasLtMatrixLayoutSetAttribute(l.first, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                         &l.second, sizeof l.second);
    }
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &workspace_bytes, sizeof workspace_bytes);
    uint32_t alignment = (uint32_t)((p.shift && p.bug != 13 ? 1 : 8) * cuda_emu::bytes_of(p.in));
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                         &alignment, sizeof alignment);
    if (p.bug == 14) la->ld += 1;
    ck_assert_int_eq(cublasLtMatmulAlgoGetHeuristic(handle, desc, la, lb, ld, ld, preference,
                                                    LENGTH(results), results, &found),
                     CUBLAS_STATUS_SUCCESS);
    ck_assert_int_gt(found, 1);
    if (p.bug == 14) la->ld -= 1;
    if (p.bug == 15) set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    uint32_t split = 1, read;
    size_t written;
    cublasLtMatmulAlgoConfigSetAttribute(&results[1].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split,
                                         sizeof split);
    cublasLtMatmulAlgoConfigGetAttribute(&results[1].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &read,
                                         sizeof read, &written);
    ck_assert(read == split && written == sizeof read &&
              results[1].workspaceSize <= workspace_bytes);
    if (p.bug == 8) {
        cudaFree(A);
        cudaMalloc(&A, (size_t)(lda * (p.ta ? p.m : p.k) - p.extra) * cuda_emu::bytes_of(p.in) - 1);
    }
    A = (char *)A + (size_t)p.shift * cuda_emu::bytes_of(p.in);
    a.erase(a.begin(), a.begin() + p.shift);
    if (p.bug == 9) A = a.data();
    if (p.bug == 10) D = (char *)D + 2;
    if (p.bug == 11) workspace_bytes = 16;
    if (p.bug == 12) D = A;
    ck_assert_int_eq(cublasLtMatmul(handle, desc, &p.alpha, A, la, B, lb, &p.beta, D, ld, D, ld,
                                    &results[0].algo, workspace, workspace_bytes, NULL),
                     CUBLAS_STATUS_SUCCESS);

    std::vector<float> got = back(D, (size_t)sd * p.batch, p.out),
                       bias_after = back(bias_pointer, bias.size(), p.out),
                       aux_after = back(aux_pointer, aux.size(), p.out);
    const double unit = p.out == CUDA_R_32F ? 0x1p-23 : 0x1p-8;
    bool add_bias = p.epilogue & 4,
         gelu = p.epilogue != CUBLASLT_EPILOGUE_DGELU && (p.epilogue & 32);
    for (int q = 0; q < p.batch; q++) {
        auto in_a = [&](int i, int l) {
            return a[q * sa + (p.ta ? l + (int64_t)i * lda : i + (int64_t)l * lda)];
        };
        auto in_b = [&](int l, int j) {
            return b[q * sb + (p.tb ? j + (int64_t)l * ldb : l + (int64_t)j * ldb)];
        };
        for (int j = 0; j < p.n; j++) {
            for (int i = 0; i < ldd && j * ldd + i < sd; i++) {
                size_t at = (size_t)(q * sd + (int64_t)j * ldd + i);
                if (i >= p.m) {
                    ck_must(got[at] == d[at], "written between the columns");
                    continue;
                }
                double x = 0, size = 0;
                float chain = 0;
                for (int l = 0; l < p.k; l++) {
                    x += (double)in_a(i, l) * (double)in_b(l, j);
                    size += fabs((double)in_a(i, l) * (double)in_b(l, j));
                }
                for (int l = 0, last = p.n < 128 ? p.k - 1 : 0; l < p.k; l++)
                    chain = fmaf(in_a(i, abs(last - l)), in_b(abs(last - l), j), chain);
                x = (double)p.alpha * x + (double)p.beta * (double)d[at] +
                    (add_bias ? (double)bias[i] : 0);
                double before = x;
                if (gelu) x = gelu_of(x);
                double u = (double)aux[i + j * ldx], h = 1e-5;
                if (p.epilogue == CUBLASLT_EPILOGUE_DGELU)
                    x *= (gelu_of(u + h) - gelu_of(u - h)) / (2 * h);
                double tolerance = p.k * 0x1p-23 * (size + 1) + 2 * unit * fabs(x) + 1e-6;
                ck_must(fabs((double)got[at] - x) <= tolerance, "(%d,%d): %g, not %g", i, j,
                        (double)got[at], x);
                if ((p.epilogue & 128) && gelu)
                    ck_must(fabs((double)aux_after[i + j * ldx] - before) <=
                                tolerance + unit * fabs(before),
                            "aux (%d,%d)", i, j);
                if (p.epilogue == CUBLASLT_EPILOGUE_DEFAULT && p.beta == 0 && p.alpha == 1 &&
                    p.out == CUDA_R_32F)
                    ck_must(got[at] == chain, "the chain of (%d,%d)", i, j);
            }
        }
        for (int i = 0;
             (p.epilogue & 768) && i < (p.epilogue == CUBLASLT_EPILOGUE_BGRADA ? p.m : p.n); i++) {
            double sum = 0;
            for (int l = 0; l < p.k; l++)
                sum += (double)(p.epilogue == CUBLASLT_EPILOGUE_BGRADA ? in_a(i, l) : in_b(l, i));
            ck_must(fabs((double)bias_after[i] - sum) <= 1e-5 * p.k + unit * fabs(sum),
                    "bias gradient %d: %g, not %g", i, (double)bias_after[i], sum);
        }
    }
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
    cudaFree(workspace);
    cudaFree((char *)A - (size_t)p.shift * cuda_emu::bytes_of(p.in));
    cudaFree(B);
    for (cublasLtMatrixLayout_t l : {la, lb, ld}) cublasLtMatrixLayoutDestroy(l);
}

START_TEST(products) {
    static const int shapes[][3] = {
        {1, 1, 1}, {17, 5, 7}, {64, 48, 33}, {100, 3, 130}, {7, 130, 40}};
    static const cudaDataType_t types[][2] = {
        {CUDA_R_32F, CUDA_R_32F}, {CUDA_R_16BF, CUDA_R_16BF}, {CUDA_R_16BF, CUDA_R_32F}};
    Product p;
    p.in = types[_i][0];
    p.out = types[_i][1];
    for (const int *shape : shapes) {
        p.m = shape[0];
        p.n = shape[1];
        p.k = shape[2];
        for (int transposes = 0; transposes < 4; transposes++) {
            p.ta = transposes % 2;
            p.tb = transposes / 2;
            multiply(p);
            Product q = p;
            q.batch = 3;
            q.extra = 3;
            q.alpha = 0.5f;
            q.beta = -1.5f;
            multiply(q);
        }
        Product shifted = p;
        shifted.shift = 3;
        shifted.extra = 5;
        multiply(shifted);
        for (unsigned epilogue :
             {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS,
              CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU,
              CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB}) {
            Product q = p;
            q.ta = true;
            q.extra = 8;
            q.epilogue = epilogue;
            if (epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS && q.m % 16)
                q.m = 16;  // there is none for other widths
            multiply(q);
        }
    }
}
END_TEST

/* What the emulated cuBLASLt has no way for: an odd width in all three matrices. And the status
 * that CUDA_EMU_CUBLAS asks for. */
START_TEST(missing_products) {
    for (int odd = 0; odd < 4; odd++) {  // which of m, k and both are even; D has stride m
        cublasLtHandle_t handle = NULL;
        cublasLtMatmulDesc_t desc;
        cublasLtMatrixLayout_t a, b, d;
        cublasLtMatmulPreference_t preference;
        cublasLtMatmulHeuristicResult_t result;
        int found = 7;
        const int m = 17 + odd % 2, k = 9 + odd / 2;
        cublasLtCreate(&handle);
        cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
        cublasLtMatmulPreferenceCreate(&preference);
        cublasLtMatrixLayoutCreate(&a, CUDA_R_16BF, m, k, m);
        cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, k, 5, k);
        cublasLtMatrixLayoutCreate(&d, CUDA_R_16BF, m, 5, m);
        ck_assert_int_eq(cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, d, d, preference, 1,
                                                        &result, &found),
                         odd ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED);
        ck_assert_int_eq(found, odd ? 1 : 0);
        setenv("CUDA_EMU_CUBLAS", "14", 1);
        const float one = 1, zero = 0;
        ck_assert_int_eq(cublasLtMatmul(handle, desc, &one, NULL, a, NULL, b, &zero, NULL, d, NULL,
                                        d, &result.algo, NULL, 0, NULL),
                         CUBLAS_STATUS_INTERNAL_ERROR);
        unsetenv("CUDA_EMU_CUBLAS");
        cublasLtMatmulPreferenceDestroy(preference);
        cublasLtMatmulDescDestroy(desc);
        for (cublasLtMatrixLayout_t l : {a, b, d}) cublasLtMatrixLayoutDestroy(l);
        cublasLtDestroy(handle);
    }
}
END_TEST

START_TEST(bad_products) {
    Product p;
    p.m = 24;
    p.n = 5;
    p.k = 9;
    p.in = CUDA_R_16BF;
    p.out = CUDA_R_16BF;
    p.extra = 3;
    static const char *const words[] = {"the bias: ",
                                        "no multiple of 8",
                                        "the bias is of type 0 and D of type 14",
                                        "an attribute of cuBLASLt is set from 4 bytes; it has 8",
                                        "A has a leading dimension of 23 and 24 rows",
                                        "of types 0, 14, 0, 0, a combination",
                                        "B is (10,5) where (9,5) is wanted",
                                        "A: ",
                                        "is not memory of the device",
                                        "misaligned D",
                                        "bytes of workspace and is given 16",
                                        "D is in the place of A",
                                        "misaligned A",
                                        "A has strides of 27 and ",
                                        "chosen for a product of other types"};
    for (int bug = 1; bug <= LENGTH(words); bug++) {
        Product q = p;
        q.bug = bug;
        if (bug <= 4) {
            q.m = 32;
            q.epilogue = CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
        }
        if (bug == 6 || bug == 12) q.in = q.out = CUDA_R_32F;
        if (bug == 12) q.m = q.n = q.k = 8;
        if (bug == 10 || bug == 13) q.extra = 8;  // strides of 32, which allow 16 bytes at once
        if (bug == 13) q.shift = 3;
        dies(words[bug - 1], [=] { multiply(q); });
    }
}
END_TEST

/* ----  ---------------------------------------------------------------------------------------- */

int main() {
    Suite *s = suite_create("cuda_emu");
    TCase *t = tcase_create("cuda_emu");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, blocks, 0, LENGTH(orders));
    tcase_add_test(t, missing_barriers);
    tcase_add_test(t, fresh_memory);
    tcase_add_test(t, order);
    tcase_add_loop_test(t, warps, 0, LENGTH(orders));
    tcase_add_test(t, missing_syncwarp);
    tcase_add_test(t, atomics);
    tcase_add_test(t, divergence);
    tcase_add_test(t, bounds);
    tcase_add_test(t, misaligned);
    tcase_add_test(t, launches);
    tcase_add_loop_test(t, tensor_cores, 0, LENGTH(orders));
    tcase_add_loop_test(t, warp_groups, 0, LENGTH(orders));
    tcase_add_test(t, bad_warp_groups);
    tcase_add_test(t, missing_waits);
    tcase_add_test(t, bad_copies);
    tcase_add_test(t, bf16);
    tcase_add_test(t, memory);
    tcase_add_test(t, copies);
    tcase_add_test(t, asynchronous);
    tcase_add_test(t, two_streams);
    tcase_add_test(t, the_stream_null);
    tcase_add_loop_test(t, products, 0, 3);
    tcase_add_test(t, missing_products);
    tcase_add_test(t, bad_products);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
