/*
 * technique.h - what lora.c and adapter.c share: the tensors that a technique adds to a frozen
 * model, and writing a model with the technique's update merged into its weights.
 *
 * A technique's tensors are numbered k = 0, 1, 2, ... In a reserved model they follow the model's
 * own: tensor k of the technique is tensor gpt2_own_tensors(m) + k of m.
 */
#ifndef POSTTRAIN_TECHNIQUE_H
#define POSTTRAIN_TECHNIQUE_H

#include "run/run.h"

/* ---- added tensors --------------------------------------------------------------------------- */

/* A list of them, for GPT2Limits.more. Start from {0}; release with free(list.tensor). */
typedef struct {
    GPT2Tensor *tensor;
    int n, capacity;
} AddedTensors;

/* Appends a tensor (rows,columns), or (rows) if columns is 0, and returns its k. The name is given
   as for printf. */
PRINTF_LIKE(4, 5)
int added_append(AddedTensors *list, int rows, int columns, const char *name, ...);
/* How many numbers they have in all. */
size_t added_parameters(const AddedTensors *list);
/* All elements of tensor k, to be freed; and back. */
float *added_read(const GPT2 *m, int k);
void added_write(GPT2 *m, int k, const float *values);
/* Do all tensors with k % period >= from hold zeros alone? */
bool added_are_zero(const GPT2 *m, int period, int from);

/* Reads the added tensors from dir/weights. A wrong file ends the program with 2. */
void added_load(GPT2 *m, const char *dir, const char *weights);
/* Writes them to dir/weights, and config, which it frees, to dir/adapter_config.json. As
   hf_save_added. */
int added_save(const GPT2 *m, const char *dir, const char *weights, char *config, Error *e);
/* Ends the program with 2: the adapter in dir/weights was never trained, because `what` is zero. */
__attribute__((noreturn)) void refuse_untrained(const char *dir, const char *weights,
                                                const char *what);

/* ---- a technique ----------------------------------------------------------------------------- */

/* Is a module one of PEFT's target_modules, a list of names with commas? A name means each module
   whose full name is equal to it, or ends with a dot and it; "all-linear" means all. used
   (strlen(targets)) becomes true where a name begins that means this module. */
bool is_target(const char *module, const char *targets, bool *used);
/* -1 with e filled if a name means no module of a model with so many layers. */
int check_targets(const char *targets, const bool *used, int layers, Error *e);
/* Prints the bytes of the model's weights in that format, and those of `added` numbers of LoRA. */
void print_weights(const GPT2Config *c, GPT2Format format, size_t added);
/* Makes *memory (device) a block of `bytes`, in place of one of *have bytes. Ends the program with
   1 if there is not enough memory. */
void technique_allocate(void **memory, size_t *have, size_t bytes);
/* The model of --model with the adapter in dir, to be used and not to be trained, for batches of
   limits' size. Whatever is wrong ends the program with 2. */
GPT2 *technique_open(const Technique *t, const Run *run, const char *dir, GPT2Limits limits);

/* ---- merging --------------------------------------------------------------------------------- */

/* Ends the program with 2 if dir must not receive a merged model: it is --model itself, or it holds
   a model already and --overwrite_output_dir is not given. */
void merge_check(const Run *run, const char *dir);
/* Writes the model of --model, with the update of m merged into its float32 weights, into dir.
   form: the template of the prompts, or NULL. With verify it then prints the largest difference
   between the logits of the merged model and those of the model with the adapter. */
void merge_write(const Technique *t, const Run *run, const GPT2 *m, const char *dir,
                 const char *form, bool verify);
/* The same for the adapter in a directory. */
void merge_adapter(const Technique *t, const Run *run, const char *adapter, const char *dir,
                   bool verify);

#endif
