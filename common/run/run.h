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
    struct Chat *chat;          // answers --prompt and --chat (chat.h); NULL = neither flag exists
    bool (*instead)(Run *run);  // does what other flags ask for instead of training; false: train
    const char *creates;  // the flag with which the model is a new one, of run->config; NULL = none
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
    int shards;  // groups of a step's examples (shards.h); a power of two
    int logging_steps, eval_steps, save_steps, save_total_limit;
    float progress_seconds;
    bool quiet;
    enum { SAVE_NO, SAVE_STEPS, SAVE_EPOCH, SAVE_BEST } save_strategy;
    bool save_only_model, keep_moments;
    /* flags: the best model, of programs that measure a held-out loss */
    bool load_best_model_at_end;
    enum { BEST_EVAL_LOSS, BEST_LOSS } metric_for_best_model;  // two names of one figure
    int early_stopping_patience;                               // evaluations; 0 = never stops
    float early_stopping_threshold;
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
/* Ends the program with 2 if a flag is given that has no effect with `mode`, which is a flag that
   asks for something else than training; uses: those that have one, "a b". */
void run_only(const Run *run, const char *mode, const char *uses);
/* Ends the program with 2 if a flag of the list "a b" is given. why: a sentence's end, "because
   nothing is held out". */
void run_refuse(const Run *run, const char *flags, const char *why);
/* Says that nothing is held out. Ends the program with 2 if a flag is given that has no effect
   then: one about held-out figures, or one of the list `flags`. */
void run_nothing_held_out(const Run *run, const char *flags);
/*
 * steps_per_epoch = ceil(examples / per_step), and total_steps: --max_steps, or, when that is -1,
 * `steps` rounded up (0 = --num_train_epochs * steps_per_epoch). --dataloader_drop_last leaves out
 * the examples that fill no batch. Ends the program with 2 when there is nothing to train on.
 */
void run_plan(Run *run, int examples, int64_t per_step, double steps);
/* Records size and hash of a data file in the checkpoints, as it was read: call it after that. A
   resumed run must have the same. path NULL: there is no file. */
void run_fingerprint(Run *run, const char *flag, const char *path);
/* Before the file that a flag names is written: ends the program with 2 if it is a directory, a
   file that the run reads, or one that exists and --overwrite_output_dir does not allow to replace.
   ours: how its first line must begin, where a resumed run continues it; else NULL. */
void run_check_output(const Run *run, const char *flag, const char *ours);
/* The template of the prompts. It is written as template.txt into every directory of the run.
   template NULL: the one of the model that this run started from. */
void run_template(Run *run, const char *template);
/* The same for a stage whose prompts may be complete. given: --template, or NULL. templated: some
   prompt was put into it, or into the default one. If none was, the directory's template is
   written, and "{instruction}" if there is none. */
void run_template_used(Run *run, const char *given, bool templated);
/* A number of the stage that every checkpoint records. networks_open, which resumes, sets it again:
   call run_keep before it. A checkpoint without the number is refused. */
void run_keep(Run *run, const char *name, double *value);
/* The same for a text, which starts from {0} and belongs to the stage. It has no NUL. */
void run_keep_text(Run *run, const char *name, Str *text);
/* The tokenizer of a model directory; its end is that of template.h from here on. Ends the program
   with 2 when it cannot be read, or has more tokens than a model of this configuration. */
Tokenizer *run_load_tokenizer(const char *dir, const GPT2Config *config);
/* A template may end its answers with an added token that is not the tokenizer's end, such as
   <|im_end|>. That token is then the end of every text, so that the text between two turns is that
   of the template. form: the template, NULL for the default. Returns whether the end changed. */
bool run_end_by_template(Tokenizer *t, const char *form);
/* Prints a note of it. before: the tokenizer's own end. */
void run_say_end(const char *before);
/* run_begin has changed the end of the run's texts in this way. When the data are known, and before
   they become tokens: plain text has no turns and keeps the tokenizer's end; else a note is
   printed. run_template_used does so, too. */
void run_settle_end(Run *run, bool plain);
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
   names the records: `line` is the first one's in --data, 0 = unknown. loss and tokens are those of
   this process's examples. With 0 tokens in all processes there is nothing to learn: the model
   stays as it is, and the norm is 0. */
double run_optimise(Run *run, GPT2 *m, double loss, long tokens, int line);
/* Ends the program with 1 if a figure is not finite. what: "the loss of the held-out records" */
void run_check_finite(const Run *run, const char *what, double value);
/* For a stage that calls gpt2_step itself: shows this step's loss and tokens in the line of
   progress. loss NAN: this step has no loss, and the line leaves it out. */
void run_progress(Run *run, double loss, long tokens);
/* Every eval_steps (0: at the end of an epoch), and at the last step. */
bool run_should_evaluate(Run *run);
/* Has a signal come during an evaluation in training? Then its figures are left out, and a resumed
   run measures first. */
bool run_postpones(Run *run);
/* Before the loop: did the run that is resumed leave out the evaluation after its last step? Then
   measure now, as at the end of that step. */
bool run_measures_again(Run *run);
/* Is this the last step? */
bool run_is_last(const Run *run);
/* Takes the loss of the held-out records: before the first step as that before training, later as
   that of this step. The model with the lowest loss of a step is written into OUTPUT/best. Where
   --early_stopping_patience is used up, the run ends with this step. */
void run_held_out_loss(Run *run, double loss);
/* After the loop: is the model no longer that of the last step, but the best one
   (--load_best_model_at_end)? */
bool run_has_best(const Run *run);
/* SIGINT or SIGTERM has come, and the run is to save and stop. A stage then leaves its loop in the
   middle of a step (the checkpoint is the one before that step), or finishes the step. */
bool run_interrupted(void);
/* Writes the model into OUTPUT/name, without a state. Without an output: nothing. */
void run_save(Run *run, const char *name);
/* Writes OUTPUT/checkpoint-STEP now. run_next does so every save_steps. */
void run_checkpoint(Run *run);
/* The checkpoint that this run resumes, or NULL. Its numbers and texts (run_keep) hold what was
   measured before training, which is not measured again. */
const char *run_checkpoint_dir(const Run *run);
/* The same if it holds weights. That of step 0 does not: the run starts from --model once more. */
const char *run_weights_dir(const Run *run);
/* OUTPUT/name, the path of a file that a run writes from its beginning on: log.jsonl,
   transcripts.jsonl. While OUTPUT holds an older result it has another name. To be freed. */
char *run_path(const Run *run, const char *name);
/* Removes from a file the lines of steps after run->step, which will come again. A line begins
   {"step": N. */
void run_cut_lines(const Run *run, const char *path);

/* ---- end ------------------------------------------------------------------------------------- */

/* The flags that only a program with a held-out loss has, for Program.without. */
#define BEST_FLAGS                                                          \
    "load_best_model_at_end metric_for_best_model early_stopping_patience " \
    "early_stopping_threshold"

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
/* What a run learns from, and its steps, in two lines. one: "example" */
void run_print_plan(const Run *run, const char *one, int train, int held_out);
/* "parameters: 1,024 of 4,096 are trained, 25.0000 %" */
void run_print_parameters(size_t trained, size_t all);

#endif
