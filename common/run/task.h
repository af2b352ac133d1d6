/*
 * task.h - a supervised task: records to learn from, records held out, and the figures on those.
 *
 * sft.c, full_ft.c, lora.c and adapter.c learn in the same way from the same records and differ in
 * what they train. Here is the part that is the same in all four. Each of them writes out its loop,
 * and the loss is in model/loss.h.
 */
#ifndef POSTTRAIN_TASK_H
#define POSTTRAIN_TASK_H

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

typedef struct {
    /* flags */
    int max_length, validation_split_percentage, eval_samples;
    bool train_on_prompt, strict, gradient_checkpointing;
    const char *dropout;
    Chat chat;  // its max_new_tokens limits the answers to held-out prompts, too
    /* task_load and task_begin fill in the rest */
    char *form;  // the template of the prompts of --data, as one line; NULL: plain text
    Examples train, held_out;
    int answers;                    // held-out prompts to answer
    GPT2Noise noise;                // of a forward pass in training: the dropout, this step
    int *which, drawn;              // the examples of this step, and their number
    RaggedBatch ragged;             // the micro-batch
    float *logp, *entropy, *dlogp;  // (N) numbers of its tokens
    int *best;
    long tokens;  // of the step so far
    HeldOut before, after;
    double lowest;        // held-out loss so far
    Generation answered;  // before training
} Task;

/* Rows of a stage's table of flags, for task, a Task in static storage. */
#define TASK_FLAGS(task)                                                                         \
    TEMPLATE_FLAG((task).chat),                                                                  \
        {"max_length", NUMBER((task).max_length, "512", 2, 1 << 20),                             \
         "The most tokens of an example. A longer one loses the beginning of its prompt, then "  \
         "the end of its response."},                                                            \
        {"train_on_prompt", SWITCH((task).train_on_prompt, "false"),                             \
         "Score the tokens of the prompt as well as those of the response."},                    \
        {"strict", SWITCH((task).strict, "false"),                                               \
         "Stop at the first bad line of a data file instead of skipping it."},                   \
        {"validation_split_percentage", NUMBER((task).validation_split_percentage, "5", 0, 50),  \
         "The share of --data that is held out when there is no --eval, in percent."},           \
        {"eval_samples", NUMBER((task).eval_samples, "8", 0, 1e6),                               \
         "The number of held-out prompts to answer before and after training; three are shown.", \
         .may_change_on_resume = true},                                                          \
    {                                                                                            \
        "dropout", TEXT((task).dropout, "0"),                                                    \
            "The dropout probability on embeddings, attention and residuals; without a value, "  \
            "those of config.json.",                                                             \
            .bare = "config"                                                                     \
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
/* The largest batches these examples can make, and the answers to the held-out prompts. */
GPT2Limits task_limits(const Task *t, const Run *run);
/* Allocates a batch's numbers; measures the held-out records and answers their prompts. */
void task_begin(Task *t, Run *run, GPT2 *model);

/* Draws the n examples of this step; *M is the number of tokens that they score. */
int task_examples(Task *t, Run *run, double *M);
/* Examples [from, from + B) of the step, or up to its end, as a micro-batch in t->ragged. */
const Batch *task_batch(Task *t, int from, int B);
/* Adds the micro-batch to the figures loss, entropy and mean_token_accuracy. */
void task_watch(Task *t, Run *run);
/* Clips, AdamW: run_optimise with the records of this step. */
void task_optimise(Task *t, Run *run, GPT2 *model, double loss);
/* Measures the held-out records without noise, and watches the figures. Is their loss the lowest so
   far? */
bool task_evaluate(Task *t, Run *run, GPT2 *model);
/* After training: three held-out prompts with their answers before and after, and the figures. */
void task_report(Task *t, Run *run, GPT2 *model);
void task_free(Task *t);

/* F-measure of the longest common subsequence of words (Lin 2004), from 0 to 1. A word is a run of
   letters and digits, ASCII letters in lower case; every byte of a character beyond ASCII counts as
   a letter. 1 when neither text has a word. */
double rouge_l(const char *reference, size_t n, const char *candidate, size_t m);

#endif
