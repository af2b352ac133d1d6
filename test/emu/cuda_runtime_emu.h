/*
 * cuda_runtime_emu.h - the calls of CUDA's runtime for cuda_emu.h, which includes this file:
 * devices, memory, copies, streams, events. It also has the errors and settings of the emulation,
 * and its messages to the sanitizers.
 *
 * Memory of the device is memory of the host in a list of its own. A copy in the wrong direction or
 * past an end is found, as is, under AddressSanitizer, a host that reads device memory without a
 * copy. An asynchronous copy to pinned memory has not arrived before somebody waits for it.
 *
 * Streams do not run at the same time, but what is given to a stream may run late. In the orders
 * forward and roundrobin the first stream that was created runs at once, and any other only when
 * the host or another stream waits for it. In reverse it is the other way round. In random orders
 * it is drawn. So a missing wait shows: what should have come before has not happened yet. An
 * operation of the stream NULL waits for all streams and runs at once.
 *
 * Calls that would fail on a GPU through no fault of the program (no device, no memory) return an
 * error as there; mistakes end the program.
 */
#ifndef POSTTRAIN_CUDA_RUNTIME_EMU_H
#define POSTTRAIN_CUDA_RUNTIME_EMU_H

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

/* ---- Sanitizers ------------------------------------------------------------------------------ */

#ifndef __has_feature
#    define __has_feature(x) 0
#endif
#if defined __SANITIZE_ADDRESS__ || __has_feature(address_sanitizer)
#    define CUDA_EMU_ASAN 1
#    include <sanitizer/asan_interface.h>
#    include <sanitizer/common_interface_defs.h>
#else
#    define CUDA_EMU_ASAN 0
#    define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#    define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif
#if defined __SANITIZE_THREAD__ || __has_feature(thread_sanitizer)
#    define CUDA_EMU_TSAN 1
#    include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
#else
#    define CUDA_EMU_TSAN 0
#endif

// What the emulator does for itself is no access of a CUDA thread: neither its own code nor,
// between these two, what it calls.
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
}  // namespace cuda_emu

/* ---- Failures, settings ---------------------------------------------------------------------- */

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

/* Of the thread that runs. */
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_emu {

inline const char *kernel;  // that is running, or the call of cuBLASLt
inline bool in_thread;      // of a kernel; else the host

[[noreturn]] __attribute__((format(printf, 1, 2), cold)) inline void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fputs("✗ emulated CUDA: ", stderr);
    vfprintf(stderr, format, arguments);
    if (kernel) fprintf(stderr, "; %s", kernel);
    if (in_thread)
        fprintf(stderr, ", block (%u,%u,%u), thread (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z,
                threadIdx.x, threadIdx.y, threadIdx.z);
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
    if (!s || !*s || !strcmp(s, "forward"))
        order = FORWARD;
    else if (!strcmp(s, "reverse"))
        order = REVERSE;
    else if (!strcmp(s, "roundrobin"))
        order = ROUNDROBIN;
    else if (!strncmp(s, "random:", 7) && s[7] && (random_state = strtoull(s + 7, &end, 10), !*end))
        order = RANDOM;
    else
        fail("CUDA_EMU_ORDER is \"%s\"; it can be forward, reverse, roundrobin or random:SEED", s);
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

/* There is a red zone of so many bytes on both sides of every array. Its pattern is NaN in float
   and in bf16. AddressSanitizer needs no pattern: there a zone is closed. */
enum { RED_ZONE = 256 };
struct RedZone {
    unsigned char byte[RED_ZONE + 4];
};
constexpr RedZone make_red_zone() {
    RedZone r = {};
    for (int i = 0; i < RED_ZONE + 4; i++) r.byte[i] = i % 2 ? 0xff : 0xd5;
    return r;
}
constexpr RedZone red = make_red_zone();

inline void surround(unsigned char *array, size_t bytes) {
    if (CUDA_EMU_ASAN) {
        ASAN_POISON_MEMORY_REGION(array - RED_ZONE, RED_ZONE);
        ASAN_POISON_MEMORY_REGION(array + bytes, RED_ZONE);
    } else {
        memcpy(array - RED_ZONE, red.byte, RED_ZONE);
        memcpy(array + bytes, red.byte + bytes % 2, RED_ZONE);
    }
}

/* Was anything written into the red zones around it? */
inline void check_surroundings(const unsigned char *array, size_t bytes, const char *name) {
    if (CUDA_EMU_ASAN) return;
    if (memcmp(array - RED_ZONE, red.byte, RED_ZONE))
        fail("written before the beginning of %s of %zu bytes", name, bytes);
    if (memcmp(array + bytes, red.byte + bytes % 2, RED_ZONE))
        fail("written past the end of %s of %zu bytes", name, bytes);
}

}  // namespace cuda_emu

/* ---- Devices, memory, copies, streams, events ------------------------------------------------ */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotReady = 600,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum {
    cudaHostRegisterDefault = 0,
    cudaHostRegisterPortable = 1,
    cudaHostRegisterMapped = 2,
    cudaHostRegisterReadOnly = 8,
    cudaStreamNonBlocking = 1,
    cudaEventDisableTiming = 2
};

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock,
        maxThreadsPerMultiProcessor, regsPerBlock, l2CacheSize;
};

namespace cuda_emu {

enum { SHARED_DEFAULT = 48 << 10, SHARED_MOST = 227 << 10 };  // SHARED_MOST: of any GPU

/* Of a block of this GPU, with cudaFuncSetAttribute. */
inline size_t shared_most() {
    const long most = setting("CUDA_EMU_SHARED", 99 << 10);
    if (most < SHARED_DEFAULT || most > SHARED_MOST)
        fail("CUDA_EMU_SHARED is %ld; it can be %d to %d", most, SHARED_DEFAULT, SHARED_MOST);
    return (size_t)most;
}

struct Memory {
    size_t bytes;
    bool device;
};
inline std::map<uintptr_t, Memory> &memories =
    *new std::map<uintptr_t, Memory>;  // by address; of the device, or pinned. Outlives main
inline size_t device_bytes;
inline cudaError_t last_error;

inline cudaError_t error(cudaError_t e) { return e == cudaSuccess ? e : last_error = e; }

/* The memory that contains p, or NULL; *left is the number of bytes from p to its end. The end
   itself counts as inside. */
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
    if (bytes > left)
        fail("%s: %zu bytes at %p, where the allocation of %zu bytes ends after %zu", what, bytes,
             p, m->bytes, left);
}

/* Device memory is open to kernels, copies and cuBLASLt, and closed to everything else. */
struct Open {
    Open() { toggle(true); }
    ~Open() { toggle(false); }
    static void toggle(bool open) {
        if (!CUDA_EMU_ASAN) return;
        for (auto &m : memories) {
            if (m.second.device && open)
                ASAN_UNPOISON_MEMORY_REGION((void *)m.first, m.second.bytes);
            if (m.second.device && !open)
                ASAN_POISON_MEMORY_REGION((void *)m.first, m.second.bytes);
        }
    }
};

/* After every kernel: did it write outside an allocation? */
inline void check_red_zones() {
    for (auto &m : memories)
        if (m.second.device)
            check_surroundings((unsigned char *)m.first, m.second.bytes,
                               "an allocation of the device");
}

}  // namespace cuda_emu

/* What cudaEventRecord put into a stream. */
struct cuda_emu_record {
    struct CUstream_st *stream;
    bool done;
    struct timespec at;
};
typedef struct CUevent_st {
    std::shared_ptr<cuda_emu_record> last;  // NULL: not recorded yet
} * cudaEvent_t;

namespace cuda_emu {

/* An operation of a stream: it waits for a record, then runs, then is recorded. Each may be empty.
 */
struct Operation {
    std::shared_ptr<cuda_emu_record> after;
    std::function<void()> run;
    std::shared_ptr<cuda_emu_record> record;
};

}  // namespace cuda_emu

typedef struct CUstream_st {
    std::deque<cuda_emu::Operation> queue;
} * cudaStream_t;

namespace cuda_emu {

inline std::vector<cudaStream_t> &streams = *new std::vector<cudaStream_t>;  // as they were created

/* How often something happened that no result shows, for tests. */
inline std::map<std::string, long> &counts = *new std::map<std::string, long>;

EMU void run_until(const std::shared_ptr<cuda_emu_record> &record);

EMU void run_next(cudaStream_t stream) {
    Operation o = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (o.after && !o.after->done) run_until(o.after);
    if (o.run) o.run();
    if (!o.record) return;
    clock_gettime(CLOCK_MONOTONIC, &o.record->at);
    o.record->done = true;
}

EMU void run_until(const std::shared_ptr<cuda_emu_record> &record) {
    while (!record->done) run_next(record->stream);
}

EMU void run_all(cudaStream_t stream) {
    while (!stream->queue.empty()) run_next(stream);
}

EMU void run_all() {
    for (cudaStream_t stream : streams) run_all(stream);
}

/* Gives an operation to a stream, and runs what this order runs now. */
EMU void enqueue(cudaStream_t stream, Operation o) {
    Unseen unseen;
    if (!stream) {
        run_all();
        CUstream_st at_once;
        at_once.queue.push_back(std::move(o));
        return run_all(&at_once);
    }
    stream->queue.push_back(std::move(o));
    read_order();
    if (order == RANDOM) {
        static uint64_t drawn = random_state;
        std::swap(drawn, random_state);
        for (cudaStream_t s : streams)
            for (uint32_t n = random_below(4); n && !s->queue.empty(); n--) run_next(s);
        std::swap(drawn, random_state);
    } else if ((stream == streams[0]) == (order != REVERSE)) {
        run_all(stream);
    }
}

/* An asynchronous copy from or to pinned memory. What goes to the host arrives when somebody waits
   for it and is NaN before; what comes from the host must not change before. */
struct Copy {
    cudaStream_t stream;
    unsigned char *host;
    size_t bytes;
    std::vector<unsigned char> data;
    bool to_host, made;
};
inline std::vector<std::shared_ptr<Copy>> copies;

/* Those that have been made in a stream, or with NULL in any. */
inline void finish_copies(cudaStream_t stream) {
    for (size_t i = 0; i < copies.size();) {
        const Copy &c = *copies[i];
        if (!c.made || (stream && c.stream != stream)) {
            i++;
            continue;
        }
        if (c.to_host)
            memcpy(c.host, c.data.data(), c.bytes);
        else if (memcmp(c.host, c.data.data(), c.bytes))
            fail(
                "the source of an asynchronous copy of %zu bytes to the device was changed before "
                "it was waited for",
                c.bytes);
        copies.erase(copies.begin() + (long)i);
    }
}

/* The host waits for a stream, or for all. */
inline void wait_for(cudaStream_t stream) {
    stream ? run_all(stream) : run_all();
    finish_copies(stream);
}

struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};

inline const ErrorText *error_text(cudaError_t e) {
    static const ErrorText known[] =
        {
            {cudaSuccess, "cudaSuccess", "no error"},
            {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
            {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
            {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
             "CUDA driver version is insufficient for CUDA runtime version"},
            {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
            {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
            {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
        },
                           unknown = {e, "unrecognized error code", "unrecognized error code"};
    for (const ErrorText &k : known)
        if (k.error == e) return &k;
    return &unknown;
}

inline long devices() { return setting("CUDA_EMU_DEVICES", 1); }
inline size_t total_memory() { return (size_t)setting("CUDA_EMU_MEMORY", 4L << 30); }

}  // namespace cuda_emu

/* For tests in C, which have no cuda_emu.h and may be linked without it. */
extern "C" __attribute__((used, weak)) long cuda_emu_count(const char *what) {
    return cuda_emu::counts[what];
}

inline const char *cudaGetErrorName(cudaError_t e) { return cuda_emu::error_text(e)->name; }
inline const char *cudaGetErrorString(cudaError_t e) { return cuda_emu::error_text(e)->text; }
inline cudaError_t cudaPeekAtLastError() { return cuda_emu::last_error; }
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_emu::last_error, cudaSuccess); }

inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = (int)cuda_emu::devices();
    return cuda_emu::error(*count ? cudaSuccess : cudaErrorNoDevice);
}

namespace cuda_emu {

inline int device;  // of this process

inline cudaError_t check_device(int d) {
    if (!devices()) return error(cudaErrorNoDevice);
    return error(d >= 0 && d < devices() ? cudaSuccess : cudaErrorInvalidDevice);
}

}  // namespace cuda_emu

inline cudaError_t cudaSetDevice(int device) {
    if (cudaError_t e = cuda_emu::check_device(device)) return e;
    return cuda_emu::device = device, cudaSuccess;
}

inline cudaError_t cudaGetDevice(int *device) {
    return *device = cuda_emu::device, cuda_emu::check_device(0);
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (cudaError_t e = cuda_emu::check_device(device)) return e;
    long capability = cuda_emu::setting("CUDA_EMU_CAPABILITY", 90);
    *p = {};
    strcpy(p->name, "emulated");
    p->totalGlobalMem = cuda_emu::total_memory();
    p->sharedMemPerBlock = cuda_emu::SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = cuda_emu::shared_most();
    p->sharedMemPerMultiprocessor = cuda_emu::shared_most() + (1 << 10);
    p->major = (int)(capability / 10), p->minor = (int)(capability % 10);
    p->multiProcessorCount = 4;
    p->warpSize = warpSize, p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048,
    p->regsPerBlock = 65536;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

inline cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    if (cudaError_t e = cuda_emu::check_device(0)) return e;
    *total = cuda_emu::total_memory();
    *free_bytes = *total > cuda_emu::device_bytes ? *total - cuda_emu::device_bytes : 0;
    return cudaSuccess;
}

/* Aligned to 256 bytes, as CUDA promises, and not to more. */
inline cudaError_t cudaMalloc(void **p, size_t bytes) {
    using namespace cuda_emu;
    *p = NULL;
    if (cudaError_t e = cuda_emu::check_device(0)) return e;
    if (!bytes) return cudaSuccess;
    size_t total = total_memory();
    if (bytes > total || device_bytes > total - bytes) return error(cudaErrorMemoryAllocation);
    unsigned char *block =
        (unsigned char *)aligned_alloc(512, (RED_ZONE + bytes + RED_ZONE + 511) / 512 * 512);
    if (!block) return error(cudaErrorMemoryAllocation);
    *p = block + RED_ZONE;
    memset(*p, poison_byte(), bytes);
    surround(block + RED_ZONE, bytes);
    ASAN_POISON_MEMORY_REGION(*p, bytes);
    memories[(uintptr_t)*p] = {bytes, true};
    device_bytes += bytes;
    return cudaSuccess;
}

inline cudaError_t cudaFree(void *p) {
    using namespace cuda_emu;
    if (!p) return cudaSuccess;
    wait_for(NULL);
    auto m = memories.find((uintptr_t)p);
    if (m == memories.end() || !m->second.device)
        fail("cudaFree: %p is not the beginning of an allocation of the device", p);
    device_bytes -= m->second.bytes;
    free((unsigned char *)p - RED_ZONE);
    memories.erase(m);
    return cudaSuccess;
}

inline cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    size_t left;
    if (!p || !bytes || cuda_emu::find(p, &left)) return cuda_emu::error(cudaErrorInvalidValue);
    cuda_emu::memories[(uintptr_t)p] = {bytes, false};
    return cudaSuccess;
}

inline cudaError_t cudaHostUnregister(void *p) {
    cuda_emu::wait_for(NULL);
    auto m = cuda_emu::memories.find((uintptr_t)p);
    if (m == cuda_emu::memories.end() || m->second.device)
        cuda_emu::fail("cudaHostUnregister, cudaFreeHost: %p is not pinned memory", p);
    cuda_emu::memories.erase(m);
    return cudaSuccess;
}

inline cudaError_t cudaMallocHost(void **p, size_t bytes) {
    *p = NULL;
    if (cudaError_t e = cuda_emu::check_device(0)) return e;
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

template <class T>
cudaError_t cudaMalloc(T **p, size_t bytes) {
    return cudaMalloc((void **)p, bytes);
}
template <class T>
cudaError_t cudaMallocHost(T **p, size_t bytes) {
    return cudaMallocHost((void **)p, bytes);
}

namespace cuda_emu {

inline void copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, bool asynchronous,
                 cudaStream_t stream) {
    size_t left;
    const Memory *t = find(to, &left), *f = find(from, &left);
    bool to_device = t && t->device, from_device = f && f->device;
    if (kind == cudaMemcpyDefault) kind = (cudaMemcpyKind)(2 * from_device + to_device);
    const char *name[] = {"cudaMemcpyHostToHost", "cudaMemcpyHostToDevice",
                          "cudaMemcpyDeviceToHost", "cudaMemcpyDeviceToDevice"};
    if (kind != 2 * from_device + to_device)
        fail("%s of %zu bytes from %p, memory of the %s, to %p, memory of the %s", name[kind],
             bytes, from, from_device ? "device" : "host", to, to_device ? "device" : "host");
    if (to_device) device_memory(to, bytes, name[kind]);
    if (from_device) device_memory(from, bytes, name[kind]);
    unsigned char *host = (unsigned char *)(from_device ? to : const_cast<void *>(from));
    const bool pinned = to_device != from_device && (to_device ? f : t);
    counts[to_device == from_device ? "other copies"
           : to_device              ? "copies to the device"
                                    : "copies to the host"]++;
    bool overlaps = false;
    for (auto &c : copies) overlaps |= host < c->host + c->bytes && c->host < host + bytes;
    if (overlaps) wait_for(NULL);
    if (!asynchronous || (from_device && !to_device && !pinned))
        wait_for(asynchronous ? stream : NULL);
    if (to_device && from_device) {
        return enqueue(stream, {NULL,
                                [=] {
                                    Open open;
                                    memmove(to, from, bytes);
                                },
                                NULL});
    }
    if (!asynchronous || (from_device && !pinned) || !(to_device || from_device)) {
        Open open;
        memmove(to, from, bytes);
        return;
    }
    // Pageable memory is copied before the call returns, to go to the device later
    auto c = std::make_shared<Copy>(Copy{stream, host, bytes, {}, from_device, false});
    if (to_device) c->data.assign(host, host + bytes);
    if (from_device) memset(to, 0xff, bytes);
    if (pinned) copies.push_back(c);
    enqueue(stream, {NULL,
                     [=] {
                         Open open;
                         c->made = true;
                         if (c->to_host)
                             c->data.assign((const unsigned char *)from,
                                            (const unsigned char *)from + bytes);
                         else
                             memcpy(to, c->data.data(), bytes);
                     },
                     NULL});
}

}  // namespace cuda_emu

inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    cuda_emu::copy(to, from, bytes, kind, false, NULL);
    return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = NULL) {
    cuda_emu::copy(to, from, bytes, kind, true, stream);
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream = NULL) {
    cuda_emu::device_memory(p, bytes, "cudaMemset");
    cuda_emu::enqueue(stream, {NULL,
                               [=] {
                                   cuda_emu::Open open;
                                   memset(p, value, bytes);
                               },
                               NULL});
    return cudaSuccess;
}

inline cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    return cudaMemsetAsync(p, value, bytes);
}

inline cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    cuda_emu::streams.push_back(*stream = new CUstream_st());
    return cuda_emu::check_device(0);
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    return cudaStreamCreate(stream);
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    cuda_emu::counts["waits for a stream"]++;
    return cuda_emu::wait_for(stream), cudaSuccess;
}
/* The first answer is no if there is something to do. */
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
    const bool ready = !stream || stream->queue.empty();
    cuda_emu::wait_for(stream);
    return cuda_emu::error(ready ? cudaSuccess : cudaErrorNotReady);
}
inline cudaError_t cudaDeviceSynchronize() { return cuda_emu::wait_for(NULL), cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    cuda_emu::wait_for(stream);
    for (size_t i = 0; i < cuda_emu::streams.size(); i++)
        if (cuda_emu::streams[i] == stream)
            cuda_emu::streams.erase(cuda_emu::streams.begin() + (long)i);
    return delete stream, cudaSuccess;
}

inline cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return *event = new CUevent_st(), cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    return cudaEventCreate(event);
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = NULL) {
    event->last = std::make_shared<cuda_emu_record>(cuda_emu_record{stream, false, {0, 0}});
    cuda_emu::enqueue(stream, {NULL, nullptr, event->last});
    return cudaSuccess;
}
/* What is given to the stream from now on comes after what was given to another before the event
 * was last recorded there. */
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
    if (event->last) cuda_emu::enqueue(stream, {event->last, nullptr, NULL});
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (!event->last) return cudaSuccess;
    cuda_emu::run_until(event->last);
    return cuda_emu::finish_copies(event->last->stream), cudaSuccess;
}

inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    cuda_emu::run_until(from->last);
    cuda_emu::run_until(to->last);
    *milliseconds = (float)((double)(to->last->at.tv_sec - from->last->at.tv_sec) * 1e3 +
                            (double)(to->last->at.tv_nsec - from->last->at.tv_nsec) / 1e6);
    return cudaSuccess;
}

#endif
