/*
 * private.h - the state behind a Run, which run.c, watch.c, network.c and checkpoint.c share.
 */
#ifndef POSTTRAIN_RUN_PRIVATE_H
#define POSTTRAIN_RUN_PRIVATE_H

#include "run/network.h"
#include "run/run.h"

/* ---- figures: watch.c ------------------------------------------------------------------------ */

typedef enum {
    FIGURE_LAST,
    FIGURE_MEAN,
    FIGURE_COMBINED,
    FIGURE_MIN,
    FIGURE_MAX,
    FIGURE_TOTAL,
    FIGURE_HELD_OUT
} FigureKind;

typedef struct {
    char *name;
    FigureKind kind;
    double sum, count;          // of the log line so far; the value, where there is no count
    const char *a, *b;          // FIGURE_COMBINED: which two figures,
    double weight_a, weight_b;  //   and how often each counts
    bool fresh;                 // FIGURE_HELD_OUT: not logged yet
} Figure;

typedef struct {
    const char *name;
    double seconds;  // since the last log line
} Phase;

/* ---- checkpoints: checkpoint.c --------------------------------------------------------------- */

typedef struct {
    const char *name;
    double *value;
} Kept;

typedef struct {
    const char *flag;
    char *text;  // size and hash
} Fingerprint;

struct RunState {
    const Program *program;
    FlagTable *flags;
    /* where the model comes from, and where the output goes */
    char *model_dir;  // its config.json and tokenizer go into every model directory that is written
    char *checkpoint;  // the one that is resumed, or NULL
    bool continues;    // the checkpoint is in OUTPUT, whose log is continued
    bool begun;        // OUTPUT has been written to
    FILE *log;
    char *template;  // of the model that is made, or NULL: that of model_dir
    /* the models */
    Network **network;
    int networks;
    GPT2Memory memory;  // as planned
    /* the order of the examples in one epoch */
    int examples, per_step;
    int *order, order_epoch;
    /* the step */
    bool in_step;
    double loss;  // of the step, for the line of progress
    double tokens_seen;
    /* time */
    bool terminal;
    int shown;       // columns of the progress line on the screen
    double started;  // the first step began
    double first_ended, step_began, redrawn;
    int first_step;         // its number
    double trained;         // seconds of steps without the first, evaluations and checkpoints
    long tokens;            // of those steps
    double logged_trained;  // both at the last line of the log
    long logged_tokens;
    /* what a checkpoint keeps besides flags and moments */
    Figure *figure;
    int figures;
    Phase phase[8];
    int phases, in_phase;  // in_phase: -1 = none
    double phase_began;
    Kept *kept;
    int kept_n;
    Fingerprint *fingerprint;
    int fingerprint_n;
    int saved_step;  // of the last checkpoint written or read
};

/* Is there an OUTPUT to write to? */
bool run_writes(const Run *run);
/* Before the first thing is written, and not earlier: a run that ends over a misspelled file name
   costs OUTPUT nothing. */
void run_begin_writing(Run *run);
/* Erases the line of progress from the terminal. */
void run_clear_progress(Run *run);

/* Writes the step's log line into OUTPUT/log.jsonl and on stdout, and starts its figures anew. */
void watch_log(Run *run);
/* The same for the held-out figures that were given since their last line. */
void watch_log_held_out(Run *run);
/* All figures as one text for a checkpoint, to be freed; and back. -1: the text is damaged. */
char *watch_text(const Run *run);
int watch_restore(Run *run, const char *text);
void watch_free(Run *run);

/* Finds the checkpoint that --resume names. -1 with e filled. */
int checkpoint_find(Run *run, Error *e);
/* Makes OUTPUT, and checks that it can be written and that nothing in it would be lost. */
int checkpoint_prepare_output(Run *run, Error *e);
/* The directory of another model of the run, in the checkpoint that is resumed. NULL: there is
   none. To be freed. */
char *checkpoint_model_dir(const Run *run, const char *role);
/* Restores moments, step, kept numbers and figures, and cuts the log back to that step. Flags, data
   or examples that differ end the program with 2. */
void checkpoint_resume(Run *run);
/* Removes the checkpoints of OUTPUT that are older than `newest`, but the `keep` newest. */
void checkpoint_rotate(const Run *run, int newest, int keep);
/* Writes the models of the run into dir; all: those with a role, too. -1 with e filled. */
int checkpoint_save_models(const Run *run, const char *dir, bool all, Error *e);

#endif
