/*
 * gpt2.h - what a stage asks of a model: forward, backward and the optimiser's step.
 *
 * GPT-2 (Radford et al. 2019) as Hugging Face stores it: token and position embeddings; per layer
 * norm, attention, residual, norm, MLP, residual; a final norm; a head tied to the token embedding.
 * Every array with a C or a V in its shape stays inside the model. Every pointer in this header is
 * host memory. A stage sees one number per token.
 *
 *   S sequences   N tokens   C channels (n_embd)   V vocabulary   L layers   NH heads   T positions
 *
 * A batch is ragged: S sequences are concatenated without padding and without an attention mask.
 * The results of a sequence do not depend on the other sequences of the batch, bit for bit. Several
 * sequences may share a prefix, their parent, which is then computed once. Each gets the same bits
 * as if the batch contained prefix and continuation as one sequence.
 *
 * The rest of the model's interface: memory.h creates a model, allocates it and copies its tensors;
 * generate.h samples from it; tap.h adds a technique's own layers to it.
 */
#ifndef POSTTRAIN_GPT2_H
#define POSTTRAIN_GPT2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The head on the final norm. The vocabulary's head is tied to wte and adds no tensor. A scalar
   head adds score.weight (1,C). In a model that also has the vocabulary's head, it adds
   v_head.summary.weight (1,C) and v_head.summary.bias (1) instead. */
typedef enum { LM_HEAD, SCORE_HEAD, LM_AND_VALUE_HEAD } GPT2Head;

typedef struct {
    int n_positions;  // T
    int vocab_size;   // V
    int n_layer;      // L
    int n_head;       // NH
    int n_embd;       // C
    int n_inner;      // F, the channels of the MLP: 4C in every released model
    float layer_norm_epsilon;
    float embd_pdrop, attn_pdrop, resid_pdrop;  // dropout in pre-training; a stage uses it only
                                                // on request
    GPT2Head head;
} GPT2Config;

typedef struct {
    int S, N;
    const int *start;    // (S+1) sequence s is tokens[start[s] .. start[s+1]); start[0] = 0 and
                         // start[S] = N
    const int *tokens;   // (N)
    const uint32_t *id;  // (S) identifies a sequence in the random streams, for example by its
                         // record; NULL = 0, 1, 2, ...
    const int *parent;   // (S) index of an earlier sequence of this batch that is the prefix of
                         // this one; -1 = no prefix; a parent has no parent; NULL = all -1
    const int *needed;   // (N) the model's output for token i is needed where needed[i] >= 0, as
                         // the targets of gpt2_logprob; of the other tokens the last layer computes
                         // only keys and values; NULL = all are needed
} Batch;

typedef struct GPT2 GPT2;

const GPT2Config *gpt2_config(const GPT2 *m);

/* ---- forward --------------------------------------------------------------------------------- */

/* The random parts of a forward pass. With all probabilities and alpha 0, nothing is random. */
typedef struct {
    float embd_pdrop, attn_pdrop, resid_pdrop;
    float neftune_alpha;  // uniform noise of magnitude alpha / sqrt(T C) on the embeddings (Jain et
                          // al. 2023), T being the sequence's length
    uint64_t seed;
    uint32_t step;  // the optimiser's step; with seed and the batch's ids it determines every draw
} GPT2Noise;

/* Runs the batch up to the final norm. noise NULL: evaluation, without noise. */
void gpt2_forward(GPT2 *m, const Batch *b, const GPT2Noise *noise);

/* Instead of gpt2_forward on tokens that gpt2_generate has just sampled: takes the outputs that it
   kept (memory.h, limits.kept), which have the same bits. Token i of the batch was followed by
   sampled token of[i], counted as in Generation; < 0: the output of token i is not needed.
   gpt2_logprob, gpt2_kl and gpt2_value may follow, gpt2_backward may not. */
void gpt2_recall(GPT2 *m, const Batch *b, const int *of);

/* Per token (N) of the last forward pass: logp = log p(target[i] | tokens up to i) under
   softmax(logits / temperature), the entropy of that distribution in nats, and best, its most
   likely token. temperature is any number above 0, and 1 is the model's own distribution.
   target[i] < 0 means that token i is not scored: its logits are not computed and its outputs are
   0. entropy and best may be NULL. A stage may call it again after the same gpt2_forward, with
   other targets or another temperature: gpt2_kl and gpt2_backward refer to the last call. logp has
   the same bits as the logp of gpt2_generate for a token that was sampled at this temperature. */
void gpt2_logprob(GPT2 *m, const int *target, float temperature, float *logp, float *entropy,
                  int *best);

/* The exact KL divergence in nats, per token (N): KL(p || q) = sum over the vocabulary of
   p log(p / q), p being the distribution of m and q that of reference. It is 0 for tokens that are
   not scored. First call gpt2_forward and gpt2_logprob on both models with the same batch, targets
   and temperature. */
void gpt2_kl(GPT2 *m, GPT2 *reference, float *kl);

/* The largest absolute difference between the logits of two models, after the same calls as for
   gpt2_kl. *largest, unless NULL, becomes the largest absolute logit of m. Both are infinite if a
   logit is not finite. */
float gpt2_logit_difference(GPT2 *m, GPT2 *other, float *largest);

/* The scalar head, per token (N) of the last forward pass: value[i] = w . ln_f(h_i) (+ bias). It is
   0 for tokens whose output is not needed. */
void gpt2_value(GPT2 *m, float *value);

/* Changes the weights so that every value becomes gain * value + bias. A score head has no bias
   parameter, so the bias is added to ln_f.bias: b += bias w / |w|^2. This changes every score by
   the same amount. A head of zeros is left as it is. */
void gpt2_scale_value(GPT2 *m, double gain, double bias);

/* ---- backward and step ----------------------------------------------------------------------- */

/* Adds the gradients of a loss to those of the weights. dlogp, dentropy and dvalue (N) are the
   loss's derivatives with respect to the outputs of the last gpt2_logprob, at its temperature, and
   of gpt2_value. NULL: the loss does not depend on that output. Entries of tokens that are not
   scored are not read in dlogp and dentropy, nor in dvalue those of tokens whose output is not
   needed. dentropy needs a gpt2_logprob that computed the entropy.
   It consumes the forward pass, whose activations it overwrites: one backward pass per
   gpt2_forward. After it, and after gpt2_generate, the functions that read a forward pass
   (gpt2_logprob, gpt2_value, gpt2_backward) end the program until gpt2_forward is called again. */
void gpt2_backward(GPT2 *m, const float *dlogp, const float *dentropy, const float *dvalue);

typedef struct {
    float learning_rate, beta1, beta2, epsilon;
    float weight_decay;   // only for two-dimensional tensors, which include the embeddings, as in
                          // nanoGPT and llm.c
    float max_grad_norm;  // clip the norm of all gradients together to this; 0 = do not clip
} AdamW;

/* Clips the gradients, applies AdamW and clears the gradients. t counts the steps from 1. Returns
   the norm before clipping. If the norm is not finite, weights and moments are left as they are and
   only the gradients are cleared. */
float gpt2_step(GPT2 *m, const AdamW *o, int t);

/* Clears the gradients without a step. */
void gpt2_clear(GPT2 *m);

#endif
