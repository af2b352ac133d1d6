/*
 * weights.c - a hash of a model's numbers, and the search for one that is not finite: see
 * weights.h.
 */
#include "model/weights.h"

enum {
    PIECE = 1 << 16,  // floats at a time: 256 KiB stay in the L2 cache
    LANES = 8,        // chains of multiplications that a CPU computes at the same time
};

/* The rotation brings the upper bits down: without it, changes of two signs could cancel. */
static inline uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    return hash << 29 | hash >> 35;
}

uint64_t hash_floats(uint64_t hash, const float *x, size_t n) {
    uint64_t lane[LANES], word[LANES];
    const size_t step = LANES * sizeof *word / sizeof(float);
    for (int k = 0; k < LANES; k++) lane[k] = hash + (uint64_t)k;
    size_t i = 0;
    for (; i + step <= n; i += step) {
        memcpy(word, x + i, sizeof word);
        for (int k = 0; k < LANES; k++) lane[k] = mix(lane[k], word[k]);
    }
    memset(word, 0, sizeof word);
    if (i < n) memcpy(word, x + i, (n - i) * sizeof *x);
    for (int k = 0; k < LANES; k++) hash = mix(hash, mix(lane[k], word[k]));
    return mix(hash, n);
}

/* The hash of one part of tensor i, after what gave `hash`. */
static uint64_t hash_tensor(uint64_t hash, const GPT2 *m, int i, GPT2Part part, float *piece) {
    const GPT2Tensor *t = gpt2_tensor(m, i);
    hash = mix(mix(hash, (uint64_t)t->shape[0]), (uint64_t)t->shape[1]);
    for (size_t at = 0; at < t->n; at += PIECE) {
        const size_t n = t->n - at < PIECE ? t->n - at : PIECE;
        gpt2_read(m, i, part, at, n, piece);
        hash = hash_floats(hash, piece, n);
    }
    return hash;
}

uint64_t gpt2_hash_own(const GPT2 *m) {
    uint64_t hash = HASH_START;
    float *piece = (float *)xmalloc(PIECE * sizeof *piece);
    for (int i = 0; i < gpt2_own_tensors(m); i++)
        hash = hash_tensor(hash, m, i, GPT2_WEIGHT, piece);
    free(piece);
    return hash;
}

uint64_t gpt2_hash_weights(const GPT2 *m) {
    uint64_t hash = HASH_START;
    float *piece = (float *)xmalloc(PIECE * sizeof *piece);
    for (int i = 0; i < gpt2_tensors(m); i++) hash = hash_tensor(hash, m, i, GPT2_WEIGHT, piece);
    free(piece);
    return hash;
}

uint64_t gpt2_hash_as(const GPT2 *m, const GPT2 *as) {
    const int n = gpt2_tensors(m) < gpt2_tensors(as) ? gpt2_tensors(m) : gpt2_tensors(as);
    uint64_t hash = HASH_START;
    float *piece = (float *)xmalloc(PIECE * sizeof *piece);
    for (int i = 0; i < n; i++)
        if (gpt2_tensor(as, i)->trains) hash = hash_tensor(hash, m, i, GPT2_WEIGHT, piece);
    free(piece);
    return hash;
}

uint64_t gpt2_hash_trained(const GPT2 *m, bool moments) {
    static const GPT2Part parts[] = {GPT2_WEIGHT, GPT2_MOMENT1, GPT2_MOMENT2};
    uint64_t hash = HASH_START;
    float *piece = (float *)xmalloc(PIECE * sizeof *piece);
    for (int i = 0; i < gpt2_tensors(m); i++)
        for (int k = 0; k < (moments ? 3 : 1) && gpt2_tensor(m, i)->trains; k++)
            hash = hash_tensor(hash, m, i, parts[k], piece);
    free(piece);
    return hash;
}

/* A float is not finite when all bits of its exponent are 1. */
size_t first_not_finite(const float *x, size_t n) {
    uint32_t largest = 0, bits;
    for (size_t i = 0; i < n; i++) {
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    if (largest < 0x7f800000u) return n;
    size_t i = 0;
    while (isfinite(x[i])) i++;
    return i;
}

int gpt2_check_trained(const GPT2 *m, Error *e) {
    float *piece = (float *)xmalloc(PIECE * sizeof *piece);
    int status = 0;
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        for (size_t at = 0; at < t->n && t->trains && !status; at += PIECE) {
            const size_t n = t->n - at < PIECE ? t->n - at : PIECE;
            gpt2_read(m, i, GPT2_WEIGHT, at, n, piece);
            const size_t bad = first_not_finite(piece, n);
            if (bad < n) status = fail(e, "%s[%zu] is %g", t->name, at + bad, (double)piece[bad]);
        }
    }
    free(piece);
    return status;
}
