/*
 * hf.h - model directories as Hugging Face's transformers reads and writes them.
 *
 *   config.json
 *   model.safetensors, or model.safetensors.index.json and its shards,
 *       or pytorch_model.bin, or pytorch_model.bin.index.json and its shards
 *   vocab.json, merges.txt and the tokenizer's other files
 *   template.txt, the prompt template (ours)
 *
 * Every file is hostile until checked. A refusal names the file, the tensor, the value found and
 * the value expected.
 */
#ifndef POSTTRAIN_HF_H
#define POSTTRAIN_HF_H

#include "files/bundle.h"
#include "files/safetensors.h"
#include "files/usage.h"
#include "model/memory.h"
#include "util.h"

/* Reads dir/config.json. 0, or -1 with e filled: not a GPT-2, another activation, an absurd size.
 */
int hf_config(const char *dir, GPT2Config *config, Error *e);

/* Reads a language model. A frozen model cannot be trained. Its tensors stay in the mapped file,
   and are copied only when they are not F32 or not aligned. NULL with e filled; a reward model is
   refused. */
GPT2 *hf_load(const char *dir, bool frozen, Error *e);
/* Reads a model with the given head. The scalar head is either score.weight
   (GPT2ForSequenceClassification with one label) or TRL's v_head.summary.weight and .bias. When the
   directory has neither, the head is 0 and *found (which may be NULL) is false. A SCORE_HEAD has no
   bias; that of a v_head is added to ln_f.bias, b += bias w / |w|^2, which adds it to every score.
 */
GPT2 *hf_load_head(const char *dir, GPT2Head head, bool frozen, bool *found, Error *e);

/* Writes model.safetensors, config.json and the tokenizer's files into dir, so that from_pretrained
   loads them. Makes dir if necessary. from is the directory that the model came from: its
   config.json is patched and its tokenizer files are copied. It may be dir itself, or NULL for a
   model that came from none (then there are no tokenizer files). Nothing in dir changes before the
   weights are safely in a temporary file. With SCORE_HEAD the result is a
   GPT2ForSequenceClassification with one label, with LM_AND_VALUE_HEAD a GPT2LMHeadModel plus
   v_head.*, as TRL's AutoModelForCausalLMWithValueHead reads. Tensors added by GPT2Limits.more are
   not written. 0, or -1 with e filled. */
int hf_save(const GPT2 *m, const char *dir, const char *from, Error *e);
/* The same with the files of `from` in memory (NULL: none), whose config.json is patched, and which
   say how the model is used (usage.h; NULL: as before). */
int hf_save_bundle(const GPT2 *m, const char *dir, const Bundle *from, const Usage *usage,
                   Error *e);

/* The text of config.json for a model of this shape as hf_save writes it, to be freed. before: the
   config.json that is patched, or NULL. NULL with e filled. */
char *hf_config_text(const GPT2Config *c, const Str *before, Error *e);
/* Would hf_config read what would be written for a new model of this shape? 0, or -1 with e filled:
   a size is beyond its limit. */
int hf_check_config(const GPT2Config *c, Error *e);

/* Write and read AdamW's moments of every trained tensor, named PREFIXm.NAME and PREFIXv.NAME. The
   caller may declare other tensors in the same file, and writes them in the order of declaration.
   Reading refuses a file whose trained tensors are others, and then m is unchanged. */
void hf_declare_moments(STWriter *w, const GPT2 *m, const char *prefix);
int hf_write_moments(STWriter *w, const GPT2 *m, Error *e);
int hf_read_moments(const SafeTensors *st, GPT2 *m, const char *prefix, Error *e);

/* ---- For hf_load.c, hf_save.c and peft.c ----------------------------------------------------- */

/* Does dir/config.json say that the head of the vocabulary has weights of its own? */
bool hf_is_untied(const char *dir);
/* Is it the tensor of a scalar head? Its name has no prefix "transformer.", unlike the others. */
bool hf_is_head(const char *name);
/* Makes dir and its missing parents. 0, or -1 with e filled. */
int hf_make_directory(const char *dir, Error *e);
/* Declares tensor t of a model as prefix + its name. */
void hf_declare_tensor(STWriter *w, const GPT2Tensor *t, const char *prefix);
/* Opens a file of tensors: a pickle if its name ends in .bin, else safetensors. NULL with e filled.
 */
SafeTensors *hf_open_tensors(const char *path, Error *e);
/* Write or read the values of tensor i of m. Reading refuses a number that is not finite; with m
   NULL it does nothing else. 0, or -1 with e filled. */
int hf_write_tensor(STWriter *w, const GPT2 *m, int i, GPT2Part part, Error *e);
int hf_read_tensor(const STTensor *t, GPT2 *m, int i, GPT2Part part, Error *e);

#endif
