/*
 * private.h - the state behind a Run, which run.c, watch.c, network.c and checkpoint.c share.
 */
#ifndef POSTTRAIN_RUN_PRIVATE_H
#define POSTTRAIN_RUN_PRIVATE_H

#include "files/safetensors.h"
#include "run/network.h"
#include "run/run.h"
#include "run/table.h"

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
    char *a, *b;                // FIGURE_COMBINED: which two figures,
    double weight_a, weight_b;  //   and how often each counts
    bool fresh;                 // FIGURE_HELD_OUT: not logged yet
    int shard;                  // of the step that gave it; -1: of all
} Figure;

typedef struct {
    const char *name;
    double seconds;
} Phase;

/* ---- checkpoints: checkpoint.c --------------------------------------------------------------- */

typedef struct {
    const char *name;
    double *value;
} Kept;

typedef struct {
    const char *name;
    Str *value;
} KeptText;

/* What a checkpoint holds besides the step, the flags and the figures (the note "holds"). */
typedef enum {
    HOLDS_START,    // nothing: it is that of step 0, whose weights are those of --model
    HOLDS_WEIGHTS,  // the weights: enough for a run that has ended, or with --save_only_model
    HOLDS_MOMENTS   // the weights and AdamW's moments
} Holds;

/* ---- the best model: best.c ------------------------------------------------------------------ */

/* Held-out losses and their steps, as doubles, which run_keep needs. NAN: not measured. */
typedef struct {
    double before;           // training
    double lowest, step;     // of the evaluations in training; INFINITY and 0: there was none
    double last, last_step;  // of the last one
    double waited;           // evaluations since the loss last fell by more than the threshold
    double hash[2];          // of its weights: the upper and the lower 32 bits; 0: not written
    Str figures;             // all held-out figures of that step, as members of a JSON object
    char *from;              // its directory, until a resumed run copies it into OUTPUT; or NULL
    bool lost;               // it is not in OUTPUT/best
    bool loaded;             // the model is that of OUTPUT/best
} Best;

/* The content of a file, of the tokenizer or of a model, which a resumed run must find again. */
typedef struct {
    const char *kind;  // "data", "tokenizer", "model"
    char *name;        // the state calls it KIND.NAME
    char *shown;       // its name in messages
    char *text;        // size and hash
} Content;

#define MODEL_FILE "model.safetensors"
#define STATE_FILE "state.safetensors"
#define STATE_VERSION "7"  // since 7, it holds hashes of the small files and of dialogues

struct RunState {
    const Program *program;
    FlagTable *flags;
    /* where the model comes from, and where the output goes */
    char *model_dir;  // its config.json and tokenizer go into every model directory that is written
    char *checkpoint;  // the one that is resumed, or NULL
    Holds holds;       // what it holds
    bool continues;    // the checkpoint is in OUTPUT, whose log is continued
    bool begun;        // OUTPUT has been written to
    bool older;        // it holds an older result, until the first thing of this run is whole
    char *moved;       // a sentence: OUTPUT was moved; NULL: it was not
    FILE *log;
    Str first_line;  // of the log: the held-out figures before training; n 0 = there are none
    bool first_logged;
    int argc;
    char **argv;             // the command line
    char *template;          // of the model that is made, or NULL: that of model_dir
    int own_end;             // the tokenizer's end, where the template's is used; else -1
    char *default_template;  // of the records without --template, or NULL: that of template.h
    /* the models */
    Network **network;
    int networks;
    GPT2Memory memory;  // as planned
    /* the order of the examples in one epoch */
    int examples;
    int64_t per_step;
    int *order, order_epoch;
    /* the step */
    bool in_step;
    char *figures_before;  // of the step: watch_text when it began
    bool postponed;        // the last step's evaluation was left out; a resumed run measures first
    bool again;            // this is that evaluation, without its step
    int stopped_at;  // --early_stopping_patience ends the run after so many steps; 0 = it does not
    Best best;
    double loss;  // of the last step, for the line of progress
    bool loss_known;
    double tokens_seen;
    /* the screen */
    bool terminal;
    Table table;        // as it was laid out for the last heading
    char without[128];  // figures that this run cannot have, " a b "; they get no column
    int rows;           // of the table since its heading; 0: it has none yet
    double said;        // when the last line was printed
    bool expected;      // the time to expect was printed
    /* time */
    double started;  // the first step began
    double first_ended, step_began, redrawn;
    int first_step;         // its number
    int done;               // the steps that have ended, the one that is measured now included
    double trained;         // seconds of steps without the first, evaluations and checkpoints
    long tokens;            // of those steps
    double logged_trained;  // both at the last line of the log
    long logged_tokens;
    /* what a checkpoint keeps besides flags and moments */
    Figure *figure;
    int figures;
    Figure *part;  // of the shards of the step so far
    int parts;
    Phase phase[8];
    int phases, in_phase;  // in_phase: -1 = none
    double phase_began;
    Kept *kept;
    KeptText *text;
    int kept_n, texts;
    Content *content;
    int contents, agreed;  // agreed: that many are those of the checkpoint
    int saved_step;        // of the last checkpoint written or read
};

/* Does the run write an OUTPUT? And is this the process that writes it? */
bool run_saves(const Run *run);
bool run_writes(const Run *run);
/* Before the first thing is written, and not earlier: a run that ends over a misspelled file name
   costs OUTPUT nothing. An older result stays until a checkpoint, best/ or the result is whole. */
void run_begin_writing(Run *run);

/* screen.c: from here on, the progress of long computations is shown as that of this run. */
void screen_follow(Run *run);
/* Prints a row of the table, and its heading where one is due: the figures of the log line that is
   being written, or the held-out ones that are fresh. */
void screen_row(Run *run, bool held_out);
/* Prints how long the steps took, the tokens/s, and the time and the share of each phase. */
void screen_times(const Run *run);
/* It ends: nothing is shown any more. */
void screen_leave(const Run *run);

/* The value of a figure as the log shows it, and its start for the next line */
double figure_value(const Run *run, const Figure *f);
void figure_start_anew(Figure *f);
/* Makes the held-out figures that were given before training the first line of the log, of step 0.
   It is written before the first other thing is. */
void watch_log_before(Run *run);
void watch_write_first(Run *run);
/* Appends the held-out figures as they were given last, ", \"eval_loss\": 1.5". */
void watch_add_held_out(const Run *run, Str *text);
/* Writes the step's log line into OUTPUT/log.jsonl and on stdout, and starts its figures anew. */
void watch_log(Run *run);
/* Ends the program with 1: the log cannot be written, for the reason in errno. */
__attribute__((noreturn)) void watch_cannot_write(const Run *run);
/* The same as watch_log for the held-out figures that were given since their last line. */
void watch_log_held_out(Run *run);
/* All figures as one text for a checkpoint, to be freed; and back. -1: the text is damaged. */
char *watch_text(const Run *run);
int watch_restore(Run *run, const char *text);
void watch_free(Run *run);
/* Ends the shards of a step: adds their figures, of all processes, in the order of the shards. */
void watch_gather(Run *run);

/* The number of steps after which the run ends. */
int run_end(const Run *run);

/* Declares what a checkpoint keeps of the best model. */
void best_keep(Run *run);
/* After a resume: has --early_stopping_patience ended the run already? */
void best_resume(Run *run);
/* After the same, with the models: is the best model of the run so far where the checkpoint was
   written? If not, prints a note, or ends the program with 2 if --load_best_model_at_end needs it.
   Nothing is written yet. */
void best_find(Run *run);
/* When OUTPUT is written to for the first time: copies the model that best_find has found. */
void best_bring(Run *run);
/* At the end of training, with --load_best_model_at_end: reads OUTPUT/best into the model. If that
   is not possible the model stays as it is, and a note says so. */
void best_load(Run *run);
/* Prints where the better model is, if it is not the result; or that it is. */
void best_report(const Run *run);
/* Writes OUTPUT/run.json: how the model was made. -1 with e filled. */
int run_json_write(const Run *run, Error *e);

/* Does a run write a directory of this name into OUTPUT? */
bool run_owns(const char *name);
/* Does a run write a file of this name into OUTPUT, beside the model's: its log, its dialogues, or
   run.json? */
bool run_records(const char *name);
/* Notes the content of the tokenizer, and of a model that was read and not from the checkpoint. */
void agree_note_tokenizer(Run *run);
void agree_note_model(Run *run, const Network *n);
/* Notes what the configuration of a model says besides the shapes of its tensors, and what the
   technique's says, or NULL. */
void agree_note_config(Run *run, const Network *n, const Technique *technique);
/* Notes the hash of the weights that the run began with; a resumed run takes it from the
   checkpoint. */
void agree_note_origin(Run *run, Network *n);
/* Ends the program with 2 unless the checkpoint that is resumed is one of this program; has the
   flags, the number of examples, and the contents that were noted since the last call. */
void agree_on_program(const Run *run);
/* Ends the processes with 2 unless all of them have the same program, flags and contents. */
void agree_over_ranks(const Run *run);
/* The same with the weights of the models, before the first step. */
void agree_on_weights(const Run *run);
void agree_check(Run *run);

/* Opens DIR/state.safetensors. What cannot be read ends the program with 2. */
SafeTensors *checkpoint_open_state(const char *dir);
/* What it has noted under KIND.NAME, or NULL. */
const char *checkpoint_noted(const SafeTensors *st, const char *kind, const char *name);
/* Ends the program with 1 if a model that trains has a weight, or computes a number, that is not
   finite: it must not take the place of one that is whole. */
void networks_check(const Run *run);
/* Finds the checkpoint that --resume names. -1 with e filled. */
int checkpoint_find(Run *run, Error *e);
/* Makes OUTPUT, and checks that it can be written and that nothing in it would be lost. */
int checkpoint_prepare_output(Run *run, Error *e);
/* The directory of another model of the run, in the checkpoint that is resumed. NULL: there is
   none. To be freed. */
char *checkpoint_model_dir(const Run *run, const char *role);
/* RunState.default_template of the checkpoint that is resumed. To be freed. */
char *checkpoint_template(const Run *run);
/* Restores moments, step, kept numbers and figures, and cuts the log back to that step. A state
   that was changed ends the program with 2. */
void checkpoint_resume(Run *run);
/* Ends the program with 1 if OUTPUT was moved or removed since the run began. A run that was moved
   with it saves a checkpoint first. All processes of a run call it together. */
void checkpoint_check_moved(Run *run);
/* May the run write into OUTPUT? -1 with e filled: OUTPUT, or what the run writes there, is a file
   or directory that another flag names and the run reads (a --model may be replaced by its result);
   or leads elsewhere by a link. */
int outputs_check(const Run *run, Error *e);
/* Is the file or directory of a flag part of a run: in a checkpoint, or in best/ or critic/ of an
   OUTPUT? -1 with e filled. If it is not, none begins while this process runs: see lock_share. */
int outputs_check_place(const Run *run, const char *flag, const char *path, Error *e);
/* A checkpoint that is in OUTPUT by a link belongs to the run that it leads to. -1 with e filled if
   the one that is resumed is such a link. */
int outputs_check_link(const Run *run, Error *e);
/* Before a model is written. Ends the program with 1 if a file that the run reads its frozen
   weights from has been written to, and as networks_check does. Then calls run_begin_writing. */
void checkpoint_begin_saving(Run *run);
/* The end of a sentence about what ends the run: which checkpoint is complete, and how to go on.
   first: what to do before that, "free some space". */
const char *checkpoint_remedy(const Run *run, const char *first);
/* Removes a directory and everything in it. Links are removed, not followed. 0, or -1 with errno
   set. */
int remove_tree(const char *path);
struct dirent;
/* The entries checkpoint-N of a directory, which may be absent, the oldest first; how many. One
   that cannot be read ends the program. To be freed with free_entries. */
int checkpoint_list(const char *dir, struct dirent ***list);
void free_entries(struct dirent **list, int n);
/* Renames aside, a directory in OUTPUT that is whole, to path: a checkpoint, or best/. The first
   one of a run takes the place of an older result. -1 with e filled. */
int checkpoint_place(const Run *run, const char *aside, const char *path, Error *e);
/* The first thing of this run is whole, so an older result is removed. model: also the model in
   OUTPUT itself, which is not the new one. */
void older_end(const Run *run, bool model);
/* Completes in OUTPUT, which this process keeps, what a run was about when it was killed. */
void older_repair(const Run *run);
/* Removes the checkpoints of OUTPUT that are older than `newest`, but the `keep` newest. */
void checkpoint_rotate(const Run *run, int newest, int keep);
/* Calls f for each checkpoint in OUTPUT, the oldest first. */
void checkpoint_each(const Run *run, void (*f)(const char *dir));
/* Rewrites the checkpoints in OUTPUT without moments. */
void run_remove_moments(const Run *run);
/* Writes the models of the run into dir; all: those with a role, too. -1 with e filled. If dir is
   OUTPUT, the new result takes the place of an older one. */
int checkpoint_save_models(const Run *run, const char *dir, bool all, Error *e);

#endif
