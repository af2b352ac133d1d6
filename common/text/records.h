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
    int skipped;          // bad lines
    Error first_skipped;  // why the first bad line is bad: "file:line:column: reason"
    int mismatched;       // pairs left out because the two answers follow different prompts
    char kind[32];        // of the first record, e.g. "instruction/response"
    char *template;       // of records_read: the template of the first record that has one other
                          // than "{instruction}", in one line (template_line); "{instruction}" if
                          // all prompts are complete; NULL if all records are plain text
} Records;

/*
 * Reads a JSONL file (jsonl.h: blank lines, bad lines, strict). A record is of the first of these
 * kinds whose fields it has; other fields are ignored:
 *
 *     instruction[/input]/output    instruction[/input]/response    prompt/completion
 *     prompt/response               input/output                    text/summary
 *     question/answer               messages [{role, content}]      conversations [{from, value}]
 *     text
 *
 * An input of "" or null is none. The response may be empty. The prompt is put into the template
 * (template.h; NULL: the default). Without a template there are two exceptions: the prompt of
 * prompt/completion is complete and stays as it is, and text/summary asks for a summary:
 * "Summarize the following text.\n\n{instruction}\n\nSummary:\n".
 *
 * A conversation becomes the system's message, if there is one, and an empty line; then each user's
 * message in the template, and the assistant's answer. User and assistant must alternate. A last
 * question without an answer is left out.
 *
 * 0, or -1 with e filled and out empty: also when the template is wrong, or the file has no good
 * line.
 */
int records_read(const char *path, const char *template, bool strict, Records *out, Error *e);
/* The same for texts to be judged, with one difference: a field "prompt" is always complete and
   stays as it is, unless a template is given. */
int answers_read(const char *path, const char *template, bool strict, Records *out, Error *e);
/*
 * The same for pairs of answers. A pair has fields chosen and rejected, and its prompt is
 *
 *     instruction[/input]    put into the template
 *     prompt                 complete; it stays as it is unless a template is given
 *     neither                both texts begin with it, and it ends with their last
 *                            "\n\nAssistant:" (hh-rlhf)
 *
 * prompt, chosen and rejected may all be lists of messages [{role, content}]: chosen and rejected
 * are then one assistant's message each, after the messages of prompt; without prompt they are
 * whole conversations with the same messages before the last. Pairs with different prompts are
 * counted as mismatched and left out. margin is a number, p_chosen a number from 0 to 1; both are
 * optional. A line with an empty answer is a bad line.
 */
int pairs_read(const char *path, const char *template, bool strict, Records *out, Error *e);
void records_free(Records *r);

/* ---- prompts --------------------------------------------------------------------------------- */

typedef struct {
    int line;  // in the file, from 1
    char *text;
    size_t n;
    char *answer;  // the record's answer, response, output or completion; NULL: it has none
} Prompt;

typedef struct {
    int n;
    int skipped;  // bad lines
    Error first_skipped;
    Prompt *v;
} Prompts;

/*
 * Reads a JSONL file of prompts. A prompt is the first of these fields that a line has:
 *
 *     instruction[/input]    put into the template
 *     prompt                 complete; it stays as it is unless a template is given
 *     chosen                 a dialogue "\n\nHuman: ...\n\nAssistant: ..." (Bai et al. 2022), up to
 *                            its last "\n\nAssistant:", without a template
 *
 * Other fields are ignored, so a file of records or pairs can be read too. A line with an empty
 * prompt is a bad line. In all else as records_read.
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
    int n, skipped;
    Error first_skipped;
    Question *v;
} Questions;

/* Reads a JSONL file of {"prompt", "corrects": [...], "incorrects": [...]}, at least one of each.
   In all else as records_read. */
int questions_read(const char *path, bool strict, Questions *out, Error *e);
void questions_free(Questions *q);

/* ---- skipped lines --------------------------------------------------------------------------- */

/* Prints "FILE: skipped 3 lines that are no record; the first: FILE:line:column: reason" on stdout.
   what: "record", "prompt", ... Prints nothing if skipped is 0. */
void say_skipped(const char *path, int skipped, const char *what, const Error *first);

#endif
