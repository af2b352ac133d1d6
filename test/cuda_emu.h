/*
 * cuda_emu.h - enough of CUDA on a CPU to test common/kernels.cu without a GPU.
 *
 * kernels.cu includes either NVIDIA's headers or this one. Everything it uses of CUDA is here under its own name: the types, blocks of
 * threads, barriers, warp operations, shared memory, the calls of the runtime, cuBLASLt, and the twins of the few wrappers that are PTX on a GPU
 * (mma_bf16, ldmatrix_x4, cp_async16). A launch runs at once and has ended when LAUNCH returns. It is made to find mistakes:
 *
 *   - Each CUDA thread runs as far as it can, until it waits for others, in an order that CUDA_EMU_ORDER chooses: forward, reverse,
 *     roundrobin or random:SEED; so do blocks. A missing barrier that one order forgives another does not.
 *   - Fresh shared memory and device memory are filled with NaN, in reverse and for odd seeds with 3.4e38 (fmaxf swallows NaN), and so is the target
 *     of cp_async16 until it is waited for. Red zones lie around every array.
 *   - Under AddressSanitizer the host cannot touch device memory. Under ThreadSanitizer every CUDA thread is a thread of its own and only
 *     __syncthreads, __syncwarp and the launch order memory, so that races show in any order, across blocks too.
 *   - It is stricter than a GPU where a GPU's leniency hides mistakes or leaves the rules of kernels.cu: every thread reaches every
 *     __syncthreads, warp operations are of whole warps at one place, an odd block size or a float atomic is refused.
 *
 * Whatever it finds it says in one sentence, with the kernel, the block and the thread, and aborts. Other variables are for testing errors:
 * CUDA_EMU_DEVICES=0 (no GPU), CUDA_EMU_CAPABILITY=70 (too old a one), CUDA_EMU_MEMORY=BYTES (a small one).
 *
 * Left out: what kernels.cu does not use; streams that run beside each other, weak memory beyond what races show, the rounding of
 * approximate instructions (they are exact here) and of tensor cores (here a chain over k), and speed. Only one thread of the host may use it.
 */
#ifndef POSTTRAIN_CUDA_EMU_H
#define POSTTRAIN_CUDA_EMU_H

#include <immintrin.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined __SANITIZE_ADDRESS__ || __has_feature(address_sanitizer)
#define CUDA_EMU_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define CUDA_EMU_ASAN 0
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif
#if defined __SANITIZE_THREAD__ || __has_feature(thread_sanitizer)
#define CUDA_EMU_TSAN 1
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
#else
#define CUDA_EMU_TSAN 0
#endif

// `#pragma unroll` is for nvcc; the vector types below have copy constructors, which is no reason not to memcpy them.
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed"
#else
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#pragma GCC diagnostic ignored "-Wclass-memaccess"
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// What the emulator does for itself is no access of a CUDA thread: neither its own code nor, between these two, what it calls.
#define EMU __attribute__((no_sanitize("thread"))) inline

namespace cuda_emu {
struct Unseen {
#if CUDA_EMU_TSAN
    EMU Unseen() { __tsan_ignore_thread_begin(); }
    EMU ~Unseen() { __tsan_ignore_thread_end(); }
#else
    Unseen() {}
    ~Unseen() {}
#endif
};
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2), cold));
}

/* ------------------------------------------------------------------------------------------------------------------
 * Vector types. A GPU faults on a misaligned one; here copying one looks at its address, in a way that the compiler, which may assume the
 * alignment, does not see through.
 */

namespace cuda_emu {
EMU void aligned(const void *p, size_t alignment, const char *type) {
    uintptr_t address = (uintptr_t)p;
    asm("" : "+r"(address));
    if (__builtin_expect(address % alignment != 0, 0)) fail("misaligned %s at %p, which is no multiple of %zu", type, (void *)address, alignment);
}
}

#define CUDA_EMU_VECTOR(type, alignment, fields, parameters, initialise, assign)                              \
    struct alignas(alignment) type {                                                                          \
        fields;                                                                                               \
        type() = default;                                                                                     \
        type parameters : initialise {}                                                                       \
        type(const type &from) { *this = from; }                                                              \
        type &operator=(const type &from) {                                                                   \
            cuda_emu::aligned(&from, alignment, #type), cuda_emu::aligned(this, alignment, #type);            \
            assign;                                                                                           \
            return *this;                                                                                     \
        }                                                                                                     \
    };
#define CUDA_EMU_VECTOR2(type, T) \
    CUDA_EMU_VECTOR(type, 2 * sizeof(T), T x; T y, (T x_, T y_), x(x_) CUDA_EMU_COMMA y(y_), (x = from.x, y = from.y)) \
    inline type make_##type(T x, T y) { return type(x, y); }
#define CUDA_EMU_VECTOR4(type, T)                                                                                            \
    CUDA_EMU_VECTOR(type, 4 * sizeof(T), T x; T y; T z; T w, (T x_, T y_, T z_, T w_),                                       \
                    x(x_) CUDA_EMU_COMMA y(y_) CUDA_EMU_COMMA z(z_) CUDA_EMU_COMMA w(w_), (x = from.x, y = from.y, z = from.z, w = from.w)) \
    inline type make_##type(T x, T y, T z, T w) { return type(x, y, z, w); }
#define CUDA_EMU_COMMA ,

CUDA_EMU_VECTOR2(float2, float)
CUDA_EMU_VECTOR2(int2, int)
CUDA_EMU_VECTOR2(uint2, unsigned)
CUDA_EMU_VECTOR4(float4, float)
CUDA_EMU_VECTOR4(int4, int)
CUDA_EMU_VECTOR4(uint4, unsigned)

struct uint3 { unsigned x, y, z; };

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

/* Of the thread that runs. */
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

/* ------------------------------------------------------------------------------------------------------------------
 * Failures, settings
 */

namespace cuda_emu {

inline const char *kernel;        // that is running, or the call of cuBLASLt
inline bool in_thread;            // of a kernel; else the host

[[noreturn]] inline void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fputs("✗ emulated CUDA: ", stderr);
    vfprintf(stderr, format, arguments);
    if (kernel) fprintf(stderr, "; %s", kernel);
    if (in_thread) fprintf(stderr, ", block (%u,%u,%u), thread (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    fputc('\n', stderr);
    fflush(stderr);
    abort();
}

enum Order { FORWARD, REVERSE, ROUNDROBIN, RANDOM };
inline Order order;
inline uint64_t random_state;

/* Read at every use, so that a test can change them. */
inline void read_order() {
    const char *s = getenv("CUDA_EMU_ORDER");
    char *end;
    if (!s || !*s || !strcmp(s, "forward")) order = FORWARD;
    else if (!strcmp(s, "reverse")) order = REVERSE;
    else if (!strcmp(s, "roundrobin")) order = ROUNDROBIN;
    else if (!strncmp(s, "random:", 7) && s[7] && (random_state = strtoull(s + 7, &end, 10), !*end)) order = RANDOM;
    else fail("CUDA_EMU_ORDER is \"%s\"; it can be forward, reverse, roundrobin or random:SEED", s);
}

/* splitmix64 (Steele et al. 2014) */
EMU uint32_t random_below(uint32_t n) {
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (uint32_t)(((z ^ z >> 31) >> 32) * n >> 32);
}

inline long setting(const char *name, long otherwise) {
    const char *s = getenv(name);
    return s && *s ? atol(s) : otherwise;
}

/* What fresh memory is filled with: a byte that makes float and bf16 NaN, or 3.4e38. */
EMU int poison_byte() {
    const char *s = getenv("CUDA_EMU_ORDER");
    bool odd = s && !strncmp(s, "random:", 7) && strtoull(s + 7, NULL, 10) % 2;
    return odd || (s && !strcmp(s, "reverse")) ? 0x7f : 0xff;
}

/* Red zones: a pattern that is NaN in float and in bf16, too. */
enum { RED_ZONE = 256 };
const uint32_t red = 0xffd5ffd5;

EMU void paint(unsigned char *zone, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) zone[i] = (unsigned char)(red >> 8 * ((uintptr_t)(zone + i) % 4));
}

EMU bool painted(const unsigned char *zone, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (zone[i] != (unsigned char)(red >> 8 * ((uintptr_t)(zone + i) % 4))) return false;
    return true;
}

}  // namespace cuda_emu

/* ------------------------------------------------------------------------------------------------------------------
 * The runtime: errors, devices, memory, copies, streams, events
 */

enum cudaError_t {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35, cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101, cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
enum { cudaHostRegisterDefault = 0, cudaHostRegisterPortable = 1, cudaHostRegisterMapped = 2, cudaHostRegisterReadOnly = 8, cudaStreamNonBlocking = 1 };

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock, maxThreadsPerMultiProcessor, regsPerBlock, l2CacheSize;
};

namespace cuda_emu {

enum { SHARED_DEFAULT = 48 << 10, SHARED_MOST = 227 << 10 };

struct Memory { size_t bytes; unsigned char *block; bool device; };
inline std::map<uintptr_t, Memory> &memories = *new std::map<uintptr_t, Memory>;      // by address; of the device, or pinned. Outlives main
inline size_t device_bytes;
inline cudaError_t last_error;

inline cudaError_t error(cudaError_t e) { return e == cudaSuccess ? e : last_error = e; }

/* Where p lies, or NULL; *left is what is there from p to its end. The end itself counts as inside. */
inline const Memory *find(const void *p, size_t *left) {
    Unseen unseen;
    auto after = memories.upper_bound((uintptr_t)p);
    if (after == memories.begin()) return NULL;
    auto m = std::prev(after);
    size_t offset = (uintptr_t)p - m->first;
    if (offset > m->second.bytes) return NULL;
    *left = m->second.bytes - offset;
    return &m->second;
}

/* Ends the program unless bytes at p are the device's. */
inline void device_memory(const void *p, size_t bytes, const char *what) {
    size_t left = 0;
    const Memory *m = find(p, &left);
    if (!m || !m->device) fail("%s: %p is not memory of the device", what, p);
    if (bytes > left) fail("%s: %zu bytes at %p, where the allocation of %zu bytes ends after %zu", what, bytes, p, m->bytes, left);
}

/* Device memory is open to kernels, copies and cuBLASLt, and closed to everything else. */
struct Open {
    Open() { toggle(true); }
    ~Open() { toggle(false); }
    static void toggle(bool open) {
        if (!CUDA_EMU_ASAN) return;
        for (auto &m : memories) {
            if (m.second.device && open) ASAN_UNPOISON_MEMORY_REGION((void *)m.first, m.second.bytes);
            if (m.second.device && !open) ASAN_POISON_MEMORY_REGION((void *)m.first, m.second.bytes);
        }
    }
};

/* After every kernel: did it write beside an allocation? */
inline void check_red_zones() {
    for (auto &m : memories) {
        if (!m.second.device) continue;
        unsigned char *p = (unsigned char *)m.first;
        if (CUDA_EMU_ASAN) ASAN_UNPOISON_MEMORY_REGION(m.second.block, RED_ZONE), ASAN_UNPOISON_MEMORY_REGION(p + m.second.bytes, RED_ZONE);
        if (!painted(m.second.block, RED_ZONE)) fail("written before the beginning of a device allocation of %zu bytes", m.second.bytes);
        if (!painted(p + m.second.bytes, RED_ZONE)) fail("written past the end of a device allocation of %zu bytes", m.second.bytes);
        if (CUDA_EMU_ASAN) ASAN_POISON_MEMORY_REGION(m.second.block, RED_ZONE), ASAN_POISON_MEMORY_REGION(p + m.second.bytes, RED_ZONE);
    }
}

/* An asynchronous copy from or to pinned memory. What goes to the host arrives when somebody waits for it and is NaN before;
   what comes from the host must not change before. */
struct Copy { unsigned char *host; std::vector<unsigned char> data; bool to_host; };
inline std::vector<Copy> copies;

inline void finish_copies() {
    for (Copy &c : copies) {
        if (c.to_host) memcpy(c.host, c.data.data(), c.data.size());
        else if (memcmp(c.host, c.data.data(), c.data.size()))
            fail("the source of an asynchronous copy of %zu bytes to the device was changed before it was waited for", c.data.size());
    }
    copies.clear();
}

inline long devices() { return setting("CUDA_EMU_DEVICES", 1); }
inline size_t total_memory() { return (size_t)setting("CUDA_EMU_MEMORY", 4L << 30); }

}  // namespace cuda_emu

inline const char *cudaGetErrorName(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    }
    return "unrecognized error code";
}

inline const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    }
    return "unrecognized error code";
}

inline cudaError_t cudaPeekAtLastError() { return cuda_emu::last_error; }
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_emu::last_error, cudaSuccess); }

inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = (int)cuda_emu::devices();
    return cuda_emu::error(*count ? cudaSuccess : cudaErrorNoDevice);
}

inline cudaError_t cudaSetDevice(int device) {
    if (!cuda_emu::devices()) return cuda_emu::error(cudaErrorNoDevice);
    return cuda_emu::error(device >= 0 && device < cuda_emu::devices() ? cudaSuccess : cudaErrorInvalidDevice);
}

inline cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSetDevice(0); }

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (cudaError_t e = cudaSetDevice(device)) return e;
    long capability = cuda_emu::setting("CUDA_EMU_CAPABILITY", 90);
    *p = {};
    strcpy(p->name, "emulated");
    p->totalGlobalMem = cuda_emu::total_memory();
    p->sharedMemPerBlock = cuda_emu::SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = cuda_emu::SHARED_MOST;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->major = (int)(capability / 10), p->minor = (int)(capability % 10);
    p->multiProcessorCount = 4;
    p->warpSize = warpSize, p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->regsPerBlock = 65536;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

inline cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    if (cudaError_t e = cudaSetDevice(0)) return e;
    *total = cuda_emu::total_memory();
    *free_bytes = *total > cuda_emu::device_bytes ? *total - cuda_emu::device_bytes : 0;
    return cudaSuccess;
}

/* Aligned to 256 bytes, as CUDA promises, and not to more. */
inline cudaError_t cudaMalloc(void **p, size_t bytes) {
    using namespace cuda_emu;
    *p = NULL;
    if (cudaError_t e = cudaSetDevice(0)) return e;
    if (!bytes) return cudaSuccess;
    size_t total = total_memory();
    if (bytes > total || device_bytes > total - bytes) return error(cudaErrorMemoryAllocation);
    size_t whole = (bytes + 2 * RED_ZONE + 511) / 512 * 512;
    unsigned char *block = (unsigned char *)aligned_alloc(512, whole), *begin = block + RED_ZONE;
    if (!block) return error(cudaErrorMemoryAllocation);
    paint(block, RED_ZONE);
    memset(begin, poison_byte(), bytes);
    paint(begin + bytes, RED_ZONE);
    if (CUDA_EMU_ASAN) ASAN_POISON_MEMORY_REGION(block, whole);
    memories[(uintptr_t)begin] = {bytes, block, true};
    device_bytes += bytes;
    *p = begin;
    return cudaSuccess;
}

inline cudaError_t cudaFree(void *p) {
    using namespace cuda_emu;
    if (!p) return cudaSuccess;
    finish_copies();
    check_red_zones();
    auto m = memories.find((uintptr_t)p);
    if (m == memories.end() || !m->second.device) fail("cudaFree: %p is not the beginning of an allocation of the device", p);
    device_bytes -= m->second.bytes;
    if (CUDA_EMU_ASAN) ASAN_UNPOISON_MEMORY_REGION(m->second.block, (m->second.bytes + 2 * RED_ZONE + 511) / 512 * 512);
    free(m->second.block);
    memories.erase(m);
    return cudaSuccess;
}

inline cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    size_t left;
    if (!p || !bytes || cuda_emu::find(p, &left)) return cuda_emu::error(cudaErrorInvalidValue);
    cuda_emu::memories[(uintptr_t)p] = {bytes, NULL, false};
    return cudaSuccess;
}

inline cudaError_t cudaHostUnregister(void *p) {
    cuda_emu::finish_copies();
    auto m = cuda_emu::memories.find((uintptr_t)p);
    if (m == cuda_emu::memories.end() || m->second.device) cuda_emu::fail("cudaHostUnregister, cudaFreeHost: %p is not pinned memory", p);
    cuda_emu::memories.erase(m);
    return cudaSuccess;
}

inline cudaError_t cudaMallocHost(void **p, size_t bytes) {
    *p = NULL;
    if (cudaError_t e = cudaSetDevice(0)) return e;
    if (!(*p = malloc(bytes + !bytes))) return cuda_emu::error(cudaErrorMemoryAllocation);
    memset(*p, cuda_emu::poison_byte(), bytes);
    return cudaHostRegister(*p, bytes + !bytes, cudaHostRegisterDefault);
}

inline cudaError_t cudaFreeHost(void *p) {
    if (!p) return cudaSuccess;
    cudaHostUnregister(p);
    free(p);
    return cudaSuccess;
}

template <class T> cudaError_t cudaMalloc(T **p, size_t bytes) { return cudaMalloc((void **)p, bytes); }
template <class T> cudaError_t cudaMallocHost(T **p, size_t bytes) { return cudaMallocHost((void **)p, bytes); }

typedef struct CUstream_st *cudaStream_t;

namespace cuda_emu {

inline void copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, bool asynchronous) {
    size_t left;
    const Memory *t = find(to, &left), *f = find(from, &left);
    bool to_device = t && t->device, from_device = f && f->device;
    if (kind == cudaMemcpyDefault) kind = (cudaMemcpyKind)(2 * from_device + to_device);
    const char *name[] = {"cudaMemcpyHostToHost", "cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaMemcpyDeviceToDevice"};
    if (kind != 2 * from_device + to_device)
        fail("%s of %zu bytes from %p, memory of the %s, to %p, memory of the %s", name[kind], bytes, from, from_device ? "device" : "host", to, to_device ? "device" : "host");
    if (to_device) device_memory(to, bytes, name[kind]);
    if (from_device) device_memory(from, bytes, name[kind]);
    unsigned char *host = (unsigned char *)(from_device ? to : const_cast<void *>(from));
    bool overlaps = false;
    for (Copy &c : copies) overlaps |= host < c.host + c.data.size() && c.host < host + bytes;
    if (!asynchronous || overlaps) finish_copies();
    Open open;
    if (asynchronous && to_device != from_device && (to_device ? f : t)) {      // pinned
        const unsigned char *data = (const unsigned char *)from;
        copies.push_back({host, std::vector<unsigned char>(data, data + bytes), from_device});
        if (from_device) memset(to, 0xff, bytes);
        else memcpy(to, from, bytes);
    } else {
        memmove(to, from, bytes);
    }
}

}  // namespace cuda_emu

inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    cuda_emu::copy(to, from, bytes, kind, false);
    return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t = NULL) {
    cuda_emu::copy(to, from, bytes, kind, true);
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t = NULL) {
    cuda_emu::device_memory(p, bytes, "cudaMemset");
    cuda_emu::Open open;
    memset(p, value, bytes);
    return cudaSuccess;
}

inline cudaError_t cudaMemset(void *p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes); }

inline cudaError_t cudaStreamCreate(cudaStream_t *stream) { return *stream = (cudaStream_t)malloc(1), cudaSetDevice(0); }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return cudaStreamCreate(stream); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return free(stream), cuda_emu::finish_copies(), cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cuda_emu::finish_copies(), cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cuda_emu::finish_copies(), cudaSuccess; }

typedef struct CUevent_st { struct timespec at; } *cudaEvent_t;

inline cudaError_t cudaEventCreate(cudaEvent_t *event) { return *event = new CUevent_st(), cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t = NULL) { return clock_gettime(CLOCK_MONOTONIC, &event->at), cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cuda_emu::finish_copies(), cudaSuccess; }

inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = (float)((double)(to->at.tv_sec - from->at.tv_sec) * 1e3 + (double)(to->at.tv_nsec - from->at.tv_nsec) / 1e6);
    return cudaSuccess;
}

/* ------------------------------------------------------------------------------------------------------------------
 * Threads. The threads of a block are fibers: each has a stack, and one gives way to another only where it waits. A thread that never
 * waits costs no switch: when it ends, its fiber goes on with the next one.
 */

// Saves the registers that a function must preserve and the stack in *from; goes on where `to` was left.
extern "C" void cuda_emu_switch(void **from, void *to);
asm(R"(
    .text
    .weak cuda_emu_switch
    .type cuda_emu_switch, @function
cuda_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_emu_switch, .-cuda_emu_switch
)");

namespace cuda_emu {

enum { STACK = 64 << 10, THREADS_MOST = 1024 };

struct Thread;

struct Fiber {
    void *sp;
    const void *stack;       // its lowest address
    size_t stack_bytes;
    Thread *starts;          // the thread to run when it is switched to
    void *asan, *tsan;       // what the sanitizers keep of it
};

struct Pending { unsigned char *to; const unsigned char *from; int group; };       // a cp_async16

struct Thread {
    Fiber *fiber;            // NULL before it starts
    uint3 index;
    const char *waits;       // what it waits in, and on which line; NULL: it runs
    int line;
    bool ended;
    int groups;              // of cp_async16, committed so far
    std::vector<Pending> pending;
};

struct Warp {
    uint32_t ready, waiting;                      // lanes that could run; that wait in a warp operation
    int width[32], from[32];                      // of shuffles
    uint64_t value[32], result[32];
    uint32_t in[32][10], out[32][4];              // of ldmatrix and mma
    int syncs;                                    // for ThreadSanitizer
    char sync[2];
};

struct Shared { const void *key; const char *name; unsigned char *begin; size_t bytes; };

struct Block {
    int threads, ended, waiting;                  // waiting: at __syncthreads
    uint32_t ready;                               // warps with a lane that could run
    Warp warp[THREADS_MOST / 32];
    Thread thread[THREADS_MOST];
    int syncs;
    char sync[2], started, done;
    unsigned char *shared;                        // SHARED_ROOM bytes: static arrays from its beginning, the dynamic one at its end
    std::vector<Shared> arrays;                   // arrays[0] is the dynamic one
    size_t shared_limit, shared_bytes, shared_used;
    void (*body)(void *);
    void *arguments;
};

inline Block block;
inline Thread *current;
inline Fiber host, *running = &host, *left;       // left: the fiber that switched to running
inline Fiber *idle[THREADS_MOST];                 // fibers whose thread has ended; under ThreadSanitizer they are not used again
inline int idle_count;

EMU void release(void *address) {
#if CUDA_EMU_TSAN
    __tsan_release(address);
#endif
    (void)address;
}

EMU void acquire(void *address) {
#if CUDA_EMU_TSAN
    __tsan_acquire(address);
#endif
    (void)address;
}

EMU void arrived() {
#if CUDA_EMU_ASAN
    __sanitizer_finish_switch_fiber(running->asan, &left->stack, &left->stack_bytes);
#endif
}

EMU void switch_to(Fiber *to) {
    Fiber *from = left = running;
    running = to;
#if CUDA_EMU_ASAN
    __sanitizer_start_switch_fiber(&from->asan, to->stack, to->stack_bytes);
#endif
#if CUDA_EMU_TSAN
    __tsan_switch_to_fiber(to->tsan, __tsan_switch_to_fiber_no_sync);
#endif
    cuda_emu_switch(&from->sp, to->sp);
    arrived();
}

EMU void fiber_main();

EMU Fiber *take_fiber() {
    if (idle_count && !CUDA_EMU_TSAN) return idle[--idle_count];
    Unseen unseen;
    Fiber *f = new Fiber();
    // A page below the stack faults when it overflows.
    unsigned char *memory = (unsigned char *)mmap(NULL, 4096 + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, 4096, PROT_NONE)) fail("out of memory for the stack of a thread");
    f->stack = memory + 4096;
    f->stack_bytes = STACK;
    void **top = (void **)(memory + 4096 + STACK) - 1;      // as if fiber_main had been called: so stacks are aligned
    *--top = (void *)fiber_main;
    f->sp = top - 6;
#if CUDA_EMU_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
    return f;
}

/* For ThreadSanitizer the next block's threads, stacks and shared memory are others. */
inline void forget_fibers() {
#if CUDA_EMU_TSAN
    while (idle_count) {
        Fiber *f = idle[--idle_count];
        __tsan_destroy_fiber(f->tsan);
        munmap((unsigned char *)const_cast<void *>(f->stack) - 4096, 4096 + STACK);
        delete f;
    }
#endif
}

EMU Thread *thread_at(int warp, int lane) { return &block.thread[32 * warp + lane]; }

/* The thread to run next, or NULL if none can. */
EMU Thread *pick() {
    if (!block.ready) return NULL;
    int w, lane;
    if (order == FORWARD) {
        w = __builtin_ctz(block.ready);
        lane = __builtin_ctz(block.warp[w].ready);
    } else if (order == REVERSE) {
        w = 31 - __builtin_clz(block.ready);
        lane = 31 - __builtin_clz(block.warp[w].ready);
    } else if (order == ROUNDROBIN) {
        int after = current ? (int)(current - block.thread) : block.threads - 1;
        int here = after / 32, next = after % 32 + 1;
        uint32_t rest = next < 32 ? block.warp[here].ready >> next << next : 0;
        uint32_t later = here < 31 ? block.ready >> (here + 1) << (here + 1) : 0;
        w = rest ? here : __builtin_ctz(later ? later : block.ready);
        lane = __builtin_ctz(rest ? rest : block.warp[w].ready);
    } else {
        uint32_t warps = block.ready, lanes;
        for (uint32_t skip = random_below((uint32_t)__builtin_popcount(warps)); skip; skip--) warps &= warps - 1;
        w = __builtin_ctz(warps), lanes = block.warp[w].ready;
        for (uint32_t skip = random_below((uint32_t)__builtin_popcount(lanes)); skip; skip--) lanes &= lanes - 1;
        lane = __builtin_ctz(lanes);
    }
    return thread_at(w, lane);
}

EMU void set_ready(int warp, uint32_t lanes, bool ready) {
    uint32_t *r = &block.warp[warp].ready;
    *r = ready ? *r | lanes : *r & ~lanes;
    block.ready = *r ? block.ready | 1u << warp : block.ready & ~(1u << warp);
}

/* Threads a and b should have met. */
[[noreturn]] EMU void diverged(const Thread *a, const Thread *b) {
    char text[2][96];
    const Thread *t[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        if (t[i]->ended) snprintf(text[i], sizeof text[i], "has ended");
        else snprintf(text[i], sizeof text[i], "is at %s, line %d", t[i]->waits, t[i]->line);
    }
    fail("the threads of a block diverge: thread (%u,%u,%u) %s, thread (%u,%u,%u) %s", a->index.x, a->index.y, a->index.z, text[0],
         b->index.x, b->index.y, b->index.z, text[1]);
}

/* Nobody can run, and not everybody has ended. */
[[noreturn]] EMU void stuck() {
    const Thread *a = NULL;
    for (int i = 0; i < block.threads; i++) {
        const Thread *t = &block.thread[i];
        if (!a || (a->ended && !t->ended)) a = t;
    }
    for (int i = 0; i < block.threads; i++) {
        const Thread *t = &block.thread[i];
        if (t->ended || t->waits != a->waits || t->line != a->line) diverged(a, t);
    }
    fail("every thread waits at %s, line %d", a->waits, a->line);
}

/* Lets others run until this thread is picked again. */
EMU void give_way() {
    Thread *self = current, *next = pick();
    if (!next) stuck();
    if (next != self) {
        if (!next->fiber) (next->fiber = take_fiber())->starts = next;
        switch_to(next->fiber);
        current = self;
        threadIdx = self->index;
    }
    self->waits = NULL;
}

EMU void end_thread(Thread *t) {
    Unseen unseen;
    t->ended = true;
    if (!t->pending.empty()) fail("the thread ends with %zu cp_async16 that nobody waited for", t->pending.size());
    for (int i = 0; block.waiting && i < block.threads; i++)
        if (!block.thread[i].ended && block.thread[i].waits) diverged(&block.thread[i], t);
    block.ended++;
    set_ready((int)(t - block.thread) / 32, 1u << (t - block.thread) % 32, false);
    release(&block.done);
}

/* The life of a fiber: runs a thread, and as long as there is one that has not begun, the next. */
EMU void fiber_main() {
    arrived();
    Fiber *self = running;
    Thread *t = self->starts;
    for (;;) {
        t->fiber = self;
        current = t;
        threadIdx = t->index;
        acquire(&block.started);
        block.body(block.arguments);
        end_thread(t);
        t = pick();
        if (!t && block.ended < block.threads) stuck();
        if (t && !t->fiber && !CUDA_EMU_TSAN) continue;
        if (t && !t->fiber) (t->fiber = take_fiber())->starts = t;
        idle[idle_count++] = self;
        switch_to(t ? t->fiber : &host);
        t = self->starts;
    }
}

}  // namespace cuda_emu

inline void __syncthreads(int line = __builtin_LINE()) {
    using namespace cuda_emu;
    Unseen unseen;
    Thread *self = current;
    int meeting = block.syncs % 2;
    release(&block.sync[meeting]);
    self->waits = "__syncthreads";
    self->line = line;
    for (int i = 0; block.ended && i < block.threads; i++)
        if (block.thread[i].ended) diverged(self, &block.thread[i]);
    int n = (int)(self - block.thread);
    set_ready(n / 32, 1u << n % 32, false);
    if (++block.waiting == block.threads) {
        for (int i = 0; i < block.threads; i++)
            if (block.thread[i].line != line) diverged(self, &block.thread[i]);
        for (int w = 0; w < block.threads / 32; w++) set_ready(w, 0xffffffff, true);
        block.waiting = 0;
        block.syncs++;
    }
    give_way();
    acquire(&block.sync[meeting]);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Warp operations: whole warps, all lanes at the same place. The last lane to arrive does the work for all.
 */

namespace cuda_emu {

EMU int lane_id() { return (int)(current - block.thread) % 32; }
EMU Warp *warp() { return &block.warp[(current - block.thread) / 32]; }

EMU void meet(const char *name, unsigned mask, int line, void (*work)(Warp *)) {
    Thread *self = current;
    Warp *w = warp();
    int lane = lane_id(), number = (int)(w - block.warp);
    if (mask != 0xffffffff) fail("%s on line %d with mask 0x%08x; only whole warps are allowed, 0xffffffff", name, line, mask);
    self->waits = name;
    self->line = line;
    w->waiting |= 1u << lane;
    if (w->waiting == 0xffffffff) {
        for (int i = 0; i < 32; i++) {
            Thread *t = thread_at(number, i);
            if ((t->waits != name && strcmp(t->waits, name)) || t->line != line || w->width[i] != w->width[lane]) diverged(self, t);
        }
        work(w);
        w->waiting = 0;
        set_ready(number, 0xffffffff, true);
    } else {
        for (int i = 0; i < 32; i++)
            if (thread_at(number, i)->ended) diverged(self, thread_at(number, i));
        set_ready(number, 1u << lane, false);
    }
    give_way();
}

EMU void exchange(Warp *w) {
    for (int i = 0; i < 32; i++) w->result[i] = w->value[w->from[i]];
}

EMU uint64_t shuffle(const char *name, unsigned mask, uint64_t value, int from, int width, int line) {
    Unseen unseen;
    Warp *w = warp();
    int lane = lane_id();
    if (width < 1 || width > 32 || (width & (width - 1))) fail("%s on line %d with width %d", name, line, width);
    if (from < -1 || from > 31) fail("%s on line %d reads lane %d of a segment of %d", name, line, from, width);
    w->value[lane] = value;
    w->width[lane] = width;
    w->from[lane] = from < 0 ? lane : from;
    meet(name, mask, line, exchange);
    return w->result[lane];
}

template <class T> uint64_t to_bits(T x) {
    static_assert(sizeof x <= 8 && std::is_arithmetic<T>::value, "int, unsigned, float or double");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &x, sizeof x);
    return bits;
}

template <class T> T from_bits(uint64_t bits) {
    T x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

EMU uint64_t vote(const char *name, unsigned mask, bool value, int line, void (*work)(Warp *)) {
    Unseen unseen;
    Warp *w = warp();
    int lane = lane_id();
    w->value[lane] = value;
    w->width[lane] = 32;
    meet(name, mask, line, work);
    return w->result[lane];
}

EMU void ballot(Warp *w) {
    uint64_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= w->value[i] << i;
    for (int i = 0; i < 32; i++) w->result[i] = bits;
}

EMU void nothing(Warp *w) { w->syncs++; }

}  // namespace cuda_emu

inline void __syncwarp(unsigned mask = 0xffffffff, int line = __builtin_LINE()) {
    using namespace cuda_emu;
    Unseen unseen;
    Warp *w = warp();
    char *meeting = &w->sync[w->syncs % 2];
    release(meeting);
    vote("__syncwarp", mask, false, line, nothing);
    acquire(meeting);
}

/* A lane whose source would lie outside its segment of `width` lanes keeps its own value, except for __shfl_sync, where it is a mistake. */
template <class T> T __shfl_sync(unsigned mask, T x, int source, int width = 32, int line = __builtin_LINE()) {
    int begin = cuda_emu::lane_id() / width * width;
    if (source < 0 || source >= width) cuda_emu::fail("__shfl_sync on line %d reads lane %d of a segment of %d", line, source, width);
    return cuda_emu::from_bits<T>(cuda_emu::shuffle("__shfl_sync", mask, cuda_emu::to_bits(x), begin + source, width, line));
}

template <class T> T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    int lane = cuda_emu::lane_id(), begin = lane / width * width, source = lane - (int)delta;
    return cuda_emu::from_bits<T>(cuda_emu::shuffle("__shfl_up_sync", mask, cuda_emu::to_bits(x), source < begin ? -1 : source, width, line));
}

template <class T> T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    int lane = cuda_emu::lane_id(), end = lane / width * width + width, source = lane + (int)delta;
    return cuda_emu::from_bits<T>(cuda_emu::shuffle("__shfl_down_sync", mask, cuda_emu::to_bits(x), source >= end ? -1 : source, width, line));
}

template <class T> T __shfl_xor_sync(unsigned mask, T x, int flip, int width = 32, int line = __builtin_LINE()) {
    int lane = cuda_emu::lane_id(), end = lane / width * width + width, source = lane ^ flip;
    return cuda_emu::from_bits<T>(cuda_emu::shuffle("__shfl_xor_sync", mask, cuda_emu::to_bits(x), flip < 32 && source >= end ? -1 : source, width, line));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return (unsigned)cuda_emu::vote("__ballot_sync", mask, predicate != 0, line, cuda_emu::ballot);
}

inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return cuda_emu::vote("__any_sync", mask, predicate != 0, line, cuda_emu::ballot) != 0;
}

inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return cuda_emu::vote("__all_sync", mask, predicate != 0, line, cuda_emu::ballot) == 0xffffffff;
}

/* Integers only: the order of a sum of floating-point numbers must not depend on who comes first. */
inline int atomicAdd(int *p, int x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned *p, unsigned x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }

inline int atomicMax(int *p, int x) {
    int was = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (was < x && !__atomic_compare_exchange_n(p, &was, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return was;
}

/* ------------------------------------------------------------------------------------------------------------------
 * Shared memory, and copies into it. Arrays begin at multiples of 16 bytes: SHARED of kernels.cu must say __align__(16).
 */

namespace cuda_emu {

enum { SHARED_ROOM = SHARED_MOST + 64 * 2 * RED_ZONE };

EMU unsigned char *shared_array(const void *key, const char *name, size_t bytes) {
    Unseen unseen;
    for (Shared &a : block.arrays)
        if (a.key == key) return a.begin;
    size_t room = RED_ZONE + (bytes + 15) / 16 * 16 + RED_ZONE;
    block.shared_bytes += bytes;
    if (block.shared_bytes > block.shared_limit || block.shared_used + room > SHARED_ROOM)
        fail("%zu bytes of shared memory with %s, where %zu are allowed", block.shared_bytes, name, block.shared_limit);
    Shared a = {key, name, block.shared + block.shared_used + RED_ZONE, bytes};
    block.shared_used += room;
    if (CUDA_EMU_ASAN) ASAN_UNPOISON_MEMORY_REGION(a.begin - RED_ZONE, room);
    memset(a.begin, poison_byte(), bytes);
    paint(a.begin - RED_ZONE, RED_ZONE);
    paint(a.begin + bytes, RED_ZONE);
    if (CUDA_EMU_ASAN) ASAN_POISON_MEMORY_REGION(a.begin - RED_ZONE, RED_ZONE), ASAN_POISON_MEMORY_REGION(a.begin + bytes, RED_ZONE);
    block.arrays.push_back(a);
    return a.begin;
}

EMU unsigned char *shared_dynamic() {
    if (!block.arrays[0].bytes) fail("SHARED_DYN in a kernel that was launched without dynamic shared memory");
    return block.arrays[0].begin;
}

EMU void check_shared() {
    for (Shared &a : block.arrays) {
        if (CUDA_EMU_ASAN) ASAN_UNPOISON_MEMORY_REGION(a.begin - RED_ZONE, RED_ZONE), ASAN_UNPOISON_MEMORY_REGION(a.begin + a.bytes, RED_ZONE);
        if (!painted(a.begin - RED_ZONE, RED_ZONE)) fail("written before the beginning of %s, %zu bytes of shared memory", a.name, a.bytes);
        if (!painted(a.begin + a.bytes, RED_ZONE)) fail("written past the end of %s, %zu bytes of shared memory", a.name, a.bytes);
    }
}

/* 16 bytes at p are to be shared memory. */
EMU void shared_row(const void *p, const char *what) {
    aligned(p, 16, what);
    const unsigned char *row = (const unsigned char *)p;
    for (Shared &a : block.arrays)
        if (row >= a.begin && row + 16 <= a.begin + a.bytes) return;
    fail("%s: 16 bytes at %p are not within an array of shared memory", what, p);
}

inline void copy16(unsigned char *to, const unsigned char *from) {      // by the thread that runs: the sanitizers see it
    uint64_t x[2];
    for (int i = 0; i < 2; i++) x[i] = ((const uint64_t *)(const void *)from)[i];
    for (int i = 0; i < 2; i++) ((uint64_t *)(void *)to)[i] = x[i];
}

EMU void cp_async_finish(int except) {
    for (Thread *t = current;;) {
        Pending p;
        {
            Unseen unseen;
            if (t->pending.empty() || t->pending[0].group >= t->groups - except) return;
            p = t->pending[0];
            t->pending.erase(t->pending.begin());
        }
        copy16(p.to, p.from);
    }
}

}  // namespace cuda_emu

#define SHARED(T, name, dimensions)                                                                                                 \
    using name##_type = T dimensions;                                                                                              \
    static const char name##_key = 0;                                                                                              \
    name##_type &name = *(name##_type *)(void *)cuda_emu::shared_array(&name##_key, #name, sizeof(name##_type))
#define SHARED_DYN(T, name) T *name = (T *)(void *)cuda_emu::shared_dynamic()

/* 16 bytes from global to shared memory, some time before the cp_async_wait that covers them. */
inline void cp_async16(void *shared, const void *global) {
    using namespace cuda_emu;
    {
        Unseen unseen;
        shared_row(shared, "cp_async16");
        aligned(global, 16, "cp_async16");
        device_memory(global, 16, "cp_async16");
        current->pending.push_back({(unsigned char *)shared, (const unsigned char *)global, current->groups});
    }
    for (int i = 0; i < 4; i++) ((uint32_t *)shared)[i] = 0xffffffff;
}

inline void cp_async_commit() { cuda_emu::current->groups++; }

/* All groups but the last n committed have arrived: in the eyes of this thread. Others see them after a barrier. */
template <int n> void cp_async_wait() { cuda_emu::cp_async_finish(n); }

/* ------------------------------------------------------------------------------------------------------------------
 * Tensor cores. Lane l holds, with g = l / 4 and t = l % 4, of A (16,16) rows g and g+8, columns 2t, 2t+1, 2t+8, 2t+9; of B (16,8) column g and
 * these rows; of D (16,8) rows g and g+8, columns 2t, 2t+1. (PTX ISA, mma.m16n8k16 and ldmatrix.)
 */

namespace cuda_emu {

EMU float bf16_value(uint32_t bits) {
    bits <<= 16;
    return from_bits<float>(bits);
}

EMU void mma_work(Warp *w) {
    float A[16][16], B[16][8], D[16][8];
    for (int l = 0; l < 32; l++) {
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) {
            uint32_t a = w->in[l][i];
            A[g + i % 2 * 8][2 * t + i / 2 * 8] = bf16_value(a & 0xffff), A[g + i % 2 * 8][2 * t + i / 2 * 8 + 1] = bf16_value(a >> 16);
            D[g + i / 2 * 8][2 * t + i % 2] = from_bits<float>(w->in[l][6 + i]);
        }
        for (int i = 0; i < 2; i++) {
            uint32_t b = w->in[l][4 + i];
            B[2 * t + i * 8][g] = bf16_value(b & 0xffff), B[2 * t + i * 8 + 1][g] = bf16_value(b >> 16);
        }
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) D[i][j] += A[i][k] * B[k][j];      // the product of two bf16 is exact: this is a fused multiply-add
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) w->out[l][i] = (uint32_t)to_bits(D[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2]);
}

/* in: 32 rows of 8 bf16, those of lanes 0-7 the first matrix. out[i]: of matrix i, row l/4, columns 2(l%4) and the next; or transposed. */
template <bool transposed> EMU void ldmatrix_work(Warp *w) {
    uint16_t row[32][8];
    for (int l = 0; l < 32; l++) __builtin_memcpy(row[l], w->in[l], 16);
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 4; i++) {
            int g = l / 4, t = l % 4;
            uint32_t first = transposed ? row[8 * i + 2 * t][g] : row[8 * i + g][2 * t];
            uint32_t second = transposed ? row[8 * i + 2 * t + 1][g] : row[8 * i + g][2 * t + 1];
            w->out[l][i] = first | second << 16;
        }
    }
}

EMU void tensor(const char *name, const uint32_t *in, int n, uint32_t out[4], int line, void (*work)(Warp *)) {
    Unseen unseen;
    Warp *w = warp();
    int lane = lane_id();
    for (int i = 0; i < n; i++) w->in[lane][i] = in[i];
    w->width[lane] = 32;
    meet(name, 0xffffffff, line, work);
    for (int i = 0; i < 4; i++) out[i] = w->out[lane][i];
}

template <bool transposed> void ldmatrix(const char *name, uint32_t r[4], const void *shared_row, int line) {
    cuda_emu::shared_row(shared_row, name);
    uint32_t row[4];
    for (int i = 0; i < 4; i++) row[i] = ((const uint32_t *)shared_row)[i];
    tensor(name, row, 4, r, line, ldmatrix_work<transposed>);
}

}  // namespace cuda_emu

/* d (16,8) += a (16,16) b (16,8) */
inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], int line = __builtin_LINE()) {
    uint32_t in[10], out[4];
    for (int i = 0; i < 4; i++) in[i] = a[i];
    for (int i = 0; i < 2; i++) in[4 + i] = b[i];
    for (int i = 0; i < 4; i++) in[6 + i] = (uint32_t)cuda_emu::to_bits(d[i]);
    cuda_emu::tensor("mma_bf16", in, 10, out, line, cuda_emu::mma_work);
    for (int i = 0; i < 4; i++) d[i] = cuda_emu::from_bits<float>(out[i]);
}

inline void ldmatrix_x4(uint32_t r[4], const void *shared_row, int line = __builtin_LINE()) {
    cuda_emu::ldmatrix<false>("ldmatrix_x4", r, shared_row, line);
}

inline void ldmatrix_x4_trans(uint32_t r[4], const void *shared_row, int line = __builtin_LINE()) {
    cuda_emu::ldmatrix<true>("ldmatrix_x4_trans", r, shared_row, line);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Arithmetic
 */

#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN

// The C library declares these two names for itself.
#define __expf(x) expf(x)
#define __logf(x) logf(x)

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((uint64_t)x * y >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }

inline unsigned __float_as_uint(float x) { return (unsigned)cuda_emu::to_bits(x); }
inline int __float_as_int(float x) { return (int)cuda_emu::to_bits(x); }
inline float __uint_as_float(unsigned x) { return cuda_emu::from_bits<float>(x); }
inline float __int_as_float(int x) { return cuda_emu::from_bits<float>((unsigned)x); }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline int __float2int_rn(float x) { return (int)rintf(x); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline size_t min(size_t a, size_t b) { return a < b ? a : b; }
inline size_t max(size_t a, size_t b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> void __stcs(T *p, T x) { *p = x; }

/* bf16: the upper half of a float. Conversions are spelled out: what would be arithmetic in bf16 does not compile. */
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float x) {      // to the nearest, to even in a tie
        uint32_t u = __float_as_uint(x);
        bits = x != x ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    explicit operator float() const { return cuda_emu::bf16_value(bits); }
};
CUDA_EMU_VECTOR2(__nv_bfloat162, __nv_bfloat16)
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return (float)x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 x;
    x.bits = bits;
    return x;
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) { return {__nv_bfloat16(x.x), __nv_bfloat16(x.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {(float)x.x, (float)x.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float __low2float(__nv_bfloat162 x) { return (float)x.x; }
inline float __high2float(__nv_bfloat162 x) { return (float)x.y; }

/* ------------------------------------------------------------------------------------------------------------------
 * Launching: LAUNCH(kernel, grid, block, smem, stream, arguments...) runs kernel<<<grid, block, smem, stream>>>(arguments...)
 */

namespace cuda_emu {

inline std::map<const void *, int> dynamic_limit;      // by kernel, what cudaFuncSetAttribute allows it

inline void run_block() {
    for (int i = 0; i < block.threads; i++) {
        Thread *t = &block.thread[i];
        unsigned x = (unsigned)i % blockDim.x, y = (unsigned)i / blockDim.x % blockDim.y, z = (unsigned)i / (blockDim.x * blockDim.y);
        t->fiber = NULL;
        t->index = {x, y, z};
        t->waits = NULL;
        t->ended = false;
        t->groups = 0;
    }
    block.ended = block.waiting = 0;
    for (int w = 0; w < block.threads / 32; w++) {
        block.warp[w].waiting = 0;
        set_ready(w, 0xffffffff, true);
    }
    current = NULL;
    Thread *first = pick();
    (first->fiber = take_fiber())->starts = first;
#if CUDA_EMU_TSAN
    host.tsan = __tsan_get_current_fiber();
#endif
    in_thread = true;
    switch_to(first->fiber);
    in_thread = false;
    check_shared();
    forget_fibers();
}

inline void run_grid(size_t dynamic) {
    Unseen unseen;
    size_t blocks = (size_t)gridDim.x * gridDim.y * gridDim.z;
    std::vector<uint32_t> where(order == RANDOM ? blocks : 0);
    for (size_t i = 0; i < where.size(); i++) where[i] = (uint32_t)i;
    for (size_t i = where.size(); i > 1; i--) std::swap(where[i - 1], where[random_below((uint32_t)i)]);
    for (size_t i = 0; i < blocks; i++) {
        size_t b = order == RANDOM ? where[i] : order == REVERSE ? blocks - 1 - i : i;
        blockIdx = {(unsigned)(b % gridDim.x), (unsigned)(b / gridDim.x % gridDim.y), (unsigned)(b / gridDim.x / gridDim.y)};
        if (CUDA_EMU_TSAN) free(block.shared), block.shared = NULL;
        if (!block.shared && !(block.shared = (unsigned char *)malloc(SHARED_ROOM))) fail("out of memory for shared memory");
        block.shared_bytes = block.shared_used = 0;
        block.arrays.clear();
        shared_array(&block.arrays, "the dynamic array", dynamic);
        run_block();
    }
}

template <class T> void check_argument(int, const T &) {}
template <class T> void check_argument(int i, T *const &p) {
    size_t left;
    if (p && !find((const void *)p, &left)) fail("argument %d, %p, is a pointer to memory of the host", i, (const void *)p);
}

template <class... P, size_t... I> void check_arguments(std::tuple<P...> &arguments, std::index_sequence<I...>) {
    (check_argument((int)I + 1, std::get<I>(arguments)), ...);
}

template <class... P, class... A>
void launch(const char *name, dim3 grid, dim3 threads, size_t dynamic, cudaStream_t, void (*function)(P...), A... given) {
    static_assert(sizeof...(P) == sizeof...(A), "LAUNCH: the number of arguments");
    struct Call { void (*function)(P...); std::tuple<std::decay_t<P>...> arguments; } call = {function, std::tuple<std::decay_t<P>...>(given...)};
    if (kernel) fail("%s is launched from inside a kernel", name);
    kernel = name;
    size_t n = (size_t)threads.x * threads.y * threads.z;
    if (n == 0 || n > THREADS_MOST || threads.z > 64 || n % 32)
        fail("a block of %u x %u x %u threads; it must be a multiple of 32 and at most 1024", threads.x, threads.y, threads.z);
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        fail("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
    auto allowed = dynamic_limit.find((const void *)function);
    if (dynamic > SHARED_MOST) fail("%zu bytes of dynamic shared memory; a block has at most %d", dynamic, (int)SHARED_MOST);
    if (dynamic > SHARED_DEFAULT && (allowed == dynamic_limit.end() || (size_t)allowed->second < dynamic))
        fail("%zu bytes of dynamic shared memory; more than %d need cudaFuncSetAttribute(MaxDynamicSharedMemorySize)", dynamic, (int)SHARED_DEFAULT);
    check_arguments(call.arguments, std::index_sequence_for<P...>());
    read_order();
    gridDim = grid;
    blockDim = threads;
    block.threads = (int)n;
    block.shared_limit = allowed == dynamic_limit.end() ? SHARED_DEFAULT : SHARED_MOST;
    block.body = [](void *p) { std::apply(((Call *)p)->function, ((Call *)p)->arguments); };
    block.arguments = &call;
    {
        Open open;
        release(&block.started);
        run_grid(dynamic);
        acquire(&block.done);
    }
    check_red_zones();
    kernel = NULL;
}

}  // namespace cuda_emu

#define LAUNCH(kernel, grid, block, smem, stream, ...) cuda_emu::launch(#kernel, grid, block, smem, stream, kernel, ##__VA_ARGS__)

template <class F> cudaError_t cudaFuncSetAttribute(F *function, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > cuda_emu::SHARED_MOST) return cuda_emu::error(cudaErrorInvalidValue);
    cuda_emu::dynamic_limit[(const void *)function] = value;
    return cudaSuccess;
}

/* ------------------------------------------------------------------------------------------------------------------
 * cuBLASLt:  D (m,n) = epilogue(alpha op(A) (m,k) op(B) (k,n) + beta C (m,n)), everything column-major. A sum is the chain of fused
 * multiply-adds over k in order, from 0. GELU is the tanh form.
 */

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_INITIALIZED = 1, CUBLAS_STATUS_ALLOC_FAILED = 3, CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8, CUBLAS_STATUS_EXECUTION_FAILED = 13, CUBLAS_STATUS_INTERNAL_ERROR = 14, CUBLAS_STATUS_NOT_SUPPORTED = 15,
};
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
typedef cudaDataType_t cudaDataType;
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_PEDANTIC = 69, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasLtPointerMode_t { CUBLASLT_POINTER_MODE_HOST };
enum cublasLtEpilogue_t {
    CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4, CUBLASLT_EPILOGUE_GELU = 32, CUBLASLT_EPILOGUE_GELU_BIAS = 36,
    CUBLASLT_EPILOGUE_GELU_AUX = 160, CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 164, CUBLASLT_EPILOGUE_DGELU = 192,
    CUBLASLT_EPILOGUE_BGRADA = 256, CUBLASLT_EPILOGUE_BGRADB = 512,
};
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_POINTER_MODE = 2, CUBLASLT_MATMUL_DESC_TRANSA = 3, CUBLASLT_MATMUL_DESC_TRANSB = 4, CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12,
    CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26,
};
enum cublasLtMatrixLayoutAttribute_t { CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6 };
enum cublasLtMatmulPreferenceAttributes_t { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3 };
enum cublasLtMatmulAlgoConfigAttributes_t {
    CUBLASLT_ALGO_CONFIG_ID, CUBLASLT_ALGO_CONFIG_TILE_ID, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
    CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, CUBLASLT_ALGO_CONFIG_STAGES_ID,
};
enum { CUBLASLT_REDUCTION_SCHEME_NONE = 0, CUBLASLT_REDUCTION_SCHEME_MASK = 7 };

typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct cublasLtMatmulDesc {
    cublasComputeType_t compute;
    int32_t trans[2];                 // A, B
    uint32_t epilogue;
    void *bias, *aux;
    int64_t aux_ld;
    int32_t bias_type;                // -1: that of D
} *cublasLtMatmulDesc_t;
typedef struct cublasLtMatrixLayout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t ld, stride;
    int32_t batch;
} *cublasLtMatrixLayout_t;
typedef struct cublasLtMatmulPreference { uint64_t workspace; uint32_t reduction; } *cublasLtMatmulPreference_t;
typedef struct { uint32_t config[8]; } cublasLtMatmulAlgo_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;

inline const char *cublasGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS ? "the operation completed successfully" : status == CUBLAS_STATUS_NOT_INITIALIZED ? "the library was not initialized" : "an unsupported value or parameter was passed to the function";
}
inline const char *cublasLtGetStatusString(cublasStatus_t status) { return cublasGetStatusString(status); }

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    if (cudaSetDevice(0)) return CUBLAS_STATUS_NOT_INITIALIZED;
    return *handle = (cublasLtHandle_t)malloc(1), CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return free(handle), CUBLAS_STATUS_SUCCESS; }

inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale) {
    if (scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
    return *d = new cublasLtMatmulDesc{compute, {0, 0}, CUBLASLT_EPILOGUE_DEFAULT, NULL, NULL, 0, -1}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return delete d, CUBLAS_STATUS_SUCCESS; }

inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld) {
    return *l = new cublasLtMatrixLayout{type, rows, columns, ld, 0, 1}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return delete l, CUBLAS_STATUS_SUCCESS; }

inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    return *p = new cublasLtMatmulPreference{0, CUBLASLT_REDUCTION_SCHEME_MASK}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { return delete p, CUBLAS_STATUS_SUCCESS; }

namespace cuda_emu {

/* An attribute is handed over as bytes, whose number must be right. */
template <class T> cublasStatus_t set_attribute(T *field, const void *from, size_t bytes) {
    if (bytes != sizeof *field) fail("an attribute of cuBLASLt is set from %zu bytes; it has %zu", bytes, sizeof *field);
    memcpy(field, from, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

}  // namespace cuda_emu

inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, const void *from, size_t bytes) {
    using cuda_emu::set_attribute;
    int32_t mode = 0;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return set_attribute(&mode, from, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA: return set_attribute(&d->trans[0], from, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set_attribute(&d->trans[1], from, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return set_attribute(&d->epilogue, from, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set_attribute(&d->bias, from, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return set_attribute(&d->aux, from, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return set_attribute(&d->aux_ld, from, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return set_attribute(&d->bias_type, from, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

inline cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t attribute, const void *from, size_t bytes) {
    return attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT ? cuda_emu::set_attribute(&l->batch, from, bytes) : cuda_emu::set_attribute(&l->stride, from, bytes);
}

inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t attribute, const void *from,
                                                           size_t bytes) {
    return attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? cuda_emu::set_attribute(&p->workspace, from, bytes) : cuda_emu::set_attribute(&p->reduction, from, bytes);
}

/* Three ways, all alike; the second one claims to split k, which a caller who wants one order of summation must turn down or off. */
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                     cublasLtMatrixLayout_t, cublasLtMatmulPreference_t preference, int most, cublasLtMatmulHeuristicResult_t *results,
                                                     int *count) {
    *count = most < 3 ? most : 3;
    for (int i = 0; i < *count; i++) {
        results[i] = {};
        results[i].algo.config[CUBLASLT_ALGO_CONFIG_TILE_ID] = 20 - (unsigned)i;
        results[i].algo.config[CUBLASLT_ALGO_CONFIG_SPLITK_NUM] = i == 1 && preference->reduction ? 4 : 1;
        results[i].algo.config[CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME] = i == 1 && preference->reduction ? 2 : 0;
        results[i].workspaceSize = preference->workspace / 2;
    }
    return *count ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

inline cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t attribute, const void *from, size_t bytes) {
    return cuda_emu::set_attribute(&algo->config[attribute], from, bytes);
}

inline cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t attribute, void *to, size_t bytes,
                                                           size_t *written) {
    if (written) *written = sizeof *algo->config;
    if (bytes < sizeof *algo->config) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, &algo->config[attribute], sizeof *algo->config);
    return CUBLAS_STATUS_SUCCESS;
}

namespace cuda_emu {

inline size_t bytes_of(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

inline float load(const void *p, size_t i, cudaDataType_t type) {
    return type == CUDA_R_32F ? ((const float *)p)[i] : bf16_value(((const uint16_t *)p)[i]);
}

inline void store(void *p, size_t i, cudaDataType_t type, float x) {
    if (type == CUDA_R_32F) ((float *)p)[i] = x;
    else ((uint16_t *)p)[i] = __nv_bfloat16(x).bits;
}

/* What the product touches of a matrix must be there, and aligned. */
inline void matrix(const char *name, const void *p, const cublasLtMatrixLayout *l, uint64_t rows, uint64_t columns, int batch) {
    if (l->rows != rows || l->columns != columns) fail("%s is (%zu,%zu) where (%zu,%zu) is wanted", name, l->rows, l->columns, rows, columns);
    if (l->type != CUDA_R_32F && l->type != CUDA_R_16BF) fail("%s is of type %d; only CUDA_R_32F and CUDA_R_16BF are emulated", name, l->type);
    if (l->ld < (int64_t)rows) fail("%s has a leading dimension of %ld and %zu rows", name, (long)l->ld, rows);
    if (l->batch != batch) fail("%s has %d matrices, D has %d", name, l->batch, batch);
    if (l->batch > 1 && l->stride < 0) fail("%s has a stride of %ld", name, (long)l->stride);
    size_t touched = (size_t)l->stride * (size_t)(batch - 1) + (columns - 1) * (size_t)l->ld + rows;
    device_memory(p, touched * bytes_of(l->type), name);
    aligned(p, l->type == CUDA_R_16BF ? 16 : 4, name);
}

/* C (m,n), column-major, = the chain over k from 0 of a(i,k) b(k,j). A is copied in panels of 16 rows, B in panels of 6 columns, so that a
   tile of C stays in registers. */
inline void product(float *C, size_t m, size_t n, size_t k, const void *A, const cublasLtMatrixLayout *la, bool ta, const void *B, const cublasLtMatrixLayout *lb, bool tb) {
    enum { M = 16, N = 6 };
    static std::vector<float> a, b;
    size_t panels = (n + N - 1) / N;
    a.assign(M * k, 0), b.assign(panels * N * k, 0);
    for (size_t j = 0; j < n; j++)
        for (size_t l = 0; l < k; l++) b[(j / N * k + l) * N + j % N] = load(B, tb ? j + l * (size_t)lb->ld : l + j * (size_t)lb->ld, lb->type);
    for (size_t i0 = 0; i0 < m; i0 += M) {
        size_t rows = std::min(m - i0, (size_t)M);
        for (size_t l = 0; l < k; l++)
            for (size_t i = 0; i < rows; i++) a[l * M + i] = load(A, ta ? l + (i0 + i) * (size_t)la->ld : i0 + i + l * (size_t)la->ld, la->type);
        for (size_t p = 0; p < panels; p++) {
            __m256 acc[N][2];
            for (int j = 0; j < N; j++) acc[j][0] = acc[j][1] = _mm256_setzero_ps();
            const float *x = a.data(), *y = &b[p * N * k];
            for (size_t l = 0; l < k; l++, x += M, y += N) {
                __m256 low = _mm256_loadu_ps(x), high = _mm256_loadu_ps(x + 8);
                for (int j = 0; j < N; j++) {
                    acc[j][0] = _mm256_fmadd_ps(low, _mm256_set1_ps(y[j]), acc[j][0]);
                    acc[j][1] = _mm256_fmadd_ps(high, _mm256_set1_ps(y[j]), acc[j][1]);
                }
            }
            for (size_t j = 0; j < N && p * N + j < n; j++) {
                float tile[M];
                _mm256_storeu_ps(tile, acc[j][0]), _mm256_storeu_ps(tile + 8, acc[j][1]);
                memcpy(C + (p * N + j) * m + i0, tile, rows * sizeof(float));
            }
        }
    }
}

const float gelu_a = 0.79788456f, gelu_b = 0.044715f;      // sqrt(2/pi)

inline float gelu(float x) { return 0.5f * x * (1 + tanhf(gelu_a * (x + gelu_b * x * x * x))); }

inline float gelu_slope(float x) {
    float t = tanhf(gelu_a * (x + gelu_b * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * gelu_a * (1 + 3 * gelu_b * x * x);
}

}  // namespace cuda_emu

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t d, const void *alpha, const void *A, cublasLtMatrixLayout_t la, const void *B,
                                     cublasLtMatrixLayout_t lb, const void *beta, const void *C, cublasLtMatrixLayout_t lc, void *D, cublasLtMatrixLayout_t ld,
                                     const cublasLtMatmulAlgo_t *, void *workspace, size_t workspace_bytes, cudaStream_t) {
    using namespace cuda_emu;
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    kernel = "cublasLtMatmul";
    bool ta = d->trans[0] == CUBLAS_OP_T, tb = d->trans[1] == CUBLAS_OP_T;
    size_t m = ld->rows, n = ld->columns, k = ta ? la->rows : la->columns;
    if (!m || !n || !k) fail("a product of (%zu,%zu) and (%zu,%zu)", m, k, k, n);
    if (la->type != lb->type || lc->type != ld->type || (la->type == CUDA_R_32F && ld->type != CUDA_R_32F))
        fail("A, B, C, D are of types %d, %d, %d, %d, a combination that cuBLASLt does not have", la->type, lb->type, lc->type, ld->type);
    float scale = *(const float *)alpha, keep = *(const float *)beta;
    matrix("A", A, la, ta ? k : m, ta ? m : k, ld->batch);
    matrix("B", B, lb, tb ? n : k, tb ? k : n, ld->batch);
    matrix("D", D, ld, m, n, ld->batch);
    if (keep != 0) matrix("C", C, lc, m, n, ld->batch);
    if (D == A || D == B) fail("D is in the place of %s", D == A ? "A" : "B");
    if (D == C && keep != 0 && (lc->ld != ld->ld || lc->stride != ld->stride)) fail("C and D are in one place and of different layouts");
    if (workspace_bytes) device_memory(workspace, workspace_bytes, "the workspace"), aligned(workspace, 16, "workspace");
    unsigned e = d->epilogue;
    bool add_bias = e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_BIAS || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    bool sum_a = e == CUBLASLT_EPILOGUE_BGRADA, sum_b = e == CUBLASLT_EPILOGUE_BGRADB;
    bool use_gelu = e != CUBLASLT_EPILOGUE_DGELU && (e & 32), aux = e == CUBLASLT_EPILOGUE_DGELU || (use_gelu && (e & 128));
    if (!add_bias && !sum_a && !sum_b && !use_gelu && !aux && e != CUBLASLT_EPILOGUE_DEFAULT) fail("epilogue %u is not emulated", e);
    cudaDataType_t bias_type = d->bias_type < 0 ? ld->type : (cudaDataType_t)d->bias_type;
    if (add_bias || sum_a || sum_b) device_memory(d->bias, (sum_b ? n : m) * bytes_of(bias_type), "the bias");
    cublasLtMatrixLayout laux = {ld->type, m, n, d->aux_ld, 0, 1};
    if (aux) matrix("the epilogue's auxiliary matrix", d->aux, &laux, m, n, ld->batch);
    if ((sum_a || sum_b) && ld->batch > 1) fail("a bias gradient of a batch is not emulated");

    Open open;
    std::vector<float> result(m * n);
    for (int batch = 0; batch < ld->batch; batch++) {
        auto at = [&](const void *p, cublasLtMatrixLayout_t l) { return (unsigned char *)const_cast<void *>(p) + (size_t)batch * (size_t)l->stride * bytes_of(l->type); };
        const void *a = at(A, la), *b = at(B, lb), *c = at(C, lc);
        void *out = at(D, ld);
        product(result.data(), m, n, k, a, la, ta, b, lb, tb);
        for (size_t j = 0; j < n; j++) {
            for (size_t i = 0; i < m; i++) {
                float x = scale * result[i + j * m];
                if (keep != 0) x = fmaf(keep, load(c, i + j * (size_t)lc->ld, lc->type), x);
                if (add_bias) x += load(d->bias, i, bias_type);
                if (aux && use_gelu) store(d->aux, i + j * (size_t)d->aux_ld, ld->type, x);
                if (aux && !use_gelu) x *= gelu_slope(load(d->aux, i + j * (size_t)d->aux_ld, ld->type));
                if (use_gelu) x = gelu(x);
                store(out, i + j * (size_t)ld->ld, ld->type, x);
            }
        }
        for (size_t i = 0; i < (sum_a ? m : sum_b ? n : 0); i++) {
            float sum = 0;
            for (size_t l = 0; l < k; l++)
                sum += sum_a ? load(a, ta ? l + i * (size_t)la->ld : i + l * (size_t)la->ld, la->type) : load(b, tb ? i + l * (size_t)lb->ld : l + i * (size_t)lb->ld, lb->type);
            store(d->bias, i, bias_type, sum);
        }
    }
    kernel = NULL;
    return CUBLAS_STATUS_SUCCESS;
}

#endif
