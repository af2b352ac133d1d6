/*
 * text.h - from JSONL records to tokens and back.
 *
 * A tokenizer (GPT-2's byte-level BPE), records as people write them, a template that turns a
 * record into text, and the dataset of tokens a stage draws its batches from. The boundary between
 * what is given and what is learned is made here, by tokenising the two as separate spans of bytes;
 * nobody ever searches for it among tokens.
 */
#ifndef POSTTRAIN_TEXT_H
#define POSTTRAIN_TEXT_H

#include "model/gpt2.h"
#include "util.h"

/* ---- tokenizer ------------------------------------------------------------------------------- */

typedef struct Tokenizer Tokenizer;

/* Reads dir/vocab.json and dir/merges.txt (and dir/added_tokens.json, if there is one), or else
   dir/tokenizer.json. NULL with e filled: a file that is missing or malformed, a vocabulary without
   a token for each byte, without <|endoftext|>, with ids used twice or holes between them, a merge
   of unknown tokens, a tokenizer.json of another kind than GPT-2's. */
Tokenizer *tokenizer_load(const char *dir, Error *e);
void tokenizer_free(Tokenizer *t);
int tokenizer_size(const Tokenizer *t);  // ids are 0 .. size-1
int tokenizer_eos(const Tokenizer *t);   // the id of <|endoftext|>
/* Appends the ids of the n bytes at s: those of the libraries, for any text. "<|endoftext|>" (and
   any other added token) written out in the text becomes its one id, as in the libraries, when
   specials is true; else it is ordinary text. Any bytes are accepted: a run that is not UTF-8 is a
   piece of its own. decode(encode(s)) == s. Takes O(n log n) at worst. Threads may share a
   tokenizer. */
void tokenizer_encode(const Tokenizer *t, const char *s, size_t n, bool specials, Ints *out);
/* Appends the bytes of the ids. One token may hold part of a UTF-8 character. An id outside 0 ..
   size-1 adds nothing: the vocabulary of a model may be padded beyond its tokenizer's. */
void tokenizer_decode(const Tokenizer *t, const int *ids, size_t n, Str *out);

/* ---- records --------------------------------------------------------------------------------- */

/* A stretch of a record's text; scored stretches are what the model learns to write. */
typedef struct {
    char *text;
    size_t n;
    bool scored;
} Span;

/* One JSONL line as rendered text. spans[0..n): an ordinary record has two, prompt and response; a
   conversation has one per turn; plain text has a single scored one. A pair's last two are its
   answers, chosen and rejected (scored, both). */
typedef struct {
    int line;  // in the file, from 1
    int n;
    Span *spans;
    float margin, p_chosen;  // of a pair: by how much, and how surely, its chosen answer is the
                             // better one; 0 and 1 where nothing is said
} Record;

typedef struct {
    Record *v;
    int n;
    int skipped;          // lines that are no record
    Error first_skipped;  // why the first of them is not: "file:line:column: reason"
    int apart;            // pairs left out because chosen and rejected answer different prompts
    char kind[32];        // what the first record was recognised as, e.g. "instruction/response"
    char *template;  // what the first prompt that was put into something was put into, as one line
                     // (template_line); "{instruction}": all are taken as they are; NULL: there is
                     // only plain text, or the records are not to learn from
} Records;

#define TEMPLATE_DEFAULT NULL
/*
 * Reads a JSONL file. A record is recognised by its fields, the first that fits of:
 *   instruction[/input]/output, instruction[/input]/response, prompt/completion, prompt/response,
 * input/output, text/summary, question/answer, messages [{role, content}], conversations [{from,
 * value}], text Other fields are ignored. An input of "" or null is none. The response may be
 * empty.
 *
 * template: the text before the response, with {instruction} and {input} (each record's own fields
 * under those two names, whatever they were called), \n, \t and \\ as in C; a part in [[...]] is
 * dropped when the record has no input. A template without {input} gets the input after the
 * instruction, on a new line. What follows {response}, if it appears, ends the response. The
 * default is
 *   "### Instruction:\n{instruction}\n\n[[### Input:\n{input}\n\n]]### Response:\n"
 * except that prompt/completion is taken as it is, since its prompt is complete, and that
 * text/summary asks for a summary: "Summarize the following text.\n\n{instruction}\n\nSummary:\n"
 *
 * A conversation: the system's message first, if there is one, as it stands and followed by an
 * empty line; then each user's message in the template, and the assistant's answer. User and
 * assistant alternate; a last question without an answer is left out.
 *
 * Blank lines and a byte order mark are ignored. A line that is no such record (not JSON, a field
 * that is not a string, a field given twice, longer than 64 MiB, ...) is counted and skipped, or
 * with strict ends the reading. 0, or -1 with e filled (file, line, column in characters, reason),
 * also when not one record was found; out is then empty. The column is the field's that is wrong,
 * or, where a line is not JSON, that of the last character in order, as jansson counts.
 */
int records_read(const char *path, const char *template, bool strict, Records *out, Error *e);
/* The same for texts to be judged: a "prompt" is complete, and taken as it is, whatever the field
 * beside it is called. */
int answers_read(const char *path, const char *template, bool strict, Records *out, Error *e);
/*
 * The same for pairs of answers, of which one was preferred. A pair is recognised by chosen and
 * rejected and, beside them, instruction[/input]      rendered in the template prompt complete, and
 * taken as it is (unless a template is given) neither                  both texts begin with the
 * prompt, which ends with their last "\n\nAssistant:" (hh-rlhf) or by lists of messages [{role,
 * content}] in their places: chosen and rejected are each the assistant's one answer, to the
 * messages of prompt, or where there is no prompt to those before it. Pairs whose prompts differ
 * are counted as `apart` and left out. margin is a number; p_chosen, from 0 to 1, a soft label: the
 * probability that the chosen answer is the better one. An answer of "" makes a line a bad one:
 * there would be nothing to judge.
 */
int pairs_read(const char *path, const char *template, bool strict, Records *out, Error *e);
void records_free(Records *r);
/* Renders one instruction (and input, or NULL) as a prompt, as records_read does. The caller frees
   it. NULL with e filled when the template is wrong. */
char *template_prompt(const char *template, const char *instruction, const char *input, Error *e);
/* The same for a response: with what the template puts after one. */
char *template_response(const char *template, const char *response, Error *e);
/* The template (or the default) in one line that means the same: line feeds and tabs spelled out.
 * To be freed. */
char *template_line(const char *template);

/* ---- prompts --------------------------------------------------------------------------------- */

typedef struct {
    int line;  // in the file, from 1
    char *text;
    size_t n;
    char
        *answer;  // what its record holds as answer, response, output or completion; NULL = nothing
} Prompt;

typedef struct {
    int n;
    int skipped;  // lines that are no prompt
    Error first_skipped;
    Prompt *v;
} Prompts;

/*
 * Reads a JSONL file of texts to go on from. The first that fits of:
 *   instruction[/input], put into the template as records_read does; prompt, taken as it is unless
 * a template is given; chosen, a dialogue
 *   "\n\nHuman: ...\n\nAssistant: ..." (Bai et al. 2022), of which everything up to the last
 * "\n\nAssistant:" is taken as it is Other fields are ignored, so that a file of records or of
 * pairs serves too. An empty prompt is no prompt. In all else as records_read.
 */
int prompts_read(const char *path, const char *template, bool strict, Prompts *out, Error *e);
void prompts_free(Prompts *p);

/* ---- what constitutional.c reads and writes -------------------------------------------------- */

/* What answers are held against. A plain principle is a sentence (text); another brings its
   requests as they stand in the conversation, and what to say where two answers are compared
   (comparison). NULL: the file does not say. */
typedef struct {
    char *name, *text, *critique_request, *revision_request, *comparison;
} Principle;

typedef struct {
    int n, few_shot_n;
    Principle *v;
    char **few_shot;  // whole conversations, to be shown before each
    char *critique_request, *revision_request, *comparison,
        *option[2];  // templates for the whole file, or NULL
} Constitution;

/*
 * Reads a JSON file (16 MiB at most) of one of these forms:
 *   [principle, ...]                a string, or {"critique_request", "revision_request"[,
 * "comparison"][, "name"]}
 *   {"name": {"prompt": [...], "edit_request": "..."}, ...}      as Bai et al. 2022 published
 * theirs
 *   {"principles": [principle, ...][, "few_shot": ["...", ...]][, "critique_request"][,
 * "revision_request"][, "comparison"]
 *    [, "options": ["A", "B"]]}     templates of one's own, where a plain principle has its place
 * {principle} 0, or -1 with e filled: not JSON, another form, an empty list, an empty request, a
 * field nobody knows.
 */
int constitution_read(const char *path, Constitution *out, Error *e);
void constitution_free(Constitution *c);

/* A question with its answers, the right ones first. */
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
 * In all else as records_read. */
int questions_read(const char *path, bool strict, Questions *out, Error *e);
void questions_free(Questions *q);

/* How critique and revision of an answer went. NULL: not written (yet). */
typedef struct {
    char *principle, *critique_request, *critique, *revision_request, *revision;
} Round;

typedef enum { GOES_ON, PRAISED, SILENT, ECHOED, ROUNDS_USED, NO_ROOM, ENDINGS } Ending;
extern const char *const endings[ENDINGS];  // in words

typedef struct {
    int line, epoch, id;  // id: which prompt
    char *prompt, *answer;
    int rounds;
    Round *round;
    Ending ending;
} Dialogue;

typedef struct {
    int n;
    Dialogue *v;
} Dialogues;

/* Appends n dialogues to a file, each as a line of JSON: epoch, id, init_prompt, init_response,
   rounds [{principle, critic_prompt, critic_response, revision_prompt, revision_response}], ended,
   messages; and, where something was revised, prompt, chosen and rejected. 0, or -1 with e filled.
 */
int dialogues_append(const char *path, const Dialogue *d, int n, Error *e);
/* Reads such a file up to the first line that is not whole, or is of an epoch after `epoch`; a
   missing file holds none. What was read is then all that stands in the file `to`, which may be the
   same (NULL: nowhere). 0, or -1 with e filled. */
int dialogues_keep(const char *from, int epoch, const char *to, Dialogues *out, Error *e);
void dialogue_free(Dialogue *d);
void dialogue_show(const Dialogue *d, const char *when);  // for a person, on stdout
/* The answer as it stands: the last revision, or the first answer. */
const char *dialogue_answer(const Dialogue *d);

/* The question in a prompt of the default template, or of the form "\n\nHuman: ...\n\nAssistant:":
   without the heading of the answer, and if bare without its own. Any other prompt is all question.
   To be freed. */
char *prompt_question(const char *prompt, bool bare);

/* Replaces each byte of s from `from` on that belongs to no UTF-8 character, and each NUL, by
   U+FFFD: what it is then can be written as JSON, and read again as the same. */
void text_repair(Str *s, size_t from);

/* ---- dataset --------------------------------------------------------------------------------- */

/* Records as tokens. Example i is tokens[start[i] .. start[i+1]); scored[j] says whether token j is
 * learned. */
typedef struct {
    int n;          // examples
    int *line;      // (n) where each came from
    size_t *start;  // (n+1)
    int *tokens;
    unsigned char *scored;
    long prompts_cut, responses_cut;  // examples too long: tokens taken off the prompt's left, the
                                      // response's right
    long dropped;                     // records with nothing to score
    long scored_tokens;
    int longest;  // tokens of the longest example
} Dataset;

/* Tokenises spans one by one (added tokens written in them are recognised) and ends each response
   (scored span) with one
   <|endoftext|>, scored, unless it ends so already. More than max_length tokens: what comes before
   the first response goes from its left, and if that is not enough the example's end goes.
   train_on_prompt scores everything. The first token is never scored: there is nothing from which
   to predict it. */
void dataset_build(Dataset *d, const Records *r, const Tokenizer *t, int max_length,
                   bool train_on_prompt);
void dataset_free(Dataset *d);

/* Room for one ragged batch. */
typedef struct {
    Batch batch;
    int *start, *tokens, *target;  // target[i] follows token i, -1 where it is not scored
    uint32_t *id;
    int scored;          // targets >= 0
    int room_S, room_N;  // sequences and rows there is memory for
} RaggedBatch;

/* Examples which[0..S) of d. An example of n tokens gives n-1 rows: its last token is only ever a
   target. Grows rb as needed (start from {0}). */
void ragged_fill(RaggedBatch *rb, const Dataset *d, const int *which, int S);
void ragged_free(RaggedBatch *rb);
/* Ceilings for any batch of up to S of the examples which[0..n): its rows, and in *scored its
 * targets. */
int ragged_largest(const Dataset *d, const int *which, int n, int S, int *scored);
/* Targets of example i: its share of the loss's denominator. */
int dataset_targets(const Dataset *d, int i);

/* ---- JSON from and for other programs -------------------------------------------------------- */

/* Appends the n bytes at s as a JSON string; each byte that is not UTF-8 becomes U+FFFD. */
void json_add_string(Str *out, const char *s, size_t n);
/* Member `name` of the JSON object that stands in the n bytes at s: a number, or an array of
   numbers. Writes the first `room` of them and returns how many there are; -1 with e filled: not an
   object, no such member, not a number. */
int json_numbers(const char *s, size_t n, const char *name, double *out, int room, Error *e);

/* ---- what is judged -------------------------------------------------------------------------- */

/*
 * A reward is read at the last token of a text, and the <|endoftext|> that says that the text is
 * over is not part of it. Returns how many of the n tokens there are up to that place: n less the
 * <|endoftext|>s at the end. (A library that pads with <|endoftext|>, as GPT-2's do for want of
 * another token, cannot tell the text's own from its padding, and reads the score at the last token
 * that is neither.)
 */
int judged_tokens(const int *tokens, int n, int eos);

/* Pairs as tokens. Pair i has three parts, prompt, chosen and rejected: part k is
   tokens[start[3i+k] .. start[3i+k+1]). The answers are their judged tokens; the prompt may be
   empty. */
typedef struct {
    int n;          // pairs
    int *line;      // (n) where each came from
    size_t *start;  // (3n+1)
    int *tokens;
    float *margin, *p_chosen;     // (n)
    long prompts_cut;             // prompts that lost their beginning, the same for both answers
    long empty, equal, too_long;  // pairs dropped: an answer without a token; two answers alike; an
                                  // answer that alone is too long
    int longest;                  // tokens of the longest prompt with the longer of its answers
} Pairs;

/* Tokenises the parts one by one. More than max_length tokens in prompt and longer answer: the
 * prompt goes from its left. */
void pairs_build(Pairs *p, const Records *r, const Tokenizer *t, int max_length);
void pairs_free(Pairs *p);
static inline int pair_part(const Pairs *p, int i, int k) {
    return (int)(p->start[3 * i + k + 1] - p->start[3 * i + k]);
}

#endif
