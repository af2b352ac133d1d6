/*
 * kernels.cu - kernels.h on a GPU with CUDA: the functions of kernels.h, in the same order.
 *
 * Numbers are stored as bf16 (or as float, with PRECISION=fp32) and summed in float. cuBLASLt
 * computes the large products, and this file everything else. The rule of product.c holds here too:
 * an output element is accumulated by one thread, or by one group of threads in one fixed order.
 * There are no atomic additions, so the same run gives the same bits. The results of a token do not
 * depend on the number of rows in the batch: product() uses algorithms of the same bits for every
 * product of a given width, and attention uses the same blocks of keys for a sequence in training,
 * for one that shares a prefix, and in decoding.
 *
 * A C++ compiler compiles the same file with test/emu/cuda_emu.h, which runs it on a CPU, slowly
 * and with many checks. So it is tested without a GPU. For this purpose kernels are launched with
 * LAUNCH, shared memory is declared with SHARED, and PTX is used in a few wrappers only.
 *
 * Left out: stochastic rounding of weights, which is for training without float masters. Here a
 * weight is its master rounded to nearest. A resumed run reads the masters and so continues with
 * the same bits. Also left out: instructions of one GPU generation only, except in attention
 * (wgmma_bf16). cuBLASLt uses them where they matter most.
 *
 * Left out of the loss: logits that the forward pass replaces by their gradient, p - 1 at the
 * target, so that dlogp scales rows of C numbers and not of V. It would save one reading of the
 * logits, 1.65 GB for 16 x 1,024 tokens and 0.55 ms at 3 TB/s (computed). But the forward pass does
 * not know whether a backward pass follows it, or one with an entropy, which needs the logits.
 *
 * Left out of decoding: a sequence's keys divided among several blocks, to fill a GPU with few
 * sequences. Attention in training carries one running maximum and one sum over all blocks of keys.
 * Parts that are joined at the end are rounded elsewhere, so the log-probability of a sampled token
 * would no longer have the bits that training computes. Training would have to divide its keys in
 * the same places, and pay for it.
 *
 * Also left out: CUDA graphs. A token of GPT-2 124M takes 100 launches on Hopper (8 a layer, and
 * 4), which at about 2.5 us each cost the host 0.25 ms (computed). One launch of a graph would do.
 * But the grids and addresses of a graph are fixed. generate.c would need one for each number of
 * sequences that are still running, recorded again when the workspace grows, and the emulator would
 * have to record, too.
 */
#ifdef __CUDACC__
#    include <cublasLt.h>
#    include <cuda_bf16.h>
#    include <cuda_runtime.h>

#    define LAUNCH(kernel, grid, block, smem, stream, ...)                   \
        (kernel<<<grid, block, smem, (cudaStream_t)(stream)>>>(__VA_ARGS__), \
         CUDA(cudaGetLastError()))
#    define SHARED(T, name, dimensions)   \
        using name##_type = T dimensions; \
        __shared__ __align__(16) name##_type name
#    define SHARED_DYN(T, name)                              \
        extern __shared__ __align__(16) char name##_bytes[]; \
        T *name = (T *)name##_bytes

static __device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* The sums of one lane, as operands of PTX that are read and written. */
#    define SUMS_OF(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#    define SUMS_OF_GROUP(d)                                                                      \
        SUMS_OF(d[0]), SUMS_OF(d[1]), SUMS_OF(d[2]), SUMS_OF(d[3]), SUMS_OF(d[4]), SUMS_OF(d[5]), \
            SUMS_OF(d[6]), SUMS_OF(d[7])

/* d (16,8) += a (16,16) b (16,8), computed by one warp. Lane l = 4 g + t has rows g, g+8 and
   columns 2t, 2t+1, 2t+8, 2t+9 of a; column g and rows 2t, 2t+1, 2t+8, 2t+9 of b; and rows g, g+8
   and columns 2t, 2t+1 of d (PTX ISA, mma.m16n8k16). */
[[maybe_unused]] static __device__ __forceinline__ void mma_bf16(float d[4], const uint32_t a[4],
                                                                 const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : SUMS_OF(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Loads four 8 x 8 matrices from shared memory. Lane l passes the address of row l % 8 of matrix
   l / 8, and gets the elements of each matrix, or of its transpose, that mma_bf16 needs in lane l.
 */
[[maybe_unused]] static __device__ __forceinline__ void ldmatrix_x4(uint32_t r[4],
                                                                    const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
[[maybe_unused]] static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4],
                                                                          const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/*
 * Warp groups, on Hopper (PTX ISA, wgmma.m64n64k16): d (64,64) = a (64,16) b (16,64), or with add
 * d += a b, computed by four warps. All four must call it together. Warp w has rows 16w to 16w+15
 * of a and d, in each lane the fragments of mma_bf16. d[j] is columns 8j to 8j+7. b is a part of a
 * tile in shared memory (operand_of). A row of the tile is a column of b; if the tile lies `down`,
 * it is a row of b. The product may still be computed when the function returns. Until wgmma_wait
 * nothing may touch d, change a, or write to b. But another product may add to d.
 *
 * Only code for sm_90a has these instructions; then __CUDA_ARCH_FEAT_SM90_ALL is defined.
 */
template <bool down>
static __device__ __forceinline__ void wgmma_bf16(float d[8][4], const uint32_t a[4], uint64_t b,
                                                  bool add) {
#    ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %38, 0;\n"
        "wgmma.fence.sync.aligned;\n"  // a and d have been written
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,"
        "%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, add, 1, 1, %37;\n"
        "wgmma.commit_group.sync.aligned;\n}\n"
        : SUMS_OF_GROUP(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(down), "r"((int)add)
        : "memory");
#    else
    // No other GPU has the instruction. If the driver compiles this for Hopper from PTX for all
    // GPUs, same_attention() sees the NaN.
#        pragma unroll
    for (int i = 0; i < 32; i++) d[i / 4][i % 4] = NAN;
#    endif
}
/* Waits for all products of the warp group. d names those sums of which the compiler shall know
   that they have changed. */
static __device__ __forceinline__ void wgmma_wait(float d[8][4]) {
#    ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("wgmma.wait_group.sync.aligned 0;\n" : SUMS_OF_GROUP(d)::"memory");
#    endif
}

/* Products of warp groups read shared memory by a path of their own. A thread that has written
   there calls this before the barrier after which they read, or they may read what was there
   before. */
static __device__ __forceinline__ void fence_for_wgmma(void) {
#    ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#    endif
}

/* Starts a copy of 16 bytes from global to shared memory. cp_async_commit closes a group of copies.
   cp_async_wait<n> waits until at most n of this thread's groups are on their way; other threads
   need a barrier after it. */
static __device__ __forceinline__ void cp_async16(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
}
static __device__ __forceinline__ void cp_async_commit(void) {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int n>
static __device__ __forceinline__ void cp_async_wait(void) {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(n) : "memory");
}

/* 2^x, to within 2 units in the last place; 0 if that is a denormal. */
static __device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}
#endif  // without nvcc, test/emu/cuda_emu.h is included by the command that compiles this file

#include "model/kernels.h"
#include "model/nf4.h"
#include "util.h"

#include <type_traits>

static const bool FP32 = sizeof(real) == sizeof(float);
static_assert(sizeof(real) == 4 || sizeof(real) == 2, "real is float or bf16");

/* ---- The device ------------------------------------------------------------------------------ */

/* All work is given to the GPU in order, as operations of `stream`. Only the products of weight
   gradients are given to a second stream, `beside`, to run beside operations that do not need them.
   Whoever writes `stream` waits for the second stream first. So only those operations overlap that
   say stream.own, and they check what they touch (runs_beside). */
static struct Stream {
    cudaStream_t own;  // the queue in use (kernels.h, device_beside): the first one or the other
    operator cudaStream_t() const;
} stream;
static struct {
    cudaStream_t first, other;
    cudaEvent_t begin;  // of the other one
} queue;
static cublasLtHandle_t cublas;
static cudaDeviceProp properties;

/* In the first queue, a small array goes to the device by way of pinned memory, so that the host
   does not wait for it. The first `staged` bytes of that memory belong to copies that may not have
   been made yet. */
enum { STAGING = 1 << 20, STAGED_MOST = 1 << 16 };
static unsigned char *staging;
static size_t staged;

static void cuda_check(cudaError_t error, const char *call, int line) {
    if (error != cudaSuccess)
        die("kernels.cu:%d: %s: %s (%s); if it happens again with CUDA_LAUNCH_BLOCKING=1, which "
            "names the place more exactly, report it, else look at "
            "nvidia-smi and the system's log for errors of the GPU",
            line, call, cudaGetErrorString(error), cudaGetErrorName(error));
}
#define CUDA(call) cuda_check(call, #call, __LINE__)
static void cublas_check(cublasStatus_t status, const char *call, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        die("kernels.cu:%d: %s: %s (cuBLASLt's status %d); look whether the CUDA toolkit is 12 or "
            "newer, and at nvidia-smi for the memory that is free",
            line, call, cublasLtGetStatusString(status), (int)status);
}
#define CUBLAS(call) cublas_check(call, #call, __LINE__)

/* The second stream, and what its operations touch that have not been waited for. */
enum { BESIDE_MOST = 24 };
typedef struct {
    uintptr_t from, to;
} Span;
static struct {
    cudaStream_t own;
    cudaEvent_t begin, end;
    int count;
    Span span[BESIDE_MOST];
} beside;

/* `stream`, after all that was given to the second stream. */
Stream::operator cudaStream_t() const {
    if (beside.count) {
        beside.count = 0;
        CUDA(cudaEventRecord(beside.end, beside.own));
        CUDA(cudaStreamWaitEvent(own, beside.end, 0));
    }
    return own;
}

static Span span_of(const void *p, size_t bytes) {
    return Span{(uintptr_t)p, (uintptr_t)p + (p ? bytes : 0)};
}

/* The stream for an operation that writes to these spans: stream.own if it can run beside what the
   second stream does, else `stream`. What the operation reads must not be a gradient of a weight,
   which is all that the second stream writes. */
template <class... S>
static cudaStream_t runs_beside(S... written) {
    for (int i = 0; i < beside.count; i++)
        if (((written.from < beside.span[i].to && beside.span[i].from < written.to) || ...))
            return stream;
    return stream.own;
}

/* Returns the second stream, for a product of a, b and c, after all that was given to `stream` up
   to begin_beside(). */
static void begin_beside(void) { CUDA(cudaEventRecord(beside.begin, stream.own)); }
static cudaStream_t second_stream(Span a, Span b, Span c) {
    if (beside.count + 3 > BESIDE_MOST) (void)(cudaStream_t)stream;
    CUDA(cudaStreamWaitEvent(beside.own, beside.begin, 0));
    for (Span s : {a, b, c}) beside.span[beside.count++] = s;
    return beside.own;
}

void device_init(void) {
    if (cublas) return;
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices < 1)
        die_usage(
            "no GPU that CUDA can use (%s); look at nvidia-smi, or run the program without _cuda "
            "in its name, which needs none",
            error != cudaSuccess ? cudaGetErrorString(error) : "none found");
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_RANK");  // of several processes (ranks.h)
    if (!local) local = getenv("MPI_LOCALRANKID");
    const int device = local ? atoi(local) % devices : 0;
    CUDA(cudaSetDevice(device));
    CUDA(cudaGetDeviceProperties(&properties, device));
    if (properties.major < 8)
        die_usage(
            "%s has compute capability %d.%d and 8.0 is needed (bf16; GPUs since Ampere, 2020); "
            "run the program without _cuda in its name",
            properties.name, properties.major, properties.minor);
    CUDA(cudaStreamCreate(&queue.first));
    stream.own = queue.first;
    CUDA(cudaStreamCreate(&beside.own));
    CUDA(cudaEventCreateWithFlags(&beside.begin, cudaEventDisableTiming));
    CUDA(cudaEventCreateWithFlags(&beside.end, cudaEventDisableTiming));
    CUDA(cudaMallocHost((void **)&staging, STAGING));
    CUBLAS(cublasLtCreate(&cublas));
}

/* A CPU's choices, which a GPU does not have. */
int device_choose(const char *way, Error *e) {
    device_init();
    if (!strcmp(way, "auto")) return 0;
    return fail(e, "%s is for CPUs, and this program was built for a GPU", way);
}
void device_precision(Precision precision) { (void)precision; }
void round_weights(uint16_t *out, const real *x, size_t n) {
    (void)out;
    (void)x;
    (void)n;
    die("round_weights: the weights of a GPU are stored in bf16 already");
}

const char *device_name(void) {
    static char name[sizeof properties.name + 32];
    snprintf(name, sizeof name, "%s, %s", properties.name, FP32 ? "fp32" : "bf16");
    return name;
}

size_t device_memory_free(void) {
    size_t left = 0, all = 0;
    CUDA(cudaMemGetInfo(&left, &all));
    return left;
}

static void wait_for_stream(void) {
    CUDA(cudaStreamSynchronize(stream));
    if (stream.own == queue.first) staged = 0;
}

void device_wait(void) { wait_for_stream(); }

void device_beside(bool on) {
    if (on && !queue.other) {
        CUDA(cudaStreamCreate(&queue.other));
        CUDA(cudaEventCreateWithFlags(&queue.begin, cudaEventDisableTiming));
    }
    if (on) {
        CUDA(cudaEventRecord(queue.begin, stream));
        CUDA(cudaStreamWaitEvent(queue.other, queue.begin, 0));
    }
    stream.own = on ? queue.other : queue.first;
}

void *device_stream(void) { return stream; }

static size_t taken, most_taken;  // by device_alloc

size_t device_memory_peak(void) { return most_taken; }

void *device_alloc(size_t bytes) {
    void *p = NULL;
    cudaError_t error = cudaMalloc(&p, bytes + !bytes);
    if (error == cudaErrorMemoryAllocation || error == cudaErrorInvalidValue) {
        cudaGetLastError();  // clears the error
        return NULL;
    }
    CUDA(error);
    CUDA(cudaMemsetAsync(p, 0, bytes + !bytes, stream));
    taken += bytes;
    most_taken = taken > most_taken ? taken : most_taken;
    return p;
}

void device_free(void *p, size_t bytes) {
    taken -= bytes;
    wait_for_stream();
    CUDA(cudaFree(p));
}

void device_zero(void *p, size_t bytes) { CUDA(cudaMemsetAsync(p, 0, bytes, stream)); }
void device_copy(void *to, const void *from, size_t bytes) {
    CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}
void device_write(void *device, const void *host, size_t bytes) {
    if (!bytes) return;
    const bool stages = bytes <= STAGED_MOST && stream.own == queue.first;
    if (stages) {
        if (staged + bytes > STAGING) wait_for_stream();
        memcpy(staging + staged, host, bytes);
        host = staging + staged;
        staged += bytes;
    }
    CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream));
    if (!stages) wait_for_stream();  // the caller may reuse host
}

void device_read(void *host, const void *device, size_t bytes) {
    CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream));
    wait_for_stream();
}

real *device_map(const void *host, size_t n) {  // a GPU has its own memory and needs a copy
    (void)host;
    (void)n;
    return NULL;
}
void device_unmap(const real *device, size_t n) {
    (void)device;
    (void)n;
}

/* Converts in pieces, to need little memory for a model of any size. */
static const size_t PIECE = 1 << 20;

void real_write(real *device, const float *host, size_t n) {
    if (FP32) {
        device_write(device, host, n * sizeof *host);
        return;
    }
    uint16_t *piece = (uint16_t *)xmalloc(PIECE * sizeof *piece);
    for (size_t from = 0; from < n; from += PIECE) {
        const size_t m = n - from < PIECE ? n - from : PIECE;
        for (size_t i = 0; i < m; i++) {
            uint32_t bits;
            memcpy(&bits, host + from + i, sizeof bits);
            // to nearest, ties to even; NaN stays NaN
            piece[i] = isnan(host[from + i]) ? (uint16_t)(bits >> 16 | 0x40)
                                             : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
        device_write(device + from, piece, m * sizeof *piece);
    }
    free(piece);
}

void real_read(float *host, const real *device, size_t n) {
    if (FP32) {
        device_read(host, device, n * sizeof *host);
        return;
    }
    uint16_t *piece = (uint16_t *)xmalloc(PIECE * sizeof *piece);
    for (size_t from = 0; from < n; from += PIECE) {
        const size_t m = n - from < PIECE ? n - from : PIECE;
        device_read(piece, device + from, m * sizeof *piece);
        for (size_t i = 0; i < m; i++) {
            const uint32_t bits = (uint32_t)piece[i] << 16;
            memcpy(host + from + i, &bits, sizeof bits);
        }
    }
    free(piece);
}

/* Memory for intermediate results, used by one function at a time. It grows during the first step,
   and not after that. */
static void *workspace(size_t bytes) {
    static void *memory;
    static size_t have;
    if (bytes > have) {
        if (memory) device_free(memory, have);
        memory = bytes > device_memory_free() ? NULL : device_alloc(bytes);
        if (!memory)
            die("out of memory for %zu bytes of workspace on %s; use a smaller "
                "--per_device_train_batch_size",
                bytes, device_name());
        have = bytes;
    }
    return memory;
}

/* ---- Loads and stores of one or eight numbers (16 or 32 bytes) ------------------------------- */

/* Kernels on rows or arrays are compiled for W = 8, and for W = 1, which is used if a size or an
   address is not a multiple of eight numbers. */

__device__ __forceinline__ float get(const float *p) { return *p; }
__device__ __forceinline__ float get(const __nv_bfloat16 *p) { return __bfloat162float(*p); }
__device__ __forceinline__ void put(float *p, float x) { *p = x; }
__device__ __forceinline__ void put(__nv_bfloat16 *p, float x) { *p = __float2bfloat16(x); }

template <int W>
static __device__ __forceinline__ void get(float x[W], const float *p) {
    if constexpr (W == 1)
        x[0] = *p;
    else {
        const float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];
        x[0] = a.x;
        x[1] = a.y;
        x[2] = a.z;
        x[3] = a.w;
        x[4] = b.x;
        x[5] = b.y;
        x[6] = b.z;
        x[7] = b.w;
    }
}

template <int W>
static __device__ __forceinline__ void get(float x[W], const __nv_bfloat16 *p) {
    if constexpr (W == 1)
        x[0] = get(p);
    else {
        const uint4 v = *(const uint4 *)p;
        const uint32_t word[4] = {v.x, v.y, v.z, v.w};
        for (int i = 0; i < 4; i++) {
            x[2 * i] = __uint_as_float(word[i] << 16);
            x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
        }
    }
}

/* Two adjacent bf16 numbers. */
static __device__ __forceinline__ uint32_t bf16_pair(float x, float y) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);  // one instruction
    return (uint32_t)__bfloat16_as_ushort(pair.x) | (uint32_t)__bfloat16_as_ushort(pair.y) << 16;
}

template <int W>
static __device__ __forceinline__ void put(float *p, const float x[W]) {
    if constexpr (W == 1)
        *p = x[0];
    else {
        ((float4 *)p)[0] = make_float4(x[0], x[1], x[2], x[3]);
        ((float4 *)p)[1] = make_float4(x[4], x[5], x[6], x[7]);
    }
}

template <int W>
static __device__ __forceinline__ void put(__nv_bfloat16 *p, const float x[W]) {
    if constexpr (W == 1)
        put(p, x[0]);
    else {
        uint32_t word[4];
        for (int i = 0; i < 4; i++) word[i] = bf16_pair(x[2 * i], x[2 * i + 1]);
        *(uint4 *)p = make_uint4(word[0], word[1], word[2], word[3]);
    }
}

/* Two adjacent numbers at an even index. */
__device__ __forceinline__ void put2(float *p, float x, float y) {
    p[0] = x;
    p[1] = y;
}
__device__ __forceinline__ void put2(__nv_bfloat16 *p, float x, float y) {
    *(uint32_t *)(void *)p = bf16_pair(x, y);
}

/* Are all of these addresses aligned for loads of eight numbers? NULL is. */
template <class... P>
static bool aligned(P... p) {
    return ((((uintptr_t)p) % 16 == 0) && ...);
}

/* The largest power of two, at most 16, that divides it. */
static int alignment_of(size_t bytes) {
    return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : bytes % 4 == 0 ? 4 : bytes % 2 == 0 ? 2 : 1;
}

enum { THREADS = 256, WARPS = THREADS / 32 };
static constexpr unsigned ALL = 0xffffffffu;  // lanes of a warp

static inline unsigned blocks_for(size_t n, size_t each) {
    return (unsigned)((n + each - 1) / each);
}

/* Sums and maxima over the lanes of a warp. Every lane gets the result. The order of the additions
   is fixed. */
template <class T>
static __device__ __forceinline__ T warp_sum(T x) {
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(ALL, x, d);
    return x;
}

static __device__ __forceinline__ float warp_max(float x) {
    for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, d));
    return x;
}

/* The sum of x over a block of THREADS, returned to every thread. Warps are added in order. */
template <class T>
static __device__ T block_sum(T x) {
    SHARED(T, part, [WARPS]);
    x = warp_sum(x);
    __syncthreads();  // all threads have read the previous sum
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (int w = 0; w < WARPS; w++) sum += part[w];
    return sum;
}

/* f.at<W>(i) for i = 0, W, 2W, ... below n */
template <int W, class F>
__global__ void each_kernel(F f, size_t n) {
    const size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (i < n) f.template at<W>(i);
}

template <class F>
static void each(F f, size_t n, bool eights) {
    if (!n) return;
    if (eights && n % 8 == 0)
        LAUNCH((each_kernel<8, F>), blocks_for(n, 8 * THREADS), THREADS, 0, stream, f, n);
    else
        LAUNCH((each_kernel<1, F>), blocks_for(n, THREADS), THREADS, 0, stream, f, n);
}

/* a (C) += sum over n < N of f(n, c).x, and b (C) += sum of f(n, c).y. Either may be NULL. Chunks
   of ROWS rows are summed in parallel, then their sums are added in order. Adding 16,384 rows one
   after the other would leave most of the GPU idle. f.at<W> gives W adjacent columns of a row; the
   order of a column's sum does not depend on W. */
enum { ROWS = 128 };

template <int W, class F>
__global__ void chunk_sums_kernel(float2 *part, F f, int N, int C) {  // part (chunks,C)
    SHARED(float2, sums, [8][W][32]);
    const int lane = threadIdx.x % 32, w = threadIdx.x / 32, c = ((int)blockIdx.x * 32 + lane) * W;
    float2 sum[W] = {};
    const int n0 = (int)blockIdx.y * ROWS, n1 = min(N, n0 + ROWS);
    if (c < C)
#pragma unroll(W == 1 ? 8 : 4)  // the number of loads in flight
        for (int n = n0 + w; n < n1; n += 8) {
            float2 x[W];
            f.template at<W>(x, n, c);
            for (int k = 0; k < W; k++) {
                sum[k].x += x[k].x;
                sum[k].y += x[k].y;
            }
        }
    for (int k = 0; k < W; k++) sums[w][k][lane] = sum[k];
    __syncthreads();
    if (w || c >= C) return;
    for (int k = 0; k < W; k++) {
        for (int i = 1; i < 8; i++) {
            sum[k].x += sums[i][k][lane].x;
            sum[k].y += sums[i][k][lane].y;
        }
        part[(size_t)blockIdx.y * (size_t)C + (size_t)(c + k)] = sum[k];
    }
}

__global__ void add_sums_kernel(float *a, float *b, const float2 *part, int chunks, int C) {
    const int c = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (c >= C) return;
    float2 sum = make_float2(0, 0);
    for (int i = 0; i < chunks; i++) {
        const float2 x = part[(size_t)i * (size_t)C + (size_t)c];
        sum.x += x.x;
        sum.y += x.y;
    }
    if (a) a[c] += sum.x;
    if (b) b[c] += sum.y;
}

template <class F>
static void add_column_sums(float *a, float *b, F f, int N, int C, cudaStream_t on = NULL) {
    if ((!a && !b) || !N) return;
    if (!on) on = stream;
    const int chunks = (N + ROWS - 1) / ROWS;
    float2 *part = (float2 *)workspace(sizeof *part * (size_t)chunks * (size_t)C);
    if (C % 8 == 0 && f.eights())
        LAUNCH((chunk_sums_kernel<8, F>), dim3(blocks_for((size_t)C, 8 * 32), (unsigned)chunks),
               THREADS, 0, on, part, f, N, C);
    else
        LAUNCH((chunk_sums_kernel<1, F>), dim3(blocks_for((size_t)C, 32), (unsigned)chunks),
               THREADS, 0, on, part, f, N, C);
    LAUNCH(add_sums_kernel, blocks_for((size_t)C, THREADS), THREADS, 0, on, a, b, part, chunks, C);
}

/* ---- The matrix product, by cuBLASLt --------------------------------------------------------- */

/* A factor of a product: a row-major matrix with a row stride, or the transpose of one. */
typedef struct {
    const real *p;
    size_t stride;
    bool transposed;
} Matrix;

static cublasLtMatrixLayout_t layout(cudaDataType_t type, uint64_t rows, uint64_t columns,
                                     size_t stride) {
    cublasLtMatrixLayout_t l;
    CUBLAS(cublasLtMatrixLayoutCreate(&l, type, rows, columns, (int64_t)stride));
    return l;
}

template <class V>
static void describe(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, V value) {
    CUBLAS(cublasLtMatmulDescSetAttribute(d, attribute, &value, sizeof value));
}

template <class V>
static void prefer(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t attribute,
                   V value) {
    CUBLAS(cublasLtMatmulPreferenceSetAttribute(p, attribute, &value, sizeof value));
}

/*
 * The algorithm ("way") that cuBLASLt uses for a product is chosen for a kind of product and a
 * range of rows, the multiples of the same few tiles.
 *
 * If the rows are those of the result, one of them must have the same bits in any number of rows:
 * alone, in decoding and in training. So a way is first chosen for ASKED rows, a typical number in
 * a training step. Fewer rows have a way of their own only if it gives the same bits, which is
 * tried once on numbers that show any other order of summation (same_bits). Where the way for ASKED
 * rows is refused, more rows are computed than are needed, until it is accepted.
 *
 * If the rows are the terms of each sum, as in the gradient of a weight, the bits are those of one
 * batch. They depend on the number of its rows in any case, so the way may, too.
 *
 * Ways that split the sum over k are excluded.
 */
enum { ASKED = 4096, WAYS = 512 };

typedef struct {
    int M, N, K, ta, tb, type, epilogue, beta,
        alignment[4];  // of A, B, C, bias; M or K is 0 if it is the number of rows
} Kind;

typedef struct {
    bool found;  // cuBLASLt may lack an epilogue, or an odd width
    cublasLtMatmulAlgo_t algorithm;
} Way;

/* The most rows that have the same way as so many. */
static int range_of(const Kind *kind, int rows) {
    const int last = kind->K ? 256 : 16384;
    for (int most = 16; most <= last; most *= 4)
        if (rows <= most) return most;
    return kind->K ? ASKED : last;
}

static size_t rounded_up(size_t n, size_t to) { return to > 1 ? (n + to - 1) / to * to : n; }

/* The strides of A, B and C if they are contiguous but for their alignment. */
typedef struct {
    size_t a, b, c;
} Strides;

static Strides strides_of(const Kind *kind, int rows) {
    const size_t N = (size_t)kind->N, M = (size_t)(kind->M ? kind->M : rows),
                 K = (size_t)(kind->K ? kind->K : rows);
    return Strides{rounded_up(kind->ta ? M : K, (size_t)kind->alignment[0] / sizeof(real)),
                   rounded_up(kind->tb ? K : N, (size_t)kind->alignment[1] / sizeof(real)),
                   rounded_up(N, (size_t)(kind->alignment[2] / kind->type))};
}

/* C with its rows, and what the epilogue reads and writes beside. */
static cublasLtMatmulDesc_t description(const Kind *kind, const real *bias, void *pre,
                                        size_t stride) {
    cublasLtMatmulDesc_t d;
    CUBLAS(cublasLtMatmulDescCreate(&d, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    describe(d, CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(kind->tb ? CUBLAS_OP_T : CUBLAS_OP_N));
    describe(d, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(kind->ta ? CUBLAS_OP_T : CUBLAS_OP_N));
    describe(d, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)kind->epilogue);
    if (bias) describe(d, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)bias);
    if (pre) {
        describe(d, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, pre);
        describe(d, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (int64_t)stride);
    }
    return d;
}

/* What cuBLASLt is given of A, B and C: column-major, so the second factor comes first. */
typedef struct {
    cublasLtMatrixLayout_t a, b, c;
} Layouts;

static Layouts layouts_of(const Kind *kind, int rows, Strides s) {
    const cudaDataType_t stored = FP32 ? CUDA_R_32F : CUDA_R_16BF,
                         type = kind->type == 4 ? CUDA_R_32F : CUDA_R_16BF;
    const uint64_t M = (uint64_t)(kind->M ? kind->M : rows), N = (uint64_t)kind->N,
                   K = (uint64_t)(kind->K ? kind->K : rows);
    return Layouts{kind->ta ? layout(stored, M, K, s.a) : layout(stored, K, M, s.a),
                   kind->tb ? layout(stored, K, N, s.b) : layout(stored, N, K, s.b),
                   layout(type, N, M, s.c)};
}

static void forget(Layouts l) {
    for (cublasLtMatrixLayout_t x : {l.a, l.b, l.c}) cublasLtMatrixLayoutDestroy(x);
}

/* The ways that cuBLASLt offers for so many rows, the fastest first. Returns how many. */
enum { OFFERED = 8 };
static int offered(Way ways[OFFERED], const Kind *kind, int rows, cublasLtMatmulDesc_t d) {
    const Layouts l = layouts_of(kind, rows, strides_of(kind, rows));
    cublasLtMatmulPreference_t preference;
    CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
    prefer(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)0);
    prefer(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           (uint32_t)CUBLASLT_REDUCTION_SCHEME_NONE);
    prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)kind->alignment[1]);
    prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)kind->alignment[0]);
    prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)kind->alignment[2]);
    prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)kind->alignment[2]);
    cublasLtMatmulHeuristicResult_t found[OFFERED];
    int n = 0, count = 0;
    const cublasStatus_t answer = cublasLtMatmulAlgoGetHeuristic(cublas, d, l.b, l.a, l.c, l.c,
                                                                 preference, OFFERED, found, &n);
    if (answer == CUBLAS_STATUS_NOT_SUPPORTED)
        n = 0;
    else
        CUBLAS(answer);
    for (int i = 0; i < n; i++) {
        int32_t parts = 0;
        size_t written;
        CUBLAS(cublasLtMatmulAlgoConfigGetAttribute(&found[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                    &parts, sizeof parts, &written));
        if (found[i].state == CUBLAS_STATUS_SUCCESS && found[i].workspaceSize == 0 && parts <= 1)
            ways[count++] = Way{true, found[i].algo};
    }
    cublasLtMatmulPreferenceDestroy(preference);
    forget(l);
    return count;
}

/* One call of cuBLASLt. C is stored as kind says. */
static cublasStatus_t multiply(const Kind *kind, const Way *way, cublasLtMatmulDesc_t d, int rows,
                               Strides s, const real *A, const real *B, void *C, cudaStream_t on) {
    const Layouts l = layouts_of(kind, rows, s);
    const float one = 1, zero = 0;
    const cublasStatus_t status =
        cublasLtMatmul(cublas, d, &one, B, l.b, A, l.a, kind->beta ? &one : &zero, C, l.c, C, l.c,
                       &way->algorithm, NULL, 0, on);
    forget(l);
    return status;
}

/* Does cuBLASLt not compute this number of rows in this way? Nothing has been computed then. */
static bool refused(cublasStatus_t status) {
    return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
}

/* Memory for a product of more rows than are needed. */
static real *spare_rows(size_t bytes) {
    static real *memory;
    static size_t have;
    if (bytes <= have) return memory;
    if (memory) device_free(memory, have);
    if (!(memory = (real *)device_alloc(bytes)))
        die("out of memory for %zu bytes of a product on %s; use a smaller "
            "--per_device_train_batch_size",
            bytes, device_name());
    have = bytes;
    return memory;
}

/* The product of rows that their way refuses, among more rows, whose results are not needed. */
static void multiply_among_more(const Kind *kind, const Way *way, int rows, Strides s,
                                const real *A, const real *B, const real *bias, real *C,
                                real *pre) {
    const size_t K = (size_t)kind->K, N = (size_t)kind->N, last = (size_t)rows - 1,
                 a_bytes = sizeof(real) * (last * s.a + K),
                 c_bytes = sizeof(real) * (last * s.c + N);
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    for (int more = rows; refused(status) && more < ASKED;) {
        more = more < ASKED / 2 ? 2 * more : ASKED;
        const size_t a = rounded_up((size_t)more * s.a, 128),
                     c = rounded_up((size_t)more * s.c, 128);
        real *there = spare_rows(sizeof(real) * (a + 2 * c)), *C_there = there + a,
             *pre_there = pre ? C_there + c : NULL;
        device_copy(there, A, a_bytes);
        device_copy(C_there, C, c_bytes);  // also what is between its rows
        if (pre) device_copy(pre_there, pre, c_bytes);
        cublasLtMatmulDesc_t d = description(kind, bias, pre_there, s.c);
        status = multiply(kind, way, d, more, s, there, B, C_there, stream);
        cublasLtMatmulDescDestroy(d);
        if (status != CUBLAS_STATUS_SUCCESS) continue;
        device_copy(C, C_there, c_bytes);
        if (pre) device_copy(pre, pre_there, c_bytes);
    }
    CUBLAS(status);
}

/* Numbers whose sums of products show the order of summation: the second half of the terms of each
   sum are those of the first half with the other sign. So the sum is 0 but for its rounding errors,
   and for a last term if their number is odd. Any other order changes these. The numbers have all
   bits of a real and sizes of 1 to 2^24. The terms are the columns, or the rows if they are `down`.
   negative: whether the second half has the other sign, which only one of two factors may have. */
struct Cancelling {
    real *x;
    size_t stride;
    uint32_t half;
    bool down, negative;
    template <int W>
    __device__ void at(size_t i) const {
        const uint32_t row = (uint32_t)(i / stride), column = (uint32_t)(i % stride),
                       k = down ? row : column, other = down ? column : row;
        const Random4 r = random4(1, 0, 0, 0, other, k < 2 * half ? k % half : k);
        const float size = ldexpf(1 + (float)(r.v[0] >> 9) * 0x1p-23f, (int)(r.v[1] % 24));
        const bool minus = (r.v[2] % 2 == 1) != (negative && k >= half && k < 2 * half);
        put(x + i, minus ? -size : size);
    }
};

/* Do two ways give each element of so many rows the same bits? */
static bool same_bits(const Kind *kind, const Way *way, const Way *other, int rows) {
    const Strides s = strides_of(kind, rows);
    const size_t K = (size_t)kind->K, N = (size_t)kind->N, R = (size_t)rows,
                 a = rounded_up(R * s.a, 128), b = rounded_up((kind->tb ? N : K) * s.b, 128),
                 c = rounded_up(R * s.c, 128), bias = rounded_up(N, 128),
                 bytes = sizeof(real) * (a + b + bias + 4 * c);
    const bool gelu = kind->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
               biased = gelu || kind->epilogue == CUBLASLT_EPILOGUE_BIAS;
    if (bytes > device_memory_free()) return false;  // cannot be tried
    real *A = (real *)device_alloc(bytes);
    if (!A) return false;
    real *const B = A + a, *const bias_ = B + b, *const C = bias_ + bias;
    const uint32_t half = (uint32_t)(K > 1 ? K / 2 : 1);
    each(Cancelling{A, s.a, half, false, true}, R * s.a, false);
    each(Cancelling{B, s.b, half, !kind->tb, false}, (kind->tb ? N : K) * s.b, false);
    each(Cancelling{bias_, N, (uint32_t)N, false, false}, N, false);
    for (int i = 0; i < 4; i++)
        each(Cancelling{C + (size_t)i * c, s.c, (uint32_t)s.c, false, false}, R * s.c, false);
    bool accepted = true;
    for (int i = 0; i < 2; i++) {
        real *const to = C + 2 * (size_t)i * c, *const pre = gelu ? to + c : NULL;
        cublasLtMatmulDesc_t d = description(kind, biased ? bias_ : NULL, pre, s.c);
        const cublasStatus_t status = multiply(kind, i ? other : way, d, rows, s, A, B, to, stream);
        cublasLtMatmulDescDestroy(d);
        if (i && refused(status))
            multiply_among_more(kind, other, rows, s, A, B, biased ? bias_ : NULL, to, pre);
        else if (!i && refused(status))
            accepted = false;
        else
            CUBLAS(status);
    }
    char *seen = (char *)xmalloc(sizeof(real) * 4 * c);
    device_read(seen, C, sizeof(real) * 4 * c);
    const size_t each_bytes = sizeof(real) * 2 * c;
    const bool same = accepted && !memcmp(seen, seen + each_bytes, each_bytes);
    free(seen);
    device_free(A, bytes);
    return same;
}

static Way way_of(const Kind *kind, int rows, cublasLtMatmulDesc_t d) {
    static struct {
        Kind kind;
        int most;
        Way way;
    } ways[WAYS];
    static int count;
    const int most = range_of(kind, rows);
    for (int i = 0; i < count; i++)
        if (ways[i].most == most && !memcmp(&ways[i].kind, kind, sizeof *kind)) return ways[i].way;
    Way offers[OFFERED], way = {};
    const int n = offered(offers, kind, most, d);
    if (kind->M || most == ASKED) {
        if (n) way = offers[0];
    } else {
        way = way_of(kind, ASKED, d);
        bool same = !way.found;
        for (int i = 0; i < n && !same; i++) {
            same = !memcmp(&offers[i].algorithm, &way.algorithm, sizeof way.algorithm) ||
                   same_bits(kind, &offers[i], &way, most);
            if (same) way = offers[i];
        }
    }
    if (count == WAYS) count = 0;  // a model needs a few dozen; if there are more, start again
    ways[count].kind = *kind;
    ways[count].most = most;
    ways[count++].way = way;
    return way;
}

/* A product for which cuBLASLt has no way: one thread per element of C, without tensor cores. */
template <class Out>
__global__ void plain_product_kernel(Out *C, size_t c_stride, Matrix A, Matrix B, const real *bias,
                                     bool add, int M, int N, int K) {
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, m = i / (size_t)N,
                 n = i % (size_t)N;
    if (m >= (size_t)M) return;
    const real *a = A.p + m * (A.transposed ? 1 : A.stride),
               *b = B.p + n * (B.transposed ? B.stride : 1);
    const size_t a_next = A.transposed ? A.stride : 1, b_next = B.transposed ? 1 : B.stride;
    float sum = 0;
    for (size_t k = 0; k < (size_t)K; k++)
        sum = fmaf(get(a + k * a_next), get(b + k * b_next), sum);
    if (bias) sum += get(bias + n);
    Out *to = C + m * c_stride + n;
    put(to, add ? get(to) + sum : sum);
}

/*
 * C (M,N) = A (M,K) B (K,N) + bias; with add, C + A B. For cuBLASLt a row-major matrix is the
 * transpose of a column-major one, so it computes C^T = B^T A^T. rows_are_k: the number of rows of
 * the batch is K, as in the gradient of a weight, and not M. With pre (M,N), which has the stride
 * of C, the result is stored in pre, and C becomes its GELU. Returns false if cuBLASLt cannot do
 * this; then nothing is computed. Without pre the kernel above does what cuBLASLt cannot, which may
 * be a product of odd widths. on: the stream, if it is not `stream`.
 */
template <class Out>
static bool product(int M, int N, int K, Matrix A, Matrix B, Out *C, size_t c_stride,
                    const real *bias, bool add, bool rows_are_k, real *pre = NULL,
                    cudaStream_t on = NULL) {
    if (!on) on = stream;
    if (!M || !N || (!K && add)) return true;
    if (!K && pre) return false;
    if (!K) {  // an empty sum
        for (int i = 0; i < M; i++)
            CUDA(cudaMemsetAsync(C + (size_t)i * c_stride, 0, sizeof(Out) * (size_t)N, on));
        return true;
    }
    const uint32_t epilogue = pre    ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS
                              : bias ? CUBLASLT_EPILOGUE_BIAS
                                     : CUBLASLT_EPILOGUE_DEFAULT;
    const Kind kind = {
        rows_are_k ? M : 0,
        N,
        rows_are_k ? 0 : K,
        A.transposed,
        B.transposed,
        (int)sizeof(Out),
        (int)epilogue,
        add,
        {alignment_of((uintptr_t)A.p | (A.stride * sizeof(real))),
         alignment_of((uintptr_t)B.p | (B.stride * sizeof(real))),
         alignment_of((uintptr_t)C | (c_stride * sizeof(Out))), alignment_of((uintptr_t)bias)}};
    const int rows = rows_are_k ? K : M;
    const Strides strides = {A.stride, B.stride, c_stride};
    cublasLtMatmulDesc_t d = description(&kind, bias, pre, c_stride);
    Way way = way_of(&kind, rows, d);
    cublasStatus_t status = way.found ? multiply(&kind, &way, d, rows, strides, A.p, B.p, C, on)
                                      : CUBLAS_STATUS_SUCCESS;
    if (refused(status) && rows_are_k) {
        Way offers[OFFERED];
        way.found = offered(offers, &kind, rows, d) > 0;
        status = way.found ? multiply(&kind, &offers[0], d, rows, strides, A.p, B.p, C, on)
                           : CUBLAS_STATUS_SUCCESS;
    }
    cublasLtMatmulDescDestroy(d);
    if (!way.found) {
        if (pre) return false;
        LAUNCH(plain_product_kernel<Out>, blocks_for((size_t)M * (size_t)N, THREADS), THREADS, 0,
               on, C, c_stride, A, B, bias, add, M, N, K);
        return true;
    }
    if constexpr (sizeof(Out) == sizeof(real))
        if (refused(status) && !rows_are_k) {
            multiply_among_more(&kind, &way, rows, strides, A.p, B.p, bias, (real *)C, pre);
            return true;
        }
    CUBLAS(status);
    return true;
}

/* ---- Embedding ------------------------------------------------------------------------------- */

struct Embed {
    real *out;
    const int *token, *position;
    const real *wte, *wpe;
    size_t C;
    template <int W>
    __device__ void at(size_t i) const {
        const size_t n = i / C, c = i % C;
        float x[W], y[W];
        get<W>(x, wte + (size_t)token[n] * C + c);
        if (wpe) get<W>(y, wpe + (size_t)position[n] * C + c);
        for (int k = 0; k < W && wpe; k++) x[k] += y[k];
        put<W>(out + i, x);
    }
};

void embed_forward(real *out, const int *token, const int *position, const real *wte,
                   const real *wpe, int N, int C) {
    each(Embed{out, token, position, wte, wpe, (size_t)C}, (size_t)N * (size_t)C,
         C % 8 == 0 && aligned(out, wte, wpe));
}

/*
 * The rows are sorted by id and then by number: a row's place is the number of rows with a smaller
 * id, or with its id and a smaller number. All pairs of rows are compared, 256 rows and 1,024 ids
 * to a block, to fill the GPU. A pair takes 2.6 instructions. With one block for 256 rows and all
 * ids, which counted smaller, equal and earlier ids, it took 11.5. For 16,384 rows this is 24 us
 * instead of 222 us, at 1.7 GHz and four warp instructions a cycle of a multiprocessor (computed;
 * of 132 multiprocessors 64 had a block).
 *
 * Then the rows of an id are added in order, as kernels.h promises. A frequent token is limited by
 * the loads in flight. If a turn waits 0.2 us for the rows' numbers, 0.6 us for the rows, and one
 * cycle for an instruction, 820 rows, 5 % of 16,384, take 52 turns of 16 loads, 56 us; with 103
 * turns of eight loads of one channel it was 88 us (computed). Left out: sums of chunks of an id's
 * rows, which are then added. They would save another 40 us, 0.1 % of a step of 32 ms (computed),
 * but the two halves of a batch would no longer add up to the bits of the whole.
 */
enum { IDS = 1024, CHUNKS = 16, IN_FLIGHT = 16 };  // IN_FLIGHT: rows that a thread loads at once

/* The number of ids[from .. to) that are smaller than limit, in fours. None is negative, so the
   difference has no overflow, and its sign bit counts. Two instructions, where a comparison and a
   conditional addition become three. */
static __device__ __forceinline__ int smaller(const int *ids, int from, int to, int limit) {
    uint32_t sum = 0;
#pragma unroll 4
    for (int i = from; i < to; i += 4) {
        const int4 v = *(const int4 *)(ids + i);
        sum += (uint32_t)(v.x - limit) >> 31;
        sum += (uint32_t)(v.y - limit) >> 31;
        sum += (uint32_t)(v.z - limit) >> 31;
        sum += (uint32_t)(v.w - limit) >> 31;
    }
    return (int)sum;
}

/* part (CHUNKS,N): how many rows of a chunk come before row n. Chunk y has IDS rows of every
   gridDim.y * IDS. It holds all rows of a block or none. */
__global__ void earlier_kernel(int *part, const int *id, int N) {
    SHARED(int, ids, [IDS]);
    const int first = (int)blockIdx.x * THREADS, n = first + (int)threadIdx.x,
              mine = n < N ? id[n] : 0;
    int sum = 0;
    for (int from = (int)blockIdx.y * IDS; from < N; from += (int)gridDim.y * IDS) {
        const int end = min(IDS, N - from),
                  before = min(max(first - from, 0), (int)IDS);  // rows before the block
        __syncthreads();
        for (int i = (int)threadIdx.x; i < IDS; i += THREADS)
            ids[i] = i < end ? id[from + i] : INT32_MAX;
        __syncthreads();
        sum += smaller(ids, 0, before, mine + 1) + smaller(ids, before, end, mine);
        for (int i = before; i < min(end, n - from); i++) sum += ids[i] == mine;
    }
    if (n < N) part[(size_t)blockIdx.y * (size_t)N + (size_t)n] = sum;
}

/* order (N + IN_FLIGHT): the id and the number of each row, sorted. IN_FLIGHT entries of id -1
   end the list. */
__global__ void order_kernel(int2 *order, const int *part, const int *id, int N, int chunks) {
    const int n = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (n >= N + IN_FLIGHT) return;
    int place = n < N ? 0 : n;
    for (int i = 0; i < chunks && n < N; i++) place += part[(size_t)i * (size_t)N + (size_t)n];
    order[place] = make_int2(n < N ? id[n] : -1, n);
}

/* W adjacent numbers, as they are stored. */
template <int W>
struct __align__(W == 8 ? 16 : sizeof(real)) Stored {
    real x[W];
};

/* The threads of an id's first row add all of its rows. */
template <int W>
__global__ void embed_backward_kernel(float *dtable, const real *dout, const int2 *order, int C) {
    constexpr int AT_ONCE = W == 8 && FP32 ? IN_FLIGHT / 2 : IN_FLIGHT;  // 64 registers, if W = 8
    const int2 *at = order + blockIdx.x;
    const int id = at->x, c = (int)(blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (c >= C || (blockIdx.x && at[-1].x == id)) return;
    const char *column = (const char *)(dout + c);
    const uint32_t bytes = (uint32_t)(sizeof(real) * (size_t)C);
    float *to = dtable + (size_t)id * (size_t)C + (size_t)c, sum[W], x[W];
    get<W>(sum, to);
    for (int rows = AT_ONCE; rows == AT_ONCE; at += AT_ONCE) {
        uint32_t n[AT_ONCE];  // unsigned: then an address is one instruction
        Stored<W> row[AT_ONCE] = {};
        rows = 0;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int2 next = at[i];
            rows += next.x == id;
            n[i] = (uint32_t)next.y;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (i < rows) row[i] = *(const Stored<W> *)(column + (size_t)n[i] * bytes);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (i >= rows) break;
            get<W>(x, row[i].x);
            for (int k = 0; k < W; k++) sum[k] += x[k];
        }
    }
    put<W>(to, sum);
}

void embed_backward(float *dwte, float *dwpe, const real *dout, const int *token,
                    const int *position, int N, int C) {
    // out[n] = wte[token[n]] + wpe[position[n]]:  dwte[token[n]] += dout[n],  dwpe[position[n]] +=
    // dout[n]
    if (!N) return;
    const size_t rows = (size_t)N;
    const unsigned chunks = min(blocks_for(rows, IDS), (unsigned)CHUNKS);
    int2 *order =
        (int2 *)workspace(sizeof *order * (rows + IN_FLIGHT) + sizeof(int) * chunks * rows);
    int *part = (int *)(order + rows + IN_FLIGHT);
    for (int table = 0; table < 2; table++) {
        float *to = table ? dwpe : dwte;
        const int *id = table ? position : token;
        if (!to) continue;
        LAUNCH(earlier_kernel, dim3(blocks_for(rows, THREADS), chunks), THREADS, 0, stream, part,
               id, N);
        LAUNCH(order_kernel, blocks_for(rows + IN_FLIGHT, THREADS), THREADS, 0, stream, order, part,
               id, N, (int)chunks);
        const bool eights = C % 8 == 0 && aligned(to, dout);
        const unsigned groups = blocks_for((size_t)C, eights ? 8 : 1),
                       threads = min((unsigned)rounded_up(groups, 32), (unsigned)THREADS);
        LAUNCH((eights ? embed_backward_kernel<8> : embed_backward_kernel<1>),
               dim3((unsigned)N, blocks_for(groups, threads)), threads, 0, stream, to, dout, order,
               C);
    }
}

/* ---- Linear layer ---------------------------------------------------------------------------- */

void linear_forward(real *out, const real *inp, const real *weight, const real *bias, int N, int IC,
                    int OC) {
    product(N, OC, IC, Matrix{inp, (size_t)IC, false}, Matrix{weight, (size_t)OC, false}, out,
            (size_t)OC, bias, false, false);
}

void linear_backward_input(real *dinp, const real *dout, const real *weight, int N, int IC,
                           int OC) {
    // out = inp weight:  dinp = dout weight^T
    product(N, IC, OC, Matrix{dout, (size_t)OC, false}, Matrix{weight, (size_t)OC, true}, dinp,
            (size_t)IC, (const real *)NULL, false, false, NULL,
            runs_beside(span_of(dinp, sizeof *dinp * (size_t)N * (size_t)IC)));
}

template <class T>
struct Column {
    const T *x;
    size_t C;
    template <int W>
    __device__ void at(float2 sums[W], int n, int c) const {
        float v[W];
        get<W>(v, x + (size_t)n * C + (size_t)c);
        for (int k = 0; k < W; k++) sums[k] = make_float2(v[k], 0);
    }
    bool eights(void) const { return aligned(x); }
};

void linear_backward_weight(float *dweight, float *dbias, const real *inp, const real *dout, int N,
                            int IC, int OC) {
    // out = inp weight:  dweight = inp^T dout
    // A product of few tiles leaves most of the GPU idle, so it runs beside dbias and what follows
    const size_t in = (size_t)IC, out = (size_t)OC, n = (size_t)N;
    begin_beside();
    add_column_sums(dbias, (float *)NULL, Column<real>{dout, out}, N, OC,
                    runs_beside(span_of(dbias, sizeof *dbias * out)));
    if (!dweight || !N) return;
    product(IC, OC, N, Matrix{inp, in, true}, Matrix{dout, out, false}, dweight, out,
            (const real *)NULL, true, true, NULL,
            second_stream(span_of(inp, sizeof *inp * n * in), span_of(dout, sizeof *dout * n * out),
                          span_of(dweight, sizeof *dweight * in * out)));
}

/* ---- Projection ------------------------------------------------------------------------------ */

struct AddBias {
    real *x;
    const real *bias;
    size_t OC;
    template <int W>
    __device__ void at(size_t i) const {
        float a[W], b[W];
        get<W>(a, x + i);
        get<W>(b, bias + i % OC);
        for (int k = 0; k < W; k++) a[k] += b[k];
        put<W>(x + i, a);
    }
};

void projection_forward(real *out, const real *inp, const real *weight, const real *bias, bool add,
                        int N, int IC, int OC) {
    if (add && bias)
        each(AddBias{out, bias, (size_t)OC}, (size_t)N * (size_t)OC,
             OC % 8 == 0 && aligned(out, bias));
    product(N, OC, IC, Matrix{inp, (size_t)IC, false}, Matrix{weight, (size_t)IC, true}, out,
            (size_t)OC, add ? (const real *)NULL : bias, add, false);
}

void projection_backward_input(real *dinp, const real *dout, const real *weight, bool add, int N,
                               int IC, int OC) {
    // out = inp weight^T:  dinp = dout weight
    product(N, IC, OC, Matrix{dout, (size_t)OC, false}, Matrix{weight, (size_t)IC, false}, dinp,
            (size_t)IC, (const real *)NULL, add, false);
}

void projection_backward_weight(float *dweight, float *dbias, const real *inp, const real *dout,
                                int N, int IC, int OC) {
    // out = inp weight^T:  dweight = dout^T inp
    if (dweight)
        product(OC, IC, N, Matrix{dout, (size_t)OC, true}, Matrix{inp, (size_t)IC, false}, dweight,
                (size_t)IC, (const real *)NULL, true, true);
    add_column_sums(dbias, (float *)NULL, Column<real>{dout, (size_t)OC}, N, OC);
}

struct Add {
    real *out;
    const real *x, *y;
    template <int W>
    __device__ void at(size_t i) const {
        float a[W], b[W];
        get<W>(a, x + i);
        get<W>(b, y + i);
        for (int k = 0; k < W; k++) a[k] += b[k];
        put<W>(out + i, a);
    }
};

void add_activations(real *out, const real *x, const real *y, size_t n) {
    each(Add{out, x, y}, n, aligned(out, x, y));
}

struct Scale {
    real *x;
    float factor;
    template <int W>
    __device__ void at(size_t i) const {
        float a[W];
        get<W>(a, x + i);
        for (int k = 0; k < W; k++) a[k] *= factor;
        put<W>(x + i, a);
    }
};

void scale(real *x, float factor, size_t n) { each(Scale{x, factor}, n, aligned(x)); }

/* ---- Linear layer in NF4 --------------------------------------------------------------------- */

/* The weight is dequantised into workspace, then multiplied. */

size_t nf4_bytes(int IC, int OC, bool double_quant) { return nf4_bytes_of(IC, OC, double_quant); }

/* On the device: the 16 values, the 15 thresholds and an unused one, the 256 values of scales. */
static const float *nf4_tables(void) {
    static float *tables;
    if (tables) return tables;
    if (!(tables = (float *)device_alloc(288 * sizeof *tables)))
        die("out of memory for NF4's tables on %s; close other programs", device_name());
    fill_dynamic_map();
    device_write(tables, nf4_value, sizeof nf4_value);
    device_write(tables + 16, nf4_threshold, sizeof nf4_threshold);
    device_write(tables + 32, dynamic_map, sizeof dynamic_map);
    return tables;
}

/* x = elements at .. at+W of weight^T, counted row after row. If W is 8, at is a multiple of 8, so
   the elements are in one block. */
template <int W>
static __device__ void nf4_numbers(float x[W], const NF4 &q, const float *tables, size_t at) {
    const size_t block = at / NF4_BLOCK;
    const float absmax =
        q.absmax ? q.absmax[block]
                 : tables[32 + q.absmax8[block]] * q.absmax2[block / NF4_BLOCK2] + q.offset;
    if constexpr (W == 1)
        x[0] = tables[at % 2 ? q.code[at / 2] & 15 : q.code[at / 2] >> 4] * absmax;
    else {
        const uint32_t codes = *(const uint32_t *)(const void *)(q.code + at / 2);
        for (int k = 0; k < 8; k++)
            x[k] = tables[codes >> (8 * (k / 2) + (k % 2 ? 0 : 4)) & 15] * absmax;
    }
}

/* One warp per block of 64 numbers, two numbers per lane. absmax (blocks) */
__global__ void nf4_quantize_kernel(uint8_t *code, float *absmax, const real *weight,
                                    const float *tables, int IC, int OC, size_t blocks) {
    const size_t n = (size_t)IC * (size_t)OC, block = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (block >= blocks) return;
    float x[2], top = 0;
    int finite = 1;
    for (int i = 0; i < 2; i++) {
        const size_t at = block * NF4_BLOCK + 2 * (size_t)lane + (size_t)i;
        x[i] = at < n ? get(weight + at % (size_t)IC * (size_t)OC + at / (size_t)IC) : 0;
        top = fmaxf(top, fabsf(x[i]));
        finite = finite && fabsf(x[i]) <= 3.402823466e38f;
    }
    top = __all_sync(ALL, finite) ? warp_max(top) : NAN;  // makes the whole block NaN
    const float inverse = top > 0 ? 1.0f / top : 0;
    int byte = 0;
    for (int i = 0; i < 2; i++) {
        int c = 0;
        for (int k = 0; k < 15; k++) c += x[i] * inverse > tables[16 + k];
        byte = byte << 4 | c;
    }
    code[block * (NF4_BLOCK / 2) + (size_t)lane] = (uint8_t)byte;
    if (lane == 0) absmax[block] = top;
}

void nf4_quantize(NF4 *q, void *memory, const real *weight, int IC, int OC, bool double_quant) {
    const size_t n = (size_t)IC * (size_t)OC, blocks = blocks_of(n, NF4_BLOCK),
                 second = blocks_of(blocks, NF4_BLOCK2);
    memset(q, 0, sizeof *q);
    q->IC = IC;
    q->OC = OC;
    q->code = (uint8_t *)memory;
    float *absmax = (float *)(void *)(q->code + blocks * (NF4_BLOCK / 2));
    if (double_quant) {
        q->absmax2 = absmax;
        q->absmax8 = (uint8_t *)(absmax + second);
        absmax = (float *)workspace(blocks * sizeof *absmax);
    } else
        q->absmax = absmax;
    LAUNCH(nf4_quantize_kernel, blocks_for(blocks, WARPS), THREADS, 0, stream, q->code, absmax,
           weight, nf4_tables(), IC, OC, blocks);
    if (!double_quant) return;
    float *host = (float *)xmalloc((blocks + second) * sizeof *host);
    device_read(host, absmax, blocks * sizeof *host);
    NF4 here = {};
    here.absmax2 = host + blocks;
    here.absmax8 = (uint8_t *)xmalloc(blocks);
    quantize_absmax(&here, host, blocks);
    q->offset = here.offset;
    device_write(q->absmax2, here.absmax2, second * sizeof *host);
    device_write(q->absmax8, here.absmax8, blocks);
    free(here.absmax8);
    free(host);
}

struct Decode {  // out (OC,IC) = weight^T as stored; or transposed, as weight (IC,OC)
                 // from `offset` on
    real *out;
    float *floats;
    NF4 q;
    const float *tables;
    size_t offset;
    template <int W>
    __device__ void at(size_t i) const {
        const size_t IC = (size_t)q.IC, OC = (size_t)q.OC, k = offset + i;
        float x[W];
        if (floats) {
            real as_stored;  // rounded as for the product
            nf4_numbers<1>(x, q, tables, k % OC * IC + k / OC);
            put(&as_stored, x[0]);
            floats[i] = get(&as_stored);
            return;
        }
        nf4_numbers<W>(x, q, tables, i);
        put<W>(out + i, x);
    }
};

void nf4_read(float *out, const NF4 *q, size_t offset, size_t n) {
    for (size_t from = 0; from < n; from += PIECE) {
        const size_t m = n - from < PIECE ? n - from : PIECE;
        float *floats = (float *)workspace(PIECE * sizeof *floats);
        each(Decode{NULL, floats, *q, nf4_tables(), offset + from}, m, false);
        device_read(out + from, floats, m * sizeof *out);
    }
}

static const real *decoded(const NF4 *q) {
    const size_t n = (size_t)q->IC * (size_t)q->OC;
    real *weight = (real *)workspace(n * sizeof *weight);
    each(Decode{weight, NULL, *q, nf4_tables(), 0}, n, aligned(q->code));
    return weight;
}

void nf4_linear_forward(real *out, const real *inp, const NF4 *q, const real *bias, int N) {
    product(N, q->OC, q->IC, Matrix{inp, (size_t)q->IC, false},
            Matrix{decoded(q), (size_t)q->IC, true}, out, (size_t)q->OC, bias, false, false);
}

void nf4_linear_backward_input(real *dinp, const real *dout, const NF4 *q, int N) {
    // out = inp weight:  dinp = dout weight^T
    product(N, q->IC, q->OC, Matrix{dout, (size_t)q->OC, false},
            Matrix{decoded(q), (size_t)q->IC, false}, dinp, (size_t)q->IC, (const real *)NULL,
            false, false);
}

/* ---- Residual and layer norm: one warp per row ----------------------------------------------- */

template <int W>
__global__ void layernorm_forward_kernel(real *sum, real *out, float *mean, float *rstd,
                                         const real *x, const real *y, const real *weight,
                                         const real *bias, int N, int C, float epsilon) {
    const int n = (int)(blockIdx.x * WARPS + threadIdx.x / 32), lane = threadIdx.x % 32;
    if (n >= N) return;
    const size_t at = (size_t)n * (size_t)C;
    const real *row = y ? sum + at : x + at;
    float total = 0, a[W], b[W];
    for (int c = lane * W; c < C; c += 32 * W) {
        get<W>(a, x + at + c);
        if (y) {
            get<W>(b, y + at + c);
            for (int k = 0; k < W; k++) a[k] += b[k];
            put<W>(sum + at + c, a);
            get<W>(a, sum + at + c);  // rounded as stored, as the backward pass reads it
        }
        for (int k = 0; k < W; k++) total += a[k];
    }
    const float m = warp_sum(total) / (float)C;
    float square = 0;
    for (int c = lane * W; c < C;
         c += 32 * W) {  // the variance in a second pass: no cancellation when the mean is large
        get<W>(a, row + c);
        for (int k = 0; k < W; k++) square = fmaf(a[k] - m, a[k] - m, square);
    }
    const float r = 1.0f / sqrtf(warp_sum(square) / (float)C + epsilon);
    for (int c = lane * W; c < C; c += 32 * W) {
        float w[W];
        get<W>(a, row + c);
        get<W>(w, weight + c);
        get<W>(b, bias + c);
        for (int k = 0; k < W; k++) a[k] = fmaf((a[k] - m) * r, w[k], b[k]);
        put<W>(out + at + c, a);
    }
    if (lane == 0) {
        mean[n] = m;
        rstd[n] = r;
    }
}

void layernorm_forward(real *sum, real *out, float *mean, float *rstd, const real *x, const real *y,
                       const real *weight, const real *bias, int N, int C, float epsilon) {
    if (!N) return;
    const size_t bytes = sizeof(real) * (size_t)N * (size_t)C, rows = sizeof *mean * (size_t)N;
    const cudaStream_t on = runs_beside(span_of(y ? sum : NULL, bytes), span_of(out, bytes),
                                        span_of(mean, rows), span_of(rstd, rows));
    if (C % 8 == 0 && aligned(sum, out, x, y, weight, bias))
        LAUNCH(layernorm_forward_kernel<8>, blocks_for((size_t)N, WARPS), THREADS, 0, on, sum, out,
               mean, rstd, x, y, weight, bias, N, C, epsilon);
    else
        LAUNCH(layernorm_forward_kernel<1>, blocks_for((size_t)N, WARPS), THREADS, 0, on, sum, out,
               mean, rstd, x, y, weight, bias, N, C, epsilon);
}

template <int W>
__global__ void layernorm_backward_kernel(real *dsum, const real *dout, const real *sum,
                                          const float *mean, const float *rstd, const real *weight,
                                          int N, int C) {
    const int n = (int)(blockIdx.x * WARPS + threadIdx.x / 32), lane = threadIdx.x % 32;
    if (n >= N) return;
    const size_t at = (size_t)n * (size_t)C;
    const float m = mean[n], r = rstd[n];
    float g_total = 0, gx_total = 0, dy[W], x[W], w[W], dx[W];
    for (int c = lane * W; c < C; c += 32 * W) {
        get<W>(dy, dout + at + c);
        get<W>(x, sum + at + c);
        get<W>(w, weight + c);
        for (int k = 0; k < W; k++) {
            g_total += dy[k] * w[k];
            gx_total = fmaf(dy[k] * w[k], (x[k] - m) * r, gx_total);
        }
    }
    const float g_mean = warp_sum(g_total) / (float)C, gx_mean = warp_sum(gx_total) / (float)C;
    for (int c = lane * W; c < C; c += 32 * W) {
        get<W>(dy, dout + at + c);
        get<W>(x, sum + at + c);
        get<W>(w, weight + c);
        get<W>(dx, dsum + at + c);
        for (int k = 0; k < W; k++)
            dx[k] = fmaf(r, dy[k] * w[k] - g_mean - (x[k] - m) * r * gx_mean, dx[k]);
        put<W>(dsum + at + c, dx);
    }
}

struct NormColumn {
    const real *dout, *sum;
    const float *mean, *rstd;
    size_t C;
    template <int W>
    __device__ void at(float2 sums[W], int n, int c) const {
        const size_t i = (size_t)n * C + (size_t)c;
        float dy[W], x[W];
        get<W>(dy, dout + i);
        get<W>(x, sum + i);
        for (int k = 0; k < W; k++)
            sums[k] = make_float2(dy[k] * (x[k] - mean[n]) * rstd[n], dy[k]);
    }
    bool eights(void) const { return aligned(dout, sum); }
};

void layernorm_backward(real *dsum, float *dweight, float *dbias, const real *dout, const real *sum,
                        const float *mean, const float *rstd, const real *weight, int N, int C) {
    // out = xhat * weight + bias, xhat = (sum - mean) * rstd:
    // with g = dout * weight,  dsum += rstd * (g - mean(g) - xhat * mean(g * xhat)),  dweight +=
    // dout * xhat,  dbias += dout
    if (!N) return;
    if (C % 8 == 0 && aligned(dsum, dout, sum, weight))
        LAUNCH(layernorm_backward_kernel<8>, blocks_for((size_t)N, WARPS), THREADS, 0, stream, dsum,
               dout, sum, mean, rstd, weight, N, C);
    else
        LAUNCH(layernorm_backward_kernel<1>, blocks_for((size_t)N, WARPS), THREADS, 0, stream, dsum,
               dout, sum, mean, rstd, weight, N, C);
    add_column_sums(dweight, dbias, NormColumn{dout, sum, mean, rstd, (size_t)C}, N, C);
}

/* ---- GELU ------------------------------------------------------------------------------------ */

/* 0.5 x (1 + tanh(u)) = x s(2u) with the logistic function s(z) = 1 / (1 + e^-z) and
   u = A (x + B x^3) */

#define GELU_A 0.7978845608f  // sqrt(2 / pi), then the coefficient of the cubic term
#define GELU_B 0.044715f

/* y = f(x), and slope = f'(x) */
struct Gelu {
    static __device__ void at(float x, float *y, float *slope) {
        const float u = x * fmaf(x * x, GELU_A * GELU_B, GELU_A),
                    s = 1.0f / (1.0f + expf(-2.0f * u));
        *y = x * s;
        // d = s + x s (1 - s) 2 u',  u' = A (1 + 3 B x^2).  x s (1 - s) is computed
        // first, because it reaches 0 before u' becomes large
        *slope = fmaf(*y * (1.0f - s), fmaf(x * x, 6 * GELU_A * GELU_B, 2 * GELU_A), s);
    }
};

struct Relu {
    static __device__ void at(float x, float *y, float *slope) {
        *y = x <= 0 ? 0 : x;  // (preserves NaN)
        *slope = x <= 0 ? 0 : 1;
    }
};

struct Silu {
    static __device__ void at(float x, float *y, float *slope) {
        const float s = 1.0f / (1.0f + expf(-x));
        *y = x * s;
        *slope = fmaf(*y, 1.0f - s, s);  // d = s + x s (1 - s)
    }
};

template <class F>
struct Activation {
    real *out;
    const real *inp;
    template <int W>
    __device__ void at(size_t i) const {
        float x[W], slope;
        get<W>(x, inp + i);
        for (int k = 0; k < W; k++) F::at(x[k], &x[k], &slope);
        put<W>(out + i, x);
    }
};

template <class F>
struct ActivationBackward {  // dout *= f'(inp), inp = f(inp)
    real *dout, *inp;
    template <int W>
    __device__ void at(size_t i) const {
        float x[W], d[W], slope;
        get<W>(x, inp + i);
        get<W>(d, dout + i);
        for (int k = 0; k < W; k++) {
            F::at(x[k], &x[k], &slope);
            d[k] *= slope;
        }
        put<W>(dout + i, d);
        put<W>(inp + i, x);
    }
};

void gelu_forward(real *out, const real *inp, size_t n) {
    each(Activation<Gelu>{out, inp}, n, aligned(out, inp));
}

/* In bf16 cuBLASLt computes GELU from the sum before rounding, if it can write pre eight numbers at
   a time. In fp32, which is for comparison with the CPU, the GELU above is used. Only on Hopper: it
   was reported slower than two kernels on Ada (llm.c) and later GPUs. How much it saves is not
   measured yet; `make bench_cuda` has a row for it and one for each of the two kernels. */
void linear_gelu_forward(real *out, real *pre, const real *inp, const real *weight,
                         const real *bias, int N, int IC, int OC) {
    if (!FP32 && properties.major == 9 && OC % 8 == 0 && aligned(pre) &&
        product(N, OC, IC, Matrix{inp, (size_t)IC, false}, Matrix{weight, (size_t)OC, false}, out,
                (size_t)OC, bias, false, false, pre))
        return;
    linear_forward(pre, inp, weight, bias, N, IC, OC);
    gelu_forward(out, pre, (size_t)N * (size_t)OC);
}

void gelu_backward(real *dout, real *inp, size_t n) {
    each(ActivationBackward<Gelu>{dout, inp}, n, aligned(dout, inp));
}

/* ---- ReLU and SiLU --------------------------------------------------------------------------- */

void relu_forward(real *out, const real *inp, size_t n) {
    each(Activation<Relu>{out, inp}, n, aligned(out, inp));
}
void relu_backward(real *dout, real *inp, size_t n) {
    each(ActivationBackward<Relu>{dout, inp}, n, aligned(dout, inp));
}
void silu_forward(real *out, const real *inp, size_t n) {
    each(Activation<Silu>{out, inp}, n, aligned(out, inp));
}
void silu_backward(real *dout, real *inp, size_t n) {
    each(ActivationBackward<Silu>{dout, inp}, n, aligned(dout, inp));
}

/* ---- Random noise: the draws of util.h, the same as on the CPU ------------------------------- */

/* The uniform number of element c of the token in row n. */
static __device__ float noise_uniform(const Noise &z, int n, uint32_t c) {
    return random_uniform(
        random4(z.seed, z.purpose, z.step, z.sequence[n], (uint32_t)z.position[n], c / 4).v[c % 4]);
}

/* The factors, 0 or 1 / (1-p), of elements c .. c+W of row n. W = 8 needs two draws of Philox. */
template <int W>
static __device__ void keep_factors(float keep[W], const Noise &z, int n, uint32_t c) {
    const float kept = 1.0f / (1.0f - z.p);
    if constexpr (W == 1)
        keep[0] = noise_uniform(z, n, c) >= z.p ? kept : 0;
    else
        for (uint32_t half = 0; half < W / 4; half++) {
            const Random4 word = random4(z.seed, z.purpose, z.step, z.sequence[n],
                                         (uint32_t)z.position[n], c / 4 + half);
            for (int k = 0; k < 4; k++)
                keep[4 * half + k] = random_uniform(word.v[k]) >= z.p ? kept : 0;
        }
}

struct Dropout {  // out = x keep, or with add out += x keep
    real *out;
    const real *x;
    size_t C;
    bool add;
    Noise noise;
    template <int W>
    __device__ void at(size_t i) const {
        float a[W], b[W], keep[W];
        get<W>(a, x + i);
        for (int k = 0; k < W; k++) keep[k] = 1;
        if (noise.p > 0) keep_factors<W>(keep, noise, (int)(i / C), (uint32_t)(i % C));
        for (int k = 0; k < W; k++)
            a[k] = keep[k] > 0 ? a[k] * keep[k] : 0;  // (a NaN may be dropped)
        if (add) {
            get<W>(b, out + i);
            for (int k = 0; k < W; k++) a[k] += b[k];
        }
        put<W>(out + i, a);
    }
};

void dropout(real *x, int N, int C, Noise noise) {
    if (noise.p > 0)
        each(Dropout{x, x, (size_t)C, false, noise}, (size_t)N * (size_t)C,
             C % 8 == 0 && aligned(x));
}

void dropout_add(real *out, const real *x, int N, int C, Noise noise) {
    each(Dropout{out, x, (size_t)C, true, noise}, (size_t)N * (size_t)C,
         C % 8 == 0 && aligned(out, x));
}

struct UniformNoise {
    real *x;
    const float *magnitude;
    size_t C;
    Noise noise;
    template <int W>
    __device__ void at(size_t i) const {
        const int n = (int)(i / C);
        for (int k = 0; k < W; k++)
            put(x + i + k,
                get(x + i + k) +
                    magnitude[n] *
                        (2.0f * noise_uniform(noise, n, (uint32_t)(i % C) + (uint32_t)k) - 1.0f));
    }
};

void add_uniform_noise(real *x, const float *magnitude, int N, int C, Noise noise) {
    each(UniformNoise{x, magnitude, (size_t)C, noise}, (size_t)N * (size_t)C, false);
}

/* ---- Attention ------------------------------------------------------------------------------- */

/*
 * FlashAttention (Dao et al. 2022). A block of 4 warps computes 64 consecutive queries of one head,
 * 16 per warp, and loops over the keys in tiles of 64, counted from the start of the sequence.
 * Decoding runs the same code with one warp. A tile of masked keys adds 0 and rescales by 1, so a
 * row has the same bits regardless of the other rows. In fp32 a block has half as many queries and
 * keys, because a number takes twice the memory.
 *
 * By warps, a product of two matrices is computed by one warp and leaves its sums in registers:
 * lane l = 4 g + t has rows g and g+8, and of each 8 columns the 2t-th and the next, as d in
 * mma_bf16. Two such groups of 8 columns are, rounded to bf16, the fragment a of mma_bf16 in the
 * same lane. So probabilities and their gradients are factors of a second product without leaving
 * registers.
 *
 * What a block reads again and again (keys and values; for dk and dv, queries and dout) has two
 * buffers in shared memory: while one is read, the next block is copied to the other. What it reads
 * in every turn is read into registers once.
 *
 * On Hopper, in bf16, and for heads of 33 to 64 numbers, the four warps of a block are a warp group
 * (GROUP). One instruction multiplies its 64 rows, which are distributed as before, by a matrix in
 * shared memory. That matrix is read once for all four warps, and no instruction loads it into
 * registers. For a tile of keys, a warp takes 429 instructions in place of 468; for dq 427, where a
 * warp by itself takes 4 x 119 and copies besides; and for dk and dv, whose tiles are of queries,
 * 608, where it takes 4 x 150 and copies besides (computed: `sh test/emu/cuda_table.sh loops`).
 *
 * Left out: heads of 128 numbers by warp groups. Their rows are twice as long as the swizzled ones,
 * and for dk and dv the sums and factors of a lane would be 256 registers, one more than there are.
 * Also left out: copies by the tensor memory accelerator. It copies boxes of a fixed number of
 * rows. A tile has fewer rows at the end of a sequence, and rows from two places where a shared
 * beginning ends.
 */

/* KB: the keys (or queries) of a tile. */
enum { KB = FP32 ? 32 : 64, ATTENTION_WARPS = KB / 16 };

/* The shared memory that a block can have on every GPU of compute capability 8.0 or later. 8.6, 8.9
   and 12.0 have the least, 100 KiB less the 1 KiB that the system takes. */
enum { SHARED_OF_ANY_GPU = 99 << 10 };

/*
 * A tile is KB rows of a head in shared memory, and 16 bytes more for each row. For products by
 * warps, these are at the row's end, so that the eight rows of an 8 x 8 matrix are in different
 * banks; for dk and dv they also hold what is known of a query. For products by warp groups
 * (GROUP), they come after all rows. There a row has 128 bytes, and its eight chunks of 16 bytes
 * are swizzled: chunk i is at i xor row % 8. HSP is the size of a head, rounded up
 * (with_head_size).
 */
template <int HSP_, bool GROUP_>
struct Tile {
    static constexpr int HSP = HSP_;
    static constexpr bool GROUP = GROUP_;
    enum { MORE = 16 / (int)sizeof(real), LD = HSP + (GROUP ? 0 : MORE), SIZE = KB * (HSP + MORE) };
    enum { ONCE = GROUP ? KB : 16 };  // its rows that the backward pass multiplies at a time
    static_assert(!GROUP || (HSP == 64 && !FP32), "wgmma_bf16 is of 64 columns");

    /* Where the chunk that begins with column c is. */
    template <class R>
    static __device__ __forceinline__ R *at(R *tile, int row, int c) {
        return tile + row * LD + (GROUP ? c ^ row % 8 * 8 : c);
    }
    /* Where the 16 bytes more of a row are. */
    template <class R>
    static __device__ __forceinline__ R *more(R *tile, int row) {
        return GROUP ? tile + KB * HSP + row * MORE : tile + row * LD + HSP;
    }
};

/* The tiles of a kernel: two buffers of two tiles each, and in fp32 the `own` tiles of what each
   turn reads. They begin at tile OWN. In bf16 they pass through the second buffer into registers.
 */
enum { OWN = FP32 ? 4 : 2 };

/* The tiles of warp groups begin at a multiple of so many bytes, because the swizzle is one of
   addresses. A block asks for so many more. */
enum { SWIZZLED = 1024 };

static constexpr size_t shared_bytes(int own, int hsp, bool group) {
    return sizeof(real) * (size_t)(4 + (FP32 ? own : 0)) * KB * ((size_t)hsp + 16 / sizeof(real)) +
           (group ? SWIZZLED : 0);
}

/* The numbers from an address to where the tiles of warp groups can begin. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t to_swizzled(const real *memory) {
    return (SWIZZLED - shared_address(memory) % SWIZZLED) / sizeof(real);
}

/* 16 rows of a head, the first factor of products by one warp. In bf16 it is in registers: part[i]
   is the fragment a of columns 16i .. 16i+16. In fp32 it stays in a tile. */
template <class T>
struct Factor {
    uint32_t part[T::HSP / 16][4];
    const real *rows;
};

template <class T>
static __device__ __forceinline__ Factor<T> factor_of(const real *rows) {
    Factor<T> f;
    f.rows = rows;
    if constexpr (!FP32) {
        const int r = threadIdx.x % 8, m = threadIdx.x % 32 / 8;  // row r of matrix m
#pragma unroll
        for (int i = 0; i < T::HSP / 16; i++)
            ldmatrix_x4(f.part[i], T::at(rows, r + m % 2 * 8, 16 * i + m / 2 * 8));
    }
    return f;
}

/* The operand of wgmma_bf16 that begins at `at` in a tile (PTX ISA, matrix descriptor): its address
   and the 1,024 bytes from each eight rows to the next, both in units of 16 bytes; and the swizzle
   of rows of 128 bytes, 1 in the highest two bits. The GPU swizzles the bits of each address that
   it computes from these. So `at` is where the numbers would be without a swizzle. */
[[maybe_unused]] static __device__ __forceinline__ uint64_t operand_of(const real *at) {
    return (uint64_t)(shared_address(at) / 16) | (uint64_t)(SWIZZLED / 16) << 32 |
           (uint64_t)1 << 62;
}

/* Waits for the sums d of products. By warps they are there already. */
template <class T>
static __device__ __forceinline__ void arrived(float d[][4]) {
    if constexpr (T::GROUP) wgmma_wait(d);
}

/* d (16,8 NT) = A (16,HSP) B^T, with B (8 NT,HSP) in a tile. In fp32 the same sums are computed
   without tensor cores. arrived() waits for d. */
template <class T, int NT>
static __device__ __forceinline__ void products_of_rows(float d[][4], const Factor<T> &a,
                                                        const real *b) {
    enum { LD = T::LD, HSP = T::HSP };
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < NT && !T::GROUP; j++)
        for (int i = 0; i < 4; i++) d[j][i] = 0;
    if constexpr (FP32) {
        for (int j = 0; j < NT; j++)
            for (int i = 0; i < 4; i++) {
                const real *x = a.rows + (lane / 4 + i / 2 * 8) * LD,
                           *y = b + (8 * j + 2 * (lane % 4) + i % 2) * LD;
                for (int k = 0; k < HSP; k++) d[j][i] = fmaf(get(x + k), get(y + k), d[j][i]);
            }
    } else if constexpr (T::GROUP) {
        static_assert(NT == 8, "wgmma_bf16 is of 64 columns");
#pragma unroll
        for (int k = 0; k < HSP / 16; k++)
            wgmma_bf16<false>(d, a.part[k], operand_of(b + 16 * k), k > 0);
    } else {
        const int r = lane % 8, m = lane / 8;
#pragma unroll
        for (int k = 0; k < HSP / 16; k++)
#pragma unroll
            for (int j = 0; j < NT; j += 2) {
                uint32_t B[4];
                ldmatrix_x4(B, b + (8 * j + r + m / 2 * 8) * LD + 16 * k + m % 2 * 8);
                mma_bf16(d[j], a.part[k], B);
                mma_bf16(d[j + 1], a.part[k], B + 2);
            }
    }
}

/* d (16,HSP) += P (16,8 NT) B, with B (8 NT,HSP) in a tile. P is in registers, distributed as the
   sums of a product. In fp32, lanes 4g .. 4g+4 have rows g and g+8 of P, and take turns. arrived()
   waits for d. */
template <class T, int NT>
static __device__ __forceinline__ void add_product(float d[][4], const float p[][4],
                                                   const real *b) {
    enum { LD = T::LD, HSP = T::HSP };
    const int lane = threadIdx.x % 32;
    if constexpr (FP32) {
        const int t = lane % 4;
#pragma unroll
        for (int k = 0; k < 8 * NT; k++) {
            const int has = lane - t + k % 8 / 2;  // the lane that has column k
            const float upper = __shfl_sync(ALL, p[k / 8][k % 2], has),
                        lower = __shfl_sync(ALL, p[k / 8][2 + k % 2], has);
            for (int j = 0; j < HSP / 8; j++)
                for (int i = 0; i < 4; i++)
                    d[j][i] = fmaf(i < 2 ? upper : lower, get(b + k * LD + 8 * j + 2 * t + i % 2),
                                   d[j][i]);
        }
    } else {
        [[maybe_unused]] const int r = lane % 8, m = lane / 8;
#pragma unroll
        for (int k = 0; k < NT / 2; k++) {
            const float *left = p[2 * k], *right = p[2 * k + 1];
            const uint32_t A[4] = {bf16_pair(left[0], left[1]), bf16_pair(left[2], left[3]),
                                   bf16_pair(right[0], right[1]), bf16_pair(right[2], right[3])};
            if constexpr (T::GROUP)
                wgmma_bf16<true>(d, A, operand_of(b + 16 * k * LD), true);
            else
#pragma unroll
                for (int j = 0; j < HSP / 8; j += 2) {
                    uint32_t B[4];
                    ldmatrix_x4_trans(B, b + (16 * k + r + m % 2 * 8) * LD + 8 * j + m / 2 * 8);
                    mma_bf16(d[j], A, B);
                    mma_bf16(d[j + 1], A, B + 2);
                }
        }
    }
}

/* Writes the sums d (16,HSP) of a warp to rows `out` of a head, at most `rows`: times upper in rows
   g, and lower in rows g+8. */
template <int HSP>
static __device__ __forceinline__ void put_sums(real *out, size_t stride, const float d[][4],
                                                float upper, float lower, int rows, int hs) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < HSP / 8; j++)
        for (int i = 0; i < 4; i += 2) {
            const int row = g + i / 2 * 8, c = 8 * j + 2 * t;
            const float factor = i ? lower : upper, x = d[j][i] * factor, y = d[j][i + 1] * factor;
            real *to = out + (size_t)row * stride + c;
            if (row >= rows || c >= hs) continue;
            if (hs % 2 == 0)
                put2(to, x, y);
            else {
                put(to, x);
                if (c + 1 < hs) put(to + 1, y);
            }
        }
}

/* Rows of hs numbers: the first P of them start at first, the others at second. */
typedef struct {
    const real *first, *second;
    int stride, P;
} RowsOf;

static __device__ __forceinline__ RowsOf same_rows(const real *x, size_t stride) {
    return RowsOf{x, x, (int)stride, 0};
}

static __device__ __forceinline__ const real *row_at(RowsOf x, int t) {
    return t < x.P ? x.first + (size_t)t * (size_t)x.stride
                   : x.second + (size_t)(t - x.P) * (size_t)x.stride;
}

/* Starts to copy rows t0 .. of x to the first ROWS_ rows of a tile, with zeros from row `end` and
   column hs on; and to the next tile, if there are two TILES, the rows that are `distance` behind
   them. All warps of a block take part. loaded() waits for it. eights: the addresses allow loads of
   16 bytes. Most tiles are whole, and then a thread copies the same chunk of every STEP-th row. For
   heads of 64 numbers this takes 8 instructions a chunk, where finding each chunk's row and column
   takes 55 (computed: counted in the compiled code). */
template <class T, int WARPS_, int ROWS_, int TILES = 1>
static __device__ __forceinline__ void load_tile(real *tile, RowsOf x, int t0, int end, int hs,
                                                 bool eights, size_t distance = 0) {
    enum {
        E = 16 / (int)sizeof(real),
        CHUNKS = T::HSP / E,
        STEP = 32 * WARPS_ / CHUNKS,
        EVEN = 32 * WARPS_ % CHUNKS == 0 && (!T::GROUP || STEP % 8 == 0)
    };
    int thread = (int)threadIdx.x;
    asm volatile(""
                 : "+r"(thread));  // else what follows from it is kept in registers between turns
    const int first = thread / CHUNKS, column = thread % CHUNKS * E;
    const bool whole = t0 + ROWS_ <= end && (t0 >= x.P || t0 + ROWS_ <= x.P) && hs == T::HSP;
    if (EVEN && whole && eights) {
        const real *from = row_at(x, t0 + first) + column;
        real *to = T::at(tile, first, column);
#pragma unroll
        for (int row = 0; row < ROWS_; row += STEP) {
            for (int n = 0; n < TILES; n++)
                cp_async16(to + n * T::SIZE + row * T::LD, from + (size_t)n * distance);
            from += STEP * x.stride;
        }
        return;
    }
    for (int i = thread; i < TILES * ROWS_ * CHUNKS; i += 32 * WARPS_) {
        const int n = i / (ROWS_ * CHUNKS), row = i / CHUNKS % ROWS_, c = i % CHUNKS * E,
                  t = t0 + row;
        real *to = T::at(tile + n * T::SIZE, row, c);
        const real *from = t < end && c < hs ? row_at(x, t) + c + (size_t)n * distance : NULL;
        if (from && eights)
            cp_async16(to, from);
        else
            for (int k = 0; k < E; k++) put(to + k, from && c + k < hs ? get(from + k) : 0.0f);
    }
}

/* Two tiles of KB rows: the rows of x, and those `distance` behind them. */
template <class T, int WARPS_>
static __device__ __forceinline__ void load_pair(real *tile, RowsOf x, size_t distance, int t0,
                                                 int end, int hs, bool eights) {
    load_tile<T, WARPS_, KB, 2>(tile, x, t0, end, hs, eights, distance);
}

/* Waits until the tiles that the block has started to load are there, for all of its threads. */
template <class T>
static __device__ __forceinline__ void loaded(void) {
    cp_async_wait<0>();
    if constexpr (T::GROUP) fence_for_wgmma();
    __syncthreads();
}

/* Dropout is a template argument (DROP) of the kernels, because its code takes registers even where
   p is 0. Without and with it, `make cuda_table` of nvcc 13.0 counts 128 and 162 registers in the
   forward pass by warps, and 111 and 144 by warp groups, for heads of 64 numbers. */

/* The draw for four keys of the query in row n; key is one of them. */
static __device__ Random4 attention_draw(const Noise &z, int n, int key, int h, int NH) {
    return random4(z.seed, z.purpose, z.step, z.sequence[n], (uint32_t)z.position[n],
                   (uint32_t)(key / 4) * (uint32_t)NH + (uint32_t)h);
}

static __device__ float attention_keep(const Noise &z, uint32_t word) {
    return random_uniform(word) >= z.p ? 1.0f / (1.0f - z.p) : 0.0f;
}

/* The dropout factors of this lane's four elements of a tile with a query in each row and a key in
   each column, distributed as d in mma_bf16. n0 and n1 are the batch rows of the lane's queries,
   key is the first of its keys. Two adjacent lanes have four keys of the same two queries. Each
   draws for one query, and gives the other lane the words of its keys. */
static __device__ void keep_by_query(float keep[4], const Noise &z, int n0, int n1, int key, int h,
                                     int NH) {
    const bool odd = threadIdx.x % 2;
    const Random4 own = attention_draw(z, odd ? n1 : n0, key, h, NH);
    const uint32_t first = __shfl_xor_sync(ALL, odd ? own.v[0] : own.v[2], 1),
                   second = __shfl_xor_sync(ALL, odd ? own.v[1] : own.v[3], 1);
    keep[0] = attention_keep(z, odd ? first : own.v[0]);
    keep[1] = attention_keep(z, odd ? second : own.v[1]);
    keep[2] = attention_keep(z, odd ? own.v[2] : first);
    keep[3] = attention_keep(z, odd ? own.v[3] : second);
}

/* The same for a tile with a key in each row and a query in each column. key is the lane's first
   key, and n0 and n1 are the batch rows of its queries. Four lanes, whose g differs in its lower
   two bits q, have four keys in their first row, and four in their second, of the same two queries.
   Lane q draws for all four lanes' element q, and they exchange words: lane q needs word q of each
   draw. After a prefix whose length is no multiple of four, the four keys do not share a draw, and
   each lane draws for itself. */
static __device__ void keep_by_key(float keep[4], const Noise &z, int n0, int n1, int key, int h,
                                   int NH) {
    const int q = threadIdx.x / 4 % 4;
    if ((key - q) % 4) {  // the same for the whole block
        for (int i = 0; i < 4; i++) {
            const Random4 own = attention_draw(z, i % 2 ? n1 : n0, key + i / 2 * 8, h, NH);
            const uint32_t low = key % 2 ? own.v[1] : own.v[0],
                           high = key % 2 ? own.v[3] : own.v[2];
            keep[i] = attention_keep(z, key % 4 / 2 ? high : low);
        }
        return;
    }
    Random4 x = attention_draw(z, q % 2 ? n1 : n0, key + q / 2 * 8, h, NH);
#pragma unroll
    for (int i = 0; i < 4; i += 2) {  // transposes pairs of lanes, then pairs of pairs
        const uint32_t other = __shfl_xor_sync(ALL, q % 2 ? x.v[i] : x.v[i + 1], 4);
        x.v[i] = q % 2 ? other : x.v[i];
        x.v[i + 1] = q % 2 ? x.v[i + 1] : other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t other = __shfl_xor_sync(ALL, q / 2 ? x.v[i] : x.v[i + 2], 8);
        x.v[i] = q / 2 ? other : x.v[i];
        x.v[i + 2] = q / 2 ? x.v[i + 2] : other;
    }
    for (int i = 0; i < 4; i++) keep[i] = attention_keep(z, x.v[i]);
}

static constexpr float LOG2_E = 1.4426950408889634f;

/* Of a warp's 16 queries: o, the weighted sums of values. Of its rows g and g+8: inverse, 1 divided
   by the sum of weights; and lse, the log of the sum of exponentials. */
template <class T>
struct Attended {
    float o[T::HSP / 8][4], inverse[2], lse[2];
};

/*
 * Attention of `rows` consecutive queries (at most 16 per warp) at positions q0, q0+1, ... to keys
 * 0 .. their own position. The softmax is computed online, one block of keys after the other
 * (Milakov & Gimelshein 2018): m is the largest product q.k so far, l the sum of
 * e^((q.k - m) scale), o the weighted sum of values. e^x is 2^(x log2 e). A value is `values`
 * numbers behind its key. With DROP, dropout by noise; n0 is the batch row of q0.
 */
template <class T, int WARPS_, bool DROP>
static __device__ __forceinline__ Attended<T> attend(const real *q, size_t q_row, int rows, int q0,
                                                     RowsOf keys, size_t values, int hs,
                                                     bool eights, const Noise &noise, int n0, int h,
                                                     int NH) {
    enum { SIZE = T::SIZE };
    SHARED_DYN(real, memory);
    if constexpr (T::GROUP) memory += to_swizzled(memory);
    real *const buffer = memory, *const own = buffer + OWN * SIZE;
    const int lane = threadIdx.x % 32, w = threadIdx.x / 32, g = lane / 4, t = lane % 4,
              end = q0 + rows, first = q0 + w * 16;  // the warp's first query
    const float scale = 1.0f / sqrtf((float)hs), scale2 = scale * LOG2_E;
    Attended<T> a = {};
    float m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
    load_tile<T, WARPS_, 16 * WARPS_>(own, same_rows(q, q_row), 0, rows, hs, eights);
    load_pair<T, WARPS_>(buffer, keys, values, 0, end, hs, eights);
    cp_async_commit();
    loaded<T>();
    const Factor<T> Q = factor_of<T>(own + w * 16 * T::LD);
    for (int k0 = 0, stage = 0; k0 < end; k0 += KB, stage ^= 1) {
        loaded<T>();  // after it no warp reads the other buffer, which may be overwritten
        const real *const K = buffer + 2 * stage * SIZE, *const V = K + SIZE;
        real *const next = buffer + 2 * (stage ^ 1) * SIZE;
        if (k0 + KB < end) load_pair<T, WARPS_>(next, keys, values, k0 + KB, end, hs, eights);
        cp_async_commit();
        float s[KB / 8][4];
        products_of_rows<T, KB / 8>(s, Q, K);
        arrived<T>(s);
        if (k0 + KB > first + 1)  // some keys come after the query
#pragma unroll
            for (int j = 0; j < KB / 8; j++)
                for (int i = 0; i < 4; i++) {
                    const int key = k0 + 8 * j + 2 * t + i % 2, query = first + g + i / 2 * 8;
                    s[j][i] = key <= query ? s[j][i] : -INFINITY;
                }
        float top[2] = {-INFINITY, -INFINITY}, top2[2], shrink[2];
#pragma unroll
        for (int j = 0; j < KB / 8; j++)
            for (int i = 0; i < 4; i++) top[i / 2] = fmaxf(top[i / 2], s[j][i]);
        for (int i = 0; i < 2; i++) {  // the products of a row are in four lanes
            top[i] = fmaxf(top[i], __shfl_xor_sync(ALL, top[i], 1));
            top[i] = fmaxf(top[i], __shfl_xor_sync(ALL, top[i], 2));
            const float larger = fmaxf(m[i], top[i]);
            shrink[i] = m[i] == larger ? 1 : exp2_approx((m[i] - larger) * scale2);
            l[i] *= shrink[i];
            m[i] = larger;
            top2[i] = larger * scale2;
        }
#pragma unroll
        for (int j = 0; j < T::HSP / 8; j++)
            for (int i = 0; i < 4; i++) a.o[j][i] *= shrink[i / 2];
#pragma unroll
        for (int c = 0; c < KB / 8; c += 2) {
            for (int j = c; j < c + 2; j++) {
                float keep[4];
                if constexpr (DROP)
                    keep_by_query(keep, noise, n0 + min(w * 16 + g, rows - 1),
                                  n0 + min(w * 16 + g + 8, rows - 1), k0 + 8 * j + 2 * t, h, NH);
                for (int i = 0; i < 4; i++) {
                    s[j][i] = exp2_approx(fmaf(s[j][i], scale2, -top2[i / 2]));
                    l[i / 2] += s[j][i];
                    if constexpr (DROP) s[j][i] *= keep[i];
                }
            }
            add_product<T, 2>(a.o, s + c, V + 8 * c * T::LD);
        }
        arrived<T>(a.o);
    }
    for (int i = 0; i < 2; i++) {
        l[i] += __shfl_xor_sync(ALL, l[i], 1);
        l[i] += __shfl_xor_sync(ALL, l[i], 2);
        a.inverse[i] = 1.0f / l[i];
        a.lse[i] = fmaf(m[i], scale, logf(l[i]));
    }
    return a;
}

/* The batch rows of a sequence: P rows of its parent from row `before` on, then T rows of its own
   from row `own` on. */
typedef struct {
    int before, P, own, T;
} Rows;

static __device__ Rows rows_of(const int *start, const int *parent, int s) {
    const int p = parent ? parent[s] : -1;
    return Rows{p < 0 ? 0 : start[p], p < 0 ? 0 : start[p + 1] - start[p], start[s],
                start[s + 1] - start[s]};
}

/* Finds the sequence and its block for block b of all sequences' blocks of `size` tokens. The host
   does not know the number of blocks, and launches as many as there can be. */
static __device__ bool find_block(const int *start, int S, int size, int b, int *s, int *i) {
    const int lane = threadIdx.x % 32;
    for (int s0 = 0, before = 0; s0 < S; s0 += 32) {
        const int mine =
            s0 + lane < S ? (start[s0 + lane + 1] - start[s0 + lane] + size - 1) / size : 0;
        int sum = mine;
        for (int d = 1; d < 32; d *= 2) {
            const int below = __shfl_up_sync(ALL, sum, d);
            if (lane >= d) sum += below;
        }
        const unsigned past = __ballot_sync(ALL, before + sum > b);
        if (past) {
            const int at = __ffs((int)past) - 1;
            *s = s0 + at;
            *i = b - before - (__shfl_sync(ALL, sum, at) - __shfl_sync(ALL, mine, at));
            return true;
        }
        before += __shfl_sync(ALL, sum, 31);
    }
    return false;
}

/* The keys of head h in a sequence's rows. */
static __device__ RowsOf keys_of(const real *qkv, Rows r, int h, int NH, int hs) {
    const size_t C = (size_t)NH * (size_t)hs, at = C + (size_t)(h * hs);
    return RowsOf{qkv + (size_t)r.before * 3 * C + at, qkv + (size_t)r.own * 3 * C + at,
                  (int)(3 * C), r.P};
}

/* The blocks that shall fit on a multiprocessor, which limits their registers. Without a limit,
   nvcc 13.0 takes a few more, and one block less fits. */
[[maybe_unused]] static constexpr int forward_blocks(int hsp, bool drop) {
    return hsp < 32 ? 5 - drop : hsp < 64 ? 4 : hsp == 64 ? 4 - drop : hsp == 96 ? 3 : 2;
}
[[maybe_unused]] static constexpr int dq_blocks(int hsp, bool group) {
    return hsp < 32 ? 6 : hsp < 64 ? 5 : hsp == 64 ? 4 - group : hsp == 96 ? 3 : 2;
}

/* The blocks of the last queries, which have the most keys, are the first to run, so that no long
   one is left over at the end. */
template <int HSP, bool DROP, bool GROUP>
__global__ void __launch_bounds__(32 * ATTENTION_WARPS, forward_blocks(HSP, DROP))
    attention_forward_kernel(real *out, float *lse, const real *qkv, const int *start,
                             const int *parent, int S, int NH, int hs, bool eights, Noise noise) {
    int s, i;
    if (!find_block(start, S, KB, (int)(gridDim.x - 1 - blockIdx.x), &s, &i)) return;
    const Rows r = rows_of(start, parent, s);
    const int h = (int)blockIdx.y, n0 = r.own + i * KB, rows = min(KB, r.T - i * KB),
              w = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
    const size_t C = (size_t)NH * (size_t)hs;
    typedef Tile<HSP, GROUP> T;
    const Attended<T> a = attend<T, ATTENTION_WARPS, DROP>(
        qkv + (size_t)n0 * 3 * C + (size_t)(h * hs), 3 * C, rows, r.P + i * KB,
        keys_of(qkv, r, h, NH, hs), C, hs, eights, noise, n0, h, NH);
    put_sums<HSP>(out + (size_t)(n0 + w * 16) * C + (size_t)(h * hs), C, a.o, a.inverse[0],
                  a.inverse[1], rows - w * 16, hs);
    for (int k = 0; k < 2 && threadIdx.x % 4 == 0; k++) {
        const int row = w * 16 + g + k * 8;
        if (row < rows) lse[(size_t)(n0 + row) * (size_t)NH + (size_t)h] = a.lse[k];
    }
}

/* sums (N,NH) is what the backward pass needs of a query in a head: x = lse log2 e, and
   y = delta = dout . out, which the gradient of softmax subtracts. z and w make it 16 bytes, for
   cp_async16. Eight lanes per row and head, which add W products at a time. */
template <int W>
__global__ void attention_sums_kernel(float4 *sums, const real *dout, const real *out,
                                      const float *lse, int N, int NH, int hs) {
    const size_t item = (size_t)blockIdx.x * (THREADS / 8) + threadIdx.x / 8;
    const bool exists = item < (size_t)N * (size_t)NH;
    float sum = 0, x[W], y[W];
    for (int d = (int)(threadIdx.x % 8) * W; d < hs && exists; d += 8 * W) {
        get<W>(x, dout + item * (size_t)hs + d);
        get<W>(y, out + item * (size_t)hs + d);
        for (int k = 0; k < W; k++) sum = fmaf(x[k], y[k], sum);
    }
    for (int d = 4; d; d /= 2) sum += __shfl_xor_sync(ALL, sum, d);
    if (exists && threadIdx.x % 8 == 0) sums[item] = make_float4(lse[item] * LOG2_E, sum, 0, 0);
}

/*
 * p = softmax(scale q k^T), o = p v:
 *     dv = p^T do,  dp = do v^T,  ds = p (dp - delta),  dq = scale ds k,  dk = scale ds^T q
 *
 * For dq, a block of 64 queries loops over the keys. A warp takes 16 keys at a time, so that the
 * sums of its products need few registers. A warp group takes 64, the columns of its instruction.
 */
template <int HSP, bool DROP, bool GROUP>
__global__ void __launch_bounds__(32 * ATTENTION_WARPS, dq_blocks(HSP, GROUP))
    attention_dq_kernel(real *dqkv, const real *dout, const real *qkv, const float4 *sums,
                        const int *start, const int *parent, int S, int NH, int hs, bool eights,
                        Noise noise) {
    typedef Tile<HSP, GROUP> T;
    enum { LD = T::LD, SIZE = T::SIZE, W_ = ATTENTION_WARPS, ONCE = T::ONCE, NT = ONCE / 8 };
    int s_, i_;
    if (!find_block(start, S, KB, (int)(gridDim.x - 1 - blockIdx.x), &s_, &i_)) return;
    const Rows r = rows_of(start, parent, s_);
    const int h = (int)blockIdx.y, n0 = r.own + i_ * KB, q0 = r.P + i_ * KB,
              rows = min(KB, r.T - i_ * KB), end = q0 + rows;
    const int lane = threadIdx.x % 32, w = threadIdx.x / 32, g = lane / 4, t = lane % 4,
              first = q0 + w * 16;  // the warp's first query
    const size_t C = (size_t)NH * (size_t)hs;
    const float scale = 1.0f / sqrtf((float)hs), scale2 = scale * LOG2_E;
    const RowsOf keys = keys_of(qkv, r, h, NH, hs);
    SHARED_DYN(real, memory);
    if constexpr (T::GROUP) memory += to_swizzled(memory);
    real *const buffer = memory, *const own = buffer + OWN * SIZE;
    load_tile<T, W_, KB>(own, same_rows(qkv + (size_t)n0 * 3 * C + (size_t)(h * hs), 3 * C), 0,
                         rows, hs, eights);
    load_tile<T, W_, KB>(own + SIZE, same_rows(dout + (size_t)n0 * C + (size_t)(h * hs), C), 0,
                         rows, hs, eights);
    load_pair<T, W_>(buffer, keys, C, 0, end, hs, eights);
    cp_async_commit();
    float dq[HSP / 8][4] = {}, lse2[2], delta[2];
    for (int i = 0; i < 2; i++) {
        const int row = w * 16 + g + i * 8;
        const float4 x = row < rows ? sums[(size_t)(n0 + row) * (size_t)NH + (size_t)h]
                                    : make_float4(0, 0, 0, 0);
        lse2[i] = x.x;
        delta[i] = x.y;
    }
    loaded<T>();
    const Factor<T> Q = factor_of<T>(own + w * 16 * T::LD),
                    dO = factor_of<T>(own + SIZE + w * 16 * T::LD);
    for (int k0 = 0, stage = 0; k0 < end; k0 += KB, stage ^= 1) {
        loaded<T>();  // after it no warp reads the other buffer, which may be overwritten
        const real *const K = buffer + 2 * stage * SIZE, *const V = K + SIZE;
        real *const next = buffer + 2 * (stage ^ 1) * SIZE;
        if (k0 + KB < end) load_pair<T, W_>(next, keys, C, k0 + KB, end, hs, eights);
        cp_async_commit();
        for (int c = 0; c < KB; c += ONCE) {
            // these keys come after all queries of the warp; a group's warps stay together
            if (!GROUP && k0 + c >= first + 16) break;
            float s[NT][4], dp[NT][4];
            products_of_rows<T, NT>(s, Q, K + c * LD);
            products_of_rows<T, NT>(dp, dO, V + c * LD);
            arrived<T>(s);
            arrived<T>(dp);
            if (k0 + c + ONCE - 1 > first)  // some keys come after the query
#pragma unroll
                for (int j = 0; j < NT; j++)
                    for (int i = 0; i < 4; i++) {
                        const int key = k0 + c + 8 * j + 2 * t + i % 2,
                                  query = first + g + i / 2 * 8;
                        s[j][i] = key <= query ? s[j][i] : -INFINITY;
                        dp[j][i] = key <= query ? dp[j][i] : 0;
                    }
#pragma unroll
            for (int j = 0; j < NT; j++) {
                float keep[4];
                if constexpr (DROP)
                    keep_by_query(keep, noise, n0 + min(w * 16 + g, rows - 1),
                                  n0 + min(w * 16 + g + 8, rows - 1), k0 + c + 8 * j + 2 * t, h,
                                  NH);
                for (int i = 0; i < 4; i++) {
                    const float p = exp2_approx(fmaf(s[j][i], scale2, -lse2[i / 2]));
                    if constexpr (DROP) dp[j][i] *= keep[i];
                    s[j][i] = p * (dp[j][i] - delta[i / 2]);  // ds
                }
            }
            add_product<T, NT>(dq, s, K + c * LD);
            arrived<T>(dq);
        }
    }
    put_sums<HSP>(dqkv + (size_t)(n0 + w * 16) * 3 * C + (size_t)(h * hs), 3 * C, dq, scale, scale,
                  rows - w * 16, hs);
}

/* For dk and dv, a block of 64 keys loops over the queries that attend to them: those of its own
   sequence, then those of its continuations, in order. So one block adds the gradients of shared
   keys, without atomics. In return s and dp are computed twice. They are transposed: a warp has 16
   keys, and takes 16 queries at a time, or 64 in a warp group. A query's sums are in the 16 bytes
   that its row of the tile has more. Three blocks shall fit on a multiprocessor, or two if they are
   warp groups or their heads are larger. */
template <int HSP, bool DROP, bool GROUP>
__global__ void __launch_bounds__(32 * ATTENTION_WARPS, HSP <= 64 && !GROUP ? 3 : 2)
    attention_dkv_kernel(real *dqkv, const real *dout, const real *qkv, const float4 *sums,
                         const int *start, const int *parent, int S, int NH, int hs, bool eights,
                         Noise noise) {
    typedef Tile<HSP, GROUP> T;
    enum { LD = T::LD, SIZE = T::SIZE, W_ = ATTENTION_WARPS, ONCE = T::ONCE, NT = ONCE / 8 };
    int s_, i_;
    if (!find_block(start, S, KB, (int)blockIdx.x, &s_, &i_)) return;
    const Rows mine = rows_of(start, parent, s_);
    const int h = (int)blockIdx.y, m0 = mine.own + i_ * KB, k0 = mine.P + i_ * KB,
              keys = min(KB, mine.T - i_ * KB);
    const int lane = threadIdx.x % 32, w = threadIdx.x / 32, g = lane / 4, t = lane % 4,
              first = k0 + w * 16;  // the warp's first key
    const size_t C = (size_t)NH * (size_t)hs;
    const float scale = 1.0f / sqrtf((float)hs), scale2 = scale * LOG2_E;
    SHARED_DYN(real, memory);
    if constexpr (T::GROUP) memory += to_swizzled(memory);
    real *const buffer = memory, *const own = buffer + OWN * SIZE,
                *const out = dqkv + (size_t)(m0 + w * 16) * 3 * C + (size_t)(h * hs);
    // Starts to copy the queries from token `from` of sequence s on.
    auto load = [&](real *to, int s, int from) {
        const Rows r = rows_of(start, parent, s);
        const int n0 = r.own + from, rows = min(KB, r.T - from), i = (int)threadIdx.x;
        load_tile<T, W_, KB>(to, same_rows(qkv + (size_t)n0 * 3 * C + (size_t)(h * hs), 3 * C), 0,
                             rows, hs, eights);
        load_tile<T, W_, KB>(to + SIZE, same_rows(dout + (size_t)n0 * C + (size_t)(h * hs), C), 0,
                             rows, hs, eights);
        if (i < rows)
            cp_async16(T::more(to, i), sums + (size_t)(n0 + i) * (size_t)NH + (size_t)h);
        else if (i < KB)
            *(float4 *)(void *)T::more(to, i) = make_float4(0, 0, 0, 0);
    };
    // Moves on to the next block of queries. There is none if *s becomes S.
    auto advance = [&](int *s, int *from) {
        *from += KB;
        while (*s < S && *from >= start[*s + 1] - start[*s]) {
            do ++*s;
            while (*s < S && !(parent && parent[*s] == s_));
            *from = 0;
        }
    };
    int s = s_, from = i_ * KB;
    load_pair<T, W_>(own, same_rows(qkv + (size_t)m0 * 3 * C + C + (size_t)(h * hs), 3 * C), C, 0,
                     keys, hs, eights);
    load(buffer, s, from);
    cp_async_commit();
    loaded<T>();
    const Factor<T> K = factor_of<T>(own + w * 16 * T::LD),
                    V = factor_of<T>(own + SIZE + w * 16 * T::LD);
    float dk[HSP / 8][4] = {}, dv[HSP / 8][4] = {};
    for (int stage = 0; s < S; stage ^= 1) {
        loaded<T>();  // after it no warp reads the other buffer, which may be overwritten
        const real *const Q = buffer + 2 * stage * SIZE, *const dO = Q + SIZE;
        const Rows r = rows_of(start, parent, s);
        const int n0 = r.own + from, q0 = r.P + from, rows = min(KB, r.T - from);
        advance(&s, &from);
        if (s < S) load(buffer + 2 * (stage ^ 1) * SIZE, s, from);
        cp_async_commit();
        for (int c = 0; c < rows; c += ONCE) {
            // these queries come before all keys of the warp
            if (!GROUP && q0 + c + 15 < first) continue;
            float p[NT][4], ds[NT][4];
            products_of_rows<T, NT>(p, K, Q + c * LD);
            products_of_rows<T, NT>(ds, V, dO + c * LD);  // dp
            arrived<T>(p);
            arrived<T>(ds);
            if (first + 15 > q0 + c)  // some keys come after the query
#pragma unroll
                for (int j = 0; j < NT; j++)
                    for (int i = 0; i < 4; i++) {
                        const int key = first + g + i / 2 * 8,
                                  query = q0 + c + 8 * j + 2 * t + i % 2;
                        p[j][i] = key <= query ? p[j][i] : -INFINITY;
                        ds[j][i] = key <= query ? ds[j][i] : 0;
                    }
#pragma unroll
            for (int j = 0; j < NT; j++) {
                const int column = c + 8 * j + 2 * t;
                const float2 sums_[2] = {*(const float2 *)(const void *)(T::more(Q, column)),
                                         *(const float2 *)(const void *)(T::more(Q, column + 1))};
                float keep[4];
                if constexpr (DROP)
                    keep_by_key(keep, noise, n0 + min(column, rows - 1),
                                n0 + min(column + 1, rows - 1), first + g, h, NH);
                for (int i = 0; i < 4; i++) {
                    p[j][i] = exp2_approx(fmaf(p[j][i], scale2, -sums_[i % 2].x));
                    if constexpr (DROP) ds[j][i] *= keep[i];
                    ds[j][i] = p[j][i] * (ds[j][i] - sums_[i % 2].y);
                    if constexpr (DROP) p[j][i] *= keep[i];
                }
            }
            add_product<T, NT>(dv, p, dO + c * LD);
            add_product<T, NT>(dk, ds, Q + c * LD);
            arrived<T>(dv);
            arrived<T>(dk);
        }
    }
    put_sums<HSP>(out + C, 3 * C, dk, scale, scale, keys - w * 16, hs);
    put_sums<HSP>(out + 2 * C, 3 * C, dv, 1, 1, keys - w * 16, hs);
}

static bool whole_chunks(int hs) { return (size_t)hs * sizeof(real) % 16 == 0; }

/* Requests shared memory for a kernel, and returns its size. Only 48 KiB per block need no request.
 */
template <size_t bytes, class K>
static size_t allow(K kernel) {
    static_assert(bytes <= SHARED_OF_ANY_GPU, "some GPUs have less shared memory");
    CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    return bytes;
}

struct AttentionForward {
    real *out;
    float *lse;
    const real *qkv;
    const int *start, *parent;
    int N, S, NH, hs;
    Noise noise;
    template <int HSP, bool GROUP>
    void at(void) const {
        auto kernel = noise.p > 0 ? attention_forward_kernel<HSP, true, GROUP>
                                  : attention_forward_kernel<HSP, false, GROUP>;
        const size_t bytes = allow<shared_bytes(1, HSP, GROUP)>(kernel);
        LAUNCH(kernel, dim3((unsigned)(N / KB + S), (unsigned)NH), 32 * ATTENTION_WARPS, bytes,
               stream, out, lse, qkv, start, parent, S, NH, hs, whole_chunks(hs) && aligned(qkv),
               noise);
    }
};

struct AttentionBackward {
    real *dqkv;
    const real *dout, *qkv, *out;
    const float *lse;
    float4 *sums;
    const int *start, *parent;
    int N, S, NH, hs;
    Noise noise;
    template <int HSP, bool GROUP>
    void at(void) const {
        auto add =
            hs % 8 == 0 && aligned(dout, out) ? attention_sums_kernel<8> : attention_sums_kernel<1>;
        LAUNCH(add, blocks_for((size_t)N * (size_t)NH, THREADS / 8), THREADS, 0, stream, sums, dout,
               out, lse, N, NH, hs);
        const dim3 grid((unsigned)(N / KB + S), (unsigned)NH);
        const bool eights = whole_chunks(hs) && aligned(qkv, dout);
        const bool drop = noise.p > 0;
        auto dq =
            drop ? attention_dq_kernel<HSP, true, GROUP> : attention_dq_kernel<HSP, false, GROUP>;
        const size_t bytes = allow<shared_bytes(2, HSP, GROUP)>(dq);
        LAUNCH(dq, grid, 32 * ATTENTION_WARPS, bytes, stream, dqkv, dout, qkv, sums, start, parent,
               S, NH, hs, eights, noise);
        auto dkv =
            drop ? attention_dkv_kernel<HSP, true, GROUP> : attention_dkv_kernel<HSP, false, GROUP>;
        allow<shared_bytes(2, HSP, GROUP)>(dkv);
        LAUNCH(dkv, grid, 32 * ATTENTION_WARPS, bytes, stream, dqkv, dout, qkv, sums, start, parent,
               S, NH, hs, eights, noise);
    }
};

/*
 * Does attention by warp groups give the bits of attention by warps on this GPU? Decoding needs
 * them, because it has fewer queries than a warp group takes. On Hopper both instructions add 16
 * products and the sum before them in one step, of which they keep the same 25 bits (Xie et al.
 * 2025, arXiv 2511.10909, compared with a GPU). NVIDIA does not promise this. So both are run once
 * and compared, on two sequences and a continuation of one, whose numbers have sizes of 2^-22 to 4.
 * Dropout has kernels of its own, so they run, too.
 */
static bool same_attention(void) {
    enum { S = 3, N = 210, HS = 64 };
    const int start[S + 1] = {0, 100, 170, N}, parent[S] = {-1, -1, 0};
    struct {
        float4 sums[N];
        float lse[2][N];
        int start[S + 1], parent[S], zeros[N];
        alignas(16) real qkv[N][3 * HS], dout[N][HS], out[2][N][HS], dqkv[2][N][3 * HS];
    } * on_gpu, *seen;
    if (sizeof *on_gpu > device_memory_free()) return false;  // cannot be tried
    on_gpu = (decltype(on_gpu))device_alloc(sizeof *on_gpu);
    if (!on_gpu) return false;
    device_write(on_gpu->start, start, sizeof start);
    device_write(on_gpu->parent, parent, sizeof parent);
    for (real *x : {on_gpu->qkv[0], on_gpu->dout[0]}) {
        const uint32_t columns = x == on_gpu->qkv[0] ? 3 * HS : HS;
        each(Cancelling{x, columns, columns, false, false}, N * columns, false);
        scale(x, 0x1p-22f, N * columns);
    }
    seen = (decltype(seen))xmalloc(sizeof *seen);
    bool same = true;
    for (float p : {0.0f, 0.5f}) {
        Noise noise = {};
        noise.p = p;
        noise.sequence = (const uint32_t *)on_gpu->zeros;
        noise.position = on_gpu->zeros;
        for (int i = 0; i < 2; i++) {
            const AttentionForward forward = {on_gpu->out[i][0],
                                              on_gpu->lse[i],
                                              on_gpu->qkv[0],
                                              on_gpu->start,
                                              on_gpu->parent,
                                              N,
                                              S,
                                              1,
                                              HS,
                                              noise};
            const AttentionBackward backward = {on_gpu->dqkv[i][0],
                                                on_gpu->dout[0],
                                                on_gpu->qkv[0],
                                                on_gpu->out[i][0],
                                                on_gpu->lse[i],
                                                on_gpu->sums,
                                                on_gpu->start,
                                                on_gpu->parent,
                                                N,
                                                S,
                                                1,
                                                HS,
                                                noise};
            if constexpr (!FP32) {
                i ? forward.at<HS, true>() : forward.at<HS, false>();
                i ? backward.at<HS, true>() : backward.at<HS, false>();
            }
        }
        device_read(seen, on_gpu, sizeof *seen);
        same = same && !memcmp(seen->lse[0], seen->lse[1], sizeof seen->lse[0]) &&
               !memcmp(seen->out[0], seen->out[1], sizeof seen->out[0]) &&
               !memcmp(seen->dqkv[0], seen->dqkv[1], sizeof seen->dqkv[0]);
    }
    free(seen);
    device_free(on_gpu, sizeof *on_gpu);
    return same;
}

/* The Makefile compiles the instructions of warp groups for Hopper, whose major version is 9. */
static bool group_serves(void) {
    static bool tried, serves;
    if (!tried) {
        tried = true;
        serves = !FP32 && properties.major == 9 && same_attention();
    }
    return serves;
}

/* Calls f.at<HSP, GROUP>(), with hs rounded up to a size that the kernels are compiled for. */
template <class F>
static void with_head_size(int hs, F f) {
    if (hs <= 16)
        f.template at<16, false>();
    else if (hs <= 32)
        f.template at<32, false>();
    else if (hs <= 64 && group_serves())
        f.template at<64, !FP32>();
    else if (hs <= 64)
        f.template at<64, false>();
    else if (hs <= 96)
        f.template at<96, false>();
    else if (hs <= 128)
        f.template at<128, false>();
    else
        die_usage("heads of %d numbers; the GPU's attention has been made for at most 128", hs);
}

void attention_forward(real *out, float *lse, const real *qkv, const int *start, const int *parent,
                       int N, int S, int NH, int hs, Noise noise) {
    if (N) with_head_size(hs, AttentionForward{out, lse, qkv, start, parent, N, S, NH, hs, noise});
}

void attention_backward(real *dqkv, const real *dout, const real *qkv, const real *out,
                        const float *lse, const int *start, const int *parent, int N, int S, int NH,
                        int hs, Noise noise) {
    if (!N) return;
    float4 *sums = (float4 *)workspace(sizeof *sums * (size_t)N * (size_t)NH);
    with_head_size(
        hs, AttentionBackward{dqkv, dout, qkv, out, lse, sums, start, parent, N, S, NH, hs, noise});
}

/* A cache contains keys and values (slots,NH,2,positions,hs). */
static size_t cached_head(int positions, int hs) { return (size_t)positions * (size_t)hs; }

size_t cache_bytes(int slots, int positions, int NH, int hs) {
    return (size_t)slots * (size_t)NH * 2 * cached_head(positions, hs) * sizeof(real);
}

struct PutKeyValue {
    real *cache;
    const real *qkv;
    const int *slot, *position;
    size_t head;
    int NH, hs;
    template <int W>
    __device__ void at(size_t i) const {
        const size_t C = (size_t)NH * (size_t)hs, n = i / C, h = i % C / (size_t)hs,
                     d = i % C % (size_t)hs;
        real *to = cache + ((size_t)slot[n] * (size_t)NH + h) * 2 * head +
                   (size_t)position[n] * (size_t)hs + d;
        float x[W];
        get<W>(x, qkv + n * 3 * C + C + i % C);
        put<W>(to, x);
        get<W>(x, qkv + n * 3 * C + 2 * C + i % C);
        put<W>(to + head, x);
    }
};

enum { CACHED_ROWS = 16 };  // of a block: what one warp's mma_bf16 has

template <int HSP>
__global__ void attention_cached_kernel(real *out, const real *cache, const real *qkv,
                                        const int *start, const int *slot, const int *position,
                                        int S, size_t head, int NH, int hs, bool eights) {
    int s = (int)blockIdx.x, i = 0;
    if ((int)gridDim.x != S && !find_block(start, S, CACHED_ROWS, s, &s, &i)) return;
    const int h = (int)blockIdx.y, first = start[s] + i * CACHED_ROWS,
              rows = min(CACHED_ROWS, start[s + 1] - first);
    const size_t C = (size_t)NH * (size_t)hs, n = (size_t)first;
    const real *keys = cache + ((size_t)slot[n] * (size_t)NH + (size_t)h) * 2 * head;
    const Noise none = {};
    typedef Tile<HSP, false> T;
    const Attended<T> a =
        attend<T, 1, false>(qkv + n * 3 * C + (size_t)(h * hs), 3 * C, rows, position[n],
                            same_rows(keys, (size_t)hs), head, hs, eights, none, 0, h, NH);
    put_sums<HSP>(out + n * C + (size_t)(h * hs), C, a.o, a.inverse[0], a.inverse[1], rows, hs);
}

struct AttentionCached {
    real *out;
    const real *cache, *qkv;
    const int *start, *slot, *position;
    int N, S;
    size_t head;
    int NH, hs;
    template <int HSP, bool GROUP>
    void at(void) const {
        auto kernel = attention_cached_kernel<HSP>;
        const size_t bytes = allow<shared_bytes(1, HSP, false)>(kernel);
        // if each sequence has one row, or if there are fewer than 16 rows, each has one block
        const int blocks = N == S ? S : N / CACHED_ROWS + S;
        LAUNCH(kernel, dim3((unsigned)blocks, (unsigned)NH), 32, bytes, stream, out, cache, qkv,
               start, slot, position, S, head, NH, hs, whole_chunks(hs) && aligned(cache, qkv));
    }
};

void attention_cached(real *out, real *cache, const real *qkv, const int *start, const int *slot,
                      const int *position, int N, int S, int positions, int NH, int hs) {
    if (!N) return;
    const size_t head = cached_head(positions, hs);
    each(PutKeyValue{cache, qkv, slot, position, head, NH, hs}, (size_t)N * (size_t)NH * (size_t)hs,
         hs % 8 == 0 && aligned(cache, qkv));
    with_head_size(hs, AttentionCached{out, cache, qkv, start, slot, position, N, S, head, NH, hs});
}

/* ---- The loss head --------------------------------------------------------------------------- */

struct Gather {  // out[r] = inp[row[r]], or, scatter, out[row[r]] = inp[r]
    real *out;
    const real *inp;
    const int *row;
    size_t C;
    bool scatter;
    template <int W>
    __device__ void at(size_t i) const {
        const size_t there = (size_t)row[i / C] * C + i % C;
        float x[W];
        get<W>(x, inp + (scatter ? i : there));
        put<W>(out + (scatter ? there : i), x);
    }
};

void gather_rows(real *out, const real *inp, const int *row, int R, int C) {
    each(Gather{out, inp, row, (size_t)C, false}, (size_t)R * (size_t)C,
         C % 8 == 0 && aligned(out, inp));
}

void scatter_rows(real *out, const real *inp, const int *row, int R, int C) {
    each(Gather{out, inp, row, (size_t)C, true}, (size_t)R * (size_t)C,
         C % 8 == 0 && aligned(out, inp));
}

struct ScaleRows {
    real *x;
    const float *factor;
    size_t C;
    template <int W>
    __device__ void at(size_t i) const {
        float a[W];
        get<W>(a, x + i);
        for (int k = 0; k < W; k++) a[k] *= factor[i / C];
        put<W>(x + i, a);
    }
};

void scale_rows(real *x, const float *factor, int R, int C) {
    each(ScaleRows{x, factor, (size_t)C}, (size_t)R * (size_t)C, C % 8 == 0 && aligned(x));
}

/* The stride of a row of logits is a multiple of 16 bytes, but cuBLASLt's kernels for tensor cores
   want this of the dimensions as well, and GPT-2 has 50,257 tokens, an odd number. So products are
   over 50,304: of whole tiles, with rows of wte and columns of dlogits that are zero. */
int vocabulary_rows(int V) { return (V + 63) / 64 * 64; }

void head_forward(real *logits, const real *inp, const real *wte, int R, int C, int V, int ldv) {
    product(R, V, C, Matrix{inp, (size_t)C, false}, Matrix{wte, (size_t)C, true}, logits,
            (size_t)ldv, (const real *)NULL, false, false);
}

void head_backward(real *dinp, float *dwte, const real *dlogits, const real *inp, const real *wte,
                   int R, int C, int V, int ldv) {
    // logits = inp wte^T:  dinp = dlogits wte,  dwte = dlogits^T inp
    if (dinp)
        product(R, C, V, Matrix{dlogits, (size_t)ldv, false}, Matrix{wte, (size_t)C, false}, dinp,
                (size_t)C, (const real *)NULL, false, false);
    if (dwte)
        product(V, C, R, Matrix{dlogits, (size_t)ldv, true}, Matrix{inp, (size_t)C, false}, dwte,
                (size_t)C, (const real *)NULL, true, true);
}

/* Thread i of a block processes elements [8i, 8i+8) + 8 THREADS j of a row, for any alignment of
   the row, so sums over a row have one order. Calls f(j, x_j) for the elements of this thread. If x
   is not const, f may change x_j. */
template <class T, class F>
static __device__ void each_of_row(T *x, int V, F f) {
    const bool eights = (size_t)(uintptr_t)x % 16 == 0;
    for (int j0 = 8 * (int)threadIdx.x; j0 < V; j0 += 8 * THREADS) {
        float v[8];
        const bool whole = eights && j0 + 8 <= V;
        if (whole)
            get<8>(v, x + j0);
        else
            for (int k = 0; k < 8; k++) v[k] = j0 + k < V ? get(x + j0 + k) : 0;
        for (int k = 0; k < 8; k++)
            if (j0 + k < V) f(j0 + k, v[k]);
        if constexpr (!std::is_const_v<T>) {
            if (whole)
                put<8>(x + j0, v);
            else
                for (int k = 0; k < 8 && j0 + k < V; k++) put(x + j0 + k, v[k]);
        }
    }
}

/* The largest element of a row and its lowest index, returned to every thread. A NaN is never the
   largest, but makes the sums below NaN. */
static __device__ float row_max(const real *x, int V, int *where) {
    SHARED(float, tops, [WARPS]);
    SHARED(int, places, [WARPS]);
    float top = -INFINITY;
    int place = 0x7fffffff;
    each_of_row(x, V, [&](int j, float v) {
        if (v > top) {
            top = v;
            place = j;
        }
    });
    for (int d = 16; d; d /= 2) {
        const float other = __shfl_xor_sync(ALL, top, d);
        const int there = __shfl_xor_sync(ALL, place, d);
        if (other > top || (other == top && there < place)) {
            top = other;
            place = there;
        }
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        tops[threadIdx.x / 32] = top;
        places[threadIdx.x / 32] = place;
    }
    __syncthreads();
    top = tops[0];
    place = places[0];
    for (int w = 1; w < WARPS; w++)
        if (tops[w] > top || (tops[w] == top && places[w] < place)) {
            top = tops[w];
            place = places[w];
        }
    *where = place < V ? place : 0;
    return top;
}

/* Returns sum_j e^((x_j - top) beta). *weighted, unless NULL, becomes sum_j e^(..) (x_j - top)
 * beta. */
static __device__ double row_sum(const real *x, int V, float top, float beta, double *weighted) {
    float sum = 0, more = 0;
    each_of_row(x, V, [&](int, float v) {
        const float d = (v - top) * beta, e = expf(d);
        sum += e;
        if (weighted) more = fmaf(e, fmaxf(-1e4f, d), more);  // 0 * -infinity would be NaN
    });
    if (weighted) *weighted = block_sum((double)more);
    return block_sum((double)sum);
}

__global__ void logprob_forward_kernel(float *logp, float *entropy, float *lse, int *best,
                                       const real *logits, const int *target, float beta, int V,
                                       int ldv) {
    const size_t r = blockIdx.x;
    const real *x = logits + r * (size_t)ldv;
    int where;
    double weighted;
    const float top = row_max(x, V, &where);
    const double sum = row_sum(x, V, top, beta, entropy ? &weighted : (double *)NULL),
                 log_sum = log(sum);
    if (threadIdx.x) return;
    lse[r] = (float)((double)top * (double)beta + log_sum);
    logp[r] = (float)((double)(get(x + target[r]) - top) * (double)beta -
                      log_sum);  // the same bits as in sample()
    if (entropy)
        entropy[r] =
            (float)(log_sum - weighted / sum);  // -sum p log p, log p = (x - top) beta - log_sum
    if (best) best[r] = where;
}

void logprob_forward(float *logp, float *entropy, float *lse, int *best, const real *logits,
                     const int *target, float beta, int R, int V, int ldv) {
    if (R)
        LAUNCH(logprob_forward_kernel, (unsigned)R, THREADS, 0, stream, logp, entropy, lse, best,
               logits, target, beta, V, ldv);
}

__global__ void logprob_backward_kernel(real *logits, const float *lse, const float *entropy,
                                        const int *target, const float *dlogp,
                                        const float *dentropy, float beta, int V, int ldv) {
    const size_t r = blockIdx.x;
    real *x = logits + r * (size_t)ldv;
    for (int j = V + (int)threadIdx.x; j < ldv; j += THREADS) put(x + j, 0);
    const float lse_ = lse[r], dlogp_ = dlogp[r], dentropy_ = dentropy ? dentropy[r] : 0,
                entropy_ = dentropy_ != 0 ? entropy[r] : 0;
    const int target_ = target[r];
    each_of_row(x, V, [&](int j, float &v) {
        // log p_j = beta x_j - lse:   d log p[target] / d x_j = beta (1[j = target] - p_j)
        // entropy = -sum p log p:   d entropy / d x_j = -beta p_j (log p_j + entropy)
        const float log_p = beta * v - lse_, p = expf(log_p);
        float d = (j == target_ ? dlogp_ : 0) - p * dlogp_;
        if (dentropy_ != 0) d -= p * dentropy_ * (fmaxf(-1e4f, log_p) + entropy_);
        v = beta * d;
    });
}

void logprob_backward(real *logits, const float *lse, const float *entropy, const int *target,
                      const float *dlogp, const float *dentropy, float beta, int R, int V,
                      int ldv) {
    if (R)
        LAUNCH(logprob_backward_kernel, (unsigned)R, THREADS, 0, stream, logits, lse, entropy,
               target, dlogp, dentropy, beta, V, ldv);
}

__global__ void kl_kernel(float *kl, const real *logits_p, const float *lse_p, const real *logits_q,
                          const float *lse_q, float beta, int V, int ldv) {
    const size_t r = blockIdx.x;
    const real *y = logits_q + r * (size_t)ldv;
    float sum = 0;
    each_of_row(logits_p + r * (size_t)ldv, V, [&](int j, float v) {
        const float log_p = beta * v - lse_p[r], p = expf(log_p),
                    log_q = beta * get(y + j) - lse_q[r];
        if (p != 0)
            sum += p * (log_p - log_q);  // the term is 0 where p is 0, even if a logit of -infinity
                                         // makes the difference NaN
    });
    const double total = block_sum((double)sum);
    if (threadIdx.x == 0) kl[r] = (float)total;
}

void kl_forward(float *kl, const real *logits_p, const float *lse_p, const real *logits_q,
                const float *lse_q, float beta, int R, int V, int ldv) {
    if (R)
        LAUNCH(kl_kernel, (unsigned)R, THREADS, 0, stream, kl, logits_p, lse_p, logits_q, lse_q,
               beta, V, ldv);
}

__global__ void difference_kernel(float *row, const real *a, const real *b, int V, int ldv) {
    SHARED(float, tops, [WARPS]);
    const size_t at = blockIdx.x * (size_t)ldv;
    float top = 0;
    for (int j = (int)threadIdx.x; j < V; j += THREADS) {
        const float d = fabsf(get(a + at + j) - (b ? get(b + at + j) : 0));
        top = d > top || d != d ? (d != d ? INFINITY : d) : top;
    }
    top = warp_max(top);
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < WARPS; w++) top = fmaxf(top, tops[w]);
    row[blockIdx.x] = top;
}

float largest_difference(const real *a, const real *b, int R, int V, int ldv) {
    if (!R) return 0;
    float *row = (float *)workspace(sizeof *row * (size_t)R),
          *host = (float *)xmalloc(sizeof *host * (size_t)R), top = 0;
    LAUNCH(difference_kernel, (unsigned)R, THREADS, 0, stream, row, a, b, V, ldv);
    device_read(host, row, sizeof *host * (size_t)R);
    for (int r = 0; r < R; r++) top = fmaxf(top, host[r]);
    free(host);
    return top;
}

/* ---- The scalar head: one warp per row ------------------------------------------------------- */

__global__ void value_forward_kernel(float *value, const real *inp, const real *weight,
                                     const real *bias, int N, int C) {
    const int n = (int)(blockIdx.x * WARPS + threadIdx.x / 32), lane = threadIdx.x % 32;
    if (n >= N) return;
    float sum = 0;
    for (int c = lane; c < C; c += 32)
        sum = fmaf(get(inp + (size_t)n * (size_t)C + c), get(weight + c), sum);
    sum = warp_sum(sum);
    if (lane == 0) value[n] = sum + (bias ? get(bias) : 0);
}

void value_forward(float *value, const real *inp, const real *weight, const real *bias, int N,
                   int C) {
    if (N)
        LAUNCH(value_forward_kernel, blocks_for((size_t)N, WARPS), THREADS, 0, stream, value, inp,
               weight, bias, N, C);
}

struct ValueBackward {
    real *dinp;
    const float *dvalue;
    const real *weight;
    size_t C;
    template <int W>
    __device__ void at(size_t i) const {
        const float d = dvalue[i / C];
        if (d != 0) put(dinp + i, fmaf(d, get(weight + i % C), get(dinp + i)));
    }
};

struct ValueColumn {
    const float *dvalue;
    const real *inp;
    size_t C;
    template <int W>
    __device__ void at(float2 sums[W], int n, int c) const {
        const float d = dvalue[n];
        float x[W];
        get<W>(x, inp + (size_t)n * C + (size_t)c);
        for (int k = 0; k < W; k++) sums[k] = make_float2(d != 0 ? d * x[k] : 0, 0);
    }
    bool eights(void) const { return aligned(inp); }
};

void value_backward(real *dinp, float *dweight, float *dbias, const float *dvalue, const real *inp,
                    const real *weight, int N, int C) {
    // value[n] = sum_c inp[n][c] weight[c] + bias
    each(ValueBackward{dinp, dvalue, weight, (size_t)C}, (size_t)N * (size_t)C, false);
    add_column_sums(dweight, (float *)NULL, ValueColumn{dvalue, inp, (size_t)C}, N, C);
    add_column_sums(dbias, (float *)NULL, Column<float>{dvalue, 1}, N, 1);
}

/* ---- Sampling: one block per row ------------------------------------------------------------- */

/*
 * Tokens are ordered by descending logit, and by ascending id where logits are equal. top_k and
 * top_p select a prefix of that order, which is identified by its last token. A token's key is an
 * integer that falls in this order: its upper bits are those of the logit, and the lower ones the
 * complement of the id. The last token's key is found by radix selection, DIGIT bits at a time from
 * the highest on. One pass over the row sorts the tokens whose higher bits are those found into
 * bins, and the sums of the bins say in which the prefix ends.
 *
 * GPT-2 has 50,257 tokens, whose ids have 4 digits. A logit has 4 in bf16 and 8 in fp32. So top_k
 * takes 8 or 12 passes, and top_p one more, for the total of the weights (computed). Bisection took
 * 48 and 49.
 *
 * Each thread has bins of its own. Atomic additions to common bins would queue, because most logits
 * of a row have the same upper bits. Weights are added as integers, so that sums are exact: tokens
 * divided into other bins in the next pass still have the same sum.
 */
enum { DIGIT = 4, DIGITS = 1 << DIGIT, ORDER_BITS = FP32 ? 32 : 16 };

/* Maps a number to an integer of ORDER_BITS bits of the same order. +0 and -0 map to the same
   integer. A number of bf16 has 16 bits that are 0, which become 0 or, if it is negative, 1. */
static __device__ uint32_t order_of(float x) {
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return (bits >> 31 ? ~bits : bits | 0x80000000u) >> (32 - ORDER_BITS);
}

struct Tokens {  // those of a row
    const real *x;
    int V, id_bits;  // the bits of an id, rounded up to digits
    float top, beta;
    __device__ uint64_t key(int id, float v) const {
        return (uint64_t)order_of(v) << id_bits | ((1u << id_bits) - 1 - (uint32_t)id);
    }
    /* e^(beta (v - top)), at most 1, in units of 2^-44. So 2^19 weights, which are as many as can
       be sampled from, are at most 2^63. NaN has no weight. */
    __device__ uint64_t weight(float v) const {
        const float w = expf((v - top) * beta);
        return w > 0 ? (uint64_t)(fminf(w, 1) * 0x1p44f) : 0;
    }
};

/* The key of the last token of the shortest prefix that has a token and counts for `enough`. A
   token counts for 1 or, if weighed, for its weight. */
static __device__ uint64_t last_of(const Tokens &row, bool weighed, uint64_t enough) {
    SHARED(uint64_t, bins, [DIGITS][THREADS]);
    SHARED(uint64_t, sums, [DIGITS]);
    const int lane = threadIdx.x % 32, w = threadIdx.x / 32;
    uint64_t found = 0, before = 0;  // before: what the tokens of larger keys count for
    for (int shift = ORDER_BITS + row.id_bits - DIGIT; shift >= 0; shift -= DIGIT) {
        for (int d = 0; d < DIGITS; d++) bins[d][threadIdx.x] = 0;
        each_of_row(row.x, row.V, [&](int j, float v) {
            const uint64_t key = row.key(j, v);
            if ((key ^ found) >> shift >> DIGIT) return;
            bins[key >> shift & (DIGITS - 1)][threadIdx.x] += weighed ? row.weight(v) : 1;
        });
        __syncthreads();  // the bins are full
        for (int d = w; d < DIGITS; d += WARPS) {
            uint64_t sum = 0;
            for (int i = lane; i < THREADS; i += 32) sum += bins[d][i];
            sum = warp_sum(sum);
            if (lane == 0) sums[d] = sum;
        }
        __syncthreads();  // the sums are there, and the bins no longer read
        int d = DIGITS - 1;
        while (d > 0 && before + sums[d] < max(enough, (uint64_t)1)) before += sums[d--];
        found |= (uint64_t)d << shift;
    }
    return found;
}

enum { SEGMENT = 512, SEGMENTS = 1024 };  // of ids; 16 per lane

struct Drawn {
    int token;
    float logp;
};

/* Selects as row r's token the one at which the cumulative sum over ids exceeds uniform * total:
   finds first the segment, then the lane, then the id. */
__global__ void sample_kernel(Drawn *out, const real *logits, const float *uniform, int V, int ldv,
                              float temperature, int top_k, float top_p) {
    SHARED(double, sums, [SEGMENTS]);
    const real *x = logits + blockIdx.x * (size_t)ldv;
    const float beta = temperature > 0 ? 1.0f / temperature : 1.0f;
    const int lane = threadIdx.x % 32, w = threadIdx.x / 32, segments = (V + SEGMENT - 1) / SEGMENT;
    int where;
    const float top = row_max(x, V, &where);
    const double log_sum = log(row_sum(x, V, top, beta, (double *)NULL));
    int drawn = where;
    if (temperature > 0 && top_k != 1) {
        const Tokens row = {x, V, (32 - __clz((V - 1) | 1) + DIGIT - 1) / DIGIT * DIGIT, top, beta};
        uint64_t last = 0;  // all tokens
        if (top_k > 0 && top_k < V) last = last_of(row, false, (uint64_t)top_k);
        if (top_p < 1) {
            uint64_t total = 0;
            each_of_row(
                x, V, [&](int j, float v) { total += row.key(j, v) >= last ? row.weight(v) : 0; });
            total = block_sum(total);
            last = max(last, last_of(row, true, (uint64_t)ceil((double)top_p * (double)total)));
        }
        auto weight = [&](int j) {
            const float v = j < V ? get(x + j) : 0;
            return j < V && row.key(j, v) >= last ? (double)expf((v - top) * beta) : 0.0;
        };
        for (int s = w; s < segments; s += WARPS) {
            double sum = 0;
            for (int k = 0; k < SEGMENT / 32; k++)
                sum += weight(s * SEGMENT + lane * (SEGMENT / 32) + k);
            sum = warp_sum(sum);
            if (lane == 0) sums[s] = sum;
        }
        __syncthreads();
        if (w) return;
        double total = 0, sum = 0;
        for (int s = 0; s < segments; s++) total += sums[s];
        const double wanted = (double)uniform[blockIdx.x] * total;
        int segment = 0;
        for (int s = 0; s < segments;
             s++) {  // if rounding leaves the sum short, the last segment that has any weight
            if (sums[s] > 0) segment = s;
            if (sum + sums[s] > wanted) break;
            sum += sums[s];
        }
        sum = 0;
        for (int s = 0; s < segment; s++) sum += sums[s];
        const int from = segment * SEGMENT + lane * (SEGMENT / 32);
        double mine = 0;
        int latest = -1, hit = -1;
        for (int k = 0; k < SEGMENT / 32; k++) mine += weight(from + k);
        double before = mine;  // becomes the sum of the lower lanes
        for (int d = 1; d < 32; d *= 2) {
            const double below = __shfl_up_sync(ALL, before, d);
            if (lane >= d) before += below;
        }
        before += sum - mine;
        for (int k = 0; k < SEGMENT / 32; k++) {
            const double p = weight(from + k);
            if (p <= 0) continue;
            latest = from + k;
            before += p;
            if (hit < 0 && before > wanted) hit = from + k;
        }
        const unsigned hits = __ballot_sync(ALL, hit >= 0), some = __ballot_sync(ALL, latest >= 0);
        const int at = hits ? __ffs((int)hits) - 1 : some ? 31 - __clz((int)some) : 0;
        drawn = __shfl_sync(ALL, hits ? hit : latest, at);
        if (drawn < 0) drawn = where;
    }
    if (threadIdx.x == 0)
        out[blockIdx.x] =
            Drawn{drawn, (float)((double)(get(x + drawn) - top) * (double)beta - log_sum)};
}

void sample(int *token, float *logp, const real *logits, int R, int V, int ldv, float temperature,
            int top_k, float top_p, const float *uniform) {
    if (!R) return;
    if (V > SEGMENT * SEGMENTS)
        die_usage("a vocabulary of %d; sampling on a GPU has been made for at most %d", V,
                  SEGMENT * SEGMENTS);
    const size_t n = (size_t)R;
    Drawn *drawn_there = (Drawn *)workspace(sizeof *drawn_there * n),
          *drawn = (Drawn *)xmalloc(sizeof *drawn * n);
    LAUNCH(sample_kernel, (unsigned)R, THREADS, 0, stream, drawn_there, logits, uniform, V, ldv,
           temperature, top_k, top_p);
    device_read(drawn, drawn_there, sizeof *drawn * n);
    for (size_t r = 0; r < n; r++) {
        token[r] = drawn[r].token;
        if (logp) logp[r] = drawn[r].logp;
    }
    free(drawn);
}

/* ---- The optimiser --------------------------------------------------------------------------- */

/* One launch has all arrays, because GPT-2 124M has 148 and most are small: 2 launches in place of
   149 for the norm, and 1 in place of 148 for the step, 0.7 ms of the host's time at 2.5 us each
   (computed). The list of the arrays lies on the device. Each takes `blocks` blocks, from `first`
   on. */
template <class A>
struct Listed {
    A array;
    unsigned first, blocks;
    bool eights;  // its addresses are aligned for loads of eight numbers
};

/* The array of this block: the last one whose first block is not behind it. */
template <class A>
static __device__ Listed<A> array_of_block(const Listed<A> *list, int count) {
    int low = 0, high = count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (list[middle].first <= blockIdx.x)
            low = middle;
        else
            high = middle - 1;
    }
    return list[low];
}

/* Appends an array of at least one number to a list of `count`, behind `blocks` blocks. */
template <class A>
static unsigned append(Listed<A> *list, int count, unsigned blocks, A array, size_t own,
                       bool eights) {
    if (blocks + own >= (size_t)1 << 31)
        die("an optimiser's step on %zu blocks of numbers", blocks + own);
    list[count] = {array, blocks, (unsigned)own, eights};
    return blocks + (unsigned)own;
}

struct Summed {
    const float *x;
    size_t n;
};

/* 16 numbers per thread, up to the number of blocks that keeps a GPU busy */
static size_t square_blocks(size_t n) {
    return n < 16 * THREADS ? 1 : n / (16 * THREADS) < 1024 ? n / (16 * THREADS) : 1024;
}

/* A thread adds up eight adjacent numbers at a time, however it loads them. */
__global__ void squares_kernel(double *part, const Listed<Summed> *list, int count) {
    const Listed<Summed> a = array_of_block(list, count);  // part (blocks of all arrays)
    const size_t n = a.array.n;
    double sum = 0;
    for (size_t i = 8 * ((size_t)(blockIdx.x - a.first) * THREADS + threadIdx.x); i < n;
         i += 8 * (size_t)a.blocks * THREADS) {
        float x[8] = {0};
        if (a.eights && i + 8 <= n)
            get<8>(x, a.array.x + i);
        else
            for (int k = 0; k < 8 && i + (size_t)k < n; k++) x[k] = a.array.x[i + (size_t)k];
        for (int k = 0; k < 8; k++) sum += (double)x[k] * (double)x[k];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

__global__ void add_squares_kernel(double *sum, const double *part, int n) {
    double mine = 0;
    for (int i = (int)threadIdx.x; i < n; i += THREADS) mine += part[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0) *sum = mine;
}

double sum_of_squares(const float *const *x, const size_t *n, int count) {
    if (!count) return 0;
    const size_t bytes = sizeof(Listed<Summed>) * (size_t)count;
    Listed<Summed> *list = (Listed<Summed> *)xmalloc(bytes);
    unsigned blocks = 0;
    for (int i = 0; i < count; i++)
        blocks = append(list, i, blocks, Summed{x[i], n[i]}, square_blocks(n[i]), aligned(x[i]));
    double sum, *part = (double *)workspace(sizeof *part * ((size_t)blocks + 1) + bytes);
    Listed<Summed> *there = (Listed<Summed> *)(part + blocks + 1);
    device_write(there, list, bytes);
    LAUNCH(squares_kernel, blocks, THREADS, 0, stream, part, there, count);
    LAUNCH(add_squares_kernel, 1, THREADS, 0, stream, part + blocks, part, (int)blocks);
    device_read(&sum, part + blocks, sizeof sum);
    free(list);
    return sum;
}

struct AddFloats {
    float *a;
    const float *b;
    template <int W>
    __device__ void at(size_t i) const {
        a[i] += b[i];
    }
};

void add_floats(float *a, const float *b, size_t n) { each(AddFloats{a, b}, n, false); }

struct Round {
    real *to;
    const float *from;
    template <int W>
    __device__ void at(size_t i) const {
        put(to + i, from[i]);
    }
};

void real_round(real *to, const float *from, size_t n) { each(Round{to, from}, n, false); }

/* What all arrays of a step have in common */
struct Rates {
    float scale, lr, beta1, beta2, epsilon, m_correct, v_correct;
};

/* Elements i to i + W of an array. */
template <int W>
static __device__ void step(const Stepped &a, size_t i, const Rates &o) {
    float g[W], m[W], v[W], w[W];
    get<W>(g, a.g + i);
    get<W>(m, a.m + i);
    get<W>(v, a.v + i);
    if (a.master)
        get<W>(w, a.master + i);
    else
        get<W>(w, a.w + i);
    for (int k = 0; k < W; k++) {
        const float grad = g[k] * o.scale;
        m[k] = fmaf(o.beta1, m[k], (1 - o.beta1) * grad);
        v[k] = fmaf(o.beta2, v[k], (1 - o.beta2) * (grad * grad));
        const float root = sqrtf(v[k] * o.v_correct) + o.epsilon;
        w[k] = fmaf(-o.lr, fmaf(a.decay, w[k], m[k] * o.m_correct / root), w[k]);
        g[k] = 0;
    }
    put<W>(a.w + i, w);
    if (a.master) put<W>(a.master + i, w);
    put<W>(a.m + i, m);
    put<W>(a.v + i, v);
    put<W>(a.g + i, g);
}

enum { STEPPED = 8 * THREADS };  // elements of a block

__global__ void adamw_kernel(const Listed<Stepped> *list, int count, Rates o) {
    const Listed<Stepped> a = array_of_block(list, count);
    const size_t from = (size_t)(blockIdx.x - a.first) * STEPPED;
    if (a.eights && from + STEPPED <= a.array.n)
        step<8>(a.array, from + 8 * threadIdx.x, o);
    else
        for (size_t i = from + threadIdx.x; i < a.array.n && i < from + STEPPED; i += THREADS)
            step<1>(a.array, i, o);
}

void adamw(const Stepped *x, int count, float scale, float lr, float beta1, float beta2,
           float epsilon, int t) {
    // m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t), computed in double
    const float m_correct = (float)(1 / (1 - pow((double)beta1, t))),
                v_correct = (float)(1 / (1 - pow((double)beta2, t)));
    Listed<Stepped> *list = (Listed<Stepped> *)xmalloc(sizeof *list * (size_t)count);
    unsigned blocks = 0;
    int some = 0;  // arrays that are not empty
    for (int i = 0; i < count; i++)
        if (x[i].n)
            blocks = append(list, some++, blocks, x[i], blocks_for(x[i].n, STEPPED),
                            aligned(x[i].w, x[i].master, x[i].g, x[i].m, x[i].v));
    if (some) {
        const size_t bytes = sizeof *list * (size_t)some;
        Listed<Stepped> *there = (Listed<Stepped> *)workspace(bytes);
        device_write(there, list, bytes);
        LAUNCH(adamw_kernel, blocks, THREADS, 0, stream, there, some,
               Rates{scale, lr, beta1, beta2, epsilon, m_correct, v_correct});
    }
    free(list);
}
