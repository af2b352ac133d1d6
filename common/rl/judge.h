/*
 * judge.h - gives texts a score: by a reward model, or by another program.
 *
 * ppo.c scores its policy's answers with a Judge. reward.c scores the answers of a file, or of the
 * command line, with the reward model it made. The reward of a text is the model's value at the
 * last token that is not the end of text (judged_tokens). A reward model of TRL that is padded with
 * another token was trained with an end after each text; its score is read there.
 */
#ifndef POSTTRAIN_JUDGE_H
#define POSTTRAIN_JUDGE_H

#include "rl/child.h"
#include "rl/rollouts.h"
#include "run/run.h"

/* ---- texts and their rewards ----------------------------------------------------------------- */

/* Texts as tokens, each up to its last judged token: text i is tokens[start[i] .. start[i+1]). */
typedef struct {
    int n, longest;  // texts, and the tokens of the longest
    int *line;       // (n) where each is in its file
    size_t *start;   // (n+1)
    int *tokens;
} Texts;

/* Reads a file of answers (answers_read). A text of more than max_length tokens loses the beginning
   of its prompt, and if that is not enough its end. A score must not go missing: a line that is no
   record, or has no token, ends the program with 2. at_end: the end of text is judged, and added to
   each text. */
Texts texts_read(const char *path, const char *template, int max_length, const Tokenizer *t,
                 bool at_end);
void texts_free(Texts *x);
/* The reward of each text (n) by a model with a scalar head. limits: sequences and tokens at once,
   within the limits that the model has reserved. A text's reward does not depend on the others.
   False: a signal has come in training (run_interrupted), and not all are scored. */
bool texts_score(GPT2 *model, const GPT2Limits *limits, const Texts *x, float *score);

/* ---- the judge of a policy's answers --------------------------------------------------------- */

/* One of model and program. */
typedef struct {
    GPT2 *model;      // SCORE_HEAD
    Child *program;   // reads lines {"prompt", "response"[, "answer"]}, answers {"score"} lines
    double patience;  // seconds of silence after which the program has failed
    const Tokenizer *tokenizer;
} Judge;

/* Fills in r->score: the reward of prompt and answer, B texts at a time, or the program's score.
   The program also gets the record's own answer. A score that is not finite and a program that
   fails end this program with 1 and a message. False: not all are scored, because a signal
   asks the run to stop; stopped is that of child_ask. */
bool judge_score(const Judge *j, Rollouts *r, const Queries *q, int B, bool (*stopped)(void));

/* ---- scores instead of training -------------------------------------------------------------- */

/* Flags of reward.c */
typedef struct {
    const char *score, *score_output, *prompt, *response;
    bool chat;
} Scoring;

/* Rows of a stage's table of flags, for variable, a Scoring in static storage. */
// clang-format off
#define SCORING_FLAGS(variable)                                                                    \
    TITLE("Scores instead of training"),                                                           \
    {"score", TEXT((variable).score, NULL),                                                        \
     "Score the answers of this JSONL file (prompt and response, prompt and completion, text, "    \
     "...) with the reward model --model, and do not train.",                                      \
     .may_change_on_resume = true,                                                                 \
     .conflicts = "data eval output resume dry_run normalize",                                     \
     .uses = "score score_output overwrite_output_dir model template max_length "                  \
             "per_device_train_batch_size strict bf16 fp16 cpu quiet"},                            \
    {"score_output", TEXT((variable).score_output, NULL),                                          \
     "The JSONL file to write the scores of --score to; without it they are printed.",             \
     .may_change_on_resume = true, .only_with = "score"},                                          \
    {"prompt", TEXT((variable).prompt, NULL),                                                      \
     "Print the reward of an answer to this prompt, in the template that --model was trained "     \
     "in. The answer is --response, or each line of stdin with --chat.",                           \
     .may_be_empty = true, .may_change_on_resume = true,                                           \
     .conflicts = "data eval output resume dry_run score normalize",                               \
     .uses = "prompt response chat model template bf16 fp16 cpu quiet"},                           \
    {"response", TEXT((variable).response, NULL), "The answer to --prompt that is scored.",        \
     .may_be_empty = true, .may_change_on_resume = true, .conflicts = "chat"},                     \
    {"chat", SWITCH((variable).chat, "false"),                                                     \
     "Score each line of stdin as an answer to --prompt; an empty line or /exit ends it.",         \
     .may_change_on_resume = true}
// clang-format on

/* Does what these flags ask for, with the model in run->model (for --prompt NULL: the built-in
   one). False: they ask for nothing. --score writes a line {"line": 1, "score": 0.25} for each
   answer; --prompt prints each score on a line. Wrong input ends the program with 2, a score that
   is not finite with 1. */
bool scoring_asked(const Scoring *s, const Run *run, const char *template, int max_length);

#endif
