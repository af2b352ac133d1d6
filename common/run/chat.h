/*
 * talk.h - talking to a model: a prompt, or a conversation, answered on stdout token by token.
 *
 * What is said to a model takes the form that it was trained in, by the same code and to the same
 * tokens: each prompt in the template, by itself, each answer ended by one <|endoftext|>. The
 * template is, the first there is of
 *
 *     --template;  what the adapter's directory says, then the model's (hf_template: every run
 * writes it beside its model); and where nothing says so: of --prompt, none, the text is gone on
 * from as it is; of --chat, the default, as records of messages get it
 */
#ifndef POSTTRAIN_TALK_H
#define POSTTRAIN_TALK_H

#include "model/generate.h"
#include "model/memory.h"
#include "run/run.h"
#include "text/text.h"

typedef struct {
    /* flags */
    const char *prompt;  // to be answered instead of training
    bool chat;
    float temperature, top_p;
    int top_k, max_new_tokens;
    /* the rest is talk_prepare's */
    Tokenizer *tokenizer;
    char *template;
    bool plain;     // there is no template: a text is gone on from
    int positions;  // the model's
    Ints said, turns,
        asked;      // the conversation as tokens; where in it each turn begins; what is asked next
    int forgotten;  // turns cut from its front
} Talk;

/* The rows of a stage's table of flags that belong to talk, a Talk in static storage. rest: the
 * stage's own flags that make no sense beside these. */
#define TALK_FLAGS(talk, rest)                                                               \
    TALK_PROMPT_FLAGS(talk, rest),                                                           \
        {"temperature",          FLAG_FLOAT,                                                 \
         &(talk).temperature,    .high = 100,                                                \
         .free_on_resume = true, .help = "of these answers; 0: always the likeliest token"}, \
        TALK_LENGTH_FLAG(talk), TALK_TOP_FLAGS(talk)

/* Parts of it, for stages that have flags of the others' names already. */
#define TALK_PROMPT_FLAGS(talk, rest)                                                       \
    {"", FLAG_TITLE, NULL, .help = "Talking to it, instead of training"},                   \
        {"prompt",                                                                          \
         FLAG_STRING,                                                                       \
         &(talk).prompt,                                                                    \
         .free_on_resume = true,                                                            \
         .apart = "data eval output resume dry_run " rest,                                  \
         .help = "a text to answer, in the template that --model was trained in"},          \
    {                                                                                       \
        "chat", FLAG_BOOL, &(talk).chat,                                                    \
            .free_on_resume = true, .apart = "data eval output resume dry_run " rest,       \
            .help =                                                                         \
                "a conversation: a line of the input is a turn (the first is --prompt, if " \
                "given); an empty line or /exit ends it"                                    \
    }

#define TALK_LENGTH_FLAG(talk)                                                                  \
    {                                                                                           \
        "max_new_tokens", FLAG_INT, &(talk).max_new_tokens,                                     \
            .low = 1, .high = 1 << 20, .free_on_resume = true, .help = "longest answer, tokens" \
    }

#define TALK_TOP_FLAGS(talk)                                                           \
    {"top_k",                                                                          \
     FLAG_INT,                                                                         \
     &(talk).top_k,                                                                    \
     .high = 1e9,                                                                      \
     .free_on_resume = true,                                                           \
     .help = "draw an answer's tokens from the so many likeliest; 0: from all"},       \
    {                                                                                  \
        "top_p", FLAG_FLOAT, &(talk).top_p,                                            \
            .low = 1e-6, .high = 1, .free_on_resume = true,                            \
            .help = "draw them from the likeliest that together have this probability" \
    }

Talk talk_defaults(void);
/* Is there a prompt to answer, or a conversation to hold? */
bool talk_asked(const Talk *t);
/* Does it, with the model in run->model (NULL: the built-in one), and releases run. Returns the
 * program's exit status. */
int talk_to_model(Talk *t, Run *run, const char *template);

/* The same in two halves, for a model with something beside it. First: reads the tokenizer of dir,
   decides on the template (adapter: where to look first, or NULL; template: --template), reads
   --prompt, and returns the ceilings the model needs. Whatever is wrong ends the program with 2. */
GPT2Limits talk_prepare(Talk *t, const char *adapter, const char *dir, const char *template,
                        const GPT2Config *config);
/* Then: answers until nothing more is asked. Text is shown as its tokens come, never half a
   character, and a newline after each answer. The same model, flags and seed give the same answers.
   A conversation that leaves an answer too little room loses its first turns, whole, and a note on
   stderr says so. */
void talk_hold(Talk *t, GPT2 *model, uint64_t seed);
void talk_free(Talk *t);

/* ---- parts of it ----------------------------------------------------------------------------- */

/* The template by the rule above, which has been parsed once; NULL: nothing says. To be freed. What
 * is wrong with it ends the program with 2. */
char *talk_template(const char *template, const char *adapter, const char *dir);
/* The next line of stdin, without its end, in UTF-8 (text_repair); NULL when the conversation is
 * over. To be freed. */
char *talk_line(void);
/* From here on Ctrl-C ends the program at once, with nothing to save. */
void talk_interrupts(void);
/* Moves from `bytes` to `text` what can be shown: whole characters, and for each longest part of
   one that cannot become whole, U+FFFD, as Python and Rust (and so the libraries) decode. The
   beginning of a character stays until the rest comes, or, at the end, is such a part. */
void talk_characters(Str *bytes, bool end, Str *text);

#endif
