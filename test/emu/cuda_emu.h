/*
 * cuda_emu.h - enough of CUDA on a CPU to test common/model/kernels.cu without a GPU.
 *
 * kernels.cu includes either NVIDIA's headers or this one. Everything it uses of CUDA is here under
 * its own name: the types, blocks of threads, barriers, warp operations, shared memory, and the
 * twins of the few wrappers that are PTX on a GPU (mma_bf16, wgmma_bf16, ldmatrix_x4, cp_async16,
 * exp2_approx).
 * The calls of the runtime are in cuda_runtime_emu.h, cuBLASLt is in cublaslt_emu.h. A launch runs
 * when its stream does (cuda_runtime_emu.h), one launch after the other. It is made to find
 * mistakes:
 *
 *   - Each CUDA thread runs as far as it can, until it waits for others, in an order that
 *     CUDA_EMU_ORDER chooses: forward, reverse, roundrobin or random:SEED. So do blocks. A missing
 *     barrier that one order forgives another does not.
 *   - Fresh shared memory and device memory are filled with NaN, in reverse and for odd seeds
 *     with 3.4e38 (fmaxf swallows NaN), and so is the target of cp_async16 until it is waited for.
 *     There are red zones around every array.
 *   - Under AddressSanitizer the host cannot touch device memory. Under ThreadSanitizer every CUDA
 *     thread is a thread of its own, and only __syncthreads, __syncwarp and the launch order
 *     memory. So races show in any order, across blocks too.
 *   - It is stricter than a GPU where a GPU's leniency hides mistakes or breaks the rules of
 *     kernels.cu: every thread reaches every __syncthreads; warp operations are of whole warps at
 *     one place; an odd block size or a float atomic is refused.
 *
 * It reports a mistake in one sentence, with the kernel, the block and the thread, and aborts.
 * Other variables are for testing errors: CUDA_EMU_DEVICES=0 (no GPU), CUDA_EMU_CAPABILITY=70 (too
 * old a one), CUDA_EMU_MEMORY=BYTES (a small one), CUDA_EMU_CUBLAS=STATUS (every product fails),
 * CUDA_EMU_WGMMA=backwards (products of warp groups have another order of additions). A block can
 * have CUDA_EMU_SHARED bytes of shared memory; that is 101376 by default, which every GPU
 * of kernels.cu has.
 *
 * Left out: parts of CUDA that kernels.cu does not use; pointers inside a structure that a kernel
 * is given (any other must be the device's); graphs; weak memory beyond
 * the races that show; the rounding of approximate instructions (they are exact here) and of tensor
 * cores (here a chain over k); and speed. Only one thread of the host may use it.
 */
#ifndef POSTTRAIN_CUDA_EMU_H
#define POSTTRAIN_CUDA_EMU_H

#include <sys/mman.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "cuda_runtime_emu.h"

// `#pragma unroll` is for nvcc; the vector types below have copy constructors, which is no reason
// not to memcpy them.
#ifdef __clang__
#    pragma clang diagnostic ignored "-Wpass-failed"
#else
#    pragma GCC diagnostic ignored "-Wunknown-pragmas"
#    pragma GCC diagnostic ignored "-Wclass-memaccess"
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

/* ---- Vector types ---------------------------------------------------------------------------- */

/* A GPU faults on a misaligned one; here copying one looks at its address, in a way that the
 * compiler, which may assume the alignment, does not see through. */

namespace cuda_emu {

EMU void aligned(const void *p, size_t alignment, const char *what) {
    uintptr_t address = (uintptr_t)p;
    asm("" : "+r"(address));
    if (__builtin_expect(address % alignment != 0, 0))
        fail("misaligned %s: %p is no multiple of %zu", what, (void *)address, alignment);
}

template <class T>
struct alignas(2 * sizeof(T)) Vector2 {
    T x, y;
    Vector2() = default;
    Vector2(T x_, T y_) : x(x_), y(y_) {}
    Vector2(const Vector2 &from) { *this = from; }
    Vector2 &operator=(const Vector2 &from) {
        aligned(&from, sizeof from, "vector type"), aligned(this, sizeof from, "vector type");
        return x = from.x, y = from.y, *this;
    }
};

template <class T>
struct alignas(4 * sizeof(T)) Vector4 {
    T x, y, z, w;
    Vector4() = default;
    Vector4(T x_, T y_, T z_, T w_) : x(x_), y(y_), z(z_), w(w_) {}
    Vector4(const Vector4 &from) { *this = from; }
    Vector4 &operator=(const Vector4 &from) {
        aligned(&from, sizeof from, "vector type"), aligned(this, sizeof from, "vector type");
        return x = from.x, y = from.y, z = from.z, w = from.w, *this;
    }
};

}  // namespace cuda_emu

typedef cuda_emu::Vector2<float> float2;
typedef cuda_emu::Vector2<int> int2;
typedef cuda_emu::Vector2<unsigned> uint2;
typedef cuda_emu::Vector4<float> float4;
typedef cuda_emu::Vector4<int> int4;
typedef cuda_emu::Vector4<unsigned> uint4;

inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

/* ---- Threads --------------------------------------------------------------------------------- */

/* The threads of a block are fibers: each has a stack, and one gives way to another only where it
 * waits. A thread that never waits costs no switch: when it ends, its fiber takes the next
 * thread. */

// Saves the registers that a function must preserve and the stack in *from; continues where `to`
// was left.
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

enum {
    STACK = (CUDA_EMU_ASAN   ? 256
             : CUDA_EMU_TSAN ? 32
                             : 64)
            << 10,
    THREADS_MOST = 1024
};  // sanitized frames are large

struct Thread;

struct Fiber {
    void *sp;
    const void *stack;  // its lowest address
    size_t stack_bytes;
    Thread *starts;     // the thread to run when it is switched to
    void *asan, *tsan;  // what the sanitizers keep of it
};

struct Pending {
    unsigned char *to;
    const unsigned char *from;
    int group;
};  // a cp_async16

struct Product {
    float *d;  // of a lane: its 32 sums, NaN until they are waited for
    float sums[8][4];
    unsigned char *operand[4];  // the lane's part of b in shared memory, and what was there
    uint32_t word[4][4];
};  // a wgmma_bf16

struct Thread {
    Fiber *fiber;  // NULL before it starts
    uint3 index;
    const char *waits;  // what it waits in, and on which line; NULL: it runs
    int line;
    bool ended;
    int groups;  // of cp_async16, committed so far
    std::vector<Pending> pending;
    std::vector<Product> products;            // not waited for
    std::vector<unsigned char *> not_fenced;  // rows that its cp_async16 have written
};

struct Warp {
    uint32_t ready, waiting,
        ended;  // lanes that could run; that wait in a warp operation; that have ended
    int width[32], from[32];  // of shuffles
    uint64_t value[32], result[32];
    uint32_t in[32][10], out[32][4];     // of ldmatrix and mma
    uint32_t operand[128][4], a[32][4];  // of wgmma: the rows of b, one after the other
    float sums[32][8][4];
    bool down;
    int products;  // wgmma so far
    int syncs;     // for ThreadSanitizer
    char sync[2];
};

struct Shared {
    const void *key;
    const char *name;
    unsigned char *begin;
    size_t bytes;
};

struct Block {
    int threads, ended, waiting;  // waiting: at __syncthreads
    uint32_t ready;               // warps with a lane that could run
    Warp warp[THREADS_MOST / 32];
    Thread thread[THREADS_MOST];
    int syncs;
    char sync[2], started, done;
    unsigned char *shared;       // SHARED_ROOM bytes: the arrays one after the other
    std::vector<Shared> arrays;  // in shared; arrays[0] is the dynamic one
    size_t shared_limit, shared_bytes, shared_used;
    std::map<const unsigned char *, Thread *> not_fenced;  // rows of shared, and who wrote them
    void (*body)(void *);
    void *arguments;
};

inline Block block;
inline Thread *current;
inline Fiber host, *running = &host, *left;  // left: the fiber that switched to running
inline Fiber *idle[THREADS_MOST];  // fibers whose thread has ended; under ThreadSanitizer they are
                                   // not used again
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

EMU unsigned char *map_stack(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("out of memory for the stacks of threads");
    return (unsigned char *)memory;
}

inline unsigned char *stacks;  // for ThreadSanitizer: those of all threads of a block

EMU Fiber *make_fiber(int thread) {
    Unseen unseen;
    Fiber *f = new Fiber();
    unsigned char *memory =
        CUDA_EMU_TSAN ? stacks + (size_t)thread * STACK : map_stack(4096 + STACK) + 4096;
    if (!CUDA_EMU_TSAN && mprotect(memory - 4096, 4096, PROT_NONE))
        fail("out of memory for the stack of a thread");  // it faults when it overflows
    f->stack = memory;
    f->stack_bytes = STACK;
    void **top =
        (void **)(memory + STACK) - 1;  // as if fiber_main had been called: so stacks are aligned
    *--top = (void *)fiber_main;
    f->sp = top - 6;
#if CUDA_EMU_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
    return f;
}

EMU void give_fiber(Thread *t) {
    t->fiber =
        idle_count && !CUDA_EMU_TSAN ? idle[--idle_count] : make_fiber((int)(t - block.thread));
    t->fiber->starts = t;
}

/* For ThreadSanitizer the next block's threads, stacks and shared memory are others. */
inline void forget_fibers() {
#if CUDA_EMU_TSAN
    while (idle_count) {
        Fiber *f = idle[--idle_count];
        __tsan_destroy_fiber(f->tsan);
        delete f;
    }
    munmap(stacks, (size_t)block.threads * STACK);
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
        for (uint32_t skip = random_below((uint32_t)__builtin_popcount(warps)); skip; skip--)
            warps &= warps - 1;
        w = __builtin_ctz(warps), lanes = block.warp[w].ready;
        for (uint32_t skip = random_below((uint32_t)__builtin_popcount(lanes)); skip; skip--)
            lanes &= lanes - 1;
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
        if (t[i]->ended)
            snprintf(text[i], sizeof text[i], "has ended");
        else
            snprintf(text[i], sizeof text[i], "is at %s, line %d", t[i]->waits, t[i]->line);
    }
    fail("the threads of a block diverge: thread (%u,%u,%u) %s, thread (%u,%u,%u) %s", a->index.x,
         a->index.y, a->index.z, text[0], b->index.x, b->index.y, b->index.z, text[1]);
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
        if (!next->fiber) give_fiber(next);
        switch_to(next->fiber);
        current = self;
        threadIdx = self->index;
    }
    self->waits = NULL;
}

EMU void end_thread(Thread *t) {
    Unseen unseen;
    t->ended = true;
    if (!t->pending.empty())
        fail("the thread ends with %zu cp_async16 that nobody waited for", t->pending.size());
    if (!t->products.empty())
        fail("the thread ends with %zu wgmma_bf16 that it has not waited for", t->products.size());
    for (int i = 0; block.waiting && i < block.threads; i++)
        if (!block.thread[i].ended && block.thread[i].waits) diverged(&block.thread[i], t);
    int warp = (int)(t - block.thread) / 32;
    uint32_t lane = 1u << (t - block.thread) % 32;
    block.ended++;
    block.warp[warp].ended |= lane;
    set_ready(warp, lane, false);
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
        if (t && !t->fiber) continue;
        idle[idle_count++] = self;
        switch_to(t ? t->fiber : &host);
        t = self->starts;
    }
}

/* The four warps of a group compute the same products. */
EMU void check_groups() {
    for (int w = 0; w < block.threads / 32; w++)
        if (block.warp[w].products != block.warp[w / 4 * 4].products)
            fail("warp %d has come to %d wgmma_bf16 and warp %d of its group to %d", w / 4 * 4,
                 block.warp[w / 4 * 4].products, w, block.warp[w].products);
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
    int n = (int)(self - block.thread);
    set_ready(n / 32, 1u << n % 32, false);
    if (++block.waiting == block.threads) {
        for (int i = 0; i < block.threads; i++)
            if (block.thread[i].line != line) diverged(self, &block.thread[i]);
        check_groups();
        for (int w = 0; w < block.threads / 32; w++) set_ready(w, 0xffffffff, true);
        block.waiting = 0;
        block.syncs++;
    }
    give_way();
    acquire(&block.sync[meeting]);
}

/* ---- Warp operations: whole warps, all lanes at the same place ------------------------------- */

/* The last lane to arrive does the work for all. */

namespace cuda_emu {

EMU int lane_id() { return (int)(current - block.thread) % 32; }
EMU Warp *warp() { return &block.warp[(current - block.thread) / 32]; }

EMU void meet(const char *name, unsigned mask, int line, void (*work)(Warp *)) {
    Thread *self = current;
    Warp *w = warp();
    int lane = lane_id(), number = (int)(w - block.warp);
    if (mask != 0xffffffff)
        fail("%s on line %d with mask 0x%08x; only whole warps are allowed, 0xffffffff", name, line,
             mask);
    self->waits = name;
    self->line = line;
    w->waiting |= 1u << lane;
    if (w->waiting == 0xffffffff) {
        for (int i = 0; i < 32; i++) {
            Thread *t = thread_at(number, i);
            if ((t->waits != name && strcmp(t->waits, name)) || t->line != line ||
                w->width[i] != w->width[lane])
                diverged(self, t);
        }
        work(w);
        w->waiting = 0;
        set_ready(number, 0xffffffff, true);
    } else {
        if (w->ended) diverged(self, thread_at(number, __builtin_ctz(w->ended)));
        set_ready(number, 1u << lane, false);
    }
    give_way();
}

EMU void exchange(Warp *w) {
    for (int i = 0; i < 32; i++) w->result[i] = w->value[w->from[i]];
}

/* The first lane of this lane's segment of so many. */
EMU int segment(const char *name, int width, int line) {
    if (width < 1 || width > 32 || (width & (width - 1)))
        fail("%s on line %d with width %d", name, line, width);
    return lane_id() / width * width;
}

/* Every lane's value goes in; the value of lane `from` comes out. */
EMU uint64_t shuffle(const char *name, unsigned mask, uint64_t value, int from, int width,
                     int line) {
    Unseen unseen;
    Warp *w = warp();
    int lane = lane_id();
    if (from < 0 || from > 31) fail("%s on line %d reads lane %d", name, line, from);
    w->value[lane] = value;
    w->width[lane] = width;
    w->from[lane] = from;
    meet(name, mask, line, exchange);
    return w->result[lane];
}

template <class T>
uint64_t to_bits(T x) {
    static_assert(sizeof x <= 8 && std::is_arithmetic<T>::value, "int, unsigned, float or double");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &x, sizeof x);
    return bits;
}

template <class T>
T from_bits(uint64_t bits) {
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

/* Where the source would be outside the lane's segment of `width` lanes, it is the lane itself; in
 * __shfl_sync that is a mistake. */
template <class T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, int line = __builtin_LINE()) {
    using namespace cuda_emu;
    int begin = segment("__shfl_sync", width, line);
    if (source < 0 || source >= width)
        fail("__shfl_sync on line %d reads lane %d of a segment of %d", line, source, width);
    return from_bits<T>(shuffle("__shfl_sync", mask, to_bits(x), begin + source, width, line));
}

template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    using namespace cuda_emu;
    int begin = segment("__shfl_up_sync", width, line), lane = lane_id(),
        source = lane - (int)delta;
    return from_bits<T>(
        shuffle("__shfl_up_sync", mask, to_bits(x), source < begin ? lane : source, width, line));
}

template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32,
                   int line = __builtin_LINE()) {
    using namespace cuda_emu;
    int end = segment("__shfl_down_sync", width, line) + width, lane = lane_id(),
        source = lane + (int)delta;
    return from_bits<T>(
        shuffle("__shfl_down_sync", mask, to_bits(x), source >= end ? lane : source, width, line));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int flip, int width = 32, int line = __builtin_LINE()) {
    using namespace cuda_emu;
    int end = segment("__shfl_xor_sync", width, line) + width, lane = lane_id(),
        source = lane ^ flip;
    return from_bits<T>(shuffle("__shfl_xor_sync", mask, to_bits(x),
                                source >= end && flip < 32 ? lane : source, width, line));
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

/* Integers only: the order of a sum of floating-point numbers must not depend on who comes first.
 */
inline int atomicAdd(int *p, int x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned *p, unsigned x) {
    return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}

inline int atomicMax(int *p, int x) {
    int was = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (was < x &&
           !__atomic_compare_exchange_n(p, &was, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return was;
}

/* ---- Shared memory, and copies into it ------------------------------------------------------- */

/* Arrays begin at multiples of 16 bytes: SHARED of kernels.cu must say __align__(16). */

namespace cuda_emu {

enum { SHARED_ROOM = SHARED_MOST + 64 * 2 * RED_ZONE };

EMU unsigned char *shared_array(const void *key, const char *name, size_t bytes) {
    Unseen unseen;
    for (Shared &a : block.arrays)
        if (a.key == key) return a.begin;
    size_t room = RED_ZONE + (bytes + 15) / 16 * 16 + RED_ZONE;
    block.shared_bytes += bytes;
    if (block.shared_bytes > block.shared_limit || block.shared_used + room > SHARED_ROOM)
        fail("%zu bytes of shared memory with %s, where %zu are allowed", block.shared_bytes, name,
             block.shared_limit);
    Shared a = {key, name, block.shared + block.shared_used + RED_ZONE, bytes};
    block.shared_used += room;
    ASAN_UNPOISON_MEMORY_REGION(a.begin, bytes);
    memset(a.begin, poison_byte(), bytes);
    surround(a.begin, bytes);
    block.arrays.push_back(a);
    return a.begin;
}

EMU unsigned char *shared_dynamic() {
    if (!block.arrays[0].bytes)
        fail("SHARED_DYN in a kernel that was launched without dynamic shared memory");
    return block.arrays[0].begin;
}

/* 16 bytes at p are to be shared memory. */
EMU void shared_row(const void *p, const char *what) {
    aligned(p, 16, what);
    const unsigned char *row = (const unsigned char *)p;
    for (Shared &a : block.arrays)
        if (row >= a.begin && row + 16 <= a.begin + a.bytes) return;
    fail("%s: 16 bytes at %p are not within an array of shared memory", what, p);
}

/* Four words, read and written by the thread that runs, where sanitizers see it: volatile, lest it
 * become a memcpy. */
inline void copy16(void *to, const void *from) {
    for (int i = 0; i < 4; i++) ((volatile uint32_t *)to)[i] = ((const volatile uint32_t *)from)[i];
}

EMU void cp_async_finish(int except) {
    for (Thread *t = current;;) {
        Pending p;
        {
            Unseen unseen;
            if (t->pending.empty() || t->pending[0].group >= t->groups - except) return;
            p = t->pending[0];
            t->pending.erase(t->pending.begin());
            t->not_fenced.push_back(p.to);
            block.not_fenced[p.to] = t;
        }
        copy16(p.to, p.from);
    }
}

}  // namespace cuda_emu

#define SHARED(T, name, dimensions)   \
    using name##_type = T dimensions; \
    static const char name##_key = 0; \
    name##_type &name =               \
        *(name##_type *)(void *)cuda_emu::shared_array(&name##_key, #name, sizeof(name##_type))
#define SHARED_DYN(T, name) T *name = (T *)(void *)cuda_emu::shared_dynamic()

/* 16 bytes from global to shared memory, some time before the cp_async_wait that covers them. */
inline void cp_async16(void *shared, const void *global) {
    using namespace cuda_emu;
    {
        Unseen unseen;
        shared_row(shared, "cp_async16");
        aligned(global, 16, "cp_async16");
        device_memory(global, 16, "cp_async16");
        current->pending.push_back(
            {(unsigned char *)shared, (const unsigned char *)global, current->groups});
    }
    for (int i = 0; i < 4; i++) ((volatile uint32_t *)shared)[i] = 0xffffffff;
}

EMU void cp_async_commit() { cuda_emu::current->groups++; }

/* All groups but the last n committed have arrived: in the eyes of this thread. Others see them
 * after a barrier. */
template <int n>
void cp_async_wait() {
    cuda_emu::cp_async_finish(n);
}

/* ---- Tensor cores ---------------------------------------------------------------------------- */

/* Lane l holds, with g = l / 4 and t = l % 4, of A (16,16) rows g and g+8, columns 2t, 2t+1, 2t+8,
 * 2t+9; of B (16,8) column g and these rows; of D (16,8) rows g and g+8, columns 2t, 2t+1. (PTX
 * ISA, mma.m16n8k16 and ldmatrix.) */

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
            A[g + i % 2 * 8][2 * t + i / 2 * 8] = bf16_value(a & 0xffff),
                                             A[g + i % 2 * 8][2 * t + i / 2 * 8 + 1] =
                                                 bf16_value(a >> 16);
            D[g + i / 2 * 8][2 * t + i % 2] = from_bits<float>(w->in[l][6 + i]);
        }
        for (int i = 0; i < 2; i++) {
            uint32_t b = w->in[l][4 + i];
            B[2 * t + i * 8][g] = bf16_value(b & 0xffff),
                          B[2 * t + i * 8 + 1][g] = bf16_value(b >> 16);
        }
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                D[i][j] +=
                    A[i][k] *
                    B[k][j];  // the product of two bf16 is exact: this is a fused multiply-add
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            w->out[l][i] = (uint32_t)to_bits(D[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2]);
}

/* in: 32 rows of 8 bf16, those of lanes 0-7 the first matrix. out[i]: of matrix i, row l/4, columns
 * 2(l%4) and the next; or transposed. */
template <bool transposed>
EMU void ldmatrix_work(Warp *w) {
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

EMU void tensor(const char *name, const uint32_t *in, int n, uint32_t out[4], int line,
                void (*work)(Warp *)) {
    Unseen unseen;
    Warp *w = warp();
    int lane = lane_id();
    for (int i = 0; i < n; i++) w->in[lane][i] = in[i];
    w->width[lane] = 32;
    meet(name, 0xffffffff, line, work);
    for (int i = 0; i < 4; i++) out[i] = w->out[lane][i];
}

template <bool transposed>
void ldmatrix(const char *name, uint32_t r[4], const void *shared_row, int line) {
    cuda_emu::shared_row(shared_row, name);
    uint32_t row[4];
    copy16(row, shared_row);
    tensor(name, row, 4, r, line, ldmatrix_work<transposed>);
}

}  // namespace cuda_emu

/* d (16,8) += a (16,16) b (16,8) */
inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2],
                     int line = __builtin_LINE()) {
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

/* A product of a warp group is one of each of its warps here; check_groups() sees that they do the
 * same. b is read when the product begins, and again by wgmma_wait, which fails if it has changed.
 * Shared memory that cp_async16 has written and that no fence_for_wgmma followed is not to be read.
 */

/* An address in the shared memory of a block, which begins at SHARED_AT: at a multiple of 16, which
 * is all that CUDA promises. */
enum { SHARED_AT = 1024 + 48 };
inline uint32_t shared_address(const void *p) {
    using namespace cuda_emu;
    Unseen unseen;
    shared_row(p, "shared_address");
    return (uint32_t)((const unsigned char *)p - block.shared) + SHARED_AT;
}

inline void fence_for_wgmma() {
    using namespace cuda_emu;
    Unseen unseen;
    for (unsigned char *row : current->not_fenced) block.not_fenced.erase(row);
    current->not_fenced.clear();
}

namespace cuda_emu {

EMU void wgmma_work(Warp *w) {
    static const char *wanted = getenv("CUDA_EMU_WGMMA");
    const bool backwards = wanted && !strcmp(wanted, "backwards");
    float A[16][16], B[16][64], D[16][64];
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < 64; n++) {  // operand: 16 rows of 8 chunks, or 64 rows of 2
            const int at = w->down ? 64 * k + n : 16 * n + k;
            B[k][n] = bf16_value(w->operand[at / 8][at % 8 / 2] >> at % 2 * 16 & 0xffff);
        }
    for (int l = 0; l < 32; l++) {
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 8; i++) {
            const uint32_t pair = w->a[l][i / 2];
            A[g + i / 2 % 2 * 8][2 * t + i / 4 * 8 + i % 2] =
                bf16_value(pair >> i % 2 * 16 & 0xffff);
        }
        for (int j = 0; j < 32; j++)
            D[g + j % 4 / 2 * 8][j / 4 * 8 + 2 * t + j % 2] = w->sums[l][j / 4][j % 4];
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 64; n++) {
                const int at = backwards ? 15 - k : k;
                D[i][n] += A[i][at] * B[at][n];
            }
    for (int l = 0; l < 32; l++)
        for (int j = 0; j < 32; j++)
            w->sums[l][j / 4][j % 4] = D[l / 4 + j % 4 / 2 * 8][j / 4 * 8 + 2 * (l % 4) + j % 2];
    if ((w - block.warp) % 4 == 0) counts["products of warp groups"]++;
    w->products++;
}

/* Chunk i of 16 bytes of the 128 that an operand names (PTX ISA, matrix descriptor). */
EMU unsigned char *operand_chunk(uint64_t operand, bool down, int i) {
    const uint32_t start = (uint32_t)(operand & 0x3fff) * 16,
                   eight_rows = (uint32_t)(operand >> 32 & 0x3fff) * 16;
    if (operand >> 62 != 1 || operand >> 46 & 0xffff)
        fail("wgmma_bf16 with operand %016llx: only rows of 128 bytes, swizzled, are emulated",
             (unsigned long long)operand);
    const uint32_t row = (uint32_t)i / (down ? 8 : 2), chunk = (uint32_t)i % (down ? 8 : 2);
    uint32_t address = start + row / 8 * eight_rows + row % 8 * 128 + chunk * 16;
    address ^= (address / 128 % 8) * 16;
    return block.shared + (address - SHARED_AT);
}

}  // namespace cuda_emu

template <bool down>
void wgmma_bf16(float d[8][4], const uint32_t a[4], uint64_t operand, bool add,
                int line = __builtin_LINE()) {
    using namespace cuda_emu;
    Product p;
    p.d = d[0];
    for (int i = 0; i < 4; i++) {  // this lane's quarter of an eighth of b
        {
            Unseen unseen;
            p.operand[i] = operand_chunk(operand, down, 4 * lane_id() + i);
            shared_row(p.operand[i], "wgmma_bf16");
            auto found = block.not_fenced.find(p.operand[i]);
            if (found != block.not_fenced.end())
                fail("wgmma_bf16 on line %d reads what thread %d has written without a fence", line,
                     (int)(found->second - block.thread));
        }
        copy16(p.word[i], p.operand[i]);
    }
    Unseen unseen;
    Warp *w = warp();
    const int lane = lane_id();
    if (block.threads % 128) fail("wgmma_bf16 in a block of %d threads", block.threads);
    memcpy(w->operand[4 * lane], p.word, sizeof p.word);
    memcpy(w->a[lane], a, sizeof w->a[lane]);
    const float *before = d[0];
    for (Product &q : current->products)
        if (q.d == p.d) before = q.sums[0];
    for (int j = 0; j < 32; j++) w->sums[lane][j / 4][j % 4] = add ? before[j] : 0;
    w->down = down;
    w->width[lane] = 32;
    meet("wgmma_bf16", 0xffffffff, line, wgmma_work);
    memcpy(p.sums, w->sums[lane], sizeof p.sums);
    for (int j = 0; j < 32; j++) d[j / 4][j % 4] = NAN;
    current->products.push_back(p);
}

/* On a GPU this is a wait for all products. The compiler knows of it only for the sums that it
 * names: it may read others before. So here those stay NaN. */
inline void wgmma_wait(float d[8][4]) {
    using namespace cuda_emu;
    for (size_t n = 0;;) {
        Product p;
        {
            Unseen unseen;
            std::vector<Product> &products = current->products;
            while (n < products.size() && products[n].d != d[0]) n++;
            if (n == products.size()) break;
            p = products[n];
            products.erase(products.begin() + (ptrdiff_t)n);
            memcpy(p.d, p.sums, sizeof p.sums);
        }
        for (int i = 0; i < 4; i++) {
            uint32_t now[4];
            copy16(now, p.operand[i]);
            if (memcmp(now, p.word[i], sizeof now))
                fail("shared memory was written while a wgmma_bf16 read it");
        }
    }
}

/* ---- Arithmetic ------------------------------------------------------------------------------ */

#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN

// The C library declares these two names for itself.
#define __expf(x) expf(x)
#define __logf(x) logf(x)

/* Exact here, but for a result that is a denormal, which is 0 there too. */
inline float exp2_approx(float x) {
    const float y = exp2f(x);
    return fabsf(y) < 0x1p-126f ? 0 : y;
}

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
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

template <class T>
T __ldg(const T *p) {
    return *p;
}
template <class T>
T __ldcs(const T *p) {
    return *p;
}
template <class T>
void __stcs(T *p, T x) {
    *p = x;
}

/* bf16: the upper half of a float. Conversions are spelled out: what would be arithmetic in bf16
 * does not compile. */
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float x) {  // to the nearest, to even in a tie
        uint32_t u = __float_as_uint(x);
        bits = x != x ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    explicit operator float() const { return cuda_emu::bf16_value(bits); }
};
typedef cuda_emu::Vector2<__nv_bfloat16> __nv_bfloat162;
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
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) {
    return {__nv_bfloat16(x.x), __nv_bfloat16(x.y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {(float)x.x, (float)x.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float __low2float(__nv_bfloat162 x) { return (float)x.x; }
inline float __high2float(__nv_bfloat162 x) { return (float)x.y; }

/* ---- Launching ------------------------------------------------------------------------------- */

/* LAUNCH(kernel, grid, block, smem, stream, arguments...) runs kernel<<<grid, block, smem,
 * stream>>>(arguments...) */

namespace cuda_emu {

inline std::map<const void *, int> dynamic_limit;  // by kernel, what cudaFuncSetAttribute allows it

inline void run_block() {
    for (int i = 0; i < block.threads; i++) {
        Thread *t = &block.thread[i];
        unsigned x = (unsigned)i % blockDim.x, y = (unsigned)i / blockDim.x % blockDim.y,
                 z = (unsigned)i / (blockDim.x * blockDim.y);
        t->fiber = NULL;
        t->index = {x, y, z};
        t->waits = NULL;
        t->ended = false;
        t->groups = 0;
        t->not_fenced.clear();
    }
    block.not_fenced.clear();
    block.ended = block.waiting = 0;
    for (int w = 0; w < block.threads / 32; w++) {
        block.warp[w].waiting = block.warp[w].ended = 0;
        block.warp[w].products = 0;
        set_ready(w, 0xffffffff, true);
    }
    current = NULL;
    if (CUDA_EMU_TSAN) stacks = map_stack((size_t)block.threads * STACK);
    for (int i = 0; i < (CUDA_EMU_TSAN ? block.threads : 0); i++)
        give_fiber(&block.thread[i]);  // the maker of a thread comes before it
    Thread *first = pick();
    if (!first->fiber) give_fiber(first);
#if CUDA_EMU_TSAN
    host.tsan = __tsan_get_current_fiber();
#endif
    in_thread = true;
    switch_to(first->fiber);
    in_thread = false;
    check_groups();
    for (Shared &a : block.arrays) check_surroundings(a.begin, a.bytes, a.name);
    forget_fibers();
}

inline void run_grid(size_t dynamic) {
    Unseen unseen;
    size_t blocks = (size_t)gridDim.x * gridDim.y * gridDim.z;
    std::vector<uint32_t> where(order == RANDOM ? blocks : 0);
    for (size_t i = 0; i < where.size(); i++) where[i] = (uint32_t)i;
    for (size_t i = where.size(); i > 1; i--)
        std::swap(where[i - 1], where[random_below((uint32_t)i)]);
    for (size_t i = 0; i < blocks; i++) {
        size_t b = order == RANDOM ? where[i] : order == REVERSE ? blocks - 1 - i : i;
        blockIdx = {(unsigned)(b % gridDim.x), (unsigned)(b / gridDim.x % gridDim.y),
                    (unsigned)(b / gridDim.x / gridDim.y)};
        if (CUDA_EMU_TSAN) free(block.shared), block.shared = NULL;
        if (!block.shared && !(block.shared = (unsigned char *)malloc(SHARED_ROOM)))
            fail("out of memory for shared memory");
        block.shared_bytes = block.shared_used = 0;
        block.arrays.clear();
        shared_array(&block.arrays, "the dynamic array", dynamic);
        run_block();
    }
}

template <class T>
void check_argument(int, const T &) {}
template <class T>
void check_argument(int i, T *const &p) {
    size_t left;
    if (p && !find((const void *)p, &left))
        fail("argument %d, %p, is a pointer to memory of the host", i, (const void *)p);
}

template <class... P, size_t... I>
void check_arguments(std::tuple<P...> &arguments, std::index_sequence<I...>) {
    (check_argument((int)I + 1, std::get<I>(arguments)), ...);
}

/* As with nvcc, what is in <<< >>> is evaluated before the arguments. */
struct Launch {
    const char *name;
    dim3 grid, threads;
    size_t dynamic;
    cudaStream_t stream;
    template <class... P>
    void operator()(void (*function)(P...), std::common_type_t<P>... given) const;
};

template <class... P>
void Launch::operator()(void (*function)(P...), std::common_type_t<P>... given) const {
    struct Call {
        void (*function)(P...);
        std::tuple<P...> arguments;
    };
    auto call = std::make_shared<Call>(Call{function, std::tuple<P...>(given...)});
    if (kernel) fail("%s is launched from inside a kernel", name);
    kernel = name;
    size_t n = (size_t)threads.x * threads.y * threads.z;
    if (n == 0 || n > THREADS_MOST || threads.z > 64 || n % 32)
        fail("a block of %u x %u x %u threads; it must be a multiple of 32 and at most 1024",
             threads.x, threads.y, threads.z);
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        fail("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
    auto allowed = dynamic_limit.find((const void *)call->function);
    if (dynamic > shared_most())
        fail("%zu bytes of dynamic shared memory; a block has at most %zu", dynamic, shared_most());
    if (dynamic > SHARED_DEFAULT &&
        (allowed == dynamic_limit.end() || (size_t)allowed->second < dynamic))
        fail(
            "%zu bytes of dynamic shared memory; more than %d need "
            "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)",
            dynamic, (int)SHARED_DEFAULT);
    check_arguments(call->arguments, std::index_sequence_for<P...>());
    kernel = NULL;
    counts["launches"]++;
    const size_t limit = allowed == dynamic_limit.end() ? (size_t)SHARED_DEFAULT : shared_most();
    enqueue(stream, {NULL,
                     [=, name = name, grid = grid, threads = threads, dynamic = dynamic] {
                         kernel = name;
                         read_order();
                         gridDim = grid;
                         blockDim = threads;
                         block.threads = (int)n;
                         block.shared_limit = limit;
                         block.body = [](void *p) {
                             std::apply(((Call *)p)->function, ((Call *)p)->arguments);
                         };
                         block.arguments = call.get();
                         {
                             Open open;
                             release(&block.started);
                             run_grid(dynamic);
                             acquire(&block.done);
                         }
                         check_red_zones();
                         kernel = NULL;
                     },
                     NULL});
}

}  // namespace cuda_emu

#define LAUNCH(kernel, grid, block, smem, stream, ...) \
    cuda_emu::Launch{"kernel " #kernel, grid, block, smem, stream}(kernel, ##__VA_ARGS__)

template <class F>
cudaError_t cudaFuncSetAttribute(F *function, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value > cuda_emu::shared_most())
        return cuda_emu::error(cudaErrorInvalidValue);
    cuda_emu::dynamic_limit[(const void *)function] = value;
    return cudaSuccess;
}

#include "cublaslt_emu.h"

#endif
