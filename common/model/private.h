/*
 * private.h - the inside of a model, for gpt2.c, memory.c, generate.c and their tests only.
 */
#ifndef POSTTRAIN_PRIVATE_H
#define POSTTRAIN_PRIVATE_H

#include "model/gpt2.h"
#include "model/kernels.h"
#include "model/memory.h"
#include "model/tap.h"
#include "util.h"

/* Order of the tensors: wte, wpe, then these twelve for each layer, then weight and bias of ln_f,
   then the scalar head's, then those of limits.more. */
enum {
    LN1_W,
    LN1_B,
    QKV_W,
    QKV_B,
    PROJ_W,
    PROJ_B,
    LN2_W,
    LN2_B,
    FC_W,
    FC_B,
    OUT_W,
    OUT_B,
    PER_LAYER
};
enum { WTE, WPE, FIRST_LAYER };

/* 1 where `real` is shorter than a float. Then weights that train have masters: floats that add up
   the optimiser's steps, most of which are too small for `real` (kernels.h, adamw). A weight is its
   master rounded. Masters are part of the optimiser's state and count as moments. */
enum { SHORT = sizeof(real) < sizeof(float) };

/* The most memory for logits, in bytes. If the logits of a batch need more, they are computed in
   turns, and when training most of them twice, which costs a tenth of a step at the size of GPT-2
   124M. 200 MB hold 994 rows of GPT-2's vocabulary.
   With a frozen embedding, logits would be the largest array after the weights, and need not be
   computed twice (gpt2_logprob), so they get less: 52 MB hold 258 rows. A GPU in bf16 gets more,
   because it needs many rows at once to be fast: 1,650 MB hold 16,410 rows, and 400 MB 3,978. */
enum {
    LOGIT_BYTES = (SHORT ? 1650 : 200) * 1000 * 1000,
    LOGIT_BYTES_FROZEN = (SHORT ? 400 : 52) * 1000 * 1000
};

/* Device addresses of a tensor's parts. g, m1 and m2 are NULL if it does not train, master also
   unless SHORT. */
typedef struct {
    real *w;
    float *master, *g, *m1, *m2;
    bool owns_w;  // w was allocated for this tensor alone, because a mapped model needed a copy
    bool half;    // w points to numbers of bf16
    NF4 *nf4;     // the quantised weight, which replaces w; or NULL
} Parts;

/* Activations of one layer, all with N rows. Without training all layers share the arrays of layer
   0. With gradient checkpointing they share all but r. */
typedef struct {
    real *r, *qkv, *att, *h, *fc;                // (N,C) (N,3C) (N,C) (N,C) (N,F)
    float *lse, *mean1, *rstd1, *mean2, *rstd2;  // (N,NH), then (N)
} Layer;

struct GPT2 {
    GPT2Config config;
    GPT2Limits limits;
    GPT2Memory memory;
    bool mapped, reserved;
    Precision precision;  // of the model's products
    Tap tap;
    int tensors, own;    // all tensors, and the model's own
    GPT2Tensor *tensor;  // (tensors)
    Parts *parts;        // (tensors)

    // memory of the device, one allocation each
    real *weights;   // of the model's own tensors, unless it is mapped
    real *more;      // weights of the tensors of limits.more
    float *masters;  // of all own tensors, until gpt2_reserve copies the needed ones to moments
    float *gradients;
    float *moments;           // first moments, second moments, masters
    char *scratch;            // activations, logits, workspace and cache: all arrays below
    uint16_t *short_weights;  // room for the matrices in bf16, while a model that trains decodes

    // (trained_count) the gradients, and how many elements each has
    const float **trained;
    size_t *trained_n;
    int trained_count;

    void (*release)(void *context);  // unmaps the file
    void *release_context;

    // Activations. Arrays in brackets share memory with the logits, because they are never in use
    // at the same time.
    Layer *layer;            // (L)
    real *r_final;           // (N,C) the residual stream that ln_f reads
    real *norm;              // (N,C) output of the last layer norm
    real *d_r, *d_norm;      // (N,C) their gradients
    float *mean_f, *rstd_f;  // (N) of ln_f
    real *branch;            // [(N,C)] output of a layer's attention or MLP
    real *wide;              // [(N,max(F,3C))]
    real *act;               // [(N,F)] gelu(fc), for a tap at mlp.c_proj, which needs both
    real *head_in;           // (scored,C) rows of norm that have a target
    real *logits;            // (logit_rows,ldv)
    int logit_rows, ldv;
    float *logp, *entropy, *lse;  // (scored)
    float *dlogp, *dentropy;      // (scored)
    int *best, *target, *row;     // (scored) row: index of the token in the batch
    int *start, *parent;          // (S+1) (S)
    int *token, *position;        // (N)
    uint32_t *sequence;           // (N) id of each token's sequence
    float *magnitude;             // (N) of NEFTune's noise
    float *value;                 // (N) the scalar head's output, or its gradient
    char *cache;                  // keys and values of L layers

    // memory of the host, for copies to and from the device
    int *host_int;      // (max(N, S+1))
    float *host_float;  // (N)
    int *host_row;      // (scored) rows of the last gpt2_logprob

    // state of the last forward pass
    Batch batch;  // its arrays belong to the caller
    GPT2Noise noise;
    bool noisy;            // noise is in use
    bool in_memory;        // its activations: until the backward pass or decoding overwrites them
    bool recomputing;      // a layer's second forward pass, with gradient checkpointing
    bool decoding;         // a forward pass with the cache
    int scored;            // rows with a target
    int logits_kept;       // the logits of rows [0,logits_kept) are in memory
    float beta;            // 1 / temperature
    bool with_entropy;     // gpt2_logprob computed entropies
    bool head_in_is_grad;  // head_in contains d logp / d head_in instead of its own rows
};

static inline Parts *of_layer(const GPT2 *m, int l) {
    return m->parts + FIRST_LAYER + PER_LAYER * l;
}

/* Can tensor t be stored in bf16? */
bool gpt2_is_factor(const GPT2Tensor *t);
/* Replaces the matrices of a model by copies in bf16, and back. The products of the model have the
   same bits. */
void gpt2_shorten(GPT2 *m);
void gpt2_lengthen(GPT2 *m, Parts *before);

/* ---- parts of a forward pass, in gpt2.c, which decoding uses as well ------------------------- */

/* out (N,OC) = inp (N,IC) w + b. p[0] is the weight, which may be quantised, and p[1] the bias. */
void gpt2_linear(real *out, const real *inp, const Parts *p, int N, int IC, int OC);
/* fc (N,F) = c_fc(norm), which the backward pass needs, and wide (N,F) = gelu(fc), with the tap at
   c_fc in between. */
void gpt2_expand(GPT2 *m, int l, real *fc, int N);
/* Calls the tap, if there is one at this site of layer l, on out (N,OC). */
void gpt2_tap(const GPT2 *m, int l, TapSite site, int N, int IC, int OC, const real *inp, real *out,
              const real *residual);

#endif
