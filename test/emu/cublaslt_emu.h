/*
 * cublaslt_emu.h - cuBLASLt for cuda_emu.h, which includes this file: the calls that kernels.cu
 * makes, under their names.
 *
 *     D (m,n) = epilogue(alpha op(A) (m,k) op(B) (k,n) + beta C (m,n))         every matrix
 * column-major, with a leading dimension
 *
 * A sum is the chain of fused multiply-adds over k in order, from 0; for a way of family 2, which
 * is the first that is offered for fewer than 128 columns of D, from the last k to the first, since
 * on a GPU the order depends on the way, too, and is another besides: results differ in the last
 * bits. A way that was offered for many columns, or a long k, is refused where there are few, as it
 * may be on a GPU. GELU is the tanh form. What a call would touch must be memory of the device, and
 * descriptions must fit each other; else the program ends with a sentence, where cuBLASLt returns a
 * number or reads what it should not.
 *
 * Left out: other types than float and bf16, and all else that the choice of a way changes.
 */
#ifndef POSTTRAIN_CUBLASLT_EMU_H
#define POSTTRAIN_CUBLASLT_EMU_H

#include <immintrin.h>

#include "cuda_emu.h"

/* ---- Descriptions ---------------------------------------------------------------------------- */

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR = 14,
    CUBLAS_STATUS_NOT_SUPPORTED = 15,
};
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
typedef cudaDataType_t cudaDataType;
enum cublasComputeType_t {
    CUBLAS_COMPUTE_32F = 68,
    CUBLAS_COMPUTE_32F_PEDANTIC = 69,
    CUBLAS_COMPUTE_32F_FAST_TF32 = 77
};
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasLtPointerMode_t { CUBLASLT_POINTER_MODE_HOST };
enum cublasLtEpilogue_t {
    CUBLASLT_EPILOGUE_DEFAULT = 1,
    CUBLASLT_EPILOGUE_BIAS = 4,
    CUBLASLT_EPILOGUE_GELU = 32,
    CUBLASLT_EPILOGUE_GELU_BIAS = 36,
    CUBLASLT_EPILOGUE_GELU_AUX = 160,
    CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 164,
    CUBLASLT_EPILOGUE_DGELU = 192,
    CUBLASLT_EPILOGUE_BGRADA = 256,
    CUBLASLT_EPILOGUE_BGRADB = 512,
};
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_POINTER_MODE = 2,
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12,
    CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26,
};
enum cublasLtMatrixLayoutAttribute_t {
    CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5,
    CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6
};
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
};
enum cublasLtMatmulAlgoConfigAttributes_t {
    CUBLASLT_ALGO_CONFIG_ID,
    CUBLASLT_ALGO_CONFIG_TILE_ID,
    CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
    CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
    CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING,
    CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION,
    CUBLASLT_ALGO_CONFIG_STAGES_ID,
};
enum { CUBLASLT_REDUCTION_SCHEME_NONE = 0, CUBLASLT_REDUCTION_SCHEME_MASK = 7 };

typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct cublasLtMatmulDesc {
    cublasComputeType_t compute;
    int32_t trans[2];  // A, B
    uint32_t epilogue;
    void *bias, *aux;
    int64_t aux_ld;
    int32_t bias_type;  // -1: that of D
} * cublasLtMatmulDesc_t;
typedef struct cublasLtMatrixLayout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t ld, stride;
    int32_t batch;
} * cublasLtMatrixLayout_t;
typedef struct cublasLtMatmulPreference {
    uint64_t workspace;
    uint32_t reduction, alignment[4];  // of A, B, C, D
} * cublasLtMatmulPreference_t;
typedef struct {
    uint32_t config[7];
    uint32_t workspace, kind, width[4];  // what it was chosen for: bytes of workspace, types and
                                         // transposes, bytes read at once of A, B, C, D
    uint32_t least[2];                   // columns of D, and k
    bool backwards;                      // over k
} cublasLtMatmulAlgo_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;

inline const char *cublasGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS           ? "the operation completed successfully"
           : status == CUBLAS_STATUS_NOT_INITIALIZED ? "the library was not initialized"
           : status == CUBLAS_STATUS_INTERNAL_ERROR  ? "an internal operation failed"
           : status == CUBLAS_STATUS_NOT_SUPPORTED
               ? "the functionality requested is not supported"
               : "an unsupported value or parameter was passed to the function";
}
inline const char *cublasLtGetStatusString(cublasStatus_t status) {
    return cublasGetStatusString(status);
}

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    if (cuda_emu::check_device(0)) return CUBLAS_STATUS_NOT_INITIALIZED;
    return *handle = (cublasLtHandle_t)malloc(1), CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    return free(handle), CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
    if (scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
    return *d = new cublasLtMatmulDesc{compute, {0, 0}, CUBLASLT_EPILOGUE_DEFAULT, NULL, NULL,
                                       0,       -1},
           CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    return delete d, CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type,
                                                 uint64_t rows, uint64_t columns, int64_t ld) {
    return *l = new cublasLtMatrixLayout{type, rows, columns, ld, 0, 1}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    return delete l, CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    return *p =
               new cublasLtMatmulPreference{
                   0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}},
           CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    return delete p, CUBLAS_STATUS_SUCCESS;
}

namespace cuda_emu {

/* An attribute is handed over as bytes, whose number must be right. */
template <class T>
cublasStatus_t set_attribute(T *field, const void *from, size_t bytes) {
    if (bytes != sizeof *field)
        fail("an attribute of cuBLASLt is set from %zu bytes; it has %zu", bytes, sizeof *field);
    memcpy(field, from, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

}  // namespace cuda_emu

inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                                     cublasLtMatmulDescAttributes_t attribute,
                                                     const void *from, size_t bytes) {
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

inline cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                       cublasLtMatrixLayoutAttribute_t attribute,
                                                       const void *from, size_t bytes) {
    return attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT
               ? cuda_emu::set_attribute(&l->batch, from, bytes)
               : cuda_emu::set_attribute(&l->stride, from, bytes);
}

inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t attribute, const void *from,
    size_t bytes) {
    using cuda_emu::set_attribute;
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        return set_attribute(&p->workspace, from, bytes);
    if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
        return set_attribute(&p->reduction, from, bytes);
    return set_attribute(&p->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                         from, bytes);
}

/* ---- Algorithms ------------------------------------------------------------------------------ */

/* There are two, one for each order over k, but three are offered, and as on a GPU each is good
 * only for what it was chosen for: the second one splits k, which a caller who wants one order of
 * summation must turn down, and all need workspace if they can have it. For few columns of D the
 * first has the other order, and the third is that for many columns with smaller tiles; with
 * CUDA_EMU_OTHER=1 all have the other order. */

namespace cuda_emu {

inline size_t bytes_of(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

/* How many bytes a kernel may read at once of a matrix that begins at a multiple of so many: no
 * more than divide its strides. */
inline uint32_t width(const cublasLtMatrixLayout *l, uint32_t alignment) {
    uint32_t w = 16;
    while (w > 1 && (alignment % w || (size_t)l->ld * bytes_of(l->type) % w ||
                     (l->batch > 1 && (size_t)l->stride * bytes_of(l->type) % w)))
        w /= 2;
    return w;
}

inline uint32_t kind(const cublasLtMatmulDesc *d, const cublasLtMatrixLayout *a,
                     const cublasLtMatrixLayout *c) {
    return (uint32_t)d->trans[0] | (uint32_t)d->trans[1] << 1 |
           (uint32_t)(a->type == CUDA_R_32F) << 2 | (uint32_t)(c->type == CUDA_R_32F) << 3 |
           d->epilogue << 4;
}

}  // namespace cuda_emu

inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out, cublasLtMatmulPreference_t preference,
    int most, cublasLtMatmulHeuristicResult_t *results, int *count) {
    // A library need not have every product: this one has GELU for widths that are multiples of 16,
    // and, unless CUDA_EMU_ODD is 1, no product of three matrices that can be read by single
    // numbers only. So callers' other way is tested too
    auto odd = [&](const cublasLtMatrixLayout *l, int i) {
        return cuda_emu::width(l, preference->alignment[i]) <= cuda_emu::bytes_of(l->type);
    };
    if ((d->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS && out->rows % 16) ||
        (!cuda_emu::setting("CUDA_EMU_ODD", 0) && odd(a, 0) && odd(b, 1) && odd(out, 3)))
        return *count = 0, CUBLAS_STATUS_NOT_SUPPORTED;
    *count = most < 3 ? most : 3;
    for (int i = 0; i < *count; i++) {
        cublasLtMatmulAlgo_t *algo = &(results[i] = {}).algo;
        bool split = i == 1 && preference->reduction;
        const uint64_t columns = out->columns,
                       k = d->trans[0] == CUBLAS_OP_T ? a->rows : a->columns;
        algo->config[CUBLASLT_ALGO_CONFIG_ID] =
            columns < 128 && (i == 0 || cuda_emu::setting("CUDA_EMU_OTHER", 0)) ? 2 : 1;
        algo->config[CUBLASLT_ALGO_CONFIG_TILE_ID] = (columns < 128 ? 10 : 20) - (unsigned)i;
        algo->config[CUBLASLT_ALGO_CONFIG_SPLITK_NUM] = split ? 4 : 1;
        algo->config[CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME] = split ? 2 : 0;
        algo->workspace = (uint32_t)std::min<uint64_t>(preference->workspace / 2, 1 << 20);
        algo->kind = cuda_emu::kind(d, a, c);
        algo->backwards = algo->config[CUBLASLT_ALGO_CONFIG_ID] == 2;
        algo->least[0] = columns < 128 ? 1 : 8;
        algo->least[1] = (uint32_t)(k / 64);
        const cublasLtMatrixLayout *layouts[4] = {a, b, c, out};
        for (int l = 0; l < 4; l++)
            algo->width[l] = cuda_emu::width(layouts[l], preference->alignment[l]);
        results[i].workspaceSize = algo->workspace;
    }
    return *count ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

inline cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(
    cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t attribute, const void *from,
    size_t bytes) {
    return cuda_emu::set_attribute(&algo->config[attribute], from, bytes);
}

inline cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(
    const cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t attribute, void *to,
    size_t bytes, size_t *written) {
    if (written) *written = sizeof *algo->config;
    if (bytes < sizeof *algo->config) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, &algo->config[attribute], sizeof *algo->config);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- The product ----------------------------------------------------------------------------- */

namespace cuda_emu {

inline float load(const void *p, size_t i, cudaDataType_t type) {
    return type == CUDA_R_32F ? ((const float *)p)[i] : bf16_value(((const uint16_t *)p)[i]);
}

inline void store(void *p, size_t i, cudaDataType_t type, float x) {
    if (type == CUDA_R_32F)
        ((float *)p)[i] = x;
    else
        ((uint16_t *)p)[i] = __nv_bfloat16(x).bits;
}

/* What the product touches of a matrix must be there, and so aligned that `at_once` bytes can be
 * read at once. */
inline void matrix(const char *name, const void *p, const cublasLtMatrixLayout *l, uint64_t rows,
                   uint64_t columns, int batch, uint32_t at_once) {
    if (l->rows != rows || l->columns != columns)
        fail("%s is (%zu,%zu) where (%zu,%zu) is wanted", name, l->rows, l->columns, rows, columns);
    if (l->type != CUDA_R_32F && l->type != CUDA_R_16BF)
        fail("%s is of type %d; only CUDA_R_32F and CUDA_R_16BF are emulated", name, l->type);
    if (l->ld < (int64_t)rows)
        fail("%s has a leading dimension of %ld and %zu rows", name, (long)l->ld, rows);
    if (l->batch != batch) fail("%s has %d matrices, D has %d", name, l->batch, batch);
    if (l->batch > 1 && l->stride < 0) fail("%s has a stride of %ld", name, (long)l->stride);
    size_t touched = (size_t)l->stride * (size_t)(batch - 1) + (columns - 1) * (size_t)l->ld + rows;
    device_memory(p, touched * bytes_of(l->type), name);
    aligned(p, std::max((size_t)at_once, bytes_of(l->type)), name);
    if (width(l, 16) < at_once)
        fail(
            "%s has strides of %ld and %ld elements; its algorithm was chosen for multiples of %u "
            "bytes",
            name, (long)l->ld, (long)l->stride, at_once);
}

/* C (m,n), column-major, = the chain over k from 0 of a(i,k) b(k,j), `backwards` from the last k. A
   is copied in panels of 16 rows, B in panels of 6 columns, so that a tile of C stays in registers.
 */
inline void product(float *C, size_t m, size_t n, size_t k, const void *A,
                    const cublasLtMatrixLayout *la, bool ta, const void *B,
                    const cublasLtMatrixLayout *lb, bool tb, bool backwards) {
    enum { M = 16, N = 6 };
    static std::vector<float> a, b;
    size_t panels = (n + N - 1) / N;
    a.assign(M * k, 0), b.assign(panels * N * k, 0);
    for (size_t j = 0; j < n; j++)
        for (size_t l = 0; l < k; l++)
            b[(j / N * k + (backwards ? k - 1 - l : l)) * N + j % N] =
                load(B, tb ? j + l * (size_t)lb->ld : l + j * (size_t)lb->ld, lb->type);
    for (size_t i0 = 0; i0 < m; i0 += M) {
        size_t rows = std::min(m - i0, (size_t)M);
        for (size_t l = 0; l < k; l++)
            for (size_t i = 0; i < rows; i++)
                a[(backwards ? k - 1 - l : l) * M + i] = load(
                    A, ta ? l + (i0 + i) * (size_t)la->ld : i0 + i + l * (size_t)la->ld, la->type);
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

const float gelu_a = 0.79788456f, gelu_b = 0.044715f;  // sqrt(2/pi)

inline float gelu(float x) { return 0.5f * x * (1 + tanhf(gelu_a * (x + gelu_b * x * x * x))); }

inline float gelu_slope(float x) {
    float t = tanhf(gelu_a * (x + gelu_b * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * gelu_a * (1 + 3 * gelu_b * x * x);
}

/* What an epilogue does. aux: with an auxiliary matrix. */
struct Epilogue {
    bool add_bias, sum_a, sum_b, use_gelu, aux;
};

inline Epilogue epilogue_of(unsigned e) {
    const bool use_gelu = e != CUBLASLT_EPILOGUE_DGELU && (e & 32);
    return {e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_BIAS ||
                e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
            e == CUBLASLT_EPILOGUE_BGRADA, e == CUBLASLT_EPILOGUE_BGRADB, use_gelu,
            e == CUBLASLT_EPILOGUE_DGELU || (use_gelu && (e & 128))};
}

/* The part of cublasLtMatmul that runs later. */
struct Described {
    const cublasLtMatmulDesc *d;
    const cublasLtMatrixLayout *la, *lb, *lc, *ld;
};

inline void run_product(Described described, const void *A, const void *B, const void *C, void *D,
                        size_t m, size_t n, size_t k, bool ta, bool tb, float scale, float keep,
                        cudaDataType_t bias_type, bool backwards) {
    auto [d, la, lb, lc, ld] = described;
    const Epilogue e = epilogue_of(d->epilogue);
    Open open;
    std::vector<float> result(m * n);
    for (int batch = 0; batch < ld->batch; batch++) {
        auto at = [&](const void *p, const cublasLtMatrixLayout *l) {
            return (unsigned char *)const_cast<void *>(p) +
                   (size_t)batch * (size_t)l->stride * bytes_of(l->type);
        };
        const void *a = at(A, la), *b = at(B, lb), *c = at(C, lc);
        void *out = at(D, ld);
        product(result.data(), m, n, k, a, la, ta, b, lb, tb, backwards);
        for (size_t j = 0; j < n; j++) {
            for (size_t i = 0; i < m; i++) {
                float x = scale * result[i + j * m];
                if (keep != 0) x = fmaf(keep, load(c, i + j * (size_t)lc->ld, lc->type), x);
                if (e.add_bias) x += load(d->bias, i, bias_type);
                if (e.aux && e.use_gelu) store(d->aux, i + j * (size_t)d->aux_ld, ld->type, x);
                if (e.aux && !e.use_gelu)
                    x *= gelu_slope(load(d->aux, i + j * (size_t)d->aux_ld, ld->type));
                if (e.use_gelu) x = gelu(x);
                store(out, i + j * (size_t)ld->ld, ld->type, x);
            }
        }
        for (size_t i = 0; i < (e.sum_a ? m : e.sum_b ? n : 0); i++) {
            float sum = 0;
            for (size_t l = 0; l < k; l++)
                sum +=
                    e.sum_a
                        ? load(a, ta ? l + i * (size_t)la->ld : i + l * (size_t)la->ld, la->type)
                        : load(b, tb ? i + l * (size_t)lb->ld : l + i * (size_t)lb->ld, lb->type);
            store(d->bias, i, bias_type, sum);
        }
    }
}

/* The first stream that was created. */
inline cudaStream_t streams_first() { return streams.empty() ? NULL : streams[0]; }

}  // namespace cuda_emu

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t d,
                                     const void *alpha, const void *A, cublasLtMatrixLayout_t la,
                                     const void *B, cublasLtMatrixLayout_t lb, const void *beta,
                                     const void *C, cublasLtMatrixLayout_t lc, void *D,
                                     cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algo,
                                     void *workspace, size_t workspace_bytes, cudaStream_t stream) {
    using namespace cuda_emu;
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (long status = setting("CUDA_EMU_CUBLAS", 0)) return (cublasStatus_t)status;
    kernel = "cublasLtMatmul";
    bool ta = d->trans[0] == CUBLAS_OP_T, tb = d->trans[1] == CUBLAS_OP_T;
    size_t m = ld->rows, n = ld->columns, k = ta ? la->rows : la->columns;
    if (!m || !n || !k) fail("a product of (%zu,%zu) and (%zu,%zu)", m, k, k, n);
    if (la->type != lb->type || lc->type != ld->type ||
        (la->type == CUDA_R_32F && ld->type != CUDA_R_32F))
        fail("A, B, C, D are of types %d, %d, %d, %d, a combination that cuBLASLt does not have",
             la->type, lb->type, lc->type, ld->type);
    float scale = *(const float *)alpha, keep = *(const float *)beta;
    // Without an algorithm one is chosen here, for the strides that there are
    uint32_t at_once[4];
    const cublasLtMatrixLayout *layouts[4] = {la, lb, lc, ld};
    for (int i = 0; i < 4; i++)
        at_once[i] =
            algo ? algo->width[i] : width(layouts[i], layouts[i]->type == CUDA_R_16BF ? 16 : 4);
    if (algo && algo->kind != kind(d, la, lc))
        fail("the algorithm was chosen for a product of other types, transposes or epilogue");
    matrix("A", A, la, ta ? k : m, ta ? m : k, ld->batch, at_once[0]);
    matrix("B", B, lb, tb ? n : k, tb ? k : n, ld->batch, at_once[1]);
    matrix("D", D, ld, m, n, ld->batch, at_once[3]);
    if (keep != 0) matrix("C", C, lc, m, n, ld->batch, at_once[2]);
    if (D == A || D == B) fail("D is in the place of %s", D == A ? "A" : "B");
    if (D == C && keep != 0 && (lc->ld != ld->ld || lc->stride != ld->stride))
        fail("C and D are in one place and of different layouts");
    if (algo && algo->workspace > workspace_bytes)
        fail("the algorithm needs %u bytes of workspace and is given %zu", algo->workspace,
             workspace_bytes);
    if (workspace_bytes)
        device_memory(workspace, workspace_bytes, "the workspace"),
            aligned(workspace, 16, "workspace");
    unsigned e = d->epilogue;
    auto [add_bias, sum_a, sum_b, use_gelu, aux] = epilogue_of(e);
    if (!add_bias && !sum_a && !sum_b && !use_gelu && !aux && e != CUBLASLT_EPILOGUE_DEFAULT)
        fail("epilogue %u is not emulated", e);
    cudaDataType_t bias_type = d->bias_type < 0 ? ld->type : (cudaDataType_t)d->bias_type;
    if ((add_bias || sum_a || sum_b) && bias_type != ld->type)
        fail("the bias is of type %d and D of type %d", bias_type, ld->type);
    if (add_bias || sum_a || sum_b)
        device_memory(d->bias, (sum_b ? n : m) * bytes_of(bias_type), "the bias");
    cublasLtMatrixLayout laux = {ld->type, m, n, d->aux_ld, 0, 1};
    if (aux && d->aux_ld % 8)
        fail("the leading dimension of the epilogue's auxiliary matrix is %ld, no multiple of 8",
             (long)d->aux_ld);
    if (aux) matrix("the epilogue's auxiliary matrix", d->aux, &laux, m, n, ld->batch, 16);
    if ((sum_a || sum_b) && ld->batch > 1) fail("a bias gradient of a batch is not emulated");

    kernel = NULL;
    if (algo && (n < algo->least[0] || k < algo->least[1]))
        return counts["refused products"]++, CUBLAS_STATUS_NOT_SUPPORTED;
    // What is described may be forgotten when this returns
    counts[stream == streams_first() ? "products" : "products of other streams"]++;
    enqueue(stream, {NULL,
                     [=, d_ = *d, la_ = *la, lb_ = *lb, lc_ = *lc, ld_ = *ld,
                      backwards = algo && algo->backwards] {
                         run_product({&d_, &la_, &lb_, &lc_, &ld_}, A, B, C, D, m, n, k, ta, tb,
                                     scale, keep, bias_type, backwards);
                     },
                     NULL});
    return CUBLAS_STATUS_SUCCESS;
}

#endif
