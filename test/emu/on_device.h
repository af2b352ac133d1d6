/*
 * on_device.h - the tests of kernels.h on memory of a device, for check_kernels.c compiled with
 * -DON_DEVICE.
 *
 * The tests keep their arrays in memory of the host, as floats and ints, between guard words. Here
 * every function of kernels.h becomes a macro of its name that copies each array it is given to the
 * device, calls the function there, and copies back. An array is a block of check_kernels.c with
 * all that is in it, also when the pointer is to a row inside. On the device it is between guards
 * again, which are checked after each call. So a kernel that writes beyond an array is caught with
 * its name, and one that reads beyond it finds NaN.
 *
 * A block begins where device_alloc's memory may: at a multiple of 64 bytes, as every tensor and
 * activation of gpt2.c does. What begins elsewhere are rows inside a block, at a multiple of any C.
 *
 * With REAL_BF16 a block of reals has 2 bytes an element there. Numbers must survive that: one
 * which bf16 cannot hold is the test's mistake, because its reference would see another. The guard
 * word, which marks memory that nobody has written, has a NaN of its own in both.
 */
#ifndef POSTTRAIN_ON_DEVICE_H
#define POSTTRAIN_ON_DEVICE_H

enum { MARGIN = 192, USES = 128, LISTED = 24 };  // MARGIN: bytes of guards on either side

typedef enum { WORDS, REALS } Storage;

typedef struct {
    Block *block;
    Storage storage;
} Use;

static Use uses[USES];  // of the call under way
static int use_count;

static size_t element(Storage storage) {
    return storage == REALS ? sizeof(real) : sizeof(uint32_t);
}

static Block *block_of(const void *p) {
    for (int i = block_count - 1; i >= 0; i--)
        if ((const uint32_t *)p >= blocks[i].words &&
            (const uint32_t *)p <= blocks[i].words + blocks[i].n)
            return &blocks[i];
    return NULL;
}

#ifdef REAL_BF16
static const uint16_t guard_real = 0x7fc5;

static uint16_t shorten(uint32_t word) {
    ck_must(word == guard_word || !(word & 0xffff), "%s: %a is not a number of bf16", where,
            (double)(union {
                uint32_t w;
                float f;
            }){word}
                .f);
    return (uint16_t)(word >> 16);
}

static uint32_t lengthen(uint16_t half) {
    return half == guard_real ? guard_word : (uint32_t)half << 16;
}
#endif

/* The bytes on the device, guards included, of what a block holds. */
static void pack(unsigned char *to, const Block *b, Storage storage) {
    const size_t size = element(storage), margin = MARGIN / size;
    for (size_t i = 0; i < margin + b->n + margin; i++) {
        uint32_t word = i < margin || i >= margin + b->n ? guard_word : b->words[i - margin];
#ifdef REAL_BF16
        if (storage == REALS) {
            memcpy(to + i * size, &(uint16_t){shorten(word)}, size);
            continue;
        }
#endif
        memcpy(to + i * size, &word, size);
    }
}

static void unpack(Block *b, const unsigned char *from, Storage storage, const char *function) {
    const size_t size = element(storage), margin = MARGIN / size;
    for (size_t i = 0; i < margin + b->n + margin; i++) {
        uint32_t word = 0;
        memcpy(&word, from + i * size, size);
#ifdef REAL_BF16
        if (storage == REALS) word = lengthen((uint16_t)word);
#endif
        if (i >= margin && i < margin + b->n)
            b->words[i - margin] = word;
        else
            ck_must(word == guard_word, "%s: %s wrote outside an array of %zu: element %td", where,
                    function, b->n, (ptrdiff_t)i - (ptrdiff_t)margin);
    }
}

static unsigned char *packed(size_t bytes) {  // on the host, for what is under way
    static unsigned char *memory;
    static size_t have;
    if (bytes > have) memory = xrealloc(memory, bytes, 1), have = bytes;
    return memory;
}

/* Copies the block that p points into to the device, once a call, and returns where p is there. */
static void *up(const void *p, Storage storage) {
    if (!p) return NULL;
    Block *b = block_of(p);
    ck_must(b, "%s: a pointer that no block holds", where);
    const size_t bytes = b->n * element(storage) + 2 * MARGIN,
                 at = (size_t)((const uint32_t *)p - b->words) * element(storage) + MARGIN;
    for (int i = 0; i < use_count; i++)
        if (uses[i].block == b) {
            ck_must(uses[i].storage == storage, "%s: one array as two kinds of number", where);
            return b->mirror + at;
        }
    if (!b->mirror)
        ck_must((b->mirror = device_alloc(b->n * sizeof(uint32_t) + 2 * MARGIN)),
                "%s: no memory on the device", where);
    unsigned char *packed_ = packed(bytes);
    pack(packed_, b, storage);
    device_write(b->mirror, packed_, bytes);
    ck_must(use_count < USES, "too many arrays in a call");
    uses[use_count++] = (Use){b, storage};
    return b->mirror + at;
}

/* Copies back what the call has seen. */
static void down(const char *function) {
    for (int i = 0; i < use_count; i++) {
        const size_t bytes = uses[i].block->n * element(uses[i].storage) + 2 * MARGIN;
        device_read(packed(bytes), uses[i].block->mirror, bytes);
        unpack(uses[i].block, packed(bytes), uses[i].storage, function);
    }
    use_count = 0;
}

/* At the end of a test, which may have failed in the middle of a call. */
static void drop_mirrors(void) {
    for (int i = 0; i < block_count; i++)
        if (blocks[i].mirror)
            device_free(blocks[i].mirror, blocks[i].n * sizeof(uint32_t) + 2 * MARGIN);
    use_count = 0;
}

static real *REAL(const float *p) { return up(p, REALS); }
static float *FLOAT(const float *p) { return up(p, WORDS); }
static int *INT(const int *p) { return up(p, WORDS); }

/* n ints that are no block: they become one. */
static int *INTS(const int *p, size_t n) {
    if (!p || block_of(p)) return INT(p);
    return INT(memcpy(room(n), p, n * sizeof *p));
}

static Noise NOISE(Noise noise) {
    noise.sequence = up(noise.sequence, WORDS), noise.position = INT(noise.position);
    return noise;
}

/* A quantised matrix: its arrays are in one block, which the test looks into, and which no test
 * moves. */
static NF4 quantised_there(const NF4 *q) {
    NF4 there = *q;
    Block *b = block_of(q->code);
    ck_must(b, "%s: a quantised matrix that no block holds", where);
    const ptrdiff_t by = (unsigned char *)up(b->words, WORDS) - (unsigned char *)b->words;
    there.code += by;
    if (q->absmax) there.absmax = (float *)((unsigned char *)q->absmax + by);
    if (q->absmax8) there.absmax8 += by;
    if (q->absmax2) there.absmax2 = (float *)((unsigned char *)q->absmax2 + by);
    return there;
}

static void quantised_here(NF4 *q, const void *memory) {
    const ptrdiff_t by = (const unsigned char *)memory - (block_of(memory)->mirror + MARGIN);
    q->code += by;
    if (q->absmax) q->absmax = (float *)((unsigned char *)q->absmax + by);
    if (q->absmax8) q->absmax8 += by;
    if (q->absmax2) q->absmax2 = (float *)((unsigned char *)q->absmax2 + by);
}

static const float *const *FLOATS(const float *const *x, int count) {
    static const float *there[USES];
    for (int i = 0; i < count; i++) there[i] = FLOAT(x[i]);
    return there;
}

#define CALL(function, ...) (function(__VA_ARGS__), down(#function))
#define THERE(q) (&(NF4[]){quantised_there(q)}[0])

#define embed_forward(out, token, position, wte, wpe, N, C) \
    CALL(embed_forward, REAL(out), INT(token), INT(position), REAL(wte), REAL(wpe), N, C)
#define embed_backward(dwte, dwpe, dout, token, position, N, C) \
    CALL(embed_backward, FLOAT(dwte), FLOAT(dwpe), REAL(dout), INT(token), INT(position), N, C)
#define linear_forward(out, inp, weight, bias, N, IC, OC) \
    CALL(linear_forward, REAL(out), REAL(inp), REAL(weight), REAL(bias), N, IC, OC)
#define linear_backward_input(dinp, dout, weight, N, IC, OC) \
    CALL(linear_backward_input, REAL(dinp), REAL(dout), REAL(weight), N, IC, OC)
#define linear_backward_weight(dweight, dbias, inp, dout, N, IC, OC) \
    CALL(linear_backward_weight, FLOAT(dweight), FLOAT(dbias), REAL(inp), REAL(dout), N, IC, OC)
#define projection_forward(out, inp, weight, bias, add, N, IC, OC) \
    CALL(projection_forward, REAL(out), REAL(inp), REAL(weight), REAL(bias), add, N, IC, OC)
#define projection_backward_input(dinp, dout, weight, add, N, IC, OC) \
    CALL(projection_backward_input, REAL(dinp), REAL(dout), REAL(weight), add, N, IC, OC)
#define projection_backward_weight(dweight, dbias, inp, dout, N, IC, OC) \
    CALL(projection_backward_weight, FLOAT(dweight), FLOAT(dbias), REAL(inp), REAL(dout), N, IC, OC)
#define add_activations(out, x, y, n) CALL(add_activations, REAL(out), REAL(x), REAL(y), n)
#define scale(x, factor, n) CALL(scale, REAL(x), factor, n)
#define nf4_quantize(q, memory, weight, IC, OC, twice)                         \
    do {                                                                       \
        const void *there_ = memory;                                           \
        CALL(nf4_quantize, q, up(there_, WORDS), REAL(weight), IC, OC, twice); \
        quantised_here(q, there_);                                             \
    } while (0)
#define nf4_read(out, q, offset, n) CALL(nf4_read, out, THERE(q), offset, n)
#define nf4_linear_forward(out, inp, q, bias, N) \
    CALL(nf4_linear_forward, REAL(out), REAL(inp), THERE(q), REAL(bias), N)
#define nf4_linear_backward_input(dinp, dout, q, N) \
    CALL(nf4_linear_backward_input, REAL(dinp), REAL(dout), THERE(q), N)
#define layernorm_forward(sum, out, mean, rstd, x, y, weight, bias, N, C, epsilon)            \
    CALL(layernorm_forward, REAL(sum), REAL(out), FLOAT(mean), FLOAT(rstd), REAL(x), REAL(y), \
         REAL(weight), REAL(bias), N, C, epsilon)
#define layernorm_backward(dsum, dweight, dbias, dout, sum, mean, rstd, weight, N, C)         \
    CALL(layernorm_backward, REAL(dsum), FLOAT(dweight), FLOAT(dbias), REAL(dout), REAL(sum), \
         FLOAT(mean), FLOAT(rstd), REAL(weight), N, C)
#define gelu_forward(out, inp, n) CALL(gelu_forward, REAL(out), REAL(inp), n)
#define gelu_backward(dout, inp, n) CALL(gelu_backward, REAL(dout), REAL(inp), n)
#define linear_gelu_forward(out, pre, inp, weight, bias, N, IC, OC) \
    CALL(linear_gelu_forward, REAL(out), REAL(pre), REAL(inp), REAL(weight), REAL(bias), N, IC, OC)
#define relu_forward(out, inp, n) CALL(relu_forward, REAL(out), REAL(inp), n)
#define relu_backward(dout, inp, n) CALL(relu_backward, REAL(dout), REAL(inp), n)
#define silu_forward(out, inp, n) CALL(silu_forward, REAL(out), REAL(inp), n)
#define silu_backward(dout, inp, n) CALL(silu_backward, REAL(dout), REAL(inp), n)
#define dropout(x, N, C, ...) CALL(dropout, REAL(x), N, C, NOISE(__VA_ARGS__))
#define dropout_add(out, x, N, C, noise) CALL(dropout_add, REAL(out), REAL(x), N, C, NOISE(noise))
#define add_uniform_noise(x, magnitude, N, C, noise) \
    CALL(add_uniform_noise, REAL(x), FLOAT(magnitude), N, C, NOISE(noise))
#define attention_forward(out, lse, qkv, start, parent, N, S, NH, hs, ...)                  \
    CALL(attention_forward, REAL(out), FLOAT(lse), REAL(qkv), INTS(start, (size_t)(S) + 1), \
         INTS(parent, (size_t)(S)), N, S, NH, hs, NOISE(__VA_ARGS__))
#define attention_backward(dqkv, dout, qkv, out, lse, start, parent, N, S, NH, hs, ...) \
    CALL(attention_backward, REAL(dqkv), REAL(dout), REAL(qkv), REAL(out), FLOAT(lse),  \
         INTS(start, (size_t)(S) + 1), INTS(parent, (size_t)(S)), N, S, NH, hs,         \
         NOISE(__VA_ARGS__))
#define attention_cached(out, cache, qkv, start, slot, position, N, S, positions, NH, hs)   \
    CALL(attention_cached, REAL(out), REAL(cache), REAL(qkv), INTS(start, (size_t)(S) + 1), \
         INTS(slot, (size_t)(N)), INTS(position, (size_t)(N)), N, S, positions, NH, hs)
#define gather_rows(out, inp, row, R, C) CALL(gather_rows, REAL(out), REAL(inp), INT(row), R, C)
#define scatter_rows(out, inp, row, R, C) CALL(scatter_rows, REAL(out), REAL(inp), INT(row), R, C)
#define scale_rows(x, factor, R, C) CALL(scale_rows, REAL(x), FLOAT(factor), R, C)
#define head_forward(logits, inp, wte, R, C, V, ldv) \
    CALL(head_forward, REAL(logits), REAL(inp), REAL(wte), R, C, V, ldv)
#define head_backward(dinp, dwte, dlogits, inp, wte, R, C, V, ldv) \
    CALL(head_backward, REAL(dinp), FLOAT(dwte), REAL(dlogits), REAL(inp), REAL(wte), R, C, V, ldv)
#define logprob_forward(logp, entropy, lse, best, logits, target, beta, R, V, ldv)          \
    CALL(logprob_forward, FLOAT(logp), FLOAT(entropy), FLOAT(lse), INT(best), REAL(logits), \
         INT(target), beta, R, V, ldv)
#define logprob_backward(logits, lse, entropy, target, dlogp, dentropy, beta, R, V, ldv)        \
    CALL(logprob_backward, REAL(logits), FLOAT(lse), FLOAT(entropy), INT(target), FLOAT(dlogp), \
         FLOAT(dentropy), beta, R, V, ldv)
#define kl_forward(kl, p, lse_p, q, lse_q, beta, R, V, ldv) \
    CALL(kl_forward, FLOAT(kl), REAL(p), FLOAT(lse_p), REAL(q), FLOAT(lse_q), beta, R, V, ldv)
#define value_forward(value, inp, weight, bias, N, C) \
    CALL(value_forward, FLOAT(value), REAL(inp), REAL(weight), REAL(bias), N, C)
#define value_backward(dinp, dweight, dbias, dvalue, inp, weight, N, C)                      \
    CALL(value_backward, REAL(dinp), FLOAT(dweight), FLOAT(dbias), FLOAT(dvalue), REAL(inp), \
         REAL(weight), N, C)
#define sample(token, logp, logits, R, V, ldv, temperature, top_k, top_p, uniform) \
    CALL(sample, token, logp, REAL(logits), R, V, ldv, temperature, top_k, top_p, FLOAT(uniform))
static void adamw_there(const Stepped *x, int count, float scale, float lr, float beta1,
                        float beta2, float epsilon, int t) {
    Stepped there[LISTED];
    ck_must(count <= LISTED, "too many arrays in a step");
    for (int i = 0; i < count; i++)
        there[i] = (Stepped){.w = REAL((const float *)(const void *)x[i].w),
                             .master = FLOAT(x[i].master),
                             .g = FLOAT(x[i].g),
                             .m = FLOAT(x[i].m),
                             .v = FLOAT(x[i].v),
                             .n = x[i].n,
                             .decay = x[i].decay};
    CALL(adamw, there, count, scale, lr, beta1, beta2, epsilon, t);
}
#define adamw adamw_there

/* These two return what they found and write nothing. */
static double sum_of_squares_there(const float *const *x, const size_t *n, int count) {
    double sum = sum_of_squares(FLOATS(x, count), n, count);
    down("sum_of_squares");
    return sum;
}
static float largest_difference_there(const float *a, const float *b, int R, int V, int ldv) {
    float largest = largest_difference(REAL(a), REAL(b), R, V, ldv);
    down("largest_difference");
    return largest;
}
#define sum_of_squares sum_of_squares_there
#define largest_difference largest_difference_there

#endif
