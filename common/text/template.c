/*
 * template.c - the text around an instruction: see template.h.
 */
#include "text/template.h"

static const char default_text[] =
    "### Instruction:\n{instruction}\n\n[[### Input:\n{input}\n\n]]### Response:\n";

static const char *text_of(const char *template) { return template ? template : default_text; }

void template_free(Template *t) {
    for (int i = 0; i < t->n; i++) free(t->part[i].literal.s);
    free(t->part);
    free(t->tail.s);
}

static void add_part(Template *t, TemplatePartKind kind, bool needs_input) {
    t->part = xrealloc(t->part, (size_t)t->n + 1, sizeof *t->part);
    t->part[t->n++] = (TemplatePart){.kind = kind, .needs_input = needs_input};
    if (kind == PART_INPUT) t->has_input = true;
}

static void add_literal(Template *t, bool needs_input, char c) {
    bool same = t->n > 0 && t->part[t->n - 1].kind == PART_LITERAL &&
                t->part[t->n - 1].needs_input == needs_input;
    if (!same) add_part(t, PART_LITERAL, needs_input);
    str_add(&t->part[t->n - 1].literal, &c, 1);
}

/* If *p begins with word, moves *p behind it and returns true. */
static bool accept(const char **p, const char *word) {
    size_t n = strlen(word);
    if (strncmp(*p, word, n)) return false;
    *p += n;
    return true;
}

/* Returns the character at *p, where \n, \t and \\ spell one, and moves *p behind it. */
static char unescape(const char **p) {
    if (accept(p, "\\n")) return '\n';
    if (accept(p, "\\t")) return '\t';
    if (accept(p, "\\\\")) return '\\';
    return *(*p)++;
}

/* True at a lower-case word in braces, which is meant as a field. */
static bool looks_like_field(const char *p) {
    size_t n = *p == '{' ? strspn(p + 1, "abcdefghijklmnopqrstuvwxyz_") : 0;
    return n > 0 && p[1 + n] == '}';
}

int template_parse(const char *template, Template *t, Error *e) {
    const char *text = text_of(template);
    *t = (Template){0};
    bool has_instruction = false, optional = false, ended = false;
    str_add(&t->tail, "", 0);
    for (const char *p = text; *p;) {
        int at = (int)(p - text) + 1;
        bool instruction = accept(&p, "{instruction}"),
             input = !instruction && accept(&p, "{input}");
        bool response = !instruction && !input && accept(&p, "{response}");
        if (looks_like_field(p) && !instruction && !input && !response)
            return fail(
                e, "template, column %d: \"%.40s\" is none of {instruction}, {input}, {response}",
                at, p);
        if (ended && (instruction || input || response))
            return fail(e, "template, column %d: no field may follow {response}", at);
        if (instruction || input) {
            add_part(t, input ? PART_INPUT : PART_INSTRUCTION, optional);
            has_instruction |= instruction && !optional;
        } else if (response) {
            if (optional)
                return fail(e, "template, column %d: {response} cannot be within [[ ]]", at);
            ended = true;
        } else if (!ended && accept(&p, "[[")) {
            if (optional) return fail(e, "template, column %d: [[ within [[ ]]", at);
            optional = true;
        } else if (optional && accept(&p, "]]")) {
            optional = false;
        } else if (ended) {
            str_add(&t->tail, &(char){unescape(&p)}, 1);
        } else {
            add_literal(t, optional, unescape(&p));
        }
    }
    if (optional) return fail(e, "template: [[ without ]]");
    if (!has_instruction)
        return fail(e, "template: {instruction} is missing, or only within [[ ]]");
    return 0;
}

void template_render(const Template *t, Slice instruction, Slice input, Str *out) {
    str_add(out, "", 0);
    for (int i = 0; i < t->n; i++) {
        const TemplatePart *part = &t->part[i];
        if (part->needs_input && !input.s) continue;
        if (part->kind == PART_LITERAL) str_add(out, part->literal.s, part->literal.n);
        if (part->kind == PART_INPUT && input.s) str_add(out, input.s, input.n);
        if (part->kind == PART_INSTRUCTION) {
            str_add(out, instruction.s, instruction.n);
            if (input.s && !t->has_input) {  // the template has no {input}: do not lose it
                str_add(out, "\n", 1);
                str_add(out, input.s, input.n);
            }
        }
    }
}

char *template_prompt(const char *template, const char *instruction, const char *input, Error *e) {
    Template t;
    Str out = {0};
    Slice second = {input && *input ? input : NULL, input ? strlen(input) : 0};
    if (template_parse(template, &t, e) == 0)
        template_render(&t, (Slice){instruction, strlen(instruction)}, second, &out);
    template_free(&t);
    return out.s;
}

char *template_response(const char *template, const char *response, Error *e) {
    Template t;
    Str out = {0};
    if (template_parse(template, &t, e) == 0) {
        str_add(&out, response, strlen(response));
        str_add(&out, t.tail.s, t.tail.n);
    }
    template_free(&t);
    return out.s;
}

char *template_line(const char *template) {
    Str out = {0};
    str_add(&out, "", 0);
    for (const char *p = text_of(template); *p;) {
        const char *from = p;
        const char c = unescape(&p);
        if (p - from == 2)
            str_add(&out, from, 2);  // it was spelled already
        else if (c == '\n')
            str_add(&out, "\\n", 2);
        else if (c == '\t')
            str_add(&out, "\\t", 2);
        else if (c == '\\' && (*p == '\n' || *p == '\t'))
            str_add(&out, "\\\\", 2);  // "\" before a spelled "\n" would read as a backslash and n
        else
            str_add(&out, &c, 1);
    }
    return out.s;
}
