/*
 * nf4.h - the constants of NF4 (kernels.h) for the kernels of CPU and GPU: the 16 values, the 256
 * values of 8-bit scales, and double quantisation, the quantisation of the blocks' scales. It runs
 * on the host, once, when a model is loaded.
 */
#ifndef POSTTRAIN_NF4_H
#define POSTTRAIN_NF4_H

#include "model/kernels.h"
#include "util.h"

static const float nf4_value[16] = {-1.0f,
                                    -0.6961928009986877f,
                                    -0.5250730514526367f,
                                    -0.39491748809814453f,
                                    -0.28444138169288635f,
                                    -0.18477343022823334f,
                                    -0.09105003625154495f,
                                    0.0f,
                                    0.07958029955625534f,
                                    0.16093020141124725f,
                                    0.24611230194568634f,
                                    0.33791524171829224f,
                                    0.44070982933044434f,
                                    0.5626170039176941f,
                                    0.7229568362236023f,
                                    1.0f};

/* A number above nf4_threshold[c] has a code above c. A threshold is half way between two values.
   All digits are needed to get the same codes as bitsandbytes. */
static const float nf4_threshold[15] = {
    -0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
    -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
    0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
    0.5016634166240692f,   0.6427869200706482f,   0.8614784181118011f};

/* The 256 values of 8-bit scales (Dettmers 2016, "8-bit approximations for parallelism in deep
   learning"), in ascending order: the centres of 2^e equal parts of [0.1, 1] times 10^(e-6), for
   e = 0 .. 6, with both signs; 0; and 1. Computed in float, as in bitsandbytes. */
static float dynamic_map[256];

static inline int ascending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Fills it, in each file that uses it. */
static inline void fill_dynamic_map(void) {
    if (dynamic_map[255] == 1) return;
    int n = 0;
    for (int e = 0; e < 7; e++) {
        const float step = (1 - 0.1f) / (float)(1 << e), unit = (float)pow(10, e - 6);
        for (int i = 0; i < 1 << e; i++) {
            float centre = ((0.1f + step * (float)i) + (0.1f + step * (float)(i + 1))) / 2 * unit;
            dynamic_map[n++] = centre;
            dynamic_map[n++] = -centre;
        }
    }
    dynamic_map[n++] = 0;
    dynamic_map[n++] = 1;
    qsort(dynamic_map, 256, sizeof *dynamic_map, ascending);
}

static inline size_t blocks_of(size_t n, size_t block) { return (n + block - 1) / block; }

static inline size_t nf4_bytes_of(int IC, int OC, bool double_quant) {
    size_t n = (size_t)IC * (size_t)OC, blocks = blocks_of(n, NF4_BLOCK);
    return blocks * (NF4_BLOCK / 2) + (double_quant
                                           ? blocks_of(blocks, NF4_BLOCK2) * sizeof(float) + blocks
                                           : blocks * sizeof(float));
}

/* The index of the nearest of the 256 values; if two are equally near, of the lower one. */
static inline uint8_t dynamic_code(float x) {
    int low = 0, high = 255;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (dynamic_map[middle] <= x)
            low = middle;
        else
            high = middle;
    }
    return (uint8_t)(x - dynamic_map[low] <= dynamic_map[high] - x ? low : high);
}

/* Quantises absmax (blocks), which it overwrites, to absmax8, absmax2 and offset. */
static inline void quantize_absmax(NF4 *q, float *absmax, size_t blocks) {
    double sum = 0;
    for (size_t b = 0; b < blocks; b++) sum += (double)absmax[b];
    q->offset = (float)(sum / (double)blocks);
    for (size_t b0 = 0; b0 < blocks; b0 += NF4_BLOCK2) {
        size_t b1 = b0 + NF4_BLOCK2 < blocks ? b0 + NF4_BLOCK2 : blocks;
        float top = 0;
        for (size_t b = b0; b < b1; b++) top = fmaxf(top, fabsf(absmax[b] -= q->offset));
        const float inverse = top > 0 ? 1.0f / top : 0;
        for (size_t b = b0; b < b1; b++) q->absmax8[b] = dynamic_code(absmax[b] * inverse);
        q->absmax2[b0 / NF4_BLOCK2] = top;
    }
}

/* The scale of a block. */
static inline float nf4_absmax_of(const NF4 *q, size_t block) {
    return q->absmax ? q->absmax[block]
                     : dynamic_map[q->absmax8[block]] * q->absmax2[block / NF4_BLOCK2] + q->offset;
}

/* Element `at` of weight^T, counted row after row. */
static inline float nf4_number(const NF4 *q, size_t at) {
    return nf4_value[at % 2 ? q->code[at / 2] & 15 : q->code[at / 2] >> 4] *
           nf4_absmax_of(q, at / NF4_BLOCK);
}

#endif
