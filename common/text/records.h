/*
 * records.h - JSONL files as people write them: records to learn from, pairs of answers, prompts,
 * and multiple-choice questions.
 *
 * A record becomes text here, as separate spans for what the model is given and what it learns. The
 * dataset (dataset.h) tokenises each span by itself, so the boundary need not be searched for
 * among tokens.
 */
#ifndef POSTTRAIN_RECORDS_H
#define POSTTRAIN_RECORDS_H

#include "text/jsonl.h"
#include "util.h"

/* ---- records --------------------------------------------------------------------------------- */

/* A part of a record's text. The model learns to write the scored spans. */
typedef struct {
    char *text;
    size_t n;
    bool scored;
} Span;

/* One JSONL line as text, in n spans. An ordinary record has two, prompt and response. A
   conversation has two per answer. Plain text has one, which is scored. The last two spans of a
   pair are its answers, chosen and rejected, both scored; the spans before them are its prompt. */
typedef struct {
    int line;  // in the file, from 1
    int n;
    Span *spans;
    float margin;    // of a pair: by how much the chosen answer is better; 0 if the file does not
                     // say
    float p_chosen;  // of a pair: the probability that the chosen answer is the better one; 1 if
                     // the file does not say
} Record;

typedef struct {
    Record *v;
    int n;
    JsonlCounts counts;  // of the file. Left out are pairs whose answers follow different prompts
    char kind[64];       // of the first record, e.g. "instruction/response"
    char *template;      // of records_read: the template of the first record that has one other
                         // than "{instruction}", in one line (template_line); "{instruction}" if
                         // all prompts are complete; NULL if all records are plain text
    char *unused;        // the fields that were not read, "id, category"; NULL: none
    bool templated;      // a prompt was put into the template
    int empty;           // of records_read: records whose last response is empty,
    int first_empty;     //   and the line of the first of them
} Records;

/*
 * Reads a JSONL file (jsonl.h: arrays, blank lines, bad lines, strict). A record is of the first of
 * these kinds whose fields it has, null being none:
 *
 *     instruction[/input]/output    instruction[/input]/response    prompt/completion
 *     prompt/response               input/output                    text/summary
 *     question/answer               question/answers                question/response
 *     query/response                problem/solution                problem/answer
 *     document/summary              dialogue/summary                article/summary
 *     article/highlights            messages [{role, content}]      conversations [{from, value}]
 *     text
 *
 * An input of "" or null is none. The response may be empty. The prompt is put into the template
 * (template.h; NULL: the default). Without a template there are two exceptions: the prompt of
 * prompt/completion is complete and stays as it is, and a kind with a summary asks for one:
 * "Summarize the following text.\n\n{instruction}\n\nSummary:\n".
 *
 * A prompt that is put into the template may have more parts. context or passage is the input if
 * there is no other. system or system_prompt is the system's message. history is a list of earlier
 * turns, [[question, answer], ...]. Of several answers (a list, {"text": [...]} or {"value": ...})
 * the first is taken. Other fields are not used; out->unused names them.
 *
 * A conversation becomes the system's message, if there is one, as the template has it; then each
 * user's message in the template, and the assistant's answer. User and assistant must alternate;
 * either may begin. A last question without an answer is left out. A message has role and content,
 * or from and value. An answer with "weight": 0 ("train" or "loss": false) is not scored. prompt
 * and completion may be lists of messages, too: then only those of completion are scored.
 *
 * 0, or -1 with e filled and out empty: also when the template is wrong, the file has no good line,
 * or more bad lines than others.
 */
int records_read(const char *path, const char *template, bool strict, Records *out, Error *e);
/* The same for texts to be judged, with one difference: a field "prompt" is always complete and
   stays as it is, unless a template is given. */
int answers_read(const char *path, const char *template, bool strict, Records *out, Error *e);
/*
 * The same for pairs of answers. A pair has fields chosen and rejected, and its prompt is
 *
 *     instruction[/input]    put into the template
 *     prompt                 complete; it stays as it is unless a template is given. If both
 * answers begin with it (16 bytes or more), they begin behind it question, query,       put into
 * the template input, problem none of them           both texts begin with it, and it ends with
 * their last
 *                            "\n\nAssistant:" (hh-rlhf); if neither has that, the prompt is empty
 *                            and each text is judged as a whole
 *
 * chosen and rejected may be messages: one assistant's message each, after the messages of prompt
 * or conversations or after a prompt that is a text, which is then put into the template; or whole
 * conversations with the same messages before the last. Pairs with different prompts are counted
 * and left out. Other names of chosen and rejected are response_j and response_k, chosen_response
 * and rejected_response, preferred_output and non_preferred_output with input.messages, and
 * response_0 and response_1 with better_response_id. margin is a number, p_chosen a number from 0
 * to 1; both are optional. A line with an empty answer is a bad line.
 */
int pairs_read(const char *path, const char *template, bool strict, Records *out, Error *e);
void records_free(Records *r);

/* ---- prompts --------------------------------------------------------------------------------- */

typedef struct {
    int line;  // in the file, from 1
    char *text;
    size_t n;
    char *answer;  // the record's own answer; NULL: it has none
} Prompt;

typedef struct {
    int n;
    JsonlCounts counts;  // of the file
    char *unused;        // as in Records
    bool templated;      // as in Records
    Prompt *v;
} Prompts;

/*
 * Reads a JSONL file of prompts. The prompt of a record or pair is what records_read or pairs_read
 * makes of it, up to the answer; earlier answers of a conversation end with <|endoftext|>. There
 * are these as well:
 *
 *     prompt                 complete; it stays as it is unless a template is given, also beside
 *                            question/answer and the like; or a list of messages
 *     instruction[/input], question, query, problem      put into the template
 *     messages that end with the user's
 *
 * Plain text has no prompt. The record's own answer is the first of answer, response, output,
 * completion, solution, ground_truth, summary, answers and highlights that is a text, or else
 * reward_model.ground_truth, or else one of them that is a number or a boolean, or a conversation's
 * last answer. A line with an empty prompt is a bad line. In all else as records_read.
 */
int prompts_read(const char *path, const char *template, bool strict, Prompts *out, Error *e);
void prompts_free(Prompts *p);

/* ---- questions ------------------------------------------------------------------------------- */

/* A multiple-choice question. The first `corrects` of its n options are right. */
typedef struct {
    int line, n, corrects;
    char *prompt, **option;
} Question;

typedef struct {
    int n;
    JsonlCounts counts;  // of the file
    Question *v;
} Questions;

/* Reads a JSONL file of {"prompt", "corrects": [...], "incorrects": [...]}, at least one of each.
   In all else as records_read. */
int questions_read(const char *path, bool strict, Questions *out, Error *e);
void questions_free(Questions *q);

/* ---- what is said about a file --------------------------------------------------------------- */

/* Prints "FILE: skipped 3 of 12 lines, because they are no record; the first: FILE:line:column:
   reason" on stdout. what: "record", "prompt", ... Prints nothing if no line was skipped. */
void say_skipped(const char *path, const JsonlCounts *counts, const char *what);
/* Prints how many records have an empty response, and the line of the first. Nothing if none has.
 */
void say_empty(const char *path, const Records *r);
/* Prints which fields of a file are not used; nothing if unused is NULL, or what the last file had.
 */
void say_unused(const char *path, const char *unused);

#endif
