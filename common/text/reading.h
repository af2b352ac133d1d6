/*
 * reading.h - how one JSON object becomes a record: what the readers of records, pairs and prompts
 * share. For records.c, preferences.c and prompts.c alone.
 */
#ifndef POSTTRAIN_READING_H
#define POSTTRAIN_READING_H

#include "text/records.h"
#include "text/template.h"

/* Of records_read, answers_read, pairs_read, prompts_read */
typedef enum { LEARNED, JUDGED, PAIRED, PROMPTED } Purpose;

/* How records become text. */
typedef struct {
    Template template;
    const char *given;  // the user's template; NULL: the default
    Purpose purpose;
} Style;

/* One object while it is read. */
typedef struct {
    const json_t *object;
    const Style *style;
    Record *record;        // gets the spans
    char kind[64];         // as in Records
    const char *used[16];  // the fields that were read
    int used_n;
    Str inner;       // "messages.name, ...": fields of messages that were not read
    bool templated;  // a part of it was put into the template
    bool bare;       // the prompt was not: its answer gets no text of the template either
    Fault *fault;
} Reading;

/* A conversation while it is read. */
typedef struct {
    Str pending;   // the text since the assistant's last answer
    Str system;    // the system's message, until the first turn; s NULL: there is none
    bool asked;    // it ends with a user's turn
    bool begun;    // there was a turn of the user or the assistant
    Slice answer;  // the assistant's last answer; s NULL: there is none
} Talk;

/* ---- fields ---------------------------------------------------------------------------------- */

/* The value of a field, which now counts as used. NULL: the object does not have it, or it is null.
 */
const json_t *reading_field(Reading *x, const char *name);
/* Has the object the field, and is it not null? */
bool reading_has(const Reading *x, const char *name);
/* jsonl_text and jsonl_optional_text of a field, which then counts as used. */
int reading_text(Reading *x, const char *name, Slice *out);
int reading_optional_text(Reading *x, const char *name, Slice *out);
/* Fills the fault: the object is of no known kind. Returns -1. */
int reading_unknown(Reading *x, const char *expected);
/* Appends to *unused ("a, b"; NULL: none yet) the fields of the object that were not used, that are
   not empty, and that the list does not have yet. Frees x->inner. */
void reading_collect_unused(Reading *x, char **unused);

/* ---- spans ----------------------------------------------------------------------------------- */

/* Appends a span, which then owns the text. */
void reading_add_span(Reading *x, Str *text, bool scored);
/* Appends a scored span: the response, and the template's text after it unless x->bare. */
void reading_add_response(Reading *x, Slice response);
/* Makes the answers so far a part of the prompt, each ended by <|endoftext|>. */
void reading_close_history(Reading *x);

/* ---- prompts --------------------------------------------------------------------------------- */

/*
 * Reads the prompt in field `name` as spans: the system's message (system, system_prompt), the
 * earlier turns (history), and the prompt in the template with its input (input, context, passage).
 * A prompt that is complete stays as it is and has none of these. before, after: the text around
 * the prompt if there is no --template; NULL: the default template.
 */
int reading_prompt(Reading *x, const char *name, bool complete, const char *before,
                   const char *after);
/* Who wrote a message (role, from), and its text (content, value); NULL: it does not say. */
const json_t *message_role(const json_t *turn);
const json_t *message_content(const json_t *turn);
/* Reads the messages in field `name`. Answers of the assistant become scored spans. */
int reading_messages(Reading *x, const char *name, Talk *talk);
void talk_free(Talk *talk);
/* The field that holds a prompt: instruction, prompt, question, query, input or problem; NULL:
   none. */
const char *reading_prompt_field(const Reading *x);
/* The length of the prompt at the beginning of a dialogue of hh-rlhf, up to its last
   "\n\nAssistant:"; 0: it has none. */
size_t dialogue_prompt_end(Slice text);
/* The field that holds a conversation: messages, conversations or conversation; NULL: none. */
const char *reading_conversation(const Reading *x);

/* ---- files ----------------------------------------------------------------------------------- */

/* What add functions get: how to render, and the Records or Prompts to append to. */
typedef struct {
    Style style;
    void *out;
} Adding;

/* Reads the objects of a file for this purpose: jsonl_read, with add's context an Adding. */
int reading_objects(const char *path, Purpose purpose, const char *template, bool strict,
                    AddObject *add, void *out, JsonlCounts *counts, Error *e);
/* Reads a record of one prompt and its response, a conversation, or plain text. */
int reading_record(Reading *x);
/* Reads a pair. 0, -1 with the fault filled, or JSONL_LEFT_OUT: the two answers follow different
   prompts. */
int reading_pair(Reading *x);
void record_free(Record *r);

/* The fields of a kind of record with one prompt and one response. */
typedef struct {
    const char *prompt, *response;
    const char *before, *after;  // the text around the prompt without a --template; NULL: the
                                 // default template
} Kind;

/* The kind of a record with one prompt and one response; NULL for any other record. */
const Kind *reading_kind(const Reading *x);
/* The answer in a field: the field's value, or the first of several: of a list, or of SQuAD's
   {"text": [...]}; or that of TriviaQA's {"value": ...}. NULL: there is none. */
const json_t *reading_first_answer(const json_t *value);
/* Is the prompt of this kind complete for this purpose? A prompt that comes with a completion is;
   one that comes with a response only where it is judged. */
bool reading_complete(const Reading *x, const Kind *k);

#endif
