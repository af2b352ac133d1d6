/*
 * task.h - a supervised task: records to learn from, records held out, and what is measured on those.
 *
 * sft.c, full_ft.c, lora.c and adapter.c learn the same way from the same kinds of record and differ in what they train; this is
 * what they would all explain identically. The loss itself, and the loop, stand in each of them.
 */
#ifndef POSTTRAIN_TASK_H
#define POSTTRAIN_TASK_H

#include "gpt2.h"
#include "run.h"
#include "text.h"

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
    int max_length, validation_split_percentage, eval_samples, max_new_tokens;
    bool train_on_prompt, strict;
    const char *prompt;          // to be answered instead of training, in stages that have TASK_PROMPT_FLAGS
    float temperature, top_p;
    int top_k;
    /* the rest is task_load's and task_reserve's */
    Tokenizer *tokenizer;
    Examples train, held_out;
    int answers;                 // held-out prompts to answer: eval_samples, or as many as there are
    RaggedBatch batch;
    PerToken y;
    Ints asked;                  // the prompt as tokens
} Task;

/* The rows of a stage's table of flags that belong to task, a Task in static storage. */
#define TASK_FLAGS(task)                                                                                                     \
    {"template", FLAG_STRING, &(task).template, .help = "text before a response: {instruction}, [[... {input} ...]], \\n"},       \
    {"max_length", FLAG_INT, &(task).max_length, .low = 2, .high = 1 << 20,                                                  \
     .help = "tokens of an example; a longer one loses the beginning of its prompt, then the end of its response"},          \
    {"train_on_prompt", FLAG_BOOL, &(task).train_on_prompt, .help = "score the prompt too"},                                 \
    {"strict", FLAG_BOOL, &(task).strict, .help = "stop at the first bad line of a data file instead of skipping it"},       \
    {"validation_split_percentage", FLAG_INT, &(task).validation_split_percentage, .high = 50,                               \
     .help = "share of --data held out when there is no --eval, percent"},                                                   \
    {"eval_samples", FLAG_INT, &(task).eval_samples, .high = 1e6, .free_on_resume = true,                                    \
     .help = "held-out prompts answered before and after training; three are shown"},                                        \
    {"max_new_tokens", FLAG_INT, &(task).max_new_tokens, .low = 1, .high = 1 << 20, .free_on_resume = true,                  \
     .help = "longest of those answers, tokens"}

/* The same for a stage that also answers a prompt from the command line. */
#define TASK_PROMPT_FLAGS(task)                                                                                              \
    {"prompt", FLAG_STRING, &(task).prompt, .free_on_resume = true, .help = "an instruction to answer instead of training"}, \
    {"temperature", FLAG_FLOAT, &(task).temperature, .high = 100, .free_on_resume = true,                                    \
     .help = "of the answer to --prompt; 0: always the likeliest token"},                                                    \
    {"top_k", FLAG_INT, &(task).top_k, .high = 1e9, .free_on_resume = true,                                                  \
     .help = "draw that answer's tokens from the so many likeliest; 0: from all"},                                           \
    {"top_p", FLAG_FLOAT, &(task).top_p, .low = 1e-6, .high = 1, .free_on_resume = true,                                     \
     .help = "draw them from the likeliest that together have this probability"}

/* The settings every stage starts from. */
Task task_defaults(void);
/* Reads the tokenizer of run->model and the records of run->data and run->eval (or splits run->data, shuffled by the seed), says
   what was found, and plans run's steps. Whatever is wrong ends the program with 2. */
void task_load(Task *t, Run *run, const GPT2Config *config);
/* Instead of task_load, to answer a prompt: reads the tokenizer of dir, puts t->prompt into the template, and returns the ceilings a
   model needs to answer it. Whatever is wrong ends the program with 2. */
GPT2Limits task_prompt(Task *t, const char *dir, const GPT2Config *config);
/* Writes the answer to t->prompt on stdout as its tokens come, never half a character, and a newline. */
void task_reply(Task *t, GPT2 *model, uint64_t seed);
/* Prints examples as the model gets them, what is scored between « and ». */
void task_show(const Task *t, int examples);
/* Ceilings for the model: the largest batches these examples can make, and the answers to the held-out prompts. */
GPT2Limits task_limits(const Task *t, const Run *run);
/* Makes room for the numbers of a batch. */
void task_reserve(Task *t, const GPT2Limits *limits);
void task_free(Task *t);

/* Adds the batch in t->batch, scored in t->y, to the totals. */
void task_add(const Task *t, Totals *totals);
/* The held-out examples, scored without noise, batch_size at a time (which changes no bit of any token's score). */
Totals task_evaluate(Task *t, GPT2 *model, int batch_size);
/* Answers the first t->answers held-out prompts, always with the likeliest token. */
Generation task_answer(const Task *t, GPT2 *model);

/* Of the answers: the share that is the reference token for token, and the mean ROUGE-L. */
typedef struct {
    double exact, rouge;
} Quality;

Quality task_quality(const Task *t, const Generation *answers);
/* F-measure of the longest common subsequence of words (Lin 2004), from 0 to 1. Words are runs of letters and digits, ASCII
   letters in lower case; every byte of a character beyond ASCII counts as a letter. 1 when neither text has a word. */
double rouge_l(const char *reference, size_t n, const char *candidate, size_t m);
/* Three examples with their answers before and after, then the held-out figures. */
void task_report(const Task *t, const Generation *was, const Generation *is, Totals before, Totals after);
/* One line: loss, perplexity, token accuracy. */
void task_print_totals(const char *when, Totals totals);

#endif
