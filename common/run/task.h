/*
 * task.h - a supervised task: records to learn from, records held out, and what is measured on
 * those.
 *
 * sft.c, full_ft.c, lora.c and adapter.c learn the same way from the same kinds of record and
 * differ in what they train; this is what they would all explain identically. The loss itself, and
 * the loop, stand in each of them.
 */
#ifndef POSTTRAIN_TASK_H
#define POSTTRAIN_TASK_H

#include "model/generate.h"
#include "model/memory.h"
#include "run/run.h"
#include "run/chat.h"
#include "text/text.h"

/* Some examples of a dataset: all of them, or one side of a split. */
typedef struct {
    Dataset *data;
    int n, *which;
} Examples;

/* One number per token of a batch (N). */
typedef struct {
    float *logp, *entropy, *dlogp;
    int *best;
} PerToken;

/* Sums over scored tokens. A mean is a sum over a count of real tokens, always. */
typedef struct {
    double loss, entropy, correct, tokens;
} Totals;

typedef struct {
    /* flags */
    const char *template;
    int max_length, validation_split_percentage, eval_samples;
    bool train_on_prompt, strict;
    Talk talk;  // its max_new_tokens is that of answers to held-out prompts, too
    /* the rest is task_load's and task_reserve's */
    Tokenizer *tokenizer;
    char *form;  // what the prompts of run->data are put into, as one line; NULL: plain text
    Examples train, held_out;
    int answers;  // held-out prompts to answer: eval_samples, or as many as there are
    RaggedBatch batch;
    PerToken y;
} Task;

/* The rows of a stage's table of flags that belong to task, a Task in static storage; beside
 * TALK_FLAGS(task.talk, ...). */
#define TASK_FLAGS(task)                                                                           \
    {"template", FLAG_STRING, &(task).template,                                                    \
     .help = "text before a response: {instruction}, [[... {input} ...]], \\n"},                   \
        {"max_length",                                                                             \
         FLAG_INT,                                                                                 \
         &(task).max_length,                                                                       \
         .low = 2,                                                                                 \
         .high = 1 << 20,                                                                          \
         .help =                                                                                   \
             "tokens of an example; a longer one loses the beginning of its prompt, then the end " \
             "of its response"},                                                                   \
        {"train_on_prompt", FLAG_BOOL, &(task).train_on_prompt, .help = "score the prompt too"},   \
        {"strict", FLAG_BOOL, &(task).strict,                                                      \
         .help = "stop at the first bad line of a data file instead of skipping it"},              \
        {"validation_split_percentage", FLAG_INT, &(task).validation_split_percentage, .high = 50, \
         .help = "share of --data held out when there is no --eval, percent"},                     \
    {                                                                                              \
        "eval_samples", FLAG_INT, &(task).eval_samples,                                            \
            .high = 1e6, .free_on_resume = true,                                                   \
            .help = "held-out prompts answered before and after training; three are shown"         \
    }

/* The settings every stage starts from. */
Task task_defaults(void);
/* Reads the tokenizer of run->model and the records of run->data and run->eval (or splits
   run->data, shuffled by the seed), says what was found, and plans run's steps. Whatever is wrong
   ends the program with 2. */
void task_load(Task *t, Run *run, const GPT2Config *config);
/* Prints examples as the model gets them, what is scored between « and ». */
void task_show(const Task *t, int examples);
/* Ceilings for the model: the largest batches these examples can make, and the answers to the
 * held-out prompts. */
GPT2Limits task_limits(const Task *t, const Run *run);
/* Makes room for the numbers of a batch. */
void task_reserve(Task *t, const GPT2Limits *limits);
void task_free(Task *t);

/* Adds the batch in t->batch, scored in t->y, to the totals. */
void task_add(const Task *t, Totals *totals);
/* The held-out examples, scored without noise, batch_size at a time (which changes no bit of any
 * token's score). */
Totals task_evaluate(Task *t, GPT2 *model, int batch_size);
/* Answers the first t->answers held-out prompts, always with the likeliest token. */
Generation task_answer(const Task *t, GPT2 *model);

/* Of the answers: the share that is the reference token for token, and the mean ROUGE-L. */
typedef struct {
    double exact, rouge;
} Quality;

Quality task_quality(const Task *t, const Generation *answers);
/* F-measure of the longest common subsequence of words (Lin 2004), from 0 to 1. Words are runs of
   letters and digits, ASCII letters in lower case; every byte of a character beyond ASCII counts as
   a letter. 1 when neither text has a word. */
double rouge_l(const char *reference, size_t n, const char *candidate, size_t m);
/* Three examples with their answers before and after, then the held-out figures. */
void task_report(const Task *t, const Generation *was, const Generation *is, Totals before,
                 Totals after);
/* One line: loss, perplexity, token accuracy. */
void task_print_totals(const char *when, Totals totals);

#endif
