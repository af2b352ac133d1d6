/*
 * tap.h - how a technique adds layers of its own to the network.
 *
 * A Tap is called once at the embedding, as layer 0, and at six sites of every layer, in the
 * forward pass and, in reverse order, in the backward pass. Decoding calls it, too:
 *
 *     r   = wte[token] + wpe        TAP_WTE             inp NULL    out (N,C) = r,  token (N)
 *     r   = dropout(r + NEFTune's noise)
 *     qkv = c_attn(norm)            TAP_C_ATTN          inp (N,C)   out (N,3C)
 *     f   = attn.c_proj(att)        TAP_ATTN_C_PROJ     inp (N,C)   out (N,C)
 *     f   = dropout(f)              TAP_ATTN            inp NULL    out (N,C) = f,  residual = r
 *     h   = r + f
 *     fc  = c_fc(norm)              TAP_C_FC            inp (N,C)   out (N,F)
 *     f   = mlp.c_proj(gelu(fc))    TAP_MLP_C_PROJ      inp (N,F)   out (N,C)
 *     f   = dropout(f)              TAP_MLP             inp NULL    out (N,C) = f,  residual = h
 *     r'  = h + f
 *
 * forward is called when out is computed, and may change it. backward gets dout, the gradient with
 * respect to the changed out. At a linear layer, backward adds to dinp, which already contains the
 * linear layer's own part. At TAP_ATTN and TAP_MLP, it replaces dout by the gradient with respect
 * to the unchanged out, and adds to dresidual. At all sites it adds to the gradients of the
 * technique's own tensors (GPT2Limits.more). Every pointer is device memory, so a Tap computes with
 * the functions of kernels.h.
 */
#ifndef POSTTRAIN_TAP_H
#define POSTTRAIN_TAP_H

#include "model/gpt2.h"
#include "model/kernels.h"
#include "util.h"

typedef enum {
    TAP_C_ATTN,
    TAP_ATTN_C_PROJ,
    TAP_C_FC,
    TAP_MLP_C_PROJ,
    TAP_ATTN,
    TAP_MLP,
    TAP_WTE,
    TAP_SITES
} TapSite;

typedef struct {
    const GPT2 *m;
    int layer;  // 0 at TAP_WTE
    TapSite site;
    int N, IC, OC;         // rows; channels of inp (0 if inp is NULL); channels of out
    const real *inp;       // (N,IC) in both passes
    real *out;             // (N,OC) forward only
    const real *residual;  // (N,C) TAP_ATTN and TAP_MLP, in both passes
    const int *token;      // (N) TAP_WTE, in both passes
    real *dout;            // (N,OC) backward only; read-only at TAP_WTE and at a linear layer
    real *dinp;            // (N,IC) backward only, +=; NULL where nothing below trains
    real *dresidual;       // (N,C) backward only, +=
    int save_at;  // forward: the index, below L (with gradient checkpointing below 1), at which to
                  // save activations for the backward pass; -1 = there will be no backward pass.
                  // backward: the same index
} TapCall;

typedef struct Tap {
    bool at[TAP_SITES];  // the sites at which it is called
    void (*forward)(void *context, const TapCall *call);
    void (*backward)(void *context, const TapCall *call);
    void *context;
} Tap;

/* Weight and gradient of tensor i, on the device. The gradient is NULL if the tensor does not
   train. The weight is NULL if it is quantised. */
real *gpt2_weight(const GPT2 *m, int i);
float *gpt2_gradient(const GPT2 *m, int i);
/* The Noise for dropout of probability p on this call's rows. Outside training p becomes 0.
   The technique chooses purpose; layer and site are combined with it, so that each call has a
   random stream of its own. */
Noise tap_noise(const TapCall *call, float p, RandomPurpose purpose);

#endif
