/*
 * hf.h - Hugging Face directories: read what others wrote, write what others read.
 *
 *   model.safetensors (or model.safetensors.index.json and its shards; or pytorch_model.bin, or its
 * index and shards) config.json   vocab.json, merges.txt, ...
 *
 * Every file is hostile until checked. A refusal names the file, the tensor, what stands there and
 * what was expected.
 */
#ifndef POSTTRAIN_HF_H
#define POSTTRAIN_HF_H

#include "model/memory.h"
#include "util.h"

/* ---- safetensors ----------------------------------------------------------------------------- */

typedef struct SafeTensors SafeTensors;
typedef enum {
    ST_F32,
    ST_F16,
    ST_BF16,
    ST_F64,
    ST_I64,
    ST_I32,
    ST_I16,
    ST_I8,
    ST_U8,
    ST_BOOL,
    ST_OTHER
} STType;

typedef struct {
    const char *name, *file;  // file: the path, for messages
    STType type;
    char type_name[12];
    int ndim;
    size_t shape[8];
    size_t n;                   // elements
    const unsigned char *data;  // in the mapped file, unaligned: memcpy, never a float *
    size_t bytes;
} STTensor;

/* Maps and checks a file (names the path in errors). NULL with e filled. A tensor stays in the file
   until it is read: who cuts the file short meanwhile ends this program; who replaces it by
   renaming, as newfile_close does, changes nothing. */
SafeTensors *st_open(const char *path, Error *e);
/* The same on n bytes in memory, which must outlive it; name is for messages. */
SafeTensors *st_parse(const void *bytes, size_t n, const char *name, Error *e);
void st_close(SafeTensors *st);
int st_count(const SafeTensors *st);
const STTensor *st_at(const SafeTensors *st, int i);               // in the order of the data
const STTensor *st_find(const SafeTensors *st, const char *name);  // NULL when absent
const char *st_metadata(const SafeTensors *st, const char *key);   // NULL when absent
/* Elements [offset, offset + n) as float, from F32, F16 or BF16. -1 with e filled for any other
 * type. */
int st_floats(const STTensor *t, size_t offset, size_t n, float *out, Error *e);

/* Writing: declare every tensor and piece of metadata, then begin, then hand over the data in the
   order declared, in pieces of any size. However it went, end with st_end: keep false removes what
   was written. */
typedef struct STWriter STWriter;
STWriter *st_new(void);
void st_declare(STWriter *w, const char *name, int ndim, const size_t *shape);  // F32
void st_note(STWriter *w, const char *key,
             const char *value);                        // metadata; "format": "pt" is always there
int st_begin(STWriter *w, const char *path, Error *e);  // data starts at a multiple of 64 bytes
int st_write(STWriter *w, const float *data, size_t n, Error *e);
int st_end(STWriter *w, bool keep, Error *e);  // syncs, renames into place, frees w

/* ---- models ---------------------------------------------------------------------------------- */

/* Reads dir/config.json. 0, or -1 with e filled: not GPT-2, another activation, an absurd size, ...
 */
int hf_config(const char *dir, GPT2Config *config, Error *e);
/* Reads a language model. frozen: never to be trained, and so left in the mapped file; tensors that
   are not F32, or not aligned, are copied all the same. NULL with e filled; a reward model is
   refused. */
GPT2 *hf_load(const char *dir, bool frozen, Error *e);
/* Reads a model with the given head. A scalar head is found as score.weight
   (GPT2ForSequenceClassification with one label) or as TRL's v_head.summary.weight and .bias; where
   the directory has none it is left 0 and *found (which may be NULL) is false. The bias of a v_head
   read as SCORE_HEAD, which has none, goes into ln_f.bias, b += bias w / |w|^2, which adds it to
   every score. */
GPT2 *hf_load_head(const char *dir, GPT2Head head, bool frozen, bool *found, Error *e);
/* Writes model.safetensors, config.json and the tokenizer's files into dir (made if need be), so
   that from_pretrained loads them. from: the directory the model came from, whose config.json is
   patched and whose tokenizer files are copied as they are; NULL for a model that came from none
   (then no tokenizer files). from may be dir itself. Until the weights are safely written aside
   nothing in dir changes. With SCORE_HEAD the directory is a GPT2ForSequenceClassification with one
   label, with LM_AND_VALUE_HEAD a GPT2LMHeadModel with v_head.* beside it, as TRL's
   AutoModelForCausalLMWithValueHead reads. Of tensors added by GPT2Limits.more nothing is written.
   0, or -1 with e filled. */
int hf_save(const GPT2 *m, const char *dir, const char *from, Error *e);
/* The template in which the prompts of a directory's model or adapter are put, in *template (to be
   freed; NULL: nothing says so): that of dir/template.txt, which is one line as --template takes
   it; or, when there is none, for a config.json of DialoGPT's (task_specific_params.conversational)
   its form, "{instruction}<|endoftext|>" (Zhang et al. 2020, section 3.1). 0, or -1 with e filled.
 */
int hf_template(const char *dir, char **template, Error *e);
/* Writes dir/template.txt. hf_save copies that of `from`. 0, or -1 with e filled. */
int hf_save_template(const char *dir, const char *template, Error *e);
/* AdamW's moments of every trained tensor, as PREFIXm.NAME and PREFIXv.NAME, in a file with
   whatever else the caller declares, in the same order. Reading refuses a file whose trained
   tensors are others, and then has changed nothing. */
void hf_declare_moments(STWriter *w, const GPT2 *m, const char *prefix);
int hf_write_moments(STWriter *w, const GPT2 *m, Error *e);
int hf_read_moments(const SafeTensors *st, GPT2 *m, const char *prefix, Error *e);

/* ---- adapters: the tensors that a technique adds to a frozen model --------------------------- */

/* Whose format a directory's adapter_config.json is in. Both libraries call theirs by that name. */
typedef enum { ADAPTER_PEFT, ADAPTER_HUB } AdapterFormat;

/* 0, or -1 with e filled: there is no adapter_config.json, or it is neither library's. */
int hf_adapter_format(const char *dir, AdapterFormat *format, Error *e);

/* What PEFT's adapter_config.json says of a LoRA. */
typedef struct {
    int r;
    float alpha, dropout;
    bool rslora;         // times alpha / sqrt(r) instead of alpha / r
    char targets[1024];  // target_modules, joined by commas; or "all-linear"
} LoraConfig;

/* Reads it. A key that is not known to be harmless and has a value (use_dora, rank_pattern,
   modules_to_save, ...) is refused by name: it would change the mathematics. 0, or -1 with e
   filled. */
int hf_lora_config(const char *dir, LoraConfig *lora, Error *e);
/* The text of an adapter_config.json that every version of PEFT reads; base: the model it belongs
 * to. To be freed. */
char *hf_lora_text(const LoraConfig *lora, const char *base);

/* Writes the tensors added by GPT2Limits.more, each under its name, as dir/weights (dir is made if
   need be), and config, a JSON text, as dir/adapter_config.json. With TRAIN_NORMS the model's own
   layer norms go with them, under their names in a model's file. Until the weights are safely
   written aside nothing in dir changes. 0, or -1 with e filled. */
int hf_save_added(const GPT2 *m, const char *dir, const char *weights, const char *config,
                  Error *e);
/* Reads them back from F32, F16 or BF16. The file must have exactly these tensors in these shapes:
   the libraries pass over one that is missing or unknown, and train on from nothing. All names may
   lack "transformer.", as when the adapter was made for a bare GPT2Model. 0, or -1 with e filled
   and m unchanged. */
int hf_load_added(GPT2 *m, const char *dir, const char *weights, Error *e);

/* A bottleneck adapter, by the words of the adapters library (its BnConfig). Its double_seq_bn and
 * seq_bn are what is implemented. */
typedef struct {
    char name[64];    // the adapter's own name, which is a part of its tensors' names
    int dim;          // floor(hidden_size / reduction_factor), at least 1
    bool mh_adapter;  // also after the attention (double_seq_bn), or only after the MLP (seq_bn)
    bool original_ln_before;  // its input is the sum of residual and branch (seq_bn), or the branch
                              // alone (double_seq_bn)
    const char *non_linearity;  // relu, swish or gelu_new: other names for the same become these
    bool bert;                  // init_weights: bert, or a zero up projection
    float dropout;
    bool norms;  // the model's layer norms are trained with it (ours: the library has no word for
                 // it)
} Bottleneck;

/* Reads dir/adapter_config.json of AdapterHub's. 0, or -1 with e filled: for another base, of
 * another kind, with parts that are not implemented. */
int hf_bottleneck(const char *dir, const GPT2Config *base, Bottleneck *b, Error *e);
/* adapter_config.json's text for b; base_name: the directory of the base. To be freed. */
char *hf_bottleneck_text(const Bottleneck *b, const GPT2Config *base, const char *base_name);

#endif
