/*
 * technique.h - a technique that adds trained tensors to a frozen model: what lora.c and adapter.c
 * share. A stage describes its technique in a Technique. This file loads, saves, checks and merges
 * adapters, which are the directories that such a stage writes.
 *
 * A tensor that a technique adds has two numbers. In the lists of the technique (Added) it is
 * k = 0, 1, 2, ... In a reserved model m the technique's tensors follow the model's own, so there
 * it is i = gpt2_own_tensors(m) + k. added_read and added_write take k; added_at returns an i, for
 * gpt2_weight and gpt2_gradient.
 */
#ifndef POSTTRAIN_TECHNIQUE_H
#define POSTTRAIN_TECHNIQUE_H

#include "model/tap.h"
#include "run/run.h"

/* ---- added tensors --------------------------------------------------------------------------- */

/* What a technique adds to a model. Its plan fills this in: added_begin, then for each site
   added_site and the site's tensors, always the same number of them; then trains and format. */
typedef struct {
    GPT2Tensor *tensor;  // (n) their names and shapes
    int n, capacity;
    int layers;  // of the model
    int (
        *first)[TAP_SITES];  // (layers,TAP_SITES) k of the first tensor of a site; -1 = it has none
    GPT2Trains trains;       // which of the model's own tensors train, too
    GPT2Format format;       // how the frozen matrices are stored
    Tap tap;                 // how the network uses the tensors
    real *memory;            // (device) the technique's scratch memory
    size_t bytes;
} Added;

/* Makes the list empty, for a model of so many layers. */
void added_begin(Added *a, int layers);
/* The tensors that follow belong to this site of this layer. */
void added_site(Added *a, int layer, TapSite site);
/* Appends a tensor (rows,columns), or (rows) if columns is 0. The name is given as for printf. */
PRINTF_LIKE(4, 5) void added_append(Added *a, int rows, int columns, const char *name, ...);
/* Releases the list and the scratch memory. */
void added_free(Added *a);

/* The first tensor of the call's site, by its number i in c->m; -1 if the site has none. */
int added_at(const Added *a, const TapCall *c);
/* How many numbers the tensors have in all. */
size_t added_parameters(const Added *a);
/* Prints PEFT's line: how many parameters train, and how many there are. */
void added_print(const Added *a, const GPT2Config *c);
/* Prints the bytes of the model's weights in their format, and those of the tensors. */
void added_print_bytes(const Added *a, const GPT2Config *c);
/* All elements of tensor k, to be freed; and back. */
float *added_read(const GPT2 *m, int k);
void added_write(GPT2 *m, int k, const float *values);

/* ---- a technique ----------------------------------------------------------------------------- */

/* The flags of a technique, whose rows are in the stage and in MERGE_FLAGS. */
typedef struct {
    const char *adapter;  // --adapter: the directory to start from, or NULL
    const char *merge;    // --merge: the directory for the merged model, or NULL
    bool verify, allow_untrained;
} AdapterFlags;

/* A row of a stage's table of flags; which: the tensors that are zero until they are trained, as
   words in the help: "every B" */
#define ALLOW_UNTRAINED_FLAG(flags, which)                                    \
    {                                                                         \
        "allow_untrained", SWITCH((flags).allow_untrained, "false"),          \
            "Use an adapter that changes nothing because " which " is zero.", \
            .may_change_on_resume = true, .only_with = "adapter"              \
    }

/* Rows of a technique that can merge */
#define MERGE_FLAGS(flags)                                                                      \
    {"merge", TEXT((flags).merge, NULL),                                                        \
     "Write the model with the update added to its weights into this directory."},              \
    {                                                                                           \
        "verify", SWITCH((flags).verify, "false"),                                              \
            "Compare the logits of the merged model with those of the model with the adapter.", \
            .may_change_on_resume = true, .only_with = "merge"                                  \
    }

struct Technique {
    Added *added;
    const AdapterFlags *flags;
    const char *weights;  // the file of its tensors in a directory
    const char *loading;  // how to load the result; %1$s is the directory
    /* Each site has `per_site` tensors. Those from `zero_from` on are zero until they are trained.
       untrained names them in messages. training_starts_untrained: training may start from an
       adapter in which they are zero, without --allow_untrained. */
    const char *untrained;
    int per_site, zero_from;
    bool training_starts_untrained;
    /* Fills in `added` for run->config, from the flags or from the adapter in dir (NULL = none). It
       may change the flags, which are printed afterwards. Wrong input ends the program with 2. */
    void (*plan)(const Run *run, const char *dir);
    void (*print)(const GPT2Config *config);  // the layers, the parameters
    /* How many numbers of scratch memory the Tap needs. With memory (device) it also points the
       technique's arrays into it. */
    size_t (*scratch)(const GPT2Limits *limits, const GPT2Config *config, real *memory);
    void (*init)(GPT2 *m, uint64_t seed);  // the tensors at the start; they are zero before
    /* The Tap's functions. The context is NULL. */
    void (*forward)(void *context, const TapCall *call);
    void (*backward)(void *context, const TapCall *call);
    /* The text of adapter_config.json, to be freed. from: --model. */
    char *(*config_text)(const GPT2Config *config, const char *from);
    /* Adds the update of m to the weights of merged. -1 with e filled: the result is not finite, or
       a part of the update cannot be merged. NULL: the technique cannot merge. */
    int (*merge)(GPT2 *merged, const GPT2 *m, Error *e);
};

/* The directory of the adapter that this run starts from: a checkpoint, --adapter, or NULL. */
const char *technique_directory(const Technique *t, const Run *run);
/* Adds to a model's limits which tensors are frozen, the technique's tensors and its Tap. */
void technique_limits(const Technique *t, GPT2Limits *limits);
/* The bytes of scratch memory; and allocates them, in place of those of an earlier call. */
size_t technique_bytes(const Technique *t, const GPT2Limits *limits, const GPT2Config *config);
void technique_reserve(const Technique *t, const GPT2Limits *limits, const GPT2Config *config);
/* Allocates the scratch memory for m, which has these limits, and gives the tensors their values
   at the start of the run. Wrong input ends the program with 2. */
void technique_start(const Technique *t, const Run *run, GPT2 *m, const GPT2Limits *limits);
/* The model of --model with the adapter in dir, to be used and not to be trained, for batches of
   limits' size. Wrong input ends the program with 2. */
GPT2 *technique_open(const Technique *t, const Run *run, const char *dir, GPT2Limits limits);
/* Writes the adapter of m into dir. As hf_save_added. */
int technique_save(const Technique *t, const GPT2 *m, const char *dir, const char *from,
                   const char *template, Error *e);
/* Are all tensors zero that are zero until they are trained? */
bool technique_is_untrained(const Technique *t, const GPT2 *m);

/* ---- flags and the adapter in a directory ---------------------------------------------------- */

/* Is a module one of PEFT's target_modules, a list of names with commas? A name means each module
   whose full name is equal to it, or ends with a dot and it; "all-linear" means all. used
   (strlen(targets)) becomes true where a name begins that means this module. */
bool is_target(const char *module, const char *targets, bool *used);
/* -1 with e filled if a name means no module of a model with so many layers. */
int check_targets(const char *targets, const bool *used, int layers, Error *e);
/* Ends the program with 2 if the command line gives the flag another value than that of the adapter
   in dir. */
void check_agrees(const Run *run, const char *flag, const char *value, const char *dir);

/* ---- merging --------------------------------------------------------------------------------- */

/* Ends the program with 2 if the directory of --merge must not receive a model: it is that of
   --model, --adapter or --output, or it holds a model and --overwrite_output_dir is not given. */
void technique_check_merge(const Technique *t, const Run *run);
/* Carries out --merge before a run, after that check.
   Without --data it merges --adapter. Is there nothing left to do, because --merge was all that was
   asked for? chats: --prompt or --chat is given, too. */
bool technique_merges_alone(const Technique *t, const Run *run, bool chats);
/* Writes the model of --model, with the update of m merged into its float32 weights, into --merge.
   form: the template of the prompts, or NULL. With --verify it then prints the largest difference
   between the logits of the merged model and those of the model with the adapter. */
void technique_merge(const Technique *t, const Run *run, const GPT2 *m, const char *form);

#endif
