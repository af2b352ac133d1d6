/*
 * chat.h - a prompt or a conversation, answered on stdout token by token.
 *
 * What a model reads has the form that it was trained in, by the same code and to the same tokens:
 * each prompt in the template, each answer ended by one <|endoftext|>. The template is the first of
 *
 *     1. --template
 *     2. that of the adapter's directory, then of the model's: usage.h
 *     3. none for --prompt, whose text is then continued as it is; the default one for --chat
 */
#ifndef POSTTRAIN_CHAT_H
#define POSTTRAIN_CHAT_H

#include "run/run.h"

typedef struct Chat {
    /* flags */
    const char *prompt, *template;
    bool chat;
    float temperature, top_p;
    int top_k, max_new_tokens;
    /* chat_prepare fills in the rest */
    Tokenizer *tokenizer;
    char *form;     // the template, or NULL
    bool plain;     // there is none: a text is continued
    int positions;  // the model's
    Ints said, turns,
        next;       // the conversation as tokens; where in it each turn begins; the next turn
    int head;       // tokens at its front that stay: what the template has before the first turn
    int forgotten;  // turns cut from its front
} Chat;

/* Rows of a stage's table of flags, for chat, a Chat in static storage. rest: names of the stage's
   own flags, "a b c"; giving one together with --prompt or --chat is refused. */
#define CHAT_FLAGS(variable, rest)                                                  \
    CHAT_PROMPT_FLAGS(variable, rest),                                              \
        {"temperature", NUMBER((variable).temperature, "0.7", 0, 100),              \
         "The temperature of sampled answers; 0 always takes the likeliest token.", \
         .may_change_on_resume = true, .only_with = "prompt chat"},                 \
        CHAT_LENGTH_FLAG(variable), CHAT_TOP_FLAGS(variable)

/* The flags that have an effect on an answer. Some are those of lora.c and adapter.c. */
#define CHAT_USES                                                                               \
    "prompt chat model adapter template temperature top_k top_p max_new_tokens seed bf16 fp16 " \
    "cpu quiet merge verify overwrite_output_dir allow_untrained load_in_4bit "                 \
    "bnb_4bit_use_double_quant adapter_dim reduction_factor placement activation train_layernorm"

/* Parts of CHAT_FLAGS, for stages that define the other flags themselves */
#define CHAT_PROMPT_FLAGS(variable, rest)                                                        \
    TITLE("Answers instead of training"),                                                        \
        {"prompt",                                                                               \
         TEXT((variable).prompt, NULL),                                                          \
         "Answer this text, in the template that --model was trained in, and do not train.",     \
         .may_be_empty = true,                                                                   \
         .may_change_on_resume = true,                                                           \
         .conflicts = "data eval output resume dry_run " rest,                                   \
         .uses = CHAT_USES},                                                                     \
    {                                                                                            \
        "chat", SWITCH((variable).chat, "false"),                                                \
            "Answer each line of stdin as a turn of a conversation, and do not train; an empty " \
            "line or /exit ends it, /reset begins anew, /help lists the commands.",              \
            .may_change_on_resume = true, .conflicts = "data eval output resume dry_run " rest,  \
            .uses = CHAT_USES                                                                    \
    }

#define CHAT_LENGTH_FLAG(variable)                                             \
    {                                                                          \
        "max_new_tokens", NUMBER((variable).max_new_tokens, "64", 1, 1 << 20), \
            "The most tokens of an answer.", .may_change_on_resume = true      \
    }

#define CHAT_TOP_FLAGS(variable)                                                              \
    {"top_k", NUMBER((variable).top_k, "0", 0, 1e9),                                          \
     "Sample a token of an answer from this many of the likeliest; 0 samples from all.",      \
     .may_change_on_resume = true, .only_with = "prompt chat"},                               \
    {                                                                                         \
        "top_p", NUMBER((variable).top_p, "1", 1e-6, 1),                                      \
            "Sample a token of an answer from the likeliest ones whose probabilities sum to " \
            "this.",                                                                          \
            .may_change_on_resume = true, .only_with = "prompt chat"                          \
    }

/* The same flags as CHAT_FLAGS but temperature, for a stage whose training does not use
   max_new_tokens */
#define CHAT_ONLY_FLAGS(variable, rest)                                         \
    CHAT_PROMPT_FLAGS(variable, rest),                                          \
        {"max_new_tokens", NUMBER((variable).max_new_tokens, "64", 1, 1 << 20), \
         "The most tokens of an answer.", .may_change_on_resume = true,         \
         .only_with = "prompt chat"},                                           \
        CHAT_TOP_FLAGS(variable)

/* The text around an instruction. Not a part of CHAT_FLAGS: the stage chooses its place. */
#define TEMPLATE_FLAG(variable)                                                                \
    {                                                                                          \
        "template", TEXT((variable).template, NULL),                                           \
            "The text before a response. It contains {instruction}; a part in [[ ]] contains " \
            "{input} or {system} and is left out without one; \\n is a new line.",             \
            .may_be_empty = true                                                               \
    }

/* Is there a prompt to answer, or a conversation to hold? */
bool chat_asked(const Chat *c);
/* Does so with the model in run->model (NULL: the built-in one); with a technique, the adapter in a
   directory changes that model. */
void chat_answer(Chat *c, Run *run, const Technique *technique, const char *adapter);

/* The same in two halves, for a stage that has the model already. First: reads the tokenizer of
   dir, decides on the template (adapter: a directory that is asked first, or NULL) and reads
   --prompt. Returns the limits that the model needs. Wrong input ends the program with 2. */
GPT2Limits chat_prepare(Chat *c, const char *adapter, const char *dir, const GPT2Config *config);
/* Then: answers until nothing more is asked. Text is shown as its tokens come, whole characters
   only, and a newline after each answer. Equal model, flags and seed give equal answers. A
   conversation that leaves an answer too little room loses its first turns; a note says so. */
void chat_hold(Chat *c, GPT2 *model, uint64_t seed);
void chat_free(Chat *c);

/* ---- parts of it ----------------------------------------------------------------------------- */

/* The template by the rule above, to be freed; NULL: none is given. A wrong one ends the program
   with 2. Call it after run_load_tokenizer, which says how a text ends. t: the tokenizer of texts
   that end with its end, for a note about a chat template without one; or NULL. */
char *chat_template(const char *template, const char *adapter, const char *dir, const Tokenizer *t);
/* The next line that a person types, as line_read gives it. NULL: the end, an empty line, or /exit.
   Answers /help itself. To be freed. */
char *chat_line(void);

#endif
