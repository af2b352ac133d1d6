/*
 * run.h - what every training run needs and no technique explains: flags, the learning-rate
 * schedule, the log, the progress line, checkpoints, and stopping and resuming to the same bits.
 *
 * The life of a run, as a stage writes it:
 *
 *     run = run_defaults();  run.model = "gpt2";  ...          the stage's own defaults
 *     run_start(&run, "sft", about, own_flags, argc, argv);    flags, machine, where the output
 * goes run_fingerprint(&run, "data", run.data);                 what must be the same when the run
 * is resumed
 *     ... hf_load(run_model_dir(&run)), gpt2_reserve ...
 *     run_plan_steps(&run, dataset.n);
 *     run_resume(&run, model);                                 nothing, unless --resume
 *     while (run.step < run.total_steps && !run_interrupted()) {
 *         int n = run_examples(&run, run.step, which);
 *         ... one optimiser step on which[0..n) at run_learning_rate(&run, run.step) ...
 *         run.step++;
 *         run_progress(&run, loss, tokens);
 *         if (run_should_log(&run)) run_log(&run, {"loss", loss}, {"epoch", run_epoch(&run)});
 *         if (run_should_save(&run)) run_checkpoint(&run, model);
 *     }
 *     return run_finish(&run, model);
 *
 * Nothing random is kept: every draw is a function of the seed and the step (util.h), and so is the
 * order of the examples. What a checkpoint has to know beside the weights and their moments is the
 * number of the step.
 */
#ifndef POSTTRAIN_RUN_H
#define POSTTRAIN_RUN_H

#include "model/memory.h"
#include "files/hf.h"
#include "util.h"

#include <limits.h>

/* ---- flags: one table is parser, default, help and echo -------------------------------------- */

typedef enum {
    FLAG_BOOL,
    FLAG_INT,
    FLAG_LONG,
    FLAG_FLOAT,
    FLAG_STRING,
    FLAG_CHOICE,
    FLAG_TITLE
} FlagType;

/*
 * A row: {"name", FLAG_INT, &variable, .help = "...", .low = 1, .high = 8}. The variable is a bool,
 * int, int64_t, float or const char * and holds the default. A FLAG_TITLE row has no variable; its
 * help is a heading.
 *
 * Names are spelled with '_'; on the command line '-' and '_' are alike. --name value and
 * --name=value; a bool is --name,
 * --no_name, or --name with true or false. Of a flag given twice the last counts, so that a script
 * may append "$@".
 */
typedef struct {
    const char *name;
    FlagType type;
    void *value;
    const char *help;  // one line, with the unit; for FLAG_CHOICE begins with "a|b|c: "
    double low,
        high;  // numbers outside [low, high] are refused; both 0 = any; high INFINITY = no ceiling
    bool free_on_resume;  // may differ when a run is resumed (it cannot change the bits)
    const char
        *bare;  // FLAG_STRING: what --name means when no value follows it; NULL = a value is needed
    const char
        *apart;  // "data eval": flags beside which this one makes no sense; both given are refused
    bool given;  // run_parse's: the command line sets it, to something
} Flag;

typedef struct {
    /* where things are */
    const char *model, *data, *eval, *output, *resume;  // output NULL or "": nothing is written
    bool overwrite_output_dir, dry_run;
    /* the schedule of training; the spelling is Hugging Face's */
    float num_train_epochs, learning_rate, warmup_ratio, weight_decay, max_grad_norm;
    float adam_beta1, adam_beta2, adam_epsilon;
    int per_device_train_batch_size, gradient_accumulation_steps, max_steps, warmup_steps;
    const char *lr_scheduler_type;  // constant | constant_with_warmup | linear | cosine
    bool dataloader_drop_last;
    int logging_steps, eval_steps, save_steps, save_total_limit;
    int64_t seed;
    const char *without;  // "eval eval_steps": flags of this table that the stage has no use for;
                          // they do not exist
    /* the rest is run.c's */
    int step, total_steps;  // optimiser steps done, and to do
    int examples, steps_per_epoch;
    struct RunState *state;
} Run;

/* The defaults a stage starts from. */
Run run_defaults(void);
/* The path of a file of the built-in example, test/NAME beside the program or up to two directories
   above it, wherever it was started from. Kept for the life of the program. */
const char *run_example_file(const char *name);
/* Fills run and the stage's own flags (a table that ends with {0}; NULL = none) from the command
   line, and does nothing else. 0, or -1 with e filled: the flag, its value, what it takes, and for
   an unknown flag the nearest there is. 1: --help was asked for. */
int run_parse(Run *run, const char *program, const Flag *own, int argc, char **argv, Error *e);
/* run_parse, with --help printing `about` and the flags with their defaults (exit 0) and anything
   wrong exiting 2. Then checks the machine, installs the handlers of SIGINT and SIGTERM, finds the
   checkpoint to resume from, and makes sure that OUTPUT can be written and holds nothing that would
   be lost. */
void run_start(Run *run, const char *program, const char *about, const Flag *own, int argc,
               char **argv);
/* Prints the resolved table, as flags that would repeat the run. */
void run_echo(const Run *run);

/* ---- schedule -------------------------------------------------------------------------------- */

/* total_steps and steps_per_epoch from the number of examples: ceil(examples / (batch *
   accumulation)) steps make an epoch, the last of them smaller; dataloader_drop_last leaves out the
   examples that fill no whole batch. max_steps, when not -1, replaces num_train_epochs. Exits 2
   when there is nothing to train on. */
void run_plan_steps(Run *run, int examples);
/* Learning rate of step `step` (from 0) of run->total_steps, as transformers' schedules: over the
   first w = warmup_steps steps (or, where warmup_ratio is set, that share of the total, rounded up)
   step / w of the rate, so the first step's is 0; then constant, linear to 0, or half a cosine to
   0. "constant" has no warm-up. */
float run_learning_rate(const Run *run, int step);
/* The optimiser's settings for step `step`. */
AdamW run_adamw(const Run *run, int step);
/* Fills in noise's dropout: text is a probability, or "config" for those the model was trained
 * with. -1 with e filled. */
int run_dropout(GPT2Noise *noise, const GPT2Config *config, const char *text, Error *e);
/* The examples of optimiser step `step`, in its epoch's own order: which[0..returned). Room is
   needed for min(batch * accumulation, examples). */
int run_examples(const Run *run, int step, int *which);
/* How many times the data has been seen: step / steps_per_epoch. */
double run_epoch(const Run *run);

/* ---- log and progress ------------------------------------------------------------------------ */

typedef struct {
    const char *name;
    double value;
} Metric;

/* run_log(&run, {"loss", loss}, {"epoch", run_epoch(&run)}): one line {"step": 10, "loss": 3.2,
   ...} into OUTPUT/log.jsonl, and the same for a person on stdout, with tokens per second and
   seconds since training began. The file holds nothing that depends on the clock: a resumed run's
   is the same, byte for byte, as if it had never stopped. A value that is not finite is null in the
   file. */
#define run_log(run, ...) run_log_metrics((run), (const Metric[]){__VA_ARGS__, {NULL, 0}}, INT_MAX)
/* The same; stdout gets the first `shown` of them. */
#define run_log_first(run, shown, ...) \
    run_log_metrics((run), (const Metric[]){__VA_ARGS__, {NULL, 0}}, (shown))
void run_log_metrics(Run *run, const Metric *metrics, int shown);
/* Is it time: every logging_steps, and at the last step. */
bool run_should_log(const Run *run);
/* Is it time: every eval_steps (0: at the end of every epoch), and at the last step. */
bool run_should_evaluate(const Run *run);
/* After each step. On a terminal, a line that rewrites itself: step, loss, tokens/s, time left. In
   a pipe, nothing. tokens: trained on since the last call. Rates leave out the first step, which
   pays for memory touched for the first time. */
void run_progress(Run *run, double loss, long tokens);
/* How many numbers train and how many there are, as PEFT says it: "trainable params: 1,024 || all
 * params: ...". */
void run_print_parameters(size_t trained, size_t all);
/* 1234567 as "1,234,567". */
const char *with_commas(size_t n, char text[32]);
void run_print_memory(const GPT2Memory *m);
/* The most that this process has taken of the device's memory (kernels.h), beside what was planned.
 */
void run_print_peak_memory(const GPT2Memory *planned);
/* SIGINT or SIGTERM has come: save and stop. A second one ends the process at once. */
bool run_interrupted(void);

/* ---- checkpoints ----------------------------------------------------------------------------- */

/*
 * OUTPUT/checkpoint-N is a model directory with one file more, state.safetensors: moments, step,
 * the flags that shape the run (the seed is one), a fingerprint of the data, and whatever numbers
 * the stage adds. It is written as OUTPUT/checkpoint-N.tmp-PID, synced and renamed; then all but
 * the newest save_total_limit are removed (0: none is). When it cannot be written the program ends
 * with 1, and the older ones stay.
 */
void run_checkpoint(Run *run, const GPT2 *m);
/* Writes the model, without a state, as the directory OUTPUT/name. Without an output: nothing. */
void run_save(const Run *run, const GPT2 *m, const char *name);
/* Is it time: every save_steps, at the last step, or interrupted. Never without an output. */
bool run_should_save(const Run *run);
/* Remembers the content of a data file in the state, by size and hash. path NULL: that there is
 * none. */
void run_fingerprint(Run *run, const char *name, const char *path);
/* The template that prompts of the model are put into, which goes into every directory that is
   written, as hf_template reads it; NULL: it stays that of the model this run started from. */
void run_template(Run *run, const char *template);
/* A number of the stage's own (best loss so far, ...) that belongs to the state; value is read at
   each checkpoint and set by a resume. */
void run_keep(Run *run, const char *name, double *value);
/* The directory to load the model from: the checkpoint named by --resume ("latest": the newest in
   OUTPUT that is whole), or run->model. */
const char *run_model_dir(const Run *run);
/* The checkpoint alone, or NULL when this run does not resume one: for a stage whose checkpoints
 * hold less than a model. */
const char *run_checkpoint_dir(const Run *run);
/* A second model of this run (a critic, ...). Call before run_resume: from then on checkpoints and
   OUTPUT hold it as the directory `name`, its moments are part of the state, and run_resume
   restores them. from: the directory it was loaded from. */
void run_also(Run *run, const char *name, GPT2 *m, const char *from);
/* The directory to load that model from: its place in the checkpoint to resume from, or, when there
 * is none, `otherwise`. To be freed. */
char *run_also_dir(const Run *run, const char *name, const char *otherwise);
/* Writes m into dir for a stage whose result is not a whole model (an adapter): used for
   checkpoints, run_save and run_finish in place of hf_save. `from` is run->model. loading: how
   run_finish says where it is and how to load it, with one %s for OUTPUT. */
typedef int RunSaver(const GPT2 *m, const char *dir, const char *from, Error *e);
void run_saver(Run *run, RunSaver *save, const char *loading);
/* After the model is loaded and reserved, and after run_plan_steps, run_fingerprint and run_keep:
   with --resume, restores moments, step and kept numbers, and cuts the log back to that step. A run
   whose flags or data differ is refused (exit 2) with both values. Without --resume: nothing. */
void run_resume(Run *run, GPT2 *m);
/* Takes away a file's lines of steps after run->step, which will come again, and a last line that
 * was cut off. A line begins {"step": N. */
void run_cut_lines(const Run *run, const char *path);
/* Writes the finished model into OUTPUT and closes the log; of an interrupted run, says how to go
   on. Returns the program's exit status: 0, or 128 + the signal's number. */
int run_finish(Run *run, const GPT2 *m);
/* Releases what a run holds; run_finish has done it. */
void run_free(Run *run);

#endif
