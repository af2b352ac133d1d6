/*
 * gpt2.h - what a stage may ask of a model.
 *
 * GPT-2 (Radford et al. 2019) as Hugging Face stores it: token and position embeddings; per layer
 * norm, attention, residual, norm, MLP, residual; a final norm; a head tied to the token embedding.
 * Everything with a C or a V in its shape lives behind this page. Every pointer here is host
 * memory, and what a stage sees is one number per token.
 *
 *   S sequences   N tokens   C channels (n_embd)   V vocabulary   L layers   NH heads   T positions
 *
 * A batch is ragged: S sequences laid end to end, no padding, no attention mask. What a sequence
 * gives does not depend on its neighbours, to the bit. Several may go on from one common beginning,
 * their parent, which is then computed once: each gets the same bits as if it stood there whole.
 */
#ifndef POSTTRAIN_GPT2_H
#define POSTTRAIN_GPT2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What stands on the final norm. The vocabulary's head is tied to wte and adds no tensor; a scalar
   head adds score.weight (1,C), and beside a vocabulary's head v_head.summary.weight (1,C) and
   v_head.summary.bias (1). */
typedef enum { LM_HEAD, SCORE_HEAD, LM_AND_VALUE_HEAD } GPT2Head;

typedef struct {
    int n_positions, vocab_size, n_layer, n_head, n_embd,
        n_inner;  // T V L NH C F; n_inner is 4C in every release
    float layer_norm_epsilon;
    float embd_pdrop, attn_pdrop, resid_pdrop;  // what the model was trained with; used on request
    GPT2Head head;
} GPT2Config;

typedef struct {
    int S, N;
    const int
        *start;  // (S+1) sequence s is tokens[start[s] .. start[s+1]); start[0] = 0, start[S] = N
    const int *tokens;   // (N)
    const uint32_t *id;  // (S) what names a sequence in the random streams, e.g. its record; NULL =
                         // 0, 1, 2, ...
    const int *parent;   // (S) the earlier sequence of this batch that comes before it, itself
                         // without a parent; -1 = none; NULL = none has
} Batch;

typedef struct GPT2 GPT2;

/* ---- life ------------------------------------------------------------------------------------ */

typedef struct {
    char name[160];  // Hugging Face's, without "transformer.": "h.0.attn.c_attn.weight"
    int ndim, shape[2];
    size_t n;  // elements
    bool trains;
} GPT2Tensor;

/* Which of the model's own tensors train. A frozen one has no gradient and no moments, and the
   product for its gradient is never computed; a scalar head always trains. */
typedef enum { TRAIN_ALL, TRAIN_NORMS, TRAIN_NONE } GPT2Trains;

/* How a model whose own tensors are frozen keeps the four matrices of each block: as they are, or
   in NF4 (kernels.h), with the largest magnitudes of the blocks in 32 or again in 8 bits. */
typedef enum { KEEP_FLOAT, KEEP_NF4, KEEP_NF4_DOUBLE } GPT2Keep;

/* Ceilings, known before the first step: everything is allocated once. */
typedef struct {
    int tokens, sequences;  // largest N and S of a batch
    int scored;             // most tokens of a batch that have a target
    bool train;             // gradients and moments for what trains, activations of every layer
    GPT2Trains trains;
    GPT2Keep keep;  // of a mapped model; gpt2_reserve quantises, and lets go of the file's pages
    const GPT2Tensor *more;  // trained tensors that the technique adds (name, ndim, shape), zeros
                             // until written; they follow the
    int more_n;              //   model's own in gpt2_tensor,
    const struct Tap *tap;   //   and a Tap (tap.h) gives them a meaning; NULL = none
    bool gradient_checkpointing;  // keep only each layer's input; compute the rest again in
                                  // backward (a third more time)
    int slots, positions;  // decoding: sequences at once, and the longest of them; 0 = no decoding
} GPT2Limits;

/* Bytes on the device, by purpose. */
typedef struct {
    size_t weights, gradients, moments, activations, logits, cache, workspace, total;
} GPT2Memory;

/* A model without weights. mapped: weights will be pointed at (gpt2_map) instead of owned; none of
 * them can train. */
GPT2 *gpt2_create(const GPT2Config *config, bool mapped);
void gpt2_free(GPT2 *m);
const GPT2Config *gpt2_config(const GPT2 *m);
/* How many numbers of a model of this shape train when these do; TRAIN_ALL: all it has. */
size_t gpt2_parameters(const GPT2Config *config, GPT2Trains trains);
/* N(0, 0.02); the two projections into the residual stream N(0, 0.02 / sqrt(2L)); biases 0, norms 1
 */
void gpt2_init_weights(GPT2 *m, uint64_t seed);
/* What a model of this shape takes with these limits, weights included. */
GPT2Memory gpt2_memory(const GPT2Config *config, const GPT2Limits *limits);
/* Takes it. Call once; ends the program with the figures when it does not fit. */
void gpt2_reserve(GPT2 *m, const GPT2Limits *limits);

/* ---- one step of training -------------------------------------------------------------------- */

/* What is random in a forward pass. Probabilities 0 and alpha 0 by default: nothing is. */
typedef struct {
    float embd_pdrop, attn_pdrop, resid_pdrop;
    float neftune_alpha;  // uniform noise of alpha / sqrt(T C) on the embeddings (Jain et al.
                          // 2023), T of the sequence
    uint64_t seed;
    uint32_t step;  // which optimiser step: with the batch's ids this fixes every draw
} GPT2Noise;

/* Runs the batch up to the final norm. noise NULL: none (evaluation). */
void gpt2_forward(GPT2 *m, const Batch *b, const GPT2Noise *noise);
/* Of the last forward, per token (N): log p(target[i] | tokens up to i) under softmax(logits /
   temperature), the entropy of that distribution in nats, and its likeliest token. target[i] < 0:
   not scored, the row never reaches the vocabulary, and its outputs are 0. entropy, best may be
   NULL. A token that gpt2_generate drew at this temperature has here the bits of its logp there. */
void gpt2_logprob(GPT2 *m, const int *target, float temperature, float *logp, float *entropy,
                  int *best);
/* The exact divergence of the two models' distributions, per token (N): KL(p || q) = sum over the
   vocabulary of p log(p / q), p of m and q of reference, in nats. Both have just had gpt2_forward
   and gpt2_logprob of the same batch, targets and temperature. 0 where not scored. */
void gpt2_kl(GPT2 *m, GPT2 *reference, float *kl);
/* How far apart the two models' logits lie: the largest difference anywhere, after the same calls
   as for gpt2_kl; and, unless NULL, the largest of m's magnitudes. Infinite when one is not finite.
 */
float gpt2_logit_difference(GPT2 *m, GPT2 *other, float *largest);
/* The scalar head on the last forward, per token (N): value[i] = w . ln_f(h_i) (+ bias). */
void gpt2_value(GPT2 *m, float *value);
/* Makes every value gain * value + bias. A score has no bias of its own: it goes into ln_f.bias, b
   += bias w / |w|^2, which adds it to every score and leaves a head of zeros as it is. */
void gpt2_scale_value(GPT2 *m, double gain, double bias);
/* Adds to the gradients those of a loss whose derivatives by the numbers above are dlogp, dentropy
 * and dvalue (N, or NULL). */
void gpt2_backward(GPT2 *m, const float *dlogp, const float *dentropy, const float *dvalue);

typedef struct {
    float learning_rate, beta1, beta2, epsilon;
    float weight_decay;   // on matrices only (two dimensions; the embeddings are two), as nanoGPT
                          // and llm.c do
    float max_grad_norm;  // clip the gradient, all tensors together, to this norm; 0 = never
} AdamW;

/* Clip, AdamW, clear the gradients. t counts the steps from 1. Returns the norm before clipping;
   when that is not finite nothing is changed but the gradients, which are cleared. */
float gpt2_step(GPT2 *m, const AdamW *o, int t);
/* Clears the gradients, and so forgets what was added since the last step. */
void gpt2_clear(GPT2 *m);

/* ---- generation ------------------------------------------------------------------------------ */

typedef struct {
    float temperature;  // 0 = always the likeliest token
    int top_k;          // 0 = all
    float top_p;        // 1 = all
    int max_new_tokens;
    int stop_token;  // ends a sequence, and is part of it; < 0 = none
    uint64_t seed;
    uint32_t step;  // with the batch's ids and the position, fixes every draw
} Sampler;

typedef struct {
    int *start;  // (S+1) response s is tokens[start[s] .. start[s+1])
    int *tokens;
    float *logp;  // log-probability of each under softmax(logits / temperature)
    bool *ended;  // (S) the stop token was drawn
} Generation;

/* Called with each token as it is drawn; may be NULL. */
typedef void TokenSink(void *context, int sequence, int token);

/* Continues every prompt of the batch (any number: as one ends the next takes its slot). What a
   position limits is reading, not writing: a prompt may fill the model's positions up to the last,
   and the token drawn there, which is never read, belongs to the response. So prompt and response
   together have at most one token more than there are positions. Release with generation_free. */
void gpt2_generate(GPT2 *m, const Batch *prompts, const Sampler *s, Generation *out,
                   TokenSink *sink, void *context);
void generation_free(Generation *g);

/* ---- tensors, for files and tests ------------------------------------------------------------ */

typedef enum { GPT2_WEIGHT, GPT2_GRADIENT, GPT2_MOMENT1, GPT2_MOMENT2 } GPT2Part;

int gpt2_tensors(const GPT2 *m);  // the model's own, and after gpt2_reserve those of limits.more
int gpt2_own_tensors(const GPT2 *m);  // the model's own, which come first
const GPT2Tensor *gpt2_tensor(const GPT2 *m, int i);
GPT2Trains gpt2_trains(const GPT2 *m);  // limits.trains, also of a model reserved without training
/* Copies elements [offset, offset + n) of a part of tensor i. Only trained tensors of a reserved
   model have more than a weight. Of a quantised weight the numbers are those that it stands for; it
   cannot be written. */
void gpt2_read(const GPT2 *m, int i, GPT2Part part, size_t offset, size_t n, float *host);
void gpt2_write(GPT2 *m, int i, GPT2Part part, size_t offset, size_t n, const float *host);
/* A mapped model: tensor i lives at data, for as long as the model does. False when the backend
   must have a copy: then tensor i becomes owned, and gpt2_write fills it. */
bool gpt2_map(GPT2 *m, int i, const void *data);
/* release(context) runs when the model is freed: how the mapping of a file ends. */
void gpt2_at_free(GPT2 *m, void (*release)(void *context), void *context);

#endif
