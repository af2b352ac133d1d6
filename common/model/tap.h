/*
 * tap.h - how a technique gets inside the network.
 *
 * A Tap is called at six places of every layer, in the forward pass and, in reverse, in the
 * backward pass:
 *
 *     qkv = c_attn(norm)            TAP_C_ATTN          inp (N,C)   out (N,3C)
 *     f   = attn.c_proj(att)        TAP_ATTN_C_PROJ     inp (N,C)   out (N,C)
 *     f   = dropout(f)              TAP_ATTN            inp NULL    out (N,C) = f,  residual = r
 * (then h = r + f) fc  = c_fc(norm)              TAP_C_FC            inp (N,C)   out (N,F) f   =
 * mlp.c_proj(gelu(fc))    TAP_MLP_C_PROJ      inp (N,F)   out (N,C) f   = dropout(f) TAP_MLP inp
 * NULL    out (N,C) = f,  residual = h     (then r' = h + f)
 *
 * forward may edit out. backward gets dout, the gradient by what forward left there. At a linear
 * layer it adds (+=) to dinp, which already holds the linear layer's own part. At TAP_ATTN and
 * TAP_MLP it turns dout into the gradient by what forward found there, and adds to dresidual. At
 * all of them it adds to the gradients of the tensors that the technique brought (GPT2Limits.more).
 * Every pointer is memory of the device: what is done there is done by the functions of kernels.h.
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
    TAP_SITES
} TapSite;

typedef struct {
    const GPT2 *m;
    int layer;
    TapSite site;
    int N, IC, OC;         // rows; channels of inp (0 without inp) and out
    const real *inp;       // (N,IC)
    real *out;             // (N,OC) forward only
    const real *residual;  // (N,C)
    real *dout;  // (N,OC) backward only, like the next two; not to be changed at a linear layer
    real *dinp;  // (N,IC) +=, or NULL where nothing below trains
    real *dresidual;  // (N,C) +=
    int keep;  // forward: -1 = no backward pass will ask for this call; else one of GPT2's L (with
               // gradient checkpointing 1) places where to keep what backward needs. backward: the
               // same place
} TapCall;

typedef struct Tap {
    bool at[TAP_SITES];  // the places where it wants to be called
    void (*forward)(void *context, const TapCall *call);
    void (*backward)(void *context, const TapCall *call);
    void *context;
} Tap;

/* Weight and gradient of tensor i, on the device; the gradient is NULL when it does not train, the
 * weight when it is quantised. */
real *gpt2_weight(const GPT2 *m, int i);
float *gpt2_gradient(const GPT2 *m, int i);
/* Dropout at this call's rows: p = 0 outside training. purpose is the technique's own; layer and
 * site are mixed in. */
Noise tap_noise(const TapCall *call, float p, RandomPurpose purpose);

#endif
