/*
 * template.h - the text that a model is given around an instruction and its input.
 *
 * A template is the text before the response. {instruction} and {input} are the record's fields.
 * \n, \t and \\ are spelled as in C. A part in [[...]] is dropped when a record has no input. In a
 * template without {input} the input follows the instruction on a new line. The text after
 * {response}, if the template has it, ends the response. The default is
 *
 *     "### Instruction:\n{instruction}\n\n[[### Input:\n{input}\n\n]]### Response:\n"
 *
 * One part [[...{system}...]] may say how the system's message of a conversation is written. It
 * belongs to the first turn alone, and is dropped without a system's message; after || it may have
 * the text for this case: [[<s>{system}\n||<s>]]. Without such a part the system's message comes
 * before the first turn, with an empty line after it.
 *
 * {system|trim}, {instruction|trim}, {input|trim} and {response|trim} drop the white space around a
 * field, as the filter of this name in Jinja does.
 */
#ifndef POSTTRAIN_TEMPLATE_H
#define POSTTRAIN_TEMPLATE_H

#include "util.h"

#define TEMPLATE_DEFAULT NULL  // where a function takes a template: the default

typedef enum { PART_LITERAL, PART_INSTRUCTION, PART_INPUT, PART_SYSTEM } TemplatePartKind;

typedef struct {
    TemplatePartKind kind;
    bool needs_input;    // it was within [[ ]]
    bool trim;           // of a field
    Str literal;         // of a literal; of PART_SYSTEM the text before the message
    Str after, instead;  // of PART_SYSTEM: the text after the message; that without a message
} TemplatePart;

typedef struct {
    TemplatePart *part;
    int n;
    bool has_input;      // {input} occurs
    bool has_system;     // {system} occurs
    bool trim_response;  // {response|trim}
    bool ends;           // the text after {response} has the token that ends an answer
    Str tail;            // the text after {response}, up to the token that ends an answer
    Str between;         // the text after that token, which comes before the next turn
} Template;

/* The template of records where a function gets TEMPLATE_DEFAULT. A program sets it once, to the
   one of the directory of its model; NULL: the one above. The text is copied. */
void template_set_default(const char *template);
/* The text of the token that ends an answer, "<|endoftext|>" unless it was set. The text is copied.
 */
void template_set_end(const char *text);
const char *template_end(void);

/* Parses a template into t. 0, or -1 with e filled. The caller frees t in either case. */
int template_parse(const char *template, Template *t, Error *e);
void template_free(Template *t);
/* Appends the prompt. input.s NULL: there is none. first: the turn begins the text, and may come
   with a system's message; system.s NULL: without. */
void template_render(const Template *t, bool first, Slice system, Slice instruction, Slice input,
                     Str *out);
/* Appends what comes before a conversation that the assistant opens: the system's message, or what
   the template has in its place. */
void template_render_system(const Template *t, Slice system, Str *out);
/* Appends the response as the template has it, and the template's text after it. */
void template_render_response(const Template *t, Slice response, Str *out);
/* The text after an answer in one piece: the tail and, if it has the token that ends an answer,
   that token and the text between turns. To be freed. */
char *template_after_answer(const Template *t);

/* Renders one instruction and its input (or NULL), without a system's message, as a prompt. The
   caller frees it. NULL with e filled if the template is wrong. */
char *template_prompt(const char *template, const char *instruction, const char *input, Error *e);
/* A turn of a conversation as a prompt; answered: an answer comes before it. The template must be
   right. The caller frees it. */
char *template_turn(const char *template, const char *instruction, bool answered);
/* The response with the template's text after it. The caller frees it. NULL with e filled if the
   template is wrong. */
char *template_response(const char *template, const char *response, Error *e);
/* The template in one line with the same meaning: line feeds and tabs are spelled. The caller frees
   it. */
char *template_line(const char *template);

#endif
