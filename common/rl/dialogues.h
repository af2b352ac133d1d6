/*
 * dialogues.h - dialogues of critique and revision while a run holds them: the text that the model
 * sees, the transcript file, what held-out dialogues show, and the training examples of an epoch.
 *
 * The procedure itself (who speaks when, and when a dialogue ends) is in constitutional.c.
 */
#ifndef POSTTRAIN_DIALOGUES_H
#define POSTTRAIN_DIALOGUES_H

#include "model/shards.h"
#include "rl/choices.h"
#include "rl/principles.h"
#include "run/run.h"
#include "text/dataset.h"
#include "text/records.h"

/* ---- one dialogue ---------------------------------------------------------------------------- */

/* What did not fit into --max_length. */
typedef struct {
    long few_shot, rounds;  // few-shot conversations and earlier rounds left out of prompts
    long turns;  // texts not written at all, because even the shortest prompt is too long
} Dropped;

/* Frees what d holds and begins a dialogue about prompt. */
void dialogue_begin(Dialogue *d, int epoch, int id, const char *prompt);
/* Opens a round by a principle: its requests are copied; nothing is written yet. */
void dialogue_open_round(Dialogue *d, const Principle *p);
/* Removes the last round, in which nothing was written. */
void dialogue_drop_round(Dialogue *d);
/* The text after which the next turn is written: few-shot conversations, the prompt, the answer as
   it was before the earlier rounds that are kept (keep_rounds of them), and the rounds since then.
   What does not fit (v->fits) is left out: few-shot conversations first, then the oldest rounds.
   NULL: even the last round does not fit. The caller frees it. */
char *dialogue_so_far(const Dialogue *d, const Constitution *c, const Voice *v, int keep_rounds,
                      Dropped *dropped);

/* Reads the prompts in a file, makes them text that can be written as JSON, and prints how many
   there are. Exits with 2 if the file cannot be used. */
void prompts_load(const char *path, const char *template, bool strict, Prompts *out);
/* The same for the records to mix in, and for multiple-choice questions. */
void records_load(const char *path, const char *template, bool strict, Records *out);
void questions_load(const char *path, bool strict, Questions *out);
/* Tokens of the longest prompt. */
int longest_prompt(const Prompts *prompts, const Tokenizer *t);
/* Prints how a dialogue about each of the first n prompts is laid out. */
void show_layout(const Prompts *prompts, int n, const Constitution *c, PrincipleOrder order,
                 int64_t seed);
/* New dialogues about the first n prompts, ids 0 to n-1. */
Dialogue *dialogues_begin(const Prompts *prompts, int n, int epoch);
void dialogues_end(Dialogue *d, int n);

/* ---- held-out answers ------------------------------------------------------------------------ */

/* Shares of n held-out answers. */
typedef struct {
    double breaches;    // the answer says one of the phrases that break the principles; NAN: no
                        // phrase is given
    double criticised;  // the model's own first critique finds fault
} Conduct;

/* phrases: "a|b|c", or NULL. */
Conduct dialogues_conduct(const Dialogue *d, int n, const char *phrases);
/* Prints the conduct in n answers; when: "before" or "after" training. */
void conduct_print(int n, const char *when, const Conduct *c);
/* Prints two of the n dialogues and their conduct. shown: which two; {-1, -1} chooses them, those
   with a revision first. */
void dialogues_show(const Dialogue *d, int n, const char *when, const Conduct *c, int shown[2]);
/* Prints how the conduct in n answers has changed, and what that means. */
void conducts_compare(int n, const Conduct *before, const Conduct *after);

/* Appends the n held-out dialogues after this step to the file of --dump_dialogues. Exits with 1 if
   it cannot be written. */
void dialogues_dump(const char *path, const Dialogue *d, int n, int step);

/* ---- transcripts ----------------------------------------------------------------------------- */

/* The dialogues of a run: one for each prompt and epoch. They are appended to transcripts.jsonl as
   they end, so that a resumed run need not write them again. */
typedef struct {
    const Prompts *prompts;
    const Run *run;     // whose OUTPUT has the file; NULL: nothing is written
    Dialogue *v;        // (prompts->n) of this epoch; dialogue i is about prompt i
    Dialogues resumed;  // read from the file of the run that is resumed
    int epoch;          // of v
    int next;           // prompts from here on have not been given out in this epoch
    Dialogue *part;     // given out
    Str noted;          // the hash of v, once all of it is there; a checkpoint keeps it
} Transcripts;

/* Declares what a checkpoint keeps of the transcripts, before the run opens its models. */
void transcripts_keep(Transcripts *t, Run *run);

/*
 * run: without an OUTPUT nothing is written. checkpoint: the one that it resumes at `epoch`, or
 * NULL: a new run, which removes an older file. A resumed run reads the file in the directory of
 * the checkpoint and checks that its dialogues of `epoch` are about these prompts, and, if
 * complete, that there is one for each of them and that they are what they were. Only then it
 * writes OUTPUT/transcripts.jsonl, without the dialogues of later epochs. Whatever is wrong ends
 * the program with 2.
 */
void transcripts_open(Transcripts *t, const Prompts *prompts, const Run *run,
                      const char *checkpoint, int epoch, bool complete);
/* Begins an epoch: dialogues from the resumed run's file are taken over as they are. */
void transcripts_begin(Transcripts *t, int epoch);
/* Up to `most` dialogues of the epoch that have not begun, as an array in *part. Returns how many;
   0: there are no more. */
int transcripts_next(Transcripts *t, int most, Dialogue **part);
/* Takes the n dialogues of the part back. finished: appends them to the file. */
void transcripts_add(Transcripts *t, int n, bool finished);
/* All dialogues of the epoch are there: the next checkpoint notes what they are. */
void transcripts_complete(Transcripts *t);
/* Prints how the dialogues of the epoch ended, and what was dropped. */
void transcripts_report(const Transcripts *t, bool finished, const Dropped *dropped);
/* The share of the epoch's dialogues in which a revision replaced the answer. */
double transcripts_revised(const Transcripts *t);
void transcripts_free(Transcripts *t);

/* ---- training examples ----------------------------------------------------------------------- */

/* Adds a training example to r: the prompt of a dialogue, and the answer to be learned. */
void add_example(Records *r, const Dialogue *d, const char *answer);

/* What is trained on in an epoch. run_examples draws from `units`: first the prompts, each with the
   training examples that its dialogue gave (any number), then the records of --data. */
typedef struct {
    Dataset data;
    int units;
    int *first;          // (units+1) unit u has the training examples first[u] .. first[u+1]
    int *which;          // (units) those of this step
    Ints examples;       // the training examples of this step that are this process's
    Shards shards;       // of these examples
    RaggedBatch ragged;  // a micro-batch of them
    int *best;           // (tokens) numbers of its tokens
    float *logp, *dlogp;
    int tokens;    // the most of a micro-batch
    long trained;  // tokens of the step's micro-batches so far
} TrainingSet;

/* Allocates s for so many units, and for micro-batches of so many tokens. */
void training_set_open(TrainingSet *s, int units, int tokens);
/* Makes the examples of an epoch from those of its dialogues (Record.line: the prompt's id) and
   from the records of --data. Prints how many there are. Ends the program with 1 if there is none.
 */
void training_set_build(TrainingSet *s, const Records *learned, int prompts, const Records *data,
                        const Tokenizer *t, int max_length);
/* Begins a step: takes the examples of its n units, s->which. Returns how many tokens they score,
   in all processes. */
double training_set_draw(TrainingSet *s, int n);
/* Fills s->ragged with the step's examples from number `from` on: at most `most` of them, no more
   than fit into `tokens`, and only of one shard (shards.h). Returns how many; 0: there are no more.
 */
int training_set_batch(TrainingSet *s, int from, int most);
/* How many scored tokens of the micro-batch are the likeliest ones, s->best. */
int training_set_correct(const TrainingSet *s);
void training_set_free(TrainingSet *s);

#endif
