/*
 * run.h - the life of a run: flags, schedule, log, progress, checkpoints, and stopping and resuming
 * to the same bits. A stage writes
 *
 *     Run run = run_begin(&program, argc, argv);     flags; --help, --prompt, --chat; OUTPUT
 *     run_plan(&run, examples, per_step, 0);         how many steps
 *     networks_open(&run, (Network *[]){&model, NULL});
 *     while (run_next(&run)) {                       log, progress, checkpoint, interruption
 *         n = run_examples(&run, which);
 *         ... forward, loss, backward, watch_mean(&run, "loss", sum, count) ...
 *         run_optimise(&run, model.model, loss, tokens, line);
 *         if (run_should_evaluate(&run)) ...
 *     }
 *     return run_finish(&run);
 *
 * Nothing random is kept: every draw is a function of the seed and the step (util.h), and so is the
 * order of the examples. Besides weights and moments a checkpoint needs only the number of the step
 * and the figures of the current log line.
 */
#ifndef POSTTRAIN_RUN_H
#define POSTTRAIN_RUN_H

#include "model/generate.h"
#include "model/gpt2.h"
#include "model/memory.h"
#include "run/flags.h"
#include "run/watch.h"
#include "text/tokenizer.h"
#include "util.h"

typedef struct Run Run;
typedef struct Technique Technique;

/* What a program is. */
typedef struct {
    const char *name, *about;  // about: the first lines of --help
    const Flag *flags;         // ends with {0}
    /* Defaults, presets and the built-in example, as command lines. The example runs when none of
       the flags in lines.example_unless is given. */
    FlagLines lines;
    const char *needs;          // flags that a run must have if it is not the example: "model data"
    const char *usage;          // printed when one of those is missing; NULL = the usual text
    const char *without;        // flags of struct Run that this program does not have: "data eval"
    int shown;                  // metrics of a log line on the terminal, the first ones; 0 = all.
                                // log.jsonl has all of them
    struct Chat *chat;          // answers --prompt and --chat (chat.h); NULL = neither flag exists
    bool (*instead)(Run *run);  // does what other flags ask for instead of training; false: train
    const Technique *technique;  // adds tensors to a frozen model (technique.h); NULL = none
} Program;

struct Run {
    /* flags: files */
    const char *model, *data, *eval, *output, *resume;  // output NULL or "": nothing is written
    bool overwrite_output_dir, dry_run;
    /* flags: the machine */
    bool bf16, fp16;
    const char *cpu;
    /* flags: the schedule of training; the spelling is Hugging Face's */
    float num_train_epochs, learning_rate, warmup_ratio, weight_decay, max_grad_norm;
    float adam_beta1, adam_beta2, adam_epsilon;
    int per_device_train_batch_size, gradient_accumulation_steps, max_steps, warmup_steps;
    enum { CONSTANT, CONSTANT_WITH_WARMUP, LINEAR, COSINE } lr_scheduler_type;
    bool dataloader_drop_last;
    int logging_steps, eval_steps, save_steps, save_total_limit;
    int64_t seed;
    /* run_begin */
    GPT2Config config;     // of the model to start from
    Tokenizer *tokenizer;  // of the model to start from
    /* run_plan and run_next */
    int step, total_steps;  // optimiser steps done before this one, and to do
    int steps_per_epoch;
    struct RunState *state;
};

/* ---- begin ----------------------------------------------------------------------------------- */

/*
 * Reads the command line and prints --help. Finds the checkpoint of --resume, and reads the
 * configuration of the model. Answers --prompt and --chat. Makes OUTPUT, and checks that nothing in
 * it would be lost. Reads the tokenizer. Wrong input ends the program with 2.
 */
Run run_begin(const Program *program, int argc, char **argv);
/* Reads the flags alone: every variable gets its value. Returns what flags_parse returns. */
int run_parse(Run *run, const Program *program, int argc, char **argv, Error *e);
/* Was the flag given on the command line? */
bool run_given(const Run *run, const char *flag);
/*
 * steps_per_epoch = ceil(examples / per_step), and total_steps: --max_steps, or, when that is -1,
 * `steps` rounded up (0 = --num_train_epochs * steps_per_epoch). --dataloader_drop_last leaves out
 * the examples that fill no batch. Ends the program with 2 when there is nothing to train on.
 */
void run_plan(Run *run, int examples, int per_step, double steps);
/* Records size and hash of a data file in the checkpoints. A resumed run must have the same file.
   path NULL: there is no file. */
void run_fingerprint(Run *run, const char *flag, const char *path);
/* The template of the prompts. It is written as template.txt into every directory of the run.
   template NULL: the one of the model that this run started from. */
void run_template(Run *run, const char *template);
/* A number of the stage that every checkpoint records. networks_open, which resumes, sets it again:
   call run_keep before it. A checkpoint without the number is refused. */
void run_keep(Run *run, const char *name, double *value);
/* The tokenizer of a model directory. Ends the program with 2 when it cannot be read, or has more
   tokens than a model of this configuration. */
Tokenizer *run_load_tokenizer(const char *dir, const GPT2Config *config);
/* Fills in the dropout of noise. text: a probability, or "config" for those of config. */
void run_dropout(GPT2Noise *noise, const GPT2Config *config, const char *text);

/* ---- the loop -------------------------------------------------------------------------------- */

/* Finishes the previous step: its log lines and its checkpoint. Then: is there another step? */
bool run_next(Run *run);
/* The examples of this step, in its epoch's own order: which[0..returned). Room is needed for
   min(batch * accumulation, examples). */
int run_examples(Run *run, int *which);
/* The optimiser's settings for this step: transformers' schedules. Over the first warmup_steps
   steps (or, where warmup_ratio is set, that share of all, rounded up) the rate rises from 0 to
   learning_rate; then it is constant, or falls to 0 linearly or as half a cosine. */
AdamW run_adamw(const Run *run);
/* Clips, AdamW, clears the gradients: returns the gradient's norm. Watches grad_norm, learning_rate
   and num_tokens, and shows progress. A loss or norm that is not finite ends the program with 1 and
   names the records: `line` is the first one's in --data, 0 = unknown. With tokens 0 there is
   nothing to learn: the model stays as it is, and the norm is 0. */
double run_optimise(Run *run, GPT2 *m, double loss, long tokens, int line);
/* For a stage that calls gpt2_step itself: shows this step's loss and tokens in the line of
   progress. loss NAN: this step has no loss, and the line leaves it out. */
void run_progress(Run *run, double loss, long tokens);
/* Every eval_steps (0: at the end of an epoch), and at the last step. */
bool run_should_evaluate(const Run *run);
/* Is this the last step? */
bool run_is_last(const Run *run);
/* SIGINT or SIGTERM has come: the step is finished, then the run saves and stops. */
bool run_interrupted(void);
/* Writes the model into OUTPUT/name, without a state. Without an output: nothing. */
void run_save(Run *run, const char *name);
/* Writes OUTPUT/checkpoint-STEP now. run_next does so every save_steps. */
void run_checkpoint(Run *run);
/* The checkpoint that this run resumes, or NULL. */
const char *run_checkpoint_dir(const Run *run);
/* Removes from a file the lines of steps after run->step, which will come again. A line begins
   {"step": N. */
void run_cut_lines(const Run *run, const char *path);

/* ---- end ------------------------------------------------------------------------------------- */

/* Has the run reached its end without an interruption? A run of 0 steps has. */
bool run_completed(const Run *run);
/* Writes the model into OUTPUT, prints where it is and the peak memory; of an interrupted run saves
   a checkpoint and says how to resume. Frees the models. Returns the program's exit status: 0, or
   128 + the signal's number. */
int run_finish(Run *run);
/* Frees what a run holds. run_finish does it. */
void run_free(Run *run);
/* 1234567 as "1,234,567". */
const char *with_commas(size_t n, char text[32]);
/* The line of PEFT: "trainable params: 1,024 || all params: ..." */
void run_print_parameters(size_t trained, size_t all);

#endif
