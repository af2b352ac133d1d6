/*
 * memory.h - a model's life: create, allocate, initialise, copy tensors to and from files, free.
 *
 * A model gets its memory in two parts. gpt2_create allocates the weights, so that they can be
 * read from a file. gpt2_reserve allocates everything else, once, for the largest batch that will
 * come. Nothing is allocated on the device after that.
 */
#ifndef POSTTRAIN_MEMORY_H
#define POSTTRAIN_MEMORY_H

#include "model/gpt2.h"

typedef struct {
    char name[160];  // as in Hugging Face's files, without "transformer.": "h.0.attn.c_attn.weight"
    int ndim, shape[2];
    size_t n;  // number of elements
    bool trains;
} GPT2Tensor;

/* Which of the model's own tensors train. A frozen tensor has no gradient and no moments, and the
   product for its gradient is not computed. A scalar head always trains. */
typedef enum { TRAIN_ALL, TRAIN_NORMS, TRAIN_NONE } GPT2Trains;

/* How the four matrices of each block are stored: as `real`, in NF4 (kernels.h), in NF4 with block
   scales that are themselves quantised to 8 bits, or in bf16, which wte then is as well. NF4 and
   bf16 require that they are frozen. */
typedef enum { FORMAT_FLOAT, FORMAT_NF4, FORMAT_NF4_DOUBLE, FORMAT_BF16 } GPT2Format;

/* Upper limits that determine how much memory gpt2_reserve allocates. */
typedef struct {
    int tokens, sequences;  // largest N and S of a batch
    int scored;             // most tokens of a batch that have a target
    bool train;  // allocate gradients and moments for the trained tensors, and the activations of
                 // every layer
    GPT2Trains trains;
    bool bf16;               // products round their factors to bf16 (kernels.h); CPU only
    GPT2Format format;       // NF4 only for a mapped model; gpt2_reserve quantises it and unmaps
                             // the file's pages. FORMAT_BF16 only with bf16; gpt2_reserve stores a
                             // mapped model in it, and leaves any other as it is
    const GPT2Tensor *more;  // (more_n) trained tensors that a technique adds (name, ndim, shape);
                             // initially 0; gpt2_tensor numbers them after the model's own
    int more_n;
    const struct Tap *tap;        // how the technique uses them (tap.h); NULL = no technique
    bool gradient_checkpointing;  // store only each layer's input and recompute the rest in the
                                  // backward pass, which takes a third more time
    int slots, positions;  // decoding: most sequences at once, and the longest of them; 0 = no
                           // decoding
    int kept;  // gpt2_generate keeps the outputs for up to so many tokens that it samples, for
               // gpt2_recall; 0 = it keeps none
} GPT2Limits;

/* The tokens of a batch as GPT2Limits counts them. Ends the program with 2 and a remedy when there
   are more than an int can count: two flags may together ask for such a batch. */
int batch_tokens(int64_t tokens);

/* Bytes on the device, by purpose. A plan that no machine could hold has SIZE_MAX. */
typedef struct {
    size_t weights, gradients, moments, activations, logits, cache, workspace, total;
} GPT2Memory;

/* Creates a model with weights of 0. mapped: the weights are not allocated; gpt2_map sets each
   tensor's address, and none of the tensors can train. */
GPT2 *gpt2_create(const GPT2Config *config, bool mapped);
void gpt2_free(GPT2 *m);

/* Draws initial weights: N(0, 0.02); N(0, 0.02 / sqrt(2L)) for the two projections into the
   residual stream; 0 for biases and 1 for the gains of norms. */
void gpt2_init_weights(GPT2 *m, uint64_t seed);

/* The number of trained parameters of a model with this config. With TRAIN_ALL: of all parameters.
 */
size_t gpt2_parameters(const GPT2Config *config, GPT2Trains trains);

/* The memory that a model with this config and these limits uses, including its weights. */
GPT2Memory gpt2_memory(const GPT2Config *config, const GPT2Limits *limits);

/* Sets limits->bf16, and the format of a model whose weights never change. */
void gpt2_use_bf16(GPT2Limits *limits, bool bf16, bool frozen);

/* Allocates that memory. Call it once. Exits with an error if there is not enough memory. */
void gpt2_reserve(GPT2 *m, const GPT2Limits *limits);

/* ---- tensors, for files and tests ------------------------------------------------------------ */

typedef enum { GPT2_WEIGHT, GPT2_GRADIENT, GPT2_MOMENT1, GPT2_MOMENT2 } GPT2Part;

/* The number of tensors: the model's own and, after gpt2_reserve, those of limits.more. */
int gpt2_tensors(const GPT2 *m);
/* The number of the model's own tensors, which come first. */
int gpt2_own_tensors(const GPT2 *m);
const GPT2Tensor *gpt2_tensor(const GPT2 *m, int i);
/* limits.trains, also of a model that was reserved without training. */
GPT2Trains gpt2_trains(const GPT2 *m);

/* Copies elements [offset, offset + n) of a part of tensor i from or to host memory. Gradients and
   moments exist only after gpt2_reserve, and only for tensors that train. Reading a quantised
   weight gives its dequantised values. A quantised weight cannot be written. */
void gpt2_read(const GPT2 *m, int i, GPT2Part part, size_t offset, size_t n, float *host);
void gpt2_write(GPT2 *m, int i, GPT2Part part, size_t offset, size_t n, const float *host);

/* Of a mapped model: uses the n floats at data, which must live as long as the model, as the weight
   of tensor i. Returns false if the backend needs a copy. Then memory for tensor i is allocated,
   and the caller fills it with gpt2_write. */
bool gpt2_map(GPT2 *m, int i, const void *data);
/* The same for n numbers of bf16. Returns false if the backend or the tensor needs floats: only the
   matrices of the blocks and wte can be bf16. If limits.format is not FORMAT_BF16, gpt2_reserve
   copies them to floats. */
bool gpt2_map_bf16(GPT2 *m, int i, const void *data);
/* gpt2_free will call release(context), which unmaps the file. */
void gpt2_at_free(GPT2 *m, void (*release)(void *context), void *context);

#endif
