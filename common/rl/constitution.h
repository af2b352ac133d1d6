/*
 * constitution.h - what constitutional.c reads and writes: the principles of a constitution, the
 * layouts of its conversations, dialogues of critique and revision, and their transcripts.
 */
#ifndef POSTTRAIN_CONSTITUTION_H
#define POSTTRAIN_CONSTITUTION_H

#include "util.h"

/* ---- constitutions --------------------------------------------------------------------------- */

/* A plain principle is a sentence (text). Any other brings its own requests, as they are written in
   the conversation, and the text that compares two answers (comparison). NULL: the file does not
   say. */
typedef struct {
    char *name, *text, *critique_request, *revision_request, *comparison;
} Principle;

typedef struct {
    int n, few_shot_n;
    Principle *v;
    char **few_shot;  // whole conversations, shown before each dialogue
    char *critique_request, *revision_request, *comparison;  // layouts of the whole file, or NULL
    char *option[2];                                         // labels of two answers, or NULL
} Constitution;

/*
 * Reads a JSON file (16 MiB at most) of one of these forms:
 *
 *     [principle, ...]
 *         a principle is a string, {"principle"[, "name"]}, or
 *         {"critique_request", "revision_request"[, "comparison"][, "name"]}, of which the first
 * two may also be called critic and revision
 *     {"constitutions": [principle, ...]}
 *         as Hugging Face published one
 *     {"name": {"prompt": [...], "edit_request": "..."}, ...}
 *         as Bai et al. 2022 published theirs
 *     {"principles": [principle, ...][, "few_shot": ["...", ...]][, "critique_request"]
 *      [, "revision_request"][, "comparison"][, "options": ["A", "B"]]}
 *         with the file's own layouts, where {principle} is replaced by a plain principle
 *
 * 0, or -1 with e filled: not JSON, another form, no principle, an empty request, or an unknown
 * field.
 */
int constitution_read(const char *path, Constitution *out, Error *e);
void constitution_free(Constitution *c);

/* ---- layouts --------------------------------------------------------------------------------- */

typedef struct {
    const char *name, *text;
} Hole;

/* Replaces each name of holes (which end with {0}) in template by its text. The texts are not
   searched again. The caller frees the result. */
char *text_fill(const char *template, const Hole *holes);
/* True if text contains one of the phrases of a list "a|b|c" at the beginning of a word:
   "inappropriate" does not contain "appropriate", nor 부적절함 적절함. Ignores the case of ASCII
   letters. */
bool text_says(const char *text, const char *list);
/* The length of the first n bytes of text without the characters of `blanks` at their end. */
size_t text_trimmed(const char *text, size_t n, const char *blanks);
/* True if text has a syllable of Hangul. text may be NULL. */
bool text_is_korean(const char *text);

/* The headings that a layout puts before each speaker's text. */
typedef struct {
    char **v;
    int n;
} Headings;

/* Adds a template's headings: the part up to the colon of its first and its last line that are not
   empty, and of each line that begins with #. A line without a colon has none. */
void headings_add(Headings *h, const char *template);
void headings_free(Headings *h);
/* Cuts text before the first line that begins with a heading or with <|endoftext|>: from there the
   model writes another speaker's text. Then removes the white space at its end. */
void headings_cut(const Headings *h, char *text);

/* The question in a prompt of the default template or of the form "\n\nHuman: ...\n\nAssistant:":
   without the answer's heading, and if bare also without its own heading. Any other prompt is
   returned whole. The caller frees it. */
char *prompt_question(const char *prompt, bool bare);

/* ---- dialogues ------------------------------------------------------------------------------- */

/* One critique and revision of an answer. NULL: not written (yet). */
typedef struct {
    char *principle, *critique_request, *critique, *revision_request, *revision;
} Round;

/* Why a dialogue ended: the critique praised the answer, was empty, or repeated earlier text; all
   rounds were used; or the text filled the model's positions. */
typedef enum { UNFINISHED, PRAISED, SILENT, ECHOED, ROUNDS_USED, NO_ROOM, ENDINGS } Ending;
extern const char *const endings[ENDINGS];       // in a transcript
extern const char *const ending_words[ENDINGS];  // for a reader

typedef struct {
    int line, epoch, id;  // line: in the transcript, from 1; id: the prompt's number, from 0
    char *prompt, *answer;
    int rounds;
    Round *round;
    Ending ending;
} Dialogue;

typedef struct {
    int n;
    Dialogue *v;
} Dialogues;

/* The last revision, or the first answer if there is none. */
const char *dialogue_answer(const Dialogue *d);
void dialogue_free(Dialogue *d);
void dialogue_show(const Dialogue *d, const char *when);  // prints it for a reader on stdout

/* Appends n dialogues to a file, each as a line of JSON: epoch, id, init_prompt, init_response,
   rounds [{principle, critic_prompt, critic_response, revision_prompt, revision_response}], ended,
   messages; and, if a revision changed the answer, prompt, chosen and rejected. 0, or -1 with e
   filled. */
int dialogues_append(const char *path, const Dialogue *d, int n, Error *e);
/* Appends such a line to a text, with the step before its other fields. */
void dialogue_add_line(const Dialogue *d, int step, Str *lines);
/* Reads the dialogues in `from` up to the first that is cut short or of an epoch after `epoch`. A
   missing file has none. Then writes exactly those to the file `to`, which may be the same file
   (NULL: writes nothing). 0, and e->text is what is wrong with the line that ended it, or empty; or
   -1 with e filled: the file cannot be read, or dialogues follow a line that is none. */
int dialogues_keep(const char *from, int epoch, const char *to, Dialogues *out, Error *e);

#endif
