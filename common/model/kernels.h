/*
 * kernels.h - the seam between the model and the machine.
 *
 * gpt2.c is written against this page and nothing below it. kernels.c implements it with AVX2 and
 * OpenMP; a GPU implementation links in its place. Nothing here knows what GPT-2 is.
 *
 *   S sequences   N tokens (all sequences laid end to end, never padded)   C channels   V
 * vocabulary NH heads      hs head size (NH * hs = C)   IC, OC input and output channels of a
 * linear layer
 *
 * `real` is the type that weights and activations are stored in. Every real *, and every pointer
 * marked (device), is memory of the backend, from device_alloc(). Arrays are row-major and dense
 * unless a stride is named.
 *
 * Rules that hold for every function:
 *   - Gradients of parameters accumulate (+=): the owner zeroes them. Gradients of activations are
 * overwritten (=), except where a line says +=, which is wherever two paths of the network meet.
 *   - Every output element is accumulated in one fixed order, by one thread or by one group of
 * threads. So the same run gives the same bits, and what belongs to one sequence does not depend on
 * which other sequences are in the batch: a row of a product has the same bits alone, and a decoded
 * token those of the same token in a training batch. And two that are the CPU's alone; another
 * backend holds to them within rounding:
 *   - A product is, for each output element, the chain  acc = fma(a[k], b[k], acc)  for k = 0, 1,
 * 2, ... from the starting value the comment names, whatever the blocking. That is why accumulating
 * two half batches gives a weight gradient the same bits as the whole batch. ("The chain starts
 * from" elsewhere: that value is added in, wherever it comes in the order.)
 *   - No bit depends on the number of threads.
 */
#ifndef POSTTRAIN_KERNELS_H
#define POSTTRAIN_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef REAL_BF16
typedef float real;
#elif defined __cplusplus  // kernels.cu, which has included what defines this type
typedef __nv_bfloat16 real;
#else
typedef uint16_t real;  // bf16, the upper half of a float: the host only passes it on
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- The device ------------------------------------------------------------------------------ */

void device_init(void);  // checks the machine; ends the program with a remedy if it will not do
const char *device_name(void);    // for a person, e.g. "CPU, 2 threads, AVX2"
size_t device_memory_free(void);  // bytes that can still be taken
size_t device_memory_peak(
    void);  // the most bytes so far: of device_alloc; on a CPU, of the whole process
void *device_alloc(size_t bytes);  // zeroed, 64-byte aligned, NULL when there is not enough
void device_free(void *p, size_t bytes);
void device_zero(void *p, size_t bytes);
void device_copy(void *to, const void *from, size_t bytes);       // device -> device
void device_write(void *device, const void *host, size_t bytes);  // host -> device
void device_read(void *host, const void *device, size_t bytes);   // device -> host
real *device_map(
    const void *host,
    size_t n);  // n floats of host memory as device memory; NULL if they must be copied
void device_unmap(
    const real *device,
    size_t n);  // they may leave memory, where a file backs them; whoever reads them again waits
void real_write(real *device, const float *host,
                size_t n);  // the same, converting to and from storage
void real_read(float *host, const real *device, size_t n);

/* ---- Embedding:  out[n] = wte[token[n]] + wpe[position[n]] ----------------------------------- */

void embed_forward(real *out, const int *token, const int *position, const real *wte,
                   const real *wpe, int N, int C);
/* dwte[token[n]] += dout[n];  dwpe[position[n]] += dout[n], in the order of n; dwte or dwpe may be
 * NULL (frozen) */
void embed_backward(float *dwte, float *dwpe, const real *dout, const int *token,
                    const int *position, int N, int C);

/* ---- Linear layer, weight (IC,OC) as GPT-2's files hold it:  out = inp weight + bias --------- */

/* out (N,OC) = bias + inp (N,IC) weight: the chain starts from bias (0 when NULL) */
void linear_forward(real *out, const real *inp, const real *weight, const real *bias, int N, int IC,
                    int OC);
/* dinp (N,IC) = dout (N,OC) weight^T: from 0 */
void linear_backward_input(real *dinp, const real *dout, const real *weight, int N, int IC, int OC);
/* dweight (IC,OC) += inp^T dout;  dbias (OC) += column sums of dout; the chains run over n and go
 * on from what is there */
void linear_backward_weight(float *dweight, float *dbias, const real *inp, const real *dout, int N,
                            int IC, int OC);

/* ---- Projection: a linear layer whose weight (OC,IC) lies as PyTorch's nn.Linear holds it, as
 * adapters' files do  */

/* With add the result joins what is there: the second path of a sum costs no pass of its own. */

/* out (N,OC) = bias + inp (N,IC) weight^T: the chain starts from bias (0 when NULL), with add from
 * out + bias */
void projection_forward(real *out, const real *inp, const real *weight, const real *bias, bool add,
                        int N, int IC, int OC);
/* dinp (N,IC) = dout (N,OC) weight: from 0, with add from dinp */
void projection_backward_input(real *dinp, const real *dout, const real *weight, bool add, int N,
                               int IC, int OC);
/* dweight (OC,IC) += dout^T inp;  dbias (OC) += column sums of dout; either may be NULL; the chains
 * go on from what is there */
void projection_backward_weight(float *dweight, float *dbias, const real *inp, const real *dout,
                                int N, int IC, int OC);
/* out (n) = x + y; out may be either of them */
void add_activations(real *out, const real *x, const real *y, size_t n);
/* x (n) *= factor */
void scale(real *x, float factor, size_t n);

/* ---- A linear layer with a frozen weight of four bits a number: NF4 (Dettmers et al ---------- */

/* 2023, QLoRA), whose 16 values are quantiles of the normal distribution. weight^T (OC,IC) is cut
 * into blocks of 64 numbers as it lies, row after row; a number is stored as the nearest of the 16
 * values times the largest magnitude of its block. Codes, blocks and packing are those of
 * bitsandbytes. */

enum { NF4_BLOCK = 64, NF4_BLOCK2 = 256 };

typedef struct {
    int IC, OC;
    uint8_t *code;  // (device) (OC IC / 2) two codes a byte, the first in the upper half
    float *absmax;  // (device) (blocks) the largest magnitude of each; or NULL, and then, double
                    // quantisation:
    uint8_t *
        absmax8;  // (device) (blocks) absmax = dynamic_map[absmax8] * absmax2[block / 256] + offset
    float *absmax2, offset;  // (device) (blocks / 256); the mean of the absmax
} NF4;

/* 0.5 bytes a number and 4 a block (4.5 bits in all); doubly quantised, 1 a block and 4 for 256 of
 * them (4.127 bits) */
size_t nf4_bytes(int IC, int OC, bool double_quant);
/* q = weight (IC,OC), in memory of so many bytes */
void nf4_quantize(NF4 *q, void *memory, const real *weight, int IC, int OC, bool double_quant);
/* Elements [offset, offset + n) of weight (IC,OC) as they count in a product; out (host) */
void nf4_read(float *out, const NF4 *q, size_t offset, size_t n);
/* linear_forward and linear_backward_input with that weight; on a CPU to the bit as if it stood
 * there in full, which it never does */
void nf4_linear_forward(real *out, const real *inp, const NF4 *weight, const real *bias, int N);
void nf4_linear_backward_input(real *dinp, const real *dout, const NF4 *weight, int N);

/* ---- Residual and layer norm (Ba et al ------------------------------------------------------- */

/* 2016), fused:  sum = x + y;  out = (sum - mean) * rstd * weight + bias */

/* sum (N,C) may be x itself; y may be NULL (then sum is not written and out is the norm of x).
 * mean, rstd (N) */
void layernorm_forward(real *sum, real *out, float *mean, float *rstd, const real *x, const real *y,
                       const real *weight, const real *bias, int N, int C, float epsilon);
/* dsum (N,C) += gradient through the norm (the residual stream already carries its own);  dweight,
 * dbias (C) += or NULL */
void layernorm_backward(real *dsum, float *dweight, float *dbias, const real *dout, const real *sum,
                        const float *mean, const float *rstd, const real *weight, int N, int C);

/* ---- GELU, tanh form (Hendrycks & Gimpel 2016; gelu_new):  0.5 x (1 + tanh(sqrt(2/pi) (x +
 * 0.044715 x^3)))  */

void gelu_forward(real *out, const real *inp, size_t n);
/* pre (N,OC) = bias + inp (N,IC) weight and out (N,OC) = gelu(pre): the two of linear_forward and
 * gelu_forward in one, where the machine has it */
void linear_gelu_forward(real *out, real *pre, const real *inp, const real *weight,
                         const real *bias, int N, int IC, int OC);
/* in one pass: dout (n) *= gelu'(inp), and inp (n) is replaced by gelu(inp), which the weight
 * gradient needs next */
void gelu_backward(real *dout, real *inp, size_t n);

/* ---- ReLU:  max(x, 0), its derivative at 0 being 0 ------------------------------------------- */

/*  SiLU, or swish (Ramachandran et al. 2017):  x / (1 + e^-x). Backward as above: dout (n) *=
 * f'(inp), and inp (n) is replaced by f(inp) */

void relu_forward(real *out, const real *inp, size_t n);
void relu_backward(real *dout, real *inp, size_t n);
void silu_forward(real *out, const real *inp, size_t n);
void silu_backward(real *dout, real *inp, size_t n);

/* ---- Random noise on activations ------------------------------------------------------------- */

/* Element c of the token at position p of sequence id q draws word c % 4 of random4(seed, purpose,
 * step, q, p, c / 4): see util.h. */

typedef struct {
    float p;  // probability of a zero; 0 = nothing happens
    uint64_t seed;
    uint32_t purpose, step;
    const uint32_t *sequence;  // (device) (N) identity of each token's sequence
    const int *position;       // (device) (N)
} Noise;

/* x (N,C) *= keep / (1 - p), keep = uniform >= p; its own backward (apply it to the gradient) */
void dropout(real *x, int N, int C, Noise noise);
/* out (N,C) += x keep / (1 - p) */
void dropout_add(real *out, const real *x, int N, int C, Noise noise);
/* x (N,C) += magnitude[n] * (2 uniform - 1); magnitude (device) (N) (NEFTune, Jain et al. 2023:
 * alpha / sqrt(T C)) */
void add_uniform_noise(real *x, const float *magnitude, int N, int C, Noise noise);

/* ---- Causal self-attention over ragged sequences, blockwise (Dao et al ----------------------- */

/* 2022): out = dropout(softmax(q k^T / sqrt(hs))) v qkv (N,3C) holds q | k | v; sequence s is rows
 * start[s] .. start[s+1]; start, parent (device). A sequence with parent[s] >= 0 goes on from that
 * earlier one, which has no parent itself: its rows also attend to all of the parent's. parent
 * NULL: none does. Keeps lse (N,NH), the log of the sum of exponentials, instead of the T x T
 * probabilities. In dropout, c of element (query, key, head) is key * NH + head. */

void attention_forward(real *out, float *lse, const real *qkv, const int *start, const int *parent,
                       int N, int S, int NH, int hs, Noise noise);
/* dqkv (N,3C) = gradient; out and lse from the forward pass */
void attention_backward(real *dqkv, const real *dout, const real *qkv, const real *out,
                        const float *lse, const int *start, const int *parent, int N, int S, int NH,
                        int hs, Noise noise);

/* The same attention for decoding. A cache holds `slots` sequences of up to `positions` tokens. */
size_t cache_bytes(int slots, int positions, int NH, int hs);  // keys and values of one layer
/* Row n is the token at position[n] of the sequence in slot[n]: its key and value enter the cache,
   then out (N,C) is the attention of its query over keys 0 .. position[n]. Bitwise what
   attention_forward gives that row. Rows of one slot must stand in order of position and follow
   what the cache holds. slot, position (host) (N) */
void attention_cached(real *out, real *cache, const real *qkv, const int *slot, const int *position,
                      int N, int slots, int positions, int NH, int hs);

/* ---- The loss head: logits over the vocabulary for chosen rows ------------------------------- */

void gather_rows(real *out, const real *inp, const int *row, int R, int C);  // out[r] = inp[row[r]]
void scatter_rows(real *out, const real *inp, const int *row, int R,
                  int C);  // out[row[r]] = inp[r]
void scale_rows(real *x, const float *factor, int R,
                int C);  // x[r] *= factor[r], factor (device) (R)
/* logits (R,V) with row stride ldv = inp (R,C) wte^T, wte (V,C) */
void head_forward(real *logits, const real *inp, const real *wte, int R, int C, int V, int ldv);
/* dinp (R,C) = dlogits wte;  dwte (V,C) += dlogits^T inp; either may be NULL */
void head_backward(real *dinp, float *dwte, const real *dlogits, const real *inp, const real *wte,
                   int R, int C, int V, int ldv);
/* per row, p = softmax(beta logits): logp = log p[target], entropy = -sum p log p, lse = log sum
   e^(beta logits), best = argmax (lowest index of ties). All (device) (R); target (R) in [0,V); any
   of entropy, best may be NULL */
void logprob_forward(float *logp, float *entropy, float *lse, int *best, const real *logits,
                     const int *target, float beta, int R, int V, int ldv);
/* logits become dlogits:  beta (dlogp (1[j = target] - p_j) - dentropy p_j (log p_j + entropy));
 * dentropy, entropy may be NULL */
void logprob_backward(real *logits, const float *lse, const float *entropy, const int *target,
                      const float *dlogp, const float *dentropy, float beta, int R, int V, int ldv);
/* per row, kl = sum_j p_j (log p_j - log q_j), p = softmax(beta logits_p), q = softmax(beta
   logits_q); their lse from logprob_forward. kl (device) (R) */
void kl_forward(float *kl, const real *logits_p, const float *lse_p, const real *logits_q,
                const float *lse_q, float beta, int R, int V, int ldv);
/* the largest |a - b| of two such arrays, or, with b NULL, |a|; infinite when one of them is not
 * finite */
float largest_difference(const real *a, const real *b, int R, int V, int ldv);

/* ---- The scalar head:  value[n] = inp[n]  ---------------------------------------------------- */

/* weight + bias;  weight (C), bias (1) or NULL */

/* value (device) (N); on a CPU the sum over c in eight interleaved chains, added in one fixed order
 */
void value_forward(float *value, const real *inp, const real *weight, const real *bias, int N,
                   int C);
/* dinp (N,C) += dvalue[n] weight;  dweight (C), dbias (1) += over n in order, or NULL */
void value_backward(real *dinp, float *dweight, float *dbias, const float *dvalue, const real *inp,
                    const real *weight, int N, int C);

/* ---- Sampling -------------------------------------------------------------------------------- */

/* One token a row from softmax(logits / temperature), after keeping the top_k likeliest (0: all)
 * and then the smallest set of probability top_p (1: all). temperature 0 takes the likeliest.
 * uniform (R) in [0,1) (host) picks by the inverse of the cumulative distribution over token ids in
 * ascending order. token, logp (host) (R); logp is of the distribution drawn from without top_k and
 * top_p (at temperature 0: of temperature 1), and may be NULL. */
void sample(int *token, float *logp, const real *logits, int R, int V, int ldv, float temperature,
            int top_k, float top_p, const float *uniform);

/* ---- The optimiser --------------------------------------------------------------------------- */

/* The squares of all elements of `count` arrays, x[i] (device) (n[i]), added up in double, in an
 * order that depends only on n */
double sum_of_squares(const float *const *x, const size_t *n, int count);
/* AdamW (Loshchilov & Hutter 2019) on n elements, t = 1 for the first step, gradient g * scale:
   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= lr (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps)
   + decay w);  g = 0 Where real has fewer bits than a float a step may be too small to show in it.
   Then the number that the steps add up in is master (n), and w is that number rounded; where real
   is float, master is NULL. */
void adamw(real *w, float *master, float *g, float *m, float *v, size_t n, float scale, float lr,
           float beta1, float beta2, float epsilon, float decay, int t);

#ifdef __cplusplus
}
#endif

#endif
