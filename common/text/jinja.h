/*
 * jinja.h - chat templates of transformers, which are written in Jinja, as templates of ours and
 * back.
 */
#ifndef POSTTRAIN_JINJA_H
#define POSTTRAIN_JINJA_H

#include "util.h"

/* A message that a chat template renders. */
typedef struct {
    const char *role, *content;
} Message;

/* The text of eos_token and of bos_token; NULL: the tokenizer has none. */
typedef struct {
    const char *end, *begin;
} Marks;

/*
 * Renders messages as transformers' apply_chat_template does (trim_blocks, lstrip_blocks). Known
 * are: for over messages, if, set, namespace; texts, numbers, + ~ % and comparisons, `is defined`,
 * indices and slices; trim, strip and other functions of a text; loop, eos_token, bos_token and
 * add_generation_prompt. To be freed. NULL: the template uses something else, or raised an
 * exception.
 */
char *jinja_render(const char *jinja, const Message *message, int n, bool add_generation_prompt,
                   Marks marks);

/*
 * The template (template.h) that makes the same text as a chat template, in one line: each question
 * in the template, each answer with the text after it, and the system's message. It is found by
 * rendering a few conversations, with and without white space around the messages, and compared on
 * all of them. NULL: there is none. To be freed. *system_said: it also says how the chat template
 * writes a system's message; else that message comes first as it is, with an empty line after it.
 */
char *jinja_to_template(const char *jinja, Marks marks, bool *system_said);

/* The chat template that makes of messages what records become in a template, with the token that
   ends an answer. To be freed; NULL: the template is wrong. */
char *jinja_of_template(const char *template, const char *end_text);

#endif
