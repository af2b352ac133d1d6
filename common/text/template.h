/*
 * template.h - the text that a model is given around an instruction and its input.
 *
 * A template is the text before the response. {instruction} and {input} are the record's fields.
 * \n, \t and \\ are spelled as in C. A part in [[...]] is dropped when a record has no input. In a
 * template without {input} the input follows the instruction on a new line. The text after
 * {response}, if the template has it, ends the response. The default is
 *
 *     "### Instruction:\n{instruction}\n\n[[### Input:\n{input}\n\n]]### Response:\n"
 */
#ifndef POSTTRAIN_TEMPLATE_H
#define POSTTRAIN_TEMPLATE_H

#include "util.h"

#define TEMPLATE_DEFAULT NULL  // where a function takes a template: the default

typedef enum { PART_LITERAL, PART_INSTRUCTION, PART_INPUT } TemplatePartKind;

typedef struct {
    TemplatePartKind kind;
    bool needs_input;  // it was within [[ ]]
    Str literal;
} TemplatePart;

typedef struct {
    TemplatePart *part;
    int n;
    bool has_input;  // {input} occurs
    Str tail;        // the text after {response}
} Template;

/* Parses a template into t. 0, or -1 with e filled. The caller frees t in either case. */
int template_parse(const char *template, Template *t, Error *e);
void template_free(Template *t);
/* Appends the prompt. input.s NULL: there is none. */
void template_render(const Template *t, Slice instruction, Slice input, Str *out);

/* Renders one instruction and its input (or NULL) as a prompt. The caller frees it. NULL with e
   filled if the template is wrong. */
char *template_prompt(const char *template, const char *instruction, const char *input, Error *e);
/* The response with the template's text after it. The caller frees it. NULL with e filled if the
   template is wrong. */
char *template_response(const char *template, const char *response, Error *e);
/* The template in one line with the same meaning: line feeds and tabs are spelled. The caller frees
   it. */
char *template_line(const char *template);

#endif
