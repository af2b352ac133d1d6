/*
 * nf4.c - linear layers with a weight in NF4, on a CPU.
 */
#include "model/nf4.h"

#include "model/simd.h"

/* ---- Linear layer in NF4 --------------------------------------------------------------------- */

size_t nf4_bytes(int IC, int OC, bool double_quant) { return nf4_bytes_of(IC, OC, double_quant); }

/* The code of a number from -1 to 1. */
static inline uint8_t nf4_code(float x) {
    int code = 0;
    for (int c = 0; c < 15; c++) code += x > nf4_threshold[c];
    return (uint8_t)code;
}

void nf4_quantize(NF4 *q, void *memory, const real *weight, int IC, int OC, bool double_quant) {
    enum { ROWS = NF4_BLOCK };  // of weight^T at a time: whole blocks for any IC
    const size_t n = (size_t)IC * (size_t)OC, blocks = blocks_of(n, NF4_BLOCK);
    *q = (NF4){.IC = IC, .OC = OC, .code = memory};
    float *absmax = (float *)(void *)(q->code + blocks * (NF4_BLOCK / 2));
    if (double_quant) {
        fill_dynamic_map();
        q->absmax2 = absmax;
        q->absmax8 = (uint8_t *)(absmax + blocks_of(blocks, NF4_BLOCK2));
        absmax = xmalloc(sizeof *absmax * blocks);
    } else {
        q->absmax = absmax;
    }
#pragma omp parallel
    {
        float *x = xmalloc(sizeof *x * ROWS * (size_t)IC);
#pragma omp for schedule(monotonic : dynamic, 1)
        for (int o0 = 0; o0 < OC; o0 += ROWS) {
            const int rows = min_int(ROWS, OC - o0);
            for (int i = 0; i < IC; i++)
                for (int o = 0; o < rows; o++)
                    x[(size_t)o * (size_t)IC + (size_t)i] =
                        weight[(size_t)i * (size_t)OC + (size_t)(o0 + o)];
            const size_t first = (size_t)o0 * (size_t)IC, count = (size_t)rows * (size_t)IC;
            for (size_t at = 0; at < count; at += NF4_BLOCK) {
                const size_t end = at + NF4_BLOCK < count ? at + NF4_BLOCK : count,
                             block = (first + at) / NF4_BLOCK;
                float top = 0;
                bool finite = true;
                for (size_t k = at; k < end; k++) top = fmaxf(top, fabsf(x[k]));
                for (size_t k = at; k < end; k++) finite = finite && isfinite(x[k]);
                if (!finite) top = NAN;  // makes the whole block NaN
                const float inverse = top > 0 ? 1.0f / top : 0;
                for (size_t k = at; k < at + NF4_BLOCK; k += 2) {  // code of 0 after the end
                    uint8_t a = nf4_code(k < end ? x[k] * inverse : 0),
                            b = nf4_code(k + 1 < end ? x[k + 1] * inverse : 0);
                    q->code[(first + k) / 2] = (uint8_t)(a << 4 | b);
                }
                absmax[block] = top;
            }
        }
        free(x);
    }
    if (!double_quant) return;
    quantize_absmax(q, absmax, blocks);
    free(absmax);
}

void nf4_read(float *out, const NF4 *q, size_t offset, size_t n) {
    const size_t IC = (size_t)q->IC, OC = (size_t)q->OC;
#pragma omp parallel for
    for (size_t k = 0; k < n; k++)
        out[k] = nf4_number(q, (offset + k) % OC * IC + (offset + k) / OC);
}

void nf4_linear_forward(real *out, const real *inp, const NF4 *q, const real *bias, int N) {
    product(N, q->OC, q->IC, matrix(inp, q->IC), transposed(nf4_matrix(q)), out, (size_t)q->OC,
            bias, false);
}

void nf4_linear_backward_input(real *dinp, const real *dout, const NF4 *q, int N) {
    // out = inp weight:  dinp = dout weight^T
    product(N, q->IC, q->OC, matrix(dout, q->OC), nf4_matrix(q), dinp, (size_t)q->IC, NULL, false);
}
