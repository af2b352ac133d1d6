/*
 * task.h - a supervised task: records to learn from, records held out, and the figures on those.
 *
 * sft.c, full_ft.c, lora.c and adapter.c learn in the same way from the same records and differ in
 * what they train. Here is the part that is the same in all four. Each of them writes out its loop,
 * and the loss is in model/loss.h.
 *
 *     task_load(&task, &run);             reads the records
 *     networks_open(...)                  a model with room for the batches of task_limits
 *     task_begin(&task, &run, model);     measures the model as it is, before training
 *     while (run_next(&run)) {
 *         n = task_examples(&task, &run, &M);
 *         for each micro-batch: task_batch, forward, loss, backward, task_watch
 *         task_optimise(&task, &run, model, loss);
 *         if (run_should_evaluate(&run)) task_evaluate(&task, &run, model);
 *     }
 *     task_report(&task, &run, model);    measures it again, and shows answers
 */
#ifndef POSTTRAIN_TASK_H
#define POSTTRAIN_TASK_H

#include "model/shards.h"
#include "run/chat.h"
#include "run/run.h"
#include "text/dataset.h"

/* Some examples of a dataset: all of them, or one side of a split. */
typedef struct {
    Dataset *data;
    int n, *which;
} Examples;

/* Sums over scored tokens. A mean is a sum divided by a count of real tokens, always. */
typedef struct {
    double loss, correct, tokens;
} HeldOut;

/* Of answers: the share that equals the reference token for token, and the mean ROUGE-L. */
typedef struct {
    double exact, rouge;
} Quality;

enum { SHOWN_TEXTS = 3 };  // held-out examples that are printed with their answers

/* The settings of a task, which are variables of flags; its examples; and the arrays of the
   micro-batch in work. A stage reads noise, ragged, logp, entropy, best and dlogp. */
typedef struct {
    /* flags: the rows of TASK_FLAGS and of GRADIENT_CHECKPOINTING_FLAG */
    int max_length, validation_split_percentage, eval_samples;
    bool train_on_prompt, strict, gradient_checkpointing;
    const char *dropout, *dump_tokens;
    Chat chat;  // its max_new_tokens limits the answers to held-out prompts, too
    /* task_load and task_begin fill in the rest */
    char *form;  // the template of the prompts of --data, as one line; NULL: plain text
    Examples train, held_out;
    int answers;            // held-out prompts to answer
    GPT2Noise noise;        // of a forward pass in training: the dropout, this step. A flag of
                            // the stage may set its neftune_alpha. Held-out figures have no noise
    int *which, drawn;      // the examples of this step that are this process's, and their number
    Shards shards;          // of these examples
    int *size;              // room for the tokens of each
    RaggedBatch ragged;     // the micro-batch: its sequences end to end, and target (N), the token
                            // after each token, or -1 where that is not scored
    float *logp, *entropy;  // (N) room for the outputs of gpt2_logprob
    int *best;              // (N)
    float *dlogp;           // (N) room for the loss's derivative. A loss of the entropy as well
                            // needs an array of the stage's own for that derivative
    long tokens;            // of the step so far
    /* before training, also of a resumed run; and after */
    HeldOut before, after;
    int measured_at;  // the step of `after`
    bool dumped;      // --dump_tokens has the held-out records after training
    Quality quality_before;
    Str shown_before[SHOWN_TEXTS];
} Task;

/* Rows of a stage's table of flags, for task, a Task in static storage. */
#define TASK_FLAGS(task)                                                                          \
    TEMPLATE_FLAG((task).chat),                                                                   \
        {"max_length", NUMBER((task).max_length, "512", 2, 1 << 20),                              \
         "The most tokens of an example. A longer one loses the beginning of its prompt, then "   \
         "the end of its response."},                                                             \
        {"train_on_prompt", SWITCH((task).train_on_prompt, "false"),                              \
         "Score the tokens of the prompt as well as those of the response."},                     \
        {"strict", SWITCH((task).strict, "false"),                                                \
         "Stop at the first bad line of a data file instead of skipping it."},                    \
        {"validation_split_percentage", NUMBER((task).validation_split_percentage, "5", 0, 50),   \
         "The share of --data that is held out when there is no --eval, in percent.",             \
         .conflicts = "eval"},                                                                    \
        {"eval_samples", NUMBER((task).eval_samples, "8", 0, 1e6),                                \
         "The number of held-out prompts to answer before and after training; three are shown."}, \
        {"dump_tokens", TEXT((task).dump_tokens, NULL),                                           \
         "Write the held-out records with the loss of each token, before training and after, "    \
         "to this file, one JSON line each.",                                                     \
         .may_change_on_resume = true},                                                           \
    {                                                                                             \
        "dropout", TEXT((task).dropout, "0"),                                                     \
            "The dropout probability on embeddings, attention and residuals; without a value, "   \
            "those of config.json.",                                                              \
            .bare = "config"                                                                      \
    }

/* A row whose default differs between the four */
#define GRADIENT_CHECKPOINTING_FLAG(variable, initial)                                            \
    {                                                                                             \
        "gradient_checkpointing", SWITCH(variable, initial),                                      \
            "Keep one activation per layer and recompute the others in the backward pass, which " \
            "saves memory and takes more time."                                                   \
    }

/* Reads the records of --data and --eval (or splits --data, shuffled by the seed), prints what was
   found and the first example, and plans the run's steps. Wrong input ends the program with 2. */
void task_load(Task *t, Run *run);
/* The memory that the model needs: rows, scored tokens and sequences of the largest batch that
   these examples can make, and room to generate the answers to the held-out prompts. */
GPT2Limits task_limits(const Task *t, const Run *run);
/* Allocates the arrays (N) of a batch. Measures the held-out records and answers their prompts,
   unless the run is resumed: then its checkpoint has the figures. */
void task_begin(Task *t, Run *run, GPT2 *model);

/* Draws the examples of this step. Returns how many of them are this process's: all, if it is
   alone. *M is the number of tokens that are scored in all of the step's: a whole number, and a
   double because it only divides. */
int task_examples(Task *t, Run *run, double *M);
/* Makes t->ragged a micro-batch of these examples: B from number `from` on, or up to the end of the
   shard (shards.h). Returns its batch; its targets are t->ragged.target. */
const Batch *task_batch(Task *t, int from, int B);
/* Adds the micro-batch to three figures of the log, which are means over scored tokens: loss is
   -log p whatever the stage trains on, entropy, and mean_token_accuracy, the share of tokens with
   best == target. Reads t->logp, t->entropy, t->best and t->ragged: call it before they change. */
void task_watch(Task *t, Run *run);
/* Clips the gradients, applies AdamW and clears the gradients: run_optimise with the records of
   this step. */
void task_optimise(Task *t, Run *run, GPT2 *model, double loss);
/* Measures the held-out records without noise, and watches the figures; the loss is -log p, as in
   task_watch. Where it is the lowest so far, the model is written into OUTPUT/best; and it may end
   the run (run_held_out_loss). Overwrites t->logp, t->best and t->ragged. */
void task_evaluate(Task *t, Run *run, GPT2 *model);
/* After training: three held-out prompts with their answers before and after, and the figures. The
   model is the result, which may be the best one instead of the last. */
void task_report(Task *t, Run *run, GPT2 *model);
void task_free(Task *t);

/* F-measure of the longest common subsequence of words (Lin 2004), from 0 to 1. A word is a run of
   letters and digits, ASCII letters in lower case; every byte of a character beyond ASCII counts as
   a letter. 1 when neither text has a word. */
double rouge_l(const char *reference, size_t n, const char *candidate, size_t m);

#endif
