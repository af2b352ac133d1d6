/*
 * kernels.h - the functions of the machine that the model is computed with.
 *
 * gpt2.c computes with these functions alone. product.c, row.c, layers.c, attention.c, head.c
 * and nf4.c implement them for a CPU with AVX2 or AVX-512 and OpenMP (simd.h), and device.c its
 * memory; kernels.cu implements them for a GPU and is linked instead. None of them contains
 * anything particular to GPT-2.
 *
 *   S sequences   N tokens (of all sequences, concatenated without padding)   C channels
 *   V vocabulary  NH heads   hs head size (NH * hs = C)
 *   IC, OC        input and output channels of a linear layer
 *
 * `real` is the storage type of weights and activations. Every real *, and every pointer marked
 * (device), is memory of the backend, from device_alloc(). Arrays are row-major, and contiguous
 * unless a stride is named.
 *
 * Rules for every function:
 *   - Gradients of parameters accumulate (+=), and the caller clears them. Gradients of activations
 *     are overwritten (=), except where the comment says +=, which is where two paths of the
 * network meet.
 *   - Every output element is accumulated in one fixed order, by one thread or by one group of
 *     threads. So the same run gives the same bits, and the results of a sequence do not depend on
 *     the other sequences of the batch. A row of a product has the same bits if it is computed
 *     alone, and a decoded token has the bits of the same token in a training batch.
 * Two more rules hold exactly only on a CPU. Other backends follow them within rounding:
 *   - In a product, each output element is the chain  acc = fma(a[k], b[k], acc)  for k = 0, 1, 2,
 *     ... from the starting value that the comment gives, whatever the blocking. So accumulating
 * two half batches gives a weight gradient the same bits as the whole batch. (On other backends
 * "the chain starts from" means that the value is added at some point.)
 *   - No bit depends on the number of threads.
 */
#ifndef POSTTRAIN_KERNELS_H
#define POSTTRAIN_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util.h"

#ifndef REAL_BF16
typedef float real;
#elif defined __cplusplus  // kernels.cu, which includes the header of this type first
typedef __nv_bfloat16 real;
#else
typedef uint16_t real;  // bf16, the upper half of a float; the host only copies it
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- The device ------------------------------------------------------------------------------ */

/* Checks the machine. Exits with an error that names a remedy if it is not suitable. */
void device_init(void);
/* Chooses how a CPU computes: "avx2", "avx512", "avx512bf16" (AVX-512 with an instruction for
   bf16), or "auto", the fastest that it has. All give the same bits. -1 with e filled if this
   machine cannot. Call it before anything is computed. */
int device_choose(const char *way, Error *e);
/* A name for messages, for example "CPU, 2 threads, AVX2". */
const char *device_name(void);
/* Bytes that can still be allocated. */
size_t device_memory_free(void);
/* The most bytes allocated so far: by device_alloc or, on a CPU, by the whole process. */
size_t device_memory_peak(void);
/* Zeroed memory, aligned to 64 bytes. NULL if there is not enough. */
void *device_alloc(size_t bytes);
void device_free(void *p, size_t bytes);
void device_zero(void *p, size_t bytes);
void device_copy(void *to, const void *from, size_t bytes);       // device -> device
void device_write(void *device, const void *host, size_t bytes);  // host -> device
void device_read(void *host, const void *device, size_t bytes);   // device -> host
/* Returns n floats of host memory as device memory. NULL if they must be copied. */
real *device_map(const void *host, size_t n);
/* Lets the system evict these pages of a mapped file; the next access reads them again. */
void device_unmap(const real *device, size_t n);
/* device_write and device_read of n numbers that convert between float and real. */
void real_write(real *device, const float *host, size_t n);
void real_read(float *host, const real *device, size_t n);
/* to (n) = from, rounded to real. Both are (device). */
void real_round(real *to, const float *from, size_t n);

/*
 * A GPU does what it is told in the order of a queue, and a function here may return before it is
 * done. From device_beside(true) on, functions use a second queue, which begins when all is done
 * that is in the first one by then. It runs beside what the first one gets from
 * device_beside(false) on. The host waits with device_wait. A CPU has no queues: a function returns
 * when it is done.
 */
void device_beside(bool beside);
/* Waits for the queue in use. */
void device_wait(void);
/* The queue in use: a cudaStream_t. Only a GPU's kernels have this function. */
void *device_stream(void);

/* ---- Precision of a CPU's products ----------------------------------------------------------- */

/*
 * FLOAT32 is the chain above. With BF16, the factors of linear layers, projections and the loss
 * head are rounded to bf16, which is the upper half of a float: to nearest, ties to even; NaN stays
 * NaN, and a denormal becomes 0. The chain is still one of floats, and takes two terms at a time,
 * the odd one first:
 *
 *     acc = fma(a[k+1], b[k+1], acc);  acc = fma(a[k], b[k], acc)    for k = 0, 2, 4, ...
 *
 * An odd number of terms is completed by one of 0 x 0. A denormal acc is replaced by 0, before and
 * after each fma (after it is rounded as if there were no smallest exponent). This is what the
 * instruction VDPBF16PS computes, so every CPU has the same bits. A weight gradient of two halves
 * of a batch has the bits of the whole if the first half has an even number of rows. embed_forward
 * rounds wte, because the head has the same weight. All else (activations, parameters, gradients,
 * norms, softmax, attention) remains float.
 *
 * BF16_WEIGHTS is the same with weights that are stored in bf16: the arguments `weight` of
 * linear_forward, linear_backward_input and linear_gelu_forward, and `wte`, point to them.
 */
typedef enum { FLOAT32, BF16, BF16_WEIGHTS } Precision;

/* The precision of all products from now on. Other backends ignore it. */
void device_precision(Precision precision);
/* out (n) = x rounded to bf16. */
void round_weights(uint16_t *out, const real *x, size_t n);

/* ---- Embedding:  out[n] = wte[token[n]] + wpe[position[n]] ----------------------------------- */

/* wpe NULL: there are no positions, and position is not read. */
void embed_forward(real *out, const int *token, const int *position, const real *wte,
                   const real *wpe, int N, int C);
/* dwte[token[n]] += dout[n];  dwpe[position[n]] += dout[n], in the order of n. dwte or dwpe may be
   NULL (frozen). */
void embed_backward(float *dwte, float *dwpe, const real *dout, const int *token,
                    const int *position, int N, int C);

/* ---- Linear layer:  out = inp weight + bias, weight (IC,OC) as in GPT-2's files -------------- */

/* out (N,OC) = bias + inp (N,IC) weight. The chain starts from bias (0 if NULL). */
void linear_forward(real *out, const real *inp, const real *weight, const real *bias, int N, int IC,
                    int OC);
/* dinp (N,IC) = dout (N,OC) weight^T. The chain starts from 0. */
void linear_backward_input(real *dinp, const real *dout, const real *weight, int N, int IC, int OC);
/* dweight (IC,OC) += inp^T dout;  dbias (OC) += column sums of dout. The chains run over n and
   start from the previous dweight and dbias. */
void linear_backward_weight(float *dweight, float *dbias, const real *inp, const real *dout, int N,
                            int IC, int OC);

/* ---- Projection: a linear layer with weight (OC,IC), as in PyTorch and the adapters' files --- */

/* With add, the result is added to the previous contents, which saves a separate addition. */

/* out (N,OC) = bias + inp (N,IC) weight^T. The chain starts from bias (0 if NULL); with add, from
   out + bias. */
void projection_forward(real *out, const real *inp, const real *weight, const real *bias, bool add,
                        int N, int IC, int OC);
/* dinp (N,IC) = dout (N,OC) weight. The chain starts from 0; with add, from dinp. */
void projection_backward_input(real *dinp, const real *dout, const real *weight, bool add, int N,
                               int IC, int OC);
/* dweight (OC,IC) += dout^T inp;  dbias (OC) += column sums of dout. Either may be NULL. The chains
   start from the previous dweight and dbias. */
void projection_backward_weight(float *dweight, float *dbias, const real *inp, const real *dout,
                                int N, int IC, int OC);
/* out (n) = x + y. out may be x or y. */
void add_activations(real *out, const real *x, const real *y, size_t n);
/* x (n) *= factor */
void scale(real *x, float factor, size_t n);

/* ---- Linear layer with a frozen weight in NF4 ------------------------------------------------ */

/* NF4 has 4 bits a number (QLoRA, Dettmers et al. 2023). Its 16 values are quantiles of the normal
   distribution. weight^T (OC,IC), row after row, is divided into blocks of 64 numbers. A number is
   stored as the code of the nearest of the 16 values times the block's absmax, the largest absolute
   value of the block. Codes, blocks and packing are those of bitsandbytes. With double
   quantisation, the absmax are stored in 8 bits. */

enum { NF4_BLOCK = 64, NF4_BLOCK2 = 256 };

typedef struct {
    int IC, OC;
    uint8_t *code;     // (device) (OC IC / 2) two codes a byte, the first in the upper half
    float *absmax;     // (device) (blocks); NULL with double quantisation, and then
    uint8_t *absmax8;  // (device) (blocks) absmax = dynamic_map[absmax8] * absmax2[block / 256] +
                       // offset
    float *absmax2;    // (device) (blocks / 256)
    float offset;      // the mean of the absmax
} NF4;

/* 4 bits a number and 4 bytes a block (4.5 bits a number in all). With double quantisation 1 byte a
   block and 4 bytes for 256 blocks (4.127 bits). */
size_t nf4_bytes(int IC, int OC, bool double_quant);
/* q = weight (IC,OC), stored in memory, which has nf4_bytes bytes. */
void nf4_quantize(NF4 *q, void *memory, const real *weight, int IC, int OC, bool double_quant);
/* out (host) = elements [offset, offset + n) of the dequantised weight (IC,OC). */
void nf4_read(float *out, const NF4 *q, size_t offset, size_t n);
/* linear_forward and linear_backward_input with the dequantised weight; on a CPU with the same
   bits. The dequantised weight is never stored as a whole. */
void nf4_linear_forward(real *out, const real *inp, const NF4 *weight, const real *bias, int N);
void nf4_linear_backward_input(real *dinp, const real *dout, const NF4 *weight, int N);

/* ---- Residual and layer norm:  sum = x + y;  out = (sum - mean) * rstd * weight + bias ------- */

/* (Ba et al. 2016.) sum (N,C) may be x. y may be NULL: then sum is not written, and out is the norm
   of x. mean, rstd (N) */
void layernorm_forward(real *sum, real *out, float *mean, float *rstd, const real *x, const real *y,
                       const real *weight, const real *bias, int N, int C, float epsilon);
/* dsum (N,C) += gradient through the norm; dsum already contains that of the residual stream.
   dweight, dbias (C) += or NULL. */
void layernorm_backward(real *dsum, float *dweight, float *dbias, const real *dout, const real *sum,
                        const float *mean, const float *rstd, const real *weight, int N, int C);

/* ---- GELU:  0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) ---------------------------------- */

/* The tanh form (Hendrycks & Gimpel 2016), which Hugging Face calls gelu_new. */

void gelu_forward(real *out, const real *inp, size_t n);
/* pre (N,OC) = bias + inp (N,IC) weight;  out (N,OC) = gelu(pre). The same as linear_forward and
   gelu_forward, but in one kernel if the machine has one. */
void linear_gelu_forward(real *out, real *pre, const real *inp, const real *weight,
                         const real *bias, int N, int IC, int OC);
/* In one pass: dout (n) *= gelu'(inp), and inp (n) = gelu(inp), which the weight gradient needs
   next. */
void gelu_backward(real *dout, real *inp, size_t n);

/* ---- ReLU:  max(x, 0).  SiLU:  x / (1 + e^-x) ------------------------------------------------ */

/* The derivative of ReLU at 0 is 0. SiLU is also known as swish (Ramachandran et al. 2017). The
   backward functions are like gelu_backward: dout (n) *= f'(inp), and inp (n) = f(inp). */

void relu_forward(real *out, const real *inp, size_t n);
void relu_backward(real *dout, real *inp, size_t n);
void silu_forward(real *out, const real *inp, size_t n);
void silu_backward(real *dout, real *inp, size_t n);

/* ---- Random noise on activations ------------------------------------------------------------- */

/* Element c of the token at position p of the sequence with id q uses word c % 4 of random4(seed,
   purpose, step, q, p, c / 4) (util.h). */

typedef struct {
    float p;  // probability of a zero; 0 = no noise
    uint64_t seed;
    uint32_t purpose, step;
    const uint32_t *sequence;  // (device) (N) id of each token's sequence
    const int *position;       // (device) (N)
} Noise;

/* x (N,C) *= mask / (1 - p), mask = uniform >= p. For the backward pass, call it on the gradient.
 */
void dropout(real *x, int N, int C, Noise noise);
/* out (N,C) += x mask / (1 - p) */
void dropout_add(real *out, const real *x, int N, int C, Noise noise);
/* x (N,C) += magnitude[n] * (2 uniform - 1). magnitude (device) (N); in NEFTune (Jain et al. 2023)
   it is alpha / sqrt(T C). */
void add_uniform_noise(real *x, const float *magnitude, int N, int C, Noise noise);

/* ---- Causal self-attention:  out = dropout(softmax(q k^T / sqrt(hs))) v ---------------------- */

/* Computed block by block (Dao et al. 2022). qkv (N,3C) contains q | k | v. Sequence s is rows
   start[s] .. start[s+1]. If parent[s] >= 0, that earlier sequence is the prefix of sequence s,
   whose rows also attend to all rows of the parent. A parent has no parent. parent NULL: no
   sequence has one. start, parent (device). Stores lse (N,NH), the log of the sum of exponentials,
   instead of T x T probabilities. For dropout, element (query, key, head) has c = 4 (key / 4 * NH +
   head) + key % 4, so that four keys share a draw. */

void attention_forward(real *out, float *lse, const real *qkv, const int *start, const int *parent,
                       int N, int S, int NH, int hs, Noise noise);
/* dqkv (N,3C) = gradient. out and lse are those of the forward pass. */
void attention_backward(real *dqkv, const real *dout, const real *qkv, const real *out,
                        const float *lse, const int *start, const int *parent, int N, int S, int NH,
                        int hs, Noise noise);

/* Bytes of one layer's cache of keys and values, for `slots` sequences of up to `positions` tokens.
   The part of a slot is contiguous: slot after slot, cache_bytes(1, ...) each. */
size_t cache_bytes(int slots, int positions, int NH, int hs);
/* Attention for decoding. Row n is the token at position[n] of the sequence in slot[n]. Stores its
   key and value in the cache. Then out (N,C) = attention of its query to keys 0 .. position[n],
   with the bits of attention_forward. The rows of one slot must be in ascending order of position
   and must continue the positions in the cache. Rows start[s] .. start[s+1] are of one slot, at
   consecutive positions. start (S+1), slot (N), position (N) (device) */
void attention_cached(real *out, real *cache, const real *qkv, const int *start, const int *slot,
                      const int *position, int N, int S, int positions, int NH, int hs);

/* ---- The loss head: logits over the vocabulary for selected rows ----------------------------- */

/* The rows of wte in memory, V or more. Those from V on are zero, and stay zero. On a GPU they make
   products over the vocabulary as fast as those of whole tiles; only these products include them,
   as further logits. */
int vocabulary_rows(int V);

/* out[r] = inp[row[r]] */
void gather_rows(real *out, const real *inp, const int *row, int R, int C);
/* out[row[r]] = inp[r] */
void scatter_rows(real *out, const real *inp, const int *row, int R, int C);
/* x[r] *= factor[r], factor (device) (R) */
void scale_rows(real *x, const float *factor, int R, int C);
/* logits (R,V) with row stride ldv = inp (R,C) wte^T, wte (V,C) */
void head_forward(real *logits, const real *inp, const real *wte, int R, int C, int V, int ldv);
/* dinp (R,C) = dlogits wte;  dwte (V,C) += dlogits^T inp. Either may be NULL. */
void head_backward(real *dinp, float *dwte, const real *dlogits, const real *inp, const real *wte,
                   int R, int C, int V, int ldv);
/* Per row, with p = softmax(beta logits): logp = log p[target], entropy = -sum p log p, lse = log
   sum e^(beta logits), best = argmax (the lowest index if several are equal). All (device) (R).
   target (R) in [0,V). entropy and best may be NULL. */
void logprob_forward(float *logp, float *entropy, float *lse, int *best, const real *logits,
                     const int *target, float beta, int R, int V, int ldv);
/* Replaces logits by dlogits:  beta (dlogp (1[j = target] - p_j) - dentropy p_j (log p_j +
   entropy)), and columns V .. ldv by 0. dentropy and entropy may be NULL. */
void logprob_backward(real *logits, const float *lse, const float *entropy, const int *target,
                      const float *dlogp, const float *dentropy, float beta, int R, int V, int ldv);
/* Per row, kl = sum_j p_j (log p_j - log q_j), p = softmax(beta logits_p), q = softmax(beta
   logits_q). lse_p and lse_q are those of logprob_forward. kl (device) (R) */
void kl_forward(float *kl, const real *logits_p, const float *lse_p, const real *logits_q,
                const float *lse_q, float beta, int R, int V, int ldv);
/* The largest |a - b| of two arrays of logits; with b NULL the largest |a|. Infinite if one of them
   is not finite. */
float largest_difference(const real *a, const real *b, int R, int V, int ldv);

/* ---- The scalar head:  value[n] = inp[n] . weight + bias ------------------------------------- */

/* weight (C), bias (1) or NULL, value (device) (N). On a CPU, the sum over c is eight interleaved
   chains, which are added in one fixed order. */
void value_forward(float *value, const real *inp, const real *weight, const real *bias, int N,
                   int C);
/* dinp (N,C) += dvalue[n] weight;  dweight (C), dbias (1) += over n in order, or NULL. */
void value_backward(real *dinp, float *dweight, float *dbias, const float *dvalue, const real *inp,
                    const real *weight, int N, int C);

/* ---- Sampling -------------------------------------------------------------------------------- */

/* Samples one token per row from softmax(logits / temperature), restricted first to the top_k most
   likely tokens (0: no limit), then to the smallest set of tokens whose probability reaches top_p
   (1: no limit). temperature 0 selects the most likely token. uniform (device) (R) in [0,1) selects
   the token by the inverse of the cumulative distribution, with token ids in ascending order.
   token, logp (host) (R). logp is the log-probability without top_k and top_p (at temperature 0,
   that of temperature 1). It may be NULL. */
void sample(int *token, float *logp, const real *logits, int R, int V, int ldv, float temperature,
            int top_k, float top_p, const float *uniform);

/* ---- The optimiser --------------------------------------------------------------------------- */

/* The sum in double of the squares of all elements of `count` arrays x[i] (device) (n[i]). The
   order of the sum depends only on n. */
double sum_of_squares(const float *const *x, const size_t *n, int count);
/* a (n) += b */
void add_floats(float *a, const float *b, size_t n);
/* n weights that a step changes, with their gradient and its moments (all on the device). If real
   has fewer bits than a float, a step may be too small to change w. Then the steps are added to
   master (n), and w is master rounded. If real is float, master is NULL. */
typedef struct {
    real *w;
    float *master, *g, *m, *v;
    size_t n;
    float decay;
} Stepped;
/* AdamW (Loshchilov & Hutter 2019) on `count` arrays x (host). t = 1 in the first step. g is used
   as g * scale:
       m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
       w -= lr (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + decay w);  g = 0 */
void adamw(const Stepped *x, int count, float scale, float lr, float beta1, float beta2,
           float epsilon, int t);

#ifdef __cplusplus
}
#endif

#endif
