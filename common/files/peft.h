/*
 * peft.h - adapter directories: adapter_config.json and the tensors that a technique adds to a
 * frozen model.
 *
 * Two libraries use the name adapter_config.json: PEFT (LoRA) and AdapterHub's adapters (bottleneck
 * adapters). Each reader refuses the other library's file.
 */
#ifndef POSTTRAIN_PEFT_H
#define POSTTRAIN_PEFT_H

#include "model/gpt2.h"
#include "util.h"

/* ---- PEFT ------------------------------------------------------------------------------------ */

/* A LoRA, in the words of PEFT's LoraConfig. */
typedef struct {
    int r;
    float alpha, dropout;
    bool rslora;         // scale by alpha / sqrt(r) instead of alpha / r
    char targets[1024];  // target_modules, joined by commas, or "all-linear"
} LoraConfig;

/* Reads PEFT's dir/adapter_config.json. Refuses by name every key with a value that is not known to
   be harmless (use_dora, rank_pattern, modules_to_save, ...), because it would change the
   mathematics. 0, or -1 with e filled. */
int hf_lora_config(const char *dir, LoraConfig *lora, Error *e);
/* The text of an adapter_config.json that every version of PEFT reads, to be freed. base is the
 * directory of the base model. */
char *hf_lora_text(const LoraConfig *lora, const char *base);
/* Would hf_lora_config read again what hf_lora_text writes? 0, or -1 with e filled. */
int hf_check_lora(const LoraConfig *lora, Error *e);

/* ---- AdapterHub ------------------------------------------------------------------------------ */

/* A bottleneck adapter. In the words of the adapters library (its BnConfig), houlsby is
   double_seq_bn: after attention and MLP, and the input is the output of that sublayer. pfeiffer is
   seq_bn: after the MLP alone, and the input is its output plus the residual. */
typedef struct {
    char name[64];  // the adapter's name, which is a part of its tensors' names
    int dim;  // the channels of the bottleneck: floor(hidden_size / reduction_factor), at least 1
    enum { HOULSBY, PFEIFFER } placement;
    enum { RELU, GELU, SILU } activation;  // non_linearity: relu, gelu_new (the tanh form), swish
    enum { XAVIER, BERT } init;            // init_weights: mam_adapter, bert
    float dropout;
    bool norms;  // also trains the model's layer norms; our addition, not the library's
} Bottleneck;

/* Reads AdapterHub's dir/adapter_config.json. 0, or -1 with e filled: the adapter belongs to
 * another base, is of another kind, or has parts that are not implemented. */
int hf_bottleneck(const char *dir, const GPT2Config *base, Bottleneck *b, Error *e);
/* The text of adapter_config.json for b, to be freed. base_name is the directory of the base. */
char *hf_bottleneck_text(const Bottleneck *b, const GPT2Config *base, const char *base_name);
/* Would hf_bottleneck read again what hf_bottleneck_text writes? 0, or -1 with e filled. */
int hf_check_bottleneck(const Bottleneck *b, const GPT2Config *base, Error *e);

/* ---- Tensors --------------------------------------------------------------------------------- */

/* Writes the tensors added by GPT2Limits.more, each under its name, as dir/weights, and config, a
   JSON text, as dir/adapter_config.json, and template, unless it is NULL, as dir/template.txt.
   Makes dir if necessary. With TRAIN_NORMS it also writes the model's own layer norms, under their
   names in a model's file. Nothing in dir changes before the weights are safely in a temporary
   file. 0, or -1 with e filled. */
int hf_save_added(const GPT2 *m, const char *dir, const char *weights, const char *config,
                  const char *template, Error *e);
/* Reads them back from F32, F16, BF16 or F64. The file must have exactly these tensors in these
   shapes. (The libraries ignore a missing or unknown tensor, and then train it from scratch.) All
   names may lack "transformer.", as in an adapter for a bare GPT2Model. 0, or -1 with e filled and
   m unchanged. */
int hf_load_added(GPT2 *m, const char *dir, const char *weights, Error *e);

#endif
